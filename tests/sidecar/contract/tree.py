"""Generations from plain data, for tests: what an indexer would publish, and the laws that every index keeps."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sidecar.contract.index import Content, Index
from sidecar.contract.objects import ObjectType, Sealed
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
    Metadata,
    Part,
    QueryRecord,
    QueryShard,
    Record,
    Reference,
    Root,
    Segment,
    branches_of,
    customer_shard,
    open_record,
    seal_record,
    segment_starts,
)
from sidecar.contract.words import ContentType, PullState, query_hash

R = TypeVar("R")


class Item(NamedTuple):
    """One content key; its ordinal is its place among the others. A run may name its course."""

    key: str
    type: ContentType = ContentType.COURSE
    parent: str | None = None
    document: bytes | tuple[Part, ...] | None = None


class Answers(NamedTuple):
    """What a query contains, as content keys."""

    members: Set[str] = frozenset()
    contained: Set[str] = frozenset()
    listed: Set[str] = frozenset()


@dataclass(frozen=True)
class Query:
    """A content filter and what it contains; `v1` is None if it was never pulled."""

    content_filter: Any
    v1: Answers | None = None
    v2: Answers | None = None
    overrides_v1: Mapping[str, bytes] = field(default_factory=dict)
    overrides_v2: Mapping[str, bytes] = field(default_factory=dict)


class Catalog(NamedTuple):
    """A catalog by its uuid, with the content filters that it wants and serves."""

    uuid: UUID
    wanted: Any
    serving: Any = None
    customer: UUID = UUID(int=0)


class Tree(NamedTuple):
    """A complete generation: the digest of its root, and every object by its digest."""

    root: bytes
    objects: dict[bytes, Sealed]

    def records(self) -> dict[bytes, Record]:
        """Every record of the generation, documents included, opened from the bytes of its object."""
        return dict(self._below([(ObjectType.ROOT, self.root)]))

    def assembled(self) -> Index:
        return Index.assemble(self.root, self.records())

    def _below(self, references: Iterable[Reference]) -> Iterable[tuple[bytes, Record]]:
        for kind, digest in references:
            record = open_record(digest, self.objects[digest].data, kind)
            yield digest, record
            yield from self._below(record.references())


def build(
    content: Sequence[Item] = (),
    queries: Sequence[Query] = (),
    catalogs: Sequence[Catalog] = (),
    customers: Sequence[UUID] = (),
    *,
    epoch: int = 1,
    generation: int = 1,
    parent: bytes | None = None,
) -> Tree:
    """The generation that holds this. Catalogs are numbered in the order given."""
    objects: dict[bytes, Sealed] = {}
    ordinals = {item.key: ordinal for ordinal, item in enumerate(content)}

    def put(record: Record) -> bytes:
        sealed = seal_record(record)
        objects[sealed.digest] = sealed
        return sealed.digest

    def document(key: str, body: bytes | tuple[Part, ...] | None) -> bytes | None:
        if body is None:
            return None
        return put(Metadata(key, content[ordinals[key]].type, (body,) if isinstance(body, bytes) else body))

    def answers(plain: Answers | None) -> ContentSet | None:
        if plain is None:
            return None
        sets = (plain.members, plain.contained, plain.members - plain.listed)
        return ContentSet(*(put(Bitmap.of(ordinals[k] for k in keys)) for keys in sets))

    def overrides(bodies: Mapping[str, bytes]) -> tuple[tuple[int, bytes], ...]:
        rows = ((ordinals[key], put(Metadata(key, content[ordinals[key]].type, (b,)))) for key, b in bodies.items())
        return tuple(sorted(rows))

    def branches(kind: ObjectType, children: Mapping[int, Record]) -> dict[int, bytes]:
        digests = {number: put(record) for number, record in children.items()}
        return {number: put(branch) for number, branch in branches_of(kind, digests).items()}

    dictionary: list[Record] = []
    for first, count in segment_starts(len(content)):
        part = content[first : first + count]
        segment = Segment(
            first=first,
            types=bytes(item.type for item in part),
            keys=tuple(item.key for item in part),
            parents=tuple(None if item.parent is None else ordinals[item.parent] for item in part),
            uuids=(None,) * count,
        )
        dictionary.append(segment)
    shards: list[Record] = []
    for first in range(0, len(content), CONTENT_SHARD_ORDINALS):
        part = content[first : first + CONTENT_SHARD_ORDINALS]
        documents = tuple(document(item.key, item.document) for item in part)
        shards.append(ContentShard(first, documents, tuple(range(first, first + len(part)))))

    hashed = sorted(((query_hash(q.content_filter), n, q) for n, q in enumerate(queries)), key=lambda row: row[0])
    query_records = [
        QueryRecord(
            hash=digest,
            id=number + 1,
            uuid=UUID(int=number + 1).bytes,
            title=None,
            content_filter=json.dumps(query.content_filter),
            v1=answers(query.v1),
            v2=answers(query.v2),
            overrides_v1=overrides(query.overrides_v1),
            overrides_v2=overrides(query.overrides_v2),
        )
        for digest, number, query in hashed
    ]
    freshness = [
        Freshness(digest, None if query.v1 is None else 1, PullState(query.v1 is not None), None, None)
        for digest, _, query in hashed
    ]
    catalog_records = [
        CatalogRecord(
            uuid=catalog.uuid.bytes,
            number=number,
            wanted=query_hash(catalog.wanted),
            serving=None if catalog.serving is None else query_hash(catalog.serving),
            customer=catalog.customer.bytes,
            customer_name=f"customer of {number}",
            title=f"catalog {number}",
            course_modes='["verified"]',
            audit_urls=False,
            created_ms=1,
            modified_ms=2,
        )
        for number, catalog in sorted(enumerate(catalogs), key=lambda row: row[1].uuid)
    ]
    customer_records = [CustomerRecord(u.bytes, f"slug-{u.int}", True, f"name {u.int}", 3) for u in sorted(customers)]
    root = Root(
        epoch=epoch,
        generation=generation,
        published_at_ms=4,
        clock=5,
        parent=parent,
        ordinals=len(content),
        dictionary=tuple(branches(ObjectType.SEGMENT, dict(enumerate(dictionary))).values()),
        content=tuple(branches(ObjectType.CONTENT, dict(enumerate(shards))).values()),
        queries=branches(
            ObjectType.QUERIES, {b: QueryShard(tuple(q)) for b, q in _by_byte(query_records, lambda q: q.hash[0])}
        ),
        freshness=branches(
            ObjectType.FRESHNESS, {b: FreshnessShard(tuple(f)) for b, f in _by_byte(freshness, lambda f: f.hash[0])}
        ),
        catalogs=branches(
            ObjectType.CATALOGS, {b: CatalogShard(tuple(c)) for b, c in _by_byte(catalog_records, lambda c: c.uuid[0])}
        ),
        customers={b: put(CustomerShard(tuple(c))) for b, c in _by_byte(customer_records, _shard_of)},
        counts={"content": len(content), "queries": len(queries), "catalogs": len(catalogs)},
        producer="tests",
    )
    return Tree(put(root), objects)


def _shard_of(customer: CustomerRecord) -> int:
    return customer_shard(customer.uuid)


def everything_below(root: bytes, records: Mapping[bytes, Record]) -> set[bytes]:
    """The digests of a generation, its root included."""
    found = {root}
    for _, digest in records[root].references():
        found |= everything_below(digest, records)
    return found


def lookups_stay_inside(index: Index) -> None:
    """Asks everything that an index can be asked; no answer may name an ordinal that the dictionary does not have."""
    dictionary = index.dictionary
    inside = range(len(dictionary))
    assert len(dictionary) == index.root.ordinals <= len(dictionary.keys)
    for ordinal, key in enumerate(dictionary.keys[: len(dictionary)]):
        assert dictionary.find(key) == (ordinal,)
        assert ContentType(dictionary.types[ordinal])
        parent = dictionary.parents[ordinal]
        assert parent is None or dictionary.types[parent] == ContentType.COURSE
        for other in dictionary.find(key.upper()) + dictionary.find(key.lower()):
            assert other in inside
    for hash_, query in index.queries.items():
        assert query.record.hash == query.hash == hash_
        assert (query.v1 is None) is (query.v2 is None) is (query.record.v1 is None)
        for answers in (query.v1, query.v2):
            _content_stays_inside(answers, inside)
        for ordinal, _ in query.record.overrides_v1 + query.record.overrides_v2:
            assert ordinal in inside
    for uuid, catalog in index.catalogs.items():
        assert catalog.uuid == uuid == str(UUID(bytes=catalog.record.uuid))
        assert catalog.wanted is index.queries[catalog.record.wanted]
        if catalog.record.serving is None:
            assert catalog.serving is None
        else:
            assert catalog.serving is index.queries[catalog.record.serving]
            assert catalog.serving.v1 is not None
            assert catalog.serving.v2 is not None
    assert sum(len(them) for them in index.of_customer.values()) == len(index.catalogs)
    assert all(str(UUID(uuid)) == uuid for uuid in index.customers)


def _content_stays_inside(content: Content | None, inside: range) -> None:
    if content is not None:
        for bitmap in (content.members, content.contained, content.listed):
            assert all(ordinal in inside for ordinal in bitmap)


def _by_byte(records: Sequence[R], byte_of: Callable[[R], int]) -> Iterable[tuple[int, list[R]]]:
    shards: dict[int, list[R]] = {}
    for record in records:
        shards.setdefault(byte_of(record), []).append(record)
    return shards.items()
