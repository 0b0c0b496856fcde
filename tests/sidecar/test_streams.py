"""Streams are sent whole or broken off, never held, and never let one caller keep the others waiting."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer

from sidecar.errors import ObjectMissing
from sidecar.metrics import Metrics
from sidecar.streams import Stream, StreamPayload, Vector

# More than the kernel keeps for a connection of which nobody reads.
MANY, MIB = 64, 1024 * 1024
FOREVER_S = 3600.0


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[Callable[[], Any]], None]:
    """Runs a test on asyncio's loop and on the service's own, which does the writing itself."""

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test())

    return run


class Source:
    """A stream of so many vectors of 1 MiB; tells how many were made, and when it was let go of."""

    def __init__(self, vectors: int, *, missing_from: int | None = None) -> None:
        self.made = 0
        self.ended = asyncio.Event()
        self._missing_from = missing_from
        self._metrics = Metrics()
        broken = self._metrics.broken_answers
        self.stream = Stream(1 + vectors * MIB, b"[", lambda: self._vectors(vectors), broken)

    def broken(self, reason: str) -> float | None:
        """How often it was broken off for this reason."""
        name = "catalog_sidecar_broken_answers_total"
        return self._metrics.registry.get_sample_value(name, {"reason": reason})

    async def _vectors(self, count: int) -> AsyncGenerator[Vector, None]:
        try:
            for n in range(count):
                if n == self._missing_from:
                    raise ObjectMissing("a document is in no tier")
                self.made += 1
                yield MIB, [b"%d" % (n % 10) * 1024] * 1024
        finally:
            self.ended.set()


def body_of(vectors: int) -> bytes:
    return b"[" + b"".join(b"%d" % (n % 10) * MIB for n in range(vectors))


@asynccontextmanager
async def serving(source: Callable[[], Source], *, stall_s: float = FOREVER_S) -> AsyncIterator[TestServer]:
    """A server that has the stream at / and something short at /short."""

    async def stream(_: web.Request) -> web.Response:
        headers = {"Content-Type": "application/json", "X-After": "1"}
        return web.Response(body=StreamPayload(source().stream, stall_s), headers=headers)

    async def short(_: web.Request) -> web.Response:
        return web.Response(body=b"short")

    app = web.Application()
    app.add_routes([web.get("/", stream), web.get("/short", short)])
    server = TestServer(app)
    async with server:
        yield server


async def asked(server: TestServer, *paths: str, method: str = "GET") -> socket.socket:
    """A connection on which these paths were asked for at once, and of which nothing was read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (server.host, server.port))
    lines = (f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths)
    await loop.sock_sendall(sock, "".join(lines).encode())
    return sock


async def answer(reader: asyncio.StreamReader) -> tuple[list[str], bytes]:
    """The names of an answer's headers, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    fields = [line.partition(": ")[::2] for line in head[1:] if line]
    return [name for name, _ in fields], await reader.readexactly(int(dict(fields)["Content-Length"]))


@on_both_loops
async def test_all_of_it_arrives_with_its_length_before_it_and_the_connection_goes_on() -> None:
    async with serving(lambda: Source(3)) as server:
        reader, writer = await asyncio.open_connection(sock=await asked(server, "/", "/short", "/"))
        names, body = await answer(reader)
        assert names == ["Content-Type", "X-After", "Content-Length", "Date", "Server"]
        assert body == body_of(3)
        assert (await answer(reader))[1] == b"short"
        assert (await answer(reader))[1] == body_of(3)
        writer.write(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(reader))[1] == b"short"
        writer.close()
        await writer.wait_closed()


@on_both_loops
async def test_head_tells_the_length_and_makes_nothing() -> None:
    source = Source(3)
    async with serving(lambda: source) as server, TestClient(server) as client:
        told = await client.head("/")
        assert (told.headers["Content-Length"], await told.read()) == (str(1 + 3 * MIB), b"")
        assert await (await client.get("/short")).read() == b"short"
    assert source.made == 0


@on_both_loops
async def test_who_does_not_read_holds_little_and_delays_nobody() -> None:
    source = Source(MANY)
    async with serving(lambda: source) as server, TestClient(server) as client:
        sock = await asked(server, "/")
        assert await (await client.get("/short")).read() == b"short"
        while source.made < 2:
            assert await (await client.get("/short")).read() == b"short"
        for _ in range(200):
            assert await (await client.get("/short")).read() == b"short"
        assert source.made < MANY // 2
        # Whoever hangs up in the middle lets go of the rest at once.
        sock.close()
        await source.ended.wait()
        assert source.made < MANY // 2
        assert (source.broken("unread"), source.broken("lost")) == (0, 0)


@on_both_loops
async def test_who_does_not_read_is_hung_up_on() -> None:
    source = Source(MANY)
    async with serving(lambda: source, stall_s=0.05) as server:
        sock = await asked(server, "/")
        await source.ended.wait()
        assert source.made < MANY // 2
        reader, writer = await asyncio.open_connection(sock=sock)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await answer(reader)
        assert (source.broken("unread"), source.broken("lost")) == (1, 0)
        writer.close()


@on_both_loops
async def test_who_reads_slowly_gets_all_of_it() -> None:
    """However long it takes: the deadline is one of each vector."""
    source = Source(MANY)
    async with serving(lambda: source) as server:
        reader, writer = await asyncio.open_connection(sock=await asked(server, "/"), limit=1024)
        await reader.readuntil(b"\r\n\r\n")
        read = 0
        while read < source.stream.length:
            read += len(await reader.read(64 * 1024))
            assert source.made <= read // MIB + MANY // 2
        assert (read, source.made) == (1 + MANY * MIB, MANY)
        writer.close()
        await writer.wait_closed()


@on_both_loops
async def test_what_is_missing_in_the_middle_is_broken_off_and_not_filled_up() -> None:
    source = Source(4, missing_from=2)
    async with serving(lambda: source) as server, TestClient(server) as client:
        told = await client.get("/")
        assert (told.status, told.headers["Content-Length"]) == (200, str(1 + 4 * MIB))
        with pytest.raises(ClientPayloadError):
            await told.read()
        assert (source.broken("unread"), source.broken("lost")) == (0, 1)
        assert await (await client.get("/short")).read() == b"short"


@on_both_loops
async def test_whole_is_all_of_it() -> None:
    assert await Source(2).stream.whole() == body_of(2)


def test_it_is_not_read_as_a_text() -> None:
    async def nothing() -> AsyncGenerator[Vector, None]:
        return
        yield

    with pytest.raises(TypeError, match="not read"):
        StreamPayload(Stream(1, b"[", nothing, Metrics().broken_answers)).decode()
