"""One query through the pipeline: it passes as a whole, or changes nothing but the note that it failed."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from indexer.pipeline import Pipeline
from indexer.registry import Deposed, Registry, Transaction, pulls, quarantine, schema
from indexer.registry.pulls import Target
from indexer.source import CustomerDetails, Pulled, SourceError
from indexer.wiring import limits_of
from sidecar.contract.objects import Sealed
from sidecar.contract.words import PullState
from sidecar.errors import StoreError
from sidecar.settings import Settings
from sidecar.store.memory import MemoryStore
from tests.databases import databases
from tests.fakes import FakeClock, FakeSource, course, customer, run, uuid_of
from tests.world import World, world

COURSES = {"content_type": "course"}


def source_of(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


async def rows(here: World, table: sa.Table) -> list[Any]:
    async with here.registry.read() as connection:
        return list(await connection.execute(sa.select(table)))


async def targets(here: World) -> list[Target]:
    async with here.registry.read() as connection:
        return await pulls.targets(connection)


class Accepted:
    """How often the publisher was told that there is something new."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def pipeline(
    here: World, accepted: Accepted, source: FakeSource | None = None, registry: Registry | None = None
) -> Pipeline:
    return Pipeline(
        registry or here.registry,
        source or here.source,
        here.publisher,
        here.clock,
        limits_of(Settings()),
        here.metrics,
        accepted,
    )


class TestPulling:
    async def test_says_that_there_is_something_new_whether_it_passed_or_failed(self, here: World) -> None:
        await here.add("a", COURSES)
        (target,) = await targets(here)
        accepted = Accepted()
        assert await pipeline(here, accepted).pull(target, "due", here.epoch)
        source_of(here).failure = SourceError("gone")
        assert not await pipeline(here, accepted).pull(target, "due", here.epoch)
        assert accepted.times == 2

    async def test_stores_documents_before_the_registry_refers_to_them(self, here: World) -> None:
        source_of(here).courses = [course("A+1")]
        await here.add("a", COURSES)
        await here.pull()
        assert isinstance(here.store, MemoryStore)
        (row,) = await rows(here, schema.content)
        assert bytes(row.metadata) in here.store.objects

    async def test_that_cannot_store_its_documents_changes_nothing(self, tmp_path: Any, clock: FakeClock) -> None:
        class Full(MemoryStore):
            async def put(self, objects: Iterable[Sealed]) -> None:
                if list(objects):
                    raise StoreError("full")

        async with world(tmp_path, store=Full(), clock=clock) as here:
            source_of(here).courses = [course("A+1")]
            await here.add("a", COURSES)
            with pytest.raises(StoreError):
                await here.pull()
            assert await rows(here, schema.content) == []
            assert [r.state for r in await rows(here, schema.result)] == [PullState.DUE]

    async def test_by_a_deposed_leader_changes_nothing(self, here: World) -> None:
        source_of(here).courses = [course("A+1")]
        await here.add("a", COURSES)
        (target,) = await targets(here)
        accepted = Accepted()
        with pytest.raises(Deposed):
            await pipeline(here, accepted).pull(target, "due", here.epoch - 1)
        source_of(here).failure = SourceError("gone")
        with pytest.raises(Deposed):
            await pipeline(here, accepted).pull(target, "due", here.epoch - 1)
        assert await rows(here, schema.content) == []
        assert [r.state for r in await rows(here, schema.result)] == [PullState.DUE]
        assert accepted.times == 0

    async def test_of_contradictory_content_fails_and_keeps_the_last_good_one(self, here: World) -> None:
        """A course that is a run elsewhere would make readers refuse the whole generation."""
        source_of(here).courses = [course("A+1", run("a1"))]
        await here.add("a", COURSES)
        await here.build()
        source_of(here).courses = [course("A+1", run("a1")), course("a1")]
        assert await here.pull() == [False]
        await here.publish()
        index = await here.index()
        (query,) = index.queries.values()
        assert query.v1 is not None
        assert [index.dictionary.keys[o] for o in query.v1.members] == ["A+1"]
        assert query.state is PullState.FAILING
        (result,) = await rows(here, schema.result)
        assert result.error == "'a1' is a course run, and the source speaks of it as a course"

    async def test_of_several_at_once_gives_every_key_one_ordinal(self, here: World) -> None:
        """They search at the same time, over content that nobody knew before, and are accepted one by one."""
        gate = asyncio.Barrier(4)

        class Slow(FakeSource):
            async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
                pulled = await super().pull(content_filter)
                await gate.wait()
                return pulled

        slow = Slow(*(course(f"{org}+{n}", run(f"{org}{n}")) for org in "ABC" for n in range(5)))
        for filter_ in (COURSES, {"org": "A"}, {"org": "B"}, {"org": ["A", "B", "C"]}):
            await here.add(str(filter_), filter_)
        shared = pipeline(here, Accepted(), slow)
        async with asyncio.timeout(30):
            await asyncio.gather(*(shared.pull(target, "due", here.epoch) for target in await targets(here)))
        found = await rows(here, schema.content)
        assert sorted(r.ordinal for r in found) == list(range(30))
        assert len({r.content_key for r in found}) == 30
        await here.publish()


class ApprovedMeanwhile(Registry):
    """A registry in which somebody approves what is held back, right before the write after that is asked for."""

    armed = True

    @asynccontextmanager
    async def write(self, epoch: int | None = None) -> AsyncIterator[Transaction]:
        if self.armed:
            self.armed = False
            async with super().plain() as connection:
                (held,) = await quarantine.all_refused(connection)
                await quarantine.decide(connection, held.hash, quarantine.State.APPROVED)
                await pulls.request(connection, held.hash, self.time.now_ms())
        async with super().write(epoch) as tx:
            yield tx


class TestAnApprovalInTheMiddleOfAPull:
    async def test_is_not_lost_and_is_followed_by_another_pull(self, tmp_path: Path) -> None:
        async with world(tmp_path, FakeSource(*(course(f"A+{n}", run(f"a{n}")) for n in range(9)))) as here:
            await here.add("a", COURSES)
            await here.build()
            source_of(here).courses = []
            assert await here.pull() == [False]
            (target,) = await targets(here)
            meanwhile = ApprovedMeanwhile(await databases.url(tmp_path), here.clock)
            try:
                assert not await pipeline(here, Accepted(), registry=meanwhile).pull(target, "due", here.epoch)
            finally:
                await meanwhile.close()
            async with here.registry.read() as connection:
                assert await pulls.requested(connection) == {target.hash: here.clock.now_ms()}
            assert await here.pull() == [True]


class TestDetails:
    async def test_that_fail_are_counted_and_keep_what_is_known(self, here: World, clock: FakeClock) -> None:
        source_of(here).customers = [customer("Acme")]
        await here.add("a", COURSES)
        accepted = Accepted()
        assert await pipeline(here, accepted).details(here.epoch, clock.now_ms()) == 0
        source_of(here).failure = SourceError("gone")
        clock.advance(1)
        assert await pipeline(here, accepted).details(here.epoch, clock.now_ms()) == 1
        (row,) = await rows(here, schema.customer)
        assert row.slug == "acme"
        assert accepted.times == 1, "nothing is new after a failure"

    async def test_of_one_customer_do_not_stop_the_others(self, here: World, clock: FakeClock) -> None:
        source_of(here).customers = [customer("Acme") | {"modified": "soon"}, customer("Other")]
        await here.add("a", COURSES)
        await here.add("b", COURSES, of="Other")
        assert await here.pipeline.details(here.epoch, clock.now_ms()) == 1
        assert [r.slug for r in await rows(here, schema.customer)] == ["other"]

    @pytest.mark.parametrize(
        "modified, milliseconds",
        [
            ("2026-01-01T00:00:00Z", 1_767_225_600_000),
            ("2026-01-01T00:00:00", 1_767_225_600_000),
            ("2026-01-01T01:00:00.123456+01:00", 1_767_225_600_123),
            ("0001-01-01", 0),
        ],
    )
    async def test_say_when_they_changed(self, here: World, clock: FakeClock, modified: str, milliseconds: int) -> None:
        """A time before 1970 cannot be published, and would spoil the whole generation."""
        source_of(here).customers = [customer("Acme") | {"modified": modified}]
        await here.add("a", COURSES)
        await here.build()
        assert (await here.index()).customers[uuid_of("Acme")].modified_ms == milliseconds

    async def test_by_a_deposed_leader_are_refused(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        with pytest.raises(Deposed):
            await here.pipeline.details(here.epoch - 1, clock.now_ms())
        assert await rows(here, schema.customer) == []

    async def test_are_asked_for_once_a_customer(self, here: World, clock: FakeClock) -> None:
        class Counting(FakeSource):
            def __init__(self) -> None:
                super().__init__()
                self.asked: list[str] = []

            async def customer(self, uuid: str) -> CustomerDetails | None:
                self.asked.append(uuid)
                return await super().customer(uuid)

        source = Counting()
        for title in "abc":
            await here.add(title, {"key": title}, of="Acme")
        await pipeline(here, Accepted(), source).details(here.epoch, clock.now_ms())
        assert source.asked == [uuid_of("Acme")]
