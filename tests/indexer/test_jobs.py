"""The schedule of one leader: each due filter is pulled once, a few at a time, and no failure is repeated at once."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import sqlalchemy as sa

from indexer.jobs import Jobs
from indexer.pipeline import Pipeline
from indexer.registry import Deposed, Registry, RegistryError, catalogs, lead, pulls, schema
from indexer.registry.pulls import Target
from indexer.status import status
from indexer.wiring import Parts
from sidecar.clock import SystemClock
from sidecar.errors import CatalogError, StoreError
from sidecar.settings import IndexerSettings, Settings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeSource
from tests.world import World


class SlowClock(SystemClock):
    """So far behind the scheduler's clock that whatever is put off is due at once."""

    def now_ms(self) -> int:
        return super().now_ms() - 3_600_000


class FakePipeline:
    """Notes what is pulled; a pull goes on until `gate` is open, and then does what `outcome` says."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.outcome: Exception | None = None
        self.begun: Counter[str] = Counter()
        self.reasons: list[str] = []
        self.now = self.most = 0
        self.asked = 0
        self.failing = 0
        self._news = asyncio.Condition()

    async def pull(self, target: Target, reason: str, epoch: int, *, since_ms: int = 0) -> bool:
        assert epoch == 7
        self.begun[target.hash] += 1
        self.reasons.append(reason)
        self.now += 1
        self.most = max(self.most, self.now)
        await self._tell()
        try:
            await self.gate.wait()
            if self.outcome is not None:
                raise self.outcome
            return True
        finally:
            self.now -= 1
            await self._tell()

    async def details(self, epoch: int, older_than_ms: int) -> int:
        self.asked += 1
        await self._tell()
        return self.failing

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(condition)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


class Bench:
    """Jobs over a fake pipeline and a real registry."""

    def __init__(self, registry: Registry, pipeline: FakePipeline, pulls: int, *, slow: bool) -> None:
        self.changes = 0
        self.changed = asyncio.Event()
        self.failures: list[CatalogError] = []
        settings = Settings(indexer=IndexerSettings(pulls=pulls))
        clock = SlowClock() if slow else SystemClock()
        parts = Parts(settings, clock, registry, MemoryStore(), FakeSource())
        self.jobs = Jobs(parts, cast(Pipeline, pipeline), 7, self._note, self.failures.append)

    def _note(self) -> None:
        self.changes += 1
        self.changed.set()

    async def until_changed(self) -> None:
        async with asyncio.timeout(10):
            await self.changed.wait()
        self.changed.clear()


@asynccontextmanager
async def bench(here: World, pipeline: FakePipeline, pulls: int = 2, *, slow: bool = False) -> AsyncIterator[Bench]:
    made = Bench(here.registry, pipeline, pulls, slow=slow)
    made.jobs.start()
    try:
        yield made
    finally:
        await made.jobs.stop()


async def add(here: World, count: int) -> list[str]:
    return [(await here.add(f"{n}", {"key": f"{n}"})).wanted for n in range(count)]


async def test_what_was_never_pulled_is_pulled_at_once_and_once(here: World) -> None:
    hashes, pipeline = await add(here, 5), FakePipeline()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: len(pipeline.begun) == 5 and not pipeline.now)
    assert pipeline.begun == dict.fromkeys(hashes, 1)
    assert set(pipeline.reasons) == {"created"}
    assert it.failures == []


async def test_no_more_pulls_run_at_once_than_the_setting_says(here: World) -> None:
    await add(here, 6)
    pipeline = FakePipeline()
    pipeline.gate.clear()
    async with bench(here, pipeline, pulls=3) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.now == 3)
        pipeline.gate.set()
        await pipeline.until(lambda: len(pipeline.begun) == 6 and not pipeline.now)
    assert pipeline.most == 3


async def test_a_filter_has_one_pull_under_way_however_often_the_jobs_are_worked_out(here: World) -> None:
    (hash_,), pipeline = await add(here, 1), FakePipeline()
    pipeline.gate.clear()
    async with bench(here, pipeline) as it:
        for _ in range(5):
            await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.now == 1)
        for _ in range(5):
            await it.jobs.reconcile()
        pipeline.gate.set()
        await it.until_changed()
    assert pipeline.begun == {hash_: 1}


async def test_a_pull_that_has_passed_is_not_due_before_its_period(here: World) -> None:
    await add(here, 1)
    await here.pull()
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.asked > 0)
    assert not pipeline.begun


async def test_a_filter_that_nobody_wants_any_more_is_not_pulled(here: World) -> None:
    """Its next pull was in the future; the jobs of the others go on."""
    await add(here, 3)
    await here.pull()
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        async with here.registry.read() as connection:
            rows = await catalogs.select(connection)
        for row in rows:
            await here.remove(row.uuid)
        (new,) = [(await here.add("new", {"key": "new"})).wanted]
        await it.jobs.reconcile()
        await pipeline.until(lambda: new in pipeline.begun)
    assert pipeline.begun == {new: 1}


async def test_a_stop_ends_what_is_under_way(here: World) -> None:
    await add(here, 2)
    pipeline = FakePipeline()
    pipeline.gate.clear()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.now == 2)
    assert pipeline.now == 0
    assert it.failures == []


@pytest.mark.parametrize("begun", [0, 2])
async def test_a_stop_is_no_error_to_the_scheduler(here: World, caplog: pytest.LogCaptureFixture, begun: int) -> None:
    """Neither for a pull that is about to begin, nor for one that waits for its turn, nor for one under way."""
    await add(here, 6)
    pipeline = FakePipeline()
    pipeline.gate.clear()
    with caplog.at_level(logging.ERROR):
        async with bench(here, pipeline) as it:
            await it.jobs.reconcile()
            await asyncio.sleep(0)  # The scheduler hands the jobs over.
            assert pipeline.now == 0
            await pipeline.until(lambda: pipeline.now == begun)
    assert pipeline.now == 0
    assert [record for record in caplog.records if record.name.startswith("apscheduler")] == []


@pytest.mark.parametrize(
    "outcome, reason",
    [(StoreError("full"), "full"), (RegistryError("away"), "away"), (KeyError("runs"), "KeyError: 'runs'")],
)
async def test_why_a_pull_was_given_up_is_noted_until_one_ends(here: World, outcome: Exception, reason: str) -> None:
    (hash_,), pipeline = await add(here, 1), FakePipeline()
    assert await lead.take(here.registry, await lead.observe(here.registry), "jobs", 15.0, 6) == 7
    async with here.registry.plain() as connection:
        await pulls.start(connection, hash_, "due", here.clock.now_ms())
    pipeline.outcome = outcome
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await it.until_changed()
    async with here.registry.read() as connection:
        (row,) = await connection.execute(sa.select(schema.pull))
    assert (row.state, row.error) == ("failed", reason)
    assert row.finished_ms is not None
    assert [query.error for query in (await status(here.registry, Settings())).queries] == [reason]
    assert it.failures == []
    here.epoch = 7
    here.clock.wall_ms = row.finished_ms + 1
    assert await here.pull() == [True]
    assert [query.error for query in (await status(here.registry, Settings())).queries] == [None]


@pytest.mark.parametrize("outcome", [StoreError("full"), ZeroDivisionError("a defect")])
async def test_a_pull_that_was_given_up_is_not_repeated_at_once(here: World, outcome: Exception) -> None:
    """The registry knows of no failure, so it would be due; other filters change the registry all the time."""
    (hash_,), pipeline = await add(here, 1), FakePipeline()
    pipeline.outcome = outcome
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await it.until_changed()
        for _ in range(10):
            await it.jobs.reconcile()
    assert pipeline.begun == {hash_: 1}
    assert it.failures == []


async def test_a_pull_that_was_given_up_is_repeated_soon(here: World) -> None:
    (hash_,), pipeline = await add(here, 1), FakePipeline()
    pipeline.outcome = StoreError("full")
    async with bench(here, pipeline, slow=True) as it:
        await it.jobs.reconcile()
        await it.until_changed()
        pipeline.outcome = None
        await it.jobs.reconcile()
        await it.until_changed()
    assert pipeline.begun == {hash_: 2}


async def test_being_deposed_ends_this_leaders_time(here: World) -> None:
    await add(here, 1)
    pipeline, deposed = FakePipeline(), Deposed("epoch 7 is over")
    pipeline.outcome = deposed
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await it.until_changed()
    assert it.failures == [deposed]


async def test_details_are_asked_for_whenever_the_registry_has_changed(here: World) -> None:
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await pipeline.until(lambda: pipeline.asked == 1)
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.asked == 2)


async def test_details_that_fail_are_not_asked_for_again_with_every_change(here: World) -> None:
    pipeline = FakePipeline()
    pipeline.failing = 1
    async with bench(here, pipeline) as it:
        await pipeline.until(lambda: pipeline.asked == 1)
        for _ in range(10):
            await it.jobs.reconcile()
    assert pipeline.asked == 1


async def test_a_stopped_schedule_begins_nothing(here: World) -> None:
    await add(here, 1)
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await pipeline.until(lambda: pipeline.asked == 1)
    async with here.registry.write():
        pass
    assert not pipeline.begun
    assert it.failures == []
