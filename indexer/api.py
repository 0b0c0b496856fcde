"""The catalogs of enterprise-catalog's API, read from and written to the registry; and pulls, asked for and followed.

A write is answered once it is published, or with `X-Catalog-Published: pending` past a deadline: it is in the registry
by then, and is published whatever becomes of this process. Headers of an answer to a write:

X-Catalog-Clock        the registry's clock of the write: a generation that covers it shows it.
X-Catalog-Generation   the generation that shows it.
X-Catalog-Published    "pending", instead of the generation, if there is none yet.
X-Catalog-Pinned       the generation that is pinned, beside "pending": until somebody unpins, there will be none.

Any indexer answers; the one that leads publishes.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog_body import BadCatalog, from_form, read_catalog, read_fields
from indexer.patience import ANSWER_S, OutOfPatience, answer_in_time, not_counting
from indexer.publication import Publication
from indexer.registry import RegistryError, Transaction, Undecided, catalogs, pulls
from indexer.registry.catalogs import CatalogExists, NoSuchCatalog, QueryClash, RegisteredCatalog
from indexer.registry.schema import catalog
from indexer.service import Role
from indexer.wiring import Parts
from sidecar.auth import CHALLENGE, Tokens
from sidecar.contract.words import canonical_uuid, iso_time
from sidecar.intake import BODY_S, absolute_url, raw_query, receive, request_id
from sidecar.log import logging_as
from sidecar.pages import asked_page
from sidecar.parameters import JSON_TYPE, Refusal, catalog_uuid, fields, pairs
from sidecar.roles import EVERYBODY, Access, Caller, refused

PUBLISHED_WITHIN_S: Final = 5.0
RETRY_AFTER_S: Final = 5
MAX_PAGE_SIZE: Final = 1000
NO_CATALOG: Final = "No EnterpriseCatalog matches the given query."
OUT_OF_REACH: Final = "The registry is out of reach. Nothing was changed; try again later."
SILENT: Final = "The registry does not answer. Try again later."
UNKNOWN: Final = (
    "The registry did not answer: it cannot be told whether the change was made. Repeat the request: one that was made "
    "already changes nothing more (a create needs the same uuid and body for that)."
)
QUESTIONS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Who made a change, where nobody has to say.
WHO: Final = "api"
MAX_WHO: Final = 255
log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class CatalogApi:
    """The handlers, over one registry."""

    def __init__(
        self,
        parts: Parts,
        role: Role,
        publication: Publication,
        *,
        tokens: Tokens | None = None,
        within_s: float = PUBLISHED_WITHIN_S,
        body_s: float = BODY_S,
    ) -> None:
        """A write waits `within_s` seconds for its publication, and `body_s` for its body. Without `tokens`
        everybody may do everything.
        """
        self._tokens = tokens
        self._registry = parts.registry
        self._clock = parts.clock
        self._role = role
        self._publication = publication
        self._within_s = within_s
        self._body_s = body_s

    def routes(self) -> list[web.RouteDef]:
        """All of them, for aiohttp's router."""
        many = "/api/v1/enterprise-catalogs/"
        one = many + "{uuid:[^/.]+}/"
        return [
            web.get(many, self.list),
            web.post(many, self.create),
            web.get(one, self.retrieve),
            web.put(one, self.put),
            web.patch(one, self.patch),
            web.delete(one, self.delete),
            web.post(one + "refresh_metadata", self.refresh),
            web.post(one + "refresh_metadata/", self.refresh),
            web.get("/api/v1/pulls/{task:[^/.]+}/", self.pull),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """A page of the catalogs that the caller may see, in order of creation."""
        caller = self._caller(request)
        caller.require(Access.LISTING)
        theirs = caller.customers(Access.PROVISIONING)
        async with self._registry.read() as connection:
            customer = _asked_customer(request)
            wanted: list[Any] = [] if customer is None else [catalog.c.customer == customer]
            if theirs is not None:
                wanted.append(catalog.c.customer.in_(sorted(theirs)))
            count = await catalogs.count(connection, *wanted)
            page = asked_page(count, dict(pairs(raw_query(request))), max_size=MAX_PAGE_SIZE)
            rows = await catalogs.select(connection, *wanted, first=page.start, most=page.size)
            shown = await _documents(connection, rows)
        url = absolute_url(request)
        return web.json_response(
            {"count": page.count, "next": page.next(url), "previous": page.previous(url), "results": shown}
        )

    async def retrieve(self, request: web.Request) -> web.Response:
        """One catalog."""
        async with self._registry.read() as connection:
            row = await self._granted(connection, request, Access.PROVISIONING)
            return web.json_response((await _documents(connection, [row]))[0])

    async def create(self, request: web.Request) -> web.Response:
        """Makes a catalog: 201; the same body again is 200, another one for its uuid 409."""
        caller = self._caller(request)
        if caller.customers(Access.PROVISIONING) == frozenset():
            raise refused(Access.PROVISIONING)
        given = await _body(request, self._body_s)
        _require_named(caller, given)
        body = read_catalog(given)
        async with self._registry.write() as tx:
            row, made = await catalogs.create(tx, body, _who(caller))
            document = (await _documents(tx.connection, [row]))[0]
        return await self._published(request, tx, 201 if made else 200, document)

    async def put(self, request: web.Request) -> web.Response:
        """Gives a catalog all values anew."""
        return await self._change(request, whole=True)

    async def patch(self, request: web.Request) -> web.Response:
        """Gives a catalog some values."""
        return await self._change(request, whole=False)

    async def delete(self, request: web.Request) -> web.Response:
        """Takes a catalog away."""
        async with self._registry.read() as connection:
            # Nobody else is given the lock that writing takes.
            await self._granted(connection, request, Access.ADMIN)
        async with self._registry.write() as tx:
            row = await self._granted(tx.connection, request, Access.ADMIN)
            await catalogs.remove(tx, row.uuid, _who(self._caller(request)))
        return await self._published(request, tx, 204, None)

    async def refresh(self, request: web.Request) -> web.Response:
        """Asks for a pull of a catalog's content, or joins the one under way; answered at once, with its task id."""
        async with self._registry.read() as connection:
            await self._granted(connection, request, Access.ADMIN)
        async with self._registry.plain() as connection:
            row = await self._granted(connection, request, Access.ADMIN)
            task = await pulls.request(connection, row.wanted, self._clock.now_ms())
        self._role.wake.set()
        return web.json_response({"async_task_id": task})

    async def pull(self, request: web.Request) -> web.Response:
        """How the pull of a task id goes; for whoever may ask for a pull of anything."""
        caller = self._caller(request)
        if caller.customers(Access.ADMIN) == frozenset():
            raise refused(Access.ADMIN)
        task = canonical_uuid(request.match_info["task"])
        async with self._registry.read() as connection:
            found = None if task is None else await pulls.look_up(connection, task)
        if found is None:
            raise Refusal(404, {"detail": "No pull has this id; pulls are forgotten 30 days after their end."})
        return web.json_response(
            {
                "task": found.task,
                "query_hash": found.hash,
                "reason": found.reason,
                "state": found.state,
                "requested": iso_time(found.requested_ms),
                "finished": None if found.finished_ms is None else iso_time(found.finished_ms),
                "members": found.members,
                "changed": found.changed,
                "error": found.error,
            }
        )

    async def _change(self, request: web.Request, *, whole: bool) -> web.Response:
        uuid = catalog_uuid(request.match_info["uuid"])
        async with self._registry.read() as connection:
            # Whoever asks: what does not exist is said before what is wrong.
            row = await self._granted(connection, request, Access.PROVISIONING)
        given = await _body(request, self._body_s)
        named = given.get("enterprise_customer") if isinstance(given, Mapping) else None
        customer = canonical_uuid(named) if isinstance(named, str) else None
        if customer not in (None, row.customer):
            self._caller(request).require(Access.PROVISIONING, customer)
        wanted = read_fields(given, whole=whole)
        async with self._registry.write() as tx:
            # Again, because it may have moved to another customer while the body arrived.
            row = await self._granted(tx.connection, request, Access.PROVISIONING)
            caller = self._caller(request)
            if wanted.get("customer", row.customer) != row.customer:
                caller.require(Access.PROVISIONING, wanted["customer"])
            row = await catalogs.change(tx, uuid, wanted, _who(caller))
            document = (await _documents(tx.connection, [row]))[0]
        return await self._published(request, tx, 200, document)

    def _caller(self, request: web.Request) -> Caller:
        """Who asks. Raises Refusal if that cannot be told."""
        return EVERYBODY if self._tokens is None else self._tokens.caller(request)

    async def _granted(self, connection: AsyncConnection, request: web.Request, access: Access) -> RegisteredCatalog:
        """The catalog that the path names, if the caller has the access for its customer.

        Raises NoSuchCatalog before anything is asked of the caller, then Refusal.
        """
        row = await _named(connection, request)
        self._caller(request).require(access, row.customer)
        wanted = _asked_customer(request)
        if wanted not in (None, row.customer):
            raise NoSuchCatalog(f"no catalog {row.uuid} of customer {wanted}")
        return row

    async def _published(self, request: web.Request, tx: Transaction, status: int, document: object) -> web.Response:
        self._role.wake.set()
        with not_counting(request):
            generation = await self._publication.covering(tx.clock, self._within_s)
        headers = {"X-Catalog-Clock": str(tx.clock)}
        if generation is None:
            headers["X-Catalog-Published"] = "pending"
            if self._publication.pinned is not None:
                headers["X-Catalog-Pinned"] = str(self._publication.pinned)
        else:
            headers["X-Catalog-Generation"] = str(generation)
        if status == 204:
            return web.Response(status=status, headers=headers)
        response = _json(status, document)
        response.headers.update(headers)
        return response


def answering(within_s: float = ANSWER_S) -> Middleware:
    """The middleware around all routes: each is answered in time, what is refused leaves as JSON, in the words of the
    API, and what is logged meanwhile has the id of the request.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        with logging_as(partial(request_id, request)):
            return await _answer(request, handler, within_s)

    return middleware


async def _answer(request: web.Request, handler: Handler, within_s: float) -> web.StreamResponse:
    try:
        return await answer_in_time(request, handler, within_s)
    except Refusal as refusal:
        response = _json(refusal.status, refusal.body)
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            response.headers.update(CHALLENGE)
        elif refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        elif refusal.status == HTTPStatus.REQUEST_TIMEOUT:
            # What may still come of the body is no next request.
            response.force_close()
        return response
    except BadCatalog as bad:
        return _json(400, bad.body)
    except QueryClash as clash:
        return _json(400, {"catalog_query": str(clash)})
    except CatalogExists as exists:
        return _json(409, {"detail": str(exists)})
    except NoSuchCatalog:
        return _json(404, {"detail": NO_CATALOG})
    except (RegistryError, OutOfPatience) as error:
        # Not its text, which names the registry.
        log.warning("a request met a registry that is out of reach", path=request.path, error=str(error))
        return _without_registry(request, decided=not isinstance(error, Undecided | OutOfPatience))
    except web.HTTPMethodNotAllowed as error:
        allow = {"Allow": ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))}
        if error.method == "OPTIONS":
            return web.Response(status=204, headers=allow)
        response = _json(405, {"detail": f'Method "{error.method}" not allowed.'})
        response.headers.update(allow)
        return response
    except web.HTTPException as error:
        return _json(error.status, {"detail": "Not found." if error.status == 404 else error.reason})
    # The one place that catches everything: a defect costs one request its answer, which is still JSON.
    except Exception:
        log.exception("a request failed", method=request.method, path=request.path)
        return _json(500, {"detail": "A server error occurred.", "request_id": request_id(request)})


def _without_registry(request: web.Request, *, decided: bool) -> web.Response:
    """`decided`: what the request wanted to change has not been changed, for certain."""
    detail = OUT_OF_REACH if decided else SILENT if request.method in QUESTIONS else UNKNOWN
    response = _json(503, {"detail": detail})
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


async def _body(request: web.Request, body_s: float) -> object:
    content_type = request.headers.get("Content-Type", "")
    with not_counting(request):
        body = await receive(request, body_s)
    given = fields(content_type, body)
    is_form = not content_type.lower().startswith(JSON_TYPE)
    return from_form(given) if is_form and isinstance(given, Mapping) else given


def _require_named(caller: Caller, given: object) -> None:
    """Raises Refusal if a body names a customer that the caller has no such role for, or none."""
    if isinstance(given, Mapping):
        # As it was sent: before it is known to be a uuid, it is a text like that of a role.
        customer = given.get("enterprise_customer")
        caller.require(Access.PROVISIONING, customer if isinstance(customer, str) else None)


def _who(caller: Caller) -> str:
    """The caller as the history of a catalog names them."""
    name = caller.name.replace("\0", "").encode(errors="replace").decode()
    return name[:MAX_WHO] or WHO


def _asked_customer(request: web.Request) -> str | None:
    """The customer that `enterprise_customer` in the query string names, for a list as for a single catalog."""
    given = dict(pairs(raw_query(request))).get("enterprise_customer")
    if not given:
        return None
    customer = canonical_uuid(given)
    if customer is None:
        raise Refusal(400, {"enterprise_customer": ["Must be a valid UUID."]})
    return customer


async def _named(connection: AsyncConnection, request: web.Request) -> RegisteredCatalog:
    uuid = catalog_uuid(request.match_info["uuid"])
    rows = await catalogs.select(connection, catalog.c.uuid == uuid)
    if not rows:
        raise NoSuchCatalog(f"no catalog {uuid}")
    return rows[0]


async def _documents(connection: AsyncConnection, rows: Sequence[RegisteredCatalog]) -> list[dict[str, Any]]:
    modified_ms = await pulls.modified_ms(connection, [row.serving for row in rows if row.serving is not None])
    documents = []
    for row in rows:
        changed_ms = None if row.serving is None else modified_ms.get(row.serving)
        documents.append(
            {
                "uuid": row.uuid,
                "title": row.title,
                "enterprise_customer": row.customer,
                "catalog_query_uuid": row.query_uuid,
                "content_last_modified": None if changed_ms is None else iso_time(changed_ms),
                "catalog_modified": iso_time(row.modified_ms),
                "query_title": row.query_title,
            }
        )
    return documents


def _json(status: int, body: object) -> web.Response:
    # A refusal may quote halves of surrogate pairs.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return web.Response(status=status, body=text.encode(errors="replace"), headers={"Content-Type": JSON_TYPE})
