"""While discovery fails, or says what cannot be right: no answer changes, the status says why, a clean pull passes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from indexer.status import status
from sidecar.contract.index import Index
from sidecar.contract.words import PullState
from sidecar.settings import Settings
from tests.discovery import SEARCH, FakeDiscovery, RecordingClock, served, source_over
from tests.fakes import Json, course, customer, program, run
from tests.world import World, world

EVERYTHING: Json = {}
COURSES = 130
RETRIES = 1


def content(courses: int) -> Json:
    """Courses with a run each that has a document of its own: three pages of them, and a program."""
    made = [course(f"Org+{n:03d}", run(f"run-{n:03d}"), indexed=(f"run-{n:03d}",)) for n in range(courses)]
    return {
        "courses": made,
        "programs": [program("P", "Org+001")],
        "pathways": [],
        "reviews": [],
        "customers": [customer("Acme")],
    }


@dataclass
class Here:
    """A world over a fake discovery, with one catalog of everything, built and published."""

    world: World
    fake: FakeDiscovery
    clock: RecordingClock

    async def members(self) -> set[str]:
        await self.world.publish()
        index = await self.world.index()
        return members_of(index)

    async def why(self, state: PullState = PullState.FAILING) -> str | None:
        (query,) = (await status(self.world.registry, Settings())).queries
        assert query.state == state.name.lower()
        return query.error


def members_of(index: Index) -> set[str]:
    (query,) = (q for q in index.queries.values() if q.v1 is not None)
    assert query.v1 is not None
    return {index.dictionary.keys[ordinal] for ordinal in query.v1.members}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    clock = RecordingClock()
    async with (
        served(content(COURSES)) as fake,
        source_over(fake, clock, timeout_s=2.0, retries=RETRIES) as source,
        world(tmp_path, source, clock=clock) as made,
    ):
        await made.add("a", EVERYTHING)
        await made.build()
        yield Here(made, fake, clock)


def fail_page(fake: FakeDiscovery) -> None:
    fake.fail(SEARCH, *[500] * (RETRIES + 1), page=2)


def truncate(fake: FakeDiscovery) -> None:
    def spoil(request: web.Request, answer: Json) -> Json:
        return answer | {"next": None} if request.query.get("page") == "2" else answer

    fake.spoil = spoil


def count_off(fake: FakeDiscovery) -> None:
    def spoil(request: web.Request, answer: Json) -> Json:
        return answer | {"count": answer["count"] + 5} if request.path == SEARCH else answer

    fake.spoil = spoil


def repeat_page(fake: FakeDiscovery) -> None:
    first: list[Any] = []

    def spoil(request: web.Request, answer: Json) -> Json:
        if request.query.get("page") == "1":
            first[:] = answer["results"]
        return answer | {"results": first} if request.query.get("page") == "2" else answer

    fake.spoil = spoil


def hang(fake: FakeDiscovery) -> None:
    async def fault(request: web.Request) -> None:
        if request.path == SEARCH and request.query["page"] == "2":
            await asyncio.Event().wait()

    fake.faults.append(fault)


@pytest.mark.parametrize(
    "fault, named",
    [
        (fail_page, ["page 2", "500 Internal Server Error", "2 tries"]),
        (truncate, ["page 2", "259", "200"]),
        (count_off, ["264", "259"]),
        (repeat_page, ["259", "159"]),
        (hang, ["page 2", "no answer within 2 s", "2 tries"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_pull_that_is_not_whole_changes_no_answer(
    here: Here, fault: Callable[[FakeDiscovery], None], named: list[str]
) -> None:
    before = await here.members()
    assert len(before) == 2 * COURSES + 1
    # What discovery has now is less: whatever of it were taken over would be seen.
    here.fake.corpus = content(COURSES - 1)
    fault(here.fake)
    assert await here.world.pull() == [False]
    why = await here.why()
    assert why is not None
    for text in named:
        assert text in why
    assert await here.members() == before
    here.fake.faults.clear()
    here.fake.spoil = lambda request, answer: answer
    assert await here.world.pull() == [True]
    assert len(before - await here.members()) == 2


async def test_a_slow_discovery_is_waited_for(here: Here) -> None:
    async def fault(request: web.Request) -> None:
        await asyncio.sleep(0.01)

    here.fake.faults.append(fault)
    assert await here.world.pull() == [True]


async def test_a_discovery_that_throttles_is_asked_again_when_it_says_so(here: Here) -> None:
    throttled = [web.json_response({}, status=429, headers={"Retry-After": "1800"}) for _ in range(RETRIES)]
    here.fake.fail(SEARCH, *throttled, page=3)
    here.clock.slept.clear()
    assert await here.world.pull() == [True]
    assert here.clock.slept == [1800.0]


def empty(corpus: Json) -> Json:
    return corpus | {"courses": [], "programs": []}


def only_programs(corpus: Json) -> Json:
    return corpus | {"courses": []}


def drop_many(corpus: Json) -> Json:
    return corpus | {"courses": corpus["courses"][: COURSES // 2]}


def swap(corpus: Json) -> Json:
    others = [course(f"Other+{n:03d}", run(f"other-{n:03d}"), indexed=(f"other-{n:03d}",)) for n in range(COURSES)]
    return corpus | {"courses": others}


@pytest.mark.parametrize("damage", [empty, only_programs, drop_many, swap], ids=lambda damage: damage.__name__)
async def test_a_whole_answer_that_cannot_be_right_is_held_back(here: Here, damage: Callable[[Json], Json]) -> None:
    before = await here.members()
    here.fake.corpus = damage(content(COURSES))
    assert await here.world.pull() == [False]
    why = await here.why(PullState.QUARANTINED)
    assert why is not None
    assert why.startswith("quarantined: ")
    assert await here.members() == before
    now = await status(here.world.registry, Settings())
    assert (now.status, now.quarantined) == ("degraded", 1)
    # Again and again it is the same, and nothing of it is ever let in.
    assert await here.world.pull() == [False]
    assert await here.members() == before
    here.fake.corpus = content(COURSES)
    assert await here.world.pull() == [True]
    assert await here.members() == before
    now = await status(here.world.registry, Settings())
    assert (now.status, now.quarantined) == ("ok", 0)


async def test_a_few_courses_that_are_gone_are_gone(here: Here) -> None:
    before = await here.members()
    here.fake.corpus = content(COURSES - 20)
    assert await here.world.pull() == [True]
    assert len(before - await here.members()) == 40
