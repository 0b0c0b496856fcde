"""Results that validators refused: what they found, for whoever decides; and the limits that a query has of its own.

A filter has one such result at most, the last. It is held until a pull passes, or a person approves it, which makes it
what the next pull is held to, or rejects it, which silences the alarm for as long as pulls find the same.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa
import zstandard
from pyroaring import BitMap
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.registry import MAX_IN, Transaction
from indexer.registry.schema import catalog, catalog_query, content, quarantine, query_limits, result
from indexer.validators import Content, Found, Limits, Objection, Rule
from sidecar.contract.words import ContentType


class State(StrEnum):
    """What is to become of a refused result."""

    HELD = "held"
    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused result without what it found. `first_ms`, `last_ms`, `times`: when, and how often in a row."""

    hash: str
    state: State
    task: str
    objections: tuple[Objection, ...]
    digest: bytes
    first_ms: int
    last_ms: int
    times: int

    @property
    def why(self) -> str:
        """All objections in one line."""
        return "; ".join(map(str, self.objections))


_WITHOUT_FOUND = [column for column in quarantine.c if column.name != "found"]


async def all_refused(connection: AsyncConnection) -> list[Refused]:
    """Every refused result, those that have waited longest first."""
    rows = await connection.execute(sa.select(*_WITHOUT_FOUND).order_by(quarantine.c.first_ms, quarantine.c.hash))
    return [_refused(r) for r in rows]


async def states(connection: AsyncConnection) -> dict[str, State]:
    """What is to become of every refused result, by hash."""
    rows = await connection.execute(sa.select(quarantine.c.hash, quarantine.c.state))
    return {r.hash: State(r.state) for r in rows}


async def refused(connection: AsyncConnection, hash_: str) -> Refused | None:
    """The refused result of a filter."""
    r = (await connection.execute(sa.select(*_WITHOUT_FOUND).where(quarantine.c.hash == hash_))).one_or_none()
    return None if r is None else _refused(r)


async def found(connection: AsyncConnection, hash_: str) -> Found | None:
    """What the refused result of a filter has found."""
    data = await connection.scalar(sa.select(quarantine.c.found).where(quarantine.c.hash == hash_))
    return None if data is None else _read(zstandard.ZstdDecompressor().decompress(bytes(data)))


async def served(connection: AsyncConnection, hash_: str) -> Found | None:
    """What the last pull of a filter that passed has found, save what the filter forces in; None if nobody serves it.

    A query whose filter a person has changed serves the one before until the new one has passed: the new filter is held
    to nothing, even if it was in use once and has a result from then.
    """
    by_query = sa.exists().where(catalog_query.c.serving == result.c.hash)
    by_catalog = sa.exists().where(
        catalog.c.before == result.c.hash, catalog.c.query_id == catalog_query.c.id, catalog_query.c.serving.is_(None)
    )
    row = (
        await connection.execute(
            sa.select(result.c.members, result.c.restricted_members, result.c.forced).where(
                result.c.hash == hash_, result.c.members.is_not(None), sa.or_(by_query, by_catalog)
            )
        )
    ).one_or_none()
    if row is None:
        return None
    forced = BitMap.deserialize(bytes(row.forced))
    members = BitMap.deserialize(bytes(row.members)) - forced
    restricted = None
    if row.restricted_members is not None:
        restricted = BitMap.deserialize(bytes(row.restricted_members)) - forced
    keys: dict[int, tuple[str, ContentType]] = {}
    ordinals = list(members if restricted is None else members | restricted)
    for first in range(0, len(ordinals), MAX_IN):
        c = content.c
        batch = sa.select(c.ordinal, c.content_key, c.type).where(c.ordinal.in_(ordinals[first : first + MAX_IN]))
        keys |= {r.ordinal: (r.content_key, ContentType(r.type)) for r in await connection.execute(batch)}
    return Found(
        dict(keys[ordinal] for ordinal in members),
        None if restricted is None else dict(keys[ordinal] for ordinal in restricted),
    )


async def refuse(
    tx: Transaction, task: str, hash_: str, objections: Sequence[Objection], what: Found
) -> tuple[Refused, bool]:
    """Keeps a refused result in the place of the last one, and says whether it is another one than that.

    What a person has decided about it stays while pulls find the same; whatever else is found is held. (An approved one
    passes when it is found: if it comes here, it was approved in the moment in between.)
    """
    text = _written(what)
    digest = blake2b(text, digest_size=32).digest()
    before = await refused(tx.connection, hash_)
    is_new = before is None or before.digest != digest
    state = State.HELD if before is None or is_new else before.state
    new = Refused(
        hash=hash_,
        state=state,
        task=task,
        objections=tuple(objections),
        digest=digest,
        first_ms=tx.now_ms if before is None else before.first_ms,
        last_ms=tx.now_ms,
        times=1 if before is None or is_new else before.times + 1,
    )
    await release(tx.connection, hash_)
    await tx.connection.execute(
        sa.insert(quarantine).values(
            hash=hash_,
            state=state.value,
            task=task,
            verdict=json.dumps([asdict(objection) for objection in objections]),
            digest=digest,
            found=zstandard.ZstdCompressor().compress(text),
            first_ms=new.first_ms,
            last_ms=new.last_ms,
            times=new.times,
        )
    )
    return new, is_new


async def release(connection: AsyncConnection, hash_: str) -> bool:
    """Forgets the refused result of a filter; whether there was one."""
    gone = await connection.execute(sa.delete(quarantine).where(quarantine.c.hash == hash_))
    return bool(gone.rowcount)


async def decide(connection: AsyncConnection, hash_: str, state: State) -> None:
    """Gives a refused result another state."""
    await connection.execute(sa.update(quarantine).where(quarantine.c.hash == hash_).values(state=state.value))


async def limits(connection: AsyncConnection, query_id: int, usual: Limits) -> Limits:
    """The limits of a query: its own, and the usual ones where it has none."""
    return replace(usual, **await own_limits(connection, query_id))


async def own_limits(connection: AsyncConnection, query_id: int) -> dict[str, Any]:
    """Those limits that are a query's own, by name."""
    row = (await connection.execute(sa.select(query_limits).where(query_limits.c.query_id == query_id))).one_or_none()
    names = ("lost", "gained", "floor") if row is not None else ()
    return {name: value for name in names if (value := getattr(row, name)) is not None}


async def set_limits(
    connection: AsyncConnection, query_id: int, *, lost: float | None, gained: float | None, floor: int | None
) -> None:
    """Gives a query limits of its own; without any, the usual ones are its again."""
    await connection.execute(sa.delete(query_limits).where(query_limits.c.query_id == query_id))
    if (lost, gained, floor) != (None, None, None):
        values = {"query_id": query_id, "lost": lost, "gained": gained, "floor": floor}
        await connection.execute(sa.insert(query_limits).values(values))


def _refused(r: sa.Row[Any]) -> Refused:
    objections = tuple(Objection(**{**each, "rule": Rule(each["rule"])}) for each in json.loads(r.verdict))
    return Refused(r.hash, State(r.state), r.task, objections, bytes(r.digest), r.first_ms, r.last_ms, r.times)


def _written(what: Found) -> bytes:
    """By set and type, sorted: equal for equal results."""
    sets = {"members": what.members, "restricted": what.restricted}
    return json.dumps({name: None if them is None else _by_type(them) for name, them in sets.items()}).encode()


def _by_type(them: Content) -> dict[int, list[str]]:
    by_type: dict[int, list[str]] = {}
    for key, kind in sorted(them.items()):
        by_type.setdefault(kind.value, []).append(key)
    return dict(sorted(by_type.items()))


def _read(text: bytes) -> Found:
    def content_of(by_type: dict[str, list[str]]) -> Content:
        return {key: ContentType(int(kind)) for kind, keys in by_type.items() for key in keys}

    document = json.loads(text)
    restricted = document["restricted"]
    return Found(content_of(document["members"]), None if restricted is None else content_of(restricted))
