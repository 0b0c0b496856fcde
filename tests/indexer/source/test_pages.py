"""Pages of search/all: followed to the end, checked one by one, and taken again where they repeat or move."""

from typing import Any

import pytest
from aiohttp import web

from indexer.source import SourceError, Unpullable
from indexer.source.pages import RETAKE_DELAY_S
from tests.discovery import (
    COURSES,
    SEARCH,
    SEARCH_V2,
    TOKEN,
    RecordingClock,
    served,
    source_over,
)
from tests.fakes import Json, course, uuid_of
from tests.indexer.source.pulling import Here, by_file, corpus_of, many, same


class TestPages:
    async def test_are_followed_to_the_end(self, here: Here) -> None:
        assert len(await here.keys({})) == 250
        assert [asked.query["page"] for asked in here.fake.asked if asked.path == SEARCH] == ["1", "2", "3"]

    async def test_that_fail_are_asked_for_again(self, here: Here) -> None:
        here.fake.fail(SEARCH, 500, 502, page=2)
        pulled = await here.pull({})
        assert len(pulled.members) == 250
        assert here.fake.times(SEARCH) == 5
        assert pulled.requests == here.fake.upstream()

    async def test_that_fail_for_good_fail_the_pull(self, here: Here) -> None:
        here.fake.fail(SEARCH, *[500] * 9, page=2)
        assert await here.refusal({}) == (
            'search/all page 2: POST /api/v1/search/all/: 500 Internal Server Error after 5 tries: {"detail": "fault"}'
        )
        assert here.fake.times(COURSES) == 0

    @pytest.mark.parametrize("status, page", [(403, 1), (404, 1), (400, 2)])
    async def test_that_are_refused_are_no_fault_of_the_filter(self, here: Here, status: int, page: int) -> None:
        here.fake.fail(SEARCH, status, page=page)
        with pytest.raises(
            SourceError, match=rf"^search/all page {page}: POST /api/v1/search/all/: {status} "
        ) as error:
            await here.pull({})
        assert not isinstance(error.value, Unpullable)
        assert here.fake.times(SEARCH) == page

    async def test_for_which_no_token_is_issued_are_no_fault_of_the_filter_either(self, here: Here) -> None:
        here.fake.fail(TOKEN, 400)
        with pytest.raises(SourceError, match=r"^access token: POST /oauth2/access_token: 400 Bad Request") as error:
            await here.pull({})
        assert not isinstance(error.value, Unpullable)

    async def test_that_end_too_early_fail_the_pull(self, here: Here) -> None:
        def truncate(request: web.Request, answer: Json) -> Json:
            return answer | {"next": None} if request.query.get("page") == "2" else answer

        here.fake.spoil = truncate
        assert await here.refusal({}) == "search/all page 2: `next` is null after 200 results, and `count` says 250"

    @pytest.mark.parametrize(
        "off, refusal",
        [
            (5, "search/all page 3: `next` is null after 250 results, and `count` says 255"),
            (-5, "search/all page 3: 250 results so far, and `count` says 245"),
        ],
    )
    async def test_that_do_not_add_up_fail_the_pull(self, here: Here, off: int, refusal: str) -> None:
        here.fake.spoil = lambda request, answer: (
            answer | {"count": answer["count"] + off} if request.path == SEARCH else answer
        )
        assert await here.refusal({}) == refusal

    async def test_that_repeat_are_taken_again_twice_and_then_refused(self, here: Here) -> None:
        kept: list[Any] = []

        def repeat(request: web.Request, answer: Json) -> Json:
            if request.path == SEARCH and request.query["page"] == "1":
                kept[:] = answer["results"]
            return answer | {"results": kept} if request.query.get("page") == "2" else answer

        here.fake.spoil = repeat
        assert await here.refusal({}) == (
            "search/all: results repeat or `count` moves between pages; taken 3 times, the last time 150 distinct "
            "keys were found, and `count` says 250"
        )
        assert here.clock.slept == [RETAKE_DELAY_S] * 2
        assert here.fake.times(SEARCH) == 2 + 2 + 3

    async def test_that_repeat_without_end_are_refused_in_the_end(self, here: Here) -> None:
        def endless(request: web.Request, answer: Json) -> Json:
            return answer | {"results": first, "next": "x"} if request.path == SEARCH else answer

        first = [made["search"] for made in here.fake.corpus["courses"][:100]]
        here.fake.spoil = endless
        assert "the last time 100 distinct keys were found, and `count` says 250" in await here.refusal({})
        assert here.fake.times(SEARCH) == 2 + 2 + 3

    async def test_that_grow_without_end_are_refused_in_the_end(self, here: Here) -> None:
        def growing(request: web.Request, answer: Json) -> Json:
            if request.path != SEARCH:
                return answer
            count = 100 * int(request.query["page"]) + 100
            return answer | {"results": first, "count": count, "next": "x"}

        first = [made["search"] for made in here.fake.corpus["courses"][:100]]
        here.fake.spoil = growing
        refusal = await here.refusal({})
        assert refusal == "search/all page 15: it goes on after 1500 results, and the first page's `count` was 200"

    async def test_that_repeat_once_pass_at_the_second_take(self, here: Here) -> None:
        def once(request: web.Request, answer: Json) -> Json:
            if here.fake.times(SEARCH) == 2:
                answer["results"][0] = answer["results"][1]
            return answer

        here.fake.spoil = once
        assert len(set(await here.keys({}))) == 250
        assert here.clock.slept == [RETAKE_DELAY_S]

    async def test_whose_count_moves_pass_in_the_end_if_keys_and_count_agree(self, here: Here) -> None:
        def moving(request: web.Request, answer: Json) -> Json:
            return answer | {"count": 251} if request.query.get("page") == "1" and request.path == SEARCH else answer

        here.fake.spoil = moving
        assert len(await here.keys({})) == 250
        assert here.clock.slept == [RETAKE_DELAY_S] * 2

    @pytest.mark.parametrize(
        "change, refusal",
        [
            ({"count": "250"}, "`count` is '250', and not a number of results"),
            ({"count": True}, "`count` is True, and not a number of results"),
            ({"count": -1}, "`count` is -1, and not a number of results"),
            ({"next": 5}, "`next` is 5, and neither null nor a text"),
            ({"results": None}, "`results` is not a list of objects"),
            ({"results": [{}, 5]}, "`results` is not a list of objects"),
            ({"results": [{}] * 101}, "101 results, and at most 100 were asked for"),
            ({"results": [{}]}, "BadDocument: document None: its key is None; "),
            ({"results": [{"key": "a", "aggregation_key": "b"}]}, "BadDocument: document 'a': its aggregation_key is"),
            ({"results": []}, "0 results of 100, 0 so far, and `count` says 250"),
        ],
    )
    async def test_of_another_shape_fail_the_pull(self, here: Here, change: Json, refusal: str) -> None:
        here.fake.spoil = lambda request, answer: answer | change if request.path == SEARCH else answer
        assert (await here.refusal({})).startswith(f"search/all page 1: {refusal}")

    async def test_that_are_no_objects_fail_the_pull(self, here: Here) -> None:
        here.fake.spoil = lambda request, answer: [] if request.path == SEARCH else answer
        assert await here.refusal({}) == "search/all page 1: the answer is [], and not an object"

    async def test_that_are_short_and_not_the_last_fail_the_pull(self, here: Here) -> None:
        def short(request: web.Request, answer: Json) -> Json:
            return answer | {"results": answer["results"][:-1]} if request.query.get("page") == "1" else answer

        here.fake.spoil = short
        assert await here.refusal({}) == "search/all page 1: 99 results of 100, 99 so far, and `count` says 250"

    async def test_that_promise_more_than_there_is_fail_the_pull(self, here: Here) -> None:
        def endless(request: web.Request, answer: Json) -> Json:
            return answer | {"next": "http://x/?page=9"} if request.path == SEARCH else answer

        here.fake.spoil = endless
        assert await here.refusal({}) == ("search/all page 4: it is empty after 250 results, and `next` is not null")

    async def test_are_asked_of_the_configured_host_whatever_next_says(self, here: Here) -> None:
        async with served(many(0)) as other:
            here.fake.next_base = other.url
            assert len(await here.keys({})) == 250
            assert other.asked == []

    async def test_that_never_come_fail_the_pull(self, corpus: Json) -> None:
        async with (
            served(corpus) as fake,
            source_over(fake, RecordingClock(), timeout_s=0.1, retries=1) as source,
        ):
            await source.pull({"key": "none"})
            with (
                fake.held(),
                pytest.raises(SourceError, match=r"^search/all page 1: POST .*: no answer within 0.1 s after 2 tries"),
            ):
                await source.pull({})

    async def test_wait_as_long_as_discovery_says(self, here: Here) -> None:
        here.fake.fail(SEARCH, web.Response(status=429, headers={"Retry-After": "1800"}), page=2)
        pulled = await here.pull({})
        assert here.clock.slept == pytest.approx([1800])
        assert pulled.requests == here.fake.upstream()


class TestBeyondTheWindow:
    @pytest.fixture
    def corpus(self) -> Json:
        made = course("A+1")
        keys = [f"run {i:05}" for i in range(10_049)]
        made["runs"] = [
            {"key": key, "uuid": uuid_of(key), "content_type": "courserun", "aggregation_key": "courserun:A+1"}
            for key in keys
        ]
        return corpus_of(made)

    async def test_results_are_walked_by_search_after(self, here: Here, corpus: Json) -> None:
        pulled = await here.pull({})
        assert same(pulled, by_file(corpus, {}))
        assert len(pulled.members) == 10_050
        assert here.fake.times(SEARCH) == 1
        # After the last results `next` still leads on, to an empty page.
        assert here.fake.times(SEARCH_V2) == 102
        assert pulled.requests == here.fake.upstream() == 1 + 102 + 1 + 1

    async def test_begins_where_a_count_may_be_cut_off(self, here: Here, corpus: Json) -> None:
        del corpus["courses"][0]["runs"][9_999:]
        assert len((await here.pull({})).members) == 10_000
        assert here.fake.times(SEARCH_V2) > 0
        here.fake.asked.clear()
        del corpus["courses"][0]["runs"][9_998:]
        assert len((await here.pull({})).members) == 9_999
        assert here.fake.times(SEARCH_V2) == 0

    async def test_a_count_that_is_cut_off_fails_the_pull(self, here: Here) -> None:
        here.fake.spoil = lambda request, answer: (
            answer | {"count": min(answer["count"], 10_000)} if request.path in (SEARCH, SEARCH_V2) else answer
        )
        assert await here.refusal({}) == "search/all v2 page 101: 10050 results so far, and `count` says 10000"

    async def test_a_next_without_search_after_fails_the_pull(self, here: Here) -> None:
        here.fake.spoil = lambda request, answer: (
            answer | {"next": "http://x/?page=2"} if request.path == SEARCH_V2 else answer
        )
        assert await here.refusal({}) == "search/all v2 page 2: `next` of the page before it has no search_after"
