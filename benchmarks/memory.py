"""What memory does a sidecar take, and how does it grow with the content?

A sidecar of its own for each size, started from its store, its disk copy complete, asked a few hundred questions: what
the kernel says that it holds then. Documents are on disk and in a cache with a bound of its own, which is empty here.
"""

from typing import Final

from benchmarks.bench import Bench
from benchmarks.callers import contains_target
from benchmarks.processes import memory_mib
from benchmarks.rows import Row
from benchmarks.world import COURSES, World

QUESTION: Final = "memory"
SIZES: Final = (300, 1_000, COURSES)
ASKED: Final = 300


def measure(bench: Bench) -> list[Row]:
    """A row for the world's size; the others are the picture's, in a full run alone."""
    points = []
    for courses in SIZES if bench.full else SIZES[-1:]:
        if courses == COURSES:
            bench.world.restart_sidecar()
            points.append((courses, _held_mib(bench.world)))
            continue
        folder = bench.folder / f"world-{courses}"
        folder.mkdir()
        with World(folder, courses) as world:
            points.append((courses, _held_mib(world)))
    if bench.full:
        bench.curves["memory"] = {"sidecar, no documents asked for": points}
    return [Row(QUESTION, f"a sidecar of {COURSES:,} courses", "MiB", "at most", None, (points[-1][1],))]


def _held_mib(world: World) -> float:
    for catalog, key in world.questions[:ASKED]:
        world.ask(contains_target(catalog, key))
    return round(memory_mib(world.sidecar.pid), 1)
