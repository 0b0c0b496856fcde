"""A store that loses or spoils what it holds, under real sidecars: they never go back and never go blank.

Real Redis; the leader's patrol, and its commits, step by step. Afterwards the store is byte for byte what it was.
"""

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from indexer import history
from indexer.metrics import Metrics
from indexer.patrol import Patrol
from indexer.publish import Publisher
from indexer.registry import generations
from sidecar.app import Sidecar
from sidecar.lookup import catalog_contains
from sidecar.settings import Settings, SidecarSettings
from sidecar.store.urls import open_store
from tests.fakes import FakeClock, FakeSource, course, customer, run, uuid_of
from tests.redis_server import RedisServer
from tests.world import World, verify, world

COURSES = {"content_type": "course"}
CATALOG = uuid_of("catalog a")
PREFIX: Final = b"catalog:o:"
POINTER: Final = "catalog:{root}:pointer"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.remove()


class Scene:
    """One indexer that leads and patrols, and sidecars: two that know what was published, others that begin later."""

    def __init__(self, here: World, server: RedisServer, folder: Path) -> None:
        self.here = here
        self.server = server
        self.folder = folder
        self.metrics = Metrics()
        self.sidecars: list[Sidecar] = []
        self.seen: list[tuple[int, int]] = []
        here.publisher = Publisher(here.registry, here.store, here.clock, metrics=self.metrics)
        here.pipeline = here._pipeline()
        self.patrol = Patrol(here.publisher, here.store, here.clock, self.metrics, lambda: None)

    async def start(self, name: str) -> Sidecar:
        settings = Settings(sidecar=SidecarSettings(disk=str(self.folder / f"{name}.db"), poll_ms=10))
        store = open_store(self.server.url, writable=False)
        sidecar = Sidecar(settings, store, FakeClock())
        await sidecar.follower.start()
        self.sidecars.append(sidecar)
        self.seen.append((0, 0))
        return sidecar

    async def make(self, number: int) -> None:
        """Publishes, or holds back, that there is a course of this number, and none of the numbers before."""
        assert isinstance(self.here.source, FakeSource)
        self.here.source.courses = [course("A+1", run("a1")), course(f"B+{number}", run(f"b{number}"))]
        assert await self.here.build() is not None

    async def commit_all(self) -> None:
        while await self.here.publish() is not None:
            pass

    async def follow(self) -> None:
        """Every sidecar looks at the store, and copies to its disk what it serves."""
        for number, sidecar in enumerate(self.sidecars):
            await sidecar.follower.step()
            generation = sidecar.current.generation
            if generation is None:
                continue
            assert generation.pointer[:2] >= self.seen[number], "a sidecar went back"
            self.seen[number] = generation.pointer[:2]
            await sidecar.copier.copy(generation)

    def shows(self, number: int, sidecars: int | None = None) -> None:
        """Fails unless every sidecar answers by the generation with the course of this number."""
        for sidecar in self.sidecars[:sidecars]:
            generation = sidecar.current.generation
            assert generation is not None, "a sidecar went blank"
            keys = [f"b{n}" for n in range(1, 9)]
            found = [key for key in keys if catalog_contains(generation.index, CATALOG, [key], False).value]
            assert found == [f"b{number}"]

    def objects(self) -> dict[bytes, bytes]:
        keys = sorted(self.server.admin.scan_iter(match=PREFIX + b"*", count=1000))
        return dict(zip(keys, self.server.admin.mget(keys), strict=True)) if keys else {}

    async def needed(self) -> list[bytes]:
        return [PREFIX + digest.hex().encode() for digest in sorted(self.here.publisher.needed())]

    def count(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(f"catalog_indexer_{name}")
        assert value is not None
        return value

    async def close(self) -> None:
        for sidecar in self.sidecars:
            await sidecar.tiers.close()
            await sidecar.disk.close()
            await sidecar._store.close()


@pytest.fixture
async def scene(tmp_path: Path, server: RedisServer) -> AsyncIterator[Scene]:
    """Three generations, and two sidecars that serve the last one, each with a disk copy."""
    store = open_store(server.url, writable=True)
    async with world(tmp_path, FakeSource(customers=(customer("Acme"),)), store) as here:
        made = Scene(here, server, tmp_path)
        await here.add("a", COURSES)
        for number in (1, 2, 3):
            await made.make(number)
        try:
            for name in ("one", "two"):
                await made.start(name)
            await made.follow()
            made.shows(3)
            yield made
        finally:
            await made.close()


async def healed(scene: Scene, before: dict[bytes, bytes], pointer: object, expected: int) -> None:
    """One round and one commit later the store is what it was, and under the same generation."""
    damage = await scene.patrol.round()
    assert len(damage) == expected
    assert scene.count("store_damaged_objects") == expected
    await scene.follow()
    assert await scene.here.publish() is None
    after = scene.objects()
    assert {key: after[key] for key in before} == before
    assert scene.server.admin.get(POINTER) == pointer
    assert scene.count("store_damaged_objects") == 0
    await verify(scene.here.store)
    await scene.follow()


@pytest.mark.parametrize("pinned", [False, True], ids=["unpinned", "pinned"])
@pytest.mark.parametrize("share", [0.1, 0.5])
async def test_keys_that_an_eviction_policy_deletes_are_written_again(scene: Scene, pinned: bool, share: float) -> None:
    if pinned:
        await pin_what_is_served(scene)
    needed = await scene.needed()
    before, pointer = {k: v for k, v in scene.objects().items() if k in needed}, scene.server.admin.get(POINTER)
    gone = random.Random(11).sample(needed, max(1, round(share * len(needed))))
    scene.server.admin.delete(*gone)
    # Whoever begins now has no good copy: it serves nothing rather than half of it, until the store is whole.
    newcomer = await scene.start("three")
    await scene.follow()
    scene.shows(3, sidecars=2)
    await healed(scene, before, pointer, len(gone))
    scene.shows(3)
    assert newcomer.current.generation is not None
    assert scene.count("objects_healed_total") == len(gone)


@pytest.mark.parametrize("pinned", [False, True], ids=["unpinned", "pinned"])
async def test_a_flipped_bit_in_any_object_is_found_and_mended(scene: Scene, pinned: bool) -> None:
    if pinned:
        await pin_what_is_served(scene)
    needed = await scene.needed()
    before, pointer = {k: v for k, v in scene.objects().items() if k in needed}, scene.server.admin.get(POINTER)
    chance = random.Random(3)
    for key in needed:
        place = chance.randrange(len(before[key]) * 8)
        scene.server.admin.setbit(key, place, 1 - scene.server.admin.getbit(key, place))
    await scene.follow()
    scene.shows(3)
    await healed(scene, before, pointer, len(needed))
    scene.shows(3)


async def pin_what_is_served(scene: Scene) -> None:
    here = scene.here
    await history.pin(here.registry, here.store, here.clock, "test", "why not")
    await scene.commit_all()
    assert scene.count("pinned") == 1


@pytest.mark.parametrize("pinned", [False, True], ids=["unpinned", "pinned"])
async def test_a_fall_back_to_an_older_dump_is_made_up_for(scene: Scene, pinned: bool) -> None:
    scene.server.save()
    await scene.make(4)
    await scene.follow()
    scene.shows(4)
    if pinned:
        await pin_what_is_served(scene)
    scene.server.restart()
    await scene.follow()
    scene.shows(4)
    await scene.commit_all()
    for _ in range(2):
        await scene.follow()
    scene.shows(4)
    newcomer = await scene.start("three")
    await scene.follow()
    assert newcomer.current.generation is not None
    assert newcomer.current.generation.pointer == await scene.here.store.pointer()
    assert not await scene.patrol.round()
    if pinned:
        await scene.make(5)
        await scene.follow()
        scene.shows(4)


async def test_an_emptied_store_behind_a_pin_is_filled_if_nothing_has_changed(scene: Scene) -> None:
    await pin_what_is_served(scene)
    scene.server.flush()
    await scene.follow()
    scene.shows(3)
    await scene.commit_all()
    for _ in range(2):
        await scene.follow()
    scene.shows(3)
    [served] = {s.current.generation.pointer for s in scene.sidecars if s.current.generation is not None}
    assert served == await scene.here.store.pointer()


async def test_an_emptied_store_that_cannot_be_filled_leaves_sidecars_where_they_are(scene: Scene) -> None:
    """The pinned tree is gone, and the registry says something newer: nobody is shown that against the pin."""
    await roll_back(scene, 1)
    scene.shows(1)
    scene.server.flush()
    await scene.commit_all()
    await scene.make(4)
    assert "generation 1 is pinned, and objects of its tree are lost" in str(scene.here.publisher.problem)
    assert scene.server.admin.get(POINTER) is None
    for _ in range(2):
        await scene.follow()
    scene.shows(1)
    # Somebody decides, and only then something else is shown.
    await history.unpin(scene.here.registry, scene.here.store, "test", "it is lost")
    await scene.commit_all()
    await scene.follow()
    scene.shows(4)
    assert scene.here.publisher.problem is None


async def roll_back(scene: Scene, number: int) -> None:
    await history.roll_back(scene.here.registry, scene.here.store, number, "test", "it was better then")
    await scene.commit_all()
    await scene.follow()


async def test_sidecars_follow_a_rollback_what_comes_behind_it_and_its_end(scene: Scene) -> None:
    """Ordinals that the earlier tree does not know yet are there again afterwards."""
    await roll_back(scene, 1)
    scene.shows(1)
    for number in (4, 5):
        await scene.make(number)
        await scene.follow()
        scene.shows(1)
    await roll_back(scene, 2)
    scene.shows(2)
    late = await scene.start("three")
    await scene.follow()
    scene.shows(2)
    assert late.current.generation is not None
    await history.unpin(scene.here.registry, scene.here.store, "test", "mended")
    await scene.commit_all()
    await scene.follow()
    scene.shows(5)
    async with scene.here.registry.read() as connection:
        assert (await generations.standing(connection)).held == 0
    restarted: Any = await scene.start("one again")
    await scene.follow()
    scene.shows(5)
    assert restarted.current.generation.pointer == late.current.generation.pointer
