"""A listing of many pages, whole or not at all. Knows no service: how a page is asked for is passed in.

Every page is checked as it comes: its shape, its size, and that results and `count` add up. Page-numbered results may
legally repeat or skip where the order has ties. A repeated key, or a `count` that moves between pages, therefore means
taking the listing again, and in the end only as many distinct keys as `count` says are believed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from indexer.documents import BadDocument, Document
from indexer.source import SourceError
from sidecar.clock import Clock

TAKES: Final = 3
RETAKE_DELAY_S: Final = 10.0
"""Ties are broken differently by each replica of a search index, and by the same one after its next refresh."""

MOST_GROWTH: Final = 2
MOST_MORE: Final = 1000
"""A listing that has grown to twice what it was at its first page, and more, while it was read: it may never end."""

T = TypeVar("T")


class TooMany(Exception):
    """Raised when a listing has more results than its kind of paging can reach."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Which page to ask for: its number from 1, how many results came before it, and the `next` that led to it."""

    number: int = 1
    seen: int = 0
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A listing: its name in messages, how a page is asked for, and what to keep of a result, by which key.

    `size`, if given, is how many results every page but the last one has. `reach`, if given, is how many results
    paging can reach; a `count` that high may itself be cut off there.
    """

    what: str
    ask: Callable[[Turn], Awaitable[object]]
    read: Callable[[Document], tuple[str, T]]
    size: int | None = None
    reach: int | None = None


@dataclass(slots=True)
class _Take(Generic[T]):
    found: dict[str, T] = field(default_factory=dict)
    seen: int = 0
    count: int = 0
    steady: bool = True


async def whole(listing: Listing[T], clock: Clock) -> dict[str, T]:
    """Everything listed, by key and in order. Raises SourceError naming page and numbers; TooMany at first sight."""
    for _ in range(TAKES - 1):
        take = await _take(listing, last=False)
        if take.steady:
            return take.found
        await clock.sleep(RETAKE_DELAY_S)
    take = await _take(listing, last=True)
    if not take.steady and len(take.found) != take.count:
        raise SourceError(
            f"{listing.what}: results repeat or `count` moves between pages; taken {TAKES} times, the last time "
            f"{len(take.found)} distinct keys were found, and `count` says {take.count}"
        )
    return take.found


async def _take(listing: Listing[T], *, last: bool) -> _Take[T]:
    """Page after page until `next` is null. A take that repeats or moves ends there, unless it is the last one."""
    take: _Take[T] = _Take()
    turn, first_count = Turn(), 0
    while True:
        where = f"{listing.what} page {turn.number}"
        count, next_, results = _read_page(await listing.ask(turn), where)
        if turn.number == 1:
            if listing.reach is not None and count >= listing.reach:
                raise TooMany(f"{listing.what}: {count} results")
            take.count = count
        _add(take, listing, count, results, where)
        if take.steady:
            _check(take, listing.size, next_, len(results), where)
        elif not last or take.seen >= take.count:
            return take
        if next_ is None:
            return take
        first_count = count if turn.number == 1 else first_count
        if take.seen > MOST_GROWTH * first_count + MOST_MORE:
            raise SourceError(
                f"{where}: it goes on after {take.seen} results, and the first page's `count` was {first_count}"
            )
        if not results:
            raise SourceError(f"{where}: it is empty after {take.seen} results, and `next` is not null")
        turn = Turn(turn.number + 1, take.seen, next_)


def _read_page(answer: object, where: str) -> tuple[int, str | None, list[Any]]:
    if not isinstance(answer, dict):
        raise SourceError(f"{where}: the answer is {answer!r:.80}, and not an object")
    count, next_, results = answer.get("count"), answer.get("next"), answer.get("results")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise SourceError(f"{where}: `count` is {count!r:.80}, and not a number of results")
    if next_ is not None and not isinstance(next_, str):
        raise SourceError(f"{where}: `next` is {next_!r:.80}, and neither null nor a text")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise SourceError(f"{where}: `results` is not a list of objects")
    return count, next_, results


def _add(take: _Take[T], listing: Listing[T], count: int, results: list[Any], where: str) -> None:
    if listing.size is not None and len(results) > listing.size:
        raise SourceError(f"{where}: {len(results)} results, and at most {listing.size} were asked for")
    before = len(take.found)
    try:
        take.found.update(map(listing.read, results))
    except (KeyError, TypeError, AttributeError, BadDocument) as error:
        raise SourceError(f"{where}: {type(error).__name__}: {error}") from error
    take.seen += len(results)
    if count != take.count or len(take.found) != before + len(results):
        take.steady = False
    take.count = count


def _check(take: _Take[T], size: int | None, next_: str | None, length: int, where: str) -> None:
    if take.seen > take.count:
        raise SourceError(f"{where}: {take.seen} results so far, and `count` says {take.count}")
    if take.seen == take.count:
        return
    if next_ is None:
        raise SourceError(f"{where}: `next` is null after {take.seen} results, and `count` says {take.count}")
    if size is not None and length < size:
        raise SourceError(f"{where}: {length} results of {size}, {take.seen} so far, and `count` says {take.count}")
