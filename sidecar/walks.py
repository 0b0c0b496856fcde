"""Where the pages of a catalog begin, for as long as somebody walks them. Pure but for the clock that is passed in.

A caller who walks says how many pages it has behind it, and not which content. If content went from a page behind it,
everything after that would move up, and what moves onto that page would never be seen; what comes in between would
have something seen twice. So the pages of a walk go on beginning where they began when it did: at certain content, and
not at certain counts.

1. The first page that is asked for of a list sets the frame: what is listed is cut into pages of the size asked for.
2. While somebody walks on from page to page, a page is what is listed now between its two ends. It gets shorter by what
   went, and longer by what came. Only the last page has no end yet: what is new comes there, and makes more pages.
3. Whoever asks for the first page alone does not walk, and whoever begins where nobody walks gets a frame of their own
   time: its pages have the size that was asked for. A frame in which a page would get too long is given up, and so is
   one that has been walked without a break for so long that its pages are no longer what they are called.

One frame serves all who walk a catalog in pages of one size. Each page is still one generation's: its ends alone are
remembered, and never its content.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple

from pyroaring import BitMap

from sidecar.clock import Clock
from sidecar.pages import Page, asked_page, asked_size, is_first

# Longer than whoever walks does something with a page.
IDLE_S: Final = 120.0
MAX_AGE_S: Final = 3600.0
# A page is at most this much longer than was asked for.
MAX_LONGER: Final = 100
# Sets of a few KB each, most of which the index holds as well.
MAX_FRAMES: Final = 4096


class Frame(NamedTuple):
    """What the pages are cut by, what is listed now, and how long pages are."""

    began: BitMap
    listed: BitMap
    size: int

    @property
    def pages(self) -> int:
        """How many there are; an empty list has one, too."""
        tail = len(self.listed) - self._before(self._closed)
        return self._closed + max(1, -(-tail // self.size))

    def page(self, number: int) -> list[int]:
        """The ordinals of a page, from 1."""
        closed = self._closed
        if number <= closed:
            return list(self.listed[self._before(number - 1) : self._before(number)])
        first = self._before(closed) + (number - 1 - closed) * self.size
        return list(self.listed[first : first + self.size])

    @property
    def grown(self) -> BitMap:
        """What the pages are cut by from now on: the last one by what is listed now, the others as before.

        A last page that has lost everything stays one, by what was on it: somebody may have a link to it.
        """
        closed = self._closed
        last = self.listed[self._before(closed) :]
        return self.began[: closed * self.size] | last if last else self.began

    @property
    def longer(self) -> int:
        """By how much a page may have got longer at most."""
        return len(self.listed[: self._before(self._closed)] - self.began)

    @property
    def _closed(self) -> int:
        """How many pages have an end: all but the last one of those that were cut."""
        return max(0, len(self.began) - 1) // self.size

    def _before(self, pages: int) -> int:
        """How many of those listed now are on the first so many pages; these have an end."""
        return 0 if pages == 0 else self.listed.rank(self.began[pages * self.size] - 1)


class _Use(NamedTuple):
    """What a frame is cut by, and when it was last that, used, and walked on, in seconds of the monotonic clock."""

    began: BitMap
    since_s: float
    used_s: float
    walked_s: float


class Walks:
    """The frames in use."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._frames: OrderedDict[tuple[Hashable, int], _Use] = OrderedDict()

    def asked(
        self, of: Hashable, listed: BitMap, parameters: Mapping[str, str], *, max_size: int
    ) -> tuple[Page, list[int]]:
        """The page of a list that the parameters ask for, and the ordinals on it; `of` names the list."""
        size = asked_size(parameters, max_size=max_size)
        frame = self.frame(of, listed, size, first=is_first(parameters))
        page = asked_page(len(listed), parameters, max_size=max_size, pages=frame.pages)
        return page, frame.page(page.number)

    def frame(self, of: Hashable, listed: BitMap, size: int, *, first: bool) -> Frame:
        """The pages of a list: `of` names it, `listed` is what it has now; `first`: it is the first that is wanted."""
        now_s = self._clock.monotonic()
        use = self._frames.get((of, size))
        if use is None or not self._lasts(use, listed, size, now_s, first=first):
            use = _Use(listed, now_s, now_s, float("-inf"))
        frame = Frame(use.began, listed, size)
        walked_s = use.walked_s if first else now_s
        if use.began == listed:
            began, since_s = use.began, now_s
        else:
            began, since_s = frame.grown, use.since_s
        self._frames[of, size] = _Use(began, since_s, now_s, walked_s)
        self._frames.move_to_end((of, size))
        if len(self._frames) > MAX_FRAMES:
            self._frames.popitem(last=False)
        return frame

    @staticmethod
    def _lasts(use: _Use, listed: BitMap, size: int, now_s: float, *, first: bool) -> bool:
        """Whether a frame is gone on with."""
        if use.began == listed:
            return True
        idle_s = now_s - (use.walked_s if first else use.used_s)
        if idle_s > IDLE_S or now_s - use.since_s > MAX_AGE_S:
            return False
        return Frame(use.began, listed, size).longer <= MAX_LONGER
