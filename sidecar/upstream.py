"""The door to the service whose place the sidecar takes: what is not ours is passed on, and its answer passed back.

1. Bodies are streamed both ways, as they come: nothing is unpacked, kept or limited here.
2. Headers of one connection stay on it (RFC 9110, 7.6.1). The Host is the service's own; X-Forwarded-* and Via say whom
   it is asked for, and through whom.
3. A path that a server may read as another one (dots, empty segments, an escaped slash), or that goes on behind a word
   of ours, is nobody's: the other service may have what is ours under it, and another registry behind that.
4. A request that has come through this process already is answered 508, and so is one that has come through too many
   like it: it would go round for ever.
5. Whoever is silent for too long, on either side, is given up. Before an answer has begun that is a 503 or 504 with
   Retry-After, or a 502 if what came is no HTTP; after that the connection is cut, so that half an answer is not taken
   for a whole one. A question is given up as well when its caller hangs up; a write is not.

Nothing that may change something is sent twice: a request that broke off may have been heard. aiohttp's exceptions stop
here.
"""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote

import structlog
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientMiddlewareType,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
    hdrs,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from sidecar.handlers import RETRY_AFTER_S
from sidecar.intake import MAX_LINE_BYTES
from sidecar.metrics import Metrics
from sidecar.relay import BrokenOffError, once, sendable, target
from sidecar.settings import UpstreamSettings

CONNECT_S: Final = 3.0
# Each has two connections, and what is on its way in them.
MAX_UNDER_WAY: Final = 256
MAX_HEADERS: Final = 512
# How soon it is seen that a caller has hung up, and how long an answer may go on when the process ends.
LOOK_S: Final = 1.0
LAST_S: Final = 2.0
# Sidecars that a request may come through, each with a name of its own: a few workers may sit before one another.
MAX_HOPS: Final = 4
NAME: Final = "catalog-sidecar"
HOP_BY_HOP: Final = frozenset(
    name.lower()
    for name in (
        *("Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection"),
        *("TE", "Trailer", "Transfer-Encoding", "Upgrade"),
    )
)
# What is said here in their place, or answered here.
OURS: Final = HOP_BY_HOP | {"host", "via", "expect", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
BEGUN: Final = web.RequestKey("begun", bool)
# Today's service takes any suffix of these words for them.
OUR_WORDS: Final = re.compile(
    r"/api/v[12]/enterprise-catalogs/[^/]*/(get_content_metadata|generate_diff|refresh_metadata)"
)
NO_BODY: Final = frozenset({204, 304})
_log = structlog.get_logger(__name__)


class Upstream:
    """Passes requests on to the service at a url."""

    def __init__(self, settings: UpstreamSettings, metrics: Metrics) -> None:
        self._base = settings.url.rstrip("/")
        self._silence_s = settings.timeout_s
        self._metrics = metrics
        self._via = f"{NAME}-{uuid.uuid4().hex[:8]}"
        self._kept: ClientSession | None = None
        self._answers = True
        self._stopping = False
        self._under_way: dict[asyncio.Task[web.StreamResponse], web.Request] = {}

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """The service's answer to a request."""
        if _is_nobodys(request.rel_url.raw_path):
            raise web.HTTPNotFound
        if self._goes_round(request):
            return self._refusal(508, "loop", "This request has come through here already: upstream.url leads back.")
        if request.headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
            return self._refusal(501, "refused", "A body in another transfer coding than chunked is not passed on.")
        if self._stopping or len(self._under_way) >= MAX_UNDER_WAY:
            return self._refusal(503, "busy", "Too many requests to the upstream service are under way here.")
        under_way = asyncio.create_task(self._exchange(request))
        self._under_way[under_way] = request
        try:
            while not under_way.done():
                await asyncio.wait([under_way], timeout=LOOK_S)
                if request.method in REPEATABLE and _has_gone(request) and not request.get(BEGUN):
                    under_way.cancel()
            return under_way.result()
        except asyncio.CancelledError:
            if not under_way.cancelled():
                under_way.cancel()
                raise
            return self._refusal(
                503, "given up", "The request was given up: its caller has gone, or this process ends."
            )
        finally:
            del self._under_way[under_way]

    async def _exchange(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self._session_for(request) as session:
                async with asyncio.timeout(self._silence_s) as silence:
                    answer = await session.request(
                        request.method,
                        target(self._base, request.rel_url.raw_path, request),
                        headers=self._headers(request),
                        data=self._upload(request, silence) if request.can_read_body else None,
                        allow_redirects=False,
                    )
                    request[BEGUN] = True
                async with answer:
                    return await self._passed_back(request, answer)
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            return self._failed("unreachable", "The upstream service cannot be reached.", 503, error)
        except TimeoutError as error:
            return self._failed("timeout", f"The upstream service was silent for {self._silence_s:g} s.", 504, error)
        except (HttpProcessingError, ClientResponseError) as error:
            return self._failed("broken", "What the upstream service answered is no HTTP.", 502, error)
        except (BrokenOffError, ClientError, OSError) as error:
            return self._failed("broken", "The upstream service broke off before it had answered.", 503, error)

    def stop(self) -> None:
        """Ends what waits for an answer, and soon what is answered: the process is about to end."""
        self._stopping = True
        for under_way, request in self._under_way.items():
            if request.get(BEGUN):
                asyncio.get_running_loop().call_later(LAST_S, _cut, request)
            else:
                under_way.cancel()

    async def close(self) -> None:
        """Closes its connections."""
        if self._kept is not None:
            await self._kept.close()

    @asynccontextmanager
    async def _session_for(self, request: web.Request) -> AsyncIterator[ClientSession]:
        """What a request is sent through: connections are kept for those alone that may be sent again on another."""
        if request.method not in REPEATABLE or request.can_read_body:
            async with self._session(TCPConnector(force_close=True), once) as session:
                yield session
            return
        if self._kept is None:
            self._kept = self._session(TCPConnector(limit=0))
        yield self._kept

    def _session(self, connector: TCPConnector, *middlewares: ClientMiddlewareType) -> ClientSession:
        return ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            timeout=ClientTimeout(total=None, connect=CONNECT_S, sock_read=self._silence_s),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            middlewares=middlewares,
        )

    def _goes_round(self, request: web.Request) -> bool:
        hops = (hop.split() for header in request.headers.getall(hdrs.VIA, ()) for hop in header.split(","))
        # A protocol, a name, and maybe a comment.
        through = [words[1] for words in hops if len(words) > 1]
        return self._via in through or sum(hop.startswith(f"{NAME}-") for hop in through) >= MAX_HOPS

    def _headers(self, request: web.Request) -> CIMultiDict[str]:
        headers = _without(request.headers, OURS)
        for name, value in (
            (hdrs.X_FORWARDED_FOR, request.remote or "unknown"),
            (hdrs.X_FORWARDED_HOST, request.host),
            (hdrs.X_FORWARDED_PROTO, request.scheme),
        ):
            before = request.headers.getall(name, [])
            headers[name] = ", ".join([*before, value]) if name == hdrs.X_FORWARDED_FOR else (before or [value])[0]
        headers[hdrs.VIA] = ", ".join([*request.headers.getall(hdrs.VIA, ()), f"1.1 {self._via}"])
        return headers

    async def _upload(self, request: web.Request, silence: asyncio.Timeout) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while True:
            if not request.get(BEGUN):
                # While the caller is waited for, the service is not.
                silence.reschedule(None)
            try:
                async with asyncio.timeout(self._silence_s):
                    piece = await request.content.readany()
            except TimeoutError:
                # What it has sent so far must not be taken for all of it, and it hears nothing either.
                _cut(request)
                raise
            if not request.get(BEGUN):
                silence.reschedule(loop.time() + self._silence_s)
            if not piece:
                return
            yield piece

    async def _passed_back(self, request: web.Request, answer: ClientResponse) -> web.StreamResponse:
        coding = answer.headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower()
        if not 200 <= answer.status <= 599 or coding != "chunked":
            return self._refusal(502, "broken", "What the upstream service answered cannot be passed on.")
        headers = _without(answer.headers, HOP_BY_HOP)
        headers[hdrs.VIA] = ", ".join([*answer.headers.getall(hdrs.VIA, ()), f"1.1 {self._via}"])
        response = _Passed(status=answer.status, reason=answer.reason, headers=headers)
        try:
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD and answer.status not in NO_BODY:
                async for piece in answer.content.iter_any():
                    if not await self._taken(response, piece):
                        self._metrics.upstream.labels("hung up").inc()
                        _cut(request)
                        return response
            await response.write_eof()
        except (TimeoutError, ClientError, HttpProcessingError, OSError) as error:
            # It has begun, and cannot be taken back.
            outcome = "hung up" if _has_gone(request) else "cut"
            self._metrics.upstream.labels(outcome).inc()
            if outcome == "cut":
                _log.warning("an answer of the upstream service was cut", error=type(error).__name__)
            _cut(request)
            return response
        if not self._answers:
            self._answers = True
            _log.info("the upstream service answers again")
        self._metrics.upstream.labels("answered").inc()
        return response

    async def _taken(self, response: web.StreamResponse, piece: bytes) -> bool:
        """Whether the caller takes a piece."""
        try:
            async with asyncio.timeout(self._silence_s):
                await response.write(piece)
        except (TimeoutError, OSError):
            return False
        return True

    def _failed(self, outcome: str, detail: str, status: int, error: Exception) -> web.Response:
        if self._answers:
            self._answers = False
            # Not the error's text: some quote the url, and with it the caller's query.
            _log.warning("the upstream service gave no answer", outcome=outcome, error=type(error).__name__)
        return self._refusal(status, outcome, detail)

    def _refusal(self, status: int, outcome: str, detail: str) -> web.Response:
        self._metrics.upstream.labels(outcome).inc()
        response = web.json_response({"detail": detail}, status=status, headers={"Cache-Control": "no-store"})
        if status in (503, 504):
            response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
        return response


def _without(headers: CIMultiDictProxy[str], left_out: frozenset[str]) -> CIMultiDict[str]:
    """Headers without these, and without those that are said to be for one connection."""
    named = {name.strip().lower() for header in headers.getall(hdrs.CONNECTION, ()) for name in header.split(",")}
    return sendable((name, value) for name, value in headers.items() if name.lower() not in left_out | named)


class _Passed(web.StreamResponse):
    """An answer to which no header is added that it did not have."""

    async def _prepare_headers(self) -> None:
        added = {hdrs.CONTENT_TYPE, hdrs.SERVER} - {
            name for name in (hdrs.CONTENT_TYPE, hdrs.SERVER) if name in self.headers
        }
        await super()._prepare_headers()
        for name in added:
            self.headers.popall(name, None)


def _is_nobodys(raw_path: str) -> bool:
    """Whether a path may be read as another one, or goes on behind a word of ours."""
    path = unquote(raw_path)
    segments = path.split("/")[1:]
    odd = "" in segments[:-1] or "." in segments or ".." in segments or "\\" in path or "%2f" in raw_path.lower()
    return odd or OUR_WORDS.match(path) is not None


def _has_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
