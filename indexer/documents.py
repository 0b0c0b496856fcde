"""Discovery's documents: what is let in, what a document says of its content, and its merged text. Pure.

Facts about shapes and rules of ingest are those of course-discovery's search/all and enterprise-catalog's filter on
what it stores. A document that does not even name itself is refused: a pull is complete or it is nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import orjson

from sidecar.contract.words import ContentType, canonical_uuid

COURSE_TYPES: Final = frozenset(
    [
        "audit",
        "professional",
        "verified-audit",
        "credit-verified-audit",
        "masters",
        "masters-verified-audit",
        "verified",
        "spoc-verified-audit",
        "honor",
        "verified-honor",
        "credit-verified-honor",
        "executive-education-2u",
    ]
)
PRODUCT_SOURCES: Final = frozenset({"2u", "edx"})
MAX_KEY_LENGTH: Final = 255

_TYPES: Final = {
    "course": ContentType.COURSE,
    "courserun": ContentType.COURSE_RUN,
    "program": ContentType.PROGRAM,
    "learnerpathway": ContentType.PATHWAY,
}
Document = Mapping[str, Any]


class BadDocument(Exception):
    """Raised when a document from the source cannot be what it claims to be; names it and what is wrong."""


@dataclass(frozen=True, slots=True)
class Run:
    """A course run as its course's document shows it."""

    key: str
    uuid: str | None
    restricted: bool
    active: bool


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of content as a pull brought it. `text` is its merged document: JSON with sorted keys."""

    key: str
    type: ContentType
    parent: str | None
    uuid: str | None
    restricted: bool
    runs: tuple[Run, ...]
    text: bytes


def is_let_in(search: Document) -> bool:
    """Whether content of this course type and product source belongs into enterprise catalogs at all."""
    source = search.get("product_source")
    slug = source.get("slug") if isinstance(source, Mapping) else source
    if slug is not None and str(slug).lower() not in PRODUCT_SOURCES:
        return False
    course_type = search.get("course_type")
    return search.get("content_type") != "course" or course_type is None or course_type in COURSE_TYPES


def content_key(search: Document) -> str:
    """The content key of a search/all document. Raises BadDocument if it has none that fits."""
    key = search.get("key") or search.get("uuid")
    if not _is_key(key):
        shown = search.get("aggregation_key") or search.get("title")
        raise BadDocument(
            f"document {shown!r}: its key is {key!r}; a text of 1 to {MAX_KEY_LENGTH} characters is needed, without NUL"
        )
    return key


def content_type(search: Document) -> tuple[ContentType, str | None]:
    """The type of a search/all document and the key of a run's course, as its aggregation key says."""
    aggregation_key = search.get("aggregation_key")
    kind, colon, rest = aggregation_key.partition(":") if isinstance(aggregation_key, str) else ("", "", "")
    if kind not in _TYPES or not colon or not _is_key(rest):
        raise BadDocument(f"document {content_key(search)!r}: its aggregation_key is {aggregation_key!r}")
    return _TYPES[kind], rest if kind == "courserun" else None


def item(search: Document, full: Document | None = None, review: Document | None = None) -> Item:
    """What one search/all document, overlaid by its full one, brings. Raises BadDocument if it is none."""
    kind, parent = content_type(search)
    merged = {**search, **full} if full else search
    return Item(
        key=content_key(search),
        type=kind,
        parent=parent,
        uuid=_uuid(merged),
        restricted=bool(search.get("restriction_type")),
        runs=_runs(merged) if kind is ContentType.COURSE else (),
        text=_text({"content": merged, "review": review}, content_key(search)),
    )


def without_restricted(document: Document) -> Document:
    """A course document as a query sees it that allows no restricted runs."""
    return with_runs(document, frozenset())


def with_runs(document: Document, allowed: frozenset[str]) -> Document:
    """A course document without the restricted runs that are not allowed, nor their traces in lists of runs."""
    runs = document.get("course_runs")
    if not isinstance(runs, list) or not any(_is_hidden(r, allowed) for r in runs):
        return document
    kept = [r for r in runs if not _is_hidden(r, allowed)]
    named = [r for r in kept if isinstance(r, Mapping)]
    changed: dict[str, Any] = {"course_runs": kept}
    if "course_run_keys" in document:
        changed["course_run_keys"] = [r.get("key") for r in named]
    if "course_run_statuses" in document:
        changed["course_run_statuses"] = sorted({s for r in named if isinstance(s := r.get("status"), str) and s})
    return {**document, **changed}


def as_forced(document: Document) -> Document:
    """A force-included course as its catalog shows it: every run published and current."""
    found = document.get("course_runs")
    open_ = {"status": "published", "availability": "Current"}
    runs = [{**r, **open_} if isinstance(r, Mapping) else r for r in (found if isinstance(found, list) else ())]
    statuses = ["published"] if runs else []
    return {**document, "course_runs": runs, "course_run_statuses": statuses, "enterprise_force_included": True}


def is_active(run: Document) -> bool:
    """Whether a run makes its course one that pages list: it can be enrolled in, and somebody markets it."""
    published = str(run.get("status") or "").lower() == "published"
    marketed = (published and run.get("is_marketable")) or run.get("is_marketable_external")
    return bool(run.get("is_enrollable") and marketed)


def _is_hidden(run: object, allowed: frozenset[str]) -> bool:
    if not isinstance(run, Mapping) or not run.get("restriction_type"):
        return False
    key = run.get("key")
    return not (isinstance(key, str) and key in allowed)


def _runs(merged: Document) -> tuple[Run, ...]:
    found = []
    for run in merged.get("course_runs") or ():
        key = run.get("key") if isinstance(run, Mapping) else None
        if not _is_key(key):
            raise BadDocument(f"course {content_key(merged)!r}: a run in course_runs has the key {key!r}")
        found.append(Run(key, _uuid(run), bool(run.get("restriction_type")), is_active(run)))
    return tuple(found)


def _is_key(value: object) -> TypeGuard[str]:
    """Whether every database can hold it."""
    return isinstance(value, str) and 0 < len(value) <= MAX_KEY_LENGTH and "\0" not in value


def _uuid(document: Document) -> str | None:
    uuid = document.get("uuid")
    return canonical_uuid(uuid) if isinstance(uuid, str) else None


def _text(document: Document, key: str) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise BadDocument(f"document {key!r} cannot be written as JSON: {error}") from error
