"""`serve`, for a moment: over a registry on a file and a store in memory, driven by what it publishes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from indexer.catalog_body import read_catalog
from indexer.metrics import Metrics
from indexer.publication import Publication
from indexer.publish import ForeignStore
from indexer.registry import Registry, catalogs, lead
from indexer.service import Role, serve
from indexer.wiring import Parts
from sidecar.clock import SystemClock
from sidecar.contract.index import Index
from sidecar.contract.objects import HEADER, ObjectType, Sealed
from sidecar.contract.words import PullState
from sidecar.errors import StoreError
from sidecar.settings import IndexerSettings, Settings
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, catalog_body, course, customer, run, uuid_of
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


class Running:
    """One `serve` under way."""

    def __init__(
        self, registry: Registry, store: MemoryStore, source: FakeSource, role: Role, metrics: Metrics
    ) -> None:
        self.registry = registry
        self.store = store
        self.source = source
        self.role = role
        self.metrics = metrics

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
    registry: Registry | None = None,
    clock: SystemClock | None = None,
    lease_s: float = 5.0,
) -> AsyncIterator[Running]:
    """A service that is ended in order afterwards; whatever it has published is whole."""
    clock, store, source = clock or SystemClock(), store or MemoryStore(), FakeSource()
    if registry is None:
        registry = Registry(f"sqlite+aiosqlite:///{path}/registry.db", clock)
        await registry.open()
    parts = Parts(Settings(indexer=IndexerSettings(lease_s=lease_s)), clock, registry, store, source)
    role, metrics = Role(), Metrics()
    task = asyncio.create_task(serve(parts, role, Publication(registry), metrics))
    try:
        yield Running(registry, store, source, role, metrics)
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LONG_S)
        await registry.close()
    assert task.cancelled()
    assert not role.leading
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
