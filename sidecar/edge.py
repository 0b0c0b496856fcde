"""Where every request enters: it is measured, and whatever goes wrong leaves as JSON.

Routes that are about the process itself are here: /ready, /health, /metrics, /openapi.json.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.clock import Clock
from sidecar.contract.words import PullState
from sidecar.handlers import RETRY_AFTER_S
from sidecar.health import Health
from sidecar.intake import request_id
from sidecar.log import logging_as
from sidecar.metrics import Metrics
from sidecar.schemas import (
    BOOLEAN,
    KEYS,
    NUMBER,
    TEXT,
    TIME_OR_NULL,
    Operation,
    closed,
    nullable,
)
from sidecar.workers.siblings import NoPage

JSON_HEADERS: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}
# The content type of the text format that `Metrics.render` writes.
METRICS_HEADERS: Final = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8", "Cache-Control": "no-store"}
STATES: Final = [state.name.lower() for state in PullState]
_NUMBER_OR_NULL: Final = nullable("integer", minimum=0)
_READY: Final = closed("Ready", {"ready": BOOLEAN, "generation": _NUMBER_OR_NULL})
_HEALTH: Final = closed(
    "Health",
    {
        "status": {"enum": ["ok", "degraded", "unavailable"]},
        "problems": KEYS,
        "version": TEXT,
        "generation": _NUMBER_OR_NULL,
        "epoch": _NUMBER_OR_NULL,
        "published_at": TIME_OR_NULL,
        "oldest_content_age_s": _NUMBER_OR_NULL,
        "freshness_s": NUMBER,
        "stale_queries": NUMBER,
        "stale": {
            "type": "array",
            "items": closed("StaleQuery", {"hash": TEXT, "age_s": NUMBER, "state": {"enum": STATES}}),
        },
        "never_pulled_catalogs": NUMBER,
        "lag_s": {"type": "number", "minimum": 0},
        "swapped_at": TIME_OR_NULL,
        "store": closed(
            "StoreHealth",
            {"reachable": BOOLEAN, "behind": BOOLEAN, "conflict": BOOLEAN, "looked_at": TIME_OR_NULL},
        ),
        "disk": {"enum": ["ok", "incomplete", "failing", "off"]},
        "memory": closed("Memory", {"bytes": NUMBER, "limit_bytes": NUMBER, "evictions": NUMBER}),
        "worker": closed("Worker", {"number": NUMBER, "wanted": NUMBER, "running": NUMBER}),
    },
)
# What each of these paths answers to GET, and to HEAD.
PROCESS: Final[Mapping[str, Operation]] = {
    "/ready": Operation("Whether to send requests here.", {200: _READY, 503: _READY}),
    "/health": Operation("Whether it is well: 503 if it is unavailable.", {200: _HEALTH, 503: _HEALTH}),
    "/metrics": Operation("What Prometheus reads.", {200: TEXT, 503: TEXT}, type="text/plain"),
    "/openapi.json": Operation("This document.", {200: {"type": "object"}}),
}
_DETAILS: Final = {404: "Not found.", 413: "The body is too large."}
_log = structlog.get_logger(__name__)


def measured(metrics: Metrics, clock: Clock) -> Middleware:
    """The middleware around all routes."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = clock.monotonic()
        resource = request.match_info.route.resource
        route = "other" if resource is None else resource.canonical
        with logging_as(partial(request_id, request)):
            response = await _answered(request, handler)
        metrics.requests.of(route).add(response.status, clock.monotonic() - began)
        return response

    return middleware


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if isinstance(error, web.HTTPMethodNotAllowed):
            response = _json(405, {"detail": f'Method "{error.method}" not allowed.'})
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        return _json(error.status, {"detail": _DETAILS.get(error.status, error.reason)})
    # The one place that catches everything: a defect costs one request its answer, which is still JSON.
    except Exception:  # noqa: BLE001
        _log.exception("a request failed", method=request.method, path=request.path)
        return _json(500, {"detail": "A server error occurred.", "request_id": request_id(request)})


def process_routes(
    health: Callable[[], Health],
    stale: Callable[[], list[dict[str, Any]]],
    page: Callable[[], Awaitable[bytes]],
    document: bytes,
) -> list[web.RouteDef]:
    """The routes of PROCESS; `stale` tells which queries are, for /health alone, because it looks at all of them;
    `page` makes what /metrics answers, or raises NoPage; `document` is /openapi.json's.
    """

    async def ready(_: web.Request) -> web.Response:
        generation = health().generation
        response = _json(
            200 if generation is not None else 503, {"ready": generation is not None, "generation": generation}
        )
        if generation is None:
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    async def well(_: web.Request) -> web.Response:
        report = health()
        oldest = stale() if report.stale_queries else []
        return _json(503 if report.status == "unavailable" else 200, report.document() | {"stale": oldest})

    async def counted(_: web.Request) -> web.Response:
        try:
            return web.Response(body=await page(), headers=METRICS_HEADERS)
        except NoPage as error:
            return web.Response(status=503, text=f"{error}\n", headers={"Cache-Control": "no-store"})

    async def described(_: web.Request) -> web.Response:
        return web.Response(body=document, headers=JSON_HEADERS)

    routes = (("/ready", ready), ("/health", well), ("/metrics", counted))
    both = [web.get(path + slash, handler) for path, handler in routes for slash in ("", "/")]
    return [*both, web.get("/openapi.json", described)]


def _json(status: int, body: object) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), headers=JSON_HEADERS)
