"""The proxy that other tests trust: each fault does what it says, to connections that are open and to new ones."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.fault_proxy import (
    HOST,
    BlackHole,
    Direction,
    FaultProxy,
    Flip,
    Latency,
    Refuse,
    Reset,
    Slow,
    Truncate,
    Unanswered,
    between,
)

SOON_S = 5.0
# Something that never comes cannot be waited for: so long nothing is what is meant.
NOTHING_S = 0.1
WORDS = bytes(range(256)) * 4
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def before_an_echo() -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(_echo, HOST, 0)
    async with server, between((HOST, server.sockets[0].getsockname()[1])) as proxy:
        yield proxy


async def connected(proxy: FaultProxy) -> Streams:
    async with asyncio.timeout(SOON_S):
        return await asyncio.open_connection(HOST, proxy.port)


async def said(streams: Streams, words: bytes, most: int | None = None) -> bytes:
    """What comes back, at most so many bytes of it."""
    reader, writer = streams
    writer.write(words)
    back = b""
    async with asyncio.timeout(SOON_S):
        while len(back) < (len(words) if most is None else most) and (piece := await reader.read(65536)):
            back += piece
    return back


async def hears_nothing(streams: Streams) -> bool:
    try:
        async with asyncio.timeout(NOTHING_S):
            await streams[0].read(1)
    except TimeoutError:
        return True
    return False


async def test_without_a_fault_everything_passes_and_is_counted() -> None:
    async with before_an_echo() as proxy:
        streams = await connected(proxy)
        assert await said(streams, WORDS) == WORDS
        assert proxy.passed == {"to server": len(WORDS), "to client": len(WORDS)}
        assert (proxy.accepted, proxy.open) == (1, 1)
        streams[1].write_eof()
        assert await streams[0].read() == b""
        streams[1].close()


async def test_a_unix_socket_is_passed_on_like_a_port(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(_echo, tmp_path / "echo")
    async with server, between(tmp_path / "echo", tmp_path / "own") as proxy:
        streams = await asyncio.open_unix_connection(tmp_path / "own")
        assert await said(streams, WORDS) == WORDS
        proxy.set(Refuse())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(tmp_path / "own")
        streams[1].close()
        proxy.set(Unanswered())
        with socket.socket(socket.AF_UNIX) as caller:
            # Not asyncio, which takes a queue that is full for one that will have room.
            caller.setblocking(False)
            with pytest.raises(BlockingIOError):
                caller.connect(str(tmp_path / "own"))
        proxy.clear()
        streams = await asyncio.open_unix_connection(tmp_path / "own")
        assert await said(streams, WORDS) == WORDS
        streams[1].close()


async def test_latency_delays_everything_and_loses_nothing() -> None:
    async with before_an_echo() as proxy:
        streams = await connected(proxy)
        began = asyncio.get_running_loop().time()
        proxy.set(Latency(0.05, jitter_s=0.01))
        assert await said(streams, WORDS) == WORDS
        assert asyncio.get_running_loop().time() - began >= 0.1
        streams[1].close()


@pytest.mark.parametrize("after", [0, 10])
@pytest.mark.parametrize("direction", ["to server", "to client"])
async def test_a_reset_comes_after_so_many_bytes_on_connections_that_are_open_and_on_new_ones(
    after: int, direction: Direction
) -> None:
    async with before_an_echo() as proxy:
        given = 0
        for streams in (await connected(proxy), None):
            proxy.set(Reset(after), direction)
            reader, writer = streams or await connected(proxy)
            writer.write(WORDS)
            # What has not been read by then is lost with the connection.
            async with asyncio.timeout(SOON_S):
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(len(WORDS))
            assert proxy.passed[direction] <= given + after
            given = proxy.passed[direction]
            writer.close()
        proxy.clear()
        streams = await connected(proxy)
        assert await said(streams, WORDS) == WORDS
        streams[1].close()


@pytest.mark.parametrize("after", [0, 10])
async def test_a_truncation_is_an_end_in_good_order(after: int) -> None:
    async with before_an_echo() as proxy:
        for streams in (await connected(proxy), None):
            proxy.set(Truncate(after), "to client")
            reader, writer = streams or await connected(proxy)
            if after:
                writer.write(WORDS[:20])
            async with asyncio.timeout(SOON_S):
                assert await reader.read() == WORDS[:after]
            writer.close()


@pytest.mark.parametrize("pieces", [1, 7])
async def test_one_bit_of_every_so_many_bytes_is_flipped(pieces: int) -> None:
    async with before_an_echo() as proxy:
        streams = await connected(proxy)
        proxy.set(Flip(256, bit=11), "to client")
        back = b""
        for n in range(pieces):
            piece = WORDS[n * len(WORDS) // pieces : (n + 1) * len(WORDS) // pieces]
            back += await said(streams, piece)
        assert [place for place in range(len(WORDS)) if back[place] != WORDS[place]] == [1, 257, 513, 769]
        assert all(back[place] ^ WORDS[place] == 1 << 3 for place in (1, 257, 513, 769))
        streams[1].close()


async def test_a_seed_chooses_the_bits_and_chooses_them_again() -> None:
    async with before_an_echo() as proxy:
        heard = []
        for seed in (1, 2, 1):
            proxy.set(Flip(64, seed=seed), "to server")
            streams = await connected(proxy)
            heard.append(await said(streams, WORDS))
            streams[1].close()
        assert heard[0] == heard[2] != heard[1]
        for back in heard:
            assert sum((a ^ b).bit_count() for a, b in zip(back, WORDS, strict=True)) == len(WORDS) // 64


async def test_a_black_hole_takes_everything_until_it_is_cleared() -> None:
    async with before_an_echo() as proxy:
        old = await connected(proxy)
        proxy.set(BlackHole())
        new = await connected(proxy)
        for streams in (old, new):
            streams[1].write(b"hello")
            assert await hears_nothing(streams)
        proxy.clear()
        for streams in (old, new):
            async with asyncio.timeout(SOON_S):
                assert await streams[0].readexactly(5) == b"hello"
            streams[1].close()


async def test_a_black_hole_of_one_direction_lets_the_other_pass() -> None:
    async with before_an_echo() as proxy:
        streams = await connected(proxy)
        proxy.set(BlackHole(), "to client")
        streams[1].write(WORDS)
        assert await hears_nothing(streams)
        assert proxy.passed == {"to server": len(WORDS), "to client": 0}
        streams[1].close()


async def test_a_slow_connection_passes_so_many_bytes_in_a_second() -> None:
    async with before_an_echo() as proxy:
        streams = await connected(proxy)
        began = asyncio.get_running_loop().time()
        proxy.set(Slow(1000), "to client")
        assert await said(streams, WORDS[:200]) == WORDS[:200]
        assert asyncio.get_running_loop().time() - began >= 0.1
        proxy.set(Slow(1), "to client")
        streams[1].write(WORDS)
        assert len(await said(streams, b"", 1)) == 1
        # What is left goes at once when it is cleared.
        proxy.clear()
        assert len(await said(streams, b"", len(WORDS) - 1)) == len(WORDS) - 1
        streams[1].close()


async def test_a_closed_port_refuses_resets_what_was_open_and_is_still_its_own() -> None:
    async with before_an_echo() as proxy:
        streams, port = await connected(proxy), proxy.port
        proxy.set(Refuse())
        with pytest.raises(ConnectionRefusedError):
            await connected(proxy)
        with pytest.raises(ConnectionResetError):
            await said(streams, WORDS)
        streams[1].close()
        proxy.clear()
        assert proxy.port == port
        streams = await connected(proxy)
        assert await said(streams, WORDS) == WORDS
        streams[1].close()


async def test_who_is_unanswered_waits_for_a_connection_in_vain() -> None:
    async with before_an_echo() as proxy:
        old = await connected(proxy)
        proxy.set(Unanswered())
        old[1].write(b"hello")
        assert await hears_nothing(old)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(NOTHING_S):
                await asyncio.open_connection(HOST, proxy.port)
        proxy.clear()
        async with asyncio.timeout(SOON_S):
            assert await old[0].readexactly(5) == b"hello"
        old[1].close()
        new = await connected(proxy)
        assert await said(new, WORDS) == WORDS
        new[1].close()


async def test_a_server_that_is_gone_is_a_reset() -> None:
    async with before_an_echo() as proxy:
        pass
    async with between((HOST, proxy.port)) as lonely:
        streams = await connected(lonely)
        with pytest.raises(ConnectionResetError):
            await said(streams, b"hello")
        streams[1].close()


async def test_faults_may_be_set_and_cleared_at_any_time() -> None:
    chance = random.Random(7)
    faults = [Latency(0.01), Reset(), Reset(5), Truncate(), Flip(3), BlackHole(), Slow(50), Unanswered(), Refuse()]
    async with before_an_echo() as proxy:
        for _ in range(60):
            proxy.set(chance.choice(faults), chance.choice(["to server", "to client", "both"]))
            with suppress(OSError):
                _, writer = await asyncio.wait_for(asyncio.open_connection(HOST, proxy.port), 0.02)
                writer.write(WORDS)
                writer.close()
            if chance.random() < 0.3:
                proxy.clear()
        proxy.clear()
        streams = await connected(proxy)
        assert await said(streams, WORDS) == WORDS
        streams[1].close()
