"""What do many keys, and many catalogs, cost beside a single lookup, inside the handler?

Asked are the handlers that the routes lead to, in this process, with requests that aiohttp's test utilities make and
its router has resolved; the clock runs from the call to the answer. What lies outside is in none of the figures:
sockets, parsing of HTTP, the router, and the fast lane, which stands before the handlers. The index is that of the
world, the token has been seen, and no key is contained, so that no search ends early.
"""

import itertools
import random
import statistics
import time
from array import array
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from benchmarks.bench import Bench
from benchmarks.callers import contains_target
from benchmarks.load import histogram_of, percentile_us
from benchmarks.processes import Spoiled
from benchmarks.rows import Row, interleaved
from benchmarks.world import World
from sidecar.app import Sidecar
from sidecar.clock import SystemClock
from sidecar.contract.index import Catalog
from sidecar.current import Generation
from sidecar.settings import load
from sidecar.store.memory import MemoryStore

QUESTION: Final = "inside the handler"
KEYS: Final = 1_000
CATALOGS: Final = 5
PEER: Final = "a single lookup"
MANY_KEYS: Final = f"{KEYS:,} keys, one catalog"
MANY_CATALOGS: Final = f"one key, a customer's {CATALOGS} catalogs"
GOALS: Final = {MANY_KEYS: 40.0, MANY_CATALOGS: 1.3}
PASSES: Final = 10
"""A sample is the median of so many calls' medians: the sides take turns within a round, too."""


def measure(bench: Bench) -> list[Row]:
    """A row for many keys and one for many catalogs."""
    world = bench.world
    app = _app(world)
    catalog, keys = _missing(world)
    one = contains_target(catalog.uuid, keys[0])
    customer = one.replace(f"enterprise-catalogs/{catalog.uuid}", f"enterprise-customer/{catalog.customer}")
    targets = {
        PEER: (one, 50),
        MANY_KEYS: (contains_target(catalog.uuid, *keys), 5),
        MANY_CATALOGS: (customer, 50),
    }
    subjects = {name: _timed(app, world, target, calls) for name, (target, calls) in targets.items()}
    for subject in subjects.values():
        subject()
    rounds = [interleaved(PASSES, subjects) for _ in range(bench.rounds)]
    taken = {name: tuple(statistics.median(passes[name]) for passes in rounds) for name in subjects}
    return [
        Row(QUESTION, name, "µs", "at most", goal, taken[name], PEER, taken[PEER], "no key is contained")
        for name, goal in GOALS.items()
    ]


def _app(world: World) -> web.Application:
    """The sidecar's application, which serves the world's generation and follows nothing."""
    environment = {"CATALOG_SIDECAR_DISK": "", "CATALOG_SIDECAR_SOCKET": ""}
    sidecar = Sidecar(load(world.installation.config, environment), MemoryStore(), SystemClock())
    sidecar.current.swap(Generation.of(world.pointer, world.index))
    return sidecar.app


def _missing(world: World) -> tuple[Catalog, list[str]]:
    """A catalog of a customer that has five with five queries, and keys that are known and in none of the five."""
    index = world.index
    for catalogs in index.of_customer.values():
        contents = {c.serving.hash: c.serving.v1 for c in catalogs if c.serving is not None}
        if len(catalogs) != CATALOGS or len(contents) != CATALOGS:
            continue
        contained = set(itertools.chain.from_iterable(v1.contained for v1 in contents.values() if v1 is not None))
        missing = [key for ordinal, key in enumerate(index.dictionary.keys) if ordinal not in contained]
        if len(missing) >= KEYS:
            return catalogs[0], random.Random("missing").sample(missing, KEYS)
    raise Spoiled(f"no customer has {CATALOGS} catalogs beside which {KEYS} keys are left")


def _timed(app: web.Application, world: World, target: str, calls: int) -> Callable[[], float]:
    """Times so many calls of the handler that a target leads to, each with a request of its own; the median, in µs."""
    headers = {"Host": "catalog.example.test", "Accept": "*/*", "Authorization": f"JWT {world.caller.token}"}
    found = _finished(app.router.resolve(make_mocked_request("GET", target, headers)))

    def timed() -> float:
        ns = array("q")
        requests = [make_mocked_request("GET", target, headers, match_info=dict(found)) for _ in range(calls)]
        for request in requests:
            began = time.perf_counter_ns()
            answer = _finished(found.handler(request))
            ns.append(time.perf_counter_ns() - began)
            if answer.body != b'{"contains_content_items":false}':
                raise Spoiled(f"GET {target[:200]}: {answer.status} {answer.body!r}")
        return percentile_us(histogram_of(ns), 50.0)

    return timed


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that waits for nothing returns: no event loop is in the figures either."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise Spoiled("a handler waits for something")
