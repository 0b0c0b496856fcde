"""The indexer's HTTP side, asked over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from indexer.metrics import Metrics
from indexer.publication import Publication
from indexer.service import Role
from indexer.web import make_app
from indexer.wiring import Parts
from sidecar import __version__
from sidecar.intake import runner_of
from sidecar.settings import Settings
from sidecar.sockets import listening
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, course
from tests.indexer import scripts
from tests.tokens import StillClock, token_of
from tests.tokens import settings as trusting
from tests.world import World

COURSES = {"content_type": "course"}
LONG_S = 30.0
Client = TestClient[Request, Application]


@pytest.fixture
def role() -> Role:
    return Role(leading=True, epoch=1)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(here: World, role: Role, metrics: Metrics) -> AsyncIterator[Client]:
    parts = Parts(Settings(), here.clock, here.registry, here.store, here.source)
    async with TestClient(TestServer(make_app(parts, role, Publication(parts.registry), metrics))) as opened:
        yield opened


async def numbers(client: Client) -> dict[str, float]:
    async with client.get("/metrics") as response:
        assert response.status == 200
        text = await response.text()
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_health_says_how_the_indexer_is(client: Client, here: World) -> None:
    await here.add("a", COURSES, query_title="t")
    async with client.get("/health") as response:
        body = await response.json()
    assert (response.status, body["status"], body["generation"]) == (200, "degraded", None)
    await here.build()
    async with client.get("/health") as response:
        body = await response.json()
    assert (body["status"], body["version"], body["leading"], body["epoch"]) == ("ok", __version__, True, 1)
    assert (body["generation"], body["behind"], body["queries"]) == (1, 0, {"fresh": 1})


async def test_health_without_a_registry_is_503(metrics: Metrics, clock: FakeClock) -> None:
    parts = Parts(Settings(), clock, scripts.GoneRegistry(), MemoryStore(), FakeSource())
    async with TestClient(TestServer(make_app(parts, Role(), Publication(parts.registry), metrics))) as client:
        async with client.get("/health") as response:
            body = await response.json()
        assert (response.status, body["status"]) == (503, "unavailable")
        assert body["reason"] == "the registry is out of reach"
        assert (await numbers(client))["catalog_indexer_publish_failures_total/registry out of reach"] == 1


async def test_health_and_metrics_wait_for_a_silent_registry_no_longer_than_their_deadline(
    here: World, metrics: Metrics, registry_url: str
) -> None:
    silent = scripts.SilentRegistry(registry_url, here.clock)
    silent.silent = True
    parts = Parts(Settings(), here.clock, silent, here.store, here.source)
    app = make_app(parts, Role(), Publication(silent), metrics, answer_s=0.3, look_s=0.1)
    async with TestClient(TestServer(app)) as client, asyncio.timeout(LONG_S):
        for path in ("/health", "/metrics"):
            # The driver goes on waiting: whoever asks does not.
            async with client.get(path) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "5")
        silent.answer()
        async with client.get("/health") as response:
            assert response.status == 200
    await silent.close()


async def test_metrics_count_queries_and_generations(
    client: Client, here: World, metrics: Metrics, role: Role, clock: FakeClock
) -> None:
    await here.add("a", COURSES)
    await here.add("b", {"q": "x"})
    await here.add("c", {"key": "1"}, query_title="never")
    await here.pull("none")
    found = await numbers(client)
    assert found["catalog_indexer_queries/due"] == 3
    assert (found["catalog_indexer_leading"], found["catalog_indexer_epoch"]) == (1, 1)
    generation = await here.build()
    assert generation is not None
    metrics.published(generation)
    clock.advance(90)
    role.leading = False
    found = await numbers(client)
    assert {
        state: found[f"catalog_indexer_queries/{state}"] for state in ("due", "fresh", "failing", "unpullable")
    } == {
        "due": 0,
        "fresh": 2,
        "failing": 0,
        "unpullable": 1,
    }
    assert found["catalog_indexer_quarantined_queries"] == 0
    assert found["catalog_indexer_leading"] == 0
    assert found["catalog_indexer_oldest_age_seconds"] == 90
    assert found["catalog_indexer_last_success_seconds"] == clock.now_ms() // 1000 - 90
    assert found["catalog_indexer_generation"] == found["catalog_indexer_generations_total"] == 1
    assert found["catalog_indexer_objects_written_total"] == generation.objects
    assert found["catalog_indexer_bytes_written_total"] == generation.bytes


async def test_nothing_else_is_there(client: Client) -> None:
    async with client.get("/") as response:
        assert response.status == 404
    async with client.post("/health") as response:
        assert response.status == 405


@pytest.fixture
async def port(here: World, role: Role, metrics: Metrics) -> AsyncIterator[int]:
    """Where the app answers as `serve` runs it."""
    parts = Parts(Settings(), here.clock, here.registry, here.store, here.source)
    runner = runner_of(make_app(parts, role, Publication(parts.registry), metrics))
    async with listening(runner, "127.0.0.1", 0, section="indexer") as bound:
        yield bound.port


async def test_what_a_sidecar_takes_in_is_taken_from_it(port: int) -> None:
    """Its bounds are the same: a header of 20 KB, a query of 40."""
    headers, query = {"X-Request-ID": "r" * 20_000}, "enterprise_customer=&zz=" + "q" * 40_000
    async with ClientSession() as session:
        url = f"http://127.0.0.1:{port}/api/v1/enterprise-catalogs/?{query}"
        async with session.get(url, headers=headers) as response:
            assert response.status == 200


async def test_options_tells_the_methods(port: int) -> None:
    async with ClientSession() as session:
        url = f"http://127.0.0.1:{port}/api/v1/enterprise-catalogs/"
        async with session.options(url) as response:
            assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, POST")


async def test_a_caller_who_hangs_up_within_a_body_is_no_defect(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /api/v1/enterprise-catalogs/ HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with capture_logs() as logged:
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 200
    assert logged == []


async def test_health_says_what_keeps_the_leader_from_publishing(client: Client, here: World, role: Role) -> None:
    await here.add("a", COURSES)
    await here.build()
    role.problem = "cannot publish: redis store: it is full"
    async with client.get("/health") as response:
        body = await response.json()
    assert (body["status"], body["problem"]) == ("degraded", "cannot publish: redis store: it is full")


async def test_tokens_are_asked_for_where_the_settings_say_so(here: World, metrics: Metrics, tmp_path: Path) -> None:
    """Of catalogs and pulls; how the indexer is may be seen by all who reach it."""
    clock = StillClock()
    parts = Parts(Settings(auth=trusting(tmp_path)), clock, here.registry, here.store, here.source)
    async with TestClient(TestServer(make_app(parts, Role(), Publication(parts.registry), metrics))) as client:
        headers = {"Authorization": f"JWT {token_of('operator', clock.now_ms())}"}
        for path, without, with_token in (
            ("/api/v1/enterprise-catalogs/", 401, 200),
            ("/api/v1/pulls/00000000-0000-0000-0000-000000000000/", 401, 404),
            ("/health", 200, 200),
            ("/metrics", 200, 200),
        ):
            assert (await client.get(path)).status == without
            assert (await client.get(path, headers=headers)).status == with_token


async def test_metrics_count_what_is_held_back(client: Client, here: World) -> None:
    source = here.source
    assert isinstance(source, FakeSource)
    source.courses = [course(f"A+{n}") for n in range(9)]
    await here.add("a", COURSES)
    await here.build()
    source.courses = []
    await here.build()
    found = await numbers(client)
    assert found["catalog_indexer_quarantined_queries"] == 1
    assert found["catalog_indexer_queries/quarantined"] == 1
    async with client.get("/health") as response:
        report = await response.json()
    assert (report["status"], report["quarantined"]) == ("degraded", 1)
    value = here.metrics.registry.get_sample_value
    assert value("catalog_indexer_refused_results_total", {"rule": "emptied"}) == 1
    assert [value("catalog_indexer_pulls_total", {"outcome": o}) for o in ("passed", "failed", "quarantined")] == [
        1,
        0,
        1,
    ]
