"""One query through the pipeline: pull -> ingest -> upload -> accept; the publisher does the rest.

A pull passes as a whole or changes nothing but the note that it failed: the last good content stays.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from indexer.ingest import ingest, mentioned
from indexer.publish import Publisher
from indexer.registry import Registry, pulls
from indexer.registry.pulls import Target
from indexer.source import Pulled, Source, SourceError, Unpullable
from sidecar.clock import Clock
from sidecar.errors import ContractError

log = structlog.get_logger(__name__)


class Pipeline:
    """Pulls for one leader. Searching may overlap; accepting goes one by one, since it gives out ordinals."""

    def __init__(
        self, registry: Registry, source: Source, publisher: Publisher, clock: Clock, accepted: Callable[[], None]
    ) -> None:
        """`accepted` is called whenever the registry has something new to publish."""
        self._registry = registry
        self._source = source
        self._publisher = publisher
        self._clock = clock
        self._accepted = accepted
        self._accepting = asyncio.Lock()

    async def pull(self, target: Target, reason: str, epoch: int, *, since_ms: int = 0) -> bool:
        """Pulls one filter and accepts what it finds; whether that passed. Raises Deposed if another leads.

        No document is used that was fetched before `since_ms`.
        """
        async with self._registry.plain() as connection:
            task = await pulls.start(connection, target.hash, reason, self._clock.now_ms())
        try:
            pulled = await self._source.pull(json.loads(target.content_filter), since_ms=since_ms)
            for warning in pulled.warnings:
                log.warning("content filter", query=target.hash, title=target.title, warning=warning)
            async with self._accepting:
                await self._accept(task, target, pulled, epoch)
        except (SourceError, ContractError) as error:
            # A document that no object can hold is the source's, too.
            await self._fail(task, target, error, epoch)
            return False
        self._accepted()
        return True

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

    async def _accept(self, task: str, target: Target, pulled: Pulled, epoch: int) -> None:
        async with self._registry.read() as connection:
            known = await pulls.known(connection, mentioned(pulled))
        ingested = await asyncio.to_thread(ingest, pulled, known, self._clock.now_ms())
        await self._publisher.upload(ingested.rendered)
        async with self._registry.write(epoch) as tx:
            await pulls.accept(tx, task, target.hash, ingested, members=len(pulled.members), requests=pulled.requests)
        log.info("pulled", query=target.hash, members=len(pulled.members), changed=len(ingested.documents))

    async def _fail(self, task: str, target: Target, error: Exception, epoch: int) -> None:
        async with self._registry.write(epoch) as tx:
            if target.finds_anything:
                log.error("pull failed", query=target.hash, title=target.title, reason=str(error))
                unpullable = isinstance(error, Unpullable)
                await pulls.fail(tx, task, target.hash, str(error), unpullable=unpullable)
            else:
                log.warning("contains nothing", query=target.hash, title=target.title, reason=str(error))
                await pulls.accept_nothing(tx, task, target.hash, str(error))
        self._accepted()


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SourceError(f"a customer's `modified` is {text!r}, and not an ISO 8601 time") from error
    return max(0, round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
