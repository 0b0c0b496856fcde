"""Publishing: what is written and what is not, who may, and that whatever fails is made up for by the next commit."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from indexer import tree
from indexer.check import check
from indexer.ingest import ingest, mentioned
from indexer.publish import SWEEP_GRACE_MS, ForeignStore, Publisher, render_again
from indexer.registry import Deposed, Registry, RegistryError, generations, lead, pulls, schema
from indexer.registry.generations import Generation
from indexer.render import RENDERER
from sidecar.contract.objects import HEADER, ObjectType, Sealed
from sidecar.contract.records import Root
from sidecar.contract.words import query_hash
from sidecar.errors import Fenced, PointerDamaged, StoreError
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from sidecar.store.sqlite import SqliteStore
from tests.databases import databases
from tests.fakes import FakeClock, FakeSource, course, customer, program, run, uuid_of
from tests.indexer import scripts
from tests.world import World, verify, world

COURSES = {"content_type": "course"}
SHOWN = {**COURSES, "restricted_runs_allowed": {"course:A+1": ["x1"]}}
FORCED = {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1"]}


class FlakyStore:
    """Implements Store over another one; its n-th call fails, before the call has had its effect, or after it."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.calls = 0
        self.fail_at: int | None = None
        self.after = False

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        with self._call():
            return await self.inner.get(digests)

    async def put(self, objects: Iterable[Sealed]) -> None:
        with self._call():
            await self.inner.put(objects)

    async def pointer(self) -> Pointer | None:
        with self._call():
            return await self.inner.pointer()

    async def move(self, pointer: Pointer) -> None:
        with self._call():
            await self.inner.move(pointer)

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        with self._call():
            return await self.inner.changed(known, timeout_s)

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        with self._call():
            return await self.inner.sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=grace_ms)

    async def close(self) -> None:
        await self.inner.close()

    @contextmanager
    def _call(self) -> Iterator[None]:
        self.calls += 1
        fails = self.calls == self.fail_at
        if fails and not self.after:
            raise StoreError("out of reach")
        yield
        if fails:
            raise StoreError("the answer was lost")


class CountingStore(MemoryStore):
    """A store that counts by type what is written, and keeps whatever is written twice."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Counter[ObjectType] = Counter()
        self.again: list[bytes] = []

    async def put(self, objects: Iterable[Sealed]) -> None:
        objects = list(objects)
        for digest, data in objects:
            self.written[ObjectType(HEADER.unpack_from(data)[2])] += 1
            if digest in self.objects:
                self.again.append(digest)
        await super().put(objects)


def source_of(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


def memory_of(here: World) -> MemoryStore:
    assert isinstance(here.store, MemoryStore)
    return here.store


async def fill(here: World) -> None:
    """A little of everything: restricted runs, a forced course, a program, customers that the LMS knows or not."""
    source_of(here).courses = [
        course("A+1", run("a1"), run("x1", restricted=True), indexed=("x1",)),
        course("B+1", run("b1", active=False)),
    ]
    source_of(here).programs = [program("P", "A+1")]
    source_of(here).customers = [customer("Acme")]
    await here.add("all", {})
    await here.add("courses", COURSES)
    await here.add("shown", SHOWN, of="Other")
    await here.add("forced", FORCED)
    await here.add("nothing", ["no object"])


async def built(here: World) -> Generation:
    generation = await here.build()
    assert generation is not None
    return generation


async def known(registry: Registry) -> list[Generation]:
    async with registry.read() as connection:
        return await generations.latest(connection, 100)


async def root_of(here: World) -> Root:
    return (await here.index()).root


def content_of(root: Root) -> tuple[object, ...]:
    """What a root says, but for the names of this generation."""
    return (root.dictionary, root.content, root.queries, root.catalogs, root.customers, root.counts)


class TestACommit:
    async def test_of_an_empty_registry_publishes_an_empty_generation(self, here: World) -> None:
        generation = await here.publish()
        assert generation is not None
        index = await here.index()
        assert (index.root.epoch, index.root.generation, index.root.parent) == (here.epoch, 1, None)
        assert (len(index.dictionary), index.queries, index.catalogs) == (0, {}, {})

    async def test_publishes_root_pointer_and_note(self, here: World, clock: FakeClock) -> None:
        await fill(here)
        first = await built(here)
        assert await here.store.pointer() == Pointer(here.epoch, 1, first.digest)
        clock.advance(60)
        await here.remove(uuid_of("catalog all"))
        second = await here.publish()
        assert second is not None
        assert (second.generation, second.parent, second.published_at_ms) == (2, first.digest, clock.wall_ms)
        assert [(g.generation, g.digest, g.moved) for g in await known(here.registry)] == [
            (2, second.digest, True),
            (1, first.digest, True),
        ]
        root = await root_of(here)
        assert (root.clock, root.parent) == (second.clock, first.digest)

    async def test_that_finds_nothing_new_publishes_nothing(self, here: World) -> None:
        await fill(here)
        await built(here)
        objects = dict(memory_of(here).objects)
        assert await here.publish() is None
        assert memory_of(here).objects == objects

    async def test_by_a_new_process_that_finds_nothing_new_publishes_nothing(self, here: World) -> None:
        await fill(here)
        first = await built(here)
        await here.lead()
        assert await here.publish() is None
        assert await here.store.pointer() == Pointer(first.epoch, first.generation, first.digest)

    async def test_counts_what_it_has_written(self, tmp_path: Path) -> None:
        store = CountingStore()
        async with world(tmp_path, store=store) as here:
            await fill(here)
            generation = await built(here)
            assert generation.objects == sum(store.written.values()) == len(store.objects)
            assert generation.bytes == sum(map(len, store.objects.values()))
            assert store.again == []

    async def test_writes_no_object_twice_and_only_what_has_changed(self, tmp_path: Path) -> None:
        store = CountingStore()
        async with world(tmp_path, store=store) as here:
            await fill(here)
            await built(here)
            store.written.clear()
            assert await here.build() is not None
            assert set(store.written) <= {ObjectType.ROOT, ObjectType.BRANCH, ObjectType.FRESHNESS}
            assert store.written[ObjectType.BRANCH] <= store.written[ObjectType.FRESHNESS]
            store.written.clear()
            await here.add("new", COURSES)
            await here.publish()
            assert store.written == {ObjectType.ROOT: 1, ObjectType.BRANCH: 1, ObjectType.CATALOGS: 1}
            store.written.clear()
            source_of(here).courses[1] = course("B+1", run("b1", active=False), title="New")
            await here.pull()
            await here.publish()
            # B's own document, and the one that the forcing query shows instead; no set of content has changed.
            assert store.written[ObjectType.METADATA] == 2
            assert store.written[ObjectType.BITMAP] == store.written[ObjectType.SEGMENT] == 0
            assert store.again == []

    async def test_covers_the_clock_of_what_it_has_read(self, here: World) -> None:
        await here.add("a", COURSES)
        generation = await here.publish()
        async with here.registry.read() as connection:
            assert generation is not None
            assert generation.clock == await generations.clock(connection)


async def test_two_builds_from_empty_registries_are_equal(tmp_path: Path) -> None:
    roots = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        async with world(tmp_path / name) as here:
            await fill_with_uuids(here)
            await built(here)
            roots.append(await root_of(here))
    assert content_of(roots[0]) == content_of(roots[1])


async def fill_with_uuids(here: World) -> None:
    source_of(here).courses = [course("A+1", run("a1"), run("x1", restricted=True)), course("B+1", run("b1"))]
    source_of(here).customers = [customer("Acme")]
    for title, content_filter in (("courses", COURSES), ("shown", SHOWN), ("forced", FORCED)):
        await here.add(title, content_filter, catalog_query_uuid=uuid_of(title))


class TestALostStore:
    async def test_that_was_emptied_is_written_again_whole_under_a_higher_number(self, here: World) -> None:
        await fill(here)
        await built(here)
        before, objects = await root_of(here), set(memory_of(here).objects)
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        second = await here.publish()
        assert second is not None
        after = await root_of(here)
        assert (second.generation, after.parent) == (2, None)
        assert content_of(after) == content_of(before)
        assert len(memory_of(here).objects) == len(objects)

    async def test_that_was_emptied_or_fell_back_raises_an_alarm_each_time(self, here: World) -> None:
        here.publisher = Publisher(here.registry, here.store, here.clock, metrics=here.metrics)
        await fill(here)
        await built(here)
        first = await here.store.pointer()
        source_of(here).courses.append(course("Z+1", run("z1")))
        await built(here)
        published = 2
        for pointer in (None, first, None):
            await memory_of(here).reset(pointer)
            with capture_logs() as logs:
                assert await here.publish() is not None
                assert await here.publish() is None
            told = [
                (e["log_level"], e["shows"], e["published"]) for e in logs if "lost what was published" in e["event"]
            ]
            assert told == [("error", None if pointer is None else 1, published)]
            published += 1
        assert here.metrics.registry.get_sample_value("catalog_indexer_store_damage_total", {"kind": "pointer"}) == 3

    async def test_that_was_emptied_is_written_again_by_a_new_process(self, here: World) -> None:
        await fill(here)
        await built(here)
        before = await root_of(here)
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        await here.lead()
        second = await here.publish()
        assert second is not None
        assert second.generation == 2
        assert content_of(await root_of(here)) == content_of(before)

    async def test_that_shows_an_older_generation_is_brought_up_to_date(self, here: World) -> None:
        await fill(here)
        first = await built(here)
        old = await here.store.pointer(), dict(memory_of(here).objects)
        await here.add("more", {"key": "B+1"})
        await built(here)
        latest = await root_of(here)
        memory_of(here).objects = dict(old[1])
        await memory_of(here).reset(old[0])
        third = await here.publish()
        assert third is not None
        assert (third.generation, third.parent) == (3, first.digest)
        assert content_of(await root_of(here)) == content_of(latest)

    async def test_whose_pointer_leads_to_nothing_is_written_again(self, here: World) -> None:
        await fill(here)
        await built(here)
        memory_of(here).objects.clear()
        await here.lead()
        await here.publish()
        assert (await check(here.store)).problems == []

    async def test_one_shard_of_which_is_damaged_is_written_again(self, here: World) -> None:
        await fill(here)
        await built(here)
        shard = next(iter((await root_of(here)).queries.values()))
        memory_of(here).objects[shard] = b"ECAT, and not much else"
        await here.lead()
        await here.publish()
        assert (await check(here.store)).problems == []

    @pytest.mark.parametrize("kind", list(ObjectType))
    @pytest.mark.parametrize("lost", [True, False], ids=["lost", "flipped"])
    async def test_any_object_of_which_is_damaged_is_made_whole_by_a_new_process(
        self, here: World, kind: ObjectType, lost: bool
    ) -> None:
        await fill(here)
        await built(here)
        objects = memory_of(here).objects
        digest = next(d for d, data in sorted(objects.items()) if HEADER.unpack_from(data)[2] == kind)
        if lost:
            del objects[digest]
        else:
            objects[digest] = objects[digest][:-1] + bytes([objects[digest][-1] ^ 1])
        await here.lead()
        await here.publish()
        await verify(here.store)

    async def test_before_its_first_generation_is_filled_from_the_registry(self, here: World) -> None:
        await fill(here)
        await here.pull()
        memory_of(here).objects.clear()
        await here.publish()
        await verify(here.store)

    async def test_keeps_the_higher_number_of_a_foreign_pointer(self, here: World) -> None:
        await fill(here)
        await built(here)
        await memory_of(here).reset(Pointer(here.epoch, 40, bytes(32)))
        generation = await here.publish()
        assert generation is not None
        assert (generation.generation, generation.parent) == (41, bytes(32))


class TestTwoLeaders:
    async def test_the_deposed_one_is_refused_before_it_names_a_generation(self, tmp_path: Path, here: World) -> None:
        await fill(here)
        await built(here)
        await here.pull()
        assert await lead.take(here.registry, await lead.observe(here.registry), "other", 15.0) is not None
        with pytest.raises(Deposed):
            await here.publish()
        assert [g.generation for g in await known(here.registry)] == [1]

    async def test_the_deposed_one_is_refused_by_the_store_if_it_was_paused_in_between(self, here: World) -> None:
        """It has its number already; meanwhile the next leader has published under a higher epoch."""
        await here.add("a", COURSES)
        await built(here)
        await here.pull()
        mine = await here.store.pointer()
        assert mine is not None
        ahead = mine._replace(epoch=mine.epoch + 1, generation=mine.generation + 1)
        await memory_of(here).reset(ahead)
        with pytest.raises(Fenced):
            await here.publish()
        assert await here.store.pointer() == ahead
        assert [g.moved for g in await known(here.registry)] == [False, True]
        await here.lead()
        new = await here.publish()
        assert new is not None
        assert (new.epoch, new.generation) == (ahead.epoch + 1, 4)

    async def test_the_deposed_one_sweeps_nothing(self, here: World, clock: FakeClock) -> None:
        await fill(here)
        await built(here)
        pointer = await here.store.pointer()
        assert pointer is not None
        await memory_of(here).reset(pointer._replace(epoch=pointer.epoch + 1))
        objects = dict(memory_of(here).objects)
        with pytest.raises(Fenced):
            await here.publisher.sweep(here.epoch, 2)
        assert memory_of(here).objects == objects
        await memory_of(here).reset(pointer)


class TestAForeignStore:
    async def test_is_refused_by_an_empty_registry_and_left_alone(self, tmp_path: Path) -> None:
        store = MemoryStore()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        async with world(tmp_path / "one", store=store) as here:
            await fill(here)
            await built(here)
        objects, pointer = dict(store.objects), await store.pointer()
        async with world(tmp_path / "two", store=store) as other:
            await other.add("a", COURSES)
            with pytest.raises(ForeignStore, match=r"generation 1.*--adopt"):
                await other.publisher.check()
            with pytest.raises(ForeignStore):
                await other.publish()
            assert (store.objects, await store.pointer()) == (objects, pointer)

    async def test_is_published_over_if_told_to(self, tmp_path: Path) -> None:
        store = MemoryStore()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        async with world(tmp_path / "one", store=store) as here:
            await fill(here)
            await built(here)
            first = await here.store.pointer()
            await here.lead()
            epoch = here.epoch
        assert first is not None
        async with world(tmp_path / "two", store=store) as other:
            await other.add("a", COURSES)
            await other.lead(adopt=True)
            new = await other.publish()
            assert new is not None
            assert (new.generation, new.parent) == (2, first.digest)
            assert new.epoch > first.epoch
            assert epoch > first.epoch
            assert set((await other.index()).catalogs) == {uuid_of("catalog a")}
            await other.lead()
            assert await other.publish() is None

    async def test_is_one_that_has_a_root_only(self, here: World) -> None:
        await here.publisher.check()
        await here.publish()
        await here.publisher.check()


class TestAFailure:
    @pytest.mark.parametrize("after", [False, True])
    async def test_of_any_call_of_the_store_is_made_up_for_by_the_next_commit(
        self, tmp_path: Path, template: Path, after: bool
    ) -> None:
        """A first build, and then a change, both of which fail at every call that they make, one after the other."""
        n, finished = 0, False
        wanted = None
        while not finished:
            n += 1
            scripts.copy(template, tmp_path / f"{n}")
            store = FlakyStore(MemoryStore())
            async with world(tmp_path / f"{n}", store=store) as here:
                await fill_with_uuids(here)
                finished = await self.survives(here, store, n, after=after)
                source_of(here).courses[0] = course("A+1", run("a1"), run("a2"), title="New")
                await here.remove(uuid_of("catalog shown"))
                finished &= await self.survives(here, store, n, after=after)
                content = content_of(await root_of(here))
                wanted = wanted or content
                assert content == wanted, n
                assert (await known(here.registry))[0].moved
        assert n > 8

    async def survives(self, here: World, store: FlakyStore, n: int, *, after: bool) -> bool:
        """Builds with a failure at the n-th call, then commits until nothing is left; whether nothing failed."""
        store.calls, store.fail_at, store.after = 0, n, after
        failed = False
        for _ in range(2):
            try:
                await here.pull()
                await here.publish()
            except StoreError:
                failed = True
        store.fail_at = None
        await here.pull()
        await here.publish()
        await verify(store)
        assert await here.publish() is None
        return not failed

    async def test_of_any_transaction_is_made_up_for_by_the_next_commit(self, tmp_path: Path, template: Path) -> None:
        clock = FakeClock()
        n, failed = 0, True
        wanted = None
        while failed:
            n += 1
            url = await databases.url(scripts.copy(template, tmp_path / f"{n}"))
            registry = scripts.FlakyRegistry(url, clock)
            await registry.open()
            here = World(registry, MemoryStore(), FakeSource(), clock)
            await here.lead()
            await fill_with_uuids(here)
            await built(here)
            await here.add("more", {"key": "A+1"}, catalog_query_uuid=uuid_of("more"))
            await here.pull()
            failed = False
            registry.count, registry.failing = 0, frozenset({n})
            try:
                await here.publish()
            except RegistryError:
                failed = True
            registry.failing = frozenset()
            await here.publish()
            assert await here.publish() is None
            await verify(here.store)
            wanted = wanted or content_of(await root_of(here))
            assert content_of(await root_of(here)) == wanted
            pointer = await here.store.pointer()
            assert pointer is not None
            latest = (await known(registry))[0]
            assert (latest.digest, latest.moved) == (pointer.digest, True)
            await registry.close()
        assert n >= 5


class TestSweeping:
    async def several(self, here: World, count: int) -> list[Generation]:
        made = []
        for n in range(count):
            source_of(here).courses = [course("A+1", run(f"r{n}"), title=f"{n}"), course("B+1")]
            made.append(await built(here))
        return made

    async def test_keeps_the_trees_of_the_last_generations_whole(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        made = await self.several(here, 5)
        assert await here.publisher.sweep(here.epoch, 2) == 0
        clock.advance(SWEEP_GRACE_MS / 1000)
        assert await here.publisher.sweep(here.epoch, 2) > 0
        for generation in made[-2:]:
            pointer = Pointer(generation.epoch, generation.generation, generation.digest)
            assert (await check(here.store, pointer)).problems == []
        needed = set[bytes]()
        for generation in made[-2:]:
            needed |= await tree.references(here.store, generation.digest)
        assert set(memory_of(here).objects) == needed

    async def test_leaves_what_was_needed_less_than_an_hour_ago(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        await self.several(here, 4)
        objects = set(memory_of(here).objects)
        await here.publisher.sweep(here.epoch, 2)
        clock.advance(SWEEP_GRACE_MS / 1000 - 1)
        assert await here.publisher.sweep(here.epoch, 2) == 0
        assert set(memory_of(here).objects) == objects

    async def test_by_a_process_that_has_not_published_yet_keeps_what_is_published(
        self, here: World, clock: FakeClock
    ) -> None:
        await here.add("a", COURSES)
        await self.several(here, 3)
        await here.lead()
        await here.publisher.sweep(here.epoch, 2)
        clock.advance(SWEEP_GRACE_MS / 1000)
        await here.publisher.sweep(here.epoch, 2)
        await verify(here.store)

    async def test_writes_again_what_was_swept_and_is_needed_again(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        first = (await self.several(here, 5))[0]
        old = await tree.references(here.store, first.digest)
        await here.publisher.sweep(here.epoch, 2)
        clock.advance(SWEEP_GRACE_MS / 1000)
        await here.publisher.sweep(here.epoch, 2)
        assert not old <= set(memory_of(here).objects)
        source_of(here).courses = [course("A+1", run("r0"), title="0"), course("B+1")]
        await built(here)
        await verify(here.store)

    async def test_writes_again_what_was_uploaded_for_a_pull_that_was_given_up(
        self, tmp_path: Path, clock: FakeClock
    ) -> None:
        """While a sweep is under way, another pull finds the document again and is published: it must stay."""
        store = InterruptedStore()
        async with world(tmp_path, store=store, clock=clock) as here:
            await here.add("a", COURSES)
            await built(here)
            source_of(here).courses = [course("A+1", title="New")]
            pulled = await here.source.pull(COURSES)
            async with here.registry.read() as connection:
                facts = await pulls.known(connection, mentioned(pulled))
            await here.publisher.upload(ingest(pulled, facts, clock.now_ms()).rendered)
            await here.publisher.sweep(here.epoch, 2)
            clock.advance(SWEEP_GRACE_MS / 1000)
            store.meanwhile = here.build
            await here.publisher.sweep(here.epoch, 2)
            assert len((await here.index()).dictionary) == 1

    async def test_goes_on_after_the_store_was_emptied(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        await self.several(here, 3)
        memory_of(here).objects.clear()
        await memory_of(here).reset(None)
        await here.publish()
        assert await here.publisher.sweep(here.epoch, 3) == 0
        await verify(here.store)

    async def test_goes_on_if_an_old_generation_is_damaged(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        made = await self.several(here, 3)
        memory_of(here).objects[made[0].digest] = b"bits have rotten"
        await here.publisher.sweep(here.epoch, 3)
        clock.advance(SWEEP_GRACE_MS / 1000)
        await here.publisher.sweep(here.epoch, 3)
        pointer = Pointer(made[1].epoch, made[1].generation, made[1].digest)
        assert (await check(here.store, pointer)).problems == []

    async def test_counts_only_generations_that_were_seen(self, tmp_path: Path, clock: FakeClock) -> None:
        """Numbers that were given to roots which never became visible do not push visible ones out."""
        store = FlakyStore(MemoryStore())
        async with world(tmp_path, store=store, clock=clock) as here:
            await here.add("a", COURSES)
            made = await self.several(here, 3)
            await here.pull()
            movable, store.inner = store.inner, Unmovable(store.inner)
            for _ in range(6):
                with pytest.raises(StoreError):
                    await here.publish()
            store.inner = movable
            for _ in range(2):
                await here.publisher.sweep(here.epoch, 3)
                clock.advance(SWEEP_GRACE_MS / 1000)
            await here.publisher.sweep(here.epoch, 3)
            for generation in made:
                pointer = Pointer(generation.epoch, generation.generation, generation.digest)
                assert (await check(here.store, pointer)).problems == []


class InterruptedStore(MemoryStore):
    """A store in which something happens after it was told what is live, and before it deletes the rest."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return await super().sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=grace_ms)


class Unmovable(MemoryStore):
    """The same store, while its pointer cannot be written."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__()
        self.objects = inner.objects
        self.unreferenced = inner.unreferenced
        self._real = inner

    async def pointer(self) -> Pointer | None:
        return await self._real.pointer()

    async def move(self, pointer: Pointer) -> None:
        raise StoreError("read only")


class TestRenderingAgain:
    async def test_by_the_same_renderer_changes_nothing(self, here: World) -> None:
        await fill(here)
        await built(here)
        assert await render_again(here.registry, here.epoch) == 0
        assert await here.publish() is None

    async def test_by_another_one_takes_over_its_digests_and_keeps_the_times(self, here: World) -> None:
        await fill(here)
        await built(here)
        before = await root_of(here)
        async with here.registry.write() as tx:
            await tx.connection.execute(
                sa.update(schema.content).where(schema.content.c.metadata.is_not(None)).values(metadata=bytes(32))
            )
            await pulls.set_renderer(tx, "another build")
        documents = before.counts["documents"]
        assert await render_again(here.registry, here.epoch) == documents
        async with here.registry.read() as connection:
            assert await pulls.rendered_by(connection) == RENDERER
        await here.lead()
        assert await here.publish() is not None
        after = await root_of(here)
        assert content_of(after) == content_of(before)

    async def test_by_a_deposed_leader_is_refused(self, here: World) -> None:
        async with here.registry.write() as tx:
            await pulls.set_renderer(tx, "another build")
        with pytest.raises(Deposed):
            await render_again(here.registry, here.epoch - 1)


async def test_a_store_in_a_file_ends_up_with_the_same_tree(tmp_path: Path, clock: FakeClock) -> None:
    roots = []
    for name, store in (("memory", MemoryStore()), ("file", SqliteStore(tmp_path / "store.db", writable=True))):
        (tmp_path / name).mkdir()
        async with world(tmp_path / name, store=store, clock=FakeClock()) as here:
            await fill_with_uuids(here)
            await built(here)
            root = await root_of(here)
            roots.append(content_of(root))
            await here.publisher.sweep(here.epoch, 2)
    assert roots[0] == roots[1]


async def test_a_query_that_is_pulled_for_the_first_time_is_served_by_the_next_generation(here: World) -> None:
    source_of(here).courses = [course("A+1", run("a1"))]
    await here.add("a", COURSES)
    await here.publish()
    assert (await here.index()).queries[query_hash(COURSES)].v1 is None
    await here.pull()
    await here.publish()
    assert (await here.index()).queries[query_hash(COURSES)].v1 is not None


async def test_uploads_wait_for_no_commit_and_are_not_written_again_by_it(tmp_path: Path) -> None:
    store = CountingStore()
    async with world(tmp_path, store=store) as here:
        source_of(here).courses = [course("A+1"), course("B+1")]
        await here.add("a", COURSES)
        await here.pull()
        assert store.written == {ObjectType.METADATA: 2}
        await here.publish()
        assert store.written[ObjectType.METADATA] == 2


async def test_a_publisher_needs_no_lead_to_look(here: World) -> None:
    await Publisher(here.registry, here.store, here.clock).check()


class DamagedPointer(MemoryStore):
    """A store whose pointer cannot be read until it is written again."""

    def __init__(self) -> None:
        super().__init__()
        self.is_damaged = False

    async def pointer(self) -> Pointer | None:
        if self.is_damaged:
            raise PointerDamaged("something else")
        return await super().pointer()

    async def move(self, pointer: Pointer) -> None:
        self.is_damaged = False
        await super().move(pointer)


async def test_a_damaged_pointer_is_written_again_under_a_higher_number(tmp_path: Path) -> None:
    store = DamagedPointer()
    async with world(tmp_path, store=store) as here:
        await here.add("a", COURSES)
        await here.build()
        before = await store.pointer()
        store.is_damaged = True
        await here.publish()
        after = await store.pointer()
        assert before is not None
        assert after is not None
        assert after[:2] > before[:2]


async def test_a_damaged_pointer_is_not_written_over_by_a_registry_that_never_published(tmp_path: Path) -> None:
    store = DamagedPointer()
    store.is_damaged = True
    async with world(tmp_path, store=MemoryStore()) as here:
        with pytest.raises(ForeignStore, match="a damaged pointer"):
            await Publisher(here.registry, store, here.clock).check()
        await Publisher(here.registry, store, here.clock, adopt=True).check()


class TestAWallClockThatJumps:
    async def unneeded(self, here: World, name: str = "a") -> set[bytes]:
        """All objects, of which no generation needs some, after a sweep has noted those."""
        await here.add(name, {"content_type": "course", "title": name})
        for n in range(4):
            source_of(here).courses = [course("A+1", title=f"{name} {n}")]
            await built(here)
        before = set(memory_of(here).objects)
        assert await here.publisher.sweep(here.epoch, 2) == 0
        return before

    async def test_forwards_shortens_nobodys_grace(self, here: World, clock: FakeClock) -> None:
        before = await self.unneeded(here)
        clock.wall_ms += 86_400_000
        assert await here.publisher.sweep(here.epoch, 2) == 0
        assert set(memory_of(here).objects) == before
        clock.advance(3600)
        assert await here.publisher.sweep(here.epoch, 2) > 0

    async def test_backwards_keeps_nothing_for_longer(self, here: World, clock: FakeClock) -> None:
        await self.unneeded(here)
        clock.wall_ms -= 365 * 86_400_000
        clock.advance(3600)
        assert await here.publisher.sweep(here.epoch, 2) > 0

    async def test_between_two_leaders_keeps_nothing_for_ever_and_deletes_nothing_that_is_needed(
        self, here: World, clock: FakeClock
    ) -> None:
        for name, jump_ms in (("a", 365 * 86_400_000), ("b", -365 * 86_400_000)):
            await self.unneeded(here, name)
            clock.wall_ms += jump_ms
            await here.lead()
            await here.publish()
            await here.publisher.sweep(here.epoch, 2)
            await verify(here.store)
            clock.advance(3600)
            await here.publisher.sweep(here.epoch, 2)
            await verify(here.store)
            assert memory_of(here).unreferenced == {}
