"""Whether what was written is published: told at once by the process that leads, else read, once for all who wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.publication import LOOK_EVERY_S, Publication
from indexer.registry import Registry, generations
from indexer.registry.generations import Generation
from tests.fakes import FakeClock
from tests.indexer import scripts
from tests.world import World

COURSES = {"content_type": "course"}
LONG_S = 30.0


class CountingRegistry(Registry):
    """A registry that counts how often it is read."""

    reads = 0

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self.reads += 1
        async with super().read() as connection:
            yield connection


@pytest.fixture
async def counting(here: World, tmp_path: Path) -> AsyncIterator[CountingRegistry]:
    """The registry of the world, as another process has it."""
    registry = CountingRegistry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", here.clock)
    yield registry
    await registry.close()


def generation(number: int, clock: int, *, moved: bool = True, shows: int | None = None) -> Generation:
    return Generation(number, 1, bytes(32), None, clock, 0, 1, 1, "test", moved, shows)


async def write(here: World) -> int:
    async with here.registry.write() as tx:
        return tx.clock


async def test_what_this_process_has_published_is_known_without_a_read(counting: CountingRegistry) -> None:
    publication = Publication(counting)
    publication.note(generation(3, 7))
    assert [await publication.covering(clock, LONG_S) for clock in (0, 6, 7)] == [3, 3, 3]
    assert counting.reads == 0


async def test_whoever_waits_is_told_at_once(counting: CountingRegistry) -> None:
    """Also when the first generation that comes does not cover the write."""
    publication = Publication(counting)
    waiting = [asyncio.create_task(publication.covering(clock, LONG_S)) for clock in (5, 7, 9)]
    await asyncio.sleep(0)
    publication.note(generation(1, 4))
    await asyncio.sleep(0)
    publication.note(generation(2, 7))
    assert await asyncio.gather(*waiting[:2]) == [2, 2]
    publication.note(generation(3, 9))
    assert await waiting[2] == 3


async def test_what_another_process_has_published_is_read(here: World, counting: CountingRegistry) -> None:
    clock = await write(here)
    waiting = asyncio.create_task(Publication(counting).covering(clock, LONG_S))
    published = await here.publish()
    assert published is not None
    assert await waiting == published.generation == 1


async def test_a_generation_that_no_reader_could_see_yet_does_not_count(
    here: World, counting: CountingRegistry
) -> None:
    clock = await write(here)
    async with here.registry.plain() as connection:
        assert await generations.intend(connection, generation(1, clock))
    publication = Publication(counting)
    assert await publication.covering(clock, 2.5 * LOOK_EVERY_S) is None
    async with here.registry.plain() as connection:
        await generations.moved(connection, 1)
    assert await publication.covering(clock, LONG_S) == 1


async def test_however_many_wait_the_registry_is_read_once_in_a_while(here: World, counting: CountingRegistry) -> None:
    clock = await write(here)
    publication, began_s = Publication(counting), perf_counter()
    waiting = [publication.covering(clock, 5 * LOOK_EVERY_S) for _ in range(200)]
    assert await asyncio.gather(*waiting) == [None] * 200
    assert 1 <= counting.reads <= (perf_counter() - began_s) / LOOK_EVERY_S + 1


@pytest.mark.parametrize("within_s", [0.0, 0.05, 0.15])
async def test_nothing_in_time_is_none(counting: CountingRegistry, within_s: float) -> None:
    publication, began_s = Publication(counting), perf_counter()
    assert await publication.covering(1, within_s) is None
    assert within_s * 0.9 <= perf_counter() - began_s < LONG_S


async def test_nothing_in_time_is_none_though_other_generations_come_all_the_time(counting: CountingRegistry) -> None:
    """News in the very moment of the deadline must not make it wait on."""
    publication = Publication(counting)
    waiting = asyncio.create_task(publication.covering(1_000_000, 0.05))
    number = 0
    while not waiting.done():
        number += 1
        publication.note(generation(number, number))
        await asyncio.sleep(0)
        assert number < 1_000_000
    assert await waiting is None


async def test_what_is_known_never_goes_back(here: World, counting: CountingRegistry) -> None:
    clock = await write(here)
    await here.publish()
    publication = Publication(counting)
    publication.note(generation(5, clock + 5))
    publication.note(generation(4, clock + 9))
    assert await publication.covering(clock, LONG_S) == 5
    # A look that finds the registry's first generation changes nothing.
    assert await publication.covering(clock + 6, 2.5 * LOOK_EVERY_S) is None
    assert counting.reads > 0
    assert await publication.covering(clock, LONG_S) == 5


async def test_a_registry_that_is_out_of_reach_for_a_while_is_asked_again(here: World, tmp_path: Path) -> None:
    """The write is made by then: it is not answered as an error."""
    clock = await write(here)
    await here.publish()
    registry = scripts.FlakyRegistry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", FakeClock())
    registry.failing = frozenset({1, 2})
    assert await Publication(registry).covering(clock, LONG_S) == 1
    assert registry.count == 3
    await registry.close()


class TestARollback:
    async def test_of_a_higher_number_covers_no_write_that_it_takes_away(
        self, here: World, counting: CountingRegistry
    ) -> None:
        publication = Publication(counting)
        publication.note(generation(5, 9))
        publication.note(generation(6, 4, shows=2))
        assert await publication.covering(4, LONG_S) == 6
        assert await publication.covering(9, 2.5 * LOOK_EVERY_S) is None
        publication.note(generation(7, 9))
        assert await publication.covering(9, LONG_S) == 7

    async def test_that_another_process_has_published_is_read(self, here: World, counting: CountingRegistry) -> None:
        clock = await write(here)
        first = await here.publish()
        assert first is not None
        publication = Publication(counting)
        assert await publication.covering(clock, LONG_S) == 1
        later = await write(here)
        await here.publish()
        async with here.registry.plain() as connection:
            await generations.set_pin(connection, 1)
        again = await here.publish()
        assert again is not None
        assert (again.generation, again.clock) == (3, first.clock)
        # The write was published, under 2, and is not to be seen any more.
        assert await publication.covering(later, LONG_S) is None
        assert publication.pinned == 1
        assert await publication.covering(clock, LONG_S) in (1, 3)


class TestAPin:
    async def test_has_nobody_wait_for_what_cannot_come(self, here: World, counting: CountingRegistry) -> None:
        await here.publish()
        async with here.registry.plain() as connection:
            await generations.set_pin(connection, 1)
        publication = Publication(counting)
        for _ in range(3):
            assert await publication.covering(await write(here), LONG_S) is None
        held = await here.publish()
        assert held is not None
        publication.note(held)
        assert await publication.covering(held.clock, LONG_S) is None

    async def test_that_ends_is_noticed(self, here: World, counting: CountingRegistry) -> None:
        await here.publish()
        async with here.registry.plain() as connection:
            await generations.set_pin(connection, 1)
        publication = Publication(counting)
        clock = await write(here)
        assert await publication.covering(clock, LONG_S) is None
        async with here.registry.plain() as connection:
            await generations.set_pin(connection, None)
        await here.publish()
        async with asyncio.timeout(LONG_S):
            while publication.pinned is not None:
                await publication.covering(clock, LONG_S)
        assert await publication.covering(clock, LONG_S) == 2
        assert publication.pinned is None
