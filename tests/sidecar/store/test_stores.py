"""What every store does, whichever it is; then what a store in a file does when the file is not what it was."""

import asyncio
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from sidecar.contract.objects import ObjectType, Sealed, seal
from sidecar.errors import CatalogError, Fenced, PointerConflict, PointerDamaged, StoreError
from sidecar.store import Pointer, Store, check_epoch, check_move
from sidecar.store.memory import MemoryStore
from sidecar.store.mounts import network_file_system
from sidecar.store.sqlite import BATCH, SqliteStore
from sidecar.store.urls import open_store
from tests.redis_server import shared_cluster, shared_server, shared_watched

Connect = Callable[[], Store]

DEADLINE_S = 30.0
"""How long a test waits for what has to happen; none ever waits so long."""

UNCHANGED_S = 0.3
"""How long a test watches that something does not happen."""


def memory(_: Path) -> Connect:
    store = MemoryStore()
    return lambda: store


def sqlite(directory: Path) -> Connect:
    return lambda: SqliteStore(directory / "store.db", writable=True)


def redis(_: Path) -> Connect:
    shared_server().flush()
    return lambda: open_store(shared_server().url, writable=True)


def redis_cluster(_: Path) -> Connect:
    shared_cluster().flush()
    return lambda: open_store(shared_cluster().url, writable=True)


def redis_sentinel(_: Path) -> Connect:
    shared_watched().flush()
    return lambda: open_store(shared_watched().url, writable=True)


# Each makes one empty store and returns what opens one more client of it.
FACTORIES: Mapping[str, Callable[[Path], Connect]] = {
    "memory": memory,
    "sqlite": sqlite,
    "redis": redis,
    "redis cluster": redis_cluster,
    "redis sentinel": redis_sentinel,
}


@pytest.fixture(params=FACTORIES)
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connect]:
    """Opens a client of the test's one store, as often as it is called."""
    opened: list[Store] = []
    open_one = FACTORIES[request.param](tmp_path)

    def tracked() -> Store:
        opened.append(open_one())
        return opened[-1]

    yield tracked
    for store in opened:
        await store.close()


@pytest.fixture
def store(connect: Connect) -> Store:
    return connect()


def an_object(n: int, size: int = 8) -> Sealed:
    return seal(ObjectType.METADATA, n.to_bytes(size, "big"))


def objects(*numbers: int) -> list[Sealed]:
    return [an_object(n) for n in numbers]


def at(epoch: int, generation: int, digest: int = 0) -> Pointer:
    return Pointer(epoch, generation, bytes([digest]) * 32)


async def present(store: Store, *numbers: int) -> set[int]:
    """Which of these objects the store has, each with its own bytes."""
    wanted = {an_object(n).digest: n for n in numbers}
    found = await store.get(list(wanted))
    for digest, data in found.items():
        assert data == an_object(wanted[digest]).data
    return {wanted[digest] for digest in found}


# Objects.


async def test_what_was_put_can_be_got_by_every_client(connect: Connect) -> None:
    writer, reader = connect(), connect()
    await writer.put(objects(1, 2, 3))
    for store in (writer, reader):
        found = await store.get([an_object(n).digest for n in (1, 2, 3)])
        assert found == {o.digest: o.data for o in objects(1, 2, 3)}
        assert all(type(data) is bytes for data in found.values())


async def test_what_is_missing_is_absent(store: Store) -> None:
    assert await store.get([an_object(1).digest]) == {}
    await store.put(objects(1))
    assert await present(store, 1, 2) == {1}
    assert await store.get([]) == {}
    assert await store.get([b"", b"short", bytes(33)]) == {}


async def test_a_digest_that_is_asked_for_twice_is_answered_once(store: Store) -> None:
    await store.put(objects(1))
    digest = an_object(1).digest
    assert await store.get([digest, digest]) == {digest: an_object(1).data}
    assert await store.get({digest}) == {digest: an_object(1).data}
    assert await store.get({digest: None}.keys()) == {digest: an_object(1).data}


async def test_putting_again_overwrites(store: Store) -> None:
    digest = an_object(1).digest
    await store.put([Sealed(digest, b"damaged")])
    assert await store.get([digest]) == {digest: b"damaged"}
    await store.put(objects(1))
    assert await present(store, 1) == {1}
    await store.put([Sealed(digest, b"first"), Sealed(digest, b"last")])
    assert await store.get([digest]) == {digest: b"last"}


async def test_putting_nothing_is_no_error(store: Store) -> None:
    await store.put([])
    await store.put(iter(()))
    assert await store.pointer() is None


async def test_objects_are_taken_from_any_iterable(store: Store) -> None:
    await store.put(an_object(n) for n in range(3))
    await store.put({an_object(n) for n in range(3, 6)})
    assert await present(store, *range(7)) == set(range(6))


async def test_thousands_of_objects_are_put_and_got_at_once(connect: Connect) -> None:
    many = range(2000)
    await connect().put(an_object(n) for n in many)
    assert await present(connect(), *many, 2000) == set(many)


async def test_objects_of_any_bytes_and_sizes_are_kept(store: Store) -> None:
    strange = [
        Sealed(bytes([n]) * 32, data) for n, data in enumerate((b"", b"\0", bytes(range(256)), b"x" * 3_000_000))
    ]
    await store.put(strange)
    assert await store.get([o.digest for o in strange]) == {o.digest: o.data for o in strange}


async def test_many_callers_at_once_are_all_answered(connect: Connect) -> None:
    store = connect()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(store.put(objects(n)) for n in range(20)), *(store.pointer() for _ in range(20)))
        found = await asyncio.gather(*(present(store, n) for n in range(20)))
    assert found == [{n} for n in range(20)]


# The pointer.


async def test_nothing_was_ever_published_at_first(store: Store) -> None:
    assert await store.pointer() is None
    await store.put(objects(1))
    assert await store.pointer() is None


async def test_the_pointer_moves_forward_for_every_client(connect: Connect) -> None:
    writer, reader = connect(), connect()
    for pointer in (at(1, 1, 1), at(1, 2, 2), at(1, 7, 1), at(2, 8, 3), at(2, 2**62, 4), at(2**62, 2**62 + 1, 4)):
        await writer.move(pointer)
        assert await writer.pointer() == pointer
        assert await reader.pointer() == pointer
        assert type(await reader.pointer()) is Pointer


async def test_moving_to_where_it_is_already_does_nothing(connect: Connect) -> None:
    writer, other = connect(), connect()
    await writer.move(at(1, 1, 1))
    await writer.move(at(1, 1, 1))
    await other.move(at(1, 1, 1))
    assert await writer.pointer() == at(1, 1, 1)


@pytest.mark.parametrize(
    "lower",
    [
        pytest.param(at(2, 4, 9), id="lower generation"),
        pytest.param(at(1, 5, 9), id="lower epoch"),
        pytest.param(at(1, 5, 1), id="lower epoch, and the same root"),
        pytest.param(at(1, 6, 9), id="lower epoch, although a higher generation"),
        pytest.param(at(0, 99, 9), id="much lower epoch"),
        pytest.param(at(2, 0, 9), id="generation nought"),
    ],
)
async def test_a_publisher_that_is_behind_is_fenced_and_changes_nothing(connect: Connect, lower: Pointer) -> None:
    writer, late = connect(), connect()
    await writer.move(at(2, 5, 1))
    with pytest.raises(Fenced):
        await late.move(lower)
    assert await writer.pointer() == await late.pointer() == at(2, 5, 1)
    await late.move(at(2, 6, 2))
    assert await writer.pointer() == at(2, 6, 2)


async def test_the_same_generation_with_another_root_is_a_conflict_and_changes_nothing(connect: Connect) -> None:
    writer, rival = connect(), connect()
    await writer.move(at(2, 5, 1))
    with pytest.raises(PointerConflict):
        await rival.move(at(2, 5, 2))
    assert await writer.pointer() == await rival.pointer() == at(2, 5, 1)


async def test_a_higher_epoch_wins_over_the_same_generation(connect: Connect) -> None:
    writer, rival = connect(), connect()
    await writer.move(at(2, 5, 1))
    await rival.move(at(3, 5, 2))
    assert await writer.pointer() == at(3, 5, 2)
    with pytest.raises(Fenced):
        await writer.move(at(2, 6, 1))


async def test_of_publishers_that_move_at_once_the_highest_wins(connect: Connect) -> None:
    """Watchers are woken in between, so that moves overlap."""
    clients = [connect() for _ in range(3)]
    async with asyncio.timeout(DEADLINE_S):
        watching = [asyncio.create_task(clients[0].changed(None, DEADLINE_S)) for _ in range(5)]
        await asyncio.wait(watching, timeout=0.01)
        moves = [at(1 + n // 10, n, n) for n in range(30)]
        random.Random(7).shuffle(moves)
        results = await asyncio.gather(
            *(clients[n % 3].move(move) for n, move in enumerate(moves)), return_exceptions=True
        )
        seen = await asyncio.gather(*watching)
    assert await clients[0].pointer() == max(moves)
    assert {repr(result) for result in results if type(result) not in {type(None), Fenced}} == set()
    assert set(seen) <= set(moves)


def test_the_rule_of_moving_is_one_for_all_stores() -> None:
    assert check_move(None, at(0, 0))
    assert check_move(at(1, 1), at(1, 2))
    assert not check_move(at(1, 1), at(1, 1))
    with pytest.raises(PointerConflict, match="two publishers"):
        check_move(at(1, 1, 1), at(1, 1, 2))
    with pytest.raises(Fenced, match="another publisher"):
        check_move(at(1, 2), at(1, 1))
    check_epoch(None, 0)
    check_epoch(at(3, 1), 3)
    check_epoch(at(3, 1), 4)
    with pytest.raises(Fenced):
        check_epoch(at(3, 1), 2)


# Waiting for the pointer.


async def test_a_pointer_that_differs_already_is_returned_at_once(connect: Connect) -> None:
    store = connect()
    await store.move(at(1, 1))
    async with asyncio.timeout(DEADLINE_S / 2):
        for known in (None, at(1, 1, 9), at(1, 0), at(0, 1), at(9, 9)):
            assert await store.changed(known, DEADLINE_S) == at(1, 1)
            assert await store.changed(known, 0) == at(1, 1)


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.001, 0.05, 0.25])
async def test_a_pointer_that_does_not_move_is_returned_when_the_time_is_over(store: Store, timeout_s: float) -> None:
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(DEADLINE_S):
        started = clock()
        assert await store.changed(None, timeout_s) is None
        assert clock() - started >= timeout_s - 0.001
        await store.move(at(1, 1))
        assert await store.changed(at(1, 1), timeout_s) == at(1, 1)


async def test_a_wait_ends_when_another_client_moves_the_pointer(connect: Connect) -> None:
    writer, reader = connect(), connect()
    async with asyncio.timeout(DEADLINE_S):
        for known, moved in ((None, at(1, 1)), (at(1, 1), at(1, 2)), (at(1, 2), at(2, 3))):
            waiting = asyncio.create_task(reader.changed(known, 2 * DEADLINE_S))
            done, _ = await asyncio.wait([waiting], timeout=UNCHANGED_S)
            assert not done
            await writer.put(objects(moved.generation))
            await writer.move(moved)
            assert await waiting == moved


async def test_a_wait_ends_when_the_same_client_moves_the_pointer(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(store.changed(None, 2 * DEADLINE_S))
        done, _ = await asyncio.wait([waiting], timeout=UNCHANGED_S)
        assert not done
        await store.move(at(1, 1))
        assert await waiting == at(1, 1)


async def test_a_move_during_a_wait_that_times_out_is_not_missed(connect: Connect) -> None:
    """Whatever the order of the two, the answer is what the pointer is then, and not what it was."""
    store = connect()
    async with asyncio.timeout(DEADLINE_S):
        for n in range(5):
            known = await store.pointer()
            waiting = asyncio.create_task(store.changed(known, 0.02))
            await asyncio.wait([waiting], timeout=0.01)
            await store.move(at(1, n + 1))
            await waiting
            assert await store.changed(known, 0) == at(1, n + 1)


async def test_all_who_wait_are_woken(connect: Connect) -> None:
    readers = [connect() for _ in range(3)]
    async with asyncio.timeout(DEADLINE_S):
        waiting = [asyncio.create_task(reader.changed(None, 2 * DEADLINE_S)) for reader in readers * 3]
        await asyncio.wait(waiting, timeout=0.05)
        await connect().move(at(1, 1))
        assert await asyncio.gather(*waiting) == [at(1, 1)] * 9


async def test_a_wait_can_be_cancelled_and_the_store_used_on(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(store.changed(None, 2 * DEADLINE_S))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.move(at(1, 1))
        assert await store.pointer() == at(1, 1)


# Sweeping.

HOUR_MS = 3_600_000


def live(*numbers: int) -> set[bytes]:
    return {an_object(n).digest for n in numbers}


async def test_what_is_unreferenced_is_swept_after_the_grace_and_not_before(connect: Connect) -> None:
    store, other = connect(), connect()
    await store.put(objects(1, 2, 3))
    assert await store.sweep(live(1), epoch=1, now_ms=1000, grace_ms=HOUR_MS) == 0
    assert await other.sweep(live(1), epoch=1, now_ms=999 + HOUR_MS, grace_ms=HOUR_MS) == 0
    assert await present(store, 1, 2, 3) == {1, 2, 3}
    assert await other.sweep(live(1), epoch=1, now_ms=1000 + HOUR_MS, grace_ms=HOUR_MS) == 2
    assert await present(store, 1, 2, 3) == {1}
    assert await store.sweep(live(1), epoch=1, now_ms=1000 + 2 * HOUR_MS, grace_ms=HOUR_MS) == 0


async def test_what_is_unreferenced_since_a_time_that_is_to_come_is_so_since_now(connect: Connect) -> None:
    """Another sweeper's clock was a year ahead: its marks must keep nothing for a year."""
    wrong, right = connect(), connect()
    await wrong.put(objects(1, 2))
    assert await wrong.sweep(live(1), epoch=1, now_ms=366 * 24 * HOUR_MS, grace_ms=HOUR_MS) == 0
    assert await right.sweep(live(1), epoch=1, now_ms=1000, grace_ms=HOUR_MS) == 0
    assert await right.sweep(live(1), epoch=1, now_ms=999 + HOUR_MS, grace_ms=HOUR_MS) == 0
    assert await right.sweep(live(1), epoch=1, now_ms=1000 + HOUR_MS, grace_ms=HOUR_MS) == 1
    assert await present(right, 1, 2) == {1}


async def test_what_is_live_again_before_the_grace_is_over_begins_anew(store: Store) -> None:
    await store.put(objects(1, 2))
    await store.sweep(live(1), epoch=1, now_ms=0, grace_ms=HOUR_MS)
    assert await store.sweep(live(1, 2), epoch=1, now_ms=HOUR_MS, grace_ms=HOUR_MS) == 0
    assert await store.sweep(live(1), epoch=1, now_ms=HOUR_MS + 1, grace_ms=HOUR_MS) == 0
    assert await store.sweep(live(1), epoch=1, now_ms=2 * HOUR_MS, grace_ms=HOUR_MS) == 0
    assert await present(store, 1, 2) == {1, 2}
    assert await store.sweep(live(1), epoch=1, now_ms=2 * HOUR_MS + 1, grace_ms=HOUR_MS) == 1
    assert await present(store, 1, 2) == {1}


async def test_what_is_put_again_begins_anew(connect: Connect) -> None:
    store, publisher = connect(), connect()
    await store.put(objects(1, 2))
    await store.sweep(set(), epoch=1, now_ms=0, grace_ms=HOUR_MS)
    await publisher.put(objects(2))
    assert await store.sweep(set(), epoch=1, now_ms=HOUR_MS, grace_ms=HOUR_MS) == 1
    assert await present(store, 1, 2) == {2}
    assert await store.sweep(set(), epoch=1, now_ms=2 * HOUR_MS, grace_ms=HOUR_MS) == 1


async def test_no_grace_is_at_once(store: Store) -> None:
    await store.put(objects(1, 2))
    assert await store.sweep(live(2), epoch=1, now_ms=5, grace_ms=0) == 1
    assert await present(store, 1, 2) == {2}


async def test_sweeping_nothing_is_no_error(store: Store) -> None:
    assert await store.sweep(set(), epoch=0, now_ms=0, grace_ms=0) == 0
    assert await store.sweep(live(1, 2), epoch=0, now_ms=0, grace_ms=0) == 0


async def test_live_objects_that_are_missing_are_not_invented(store: Store) -> None:
    await store.put(objects(1))
    assert await store.sweep(live(1, 2), epoch=1, now_ms=0, grace_ms=0) == 0
    assert await present(store, 1, 2) == {1}


@pytest.mark.parametrize("garbage", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 100])
async def test_garbage_of_several_batches_is_swept_in_one_call(store: Store, garbage: int) -> None:
    await store.put(an_object(n) for n in range(garbage + 50))
    kept = live(*range(50))
    assert await store.sweep(kept, epoch=1, now_ms=0, grace_ms=0) == garbage
    assert await present(store, *range(garbage + 50)) == set(range(50))


async def test_a_sweeper_that_was_replaced_is_fenced_and_sweeps_nothing(connect: Connect) -> None:
    old, new = connect(), connect()
    await old.put(objects(1, 2))
    await old.sweep(set(), epoch=1, now_ms=0, grace_ms=HOUR_MS)
    await new.move(at(2, 1))
    with pytest.raises(Fenced):
        await old.sweep(set(), epoch=1, now_ms=HOUR_MS, grace_ms=HOUR_MS)
    assert await present(new, 1, 2) == {1, 2}
    assert await new.sweep(live(1), epoch=2, now_ms=HOUR_MS, grace_ms=HOUR_MS) == 1
    assert await new.sweep(set(), epoch=3, now_ms=2 * HOUR_MS, grace_ms=HOUR_MS) == 0


async def test_a_sweeper_that_was_replaced_marks_nothing(connect: Connect) -> None:
    old, new = connect(), connect()
    await new.move(at(2, 1))
    await old.put(objects(1))
    with pytest.raises(Fenced):
        await old.sweep(set(), epoch=1, now_ms=0, grace_ms=HOUR_MS)
    assert await new.sweep(set(), epoch=2, now_ms=HOUR_MS, grace_ms=HOUR_MS) == 0
    assert await present(new, 1) == {1}


async def test_a_sweep_leaves_the_pointer(store: Store) -> None:
    await store.move(at(1, 1))
    await store.sweep(set(), epoch=1, now_ms=0, grace_ms=0)
    assert await store.pointer() == at(1, 1)


async def test_closing_twice_is_no_error(connect: Connect) -> None:
    store = connect()
    await store.pointer()
    await store.close()
    await store.close()
    await connect().close()


# A file, tampered with.


@pytest.mark.parametrize("how", ["digest = x'ff'", "epoch = x'ff'", "generation = -1", "epoch = 0.5"])
async def test_something_else_in_the_place_of_the_pointer_of_a_file_is_an_error(tmp_path: Path, how: str) -> None:
    store = SqliteStore(tmp_path / "store.db", writable=True)
    await store.move(at(2, 5))
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as connection:
        connection.execute(f"UPDATE pointer SET {how}")
    with pytest.raises(PointerDamaged):
        await store.pointer()
    # Nothing is higher than what cannot be told: whoever leads writes over it, and readers never go back.
    await store.move(at(1, 1))
    assert (await store.pointer(), await store.earlier()) == (at(1, 1), None)
    await store.close()


@pytest.mark.parametrize("kind", ["file", "fake"])
async def test_where_the_pointer_was_before_is_known(tmp_path: Path, kind: str) -> None:
    store = SqliteStore(tmp_path / "store.db", writable=True) if kind == "file" else MemoryStore()
    assert await store.earlier() is None
    await store.move(at(1, 1))
    await store.move(at(1, 1))
    assert await store.earlier() is None
    await store.move(at(1, 2))
    assert await store.earlier() == at(1, 1)
    await store.reset(at(1, 2))
    assert await store.earlier() == at(1, 1)
    await store.reset(at(1, 1))
    assert (await store.pointer(), await store.earlier()) == (at(1, 1), at(1, 2))
    await store.close()


# The fake, tampered with.


async def test_the_pointer_of_the_fake_can_be_put_anywhere() -> None:
    store = MemoryStore()
    await store.move(at(2, 5))
    waiting = asyncio.create_task(store.changed(at(2, 5), DEADLINE_S))
    await store.reset(at(1, 1))
    async with asyncio.timeout(DEADLINE_S / 2):
        assert await waiting == at(1, 1)
    await store.reset(None)
    assert await store.pointer() is None


# All stores say the same, whatever is asked of them in whatever order.

NUMBERS = st.integers(0, 5)


class BothStores(RuleBasedStateMachine):
    """A store in memory and another one, asked the same."""

    other: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp())
        self.memory = MemoryStore()
        self.connect = FACTORIES[self.other](self.directory)
        self.clients = [self.connect(), self.connect()]

    def both(self, ask: Callable[[Store], Any], client: int) -> None:
        """Asks both stores, and compares what they answer or raise."""

        async def answer(store: Store) -> Any:
            try:
                return await ask(store)
            except CatalogError as error:
                return type(error), str(error)

        async def answers() -> tuple[Any, Any]:
            async with asyncio.timeout(DEADLINE_S):
                return await answer(self.memory), await answer(self.clients[client])

        expected, found = self.runner.run(answers())
        assert found == expected

    @rule(numbers=st.lists(NUMBERS, max_size=4), client=st.integers(0, 1))
    def put(self, numbers: list[int], client: int) -> None:
        self.both(lambda store: store.put(objects(*numbers)), client)

    @rule(number=NUMBERS, data=st.binary(max_size=3), client=st.integers(0, 1))
    def put_damaged(self, number: int, data: bytes, client: int) -> None:
        self.both(lambda store: store.put([Sealed(an_object(number).digest, data)]), client)

    @rule(client=st.integers(0, 1))
    def get_all(self, client: int) -> None:
        self.both(lambda store: store.get([an_object(n).digest for n in range(6)]), client)

    @rule(epoch=st.integers(0, 2), generation=st.integers(0, 3), digest=st.integers(0, 1), client=st.integers(0, 1))
    def move(self, epoch: int, generation: int, digest: int, client: int) -> None:
        self.both(lambda store: store.move(at(epoch, generation, digest)), client)

    @rule(client=st.integers(0, 1))
    def pointer(self, client: int) -> None:
        self.both(lambda store: store.pointer(), client)

    @rule(known=st.none() | st.builds(at, st.integers(0, 2), st.integers(0, 3)), client=st.integers(0, 1))
    def changed(self, known: Pointer | None, client: int) -> None:
        self.both(lambda store: store.changed(known, 0), client)

    @rule(
        kept=st.sets(NUMBERS),
        epoch=st.integers(0, 2),
        now_ms=st.integers(0, 20),
        grace_ms=st.integers(0, 10),
        client=st.integers(0, 1),
    )
    def sweep(self, kept: set[int], epoch: int, now_ms: int, grace_ms: int, client: int) -> None:
        self.both(lambda store: store.sweep(live(*kept), epoch=epoch, now_ms=now_ms, grace_ms=grace_ms), client)

    @rule(client=st.integers(0, 1))
    def reconnect(self, client: int) -> None:
        self.runner.run(self.clients[client].close())
        self.clients[client] = self.connect()

    def teardown(self) -> None:
        for client in self.clients:
            self.runner.run(client.close())
        self.runner.close()
        shutil.rmtree(self.directory)


class MemoryAndSqlite(BothStores):
    other = "sqlite"


class MemoryAndRedis(BothStores):
    other = "redis"


class MemoryAndCluster(BothStores):
    other = "redis cluster"


for machine in (MemoryAndSqlite, MemoryAndRedis, MemoryAndCluster):
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)

TestMemoryAndSqlite = MemoryAndSqlite.TestCase
TestMemoryAndRedis = MemoryAndRedis.TestCase
TestMemoryAndCluster = MemoryAndCluster.TestCase


# A store in a file.


@pytest.fixture
async def on_file(tmp_path: Path) -> AsyncIterator[Callable[..., SqliteStore]]:
    """Opens a store on tmp_path/store.db or on a path given, to write or to read."""
    opened: list[SqliteStore] = []

    def open_one(*, writable: bool, path: Path = tmp_path / "store.db") -> SqliteStore:
        opened.append(SqliteStore(path, writable=writable))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


OnFile = Callable[..., SqliteStore]


def remove(path: Path) -> None:
    """Deletes a store's file and those that SQLite has put beside it, which it would take for the next one's."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


async def every_operation_fails(store: SqliteStore) -> None:
    for operation in (
        lambda: store.get([bytes(32)]),
        lambda: store.put(objects(1)),
        store.pointer,
        lambda: store.move(at(1, 1)),
        lambda: store.changed(None, 1),
        lambda: store.sweep(set(), epoch=1, now_ms=0, grace_ms=0),
    ):
        with pytest.raises(StoreError):
            await operation()


async def test_a_reader_never_creates_anything(on_file: OnFile, tmp_path: Path) -> None:
    await every_operation_fails(on_file(writable=False))
    await every_operation_fails(on_file(writable=False, path=tmp_path / "no" / "store.db"))
    assert os.listdir(tmp_path) == []


async def test_a_reader_that_came_first_reads_what_a_writer_creates(on_file: OnFile) -> None:
    reader, writer = on_file(writable=False), on_file(writable=True)
    with pytest.raises(StoreError):
        await reader.pointer()
    await writer.put(objects(1))
    await writer.move(at(1, 1))
    assert await reader.pointer() == at(1, 1)
    assert await present(reader, 1) == {1}


async def test_a_reader_writes_nothing(on_file: OnFile) -> None:
    writer, reader = on_file(writable=True), on_file(writable=False)
    await writer.put(objects(1))
    await writer.move(at(1, 1))
    for write in (
        reader.put(objects(2)),
        reader.move(at(1, 2)),
        reader.sweep(set(), epoch=1, now_ms=0, grace_ms=0),
    ):
        with pytest.raises(StoreError):
            await write
    assert await present(writer, 1, 2) == {1}
    assert await reader.pointer() == await writer.pointer() == at(1, 1)


async def test_what_was_written_is_there_after_a_restart(on_file: OnFile) -> None:
    writer = on_file(writable=True)
    await writer.put(objects(1, 2))
    await writer.sweep(live(1), epoch=1, now_ms=0, grace_ms=5)
    await writer.move(at(1, 1))
    await writer.close()
    reader, again = on_file(writable=False), on_file(writable=True)
    assert await reader.pointer() == at(1, 1)
    assert await present(reader, 1, 2) == {1, 2}
    assert await again.sweep(live(1), epoch=1, now_ms=5, grace_ms=5) == 1


@pytest.mark.parametrize("name", ["with space.db", "a?b#c%20d&mode=memory.db", "é.db", "store.db?mode=ro", ":memory:"])
async def test_a_path_of_any_characters_is_that_file(on_file: OnFile, tmp_path: Path, name: str) -> None:
    writer = on_file(writable=True, path=tmp_path / "directory" / name)
    await writer.put(objects(1))
    assert (tmp_path / "directory" / name).is_file()
    assert await present(on_file(writable=False, path=tmp_path / "directory" / name), 1) == {1}


async def test_many_who_create_the_file_at_once_all_succeed(on_file: OnFile) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(on_file(writable=True).put(objects(n)) for n in range(8)))
    assert await present(on_file(writable=False), *range(8)) == set(range(8))


async def test_a_file_deleted_under_a_reader_is_an_error_until_there_is_another(
    on_file: OnFile, tmp_path: Path
) -> None:
    writer, reader = on_file(writable=True), on_file(writable=False)
    await writer.put(objects(1))
    await writer.move(at(1, 9))
    assert await reader.pointer() == at(1, 9)
    await writer.close()
    remove(tmp_path / "store.db")
    await every_operation_fails(reader)
    assert os.listdir(tmp_path) == []
    new = on_file(writable=True)
    await new.put(objects(2))
    await new.move(at(1, 1))
    assert await reader.pointer() == at(1, 1)
    assert await present(reader, 1, 2) == {2}


async def test_a_file_deleted_under_a_waiting_reader_ends_the_wait(on_file: OnFile, tmp_path: Path) -> None:
    writer, reader = on_file(writable=True), on_file(writable=False)
    await writer.move(at(1, 1))
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(reader.changed(at(1, 1), 2 * DEADLINE_S))
        await asyncio.wait([waiting], timeout=UNCHANGED_S)
        remove(tmp_path / "store.db")
        with pytest.raises(StoreError):
            await waiting


async def test_a_file_replaced_under_a_waiting_reader_is_read_from_then_on(on_file: OnFile, tmp_path: Path) -> None:
    writer, reader = on_file(writable=True), on_file(writable=False)
    await writer.move(at(5, 5))
    other = on_file(writable=True, path=tmp_path / "other.db")
    await other.put(objects(3))
    await other.move(at(1, 1))
    await other.close()
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(reader.changed(at(5, 5), 2 * DEADLINE_S))
        await asyncio.wait([waiting], timeout=UNCHANGED_S)
        remove(tmp_path / "store.db")
        (tmp_path / "other.db").rename(tmp_path / "store.db")
        assert await waiting == at(1, 1)
    assert await present(reader, 3) == {3}


@pytest.mark.parametrize("reads_between", [False, True])
async def test_a_file_deleted_under_a_publisher_makes_it_begin_again(
    on_file: OnFile, tmp_path: Path, *, reads_between: bool
) -> None:
    """Otherwise the pointer would move in a file where the objects, put before, are missing; or in one that is gone."""
    publisher = on_file(writable=True)
    await publisher.put(objects(1))
    remove(tmp_path / "store.db")
    if reads_between:
        assert await publisher.pointer() is None
    with pytest.raises(StoreError, match="begin again"):
        await publisher.move(at(1, 1))
    reader = on_file(writable=False)
    await publisher.put(objects(1))
    await publisher.move(at(1, 1))
    assert await reader.pointer() == at(1, 1)
    assert await present(reader, 1) == {1}


async def test_an_old_client_does_no_harm_to_the_new_file(on_file: OnFile, tmp_path: Path) -> None:
    """SQLite's files beside the old file have the names of those beside the new one."""
    old, old_reader = on_file(writable=True), on_file(writable=False)
    await old.put(an_object(n) for n in range(100))
    await old.move(at(1, 1))
    assert await old_reader.pointer() == at(1, 1)
    (tmp_path / "store.db").unlink()
    new = on_file(writable=True)
    await new.put(an_object(n) for n in range(200, 300))
    await new.move(at(1, 2))
    assert await old_reader.pointer() == at(1, 2)
    await old_reader.close()
    await old.close()
    await new.put(an_object(n) for n in range(300, 400))
    await new.close()
    after = on_file(writable=False)
    assert await present(after, *range(400)) == set(range(200, 400))
    assert await after.pointer() == at(1, 2)


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("data", [b"not a database at all" * 500, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 8176])
async def test_a_file_that_is_no_store_is_an_error(
    on_file: OnFile, tmp_path: Path, data: bytes, *, writable: bool
) -> None:
    (tmp_path / "store.db").write_bytes(data)
    store = on_file(writable=writable)
    await every_operation_fails(store)
    assert (tmp_path / "store.db").read_bytes() == data
    remove(tmp_path / "store.db")
    await on_file(writable=True).move(at(1, 1))
    assert await store.pointer() == at(1, 1)


async def test_an_empty_file_is_no_store_to_a_reader_and_an_empty_one_to_a_writer(
    on_file: OnFile, tmp_path: Path
) -> None:
    (tmp_path / "store.db").touch()
    await every_operation_fails(on_file(writable=False))
    assert await on_file(writable=True).pointer() is None
    assert await on_file(writable=False).pointer() is None


async def test_a_closed_store_stays_closed(on_file: OnFile, tmp_path: Path) -> None:
    """Otherwise whoever still waits for the pointer would open the file again, and nobody would close it."""
    store = on_file(writable=True)
    await store.move(at(1, 1))
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(store.changed(at(1, 1), 2 * DEADLINE_S))
        await asyncio.wait([waiting], timeout=0.05)
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await waiting
    remove(tmp_path / "store.db")
    await every_operation_fails(store)
    assert os.listdir(tmp_path) == []


async def test_a_directory_in_the_place_of_the_file_is_an_error(on_file: OnFile, tmp_path: Path) -> None:
    (tmp_path / "store.db").mkdir()
    for writable in (True, False):
        await every_operation_fails(on_file(writable=writable))
    (tmp_path / "file").touch()
    await every_operation_fails(on_file(writable=True, path=tmp_path / "file" / "store.db"))


async def test_damage_anywhere_in_the_file_is_an_error_or_wrong_bytes_but_nothing_else(
    on_file: OnFile, tmp_path: Path
) -> None:
    """Wrong bytes are found by the digest; that is not the store's part."""
    writer = on_file(writable=True)
    await writer.put(an_object(n, 300) for n in range(100))
    await writer.move(at(1, 1))
    await writer.close()
    good = (tmp_path / "store.db").read_bytes()
    source = random.Random(11)
    failed = 0
    for n in range(60):
        damaged = bytearray(good)
        if n % 3 == 0:
            del damaged[source.randrange(len(damaged)) :]
        else:
            start = source.randrange(len(damaged) // 100) if n % 3 == 1 else source.randrange(len(damaged))
            damaged[start : start + 16] = source.randbytes(16)
        path = tmp_path / f"damaged-{n}.db"
        path.write_bytes(damaged)
        store = on_file(writable=n % 2 == 0, path=path)
        try:
            await store.get([an_object(n, 300).digest for n in range(100)])
            await store.pointer()
            await store.sweep(live(*range(50)), epoch=1, now_ms=0, grace_ms=0)
        except StoreError:
            failed += 1
        await store.close()
    assert failed


async def test_whoever_is_cancelled_while_another_writes_leaves_no_lock(on_file: OnFile, tmp_path: Path) -> None:
    store = on_file(writable=True)
    await store.put(objects(1))
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(DEADLINE_S):
            putting = asyncio.create_task(store.put(objects(2)))
            done, _ = await asyncio.wait([putting], timeout=UNCHANGED_S)
            assert not done
            putting.cancel()
            other.execute("ROLLBACK")
            with pytest.raises(asyncio.CancelledError):
                await putting
            assert await present(store, 1, 2) == {1}
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            await store.put(objects(3))
    assert await present(store, 1, 2, 3) == {1, 3}


async def test_what_fails_halfway_through_a_put_leaves_nothing(on_file: OnFile) -> None:
    store = on_file(writable=True)

    def failing() -> Any:
        yield an_object(1)
        raise LookupError

    with pytest.raises(LookupError):
        await store.put(failing())
    assert await present(store, 1) == set()
    await store.put(objects(1))
    assert await present(store, 1) == {1}


WRITER = """
import asyncio, sys
from pathlib import Path
from sidecar.contract.objects import ObjectType, seal
from sidecar.store import Pointer
from sidecar.store.sqlite import SqliteStore

async def publish(path, generations):
    store = SqliteStore(Path(path), writable=True)
    for generation in range(1, generations + 1):
        objects = [seal(ObjectType.METADATA, (generation * 100 + n).to_bytes(8, "big")) for n in range(20)]
        await store.put(objects)
        await store.move(Pointer(1, generation, objects[0].digest))
    await store.close()

asyncio.run(publish(sys.argv[1], int(sys.argv[2])))
"""


async def test_whoever_reads_the_pointer_of_another_process_can_read_its_objects(
    on_file: OnFile, tmp_path: Path
) -> None:
    generations = 60
    on = on_file(writable=True)
    assert await on.pointer() is None
    readers = [on_file(writable=False), on]
    writer = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", WRITER, str(tmp_path / "store.db"), str(generations)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )

    async def follow(reader: SqliteStore) -> Sequence[int]:
        known: Pointer | None = None
        seen = []
        while known is None or known.generation < generations:
            known = await reader.changed(known, DEADLINE_S)
            assert known is not None
            numbers = [known.generation * 100 + n for n in range(20)]
            assert await present(reader, *numbers) == set(numbers)
            assert known.digest == an_object(numbers[0]).digest
            seen.append(known.generation)
        return seen

    async with asyncio.timeout(DEADLINE_S):
        for seen in await asyncio.gather(*map(follow, readers)):
            assert seen == sorted(set(seen))
        assert await writer.wait() == 0


MOUNTS = r"""proc /proc proc rw 0 0
/dev/sda1 / ext4 rw,relatime 0 0
server:/export /srv/share nfs4 rw,addr=10.0.0.1 0 0
/dev/sdb1 /srv/share/local xfs rw 0 0
//server/share /mnt/with\040space\011and\134more cifs rw 0 0
tmpfs /srv/over tmpfs rw 0 0
s3 /srv/over fuse.s3fs rw 0 0
server:/home /home/caf\303 nfs rw 0 0
glu /mnt/g glusterfs rw 0 0
/dev/sdc1 /mnt/g ext4 rw 0 0
"""


@pytest.mark.parametrize(
    "path, kind",
    [
        ("/var/lib/store.db", None),
        ("/srv/share/store.db", "nfs4"),
        ("/srv/share", "nfs4"),
        ("/srv/share/deep/er/store.db", "nfs4"),
        ("/srv/shared/store.db", None),
        ("/srv/share/local/store.db", None),
        ("/srv/share/localized/store.db", "nfs4"),
        ("/mnt/with space\tand\\more/store.db", "cifs"),
        ("/mnt/with/store.db", None),
        ("/srv/over/store.db", "fuse.s3fs"),
        ("/mnt/g/store.db", None),
        ("/", None),
    ],
)
def test_a_network_file_system_is_the_innermost_and_last_mount_of_a_path(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_without_any_mounts_no_file_system_is_one_of_the_network() -> None:
    assert network_file_system(Path("/var/lib/store.db"), "") is None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "fuse.sshfs"])
def test_common_network_file_systems_are_known(kind: str) -> None:
    assert network_file_system(Path("/data/store.db"), f"somewhere / {kind} rw 0 0\n") == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.fuse-overlayfs", "apfs"])
def test_common_local_file_systems_are_known(kind: str) -> None:
    assert network_file_system(Path("/data/store.db"), f"/dev/sda1 / {kind} rw 0 0\n") is None
