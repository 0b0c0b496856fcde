"""Walking trees: everything that a root needs, what lies below known digests left out, and damage told apart."""

import pytest

from indexer import tree
from sidecar.contract.objects import ObjectType, seal
from sidecar.contract.records import open_record
from sidecar.errors import ContractError, ObjectMissing
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeSource, course, run
from tests.world import World


async def build(here: World, *, title: str = "A course") -> bytes:
    assert isinstance(here.source, FakeSource)
    here.source.courses = [course("A+1", run("a1"), title=title), course("B+1")]
    generation = await here.build()
    assert generation is not None
    return generation.digest


async def test_a_root_needs_everything_that_was_written_for_it(here: World) -> None:
    await here.add("a", {"content_type": "course"})
    root = await build(here)
    assert isinstance(here.store, MemoryStore)
    assert await tree.references(here.store, root) == set(here.store.objects)


async def test_what_is_known_is_left_out_with_all_that_lies_below_it(here: World) -> None:
    await here.add("a", {"content_type": "course"})
    first = await build(here)
    second = await build(here, title="New")
    assert isinstance(here.store, MemoryStore)
    old = await tree.references(here.store, first)
    new = await tree.references(here.store, second, old)
    assert not new & old
    assert new | old == set(here.store.objects)
    assert second in new


async def test_only_what_may_refer_to_something_is_read(here: World) -> None:
    await here.add("a", {"content_type": "course"})
    root = await build(here)
    assert isinstance(here.store, MemoryStore)
    for digest, data in list(here.store.objects.items()):
        try:
            open_record(digest, data, ObjectType.METADATA)
        except ContractError:
            continue
        del here.store.objects[digest]
        assert digest in await tree.references(here.store, root)
        here.store.objects[digest] = data


async def test_a_missing_and_a_damaged_object_are_different_errors(here: World) -> None:
    await here.add("a", {"content_type": "course"})
    root = await build(here)
    assert isinstance(here.store, MemoryStore)
    shard = next(iter((await here.index()).shards[ObjectType.QUERIES].values()))
    data = here.store.objects.pop(shard)
    with pytest.raises(ObjectMissing, match=f"queries {shard.hex()} is not in the store"):
        await tree.references(here.store, root)
    here.store.objects[shard] = data[:-1]
    with pytest.raises(ContractError):
        await tree.references(here.store, root)
    here.store.objects[shard] = data


async def test_intact_is_what_is_there_with_the_bytes_that_its_digest_says() -> None:
    store = MemoryStore()
    good, bad, gone = (seal(ObjectType.BITMAP, text) for text in (b"good", b"bad", b"gone"))
    await store.put([good, bad])
    store.objects[bad.digest] += b"!"
    assert await tree.intact(store, {good.digest, bad.digest, gone.digest}) == {good.digest}
