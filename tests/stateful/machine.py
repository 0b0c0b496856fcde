"""Two indexers and two sidecars over one registry and one store, and all that may happen to them, in any order.

Pulls that pass, are refused, approved or rejected; rollbacks, pins and their ends; deaths at any step; leaders that
come and go, and wake up late; a store that is emptied, falls back to an older copy, loses objects or has bits turned;
clocks that jump; disk copies that are lost. Against a model of plain Python sets: whatever a sidecar answers is the
state of some announced generation, whole; it never goes back unless it was told to; what is pinned is what is
published; and left alone, all of them get to the registry's state.

The registry is real SQL, a sidecar's disk copy a real file; the store is a dict. What can happen is the same whatever
has happened before, since ids are drawn by lot: a rule that depended on them would be another one in the next run.
"""

import asyncio
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from indexer import history
from indexer.check import check
from indexer.history import NothingToDo, TreeLost
from indexer.patrol import Patrol
from indexer.publish import Publisher
from indexer.registry import Deposed, Registry, catalogs, pulls, quarantine
from indexer.registry.decisions import Action
from indexer.registry.pulls import Target
from indexer.registry.quarantine import State
from indexer.registry.schema import generation, result
from sidecar.contract.words import PullState
from sidecar.copier import Copier
from sidecar.current import Current
from sidecar.disk import Disk
from sidecar.errors import Fenced, NotPulledYet, UnknownCatalog
from sidecar.follow import Follower
from sidecar.health import report
from sidecar.lookup import catalog_contains
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from sidecar.tiers import Tiers
from tests.fakes import FakeClock, FakeSource, course, run, uuid_of
from tests.stateful.model import COURSES, FILTERS, HASHES, PROBES, RUNS, TITLES, Answers, Content, Model
from tests.stateful.stores import Crash, CrashingStore, SidecarView
from tests.world import World, verify

T = TypeVar("T")
INDEXERS = st.integers(0, 1)
SIDECARS = st.integers(0, 1)
WHICH = st.integers(0, len(FILTERS) - 1)
THEN_WORK = st.booleans()
DEATHS = st.none() | st.integers(0, 14)
PICKS = st.integers(0, 1 << 16)
DAY_S = 86_400
# A folder in memory, where there is one: what is synced is not what is tried here.
MEMORY = Path("/dev/shm")
# What has come to pass in all sequences of this process, by name.
HAPPENED: Counter[str] = Counter()
KINDS = (
    "sequences",
    "answers",
    "generations",
    "pulls passed",
    "pulls refused",
    "approved results passed",
    "indexers killed",
    "stale leaders",
    "sidecars restarted",
    "stores emptied",
    "older replicas",
    "objects evicted",
    "bits turned",
    "rollback",
    "pin",
    "unpin",
    "generations pinned again",
    "damaged trees mended",
    "clocks jumped",
)


def _work_in_the_loop(connection: Any, _record: object) -> None:
    """Has SQLite work in the loop's own thread: to hand a statement over to another one takes longer than it does,
    and nothing here waits for anybody.
    """

    async def execute(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return function(*arguments, **named)

    connection.driver_connection._execute = execute


class Bench:
    """What all sequences of a process share, as most of their time would go into making it: a loop, and two registries.

    Their one file is put back to how it was when it had just been migrated.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="stateful-", dir=MEMORY if MEMORY.exists() else None))
        url = f"sqlite+aiosqlite:///{self.folder}/registry.db?check_same_thread=false"
        self.registries = [Registry(url, FakeClock()) for _ in range(2)]
        for registry in self.registries:
            sa.event.listen(registry._engine.sync_engine, "connect", _work_in_the_loop)
        self.loop.run_until_complete(self.registries[0].open())
        self._empty = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(self.folder / "registry.db")) as migrated:
            migrated.backup(self._empty)

    def reset(self) -> None:
        """Empties the registry, for a sequence that begins."""
        with closing(sqlite3.connect(self.folder / "registry.db")) as used:
            self._empty.backup(used)

    def close(self) -> None:
        """Ends what the sequences have shared."""
        self._empty.close()
        for registry in self.registries:
            self.loop.run_until_complete(registry.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)


bench = cache(Bench)


def _everything() -> Content:
    return {key: dict.fromkeys((r for r in RUNS if f":{key}+" in r), False) for key in COURSES}


class View:
    """One sidecar without its HTTP side: tiers, a disk copy, what it serves. `least` is what it must not go below."""

    def __init__(self, store: CrashingStore, path: Path) -> None:
        self.clock = FakeClock()
        self.path = path
        self._store = SidecarView(store)
        self.least: tuple[int, int] = (0, 0)
        self._begin()

    def _begin(self) -> None:
        metrics = Metrics()
        self.current = Current()
        self.disk = Disk(self.path, metrics)
        self.tiers = Tiers(Memory(1 << 20), self.disk, self._store, metrics)
        self.follower = Follower(self._store, self.tiers, self.disk, self.current, self.clock, metrics, poll_s=1.0)
        self.copier = Copier(self.current, self.tiers, self.disk, self.clock)

    async def close(self) -> None:
        await self.tiers.close()
        await self.disk.close()

    async def start(self) -> None:
        """Begins anew, as another process."""
        self._begin()
        await self.follower.start()


class Machine(RuleBasedStateMachine):
    """What may happen, and what must hold whatever has."""

    @initialize(firsts=st.lists(st.tuples(st.sampled_from(TITLES), WHICH), max_size=3), has_content=st.booleans())
    def begin(self, firsts: list[tuple[str, int]], has_content: bool) -> None:
        """Most begin with a system that has some catalogs and has published them."""
        bench().reset()
        self.path = Path(tempfile.mkdtemp(dir=bench().folder))
        self.source = FakeSource()
        self.content: Content = {}
        self.store = CrashingStore()
        self.model = Model()
        self.published: dict[Pointer, Answers] = {}
        self.answers_of: dict[int, Answers] = {}
        self.pin: int | None = None
        self.stale: list[tuple[Publisher, int]] = []
        self.older: tuple[dict[bytes, bytes], Pointer] | None = None
        self.damaged = False
        self.leader, self.fresh = 0, True
        self.do(self._open())
        HAPPENED["sequences"] += 1
        if has_content:
            self.content = _everything()
        for title, which in firsts:
            self._add(title, which, 0)
        if firsts:
            self.work()

    def do(self, work: Awaitable[T]) -> T:
        """Runs one step to its end."""

        async def run_it() -> T:
            return await work

        return bench().loop.run_until_complete(run_it())

    async def _open(self) -> None:
        self.worlds = []
        for registry in bench().registries:
            clock = FakeClock()
            registry.time = clock
            self.worlds.append(World(registry, self.store, self.source, clock))
        await self.worlds[0].lead()
        self.sidecars = [View(self.store, self.path / f"sidecar{n}.db") for n in range(2)]

    @rule()
    def work(self) -> None:
        """What everybody does all day: the leader pulls and publishes, sidecars follow."""
        self.do(self._pull_all(self.leader))
        self.do(self._publish(self.worlds[self.leader].publisher, self.worlds[self.leader].epoch))
        for sidecar in self.sidecars:
            self.do(sidecar.follower.step())

    def _work_if(self, then_work: bool) -> None:
        if then_work:
            self.work()

    # What people do.

    @rule(title=st.sampled_from(TITLES), which=WHICH, by=INDEXERS, then_work=THEN_WORK)
    def add_catalog(self, title: str, which: int, by: int, then_work: bool) -> None:
        self._add(title, which, by)
        self._work_if(then_work)

    def _add(self, title: str, which: int, by: int) -> None:
        if uuid_of(f"catalog {title}") not in self.model.catalogs:
            self.do(self.worlds[by].add(title, FILTERS[which]))
            self.model.add(title, which)

    @rule(title=st.sampled_from(TITLES), by=INDEXERS)
    def remove_catalog(self, title: str, by: int) -> None:
        uuid = uuid_of(f"catalog {title}")
        if self.model.catalogs.pop(uuid, None) is not None:
            self.do(self.worlds[by].remove(uuid))

    @rule(title=st.sampled_from(TITLES), which=WHICH, by=INDEXERS, then_work=THEN_WORK)
    def change_filter(self, title: str, which: int, by: int, then_work: bool) -> None:
        uuid = uuid_of(f"catalog {title}")
        if uuid in self.model.catalogs and self.model.may_change(uuid, which):
            self.do(self._change_filter(uuid, which, by))
            self.model.change(uuid, which)
        self._work_if(then_work)

    async def _change_filter(self, uuid: str, which: int, by: int) -> None:
        async with self.worlds[by].registry.write() as tx:
            await catalogs.change(tx, uuid, {"content_filter": FILTERS[which]}, "test")

    @rule(pick=PICKS, by=INDEXERS, state=st.sampled_from((State.APPROVED, State.REJECTED)), then_work=THEN_WORK)
    def decide(self, pick: int, by: int, state: State, then_work: bool) -> None:
        if not self.model.held:
            return
        which = sorted(self.model.held)[pick % len(self.model.held)]
        self.do(self._decide(which, by, state))
        self.model.approved.pop(which, None)
        if state is State.APPROVED:
            self.model.approved[which] = self.model.held[which]
        self._work_if(then_work)

    async def _decide(self, which: int, by: int, state: State) -> None:
        async with self.worlds[by].registry.plain() as connection:
            refused = await quarantine.refused(connection, HASHES[which])
            assert refused is not None
            await quarantine.decide(connection, HASHES[which], state)

    @rule(
        what=st.sampled_from((Action.ROLLBACK, Action.PIN, Action.UNPIN)), pick=PICKS, by=INDEXERS, then_work=THEN_WORK
    )
    def wish(self, what: Action, pick: int, by: int, then_work: bool) -> None:
        with suppress(NothingToDo, TreeLost):
            self.pin = self.do(self._wish(what, pick, self.worlds[by]))
            HAPPENED[what] += 1
        self._work_if(then_work)

    async def _wish(self, what: Action, pick: int, world: World) -> int | None:
        """The generation that is pinned then."""
        if what is Action.PIN:
            return (await history.pin(world.registry, self.store, world.clock, "ada", "it is right")).generation
        if what is Action.UNPIN:
            await history.unpin(world.registry, self.store, "ada", "it is over")
            return None
        if not self.answers_of:
            raise NothingToDo("nothing was ever published")
        number = sorted(self.answers_of)[pick % len(self.answers_of)]
        return (await history.roll_back(world.registry, self.store, number, "ada", "it is wrong")).generation

    # What becomes of content.

    @rule(key=st.sampled_from(COURSES), runs=st.dictionaries(st.integers(1, 2), st.booleans()), then_work=THEN_WORK)
    def change_content(self, key: str, runs: dict[int, bool], then_work: bool) -> None:
        self.content[key] = {f"course-v1:{key}+{n}": restricted for n, restricted in sorted(runs.items())}
        self._work_if(then_work)

    @rule(key=st.sampled_from(COURSES), then_work=THEN_WORK)
    def delist(self, key: str, then_work: bool) -> None:
        self.content.pop(key, None)
        self._work_if(then_work)

    @rule(then_work=THEN_WORK)
    def discovery_has_everything(self, then_work: bool) -> None:
        self.content = _everything()
        self._work_if(then_work)

    @rule(then_work=THEN_WORK)
    def discovery_finds_nothing(self, then_work: bool) -> None:
        self.content = {}
        self._work_if(then_work)

    @rule(dies_after=DEATHS, who=INDEXERS)
    def pull(self, dies_after: int | None, who: int) -> None:
        self._until_death(who, self._pull_all(who), dies_after)

    async def _pull_all(self, who: int) -> None:
        self.source.courses = [
            course(key, *(run(r, restricted=restricted) for r, restricted in runs.items()), indexed=tuple(runs))
            for key, runs in sorted(self.content.items())
        ]
        async with self.worlds[who].registry.read() as connection:
            targets = await pulls.targets(connection)
        assert {target.hash for target in targets} == {HASHES[which] for which in self.model.wanted()}
        for target in targets:
            await self._pull(self.worlds[who], target, leads=who == self.leader)

    async def _pull(self, world: World, target: Target, *, leads: bool) -> None:
        which, before = HASHES.index(target.hash), await self._last_task(target.hash)
        try:
            await world.pipeline.pull(target, "demand", world.epoch)
            assert leads
        except Deposed:
            assert not leads
        finally:
            after = await self._last_task(target.hash)
            if after != before:
                assert leads
                assert after is not None
                is_refused = after[1] is PullState.QUARANTINED
                assert is_refused is self.model.refuses(which, self.content)
                HAPPENED["pulls refused" if is_refused else "pulls passed"] += 1
                HAPPENED["approved results passed"] += not is_refused and which in self.model.approved
                (self.model.refuse if is_refused else self.model.accept)(which, self.content)

    async def _last_task(self, hash_: str) -> tuple[str, PullState] | None:
        async with self.worlds[0].registry.read() as connection:
            found = sa.select(result.c.task, result.c.state).where(result.c.hash == hash_)
            row = (await connection.execute(found)).one_or_none()
        return None if row is None or row.task is None else (row.task, PullState(row.state))

    # What becomes of indexers.

    @rule(dies_after=DEATHS, who=INDEXERS)
    def publish(self, dies_after: int | None, who: int) -> None:
        self._until_death(who, self._publish(self.worlds[who].publisher, self.worlds[who].epoch), dies_after)

    async def _publish(self, publisher: Publisher, epoch: int) -> None:
        answers = self.model.answers()
        before = await MemoryStore.pointer(self.store)
        try:
            await publisher.commit(epoch)
        except (Deposed, Fenced):
            assert epoch != self.worlds[self.leader].epoch
        else:
            if self.fresh and epoch == self.worlds[self.leader].epoch:
                # Whoever has just begun to lead looks at all that lies below the pointer.
                self.fresh = False
                await self._see_it_mended()
        finally:
            after = await MemoryStore.pointer(self.store)
            if after is not None and after != before:
                assert epoch == self.worlds[self.leader].epoch
                assert before is None or after[:2] > before[:2]
                self.published[after] = answers if self.pin is None else self.answers_of[self.pin]
                self.answers_of[after.generation] = self.published[after]
                HAPPENED["generations pinned again"] += self.pin is not None
                HAPPENED["generations"] += 1

    async def _see_it_mended(self) -> None:
        """Only of a tree that the registry does not describe any more something may be lost for good."""
        problems = (await check(self.store)).problems
        assert problems == [] or self.pin is not None
        HAPPENED["damaged trees mended"] += self.damaged and not problems
        self.damaged = bool(problems)

    @rule(who=INDEXERS)
    def patrol(self, who: int) -> None:
        self.do(self._patrol(self.worlds[who], leads=who == self.leader))

    async def _patrol(self, world: World, *, leads: bool) -> None:
        await Patrol(world.publisher, self.store, world.clock, world.metrics, lambda: None).round()
        await self._publish(world.publisher, world.epoch)
        if leads:
            await self._see_it_mended()

    def _until_death(self, who: int, work: Awaitable[None], dies_after: int | None) -> None:
        self.store.countdown = dies_after
        try:
            self.do(work)
        except Crash:
            self.store.countdown = None
            HAPPENED["indexers killed"] += 1
            if who == self.leader:
                self.take_over(who)
        finally:
            self.store.countdown = None

    @rule(who=INDEXERS)
    def take_over(self, who: int) -> None:
        """The other one follows, or the same one comes back as a new process; whoever led before is stale."""
        before = self.worlds[self.leader]
        self.stale.append((before.publisher, before.epoch))
        self.do(self.worlds[who].lead())
        self.leader, self.fresh = who, True

    @rule(pick=PICKS)
    def stale_leader_wakes_up(self, pick: int) -> None:
        if not self.stale:
            return
        HAPPENED["stale leaders"] += 1
        publisher, epoch = self.stale[pick % len(self.stale)]
        before = self.do(MemoryStore.pointer(self.store))
        self.do(self._publish(publisher, epoch))
        assert self.do(MemoryStore.pointer(self.store)) == before

    @rule()
    def stale_move_arrives_late(self) -> None:
        """A leader had named a generation and was paused before its very last step."""
        before = self.do(MemoryStore.pointer(self.store))
        for pointer in self.do(self._never_moved()):
            if before is None or pointer[:2] >= before[:2]:
                continue
            with suppress(Fenced):
                self.do(MemoryStore.move(self.store, pointer))
                raise AssertionError("a lower pointer was taken")
        assert self.do(MemoryStore.pointer(self.store)) == before

    async def _never_moved(self) -> list[Pointer]:
        async with self.worlds[0].registry.read() as connection:
            rows = await connection.execute(sa.select(generation).where(generation.c.moved.is_(False)))
            return [Pointer(r.epoch, r.generation, bytes(r.digest)) for r in rows]

    @rule(who=INDEXERS, seconds=st.sampled_from((-30 * DAY_S, -DAY_S, -7200, 7200, DAY_S, 30 * DAY_S)))
    def an_indexers_clock_jumps(self, who: int, seconds: int) -> None:
        HAPPENED["clocks jumped"] += 1
        self.worlds[who].clock.wall_ms += seconds * 1000

    @rule(hours=st.sampled_from((1, 20, 40)))
    def time_passes(self, hours: int) -> None:
        for clock in (*(world.clock for world in self.worlds), *(sidecar.clock for sidecar in self.sidecars)):
            clock.advance(hours * 3600)

    # What becomes of the store.

    @rule(what=st.sampled_from(("emptied", "older")))
    def the_store_loses_what_it_had(self, what: str) -> None:
        """It is emptied, or falls back to how it was when it was saved last, which is now if it never was."""
        pointer = self.do(MemoryStore.pointer(self.store))
        if what == "older" and self.older is None:
            if pointer is not None and not self.damaged:
                self.older = dict(self.store.objects), pointer
            return
        HAPPENED["stores emptied" if what == "emptied" else "older replicas"] += 1
        objects, pointer = self.older if what == "older" and self.older is not None else ({}, None)
        self.store.objects = dict(objects)
        self.do(self.store.reset(pointer))
        self.damaged = False

    @rule(picks=st.lists(PICKS, min_size=1, max_size=3))
    def evict(self, picks: list[int]) -> None:
        if not self.store.objects:
            return
        for digest in {self._picked(pick) for pick in picks}:
            del self.store.objects[digest]
            HAPPENED["objects evicted"] += 1
        self.damaged = True

    @rule(pick=PICKS, at=PICKS)
    def turn_a_bit(self, pick: int, at: int) -> None:
        if not self.store.objects:
            return
        HAPPENED["bits turned"] += 1
        digest = self._picked(pick)
        spoilt = bytearray(self.store.objects[digest])
        spoilt[at // 8 % len(spoilt)] ^= 1 << at % 8
        self.store.objects[digest] = bytes(spoilt)
        self.damaged = True

    def _picked(self, pick: int) -> bytes:
        """One of the objects, in the order in which they were written."""
        return list(self.store.objects)[pick % len(self.store.objects)]

    @rule(who=INDEXERS)
    def sweep(self, who: int) -> None:
        self.worlds[who].clock.advance(4000)
        if who == self.leader:
            self.do(self._publish(self.worlds[who].publisher, self.worlds[who].epoch))
        with suppress(Fenced):
            self.do(self.worlds[who].publisher.sweep(self.worlds[who].epoch, 2))

    # What becomes of sidecars.

    @rule(which=SIDECARS, down=st.booleans())
    def sidecar_looks(self, which: int, down: bool) -> None:
        self.store.down = down
        self.do(self.sidecars[which].follower.step())
        self.store.down = False

    @rule(which=SIDECARS)
    def sidecar_copies_to_disk(self, which: int) -> None:
        served = self.sidecars[which].current.generation
        if served is not None:
            self.do(self.sidecars[which].copier.copy(served))

    @rule(which=SIDECARS, keeps_disk=st.booleans())
    def sidecar_restarts_with_the_store_down(self, which: int, keeps_disk: bool) -> None:
        """Without its disk copy it has nothing, and cannot tell what it once served."""
        HAPPENED["sidecars restarted"] += 1
        sidecar = self.sidecars[which]
        copied = self.do(sidecar.disk.pointer())
        self.do(sidecar.close())
        if not keeps_disk:
            copied = None
            for file in self.path.glob(f"{sidecar.path.name}*"):
                file.unlink()
        self.store.down = True
        self.do(sidecar.start())
        self.store.down = False
        served = sidecar.current.generation
        assert (None if served is None else served.pointer) == copied
        sidecar.least = (0, 0) if copied is None else copied[:2]

    @rule(which=SIDECARS, seconds=st.sampled_from((-30 * DAY_S, -7200, 7200, 30 * DAY_S)))
    def a_sidecars_clock_jumps(self, which: int, seconds: int) -> None:
        self.sidecars[which].clock.wall_ms += seconds * 1000

    # What must hold.

    @invariant()
    def every_answer_is_that_of_a_published_generation(self) -> None:
        for sidecar in self.sidecars:
            served = sidecar.current.generation
            health = self._health(sidecar)
            assert (health["status"] == "unavailable") is (served is None)
            if served is None:
                continue
            assert served.pointer[:2] >= sidecar.least
            sidecar.least = served.pointer[:2]
            assert health["oldest_content_age_s"] is None or health["oldest_content_age_s"] >= 0
            answers = self.published[served.pointer]
            HAPPENED["answers"] += len(answers) * len(PROBES)
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
            with suppress(UnknownCatalog):
                catalog_contains(served.index, uuid_of("no such catalog"), ["edX+A"], False)
                raise AssertionError("an unknown catalog was answered")

    def _health(self, sidecar: View) -> dict[str, Any]:
        return report(
            sidecar.current.generation,
            sidecar.follower.status,
            sidecar.disk.status,
            memory=(0, 0, 0),
            freshness_s=DAY_S,
            now_ms=sidecar.clock.now_ms(),
        ).document()

    @invariant()
    def the_published_tree_is_whole(self) -> None:
        if not self.damaged:
            self.do(verify(self.store))

    def teardown(self) -> None:
        if not hasattr(self, "worlds"):
            return
        try:
            self.do(self._come_to_rest())
        finally:
            for sidecar in self.sidecars:
                self.do(sidecar.close())
            shutil.rmtree(self.path)

    async def _come_to_rest(self) -> None:
        """However it went: a leader that is left alone publishes the registry's state, and every sidecar gets there."""
        if self.pin is not None:
            self.pin = await self._wish(Action.UNPIN, 0, self.worlds[self.leader])
        await self.worlds[self.leader].lead()
        self.fresh = True
        await self._pull_all(self.leader)
        await self._publish(self.worlds[self.leader].publisher, self.worlds[self.leader].epoch)
        await verify(self.store)
        for sidecar in self.sidecars:
            await sidecar.follower.step()
            served = sidecar.current.generation
            assert served is not None
            assert served.pointer == await MemoryStore.pointer(self.store)
            assert self.published[served.pointer] == self.model.answers()
