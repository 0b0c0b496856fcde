"""What the API says of a piece of content that discovery does not say: the rules, as functions of a document. Pure.

Upstream is trusted to no shape here. A field that is missing, null or of a wrong type counts as absent, and what is
made of it is null, 0.0, false or empty; a member that no rule is about passes as it is. No rule raises.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

from indexer.documents import Document, is_active
from sidecar.contract.words import ContentType

EXECUTIVE_EDUCATION: Final = "executive-education-2u"
_ENTITLEMENT: Final = "paid-executive-education"
_SEATS: Final = ("verified", "professional", "no-id-professional", "unpaid-executive-education", "audit")
# Upstream's members of these names, should it have any, are not what the names say here.
_OURS: Final = frozenset({"content_last_modified", "enrollment_url", "xapi_activity_id"})


def normalized(kind: ContentType, content: Document, review: object = None) -> dict[str, Any]:
    """A document as all catalogs show it: everything but the members that a catalog has values of its own for."""
    document = {name: value for name, value in content.items() if name not in _OURS}
    document["parent_content_key"] = parent_key(content) if kind is ContentType.COURSE_RUN else None
    if isinstance(content.get("product_source"), str):
        document["product_source"] = {"name": content["product_source"], "slug": None, "description": None}
    if kind is ContentType.COURSE:
        document |= _of_course(content) | _of_review(review)
    if kind is ContentType.PROGRAM:
        courses = content.get("courses")
        document["number_of_courses"] = len(courses) if isinstance(courses, list) else 0
        document["enrollment_url"] = None
    return document


def parent_key(run: Document) -> str | None:
    """The key of a run's course, from its aggregation key."""
    aggregation_key = run.get("aggregation_key")
    if not isinstance(aggregation_key, str):
        return None
    return aggregation_key.partition(":")[2] or None


def runs_of(course: Document) -> list[Document]:
    """The runs in a course's document that are objects."""
    return _objects(course.get("course_runs"))


def advertised_run(course: Document) -> Document | None:
    """The run that the course's document advertises, if it is among its runs."""
    uuid = course.get("advertised_course_run_uuid")
    if not isinstance(uuid, str) or not uuid:
        return None
    return next((run for run in runs_of(course) if run.get("uuid") == uuid), None)


def is_executive(course: Document) -> bool:
    """Whether a course is executive education."""
    return course.get("course_type") == EXECUTIVE_EDUCATION


def sku(course: Document) -> str | None:
    """The sku of the last entitlement to executive education: what today's service enrols with."""
    skus = [e.get("sku") for e in _objects(course.get("entitlements")) if e.get("mode") == _ENTITLEMENT]
    return skus[-1] if skus and isinstance(skus[-1], str) and skus[-1] else None


def run_metadata(course: Document, run: Document) -> dict[str, Any]:
    """Dates and price of a run, in one shape for all kinds of courses."""
    return {
        "start_date": run.get("start"),
        "end_date": run.get("end"),
        "enroll_by_date": run.get("enrollment_end") if is_executive(course) else _enroll_by(run),
        "enroll_start_date": run.get("enrollment_start"),
        "content_price": _price(course, run),
    }


def _of_course(course: Document) -> dict[str, Any]:
    runs, advertised = runs_of(course), advertised_run(course)
    made: dict[str, Any] = {
        "active": any(is_active(run) for run in runs),
        "normalized_metadata": _NO_RUN if advertised is None else run_metadata(course, advertised),
        "normalized_metadata_by_run": {
            run["key"]: run_metadata(course, run) for run in runs if isinstance(run.get("key"), str)
        },
    }
    if isinstance(course.get("programs"), list):
        made["programs"] = [_program(program) for program in course["programs"]]
    return made


_NO_RUN: Final = {
    "start_date": None,
    "end_date": None,
    "enroll_by_date": None,
    "enroll_start_date": None,
    "content_price": 0.0,
}


def _of_review(review: object) -> dict[str, Any]:
    if not isinstance(review, Mapping):
        return {}
    return {name: review[name] for name in ("reviews_count", "avg_course_rating") if name in review}


def _program(program: object) -> object:
    if not isinstance(program, Mapping) or not isinstance(program.get("uuid"), str):
        return program
    return {**program, "aggregation_key": f"program:{program['uuid']}", "content_type": "program"}


def _enroll_by(run: Document) -> str | None:
    seat = _best_seat(run)
    deadline = _text(seat.get("upgrade_deadline_override")) or _text(seat.get("upgrade_deadline"))
    dates = [date for date in (deadline, _text(run.get("enrollment_end"))) if date is not None]
    if len(dates) < 2:
        return dates[0] if dates else None
    first, second = (_instant(date) for date in dates)
    if first is None or second is None:
        return min(dates)
    return dates[0] if first <= second else dates[1]


def _best_seat(run: Document) -> Document:
    """The seat that decides until when one can enrol; a kind that has no place in the order comes after all others."""
    seats = _objects(run.get("seats"))
    order = {kind: place for place, kind in enumerate(_SEATS)}
    return min(seats, key=lambda seat: order.get(_text(seat.get("type")) or "", len(order)), default={})


def _price(course: Document, run: Document) -> float:
    candidates = [run.get("fixed_price_usd")]
    if is_executive(course):
        entitlements = _objects(course.get("entitlements"))
        candidates += [e.get("price") for e in entitlements if e.get("mode") == _ENTITLEMENT]
    candidates.append(run.get("first_enrollable_paid_seat_price"))
    prices = (_number(candidate) for candidate in candidates)
    return next((price for price in prices if price is not None), 0.0)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _instant(text: str) -> datetime | None:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _objects(value: object) -> list[Document]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
