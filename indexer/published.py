"""A sample of the published generation, read piece by piece: some catalogs, some keys, and what contains which.

A whole index takes hundreds of megabytes; this opens the catalogs' shards, and of queries, bitmaps and the dictionary
only what the sampled catalogs and their customers need. Every object is verified. Nothing is kept.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random
from typing import Final, TypeVar
from uuid import UUID

from pyroaring import BitMap

from indexer.questions import Case, Holding, Key
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    Bitmap,
    Branch,
    CatalogRecord,
    CatalogShard,
    ContentSet,
    QueryRecord,
    QueryShard,
    Root,
    Segment,
    open_record,
    segment_starts,
)
from sidecar.contract.words import ContentType
from sidecar.errors import ObjectMissing
from sidecar.store import Store

MEMBERS: Final = 3
NESTED: Final = 2
FOREIGN: Final = 1
# Whoever has more catalogs than these is asked about one by one, and not as a customer.
MOST_CATALOGS: Final = 100
R = TypeVar("R")


async def sample(store: Store, catalogs: int, random: Random) -> list[Case]:
    """So many catalogs, or all, by chance, each with keys that it contains and keys that another one does.

    Raises ObjectMissing if nothing was published, StoreError or ContractError for a store that cannot be read.
    """
    pointer = await store.pointer()
    if pointer is None:
        raise ObjectMissing("the store has no root pointer: nothing was ever published here")
    return await _Reader(store, await _open(store, pointer.digest, ObjectType.ROOT, Root)).cases(catalogs, random)


class _Reader:
    def __init__(self, store: Store, root: Root) -> None:
        self._store = store
        self._root = root
        self._queries: dict[bytes, QueryRecord] = {}

    async def cases(self, catalogs: int, random: Random) -> list[Case]:
        every = [
            record
            for branch in self._root.catalogs.values()
            for digest in (await _open(self._store, branch, ObjectType.BRANCH, Branch)).children.values()
            for record in (await _open(self._store, digest, ObjectType.CATALOGS, CatalogShard)).records
        ]
        every.sort(key=lambda record: record.number)
        chosen = random.sample(every, min(catalogs, len(every)))
        of_customer: dict[bytes, list[CatalogRecord]] = {record.customer: [] for record in chosen}
        for record in every:
            if record.customer in of_customer:
                of_customer[record.customer].append(record)
        picked = [await self._pick(record, random) for record in chosen]
        cases = []
        for place, record in enumerate(chosen):
            foreign = picked[(place + 1) % len(picked)][:FOREIGN]
            ordinals = dict.fromkeys((*picked[place], *foreign))
            cases.append(await self._case(record, of_customer[record.customer], await self._keys(ordinals)))
        return cases

    async def _pick(self, record: CatalogRecord, random: Random) -> list[int]:
        """Ordinals of some members, and of some that are contained and no members."""
        content = await self._content(record, "v1")
        if content is None:
            return []
        members, contained = await self._bitmap(content.members), await self._bitmap(content.contained)
        nested = contained - members
        picked = [members[place] for place in random.sample(range(len(members)), min(MEMBERS, len(members)))]
        return picked + [nested[place] for place in random.sample(range(len(nested)), min(NESTED, len(nested)))]

    async def _case(self, record: CatalogRecord, theirs: Sequence[CatalogRecord], keys: Mapping[int, Key]) -> Case:
        many = len(theirs) > MOST_CATALOGS
        catalogs = [record] if many else theirs
        return Case(
            uuid=str(UUID(bytes=record.uuid)),
            customer=None if many else str(UUID(bytes=record.customer)),
            query=record.wanted.hex(),
            keys=tuple(keys.values()),
            v1={str(UUID(bytes=c.uuid)): await self._holding(c, "v1", keys) for c in catalogs},
            v2={str(UUID(bytes=c.uuid)): await self._holding(c, "v2", keys) for c in catalogs},
            never_pulled=frozenset(str(UUID(bytes=c.uuid)) for c in catalogs if c.serving is None),
            changed=frozenset(str(UUID(bytes=c.uuid)) for c in catalogs if c.serving not in (None, c.wanted)),
        )

    async def _holding(self, record: CatalogRecord, version: str, keys: Mapping[int, Key]) -> Holding:
        content = await self._content(record, version)
        if content is None:
            return Holding()
        members, contained = await self._bitmap(content.members), await self._bitmap(content.contained)
        return Holding(
            members=frozenset(key.key for ordinal, key in keys.items() if ordinal in members),
            contained=frozenset(key.key for ordinal, key in keys.items() if ordinal in contained),
        )

    async def _content(self, record: CatalogRecord, version: str) -> ContentSet | None:
        if record.serving is None:
            return None
        query = await self._query(record.serving)
        return query.v1 if version == "v1" or query.v2 is None else query.v2

    async def _query(self, hash_: bytes) -> QueryRecord:
        if hash_ not in self._queries:
            digest = await self._child(self._root.queries, hash_[0])
            if digest is None:
                raise ObjectMissing(f"query {hash_.hex()} has no shard")
            shard = await _open(self._store, digest, ObjectType.QUERIES, QueryShard)
            self._queries |= {record.hash: record for record in shard.records}
        if hash_ not in self._queries:
            raise ObjectMissing(f"query {hash_.hex()} is not in its shard")
        return self._queries[hash_]

    async def _child(self, branches: Mapping[int, bytes], number: int) -> bytes | None:
        """The digest of the object of this number below these branches."""
        branch, place = divmod(number, BRANCH_CHILDREN)
        if branch not in branches:
            return None
        return (await _open(self._store, branches[branch], ObjectType.BRANCH, Branch)).children.get(place)

    async def _bitmap(self, digest: bytes) -> BitMap:
        return (await _open(self._store, digest, ObjectType.BITMAP, Bitmap)).ordinals

    async def _keys(self, ordinals: Collection[int]) -> dict[int, Key]:
        """The keys of ordinals; of a run, with its course's key."""
        rows = await self._rows(ordinals)
        courses = await self._rows(parent for _, _, parent in rows.values() if parent is not None)
        return {
            ordinal: Key(key, kind, None if parent is None else courses[parent][0])
            for ordinal, (key, kind, parent) in rows.items()
        }

    async def _rows(self, ordinals: Iterable[int]) -> dict[int, tuple[str, ContentType, int | None]]:
        """Key, type and parent of each of these ordinals, in their order."""
        rows: dict[int, tuple[str, ContentType, int | None] | None] = dict.fromkeys(ordinals)
        branches = dict(enumerate(self._root.dictionary))
        for number, (first, count) in enumerate(segment_starts(self._root.ordinals)):
            here = [ordinal for ordinal in rows if first <= ordinal < first + count]
            if here and (digest := await self._child(branches, number)) is not None:
                segment = await _open(self._store, digest, ObjectType.SEGMENT, Segment)
                for ordinal in here:
                    place = ordinal - first
                    kind = ContentType(segment.types[place])
                    rows[ordinal] = (segment.keys[place], kind, segment.parents[place])
        return {ordinal: row for ordinal, row in rows.items() if row is not None}


async def _open(store: Store, digest: bytes, kind: ObjectType, wanted: type[R]) -> R:
    data = (await store.get([digest])).get(digest)
    if data is None:
        raise ObjectMissing(f"{kind.name.lower()} {digest.hex()} is not in the store")
    record = await asyncio.to_thread(open_record, digest, data, kind)
    assert isinstance(record, wanted)
    return record
