"""Generations made over a built one: each is whole, follows the one before, and has other content."""

from pathlib import Path

from benchmarks.generations import Generations
from indexer.check import check
from indexer.mirror import Mirror
from sidecar.contract.index import Index
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Metadata, open_record
from sidecar.store import Pointer
from tests.fakes import FakeSource, course, run
from tests.world import World, load, verify, world

COURSES = 12
MADE = 4


async def generations(here: World, published: Pointer) -> Generations:
    mirror = Mirror()
    async with here.registry.read() as connection:
        await mirror.refresh(connection)
    documents = {}
    for ordinal, digest in enumerate(mirror.metadata):
        if digest is not None:
            document = open_record(digest, (await here.store.get([digest]))[digest], ObjectType.METADATA)
            assert isinstance(document, Metadata)
            documents[ordinal] = document
    return Generations(mirror, {}, documents, published)


async def test_each_generation_is_whole_and_has_other_content(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert isinstance(here.source, FakeSource)
        here.source.courses = [course(f"A+{n:02d}", run(f"a{n:02d}")) for n in range(COURSES)]
        await here.add("all", {"content_type": "course"})
        await here.build()
        before: Index = await here.index()
        published = await here.store.pointer()
        assert published is not None
        made = await generations(here, published)
        for _ in range(MADE):
            pointer, objects = made.next()
            await here.store.put(objects)
            await here.store.move(pointer)
            await verify(here.store)
            index = await load(here.store, pointer)
            assert pointer.generation == before.root.generation + 1
            [hash_] = index.queries
            now, then = index.queries[hash_], before.queries[hash_]
            assert now.v1 is not None
            assert then.v1 is not None
            assert now.v1.contained != then.v1.contained
            assert now.pulled_at_ms != then.pulled_at_ms
            assert len(index.dictionary) - len(before.dictionary) in (0, 5)
            before = index
        assert (await check(here.store)).problems == []
        assert len(before.dictionary) == COURSES * 2 + 10
