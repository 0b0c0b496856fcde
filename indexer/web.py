"""The indexer's HTTP side: the catalogs of `indexer.api`, and beside them how it is and what it counts."""

from collections import Counter

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from indexer.api import CatalogApi, answered
from indexer.metrics import Metrics
from indexer.publication import Publication
from indexer.registry import RegistryError
from indexer.service import Role
from indexer.status import Status, status
from indexer.wiring import Parts
from sidecar import __version__
from sidecar.contract.words import PullState
from sidecar.intake import MAX_BODY_BYTES


def make_app(parts: Parts, role: Role, publication: Publication, metrics: Metrics) -> web.Application:
    """Catalogs and pulls, `/health` and `/metrics`."""

    async def look() -> Status:
        now = await status(parts.registry, parts.settings)
        metrics.leading.set(role.leading)
        metrics.epoch.set(role.epoch)
        states = Counter(query.state for query in now.queries)
        for state in PullState:
            metrics.queries.labels(state.name.lower()).set(states[state.name.lower()])
        metrics.oldest_age_s.set(max((q.age_s for q in now.queries if q.age_s is not None), default=0))
        return now

    async def health(_: web.Request) -> web.Response:
        try:
            now = await look()
        except RegistryError as error:
            return web.json_response({"status": "unavailable", "reason": str(error)}, status=503)
        report = {"version": __version__, "leading": role.leading, "problem": role.problem, **now.as_json()}
        if role.problem is not None:
            report["status"] = "degraded"
        return web.json_response(report)

    async def numbers(_: web.Request) -> web.Response:
        try:
            await look()
        except RegistryError:
            metrics.refused.labels("registry out of reach").inc()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application(middlewares=[answered], client_max_size=MAX_BODY_BYTES)
    app.add_routes(CatalogApi(parts, role, publication).routes())
    app.add_routes([web.get("/health", health), web.get("/metrics", numbers)])
    return app
