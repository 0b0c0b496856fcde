"""The routes of catalogs, /api/v1 alone: the list and one of them from the index; what changes them is forwarded.

A record tells the query that its catalog wants, and when the content of the one that it serves last changed. That is
something that pulls found out, so an answer is as old as the oldest pull among the queries that its catalogs serve.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from aiohttp import web

from sidecar.contract.index import Catalog
from sidecar.contract.words import canonical_uuid, iso_time
from sidecar.current import Generation
from sidecar.errors import UnknownCatalog
from sidecar.handlers import ListQuestion, Reads, Route, list_question
from sidecar.intake import raw_query
from sidecar.lookup import Answer
from sidecar.pages import asked_page
from sidecar.parameters import Refusal, catalog_uuid, pairs
from sidecar.roles import Access, Gate, Whose
from sidecar.schemas import (
    DETAIL,
    OF_FIELDS,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    TIME_OR_NULL,
    UUID_OR_NULL,
    Body,
    Operation,
    Parameter,
    Schema,
    closed,
    one_of,
    opened,
    pages,
    short_page,
)
from sidecar.schemas import UUID as UUID_TEXT

# What a list of all catalogs was asked for with, and what one answer may cost the others.
MAX_PAGE_SIZE: Final = 1_000


class CatalogQuestion(NamedTuple):
    """Which catalog, and whose it must be."""

    uuid: str
    parameters: dict[str, str]


def _ask_list(generation: Generation, question: ListQuestion) -> Answer[Any]:
    parameters, url, caller = question
    customer, theirs = _customer(parameters), caller.customers(Access.PROVISIONING)
    catalogs = generation.catalogs if customer is None else generation.index.of_customer.get(customer, ())
    if theirs is not None:
        catalogs = tuple(catalog for catalog in catalogs if catalog.customer in theirs)
    page = asked_page(len(catalogs), parameters, max_size=MAX_PAGE_SIZE)
    shown = page.cut(catalogs)
    records = [record(catalog) for catalog in shown]
    body = {"count": page.count, "next": page.next(url), "previous": page.previous(url), "results": records}
    return Answer(body, _oldest_ms(shown))


async def _catalog_question(request: web.Request, _: bool) -> CatalogQuestion:
    return CatalogQuestion(catalog_uuid(request.match_info["uuid"]), dict(pairs(raw_query(request))))


def _ask_catalog(generation: Generation, question: CatalogQuestion) -> Answer[Any]:
    catalog = generation.index.catalogs.get(question.uuid)
    # In this order: whether there is such a catalog is told before what is wrong with the question.
    if catalog is None or _customer(question.parameters) not in (None, catalog.customer):
        raise UnknownCatalog(question.uuid)
    return Answer(record(catalog), _oldest_ms([catalog]))


def _customer(parameters: dict[str, str]) -> str | None:
    """The customer whose catalogs are meant; None: any."""
    text = parameters.get("enterprise_customer")
    if not text:
        return None
    uuid = canonical_uuid(text)
    if uuid is None:
        raise Refusal(400, {"enterprise_customer": ["Must be a valid UUID."]})
    return uuid


def record(catalog: Catalog) -> dict[str, str | None]:
    """A catalog as the API shows it."""
    row, wanted, serving = catalog.record, catalog.wanted.record, catalog.serving
    modified_ms = None if serving is None else serving.modified_ms
    return {
        "uuid": catalog.uuid,
        "title": row.title,
        "enterprise_customer": catalog.customer,
        "catalog_query_uuid": None if wanted.uuid is None else str(UUID(bytes=wanted.uuid)),
        "content_last_modified": None if modified_ms is None else iso_time(modified_ms),
        "catalog_modified": iso_time(row.modified_ms),
        "query_title": wanted.title,
    }


def _oldest_ms(catalogs: Sequence[Catalog]) -> int | None:
    pulls_ms = (c.serving.pulled_at_ms for c in catalogs if c.serving is not None)
    return min((ms for ms in pulls_ms if ms is not None), default=None)


def _field(kind: str, label: str, *, required: bool = False, read_only: bool = False) -> dict[str, str | bool | int]:
    return {"type": kind, "required": required, "read_only": read_only, "label": label}


# As today's service tells them, but for `catalog_modified`, which is taken from nobody here.
FIELDS: Final[Mapping[str, Mapping[str, str | bool | int]]] = {
    "uuid": _field("string", "Uuid", read_only=True),
    "title": _field("string", "Title", required=True) | {"max_length": 255},
    "enterprise_customer": _field("string", "Enterprise customer", required=True),
    "enterprise_customer_name": _field("string", "Enterprise customer name", required=True),
    "enabled_course_modes": _field("field", "Enabled course modes", required=True),
    "publish_audit_enrollment_urls": _field("boolean", "Publish audit enrollment urls", required=True),
    "content_filter": _field("field", "Content filter", required=True),
    "catalog_query_uuid": _field("string", "Catalog query uuid"),
    "content_last_modified": _field("field", "Content last modified", read_only=True),
    "catalog_modified": _field("datetime", "Catalog modified", read_only=True),
    "query_title": _field("string", "Query title"),
}
CATALOG: Final = closed(
    "Catalog",
    {
        "uuid": UUID_TEXT,
        "title": TEXT,
        "enterprise_customer": UUID_TEXT,
        "catalog_query_uuid": UUID_OR_NULL,
        "content_last_modified": {**TIME_OR_NULL, "description": "The latest among its members."},
        "catalog_modified": TIME,
        "query_title": TEXT_OR_NULL,
    },
)
_TITLE: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 255}
_ANY_BUT_NULL: Final[Schema] = {"type": ["object", "array", "string", "number", "boolean"]}
# What a put, a patch and a create give; a create may say its uuid.
_GIVEN: Final[Mapping[str, Schema]] = {
    "title": _TITLE,
    "enterprise_customer": UUID_TEXT,
    "enterprise_customer_name": _TITLE,
    "enabled_course_modes": {**_ANY_BUT_NULL, "description": "Stored, and without effect."},
    "publish_audit_enrollment_urls": {
        "anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}],
        "description": "A boolean, or one as a text.",
    },
    "content_filter": {**_ANY_BUT_NULL, "description": "One that is not an object can never be pulled."},
    "catalog_query_uuid": {
        **UUID_OR_NULL,
        "description": "A known one changes that query, which other catalogs may share.",
    },
    "query_title": {**_TITLE, "type": ["string", "null"], "description": "Unique among queries."},
}
_REQUIRED: Final = tuple(name for name in _GIVEN if name not in ("catalog_query_uuid", "query_title"))


def _catalog_body(title: str, members: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Body:
    return Body(
        "The fields of a catalog; others are ignored.",
        opened(title, members, required=required),
        opened(
            f"{title}Form",
            dict.fromkeys(members, TEXT),
            required=required,
            text="`content_filter` and `enabled_course_modes` are JSON; what may be null is so where it is blank.",
        ),
        required=bool(required),
    )


# What can be wrong with a body: as a whole, in its fields, or beside other queries.
_REFUSED: Final = one_of(DETAIL, OF_FIELDS, closed("QueryClash", {"catalog_query": TEXT}))
_OF_CUSTOMER: Final = Parameter(
    "enterprise_customer", "The customer whose catalogs are meant; what is another's is not found.", UUID_TEXT
)
CATALOGS: Final = (
    Route(
        path="/enterprise-catalogs/",
        versions=("v1",),
        formats=("json", "api"),
        name="Enterprise Catalog Crud List",
        description="Viewset for CRUD operations on Enterprise Catalogs",
        reads=Reads(("GET", "HEAD"), list_question, _ask_list),
        writes=("POST",),
        suffixed=True,
        fields={**FIELDS, "uuid": _field("string", "Uuid")},
        gate=Gate(Access.PROVISIONING, Whose.NOBODY, {"GET": Access.LISTING, "HEAD": Access.LISTING}),
        operations={
            "GET": Operation(
                "The catalogs that the caller may see, in order of creation.",
                {200: short_page("CatalogPage", CATALOG), 400: OF_FIELDS},
                (_OF_CUSTOMER, *pages(MAX_PAGE_SIZE)),
            ),
            "POST": Operation(
                "Makes a catalog; the same body again changes nothing.",
                {200: CATALOG, 201: CATALOG, 400: _REFUSED, 409: DETAIL},
                body=_catalog_body("NewCatalog", {"uuid": UUID_TEXT, **_GIVEN}, _REQUIRED),
            ),
        },
    ),
    Route(
        path="/enterprise-catalogs/{uuid}/",
        versions=("v1",),
        formats=("json", "xml"),
        name="Enterprise Catalog Crud Instance",
        description="Viewset for CRUD operations on Enterprise Catalogs",
        reads=Reads(("GET", "HEAD"), _catalog_question, _ask_catalog),
        writes=("PUT", "PATCH", "DELETE"),
        suffixed=True,
        fields=FIELDS,
        # What is no change that those may make who set customers up is an admin's, as it has always been.
        gate=Gate(Access.PROVISIONING, Whose.CATALOG, dict.fromkeys(("DELETE", "POST", "OPTIONS"), Access.ADMIN)),
        operations={
            "GET": Operation("One catalog.", {200: CATALOG, 400: OF_FIELDS}, (_OF_CUSTOMER,)),
            "PUT": Operation(
                "Gives a catalog all values anew.",
                {200: CATALOG, 400: _REFUSED},
                (_OF_CUSTOMER,),
                _catalog_body("WholeCatalog", _GIVEN, _REQUIRED),
            ),
            "PATCH": Operation(
                "Gives a catalog some values.",
                {200: CATALOG, 400: _REFUSED},
                (_OF_CUSTOMER,),
                _catalog_body("SomeOfACatalog", _GIVEN),
            ),
            "DELETE": Operation("Takes a catalog away.", {204: None, 400: OF_FIELDS}, (_OF_CUSTOMER,)),
        },
    ),
    Route(
        path="/enterprise-catalogs/{uuid}/refresh_metadata/",
        versions=("v1",),
        formats=("json", "api"),
        name="Enterprise Catalog Refresh Data From Discovery",
        description="View to update metadata in Catalog with most recent data from Discovery service",
        writes=("POST",),
        redirects=False,
        gate=Gate(Access.ADMIN, Whose.CATALOG),
        operations={
            "POST": Operation(
                "Asks for a pull of a catalog's content, or joins the one under way.",
                {200: closed("Task", {"async_task_id": UUID_TEXT}), 400: OF_FIELDS},
                (_OF_CUSTOMER,),
            )
        },
    ),
)
