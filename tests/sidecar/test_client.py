"""Facts about both clients, over TCP and over a unix socket: against a real sidecar, and, where a server has to
misbehave, against one that says what a script tells it.
"""

import asyncio
import itertools
import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from sidecar.app import Sidecar
from sidecar.client import (
    BadRequest,
    Basis,
    CannotTell,
    CatalogClient,
    ClientError,
    Forbidden,
    NotAuthenticated,
    NotFound,
)
from sidecar.client.asynchronous import AsyncCatalogClient
from sidecar.client.exchange import Address, Token
from sidecar.client.operations import MAX_QUERY_BYTES
from sidecar.intake import MAX_LINE_BYTES, runner_of
from sidecar.settings import AuthSettings, Settings, SidecarSettings
from sidecar.store.memory import MemoryStore
from tests import tokens
from tests.fakes import FakeSource, course, customer, program, run, uuid_of
from tests.world import World, world

ROOT: Final = Path(__file__).parent.parent.parent
HOST: Final = "127.0.0.1"
ACME: Final = uuid_of("Acme")
ALL: Final = uuid_of("catalog all")
SOME: Final = uuid_of("catalog some")
PROGRAM: Final = uuid_of("Program")
NEVER_PULLED: Final = uuid_of("catalog never pulled")
COURSES: Final = 120
# Longer than any test may take: what would wait for ever fails.
LONG_S: Final = 60.0
Served = Callable[..., Awaitable[Any]]


@dataclass
class Seen:
    """What a sidecar was asked: on which connection, and the request line's target."""

    connections: list[object] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        assert request.transport is not None
        self.connections.append(request.transport)
        self.targets.append(request.raw_path)
        return await handler(request)


@dataclass
class Rig:
    """A real sidecar over what the pipeline publishes, on a port and on a socket."""

    world: World
    port: int
    socket: str
    seen: Seen
    restart: Callable[[], Awaitable[None]]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


@asynccontextmanager
async def rigged(path: Path, auth: AuthSettings | None = None) -> AsyncIterator[Rig]:
    courses = [course(f"Org+{n}", run(f"course-v1:Org+{n}+1"), title=f"Course {n}") for n in range(COURSES)]
    source = FakeSource(*courses, programs=(program("Program", "Org+0"),), customers=(customer("Acme"),))
    clock, store, seen = tokens.StillClock(), MemoryStore(), Seen()
    socket = str(path / "sidecar.socket")
    async with world(path, source, store, clock) as here:
        await here.add("all", {"content_type": ["course", "program"]})
        await here.add("some", {"content_type": "course", "key": ["Org+1", "Org+2"]})
        await here.build()
        await here.add("never pulled", {"content_type": "course", "number": 1}, of="Newcomer")
        await here.publish()
        settings = Settings(sidecar=SidecarSettings(disk="", poll_ms=10), auth=auth or AuthSettings())

        runners: list[web.AppRunner] = []

        async def start(port: int) -> None:
            sidecar = Sidecar(settings, _Kept(store), clock)
            sidecar.app.middlewares.append(seen.middleware)
            runner = runner_of(sidecar.app)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, HOST, port).start()
            await web.UnixSite(runner, socket).start()
            await sidecar.current.other_than(None)

        async def restart() -> None:
            await runners.pop().cleanup()
            await start(port)

        try:
            await start(0)
            port = runners[0].addresses[0][1]
            yield Rig(here, port, socket, seen, restart)
        finally:
            await runners.pop().cleanup()


class _Kept(MemoryStore):
    """A store that outlives the sidecar that closes it."""

    def __init__(self, store: MemoryStore) -> None:
        self.__dict__ = store.__dict__

    async def close(self) -> None:
        pass


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made:
        yield made


WAYS: Final = ("tcp", "unix", "async tcp", "async unix")


@asynccontextmanager
async def asking(way: str, port: int, socket: str, token: Token = None, **arguments: Any) -> AsyncIterator[Served]:
    """What calls a method of a client by name; blocking ones in a thread. The last answer's basis is in `basis`."""
    arguments = {"timeout_s": LONG_S, "long_timeout_s": LONG_S} | arguments
    url = f"unix://{socket}" if way.endswith("unix") else f"http://{HOST}:{port}"
    asked: Any
    if way.startswith("async"):
        async with asyncio.timeout(LONG_S), AsyncCatalogClient(url, token, **arguments) as awaited:

            async def asked(name: str, *given: Any, **named: Any) -> Any:
                try:
                    return await getattr(awaited, name)(*given, **named)
                finally:
                    asked.basis = awaited.last

            yield asked
    else:
        async with asyncio.timeout(LONG_S):
            with CatalogClient(url, token, **arguments) as client:

                def called(name: str, given: Any, named: Any) -> Any:
                    try:
                        return getattr(client, name)(*given, **named)
                    finally:
                        asked.basis = client.last

                async def asked(name: str, *given: Any, **named: Any) -> Any:
                    return await asyncio.to_thread(called, name, given, named)

                yield asked


@pytest.fixture(params=WAYS)
async def ask(request: pytest.FixtureRequest, rig: Rig) -> AsyncIterator[Any]:
    """Calls a method of a client of the rig's sidecar, by name, in every way."""
    async with asking(request.param, rig.port, rig.socket) as asked:
        yield asked


# ---- a server that does what it is told

Script = Callable[[int, int], bytes | None]


def http(status: int, body: object, *headers: str) -> bytes:
    """An answer, as bytes."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status} Whatever", "Content-Type: application/json", f"Content-Length: {len(text)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + text


HALF_A_HEAD: Final = b"HTTP/1.1 200"
YES: Final = http(200, {"contains_content_items": True}, "X-Catalog-Generation: 7", "X-Catalog-Age: 30")


class Scripted:
    """Answers the nth request of the mth connection, both from 1, with what the script gives: None closes at once."""

    def __init__(self, script: Script, drip: bool, ends: bool) -> None:
        self._script = script
        self._drip = drip
        self._ends = ends
        self.connections = 0
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection, request = self.connections, 0
        with closing(writer):
            try:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    length = [
                        int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")
                    ]
                    self.heads.append(head)
                    self.bodies.append(await reader.readexactly(sum(length)))
                    request += 1
                    answer = self._script(connection, request)
                    if answer is None:
                        return
                    for piece in [answer[n : n + 1] for n in range(len(answer))] if self._drip else [answer]:
                        writer.write(piece)
                        await writer.drain()
                        if self._drip:
                            await asyncio.sleep(0.05)
                    if self._ends:
                        return
            except (asyncio.IncompleteReadError, ConnectionError):
                self.ended.set()


@asynccontextmanager
async def scripted(
    path: Path, script: Script, *, drip: bool = False, ends: bool = False
) -> AsyncIterator[tuple[Scripted, int, str]]:
    """Such a server, its port and its socket. It drips what it says, or ends connections after an answer."""
    made, socket = Scripted(script, drip, ends), str(path / "scripted.socket")
    tcp = await asyncio.start_server(made.serve, HOST, 0)
    unix = await asyncio.start_unix_server(made.serve, socket)
    try:
        yield made, tcp.sockets[0].getsockname()[1], socket
    finally:
        for server in (tcp, unix):
            server.close()
            await server.wait_closed()


# ---- questions


async def test_a_catalog_contains_any_of_the_keys(ask: Served) -> None:
    assert await ask("contains_content_items", SOME, ["Org+9", "course-v1:Org+1+1"]) is True
    assert await ask("contains_content_items", UUID(SOME), ["Org+9", "Org+10"]) is False
    assert await ask("contains_content_items", SimpleNamespace(uuid=UUID(ALL)), PROGRAM) is True


async def test_a_customers_answer_names_the_catalogs(ask: Served) -> None:
    both = {"contains_content_items": True, "catalog_list": [ALL, SOME]}
    assert await ask("enterprise_contains_content_items", ACME, ["course-v1:Org+1+1"]) == both
    one = {"contains_content_items": True, "catalog_list": [ALL]}
    assert await ask("enterprise_contains_content_items", UUID(ACME), ["Org+9"]) == one
    nothing = {"contains_content_items": False, "catalog_list": []}
    assert await ask("enterprise_contains_content_items", uuid_of("nobody"), ["Org+9"]) == nothing


async def test_what_was_never_pulled_cannot_be_told(ask: Served) -> None:
    with pytest.raises(CannotTell) as raised:
        await ask("contains_content_items", NEVER_PULLED, ["Org+9"])
    assert (raised.value.status, raised.value.retry_after_s) == (503, 5.0)


async def test_documents_come_whole_from_all_pages_each_once(ask: Served, rig: Rig) -> None:
    found = await ask(
        "get_content_metadata", SimpleNamespace(uuid=ACME), [SimpleNamespace(uuid=u) for u in (ALL, SOME)]
    )
    assert len(found) == COURSES + 1
    assert {d["key"] for d in found if d["content_type"] == "course"} == {f"Org+{n}" for n in range(COURSES)}
    assert [await ask("get_catalog_content_count", uuid) for uuid in (ALL, SOME)] == [COURSES + 1, 2]


async def test_documents_are_those_of_the_catalogs_that_a_model_of_a_customer_has(ask: Served) -> None:
    related = SimpleNamespace(all=lambda: [SimpleNamespace(uuid=SOME)])
    found = await ask("get_content_metadata", SimpleNamespace(uuid=ACME, enterprise_customer_catalogs=related))
    assert [d["key"] for d in found] == ["Org+1", "Org+2"]


async def test_documents_are_those_of_the_catalogs_that_the_service_has_of_a_uuid(ask: Served) -> None:
    assert len(await ask("get_content_metadata", ACME)) == COURSES + 1
    with pytest.raises(CannotTell, match=NEVER_PULLED):
        await ask("get_content_metadata", uuid_of("Newcomer"))
    assert await ask("get_content_metadata", uuid_of("nobody")) == []


async def test_documents_by_key_are_asked_for_in_chunks_of_fifty(ask: Served, rig: Rig) -> None:
    keys = [f"course-v1:Org+{n}+1" for n in range(COURSES)]
    found = await ask("get_content_metadata", ACME, [ALL], keys)
    assert sorted(d["key"] for d in found) == sorted(f"Org+{n}" for n in range(COURSES))
    assert [target.count("content_keys=") for target in rig.seen.targets] == [50, 50, 20]


async def test_a_diff_is_what_to_create_what_to_delete_and_what_is_there(ask: Served) -> None:
    create, delete, found = await ask("get_catalog_diff", SimpleNamespace(uuid=SOME), ["Org+1", "Org+9"])
    assert (create, delete) == ([{"content_key": "Org+2"}], [{"content_key": "Org+9"}])
    assert [item["content_key"] for item in found] == ["Org+1"]


async def test_a_document_is_found_by_key_by_uuid_and_by_its_run(ask: Served) -> None:
    own = await ask("get_customer_content_metadata_content_identifier", ACME, "course-v1:Org+1+1")
    assert own["key"] == "Org+1"
    assert own["enrollment_url"] is None or "Org+1" in own["enrollment_url"]
    bare = await ask("get_content_metadata_content_identifier", "course-v1:Org+1+1", coerce_to_parent_course=True)
    assert (bare["key"], await ask("get_content_metadata_content_identifier", uuid_of("Org+1"))) == ("Org+1", bare)


async def test_queries_are_found_by_the_hash_of_their_filter(ask: Served) -> None:
    content_filter = {"key": ["Org+1", "Org+2"], "content_type": "course"}
    query_hash = await ask("get_catalog_query_hash", content_filter)
    assert (await ask("get_enterprise_catalog_by_hash", query_hash))["content_filter"] == content_filter
    unused = await ask("get_catalog_query_hash", {"content_type": "none"})
    with pytest.raises(NotFound):
        await ask("get_enterprise_catalog_by_hash", unused)
    assert await ask("get_enterprise_catalog_by_hash", unused, should_raise_exception=False) == {}


async def test_what_is_not_found_is_raised_or_empty_as_it_is_asked_for(ask: Served) -> None:
    unknown = uuid4()
    for name, *arguments in (
        ("contains_content_items", unknown, ["Org+1"]),
        ("get_enterprise_catalog", unknown),
        ("get_catalog_diff", SimpleNamespace(uuid=unknown), []),
        ("get_catalog_content_count", unknown),
        ("get_content_metadata", ACME, [unknown]),
        ("get_customer_content_metadata_content_identifier", ACME, "nothing"),
        ("get_content_metadata_content_identifier", "nothing"),
    ):
        with pytest.raises(NotFound) as raised:
            await ask(name, *arguments)
        assert raised.value.status == 404
        assert isinstance(raised.value.body, dict)
    assert await ask("get_enterprise_catalog", unknown, should_raise_exception=False) == {}
    assert await ask("get_catalog_diff", SimpleNamespace(uuid=unknown), [], should_raise_exception=False) == (
        [],
        [],
        [],
    )
    assert (await ask("get_enterprise_catalog", ALL, should_raise_exception=False))["title"] == "all"


async def test_a_question_without_ids_is_refused_by_the_service(ask: Served) -> None:
    for name, uuid in (("contains_content_items", ALL), ("enterprise_contains_content_items", ACME)):
        with pytest.raises(BadRequest) as raised:
            await ask(name, uuid, [])
        assert raised.value.status == 400


async def test_an_answer_tells_its_generation_and_its_age(ask: Any, rig: Rig) -> None:
    rig.world.clock.advance(30)
    await ask("contains_content_items", ALL, ["Org+1"])
    pointer = await rig.world.store.pointer()
    assert pointer is not None
    assert ask.basis == Basis(pointer.generation, 30)
    await ask("health")
    assert ask.basis == Basis()


async def test_health_is_told(ask: Served) -> None:
    assert (await ask("health"))["status"] == "ok"


async def test_documents_of_one_catalog_come_page_by_page(rig: Rig) -> None:
    def some(count: int) -> list[str]:
        with CatalogClient(rig.url) as client:
            found = client.iterate_content_metadata(ALL, page_size=10)
            return [next(found)["content_type"] for _ in range(count)]

    assert len(await asyncio.to_thread(some, 11)) == 11
    assert len(rig.seen.targets) == 2
    async with AsyncCatalogClient(rig.url) as client:
        assert len([d async for d in client.iterate_content_metadata(ALL)]) == COURSES + 1
        keys = [d["key"] async for d in client.iterate_content_metadata(ALL, ["Org+5", "nothing"])]
    assert keys == ["Org+5"]


async def test_restricted_runs_are_asked_for_on_v2(rig: Rig) -> None:
    async with asking("tcp", rig.port, rig.socket, version="v2") as ask:
        assert await ask("contains_content_items", ALL, ["Org+1"]) is True
        assert (await ask("get_enterprise_catalog", ALL))["uuid"] == ALL
    assert [target.split("/")[2] for target in rig.seen.targets] == ["v2", "v1"]


# ---- many ids


def baskets(last: str) -> list[str]:
    """More ids than a request line has room for."""
    return [*(f"course-v1:Nobody+{n:0100}+1" for n in range(2 * MAX_LINE_BYTES // 100)), last]


async def test_more_ids_than_a_line_has_room_for_are_asked_in_chunks(ask: Served, rig: Rig) -> None:
    assert await ask("contains_content_items", ALL, baskets("Org+1")) is True
    assert await ask("contains_content_items", ALL, baskets("nothing")) is False
    assert len(rig.seen.targets) > 2
    assert max(map(len, rig.seen.targets)) < MAX_LINE_BYTES
    assert min(map(len, rig.seen.targets[:-1])) < MAX_QUERY_BYTES + 200


async def test_the_catalogs_that_contain_any_chunk_are_joined(ask: Served) -> None:
    ids = ["Org+9", *baskets("course-v1:Org+1+1")]
    both = {"contains_content_items": True, "catalog_list": [ALL, SOME]}
    assert await ask("enterprise_contains_content_items", ACME, ids) == both
    assert (await ask("enterprise_contains_content_items", ACME, baskets("x")))["contains_content_items"] is False


async def test_a_chunk_that_says_yes_is_the_last_that_is_asked(ask: Served, rig: Rig) -> None:
    assert await ask("contains_content_items", ALL, ["Org+1", *baskets("x")]) is True
    assert len(rig.seen.targets) == 1


async def test_a_body_that_is_too_large_is_refused_by_the_service(ask: Served) -> None:
    with pytest.raises(BadRequest) as raised:
        await ask(
            "create_enterprise_catalog", uuid4(), ACME, "Acme", "large", {"key": "x" * 3_000_000}, [], False, None
        )
    assert raised.value.status == 413


# ---- tokens


async def test_tokens_are_sent_and_what_they_do_not_reach_is_forbidden(tmp_path: Path) -> None:
    async with rigged(tmp_path, tokens.settings(tmp_path)) as rig:
        now_ms = rig.world.clock.now_ms()

        def token(*roles: str) -> str:
            claims = tokens.claims_of("operator") | {"roles": list(roles), "exp": now_ms // 1000 + 60}
            return tokens.signed(claims)

        for way in WAYS:
            good: tuple[Token, ...] = (token(f"enterprise_learner:{ACME}"), lambda: token(f"enterprise_learner:{ACME}"))
            for held in good:
                async with asking(way, rig.port, rig.socket, held) as ask:
                    assert await ask("contains_content_items", ALL, ["Org+1"]) is True
            bad: tuple[tuple[Token, type[ClientError]], ...] = (
                (None, NotAuthenticated),
                ("nonsense", NotAuthenticated),
                (token(f"enterprise_learner:{uuid_of('Other')}"), Forbidden),
            )
            for held, error in bad:
                async with asking(way, rig.port, rig.socket, held) as ask:
                    with pytest.raises(error):
                        await ask("contains_content_items", ALL, ["Org+1"])


# ---- what is sent


@pytest.mark.parametrize("way", WAYS)
async def test_a_question_may_name_the_state_that_it_wants(tmp_path: Path, way: str) -> None:
    task = str(uuid4())
    calls = iter("abc")
    async with (
        scripted(tmp_path, lambda *_: YES) as (server, port, socket),
        asking(way, port, socket, lambda: next(calls)) as ask,
    ):
        await ask("contains_content_items", ALL, ["Org+1 é"], min_generation=57, after_task=task)
        await ask("contains_content_items", ALL, ["Org+1"])
    first, second = server.heads
    assert first.startswith(
        f"GET /api/v1/enterprise-catalogs/{ALL}/contains_content_items/?course_run_ids=Org%2B1+%C3%A9 "
    )
    named = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in first.split("\r\n")[1:]}
    assert (named["x-min-generation"], named["x-after-task"], named["authorization"]) == ("57", task, "JWT a")
    assert "x-min-generation" not in second.lower()
    assert "JWT b" in second


@pytest.mark.parametrize("way", ["tcp", "async tcp"])
async def test_a_path_in_the_url_goes_before_all_others(tmp_path: Path, way: str) -> None:
    async with scripted(tmp_path, lambda *_: YES) as (server, port, _):
        client = CatalogClient(f"http://{HOST}:{port}/behind/")
        awaited = AsyncCatalogClient(f"http://{HOST}:{port}/behind")
        if way == "tcp":
            assert await asyncio.to_thread(client.contains_content_items, ALL, "x") is True
        else:
            assert await awaited.contains_content_items(ALL, "x") is True
        client.close()
        await awaited.close()
    assert server.heads[0].startswith("GET /behind/api/v1/")


@pytest.mark.parametrize(
    "url",
    [
        *("", "sidecar:80", "https://sidecar", "http://", "http://user@sidecar", "http://sidecar?a=b", "unix://"),
        *("unix://host/path", "http://sidecar:port", "ftp://sidecar"),
    ],
)
def test_a_url_that_is_neither_http_nor_a_socket_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        CatalogClient(url)


def test_a_url_says_where_the_service_is() -> None:
    assert Address.parse("http://sidecar") == Address("sidecar", 80, None, "")
    assert Address.parse("http://[::1]:1/a/b/") == Address("::1", 1, None, "/a/b")
    assert Address.parse("unix:///run/a%20b.socket") == Address("localhost", 80, "/run/a b.socket", "")
    with pytest.raises(ValueError, match="no version"):
        CatalogClient("http://sidecar", version="v3")  # type: ignore[arg-type]


# ---- errors


@pytest.mark.parametrize("way", WAYS)
async def test_every_status_is_an_error_of_its_own_with_what_came(tmp_path: Path, way: str) -> None:
    wanted = {
        400: BadRequest,
        401: NotAuthenticated,
        403: Forbidden,
        404: NotFound,
        405: BadRequest,
        408: CannotTell,
        409: BadRequest,
        413: BadRequest,
        429: CannotTell,
        301: CannotTell,
        500: CannotTell,
        502: CannotTell,
        503: CannotTell,
    }
    statuses = iter(wanted)
    body = {"detail": "é"}
    async with (
        scripted(tmp_path, lambda *_: http(next(statuses), body, "Retry-After: 9")) as (_, port, socket),
        asking(way, port, socket) as ask,
    ):
        for status, kind in wanted.items():
            with pytest.raises(ClientError) as raised:
                await ask("contains_content_items", ALL, ["Org+1"])
            error = raised.value
            assert (type(error), error.status, error.body, error.retry_after_s) == (kind, status, body, 9.0)
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again), again.body) == (kind, str(error), body)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "answer",
    [
        http(200, b"<html>"),
        http(200, []),
        http(200, {}),
        http(200, {"contains_content_items": "false"}),
        http(200, {"contains_content_items": None}),
        http(200, b""),
        YES.replace(b"Content-Length: ", b"Content-Length: 9"),
        HALF_A_HEAD,
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
async def test_an_answer_of_another_form_is_no_answer(tmp_path: Path, way: str, answer: bytes) -> None:
    """A part of an answer, then the connection ends: nor is that repeated, where it is seen that something came."""
    async with (
        scripted(tmp_path, lambda *_: answer, ends=True) as (server, port, socket),
        asking(way, port, socket) as ask,
    ):
        with pytest.raises(CannotTell):
            await ask("contains_content_items", ALL, ["Org+1"])
    assert len(server.heads) == (2 if answer == HALF_A_HEAD and way.startswith("async") else 1)


@pytest.mark.parametrize("way", WAYS)
async def test_where_nobody_listens_nothing_can_be_told(tmp_path: Path, way: str) -> None:
    async with scripted(tmp_path, lambda *_: YES) as (_, port, socket):
        pass
    async with asking(way, port, socket) as ask:
        with pytest.raises(CannotTell, match="nothing was sent") as raised:
            await ask("contains_content_items", ALL, ["Org+1"])
        assert (raised.value.status, raised.value.body) == (None, None)
        with pytest.raises(CannotTell):
            await ask("get_enterprise_catalog", ALL, should_raise_exception=False)


@pytest.mark.parametrize("way", WAYS)
async def test_a_refresh_that_fails_is_told_by_catalog(tmp_path: Path, way: str) -> None:
    answers = iter((http(200, {"async_task_id": "t"}), http(404, {}), None, None, http(200, {"async_task_id": "u"})))
    uuids = [uuid4() for _ in range(4)]
    catalogs = [*(SimpleNamespace(uuid=uuid) for uuid in uuids[:3]), uuids[3]]
    async with scripted(tmp_path, lambda *_: next(answers)) as (_, port, socket), asking(way, port, socket) as ask:
        assert await ask("refresh_catalogs", catalogs) == ({uuids[0]: "t", uuids[3]: "u"}, [uuids[1], uuids[2]])


@pytest.mark.parametrize("way", WAYS)
async def test_a_service_that_is_not_well_still_reports(tmp_path: Path, way: str) -> None:
    async with (
        scripted(tmp_path, lambda *_: http(503, {"status": "unavailable"})) as (_, port, socket),
        asking(way, port, socket) as ask,
    ):
        assert await ask("health") == {"status": "unavailable"}


# ---- deadlines


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_drips_bytes_gains_no_time(tmp_path: Path, way: str) -> None:
    long = http(200, {"contains_content_items": True, "more": "x" * 10_000})
    async with (
        scripted(tmp_path, lambda *_: long, drip=True) as (server, port, socket),
        asking(way, port, socket) as ask,
    ):
        with pytest.raises(CannotTell, match="deadline"):
            await ask("contains_content_items", ALL, ["Org+1"], timeout_s=1.0)
        # Half an answer is nobody's: its connection is gone.
        await server.ended.wait()
    assert len(server.heads) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_the_deadline_is_that_of_all_pages(tmp_path: Path, way: str) -> None:
    # There is no last page.
    pages = (http(200, {"results": [], "next": f"http://elsewhere/?page={number}"}) for number in itertools.count(2))
    async with (
        scripted(tmp_path, lambda *_: next(pages)) as (_, port, socket),
        asking(way, port, socket, long_timeout_s=0.3) as ask,
    ):
        with pytest.raises(CannotTell, match="deadline"):
            await ask("get_content_metadata", ACME, [ALL])


@pytest.mark.parametrize("way", WAYS)
async def test_a_deadline_that_has_passed_sends_nothing(tmp_path: Path, way: str) -> None:
    async with scripted(tmp_path, lambda *_: YES) as (server, port, socket), asking(way, port, socket) as ask:
        with pytest.raises(CannotTell, match="deadline"):
            await ask("contains_content_items", ALL, ["Org+1"], timeout_s=-1)
    assert server.heads == []


# ---- connections


@pytest.mark.parametrize("way", WAYS)
async def test_one_connection_serves_one_call_after_the_other(rig: Rig, way: str) -> None:
    async with asking(way, rig.port, rig.socket) as ask:
        for _ in range(20):
            assert await ask("contains_content_items", ALL, ["Org+1"]) is True
        with pytest.raises(NotFound):
            await ask("get_enterprise_catalog", uuid4())
        assert await ask("get_catalog_content_count", SOME) == 2
    assert len(rig.seen.connections) == 22
    assert len(set(rig.seen.connections)) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_was_started_again_is_asked_at_once(rig: Rig, way: str) -> None:
    async with asking(way, rig.port, rig.socket) as ask:
        for _ in range(3):
            assert await ask("contains_content_items", ALL, ["Org+1"]) is True
            await rig.restart()
        assert await ask("get_catalog_diff", SOME, ["Org+1", "Org+2"]) != ([], [], [])


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_that_says_goodbye_ends_its_connection(tmp_path: Path, way: str) -> None:
    goodbye = YES.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with scripted(tmp_path, lambda *_: goodbye) as (server, port, socket), asking(way, port, socket) as ask:
        for _ in range(3):
            assert await ask("contains_content_items", ALL, ["Org+1"]) is True
    assert (server.connections, len(server.heads)) == (3, 3)


@pytest.mark.parametrize("way", WAYS)
async def test_a_question_whose_kept_connection_breaks_is_asked_once_more(tmp_path: Path, way: str) -> None:
    async with (
        scripted(tmp_path, lambda _, request: YES if request == 1 else None) as (server, port, socket),
        asking(way, port, socket) as ask,
    ):
        for _ in range(3):
            assert await ask("contains_content_items", ALL, ["Org+1"]) is True
    assert (server.connections, len(server.heads)) == (3, 5)


CREATED: Final = (ACME, "Acme", "new", {"content_type": "course"}, ["verified"], False, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name, arguments, times",
    [
        ("contains_content_items", (ALL, ["Org+1"]), 2),
        ("get_catalog_diff", (ALL, ["Org+1"]), 2),
        ("create_enterprise_catalog", (uuid4(), *CREATED), 2),
        ("create_enterprise_catalog", (None, *CREATED), 1),
        ("update_enterprise_catalog", (ALL,), 2),
        ("delete_enterprise_catalog", (ALL,), 1),
    ],
)
async def test_only_what_may_be_made_twice_is_sent_again_and_once(
    tmp_path: Path, way: str, name: str, arguments: tuple[Any, ...], times: int
) -> None:
    async with scripted(tmp_path, lambda *_: None) as (server, port, socket), asking(way, port, socket) as ask:
        with pytest.raises(CannotTell, match="broke"):
            await ask(name, *arguments)
    assert len(server.heads) == times


@pytest.mark.parametrize("way", WAYS)
async def test_what_must_not_be_made_twice_has_a_connection_of_its_own(tmp_path: Path, way: str) -> None:
    async with (
        scripted(tmp_path, lambda *_: http(200, {"contains_content_items": True})) as (server, port, socket),
        asking(way, port, socket) as ask,
    ):
        await ask("contains_content_items", ALL, ["Org+1"])
        assert await ask("delete_enterprise_catalog", ALL) is True
        await ask("create_enterprise_catalog", None, *CREATED)
        await ask("create_enterprise_catalog", UUID(ALL), *CREATED)
    assert (server.connections, len(server.heads)) == (3, 4)
    first, second = (json.loads(body) for body in server.bodies[2:])
    assert "uuid" not in first
    assert (second["uuid"], second["publish_audit_enrollment_urls"]) == (ALL, False)


async def test_a_socket_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "full.socket")
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as queued, CatalogClient(f"unix://{path}") as client:
        server.bind(path)
        server.listen(0)
        server.settimeout(LONG_S)
        with suppress(BlockingIOError):
            while True:
                one = queued.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(path)
        with pytest.raises(CannotTell, match="no connection before the deadline"):
            client.contains_content_items(ALL, "Org+1", timeout_s=0.1)

        def answer() -> None:
            while True:
                accepted, _ = server.accept()
                with accepted:
                    if accepted.recv(MAX_LINE_BYTES):
                        accepted.sendall(YES)
                        return

        asked = asyncio.create_task(asyncio.to_thread(client.contains_content_items, ALL, "Org+1", timeout_s=LONG_S))
        queued.close()
        await asyncio.to_thread(answer)
        assert await asked is True


async def test_threads_share_a_client_and_never_an_answer(rig: Rig) -> None:
    threads, each = 8, 25
    barrier = threading.Barrier(threads)

    def asks(client: CatalogClient, thread: int) -> list[str]:
        barrier.wait(LONG_S)
        keys = [f"Org+{(thread * each + n) % COURSES}" for n in range(each)]
        found = [client.get_content_metadata_content_identifier(key, timeout_s=LONG_S)["key"] for key in keys]
        return [key for key, got in zip(keys, found, strict=True) if key != got]

    with CatalogClient(rig.url) as client, ThreadPoolExecutor(threads) as pool:
        loop = asyncio.get_running_loop()
        wrong = await asyncio.gather(*(loop.run_in_executor(pool, asks, client, n) for n in range(threads)))
    assert wrong == [[]] * threads
    assert len(rig.seen.targets) == threads * each
    assert len(set(rig.seen.connections)) <= threads


async def test_tasks_share_an_async_client_and_never_an_answer(rig: Rig) -> None:
    keys = [f"Org+{n}" for n in range(COURSES)]
    async with AsyncCatalogClient(rig.url) as client, asyncio.timeout(LONG_S):
        asked = (client.get_content_metadata_content_identifier(key, timeout_s=LONG_S) for key in keys)
        assert [document["key"] for document in await asyncio.gather(*asked)] == keys


async def test_an_async_client_may_be_used_in_one_event_loop_after_the_other(rig: Rig) -> None:
    client = AsyncCatalogClient(rig.url)

    async def once() -> bool:
        try:
            return await client.contains_content_items(ALL, "Org+1")
        finally:
            await client.close()

    assert await asyncio.to_thread(lambda: [asyncio.run(once()) for _ in range(2)]) == [True, True]
    assert await once() is True


FORKS: Final = """
import os, sys
from sidecar.client import CatalogClient

client = CatalogClient(sys.argv[1])
key = "Org+1"
assert client.contains_content_items(sys.argv[2], key)
child = os.fork()
assert client.contains_content_items(sys.argv[2], key)
if not child:
    os._exit(0)
_, status = os.waitpid(child, 0)
assert client.contains_content_items(sys.argv[2], key)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_forked_child_has_a_connection_of_its_own_and_leaves_its_parents_alone(rig: Rig, kind: str) -> None:
    url = rig.url if kind == "tcp" else f"unix://{rig.socket}"
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FORKS, url, ALL], cwd=ROOT, check=True, timeout=LONG_S
    )
    by_connection = sorted(rig.seen.connections.count(one) for one in set(rig.seen.connections))
    assert by_connection == [1, 3]


# ---- what it needs

BARE: Final = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import sidecar.client
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert foreign == {"sidecar"}, foreign
assert not any("site-packages" in path for path in sys.path), sys.path
client = sidecar.client.CatalogClient(sys.argv[2])
assert client.contains_content_items(sys.argv[3], "Org+1") is True
client.close()
"""


async def test_the_blocking_client_needs_the_standard_library_alone(rig: Rig) -> None:
    arguments = [sys.executable, "-I", "-S", "-W", "error", "-c", BARE, str(ROOT), rig.url, ALL]
    await asyncio.to_thread(subprocess.run, arguments, check=True, timeout=LONG_S)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> Iterator[str]:
        return (name for name in vars(kind) if not name.startswith("_"))

    assert set(methods(CatalogClient)) == set(methods(AsyncCatalogClient))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "page",
    [
        {"results": [], "count": 1},
        {"results": [], "next": 5},
        {"results": [1], "next": None},
        {"results": [{}], "next": None},
        {"results": [], "next": "http://elsewhere/"},
        {"results": [], "next": "http://elsewhere/?page_size=50"},
    ],
    ids=str,
)
async def test_a_page_of_another_form_is_no_answer(tmp_path: Path, way: str, page: object) -> None:
    answer = http(200, page)
    async with scripted(tmp_path, lambda *_: answer) as (_, port, socket), asking(way, port, socket) as ask:
        with pytest.raises(CannotTell):
            await ask("get_content_metadata", ACME, [ALL])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ids", [b"course-v1:a+b+c", [None], [5], [b"a"]], ids=str)
async def test_what_is_no_content_key_is_not_asked_about(tmp_path: Path, way: str, ids: object) -> None:
    answer = http(200, {"contains_content_items": False, "catalog_list": []})
    async with scripted(tmp_path, lambda *_: answer) as (server, port, socket), asking(way, port, socket) as ask:
        for question in ("contains_content_items", "enterprise_contains_content_items"):
            with pytest.raises(TypeError, match="is no content key"):
                await ask(question, ALL, ids)
    assert server.heads == []
