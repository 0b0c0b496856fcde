"""Generations come into service in order, whole or not at all, and never go back."""

import asyncio
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from sidecar.contract.index import IN_INDEX
from sidecar.contract.objects import FORMAT_VERSION, ObjectType, Sealed, digest_of
from sidecar.current import Current
from sidecar.follow import MAX_PAUSE_S, Follower
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from sidecar.tiers import Tiers
from tests.sidecar.contract.tree import Tree
from tests.sidecar.fakes import FakeClock, FlakyStore, disk_over
from tests.trees import Catalog, World, publish, selections

ONE = UUID(int=1)
COURSES: dict[str, list[str]] = {f"edX+C{n}": [f"course-v1:edX+C{n}+1"] for n in range(20)}
POLL_S = 0.01


def world(*members: str) -> World:
    return World(courses=COURSES, selections=selections(a=members, b={"edX+C9"}), catalogs=[Catalog(ONE, "a")])


class Rig:
    """A follower between two stores in memory: the store, and the one that stands for the local disk."""

    def __init__(self, disk_store: FlakyStore | None = None) -> None:
        self.store = FlakyStore()
        self.disk_store = disk_store or FlakyStore()
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.current = Current()
        self.disk = disk_over(self.disk_store, self.metrics)
        self.tiers = Tiers(Memory(1024), self.disk, self.store, self.metrics)
        self.follower = Follower(
            self.store, self.tiers, self.disk, self.current, self.clock, self.metrics, poll_s=POLL_S
        )

    @property
    def served(self) -> int | None:
        return None if self.current.generation is None else self.current.generation.pointer.generation

    def count(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"catalog_sidecar_{name}_total")

    async def settled(self) -> None:
        while self.tiers.busy:
            await asyncio.wait(self.tiers.busy)


def refusal(rig: Rig) -> str:
    return rig.follower.status.refused or ""


def own_bitmap(tree: Tree) -> bytes:
    """The digest of a bitmap that the generation over edX+C1 or edX+C2 has for itself."""
    others = world("edX+C3").tree().objects
    return next(d for d, sealed in tree.objects.items() if sealed.data[5] == ObjectType.BITMAP and d not in others)


async def test_a_published_generation_is_served_and_then_the_next() -> None:
    rig = Rig()
    await publish(rig.store, world("edX+C1").tree(generation=1))
    await rig.follower.step()
    assert rig.served == 1
    await publish(rig.store, world("edX+C2").tree(generation=2))
    await rig.follower.step()
    assert rig.served == 2
    assert rig.count("swaps") == 2


async def test_only_what_the_served_index_lacks_is_fetched() -> None:
    rig = Rig()
    await publish(rig.store, world("edX+C1").tree(generation=1))
    await rig.follower.step()
    await rig.settled()
    rig.store.asked.clear()
    second = world("edX+C2").tree(generation=2)
    await publish(rig.store, second)
    await rig.follower.step()
    assert rig.current.generation is not None
    old = world("edX+C1").tree(generation=1).objects
    assert set(rig.store.asked) == set(rig.current.generation.index.records) - set(old)


async def test_nothing_published_is_waited_for() -> None:
    rig = Rig()
    await rig.follower.step()
    assert rig.served is None
    assert rig.follower.status.reachable


async def test_the_disk_is_served_at_once_with_the_store_down() -> None:
    disk = FlakyStore()
    await publish(disk, world("edX+C1").tree(generation=4))
    rig = Rig(disk)
    rig.store.down = True
    await rig.follower.start()
    assert rig.served == 4
    await rig.follower.step()
    assert rig.served == 4
    assert not rig.follower.status.reachable


async def test_a_lower_generation_is_never_taken_and_is_told() -> None:
    disk = FlakyStore()
    await publish(disk, world("edX+C1").tree(epoch=2, generation=4))
    rig = Rig(disk)
    await publish(rig.store, world("edX+C2").tree(epoch=1, generation=9))
    await rig.follower.start()
    with capture_logs() as logs:
        await rig.follower.step()
        await rig.follower.step()
    assert (rig.served, rig.follower.status.behind) == (4, True)
    assert [entry["log_level"] for entry in logs].count("error") == 1
    await publish(rig.store, world("edX+C2").tree(epoch=2, generation=5))
    await rig.follower.step()
    assert (rig.served, rig.follower.status.behind) == (5, False)


async def test_an_emptied_store_changes_nothing_and_is_told() -> None:
    rig = Rig()
    await publish(rig.store, world().tree())
    await rig.follower.step()
    await rig.store.reset(None)
    await rig.follower.step()
    assert (rig.served, rig.follower.status.behind) == (1, True)


async def test_other_content_under_the_same_number_is_not_taken_and_is_told() -> None:
    rig = Rig()
    await publish(rig.store, world("edX+C1").tree())
    await rig.follower.step()
    served = rig.current.generation
    other = world("edX+C2").tree()
    await rig.store.put(other.objects.values())
    await rig.store.reset(Pointer(1, 1, other.root))
    await rig.follower.step()
    assert rig.current.generation is served
    assert rig.follower.status.conflict


async def test_a_missing_object_refuses_the_whole_generation_until_it_is_there() -> None:
    rig = Rig()
    await publish(rig.store, world("edX+C1").tree(generation=1))
    await rig.follower.step()
    second = world("edX+C2").tree(generation=2)
    await publish(rig.store, second)
    missing = own_bitmap(second)
    data = rig.store.objects.pop(missing)
    with capture_logs() as logs:
        await rig.follower.step()
        await rig.follower.step()
    assert (rig.served, rig.count("refused_generations")) == (1, 2)
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert missing.hex() in refusal(rig)
    await rig.store.put([Sealed(missing, data)])
    await rig.follower.step()
    assert (rig.served, refusal(rig)) == (2, "")


async def test_a_corrupt_object_refuses_the_whole_generation() -> None:
    rig = Rig()
    tree = world("edX+C1").tree()
    await publish(rig.store, tree)
    broken = own_bitmap(tree)
    rig.store.objects[broken] = rig.store.objects[broken][:-1] + b"\xff"
    await rig.follower.step()
    assert rig.served is None
    assert rig.count("refused_generations") == 1


@pytest.mark.parametrize("where", ["store", "disk"])
async def test_one_bit_of_any_object_of_the_index_keeps_a_generation_from_being_served(where: str) -> None:
    """What is served makes the process ready; on the disk it is taken for missing, and the store has nothing."""
    tree = world("edX+C1").tree()
    of_the_index = [d for d, sealed in tree.objects.items() if ObjectType(sealed.data[5]) in IN_INDEX]
    assert len(of_the_index) > 10
    for digest in of_the_index:
        rig = Rig()
        store = rig.store if where == "store" else rig.disk_store
        await publish(store, tree)
        store.objects[digest] = store.objects[digest][:-1] + bytes([store.objects[digest][-1] ^ 1])
        await rig.follower.start()
        await rig.follower.step()
        assert rig.served is None
        await rig.settled()


async def test_a_pointer_that_contradicts_its_root_is_refused() -> None:
    rig = Rig()
    tree = world().tree(generation=1)
    await rig.store.put(tree.objects.values())
    await rig.store.move(Pointer(1, 7, tree.root))
    await rig.follower.step()
    assert rig.served is None
    assert rig.follower.status.refused is not None


async def test_a_refused_generation_is_left_behind_by_the_next() -> None:
    rig = Rig()
    bad = world("edX+C1").tree(generation=1)
    await publish(rig.store, bad)
    del rig.store.objects[own_bitmap(bad)]
    await rig.follower.step()
    await publish(rig.store, world("edX+C2").tree(generation=2))
    await rig.follower.step()
    assert (rig.served, rig.follower.status.refused) == (2, None)


async def test_a_broken_disk_copy_is_refused_and_the_store_is_served() -> None:
    disk = FlakyStore()
    tree = world("edX+C1").tree(generation=9)
    await publish(disk, tree)
    del disk.objects[own_bitmap(tree)]
    rig = Rig(disk)
    await publish(rig.store, world("edX+C2").tree(generation=3))
    await rig.follower.start()
    assert rig.served is None
    await rig.follower.step()
    assert rig.served == 3


async def test_a_broken_disk_copy_is_mended_from_the_store() -> None:
    disk = FlakyStore()
    tree = world("edX+C1").tree(generation=9)
    await publish(disk, tree)
    broken = own_bitmap(tree)
    disk.objects[broken] = b"rot"
    rig = Rig(disk)
    await rig.store.put(tree.objects.values())
    await rig.follower.start()
    await rig.settled()
    assert rig.served == 9
    assert disk.objects[broken] == tree.objects[broken].data


def damaged(disk: FlakyStore, tree: Tree) -> bytes:
    """Flips a bit of a bitmap that only this generation has, and returns its digest."""
    broken = own_bitmap(tree)
    disk.objects[broken] = disk.objects[broken][:-1] + bytes([disk.objects[broken][-1] ^ 1])
    return broken


async def two_on_disk() -> tuple[FlakyStore, Tree]:
    """A disk with generation 8, whole, and the newest, 9."""
    disk, newest = FlakyStore(), world("edX+C1").tree(generation=9)
    await publish(disk, world("edX+C2").tree(generation=8))
    await publish(disk, newest)
    return disk, newest


async def test_of_two_generations_on_disk_the_older_is_served_rather_than_none() -> None:
    disk, newest = await two_on_disk()
    broken = damaged(disk, newest)
    rig = Rig(disk)
    rig.store.down = True
    with capture_logs() as logs:
        await rig.follower.start()
    assert rig.served == 8
    assert [line["object"] for line in logs if line["event"] == "a corrupt object is not used"] == [broken.hex()]
    rig.store.down = False
    await publish(rig.store, newest)
    await rig.follower.step()
    await rig.settled()
    assert rig.served == 9
    assert disk.objects[broken] == newest.objects[broken].data


async def test_the_older_generation_on_disk_is_not_served_before_the_store_was_asked() -> None:
    disk, newest = await two_on_disk()
    damaged(disk, newest)
    rig = Rig(disk)
    await rig.follower.start()
    assert rig.served is None
    await publish(rig.store, world("edX+C3").tree(generation=10))
    await rig.follower.step()
    assert rig.served == 10


async def test_an_empty_store_and_a_damaged_newest_generation_leave_the_older_one() -> None:
    disk, newest = await two_on_disk()
    damaged(disk, newest)
    rig = Rig(disk)
    await rig.follower.start()
    await rig.follower.step()
    assert (rig.served, rig.follower.status.reachable) == (8, True)


async def test_a_disk_that_could_not_be_read_at_the_start_is_read_while_the_store_is_down() -> None:
    disk, _ = await two_on_disk()
    rig = Rig(disk)
    rig.store.down = disk.down = True
    await rig.follower.start()
    await rig.follower.step()
    assert rig.served is None
    disk.down = False
    stepping = asyncio.create_task(rig.follower.step())
    await rig.clock.wake()
    await stepping
    assert rig.served == 9


async def test_with_the_store_down_what_a_sibling_has_copied_to_the_disk_is_served() -> None:
    disk = FlakyStore()
    await publish(disk, world("edX+C2").tree(generation=8))
    rig = Rig(disk)
    rig.store.down = True
    await rig.follower.start()
    await publish(disk, world("edX+C1").tree(generation=9))
    await rig.follower.step()
    assert (rig.served, rig.follower.status.reachable) == (9, False)


async def test_nothing_anywhere_is_asked_for_again_and_again_at_growing_intervals_and_refused_once_in_the_log() -> None:
    disk = FlakyStore()
    newest = world("edX+C1").tree(generation=9)
    await publish(disk, newest)
    damaged(disk, newest)
    rig = Rig(disk)
    with capture_logs() as logs:
        await rig.follower.start()
        for _ in range(4):
            await rig.follower.step()
    assert rig.served is None
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "a corrupt object is not used",
        "generation refused; the last good one stays",
    ]
    await rig.store.put(newest.objects.values())
    await rig.follower.step()
    assert rig.served == 9


def from_the_future(tree: Tree) -> Tree:
    """The tree with a root of the next format version."""
    data = bytearray(tree.objects[tree.root].data)
    data[4] = FORMAT_VERSION + 1
    root = Sealed(digest_of(bytes(data)), bytes(data))
    return Tree(root.digest, {**tree.objects, root.digest: root})


async def publish_from_the_future(store: FlakyStore, generation: int) -> Pointer:
    tree = from_the_future(world("edX+C3").tree(generation=generation))
    await store.put(tree.objects.values())
    pointer = Pointer(1, generation, tree.root)
    await store.move(pointer)
    return pointer


async def test_a_generation_from_the_future_is_refused_and_what_is_understood_stays() -> None:
    rig = Rig()
    await publish(rig.store, world("edX+C1").tree(generation=1))
    await rig.follower.step()
    await publish_from_the_future(rig.store, 2)
    await rig.follower.step()
    assert rig.served == 1
    assert "format version 2; this build reads 1" in refusal(rig)
    await publish(rig.store, world("edX+C1").tree(generation=3))
    await rig.follower.step()
    assert (rig.served, refusal(rig)) == (3, "")


@pytest.mark.parametrize("store_down", [True, False])
async def test_a_cold_start_stays_on_the_disks_generation_that_it_understands(store_down: bool) -> None:
    """A newer build has written both; this one goes back to the last generation on disk that it can read."""
    disk, _ = await two_on_disk()
    await publish_from_the_future(disk, 10)
    rig = Rig(disk)
    await publish_from_the_future(rig.store, 10)
    rig.store.down = store_down
    await rig.follower.start()
    await rig.follower.step()
    assert rig.served == 9
    assert ("format version 2" in refusal(rig)) is not store_down
    assert rig.metrics.registry.get_sample_value("catalog_sidecar_corrupt_objects_total", {"tier": "disk"}) == 0


async def test_a_cold_start_on_nothing_but_the_future_serves_nothing_and_says_why() -> None:
    rig = Rig()
    await publish_from_the_future(rig.store, 1)
    await rig.follower.start()
    await rig.follower.step()
    assert rig.served is None
    assert "format version 2; this build reads 1" in refusal(rig)


async def test_a_disk_ahead_of_the_store_stays_ahead_after_a_restart() -> None:
    disk, _ = await two_on_disk()
    rig = Rig(disk)
    await publish(rig.store, world("edX+C2").tree(generation=8))
    for _ in range(2):
        await rig.follower.start()
        await rig.follower.step()
        assert (rig.served, rig.follower.status.behind) == (9, True)


async def test_an_unreachable_store_is_asked_again_after_pauses_that_grow_to_a_bound() -> None:
    rig = Rig()
    rig.store.down = True
    running = asyncio.create_task(rig.follower.run())
    async with asyncio.timeout(10):
        pauses = [await rig.clock.wake() for _ in range(14)]
        rig.store.down = False
        await publish(rig.store, world().tree())
        await rig.current.other_than(None)
    running.cancel()
    assert pauses[0] < 0.1
    assert pauses[3] < pauses[8]
    assert MAX_PAUSE_S * 0.75 <= max(pauses) <= MAX_PAUSE_S
    assert rig.follower.status.reachable
    assert rig.count("store_errors") == 14


async def test_a_store_that_fails_while_a_generation_is_fetched_leaves_the_last_good_one() -> None:
    rig = Rig()
    await publish(rig.store, world("edX+C1").tree(generation=1))
    await rig.follower.step()
    await publish(rig.store, world("edX+C2").tree(generation=2))
    rig.store.waiting.clear()
    rig.store.gate.clear()
    stepping = asyncio.create_task(rig.follower.step())
    async with asyncio.timeout(10):
        await rig.store.waiting.wait()
        assert rig.served == 1
        rig.store.down = True
        rig.store.gate.set()
        await stepping
    assert (rig.served, rig.follower.status.reachable) == (1, False)
