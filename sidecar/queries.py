"""The routes of queries, /api/v1 alone: the list, one of them, hashes, and which catalogs share one. From the index.

Today's clients send the filter whose hash they want as a form, in the body of a GET. A form has neither types nor
nesting: lists are names repeated, and of a nested object only the names are left. What it means is a known query's
filter that would be sent as that form; without one, what the form says, read plainly.

Who administers every customer sees all queries, an admin those that its customers' catalogs want, staff an empty list.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
from aiohttp import web

from sidecar.contract.index import Query
from sidecar.contract.words import canonical_uuid, query_hash
from sidecar.current import Generation
from sidecar.handlers import ListQuestion, Reads, Route, list_question
from sidecar.intake import raw_query, receive
from sidecar.lookup import Answer
from sidecar.pages import asked_page
from sidecar.parameters import FORM_TYPE, Refusal, fields, pairs
from sidecar.roles import Access, Caller, Gate, caller_of
from sidecar.schemas import (
    ANYTHING,
    DETAIL,
    NUMBER,
    OF_FIELDS,
    REASONS,
    TEXT,
    TEXT_OR_NULL,
    UUID_OR_NULL,
    Body,
    Operation,
    Parameter,
    Schema,
    closed,
    listed,
    one_of,
    opened,
    page,
    pages,
)
from sidecar.schemas import UUID as UUID_TEXT

MAX_PAGE_SIZE: Final = 100
_HASH: Final = re.compile(r"[0-9a-fA-F]{32}")
_HASH_LENGTH: Final = 32
NO_HASH: Final = "You must provide at least one of the following query parameters: hash."
# The largest id that a caller can mean; Python reads longer numbers slowly, or not at all.
_MAX_DIGITS: Final = 18


class QueryQuestion(NamedTuple):
    """Which query, by its id or hash, if this caller may see it."""

    wanted: int | bytes
    caller: Caller


class Form(NamedTuple):
    """A filter as a form: names and texts, in order of both."""

    pairs: tuple[tuple[str, str], ...]


class HashQuestion(NamedTuple):
    """The hash of a filter, or of what a form means among the queries that this caller may see."""

    given: bytes | Form
    caller: Caller


def _ask_list(generation: Generation, question: ListQuestion) -> Answer[Any]:
    queries = registered(generation) if question.caller.customers(Access.ADMIN) is None else []
    page = asked_page(len(queries), question.parameters, max_size=MAX_PAGE_SIZE)
    return Answer(
        {
            **page.head(question.url),
            "results": [record(query) for query in page.cut(queries)],
        },
        None,
    )


async def _query_question(request: web.Request, _: bool) -> QueryQuestion:
    caller, text = caller_of(request), request.match_info["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise Refusal(404, {"detail": "Not found."})
    return QueryQuestion(int(text), caller)


def _ask_query(generation: Generation, question: QueryQuestion) -> Answer[Any]:
    for query in generation.index.queries.values():
        if query.record.id == question.wanted and _seen(generation, query, question.caller):
            return Answer(record(query), None)
    raise Refusal(404, {"detail": "No CatalogQuery matches the given query."})


async def _by_hash_question(request: web.Request, _: bool) -> QueryQuestion:
    caller, text = caller_of(request), dict(pairs(raw_query(request))).get("hash")
    if text is None:
        raise Refusal(400, [NO_HASH])
    if len(text) > _HASH_LENGTH:
        raise Refusal(400, {"hash": [f"Ensure this field has no more than {_HASH_LENGTH} characters."]})
    if _HASH.fullmatch(text) is None:
        raise Refusal(400, {"hash": ["Invalid filter hash." if text else "This field may not be blank."]})
    return QueryQuestion(bytes.fromhex(text), caller)


def _ask_by_hash(generation: Generation, question: QueryQuestion) -> Answer[Any]:
    assert isinstance(question.wanted, bytes)
    query = generation.index.queries.get(question.wanted)
    if query is None or query.record.id is None or not _seen(generation, query, question.caller):
        raise Refusal(404, {"detail": "Catalog query not found."})
    return Answer(record(query), None)


def _seen(generation: Generation, query: Query, caller: Caller) -> bool:
    customers = caller.customers(Access.ADMIN)
    if customers is None:
        return True
    theirs = (c for customer in customers for c in generation.index.of_customer.get(customer, ()))
    return any(catalog.wanted is query for catalog in theirs)


async def _hash_question(request: web.Request, _: bool) -> HashQuestion:
    caller = caller_of(request)
    body = await receive(request)
    content_type = request.headers.get("Content-Type", "")
    if body and content_type.partition(";")[0].strip().lower() == FORM_TYPE:
        return HashQuestion(Form(tuple(sorted(pairs(body.decode(errors="surrogateescape"))))), caller)
    try:
        return HashQuestion(query_hash(fields(content_type, body)), caller)
    except Refusal as refusal:
        if refusal.status == 400 and isinstance(refusal.body, Mapping):
            raise Refusal(400, {"detail": f"Failed to parse catalog query: {refusal.body['detail']}"}) from refusal
        raise
    except RecursionError as error:
        raise Refusal(400, {"detail": "Failed to parse catalog query: nested too deeply"}) from error


def _ask_hash(generation: Generation, question: HashQuestion) -> Answer[Any]:
    given, caller = question
    return Answer((given if isinstance(given, bytes) else _meant(generation, given, caller)).hex(), None)


def _meant(generation: Generation, form: Form, caller: Caller) -> bytes:
    plain: dict[str, Any] = {}
    for name, text in form.pairs:
        before = plain.get(name)
        plain[name] = text if before is None else [*(before if isinstance(before, list) else [before]), text]
    read = query_hash(plain)
    if read in generation.index.queries:
        return read
    for query in registered(generation):
        content_filter = json.loads(query.record.content_filter)
        if isinstance(content_filter, dict) and _sent(content_filter) == form and _seen(generation, query, caller):
            return query.hash
    return read


def _sent(content_filter: Mapping[str, Any]) -> Form:
    """The form that today's clients send of a filter."""
    sent = []
    for name, value in content_filter.items():
        texts = value if isinstance(value, (list, dict)) else [value]
        sent += [(name, str(text)) for text in texts if text is not None]
    return Form(tuple(sorted(sent)))


async def _distinct_question(request: web.Request, _: bool) -> list[str]:
    given = fields(request.headers.get("Content-Type", ""), await request.read())
    if not isinstance(given, Mapping):
        raise Refusal(400, {"detail": f"Invalid data. Expected a dictionary, but got {type(given).__name__}."})
    texts = given.get("enterprise_catalog_uuids", [])
    if not isinstance(texts, list):
        raise Refusal(400, {"detail": "enterprise_catalog_uuids must be a list of catalog uuids."})
    uuids = []
    for text in texts:
        uuid = canonical_uuid(text) if isinstance(text, str) else None
        if uuid is None:
            told = json.dumps(text, ensure_ascii=False)
            raise Refusal(400, {"detail": f"enterprise_catalog_uuids: {told} is not a uuid."})
        uuids.append(uuid)
    return uuids


def _ask_distinct(generation: Generation, uuids: list[str]) -> Answer[Any]:
    known = generation.index.catalogs
    catalogs = [known[uuid] for uuid in dict.fromkeys(uuids) if uuid in known]
    by_id: dict[str, list[str]] = {}
    for catalog in sorted(catalogs, key=lambda c: c.record.number):
        if catalog.wanted.record.id is not None:
            by_id.setdefault(str(catalog.wanted.record.id), []).append(catalog.uuid)
    return Answer({"num_distinct_query_ids": len(by_id), "catalog_uuids_by_catalog_query_id": by_id}, None)


def registered(generation: Generation) -> list[Query]:
    """The queries that have an id, in its order; the others are only served still."""
    numbered = [(q.record.id, q) for q in generation.index.queries.values() if q.record.id is not None]
    return [query for _, query in sorted(numbered, key=lambda row: row[0])]


def record(query: Query) -> dict[str, Any]:
    """A query as the API shows it."""
    row = query.record
    return {
        "uuid": None if row.uuid is None else str(UUID(bytes=row.uuid)),
        "content_filter": orjson.Fragment(row.content_filter),
        "content_filter_hash": query.hash.hex(),
        "title": row.title,
    }


_HASH_TEXT: Final[Schema] = {"type": "string", "pattern": f"^{_HASH.pattern}$"}
QUERY: Final = closed(
    "CatalogQuery",
    {
        "uuid": UUID_OR_NULL,
        "content_filter": ANYTHING,
        "content_filter_hash": _HASH_TEXT,
        "title": TEXT_OR_NULL,
    },
)
_FILTER: Final = Body(
    "The filter. JSON is hashed as it is; of a form, as today's clients send it, what it means is.",
    ANYTHING,
    {"type": "object", "additionalProperties": TEXT},
    required=False,
)
_CATALOGS: Final = Body(
    "The catalogs to look at; unknown ones count for nothing.",
    opened("CatalogUuids", {"enterprise_catalog_uuids": listed(UUID_TEXT)}),
    opened("CatalogUuidsForm", {}, text="A form cannot have a list, and so has none of them."),
    required=False,
)
QUERIES: Final = (
    Route(
        path="/catalog-queries/",
        versions=("v1",),
        formats=("json", "api"),
        name="Catalog Query List",
        description="Viewset for queries of catalogs.",
        gate=Gate(Access.ALL_QUERIES),
        reads=Reads(("GET", "HEAD"), list_question, _ask_list),
        suffixed=True,
        operations={
            "GET": Operation(
                "All queries, or for staff none, in order of creation.",
                {200: page("CatalogQueryPage", QUERY)},
                pages(MAX_PAGE_SIZE),
            )
        },
    ),
    Route(
        path="/catalog-queries/get_query_by_hash/",
        versions=("v1",),
        formats=("json", "api"),
        name="Catalog Query Get Query By Hash",
        description="The query that has a content filter hash.",
        gate=Gate(Access.QUERIES),
        reads=Reads(("GET", "HEAD"), _by_hash_question, _ask_by_hash),
        redirects=False,
        operations={
            "GET": Operation(
                "The query that has a hash.",
                {200: QUERY, 400: one_of(REASONS, OF_FIELDS)},
                (Parameter("hash", "In hexadecimal digits.", _HASH_TEXT, required=True),),
            )
        },
    ),
    Route(
        path="/catalog-queries/get_content_filter_hash/",
        versions=("v1",),
        formats=("json", "api"),
        name="Catalog Query Get Content Filter Hash",
        description="The hash of a content filter.",
        gate=Gate(Access.QUERIES),
        reads=Reads(("GET", "HEAD"), _hash_question, _ask_hash),
        redirects=False,
        operations={
            "GET": Operation("The hash of a filter.", {200: _HASH_TEXT, 400: DETAIL}, body=_FILTER),
        },
    ),
    Route(
        path="/catalog-queries/{id}/",
        versions=("v1",),
        formats=("json", "api"),
        name="Catalog Query Instance",
        description="Viewset for queries of catalogs.",
        gate=Gate(Access.QUERIES),
        reads=Reads(("GET", "HEAD"), _query_question, _ask_query),
        suffixed=True,
        operations={"GET": Operation("One query.", {200: QUERY})},
    ),
    Route(
        path="/distinct-catalog-queries/",
        versions=("v1",),
        formats=("json", "api"),
        name="Distinct Catalog Queries",
        description="How many distinct queries the given catalogs have, and which catalogs share one.",
        gate=Gate(Access.STAFF),
        reads=Reads(("POST",), _distinct_question, _ask_distinct),
        operations={
            "POST": Operation(
                "How many queries some catalogs have, and which share one.",
                {
                    200: closed(
                        "DistinctQueries",
                        {
                            "num_distinct_query_ids": NUMBER,
                            "catalog_uuids_by_catalog_query_id": {
                                "type": "object",
                                "propertyNames": {"pattern": "^[0-9]+$"},
                                "additionalProperties": listed(UUID_TEXT, minItems=1),
                            },
                        },
                    ),
                    400: DETAIL,
                },
                body=_CATALOGS,
            )
        },
    ),
)
