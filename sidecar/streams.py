"""Answers too large to be held: JSON of a known length that is sent in vectors of buffers, as fast as it is read.

1. How long an answer is, and that all of it is there, is known before its first byte is sent: what cannot be told is an
   error, and never half an answer.
2. A vector is handed to the kernel as it is, without copying it together. What the kernel does not take at once is
   waited for before the next vector is made: a caller who reads slowly holds one vector, and not what comes after it.
3. After each vector others have their turn.
4. A caller who takes longer than STALL_S for a vector is hung up on. So is everybody if a document that was there when
   the answer began is in no tier any more: what was sent is then shorter than its head says, and cannot be taken for
   whole. For that a sweep must have passed both disk and store in between.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

import structlog
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from aiohttp.payload import Payload
from prometheus_client import Counter

from sidecar.errors import CatalogError

# What nginx gives a client between two reads (send_timeout). Most vectors are 1 to 2 MB: whoever is slower than
# 30 KB/s on loopback has stopped, and neither it nor a generation that was swept meanwhile is waited for for ever.
STALL_S: Final = 60.0
_log = structlog.get_logger(__name__)

# Buffers, and how long they are together.
Vector = tuple[int, list[bytes]]
Vectors = Callable[[], AsyncGenerator[Vector, None]]


class Stream(NamedTuple):
    """The value of an answer: JSON of `length` bytes, which begins with `opening` and goes on with the vectors.

    `broken` counts, by reason, if it is broken off.
    """

    length: int
    opening: bytes
    vectors: Vectors
    broken: Counter

    async def whole(self) -> bytes:
        """All of it, for whoever cannot do with parts."""
        parts = [self.opening]
        async with aclosing(self.vectors()) as vectors:
            async for _, buffers in vectors:
                parts += buffers
        return b"".join(parts)


class StreamPayload(Payload):
    """Sends a stream as the body of a response."""

    def __init__(self, stream: Stream, stall_s: float = STALL_S) -> None:
        super().__init__(stream, content_type="application/json")
        self._size = stream.length
        self._stream = stream
        self._stall_s = stall_s

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a stream is sent, and not read")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Raises ConnectionError if the answer could not be sent whole; the connection is gone by then."""
        assert isinstance(writer, StreamWriter)
        transport = writer.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        # With the head, which aiohttp keeps back until there is something to send.
        await writer.write(self._stream.opening, drain=False)
        # Waiting is for all that was written, and not for all but 64 KiB.
        transport.set_write_buffer_limits(high=0)
        try:
            await self._send(writer, transport)
        except TimeoutError as error:
            transport.abort()
            self._stream.broken.labels("unread").inc()
            raise ConnectionResetError(f"the client did not read for {self._stall_s:g} s") from error
        except CatalogError as error:
            transport.abort()
            self._stream.broken.labels("lost").inc()
            _log.warning("an answer was broken off", reason=str(error))
            raise ConnectionResetError("a document was lost") from error
        transport.set_write_buffer_limits()

    async def _send(self, writer: StreamWriter, transport: asyncio.WriteTransport) -> None:
        left = self._stream.length - len(self._stream.opening)
        async with aclosing(self._stream.vectors()) as vectors:
            async for length, buffers in vectors:
                if transport.is_closing():
                    raise ConnectionResetError("the client has gone")
                transport.writelines(buffers)
                left -= length
                writer.output_size += length
                if writer.protocol.writing_paused:
                    async with asyncio.timeout(self._stall_s):
                        await writer.drain()
                if left:
                    await asyncio.sleep(0)
        assert left == 0
