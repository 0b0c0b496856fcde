"""The door: what is tried again and what is not, when it waits and for whom, and that no message tells a secret."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from indexer.source import SourceError
from indexer.source.upstream import HOUR_S, Door, GivenToken, Limits, Refused, Request, Tally, Tokens, Unwanted
from tests.discovery import CLIENT_ID, REVIEWS, SECRET, TOKEN, FakeDiscovery, RecordingClock, served

EMPTY: dict[str, Any] = {"courses": [], "programs": [], "pathways": [], "reviews": [], "customers": []}
PAGE: dict[str, Any] = {"count": 0, "next": None, "previous": None, "results": []}
ASK = Request("reviews", "GET", REVIEWS, {"page": "1", "page_size": "100"})


class Opened:
    """A door to a served fake, its tokens and its clock."""

    def __init__(self, fake: FakeDiscovery, limits: Limits, secret: str) -> None:
        self.fake = fake
        self.clock = RecordingClock()
        self.tokens = Tokens(fake.url + TOKEN, CLIENT_ID, secret, Limits(retries=limits.retries), self.clock)
        self.door = Door(fake.url + "/", limits, self.clock, self.tokens)
        self.tally = Tally()

    async def ask(self, request: Request = ASK) -> Any:
        return await self.door.ask(request, self.tally)


@asynccontextmanager
async def opened(secret: str = SECRET, **limits: Any) -> AsyncIterator[Opened]:
    async with served(EMPTY) as fake:
        here = Opened(fake, Limits(**limits), secret)
        try:
            yield here
        finally:
            await here.door.close()
            await here.tokens.close()


@pytest.fixture
async def here() -> AsyncIterator[Opened]:
    async with opened() as made:
        yield made


def saying(text: str, status: int = 200, **headers: str) -> web.Response:
    return web.Response(text=text, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


class TestTokens:
    async def test_are_asked_for_once_and_sent_as_jwt(self, here: Opened) -> None:
        assert await here.ask() == PAGE
        assert await here.ask() == PAGE
        assert [asked.path for asked in here.fake.asked] == [TOKEN, REVIEWS, REVIEWS]
        assert {asked.authorization for asked in here.fake.asked[1:]} == {"JWT very.secret.token-1"}
        assert here.fake.asked[0].authorization is None
        assert here.tally.requests == 2

    @pytest.mark.parametrize("life_s, renewed_after_s", [(600, 540), (60, 30)])
    async def test_are_renewed_before_they_end(self, here: Opened, life_s: int, renewed_after_s: int) -> None:
        here.fake.expires_in = life_s
        await here.ask()
        here.clock.advance(renewed_after_s - 1)
        await here.ask()
        assert here.fake.tokens_issued == 1
        here.clock.advance(1)
        await here.ask()
        assert here.fake.tokens_issued == 2

    async def test_that_are_refused_are_renewed_once(self, here: Opened) -> None:
        await here.ask()
        here.fake.token = "another"
        assert await here.ask() == PAGE
        assert here.fake.tokens_issued == 2
        assert here.tally.requests == 3
        assert here.clock.slept == []

    async def test_that_are_refused_again_end_the_request(self, here: Opened) -> None:
        here.fake.fail(REVIEWS, 401, 401, 401)
        with pytest.raises(Refused, match=r"^reviews: GET /api/v1/course_review/: 401 Unauthorized: ") as refused:
            await here.ask()
        assert refused.value.status == 401
        assert here.fake.times(REVIEWS) == 2

    async def test_can_be_handed_over_instead_and_are_then_never_renewed(self, here: Opened) -> None:
        here.fake.token = "handed-over"
        door = Door(here.fake.url, Limits(), here.clock, GivenToken("handed-over"))
        assert await door.ask(ASK, Tally()) == PAGE
        here.fake.token = "another"
        with pytest.raises(Refused) as refused:
            await door.ask(ASK, Tally())
        assert (refused.value.status, here.fake.tokens_issued) == (401, 0)
        assert "handed-over" not in str(refused.value)
        await door.close()

    async def test_are_one_for_all_who_wait(self, here: Opened) -> None:
        await asyncio.gather(*(here.ask() for _ in range(6)))
        assert here.fake.tokens_issued == 1
        here.fake.token = "another"
        await asyncio.gather(*(here.ask() for _ in range(4)))
        assert here.fake.tokens_issued == 2

    async def test_that_are_refused_late_end_no_younger_one(self, here: Opened) -> None:
        await here.ask()
        here.tokens.refuse("older")
        await here.ask()
        assert here.fake.tokens_issued == 1

    async def test_that_are_not_issued_end_the_request_before_it_is_sent(self) -> None:
        async with opened(retries=2) as here:
            here.fake.fail(TOKEN, 503, 503, 503)
            with pytest.raises(SourceError) as error:
                await here.ask()
        assert str(error.value) == ("access token: POST /oauth2/access_token: 503 Service Unavailable after 3 tries")
        assert here.fake.times(REVIEWS) == here.tally.requests == 0
        assert len(here.clock.slept) == 2

    async def test_are_not_asked_for_again_with_a_secret_that_is_wrong_nor_is_it_shown(self) -> None:
        async with opened(secret="wrong-and-confidential") as here:
            with pytest.raises(
                SourceError, match=r"^access token: POST /oauth2/access_token: 401 Unauthorized$"
            ) as error:
                await here.ask()
        assert not isinstance(error.value, Refused)
        assert here.fake.times(TOKEN) == 1

    @pytest.mark.parametrize(
        "answer, wanted",
        [
            ([], "access_token"),
            ({"expires_in": 5}, "access_token"),
            ({"access_token": "", "expires_in": 5}, "access_token"),
            ({"access_token": 7, "expires_in": 5}, "access_token"),
            ({"access_token": "a\nb", "expires_in": 5}, "access_token"),
            ({"access_token": "\u00fc", "expires_in": 5}, "access_token"),
            ({"access_token": "seen"}, "expires_in"),
            ({"access_token": "seen", "expires_in": 0}, "expires_in"),
            ({"access_token": "seen", "expires_in": True}, "expires_in"),
            ({"access_token": "seen", "expires_in": "5"}, "expires_in"),
        ],
    )
    async def test_of_another_shape_are_refused_unseen(self, here: Opened, answer: object, wanted: str) -> None:
        here.fake.spoil = lambda request, issued: answer
        with pytest.raises(SourceError, match=f"^access token: the answer has no {wanted}") as error:
            await here.ask()
        assert "seen" not in str(error.value)

    async def test_never_come_back_in_messages(self, here: Opened) -> None:
        async def echo(request: web.Request) -> web.Response | None:
            told = saying(request.headers.get("Authorization", ""), 403)
            return told if request.path == REVIEWS else None

        here.fake.faults.append(echo)
        with pytest.raises(Refused) as error:
            await here.ask()
        assert str(error.value) == "reviews: GET /api/v1/course_review/: 403 Forbidden: JWT ***"


class TestTryingAgain:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
    async def test_mends_what_passes(self, here: Opened, status: int) -> None:
        here.fake.fail(REVIEWS, status, status)
        assert await here.ask() == PAGE
        assert here.tally.requests == here.fake.times(REVIEWS) == 3

    async def test_waits_twice_as_long_each_time(self, here: Opened) -> None:
        here.fake.fail(REVIEWS, 500, 500, 500, 500)
        assert await here.ask() == PAGE
        assert len(here.clock.slept) == 4
        for waited, least in zip(here.clock.slept, (2, 4, 8, 16), strict=True):
            assert least <= waited <= 1.5 * least

    async def test_waits_by_chance_longer(self, here: Opened) -> None:
        waited = set()
        for _ in range(4):
            here.fake.fail(REVIEWS, 500)
            await here.ask()
            waited.add(here.clock.slept[-1])
        assert len(waited) > 1

    async def test_waits_at_most_some_minutes(self) -> None:
        async with opened(retries=12) as here:
            here.fake.fail(REVIEWS, *[500] * 12)
            await here.ask()
        assert here.clock.slept[6] < 192.1
        assert all(300 <= waited <= 450 for waited in here.clock.slept[8:])

    async def test_ends_with_a_sentence(self, here: Opened) -> None:
        here.fake.fail(REVIEWS, *[500] * 9)
        with pytest.raises(SourceError) as error:
            await here.ask()
        assert str(error.value) == (
            "reviews: GET /api/v1/course_review/: 500 Internal Server Error after 5 tries: " + '{"detail": "fault"}'
        )
        assert here.tally.requests == 5
        assert len(here.clock.slept) == 4

    async def test_ends_with_the_answer_to_the_last_try(self) -> None:
        async with opened(retries=1) as here:
            here.fake.fail(REVIEWS, saying("first", 500), saying('{"detail": "second"}', 503))
            with pytest.raises(Unwanted) as unwanted:
                await here.ask()
            assert (unwanted.value.status, unwanted.value.content) == (503, b'{"detail": "second"}')
            here.fake.fail(REVIEWS, saying('{"detail": "none"}', 404))
            with pytest.raises(Unwanted) as unwanted:
                await here.ask()
            assert (unwanted.value.status, unwanted.value.content) == (404, b'{"detail": "none"}')

    async def test_can_be_switched_off(self) -> None:
        async with opened(retries=0) as here:
            here.fake.fail(REVIEWS, 599)
            with pytest.raises(SourceError, match="course_review/: 599 after 1 try: "):
                await here.ask()
        assert here.clock.slept == []

    @pytest.mark.parametrize("status", [301, 302, 400, 403, 404, 410, 418, 422])
    async def test_is_not_for_what_stays(self, here: Opened, status: int) -> None:
        here.fake.fail(REVIEWS, status)
        with pytest.raises(Refused, match=rf"^reviews: GET /api/v1/course_review/: {status} ") as refused:
            await here.ask()
        assert refused.value.status == status
        assert refused.value.body == '{"detail": "fault"}'
        assert here.tally.requests == 1

    async def test_is_for_answers_that_are_not_json(self, here: Opened) -> None:
        here.fake.fail(REVIEWS, saying("<html>"), saying(""))
        assert await here.ask() == PAGE
        here.fake.fail(REVIEWS, *(saying("<html>  soon\n back </html>") for _ in range(5)))
        with pytest.raises(SourceError, match="200 OK, and a body that is not JSON after 5 tries: <html> soon back <"):
            await here.ask()

    async def test_shows_only_the_beginning_of_a_body(self, here: Opened) -> None:
        here.fake.fail(REVIEWS, saying("x" * 200, 403), saying("x" * 201, 403))
        with pytest.raises(Refused, match=r": x{200}$"):
            await here.ask()
        with pytest.raises(Refused, match=r": x{200}…$"):
            await here.ask()

    async def test_is_for_services_that_do_not_answer_in_time(self) -> None:
        async with opened(retries=1, timeout_s=0.05) as here:
            await here.tokens.current()
            with here.fake.held(), pytest.raises(SourceError, match=r"course_review/: no answer within 0.05 s after 2"):
                await here.ask()
            assert await here.ask() == PAGE

    async def test_is_for_connections_that_break_or_are_refused(self, here: Opened) -> None:
        async def hang_up(request: web.Request) -> None:
            if request.path == REVIEWS and here.fake.times(REVIEWS) == 1 and request.transport is not None:
                request.transport.close()

        here.fake.faults.append(hang_up)
        assert await here.ask() == PAGE
        assert here.tally.requests == 2
        assert 2 <= here.clock.slept[0] <= 3
        nowhere = Door("http://127.0.0.1:1", Limits(retries=1), here.clock)
        with pytest.raises(SourceError, match=r"ClientConnectorError: Cannot connect .* after 2 tries$"):
            await nowhere.ask(ASK, Tally())
        await nowhere.close()


async def test_an_answer_without_end_is_not_taken_in() -> None:
    async def endless(request: web.Request) -> web.StreamResponse | None:
        if request.path != REVIEWS:
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1000))

    async with opened(body_bytes=50_000) as here:
        here.fake.faults.append(endless)
        with pytest.raises(SourceError, match=r": an answer of more than 50000 bytes$"):
            await here.ask()


class TestPauses:
    @pytest.mark.parametrize(
        "status, header, waited",
        [
            (429, lambda now: "7", 7),
            (503, lambda now: "7", 7),
            (429, lambda now: formatdate(now + 30, usegmt=True), 30),
            (429, lambda now: "99999999", HOUR_S),
            (429, lambda now: formatdate(now + 99_999, usegmt=True), HOUR_S),
        ],
    )
    async def test_are_as_long_as_the_service_says(
        self, here: Opened, status: int, header: Callable[[float], str], waited: float
    ) -> None:
        here.fake.fail(REVIEWS, saying("slow down", status, Retry_After=header(here.clock.now_ms() / 1000)))
        assert await here.ask() == PAGE
        assert here.clock.slept == pytest.approx([waited])

    @pytest.mark.parametrize(
        "status, value",
        [
            *((429, "soon"), (429, "-5"), (429, ""), (500, "77"), (408, "77")),
            # Over already: no reason to hurry.
            *((429, "0"), (429, "Mon, 01 Jan 2024 00:00:00 GMT")),
        ],
    )
    async def test_are_the_usual_ones_where_it_does_not(self, here: Opened, status: int, value: str) -> None:
        here.fake.fail(REVIEWS, saying("slow down", status, Retry_After=value))
        await here.ask()
        assert len(here.clock.slept) == 1
        assert 2 <= here.clock.slept[0] <= 3

    async def test_hold_up_every_request(self) -> None:
        async with opened(retries=0) as here:
            here.fake.fail(REVIEWS, saying("slow down", 429, Retry_After="40"))
            with pytest.raises(SourceError, match="429 Too Many Requests after 1 try: slow down"):
                await here.ask()
            here.clock.advance(15)
            await here.ask(Request("other", "GET", "/api/v1/course_review/", ASK.params))
            assert here.clock.slept == pytest.approx([25])

    async def test_can_be_left_to_others(self) -> None:
        async with opened(retries=0, pauses=False) as here:
            here.fake.fail(REVIEWS, saying("slow down", 503, Retry_After="40"))
            with pytest.raises(Unwanted):
                await here.ask()
            assert await here.ask() == PAGE
            assert here.clock.slept == []

    async def test_are_not_made_shorter_by_later_ones(self) -> None:
        async with opened(retries=0) as here:
            here.fake.fail(REVIEWS, *(saying("", 429, Retry_After=value) for value in ("40", "1")))
            await here.tokens.current()
            with here.fake.held() as held:
                asking = [asyncio.create_task(here.ask()) for _ in range(2)]
                await held.arrived(2)
                held.release()
                await asyncio.gather(*asking, return_exceptions=True)
            await here.ask()
            assert sum(here.clock.slept) == pytest.approx(40)


class TestLimits:
    async def test_of_an_hour_make_requests_wait_until_the_first_is_an_hour_old(self) -> None:
        async with opened(requests_per_hour=3) as here:
            await here.ask()
            here.clock.advance(600)
            await here.ask()
            await here.ask()
            assert here.clock.slept == []
            await here.ask()
            assert here.clock.slept == pytest.approx([3000])
            await here.ask()
            assert here.clock.slept == pytest.approx([3000, 600])
            assert here.tally.requests == 5

    async def test_of_an_hour_hold_for_all_together_and_for_retries(self) -> None:
        async with opened(requests_per_hour=4, concurrency=3) as here:
            here.fake.fail(REVIEWS, 500)
            begun = here.clock.monotonic()
            await asyncio.gather(*(here.ask() for _ in range(8)))
            assert here.tally.requests == 9
            assert 2 * HOUR_S <= here.clock.monotonic() - begun < 3 * HOUR_S

    async def test_of_an_hour_can_be_none_and_tokens_take_nothing_from_them(self) -> None:
        async with opened() as here:
            await asyncio.gather(*(here.ask() for _ in range(300)))
            assert here.clock.slept == []
        async with opened(requests_per_hour=1) as here:
            await here.ask()
            assert here.fake.times(TOKEN) == 1
            assert here.clock.slept == []

    async def test_of_requests_at_once_are_kept_and_used(self) -> None:
        async with opened(concurrency=3) as here:
            await here.ask()
            with here.fake.held() as held:
                asking = [asyncio.create_task(here.ask()) for _ in range(9)]
                await held.arrived(3)
                for _ in range(200):
                    await asyncio.sleep(0)
                held.release()
                await asyncio.gather(*asking)
            assert here.fake.most_under_way == 3


class TestRequests:
    async def test_are_encoded_so_that_a_plus_stays_one(self, here: Opened) -> None:
        await here.ask(Request("r", "GET", REVIEWS, {**ASK.params, "keys": "a+b,ü &c=1"}))
        asked = here.fake.asked[-1]
        assert asked.query["keys"] == "a+b,ü &c=1"
        assert "a%2Bb" in asked.raw_query

    async def test_may_have_a_query_string_with_names_that_repeat_and_two_kinds_of_plus(self, here: Opened) -> None:
        await here.ask(Request("r", "GET", f"{REVIEWS}?page=1&page_size=100&keys=a+b%2Bc&keys=d"))
        assert here.fake.asked[-1].raw_query == "page=1&page_size=100&keys=a+b%2Bc&keys=d"

    async def test_carry_their_json_as_it_is(self, here: Opened) -> None:
        with pytest.raises(Refused, match=": 405 "):
            await here.ask(Request("r", "POST", REVIEWS, json=b'{"a": 1}'))
        assert here.fake.asked[-1].body == b'{"a": 1}'

    async def test_follow_no_redirect(self, here: Opened) -> None:
        async with served(EMPTY) as other:
            here.fake.fail(REVIEWS, saying("", 302, Location=other.url + REVIEWS))
            with pytest.raises(Refused, match=r"302 Found$"):
                await here.ask()
            assert other.asked == []

    async def test_open_the_door_again_after_it_was_closed(self, here: Opened) -> None:
        await here.ask()
        await here.door.close()
        await here.door.close()
        assert await here.ask() == PAGE
