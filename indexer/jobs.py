"""The leader's pulls in time: one APScheduler job per wanted filter, at the moment that `schedule` names.

A filter has at most one job and one pull under way. Jobs are worked out anew whenever the registry has changed.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger

from indexer.pipeline import Pipeline
from indexer.registry import RegistryError, pulls, quarantine
from indexer.registry.pulls import Target
from indexer.schedule import FIRST_RETRY_S, due_at_ms
from indexer.wiring import Parts
from sidecar.contract.words import PullState
from sidecar.errors import CatalogError, StoreError

DETAILS_EVERY_S = 60
LONGEST_PAUSE_S = 300

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
        self._meanwhile: set[str] = set()
        self._not_before_s: dict[str, float] = {}
        self._given_up: dict[str, int] = {}
        self._requested: dict[str, int] = {}
        self._no_details_before_s = 0.0
        self._scheduled: dict[str, int] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    def start(self) -> None:
        """Begins to run jobs as they become due."""
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
        self._stopping = True
        self._scheduler.pause()
        for task in self._running:
            task.cancel()
        try:
            # What is about to begin begins now, and ends at once: the scheduler would log its cancellation as an error.
            await asyncio.sleep(0)
            await asyncio.gather(*self._running, return_exceptions=True)
        finally:
            self._scheduler.shutdown(wait=False)

    async def reconcile(self) -> None:
        """Makes the jobs those of the filters that catalogs want now; what somebody asked for is due at once.

        A pull that was under way while the registry was read may have ended since: what was read of it is not used, and
        its end asks for another reconcile.
        """
        self._meanwhile = set(self._pulling)
        async with self._parts.registry.read() as connection:
            targets = {t.hash: t for t in await pulls.targets(connection)}
            self._requested = await pulls.requested(connection)
            refused = await quarantine.states(connection)
        unwanted = self._requested.keys() - targets.keys() - self._meanwhile
        outlived = refused.keys() - targets.keys() - self._meanwhile
        if unwanted or outlived:
            async with self._parts.registry.plain() as connection:
                await pulls.dismiss(connection, unwanted, self._parts.clock.now_ms())
                for hash_ in sorted(outlived):
                    await quarantine.release(connection, hash_)
        for hash_ in self._scheduled.keys() - targets.keys():
            del self._scheduled[hash_]
            with suppress(JobLookupError):  # It may be about to begin.
                self._scheduler.remove_job(hash_)
        for hash_ in self._not_before_s.keys() - targets.keys():
            del self._not_before_s[hash_]
            self._given_up.pop(hash_, None)
        for hash_, target in targets.items():
            if hash_ not in self._meanwhile:
                self._schedule(target)
        # While they are asked for, and while some fail, the interval alone says when they are asked for again.
        if self._parts.clock.monotonic() >= self._no_details_before_s:
            self._scheduler.modify_job("customers", next_run_time=datetime.now(UTC))

    def _schedule(self, target: Target) -> None:
        now_ms = self._parts.clock.now_ms()
        due_ms = due_at_ms(target, self._parts.settings.indexer.refresh_s, now_ms)
        if target.hash in self._requested:
            due_ms = now_ms
        pause_s = self._not_before_s.get(target.hash, 0.0) - self._parts.clock.monotonic()
        due_ms = max(now_ms + max(0, round(pause_s * 1000)), due_ms)
        if self._scheduled.get(target.hash) == due_ms:
            return
        self._scheduler.add_job(
            self._pull,
            # By the scheduler's own clock, of which only the distance is of use here.
            DateTrigger(datetime.now(UTC) + timedelta(milliseconds=due_ms - now_ms)),
            args=(target,),
            id=target.hash,
            replace_existing=True,
            misfire_grace_time=None,
        )
        self._scheduled[target.hash] = due_ms

    async def _pull(self, target: Target) -> None:
        with self._job():
            await self._pull_once(target)

    async def _pull_once(self, target: Target) -> None:
        self._scheduled.pop(target.hash, None)
        if target.hash in self._pulling or self._stopping:
            return
        self._pulling.add(target.hash)
        self._meanwhile.add(target.hash)
        ended = False
        try:
            async with self._slots:
                reason = "created" if target.state is PullState.DUE else "due"
                since_ms = max(self._requested.pop(target.hash, 0), self._promised_ms())
                await self._pipeline.pull(target, reason, self._epoch, since_ms=since_ms)
            ended = True
        except (StoreError, RegistryError) as error:
            log.warning("pull given up for now", query=target.hash, reason=str(error))
            await self._note_failure(target, str(error), again=True)
        except CatalogError as error:
            self._failed(error)
        except Exception as error:  # A defect: it ends this pull, and neither the others nor the leader.
            log.exception("pull broke off", query=target.hash)
            await self._note_failure(target, f"{type(error).__name__}: {error}")
        finally:
            self._pulling.discard(target.hash)
            if ended:
                self._not_before_s.pop(target.hash, None)
                self._given_up.pop(target.hash, None)
            else:  # The result knows of no failure: whatever it was, it is not repeated at once.
                self._given_up[target.hash] = tries = self._given_up.get(target.hash, 0) + 1
                pause_s = min(FIRST_RETRY_S << min(tries - 1, 20), LONGEST_PAUSE_S)
                self._not_before_s[target.hash] = self._parts.clock.monotonic() + pause_s
            self._changed()

    def _promised_ms(self) -> int:
        """The oldest that a document may be now, so that it is not older than promised when it is pulled again."""
        indexer = self._parts.settings.indexer
        return self._parts.clock.now_ms() - (indexer.freshness_s - indexer.refresh_s) * 1000

    async def _note_failure(self, target: Target, reason: str, *, again: bool = False) -> None:
        """Notes why a pull was given up, and whether one that was asked for is still to come; if the registry is out of
        reach, the next leader notes that it ended.
        """
        with suppress(RegistryError):
            async with self._parts.registry.plain() as connection:
                now_ms = self._parts.clock.now_ms()
                await pulls.give_up(connection, target.hash, reason, now_ms, self._epoch, again=again)

    async def _details(self) -> None:
        with self._job():
            await self._details_once()

    async def _details_once(self) -> None:
        if self._stopping:
            return
        now_ms = self._parts.clock.now_ms()
        self._no_details_before_s = self._parts.clock.monotonic() + DETAILS_EVERY_S
        try:
            failed = await self._pipeline.details(self._epoch, now_ms - self._parts.settings.indexer.refresh_s * 1000)
        except (StoreError, RegistryError) as error:
            log.warning("customer details given up for now", reason=str(error))
        except CatalogError as error:
            self._failed(error)
        else:
            if not failed:
                self._no_details_before_s = 0.0

    @contextmanager
    def _job(self) -> Iterator[None]:
        """The edge of a job: `stop` waits for its end, and the scheduler does not log the end that `stop` asked for."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            yield
        except asyncio.CancelledError:
            if not self._stopping:
                raise
