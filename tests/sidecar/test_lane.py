"""What the fast lane takes, what it leaves to the ordinary handler, and for how long it believes what it knows."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from prometheus_client import generate_latest

from sidecar import lane as module
from sidecar import places
from sidecar.contract.index import Index
from sidecar.keys import parse
from tests.sidecar.lanes import (
    C0,
    C1,
    DUE,
    HIDDEN,
    NOW_MS,
    ONE,
    RUN,
    TWO,
    Rig,
    authorized,
    page,
    question,
    undated,
    world,
)
from tests.tokens import jwk, jwks
from tests.trees import Selection, World

ROUTE = "/api/v1/enterprise-catalogs/{uuid}/contains_content_items/"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = await Rig().start()
    yield rig
    await rig.runner.cleanup()


@pytest.fixture
async def unlocked() -> AsyncIterator[Rig]:
    """A sidecar that asks nobody for a token."""
    rig = await Rig(authenticated=False).start()
    yield rig
    await rig.runner.cleanup()


async def same(rig: Rig, data: bytes, *, taken: bool = True) -> bytes:
    """The answer to a question whose headers were sent twice before, which the lane takes or leaves."""
    with_lane, without = await rig.connection(lane=True), await rig.connection(lane=False)
    for _ in range(2):
        await rig.send(with_lane, data)
    if with_lane.closed:
        with_lane = await rig.connection(lane=True)
    before = rig.lane.answers
    answer, expected = await rig.ask(with_lane, data), await rig.ask(without, data)
    assert answer == expected
    assert (rig.lane.answers > before) is taken
    return answer


@pytest.mark.parametrize(
    "query, contained",
    [
        ("course_run_ids=edX%2BA", True),
        ("course_run_ids=edX+A", True),
        (f"course_run_ids={RUN}", True),
        ("course_run_ids=edX%2BB", False),
        ("course_run_ids=EDX%2Ba", True),
        ("course_run_ids=UniX%2BUn", True),
        ("course_run_ids=no%2Bsuch,edX%2BA", True),
        ("course_run_ids=no%2Bsuch&course_run_ids=edX%2BA", True),
        ("program_uuids=edX%2BA", True),
        ("other=1&course_run_ids=edX%2BA", True),
        ("course_run_ids=", False),
        ("course_run_ids=%zz", False),
        (f"course_run_ids={HIDDEN}", False),
    ],
)
async def test_plain_questions_are_answered_in_the_lane(unlocked: Rig, query: str, contained: bool) -> None:
    answer = await same(unlocked, question(query=query))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'{"contains_content_items":%b}' % (b"true" if contained else b"false"))


async def test_restricted_runs_count_on_v2(unlocked: Rig) -> None:
    assert (await same(unlocked, question(query=f"course_run_ids={HIDDEN}", v=2))).endswith(b"true}")


@pytest.mark.parametrize(
    "query, catalogs",
    [
        ("course_run_ids=edX%2BA", b""),
        ("course_run_ids=edX%2BB", b""),
        ("course_run_ids=edX%2BA&get_catalogs_containing_specified_content_ids=True", b"[" + f'"{ONE}"'.encode()),
        ("course_run_ids=edX%2BB&get_catalog_list=1", b"[]"),
    ],
)
async def test_a_customers_catalogs_are_asked_in_the_lane(unlocked: Rig, query: str, catalogs: bytes) -> None:
    assert catalogs in await same(unlocked, question(C0, query, whose="customer"))


@pytest.mark.parametrize(
    "data",
    [
        question(UUID(int=1)),
        question(DUE),
        question(UUID(int=1), whose="customer"),
        # One of the customer's catalogs was never pulled, and the others say no.
        question(C1, "course_run_ids=edX%2BA", whose="customer"),
        question(query="other=1"),
        question(query="course_run_ids=edX%2BA&format=xml"),
        question(query="course_run_ids=edX%2BA&format=json"),
        question(query="course_run_ids=caf\u00e9"),
        question(query="course_run_ids=a|b"),
        question(query="course_run_ids=edX%2BA#fragment"),
        question(query="course_run_ids=" + "a" * 600),
        question().replace(b"GET", b"HEAD"),
        question().replace(b"HTTP/1.1", b"HTTP/1.0"),
        question().replace(b"GET /", b"GET http://sidecar:18160/"),
        question().replace(b"enterprise-catalogs", b"enterprise%2Dcatalogs"),
        question().replace(str(ONE).encode(), str(ONE).upper().encode()),
        question(headers="Accept: application/xml\r\n").replace(b"Accept: */*\r\n", b""),
        question(headers="Accept: text/html\r\n").replace(b"Accept: */*\r\n", b""),
        question(headers="X-Min-Generation: 1\r\n"),
        question(headers="Content-Length: 0\r\n"),
        question(headers="Origin: https://portal.example.org\r\n"),
        question(headers="Connection: close\r\n"),
    ],
)
async def test_everything_else_is_left_to_the_handler(unlocked: Rig, data: bytes) -> None:
    await same(unlocked, data, taken=False)


@pytest.mark.parametrize(
    "query, shown",
    [
        ("page_size=2", 2),
        ("page_size=2&page=2", 1),
        ("page_size=100&page=last", 3),
        ("content_keys=edX%2BA&content_keys=no", 1),
        ("page=1", 3),
    ],
)
async def test_pages_are_answered_in_the_lane_once_memory_has_them(rig: Rig, query: str, shown: int) -> None:
    data = page(query=query, headers=authorized())
    assert (await same(rig, data)).count(b'"key"') == shown


@pytest.mark.parametrize(
    "query",
    ["page=9", "page_size=2&format=xml", "page_size=x&page=y", "&".join(f"content_keys={n}" for n in range(40))],
)
async def test_pages_that_are_refused_or_odd_are_left_to_the_handler(rig: Rig, query: str) -> None:
    await same(rig, page(query=query, headers=authorized()), taken=False)


async def test_a_page_that_memory_has_lost_is_left_to_the_handler(rig: Rig) -> None:
    data = page(headers=authorized())
    await same(rig, data)
    rig.memory._held.clear()
    await same(rig, data, taken=True)
    connection = await rig.connection(lane=True)
    rig.memory._held.clear()
    assert not await rig.taken(connection, data)
    assert await rig.taken(connection, data)


async def test_links_to_pages_name_the_host_that_was_asked(rig: Rig) -> None:
    for host in (b"sidecar:18160", b"another.example.org"):
        data = page(headers=authorized()).replace(b"sidecar:18160", host)
        assert b'"next":"http://%b/api/v1/' % host in await same(rig, data)


async def test_a_host_that_is_no_name_is_left_to_the_handler(rig: Rig) -> None:
    await same(rig, page(headers=authorized()).replace(b"sidecar:18160", b"a" * 300), taken=False)


async def test_questions_of_pages_are_bounded_for_all_catalogs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_QUESTIONS", 3)
    for uuid in (ONE, TWO):
        for n in range(5):
            await same(rig, page(uuid, f"page_size=2&n={n}", headers=authorized()))
            assert 0 < len(rig.lane._questions) <= 3


async def test_a_page_leaves_nothing_half_done(rig: Rig) -> None:
    connection = await rig.connection(lane=True)
    for _ in range(3):
        await rig.send(connection, page(headers=authorized()))
    tasks = asyncio.all_tasks()
    await rig.send(connection, page(headers=authorized()), settle=False)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_a_page_of_another_customers_catalog_is_not_shown(rig: Rig) -> None:
    await same(rig, page(ONE, headers=authorized("learner_c0")))
    assert b" 403 " in await same(rig, page(TWO, headers=authorized("learner_c0")), taken=False)


async def test_pages_follow_the_generation(rig: Rig) -> None:
    data = page(headers=authorized())
    before = await same(rig, data)
    rig.serve(world(swapped=True))
    after = await same(rig, data)
    assert b"edX+A" in before
    assert b"edX+A" not in after


async def test_a_block_of_headers_is_learned_once_a_connection_has_repeated_it(unlocked: Rig) -> None:
    first, other = await unlocked.connection(lane=True), await unlocked.connection(lane=True)
    assert not await unlocked.taken(first, question())
    assert not await unlocked.taken(other, question())
    assert not await unlocked.taken(first, question(TWO))
    assert await unlocked.taken(first, question())
    assert await unlocked.taken(other, question(TWO))
    assert await unlocked.taken(await unlocked.connection(lane=True), question())


async def test_headers_that_never_come_twice_are_not_kept(unlocked: Rig) -> None:
    connection = await unlocked.connection(lane=True)
    for n in range(10):
        assert not await unlocked.taken(connection, question(headers=f"X-Request-ID: {n}\r\n"))
    assert await same(unlocked, question())


async def test_a_generation_that_is_exchanged_is_asked_at_once(unlocked: Rig) -> None:
    assert (await same(unlocked, question())).endswith(b"true}")
    unlocked.serve(world(swapped=True))
    answer = await same(unlocked, question())
    assert answer.endswith(b"false}")
    assert b"X-Catalog-Generation: 2\r\n" in answer


async def test_ordinals_are_those_of_the_generation_that_is_asked(unlocked: Rig) -> None:
    assert (await same(unlocked, question(query="course_run_ids=edX%2BB"))).endswith(b"false}")
    whole = world()
    unlocked.serve(World({"new": [], **whole.courses}, (), whole.restricted, whole.selections, whole.catalogs))
    assert (await same(unlocked, question(query="course_run_ids=edX%2BB"))).endswith(b"false}")
    assert (await same(unlocked, question(query="course_run_ids=edX%2BA"))).endswith(b"true}")


async def test_a_key_that_comes_to_be_known_is_found(unlocked: Rig) -> None:
    asked = question(query="course_run_ids=edX%2BNEW"), question(query="course_run_ids=edx%2Bnew")
    for data in asked:
        assert (await same(unlocked, data)).endswith(b"false}")
    before = unlocked.current.generation
    whole = world()
    selections = {**whole.selections, "a": Selection({"edX+A", "edX+NEW"})}
    grown = World({**whole.courses, "edX+NEW": []}, (), whole.restricted, selections, whole.catalogs)
    assert before is not None
    # While the next generation is loaded, its keys are in tables that both share.
    tree = grown.tree(generation=2)
    Index.assemble(tree.root, tree.records(), before.index)
    assert "edX+NEW" in before.index.dictionary.ordinals
    for data in asked:
        assert (await same(unlocked, data)).endswith(b"false}")
    unlocked.serve(grown)
    assert unlocked.current.generation is not None
    assert unlocked.current.generation.index.dictionary.ordinals is before.index.dictionary.ordinals
    for data in asked:
        assert (await same(unlocked, data)).endswith(b"true}")


async def test_the_age_goes_on_within_a_second(unlocked: Rig) -> None:
    assert b"X-Catalog-Age: 61\r\n" in await same(unlocked, question())
    unlocked.clock.wall_ms += 1
    assert b"X-Catalog-Age: 62\r\n" in await same(unlocked, question())
    unlocked.clock.wall_ms -= 30_000
    assert b"X-Catalog-Age: 32\r\n" in await same(unlocked, question())


async def test_a_token_is_good_until_its_end(rig: Rig) -> None:
    data = question(headers=authorized(exp=NOW_MS // 1000 + 10))
    assert (await same(rig, data)).startswith(b"HTTP/1.1 200 ")
    rig.clock.wall_ms = (NOW_MS // 1000 + 10) * 1000 - 1
    assert (await same(rig, data)).startswith(b"HTTP/1.1 200 ")
    rig.clock.wall_ms += 1
    assert (await same(rig, data, taken=False)).startswith(b"HTTP/1.1 401 ")


async def test_a_token_is_good_as_long_as_its_key(rig: Rig) -> None:
    data = question(headers=authorized())
    await same(rig, data)
    rig.keyring.keys = parse(jwks(jwk("another")))
    assert (await same(rig, data, taken=False)).startswith(b"HTTP/1.1 401 ")
    rig.keyring.keys = parse(jwks(jwk(), jwk("another")))
    assert (await same(rig, data)).startswith(b"HTTP/1.1 200 ")


async def test_whose_catalog_it_is_decides_for_each_question(rig: Rig) -> None:
    connection = await rig.connection(lane=True)
    headers = authorized("learner_c0")
    await same(rig, question(ONE, headers=headers))
    assert await rig.taken(connection, question(ONE, headers=headers))
    assert (await rig.ask(connection, question(TWO, headers=headers))).startswith(b"HTTP/1.1 403 ")
    assert (await rig.ask(connection, question(C1, headers=headers, whose="customer"))).startswith(b"HTTP/1.1 403 ")
    assert await rig.taken(connection, question(C0, headers=headers, whose="customer"))


async def test_a_catalog_that_moves_to_another_customer_is_no_longer_told(rig: Rig) -> None:
    data = question(ONE, headers=authorized("learner_c0"))
    await same(rig, data)
    moved = world()
    catalogs = [catalog._replace(customer=C1) for catalog in moved.catalogs]
    rig.serve(World(moved.courses, (), moved.restricted, moved.selections, catalogs))
    assert (await same(rig, data, taken=False)).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "headers",
    ["", "Authorization: JWT nonsense\r\n", "Authorization: Bearer x\r\n", "USE-JWT-COOKIE: true\r\nCookie: a=b\r\n"],
)
async def test_without_a_good_token_nothing_is_answered_in_the_lane(rig: Rig, headers: str) -> None:
    assert (await same(rig, question(headers=headers), taken=False)).startswith(b"HTTP/1.1 401 ")


async def test_answers_differ_by_origin_where_pages_may_ask() -> None:
    rig = await Rig(authenticated=False, origins=("https://portal.example.org",)).start()
    assert b"\r\nVary: Origin\r\n" in await same(rig, question())
    await same(rig, question(headers="Origin: https://portal.example.org\r\n"), taken=False)
    await rig.runner.cleanup()


async def test_what_is_remembered_is_bounded(unlocked: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCKS_BYTES", 5_000)
    monkeypatch.setattr(module, "MAX_QUERIES_BYTES", 1_000)
    for n in range(20):
        query = "course_run_ids=edX%2BA&" * (n + 1)
        await same(unlocked, question(query=query[:-1], headers=f"User-Agent: client {n}\r\n"))
        assert 4 * sum(map(len, unlocked.lane._blocks)) <= 5_000
        assert sum(map(len, unlocked.lane._queries)) <= 1_000
    assert 0 < len(unlocked.lane._blocks) < 20
    assert 0 < len(unlocked.lane._queries) < 20


async def test_answers_are_counted_as_those_of_the_handler(unlocked: Rig) -> None:
    connection = await unlocked.connection(lane=True)
    for _ in range(5):
        await unlocked.send(connection, question())
    assert unlocked.lane.answers == 3
    registry = unlocked.metrics.registry
    assert registry.get_sample_value("catalog_sidecar_requests_total", {"route": ROUTE, "status": "200"}) == 5
    assert registry.get_sample_value("catalog_sidecar_request_seconds_count", {"route": ROUTE}) == 5
    assert b'le="+Inf",route="%b"} 5.0' % ROUTE.encode() in generate_latest(registry)


@pytest.mark.parametrize(
    "sent, made",
    [
        (question(), question(headers="X-Min-Generation: 9\r\n")),
        (question(headers="X-Min-Generation: 9\r\n"), question()),
        (question(TWO), question(ONE)),
        (question().replace(b"GET", b"PUT"), question()),
        (question().replace(b"Host: ", b"Host: \r\n "), question()),
        (question() + b"\r\n", question()),
        (question()[:-2], question()),
    ],
)
async def test_bytes_are_learned_only_from_what_was_made_of_them_and_of_nothing_else(
    unlocked: Rig, sent: bytes, made: bytes
) -> None:
    parser = HttpRequestParser(BaseProtocol(asyncio.get_running_loop()), asyncio.get_running_loop(), 2**16)
    ((message, _),) = parser.feed_data(made)[0]
    assert unlocked.lane.learn(made, message, twice=False)
    assert not unlocked.lane.learn(sent, message, twice=True)
    assert not unlocked.lane._blocks


async def test_a_lane_that_is_closed_takes_nothing(unlocked: Rig) -> None:
    await same(unlocked, question())
    unlocked.lane.close()
    await same(unlocked, question(), taken=False)


async def test_nothing_is_answered_in_the_lane_before_a_generation_is_there(unlocked: Rig) -> None:
    await same(unlocked, question())
    unlocked.current.generation = None
    assert b"503 " in await same(unlocked, question(), taken=False)


def test_dates_are_all_that_is_left_out_of_comparisons() -> None:
    assert undated(b"HTTP/1.1 200 OK\r\nDate: now\r\nAge: 1\r\n\r\n") == b"HTTP/1.1 200 OK\r\nDate: -\r\nAge: 1\r\n\r\n"
