"""Reading an object: memory, then local disk, then the store. What every reader of objects goes through.

An object is believed once its bytes hash to its digest and follow the contract, wherever they came from. One that is
corrupt on disk is taken for missing, and is overwritten with what the store has. However many ask for an object that is
not in memory, it is fetched once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import structlog

from sidecar.contract.objects import Sealed, digest_of
from sidecar.contract.records import Record, Reference, open_record
from sidecar.disk import Disk
from sidecar.errors import CatalogError, ContractError, ObjectMissing, StoreError, UnknownFormat, WrongDigest
from sidecar.memory import Filled, Memory
from sidecar.metrics import Metrics
from sidecar.store import Store

STORE_DEADLINE_S: Final = 10.0
BATCH: Final = 256
# Opening takes some 20 to 300 µs for each object; from here on a thread does it.
INLINE: Final = 8
# Corrupt objects that were told of; beyond that some are told of again.
MAX_TOLD: Final = 10_000
_log = structlog.get_logger(__name__)

T = TypeVar("T")
Landed = Mapping[Reference, Record | CatalogError]


class Tiers:
    """The three tiers. `busy` holds the flights and writes that are under way between them."""

    def __init__(self, memory: Memory, disk: Disk, store: Store, metrics: Metrics) -> None:
        self.memory = memory
        self._disk = disk
        self._store = store
        self.metrics = metrics
        # Bound once: to find a labelled counter takes longer than to count.
        labels = metrics.tier_reads.labels
        self._reads = {tier: (labels(tier, "hit"), labels(tier, "miss")) for tier in ("memory", "disk", "store")}
        self._flights: dict[Reference, asyncio.Task[Landed]] = {}
        self.busy: set[asyncio.Task[object]] = set()
        self._told: set[tuple[str, bytes]] = set()

    async def read(
        self, references: Iterable[Reference], *, keep: bool = True, spare: bool = False
    ) -> dict[bytes, Record]:
        """The records of all of these references. `keep`: also in memory, for whoever asks next; `spare`: as spare.

        Raises ObjectMissing if no tier has one, ContractError if none has it whole, StoreError if the store had to be
        asked and could not be.
        """
        wanted = list(dict.fromkeys(references))
        records = self._from_memory(wanted, spare)
        absent = [reference for reference in wanted if reference[1] not in records]
        for first in range(0, len(absent), BATCH):
            records.update(await self._from_below(absent[first : first + BATCH], keep, spare))
        return records

    def filled(
        self, digests: Sequence[bytes], modified_ms: Sequence[int], key: bytes, *, spare: bool = False
    ) -> list[Filled | None]:
        """What memory has of these documents, filled with the values of this key. What it has not will be read."""
        found = self.memory.filled(digests, modified_ms, key, spare=spare)
        self._count("memory", len(found) - found.count(None), 0)
        return found

    async def copy_to_disk(self, digests: Sequence[bytes]) -> bool:
        """Whether the disk has these objects now, after those that it lacked or had corrupt were fetched from the
        store.
        """
        present = await self._disk.get(digests)
        absent = await asyncio.to_thread(_not_among, present, digests)
        rotten = [digest for digest in absent if digest in present]
        for digest in rotten:
            error = WrongDigest(f"object {digest.hex()}: the disk's {len(present[digest])} bytes hash otherwise")
            self._note_corrupt("disk", digest, error)
        if not absent:
            return True
        data = await self._from_store(absent)
        for digest in absent:
            if digest not in data:
                raise ObjectMissing(f"object {digest.hex()} is in no tier")
            if digest_of(data[digest]) != digest:
                error = WrongDigest(f"object {digest.hex()}: the store's {len(data[digest])} bytes hash otherwise")
                self._note_corrupt("store", digest, error)
                raise error
        if not await self._disk.put([Sealed(digest, data[digest]) for digest in absent]):
            return False
        if rotten and await asyncio.to_thread(_not_among, await self._disk.get(digests), digests):
            # Two digests lead to one row, for example: to write one of the objects is to break the other.
            await self._disk.discard("objects do not stay as they were written")
            return False
        return True

    async def close(self) -> None:
        """Ends all flights; whoever waits for one is cancelled with it."""
        for task in self.busy:
            task.cancel()
        await asyncio.gather(*self.busy, return_exceptions=True)

    def _from_memory(self, references: Iterable[Reference], spare: bool) -> dict[bytes, Record]:
        found, misses = {}, 0
        for reference in references:
            record = self.memory.get(reference, spare=spare)
            if record is None:
                misses += 1
            else:
                found[reference[1]] = record
        self._count("memory", len(found), misses)
        return found

    async def _from_below(self, references: list[Reference], keep: bool, spare: bool) -> dict[bytes, Record]:
        grounded = [reference for reference in references if reference not in self._flights]
        if grounded:
            flight = self._start(self._fly(grounded, keep, spare))
            self._flights.update(dict.fromkeys(grounded, flight))
        flights = {reference: self._flights[reference] for reference in references}
        records = {}
        for reference, flight in flights.items():
            # Shielded: the others who wait for this flight must not lose it when one of them gives up.
            landed = (await asyncio.shield(flight))[reference]
            if isinstance(landed, CatalogError):
                raise landed
            records[reference[1]] = landed
        return records

    async def _fly(self, references: list[Reference], keep: bool, spare: bool) -> Landed:
        try:
            landed = await self._load(references)
        finally:
            for reference in references:
                del self._flights[reference]
        if keep:
            for reference, record in landed.items():
                if not isinstance(record, CatalogError):
                    self.memory.put(reference, record, spare=spare)
        return landed

    async def _load(self, references: list[Reference]) -> Landed:
        landed = await self._open("disk", references, await self._disk.get([digest for _, digest in references]))
        absent = [reference for reference in references if isinstance(landed[reference], CatalogError)]
        if not absent:
            return landed
        try:
            data = await self._from_store([digest for _, digest in absent])
        except StoreError as error:
            return {**landed, **dict.fromkeys(absent, error)}
        fetched = await self._open("store", absent, data)
        sound = [ref[1] for ref, record in fetched.items() if not isinstance(record, CatalogError)]
        if sound:
            # Not waited for: a slow disk must not delay whoever asked.
            _ = self._start(self._disk.put([Sealed(digest, data[digest]) for digest in sound]))
        return {**landed, **fetched}

    async def _open(self, tier: str, references: list[Reference], data: Mapping[bytes, bytes]) -> Landed:
        self._count(tier, len(data), len(references) - len(data))
        if len(data) > INLINE:
            landed = await asyncio.to_thread(_open_all, references, data)
        else:
            landed = _open_all(references, data)
        for (_, digest), record in landed.items():
            if isinstance(record, ContractError) and not isinstance(record, UnknownFormat):
                self._note_corrupt(tier, digest, record)
        return landed

    def _note_corrupt(self, tier: str, digest: bytes, error: ContractError) -> None:
        """Counts an object that is not used, and tells of it once: it may be asked for again and again."""
        self.metrics.corrupt.labels(tier).inc()
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        if (tier, digest) not in self._told:
            self._told.add((tier, digest))
            _log.error("a corrupt object is not used", tier=tier, object=digest.hex(), error=str(error))

    async def _from_store(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        async with store_deadline(self.metrics):
            return await self._store.get(digests)

    def _count(self, tier: str, hits: int, misses: int) -> None:
        hit, miss = self._reads[tier]
        hit.inc(hits)
        miss.inc(misses)

    def _start(self, work: Awaitable[T]) -> "asyncio.Task[T]":
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self.busy.add(task)
        task.add_done_callback(self.busy.discard)
        return task


@asynccontextmanager
async def store_deadline(metrics: Metrics, deadline_s: float = STORE_DEADLINE_S) -> AsyncIterator[None]:
    """Turns a store that does not answer in time into StoreError, and counts that and every other StoreError."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError as error:
        metrics.store_errors.inc()
        raise StoreError(f"the store gave no answer within {deadline_s:g} s") from error
    except StoreError:
        metrics.store_errors.inc()
        raise


def _not_among(data: Mapping[bytes, bytes], digests: Iterable[bytes]) -> list[bytes]:
    """The digests that these bytes do not hash to."""
    return [digest for digest in digests if digest not in data or digest_of(data[digest]) != digest]


def _open_all(references: Iterable[Reference], data: Mapping[bytes, bytes]) -> dict[Reference, Record | CatalogError]:
    landed: dict[Reference, Record | CatalogError] = {}
    for kind, digest in references:
        if digest not in data:
            landed[kind, digest] = ObjectMissing(f"object {digest.hex()} is in no tier")
            continue
        try:
            landed[kind, digest] = open_record(digest, data[digest], kind)
        except ContractError as error:
            landed[kind, digest] = error
    return landed
