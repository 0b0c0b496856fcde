"""What is counted: requests, latencies, and every failure with the fault that explains it.

EXPLAINED is a failure that a fault under way accounts for, by a rule that is as narrow as the fault:

    no answer        while the sidecar that was asked is down: from kill -9 until it says that it is ready
    503 to a write   while the indexer of that sidecar is down or paused, nobody leads, or the registry's disk is full
    503 to a read    of documents alone, while the store is down and the disk copy may lack some; by X-Min-Generation or
                     X-After-Task, if it says that this state is not served yet; of a catalog that is new and was never
                     pulled, which the judge decides

and nothing else: any other 5xx and any other silence is unexplained, and fails the soak. A fault accounts for what was
under way at any moment of it, by the clock of the soak.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from hdrh.histogram import HdrHistogram

Failure = Literal["no answer", "write", "documents"]
Clock = Callable[[], float]
HIGHEST_US: Final = 120_000_000


@dataclass(slots=True)
class Fault:
    """What is wrong with the fleet on purpose, for a time; `until_s` is None while it lasts."""

    cause: str
    explains: dict[Failure, Collection[int]]
    since_s: float
    until_s: float | None = None


class Latencies:
    """Of requests, from when each was meant to be sent."""

    def __init__(self) -> None:
        self._found = HdrHistogram(1, HIGHEST_US, 3)

    def add(self, seconds: float) -> None:
        self._found.record_value(min(max(1, round(seconds * 1e6)), HIGHEST_US))

    def shown(self) -> dict[str, float]:
        """p50, p99 and the longest, in ms."""
        if not self._found.total_count:
            return {}
        at = self._found.get_value_at_percentile
        figures = {"p50_ms": at(50.0), "p99_ms": at(99.0), "longest_ms": self._found.get_max_value()}
        return {name: round(us / 1000, 2) for name, us in figures.items()}


@dataclass(slots=True)
class Tally:
    """All that the closing table tells of the traffic."""

    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    reads: Latencies = field(default_factory=Latencies)
    calm: Latencies = field(default_factory=Latencies)
    """Reads meant for a time without a fault."""
    writes: Latencies = field(default_factory=Latencies)
    late_s: float = 0.0
    """The longest that the soak itself was late to send something."""
    faults: list[Fault] = field(default_factory=list)

    @contextmanager
    def fault(self, cause: str, now_s: Clock, **explains: Collection[int]) -> Iterator[Fault]:
        """Explains failures while the block runs: `no_answer`, `write` and `documents` name the sidecars concerned."""
        kinds: dict[str, Failure] = {"no_answer": "no answer", "write": "write", "documents": "documents"}
        fault = Fault(cause, {kinds[name]: sidecars for name, sidecars in explains.items()}, now_s())
        self.faults.append(fault)
        try:
            yield fault
        finally:
            fault.until_s = now_s()

    def is_calm(self, at_s: float) -> bool:
        """Whether there is no fault at a moment of the present."""
        return all(fault.until_s is not None and fault.until_s < at_s for fault in self.faults)

    def fail(self, failure: Failure, sidecar: int, said: str, asked: str, since_s: float, until_s: float) -> None:
        """Counts a failure of a request that was under way in that time, by its cause."""
        for fault in self.faults:
            within = fault.since_s <= until_s and (fault.until_s is None or fault.until_s >= since_s)
            if within and sidecar in fault.explains.get(failure, ()):
                self.failures[f"{said}: {fault.cause}"] += 1
                return
        self.failures[f"{said}: unexplained"] += 1
        self.unexplained.append(
            f"{asked}: {said}, and no fault explains it ({failure}, {since_s:.2f} to {until_s:.2f} s)"
        )
