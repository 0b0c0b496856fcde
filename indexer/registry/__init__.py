"""The registry: the SQL database that has the truth. Connections, migrations, and transactions that carry the clock.

SQLAlchemy's exceptions stop here. A write transaction begins by raising the registry's clock, which puts all writers
in one order: whoever has read up to a clock has everything that was written at or before it. A leader's write names
its epoch there, too, and is refused if another leads by now.

Every wait for a server ends (`indexer.registry.deadlines`). A commit that gets no answer is a case of its own: nobody
can tell whether it was made.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from indexer.registry import schema
from indexer.registry.deadlines import DEADLINES, Deadlines, driver_arguments
from sidecar.clock import Clock
from sidecar.errors import CatalogError

MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
BUSY_TIMEOUT_S: Final = 30.0
MAX_IN: Final = 500
JOURNAL_ATTEMPTS: Final = 20
# Of a server. Writers take turns at the row of state: they want no snapshot from before their turn, and none of the
# locks on gaps that MySQL and MariaDB keep for one, over which writers of other rows deadlock.
_ONE_STATE: Final = {"isolation_level": "REPEATABLE READ"}
_LATEST: Final = {"isolation_level": "READ COMMITTED", "pool_pre_ping": True}
# What a process that migrates holds, on PostgreSQL and on MySQL and MariaDB.
_MIGRATING: Final = 0xCA7A106
_MIGRATING_NAME: Final = sa.func.concat("catalog-migrating-", sa.func.md5(sa.func.database()))


class RegistryError(CatalogError):
    """Raised when the database cannot be reached, read or written; nothing of the transaction has happened."""

    status = 503


class Undecided(RegistryError):
    """Raised when a server did not answer to a commit: all of the transaction has happened, or nothing of it."""


class Deposed(CatalogError):
    """Raised when a leader's write is refused because its epoch is over; nothing of the transaction has happened."""

    status = 503


@dataclass(frozen=True, slots=True)
class Transaction:
    """A write transaction: the connection, the clock that everything written in it carries, and the time."""

    connection: AsyncConnection
    clock: int
    now_ms: int


class Registry:
    """One database. Any number of processes may use it at once."""

    def __init__(self, url: str, clock: Clock, deadlines: Deadlines = DEADLINES) -> None:
        """Connects to nothing yet. Raises RegistryError if the driver that the url names is not installed."""
        self.time = clock
        self.deadlines = deadlines
        self._url = make_url(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        # Without its query, which may hold a password, too.
        self._shown = self._url.set(query={}).render_as_string(hide_password=True)
        # SQLite lets one write at a time, and has others sleep longer and longer: in one process they queue instead.
        self._turn: AbstractAsyncContextManager[object] = asyncio.Lock() if self._sqlite else nullcontext()
        self._threads: list[Thread] = []
        self._engine = self._make_engine(deadlines)
        # What an exception of the driver itself is: SQLAlchemy lets those through that come between statements.
        self._foreign: tuple[type[Exception], ...] = (
            SQLAlchemyError,
            OSError,
            UnicodeError,
            *_errors_of(self._engine.dialect),
        )

    async def open(self) -> None:
        """Makes or migrates the tables. Several processes may do so at once."""
        async with self._errors():
            if self._sqlite and self._url.database:
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        if self._sqlite:
            await self._migrate_over(self._engine)
            return
        # Over a connection of its own, on which statements may take longer.
        patient = self._make_engine(self.deadlines._replace(statement_s=self.deadlines.migrate_s))
        try:
            await self._migrate_over(patient)
        finally:
            await patient.dispose()

    async def _migrate_over(self, engine: AsyncEngine) -> None:
        async with self._transaction(engine) as connection, _alone(connection):
            await connection.run_sync(_migrate)

    async def close(self) -> None:
        """Ends every connection."""
        await self._engine.dispose()
        # A cancelled statement goes on in its driver's thread, which must not outlive the event loop it reports to.
        for thread in self._threads:
            await asyncio.to_thread(thread.join, BUSY_TIMEOUT_S)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the whole database."""
        async with self._errors(), self._engine.connect() as connection:
            reading = await connection.execution_options(**({} if self._sqlite else _ONE_STATE))
            async with reading.begin():
                yield reading

    @asynccontextmanager
    async def write(self, epoch: int | None = None) -> AsyncIterator[Transaction]:
        """A transaction that carries a new clock. Raises Deposed if an epoch is given and is not the leader's."""
        async with self.plain() as connection:
            raised = sa.update(schema.state).values(clock=schema.state.c.clock + 1)
            if epoch is not None:
                raised = raised.where(schema.state.c.epoch == epoch)
            if (await connection.execute(raised)).rowcount != 1:
                raise Deposed(f"epoch {epoch} is over: another indexer leads")
            clock = (await connection.execute(sa.select(schema.state.c.clock))).scalar_one()
            yield Transaction(connection, clock, self.time.now_ms())

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction for what no generation shows: leases, pulls, the notes on generations."""
        async with self._transaction(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with self._errors(), self._turn, engine.connect() as connection:
            writing = await connection.execution_options(writes=True)
            async with writing.begin() as transaction:
                yield writing
                try:
                    await transaction.commit()
                except self._foreign as error:
                    if self._sqlite:
                        raise  # It has been refused, by a library of this process.
                    raise Undecided(f"registry {self._shown}: no answer to a commit: {_said(error)}") from error

    def _make_engine(self, deadlines: Deadlines) -> AsyncEngine:
        backend = self._url.get_backend_name()
        if self._sqlite:
            arguments: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        else:
            arguments = {
                **_LATEST,
                "connect_args": driver_arguments(backend, deadlines),
                "pool_timeout": deadlines.connect_s,
            }
        try:
            engine = create_async_engine(self._url, **arguments)
        except ImportError as error:
            raise RegistryError(
                f"registry {self._shown}: {error}; its driver comes with catalog-sidecar[{backend}]"
            ) from error
        listen = partial(sa.event.listen, engine.sync_engine)
        if self._sqlite:
            listen("connect", self._note_thread)
            listen("connect", _set_up_sqlite)
            listen("begin", _begin_sqlite)
            return engine
        # To say goodbye and to wait for the answer may take for ever; to end it takes two seconds at most.
        engine.dialect.do_close = engine.dialect.do_terminate  # type: ignore[method-assign]
        if backend == "postgresql":
            listen("connect", _set_up_postgresql)
            listen("begin", partial(_begin_postgresql, idle_s=deadlines.idle_s))
        else:
            listen("connect", partial(_set_up_mariadb, idle_s=deadlines.idle_s))
        return engine

    def _note_thread(self, connection: Any, _record: object) -> None:
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads.append(connection.driver_connection._thread)

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except self._foreign as error:
            raise RegistryError(f"registry {self._shown}: {_said(error)}") from error


async def take_turn(connection: AsyncConnection) -> None:
    """Has a write transaction without a clock wait for all others, and hold them up until its end, as those with a
    clock do from their beginning. What it has read before may have changed since.
    """
    await connection.execute(sa.update(schema.state).values(beat=schema.state.c.beat))


def _errors_of(dialect: sa.Dialect) -> tuple[type[Exception], ...]:
    """What the driver of a dialect raises."""
    driver = dialect.loaded_dbapi
    if dialect.driver == "asyncpg":
        # Behind its names of the DB-API are asyncpg's own, which are no part of them.
        return driver.Error, driver.asyncpg.PostgresError, driver.asyncpg.InterfaceError
    return (driver.Error,)


def _said(error: Exception) -> str:
    """The driver's own words: SQLAlchemy's are pages long, statement and parameters included."""
    return str(getattr(error, "orig", None) or error) or f"no answer in time ({type(error).__name__})"


@asynccontextmanager
async def _alone(connection: AsyncConnection) -> AsyncIterator[None]:
    """Until the end of the block, or of the transaction, nobody else migrates; on SQLite the transaction sees to it."""
    match connection.dialect.name:
        case "postgresql":
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
            yield
        case "mysql" | "mariadb":
            # Its DDL commits, so a transaction holds nothing; what a session holds ends with a lost connection.
            if not await connection.scalar(sa.select(sa.func.get_lock(_MIGRATING_NAME, BUSY_TIMEOUT_S))):
                raise RegistryError(f"another process has been migrating the registry for {BUSY_TIMEOUT_S:g} s")
            try:
                yield
            finally:
                await connection.execute(sa.select(sa.func.release_lock(_MIGRATING_NAME)))
        case _:
            yield


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _set_up_sqlite(connection: Any, _record: object) -> None:
    """Leaves transactions to us, so that readers see one state; and lets readers and a writer work side by side."""
    connection.isolation_level = None
    cursor = connection.cursor()
    # Of several that give a new file this journal at once, SQLite refuses some without letting them wait.
    for left in reversed(range(JOURNAL_ATTEMPTS)):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if not left:
                raise
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _set_up_postgresql(connection: Any, _record: object) -> None:
    """Plans every statement for the tables as they are: a plan from when they were empty would read all rows."""
    cursor = connection.cursor()
    cursor.execute("SET plan_cache_mode = force_custom_plan")
    cursor.close()
    connection.commit()


def _begin_postgresql(connection: sa.Connection, *, idle_s: float) -> None:
    """Has the server take back a write transaction whose client is silent: reads hold nothing that others wait for."""
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {round(idle_s * 1000)}")


def _set_up_mariadb(connection: Any, _record: object, *, idle_s: float) -> None:
    """The same for MariaDB, which tells the two apart by itself; MySQL has no such limit, and skips the comment."""
    cursor = connection.cursor()
    cursor.execute(f"/*M!100300 SET SESSION idle_write_transaction_timeout = {max(1, round(idle_s))} */")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
