"""Documents in a stream are those that are written one by one, from whichever tier, and all of them or none."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import (
    Activity,
    CatalogRecord,
    CustomerRecord,
    Enrollment,
    Marketing,
    Metadata,
    Modified,
    Part,
    RunEnrollment,
)
from sidecar.disk import Disk
from sidecar.documents import Links, Values, values_of, written
from sidecar.errors import ObjectMissing
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.shelves import NOTHING, Shelves
from sidecar.store.memory import MemoryStore
from sidecar.tiers import Tiers
from tests.sidecar.contract.tree import Item, Tree, build

AROUND = b"<", b">"
CATALOG = CatalogRecord(bytes(16), 1, bytes(16), None, bytes(16), "Name", "t", "[]", False, 0, 300)
CUSTOMER = CustomerRecord(bytes(16), "slug", True, "Name", 0)
LINKS = Links("https://lms", "https://portal", "https://shop")
VALUES = [
    None,
    values_of(CATALOG, CUSTOMER, LINKS),
    values_of(replace(CATALOG, customer_name="Other", audit_urls=True), replace(CUSTOMER, portal=False), LINKS),
    values_of(replace(CATALOG, modified_ms=1), None, Links("", "", "")),
]

texts = st.binary(max_size=30) | st.integers(0, 3000).map(bytes)
places = st.one_of(
    st.just(Modified()),
    st.builds(Marketing, texts, texts, texts),
    st.builds(Activity, texts),
    st.builds(Enrollment, st.booleans(), texts, st.none() | texts, texts, st.none() | texts),
    st.builds(RunEnrollment, texts, texts, texts),
)
documents = st.lists(st.lists(texts | places, max_size=8).map(tuple), max_size=12)


class Rig:
    """Shelves over a store of these documents, and nothing between them but memory."""

    def __init__(
        self, parts: Sequence[tuple[Part, ...]], memory_bytes: int, *, batch: int = 3, at_once: int = 5
    ) -> None:
        self.tree: Tree = build([Item(f"k{n}", document=part) for n, part in enumerate(parts)])
        self.index = self.tree.assembled()
        self.ordinals = range(len(parts))
        self.store = MemoryStore()
        self.store.objects.update({digest: sealed.data for digest, sealed in self.tree.objects.items()})
        self.memory, metrics = Memory(memory_bytes), Metrics()
        tiers = Tiers(self.memory, Disk(None, metrics), self.store, metrics)
        self.shelves = Shelves(tiers, batch=3, at_once=5)

    async def text(self, values: Values | None, *, spare: bool = False) -> bytes:
        stream = await self.shelves.stream(self.index, self.ordinals, NOTHING, values, AROUND, spare=spare)
        text = await stream.whole()
        assert len(text) == stream.length
        assert self.memory.bytes <= self.memory.limit_bytes
        return text

    def lose(self, key: str) -> None:
        for digest, record in self.tree.records().items():
            if isinstance(record, Metadata) and record.key == key:
                del self.store.objects[digest]


def expected(parts: Sequence[tuple[Part, ...]], values: Values | None) -> bytes:
    records = (Metadata("k", 1, part) for part in parts)  # type: ignore[arg-type]
    # The content of the n-th has changed at n ms: that is how the tree is built.
    return b"<" + b",".join(b"".join(written(record, n, values)) for n, record in enumerate(records)) + b">"


@given(documents, st.integers(0, 40_000), st.lists(st.tuples(st.sampled_from(VALUES), st.booleans()), max_size=6))
async def test_a_stream_is_its_documents_as_they_are_written(
    parts: list[tuple[Part, ...]], memory_bytes: int, asked: list[tuple[Values | None, bool]]
) -> None:
    rig = Rig(parts, memory_bytes)
    for values, spare in asked:
        assert await rig.text(values, spare=spare) == expected(parts, values)


async def test_a_document_that_is_missing_is_told_before_there_is_a_stream() -> None:
    rig = Rig([(b"text %d" % n,) for n in range(12)], 0)
    rig.lose("k11")
    with pytest.raises(ObjectMissing):
        await rig.shelves.stream(rig.index, rig.ordinals, NOTHING, None, AROUND)


async def test_a_document_that_is_lost_later_ends_the_stream() -> None:
    rig = Rig([(b"text %d" % n,) for n in range(12)], 0)
    stream = await rig.shelves.stream(rig.index, rig.ordinals, NOTHING, None, AROUND)
    rig.lose("k11")
    vectors = stream.vectors()
    for first in (0, 3, 6):
        _, buffers = await anext(vectors)
        assert b"".join(buffers) == b"".join(b"text %d," % n for n in range(first, first + 3))
    with pytest.raises(ObjectMissing):
        await anext(vectors)


async def test_few_documents_are_held_and_cannot_be_lost() -> None:
    rig = Rig([(b"text %d" % n,) for n in range(5)], 0)
    stream = await rig.shelves.stream(rig.index, rig.ordinals, NOTHING, None, AROUND)
    rig.store.objects.clear()
    assert await stream.whole() == expected([(b"text %d" % n,) for n in range(5)], None)


async def test_what_memory_has_is_asked_of_nobody_else() -> None:
    rig = Rig([(b"text %d" % n, Modified()) for n in range(12)], 1024 * 1024)
    wanted = await rig.text(VALUES[1], spare=True)
    rig.store.objects.clear()
    assert await rig.text(VALUES[1]) == wanted
    # The documents are there for other values, too.
    assert await rig.text(VALUES[3]) != wanted


async def test_an_ordinal_without_a_document_is_named() -> None:
    tree = build([Item("with", document=b"{}"), Item("without")])
    rig = Rig([], 0)
    rig.store.objects.update({digest: sealed.data for digest, sealed in tree.objects.items()})
    with pytest.raises(ObjectMissing, match="without a document: without"):
        await rig.shelves.stream(tree.assembled(), [0, 1], NOTHING, None, AROUND)


async def test_what_goes_before_the_shards_is_shown_in_their_place() -> None:
    rig = Rig([(b"one",), (b"two",)], 0)
    digests = {r.key: d for d, r in rig.tree.records().items() if isinstance(r, Metadata)}
    stream = await rig.shelves.stream(rig.index, [0, 1], {0: digests["k1"]}, None, AROUND)
    assert await stream.whole() == b"<two,two>"
    assert rig.memory.get((ObjectType.METADATA, digests["k1"])) is None
