"""Publish, crash at each step, empty the store, stale leader, restart, in any order.

Against a model of plain Python sets: whatever a sidecar answers is the state of some published generation, whole, and
it never goes back. The registry is real SQL, the sidecar's disk copy a real file, the store a dict that can crash the
process that uses it, before or after every call.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Collection, Coroutine, Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indexer.publish import Publisher
from indexer.registry import Deposed, Registry, pulls
from indexer.registry.schema import generation, result
from sidecar.app import Sidecar
from sidecar.contract.objects import Sealed
from sidecar.contract.words import query_hash
from sidecar.errors import Fenced, NotPulledYet, StoreError, UnknownCatalog
from sidecar.lookup import catalog_contains
from sidecar.settings import Settings, SidecarSettings
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, Json, course, run, uuid_of
from tests.world import World, verify

T = TypeVar("T")
COURSES = ("edX+A", "edX+B", "MITx+C")
RUNS = tuple(f"course-v1:{key}+{n}" for key in COURSES for n in (1, 2))
PROBES = (*COURSES, *RUNS, "edX+Unheard")
FILTERS: tuple[Json, ...] = (
    {"content_type": "course"},
    {"content_type": "course", "org": "edX"},
    {"content_type": "courserun"},
    {"key": ["MITx+C"], "restricted_runs_allowed": {"course:MITx+C": [RUNS[4]]}},
)
TITLES = ("one", "two", "three")
Answers = dict[tuple[str, bool], frozenset[str] | None]


class Crash(Exception):
    """The process is gone at this point."""


class CrashingStore(MemoryStore):
    """A store whose user dies when `countdown` has run out: it goes down by one before every call and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.countdown: int | None = None
        self.down = False

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        return await self._step(super().get(digests))

    async def put(self, objects: Iterable[Sealed]) -> None:
        await self._step(super().put(objects))

    async def pointer(self) -> Pointer | None:
        return await self._step(super().pointer())

    async def move(self, pointer: Pointer) -> None:
        await self._step(super().move(pointer))

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        return await self._step(super().sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=grace_ms))

    async def _step(self, call: Coroutine[Any, Any, T]) -> T:
        if self.down:
            call.close()
            raise StoreError("down")
        if self._dies():
            call.close()
            raise Crash
        returned = await call
        if self._dies():
            raise Crash
        return returned

    def _dies(self) -> bool:
        if self.countdown is None:
            return False
        self.countdown -= 1
        return self.countdown < 0


class SidecarView:
    """The store as another process sees it: nothing that its owner suffers happens here."""

    def __init__(self, store: CrashingStore) -> None:
        self._store = store

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        self._check()
        return await MemoryStore.get(self._store, digests)

    async def put(self, objects: Iterable[Sealed]) -> None:
        raise AssertionError("a sidecar never writes to the store")

    async def pointer(self) -> Pointer | None:
        self._check()
        return await MemoryStore.pointer(self._store)

    async def move(self, pointer: Pointer) -> None:
        raise AssertionError("a sidecar never writes to the store")

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        self._check()
        return await MemoryStore.pointer(self._store)

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        raise AssertionError("a sidecar never writes to the store")

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if self._store.down:
            raise StoreError("down")


@dataclass(frozen=True)
class Found:
    """What the model says that a pull of one filter found."""

    plain: frozenset[str]
    shown: frozenset[str]


class Model:
    """The registry in plain sets: what was accepted, and which catalogs there are."""

    def __init__(self) -> None:
        self.catalogs: dict[str, Json] = {}
        self.found: dict[bytes, Found] = {}
        self.runs_of: dict[str, set[str]] = {key: set() for key in COURSES}
        self.restricted: dict[str, bool] = {}

    def accept(self, content_filter: Json, world: dict[str, dict[str, bool]]) -> None:
        """A pull over a world of course -> run -> restricted passes."""
        allowed = {r for runs in content_filter.get("restricted_runs_allowed", {}).values() for r in runs}
        courses = {
            key
            for key in world
            if content_filter.get("content_type", "course") == "course"
            and content_filter.get("org", key.partition("+")[0]) == key.partition("+")[0]
            and key in content_filter.get("key", [key])
        }
        members = set(courses)
        shown = set(courses)
        for key, runs in world.items():
            if content_filter.get("content_type") == "courserun":
                members |= {r for r, restricted in runs.items() if not restricted}
                shown |= members
                for r, restricted in runs.items():
                    if not restricted:
                        self.runs_of[key].add(r)
                        self.restricted[r] = False
            elif key in courses:
                for r, restricted in runs.items():
                    if not restricted or allowed:
                        self.runs_of[key].add(r)
                        self.restricted[r] = restricted
        self.found[query_hash(content_filter)] = Found(frozenset(members), frozenset(shown))

    def answers(self) -> Answers:
        """For every catalog and version of the API, all that it contains; None if it was never pulled."""
        return {
            (uuid, restricted): self._contained(content_filter, restricted)
            for uuid, content_filter in self.catalogs.items()
            for restricted in (False, True)
        }

    def _contained(self, content_filter: Json, restricted: bool) -> frozenset[str] | None:
        found = self.found.get(query_hash(content_filter))
        if found is None:
            return None
        allowed = {r for runs in content_filter.get("restricted_runs_allowed", {}).values() for r in runs}
        members = found.shown if restricted else found.plain
        contained = set(members)
        for key, runs in self.runs_of.items():
            if key in members:
                contained |= {r for r in runs if not self.restricted[r] or (restricted and r in allowed)}
            if runs & members:
                contained.add(key)
        return frozenset(contained)


class Machine(RuleBasedStateMachine):
    """One indexer after another, and one sidecar after another, over one registry and one store."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.path = Path(tempfile.mkdtemp(prefix="stateful-"))
        self.clock = FakeClock()
        self.source = FakeSource()
        self.content: dict[str, dict[str, bool]] = {}
        self.store = CrashingStore()
        self.model = Model()
        self.published: dict[Pointer, Answers] = {}
        self.highest: tuple[int, int] = (0, 0)
        self.stale: list[tuple[Publisher, int]] = []
        self.older: tuple[dict[bytes, bytes], Pointer] | None = None
        self.do(self._open())

    def do(self, work: Awaitable[T]) -> T:
        """Runs one step to its end."""

        async def run_it() -> T:
            return await work

        return self.loop.run_until_complete(run_it())

    async def _open(self) -> None:
        self.registry = Registry(f"sqlite+aiosqlite:///{self.path}/registry.db", self.clock)
        await self.registry.open()
        self.world = World(self.registry, self.store, self.source, self.clock)
        await self.world.lead()
        self._new_sidecar()

    def _new_sidecar(self) -> None:
        settings_ = Settings(sidecar=SidecarSettings(disk=str(self.path / "sidecar.db")))
        self.sidecar = Sidecar(settings_, SidecarView(self.store), self.clock)
        self.served: tuple[int, int] = (0, 0)

    @rule(title=st.sampled_from(TITLES), which=st.integers(0, len(FILTERS) - 1))
    def add_catalog(self, title: str, which: int) -> None:
        uuid = uuid_of(f"catalog {title}")
        if uuid not in self.model.catalogs:
            self.do(self.world.add(title, FILTERS[which]))
            self.model.catalogs[uuid] = FILTERS[which]

    @rule(title=st.sampled_from(TITLES))
    def remove_catalog(self, title: str) -> None:
        uuid = uuid_of(f"catalog {title}")
        if self.model.catalogs.pop(uuid, None) is not None:
            self.do(self.world.remove(uuid))

    @rule(key=st.sampled_from(COURSES), runs=st.dictionaries(st.integers(1, 2), st.booleans()))
    def change_content(self, key: str, runs: dict[int, bool]) -> None:
        self.content[key] = {f"course-v1:{key}+{n}": restricted for n, restricted in sorted(runs.items())}
        self._tell_source()

    @rule(key=st.sampled_from(COURSES))
    def delist(self, key: str) -> None:
        self.content.pop(key, None)
        self._tell_source()

    def _tell_source(self) -> None:
        self.source.courses = [
            course(key, *(run(r, restricted=restricted) for r, restricted in runs.items()), indexed=tuple(runs))
            for key, runs in sorted(self.content.items())
        ]

    @rule(dies_after=st.none() | st.integers(0, 12))
    def pull(self, dies_after: int | None) -> None:
        self._until_death(self._pull_all(), dies_after)

    async def _pull_all(self) -> None:
        async with self.registry.read() as connection:
            targets = await pulls.targets(connection)
        for target in targets:
            before = await self._task_of(target.hash)
            try:
                await self.world.pipeline.pull(target, "demand", self.world.epoch)
            finally:
                if await self._task_of(target.hash) != before:
                    content_filter = next(f for f in FILTERS if query_hash(f).hex() == target.hash)
                    self.model.accept(content_filter, self.content)

    async def _task_of(self, hash_: str) -> str | None:
        async with self.registry.read() as connection:
            task: str | None = await connection.scalar(sa.select(result.c.task).where(result.c.hash == hash_))
        return task

    @rule(dies_after=st.none() | st.integers(0, 14))
    def publish(self, dies_after: int | None) -> None:
        self._until_death(self._publish(self.world.publisher, self.world.epoch), dies_after)

    async def _publish(self, publisher: Publisher, epoch: int) -> None:
        answers = self.model.answers()
        before = await MemoryStore.pointer(self.store)
        try:
            await publisher.commit(epoch)
        finally:
            after = await MemoryStore.pointer(self.store)
            if after is not None and after != before:
                assert before is None or after[:2] > before[:2]
                self.published[after] = answers

    def _until_death(self, work: Awaitable[None], dies_after: int | None) -> None:
        self.store.countdown = dies_after
        try:
            self.do(work)
        except Crash:
            self.store.countdown = None
            self.restart_indexer()
        finally:
            self.store.countdown = None

    @rule()
    def restart_indexer(self) -> None:
        self.stale.append((self.world.publisher, self.world.epoch))
        self.do(self.world.lead())

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def stale_leader_wakes_up(self, data: st.DataObject) -> None:
        publisher, epoch = data.draw(st.sampled_from(self.stale))
        before = self.do(MemoryStore.pointer(self.store))
        with suppress(Deposed, Fenced):
            self.do(self._publish(publisher, epoch))
        assert self.do(MemoryStore.pointer(self.store)) == before

    @precondition(lambda self: self.stale)
    @rule()
    def stale_move_arrives_late(self) -> None:
        """A leader had named a generation and was paused before its very last step."""
        before = self.do(MemoryStore.pointer(self.store))
        for pointer in self.do(self._never_moved()):
            if before is None or pointer[:2] >= before[:2]:
                continue
            try:
                self.do(MemoryStore.move(self.store, pointer))
            except Fenced:
                continue
            raise AssertionError("a lower pointer was taken")
        assert self.do(MemoryStore.pointer(self.store)) == before

    async def _never_moved(self) -> list[Pointer]:
        async with self.registry.read() as connection:
            rows = await connection.execute(sa.select(generation).where(generation.c.moved.is_(False)))
            return [Pointer(r.epoch, r.generation, bytes(r.digest)) for r in rows]

    @rule()
    def empty_the_store(self) -> None:
        self.store.objects.clear()
        self.do(self.store.reset(None))

    @rule()
    def remember_the_store(self) -> None:
        pointer = self.do(MemoryStore.pointer(self.store))
        if pointer is not None:
            self.older = dict(self.store.objects), pointer

    @precondition(lambda self: self.older is not None)
    @rule()
    def fall_back_to_an_older_replica(self) -> None:
        assert self.older is not None
        objects, pointer = self.older
        self.store.objects = dict(objects)
        self.do(self.store.reset(pointer))

    @rule()
    def sweep(self) -> None:
        self.clock.advance(4000)
        self.do(self._publish(self.world.publisher, self.world.epoch))
        self.do(self.world.publisher.sweep(self.world.epoch, 2))

    @rule(down=st.booleans())
    def sidecar_looks(self, down: bool) -> None:
        self.store.down = down
        self.do(self.sidecar.follower.step())
        self.store.down = False

    @rule()
    def sidecar_copies_to_disk(self) -> None:
        served = self.sidecar.current.generation
        if served is not None:
            self.do(self.sidecar.copier.copy(served))

    @rule()
    def sidecar_restarts_with_the_store_down(self) -> None:
        copied = self.do(self.sidecar.disk.pointer())
        self.do(self._close_sidecar())
        self.store.down = True
        self._new_sidecar()
        self.do(self.sidecar.follower.start())
        self.store.down = False
        served = self.sidecar.current.generation
        assert (None if served is None else served.pointer) == copied

    async def _close_sidecar(self) -> None:
        await self.sidecar.tiers.close()
        await self.sidecar.disk.close()

    @invariant()
    def every_answer_is_that_of_a_published_generation(self) -> None:
        served = self.sidecar.current.generation
        if served is None:
            return
        assert served.pointer[:2] >= self.served
        self.served = served.pointer[:2]
        answers = self.published[served.pointer]
        assert {uuid for uuid, _ in answers} == served.index.catalogs.keys()
        for (uuid, restricted), contained in answers.items():
            for key in PROBES:
                try:
                    answer = catalog_contains(served.index, uuid, [key], restricted).value
                except NotPulledYet:
                    assert contained is None
                else:
                    assert contained is not None
                    assert answer is (key in contained)
        try:
            catalog_contains(served.index, uuid_of("no such catalog"), ["edX+A"], False)
        except UnknownCatalog:
            return
        raise AssertionError("an unknown catalog was answered")

    @invariant()
    def the_published_tree_is_whole(self) -> None:
        self.do(verify(self.store))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.do(self._heal())
        finally:
            self.do(self._close_sidecar())
            self.do(self.registry.close())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.path)

    async def _heal(self) -> None:
        """However it went, a leader that is left alone publishes the registry's state, and a sidecar gets there."""
        await self._pull_all()
        await self._publish(self.world.publisher, self.world.epoch)
        await self.sidecar.follower.step()
        served = self.sidecar.current.generation
        assert served is not None
        assert served.pointer == await MemoryStore.pointer(self.store)
        assert self.published[served.pointer] == self.model.answers()
        await verify(self.store)


TestStateful = Machine.TestCase
TestStateful.settings = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
