"""Lookups answer what plain sets answer, and refuse exactly what cannot be told."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contract.words import PullState
from sidecar.errors import NotPulledYet, UnknownCatalog
from sidecar.lookup import Answer, catalog_contains, catalogs_containing, customer_contains, filter_content_items
from tests.trees import CUSTOMER, Catalog, Selection, World, selections

ONE, TWO, THREE = UUID(int=1), UUID(int=2), UUID(int=3)
ELSEWHERE = UUID(int=0xE)
COURSES = {"edX+A": ["course-v1:edX+A+1", "course-v1:edX+A+2"], "edX+B": ["course-v1:edX+B+1"], "edX+Ünï": []}


def world(*catalogs: Catalog, **chosen: Selection) -> World:
    return World(courses=COURSES, programs=["p1"], selections=chosen, catalogs=catalogs)


def test_a_catalog_contains_any_of_the_keys() -> None:
    index = world(Catalog(ONE, "a"), a=Selection({"edX+A"}, 7)).tree().assembled()
    assert catalog_contains(index, str(ONE), ["no+such", "course-v1:edX+A+2"], False) == Answer(True, 7)
    assert catalog_contains(index, str(ONE), ["edX+B", ""], False) == Answer(False, 7)
    assert catalog_contains(index, str(ONE), [], False) == Answer(False, 7)


def test_a_sibling_of_a_member_run_is_not_contained_and_its_course_is() -> None:
    index = world(Catalog(ONE, "a"), a=Selection({"course-v1:edX+A+1"})).tree().assembled()
    assert catalog_contains(index, str(ONE), ["edX+A"], False).value
    assert not catalog_contains(index, str(ONE), ["course-v1:edX+A+2"], False).value


def test_keys_match_without_case_and_accents() -> None:
    index = world(Catalog(ONE, "a"), a=Selection({"edX+Ünï"})).tree().assembled()
    assert catalog_contains(index, str(ONE), ["EDX+uni"], False).value


def test_an_exact_key_is_not_folded() -> None:
    plain = World(courses={"edX+a": [], "edX+A": []}, selections=selections(s={"edX+A"}), catalogs=[Catalog(ONE, "s")])
    index = plain.tree().assembled()
    assert not catalog_contains(index, str(ONE), ["edX+a"], False).value
    assert catalog_contains(index, str(ONE), ["EDX+A"], False).value


def test_restricted_runs_are_for_those_who_ask_for_them() -> None:
    run = "course-v1:edX+A+1"
    chosen = {"yes": Selection({"edX+A"}, allowed={run}), "no": Selection({"edX+A"})}
    index = (
        World(
            courses=COURSES,
            restricted={run},
            selections=chosen,
            catalogs=[Catalog(ONE, "yes"), Catalog(TWO, "no")],
        )
        .tree()
        .assembled()
    )
    assert not catalog_contains(index, str(ONE), [run], False).value
    assert catalog_contains(index, str(ONE), [run], True).value
    assert not catalog_contains(index, str(TWO), [run], True).value


def test_an_unknown_catalog_is_no_empty_one() -> None:
    with pytest.raises(UnknownCatalog):
        catalog_contains(world().tree().assembled(), str(ONE), ["edX+A"], False)


def test_a_catalog_that_was_never_pulled_is_neither_yes_nor_no() -> None:
    index = world(Catalog(ONE, "a"), a=Selection(pulled_at_ms=None)).tree().assembled()
    with pytest.raises(NotPulledYet, match=str(ONE)):
        catalog_contains(index, str(ONE), ["edX+A"], False)


def test_a_filter_that_is_no_object_contains_nothing() -> None:
    chosen = Selection(pulled_at_ms=None, content_filter=["x"], state=PullState.UNPULLABLE)
    index = world(Catalog(ONE, "a"), a=chosen).tree().assembled()
    assert catalog_contains(index, str(ONE), ["edX+A"], False) == Answer(False, None)
    assert customer_contains(index, str(CUSTOMER), ["edX+A"], False) == Answer(False, None)
    assert filter_content_items(index, str(CUSTOMER), ["edX+A"], [], False) == Answer([], None)


def test_a_filter_that_no_source_can_evaluate_is_not_taken_for_an_empty_one() -> None:
    chosen = Selection(pulled_at_ms=None, state=PullState.UNPULLABLE)
    index = world(Catalog(ONE, "a"), a=chosen).tree().assembled()
    with pytest.raises(NotPulledYet):
        catalog_contains(index, str(ONE), ["edX+A"], False)


def test_a_customer_has_a_key_as_soon_as_a_pulled_catalog_has_it() -> None:
    half = world(Catalog(ONE, "due"), Catalog(TWO, "a"), due=Selection(pulled_at_ms=None), a=Selection({"edX+A"}, 5))
    index = half.tree().assembled()
    assert customer_contains(index, str(CUSTOMER), ["edX+A"], False) == Answer(True, 5)
    with pytest.raises(NotPulledYet, match=str(ONE)):
        customer_contains(index, str(CUSTOMER), ["edX+B"], False)
    with pytest.raises(NotPulledYet):
        catalogs_containing(index, str(CUSTOMER), ["edX+A"], False)
    with pytest.raises(NotPulledYet):
        filter_content_items(index, str(CUSTOMER), ["edX+A"], [], False)
    assert filter_content_items(index, str(CUSTOMER), ["edX+A"], [str(TWO)], False) == Answer(["edX+A"], 5)


def test_an_unknown_customer_has_nothing() -> None:
    index = world().tree().assembled()
    assert customer_contains(index, str(CUSTOMER), ["edX+A"], False) == Answer(False, None)
    assert catalogs_containing(index, str(CUSTOMER), ["edX+A"], False) == Answer([], None)


def test_catalogs_come_in_order_of_creation_and_the_age_is_that_of_the_oldest_content() -> None:
    rows = (Catalog(THREE, "a"), Catalog(ONE, "a"), Catalog(TWO, "b"), Catalog(ELSEWHERE, "a", ELSEWHERE))
    index = world(*rows, a=Selection({"edX+A"}, 9), b=Selection({"edX+B"}, 4)).tree().assembled()
    assert catalogs_containing(index, str(CUSTOMER), ["edX+A"], False) == Answer([str(THREE), str(ONE)], 4)
    assert customer_contains(index, str(CUSTOMER), ["edX+B"], False) == Answer(True, 4)


def test_filtering_keeps_members_and_courses_of_member_runs_in_the_order_asked() -> None:
    index = world(Catalog(ONE, "a"), a=Selection({"course-v1:edX+A+1", "edX+B", "p1"}, 3)).tree().assembled()
    asked = ["p1", "edX+B", "course-v1:edX+B+1", "edX+A", "edX+a", "p1", "no+such"]
    assert filter_content_items(index, str(CUSTOMER), asked, [], False) == Answer(["p1", "edX+B", "edX+A"], 3)


def test_filtering_drops_a_course_all_of_whose_member_runs_are_asked_for_beside_it() -> None:
    one, two = "course-v1:edX+A+1", "course-v1:edX+A+2"
    index = world(Catalog(ONE, "a"), a=Selection({one, two}, 3)).tree().assembled()
    assert filter_content_items(index, str(CUSTOMER), ["edX+A", one, two], [], False) == Answer([one, two], 3)
    assert filter_content_items(index, str(CUSTOMER), ["edX+A", one], [], False) == Answer(["edX+A", one], 3)


def test_filtering_looks_at_the_named_catalogs_whoever_owns_them() -> None:
    rows = (Catalog(ONE, "a"), Catalog(ELSEWHERE, "b", ELSEWHERE))
    index = world(*rows, a=Selection({"edX+A"}, 9), b=Selection({"edX+B"}, 4)).tree().assembled()
    named = [str(ELSEWHERE), str(ELSEWHERE), str(TWO)]
    assert filter_content_items(index, str(CUSTOMER), ["edX+A", "edX+B"], named, False) == Answer(["edX+B"], 4)
    assert filter_content_items(index, str(CUSTOMER), ["edX+A"], [str(TWO)], False) == Answer([], None)


KEYS = [f"k{n}" for n in range(12)]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    courses: dict[str, list[str]] = {}
    for key in KEYS:
        home = draw(st.sampled_from([None, *courses]))
        if home is None:
            courses[key] = []
        else:
            courses[home].append(key)
    some = st.frozensets(st.sampled_from(KEYS))
    times = st.one_of(st.none(), st.integers(1, 9))
    chosen = {name: draw(st.builds(Selection, members=some, pulled_at_ms=times, allowed=some)) for name in "abc"}
    rows = st.builds(Catalog, st.uuids(), st.sampled_from("abc"), st.sampled_from([CUSTOMER, ELSEWHERE]))
    catalogs = draw(st.lists(rows, max_size=5, unique_by=lambda row: row.uuid))
    runs = [run for its in courses.values() for run in its]
    hidden = draw(st.frozensets(st.sampled_from(runs))) if runs else frozenset()
    return World(courses=courses, restricted=hidden, selections=chosen, catalogs=catalogs)


@given(worlds(), st.lists(st.sampled_from([*KEYS, "unknown"]), max_size=3), st.booleans())
def test_lookups_agree_with_plain_sets(plain: World, asked: list[str], restricted: bool) -> None:
    index = plain.tree().assembled()
    mine = [row for row in plain.catalogs if row.customer == CUSTOMER]
    due = any(plain.never_pulled(row.selection) for row in mine)
    for row in plain.catalogs:
        contained = plain.contained(row.selection, restricted=restricted)
        if plain.never_pulled(row.selection):
            with pytest.raises(NotPulledYet):
                catalog_contains(index, str(row.uuid), asked, restricted)
        else:
            answer = catalog_contains(index, str(row.uuid), asked, restricted)
            assert answer == Answer(bool(contained & set(asked)), plain.selections[row.selection].pulled_at_ms)

    pulled = [row for row in mine if not plain.never_pulled(row.selection)]
    hits = [str(row.uuid) for row in pulled if plain.contained(row.selection, restricted=restricted) & set(asked)]
    if hits or not due:
        assert customer_contains(index, str(CUSTOMER), asked, restricted).value is bool(hits)
    else:
        with pytest.raises(NotPulledYet):
            customer_contains(index, str(CUSTOMER), asked, restricted)

    if due:
        with pytest.raises(NotPulledYet):
            catalogs_containing(index, str(CUSTOMER), asked, restricted)
        with pytest.raises(NotPulledYet):
            filter_content_items(index, str(CUSTOMER), asked, [], restricted)
        return
    listed: set[str] = set()
    for row in mine:
        members = plain.members(row.selection, restricted=restricted)
        unasked = members - set(asked)
        listed |= members | {course for course, runs in plain.courses.items() if unasked.intersection(runs)}
    oldest = min((plain.selections[row.selection].pulled_at_ms or 0 for row in mine), default=None)
    assert catalogs_containing(index, str(CUSTOMER), asked, restricted) == Answer(hits, oldest)
    assert filter_content_items(index, str(CUSTOMER), asked, [], restricted) == Answer(
        [key for key in dict.fromkeys(asked) if key in listed], oldest
    )
