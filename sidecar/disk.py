"""The second tier: the local disk copy, which may fail at any time and never takes the process with it.

Every trouble ends here: it is counted, logged when it begins and when it ends, and told in /health; the caller sees an
object that is not there. A file that is no database, or a broken one, is set aside and begun anew, and so is a file
that claims a generation which it cannot serve. sqlite3's exceptions are looked at only to tell these cases from others.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

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
_UNUSABLE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_log = structlog.get_logger(__name__)

T = TypeVar("T")
OpenStore = Callable[[Path], Store]


def open_sqlite(path: Path) -> Store:
    return SqliteStore(path, writable=True)


class Disk:
    """The disk copy at `path`; with None there is no such tier, and everything is simply not there."""

    def __init__(self, path: Path | None, metrics: Metrics, open_store: OpenStore = open_sqlite) -> None:
        self.status = DiskStatus("off" if path is None else "ok")
        self._path = path
        self._metrics = metrics
        self._open_store = open_store
        self.resets = 0
        self._begun = False
        self._pending: set[asyncio.Task[Any]] = set()
        # Two connections, so that reading an object never waits for a sweep.
        self._reads: Store | None = None
        self._writes: Store | None = None
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
        return await self._attempt(_done(self._writes.put(objects)), False)

    async def publish(self, pointer: Pointer, live: Set[bytes], now_ms: int) -> bool:
        """Moves the pointer, then drops all objects but the live ones; whether both could be done."""
        if self._writes is None or not await self._attempt(_done(self._writes.move(pointer)), False):
            return False
        sweep = self._writes.sweep(live, epoch=pointer.epoch, now_ms=now_ms, grace_ms=0)
        return await self._attempt(_done(sweep), False)

    async def close(self) -> None:
        """Lets what is under way finish, and closes the file."""
        stores = [store for store in (self._reads, self._writes) if store is not None]
        self._reads = self._writes = None
        await asyncio.gather(*self._pending, return_exceptions=True)
        for store in stores:
            await store.close()

    async def _attempt(self, work: Coroutine[Any, Any, T], otherwise: T) -> T:
        resets = self.resets
        # Shielded: SQLite's thread works on when its caller is cancelled, and the file must not be closed under it.
        task = asyncio.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(DEADLINE_S):
                result = await asyncio.shield(task)
        except (StoreError, TimeoutError) as error:
            self._failed(str(error) or f"no answer within {DEADLINE_S:g} s")
            # Several attempts may fail on one file; it is set aside once.
            if _is_unusable(error) and resets == self.resets:
                await self._set_aside()
            return otherwise
        self._begun = True
        if self.status.state == "failing":
            self.status.state, self.status.error = "ok", None
            _log.info("the disk copy works again", path=str(self._path))
        return result

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
        await self.close()
        if self._path is not None:
            await asyncio.to_thread(_move_away, self._path)
        self._open()

    def _open(self) -> None:
        if self._path is not None:
            self._reads, self._writes = self._open_store(self._path), self._open_store(self._path)


async def _done(work: Awaitable[object]) -> bool:
    await work
    return True


def _is_unusable(error: Exception) -> bool:
    # Fenced: it claims a higher generation than the served one; had that been sound, it would be served.
    if isinstance(error, (Fenced, PointerConflict)):
        return True
    cause = error.__cause__
    return isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _UNUSABLE


def _move_away(path: Path) -> None:
    """Makes room for a new file; what SQLite keeps beside the old one would be taken for the new one's."""
    with suppress(OSError):
        path.replace(path.with_name(path.name + SET_ASIDE_SUFFIX))
    for suffix in ("-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()
