"""The client for asyncio, over aiohttp: the methods of `blocking`, to be awaited. aiohttp's exceptions stop here.

A session, and with it its connections, belongs to one event loop of one process: another loop, or a forked child, gets
one of its own. A token that is asked for is asked for on the loop, and so must not wait. As there, a question whose
connection ended before the head of an answer came is asked once more, and what must not be made twice has a connection
of its own. `last` is that of the task; one that gathers calls does not see what they rest on.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from io import BytesIO
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from aiohttp import (
    BaseConnector,
    ClientConnectorError,
    ClientHandlerType,
    ClientOSError,
    ClientRequest,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
    TCPConnector,
    UnixConnector,
)
from aiohttp import (
    ClientError as AiohttpError,
)
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from sidecar.client.errors import CannotTell, ClientError
from sidecar.client.exchange import (
    LONG_S,
    QUESTION_S,
    UNKNOWN,
    Address,
    Answer,
    Basis,
    Call,
    Reading,
    Token,
    Version,
    Writing,
    headers_of,
    process,
    remember,
    remembered,
)
from sidecar.client.operations import PAGE_SIZE, Diff, Id, Ids, Json, Operations, Refreshed, Steps

T = TypeVar("T")
# The deadline is the call's own.
_NO_TIMEOUT: Final = ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


# Sessions of a parent process, which a child must neither use nor end.
_INHERITED: Final[list[ClientSession]] = []


class Broken(Exception):
    """Raised when a connection ended before the head of an answer came."""


class AsyncCatalogClient:
    """Asks one sidecar, or whatever speaks its API. Made once for a process, and kept."""

    def __init__(
        self,
        url: str,
        token: Token = None,
        *,
        version: Version = "v1",
        timeout_s: float = QUESTION_S,
        long_timeout_s: float = LONG_S,
    ) -> None:
        """`url`: http://HOST:PORT[/PATH] or unix:///PATH. `token`: a JWT, or what gives one when asked, which is before
        every request. `version` v2 shows the restricted runs that a catalog's own query allows.
        """
        self._address = Address.parse(url)
        self._token = token
        self._operations = Operations(version)
        self._question_s = timeout_s
        self._long_s = long_timeout_s
        self._session: ClientSession | None = None
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None

    @property
    def last(self) -> Basis:
        """What the last answer that this task had from this client rests on."""
        return remembered(self)

    async def close(self) -> None:
        """Closes the connections; a later call makes new ones."""
        session, self._session = self._session, None
        if session is not None and self._owner == (process(), asyncio.get_running_loop()):
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def contains_content_items(self, catalog_uuid: Id, content_ids: Ids, **how: Unpack[Reading]) -> bool:
        """Whether a catalog contains any of these keys: of courses, runs or programs."""
        return await self._run(self._operations.catalog_contains(catalog_uuid, content_ids), how, self._question_s)

    async def enterprise_contains_content_items(
        self, enterprise_uuid: Id, content_ids: Ids, **how: Unpack[Reading]
    ) -> Json:
        """Whether a catalog of the customer contains any of these keys, and in `catalog_list` which catalogs do."""
        return await self._run(self._operations.customer_contains(enterprise_uuid, content_ids), how, self._question_s)

    async def get_content_metadata(
        self,
        enterprise_customer: Any,
        enterprise_catalogs: Iterable[Id] | None = None,
        content_keys_filter: Iterable[str] | None = None,
        **how: Unpack[Reading],
    ) -> list[Json]:
        """The documents of these catalogs, each once; without catalogs, those of all that the customer has.

        The customer is a model, which knows its catalogs, or a uuid: then the service is asked for them, which takes an
        admin's role. Models are asked where the event loop runs: name the catalogs there.
        """
        return await self._run(
            self._operations.content_metadata(enterprise_customer, enterprise_catalogs, content_keys_filter),
            how,
            self._long_s,
        )

    async def get_catalog_content_count(self, catalog_uuid: Id, **how: Unpack[Reading]) -> int:
        """How many documents a catalog lists."""
        return await self._run(self._operations.content_count(catalog_uuid), how, self._question_s)

    async def get_catalog_diff(
        self,
        enterprise_customer_catalog: Id,
        content_keys: Iterable[str],
        should_raise_exception: bool = True,
        **how: Unpack[Reading],
    ) -> Diff:
        """How these keys differ from what a catalog has: (items to create, items to delete, items found)."""
        return await self._run(
            self._operations.diff(enterprise_customer_catalog, content_keys, raises=should_raise_exception),
            how,
            self._long_s,
        )

    async def get_customer_content_metadata_content_identifier(
        self, enterprise_uuid: Id, content_id: str, **how: Unpack[Reading]
    ) -> Json:
        """The document of a key or uuid, as the first of the customer's catalogs shows it that has it."""
        return await self._run(self._operations.customer_document(enterprise_uuid, content_id), how, self._question_s)

    async def get_content_metadata_content_identifier(
        self, content_id: str, coerce_to_parent_course: bool = False, **how: Unpack[Reading]
    ) -> Json:
        """The document of a key or uuid, as no catalog shows it; `coerce_to_parent_course`: of a run, its course."""
        return await self._run(
            self._operations.document(content_id, coerced=coerce_to_parent_course), how, self._question_s
        )

    async def create_enterprise_catalog(
        self,
        catalog_uuid: Id | None,
        enterprise_id: Id,
        enterprise_name: str,
        title: str,
        content_filter: object,
        enabled_course_modes: object,
        publish_audit_enrollment_urls: bool,
        catalog_query_uuid: Id | None,
        query_title: str | None = None,
        include_exec_ed_2u_courses: bool = False,
        **how: Unpack[Writing],
    ) -> Json:
        """Makes a catalog. With a uuid this may be repeated: made again with the same body, it changes nothing more."""
        fields = {
            "uuid": catalog_uuid,
            "title": title,
            "enterprise_customer": enterprise_id,
            "enterprise_customer_name": enterprise_name,
            "content_filter": content_filter,
            "enabled_course_modes": enabled_course_modes,
            "publish_audit_enrollment_urls": publish_audit_enrollment_urls,
            "catalog_query_uuid": catalog_query_uuid,
            "query_title": query_title,
            "include_exec_ed_2u_courses": include_exec_ed_2u_courses,
        }
        return await self._run(self._operations.create(fields), how, self._long_s)

    async def get_enterprise_catalog(
        self, catalog_uuid: Id, should_raise_exception: bool = True, **how: Unpack[Reading]
    ) -> Json:
        """The record of a catalog."""
        return await self._run(
            self._operations.retrieve(catalog_uuid, raises=should_raise_exception), how, self._question_s
        )

    async def update_enterprise_catalog(
        self, catalog_uuid: Id, *, timeout_s: float | None = None, **fields: Any
    ) -> Json:
        """Replaces the fields of a catalog: all that are required."""
        how: Writing = {} if timeout_s is None else {"timeout_s": timeout_s}
        return await self._run(self._operations.update(catalog_uuid, fields), how, self._long_s)

    async def delete_enterprise_catalog(self, catalog_uuid: Id, **how: Unpack[Writing]) -> bool:
        """Removes a catalog; True."""
        return await self._run(self._operations.delete(catalog_uuid), how, self._long_s)

    async def get_enterprise_catalog_by_hash(
        self, catalog_query_hash: str, should_raise_exception: bool = True, **how: Unpack[Reading]
    ) -> Json:
        """The query that has this hash."""
        return await self._run(
            self._operations.by_hash(catalog_query_hash, raises=should_raise_exception), how, self._question_s
        )

    async def get_catalog_query_hash(self, catalog_query: object, **how: Unpack[Reading]) -> str:
        """The hash of a content filter."""
        return await self._run(self._operations.query_hash(catalog_query), how, self._question_s)

    async def refresh_catalogs(self, enterprise_catalogs: Iterable[Id], **how: Unpack[Writing]) -> Refreshed:
        """Has catalogs pulled again: the id of the pull by uuid, and the uuids of those for which none was started."""
        return await self._run(self._operations.refresh(enterprise_catalogs), how, self._long_s)

    async def health(self, **how: Unpack[Reading]) -> Json:
        """The report of the sidecar on itself, also if it is not well."""
        return await self._run(self._operations.health(), how, self._question_s)

    async def iterate_content_metadata(
        self,
        catalog_uuid: Id,
        content_keys_filter: Iterable[str] | None = None,
        *,
        page_size: int = PAGE_SIZE,
        **how: Unpack[Reading],
    ) -> AsyncIterator[Json]:
        """The documents of one catalog, page by page as they are wanted; the deadline is that of each page."""
        keys = None if content_keys_filter is None else list(content_keys_filter)
        for query in self._operations.page_queries(keys, page_size):
            following: str | None = query
            while following is not None:
                results, following = await self._run(self._operations.page(catalog_uuid, following), how, self._long_s)
                for document in results:
                    yield document

    async def _run(self, steps: Steps[T], how: Reading | Writing, default_s: float) -> T:
        until_s = asyncio.get_running_loop().time() + how.get("timeout_s", default_s)
        basis = UNKNOWN
        try:
            call = next(steps)
            while True:
                try:
                    answer = await self._exchange(call, headers_of(call, how, self._token), until_s)
                except ClientError as error:
                    call = steps.throw(error)
                else:
                    basis = basis.joined(answer.basis)
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            remember(self, basis)

    async def _exchange(self, call: Call, headers: dict[str, str], until_s: float) -> Answer:
        try:
            async with asyncio.timeout_at(until_s):
                if not call.repeatable:
                    async with self._made(kept=False) as session:
                        return await self._once(session, call, headers)
                try:
                    return await self._once(self._kept(), call, headers)
                except Broken:
                    return await self._once(self._kept(), call, headers)
        except TimeoutError as error:
            raise CannotTell(f"{call}: no answer before the deadline") from error
        except Broken as broken:
            raise CannotTell(f"{call}: the connection broke: {broken}") from broken
        except ClientConnectorError as error:
            raise CannotTell(f"{call}: nothing was sent, nobody answers there: {error}") from error
        except (AiohttpError, HttpProcessingError, OSError) as error:
            raise CannotTell(f"{call}: the answer broke off, or is no HTTP: {type(error).__name__}") from error

    async def _once(self, session: ClientSession, call: Call, headers: dict[str, str]) -> Answer:
        # Not as bytes, of which aiohttp warns where there are many.
        body = None if call.body is None else BytesIO(call.body)
        url = URL(f"http://{self._host}{self._address.base}{call.target}", encoded=True)
        async with session.request(call.method, url, headers=headers, data=body, allow_redirects=False) as response:
            text = await response.read()
            named = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, named, text, Basis.of(named))

    @property
    def _host(self) -> str:
        host = self._address.host
        return f"[{host}]:{self._address.port}" if ":" in host else f"{host}:{self._address.port}"

    def _kept(self) -> ClientSession:
        owner = (process(), asyncio.get_running_loop())
        if self._session is None or self._session.closed or self._owner != owner:
            if self._session is not None and self._owner is not None and self._owner[0] != owner[0]:
                # To end it would take its sockets out of what the parent listens to.
                _INHERITED.append(self._session)
            self._session, self._owner = self._made(kept=True), owner
        return self._session

    def _made(self, *, kept: bool) -> ClientSession:
        connector: BaseConnector
        if self._address.socket is None:
            connector = TCPConnector(limit=0, force_close=not kept)
        else:
            connector = UnixConnector(self._address.socket, limit=0, force_close=not kept)
        return ClientSession(
            connector=connector,
            timeout=_NO_TIMEOUT,
            cookie_jar=DummyCookieJar(),
            skip_auto_headers=("Content-Type",),
            middlewares=(_told_apart,),
        )


async def _told_apart(request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
    """A client middleware that hides from aiohttp what it would send a request again for; that is decided above."""
    try:
        return await send(request)
    except ClientConnectorError:
        raise
    except (ClientOSError, ServerDisconnectedError) as error:
        raise Broken(type(error).__name__) from error
