"""Two processes on one registry at once: each stands for one with connections of its own. Whoever loses a race hears
of it as an error of the registry's, and as nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from indexer import history
from indexer.catalog_body import read_catalog
from indexer.registry import Deposed, Registry, RegistryError, catalogs, generations, lead, pulls, schema
from indexer.registry.catalogs import QueryClash, RegisteredCatalog
from indexer.registry.generations import Generation
from sidecar.contract.words import PullState
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, catalog_body, course, run, uuid_of
from tests.world import World

COURSES = {"content_type": "course"}
FIRST = Generation(1, 1, b"\1" * 32, None, 5, 1_800_000_000_000, 10, 1000, "test", moved=False)


@pytest.fixture
async def two(registry: Registry, registry_url: str, clock: FakeClock) -> AsyncIterator[tuple[Registry, Registry]]:
    other = Registry(registry_url, clock)
    try:
        yield registry, other
    finally:
        await other.close()


async def create(
    registry: Registry, title: str, content_filter: object, **fields: Any
) -> tuple[RegisteredCatalog, bool]:
    async with registry.write() as tx:
        return await catalogs.create(tx, read_catalog(catalog_body(title, content_filter, **fields)), "test")


async def request(registry: Registry, hash_: str) -> str:
    async with registry.plain() as connection:
        return await pulls.request(connection, hash_, 1)


async def count(registry: Registry, table: sa.Table) -> int:
    async with registry.read() as connection:
        return int((await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one())


async def test_a_catalog_that_many_create_is_made_once(two: tuple[Registry, Registry]) -> None:
    made = await asyncio.gather(*(create(each, "a", COURSES) for _ in range(6) for each in two))
    assert sorted(new for _, new in made) == [False] * 11 + [True]
    assert len({row.number for row, _ in made}) == 1
    assert await count(two[0], schema.catalog_history) == 1


async def test_a_title_that_many_want_is_the_first_ones(two: tuple[Registry, Registry]) -> None:
    wanted = [create(each, f"{n}", {"key": f"{n}"}, query_title="t") for n, each in enumerate(two * 4)]
    made = await asyncio.gather(*wanted, return_exceptions=True)
    assert [type(each) for each in made if isinstance(each, BaseException)] == [QueryClash] * 7
    assert await count(two[0], schema.catalog) == 1


async def test_catalogs_that_are_made_at_once_have_numbers_in_the_order_of_the_clock(
    two: tuple[Registry, Registry],
) -> None:
    await asyncio.gather(*(create(each, f"{n}", {"key": f"{n % 3}"}) for n, each in enumerate(two * 6)))
    async with two[0].read() as connection:
        c = schema.catalog.c
        rows = (await connection.execute(sa.select(c.number, c.clock).order_by(c.number))).all()
    assert [r.clock for r in rows] == list(range(1, 13))


async def test_all_who_request_one_filter_wait_for_one_pull(two: tuple[Registry, Registry]) -> None:
    hash_ = (await create(two[0], "a", COURSES))[0].wanted
    assert len(set(await asyncio.gather(*(request(each, hash_) for _ in range(6) for each in two)))) == 1


async def test_a_number_that_two_give_at_once_is_one_generations(two: tuple[Registry, Registry]) -> None:
    assert await lead.take(two[0], await lead.observe(two[0]), "me", 15.0) == 1

    async def intend(registry: Registry, digest: bytes) -> bool:
        async with registry.plain() as connection:
            return await generations.intend(connection, replace(FIRST, digest=digest))

    both = await asyncio.gather(*(intend(each, bytes([n]) * 32) for n, each in enumerate(two)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in both) == ["RegistryError", "bool"]
    assert await count(two[0], schema.generation) == 1


async def test_a_pin_that_many_wish_is_the_first_ones(two: tuple[Registry, Registry], clock: FakeClock) -> None:
    assert await lead.take(two[0], await lead.observe(two[0]), "me", 15.0) == FIRST.epoch
    async with two[0].plain() as connection:
        assert await generations.intend(connection, FIRST)
        await generations.moved(connection, FIRST.generation)
    store = MemoryStore()
    await store.move(Pointer(FIRST.epoch, FIRST.generation, FIRST.digest))
    wishes = (history.pin(each, store, clock, "me", "because") for each in two * 4)
    wished = await asyncio.gather(*wishes, return_exceptions=True)
    assert sorted(type(each).__name__ for each in wished) == ["Generation", *["NothingToDo"] * 7]
    assert await count(two[0], schema.decision) == 1


async def test_no_write_of_a_leader_lands_after_another_has_taken_over(two: tuple[Registry, Registry]) -> None:
    epoch = await lead.take(two[0], await lead.observe(two[0]), "me", 15.0)
    assert epoch is not None
    seen = await lead.observe(two[0])
    landed: list[int] = []

    async def write() -> None:
        async with two[0].write(epoch) as tx:
            row = (await tx.connection.execute(sa.select(schema.state.c.epoch))).scalar_one()
            assert row == epoch
            landed.append(tx.clock)

    *writes, taken = await asyncio.gather(
        *(write() for _ in range(10)), lead.take(two[1], seen, "you", 15.0), return_exceptions=True
    )
    assert taken == epoch + 1
    assert {type(each) for each in writes} <= {type(None), Deposed}
    async with two[1].read() as connection:
        assert await generations.clock(connection) == len(landed)
    with pytest.raises(Deposed):
        await write()


async def test_a_reader_sees_nothing_of_what_is_written_while_it_reads(two: tuple[Registry, Registry]) -> None:
    await create(two[0], "a", COURSES)
    async with two[0].read() as connection:
        assert await generations.clock(connection) == 1
        await create(two[1], "b", {"key": "b"})
        async with two[1].write() as tx:
            await catalogs.remove(tx, uuid_of("catalog a"), "test")
        assert [row.title for row in await catalogs.select(connection)] == ["a"]
        assert len(await pulls.targets(connection)) == 1
        assert await generations.clock(connection) == 1
    async with two[0].read() as connection:
        assert [row.title for row in await catalogs.select(connection)] == ["b"]


async def test_pulls_that_overlap_give_every_key_one_ordinal(here: World) -> None:
    assert isinstance(here.source, FakeSource)
    here.source.courses = [course(f"A+{n}", run(f"r{n}")) for n in range(12)]
    for n in range(8):
        await here.add(f"{n}", {"key": [f"A+{n + i}" for i in range(5)]})
    async with here.registry.read() as connection:
        targets = await pulls.targets(connection)
    assert await asyncio.gather(*(here.pipeline.pull(t, "due", here.epoch) for t in targets)) == [True] * 8
    async with here.registry.read() as connection:
        ordinals = list(await connection.scalars(sa.select(schema.content.c.ordinal)))
    assert sorted(ordinals) == list(range(24))


async def test_everyday_work_of_several_never_fails(two: tuple[Registry, Registry], clock: FakeClock) -> None:
    """No deadlock, no serialization failure: all that processes do beside each other, many times over."""
    row, _ = await create(two[0], "a", COURSES)
    epoch = await lead.take(two[0], await lead.observe(two[0]), "me", 15.0)
    assert epoch is not None

    async def pull(registry: Registry, hash_: str) -> None:
        async with registry.plain() as connection:
            task = await pulls.start(connection, hash_, "due", clock.now_ms())
        async with registry.write(epoch) as tx:
            await pulls.fail(tx, task, hash_, "no", PullState.FAILING)

    async def give_up(registry: Registry, hash_: str) -> None:
        async with registry.plain() as connection:
            await pulls.start(connection, hash_, "due", clock.now_ms())
        async with registry.plain() as connection:
            await pulls.give_up(connection, hash_, "never", clock.now_ms(), epoch)

    async def dismiss(registry: Registry, hash_: str) -> None:
        async with registry.plain() as connection:
            await pulls.dismiss(connection, [hash_, "0" * 32], clock.now_ms())

    async def tidy(registry: Registry, _: str) -> None:
        async with registry.plain() as connection:
            await pulls.prune(connection, clock.now_ms() + 100 * pulls.PULLS_KEPT_MS)
            await generations.prune(connection, 1)

    async def change(registry: Registry, hash_: str) -> None:
        async with registry.write() as tx:
            await catalogs.change(tx, row.uuid, {"title": hash_}, "test")

    async def renew(registry: Registry, _: str) -> None:
        await lead.renew(registry, epoch)

    async def ask(registry: Registry, hash_: str) -> None:
        await request(registry, hash_)

    work: list[Callable[[Registry, str], Awaitable[None]]] = [pull, give_up, dismiss, tidy, change, renew, ask]

    async def process(registry: Registry, number: int) -> None:
        for turn in range(12):
            await work[(turn * 3 + number) % len(work)](registry, row.wanted if turn % 2 else f"{turn % 3}" * 32)

    await asyncio.gather(*(process(each, number) for number, each in enumerate(two * 4)))


@pytest.mark.server
async def test_of_two_that_wait_for_each_other_one_goes_on(two: tuple[Registry, Registry]) -> None:
    """On SQLite the second would not have begun."""
    for title in "ab":
        await create(two[0], title, {"key": title})
    both_have_one = asyncio.Barrier(2)

    async def lock(registry: Registry, titles: str) -> None:
        async with registry.plain() as connection:
            for title in titles:
                named = sa.update(schema.catalog).where(schema.catalog.c.uuid == uuid_of(f"catalog {title}"))
                await connection.execute(named.values(customer_name=titles))
                if title == titles[0]:
                    await both_have_one.wait()

    ended = await asyncio.gather(lock(two[0], "ab"), lock(two[1], "ba"), return_exceptions=True)
    assert sorted(type(each).__name__ for each in ended) == ["NoneType", "RegistryError"]
    async with two[0].read() as connection:
        names = set(await connection.scalars(sa.select(schema.catalog.c.customer_name)))
    assert len(names) == 1


@pytest.mark.server
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_transaction_that_read_what_another_has_changed_since_fails_at_worst(
    two: tuple[Registry, Registry], isolation: str
) -> None:
    """A server may be configured to be stricter than the registry asks for."""
    await create(two[0], "a", COURSES)

    async def change_what_was_read() -> None:
        async with two[0].read() as connection:
            await connection.execute(sa.select(schema.catalog.c.customer_name))
            async with two[1].plain() as other:
                await other.execute(sa.update(schema.catalog).values(customer_name="other"))
            await connection.execute(sa.update(schema.catalog).values(customer_name="mine"))

    async def strictly() -> None:
        async with two[0].plain() as connection:
            name = "SESSION" if connection.dialect.name == "mysql" else "SESSION CHARACTERISTICS AS"
            await connection.execute(sa.text(f"SET {name} TRANSACTION ISOLATION LEVEL {isolation}"))

    await strictly()
    ended = await asyncio.gather(change_what_was_read(), return_exceptions=True)
    assert {type(each) for each in ended} <= {type(None), RegistryError}
