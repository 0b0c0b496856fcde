"""What is held back, against what, and until when."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from indexer.registry import catalogs, pulls, quarantine
from indexer.registry.quarantine import State
from indexer.validators import Found, Limits, Objection, Rule
from sidecar.contract.words import ContentType, query_hash
from tests.fakes import FakeSource, Json, course, run, uuid_of
from tests.world import World, world

COURSES: Json = {"content_type": "course"}
OTHER: Json = {"content_type": "course", "org": "A"}
HASH = query_hash(COURSES).hex()
USUAL = Limits(0.3, 2.0, 2)
EMPTIED = Objection(Rule.EMPTIED, 3, 0, 3, 0)


def made(count: int, org: str = "A") -> list[Json]:
    return [course(f"{org}+{n}", run(f"{org}{n}")) for n in range(count)]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, FakeSource(*made(10))) as here:
        await here.add("a", COURSES)
        await here.build()
        yield here


def source_of(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


async def refused(here: World, hash_: str = HASH) -> quarantine.Refused | None:
    async with here.registry.read() as connection:
        return await quarantine.refused(connection, hash_)


async def change_filter(here: World, content_filter: Json) -> None:
    async with here.registry.write() as tx:
        await catalogs.change(tx, uuid_of("catalog a"), {"content_filter": content_filter}, "test")


async def members(here: World) -> set[str]:
    await here.publish()
    index = await here.index()
    (catalog,) = index.catalogs.values()
    query = catalog.serving
    assert query is not None
    assert query.v1 is not None
    return {index.dictionary.keys[ordinal] for ordinal in query.v1.members}


class TestWhatIsServed:
    async def test_is_told_by_key_and_type(self, here: World) -> None:
        async with here.registry.read() as connection:
            served = await quarantine.served(connection, HASH)
        assert served == Found({f"A+{n}": ContentType.COURSE for n in range(10)})

    async def test_is_told_without_what_the_filter_forces_in(self, tmp_path: Path) -> None:
        """A forced course is there whatever the search finds, so it must not hide that the search finds nothing."""
        forcing: Json = {"org": "A", "enterprise_force_include_aggregation_keys": ["course:B+0"]}
        async with world(tmp_path, FakeSource(*made(3), *made(1, "B"))) as here:
            await here.add("a", forcing)
            await here.build()
            source_of(here).courses = made(1, "B")
            assert await here.pull() == [False]

    async def test_is_told_with_restricted_runs_where_they_are_asked_for(self, tmp_path: Path) -> None:
        allowing: Json = {"content_type": "course", "restricted_runs_allowed": {"course:A+0": ["r"]}}
        source = FakeSource(course("A+0", run("r", restricted=True)), course("A+1", run("s")))
        async with world(tmp_path, source) as here:
            await here.add("a", allowing)
            await here.build()
            async with here.registry.read() as connection:
                served = await quarantine.served(connection, query_hash(allowing).hex())
        courses = {"A+0": ContentType.COURSE, "A+1": ContentType.COURSE}
        assert served == Found(courses, courses)


class TestRefusing:
    async def test_keeps_the_last_result_of_a_filter(self, here: World) -> None:
        found = Found({"x": ContentType.PROGRAM, "a": ContentType.COURSE}, {"a": ContentType.COURSE})
        async with here.registry.write() as tx:
            first, is_new = await quarantine.refuse(tx, "1" * 36, HASH, [EMPTIED], found)
        assert (is_new, first.state, first.times, first.why) == (True, State.HELD, 1, str(EMPTIED))
        here.clock.advance(60)
        async with here.registry.write() as tx:
            again, is_new = await quarantine.refuse(tx, "2" * 36, HASH, [EMPTIED], found)
        assert (is_new, again.times, again.last_ms - again.first_ms) == (False, 2, 60_000)
        assert await refused(here) == again
        async with here.registry.read() as connection:
            assert await quarantine.found(connection, HASH) == found
            assert await quarantine.all_refused(connection) == [again]

    async def test_of_what_was_rejected_is_silent_until_something_else_is_found(self, here: World) -> None:
        one, other = Found({"a": ContentType.COURSE}), Found({"b": ContentType.COURSE})
        states = []
        for found in (one, one, other):
            async with here.registry.write() as tx:
                new, _ = await quarantine.refuse(tx, "1" * 36, HASH, [EMPTIED], found)
                states.append(new.state)
                if len(states) == 1:
                    await quarantine.decide(tx.connection, HASH, State.REJECTED)
        assert states == [State.HELD, State.REJECTED, State.HELD]

    async def test_of_what_was_approved_in_the_moment_before_leaves_it_approved(self, here: World) -> None:
        found = Found({"a": ContentType.COURSE})
        for expected in (State.HELD, State.APPROVED):
            async with here.registry.write() as tx:
                new, _ = await quarantine.refuse(tx, "1" * 36, HASH, [EMPTIED], found)
                assert new.state is expected
                await quarantine.decide(tx.connection, HASH, State.APPROVED)


class TestALimitOfItsOwn:
    async def test_takes_the_place_of_the_usual_one(self, here: World) -> None:
        async with here.registry.read() as connection:
            (target,) = await pulls.targets(connection)
        async with here.registry.plain() as connection:
            assert await quarantine.limits(connection, target.query_id, USUAL) == USUAL
            await quarantine.set_limits(connection, target.query_id, lost=0.9, gained=None, floor=None)
            assert await quarantine.limits(connection, target.query_id, USUAL) == Limits(0.9, 2.0, 2)
            await quarantine.set_limits(connection, target.query_id, lost=None, gained=None, floor=None)
            assert await quarantine.own_limits(connection, target.query_id) == {}

    async def test_lets_its_query_alone_pass(self, here: World) -> None:
        await here.add("b", OTHER, query_title="b")
        await here.build()
        async with here.registry.read() as connection:
            (target,) = [t for t in await pulls.targets(connection) if t.hash == HASH]
        async with here.registry.plain() as connection:
            await quarantine.set_limits(connection, target.query_id, lost=1, gained=None, floor=None)
        source_of(here).courses = []
        assert await here.pull() == [True, False]


class TestAPull:
    async def test_that_is_refused_changes_neither_content_nor_documents(self, here: World) -> None:
        before = await members(here)
        source_of(here).courses = [course("A+0", run("A0"), title="Another"), *made(3, "New")]
        assert await here.pull() == [False]
        assert await members(here) == before
        index = await here.index()
        assert "New+0" not in index.dictionary.ordinals

    async def test_that_finds_what_was_approved_passes(self, here: World) -> None:
        source_of(here).courses = made(3)
        assert await here.pull() == [False]
        async with here.registry.plain() as connection:
            await quarantine.decide(connection, HASH, State.APPROVED)
        assert await here.pull() == [True]
        assert await members(here) == {"A+0", "A+1", "A+2"}
        assert await refused(here) is None

    async def test_that_finds_much_else_than_was_approved_is_held_again(self, here: World) -> None:
        source_of(here).courses = made(5)
        assert await here.pull() == [False]
        async with here.registry.plain() as connection:
            await quarantine.decide(connection, HASH, State.APPROVED)
        source_of(here).courses = []
        assert await here.pull() == [False]
        assert len(await members(here)) == 10
        held = await refused(here)
        assert held is not None
        assert held.state is State.HELD

    async def test_that_finds_anything_where_nothing_was_approved_is_held_again(self, here: World) -> None:
        source_of(here).courses = []
        assert await here.pull() == [False]
        async with here.registry.plain() as connection:
            await quarantine.decide(connection, HASH, State.APPROVED)
        source_of(here).courses = made(10, "Another")
        assert await here.pull() == [False]
        held = await refused(here)
        assert held is not None
        assert (held.state, held.why) == (
            State.HELD,
            "swapped: 10 members before, 10 now, 10 lost (100%), 10 gained",
        )

    async def test_that_is_held_again_tells_what_of_the_served_one_would_be_lost(self, here: World) -> None:
        source_of(here).courses = made(5)
        assert await here.pull() == [False]
        async with here.registry.plain() as connection:
            await quarantine.decide(connection, HASH, State.APPROVED)
        source_of(here).courses = made(1)
        assert await here.pull() == [False]
        held = await refused(here)
        assert held is not None
        assert held.why == "shrunk: 10 members before, 1 now, 9 lost (90%), 0 gained"

    async def test_that_finds_what_is_served_passes_whatever_was_approved(self, here: World) -> None:
        source_of(here).courses = []
        await here.pull()
        async with here.registry.plain() as connection:
            await quarantine.decide(connection, HASH, State.APPROVED)
        source_of(here).courses = made(10)
        assert await here.pull() == [True]
        assert await refused(here) is None

    async def test_of_a_filter_that_a_person_has_changed_is_held_to_nothing(self, here: World) -> None:
        await change_filter(here, {"key": ["A+0"]})
        assert await here.pull() == [True]
        assert await members(here) == {"A+0"}

    async def test_of_a_filter_that_came_back_is_not_held_to_what_it_once_found(self, here: World) -> None:
        await change_filter(here, OTHER)
        await here.pull()
        source_of(here).courses = made(1)
        await change_filter(here, COURSES)
        async with here.registry.read() as connection:
            (target,) = await pulls.targets(connection)
        assert await here.pipeline.pull(target, "due", here.epoch)
        assert await members(here) == {"A+0"}

    async def test_of_the_old_filter_that_ends_after_the_change_is_held_to_what_is_still_served(
        self, here: World
    ) -> None:
        """It was under way when a person changed the filter, and until the new one has passed it is what is served."""
        async with here.registry.read() as connection:
            (old,) = await pulls.targets(connection)
        await change_filter(here, OTHER)
        source_of(here).courses = []
        assert not await here.pipeline.pull(old, "due", here.epoch)
        assert len(await members(here)) == 10
