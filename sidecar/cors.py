"""Web pages of other origins that may ask from a browser, with the credentials that the browser keeps for us.

1. An origin is let in if it is listed, to the letter; there is no wildcard, because answers are to somebody's name.
2. A preflight of such an origin is answered here, before anybody is asked for a token: a browser sends none with it.
3. Every other answer tells the browser that the page may read it. An origin that is not listed is told nothing, and the
   browser keeps the answer from its page; that is the browser's to do, and so nothing is refused here.

Where origins are listed, every answer says that it differs by origin, for caches on the way.
"""

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
# How long a browser need not ask again.
PREFLIGHT_S: Final = 86_400


def install(app: web.Application, origins: Iterable[str]) -> None:
    """Lets pages of these origins in."""
    listed = frozenset(origins)
    if not listed:
        return

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        vary = response.headers.getall(hdrs.VARY, [])
        response.headers[hdrs.VARY] = ", ".join([*vary, hdrs.ORIGIN])
        origin = request.headers.get(hdrs.ORIGIN)
        if origin in listed:
            # Also in the place of what another service said that a request was passed on to.
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ANSWER_HEADERS

    app.on_response_prepare.append(tell)
    app.middlewares.append(_preflights(listed))


def _preflights(listed: frozenset[str]) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or asked is None or request.headers.get(hdrs.ORIGIN) not in listed:
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: REQUEST_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
            },
        )

    return middleware
