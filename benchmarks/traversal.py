"""How fast is a whole catalog read in one answer, beside nginx with the same bytes, and what memory does that take?

traverse_pagination over the catalog that lists every course, warm; one connection, asked by `pace`, for both. Memory is
what a sidecar grows by while it answers once: its peak, over what it held right before. It was started for this, and
asked for the same documents page by page, so that it has them, and has room left over from no other long answer.
"""

from typing import Final

from benchmarks.bench import Bench
from benchmarks.callers import write_requests
from benchmarks.load import how_busy
from benchmarks.pages import PAGES, page_target
from benchmarks.processes import MIB, forget_peak, memory_mib
from benchmarks.rows import Row, interleaved

QUESTION: Final = "traversal"
PEER: Final = "nginx, file in memory"


def measure(bench: Bench) -> list[Row]:
    """A row for bytes/s, one for memory."""
    world, seconds = bench.world, bench.seconds(5, 3)
    target = f"/api/v1/enterprise-catalogs/{world.catalogs[0]}/get_content_metadata/?traverse_pagination=1"
    body = world.ask(target).body
    mine = world.target(write_requests(bench.folder / "traversal", [world.caller.request(target)]))
    file = world.nginx.add_file("traversal", body)
    other = world.nginx.target(write_requests(bench.folder / "file", [world.caller.request(file)]))
    taken = interleaved(
        bench.rounds,
        {
            "sidecar": lambda: bench.pace.throughput(mine, connections=1, seconds=seconds),
            PEER: lambda: bench.pace.throughput(other, connections=1, seconds=seconds),
        },
    )
    ours, theirs = (tuple(t.bytes_per_s / 1e6 for t in taken[side]) for side in ("sidecar", PEER))
    size = f"traversal of {len(body) / 1e6:.0f} MB, warm"
    return [
        Row(QUESTION, size, "MB/s", "at least", 1.0, ours, PEER, theirs, how_busy(taken)),
        Row(
            question=QUESTION,
            name=f"{size}, growth of the sidecar",
            unit="of the answer",
            sense="at most",
            goal=0.1,
            ours=tuple(_grown_mib(bench, target) * MIB / len(body) for _ in range(bench.rounds)),
        ),
    ]


def _grown_mib(bench: Bench, target: str) -> float:
    world = bench.world
    pid = world.restart_sidecar().pid
    for number in range(1, PAGES + 1):
        world.ask(page_target(world.catalogs[0], number))
    forget_peak(pid)
    before = memory_mib(pid)
    world.ask(target)
    return max(0.0, memory_mib(pid, "VmHWM") - before)
