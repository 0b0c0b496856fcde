"""The body of a catalog as callers send it: read field by field, refused in the words that today's clients know. Pure.

Facts and texts are those of enterprise-catalog's serializer: texts are trimmed, numbers are texts where a text belongs,
unknown fields are ignored, and all that is wrong is named at once.
"""

import json
import math
import reprlib
import uuid as uuids
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidecar.errors import CatalogError

MAX_TEXT: Final = 255
MAX_JSON_DEPTH: Final = 100
MAX_JSON_BYTES: Final = 1024 * 1024

REQUIRED: Final = "This field is required."
NULL: Final = "This field may not be null."
BLANK: Final = "This field may not be blank."
_TRUE: Final = frozenset({"t", "y", "yes", "true", "on", "1"})
_FALSE: Final = frozenset({"f", "n", "no", "false", "off", "0"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A field that cannot be taken: its name, what was given, and what is wrong with it."""

    field: str
    given: object
    text: str

    def __str__(self) -> str:
        return f"{self.field} = {reprlib.repr(self.given)}: {self.text}"


class BadCatalog(CatalogError):
    """Raised when the body of a catalog cannot be taken; names every field that is wrong."""

    status = 400

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems

    @property
    def body(self) -> dict[str, list[str]]:
        """The answer to the request: the texts by field."""
        return {problem.field: [problem.text] for problem in self.problems}


@dataclass(frozen=True, slots=True)
class CatalogBody:
    """A catalog as somebody wants it. `course_modes` is JSON text; `content_filter` any JSON value but null."""

    uuid: str | None
    title: str
    customer: str
    customer_name: str
    course_modes: str
    audit_urls: bool
    content_filter: object
    query_uuid: str | None = None
    query_title: str | None = None


class _Wrong(Exception):
    """Raised while a value is read; its text is the contract's."""


@dataclass(frozen=True, slots=True)
class _Field:
    attribute: str
    read: Callable[[Any], object]
    required: bool = True
    nullable: bool = False


def read_catalog(body: object) -> CatalogBody:
    """The body of a create. Raises BadCatalog."""
    given = read_fields(body, whole=True, new=True)
    return CatalogBody(**{"uuid": None, **given})


def read_fields(body: object, *, whole: bool, new: bool = False) -> dict[str, Any]:
    """The fields that a body gives, by attribute of CatalogBody; `whole`: those that a create needs must be there.

    Only of a `new` catalog the uuid is one of them.

    Raises BadCatalog.
    """
    if not isinstance(body, Mapping):
        text = f"Invalid data. Expected a dictionary, but got {type(body).__name__}."
        raise BadCatalog(Problem("non_field_errors", body, text))
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        if name == "uuid" and not new:
            continue
        if name not in body:
            if whole and field.required:
                problems.append(Problem(name, None, REQUIRED))
        elif body[name] is None:
            if field.nullable:
                values[field.attribute] = None
            else:
                problems.append(Problem(name, None, NULL))
        else:
            try:
                values[field.attribute] = field.read(body[name])
            except _Wrong as wrong:
                problems.append(Problem(name, body[name], str(wrong)))
    if problems:
        raise BadCatalog(*problems)
    return values


def from_form(texts: Mapping[str, Any]) -> dict[str, Any]:
    """The body that a form stands for: where any JSON belongs, its text is JSON. Raises BadCatalog."""
    read = dict(texts)
    for name in ("uuid", "catalog_query_uuid", "query_title"):
        # A form has no null; what may be absent, or null, is so where it is blank.
        if read.get(name) == "":
            if name == "uuid":
                del read[name]
            else:
                read[name] = None
    problems = []
    for name in (name for name in _JSON_FIELDS if name in texts):
        try:
            read[name] = json.loads(texts[name])
        except (ValueError, RecursionError):
            problems.append(Problem(name, texts[name], "Value must be valid JSON."))
    if problems:
        raise BadCatalog(*problems)
    return read


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Wrong("Not a valid string.")
    text = str(value).strip()
    if not text:
        raise _Wrong(BLANK)
    if len(text) > MAX_TEXT:
        raise _Wrong(f"Ensure this field has no more than {MAX_TEXT} characters.")
    if "\0" in text:
        raise _Wrong("Null characters are not allowed.")
    if halves := [c for c in text if "\ud800" <= c <= "\udfff"]:
        raise _Wrong(f"Surrogate characters are not allowed: U+{ord(halves[0]):X}.")
    return text


def _uuid(value: object) -> str:
    try:
        return str(uuids.UUID(hex=value))  # type: ignore[arg-type]
    except (ValueError, AttributeError, TypeError) as error:
        raise _Wrong("Must be a valid UUID.") from error


def _bool(value: object) -> bool:
    word = value.lower() if isinstance(value, str) else "1" if value == 1 else "0" if value == 0 else ""
    if word not in _TRUE | _FALSE:
        raise _Wrong("Must be a valid boolean.")
    return word in _TRUE


def _json(value: object) -> object:
    """Any JSON that everybody can store, hash and read again, however little stack they have."""
    layer, depth = [value], 0
    while layer:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise _Wrong(f"Nested more than {MAX_JSON_DEPTH} levels deep.")
        inner: list[object] = []
        for one in layer:
            if isinstance(one, float) and not math.isfinite(one):
                raise _Wrong(f"{one} is no number of JSON's.")
            if isinstance(one, dict | list):
                inner += one.values() if isinstance(one, dict) else one
        layer = inner
    size = len(json.dumps(value))
    if size > MAX_JSON_BYTES:
        raise _Wrong(f"{size} bytes of JSON; the limit is {MAX_JSON_BYTES}.")
    return value


def _json_text(value: object) -> str:
    return json.dumps(_json(value))


_JSON_FIELDS: Final = ("enabled_course_modes", "content_filter")
_FIELDS: Final[Mapping[str, _Field]] = {
    "uuid": _Field("uuid", _uuid, required=False),
    "title": _Field("title", _text),
    "enterprise_customer": _Field("customer", _uuid),
    "enterprise_customer_name": _Field("customer_name", _text),
    "enabled_course_modes": _Field("course_modes", _json_text),
    "publish_audit_enrollment_urls": _Field("audit_urls", _bool),
    "content_filter": _Field("content_filter", _json),
    "catalog_query_uuid": _Field("query_uuid", _uuid, required=False, nullable=True),
    "query_title": _Field("query_title", _text, required=False, nullable=True),
}
# The attribute of CatalogBody that each field of a body becomes.
ATTRIBUTES: Final[Mapping[str, str]] = {name: field.attribute for name, field in _FIELDS.items()}
