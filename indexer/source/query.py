"""What a content filter asks of discovery, and the items that the answers make. Pure: no I/O, no clock.

Discovery itself evaluates the filter, so keys and values that our evaluator cannot read are no matter here. Three
things are ours: pseudo-keys are never sent; an emptied list finds nothing, though search/all would lose the key and
answer with everything; and unknown keys are warned of.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson
import zstandard

from indexer.documents import (
    BadDocument,
    Document,
    Item,
    content_key,
    content_type,
    is_let_in,
    item,
    without_restricted,
)
from indexer.filters import (
    PSEUDO_KEYS,
    BadFilter,
    FilterError,
    allowed_restricted_runs,
    compile_filter,
    forced_courses,
)
from indexer.source import SourceError, Unpullable
from sidecar.contract.words import ContentType

V2_FIELDS = frozenset({"sort", "aggregation_uuid"})
"""What /api/v2/ adds to a result: of its paging, not of the content."""


@dataclass(frozen=True, slots=True)
class Query:
    """A content filter, read: the body for search/all, None if nothing can match, and what the pseudo-keys say."""

    body: bytes | None
    allowed: frozenset[str]
    forced: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A search/all document that is let in, as JSON."""

    key: str
    type: ContentType
    text: bytes


def read_query(content_filter: object) -> Query:
    """Reads a content filter. Raises Unpullable if it is no object, or a pseudo-key has another shape."""
    if not isinstance(content_filter, dict):
        raise Unpullable(f"the content filter is {content_filter!r:.80}, and not an object")
    sent = {key: value for key, value in content_filter.items() if key not in PSEUDO_KEYS}
    try:
        allowed = allowed_restricted_runs(content_filter)
        forced = forced_courses(content_filter)
        empty = any(_matches_nothing(key) for key, value in sent.items() if value == [])
    except FilterError as error:
        raise Unpullable(str(error)) from error
    ignored = tuple(name for key, value in sent.items() for name in _ignored(key, value))
    return Query(None if empty else json.dumps(sent).encode(), allowed, forced, ignored)


def forced_body(keys: Iterable[str]) -> bytes:
    """The body for search/all that finds these courses."""
    return json.dumps({"aggregation_key": [f"course:{key}" for key in keys]}).encode()


def read_hit(document: Document) -> tuple[str, Hit | None]:
    """A search/all result by its content key; None for persons and for what is not let in. Raises BadDocument."""
    key = content_key(document)
    if str(document.get("aggregation_key")).startswith("person:") or not is_let_in(document):
        return key, None
    kept = {name: value for name, value in document.items() if name not in V2_FIELDS}
    return key, Hit(key, content_type(document)[0], orjson.dumps(kept))


def hit_alone(key: str, full: bytes) -> Hit | None:
    """A course that search/all does not have, from its compressed full document; None if it is not let in."""
    document = _opened(full)
    known = {
        "key": key,
        "uuid": document.get("uuid"),
        "content_type": "course",
        "aggregation_key": f"course:{key}",
    }
    return Hit(key, ContentType.COURSE, orjson.dumps(known)) if is_let_in({**document, **known}) else None


def items(
    hits: Iterable[Hit], full: Mapping[str, bytes | None], reviews: bytes | None, *, restricted: bool
) -> tuple[Item, ...]:
    """Each hit overlaid by its compressed full document, restricted runs left in or out. Raises SourceError."""
    review_of = {} if reviews is None else _opened(reviews)
    made = []
    for hit in hits:
        search, body = orjson.loads(hit.text), full.get(hit.key)
        document = None if body is None else _opened(body)
        try:
            if not restricted:
                search = without_restricted(search)
                document = None if document is None else without_restricted(document)
            review = review_of.get(hit.key) if hit.type is ContentType.COURSE else None
            made.append(item(search, document, review))
        except (KeyError, TypeError, AttributeError, BadDocument) as error:
            raise SourceError(f"{hit.type.name.lower()} {hit.key!r}: {type(error).__name__}: {error}") from error
    return tuple(made)


def _opened(body: bytes) -> Document:
    document: Document = orjson.loads(zstandard.decompress(body))
    return document


def _matches_nothing(key: str) -> bool:
    """Whether this key with an empty list drops every document. Raises BadFilter if that means nothing."""
    try:
        return not compile_filter({key: []}).matches({})
    except BadFilter:
        raise
    except FilterError:
        return True


def _ignored(key: str, value: object) -> tuple[str, ...]:
    try:
        return compile_filter({key: value}).ignored
    except FilterError:
        return ()
