"""What a caller asked, taken from the text of a request: query string, body, Accept. Pure; knows no index, no server.

The rules are those of the API that today's clients were written against, oddities included; what cannot be understood
is a Refusal with the status and the body that the caller gets.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from email import policy
from email.parser import BytesParser
from typing import Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes
from uuid import UUID

import orjson

from sidecar.contract.words import canonical_uuid

NO_IDS: Final = "You must provide at least one of the following query parameters: course_run_ids, program_uuids."
JSON_TYPE: Final = "application/json"
FORM_TYPE: Final = "application/x-www-form-urlencoded"
MULTIPART_TYPE: Final = "multipart/form-data"
XML_TYPE: Final = "application/xml"
MAX_GENERATION_DIGITS: Final = 18
Format = Literal["json", "xml"]
_RUN_IDS: Final = b"course_run_ids="
_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")


class Refusal(Exception):
    """Raised when a request cannot be understood or granted: the HTTP status, and the JSON value of the body."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class Ids(NamedTuple):
    """The parameters of a containment question; `keys` is None if neither list of ids was given at all."""

    keys: list[str] | None
    wants_catalogs: bool


class State(NamedTuple):
    """The state that a caller knows of, and wants to be answered from, or from a later one."""

    least: int
    task: UUID | None


class Filter(NamedTuple):
    """The body of a filter question; no catalog uuids mean all catalogs of the customer."""

    keys: list[str]
    catalog_uuids: list[str]


def ids(raw_query: str) -> Ids:
    """Both lists of ids are one union. A comma separates ids, because no content key has one."""
    raw = raw_query.encode(errors="surrogateescape")
    if raw.startswith(_RUN_IDS):
        joined = raw[len(_RUN_IDS) :].replace(b"&" + _RUN_IDS, b",")
        if b"&" not in joined:
            # Nothing else is asked, and whole baskets are: a comma is as good as another parameter.
            return Ids(_decoded(joined).split(","), False)
    keys: list[str] = []
    given = False
    last: dict[str, str] = {}
    for name, value in pairs(raw_query):
        if name == "course_run_ids" or name == "program_uuids":
            given = True
            keys += value.split(",")
        else:
            last[name] = value
    wants = last.get("get_catalogs_containing_specified_content_ids") or last.get("get_catalog_list")
    return Ids(keys if given else None, bool(wants))


def wanted_state(min_generation: str | None, after_task: str | None) -> State:
    """What the headers X-Min-Generation and X-After-Task ask for."""
    least, task = min_generation or "0", None
    if not (least.isascii() and least.isdigit() and len(least) <= MAX_GENERATION_DIGITS):
        raise Refusal(400, {"detail": f"X-Min-Generation: {least!r} is not the number of a generation."})
    if after_task:
        canonical = canonical_uuid(after_task)
        if canonical is None:
            raise Refusal(400, {"detail": f"X-After-Task: {after_task!r} is not the id of a pull."})
        task = UUID(canonical)
    return State(int(least), task)


def pairs(raw_query: str) -> list[tuple[str, str]]:
    """Names and values, percent-decoded. A plus is a space, except in course_run_ids: callers do not escape it."""
    found = []
    # Bytes that are not UTF-8 arrive as surrogates, and leave as the replacement character.
    for piece in raw_query.encode(errors="surrogateescape").split(b"&"):
        if piece:
            raw_name, _, raw_value = piece.partition(b"=")
            name = _decoded(raw_name.replace(b"+", b" "))
            found.append((name, _decoded(raw_value if name == "course_run_ids" else raw_value.replace(b"+", b" "))))
    return found


def _decoded(raw: bytes) -> str:
    if b"%" in raw:
        # The two that keys are full of go first, ten times as fast. Neither makes a new escape with what is around it.
        raw = raw.replace(b"%3A", b":").replace(b"%2B", b"+")
        if b"%" in raw:
            raw = unquote_to_bytes(raw)
    return raw.decode(errors="replace")


def customer_uuid(text: str) -> str:
    """The customer's uuid in its one form."""
    uuid = canonical_uuid(text)
    if uuid is None:
        # The spelling is part of the contract.
        raise Refusal(400, f'Error: invalid enterprice customer uuid: "{text}" provided.')
    return uuid


def catalog_uuid(text: str) -> str:
    """The catalog's uuid in its one form."""
    uuid = canonical_uuid(text)
    if uuid is None:
        raise Refusal(404, {"detail": "Not found."})
    return uuid


def filter_body(content_type: str, body: bytes) -> Filter:
    """The question in the body of filter_content_items. A text where a list belongs is the list of its characters."""
    given = fields(content_type, body)
    if not isinstance(given, Mapping):
        raise Refusal(400, {"detail": f"Invalid data. Expected a dictionary, but got {_kind(given)}."})
    keys = given.get("content_keys", [])
    if not isinstance(keys, (list, str, dict)) or any(isinstance(key, (list, dict)) for key in keys):
        raise Refusal(400, {"detail": "content_keys must be a list of content keys."})
    uuids = given.get("catalog_uuids") or []
    if not isinstance(uuids, (list, str, dict)):
        raise Refusal(400, {"detail": "catalog_uuids must be a list of catalog uuids."})
    catalogs = []
    for text in uuids:
        uuid = canonical_uuid(text) if isinstance(text, str) else None
        if uuid is None:
            raise Refusal(400, {"detail": f"catalog_uuids: {json.dumps(text, ensure_ascii=False)} is not a uuid."})
        catalogs.append(uuid)
    return Filter([key for key in keys if isinstance(key, str)], catalogs)


def fields(content_type: str, body: bytes) -> object:
    """The value of a body of any kind that is taken: JSON, or the texts of a form by name. An empty one is {}."""
    if not body:
        return {}
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON_TYPE:
        return parse_json(body)
    if media_type == FORM_TYPE:
        return {
            _decoded(name.replace(b"+", b" ")): _decoded(value.replace(b"+", b" "))
            for name, _, value in (piece.partition(b"=") for piece in body.split(b"&"))
        }
    if media_type == MULTIPART_TYPE:
        return _multipart(content_type, body)
    raise Refusal(415, {"detail": f'Unsupported media type "{content_type}" in request.'})


def parse_json(body: bytes) -> Any:
    """The value of a JSON body; what is wrong with it is said in the words of Python's json module."""
    # orjson makes an integer beyond 64 bits a float, and the hash of a filter that has one would be another.
    if not _LONG_NUMBER.search(body):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(body)
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except ValueError as error:
        raise Refusal(400, {"detail": f"JSON parse error - {error}"}) from error
    except RecursionError as error:
        raise Refusal(400, {"detail": "JSON parse error - nested too deeply"}) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"Out of range float values are not JSON compliant: {name!r}")


def _multipart(content_type: str, body: bytes) -> dict[str, str]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode(errors="surrogateescape")
    message = BytesParser(policy=policy.HTTP).parsebytes(head + body)
    boundary = message.get_boundary()
    if not message.is_multipart() or boundary is None:
        raise Refusal(400, {"detail": f"Multipart form parse error - Invalid boundary in multipart: {boundary}"})
    fields = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        value = part.get_payload(decode=True)
        if isinstance(name, str) and part.get_filename() is None and isinstance(value, bytes):
            fields[name] = value.decode(errors="replace")
    return fields


def _kind(value: object) -> str:
    return type(value).__name__


def negotiate(accept: str | None, format: str | None, formats: tuple[str, ...]) -> Format:
    """Whether an answer is JSON or XML, by the formats of its route, `format` in the query string, and Accept.

    Accept counts by its media ranges alone, the narrower ones first; of what is equal JSON is preferred, whatever the
    weights say. Refuses what neither can satisfy.
    """
    if format and format not in formats:
        raise Refusal(404, {"detail": "Not found."})
    offered: list[tuple[Format, str]] = [("json", JSON_TYPE)]
    if "xml" in formats:
        offered.append(("xml", XML_TYPE))
    offered = [(name, media_type) for name, media_type in offered if format in (None, "", name)]
    ranges = [_media_range(part) for part in accept.split(",")] if accept else [(0, "*/*")]
    for width in sorted({width for width, _ in ranges}, reverse=True):
        for name, media_type in offered:
            wider = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
            if any(one in wider for its_width, one in ranges if its_width == width):
                return name
    raise Refusal(406, {"detail": "Could not satisfy the request Accept header."})


def _media_range(text: str) -> tuple[int, str]:
    """How narrow a media range of an Accept header is, and which it is."""
    media_type, *parameters = (piece.strip().lower() for piece in text.split(";"))
    if media_type == "*/*":
        return 0, media_type
    if media_type.endswith("/*"):
        return 1, media_type
    return (2 if all(parameter.startswith("q=") for parameter in parameters) else 3), media_type
