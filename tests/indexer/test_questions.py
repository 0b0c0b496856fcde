"""The questions about a sampled catalog, and what is known of each."""

from indexer.judge import Kind
from indexer.questions import NOBODY, UNKNOWN, Case, Holding, Key, questions, sent
from sidecar.contract.words import ContentType
from tests.fakes import uuid_of

COURSE, RUN, PROGRAM = Key("A+1", ContentType.COURSE), Key("r1", ContentType.COURSE_RUN, "A+1"), uuid_of("p")
KEYS = (COURSE, RUN, Key(PROGRAM, ContentType.PROGRAM))
OWN, OTHER = uuid_of("own"), uuid_of("other")
HELD = Holding(frozenset({"A+1"}), frozenset({"A+1", "r1"}))
CASE = Case(OWN, uuid_of("Acme"), "0" * 32, KEYS, {OWN: HELD, OTHER: Holding()}, {OWN: HELD, OTHER: Holding()})


class TestWhatIsKnown:
    def test_is_which_runs_are_contained_as_runs_of_a_member_alone(self) -> None:
        known = CASE.known("v1", [RUN], [OWN])
        assert (known.nested, known.otherwise) == ({"r1": "A+1"}, False)
        known = CASE.known("v1", KEYS, [OWN])
        assert (known.nested, known.otherwise) == ({"r1": "A+1"}, True)
        assert CASE.known("v1", KEYS, [OTHER]).nested == {}

    def test_is_otherwise_where_a_run_is_a_member_or_a_course_is_of_member_runs(self) -> None:
        for holding in (Holding(frozenset({"r1"}), frozenset({"r1"})), Holding(frozenset(), frozenset({"A+1"}))):
            case = Case(OWN, None, "0" * 32, KEYS, {OWN: holding})
            known = case.known("v1", KEYS)
            assert (known.nested, known.otherwise) == ({}, True)

    def test_is_of_the_version_that_is_asked(self) -> None:
        case = Case(OWN, None, "0" * 32, KEYS, {OWN: Holding()}, {OWN: HELD})
        assert (case.known("v1", [RUN]).nested, case.known("v2", [RUN]).nested) == ({}, {"r1": "A+1"})

    def test_is_whether_a_catalog_that_is_asked_waits_for_a_pull(self) -> None:
        case = Case(
            *(OWN, uuid_of("Acme"), "0" * 32, KEYS, CASE.v1, CASE.v2),
            never_pulled=frozenset({OTHER}),
            changed=frozenset({OWN}),
        )
        assert [(k.never_pulled, k.changed) for k in (case.known("v1", []), case.known("v1", [], [OWN]))] == [
            (True, True),
            (False, True),
        ]


class TestQuestions:
    def test_are_of_every_kind(self) -> None:
        assert {question.kind for question in questions([CASE])} == set(Kind)

    def test_ask_programs_by_uuid_and_escape_a_plus(self) -> None:
        paths = [question.path for question in questions([CASE])]
        contains = f"/api/v1/enterprise-catalogs/{OWN}/contains_content_items/"
        for asked in ("course_run_ids=A%2B1", "course_run_ids=r1", f"program_uuids={PROGRAM}", "course_run_ids=a%2B1"):
            assert f"{contains}?{asked}" in paths
        joined = [q for q in questions([CASE]) if q.known.commas]
        assert {q.path.rpartition("=")[2] for q in joined} == {"no%2Bsuch%2CA%2B1"}

    def test_of_documents_by_key_name_all_keys(self) -> None:
        asked = [q.path for q in questions([CASE]) if q.kind is Kind.PAGE and "content_keys" in q.path]
        assert asked[0].endswith(f"?page_size=100&content_keys=A%2B1&content_keys=r1&content_keys={PROGRAM}")

    def test_that_post_are_sent_as_json(self) -> None:
        (question, _) = (q for q in questions([CASE]) if q.kind is Kind.DIFF)
        assert sent(question) == f'{{"content_keys": ["A+1", "r1", "{PROGRAM}", "{UNKNOWN}"]}}'.encode()
        assert str(question) == f"POST /api/v1/enterprise-catalogs/{OWN}/generate_diff/"

    def test_of_a_customer_with_too_many_catalogs_are_of_the_catalog_alone(self) -> None:
        case = Case(OWN, None, "0" * 32, KEYS, CASE.v1, CASE.v2)
        of_customers = {q.kind for q in questions([case]) if "/enterprise-customer/" in q.path}
        assert of_customers == {Kind.ERROR}

    def test_of_no_catalog_are_about_what_does_not_exist(self) -> None:
        kinds = {question.kind for question in questions([])}
        assert kinds == {Kind.CATALOGS, Kind.ERROR}
        assert any(NOBODY in question.path for question in questions([]))

    def test_of_a_catalog_without_content_are_fewer(self) -> None:
        empty = Case(OWN, uuid_of("Acme"), "0" * 32, (), {OWN: Holding()}, {OWN: Holding()})
        assert {question.kind for question in questions([empty])} == set(Kind)
