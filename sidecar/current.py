"""The generation that is served, and the one place where it is exchanged.

A request reads `Current.generation` once and asks nothing else, so that it sees exactly one generation. The exchange is
one assignment on the event loop: it happens between two requests, never inside one.
"""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from uuid import UUID

from sidecar.contract.index import Catalog, Index
from sidecar.contract.words import has_ended, pull_of
from sidecar.errors import NotReady
from sidecar.lookup import can_never_be_pulled
from sidecar.store import Pointer

_number = attrgetter("record.number")


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
    ended: Mapping[int, bytes]

    @classmethod
    def of(cls, pointer: Pointer, index: Index, before: "Generation | None" = None) -> "Generation":
        """Sorts and counts all catalogs, or those that are others than in the generation that the index was made from:
        not for the event loop.
        """
        changed = index.changed
        if before is None or changed is None or before.index.digest != changed.since:
            before = None
            queries, catalogs = frozenset(index.queries), frozenset(index.catalogs)
        else:
            queries, catalogs = changed.queries, changed.catalogs
        old = None if before is None else before.index
        return cls(
            pointer=pointer,
            index=index,
            catalogs=_in_order(() if before is None else before.catalogs, catalogs, old, index),
            pulls_ms=_pulls_ms(() if before is None else before.pulls_ms, queries, catalogs, old, index),
            ended=_ended({} if before is None else before.ended, queries, old, index),
            never_pulled=(0 if before is None else before.never_pulled)
            + _never_pulled(catalogs, index)
            - _never_pulled(catalogs, old),
        )

    def shows(self, least: int, task: UUID | None) -> bool:
        """Whether this is the generation `least` or a later one, and shows how the pull of a task has ended."""
        if self.pointer.generation < least:
            return False
        if task is None:
            return True
        last = self.ended.get(pull_of(task))
        return last is not None and has_ended(task, UUID(bytes=last))

    def serves(self, query: bytes) -> bool:
        """Whether any catalog is answered from the query of this hash."""
        return any(catalog.record.serving == query for catalog in self.index.users(query))

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


def _in_order(
    before: tuple[Catalog, ...], changed: frozenset[str], old: Index | None, index: Index
) -> tuple[Catalog, ...]:
    """The catalogs in order of creation, from that order before and the uuids of those that are others now."""
    if old is None:
        return tuple(sorted(index.catalogs.values(), key=_number))
    if not changed:
        return before
    catalogs = list(before)
    for uuid in changed:
        was, now = old.catalogs.get(uuid), index.catalogs.get(uuid)
        if was is not None:
            place = bisect_left(catalogs, _number(was), key=_number)
            while catalogs[place] is not was:
                place += 1
            if now is not None and _number(now) == _number(was):
                catalogs[place] = now
                continue
            del catalogs[place]
        if now is not None:
            insort(catalogs, now, key=_number)
    return tuple(catalogs)


def _pulls_ms(
    before: tuple[int, ...], queries: frozenset[bytes], catalogs: frozenset[str], old: Index | None, index: Index
) -> tuple[int, ...]:
    """When the queries that catalogs serve were pulled, sorted."""
    if old is None:
        return tuple(sorted(ms for hash_ in queries if (ms := _served_ms(index, hash_)) is not None))
    touched = set(queries)
    for uuid in catalogs:
        for each in (old, index):
            if (catalog := each.catalogs.get(uuid)) is not None and catalog.serving is not None:
                touched.add(catalog.serving.hash)
    pulls = list(before)
    for hash_ in touched:
        was, now = _served_ms(old, hash_), _served_ms(index, hash_)
        if was == now:
            continue
        if was is not None:
            del pulls[bisect_left(pulls, was)]
        if now is not None:
            insort(pulls, now)
    return before if len(touched) == 0 else tuple(pulls)


def _served_ms(index: Index, hash_: bytes) -> int | None:
    """When a query was pulled, if any catalog serves it."""
    query = index.queries.get(hash_)
    if query is None or not any(c.record.serving == hash_ for c in index.users(hash_)):
        return None
    return query.pulled_at_ms


def _ended(
    before: Mapping[int, bytes], changed: frozenset[bytes], old: Index | None, index: Index
) -> Mapping[int, bytes]:
    if old is not None and not changed:
        return before
    ended = dict(before)
    for hash_ in changed:
        was, now = None if old is None else old.queries.get(hash_), index.queries.get(hash_)
        if was is not None and was.task_id is not None:
            ended.pop(pull_of(UUID(bytes=was.task_id)), None)
        if now is not None and now.task_id is not None:
            ended[pull_of(UUID(bytes=now.task_id))] = now.task_id
    return ended


def _never_pulled(catalogs: Iterable[str], index: Index | None) -> int:
    if index is None:
        return 0
    found = (index.catalogs.get(uuid) for uuid in catalogs)
    return sum(c is not None and c.serving is None and not can_never_be_pulled(c.wanted) for c in found)
