"""The containment routes of /api/v1 and /api/v2: a request becomes a question, the question an answer.

The three questions are at the top, and how any of them is put and answered is below. A question is asked of one index
without awaiting anything, so that a request sees exactly one generation. Headers of every answer:

Allow                   the route's methods.
Cache-Control           no-store: an answer is as good as its generation, and no cache knows when that is over.
X-Catalog-Generation    the generation that was asked, on whatever was found out from it: errors, too.
X-Catalog-Age           whole seconds since the oldest pull that the answer rests on; absent if it rests on none.
Retry-After             seconds, where it cannot be told yet (503).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson
from aiohttp import web

from sidecar.clock import Clock
from sidecar.contract.index import Index
from sidecar.current import Current, Generation
from sidecar.errors import CatalogError, NotReady, UnknownCatalog
from sidecar.health import age_s
from sidecar.lookup import Answer, catalog_contains, catalogs_containing, customer_contains, filter_content_items
from sidecar.parameters import (
    FORM_TYPE,
    JSON_TYPE,
    MULTIPART_TYPE,
    NO_IDS,
    Refusal,
    catalog_uuid,
    customer_uuid,
    filter_body,
    ids,
    negotiate,
    pairs,
)

# A first pull takes seconds to minutes, and so does a start without a disk copy.
RETRY_AFTER_S: Final = 5
# How long a body may take, from its head to its last byte: whoever sends slower holds a connection, and memory.
BODY_S: Final = 10.0
# As nginx counts those who hang up before they have their answer; nobody is there to read it.
CLIENT_GONE: Final = 499

Q = TypeVar("Q")


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


async def _catalog_question(request: web.Request, restricted: bool) -> ContainsQuestion:
    return ContainsQuestion(catalog_uuid(request.match_info["uuid"]), ids(_raw_query(request)).keys, False, restricted)


def _ask_catalog(index: Index, question: ContainsQuestion) -> Answer[Any]:
    if question.keys is None:
        if question.uuid not in index.catalogs:
            raise UnknownCatalog(question.uuid)
        raise Refusal(400, [NO_IDS])
    answer = catalog_contains(index, question.uuid, question.keys, question.restricted)
    return Answer({"contains_content_items": answer.value}, answer.oldest_ms)


async def _customer_question(request: web.Request, restricted: bool) -> ContainsQuestion:
    keys, wants_catalogs = ids(_raw_query(request))
    if keys is None:
        raise Refusal(400, [NO_IDS])
    return ContainsQuestion(customer_uuid(request.match_info["uuid"]), keys, wants_catalogs, restricted)


def _ask_customer(index: Index, question: ContainsQuestion) -> Answer[Any]:
    keys = question.keys or []
    if not question.wants_catalogs:
        found = customer_contains(index, question.uuid, keys, question.restricted)
        return Answer({"contains_content_items": found.value}, found.oldest_ms)
    catalogs = catalogs_containing(index, question.uuid, keys, question.restricted)
    body = {"contains_content_items": bool(catalogs.value), "catalog_list": catalogs.value}
    return Answer(body, catalogs.oldest_ms)


async def _filter_question(request: web.Request, restricted: bool) -> FilterQuestion:
    keys, catalog_uuids = filter_body(request.headers.get("Content-Type", ""), await request.read())
    return FilterQuestion(customer_uuid(request.match_info["uuid"]), keys, catalog_uuids, restricted)


def _ask_filter(index: Index, question: FilterQuestion) -> Answer[Any]:
    kept = filter_content_items(index, *question)
    return Answer({"filtered_content_keys": kept.value}, kept.oldest_ms)


@dataclass(frozen=True, slots=True)
class Route(Generic[Q]):
    """A path, its methods, the formats that today's service has for it, and the two halves of its answer."""

    path: str
    methods: tuple[str, ...]
    formats: tuple[str, ...]
    name: str
    description: str
    question: Callable[[web.Request, bool], Awaitable[Q]]
    ask: Callable[[Index, Q], Answer[Any]]

    @property
    def allow(self) -> str:
        return ", ".join((*self.methods, "OPTIONS"))

    @property
    def options(self) -> bytes:
        """The body of an answer to OPTIONS."""
        parses = [JSON_TYPE, FORM_TYPE, MULTIPART_TYPE]
        return orjson.dumps(
            {"name": self.name, "description": self.description, "renders": [JSON_TYPE], "parses": parses}
        )


ROUTES: Final[tuple[Route[Any], ...]] = (
    Route(
        path="/enterprise-catalogs/{uuid}/contains_content_items/",
        methods=("GET", "HEAD"),
        formats=("json", "xml"),
        name="Contains content items",
        description="Returns whether or not the EnterpriseCatalog contains the specified content.\n\n"
        "Multiple course_run_ids and/or program_uuids query parameters can be sent to this view to check for their\n"
        "existence in the specified enterprise catalog.",
        question=_catalog_question,
        ask=_ask_catalog,
    ),
    Route(
        path="/enterprise-customer/{uuid}/contains_content_items/",
        methods=("GET", "HEAD"),
        formats=("json", "api"),
        name="Contains content items",
        description="Returns whether or not the specified content is available for the given enterprise.",
        question=_customer_question,
        ask=_ask_customer,
    ),
    Route(
        path="/enterprise-customer/{uuid}/filter_content_items/",
        methods=("POST",),
        formats=("json", "api"),
        name="Filter content items",
        description="Returns those of the specified content keys that are in the enterprise's catalogs.",
        question=_filter_question,
        ask=_ask_filter,
    ),
)


class Handler:
    """Answers requests to one route of one version of the API."""

    def __init__(
        self, route: Route[Any], current: Current, clock: Clock, *, restricted: bool, body_s: float = BODY_S
    ) -> None:
        self._route = route
        self._body_s = body_s
        self._current = current
        self._clock = clock
        self._restricted = restricted
        self._headers = {"Content-Type": JSON_TYPE, "Allow": route.allow, "Cache-Control": "no-store"}

    async def answer(self, request: web.Request) -> web.Response:
        generation: Generation | None = None
        try:
            _negotiate(request, self._route.formats)
            if request.method == "OPTIONS":
                return web.Response(body=self._route.options, headers=self._headers)
            if request.method not in self._route.methods:
                raise Refusal(405, {"detail": f'Method "{request.method}" not allowed.'})
            if request.method == "POST":
                await self._receive(request)
            question = await self._route.question(request, self._restricted)
            generation = self._current.generation
            if generation is None:
                raise NotReady("no generation is loaded yet")
            answer = self._route.ask(generation.index, question)
        except Refusal as refusal:
            return self._refused(refusal.status, refusal.body, generation)
        except CatalogError as error:
            return self._refused(error.status, {"detail": _sentence(error)}, generation)
        headers = self._headers | {"X-Catalog-Generation": str(generation.pointer.generation)}
        if answer.oldest_ms is not None:
            headers["X-Catalog-Age"] = str(age_s(answer.oldest_ms, self._clock.now_ms()))
        return web.Response(body=orjson.dumps(answer.value), headers=headers)

    async def _receive(self, request: web.Request) -> None:
        """Waits for the body; `request.read()` has it from then on."""
        encoding = request.headers.get("Content-Encoding")
        if encoding is not None:
            # A compressed body that is cut looks like a short one, and would get a wrong answer.
            raise Refusal(415, {"detail": f'Unsupported content encoding "{encoding}" in request.'})
        try:
            async with asyncio.timeout(self._body_s):
                await request.read()
        except TimeoutError as error:
            raise Refusal(408, {"detail": f"The body did not arrive within {self._body_s:g} s."}) from error
        except OSError as error:
            raise Refusal(CLIENT_GONE, {"detail": "The client has gone."}) from error

    def _refused(self, status: int, body: object, generation: Generation | None) -> web.Response:
        headers = dict(self._headers)
        if generation is not None:
            headers["X-Catalog-Generation"] = str(generation.pointer.generation)
        if status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        # Not orjson: a refusal may quote halves of surrogate pairs, which orjson does not write.
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        response = web.Response(status=status, body=text.encode(errors="replace"), headers=headers)
        if status == 408:
            # What may still come of the body is no next request.
            response.force_close()
        return response


async def redirect(request: web.Request) -> web.Response:
    """Leads from a path without its closing slash to the one with it; the query stays as it was sent."""
    path, question_mark, query = request.raw_path.partition("?")
    headers = {"Location": f"{path}/{question_mark}{query}", "Content-Type": "text/html; charset=utf-8"}
    return web.Response(status=301, headers=headers)


def containment_routes(current: Current, clock: Clock, *, body_s: float = BODY_S) -> list[web.RouteDef]:
    """Every route of this file, for aiohttp's router."""
    definitions = []
    for route in ROUTES:
        # The paths are spelled out for each version: aiohttp finds a route by its fixed beginning.
        for prefix, restricted in (("/api/v1", False), ("/api/v2", True)):
            path = prefix + route.path.replace("{uuid}", "{uuid:[^/.]+}")
            handler = Handler(route, current, clock, restricted=restricted, body_s=body_s)
            definitions.append(web.route("*", path, handler.answer))
            definitions.append(web.route("*", path.removesuffix("/"), redirect))
    return definitions


def _sentence(error: CatalogError) -> str:
    if isinstance(error, UnknownCatalog):
        return "No EnterpriseCatalog matches the given query."
    return f"It cannot be told yet: {error}."


def _negotiate(request: web.Request, formats: tuple[str, ...]) -> None:
    query = _raw_query(request)
    format = dict(pairs(query)).get("format") if "format" in query else None
    negotiate(request.headers.get("Accept"), format, formats)


def _raw_query(request: web.Request) -> str:
    # Not request.query: its parser has turned every plus into a space.
    return request.raw_path.partition("?")[2]
