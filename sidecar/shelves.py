"""Fetching documents by their ordinals: content shard, then metadata, through memory, disk and store.

Everything is asked of one generation. A document that a generation says it has and no tier has whole is StoreError,
never left out: a page that is a document short would be taken for the truth.
"""

import asyncio
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from sidecar.contract.index import Index, check_content
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import CONTENT_SHARD_ORDINALS, ContentShard, Metadata, Record, Reference
from sidecar.documents import Values, buffers_of
from sidecar.errors import ContractError, ObjectMissing
from sidecar.memory import Filled
from sidecar.streams import Stream, Vector
from sidecar.tiers import Tiers

# How many documents are held at once on their way into an answer; most are 10 to 100 KB.
BATCH: Final = 64
# The largest page of a catalog. Answers of more documents are made as they are sent.
AT_ONCE: Final = 100
NOTHING: Final[Mapping[int, bytes]] = {}
R = TypeVar("R")


class Entry(NamedTuple):
    """What a content shard says of an ordinal; the digest is None if it has no document."""

    digest: bytes | None
    modified_ms: int


class Places(NamedTuple):
    """Which objects documents are, and when the content of each last changed: two columns of one length."""

    digests: list[bytes]
    modified_ms: list[int]

    def cut(self, first: int, count: int) -> "Places":
        """So many of them."""
        return Places(self.digests[first : first + count], self.modified_ms[first : first + count])


class Document(NamedTuple):
    """A content document, and when its content last changed."""

    metadata: Metadata
    modified_ms: int


class Shelves:
    """Where documents are looked up."""

    def __init__(self, tiers: Tiers, *, batch: int = BATCH, at_once: int = AT_ONCE) -> None:
        self._tiers = tiers
        self._batch = batch
        self._at_once = at_once
        # Of the last content shards that were asked about: pages of all documents are asked for one after the other.
        self._documented: tuple[Sequence[bytes], Sequence[int]] = ((), ())

    async def entries(self, index: Index, ordinals: Iterable[int]) -> dict[int, Entry]:
        """What content shards say of these ordinals, in the order given."""
        wanted = list(ordinals)
        shards = await self._shards(index, sorted({ordinal // CONTENT_SHARD_ORDINALS for ordinal in wanted}))
        found = {}
        for ordinal in wanted:
            number, place = divmod(ordinal, CONTENT_SHARD_ORDINALS)
            found[ordinal] = Entry(shards[number].metadata[place], shards[number].modified_ms[place])
        return found

    async def documented(self, index: Index) -> Sequence[int]:
        """All ordinals that have a document."""
        shards, known = self._documented
        if shards == index.content:
            return known
        numbers, documented = range(len(index.content)), array("I")
        for first in range(0, len(numbers), BATCH):
            for shard in (await self._shards(index, numbers[first : first + BATCH])).values():
                documented.extend(shard.first + place for place, digest in enumerate(shard.metadata) if digest)
                await asyncio.sleep(0)
        self._documented = index.content, documented
        return documented

    async def documents(
        self, index: Index, ordinals: Sequence[int], overrides: Mapping[int, bytes] = NOTHING
    ) -> AsyncIterator[Document]:
        """The documents of these ordinals, in the order given; `overrides` are digests that go before the shards'."""
        places = await self._places(index, ordinals, overrides)
        for first in range(0, len(ordinals), self._batch):
            if first:
                # What memory has is read without awaiting anything; others must have their turn.
                await asyncio.sleep(0)
            part = places.cut(first, self._batch)
            records = await self._metadata(part.digests)
            for digest, modified_ms in zip(*part, strict=True):
                yield Document(records[digest], modified_ms)

    async def stream(
        self,
        index: Index,
        ordinals: Sequence[int],
        overrides: Mapping[int, bytes],
        values: Values | None,
        around: tuple[bytes, bytes],
        *,
        spare: bool = False,
    ) -> Stream:
        """The documents of these ordinals with a catalog's values in the places, commas between them, and two texts
        around. All of them were found by the time it is returned. `spare`: memory keeps what was not there as spare.
        """
        opening, closing = around
        broken = self._tiers.metrics.broken_answers
        places = await self._places(index, ordinals, overrides)
        if len(ordinals) <= self._at_once:
            vector = _vector(await self._filled(places, values, spare), closing)
            return Stream(len(opening) + vector[0], opening, lambda: _once(vector), broken)
        parts = [places.cut(first, self._batch) for first in range(0, len(ordinals), self._batch)]
        length = len(opening) + len(closing) - 1
        for part in parts:
            length += sum(one[1] for one in await self._filled(part, values, spare))
            await asyncio.sleep(0)

        async def vectors() -> AsyncGenerator[Vector, None]:
            for part in parts:
                yield _vector(await self._filled(part, values, spare), closing if part is parts[-1] else None)

        return Stream(length, opening, vectors, broken)

    async def _filled(self, places: Places, values: Values | None, spare: bool) -> list[Filled]:
        """What these documents are with a catalog's values in the places; made and kept where memory has it not."""
        key = b"" if values is None else values.key
        held = self._tiers.filled(*places, key, spare=spare)
        found = [one for one in held if one is not None]
        return found if len(found) == len(held) else await self._fill(places, held, values, key, spare)

    async def _fill(
        self, places: Places, held: list[Filled | None], values: Values | None, key: bytes, spare: bool
    ) -> list[Filled]:
        """The same documents, those made that are not held."""
        absent = [place for place, one in enumerate(held) if one is None]
        made: dict[int, Filled] = {}
        for first in range(0, len(absent), self._batch):
            if first:
                await asyncio.sleep(0)
            part = absent[first : first + self._batch]
            records = await self._metadata((places.digests[place] for place in part), spare=spare)
            for place in part:
                digest, modified_ms = places.digests[place], places.modified_ms[place]
                buffers = buffers_of(records[digest], modified_ms, values)
                made[place] = modified_ms, sum(map(len, buffers)), buffers
                self._tiers.memory.fill(digest, key, made[place], spare=spare)
        return [made[place] if one is None else one for place, one in enumerate(held)]

    async def _places(self, index: Index, ordinals: Sequence[int], overrides: Mapping[int, bytes]) -> Places:
        """Where the documents of these ordinals are. Raises ObjectMissing if one has none."""
        size = CONTENT_SHARD_ORDINALS
        shards = await self._shards(index, sorted({ordinal // size for ordinal in ordinals}))
        metadata = {number: shard.metadata for number, shard in shards.items()}
        modified = {number: shard.modified_ms for number, shard in shards.items()}
        digests = [metadata[ordinal // size][ordinal % size] for ordinal in ordinals]
        modified_ms = [modified[ordinal // size][ordinal % size] for ordinal in ordinals]
        if overrides:
            digests = [overrides.get(ordinal, digest) for ordinal, digest in zip(ordinals, digests, strict=True)]
        found = [digest for digest in digests if digest is not None]
        if len(found) < len(ordinals):
            keys = index.dictionary.keys
            bare = [keys[ordinal] for ordinal, digest in zip(ordinals, digests, strict=True) if digest is None]
            raise ObjectMissing(f"without a document: {', '.join(bare)}")
        return Places(found, modified_ms)

    async def _metadata(self, digests: Iterable[bytes], *, spare: bool = False) -> dict[bytes, Metadata]:
        return await self._read([(ObjectType.METADATA, digest) for digest in digests], Metadata, spare=spare)

    async def _shards(self, index: Index, numbers: Iterable[int]) -> dict[int, ContentShard]:
        """The content shards of these numbers, each checked against what it has to cover."""
        digests = {number: index.content[number] for number in numbers}
        records = await self._read([(ObjectType.CONTENT, digest) for digest in digests.values()], ContentShard)
        shards = {number: records[digest] for number, digest in digests.items()}
        try:
            for number, shard in shards.items():
                check_content(index, number, shard)
        except ContractError as error:
            raise ObjectMissing(f"{error}") from error
        return shards

    async def _read(self, references: list[Reference], kind: type[R], *, spare: bool = False) -> dict[bytes, R]:
        try:
            records: dict[bytes, Record] = await self._tiers.read(references, spare=spare)
        except ContractError as error:
            # Corrupt everywhere is as good as missing: it may be whole again soon, and nothing is told until then.
            raise ObjectMissing(f"{error}") from error
        return {digest: record for digest, record in records.items() if isinstance(record, kind)}


def _vector(filled: Iterable[Filled], closing: bytes | None) -> Vector:
    """The buffers of these documents, each document with its comma but for the last one where the closing follows."""
    buffers: list[bytes] = []
    length = 0
    for _, of_one, pieces in filled:
        length += of_one
        buffers += pieces
    if closing is not None:
        last = buffers.pop()[:-1] if buffers else b""
        buffers.append(last + closing)
        length += len(closing) - (1 if length else 0)
    return length, buffers


async def _once(vector: Vector) -> AsyncGenerator[Vector, None]:
    yield vector
