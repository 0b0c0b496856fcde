"""The read-only index: one generation's records, joined and checked, ready to be asked. Pure, and never changed.

`Index.assemble` takes records that were opened one by one and refuses the whole generation if they do not fit together
(section 5 of the contract). What the index before it was made of is neither checked nor joined again, so that a small
change is little work however large the index. Everything that the hot path touches is a plain attribute of a slotted
object.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from sys import intern
from typing import ClassVar, NamedTuple, TypeVar

from pyroaring import BitMap

from sidecar.contract.dictionary import Dictionary
from sidecar.contract.held import IN_INDEX, Held, index_references
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    CONTENT_SHARD_ORDINALS,
    Bitmap,
    Branch,
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
    Root,
    Segment,
    customer_shard,
    segments_of,
)
from sidecar.contract.words import PullState
from sidecar.errors import Malformed

__all__ = [
    "IN_INDEX",
    "Catalog",
    "Content",
    "Dictionary",
    "Index",
    "Query",
    "check_content",
    "check_root",
    "index_references",
]

R = TypeVar("R")
Digests = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Content:
    """What a query's catalogs contain, for one version of the API. `unlisted`: members that pages leave out."""

    members: BitMap
    contained: BitMap
    unlisted: BitMap

    @property
    def listed(self) -> BitMap:
        """What pages list; worked out each time, in some microseconds, because most of it is members once more."""
        return self.members - self.unlisted if self.unlisted else self.members


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


class Changed(NamedTuple):
    """Which queries and catalogs are others than in the index `since` (its digest), or are in only one of the two."""

    since: bytes
    queries: frozenset[bytes]
    catalogs: frozenset[str]


_number = attrgetter("record.number")


class Index:
    """One complete generation. Attributes: the root and its digest, and mappings by key, hash and uuid.

    `shards`: the digests of all shards and segments by their numbers, of each type; `content`: those of content shards,
    in order. `changed` is None in an index that was made from nothing.
    """

    HELD: ClassVar = IN_INDEX
    __slots__ = (
        "_users",
        "catalogs",
        "changed",
        "content",
        "customers",
        "dictionary",
        "digest",
        "of_customer",
        "queries",
        "records",
        "root",
        "shards",
    )

    def __init__(self, digest: bytes, records: Mapping[bytes, Record], before: "Index | None") -> None:
        """Use `assemble`."""
        self.digest = digest
        self.records: Held = (Held(self.HELD) if before is None else before.records).after(digest, records)
        self.root = self._get(digest, Root)
        self.shards: dict[ObjectType, Digests] = {}
        for kind, branches in (
            (ObjectType.SEGMENT, dict(enumerate(self.root.dictionary))),
            (ObjectType.CONTENT, dict(enumerate(self.root.content))),
            (ObjectType.QUERIES, self.root.queries),
            (ObjectType.FRESHNESS, self.root.freshness),
            (ObjectType.CATALOGS, self.root.catalogs),
        ):
            self.shards[kind] = self._children(kind, branches)
        self.shards[ObjectType.CUSTOMERS] = self.root.customers
        segments = self._list(ObjectType.SEGMENT, segments_of(self.root.ordinals))
        self.content = self._list(ObjectType.CONTENT, -(-self.root.ordinals // CONTENT_SHARD_ORDINALS))
        opened = tuple(self._get(digest, Segment) for digest in segments)
        known = Dictionary() if before is None else before.dictionary
        self.dictionary: Dictionary = known.after(opened, self.root.ordinals)
        if before is not None and self.dictionary.ordinals is not before.dictionary.ordinals:
            # What ordinals mean is not what it was: nothing that was joined and checked before holds.
            before = None
        # Which catalogs want or serve a query.
        self._users: dict[bytes, tuple[str, ...]] = {} if before is None else before._users
        queries = self._join_queries(before)
        catalogs = self._join_catalogs(before, queries)
        self._join_customers(before)
        self._group(before, catalogs)
        self.changed = None if before is None else Changed(before.digest, frozenset(queries), frozenset(catalogs))

    @classmethod
    def assemble(cls, digest: bytes, records: Mapping[bytes, Record], before: "Index | None" = None) -> "Index":
        """The index of the generation whose root is `digest`, from the records that `index_references` leads to: all
        of them, or those that an index `before` it does not hold.

        What that has already made of the same objects is used again.
        Raises Malformed if they break what a reader may rely on, or if one is missing.
        """
        return cls(digest, records, before)

    def users(self, query: bytes) -> list[Catalog]:
        """The catalogs that want or serve the query of this hash."""
        return [self.catalogs[uuid] for uuid in self._users.get(query, ())]

    def _get(self, digest: bytes, kind: type[R]) -> R:
        record = self.records[digest]
        assert isinstance(record, kind)
        return record

    def _children(self, kind: ObjectType, branches: Digests) -> dict[int, bytes]:
        """The objects of a kind by their numbers, from the branches over them."""
        children = {}
        for number, digest in branches.items():
            branch = self._get(digest, Branch)
            if branch.kind != kind:
                raise Malformed(f"branch {digest.hex()}: of {branch.kind.name}, where one of {kind.name} is referenced")
            for place, child in branch.children.items():
                children[number * BRANCH_CHILDREN + place] = child
        return children

    def _list(self, kind: ObjectType, length: int) -> tuple[bytes, ...]:
        digests = self.shards[kind]
        if list(digests) != list(range(length)):
            raise Malformed(f"{kind.name.lower()}: {len(digests)} of {length} have a digest, or in other places")
        return tuple(digests.values())

    def _differing(self, kind: ObjectType, before: "Index | None") -> set[int]:
        """The numbers of the shards that are others than before, or are there in only one of the two."""
        new = self.shards[kind]
        if before is None:
            return set(new)
        return {number for number, _ in new.items() ^ before.shards[kind].items()}

    def _records_of(self, kind: ObjectType, wanted: type[R], number: int) -> R | None:
        digest = self.shards[kind].get(number)
        return None if digest is None else self._get(digest, wanted)

    def _bitmap(self, digest: bytes) -> BitMap:
        return check_bitmap(digest, self._get(digest, Bitmap).ordinals, len(self.dictionary))

    def _content(self, digests: ContentSet | None) -> Content | None:
        if digests is None:
            return None
        return Content(
            members=self._bitmap(digests.members),
            contained=self._bitmap(digests.contained),
            unlisted=self._bitmap(digests.unlisted),
        )

    def _join_queries(self, before: "Index | None") -> set[bytes]:
        """Sets `queries`; returns the hashes of those that are others than before."""
        differing = self._differing(ObjectType.QUERIES, before) | self._differing(ObjectType.FRESHNESS, before)
        if before is not None and not differing:
            self.queries: dict[bytes, Query] = before.queries
            return set()
        self.queries = {} if before is None else before.queries.copy()
        changed: set[bytes] = set()
        for byte in sorted(differing):
            freshness = self._records_of(ObjectType.FRESHNESS, FreshnessShard, byte) or FreshnessShard(())
            fresh = {record.hash: record for record in freshness.records}
            old: dict[bytes, Query] = {}
            if before is not None:
                shard = before._records_of(ObjectType.QUERIES, QueryShard, byte) or QueryShard(())
                old = {record.hash: self.queries.pop(record.hash) for record in shard.records}
            for record in (self._records_of(ObjectType.QUERIES, QueryShard, byte) or QueryShard(())).records:
                _in_shard(record.hash[0], byte, "query")
                query = self._query(record, fresh.pop(record.hash, None), old.get(record.hash))
                if query is not old.pop(record.hash, None):
                    changed.add(record.hash)
                self.queries[record.hash] = query
            if fresh:
                raise Malformed(f"freshness of {len(fresh)} queries that have no record in shard {byte:02x}")
            changed.update(old)
        return changed

    def _query(self, record: QueryRecord, fresh: Freshness | None, old: Query | None) -> Query:
        """A query, joined; the old one if nothing of it has changed."""
        if fresh is None:
            raise Malformed(f"query {record.hash.hex()} has no freshness record")
        same = old is not None and old.record == record
        if old is not None and same and _freshness_of(old) == fresh:
            return old
        for ordinal, _ in record.overrides_v1 + record.overrides_v2:
            if ordinal >= len(self.dictionary):
                raise Malformed(f"query {record.hash.hex()}: an override of ordinal {ordinal}")
        v1 = old.v1 if old is not None and old.record.v1 == record.v1 else self._content(record.v1)
        if record.v2 is None:
            v2 = v1
        else:
            v2 = old.v2 if old is not None and old.record.v2 == record.v2 else self._content(record.v2)
        return Query(
            hash=record.hash,
            record=record,
            v1=v1,
            v2=v2,
            pulled_at_ms=fresh.pulled_at_ms,
            state=fresh.state,
            task_id=fresh.task_id,
            modified_ms=fresh.modified_ms,
        )

    def _join_catalogs(self, before: "Index | None", queries: Iterable[bytes]) -> set[str]:
        """Sets `catalogs`; returns the uuids of those that are others than before, also because their query is."""
        differing = self._differing(ObjectType.CATALOGS, before)
        resting = [] if before is None else [uuid for hash_ in queries for uuid in before._users.get(hash_, ())]
        if before is not None and not differing and not resting:
            self.catalogs: dict[str, Catalog] = before.catalogs
            return set()
        self.catalogs = {} if before is None else before.catalogs.copy()
        changed: set[str] = set()
        moved: list[tuple[Catalog | None, Catalog | None]] = []
        for byte in sorted(differing):
            old: dict[bytes, Catalog] = {}
            if before is not None:
                was = before._records_of(ObjectType.CATALOGS, CatalogShard, byte) or CatalogShard(())
                old = {record.uuid: self.catalogs.pop(_uuid(record.uuid)) for record in was.records}
            for record in (self._records_of(ObjectType.CATALOGS, CatalogShard, byte) or CatalogShard(())).records:
                _in_shard(record.uuid[0], byte, "catalog")
                had = old.pop(record.uuid, None)
                catalog = self._catalog(record, had)
                self.catalogs[catalog.uuid] = catalog
                if catalog is not had:
                    changed.add(catalog.uuid)
                    moved.append((had, catalog))
            moved += ((gone, None) for gone in old.values())
            changed.update(gone.uuid for gone in old.values())
        for uuid in resting:
            had = self.catalogs.get(uuid)
            if had is not None and (catalog := self._catalog(had.record, had)) is not had:
                self.catalogs[uuid] = catalog
                changed.add(uuid)
        self._note_users(moved)
        return changed

    def _catalog(self, record: CatalogRecord, old: Catalog | None) -> Catalog:
        """A catalog, joined; the old one if nothing of it and of its queries has changed."""
        wanted = self.queries.get(record.wanted)
        serving = None if record.serving is None else self.queries.get(record.serving)
        if wanted is None or (record.serving is not None and (serving is None or serving.v1 is None)):
            raise Malformed(f"catalog {record.uuid.hex()} rests on a query that has no record or no content")
        if old is not None and old.wanted is wanted and old.serving is serving and old.record == record:
            return old
        return Catalog(_uuid(record.uuid), intern(_uuid(record.customer)), record, wanted, serving)

    def _note_users(self, moved: Iterable[tuple[Catalog | None, Catalog | None]]) -> None:
        gone: dict[bytes, set[str]] = {}
        came: dict[bytes, list[str]] = {}
        for old, new in moved:
            was, now = _hashes(old), _hashes(new)
            for hash_ in was - now:
                gone.setdefault(hash_, set()).add(old.uuid)  # type: ignore[union-attr]
            for hash_ in now - was:
                came.setdefault(hash_, []).append(new.uuid)  # type: ignore[union-attr]
        if not gone and not came:
            return
        users = self._users.copy()
        for hash_ in gone.keys() | came.keys():
            left = gone.get(hash_, set())
            now_ = (*(uuid for uuid in users.get(hash_, ()) if uuid not in left), *came.get(hash_, ()))
            if now_:
                users[hash_] = now_
            else:
                del users[hash_]
        self._users = users

    def _join_customers(self, before: "Index | None") -> None:
        differing = self._differing(ObjectType.CUSTOMERS, before)
        if before is not None and not differing:
            self.customers: dict[str, CustomerRecord] = before.customers
            return
        self.customers = {} if before is None else before.customers.copy()
        for number in sorted(differing):
            if before is not None:
                was = before._records_of(ObjectType.CUSTOMERS, CustomerShard, number) or CustomerShard(())
                for record in was.records:
                    del self.customers[_uuid(record.uuid)]
            for record in (self._records_of(ObjectType.CUSTOMERS, CustomerShard, number) or CustomerShard(())).records:
                _in_shard(customer_shard(record.uuid), number, "customer")
                self.customers[intern(_uuid(record.uuid))] = record

    def _group(self, before: "Index | None", changed: Iterable[str]) -> None:
        """Sets `of_customer`: the catalogs of each customer that has any, in order of their creation."""
        self.of_customer: dict[str, tuple[Catalog, ...]] = {}
        if before is None:
            groups: dict[str, list[Catalog]] = {}
            for catalog in sorted(self.catalogs.values(), key=_number):
                groups.setdefault(catalog.customer, []).append(catalog)
            self.of_customer = {customer: tuple(theirs) for customer, theirs in groups.items()}
            return
        touched = {
            index.catalogs[uuid].customer for uuid in changed for index in (before, self) if uuid in index.catalogs
        }
        self.of_customer = before.of_customer.copy() if touched else before.of_customer
        new: dict[str, list[Catalog]] = {customer: [] for customer in touched}
        for uuid in changed:
            if (here := self.catalogs.get(uuid)) is not None:
                new[here.customer].append(here)
        replaced = frozenset(changed)
        for customer, theirs in new.items():
            theirs += (c for c in before.of_customer.get(customer, ()) if c.uuid not in replaced)
            if theirs:
                self.of_customer[customer] = tuple(sorted(theirs, key=_number))
            else:
                del self.of_customer[customer]


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


def _freshness_of(query: Query) -> Freshness:
    return Freshness(query.hash, query.pulled_at_ms, query.state, query.task_id, query.modified_ms)


def _hashes(catalog: Catalog | None) -> set[bytes]:
    if catalog is None:
        return set()
    return {hash_ for hash_ in (catalog.record.wanted, catalog.record.serving) if hash_ is not None}


def _uuid(data: bytes) -> str:
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _in_shard(have: int, want: int, what: str) -> None:
    if have != want:
        raise Malformed(f"{what} shard {want:02x}: a record of shard {have:02x}")
