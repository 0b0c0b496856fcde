"""Real files of disk copies, torn and flipped, and real full disks: nothing but whole generations is ever served.

What is expected of any damage, without the store: a generation that the copy held, verified, or none. And with it: the
store's generation, and a disk copy that holds all of it again.
"""

import asyncio
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from sidecar.contract.objects import digest_of
from sidecar.copier import Copier
from sidecar.current import Current
from sidecar.disk import Disk
from sidecar.follow import Follower
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from sidecar.store.sqlite import SqliteStore
from sidecar.tiers import Tiers
from tests.sidecar.contract.tree import Tree
from tests.sidecar.fakes import FakeClock, FlakyStore
from tests.trees import Catalog, World, publish, selections

COURSES: dict[str, list[str]] = {f"edX+C{n}": [] for n in range(20)}
ATTEMPTS = 4
# Of the bits of a file, beside all of those of the pointer's row.
FLIPS = 150
SMALL_BYTES = 640 * 1024


def tree(generation: int) -> Tree:
    member = {f"edX+C{generation}"}
    plain = World(courses=COURSES, selections=selections(a=member), catalogs=[Catalog(UUID(int=1), "a")])
    return plain.tree(generation=generation)


TREES = {generation: tree(generation) for generation in (1, 2, 3)}


class Rig:
    """A sidecar's parts between a store in memory and a disk copy that is a real file."""

    def __init__(self, path: Path) -> None:
        self.store, self.clock, self.metrics, self.current = FlakyStore(), FakeClock(), Metrics(), Current()
        self.disk = Disk(path, self.metrics)
        self.tiers = Tiers(Memory(1024), self.disk, self.store, self.metrics)
        self.follower = Follower(self.store, self.tiers, self.disk, self.current, self.clock, self.metrics, poll_s=0.01)
        self.copier = Copier(self.current, self.tiers, self.disk, self.clock)

    @property
    def served(self) -> int | None:
        return None if self.current.generation is None else self.current.generation.pointer.generation

    async def follow(self, generation: int) -> None:
        await publish(self.store, TREES[generation])
        await self.follower.step()
        await self.settled()
        assert self.served == generation

    async def copy(self) -> bool:
        assert self.current.generation is not None
        return await self.copier.copy(self.current.generation)

    async def settled(self) -> None:
        while self.tiers.busy:
            await asyncio.wait(self.tiers.busy)

    async def close(self) -> None:
        await self.settled()
        await self.tiers.close()
        await self.disk.close()


async def two_generations(folder: Path) -> None:
    """A copy that held generation 1 and then 2, as kill -9 leaves it: with what is in the -wal file alone."""
    rig = Rig(folder / "alive" / "disk.db")
    for generation in (1, 2):
        await rig.follow(generation)
        assert await rig.copy()
    (folder / "killed").mkdir()
    for name in ("disk.db", "disk.db-wal"):
        shutil.copy(folder / "alive" / name, folder / "killed" / name)
    await rig.close()


async def ended_in_order(folder: Path) -> bytes:
    """The one file of such a copy whose process has ended in order."""
    await two_generations(folder)
    assert not (folder / "alive" / "disk.db-wal").exists()
    return (folder / "alive" / "disk.db").read_bytes()


def put_down(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


async def check(files: dict[str, bytes], folder: Path, case: object) -> int | None:
    """Whatever is wrong with these files: see above. Returns what was served without the store."""
    put_down(files, folder)
    rig = Rig(folder / "disk.db")
    rig.store.down = True
    await rig.follower.start()
    without = rig.served
    assert without in (None, 1, 2), case
    if rig.current.generation is not None:
        assert rig.current.generation.index.digest == TREES[rig.served or 0].root, case
    rig.store.down = False
    await rig.follow(3)
    for _ in range(ATTEMPTS):
        # Each may meet what is broken, and begin anew; a sidecar that runs does the same, look by look.
        if await rig.copy() and await rig.copier.verify() and await rig.disk.pointer() == Pointer(1, 3, TREES[3].root):
            break
    assert rig.disk.status.state == "ok", (case, rig.disk.status)
    assert rig.disk.status.incomplete is None, (case, rig.disk.status)
    await rig.close()
    store = SqliteStore(folder / "disk.db", writable=False)
    assert await store.pointer() == Pointer(1, 3, TREES[3].root), case
    held = await store.get(TREES[3].objects.keys())
    await store.close()
    assert {digest_of(data) for data in held.values()} == TREES[3].objects.keys(), case
    shutil.rmtree(folder)
    return without


def ends(length: int, page: int, first: int) -> list[int]:
    """Where a file is torn: at every byte of its beginning, and before, at and after every page from the first on."""
    around = (edge + step for edge in range(first, length + 1, page) for step in (-1, 0, 1))
    return sorted({*range(101), *(end for end in around if 0 <= end <= length)})


def page_size(data: bytes) -> int:
    return int.from_bytes(data[16:18], "big")


async def test_a_file_that_is_torn_anywhere_costs_at_most_the_copy(tmp_path: Path) -> None:
    data = await ended_in_order(tmp_path)
    served = {}
    for end in ends(len(data), page_size(data), 0):
        served[end] = await check({"disk.db": data[:end]}, tmp_path / "torn", end)
    print(f"{len(served)} places, served without the store: {Counter(served.values())}")
    # It is looked for, too: what is whole is served, and most of what is torn is not.
    assert served[len(data)] == 2
    assert served[0] is served[50] is None


async def test_a_wal_that_is_torn_anywhere_leaves_a_generation_that_was_whole(tmp_path: Path) -> None:
    await two_generations(tmp_path)
    data, wal = ((tmp_path / "killed" / name).read_bytes() for name in ("disk.db", "disk.db-wal"))
    frame = 24 + page_size(data)
    served = [
        await check({"disk.db": data, "disk.db-wal": wal[:end]}, tmp_path / "torn", end)
        for end in ends(len(wal), frame, 32)
    ]
    print(f"{len(served)} places, served without the store: {Counter(served)}")
    # What was committed first is there first, and nothing of a later moment without it.
    assert served == sorted(served, key=lambda generation: generation or 0)
    assert set(served) == {None, 1, 2}


async def test_a_flipped_bit_of_the_file_costs_at_most_the_copy(tmp_path: Path) -> None:
    data = await ended_in_order(tmp_path)
    row = data.index(TREES[2].root, data.index(b"pointer"))
    places = {row + n for n in range(-12, 6)}
    bits = [place * 8 + bit for place in sorted(places) for bit in range(8)]
    bits += random.Random(7).sample(range(len(data) * 8), FLIPS)
    served: Counter[int | None] = Counter()
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        served[await check({"disk.db": bytes(flipped)}, tmp_path / "flipped", bit)] += 1
    print(f"{len(bits)} bits, served without the store: {served}")
    assert set(served) == {None, 1, 2}


async def test_a_page_of_nothing_costs_at_most_the_copy(tmp_path: Path) -> None:
    data = await ended_in_order(tmp_path)
    size = page_size(data)
    for page in range(0, len(data), size):
        emptied = data[:page] + bytes(size) + data[page + size :]
        await check({"disk.db": emptied}, tmp_path / "emptied", page)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a copy and little more."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "none", folder], check=False).returncode:
        pytest.skip("who may not mount has no disk to fill")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    """Leaves no byte of room."""
    with (folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


def empty(folder: Path) -> None:
    (folder / "filler").unlink()


async def test_on_a_full_disk_the_newest_is_served_and_told_and_copied_once_there_is_room(small_disk: Path) -> None:
    rig = Rig(small_disk / "disk.db")
    await rig.follow(1)
    assert await rig.copy()
    fill(small_disk)
    for generation in (2, 3):
        await rig.follow(generation)
        assert not await rig.copy()
        assert rig.disk.status.shown == "failing"
        assert "full" in (rig.disk.status.error or "")
    assert await rig.disk.pointer() == Pointer(1, 1, TREES[1].root)
    assert (rig.served, rig.disk.resets) == (3, 0)
    empty(small_disk)
    assert await rig.copy()
    assert await rig.disk.pointer() == Pointer(1, 3, TREES[3].root)
    assert (rig.disk.status.shown, rig.disk.resets) == ("ok", 0)
    await rig.close()


@pytest.mark.parametrize("filled", ["before it ended", "after it had ended"])
async def test_a_cold_start_on_a_full_disk_without_the_store_serves_what_is_there(
    small_disk: Path, filled: str
) -> None:
    before = Rig(small_disk / "disk.db")
    await before.follow(1)
    assert await before.copy()
    if filled == "before it ended":
        fill(small_disk)
    await before.close()
    fill(small_disk)
    rig = Rig(small_disk / "disk.db")
    rig.store.down = True
    await rig.follower.start()
    assert rig.served == 1
    rig.store.down = False
    await rig.follow(2)
    assert not await rig.copy()
    assert rig.disk.status.shown == "failing"
    empty(small_disk)
    assert await rig.copy()
    assert await rig.disk.pointer() == Pointer(1, 2, TREES[2].root)
    assert await rig.disk.get(TREES[2].objects) == {d: sealed.data for d, sealed in TREES[2].objects.items()}
    assert (rig.disk.status.shown, rig.disk.resets) == ("ok", 0)
    await rig.close()


async def test_a_copy_on_a_full_disk_that_can_only_be_read_says_so_until_there_is_room(small_disk: Path) -> None:
    before = Rig(small_disk / "disk.db")
    await before.follow(1)
    assert await before.copy()
    await before.close()
    fill(small_disk)
    rig = Rig(small_disk / "disk.db")
    await rig.follower.start()
    assert rig.served == 1
    for _ in range(2):
        assert not await rig.copy()
        assert (rig.disk.status.error or "").startswith("it can be read, and not written: ")
    empty(small_disk)
    assert await rig.copy()
    assert rig.disk.status.shown == "ok"
    await rig.close()
