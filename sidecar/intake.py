"""What both processes take in over HTTP, and within which bounds: lines, bodies, time. Nothing is understood here.

A request that breaks a bound is a Refusal. Its texts are given as they were sent: aiohttp's own parser of query strings
has turned every plus into a space.
"""

import asyncio
import re
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeVar

from aiohttp import web

from sidecar.parameters import Refusal

# Whole baskets are asked about in one query string.
MAX_LINE_BYTES: Final = 64 * 1024
# Today's service takes bodies of 2.5 MiB.
MAX_BODY_BYTES: Final = 2_621_440
# How long a body may take, from its head to its last byte: whoever sends slower holds a connection, and memory.
BODY_S: Final = 10.0
SHUTDOWN_S: Final = 5.0
# As nginx counts those who hang up before they have their answer; nobody is there to read it.
CLIENT_GONE: Final = 499
REQUEST_ID: Final = "X-Request-ID"
# What may stand in a log line, and in a header that is passed on, as it came.
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_ID: Final = web.RequestKey("request_id", str)


Runner = TypeVar("Runner", bound=web.AppRunner)


def within_bounds(runner: Callable[..., Runner], *args: Any) -> Runner:
    """A runner of this kind, which speaks HTTP within the bounds."""
    return runner(
        *args,
        access_log=None,
        # Compressed bodies are refused; they are not unpacked before that.
        auto_decompress=False,
        # A write goes on when its caller hangs up.
        handler_cancellation=False,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        shutdown_timeout=SHUTDOWN_S,
    )


def runner_of(app: web.Application) -> web.AppRunner:
    """What speaks HTTP for an application."""
    return within_bounds(web.AppRunner, app)


def request_id(request: web.Request) -> str:
    """What a request is called in the logs of both processes: its sender's X-Request-ID if that is sane, else a new
    one. It is told to no caller but with a 500: headers of answers are as they always were, and the fast lane, which
    logs nothing, has none.
    """
    known = request.get(_ID)
    if known is None:
        given = request.headers.get(REQUEST_ID, "")
        known = request[_ID] = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
    return known


async def receive(request: web.Request, body_s: float = BODY_S) -> bytes:
    """The body, once all of it has arrived; `request.read()` has it from then on."""
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None:
        # A compressed body that is cut looks like a short one, and would get a wrong answer.
        raise Refusal(415, {"detail": f'Unsupported content encoding "{encoding}" in request.'})
    try:
        async with asyncio.timeout(body_s):
            return await request.read()
    except TimeoutError as error:
        raise Refusal(408, {"detail": f"The body did not arrive within {body_s:g} s."}) from error
    except OSError as error:
        raise Refusal(CLIENT_GONE, {"detail": "The client has gone."}) from error


def raw_query(request: web.Request) -> str:
    """The query string as it was sent."""
    return request.raw_path.partition("?")[2]


def absolute_url(request: web.Request) -> str:
    """The url of the request as its sender sees it, by the Host header; the query as it was sent."""
    return f"{request.scheme}://{request.host}{request.rel_url.raw_path}?{raw_query(request)}"
