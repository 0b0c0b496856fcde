"""What a sidecar writes a content document as: its bytes, with one catalog's values in the places. Pure.

No JSON is read here: a document is a list of pieces that are joined in order. What a catalog puts into all documents is
worked out once (`values_of`), and each place takes a few concatenations. Where many documents are sent, they are not
joined: long pieces are sent from where they are, and only short ones become one with their neighbours (`buffers_of`).
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple, Self
from uuid import UUID

import orjson

from sidecar.contract.records import (
    Activity,
    CatalogRecord,
    CustomerRecord,
    Enrollment,
    Marketing,
    Metadata,
    Modified,
    Place,
    RunEnrollment,
)
from sidecar.contract.words import iso_time, slugify
from sidecar.settings import LinksSettings

EXECUTIVE_EDUCATION: Final = "executive-education-2u"
_NO_ENROLLMENT: Final = b',"enrollment_url":null'
_NO_ACTIVITY: Final = b',"xapi_activity_id":null'
_ENROLLMENT: Final = b',"enrollment_url":"'
# To send a piece by itself costs as much as to copy so many bytes, some 50 ns.
JOINED_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Links:
    """The base URLs of links, without a slash at their end; where one is empty, a link that needs it is null."""

    lms: str
    learner_portal: str
    ecommerce: str

    @classmethod
    def of(cls, settings: LinksSettings) -> Self:
        """Those of the settings."""
        return cls(*(url.rstrip("/") for url in (settings.lms, settings.learner_portal, settings.ecommerce)))


class Ends(NamedTuple):
    """A link around what it is of: text as it stands within a JSON string."""

    head: bytes
    tail: bytes


@dataclass(frozen=True, slots=True)
class Values:
    """What one catalog puts into documents; a link is None where it cannot be made.

    With a learner portal, links are of a course's key, and of a run the link to its course goes on with `run`, which is
    around the run. Without one, they are of the key that is enrolled with, and of the sku of executive education.
    """

    modified_ms: int
    utm_source: bytes
    activity: bytes | None
    portal: bool
    course: Ends | None
    run: Ends | None
    executive: Ends | None
    # Other values have another key. Made once, because it is looked up for every document.
    key: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        values = (self.modified_ms, self.utm_source, self.activity, self.portal, self.course, self.run, self.executive)
        object.__setattr__(self, "key", repr(values).encode())


def changed_at_ms(catalog: CatalogRecord, customer: CustomerRecord | None) -> int:
    """When what a catalog puts into documents last changed: with it, all of its documents have."""
    return max(catalog.modified_ms, 0 if customer is None else customer.modified_ms)


@lru_cache(maxsize=1024)
def values_of(catalog: CatalogRecord, customer: CustomerRecord | None, links: Links) -> Values:
    """What a catalog puts into documents; a customer that the LMS does not know has no links to enrol by."""
    utm = f"utm_medium=enterprise&utm_source={slugify(catalog.customer_name)}"
    course = run = executive = None
    if customer is not None and customer.portal:
        course, run, executive = _portal(catalog, customer, links, utm)
    elif customer is not None:
        course, executive = _no_portal(catalog, customer, links, utm)
    return Values(
        modified_ms=changed_at_ms(catalog, customer),
        utm_source=slugify(catalog.customer_name).encode(),
        activity=_text(f"{links.lms}/xapi/activities/") if links.lms else None,
        portal=customer is not None and customer.portal,
        course=course,
        run=run,
        executive=executive,
    )


def written(metadata: Metadata, modified_ms: int, values: Values | None, *, urls: bool = True) -> list[bytes]:
    """The pieces of a document's JSON, in order; without values as no catalog shows it, without urls null for links.

    `modified_ms` is when the content last changed: a catalog or customer that changed later counts instead.
    """
    if values is None:
        return [part if isinstance(part, bytes) else _bare(part, modified_ms) for part in metadata.parts]
    latest_ms = max(modified_ms, values.modified_ms)
    return [part if isinstance(part, bytes) else _filled(part, latest_ms, values, urls) for part in metadata.parts]


def buffers_of(metadata: Metadata, modified_ms: int, values: Values | None) -> tuple[bytes, ...]:
    """What `written` gives and a comma, as few buffers; the long ones are the record's own."""
    buffers: list[bytes] = []
    short: list[bytes] = []
    for piece in (*written(metadata, modified_ms, values), b","):
        if len(piece) < JOINED_BYTES:
            short.append(piece)
            continue
        if short:
            buffers.append(b"".join(short))
            short.clear()
        buffers.append(piece)
    if short:
        buffers.append(b"".join(short))
    return tuple(buffers)


def _filled(place: Place, modified_ms: int, values: Values, urls: bool) -> bytes:
    match place:
        case RunEnrollment():
            return _run_enrollment(place, values) if urls else b""
        case Modified():
            return _time(modified_ms)
        case Marketing():
            return b'"%b%b%b"' % (place.head, values.utm_source, place.tail)
        case Activity():
            if values.activity is None:
                return _NO_ACTIVITY
            return b',"xapi_activity_id":"%b%b"' % (values.activity, place.activity)
        case Enrollment():
            return _enrollment(place, values) if urls else _NO_ENROLLMENT


def _bare(place: Place, modified_ms: int) -> bytes:
    match place:
        case Modified():
            return _time(modified_ms)
        case Marketing():
            return b'"%b"' % place.plain
    return b""


@lru_cache(maxsize=1024)
def _time(modified_ms: int) -> bytes:
    """A time as a JSON string; the documents of a catalog that are older than it all show the same."""
    return b'"%b"' % iso_time(modified_ms).encode()


def _enrollment(place: Enrollment, values: Values) -> bytes:
    if place.executive:
        name = place.course if values.portal else place.sku
        return _NO_ENROLLMENT if name is None else _link(values.executive, name)
    if not values.portal:
        return _link(values.course, place.target)
    return _link(values.course, place.course) if place.run is None else _run_link(values, place.course, place.run)


def _run_enrollment(place: RunEnrollment, values: Values) -> bytes:
    link = _run_link(values, place.course, place.run) if values.portal else _link(values.course, place.target)
    return b'%b,"parent_content_key":"%b"' % (link, place.course)


def _link(ends: Ends | None, name: bytes) -> bytes:
    return _NO_ENROLLMENT if ends is None else b'%b%b%b%b"' % (_ENROLLMENT, ends.head, name, ends.tail)


def _run_link(values: Values, course: bytes, run: bytes) -> bytes:
    if values.course is None or values.run is None:
        return _NO_ENROLLMENT
    head, tail = values.run
    return b'%b%b%b%b%b%b"' % (_ENROLLMENT, values.course.head, course, head, run, tail)


def _portal(
    catalog: CatalogRecord, customer: CustomerRecord, links: Links, utm: str
) -> tuple[Ends | None, Ends | None, Ends | None]:
    if not links.learner_portal:
        return None, None, None
    base, audit = f"{links.learner_portal}/{customer.slug}", _audit(catalog)
    return (
        _ends(f"{base}/course/", f"?{audit}{utm}"),
        _ends(f"?{audit}course_run_key=", f"&{utm}"),
        _ends(f"{base}/{EXECUTIVE_EDUCATION}/course/", f"?{audit}{utm}"),
    )


def _no_portal(
    catalog: CatalogRecord, customer: CustomerRecord, links: Links, utm: str
) -> tuple[Ends | None, Ends | None]:
    if not links.lms:
        return None, None
    base, audit = f"{links.lms}/enterprise", _audit(catalog)
    course = _ends(
        f"{base}/{UUID(bytes=customer.uuid)}/course/", f"/enroll/?{audit}catalog={UUID(bytes=catalog.uuid)}&{utm}"
    )
    if not links.ecommerce:
        return course, None
    # What follows `next` is a url of its own, and not escaped: that is how the LMS is sent it today.
    checkout = f"{links.ecommerce}/{EXECUTIVE_EDUCATION}/checkout?{audit}sku="
    return course, _ends(f"{base}/proxy-login/?enterprise_slug={customer.slug}&next={checkout}", f"&{utm}")


def _audit(catalog: CatalogRecord) -> str:
    return "audit=true&" if catalog.audit_urls else ""


def _ends(head: str, tail: str) -> Ends:
    return Ends(_text(head), _text(tail))


def _text(text: str) -> bytes:
    """Text as it stands within a JSON string."""
    return orjson.dumps(text)[1:-1]
