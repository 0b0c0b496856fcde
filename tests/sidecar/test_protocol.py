"""With the fast lane and without it, the same bytes in give the same bytes out, however they arrive.

`LANE_EXAMPLES=20000 python -m pytest tests/sidecar/test_protocol.py` tries more of them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sidecar.keys import parse
from tests.sidecar.lanes import (
    C0,
    C1,
    DUE,
    NOW_MS,
    ONE,
    RUN,
    TWO,
    Rig,
    Transport,
    authorized,
    page,
    question,
    settled,
    undated,
    world,
)
from tests.tokens import jwk, jwks

EXAMPLES: Final = int(os.environ.get("LANE_EXAMPLES", "600"))
GOOD: Final = authorized()
# What a client sends again and again, so that the lane has learned it before a script begins.
LEARNED: Final = (GOOD, authorized("learner_c0"), authorized("operator", exp=NOW_MS // 1000 + 5))
FIELDS: Final = (
    "User-Agent: python-requests/2.32.3",
    "Accept-Encoding: gzip, deflate",
    "Accept: application/json",
    "Accept: application/xml;q=0.9, */*;q=0.1",
    "Accept: text/html",
    "Connection: keep-alive",
    "Connection: close",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Keep-Alive: timeout=1",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length: 18446744073709551617",
    "content-length: 7",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Expect: 100-continue",
    "TE: trailers",
    "X-Min-Generation: 1",
    "X-Min-Generation: x",
    "Origin: https://portal.example.org",
    "Cookie: edx-jwt-cookie-header-payload=a.b; edx-jwt-cookie-signature=c",
    "USE-JWT-COOKIE: true",
    "Authorization: Bearer x",
    "Host: another",
    "Host:",
    "X-Empty:",
    "X-Space : a",
    " folded",
    "\tfolded",
    "X-Null: a\x00b",
    "X-Bare: a\rb",
    "X-Feed: a\nX-Min-Generation: 99",
    "X-Latin: \xff",
    "nocolon",
    ": noname",
)
QUERIES: Final = (
    "course_run_ids=edX%2BA",
    "course_run_ids=edX+B",
    f"course_run_ids={RUN}",
    "course_run_ids=a&course_run_ids=EDX%2Ba",
    "program_uuids=x,edX%2BA&get_catalog_list=1",
    "course_run_ids=edX%2BA&format=json",
    "course_run_ids=edX%2BA&f%6frmat=xml",
    "course_run_ids=caf\u00e9",
    "course_run_ids=a\\b",
    "course_run_ids=a b",
    "course_run_ids=a#b?c",
    "a?course_run_ids=edX%2BA",
    "",
)
PATHS: Final = (
    *(f"/api/v{v}/enterprise-catalogs/{uuid}/contains_content_items/" for v in (1, 2) for uuid in (ONE, TWO, DUE)),
    *(f"/api/v1/enterprise-customer/{uuid}/contains_content_items/" for uuid in (C0, C1, UUID(int=9))),
    f"/api/v1/enterprise-catalogs/{str(ONE).upper()}/contains_content_items/",
    f"/api/v1/enterprise-catalogs/{ONE}/contains_content_items",
    f"/api/v1/enterprise-catalogs/{ONE}/contains_content_items.json",
    f"/api/v1/enterprise-customer/{C0}/filter_content_items/",
    f"/api/v1/enterprise-catalogs/{ONE}/get_content_metadata/",
    f"/api/v1/enterprise-catalogs/{ONE}/get_content_metadata",
    f"//api/v1/enterprise-catalogs/{ONE}/contains_content_items/",
    f"/api/v1/../v1/enterprise-catalogs/{ONE}/contains_content_items/",
    f"http://sidecar:18160/api/v1/enterprise-catalogs/{ONE}/contains_content_items/",
    "*",
    "/",
)
plain = st.one_of(
    st.builds(
        question,
        st.sampled_from((ONE, TWO)),
        st.sampled_from(QUERIES[:5]),
        headers=st.sampled_from(LEARNED),
        v=st.sampled_from((1, 2)),
    ),
    st.builds(
        page,
        st.sampled_from((ONE, TWO)),
        st.sampled_from(("page_size=1", "page_size=1&page=2", "page=1", "page=9", "traverse_pagination=1", "a=b")),
        headers=st.sampled_from(LEARNED),
        v=st.sampled_from((1, 2)),
    ),
)


def written(
    method: str, path: str, query: str, version: str, fields: list[str], end: str, body: str, *, host: bool
) -> bytes:
    """A request line by line, sound or not."""
    lines = [f"{method} {path}?{query} {version}", *(["Host: sidecar"] if host else []), *fields, "", ""]
    return (end.join(lines) + body).encode("latin-1", "replace")


odd = st.builds(
    written,
    st.sampled_from(("GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "get", "G\tET", "PRI", "CONNECT")),
    st.sampled_from(PATHS),
    st.sampled_from(QUERIES),
    st.sampled_from(("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1")),
    st.lists(st.sampled_from((*FIELDS, GOOD.strip())), max_size=5),
    st.sampled_from(("\r\n", "\r\n", "\r\n", "\n")),
    st.sampled_from(("", "", "", "hello", "5\r\nhello\r\n0\r\n\r\n", "\r\n", "GET / HTTP/1.1\r\n")),
    host=st.sampled_from((True, True, True, False)),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A plain question with a few bytes changed, left out or put in."""
    data = bytearray(draw(plain))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(("flip", "cut", "insert", "double"))):
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place : place + draw(st.integers(1, 4))]
            case "insert":
                data[place:place] = draw(st.sampled_from((b"\r\n", b"\n", b"\r", b" ", b"\0", b"\r\n\r\n", b"%", b"?")))
            case _:
                data[place:place] = data[max(0, place - 20) : place]
    return bytes(data)


requests = st.one_of(plain, plain, odd, damaged(), st.binary(max_size=40))


class Step:
    """Something that happens to the sidecar between two reads."""

    def __init__(self, name: str, do: Callable[[Rig], None]) -> None:
        self.name = name
        self.do = do

    def __repr__(self) -> str:
        return self.name


def _let_time_pass(rig: Rig) -> None:
    rig.clock.wall_ms += 5_000


STEPS: Final = (
    Step("swap", lambda rig: rig.serve(world(swapped=rig.generation % 2 == 1))),
    Step("time", _let_time_pass),
    Step("keys", lambda rig: setattr(rig.keyring, "keys", parse(jwks(jwk("another"))))),
    Step("unload", lambda rig: setattr(rig.current, "generation", None)),
)


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[bytes | Step, bool]]:
    """Reads of one connection, and what happens between them; with each whether it is let settle."""
    pieces: list[bytes | Step] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            pieces.append(draw(plain))
            continue
        data = b"".join(draw(st.lists(requests, min_size=1, max_size=3)))
        cuts = draw(st.lists(st.integers(0, len(data)), max_size=4))
        if draw(st.integers(0, 9)) == 0:
            cuts = list(range(0, len(data), draw(st.integers(1, 7))))
        ends = sorted({*cuts, len(data)} - {0})
        pieces += [data[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]
        if draw(st.integers(0, 4)) == 0:
            pieces.append(draw(st.sampled_from(STEPS)))
    return [(piece, draw(st.sampled_from((True, True, True, False)))) for piece in pieces]


async def played(script: list[tuple[bytes | Step, bool]], *, lane: bool) -> tuple[bytes, bool, int]:
    """What one connection answers, whether it was closed, and how many answers were the lane's."""
    rig = await Rig().start()
    taught = await rig.connection(lane=lane)
    for headers in LEARNED:
        for _ in range(3):
            await rig.send(taught, question(headers=headers))
    before = rig.lane.answers
    connection = await rig.connection(lane=lane)
    for piece, settle in script:
        if isinstance(piece, Step):
            await settled()
            piece.do(rig)
        else:
            await rig.send(connection, piece, settle=settle)
    await settled()
    await settled()
    closed = connection.closed
    for transport in (taught, connection):
        rig.end(transport)
    await settled()
    await rig.runner.cleanup()
    return undated(bytes(connection.written)), closed, rig.lane.answers - before


def test_the_lane_changes_no_byte_of_what_is_answered() -> None:
    taken = 0

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(scripts())
    def check(script: list[tuple[bytes | Step, bool]]) -> None:
        nonlocal taken
        answered, closed, lane = loop.run(played(script, lane=True))
        event(f"answers of the lane: {lane}")
        taken += lane
        assert (answered, closed) == loop.run(played(script, lane=False))[:2]

    with asyncio.Runner() as loop:
        check()
    # Or the lane would only be compared with itself.
    assert taken > EXAMPLES / 4


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = await Rig(authenticated=False).start()
    yield rig
    await rig.runner.cleanup()


async def warm(rig: Rig) -> Transport:
    """A connection whose questions the lane takes."""
    connection = await rig.connection(lane=True)
    for _ in range(2):
        await rig.send(connection, question())
    assert await rig.taken(connection, question())
    return connection


async def test_half_a_request_is_never_answered(rig: Rig) -> None:
    connection = await warm(rig)
    data = question()
    for place in range(1, len(data)):
        before = rig.lane.answers
        assert await rig.ask(connection, data[:place]) == b""
        assert (await rig.ask(connection, data[place:])).endswith(b"true}")
        assert rig.lane.answers == before
        # Whatever the pieces were, it is known again where a request begins once one has come in one piece.
        await rig.send(connection, data)
        assert await rig.taken(connection, data)


async def test_what_looks_like_a_question_within_a_body_is_none(rig: Rig) -> None:
    connection = await warm(rig)
    data = question()
    path = f"/api/v1/enterprise-customer/{C0}/filter_content_items/"
    head = f"POST {path} HTTP/1.1\r\nHost: sidecar\r\nContent-Length: {2 * len(data)}\r\n\r\n".encode()
    before = rig.lane.answers
    assert await rig.ask(connection, head) == b""
    assert await rig.ask(connection, data) == b""
    assert b" 415 " in await rig.ask(connection, data)
    assert rig.lane.answers == before


async def test_questions_that_come_at_once_are_answered_in_order(rig: Rig) -> None:
    connection = await warm(rig)
    yes, no = question(ONE), question(TWO)
    answers = (await rig.ask(connection, yes + no + yes)).split(b"HTTP/1.1 200 OK")[1:]
    assert [answer.rpartition(b":")[2] for answer in answers] == [b"true}", b"false}", b"true}"]


async def test_a_question_behind_one_that_is_under_way_waits_for_it(rig: Rig) -> None:
    connection = await warm(rig)
    ordinary = question().replace(b"Accept", b"X-Another: 1\r\nAccept")
    await rig.send(connection, ordinary, settle=False)
    before = rig.lane.answers
    await rig.send(connection, question(TWO))
    assert rig.lane.answers == before
    assert undated(bytes(connection.written)).endswith(b"false}")


async def test_a_client_that_does_not_read_is_not_answered_without_end(rig: Rig) -> None:
    connection = await warm(rig)
    connection.protocol.pause_writing()
    before = len(connection.written)
    for _ in range(200):
        if connection.reading:
            await rig.send(connection, question())
    assert not connection.reading
    assert len(connection.written) < before + 2 * 300
    connection.protocol.resume_writing()
    for _ in range(200):
        await settled()
    assert connection.reading


async def test_a_page_that_nobody_reads_ends_its_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await warm(rig)
    for _ in range(2):
        await rig.send(connection, page())
    protocol: Any = connection.protocol
    for reads in (True, False):
        monkeypatch.setattr(connection, "writelines", lambda _: protocol.pause_writing())
        assert not connection.closed
        before = rig.lane.answers
        protocol.data_received(page())
        assert rig.lane.answers == before + 1
        assert protocol._unread is not None
        if reads:
            protocol.resume_writing()
            assert protocol._unread is None
        else:
            protocol._give_up()
            assert connection.closed
    value = rig.metrics.registry.get_sample_value
    assert value("catalog_sidecar_broken_answers_total", {"reason": "unread"}) == 1
    rig.end(connection)
    assert protocol._unread is None


async def test_a_page_that_is_being_sent_is_waited_for_at_the_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await warm(rig)
    for _ in range(2):
        await rig.send(connection, page())
    protocol: Any = connection.protocol
    monkeypatch.setattr(connection, "writelines", lambda _: protocol.pause_writing())
    protocol.data_received(page())
    protocol.close()
    ending = asyncio.create_task(protocol.shutdown(60.0))
    await settled()
    assert not connection.closed
    protocol.resume_writing()
    await ending
    assert connection.closed


async def test_a_defect_of_the_lane_is_left_to_the_handler(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await warm(rig)
    monkeypatch.setattr(rig.lane, "answer", lambda _: 1 / 0)
    assert (await rig.ask(connection, question())).endswith(b"true}")


async def test_a_connection_that_the_lane_answers_on_is_not_idle(rig: Rig) -> None:
    connection = await warm(rig)
    protocol: Any = connection.protocol
    protocol._next_keepalive_close_time = 0.0
    await rig.send(connection, question())
    protocol._process_keepalive()
    assert not connection.closed
    protocol._next_keepalive_close_time = 0.0
    protocol._process_keepalive()
    assert connection.closed


async def test_a_connection_that_is_being_closed_answers_nothing_more(rig: Rig) -> None:
    connection = await warm(rig)
    protocol: Any = connection.protocol
    protocol.close()
    assert await rig.ask(connection, question()) == b""
