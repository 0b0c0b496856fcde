"""Writes reach the indexer as they were sent; they are answered once they can be read back, or with what is known."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs
from yarl import URL

from indexer.registry import generations
from sidecar.app import Sidecar
from sidecar.catalogs import CATALOGS
from sidecar.current import Current, Generation
from sidecar.forward import BUSY, MAX_ANSWER_BYTES, MAX_UNDER_WAY_BYTES, UNKNOWN, UNREACHABLE, Deadlines, Forwarder
from sidecar.handlers import RETRY_AFTER_S, api_routes
from sidecar.intake import MAX_BODY_BYTES, runner_of
from sidecar.metrics import Metrics
from sidecar.parameters import Refusal
from sidecar.settings import Settings, SidecarSettings
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from sidecar.workers.siblings import Alone
from tests.fakes import FakeClock
from tests.sidecar.test_current import FIRST, generation
from tests.world import world

LIST = "/api/v1/enterprise-catalogs/"
ONE = f"{LIST}{FIRST}/"
REFRESH = f"{LIST}{FIRST}/refresh_metadata"
WRITES = [("POST", LIST), ("PUT", ONE), ("PATCH", ONE), ("DELETE", ONE), ("POST", REFRESH), ("POST", f"{REFRESH}/")]
# No test waits this long: where nothing comes, its own deadlines are short.
LONG = Deadlines(connect_s=10, exchange_s=30, answer_s=60)
AT_ONCE = 0.01
Client = TestClient[web.Request, web.Application]


class Received(NamedTuple):
    """A request as the indexer got it."""

    method: str
    raw_path: str
    headers: CIMultiDict[str]
    body: bytes


@dataclass
class FakeIndexer:
    """The indexer's API on loopback: keeps what it received, and answers what the test says once `gate` is open."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    before: Callable[[], Awaitable[None]] | None = None
    received: list[Received] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.received.append(Received(request.method, request.raw_path, CIMultiDict(request.headers), body))
        self.asked.set()
        await self.gate.wait()
        if self.before is not None:
            await self.before()
        return web.Response(status=self.status, body=self.body, headers=self.headers)


class WatchedCurrent(Current):
    """Tells when somebody has begun to wait for a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = asyncio.Event()

    async def covering(self, clock: int) -> Generation:
        self.waited_for.set()
        return await super().covering(clock)


class LateSiblings(Alone):
    """Siblings who come to serve a generation when the test says so."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Pointer] = asyncio.Queue()
        self.served = asyncio.Event()
        self.served.set()

    async def serve(self, pointer: Pointer) -> None:
        self.asked.put_nowait(pointer)
        await self.served.wait()


class Rig:
    """The routes of catalogs before an indexer, and a client of them."""

    client: Client

    def __init__(self, indexer: FakeIndexer, url: str, deadlines: Deadlines) -> None:
        self.indexer = indexer
        self.metrics = Metrics()
        self.current = WatchedCurrent()
        self.current.swap(generation(1, clock=5))
        self.siblings = LateSiblings()
        self.forwarder = Forwarder(url, self.current, self.metrics, deadlines, siblings=self.siblings)

    async def ask(self, method: str, path: str, query: str = "", **more: Any) -> ClientResponse:
        url = URL(path + (f"?{query}" if query else ""), encoded=True)
        return await self.client.request(method, url, allow_redirects=False, **more)

    def ask_soon(self, method: str = "PUT", path: str = ONE) -> "asyncio.Task[ClientResponse]":
        return asyncio.create_task(self.ask(method, path))

    def counted(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("catalog_sidecar_writes_total", labels) or 0.0


@asynccontextmanager
async def rig_before(indexer: FakeIndexer, url: str, deadlines: Deadlines = LONG) -> AsyncIterator[Rig]:
    rig = Rig(indexer, url, deadlines)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes(api_routes(CATALOGS, rig.current, rig.forwarder, FakeClock()))
    async with TestClient(TestServer(app)) as rig.client:
        yield rig


@asynccontextmanager
async def served(indexer: FakeIndexer) -> AsyncIterator[str]:
    """Where the indexer listens."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", indexer.handle)
    async with TestServer(app) as server:
        yield str(server.make_url(""))


@asynccontextmanager
async def raw(answer: bytes, *, hangs_up: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers these bytes to the head of any request; its url, and the heads that it got."""
    heads: list[bytes] = []
    writers = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        head, end, body = answer.partition(b"\r\n\r\n")
        writer.write(head + end)
        await writer.drain()
        writer.write(body)
        if hangs_up:
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    for writer in writers:
        writer.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    indexer = FakeIndexer()
    async with served(indexer) as url, rig_before(indexer, url) as rig:
        yield rig


@pytest.mark.parametrize("method, path", WRITES)
async def test_method_path_query_and_body_arrive_as_they_were_sent(rig: Rig, method: str, path: str) -> None:
    body = bytes(range(256)) * 3
    assert (await rig.ask(method, path, "a=%2B+b&&c=%zz&a=~%7e;", data=body)).status == 200
    (got,) = rig.indexer.received
    assert (got.method, got.raw_path, got.body) == (method, f"{path}?a=%2B+b&&c=%zz&a=~%7e;", body)
    assert got.headers["Content-Length"] == str(len(body))


async def test_the_largest_body_arrives_whole(rig: Rig) -> None:
    body = b'"' + b"x" * (MAX_BODY_BYTES - 2) + b'"'
    assert (await rig.ask("PUT", ONE, data=BytesIO(body))).status == 200
    assert rig.indexer.received[0].body == body


async def test_no_body_stays_none(rig: Rig) -> None:
    await rig.ask("POST", REFRESH)
    (got,) = rig.indexer.received
    assert (got.body, got.headers.get("Content-Length")) == (b"", "0")


async def test_only_the_headers_that_the_indexer_needs_are_passed_on(rig: Rig) -> None:
    needed = {
        "Content-Type": "application/json; charset=utf-8",
        "Accept": "application/json, */*",
        "Authorization": "JWT a.b.c",
        "Cookie": "edx-jwt-cookie-header-payload=a.b; x=é",
        "USE-JWT-COOKIE": "true",
        "X-Request-ID": "r-1",
    }
    others = {"X-Forwarded-For": "10.0.0.1", "Origin": "https://x.test", "User-Agent": "x", "Accept-Encoding": "gzip"}
    await rig.ask("PUT", ONE, data=b"{}", headers={**needed, **others, "X-Catalog-Clock": "1"})
    (got,) = rig.indexer.received
    del got.headers["Host"], got.headers["Content-Length"]
    assert dict(got.headers) == {**needed, "Connection": "close"}
    rig.indexer.received.clear()
    await rig.ask("DELETE", ONE, headers={"Accept": "*/*", "User-Agent": "x"})
    assert sorted(rig.indexer.received[0].headers) == ["Accept", "Connection", "Content-Length", "Host", "X-Request-ID"]


@pytest.mark.parametrize("given", [{}, {"X-Request-ID": "not {sane}"}])
async def test_a_write_without_a_sane_id_is_passed_on_under_one_of_its_own(rig: Rig, given: dict[str, str]) -> None:
    await rig.ask("DELETE", ONE, headers=given)
    assert re.fullmatch("[0-9a-f]{32}", rig.indexer.received[0].headers["X-Request-ID"])


async def test_bytes_that_are_no_text_do_not_stop_a_write(rig: Rig) -> None:
    url = rig.client.make_url("")
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"DELETE {ONE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: a=b; x=".encode() + b"\xff\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert rig.indexer.received[0].headers["Cookie"] == "a=b; x=\N{REPLACEMENT CHARACTER}"


async def test_each_write_has_a_connection_of_its_own_and_no_cookie_is_kept(rig: Rig) -> None:
    rig.indexer.headers = {"Set-Cookie": "session=1; Path=/"}
    for _ in range(2):
        answer = await rig.ask("PUT", ONE)
        assert "Set-Cookie" not in answer.headers
    assert [got.headers.get("Cookie") for got in rig.indexer.received] == [None, None]
    assert [got.headers["Connection"] for got in rig.indexer.received] == ["close", "close"]


async def test_status_body_and_headers_come_back(rig: Rig) -> None:
    rig.indexer.status, rig.indexer.body = 401, b'{"detail":"\xc3\xa9"}'
    returned = {
        "Content-Type": "application/json",
        "Allow": "PUT",
        "Location": "/elsewhere",
        "Retry-After": "7",
        "WWW-Authenticate": 'JWT realm="api"',
    }
    rig.indexer.headers = {**returned, "X-Other": "1", "X-Catalog-Clock": "4"}
    answer = await rig.ask("PUT", ONE)
    assert (answer.status, await answer.read()) == (401, rig.indexer.body)
    assert {name: answer.headers[name] for name in returned} == returned
    assert answer.headers["Cache-Control"] == "no-store"
    for name in ("X-Other", "X-Catalog-Clock", "X-Catalog-Generation", "X-Catalog-Published"):
        assert name not in answer.headers
    assert rig.counted("refused") == 1


async def test_the_answer_to_a_write_is_xml_where_that_was_asked_for(rig: Rig) -> None:
    rig.indexer.body, rig.indexer.headers = b'{"title":"a<b"}', {"Content-Type": "application/json"}
    answer = await rig.ask("PUT", ONE, headers={"Accept": "application/xml"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/xml; charset=utf-8")
    assert (await answer.text()).endswith("<root><title>a&lt;b</title></root>")
    # Made is made, whatever stands between here and the indexer.
    rig.indexer.body = b"<html>"
    answer = await rig.ask("PUT", ONE, headers={"Accept": "application/xml"})
    assert (answer.status, await answer.read()) == (200, b"<html>")


@pytest.mark.parametrize("end", [".json", ".json/"])
async def test_a_format_at_the_end_of_a_path_is_not_the_indexers(rig: Rig, end: str) -> None:
    for path in (LIST, ONE):
        method = "POST" if path == LIST else "PUT"
        assert (await rig.ask(method, f"{path.removesuffix('/')}{end}", "a=1")).status == 200
        assert rig.indexer.received[-1].raw_path == f"{path}?a=1"


async def test_a_deletion_is_answered_without_a_body(rig: Rig) -> None:
    rig.indexer.status, rig.indexer.body = 204, b""
    rig.indexer.headers = {"X-Catalog-Clock": "5"}
    answer = await rig.ask("DELETE", ONE)
    assert (answer.status, await answer.read(), answer.headers["X-Catalog-Generation"]) == (204, b"", "1")
    assert "Content-Type" not in answer.headers
    assert answer.headers["Allow"] == "GET, PUT, PATCH, DELETE, HEAD, OPTIONS"


@pytest.mark.parametrize("status, outcome", [(400, "refused"), (409, "refused"), (500, "failed"), (503, "failed")])
async def test_what_was_not_made_is_not_waited_for(rig: Rig, status: int, outcome: str) -> None:
    rig.indexer.status, rig.indexer.headers = status, {"X-Catalog-Clock": "99"}
    assert (await rig.ask("PUT", ONE)).status == status
    assert rig.counted(outcome) == 1


@pytest.mark.parametrize("clock", [None, "", "x", "-1", "1.5", "9" * 5000])
async def test_without_a_clock_there_is_nothing_to_wait_for(rig: Rig, clock: str | None) -> None:
    rig.indexer.headers = {} if clock is None else {"X-Catalog-Clock": clock}
    answer = await rig.ask("POST", REFRESH)
    assert answer.status == 200
    assert "X-Catalog-Generation" not in answer.headers
    assert "X-Catalog-Published" not in answer.headers
    assert rig.counted("accepted") == 1


async def test_a_redirect_is_the_callers_to_follow(rig: Rig) -> None:
    rig.indexer.status, rig.indexer.headers = 307, {"Location": "/api/v1/elsewhere/"}
    answer = await rig.ask("PUT", ONE, data=b"{}")
    assert (answer.status, answer.headers["Location"]) == (307, "/api/v1/elsewhere/")
    assert len(rig.indexer.received) == 1


async def test_an_answer_waits_until_its_clock_is_served(rig: Rig) -> None:
    rig.indexer.status, rig.indexer.headers = 201, {"X-Catalog-Clock": "7"}
    write = rig.ask_soon("POST", LIST)
    await rig.current.waited_for.wait()
    rig.current.swap(generation(2, clock=6))
    rig.current.swap(generation(3, clock=7))
    answer = await write
    assert (answer.status, answer.headers["X-Catalog-Generation"]) == (201, "3")
    assert rig.counted("loaded") == 1


async def test_an_answer_waits_until_all_siblings_serve_what_is_served_here(rig: Rig) -> None:
    rig.siblings.served.clear()
    rig.indexer.headers = {"X-Catalog-Clock": "7"}
    write = rig.ask_soon()
    await rig.current.waited_for.wait()
    rig.current.swap(generation(2, clock=7))
    assert (await rig.siblings.asked.get()).generation == 2
    assert not write.done()
    rig.siblings.served.set()
    assert (await write).headers["X-Catalog-Generation"] == "2"


async def test_siblings_that_do_not_come_to_serve_it_leave_it_pending() -> None:
    indexer = FakeIndexer(headers={"X-Catalog-Clock": "5"})
    async with served(indexer) as url, rig_before(indexer, url, LONG._replace(answer_s=AT_ONCE)) as rig:
        rig.siblings.served.clear()
        assert (await rig.ask("PUT", ONE)).headers["X-Catalog-Published"] == "pending"
        assert rig.counted("pending") == 1


async def test_two_writes_wait_each_for_its_own(rig: Rig) -> None:
    rig.indexer.headers = {"X-Catalog-Clock": "7"}
    first = rig.ask_soon()
    await rig.current.waited_for.wait()
    rig.indexer.asked.clear()
    rig.indexer.gate.clear()
    second = rig.ask_soon()
    await rig.indexer.asked.wait()
    rig.indexer.headers = {"X-Catalog-Clock": "9"}
    rig.indexer.gate.set()
    rig.current.swap(generation(2, clock=8))
    assert (await first).headers["X-Catalog-Generation"] == "2"
    assert not second.done()
    rig.current.swap(generation(3, clock=9))
    assert (await second).headers["X-Catalog-Generation"] == "3"


async def test_past_the_deadline_it_is_pending() -> None:
    indexer = FakeIndexer(status=201, headers={"X-Catalog-Clock": "7"}, body=b'{"uuid":"x"}')
    async with served(indexer) as url, rig_before(indexer, url, LONG._replace(answer_s=AT_ONCE)) as rig:
        answer = await rig.ask("POST", LIST)
        assert (answer.status, await answer.read()) == (201, indexer.body)
        assert answer.headers["X-Catalog-Published"] == "pending"
        assert "X-Catalog-Generation" not in answer.headers
        assert rig.counted("pending") == 1


async def test_what_the_indexer_calls_pending_may_be_loaded_all_the_same(rig: Rig) -> None:
    rig.indexer.headers = {"X-Catalog-Clock": "7", "X-Catalog-Published": "pending"}
    write = rig.ask_soon()
    await rig.current.waited_for.wait()
    rig.current.swap(generation(2, clock=7))
    answer = await write
    assert answer.headers["X-Catalog-Generation"] == "2"
    assert "X-Catalog-Published" not in answer.headers


async def test_what_is_held_back_behind_a_pin_is_not_waited_for(rig: Rig) -> None:
    """No generation that shows it comes before somebody unpins, which may take days."""
    rig.indexer.headers = {"X-Catalog-Clock": "7", "X-Catalog-Published": "pending", "X-Catalog-Pinned": "3"}
    answer = await rig.ask("PUT", ONE)
    assert answer.headers["X-Catalog-Published"] == "pending"
    assert "X-Catalog-Pinned" not in answer.headers
    assert not rig.current.waited_for.is_set()
    assert rig.counted("pending") == 1


async def test_whoever_waits_is_answered_once_waiting_is_over(rig: Rig) -> None:
    rig.indexer.headers = {"X-Catalog-Clock": "7"}
    write = rig.ask_soon()
    await rig.current.waited_for.wait()
    rig.forwarder.stop()
    async with asyncio.timeout(10):
        assert (await write).headers["X-Catalog-Published"] == "pending"
        assert (await rig.ask("PUT", ONE)).headers["X-Catalog-Published"] == "pending"


async def test_reads_go_on_while_a_write_waits(rig: Rig) -> None:
    rig.indexer.gate.clear()
    write = rig.ask_soon()
    await rig.indexer.asked.wait()
    assert (await rig.ask("GET", ONE)).status == 200
    rig.indexer.gate.set()
    assert (await write).status == 200


async def _no_answer(answer: ClientResponse, detail: str) -> None:
    assert (answer.status, await answer.json()) == (503, {"detail": detail})
    assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
    assert "X-Catalog-Generation" not in answer.headers


@pytest.mark.parametrize("method, path", WRITES)
async def test_an_indexer_that_is_down_is_told_and_reads_go_on(method: str, path: str) -> None:
    async with served(FakeIndexer()) as url:
        pass
    async with rig_before(FakeIndexer(), url) as rig:
        answer = await rig.ask(method, path, data=b"{}")
        await _no_answer(answer, UNREACHABLE)
        assert (await rig.ask("GET", ONE)).status == 200
        assert (await rig.ask("GET", LIST)).status == 200
        assert rig.counted("unreachable") == 1


async def test_a_host_without_an_address_is_out_of_reach() -> None:
    async with rig_before(FakeIndexer(), "http://no-such-host.invalid") as rig:
        await _no_answer(await rig.ask("PUT", ONE), UNREACHABLE)


async def test_a_connection_that_takes_too_long_was_not_used() -> None:
    indexer = FakeIndexer()
    async with served(indexer) as url, rig_before(indexer, url, LONG._replace(connect_s=1e-9)) as rig:
        await _no_answer(await rig.ask("PUT", ONE), UNREACHABLE)
        assert indexer.received == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * (MAX_ANSWER_BYTES + 1),
    ],
)
async def test_an_answer_that_breaks_off_is_unknown_and_nothing_is_sent_again(method: str, answer: bytes) -> None:
    async with raw(answer) as (url, heads), rig_before(FakeIndexer(), url) as rig:
        await _no_answer(await rig.ask(method, ONE), UNKNOWN)
        assert len(heads) == 1
        assert rig.counted("unknown") == 1


async def test_an_indexer_that_says_nothing_is_not_waited_for_for_ever() -> None:
    indexer = FakeIndexer()
    indexer.gate.clear()
    async with served(indexer) as url, rig_before(indexer, url, LONG._replace(exchange_s=0.2)) as rig:
        await _no_answer(await rig.ask("PUT", ONE), UNKNOWN)
        assert len(indexer.received) == 1
        indexer.gate.set()


async def test_an_answer_that_does_not_end_is_not_waited_for_either() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    short = LONG._replace(exchange_s=0.2)
    async with raw(head, hangs_up=False) as (url, _), rig_before(FakeIndexer(), url, short) as rig:
        await _no_answer(await rig.ask("PUT", ONE), UNKNOWN)


async def test_what_the_log_says_has_no_secret() -> None:
    async with raw(b"nonsense\r\n\r\n") as (url, _), rig_before(FakeIndexer(), url) as rig:
        with capture_logs() as logs:
            await rig.ask("PUT", ONE, "token=s3cret", headers={"Authorization": "JWT s3cret", "Cookie": "s3cret"})
    assert [entry["outcome"] for entry in logs] == ["unknown"]
    assert "s3cret" not in str(logs)


async def test_a_path_of_the_indexer_goes_first_and_a_user_in_its_url_does_not_replace_the_caller() -> None:
    indexer = FakeIndexer()
    async with served(indexer) as url, rig_before(indexer, str(URL(url).with_user("u") / "below/")) as rig:
        assert (await rig.ask("PUT", ONE, headers={"Authorization": "JWT a"})).status == 200
    assert (indexer.received[0].raw_path, indexer.received[0].headers["Authorization"]) == (f"/below{ONE}", "JWT a")


async def test_what_cannot_be_a_write_is_not_forwarded(rig: Rig) -> None:
    refused: list[tuple[str, dict[str, Any], int]] = [
        (f"{LIST}not-a-uuid/", {}, 404),
        (f"{LIST}..%2F..%2Fhealth/", {}, 404),
        (ONE, {"headers": {"Accept": "text/html"}}, 406),
        (ONE, {"data": b"x", "headers": {"Content-Encoding": "identity"}}, 415),
        (ONE, {"data": BytesIO(bytes(MAX_BODY_BYTES + 1))}, 413),
    ]
    for path, more, status in refused:
        assert (await rig.ask("PUT", path, **more)).status == status
    assert rig.indexer.received == []


class Process:
    """A sidecar behind the server of the real process, before an indexer whose writes carry the clock 7."""

    def __init__(self, url: str) -> None:
        settings = Settings(sidecar=SidecarSettings(disk="", indexer_url=url))
        self.sidecar = Sidecar(settings, MemoryStore(), FakeClock())
        self.runner = runner_of(self.sidecar.app)

    async def send(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends a DELETE."""
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*self.runner.addresses[0])
        writer.write(f"DELETE {ONE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return reader, writer


async def test_writes_that_wait_are_answered_when_the_process_ends() -> None:
    indexer = FakeIndexer(headers={"X-Catalog-Clock": "7"})
    async with served(indexer) as url, asyncio.timeout(10):
        process = Process(url)
        reader, writer = await process.send()
        await indexer.asked.wait()
        await process.runner.cleanup()
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"X-Catalog-Published: pending\r\n" in head


async def test_a_write_goes_on_when_its_caller_hangs_up() -> None:
    indexer = FakeIndexer(headers={"X-Catalog-Clock": "7"})
    indexer.gate.clear()
    async with served(indexer) as url, asyncio.timeout(10):
        process = Process(url)
        _, writer = await process.send()
        await indexer.asked.wait()
        writer.transport.abort()
        process.sidecar.current.swap(generation(2, clock=7))
        indexer.gate.set()
        # It ends once what is under way has ended.
        await process.runner.cleanup()
    labels = {"outcome": "loaded"}
    assert process.sidecar.metrics.registry.get_sample_value("catalog_sidecar_writes_total", labels) == 1


async def test_a_catalog_can_be_read_back_as_soon_as_its_creation_is_answered(tmp_path: Path) -> None:
    store, clock = MemoryStore(), FakeClock()
    async with world(tmp_path, store=store, clock=clock) as here:
        await here.publish()
        indexer, created = FakeIndexer(status=201), asyncio.Event()

        async def create() -> None:
            row = await here.add("new", {"org": "edX"})
            async with here.registry.read() as connection:
                indexer.headers = {"X-Catalog-Clock": str(await generations.clock(connection))}
            indexer.body = row.uuid.encode()
            created.set()

        indexer.before = create
        async with served(indexer) as url:
            settings = Settings(sidecar=SidecarSettings(disk="", indexer_url=url, poll_ms=10))
            sidecar = Sidecar(settings, store, clock)
            async with TestClient(TestServer(sidecar.app)) as client:
                first = await sidecar.current.other_than(None)
                write = asyncio.create_task(client.post(LIST))
                await created.wait()
                await here.publish()
                answer = await write
                loaded = sidecar.current.generation
                assert loaded is not None
                assert loaded.pointer.generation > first.pointer.generation
                assert answer.headers["X-Catalog-Generation"] == str(loaded.pointer.generation)
                uuid = UUID((await answer.read()).decode())
                record = await (await client.get(f"{LIST}{uuid}/")).json()
                assert (record["uuid"], record["title"]) == (str(uuid), "new")


def test_no_more_of_bodies_is_held_at_once_than_there_is_room_for() -> None:
    metrics = Metrics()
    forwarder = Forwarder("http://127.0.0.1:1", Current(), metrics)
    large = make_mocked_request("POST", "/", headers={"Content-Length": str(MAX_BODY_BYTES)})
    unknown = make_mocked_request("POST", "/", headers={"Transfer-Encoding": "chunked"})
    small = make_mocked_request("DELETE", "/", headers={"Content-Length": "0"})
    with ExitStack() as held:
        for _ in range(MAX_UNDER_WAY_BYTES // MAX_BODY_BYTES):
            held.enter_context(forwarder.room(large))
        for one in (large, unknown):
            with pytest.raises(Refusal) as refused, forwarder.room(one):
                pass
            assert (refused.value.status, refused.value.body) == (503, {"detail": BUSY})
        with forwarder.room(small):
            pass
    with forwarder.room(large), forwarder.room(unknown):
        pass
