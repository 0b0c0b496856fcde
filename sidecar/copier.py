"""The disk copy follows what is served: all of its objects first, then the pointer, then the sweep.

It trails behind, in a task of its own, and copies what the disk lacks of the whole tree, documents included. The copy
holds two generations, so that a reader in another process has time to notice the newer one.
"""

import asyncio
import random
from collections.abc import Mapping
from itertools import islice
from typing import Final

import structlog

from sidecar.clock import Clock
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import ContentShard, QueryShard
from sidecar.current import Current, Generation
from sidecar.disk import Disk
from sidecar.errors import ContractError, StoreError
from sidecar.tiers import BATCH, Tiers

RETRY_S: Final = 5.0
# How often the disk is looked at, in case that somebody has removed the copy.
LOOK_S: Final = 60.0
_log = structlog.get_logger(__name__)


class Copier:
    """Copies one generation after the other. `copied` is the last one that the disk holds in full."""

    def __init__(self, current: Current, tiers: Tiers, disk: Disk, clock: Clock) -> None:
        self.copied: Generation | None = None
        self._current = current
        self._tiers = tiers
        self._disk = disk
        self._clock = clock
        self._live: frozenset[bytes] = frozenset()
        self._documents: dict[bytes, tuple[bytes, ...]] = {}
        self._resets = disk.resets
        # The first generation that could not be copied since the last one that could, and the reason that was logged.
        self._incomplete_since = 0
        self._reason: str | None = None

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
            if await self._disk.pointer() != copied.pointer:
                return copied

    def _incomplete(self, generation: int, reason: str) -> None:
        if self._disk.status.incomplete is None:
            self._incomplete_since, self._reason = generation, None
        if self._reason != reason:
            _log.warning("the disk copy could not be completed; tried again", generation=generation, error=reason)
        self._reason = reason
        self._disk.status.incomplete = f"generation {self._incomplete_since}: {reason}"

    async def _copy(self, generation: Generation) -> bool:
        held = await self._disk.pointer()
        if self._disk.status.state == "failing" or self._disk.is_siblings:
            # Nothing is fetched for a disk that cannot take it, or that is completed by a sibling.
            return False
        if self.copied is None or held != self.copied.pointer or self._resets != self._disk.resets:
            # Another file, or another writer: nothing is known of what it holds.
            self.copied, self._live, self._resets = None, frozenset(), self._disk.resets
        documents = await self._read_documents(generation)
        live = await asyncio.to_thread(_live, generation, documents)
        if held != generation.pointer:
            lacking = iter(live - self._live)
            while batch := list(islice(lacking, BATCH)):
                if self._current.generation is not generation or not await self._tiers.copy_to_disk(batch):
                    return False
            # What lets the next start serve this generation: every object of it is on the disk by now.
            if not await self._disk.publish(generation.pointer, live | self._live, self._clock.now_ms()):
                return False
        self.copied, self._live, self._documents = generation, live, documents
        self._disk.status.incomplete = None
        _log.info("generation copied to disk", generation=generation.pointer.generation, objects=len(live))
        return True

    async def _read_documents(self, generation: Generation) -> dict[bytes, tuple[bytes, ...]]:
        """The digests of the documents that each content shard names, read again only for shards that are new."""
        shards = generation.index.root.content
        new = [(ObjectType.CONTENT, digest) for digest in shards if digest not in self._documents]
        opened = await self._tiers.read(new, keep=False)
        read = {
            digest: tuple(document for document in shard.metadata if document is not None)
            for digest, shard in opened.items()
            if isinstance(shard, ContentShard)
        }
        return {digest: read[digest] if digest in read else self._documents[digest] for digest in shards}


def _live(generation: Generation, documents: Mapping[bytes, tuple[bytes, ...]]) -> frozenset[bytes]:
    """The digests of all objects of the tree."""
    live = set(generation.index.records)
    live.update(documents, *documents.values())
    for record in generation.index.records.values():
        if isinstance(record, QueryShard):
            live.update(digest for kind, digest in record.references() if kind is ObjectType.METADATA)
    return frozenset(live)
