"""The schedule of one leader: each due filter is pulled once, a few at a time, and no failure is repeated at once."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.jobs import Jobs
from indexer.pipeline import Pipeline
from indexer.registry import Deposed, Registry, RegistryError, catalogs, lead, pulls, quarantine, schema
from indexer.registry.pulls import Target
from indexer.schedule import DEBOUNCE_MS
from indexer.source import SourceError
from indexer.status import status
from indexer.validators import Found, Objection, Rule
from indexer.wiring import Parts
from sidecar.clock import Clock, SystemClock
from sidecar.contract.words import query_hash
from sidecar.errors import CatalogError, StoreError
from sidecar.settings import IndexerSettings, Settings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, uuid_of
from tests.world import World


@pytest.fixture
def clock() -> FakeClock:
    """The registry's times are those of the clock that jobs run by, and not of a year to come."""
    return FakeClock(SystemClock().now_ms())


class LaterClock(SystemClock):
    """So far ahead of the registry's times that what was left alone for a moment is due at once."""

    def now_ms(self) -> int:
        return super().now_ms() + 4 * DEBOUNCE_MS


class HandClock(SystemClock):
    """A clock that is put forward or back by hand."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class HeldRegistry(Registry):
    """A registry of which a transaction that has read something does not end before it may."""

    def __init__(self, url: str) -> None:
        super().__init__(url, SystemClock())
        self.has_read = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with super().read() as connection:
            yield connection
        self.has_read.set()
        await self.may_end.wait()


class FakePipeline:
    """Notes what is pulled; a pull goes on until `gate` is open, and then does what `outcome` says."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.outcome: Exception | None = None
        self.begun: Counter[str] = Counter()
        self.reasons: list[str] = []
        self.since_ms: list[int] = []
        self.now = self.most = 0
        self.asked = 0
        self.failing = 0
        self._news = asyncio.Condition()

    async def pull(self, target: Target, reason: str, epoch: int, *, since_ms: int = 0) -> bool:
        assert epoch == 7
        self.begun[target.hash] += 1
        self.reasons.append(reason)
        self.since_ms.append(since_ms)
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

    def __init__(self, registry: Registry, pipeline: FakePipeline, pulls: int, clock: Clock) -> None:
        self.changes = 0
        self.changed = asyncio.Event()
        self.failures: list[CatalogError] = []
        settings = Settings(indexer=IndexerSettings(pulls=pulls))
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
async def bench(
    here: World,
    pipeline: FakePipeline,
    pulls: int = 2,
    *,
    clock: Clock | None = None,
    registry: Registry | None = None,
) -> AsyncIterator[Bench]:
    made = Bench(registry or here.registry, pipeline, pulls, clock or SystemClock())
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


async def test_what_is_held_back_of_a_filter_that_nobody_wants_any_more_is_forgotten(here: World) -> None:
    hashes = await add(here, 2)
    async with here.registry.write() as tx:
        for hash_ in hashes:
            await quarantine.refuse(tx, "1" * 36, hash_, [Objection(Rule.EMPTIED, 1, 0, 1, 0)], Found({}))
        await catalogs.remove(tx, uuid_of("catalog 0"), "test")
    async with bench(here, FakePipeline()) as it:
        await it.jobs.reconcile()
    async with here.registry.read() as connection:
        assert [each.hash for each in await quarantine.all_refused(connection)] == hashes[1:]


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
    async with bench(here, pipeline, clock=LaterClock()) as it:
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


async def ask(here: World, hash_: str, now_ms: int) -> str:
    async with here.registry.plain() as connection:
        return await pulls.request(connection, hash_, now_ms)


async def pull_rows(here: World) -> dict[str, tuple[str, str | None]]:
    """The state and the error of every pull, by task."""
    async with here.registry.read() as connection:
        return {r.task: (r.state, r.error) for r in await connection.execute(sa.select(schema.pull))}


async def test_a_filter_that_is_changed_again_and_again_is_pulled_once_in_its_last_form(here: World) -> None:
    """What is changed is left alone for a moment; the scheduler lets it pass once that is over."""
    await here.add("0", {"key": "0"}, catalog_query_uuid=uuid_of("q"))
    clock, pipeline = HandClock(), FakePipeline()
    clock.ahead_ms = -60_000
    async with bench(here, pipeline, clock=clock) as it:
        for n in range(1, 4):
            await it.jobs.reconcile()
            await here.add(f"{n}", {"key": f"{n}"}, catalog_query_uuid=uuid_of("q"))
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.asked > 1)
        assert not pipeline.begun
        clock.ahead_ms = 2 * DEBOUNCE_MS
        await it.jobs.reconcile()
        await it.until_changed()
    assert pipeline.begun == {query_hash({"key": "3"}).hex(): 1}


async def test_a_pull_that_somebody_asked_for_is_due_at_once_and_says_since_when(here: World) -> None:
    """Whether the filter is fresh, or fails and would be left alone for a while."""
    fresh = await here.add("fresh", {"key": "1"})
    await here.pull()
    failing = await here.add("failing", {"key": "2"}, query_title="failing")
    assert isinstance(here.source, FakeSource)
    here.source.failure = SourceError("not now")
    for _ in range(12):
        assert await here.pull("failing") == [False]
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.asked > 1)
        assert not pipeline.begun
        asked_ms = SystemClock().now_ms()
        for since_ms, row in ((asked_ms - 1, fresh), (asked_ms, failing)):
            await ask(here, row.wanted, since_ms)
            await it.jobs.reconcile()
            await it.until_changed()
            async with here.registry.plain() as connection:  # As the pipeline would.
                await pulls.dismiss(connection, [row.wanted], since_ms)
            await it.jobs.reconcile()
    assert pipeline.begun == {fresh.wanted: 1, failing.wanted: 1}
    assert pipeline.since_ms == [asked_ms - 1, asked_ms]


async def test_a_pull_that_nobody_asked_for_takes_documents_that_keep_the_promise(here: World) -> None:
    """Pulled again after 20 hours, with documents of up to 4: none is older than 24 hours by then."""
    await add(here, 2)
    pipeline, four_hours_ms = FakePipeline(), 4 * 3_600_000
    before_ms = SystemClock().now_ms()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: len(pipeline.begun) == 2)
    for since_ms in pipeline.since_ms:
        assert before_ms <= since_ms + four_hours_ms <= SystemClock().now_ms()


async def test_a_pull_of_what_no_catalog_wants_any_more_is_abandoned(here: World) -> None:
    row = await here.add("a", {"key": "1"})
    task = await ask(here, row.wanted, 5)
    await here.remove(row.uuid)
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
    assert await pull_rows(here) == {task: ("abandoned", "no catalog wants this filter any more")}
    assert not pipeline.begun


async def test_a_pull_that_is_waited_for_and_that_nobody_has_under_way_begins_again(here: World) -> None:
    """Its end could not be noted: the registry was out of reach, or another indexer leads by now."""
    row = await here.add("a", {"key": "1"})
    await here.pull()
    async with here.registry.plain() as connection:
        task = await pulls.start(connection, row.wanted, "due", 5)
    pipeline = FakePipeline()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.asked > 0)
        assert not pipeline.begun
        assert await ask(here, row.wanted, 6) == task
        await it.jobs.reconcile()
        await it.until_changed()
    assert pipeline.begun == {row.wanted: 1}


async def test_what_is_under_way_is_left_alone_though_somebody_asks_and_no_catalog_wants_it(here: World) -> None:
    row = await here.add("a", {"key": "1"})
    pipeline = FakePipeline()
    pipeline.gate.clear()
    async with bench(here, pipeline) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.now == 1)
        async with here.registry.plain() as connection:
            task = await pulls.start(connection, row.wanted, "created", 5)
        assert await ask(here, row.wanted, 6) == task
        await here.remove(row.uuid)
        await it.jobs.reconcile()
        assert await pull_rows(here) == {task: ("running", None)}
        pipeline.gate.set()
        await it.until_changed()
    assert pipeline.begun == {row.wanted: 1}


async def test_what_was_read_before_a_pull_ended_does_not_begin_it_again(here: World, tmp_path: Path) -> None:
    (hash_,), pipeline = await add(here, 1), FakePipeline()
    registry = HeldRegistry(f"sqlite+aiosqlite:///{tmp_path}/registry.db")
    pipeline.gate.clear()
    async with bench(here, pipeline, registry=registry, clock=LaterClock()) as it:
        await it.jobs.reconcile()
        await pipeline.until(lambda: pipeline.now == 1)
        registry.has_read.clear()
        registry.may_end.clear()
        reconciling = asyncio.create_task(it.jobs.reconcile())
        await registry.has_read.wait()
        assert await here.pull() == [True]  # As the pipeline would.
        pipeline.gate.set()
        await it.until_changed()
        registry.may_end.set()
        await reconciling
        for _ in range(2):
            asked = pipeline.asked
            await it.jobs.reconcile()
            await pipeline.until(lambda: pipeline.asked > asked)  # noqa: B023
    await registry.close()
    assert pipeline.begun == {hash_: 1}
