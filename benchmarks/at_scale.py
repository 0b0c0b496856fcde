"""The design point, 10,000 queries × 100,000 keys, as rows of the suite: `design_point.py` measures, this names goals.

Its processes run on both cores, as it starts them: what is asked is memory, bytes, and whether a second is enough.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from benchmarks import design_point
from benchmarks.bench import Bench
from benchmarks.processes import LOAD_CORE, SERVER_CORE
from benchmarks.rows import Row

QUESTION: Final = "10,000 queries × 100,000 keys"
# By the name of a figure: what it is, its unit, and the most that it may be.
FIGURES: Final[Mapping[str, tuple[str, str, float | None]]] = {
    "ready_s": ("sidecar ready from Redis", "s", None),
    "steady_mib": ("sidecar, disk copy complete", "MiB", 400.0),
    "after_mib": ("sidecar, after a swap", "MiB", 400.0),
    "peak_mib": ("sidecar, the most that it ever held", "MiB", 400.0),
    "answered_s": ("a change is answered after publication", "s", 1.0),
    "moved_kib": ("bytes from Redis until it is", "KiB", 64.0),
    "moved_with_copy_kib": ("the same, with what the disk copy fetches", "KiB", None),
    "lookup_ratio": ("a lookup, beside one among 50 queries", "×", 1.1),
}
QUERIES: Final = 10_000
# Memory at fewer queries is called so.
AT: Final = "steady_mib at "


def measure(bench: Bench) -> list[Row]:
    """A row for each figure."""
    measured: Callable[[bool], Mapping[str, float]] | None = getattr(design_point, "measure", None)
    if measured is None:
        return [
            Row(QUESTION, what, unit, "at most", goal, note="not built")
            for what, unit, goal in FIGURES.values()
            if goal is not None
        ]
    with _both_cores():
        figures = measured(bench.full)
    fewer = [(int(name.removeprefix(AT).split()[0]), mib) for name, mib in figures.items() if name.startswith(AT)]
    if fewer:
        points = [*sorted(fewer), (QUERIES, figures["steady_mib"])]
        bench.curves["memory_of_queries"] = {"sidecar, 100,000 keys, disk copy complete": points}
    return [
        Row(QUESTION, what, unit, "at most", goal, (figures[name],))
        for name, (what, unit, goal) in FIGURES.items()
        if name in figures
    ]


@contextmanager
def _both_cores() -> Iterator[None]:
    os.sched_setaffinity(0, {SERVER_CORE, LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})
