"""The door to aiohttp's own protocol: where the bytes of a connection are offered to the fast lane first.

Bytes are offered only between two requests, and only if nothing is under way: aiohttp waits for the next request, all
of what it was given before is read and answered, and what was answered has left. Whatever the lane does not take goes
to aiohttp as it came. So the lane never sees a part of a request, and aiohttp no part of one that was answered.

"Between" has to be known for certain, because aiohttp's parser does not tell whether it holds half a request. It is
known of a connection that is new; and after a request that the parser made, if that says line by line what the bytes
say that it was made from. Then it was made from these bytes alone, and from all of them: had the parser held something
before, that would stand at the beginning of what it made. After a request with a body, or in pieces, it is not known,
until a plain one has passed through aiohttp.

What is used here of aiohttp beyond its documentation is pinned by setup.py and by tests/sidecar/test_protocol.py.
"""

import asyncio
from contextlib import suppress
from typing import Any, Final

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from sidecar.intake import within_bounds
from sidecar.lane import Lane
from sidecar.places import Sent
from sidecar.streams import STALL_S

END: Final = b"\r\n\r\n"


class LaneHandler(RequestHandler):
    """One connection."""

    __slots__ = ("_answered", "_between", "_lane", "_last", "_unread")

    def __init__(self, lane: Lane, manager: web.Server, **how: Any) -> None:
        super().__init__(manager, **how)
        self._lane = lane
        self._between = True
        # Whether the lane has answered since the connection was last looked at for being idle.
        self._answered = False
        # Ends a connection on which a page of the lane is not read.
        self._unread: asyncio.TimerHandle | None = None
        # What the last block of headers that went to aiohttp hashes to.
        self._last = 0

    def data_received(self, data: bytes) -> None:
        if self._between and self._is_idle():
            try:
                answer = self._lane.answer(data)
            # A defect here would end the connection. The handler may meet it as well, and then tells of it.
            except Exception:  # noqa: BLE001
                answer = None
            if answer is not None:
                self._send(answer)
                self._answered = True
                return
        self._pass_on(data)

    def _send(self, answer: Sent) -> None:
        assert self.transport is not None
        if isinstance(answer, bytes):
            self.transport.write(answer)
            return
        # Paused is then until the kernel has taken all of it. What comes next meanwhile goes to aiohttp, which waits.
        self.transport.set_write_buffer_limits(high=0)
        self.transport.writelines(answer)
        if self._paused:
            self._unread = self._loop.call_later(STALL_S, self._give_up)
        else:
            self.transport.set_write_buffer_limits()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._end_wait()
            if self.transport is not None:
                self.transport.set_write_buffer_limits()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """As aiohttp waits for a handler, a page that is being sent is waited for."""
        if self._unread is not None:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(timeout):
                    await self._drain_helper()
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def _end_wait(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        if self.transport is not None:
            self._lane.count_unread()
            self.transport.abort()

    def _is_idle(self) -> bool:
        # _paused: the client does not read what it was answered. aiohttp then stops taking in more, and so must we.
        return self._waiter is not None and not (self._messages or self._paused or self._close or self._force_close)

    def _pass_on(self, data: bytes) -> None:
        before = len(self._messages)
        super().data_received(data)
        self._between = False
        if data[:4] != b"GET " or data.find(END) != len(data) - len(END):
            return
        if self._upgraded or self._payload_parser is not None or len(self._messages) != before + 1:
            return
        message, payload = self._messages[-1]
        if payload is EMPTY_PAYLOAD and isinstance(message, RawRequestMessage):
            block = hash(data[data.find(b"\r\n") :])
            self._between = self._lane.learn(data, message, twice=block == self._last)
            self._last = block

    def _process_keepalive(self) -> None:
        if self._answered:
            self._answered = False
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()


class LaneRunner(web.AppRunner):
    """An AppRunner whose connections have a lane."""

    __slots__ = ("_lane",)

    def __init__(self, app: web.Application, lane: Lane, **how: Any) -> None:
        super().__init__(app, **how)
        self._lane = lane

    async def _make_server(self) -> web.Server:
        return _LaneServer(self._lane, await super()._make_server())


def runner_with(lane: Lane, app: web.Application) -> LaneRunner:
    """What speaks HTTP for an application, with a lane."""
    return within_bounds(LaneRunner, app, lane)


class _LaneServer(web.Server):
    """The server that aiohttp made, with other connections."""

    def __init__(self, lane: Lane, made: web.Server) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,
        )
        self._lane = lane

    def __call__(self) -> LaneHandler:
        return LaneHandler(self._lane, self, loop=self._loop, **self._kwargs)
