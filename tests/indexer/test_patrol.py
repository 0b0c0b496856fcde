"""The patrol: damage is noticed in one round, alarmed once, and written again bit for bit; all else is no damage."""

import random
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from indexer import tree
from indexer.metrics import Metrics
from indexer.patrol import ROUND_S, Patrol
from indexer.publish import SWEEP_GRACE_MS, Publisher
from indexer.registry import generations
from indexer.tree import BATCH
from sidecar.contract.objects import HEADER, ObjectType
from sidecar.errors import StoreError
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, course, customer, run
from tests.indexer.test_pinned import commit_all, content, made, make, pin, shown
from tests.world import World, verify, world

COURSES = {"content_type": "course"}


class Watched:
    """A world whose leader patrols. `woken`: how often it was asked for a commit."""

    def __init__(self, here: World) -> None:
        self.here = here
        self.metrics = Metrics()
        self.woken = 0
        self.lead()

    def lead(self) -> None:
        here = self.here
        here.publisher = Publisher(here.registry, here.store, here.clock, metrics=self.metrics)
        here.pipeline = here._pipeline()
        self.patrol = Patrol(here.publisher, here.store, here.clock, self.metrics, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def count(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(f"catalog_indexer_{name}", labels)
        assert value is not None
        return value

    @property
    def objects(self) -> dict[bytes, bytes]:
        assert isinstance(self.here.store, MemoryStore)
        return self.here.store.objects

    def damaged(self) -> dict[str, float]:
        return {
            "now": self.count("store_damaged_objects"),
            "missing": self.count("store_damage_total", kind="missing"),
            "corrupt": self.count("store_damage_total", kind="corrupt"),
            "healed": self.count("objects_healed_total"),
        }


@pytest.fixture
async def it(here: World) -> Watched:
    watched = Watched(here)
    assert isinstance(here.source, FakeSource)
    here.source.customers = [customer("Acme")]
    await made(here, 2)
    return watched


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


async def test_a_store_that_is_whole_is_left_alone(it: Watched) -> None:
    assert not await it.patrol.round()
    assert (it.woken, it.damaged()) == (0, {"now": 0, "missing": 0, "corrupt": 0, "healed": 0})


@pytest.mark.parametrize("kind", list(ObjectType))
@pytest.mark.parametrize("lost", [True, False], ids=["missing", "corrupt"])
async def test_any_damaged_object_is_alarmed_and_written_again_under_the_same_generation(
    it: Watched, kind: ObjectType, lost: bool
) -> None:
    before, pointer = dict(it.objects), await it.here.store.pointer()
    needed = it.here.publisher.needed()
    digest = next(d for d, data in sorted(before.items()) if d in needed and HEADER.unpack_from(data)[2] == kind)
    if lost:
        del it.objects[digest]
    else:
        it.objects[digest] = flip(before[digest])
    with capture_logs() as logs:
        assert (await it.patrol.round()).all() == {digest}
    [alarm] = logs
    assert (alarm["log_level"], alarm["objects"]) == ("error", [digest.hex()])
    assert (alarm["missing"], alarm["corrupt"]) == (int(lost), int(not lost))
    assert (it.woken, it.damaged()["now"]) == (1, 1)
    assert await it.here.publish() is None
    assert (it.objects, await it.here.store.pointer()) == (before, pointer)
    assert it.damaged() == {"now": 0, "missing": int(lost), "corrupt": int(not lost), "healed": 1}
    assert not await it.patrol.round()


async def test_all_damage_of_a_round_is_written_again_at_once(it: Watched) -> None:
    """As an eviction policy leaves it: any objects, also all of them."""
    before = dict(it.objects)
    chance = random.Random(7)
    for share in (0.1, 0.5, 1.0):
        needed = sorted(it.here.publisher.needed())
        gone = chance.sample(needed, round(share * len(needed)))
        for digest in gone:
            del it.objects[digest]
        assert (await it.patrol.round()).missing == set(gone)
        assert await it.here.publish() is None
        assert it.objects == before
        assert it.damaged()["now"] == 0


async def test_damage_that_comes_with_news_is_written_again_with_the_news(it: Watched) -> None:
    digest = next(d for d in sorted(it.here.publisher.needed()))
    del it.objects[digest]
    await it.patrol.round()
    assert (await make(it.here, 3)).moved
    await verify(it.here.store)
    assert it.damaged()["now"] == 0


async def test_a_round_is_spread_over_its_time_in_equal_parts(tmp_path: Path, clock: FakeClock) -> None:
    store = InterruptedStore()
    async with world(tmp_path, store=store, clock=clock) as here:
        it = Watched(here)
        await made(here, 1)
        many = frozenset(n.to_bytes(32, "big") for n in range(3 * BATCH + 1))
        store.objects.update(dict.fromkeys(many, b""))
        here.publisher.needed = lambda: many  # type: ignore[method-assign]
        began_s, read_s = clock.monotonic(), list[float]()
        store.read = lambda: read_s.append(clock.monotonic() - began_s)
        await it.patrol.round()
        # All of it is damaged: there is no pause any more once that is seen.
        assert set(read_s) == {0.0}
        here.publisher.needed = lambda: many if len(read_s) == 1 else frozenset()  # type: ignore[method-assign]
        read_s.clear()
        read_s.append(0.0)
        await it.patrol.round()
        assert read_s[1:] == [pytest.approx(ROUND_S * n * BATCH / len(many)) for n in range(4)]


class InterruptedStore(MemoryStore):
    """A store in which something happens once, before a read has found anything or after it; `read` is told of each."""

    before: Callable[[], Awaitable[object]] | None = None
    after: Callable[[], Awaitable[object]] | None = None
    read: Callable[[], object] | None = None
    failing = False

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        if self.failing:
            raise StoreError("out of reach")
        if self.read is not None and digests:
            self.read()
        before, self.before = self.before, None
        if before is not None:
            await before()
        found = await super().get(digests)
        after, self.after = self.after, None
        if after is not None:
            await after()
        return found


class TestNoDamage:
    async def test_is_what_a_commit_has_given_up_and_a_sweep_deleted(self, tmp_path: Path, clock: FakeClock) -> None:
        store = InterruptedStore()
        async with world(tmp_path, store=store, clock=clock) as here:
            it = Watched(here)
            await made(here, 1)
            old = here.publisher.needed()

            async def replaced() -> None:
                await make(here, 2)
                for _ in range(2):
                    await here.publisher.sweep(here.epoch, 1)
                    clock.advance(SWEEP_GRACE_MS / 1000)

            store.before = replaced
            assert not await it.patrol.round()
            assert old - store.objects.keys()
            assert it.woken == 0

    async def test_is_what_was_away_and_is_needed_again(self, tmp_path: Path, clock: FakeClock) -> None:
        """It was missing when it was read, because nothing needed it; by now a commit needs it, and has written it."""
        store = InterruptedStore()
        async with world(tmp_path, store=store, clock=clock) as here:
            it = Watched(here)
            await made(here, 1)
            old = here.publisher.needed()
            await make(here, 2)
            for _ in range(2):
                await here.publisher.sweep(here.epoch, 1)
                clock.advance(SWEEP_GRACE_MS / 1000)
            now = here.publisher.needed
            asked = [old]
            here.publisher.needed = lambda: asked.pop() if asked else now()  # type: ignore[method-assign]
            gone = old - store.objects.keys()
            store.after = lambda: make(here, 1)
            assert not await it.patrol.round()
            assert gone & now()
            assert it.woken == 0

    async def test_is_a_store_that_is_out_of_reach(self, tmp_path: Path, clock: FakeClock) -> None:
        store = InterruptedStore()
        async with world(tmp_path, store=store, clock=clock) as here:
            it = Watched(here)
            await made(here, 1)
            store.failing = True
            with pytest.raises(StoreError):
                await it.patrol.round()
            store.failing = False
            assert (it.woken, it.damaged()["now"]) == (0, 0)

    async def test_is_anything_before_the_first_commit(self, it: Watched) -> None:
        await it.here.lead()
        it.lead()
        it.objects.clear()
        assert not await it.patrol.round()
        # The first commit looks at everything itself.
        await it.here.publish()
        await verify(it.here.store)
        assert (it.damaged()["now"], it.damaged()["healed"]) == (0, 1)  # The root, below which nothing was known.


class TestBehindAPin:
    async def test_both_the_pinned_tree_and_what_is_held_back_are_looked_after(self, it: Watched) -> None:
        await pin(it.here, 1)
        _, held = await commit_all(it.here)
        again = await shown(it.here)
        before = dict(it.objects)
        async with it.here.registry.read() as connection:
            first = await generations.find(connection, 1)
        assert first is not None
        for digest in (held.digest, first.digest, again.digest):
            del it.objects[digest]
            assert (await it.patrol.round()).missing == {digest}
            assert await it.here.publish() is None
            assert it.objects == before
        assert it.damaged() == {"now": 0, "missing": 3, "corrupt": 0, "healed": 3}

    async def test_what_the_registry_does_not_describe_any_more_is_said_until_it_is_back(self, it: Watched) -> None:
        await pin(it.here, 1)
        _, held = await commit_all(it.here)
        again = await shown(it.here)
        before = await content(it.here, again)
        only = await tree.references(it.here.store, again.digest) - await tree.references(it.here.store, held.digest)
        old = next(d for d in sorted(only) if HEADER.unpack_from(it.objects[d])[2] == ObjectType.METADATA)
        data = it.objects.pop(old)
        assert (await it.patrol.round()).missing == {old}
        assert await it.here.publish() is None
        assert it.damaged() == {"now": 1, "missing": 1, "corrupt": 0, "healed": 0}
        assert "objects of its tree are lost" in str(it.here.publisher.problem)
        # Said once, and tried again every round; readers stay, and the newest state goes on being held back.
        with capture_logs() as logs:
            assert (await it.patrol.round()).missing == {old}
            assert await it.here.publish() is None
        assert [line for line in logs if line["log_level"] == "error"] == []
        assert it.damaged() == {"now": 1, "missing": 1, "corrupt": 0, "healed": 0}
        assert not (await make(it.here, 3)).moved
        assert await it.here.store.pointer() == (again.epoch, again.generation, again.digest)
        it.objects[old] = data
        await it.patrol.round()
        await commit_all(it.here)
        assert (it.here.publisher.problem, it.damaged()["now"]) == (None, 0)
        assert await content(it.here, await shown(it.here)) == before


async def test_rounds_go_on_until_cancelled_whatever_the_store_does(tmp_path: Path, clock: FakeClock) -> None:
    class Ended(Exception):
        pass

    class Clock(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            if self.steady_s > 5 * ROUND_S:
                raise Ended

    store = InterruptedStore()
    async with world(tmp_path, store=store, clock=Clock()) as here:
        it = Watched(here)
        assert isinstance(here.source, FakeSource)
        here.source.courses = [course("A+1", run("a1"))]
        await here.add("a", COURSES)
        await here.build()
        store.failing = True
        with capture_logs() as logs, pytest.raises(Ended):
            await it.patrol.run()
        assert [line["event"] for line in logs] == ["the store could not be looked through"] * 6
        store.failing = False
