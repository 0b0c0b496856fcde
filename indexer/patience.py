"""How long a request may take, whatever its handler waits for: past that it is answered without it.

The handler is not waited for then, not even until it has noticed: a database's driver may take its time to give up,
and SQLite's is a thread that nothing interrupts. What has a deadline of its own (a body, a publication) does not count.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

# Of the 15 s that a sidecar waits for the answer to a write, publishing may take 5, and a look that is given up 2 more.
ANSWER_S: Final = 7.0
_PATIENCE: Final = web.RequestKey("patience", asyncio.Timeout)
# Those who were given up, until they have noticed.
_given_up: Final[set["asyncio.Future[web.StreamResponse]"]] = set()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OutOfPatience(Exception):
    """Raised when a handler has not answered in time; whatever it was about to do may be done or not."""


async def answer_in_time(request: web.Request, handler: Handler, within_s: float = ANSWER_S) -> web.StreamResponse:
    """The handler's answer. Raises OutOfPatience, and whatever the handler raises."""
    answering = asyncio.ensure_future(handler(request))
    try:
        async with asyncio.timeout(within_s) as request[_PATIENCE]:
            await asyncio.wait([answering])
    except TimeoutError as error:
        # A handler that kept the loop to itself past its time may have answered nevertheless.
        if not answering.done():
            raise OutOfPatience(f"no answer within {within_s:g} s") from error
    finally:
        if not answering.done():
            answering.cancel()
            _given_up.add(answering)
            answering.add_done_callback(_noticed)
    return answering.result()


@contextmanager
def not_counting(request: web.Request) -> Iterator[None]:
    """What happens in the block has a deadline of its own."""
    patience = request.get(_PATIENCE)
    until_s = None if patience is None else patience.when()
    if patience is None or until_s is None or patience.expired():
        yield
        return
    now_s = asyncio.get_running_loop().time
    left_s = until_s - now_s()
    patience.reschedule(None)
    try:
        yield
    finally:
        if not patience.expired():
            patience.reschedule(now_s() + left_s)


def _noticed(answering: "asyncio.Future[web.StreamResponse]") -> None:
    _given_up.discard(answering)
    if not answering.cancelled():
        # Looked at, so that nobody is warned of it: the request was told that nothing is known.
        answering.exception()
