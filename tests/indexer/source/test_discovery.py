"""The discovery source: the file source's results over the same corpus, whole or not at all, and at known cost."""

import asyncio
import json
import math
from pathlib import Path

import pytest
from aiohttp import web

from indexer.source import SourceError
from indexer.source.discovery import DiscoverySource
from indexer.source.shelf import WINDOW_MS
from indexer.wiring import open_source
from sidecar.settings import Settings, SourceSettings
from tests.discovery import (
    COURSES,
    PROGRAMS,
    REVIEWS,
    SEARCH,
    TOKEN,
    RecordingClock,
    served,
    source_over,
)
from tests.fakes import Json, course, program, run, uuid_of
from tests.indexer.source.pulling import FORCED, Here, by_file, many, same

GOLDEN = Path(__file__).parent.parent.parent / "contract" / "golden"


class TestEquality:
    """With the file source, in items, warnings and all."""

    @pytest.fixture
    def corpus(self) -> Json:
        found: Json = json.loads((GOLDEN / "corpus.json").read_text())
        return found

    async def test_of_every_recorded_query(self, here: Here, corpus: Json) -> None:
        queries = json.loads((GOLDEN / "definitions.json").read_text())["queries"]
        assert any("restricted_runs_allowed" in content_filter for content_filter in queries.values())
        for content_filter in queries.values():
            assert same(await here.pull(content_filter), by_file(corpus, content_filter)), content_filter

    @pytest.mark.parametrize(
        "content_filter",
        [
            {},
            {"content_type": ["courserun", "program"], "typo": 1, "subjects": ["x"]},
            {"key": [], "org": "edX"},
            {"key": [], "typo": []},
            {"org__exclude": [], "content_type": "course"},
            {"key": ["no+such"], FORCED: ["course:edX+RES1", "course:edX+DS000", "course:None", "course:edX+RES1"]},
            {"key": [], FORCED: ["course:edX+RES1"], "restricted_runs_allowed": {"course:x": ["none"]}},
            {"org": "edX", FORCED: ["course:edX+DS000"]},
            {
                "org": "MITx",
                FORCED: ["course:edX+RES1", "course:edX+UNICORN"],
                "restricted_runs_allowed": {"course:edX+RES1": ["course-v1:edX+RES1+3T2026"]},
            },
            {"restricted_runs_allowed": {"course:edX+RES1": ["course-v1:edX+RES1+3T2026"]}},
            {"restricted_runs_allowed": {"course:edX+RES1": []}},
        ],
    )
    async def test_of_others(self, here: Here, corpus: Json, content_filter: Json) -> None:
        assert same(await here.pull(content_filter), by_file(corpus, content_filter))

    async def test_of_a_filter_that_forces_what_is_not_let_in(self, here: Here, corpus: Json) -> None:
        corpus["courses"].append(course("B+1", course_type="bootcamp-2u"))
        content_filter = {"key": ["no+such"], FORCED: ["course:B+1"]}
        pulled = await here.pull(content_filter)
        assert same(pulled, by_file(corpus, content_filter))
        assert pulled.warnings == ("force-included course 'B+1' does not exist",)
        assert here.fake.times(COURSES) == 0

    async def test_of_a_source_that_looks_for_no_restricted_runs(self, corpus: Json) -> None:
        content_filter = {"restricted_runs_allowed": {"course:edX+RES1": ["course-v1:edX+RES1+3T2026"]}}
        async with (
            served(corpus) as fake,
            source_over(fake, RecordingClock(), restricted_runs=False) as source,
        ):
            pulled = await source.pull(content_filter)
            assert same(pulled, by_file(corpus, content_filter, restricted_runs=False))
            assert not any("include_restricted" in asked.query for asked in fake.asked)


class TestFullDocuments:
    async def test_are_fetched_fifty_a_call_and_only_of_what_is_let_in(self, here: Here, corpus: Json) -> None:
        corpus["courses"].append(course("B+1", course_type="bootcamp-2u"))
        corpus["programs"] = [program(f"P{i}") for i in range(51)] + [program("out")]
        corpus["programs"][-1]["search"]["product_source"] = "other"
        await here.pull({})
        asked = [a.query["keys"].split(",") for a in here.fake.asked if a.path == COURSES]
        assert sorted(map(len, asked)) == [50] * 5
        assert sorted(key for keys in asked for key in keys) == [f"edX+{i:04}" for i in range(250)]
        uuids = [a.query["uuids"].split(",") for a in here.fake.asked if a.path == PROGRAMS]
        assert sorted(map(len, uuids)) == [1, 50]

    async def test_are_paged_where_discovery_gives_fewer_than_asked_for(self, here: Here) -> None:
        def capped(request: web.Request, answer: Json) -> Json:
            if request.path != COURSES:
                return answer
            offset = int(request.query["offset"])
            end = min(offset + 20, answer["count"])
            more = str(request.url.with_query({**request.query, "offset": str(end)})) if end < answer["count"] else None
            return answer | {"results": answer["results"][:20], "next": more}

        here.fake.spoil = capped
        pulled = await here.pull({"key": [f"edX+{i:04}" for i in range(50)]})
        assert [a.query["offset"] for a in here.fake.asked if a.path == COURSES] == ["0", "20", "40"]
        assert all(b"course_run_keys" in item.text for item in pulled.members)

    async def test_that_do_not_add_up_fail_the_pull(self, here: Here) -> None:
        here.fake.spoil = lambda request, answer: answer | {"count": 49} if request.path == COURSES else answer
        assert "page 1: 50 results so far, and `count` says 49" in await here.refusal({})

    async def test_that_were_not_asked_for_fail_the_pull(self, here: Here) -> None:
        here.fake.spoil = lambda request, answer: answer | {"count": 250} if request.path == COURSES else answer
        assert await here.refusal({"key": "edX+0001"}) == "courses/ from edX+0001: 250 results, and 1 were asked for"

    @pytest.mark.parametrize("full", [{"title": "no key"}, {"key": 5}, {"key": ""}])
    async def test_that_do_not_name_themselves_fail_the_pull(self, here: Here, full: Json) -> None:
        here.fake.spoil = lambda request, answer: (
            answer | {"count": 1, "next": None, "results": [full]} if request.path == COURSES else answer
        )
        assert "BadDocument: key is" in await here.refusal({"key": "edX+0001"})

    async def test_whose_runs_are_none_fail_the_pull(self, here: Here, corpus: Json) -> None:
        corpus["courses"][0]["full"]["course_runs"] = [{"key": None}]
        assert await here.refusal({}) == (
            "course 'edX+0000': BadDocument: course 'edX+0000': a run in course_runs has the key None"
        )

    async def test_are_fetched_once_in_a_window(self, here: Here) -> None:
        first = await here.pull({})
        again = await here.pull({"key": "edX+0001"})
        assert (first.requests, again.requests) == (3 + 5 + 1, 1)
        here.clock.advance(WINDOW_MS / 1000 + 1)
        assert (await here.pull({"key": "edX+0001"})).requests == 3

    async def test_are_fetched_anew_for_a_pull_that_wants_younger_ones(self, here: Here, corpus: Json) -> None:
        await here.pull({"key": "edX+0001"})
        corpus["courses"][1]["full"]["title"] = "Changed"
        here.clock.advance(1)
        (old,) = (await here.pull({"key": "edX+0001"})).members
        pulled = await here.pull({"key": "edX+0001"}, since_ms=here.clock.now_ms())
        assert b"Changed" not in old.text
        assert b"Changed" in pulled.members[0].text
        assert pulled.requests == 3

    async def test_are_fetched_once_by_pulls_at_the_same_time(self, here: Here) -> None:
        pulled = await asyncio.gather(*(here.pull({}) for _ in range(3)))
        assert here.fake.times(COURSES) == 5
        assert here.fake.times(REVIEWS) == 1
        assert here.fake.times(TOKEN) == 1
        assert sum(p.requests for p in pulled) == here.fake.upstream() == 3 * 3 + 5 + 1
        assert pulled[0].members == pulled[1].members == pulled[2].members

    async def test_with_restricted_runs_are_others(self, here: Here, corpus: Json) -> None:
        corpus["courses"] = [course("A+1", run("a1"), run("x1", restricted=True), indexed=("a1", "x1"))]
        allowing = {"restricted_runs_allowed": {"course:A+1": ["x1"]}}
        pulled = await here.pull(allowing)
        assert same(pulled, by_file(corpus, allowing))
        assert pulled.requests == here.fake.upstream() == 2 * (1 + 1) + 1
        shown = [a.query.get("include_restricted") for a in here.fake.asked if a.path in (SEARCH, COURSES)]
        assert shown == [None, None, "custom-b2b-enterprise", "custom-b2b-enterprise"]
        assert (await here.pull(allowing)).requests == 2

    @pytest.mark.parametrize("where", ["full", "search"])
    async def test_hide_restricted_runs_even_if_discovery_shows_them_unasked(
        self, here: Here, corpus: Json, where: str
    ) -> None:
        made = course("A+1", run("a1"), run("x1", restricted=True), indexed=("a1", "x1"))
        if where == "search":
            del made["full"]["course_runs"]
        corpus["courses"] = [made]
        wanted = by_file(corpus, {})

        def shows(request: web.Request, answer: Json) -> Json:
            if request.path == COURSES:
                return answer | {"results": [made["full"]]}
            return (
                answer | {"count": 3, "results": [made["search"], *made["runs"]]}
                if "page" in request.query and (request.path == SEARCH)
                else answer
            )

        here.fake.spoil = shows
        assert same(await here.pull({}), wanted)

    async def test_that_courses_does_not_have_leave_search_alone_and_one_warning(
        self, here: Here, corpus: Json
    ) -> None:
        for i in range(7):
            corpus["courses"][i]["full"] = None
        pulled = await here.pull({})
        assert pulled.warnings == (
            (
                "courses/ does not have 7 of 250 that search/all has; they are shown with what search/all says of "
                "them: edX+0000, edX+0001, edX+0002, edX+0003, edX+0004, …"
            ),
        )
        assert json.loads(pulled.members[0].text) == {"content": corpus["courses"][0]["search"], "review": None}

    @pytest.mark.parametrize("missing, of, fails", [(10, 19, True), (10, 20, False), (9, 9, False), (11, 11, True)])
    async def test_that_mostly_do_not_exist_fail_the_pull(
        self, here: Here, corpus: Json, missing: int, of: int, fails: bool
    ) -> None:
        corpus["courses"] = many(of)["courses"]
        full = [made["full"] for made in corpus["courses"]]
        for made in corpus["courses"][:missing]:
            made["full"] = None
        if fails:
            assert await here.refusal({}) == f"courses/ does not have {missing} of {of} that search/all has"
            for made, document in zip(corpus["courses"], full, strict=True):
                made["full"] = document
        assert bool((await here.pull({})).warnings) is not fails

    async def test_of_reviews_are_paged_and_whole(self, here: Here, corpus: Json) -> None:
        corpus["reviews"] = [{"course_key": f"edX+{i:04}", "reviews_count": i} for i in range(1001)]
        pulled = await here.pull({})
        assert here.fake.times(REVIEWS) == 2
        assert json.loads(pulled.members[7].text)["review"] == {"course_key": "edX+0007", "reviews_count": 7}
        assert same(pulled, by_file(corpus, {}))
        here.clock.advance(WINDOW_MS / 1000 + 1)
        here.fake.spoil = lambda request, answer: answer | {"next": None} if request.path == REVIEWS else answer
        assert await here.refusal({}) == (
            "course_review/ page 1: `next` is null after 1000 results, and `count` says 1001"
        )

    async def test_of_reviews_are_not_fetched_without_a_course(self, here: Here, corpus: Json) -> None:
        corpus["programs"] = [program("P")]
        corpus["reviews"] = [{"course_key": uuid_of("P")}]
        assert len((await here.pull({"content_type": "program"})).members) == 1
        assert here.fake.times(REVIEWS) == 0
        assert same(await here.pull({}), by_file(corpus, {}))


class TestCost:
    @pytest.mark.parametrize("courses, programs, reviews", [(0, 0, 0), (1, 1, 1), (100, 50, 1000), (101, 51, 1001)])
    async def test_is_what_the_module_says(
        self, here: Here, corpus: Json, courses: int, programs: int, reviews: int
    ) -> None:
        corpus["courses"] = many(courses)["courses"]
        corpus["programs"] = [program(f"P{i}") for i in range(programs)]
        corpus["reviews"] = [{"course_key": f"edX+{i:04}"} for i in range(reviews)]
        pages = max(1, math.ceil((courses + programs) / 100))
        documents = math.ceil(courses / 50) + math.ceil(programs / 50)
        listed = max(1, math.ceil(reviews / 1000)) if courses else 0
        pulled = await here.pull({})
        assert pulled.requests == here.fake.upstream() == pages + documents + listed

    async def test_stays_in_the_budget(self, corpus: Json) -> None:
        clock = RecordingClock()
        async with served(corpus) as fake, source_over(fake, clock, requests_per_hour=5) as source:
            assert (await source.pull({})).requests == 9
            assert clock.steady_s == pytest.approx(3600)

    async def test_never_goes_beyond_the_requests_at_once(self, corpus: Json) -> None:
        async with served(corpus) as fake, source_over(fake, RecordingClock(), concurrency=2) as source:
            await source.pull({"key": "none"})
            with fake.held() as held:
                pulling = [asyncio.create_task(source.pull({})) for _ in range(5)]
                await held.arrived(2)
                held.release()
                await asyncio.gather(*pulling)
            assert fake.most_under_way == 2


async def test_the_settings_choose_it(corpus: Json) -> None:
    section = SourceSettings(kind="discovery", url="http://127.0.0.1:1", oauth_url="http://127.0.0.1:1/t", retries=0)
    source = open_source(Settings(source=section), RecordingClock())
    assert isinstance(source, DiscoverySource)
    with pytest.raises(SourceError, match=r"^access token: POST /t: ClientConnectorError: Cannot connect to host"):
        await source.pull({})
    assert await source.customer(uuid_of("Acme")) is None
    await source.close()
