"""Leadership: one indexer pulls and publishes at a time. Decided in the registry, fenced by the epoch.

Nobody's wall clock counts. A leader raises `beat` every third of its lease; who wants to follow it watches `beat`
stand still for a whole lease on a steady clock of its own, and then takes over by compare-and-set on (epoch, beat).
A leader that was paused for longer finds its epoch over at its next write, here and in the store.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from indexer.registry import Deposed, Registry
from indexer.registry.schema import state


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads, as seen in the registry; `holder` is None if the last leader left in order."""

    epoch: int
    beat: int
    holder: str | None
    lease_ms: int


async def observe(registry: Registry) -> Lease:
    """The lease as it stands."""
    async with registry.read() as connection:
        s = state.c
        row = (await connection.execute(sa.select(s.epoch, s.beat, s.holder, s.lease_ms))).one()
        return Lease(row.epoch, row.beat, row.holder, row.lease_ms)


async def take(registry: Registry, seen: Lease, holder: str, lease_s: float, least_epoch: int = 0) -> int | None:
    """Takes the lead over from the lease that was seen; the new epoch, or None if somebody was faster."""
    epoch = max(seen.epoch, least_epoch) + 1
    async with registry.plain() as connection:
        taken = await connection.execute(
            sa.update(state)
            .where(state.c.epoch == seen.epoch, state.c.beat == seen.beat)
            .values(epoch=epoch, beat=seen.beat + 1, holder=holder[:255], lease_ms=round(lease_s * 1000))
        )
    return epoch if taken.rowcount == 1 else None


async def renew(registry: Registry, epoch: int) -> None:
    """A sign of life. Raises Deposed if another leads by now."""
    async with registry.plain() as connection:
        renewed = await connection.execute(sa.update(state).where(state.c.epoch == epoch).values(beat=state.c.beat + 1))
    if renewed.rowcount != 1:
        raise Deposed(f"epoch {epoch} is over: another indexer leads")


async def release(registry: Registry, epoch: int) -> None:
    """Leaves in order, so that the next leader need not wait."""
    async with registry.plain() as connection:
        await connection.execute(
            sa.update(state).where(state.c.epoch == epoch).values(beat=state.c.beat + 1, holder=None)
        )
