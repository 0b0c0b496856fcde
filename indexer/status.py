"""What `status`, `/health` and the metrics say of the indexer, read from the registry."""

from dataclasses import asdict, dataclass
from typing import Any

from indexer.registry import Registry, generations, lead, pulls, quarantine
from indexer.registry.pulls import Target
from indexer.registry.quarantine import State
from sidecar.contract.words import PullState
from sidecar.settings import Settings


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """One wanted filter. `age_s` is None if it was never pulled."""

    hash: str
    title: str | None
    catalogs: int
    state: str
    age_s: int | None
    stale: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class Budget:
    """Requests to the source: how many are allowed an hour, how many all last pulls took, and whether that is enough.

    `exceeds_promise_s` is by how much the time to pull everything once exceeds the freshness promise; 0 if it does not.
    """

    requests_per_hour: int
    requests_per_refresh: int
    exceeds_promise_s: int


@dataclass(frozen=True, slots=True)
class Status:
    """The whole indexer as its registry knows it. `behind` is how many changes are not published yet.

    `customers_overdue`: how many customers' details are older than the freshness promise, or were never asked for.
    `quarantined`: of how many queries a result is held back and waits for a person. `pinned`: the generation whose tree
    readers are kept on, and `held` how many wait behind it. `budget` is None where requests are not limited.
    """

    status: str
    holder: str | None
    epoch: int
    generation: int | None
    published_at_ms: int | None
    clock: int
    behind: int
    budget: Budget | None
    customers_overdue: int
    quarantined: int
    pinned: int | None
    held: int
    queries: tuple[QueryStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


async def status(registry: Registry, settings: Settings) -> Status:
    """Where things stand.

    `degraded` means that some content is stale, failing, or was never pulled, that details of customers are, or that
    the budget of requests is too small for the freshness promise.
    """
    freshness_s = settings.indexer.freshness_s
    lease = await lead.observe(registry)
    async with registry.read() as connection:
        clock = await generations.clock(connection)
        standing = await generations.standing(connection)
        targets = await pulls.targets(connection)
        given_up = await pulls.given_up(connection)
        refused = await quarantine.states(connection)
        now_ms = registry.time.now_ms()
        overdue = len(await pulls.customers_due(connection, now_ms - freshness_s * 1000, now_ms))
    latest = standing.seen
    queries = tuple(_query(target, given_up.get(target.hash), now_ms, freshness_s) for target in targets)
    budget = _budget(settings, sum(target.requests for target in targets))
    good = all(q.state == PullState.FRESH.name.lower() and not q.stale and q.error is None for q in queries)
    good = good and not overdue and (budget is None or not budget.exceeds_promise_s)
    return Status(
        status="ok" if good else "degraded",
        holder=lease.holder,
        epoch=lease.epoch,
        generation=None if latest is None else latest.generation,
        published_at_ms=None if latest is None else latest.published_at_ms,
        clock=clock,
        behind=clock - (0 if latest is None else latest.clock),
        budget=budget,
        customers_overdue=overdue,
        quarantined=sum(refused.get(target.hash) is State.HELD for target in targets),
        pinned=standing.pin,
        held=standing.held,
        queries=queries,
    )


def _budget(settings: Settings, requests: int) -> Budget | None:
    allowed = settings.source.requests_per_hour
    if settings.source.kind != "discovery" or not allowed:
        return None
    return Budget(
        requests_per_hour=allowed,
        requests_per_refresh=requests,
        exceeds_promise_s=max(0, requests * 3600 // allowed - settings.indexer.freshness_s),
    )


def _query(target: Target, given_up: str | None, now_ms: int, freshness_s: int) -> QueryStatus:
    age_s = None if target.pulled_at_ms is None else max(0, (now_ms - target.pulled_at_ms) // 1000)
    return QueryStatus(
        hash=target.hash,
        title=target.title,
        catalogs=target.catalogs,
        state=target.state.name.lower(),
        age_s=age_s,
        stale=age_s is not None and age_s > freshness_s,
        error=given_up or target.error,
    )
