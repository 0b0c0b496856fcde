"""A sidecar and the indexer that it forwards writes to, the service that it passes the rest on to, and the keys of
tokens: what is between them fails.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.test_utils import TestClient, TestServer

from indexer.metrics import Metrics as IndexerMetrics
from indexer.publication import Publication
from indexer.registry import catalogs
from indexer.service import Role
from indexer.web import make_app
from indexer.wiring import Parts
from sidecar import keys
from sidecar.app import Sidecar
from sidecar.catalogs import CATALOGS
from sidecar.clock import SystemClock
from sidecar.current import Current
from sidecar.forward import UNKNOWN, UNREACHABLE, Deadlines, Forwarder
from sidecar.handlers import api_routes
from sidecar.keys import KeysUnusable
from sidecar.metrics import Metrics
from sidecar.settings import Settings, SidecarSettings, UpstreamSettings
from sidecar.store.memory import MemoryStore
from sidecar.upstream import CONNECT_S, LOOK_S
from tests.fakes import uuid_of
from tests.fault_proxy import HOST, FaultProxy, between
from tests.tokens import jwk, jwks
from tests.wires import Harm, every_harm, recovered, within
from tests.world import World, world

DEADLINES: Final = Deadlines(connect_s=0.3, exchange_s=0.6, answer_s=0.8)
SILENCE_S: Final = 0.5
ONE: Final = f"/api/v1/enterprise-catalogs/{uuid_of('catalog a')}/"
THEIRS: Final = "/api/v1/academies/"
LARGE: Final = bytes(range(256)) * 400
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.add("a", {"content_type": "course"})
        yield made


async def before(app: web.Application) -> AsyncIterator[FaultProxy]:
    async with TestServer(app, host=HOST) as server:
        assert server.port is not None
        async with between((HOST, server.port)) as proxy:
            yield proxy


@pytest.fixture
async def indexer(here: World) -> AsyncIterator[FaultProxy]:
    """An indexer that nobody publishes for, behind a proxy."""
    parts = Parts(Settings(), here.clock, here.registry, here.store, here.source)
    app = make_app(parts, Role(), Publication(here.registry), IndexerMetrics(), published_s=0.1)
    async for proxy in before(app):
        yield proxy


@every_harm
async def test_a_forwarded_write_is_answered_in_time_with_what_is_known_of_it(
    here: World, indexer: FaultProxy, harm: Harm
) -> None:
    async def title() -> str:
        async with here.registry.read() as connection:
            row = await catalogs.find(connection, uuid_of("catalog a"))
        assert row is not None
        return row.title

    app = web.Application()
    forwarder = Forwarder(indexer.url, Current(), Metrics(), DEADLINES)
    app.add_routes(api_routes(CATALOGS, Current(), forwarder, SystemClock()))
    async with TestClient(TestServer(app)) as client:
        harm.on(indexer)
        async with within(DEADLINES.answer_s), client.patch(ONE, json={"title": "b"}) as response:
            status, text = response.status, await response.read()
        indexer.clear()
        if not harm.flips:
            # A flipped body is a body: it may be another title, or no question at all. Whoever minds gives the indexer
            # TLS.
            body = json.loads(text)
            if status == 200:
                assert (body["title"], await title()) == ("b", "b")
            else:
                assert status == 503
                assert body["detail"] in (UNREACHABLE, UNKNOWN)
                assert body["detail"] == UNKNOWN or await title() == "a"
        async with client.patch(ONE, json={"title": "b"}) as response:
            assert (response.status, await title()) == (200, "b")


@pytest.fixture
async def neighbour() -> AsyncIterator[FaultProxy]:
    """The service whose place the sidecar takes, behind a proxy: it sends back what it is sent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read() or LARGE)

    app = web.Application()
    app.router.add_route("*", THEIRS, answer)
    async for proxy in before(app):
        yield proxy


@every_harm
async def test_what_is_passed_on_is_answered_whole_or_as_an_error_or_cut(neighbour: FaultProxy, harm: Harm) -> None:
    settings = Settings(
        sidecar=SidecarSettings(disk=""), upstream=UpstreamSettings(url=neighbour.url, timeout_s=SILENCE_S)
    )
    sidecar = Sidecar(settings, MemoryStore(), SystemClock())
    async with TestClient(TestServer(sidecar.app)) as client:

        async def works() -> bool:
            async with client.get(THEIRS) as response:
                return response.status == 200 and await response.read() == LARGE

        assert await works()
        harm.on(neighbour)
        for method in ("GET", "POST"):
            # Slow answers go on for as long as something comes: what has a deadline is silence.
            async with within(CONNECT_S + SILENCE_S + LOOK_S):
                try:
                    async with client.request(method, THEIRS, data=LARGE if method == "POST" else None) as response:
                        if response.status == 200:
                            body = await response.content.readexactly(20)
                            assert LARGE.startswith(body) or harm.flips
                            if not harm.is_slow:
                                assert await response.read() == LARGE[20:] or harm.flips
                        else:
                            assert response.status in (502, 503, 504) or harm.flips
                except (ClientError, HttpProcessingError, EOFError):
                    pass  # It was cut, so that half of it is not taken for all of it.
            async with client.get("/health") as response:
                assert response.status in (200, 503)
        neighbour.clear()
        await recovered(works)


@pytest.fixture
async def issuer() -> AsyncIterator[FaultProxy]:
    """Where the keys of tokens are, behind a proxy."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=jwks(jwk()), content_type="application/json")

    app = web.Application()
    app.router.add_get("/jwks", answer)
    async for proxy in before(app):
        yield proxy


@every_harm
async def test_keys_are_fetched_in_time_and_are_the_right_ones_or_none(issuer: FaultProxy, harm: Harm) -> None:
    right = keys.parse(jwks(jwk()))
    url = f"{issuer.url}/jwks"
    harm.on(issuer)
    async with within(SILENCE_S):
        try:
            got = keys.parse(await keys.fetch(url, SILENCE_S))
        except (KeysUnusable, ClientError, HttpProcessingError, TimeoutError, OSError, ValueError):
            pass
        else:
            # With a key that was flipped no token is good: that is a 401 too many, and never one too few.
            assert got.named == right.named or harm.flips
    issuer.clear()
    assert keys.parse(await keys.fetch(url, SILENCE_S)).named.keys() == right.named.keys()
