"""Which results may replace what is served: by members, by type, at any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.validators import Content, Found, Limits, Rule, differing, is_like, validate
from sidecar.contract.words import ContentType

USUAL = Limits(lost=0.3, gained=2.0, floor=2)
COURSE, RUN, PROGRAM = ContentType.COURSE, ContentType.COURSE_RUN, ContentType.PROGRAM


def courses(first: int, count: int) -> dict[str, ContentType]:
    return {f"Org+{n}": COURSE for n in range(first, first + count)}


def programs(count: int) -> dict[str, ContentType]:
    return {f"program {n}": PROGRAM for n in range(count)}


def rules(before: Content, after: Content, limits: Limits = USUAL) -> list[Rule]:
    return [objection.rule for objection in validate(Found(before), Found(after), limits)]


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (courses(0, 100), courses(0, 100), []),
        ({}, courses(0, 100), []),
        ({}, {}, []),
        # All are gone, however few they were.
        (courses(0, 100), {}, [Rule.EMPTIED]),
        (courses(0, 1), {}, [Rule.EMPTIED]),
        # More than three in ten, and two at least.
        (courses(0, 100), courses(0, 70), []),
        (courses(0, 100), courses(0, 69), [Rule.SHRUNK]),
        (courses(0, 2), courses(0, 1), []),
        (courses(0, 7), courses(0, 5), []),
        (courses(0, 6), courses(0, 4), [Rule.SHRUNK]),
        # As many as before, and others: a number alone would not tell.
        (courses(0, 100), courses(30, 100), []),
        (courses(0, 100), courses(31, 100), [Rule.SWAPPED]),
        (courses(0, 100), courses(60, 110), [Rule.SWAPPED]),
        # Of two and more not one has stayed.
        (courses(0, 1), courses(1, 1), []),
        (courses(0, 2), courses(2, 2), [Rule.SWAPPED]),
        (courses(0, 3), courses(3, 1), [Rule.SHRUNK]),
        # More than twice as many came as there were, of whom there were ten at least.
        (courses(0, 100), courses(0, 300), []),
        (courses(0, 100), courses(0, 301), [Rule.GROWN]),
        (courses(0, 1), courses(0, 21), []),
        (courses(0, 1), courses(0, 22), [Rule.GROWN]),
        (courses(0, 100), courses(50, 400), [Rule.SWAPPED, Rule.GROWN]),
        # A type of which there were several; and what is no longer a type but one item.
        (courses(0, 100) | programs(2), courses(0, 100), [Rule.TYPE_GONE]),
        (courses(0, 100) | programs(1), courses(0, 100), []),
        (courses(0, 100) | programs(9), courses(0, 100) | programs(1), []),
        (courses(0, 100) | programs(9), programs(9), [Rule.SHRUNK, Rule.TYPE_GONE]),
        ({"a": COURSE, "b": COURSE, "r": RUN}, {"r": RUN}, [Rule.SHRUNK, Rule.TYPE_GONE]),
    ],
)
def test_a_result_is_refused_by_these_rules(before: Content, after: Content, expected: list[Rule]) -> None:
    assert rules(before, after) == expected


def test_where_all_may_go_only_growing_is_looked_at() -> None:
    lenient = Limits(lost=1, gained=2.0, floor=2)
    after: Content
    for after in ({}, programs(3), courses(500, 100), courses(0, 1)):
        assert rules(courses(0, 100) | programs(9), after, lenient) == []
    assert rules(courses(0, 100), courses(100, 400), lenient) == [Rule.GROWN]


def test_what_shows_restricted_runs_is_looked_at_by_itself() -> None:
    plain, shown = courses(0, 10), courses(0, 10) | {f"run {n}": RUN for n in range(10)}
    objections = validate(Found(plain, shown), Found(plain, plain), USUAL)
    assert [(o.rule, o.restricted, o.lost) for o in objections] == [
        (Rule.SHRUNK, True, 10),
        (Rule.TYPE_GONE, True, 10),
    ]


@pytest.mark.parametrize("before, after", [(None, courses(0, 9)), (courses(0, 9), None)])
def test_what_was_not_asked_for_both_times_is_not_compared(before: Content | None, after: Content | None) -> None:
    """Whether restricted runs are pulled at all is a setting."""
    assert validate(Found(courses(0, 9), before), Found(courses(0, 9), after), USUAL) == []


@pytest.mark.parametrize(
    "approved, found, expected",
    [
        (Found(courses(0, 10)), Found(courses(0, 10)), True),
        (Found(courses(0, 10)), Found(courses(1, 10)), True),
        (Found(courses(0, 10)), Found(courses(5, 10)), False),
        (Found(courses(0, 10)), Found({}), False),
        (Found({}), Found({}), True),
        (Found({}), Found(courses(0, 1)), False),
        (Found({}, {}), Found({}, courses(0, 1)), False),
        (Found({}, None), Found({}, courses(0, 1)), True),
    ],
)
def test_like_what_was_approved_is_what_differs_little_from_it(approved: Found, found: Found, expected: bool) -> None:
    assert is_like(approved, found, USUAL) is expected


def test_an_objection_says_its_figures() -> None:
    (objection,) = validate(Found(courses(0, 1200)), Found(courses(600, 700)), USUAL)
    assert str(objection) == "shrunk: 1,200 members before, 700 now, 600 lost (50%), 100 gained"
    (gone,) = validate(Found(courses(0, 90) | programs(2)), Found(courses(0, 90)), USUAL)
    assert str(gone) == "type gone: 2 programs before, 0 now, 2 lost (100%), 0 gained"


def test_what_differs_is_told_by_key() -> None:
    assert differing(courses(0, 3), courses(2, 2)) == ({"Org+0", "Org+1"}, {"Org+3"})


CONTENTS = st.dictionaries(st.integers(0, 60).map(str), st.sampled_from((COURSE, RUN, PROGRAM)), max_size=60)


@given(CONTENTS, CONTENTS)
def test_no_accepted_result_has_lost_more_than_it_may(before: Content, after: Content) -> None:
    """Told in other words than the rules: whatever passes is large, familiar and of all types enough."""
    if rules(before, after) or not before:
        return
    kept = before.keys() & after.keys()
    gone = len(before) - len(kept)
    assert after
    assert gone < USUAL.floor or gone <= USUAL.lost * len(before)
    assert len(after) <= len(kept) + USUAL.gained * max(10, len(before))
    for kind in (COURSE, RUN, PROGRAM):
        had = [key for key in before if before[key] is kind]
        assert len(had) < 2 or kind in after.values()
