"""A sidecar and its Redis, an indexer and its Redis: what is between them fails."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from sidecar.app import Sidecar
from sidecar.clock import SystemClock
from sidecar.errors import StoreError
from sidecar.settings import Settings, SidecarSettings
from sidecar.store import Pointer
from sidecar.store.address import parse
from sidecar.store.redis import POINTER, RedisStore
from sidecar.store.servers import Deadlines
from tests import trees
from tests.fakes import FakeClock, FakeSource, course, run
from tests.fault_proxy import HOST, FaultProxy, between
from tests.redis_server import RedisServer, shared_server
from tests.wires import Harm, every_harm, recovered, within
from tests.world import load, verify, world

DEADLINES: Final = Deadlines(connect_s=0.3, answer_s=0.5)
STORE_S: Final = sum(DEADLINES)
CATALOG: Final = UUID(int=0xA)
COURSES: Final = [f"Org+{n}" for n in range(30)]
ASKED: Final = 10
BOTH: Final = ("Org+0", "Org+29")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    shared = shared_server()
    shared.flush()
    yield shared
    shared.flush()


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with between((HOST, server.port)) as made:
        yield made


@pytest.fixture
async def direct(server: RedisServer) -> AsyncIterator[RedisStore]:
    """The store, with nothing between."""
    store = RedisStore(parse(server.url), writable=True)
    yield store
    await store.close()


def store_behind(proxy: FaultProxy) -> RedisStore:
    return RedisStore(parse(f"redis://{HOST}:{proxy.port}"), writable=True, deadlines=DEADLINES)


def members(generation: int) -> set[str]:
    """The courses that a generation's catalog has: one of two, in turns, beside what none asks about."""
    return {BOTH[generation % 2], *COURSES[1:29]}


async def publish(store: RedisStore, generation: int) -> None:
    here = trees.World(
        courses={key: [f"run of {key}"] for key in COURSES},
        selections={"some": trees.Selection(frozenset(members(generation)))},
        catalogs=[trees.Catalog(CATALOG, "some")],
    )
    tree = here.tree(generation=generation)
    await store.put(tree.objects.values())
    await store.move(Pointer(1, generation, tree.root))


@every_harm
async def test_a_sidecar_answers_as_some_generation_says_whatever_is_between_it_and_redis(
    direct: RedisStore, proxy: FaultProxy, harm: Harm
) -> None:
    await publish(direct, 1)
    settings = Settings(sidecar=SidecarSettings(disk="", poll_ms=50))
    sidecar = Sidecar(settings, store_behind(proxy), SystemClock())
    async with TestClient(TestServer(sidecar.app)) as client:
        base = f"/api/v1/enterprise-catalogs/{CATALOG}"

        async def asked() -> int:
            """The generation that answers, after its answers are found to be its own."""
            generation = 0
            for key in BOTH:
                params = {"course_run_ids": key}
                async with client.get(f"{base}/contains_content_items/", params=params) as response:
                    assert response.status == 200
                    generation = int(response.headers["X-Catalog-Generation"])
                    assert (await response.json())["contains_content_items"] == (key in members(generation))
            return generation

        async def page() -> int:
            """The status of a page whose documents may have to come from the store."""
            async with client.get(f"{base}/get_content_metadata/", params={"page_size": 40}) as response:
                if response.status == 200:
                    keys = {document["key"] for document in (await response.json())["results"]}
                    assert keys == members(int(response.headers["X-Catalog-Generation"]))
                return response.status

        async def serves(generation: int) -> bool:
            return sidecar.current.generation is not None and await asked() == generation

        await recovered(lambda: _ready(client))
        harm.on(proxy)
        async with within(2 * STORE_S):
            assert await page() in (200, 503)
        await publish(direct, 2)
        async with within(ASKED * 0.1):
            for _ in range(ASKED):
                assert await asked() in (1, 2)
            async with client.get("/health") as response:
                assert (response.status, (await response.json())["status"] != "unavailable") == (200, True)
        proxy.clear()
        await recovered(lambda: serves(2))
        assert await page() == 200
        await publish(direct, 3)
        await recovered(lambda: serves(3))


async def _ready(client: TestClient[web.Request, web.Application]) -> bool:
    async with client.get("/ready") as response:
        return response.status == 200


@every_harm
async def test_an_indexer_says_that_it_cannot_publish_and_makes_up_for_it(
    direct: RedisStore, proxy: FaultProxy, harm: Harm, tmp_path: Path
) -> None:
    source = FakeSource(course("Org+0", run("run 0")))
    async with world(tmp_path, source, store_behind(proxy)) as here:
        await here.add("all", {"content_type": "course"})
        await here.build()
        shown = await direct.pointer()
        source.courses.append(course("Org+1", run("run 1")))
        harm.on(proxy)
        # A look at the pointer, the objects in two batches, the root, the move: each has its own deadline.
        async with within(8 * STORE_S):
            with suppress(StoreError):
                await here.build()
        if not harm.flips:
            # Whatever became of it, who reads meanwhile finds the old state or the new one.
            assert len((await load(direct)).dictionary.keys) in (2, 4)
            await verify(direct)
        proxy.clear()
        # What was flipped on its way is noticed by a leader that begins, as a process that is started again does.
        await here.lead()
        await here.build()
        pointer = await direct.pointer()
        assert shown is not None
        assert pointer is not None
        assert pointer[:2] > shown[:2]
        assert set((await load(direct)).dictionary.keys) == {"Org+0", "run 0", "Org+1", "run 1"}


async def test_no_flipped_bit_of_the_pointer_is_an_answer(
    server: RedisServer, direct: RedisStore, tmp_path: Path
) -> None:
    """All 848 of them, to a sidecar that serves; a leader that begins may be refused, and is never at a loss."""
    await publish(direct, 1)
    settings = Settings(sidecar=SidecarSettings(disk="", poll_ms=10))
    sidecar = Sidecar(settings, RedisStore(parse(server.url), writable=False), FakeClock())
    await sidecar.follower.start()
    await sidecar.follower.step()
    served = sidecar.current.generation
    assert served is not None
    good: bytes = server.admin.get(POINTER)
    for bit in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        server.admin.set(POINTER, bytes(flipped))
        await sidecar.follower.step()
        assert sidecar.current.generation is served
        problems = sidecar.health().problems
        assert problems
        try:
            pointer = await direct.pointer()
        except StoreError:
            continue
        # Neither a database's number nor the next one is out of bounds.
        assert pointer is not None
        assert max(pointer[:2]) < 2**63
    server.admin.set(POINTER, good)
    await publish(direct, 2)
    await recovered(lambda: _serves(sidecar, 2))
    await sidecar.tiers.close()
    await sidecar._store.close()


async def _serves(sidecar: Sidecar, generation: int) -> bool:
    await sidecar.follower.step()
    return sidecar.current.generation is not None and sidecar.current.generation.pointer.generation == generation
