"""How long does one caller wait for a containment answer, who asks again once it has one, beside nginx `return 200`?

One connection that is kept, the same 4,000 questions, asked by `pace` in its closed loop: it blocks while it waits, and
its raw latencies are kept in ns. The percentiles are those of each round.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.bench import Bench
from benchmarks.load import Latencies
from benchmarks.rows import Row, interleaved

QUESTION: Final = "one connection"
PEER: Final = "nginx, return 200"
GOALS: Final = {50.0: 1.15, 99.0: 1.5}


def measure(bench: Bench) -> list[Row]:
    """A row for each percentile."""
    world, seconds = bench.world, bench.seconds(5, 2)
    ours, nginx = world.contains_target, world.nginx.target(world.requests)

    def sidecar() -> Latencies:
        return bench.pace.closed(ours, connections=1, seconds=seconds)

    sidecar()
    taken = interleaved(
        bench.rounds,
        {"sidecar": sidecar, PEER: lambda: bench.pace.closed(nginx, connections=1, seconds=seconds)},
    )
    bench.curves["one_connection"] = {name: middle(runs).curve() for name, runs in taken.items()}
    return percentiles(QUESTION, "1 connection", GOALS, taken)


def percentiles(
    question: str, name: str, goals: Mapping[float, float], taken: Mapping[str, Sequence[Latencies]], note: str = ""
) -> list[Row]:
    """A row for each percentile that has a goal, of the sidecar's runs beside PEER's."""
    return [
        Row(
            question=question,
            name=f"{name}, p{percentile:g}",
            unit="µs",
            sense="at most",
            goal=goal,
            ours=tuple(run.percentile_us(percentile) for run in taken["sidecar"]),
            peer=PEER,
            theirs=tuple(run.percentile_us(percentile) for run in taken[PEER]),
            note=note,
        )
        for percentile, goal in goals.items()
    ]


def middle(runs: list[Latencies]) -> Latencies:
    """The run with the middle 99th percentile: what a picture shows is one that was, not a mean."""
    return sorted(runs, key=lambda run: run.percentile_us(99.0))[len(runs) // 2]
