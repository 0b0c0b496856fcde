"""How many pages of 100 documents a second does get_content_metadata answer, beside nginx with the same bytes?

`pace` asks on four connections, in its closed loop, on both sides: its buffers are large, so that it is not the reader
that is measured. nginx sends files from a file system in memory, with sendfile, and keeps them open. Warm: the same
page again and again, or 27 different ones in turn. Cold: a sidecar that was just started, and has its documents on disk
alone, is asked each page once, one after the other; nginx, which keeps nothing between requests, is asked the same.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.bench import Bench
from benchmarks.callers import write_requests
from benchmarks.exchange import ask
from benchmarks.load import Target, Throughput, how_busy
from benchmarks.processes import Spoiled
from benchmarks.rows import Row, interleaved

QUESTION: Final = "pages"
CONNECTIONS: Final = 4
PEER: Final = "nginx, files in memory"
GOAL: Final = 1.0
PAGES: Final = 27
"""So many are full, of the catalog that lists every course."""


def measure(bench: Bench) -> list[Row]:
    """A row for one page, one for many, one for what is cold."""
    world = bench.world
    ours = [page_target(world.catalogs[0], number) for number in range(1, PAGES + 1)]
    bodies = [world.ask(target).body for target in ours]
    theirs = [world.nginx.add_file(f"page-{number}", body) for number, body in enumerate(bodies)]
    size = f"page of 100, {len(bodies[0]) / 1e6:.1f} MB"
    return [
        _warm(bench, f"{size}, warm", ours[:1], theirs[:1], GOAL),
        _warm(bench, f"{size}, warm, {PAGES} pages in turn", ours, theirs, None),
        _cold(bench, f"{size}, cold, {PAGES} pages once", ours, theirs),
    ]


def _warm(bench: Bench, name: str, ours: Sequence[str], theirs: Sequence[str], goal: float | None) -> Row:
    world, seconds = bench.world, bench.seconds(5, 2)
    mine = world.target(write_requests(bench.folder / "pages", [world.caller.request(target) for target in ours]))
    files = write_requests(bench.folder / "files", [world.caller.request(target) for target in theirs])
    other = world.nginx.target(files)

    def asked(target: Target) -> Callable[[], Throughput]:
        return lambda: bench.pace.throughput(target, connections=CONNECTIONS, seconds=seconds)

    asked(mine)()
    taken = interleaved(bench.rounds, {"sidecar": asked(mine), PEER: asked(other)})
    ours_, theirs_ = (tuple(t.per_s for t in taken[side]) for side in ("sidecar", PEER))
    return Row(QUESTION, name, "/s", "at least", goal, ours_, PEER, theirs_, how_busy(taken))


def _cold(bench: Bench, name: str, ours: Sequence[str], theirs: Sequence[str]) -> Row:
    world = bench.world

    def sidecar() -> float:
        world.restart_sidecar()
        return _per_s(ours, lambda target: ask(world.sidecar.port, world.caller.request(target)).status)

    def nginx() -> float:
        return _per_s(theirs, lambda target: ask(world.nginx.port, world.caller.request(target)).status)

    taken = interleaved(bench.rounds, {"sidecar": sidecar, PEER: nginx})
    note = "documents on disk alone; the kernel has the file in memory"
    return Row(QUESTION, name, "/s", "at least", None, tuple(taken["sidecar"]), PEER, tuple(taken[PEER]), note)


def _per_s(targets: Sequence[str], status: Callable[[str], int]) -> float:
    began = time.perf_counter()
    if any(status(target) != 200 for target in targets):
        raise Spoiled("a page is not a 200")
    return len(targets) / (time.perf_counter() - began)


def page_target(catalog: str, page: int) -> str:
    """Where a page of 100 documents of a catalog is asked for."""
    return f"/api/v1/enterprise-catalogs/{catalog}/get_content_metadata/?page_size=100&page={page}"
