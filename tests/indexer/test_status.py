"""What the indexer says of itself: only what is true of the registry, and of what readers can see."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.registry import generations, lead
from indexer.source import Pulled, SourceError
from indexer.status import Status, status
from sidecar.errors import StoreError
from sidecar.settings import Settings, SourceSettings
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, course
from tests.world import World, world

COURSES = {"content_type": "course"}
PROMISE_S = 86_400


async def now(here: World) -> Status:
    return await status(here.registry, Settings())


async def test_of_a_new_indexer(here: World) -> None:
    found = await now(here)
    assert (found.generation, found.published_at_ms, found.behind, found.queries) == (None, None, found.clock, ())
    assert (found.holder, found.epoch) == ("test", 1)
    await lead.release(here.registry, here.epoch)
    assert (await now(here)).holder is None


async def test_is_ok_when_everything_is_fresh_and_published(here: World, clock: FakeClock) -> None:
    await here.add("a", COURSES, query_title="t")
    await here.build()
    clock.advance(60)
    found = await now(here)
    assert (found.status, found.generation, found.behind) == ("ok", 1, 0)
    (query,) = found.queries
    assert (query.title, query.catalogs, query.state, query.age_s, query.stale, query.error) == (
        *("t", 1, "fresh", 60, False, None),
    )


async def test_says_how_far_it_is_behind(here: World) -> None:
    await here.publish()
    await here.add("a", COURSES)
    await here.pull()
    assert (await now(here)).behind == 2
    await here.publish()
    assert (await now(here)).behind == 0


async def test_says_what_is_pinned_and_how_much_waits_behind_it(here: World) -> None:
    await here.publish()
    async with here.registry.plain() as connection:
        await generations.set_pin(connection, 1)
    await here.add("a", COURSES)
    await here.publish()
    found = await now(here)
    assert (found.generation, found.pinned, found.held, found.behind) == (1, 1, 1, 1)


async def test_is_degraded_by_what_was_never_pulled_is_failing_or_stale(here: World, clock: FakeClock) -> None:
    assert isinstance(here.source, FakeSource)
    here.source.courses = [course("A+1")]
    await here.add("a", COURSES)
    found = await now(here)
    assert (found.status, found.queries[0].state, found.queries[0].age_s, found.queries[0].stale) == (
        *("degraded", "due", None, False),
    )
    await here.pull()
    await here.pipeline.details(here.epoch, clock.now_ms())
    clock.advance(PROMISE_S - 1)
    assert (await now(here)).status == "ok"
    clock.advance(1)
    assert not (await now(here)).queries[0].stale
    clock.advance(1)
    found = await now(here)
    assert (found.status, found.queries[0].stale) == ("degraded", True)
    here.source.failure = SourceError("gone")
    await here.pull()
    found = await now(here)
    assert (found.queries[0].state, found.queries[0].error, found.queries[0].stale) == ("failing", "gone", True)


async def test_a_time_in_the_future_is_no_negative_age(here: World, clock: FakeClock) -> None:
    await here.add("a", COURSES)
    await here.pull()
    clock.wall_ms -= 10_000_000
    assert (await now(here)).queries[0].age_s == 0


async def test_a_generation_that_never_became_visible_is_not_said_to_be_published(here: World) -> None:
    await here.add("a", COURSES)
    await here.build()
    await here.add("b", {"key": "1"})
    assert isinstance(here.store, MemoryStore)
    pointer = await here.store.pointer()
    assert pointer is not None
    await here.store.reset(Pointer(pointer.epoch + 1, pointer.generation, pointer.digest))
    with pytest.raises(StoreError):
        await here.publish()
    async with here.registry.read() as connection:
        assert [g.moved for g in await generations.latest(connection, 2)] == [False, True]
    found = await now(here)
    assert (found.generation, found.behind) == (1, 1)
    await here.store.reset(pointer)


async def test_is_plain_data(here: World) -> None:
    await here.add("a", COURSES)
    found = (await now(here)).as_json()
    assert json.loads(json.dumps(found))["queries"][0]["state"] == "due"


class CostlySource(FakeSource):
    """Sends a thousand requests for every pull."""

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        return replace(await super().pull(content_filter), requests=1000)


@pytest.mark.parametrize(
    "requests_per_hour, exceeds_s, is_", [(200, 0, "ok"), (100, 0, "ok"), (84, 0, "ok"), (83, 346, "degraded")]
)
async def test_says_by_how_much_the_budget_of_requests_is_too_small(
    tmp_path: Path, requests_per_hour: int, exceeds_s: int, is_: str
) -> None:
    async with world(tmp_path, CostlySource(course("A+1"))) as here:
        await here.add("a", COURSES)
        await here.add("b", {"key": "A+1"})
        await here.build()
        source = SourceSettings(kind="discovery", requests_per_hour=requests_per_hour)
        found = await status(here.registry, Settings(source=source))
        assert found.budget is not None
        assert (found.budget.requests_per_refresh, found.budget.exceeds_promise_s, found.status) == (
            *(2000, exceeds_s, is_),
        )


async def test_without_a_limit_there_is_no_budget(here: World) -> None:
    assert (await now(here)).budget is None
    limited = Settings(source=SourceSettings(kind="file", requests_per_hour=1))
    assert (await status(here.registry, limited)).budget is None


async def test_is_degraded_while_the_details_of_customers_are_overdue(here: World, clock: FakeClock) -> None:
    await here.add("a", COURSES)
    await here.pull()
    found = await now(here)
    assert (found.status, found.customers_overdue) == ("degraded", 1)
    await here.build()
    found = await now(here)
    assert (found.status, found.customers_overdue) == ("ok", 0)
    clock.advance(PROMISE_S)
    await here.pull()
    found = await now(here)
    assert (found.status, found.customers_overdue) == ("degraded", 1)
