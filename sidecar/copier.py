"""The disk copy follows what is served: all of its objects first, then the pointer, then the sweep.

It trails behind, in a task of its own, and copies what the disk lacks of the whole tree, documents included. The copy
holds two generations at least, so that a reader in another process has time to notice the newer one. What a new
generation lacks is worked out from what differs from the one before; the sweep looks at everything, and so is rare.

What lies there and is not asked for may rot unseen until the day on which the store is down. So a part of the copy is
verified at every look, and put right while it can be.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Final

import structlog

from sidecar.clock import Clock
from sidecar.contract.index import Index, check_root
from sidecar.contract.objects import DIGEST_BYTES, ObjectType
from sidecar.contract.records import ContentShard, QueryShard, Record, Root
from sidecar.current import Current, Generation
from sidecar.disk import Disk
from sidecar.errors import ContractError, ObjectMissing, StoreError
from sidecar.store import Pointer
from sidecar.tiers import BATCH, Tiers

RETRY_S: Final = 5.0
# How many content shards are opened at once: each becomes some hundred KB, of which the digests alone are kept.
SHARDS: Final = 16
# How often the disk is looked at, in case that somebody has removed the copy.
LOOK_S: Final = 60.0
# How many objects are verified at a look: all of 100,000 within an hour.
VERIFIED: Final = 2048
# How often everything is swept that no generation needs. It names every object to SQLite, in this process's time.
SWEEP_S: Final = 60.0
_log = structlog.get_logger(__name__)


class Copier:
    """Copies one generation after the other. `copied` is the last one that the disk holds in full."""

    def __init__(self, current: Current, tiers: Tiers, disk: Disk, clock: Clock) -> None:
        self.copied: Generation | None = None
        self._current = current
        self._tiers = tiers
        self._disk = disk
        self._clock = clock
        # The digests of the documents that each content shard of the last generation names, end to end.
        self._documents: dict[bytes, bytes] = {}
        self._sweep_from_s = 0.0
        self._resets = disk.resets
        # The first generation that could not be copied since the last one that could, and the reason that was logged.
        self._incomplete_since = 0
        self._reason: str | None = None
        # How many objects of the copied generation were verified in this round.
        self._verified = 0

    async def run(self) -> None:
        """Copies whatever comes to be served, and again what somebody has removed, until cancelled."""
        while True:
            generation = await self._next()
            if not await self.copy(generation) and self._current.generation is generation:
                await self._clock.sleep(RETRY_S * random.uniform(1, 1.5))

    async def copy(self, generation: Generation) -> bool:
        """Whether the disk holds this generation now. Gives up early if another one has come to be served."""
        try:
            return await self._copy(generation)
        except (StoreError, ContractError) as error:
            self._incomplete(generation.pointer.generation, str(error))
            return False

    async def _next(self) -> Generation:
        """Waits until another generation than the copied one is served, or until the disk has lost that one."""
        while True:
            copied = self.copied
            if copied is None or self._current.generation is not copied:
                return await self._current.other_than(copied)
            waits: tuple[asyncio.Task[object], ...] = (
                asyncio.create_task(self._current.other_than(copied)),
                asyncio.create_task(self._clock.sleep(LOOK_S)),
            )
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            # Not one of the tasks above: a look at the disk that is cancelled may leave it half begun anew.
            await self.verify()
            if await self._disk.pointer() != copied.pointer:
                return copied

    async def verify(self) -> bool:
        """Whether the next part of what was copied is sound now; what is missing or corrupt comes from the store."""
        copied = self.copied
        if copied is None or self._disk.is_siblings:
            return False
        part = await asyncio.to_thread(_part, copied.index, self._documents, self._verified, VERIFIED)
        try:
            for first in range(0, len(part), BATCH):
                if not await self._tiers.copy_to_disk(part[first : first + BATCH]):
                    return False
        except (StoreError, ContractError) as error:
            self._incomplete(copied.pointer.generation, str(error))
            return False
        self._verified = self._verified + VERIFIED if len(part) == VERIFIED else 0
        self._disk.status.incomplete = None
        return True

    def _incomplete(self, generation: int, reason: str) -> None:
        if self._disk.status.incomplete is None:
            self._incomplete_since, self._reason = generation, None
        if self._reason != reason:
            _log.warning("the disk copy could not be completed; tried again", generation=generation, error=reason)
        self._reason = reason
        self._disk.status.incomplete = f"generation {self._incomplete_since}: {reason}"

    async def _copy(self, generation: Generation) -> bool:
        held = await self._disk.pointer()
        if not self._disk.is_readable or self._disk.is_siblings:
            # Nothing is fetched for a disk that cannot take it, or that is completed by a sibling.
            return False
        if held is not None and held[:2] > generation.pointer[:2] and await self._holds(held):
            # A sibling has copied what is about to be served here, too.
            return False
        if self.copied is None or held != self.copied.pointer or self._resets != self._disk.resets:
            # Another file, or another writer: nothing is known of what it holds.
            self.copied, self._resets, self._sweep_from_s = None, self._disk.resets, 0.0
        documents = await self._read_documents(generation)
        if held != generation.pointer:
            before = None if self.copied is None else self.copied.index
            lacking = iter(await asyncio.to_thread(_lacking, generation.index, documents, before, self._documents))
            # Whether a disk takes anything again that took nothing, one object shows as well as many.
            while batch := list(islice(lacking, 1 if self._disk.status.state == "failing" else BATCH)):
                if self._current.generation is not generation or not await self._tiers.copy_to_disk(batch):
                    return False
            live = None
            # Not of a copy of which nothing is known: what its pointer leads to is the generation to go back to.
            if sweeping := before is not None and self._clock.monotonic() >= self._sweep_from_s:
                assert before is not None
                live = await asyncio.to_thread(_live, generation.index, documents)
                live |= await asyncio.to_thread(_live, before, self._documents)
            # What lets the next start serve this generation: every object of it is on the disk by now.
            if not await self._disk.publish(generation.pointer, live, self._clock.now_ms()):
                return False
            if sweeping:
                self._sweep_from_s = self._clock.monotonic() + SWEEP_S
        self.copied, self._documents = generation, documents
        self._disk.status.incomplete = None
        _log.info("generation copied to disk", generation=generation.pointer.generation)
        return True

    async def _holds(self, pointer: Pointer) -> bool:
        """Whether the disk's own word for a generation that is not served can be true."""
        if pointer == self._disk.unservable:
            return False
        reference = (ObjectType.ROOT, pointer.digest)
        try:
            root = (await self._tiers.read([reference], keep=False))[pointer.digest]
            assert isinstance(root, Root)
            check_root(root, pointer.epoch, pointer.generation)
        except (ContractError, ObjectMissing):
            return False
        return True

    async def _read_documents(self, generation: Generation) -> dict[bytes, bytes]:
        """The digests of the documents that each content shard names, read again only for shards that are new."""
        shards = generation.index.content
        new = [(ObjectType.CONTENT, digest) for digest in shards if digest not in self._documents]
        read = {}
        for first in range(0, len(new), SHARDS):
            opened = await self._tiers.read(new[first : first + SHARDS], keep=False)
            for digest, shard in opened.items():
                if isinstance(shard, ContentShard):
                    read[digest] = b"".join(document for document in shard.metadata if document is not None)
        return {digest: read[digest] if digest in read else self._documents[digest] for digest in shards}


def _lacking(
    index: Index, documents: Mapping[bytes, bytes], before: Index | None, documents_before: Mapping[bytes, bytes]
) -> list[bytes]:
    """The digests of the objects of a tree that are not in another one, or of all of them."""
    if before is None:
        return list(_live(index, documents))
    came = index.records.without(before.records)
    gone = before.records.without(index.records)
    new = {digest: joined for digest, joined in documents.items() if digest not in documents_before}
    old = {digest: joined for digest, joined in documents_before.items() if digest not in documents}
    named = {*new, *_each(new.values()), *_overrides(index.records[digest] for digest in came)}
    known = {*_each(old.values()), *_overrides(before.records[digest] for digest in gone)}
    return [*came, *(digest for digest in named if digest not in known)]


def _live(index: Index, documents: Mapping[bytes, bytes]) -> set[bytes]:
    """The digests of all objects of a tree."""
    return set(_all(index, documents))


def _part(index: Index, documents: Mapping[bytes, bytes], first: int, count: int) -> list[bytes]:
    """So many of them, from the first on."""
    return list(islice(_all(index, documents), first, first + count))


def _all(index: Index, documents: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """All of them, one after the other, some more than once."""
    return chain(index.records, documents, _each(documents.values()), _overrides(index.records.values()))


def _each(joined: Iterable[bytes]) -> Iterator[bytes]:
    return (digests[at : at + DIGEST_BYTES] for digests in joined for at in range(0, len(digests), DIGEST_BYTES))


def _overrides(records: Iterable[Record]) -> Iterator[bytes]:
    shards = (record for record in records if isinstance(record, QueryShard))
    return (digest for shard in shards for kind, digest in shard.references() if kind is ObjectType.METADATA)
