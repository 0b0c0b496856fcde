"""`build`: it refuses to wait for ever, counts what can't be mended as done, and tidies the registry at its end."""

import asyncio

import pytest
import sqlalchemy as sa

from indexer.build import build
from indexer.catalog_body import read_catalog
from indexer.leadership import AnotherLeads
from indexer.registry import Registry, catalogs, generations, lead, pulls, schema
from indexer.registry.generations import Generation
from indexer.wiring import Parts
from sidecar.settings import Settings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, catalog_body
from tests.world import verify

DAY_S = 86_400


class PatientClock(FakeClock):
    """Nobody who sleeps by it wakes up."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


class BeatingClock(FakeClock):
    """While somebody sleeps by it, the leader of an epoch gives signs of life."""

    def __init__(self, registry: Registry, epoch: int) -> None:
        super().__init__()
        self._registry = registry
        self._epoch = epoch

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await lead.renew(self._registry, self._epoch)


def parts(registry: Registry, clock: FakeClock) -> Parts:
    return Parts(Settings(), clock, registry, MemoryStore(), FakeSource())


async def add(registry: Registry, title: str, content_filter: object) -> str:
    async with registry.write() as tx:
        row, _ = await catalogs.create(tx, read_catalog(catalog_body(title, content_filter)), "test")
    return row.wanted


async def test_beside_a_leader_that_lives_is_given_up_and_changes_nothing(registry: Registry) -> None:
    epoch = await lead.take(registry, await lead.observe(registry), "host:7", 15.0)
    assert epoch is not None
    clock = BeatingClock(registry, epoch)
    with pytest.raises(AnotherLeads, match="host:7 leads"):
        await build(parts(registry, clock))
    assert 30 <= clock.steady_s <= 35
    assert (await lead.observe(registry)).holder == "host:7"


@pytest.mark.parametrize("content_filter", [[], ["no object"], "text"])
async def test_a_filter_that_is_no_object_fails_no_build(registry: Registry, content_filter: object) -> None:
    hash_ = await add(registry, "a", content_filter)
    works_on = parts(registry, PatientClock())
    built = await build(works_on)
    assert ([t.hash for t in built.passed], built.failed) == ([hash_], [])
    await verify(works_on.store)


async def test_what_can_never_be_pulled_fails_a_build(registry: Registry) -> None:
    hash_ = await add(registry, "a", {"q": "only Elasticsearch knows"})
    built = await build(parts(registry, PatientClock()))
    assert (built.passed, [t.hash for t in built.failed]) == ([], [hash_])


async def test_ends_with_old_pulls_and_generations_forgotten(registry: Registry) -> None:
    hash_ = await add(registry, "a", {"key": "A+1"})
    clock = PatientClock()
    long_ago_ms = clock.now_ms() - 31 * DAY_S * 1000
    async with registry.plain() as connection:
        await pulls.start(connection, hash_, "due", long_ago_ms)
        await pulls.abandon(connection, long_ago_ms)
        old = [
            Generation(n, 0, bytes(32), None, 0, 0, 0, 0, "test", moved=True) for n in range(1, generations.KEPT + 2)
        ]
        rows = [{c.name: getattr(g, c.name) for c in schema.generation.columns} for g in old]
        await connection.execute(sa.insert(schema.generation), rows)
    built = await build(parts(registry, clock))
    assert built.generation is not None
    assert built.generation.generation == generations.KEPT + 2
    async with registry.read() as connection:
        assert [r.state for r in await connection.execute(sa.select(schema.pull))] == ["passed"]
        found = await generations.latest(connection, generations.KEPT + 2)
    assert [g.generation for g in found] == list(range(generations.KEPT + 2, 2, -1))
