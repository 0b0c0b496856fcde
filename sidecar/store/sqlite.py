"""A store in one SQLite file: the embedded default, and the sidecar's disk copy. For processes of one host.

sqlite3's exceptions stop in this file. The file is in WAL mode: one process writes while others read. Each operation
first looks whether the path still leads to the file that is open. If not, a read opens the new file, and the next
write fails: what was written before it lies in the old file, so that a publisher has to begin again. Whoever removes
the file removes the -wal and -shm beside it too: SQLite would take them for those of the next file of that name.

Even to read, SQLite makes a -shm file, which a full disk has no room for. A file without a -wal is complete, and is
then read as it lies (`immutable`), until it changes or is to be written.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Set
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

import aiosqlite

from sidecar.contract.objects import DIGEST_BYTES, Sealed
from sidecar.errors import PointerDamaged, StoreError
from sidecar.store import Pointer, check_epoch, check_move
from sidecar.store.mounts import mounts, network_file_system

POLL_S: Final = 0.1
BUSY_TIMEOUT_S: Final = 10.0
RETRY_S: Final = 0.01
BATCH: Final = 500

# `sidecar/inprocess/copy.py` reads it, too. `earlier` is where the pointer was before it last moved.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS objects (digest BLOB PRIMARY KEY, data BLOB NOT NULL, unreferenced_ms INTEGER);
CREATE INDEX IF NOT EXISTS objects_unreferenced ON objects (unreferenced_ms) WHERE unreferenced_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS pointer (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, generation INTEGER NOT NULL, digest BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS earlier (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, generation INTEGER NOT NULL, digest BLOB NOT NULL
);
"""
# SQLite's types are each value's own: one flipped bit makes text of a blob, which may not even be UTF-8.
_AS_BYTES: Final = "CAST(epoch AS BLOB), CAST(generation AS BLOB), CAST(digest AS BLOB)"


_NO_ROOM: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN})


class SqliteStore:
    """Implements Store over one file. Opened lazily, and again after a failure or when the file is another one.

    `as_it_lies`: why the file can be read and not written, while it is so.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """A store that is not writable never creates the file: it is unreachable until a writer has made it."""
        self.as_it_lies: str | None = None
        self._path = path.absolute()
        self._writable = writable
        self._connection: aiosqlite.Connection | None = None
        self._file: os.stat_result | None = None
        self._lost = False
        self._closed = False
        self._lock = asyncio.Lock()

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        async with self._reached() as connection:
            for batch in _batches(digests):
                marks = ",".join("?" * len(batch))
                sql = f"SELECT digest, CAST(data AS BLOB) FROM objects WHERE digest IN ({marks})"
                rows: Iterable[tuple[bytes, bytes | None]] = await connection.execute_fetchall(sql, batch)  # type: ignore[assignment]
                found.update((digest, data or b"") for digest, data in rows)
        return found

    async def put(self, objects: Iterable[Sealed]) -> None:
        sql = (
            "INSERT INTO objects (digest, data) VALUES (?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET data = excluded.data, unreferenced_ms = NULL"
        )
        async with self._transaction() as connection:
            await connection.executemany(sql, objects)

    async def pointer(self) -> Pointer | None:
        if self.as_it_lies is not None:
            # Asked for now and then, and so the time to try whether there is room again.
            async with self._lock:
                await self._disconnect()
        async with self._reached() as connection:
            return await _pointer(connection)

    async def earlier(self) -> Pointer | None:
        """Where the pointer was before it last moved; None if it never did, or if that is damaged."""
        async with self._reached() as connection:
            with suppress(PointerDamaged):
                return await _pointer(connection, "earlier")
        return None

    async def move(self, pointer: Pointer) -> None:
        async with self._transaction() as connection:
            present = None
            with suppress(PointerDamaged):
                present = await _pointer(connection)
            if check_move(present, pointer):
                # What makes the generation visible: everything that it needs was committed before.
                await _put_pointer(connection, pointer)

    async def reset(self, pointer: Pointer) -> None:
        """Puts the pointer anywhere, also over one that is damaged or higher: where nobody else may write."""
        async with self._transaction() as connection:
            await _put_pointer(connection, pointer)

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        # The row itself is read, and not PRAGMA data_version: that one does not see what this connection commits.
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            pointer = await self.pointer()
            left_s = deadline - asyncio.get_running_loop().time()
            if pointer != known or left_s <= 0:
                return pointer
            await asyncio.sleep(min(POLL_S, left_s))

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        async with self._transaction() as connection:
            check_epoch(await _pointer(connection), epoch)
            await connection.execute("CREATE TEMP TABLE IF NOT EXISTS live (digest BLOB PRIMARY KEY) WITHOUT ROWID")
            await connection.execute("DELETE FROM live")
            await connection.executemany("INSERT INTO live VALUES (?)", ((d,) for d in live))
            await connection.execute(
                "UPDATE objects SET unreferenced_ms = NULL WHERE unreferenced_ms IS NOT NULL AND digest IN live"
            )
            await connection.execute(
                "UPDATE objects SET unreferenced_ms = ?1 "
                "WHERE (unreferenced_ms IS NULL OR unreferenced_ms > ?1) AND digest NOT IN live",
                (now_ms,),
            )
        swept = 0
        while True:
            async with self._transaction() as connection:
                check_epoch(await _pointer(connection), epoch)
                cursor = await connection.execute(
                    "DELETE FROM objects "
                    "WHERE digest IN (SELECT digest FROM objects WHERE unreferenced_ms <= ? LIMIT ?)",
                    (now_ms - grace_ms, BATCH),
                )
                swept += cursor.rowcount
            if cursor.rowcount < BATCH:
                return swept

    async def close(self) -> None:
        self._closed = True
        async with self._lock:
            await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection, self.as_it_lies = self._connection, None, None
        if connection is not None:
            with suppress(sqlite3.Error):
                await connection.close()

    @asynccontextmanager
    async def _reached(self, *, writing: bool = False) -> AsyncIterator[aiosqlite.Connection]:
        async with self._lock:
            if self._closed:
                raise StoreError(f"sqlite store {self._path}: it is closed")
            try:
                if self._replaced():
                    self._file, self._lost = None, True
                    await self._disconnect()
                if writing and self._lost:
                    self._lost = False
                    raise StoreError(f"sqlite store {self._path}: the file was deleted or replaced; begin again")
                yield await self._open(writing)
            except (sqlite3.Error, OSError) as error:
                # What was read while somebody began to write may be mixed, and is no sign of a broken file.
                cause = error if self.as_it_lies is None else None
                await self._disconnect()
                raise StoreError(f"sqlite store {self._path}: {error}") from cause

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._reached(writing=True) as connection:
            try:
                # Inside: whoever is cancelled while this waits for another process's lock must not keep it afterwards.
                await connection.execute("BEGIN IMMEDIATE")
                yield connection
                await connection.commit()
            except BaseException:
                with suppress(sqlite3.Error):
                    await connection.rollback()
                raise

    async def _open(self, writing: bool) -> aiosqlite.Connection:
        if self.as_it_lies is not None and (writing or not self._lies_still()):
            await self._disconnect()
        if self._connection is None:
            try:
                self._connection = await self._begun(f"mode={'rwc' if self._writable else 'ro'}")
            except sqlite3.OperationalError as error:
                if writing or error.sqlite_errorcode & 0xFF not in _NO_ROOM or self._has_wal():
                    raise
                self._connection = await self._begun("mode=ro&immutable=1")
                self.as_it_lies = str(error)
        return self._connection

    async def _begun(self, how: str) -> aiosqlite.Connection:
        connection = await self._connect(how)
        try:
            if how == "mode=rwc":
                await _prepare(connection)
            else:
                # Whether it can be read shows now, and not at the first question.
                await connection.execute_fetchall("PRAGMA schema_version")
            self._file = self._path.stat()
        except BaseException:
            await connection.close()
            raise
        return connection

    def _has_wal(self) -> bool:
        """Whether something of the file's content may lie beside it."""
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size > 0
        except FileNotFoundError:
            return False

    def _lies_still(self) -> bool:
        """Whether the file that is read as it lies is as it was when it was opened."""
        now, then = self._path.stat(), self._file
        assert then is not None
        return (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns) and not self._has_wal()

    async def _connect(self, how: str) -> aiosqlite.Connection:
        if kind := network_file_system(self._path.resolve(), mounts()):
            raise StoreError(f"sqlite store {self._path} is on a network file system ({kind}); use a local one")
        # What cannot be opened is refused before aiosqlite starts a thread for it, which it would not wait for.
        if self._writable:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._path.stat()
        if self._path.is_dir():
            raise StoreError(f"sqlite store {self._path} is a directory")
        uri = f"{self._path.as_uri()}?{how}"
        return await aiosqlite.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)

    def _replaced(self) -> bool:
        try:
            return self._file is not None and not os.path.samestat(self._path.stat(), self._file)
        except OSError:
            return True


async def _pointer(connection: aiosqlite.Connection, table: str = "pointer") -> Pointer | None:
    """Raises PointerDamaged if what is there is none."""
    rows = list(await connection.execute_fetchall(f"SELECT {_AS_BYTES} FROM {table}"))
    if not rows:
        return None
    epoch, generation, digest = (value or b"" for value in rows[0])
    if len(rows) > 1 or not (epoch.isdigit() and generation.isdigit() and len(digest) == DIGEST_BYTES):
        raise PointerDamaged(f"sqlite store: the table {table} holds something else than a pointer")
    return Pointer(int(epoch), int(generation), digest)


async def _put_pointer(connection: aiosqlite.Connection, pointer: Pointer) -> None:
    # One that is damaged is no place to go back to.
    with suppress(PointerDamaged):
        if await _pointer(connection) not in (None, pointer):
            await connection.execute("INSERT OR REPLACE INTO earlier SELECT * FROM pointer")
    await connection.execute("DELETE FROM pointer")
    await connection.execute("INSERT INTO pointer (only, epoch, generation, digest) VALUES (1, ?, ?, ?)", pointer)


async def _prepare(connection: aiosqlite.Connection) -> None:
    """Makes the tables of a new file, and changes nothing in others.

    SQLite waits for locks by itself, but not for the one that turns on WAL: of several who make the file, some retry.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + BUSY_TIMEOUT_S
    while True:
        try:
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute("PRAGMA synchronous = NORMAL")
            await connection.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or clock() > deadline:
                raise
            await asyncio.sleep(RETRY_S)
        else:
            return


def _batches(digests: Collection[bytes]) -> Iterable[list[bytes]]:
    remaining = iter(digests)
    while batch := list(islice(remaining, BATCH)):
        yield batch
