"""A store in a dict: the fake that tests pass in, and no less strict than the real ones."""

import asyncio
from collections.abc import Collection, Iterable, Set

from sidecar.contract.objects import Sealed
from sidecar.store import Pointer, check_epoch, check_move


class MemoryStore:
    """Implements Store for one event loop. `objects` and `unreferenced` may be looked at and tampered with."""

    def __init__(self) -> None:
        self.as_it_lies: str | None = None
        self.objects: dict[bytes, bytes] = {}
        self.unreferenced: dict[bytes, int] = {}
        self._pointer: Pointer | None = None
        self._earlier: Pointer | None = None
        self._moved = asyncio.Condition()

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        return {d: self.objects[d] for d in digests if d in self.objects}

    async def put(self, objects: Iterable[Sealed]) -> None:
        for digest, data in objects:
            self.objects[digest] = data
            self.unreferenced.pop(digest, None)

    async def pointer(self) -> Pointer | None:
        return self._pointer

    async def earlier(self) -> Pointer | None:
        """Where the pointer was before it last moved."""
        return self._earlier

    async def move(self, pointer: Pointer) -> None:
        async with self._moved:
            if check_move(self._pointer, pointer):
                self._earlier, self._pointer = self._pointer, pointer
                self._moved.notify_all()

    async def reset(self, pointer: Pointer | None) -> None:
        """Puts the pointer anywhere, as an older replica or an emptied store would show it."""
        async with self._moved:
            if self._pointer not in (None, pointer):
                self._earlier = self._pointer
            self._pointer = pointer
            self._moved.notify_all()

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._pointer != known)
        except TimeoutError:
            pass
        return self._pointer

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        check_epoch(self._pointer, epoch)
        self.unreferenced = {d: min(self.unreferenced.get(d, now_ms), now_ms) for d in self.objects if d not in live}
        old = [d for d, since_ms in self.unreferenced.items() if now_ms - since_ms >= grace_ms]
        for digest in old:
            del self.objects[digest], self.unreferenced[digest]
        return len(old)

    async def close(self) -> None:
        pass
