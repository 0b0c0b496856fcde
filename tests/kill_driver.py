"""A build that dies when told: the real indexer, on real files, which sends itself SIGKILL at one step of its work.

A step is a touch of the outside world: before and after every call of the store and of the source, halfway through the
objects of a put, before and after every commit to the registry and to the store. Their names go to FOLDER/steps. Signs
of life are no steps: they come by time, and not by what the build does.

`python -m tests.kill_driver` prints a port of this host. A connection to it sends the line
"STEP NOW_MS COMMAND FOLDER", upon which a fork builds in that folder, or rolls readers back by one generation, or
unpins; it gets a line that says how this ended: 0, 1, or -9 if it was killed. Step 0 never comes. Forks, because a
fresh interpreter takes longer than the build.
"""

import asyncio
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Set
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import aiosqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer import history
from indexer.build import build
from indexer.registry import Registry
from indexer.source import CustomerDetails, Pulled
from indexer.source.file import FileSource
from indexer.wiring import Parts
from sidecar.clock import SystemClock
from sidecar.contract.objects import Sealed
from sidecar.log import configure
from sidecar.settings import IndexerSettings, LogSettings, Settings, StoreSettings
from sidecar.store import Pointer
from sidecar.store.sqlite import SqliteStore

KEPT = 2
SETTINGS = Settings(store=StoreSettings(keep_generations=KEPT), indexer=IndexerSettings(lease_s=1.0))
Step = Callable[[str], None]


async def build_once(parts: Parts) -> None:
    await build(parts)


async def roll_back(parts: Parts) -> None:
    wanted = await history.roll_back(parts.registry, parts.store, None, "test", "killed")
    assert (
        await history.come_true(parts, lambda served: served.is_tree_of(wanted.generation), wanted.generation)
        is not None
    )


async def unpin(parts: Parts) -> None:
    _, clock = await history.unpin(parts.registry, parts.store, "test", "killed")
    assert await history.come_true(parts, lambda served: served.clock >= clock, None) is not None


COMMANDS = {"build": build_once, "rollback": roll_back, "unpin": unpin}


async def run(deadly: int, now_ms: int, command: str, folder: Path) -> None:
    """Runs a command once; does not return from the step of this number."""
    with (folder / "steps").open("w", buffering=1) as names:
        taken = 0

        def step(name: str) -> None:
            nonlocal taken
            taken += 1
            names.write(f"{name}\n")
            if taken == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        clock = SetClock(now_ms)
        registry = MortalRegistry(f"sqlite+aiosqlite:///{folder}/registry.db", clock)
        store, source = MortalStore(folder / "store.db", writable=True), MortalSource(folder / "corpus.json")
        registry.step = store.step = source.step = step
        try:
            await registry.open()
            await COMMANDS[command](Parts(SETTINGS, clock, registry, store, source))
        finally:
            await source.close()
            await store.close()
            await registry.close()


class SetClock(SystemClock):
    """The machine's clock, but for the date: builds of one date make equal objects."""

    def __init__(self, date_ms: int) -> None:
        self._date_ms = date_ms

    def now_ms(self) -> int:
        return self._date_ms


class MortalRegistry(Registry):
    """A registry whose every commit is two steps."""

    step: Step

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        task = asyncio.current_task()
        alive = getattr(task and task.get_coro(), "__qualname__", "") == "renew"
        async with super().plain() as connection:
            yield connection
            if not alive:
                self.step("before a commit to the registry")
        if not alive:
            self.step("after a commit to the registry")


class MortalStore(SqliteStore):
    """A store whose every call and every commit is two steps, and a put one more."""

    step: Step

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        self.step("before get")
        found = await super().get(digests)
        self.step("after get")
        return found

    async def put(self, objects: Iterable[Sealed]) -> None:
        self.step("before put")
        await super().put(self._watched(list(objects)))
        self.step("after put")

    async def pointer(self) -> Pointer | None:
        self.step("before pointer")
        pointer = await super().pointer()
        self.step("after pointer")
        return pointer

    async def move(self, pointer: Pointer) -> None:
        self.step("before move")
        await super().move(pointer)
        self.step("after move")

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        self.step("before sweep")
        swept = await super().sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=grace_ms)
        self.step(f"after sweep of {swept}")
        return swept

    def _watched(self, objects: list[Sealed]) -> Iterator[Sealed]:
        for number, sealed in enumerate(objects):
            if number == len(objects) // 2:
                self.step("halfway through put")
            yield sealed

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        async with super()._transaction() as connection:
            yield connection
            self.step("before a commit to the store")
        self.step("after a commit to the store")


class MortalSource(FileSource):
    """A source whose every call is two steps."""

    step: Step

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        self.step("before pull")
        try:
            return await super().pull(content_filter)
        finally:
            self.step("after pull")

    async def customer(self, uuid: str) -> CustomerDetails | None:
        self.step("before customer")
        details = await super().customer(uuid)
        self.step("after customer")
        return details


def serve() -> None:
    """Answers until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    answer(connection)
                    os._exit(0)


def answer(connection: socket.socket) -> None:
    """Builds once, in a fork, and says how that ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rw") as lines:
        deadly, now_ms, command, folder = lines.readline().rstrip("\n").split(" ", 3)
        if (child := os.fork()) == 0:
            asyncio.run(run(int(deadly), int(now_ms), command, Path(folder)))
            os._exit(0)
        lines.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")


if __name__ == "__main__":
    logging.disable()  # a build is as loud as its first failing query
    configure(LogSettings())
    with TemporaryDirectory() as elsewhere:  # one build before the first fork: imports all there is, leaves no thread
        asyncio.run(run(0, 0, "build", Path(elsewhere)))
    serve()
