"""What people wish readers to see: noted with who and why or refused, and come true whoever leads."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from indexer import history
from indexer.history import NoSuchGeneration, NothingToDo, State, TreeLost
from indexer.publish import SWEEP_GRACE_MS
from indexer.registry import decisions, generations, lead
from indexer.registry.decisions import Action
from indexer.registry.generations import Generation
from indexer.wiring import Parts
from sidecar.errors import StoreError
from sidecar.settings import Settings
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock
from tests.indexer.test_pinned import commit_all, content, made, make, memory_of, shown
from tests.world import World, verify, world

WHO, WHY = "cli:ops", "half of the catalogs are empty"


async def roll_back(here: World, number: int | None = None) -> Generation:
    return await history.roll_back(here.registry, here.store, number, WHO, WHY)


async def pin(here: World) -> Generation:
    return await history.pin(here.registry, here.store, here.clock, WHO, WHY)


async def unpin(here: World) -> tuple[int, int]:
    return await history.unpin(here.registry, here.store, WHO, WHY)


async def pinned(here: World) -> int | None:
    async with here.registry.read() as connection:
        return await generations.pin(connection)


async def decided(here: World) -> list[tuple[str, str]]:
    async with here.registry.read() as connection:
        found = await decisions.made(connection)
    assert all((made.who, made.why, made.at_ms) == (WHO, WHY, here.clock.now_ms()) for made in found)
    return [(made.action.value, made.subject) for made in reversed(found)]


def parts(here: World) -> Parts:
    return Parts(Settings(), here.clock, here.registry, here.store, here.source)


async def leave(here: World) -> None:
    await lead.release(here.registry, here.epoch)


async def come_true(here: World, shows: Callable[[Generation], bool], pin: int | None = 1) -> Generation | None:
    return await history.come_true(parts(here), shows, pin)


class TestARollback:
    async def test_is_noted_with_the_pin_and_who_and_why_in_one(self, here: World) -> None:
        await made(here, 3)
        assert (await roll_back(here, 1)).generation == 1
        assert await pinned(here) == 1
        assert await decided(here) == [(Action.ROLLBACK, "1")]

    async def test_goes_one_back_by_default_and_further_each_time(self, here: World) -> None:
        await made(here, 3)
        for expected in (2, 1):
            assert (await roll_back(here)).generation == expected
            await commit_all(here)
            assert (await shown(here)).shows == expected
        with pytest.raises(NoSuchGeneration, match="no generation before 1 is known here"):
            await roll_back(here)

    async def test_to_what_nobody_knows_is_refused(self, here: World) -> None:
        await made(here, 1)
        with pytest.raises(NoSuchGeneration, match=r"no generation 7 is known here; `catalog-indexer generations`"):
            await roll_back(here, 7)
        assert (await pinned(here), await decided(here)) == (None, [])

    async def test_to_what_is_served_is_refused(self, here: World) -> None:
        await made(here, 2)
        with pytest.raises(NothingToDo, match=r"readers see generation 2 already; `catalog-indexer pin` keeps them"):
            await roll_back(here, 2)
        await roll_back(here, 1)
        await commit_all(here)
        with pytest.raises(NothingToDo, match=r"readers see generation 1 already$"):
            await roll_back(here, 1)
        assert await decided(here) == [(Action.ROLLBACK, "1")]

    @pytest.mark.parametrize("fault", ["swept", "missing", "corrupt"])
    async def test_to_a_tree_that_is_not_whole_is_refused(self, here: World, clock: FakeClock, fault: str) -> None:
        await made(here, 5)
        before = dict(memory_of(here).objects)
        async with here.registry.read() as connection:
            first = await generations.find(connection, 1)
        assert first is not None
        if fault == "swept":
            for _ in range(2):
                await here.publisher.sweep(here.epoch, 2)
                clock.advance(SWEEP_GRACE_MS / 1000)
        elif fault == "missing":
            del memory_of(here).objects[first.digest]
        else:
            memory_of(here).objects[first.digest] += b"!"
        expected = (
            "0 of its objects are missing, 1 corrupt" if fault == "corrupt" else "1 of its objects are missing, 0"
        )
        with pytest.raises(TreeLost, match=expected):
            await roll_back(here, 1)
        assert (await pinned(here), await decided(here)) == (None, [])
        memory_of(here).objects.update(before)

    async def test_with_the_store_down_is_refused(self, tmp_path: Path) -> None:
        store = DownStore()
        async with world(tmp_path, store=store) as here:
            await made(here, 2)
            store.down = True
            for wish in (roll_back, pin, unpin):
                with pytest.raises(StoreError, match="down"):
                    await wish(here)
            store.down = False
            assert (await pinned(here), await decided(here)) == (None, [])

    async def test_from_a_store_of_nobody_has_to_name_where_to(self, here: World) -> None:
        await made(here, 2)
        await memory_of(here).reset(None)
        with pytest.raises(NoSuchGeneration, match="name the one to roll back to"):
            await roll_back(here)
        assert (await roll_back(here, 1)).generation == 1
        await commit_all(here)


class TestAPin:
    async def test_is_of_what_readers_see(self, here: World) -> None:
        await made(here, 2)
        assert (await pin(here)).generation == 2
        assert (await pinned(here), await decided(here)) == (2, [(Action.PIN, "2")])

    async def test_of_a_rollback_is_of_that(self, here: World) -> None:
        await made(here, 2)
        await roll_back(here)
        await commit_all(here)
        with pytest.raises(NothingToDo, match="generation 1 is pinned already"):
            await pin(here)

    async def test_of_nothing_is_refused(self, here: World) -> None:
        with pytest.raises(NothingToDo, match="there is nothing to pin"):
            await pin(here)

    async def test_waits_for_a_publication_that_is_under_way(self, tmp_path: Path) -> None:
        """Its number is given, and the pointer moves at any moment: what it shows is what is pinned."""
        store = HeldUpStore()
        async with world(tmp_path, store=store) as here:
            await made(here, 1)
            store.gate = asyncio.Event()
            publishing = asyncio.create_task(make(here, 2))
            await store.moving.wait()

            class Clock(FakeClock):
                async def sleep(self, seconds: float) -> None:
                    assert store.gate is not None
                    store.gate.set()
                    await publishing

            found = await history.pin(here.registry, here.store, Clock(), WHO, WHY)
            assert (found.generation, await pinned(here)) == (2, 2)

    async def test_does_not_wait_for_ever_for_one_that_died(self, here: World) -> None:
        first = (await made(here, 1))[0]
        async with here.registry.plain() as connection:
            dead = Generation(2, here.epoch, bytes(32), None, 9, 0, 1, 1, "test", moved=False)
            assert await generations.intend(connection, dead)
        assert await pin(here) == first
        await commit_all(here)
        assert await shown(here) == first


class TestUnpinning:
    async def test_is_noted_and_says_what_was_pinned(self, here: World) -> None:
        await made(here, 2)
        await roll_back(here)
        number, clock = await unpin(here)
        async with here.registry.read() as connection:
            assert (number, clock) == (1, await generations.clock(connection))
        assert await pinned(here) is None
        assert await decided(here) == [(Action.ROLLBACK, "1"), (Action.UNPIN, "1")]

    async def test_of_nothing_is_refused(self, here: World) -> None:
        await made(here, 1)
        with pytest.raises(NothingToDo, match="no generation is pinned"):
            await unpin(here)
        assert await decided(here) == []


class TestAWish:
    async def test_comes_true_without_a_leader(self, here: World) -> None:
        first = (await made(here, 2))[0]
        before = await content(here, first)
        await leave(here)
        await roll_back(here, 1)
        again = await come_true(here, lambda served: served.is_tree_of(1))
        assert again is not None
        assert (again.shows, again.moved) == (1, True)
        assert await content(here, await shown(here)) == before
        _, clock = await unpin(here)
        new = await come_true(here, lambda served: served.clock >= clock, None)
        assert new is not None
        assert new.shows is None
        assert (await lead.observe(here.registry)).holder is None

    async def test_comes_true_by_the_one_who_leads(self, here: World) -> None:
        await made(here, 2)

        class Clock(FakeClock):
            async def sleep(self, seconds: float) -> None:
                await super().sleep(seconds)
                await here.publish()

        await roll_back(here, 1)
        here.clock = Clock()
        again = await come_true(here, lambda served: served.is_tree_of(1))
        assert again is not None
        assert again.epoch == here.epoch

    async def test_is_not_waited_for_longer_than_a_while_if_the_leader_lives(self, here: World) -> None:
        await made(here, 2)

        class Clock(FakeClock):
            async def sleep(self, seconds: float) -> None:
                await super().sleep(seconds)
                await lead.renew(here.registry, here.epoch)

        await roll_back(here, 1)
        here.clock = Clock()
        began_s = here.clock.monotonic()
        assert await come_true(here, lambda served: served.is_tree_of(1)) is None
        longest_s = history.WAIT_S + 2 * Settings().indexer.lease_s
        assert history.WAIT_S < here.clock.monotonic() - began_s < longest_s

    async def test_comes_true_though_the_leader_was_killed(self, here: World) -> None:
        """It holds the lead until another one takes it: nobody else is there to do so."""
        await made(here, 2)
        await roll_back(here, 1)
        again = await come_true(here, lambda served: served.is_tree_of(1))
        assert again is not None
        assert again.epoch > here.epoch
        await here.lead()

    async def test_is_not_waited_for_once_somebody_has_wished_otherwise(self, here: World) -> None:
        await made(here, 3)
        await roll_back(here, 1)
        await roll_back(here, 2)
        began_s = here.clock.monotonic()
        assert await come_true(here, lambda served: served.is_tree_of(1)) is None
        assert here.clock.monotonic() == began_s

    async def test_that_cannot_come_true_says_why(self, here: World) -> None:
        await made(here, 2)
        await roll_back(here, 1)
        await leave(here)
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        with pytest.raises(TreeLost, match="generation 1 is pinned, and objects of its tree are lost"):
            await come_true(here, lambda served: served.is_tree_of(1))
        await here.lead()
        await unpin(here)
        await commit_all(here)


class TestTheHistory:
    async def test_says_of_each_generation_what_became_of_it(self, here: World, clock: FakeClock) -> None:
        await made(here, 4)
        for _ in range(2):
            await here.publisher.sweep(here.epoch, 2)
            clock.advance(SWEEP_GRACE_MS / 1000)
        async with here.registry.plain() as connection:
            dead = Generation(5, here.epoch, bytes(32), None, 9, 0, 1, 1, "test", moved=False)
            assert await generations.intend(connection, dead)
        await roll_back(here, 3)
        await commit_all(here)
        found = await history.look(here.registry, here.store, 20)
        assert (found.pin, found.held, found.store) == (3, 1, None)
        rows = [(e.generation.generation, e.state, e.in_store, e.served, e.pinned) for e in found.entries]
        assert rows == [
            (7, State.HELD, True, False, False),
            (6, State.PUBLISHED, True, True, False),
            (5, State.UNSEEN, False, False, False),
            (4, State.PUBLISHED, True, False, False),
            (3, State.PUBLISHED, True, False, True),
            (2, State.PUBLISHED, False, False, False),
            (1, State.PUBLISHED, False, False, False),
        ]
        assert [(d.action, d.subject, d.who, d.why) for d in found.decisions] == [(Action.ROLLBACK, "3", WHO, WHY)]

    async def test_has_the_pinned_one_also_when_it_is_old(self, here: World) -> None:
        await made(here, 3)
        await roll_back(here, 1)
        await commit_all(here)
        found = await history.look(here.registry, here.store, 1)
        assert [(e.generation.generation, e.pinned) for e in found.entries] == [(5, False), (1, True)]

    async def test_is_told_without_the_store_too(self, tmp_path: Path) -> None:
        store = DownStore()
        async with world(tmp_path, store=store) as here:
            await made(here, 1)
            store.down = True
            found = await history.look(here.registry, here.store, 20)
            assert [(e.in_store, e.served) for e in found.entries] == [(None, False)]
            assert found.store == "down"
            store.down = False


class DownStore(MemoryStore):
    """A store that is out of reach for a while."""

    down = False

    async def pointer(self) -> Pointer | None:
        if self.down:
            raise StoreError("down")
        return await super().pointer()


class HeldUpStore(MemoryStore):
    """A store whose pointer moves when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: asyncio.Event | None = None
        self.moving = asyncio.Event()

    async def move(self, pointer: Pointer) -> None:
        if self.gate is not None:
            self.moving.set()
            await self.gate.wait()
        await super().move(pointer)


async def test_every_tree_is_whole_after_any_order_of_wishes(here: World) -> None:
    await made(here, 3)
    wishes: list[Callable[[], Awaitable[object]]] = [
        lambda: roll_back(here, 1),
        lambda: roll_back(here, 2),
        lambda: unpin(here),
        lambda: pin(here),
        lambda: make(here, 7),
        lambda: unpin(here),
        lambda: roll_back(here),
        lambda: make(here, 8),
        lambda: unpin(here),
    ]
    numbers = []
    for wish in wishes:
        await wish()
        await commit_all(here)
        numbers.append((await shown(here)).generation)
        await verify(here.store)
    assert numbers == sorted(numbers)
    assert len((await history.look(here.registry, here.store, 50)).decisions) == 7
