"""Wiring, and nothing else: which object is handed to which, and what runs for how long."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from sidecar import cors
from sidecar.auth import Tokens
from sidecar.catalogs import CATALOGS
from sidecar.clock import Clock
from sidecar.containment import CONTAINMENT
from sidecar.content import Contents, content_routes, page_route
from sidecar.copier import Copier
from sidecar.current import Current
from sidecar.disk import Disk, lock
from sidecar.documents import Links
from sidecar.edge import PROCESS, measured, process_routes
from sidecar.follow import Follower
from sidecar.forward import Forwarder
from sidecar.handlers import api_routes
from sidecar.health import Health, StoreStatus, report, stale_queries
from sidecar.intake import MAX_BODY_BYTES
from sidecar.keys import Keyring, open_keyring
from sidecar.lane import Lane
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.old_api import old_definitions, old_routes
from sidecar.openapi import document
from sidecar.protocol import runner_with
from sidecar.queries import QUERIES
from sidecar.settings import Settings, origins
from sidecar.shelves import Shelves
from sidecar.sockets import listening
from sidecar.store import Store
from sidecar.tiers import Tiers
from sidecar.upstream import Upstream
from sidecar.walks import Walks
from sidecar.workers.siblings import Alone, Siblings

_log = structlog.get_logger(__name__)


class Sidecar:
    """All parts of one sidecar. Tests reach in to see what a part knows; requests come through `app`.

    Raises KeysUnusable if no token could be verified.
    """

    def __init__(self, settings: Settings, store: Store, clock: Clock, siblings: Siblings | None = None) -> None:
        self.siblings = siblings or Alone()
        self._draining = False
        self.metrics = Metrics()
        self.current = Current()
        self.memory = Memory(settings.sidecar.memory_mb * 1024 * 1024)
        its_lock = partial(lock, sidecar=self.siblings.token)
        self.disk = Disk(Path(settings.sidecar.disk) if settings.sidecar.disk else None, self.metrics, lock=its_lock)
        self.tiers = Tiers(self.memory, self.disk, store, self.metrics)
        self.follower = Follower(
            store, self.tiers, self.disk, self.current, clock, self.metrics, poll_s=settings.sidecar.poll_ms / 1000
        )
        self.copier = Copier(self.current, self.tiers, self.disk, clock)
        self.forwarder = Forwarder(settings.sidecar.indexer_url, self.current, self.metrics, siblings=self.siblings)
        self._settings = settings
        self._store = store
        self._clock = clock
        self.keyring: Keyring | None = None
        tokens: Tokens | None = None
        if settings.auth.mode == "jwt":
            self.keyring = open_keyring(settings.auth, clock)
            tokens = Tokens(settings.auth, self.keyring, clock)
        self.app = web.Application(middlewares=[measured(self.metrics, clock)], client_max_size=MAX_BODY_BYTES)
        shelves, links, walks = Shelves(self.tiers), Links.of(settings.links), Walks(clock)
        contents = Contents(shelves, links, walks)
        content = content_routes(contents)
        routes = (*CONTAINMENT, *CATALOGS, *content, *QUERIES)
        self.app.add_routes(api_routes(routes, self.current, self.forwarder, clock, tokens=tokens))
        old = old_routes(shelves, links, walks, clock)
        self.app.add_routes(old_definitions(old, self.current, clock, tokens=tokens))
        described = document(routes, old, PROCESS, secured=tokens is not None)
        self.app.add_routes(process_routes(self.health, self.stale, self.page, described))
        self.upstream = Upstream(settings.upstream, self.metrics) if settings.upstream.url else None
        if self.upstream is not None:
            # Whatever no route before it takes.
            self.app.router.add_route("*", "/{path:.*}", self.upstream.pass_on)
        listed = origins(settings.sidecar.cors_origins)
        cors.install(self.app, listed)
        self.lane = Lane(self.current, clock, self.metrics, page_route(contents), tokens=tokens, varies=bool(listed))
        if siblings is not None:
            # Whoever is alone has nobody to leave connections to, and no use for a step of every answer.
            self.app.on_response_prepare.append(self._end_connection)
        self.app.on_shutdown.append(self._stop_waiting)
        self.app.cleanup_ctx.append(self._background)

    def drain(self) -> None:
        """From now on every answer is the last one on its connection."""
        self._draining = True
        self.lane.close()

    def health(self) -> Health:
        """The report as of now."""
        return report(
            self.current.generation,
            self.follower.status,
            self.disk.status,
            memory=(self.memory.bytes, self.memory.limit_bytes, self.memory.evictions),
            freshness_s=self._settings.indexer.freshness_s,
            now_ms=self._clock.now_ms(),
            now_s=self._clock.monotonic(),
            keys=None if self.keyring is None else self.keyring.problem,
            standing=self.siblings.standing,
        )

    def stale(self) -> list[dict[str, Any]]:
        """Which queries are stale as of now: some of them, the oldest first."""
        return stale_queries(
            self.current.generation, freshness_s=self._settings.indexer.freshness_s, now_ms=self._clock.now_ms()
        )

    async def page(self) -> bytes:
        """The metrics of this process and its siblings, as of now. Raises NoPage."""
        return await self.siblings.page(lambda: self.metrics.render(self.health()))

    async def _end_connection(self, _: web.Request, response: web.StreamResponse) -> None:
        if self._draining:
            response.headers["Connection"] = "close"
            response.force_close()

    async def _stop_waiting(self, _: web.Application) -> None:
        self.forwarder.stop()
        self.current.end()
        if self.upstream is not None:
            self.upstream.stop()

    async def _background(self, _: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.follower.run())]
        if self.disk.status.state != "off":
            tasks.append(asyncio.create_task(self.copier.run()))
        if self.keyring is not None:
            tasks.append(asyncio.create_task(self.keyring.run()))
        for task in tasks:
            task.add_done_callback(lambda ended: _note_end(ended, self.follower.status))
        yield
        for task in tasks:
            task.cancel()
        # A defect that ended one of them was logged when it happened.
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.upstream is not None:
            await self.upstream.close()
        await self.tiers.close()
        await self.disk.close()
        await self._store.close()


async def serve(settings: Settings, store: Store, clock: Clock, stop: asyncio.Event) -> None:
    """Serves until `stop` is set. Raises CannotListen."""
    sidecar = Sidecar(settings, store, clock)
    runner = runner_with(sidecar.lane, sidecar.app)
    where = settings.sidecar
    async with listening(runner, where.host, where.port, where.socket, section="sidecar") as bound:
        _log.info("listening", host=bound.host, port=bound.port, socket=bound.socket)
        await stop.wait()
        _log.info("stopping")


def _note_end(task: asyncio.Task[None], status: StoreStatus) -> None:
    """A task that was to run for ever has met a defect: what is loaded goes on being served, and health says so."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background task ended", exc_info=error)
        status.stopped = f"{type(error).__name__}: {error}"
