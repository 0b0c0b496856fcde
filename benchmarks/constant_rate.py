"""What do callers wait who come at a constant rate, while generations with other content are published all the time?

The rate is half of what the sidecar answered at most, measured right before. For 60 s (8 s in a short run) the pointer
moves every 2 s to a generation that was made beforehand (`generations.py`); the sidecar follows, and completes its disk
copy. nginx is asked at the same rate beside the same mover, while no sidecar runs whose work would be on its core.
Latency counts from when a request was meant to be sent (`pace.c`).

The longest stall of a swap is the longest latency of any request that was meant for the 1.5 s after a move: within them
lie the noticing of the move, loading, joining and the exchange. It holds whatever else the machine did meanwhile; the
same figure of nginx, which swaps nothing, says how much that was.
"""

from typing import Final

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Latencies, wrk
from benchmarks.mover import Mover
from benchmarks.one_connection import PEER, middle, percentiles
from benchmarks.rows import Row, interleaved

QUESTION: Final = "constant rate"
EVERY_S: Final = 2.0
AFTER_A_MOVE_NS: Final = 1_500_000_000
GOALS: Final = {99.0: 2.0, 99.9: 3.0}


def measure(bench: Bench) -> list[Row]:
    """A row for each percentile, and the longest stalls."""
    world, seconds = bench.world, bench.seconds(60, 8)
    nginx = world.nginx.target(world.requests)
    peak = wrk(world.contains_target, connections=CONNECTIONS, seconds=bench.seconds(10, 3)).per_s
    rate = peak / 2
    mover = Mover(world, int(2 * bench.rounds * (seconds + 10) / EVERY_S))
    stalls: dict[str, list[float]] = {"sidecar": [], PEER: []}

    def asked(name: str) -> Latencies:
        with mover.moving(EVERY_S):
            target = world.contains_target if name == "sidecar" else nginx
            found = bench.pace.constant(target, connections=CONNECTIONS, rate=rate, seconds=seconds)
        stalls[name].append(max(found.worst_after_ns(at, AFTER_A_MOVE_NS) for at in mover.moves_ns) / 1e6)
        return found

    def sidecar() -> Latencies:
        if not world.sidecar.runs:
            world.start_sidecar()
        world.wait_until_it_follows()
        wrk(world.contains_target, connections=CONNECTIONS, seconds=1)
        return asked("sidecar")

    def peer() -> Latencies:
        world.sidecar.stop()
        return asked(PEER)

    taken = interleaved(bench.rounds, {"sidecar": sidecar, PEER: peer})
    mover.restore()
    if not world.sidecar.runs:
        world.start_sidecar()
    world.wait_until_it_follows()
    bench.curves["latency"] = {name: middle(runs).curve() for name, runs in taken.items()}
    note = f"{rate:,.0f} requests/s, half of {peak:,.0f}; {_generator(taken['sidecar'] + taken[PEER])}"
    rows = percentiles(QUESTION, "constant rate, pointer moving", GOALS, taken, note)
    stall = Row(
        question=QUESTION,
        name="longest latency within 1.5 s of a move",
        unit="ms",
        sense="at most",
        ours=tuple(stalls["sidecar"]),
        peer=PEER,
        theirs=tuple(stalls[PEER]),
        note="of each round; nginx swaps nothing",
    )
    return [*rows, stall]


def _generator(runs: list[Latencies]) -> str:
    """Whether the generator kept to its schedule."""
    unanswered = sum(run.unanswered for run in runs)
    late_ms = max(run.late_ns for run in runs) / 1e6
    kept = f"the generator was late by {late_ms:.1f} ms at most"
    return f"{kept}; {unanswered} requests were never answered" if unanswered else kept
