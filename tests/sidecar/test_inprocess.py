"""The index inside a worker answers what lookups answer, from a real disk copy that goes on being written."""

import asyncio
import gc
import os
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.contract.index import Index
from sidecar.contract.objects import ObjectType
from sidecar.copier import SWEEP_S, Copier
from sidecar.current import Current, Generation
from sidecar.disk import Disk
from sidecar.errors import CatalogError, NotPulledYet, NotReady, ObjectMissing, StoreError, UnknownCatalog
from sidecar.inprocess import CatalogIndex
from sidecar.inprocess.index import LOOK_S, REFUSED_S
from sidecar.inprocess.lazy import LazyIndex
from sidecar.lookup import Answer, catalog_contains, catalogs_containing, customer_contains
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.store.memory import MemoryStore
from sidecar.tiers import Tiers
from tests.sidecar.contract.tree import Tree
from tests.sidecar.fakes import FakeClock
from tests.sidecar.test_lookup import KEYS, worlds
from tests.trees import CUSTOMER, PULLED_MS, Catalog, Selection, World, publish, selections

ONE, TWO, THREE = UUID(int=1), UUID(int=2), UUID(int=3)
# Longer than any test may take.
LONG_S: Final = 60.0
COURSES: Final[dict[str, list[str]]] = {"edX+A": ["course-v1:edX+A+1"], "edX+B": [], "edX+Ünï": []}


class Time:
    """Both clocks of an index, which stand still until a test moves them."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def monotonic(self) -> float:
        return self.s

    def now_ms(self) -> int:
        return PULLED_MS + round((self.s - 1_000) * 1_000)


@dataclass
class Sidecar:
    """A store, and what keeps a real disk copy of it."""

    path: Path
    store: MemoryStore
    disk: Disk
    current: Current
    copier: Copier
    clock: FakeClock

    def let_sweep(self) -> None:
        """Has the next generation sweep what is neither its own nor the one's before."""
        self.clock.ms += int(SWEEP_S * 1000)

    async def serve(self, its: Tree) -> Index:
        """Publishes a generation, and has the disk hold it."""
        pointer = await publish(self.store, its)
        generation = Generation.of(pointer, its.assembled())
        self.current.swap(generation)
        assert await self.copier.copy(generation)
        return generation.index


@asynccontextmanager
async def sidecar(path: Path) -> AsyncIterator[Sidecar]:
    store, metrics, current, clock = MemoryStore(), Metrics(), Current(), FakeClock()
    disk = Disk(path, metrics)
    tiers = Tiers(Memory(1024), disk, store, metrics)
    try:
        yield Sidecar(path, store, disk, current, Copier(current, tiers, disk, clock), clock)
    finally:
        await tiers.close()
        await disk.close()


@pytest.fixture
async def beside(tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with sidecar(tmp_path / "disk.db") as made:
        yield made


def opened(path: Path, time: Time | None = None) -> CatalogIndex:
    time = time or Time()
    return CatalogIndex(path, monotonic=time.monotonic, now_ms=time.now_ms)


def told(index: CatalogIndex) -> tuple[int, str | None]:
    """What an index says of itself."""
    return index.generation, index.trouble


def world(*catalogs: Catalog, **chosen: Selection) -> World:
    return World(courses=COURSES, programs=["p1"], selections=chosen, catalogs=catalogs)


def holding(member: str, generation: int) -> Tree:
    """A generation whose one catalog has this member and no other."""
    return world(Catalog(ONE, "a"), **selections(a={member})).tree(generation=generation)


def damage(path: Path, digests: Iterable[bytes], data: bytes = b"damaged") -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("UPDATE objects SET data = ? WHERE digest = ?", [(data, d) for d in digests])


def remove(path: Path, digests: Iterable[bytes]) -> None:
    """As a sweep does."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("DELETE FROM objects WHERE digest = ?", [(digest,) for digest in digests])


def of_type(its: Tree, kind: ObjectType) -> list[bytes]:
    return [digest for digest, sealed in its.objects.items() if sealed.data[5] == kind]


# ---- what is asked


async def test_a_catalog_contains_a_key_the_first_time_and_every_other(beside: Sidecar) -> None:
    await beside.serve(world(Catalog(ONE, "a"), a=Selection({"edX+A", "edX+Ünï"})).tree())
    with opened(beside.path) as index:
        for _ in range(3):
            assert index.contains(str(ONE), "edX+A") is True
            assert index.contains(str(ONE), "course-v1:edX+A+1") is True
            assert index.contains(str(ONE), "edX+B") is False
            assert index.contains(str(ONE), "no+such") is False
            assert index.contains(str(ONE), "EDX+uni") is True
            assert index.contains_any(str(ONE), ["edX+B", "edX+A"]) is True
            assert index.contains_any(str(ONE), ["edX+B", "p1"]) is False
            assert index.contains_any(str(ONE), "edX+A") is True
            assert index.contains_any(str(ONE), []) is False


async def test_a_uuid_may_be_written_in_any_way(beside: Sidecar) -> None:
    uuid = UUID("abcdefab-cdef-4bcd-8fab-cdefabcdefab")
    await beside.serve(world(Catalog(uuid, "a", uuid), a=Selection({"edX+A"})).tree())
    with opened(beside.path) as index:
        for spelled in (uuid, str(uuid), uuid.hex, str(uuid).upper(), uuid.hex.upper()):
            for _ in range(2):
                assert index.contains(spelled, "edX+A") is True
                assert index.contains(spelled, "edX+B") is False
            assert index.customer_contains(spelled, "edX+A") is True
            assert index.catalogs_containing(spelled, ["edX+A"]) == [str(uuid)]
            assert index.age_s(spelled) == 0


async def test_restricted_runs_are_for_those_who_ask_for_them(beside: Sidecar) -> None:
    run = "course-v1:edX+A+1"
    chosen = {"yes": Selection({"edX+A"}, allowed={run}), "no": Selection({"edX+A"})}
    rows = [Catalog(ONE, "yes"), Catalog(TWO, "no")]
    await beside.serve(World(courses=COURSES, restricted={run}, selections=chosen, catalogs=rows).tree())
    with opened(beside.path) as index:
        for _ in range(2):
            assert [index.contains(ONE, run), index.contains(ONE, run, restricted=True)] == [False, True]
            assert [index.contains(str(ONE), run), index.contains(str(ONE), run, True)] == [False, True]
            assert [index.contains(str(TWO), run), index.contains(str(TWO), run, True)] == [False, False]
        assert index.contains_any(ONE, [run], restricted=True) is True
        assert [index.customer_contains(CUSTOMER, run, r) for r in (False, True)] == [False, True]
        assert [index.catalogs_containing(CUSTOMER, run, r) for r in (False, True)] == [[], [str(ONE)]]


Outcome = tuple[type[CatalogError] | None, Any]


def outcome(question: Callable[..., Any], *arguments: object) -> Outcome:
    """What a question comes to: the error's type, or the answer."""
    try:
        answer = question(*arguments)
    except CatalogError as error:
        return type(error), None
    return None, answer.value if isinstance(answer, Answer) else answer


@given(worlds(), st.lists(st.sampled_from([*KEYS, "K1", "unknown"]), max_size=3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_answers_are_those_of_lookups(plain: World, asked: list[str], restricted: bool) -> None:
    async def served(path: Path) -> Index:
        async with sidecar(path) as made:
            return await made.serve(plain.tree())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk.db"
        index = asyncio.run(served(path))
        with opened(path) as mine:
            for uuid in (*index.catalogs, str(uuid4()), *index.catalogs):
                for key in asked:
                    expected = outcome(catalog_contains, index, uuid, [key], restricted)
                    assert outcome(mine.contains, uuid, key, restricted) == expected
                expected = outcome(catalog_contains, index, uuid, asked, restricted)
                assert outcome(mine.contains_any, uuid, asked, restricted) == expected
            for customer in (str(CUSTOMER), str(uuid4())):
                expected = outcome(customer_contains, index, customer, asked, restricted)
                assert outcome(mine.customer_contains, customer, asked, restricted) == expected
                expected = outcome(catalogs_containing, index, customer, asked, restricted)
                assert outcome(mine.catalogs_containing, customer, asked, restricted) == expected


# ---- what cannot be told


async def test_an_unknown_catalog_is_no_empty_one(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    with opened(beside.path) as index:
        assert index.contains(str(ONE), "edX+A")
        for unknown in (str(TWO), TWO, "nonsense", ""):
            for _ in range(2):
                with pytest.raises(UnknownCatalog):
                    index.contains(unknown, "edX+A")
        with pytest.raises(UnknownCatalog):
            index.age_s(TWO)


async def test_a_catalog_that_was_never_pulled_is_neither_yes_nor_no(beside: Sidecar) -> None:
    rows = (Catalog(ONE, "due"), Catalog(TWO, "a"))
    await beside.serve(world(*rows, due=Selection(pulled_at_ms=None), a=Selection({"edX+A"})).tree())
    with opened(beside.path) as index:
        for _ in range(2):
            with pytest.raises(NotPulledYet):
                index.contains(str(ONE), "edX+A")
        with pytest.raises(NotPulledYet):
            index.age_s(ONE)
        assert index.customer_contains(CUSTOMER, ["edX+A"]) is True
        with pytest.raises(NotPulledYet):
            index.customer_contains(CUSTOMER, ["edX+B"])


async def test_what_is_no_content_key_is_refused(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    with opened(beside.path) as index:
        for _ in range(2):
            for key in (b"edX+A", 5, None):
                with pytest.raises(TypeError, match="is no content key"):
                    index.contains(str(ONE), key)  # type: ignore[arg-type]
            assert index.contains(str(ONE), "edX+A")
        with pytest.raises(TypeError, match="is no content key"):
            index.contains_any(ONE, b"edX+A")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'nonsense' is no uuid"):
            index.customer_contains("nonsense", "edX+A")


async def test_before_there_is_a_generation_nothing_can_be_told(beside: Sidecar) -> None:
    time = Time()
    with opened(beside.path, time) as index:
        with pytest.raises(NotReady, match="No such file"):
            index.contains(ONE, "edX+A")
        with pytest.raises(NotReady):
            index.load()
        await beside.disk.put([])
        with pytest.raises(NotReady, match="holds no generation yet"):
            index.customer_contains(CUSTOMER, "edX+A")
        assert index.trouble == "the disk copy holds no generation yet"
        await beside.serve(holding("edX+A", 1))
        assert index.contains(ONE, "edX+A") is True
        assert told(index) == (1, None)


async def test_a_file_that_is_no_disk_copy_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    path.write_text("[sidecar]\n" * 1000)
    with opened(path) as index, pytest.raises(NotReady, match="not a database"):
        index.contains(ONE, "edX+A")
    with opened(tmp_path) as index, pytest.raises(NotReady):
        index.contains(ONE, "edX+A")


# ---- generations


async def test_a_new_generation_answers_once_a_look_is_due(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    time = Time()
    with opened(beside.path, time) as index:
        assert index.contains(str(ONE), "edX+A") is True
        await beside.serve(holding("edX+B", 2))
        time.s += LOOK_S / 2
        assert [index.contains(str(ONE), key) for key in ("edX+A", "edX+B")] == [True, False]
        time.s += LOOK_S / 2
        assert [index.contains(str(ONE), key) for key in ("edX+A", "edX+B")] == [False, True]
        assert index.generation == 2


async def test_loading_takes_the_newest_generation_at_once(beside: Sidecar) -> None:
    with opened(beside.path) as index:
        for generation in (1, 2, 3):
            await beside.serve(holding("edX+A", generation))
            index.load()
            assert index.generation == generation


async def test_a_question_whose_bitmap_was_swept_is_asked_of_the_newest_generation(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    with opened(beside.path) as index:
        index.load()
        for generation, member in ((2, "edX+B"), (3, "edX+Ünï")):
            beside.let_sweep()
            await beside.serve(holding(member, generation))
        # It is not time to look, and none of generation 1's own bitmaps is there any more.
        assert [index.contains(str(ONE), key) for key in ("edX+A", "edX+Ünï")] == [False, True]
        assert index.generation == 3


def lazy_indexes() -> list[LazyIndex]:
    """All that there are in this process, those of other tests included."""
    return [one for one in gc.get_objects() if isinstance(one, LazyIndex)]


async def test_a_generation_that_was_replaced_is_gone_at_once(beside: Sidecar) -> None:
    time = Time()
    with opened(beside.path, time) as index:
        gc.collect()
        gc.disable()
        others = lazy_indexes()
        try:
            await beside.serve(holding("edX+A", 1))
            index.load()
            for generation, member in ((2, "edX+B"), (3, "edX+Ünï")):
                beside.let_sweep()
                await beside.serve(holding(member, generation))
            # The first one is left in the middle of a question, whose bitmap was swept; the next one in time.
            assert (index.contains(ONE, "edX+Ünï"), index.generation) == (True, 3)
            await beside.serve(holding("edX+A", 4))
            time.s += LOOK_S
            assert (index.contains(ONE, "edX+A"), index.generation) == (True, 4)
            assert len(lazy_indexes()) == len(others) + 1
        finally:
            gc.enable()


async def test_a_lower_generation_is_never_taken(beside: Sidecar, tmp_path: Path) -> None:
    await beside.serve(holding("edX+A", 5))
    time = Time()
    with opened(beside.path, time) as index:
        assert index.contains(str(ONE), "edX+A") is True
        async with sidecar(tmp_path / "older.db") as older:
            await older.serve(holding("edX+B", 4))
        for suffix in ("-wal", "-shm"):
            beside.path.with_name(beside.path.name + suffix).unlink()
        (tmp_path / "older.db").replace(beside.path)
        time.s += LOOK_S
        assert index.contains(str(ONE), "edX+A") is True
        assert index.generation == 5
        assert index.trouble == "the disk copy holds epoch 1, generation 4, which is no newer one"


async def test_a_generation_that_is_not_sound_is_refused_until_it_is(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    time = Time()
    with opened(beside.path, time) as index:
        assert index.contains(str(ONE), "edX+A") is True
        second = holding("edX+B", 2)
        await beside.serve(second)
        shard = next(d for d in of_type(second, ObjectType.QUERIES))
        damage(beside.path, [shard])
        time.s += LOOK_S
        assert index.contains(str(ONE), "edX+A") is True
        assert index.trouble is not None
        assert index.trouble.startswith(f"epoch 1, generation 2 is refused: object {shard.hex()}")
        # What is served gets older, and says so.
        assert (index.generation, index.age_s(ONE)) == (1, int(LOOK_S))
        damage(beside.path, [shard], second.objects[shard].data)
        time.s += REFUSED_S
        assert index.contains(str(ONE), "edX+B") is True
        assert told(index) == (2, None)


async def test_a_root_of_another_generation_than_the_pointers_is_refused(beside: Sidecar) -> None:
    its = holding("edX+A", 1)
    await beside.serve(its)
    with closing(sqlite3.connect(beside.path)) as connection, connection:
        connection.execute("UPDATE pointer SET generation = 7")
    with opened(beside.path) as index, pytest.raises(NotReady, match="generation 7, its root says 1, 1"):
        index.contains(ONE, "edX+A")


async def test_a_damaged_bitmap_is_no_answer_and_the_others_answer(beside: Sidecar) -> None:
    chosen = {"a": Selection({"edX+A"}), "b": Selection({"edX+B"})}
    its = world(Catalog(ONE, "a"), Catalog(TWO, "b"), **chosen).tree()
    index_of = await beside.serve(its)
    catalog = index_of.catalogs[str(ONE)]
    assert catalog.serving is not None
    assert catalog.serving.record.v1 is not None
    sound = catalog.serving.record.v1.contained
    bitmaps = set(of_type(its, ObjectType.BITMAP)) - {sound}
    damage(beside.path, bitmaps)
    with opened(beside.path) as index:
        for _ in range(2):
            # Of what nobody asks for nothing is read.
            assert index.contains(str(ONE), "edX+A") is True
            with pytest.raises(ObjectMissing):
                index.contains(str(TWO), "edX+B")
            with pytest.raises(ObjectMissing):
                index.catalogs_containing(CUSTOMER, "edX+B")
        for digest in bitmaps:
            damage(beside.path, [digest], its.objects[digest].data)
        assert index.contains(str(TWO), "edX+B") is True


@pytest.mark.parametrize("how", ["digest = CAST(digest AS TEXT)", "digest = x'ff'", "epoch = x'ff'", "epoch = -1"])
async def test_a_damaged_pointer_is_not_followed_and_what_is_served_stays(beside: Sidecar, how: str) -> None:
    await beside.serve(holding("edX+A", 1))
    time = Time()
    with opened(beside.path, time) as index, opened(beside.path, time) as other:
        assert index.contains(ONE, "edX+A") is True
        with closing(sqlite3.connect(beside.path)) as connection, connection:
            connection.execute(f"UPDATE pointer SET {how}")
        whole = "TEXT" in how
        time.s += 60
        assert index.contains(ONE, "edX+A") is True
        assert (index.trouble is None) is whole
        if not whole:
            with pytest.raises(NotReady, match="pointer is damaged"):
                other.contains(ONE, "edX+A")


@pytest.mark.parametrize("data", ["text", 7, 0.5, b""])
async def test_an_object_of_another_type_is_a_damaged_one(beside: Sidecar, data: Any) -> None:
    its = holding("edX+A", 1)
    await beside.serve(its)
    damage(beside.path, its.objects, data)
    with opened(beside.path) as index, pytest.raises(NotReady):
        index.contains(ONE, "edX+A")


async def test_an_age_is_that_of_the_pull(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    time = Time()
    with opened(beside.path, time) as index:
        assert index.age_s(ONE) == 0
        time.s += 3_600
        assert index.age_s(str(ONE)) == 3_600


# ---- the file


async def test_a_copy_that_was_removed_leaves_the_last_generation_until_it_is_made_again(beside: Sidecar) -> None:
    await beside.serve(holding("edX+A", 1))
    time = Time()
    with opened(beside.path, time) as index:
        assert index.contains(str(ONE), "edX+A") is True
        beside.path.unlink()
        time.s += LOOK_S
        assert index.contains(str(ONE), "edX+A") is True
        assert "No such file" in (index.trouble or "")
        await beside.serve(holding("edX+B", 2))
        time.s += LOOK_S
        assert index.contains(str(ONE), "edX+B") is True
        assert told(index) == (2, None)


async def test_a_copy_that_is_set_aside_is_left_for_the_new_one(tmp_path: Path) -> None:
    path, time = tmp_path / "disk.db", Time()
    with opened(path, time) as index:
        async with sidecar(path) as first:
            await first.serve(holding("edX+A", 1))
            assert index.contains(str(ONE), "edX+A") is True
        path.replace(path.with_name("disk.db.corrupt"))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        async with sidecar(path) as second:
            await second.serve(holding("edX+B", 2))
            time.s += LOOK_S
            assert index.contains(str(ONE), "edX+B") is True


async def test_a_copy_is_read_while_its_sidecar_runs_when_it_has_ended_and_when_it_runs_again(tmp_path: Path) -> None:
    path, time = tmp_path / "disk.db", Time()
    with opened(path, time) as index:
        for generation, member in enumerate(("edX+A", "edX+B", "edX+A"), 1):
            async with sidecar(path) as running:
                await running.serve(holding(member, generation))
                time.s += LOOK_S
                assert index.contains(str(ONE), member) is True
            with opened(path) as late:
                # Nobody has it open for writing now, and nothing lies beside it unless a reader holds that there.
                assert late.contains(str(ONE), member) is True
                assert late.generation == generation
        # Of the second generation nothing else was asked; it is read without anybody beside.
        index.close()
        time.s += LOOK_S
        assert index.contains(str(ONE), "edX+B") is False


async def test_a_finished_copy_is_read_as_it_lies_until_a_sidecar_goes_on_with_it(tmp_path: Path) -> None:
    path, time = tmp_path / "disk.db", Time()
    async with sidecar(path) as first:
        await first.serve(holding("edX+A", 1))
    with opened(path, time) as index:
        assert index.contains(str(ONE), "edX+A") is True
        assert sorted(os.listdir(tmp_path)) == ["disk.db", "disk.db.lock"]
        async with sidecar(path) as second:
            await second.serve(holding("edX+B", 2))
            time.s += LOOK_S
            assert index.contains(str(ONE), "edX+B") is True


async def test_a_copy_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sidecar(tmp_path / "disk.db") as made:
        await made.serve(holding("edX+A", 1))
    monkeypatch.setattr("sidecar.inprocess.copy.mounts", lambda: "somewhere / nfs4 rw 0 0\n")
    with opened(tmp_path / "disk.db") as index, pytest.raises(NotReady, match=r"network file system \(nfs4\)"):
        index.contains(ONE, "edX+A")


# ---- threads


async def test_threads_share_an_index_and_every_answer_is_of_one_generation(beside: Sidecar) -> None:
    """Each generation has one of the members, so that an answer out of two of them could have none."""
    members = ("edX+A", "edX+B", "edX+Ünï")
    last, threads = 60, 6
    await beside.serve(holding(members[1], 1))
    ended = threading.Event()

    def asks() -> tuple[set[object], set[int]]:
        answers: set[object] = set()
        seen = set()
        while not ended.is_set():
            answers.add(index.contains_any(str(ONE), members))
            answers.add(index.customer_contains(CUSTOMER, members))
            answers.add(tuple(index.catalogs_containing(CUSTOMER, members)))
            answers.update(outcome(index.contains, str(ONE), member)[0] for member in members)
            seen.add(index.generation)
        return answers, seen

    with CatalogIndex(beside.path, look_s=0) as index, ThreadPoolExecutor(threads) as pool:
        loop = asyncio.get_running_loop()
        asked = [loop.run_in_executor(pool, asks) for _ in range(threads)]
        try:
            for generation in range(2, last + 1):
                await beside.serve(holding(members[generation % 3], generation))
        finally:
            ended.set()
        results = await asyncio.gather(*asked)
        assert [answers for answers, _ in results] == [{True, (str(ONE),), None}] * threads
        assert len(set().union(*(seen for _, seen in results))) > 1
        assert told(index) == (last, None)


def test_waiting_for_another_reader_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def served(path: Path) -> None:
        async with sidecar(path) as made:
            await made.serve(holding("edX+A", 1))

    asyncio.run(served(tmp_path / "disk.db"))
    monkeypatch.setattr("sidecar.inprocess.copy.LOCK_S", 0.01)
    time = Time()
    with opened(tmp_path / "disk.db", time) as index:
        index.load()
        with index._copy.moment():
            # A look is put off, and what is loaded answers; what has to be fetched cannot be told.
            time.s += LOOK_S
            assert index.generation == 1
            with pytest.raises(StoreError, match="is being read"):
                index.contains(str(ONE), "edX+A")
        assert index.contains(str(ONE), "edX+A") is True
