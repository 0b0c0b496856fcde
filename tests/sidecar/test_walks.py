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
        frame = self.walks.frame("catalog", listed, self.size, first=self.number == 1)
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


def test_a_link_to_a_last_page_that_has_lost_everything_still_leads_to_it() -> None:
    walks = Walks(FakeClock())
    for number in (1, 2):
        assert walks.frame("catalog", BitMap([0, 1]), 1, first=number == 1).pages == 2
    for number in (1, 2, 1, 2):
        frame = walks.frame("catalog", BitMap([0]), 1, first=number == 1)
        assert (frame.pages, frame.page(number)) == (2, [0] if number == 1 else [])


@given(st.sets(st.integers(0, 500)), st.integers(1, 100))
def test_pages_of_a_list_that_does_not_change_are_its_slices(items: set[int], size: int) -> None:
    listed = BitMap(items)
    frame = Walks(FakeClock()).frame("catalog", listed, size, first=True)
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


BEFORE, AFTER = BitMap(range(20)), BitMap(range(5, 20))


class TestAFrame:
    def setup_method(self) -> None:
        self.clock = FakeClock()
        self.walks = Walks(self.clock)
        assert self.ask(1, BEFORE) == 10

    def ask(self, number: int, listed: BitMap, of: object = "catalog", size: int = 10) -> int:
        """How long a page is."""
        return len(self.walks.frame(of, listed, size, first=number == 1).page(number))

    def test_is_gone_on_with_by_who_walks(self) -> None:
        assert self.ask(2, AFTER) == 10
        assert self.ask(1, AFTER) == 5

    def test_is_left_by_who_asks_for_the_first_page_alone(self) -> None:
        for listed in (AFTER, BitMap(range(3, 20)), BitMap(range(50))):
            assert self.ask(1, listed) == 10

    def test_is_forgotten_once_nobody_has_walked_for_a_while(self) -> None:
        self.ask(2, BEFORE)
        self.clock.advance(IDLE_S)
        assert self.ask(1, AFTER) == 5
        self.clock.advance(1)
        assert self.ask(1, AFTER) == 10

    def test_does_not_last_for_ever_under_those_who_walk_without_a_break(self) -> None:
        self.ask(2, BEFORE)
        lengths = []
        for _ in range(int(MAX_AGE_S / 60) + 1):
            self.clock.advance(60)
            self.ask(2, AFTER)
            lengths.append(self.ask(1, AFTER))
        assert lengths == [5] * int(MAX_AGE_S / 60) + [10]

    def test_is_given_up_where_a_page_would_get_too_long(self) -> None:
        sparse = BitMap(range(0, 4000, 200))
        come = sparse | BitMap(range(1, MAX_LONGER + 1))
        for number in (1, 2):
            self.ask(number, sparse, "sparse")
        assert self.ask(1, come, "sparse") == 10 + MAX_LONGER
        assert self.ask(1, come | BitMap([150]), "sparse") == 10

    def test_is_one_list_in_pages_of_one_size(self) -> None:
        self.ask(2, BEFORE)
        assert self.ask(1, AFTER, "other") == 10
        assert self.ask(1, AFTER, size=5) == 5
        assert self.ask(1, AFTER) == 5

    def test_of_longest_ago_makes_room(self) -> None:
        for number in range(MAX_FRAMES + 1):
            self.ask(2, BEFORE, number)
        assert self.ask(1, AFTER, 0) == 10
        assert self.ask(1, AFTER, MAX_FRAMES) == 5
