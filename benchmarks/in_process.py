"""What does the in-process index cost: a question, the first one of a catalog, and the memory of an LMS's worker?

The index is opened over the sidecar's disk copy, read-only, and asked by its public method, which notices new
generations, folds what it does not know, and tells an unknown catalog. The peer is what no index can be faster than: a
dict from catalog to the bound `__contains__` of its bitmap, and a dict from key to ordinal, probed where the loop is,
with no call around them. Both are asked the same 1,000 questions in the same kind of loop; a figure is the median of
twenty passes, since one lookup is shorter than reading a clock.

Memory is what a fresh process grows by, from before the import of the index until all catalogs were asked once.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.bench import Bench
from benchmarks.processes import LOAD_CORE, Spoiled, on_core
from benchmarks.rows import Row, interleaved
from sidecar.inprocess import CatalogIndex

QUESTION: Final = "in process"
PEER: Final = "two bare probes"
LOOKUPS: Final = 1_000
PASSES: Final = 20
_WORKER: Final = """
import gc, json, sys
from pathlib import Path

def rss_kib():
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))

disk, questions = Path(sys.argv[1]), json.loads(sys.stdin.read())
gc.collect()
before = rss_kib()
from sidecar.inprocess import CatalogIndex
index = CatalogIndex(disk)
for catalog, key in questions:
    index.contains(catalog, key)
print((rss_kib() - before) / 1024)
"""


def measure(bench: Bench) -> list[Row]:
    """A row for the p50, one for the first question of a catalog, one for memory."""
    world = bench.world
    disk = world.installation.disk
    index = CatalogIndex(disk)
    asked = world.questions[:LOOKUPS]
    wrong = [(c, k) for c, k in asked if index.contains(c, k) is not world.contains(c, k)]
    if wrong:
        raise Spoiled(f"the in-process index is wrong about {wrong[:3]}")
    bare = _bare(bench, asked)
    taken = interleaved(
        PASSES * bench.rounds,
        {"ours": lambda: _ns_a_lookup(index.contains, asked), PEER: bare},
    )
    grown = [_grown_mib(disk, world.questions) for _ in range(bench.rounds)]
    return [
        Row(
            *(QUESTION, "contains, catalog asked before, p50", "ns", "at most", 3.0),
            *(_medians(taken["ours"]), PEER, _medians(taken[PEER])),
        ),
        Row(QUESTION, "contains, first time for a catalog, p50", "µs", "at most", 100.0, _first_us(bench)),
        Row(QUESTION, "memory of a worker", "MiB", "at most", 30.0, tuple(grown), note="import included"),
    ]


def _bare(bench: Bench, asked: Sequence[tuple[str, str]]) -> Callable[[], float]:
    """The mean of a pass of the two probes, in ns."""
    ordinals = bench.world.index.dictionary.ordinals
    probes = {}
    for uuid, catalog in bench.world.index.catalogs.items():
        assert catalog.serving is not None
        assert catalog.serving.v1 is not None
        probes[uuid] = catalog.serving.v1.contained.__contains__

    def timed() -> float:
        began = time.perf_counter_ns()
        for catalog, key in asked:
            probes[catalog](ordinals[key])
        return (time.perf_counter_ns() - began) / len(asked)

    return timed


def _ns_a_lookup(contains: Callable[[str, str], bool], asked: Sequence[tuple[str, str]]) -> float:
    """The mean of a pass, in ns."""
    began = time.perf_counter_ns()
    for catalog, key in asked:
        contains(catalog, key)
    return (time.perf_counter_ns() - began) / len(asked)


def _medians(samples: Sequence[float]) -> tuple[float, ...]:
    """Of every twenty passes the median."""
    return tuple(statistics.median(samples[n : n + PASSES]) for n in range(0, len(samples), PASSES))


def _first_us(bench: Bench) -> tuple[float, ...]:
    """The median over all catalogs, each asked once, of an index that was asked nothing but what opens it."""
    world = bench.world
    samples = []
    for _ in range(bench.rounds):
        key, took = world.questions[0][1], []
        with CatalogIndex(world.installation.disk) as index:
            index.contains(world.catalogs[0], key)
            for catalog in world.catalogs[1:]:
                began = time.perf_counter_ns()
                index.contains(catalog, key)
                took.append((time.perf_counter_ns() - began) / 1000)
        samples.append(statistics.median(took))
    return tuple(samples)


def _grown_mib(disk: Path, questions: Sequence[tuple[str, str]]) -> float:

    command = on_core(LOAD_CORE, [sys.executable, "-c", _WORKER, str(disk)])
    done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, check=True)
    return float(done.stdout)
