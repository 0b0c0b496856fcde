"""Full documents, fetched once per key and window and shared by all pulls: kept compressed, one flight per key.

A flight belongs to those who wait for it: it fails for all of them at once, and when the last one has gone, so has it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from indexer.source.upstream import Tally
from sidecar.clock import Clock

WINDOW_MS: Final = 4 * 3600 * 1000
"""A query is pulled again after 20 h by default and promised to be no older than 24 h: documents may use the rest."""

Fetch = Callable[[Sequence[str], Tally], Awaitable[Mapping[str, bytes]]]


@dataclass(frozen=True, slots=True)
class _Kept:
    fetched_ms: int
    body: bytes | None


@dataclass(slots=True, eq=False)
class _Flight:
    started_ms: int
    keys: Sequence[str]
    task: asyncio.Task[dict[str, bytes | None]]
    waiting: int = 0


class Shelf:
    """Documents of one kind. `fetch` gets up to `batch` keys and returns the texts of those that exist."""

    def __init__(self, fetch: Fetch, batch: int, clock: Clock) -> None:
        self._fetch = fetch
        self._batch = batch
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._flights: dict[str, _Flight] = {}

    async def get(self, keys: Iterable[str], since_ms: int, tally: Tally) -> dict[str, bytes | None]:
        """Each key's document, compressed by zstandard; None for one that does not exist, as known by now.

        Nothing is used that was fetched before `since_ms`, or more than a window ago. Only what nobody is fetching
        yet is fetched here, and counted in `tally`. Raises what `fetch` raises.
        """
        now_ms = self._clock.now_ms()
        self._drop(now_ms - WINDOW_MS)
        oldest_ms = max(since_ms, now_ms - WINDOW_MS)
        found: dict[str, bytes | None] = {}
        missing: list[str] = []
        for key in dict.fromkeys(keys):
            kept = self._kept.get(key)
            if kept is not None and kept.fetched_ms > now_ms:
                # By a clock that was wrong: nothing is known of how old it is.
                del self._kept[key]
            elif kept is not None and kept.fetched_ms >= oldest_ms:
                found[key] = kept.body
                continue
            missing.append(key)
        for answer in await self._land(self._flights_for(missing, oldest_ms, tally)):
            found |= {key: answer[key] for key in missing if key in answer}
        return found

    def forget(self, keys: Iterable[str]) -> None:
        """Lets go of what is known of these keys; whoever asks next asks again."""
        for key in keys:
            self._kept.pop(key, None)

    def __len__(self) -> int:
        return len(self._kept)

    def _flights_for(self, missing: Sequence[str], oldest_ms: int, tally: Tally) -> list[_Flight]:
        flights: dict[_Flight, None] = {}
        alone: list[str] = []
        for key in missing:
            flight = self._flights.get(key)
            if flight is not None and flight.started_ms >= oldest_ms:
                flights[flight] = None
            else:
                alone.append(key)
        alone.sort()
        for start in range(0, len(alone), self._batch):
            flights[self._start(alone[start : start + self._batch], tally)] = None
        return list(flights)

    def _start(self, keys: Sequence[str], tally: Tally) -> _Flight:
        started_ms = self._clock.now_ms()
        flight = _Flight(started_ms, keys, asyncio.create_task(self._fly(keys, started_ms, tally)))
        self._flights |= dict.fromkeys(keys, flight)
        return flight

    async def _fly(self, keys: Sequence[str], started_ms: int, tally: Tally) -> dict[str, bytes | None]:
        texts = await self._fetch(keys, tally)
        compress = zstandard.ZstdCompressor().compress
        bodies = {key: compress(texts[key]) if key in texts else None for key in keys}
        for key, body in bodies.items():
            kept = self._kept.get(key)
            if kept is None or kept.fetched_ms <= started_ms:
                # Taken out first, so that the oldest are in front.
                self._kept.pop(key, None)
                self._kept[key] = _Kept(started_ms, body)
        return bodies

    async def _land(self, flights: Sequence[_Flight]) -> list[dict[str, bytes | None]]:
        for flight in flights:
            flight.waiting += 1
        try:
            return list(await asyncio.gather(*(asyncio.shield(flight.task) for flight in flights)))
        finally:
            for flight in flights:
                flight.waiting -= 1
                if flight.waiting == 0 or flight.task.done():
                    self._end(flight)

    def _end(self, flight: _Flight) -> None:
        """Nobody may join from here on: a flight that is cancelled is over only at the loop's next turn."""
        flight.task.cancel()
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _drop(self, before_ms: int) -> None:
        while self._kept and self._kept[key := next(iter(self._kept))].fetched_ms < before_ms:
            del self._kept[key]
