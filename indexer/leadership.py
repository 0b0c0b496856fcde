"""Becoming and staying the leader, by the rules of `indexer.registry.lead`: waiting, renewing, leaving.

A registry that does not answer is not waited for: a leader that cannot say that it lives stops leading, a third of its
lease after the lease at the latest. What it does until then is refused, in the registry and at the store's pointer.
"""

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from indexer.registry import Deposed, Registry, RegistryError, lead
from indexer.registry.lead import Lease
from sidecar.clock import Clock
from sidecar.errors import CatalogError

LOOKS_PER_LEASE: Final = 5
BEATS_PER_LEASE: Final = 3
# A sign of life waits for its turn while others write, as whoever wants to take over does.
LEAST_WAIT_S: Final = 5.0

log = structlog.get_logger(__name__)


class AnotherLeads(CatalogError):
    """Raised when the lead was not free after as long as the caller would wait; nothing was changed."""

    status = 503


class Leadership:
    """One process's part in the question of who leads."""

    def __init__(self, registry: Registry, clock: Clock, lease_s: float, *, least_wait_s: float = LEAST_WAIT_S) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}"
        self._registry = registry
        self._clock = clock
        self._lease_s = lease_s
        self._wait_s = max(lease_s, least_wait_s)
        self._given_up: set[asyncio.Task[None]] = set()

    async def acquire(self, least_epoch: int = 0, *, patience: float | None = None) -> int:
        """Waits until this process leads, and returns its epoch, which is above `least_epoch`.

        Raises AnotherLeads after `patience` times the lease of a leader that goes on giving signs of life.
        """
        seen: Lease | None = None
        begun = since = self._clock.monotonic()
        while True:
            lease = await lead.observe(self._registry)
            if lease != seen:
                if seen is None and lease.holder is not None:
                    log.info("waiting for the lead", holder=lease.holder, lease_s=lease.lease_ms / 1000)
                seen, since = lease, self._clock.monotonic()
            still_s = self._clock.monotonic() - since
            if lease.holder is None or still_s >= lease.lease_ms / 1000:
                epoch = await lead.take(self._registry, lease, self.holder, self._lease_s, least_epoch)
                if epoch is not None:
                    log.info("leading", epoch=epoch, holder=self.holder, before=lease.holder)
                    return epoch
                continue
            if patience is not None and self._clock.monotonic() - begun >= patience * lease.lease_ms / 1000:
                raise AnotherLeads(f"{lease.holder} leads; stop it, or leave the pulls to it")
            await self._clock.sleep(lease.lease_ms / 1000 / LOOKS_PER_LEASE)

    async def keep(self, epoch: int) -> None:
        """Gives signs of life until cancelled. Raises Deposed when the lead is lost, or can no longer be sure."""
        last = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._lease_s / BEATS_PER_LEASE)
            try:
                await self._heard(lead.renew(self._registry, epoch))
            except RegistryError as error:
                log.warning("no sign of life could be given", reason=str(error))
                if self._clock.monotonic() - last > self._lease_s:
                    raise Deposed(
                        f"epoch {epoch}: no sign of life for {self._clock.monotonic() - last:.1f} s"
                    ) from error
            else:
                # However long it waited: the registry has just said that nobody else leads.
                last = self._clock.monotonic()

    async def release(self, epoch: int) -> None:
        """Leaves in order, if the registry hears of it within a lease: after that nobody waits for the word."""
        try:
            await self._heard(lead.release(self._registry, epoch))
        except RegistryError as error:
            log.warning("left without saying so; the next leader waits for the lease", reason=str(error))

    async def _heard(self, word: Coroutine[Any, Any, None]) -> None:
        """Returns once the registry has heard this. Raises RegistryError if it has not within a lease, or cannot."""
        saying = asyncio.create_task(word)
        try:
            await asyncio.wait([saying], timeout=self._wait_s)
        finally:
            if not saying.done():
                # And not waited for: a driver may take its time to give up.
                saying.cancel()
                self._given_up.add(saying)
                saying.add_done_callback(self._noticed)
        if not saying.done():
            raise RegistryError(f"the registry gave no answer within {self._wait_s:g} s")
        saying.result()

    def _noticed(self, saying: asyncio.Task[None]) -> None:
        self._given_up.discard(saying)
        if not saying.cancelled():
            saying.exception()
