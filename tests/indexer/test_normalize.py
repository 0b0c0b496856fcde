"""The rules of what discovery does not say, each with documents that are made up to show it."""

from typing import Any

import pytest

from indexer.normalize import advertised_run, normalized, parent_key, run_metadata, sku
from sidecar.contract.words import ContentType
from tests.fakes import Json

COURSE, RUN, PROGRAM, PATHWAY = ContentType
OPEN = {"status": "published", "is_enrollable": True, "is_marketable": True}
EXECUTIVE = {"course_type": "executive-education-2u"}
NO_OBJECTS: list[Any] = [None, True, 7, 1.5, "text", [], {}, [None, 7, "text", [[]]]]


def shown(content: Json, review: object = None, kind: ContentType = COURSE) -> Json:
    return normalized(kind, content, review)


def of_run(course: Json, **run: Any) -> Json:
    return run_metadata(course, run)


def seat(kind: Any, deadline: Any = None, override: Any = None) -> Json:
    return {"type": kind, "upgrade_deadline": deadline, "upgrade_deadline_override": override}


class TestACourseIsActive:
    @pytest.mark.parametrize(
        "run",
        [
            OPEN,
            OPEN | {"status": "Published"},
            {"is_enrollable": True, "is_marketable_external": True},
            OPEN | {"status": "archived", "is_marketable": False, "is_marketable_external": True},
        ],
    )
    def test_with_a_run_that_one_can_enrol_in_and_that_is_marketed(self, run: Json) -> None:
        assert shown({"course_runs": [{}, run]})["active"] is True

    @pytest.mark.parametrize(
        "run",
        [
            {},
            OPEN | {"is_enrollable": False},
            OPEN | {"is_marketable": False},
            OPEN | {"status": "reviewed"},
            OPEN | {"status": None},
            {"is_marketable_external": True},
        ],
    )
    def test_with_no_other(self, run: Json) -> None:
        assert shown({"course_runs": [run]})["active"] is False

    @pytest.mark.parametrize("runs", NO_OBJECTS)
    def test_not_without_runs_whatever_stands_in_their_place(self, runs: Any) -> None:
        made = shown({"course_runs": runs, "advertised_course_run_uuid": "u"})
        assert (made["active"], made["normalized_metadata_by_run"]) == (False, {})
        assert made["course_runs"] == runs

    def test_whatever_upstream_says(self) -> None:
        assert shown({"active": True})["active"] is False

    @pytest.mark.parametrize("kind", [RUN, PROGRAM, PATHWAY])
    def test_and_nothing_else_is(self, kind: ContentType) -> None:
        assert "active" not in shown({"course_runs": [OPEN]}, kind=kind)


class TestThePriceOfARun:
    @pytest.mark.parametrize(
        "price, shown_as", [("49.00", 49.0), (49, 49.0), (49.5, 49.5), ("0.00", 0.0), (0, 0.0), ("1e2", 100.0)]
    )
    def test_is_the_fixed_one_first(self, price: Any, shown_as: float) -> None:
        found = of_run({}, fixed_price_usd=price, first_enrollable_paid_seat_price=9)["content_price"]
        assert (found, type(found)) == (shown_as, float)

    @pytest.mark.parametrize("price", [None, "", "free", "nan", "inf", 1e400, True, [], {}, "1" * 400])
    def test_falls_through_to_the_seat_and_to_nothing(self, price: Any) -> None:
        seat_ = {"first_enrollable_paid_seat_price": 149}
        assert of_run({}, fixed_price_usd=price, **seat_)["content_price"] == 149.0
        assert of_run({}, **seat_)["content_price"] == 149.0
        assert of_run({}, fixed_price_usd=price, first_enrollable_paid_seat_price=price)["content_price"] == 0.0
        assert of_run({})["content_price"] == 0.0

    def test_is_that_of_the_entitlement_for_executive_education_alone(self) -> None:
        entitlements = [
            {"mode": "verified", "price": "1.00"},
            {"mode": "paid-executive-education", "price": None},
            {"mode": "paid-executive-education", "price": "2900.00"},
        ]
        course, seat_ = {**EXECUTIVE, "entitlements": entitlements}, {"first_enrollable_paid_seat_price": 5}
        assert of_run(course, **seat_)["content_price"] == 2900.0
        assert of_run(course, **seat_, fixed_price_usd="10.00")["content_price"] == 10.0
        assert of_run({"entitlements": entitlements}, **seat_)["content_price"] == 5.0
        assert of_run({**course, "entitlements": entitlements[:2]}, **seat_)["content_price"] == 5.0
        assert of_run({**course, "entitlements": None})["content_price"] == 0.0


class TestEnrollBy:
    @pytest.mark.parametrize(
        "kinds, best",
        [
            (["audit", "unpaid-executive-education", "no-id-professional", "professional", "verified"], "verified"),
            (["audit", "unpaid-executive-education", "no-id-professional", "professional"], "professional"),
            (["audit", "unpaid-executive-education", "no-id-professional"], "no-id-professional"),
            (["audit", "unpaid-executive-education"], "unpaid-executive-education"),
            (["credit", "masters", "audit"], "audit"),
            (["credit", "masters"], "credit"),
            ([None, ["verified"], {}, "audit"], "audit"),
        ],
    )
    def test_is_the_deadline_of_the_best_seat(self, kinds: list[Any], best: str) -> None:
        assert of_run({}, seats=[seat(kind, f"until {kind}") for kind in kinds])["enroll_by_date"] == f"until {best}"

    def test_is_the_best_seats_even_if_that_has_none(self) -> None:
        assert of_run({}, seats=[seat("audit", "2026-01-01"), seat("verified")])["enroll_by_date"] is None

    def test_is_the_override_before_the_deadline(self) -> None:
        assert of_run({}, seats=[seat("verified", "2026-01-01", "2027-01-01")])["enroll_by_date"] == "2027-01-01"
        assert of_run({}, seats=[seat("verified", "2026-01-01", "")])["enroll_by_date"] == "2026-01-01"

    @pytest.mark.parametrize(
        "deadline, end, first",
        [
            ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("2026-01-03T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("2026-01-01T00:00:00Z", None, "2026-01-01T00:00:00Z"),
            (None, "2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("2026-01-01T02:00:00+03:00", "2026-01-01T00:00:00Z", "2026-01-01T02:00:00+03:00"),
            ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("2026-01-02", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("soon", "later", "later"),
            (7, {}, None),
        ],
    )
    def test_is_the_earlier_of_deadline_and_end(self, deadline: Any, end: Any, first: Any) -> None:
        run = {"seats": [seat("verified", deadline)], "enrollment_end": end}
        assert of_run({}, **run)["enroll_by_date"] == first

    def test_is_the_end_of_enrollment_alone_for_executive_education(self) -> None:
        run = {"seats": [seat("verified", "2020-01-01")], "enrollment_end": "2026-01-01"}
        assert of_run(EXECUTIVE, **run)["enroll_by_date"] == "2026-01-01"
        assert of_run(EXECUTIVE, seats=run["seats"])["enroll_by_date"] is None

    @pytest.mark.parametrize("seats", NO_OBJECTS)
    def test_is_null_without_seats_whatever_stands_in_their_place(self, seats: Any) -> None:
        assert of_run({}, seats=seats)["enroll_by_date"] is None


class TestTheAdvertisedRun:
    RUNS = ({"uuid": "u1", "key": "a1", "start": "s1"}, {"uuid": "u2", "key": "a2", "start": "s2", "end": "e2"})

    def test_gives_its_course_dates_and_price(self) -> None:
        made = shown({"course_runs": [*self.RUNS], "advertised_course_run_uuid": "u2"})
        assert made["normalized_metadata"] == made["normalized_metadata_by_run"]["a2"]
        assert made["normalized_metadata"] == {
            "start_date": "s2",
            "end_date": "e2",
            "enroll_by_date": None,
            "enroll_start_date": None,
            "content_price": 0.0,
        }

    @pytest.mark.parametrize("uuid", [None, "", "u3", 7, [], {}])
    def test_may_not_be_there(self, uuid: Any) -> None:
        course = {"course_runs": [*self.RUNS, {"uuid": None}], "advertised_course_run_uuid": uuid}
        assert advertised_run(course) is None
        assert set(map(str, shown(course)["normalized_metadata"].values())) == {"None", "0.0"}
        assert set(shown(course)["normalized_metadata_by_run"]) == {"a1", "a2"}

    def test_a_run_without_a_key_has_no_place_of_its_own(self) -> None:
        runs: list[Any] = [{"uuid": "u1"}, {"key": None}, {"key": 7}]
        assert shown({"course_runs": runs})["normalized_metadata_by_run"] == {}


class TestOtherMembers:
    @pytest.mark.parametrize("kind", ContentType)
    def test_a_product_source_that_is_text_becomes_an_object(self, kind: ContentType) -> None:
        named = {"name": "2U", "slug": None, "description": None}
        assert shown({"product_source": "2U"}, kind=kind)["product_source"] == named
        for other in (None, {"slug": "edx"}, 7):
            assert shown({"product_source": other}, kind=kind)["product_source"] == other
        assert "product_source" not in shown({}, kind=kind)

    def test_the_programs_of_a_course_say_what_they_are(self) -> None:
        programs = [{"uuid": "u", "title": "t"}, {"title": "none"}, {"uuid": 7}, None, "p"]
        made = shown({"programs": programs})["programs"]
        assert made == [
            {"uuid": "u", "title": "t", "aggregation_key": "program:u", "content_type": "program"},
            *programs[1:],
        ]
        assert shown({"programs": None})["programs"] is None
        assert "programs" not in shown({})
        assert shown({"programs": programs}, kind=PATHWAY)["programs"] == programs

    @pytest.mark.parametrize(
        "courses, count", [([], 0), ([{}, {}], 2), ([None], 1), (None, 0), ({"a": 1}, 0), ("ab", 0)]
    )
    def test_a_program_counts_its_courses(self, courses: Any, count: int) -> None:
        assert shown({"courses": courses}, kind=PROGRAM)["number_of_courses"] == count
        assert shown({}, kind=PROGRAM)["number_of_courses"] == 0
        assert "number_of_courses" not in shown({"courses": courses})

    def test_a_review_shows_two_of_its_fields_if_there_is_one(self) -> None:
        review = {"course_key": "k", "reviews_count": 3, "avg_course_rating": "4.5"}
        assert {"reviews_count": 3, "avg_course_rating": "4.5"}.items() <= shown({}, review).items()
        nothing: list[Any] = [None, [], "review", {}]
        for none in nothing:
            assert not {"reviews_count", "avg_course_rating"} & shown({}, none).keys()
        assert "reviews_count" not in shown({}, review, kind=PROGRAM)

    @pytest.mark.parametrize(
        "aggregation_key, parent",
        [
            ("courserun:A+1", "A+1"),
            ("courserun:A:1", "A:1"),
            ("courserun:", None),
            ("A+1", None),
            (None, None),
            (7, None),
        ],
    )
    def test_the_parent_of_a_run_is_in_its_aggregation_key(self, aggregation_key: Any, parent: str | None) -> None:
        content = {"aggregation_key": aggregation_key, "parent_content_key": "upstream's"}
        assert parent_key(content) == parent
        assert shown(content, kind=RUN)["parent_content_key"] == parent
        for kind in (COURSE, PROGRAM, PATHWAY):
            assert shown(content, kind=kind)["parent_content_key"] is None

    def test_members_that_a_catalog_gives_are_not_upstreams(self) -> None:
        theirs = {"content_last_modified": "t", "enrollment_url": "u", "xapi_activity_id": "x"}
        for kind in (COURSE, RUN, PATHWAY):
            assert not theirs.keys() & shown(theirs, kind=kind).keys()
        assert shown(theirs, kind=PROGRAM)["enrollment_url"] is None

    @pytest.mark.parametrize(
        "entitlements, found",
        [
            ([{"mode": "paid-executive-education", "sku": "S"}], "S"),
            ([{"mode": "verified", "sku": "V"}], None),
            ([{"mode": "paid-executive-education", "sku": s} for s in ("S", "T")], "T"),
            ([{"mode": "paid-executive-education", "sku": None}], None),
            ([{"mode": "paid-executive-education", "sku": ""}], None),
            ([{"mode": "paid-executive-education", "sku": 7}], None),
            *((none, None) for none in NO_OBJECTS),
        ],
    )
    def test_the_sku_is_that_of_the_last_entitlement(self, entitlements: Any, found: str | None) -> None:
        assert sku({"entitlements": entitlements}) == found
