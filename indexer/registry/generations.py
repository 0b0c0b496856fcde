"""Generations in the registry: their numbers, and the digest of every root that was published under them.

While a generation is pinned, the ones that would be published are noted all the same, and not moved to: they are held
back. Numbers are given once and only grow, so that of the moved ones the newest is what readers see.
"""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.registry.schema import generation, state

KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as the registry notes it; `moved` once the store's pointer is known to have moved to it.

    `shows`: the earlier generation whose tree it shows again; None unless it is a rollback. Its clock is that one's.
    """

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
    shows: int | None = None

    def is_tree_of(self, number: int) -> bool:
        """Whether it shows the tree that the generation of this number shows."""
        return number in (self.generation, self.shows)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where generations stand: the newest that was given a number, the newest that readers could see, the pin, and how
    many are held back behind it.

    `pin` is a number; `pinned` its generation, None if the registry does not know it.
    """

    last: Generation | None
    seen: Generation | None
    pin: int | None
    pinned: Generation | None
    held: int


async def latest(connection: AsyncConnection, count: int = 1, *, moved: bool = False) -> list[Generation]:
    """The newest generations, newest first; of those alone that readers could see, if `moved`."""
    which = sa.select(generation).where(generation.c.moved) if moved else sa.select(generation)
    rows = await connection.execute(which.order_by(generation.c.generation.desc()).limit(count))
    return [_generation(row) for row in rows]


async def find(connection: AsyncConnection, number: int) -> Generation | None:
    """The generation of a number."""
    row = (await connection.execute(sa.select(generation).where(generation.c.generation == number))).one_or_none()
    return None if row is None else _generation(row)


async def before(connection: AsyncConnection, number: int) -> Generation | None:
    """The newest one before this number that readers could see."""
    earlier = sa.select(generation).where(generation.c.moved, generation.c.generation < number)
    row = (await connection.execute(earlier.order_by(generation.c.generation.desc()).limit(1))).one_or_none()
    return None if row is None else _generation(row)


async def held(connection: AsyncConnection, count: int) -> list[Generation]:
    """The newest of those that wait behind the pin, newest first; none if nothing is pinned."""
    if await pin(connection) is None:
        return []
    rows = await connection.execute(
        sa.select(generation).where(*_waiting()).order_by(generation.c.generation.desc()).limit(count)
    )
    return [_generation(row) for row in rows]


async def pin(connection: AsyncConnection) -> int | None:
    """The number of the generation whose tree readers are to see, whatever else is made; None if none is pinned."""
    number = (await connection.execute(sa.select(state.c.pinned))).scalar_one()
    return None if number is None else int(number)


async def set_pin(connection: AsyncConnection, number: int | None) -> None:
    """Pins a generation, or none. No number that was not intended yet is published past it."""
    await connection.execute(sa.update(state).values(pinned=number))


async def standing(connection: AsyncConnection) -> Standing:
    """Where generations stand."""
    last = next(iter(await latest(connection)), None)
    seen = next(iter(await latest(connection, moved=True)), None)
    number = await pin(connection)
    if number is None:
        return Standing(last, seen, None, None, 0)
    count = await connection.scalar(sa.select(sa.func.count()).select_from(generation).where(*_waiting()))
    return Standing(last, seen, number, await find(connection, number), count or 0)


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
            shows=new.shows,
        )
    )
    return True


async def moved(connection: AsyncConnection, number: int) -> None:
    """Notes that the store's pointer has moved to a generation."""
    await connection.execute(sa.update(generation).where(generation.c.generation == number).values(moved=True))


async def prune(connection: AsyncConnection, keep: int) -> None:
    """Forgets all but the newest generations: of those that readers could see, and, apart from them, of the others.

    The pinned one is never forgotten.
    """
    pinned = await pin(connection)
    for moved_ in (True, False):
        which = generation.c.moved.is_(moved_)
        newest = sa.select(generation.c.generation).where(which).order_by(generation.c.generation.desc())
        oldest = await connection.scalar(newest.offset(keep - 1).limit(1))
        if oldest is not None:
            old = sa.delete(generation).where(which, generation.c.generation < oldest)
            await connection.execute(old if pinned is None else old.where(generation.c.generation != pinned))


async def clock(connection: AsyncConnection) -> int:
    """The registry's clock."""
    return int((await connection.execute(sa.select(state.c.clock))).scalar_one())


def _waiting() -> tuple[sa.ColumnElement[bool], ...]:
    """What makes a generation one that waits behind the pin: it came after what readers see, and they cannot see it. A
    rollback that was not finished is none.
    """
    seen = sa.select(sa.func.coalesce(sa.func.max(generation.c.generation), 0)).where(generation.c.moved)
    return generation.c.moved.is_(False), generation.c.shows.is_(None), generation.c.generation > seen.scalar_subquery()


def _generation(r: sa.Row[tuple[Any, ...]]) -> Generation:
    return Generation(
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
        shows=r.shows,
    )
