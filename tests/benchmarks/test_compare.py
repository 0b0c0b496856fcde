"""Comparing runs: what lies beyond the spread of both, and in which direction that is better."""

import pytest

from benchmarks.compare import Change, compare
from benchmarks.rows import Row, Sense


def row(*ours: float, name: str = "name", sense: Sense = "at least") -> Row:
    return Row("question", name, "/s", sense, None, ours)


@pytest.mark.parametrize(
    "base, new, change",
    [
        ((9, 10, 11), (19, 20, 21), "better"),
        ((9, 10, 11), (4, 5, 6), "worse"),
        ((9, 10, 11), (10, 11, 12), "within the spread"),
        # The median of one is within the spread of the other alone, either way round.
        ((1, 10, 30), (19, 20, 21), "within the spread"),
        ((19, 20, 21), (1, 10, 30), "within the spread"),
        ((9, 10, 11), (), "not measured"),
        ((), (9, 10, 11), "not measured"),
    ],
)
def test_a_row_has_changed_if_each_median_is_outside_of_the_other_spread(
    base: tuple[float, ...], new: tuple[float, ...], change: Change
) -> None:
    assert [found for *_, found in compare([row(*base)], [row(*new)])] == [change]


def test_less_is_better_where_a_row_says_at_most() -> None:
    assert compare([row(10, sense="at most")], [row(5, sense="at most")])[0][2] == "better"


def test_ratios_are_compared_where_there_is_a_peer() -> None:
    # A machine half as fast for both sides.
    base = Row("question", "name", "/s", "at least", None, (10, 11), "peer", (20, 22))
    new = Row("question", "name", "/s", "at least", None, (5, 5.5), "peer", (10, 11))
    assert compare([base], [new])[0][2] == "within the spread"


def test_rows_that_one_of_both_does_not_have_are_told() -> None:
    found = compare([row(1, name="old")], [row(1, name="new")])
    assert [(now.name, change) for now, _, change in found] == [("new", "new"), ("old", "gone")]
