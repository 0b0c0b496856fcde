"""The registry's door to SQL: migrations, snapshots, the clock of writers, fencing, and errors that show no secret."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from indexer.registry import Deposed, Registry, RegistryError, generations, lead, schema
from tests.databases import databases
from tests.fakes import FakeClock


def in_file(path: Path) -> Registry:
    return Registry(f"sqlite+aiosqlite:///{path}/registry.db", FakeClock())


@pytest.fixture(autouse=True)
async def _no_thread_outlives_its_loop() -> AsyncIterator[None]:
    """A connection that could not be opened ends its thread later than it says so."""
    yield
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


async def clock_of(registry: Registry) -> int:
    async with registry.read() as connection:
        return await generations.clock(connection)


async def test_migrations_make_the_tables_that_the_schema_describes(registry: Registry) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, schema.metadata))

    async with registry.plain() as connection:
        assert await connection.run_sync(differences) == []


@pytest.mark.sqlite
async def test_migrations_name_what_is_unique_and_give_no_number_twice(registry: Registry) -> None:
    """compare_metadata sees neither the names of constraints nor AUTOINCREMENT."""
    async with registry.read() as connection:
        rows = await connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        made = {r.name: r.sql for r in rows}
    for name in ("catalog", "catalog_query", "catalog_history"):
        assert "AUTOINCREMENT" in made[name], name
    for table in schema.metadata.tables.values():
        for constraint in table.constraints:
            if isinstance(constraint, sa.UniqueConstraint):
                assert str(constraint.name) in made[table.name], constraint.name


async def test_a_new_registry_has_its_one_row_of_state(registry: Registry) -> None:
    async with registry.read() as connection:
        row = (await connection.execute(sa.select(schema.state))).one()
    assert (row.clock, row.epoch, row.beat, row.holder, row.lease_ms, row.renderer) == (0, 0, 0, None, 0, "")


async def test_opening_again_changes_nothing(registry: Registry) -> None:
    async with registry.write():
        pass
    await registry.open()
    assert await clock_of(registry) == 1


async def test_several_processes_may_make_the_tables_at_once(tmp_path: Path) -> None:
    url = await databases.bare(tmp_path / "new" / "folder")
    several = [Registry(url, FakeClock()) for _ in range(4)]
    try:
        await asyncio.gather(*(each.open() for each in several))
        assert [await clock_of(each) for each in several] == [0, 0, 0, 0]
    finally:
        for each in several:
            await each.close()


async def test_a_reader_sees_one_state_while_a_writer_commits(registry_url: str, registry: Registry) -> None:
    other = Registry(registry_url, FakeClock())
    try:
        async with registry.read() as reading:
            before = await generations.clock(reading)
            async with other.write():
                pass
            assert await generations.clock(reading) == before
        assert await clock_of(registry) == before + 1
    finally:
        await other.close()


async def test_readers_do_not_wait_for_a_writer(registry: Registry) -> None:
    async with registry.write() as tx, registry.read() as reading:
        assert await generations.clock(reading) == tx.clock - 1


async def test_the_clock_of_writers_grows_in_the_order_in_which_they_commit(
    registry_url: str, registry: Registry
) -> None:
    other = Registry(registry_url, FakeClock())
    committed: list[int] = []

    async def write(with_: Registry) -> None:
        async with with_.write() as tx:
            await asyncio.sleep(0)
            committed.append(tx.clock)

    try:
        await asyncio.gather(*(write(with_) for _ in range(6) for with_ in (registry, other)))
    finally:
        await other.close()
    assert committed == list(range(1, 13))
    assert await clock_of(registry) == 12


async def test_a_transaction_carries_the_time_of_the_clock_that_was_passed_in(
    registry: Registry, clock: FakeClock
) -> None:
    clock.advance(12.345)
    async with registry.write() as tx:
        assert tx.now_ms == clock.wall_ms


async def test_a_writer_that_fails_leaves_nothing_not_even_a_tick(registry: Registry) -> None:
    async def spoilt() -> None:
        async with registry.write() as tx:
            await tx.connection.execute(sa.update(schema.state).values(holder="nobody"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await spoilt()
    assert await clock_of(registry) == 0
    assert (await lead.observe(registry)).holder is None


async def test_a_cancelled_writer_leaves_nothing_and_blocks_nobody(registry: Registry) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with registry.write():
            inside.set()
            await asyncio.Event().wait()

    writing = asyncio.create_task(write())
    await inside.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    async with asyncio.timeout(5), registry.write() as tx:
        assert tx.clock == 1


async def test_a_leaders_write_is_refused_once_its_epoch_is_over(registry: Registry) -> None:
    first = await lead.take(registry, await lead.observe(registry), "a", 15.0)
    async with registry.write(first):
        pass
    await lead.take(registry, await lead.observe(registry), "b", 15.0)
    with pytest.raises(Deposed, match=f"epoch {first} is over"):
        async with registry.write(first):
            pytest.fail("a deposed leader was let in")
    assert await clock_of(registry) == 1


async def test_a_write_without_an_epoch_is_anybodys(registry: Registry) -> None:
    await lead.take(registry, await lead.observe(registry), "a", 15.0)
    async with registry.write() as tx:
        assert tx.clock == 1


async def test_sql_errors_leave_as_registry_errors(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="missing"):
        async with registry.read() as connection:
            await connection.execute(sa.text("SELECT * FROM missing"))


@pytest.mark.sqlite
async def test_a_database_out_of_reach_is_a_registry_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registry = in_file(tmp_path / "file")
    with pytest.raises(RegistryError):
        await registry.open()
    await registry.close()


@pytest.mark.sqlite
async def test_a_file_that_is_no_database_is_a_registry_error(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_text("This is a letter, and no database at all. " * 100)
    registry = in_file(tmp_path)
    with pytest.raises(RegistryError, match="not a database"):
        await registry.open()
    await registry.close()


@pytest.mark.sqlite
async def test_errors_show_no_password(tmp_path: Path) -> None:
    """SQLite takes `user:password` nowhere but in the query, and there it is part of a file URI."""
    registry = Registry(f"sqlite+aiosqlite:///file:{tmp_path}/none/r.db?uri=true&mode=ro&password=hunter2", FakeClock())
    with pytest.raises(RegistryError) as caught:
        async with registry.read():
            pytest.fail("there is no such file")
    await registry.close()
    assert str(caught.value).endswith("/none/r.db: unable to open database file")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://me:hunter2@127.0.0.1:1/db",
        "postgresql+asyncpg://me@127.0.0.1:1/db?password=hunter2",
        "mysql+asyncmy://me:hunter2@127.0.0.1:1/db",
    ],
)
async def test_a_server_out_of_reach_or_without_its_driver_is_a_registry_error_without_a_password(url: str) -> None:
    """Nothing listens on port 1; where the driver is not installed, the error says what to install."""

    async def look() -> None:
        registry = Registry(url, FakeClock())
        try:
            async with registry.read():
                pytest.fail("port 1 answered")
        finally:
            await registry.close()

    with pytest.raises(RegistryError) as caught:
        await look()
    assert "127.0.0.1:1/db" in str(caught.value)
    assert "hunter2" not in str(caught.value)
