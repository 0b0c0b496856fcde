"""The door to the indexer's API: a write is passed on as it came, and its answer waits until it can be read back here.

1. The request goes to `sidecar.indexer_url`: its path, query and body byte for byte, the headers of FORWARDED, and
   the id under which both processes log it.
   Each over a connection of its own: writes are rare, and a kept connection that the other end has just closed could
   not be told from a write that got lost. Nothing is ever sent twice, no redirect is followed, no cookie is kept.
2. What was made carries X-Catalog-Clock, the registry's clock. The answer is held back until the generation that this
   sidecar serves, in all of its workers, covers it, and names that generation; past the deadline it says
   X-Catalog-Published: pending. So it does at once if the indexer says that a generation is pinned (X-Catalog-Pinned):
   none that shows the write will come before somebody unpins.
3. Without an answer it is a 503 that says which: not sent, or sent and not known to be made. Repeating is safe then.

A caller who hangs up does not end this: the write may be made already, and goes on, within its deadlines. aiohttp's
exceptions stop here.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from io import BytesIO
from typing import Final, NamedTuple

import structlog
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    TCPConnector,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from sidecar.current import Current, Generation
from sidecar.intake import MAX_BODY_BYTES, REQUEST_ID, request_id
from sidecar.metrics import Metrics
from sidecar.parameters import Refusal
from sidecar.relay import BrokenOffError, once, sendable, target
from sidecar.workers.siblings import Alone, Siblings

FORWARDED: Final = ("Content-Type", "Accept", "Authorization", "Cookie", "USE-JWT-COOKIE")
RETURNED: Final = ("Content-Type", "Allow", "Location", "Retry-After", "WWW-Authenticate", "X-Catalog-Published")
# Bodies of writes that are under way, at once: a pod's memory is for reads.
MAX_UNDER_WAY_BYTES: Final = 32 * 1024 * 1024
# The largest is the record of one catalog, or all that is wrong with a body.
MAX_ANSWER_BYTES: Final = 1024 * 1024
UNREACHABLE: Final = "The indexer cannot be reached: nothing was changed. Reading goes on; try again later."
BUSY: Final = "Too many large writes are under way here: nothing was changed. Try again later."
UNKNOWN: Final = (
    "The indexer did not answer: it cannot be told whether the change was made. Repeat the request: one that was made "
    "already changes nothing more (a create needs the same uuid and body for that)."
)
_CLOCK: Final = re.compile(r"[0-9]{1,19}")
_log = structlog.get_logger(__name__)


class Deadlines(NamedTuple):
    """Seconds for a connection, for the indexer's whole answer, and, from the same beginning, for the caller's."""

    connect_s: float = 2.0
    exchange_s: float = 15.0
    answer_s: float = 20.0


DEADLINES: Final = Deadlines()


class Reply(NamedTuple):
    """What the indexer answered; the clock, if it made something that a generation will show for all that is known."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    clock: int | None


class Forwarder:
    """Passes writes on to the indexer at `url`, whose path, if it has one, goes before theirs."""

    def __init__(
        self,
        url: str,
        current: Current,
        metrics: Metrics,
        deadlines: Deadlines = DEADLINES,
        *,
        siblings: Siblings | None = None,
    ) -> None:
        # A user in the url would take the place of the caller's own Authorization.
        self._base = str(URL(url).with_user(None)).rstrip("/")
        self._current = current
        self._siblings = siblings or Alone()
        self._metrics = metrics
        self._deadlines = deadlines
        self._waiting: set[asyncio.Timeout] = set()
        self._stopping = False
        self._answers = True
        self._under_way_bytes = 0

    @contextmanager
    def room(self, request: web.Request) -> Iterator[None]:
        """While this is open the request's body may be held. Raises Refusal if too many are held already, or it is too
        large to be taken at all.
        """
        size = MAX_BODY_BYTES if request.content_length is None else request.content_length
        if size > MAX_BODY_BYTES:
            raise Refusal(413, {"detail": "The body is too large."})
        if self._under_way_bytes + size > MAX_UNDER_WAY_BYTES:
            self._metrics.writes.labels("refused").inc()
            raise Refusal(503, {"detail": BUSY})
        self._under_way_bytes += size
        try:
            yield
        finally:
            self._under_way_bytes -= size

    async def forward(self, request: web.Request) -> web.Response:
        """The answer to a write whose body has arrived. Raises Refusal if the indexer gave none."""
        until_s = asyncio.get_running_loop().time() + self._deadlines.answer_s
        try:
            reply = await self._exchange(request)
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            raise self._without_answer("unreachable", UNREACHABLE, error) from error
        # Of a broken chunk aiohttp's parsers say HttpProcessingError, or nothing at all until the deadline.
        except (BrokenOffError, ClientError, HttpProcessingError, OSError) as error:
            raise self._without_answer("unknown", UNKNOWN, error) from error
        if not self._answers:
            self._answers = True
            _log.info("the indexer answers again")
        answer = web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        self._metrics.writes.labels(await self._outcome(reply, answer, until_s)).inc()
        return answer

    def stop(self) -> None:
        """Has every write answered at once that is made and waits to be served: the process is about to end."""
        self._stopping = True
        for waiting in self._waiting:
            if not waiting.expired():
                waiting.reschedule(0)

    async def _exchange(self, request: web.Request) -> Reply:
        connect_s, exchange_s, _ = self._deadlines
        body = await request.read()
        async with (
            ClientSession(
                connector=TCPConnector(force_close=True),
                timeout=ClientTimeout(total=exchange_s, connect=connect_s),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                middlewares=(once,),
            ) as session,
            session.request(
                request.method,
                self._target(request),
                headers=_forwarded(request),
                data=BytesIO(body) if body else None,
                allow_redirects=False,
            ) as response,
        ):
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    raise BrokenOffError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            pinned = "X-Catalog-Pinned" in response.headers
            clock = "" if pinned else response.headers.get("X-Catalog-Clock", "")
            return Reply(
                response.status,
                _picked(response.headers, RETURNED),
                bytes(answer),
                int(clock) if response.ok and _CLOCK.fullmatch(clock) else None,
            )

    def _target(self, request: web.Request) -> URL:
        path, suffix = request.rel_url.raw_path, request.match_info.get("format")
        if suffix is not None:
            # The format is this process's to write.
            path = f"{path.removesuffix('/').removesuffix(f'.{suffix}')}/"
        return target(self._base, path, request)

    async def _outcome(self, reply: Reply, answer: web.Response, until_s: float) -> str:
        """What became of the write, which the headers of the answer tell as well."""
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "failed"
        if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
            return "refused"
        if reply.clock is None:
            return "pending" if "X-Catalog-Published" in reply.headers else "accepted"
        generation = await self._covering(reply.clock, until_s)
        if generation is None:
            answer.headers["X-Catalog-Published"] = "pending"
            return "pending"
        # The indexer may have waited in vain for what is loaded by now.
        answer.headers.pop("X-Catalog-Published", None)
        answer.headers["X-Catalog-Generation"] = str(generation.pointer.generation)
        return "loaded"

    async def _covering(self, clock: int, until_s: float) -> Generation | None:
        """The served generation as soon as it covers the clock, and all siblings serve it; None if that is not before
        the deadline.
        """
        waiting = asyncio.timeout_at(0 if self._stopping else until_s)
        self._waiting.add(waiting)
        try:
            async with waiting:
                generation = await self._current.covering(clock)
                await self._siblings.serve(generation.pointer)
                return generation
        except TimeoutError:
            return None
        finally:
            self._waiting.discard(waiting)

    def _without_answer(self, outcome: str, detail: str, error: Exception) -> Refusal:
        self._metrics.writes.labels(outcome).inc()
        if self._answers:
            self._answers = False
            # Not the error's text: some quote the url, and with it the caller's query.
            _log.warning("a write got no answer from the indexer", outcome=outcome, error=type(error).__name__)
        return Refusal(503, {"detail": detail})


def _forwarded(request: web.Request) -> CIMultiDict[str]:
    headers = _picked(request.headers, FORWARDED)
    headers[REQUEST_ID] = request_id(request)
    return headers


def _picked(headers: CIMultiDictProxy[str], names: tuple[str, ...]) -> CIMultiDict[str]:
    return sendable((name, value) for name in names for value in headers.getall(name, ()))
