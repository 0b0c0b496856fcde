"""`python -m tests.soak --minutes 10`: two indexers over one registry, Redis, and two sidecars, one with two workers.

While reads and writes go on at a constant rate, and the content changes, one fault after another is done to them
(`faults.py`). What is wrong and what is lost says `judge.py`, which failures are explained says `tally.py`. The exit
code is 1 if there was a wrong answer, a lost write, a failure that nothing explains, or something that did not come
back; the folder with all logs is kept then. Whoever asks and whoever judges is this one process: latencies have its
own delays in them, which the table tells.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import uvloop

from tests.fakes import Json
from tests.fleet import Fleet, fleet
from tests.redis_server import RedisServer
from tests.soak.faults import Faults, memory_mib
from tests.soak.judge import Judge, Register, Violation
from tests.soak.model import FRESH_ORGS, HOLDERS, ORGS, Named, shown
from tests.soak.tally import Tally
from tests.soak.traffic import API, CATALOGS, Traffic
from tests.soak.wire import Door
from tests.soak.writes import Writes, put_content

REFRESH_S: Final = 3
CONTENT_EVERY_S: Final = 1.5
CLOSED_AFTER_S: Final = 45.0
ENDED_WITHIN_S: Final = 90.0
PRINTED: Final = 20
ENDED: Final = ("passed", "failed", "quarantined", "abandoned")


@dataclass(slots=True)
class Soak:
    """One run."""

    folder: Path
    minutes: float
    seed: int
    reads_per_s: float
    writes_per_s: float
    judge: Judge = field(default_factory=Judge)
    tally: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    printed: int = 0
    began_s: float = field(default_factory=time.monotonic)

    async def run(self) -> Json:
        """Runs it, and returns what the table tells."""
        for org in (*ORGS, *FRESH_ORGS):
            self.judge.contents[org] = Register(org)
        corpus = self.folder / "corpus.json"
        put_content(corpus, 0)
        full = [self.folder / name for name in ("registry.db", "sidecar0.db", "sidecar1.db")]
        # Of all that is started from here on; this process is not concerned.
        os.environ |= {"SOAK_DISKS": ":".join(map(str, full)), "LD_PRELOAD": str(compiled(self.folder))}
        redis = RedisServer()
        await asyncio.to_thread(redis.start)
        try:
            own: dict[str, Json] = {
                "sidecar0": {"socket": str(self.folder / "0.sock")},
                "sidecar1": {"socket": str(self.folder / "1.sock"), "workers": 2},
            }
            async with fleet(
                self.folder,
                {"kind": "file", "path": str(corpus)},
                indexers=2,
                sidecars=2,
                store_url=redis.url,
                settings={"indexer": {"refresh_s": REFRESH_S, "freshness_s": 3600}},
                own_settings=own,
            ) as it:
                await self._run(it, redis, corpus)
        finally:
            redis.remove()
        return self._report()

    async def _run(self, it: Fleet, redis: RedisServer, corpus: Path) -> None:
        rng = random.Random(self.seed)
        now_s = time.monotonic
        floors = [0] * len(it.sidecars)
        doors = [Door(n, port=one.sections["sidecar"]["port"]) for n, one in enumerate(it.sidecars)]
        doors += [Door(n, path=one.sections["sidecar"]["socket"]) for n, one in enumerate(it.sidecars)]
        traffic = Traffic(doors, self.judge, self.tally, random.Random(self.seed + 1), now_s, floors)
        writes = Writes(traffic, corpus, lambda task: pull_of(it, task))
        faults = Faults(it, redis, self.tally, self.judge, rng, now_s, floors, self._say, writes.nothing_found)
        await writes.begin()
        await it.settle()
        stop, stop_reading = asyncio.Event(), asyncio.Event()
        reading = asyncio.create_task(traffic.run(self.reads_per_s, stop_reading))
        writing = asyncio.create_task(writes.run(self.writes_per_s, stop))
        changing = asyncio.create_task(self._change_content(writes, stop))
        closing = asyncio.create_task(self._close(stop_reading))
        await asyncio.sleep(3)
        self._measure(it)
        self._say(f"running in {self.folder}, seed {self.seed}")
        await faults.run(now_s() + self.minutes * 60)
        stop.set()
        await asyncio.gather(writing, changing)
        async with asyncio.timeout(ENDED_WITHIN_S):
            await writes.finish()
        await self._end(it, writes, doors)
        stop_reading.set()
        await asyncio.gather(reading, closing)
        self.judge.close(self.judge.open())
        self._tell()
        self._measure(it)
        self.problems += faults.failed
        self.tally.requests["a kept connection was found closed"] = sum(door.again for door in doors)
        for door in doors:
            door.close()

    async def _change_content(self, writes: Writes, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(CONTENT_EVERY_S)
            writes.write_content()

    async def _close(self, stop: asyncio.Event) -> None:
        """Has the judge look at what was claimed of generations that nobody answers from any more."""
        open_s: dict[int, float] = {}
        while not stop.is_set():
            await asyncio.sleep(1)
            now_s = time.monotonic()
            open_s = {generation: open_s.get(generation, now_s) for generation in self.judge.open()}
            for generation in [g for g, since_s in open_s.items() if now_s - since_s > CLOSED_AFTER_S]:
                self.judge.close([generation])
                await asyncio.sleep(0)
            self._tell()

    async def _end(self, it: Fleet, writes: Writes, doors: list[Door]) -> None:
        """Nothing changes any more: every sidecar comes to have the last of everything, and every pull has ended."""
        traffic, until_s = writes.traffic, time.monotonic() + ENDED_WITHIN_S
        last = len(traffic.versions_ms) - 1
        for door in doors:
            for org in ORGS:
                uuid = Named(f"holder {org}", HOLDERS).uuid
                target = f"{CATALOGS}{uuid}/get_content_metadata/?traverse_pagination=true"
                found = None
                while found != (org, last):
                    if time.monotonic() > until_s:
                        self.problems.append(f"{door.name} has {found} of {org} in the end, and not version {last}")
                        break
                    reply = await traffic.get(door, "in the end", target, time.monotonic(), documents=True)
                    found = None if reply is None else shown(reply.json()["results"])
                    await asyncio.sleep(0.05)
            reply = await traffic.get(door, "in the end", f"{CATALOGS}?page_size=1000", time.monotonic())
            if reply is None:
                self.problems.append(f"{door.name} does not list its catalogs in the end")
                continue
            titles = {str(one["uuid"]): str(one["title"]) for one in reply.json()["results"]}
            self.judge.titles(reply.generation, titles.items(), f"the last list of {door.name}", all_of_them=True)
        for task in writes.tasks:
            while (pull := await pull_of(it, task)) is None or pull["state"] not in ENDED:
                if time.monotonic() > until_s:
                    self.problems.append(f"a pull that was promised has not ended: {task} {pull}")
                    break
                await asyncio.sleep(0.1)

    def _measure(self, it: Fleet) -> None:
        for process in (*it.sidecars, *it.indexers):
            self.memory.setdefault(process.name, []).append(memory_mib(process))

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", flush=True)

    def _tell(self) -> None:
        found: list[Violation | str] = [*self.judge.violations, *self.tally.unexplained]
        for one in found[self.printed : PRINTED]:
            self._say(str(one))
        self.printed = len(found)

    def _report(self) -> Json:
        kinds = [violation.kind for violation in self.judge.violations]
        judged = self.judge.counts["judged"]
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "requests": dict(self.tally.requests.most_common()),
            "faults": len(self.tally.faults),
            "generations": self.judge.newest,
            "judged": judged,
            "judged_exactly": round(self.judge.counts["judged exactly"] / max(1, judged), 4),
            "wrong": kinds.count("wrong"),
            "lost": kinds.count("lost"),
            "failures": dict(self.tally.failures.most_common()),
            "unexplained": len(self.tally.unexplained),
            "did_not_come_back": len(self.problems),
            "reads": self.tally.reads.shown(),
            "reads_without_fault": self.tally.calm.shown(),
            "writes": self.tally.writes.shown(),
            "late_ms": round(self.tally.late_s * 1000, 2),
            "memory_mib": self.memory,
        }


async def pull_of(it: Fleet, task: str) -> Json | None:
    """How the pull of a task goes, as the first indexer says that can tell."""
    for indexer in it.indexers:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(5):
                status, body, _ = await indexer.get(f"{API}/pulls/{task}/")
            if status == 200:
                found: Json = body
                return found
    return None


def compiled(folder: Path) -> Path:
    """The library that makes disks full."""
    source, made = Path(__file__).with_name("enospc.c"), folder / "enospc.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"], check=True)
    return made


def table(report: Json) -> str:
    """The report, for people."""
    rows: list[tuple[str, Any]] = [("requests", f"{sum(report['requests'].values()):,}")]
    rows += [(f"  {kind}", f"{count:,}") for kind, count in report["requests"].items()]
    rows += [("faults", report["faults"]), ("generations", f"{report['generations']:,}")]
    exactly = f"{report['judged']:,}, {report['judged_exactly']:.1%} with one possible answer"
    rows += [("claims judged", exactly), ("wrong answers", report["wrong"]), ("lost writes", report["lost"])]
    rows += [("failures that nothing explains", report["unexplained"])]
    rows += [("did not come back", report["did_not_come_back"])]
    rows += [("failures by cause", sum(report["failures"].values()))]
    rows += [(f"  {cause}", f"{count:,}") for cause, count in report["failures"].items()]
    for name in ("reads", "reads_without_fault", "writes"):
        figures = ", ".join(f"{key.removesuffix('_ms')} {ms:,} ms" for key, ms in report[name].items())
        rows.append((name.replace("_", " "), figures))
    rows.append(("the soak itself was late by up to", f"{report['late_ms']:,} ms"))
    for name, (start, *rest) in report["memory_mib"].items():
        rows.append((f"memory of {name}, MiB", " to ".join(map(str, [start, *rest]))))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def is_good(report: Json) -> bool:
    """Whether all that must be 0 is."""
    return not any(report[name] for name in ("wrong", "lost", "unexplained", "did_not_come_back"))


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long there are faults.")
@click.option("--seed", default=1, show_default=True, help="Of the order of the faults, and of what is asked.")
@click.option("--reads", default=300.0, show_default=True, help="A second.")
@click.option("--writes", default=4.0, show_default=True, help="A second; every fourth has a refresh beside it.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the table here, too, as JSON.")
def main(minutes: float, seed: int, reads: float, writes: float, json_file: Path | None) -> None:
    """Constant traffic through one fault after another; ends with 1 if anything was wrong, lost or unexplained."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(folder, minutes, seed, reads, writes)
    report = uvloop.run(soak.run())
    print(table(report))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if not is_good(report):
        print("\n".join(soak.problems))
        print(f"logs and databases: {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
