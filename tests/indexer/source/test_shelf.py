"""Shared documents: fetched once per key and window, by one flight, and never older than asked for."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
import zstandard

from indexer.source import SourceError
from indexer.source.shelf import WINDOW_MS, Shelf
from indexer.source.upstream import Tally
from tests.fakes import FakeClock


class Upstream:
    """Fetches documents that say how often they were fetched; those of `unknown` keys do not exist."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.unknown: set[str] = set()
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0

    async def fetch(self, keys: Sequence[str], tally: Tally) -> Mapping[str, bytes]:
        self.calls.append(list(keys))
        tally.requests += 1
        number = len(self.calls)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0.01)
            raise
        if self.failure is not None:
            raise self.failure
        return {key: f"{key} {number}".encode() for key in keys if key not in self.unknown}


class Shelved:
    def __init__(self, batch: int = 2) -> None:
        self.clock = FakeClock()
        self.upstream = Upstream()
        self.shelf = Shelf(self.upstream.fetch, batch, self.clock)
        self.tally = Tally()

    async def get(self, *keys: str, since_ms: int = 0, tally: Tally | None = None) -> dict[str, str | None]:
        found = await self.shelf.get(keys, since_ms, tally or self.tally)
        return {k: None if body is None else zstandard.decompress(body).decode() for k, body in found.items()}


@pytest.fixture
def here() -> Shelved:
    return Shelved()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestKeeping:
    async def test_is_by_key_whatever_was_asked_for_beside_it(self, here: Shelved) -> None:
        assert await here.get("c", "a", "b", "a") == {"a": "a 1", "b": "b 1", "c": "c 2"}
        assert await here.get("b", "d") == {"b": "b 1", "d": "d 3"}
        assert await here.get() == {}
        assert here.upstream.calls == [["a", "b"], ["c"], ["d"]]
        assert here.tally.requests == 3

    async def test_lasts_for_a_window(self, here: Shelved) -> None:
        await here.get("a")
        here.clock.advance(WINDOW_MS / 1000)
        assert await here.get("a") == {"a": "a 1"}
        here.clock.advance(0.001)
        assert await here.get("a") == {"a": "a 2"}

    async def test_ends_for_everything_that_is_older_than_the_window(self, here: Shelved) -> None:
        await here.get("a", "b")
        here.clock.advance(WINDOW_MS / 2000)
        await here.get("c")
        await here.get("a", since_ms=here.clock.now_ms())
        here.clock.advance(WINDOW_MS / 2000 + 0.001)
        assert len(here.shelf) == 3
        await here.get()
        assert len(here.shelf) == 2

    async def test_does_for_nobody_who_wants_younger_ones(self, here: Shelved) -> None:
        await here.get("a", "b")
        fetched_ms = here.clock.now_ms()
        here.clock.advance(60)
        assert await here.get("a", since_ms=fetched_ms) == {"a": "a 1"}
        assert await here.get("a", since_ms=fetched_ms + 1) == {"a": "a 2"}
        assert await here.get("a", "b") == {"a": "a 2", "b": "b 1"}

    async def test_is_of_what_does_not_exist_too_until_it_is_forgotten(self, here: Shelved) -> None:
        here.upstream.unknown = {"b"}
        assert await here.get("a", "b") == {"a": "a 1", "b": None}
        here.upstream.unknown = set()
        assert await here.get("b") == {"b": None}
        here.shelf.forget(["b", "x"])
        assert await here.get("a", "b") == {"a": "a 1", "b": "b 2"}

    async def test_is_never_of_a_failure(self, here: Shelved) -> None:
        here.upstream.failure = SourceError("down")
        with pytest.raises(SourceError, match="down"):
            await here.get("a")
        here.upstream.failure = None
        assert await here.get("a") == {"a": "a 2"}

    async def test_prefers_the_younger_of_two_that_come_in_the_wrong_order(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        slow = asyncio.create_task(here.get("a"))
        await settle()
        slow_gate, here.upstream.gate = here.upstream.gate, asyncio.Event()
        here.upstream.gate.set()
        here.clock.advance(5)
        assert await here.get("a", since_ms=here.clock.now_ms()) == {"a": "a 2"}
        slow_gate.set()
        assert await slow == {"a": "a 1"}
        assert await here.get("a") == {"a": "a 2"}

    async def test_ends_too_for_what_came_late_and_lies_behind_younger_ones(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        slow = asyncio.create_task(here.get("a"))
        await settle()
        slow_gate, here.upstream.gate = here.upstream.gate, asyncio.Event()
        here.upstream.gate.set()
        here.clock.advance(60)
        await here.get("b")
        slow_gate.set()
        await slow
        here.clock.advance(WINDOW_MS / 1000 - 30)
        assert await here.get("a", "b") == {"a": "a 3", "b": "b 2"}


class TestFlights:
    async def test_are_one_for_all_who_want_a_key(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        other = Tally()
        first = asyncio.create_task(here.get("a", "b"))
        second = asyncio.create_task(here.get("b", "c", tally=other))
        await settle()
        here.upstream.gate.set()
        assert await first == {"a": "a 1", "b": "b 1"}
        assert await second == {"b": "b 1", "c": "c 2"}
        assert here.upstream.calls == [["a", "b"], ["c"]]
        assert (here.tally.requests, other.requests) == (1, 1)

    async def test_are_not_joined_by_those_who_want_younger_ones(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        first = asyncio.create_task(here.get("a"))
        await settle()
        here.clock.advance(1)
        second = asyncio.create_task(here.get("a", since_ms=here.clock.now_ms()))
        await settle()
        here.upstream.gate.set()
        assert (await first, await second) == ({"a": "a 1"}, {"a": "a 2"})

    async def test_fail_for_all_who_wait(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        here.upstream.failure = SourceError("down")
        waiting = [asyncio.create_task(here.get("a")) for _ in range(3)]
        await settle()
        here.upstream.gate.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(end) for end in ends] == ["down"] * 3
        assert len(here.upstream.calls) == 1

    async def test_go_on_while_somebody_waits_and_end_with_the_last(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        first, second = (asyncio.create_task(here.get("a")) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        assert here.upstream.cancelled == 0
        second.cancel()
        await settle()
        assert here.upstream.cancelled == 1

    async def test_that_are_ending_are_joined_by_nobody(self, here: Shelved) -> None:
        here.upstream.gate.clear()
        first = asyncio.create_task(here.get("a"))
        await settle()
        first.cancel()
        await settle()
        second = asyncio.create_task(here.get("a"))
        await settle()
        here.upstream.gate.set()
        assert await second == {"a": "a 2"}

    async def test_beside_one_that_fails_end_too(self, here: Shelved) -> None:
        async def fetch(keys: Sequence[str], tally: Tally) -> Mapping[str, bytes]:
            if "a" in keys:
                raise SourceError("down")
            return await here.upstream.fetch(keys, tally)

        here.upstream.gate.clear()
        shelf = Shelf(fetch, 1, here.clock)
        with pytest.raises(SourceError, match="down"):
            await shelf.get(["a", "b", "c"], 0, Tally())
        await settle()
        assert here.upstream.cancelled == len(here.upstream.calls)
        assert len(shelf) == 0


async def test_what_a_clock_that_was_wrong_says_is_to_come_is_fetched_again(here: Shelved) -> None:
    assert await here.get("a") == {"a": "a 1"}
    here.clock.wall_ms -= 10 * 3_600_000
    assert await here.get("a") == {"a": "a 2"}
    assert await here.get("a") == {"a": "a 2"}
