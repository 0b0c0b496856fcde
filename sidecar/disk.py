"""The second tier: the local disk copy, which may fail at any time and never takes the process with it.

Every trouble ends here: it is counted, logged when it begins and when it ends, and told in /health; the caller sees an
object that is not there. A broken database is set aside and begun anew, and so is one that claims a generation which it
cannot serve; a file that is no database at all is somebody else's, and is left alone. sqlite3's exceptions are looked
at only to tell these cases from others.

One process has the copy to itself, by a lock on the file `<copy>.lock` that the kernel gives back when the process is
gone: of two that write one copy, each would sweep what the other's pointer needs.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import structlog

from sidecar.contract.objects import Sealed
from sidecar.errors import Fenced, PointerConflict, StoreError
from sidecar.health import DiskStatus
from sidecar.metrics import Metrics
from sidecar.store import Pointer, Store
from sidecar.store.sqlite import SqliteStore

# Longer than the wait of a writer for another one (SQLite's busy timeout), which reports a better reason.
DEADLINE_S: Final = 12.0
SET_ASIDE_SUFFIX: Final = ".corrupt"
LOCK_SUFFIX: Final = ".lock"
MAGIC: Final = b"SQLite format 3\0"
_UNUSABLE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
OpenStore = Callable[[Path], Store]
Lock = Callable[[Path], int]


def open_sqlite(path: Path) -> Store:
    return SqliteStore(path, writable=True)


def lock(path: Path) -> int:
    """Takes the lock on the copy, and returns the descriptor that holds it.

    Raises StoreError if another process has it. The lock's file is never removed: whoever makes a new one locks
    another file than those who have the old one open.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + LOCK_SUFFIX), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
    except BlockingIOError as error:
        raise StoreError(f"{path} is in use by another sidecar; give each its own sidecar.disk") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be locked: {error}") from error
    return descriptor


class Disk:
    """The disk copy at `path`; with None there is no such tier, and everything is simply not there."""

    def __init__(
        self, path: Path | None, metrics: Metrics, open_store: OpenStore = open_sqlite, lock: Lock = lock
    ) -> None:
        self.status = DiskStatus("off" if path is None else "ok")
        self._path = path
        self._metrics = metrics
        self._open_store = open_store
        self._take_lock = lock
        self.resets = 0
        self._begun = False
        self._pending: set[asyncio.Task[Any]] = set()
        # Two connections, so that reading an object never waits for a sweep.
        self._reads: Store | None = None
        self._writes: Store | None = None
        # The descriptor that holds the lock on the copy; two attempts that took it at once would refuse each other.
        self._lock: int | None = None
        self._locking = asyncio.Lock()
        self._open()

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        """The bytes of those objects that are there, unverified."""
        if self._reads is None:
            return {}
        return await self._attempt(self._reads.get(digests), {})

    async def pointer(self) -> Pointer | None:
        """The generation that the copy holds in full; None if it holds none, or if someone has removed it."""
        if self._begun and self._path is not None and not await asyncio.to_thread(self._path.exists):
            await self._begin_anew()
        if self._reads is None:
            return None
        return await self._attempt(self._reads.pointer(), None)

    async def put(self, objects: Collection[Sealed]) -> bool:
        """Whether all of the objects are there now."""
        if self._writes is None:
            return False
        return await self._attempt(_done(self._writes.put, objects), False)

    async def publish(self, pointer: Pointer, live: Set[bytes] | None, now_ms: int) -> bool:
        """Moves the pointer, then drops all objects but the live ones, unless there are none named; whether both could
        be done.
        """
        if self._writes is None or not await self._attempt(_done(self._writes.move, pointer), False):
            return False
        if live is None:
            return True
        sweep = _done(self._writes.sweep, live, epoch=pointer.epoch, now_ms=now_ms, grace_ms=0)
        return await self._attempt(sweep, False)

    async def close(self) -> None:
        """Lets what is under way finish, closes the file, and leaves it to others."""
        await self._close_stores()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _close_stores(self) -> None:
        stores = [store for store in (self._reads, self._writes) if store is not None]
        self._reads = self._writes = None
        await asyncio.gather(*self._pending, return_exceptions=True)
        for store in stores:
            await store.close()

    async def _attempt(self, work: Coroutine[Any, Any, T], otherwise: T) -> T:
        resets = self.resets
        # Shielded: SQLite's thread works on when its caller is cancelled, and the file must not be closed under it.
        task = asyncio.create_task(self._locked(work))
        self._pending.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(DEADLINE_S):
                result = await asyncio.shield(task)
        except (StoreError, TimeoutError) as error:
            reason = str(error) or f"no answer within {DEADLINE_S:g} s"
            unusable = _is_unusable(error)
            if unusable and self._path is not None and not await asyncio.to_thread(_is_ours, self._path):
                unusable, reason = False, f"{self._path} is no disk copy of ours; choose another sidecar.disk"
            self._failed(reason)
            # Several attempts may fail on one file; it is set aside once.
            if unusable and resets == self.resets:
                await self._set_aside()
            return otherwise
        self._begun = True
        if self.status.state == "failing":
            self.status.state, self.status.error = "ok", None
            _log.info("the disk copy works again", path=str(self._path))
        return result

    async def _locked(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with self._locking:
                if self._lock is None and self._path is not None:
                    self._lock = await asyncio.to_thread(self._take_lock, self._path)
        except BaseException:
            work.close()
            raise
        return await work

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._pending.discard(task)
        if not task.cancelled():
            # Looked at, because whoever waited for it may have gone.
            task.exception()

    def _failed(self, reason: str) -> None:
        self._metrics.disk_errors.inc()
        if self.status.state == "ok":
            _log.warning("the disk copy fails; answers go on without it", path=str(self._path), error=reason)
        self.status.state, self.status.error = "failing", reason

    async def _set_aside(self) -> None:
        _log.warning("the disk copy is set aside and begun anew", path=str(self._path), suffix=SET_ASIDE_SUFFIX)
        await self._begin_anew()

    async def _begin_anew(self) -> None:
        self.resets += 1
        self._metrics.disk_resets.inc()
        self._begun = False
        await self._close_stores()
        if self._path is not None:
            await asyncio.to_thread(_move_away, self._path)
        self._open()

    def _open(self) -> None:
        if self._path is not None:
            self._reads, self._writes = self._open_store(self._path), self._open_store(self._path)


async def _done(work: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs) -> bool:
    await work(*args, **kwargs)
    return True


def _is_unusable(error: Exception) -> bool:
    # Fenced: it claims a higher generation than the served one; had that been sound, it would be served.
    if isinstance(error, (Fenced, PointerConflict)):
        return True
    cause = error.__cause__
    return isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _UNUSABLE


def _is_ours(path: Path) -> bool:
    """Whether the file may be set aside: it is a database, or there is nothing in it to be lost."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) in (b"", MAGIC)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _move_away(path: Path) -> None:
    """Makes room for a new file; what SQLite keeps beside the old one would be taken for the new one's."""
    with suppress(OSError):
        path.replace(path.with_name(path.name + SET_ASIDE_SUFFIX))
    for suffix in ("-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()
