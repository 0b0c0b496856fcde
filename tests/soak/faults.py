"""What is done to the fleet, one thing after another, and how long each may take to be made good.

A fault is over once the fleet is well: every process runs and answers, one indexer leads, and every sidecar says `ok`
and serves a generation that is newer than any that was seen when the cause ended. What is not well within WELL_WITHIN_S
did not come back.
"""

import asyncio
import os
import random
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from indexer.check import check
from tests.fleet import LEASE_S, Fleet, Process
from tests.redis_server import RedisServer
from tests.soak.judge import Judge
from tests.soak.model import ORGS
from tests.soak.tally import Clock, Tally

WELL_WITHIN_S: Final = 75.0
LOOK_EVERY_S: Final = 0.1
OBJECTS: Final = "catalog:o:*"
"""The keys of objects in Redis, as `sidecar/store/redis.py` specifies them."""
DAMAGED: Final = 5


@dataclass(slots=True)
class Faults:
    """The faults of one soak. `floors`: what sidecars have promised to whom wrote through them ends with them."""

    fleet: Fleet
    redis: RedisServer
    tally: Tally
    judge: Judge
    rng: random.Random
    now_s: Clock
    floors: list[int]
    say: Callable[[str], None]
    nothing_found: Callable[[], AbstractContextManager[None]]
    """While within, the source answers in full, and finds nothing of what is served."""
    failed: list[str] = field(default_factory=list)
    """What did not come back."""

    def all(self) -> list[Callable[[], Awaitable[None]]]:
        """All faults."""
        return [
            self.leader_killed,
            self.leader_paused,
            self.indexers_killed,
            self.sidecar_killed_and_store_down,
            self.worker_killed,
            self.workers_exchanged,
            self.store_emptied,
            self.store_older,
            self.store_paused,
            self.objects_damaged,
            self.copy_full,
            self.registry_full,
            self.source_empty,
            self.readers_pinned,
        ]

    async def run(self, until_s: float) -> None:
        """One after another, in an order of their own every round, with moments of rest; returns after the time."""
        deck: list[Callable[[], Awaitable[None]]] = []
        while self.now_s() < until_s:
            if not deck:
                deck = self.all()
                self.rng.shuffle(deck)
            began_s = self.now_s()
            fault = deck.pop()
            await fault()
            name = fault.__name__.replace("_", " ")
            self.say(f"{name}: {self.now_s() - began_s:.1f} s until all was well")
            await asyncio.sleep(self.rng.uniform(1.0, 3.0))

    async def leader_killed(self) -> None:
        leader = await self.fleet.leader()
        with self.tally.fault("its indexer was killed", self.now_s, write=self._behind(leader)):
            await leader.end(signal.SIGKILL)
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))
            await leader.start()
            await self._well()

    async def leader_paused(self) -> None:
        """Until past its lease: somebody else leads when it wakes."""
        leader = await self.fleet.leader()
        with self.tally.fault("its indexer was paused", self.now_s, write=self._behind(leader)):
            leader.send(signal.SIGSTOP)
            await asyncio.sleep(LEASE_S * self.rng.uniform(2.0, 5.0))
            leader.send(signal.SIGCONT)
            await self._well()

    async def indexers_killed(self) -> None:
        with self.tally.fault("all indexers were killed", self.now_s, write=self._sidecars()):
            for indexer in self.fleet.indexers:
                await indexer.end(signal.SIGKILL)
            await asyncio.sleep(self.rng.uniform(0.5, 2.0))
            for indexer in self.fleet.indexers:
                await indexer.start()
            await self._well()

    async def sidecar_killed_and_store_down(self) -> None:
        """It starts from its disk copy alone."""
        number = self.rng.choice(self._sidecars())
        sidecar = self.fleet.sidecars[number]
        await asyncio.to_thread(self.redis.save)
        with self.tally.fault("the store was down", self.now_s, documents=self._sidecars()):
            await asyncio.to_thread(self.redis.kill)
            with self.tally.fault("the sidecar was killed", self.now_s, no_answer=[number], write=[number]):
                await self._kill(sidecar)
                self.floors[number] = 0
                await asyncio.sleep(self.rng.uniform(0.0, 1.0))
                await sidecar.start()
                if not await self._comes(sidecar.ready, WELL_WITHIN_S):
                    self._fail(f"{sidecar.name} was not ready from its disk copy", [sidecar])
            await asyncio.sleep(self.rng.uniform(0.5, 2.0))
            await asyncio.to_thread(self.redis.start)
            await self._well()

    async def worker_killed(self) -> None:
        """One of several: what it was asked is lost with it, and nothing else."""
        number, sidecar = self._of_several()
        with self.tally.fault("a worker of it was killed", self.now_s, no_answer=[number]):
            os.kill(self.rng.choice(children_of(pid_of(sidecar))), signal.SIGKILL)
            await self._well()

    async def workers_exchanged(self) -> None:
        """Explains no failure at all."""
        _, sidecar = self._of_several()
        before = said(sidecar, "workers were exchanged")
        with self.tally.fault("workers were exchanged", self.now_s):
            sidecar.send(signal.SIGHUP)

            async def exchanged() -> bool:
                return said(sidecar, "workers were exchanged") > before

            if not await self._comes(exchanged, WELL_WITHIN_S):
                self._fail(f"{sidecar.name} did not exchange its workers", [sidecar])
            await self._well()

    async def store_emptied(self) -> None:
        await self._restart_store("the store lost everything", empty=True, save_s=0.0)

    async def store_older(self) -> None:
        await self._restart_store("the store fell back to an older copy", empty=False, save_s=self.rng.uniform(0, 5))

    async def store_paused(self) -> None:
        with self.tally.fault("the store was paused", self.now_s, documents=self._sidecars()):
            os.kill(self.redis.pid, signal.SIGSTOP)
            await asyncio.sleep(self.rng.uniform(1.0, 6.0))
            os.kill(self.redis.pid, signal.SIGCONT)
            await self._well()

    async def objects_damaged(self) -> None:
        """Some are deleted, one has a bit flipped; whoever leads notices, and makes them whole."""
        with self.tally.fault("objects of the store were damaged", self.now_s, documents=self._sidecars()):
            await asyncio.to_thread(self._damage)
            if not await self._comes(self._is_whole, WELL_WITHIN_S):
                self._fail("the published tree was not made whole", self.fleet.indexers)
            await self._well()

    async def source_empty(self) -> None:
        """Explains no failure at all: what it finds is held back, and what is served goes on being served."""
        with self.tally.fault("the source found nothing", self.now_s):
            with self.nothing_found():

                async def held_back() -> bool:
                    return bool((await (await self.fleet.leader()).health())["quarantined"] >= len(ORGS))

                if not await self._comes(held_back, WELL_WITHIN_S):
                    self._fail("what the source found was not held back", self.fleet.indexers)
            # Looked at again in five minutes by itself; whoever asks need not wait.
            await self._command("refresh")
            await self._well()

    async def readers_pinned(self) -> None:
        """Explains no failure at all: writes are pending, and shown once the pin is gone."""
        with self.tally.fault("readers were pinned", self.now_s):
            await self._command("pin", "--why", "soak")
            await asyncio.sleep(self.rng.uniform(1.0, 6.0))
            await self._command("unpin", "--why", "soak")
            await self._well()

    async def copy_full(self) -> None:
        """Explains no failure at all: answers come from memory and the store."""
        number = self.rng.choice(self._sidecars())
        with self.tally.fault("the disk of a copy was full", self.now_s):
            with self._full(self.fleet.sidecars[number].sections["sidecar"]["disk"]):
                await asyncio.sleep(self.rng.uniform(2.0, 6.0))
            await self._well()

    async def registry_full(self) -> None:
        with self.tally.fault("the registry's disk was full", self.now_s, write=self._sidecars()):
            with self._full(self.fleet.registry_url.partition(":///")[2]):
                await asyncio.sleep(self.rng.uniform(1.0, 5.0))
            await self._well()

    async def _restart_store(self, cause: str, *, empty: bool, save_s: float) -> None:
        if not empty:
            await asyncio.to_thread(self.redis.save)
            await asyncio.sleep(save_s)
        with self.tally.fault(cause, self.now_s, documents=self._sidecars()):
            await asyncio.to_thread(self.redis.kill)
            if empty:
                self.redis.forget()
            await asyncio.sleep(self.rng.uniform(0.0, 2.0))
            await asyncio.to_thread(self.redis.start)
            await self._well()

    async def _is_whole(self) -> bool:
        store = self.fleet.store()
        try:
            return not (await check(store)).problems
        finally:
            await store.close()

    async def _command(self, *words: str) -> None:
        config = self.fleet.indexers[0].config
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "indexer", *words, "--config", str(config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said_, _ = await process.communicate()
        if process.returncode:
            self._fail(f"{' '.join(words)}: {said_.decode()}", self.fleet.indexers)

    def _damage(self) -> None:
        keys = sorted(self.redis.admin.scan_iter(OBJECTS, count=1000))
        for key in self.rng.sample(keys, min(DAMAGED, len(keys))):
            self.redis.admin.delete(key)
        key = self.rng.choice(keys)
        if data := self.redis.admin.get(key):
            at = self.rng.randrange(len(data))
            self.redis.admin.set(key, data[:at] + bytes([data[at] ^ 1 << self.rng.randrange(8)]) + data[at + 1 :])

    @contextmanager
    def _full(self, path: str) -> Iterator[None]:
        flag = Path(f"{path}.full")
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    async def _kill(self, process: Process) -> None:
        """Ends it at once, and waits for what it started to be gone: that has its port."""
        children = children_of(pid_of(process))
        await process.end(signal.SIGKILL)

        async def gone() -> bool:
            return not any(map(runs, children))

        if not await self._comes(gone, WELL_WITHIN_S):
            self._fail(f"the workers of {process.name} outlived it", [process])

    async def _well(self) -> None:
        before = self.judge.newest

        async def well() -> bool:
            for sidecar in self.fleet.sidecars:
                health = await sidecar.health()
                if health["status"] != "ok" or health["generation"] <= before:
                    return False
            healths = [await indexer.health() for indexer in self.fleet.indexers]
            return any(health["leading"] for health in healths)

        if not await self._comes(well, WELL_WITHIN_S):
            found = []
            for process in self._processes():
                try:
                    health = await process.health()
                except aiohttp.ClientError as error:
                    health = {"status": repr(error)}
                found.append(f"  {process.name}: {health}")
            processes = [*self.fleet.sidecars, *self.fleet.indexers]
            self._fail(
                "\n".join([f"the fleet was not well after {WELL_WITHIN_S:g} s, above {before}", *found]), processes
            )

    async def _comes(self, condition: Callable[[], Awaitable[bool]], within_s: float) -> bool:
        until_s = self.now_s() + within_s
        while self.now_s() < until_s:
            try:
                if await condition():
                    return True
            except (aiohttp.ClientError, KeyError, ValueError):
                pass
            ended = [p.name for p in self._processes() if p.running is not None and p.running.returncode is not None]
            if ended:
                self._fail(f"{', '.join(ended)} ended, and nobody had ended it", self._processes())
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return False

    def _fail(self, what: str, processes: Iterable[Process]) -> None:
        logs = [f"--- {p.name}\n" + "\n".join(p.log.read_text().splitlines()[-8:]) for p in processes]
        self.failed.append("\n".join([what, *logs]))
        self.say(f"DID NOT COME BACK: {self.failed[-1]}")

    def _processes(self) -> list[Process]:
        return [*self.fleet.sidecars, *self.fleet.indexers]

    def _sidecars(self) -> list[int]:
        return list(range(len(self.fleet.sidecars)))

    def _behind(self, indexer: Process) -> list[int]:
        """The sidecars whose writes go to an indexer."""
        sidecars = enumerate(self.fleet.sidecars)
        return [n for n, sidecar in sidecars if sidecar.sections["sidecar"]["indexer_url"] == indexer.url]

    def _of_several(self) -> tuple[int, Process]:
        sidecars = enumerate(self.fleet.sidecars)
        return next((n, one) for n, one in sidecars if one.sections["sidecar"].get("workers", 1) > 1)


def pid_of(process: Process) -> int:
    """Its first process."""
    assert process.running is not None
    return process.running.pid


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def said(process: Process, event: str) -> int:
    """How often a process has logged something."""
    return len(re.findall(re.escape(event), process.log.read_text()))


def memory_mib(process: Process) -> float:
    """What it and the processes that it started hold in memory."""
    total = 0.0
    for pid in (pid_of(process), *children_of(pid_of(process))):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) / 1024
    return round(total, 1)
