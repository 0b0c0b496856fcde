"""What two answers are judged to be, alone and with what today's service was recorded to answer."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_plus

import pytest

from indexer.judge import DIFFERENCES, MAX_FINDINGS, Kind, Known, Outcome, Question, Told, Untold, Verdict, judge
from sidecar.contract.index import Index
from sidecar.contract.words import ContentType, canonical_uuid
from sidecar.parameters import pairs
from tests.fakes import Json
from tests.sidecar.replayed import ALL_SEEING, exchanges, replaying

KINDS: Final = (
    (r"/api/v\d/enterprise-catalogs/([^/]+)/contains_content_items/", Kind.CATALOG_CONTAINS),
    (r"/api/v\d/enterprise-customer/([^/]+)/contains_content_items/", Kind.CUSTOMER_CONTAINS),
    (r"/api/v\d/enterprise-customer/([^/]+)/filter_content_items/", Kind.FILTER),
    (r"/api/v\d/enterprise-catalogs/([^/]+)/get_content_metadata/?", Kind.PAGE),
    (r"/api/v\d/enterprise-catalogs/([^/]+)/generate_diff/?", Kind.DIFF),
    (r"/api/v\d/enterprise-customer/([^/]+)/content-metadata/([^/]+)/", Kind.DOCUMENT),
    (r"/api/v1/catalog-queries/([^/]+)/?", Kind.QUERY),
    (r"/api/v1/enterprise-catalogs/([^/]+)/", Kind.CATALOG),
)
GROUPS: Final = (
    *("01_catalog_contains", "02_customer_contains", "03_filter_content_items", "04_get_content_metadata"),
    *("05_customer_content_metadata", "06_generate_diff", "07_catalog_queries", "09_crud"),
)


def verdict(kind: Kind, theirs: Any, ours: Any, known: Known | None = None, path: str = "/") -> Verdict:
    """Of two bodies of 200, or two whole answers."""
    both = (side if isinstance(side, Told | Untold) else Told(200, side) for side in (theirs, ours))
    return judge(Question(kind, path, known=known or Known()), *both)


def places(found: Verdict) -> list[tuple[str, int | None]]:
    return [(finding.at, finding.number) for finding in found.findings]


NESTED: Final = Known(nested={"run": "A+1"})
CONTAINS: Final = "contains_content_items"
KEYED: Final = "/get_content_metadata/?content_keys=run"


class TestContainment:
    def test_that_is_the_same_is_equal(self) -> None:
        for value in (True, False):
            assert verdict(Kind.CATALOG_CONTAINS, {CONTAINS: value}, {CONTAINS: value}).outcome is Outcome.EQUAL

    @pytest.mark.parametrize(
        "known, number",
        [
            (Known(), None),
            (NESTED, 1),
            (Known(nested={"run": "A+1"}, otherwise=True), None),
            (Known(otherwise=True, commas=True), 6),
            (Known(changed=True), 22),
        ],
    )
    def test_that_only_we_claim_is_explained_by_what_is_known(self, known: Known, number: int | None) -> None:
        found = verdict(Kind.CATALOG_CONTAINS, {CONTAINS: False}, {CONTAINS: True}, known)
        assert places(found) == [(CONTAINS, number)]
        assert found.outcome is (Outcome.EXPLAINED if number else Outcome.UNEXPLAINED)

    @pytest.mark.parametrize("known", [Known(), NESTED, Known(commas=True)])
    def test_that_only_they_claim_is_not(self, known: Known) -> None:
        found = verdict(Kind.CATALOG_CONTAINS, {CONTAINS: True}, {CONTAINS: False}, known)
        assert found.outcome is Outcome.UNEXPLAINED
        assert str(found.findings[0]) == f"{CONTAINS}: True there, False here"

    def test_lists_catalogs_in_any_order(self) -> None:
        theirs, ours = ({CONTAINS: True, "catalog_list": catalogs} for catalogs in (["a", "b"], ["b", "a"]))
        assert verdict(Kind.CUSTOMER_CONTAINS, theirs, ours).outcome is Outcome.EQUAL

    def test_of_nested_runs_lists_more_catalogs_here_but_not_there(self) -> None:
        few, more = ({CONTAINS: True, "catalog_list": catalogs} for catalogs in (["a"], ["a", "b"]))
        assert places(verdict(Kind.CUSTOMER_CONTAINS, few, more, NESTED)) == [("catalog_list b", 1)]
        assert places(verdict(Kind.CUSTOMER_CONTAINS, more, few, NESTED)) == [("catalog_list b", None)]

    @pytest.mark.parametrize("theirs", [{}, {CONTAINS: 1}, {CONTAINS: None}, {CONTAINS: "True"}, [True], None, "x"])
    def test_of_another_shape_is_unexplained(self, theirs: object) -> None:
        assert verdict(Kind.CATALOG_CONTAINS, theirs, {CONTAINS: True}, NESTED).outcome is Outcome.UNEXPLAINED


class TestSetsOfKeys:
    def test_are_compared_in_any_order(self) -> None:
        theirs, ours = ({"filtered_content_keys": keys} for keys in (["a", "b"], ["b", "a"]))
        assert verdict(Kind.FILTER, theirs, ours).outcome is Outcome.EQUAL
        a, b = ({"items_not_included": [{"content_key": key} for key in keys]} for keys in ("ab", "ba"))
        assert verdict(Kind.DIFF, a, b).outcome is Outcome.EQUAL

    def test_name_each_key_that_one_side_lacks(self) -> None:
        theirs, ours = ({"filtered_content_keys": keys} for keys in (["a", "b"], ["b", "c"]))
        assert [str(f) for f in verdict(Kind.FILTER, theirs, ours, NESTED).findings] == [
            "filtered_content_keys a: present there, absent here",
            "filtered_content_keys c: absent there, present here",
        ]

    def test_may_not_repeat_one(self) -> None:
        theirs, ours = ({"filtered_content_keys": keys} for keys in (["a", "a"], ["a"]))
        assert verdict(Kind.FILTER, theirs, ours).outcome is Outcome.UNEXPLAINED
        a, b = ({"items_found": [{"content_key": key} for key in keys]} for keys in ("aa", "a"))
        assert verdict(Kind.DIFF, a, b).outcome is Outcome.UNEXPLAINED

    def test_may_have_been_touched_at_another_time(self) -> None:
        theirs, ours = (
            {"items_found": [{"content_key": "a", "date_updated": f"2026-01-0{day}T00:00:00Z"}]} for day in (1, 2)
        )
        assert places(verdict(Kind.DIFF, theirs, ours)) == [("items_found a.date_updated", 15)]


def page(*documents: Json, **head: Any) -> Json:
    return {"count": len(documents), "next": None, "results": list(documents), **head}


class TestPages:
    def test_that_are_in_another_order_are_explained(self) -> None:
        a, b = {"key": "A"}, {"key": "B"}
        assert verdict(Kind.PAGE, page(a, b), page(b, a)).numbers == {3}
        assert verdict(Kind.PAGE, page(a, count=9), page(b, count=9)).numbers == {3}

    @pytest.mark.parametrize(
        "theirs",
        [page({"key": "A"}), page({"key": "A"}, {"key": "A"}), page({"key": "A"}, {"key": "B"}, count=3), page({}, {})],
    )
    def test_that_hold_another_number_are_not(self, theirs: Json) -> None:
        assert verdict(Kind.PAGE, theirs, page({"key": "B"}, {"key": "A"})).outcome is Outcome.UNEXPLAINED

    def test_by_key_have_courses_of_nested_runs_here(self) -> None:
        course = {"key": "A+1"}
        assert places(verdict(Kind.PAGE, page(), page(course), NESTED, KEYED)) == [("results A+1", 1)]
        assert verdict(Kind.PAGE, page(course), page(), NESTED, KEYED).outcome is Outcome.UNEXPLAINED
        asked = f"{KEYED}&content_keys=A%2B1"
        assert verdict(Kind.PAGE, page(), page(course), NESTED, asked).outcome is Outcome.UNEXPLAINED
        assert verdict(Kind.PAGE, page(), page({"key": "B+1"}), NESTED, KEYED).outcome is Outcome.UNEXPLAINED

    def test_link_to_others_under_a_name_of_their_own(self) -> None:
        theirs, ours = (
            page(next=f"http{at}/p/?{query}") for at, query in (("://a", "x=1&page=2"), ("s://b", "page=2&x=1"))
        )
        assert verdict(Kind.PAGE, theirs, ours).outcome is Outcome.EQUAL
        assert verdict(Kind.PAGE, theirs, page(next="http://a/p/?x=1&page=3")).outcome is Outcome.UNEXPLAINED
        assert verdict(Kind.PAGE, theirs, page()).outcome is Outcome.UNEXPLAINED


class TestDocuments:
    def test_say_where_a_value_is_another(self) -> None:
        theirs, ours = ({"key": "A", "runs": [{"x": 1}, {"x": x}]} for x in (2, 3))
        assert [str(f) for f in verdict(Kind.PAGE, page(theirs), page(ours)).findings] == [
            "results A.runs[1].x: 2 there, 3 here"
        ]

    @pytest.mark.parametrize("value", [1, 0, "", [], {}, None, "true"])
    def test_know_a_truth_from_what_only_looks_like_one(self, value: object) -> None:
        assert verdict(Kind.DOCUMENT, {"x": True}, {"x": value}).outcome is Outcome.UNEXPLAINED

    def test_have_links_of_nested_runs_here(self) -> None:
        links = {"enrollment_url": "https://x.test/", "parent_content_key": "A"}
        theirs, ours = ({"key": "A", "course_runs": [{"key": "r", **more}]} for more in ({}, links))
        assert places(verdict(Kind.DOCUMENT, theirs, ours)) == [("course_runs r", 16)]
        assert verdict(Kind.DOCUMENT, ours, theirs).outcome is Outcome.UNEXPLAINED
        other = {"key": "A", "course_runs": [{"key": "r", **links, "parent_content_key": "B"}]}
        assert verdict(Kind.DOCUMENT, theirs, other).outcome is Outcome.UNEXPLAINED
        wrong = {"key": "A", "course_runs": [{"key": "r", **links, "enrollment_url": "https://y.test/"}]}
        assert verdict(Kind.DOCUMENT, ours, wrong).outcome is Outcome.UNEXPLAINED

    def test_may_have_been_touched_at_another_time_but_have_a_time(self) -> None:
        theirs = {"content_last_modified": "2026-01-01T00:00:00.123456Z"}
        assert verdict(Kind.DOCUMENT, theirs, {"content_last_modified": "2026-01-02T00:00:00Z"}).numbers == {15}
        same = {"content_last_modified": "2026-01-01T00:00:00.123000Z"}
        assert verdict(Kind.DOCUMENT, theirs, same).outcome is Outcome.EQUAL
        for none in (None, "soon", 7, "2026-99-01T00:00:00Z"):
            told = verdict(Kind.DOCUMENT, theirs, {"content_last_modified": none})
            assert told.outcome is Outcome.UNEXPLAINED or none == "2026-99-01T00:00:00Z"
        early, late = ({"start": f"2026-01-0{day}T00:00:00Z"} for day in (1, 2))
        assert verdict(Kind.DOCUMENT, early, late).outcome is Outcome.UNEXPLAINED

    def test_of_nested_runs_are_not_found_there(self) -> None:
        theirs, ours = Told(404, {"detail": "none"}), Told(200, {"key": "A+1"})
        assert verdict(Kind.DOCUMENT, theirs, ours, NESTED).numbers == {1}
        assert verdict(Kind.DOCUMENT, theirs, ours, Known({"run": "A+1"}, otherwise=True)).numbers == set()
        assert verdict(Kind.DOCUMENT, ours, theirs, NESTED).outcome is Outcome.UNEXPLAINED

    def test_tell_only_so_many_differences(self) -> None:
        theirs, ours = ({f"{n}": m for n in range(100)} for m in (1, 2))
        assert len(verdict(Kind.DOCUMENT, theirs, ours).findings) == MAX_FINDINGS

    def test_differ_without_a_reason_however_many_other_differences_have_one(self) -> None:
        documents = [{"key": f"{n}", "content_last_modified": "2026-01-01T00:00:00Z"} for n in range(90)]
        others = [{**document, "content_last_modified": "2026-01-02T00:00:00Z"} for document in documents]
        assert verdict(Kind.PAGE, page(*documents), page(*others)).outcome is Outcome.EXPLAINED
        others[-1]["title"] = "another"
        found = verdict(Kind.PAGE, page(*documents), page(*others))
        assert (found.outcome, set(found.numbers)) == (Outcome.UNEXPLAINED, {15})
        assert [finding.at for finding in found.unexplained] == ["results 89.title"]


class TestRecordsOfCatalogs:
    def test_do_not_tell_their_query_there(self) -> None:
        theirs, ours = ({"query_title": told, "catalog_query_uuid": told} for told in (None, "x"))
        assert verdict(Kind.CATALOG, theirs, ours).numbers == {9}
        assert verdict(Kind.CATALOG, ours, theirs).outcome is Outcome.UNEXPLAINED

    def test_cannot_tell_before_the_first_pull_when_content_changed(self) -> None:
        theirs, ours = ({"content_last_modified": told} for told in ("2026-01-01T00:00:00Z", None))
        assert verdict(Kind.CATALOG, theirs, ours, Known(never_pulled=True)).numbers == {20}
        assert verdict(Kind.CATALOG, theirs, ours).outcome is Outcome.UNEXPLAINED

    def test_are_nothing_that_a_changed_filter_explains(self) -> None:
        theirs, ours = ({"title": title} for title in "ab")
        assert verdict(Kind.CATALOG, theirs, ours, Known(changed=True)).outcome is Outcome.UNEXPLAINED


class TestStatuses:
    @pytest.mark.parametrize(
        "kind, known, theirs, ours, number",
        [
            (Kind.ERROR, Known(bad=True), 500, 400, 7),
            (Kind.ERROR, Known(bad=True), 500, 404, 7),
            (Kind.ERROR, Known(bad=True), 500, 200, None),
            (Kind.ERROR, Known(), 500, 400, None),
            (Kind.DIFF, Known(), 500, 200, None),
            (Kind.DIFF, Known(), 200, 500, None),
            (Kind.QUERY, Known(), 403, 200, 12),
            (Kind.DIFF, Known(), 403, 200, None),
            (Kind.CATALOG, Known(), 404, 200, None),
            (Kind.CATALOG, Known(), 200, 404, None),
            (Kind.PAGE, Known(never_pulled=True), 200, 503, 20),
            (Kind.DOCUMENT, Known(never_pulled=True), 404, 503, 20),
            (Kind.CATALOG, Known(changed=True), 404, 200, None),
            (Kind.DOCUMENT, Known(changed=True), 404, 200, 22),
        ],
    )
    def test_that_differ_are_explained_by_what_is_known(
        self, kind: Kind, known: Known, theirs: int, ours: int, number: int | None
    ) -> None:
        found = verdict(kind, Told(theirs, {}), Told(ours, {}), known)
        assert places(found) == [("status", number)]

    def test_that_are_errors_are_compared_with_their_texts(self) -> None:
        theirs, ours = (Told(404, {"detail": text}) for text in ("Not found.", "No such catalog."))
        assert verdict(Kind.ERROR, theirs, theirs).outcome is Outcome.EQUAL
        assert verdict(Kind.ERROR, theirs, ours).outcome is Outcome.UNEXPLAINED


class TestNoAnswer:
    @pytest.mark.parametrize(
        "theirs, ours, why",
        [
            (Untold("gone"), Told(200, {}), "the other service: gone"),
            (Told(200, {}), Untold("gone"), "our sidecar: gone"),
            (Untold("a"), Untold("b"), "the other service: a"),
            (Told(401), Told(200, {}), "the other service answers 401"),
            (Told(401), Told(401), "the other service answers 401"),
            (Told(200, {}), Told(429), "our sidecar answers 429"),
            (Told(200, {}), Told(503), "our sidecar answers 503"),
            (Told(503), Told(503), "the other service answers 503"),
            (Told(403), Told(403), "both answer 403"),
            (Told(500), Told(500), "both answer 500"),
        ],
    )
    def test_is_neither_equal_nor_different(self, theirs: Any, ours: Any, why: str) -> None:
        found = verdict(Kind.DIFF, theirs, ours)
        assert (found.outcome, found.why, found.findings) == (Outcome.NOT_COMPARED, why, ())

    def test_of_a_catalog_that_is_missing_there_and_was_never_pulled_here_is_no_explanation(self) -> None:
        found = verdict(Kind.PAGE, Told(404, {}), Told(503, {}), Known(never_pulled=True))
        assert (found.outcome, found.why) == (Outcome.NOT_COMPARED, "our sidecar answers 503")

    def test_of_both_that_were_never_pulled_is_no_equality(self) -> None:
        assert verdict(Kind.DIFF, Told(503), Told(503), Known(never_pulled=True)).outcome is Outcome.NOT_COMPARED


def known_of(index: Index, exchange: Json, uuid: str | None, kind: Kind, path: str) -> Known:
    """What the index says of a recorded question."""
    restricted, query = "/v2/" in path, exchange["query"] or ""
    texts = [value for name, value in pairs(query) if name in ("course_run_ids", "program_uuids", "content_keys")]
    if kind is Kind.DOCUMENT:
        texts = [unquote_plus(path.rstrip("/").rpartition("/")[2].replace("+", "%2B"))]
    ordinals = {o for text in texts for key in text.split(",") for o in index.dictionary.find(key)}
    if kind in (Kind.CATALOG_CONTAINS, Kind.PAGE, Kind.DIFF):
        catalogs = [index.catalogs[uuid]] if uuid in index.catalogs else []
    else:
        catalogs = list(index.of_customer.get(uuid or "", ()))
    nested, otherwise = {}, False
    for catalog in catalogs:
        assert catalog.serving is not None
        content = catalog.serving.v2 if restricted else catalog.serving.v1
        assert content is not None
        for ordinal in ordinals:
            parent = index.dictionary.parents[ordinal]
            is_run = index.dictionary.types[ordinal] == ContentType.COURSE_RUN
            if is_run and parent is not None and ordinal in content.contained - content.members:
                nested[index.dictionary.keys[ordinal]] = index.dictionary.keys[parent]
            elif ordinal in content.contained:
                otherwise = True
    bad = exchange["status"] == 500
    return Known(nested=nested, otherwise=otherwise, commas=any("," in text for text in texts), bad=bad)


def kind_of(path: str) -> tuple[Kind, str | None] | None:
    """The kind of a recorded question, and the uuid in its path."""
    for pattern, kind in KINDS:
        if found := re.fullmatch(pattern, path):
            return kind, canonical_uuid(found[1])
    return None


def is_asked(exchange: Json) -> bool:
    """Whether it reads JSON, or breaks at what it was asked, for somebody who may see everything."""
    is_read = exchange["method"] == "GET" or re.search("filter_content_items|generate_diff", exchange["path"])
    said = exchange["response_headers"].get("Content-Type", "")
    if not is_read or exchange["actor"] not in ALL_SEEING or exchange["status"] == 301:
        return False
    return "json" in said or exchange["status"] == 500


async def test_what_todays_service_was_recorded_to_answer_differs_by_numbers_alone(tmp_path: Path) -> None:
    outcomes, numbers, unexplained = Counter[Outcome](), Counter[int](), {}
    async with replaying(tmp_path) as rig:
        index = await rig.world.index()
        for exchange in (e for group in GROUPS for e in exchanges(group) if is_asked(e)):
            path, theirs = exchange["path"], exchange.get("json")
            asked = kind_of(path)
            if asked is None:
                continue
            kind, uuid = asked
            if kind is Kind.CATALOG and (exchange["status"] != 200 or uuid not in index.catalogs):
                continue  # One that was made in the recording.
            answer = await rig.send(exchange)
            ours = json.loads(await answer.read())
            if kind is Kind.CATALOG and theirs is not None:
                theirs["catalog_modified"] = ours["catalog_modified"]  # It was made here now.
            known = known_of(index, exchange, uuid, kind, path)
            question = Question(kind, f"{path}?{exchange['query'] or ''}", known=known)
            found = judge(question, Told(exchange["status"], theirs), Told(answer.status, ours))
            outcomes[found.outcome] += 1
            numbers.update(found.numbers)
            if found.outcome is Outcome.UNEXPLAINED:
                unexplained[exchange["id"]] = [str(finding) for finding in found.unexplained]
    assert unexplained == {}
    assert outcomes == {Outcome.EQUAL: 133, Outcome.EXPLAINED: 102}
    assert numbers == {1: 5, 3: 18, 6: 3, 7: 7, 9: 3, 12: 9, 15: 74, 16: 36}
    assert set(numbers) <= set(DIFFERENCES)
