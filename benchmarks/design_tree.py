"""A generation of any size, made of random content with a fixed seed: what measurements at scale run over.

Courses and their runs, one to three, in order of ordinal. A query's members are keys by chance, courses or runs, as
many as log-uniform between 10 and a fifth of all keys; every fiftieth query has all keys. What is contained follows by
the definition, and a tenth of all courses has no active run. Catalogs serve queries by chance, five to a customer.
"""

import math
import random
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

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
    Metadata,
    QueryRecord,
    QueryShard,
    Record,
    Root,
    Segment,
    branches_of,
    customer_shard,
    seal_record,
    segment_starts,
)
from sidecar.contract.words import ContentType, PullState

GROUP: Final = 4
LEAST: Final = 10
ALL_KEYS: Final = 50
CATALOGS_OF_A_CUSTOMER: Final = 5
OF_THE_ONE: Final = 10_000
FILTER: Final = '{"content_type": "course", "org": ["edX", "MITx"], "level_type": "Introductory", "number": %d}'


class Tree:
    """Generation 1, and after `change` generation 2. `objects`: everything that was made, by digest."""

    def __init__(self, queries: int, keys: int, catalogs: int | None = None) -> None:
        self.objects: dict[bytes, tuple[ObjectType, bytes]] = {}
        self._rnd = random.Random("design point")
        self._inactive = self._chance(keys, keys // 10)
        self.keys = keys
        self._uuids = [self._rnd.randbytes(16) for _ in range(keys)]
        self._metadata = [self._document(ordinal) for ordinal in range(keys)]
        self._segments = {number: self.put(segment) for number, segment in self._dictionary()}
        self._content = {number: self.put(shard) for number, shard in self._content_shards()}
        hashes = sorted(self._rnd.randbytes(16) for _ in range(queries))
        self.one = hashes[0]
        self._members = BitMap(self._rnd.sample(range(keys), min(OF_THE_ONE, keys // 4)))
        self._queries = {h: self._query(n, h, keys) for n, h in enumerate(hashes)}
        self._freshness = {h: Freshness(h, 1, PullState.FRESH, self._rnd.randbytes(16), 1) for h in hashes}
        self.catalogs = self._some_catalogs(hashes, 4 * queries if catalogs is None else catalogs)
        self.catalog = next(uuid for uuid, record in self.catalogs.items() if record.serving == self.one)
        self.root = self._rooted(1, None)

    @property
    def new_keys(self) -> list[str]:
        """The keys that `change` adds."""
        return [key_of(ordinal) for ordinal in range(self.keys - 5, self.keys)]

    def put(self, record: Record) -> bytes:
        """Keeps an object; its digest."""
        sealed = seal_record(record)
        self.objects[sealed.digest] = record.TYPE, sealed.data
        return sealed.digest

    def change(self, generation: int = 2) -> bytes:
        """A hundredth of the one query's members goes and others come, five new keys among them; the next root."""
        first = self.keys
        self.keys += 5
        self._uuids += (self._rnd.randbytes(16) for _ in range(5))
        self._metadata += (self._document(ordinal) for ordinal in range(first, self.keys))
        count = len(self._members) // 100
        gone = self._rnd.sample(list(self._members), count)
        others = list(BitMap(range(first)) - self._members)
        self._members = (self._members - BitMap(gone)) | BitMap(self._rnd.sample(others, count - 5))
        self._members |= BitMap(range(first, self.keys))
        self._segments = {number: self.put(segment) for number, segment in self._dictionary()}
        self._content |= {number: self.put(shard) for number, shard in self._content_shards(since=first)}
        was = self._queries[self.one]
        self._queries[self.one] = replace(was, v1=self._set(self._members, self.keys))
        fresh = self._freshness[self.one]
        self._freshness[self.one] = replace(
            fresh, pulled_at_ms=generation, task_id=self._rnd.randbytes(16), modified_ms=generation
        )
        parent, self.root = self.root, b""
        self.root = self._rooted(generation, parent)
        return self.root

    def _rooted(self, generation: int, parent: bytes | None) -> bytes:
        fields = {
            ObjectType.QUERIES: _by_byte(self._queries, QueryShard),
            ObjectType.FRESHNESS: _by_byte(self._freshness, FreshnessShard),
            ObjectType.CATALOGS: _by_byte(self.catalogs, CatalogShard),
        }
        fans = {kind: self._fan(kind, shards) for kind, shards in fields.items()}
        customers: dict[int, list[CustomerRecord]] = {}
        for uuid in sorted({record.customer for record in self.catalogs.values()}):
            customers.setdefault(customer_shard(uuid), []).append(
                CustomerRecord(uuid, f"customer-{uuid.hex()[:6]}", True, f"Customer {uuid.hex()[:6]}", 1)
            )
        return self.put(
            Root(
                epoch=1,
                generation=generation,
                published_at_ms=generation,
                clock=generation,
                parent=parent,
                ordinals=self.keys,
                dictionary=self._list(ObjectType.SEGMENT, self._segments),
                content=self._list(ObjectType.CONTENT, self._content),
                queries=fans[ObjectType.QUERIES],
                freshness=fans[ObjectType.FRESHNESS],
                catalogs=fans[ObjectType.CATALOGS],
                customers={n: self.put(CustomerShard(tuple(them))) for n, them in customers.items()},
                counts={"catalogs": len(self.catalogs), "content": self.keys, "queries": len(self._queries)},
                producer="benchmark",
            )
        )

    def _fan(self, kind: ObjectType, shards: Mapping[int, Record]) -> dict[int, bytes]:
        digests = {number: self.put(shard) for number, shard in shards.items()}
        return {number: self.put(branch) for number, branch in branches_of(kind, digests).items()}

    def _list(self, kind: ObjectType, digests: Mapping[int, bytes]) -> tuple[bytes, ...]:
        return tuple(self.put(branch) for branch in branches_of(kind, digests).values())

    def _query(self, number: int, hash_: bytes, keys: int) -> QueryRecord:
        if hash_ == self.one:
            members = self._members
        elif number % ALL_KEYS == 1:
            members = BitMap(range(keys))
        else:
            members = self._chance(keys, int(LEAST * math.exp(self._rnd.random() * math.log(keys / 5 / LEAST))))
        v1 = self._set(members, keys)
        uuid = self._rnd.randbytes(16)
        return QueryRecord(hash_, number + 1, uuid, f"query {number}", FILTER % number, v1, None)

    def _set(self, members: BitMap, keys: int) -> ContentSet:
        courses = members & BitMap(range(0, keys, GROUP))
        contained = members.copy()
        for place in range(1, GROUP):
            contained |= courses.shift(place)
            contained |= (members & BitMap(range(place, keys, GROUP))).shift(-place)
        contained &= BitMap(range(keys))
        return ContentSet(*(self.put(Bitmap(b)) for b in (members, contained, courses & self._inactive)))

    def _chance(self, keys: int, count: int) -> BitMap:
        """About so many ordinals by chance: drawn with repetition, many at once."""
        bits = max(1, (keys - 1).bit_length())
        draws = max(1, round(-(2**bits) * math.log(1 - count / keys)))
        mask = int.from_bytes((2**bits - 1).to_bytes(4, "little") * draws, "little")
        drawn = int.from_bytes(self._rnd.randbytes(4 * draws), "little") & mask
        return BitMap(array("I", drawn.to_bytes(4 * draws, "little"))) & BitMap(range(keys))

    def _document(self, ordinal: int) -> bytes:
        key = key_of(ordinal)
        text = f'{{"key":"{key}","full_description":"{self._rnd.randbytes(100).hex()}"}}'
        return self.put(Metadata(key, _type(ordinal), (text.encode(),)))

    def _dictionary(self) -> Iterator[tuple[int, Segment]]:
        for number, (first, count) in enumerate(segment_starts(self.keys)):
            ordinals = range(first, first + count)
            yield (
                number,
                Segment(
                    first=first,
                    types=bytes(map(_type, ordinals)),
                    keys=tuple(key_of(o) for o in ordinals),
                    parents=tuple(o - o % GROUP if o % GROUP else None for o in ordinals),
                    uuids=tuple(self._uuids[first : first + count]),
                ),
            )

    def _content_shards(self, since: int = 0) -> Iterator[tuple[int, ContentShard]]:
        for first in range(since - since % CONTENT_SHARD_ORDINALS, self.keys, CONTENT_SHARD_ORDINALS):
            documents = tuple(self._metadata[first : first + CONTENT_SHARD_ORDINALS])
            yield first // CONTENT_SHARD_ORDINALS, ContentShard(first, documents, (1,) * len(documents))

    def _some_catalogs(self, hashes: list[bytes], count: int) -> dict[bytes, CatalogRecord]:
        customers = [self._rnd.randbytes(16) for _ in range(max(1, count // CATALOGS_OF_A_CUSTOMER))]
        records = []
        for number in range(count):
            hash_ = hashes[number] if number < len(hashes) else self._rnd.choice(hashes)
            records.append(
                CatalogRecord(
                    uuid=self._rnd.randbytes(16),
                    number=number,
                    wanted=hash_,
                    serving=hash_,
                    customer=customers[number // CATALOGS_OF_A_CUSTOMER % len(customers)],
                    customer_name=f"Customer {number // CATALOGS_OF_A_CUSTOMER}",
                    title=f"A catalog, number {number}",
                    course_modes='["verified", "audit"]',
                    audit_urls=False,
                    created_ms=1_790_000_000_000 + number,
                    modified_ms=1_790_000_000_000 + number,
                )
            )
        return {record.uuid: record for record in sorted(records, key=lambda r: r.uuid)}


def _by_byte(records: Mapping[bytes, object], shard: type) -> dict[int, Record]:
    shards: dict[int, list[object]] = {}
    for identifier in sorted(records):
        shards.setdefault(identifier[0], []).append(records[identifier])
    return {byte: shard(tuple(them)) for byte, them in shards.items()}


def _type(ordinal: int) -> ContentType:
    return ContentType.COURSE_RUN if ordinal % GROUP else ContentType.COURSE


def key_of(ordinal: int) -> str:
    """The content key of an ordinal."""
    course = ordinal - ordinal % GROUP
    if ordinal % GROUP:
        return f"course-v1:edX+C{course}+{2020 + ordinal % GROUP}_T1"
    return f"edX+C{course}"
