"""From a document's text to its metadata object, and to the ones that differ for a query. Pure.

A document is the bytes that all catalogs share, cut where a catalog has a value of its own; what those values are made
of lies in the places between. RENDERER names everything that a rendered byte depends on: if it changes, every document
is rendered again.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs, quote_plus, urlencode, urlsplit, urlunsplit

import orjson
import zstandard

from indexer.documents import Document, as_forced, with_runs
from indexer.normalize import advertised_run, is_executive, normalized, parent_key, sku
from sidecar.contract.objects import FORMAT_VERSION, ZSTD_LEVEL, Sealed
from sidecar.contract.records import (
    Activity,
    Enrollment,
    Marketing,
    Metadata,
    Modified,
    Part,
    RunEnrollment,
    seal_record,
)
from sidecar.contract.words import ContentType

RENDERER: Final = (
    f"2/format-{FORMAT_VERSION}/orjson-{orjson.__version__}"
    f"/zstd-{'.'.join(map(str, zstandard.ZSTD_VERSION))}-{ZSTD_LEVEL}"
)
_MEDIUM: Final = "enterprise"


def render(key: str, kind: ContentType, text: bytes) -> Sealed:
    """The metadata object of a stored document's text."""
    return seal_record(metadata_of(key, kind, *_opened(text)))


def render_for_query(
    key: str, kind: ContentType, text: bytes, allowed: frozenset[str] = frozenset(), *, forced: bool = False
) -> Sealed:
    """The metadata object that a query's catalogs show instead: allowed restricted runs kept, forced ones as open."""
    content, review = _opened(text)
    content = with_runs(content, allowed)
    return seal_record(metadata_of(key, kind, as_forced(content) if forced else content, review))


def metadata_of(key: str, kind: ContentType, content: Document, review: object = None) -> Metadata:
    """The metadata of merged content and, of a course, its review."""
    document = normalized(kind, content, review)
    return Metadata(key, kind, tuple(_joined(_document(key, kind, document))))


def _opened(text: bytes) -> tuple[Document, object]:
    document = orjson.loads(text)
    return document["content"], document.get("review")


def _document(key: str, kind: ContentType, document: dict[str, Any]) -> Iterator[Part]:
    """The parts in order, with those first that every document has: a place that is a member begins with a comma."""
    marketing = None if kind is ContentType.PATHWAY else _marketing(document.get("marketing_url"))
    nested = _nests_urls(kind, document)
    apart = ({"marketing_url"} if marketing else set()) | ({"course_runs"} if nested else set())
    yield b'{"content_last_modified":'
    yield Modified()
    yield b"," + _json({name: value for name, value in document.items() if name not in apart})[1:-1]
    if marketing:
        yield b',"marketing_url":'
        yield marketing
    if nested:
        yield b',"course_runs":['
        yield from _runs(key, document["course_runs"])
        yield b"]"
    yield from _own(key, kind, document)
    yield b"}"


def _own(key: str, kind: ContentType, document: Document) -> Iterator[Part]:
    """The places of the members that only courses and runs have."""
    if kind is ContentType.COURSE:
        advertised = advertised_run(document) or {}
        target = advertised.get("key")
        executive = is_executive(document)
        code = sku(document) if executive else None
        yield Activity(_text(f"course/{key}"))
        yield Enrollment(
            executive=executive,
            course=_text(key),
            run=None,
            target=_text(target if isinstance(target, str) and target else key),
            sku=None if code is None else _value(code),
        )
    if kind is ContentType.COURSE_RUN:
        parent = parent_key(document)
        yield Activity(_text(f"courserun/{key}"))
        # A run is never executive education, even where its course is: that is enrolled in by the course.
        yield Enrollment(
            executive=False,
            course=_text(parent or key),
            run=_value(key) if parent else None,
            target=_text(key),
            sku=None,
        )


def _nests_urls(kind: ContentType, document: Document) -> bool:
    runs = document.get("course_runs")
    return kind is ContentType.COURSE and not is_executive(document) and isinstance(runs, list) and bool(runs)


def _runs(course: str, runs: Iterable[Any]) -> Iterator[Part]:
    between = b""
    for run in runs:
        yield between
        between = b","
        key = run.get("key") if isinstance(run, dict) else None
        if not isinstance(key, str) or not key:
            yield _json(run)
            continue
        shown = {name: value for name, value in run.items() if name not in ("enrollment_url", "parent_content_key")}
        yield _json(shown)[:-1]
        yield RunEnrollment(course=_text(course), run=_value(key), target=_text(key))
        yield b"}"


def _marketing(url: object) -> Marketing | None:
    """The place of a url with its parameters as today's service writes them: blank ones dropped, sorted by name."""
    if not isinstance(url, str) or not url:
        return None
    try:
        scheme, host, path, query, fragment = urlsplit(url)
    except ValueError:
        return None
    parameters = parse_qs(query)
    before = {name: values for name, values in parameters.items() if name < "utm_source"} | {"utm_medium": [_MEDIUM]}
    after = {name: values for name, values in parameters.items() if name > "utm_source"}
    head = urlunsplit((scheme, host, path, _query(before), "")) + "&utm_source="
    tail = ("&" + _query(after) if after else "") + ("#" + fragment if fragment else "")
    return Marketing(plain=_text(url), head=_text(head), tail=_text(tail))


def _query(parameters: dict[str, list[str]]) -> str:
    return urlencode(sorted(parameters.items()), doseq=True)


def _joined(parts: Iterable[Part]) -> Iterator[Part]:
    """The same parts with no two neighbours that are bytes."""
    pending: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            pending.append(part)
            continue
        yield b"".join(pending)
        yield part
        pending = []
    yield b"".join(pending)


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _text(text: str) -> bytes:
    """Text as it stands within a JSON string."""
    return orjson.dumps(text)[1:-1]


def _value(text: str) -> bytes:
    """Text as the value of a parameter of a query, as it stands within a JSON string."""
    return quote_plus(text).encode()
