"""Which store a url means."""

from pathlib import Path

from sidecar.errors import StoreError
from sidecar.store import Store
from sidecar.store.sqlite import SqliteStore


def open_store(url: str, *, writable: bool) -> Store:
    """The store of a `store.url`; nothing is connected yet. Raises StoreError for a url that no store here speaks."""
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and path:
        return SqliteStore(Path(path), writable=writable)
    scheme = url.partition(":")[0]  # and no more of it: the rest may hold a password
    raise StoreError(f"store.url {scheme}:…: this version has the embedded store alone; use sqlite:///path/to/store.db")
