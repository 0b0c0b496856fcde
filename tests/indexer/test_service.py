"""`serve`, for a moment: over a registry on a file and a store in memory, driven by what it publishes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from indexer import history
from indexer.catalog_body import read_catalog
from indexer.metrics import Metrics
from indexer.publication import Publication
from indexer.publish import ForeignStore
from indexer.registry import Registry, catalogs, lead
from indexer.service import FOLLOW_S, Role, serve
from indexer.web import make_app
from indexer.wiring import Parts
from sidecar.clock import SystemClock
from sidecar.contract.index import Index
from sidecar.contract.objects import HEADER, ObjectType, Sealed
from sidecar.contract.words import PullState
from sidecar.errors import StoreError
from sidecar.settings import CompareSettings, IndexerSettings, Settings
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, Json, SlowSource, catalog_body, course, customer, run, uuid_of
from tests.indexer import scripts
from tests.world import load, verify, world

COURSES = {"content_type": "course"}
LONG_S = 30.0


class SlowClock(SystemClock):
    """So far behind the scheduler's clock that whatever is put off is due at once."""

    def now_ms(self) -> int:
        return super().now_ms() - 3_600_000


class FullStore(MemoryStore):
    """A store that has no room for documents, as often as it is told."""

    refusals = 0

    async def put(self, objects: Iterable[Sealed]) -> None:
        objects = list(objects)
        if self.refusals and any(HEADER.unpack_from(data)[2] == ObjectType.METADATA for _, data in objects):
            self.refusals -= 1
            raise StoreError("full")
        await super().put(objects)


class Wake(asyncio.Event):
    """A leader's wake that says when the leader waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.waited_for.set()
        try:
            return await super().wait()
        finally:
            self.waited_for.clear()


class Running:
    """One `serve` under way, and a client of its API."""

    def __init__(self, parts: Parts, store: MemoryStore, source: FakeSource, role: Role) -> None:
        self.registry = parts.registry
        self.store = store
        self.source = source
        self.role = role
        self.metrics = Metrics()
        publication = Publication(parts.registry)
        self.task = asyncio.create_task(serve(parts, self.role, publication, self.metrics))
        self.stopped = False
        self.client = TestClient(TestServer(make_app(parts, self.role, publication, self.metrics)))

    async def stop(self) -> None:
        """Ends it in order, as a signal would."""
        self.stopped = True
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=LONG_S)
        assert self.task.cancelled()
        assert not self.role.leading

    async def leads(self) -> None:
        await self.until(lambda _: self.role.leading)

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any, Mapping[str, str]]:
        async with self.client.request(method, f"/api/v1/{path}", json=body) as response:
            return response.status, await response.json() if await response.read() else None, response.headers

    async def ended(self, task: str) -> Json:
        """The pull of a task id, once it has ended."""
        async with asyncio.timeout(LONG_S):
            while True:
                status, pull, _ = await self.ask("GET", f"pulls/{task}/")
                assert status == 200
                assert isinstance(pull, dict)
                if pull["finished"] is not None:
                    return pull
                await asyncio.sleep(0.01)

    async def add(self, title: str, content_filter: object) -> None:
        async with self.registry.write() as tx:
            await catalogs.create(tx, read_catalog(catalog_body(title, content_filter)), "test")

    async def until(self, condition: Callable[[Index], bool]) -> Index:
        """The first generation, the present one included, of which this is true."""
        known: Pointer | None = None
        async with asyncio.timeout(LONG_S):
            while True:
                pointer = await self.store.changed(known, LONG_S)
                if pointer is not None and pointer != known:
                    index = await load(self.store, pointer)
                    if condition(index):
                        return index
                known = pointer


@asynccontextmanager
async def serving(
    path: Path,
    *,
    store: MemoryStore | None = None,
    source: FakeSource | None = None,
    registry: Registry | None = None,
    clock: SystemClock | None = None,
    role: Role | None = None,
    lease_s: float = 5.0,
    compare: CompareSettings | None = None,
) -> AsyncIterator[Running]:
    """A service that is ended in order afterwards; whatever it has published is whole."""
    clock, store, source = clock or SystemClock(), store or MemoryStore(), source or FakeSource()
    if registry is None:
        registry = Registry(f"sqlite+aiosqlite:///{path}/registry.db", clock)
        await registry.open()
    settings = Settings(indexer=IndexerSettings(lease_s=lease_s), compare=compare or CompareSettings())
    parts = Parts(settings, clock, registry, store, source)
    it = Running(parts, store, source, role or Role())
    try:
        async with it.client:
            yield it
        assert it.stopped or not it.task.done(), it.task
    finally:
        await it.stop()
        await registry.close()
    await verify(store)


def served(title: str) -> Callable[[Index], bool]:
    def condition(index: Index) -> bool:
        catalog = index.catalogs.get(uuid_of(f"catalog {title}"))
        return catalog is not None and catalog.serving is not None

    return condition


async def test_what_is_due_is_pulled_and_published_and_a_new_catalog_is_followed(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        it.source.courses = [course("A+1", run("a1")), course("B+1")]
        it.source.customers = [customer("Acme")]
        await it.add("a", COURSES)
        index = await it.until(served("a"))
        assert index.dictionary.keys == ["A+1", "B+1", "a1"]
        assert it.role.leading
        await it.add("b", {"key": "B+1"})
        index = await it.until(lambda i: served("b")(i) and uuid_of("Acme") in i.customers)
        assert it.role.epoch == index.root.epoch
        async with it.registry.write() as tx:
            await catalogs.remove(tx, uuid_of("catalog a"), "test")
        await it.until(lambda i: set(i.catalogs) == {uuid_of("catalog b")})
        seen = await lead.observe(it.registry)
        assert seen.holder is not None


async def test_a_service_that_ends_leaves_the_lead(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        await it.until(lambda index: True)
    again = Registry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", FakeClock())
    assert (await lead.observe(again)).holder is None
    await again.close()


async def test_a_pull_that_fails_is_published_as_failing(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        await it.add("a", {"q": "only Elasticsearch knows"})
        await it.until(lambda index: [q.state for q in index.queries.values()] == [PullState.UNPULLABLE])


async def test_the_lead_is_lost_and_taken_again(tmp_path: Path) -> None:
    async with serving(tmp_path, lease_s=0.9) as it:
        await it.add("a", COURSES)
        first = await it.until(served("a"))
        other = await lead.take(it.registry, await lead.observe(it.registry), "other", 0.9)
        while other is None:  # A sign of life came in between.
            other = await lead.take(it.registry, await lead.observe(it.registry), "other", 0.9)
        await it.add("b", {"key": "B+1"})
        second = await it.until(served("b"))
        assert second.root.epoch > other > first.root.epoch


async def test_a_store_that_refuses_an_upload_is_tried_again_though_nothing_else_changes(tmp_path: Path) -> None:
    """The pull is given up, and the registry's clock stands still: nobody but the job itself asks for another."""
    store = FullStore()
    async with serving(tmp_path, store=store, clock=SlowClock()) as it:
        it.source.customers = [customer("Acme")]
        await it.add("a", COURSES)
        await it.until(lambda i: served("a")(i) and uuid_of("Acme") in i.customers)
        it.source.courses = [course("A+1")]
        store.refusals = 1
        await it.add("b", {"key": "A+1"})
        index = await it.until(served("b"))
        assert index.dictionary.keys == ["A+1"]
        assert store.refusals == 0


class SilentStore(MemoryStore):
    """A store that is out of reach while it is told to be; it says when it was asked so often."""

    def __init__(self) -> None:
        super().__init__()
        self.reachable, self.asked, self.enough = True, 0, asyncio.Event()

    async def pointer(self) -> Pointer | None:
        if not self.reachable:
            self.asked += 1
            if self.asked == 4:
                self.enough.set()
            raise StoreError("out of reach")
        return await super().pointer()


async def test_a_store_that_stays_out_of_reach_is_one_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.service.RETRY_S", 0.01)
    store = SilentStore()
    with capture_logs() as logs:
        async with serving(tmp_path, store=store) as it:
            await it.until(lambda index: True)
            store.reachable = False
            async with asyncio.timeout(LONG_S):
                await store.enough.wait()
            store.reachable = True
            await it.add("a", COURSES)
            await it.until(served("a"))
            assert it.role.problem is None
    assert [e["reason"] for e in logs if e["event"] == "not published yet"] == ["out of reach"]


@pytest.mark.parametrize("failing", [{1}, {4}, {6}])
async def test_a_registry_that_is_out_of_reach_for_a_moment_ends_nothing(tmp_path: Path, failing: set[int]) -> None:
    """Whichever of the first transactions fails: the look at the store's owner, the lead, the leader's first steps."""
    registry = scripts.FlakyRegistry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", SystemClock())
    await registry.open()
    async with registry.write() as tx:
        await catalogs.create(tx, read_catalog(catalog_body("a", COURSES)), "test")
    registry.count, registry.failing = 0, frozenset(failing)
    async with serving(tmp_path, registry=registry) as it:
        await it.until(served("a"))


async def test_a_foreign_store_ends_the_service_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    store = MemoryStore()
    async with world(tmp_path / "other", store=store) as other:
        await other.publish()
        clock = SystemClock()
        registry = Registry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", clock)
        await registry.open()
        parts = Parts(Settings(), clock, registry, store, FakeSource())
        with pytest.raises(ForeignStore):
            await serve(parts, Role(), Publication(parts.registry), Metrics())
        await registry.close()


async def test_a_store_that_becomes_foreign_ends_the_service_with_that_error(tmp_path: Path) -> None:
    """Before anything was published here, somebody else publishes into the store."""
    (tmp_path / "other").mkdir()
    async with world(tmp_path / "other") as other:
        await other.publish()
        foreign = await other.store.pointer()
        store = BecomesForeign(foreign)
        clock = SystemClock()
        registry = Registry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", clock)
        await registry.open()
        parts = Parts(Settings(), clock, registry, store, FakeSource())
        async with asyncio.timeout(LONG_S):
            with pytest.raises(ForeignStore):
                await serve(parts, Role(), Publication(parts.registry), Metrics())
        assert (await lead.observe(registry)).holder is None
        await registry.close()


class BecomesForeign(MemoryStore):
    """A store that is empty at the first two looks, and then shows a pointer that nobody here has moved."""

    def __init__(self, foreign: Pointer | None) -> None:
        super().__init__()
        self._foreign = foreign
        self._looks = 0

    async def pointer(self) -> Pointer | None:
        self._looks += 1
        return None if self._looks <= 2 else self._foreign


async def test_any_indexer_takes_writes_and_the_one_that_leads_publishes_and_pulls(tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(tmp_path, store=store) as leader:
        await leader.leads()
        async with serving(tmp_path, store=store) as follower:
            leader.source.courses = [course("A+1", run("a1"))]
            status, body, headers = await follower.ask("POST", "enterprise-catalogs/", catalog_body("a", COURSES))
            assert (status, body["uuid"]) == (201, uuid_of("catalog a"))
            index = await load(store)
            assert index.root.generation >= int(headers["X-Catalog-Generation"]) > 0
            assert index.root.clock >= int(headers["X-Catalog-Clock"])
            assert set(index.catalogs) == {body["uuid"]}
            await leader.until(served("a"))
            status, asked, _ = await follower.ask("POST", f"enterprise-catalogs/{body['uuid']}/refresh_metadata")
            assert status == 200
            began_s = asyncio.get_running_loop().time()
            pull = await follower.ended(asked["async_task_id"])
            assert asyncio.get_running_loop().time() - began_s < 10 * FOLLOW_S
            assert (pull["state"], pull["reason"], pull["members"], pull["changed"]) == ("passed", "demand", 1, 0)
            assert follower.source.searches == 0
            assert not follower.role.leading


async def test_a_follower_takes_over_and_answers_go_on(tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(tmp_path, store=store, lease_s=0.9) as leader:
        await leader.leads()
        async with serving(tmp_path, store=store, lease_s=0.9) as follower:
            _, _, before = await follower.ask("POST", "enterprise-catalogs/", catalog_body("a", COURSES))
            await leader.stop()
            status, _, after = await follower.ask("POST", "enterprise-catalogs/", catalog_body("b", COURSES))
            assert status == 201
            assert int(after["X-Catalog-Generation"]) > int(before["X-Catalog-Generation"])
            assert follower.role.leading
            assert follower.role.epoch > 1
            await follower.until(lambda i: served("a")(i) and served("b")(i))
            # The one that ended in its other half still takes writes.
            status, _, _ = await leader.ask("DELETE", f"enterprise-catalogs/{uuid_of('catalog a')}/")
            assert status == 204
            await follower.until(lambda i: set(i.catalogs) == {uuid_of("catalog b")})


async def test_a_pull_that_was_asked_for_outlives_its_leader(tmp_path: Path) -> None:
    """The next leader pulls under the same task id."""
    store, source = MemoryStore(), SlowSource()
    async with serving(tmp_path, store=store, source=source, lease_s=0.9) as leader:
        await leader.leads()
        async with serving(tmp_path, store=store, lease_s=0.9) as follower:
            follower.source.courses = [course("A+1", run("a1"))]
            _, made, _ = await follower.ask("POST", "enterprise-catalogs/", catalog_body("a", COURSES))
            path = f"enterprise-catalogs/{made['uuid']}/refresh_metadata"
            await source.begun.wait()
            _, asked, _ = await follower.ask("POST", path)
            assert (await follower.ask("POST", path))[1] == asked
            _, pull, _ = await leader.ask("GET", f"pulls/{asked['async_task_id']}/")
            assert pull["state"] == "running"
            await leader.stop()
            pull = await follower.ended(asked["async_task_id"])
            assert (pull["state"], pull["members"]) == ("passed", 1)
            await follower.until(served("a"))


@pytest.mark.parametrize("ticks", range(7))
async def test_a_stop_in_the_moment_of_a_write_ends_the_service(tmp_path: Path, template: Path, ticks: int) -> None:
    """However little the one comes after the other."""
    wake = Wake()
    async with serving(scripts.copy(template, tmp_path), role=Role(wake=wake)) as it:
        await it.leads()
        await wake.waited_for.wait()
        stopping = asyncio.create_task(it.stop())
        for _ in range(ticks):
            await asyncio.sleep(0)
        wake.set()
        await stopping


async def test_many_writes_at_once_do_not_cost_the_lead(tmp_path: Path) -> None:
    """The leader's signs of life take their turn among them, and the other indexer has no reason to take over."""
    store = MemoryStore()
    async with serving(tmp_path, store=store) as leader:
        await leader.leads()
        epoch = leader.role.epoch
        async with serving(tmp_path, store=store) as follower:
            bodies = [catalog_body(f"{n}", {"key": f"{n % 10}"}) for n in range(150)]
            answers = await asyncio.gather(
                *(
                    it.ask("POST", "enterprise-catalogs/", b)
                    for b, it in zip(bodies, [leader, follower] * 75, strict=True)
                )
            )
            assert {status for status, _, _ in answers} == {201}
            assert (leader.role.leading, leader.role.epoch, follower.role.leading) == (True, epoch, False)
            await leader.until(lambda i: len(i.catalogs) == 150)


class TestWhatReadersSee:
    async def test_is_rolled_back_held_and_released_while_everything_serves(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as it:
            for title in ("a", "b"):
                await it.add(title, COURSES)
                await it.until(served(title))
            before = await it.until(lambda _: True)
            oldest = (await history.look(it.registry, it.store, 100)).entries[-1].generation.generation
            await history.roll_back(it.registry, it.store, oldest, "test", "why not")
            index = await it.until(lambda index: index.root.generation > before.root.generation)
            assert not index.catalogs.keys() >= before.catalogs.keys()
            status, _, headers = await it.ask("POST", "enterprise-catalogs/", catalog_body("c", COURSES))
            assert (status, headers["X-Catalog-Published"], headers["X-Catalog-Pinned"]) == (
                201,
                "pending",
                f"{oldest}",
            )
            assert uuid_of("catalog c") not in (await it.until(lambda _: True)).catalogs
            await history.unpin(it.registry, it.store, "test", "why not")
            index = await it.until(served("c"))
            assert set(index.catalogs) == {uuid_of(f"catalog {title}") for title in "abc"}

    async def test_is_looked_after(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the leader, without anybody's asking: what is deleted is there again, and the pointer has not moved."""
        monkeypatch.setattr("indexer.patrol.ROUND_S", 0.05)
        async with serving(tmp_path) as it:
            await it.add("a", COURSES)
            await it.until(served("a"))
            pointer = await it.store.pointer()
            assert pointer is not None
            data = it.store.objects.pop(pointer.digest)

            async def healed() -> bool:
                return it.metrics.registry.get_sample_value("catalog_indexer_objects_healed_total") == 1

            await self.until(healed)
            assert it.store.objects[pointer.digest] == data
            assert await it.store.pointer() == pointer

    async def test_that_is_lost_behind_a_pin_is_a_problem_of_health(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as it:

            async def problem() -> str:
                async with it.client.get("/health") as response:
                    return (await response.json())["problem"] or ""

            async def lost() -> bool:
                return "generation 1 is pinned, and objects of its tree are lost" in await problem()

            async def mended() -> bool:
                return not await problem()

            for title in ("a", "b"):
                await it.add(title, COURSES)
                await it.until(served(title))
            await history.roll_back(it.registry, it.store, 1, "test", "why not")
            number = (await it.until(lambda index: len(index.catalogs) < 2)).root.generation
            it.store.objects.clear()
            await it.store.reset(None)
            await self.until(lost)
            await history.unpin(it.registry, it.store, "test", "it is lost")
            assert (await it.until(served("b"))).root.generation > number
            await self.until(mended)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(LONG_S):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.01)


class TestComparing:
    """What is asked of another service, beside everything that a leader does."""

    @asynccontextmanager
    async def other(self, status: int) -> AsyncIterator[str]:
        """A service that answers everything with one status."""

        async def answer(_: web.Request) -> web.Response:
            return web.json_response({"detail": "no"}, status=status)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")

    def compared(self, it: Running) -> dict[str, float]:
        metric = next(m for m in it.metrics.registry.collect() if m.name == "catalog_indexer_compared")
        return {s.labels["outcome"]: s.value for s in metric.samples if s.name.endswith("_total")}

    async def counted(self, it: Running, outcome: str) -> None:
        await self.within(lambda: self.compared(it)[outcome] > 0)

    async def within(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG_S):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.01)

    async def test_goes_on_while_a_service_leads_and_ends_with_it(self, tmp_path: Path) -> None:
        async with self.other(404) as theirs, self.other(400) as ours:
            settings = CompareSettings(url=theirs, base=ours, per_second=1000.0, every_s=1)
            async with serving(tmp_path, compare=settings) as it:
                await it.add("a", COURSES)
                await self.counted(it, "unexplained")
                await it.until(served("a"))
                await it.stop()
                assert not [t for t in asyncio.all_tasks() if "Comparing.run" in repr(t)]

    async def test_that_nobody_answers_disturbs_no_pull(self, tmp_path: Path) -> None:
        async with self.other(401) as theirs:
            settings = CompareSettings(url=theirs, base=theirs, per_second=1000.0, every_s=1)
            async with serving(tmp_path, compare=settings) as it:
                await self.counted(it, "not compared")
                await it.add("a", COURSES)
                await it.until(served("a"))
                assert self.compared(it)["unexplained"] == 0

    async def test_that_meets_a_defect_ends_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise KeyError("a defect")

        monkeypatch.setattr("indexer.compare.judge", broken)
        async with self.other(401) as theirs:
            settings = CompareSettings(url=theirs, base=theirs, per_second=1000.0, every_s=1)
            with capture_logs() as logs:
                async with serving(tmp_path, compare=settings) as it:
                    ended = "answers are no longer compared"
                    await self.within(lambda: any(line["event"] == ended for line in logs))
                    await it.add("a", COURSES)
                    await it.until(served("a"))
                    assert it.role.leading
