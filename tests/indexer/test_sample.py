"""The sample: deterministic, in discovery's shapes, with every kind of content; its catalogs and questions hold."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from indexer.documents import is_let_in
from indexer.filters import allowed_restricted_runs, compile_filter
from indexer.sample import SMALLEST_SAMPLE, Corpus, Json, sample_catalogs, sample_corpus, sample_questions

SHAPES = json.loads((Path(__file__).parent.parent / "contract" / "corpus_shapes.json").read_text(encoding="utf-8"))
SOMETIMES = {"additional_metadata"}
JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}

REFERENCE = datetime.date(2026, 7, 1)
CORPUS = sample_corpus(REFERENCE)
CATALOGS = sample_catalogs(CORPUS)
COURSES = {course["search"]["key"]: course for course in CORPUS["courses"]}
RUNS = {run["key"]: run for course in CORPUS["courses"] for run in course["full"]["course_runs"]}


def documents(corpus: Corpus) -> list[Json]:
    entries = [*corpus["courses"], *corpus["programs"], *corpus["pathways"]]
    found = [entry["search"] for entry in entries] + [run for entry in corpus["courses"] for run in entry["runs"]]
    return [document for document in found if is_let_in(document)]


def members(corpus: Corpus, catalog: Json) -> list[str]:
    matches = compile_filter(catalog["content_filter"]).matches
    return [document.get("key") or document["uuid"] for document in documents(corpus) if matches(document)]


def objects(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object in the corpus with the path of its shape: `courses[].full.course_runs[]`."""
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from objects(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects(f"{path}[]", inner)


def courses_where(**wanted: object) -> list[Json]:
    return [c for c in CORPUS["courses"] if all(c["search"][name] == value for name, value in wanted.items())]


class TestShapes:
    found = tuple(objects("", CORPUS))

    def test_there_is_an_object_of_every_shape_and_of_no_other(self) -> None:
        assert {path or "corpus" for path, _ in self.found} == set(SHAPES)

    def test_every_object_has_the_fields_of_its_shape(self) -> None:
        for path, value in self.found:
            assert set(value) | SOMETIMES == set(SHAPES[path or "corpus"]) | SOMETIMES, path

    def test_every_value_is_of_a_type_that_discovery_returns_there(self) -> None:
        for path, value in self.found:
            for name, inner in value.items():
                kind = "null" if inner is None else JSON_TYPES[type(inner)]
                assert kind in SHAPES[path or "corpus"][name], f"{path}.{name}"

    def test_documents_stay_small(self) -> None:
        sizes = sorted(len(json.dumps(course["full"], ensure_ascii=False)) for course in CORPUS["courses"])
        assert sizes[len(sizes) // 2] < 8_000
        assert sizes[-1] < 14_000
        assert max(len(json.dumps(c["search"], ensure_ascii=False)) for c in CORPUS["courses"]) < 4_096


class TestDeterminism:
    def test_the_same_arguments_give_the_same_bytes(self) -> None:
        assert json.dumps(sample_corpus(REFERENCE)) == json.dumps(CORPUS)
        assert json.dumps(sample_catalogs(sample_corpus(REFERENCE))) == json.dumps(CATALOGS)

    def test_another_seed_is_another_corpus_of_the_same_size(self) -> None:
        other = sample_corpus(REFERENCE, seed="other")
        assert {part: len(entries) for part, entries in other.items()} == {p: len(e) for p, e in CORPUS.items()}
        assert {c["search"]["uuid"] for c in other["courses"]}.isdisjoint(c["search"]["uuid"] for c in COURSES.values())

    def test_a_later_reference_date_moves_runs_and_leaves_courses_alone(self) -> None:
        later = sample_corpus(REFERENCE + datetime.timedelta(days=365))
        assert [course["search"]["key"] for course in later["courses"]] == list(COURSES)
        assert [run["availability"] for c in later["courses"] for run in c["runs"]] == [
            run["availability"] for c in CORPUS["courses"] for run in c["runs"]
        ]

    def test_too_small_a_sample_is_refused(self) -> None:
        with pytest.raises(ValueError, match=str(SMALLEST_SAMPLE)):
            sample_corpus(REFERENCE, SMALLEST_SAMPLE - 1)


class TestContent:
    def test_size_and_keys(self) -> None:
        keys = [document.get("key") or document["uuid"] for document in documents(CORPUS)]
        assert len(COURSES) == len(CORPUS["courses"]) == 300
        assert len(keys) == len(set(keys))
        assert not any(character in key for key in keys for character in ", ")
        assert len({course["search"]["org"] for course in CORPUS["courses"]}) >= 6

    def test_runs(self) -> None:
        counts = {len(course["runs"]) for course in CORPUS["courses"]}
        assert counts == {0, 1, 2, 3, 4}
        assert {run["availability"] for run in RUNS.values()} == {"Archived", "Current", "Starting Soon", "Upcoming"}
        for course in CORPUS["courses"]:
            nested = [run["key"] for run in course["full"]["course_runs"]]
            assert nested == course["full"]["course_run_keys"] == [run["key"] for run in course["runs"]]
            assert nested == [run["key"] for run in course["search"]["course_runs"]]
            for run in course["runs"]:
                assert run["aggregation_key"] == f"courserun:{course['search']['key']}"
                assert run["key"].startswith(f"course-v1:{course['search']['key']}+")

    def test_availability_follows_from_the_reference_date(self) -> None:
        today = REFERENCE.isoformat()
        for run in RUNS.values():
            ended, begun = run["end"][:10] < today, run["start"][:10] <= today
            expected = {"Archived"} if ended else {"Current"} if begun else {"Starting Soon", "Upcoming"}
            assert run["availability"] in expected

    def test_inactive_courses(self) -> None:
        inactive = courses_where(status="archived")
        assert 5 <= len(inactive) <= 60
        for course in inactive:
            assert course["search"]["advertised_course_run_uuid"] is None
            assert not any(run["is_enrollable"] for run in course["full"]["course_runs"])

    def test_the_advertised_run_of_an_active_course_is_public_and_marketable(self) -> None:
        by_uuid = {run["uuid"]: run for run in RUNS.values()}
        advertised = [by_uuid[uuid] for c in COURSES.values() if (uuid := c["full"]["advertised_course_run_uuid"])]
        assert len(advertised) > 200
        assert all(run["is_marketable"] and run["status"] == "published" for run in advertised)
        assert all(run["restriction_type"] is None for run in advertised)

    def test_restricted_runs(self) -> None:
        kinds = [{run["restriction_type"] for run in course["runs"]} for course in CORPUS["courses"]]
        assert kinds.count({None, "custom-b2b-enterprise"}) == 2
        assert kinds.count({"custom-b2b-enterprise"}) == 1
        assert all(None in kind for kind in kinds if kind and kind != {"custom-b2b-enterprise"})

    def test_executive_education(self) -> None:
        executive = courses_where(course_type="executive-education-2u")
        assert len(executive) == 2
        for course in executive:
            assert course["search"]["product_source"]["slug"] == "2u"
            assert course["full"]["entitlements"][0]["mode"] == "paid-executive-education"
            assert course["full"]["additional_metadata"]["registration_deadline"] > REFERENCE.isoformat()
        assert sum("additional_metadata" in course["full"] for course in CORPUS["courses"]) == 2

    def test_a_bootcamp_and_a_foreign_source_are_left_out_on_ingest(self) -> None:
        left_out = [course["search"] for course in CORPUS["courses"] if not is_let_in(course["search"])]
        assert [(c["course_type"], c["product_source"]["slug"]) for c in left_out] == [
            ("bootcamp-2u", "2u"),
            ("verified-audit", "lumenlearn"),
        ]

    def test_a_key_outside_ascii_and_a_course_without_runs(self) -> None:
        assert any(not key.isascii() and course["runs"] for key, course in COURSES.items())
        assert sum(not course["runs"] for course in COURSES.values()) == 1

    def test_programs_and_their_courses_know_each_other(self) -> None:
        assert len(CORPUS["programs"]) >= 8
        for program in CORPUS["programs"]:
            keys = [course["key"] for course in program["full"]["courses"]]
            assert 2 <= len(keys) <= 5
            for key in keys:
                belongs = COURSES[key]["full"]["programs"]
                assert program["full"]["uuid"] in [entry["uuid"] for entry in belongs]
                assert program["full"]["type"] in COURSES[key]["search"]["program_types"]
        told = sum(len(course["full"]["programs"]) for course in CORPUS["courses"])
        assert told == sum(len(program["full"]["courses"]) for program in CORPUS["programs"])

    def test_pathways_lead_through_courses_and_programs_that_exist(self) -> None:
        programs = {program["search"]["uuid"] for program in CORPUS["programs"]}
        assert len(CORPUS["pathways"]) >= 2
        for pathway in CORPUS["pathways"]:
            steps = pathway["search"]["steps"]
            assert all(step["courses"] for step in steps)
            assert any(step["programs"] for step in steps)
            assert all(part["uuid"] in programs for step in steps for part in step["programs"])
            for course in (course for step in steps for course in step["courses"]):
                assert [run["key"] for run in course["course_runs"]] == COURSES[course["key"]]["full"][
                    "course_run_keys"
                ]

    def test_reviews_are_of_courses(self) -> None:
        assert {review["course_key"] for review in CORPUS["reviews"]} < set(COURSES)

    def test_customers(self) -> None:
        customers = CORPUS["customers"]
        assert len({customer["slug"] for customer in customers}) == 5
        assert {customer["enable_learner_portal"] for customer in customers} == {True, False}
        assert any(not customer["name"].isascii() for customer in customers)
        assert all(customer["slug"].isascii() for customer in customers)


@pytest.mark.parametrize("courses", [SMALLEST_SAMPLE, 300])
class TestCatalogs:
    @pytest.fixture
    def corpus(self, courses: int) -> Corpus:
        return sample_corpus(REFERENCE, courses)

    @pytest.fixture
    def catalogs(self, corpus: Corpus) -> list[Json]:
        return sample_catalogs(corpus)

    def test_a_dozen_with_the_body_of_the_catalog_api(self, corpus: Corpus, catalogs: list[Json]) -> None:
        names = {customer["uuid"]: customer["name"] for customer in corpus["customers"]}
        assert len(catalogs) == len({catalog["uuid"] for catalog in catalogs}) == 12
        assert {catalog["enterprise_customer"] for catalog in catalogs} == set(names)
        for catalog in catalogs:
            assert set(catalog) == {
                "uuid", "title", "enterprise_customer", "enterprise_customer_name", "enabled_course_modes",
                "publish_audit_enrollment_urls", "content_filter", "catalog_query_uuid", "query_title",
            }  # fmt: skip
            assert str(UUID(catalog["uuid"])) == catalog["uuid"]
            assert str(UUID(catalog["catalog_query_uuid"])) == catalog["catalog_query_uuid"]
            assert catalog["enterprise_customer_name"] == names[catalog["enterprise_customer"]]

    def test_every_filter_can_be_evaluated_and_finds_something(self, corpus: Corpus, catalogs: list[Json]) -> None:
        for catalog in catalogs:
            assert compile_filter(catalog["content_filter"]).ignored == ()
            assert members(corpus, catalog), catalog["title"]

    def test_filters_of_many_kinds(self, catalogs: list[Json]) -> None:
        keys = {key for catalog in catalogs for key in catalog["content_filter"]}
        assert keys >= {
            "content_type", "partner", "org", "org__exclude", "key", "course_type", "level_type", "languages",
            "first_enrollable_paid_seat_price__lte", "restricted_runs_allowed", "availability",
        }  # fmt: skip
        types = {str(catalog["content_filter"].get("content_type")) for catalog in catalogs}
        assert types == {"course", "courserun", "program", "learnerpathway"}

    def test_exactly_two_catalogs_share_one_query(self, catalogs: list[Json]) -> None:
        filters = {json.dumps(catalog["content_filter"], sort_keys=True) for catalog in catalogs}
        uuids = {catalog["catalog_query_uuid"] for catalog in catalogs}
        titles = {catalog["query_title"] for catalog in catalogs}
        assert len(filters) == len(uuids) == len(titles) == len(catalogs) - 1
        identities = {(catalog["catalog_query_uuid"], catalog["query_title"]) for catalog in catalogs}
        assert len(identities) == len(uuids)

    def test_allowed_restricted_runs_exist_and_are_not_all_of_them(self, corpus: Corpus, catalogs: list[Json]) -> None:
        restricted = {run["key"] for c in corpus["courses"] for run in c["runs"] if run["restriction_type"]}
        allowed = {run for catalog in catalogs for run in allowed_restricted_runs(catalog["content_filter"])}
        assert allowed < restricted
        assert len(allowed) == 3


@pytest.mark.parametrize("courses", [SMALLEST_SAMPLE, 300])
class TestQuestions:
    @pytest.fixture
    def corpus(self, courses: int) -> Corpus:
        return sample_corpus(REFERENCE, courses)

    def contained(self, corpus: Corpus, catalog: Json) -> set[str]:
        """The members, the courses of member runs, and the public runs of member courses."""
        found = set(members(corpus, catalog))
        keys = set(found)
        for course in corpus["courses"]:
            runs = {run["key"] for run in course["runs"] if run["restriction_type"] is None}
            if course["search"]["key"] in found:
                keys |= runs
            elif runs & found:
                keys.add(course["search"]["key"])
        return keys

    def test_a_run_of_which_only_the_course_is_a_member(self, corpus: Corpus) -> None:
        catalogs = sample_catalogs(corpus)
        question, _, _ = sample_questions(corpus, catalogs)
        url = urlsplit(question.path)
        (catalog,) = [
            c for c in catalogs if url.path == f"/api/v1/enterprise-catalogs/{c['uuid']}/contains_content_items/"
        ]
        (run,) = parse_qs(url.query, strict_parsing=True)["course_run_ids"]
        assert question.method == "GET"
        assert question.body is None
        assert run not in members(corpus, catalog)
        assert run in self.contained(corpus, catalog)
        assert question.answer == '{"contains_content_items":true}'
        assert run in question.title
        assert "+" not in question.path
        assert ":" not in question.path

    def test_the_catalogs_of_a_customer_that_contain_a_course(self, corpus: Corpus) -> None:
        catalogs = sample_catalogs(corpus)
        _, question, _ = sample_questions(corpus, catalogs)
        url = urlsplit(question.path)
        customer = url.path.split("/")[4]
        own = [catalog for catalog in catalogs if catalog["enterprise_customer"] == customer]
        asked = parse_qs(url.query, strict_parsing=True)
        (key,) = asked["course_run_ids"]
        assert url.path == f"/api/v1/enterprise-customer/{customer}/contains_content_items/"
        assert asked["get_catalogs_containing_specified_content_ids"] == ["true"]
        found = [catalog["uuid"] for catalog in own if key in self.contained(corpus, catalog)]
        assert len(found) == 2 < len(own)
        assert question.answer == f'{{"contains_content_items":true,"catalog_list":["{found[0]}","{found[1]}"]}}'

    def test_two_of_three_keys_remain_in_the_order_in_which_they_were_asked(self, corpus: Corpus) -> None:
        catalogs = sample_catalogs(corpus)
        _, _, question = sample_questions(corpus, catalogs)
        customer = question.path.split("/")[4]
        assert question.path == f"/api/v1/enterprise-customer/{customer}/filter_content_items/"
        assert question.method == "POST"
        assert question.body is not None
        keys = question.body["content_keys"]
        own = [catalog for catalog in catalogs if catalog["enterprise_customer"] == customer]
        remaining = [key for key in keys if any(key in self.contained(corpus, catalog) for catalog in own)]
        assert set(keys) < {course["search"]["key"] for course in corpus["courses"]}
        assert remaining == [keys[0], keys[2]]
        assert json.loads(question.answer) == {"filtered_content_keys": remaining}
        assert question.answer == json.dumps(json.loads(question.answer), separators=(",", ":"))
