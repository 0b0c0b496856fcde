"""Rendering: every recorded document is reproduced, and each rule holds for what no recording shows.

The recordings are judged here as they are over HTTP: times by their form, and what differs on purpose as it has to be.
A document is an item of `results` of a recorded get_content_metadata: 305 of them, with 81 urls of nested runs; the
answers about single documents are counted beside them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.documents import Item, item
from indexer.filters import allowed_restricted_runs
from indexer.render import RENDERER, metadata_of, render, render_for_query
from indexer.source.file import Corpus, read_corpus
from sidecar.contract.objects import ObjectType, Sealed
from sidecar.contract.records import (
    Activity,
    CatalogRecord,
    CustomerRecord,
    Enrollment,
    Marketing,
    Metadata,
    Modified,
    RunEnrollment,
    open_record,
)
from sidecar.contract.words import ContentType
from sidecar.documents import Links, Values, values_of, written
from tests.fakes import Json, course, run

COURSE, RUN, PROGRAM, PATHWAY = ContentType
GOLDEN = Path(__file__).parents[1] / "contract" / "golden"
LINKS = Links("http://127.0.0.1:18382", "https://learner-portal.example.test", "https://ecommerce.example.test")
MODIFIED_MS = 1_700_000_000_123
NOWHERE = CatalogRecord(
    uuid=bytes(16),
    number=1,
    wanted=bytes(16),
    serving=None,
    customer=bytes(16),
    customer_name="Acme",
    title="t",
    course_modes="[]",
    audit_urls=False,
    created_ms=0,
    modified_ms=0,
)
ACME = CustomerRecord(bytes(16), "acme", True, "Acme", 0)
VALUES = values_of(NOWHERE, ACME, LINKS)


def opened(sealed: Sealed) -> Metadata:
    record = open_record(sealed.digest, sealed.data, ObjectType.METADATA)
    assert isinstance(record, Metadata)
    return record


def document(metadata: Metadata, values: Values | None = VALUES, *, urls: bool = True) -> Json:
    found: Json = json.loads(b"".join(written(metadata, MODIFIED_MS, values, urls=urls)))
    return found


def places(metadata: Metadata, kind: type) -> list[Any]:
    return [part for part in metadata.parts if isinstance(part, kind)]


# The recordings.


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_bytes())


@cache
def corpus() -> Corpus:
    return read_corpus((GOLDEN / "corpus.json").read_bytes(), "corpus.json")


@cache
def plain_and_shown() -> Mapping[str, tuple[Item, Item]]:
    """Each item of the corpus by its key: as everybody sees it, and with its restricted runs."""
    return {entry.plain.key: (entry.plain, entry.shown) for entry in corpus().entries}


@cache
def by_uuid() -> Mapping[str, str]:
    return {plain.uuid: key for key, (plain, _) in plain_and_shown().items() if plain.uuid is not None}


@cache
def catalogs() -> Mapping[str, Json]:
    return {c["body"]["uuid"]: c["body"] for c in golden("definitions")["catalogs"] if not c["null_query"]}


def values_for(catalog: Json) -> Values:
    customer = corpus().customers[catalog["enterprise_customer"]]
    uuid = UUID(customer.uuid).bytes
    return values_of(
        CatalogRecord(
            uuid=UUID(catalog["uuid"]).bytes,
            number=1,
            wanted=bytes(16),
            serving=None,
            customer=uuid,
            customer_name=catalog["enterprise_customer_name"],
            title=catalog["title"],
            course_modes="[]",
            audit_urls=catalog["publish_audit_enrollment_urls"],
            created_ms=0,
            modified_ms=0,
        ),
        CustomerRecord(uuid, customer.slug, customer.portal, customer.name, 0),
        LINKS,
    )


def rendered(key: str, version: str = "v1", content_filter: Mapping[str, object] | None = None) -> Metadata:
    plain, shown = plain_and_shown()[key]
    allowed = frozenset(allowed_restricted_runs(content_filter or {}) if version == "v2" else ())
    if not allowed:
        return opened(render(key, plain.type, plain.text))
    return opened(render_for_query(key, shown.type, shown.text, allowed))


TIMES = {"content_last_modified", "date_updated", "created", "modified", "valid_until"}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


def difference(want: Any, got: Any, path: str = "") -> str | None:
    """The first place where two JSON values differ; times are compared by form."""
    if path.rsplit(".", 1)[-1] in TIMES:
        fits = (got is None and want is None) or (isinstance(got, str) and ISO.fullmatch(got))
        return None if fits else f"{path}: {got!r}"
    if isinstance(want, dict) and isinstance(got, dict):
        if want.keys() != got.keys():
            return f"{path}: {sorted(want.keys() ^ got.keys())}"
        return next((d for k in want if (d := difference(want[k], got[k], f"{path}.{k}"))), None)
    if isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            return f"{path}: {len(want)} wanted, {len(got)} got"
        pairs = enumerate(zip(want, got, strict=True))
        return next((d for i, (w, g) in pairs if (d := difference(w, g, f"{path}[{i}]"))), None)
    return None if type(want) is type(got) and want == got else f"{path}: wanted {want!r}, got {got!r}"


def is_of_its_run(course_: Json, run_: Json) -> bool:
    """Whether a run's url is its course's, with the run among the parameters or, in the LMS, in the path."""
    if not course_["enrollment_url"] or not run_["enrollment_url"]:
        return bool(course_["enrollment_url"] == run_["enrollment_url"])
    of_course, of_run = urlsplit(course_["enrollment_url"]), urlsplit(run_["enrollment_url"])
    path, parameters = unquote(of_course.path), dict(parse_qsl(of_course.query))
    if "/enroll/" in path:
        path = re.sub(r"/course/[^/]+/enroll/", lambda _: f"/course/{run_['key']}/enroll/", path)
    else:
        parameters["course_run_key"] = run_["key"]
    return (of_course.netloc, path, parameters) == (
        of_run.netloc,
        unquote(of_run.path),
        dict(parse_qsl(of_run.query)),
    )


def judged(want: Json, got: Json) -> str | None:
    """What is wrong with a document, given its recording: nested runs have urls where the recording has none, too."""
    for run_, recorded in zip(got.get("course_runs") or [], want.get("course_runs") or [], strict=True):
        if "enrollment_url" in run_ and "enrollment_url" not in recorded:
            if run_["parent_content_key"] != got["key"] or not is_of_its_run(got, run_):
                return f"{run_['key']}: {run_['enrollment_url']}"
            del run_["enrollment_url"], run_["parent_content_key"]
    return difference(want, got)


def pages() -> Iterator[tuple[str, str, str, list[Json]]]:
    """Exchange, version, catalog and documents of every recorded page."""
    for exchange in golden("04_get_content_metadata")["exchanges"]:
        if isinstance(exchange.get("json"), dict) and isinstance(exchange["json"].get("results"), list):
            _, _, version, _, uuid, *_ = exchange["path"].split("/")
            yield exchange["id"], version, uuid.lower(), exchange["json"]["results"]


def test_every_recorded_document_of_a_catalog_is_reproduced() -> None:
    counts: Counter[str] = Counter()
    wrong = []
    for exchange, version, uuid, documents in pages():
        catalog = catalogs()[uuid] if documents else {}
        for want in documents:
            key = want.get("key") or want["uuid"]
            got = document(rendered(key, version, catalog["content_filter"]), values_for(catalog))
            counts["documents"] += 1
            counts["nested urls"] += sum("enrollment_url" in r for r in want.get("course_runs") or [])
            problem = judged(want, got)
            if problem is not None:
                wrong.append((exchange, key, problem))
    assert wrong == []
    assert counts == {"documents": 305, "nested urls": 81}


def test_every_recorded_document_of_a_customer_and_of_none_is_reproduced() -> None:
    counts: Counter[str] = Counter()
    for exchange in golden("05_customer_content_metadata")["exchanges"]:
        answer, parts = exchange.get("json"), exchange["path"].strip("/").split("/")
        if exchange["status"] != 200 or not isinstance(answer, dict):
            continue
        for want in answer.get("results", [answer]):
            key = want.get("key") or want["uuid"]
            values = None
            if parts[2] == "enterprise-customer":
                in_order = (c for c in catalogs().values() if c["enterprise_customer"] == parts[3])
                values = values_for(next(in_order))
            got = document(rendered(key), values, urls="skip_customer_fetch" not in exchange["query"])
            counts[parts[2]] += 1
            assert judged(want, got) is None, exchange["id"]
    assert counts == {"enterprise-customer": 11, "content-metadata": 11}


# What a query shows.


def text(made: Json) -> bytes:
    return item(made["search"], made["full"]).text


def test_a_query_that_asks_for_nothing_special_shows_the_same_bytes() -> None:
    plain = text(course("A+1", run("a1")))
    assert render_for_query("A+1", COURSE, plain) == render("A+1", COURSE, plain)
    assert render_for_query("A+1", COURSE, plain, frozenset({"x1"})) == render("A+1", COURSE, plain)


def test_restricted_runs_are_shown_if_allowed() -> None:
    both = text(course("A+1", run("a1"), run("x1", restricted=True), run("x2", restricted=True)))
    found = document(opened(render_for_query("A+1", COURSE, both, frozenset({"x2"}))))
    assert [r["key"] for r in found["course_runs"]] == found["course_run_keys"] == ["a1", "x2"]
    assert list(found["normalized_metadata_by_run"]) == ["a1", "x2"]


def test_a_forced_course_is_shown_as_open_after_its_runs_were_chosen() -> None:
    both = text(course("A+1", run("a1", active=False), run("x1", restricted=True)))
    found = document(opened(render_for_query("A+1", COURSE, both, forced=True)))
    assert [(r["key"], r["status"]) for r in found["course_runs"]] == [("a1", "published")]
    assert found["enterprise_force_included"] is True


# The places.


@pytest.mark.parametrize(
    "url, shown",
    [
        ("https://x.test/c", "https://x.test/c?utm_medium=enterprise&utm_source=acme"),
        ("https://x.test/c?", "https://x.test/c?utm_medium=enterprise&utm_source=acme"),
        ("https://x.test/c?utm_source=d", "https://x.test/c?utm_medium=enterprise&utm_source=acme"),
        (
            "https://x.test/c?z=1&utm_medium=m&a=2&utm_source=s&utm_source=t",
            "https://x.test/c?a=2&utm_medium=enterprise&utm_source=acme&z=1",
        ),
        (
            "https://x.test/c?b=2&a=1&b=1&utm_term=t&utm_campaign=c#at",
            "https://x.test/c?a=1&b=2&b=1&utm_campaign=c&utm_medium=enterprise&utm_source=acme&utm_term=t#at",
        ),
        ("https://x.test/c?a=&b&c=1", "https://x.test/c?c=1&utm_medium=enterprise&utm_source=acme"),
        (
            "https://x.test/c?q=a%20b%26+\u00fc",
            "https://x.test/c?q=a+b%26+%C3%BC&utm_medium=enterprise&utm_source=acme",
        ),
        ('https://x.test/"\\?v="', 'https://x.test/"\\?utm_medium=enterprise&utm_source=acme&v=%22'),
        ("//x.test/c#f", "//x.test/c?utm_medium=enterprise&utm_source=acme#f"),
        ("c", "c?utm_medium=enterprise&utm_source=acme"),
    ],
)
@pytest.mark.parametrize("kind", [COURSE, RUN, PROGRAM])
def test_a_marketing_url_says_who_sent_the_learner(kind: ContentType, url: str, shown: str) -> None:
    metadata = metadata_of("k", kind, {"marketing_url": url})
    assert document(metadata)["marketing_url"] == document(metadata, urls=False)["marketing_url"] == shown
    assert document(metadata, None)["marketing_url"] == url


@pytest.mark.parametrize("url", [None, "", 7, [], {"a": 1}, "http://[x"])
def test_what_is_no_marketing_url_stays_as_it_is(url: Any) -> None:
    metadata = metadata_of("k", COURSE, {"marketing_url": url})
    assert places(metadata, Marketing) == []
    assert document(metadata)["marketing_url"] == url
    assert "marketing_url" not in document(metadata_of("k", COURSE, {}))


def test_the_marketing_url_of_a_pathway_is_no_catalogs() -> None:
    metadata = metadata_of("k", PATHWAY, {"marketing_url": "https://x.test/?b=1&a=1"})
    assert document(metadata)["marketing_url"] == "https://x.test/?b=1&a=1"


def test_courses_and_runs_have_urls_programs_null_and_pathways_none() -> None:
    def of(kind: ContentType, content: Json) -> list[Any]:
        return [part for part in metadata_of("K", kind, content).parts if not isinstance(part, bytes)]

    assert of(COURSE, {}) == [Modified(), Activity(b"course/K"), Enrollment(False, b"K", None, b"K", None)]
    parent = {"aggregation_key": "courserun:C"}
    assert of(RUN, parent) == [Modified(), Activity(b"courserun/K"), Enrollment(False, b"C", b"K", b"K", None)]
    assert of(RUN, {}) == [Modified(), Activity(b"courserun/K"), Enrollment(False, b"K", None, b"K", None)]
    assert of(PROGRAM, {}) == of(PATHWAY, {}) == [Modified()]
    assert document(metadata_of("K", PROGRAM, {}))["enrollment_url"] is None
    assert document(metadata_of("K", PROGRAM, {}), None)["enrollment_url"] is None
    assert document(metadata_of("K", PATHWAY, {})).keys() == {"content_last_modified", "parent_content_key"}


def test_a_course_is_enrolled_in_by_its_advertised_run_if_it_has_one() -> None:
    runs = [{"key": "a1", "uuid": "u1"}, {"key": "a2", "uuid": "u2"}, {"uuid": "u3"}]
    for uuid, target in (("u2", b"a2"), ("u3", b"A+1"), ("u4", b"A+1"), (None, b"A+1")):
        metadata = metadata_of("A+1", COURSE, {"course_runs": runs, "advertised_course_run_uuid": uuid})
        assert [place.target for place in places(metadata, Enrollment)] == [target]


def test_executive_education_has_a_sku_and_no_urls_of_its_runs() -> None:
    content = {
        "course_type": "executive-education-2u",
        "course_runs": [{"key": "a1", "enrollment_url": "upstream's"}],
        "entitlements": [{"mode": "paid-executive-education", "sku": 'A & "B"'}],
    }
    metadata = metadata_of("A+1", COURSE, content)
    assert places(metadata, Enrollment) == [Enrollment(True, b"A+1", None, b"A+1", b"A+%26+%22B%22")]
    assert places(metadata, RunEnrollment) == []
    assert document(metadata)["course_runs"] == content["course_runs"]
    assert places(metadata_of("r", RUN, content), Enrollment)[0].executive is False


def test_nested_runs_have_urls_of_their_own_whatever_upstream_says() -> None:
    runs = [
        {"key": "a1", "enrollment_url": "theirs", "parent_content_key": "theirs", "x": 1},
        {"x": 2},
        None,
        {"key": ""},
    ]
    metadata = metadata_of("A+1", COURSE, {"course_runs": runs})
    assert places(metadata, RunEnrollment) == [RunEnrollment(b"A+1", b"a1", b"a1")]
    first, *others = document(metadata)["course_runs"]
    assert first.keys() == {"key", "enrollment_url", "parent_content_key", "x"}
    assert others == runs[1:]
    for bare in (document(metadata, None), document(metadata, urls=False)):
        assert bare["course_runs"] == [{"key": "a1", "x": 1}, *runs[1:]]


def test_keys_are_escaped_as_their_places_need_it() -> None:
    key = 'Ü "+\\&?#/'
    metadata = metadata_of(key, COURSE, {"course_runs": [{"key": key}]})
    (nested,) = places(metadata, RunEnrollment)
    assert nested.course == orjson.dumps(key)[1:-1] == nested.target
    assert nested.run == b"%C3%9C+%22%2B%5C%26%3F%23%2F"
    found = document(metadata)
    assert found["xapi_activity_id"] == f"http://127.0.0.1:18382/xapi/activities/course/{key}"
    assert found["course_runs"][0]["parent_content_key"] == key
    assert dict(parse_qsl(found["course_runs"][0]["enrollment_url"].rpartition("?")[2]))["course_run_key"] == key


def test_no_two_parts_that_are_bytes_are_neighbours() -> None:
    made = course("A+1", run("a1"), run("a2"))
    parts = opened(render("A+1", COURSE, text(made))).parts
    assert all(isinstance(one, bytes) != isinstance(other, bytes) for one, other in pairwise(parts))


# Anything at all.

texts = st.text(st.characters(codec="utf-8"), max_size=8)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
run_fields = [
    *("key", "uuid", "status", "is_enrollable", "is_marketable", "is_marketable_external", "start", "restriction_type"),
    *("seats", "fixed_price_usd", "first_enrollable_paid_seat_price", "enrollment_end", "enrollment_url"),
]
fields = [
    *("key", "uuid", "marketing_url", "course_type", "entitlements", "advertised_course_run_uuid", "product_source"),
    *("programs", "courses", "aggregation_key", "course_runs", "course_run_keys", "course_run_statuses", "active"),
    *("content_last_modified", "enrollment_url", "xapi_activity_id", "parent_content_key", "number_of_courses"),
]
hits = st.sampled_from(
    ["executive-education-2u", "paid-executive-education", "published", "u", "2026-01-01", "http://x/"]
)
odd_runs = st.lists(st.dictionaries(st.sampled_from(run_fields), hits | anything) | anything, max_size=3)
contents = st.builds(
    lambda known, unknown, runs: {**unknown, **known, **runs},
    st.dictionaries(st.sampled_from(fields), hits | anything, max_size=8),
    st.dictionaries(texts, anything, max_size=3),
    st.one_of(st.just({}), st.builds(lambda runs: {"course_runs": runs}, odd_runs)),
)


@given(contents, hits | anything, st.sampled_from(ContentType), texts.filter(bool), st.booleans())
def test_any_content_gives_json_in_every_mode(
    content: Json, review: Any, kind: ContentType, key: str, forced: bool
) -> None:
    stored = orjson.dumps({"content": content, "review": review}, option=orjson.OPT_SORT_KEYS)
    for sealed in (
        render(key, kind, stored),
        render_for_query(key, kind, stored, frozenset({"u"}), forced=forced),
    ):
        metadata = opened(sealed)
        assert metadata.key == key
        for values, urls in ((VALUES, True), (VALUES, False), (None, True)):
            found = document(metadata, values, urls=urls)
            assert ISO.fullmatch(found["content_last_modified"])
            assert ("xapi_activity_id" in found) is (values is not None and kind in (COURSE, RUN))
            assert ("enrollment_url" in found) is (kind is PROGRAM or (values is not None and kind in (COURSE, RUN)))


@given(contents, st.sampled_from(ContentType))
def test_the_order_of_members_does_not_matter(content: Json, kind: ContentType) -> None:
    turned = dict(reversed(content.items()))
    assert metadata_of("k", kind, content) == metadata_of("k", kind, turned)


@given(
    st.builds(
        "".join, st.lists(st.sampled_from([*'?#&=/:@%+;[] ü"\\\n', "utm_source", "utm_medium", "http://h/", "a"]))
    )
)
def test_a_marketing_url_without_its_utm_is_as_it_was(url: str) -> None:
    metadata = metadata_of("k", COURSE, {"marketing_url": url})
    assert document(metadata, None)["marketing_url"] == url
    if places(metadata, Marketing):
        parameters = parse_qsl(urlsplit(document(metadata)["marketing_url"]).query, keep_blank_values=True)
        assert parameters.count(("utm_source", "acme")) == parameters.count(("utm_medium", "enterprise")) == 1
        assert [name for name, _ in parameters] == sorted(name for name, _ in parameters)
        assert len([name for name, _ in parameters if name in ("utm_source", "utm_medium")]) == 2


def test_the_renderer_names_what_the_bytes_depend_on() -> None:
    for word in ("format-1", "orjson-", "zstd-"):
        assert word in RENDERER
    assert len(RENDERER) <= 128, "the registry's column"
