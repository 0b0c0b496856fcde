"""Whoever walks the pages of a list that changes meanwhile sees everything once that was there all the time."""

from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from sidecar.walks import IDLE_S, MAX_AGE_S, MAX_FRAMES, MAX_LONGER, Frame, Walks
from tests.fakes import FakeClock

ORDINALS: Final = st.integers(0, 60)
# What comes and what goes between two requests; ordinals above all others are new content.
CHANGES: Final = st.lists(
    st.tuples(st.sets(ORDINALS, max_size=4), st.sets(st.integers(0, 90), max_size=6)), min_size=1, max_size=30
)


class Walker:
    """Asks for page after page until there is no next one, and notes what it was shown."""

    def __init__(self, walks: Walks, size: int) -> None:
        self.walks, self.size = walks, size
        self.number, self.seen, self.through = 0, list[int](), False
        self.always: BitMap | None = None
        self.ever = BitMap()

    def step(self, listed: BitMap) -> None:
        """Asks for the next page of what is listed."""
        self.number += 1
        frame = self.walks.frame("catalog", listed, self.size)
        # A link that was given leads somewhere.
        assert self.number <= frame.pages
        self.seen += frame.page(self.number)
        self.note(listed)
        self.through = self.number == frame.pages

    def note(self, listed: BitMap) -> None:
        """Something was published: it counts from the first page to the last."""
        if not self.through and self.number > 0:
            self.always = listed.copy() if self.always is None else self.always & listed
            self.ever |= listed


@given(st.sets(ORDINALS), st.integers(1, 12), CHANGES)
def test_nothing_is_shown_twice_and_nothing_left_out_but_what_came_or_went(
    first: set[int], size: int, changes: list[tuple[set[int], set[int]]]
) -> None:
    listed, walks = BitMap(first), Walks(FakeClock())
    # One begins when everything is as it was, the other in the middle; they share the pages.
    walkers = Walker(walks, size), Walker(walks, size)
    waiting = list(changes)
    for turn in range(500):
        if all(walker.through for walker in walkers):
            break
        walker = walkers[turn % 2 if turn > 3 else 0]
        if not walker.through:
            walker.step(listed)
        if waiting:
            went, came = waiting.pop()
            listed = (listed - BitMap(went)) | BitMap(came)
            for each in walkers:
                each.note(listed)
    for walker in walkers:
        assert walker.through
        assert len(set(walker.seen)) == len(walker.seen)
        assert walker.always is None or walker.always <= BitMap(walker.seen) <= walker.ever


@given(st.sets(st.integers(0, 500)), st.integers(1, 100))
def test_pages_of_a_list_that_does_not_change_are_its_slices(items: set[int], size: int) -> None:
    listed = BitMap(items)
    frame = Walks(FakeClock()).frame("catalog", listed, size)
    ordered = sorted(items)
    assert frame.pages == max(1, -(-len(ordered) // size))
    pages = [frame.page(number) for number in range(1, frame.pages + 1)]
    assert pages == ([ordered[first : first + size] for first in range(0, len(ordered), size)] or [[]])


def test_a_page_is_shorter_by_what_went_and_longer_by_what_came() -> None:
    frame = Frame(BitMap(range(0, 60, 2)), BitMap([3, *range(8, 60, 2), 100, 101]), 10)
    assert [frame.page(number) for number in range(1, frame.pages + 1)] == [
        [3, *range(8, 20, 2)],
        [*range(20, 40, 2)],
        [*range(40, 60, 2)],
        [100, 101],
    ]


class TestAFrame:
    def test_is_forgotten_once_nobody_has_walked_for_a_while(self) -> None:
        clock = FakeClock()
        walks, before, after = Walks(clock), BitMap(range(20)), BitMap(range(5, 20))
        walks.frame("catalog", before, 10)
        clock.advance(IDLE_S)
        assert walks.frame("catalog", after, 10).page(1) == [5, 6, 7, 8, 9]
        clock.advance(IDLE_S + 1)
        assert walks.frame("catalog", after, 10).page(1) == [*range(5, 15)]

    def test_does_not_last_for_ever_under_those_who_walk_without_a_break(self) -> None:
        clock = FakeClock()
        walks, after = Walks(clock), BitMap(range(5, 20))
        walks.frame("catalog", BitMap(range(20)), 10)
        lengths = []
        for _ in range(int(MAX_AGE_S / 60) + 1):
            clock.advance(60)
            lengths.append(len(walks.frame("catalog", after, 10).page(1)))
        assert lengths == [5] * int(MAX_AGE_S / 60) + [10]

    def test_is_given_up_where_a_page_would_get_too_long(self) -> None:
        walks, sparse = Walks(FakeClock()), BitMap(range(0, 4000, 200))
        walks.frame("catalog", sparse, 10)
        come = sparse | BitMap(range(1, MAX_LONGER + 1))
        assert len(walks.frame("catalog", come, 10).page(1)) == 10 + MAX_LONGER
        assert len(walks.frame("catalog", come | BitMap([150]), 10).page(1)) == 10

    def test_is_one_list_in_pages_of_one_size(self) -> None:
        walks, before, after = Walks(FakeClock()), BitMap(range(20)), BitMap(range(5, 20))
        walks.frame("catalog", before, 10)
        assert walks.frame("other", after, 10).page(1) == [*range(5, 15)]
        assert walks.frame("catalog", after, 5).page(1) == [*range(5, 10)]
        assert walks.frame("catalog", after, 10).page(1) == [*range(5, 10)]

    def test_of_longest_ago_makes_room(self) -> None:
        walks, before, after = Walks(FakeClock()), BitMap(range(20)), BitMap(range(5, 20))
        for number in range(MAX_FRAMES + 1):
            walks.frame(number, before, 10)
        assert len(walks.frame(0, after, 10).page(1)) == 10
        assert len(walks.frame(MAX_FRAMES, after, 10).page(1)) == 5
