"""The one door to a sidecar's disk copy for other processes: read-only, while the sidecar writes it or is gone.

sqlite3's exceptions stop in this file. What a reader has to heed:

1. While a sidecar has the copy open, `-wal` and `-shm` lie beside it, and a reader takes part in them as any connection
   does. One of another user neither makes nor writes them (`readonly_shm`): the sidecar could not open what it made.
2. A sidecar that ends in order takes both away. What is left is complete, and nobody writes it: it is read as it lies,
   without locks (`immutable`), until it changes or a `-wal` appears. Who may not write to the folder has no other way.
   Should it change just then, bytes may be mixed, and fail their digests; no answer comes of them.
3. SQLite must not see a fork: locks are a process's, and a child would believe that it holds its parent's. So the
   connection is closed before a fork, and made again when it is needed. A fork that Python was not told of is seen by
   the process id; what was inherited then stays open, because closing it would break the parent's locks.
4. The path may come to lead to another file: a broken copy is set aside, a lost one is begun anew.

One thread at a time is inside. Nothing in there lets another greenlet run (no sleep, no log), so that greenlets of one
thread never wait for each other; and whoever waits does so for a limited time.
"""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sidecar.contract.objects import DIGEST_BYTES
from sidecar.errors import ObjectMissing, PointerDamaged, StoreError
from sidecar.store import Pointer
from sidecar.store.mounts import mounts, network_file_system

# Loading a large generation takes a second or two; other waits are over in microseconds.
LOCK_S: Final = 5.0
# In WAL mode a reader waits for others only while they recover the file, or close it as its last user.
BUSY_S: Final = 0.25
# What is read is kept by whoever asked for it; SQLite's own 2 MB of pages would be kept by every worker for nothing.
CACHE_KIB: Final = 128


class Moment:
    """One state of the copy, however long the reading of it takes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def pointer(self) -> Pointer | None:
        """The generation that the copy holds in full; None before the first."""
        row = self._connection.execute(
            "SELECT CAST(epoch AS BLOB), CAST(generation AS BLOB), CAST(digest AS BLOB) FROM pointer"
        ).fetchone()
        if row is None:
            return None
        epoch, generation, digest = (value or b"" for value in row)
        if not (epoch.isdigit() and generation.isdigit() and len(digest) == DIGEST_BYTES):
            raise PointerDamaged("the disk copy's pointer is damaged")
        return Pointer(int(epoch), int(generation), digest)

    def get(self, digest: bytes) -> bytes:
        """The bytes stored under a digest, unverified. Raises ObjectMissing."""
        row = self._connection.execute("SELECT CAST(data AS BLOB) FROM objects WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise ObjectMissing(f"object {digest.hex()} is not in the disk copy")
        data: bytes = row[0] or b""
        return data


class Copy:
    """The copy at a path, which need not be there yet. Nothing is opened before it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._file = str(self._path)
        self._wal = f"{self._file}-wal"
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._opened: os.stat_result | None = None
        self._immutable = False
        # The thread that is about to fork, while it keeps others out.
        self._forking: int | None = None
        _COPIES.add(self)

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """What is read within is of one moment. Raises StoreError if the copy cannot be read."""
        with self._inside() as connection:
            connection.execute("BEGIN")
            yield Moment(connection)
            connection.rollback()

    def get(self, digest: bytes) -> bytes:
        """The bytes that are stored under a digest now, unverified. Raises ObjectMissing, and StoreError as above."""
        with self._inside() as connection:
            return Moment(connection).get(digest)

    @property
    def busy(self) -> bool:
        """Whether somebody is reading just now."""
        return self._lock.locked()

    def close(self) -> None:
        """Closes the file; it is opened again when it is read."""
        with self._lock:
            self._drop()

    @contextmanager
    def _inside(self) -> Iterator[sqlite3.Connection]:
        if not self._lock.acquire(timeout=LOCK_S):
            raise StoreError(f"disk copy {self._file}: it is being read for longer than {LOCK_S:g} s")
        try:
            yield self._reached()
        except sqlite3.Error as error:
            self._drop()
            raise StoreError(f"disk copy {self._file}: {error}") from error
        except BaseException:
            # Also a signal's, anywhere: half a transaction would keep its moment for ever.
            self._drop()
            raise
        finally:
            self._lock.release()

    def _reached(self) -> sqlite3.Connection:
        if self._connection is not None and (self._process != os.getpid() or self._is_outdated()):
            self._drop()
        return self._connection or self._connect()

    def _connect(self) -> sqlite3.Connection:
        try:
            self._opened = os.stat(self._file)
        except OSError as error:
            raise StoreError(f"disk copy {self._file}: {error.strerror}") from error
        if kind := network_file_system(self._path.resolve(), mounts()):
            raise StoreError(f"disk copy {self._file} is on a network file system ({kind}); use a local one")
        self._immutable = not os.path.exists(self._wal)
        is_others = os.geteuid() not in (0, self._opened.st_uid)
        how = "immutable=1" if self._immutable else f"readonly_shm={int(is_others)}"
        uri = f"{self._path.as_uri()}?mode=ro&{how}"
        self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
        self._process = os.getpid()
        if self._is_outdated():
            self._drop()
            raise StoreError(f"disk copy {self._file}: it was replaced while it was opened")
        self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        return self._connection

    def _is_outdated(self) -> bool:
        """Whether the path leads to another file than the open one, or what was taken for finished goes on."""
        assert self._opened is not None
        try:
            now = os.stat(self._file)
        except OSError:
            return True
        if not os.path.samestat(now, self._opened):
            return True
        unchanged = (now.st_size, now.st_mtime_ns) == (self._opened.st_size, self._opened.st_mtime_ns)
        return self._immutable and not (unchanged and not os.path.exists(self._wal))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._process != os.getpid():
            _INHERITED.append(connection)
            return
        with suppress(sqlite3.Error):
            connection.close()

    def before_fork(self) -> None:
        """Keeps others out until after the fork, and leaves nothing open that a child would inherit."""
        if self._lock.acquire(timeout=LOCK_S):
            self._forking = threading.get_ident()
            self._drop()

    def after_fork_in_parent(self) -> None:
        """Lets others in again."""
        if self._forking == threading.get_ident():
            self._forking = None
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begins with a lock that nobody holds: whoever may hold the parent's is not here."""
        self._forking = None
        self._lock = threading.Lock()


_COPIES: Final["weakref.WeakSet[Copy]"] = weakref.WeakSet()
# Connections of a parent process, which a child must neither use nor close.
_INHERITED: Final[list[sqlite3.Connection]] = []


def _before_fork() -> None:
    for copy in list(_COPIES):
        copy.before_fork()


def _after_fork_in_parent() -> None:
    for copy in list(_COPIES):
        copy.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for copy in list(_COPIES):
        copy.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
