"""A whole indexer for a test: registry on a file; store, source and clock passed in; every tree verified at the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from indexer.catalog_body import read_catalog
from indexer.check import check
from indexer.metrics import Metrics
from indexer.pipeline import Pipeline
from indexer.publish import Publisher, render_again
from indexer.registry import Registry, catalogs, lead, pulls
from indexer.registry.catalogs import RegisteredCatalog
from indexer.registry.generations import Generation
from indexer.source import Source
from indexer.wiring import limits_of
from sidecar.contract.index import Index, index_references
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Record, open_record
from sidecar.settings import Settings
from sidecar.store import Pointer, Store
from sidecar.store.memory import MemoryStore
from tests.databases import databases
from tests.fakes import FakeClock, FakeSource, catalog_body


class World:
    """One indexer that leads, driven step by step."""

    def __init__(self, registry: Registry, store: Store, source: Source, clock: FakeClock) -> None:
        self.registry = registry
        self.store = store
        self.source = source
        self.clock = clock
        self.epoch = 0
        self.metrics = Metrics()
        self.publisher = Publisher(registry, store, clock)
        self.pipeline = self._pipeline()

    async def lead(self, *, adopt: bool = False) -> int:
        """Takes the lead with a new publisher, as a new process would."""
        self.publisher = Publisher(self.registry, self.store, self.clock, adopt=adopt)
        self.pipeline = self._pipeline()
        pointer = await self.store.pointer()
        seen = await lead.observe(self.registry)
        epoch = await lead.take(self.registry, seen, "test", 15.0, 0 if pointer is None else pointer.epoch)
        assert epoch is not None
        self.epoch = epoch
        await render_again(self.registry, epoch)
        return epoch

    async def add(self, title: str, content_filter: object, **fields: Any) -> RegisteredCatalog:
        """Adds a catalog."""
        async with self.registry.write() as tx:
            row, _ = await catalogs.create(tx, read_catalog(catalog_body(title, content_filter, **fields)), "test")
        return row

    async def remove(self, uuid: str) -> None:
        """Removes a catalog."""
        async with self.registry.write() as tx:
            await catalogs.remove(tx, uuid, "test")

    async def pull(self, *titles: str) -> list[bool]:
        """Pulls every filter that catalogs want; whether each passed."""
        async with self.registry.read() as connection:
            targets = await pulls.targets(connection)
        return [await self.pipeline.pull(t, "demand", self.epoch) for t in targets if not titles or t.title in titles]

    async def publish(self) -> Generation | None:
        """Publishes what there is to publish."""
        return await self.publisher.commit(self.epoch)

    async def build(self) -> Generation | None:
        """Pulls everything and publishes once."""
        await self.pull()
        await self.pipeline.details(self.epoch, self.clock.now_ms())
        return await self.publish()

    async def index(self, pointer: Pointer | None = None) -> Index:
        """The published index, as a sidecar would load it."""
        return await load(self.store, pointer)

    def _pipeline(self) -> Pipeline:
        return Pipeline(
            self.registry, self.source, self.publisher, self.clock, limits_of(Settings()), self.metrics, lambda: None
        )


@asynccontextmanager
async def world(
    path: Path, source: Source | None = None, store: Store | None = None, clock: FakeClock | None = None
) -> AsyncIterator[World]:
    """A world in a folder. Afterwards the published tree, if there is one, must be whole."""
    clock = clock or FakeClock()
    store = store or MemoryStore()
    registry = Registry(await databases.url(path), clock)
    try:
        await registry.open()
        here = World(registry, store, source or FakeSource(), clock)
        await here.lead()
        yield here
        await verify(store)
    finally:
        await registry.close()
        await store.close()


async def verify(store: Store) -> None:
    """Fails unless the published tree is whole; a store in which nothing was published is."""
    if await store.pointer() is not None:
        report = await check(store)
        assert report.problems == []


async def load(store: Store, pointer: Pointer | None = None) -> Index:
    """The index that a pointer names, the store's own by default, every object verified."""
    pointer = pointer or await store.pointer()
    assert pointer is not None
    records: dict[bytes, Record] = {}
    layer = [(ObjectType.ROOT, pointer.digest)]
    while layer:
        objects = await store.get([digest for _, digest in layer])
        opened = {digest: open_record(digest, objects[digest], kind) for kind, digest in layer}
        records |= opened
        layer = [r for record in opened.values() for r in index_references(record) if r[1] not in records]
    return Index.assemble(pointer.digest, records)
