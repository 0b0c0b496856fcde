"""Discovery's documents: what is let in, what they say of themselves, and how a query sees them."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.documents import (
    COURSE_TYPES,
    MAX_KEY_LENGTH,
    BadDocument,
    Run,
    as_forced,
    content_key,
    content_type,
    is_active,
    is_let_in,
    item,
    with_runs,
    without_restricted,
)
from sidecar.contract.words import ContentType
from tests.fakes import Json, course, run, uuid_of


class TestLetIn:
    @pytest.mark.parametrize("source", [None, "edx", "2u", "EdX", {"slug": "edx"}, {"slug": "2U", "name": "x"}, {}])
    def test_of_these_product_sources(self, source: object) -> None:
        assert is_let_in({"content_type": "program", "product_source": source})

    @pytest.mark.parametrize("source", ["other", "", {"slug": "lumenlearn"}, {"slug": ""}, "edx ", 5])
    def test_not_of_others(self, source: object) -> None:
        assert not is_let_in({"content_type": "program", "product_source": source})

    @pytest.mark.parametrize("kind", [None, *sorted(COURSE_TYPES)])
    def test_courses_of_these_types(self, kind: str | None) -> None:
        assert is_let_in({"content_type": "course", "course_type": kind})

    @pytest.mark.parametrize("kind", ["bootcamp-2u", "", "Verified", "empty"])
    def test_courses_of_other_types_are_not(self, kind: str) -> None:
        assert not is_let_in({"content_type": "course", "course_type": kind})
        assert is_let_in({"content_type": "courserun", "course_type": kind})


class TestNames:
    def test_the_key_is_the_key_or_else_the_uuid(self) -> None:
        assert content_key({"key": "A+1", "uuid": "u"}) == "A+1"
        assert content_key({"key": "", "uuid": "u"}) == content_key({"uuid": "u"}) == "u"

    @pytest.mark.parametrize("key", [None, "", 5, ["A+1"], {"a": 1}, "a\0", "x" * (MAX_KEY_LENGTH + 1)])
    def test_a_document_without_a_fitting_key_is_refused_by_its_other_name(self, key: object) -> None:
        with pytest.raises(BadDocument, match="document 'course:A': its key is"):
            content_key({"key": key, "aggregation_key": "course:A"})

    @pytest.mark.parametrize(
        "aggregation_key, kind, parent",
        [
            ("course:A+1", ContentType.COURSE, None),
            ("courserun:A+1", ContentType.COURSE_RUN, "A+1"),
            ("program:u", ContentType.PROGRAM, None),
            ("learnerpathway:u", ContentType.PATHWAY, None),
            ("courserun:A:1", ContentType.COURSE_RUN, "A:1"),
        ],
    )
    def test_type_and_parent_come_from_the_aggregation_key(
        self, aggregation_key: str, kind: ContentType, parent: str | None
    ) -> None:
        assert content_type({"key": "k", "aggregation_key": aggregation_key}) == (kind, parent)

    @pytest.mark.parametrize(
        "aggregation_key",
        [None, 5, "", "course", "course:", ":A", "person:p", "Course:A", "courserun:" + "x" * 256, "course:\0"],
    )
    def test_another_aggregation_key_is_refused(self, aggregation_key: object) -> None:
        with pytest.raises(BadDocument, match="document 'k': its aggregation_key is"):
            content_type({"key": "k", "aggregation_key": aggregation_key})


class TestItems:
    def test_a_course_brings_its_runs_and_both_documents_merged(self) -> None:
        made = course("A+1", run("a1"), run("x1", active=False, restricted=True))
        found = item({**made["search"], "only": "search", "title": "old"}, {**made["full"], "title": "new"})
        assert (found.key, found.type, found.parent, found.uuid) == ("A+1", ContentType.COURSE, None, uuid_of("A+1"))
        assert found.runs == (Run("a1", uuid_of("a1"), False, True), Run("x1", uuid_of("x1"), True, False))
        text = orjson.loads(found.text)
        assert (text["content"]["only"], text["content"]["title"], text["review"]) == ("search", "new", None)

    def test_a_run_brings_its_course(self) -> None:
        made = course("A+1", run("a1", restricted=True), indexed=("a1",))
        found = item(made["runs"][0])
        assert (found.key, found.parent, found.restricted, found.runs) == ("a1", "A+1", True, ())

    def test_only_courses_have_runs(self) -> None:
        assert item({"key": "k", "aggregation_key": "program:k", "course_runs": [{"key": "r"}]}).runs == ()

    @pytest.mark.parametrize("uuid", [None, 5, "no", "", [uuid_of("a")]])
    def test_what_is_no_uuid_is_none(self, uuid: object) -> None:
        assert item({"key": "k", "aggregation_key": "course:k", "uuid": uuid}).uuid is None

    def test_a_uuid_is_written_in_one_way(self) -> None:
        upper = uuid_of("a").replace("-", "").upper()
        assert item({"key": "k", "aggregation_key": "course:k", "uuid": upper}).uuid == uuid_of("a")

    @pytest.mark.parametrize(
        "entry", [None, "a1", 5, {}, {"key": None}, {"key": ""}, {"key": "x" * 256}, {"key": "\0"}, ["a1"]]
    )
    def test_a_nested_run_without_a_key_is_refused_by_its_course(self, entry: object) -> None:
        with pytest.raises(BadDocument, match="course 'A': a run in course_runs has the key"):
            item({"key": "A", "aggregation_key": "course:A", "course_runs": [entry]})

    def test_what_is_no_json_is_refused(self) -> None:
        with pytest.raises(BadDocument, match="cannot be written as JSON"):
            item({"key": "A", "aggregation_key": "course:A", "x": {1, 2}})

    @given(st.permutations(["key", "aggregation_key", "title", "org", "uuid"]))
    def test_the_order_of_keys_does_not_matter(self, order: list[str]) -> None:
        document = {**course("A+1")["search"]}
        moved = {name: document[name] for name in order} | document
        assert item(moved) == item(document)


class TestRestrictedRuns:
    document = course("A+1", run("a1"), run("x1", active=False, restricted=True), run("x2", restricted=True))[
        "full"
    ] | {"course_run_statuses": ["archived", "published"]}

    def keys(self, document: Any) -> list[str]:
        return [r["key"] for r in document["course_runs"]]

    def test_are_taken_out_with_every_trace(self) -> None:
        seen = without_restricted(self.document)
        assert self.keys(seen) == seen["course_run_keys"] == ["a1"]
        assert seen["course_run_statuses"] == ["published"]
        assert self.keys(self.document) == ["a1", "x1", "x2"], "the original is left alone"

    def test_are_left_in_if_allowed(self) -> None:
        seen = with_runs(self.document, frozenset({"x1"}))
        assert self.keys(seen) == seen["course_run_keys"] == ["a1", "x1"]
        assert seen["course_run_statuses"] == ["archived", "published"]
        assert with_runs(self.document, frozenset({"x1", "x2"})) is self.document

    @pytest.mark.parametrize(
        "document", [{}, {"course_runs": None}, {"course_runs": []}, course("A+1", run("a1"))["full"]]
    )
    def test_where_there_are_none_the_document_stays_what_it_is(self, document: Json) -> None:
        assert without_restricted(document) is document


def test_a_forced_course_is_shown_as_open() -> None:
    document = course("A+1", run("a1", active=False), run("a2"))["full"]
    shown = as_forced(document)
    assert {(r["status"], r["availability"]) for r in shown["course_runs"]} == {("published", "Current")}
    assert (shown["course_run_statuses"], shown["enterprise_force_included"]) == (["published"], True)
    assert document["course_runs"][0]["status"] == "archived"
    assert as_forced({"course_runs": None})["course_run_statuses"] == []


@pytest.mark.parametrize(
    "fields, active",
    [
        ({}, True),
        ({"status": "Published"}, True),
        ({"status": "archived"}, False),
        ({"status": None}, False),
        ({"is_enrollable": False}, False),
        ({"is_enrollable": None}, False),
        ({"is_marketable": False}, False),
        ({"is_marketable": False, "is_marketable_external": True}, True),
        ({"status": "unpublished", "is_marketable_external": True}, True),
        ({"is_enrollable": False, "is_marketable_external": True}, False),
    ],
)
def test_a_run_is_active_if_it_can_be_enrolled_in_and_is_marketed(fields: Json, active: bool) -> None:
    assert is_active(run("a1") | fields) is active
