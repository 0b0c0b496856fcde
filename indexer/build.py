"""`catalog-indexer build`: pull what is asked for, one query after another in order of creation, and publish once.

The order makes it repeatable: two builds from empty registries over the same content give the same ordinals.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final, TypeVar

from indexer.leadership import Leadership
from indexer.metrics import Metrics
from indexer.pipeline import Pipeline
from indexer.publish import Publisher, pointer_of, render_again
from indexer.registry import generations, pulls
from indexer.registry.generations import Generation
from indexer.registry.pulls import DEMAND, Target
from indexer.wiring import Parts, limits_of
from sidecar.contract.words import PullState
from sidecar.errors import CatalogError

PATIENCE_LEASES: Final = 2

T = TypeVar("T")


class NoSuchQuery(CatalogError):
    """Raised when no catalog wants the query that was asked for."""


@dataclass(slots=True)
class Built:
    """What a build has done. `held`: those whose results are refused. `generation` is None if nothing was new, and not
    `moved` to if it is held back behind the generation that is `pinned`.
    """

    passed: list[Target] = field(default_factory=list)
    failed: list[Target] = field(default_factory=list)
    held: list[Target] = field(default_factory=list)
    customers_failed: int = 0
    generation: Generation | None = None
    pinned: int | None = None


async def build(
    parts: Parts,
    *,
    query: str | None = None,
    adopt: bool = False,
    progress: Callable[[Target | None, int], None] = lambda target, of: None,
) -> Built:
    """Builds all queries, or the one of this hash, id or title; `progress` is told of each before its pull.

    Raises NoSuchQuery, ForeignStore, AnotherLeads, and Deposed if another indexer takes the lead meanwhile.
    """
    publisher = Publisher(parts.registry, parts.store, parts.clock, adopt=adopt)
    await publisher.check()
    await _targets(parts, query)  # What is refused is refused before anybody waits for the lead.
    return await while_leading(
        parts, lambda epoch: _build(parts, publisher, epoch, query, progress), patience=PATIENCE_LEASES
    )


async def _targets(parts: Parts, query: str | None) -> list[Target]:
    async with parts.registry.read() as connection:
        targets = await pulls.targets(connection)
    if query is None:
        return targets
    chosen = [t for t in targets if t.is_called(query)]
    if not chosen:
        raise NoSuchQuery(f"no catalog wants a query of hash, id or title {query!r}")
    return chosen


async def _build(
    parts: Parts,
    publisher: Publisher,
    epoch: int,
    query: str | None,
    progress: Callable[[Target | None, int], None],
) -> Built:
    done = Built()
    limits = limits_of(parts.settings)
    pipeline = Pipeline(parts.registry, parts.source, publisher, parts.clock, limits, Metrics(), accepted=lambda: None)
    await render_again(parts.registry, epoch)
    async with parts.registry.plain() as connection:
        await pulls.abandon(connection, parts.clock.now_ms())
    targets = await _targets(parts, query)
    begun_ms = parts.clock.now_ms()
    for target in targets:
        progress(target, len(targets))
        passed = await pipeline.pull(target, DEMAND, epoch, since_ms=begun_ms)
        # A filter that is no object finds nothing, and that is what is published: there is nothing to mend.
        passed = passed or not target.finds_anything
        (done.passed if passed else done.failed).append(target)
    async with parts.registry.read() as connection:
        states = {t.hash: t.state for t in await pulls.targets(connection)}
    done.held = [t for t in done.failed if states.get(t.hash) is PullState.QUARANTINED]
    done.failed = [t for t in done.failed if t not in done.held]
    done.customers_failed = await pipeline.details(epoch, parts.clock.now_ms())
    progress(None, len(targets))
    done.generation = await publisher.commit(epoch)
    if done.generation is not None and done.generation.shows is not None:
        # The pinned tree was not what readers saw: what was built comes after it.
        done.generation = await publisher.commit(epoch)
    async with parts.registry.read() as connection:
        done.pinned = await generations.pin(connection)
    await publisher.sweep(epoch, parts.settings.store.keep_generations)
    return done


async def while_leading(parts: Parts, work: Callable[[int], Coroutine[None, None, T]], *, patience: float) -> T:
    """Takes the lead, runs the work of its epoch beside signs of life, and leaves in order.

    Raises AnotherLeads after `patience` leases of a leader that lives. If the lead is lost, the work is cancelled and
    Deposed raised.
    """
    leadership = Leadership(parts.registry, parts.clock, parts.settings.indexer.lease_s)
    pointer = await pointer_of(parts.store)
    epoch = await leadership.acquire(0 if pointer is None else pointer.epoch, patience=patience)
    try:
        return await _beside(leadership.keep(epoch), work(epoch))
    finally:
        await leadership.release(epoch)


async def _beside(signs_of_life: Coroutine[None, None, None], work: Coroutine[None, None, T]) -> T:
    """What the work returns, unless the other one fails first: then the work is cancelled."""
    working, keeping = asyncio.create_task(work), asyncio.create_task(signs_of_life)
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
        return await working
    finally:
        for task in (working, keeping):
            task.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)
