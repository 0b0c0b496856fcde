"""Checking a tree: sound ones pass, and each kind of damage is named, several at once."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexer.check import check
from sidecar.contract.objects import ObjectType, Sealed
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    Bitmap,
    ContentSet,
    ContentShard,
    FreshnessShard,
    QueryShard,
    Record,
    Root,
    branches_of,
    open_record,
    seal_record,
)
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeSource, course, program, run
from tests.world import World, world


@pytest.fixture
async def store(tmp_path: Path) -> MemoryStore:
    """A published tree in a store of its own, to be damaged."""
    made = MemoryStore()
    async with world(tmp_path, FakeSource(), made) as here:
        await fill(here)
    return made


async def fill(here: World) -> None:
    assert isinstance(here.source, FakeSource)
    here.source.courses = [course("A+1", run("a1")), course("B+1", run("b1"), run("x1", restricted=True))]
    here.source.programs = [program("P")]
    await here.add("all", {})
    await here.add("forced", {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1"]})
    await here.add("shown", {"key": "B+1", "restricted_runs_allowed": {"course:B+1": ["x1"]}})
    await here.build()


async def problems(store: MemoryStore) -> list[str]:
    return (await check(store)).problems


class Tree:
    """A published tree that lies: any record replaced, and everything above it with it."""

    def __init__(self, store: MemoryStore, pointer: Pointer) -> None:
        self.store = store
        self.pointer = pointer
        self.root = self.open(ObjectType.ROOT, pointer.digest)
        assert isinstance(self.root, Root)

    def open(self, kind: ObjectType, digest: bytes) -> Any:
        return open_record(digest, self.store.objects[digest], kind)

    def put(self, record: Record) -> bytes:
        sealed: Sealed = seal_record(record)
        self.store.objects[sealed.digest] = sealed.data
        return sealed.digest

    async def publish(self, **fields: Any) -> None:
        digest = self.put(replace(self.root, **fields))
        await self.store.reset(self.pointer._replace(digest=digest))

    def shards(self, branches: Mapping[int, bytes]) -> dict[int, bytes]:
        return {
            number * BRANCH_CHILDREN + place: digest
            for number, branch in branches.items()
            for place, digest in self.open(ObjectType.BRANCH, branch).children.items()
        }

    def branches(self, kind: ObjectType, shards: Mapping[int, bytes]) -> dict[int, bytes]:
        return {number: self.put(branch) for number, branch in branches_of(kind, shards).items()}

    @property
    def content(self) -> list[bytes]:
        return list(self.shards(dict(enumerate(self.root.content))).values())

    async def change_content(self, shard: ContentShard) -> None:
        branches = self.branches(ObjectType.CONTENT, {0: self.put(shard)})
        await self.publish(content=tuple(branches.values()))

    async def change_queries(self, change: Callable[[Any], Any]) -> None:
        shards = {
            byte: self.put(QueryShard(tuple(map(change, self.open(ObjectType.QUERIES, digest).records))))
            for byte, digest in self.shards(self.root.queries).items()
        }
        await self.publish(queries=self.branches(ObjectType.QUERIES, shards))

    def ordinals(self, digest: bytes) -> set[int]:
        return set(self.open(ObjectType.BITMAP, digest).ordinals)


async def tree_of(store: MemoryStore) -> Tree:
    pointer = await store.pointer()
    assert pointer is not None
    return Tree(store, pointer)


async def test_a_sound_tree_has_no_problems_and_is_counted_whole(store: MemoryStore) -> None:
    report = await check(store)
    assert report.problems == []
    assert sum(report.objects.values()) == len(store.objects)
    assert report.bytes == sum(map(len, store.objects.values()))
    assert report.objects[ObjectType.ROOT] == 1


async def test_a_store_without_a_pointer_is_a_problem() -> None:
    assert await problems(MemoryStore()) == ["the store has no root pointer: nothing was ever published here"]


async def test_every_single_object_is_missed(store: MemoryStore) -> None:
    for digest, data in list(store.objects.items()):
        del store.objects[digest]
        assert any(f"{digest.hex()} is missing" in problem for problem in await problems(store))
        store.objects[digest] = data


async def test_one_flipped_bit_is_found_in_every_object(store: MemoryStore) -> None:
    for digest, data in list(store.objects.items()):
        store.objects[digest] = data[:-1] + bytes([data[-1] ^ 1])
        assert any(digest.hex() in problem for problem in await problems(store))
        store.objects[digest] = data


async def test_several_problems_are_all_reported(store: MemoryStore) -> None:
    tree = await tree_of(store)
    documents = [d for digest in tree.content for d in tree.open(ObjectType.CONTENT, digest).metadata if d]
    del store.objects[documents[0]]
    store.objects[documents[1]] = b"short"
    found = await problems(store)
    assert len(found) == 2
    assert any(f"metadata {documents[0].hex()} is missing" in problem for problem in found)
    assert any(documents[1].hex() in problem for problem in found)


async def test_a_pointer_that_says_something_else_than_its_root_is_a_problem(store: MemoryStore) -> None:
    pointer = await store.pointer()
    assert pointer is not None
    await store.reset(pointer._replace(generation=9, epoch=8))
    assert await problems(store) == [
        "the pointer says epoch 8, generation 9; its root says epoch 1, generation 1",
    ]


async def test_an_index_that_does_not_fit_together_is_a_problem(store: MemoryStore) -> None:
    tree = await tree_of(store)
    freshness = dict(tree.root.freshness)
    freshness.popitem()
    await tree.publish(freshness=freshness)
    (problem,) = await problems(store)
    assert "has no freshness record" in problem


async def test_a_document_that_stands_in_anothers_place_is_a_problem(store: MemoryStore) -> None:
    tree = await tree_of(store)
    (digest,) = tree.content
    shard = tree.open(ObjectType.CONTENT, digest)
    documents = list(shard.metadata)
    documents[0], documents[1] = documents[1], documents[0]
    await tree.change_content(ContentShard(shard.first, tuple(documents), shard.modified_ms))
    assert sum("stands where" in problem for problem in await problems(store)) == 2


async def test_a_content_shard_of_other_ordinals_is_a_problem(store: MemoryStore) -> None:
    tree = await tree_of(store)
    (digest,) = tree.content
    shard = tree.open(ObjectType.CONTENT, digest)
    await tree.change_content(ContentShard(shard.first, shard.metadata[:-1], shard.modified_ms[:-1]))
    (problem,) = await problems(store)
    assert problem.startswith("content shard 0: ")


async def test_an_override_that_is_anothers_document_is_a_problem(store: MemoryStore) -> None:
    tree = await tree_of(store)

    def change(record: Any) -> Any:
        moved = tuple((0 if ordinal else 1, digest) for ordinal, digest in record.overrides_v2)
        return replace(record, overrides_v2=moved)

    await tree.change_queries(change)
    assert any("stands where" in problem for problem in await problems(store))


async def test_an_override_that_is_no_document_is_a_problem(store: MemoryStore) -> None:
    """Its digest leads to an object that is sound as what it is, and is referred to as that elsewhere."""
    tree = await tree_of(store)

    def change(record: Any) -> Any:
        return replace(record, overrides_v1=((0, record.v1.members),))

    await tree.change_queries(change)
    assert any("type 8 where METADATA" in problem for problem in await problems(store))


@pytest.mark.parametrize(
    "change, problem",
    [
        (
            lambda tree, s: ContentSet(s.members, s.contained, tree.put(Bitmap.of(range(6)))),
            "items that are no members",
        ),
        (lambda tree, s: ContentSet(s.members, tree.put(Bitmap.of(())), s.unlisted), "are not contained"),
        (
            lambda tree, s: ContentSet(s.members, tree.put(Bitmap.of(range(6))), s.unlisted),
            "neither it, its course nor a run is a member",
        ),
    ],
)
async def test_sets_that_contradict_each_other_are_a_problem(
    store: MemoryStore, change: Callable[[Tree, ContentSet], ContentSet], problem: str
) -> None:
    tree = await tree_of(store)
    await tree.change_queries(lambda record: replace(record, v1=change(tree, record.v1)))
    assert any(problem in found for found in await problems(store))


async def test_a_course_of_a_member_run_that_is_not_contained_is_a_problem(tmp_path: Path) -> None:
    store = MemoryStore()
    async with world(tmp_path, FakeSource(course("A+1", run("a1"), indexed=("a1",))), store) as here:
        await here.add("runs", {"content_type": "courserun"})
        await here.build()
    tree = await tree_of(store)
    await tree.change_queries(
        lambda record: replace(record, v1=ContentSet(record.v1.members, record.v1.members, record.v1.unlisted))
    )
    assert any("the course of a member run" in found for found in await problems(store))


async def test_an_older_generation_can_be_checked(tmp_path: Path) -> None:
    store = MemoryStore()
    async with world(tmp_path, FakeSource(), store) as here:
        await fill(here)
        first = await store.pointer()
        await here.build()
        assert first is not None
        assert (await check(store, first)).problems == []
        assert (await check(store, first)).pointer == first


async def test_freshness_without_a_query_is_a_problem(store: MemoryStore) -> None:
    tree = await tree_of(store)
    queries = tree.shards(tree.root.queries)
    byte = next(iter(queries))
    del queries[byte]
    freshness = tree.shards(tree.root.freshness)
    assert isinstance(tree.open(ObjectType.FRESHNESS, freshness[byte]), FreshnessShard)
    await tree.publish(queries=tree.branches(ObjectType.QUERIES, queries))
    (problem,) = await problems(store)
    assert "freshness of" in problem or "rests on a query" in problem
