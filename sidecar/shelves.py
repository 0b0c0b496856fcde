"""Fetching documents by their ordinals: content shard, then metadata, through memory, disk and store.

Everything is asked of one generation. A document that a generation says it has and no tier has whole is StoreError,
never left out: a page that is a document short would be taken for the truth.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from sidecar.contract.index import Index, check_content
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import CONTENT_SHARD_ORDINALS, ContentShard, Metadata, Record, Reference
from sidecar.errors import ContractError, ObjectMissing
from sidecar.tiers import Tiers

# How many documents are held at once on their way into an answer; most are 10 to 100 KB.
BATCH: Final = 64
NOTHING: Final[Mapping[int, bytes]] = {}
R = TypeVar("R")


class Entry(NamedTuple):
    """What a content shard says of an ordinal; the digest is None if it has no document."""

    digest: bytes | None
    modified_ms: int


class Document(NamedTuple):
    """A content document, and when its content last changed."""

    metadata: Metadata
    modified_ms: int


class Shelves:
    """Where documents are looked up."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
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
        self, index: Index, ordinals: Sequence[int], overrides: Mapping[int, bytes] = NOTHING, *, keep: bool = True
    ) -> AsyncIterator[Document]:
        """The documents of these ordinals, in the order given; `overrides` are digests that go before the shards'.

        `keep`: in memory, for whoever asks next.
        """
        for first in range(0, len(ordinals), BATCH):
            if first:
                # What memory has is read without awaiting anything; others must have their turn.
                await asyncio.sleep(0)
            part = ordinals[first : first + BATCH]
            entries = await self.entries(index, part)
            digests = {ordinal: overrides.get(ordinal, entries[ordinal].digest) for ordinal in part}
            bare = [index.dictionary.keys[ordinal] for ordinal, digest in digests.items() if digest is None]
            if bare:
                raise ObjectMissing(f"without a document: {', '.join(bare)}")
            references = [(ObjectType.METADATA, digest) for digest in digests.values() if digest is not None]
            records = await self._read(references, Metadata, keep=keep)
            for ordinal, (_, digest) in zip(digests, references, strict=True):
                yield Document(records[digest], entries[ordinal].modified_ms)

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

    async def _read(self, references: list[Reference], kind: type[R], *, keep: bool = True) -> dict[bytes, R]:
        try:
            records: dict[bytes, Record] = await self._tiers.read(references, keep=keep)
        except ContractError as error:
            # Corrupt everywhere is as good as missing: it may be whole again soon, and nothing is told until then.
            raise ObjectMissing(f"{error}") from error
        return {digest: record for digest, record in records.items() if isinstance(record, kind)}
