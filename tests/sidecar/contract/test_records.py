"""Payloads: every record survives a round trip, and every way in which a payload can be wrong is refused as Malformed.

Each wrong payload lies in a sound object under its right digest, so that only the check of the payload can refuse it.
"""

import copy
import json
import struct
import tracemalloc
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from sidecar.contract.objects import ObjectType, digest_of, seal
from sidecar.contract.records import (
    BRANCHED,
    MAX_ORDINAL,
    PLACES,
    Activity,
    Bitmap,
    Branch,
    CatalogRecord,
    CatalogShard,
    ContentSet,
    ContentShard,
    CustomerRecord,
    CustomerShard,
    Enrollment,
    Freshness,
    FreshnessShard,
    Marketing,
    Metadata,
    Modified,
    QueryRecord,
    QueryShard,
    Record,
    Root,
    RunEnrollment,
    Segment,
    branches_of,
    customer_shard,
    open_record,
    seal_record,
    segment_starts,
    segments_of,
)
from sidecar.contract.words import ContentType, PullState
from sidecar.errors import ContractError, Malformed, WrongType

MAX_NUMBER = 2**63 - 1

digests = st.binary(min_size=32, max_size=32)
hashes = st.binary(min_size=16, max_size=16)
numbers = st.integers(0, MAX_NUMBER) | st.integers(0, 300)
ordinals = st.integers(0, MAX_ORDINAL) | st.integers(0, 300)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
types = st.sampled_from(ContentType)
content_sets = st.builds(ContentSet, digests, digests, digests)
overrides = st.dictionaries(ordinals, digests, max_size=4).map(lambda rows: tuple(sorted(rows.items())))
fans = st.dictionaries(st.integers(0, 15), digests, max_size=5)


@st.composite
def roots(draw: st.DrawFn) -> Root:
    ordinals_ = draw(st.integers(0, 50_000))
    return Root(
        epoch=draw(numbers),
        generation=draw(numbers),
        published_at_ms=draw(numbers),
        clock=draw(numbers),
        parent=draw(st.none() | digests),
        ordinals=ordinals_,
        dictionary=tuple(draw(digests) for _ in range(0, len(segment_starts(ordinals_)), 16)),
        content=tuple(draw(digests) for _ in range(0, ordinals_, 16 * 512)),
        queries=draw(fans),
        freshness=draw(fans),
        catalogs=draw(fans),
        customers=draw(fans),
        counts=draw(st.dictionaries(texts, numbers, max_size=4)),
        producer=draw(texts),
    )


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    names = draw(st.lists(keys, unique=True, max_size=20))
    return Segment(
        first=draw(ordinals),
        types=bytes(draw(types) for _ in names),
        keys=tuple(names),
        parents=tuple(draw(st.none() | ordinals) for _ in names),
        uuids=tuple(draw(st.none() | hashes) for _ in names),
    )


@st.composite
def query_records(draw: st.DrawFn, hash_: bytes) -> QueryRecord:
    pulled = draw(st.booleans())
    owned = draw(st.booleans())
    return QueryRecord(
        hash=hash_,
        id=draw(numbers) if owned else None,
        uuid=draw(hashes) if owned else None,
        title=draw(st.none() | texts),
        content_filter=json.dumps(draw(st.dictionaries(texts, st.integers() | texts, max_size=3))),
        v1=draw(content_sets) if pulled else None,
        v2=draw(st.none() | content_sets) if pulled else None,
        overrides_v1=draw(overrides) if pulled else (),
        overrides_v2=draw(overrides) if pulled else (),
    )


@st.composite
def catalog_records(draw: st.DrawFn, uuid: bytes) -> CatalogRecord:
    return CatalogRecord(
        uuid=uuid,
        number=draw(numbers),
        wanted=draw(hashes),
        serving=draw(st.none() | hashes),
        customer=draw(hashes),
        customer_name=draw(texts),
        title=draw(texts),
        course_modes=json.dumps(draw(st.lists(texts, max_size=3))),
        audit_urls=draw(st.booleans()),
        created_ms=draw(numbers),
        modified_ms=draw(numbers),
    )


@st.composite
def shards(draw: st.DrawFn) -> QueryShard | FreshnessShard | CatalogShard | CustomerShard:
    ids = sorted(draw(st.sets(hashes, max_size=4)))
    match draw(st.sampled_from([QueryShard, FreshnessShard, CatalogShard, CustomerShard])):
        case c if c is QueryShard:
            return QueryShard(tuple(draw(query_records(i)) for i in ids))
        case c if c is FreshnessShard:
            states = st.sampled_from(PullState)
            times, tasks = st.none() | numbers, st.none() | hashes
            return FreshnessShard(tuple(Freshness(i, draw(times), draw(states), draw(tasks), draw(times)) for i in ids))
        case c if c is CatalogShard:
            return CatalogShard(tuple(draw(catalog_records(i)) for i in ids))
    return CustomerShard(
        tuple(CustomerRecord(i, draw(texts), draw(st.booleans()), draw(texts), draw(numbers)) for i in ids)
    )


@st.composite
def content_shards(draw: st.DrawFn) -> ContentShard:
    rows = draw(st.lists(st.tuples(st.none() | digests, numbers), max_size=8))
    return ContentShard(draw(ordinals), tuple(d for d, _ in rows), tuple(t for _, t in rows))


bitmaps = st.builds(
    lambda singles, ranges: Bitmap.of({*singles, *(n for first, size in ranges for n in range(first, first + size))}),
    st.sets(ordinals, max_size=50),
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 6000)), max_size=3),
)
bins = st.binary(max_size=30)
places = st.one_of(
    st.builds(Modified),
    st.builds(Marketing, bins, bins, bins),
    st.builds(Activity, bins),
    st.builds(Enrollment, st.booleans(), bins, st.none() | bins, bins, st.none() | bins),
    st.builds(RunEnrollment, bins, bins, bins),
)
documents = st.builds(Metadata, keys, types, st.lists(bins | places, max_size=5).map(tuple))
branches = st.builds(Branch, st.sampled_from(sorted(BRANCHED)), fans.filter(bool))
records = st.one_of(roots(), branches, segments(), shards(), content_shards(), bitmaps, documents)


@given(records)
def test_every_record_survives_a_round_trip(record: Record) -> None:
    sealed = seal_record(record)
    opened = open_record(sealed.digest, sealed.data, record.TYPE)
    assert opened == record
    assert type(opened) is type(record)
    assert seal_record(opened) == sealed
    for other in set(ObjectType) - {record.TYPE}:
        with pytest.raises(WrongType):
            open_record(sealed.digest, sealed.data, other)


@given(records)
def test_a_payload_cut_short_or_followed_by_anything_is_refused(record: Record) -> None:
    payload = record.encode()
    refused(record.TYPE, payload[:-1])
    for more in (b"\0", b"\xc0", payload):
        refused(record.TYPE, payload + more)


# What any msgpack payload may be instead.


def refused(kind: ObjectType, payload: bytes) -> str:
    """The text of the error with which this payload is refused inside of a sound object."""
    sealed = seal(kind, payload)
    with pytest.raises(Malformed) as caught:
        open_record(sealed.digest, sealed.data, kind)
    return str(caught.value)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


MSGPACK_TYPES = [kind for kind in ObjectType if kind is not ObjectType.BITMAP]
TIMESTAMP = pack(msgpack.Timestamp(1, 1))
NO_RECORDS = {
    "nothing": b"",
    "the byte that is never used": b"\xc1",
    "a list cut short": b"\x93\x01",
    "a list of more than there are bytes": b"\xdd\xff\xff\xff\xff",
    "a map of more than there are bytes": b"\xdf\xff\xff\xff\xff",
    "text of more than there are bytes": b"\xdb\xff\xff\xff\xff",
    "bytes of more than there are bytes": b"\xc6\xff\xff\xff\xff",
    "a second value": b"\x90\x90",
    "an extension": b"\xd4\x05\x00",
    "a timestamp": TIMESTAMP,
    "a timestamp of a wrong length": b"\xc7\x05\xff12345",
    "a timestamp of too many nanoseconds": b"\xc7\x0c\xff" + b"\xff" * 12,
    "an extension in a list": b"\x91\xd4\x05\x00",
    "a timestamp in a list": b"\x91" + TIMESTAMP,
    "text that is not utf-8": b"\x91\xa2\xc3\x28",
    "a surrogate": b"\x91\xa3\xed\xa0\x80",
    "an overlong nul": b"\x91\xa2\xc0\x80",
    "nested 600 deep": b"\x91" * 600 + b"\x90",
    "nested 1,000 deep": b"\x91" * 1000 + b"\x90",
    "nested 100,000 deep": b"\x91" * 100_000 + b"\x90",
    "maps nested 100,000 deep": b"\x81\xa0" * 100_000 + b"\x80",
    "nil": b"\xc0",
    "true": b"\xc3",
    "a number": b"\x07",
    "a float": pack(1.5),
    "text": pack("text"),
    "bytes": pack(b"bytes"),
    "a map": pack({"a": 1}),
    "a map with a key that is a number": b"\x81\x01\x02",
    "a map with a key that is a list": b"\x81\x90\x02",
    "a map with a key that is nil": b"\x81\xc0\x02",
    "a map with a key that is bytes": pack({b"a": 1}),
    "a list of one": pack([1]),
    "a list of lists of one": pack([[1]]),
    "a list of lists of none": pack([[]]),
    "a list of maps": pack([{}]),
    "a list of nil": pack([None]),
    "sixteen bits for an empty list": b"\xdc\x00\x00",
}


@pytest.mark.parametrize("payload", NO_RECORDS.values(), ids=NO_RECORDS.keys())
def test_what_is_no_record_at_all_is_refused(payload: bytes) -> None:
    for kind in MSGPACK_TYPES:
        refused(kind, payload)
    refused(ObjectType.BITMAP, payload)


# A good value of each type as it stands in msgpack, and what each of its fields must not be.

D1, D2, D3 = (bytes([n]) * 32 for n in (1, 2, 3))
H1, H2, H3 = (bytes([n]) * 16 for n in (1, 2, 3))
MASK = bytes([0b1000_0010, 0b1000_0000])
FAN = MASK + D1 + D2 + D3
NOTHING = bytes(2)

ROOT: dict[str, Any] = {
    "format": 1,
    "epoch": 1,
    "generation": 2,
    "published_at_ms": 3,
    "clock": 4,
    "parent": None,
    "ordinals": 17 * 1024 + 266,
    "dictionary": D1 + D2,
    "content": D1 + D2 + D3,
    "queries": FAN,
    "freshness": FAN,
    "catalogs": NOTHING,
    "customers": FAN,
    "counts": {"a": 1, "b": 2},
    "producer": "tests",
}
BRANCH: list[Any] = [3, FAN]
SEGMENT: list[Any] = [5, b"\x01\x02\x03", ["a", "b", "c"], [None, 5, None], [H1, None, None]]
QUERIES: list[Any] = [
    [H1, 1, H2, "title", "{}", [D1, D2, D3], [D1, D1, D1], [[0, D1], [7, D2]], [[1, D3]]],
    [H2, None, None, None, "{}", None, None, [], []],
]
FRESHNESS: list[Any] = [[H1, 1, 1, H2, 3], [H2, None, 0, None, None]]
CATALOGS: list[Any] = [
    [H1, 1, H1, H2, H3, "customer", "title", '["audit"]', True, 1, 2],
    [H2, 2, H1, None, H3, "", "", "{}", False, 0, 0],
]
CUSTOMERS: list[Any] = [[H1, "slug", True, "name", 1], [H2, "", False, "", 0]]
CONTENT: list[Any] = [512, [D1, None, D1], [1, 0, 2]]
METADATA: list[Any] = [
    "key",
    1,
    [
        b"part",
        [1],
        b"",
        [2, b"plain", b"head", b""],
        [3, b"activity"],
        [4, False, b"course", None, b"target", None],
        [4, True, b"course", b"run", b"target", b"sku"],
        [5, b"course", b"run", b"target"],
    ],
]
GOOD: Mapping[ObjectType, Any] = {
    ObjectType.ROOT: ROOT,
    ObjectType.BRANCH: BRANCH,
    ObjectType.SEGMENT: SEGMENT,
    ObjectType.QUERIES: QUERIES,
    ObjectType.FRESHNESS: FRESHNESS,
    ObjectType.CATALOGS: CATALOGS,
    ObjectType.CUSTOMERS: CUSTOMERS,
    ObjectType.CONTENT: CONTENT,
    ObjectType.METADATA: METADATA,
}

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
OTHERS = {
    "nil": None,
    "true": True,
    "false": False,
    "zero": 0,
    "number": 7,
    "float": 1.0,
    "text": "t",
    "bytes": b"b",
    "list": [],
    "list of one": [1],
    "map": {},
    "deep": DEEP,
    "timestamp": msgpack.Timestamp(1, 1),
    "extension": msgpack.ExtType(5, b"x"),
}
LONG = [0] * 2000
NOT_NUMBER = [v for k, v in OTHERS.items() if k not in ("zero", "number")] + [
    -1,
    MAX_NUMBER + 1,
    2**64 - 1,
    -(2**63),
    LONG,
]
NOT_ORDINAL = [*NOT_NUMBER, MAX_ORDINAL + 1]
NOT_TEXT = [v for k, v in OTHERS.items() if k != "text"]
NOT_KEY = [*NOT_TEXT, ""]
NOT_BYTES = [v for k, v in OTHERS.items() if k != "bytes"]
NOT_LIST = [v for k, v in OTHERS.items() if k not in ("list", "list of one", "deep")]
NOT_BOOL = [v for k, v in OTHERS.items() if k not in ("true", "false")] + [LONG]
NOT_DIGEST = [*OTHERS.values(), b"", D1[:-1], D1 + b"\0", "d" * 32, D1.hex()]
NOT_HASH = [*OTHERS.values(), b"", H1[:-1], H1 + b"\0", D1, "h" * 16, H1.hex()]
NOT_JSON = [*NOT_TEXT, "", "{", "{'a': 1}", "{} {}", '{"a":}', "[" * 100_000, "nul", "\ufeff{}", "9" * 10_000]


def but_nil(values: Sequence[Any]) -> list[Any]:
    return [v for v in values if v is not None]


NOT_ROW = [v for k, v in OTHERS.items() if k not in ("list", "list of one")]
NOT_DIGESTS = [*NOT_BYTES, D1 + D2, D1 + D2 + D3[:-1], D1 + D2 + D3 + b"\0", D1 + D2 + D3 + D1, b""]
NOT_FAN = [
    *OTHERS.values(),
    b"",
    MASK[:-1],
    MASK,
    MASK + D1,
    MASK + D1 + D2,
    MASK + D1 + D2 + D3[:-1],
    MASK + D1 + D2 + D3 + b"\0",
    MASK + D1 + D2 + D3 + D1,
    NOTHING + D1,
    b"\xff" * 2 + D1 * 15,
]
NOT_OVERRIDES = [
    *NOT_LIST,
    *([row] for row in NOT_ROW),
    [[]],
    [[0]],
    [[0, D1, D1]],
    *([[ordinal, D1]] for ordinal in NOT_ORDINAL),
    *([[0, digest]] for digest in NOT_DIGEST),
    [[7, D1], [0, D2]],
    [[7, D1], [7, D1]],
    [[7, D1], [7, D2]],
]
NOT_CONTENT_SET = [
    *(v for v in OTHERS.values() if v is not None),
    [],
    [D1, D2],
    [D1, D2, D3, D1],
    *([digest, D1, D1] for digest in NOT_DIGEST),
    *([D1, digest, D1] for digest in NOT_DIGEST),
    *([D1, D1, digest] for digest in NOT_DIGEST),
]
NOT_STATE = [*NOT_NUMBER, 5, 6, 255]
NOT_TYPE = [*NOT_NUMBER, 0, 5, 255]
NOT_PART = [v for k, v in OTHERS.items() if k not in ("bytes", "list of one")]

FIELDS: list[tuple[ObjectType, tuple[str | int, ...], Sequence[Any]]] = [
    (ObjectType.ROOT, ("format",), [*NOT_NUMBER, 0, 2, 3]),
    *((ObjectType.ROOT, (name,), NOT_NUMBER) for name in ("epoch", "generation", "published_at_ms", "clock")),
    (ObjectType.ROOT, ("parent",), but_nil(NOT_DIGEST)),
    (ObjectType.ROOT, ("ordinals",), [*NOT_NUMBER, 0, 1, 2**32, MAX_NUMBER, 16 * 1024, 24 * 1024 + 1]),
    (ObjectType.ROOT, ("dictionary",), [*NOT_BYTES, b"", D1, D1 + D2[:-1], D1 + D2 + D3]),
    (ObjectType.BRANCH, (0,), [*NOT_NUMBER, 0, 1, 6, 8, 9, 10, 11, 255]),
    (ObjectType.BRANCH, (1,), [*NOT_FAN, NOTHING]),
    (ObjectType.ROOT, ("content",), NOT_DIGESTS),
    *((ObjectType.ROOT, (name,), NOT_FAN) for name in ("queries", "freshness", "catalogs", "customers")),
    (ObjectType.ROOT, ("counts",), [v for k, v in OTHERS.items() if k != "map"] + [{b"a": 1}]),
    (ObjectType.ROOT, ("counts", "a"), NOT_NUMBER),
    (ObjectType.ROOT, ("producer",), NOT_TEXT),
    (ObjectType.SEGMENT, (0,), NOT_ORDINAL),
    (ObjectType.SEGMENT, (1,), [*NOT_BYTES, b"", b"\1\2", b"\1\2\3\4", b"\0\1\2", b"\1\2\5", b"\xff\1\2"]),
    *((ObjectType.SEGMENT, (column,), [*NOT_LIST, []]) for column in (2, 3, 4)),
    (ObjectType.SEGMENT, (2,), [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "a"]]),
    (ObjectType.SEGMENT, (3,), [[None, 5], [None, 5, None, None]]),
    (ObjectType.SEGMENT, (4,), [[H1, None], [H1, None, None, None]]),
    (ObjectType.SEGMENT, (2, 1), NOT_KEY),
    (ObjectType.SEGMENT, (3, 1), but_nil(NOT_ORDINAL)),
    (ObjectType.SEGMENT, (4, 0), but_nil(NOT_HASH)),
    (ObjectType.QUERIES, (0, 0), NOT_HASH),
    (ObjectType.QUERIES, (0, 1), [*but_nil(NOT_NUMBER), None]),
    (ObjectType.QUERIES, (0, 2), [*but_nil(NOT_HASH), None]),
    (ObjectType.QUERIES, (1, 1), [1]),
    (ObjectType.QUERIES, (1, 2), [H1]),
    (ObjectType.QUERIES, (0, 3), but_nil(NOT_TEXT)),
    (ObjectType.QUERIES, (0, 4), NOT_JSON),
    (ObjectType.QUERIES, (0, 5), [*NOT_CONTENT_SET, None]),
    (ObjectType.QUERIES, (0, 6), NOT_CONTENT_SET),
    (ObjectType.QUERIES, (0, 7), NOT_OVERRIDES),
    (ObjectType.QUERIES, (0, 8), NOT_OVERRIDES),
    (ObjectType.QUERIES, (1, 6), [[D1, D2, D3]]),
    (ObjectType.QUERIES, (1, 7), [[[0, D1]]]),
    (ObjectType.QUERIES, (1, 8), [[[0, D1]]]),
    (ObjectType.FRESHNESS, (0, 0), NOT_HASH),
    (ObjectType.FRESHNESS, (0, 1), but_nil(NOT_NUMBER)),
    (ObjectType.FRESHNESS, (0, 2), NOT_STATE),
    (ObjectType.FRESHNESS, (0, 3), but_nil(NOT_HASH)),
    (ObjectType.FRESHNESS, (0, 4), but_nil(NOT_NUMBER)),
    *((ObjectType.CATALOGS, (0, column), NOT_HASH) for column in (0, 2, 4)),
    (ObjectType.CATALOGS, (0, 3), but_nil(NOT_HASH)),
    *((ObjectType.CATALOGS, (0, column), NOT_NUMBER) for column in (1, 9, 10)),
    *((ObjectType.CATALOGS, (0, column), NOT_TEXT) for column in (5, 6)),
    (ObjectType.CATALOGS, (0, 7), NOT_JSON),
    (ObjectType.CATALOGS, (0, 8), NOT_BOOL),
    (ObjectType.CUSTOMERS, (0, 0), NOT_HASH),
    (ObjectType.CUSTOMERS, (0, 1), NOT_TEXT),
    (ObjectType.CUSTOMERS, (0, 2), NOT_BOOL),
    (ObjectType.CUSTOMERS, (0, 3), NOT_TEXT),
    (ObjectType.CUSTOMERS, (0, 4), NOT_NUMBER),
    (ObjectType.CONTENT, (0,), NOT_ORDINAL),
    (ObjectType.CONTENT, (1,), [*NOT_LIST, [], [D1, None], [D1] * 4]),
    (ObjectType.CONTENT, (1, 0), but_nil(NOT_DIGEST)),
    (ObjectType.CONTENT, (2,), [*NOT_LIST, [], [1, 2], [1] * 4]),
    (ObjectType.CONTENT, (2, 0), NOT_NUMBER),
    (ObjectType.METADATA, (0,), NOT_KEY),
    (ObjectType.METADATA, (1,), NOT_TYPE),
    (ObjectType.METADATA, (2,), NOT_LIST),
    (ObjectType.METADATA, (2, 0), [*NOT_PART, []]),
    *((ObjectType.METADATA, (2, n, 0), [*NOT_NUMBER, 0, 6, 255]) for n in (1, 3, 4, 5, 6, 7)),
    *((ObjectType.METADATA, (2, 3, n), NOT_BYTES) for n in (1, 2, 3)),
    (ObjectType.METADATA, (2, 4, 1), NOT_BYTES),
    (ObjectType.METADATA, (2, 5, 1), NOT_BOOL),
    *((ObjectType.METADATA, (2, 5, n), NOT_BYTES) for n in (2, 4)),
    *((ObjectType.METADATA, (2, 5, n), but_nil(NOT_BYTES)) for n in (3, 5)),
    *((ObjectType.METADATA, (2, 7, n), NOT_BYTES) for n in (1, 2, 3)),
]


def test_every_kind_of_place_is_among_the_good_values() -> None:
    places_ = [part for part in METADATA[2] if isinstance(part, list)]
    assert {code for code, *_ in places_} == set(PLACES.values())
    assert {len(fields) for code, *fields in places_ if code == 4} == {len(Enrollment._fields)}


@pytest.mark.parametrize("place", [n for n, part in enumerate(METADATA[2]) if isinstance(part, list)])
def test_a_place_with_a_field_too_few_or_too_many_is_refused(place: int) -> None:
    for wrong in (METADATA[2][place][:-1], [*METADATA[2][place], b""]):
        refused(ObjectType.METADATA, pack(["key", 1, [wrong]]))


def test_the_good_values_are_good() -> None:
    for kind, value in GOOD.items():
        sealed = seal(kind, pack(value))
        assert open_record(sealed.digest, sealed.data, kind).encode() == pack(value)


@pytest.mark.parametrize(
    "kind, path, values", FIELDS, ids=[f"{k.name.lower()} {'.'.join(map(str, p))}" for k, p, _ in FIELDS]
)
def test_a_field_that_is_not_what_it_has_to_be_is_refused(
    kind: ObjectType, path: tuple[str | int, ...], values: Sequence[Any]
) -> None:
    for value in values:
        wrong = copy.deepcopy(GOOD[kind])
        within = wrong
        for step in path[:-1]:
            within = within[step]
        within[path[-1]] = value
        assert len(refused(kind, pack(wrong))) < 1000


@pytest.mark.parametrize("kind", [ObjectType.SEGMENT, ObjectType.CONTENT, ObjectType.METADATA])
def test_a_record_with_a_field_too_few_or_too_many_is_refused(kind: ObjectType) -> None:
    refused(kind, pack(GOOD[kind][:-1]))
    refused(kind, pack([*GOOD[kind], None]))


@pytest.mark.parametrize("kind", [ObjectType.QUERIES, ObjectType.FRESHNESS, ObjectType.CATALOGS, ObjectType.CUSTOMERS])
def test_a_shard_with_a_wrong_row_is_refused(kind: ObjectType) -> None:
    first, second = GOOD[kind]
    refused(kind, pack([first, second[:-1]]))
    refused(kind, pack([first, [*second, None]]))
    refused(kind, pack([second, first]))
    refused(kind, pack([first, first]))
    refused(kind, pack([first, first[:1] + second[1:]]))
    refused(kind, pack(first))
    for row in NOT_ROW:
        refused(kind, pack([first, row]))


@pytest.mark.parametrize("name", ROOT)
def test_a_root_without_a_field_is_refused(name: str) -> None:
    refused(ObjectType.ROOT, pack({k: v for k, v in ROOT.items() if k != name}))


def test_a_root_with_another_field_is_refused() -> None:
    refused(ObjectType.ROOT, pack(ROOT | {"more": 1}))
    refused(ObjectType.ROOT, pack(ROOT | {"": None}))
    refused(ObjectType.ROOT, pack({k: v for k, v in ROOT.items() if k != "clock"} | {b"clock": 4}))


def test_a_root_that_says_something_twice_is_refused() -> None:
    good = pack(ROOT)
    assert good[0] == 0x80 | len(ROOT)
    refused(ObjectType.ROOT, bytes([good[0] + 1]) + good[1:] + pack("epoch") + pack(1))
    refused(ObjectType.ROOT, bytes([good[0] + 1]) + pack("epoch") + pack(9) + good[1:])
    counts = pack({"a": 1, "b": 2})
    refused(ObjectType.ROOT, good.replace(counts, counts.replace(b"\xa1b", b"\xa1a")))


def test_a_root_of_a_huge_dictionary_is_refused_before_anything_of_its_size_is_built() -> None:
    payload = pack(ROOT | {"ordinals": 2**62})
    tracemalloc.start()
    try:
        refused(ObjectType.ROOT, payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_content_shards_have_to_cover_the_dictionary() -> None:
    for number in (0, 1, 2, 4, 5):
        refused(ObjectType.ROOT, pack(ROOT | {"content": D1 * number}))
    refused(ObjectType.ROOT, pack(ROOT | {"ordinals": 0, "dictionary": b"", "content": D1}))


def test_every_bit_of_a_mask_is_a_child() -> None:
    every = {number: bytes([number]) * 32 for number in range(16)}
    payload = pack(ROOT | {"queries": b"\xff" * 2 + b"".join(every.values())})
    sealed = seal(ObjectType.ROOT, payload)
    root = open_record(sealed.digest, sealed.data, ObjectType.ROOT)
    assert isinstance(root, Root)
    assert root.queries == every
    assert root.freshness == {1: D1, 7: D2, 15: D3}


def test_branches_are_of_sixteen_and_leave_out_what_is_not_there() -> None:
    shards = {number: bytes([number]) * 32 for number in (0, 15, 16, 200, 255)}
    made = branches_of(ObjectType.QUERIES, shards)
    assert {number: list(branch.children) for number, branch in made.items()} == {0: [0, 15], 1: [0], 12: [8], 15: [15]}
    assert {16 * n + place: digest for n, branch in made.items() for place, digest in branch.children.items()} == shards


@given(st.integers(0, 10_000))
def test_the_number_of_segments_is_told_without_making_them(ordinals_: int) -> None:
    assert segments_of(ordinals_) == len(segment_starts(ordinals_))


def _wider(packed: bytes) -> list[bytes]:
    """A small number and short text, bytes and lists in longer forms than they need."""
    assert packed[0] < 0x80
    number = packed[0]
    return [b"\xcc" + packed, struct.pack(">BH", 0xCD, number), struct.pack(">BI", 0xCE, number), b"\xd0" + packed]


def test_a_value_that_is_not_in_its_shortest_form_is_refused() -> None:
    for longer in _wider(b"\x01"):
        refused(ObjectType.METADATA, b"\x93\xa3key" + longer + b"\x90")
    refused(ObjectType.METADATA, b"\x93\xd9\x03key\x01\x90")
    refused(ObjectType.METADATA, b"\x93\xa3key\x01\xdc\x00\x00")
    refused(ObjectType.METADATA, b"\xdc\x00\x03\xa3key\x01\x90")
    refused(ObjectType.METADATA, b"\x93\xa3key\x01\x91\xc5\x00\x01a")
    sealed = seal(ObjectType.METADATA, b"\x93\xa3key\x01\x91\xc4\x01a")
    assert open_record(sealed.digest, sealed.data, ObjectType.METADATA) == Metadata("key", ContentType.COURSE, (b"a",))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=11) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=30,
)


@given(json_like, st.sampled_from(MSGPACK_TYPES))
def test_any_msgpack_is_refused_or_is_a_record(value: Any, kind: ObjectType) -> None:
    sealed = seal(kind, pack(value))
    try:
        record = open_record(sealed.digest, sealed.data, kind)
    except ContractError:
        return
    assert record.encode() == pack(value)


@given(st.data(), st.sampled_from(list(GOOD)))
def test_any_value_in_place_of_another_is_refused_or_gives_a_record(data: st.DataObject, kind: ObjectType) -> None:
    wrong = copy.deepcopy(GOOD[kind])
    within = wrong
    while True:
        steps = list(within) if isinstance(within, dict) else list(range(len(within)))
        step = data.draw(st.sampled_from(steps))
        if not isinstance(within[step], (list, dict)) or not within[step] or data.draw(st.booleans()):
            break
        within = within[step]
    within[step] = data.draw(json_like)
    sealed = seal(kind, pack(wrong))
    try:
        record = open_record(sealed.digest, sealed.data, kind)
    except ContractError:
        return
    again = seal_record(record)
    assert open_record(again.digest, again.data, kind) == record


# Bitmaps are no msgpack.


def one_container(cardinality: int, body: bytes, *, key: int = 0, offset: int = 16) -> bytes:
    return struct.pack("<IIHHI", 12346, 1, key, cardinality - 1, offset) + body


def of_runs(cardinality: int, *runs: tuple[int, int], number: int | None = None) -> bytes:
    """A container of runs of (first, length less one)."""
    header = struct.pack("<IBHHH", 12347, 1, 0, cardinality - 1, len(runs) if number is None else number)
    return header + b"".join(struct.pack("<HH", *run) for run in runs)


def values(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


BITS = bytes([0b0101_0101]) * 8192

WRONG_BITMAPS = {
    "nothing": b"",
    "one byte": b":",
    "another cookie": struct.pack("<II", 12345, 0),
    "the cookie alone": struct.pack("<I", 12346),
    "more containers than bytes": struct.pack("<II", 12346, 1000),
    "more containers than there can be": struct.pack("<II", 12346, 0xFFFF_FFFF),
    "no container, in the form with runs": struct.pack("<IB", 12347, 0),
    "padded": one_container(1, values(5)) + b"\0",
    "followed by itself": one_container(1, values(5)) * 2,
    "empty and padded": struct.pack("<II", 12346, 0) + b"\0",
    "cut": one_container(2, values(5)),
    "another offset": one_container(1, values(5), offset=18),
    "an array out of order": one_container(3, values(9, 2, 1)),
    "an array with a number twice": one_container(2, values(7, 7)),
    "an array that would be smaller as runs": one_container(100, values(*range(100))),
    "keys out of order": struct.pack("<IIHHHHII", 12346, 2, 1, 0, 0, 0, 24, 26) + values(5, 6),
    "a key twice": struct.pack("<IIHHHHII", 12346, 2, 1, 0, 1, 0, 24, 26) + values(5, 6),
    "bits that are fewer than the header says": one_container(40_000, BITS),
    "bits that are more than the header says": one_container(5000, BITS),
    "bits that would be smaller as runs": one_container(65_536, b"\xff" * 8192),
    "runs that would be smaller as an array": of_runs(3, (1, 0), (5, 0), (9, 0)),
    "runs that are as small as an array": of_runs(3, (1, 2)),
    "runs of another cardinality": of_runs(30, (5, 10)),
    "runs that overlap": of_runs(20, (5, 10), (10, 10)),
    "runs that touch": of_runs(20, (0, 9), (10, 9)),
    "runs out of order": of_runs(20, (100, 9), (10, 9)),
    "a run past the end of its container": of_runs(4, (65_535, 3)),
    "no runs": of_runs(1),
    "fewer runs than announced": of_runs(10, (0, 9), number=2),
    "runs that no flag announces": struct.pack("<IBHHH", 12347, 0, 0, 9, 1) + values(0, 9),
    "a flag of a container that is not there": struct.pack("<IBHHH", 12347, 3, 0, 9, 1) + values(0, 9),
    "sixty-four bits": struct.pack("<QI", 1, 0) + one_container(1, values(5)),
}


@pytest.mark.parametrize("payload", WRONG_BITMAPS.values(), ids=WRONG_BITMAPS.keys())
def test_a_bitmap_that_is_not_in_its_one_encoding_is_refused(payload: bytes) -> None:
    refused(ObjectType.BITMAP, payload)


@pytest.mark.parametrize(
    "payload, ordinals_",
    [
        (struct.pack("<II", 12346, 0), []),
        (one_container(1, values(5)), [5]),
        (one_container(3, values(1, 2, 3)), [1, 2, 3]),
        (one_container(1, values(65_535), key=65_535), [0xFFFF_FFFF]),
        (one_container(32_768, BITS), range(0, 65_536, 2)),
        (of_runs(4, (1, 3)), [1, 2, 3, 4]),
        (of_runs(65_536, (0, 65_535)), range(65_536)),
    ],
)
def test_a_bitmap_that_was_written_out_by_hand_is_its_set(payload: bytes, ordinals_: Sequence[int]) -> None:
    sealed = seal(ObjectType.BITMAP, payload)
    bitmap = open_record(sealed.digest, sealed.data, ObjectType.BITMAP)
    assert isinstance(bitmap, Bitmap)
    assert list(bitmap.ordinals) == list(ordinals_)
    assert Bitmap.of(ordinals_).encode() == payload


range_sets = st.lists(st.tuples(st.integers(0, 140_000), st.integers(1, 9) | st.integers(1, 9000)), max_size=6)


@given(range_sets, range_sets, st.booleans())
def test_two_bitmaps_of_one_set_are_the_same_bytes_however_they_came_about(
    left: list[tuple[int, int]], right: list[tuple[int, int]], optimised: bool
) -> None:
    a, b = BitMap(), BitMap()
    for bitmap, ranges in ((a, left), (b, right)):
        for first, size in ranges:
            bitmap.add_range(first, first + size)
    if optimised:
        a.run_optimize()
    for made in (a | b, a & b, a - b, a ^ b):
        canonical = Bitmap.of(made).encode()
        assert Bitmap(made).encode() == canonical
        assert Bitmap.of(reversed(list(made))).encode() == canonical
        assert Bitmap(BitMap(array("I", made))).encode() == canonical
        assert Bitmap.decode(canonical).ordinals == made


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_are_a_bitmap(payload: bytes) -> None:
    for candidate in (payload, payload[:4].join((b":0\0\0", payload)), b";0\0\0" + payload):
        sealed = seal(ObjectType.BITMAP, candidate)
        try:
            bitmap = open_record(sealed.digest, sealed.data, ObjectType.BITMAP)
        except ContractError:
            continue
        assert bitmap.encode() == candidate


# Small rules.


@pytest.mark.parametrize(
    "ordinals_, starts",
    [
        (0, []),
        (1, [(0, 1)]),
        (256, [(0, 256)]),
        (257, [(0, 256), (256, 1)]),
        (1023, [(0, 256), (256, 256), (512, 256), (768, 255)]),
        (1024, [(0, 1024)]),
        (1025, [(0, 1024), (1024, 1)]),
        (2048 + 300, [(0, 1024), (1024, 1024), (2048, 256), (2304, 44)]),
    ],
)
def test_segments_are_of_1024_and_the_tail_of_256(ordinals_: int, starts: list[tuple[int, int]]) -> None:
    assert segment_starts(ordinals_) == starts


@given(hashes)
def test_the_shard_of_a_customer_is_the_first_digit_of_its_uuid(uuid: bytes) -> None:
    assert customer_shard(uuid) == int(uuid.hex()[0], 16)


@given(records)
def test_references_are_the_digests_in_the_payload(record: Record) -> None:
    payload = record.encode()
    for kind, digest in record.references():
        assert digest in payload
        assert kind in ObjectType


def test_an_error_names_the_type_and_the_digest() -> None:
    sealed = seal(ObjectType.CATALOGS, pack([1]))
    assert refused(ObjectType.CATALOGS, pack([1])).startswith(f"catalogs {digest_of(sealed.data).hex()}: ")
