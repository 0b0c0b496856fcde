"""The filter language: every case of the contract's table, what is refused and how, and laws for any filter."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.filters import (
    FIELDS,
    BadFilter,
    FilterError,
    Unfaithful,
    allowed_restricted_runs,
    compile_filter,
    forced_courses,
    matches,
)

CASES = json.loads((Path(__file__).parent.parent / "contract" / "filters.json").read_text(encoding="utf-8"))

FOLDED = ("org", "authoring_organizations", "partner", "type", "enrollment_mode", "key")
EXACT = (
    "aggregation_key",
    "course_type",
    "key.raw",
    "content_type",
    "availability",
    "level_type",
    "course_ends",
    "languages",
    "number",
    "pacing_type",
    "product_source",
    "external_course_marketing_type",
    "skill_names",
    "subject_uuids",
    "authoring_organization_uuids",
    "status",
)
BOOLEAN = ("published", "hidden", "has_enrollable_seats", "active", "is_active", "enterprise_subscription_inclusion")
PRICE = "first_enrollable_paid_seat_price"
DATES = ("start", "end", "end_date")
EXCLUDABLE = ("aggregation_key", "course_type", "key.raw", "org", "authoring_organizations")
ORDERINGS = ("gt", "gte", "lt", "lte")
COMPARISONS = tuple(f"{name}__{ordering}" for name in (PRICE, *DATES) for ordering in ORDERINGS)
KNOWN = (*FOLDED, *EXACT, *BOOLEAN, PRICE, *COMPARISONS, *(f"{name}__exclude" for name in EXCLUDABLE))
FIELD_OF = {"key.raw": "key", "active": "is_active", "enrollment_mode": "type"}


def refused(content_filter: Any) -> FilterError:
    with pytest.raises(FilterError) as caught:
        compile_filter(content_filter)
    return caught.value


class TestTheContract:
    @pytest.mark.parametrize("case", CASES, ids=[f"{n}-{json.dumps(case['filter'])}" for n, case in enumerate(CASES)])
    def test_case(self, case: dict[str, Any]) -> None:
        if case["matches"] == "refused":
            assert isinstance(refused(case["filter"]), Unfaithful)
        else:
            assert matches(case["filter"], case["document"]) is case["matches"]

    def test_the_table_is_whole(self) -> None:
        assert len(CASES) == 64

    @pytest.mark.parametrize("key", KNOWN)
    def test_a_key_of_the_table_is_known(self, key: str) -> None:
        field = key.partition("__")[0]
        value = True if field in BOOLEAN else 1 if field == PRICE else "2026-01-01"
        assert compile_filter({key: value}).ignored == ()

    @pytest.mark.parametrize(
        "key",
        ["subjects", "org__in", "key__exclude", "start", "end", "end_date__range", "org__exclude__exclude", "partner__",
         "published__exclude", "enrollment_mode__exclude", "q__exclude", "", "__", "key.raw.raw"],
    )  # fmt: skip
    def test_a_key_that_search_all_does_not_know_is_no_condition_whatever_its_value(self, key: str) -> None:
        known = {"org": "edX", key: {"any": [None, "thing"]}}
        assert compile_filter(known).matches({"org": "edx"})
        assert not compile_filter(known).matches({"org": "MITx"})


class TestIgnoredKeys:
    def test_they_are_named_in_the_order_of_the_filter(self) -> None:
        compiled = compile_filter({"subjects": ["Law"], "org": "edX", "org__exempt": [], "colour": None})
        assert compiled.ignored == ("subjects", "org__exempt", "colour")

    def test_pseudo_keys_are_neither_conditions_nor_ignored(self) -> None:
        pseudo = {"restricted_runs_allowed": "nonsense", "enterprise_force_include_aggregation_keys": 7}
        assert compile_filter(pseudo).ignored == ()
        assert matches(pseudo, {})


class TestRefusals:
    @pytest.mark.parametrize(
        "content_filter",
        [
            {"q": "logic"},
            {"short_description": []},
            {"first_enrollable_paid_seat_price__in": "149__99"},
            {"first_enrollable_paid_seat_price__range": "1__200"},
            {"start__gte": "now-30d"},
            {"end_date__lt": ["2026-01-01", "2026-01-01||+1M/d"]},
        ],
    )
    def test_what_only_search_all_can_evaluate_is_unfaithful_and_the_remedy_is_the_discovery_source(
        self, content_filter: dict[str, Any]
    ) -> None:
        error = refused(content_filter)
        assert isinstance(error, Unfaithful)
        (key,) = content_filter
        assert error.key == key
        assert key in str(error)
        assert repr(error.value) in str(error)
        assert "discovery source" in str(error)

    @pytest.mark.parametrize(
        "key, value, remedy",
        [
            (PRICE, "cheap", "give a number"),
            (PRICE, ["149", None], "give a number"),
            (PRICE, True, "give a number"),
            (PRICE, "nan", "give a number"),
            (PRICE, "1_000", "give a number"),
            (f"{PRICE}__lte", "", "give a number"),
            (f"{PRICE}__lte", [], "give a number"),
            (f"{PRICE}__gt", 10**400, "give a number"),
            (f"{PRICE}__gt", float("inf"), "give a number"),
            ("start__gte", "yesterday", "give an ISO 8601 date"),
            ("start__gte", "2026-13-01", "give an ISO 8601 date"),
            ("end__lt", 20260101, "give an ISO 8601 date"),
            ("end_date__lt", None, "give an ISO 8601 date"),
            ("published", "yes", "give true or false"),
            ("hidden", 1, "give true or false"),
            ("org", None, "give a text"),
            ("org__exclude", [["edX"]], "give a text"),
            ("product_source", {"slug": "edx"}, "give a text"),
            ("authoring_organizations", {"key": "MITx", "name": "MIT"}, "give a text"),
        ],
    )
    def test_a_bad_value_is_refused_with_its_key_itself_and_the_remedy(
        self, key: str, value: object, remedy: str
    ) -> None:
        error = refused({key: value})
        assert isinstance(error, BadFilter)
        assert error.key == key
        assert str(error).startswith(f"{key} = {error.value!r:.80}: not ")
        assert remedy in str(error)

    def test_only_the_bad_one_of_a_long_list_is_named(self) -> None:
        error = refused({"key": [*(f"edX+{n}" for n in range(3_000)), None]})
        assert error.value is None
        assert len(str(error)) < 200

    @pytest.mark.parametrize("content_filter", [None, [], ["org"], "org", 3, True])
    def test_a_filter_that_is_not_an_object_is_bad(self, content_filter: Any) -> None:
        assert isinstance(refused(content_filter), BadFilter)
        assert "not a JSON object" in str(refused(content_filter))
        with pytest.raises(BadFilter):
            allowed_restricted_runs(content_filter)
        with pytest.raises(BadFilter):
            forced_courses(content_filter)


class TestValues:
    def test_an_empty_list_is_an_or_of_nothing(self) -> None:
        assert not matches({"org": []}, {"org": "edX"})
        assert not matches({"org": []}, {})
        assert matches({"org__exclude": []}, {"org": "edX"})

    def test_the_last_value_of_a_comparison_wins(self) -> None:
        assert matches({f"{PRICE}__lte": ["1", "200"]}, {PRICE: 149})
        assert not matches({f"{PRICE}__lte": ["200", "1"]}, {PRICE: 149})

    def test_prices_compare_as_numbers_whether_written_as_text_or_not(self) -> None:
        assert matches({PRICE: "149"}, {PRICE: 149.0})
        assert matches({PRICE: 149}, {PRICE: "149.00"})
        assert matches({f"{PRICE}__gt": "99"}, {PRICE: "149.00"})

    def test_dates_compare_as_instants(self) -> None:
        assert matches({"start__gte": "2026-02-01"}, {"start": "2026-02-01T00:00:00Z"})
        assert matches({"start__lt": "2026-02-01T01:00:00+02:00"}, {"start": "2026-01-31T22:59:59Z"})
        assert not matches({"start__gt": "2026-02-01T01:00:00+02:00"}, {"start": "2026-01-31T23:00:00Z"})

    def test_any_value_of_a_multi_valued_field_is_enough_for_a_comparison(self) -> None:
        assert matches({"start__gt": "2026-06-01"}, {"start": ["2026-01-01", None, "soon", "2027-01-01"]})

    def test_an_organization_may_be_an_object_as_in_full_documents(self) -> None:
        document = {"authoring_organizations": [{"key": "MITx", "name": "MIT", "uuid": "…"}]}
        assert matches({"authoring_organizations": "mitx: mit"}, document)
        assert not matches({"authoring_organizations__exclude": "MITx: MIT"}, document)

    def test_a_document_without_the_field_is_kept_by_an_exclusion(self) -> None:
        assert matches({"course_type__exclude": "bootcamp-2u"}, {})

    @pytest.mark.parametrize(
        "content_filter, document",
        [
            ({"start__gte": "2026-01-01"}, {"start": "soon"}),
            ({"start__lte": "2026-01-01"}, {"start": None}),
            ({"start__lte": "2026-01-01"}, {"start": 0}),
            ({f"{PRICE}__lte": 200}, {PRICE: "free"}),
            ({f"{PRICE}__lte": 200}, {PRICE: False}),
            ({f"{PRICE}__gte": 0}, {PRICE: 10**400}),
            ({PRICE: 0}, {PRICE: {"amount": 0}}),
            ({"published": "false"}, {"published": None}),
            ({"published": "false"}, {"published": 0}),
            ({"org": "None"}, {"org": None}),
            ({"org": "edX"}, {"org": [["edX"], {"key": "edX"}, None]}),
            ({"product_source": "edx"}, {"product_source": {"name": "edx"}}),
            ({"product_source": "edx"}, {"product_source": {"slug": ["edx"]}}),
            ({"authoring_organizations": "mitx: mit"}, {"authoring_organizations": [{"key": "MITx"}, "MITx"]}),
        ],
    )
    def test_a_bad_value_in_a_document_does_not_match(
        self, content_filter: dict[str, Any], document: dict[str, Any]
    ) -> None:
        assert not matches(content_filter, document)


class TestAllowedRestrictedRuns:
    def test_they_are_one_flat_set(self) -> None:
        allowed = {"course:edX+A": ["course-v1:edX+A+1", "course-v1:edX+A+2"], "course:edX+B": ["course-v1:edX+B+1"]}
        runs = allowed_restricted_runs({"restricted_runs_allowed": allowed})
        assert runs == {"course-v1:edX+A+1", "course-v1:edX+A+2", "course-v1:edX+B+1"}

    @pytest.mark.parametrize(
        "content_filter", [{}, {"restricted_runs_allowed": None}, {"restricted_runs_allowed": {"course:edX+A": []}}]
    )
    def test_none_are_allowed_where_none_are_named(self, content_filter: dict[str, Any]) -> None:
        assert allowed_restricted_runs(content_filter) == frozenset()

    @pytest.mark.parametrize(
        "allowed, named",
        [
            (["course-v1:edX+A+1"], "course-v1:edX+A+1"),
            ("course:edX+A", "course:edX+A"),
            ({"edX+A": []}, "edX+A"),
            ({"course:": []}, "course:"),
            ({"course:edX+A": "course-v1:edX+A+1"}, "course-v1:edX+A+1"),
            ({"course:edX+B": [], "course:edX+A": [None]}, "course:edX+A"),
        ],
    )
    def test_a_malformed_part_is_named(self, allowed: object, named: str) -> None:
        with pytest.raises(BadFilter, match="restricted_runs_allowed") as caught:
            allowed_restricted_runs({"restricted_runs_allowed": allowed})
        assert named in str(caught.value)


class TestForcedCourses:
    def test_they_keep_their_order_once_each(self) -> None:
        forced = ["course:edX+B", "course:edX+A", "course:edX+B"]
        assert forced_courses({"enterprise_force_include_aggregation_keys": forced}) == ("edX+B", "edX+A")

    @pytest.mark.parametrize("content_filter", [{}, {"enterprise_force_include_aggregation_keys": None}])
    def test_none_are_forced_where_none_are_named(self, content_filter: dict[str, Any]) -> None:
        assert forced_courses(content_filter) == ()

    @pytest.mark.parametrize(
        "forced", ["course:edX+A", {"course:edX+A": 1}, ["program:edX+A"], ["edX+A"], ["course:"], ["course:edX+A", 7]]
    )
    def test_anything_but_courses_is_refused(self, forced: object) -> None:
        with pytest.raises(BadFilter, match="enterprise_force_include_aggregation_keys"):
            forced_courses({"enterprise_force_include_aggregation_keys": forced})


words = st.sampled_from(["edX", "EDX", "edx", "MITx", "course:edX+A", "edx: edX", "true", "false", "149", "2u", ""])
dates = st.sampled_from(["2026-01-01", "2026-06-01T12:00:00Z", "2026-06-01T12:00:00.5+02:00", "0001-01-01T00:00+14:00"])
prices = st.sampled_from([0, 49, "49", "49.00", 149, 149.5, "1e3"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words | dates | prices,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | words, inner, max_size=3),
    max_leaves=6,
)
any_key = st.sampled_from(
    [*KNOWN, "q", "short_description", f"{PRICE}__in", f"{PRICE}__range", "subjects", "org__in"]
) | st.text(max_size=12)


def value_for(key: str) -> st.SearchStrategy[Any]:
    field = key.partition("__")[0]
    if field in BOOLEAN:
        scalars: st.SearchStrategy[Any] = st.sampled_from([True, False, "true", "False"])
    else:
        scalars = prices if field == PRICE else dates if field in DATES else words
    return scalars | st.lists(scalars, min_size=1, max_size=3)


def good_filters(keys: tuple[str, ...] = KNOWN) -> st.SearchStrategy[dict[str, Any]]:
    chosen = st.lists(st.sampled_from(keys), unique=True, max_size=4)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: value_for(name) for name in names}))


documents = st.fixed_dictionaries({}, optional={field: value_for(field) | st.none() for field in FIELDS})
wild_documents = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), json_values)


class TestLaws:
    @given(good_filters(), documents)
    def test_a_filter_is_the_and_of_its_keys(self, content_filter: dict[str, Any], document: dict[str, Any]) -> None:
        one_by_one = all(matches({key: value}, document) for key, value in content_filter.items())
        assert matches(content_filter, document) is one_by_one

    @given(good_filters(), documents, st.randoms(use_true_random=False))
    def test_the_order_of_keys_is_irrelevant(
        self, content_filter: dict[str, Any], document: dict[str, Any], random: Any
    ) -> None:
        items = list(content_filter.items())
        random.shuffle(items)
        assert matches(dict(items), document) is matches(content_filter, document)

    @given(good_filters((*FOLDED, *EXACT, *BOOLEAN, PRICE)), documents)
    def test_a_list_is_the_or_of_its_values(self, content_filter: dict[str, Any], document: dict[str, Any]) -> None:
        for key, value in content_filter.items():
            values = value if isinstance(value, list) else [value]
            assert matches({key: values}, document) is any(matches({key: one}, document) for one in values)

    @given(st.sampled_from(EXCLUDABLE).flatmap(lambda key: st.tuples(st.just(key), value_for(key))), wild_documents)
    def test_exclude_is_the_negation(self, wanted: tuple[str, Any], document: dict[str, Any]) -> None:
        key, value = wanted
        assert matches({f"{key}__exclude": value}, document) is not matches({key: value}, document)

    @given(st.sampled_from((PRICE, *DATES)).flatmap(lambda key: st.tuples(st.just(key), value_for(key))), documents)
    def test_the_four_comparisons_agree_about_a_single_value(
        self, wanted: tuple[str, Any], document: dict[str, Any]
    ) -> None:
        key, value = wanted
        document = {key: have} if not isinstance(have := document.get(key), list) else {key: have[0]}
        gt, gte, lt, lte = (matches({f"{key}__{ordering}": value}, document) for ordering in ORDERINGS)
        if document[key] is None:
            assert (gt, gte, lt, lte) == (False, False, False, False)
        else:
            assert (gt, lt) == (not lte, not gte)

    @given(good_filters(), documents)
    def test_a_document_cut_down_to_the_fields_answers_the_same(
        self, content_filter: dict[str, Any], document: dict[str, Any]
    ) -> None:
        whole = {**document, "title": "Logic", "key.raw": "edX", "enrollment_mode": "149", "active": True}
        cut = {field: whole[field] for field in FIELDS if field in whole}
        assert matches(content_filter, cut) is matches(content_filter, whole)

    @given(st.sampled_from(["org", "partner", "type", "key"]), words, words)
    def test_folded_keys_do_not_see_case(self, key: str, wanted: str, have: str) -> None:
        assert matches({key: wanted}, {key: have}) is (wanted.lower() == have.lower())
        assert matches({key: wanted.upper()}, {key: have}) is matches({key: wanted.lower()}, {key: have})

    @given(st.dictionaries(any_key, json_values, max_size=3), wild_documents)
    def test_nothing_but_our_errors_ever_leaves(self, content_filter: dict[str, Any], document: dict[str, Any]) -> None:
        with contextlib.suppress(FilterError):
            assert isinstance(matches(content_filter, document), bool)

    @given(json_values)
    def test_pseudo_keys_of_any_shape_are_read_or_refused_by_us(self, value: Any) -> None:
        with contextlib.suppress(BadFilter):
            assert all(isinstance(run, str) for run in allowed_restricted_runs({"restricted_runs_allowed": value}))
        with contextlib.suppress(BadFilter):
            forced = forced_courses({"enterprise_force_include_aggregation_keys": value})
            assert all(isinstance(course, str) for course in forced)

    @given(good_filters(), st.text(max_size=10))
    def test_an_unknown_key_changes_no_answer(self, content_filter: dict[str, Any], suffix: str) -> None:
        unknown = f"subjects{suffix}"
        with_unknown = compile_filter({**content_filter, unknown: suffix})
        assert with_unknown.ignored == (unknown,)
        assert len(with_unknown.predicates) == len(compile_filter(content_filter).predicates)
