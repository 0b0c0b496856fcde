"""Reading goes memory, disk, store; believes only what is verified; and fetches once."""

import asyncio

import pytest
from structlog.testing import capture_logs

from sidecar.contract.objects import ObjectType, Sealed, digest_of
from sidecar.contract.records import Metadata, Reference, seal_record
from sidecar.contract.words import ContentType
from sidecar.disk import Disk
from sidecar.errors import ObjectMissing, StoreError, UnknownFormat, WrongDigest
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.tiers import INLINE, Tiers
from tests.sidecar.fakes import FlakyStore, disk_over

DOCUMENTS = [Metadata(f"k{n}", ContentType.COURSE, (f"document {n}".encode(),)) for n in range(3 * INLINE)]
SEALED = [seal_record(document) for document in DOCUMENTS]
REFERENCES: list[Reference] = [(ObjectType.METADATA, sealed.digest) for sealed in SEALED]


class Rig:
    """Tiers over a store and a disk that are both in memory."""

    def __init__(self, *, on_disk: bool = True) -> None:
        self.store = FlakyStore()
        self.disk_store = FlakyStore()
        self.metrics = Metrics()
        self.disk = disk_over(self.disk_store, self.metrics) if on_disk else Disk(None, self.metrics)
        self.memory = Memory(1024 * 1024)
        self.tiers = Tiers(self.memory, self.disk, self.store, self.metrics)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"catalog_sidecar_{name}_total", labels) or 0

    async def settled(self) -> None:
        """Waits for what is written behind."""
        while self.tiers.busy:
            await asyncio.wait(self.tiers.busy)


async def test_an_object_comes_from_the_store_then_from_memory_then_from_disk() -> None:
    rig = Rig()
    await rig.store.put(SEALED)
    assert await rig.tiers.read(REFERENCES[:1]) == {SEALED[0].digest: DOCUMENTS[0]}
    await rig.settled()
    rig.store.down = True
    assert await rig.tiers.read(REFERENCES[:1]) == {SEALED[0].digest: DOCUMENTS[0]}
    assert rig.count("tier_reads", tier="memory", result="hit") == 1
    fresh = Tiers(Memory(1024), rig.disk, rig.store, rig.metrics)
    assert await fresh.read(REFERENCES[:1]) == {SEALED[0].digest: DOCUMENTS[0]}
    assert rig.count("tier_reads", tier="disk", result="hit") == 1
    assert rig.store.asked == [SEALED[0].digest]


async def test_many_objects_are_read_as_few_are() -> None:
    rig = Rig()
    await rig.store.put(SEALED)
    read = await rig.tiers.read([*REFERENCES, *REFERENCES], keep=False)
    assert list(read.values()) == DOCUMENTS
    assert len(rig.memory) == 0


async def test_however_many_ask_the_store_is_asked_once() -> None:
    rig = Rig()
    await rig.store.put(SEALED)
    rig.store.gate.clear()
    first = asyncio.create_task(rig.tiers.read(REFERENCES[:2]))
    await rig.store.waiting.wait()
    others = [asyncio.create_task(rig.tiers.read(REFERENCES[1:3])) for _ in range(5)]
    first.cancel()
    rig.store.gate.set()
    for read in await asyncio.gather(*others):
        assert set(read.values()) == set(DOCUMENTS[1:3])
    assert sorted(rig.store.asked) == sorted(sealed.digest for sealed in SEALED[:3])


async def test_a_corrupt_object_on_disk_is_fetched_again_and_mended() -> None:
    rig = Rig()
    await rig.store.put(SEALED)
    rig.disk_store.objects[SEALED[0].digest] = SEALED[0].data[:-1] + b"!"
    assert await rig.tiers.read(REFERENCES[:1]) == {SEALED[0].digest: DOCUMENTS[0]}
    await rig.settled()
    assert rig.disk_store.objects[SEALED[0].digest] == SEALED[0].data
    assert rig.count("corrupt_objects", tier="disk") == 1


async def test_a_corrupt_object_in_the_store_is_an_error_and_is_not_kept() -> None:
    rig = Rig()
    await rig.store.put([Sealed(SEALED[0].digest, SEALED[1].data), SEALED[1]])
    with pytest.raises(WrongDigest):
        await rig.tiers.read(REFERENCES[:2])
    await rig.settled()
    assert SEALED[0].digest not in rig.disk_store.objects
    assert await rig.tiers.read(REFERENCES[1:2]) == {SEALED[1].digest: DOCUMENTS[1]}
    assert rig.count("corrupt_objects", tier="store") == 1
    with pytest.raises(WrongDigest):
        await rig.tiers.copy_to_disk([SEALED[0].digest])


async def test_a_corrupt_object_is_told_of_once_by_its_tier_and_digest() -> None:
    rig = Rig()
    rig.store.objects[SEALED[0].digest] = rig.disk_store.objects[SEALED[0].digest] = b"rot"
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(WrongDigest):
                await rig.tiers.read(REFERENCES[:1])
    assert [(line["tier"], line["object"]) for line in logs] == [
        (tier, SEALED[0].digest.hex()) for tier in ("disk", "store")
    ]
    assert rig.count("corrupt_objects", tier="store") == 3


async def test_an_object_from_the_future_is_not_used_and_is_no_corrupt_one() -> None:
    rig = Rig()
    data = bytearray(SEALED[0].data)
    data[4] += 1
    digest = digest_of(bytes(data))
    await rig.store.put([Sealed(digest, bytes(data))])
    with pytest.raises(UnknownFormat):
        await rig.tiers.read([(ObjectType.METADATA, digest)])
    await rig.settled()
    assert rig.count("corrupt_objects", tier="store") == 0
    assert rig.disk_store.objects == {}


async def test_an_object_that_no_tier_has_is_missing_and_the_others_are_not() -> None:
    rig = Rig()
    await rig.store.put(SEALED[1:2])
    with pytest.raises(ObjectMissing):
        await rig.tiers.read(REFERENCES[:2])
    assert await rig.tiers.read(REFERENCES[1:2]) == {SEALED[1].digest: DOCUMENTS[1]}


async def test_a_store_that_is_down_is_no_missing_object() -> None:
    rig = Rig()
    rig.store.down = True
    with pytest.raises(StoreError) as caught:
        await rig.tiers.read(REFERENCES[:1])
    assert not isinstance(caught.value, ObjectMissing)
    assert rig.count("store_errors") == 1


@pytest.mark.parametrize("on_disk", [True, False])
async def test_without_a_disk_that_works_the_store_answers(on_disk: bool) -> None:
    rig = Rig(on_disk=on_disk)
    rig.disk_store.down = True
    await rig.store.put(SEALED)
    assert await rig.tiers.read(REFERENCES[:1]) == {SEALED[0].digest: DOCUMENTS[0]}
    await rig.settled()
    assert rig.disk.status.state == ("failing" if on_disk else "off")


async def test_copying_to_disk_fetches_only_what_the_disk_lacks() -> None:
    rig = Rig()
    await rig.store.put(SEALED)
    await rig.disk_store.put(SEALED[:2])
    digests = [sealed.digest for sealed in SEALED]
    assert await rig.tiers.copy_to_disk(digests)
    assert sorted(rig.store.asked) == sorted(digests[2:])
    assert set(rig.disk_store.objects) == set(digests)
    rig.store.down = True
    assert await rig.tiers.copy_to_disk(digests)
