"""The door to the service whose place the sidecar takes: what is not ours is passed on, and its answer passed back.

1. Bodies are streamed both ways, byte for byte: nothing is unpacked, kept or limited here.
2. Headers of one connection stay on it (RFC 9110, 7.6.1). The Host is the service's own; X-Forwarded-* and Via say whom
   it is asked for, and through whom.
3. A request that has come through this process already is answered 508, and so is one that has come through too many
   like it: it would go round for ever.
4. Whoever is silent for too long, on either side, is given up. Before an answer has begun that is a 503 or 504 with
   Retry-After; after that the connection is cut, so that half an answer is not taken for a whole one.

Nothing that may change something is sent twice: a request that broke off may have been heard. aiohttp's exceptions stop
here.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientMiddlewareType,
    ClientResponse,
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
from sidecar.metrics import Metrics
from sidecar.relay import BrokenOffError, once, sendable, target
from sidecar.settings import UpstreamSettings

CONNECT_S: Final = 3.0
CONNECTIONS: Final = 64
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

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """The service's answer to a request."""
        if self._goes_round(request):
            return self._refusal(508, "loop", "This request has come through here already: upstream.url leads back.")
        try:
            async with (
                self._session_for(request) as session,
                session.request(
                    request.method,
                    target(self._base, request.rel_url.raw_path, request),
                    headers=self._headers(request),
                    data=self._upload(request) if request.can_read_body else None,
                    allow_redirects=False,
                ) as answer,
            ):
                if not self._answers:
                    self._answers = True
                    _log.info("the upstream service answers again")
                return await self._passed_back(request, answer)
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            return self._failed("unreachable", "The upstream service cannot be reached.", 503, error)
        except TimeoutError as error:
            return self._failed("timeout", f"The upstream service was silent for {self._silence_s:g} s.", 504, error)
        except (BrokenOffError, ClientError, HttpProcessingError, OSError) as error:
            return self._failed("broken", "The upstream service broke off before it had answered.", 503, error)

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
            self._kept = self._session(TCPConnector(limit=CONNECTIONS))
        yield self._kept

    def _session(self, connector: TCPConnector, *middlewares: ClientMiddlewareType) -> ClientSession:
        return ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            timeout=ClientTimeout(total=None, connect=CONNECT_S, sock_read=self._silence_s),
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

    async def _upload(self, request: web.Request) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    piece = await request.content.readany()
            except TimeoutError:
                # What it has sent so far must not be taken for all of it, and it hears nothing either.
                if request.transport is not None:
                    request.transport.abort()
                raise
            if not piece:
                return
            yield piece

    async def _passed_back(self, request: web.Request, answer: ClientResponse) -> web.StreamResponse:
        headers = _without(answer.headers, HOP_BY_HOP)
        headers[hdrs.VIA] = ", ".join([*answer.headers.getall(hdrs.VIA, ()), f"1.1 {self._via}"])
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await response.prepare(request)
        try:
            if request.method != hdrs.METH_HEAD and answer.status not in NO_BODY:
                async for piece in answer.content.iter_any():
                    async with asyncio.timeout(self._silence_s):
                        await response.write(piece)
            await response.write_eof()
        except (TimeoutError, ClientError, HttpProcessingError, OSError) as error:
            # It has begun, and cannot be taken back.
            self._metrics.upstream.labels("cut").inc()
            _log.warning("an answer of the upstream service was cut", error=type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
            return response
        self._metrics.upstream.labels("answered").inc()
        return response

    def _failed(self, outcome: str, detail: str, status: int, error: Exception) -> web.Response:
        if self._answers:
            self._answers = False
            # Not the error's text: some quote the url, and with it the caller's query.
            _log.warning("the upstream service gave no answer", outcome=outcome, error=type(error).__name__)
        return self._refusal(status, outcome, detail)

    def _refusal(self, status: int, outcome: str, detail: str) -> web.Response:
        self._metrics.upstream.labels(outcome).inc()
        response = web.json_response({"detail": detail}, status=status, headers={"Cache-Control": "no-store"})
        if status != 508:
            response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
        return response


def _without(headers: CIMultiDictProxy[str], left_out: frozenset[str]) -> CIMultiDict[str]:
    """Headers without these, and without those that are said to be for one connection."""
    named = {name.strip().lower() for header in headers.getall(hdrs.CONNECTION, ()) for name in header.split(",")}
    return sendable((name, value) for name, value in headers.items() if name.lower() not in left_out | named)
