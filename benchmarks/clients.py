"""What does a containment question cost a Python caller, through `sidecar.client`, beside redis-py's SISMEMBER?

Both over a unix socket, with the caller on the core of the load: one call after the other, a few hundred of each in
turn. What an LMS uses today (requests), and the barest that the standard library has (http.client), are asked over TCP,
for information. All ask the same questions; Redis has a set of keys for each catalog.
"""

import http.client
import itertools
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Final

import requests

from benchmarks.bench import Bench
from benchmarks.callers import contains_target
from benchmarks.load import histogram_of, percentile_us
from benchmarks.processes import HOST, Spoiled
from benchmarks.rows import Row, interleaved
from sidecar.client import CatalogClient

QUESTION: Final = "a Python caller"
PEER: Final = "redis-py, SISMEMBER"
GOAL: Final = 0.7
Call = Callable[[str, str], object]


def measure(bench: Bench) -> list[Row]:
    """A row for our client, and one for each other way to ask."""
    world = bench.world
    calls = 5_000 if bench.full else 1_000
    redis, token = world.redis.client, world.caller.token
    base = f"http://{HOST}:{world.sidecar.port}"
    headers = {"Authorization": f"JWT {token}"}
    session = requests.Session()
    connection = http.client.HTTPConnection(HOST, world.sidecar.port)

    def with_requests(catalog: str, key: str) -> object:
        url = f"{base}/api/v1/enterprise-catalogs/{catalog}/contains_content_items/"
        answer = session.get(url, params={"course_run_ids": key}, headers=headers, timeout=5)
        answer.raise_for_status()
        return answer.json()

    def with_http_client(catalog: str, key: str) -> object:
        connection.request("GET", contains_target(catalog, key), headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise Spoiled(f"http.client was answered {answer.status}: {body!r}")
        return body

    with CatalogClient(f"unix://{world.installation.socket}", token) as client:
        ways: dict[str, Call] = {
            "sidecar.client": lambda catalog, key: client.contains_content_items(catalog, [key]),
            PEER: redis.sismember,
            "http.client": with_http_client,
            "requests": with_requests,
        }
        asked = itertools.cycle(world.questions)
        # All of them: a sidecar reads a query once, and its first round would be another one than those that follow.
        wrong = [(c, k) for c, k in world.questions if ways["sidecar.client"](c, k) is not bool(ways[PEER](c, k))]
        if wrong:
            raise Spoiled(f"the sidecar and Redis do not have the same: {wrong[:3]}")
        taken = interleaved(bench.rounds, {name: _timed(call, asked, calls) for name, call in ways.items()})
    session.close()
    connection.close()
    theirs = tuple(taken[PEER])
    rows = [_row("sidecar.client, unix socket, p50", taken["sidecar.client"], theirs, GOAL)]
    return rows + [_row(f"{name}, TCP, p50", taken[name], theirs, None) for name in ("http.client", "requests")]


def _row(name: str, ours: list[float], theirs: tuple[float, ...], goal: float | None) -> Row:
    return Row(QUESTION, name, "µs", "at most", goal, tuple(ours), f"{PEER}, unix socket", theirs)


def _timed(call: Call, asked: Iterator[tuple[str, str]], calls: int) -> Callable[[], float]:
    """Times so many calls, each by itself; the median, in µs."""

    def timed() -> float:
        ns = array("q")
        for catalog, key in itertools.islice(asked, calls):
            began = time.perf_counter_ns()
            call(catalog, key)
            ns.append(time.perf_counter_ns() - began)
        return percentile_us(histogram_of(ns), 50.0)

    return timed
