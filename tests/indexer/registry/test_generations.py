"""Generations in the registry: named before the pointer moves, by the leader alone, and noted when it has moved."""

from dataclasses import replace

import pytest

from indexer.registry import Registry, RegistryError, generations, lead
from indexer.registry.generations import Generation

FIRST = Generation(1, 1, b"\1" * 32, None, 5, 1_800_000_000_000, 10, 1000, "test", moved=False)


@pytest.fixture(autouse=True)
async def leading(registry: Registry) -> None:
    assert await lead.take(registry, await lead.observe(registry), "me", 15.0) == 1


async def intend(registry: Registry, new: Generation) -> bool:
    async with registry.plain() as connection:
        return await generations.intend(connection, new)


async def latest(registry: Registry, count: int = 1, *, moved: bool = False) -> list[Generation]:
    async with registry.read() as connection:
        return await generations.latest(connection, count, moved=moved)


async def test_there_are_none_at_first(registry: Registry) -> None:
    assert await latest(registry) == []


async def test_an_intended_generation_is_noted_whole(registry: Registry) -> None:
    assert await intend(registry, FIRST)
    assert await latest(registry) == [FIRST]


async def test_a_moved_one_says_so(registry: Registry) -> None:
    await intend(registry, FIRST)
    async with registry.plain() as connection:
        await generations.moved(connection, 1)
    assert await latest(registry) == [replace(FIRST, moved=True)]


async def test_the_newest_come_first_and_those_never_seen_can_be_left_out(registry: Registry) -> None:
    for number in range(1, 6):
        await intend(registry, replace(FIRST, generation=number, parent=FIRST.digest))
    async with registry.plain() as connection:
        for number in (1, 2, 4):
            await generations.moved(connection, number)
    assert [g.generation for g in await latest(registry, 3)] == [5, 4, 3]
    assert [g.generation for g in await latest(registry, 2, moved=True)] == [4, 2]


async def test_a_deposed_leader_names_none(registry: Registry) -> None:
    await lead.take(registry, await lead.observe(registry), "other", 15.0)
    assert not await intend(registry, FIRST)
    assert await latest(registry) == []


async def test_a_number_is_given_once(registry: Registry) -> None:
    await intend(registry, FIRST)
    with pytest.raises(RegistryError):
        await intend(registry, replace(FIRST, digest=b"\2" * 32))
    assert await latest(registry) == [FIRST]


async def test_of_those_that_were_seen_and_of_the_others_the_newest_are_kept(registry: Registry) -> None:
    for number in range(1, 9):
        await intend(registry, replace(FIRST, generation=number))
    async with registry.plain() as connection:
        for number in (1, 2, 4):
            await generations.moved(connection, number)
        await generations.prune(connection, 2)
    assert [g.generation for g in await latest(registry, 9)] == [8, 7, 4, 2]
    async with registry.plain() as connection:
        await generations.prune(connection, 3)
    assert [g.generation for g in await latest(registry, 9)] == [8, 7, 4, 2]


async def test_noting_generations_does_not_move_the_clock(registry: Registry) -> None:
    await intend(registry, FIRST)
    async with registry.read() as connection:
        assert await generations.clock(connection) == 0


async def moved(registry: Registry, *numbers: int) -> None:
    for number in numbers:
        await intend(registry, replace(FIRST, generation=number))
        async with registry.plain() as connection:
            await generations.moved(connection, number)


async def pin(registry: Registry, number: int | None) -> None:
    async with registry.plain() as connection:
        await generations.set_pin(connection, number)


class TestAPin:
    async def test_is_none_at_first(self, registry: Registry) -> None:
        await moved(registry, 1)
        async with registry.read() as connection:
            standing = await generations.standing(connection)
            assert await generations.held(connection, 10) == []
        assert (standing.pin, standing.pinned, standing.held) == (None, None, 0)
        assert standing.last == standing.seen == replace(FIRST, moved=True)

    async def test_holds_back_what_comes_after_what_readers_see(self, registry: Registry) -> None:
        """What was intended before the last one that they could see, or as a rollback, waits for nobody."""
        await moved(registry, 1)
        await intend(registry, replace(FIRST, generation=2))
        await moved(registry, 3)
        await pin(registry, 1)
        await intend(registry, replace(FIRST, generation=4, shows=1))
        for number in (5, 6):
            await intend(registry, replace(FIRST, generation=number))
        async with registry.read() as connection:
            standing = await generations.standing(connection)
            held = await generations.held(connection, 10)
            assert await generations.held(connection, 1) == held[:1]
        assert [g.generation for g in held] == [6, 5]
        assert (standing.pin, standing.held) == (1, 2)
        assert (standing.pinned, standing.last) == (replace(FIRST, moved=True), held[0])
        await pin(registry, None)
        async with registry.read() as connection:
            assert await generations.held(connection, 10) == []

    async def test_of_an_unknown_generation_has_a_number_alone(self, registry: Registry) -> None:
        await pin(registry, 9)
        async with registry.read() as connection:
            standing = await generations.standing(connection)
        assert (standing.last, standing.seen, standing.pin, standing.pinned) == (None, None, 9, None)

    async def test_is_not_forgotten_with_old_generations(self, registry: Registry) -> None:
        await moved(registry, 1, 2, 3)
        await pin(registry, 1)
        async with registry.plain() as connection:
            await generations.prune(connection, 1)
        assert [g.generation for g in await latest(registry, 9)] == [3, 1]


async def test_one_is_found_by_its_number_and_the_one_before_by_what_readers_saw(registry: Registry) -> None:
    await moved(registry, 1)
    await intend(registry, replace(FIRST, generation=2, shows=1))
    async with registry.read() as connection:
        assert await generations.find(connection, 2) == replace(FIRST, generation=2, shows=1)
        assert await generations.find(connection, 3) is None
        assert await generations.before(connection, 3) == replace(FIRST, moved=True)
        assert await generations.before(connection, 1) is None


def test_a_rollback_is_of_its_own_tree_and_of_the_one_that_it_shows() -> None:
    again = replace(FIRST, generation=7, shows=3)
    assert [number for number in range(10) if again.is_tree_of(number)] == [3, 7]
    assert [number for number in range(10) if FIRST.is_tree_of(number)] == [1]
