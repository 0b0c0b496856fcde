"""Every metric of the sidecar, each with the sentence that explains it. Nothing is counted anywhere else.

Counters move where the thing happens. Gauges are set from the report on health when they are read, so that /metrics and
/health never disagree.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sidecar.health import Health

# From a bare lookup to the slowest answer that waits for a store.
LATENCY_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)


# A second series for every counter, of when it came to be, would double what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Seen:
    """Requests to one route: how many were answered with which status, and how long that took."""

    __slots__ = ("_counts", "_seconds", "_statuses")

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._seconds = 0.0

    def add(self, status: int, seconds: float) -> None:
        """One more."""
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._seconds += seconds

    def tell(self, route: str, requests: CounterMetricFamily, latency: HistogramMetricFamily) -> None:
        """Adds what was counted to the two families."""
        for status, count in sorted(self._statuses.items()):
            requests.add_metric([route, str(status)], count)
        bounds = (*map(floatToGoString, LATENCY_BUCKETS_S), "+Inf")
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        latency.add_metric([route], buckets, self._seconds)


class Requests(Collector):
    """All requests, by route. prometheus_client's own counters have a lock each, which costs more than an answer."""

    def __init__(self) -> None:
        self._routes: dict[str, Seen] = {}

    def of(self, route: str) -> Seen:
        """What is counted of a route."""
        seen = self._routes.get(route)
        if seen is None:
            seen = self._routes[route] = Seen()
        return seen

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "catalog_sidecar_requests", "Requests answered, by route and HTTP status.", labels=["route", "status"]
        )
        latency = HistogramMetricFamily(
            "catalog_sidecar_request_seconds",
            "Seconds from the parsed head of a request to its answer, by route.",
            labels=["route"],
        )
        for route, seen in self._routes.items():
            seen.tell(route, requests, latency)
        yield requests
        yield latency


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Requests()
        self.registry.register(self.requests)
        self.swaps = self._counter("swaps", "Generations that were verified and taken into service.")
        self.refused = self._counter(
            "refused_generations", "Attempts to load a generation that ended with a broken or missing object."
        )
        self.writes = self._counter(
            "writes",
            "Writes forwarded to the indexer, by outcome: loaded (made, and served here), pending (made, not served "
            "here in time), accepted (nothing to wait for), refused (3xx, 4xx), failed (5xx), unreachable (not sent), "
            "unknown (sent, and no answer).",
            "outcome",
        )
        self.upstream = self._counter(
            "upstream_requests",
            "Requests passed on to the upstream service, by outcome: answered (whatever its status), unreachable, busy "
            "(too many were under way), refused, loop (not sent), timeout (it was silent), broken (it broke off before "
            "it answered, or that was no HTTP), cut (while it answered), hung up, given up (the caller).",
            "outcome",
        )
        self.tier_reads = self._counter(
            "tier_reads",
            "Objects looked for in a tier (memory, disk, store), by result (hit, miss).",
            "tier",
            "result",
        )
        self.corrupt = self._counter(
            "corrupt_objects", "Objects that failed verification and were discarded, by tier (disk, store).", "tier"
        )
        self.broken_answers = self._counter(
            "broken_answers",
            "Answers that were broken off after they had begun, by reason: unread (the client took nothing for too "
            "long), lost (a document was in no tier any more).",
            "reason",
        )
        self.store_errors = self._counter("store_errors", "Operations on the store that failed or took too long.")
        self.disk_errors = self._counter("disk_errors", "Operations on the disk copy that failed or took too long.")
        self.disk_resets = self._counter(
            "disk_resets", "Times the file of the disk copy was set aside as unusable and begun anew."
        )

        # Whoever watches them grow has to see them at zero first.
        for counter, values in (
            (self.corrupt, ("disk", "store")),
            (self.broken_answers, ("unread", "lost")),
            (self.writes, ("loaded", "pending", "accepted", "refused", "failed", "unreachable", "unknown")),
        ):
            for value in values:
                counter.labels(value)

        # Its supervisor counts those of a worker.
        self._counter("worker_deaths", "Workers that ended without having been told to, and were started again.")
        self._workers = self._gauge("workers", "The processes whose figures these are; one without sidecar.workers.")
        self._workers_wanted = self._gauge("workers_wanted", "How many processes sidecar.workers asks for.")
        self._ready = self._gauge("ready", "1 while a verified generation is loaded, else 0.")
        self._generation = self._gauge("generation", "The generation that is served; 0 before the first.")
        self._epoch = self._gauge("epoch", "The epoch that the served generation was published in; 0 before the first.")
        self._published_age = self._gauge(
            "published_age_seconds", "Seconds since the served generation was published; NaN before the first."
        )
        self._oldest_age = self._gauge(
            "oldest_content_age_seconds", "Seconds since the oldest content that is served was pulled; NaN without any."
        )
        self._stale = self._gauge("stale_queries", "Served queries whose content is older than the freshness promise.")
        self._never_pulled = self._gauge(
            "never_pulled_catalogs", "Catalogs that wait for their first pull, and are answered with 503."
        )
        self._refusing = self._gauge("refusing", "1 while a generation is refused that should be served, else 0.")
        self._lag = self._gauge(
            "lag_seconds",
            "Seconds since the store has shown a higher generation than the one that is served; 0 while it does not.",
        )
        self._swap_delay = self._gauge(
            "swap_delay_seconds",
            "Seconds from the publication of the served generation until it was served, by the clocks of two machines; "
            "NaN if it is the first one.",
        )
        self._last_swap = self._gauge(
            "last_swap_seconds", "When the served generation came into service, in seconds since 1970; NaN before."
        )
        self._last_look = self._gauge(
            "last_look_seconds", "When the store was last read, in seconds since 1970; NaN before."
        )
        self._memory_bytes = self._gauge("memory_bytes", "Bytes of the objects that are kept in memory.")
        self._memory_limit = self._gauge("memory_limit_bytes", "The bound of the objects that are kept in memory.")
        self._memory_evictions = self._counter(
            "memory_evictions", "Objects that were dropped from memory to stay within its bound."
        )
        self._evictions_counted = 0
        self._disk_ok = self._gauge(
            "disk_ok", "1 while the disk copy works, 0 while it fails, cannot be completed, or none is configured."
        )
        self._store_reachable = self._gauge("store_reachable", "1 if the last look at the store passed, else 0.")
        self._store_behind = self._gauge(
            "store_behind", "1 while the store shows a generation lower than the one that is served, or none at all."
        )
        self._store_conflict = self._gauge(
            "store_conflict", "1 while the store shows the served generation's number with other content."
        )

    def render(self, health: Health) -> bytes:
        """The text that Prometheus reads, with the gauges as of this report."""
        self.tell(health)
        return generate_latest(self.registry)

    def tell(self, health: Health) -> None:
        """Has the gauges be as of this report."""
        self._workers.set(1)
        self._workers_wanted.set(health.standing.wanted)
        self._ready.set(health.generation is not None)
        self._generation.set(health.generation or 0)
        self._epoch.set(health.epoch or 0)
        self._published_age.set(_or_nan(health.published_age_s))
        self._oldest_age.set(_or_nan(health.oldest_content_age_s))
        self._stale.set(health.stale_queries)
        self._never_pulled.set(health.never_pulled_catalogs)
        self._refusing.set(health.refusing)
        self._lag.set(health.lag_s)
        self._swap_delay.set(_or_nan(health.swap_delay_s))
        self._last_swap.set(_or_nan(_seconds(health.swapped_at_ms)))
        self._last_look.set(_or_nan(_seconds(health.looked_at_ms)))
        self._memory_bytes.set(health.memory_bytes)
        self._memory_limit.set(health.memory_limit_bytes)
        self._memory_evictions.inc(health.memory_evictions - self._evictions_counted)
        self._evictions_counted = health.memory_evictions
        self._disk_ok.set(health.disk_state == "ok")
        self._store_reachable.set(health.store_reachable)
        self._store_behind.set(health.store_behind)
        self._store_conflict.set(health.store_conflict)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"catalog_sidecar_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(f"catalog_sidecar_{name}", help, registry=self.registry)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
