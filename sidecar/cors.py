"""Web pages of other origins that may ask from a browser, with the credentials that the browser keeps for us.

1. An origin is let in if it is listed, to the letter; there is no wildcard, because answers are to somebody's name.
2. A preflight of such an origin is answered here, before anybody is asked for a token: a browser sends none with it.
3. Every other answer tells the browser that the page may read it. An origin that is not listed is told nothing, and the
   browser keeps the answer from its page; that is the browser's to do, and so nothing is refused here.

Where origins are listed, every answer says that it differs by origin, for caches on the way.
"""

import re
from collections.abc import Iterable
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

METHODS: Final = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
# What the portals send, and what clients of this API may.
REQUEST_HEADERS: Final = (
    "accept, accept-language, authorization, content-type, use-jwt-cookie, "
    "x-after-task, x-csrftoken, x-min-generation, x-request-id, x-requested-with"
)
ANSWER_HEADERS: Final = "Retry-After, X-Catalog-Age, X-Catalog-Generation, X-Catalog-Published"
_NAMES: Final = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
# How long a browser need not ask again.
PREFLIGHT_S: Final = 86_400


def install(app: web.Application, origins: Iterable[str]) -> None:
    """Lets pages of these origins in."""
    listed = frozenset(origins)
    if not listed:
        return

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        # Beside, or in the place of, what another service said that a request was passed on to.
        headers = response.headers
        headers[hdrs.VARY] = _joined(headers.getall(hdrs.VARY, []), hdrs.ORIGIN)
        origin = _listed_origin(request, listed)
        if origin is not None:
            exposed = headers.getall(hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, [])
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _joined(exposed, ANSWER_HEADERS)

    app.on_response_prepare.append(tell)
    app.middlewares.append(_preflights(listed))


def _listed_origin(request: web.Request, listed: frozenset[str]) -> str | None:
    """The origin of the page that asks, if it is let in; several are none."""
    given = request.headers.getall(hdrs.ORIGIN, [])
    return given[0] if len(given) == 1 and given[0] in listed else None


def _joined(before: list[str], more: str) -> str:
    """Lists of names as one, each name once."""
    names = [name.strip() for text in (*before, more) for name in text.split(",") if name.strip()]
    return ", ".join(
        {name.lower(): name for name in reversed(names)}[key] for key in dict.fromkeys(map(str.lower, names))
    )


def _preflights(listed: frozenset[str]) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or asked is None or _listed_origin(request, listed) is None:
            return await handler(request)
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
                # A page that is trusted with credentials may send what it likes; ours are named for people.
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: wanted if _NAMES.fullmatch(wanted) else REQUEST_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
            },
        )

    return middleware
