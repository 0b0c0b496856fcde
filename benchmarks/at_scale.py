"""The design point, 10,000 queries × 100,000 keys, as rows of the suite: `design_point.py` measures, this names goals.

Its processes run on both cores, as it starts them: what is asked is memory, bytes, and whether a second is enough.
"""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final
from uuid import UUID

from benchmarks import design_point
from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.callers import contains_target, write_requests
from benchmarks.design_point import FEW, FEW_CATALOGS, KEYS, QUERIES
from benchmarks.design_tree import Tree, key_of
from benchmarks.load import Target, Throughput, how_busy, wrk
from benchmarks.processes import LOAD_CORE, SERVER_CORE
from benchmarks.rows import Row, interleaved

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
    "lookup_ratio": ("a bare lookup in process, beside one among 50 queries", "×", None),
}
ASKED: Final = 40_000
# Memory at fewer queries is called so.
AT: Final = "steady_mib at "


def measure(bench: Bench) -> list[Row]:
    """A row for each figure."""
    with _both_cores():
        figures = design_point.measure(bench.full)
    fewer = [(int(name.removeprefix(AT).split()[0]), mib) for name, mib in figures.items() if name.startswith(AT)]
    if fewer:
        points = [*sorted(fewer), (QUERIES, figures["steady_mib"])]
        bench.curves["memory_of_queries"] = {"sidecar, 100,000 keys, disk copy complete": points}
    return [
        *(
            Row(QUESTION, what, unit, "at most", goal, (figures[name],))
            for name, (what, unit, goal) in FIGURES.items()
            if name in figures
        ),
        _containment(bench),
    ]


def _containment(bench: Bench) -> Row:
    """Questions over HTTP to all catalogs and about all keys, beside a sidecar of fifty queries over the same keys."""
    rnd = random.Random("at scale")
    few, many = Tree(FEW, KEYS, FEW_CATALOGS), Tree(QUERIES, KEYS)
    # One core each: who is not asked has nothing to do.
    with (
        _both_cores(),
        design_point.serving(bench.folder / "few", few, SERVER_CORE) as of_few,
        design_point.serving(bench.folder / "many", many, SERVER_CORE) as of_many,
    ):
        targets = {}
        for name, tree, process in (("few", few, of_few), ("many", many, of_many)):
            uuids = list(tree.catalogs)
            asked = [_request(rnd.choice(uuids), key_of(rnd.randrange(KEYS))) for _ in range(ASKED)]
            targets[name] = Target(
                process.port, [process.pid], write_requests(bench.folder / f"{name}-requests", asked)
            )
        os.sched_setaffinity(0, {LOAD_CORE})

        def reached(name: str) -> Throughput:
            return wrk(targets[name], connections=CONNECTIONS, seconds=bench.seconds(5, 2))

        for name in targets:
            # Each question once: what is asked for the first time is learned.
            reached(name)
        subjects = {name: partial(reached, name) for name in targets}
        taken = interleaved(bench.rounds, subjects)
    ours, theirs = (tuple(t.per_s for t in taken[name]) for name in ("many", "few"))
    what, peer = "containment over HTTP, requests/s", f"{FEW} queries, {FEW_CATALOGS} catalogs"
    return Row(QUESTION, what, "/s", "at least", 1 / 1.1, ours, peer, theirs, how_busy(taken))


def _request(catalog: bytes, key: str) -> bytes:
    target = contains_target(str(UUID(bytes=catalog)), key)
    return f"GET {target} HTTP/1.1\r\nHost: catalog.example.test\r\nAccept: */*\r\n\r\n".encode()


@contextmanager
def _both_cores() -> Iterator[None]:
    os.sched_setaffinity(0, {SERVER_CORE, LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})
