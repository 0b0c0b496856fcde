"""One worker: a whole sidecar that takes connections from the sockets that it is told, and ends when it is told.

`python -m sidecar.workers.worker DESCRIPTOR`, for the supervisor alone: it holds the other end of that socket pair.
"""

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, Final

import structlog
from aiohttp import web

from sidecar.app import Sidecar
from sidecar.clock import SystemClock
from sidecar.errors import StoreError
from sidecar.keys import KeysUnusable
from sidecar.log import configure
from sidecar.process import run, told_to_stop
from sidecar.protocol import runner_with
from sidecar.sockets import SHARED_BACKLOG
from sidecar.store.urls import open_store
from sidecar.workers.channel import Channel, settings_of
from sidecar.workers.page import Plain, plain
from sidecar.workers.plan import UNUSABLE
from sidecar.workers.siblings import Among, collected

# How long a connection that asks nothing is kept while others are ended with the answer to their next request, and how
# long an answer that is under way then may take.
DRAIN_S: Final = 5.0
BUSY_S: Final = 60.0
LOOK_S: Final = 0.02
# How long the supervisor is given to hear the last.
BYE_S: Final = 2.0
# What asyncio removes the file of a unix socket by, which is the supervisor's to remove.
_LEAVE_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
_log = structlog.get_logger("sidecar.workers.worker")


def main() -> None:
    """Ends with 0, or with UNUSABLE if it cannot work with the settings."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise SystemExit(run(_work(socket.socket(fileno=int(sys.argv[1])))))


async def _work(end: socket.socket) -> int:
    stop = told_to_stop()
    channel = await Channel.over(end)
    hello = await channel.receive()
    if hello is None:
        return 0
    settings = settings_of(hello["settings"])
    configure(settings.log, worker=hello["number"])
    siblings = Among(channel, hello["number"], hello["wanted"], hello["token"])
    try:
        store = open_store(settings.store.url, writable=False)
        sidecar = Sidecar(settings, store, SystemClock(), siblings)
    except (StoreError, KeysUnusable) as error:
        channel.send("refused", text=str(error))
        await _leave(channel)
        return UNUSABLE
    runner = runner_with(sidecar.lane, sidecar.app)
    await runner.setup()
    worker = Worker(channel, sidecar, siblings, runner, Doors(runner, hello["slots"], hello["unix"]), stop)
    await worker.run()
    return 0


async def _leave(channel: Channel) -> None:
    """Waits until the supervisor has heard what was said last."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BYE_S):
            while (message := await channel.receive()) is not None and message["is"] != "bye":
                pass
    await channel.close()


class Doors:
    """The sockets that connections may be taken from, by their descriptors: those of each slot, and the one for all."""

    def __init__(self, runner: web.AppRunner, slots: list[list[int]], unix: int | None) -> None:
        self._runner = runner
        self._slots = slots
        self._unix = unix
        self._open: dict[int, asyncio.AbstractServer] = {}

    async def open(self, slots: list[int]) -> None:
        """Takes connections from these slots and, if there are any, from the unix socket; from no other one."""
        wanted = [descriptor for slot in slots for descriptor in self._slots[slot]]
        if slots and self._unix is not None:
            wanted.append(self._unix)
        for descriptor in wanted:
            if descriptor not in self._open:
                self._open[descriptor] = await self._listen(descriptor)
        for descriptor in set(self._open).difference(wanted):
            self._open.pop(descriptor).close()

    async def _listen(self, descriptor: int) -> asyncio.AbstractServer:
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        # A descriptor of its own, because it is closed with the server, and may be wanted again.
        one = socket.socket(fileno=os.dup(descriptor))
        if descriptor == self._unix:
            return await loop.create_unix_server(server, sock=one, backlog=SHARED_BACKLOG, **_LEAVE_FILE)
        return await loop.create_server(server, sock=one, backlog=SHARED_BACKLOG)


class Worker:
    """Does what the supervisor says, and tells it what is served and counted."""

    def __init__(
        self,
        channel: Channel,
        sidecar: Sidecar,
        siblings: Among,
        runner: web.AppRunner,
        doors: Doors,
        stop: asyncio.Event,
    ) -> None:
        self._channel = channel
        self._sidecar = sidecar
        self._siblings = siblings
        self._runner = runner
        self._doors = doors
        self._stop = stop
        self._drain = False
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Answers until it is told to end, or until the supervisor has gone."""
        self._channel.send("up")
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._tell())]
        await self._stop.wait()
        await self._doors.open([])
        if self._drain:
            await self._drained()
        _log.info("stopping")
        await self._runner.cleanup()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._channel.send("last", families=self._counted())
        await _leave(self._channel)

    async def _listen(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                match message["is"]:
                    case "accept" if not self._stop.is_set():
                        await self._doors.open(message["slots"])
                    case "drain":
                        self._drain = True
                        self._stop.set()
                    case "finish":
                        self._hurry.set()
                        self._stop.set()
                    case "collect":
                        self._channel.send("collected", ask=message["ask"], families=self._counted())
                    case _:
                        self._siblings.hear(message)
        finally:
            # A defect, or the supervisor has gone: nobody else could end this process.
            self._hurry.set()
            self._stop.set()

    async def _tell(self) -> None:
        generation = None
        while True:
            generation = await self._sidecar.current.other_than(generation)
            epoch, number, _ = generation.pointer
            self._channel.send("serves", epoch=epoch, generation=number)

    async def _drained(self) -> None:
        """Returns once every connection has ended with an answer, or asked nothing for DRAIN_S; or in a hurry."""
        self._sidecar.drain()
        server = self._runner.server
        assert server is not None
        for _ in range(round(DRAIN_S / LOOK_S)):
            if self._hurry.is_set() or not server.connections:
                return
            await asyncio.sleep(LOOK_S)
        _log.info("connections are closed that ask nothing", open=len(server.connections))
        # Without this it waits for them, too. Twice: one that is so new that it waits for nothing yet hears it the
        # second time.
        server.pre_shutdown()
        await asyncio.sleep(0)
        server.pre_shutdown()
        ends = (asyncio.ensure_future(server.shutdown(BUSY_S)), asyncio.ensure_future(self._hurry.wait()))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)

    def _counted(self) -> Plain:
        self._sidecar.metrics.tell(self._sidecar.health())
        return plain(collected(self._sidecar.metrics.registry))


if __name__ == "__main__":
    main()
