"""What the indexer counts. Every metric's help text is its documentation."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from indexer.judge import Outcome
from indexer.registry.generations import Generation
from indexer.registry.pulls import FAILED, PASSED, QUARANTINED
from indexer.validators import Rule


class Metrics:
    """The indexer's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leading = Gauge("catalog_indexer_leading", "1 while this process leads, else 0", registry=self.registry)
        self.epoch = Gauge(
            "catalog_indexer_epoch", "Epoch under which this process leads or led", registry=self.registry
        )
        self.generation = Gauge(
            "catalog_indexer_generation", "Newest generation that this process has published", registry=self.registry
        )
        self.generations = Counter(
            "catalog_indexer_generations", "Generations that this process has published", registry=self.registry
        )
        self.objects = Counter(
            "catalog_indexer_objects_written",
            "Objects written to the store by published generations",
            registry=self.registry,
        )
        self.bytes = Counter(
            "catalog_indexer_bytes_written", "Bytes of objects written by published generations", registry=self.registry
        )
        self.swept = Counter("catalog_indexer_objects_swept", "Objects deleted from the store", registry=self.registry)
        self.refused = Counter(
            "catalog_indexer_publish_failures",
            "Commits that did not publish, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.last_publish_s = Gauge(
            "catalog_indexer_last_publish_seconds",
            "Unix time at which this process last moved the store's pointer; 0 if it never has",
            registry=self.registry,
        )
        self.pinned = Gauge(
            "catalog_indexer_pinned", "1 while this process leads and a generation is pinned", registry=self.registry
        )
        self.held = Gauge(
            "catalog_indexer_held_generations",
            "Generations that wait behind the pin, while this process leads",
            registry=self.registry,
        )
        self.damaged = Gauge(
            "catalog_indexer_store_damaged_objects",
            "Objects that the published tree needs, and that the last look at the store found missing or corrupt",
            registry=self.registry,
        )
        self.damage = Counter(
            "catalog_indexer_store_damage",
            "Damage that was found in the store: objects of the published tree, missing or corrupt, and how often its "
            "pointer was lost or fell back",
            ["kind"],
            registry=self.registry,
        )
        for kind in ("missing", "corrupt", "pointer"):
            self.damage.labels(kind)
        self.healed = Counter(
            "catalog_indexer_objects_healed",
            "Damaged objects that were written again, bit for bit",
            registry=self.registry,
        )
        self.queries = Gauge(
            "catalog_indexer_queries",
            "Queries that catalogs want, by state of their last pull",
            ["state"],
            registry=self.registry,
        )
        self.pulls = Counter(
            "catalog_indexer_pulls",
            "Pulls that have ended here, by outcome: passed, failed, quarantined.",
            ["outcome"],
            registry=self.registry,
        )
        for pulled in (PASSED, FAILED, QUARANTINED):
            self.pulls.labels(pulled)
        self.last_success_s = Gauge(
            "catalog_indexer_last_success_seconds",
            "Unix time of the last pull that has passed, of all queries; 0 before the first.",
            registry=self.registry,
        )
        self.refused_results = Counter(
            "catalog_indexer_refused_results",
            "Objections to what pulls found, by rule (see catalog-indexer quarantine list)",
            ["rule"],
            registry=self.registry,
        )
        for rule in Rule:
            self.refused_results.labels(rule.value)
        self.quarantined = Gauge(
            "catalog_indexer_quarantined_queries",
            "Queries of which a result is held back and waits for a person",
            registry=self.registry,
        )
        self.oldest_age_s = Gauge(
            "catalog_indexer_oldest_age_seconds", "Age of the oldest content that is served", registry=self.registry
        )
        self.compared = Counter(
            "catalog_indexer_compared",
            "Questions that another service and our sidecar were both asked, by what came of it",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in Outcome:
            self.compared.labels(outcome.value)

    def left(self) -> None:
        """Forgets what only a leader can tell."""
        for gauge in (self.pinned, self.held, self.damaged):
            gauge.set(0)

    def published(self, generation: Generation) -> None:
        """Counts a generation."""
        self.generation.set(generation.generation)
        self.generations.inc()
        self.objects.inc(generation.objects)
        self.bytes.inc(generation.bytes)
