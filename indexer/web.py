"""The indexer's HTTP side: the catalogs of `indexer.api`, and beside them how it is and what it counts."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from indexer.api import PUBLISHED_WITHIN_S, CatalogApi, answering
from indexer.metrics import Metrics
from indexer.patience import ANSWER_S
from indexer.publication import Publication
from indexer.registry import RegistryError
from indexer.service import Role
from indexer.status import Status, status
from indexer.wiring import Parts
from sidecar import __version__
from sidecar.auth import Tokens
from sidecar.contract.words import PullState
from sidecar.intake import MAX_BODY_BYTES
from sidecar.keys import Keyring, open_keyring

# For a report and for numbers; whoever probes a process gives up after seconds.
LOOK_S: Final = 3.0
log = structlog.get_logger(__name__)


def make_app(
    parts: Parts,
    role: Role,
    publication: Publication,
    metrics: Metrics,
    *,
    answer_s: float = ANSWER_S,
    look_s: float = LOOK_S,
    published_s: float = PUBLISHED_WITHIN_S,
) -> web.Application:
    """Catalogs and pulls, within `answer_s` seconds, writes within `published_s` more; `/health` and `/metrics`, which
    look at the registry for `look_s`. Raises KeysUnusable.
    """

    keyring = open_keyring(parts.settings.auth, parts.clock) if parts.settings.auth.mode == "jwt" else None

    async def look() -> Status:
        try:
            async with asyncio.timeout(look_s):
                now = await status(parts.registry, parts.settings)
        except TimeoutError as error:
            raise RegistryError(f"the registry gave no answer within {look_s:g} s") from error
        metrics.leading.set(role.leading)
        metrics.epoch.set(role.epoch)
        states = Counter(query.state for query in now.queries)
        for state in PullState:
            metrics.queries.labels(state.name.lower()).set(states[state.name.lower()])
        metrics.quarantined.set(now.quarantined)
        ages_s = [query.age_s for query in now.queries if query.age_s is not None]
        metrics.oldest_age_s.set(max(ages_s, default=0))
        if ages_s:
            metrics.last_success_s.set(parts.clock.now_ms() // 1000 - min(ages_s))
        return now

    async def health(_: web.Request) -> web.Response:
        try:
            now = await look()
        except RegistryError as error:
            # Not its text, which names the registry: this is told to whoever asks.
            log.warning("the registry is out of reach", error=str(error))
            return web.json_response({"status": "unavailable", "reason": "the registry is out of reach"}, status=503)
        report = {"version": __version__, "leading": role.leading, "problem": role.problem, **now.as_json()}
        # Which queries there are is not for everybody: `status` tells it.
        report["queries"] = Counter(query.state for query in now.queries)
        report["stale"] = sum(query.stale for query in now.queries)
        report["keys"] = None if keyring is None else keyring.problem
        if role.problem is not None or report["keys"] is not None:
            report["status"] = "degraded"
        return web.json_response(report)

    async def numbers(_: web.Request) -> web.Response:
        try:
            await look()
        except RegistryError:
            metrics.refused.labels("registry out of reach").inc()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application(middlewares=[answering(answer_s)], client_max_size=MAX_BODY_BYTES)
    tokens: Tokens | None = None
    if keyring is not None:
        tokens = Tokens(parts.settings.auth, keyring, parts.clock)
        app.cleanup_ctx.append(lambda _: _kept_up_to_date(keyring))
    app.add_routes(CatalogApi(parts, role, publication, tokens=tokens, within_s=published_s).routes())
    app.add_routes([web.get("/health", health), web.get("/metrics", numbers)])
    return app


async def _kept_up_to_date(keyring: Keyring) -> AsyncIterator[None]:
    task = asyncio.create_task(keyring.run())
    task.add_done_callback(_note_end)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _note_end(task: asyncio.Task[None]) -> None:
    """A task that was to run for ever has met a defect: the keys that are there go on being trusted."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("keys of tokens are no longer read", exc_info=error)
