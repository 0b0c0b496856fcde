"""The generation that is served, and the one place where it is exchanged.

A request reads `Current.generation` once and asks nothing else, so that it sees exactly one generation. The exchange is
one assignment on the event loop: it happens between two requests, never inside one.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sidecar.contract.index import Catalog, Index
from sidecar.contract.words import has_ended, pull_of
from sidecar.errors import NotReady
from sidecar.lookup import can_never_be_pulled
from sidecar.store import Pointer


@dataclass(frozen=True, slots=True)
class Generation:
    """A verified index, where it was published, and what is worked out of it once: its catalogs in order of creation,
    and what reports on health need.
    """

    pointer: Pointer
    index: Index
    catalogs: tuple[Catalog, ...]
    pulls_ms: tuple[int, ...]
    never_pulled: int
    # The last pull of each query that has ended, by what tells of which query it is.
    ended: Mapping[int, UUID]

    @classmethod
    def of(cls, pointer: Pointer, index: Index) -> "Generation":
        """Sorts and counts all catalogs: not for the event loop."""
        catalogs = sorted(index.catalogs.values(), key=lambda c: c.record.number)
        served = {c.serving.hash: c.serving.pulled_at_ms for c in catalogs if c.serving is not None}
        return cls(
            pointer=pointer,
            index=index,
            catalogs=tuple(catalogs),
            pulls_ms=tuple(sorted(ms for ms in served.values() if ms is not None)),
            ended={
                pull_of(task): task
                for task in (UUID(bytes=q.task_id) for q in index.queries.values() if q.task_id is not None)
            },
            never_pulled=sum(c.serving is None and not can_never_be_pulled(c.wanted) for c in catalogs),
        )

    def shows(self, least: int, task: UUID | None) -> bool:
        """Whether this is the generation `least` or a later one, and shows how the pull of a task has ended."""
        if self.pointer.generation < least:
            return False
        if task is None:
            return True
        last = self.ended.get(pull_of(task))
        return last is not None and has_ended(task, last)

    def pulled_before(self, then_ms: int) -> int:
        """How many of the served queries were last pulled before then."""
        return bisect_left(self.pulls_ms, then_ms)


class Current:
    """Holds the served generation; None until the first one is loaded."""

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self._swapped = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        """No other generation will be served: the process is about to end."""
        self._ended = True
        self._tell()

    def swap(self, generation: Generation) -> None:
        """What makes a generation visible to requests; it is complete and verified by now."""
        self.generation = generation
        self._tell()

    async def other_than(self, known: Generation | None) -> Generation:
        """Waits until another generation than the known one is served, and returns it."""
        while (generation := self.generation) is known or generation is None:
            await self._swapped.wait()
        return generation

    async def showing(self, least: int, task: UUID | None) -> Generation:
        """Waits until a generation is served that shows this state, and returns it. Raises NotReady if none will be."""
        while (generation := self.generation) is None or not generation.shows(least, task):
            if self._ended:
                raise NotReady("this process is about to end")
            await self._swapped.wait()
        return generation

    def _tell(self) -> None:
        self._swapped.set()
        self._swapped = asyncio.Event()

    async def covering(self, clock: int) -> Generation:
        """Waits until a generation is served that covers this clock of the registry, and returns it."""
        while (generation := self.generation) is None or generation.index.root.clock < clock:
            await self._swapped.wait()
        return generation
