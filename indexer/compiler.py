"""The compiler: from what the registry says to the objects of a generation. Pure, and incremental.

The closure of section 2 of the design is here: contained is what discovery returned, with the runs of its courses and
the courses of its runs, and never on from there. Restricted runs are in it only where the query allows them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyroaring import BitMap

from indexer.filters import allowed_restricted_runs
from indexer.ingest import PLAIN, SHOWN
from indexer.mirror import NOTHING, Changes, Mirror, QueryRow, ResultRow
from indexer.render import render_for_query
from sidecar import __version__
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
    QueryRecord,
    QueryShard,
    Root,
    Segment,
    branches_of,
    customer_shard,
    seal_record,
    segment_starts,
)
from sidecar.contract.words import ContentType, PullState

PRODUCER: Final = f"catalog-indexer {__version__}"
Texts = Mapping[tuple[int, int], bytes]


def closure(mirror: Mirror, members: BitMap, hidden: BitMap) -> BitMap:
    """Everything that is contained: members, runs of member courses that are not hidden, courses of member runs."""
    runs = mirror.runs_of_courses(members & mirror.courses)
    return members | (runs - hidden) | mirror.courses_of(members & mirror.runs)


def unlisted(mirror: Mirror, members: BitMap, hidden: BitMap, forced: BitMap) -> BitMap:
    """What pages leave out of the members: the courses that have no active run in sight."""
    courses = members & mirror.courses
    if hidden == mirror.restricted:
        active = mirror.open_courses()
    else:
        active = mirror.courses_of((mirror.runs_of_courses(courses) & mirror.active) - hidden)
    return courses - active - forced


@dataclass(frozen=True, slots=True)
class CompiledQuery:
    """A filter's content: its sets, what differs for it, and the ordinals whose facts and documents these rest on."""

    v1: ContentSet
    v2: ContentSet | None
    overrides_v1: tuple[tuple[int, bytes], ...]
    overrides_v2: tuple[tuple[int, bytes], ...]
    members: BitMap
    documents: BitMap

    def references(self) -> Iterator[bytes]:
        for content in (self.v1, self.v2):
            if content is not None:
                yield from (content.members, content.contained, content.unlisted)
        for _, digest in self.overrides_v1 + self.overrides_v2:
            yield digest


def allowed_runs(mirror: Mirror, result: ResultRow) -> BitMap:
    """The restricted runs that a filter allows, as far as they are known."""
    keys = allowed_restricted_runs(json.loads(result.content_filter)) if result.restricted_members is not None else ()
    return BitMap([mirror.ordinals[key] for key in keys if key in mirror.ordinals]) & mirror.restricted


def texts_needed(mirror: Mirror, result: ResultRow) -> set[tuple[int, int]]:
    """The documents that a filter's overrides are rendered from."""
    shown = mirror.courses_of(allowed_runs(mirror, result)) & (result.restricted_members or NOTHING)
    return {(ordinal, PLAIN) for ordinal in result.forced} | {(ordinal, SHOWN) for ordinal in shown}


def compile_query(mirror: Mirror, result: ResultRow, texts: Texts) -> tuple[CompiledQuery, list[Sealed]]:
    """A filter's compiled content and its objects, from a result with members and the texts that it needs."""
    assert result.members is not None
    sealed: list[Sealed] = []

    def seal(record: Bitmap) -> bytes:
        sealed.append(seal_record(record))
        return sealed[-1].digest

    def content_set(members: BitMap, hidden: BitMap) -> ContentSet:
        return ContentSet(
            members=seal(Bitmap.of(members)),
            contained=seal(Bitmap.of(closure(mirror, members, hidden))),
            unlisted=seal(Bitmap.of(unlisted(mirror, members, hidden, result.forced))),
        )

    def override(ordinal: int, text: bytes, allowed: frozenset[str]) -> Iterator[tuple[int, bytes]]:
        kind, forced = ContentType(mirror.types[ordinal]), ordinal in result.forced
        rendered = render_for_query(mirror.keys[ordinal], kind, text, allowed, forced=forced)
        if rendered.digest != mirror.metadata[ordinal]:
            sealed.append(rendered)
            yield ordinal, rendered.digest

    allowed = allowed_runs(mirror, result)
    allowed_keys = frozenset(mirror.keys[ordinal] for ordinal in allowed)
    v1 = content_set(result.members, mirror.restricted)
    v2 = None
    if result.restricted_members is not None:
        v2 = content_set(result.restricted_members, mirror.restricted - allowed)
    compiled = CompiledQuery(
        v1=v1,
        v2=None if v2 == v1 else v2,
        overrides_v1=tuple(
            pair
            for ordinal in result.forced
            if (text := texts.get((ordinal, PLAIN))) is not None
            for pair in override(ordinal, text, frozenset())
        ),
        overrides_v2=tuple(
            pair
            for (ordinal, variant), text in sorted(texts.items())
            if variant == SHOWN and ordinal in (result.restricted_members or NOTHING)
            for pair in override(ordinal, text, allowed_keys)
        ),
        members=result.members | (result.restricted_members or NOTHING),
        documents=BitMap([ordinal for ordinal, _ in texts_needed(mirror, result)]),
    )
    return compiled, sealed


class Compiler:
    """One generation after another, each from the one before and what has changed since."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._queries: dict[bytes, CompiledQuery] = {}
        self._modified_ms: dict[bytes, int | None] = {}
        self._segments: dict[tuple[int, int], bytes] = {}
        self._content: dict[int, bytes] = {}
        self._query_shards: dict[int, bytes] = {}
        self._freshness_shards: dict[int, bytes] = {}
        self._catalog_shards: dict[int, bytes] = {}
        self._customer_shards: dict[int, bytes] = {}
        self._branches: dict[ObjectType, dict[int, bytes]] = {}

    def outdated(self, changes: Changes) -> set[bytes]:
        """The hashes whose compiled content these changes touch."""
        touched = {
            hash_
            for hash_, compiled in self._queries.items()
            if compiled.members.intersect(changes.facts) or compiled.documents.intersect(changes.content)
        }
        return touched | changes.hashes

    def texts_needed(self, hashes: Iterable[bytes]) -> set[tuple[int, int]]:
        """The documents that have to be at hand to compile these."""
        needed: set[tuple[int, int]] = set()
        for hash_ in hashes:
            result = self._mirror.results.get(hash_)
            if result is not None and result.members is not None:
                needed |= texts_needed(self._mirror, result)
        return needed

    def update(self, changes: Changes, outdated: set[bytes], texts: Texts) -> Iterator[Sealed]:
        """Compiles what has changed, and yields every object that this makes, documents left out."""
        used = self._mirror.used()
        for hash_ in sorted(outdated):
            result = self._mirror.results.get(hash_)
            if hash_ not in used or result is None or result.members is None:
                self._queries.pop(hash_, None)
                self._modified_ms.pop(hash_, None)
                continue
            needed = texts_needed(self._mirror, result)
            available = {key: texts[key] for key in needed if key in texts}
            self._queries[hash_], sealed = compile_query(self._mirror, result, available)
            yield from sealed
        yield from self._dictionary(changes.content)
        yield from self._content_shards(changes.content)
        moved = self._note_modified(changes.content, outdated)
        yield from self._query_and_freshness_shards({h[0] for h in outdated}, {h[0] for h in moved})
        yield from self._catalogs({uuid[0] for uuid in changes.catalogs})
        yield from self._customers({customer_shard(uuid) for uuid in changes.customers})
        yield from self._branch(ObjectType.SEGMENT, self._segments.values())
        yield from self._branch(ObjectType.CONTENT, (digest for _, digest in sorted(self._content.items())))
        yield from self._branch(ObjectType.QUERIES, self._query_shards)
        yield from self._branch(ObjectType.FRESHNESS, self._freshness_shards)
        yield from self._branch(ObjectType.CATALOGS, self._catalog_shards)

    def root(self, *, epoch: int, generation: int, published_at_ms: int, parent: bytes | None) -> Root:
        """The root of what was compiled last."""
        mirror = self._mirror
        return Root(
            epoch=epoch,
            generation=generation,
            published_at_ms=published_at_ms,
            clock=mirror.clock,
            parent=parent,
            ordinals=len(mirror.keys),
            dictionary=tuple(self._branches[ObjectType.SEGMENT].values()),
            content=tuple(self._branches[ObjectType.CONTENT].values()),
            queries=self._branches[ObjectType.QUERIES],
            freshness=self._branches[ObjectType.FRESHNESS],
            catalogs=self._branches[ObjectType.CATALOGS],
            customers=dict(self._customer_shards),
            counts={
                "catalogs": len(mirror.catalogs),
                "content": len(mirror.keys),
                "customers": len(mirror.customers),
                "documents": sum(digest is not None for digest in mirror.metadata),
                "pulled": len(self._queries),
                "queries": len(mirror.queries),
            },
            producer=PRODUCER,
        )

    def references(self) -> set[bytes]:
        """Every digest below the root of what was compiled last."""
        found = {digest for digest in self._mirror.metadata if digest is not None}
        for compiled in self._queries.values():
            found.update(compiled.references())
        for digests in (self._segments, self._content, self._query_shards, self._freshness_shards):
            found.update(digests.values())
        found.update(self._catalog_shards.values())
        found.update(self._customer_shards.values())
        for branches in self._branches.values():
            found.update(branches.values())
        return found

    def _dictionary(self, changed: BitMap) -> Iterator[Sealed]:
        mirror = self._mirror
        before, self._segments = self._segments, {}
        for first, count in segment_starts(len(mirror.keys)):
            end = first + count
            if (first, count) in before and not changed.range_cardinality(first, end):
                self._segments[first, count] = before[first, count]
                continue
            segment = Segment(
                first=first,
                types=bytes(mirror.types[first:end]),
                keys=tuple(mirror.keys[first:end]),
                parents=tuple(mirror.parents[first:end]),
                uuids=tuple(mirror.uuids[first:end]),
            )
            sealed = seal_record(segment)
            self._segments[first, count] = sealed.digest
            yield sealed

    def _content_shards(self, changed: BitMap) -> Iterator[Sealed]:
        mirror = self._mirror
        for first in range(0, len(mirror.keys), CONTENT_SHARD_ORDINALS):
            end = first + CONTENT_SHARD_ORDINALS
            if first in self._content and not changed.range_cardinality(first, end):
                continue
            sealed = seal_record(
                ContentShard(first, tuple(mirror.metadata[first:end]), tuple(mirror.modified_ms[first:end]))
            )
            self._content[first] = sealed.digest
            yield sealed

    def _branch(self, kind: ObjectType, digests: Mapping[int, bytes] | Iterable[bytes]) -> Iterator[Sealed]:
        """Makes the branches over shards by number, or over a list, that are others than before."""
        before, self._branches[kind] = frozenset(self._branches.get(kind, {}).values()), {}
        children = digests if isinstance(digests, Mapping) else dict(enumerate(digests))
        for number, branch in branches_of(kind, children).items():
            sealed = seal_record(branch)
            self._branches[kind][number] = sealed.digest
            if sealed.digest not in before:
                yield sealed

    def _note_modified(self, changed: BitMap, outdated: set[bytes]) -> set[bytes]:
        """Works out when queries' members last changed, and returns the hashes for which that is another time now."""
        mirror, moved = self._mirror, set()
        for hash_, compiled in self._queries.items():
            if hash_ not in outdated and not compiled.members.intersect(changed):
                continue
            members = mirror.results[hash_].members or NOTHING
            modified_ms = mirror.last_modified_ms(members)
            if self._modified_ms.get(hash_) != modified_ms:
                self._modified_ms[hash_] = modified_ms
                moved.add(hash_)
        return moved

    def _query_and_freshness_shards(self, shards: set[int], freshness_shards: set[int]) -> Iterator[Sealed]:
        """Makes both kinds of the first shards, and of the others those of freshness alone."""
        mirror = self._mirror
        records: dict[bytes, QueryRow | None] = {}
        for query in mirror.queries.values():
            if query.serving is not None and mirror.users.get(query.id):
                records.setdefault(query.serving, None)
            records[query.hash] = query
        for hash_ in mirror.served_before():
            records.setdefault(hash_, None)
        by_shard: dict[int, list[bytes]] = {shard: [] for shard in shards | freshness_shards}
        for hash_ in sorted(records):
            if hash_[0] in by_shard:
                by_shard[hash_[0]].append(hash_)
        for shard, hashes in sorted(by_shard.items()):
            if not hashes:
                self._query_shards.pop(shard, None)
                self._freshness_shards.pop(shard, None)
                continue
            if shard in shards:
                queries = QueryShard(tuple(self._query_record(h, records[h]) for h in hashes))
                yield from _shard(self._query_shards, shard, queries)
            freshness = FreshnessShard(tuple(self._freshness(h) for h in hashes))
            yield from _shard(self._freshness_shards, shard, freshness)

    def _query_record(self, hash_: bytes, row: QueryRow | None) -> QueryRecord:
        compiled = self._queries.get(hash_)
        return QueryRecord(
            hash=hash_,
            id=None if row is None else row.id,
            uuid=None if row is None else row.uuid,
            title=None if row is None else row.title,
            content_filter=self._mirror.results[hash_].content_filter if row is None else row.content_filter,
            v1=None if compiled is None else compiled.v1,
            v2=None if compiled is None else compiled.v2,
            overrides_v1=() if compiled is None else compiled.overrides_v1,
            overrides_v2=() if compiled is None else compiled.overrides_v2,
        )

    def _freshness(self, hash_: bytes) -> Freshness:
        result = self._mirror.results.get(hash_)
        if result is None:
            return Freshness(hash_, None, PullState.DUE, None, None)
        pulled_at_ms = result.pulled_at_ms if hash_ in self._queries else None
        return Freshness(hash_, pulled_at_ms, result.state, result.task, self._modified_ms.get(hash_))

    def _catalogs(self, shards: set[int]) -> Iterator[Sealed]:
        mirror = self._mirror
        by_shard: dict[int, list[CatalogRecord]] = {shard: [] for shard in shards}
        for uuid in sorted(u for u in mirror.catalogs if u[0] in by_shard):
            row = mirror.catalogs[uuid]
            query = mirror.queries[row.query_id]
            record = CatalogRecord(
                uuid=uuid,
                number=row.number,
                wanted=query.hash,
                serving=mirror.serving(row),
                customer=row.customer,
                customer_name=row.customer_name,
                title=row.title,
                course_modes=row.course_modes,
                audit_urls=row.audit_urls,
                created_ms=row.created_ms,
                modified_ms=row.modified_ms,
            )
            by_shard[uuid[0]].append(record)
        for shard, records in sorted(by_shard.items()):
            yield from _shard(self._catalog_shards, shard, CatalogShard(tuple(records)) if records else None)

    def _customers(self, shards: set[int]) -> Iterator[Sealed]:
        by_shard: dict[int, list[CustomerRecord]] = {shard: [] for shard in shards}
        for uuid, row in sorted(self._mirror.customers.items()):
            if customer_shard(uuid) in by_shard:
                record = CustomerRecord(uuid, row.slug, row.portal, row.name, row.modified_ms)
                by_shard[customer_shard(uuid)].append(record)
        for shard, records in sorted(by_shard.items()):
            yield from _shard(self._customer_shards, shard, CustomerShard(tuple(records)) if records else None)


def _shard(digests: dict[int, bytes], shard: int, record: Any) -> Iterator[Sealed]:
    if record is None:
        digests.pop(shard, None)
        return
    sealed = seal_record(record)
    digests[shard] = sealed.digest
    yield sealed
