"""What differs between two generations: two trees are walked side by side, and what has equal digests is skipped.

So the work is that of the difference, however large both are. Only what is published is compared: when something was
pulled is no difference.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar
from uuid import UUID

from pyroaring import BitMap

from indexer.registry.generations import Generation
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    Bitmap,
    Branch,
    CatalogRecord,
    CatalogShard,
    ContentSet,
    ContentShard,
    CustomerRecord,
    CustomerShard,
    QueryRecord,
    QueryShard,
    Record,
    Root,
    Segment,
    open_record,
)
from sidecar.errors import CatalogError, ContractError, ObjectMissing
from sidecar.store import Store

BATCH: Final = 256

R = TypeVar("R", CatalogRecord, CustomerRecord, QueryRecord)
S = TypeVar("S", bound=Record)


class TreeUnreadable(CatalogError):
    """Raised when an object that has to be compared is not in the store, or not sound."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Fields that differ, by name: before and after, as plain data."""

    id: str
    title: str | None
    fields: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Named:
    """Something that is in one of the two alone."""

    id: str
    title: str | None


@dataclass(frozen=True, slots=True)
class Keys:
    """Content keys that a set has gained and lost, in order of ordinals."""

    gained: list[str]
    lost: list[str]


@dataclass(frozen=True, slots=True)
class ChangedQuery:
    """A query whose record differs. `v1`, `v2`: the sets that do, by name: members, contained, unlisted (by pages);
    `v2` is None if the second version of the API has those of the first, in both.

    `documents`: the content keys of those that it shows in a form of its own, in either of the two, if that differs.
    """

    id: str
    title: str | None
    fields: dict[str, tuple[Any, Any]]
    v1: dict[str, Keys]
    v2: dict[str, Keys] | None
    documents: list[str]


@dataclass(slots=True)
class Diff:
    """All that differs between generations `before` and `after`. Documents, those that all share, by content key."""

    before: int
    after: int
    catalogs_added: list[Named] = field(default_factory=list)
    catalogs_removed: list[Named] = field(default_factory=list)
    catalogs_changed: list[Changed] = field(default_factory=list)
    queries_added: list[ChangedQuery] = field(default_factory=list)
    queries_removed: list[ChangedQuery] = field(default_factory=list)
    queries_changed: list[ChangedQuery] = field(default_factory=list)
    customers_added: list[Named] = field(default_factory=list)
    customers_removed: list[Named] = field(default_factory=list)
    customers_changed: list[Changed] = field(default_factory=list)
    documents_added: list[str] = field(default_factory=list)
    documents_removed: list[str] = field(default_factory=list)
    documents_changed: list[str] = field(default_factory=list)

    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not any(getattr(self, f.name) for f in fields(self) if f.name not in ("before", "after"))


async def diff(store: Store, before: Generation, after: Generation) -> Diff:
    """What has to be done to the first to get the second. Raises TreeUnreadable, StoreError."""
    return await _Comparison(_Side(store, before), _Side(store, after)).run()


class _Side:
    """One of the two trees."""

    def __init__(self, store: Store, generation: Generation) -> None:
        self.generation = generation
        self._store = store
        self._keys: list[str] | None = None

    async def root(self) -> Root:
        return (await self.read(ObjectType.ROOT, [self.generation.digest], Root))[self.generation.digest]

    async def read(self, kind: ObjectType, digests: Iterable[bytes], wanted: type[S]) -> dict[bytes, S]:
        """These objects, opened."""
        records: dict[bytes, S] = {}
        remaining = list(dict.fromkeys(digests))
        for first in range(0, len(remaining), BATCH):
            batch = remaining[first : first + BATCH]
            objects = await self._store.get(batch)
            for digest in batch:
                record = self._open(kind, digest, objects)
                assert isinstance(record, wanted)
                records[digest] = record
        return records

    async def children(self, branches: Iterable[bytes]) -> dict[bytes, Mapping[int, bytes]]:
        """What these branches name."""
        opened = await self.read(ObjectType.BRANCH, branches, Branch)
        return {digest: branch.children for digest, branch in opened.items()}

    async def named(self, ordinals: Iterable[int]) -> list[str]:
        """The content keys of ordinals."""
        wanted = list(ordinals)
        if wanted and self._keys is None:
            root = await self.root()
            branches = await self.children(root.dictionary)
            digests = [digest for branch in root.dictionary for _, digest in sorted(branches[branch].items())]
            segments = await self.read(ObjectType.SEGMENT, digests, Segment)
            self._keys = [key for digest in digests for key in segments[digest].keys]
        return [(self._keys or [])[ordinal] for ordinal in wanted]

    async def ordinals(self, digest: bytes | None) -> BitMap:
        """A set; an empty one if there is none."""
        if digest is None:
            return BitMap()
        return (await self.read(ObjectType.BITMAP, [digest], Bitmap))[digest].ordinals

    def _open(self, kind: ObjectType, digest: bytes, objects: Mapping[bytes, bytes]) -> Record:
        try:
            if digest not in objects:
                raise ObjectMissing(f"{kind.name.lower()} {digest.hex()} is not in the store")
            return open_record(digest, objects[digest], kind)
        except (ContractError, ObjectMissing) as error:
            raise TreeUnreadable(
                f"generation {self.generation.generation} cannot be read any more: {error}. `catalog-indexer "
                "generations` lists those whose trees are still in the store; store.keep_generations says how many are "
                "kept"
            ) from error


class _Comparison:
    def __init__(self, before: _Side, after: _Side) -> None:
        self._before = before
        self._after = after
        self._diff = Diff(before.generation.generation, after.generation.generation)

    async def run(self) -> Diff:
        old, new = await self._before.root(), await self._after.root()
        await self._catalogs(old.catalogs, new.catalogs)
        await self._customers(old.customers, new.customers)
        await self._queries(old.queries, new.queries)
        await self._documents(dict(enumerate(old.content)), dict(enumerate(new.content)))
        return self._diff

    async def _shards(
        self, kind: ObjectType, old: Mapping[int, bytes], new: Mapping[int, bytes], wanted: type[S]
    ) -> list[tuple[S | None, S | None]]:
        """The shards below these branches that differ, side by side."""
        was = await self._children(self._before, _only(old, new))
        now = await self._children(self._after, _only(new, old))
        return await self._pairs(kind, was, now, wanted)

    async def _pairs(
        self, kind: ObjectType, was: Mapping[int, bytes], now: Mapping[int, bytes], wanted: type[S]
    ) -> list[tuple[S | None, S | None]]:
        mine, theirs = _only(was, now), _only(now, was)
        old = await self._before.read(kind, mine.values(), wanted)
        new = await self._after.read(kind, theirs.values(), wanted)
        return [
            (old[mine[n]] if n in mine else None, new[theirs[n]] if n in theirs else None)
            for n in sorted(mine.keys() | theirs.keys())
        ]

    async def _children(self, side: _Side, branches: Mapping[int, bytes]) -> dict[int, bytes]:
        opened = await side.children(branches.values())
        return {
            number * BRANCH_CHILDREN + place: child
            for number, branch in branches.items()
            for place, child in opened[branch].items()
        }

    async def _catalogs(self, old: Mapping[int, bytes], new: Mapping[int, bytes]) -> None:
        for was, now in await self._shards(ObjectType.CATALOGS, old, new, CatalogShard):
            for uuid, a, b in _records(() if was is None else was.records, () if now is None else now.records, "uuid"):
                id_ = str(UUID(bytes=uuid))
                if a is None and b is not None:
                    self._diff.catalogs_added.append(Named(id_, b.title))
                elif b is None and a is not None:
                    self._diff.catalogs_removed.append(Named(id_, a.title))
                elif a is not None and b is not None:
                    self._diff.catalogs_changed.append(Changed(id_, b.title, _fields(a, b)))

    async def _customers(self, old: Mapping[int, bytes], new: Mapping[int, bytes]) -> None:
        for was, now in await self._pairs(ObjectType.CUSTOMERS, old, new, CustomerShard):
            for uuid, a, b in _records(() if was is None else was.records, () if now is None else now.records, "uuid"):
                id_ = str(UUID(bytes=uuid))
                if a is None and b is not None:
                    self._diff.customers_added.append(Named(id_, b.name))
                elif b is None and a is not None:
                    self._diff.customers_removed.append(Named(id_, a.name))
                elif a is not None and b is not None:
                    self._diff.customers_changed.append(Changed(id_, b.name, _fields(a, b)))

    async def _queries(self, old: Mapping[int, bytes], new: Mapping[int, bytes]) -> None:
        for was, now in await self._shards(ObjectType.QUERIES, old, new, QueryShard):
            for hash_, a, b in _records(() if was is None else was.records, () if now is None else now.records, "hash"):
                one = b or a
                assert one is not None
                old_v1, old_v2 = _versions(a)
                new_v1, new_v2 = _versions(b)
                changed = ChangedQuery(
                    id=hash_.hex(),
                    title=one.title,
                    fields={} if a is None or b is None else _fields(a, b, without=_SETS),
                    v1=await self._sets(old_v1, new_v1),
                    v2=await self._sets(old_v2, new_v2) if old_v1 != old_v2 or new_v1 != new_v2 else None,
                    documents=await self._own_documents(a, b),
                )
                into = self._diff.queries_changed
                if a is None or b is None:
                    into = self._diff.queries_added if a is None else self._diff.queries_removed
                into.append(changed)

    async def _sets(self, old: ContentSet | None, new: ContentSet | None) -> dict[str, Keys]:
        found = {}
        for name in ("members", "contained", "unlisted"):
            was, now = getattr(old, name, None), getattr(new, name, None)
            if was == now:
                continue
            mine, theirs = await self._before.ordinals(was), await self._after.ordinals(now)
            keys = Keys(await self._after.named(theirs - mine), await self._before.named(mine - theirs))
            if keys.gained or keys.lost:
                found[name] = keys
        return found

    async def _own_documents(self, old: QueryRecord | None, new: QueryRecord | None) -> list[str]:
        was, now = _own(old), _own(new)
        gone, here = was.keys() - now.keys(), {key for key, digest in now.items() if was.get(key) != digest}
        named = await self._before.named(sorted({ordinal for _, ordinal in gone}))
        return list(dict.fromkeys([*named, *await self._after.named(sorted({ordinal for _, ordinal in here}))]))

    async def _documents(self, old: Mapping[int, bytes], new: Mapping[int, bytes]) -> None:
        for was, now in await self._shards(ObjectType.CONTENT, old, new, ContentShard):
            mine, theirs = _by_ordinal(was), _by_ordinal(now)
            self._diff.documents_added += await self._after.named(o for o in theirs if o not in mine)
            self._diff.documents_removed += await self._before.named(o for o in mine if o not in theirs)
            differing = (o for o in theirs if o in mine and mine[o] != theirs[o])
            self._diff.documents_changed += await self._after.named(differing)


_SETS: Final = ("v1", "v2", "overrides_v1", "overrides_v2")


def _only(mine: Mapping[int, bytes], theirs: Mapping[int, bytes]) -> dict[int, bytes]:
    """Of one side: what is not the same on the other."""
    return {number: digest for number, digest in mine.items() if theirs.get(number) != digest}


def _records(old: Sequence[R], new: Sequence[R], name: str) -> Iterator[tuple[bytes, R | None, R | None]]:
    """The records that differ, side by side, in order of their identifiers."""
    was, now = {getattr(r, name): r for r in old}, {getattr(r, name): r for r in new}
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            yield key, was.get(key), now.get(key)


def _versions(record: QueryRecord | None) -> tuple[ContentSet | None, ContentSet | None]:
    """The sets of both versions of the API; where the second has none of its own, it has those of the first."""
    return (None, None) if record is None else (record.v1, record.v2 or record.v1)


def _own(record: QueryRecord | None) -> dict[tuple[int, int], bytes]:
    """The digests of a query's own documents, by version of the API and ordinal."""
    overrides = () if record is None else (record.overrides_v1, record.overrides_v2)
    return {(version, ordinal): digest for version, pairs in enumerate(overrides, 1) for ordinal, digest in pairs}


def _by_ordinal(shard: ContentShard | None) -> dict[int, bytes]:
    if shard is None:
        return {}
    return {ordinal: digest for ordinal, digest in enumerate(shard.metadata, shard.first) if digest is not None}


def _fields(old: R, new: R, without: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as plain data."""
    names = [f.name for f in fields(old) if f.name not in without]
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in names}
    return {name: (_plain(a), _plain(b)) for name, (a, b) in pairs.items() if a != b}


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value
