"""The golden files: these records give these bytes, and back; no flipped bit is taken for another record unnoticed."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.index import Index, check_content
from sidecar.contract.objects import HEADER, ObjectType, digest_of, unseal
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    ContentShard,
    QueryShard,
    Record,
    Root,
    open_record,
    seal_record,
    segments_of,
)
from sidecar.contract.words import query_hash
from sidecar.errors import ContractError, WrongDigest
from tests.sidecar.contract.tree import everything_below, lookups_stay_inside
from tests.vectors.make import VECTORS, readme, uncompressed

FILES = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[2] / "vectors").glob("*.bin"))}
PLAIN = [name for name, vector in VECTORS.items() if not vector.compressed]
COMPRESSED = [name for name, vector in VECTORS.items() if vector.compressed]


def opened(data: bytes, kind: ObjectType) -> Record:
    return open_record(digest_of(data), data, kind)


def flips(data: bytes) -> Iterator[bytes]:
    """The data with one bit flipped, for every bit."""
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def use(record: Record) -> None:
    """Everything that a record can be asked without any other record."""
    for _, digest in record.references():
        assert len(digest) == 32
    assert repr(record)
    if isinstance(record, Root):
        assert len(record.dictionary) == -(-segments_of(record.ordinals) // BRANCH_CHILDREN)
    again = seal_record(record)
    assert open_record(again.digest, again.data, record.TYPE) == record


def test_every_file_is_a_vector_and_every_vector_a_file() -> None:
    assert list(FILES) == list(VECTORS)


def test_every_object_type_has_a_vector() -> None:
    assert {vector.record.TYPE for vector in VECTORS.values()} == set(ObjectType)


@pytest.mark.parametrize("name", VECTORS)
def test_the_bytes_open_to_exactly_the_record(name: str) -> None:
    record = VECTORS[name].record
    assert opened(FILES[name], record.TYPE) == record


@pytest.mark.parametrize("name", PLAIN)
def test_the_record_gives_exactly_the_bytes(name: str) -> None:
    assert uncompressed(VECTORS[name].record).data == FILES[name]


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.startswith(("root", "queries", "segment"))])
def test_what_does_not_shrink_is_sealed_as_it_is(name: str) -> None:
    assert seal_record(VECTORS[name].record) == (digest_of(FILES[name]), FILES[name])


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_payload_is_the_same_payload(name: str) -> None:
    record, data = VECTORS[name].record, FILES[name]
    assert HEADER.unpack_from(data)[3] == 1
    assert unseal(digest_of(data), data, record.TYPE) == record.encode()
    assert len(data) < HEADER.size + len(record.encode())


def test_the_readme_names_every_file_and_its_digest() -> None:
    path = Path(__file__).parents[2] / "vectors" / "README.md"
    assert path.read_text(encoding="utf-8") == readme(FILES)


def test_a_header_is_laid_out_as_the_specification_says() -> None:
    data = FILES["bitmap_array"]
    assert data[:4] == b"ECAT"
    assert data[4] == 1
    assert data[5] == 8
    assert data[6:8] == b"\0\0"
    assert struct.unpack("<I", data[8:12]) == (len(data) - 12,)


def test_bytes_that_are_written_out_by_hand_open_to_the_record() -> None:
    """The content shard once more, without this project's encoder."""
    reference = bytes.fromhex("23931474af08a8785b8b6cda42bfa95e3cc88dfecf5063a84d445be85731fbe2")
    payload = b"".join(
        (
            b"\x93\x00",
            b"\x96\xc4\x20" + reference + b"\xc0" * 5,
            b"\x96\xcf" + (1_789_913_600_000).to_bytes(8, "big") + b"\x00\x00\x01\xce\xff\xff\xff\xff",
            b"\xcf\x7f" + b"\xff" * 7,
        )
    )
    assert b"ECAT\x01\x07\x00\x00" + struct.pack("<I", len(payload)) + payload == FILES["content"]


def test_the_uncompressed_vectors_are_one_generation() -> None:
    records = {digest_of(FILES[name]): VECTORS[name].record for name in PLAIN}
    digest = digest_of(FILES["root"])
    index = Index.assemble(digest, records)
    lookups_stay_inside(index)
    below = everything_below(digest, records)
    beside = {"bitmap_tie", "bitmap_bitset", "bitmap_wide", "root_empty"}
    assert {digest_of(FILES[name]) for name in PLAIN if name not in beside} == below
    assert index.root.parent == digest_of(FILES["root_empty"])
    (content,) = (records[d] for d in index.content)
    assert isinstance(content, ContentShard)
    check_content(index, 0, content)
    assert len(Index.assemble(digest_of(FILES["root_empty"]), records).dictionary) == 0


@pytest.mark.parametrize("name", ["queries", "queries_never_pulled"])
def test_a_query_hash_is_that_of_its_filter(name: str) -> None:
    shard = VECTORS[name].record
    assert isinstance(shard, QueryShard)
    for record in shard.records:
        assert query_hash(json.loads(record.content_filter)) == record.hash


@pytest.mark.parametrize("name", VECTORS)
def test_a_flipped_bit_is_a_wrong_digest(name: str) -> None:
    data, kind = FILES[name], VECTORS[name].record.TYPE
    digest = digest_of(data)
    for flipped in flips(data):
        with pytest.raises(WrongDigest):
            open_record(digest, flipped, kind)


@pytest.mark.parametrize("name", VECTORS)
def test_a_flipped_bit_under_a_right_digest_is_refused_or_gives_a_valid_record(name: str) -> None:
    for flipped in flips(FILES[name]):
        try:
            record = opened(flipped, VECTORS[name].record.TYPE)
        except ContractError:
            continue
        use(record)


@pytest.mark.parametrize("name", VECTORS)
def test_a_cut_file_under_a_right_digest_is_refused(name: str) -> None:
    data, kind = FILES[name], VECTORS[name].record.TYPE
    for length in range(0, len(data), 1 + len(data) // 500):
        with pytest.raises(ContractError):
            opened(data[:length], kind)


@pytest.mark.parametrize("name", [name for name in VECTORS if not name.startswith("bitmap")])
def test_a_cut_payload_under_a_right_header_is_refused(name: str) -> None:
    data, kind = FILES[name], VECTORS[name].record.TYPE
    for length in range(len(data) - HEADER.size):
        cut = data[:8] + struct.pack("<I", length) + data[HEADER.size : HEADER.size + length]
        with pytest.raises(ContractError):
            opened(cut, kind)


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("bitmap")])
def test_a_cut_bitmap_under_a_right_header_is_refused(name: str) -> None:
    data = FILES[name]
    for length in range(0, len(data) - HEADER.size, 1 + len(data) // 500):
        cut = data[:8] + struct.pack("<I", length) + data[HEADER.size : HEADER.size + length]
        with pytest.raises(ContractError):
            opened(cut, ObjectType.BITMAP)


@pytest.mark.parametrize("name", PLAIN)
def test_a_flipped_bit_anywhere_in_a_generation_never_leads_outside_of_it(name: str) -> None:
    """The other objects refer to the flipped one by the digest that they know."""
    good = {digest_of(FILES[other]): VECTORS[other].record for other in PLAIN}
    root, mine = digest_of(FILES["root"]), digest_of(FILES[name])
    for flipped in flips(FILES[name]):
        try:
            index = Index.assemble(root, good | {mine: opened(flipped, VECTORS[name].record.TYPE)})
        except ContractError:
            continue
        lookups_stay_inside(index)
