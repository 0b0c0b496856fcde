"""Rows: medians, ratios taken within rounds, verdicts, and the order in which sides take turns."""

from functools import partial

import pytest

from benchmarks.rows import Row, Sense, Spread, interleaved, line


def row(
    *,
    sense: Sense = "at least",
    goal: float | None = 0.75,
    ours: tuple[float, ...] = (),
    theirs: tuple[float, ...] = (),
) -> Row:
    return Row("question", "name", "/s", sense, goal, ours, "peer" if theirs else "", theirs)


@pytest.mark.parametrize(
    "samples, spread",
    [([3.0], (3, 3, 3)), ([5.0, 1.0, 2.0], (2, 1, 5)), ([4.0, 1.0, 2.0, 3.0], (2.5, 1, 4))],
)
def test_a_spread_is_the_median_the_lowest_and_the_highest(samples: list[float], spread: tuple[float, ...]) -> None:
    assert Spread.of(samples) == spread


def test_a_ratio_is_taken_within_each_round_and_not_of_medians() -> None:
    # Of the medians it would be 2 / 2; the machine was ten times slower in the second round, for both.
    found = row(ours=(2.0, 0.1, 30.0), theirs=(1.0, 0.2, 10.0))
    assert found.ratio == (2.0, 0.5, 3.0)
    assert row(ours=(2.0, 3.0)).ratio is None


@pytest.mark.parametrize(
    "sense, ours, verdict",
    [
        ("at least", 0.75, "pass"),
        ("at least", 0.74, "MISSED"),
        ("at most", 0.75, "pass"),
        ("at most", 0.76, "MISSED"),
    ],
)
def test_a_goal_bounds_the_median_on_the_side_that_it_says(sense: Sense, ours: float, verdict: str) -> None:
    assert row(sense=sense, ours=(0.0, ours, 9.0), theirs=(1.0, 1.0, 1.0)).verdict == verdict
    assert row(sense=sense, ours=(0.0, ours, 9.0)).verdict == verdict


def test_a_goal_for_which_nothing_was_measured_is_missed_and_no_goal_has_no_verdict() -> None:
    assert row().verdict == "MISSED"
    assert row(goal=None, ours=(1.0,)).verdict == ""


def test_a_peer_that_was_measured_in_fewer_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples beside 1 of peer"):
        row(ours=(1.0, 2.0, 3.0), theirs=(1.0,))


def test_sides_take_turns_in_an_order_that_turns_around() -> None:
    asked: list[str] = []

    def measured(name: str) -> int:
        asked.append(name)
        return len(asked)

    taken = interleaved(3, {name: partial(measured, name) for name in "AB"})
    assert asked == ["A", "B", "B", "A", "A", "B"]
    assert taken == {"A": [1, 4, 5], "B": [2, 3, 6]}


def test_a_row_reads_what_it_wrote() -> None:
    written = row(ours=(2.0, 0.1), theirs=(1.0, 0.2))
    assert Row.read(written.document()) == written
    assert written.document()["verdict"] == "pass"


def test_a_line_tells_goal_figures_spread_and_verdict() -> None:
    told = line(row(ours=(12_345.6, 10_000.0, 30_000.0), theirs=(20_000.0, 20_000.0, 20_000.0)))
    assert told == "| name | at least 0.75 | 12,346 /s | peer: 20,000 /s | 0.62 (0.50 to 1.50) | MISSED |"
    assert line(row(sense="at most", goal=200, ours=(1.234, 1.0))) == (
        "| name | at most 200 /s | 1.12 /s |  | (1 to 1.23) | pass |"
    )
