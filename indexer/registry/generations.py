"""Generations in the registry: their numbers, and the digest of every root that was published under them."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.registry.schema import generation, state

KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as the registry notes it; `moved` once the store's pointer is known to have moved to it."""

    generation: int
    epoch: int
    digest: bytes
    parent: bytes | None
    clock: int
    published_at_ms: int
    objects: int
    bytes: int
    producer: str
    moved: bool


async def latest(connection: AsyncConnection, count: int = 1, *, moved: bool = False) -> list[Generation]:
    """The newest generations, newest first; of those alone that readers could see, if `moved`."""
    which = sa.select(generation).where(generation.c.moved) if moved else sa.select(generation)
    rows = await connection.execute(which.order_by(generation.c.generation.desc()).limit(count))
    return [
        Generation(
            generation=r.generation,
            epoch=r.epoch,
            digest=bytes(r.digest),
            parent=None if r.parent is None else bytes(r.parent),
            clock=r.clock,
            published_at_ms=r.published_at_ms,
            objects=r.objects,
            bytes=r.bytes,
            producer=r.producer,
            moved=r.moved,
        )
        for r in rows
    ]


async def intend(connection: AsyncConnection, new: Generation) -> bool:
    """Gives a number to a root that is about to be published; False if the epoch is over.

    The row is written before the pointer moves: two leaders can never name one number, and a crash in between leaves
    a number that nobody ever sees.
    """
    fenced = await connection.execute(sa.update(state).where(state.c.epoch == new.epoch).values(epoch=new.epoch))
    if fenced.rowcount != 1:
        return False
    await connection.execute(
        sa.insert(generation).values(
            generation=new.generation,
            epoch=new.epoch,
            digest=new.digest,
            parent=new.parent,
            clock=new.clock,
            published_at_ms=new.published_at_ms,
            objects=new.objects,
            bytes=new.bytes,
            producer=new.producer,
            moved=False,
        )
    )
    return True


async def moved(connection: AsyncConnection, number: int) -> None:
    """Notes that the store's pointer has moved to a generation."""
    await connection.execute(sa.update(generation).where(generation.c.generation == number).values(moved=True))


async def prune(connection: AsyncConnection, keep: int) -> None:
    """Forgets all but the newest generations: of those that readers could see, and, apart from them, of the others."""
    for moved_ in (True, False):
        which = generation.c.moved.is_(moved_)
        newest = sa.select(generation.c.generation).where(which).order_by(generation.c.generation.desc())
        oldest = await connection.scalar(newest.offset(keep - 1).limit(1))
        if oldest is not None:
            await connection.execute(sa.delete(generation).where(which, generation.c.generation < oldest))


async def clock(connection: AsyncConnection) -> int:
    """The registry's clock."""
    return int((await connection.execute(sa.select(state.c.clock))).scalar_one())
