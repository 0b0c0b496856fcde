"""What differs between two generations: everything that does, nothing else, and little is read to find it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings

from indexer.diff import Diff, Keys, TreeUnreadable, diff
from indexer.registry import catalogs
from indexer.registry.generations import Generation
from sidecar.contract.index import Content, Index
from sidecar.contract.words import query_hash
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock, FakeSource, course, customer, run, uuid_of
from tests.indexer import scripts
from tests.indexer.scripts import Step, steps
from tests.world import World, load, world

COURSES = {"content_type": "course"}
SHOWN = {**COURSES, "restricted_runs_allowed": {"course:A+1": ["x1"]}}
FORCED = {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1"]}


def source_of(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


async def fill(here: World) -> Generation:
    source_of(here).courses = [course("A+1", run("a1"), run("x1", restricted=True)), course("B+1", run("b1"))]
    source_of(here).customers = [customer("Acme")]
    await here.add("courses", COURSES, query_title="All courses")
    await here.add("shown", SHOWN)
    await here.add("forced", FORCED)
    return await built(here)


async def built(here: World) -> Generation:
    made = await here.build()
    assert made is not None
    return made


async def test_the_same_generation_differs_in_nothing(here: World) -> None:
    first = await fill(here)
    assert (await diff(here.store, first, first)).is_empty()


async def test_another_pull_of_the_same_is_no_difference(here: World, clock: FakeClock) -> None:
    first = await fill(here)
    clock.advance(3600)
    assert (await diff(here.store, first, await built(here))) == Diff(1, 2)


async def test_catalogs_that_came_went_and_changed(here: World) -> None:
    first = await fill(here)
    await here.remove(uuid_of("catalog shown"))
    await here.add("new", COURSES)
    async with here.registry.write() as tx:
        await catalogs.change(tx, uuid_of("catalog courses"), {"title": "renamed"}, "test")
    second = await built(here)
    found = await diff(here.store, first, second)
    assert [(c.id, c.title) for c in found.catalogs_added] == [(uuid_of("catalog new"), "new")]
    assert [(c.id, c.title) for c in found.catalogs_removed] == [(uuid_of("catalog shown"), "shown")]
    [changed] = found.catalogs_changed
    assert (changed.id, changed.title, changed.fields["title"]) == (
        *(uuid_of("catalog courses"), "renamed"),
        ("courses", "renamed"),
    )
    # Its query is known for ever, and has no content as long as no catalog uses it.
    content = ["A+1", "B+1", "a1", "b1", "x1"]
    [query] = found.queries_changed
    assert query.v2 is not None
    assert (query.id, query.v2["contained"]) == (query_hash(SHOWN).hex(), Keys([], content))
    back = await diff(here.store, second, first)
    assert (back.catalogs_added, back.catalogs_removed) == (found.catalogs_removed, found.catalogs_added)
    [query] = back.queries_changed
    assert query.v2 is not None
    assert query.v2["contained"] == Keys(content, [])


async def test_content_that_a_query_gained_and_lost_in_both_versions(here: World) -> None:
    first = await fill(here)
    source_of(here).courses = [course("A+1", run("a1"), run("x1")), course("C+1", run("c1"))]
    second = await built(here)
    found = await diff(here.store, first, second)
    queries = {q.id: q for q in found.queries_changed}
    plain, shown = queries[query_hash(COURSES).hex()], queries[query_hash(SHOWN).hex()]
    assert plain.title == "All courses"
    assert plain.v1["members"] == Keys(["C+1"], ["B+1"])
    assert plain.v1["contained"] == Keys(["x1", "C+1", "c1"], ["B+1", "b1"])
    assert plain.v2 is None
    assert shown.v2 is not None
    assert shown.v2["contained"] == Keys(["C+1", "c1"], ["B+1", "b1"])
    # It is no restricted run any more: the query's own document of the course is now like everybody's.
    assert shown.documents == ["A+1"]
    assert found.documents_added == ["C+1"]
    assert "A+1" in found.documents_changed


async def test_documents_and_customers_that_changed(here: World) -> None:
    first = await fill(here)
    source_of(here).courses[1] = course("B+1", run("b1"), title="New")
    source_of(here).customers = [{**customer("Acme"), "slug": "acme-2"}]
    here.clock.advance(1)
    found = await diff(here.store, first, await built(here))
    assert (found.documents_added, found.documents_removed, found.documents_changed) == ([], [], ["B+1"])
    [forced] = found.queries_changed
    assert (forced.id, forced.v1, forced.v2, forced.documents) == (query_hash(FORCED).hex(), {}, None, ["B+1"])
    [acme] = found.customers_changed
    assert (acme.id, acme.fields) == (uuid_of("Acme"), {"slug": ("acme", "acme-2")})


async def test_a_generation_that_was_swept_is_named_with_the_remedy(here: World) -> None:
    first = await fill(here)
    await here.remove(uuid_of("catalog shown"))
    second = await built(here)
    assert isinstance(here.store, MemoryStore)
    del here.store.objects[first.digest]
    for pair in ((first, second), (second, first)):
        with pytest.raises(TreeUnreadable, match=r"generation 1 cannot be read any more: root .*`catalog-indexer gen"):
            await diff(here.store, *pair)


class CountingStore(MemoryStore):
    """A store that counts what is read of it."""

    reads = 0

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        self.reads += len(digests)
        return await super().get(digests)


async def test_what_is_equal_is_not_read(tmp_path: Path) -> None:
    store = CountingStore()
    async with world(tmp_path, store=store) as here:
        source_of(here).courses = [course(f"A+{n}", run(f"a{n}")) for n in range(50)]
        for n in range(60):
            await here.add(f"{n}", {"key": [f"A+{n}"]})
        first = await built(here)
        async with here.registry.write() as tx:
            await catalogs.change(tx, uuid_of("catalog 7"), {"title": "renamed"}, "test")
        second = await here.publish()
        assert second is not None
        store.reads = 0
        found = await diff(store, first, second)
        assert ([c.title for c in found.catalogs_changed], found.queries_changed) == (["renamed"], [])
        assert store.reads == 2 + 2 + 2  # roots, branches, shards


@dataclass(frozen=True)
class Plain:
    """A generation in plain sets, made from its index and from nothing that the comparison uses."""

    catalogs: dict[str, object]
    queries: dict[str, object]
    sets: dict[tuple[str, str, str], frozenset[str]]

    @classmethod
    def of(cls, index: Index) -> "Plain":
        def keys(content: Content | None, name: str) -> frozenset[str]:
            return frozenset(index.dictionary.keys[o] for o in (getattr(content, name) if content is not None else ()))

        return cls(
            {c.uuid: c.record for c in index.catalogs.values()},
            {q.hash.hex(): q.record for q in index.queries.values()},
            {
                (q.hash.hex(), version, name): keys(getattr(q, version), name)
                for q in index.queries.values()
                for version in ("v1", "v2")
                for name in ("members", "contained", "unlisted")
            },
        )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=steps(), other=steps())
async def test_a_diff_is_what_differs_between_the_two_whatever_has_happened(
    tmp_path_factory: pytest.TempPathFactory, template: Path, one: list[Step], other: list[Step]
) -> None:
    source, clock = FakeSource(), FakeClock()
    async with world(scripts.copy(template, tmp_path_factory.mktemp("world")), source, clock=clock) as here:
        made: list[Generation] = []
        for script in (one, other):
            for step in script:
                await scripts.take(here, source, clock, step)
            await here.publish()
            pointer = await here.store.pointer()
            assert pointer is not None
            made.append(Generation(pointer.generation, pointer.epoch, pointer.digest, None, 0, 0, 0, 0, "", moved=True))
        found = await diff(here.store, *made)
        old, new = [Plain.of(await load(here.store, Pointer(g.epoch, g.generation, g.digest))) for g in made]
    assert {c.id for c in found.catalogs_added} == new.catalogs.keys() - old.catalogs.keys()
    assert {c.id for c in found.catalogs_removed} == old.catalogs.keys() - new.catalogs.keys()
    assert {c.id for c in found.catalogs_changed} == {
        uuid for uuid in old.catalogs.keys() & new.catalogs.keys() if old.catalogs[uuid] != new.catalogs[uuid]
    }
    assert {q.id for q in found.queries_added} == new.queries.keys() - old.queries.keys()
    assert {q.id for q in found.queries_removed} == old.queries.keys() - new.queries.keys()
    told = {
        (q.id, version, name): (frozenset(keys.gained), frozenset(keys.lost))
        for q in (*found.queries_added, *found.queries_removed, *found.queries_changed)
        for version, sets in (("v1", q.v1), ("v2", q.v1 if q.v2 is None else q.v2))
        for name, keys in sets.items()
    }
    nothing = frozenset[str]()
    assert told == {
        place: (new.sets.get(place, nothing) - old.sets.get(place, nothing), lost - new.sets.get(place, nothing))
        for place in old.sets.keys() | new.sets.keys()
        if (lost := old.sets.get(place, nothing)) != new.sets.get(place, nothing)
    }
    assert all(UUID(c.id) for c in found.catalogs_changed)
