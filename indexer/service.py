"""`catalog-indexer serve`: wait for the lead; while leading, pull what is due and publish whatever the registry gets.

Losing the lead ends everything that the leader does and begins the wait again. Nothing else ends the service but a
signal, a store that belongs to another registry, or a defect.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from indexer.compare import Comparing
from indexer.jobs import Jobs
from indexer.leadership import Leadership
from indexer.metrics import Metrics
from indexer.patrol import Patrol
from indexer.pipeline import Pipeline
from indexer.publication import Publication
from indexer.publish import Publisher, pointer_of, render_again
from indexer.registry import Deposed, RegistryError, generations, pulls
from indexer.wiring import Parts, limits_of
from sidecar.clock import Jumps
from sidecar.errors import CatalogError, Fenced, PointerConflict, StoreError

FOLLOW_S = 0.5
RETRY_S = 2.0
SWEEP_S = 600.0
RESTS_PER_RECONCILE = 5

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Role:
    """What this process is at the moment, and what keeps it from publishing.

    `wake` tells it, if it leads, that the registry has something new.
    """

    leading: bool = False
    epoch: int = 0
    problem: str | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)


async def serve(parts: Parts, role: Role, publication: Publication, metrics: Metrics, *, adopt: bool = False) -> None:
    """Runs until cancelled. Raises ForeignStore at the start if publishing would overwrite another registry's store."""
    leadership = Leadership(parts.registry, parts.clock, parts.settings.indexer.lease_s)
    while True:
        try:
            await _lead_once(parts, leadership, role, publication, metrics, adopt=adopt)
        except (StoreError, RegistryError) as error:
            if str(error) != role.problem:
                log.warning("cannot lead for now", reason=str(error))
            role.problem = str(error)
            await asyncio.sleep(RETRY_S)


async def _lead_once(
    parts: Parts, leadership: Leadership, role: Role, publication: Publication, metrics: Metrics, *, adopt: bool
) -> None:
    publisher = Publisher(parts.registry, parts.store, parts.clock, adopt=adopt, metrics=metrics)
    await publisher.check()
    pointer = await pointer_of(parts.store)
    epoch = await leadership.acquire(0 if pointer is None else pointer.epoch)
    role.leading, role.epoch = True, epoch
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_keep(leadership, epoch, role))
            group.create_task(_Leader(parts, publisher, epoch, role, publication, metrics).run())
    except* CatalogError as ended:
        for error in ended.exceptions:
            if not isinstance(error, Deposed | Fenced | PointerConflict):
                raise error from None
            log.error("the lead is lost", epoch=epoch, reason=str(error))
    finally:
        role.leading = False
        metrics.left()
        await leadership.release(epoch)


async def _keep(leadership: Leadership, epoch: int, role: Role) -> None:
    try:
        await leadership.keep(epoch)
    finally:
        # At once: what the leader has under way may take a while to end.
        role.leading = False


class _Leader:
    def __init__(
        self,
        parts: Parts,
        publisher: Publisher,
        epoch: int,
        role: Role,
        publication: Publication,
        metrics: Metrics,
    ) -> None:
        self._parts = parts
        self._publisher = publisher
        self._epoch = epoch
        self._publication = publication
        self._metrics = metrics
        self._role = role
        self._wake = role.wake
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pipeline = Pipeline(
            parts.registry, parts.source, publisher, parts.clock, limits_of(parts.settings), metrics, self._wake.set
        )
        self._jobs = Jobs(parts, pipeline, epoch, self._wake.set, self._lose)
        self._patrol = Patrol(publisher, parts.store, parts.clock, metrics, self._wake.set)

    async def run(self) -> None:
        await render_again(self._parts.registry, self._epoch)
        async with self._parts.registry.plain() as connection:
            await pulls.abandon(connection, self._parts.clock.now_ms())
        self._jobs.start()
        comparing = self._compare()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publish())
                group.create_task(self._sweep())
                group.create_task(self._patrol.run())
                group.create_task(self._watch())
        except* CatalogError as failed:
            raise failed.exceptions[0] from None
        finally:
            if comparing is not None:
                comparing.cancel()
                await asyncio.gather(comparing, return_exceptions=True)
            await self._jobs.stop()

    def _compare(self) -> asyncio.Task[None] | None:
        """Beside everything else and no part of it: whatever ends it, leading goes on."""
        if not self._parts.settings.compare.url:
            return None
        task = asyncio.create_task(Comparing(self._parts, self._metrics).run())
        task.add_done_callback(_note_end)
        return task

    async def _publish(self) -> None:
        """Group commit without a timer: what is accepted while one commit runs is published by the next."""
        seen: tuple[int, dict[str, int]] | None = None
        woken, not_before_s, jumps = True, 0.0, Jumps(self._parts.clock)
        while True:
            # What is due when is worked out by the wall clock.
            woken = woken or self._wake.is_set() or jumps.seen()
            self._wake.clear()
            try:
                async with self._parts.registry.read() as connection:
                    now = await generations.clock(connection), await pulls.requested(connection)
                began_s = self._parts.clock.monotonic()
                if (now != seen or woken) and began_s >= not_before_s:
                    await self._jobs.reconcile()
                    seen, woken = now, False
                    # With many queries, working out what is due after every pull would leave little time for pulls.
                    now_s = self._parts.clock.monotonic()
                    not_before_s = now_s + RESTS_PER_RECONCILE * (now_s - began_s)
                new = await self._publisher.commit(self._epoch)
            except (StoreError, RegistryError) as error:
                if isinstance(error, Fenced | PointerConflict):
                    raise
                problem = f"cannot publish: {error}"
                if problem != self._role.problem:
                    log.warning("not published yet", reason=str(error))
                self._role.problem = problem
                self._metrics.refused.labels("out of reach").inc()
                await asyncio.sleep(RETRY_S)
                continue
            self._role.problem = self._publisher.problem
            if new is not None and new.moved:
                self._publication.note(new)
                self._metrics.published(new)
            # Not wait_for, which forgets a cancellation that comes in the moment of the wake: this would never end.
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S):
                    await self._wake.wait()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                swept = await self._publisher.sweep(self._epoch, self._parts.settings.store.keep_generations)
            except (StoreError, RegistryError) as error:
                if isinstance(error, Fenced | PointerConflict):
                    raise
                log.warning("not swept", reason=str(error))
            else:
                self._metrics.swept.inc(swept)

    async def _watch(self) -> None:
        await self._lost

    def _lose(self, error: CatalogError) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)


def _note_end(task: asyncio.Task[None]) -> None:
    """A task that was to run for ever has met a defect."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("answers are no longer compared", exc_info=error)
