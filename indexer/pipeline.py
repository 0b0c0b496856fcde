"""One query through the pipeline: pull -> validate -> ingest -> upload -> accept; the publisher does the rest.

A pull passes as a whole or changes nothing but the note that it failed, or that what it found is refused: the last good
content stays.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from indexer.documents import Item
from indexer.ingest import ingest, mentioned
from indexer.metrics import Metrics
from indexer.publish import Publisher
from indexer.registry import Registry, Transaction, pulls, quarantine
from indexer.registry.pulls import Target
from indexer.source import Pulled, Source, SourceError, Unpullable
from indexer.validators import Content, Found, Limits, Objection, is_like, validate
from sidecar.clock import Clock
from sidecar.contract.words import PullState
from sidecar.errors import ContractError

log = structlog.get_logger(__name__)


class Pipeline:
    """Pulls for one leader. Searching may overlap; accepting goes one by one, since it gives out ordinals."""

    def __init__(
        self,
        registry: Registry,
        source: Source,
        publisher: Publisher,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        accepted: Callable[[], None],
    ) -> None:
        """`limits` are those of queries without their own; `accepted` is called whenever the registry has news."""
        self._registry = registry
        self._source = source
        self._publisher = publisher
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._accepted = accepted
        self._accepting = asyncio.Lock()

    async def pull(self, target: Target, reason: str, epoch: int, *, since_ms: int = 0) -> bool:
        """Pulls one filter and accepts what it finds; whether that passed validation. Raises Deposed if another leads.

        No document is used that was fetched before `since_ms`.
        """
        async with self._registry.plain() as connection:
            task = await pulls.start(connection, target.hash, reason, self._clock.now_ms())
        try:
            pulled = await self._source.pull(json.loads(target.content_filter), since_ms=since_ms)
            for warning in pulled.warnings:
                log.warning("content filter", query=target.hash, title=target.title, warning=warning)
            found = _found(pulled)
            async with self._accepting:
                objections = await self._objections(target, found)
                if not objections:
                    await self._accept(task, target, pulled, epoch)
        except (SourceError, ContractError) as error:
            # A document that no object can hold is the source's, too.
            await self._fail(task, target, error, epoch)
            return False
        if objections:
            await self._refuse(task, target, found, objections, epoch)
        else:
            self._metrics.pulls.labels(pulls.PASSED).inc()
        self._accepted()
        return not objections

    async def details(self, epoch: int, older_than_ms: int) -> int:
        """Asks for the details of customers that were last asked for longer ago than this; how many failed."""
        async with self._registry.read() as connection:
            due = await pulls.customers_due(connection, older_than_ms, self._clock.now_ms())
        failed = 0
        for uuid in due:
            try:
                details = await self._source.customer(uuid)
                modified_ms = 0 if details is None else _milliseconds(details.modified)
            except SourceError as error:
                failed += 1
                log.warning("customer details", customer=uuid, reason=str(error))
                continue
            async with self._registry.write(epoch) as tx:
                await pulls.put_customer(tx, uuid, details, modified_ms)
        if len(due) > failed:
            self._accepted()
        return failed

    async def _objections(self, target: Target, found: Found) -> list[Objection]:
        """Why what was found may not replace what is served. What a person approved may, and so may what is like it."""
        async with self._registry.read() as connection:
            served = await quarantine.served(connection, target.hash)
            limits = await quarantine.limits(connection, target.query_id, self._limits)
            refused = await quarantine.refused(connection, target.hash)
            approved = None
            if refused is not None and refused.state is quarantine.State.APPROVED:
                approved = await quarantine.found(connection, target.hash)
        if served is None:
            return []
        objections = validate(served, found, limits)
        return [] if approved is not None and is_like(approved, found, limits) else objections

    async def _refuse(self, task: str, target: Target, found: Found, objections: list[Objection], epoch: int) -> None:
        async with self._registry.write(epoch) as tx:
            refused, is_new = await quarantine.refuse(tx, task, target.hash, objections, found)
            await pulls.fail(tx, task, target.hash, f"quarantined: {refused.why}", PullState.QUARANTINED)
            if refused.state is quarantine.State.APPROVED:
                # Since this pull has looked. Whoever approved it was promised a pull, and got this one.
                await pulls.request(tx.connection, target.hash, tx.now_ms)
        self._metrics.pulls.labels(pulls.QUARANTINED).inc()
        for objection in objections:
            self._metrics.refused_results.labels(objection.rule.value).inc()
        tell = log.error if is_new else log.warning
        tell(
            "result quarantined; the last good one stays",
            query=target.hash,
            title=target.title,
            catalogs=target.catalogs,
            why=refused.why,
            state=refused.state.value,
            times=refused.times,
        )

    async def _accept(self, task: str, target: Target, pulled: Pulled, epoch: int) -> None:
        async with self._registry.read() as connection:
            known = await pulls.known(connection, mentioned(pulled))
        ingested = await asyncio.to_thread(ingest, pulled, known, self._clock.now_ms())
        await self._publisher.upload(ingested.rendered)
        async with self._registry.write(epoch) as tx:
            await pulls.accept(tx, task, target.hash, ingested, members=len(pulled.members), requests=pulled.requests)
            await self._release(tx, target)
        log.info("pulled", query=target.hash, members=len(pulled.members), changed=len(ingested.documents))

    async def _release(self, tx: Transaction, target: Target) -> None:
        if await quarantine.release(tx.connection, target.hash):
            log.info("a later result has passed; nothing of this query is held back", query=target.hash)

    async def _fail(self, task: str, target: Target, error: Exception, epoch: int) -> None:
        async with self._registry.write(epoch) as tx:
            if target.finds_anything:
                log.error("pull failed", query=target.hash, title=target.title, reason=str(error))
                how = PullState.UNPULLABLE if isinstance(error, Unpullable) else PullState.FAILING
                await pulls.fail(tx, task, target.hash, str(error), how)
                self._metrics.pulls.labels(pulls.FAILED).inc()
            else:
                log.warning("contains nothing", query=target.hash, title=target.title, reason=str(error))
                await pulls.accept_nothing(tx, task, target.hash, str(error))
        self._accepted()


def _found(pulled: Pulled) -> Found:
    """What the search itself has found: a course that the filter forces in is there whatever the search finds."""
    forced = {item.key for item in pulled.forced}

    def content(items: tuple[Item, ...]) -> Content:
        return {item.key: item.type for item in items if item.key not in forced}

    return Found(content(pulled.members), None if pulled.restricted is None else content(pulled.restricted))


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SourceError(f"a customer's `modified` is {text!r}, and not an ISO 8601 time") from error
    return max(0, round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
