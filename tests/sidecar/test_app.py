"""One sidecar put together: what it says of itself, from the first moment to a store that is gone."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from sidecar import __version__
from sidecar.app import Sidecar
from sidecar.contract.objects import ObjectType
from sidecar.contract.words import PullState, query_hash
from sidecar.copier import LOOK_S, RETRY_S
from sidecar.health import MAX_STALE, Standing
from sidecar.intake import MAX_BODY_BYTES
from sidecar.settings import Settings, SidecarSettings
from sidecar.store import Pointer
from sidecar.store.sqlite import SqliteStore
from sidecar.workers.siblings import Alone, NoPage
from tests.sidecar.fakes import FakeClock, FlakyStore
from tests.trees import PULLED_MS, Catalog, Selection, World, publish

ONE = UUID(int=1)
LOOKUP = f"/api/v1/enterprise-catalogs/{ONE}/contains_content_items/?course_run_ids=edX%2BA"
WORLD = World(
    courses={"edX+A": []},
    selections={"a": Selection({"edX+A"}), "due": Selection(pulled_at_ms=None)},
    catalogs=[Catalog(ONE, "a"), Catalog(UUID(int=2), "due")],
)


class Rig:
    """A sidecar over a store in memory, with a real disk copy, and a client of it."""

    def __init__(self, sidecar: Sidecar, store: FlakyStore, clock: FakeClock) -> None:
        self.sidecar, self.store, self.clock = sidecar, store, clock
        self.client: TestClient[web.Request, web.Application]

    async def get(self, path: str) -> tuple[int, dict[str, object]]:
        answer = await self.client.get(path)
        return answer.status, await answer.json()

    async def serve(self, generation: int) -> None:
        known = self.sidecar.current.generation
        await publish(self.store, WORLD.tree(generation=generation))
        async with asyncio.timeout(10):
            await self.sidecar.current.other_than(known)

    async def copied(self) -> None:
        """Waits until the disk copy is complete."""
        async with asyncio.timeout(10):
            while (await self.clock.sleeping.get())[0] != LOOK_S:
                pass


@pytest.fixture
async def rig(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Rig]:
    store, clock = FlakyStore(), FakeClock()
    settings = Settings(sidecar=SidecarSettings(disk=str(tmp_path / "disk.db"), poll_ms=10))
    rig = Rig(Sidecar(settings, store, clock, Alone()), store, clock)
    rig.client = await aiohttp_client(rig.sidecar.app)
    yield rig
    await rig.client.close()


async def test_it_is_ready_once_a_generation_is_loaded(rig: Rig) -> None:
    assert await rig.get("/ready") == (503, {"ready": False, "generation": None})
    status, body = await rig.get("/health")
    assert (status, body["status"]) == (503, "unavailable")
    assert (await rig.client.get(LOOKUP)).status == 503
    await rig.serve(3)
    assert await rig.get("/ready") == (200, {"ready": True, "generation": 3})
    assert await rig.get(LOOKUP) == (200, {"contains_content_items": True})


async def test_health_tells_what_is_served_and_how_old_it_is(rig: Rig) -> None:
    await rig.serve(3)
    rig.clock.ms = PULLED_MS + 60_000
    status, body = await rig.get("/health")
    assert status == 200
    assert body == body | {
        "status": "ok",
        "problems": [],
        "version": __version__,
        "generation": 3,
        "epoch": 1,
        "published_at": "2023-11-14T22:13:20.000+00:00",
        "oldest_content_age_s": 60,
        "freshness_s": 86_400,
        "stale_queries": 0,
        "stale": [],
        "never_pulled_catalogs": 1,
        "lag_s": 0.0,
        "swapped_at": "2023-11-14T22:13:20.000+00:00",
        "store": {
            "reachable": True,
            "behind": False,
            "conflict": False,
            "looked_at": body["store"]["looked_at"],  # type: ignore[index]
        },
        "disk": "ok",
        "worker": {"number": 1, "wanted": 1, "running": 1},
    }


async def test_stale_content_is_served_and_told(rig: Rig) -> None:
    await rig.serve(1)
    rig.clock.ms = PULLED_MS + 86_401_000
    status, body = await rig.get("/health")
    assert (status, body["status"], body["stale_queries"]) == (200, "degraded", 1)
    assert body["stale"] == [{"hash": query_hash({"title": "a"}).hex(), "age_s": 86_401, "state": "fresh"}]
    answer = await rig.client.get(LOOKUP)
    assert (answer.status, answer.headers["X-Catalog-Age"]) == (200, "86401")


async def test_stale_queries_are_told_by_hash_the_oldest_first_and_not_all(rig: Rig) -> None:
    """No title and no filter: /health is open to whoever reaches the port."""
    many = {f"q{n:02}": Selection({"edX+A"}, PULLED_MS + n * 1000, state=PullState.FAILING) for n in range(30)}
    its = World(WORLD.courses, selections=many, catalogs=[Catalog(UUID(int=n), f"q{n:02}") for n in range(30)])
    unused = World(its.courses, selections={**many, "unused": Selection(pulled_at_ms=1)}, catalogs=its.catalogs)
    await publish(rig.store, unused.tree())
    async with asyncio.timeout(10):
        await rig.sidecar.current.other_than(None)
    rig.clock.ms = PULLED_MS + 86_400_000 + 25_500
    _, body = await rig.get("/health")
    assert body["stale_queries"] == 26
    assert body["stale"] == [
        {"hash": query_hash({"title": f"q{n:02}"}).hex(), "age_s": 86_425 - n, "state": "failing"}
        for n in range(MAX_STALE)
    ]


async def test_metrics_tell_when_it_last_succeeded_and_how_far_it_lags(rig: Rig) -> None:
    async def metric(name: str) -> float:
        text = await (await rig.client.get("/metrics")).text()
        return float(re.findall(rf"^catalog_sidecar_{name} (\S+)$", text, re.MULTILINE)[0])

    assert math.isnan(await metric("last_swap_seconds"))
    await rig.serve(1)
    assert await metric("last_swap_seconds") == PULLED_MS / 1000
    # What it began with may have been published long before.
    assert math.isnan(await metric("swap_delay_seconds"))
    rig.clock.ms += 7_000
    await rig.serve(2)
    assert await metric("swap_delay_seconds") == 7
    assert await metric("last_swap_seconds") == PULLED_MS / 1000 + 7
    assert (await metric("refusing"), await metric("lag_seconds")) == (0, 0)
    broken = WORLD.tree(generation=3)
    await rig.store.put(sealed for digest, sealed in broken.objects.items() if digest != broken.root)
    await rig.store.move(Pointer(1, 3, broken.root))
    async with asyncio.timeout(10):
        while rig.sidecar.follower.status.refused is None:
            await rig.client.get("/ready")
    rig.clock.ms += 90_000
    assert (await metric("refusing"), await metric("lag_seconds")) == (1, 90)
    assert await metric("generation") == 2
    async with asyncio.timeout(10):
        while await metric("last_look_seconds") != rig.clock.ms / 1000:
            pass
    await rig.serve(4)
    assert (await metric("refusing"), await metric("lag_seconds")) == (0, 0)


async def test_with_nothing_anywhere_it_says_so_to_everybody_keeps_trying_and_recovers(rig: Rig) -> None:
    """The store refuses connections, and what lies on the disk is no generation."""
    rig.store.down = True
    for path in ("/ready", LOOKUP, "/api/v1/catalog-queries/"):
        answer = await rig.client.get(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    status, body = await rig.get("/health")
    assert (status, body["status"]) == (503, "unavailable")
    tried = rig.sidecar.follower.status
    async with asyncio.timeout(10):
        for _ in range(12):
            await rig.clock.wake()
    assert not tried.reachable
    assert (await rig.client.get("/ready")).status == 503
    rig.store.down = False
    known = rig.sidecar.current.generation
    await publish(rig.store, WORLD.tree(generation=3))
    waiting = asyncio.create_task(rig.sidecar.current.other_than(known))
    async with asyncio.timeout(10):
        while not waiting.done():
            await rig.clock.wake()
    assert await rig.get("/ready") == (200, {"ready": True, "generation": 3})
    assert await rig.get(LOOKUP) == (200, {"contains_content_items": True})


async def test_a_store_that_is_gone_is_told_and_answers_go_on(rig: Rig) -> None:
    await rig.serve(1)
    await rig.copied()
    rig.store.down = True
    async with asyncio.timeout(10):
        while rig.sidecar.follower.status.reachable:
            await rig.clock.sleeping.get()
    status, body = await rig.get("/health")
    assert (status, body["status"]) == (200, "degraded")
    assert body["problems"] == ["the store cannot be read: connection refused"]
    assert await rig.get(LOOKUP) == (200, {"contains_content_items": True})


async def test_generations_are_exchanged_under_running_requests(rig: Rig) -> None:
    await rig.serve(1)
    for generation in (2, 3):
        await rig.serve(generation)
        answer = await rig.client.get(LOOKUP)
        assert answer.headers["X-Catalog-Generation"] == str(generation)


async def test_the_disk_copy_follows(rig: Rig, tmp_path: Path) -> None:
    watch = SqliteStore(tmp_path / "disk.db", writable=True)
    await rig.serve(1)
    async with asyncio.timeout(10):
        pointer = await watch.changed(None, 10)
    await watch.close()
    assert pointer == Pointer(1, 1, WORLD.tree().root)


async def test_a_disk_copy_that_cannot_be_completed_is_told(rig: Rig) -> None:
    its = WORLD.tree()
    missing = next(digest for digest, sealed in its.objects.items() if sealed.data[5] == ObjectType.METADATA)
    await rig.store.put([sealed for digest, sealed in its.objects.items() if digest != missing])
    await rig.store.move(Pointer(1, 1, its.root))
    async with asyncio.timeout(10):
        assert (await rig.clock.sleeping.get())[0] >= RETRY_S
    status, body = await rig.get("/health")
    assert (status, body["status"], body["disk"]) == (200, "degraded", "incomplete")
    reason = f"object {missing.hex()} is in no tier"
    assert body["problems"] == [f"the disk copy is incomplete since generation 1: {reason}"]
    assert "catalog_sidecar_disk_ok 0.0" in (await (await rig.client.get("/metrics")).text()).splitlines()


async def test_metrics_are_all_explained_and_agree_with_health(rig: Rig) -> None:
    await rig.serve(5)
    await rig.client.get(LOOKUP)
    await rig.client.get("/no/such/route")
    text = await (await rig.client.get("/metrics")).text()
    helps = {line.split()[2]: line.split(maxsplit=3)[3] for line in text.splitlines() if line.startswith("# HELP")}
    assert all(name.startswith("catalog_sidecar_") and help.endswith(".") for name, help in helps.items())
    lines = text.splitlines()
    assert "catalog_sidecar_generation 5.0" in lines
    assert "catalog_sidecar_never_pulled_catalogs 1.0" in lines
    route = "/api/v1/enterprise-catalogs/{uuid}/contains_content_items/"
    assert f'catalog_sidecar_requests_total{{route="{route}",status="200"}} 1.0' in lines
    assert 'catalog_sidecar_requests_total{route="other",status="404"} 1.0' in lines


class OneOfThree(Alone):
    """Siblings of whom one is missing, and nobody answers for all."""

    standing = Standing(2, 3, 2)

    async def page(self, own: Callable[[], bytes]) -> bytes:
        raise NoPage("nobody answers")


async def test_a_worker_tells_of_those_that_are_missing_and_no_page_of_its_own(rig: Rig) -> None:
    await rig.serve(1)
    rig.sidecar.siblings = OneOfThree()
    status, body = await rig.get("/health")
    assert (status, body["status"], body["problems"]) == (200, "degraded", ["2 of 3 workers answer"])
    assert body["worker"] == {"number": 2, "wanted": 3, "running": 2}
    answer = await rig.client.get("/metrics")
    assert (answer.status, await answer.text()) == (503, "nobody answers\n")


async def test_every_answer_of_a_process_that_drains_is_the_last_one_of_its_connection(rig: Rig) -> None:
    await rig.serve(1)
    assert "Connection" not in (await rig.client.get(LOOKUP)).headers
    rig.sidecar.drain()
    for path in (LOOKUP, "/ready", "/no/such/route", "/openapi.json"):
        answer = await rig.client.get(path)
        assert answer.headers["Connection"] == "close"
        assert (await answer.read()) != b""


async def test_unknown_routes_and_methods_are_json(rig: Rig) -> None:
    for path in ("/", "/api/v3/x/", f"/api/v1/enterprise-catalogs/{ONE}.x/contains_content_items/"):
        assert await rig.get(path) == (404, {"detail": "Not found."})
    answer = await rig.client.post("/health")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert await answer.json() == {"detail": 'Method "POST" not allowed.'}


async def test_a_body_that_is_too_large_is_refused_as_json(rig: Rig) -> None:
    path = f"/api/v1/enterprise-customer/{ONE}/filter_content_items/"
    answer = await rig.client.post(
        path, data=BytesIO(bytes(MAX_BODY_BYTES + 1)), headers={"Content-Type": "application/json"}
    )
    assert (answer.status, await answer.json()) == (413, {"detail": "The body is too large."})
