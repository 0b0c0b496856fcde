"""How the routes of the API answer: a question is put to one index, a write is forwarded. What is asked is elsewhere.

A question is asked of one generation without awaiting anything, so that a request sees exactly one. A request may
name a state that its sender knows of: a generation (X-Min-Generation), or the pull of a task (X-After-Task). It is then
answered from that state or a later one, and waits for it for a while. Headers of every answer:

Allow                   the route's methods.
Cache-Control           no-store: an answer is as good as its generation, and no cache knows when that is over.
X-Catalog-Generation    the generation that was asked, on whatever was found out from it: errors, too. Of a write: the
                        one that shows it.
X-Catalog-Age           whole seconds since the oldest pull that the answer rests on; absent if it rests on none.
X-Catalog-Published     pending: the write was made, and no generation that shows it is served here yet.
Retry-After             seconds, where it cannot be told, or done, yet (503).
WWW-Authenticate        which credentials are taken (401).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import orjson
from aiohttp import web

from sidecar.auth import CHALLENGE, Tokens
from sidecar.clock import Clock
from sidecar.contract.index import Catalog
from sidecar.contract.words import age_s
from sidecar.current import Current, Generation
from sidecar.errors import CatalogError, NotReady, UnknownCatalog
from sidecar.forward import Forwarder
from sidecar.intake import BODY_S, absolute_url, raw_query, receive
from sidecar.lookup import Answer
from sidecar.parameters import (
    FORM_TYPE,
    JSON_TYPE,
    MULTIPART_TYPE,
    XML_TYPE,
    Format,
    Refusal,
    catalog_uuid,
    negotiate,
    pairs,
    wanted_state,
)
from sidecar.roles import CLOSED, Caller, Gate, Whose, caller_of, refused, remember
from sidecar.schemas import Operation
from sidecar.streams import Stream, StreamPayload
from sidecar.xml import to_xml

# A first pull takes seconds to minutes, and so does a start without a disk copy.
RETRY_AFTER_S: Final = 5
SUFFIX: Final = ".{format:[a-z0-9]+}"
XML: Final = f"{XML_TYPE}; charset=utf-8"
MIN_GENERATION: Final = "X-Min-Generation"
AFTER_TASK: Final = "X-After-Task"
# A generation takes a second or two from the end of a pull to here; a pull itself may take minutes.
WAIT_S: Final = 5.0
# The order in which Allow has always named them.
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

Q = TypeVar("Q")


class Written(NamedTuple):
    """The value of an answer that is JSON already."""

    text: bytes


class Reads(NamedTuple, Generic[Q]):
    """What a route answers from the index: its methods, and the two halves of an answer.

    `question` is given the request and whether restricted runs count. `fetch` instead of `ask` is for what the index
    alone cannot tell: documents, from memory, disk or store.
    """

    methods: tuple[str, ...]
    question: Callable[[web.Request, bool], Awaitable[Q]]
    ask: Callable[[Generation, Q], Answer[Any]] | None = None
    fetch: Callable[[Generation, Q], Awaitable[Answer[Any]]] | None = None


class ListQuestion(NamedTuple):
    """Which part of a list, of what this caller may see; `url` is the request's own, for the links to other parts."""

    parameters: dict[str, str]
    url: str
    caller: Caller


async def list_question(request: web.Request, _: bool) -> ListQuestion:
    """The question of a route that lists what its caller may see."""
    return ListQuestion(dict(pairs(raw_query(request))), absolute_url(request), caller_of(request))


@dataclass(frozen=True, slots=True)
class Route:
    """A path, the formats that today's service has for it, what is answered here, the methods that are forwarded, and
    who is let in.

    Without its closing slash a path leads to the one with it, or, where it does not redirect, answers as well. Where it
    is `suffixed`, a format may stand at its end, as in `.json`. `fields` of a body are told by OPTIONS, if the route
    `tells` of itself at all. `operations` say, by method, what else is taken and answered; HEAD is as GET.
    """

    path: str
    formats: tuple[str, ...]
    name: str
    description: str
    reads: Reads[Any] | None = None
    writes: tuple[str, ...] = ()
    versions: tuple[str, ...] = ("v1", "v2")
    redirects: bool = True
    suffixed: bool = False
    tells: bool = True
    fields: Mapping[str, Mapping[str, Any]] | None = None
    gate: Gate = CLOSED
    operations: Mapping[str, Operation] = field(default_factory=dict)

    @property
    def allow(self) -> str:
        own = {*(() if self.reads is None else self.reads.methods), *self.writes, *(("OPTIONS",) if self.tells else ())}
        return ", ".join(method for method in METHODS if method in own)

    @property
    def options(self) -> dict[str, Any]:
        """What is answered to OPTIONS."""
        told = {
            "name": self.name,
            "description": self.description,
            "renders": [JSON_TYPE, XML_TYPE] if "xml" in self.formats else [JSON_TYPE],
            "parses": [JSON_TYPE, FORM_TYPE, MULTIPART_TYPE],
        }
        actions = {method: self.fields for method in ("PUT", "POST") if self.fields and method in self.writes}
        return told | {"actions": actions} if actions else told


class Handler:
    """Answers requests to one route of one version of the API, but for its writes."""

    def __init__(
        self,
        route: Route,
        current: Current,
        clock: Clock,
        *,
        restricted: bool,
        tokens: Tokens | None = None,
        body_s: float = BODY_S,
        wait_s: float = WAIT_S,
    ) -> None:
        """Without `tokens` everybody may ask. `wait_s`: how long a request waits for a state that it names."""
        self._route = route
        self._tokens = tokens
        self._reads = route.reads
        self._body_s = body_s
        self._wait_s = wait_s
        self._current = current
        self._clock = clock
        self._restricted = restricted
        self._headers = headers_of(route)

    async def answer(self, request: web.Request) -> web.Response:
        generation: Generation | None = None
        format: Format = "json"
        try:
            format = _negotiate(request, self._route.formats)
            if request.headers.get(MIN_GENERATION) or request.headers.get(AFTER_TASK):
                await self._catch_up(request)
            if self._tokens is not None:
                generation = self._current.generation
                admit(self._route.gate, self._tokens, request, generation)
            if request.method == "OPTIONS" and self._route.tells:
                return _rendered(format, self._route.options, self._headers)
            reads = self._reads
            if reads is None or request.method not in reads.methods:
                raise Refusal(405, {"detail": f'Method "{request.method}" not allowed.'})
            if request.method == "POST":
                await receive(request, self._body_s)
            question = await reads.question(request, self._restricted)
            admitted, generation = generation, self._current.generation
            if generation is None:
                raise NotReady("no generation is loaded yet")
            if self._tokens is not None and generation is not admitted:
                # While the body arrived: the catalog may be another customer's by now.
                admit(self._route.gate, self._tokens, request, generation)
            if reads.ask is not None:
                answer = reads.ask(generation, question)
            else:
                assert reads.fetch is not None
                answer = await reads.fetch(generation, question)
            if format == "xml" and isinstance(answer.value, Stream):
                # It is read to be written otherwise.
                answer = answer._replace(value=Written(await answer.value.whole()))
        except Refusal as refusal:
            return self._refused(format, refusal.status, refusal.body, generation)
        except CatalogError as error:
            return self._refused(format, error.status, {"detail": _sentence(error)}, generation)
        headers = self._headers | {"X-Catalog-Generation": str(generation.pointer.generation)}
        if answer.oldest_ms is not None:
            headers["X-Catalog-Age"] = str(age_s(answer.oldest_ms, self._clock.now_ms()))
        return _rendered(format, answer.value, headers)

    async def _catch_up(self, request: web.Request) -> None:
        """Waits until what the request names is served. Raises NotReady if that takes too long."""
        if self._reads is None or request.method not in self._reads.methods:
            return
        if self._tokens is not None:
            try:
                self._tokens.caller(request)
            except Refusal:
                # Nobody waits for what they are not told: what that is is said in its place.
                return
        least, task = wanted_state(request.headers.get(MIN_GENERATION), request.headers.get(AFTER_TASK))
        try:
            async with asyncio.timeout(self._wait_s):
                await self._current.showing(least, task)
        except TimeoutError as error:
            wanted = f"generation {least}" if task is None else f"what the pull {task} found"
            raise NotReady(f"{wanted} is not served here yet") from error

    def _refused(self, format: Format, status: int, body: object, generation: Generation | None) -> web.Response:
        headers = dict(self._headers)
        if generation is not None:
            headers["X-Catalog-Generation"] = str(generation.pointer.generation)
        return _refusal(format, status, body, headers)


class WriteHandler:
    """Answers requests to one route that change something: the indexer does, and what it says is the answer."""

    def __init__(
        self,
        route: Route,
        current: Current,
        forwarder: Forwarder,
        *,
        tokens: Tokens | None = None,
        body_s: float = BODY_S,
    ) -> None:
        self._route = route
        self._current = current
        self._tokens = tokens
        self._forwarder = forwarder
        self._body_s = body_s
        self._headers = headers_of(route)

    async def answer(self, request: web.Request) -> web.Response:
        format: Format = "json"
        try:
            format = _negotiate(request, self._route.formats)
            if "uuid" in request.match_info:
                # Nothing but a uuid is put into a path that another process is asked for.
                catalog_uuid(request.match_info["uuid"])
            if self._tokens is not None:
                self._known(self._tokens, request)
            with self._forwarder.room(request):
                await receive(request, self._body_s)
                answer = await self._forwarder.forward(request)
        except Refusal as refusal:
            return _refusal(format, refusal.status, refusal.body, self._headers)
        except UnknownCatalog as error:
            return _refusal(format, error.status, {"detail": _sentence(error)}, self._headers)
        if format == "xml" and answer.body and isinstance(answer.body, bytes) and answer.content_type == JSON_TYPE:
            # A write that was made is answered, whatever says so.
            with suppress(orjson.JSONDecodeError):
                answer.body = to_xml(orjson.loads(answer.body))
                answer.headers["Content-Type"] = XML
        answer.headers["Cache-Control"] = self._headers["Cache-Control"]
        answer.headers.setdefault("Allow", self._headers["Allow"])
        return answer

    def _known(self, tokens: Tokens, request: web.Request) -> None:
        """Lets nobody through to the indexer without a good token, or who may do such a thing for no customer at all.

        For which one somebody may the indexer decides, from its registry: the generation here may not show yet a
        catalog that was just made, or moved to another customer.
        """
        try:
            access = self._route.gate.takes(request.method)
            if tokens.caller(request).customers(access) == frozenset():
                raise refused(access)
        except Refusal:
            generation = self._current.generation
            if generation is not None and self._route.gate.whose is Whose.CATALOG:
                _catalog(generation, request)
            raise


def admit(gate: Gate, tokens: Tokens, request: web.Request, generation: Generation | None) -> None:
    """Lets a request pass that has what the gate takes; a catalog that there is not is told to whoever asks.

    Raises Refusal, UnknownCatalog, or NotReady if no generation can tell yet whose a catalog is.
    """
    customer = None
    if gate.whose is Whose.CUSTOMER:
        customer = request.match_info["uuid"]
    elif gate.whose is Whose.CATALOG and generation is not None:
        customer = _catalog(generation, request).customer
    caller = tokens.caller(request)
    if gate.whose is Whose.CATALOG and generation is None:
        raise NotReady("no generation is loaded yet")
    caller.require(gate.takes(request.method), customer)
    remember(request, caller)


def _catalog(generation: Generation, request: web.Request) -> Catalog:
    uuid = catalog_uuid(request.match_info["uuid"])
    catalog = generation.index.catalogs.get(uuid)
    if catalog is None:
        raise UnknownCatalog(uuid)
    return catalog


async def redirect(request: web.Request) -> web.Response:
    """Leads from a path without its closing slash to the one with it; the query stays as it was sent."""
    path, question_mark, query = request.raw_path.partition("?")
    # As Django does: what need not be escaped in a path is not.
    path = quote(unquote(path, errors="surrogateescape"), safe="/:@&+$,-_.!~*'()", errors="surrogateescape")
    headers = {"Location": f"{path}/{question_mark}{query}", "Content-Type": "text/html; charset=utf-8"}
    return web.Response(status=301, headers=headers)


def api_routes(
    routes: Iterable[Route],
    current: Current,
    forwarder: Forwarder,
    clock: Clock,
    *,
    tokens: Tokens | None = None,
    body_s: float = BODY_S,
) -> list[web.RouteDef]:
    """The routes in every version that has them, for aiohttp's router."""
    definitions = []
    for route in routes:
        for version in route.versions:
            # The paths are spelled out for each version: aiohttp finds a route by its fixed beginning.
            path = f"/api/{version}{route.path}".replace("{uuid}", "{uuid:[^/.]+}")
            reads = Handler(route, current, clock, restricted=version == "v2", tokens=tokens, body_s=body_s)
            writes = WriteHandler(route, current, forwarder, tokens=tokens, body_s=body_s)
            slashless = path.removesuffix("/")
            forms = [path] if route.redirects else [path, slashless]
            if route.suffixed:
                forms += [f"{slashless}{SUFFIX}", f"{slashless}{SUFFIX}/"]
            for form in forms:
                definitions += [web.route(method, form, writes.answer) for method in route.writes]
                definitions.append(web.route("*", form, reads.answer))
            if route.redirects:
                definitions.append(web.route("*", slashless, redirect))
    # Those that are seldom asked for are tried last.
    return sorted(definitions, key=lambda definition: SUFFIX in definition.path)


def headers_of(route: Route) -> dict[str, str]:
    """The headers of every answer of a route."""
    return {"Content-Type": JSON_TYPE, "Allow": route.allow, "Cache-Control": "no-store"}


def _rendered(format: Format, value: object, headers: dict[str, str], status: int = 200) -> web.Response:
    if isinstance(value, Stream):
        return web.Response(status=status, body=StreamPayload(value), headers=headers)
    if format == "xml":
        read = orjson.loads(value.text) if isinstance(value, Written) else value
        return web.Response(status=status, body=to_xml(read), headers=headers | {"Content-Type": XML})
    text = value.text if isinstance(value, Written) else orjson.dumps(value)
    return web.Response(status=status, body=text, headers=headers)


def _refusal(format: Format, status: int, body: object, headers: dict[str, str]) -> web.Response:
    if status == 401:
        headers = headers | CHALLENGE
    elif status == 503:
        headers = headers | {"Retry-After": str(RETRY_AFTER_S)}
    # Not orjson: a refusal may quote halves of surrogate pairs, which orjson does not write.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    written = body if format == "xml" else Written(text.encode(errors="replace"))
    response = _rendered(format, written, headers, status)
    if status == 408:
        # What may still come of the body is no next request.
        response.force_close()
    return response


def _sentence(error: CatalogError) -> str:
    if isinstance(error, UnknownCatalog):
        return "No EnterpriseCatalog matches the given query."
    return f"It cannot be told yet: {error}."


def _negotiate(request: web.Request, formats: tuple[str, ...]) -> Format:
    query = raw_query(request)
    format = request.match_info.get("format") or (dict(pairs(query)).get("format") if "format" in query else None)
    return negotiate(request.headers.get("Accept"), format, formats)
