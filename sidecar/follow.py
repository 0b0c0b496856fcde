"""Follows the root pointer: the local disk's first, then the store's, for ever.

A generation is taken only if its (epoch, generation) is higher than what is served, only as a whole, and only once all
of it is verified; until then, and whenever the store cannot be read, the last good one goes on being served. Only what
the served index lacks is fetched. No request ever waits for anything in this file.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from sidecar import collector
from sidecar.clock import Clock
from sidecar.contract.index import Index, check_root, index_references
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Record, Reference
from sidecar.current import Current, Generation
from sidecar.disk import Disk
from sidecar.errors import ContractError, ObjectMissing, StoreError
from sidecar.health import StoreStatus
from sidecar.metrics import Metrics
from sidecar.store import Pointer, Store
from sidecar.tiers import INLINE, STORE_DEADLINE_S, Tiers, store_deadline

MAX_PAUSE_S: Final = 10.0
_log = structlog.get_logger(__name__)


class Follower:
    """Brings new generations into service. `status` is what it last saw of the store."""

    def __init__(
        self, store: Store, tiers: Tiers, disk: Disk, current: Current, clock: Clock, metrics: Metrics, *, poll_s: float
    ) -> None:
        self.status = StoreStatus()
        self._store = store
        self._tiers = tiers
        self._disk = disk
        self._current = current
        self._clock = clock
        self._metrics = metrics
        self._poll_s = poll_s
        self._seen: Pointer | None = None
        self._failures = 0

    async def run(self) -> None:
        """Serves what the disk has, and follows the store until cancelled."""
        await self.start()
        while True:
            await self.step()

    async def start(self) -> None:
        """Brings the disk's generation into service, if it has one; the store need not be there."""
        await self._take_from_disk(asked=False)
        # Whatever is wrong with the disk, the store is asked at once.
        self._failures = 0

    async def step(self) -> None:
        """One look at the store: waits until its pointer changes, or until it is time to try again, and goes there.

        While that brings nothing, the disk may: it works again, or a sibling has copied what came meanwhile.
        """
        await self._look()
        if self._current.generation is None or not self.status.reachable:
            await self._take_from_disk(asked=True)

    async def _look(self) -> None:
        wait_s = self._poll_s
        if self._failures and self.status.reachable:
            # A generation was refused: tried again after a pause that grows, unless another one comes first.
            wait_s = self._pause_s()
        elif self._failures:
            await self._clock.sleep(self._pause_s())
            wait_s = 0
        try:
            async with store_deadline(self._metrics, wait_s + STORE_DEADLINE_S):
                self._seen = pointer = await self._store.changed(self._seen, wait_s)
        except StoreError as error:
            self._unreachable(error)
            return
        self._reached(pointer)
        if pointer is not None and self._is_ahead(pointer):
            await self._take(pointer, "store")
        elif self._current.generation is not None:
            self._failures, self.status.refused = 0, None

    async def _take_from_disk(self, *, asked: bool) -> None:
        """The generation that the disk claims to hold; or, rather than none at all, the one that it held before, once
        the store was `asked` in vain.
        """
        newest = await self._disk.pointer()
        error = None
        if newest is not None and self._is_ahead(newest):
            error = await self._take(newest, "disk")
            self._disk.unservable = None if error is None else newest
        is_cut_off = isinstance(error, StoreError) and not isinstance(error, ObjectMissing)
        if self._current.generation is None and (asked or is_cut_off):
            earlier = await self._disk.earlier()
            failures, refused = self._failures, self.status.refused
            if earlier is not None and await self._take(earlier, "disk, the generation before its newest") is None:
                # What is newer is refused still.
                self._failures, self.status.refused = failures, refused

    def _is_ahead(self, pointer: Pointer) -> bool:
        served = self._current.generation
        return served is None or pointer[:2] > served.pointer[:2]

    async def _take(self, pointer: Pointer, source: str) -> Exception | None:
        """Serves a generation, or returns why it cannot be."""
        try:
            with collector.resting():
                generation = await self._load(pointer)
        except (ContractError, ObjectMissing) as error:
            self._refused(pointer, source, error)
            return error
        except StoreError as error:
            self._unreachable(error)
            return error
        else:
            self._note_swap(generation)
            self._current.swap(generation)
            collector.settle(len(generation.index.records.came))
            self._metrics.swaps.inc()
            self._failures, self.status.refused = 0, None
            _log.info("generation served", epoch=pointer.epoch, generation=pointer.generation, source=source)
            return None

    async def _load(self, pointer: Pointer) -> Generation:
        """The verified generation; layer by layer, because only an opened object tells what lies below it.

        What the served one holds is not looked at: it holds all that lies below it, too.
        """
        served = self._current.generation
        known: Mapping[bytes, Record] = {} if served is None else served.index.records
        opened: dict[bytes, Record] = {}
        layer: list[Reference] = [(ObjectType.ROOT, pointer.digest)]
        while layer := [reference for reference in layer if reference[1] not in known]:
            records = await self._tiers.read(layer, keep=False)
            opened.update(records)
            if len(records) > INLINE:
                layer = await asyncio.to_thread(_below, records.values(), opened)
            else:
                layer = _below(records.values(), opened)
        return await asyncio.to_thread(_assemble, pointer, opened, served)

    def _note_swap(self, generation: Generation) -> None:
        now_ms = self._clock.now_ms()
        is_first = self._current.generation is None
        self.status.swapped_at_ms = now_ms
        self.status.swap_delay_s = None if is_first else max(0, now_ms - generation.index.root.published_at_ms) / 1000
        self.status.ahead_since_s = None

    def _refused(self, pointer: Pointer, source: str, error: Exception) -> None:
        self._metrics.refused.inc()
        self._failures += 1
        reason = f"epoch {pointer.epoch}, generation {pointer.generation} from the {source}: {error}"
        if self.status.refused != reason:
            _log.error("generation refused; the last good one stays", reason=reason)
        self.status.refused = reason

    def _unreachable(self, error: StoreError) -> None:
        self._failures += 1
        if self.status.reachable or self._failures == 1:
            _log.warning("the store cannot be read; what is loaded goes on being served", error=str(error))
        self.status.reachable, self.status.error = False, str(error)

    def _reached(self, pointer: Pointer | None) -> None:
        if not self.status.reachable:
            _log.info("the store can be read")
        self.status.reachable, self.status.error = True, None
        self.status.looked_at_ms = self._clock.now_ms()
        if pointer is None or not self._is_ahead(pointer):
            self.status.ahead_since_s = None
        elif self.status.ahead_since_s is None:
            self.status.ahead_since_s = self._clock.monotonic()
        served = self._current.generation
        seen = (0, 0) if pointer is None else pointer[:2]
        behind = served is not None and seen < served.pointer[:2]
        conflict = served is not None and seen == served.pointer[:2] and pointer != served.pointer
        if behind and not self.status.behind:
            _log.error(
                "the store is behind what is served; nothing is taken from it", epoch=seen[0], generation=seen[1]
            )
        if conflict and not self.status.conflict:
            _log.error("the store shows other content under the served generation", epoch=seen[0], generation=seen[1])
        self.status.behind, self.status.conflict = behind, conflict

    def _pause_s(self) -> float:
        """Doubles with every failure in a row; never the same for two processes that fail together."""
        doubled: float = self._poll_s * 2 ** min(self._failures, 10)
        return min(MAX_PAUSE_S, doubled) * random.uniform(0.75, 1)


def _below(opened: Iterable[Record], have: Mapping[bytes, Record]) -> list[Reference]:
    """What an index needs that the opened records refer to, each once."""
    references = (reference for record in opened for reference in index_references(record))
    return list(dict.fromkeys(reference for reference in references if reference[1] not in have))


def _assemble(pointer: Pointer, opened: Mapping[bytes, Record], before: Generation | None) -> Generation:
    index = Index.assemble(pointer.digest, opened, None if before is None else before.index)
    check_root(index.root, pointer.epoch, pointer.generation)
    return Generation.of(pointer, index, before)
