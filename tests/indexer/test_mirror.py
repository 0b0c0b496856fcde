"""The mirror: whatever happens to the registry, refreshing step by step ends where a new mirror begins."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from hypothesis import given, settings
from pyroaring import BitMap
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.mirror import Changes, Mirror
from indexer.registry import Registry, RegistryError, pulls
from indexer.registry.pulls import Target
from sidecar.contract.words import query_hash
from tests.fakes import FakeClock, FakeSource, course, run, uuid_of
from tests.indexer import scripts
from tests.world import World, world


async def refresh(mirror: Mirror, registry: Registry) -> Changes:
    async with registry.read() as connection:
        return await mirror.refresh(connection)


async def fresh(registry: Registry) -> Mirror:
    mirror = Mirror()
    await refresh(mirror, registry)
    return mirror


def state(mirror: Mirror) -> dict[str, Any]:
    """Everything that a mirror knows, in comparable form; sets of nothing are left out."""
    known = {name: value for name, value in vars(mirror).items() if name not in ("users", "runs_of", "_open")}
    known["users"] = {query: users for query, users in mirror.users.items() if users}
    # What was worked out of an earlier state must not outlive it.
    known["open_courses"] = mirror.open_courses()
    known["runs_of"] = {course: runs for course, runs in mirror.runs_of.items() if runs}
    return known


class FailingConnection:
    """A connection that is lost at its n-th statement."""

    def __init__(self, connection: AsyncConnection, left: int) -> None:
        self._connection = connection
        self.left = left

    async def execute(self, statement: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RegistryError("lost")
        return await self._connection.execute(statement)


def ordinals(mirror: Mirror, *keys: str) -> BitMap:
    return BitMap([mirror.ordinals[key] for key in keys])


class TestARefresh:
    async def test_of_an_empty_registry_brings_nothing(self, registry: Registry) -> None:
        mirror = Mirror()
        assert await refresh(mirror, registry) == Changes()
        assert state(mirror) == state(Mirror())

    async def test_brings_only_what_is_newer(self, here: World) -> None:
        source = here.source
        assert isinstance(source, FakeSource)
        source.courses = [course("A+1", run("r1")), course("B+1", run("r2"))]
        await here.add("a", {"content_type": "course"})
        await here.pull()
        mirror = await fresh(here.registry)
        assert mirror.keys == ["A+1", "B+1", "r1", "r2"]
        source.courses[1] = course("B+1", run("r2"), title="New")
        await here.pull()
        changes = await refresh(mirror, here.registry)
        assert changes.content == ordinals(mirror, "B+1")
        assert changes.hashes == {query_hash({"content_type": "course"})}
        assert changes.catalogs == changes.customers == set()

    async def test_works_out_again_which_courses_have_an_active_run(self, here: World) -> None:
        source = here.source
        assert isinstance(source, FakeSource)
        source.courses = [course("A+1", run("r1")), course("B+1", run("r2"))]
        await here.add("a", {"content_type": "course"})
        await here.pull()
        mirror = await fresh(here.registry)
        assert mirror.open_courses() == ordinals(mirror, "A+1", "B+1")
        source.courses[1] = course("B+1", run("r2", active=False))
        await here.pull()
        await refresh(mirror, here.registry)
        assert mirror.open_courses() == ordinals(mirror, "A+1")

    async def test_names_the_course_of_a_changed_run(self, here: World) -> None:
        source = here.source
        assert isinstance(source, FakeSource)
        source.courses = [course("A+1", run("r1"))]
        await here.add("a", {})
        await here.pull()
        mirror = await fresh(here.registry)
        source.courses = [course("A+1", run("r1", active=False))]
        await here.pull()
        changes = await refresh(mirror, here.registry)
        assert changes.content == ordinals(mirror, "A+1", "r1")

    async def test_names_the_course_that_a_run_has_left(self, here: World) -> None:
        """A query that has only the old course as member contains the run no more, and has to be compiled again."""
        source = here.source
        assert isinstance(source, FakeSource)
        source.courses = [course("A+1", run("r1")), course("B+1")]
        await here.add("a", {"key": "A+1"})
        await here.add("b", {"key": "B+1"})
        await here.pull()
        mirror = await fresh(here.registry)
        source.courses = [course("A+1"), course("B+1", run("r1"))]
        await here.pipeline.pull(await target(here, {"key": "B+1"}), "demand", here.epoch)
        changes = await refresh(mirror, here.registry)
        assert changes.content >= ordinals(mirror, "A+1", "B+1", "r1")
        assert mirror.runs_of[mirror.ordinals["B+1"]] == {mirror.ordinals["r1"]}
        assert not mirror.runs_of[mirror.ordinals["A+1"]]

    async def test_that_is_lost_on_the_way_is_made_up_for_by_the_next(self, here: World) -> None:
        source = here.source
        assert isinstance(source, FakeSource)
        source.courses = [course("A+1", run("r1"))]
        await here.add("a", {})
        await here.pull()
        before = await fresh(here.registry)
        await here.add("b", {"key": "A+1"})
        await here.remove(uuid_of("catalog a"))
        source.courses = [course("A+1", run("r1"), title="New"), course("B+1", run("r2"))]
        await here.pull()
        wanted = state(await fresh(here.registry))
        assert wanted != state(before)
        left = 0
        for lost_at in range(20):
            mirror = Mirror()
            async with here.registry.read() as connection:
                flaky = FailingConnection(connection, lost_at)
                try:
                    await mirror.refresh(cast(AsyncConnection, flaky))
                except RegistryError:
                    await refresh(mirror, here.registry)
            assert state(mirror) == wanted, lost_at
            left = flaky.left
        assert left > 0, "every statement has failed once"

    async def test_a_catalog_removed_and_made_again_is_there(self, here: World) -> None:
        await here.add("a", {"key": "A+1"})
        mirror = await fresh(here.registry)
        await here.remove(uuid_of("catalog a"))
        row = await here.add("a", {"key": "B+1"})
        changes = await refresh(mirror, here.registry)
        assert [r.number for r in mirror.catalogs.values()] == [row.number]
        assert changes.hashes == {query_hash({"key": "A+1"}), query_hash({"key": "B+1"})}
        assert mirror.used() == {query_hash({"key": "B+1"})}


class TestUse:
    async def test_wanted_and_served_filters_of_catalogs_are_used(self, here: World) -> None:
        query = {"catalog_query_uuid": uuid_of("q")}
        await here.add("a", {"key": "A+1"}, **query)
        await here.pull()
        await here.add("b", {"key": "B+1"}, **query)
        mirror = await fresh(here.registry)
        assert mirror.used() == {query_hash({"key": "A+1"}), query_hash({"key": "B+1"})}
        await here.remove(uuid_of("catalog a"))
        await here.remove(uuid_of("catalog b"))
        await refresh(mirror, here.registry)
        assert mirror.used() == set()

    async def test_everything_is_what_a_new_mirror_would_report(self, here: World) -> None:
        source = here.source
        assert isinstance(source, FakeSource)
        source.courses = [course("A+1", run("r1"))]
        await here.add("a", {})
        await here.pull()
        mirror = Mirror()
        changes = await refresh(mirror, here.registry)
        everything = mirror.everything()
        assert (everything.content, everything.catalogs) == (changes.content, changes.catalogs)
        assert everything.hashes == changes.hashes


async def target(here: World, content_filter: object) -> Target:
    async with here.registry.read() as connection:
        return next(t for t in await pulls.targets(connection) if t.hash == query_hash(content_filter).hex())


@settings(max_examples=40, deadline=None)
@given(script=scripts.steps())
def test_refreshing_after_every_step_ends_where_a_new_mirror_begins(
    template: Path, script: Sequence[scripts.Step]
) -> None:
    async def play(folder: Path) -> None:
        source, clock = FakeSource(), FakeClock()
        async with world(scripts.copy(template, folder), source, clock=clock) as here:
            every, some = Mirror(), Mirror()
            for number, step in enumerate(script):
                await scripts.take(here, source, clock, step)
                await refresh(every, here.registry)
                if number % 3 == 2:
                    await refresh(some, here.registry)
            wanted = state(await fresh(here.registry))
            await refresh(some, here.registry)
            assert state(every) == wanted
            assert state(some) == wanted

    with TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder) / "play"))
