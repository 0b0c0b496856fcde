"""The report on health: what the process knows of itself, put together from state that others keep. Pure.

unavailable     no generation is loaded, or something that was to run for ever has ended: restart it.
degraded        it answers, but something that it promises is broken; `problems` says what.
ok              everything else.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nsmallest
from typing import Any, Final, Literal, NamedTuple

from sidecar import __version__
from sidecar.contract.words import age_s
from sidecar.current import Generation

# How many stale queries are told by name.
MAX_STALE: Final = 20


@dataclass(slots=True)
class StoreStatus:
    """What the follower last saw of the store. Nothing is known (`reachable` is False) before the first look."""

    reachable: bool = False
    behind: bool = False
    conflict: bool = False
    error: str | None = "not asked yet"
    refused: str | None = None
    stopped: str | None = None
    # When it last answered, in milliseconds since 1970, and since when, by a clock that never jumps, it has shown a
    # higher generation than the one that is served.
    looked_at_ms: int | None = None
    ahead_since_s: float | None = None
    # When the served generation came into service; and how long after its publication, if it was followed there: what
    # a process starts with may have been published long before.
    swapped_at_ms: int | None = None
    swap_delay_s: float | None = None


@dataclass(slots=True)
class DiskStatus:
    """Whether the disk copy works; `off` if none is configured. `incomplete` is what it lacks although it works."""

    state: Literal["ok", "failing", "off"]
    error: str | None = None
    incomplete: str | None = None

    @property
    def shown(self) -> Literal["ok", "incomplete", "failing", "off"]:
        """All of it in one word."""
        return "incomplete" if self.state == "ok" and self.incomplete is not None else self.state


class Standing(NamedTuple):
    """Which of the workers this process is, from 1; how many there should be, and how many there are."""

    number: int
    wanted: int
    running: int


ALONE: Final = Standing(1, 1, 1)


@dataclass(frozen=True, slots=True)
class Health:
    """The report. Ages are seconds, and None where there is nothing to be told the age of."""

    status: Literal["ok", "degraded", "unavailable"]
    problems: tuple[str, ...]
    generation: int | None
    epoch: int | None
    published_at_ms: int | None
    published_age_s: int | None
    oldest_content_age_s: int | None
    freshness_s: int
    stale_queries: int
    never_pulled_catalogs: int
    refusing: bool
    lag_s: float
    swap_delay_s: float | None
    swapped_at_ms: int | None
    looked_at_ms: int | None
    store_reachable: bool
    store_behind: bool
    store_conflict: bool
    disk_state: Literal["ok", "incomplete", "failing", "off"]
    memory_bytes: int
    memory_limit_bytes: int
    memory_evictions: int
    standing: Standing

    def document(self) -> dict[str, Any]:
        """The body of /health."""
        return {
            "status": self.status,
            "problems": self.problems,
            "version": __version__,
            "generation": self.generation,
            "epoch": self.epoch,
            "published_at": _iso(self.published_at_ms),
            "oldest_content_age_s": self.oldest_content_age_s,
            "freshness_s": self.freshness_s,
            "stale_queries": self.stale_queries,
            "never_pulled_catalogs": self.never_pulled_catalogs,
            "lag_s": round(self.lag_s, 3),
            "swapped_at": _iso(self.swapped_at_ms),
            "store": {
                "reachable": self.store_reachable,
                "behind": self.store_behind,
                "conflict": self.store_conflict,
                "looked_at": _iso(self.looked_at_ms),
            },
            "disk": self.disk_state,
            "memory": {
                "bytes": self.memory_bytes,
                "limit_bytes": self.memory_limit_bytes,
                "evictions": self.memory_evictions,
            },
            "worker": self.standing._asdict(),
        }


def report(
    generation: Generation | None,
    store: StoreStatus,
    disk: DiskStatus,
    *,
    memory: tuple[int, int, int],
    freshness_s: int,
    now_ms: int,
    now_s: float = 0.0,
    keys: str | None = None,
    standing: Standing = ALONE,
) -> Health:
    """The report as of now, by both clocks. `memory` is its bytes, their limit and the evictions so far; `keys` is why
    those of tokens cannot be read. All of it is this process's, `standing` alone tells of others.
    """
    root = None if generation is None else generation.index.root
    stale = 0 if generation is None else generation.pulled_before(now_ms - freshness_s * 1000)
    problems = tuple(_problems(generation, store, disk, stale, keys, standing))
    fatal = generation is None or store.stopped is not None
    memory_bytes, memory_limit_bytes, memory_evictions = memory
    return Health(
        status="unavailable" if fatal else "degraded" if problems else "ok",
        problems=problems,
        generation=None if root is None else root.generation,
        epoch=None if root is None else root.epoch,
        published_at_ms=None if root is None else root.published_at_ms,
        published_age_s=None if root is None else age_s(root.published_at_ms, now_ms),
        oldest_content_age_s=None
        if generation is None or not generation.pulls_ms
        else age_s(generation.pulls_ms[0], now_ms),
        freshness_s=freshness_s,
        stale_queries=stale,
        never_pulled_catalogs=0 if generation is None else generation.never_pulled,
        refusing=store.refused is not None,
        lag_s=0.0 if store.ahead_since_s is None else max(0.0, now_s - store.ahead_since_s),
        swap_delay_s=store.swap_delay_s,
        swapped_at_ms=store.swapped_at_ms,
        looked_at_ms=store.looked_at_ms,
        store_reachable=store.reachable,
        store_behind=store.behind,
        store_conflict=store.conflict,
        disk_state=disk.shown,
        memory_bytes=memory_bytes,
        memory_limit_bytes=memory_limit_bytes,
        memory_evictions=memory_evictions,
        standing=standing,
    )


def stale_queries(generation: Generation | None, *, freshness_s: int, now_ms: int) -> list[dict[str, Any]]:
    """The served queries whose content is older than promised, the oldest first, at most MAX_STALE: hash, age in
    seconds, state of the last pull.

    Neither title nor filter: whoever may know these finds them by the hash, at catalog-queries/ or with `status`.
    """
    if generation is None:
        return []
    then_ms = now_ms - freshness_s * 1000
    old = (
        (query.pulled_at_ms, query.hash.hex(), query.state.name.lower())
        for query in generation.index.queries.values()
        if query.pulled_at_ms is not None and query.pulled_at_ms < then_ms and generation.serves(query.hash)
    )
    return [
        {"hash": hash_, "age_s": age_s(pulled_at_ms, now_ms), "state": state}
        for pulled_at_ms, hash_, state in nsmallest(MAX_STALE, old)
    ]


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _problems(
    generation: Generation | None,
    store: StoreStatus,
    disk: DiskStatus,
    stale: int,
    keys: str | None,
    standing: Standing,
) -> list[str]:
    problems = []
    if generation is None:
        problems.append("no generation is loaded")
    if store.stopped is not None:
        problems.append(f"a background task ended: {store.stopped}")
    if not store.reachable:
        problems.append(f"the store cannot be read: {store.error}")
    if store.behind:
        problems.append("the store is behind: it shows a lower generation than the one that is served, or none")
    if store.conflict:
        problems.append("the store shows the served generation's number with other content: two publishers")
    if store.refused is not None:
        problems.append(f"a newer generation was refused: {store.refused}")
    if keys is not None:
        problems.append(f"the keys of tokens cannot be read: {keys}")
    if disk.state == "failing":
        problems.append(f"the disk copy fails: {disk.error}")
    if disk.incomplete is not None:
        problems.append(f"the disk copy is incomplete since {disk.incomplete}")
    if stale:
        problems.append(f"stale: the content of {stale} queries is older than promised")
    if standing.running < standing.wanted:
        problems.append(f"{standing.running} of {standing.wanted} workers answer")
    return problems
