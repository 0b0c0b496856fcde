"""The registry in plain Python sets: catalogs, queries, what pulls found, what is held back. Nothing of ours is used.

It says what must be answered, and which results must be refused, in other words than the code does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.contract.words import query_hash
from tests.fakes import Json, uuid_of

COURSES = ("edX+A", "edX+B", "MITx+C")
RUNS = tuple(f"course-v1:{key}+{n}" for key in COURSES for n in (1, 2))
PROBES = (*COURSES, *RUNS, "edX+Unheard")
FILTERS: tuple[Json, ...] = (
    {"content_type": "course"},
    {"content_type": "course", "org": "edX"},
    {"content_type": "courserun"},
    {"key": ["MITx+C"], "restricted_runs_allowed": {"course:MITx+C": [RUNS[4]]}},
)
HASHES = tuple(query_hash(f).hex() for f in FILTERS)
TITLES = ("one", "two", "three")
# Course key -> run key -> whether the run is restricted: what discovery has.
Content = dict[str, dict[str, bool]]
# For every catalog and version of the API, all that it contains; None if it was never pulled.
Answers = dict[tuple[str, bool], frozenset[str] | None]


@dataclass(frozen=True)
class Found:
    """What a pull of one filter found: without restricted runs, and with those that it allows."""

    plain: frozenset[str]
    shown: frozenset[str]


@dataclass
class Query:
    """A saved filter: the one that is wanted, and the one that is served until that has passed."""

    wanted: int
    serving: int | None = None


@dataclass
class Catalog:
    """A catalog of a query; `before` is what it served when it was last changed."""

    query: Query
    before: int | None = None

    @property
    def serving(self) -> int | None:
        return self.before if self.query.serving is None else self.query.serving


@dataclass
class Model:
    """Filters are numbers: their places in FILTERS."""

    catalogs: dict[str, Catalog] = field(default_factory=dict)
    queries: list[Query] = field(default_factory=list)
    found: dict[int, Found] = field(default_factory=dict)
    held: dict[int, Found] = field(default_factory=dict)
    approved: dict[int, Found] = field(default_factory=dict)
    runs_of: dict[str, set[str]] = field(default_factory=lambda: {key: set() for key in COURSES})
    restricted: dict[str, bool] = field(default_factory=dict)

    def add(self, title: str, which: int) -> None:
        query = next((q for q in self.queries if q.wanted == which), None)
        if query is None:
            query = Query(which)
            self.queries.append(query)
        self.catalogs[uuid_of(f"catalog {title}")] = Catalog(query)

    def may_change(self, uuid: str, which: int) -> bool:
        """Whether a catalog's query may want another filter: no other query does."""
        return all(q is self.catalogs[uuid].query for q in self.queries if q.wanted == which)

    def change(self, uuid: str, which: int) -> None:
        catalog = self.catalogs[uuid]
        catalog.before = catalog.serving
        catalog.query.wanted = which

    def wanted(self) -> set[int]:
        """The filters that are pulled."""
        return {catalog.query.wanted for catalog in self.catalogs.values()}

    def refuses(self, which: int, content: Content) -> bool:
        """Whether what discovery has now must not take the place of what a filter serves."""
        new, old = found(which, content), self.found.get(which)
        if old is None or not self._is_served(which):
            return False
        good = self.approved.get(which)
        return _is_worse(which, old, new) and (good is None or not _is_like(which, good, new))

    def accept(self, which: int, content: Content) -> None:
        """A pull passes."""
        new = found(which, content)
        for key, runs in content.items():
            for run, restricted in runs.items():
                # A run is learned of from its own document, or from its course's.
                by_itself = FILTERS[which].get("content_type") == "courserun" and not restricted
                if by_itself or (key in new.plain and (not restricted or _allowed(which))):
                    self.runs_of[key].add(run)
                    self.restricted[run] = restricted
        self.found[which] = new
        self.held.pop(which, None)
        self.approved.pop(which, None)
        for query in self.queries:
            if query.wanted == which:
                query.serving = which

    def refuse(self, which: int, content: Content) -> None:
        """A pull is refused; what was approved is no longer what was found last."""
        self.held[which] = found(which, content)
        self.approved.pop(which, None)

    def answers(self) -> Answers:
        return {
            (uuid, restricted): self._contained(catalog.serving, restricted)
            for uuid, catalog in self.catalogs.items()
            for restricted in (False, True)
        }

    def _is_served(self, which: int) -> bool:
        return any(query.serving == which for query in self.queries) or any(
            catalog.serving == which for catalog in self.catalogs.values()
        )

    def _contained(self, which: int | None, restricted: bool) -> frozenset[str] | None:
        if which is None or which not in self.found:
            return None
        members = self.found[which].shown if restricted else self.found[which].plain
        contained = set(members)
        for key, runs in self.runs_of.items():
            if key in members:
                contained |= {r for r in runs if not self.restricted[r] or (restricted and r in _allowed(which))}
            if runs & members:
                contained.add(key)
        return frozenset(contained)


def found(which: int, content: Content) -> Found:
    """What a filter finds in what discovery has."""
    content_filter = FILTERS[which]
    if content_filter.get("content_type") == "courserun":
        runs = frozenset(run for runs in content.values() for run, restricted in runs.items() if not restricted)
        return Found(runs, runs)
    courses = frozenset(
        key
        for key in content
        if content_filter.get("org", key.partition("+")[0]) == key.partition("+")[0]
        and key in content_filter.get("key", [key])
    )
    # The filter of keys names no type; runs have keys of their own.
    return Found(courses, courses)


def _allowed(which: int) -> set[str]:
    allowed: Mapping[str, list[str]] = FILTERS[which].get("restricted_runs_allowed", {})
    return {run for runs in allowed.values() for run in runs}


def _is_worse(which: int, old: Found, new: Found) -> bool:
    pairs = [(old.plain, new.plain), *([(old.shown, new.shown)] if _allowed(which) else [])]
    return any(_has_lost_or_grown_too_much(before, after) for before, after in pairs)


def _is_like(which: int, approved: Found, new: Found) -> bool:
    """Whether who approved one result meant the other, too: who approved that there is nothing meant nothing else."""
    pairs = [(approved.plain, new.plain), *([(approved.shown, new.shown)] if _allowed(which) else [])]
    return all(before or not after for before, after in pairs) and not _is_worse(which, approved, new)


def _has_lost_or_grown_too_much(before: frozenset[str], after: frozenset[str]) -> bool:
    """All members of one of these filters are of one type, so that a type is gone only when all are."""
    lost, gained = len(before - after), len(after - before)
    return bool(before) and (
        not after
        or (lost == len(before) >= 2)
        or (lost >= 2 and lost > 0.2 * len(before))
        or gained > 2 * max(10, len(before))
    )
