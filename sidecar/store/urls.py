"""Which store a url means."""

from importlib import import_module
from pathlib import Path

from sidecar.errors import StoreError
from sidecar.store import Store
from sidecar.store.address import OPTIONS, parse
from sidecar.store.sqlite import SqliteStore


def open_store(url: str, *, writable: bool) -> Store:
    """The store of a `store.url`; nothing is connected yet. Raises StoreError for a url that no store here speaks."""
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and path:
        return SqliteStore(Path(path), writable=writable)
    scheme = url.partition(":")[0]  # and no more of it: the rest may hold a password
    if scheme in OPTIONS:
        return _open_redis(url, writable=writable)
    raise StoreError(
        f"store.url {scheme}:…: no such store; use sqlite:///path/to/store.db, redis://…, rediss://…, "
        "redis+sentinel://… or redis+cluster://…"
    )


def _open_redis(url: str, *, writable: bool) -> Store:
    address = parse(url)
    try:
        # Only here: a host that uses the embedded store does not need the package.
        module = import_module("sidecar.store.redis")
    except ModuleNotFoundError as error:
        raise StoreError(
            f"store.url {address.scheme}:…: pip install 'catalog-sidecar[redis]' first ({error})"
        ) from error
    store: Store = module.RedisStore(address, writable=writable)
    return store
