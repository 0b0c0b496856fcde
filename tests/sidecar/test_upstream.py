"""What is not ours is passed on and its answer passed back, byte for byte, and nobody waits for ever."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse, ServerDisconnectedError, web
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict
from yarl import URL

from sidecar.app import Sidecar
from sidecar.handlers import RETRY_AFTER_S
from sidecar.settings import Settings, SidecarSettings, UpstreamSettings
from sidecar.store.memory import MemoryStore
from sidecar.upstream import MAX_UNDER_WAY
from tests.fakes import FakeClock

Client = TestClient[web.Request, web.Application]
Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]
MIB = 1024 * 1024
# What a client of ours may be told.
LARGE: dict[str, Any] = {"max_line_size": 65_536, "max_field_size": 65_536, "max_headers": 500}
THEIRS = "/api/v1/academies/"


class Received:
    """The last request as the upstream service got it."""

    def __init__(self, request: web.Request, body: bytes) -> None:
        self.method, self.raw_path, self.headers, self.body = request.method, request.raw_path, request.headers, body


class Rig:
    """A sidecar before a service, which answers what the test says."""

    client: Client
    sidecar: Sidecar

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answering: Answering | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.answering is not None:
            return await self.answering(request)
        self.received.append(Received(request, await request.read()))
        return web.json_response({"theirs": True})

    async def ask(self, method: str, path: str, **more: Any) -> ClientResponse:
        return await self.client.request(method, URL(path, encoded=True), allow_redirects=False, **more)

    async def until_under_way(self, count: int) -> None:
        """Waits until so many requests are under way."""
        assert self.sidecar.upstream is not None
        async with asyncio.timeout(30):
            while len(self.sidecar.upstream._under_way) != count:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    def counted(self, outcome: str) -> float:
        name, labels = "catalog_sidecar_upstream_requests_total", {"outcome": outcome}
        return self.sidecar.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def before(url: str, *, silence_s: float = 20.0, origins: str = "") -> AsyncIterator[tuple[Sidecar, Client]]:
    """A sidecar that passes on to this url."""
    settings = Settings(
        sidecar=SidecarSettings(disk="", cors_origins=origins),
        upstream=UpstreamSettings(url=url, timeout_s=silence_s),
    )
    sidecar = Sidecar(settings, MemoryStore(), FakeClock())
    async with TestClient(await _untouched(sidecar.app), auto_decompress=False, **LARGE) as client:
        yield sidecar, client


async def _untouched(app: web.Application) -> TestServer:
    """A server that unpacks nothing, as that of the real process."""
    server = TestServer(app)
    await server.start_server(auto_decompress=False, access_log=None)
    return server


@asynccontextmanager
async def saying(said: bytes) -> AsyncIterator[str]:
    """A service that says these bytes to the head of whatever it is asked; its url."""
    writers = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    app = web.Application(client_max_size=100 * MIB)
    app.router.add_route("*", "/{path:.*}", rig.handle)
    async with await _untouched(app) as server, before(str(server.make_url("/base/")), silence_s=1.0) as made:
        rig.sidecar, rig.client = made
        yield rig


async def test_what_is_ours_is_not_passed_on(rig: Rig) -> None:
    for path in (
        "/api/v1/enterprise-catalogs/",
        "/api/v1/content-metadata/",
        "/enterprise/api/v1/enterprise_catalogs/",
    ):
        assert (await rig.ask("GET", path)).status == 503
    assert (await rig.ask("GET", "/health")).status == 503
    assert (await rig.ask("PUT", "/api/v1/catalog-queries/")).status == 405
    assert rig.received == []


async def test_without_an_upstream_what_is_not_ours_is_not_found() -> None:
    async with before("") as (_, client):
        answer = await client.get(THEIRS)
        assert (answer.status, await answer.json()) == (404, {"detail": "Not found."})


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_method_path_and_query_arrive_as_they_were_sent(rig: Rig, method: str) -> None:
    path = "/api/v1/a%2Bb/%C3%9C/c;x=1/?q=%2B+a&&b=%zz"
    answer = await rig.ask(method, path)
    assert answer.status == 200
    got = rig.received[-1]
    assert (got.method, got.raw_path, got.body) == (method, f"/base{path}", b"")
    assert "Content-Length" not in got.headers or got.headers["Content-Length"] == "0"


async def test_bodies_go_both_ways_whatever_their_size(rig: Rig) -> None:
    """Ten times what our own routes take."""
    body = bytes(range(256)) * (25 * MIB // 256)

    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-own"})
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    rig.answering = echo
    answer = await rig.ask("POST", THEIRS, data=BytesIO(body))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-own")
    assert await answer.read() == body

    async def pieces() -> AsyncIterator[bytes]:
        for first in range(0, 3 * MIB, MIB):
            yield body[first : first + MIB]

    answer = await rig.ask("PUT", THEIRS, data=pieces())
    assert await answer.read() == body[: 3 * MIB]


async def test_a_body_is_passed_on_while_it_arrives(rig: Rig) -> None:
    """Neither side waits for the end of the other."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            heard.put_nowait(piece)
            await response.write(piece.upper())
        return response

    rig.answering = listen

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two"):
            yield piece
            async with asyncio.timeout(10):
                assert await heard.get() == piece

    answer = await rig.ask("POST", THEIRS, data=pieces())
    assert await answer.read() == b"ONETWO"


async def test_what_is_packed_stays_packed(rig: Rig) -> None:
    packed = gzip.compress(b"theirs" * 100)

    async def answering(request: web.Request) -> web.StreamResponse:
        assert await request.content.read() == packed
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    rig.answering = answering
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    answer = await rig.ask("POST", THEIRS, data=packed, headers=headers)
    assert (answer.headers["Content-Encoding"], answer.headers["Content-Length"]) == ("gzip", str(len(packed)))
    assert await answer.read() == packed


async def test_headers_of_one_connection_stay_on_it(rig: Rig) -> None:
    async def answering(request: web.Request) -> web.StreamResponse:
        rig.received.append(Received(request, b""))
        headers = CIMultiDict(
            [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Own", "1"), ("Keep-Alive", "timeout=1")]
        )
        headers["Connection"] = "x-dropped"
        headers["X-Dropped"] = "1"
        return web.Response(status=418, reason="Teapot", headers=headers)

    rig.answering = answering
    sent = {
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "1",
        "TE": "trailers",
        "Proxy-Authorization": "Basic eDp5",
        "Authorization": "JWT a.b.c",
        "Cookie": "sessionid=1",
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "User-Agent": "own/1",
    }
    answer = await rig.ask("GET", THEIRS, headers=sent)
    got = rig.received[-1].headers
    assert not {"X-Mine", "TE", "Proxy-Authorization"} & set(got)
    assert {name: got[name] for name in ("Authorization", "Cookie", "User-Agent")} == {
        name: sent[name] for name in ("Authorization", "Cookie", "User-Agent")
    }
    assert got["X-Forwarded-For"] == "203.0.113.7, 127.0.0.1"
    assert got["X-Forwarded-Proto"] == "https"
    assert got["X-Forwarded-Host"] == f"127.0.0.1:{rig.client.port}"
    assert got["Host"] != got["X-Forwarded-Host"]
    assert (answer.status, answer.reason, answer.headers["X-Own"]) == (418, "Teapot", "1")
    assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert not {"X-Dropped", "Keep-Alive"} & set(answer.headers)


async def test_a_redirect_is_the_callers_to_follow(rig: Rig) -> None:
    async def answering(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "https://elsewhere.example.test/"})

    rig.answering = answering
    answer = await rig.ask("GET", THEIRS)
    assert (answer.status, answer.headers["Location"]) == (302, "https://elsewhere.example.test/")


async def test_what_would_go_round_is_refused(tmp_path: Path) -> None:
    """A sidecar that is its own upstream, and two that are each other's."""
    async with before("http://127.0.0.1:1") as (first, one), before(str(one.make_url("/"))) as (_, two):
        assert first.upstream is not None
        for back in (str(one.make_url("")), str(two.make_url(""))):
            first.upstream._base = back.rstrip("/")
            for client in (one, two):
                answer = await client.get(THEIRS)
                assert answer.status == 508
                assert (await answer.json())["detail"].startswith("This request has come through here already")


async def test_more_hops_than_anybody_needs_are_a_loop(rig: Rig) -> None:
    """Workers of one host have names of their own."""
    for hops, status in ((3, 200), (4, 508)):
        via = ", ".join(f"1.1 catalog-sidecar-{n:08x}" for n in range(hops))
        answer = await rig.ask("GET", THEIRS, headers={"Via": f"1.0 squid (x), {via}"})
        assert answer.status == status
    assert rig.counted("loop") == 1


async def test_a_service_that_is_down_is_told() -> None:
    async with before("http://127.0.0.1:1") as (_, client):
        answer = await client.get(THEIRS)
        assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
        assert await answer.json() == {"detail": "The upstream service cannot be reached."}


async def test_a_service_that_says_nothing_is_not_waited_for_for_ever(rig: Rig) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    rig.answering = silent
    answer = await rig.ask("GET", THEIRS)
    assert (answer.status, answer.headers["Retry-After"]) == (504, str(RETRY_AFTER_S))
    assert rig.counted("timeout") == 1


async def test_half_an_answer_is_not_taken_for_a_whole_one(rig: Rig) -> None:
    for length in ({"Content-Length": "10"}, {}):

        async def stopping(request: web.Request, headers: dict[str, str] = length) -> web.StreamResponse:
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            await response.write(b"half")
            await asyncio.sleep(60)
            raise AssertionError

        rig.answering = stopping
        answer = await rig.ask("GET", THEIRS)
        assert answer.status == 200
        with pytest.raises((ClientPayloadError, ServerDisconnectedError, ConnectionError)):
            await answer.read()
    assert rig.counted("cut") == 2


async def test_a_request_that_broke_off_is_not_sent_again() -> None:
    """A service that hangs up after the head of whatever it is asked."""
    heads = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[0])
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with before(f"http://127.0.0.1:{port}") as (_, client):
            for method in ("POST", "PUT", "DELETE"):
                answer = await client.request(method, THEIRS)
                assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
    assert heads == [b"POST", b"PUT", b"DELETE"]


async def test_a_connection_that_was_closed_meanwhile_costs_a_reader_nothing() -> None:
    """Services close what is idle; what has not been heard is sent on another connection."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        # Says nothing of it: the next request finds the connection closed.
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with before(f"http://127.0.0.1:{port}") as (_, client):
            for _ in range(10):
                assert (await client.get(THEIRS)).status == 200


async def test_a_caller_that_stops_within_its_body_is_given_up(rig: Rig) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.client.port)
    writer.write(f"POST {THEIRS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc".encode())
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_a_host_in_a_target_is_not_asked(rig: Rig) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.client.port)
    writer.write(b"GET http://elsewhere.example.test/y?z HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert [got.raw_path for got in rig.received] == ["/base/y?z"]
    writer.close()


ONE = "api/v1/enterprise-catalogs/cc5b5eb4-74d6-4cc6-8465-f9d4082c30a2/"


@pytest.mark.parametrize(
    "path",
    [
        f"//{ONE}",
        f"/x//{ONE}",
        f"/x/../{ONE}",
        f"/./{ONE}",
        f"/%2e%2e/{ONE}",
        f"/api%2F{ONE[4:]}",
        f"/{ONE}refresh_metadata/x",
        f"/{ONE}get_content_metadataXYZ",
        f"/{ONE}generate_diff.json",
        "/x/..",
        "/a\\b",
        "//elsewhere.example.test/x",
    ],
)
async def test_what_may_be_read_as_a_path_of_ours_is_nobodys(rig: Rig, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.client.port)
    for method in ("GET", "DELETE"):
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
            await reader.readuntil(b"}")
    assert rig.received == []
    writer.close()


async def test_a_service_that_does_not_read_is_given_up(rig: Rig) -> None:
    over = asyncio.Event()

    async def deaf(_: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    rig.answering = deaf

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)

    async with asyncio.timeout(30):
        try:
            answer = await rig.ask("POST", THEIRS, data=endless())
            assert answer.status == 504
        except ConnectionError:
            # The answer comes while the body is still on its way, and may be lost with it.
            pass
    assert rig.counted("timeout") == 1
    over.set()


async def test_callers_that_have_gone_hold_nothing_up(rig: Rig) -> None:
    """As many as may be under way at once, each to something that never answers."""
    silent = asyncio.Event()

    async def answering(request: web.Request) -> web.StreamResponse:
        if "silent" in request.path:
            await silent.wait()
        return web.json_response({})

    rig.answering = answering
    assert rig.sidecar.upstream is not None
    rig.sidecar.upstream._silence_s = 60.0
    writers = []
    for _ in range(MAX_UNDER_WAY):
        _, writer = await asyncio.open_connection("127.0.0.1", rig.client.port)
        writer.write(b"GET /silent HTTP/1.1\r\nHost: x\r\n\r\n")
        writers.append(writer)
    await rig.until_under_way(MAX_UNDER_WAY)
    answer = await rig.ask("GET", THEIRS)
    assert (answer.status, rig.counted("busy")) == (503, 1)
    for writer in writers:
        writer.transport.abort()
    await rig.until_under_way(0)
    assert (await rig.ask("GET", THEIRS)).status == 200
    silent.set()


async def test_who_waits_is_answered_when_the_process_ends(rig: Rig) -> None:
    silent = asyncio.Event()

    async def answering(_: web.Request) -> web.StreamResponse:
        await silent.wait()
        return web.json_response({})

    rig.answering = answering
    asking = asyncio.create_task(rig.ask("GET", THEIRS))
    assert rig.sidecar.upstream is not None
    await rig.until_under_way(1)
    async with asyncio.timeout(10):
        rig.sidecar.upstream.stop()
        assert (await asking).status == 503
        assert (await rig.ask("GET", THEIRS)).status == 503
    silent.set()


@pytest.mark.parametrize(
    "said, status",
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 40_000 + b"\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 400 + b"Content-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 502),
        (b"garbage\r\n\r\n", 502),
    ],
)
async def test_what_is_no_http_is_said_to_be_none(said: bytes, status: int) -> None:
    async with saying(said) as url, before(url) as (_, client):
        answer = await client.get(THEIRS)
        assert (answer.status, "Retry-After" in answer.headers) == (status, False)


async def test_no_header_is_added_that_an_answer_did_not_have() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    async with saying(said) as url, before(url) as (_, client):
        answer = await client.get(THEIRS)
        assert set(answer.headers) == {"Content-Length", "Via", "Date"}


async def test_what_the_service_says_of_origins_stands_beside_ours(rig: Rig) -> None:
    async def answering(_: web.Request) -> web.StreamResponse:
        headers = {"Vary": "Accept, origin", "Access-Control-Expose-Headers": "X-Own"}
        headers["Access-Control-Allow-Origin"] = "https://elsewhere.example.test"
        return web.Response(headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", rig.handle)
    rig.answering = answering
    portal = "https://portal.example.test"
    async with TestServer(app) as server, before(str(server.make_url("/")), origins=portal) as (_, client):
        headers = (await client.get(THEIRS, headers={"Origin": portal})).headers
        assert headers.getall("Vary") == ["Accept, origin"]
        assert headers.getall("Access-Control-Allow-Origin") == [portal]
        assert headers["Access-Control-Expose-Headers"].split(", ")[0] == "X-Own"
        asked = {"Origin": portal, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-own"}
        assert (await client.options(THEIRS, headers=asked)).headers["Access-Control-Allow-Headers"] == "x-own"
