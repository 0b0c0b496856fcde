"""The second tier: the local disk copy, which may fail at any time and never takes the process with it.

Every trouble ends here: it is counted, logged when it begins and when it ends, and told in /health; the caller sees an
object that is not there. A broken database is set aside and begun anew; a pointer that is damaged in a sound one is
put right, because all else may be whole; a file that is no database at all is somebody else's, and is left alone. What
was read ends no trouble in writing: a full disk can be read. sqlite3's exceptions are looked at only to tell these
cases from others.

One process writes the copy, by a lock on the file `<copy>.lock` that the kernel gives back when the process is gone: of
two that write one copy, each would sweep what the other's pointer needs. Its siblings, the other workers of the same
sidecar, know it by the token that it leaves in that file. They read, touch nothing, and one of them takes the lock over
when it is free; it is tried whenever the pointer is asked for, which the copier does every few seconds. To the process
of another sidecar the copy is no copy at all.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import structlog

from sidecar.contract.objects import Sealed
from sidecar.errors import PointerDamaged, StoreError
from sidecar.health import DiskStatus
from sidecar.metrics import Metrics
from sidecar.store import Pointer, Store
from sidecar.store.sqlite import SqliteStore

# Longer than the wait of a writer for another one (SQLite's busy timeout), which reports a better reason.
DEADLINE_S: Final = 12.0
SET_ASIDE_SUFFIX: Final = ".corrupt"
LOCK_SUFFIX: Final = ".lock"
MAGIC: Final = b"SQLite format 3\0"
# Between taking the lock and leaving its token in the file a process needs some microseconds of its own time.
TOKEN_WAIT_S: Final = 2.0
TOKEN_LOOK_S: Final = 0.01
_UNUSABLE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# What our statements meet in tables of another form: those of a copy whose schema was damaged, or somebody else's.
_STRANGE: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH})
# A word of our schema, in which it stands three times, all on the first page.
_OURS: Final = b"unreferenced_ms"
_PAGE_BYTES: Final = 65536
_log = structlog.get_logger(__name__)

T = TypeVar("T")
Lock = Callable[[Path, float], int | None]


class CopyStore(Store, Protocol):
    """A store with one writer, who may put the pointer anywhere. `as_it_lies`: why it can be read and not written."""

    as_it_lies: str | None

    async def earlier(self) -> Pointer | None:
        """Where the pointer was before; None if it was nowhere, or if that cannot be told any more."""
        ...

    async def reset(self, pointer: Pointer) -> None:
        """Puts the pointer there, wherever it was."""
        ...


class OpenStore(Protocol):
    """Opens the file of the copy."""

    def __call__(self, path: Path, *, writable: bool) -> CopyStore: ...


# What was tried when it failed. Opening: the lock, or the file for writing, could not be had.
Doing = Literal["opening", "reading", "writing"]


def lock(path: Path, patience_s: float = 0.0, sidecar: str = "") -> int | None:
    """Takes the lock on the copy, and returns the descriptor that holds it; None if a sibling has it.

    `sidecar` is the token that siblings have in common; empty: there are none. For so many seconds whoever has the lock
    may be a sibling that has not left its token yet. Raises StoreError if a process of
    another sidecar has the lock. Its file is never removed: whoever makes a new one locks another file than those who
    have the old one open.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + LOCK_SUFFIX), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if _is_siblings(descriptor, sidecar, patience_s):
                os.close(descriptor)
                return None
            # In this order: on a full disk what is given up may not be had again.
            os.pwrite(descriptor, sidecar.encode(), 0)
            os.ftruncate(descriptor, len(sidecar.encode()))
        except BaseException:
            os.close(descriptor)
            raise
    except BlockingIOError as error:
        raise StoreError(f"{path} is in use by another sidecar; give each its own sidecar.disk") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be locked: {error}") from error
    return descriptor


def _is_siblings(descriptor: int, sidecar: str, patience_s: float) -> bool:
    """False once the lock is had. Raises BlockingIOError if it is neither had here nor by a sibling."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if sidecar and os.pread(descriptor, len(sidecar) + 1, 0) == sidecar.encode():
                return True
            if not sidecar or time.monotonic() > until_s:
                raise
            time.sleep(TOKEN_LOOK_S)
        else:
            return False


class Disk:
    """The disk copy at `path`; with None there is no such tier, and everything is simply not there."""

    def __init__(
        self, path: Path | None, metrics: Metrics, open_store: OpenStore = SqliteStore, lock: Lock = lock
    ) -> None:
        self.status = DiskStatus("off" if path is None else "ok")
        self._path = path
        self._metrics = metrics
        self._open_store = open_store
        self._take_lock = lock
        self.resets = 0
        # A generation that the copy claims to hold, and that could not be loaded from it.
        self.unservable: Pointer | None = None
        self._begun = False
        self._troubles: dict[Doing, str] = {}
        self._pending: set[asyncio.Task[Any]] = set()
        # Two connections, so that reading an object never waits for a sweep. Who reads alone has none to write by.
        self._reads: CopyStore | None = None
        self._writes: CopyStore | None = None
        # What was read by before this process came to write; others may be reading by it still.
        self._read_before: list[CopyStore] = []
        # The descriptor that holds the lock on the copy; two attempts that took it at once would refuse each other.
        self._lock: int | None = None
        # Once: whoever has the lock for longer has left its token, and nobody shall wait for every object.
        self._patience_s = TOKEN_WAIT_S
        self._locking = asyncio.Lock()
        self._closed = False

    @property
    def is_siblings(self) -> bool:
        """Whether a sibling writes the copy, and this process reads it."""
        return self._lock is None and self._reads is not None

    @property
    def is_readable(self) -> bool:
        """Whether the last reading passed as it should; what is written may fail nevertheless."""
        return self._troubles.keys() <= {"writing"}

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        """The bytes of those objects that are there, unverified."""
        return await self._reading(lambda store: store.get(digests), {})

    async def pointer(self) -> Pointer | None:
        """The generation that the copy holds in full; None if it holds none, or if someone has removed it."""
        if (
            self._begun
            and self._path is not None
            and not (self.is_siblings or await asyncio.to_thread(self._path.exists))
        ):
            await self._begin_anew()
        return await self._reading(self._newest, None, take_over=True)

    async def earlier(self) -> Pointer | None:
        """The generation that the copy held in full before that one, and holds still if nothing was swept since."""
        return await self._reading(lambda store: store.earlier(), None)

    async def put(self, objects: Collection[Sealed]) -> bool:
        """Whether all of the objects are there now."""
        return await self._writing(lambda store: store.put(objects))

    async def publish(self, pointer: Pointer, live: Set[bytes] | None, now_ms: int) -> bool:
        """Moves the pointer, then drops all objects but the live ones, unless there are none named; whether both could
        be done.
        """
        if not await self._writing(lambda store: store.reset(pointer)):
            return False
        if live is None:
            return True
        return await self._writing(lambda store: store.sweep(live, epoch=pointer.epoch, now_ms=now_ms, grace_ms=0))

    async def discard(self, reason: str) -> None:
        """Sets the file aside, because it is no good although SQLite takes it for whole, and begins anew."""
        if self._path is not None and not self.is_siblings:
            self._failed("writing", reason)
            await self._set_aside()

    async def close(self) -> None:
        """Lets what is under way finish, closes the file, and leaves it to others."""
        self._closed = True
        await self._close_stores()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _close_stores(self) -> None:
        stores = [store for store in (self._reads, self._writes, *self._read_before) if store is not None]
        self._reads = self._writes = None
        self._read_before = []
        await asyncio.gather(*self._pending, return_exceptions=True)
        for store in stores:
            await store.close()

    async def _newest(self, store: CopyStore) -> Pointer | None:
        try:
            pointer = await store.pointer()
        except PointerDamaged as error:
            self._metrics.corrupt.labels("disk").inc()
            _log.warning("the pointer of the disk copy is not used", path=str(self._path), error=str(error))
            return None
        return pointer

    async def _reading(self, work: Callable[[CopyStore], Awaitable[T]], otherwise: T, *, take_over: bool = False) -> T:
        async def read() -> T:
            await self._decide()
            if take_over:
                await self._take_over()
            return otherwise if self._reads is None else await work(self._reads)

        return await self._attempt("reading", read, otherwise)

    async def _writing(self, work: Callable[[CopyStore], Awaitable[object]]) -> bool:
        if self.is_siblings:
            return False

        async def write() -> bool:
            await self._decide()
            if self._writes is None:
                return False
            await work(self._writes)
            return True

        return await self._attempt("writing", write, False)

    async def _attempt(self, doing: Doing, work: Callable[[], Awaitable[T]], otherwise: T) -> T:
        if self._path is None or self._closed:
            return otherwise
        resets = self.resets
        # Shielded: SQLite's thread works on when its caller is cancelled, and the file must not be closed under it.
        task = asyncio.ensure_future(work())
        self._pending.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(DEADLINE_S):
                result = await asyncio.shield(task)
        except (StoreError, TimeoutError) as error:
            if self.is_siblings and _is_to_come(error):
                return otherwise
            reason = str(error) or f"no answer within {DEADLINE_S:g} s"
            # Whatever is wrong with a sibling's, it is the sibling's to set aside.
            unusable = not self.is_siblings and await asyncio.to_thread(_is_unusable, error, self._path)
            if unusable and not await asyncio.to_thread(_is_ours, self._path):
                unusable, reason = False, f"{self._path} is no disk copy of ours; choose another sidecar.disk"
            self._failed("opening" if self._reads is None else doing, reason)
            # Several attempts may fail on one file; it is set aside once.
            if unusable and resets == self.resets:
                await self._set_aside()
            return otherwise
        self._begun = True
        if doing == "reading" and self._reads is not None and (why := self._reads.as_it_lies) is not None:
            if "opening" not in self._troubles:
                self._failed("opening", f"it can be read, and not written: {why}")
        elif self._troubles:
            self._passed(doing)
        return result

    async def _decide(self) -> None:
        """Takes the lock, if that was not done; raises StoreError if another sidecar has it."""
        async with self._locking:
            if self._reads is None and self._path is not None and not self._closed:
                if self._lock is None:
                    patience_s, self._patience_s = self._patience_s, 0.0
                    self._lock = await asyncio.to_thread(self._take_lock, self._path, patience_s)
                if not self._closed:
                    self._open(self._path)

    async def _take_over(self) -> None:
        """Takes the lock if the sibling that had it has gone; raises StoreError if another sidecar has it now."""
        async with self._locking:
            if not self.is_siblings or self._path is None or self._closed:
                return
            assert self._reads is not None
            try:
                self._lock = await asyncio.to_thread(self._take_lock, self._path, 0.0)
            except StoreError:
                self._read_before.append(self._reads)
                self._reads = None
                raise
            if self._lock is not None:
                self._read_before.append(self._reads)
                self._open(self._path)
                _log.info("the disk copy is written by this worker now", path=str(self._path))

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._pending.discard(task)
        if not task.cancelled():
            # Looked at, because whoever waited for it may have gone.
            task.exception()

    def _failed(self, doing: Doing, reason: str) -> None:
        self._metrics.disk_errors.inc()
        if not self._troubles:
            _log.warning("the disk copy fails; answers go on without it", path=str(self._path), error=reason)
        self._troubles[doing] = reason
        self.status.state, self.status.error = "failing", reason

    def _passed(self, doing: Doing) -> None:
        """What is written can be read, and not the other way round."""
        writing = self._troubles.get("writing") if doing == "reading" else None
        self._troubles = {} if writing is None else {"writing": writing}
        if writing is not None:
            self.status.error = writing
            return
        self.status.state, self.status.error = "ok", None
        _log.info("the disk copy works again", path=str(self._path))

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

    def _open(self, path: Path) -> None:
        writable = self._lock is not None
        self._reads = self._open_store(path, writable=writable)
        self._writes = self._open_store(path, writable=True) if writable else None


def _is_to_come(error: Exception) -> bool:
    """Whether a sibling is about to make the file, or the tables in it."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorcode == sqlite3.SQLITE_ERROR
    return isinstance(cause, FileNotFoundError)


def _is_unusable(error: Exception, path: Path) -> bool:
    cause = error.__cause__
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF if isinstance(cause, sqlite3.DatabaseError) else 0
    if code not in _STRANGE:
        return code in _UNUSABLE
    try:
        with path.open("rb") as file:
            return _OURS in file.read(_PAGE_BYTES)
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether the file may be set aside: it is a database, was one before a bit was flipped, or begins with nothing."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
            if MAGIC.startswith(begins) or not any(begins):
                return True
            flipped = int.from_bytes(begins, "big") ^ int.from_bytes(MAGIC, "big")
            return len(begins) == len(MAGIC) and flipped.bit_count() == 1
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
