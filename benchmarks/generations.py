"""Generations that are made beforehand over one that was built, each with content of its own. Pure.

A generation is the one before it, with one query's sets changed by a hundredth and newly pulled, and five documents
changed. In every other one five new courses are in the dictionary as well, which makes a reader build it anew.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from pyroaring import BitMap

from sidecar.contract.index import Index
from sidecar.contract.objects import Sealed
from sidecar.contract.records import (
    CONTENT_SHARD_ORDINALS,
    Bitmap,
    ContentSet,
    ContentShard,
    FreshnessShard,
    Metadata,
    QueryRecord,
    QueryShard,
    Record,
    Segment,
    seal_record,
    segment_starts,
)
from sidecar.contract.words import ContentType
from sidecar.store import Pointer

NEW_COURSES: Final = 5
CHANGED_DOCUMENTS: Final = 5
EVERY_MS: Final = 2_000
"""How far apart they say that they were published."""


class Generations:
    """Makes one after another."""

    def __init__(self, index: Index, content: Mapping[int, ContentShard], documents: Mapping[int, Metadata]) -> None:
        """`content`: all content shards, by their first ordinals. `documents`: those that will change, by ordinal."""
        self._rnd = random.Random("generations")
        self._root = index.root
        self._digest = index.digest
        self._records: dict[bytes, Record] = dict(index.records)
        dictionary = index.dictionary
        self._keys, self._types = list(dictionary.keys), bytearray(dictionary.types)
        self._parents, self._uuids = list(dictionary.parents), list(dictionary.uuids)
        self._metadata = [digest for first in sorted(content) for digest in content[first].metadata]
        self._modified_ms = [ms for first in sorted(content) for ms in content[first].modified_ms]
        self._documents = dict(documents)
        self._hashes = sorted(h for h, query in index.queries.items() if query.v1 is not None)
        self._sealed: list[Sealed] = []

    def next(self) -> tuple[Pointer, list[Sealed]]:
        """The pointer to one more generation, and its objects that the one before it does not have."""
        self._sealed = []
        number = self._root.generation + 1
        now_ms = self._root.published_at_ms + EVERY_MS
        changed = self._change_documents(now_ms)
        new = self._add_courses(number) if number % 2 else []
        self._change_query(self._hashes[number % len(self._hashes)], new, now_ms)
        self._write_content({*changed, *new})
        self._root = replace(self._root, generation=number, parent=self._digest, published_at_ms=now_ms)
        self._digest = self._put(self._root)
        return Pointer(self._root.epoch, number, self._digest), self._sealed

    def _put(self, record: Record) -> bytes:
        sealed = seal_record(record)
        self._sealed.append(sealed)
        self._records[sealed.digest] = record
        return sealed.digest

    def _change_documents(self, now_ms: int) -> list[int]:
        ordinals = self._rnd.sample(sorted(self._documents), CHANGED_DOCUMENTS)
        for ordinal in ordinals:
            document = self._documents[ordinal]
            opening, *rest = document.parts
            assert isinstance(opening, bytes)
            # A space where JSON may have one: other bytes, and still the same document.
            document = replace(document, parts=(opening.replace(b"{", b"{ ", 1), *rest))
            self._documents[ordinal] = document
            self._metadata[ordinal], self._modified_ms[ordinal] = self._put(document), now_ms
        return ordinals

    def _add_courses(self, number: int) -> list[int]:
        first = len(self._keys)
        self._keys += [f"edX+New{number}.{n}" for n in range(NEW_COURSES)]
        self._types += bytes([ContentType.COURSE]) * NEW_COURSES
        self._parents += [None] * NEW_COURSES
        self._uuids += [self._rnd.randbytes(16) for _ in range(NEW_COURSES)]
        self._metadata += [None] * NEW_COURSES
        self._modified_ms += [0] * NEW_COURSES
        before = dict(zip(segment_starts(first), self._root.dictionary, strict=True))
        segments = []
        for start, count in segment_starts(len(self._keys)):
            same, end = before.get((start, count)), start + count
            segments.append(
                same
                or (
                    count,
                    self._put(
                        Segment(
                            start,
                            bytes(self._types[start:end]),
                            tuple(self._keys[start:end]),
                            tuple(self._parents[start:end]),
                            tuple(self._uuids[start:end]),
                        )
                    ),
                )
            )
        self._root = replace(self._root, dictionary=tuple(segments))
        return list(range(first, len(self._keys)))

    def _write_content(self, changed: Iterable[int]) -> None:
        shards = list(self._root.content)
        for number in sorted({ordinal // CONTENT_SHARD_ORDINALS for ordinal in changed}):
            first = number * CONTENT_SHARD_ORDINALS
            end = first + CONTENT_SHARD_ORDINALS
            shard = ContentShard(first, tuple(self._metadata[first:end]), tuple(self._modified_ms[first:end]))
            shards[number : number + 1] = [self._put(shard)]
        self._root = replace(self._root, content=tuple(shards))

    def _change_query(self, hash_: bytes, new: Iterable[int], now_ms: int) -> None:
        queries = self._records[self._root.queries[hash_[0]]]
        freshness = self._records[self._root.freshness[hash_[0]]]
        assert isinstance(queries, QueryShard)
        assert isinstance(freshness, FreshnessShard)
        records = tuple(self._changed(r, new) if r.hash == hash_ else r for r in queries.records)
        pulled = tuple(
            replace(r, pulled_at_ms=now_ms, task_id=self._rnd.randbytes(16)) if r.hash == hash_ else r
            for r in freshness.records
        )
        self._root = replace(
            self._root,
            queries={**self._root.queries, hash_[0]: self._put(QueryShard(records))},
            freshness={**self._root.freshness, hash_[0]: self._put(FreshnessShard(pulled))},
        )

    def _changed(self, record: QueryRecord, new: Iterable[int]) -> QueryRecord:
        assert record.v1 is not None
        members, contained, listed = (
            self._ordinals(digest) for digest in (record.v1.members, record.v1.contained, record.v1.listed)
        )
        gone = BitMap(self._rnd.sample(list(members), -(-len(members) // 100)))
        members, listed, parents = (members - gone) | BitMap(new), listed - gone, self._parents
        courses = {parents[member] for member in members}
        with_courses = ((o, parents[o]) for o in contained)
        v1 = ContentSet(
            members=self._put(Bitmap(members)),
            contained=self._put(
                Bitmap(
                    members | BitMap([o for o, p in with_courses if o in courses or (p is not None and p in members)])
                )
            ),
            listed=self._put(Bitmap(listed)),
        )
        return replace(record, v1=v1)

    def _ordinals(self, digest: bytes) -> BitMap:
        bitmap = self._records[digest]
        assert isinstance(bitmap, Bitmap)
        return bitmap.ordinals
