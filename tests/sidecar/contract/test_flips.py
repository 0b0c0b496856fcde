"""Every single bit of one object of each type, flipped: what is refused, and what the rest is taken for.

With the digest left, all are refused. With the digest made to fit, as by a writer with a defect: what is taken for a
record is one that this writer could have written, byte for byte; and in its generation, with everything above made to
fit as well, the whole is refused or holds together. `pytest -rP` shows the counts.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from sidecar.contract.index import Index, check_content, check_root
from sidecar.contract.objects import HEADER, ObjectType, digest_of, unseal
from sidecar.contract.records import MAX_ORDINAL, Bitmap, ContentShard, QueryShard, Record, Root, Segment, open_record
from sidecar.errors import ContractError, WrongDigest
from tests.sidecar.contract.test_vectors import FILES, flips
from tests.sidecar.contract.tree import lookups_stay_inside
from tests.vectors.make import VECTORS

# One of each type that is in the golden generation, and those beside it that take other paths.
OBJECTS = (
    *("root", "branch_queries_0", "segment", "queries", "freshness", "catalogs", "customers", "content"),
    *("bitmap_array", "metadata_places"),
)
BESIDE = ("root_compressed", "segment_compressed", "queries_compressed", "metadata_compressed", "bitmap_runs")


class Tally(NamedTuple):
    """What became of the flips of one object."""

    name: str
    tried: int
    refused: int
    refused_whole: int = 0

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.tried} flips, {self.refused} refused as objects, {self.refused_whole} with their "
            f"generation, {self.tried - self.refused - self.refused_whole} sound"
        )


def kind_of(name: str) -> ObjectType:
    return VECTORS[name].record.TYPE


def flipped_records(name: str) -> Iterator[tuple[bytes, Record | None]]:
    """Every flip of an object under a digest that fits, and the record that it is taken for."""
    for data in flips(FILES[name]):
        try:
            yield data, open_record(digest_of(data), data, kind_of(name))
        except ContractError:
            yield data, None


def stays_inside(record: Record) -> None:
    """No ordinal that a record names is beyond those that there can be."""
    ordinals: list[int] = []
    if isinstance(record, Bitmap):
        ordinals = list(record.ordinals)
    elif isinstance(record, (Segment, ContentShard)):
        ordinals = [record.first]
    elif isinstance(record, QueryShard):
        ordinals = [o for each in record.records for o, _ in (*each.overrides_v1, *each.overrides_v2)]
    assert all(0 <= ordinal <= MAX_ORDINAL for ordinal in ordinals)


def relinked(name: str, record: Record) -> tuple[bytes, dict[bytes, Record]]:
    """The golden generation with this record in the place of the file's: whatever refers to it, refers to its digest,
    and so on up to the root, whose digest comes first.
    """
    renamed: dict[bytes, bytes] = {}
    records: dict[bytes, Record] = {}

    def put(old: bytes) -> bytes:
        """The new digest of what had the old one, once all below it has its own."""
        if old not in renamed:
            its = record if old == digest_of(FILES[name]) else _GOLDEN[old]
            payload = its.encode()
            for _, below in its.references():
                if below in _GOLDEN:
                    payload = payload.replace(below, put(below))
            data = HEADER.pack(b"ECAT", 1, its.TYPE, 0, len(payload)) + payload
            renamed[old] = digest_of(data)
            records[renamed[old]] = open_record(renamed[old], data, its.TYPE)
        return renamed[old]

    return put(digest_of(FILES["root"])), records


_GOLDEN: Mapping[bytes, Record] = {
    digest_of(FILES[name]): vector.record for name, vector in VECTORS.items() if not vector.compressed
}


@pytest.mark.parametrize("name", [*OBJECTS, *BESIDE])
def test_a_flipped_bit_under_the_digest_that_was_there_is_always_refused(name: str) -> None:
    digest = digest_of(FILES[name])
    tried = 0
    for data in flips(FILES[name]):
        with pytest.raises(WrongDigest):
            open_record(digest, data, kind_of(name))
        tried += 1
    assert tried == 8 * len(FILES[name])
    print(Tally(name, tried, refused=tried))


@pytest.mark.parametrize("name", [*OBJECTS, *BESIDE])
def test_a_flipped_bit_under_a_digest_that_fits_is_refused_or_is_what_a_writer_would_have_written(name: str) -> None:
    tried = refused = 0
    for data, record in flipped_records(name):
        tried += 1
        if record is None:
            refused += 1
            continue
        assert record != VECTORS[name].record or VECTORS[name].compressed
        assert record.TYPE is kind_of(name)
        assert record.encode() == unseal(digest_of(data), data, record.TYPE)
        stays_inside(record)
    # Something is refused of every object: its magic, version, type, flags and length at least.
    assert 8 * HEADER.size <= refused <= tried == 8 * len(FILES[name])
    print(Tally(name, tried, refused))


@pytest.mark.parametrize("name", OBJECTS)
def test_a_flipped_bit_that_everything_above_fits_gives_a_generation_that_holds_together_or_none(name: str) -> None:
    golden = _GOLDEN[digest_of(FILES["root"])]
    assert isinstance(golden, Root)
    tried = refused = refused_whole = 0
    for _, record in flipped_records(name):
        tried += 1
        if record is None:
            refused += 1
            continue
        try:
            digest, records = relinked(name, record)
            index = Index.assemble(digest, records)
            check_root(index.root, golden.epoch, golden.generation)
            for number, shard in enumerate(index.content):
                content = records[shard]
                assert isinstance(content, ContentShard)
                check_content(index, number, content)
        except ContractError:
            refused_whole += 1
            continue
        lookups_stay_inside(index)
        assert (index.root.epoch, index.root.generation) == (golden.epoch, golden.generation)
    assert tried == 8 * len(FILES[name])
    print(Tally(name, tried, refused, refused_whole))


def test_one_object_of_each_type_is_flipped_and_the_generation_is_whole_without() -> None:
    assert {kind_of(name) for name in OBJECTS} == set(ObjectType)
    root = digest_of(FILES["root"])
    for name in OBJECTS:
        digest, records = relinked(name, VECTORS[name].record)
        assert digest == root
        lookups_stay_inside(Index.assemble(digest, records))
        # It is part of what is put together, or what is flipped there would not be looked at.
        assert digest_of(FILES[name]) in records
