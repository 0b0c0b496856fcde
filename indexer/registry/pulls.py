"""Pulls in the registry: which filters are wanted, how each pull went, and the transaction that accepts a result."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
import zstandard
from pyroaring import BitMap
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.ingest import Facts, Ingested, Known
from indexer.registry import MAX_IN, Transaction, take_turn
from indexer.registry.schema import catalog, catalog_query, content, customer, document, pull, result, state
from indexer.source import CustomerDetails
from sidecar.contract.records import Bitmap
from sidecar.contract.words import ContentType, PullState, requested_ms, task_id

DEMAND: Final = "demand"
REQUESTED: Final = "requested"
RUNNING: Final = "running"
PASSED: Final = "passed"
FAILED: Final = "failed"
QUARANTINED: Final = "quarantined"
ABANDONED: Final = "abandoned"
PULLS_KEPT_MS: Final = 30 * 86_400_000
PRUNED_AT_ONCE: Final = 10_000
# How far the clocks of two machines are taken to be apart.
SKEW_MS: Final = 300_000
EMPTY: Final = Bitmap.of(()).encode()
# Of a result, without its bitmaps: targets are asked for all the time, and ten thousand of them are megabytes.
_NOT_THE_CONTENT: Final = (
    *("hash", "content_filter", "state", "pulled_at_ms"),
    *("tried_at_ms", "failures", "error", "requests"),
)


@dataclass(frozen=True, slots=True)
class Pull:
    """One pull. `changed`: how many documents it changed. What is not known yet is None."""

    task: str
    hash: str
    reason: str
    state: str
    requested_ms: int
    finished_ms: int | None
    members: int | None
    changed: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """A filter that catalogs want, and how its pulls have gone.

    `changed_ms`: when its query was changed last; `requests`: how many the last passed pull sent to the source.
    """

    hash: str
    query_id: int
    title: str | None
    content_filter: str
    state: PullState
    pulled_at_ms: int | None
    tried_at_ms: int | None
    failures: int
    error: str | None
    catalogs: int
    changed_ms: int
    requests: int

    @property
    def finds_anything(self) -> bool:
        """Whether a pull can ever find something: a filter that is no JSON object contains nothing, for good."""
        return isinstance(json.loads(self.content_filter), dict)

    def is_called(self, name: str) -> bool:
        """Whether a person means this one: by its hash, id or title."""
        return name in (self.hash, str(self.query_id), self.title)


async def targets(connection: AsyncConnection) -> list[Target]:
    """Every filter that at least one catalog wants, in order of creation. What nobody uses is not pulled."""
    used = (
        sa.select(catalog.c.query_id, sa.func.count().label("catalogs")).group_by(catalog.c.query_id).subquery("used")
    )
    q = catalog_query.c
    rows = await connection.execute(
        sa.select(q.id, q.title, q.modified_ms, *(result.c[name] for name in _NOT_THE_CONTENT), used.c.catalogs)
        .join(result, result.c.hash == q.hash)
        .join(used, used.c.query_id == q.id)
        .order_by(q.id)
    )
    return [
        Target(
            hash=r.hash,
            query_id=r.id,
            title=r.title,
            content_filter=r.content_filter,
            state=PullState(r.state),
            pulled_at_ms=r.pulled_at_ms,
            tried_at_ms=r.tried_at_ms,
            failures=r.failures,
            error=r.error,
            catalogs=r.catalogs,
            changed_ms=r.modified_ms,
            requests=r.requests,
        )
        for r in rows
    ]


async def request(connection: AsyncConnection, hash_: str, now_ms: int) -> str:
    """Asks for a pull of a filter, and returns its task id: that of the one under way or asked for, if there is one."""
    await take_turn(connection)  # Two who ask at once are to get one id.
    open_ = sa.select(pull.c.task).where(pull.c.hash == hash_, pull.c.state.in_((REQUESTED, RUNNING)))
    task = await connection.scalar(open_.order_by(pull.c.requested_ms).limit(1))
    if task is None:
        return await _begin(connection, hash_, DEMAND, REQUESTED, now_ms)
    # Whoever leads next sees that somebody waits for it.
    await connection.execute(sa.update(pull).where(pull.c.task == task).values(reason=DEMAND))
    return str(task)


async def requested(connection: AsyncConnection) -> dict[str, int]:
    """The filters whose pulls somebody waits for, and since when.

    One that is said to be running counts: unless the leader has it under way, nobody has, and it has to begin again.
    """
    waited_for = sa.or_(pull.c.state == REQUESTED, sa.and_(pull.c.state == RUNNING, pull.c.reason == DEMAND))
    rows = await connection.execute(sa.select(pull.c.hash, pull.c.requested_ms).where(waited_for))
    return {r.hash: r.requested_ms for r in rows}


async def dismiss(connection: AsyncConnection, hashes: Collection[str], now_ms: int) -> None:
    """Ends the pulls of filters that no catalog wants any more."""
    ended = {"state": ABANDONED, "finished_ms": now_ms, "error": "no catalog wants this filter any more"}
    for batch in _batches(sorted(hashes)):
        await connection.execute(
            sa.update(pull).where(pull.c.hash.in_(batch), pull.c.state.in_((REQUESTED, RUNNING))).values(ended)
        )


async def start(connection: AsyncConnection, hash_: str, reason: str, now_ms: int) -> str:
    """Notes that a pull has begun, and returns its task id: that of the request for it, if there is one.

    A filter has one pull under way at most: one that is said to be running is not, its end could not be noted. Whoever
    waits for it waits for this one.
    """
    asked = sa.select(pull.c.task).where(pull.c.hash == hash_, pull.c.state.in_((REQUESTED, RUNNING)))
    task = await connection.scalar(asked.order_by(pull.c.requested_ms).limit(1))
    if task is None:
        return await _begin(connection, hash_, reason, RUNNING, now_ms)
    await connection.execute(sa.update(pull).where(pull.c.task == task).values(state=RUNNING, error=None))
    return str(task)


async def _begin(connection: AsyncConnection, hash_: str, reason: str, state_: str, now_ms: int) -> str:
    # Later than the last one that has ended, whatever this machine's clock says: readers tell by it what has.
    last = await connection.scalar(sa.select(result.c.task).where(result.c.hash == hash_))
    later_ms = now_ms if last is None else max(now_ms, requested_ms(UUID(last)) + 1)
    task = str(task_id(bytes.fromhex(hash_), later_ms))
    values = {"task": task, "hash": hash_, "reason": reason, "state": state_, "requested_ms": now_ms}
    await connection.execute(sa.insert(pull).values(values))
    return task


async def look_up(connection: AsyncConnection, task: str) -> Pull | None:
    """The pull of a task id."""
    r = (await connection.execute(sa.select(pull).where(pull.c.task == task))).one_or_none()
    return None if r is None else Pull(**{name: getattr(r, name) for name in Pull.__slots__})


async def abandon(connection: AsyncConnection, now_ms: int) -> None:
    """At the start of a leader: what its predecessor was asked to pull is to be pulled anew, and the rest has ended."""
    await connection.execute(
        sa.update(pull).where(pull.c.state == RUNNING, pull.c.reason == DEMAND).values(state=REQUESTED)
    )
    ended = {"state": ABANDONED, "finished_ms": now_ms, "error": "the indexer stopped during this pull"}
    await connection.execute(sa.update(pull).where(pull.c.state == RUNNING).values(ended))


async def fail(tx: Transaction, task: str, hash_: str, error: str, how: PullState) -> None:
    """Notes that a pull failed, or that what it found is refused; the content of the last good one stays."""
    ended = {
        "state": QUARANTINED if how is PullState.QUARANTINED else FAILED,
        "finished_ms": tx.now_ms,
        "error": error,
    }
    await tx.connection.execute(sa.update(pull).where(pull.c.task == task).values(ended))
    await tx.connection.execute(
        sa.update(result)
        .where(result.c.hash == hash_)
        .values(
            state=how.value,
            tried_at_ms=tx.now_ms,
            failures=result.c.failures + 1,
            task=task,
            error=error,
            clock=tx.clock,
        )
    )


async def give_up(
    connection: AsyncConnection, hash_: str, error: str, now_ms: int, epoch: int, *, again: bool = False
) -> None:
    """Notes why the pull that this leader has under way ends, which its result never hears of.

    `again`: one that somebody asked for has not ended, and is to be pulled under the same id once it can be.
    """
    ended = {"state": FAILED, "finished_ms": now_ms, "error": error}
    leads = sa.select(state.c.epoch).scalar_subquery() == epoch
    under_way = sa.update(pull).where(pull.c.hash == hash_, pull.c.state == RUNNING, leads)
    if again:
        await connection.execute(under_way.where(pull.c.reason == DEMAND).values(state=REQUESTED, error=error))
    await connection.execute(under_way.values(ended))


async def given_up(connection: AsyncConnection) -> dict[str, str]:
    """Why the pulls of filters were given up since their results were last tried, by hash."""
    rows = await connection.execute(
        sa.select(pull.c.hash, pull.c.error)
        .join(result, result.c.hash == pull.c.hash)
        .where(
            sa.or_(
                sa.and_(pull.c.state == FAILED, pull.c.finished_ms > sa.func.coalesce(result.c.tried_at_ms, -1)),
                sa.and_(pull.c.state == REQUESTED, pull.c.error.is_not(None)),
            )
        )
        .order_by(pull.c.finished_ms)
    )
    return {r.hash: r.error for r in rows}


async def prune(connection: AsyncConnection, now_ms: int) -> int:
    """Forgets pulls that ended long ago, but the last of each filter; how many, which is some of them at a time."""
    last = sa.select(pull.c.hash, sa.func.max(pull.c.requested_ms).label("at")).group_by(pull.c.hash).subquery("last")
    rows = await connection.execute(
        sa.select(pull.c.task)
        .join(last, last.c.hash == pull.c.hash)
        .where(pull.c.finished_ms < now_ms - PULLS_KEPT_MS, pull.c.requested_ms < last.c.at)
        .limit(PRUNED_AT_ONCE)
    )
    old = [r.task for r in rows]
    for batch in _batches(old):
        await connection.execute(sa.delete(pull).where(pull.c.task.in_(batch)))
    return len(old)


async def known(connection: AsyncConnection, keys: Iterable[str]) -> Known:
    """What the registry has of these content keys, and of the runs of the courses among them."""
    facts: dict[str, Facts] = {}
    for batch in _batches(sorted(keys)):
        await _add_facts(connection, facts, content.c.content_key.in_(batch))
    courses = [f.ordinal for f in facts.values() if f.type is ContentType.COURSE]
    for batch in _batches(courses):
        await _add_facts(connection, facts, content.c.parent.in_(batch))
    documents: dict[tuple[int, int], bytes] = {}
    for batch in _batches([f.ordinal for f in facts.values()]):
        d = document.c
        rows = await connection.execute(sa.select(d.ordinal, d.variant, d.digest).where(d.ordinal.in_(batch)))
        documents.update({(r.ordinal, r.variant): bytes(r.digest) for r in rows})
    highest = (await connection.execute(sa.select(sa.func.max(content.c.ordinal)))).scalar_one()
    return Known(facts, documents, 0 if highest is None else highest + 1)


async def accept(
    tx: Transaction, task: str, hash_: str, ingested: Ingested, *, members: int, requests: int = 0
) -> None:
    """Makes a pull's result the truth: ordinals, facts, documents, members; its queries serve it from now on."""
    await _write_facts(tx, ingested.facts)
    await _write_documents(tx, ingested)
    ended = {"state": PASSED, "finished_ms": tx.now_ms, "members": members, "changed": len(ingested.documents)}
    await tx.connection.execute(sa.update(pull).where(pull.c.task == task).values(ended))
    accepted = await tx.connection.execute(
        sa.update(result)
        .where(result.c.hash == hash_)
        .values(
            state=PullState.FRESH.value,
            members=ingested.members,
            restricted_members=ingested.restricted_members,
            forced=ingested.forced,
            requests=requests,
            pulled_at_ms=tx.now_ms,
            tried_at_ms=tx.now_ms,
            failures=0,
            task=task,
            error=None,
            clock=tx.clock,
        )
    )
    if accepted.rowcount:
        await tx.connection.execute(
            sa.update(catalog_query)
            .where(catalog_query.c.hash == hash_, sa.func.coalesce(catalog_query.c.serving, "") != hash_)
            .values(serving=hash_, clock=tx.clock)
        )


async def accept_nothing(tx: Transaction, task: str, hash_: str, error: str) -> None:
    """Makes a filter that can never be pulled, since it is no object, serve what it finds: nothing at all."""
    await accept(tx, task, hash_, Ingested(members=EMPTY, forced=EMPTY), members=0)
    never = {"state": PullState.UNPULLABLE.value, "pulled_at_ms": None, "error": error}
    await tx.connection.execute(sa.update(result).where(result.c.hash == hash_).values(never))


async def modified_ms(connection: AsyncConnection, hashes: Iterable[str]) -> dict[str, int]:
    """When the latest of a filter's members changed, by hash; without members it is absent."""
    members: dict[str, BitMap] = {}
    for batch in _batches(sorted(set(hashes))):
        found = sa.select(result.c.hash, result.c.members).where(
            result.c.hash.in_(batch), result.c.members.is_not(None)
        )
        members |= {r.hash: BitMap.deserialize(bytes(r.members)) for r in await connection.execute(found)}
    times: dict[int, int] = {}
    for batch in _batches(list(BitMap.union(BitMap(), *members.values()))):
        c = content.c
        rows = await connection.execute(sa.select(c.ordinal, c.modified_ms).where(c.ordinal.in_(batch)))
        times |= {r.ordinal: r.modified_ms for r in rows}
    return {hash_: max(times[ordinal] for ordinal in them) for hash_, them in members.items() if them}


async def customers_due(connection: AsyncConnection, older_than_ms: int, now_ms: int) -> list[str]:
    """The customers of catalogs whose details were never asked for, or longer ago than this time; or at a time that is
    still to come, by a clock that was wrong.
    """
    at_ms = customer.c.pulled_at_ms
    rows = await connection.execute(
        sa.select(catalog.c.customer)
        .join(customer, customer.c.uuid == catalog.c.customer, isouter=True)
        .where(sa.or_(customer.c.uuid.is_(None), at_ms <= older_than_ms, at_ms > now_ms + SKEW_MS))
        .distinct()
        .order_by(catalog.c.customer)
    )
    return [r.customer for r in rows]


async def put_customer(tx: Transaction, uuid: str, details: CustomerDetails | None, modified_ms: int) -> None:
    """Keeps what the LMS says of a customer, or that it does not know it; only a change moves the row's clock."""
    facts: dict[str, Any] = {"slug": None, "portal": False, "name": "", "modified_ms": 0}
    if details is not None:
        facts = {"slug": details.slug, "portal": details.portal, "name": details.name, "modified_ms": modified_ms}
    row = (await tx.connection.execute(sa.select(customer).where(customer.c.uuid == uuid))).one_or_none()
    if row is None:
        values = {"uuid": uuid, "pulled_at_ms": tx.now_ms, "clock": tx.clock, **facts}
        await tx.connection.execute(sa.insert(customer).values(values))
        return
    changed = any(getattr(row, name) != value for name, value in facts.items())
    values = {"pulled_at_ms": tx.now_ms, **({"clock": tx.clock, **facts} if changed else {})}
    await tx.connection.execute(sa.update(customer).where(customer.c.uuid == uuid).values(values))


async def texts(connection: AsyncConnection, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """The texts of documents by (ordinal, variant); those that do not exist are absent."""
    found: dict[tuple[int, int], bytes] = {}
    for batch in _batches(sorted({ordinal for ordinal, _ in wanted})):
        d = document.c
        rows = await connection.execute(sa.select(d.ordinal, d.variant, d.body).where(d.ordinal.in_(batch)))
        for r in rows:
            if (r.ordinal, r.variant) in wanted:
                found[r.ordinal, r.variant] = zstandard.ZstdDecompressor().decompress(r.body)
    return found


async def rendered_by(connection: AsyncConnection) -> str:
    """The renderer that every metadata digest in the registry comes from."""
    return str((await connection.execute(sa.select(state.c.renderer))).scalar_one())


async def set_metadata(tx: Transaction, digests: Sequence[tuple[int, bytes]]) -> None:
    """Takes over what another renderer makes of documents that are otherwise the same."""
    statement = (
        sa.update(content)
        .where(content.c.ordinal == sa.bindparam("at"))
        .values(metadata=sa.bindparam("new"), clock=tx.clock)
    )
    if digests:
        await tx.connection.execute(statement, [{"at": ordinal, "new": digest} for ordinal, digest in digests])


async def set_renderer(tx: Transaction, renderer: str) -> None:
    """Notes that every metadata digest in the registry is this renderer's now."""
    await tx.connection.execute(sa.update(state).values(renderer=renderer))


async def _add_facts(connection: AsyncConnection, facts: dict[str, Facts], which: sa.ColumnElement[bool]) -> None:
    for r in await connection.execute(sa.select(content).where(which)):
        facts[r.content_key] = Facts(
            ordinal=r.ordinal,
            key=r.content_key,
            type=ContentType(r.type),
            parent=r.parent,
            uuid=r.uuid,
            restricted=r.restricted,
            active=r.active,
            metadata=None if r.metadata is None else bytes(r.metadata),
            modified_ms=r.modified_ms,
        )


async def _write_facts(tx: Transaction, facts: Sequence[Facts]) -> None:
    for batch in _batches([f.ordinal for f in facts]):
        await tx.connection.execute(sa.delete(content).where(content.c.ordinal.in_(batch)))
    rows = [
        {
            "ordinal": f.ordinal,
            "content_key": f.key,
            "type": f.type.value,
            "parent": f.parent,
            "uuid": f.uuid,
            "restricted": f.restricted,
            "active": f.active,
            "metadata": f.metadata,
            "modified_ms": f.modified_ms,
            "clock": tx.clock,
        }
        for f in facts
    ]
    if rows:
        await tx.connection.execute(sa.insert(content), rows)


async def _write_documents(tx: Transaction, ingested: Ingested) -> None:
    gone = [*ingested.outdated, *((d.ordinal, d.variant) for d in ingested.documents)]
    d = document.c
    for variant in {variant for _, variant in gone}:
        for batch in _batches([ordinal for ordinal, v in gone if v == variant]):
            await tx.connection.execute(sa.delete(document).where(d.variant == variant, d.ordinal.in_(batch)))
    latest = {(doc.ordinal, doc.variant): doc for doc in ingested.documents}
    rows = [
        {
            "ordinal": doc.ordinal,
            "variant": doc.variant,
            "digest": doc.digest,
            "body": doc.body,
            "clock": tx.clock,
        }
        for doc in latest.values()
    ]
    if rows:
        await tx.connection.execute(sa.insert(document), rows)


def _batches(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[i : i + MAX_IN] for i in range(0, len(values), MAX_IN))
