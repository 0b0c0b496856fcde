"""The containment routes of /api/v1 and /api/v2: their three questions, and how each is asked of a generation."""

from typing import Any, Final, NamedTuple

from aiohttp import web

from sidecar.current import Generation
from sidecar.errors import UnknownCatalog
from sidecar.handlers import Reads, Route
from sidecar.intake import raw_query
from sidecar.lookup import Answer, catalog_contains, catalogs_containing, customer_contains, filter_content_items
from sidecar.parameters import NO_IDS, Refusal, catalog_uuid, customer_uuid, filter_body, ids
from sidecar.roles import Access, Caller, Gate, Whose, caller_of, refused
from sidecar.schemas import (
    BOOLEAN,
    CONTAINS,
    DETAIL,
    IDS,
    KEYS,
    REASON,
    REASONS,
    TEXT,
    UUID,
    Body,
    Operation,
    Parameter,
    closed,
    listed,
    one_of,
    opened,
)


class ContainsQuestion(NamedTuple):
    """Whom to ask, which keys (None: none were given), and whether the catalogs that contain them are wanted."""

    uuid: str
    keys: list[str] | None
    wants_catalogs: bool
    restricted: bool


class FilterQuestion(NamedTuple):
    """Which of these keys a customer's catalogs, or the named ones, list."""

    customer: str
    keys: list[str]
    catalog_uuids: list[str]
    restricted: bool
    caller: Caller


async def _catalog_question(request: web.Request, restricted: bool) -> ContainsQuestion:
    return ContainsQuestion(catalog_uuid(request.match_info["uuid"]), ids(raw_query(request)).keys, False, restricted)


def _ask_catalog(generation: Generation, question: ContainsQuestion) -> Answer[Any]:
    index = generation.index
    if question.keys is None:
        if question.uuid not in index.catalogs:
            raise UnknownCatalog(question.uuid)
        raise Refusal(400, [NO_IDS])
    answer = catalog_contains(index, question.uuid, question.keys, question.restricted)
    return Answer({"contains_content_items": answer.value}, answer.oldest_ms)


async def _customer_question(request: web.Request, restricted: bool) -> ContainsQuestion:
    keys, wants_catalogs = ids(raw_query(request))
    if keys is None:
        raise Refusal(400, [NO_IDS])
    return ContainsQuestion(customer_uuid(request.match_info["uuid"]), keys, wants_catalogs, restricted)


def ask_customer(generation: Generation, question: ContainsQuestion) -> Answer[Any]:
    index, keys = generation.index, question.keys or []
    if not question.wants_catalogs:
        found = customer_contains(index, question.uuid, keys, question.restricted)
        return Answer({"contains_content_items": found.value}, found.oldest_ms)
    catalogs = catalogs_containing(index, question.uuid, keys, question.restricted)
    body = {"contains_content_items": bool(catalogs.value), "catalog_list": catalogs.value}
    return Answer(body, catalogs.oldest_ms)


async def _filter_question(request: web.Request, restricted: bool) -> FilterQuestion:
    keys, catalog_uuids = filter_body(request.headers.get("Content-Type", ""), await request.read())
    customer = customer_uuid(request.match_info["uuid"])
    return FilterQuestion(customer, keys, catalog_uuids, restricted, caller_of(request))


def _ask_filter(generation: Generation, question: FilterQuestion) -> Answer[Any]:
    index, (customer, keys, catalog_uuids, restricted, caller) = generation.index, question
    for uuid in catalog_uuids:
        # The path names the customer that the caller was let in for; a body may name anybody's catalogs.
        catalog = index.catalogs.get(uuid)
        if catalog is not None and catalog.customer != customer and not caller.may(Access.LEARNER, catalog.customer):
            raise refused(Access.LEARNER)
    kept = filter_content_items(index, customer, keys, catalog_uuids, restricted)
    return Answer({"filtered_content_keys": kept.value}, kept.oldest_ms)


_FILTER_BODY: Final = Body(
    "The keys to look for, and, if not all of the customer's, the catalogs to look in.",
    opened("FilterContentItems", {"content_keys": KEYS, "catalog_uuids": listed(UUID)}),
    opened(
        "FilterContentItemsForm",
        {"content_keys": TEXT, "catalog_uuids": TEXT},
        text="A text where a list belongs is the list of its characters.",
    ),
    required=False,
)
CATALOG: Final = Route(
    path="/enterprise-catalogs/{uuid}/contains_content_items/",
    formats=("json", "xml"),
    name="Contains content items",
    description="Returns whether or not the EnterpriseCatalog contains the specified content.\n\n"
    "Multiple course_run_ids and/or program_uuids query parameters can be sent to this view to check for their\n"
    "existence in the specified enterprise catalog.",
    reads=Reads(("GET", "HEAD"), _catalog_question, _ask_catalog),
    suffixed=True,
    gate=Gate(Access.LEARNER, Whose.CATALOG),
    operations={
        "GET": Operation("Whether a catalog contains any of the given content.", {200: CONTAINS, 400: REASONS}, IDS)
    },
)
CUSTOMER: Final = Route(
    path="/enterprise-customer/{uuid}/contains_content_items/",
    formats=("json", "api"),
    name="Contains content items",
    description="Returns whether or not the specified content is available for the given enterprise.\n"
    "---\nparameters:\n"
    "    - name: course_run_ids\n"
    "      description: Ids of the course runs to check availability of\n"
    "      paramType: query\n"
    "    - name: program_uuids\n"
    "      description: Uuids of the programs to check availability of\n"
    "      paramType: query\n"
    "    - name: get_catalog_list\n"
    "      description: [Old parameter] Return a list of catalogs in which the course / program is present\n"
    "      paramType: query\n"
    "    - name: get_catalogs_containing_specified_content_ids\n"
    "      description: Return a list of catalogs in which the course / program is present\n"
    "      paramType: query",
    reads=Reads(("GET", "HEAD"), _customer_question, ask_customer),
    suffixed=True,
    gate=Gate(Access.LEARNER, Whose.CUSTOMER),
    operations={
        "GET": Operation(
            "Whether any catalog of a customer contains any of the given content, and which do.",
            {
                200: closed(
                    "CustomerContains",
                    {"contains_content_items": BOOLEAN, "catalog_list": listed(UUID)},
                    optional=("catalog_list",),
                ),
                400: one_of(REASONS, REASON),
            },
            (
                *IDS,
                Parameter(
                    "get_catalogs_containing_specified_content_ids",
                    "Any value but an empty one, `False` too, has the answer name the catalogs.",
                    TEXT,
                ),
                Parameter("get_catalog_list", "The old name of the same.", TEXT),
            ),
        )
    },
)
FILTER: Final = Route(
    path="/enterprise-customer/{uuid}/filter_content_items/",
    formats=("json", "api"),
    name="Filter content items",
    description="Returns those of the specified content keys that are in the enterprise's catalogs.",
    reads=Reads(("POST",), _filter_question, _ask_filter),
    suffixed=True,
    gate=Gate(Access.LEARNER, Whose.CUSTOMER),
    operations={
        "POST": Operation(
            "Those of the given keys that the catalogs of a customer list.",
            {200: closed("FilteredContentItems", {"filtered_content_keys": KEYS}), 400: one_of(DETAIL, REASON)},
            body=_FILTER_BODY,
        )
    },
)
CONTAINMENT: Final = (CATALOG, CUSTOMER, FILTER)
