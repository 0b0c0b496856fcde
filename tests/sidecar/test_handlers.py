"""The server of the real process takes bodies within their bounds, and leaves alone who has gone."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler as AppHandler
from structlog.testing import capture_logs

from sidecar.containment import CONTAINMENT
from sidecar.current import Current
from sidecar.edge import measured
from sidecar.forward import Forwarder
from sidecar.handlers import api_routes
from sidecar.intake import CLIENT_GONE, runner_of
from sidecar.metrics import Metrics
from tests.sidecar.fakes import FakeClock
from tests.trees import CUSTOMER

BODY_S = 1.0
FILTER = f"/api/v1/enterprise-customer/{CUSTOMER}/filter_content_items/"


class Raw:
    """The routes behind the server of the real process; knows of requests whose clients hear nothing any more."""

    port: int

    def __init__(self) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.statuses: list[int] = []

        @web.middleware
        async def middleware(request: web.Request, handler: AppHandler) -> web.StreamResponse:
            self.begun.set()
            response = await handler(request)
            self.statuses.append(response.status)
            self.ended.set()
            return response

        self.middleware = middleware

    async def send(self, head: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends the head and the body of a POST to the filter route, byte for byte."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"POST {FILTER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n".encode())
        writer.write(body)
        await writer.drain()
        return reader, writer


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    raw = Raw()
    current = Current()
    app = web.Application(middlewares=[raw.middleware, measured(Metrics(), FakeClock())])
    app.add_routes(
        api_routes(
            CONTAINMENT, current, Forwarder("http://127.0.0.1:1", current, Metrics()), FakeClock(), body_s=BODY_S
        )
    )
    runner = runner_of(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    raw.port = runner.addresses[0][1]
    yield raw
    await runner.cleanup()


async def test_a_body_that_does_not_arrive_is_answered_and_the_connection_closed(raw: Raw) -> None:
    reader, writer = await raw.send("Content-Length: 100\r\n", b"{")
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"}")
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in head
    assert body == b'{"detail":"The body did not arrive within 1 s."}'


@pytest.mark.parametrize("head", ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_a_client_that_hangs_up_within_its_body_is_no_error(raw: Raw, head: str) -> None:
    with capture_logs() as logs:
        _, writer = await raw.send(head, b"1\r\n{\r\n")
        async with asyncio.timeout(10):
            await raw.begun.wait()
            writer.close()
            await raw.ended.wait()
    assert logs == []
    assert raw.statuses == [CLIENT_GONE]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity", "x"])
async def test_a_compressed_body_is_refused_whole_or_cut(raw: Raw, encoding: str) -> None:
    packed = gzip.compress(b'{"content_keys": ["MITx+EC001"]}')
    for data in (packed, packed[:11], b"garbage"):
        reader, writer = await raw.send(f"Content-Encoding: {encoding}\r\nContent-Length: {len(data)}\r\n", data)
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"}")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert answer.endswith(f'{{"detail":"Unsupported content encoding \\"{encoding}\\" in request."}}'.encode())
