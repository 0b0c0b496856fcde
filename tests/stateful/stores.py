"""One store in a dict, seen from two sides: by indexers, which may die at any of its calls, and by sidecars."""

from collections.abc import Collection, Coroutine, Iterable, Set
from typing import Any, TypeVar

from sidecar.contract.objects import Sealed
from sidecar.errors import StoreError
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore

T = TypeVar("T")


class Crash(Exception):
    """The process is gone at this point."""


class CrashingStore(MemoryStore):
    """A store whose user dies when `countdown` has run out: it goes down by one before every call and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.countdown: int | None = None
        self.down = False

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        return await self._step(super().get(digests))

    async def put(self, objects: Iterable[Sealed]) -> None:
        await self._step(super().put(objects))

    async def pointer(self) -> Pointer | None:
        return await self._step(super().pointer())

    async def move(self, pointer: Pointer) -> None:
        await self._step(super().move(pointer))

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        return await self._step(super().sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=grace_ms))

    async def _step(self, call: Coroutine[Any, Any, T]) -> T:
        if self.down:
            call.close()
            raise StoreError("down")
        if self._dies():
            call.close()
            raise Crash
        returned = await call
        if self._dies():
            raise Crash
        return returned

    def _dies(self) -> bool:
        if self.countdown is None:
            return False
        self.countdown -= 1
        return self.countdown < 0


class SidecarView:
    """The store as another process sees it: nothing that its owner suffers happens here."""

    def __init__(self, store: CrashingStore) -> None:
        self._store = store

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        self._check()
        return await MemoryStore.get(self._store, digests)

    async def put(self, objects: Iterable[Sealed]) -> None:
        raise AssertionError("a sidecar never writes to the store")

    async def pointer(self) -> Pointer | None:
        self._check()
        return await MemoryStore.pointer(self._store)

    async def move(self, pointer: Pointer) -> None:
        raise AssertionError("a sidecar never writes to the store")

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        self._check()
        return await MemoryStore.pointer(self._store)

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        raise AssertionError("a sidecar never writes to the store")

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if self._store.down:
            raise StoreError("down")
