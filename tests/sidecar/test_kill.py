"""kill -9 of a real sidecar while it copies a generation to its disk: what is left is whole, and is served."""

import asyncio
import signal
from pathlib import Path
from uuid import UUID

from sidecar.clock import SystemClock
from sidecar.contract.objects import digest_of
from sidecar.store import Pointer
from sidecar.store.sqlite import SqliteStore
from tests.sidecar.contract.tree import Tree
from tests.sidecar.test_cli import DEADLINE_S, LOOKUP, remove_store, started
from tests.trees import Catalog, World, publish, selections

LOOK_S = 0.001


def tree(generation: int) -> Tree:
    """Others have other courses, so that every generation is copied in full, in several batches."""
    courses: dict[str, list[str]] = {"edX+A": [], **{f"edX+{generation}C{n}": [] for n in range(1500)}}
    plain = World(courses=courses, selections=selections(a={"edX+A"}), catalogs=[Catalog(UUID(int=1), "a")])
    return plain.tree(generation=generation)


async def test_a_sidecar_that_is_killed_while_it_copies_leaves_whole_generations(tmp_path: Path) -> None:
    trees: dict[int, Tree] = {}
    wal = tmp_path / "disk.db-wal"
    killed_within = 0
    for generation in range(1, 9):
        trees[generation] = tree(generation)
        store = SqliteStore(tmp_path / "store.db", writable=True)
        await store.pointer()
        async with started(tmp_path) as process:
            # Not before it follows, so that the copy of the one before is there.
            await process.says("the store can be read")
            before = wal.stat().st_size
            await publish(store, trees[generation])
            if generation == 1:
                # One is whole before the others are begun.
                await process.says("generation copied to disk")
            async with asyncio.timeout(DEADLINE_S):
                # A little later each time: objects, more of them, all of them, the pointer.
                while wal.stat().st_size < before + generation * 60_000:
                    await SystemClock().sleep(LOOK_S)
            await process.end(signal.SIGKILL)
        await store.close()
        held = await what_is_held(tmp_path, trees)
        assert held > 0
        killed_within += held != generation
    print(f"{len(trees)} kills, {killed_within} before the pointer had moved")
    # Otherwise it was not killed while it copied.
    assert killed_within > 0
    remove_store(tmp_path)
    async with started(tmp_path) as process:
        served = await process.says("generation served")
        assert served["source"] == "disk"
        status, body, _ = await process.get(LOOKUP)
        assert (status, body) == (200, {"contains_content_items": True})


async def what_is_held(folder: Path, trees: dict[int, Tree]) -> int:
    """The generation of the copy's pointer, every object of which is there; 0 without one."""
    copy = SqliteStore(folder / "disk.db", writable=True)
    pointer = await copy.pointer()
    if pointer is not None:
        its = trees[pointer.generation]
        assert pointer == Pointer(1, pointer.generation, its.root)
        found = await copy.get(its.objects)
        assert found.keys() == its.objects.keys()
        assert all(digest_of(data) == digest for digest, data in found.items())
    await copy.close()
    return 0 if pointer is None else pointer.generation
