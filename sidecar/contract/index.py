"""The read-only index: one generation's records, joined and checked, ready to be asked. Pure, and never changed.

`Index.assemble` takes records that were opened one by one and refuses the whole generation if they do not fit together
(section 5 of the contract). Everything that the hot path touches is a plain attribute of a slotted object.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from pyroaring import BitMap

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import (
    CONTENT_SHARD_ORDINALS,
    Bitmap,
    CatalogRecord,
    CatalogShard,
    ContentSet,
    ContentShard,
    CustomerRecord,
    CustomerShard,
    Freshness,
    FreshnessShard,
    QueryRecord,
    QueryShard,
    Record,
    Reference,
    Root,
    Segment,
    customer_shard,
)
from sidecar.contract.words import ContentType, PullState, fold
from sidecar.errors import Malformed

IN_INDEX = frozenset(ObjectType) - {ObjectType.CONTENT, ObjectType.METADATA}
R = TypeVar("R")


def index_references(record: Record) -> Iterator[Reference]:
    """The references of a record that an index needs opened: everything but documents."""
    return (reference for reference in record.references() if reference[0] in IN_INDEX)


@dataclass(frozen=True, slots=True)
class Content:
    """What a query's catalogs contain, for one version of the API."""

    members: BitMap
    contained: BitMap
    listed: BitMap


@dataclass(frozen=True, slots=True)
class Query:
    """A content filter and its answers; `v1` and `v2` are None until its first pull passes, and may be one object."""

    hash: bytes
    record: QueryRecord
    v1: Content | None
    v2: Content | None
    pulled_at_ms: int | None
    state: PullState
    task_id: bytes | None
    modified_ms: int | None


@dataclass(frozen=True, slots=True)
class Catalog:
    """A catalog and the query that it serves; `serving` is None until a first pull passes."""

    uuid: str
    customer: str
    record: CatalogRecord
    wanted: Query
    serving: Query | None


class Dictionary:
    """Content keys and their ordinals, both ways, exact and folded; and the ordinals of uuids."""

    __slots__ = ("_by_uuid", "folded", "keys", "ordinals", "parents", "types", "uuids")

    def __init__(self, segments: list[Segment]) -> None:
        self.keys: list[str] = []
        self.types = bytearray()
        self.parents: list[int | None] = []
        self.uuids: list[bytes | None] = []
        for segment in segments:
            if segment.first != len(self.keys):
                raise Malformed(f"dictionary: a segment begins at {segment.first} where {len(self.keys)} is next")
            self.keys += segment.keys
            self.types += segment.types
            self.parents += segment.parents
            self.uuids += segment.uuids
        self.ordinals: dict[str, int] = dict(zip(self.keys, range(len(self.keys)), strict=True))
        if len(self.ordinals) != len(self.keys):
            raise Malformed("dictionary: a content key has two ordinals")
        self._check_parents()
        self.folded: dict[str, tuple[int, ...]] = {}
        for ordinal, key in enumerate(self.keys):
            folded = fold(key)
            self.folded[folded] = (*self.folded.get(folded, ()), ordinal)
        # A twentieth of what a dict would take, for a lookup that is rarely made.
        have = (ordinal for ordinal, uuid in enumerate(self.uuids) if uuid is not None)
        self._by_uuid = array("I", sorted(have, key=self._uuid))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, key: str) -> tuple[int, ...]:
        """The ordinals that a caller's key means: its own if it is known exactly, else those of its folded form."""
        ordinal = self.ordinals.get(key)
        return self.folded.get(fold(key), ()) if ordinal is None else (ordinal,)

    def of_uuid(self, uuid: str) -> int | None:
        """The first ordinal whose content has this uuid."""
        wanted = UUID(uuid).bytes
        place = bisect_left(self._by_uuid, wanted, key=self._uuid)
        if place == len(self._by_uuid) or self._uuid(self._by_uuid[place]) != wanted:
            return None
        return self._by_uuid[place]

    def _uuid(self, ordinal: int) -> bytes:
        return self.uuids[ordinal] or b""

    def _check_parents(self) -> None:
        for ordinal, parent in enumerate(self.parents):
            if parent is None:
                continue
            if parent >= len(self.keys) or self.types[parent] != ContentType.COURSE:
                raise Malformed(f"dictionary: the parent of ordinal {ordinal} is {parent}, which is no course")
            if self.types[ordinal] != ContentType.COURSE_RUN:
                raise Malformed(f"dictionary: ordinal {ordinal} has a parent and is no course run")


class Index:
    """One complete generation. Attributes: the root and its digest, and mappings by key, hash and uuid."""

    __slots__ = ("catalogs", "customers", "dictionary", "digest", "of_customer", "queries", "records", "root")

    def __init__(self, digest: bytes, root: Root, records: Mapping[bytes, Record], before: "Index | None") -> None:
        """Use `assemble`."""
        self.digest = digest
        self.root = root
        self.records = records
        segments = [self._get(d, Segment) for _, d in root.dictionary]
        for (count, _), segment in zip(root.dictionary, segments, strict=True):
            if count != len(segment.keys):
                raise Malformed(f"dictionary: {len(segment.keys)} ordinals from {segment.first}, the root says {count}")
        self.dictionary: Dictionary
        if before is not None and before.root.dictionary == root.dictionary:
            self.dictionary = before.dictionary
        else:
            self.dictionary = Dictionary(segments)
        self.queries = self._join_queries()
        self.catalogs = self._join_catalogs()
        self.customers = {str(UUID(bytes=r.uuid)): r for r in self._customer_records()}
        of_customer: dict[str, list[Catalog]] = {}
        for catalog in sorted(self.catalogs.values(), key=lambda c: c.record.number):
            of_customer.setdefault(catalog.customer, []).append(catalog)
        self.of_customer: dict[str, tuple[Catalog, ...]] = {c: tuple(them) for c, them in of_customer.items()}

    @classmethod
    def assemble(cls, digest: bytes, records: Mapping[bytes, Record], before: "Index | None" = None) -> "Index":
        """The index of the generation whose root is `digest`, from all records that `index_references` leads to.

        What an index `before` it has already made of the same objects is used again.
        Raises Malformed if they break what a reader may rely on, or if one is missing.
        """
        root = records.get(digest)
        if not isinstance(root, Root):
            raise Malformed(f"no root {digest.hex()} among the records")
        return cls(digest, root, records, before)

    def _get(self, digest: bytes, kind: type[R]) -> R:
        record = self.records.get(digest)
        if not isinstance(record, kind):
            raise Malformed(f"no {kind.__name__} {digest.hex()} among the records")
        return record

    def _bitmap(self, digest: bytes) -> BitMap:
        return check_bitmap(digest, self._get(digest, Bitmap).ordinals, len(self.dictionary))

    def _content(self, digests: ContentSet | None) -> Content | None:
        if digests is None:
            return None
        return Content(
            members=self._bitmap(digests.members),
            contained=self._bitmap(digests.contained),
            listed=self._bitmap(digests.listed),
        )

    def _join_queries(self) -> dict[bytes, Query]:
        freshness: dict[bytes, Freshness] = {}
        for byte, digest in self.root.freshness.items():
            for fresh in self._get(digest, FreshnessShard).records:
                _in_shard(fresh.hash[0], byte, "freshness")
                freshness[fresh.hash] = fresh
        queries: dict[bytes, Query] = {}
        for byte, digest in self.root.queries.items():
            for record in self._get(digest, QueryShard).records:
                _in_shard(record.hash[0], byte, "query")
                fresh_ = freshness.pop(record.hash, None)
                if fresh_ is None:
                    raise Malformed(f"query {record.hash.hex()} has no freshness record")
                for ordinal, _ in record.overrides_v1 + record.overrides_v2:
                    if ordinal >= len(self.dictionary):
                        raise Malformed(f"query {record.hash.hex()}: an override of ordinal {ordinal}")
                v1 = self._content(record.v1)
                queries[record.hash] = Query(
                    hash=record.hash,
                    record=record,
                    v1=v1,
                    v2=v1 if record.v2 is None else self._content(record.v2),
                    pulled_at_ms=fresh_.pulled_at_ms,
                    state=fresh_.state,
                    task_id=fresh_.task_id,
                    modified_ms=fresh_.modified_ms,
                )
        if freshness:
            raise Malformed(f"freshness of {len(freshness)} queries that have no record")
        return queries

    def _join_catalogs(self) -> dict[str, Catalog]:
        catalogs: dict[str, Catalog] = {}
        for byte, digest in self.root.catalogs.items():
            for record in self._get(digest, CatalogShard).records:
                _in_shard(record.uuid[0], byte, "catalog")
                wanted = self.queries.get(record.wanted)
                serving = None if record.serving is None else self.queries.get(record.serving)
                if wanted is None or (record.serving is not None and (serving is None or serving.v1 is None)):
                    raise Malformed(f"catalog {record.uuid.hex()} rests on a query that has no record or no content")
                uuid = str(UUID(bytes=record.uuid))
                catalogs[uuid] = Catalog(uuid, str(UUID(bytes=record.customer)), record, wanted, serving)
        return catalogs

    def _customer_records(self) -> Iterator[CustomerRecord]:
        for byte, digest in self.root.customers.items():
            for record in self._get(digest, CustomerShard).records:
                _in_shard(customer_shard(record.uuid), byte, "customer")
                yield record


def check_bitmap(digest: bytes, bitmap: BitMap, ordinals: int) -> BitMap:
    """The bitmap. Raises Malformed if it names an ordinal that a dictionary of so many does not have."""
    if bitmap and bitmap.max() >= ordinals:
        raise Malformed(f"bitmap {digest.hex()}: ordinal {bitmap.max()} of a dictionary of {ordinals}")
    return bitmap


def check_root(root: Root, epoch: int, generation: int) -> None:
    """Raises Malformed unless a root is that of the epoch and generation of the pointer that led to it."""
    if (root.epoch, root.generation) != (epoch, generation):
        raise Malformed(
            f"the pointer says epoch {epoch}, generation {generation}, its root says {root.epoch}, {root.generation}"
        )


def check_content(index: Index, number: int, shard: ContentShard) -> None:
    """Raises Malformed unless a content shard covers what the entry of this number in the root's list has to cover."""
    first = number * CONTENT_SHARD_ORDINALS
    ordinals = min(CONTENT_SHARD_ORDINALS, len(index.dictionary) - first)
    if (shard.first, len(shard.metadata)) != (first, ordinals):
        covered = f"{len(shard.metadata)} ordinals from {shard.first}"
        raise Malformed(f"content shard {number}: {covered} instead of {ordinals} from {first}")


def _in_shard(have: int, want: int, what: str) -> None:
    if have != want:
        raise Malformed(f"{what} shard {want:02x}: a record of shard {have:02x}")
