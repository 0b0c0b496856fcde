"""What passing a request on to another service takes, whichever it is: where to, with which headers, and once alone.

Nothing waits here, and nothing is sent. What is passed on is as it was received, but for bytes that HTTP does not have.
"""

import string
from collections.abc import Iterable
from urllib.parse import quote

from aiohttp import (
    ClientConnectorError,
    ClientHandlerType,
    ClientOSError,
    ClientRequest,
    ClientResponse,
    ServerDisconnectedError,
    web,
)
from multidict import CIMultiDict
from yarl import URL


class BrokenOffError(Exception):
    """Raised when an exchange broke off, or its answer was too large to be taken: it may have been heard."""


def target(base: str, path: str, request: web.Request) -> URL:
    """The url of a request at another service; its query is as it was sent."""
    query = request.raw_path.partition("?")[2]
    query = quote(query.encode(errors="surrogateescape"), safe=string.punctuation)
    return URL(f"{base}{path}{'?' if query else ''}{query}", encoded=True)


def sendable(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """Headers that can be sent on: bytes that are not UTF-8 are held as surrogates, which could not be."""
    return CIMultiDict((name, text.encode(errors="surrogateescape").decode(errors="replace")) for name, text in headers)


async def once(request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
    """A client middleware that hides from aiohttp what it would send a PUT or a DELETE again for."""
    try:
        return await send(request)
    except ClientConnectorError:
        raise
    except (ClientOSError, ServerDisconnectedError) as error:
        raise BrokenOffError(type(error).__name__) from error
