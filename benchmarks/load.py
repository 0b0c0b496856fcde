"""What asks: wrk for requests a second, redis-benchmark for Redis, and our own `pace` for latencies.

An answer that is not a 200 spoils the question: nobody is interested in how fast something fails.
"""

import json
import os
import re
import statistics
import subprocess
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hdrh.histogram import HdrHistogram

from benchmarks.processes import HOST, LOAD_CORE, Spoiled, cpu_s, on_core, program

HERE: Final = Path(__file__).parent
PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
HIGHEST_NS: Final = 60_000_000_000
"""The longest latency that a histogram tells from a longer one."""


class Throughput(NamedTuple):
    """What a side achieved; `server_busy` and `load_busy` are the shares of their core that both had meanwhile."""

    per_s: float
    bytes_per_s: float
    server_busy: float
    load_busy: float


def how_busy(taken: Mapping[str, Sequence[Throughput]]) -> str:
    """How busy a server and its load were, on average, in words: a server whose core had time left was held up, by its
    load if that was busy, else by whatever else the machine did.
    """
    return "; ".join(
        f"core of {name} busy {statistics.mean(t.server_busy for t in them):.0%}, "
        f"its load's {statistics.mean(t.load_busy for t in them):.0%}"
        for name, them in taken.items()
    )


class Latencies:
    """The latencies of requests in ns, in the order in which they were meant to be sent.

    Those of the `unanswered` are what they had waited when the run was over: at least so long it would have been.
    """

    def __init__(
        self, ns: "array[int]", *, t0_ns: float = 0, rate: float = 0.0, late_ns: float = 0, unanswered: float = 0
    ) -> None:
        self.ns = ns
        self.t0_ns = t0_ns
        self.rate = rate
        self.late_ns = late_ns
        self.unanswered = int(unanswered)
        self.histogram = histogram_of(ns)

    def percentile_us(self, percentile: float) -> float:
        """In µs."""
        return percentile_us(self.histogram, percentile)

    def curve(self) -> list[tuple[float, float]]:
        """(percentile, µs) of what a picture and a results file show."""
        return [(p, round(self.percentile_us(p), 1)) for p in PERCENTILES]

    def worst_after_ns(self, at_ns: int, within_ns: int) -> int:
        """The longest latency of the requests meant for the time from `at_ns`, of the machine's monotonic clock, on."""
        first = max(0, int((at_ns - self.t0_ns) * self.rate / 1e9))
        last = max(0, int((at_ns + within_ns - self.t0_ns) * self.rate / 1e9))
        return max(self.ns[first:last], default=0)


def histogram_of(ns: Iterable[int]) -> HdrHistogram:
    """Latencies in ns, with three significant digits."""
    histogram = HdrHistogram(1, HIGHEST_NS, 3)
    for value, count in Counter(ns).items():
        histogram.record_value(min(max(value, 1), HIGHEST_NS), count)
    return histogram


def percentile_us(histogram: HdrHistogram, percentile: float) -> float:
    """A percentile of what was recorded in ns, in µs."""
    return float(histogram.get_value_at_percentile(percentile)) / 1000


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens (a port of loopback or the path of a socket), its processes, and what it is asked."""

    where: int | Path
    pids: Sequence[int]
    requests: Path

    @property
    def address(self) -> str:
        """As `pace` takes it."""
        return f"{HOST}:{self.where}" if isinstance(self.where, int) else str(self.where)


def wrk(target: Target, *, connections: int, seconds: int) -> Throughput:
    """As many requests as the connections can ask, one after the other on each."""
    command = [program("wrk"), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", "30s", "--script", str(HERE / "wrk.lua"), f"http://{target.address}/"]
    said, busy = _watched([*command, "--", str(target.requests)], target.pids)
    found = json.loads(said.splitlines()[-1])
    if found["errors"] or not found["requests"]:
        raise Spoiled(f"{found['errors']} of {found['requests']} requests to {target.address} failed\n{said}")
    took_s = found["duration_us"] / 1e6
    return Throughput(found["requests"] / took_s, found["bytes"] / took_s, busy[0] / took_s, busy[1] / took_s)


def redis_benchmark(port: int, pids: Sequence[int], *, connections: int, asks: int, spread: int) -> Throughput:
    """SISMEMBER of one of `spread` members in one of `spread` sets, drawn anew for every request."""
    command = [program("redis-benchmark"), "-h", HOST, "-p", str(port), "-c", str(connections), "-n", str(asks)]
    command += ["-r", str(spread), "-q", "SISMEMBER", "catalog:__rand_int__", "course-v1:edX+__rand_int__"]
    said, busy = _watched(command, pids)
    match = re.findall(r"([\d.]+) requests per second", said)
    if not match:
        raise Spoiled(f"redis-benchmark said:\n{said}")
    per_s = float(match[-1])
    took_s = asks / per_s
    return Throughput(per_s, 0.0, busy[0] / took_s, busy[1] / took_s)


class Pace:
    """`pace.c`, compiled into a folder."""

    def __init__(self, folder: Path, *, core: int | None = LOAD_CORE) -> None:
        self._core = core
        self._program = folder / "pace"
        self._latencies = folder / "latencies"
        subprocess.run([program("cc"), "-O2", "-o", str(self._program), str(HERE / "pace.c")], check=True)

    def closed(self, target: Target, *, connections: int, seconds: float) -> Latencies:
        """Each connection asks again once it is answered; latency counts from the sending."""
        return self._run(target, connections, 0, seconds)

    def constant(self, target: Target, *, connections: int, rate: float, seconds: float) -> Latencies:
        """So many requests a second, whatever happens; latency counts from when each was meant to be sent."""
        return self._run(target, connections, rate, seconds)

    def throughput(self, target: Target, *, connections: int, seconds: int) -> Throughput:
        """What the closed loop achieves, in answers and their bodies' bytes; for long answers, which wrk reads in
        pieces of 8 KiB: its core is then as busy as the server's.
        """
        said, busy = self._ask(target, connections, 0, seconds)
        took_s, answered = said["seconds"], said["answered"]
        return Throughput(answered / took_s, said["body_bytes"] / took_s, busy[0] / took_s, busy[1] / took_s)

    def _run(self, target: Target, connections: int, rate: float, seconds: float) -> Latencies:
        said, _ = self._ask(target, connections, rate, seconds)
        ns = array("q")
        ns.frombytes(self._latencies.read_bytes())
        unanswered = said["meant"] - said["answered"]
        return Latencies(ns, t0_ns=said["t0_ns"], rate=rate, late_ns=said["late_ns"], unanswered=unanswered)

    def _ask(
        self, target: Target, connections: int, rate: float, seconds: float
    ) -> tuple[dict[str, float], tuple[float, float]]:
        command = [str(self._program), target.address, str(connections), f"{rate:.3f}", f"{seconds:g}"]
        said, busy = _watched([*command, str(target.requests), str(self._latencies)], target.pids, self._core)
        found: dict[str, float] = json.loads(said)
        return found, busy


def _watched(
    command: Sequence[str], pids: Sequence[int], core: int | None = LOAD_CORE
) -> tuple[str, tuple[float, float]]:
    """What a command said, and the seconds of their cores that the server and the command itself have had."""
    before = cpu_s(pids)
    process = subprocess.Popen(on_core(core, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        said = output.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Spoiled(f"{' '.join(command)} ended with {process.returncode}: {said}")
    return said, (cpu_s(pids) - before, usage.ru_utime + usage.ru_stime)
