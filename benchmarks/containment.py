"""How many containment questions a second does the sidecar answer over HTTP, beside nginx, Redis and bare aiohttp?

16 connections that are kept, 4,000 different questions over all catalogs, one core for the server and one for the load.
nginx and aiohttp give the same bytes and look nothing up; Redis is asked SISMEMBER by its own redis-benchmark. In every
round each side is measured once. With how many connections what is reached is the picture's.
"""

from collections.abc import Callable
from typing import Final

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Throughput, how_busy, redis_benchmark, wrk
from benchmarks.rows import Row, interleaved
from benchmarks.world import MEMBERS

QUESTION: Final = "containment over HTTP"
GOALS: Final = {"nginx, return 200": 0.75, "Redis, SISMEMBER": 0.9, "bare aiohttp": 3.0}
MORE_CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64)


def measure(bench: Bench) -> list[Row]:
    """A row for each peer."""
    world, seconds = bench.world, bench.seconds(5, 2)
    nginx, bare, redis = world.nginx, world.bare, world.redis
    # As many as take about as long; how many that is, the first ones tell.
    some = redis_benchmark(redis.port, [redis.pid], connections=CONNECTIONS, asks=20_000, spread=MEMBERS)
    asks = int(some.per_s * seconds)

    def sidecar() -> Throughput:
        return wrk(world.contains_target, connections=CONNECTIONS, seconds=seconds)

    subjects: dict[str, Callable[[], Throughput]] = {
        "sidecar": sidecar,
        "nginx, return 200": lambda: wrk(nginx.target(world.requests), connections=CONNECTIONS, seconds=seconds),
        "Redis, SISMEMBER": lambda: redis_benchmark(
            redis.port, [redis.pid], connections=CONNECTIONS, asks=asks, spread=MEMBERS
        ),
        "bare aiohttp": lambda: wrk(bare.target(world.requests), connections=CONNECTIONS, seconds=seconds),
    }
    sidecar()  # The token is one that was seen before, and every part of the server has run.
    taken = interleaved(bench.rounds, subjects)
    _curve(bench)
    ours = tuple(t.per_s for t in taken["sidecar"])
    return [
        Row(
            question=QUESTION,
            name=f"requests/s, {CONNECTIONS} connections, beside {peer}",
            unit="/s",
            sense="at least",
            goal=goal,
            ours=ours,
            peer=peer,
            theirs=tuple(t.per_s for t in taken[peer]),
            note=how_busy({side: taken[side] for side in ("sidecar", peer)}),
        )
        for peer, goal in GOALS.items()
    ]


def _curve(bench: Bench) -> None:
    world, seconds = bench.world, bench.seconds(2, 1)
    target = world.nginx.target(world.requests)
    bench.curves["throughput"] = {
        "sidecar": [
            (n, round(wrk(world.contains_target, connections=n, seconds=seconds).per_s)) for n in MORE_CONNECTIONS
        ],
        "nginx": [(n, round(wrk(target, connections=n, seconds=seconds).per_s)) for n in MORE_CONNECTIONS],
    }
