"""The object types: a dataclass each, with its payload's codec (sections 3 and 4 of the contract). Pure.

Decoding trusts nothing: it returns a value that follows the contract, or raises Malformed. What needs more than one
object to be checked is checked in `index`. msgpack's and pyroaring's exceptions stop in this file.
"""

import json
import reprlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeVar

import msgpack
from pyroaring import BitMap

from sidecar.contract.objects import DIGEST_BYTES, FORMAT_VERSION, ObjectType, Sealed, seal, unseal
from sidecar.contract.words import ContentType, PullState
from sidecar.errors import Malformed

SEGMENT_ORDINALS: Final = 1024
TAIL_SEGMENT_ORDINALS: Final = 256
CONTENT_SHARD_ORDINALS: Final = 512
BRANCH_CHILDREN: Final = 16
MAX_ORDINAL: Final = 0xFFFF_FFFF
_MAX_TIME_MS: Final = 0x7FFF_FFFF_FFFF_FFFF
_TYPES: Final = frozenset(int(t) for t in ContentType)
BRANCHED: Final = frozenset(
    {ObjectType.SEGMENT, ObjectType.QUERIES, ObjectType.FRESHNESS, ObjectType.CATALOGS, ObjectType.CONTENT}
)

Reference = tuple[ObjectType, bytes]
T = TypeVar("T")


def segment_starts(ordinals: int) -> list[tuple[int, int]]:
    """(first ordinal, count) of every dictionary segment of a dictionary of this many ordinals."""
    full = ordinals // SEGMENT_ORDINALS * SEGMENT_ORDINALS
    starts = [(first, SEGMENT_ORDINALS) for first in range(0, full, SEGMENT_ORDINALS)]
    tail = range(full, ordinals, TAIL_SEGMENT_ORDINALS)
    return starts + [(first, min(TAIL_SEGMENT_ORDINALS, ordinals - first)) for first in tail]


def segments_of(ordinals: int) -> int:
    """How many segments that is."""
    full, rest = divmod(ordinals, SEGMENT_ORDINALS)
    return full - (-rest // TAIL_SEGMENT_ORDINALS)


def customer_shard(uuid: bytes) -> int:
    """The shard of a customer: the first four bits of its uuid."""
    return uuid[0] >> 4


@dataclass(frozen=True, slots=True)
class Root:
    """One generation: what it covers, and the digests of everything below it."""

    TYPE: ClassVar = ObjectType.ROOT

    epoch: int
    generation: int
    published_at_ms: int
    clock: int
    parent: bytes | None
    ordinals: int
    dictionary: tuple[bytes, ...]
    content: tuple[bytes, ...]
    queries: Mapping[int, bytes]
    freshness: Mapping[int, bytes]
    catalogs: Mapping[int, bytes]
    customers: Mapping[int, bytes]
    counts: Mapping[str, int]
    producer: str

    def encode(self) -> bytes:
        return _pack(
            {
                "format": FORMAT_VERSION,
                "epoch": self.epoch,
                "generation": self.generation,
                "published_at_ms": self.published_at_ms,
                "clock": self.clock,
                "parent": self.parent,
                "ordinals": self.ordinals,
                "dictionary": b"".join(self.dictionary),
                "content": b"".join(self.content),
                "queries": _pack_fan(self.queries),
                "freshness": _pack_fan(self.freshness),
                "catalogs": _pack_fan(self.catalogs),
                "customers": _pack_fan(self.customers),
                "counts": dict(sorted(self.counts.items())),
                "producer": self.producer,
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        fields = _unpack(payload)
        names = (*cls.__slots__, "format")
        if not isinstance(fields, dict) or set(fields) != set(names):
            raise Malformed(f"a root is a map of {', '.join(sorted(names))}")
        if _number(fields["format"], "format") != FORMAT_VERSION:
            raise Malformed(f"a root of format {fields['format']}")
        counts = fields["counts"]
        if not isinstance(counts, dict):
            raise Malformed("counts: not a map")
        root = cls(
            epoch=_number(fields["epoch"], "epoch"),
            generation=_number(fields["generation"], "generation"),
            published_at_ms=_time(fields["published_at_ms"], "published_at_ms"),
            clock=_number(fields["clock"], "clock"),
            parent=_optional(_digest)(fields["parent"], "parent"),
            ordinals=_number(fields["ordinals"], "ordinals"),
            dictionary=tuple(_digests(fields["dictionary"], "dictionary")),
            content=tuple(_digests(fields["content"], "content")),
            queries=_fan(fields["queries"], "queries"),
            freshness=_fan(fields["freshness"], "freshness"),
            catalogs=_fan(fields["catalogs"], "catalogs"),
            customers=_fan(fields["customers"], "customers"),
            counts={_text(name, "counts"): _number(n, "counts") for name, n in counts.items()},
            producer=_text(fields["producer"], "producer"),
        )
        for name, branches, children in (
            ("dictionary", root.dictionary, segments_of(root.ordinals)),
            ("content", root.content, -(-root.ordinals // CONTENT_SHARD_ORDINALS)),
        ):
            if len(branches) != -(-children // BRANCH_CHILDREN):
                raise Malformed(f"{name}: {len(branches)} branches for {root.ordinals} ordinals")
        if root.encode() != payload:
            raise Malformed("a root whose names are in another order")
        return root

    def references(self) -> Iterator[Reference]:
        for branches in (self.dictionary, self.content):
            for digest in branches:
                yield ObjectType.BRANCH, digest
        for fan in (self.queries, self.freshness, self.catalogs):
            for digest in fan.values():
                yield ObjectType.BRANCH, digest
        for digest in self.customers.values():
            yield ObjectType.CUSTOMERS, digest


@dataclass(frozen=True, slots=True)
class Branch:
    """Sixteen places of one of the root's lists, so that what changes in one of them moves the digests of no others."""

    TYPE: ClassVar = ObjectType.BRANCH

    kind: ObjectType
    children: Mapping[int, bytes]

    def encode(self) -> bytes:
        return _pack([self.kind, _pack_fan(self.children)])

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        kind, children = _row(_unpack(payload), 2, "branch")
        if _number(kind, "kind") not in BRANCHED:
            raise Malformed(f"a branch of type {kind}")
        branch = cls(ObjectType(kind), _fan(children, "branch"))
        if not branch.children:
            raise Malformed("a branch without children")
        return branch

    def references(self) -> Iterator[Reference]:
        return ((self.kind, digest) for digest in self.children.values())


def branches_of(kind: ObjectType, children: Mapping[int, bytes]) -> dict[int, Branch]:
    """The branches, by number, over the objects of one kind by their numbers: shards by first byte, others by place."""
    fans: dict[int, dict[int, bytes]] = {}
    for number in sorted(children):
        fans.setdefault(number // BRANCH_CHILDREN, {})[number % BRANCH_CHILDREN] = children[number]
    return {number: Branch(kind, fan) for number, fan in fans.items()}


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive ordinals of the dictionary, a column each for type, key, parent and uuid."""

    TYPE: ClassVar = ObjectType.SEGMENT

    first: int
    types: bytes
    keys: tuple[str, ...]
    parents: tuple[int | None, ...]
    uuids: tuple[bytes | None, ...]

    def encode(self) -> bytes:
        return _pack([self.first, self.types, self.keys, self.parents, self.uuids])

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        first, types, keys, parents, uuids = _row(_unpack(payload), 5, "segment")
        segment = cls(
            first=_ordinal(first, "first ordinal"),
            types=_bytes(types, "types"),
            keys=tuple(_key(k, "key") for k in _list(keys, "keys")),
            parents=tuple(_optional(_ordinal)(p, "parent") for p in _list(parents, "parents")),
            uuids=tuple(_optional(_uuid)(u, "uuid") for u in _list(uuids, "uuids")),
        )
        if len({len(segment.types), len(segment.keys), len(segment.parents), len(segment.uuids)}) != 1:
            raise Malformed("segment: columns of different lengths")
        if not _TYPES.issuperset(segment.types):
            raise Malformed(f"segment: unknown content types {sorted(set(segment.types) - _TYPES)}")
        if len(set(segment.keys)) != len(segment.keys):
            raise Malformed("segment: a content key twice")
        return segment

    def references(self) -> Iterator[Reference]:
        return iter(())


@dataclass(frozen=True, slots=True)
class ContentSet:
    """The digests of a query's three bitmaps, for one version of the API; `unlisted`: members that no page lists."""

    members: bytes
    contained: bytes
    unlisted: bytes


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """A content filter and its compiled results; `v1` is None until its first pull passes."""

    hash: bytes
    id: int | None
    uuid: bytes | None
    title: str | None
    content_filter: str
    v1: ContentSet | None
    v2: ContentSet | None
    overrides_v1: tuple[tuple[int, bytes], ...] = ()
    overrides_v2: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class QueryShard:
    """The query records whose hashes begin with one byte."""

    TYPE: ClassVar = ObjectType.QUERIES

    records: tuple[QueryRecord, ...]

    def encode(self) -> bytes:
        def three(s: ContentSet | None) -> list[bytes] | None:
            return None if s is None else [s.members, s.contained, s.unlisted]

        rows = [
            (r.hash, r.id, r.uuid, r.title, r.content_filter, three(r.v1), three(r.v2), r.overrides_v1, r.overrides_v2)
            for r in self.records
        ]
        return _pack(rows)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        shard = cls(tuple(cls._record(row) for row in _rows(_unpack(payload), 9, "query shard")))
        _ascending([r.hash for r in shard.records], "query shard")
        return shard

    @staticmethod
    def _record(row: Sequence[Any]) -> QueryRecord:
        record = QueryRecord(
            hash=_hash(row[0], "query hash"),
            id=_optional(_number)(row[1], "query id"),
            uuid=_optional(_uuid)(row[2], "query uuid"),
            title=_optional(_text)(row[3], "query title"),
            content_filter=_json(row[4], "content filter"),
            v1=_optional(_content_set)(row[5], "content set"),
            v2=_optional(_content_set)(row[6], "content set"),
            overrides_v1=_overrides(row[7]),
            overrides_v2=_overrides(row[8]),
        )
        if record.v1 is None and (record.v2 is not None or record.overrides_v1 or record.overrides_v2):
            raise Malformed(f"query {record.hash.hex()}: never pulled, and yet it has content")
        if (record.id is None) is not (record.uuid is None):
            raise Malformed(f"query {record.hash.hex()}: an id and a uuid go together")
        return record

    def references(self) -> Iterator[Reference]:
        for record in self.records:
            for content in (record.v1, record.v2):
                if content is not None:
                    yield ObjectType.BITMAP, content.members
                    yield ObjectType.BITMAP, content.contained
                    yield ObjectType.BITMAP, content.unlisted
            for _, digest in record.overrides_v1 + record.overrides_v2:
                yield ObjectType.METADATA, digest


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a query's content was pulled, how its last pull ended, and when its members' documents last changed."""

    hash: bytes
    pulled_at_ms: int | None
    state: PullState
    task_id: bytes | None
    modified_ms: int | None


@dataclass(frozen=True, slots=True)
class FreshnessShard:
    """The freshness of the queries whose hashes begin with one byte."""

    TYPE: ClassVar = ObjectType.FRESHNESS

    records: tuple[Freshness, ...]

    def encode(self) -> bytes:
        return _pack([[r.hash, r.pulled_at_ms, r.state, r.task_id, r.modified_ms] for r in self.records])

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        states = frozenset(int(s) for s in PullState)
        records = []
        for hash_, pulled_at_ms, state, task_id, modified_ms in _rows(_unpack(payload), 5, "freshness shard"):
            if _number(state, "state") not in states:
                raise Malformed(f"freshness shard: unknown state {state}")
            records.append(
                Freshness(
                    hash=_hash(hash_, "query hash"),
                    pulled_at_ms=_optional(_time)(pulled_at_ms, "pulled at"),
                    state=PullState(state),
                    task_id=_optional(_uuid)(task_id, "task id"),
                    modified_ms=_optional(_time)(modified_ms, "modified"),
                )
            )
        _ascending([r.hash for r in records], "freshness shard")
        return cls(tuple(records))

    def references(self) -> Iterator[Reference]:
        return iter(())


@dataclass(frozen=True, slots=True)
class CatalogRecord:
    """One enterprise catalog as the registry has it; `serving` is None until a first pull passes."""

    uuid: bytes
    number: int
    wanted: bytes
    serving: bytes | None
    customer: bytes
    customer_name: str
    title: str
    course_modes: str
    audit_urls: bool
    created_ms: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class CatalogShard:
    """The catalogs whose uuids begin with one byte."""

    TYPE: ClassVar = ObjectType.CATALOGS

    records: tuple[CatalogRecord, ...]

    def encode(self) -> bytes:
        return _pack(
            [
                (
                    *(r.uuid, r.number, r.wanted, r.serving, r.customer, r.customer_name, r.title),
                    *(r.course_modes, r.audit_urls, r.created_ms, r.modified_ms),
                )
                for r in self.records
            ]
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        shard = cls(
            tuple(
                CatalogRecord(
                    uuid=_uuid(row[0], "catalog uuid"),
                    number=_number(row[1], "creation number"),
                    wanted=_hash(row[2], "wanted hash"),
                    serving=_optional(_hash)(row[3], "serving hash"),
                    customer=_uuid(row[4], "customer uuid"),
                    customer_name=_text(row[5], "customer name"),
                    title=_text(row[6], "title"),
                    course_modes=_json(row[7], "course modes"),
                    audit_urls=_bool(row[8], "audit urls"),
                    created_ms=_time(row[9], "created"),
                    modified_ms=_time(row[10], "modified"),
                )
                for row in _rows(_unpack(payload), 11, "catalog shard")
            )
        )
        _ascending([r.uuid for r in shard.records], "catalog shard")
        return shard

    def references(self) -> Iterator[Reference]:
        return iter(())


@dataclass(frozen=True, slots=True)
class CustomerRecord:
    """What the LMS says of an enterprise customer."""

    uuid: bytes
    slug: str
    portal: bool
    name: str
    modified_ms: int


@dataclass(frozen=True, slots=True)
class CustomerShard:
    """The customers of one shard."""

    TYPE: ClassVar = ObjectType.CUSTOMERS

    records: tuple[CustomerRecord, ...]

    def encode(self) -> bytes:
        return _pack([[r.uuid, r.slug, r.portal, r.name, r.modified_ms] for r in self.records])

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        shard = cls(
            tuple(
                CustomerRecord(
                    uuid=_uuid(row[0], "customer uuid"),
                    slug=_text(row[1], "slug"),
                    portal=_bool(row[2], "portal"),
                    name=_text(row[3], "name"),
                    modified_ms=_time(row[4], "modified"),
                )
                for row in _rows(_unpack(payload), 5, "customer shard")
            )
        )
        _ascending([r.uuid for r in shard.records], "customer shard")
        return shard

    def references(self) -> Iterator[Reference]:
        return iter(())


@dataclass(frozen=True, slots=True)
class ContentShard:
    """Metadata digest and time of the last change for 512 consecutive ordinals."""

    TYPE: ClassVar = ObjectType.CONTENT

    first: int
    metadata: tuple[bytes | None, ...]
    modified_ms: tuple[int, ...]

    def encode(self) -> bytes:
        return _pack([self.first, self.metadata, self.modified_ms])

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        first, metadata, modified_ms = _row(_unpack(payload), 3, "content shard")
        shard = cls(
            first=_ordinal(first, "first ordinal"),
            metadata=tuple(_optional(_digest)(d, "metadata") for d in _list(metadata, "metadata")),
            modified_ms=tuple(_time(t, "modified") for t in _list(modified_ms, "modified")),
        )
        if len(shard.metadata) != len(shard.modified_ms):
            raise Malformed("content shard: columns of different lengths")
        return shard

    def references(self) -> Iterator[Reference]:
        for digest in self.metadata:
            if digest is not None:
                yield ObjectType.METADATA, digest


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A set of ordinals."""

    TYPE: ClassVar = ObjectType.BITMAP

    ordinals: BitMap

    @classmethod
    def of(cls, ordinals: Iterable[int]) -> Self:
        """The bitmap of these ordinals."""
        array_ = ordinals.to_array() if isinstance(ordinals, BitMap) else array("I", sorted(ordinals))
        return cls(_optimised(BitMap(array_)))

    def encode(self) -> bytes:
        """The one encoding of the set, whatever operations have made the bitmap."""
        optimised = _optimised(self.ordinals.copy())
        if optimised.get_statistics()["n_run_containers"]:
            # A container that is as small either way stays what it was: of runs, where set operations have made it.
            optimised = _optimised(BitMap(self.ordinals.to_array()))
        return bytes(optimised.serialize())

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        try:
            bitmap = BitMap.deserialize(payload)
        except (ValueError, IndexError) as error:
            raise Malformed(f"bitmap: {error}") from error
        record = cls(bitmap)
        if record.encode() != payload:
            raise Malformed("bitmap: bytes that its set would not be written as")
        return record

    def references(self) -> Iterator[Reference]:
        return iter(())


class Modified(NamedTuple):
    """The place of the time of the last change."""


class Marketing(NamedTuple):
    """The place of a marketing_url: plain, or head, utm_source and tail."""

    plain: bytes
    head: bytes
    tail: bytes


class Activity(NamedTuple):
    """The place of the member xapi_activity_id."""

    activity: bytes


class Enrollment(NamedTuple):
    """The place of the member enrollment_url of a course or a course run."""

    executive: bool
    course: bytes
    run: bytes | None
    target: bytes
    sku: bytes | None


class RunEnrollment(NamedTuple):
    """The place of the members enrollment_url and parent_content_key of a run that is nested in its course."""

    course: bytes
    run: bytes
    target: bytes


Place = Modified | Marketing | Activity | Enrollment | RunEnrollment
Part = bytes | Place
PLACES: Final[Mapping[type[Place], int]] = {Modified: 1, Marketing: 2, Activity: 3, Enrollment: 4, RunEnrollment: 5}


@dataclass(frozen=True, slots=True)
class Metadata:
    """One content document: the parts of its JSON text, and the places of what a catalog has values of its own for."""

    TYPE: ClassVar = ObjectType.METADATA

    key: str
    type: ContentType
    parts: tuple[Part, ...]

    def encode(self) -> bytes:
        parts = [part if isinstance(part, bytes) else [PLACES[type(part)], *part] for part in self.parts]
        return _pack([self.key, self.type, parts])

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        key, kind, parts = _row(_unpack(payload), 3, "metadata")
        if _number(kind, "type") not in _TYPES:
            raise Malformed(f"metadata: unknown content type {kind}")
        return cls(_key(key, "key"), ContentType(kind), tuple(_part(p) for p in _list(parts, "parts")))

    def references(self) -> Iterator[Reference]:
        return iter(())


Record = (
    Root
    | Branch
    | Segment
    | QueryShard
    | FreshnessShard
    | CatalogShard
    | CustomerShard
    | ContentShard
    | Bitmap
    | Metadata
)

_RECORDS: Final[Mapping[ObjectType, type[Record]]] = {
    ObjectType.ROOT: Root,
    ObjectType.BRANCH: Branch,
    ObjectType.SEGMENT: Segment,
    ObjectType.QUERIES: QueryShard,
    ObjectType.FRESHNESS: FreshnessShard,
    ObjectType.CATALOGS: CatalogShard,
    ObjectType.CUSTOMERS: CustomerShard,
    ObjectType.CONTENT: ContentShard,
    ObjectType.BITMAP: Bitmap,
    ObjectType.METADATA: Metadata,
}


def seal_record(record: Record) -> Sealed:
    """The object that holds this record."""
    return seal(record.TYPE, record.encode())


def open_record(digest: bytes, data: bytes, expected: ObjectType) -> Record:
    """The record in the object that a reference calls `digest` and `expected`; any ContractError if it is not sound."""
    try:
        return _RECORDS[expected].decode(unseal(digest, data, expected))
    except Malformed as error:
        raise Malformed(f"{expected.name.lower()} {digest.hex()}: {error}") from error


def _optimised(bitmap: BitMap) -> BitMap:
    bitmap.run_optimize()
    return bitmap


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(payload: bytes) -> Any:
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True, use_list=True)
        shortest = _pack(value)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {error}") from error
    if shortest != payload:
        raise Malformed("not the shortest msgpack of its value, or a map key twice")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{what}: {type(value).__name__} instead of a list")
    return value


def _row(value: Any, length: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise Malformed(f"{what}: not a list of {length}")
    return value


def _rows(value: Any, length: int, what: str) -> Iterator[list[Any]]:
    return (_row(row, length, what) for row in _list(value, what))


def _number(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_TIME_MS:
        raise Malformed(f"{what}: {reprlib.repr(value)} is no number of at most 63 bits")
    return value


_time = _number


def _ordinal(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ORDINAL:
        raise Malformed(f"{what}: {reprlib.repr(value)} is no ordinal")
    return value


def _text(value: Any, what: str) -> str:
    if type(value) is not str:
        raise Malformed(f"{what}: {type(value).__name__} instead of text")
    return value


def _key(value: Any, what: str) -> str:
    if not _text(value, what):
        raise Malformed(f"{what}: empty")
    return str(value)


def _json(value: Any, what: str) -> str:
    try:
        json.loads(_text(value, what))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what}: {error}") from error
    return str(value)


def _bool(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise Malformed(f"{what}: {reprlib.repr(value)} is neither true nor false")
    return value


def _bytes(value: Any, what: str) -> bytes:
    if type(value) is not bytes:
        raise Malformed(f"{what}: {type(value).__name__} instead of bytes")
    return value


def _sized(value: Any, size: int, what: str) -> bytes:
    if len(_bytes(value, what)) != size:
        raise Malformed(f"{what}: {len(value)} bytes instead of {size}")
    return bytes(value)


def _digest(value: Any, what: str) -> bytes:
    return _sized(value, DIGEST_BYTES, what)


def _hash(value: Any, what: str) -> bytes:
    return _sized(value, 16, what)


_uuid = _hash


def _optional(decode: Callable[[Any, str], T]) -> Callable[[Any, str], T | None]:
    return lambda value, what: None if value is None else decode(value, what)


def _digests(value: Any, what: str) -> list[bytes]:
    joined = _bytes(value, what)
    if len(joined) % DIGEST_BYTES:
        raise Malformed(f"{what}: {len(joined)} bytes are no whole number of digests")
    return [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]


def _fan(value: Any, what: str) -> dict[int, bytes]:
    joined = _bytes(value, what)
    if len(joined) < 2:
        raise Malformed(f"{what}: {len(joined)} bytes, less than the mask of children")
    mask = int.from_bytes(joined[:2], "little")
    digests = _digests(joined[2:], what)
    if len(digests) != mask.bit_count():
        raise Malformed(f"{what}: the mask names {mask.bit_count()} children, {len(digests)} follow")
    return dict(zip((n for n in range(BRANCH_CHILDREN) if mask >> n & 1), digests, strict=True))


def _pack_fan(children: Mapping[int, bytes]) -> bytes:
    mask = sum(1 << n for n in children)
    return mask.to_bytes(2, "little") + b"".join(children[n] for n in sorted(children))


def _content_set(value: Any, what: str) -> ContentSet:
    members, contained, unlisted = _row(value, 3, what)
    return ContentSet(_digest(members, "members"), _digest(contained, "contained"), _digest(unlisted, "unlisted"))


def _overrides(value: Any) -> tuple[tuple[int, bytes], ...]:
    rows = tuple((_ordinal(o, "override"), _digest(d, "override")) for o, d in _rows(value, 2, "overrides"))
    _ascending([ordinal for ordinal, _ in rows], "overrides")
    return rows


def _part(value: Any) -> Part:
    if isinstance(value, bytes):
        return value
    code, *fields = _list(value, "part") or [None]
    match code if type(code) is int else None, len(fields):
        case 1, 0:
            return Modified()
        case 2, 3:
            return Marketing(*(_bytes(field, "marketing url") for field in fields))
        case 3, 1:
            return Activity(_bytes(fields[0], "activity"))
        case 4, 5:
            return Enrollment(
                executive=_bool(fields[0], "executive"),
                course=_bytes(fields[1], "course"),
                run=_optional(_bytes)(fields[2], "run"),
                target=_bytes(fields[3], "target"),
                sku=_optional(_bytes)(fields[4], "sku"),
            )
        case 5, 3:
            return RunEnrollment(*(_bytes(field, "run enrollment") for field in fields))
    raise Malformed(f"part: {reprlib.repr(value)} is no place that is known")


def _ascending(values: Sequence[bytes] | Sequence[int], what: str) -> None:
    if any(a >= b for a, b in pairwise(values)):  # type: ignore[operator]
        raise Malformed(f"{what}: records out of order, or one twice")
