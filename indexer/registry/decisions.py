"""What people decided about what readers see: approvals, rollbacks, pins; each with who and why, for ever."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.registry.schema import decision

MAX_WHO: Final = 255


class Action(StrEnum):
    """What was decided. The subject of the first three is a query hash, of the others a generation."""

    APPROVE = "approve"
    REJECT = "reject"
    LIMIT = "limit"
    ROLLBACK = "rollback"
    PIN = "pin"
    UNPIN = "unpin"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision."""

    at_ms: int
    action: Action
    subject: str
    who: str
    why: str


async def note(connection: AsyncConnection, new: Decision) -> None:
    """Records a decision; in the transaction that carries it out."""
    values = {
        "at_ms": new.at_ms,
        "action": new.action.value,
        "subject": new.subject,
        "who": new.who[:MAX_WHO],
        "why": new.why,
    }
    await connection.execute(sa.insert(decision).values(values))


async def made(connection: AsyncConnection, count: int = 100) -> list[Decision]:
    """The latest decisions, newest first."""
    rows = await connection.execute(sa.select(decision).order_by(decision.c.id.desc()).limit(count))
    return [Decision(r.at_ms, Action(r.action), r.subject, r.who, r.why) for r in rows]
