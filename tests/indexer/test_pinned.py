"""The pin, as publishing keeps it: readers stay, what is made piles up behind it, no loss of the store breaks it."""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from indexer import tree
from indexer.check import check
from indexer.metrics import Metrics
from indexer.publish import SWEEP_GRACE_MS, Publisher
from indexer.registry import generations
from indexer.registry.generations import Generation, Standing
from sidecar.contract.objects import Sealed
from sidecar.contract.records import Root
from sidecar.errors import StoreError
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, course, run
from tests.indexer import scripts
from tests.indexer.test_publish import FlakyStore
from tests.world import World, load, verify, world

COURSES = {"content_type": "course"}
NAMES = ("epoch", "generation", "published_at_ms", "parent")


async def make(here: World, number: int) -> Generation:
    """A generation with other content than any other number has, some of it in common."""
    assert isinstance(here.source, FakeSource)
    here.source.courses = [course("A+1", run("a1")), course("B+1", run(f"b{number}"), title=f"{number}")]
    made = await here.build()
    assert made is not None
    return made


async def made(here: World, count: int) -> list[Generation]:
    await here.add("a", COURSES)
    return [await make(here, n) for n in range(1, count + 1)]


async def pin(here: World, number: int | None) -> None:
    async with here.registry.plain() as connection:
        await generations.set_pin(connection, number)


async def standing(here: World) -> Standing:
    async with here.registry.read() as connection:
        return await generations.standing(connection)


async def shown(here: World) -> Generation:
    """What readers see, which the registry must know they do."""
    pointer = await here.store.pointer()
    assert pointer is not None
    async with here.registry.read() as connection:
        found = await generations.find(connection, pointer.generation)
    assert found is not None
    assert (found.epoch, found.digest, found.moved) == (pointer.epoch, pointer.digest, True)
    await verify(here.store)
    return found


async def commit_all(here: World) -> list[Generation]:
    done = []
    while (new := await here.publish()) is not None:
        done.append(new)
        assert len(done) < 5
    return done


def content_of(root: Root) -> tuple[object, ...]:
    return tuple(getattr(root, name) for name in Root.__slots__ if name not in NAMES)


async def content(here: World, of: Generation) -> tuple[object, ...]:
    return content_of((await load(here.store, Pointer(of.epoch, of.generation, of.digest))).root)


def memory_of(here: World) -> MemoryStore:
    assert isinstance(here.store, MemoryStore)
    return here.store


class TestARollback:
    async def test_shows_the_earlier_tree_under_a_new_number_and_holds_the_newest_state_back(self, here: World) -> None:
        first, _, third = await made(here, 3)
        await pin(here, first.generation)
        again, held = await commit_all(here)
        assert (again.generation, again.shows, again.moved, again.parent) == (4, 1, True, third.digest)
        assert (held.generation, held.shows, held.moved, held.parent) == (5, None, False, again.digest)
        assert (again.clock, held.clock) == (first.clock, third.clock)
        assert await shown(here) == again
        assert await content(here, again) == await content(here, first)
        assert await content(here, held) == await content(here, third)
        assert (await standing(here)).held == 1

    async def test_outlives_commits_and_leaders(self, here: World) -> None:
        first = (await made(here, 2))[0]
        await pin(here, 1)
        await commit_all(here)
        again = await shown(here)
        for number in (3, 4):
            held = await make(here, number)
            assert not held.moved
            assert await here.publish() is None
        await here.lead()
        assert await here.publish() is None
        assert not (await make(here, 5)).moved
        assert await shown(here) == again
        assert await content(here, again) == await content(here, first)

    async def test_to_what_a_rollback_shows_is_one_to_its_tree(self, here: World) -> None:
        first, _ = await made(here, 2)
        await pin(here, 1)
        await commit_all(here)
        await pin(here, None)
        await commit_all(here)
        await pin(here, 3)
        again = (await commit_all(here))[0]
        assert again.shows == 3
        assert await content(here, again) == await content(here, first)

    async def test_to_a_generation_that_is_held_back_shows_that_one(self, here: World) -> None:
        await made(here, 1)
        await pin(here, 1)
        held = await make(here, 2)
        await make(here, 3)
        await pin(here, held.generation)
        await commit_all(here)
        assert await content(here, await shown(here)) == await content(here, held)

    async def test_that_is_withdrawn_before_it_was_shown_shows_the_newest_state(self, here: World) -> None:
        second = (await made(here, 2))[-1]
        await pin(here, 1)
        await pin(here, None)
        assert await commit_all(here) == []
        assert await shown(here) == second


class TestAPin:
    async def test_of_what_is_served_publishes_nothing_again(self, here: World) -> None:
        second = (await made(here, 2))[-1]
        await pin(here, 2)
        assert await commit_all(here) == []
        assert not (await make(here, 3)).moved
        assert await shown(here) == second

    async def test_that_comes_while_a_generation_is_on_its_way_keeps_readers_where_they_are(
        self, tmp_path: Path, clock: FakeClock
    ) -> None:
        """The pin is read in the transaction that gives the number: it is either after the move or before it."""
        store = MeddledStore()
        async with world(tmp_path, store=store, clock=clock) as here:
            first = (await made(here, 1))[0]
            store.before_root = lambda: pin(here, 1)
            held = await make(here, 2)
            assert not held.moved
            assert await shown(here) == first
            assert (await standing(here)).held == 1

    async def test_that_is_taken_away_shows_the_newest_of_what_was_held_back(self, here: World) -> None:
        await made(here, 2)
        await pin(here, 1)
        await commit_all(here)
        held = [await make(here, number) for number in (3, 4)][-1]
        await pin(here, None)
        [new] = await commit_all(here)
        assert (new.moved, new.shows, new.generation) == (True, None, held.generation + 1)
        assert await shown(here) == new
        assert await content(here, new) == await content(here, held)
        assert (await standing(here)).held == 0

    async def test_that_is_taken_away_with_nothing_behind_it_publishes_nothing(self, here: World) -> None:
        first = (await made(here, 1))[0]
        await pin(here, 1)
        assert await commit_all(here) == []
        await pin(here, None)
        assert await commit_all(here) == []
        assert await shown(here) == first

    async def test_of_a_generation_that_nobody_knows_moves_nothing_and_says_so(self, here: World) -> None:
        first = (await made(here, 1))[0]
        await pin(here, 77)
        assert not (await make(here, 2)).moved
        assert "generation 77 is pinned, and the registry does not know it" in str(here.publisher.problem)
        assert await shown(here) == first

    async def test_is_counted(self, here: World, tmp_path: Path) -> None:
        await made(here, 2)
        metrics = Metrics()
        here.publisher = Publisher(here.registry, here.store, here.clock, metrics=metrics)
        here.pipeline = here._pipeline()

        def now() -> list[float | None]:
            names = ("pinned", "held_generations", "last_publish_seconds")
            return [metrics.registry.get_sample_value(f"catalog_indexer_{name}") for name in names]

        await commit_all(here)
        assert now() == [0, 0, 0]
        await pin(here, 1)
        await commit_all(here)
        assert now() == [1, 1, here.clock.now_ms() / 1000]
        await make(here, 3)
        assert now()[:2] == [1, 2]
        await pin(here, None)
        await commit_all(here)
        assert now()[:2] == [0, 0]


class TestAStoreThatLosesSomethingBehindAPin:
    async def rolled_back(self, here: World) -> Generation:
        await made(here, 3)
        await pin(here, 1)
        await commit_all(here)
        return await shown(here)

    @pytest.mark.parametrize("older", [1, 2, 3])
    async def test_its_pointer_to_an_older_copy_is_moved_on_to_the_pinned_tree(self, here: World, older: int) -> None:
        """Also from where it leads to that tree, but under a number that sidecars have left behind."""
        old = (await made(here, 3))[older - 1]
        await pin(here, 2)
        await commit_all(here)
        before = await shown(here)
        await memory_of(here).reset(Pointer(old.epoch, old.generation, old.digest))
        assert [(new.shows, new.moved) for new in await commit_all(here)] == [(2, True), (None, False)]
        again = await shown(here)
        assert (again.shows, again.generation, again.parent) == (2, before.generation + 2, old.digest)
        assert await content(here, again) == await content(here, before)

    async def test_everything_is_written_again_if_nothing_has_changed_since(self, here: World) -> None:
        second = (await made(here, 2))[-1]
        await pin(here, 2)
        await commit_all(here)
        before = await content(here, second)
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        [again] = await commit_all(here)
        assert (again.shows, again.generation) == (2, 3)
        assert await content(here, await shown(here)) == before

    @pytest.mark.parametrize("leader", ["the same leader", "the next leader"])
    async def test_everything_is_said_and_nothing_shown_if_the_registry_has_moved_on(
        self, here: World, leader: str
    ) -> None:
        await self.rolled_back(here)
        objects = dict(memory_of(here).objects)
        pointer = await here.store.pointer()
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        if leader == "the next leader":
            await here.lead()
        assert [new.moved for new in await commit_all(here)] in ([], [False])
        assert "generation 1 is pinned, and objects of its tree are lost" in str(here.publisher.problem)
        assert not (await make(here, 4)).moved
        assert await here.store.pointer() is None
        # Whoever restores the store has the pin kept from then on, without a new generation.
        memory_of(here).objects.update(objects)
        await memory_of(here).reset(pointer)
        await commit_all(here)
        assert here.publisher.problem is None
        assert await content(here, await shown(here)) == content_of(await self.first(here))

    async def first(self, here: World) -> Root:
        async with here.registry.read() as connection:
            found = await generations.find(connection, 1)
        assert found is not None
        return (await load(here.store, Pointer(found.epoch, found.generation, found.digest))).root

    async def test_everything_is_shown_without_the_pin(self, here: World) -> None:
        await self.rolled_back(here)
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        await commit_all(here)
        await pin(here, None)
        [new] = await commit_all(here)
        assert (new.moved, here.publisher.problem) == (True, None)
        await verify(here.store)

    @pytest.mark.parametrize("which", ["pinned", "shown"])
    async def test_a_root_of_which_the_other_one_is_there_is_written_again(self, here: World, which: str) -> None:
        again = await self.rolled_back(here)
        first = (await standing(here)).pinned
        assert first is not None
        lost = first.digest if which == "pinned" else again.digest
        data = memory_of(here).objects.pop(lost)
        await here.lead()
        await commit_all(here)
        assert memory_of(here).objects[lost] == data
        assert await shown(here) == again

    async def test_any_object_that_both_trees_have_is_written_again(self, here: World) -> None:
        again = await self.rolled_back(here)
        newest = (await standing(here)).last
        assert newest is not None
        both = await tree.references(here.store, again.digest) & await tree.references(here.store, newest.digest)
        assert len(both) > 3
        for digest in both:
            data = memory_of(here).objects.pop(digest)
            await here.lead()
            assert await here.publish() is None
            assert memory_of(here).objects[digest] == data
        assert await shown(here) == again


class TestSweepingBehindAPin:
    async def test_keeps_the_pinned_tree_and_the_newest_that_are_held_back(self, here: World, clock: FakeClock) -> None:
        await made(here, 5)
        await pin(here, 1)
        await commit_all(here)
        held = [await make(here, number) for number in range(6, 12)]
        for leader in ("the same", "another"):
            for _ in range(3):
                await here.publisher.sweep(here.epoch, 2)
                clock.advance(SWEEP_GRACE_MS / 1000)
            for generation in (await shown(here), *held[-2:]):
                _, damage = await tree.survey(here.store, [generation.digest])
                assert not damage, (leader, generation)
            await here.lead()
        assert memory_of(here).objects.keys().isdisjoint({held[0].digest, held[1].digest})
        await pin(here, None)
        await commit_all(here)
        assert await content(here, await shown(here)) == await content(here, held[-1])

    async def test_keeps_what_is_left_of_a_pinned_tree_that_is_damaged(self, here: World, clock: FakeClock) -> None:
        await made(here, 5)
        await pin(here, 1)
        await commit_all(here)
        pointer = await here.store.pointer()
        assert pointer is not None
        needed = await tree.references(here.store, pointer.digest)
        only = needed - await tree.references(here.store, (await make(here, 6)).digest)
        branch = next(iter((await load(here.store)).root.queries.values()))
        assert branch in only
        data = memory_of(here).objects.pop(branch)
        for _ in range(3):
            await here.publisher.sweep(here.epoch, 1)
            clock.advance(SWEEP_GRACE_MS / 1000)
        assert needed - set(memory_of(here).objects) == {branch}
        memory_of(here).objects[branch] = data

    async def test_never_forgets_the_pinned_row(self, here: World) -> None:
        await made(here, 3)
        await pin(here, 1)
        async with here.registry.plain() as connection:
            await generations.prune(connection, 1)
        assert [number for number in (1, 2, 3) if await self.is_known(here, number)] == [1, 3]

    async def is_known(self, here: World, number: int) -> bool:
        async with here.registry.read() as connection:
            return await generations.find(connection, number) is not None


class TestAFailure:
    @pytest.mark.parametrize("after", [False, True])
    async def test_of_any_call_of_the_store_is_made_up_for(self, tmp_path: Path, template: Path, after: bool) -> None:
        """A rollback, what is held back behind it, and its end, each of which fails at every call that they make."""
        n, finished = 0, False
        while not finished:
            n += 1
            scripts.copy(template, tmp_path / f"{n}")
            store = FlakyStore(MemoryStore())
            async with world(tmp_path / f"{n}", store=store) as here:
                first, _ = await made(here, 2)
                before = await content(here, first)
                await pin(here, 1)
                finished = await self.survives(here, store, n, after=after)
                assert await content(here, await shown(here)) == before
                await here.add("more", {"key": "B+1"})
                finished &= await self.survives(here, store, n, after=after)
                assert await content(here, await shown(here)) == before
                await pin(here, None)
                finished &= await self.survives(here, store, n, after=after)
                assert len((await here.index()).catalogs) == 2
        assert n > 8

    async def survives(self, here: World, store: FlakyStore, n: int, *, after: bool) -> bool:
        """Commits with a failure at the n-th call, then until nothing is left; whether nothing failed."""
        store.calls, store.fail_at, store.after = 0, n, after
        failed = False
        for _ in range(3):
            try:
                await here.pull()
                await here.publish()
            except StoreError:
                failed = True
        store.fail_at = None
        await commit_all(here)
        report = await check(here.store)
        assert report.problems == []
        return not failed


class MeddledStore(MemoryStore):
    """A store in which something happens while the root of a generation is written."""

    before_root: Callable[[], Awaitable[None]] | None = None

    async def put(self, objects: Iterable[Sealed]) -> None:
        objects = list(objects)
        await super().put(objects)
        if self.before_root is not None and len(objects) == 1:
            meddle, self.before_root = self.before_root, None
            await meddle()
