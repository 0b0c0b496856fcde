"""Rendering: the same document is the same bytes, and what a query shows differs only where it has to."""

import json

import orjson
from hypothesis import given
from hypothesis import strategies as st

from indexer.documents import item
from indexer.render import RENDERER, render, render_for_query
from sidecar.contract.objects import ObjectType, Sealed
from sidecar.contract.records import Metadata, open_record
from sidecar.contract.words import ContentType
from tests.fakes import Json, course, run

COURSE = ContentType.COURSE


def text(document: Json) -> bytes:
    return item(document["search"], document["full"]).text


def shown(sealed: Sealed) -> Json:
    record = open_record(sealed.digest, sealed.data, ObjectType.METADATA)
    assert isinstance(record, Metadata)
    assert (record.key, record.type) == ("A+1", COURSE)
    found: Json = json.loads(b"".join(record.parts))
    return found


def test_a_document_is_its_merged_content_without_the_review() -> None:
    made = course("A+1", run("a1"))
    with_review = item(made["search"], made["full"], {"course_key": "A+1", "reviews_count": 3})
    assert shown(render("A+1", COURSE, with_review.text)) == {**made["search"], **made["full"]}
    assert render("A+1", COURSE, with_review.text) == render("A+1", COURSE, text(made))


def test_a_query_that_asks_for_nothing_special_shows_the_same_bytes() -> None:
    plain = text(course("A+1", run("a1")))
    assert render_for_query("A+1", COURSE, plain) == render("A+1", COURSE, plain)
    assert render_for_query("A+1", COURSE, plain, frozenset({"x1"})) == render("A+1", COURSE, plain)


def test_restricted_runs_are_shown_if_allowed() -> None:
    both = text(course("A+1", run("a1"), run("x1", restricted=True), run("x2", restricted=True)))
    found = shown(render_for_query("A+1", COURSE, both, frozenset({"x2"})))
    assert [r["key"] for r in found["course_runs"]] == found["course_run_keys"] == ["a1", "x2"]


def test_a_forced_course_is_shown_as_open_after_its_runs_were_chosen() -> None:
    both = text(course("A+1", run("a1", active=False), run("x1", restricted=True)))
    found = shown(render_for_query("A+1", COURSE, both, forced=True))
    assert [(r["key"], r["status"]) for r in found["course_runs"]] == [("a1", "published")]
    assert found["enterprise_force_included"] is True


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), max_size=8))
def test_rendering_depends_on_the_content_alone(fields: Json) -> None:
    one, other = ({"content": dict(order), "review": None} for order in (fields.items(), reversed(fields.items())))
    first, second = (render("A+1", COURSE, orjson.dumps(document)) for document in (one, other))
    assert first == second
    assert shown(first) == fields


def test_the_renderer_names_what_the_bytes_depend_on() -> None:
    for word in ("format-1", "orjson-", "zstd-"):
        assert word in RENDERER
    assert len(RENDERER) <= 128, "the registry's column"
