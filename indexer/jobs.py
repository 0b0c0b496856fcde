"""The leader's pulls in time: one APScheduler job per wanted filter, at the moment that `schedule` names.

A filter has at most one job and one pull under way. Jobs are worked out anew whenever the registry has changed.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger

from indexer.pipeline import Pipeline
from indexer.registry import RegistryError, pulls
from indexer.registry.pulls import Target
from indexer.schedule import FIRST_RETRY_S, due_at_ms
from indexer.wiring import Parts
from sidecar.contract.words import PullState
from sidecar.errors import CatalogError, StoreError

DETAILS_EVERY_S = 60

log = structlog.get_logger(__name__)


class Jobs:
    """The schedule of one leader; what goes wrong for good in a job is given to `failed`."""

    def __init__(
        self,
        parts: Parts,
        pipeline: Pipeline,
        epoch: int,
        changed: Callable[[], None],
        failed: Callable[[CatalogError], None],
    ) -> None:
        """`changed` asks for a reconcile soon; `failed` is given what ends this leader's time."""
        self._parts = parts
        self._pipeline = pipeline
        self._epoch = epoch
        self._changed = changed
        self._failed = failed
        self._slots = asyncio.Semaphore(parts.settings.indexer.pulls)
        self._pulling: set[str] = set()
        self._not_before_ms: dict[str, int] = {}
        self._no_details_before_ms = 0
        self._scheduled: dict[str, int] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    def start(self) -> None:
        """Begins to run jobs as they become due."""
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._scheduler.start()
        self._scheduler.add_job(
            self._details,
            "interval",
            seconds=DETAILS_EVERY_S,
            id="customers",
            next_run_time=datetime.now(UTC),
            misfire_grace_time=None,
        )

    async def stop(self) -> None:
        """Runs nothing any more, once this returns."""
        self._scheduler.shutdown(wait=False)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def reconcile(self) -> None:
        """Makes the jobs those of the filters that catalogs want now."""
        async with self._parts.registry.read() as connection:
            targets = {t.hash: t for t in await pulls.targets(connection)}
        for hash_ in self._scheduled.keys() - targets.keys():
            del self._scheduled[hash_]
            with suppress(JobLookupError):  # It may be about to begin.
                self._scheduler.remove_job(hash_)
        for hash_ in self._not_before_ms.keys() - targets.keys():
            del self._not_before_ms[hash_]
        for hash_, target in targets.items():
            if hash_ not in self._pulling:
                self._schedule(target)
        # While they are asked for, and while some fail, the interval alone says when they are asked for again.
        if self._parts.clock.now_ms() >= self._no_details_before_ms:
            self._scheduler.modify_job("customers", next_run_time=datetime.now(UTC))

    def _schedule(self, target: Target) -> None:
        now_ms = self._parts.clock.now_ms()
        due_ms = max(
            now_ms,
            due_at_ms(target, self._parts.settings.indexer.refresh_s, now_ms),
            self._not_before_ms.get(target.hash, 0),
        )
        if self._scheduled.get(target.hash) == due_ms:
            return
        self._scheduler.add_job(
            self._pull,
            DateTrigger(datetime.fromtimestamp(due_ms / 1000, UTC)),
            args=(target,),
            id=target.hash,
            replace_existing=True,
            misfire_grace_time=None,
        )
        self._scheduled[target.hash] = due_ms

    async def _pull(self, target: Target) -> None:
        self._noted()
        self._scheduled.pop(target.hash, None)
        if target.hash in self._pulling:
            return
        self._pulling.add(target.hash)
        ended = False
        try:
            async with self._slots:
                reason = "created" if target.state is PullState.DUE else "due"
                await self._pipeline.pull(target, reason, self._epoch)
            ended = True
        except (StoreError, RegistryError) as error:
            log.warning("pull given up for now", query=target.hash, reason=str(error))
        except CatalogError as error:
            self._failed(error)
        finally:
            self._pulling.discard(target.hash)
            if ended:
                self._not_before_ms.pop(target.hash, None)
            else:  # The registry knows of no failure: whatever it was, it is not repeated at once.
                self._not_before_ms[target.hash] = self._parts.clock.now_ms() + FIRST_RETRY_S * 1000
            self._changed()

    async def _details(self) -> None:
        self._noted()
        now_ms = self._parts.clock.now_ms()
        self._no_details_before_ms = now_ms + DETAILS_EVERY_S * 1000
        try:
            failed = await self._pipeline.details(self._epoch, now_ms - self._parts.settings.indexer.refresh_s * 1000)
        except (StoreError, RegistryError) as error:
            log.warning("customer details given up for now", reason=str(error))
        except CatalogError as error:
            self._failed(error)
        else:
            if not failed:
                self._no_details_before_ms = 0

    def _noted(self) -> None:
        """Notes the task of a job that begins, so that `stop` can wait for its end."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
