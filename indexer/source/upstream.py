"""The one door to a service over HTTP: tokens, time limits, retries, pauses and the budget; nothing of what is asked.

Foreign exceptions stop here. What another try may mend (no connection, no answer in time, 408, 429, 5xx, a body that is
not JSON) is tried again with growing pauses; any other status but 2xx is Refused at once. A Retry-After pauses the
whole service, not one request. Redirects are not followed: a token goes to the configured host and nowhere else.
"""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, Protocol

import aiohttp
import orjson
from yarl import URL

from indexer.source import SourceError
from sidecar.clock import Clock

FIRST_PAUSE_S: Final = 2.0
MAX_PAUSE_S: Final = 300.0
HOUR_S: Final = 3600.0
"""Discovery throttles by the hour, so no honest Retry-After is longer; and the window of the budget."""
TOKEN_MARGIN_S: Final = 60.0
SHOWN_CHARACTERS: Final = 200
MAX_BODY_BYTES: Final = 128 * 1024 * 1024
"""A page has 100 documents, of which the largest known is 1 MB."""


class Unwanted(SourceError):
    """Raised when the service has answered, to the last try, but not with what was asked for; carries the answer."""

    def __init__(self, message: str, status: int, content: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.content = content


class Refused(Unwanted):
    """Raised when the service answers, and asking again would not change the answer; `body` is what may be shown."""

    def __init__(self, message: str, status: int, body: str, content: bytes = b"") -> None:
        super().__init__(message, status, content)
        self.body = body


@dataclass(slots=True)
class Tally:
    """How many requests the service was sent so far for one purpose, retries included, tokens not."""

    requests: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How a service is treated; `requests_per_hour` of 0 is no budget. Whether it `pauses` for a Retry-After."""

    timeout_s: float = 15.0
    retries: int = 4
    concurrency: int = 4
    requests_per_hour: int = 0
    body_bytes: int = MAX_BODY_BYTES
    pauses: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """One thing to ask, `what` being its name in messages. If it is secret, nothing of its answer is shown in them.

    `path` may end in a query string, whose names may repeat.
    """

    what: str
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    json: bytes | None = None
    form: Mapping[str, str] | None = None
    is_secret: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: str | None
    body: bytes
    token: str


class _Passing(Exception):
    """Raised when a try failed and the next may not; `paused` if the service has said how long to wait."""

    def __init__(self, problem: str, body: str = "", *, paused: bool = False, answer: _Answer | None = None) -> None:
        super().__init__(problem)
        self.body = body
        self.paused = paused
        self.answer = answer


class Credentials(Protocol):
    """Where the token of a request comes from."""

    async def current(self) -> str:
        """A token that is good for a while. Raises SourceError if there is none."""
        ...

    def refuse(self, token: str) -> None:
        """Says that a token was not accepted."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


class Door:
    """One service. The clock lets time pass between tries; only the time limit of a request is the machine's."""

    def __init__(self, url: str, limits: Limits, clock: Clock, tokens: Credentials | None = None) -> None:
        self._url = url.rstrip("/")
        self._limits = limits
        self._clock = clock
        self._tokens = tokens
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._spent_until_s: deque[float] = deque()
        self._resume_s = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, request: Request, tally: Tally) -> Any:
        """The JSON that the service answers. Raises Refused, or once all tries have failed Unwanted or SourceError."""
        for tries in itertools.count(1):
            try:
                return await self._try(request, tally)
            except _Passing as trouble:
                if tries > self._limits.retries:
                    count = "1 try" if tries == 1 else f"{tries} tries"
                    sentence = _sentence(request, f"{trouble} after {count}", trouble.body)
                    if trouble.answer is None:
                        raise SourceError(sentence) from trouble
                    raise Unwanted(sentence, trouble.answer.status, trouble.answer.body) from trouble
                if not trouble.paused:
                    await self._clock.sleep(_pause_s(tries))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Ends every connection; the door opens again when it is asked again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _try(self, request: Request, tally: Tally) -> Any:
        async with self._slots:
            answer = await self._send(request, tally)
            if answer.status == HTTPStatus.UNAUTHORIZED and self._tokens is not None:
                self._tokens.refuse(answer.token)
                answer = await self._send(request, tally)
        return self._judge(request, answer)

    async def _send(self, request: Request, tally: Tally) -> _Answer:
        await self._admission()
        token = "" if self._tokens is None else await self._tokens.current()
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"JWT {token}"
        if request.json is not None:
            headers["Content-Type"] = "application/json"
        tally.requests += 1
        try:
            async with self._opened().request(
                request.method,
                URL(self._url + request.path),
                params=request.params or None,
                data=request.json if request.form is None else request.form,
                headers=headers,
                allow_redirects=False,
            ) as response:
                body = await _bounded(response, request.what, self._limits.body_bytes)
                return _Answer(response.status, response.headers.get("Retry-After"), body, token)
        except TimeoutError as error:
            raise _Passing(f"no answer within {self._limits.timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise _Passing(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    async def _admission(self) -> None:
        """Returns once a request may be sent: no pause is on, and the last hour's requests leave room for it."""
        budget = self._limits.requests_per_hour
        spent = self._spent_until_s
        while True:
            now = self._clock.monotonic()
            while spent and spent[0] <= now:
                spent.popleft()
            resume_s = max(self._resume_s, spent[0] if budget and len(spent) >= budget else now)
            if resume_s <= now:
                break
            await self._clock.sleep(resume_s - now)
        if budget:
            spent.append(now + HOUR_S)

    def _judge(self, request: Request, answer: _Answer) -> Any:
        status = _named(answer.status)
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            try:
                return orjson.loads(answer.body)
            except orjson.JSONDecodeError as error:
                shown = _beginning(request, answer)
                raise _Passing(f"{status}, and a body that is not JSON", shown, answer=answer) from error
        shown = _beginning(request, answer)
        if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            pause_s = _retry_after_s(answer.retry_after, self._clock.now_ms())
            if pause_s is not None and self._limits.pauses:
                self._resume_s = max(self._resume_s, self._clock.monotonic() + pause_s)
            # One of 0 s, or of a moment that is over by our clock, is no reason to hurry.
            raise _Passing(status, shown, paused=bool(pause_s) and self._limits.pauses, answer=answer)
        if answer.status == HTTPStatus.REQUEST_TIMEOUT or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Passing(status, shown, answer=answer)
        raise Refused(_sentence(request, status, shown), answer.status, shown, answer.body)

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made at the first request: it belongs to the loop that is running then."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # The slots are the limit.
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(_sent_once,),
                timeout=aiohttp.ClientTimeout(total=self._limits.timeout_s),
            )
        return self._session


class GivenToken:
    """Implements Credentials with the one token that somebody has handed over."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def current(self) -> str:
        return self._token

    def refuse(self, token: str) -> None:
        pass

    async def close(self) -> None:
        pass


class Tokens:
    """Implements Credentials with a token that OAuth2 issues for client credentials.

    It is one token, renewed before it ends or when it is refused, by one request at a time.
    """

    def __init__(self, url: str, client_id: str, client_secret: str, limits: Limits, clock: Clock) -> None:
        """`limits` are the token endpoint's own: tokens take nothing from the budget of what they open."""
        parts = URL(url)
        self._path = parts.raw_path
        self._door = Door(str(parts.with_path("")), limits, clock)
        self._client_id = client_id
        self._client_secret = client_secret
        self._clock = clock
        self._token = ""
        self._renew_at_s = 0.0
        self._renewing = asyncio.Lock()

    async def current(self) -> str:
        async with self._renewing:
            if not self._token or self._clock.monotonic() >= self._renew_at_s:
                await self._renew()
        return self._token

    def refuse(self, token: str) -> None:
        """One that has been replaced meanwhile is no matter."""
        if token == self._token:
            self._token = ""

    async def close(self) -> None:
        await self._door.close()

    async def _renew(self) -> None:
        asked_s = self._clock.monotonic()
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "client_secret": self._client_secret,
            "token_type": "jwt",
        }
        request = Request("access token", "POST", self._path, form=form, is_secret=True)
        try:
            issued = await self._door.ask(request, Tally())
        except Refused as refused:
            # Not as Refused: whoever wants the token would take the status for its own service's.
            raise SourceError(str(refused)) from refused
        token, life_s = (issued.get("access_token"), issued.get("expires_in")) if isinstance(issued, dict) else ("", 0)
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token.strip():
            raise SourceError("access token: the answer has no access_token that is a text")
        if isinstance(life_s, bool) or not isinstance(life_s, int | float) or life_s <= 0:
            raise SourceError("access token: the answer has no expires_in of more than 0 seconds")
        self._token = token
        self._renew_at_s = asked_s + life_s - min(TOKEN_MARGIN_S, life_s / 2)


async def _sent_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp sends a GET again by itself when its connection breaks; here every request is counted."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(str(error)) from error


def _pause_s(tries: int) -> float:
    """Doubles from two seconds, and half as much again by chance: what failed together must not return together.

    Not stamina's: it sleeps by itself, and here the clock is passed in.
    """
    return min(FIRST_PAUSE_S * 2.0 ** min(tries - 1, 30), MAX_PAUSE_S) * random.uniform(1.0, 1.5)


def _retry_after_s(value: str | None, now_ms: int) -> float | None:
    """Seconds from a Retry-After, which is a number of them or an HTTP date; None if it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), HOUR_S)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return min(max(moment.timestamp() - now_ms / 1000, 0.0), HOUR_S)


async def _bounded(response: aiohttp.ClientResponse, what: str, most: int) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most:
            raise SourceError(f"{what}: an answer of more than {most} bytes")
    return bytes(body)


def _beginning(request: Request, answer: _Answer) -> str:
    """What an answer begins with, for messages; nothing of an answer to a secret, which may be another one."""
    if request.is_secret:
        return ""
    text = answer.body.decode("utf-8", "replace")
    if answer.token:
        text = text.replace(answer.token, "***")
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _named(status: int) -> str:
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def _sentence(request: Request, problem: str, body: str) -> str:
    return f"{request.what}: {request.method} {request.path}: {problem}" + (f": {body}" if body else "")
