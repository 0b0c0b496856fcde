"""The outside world as tests of the sidecar pass it in: a clock that stands still, and stores that fail on demand."""

import asyncio
import os
from collections.abc import Collection, Iterable, Set
from pathlib import Path

from sidecar.contract.objects import Sealed
from sidecar.disk import Disk
from sidecar.errors import StoreError
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.trees import PULLED_MS


class FakeClock:
    """Implements Clock. Time passes when the test says so; whoever sleeps waits until it is let go."""

    def __init__(self) -> None:
        self.ms = PULLED_MS
        self.sleeping: asyncio.Queue[tuple[float, asyncio.Future[None]]] = asyncio.Queue()

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        await self.sleeping.put((seconds, woken))
        await woken

    async def wake(self) -> float:
        """Waits until somebody sleeps, lets them go, and returns for how long they meant to."""
        seconds, woken = await self.sleeping.get()
        while woken.done():  # cancelled meanwhile
            seconds, woken = await self.sleeping.get()
        self.ms += int(seconds * 1000)
        woken.set_result(None)
        return seconds


class FlakyStore(MemoryStore):
    """A store that can be `down`, or `full`: it takes nothing, and can be read; and that counts what is asked of it.
    `gate` holds reads back until it is set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = self.full = False
        self.asked: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        self._check()
        self.asked += digests
        self.waiting.set()
        await self.gate.wait()
        return await super().get(digests)

    async def put(self, objects: Iterable[Sealed]) -> None:
        self._check(writing=True)
        await super().put(objects)

    async def pointer(self) -> Pointer | None:
        self._check()
        return await super().pointer()

    async def move(self, pointer: Pointer) -> None:
        self._check(writing=True)
        await super().move(pointer)

    async def earlier(self) -> Pointer | None:
        self._check()
        return await super().earlier()

    async def reset(self, pointer: Pointer | None) -> None:
        self._check(writing=True)
        await super().reset(pointer)

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        self._check()
        return await super().changed(known, timeout_s)

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        self._check()
        return await super().sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=grace_ms)

    def _check(self, *, writing: bool = False) -> None:
        if self.down:
            raise StoreError("connection refused")
        if writing and self.full:
            raise StoreError("database or disk is full")


def disk_over(store: FlakyStore, metrics: Metrics, path: Path = Path("disk.db")) -> Disk:
    """A disk copy whose file is this store; there is nothing to lock."""
    return Disk(
        path, metrics, lambda path, *, writable: store, lambda path, patience_s: os.open(os.devnull, os.O_RDONLY)
    )
