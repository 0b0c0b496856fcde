"""The leader's patrol: reads what readers need, round after round, and has the publisher write again what is damaged.

An eviction policy deletes objects, a bit flips, an older copy comes back: none of it moves the pointer, and sidecars
that have an object already do not ask for it. So everything that the published tree needs is read, spread over a round,
in batches with pauses in between: commits and pulls have the store to themselves most of the time. What was found
damaged is looked at again before anybody is alarmed: meanwhile a commit may have given it up, and a sweep deleted it. A
store that is out of reach is no damage.
"""

from collections.abc import Callable
from itertools import islice
from typing import Final

import structlog

from indexer import tree
from indexer.metrics import Metrics
from indexer.publish import Publisher
from indexer.tree import Damage
from sidecar.clock import Clock
from sidecar.errors import StoreError
from sidecar.store import Store

# Damage that comes right behind the patrol is found a round later: with what it takes to write objects again, this
# keeps it under a minute.
ROUND_S: Final = 40.0

log = structlog.get_logger(__name__)


class Patrol:
    """Looks after one store for one leader."""

    def __init__(
        self, publisher: Publisher, store: Store, clock: Clock, metrics: Metrics, wake: Callable[[], None]
    ) -> None:
        """`wake` asks for a commit soon."""
        self._publisher = publisher
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._wake = wake

    async def run(self) -> None:
        """Goes round until cancelled."""
        while True:
            began_s = self._clock.monotonic()
            try:
                await self.round()
            except StoreError as error:
                log.warning("the store could not be looked through", reason=str(error))
            await self._wait_until(began_s + ROUND_S)

    async def round(self) -> Damage:
        """Reads everything once; what is damaged is handed to the publisher. Raises StoreError.

        Once something is found there are no more pauses: what else is damaged is to be written again with it.
        """
        began_s, needed = self._clock.monotonic(), self._publisher.needed()
        remaining, damage = iter(needed), Damage()
        for first in range(0, len(needed), tree.BATCH):
            if not damage:
                await self._wait_until(began_s + ROUND_S * first / len(needed))
            damage.add(await self._look(set(islice(remaining, tree.BATCH))))
        damage = await self._look(damage.all())
        self._metrics.damaged.set(len(damage))
        if damage or self._publisher.problem is not None:
            self._publisher.suspect(damage)
            self._wake()
        return damage

    async def _look(self, digests: set[bytes]) -> Damage:
        """What is damaged of these, and needed now: whatever a commit needed anew meanwhile, it has written before."""
        found = await tree.look(self._store, digests)
        if not found:
            return found
        return await tree.look(self._store, found.all() & self._publisher.needed())

    async def _wait_until(self, then_s: float) -> None:
        await self._clock.sleep(max(0.0, then_s - self._clock.monotonic()))
