"""The disk copy is complete before its pointer moves, and holds two generations."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from sidecar.contract.index import Index
from sidecar.contract.objects import ObjectType
from sidecar.copier import LOOK_S, RETRY_S, SWEEP_S, Copier
from sidecar.current import Current, Generation
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from sidecar.tiers import Tiers
from tests.sidecar.contract.tree import Tree
from tests.sidecar.fakes import FakeClock, FlakyStore, disk_over
from tests.trees import Catalog, World, publish, selections

COURSES: dict[str, list[str]] = {f"edX+C{n}": [] for n in range(1000)}


def tree(generation: int, member: str = "edX+C1") -> Tree:
    plain = World(courses=COURSES, selections=selections(a={member}), catalogs=[Catalog(UUID(int=1), "a")])
    return plain.tree(generation=generation)


def a_document(its: Tree) -> bytes:
    return next(d for d, sealed in its.objects.items() if sealed.data[5] == ObjectType.METADATA)


class Rig:
    """A copier between two stores in memory."""

    def __init__(self, path: Path) -> None:
        # The file stands for one that is in use; what it holds is in the fake.
        path.touch()
        self.store, self.disk_store = FlakyStore(), FlakyStore()
        metrics = Metrics()
        self.clock = FakeClock()
        self.current = Current()
        self.disk = disk_over(self.disk_store, metrics, path)
        self.tiers = Tiers(Memory(1024), self.disk, self.store, metrics)
        self.copier = Copier(self.current, self.tiers, self.disk, self.clock)

    async def serve(self, its: Tree) -> Generation:
        pointer = await publish(self.store, its)
        generation = Generation.of(pointer, its.assembled())
        self.current.swap(generation)
        return generation

    async def settled(self) -> None:
        while self.tiers.busy:
            await asyncio.wait(self.tiers.busy)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "disk.db")


async def test_the_whole_tree_is_copied_documents_included(rig: Rig) -> None:
    its = tree(1)
    generation = await rig.serve(its)
    assert await rig.copier.copy(generation)
    assert rig.disk_store.objects.keys() == its.objects.keys()
    assert await rig.disk_store.pointer() == Pointer(1, 1, its.root)
    assert rig.copier.copied is generation


async def test_two_generations_are_kept(rig: Rig) -> None:
    trees = [tree(n, f"edX+C{n}") for n in range(1, 4)]
    for its in trees:
        assert await rig.copier.copy(await rig.serve(its))
        await rig.settled()
        rig.clock.ms += int(SWEEP_S * 1000)
    assert rig.disk_store.objects.keys() == trees[1].objects.keys() | trees[2].objects.keys()


async def test_two_generations_are_kept_also_if_the_second_came_before_the_first_was_looked_at(rig: Rig) -> None:
    """As at a start, when the store is ahead of the disk."""
    trees = [tree(n, f"edX+C{n}") for n in range(1, 4)]
    await publish(rig.disk_store, trees[0])
    for its in trees[1:]:
        assert rig.disk_store.objects.keys() >= trees[0].objects.keys()
        assert await rig.copier.copy(await rig.serve(its))
        assert await rig.disk_store.earlier() == Pointer(
            1, its.assembled().root.generation - 1, trees[its is trees[2]].root
        )
    await rig.settled()
    assert rig.disk_store.objects.keys() == trees[1].objects.keys() | trees[2].objects.keys()


async def test_between_two_sweeps_what_no_generation_needs_stays(rig: Rig) -> None:
    trees = [tree(n, f"edX+C{n}") for n in range(1, 5)]
    for its in trees:
        assert await rig.copier.copy(await rig.serve(its))
        await rig.settled()
    assert rig.disk_store.objects.keys() == set().union(*(its.objects.keys() for its in trees))


async def test_a_copy_is_complete_when_it_followed_every_generation_as_the_one_before_it(rig: Rig) -> None:
    """Each index is assembled from the one before, as the follower does; some generations are never copied."""
    index = None
    for n in range(1, 9):
        its = tree(n, f"edX+C{n % 3}")
        pointer = await publish(rig.store, its)
        index = Index.assemble(its.root, its.records(), index)
        generation = Generation.of(pointer, index)
        rig.current.swap(generation)
        if n % 3:
            assert await rig.copier.copy(generation)
            assert rig.disk_store.objects.keys() >= its.objects.keys()
        rig.clock.ms += int(SWEEP_S * 600)


async def test_the_next_generation_costs_only_what_is_new(rig: Rig) -> None:
    await rig.copier.copy(await rig.serve(tree(1)))
    rig.store.asked.clear()
    rig.disk_store.asked.clear()
    second = tree(2, "edX+C2")
    await rig.copier.copy(await rig.serve(second))
    assert set(rig.store.asked) <= second.objects.keys() - tree(1).objects.keys()
    assert len(rig.disk_store.asked) < 20


async def test_the_pointer_stays_while_an_object_cannot_be_had(rig: Rig) -> None:
    its = tree(1)
    generation = await rig.serve(its)
    document = a_document(its)
    del rig.store.objects[document]
    assert not await rig.copier.copy(generation)
    assert await rig.disk_store.pointer() is None
    await rig.store.put([its.objects[document]])
    assert await rig.copier.copy(generation)


async def test_a_generation_that_is_served_no_longer_is_not_copied_on(rig: Rig) -> None:
    old = await rig.serve(tree(1))
    await rig.serve(tree(2, "edX+C2"))
    assert not await rig.copier.copy(old)
    assert await rig.disk_store.pointer() is None


async def test_what_the_disk_holds_already_is_not_copied_again(rig: Rig) -> None:
    its = tree(1)
    await publish(rig.disk_store, its)
    generation = await rig.serve(its)
    rig.store.down = True
    assert await rig.copier.copy(generation)
    assert rig.store.asked == []


async def test_a_disk_that_failed_is_tried_again_until_it_holds_everything(rig: Rig) -> None:
    its = tree(1)
    rig.disk_store.down = True
    await rig.serve(its)
    running = asyncio.create_task(rig.copier.run())
    async with asyncio.timeout(10):
        assert await rig.clock.wake() >= RETRY_S
        await rig.clock.wake()
        rig.disk_store.down = False
        assert await rig.disk_store.changed(None, 10) == Pointer(1, 1, its.root)
    running.cancel()
    assert rig.disk_store.objects.keys() == its.objects.keys()


async def test_a_disk_that_takes_nothing_is_tried_with_one_object_until_it_takes_it(rig: Rig) -> None:
    its = tree(1)
    generation = await rig.serve(its)
    rig.disk_store.full = True
    for n in (1, 2, 3):
        assert not await rig.copier.copy(generation)
        assert rig.disk.status.state == "failing"
        # The first time nobody knew.
        assert len(rig.store.asked) < 300 + n
    rig.disk_store.full = False
    assert await rig.copier.copy(generation)
    assert rig.disk.status.shown == "ok"
    assert rig.disk_store.objects.keys() == its.objects.keys()


async def test_what_rots_on_the_disk_unseen_is_found_and_put_right(rig: Rig) -> None:
    its = tree(1)
    await rig.serve(its)
    running = asyncio.create_task(rig.copier.run())
    rotten, lost = a_document(its), its.root
    async with asyncio.timeout(10):
        assert await rig.clock.wake() == LOOK_S
        assert (await rig.clock.sleeping.get())[0] == LOOK_S
        rig.disk_store.objects[rotten] = b"rot"
        del rig.disk_store.objects[lost]
        assert await rig.copier.verify()
    running.cancel()
    assert rig.disk_store.objects == {digest: sealed.data for digest, sealed in its.objects.items()}


async def test_a_large_copy_is_verified_part_by_part_and_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.copier.VERIFIED", 100)
    its = tree(1)
    assert await rig.copier.copy(await rig.serve(its))
    for _ in range(2):
        rig.disk_store.objects.update(dict.fromkeys(its.objects, b"rot"))
        for n in range(len(its.objects) // 100 + 2):
            sound = sum(rig.disk_store.objects[digest] == sealed.data for digest, sealed in its.objects.items())
            assert sound >= min(len(its.objects), n * 50)
            assert await rig.copier.verify()
        assert rig.disk_store.objects == {digest: sealed.data for digest, sealed in its.objects.items()}


async def test_what_rots_while_the_store_is_down_is_told_until_it_can_be_put_right(rig: Rig) -> None:
    its = tree(1)
    assert await rig.copier.copy(await rig.serve(its))
    rig.disk_store.objects[its.root] = b"rot"
    rig.store.down = True
    assert not await rig.copier.verify()
    assert rig.disk.status.incomplete == "generation 1: connection refused"
    rig.store.down = False
    assert await rig.copier.verify()
    assert rig.disk.status.shown == "ok"
    assert rig.disk_store.objects[its.root] == its.objects[its.root].data


async def test_what_a_sibling_has_copied_meanwhile_is_not_taken_back(rig: Rig) -> None:
    newer = tree(2, "edX+C2")
    await publish(rig.disk_store, newer)
    generation = await rig.serve(tree(1))
    assert not await rig.copier.copy(generation)
    assert await rig.disk_store.pointer() == Pointer(1, 2, newer.root)
    rig.disk.unservable = Pointer(1, 2, newer.root)
    assert await rig.copier.copy(generation)
    assert await rig.disk_store.pointer() == generation.pointer


@pytest.mark.parametrize("claimed", [Pointer(1, 7, tree(2).root), Pointer(1, 2, bytes(32))])
async def test_a_claim_that_no_root_confirms_is_put_right(rig: Rig, claimed: Pointer) -> None:
    await publish(rig.disk_store, tree(2))
    await rig.disk_store.reset(claimed)
    generation = await rig.serve(tree(1))
    assert await rig.copier.copy(generation)
    assert await rig.disk_store.pointer() == generation.pointer


async def test_a_copy_that_cannot_be_completed_is_told_until_it_is_and_logged_once(rig: Rig) -> None:
    its, second = tree(1), tree(2, "edX+C2")
    generation = await rig.serve(its)
    document = a_document(its)
    del rig.store.objects[document]
    with capture_logs() as logs:
        assert not await rig.copier.copy(generation)
        assert not await rig.copier.copy(generation)
        generation = await rig.serve(second)
        del rig.store.objects[document]
        assert not await rig.copier.copy(generation)
    assert rig.disk.status.state == "ok"
    assert rig.disk.status.incomplete == f"generation 1: object {document.hex()} is in no tier"
    assert [entry["generation"] for entry in logs] == [1]
    await rig.store.put([its.objects[document]])
    assert await rig.copier.copy(generation)
    assert rig.disk.status.incomplete is None


async def test_a_copy_that_somebody_removed_is_made_again(rig: Rig) -> None:
    its = tree(1)
    await rig.serve(its)
    running = asyncio.create_task(rig.copier.run())
    async with asyncio.timeout(10):
        assert await rig.clock.wake() == LOOK_S
        rig.disk_store.objects.clear()
        await rig.disk_store.reset(None)
        assert await rig.clock.wake() == LOOK_S
        assert await rig.disk_store.changed(None, 10) == Pointer(1, 1, its.root)
    running.cancel()
    assert rig.disk_store.objects.keys() == its.objects.keys()


async def test_a_new_generation_is_copied_at_once_and_not_at_the_next_look(rig: Rig) -> None:
    await rig.serve(tree(1))
    running = asyncio.create_task(rig.copier.run())
    async with asyncio.timeout(10):
        first = await rig.disk_store.changed(None, 10)
        assert (await rig.clock.sleeping.get())[0] == LOOK_S
        await rig.serve(tree(2, "edX+C2"))
        assert await rig.disk_store.changed(first, 10) == Pointer(1, 2, tree(2, "edX+C2").root)
    running.cancel()
