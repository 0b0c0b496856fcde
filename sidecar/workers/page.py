"""One page of metrics from those of several workers. Pure; works on plain data, as it comes over a channel.

What counts (counters, histograms) is the sum over all. A gauge is combined by what it means, which GAUGES tells: of
what is good the least, of what is bad or old the most, and of what each has for itself the sum. NaN, "there is nothing
to tell", yields to any number.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

Series = tuple[str, tuple[tuple[str, str], ...]]


class Family(NamedTuple):
    """One metric: its samples by their name and labels, in the order in which a page shows them."""

    type: str
    help: str
    samples: dict[Series, float]


Families = Mapping[str, Family]
# What `Family` is on its way: type, help, and samples of name, labels and value.
Plain = dict[str, list[Any]]
Rule = Callable[[Iterable[float]], float]
_RULES: Final[Mapping[Rule, tuple[str, ...]]] = {
    min: ("ready", "generation", "epoch", "disk_ok", "store_reachable", "last_swap_seconds", "last_look_seconds"),
    max: (
        *("published_age_seconds", "oldest_content_age_seconds", "stale_queries", "never_pulled_catalogs"),
        *("store_behind", "store_conflict", "workers_wanted", "refusing", "lag_seconds", "swap_delay_seconds"),
    ),
    math.fsum: ("memory_bytes", "memory_limit_bytes", "workers"),
}
GAUGES: Final = {f"catalog_sidecar_{name}": rule for rule, names in _RULES.items() for name in names}
_COUNTING: Final = frozenset({"counter", "histogram"})


def plain(families: Families) -> Plain:
    """Families as JSON takes them."""
    return {
        name: [
            family.type,
            family.help,
            [[key, dict(labels), value] for (key, labels), value in family.samples.items()],
        ]
        for name, family in families.items()
    }


def families_of(plain: Plain) -> dict[str, Family]:
    """The families again."""
    return {
        name: Family(type, help, {(key, tuple(labels.items())): value for key, labels, value in samples})
        for name, (type, help, samples) in plain.items()
    }


def added(pages: Iterable[Families]) -> dict[str, Family]:
    """The sum of all that counts, without any gauge."""
    return _merged({name: family for name, family in page.items() if family.type in _COUNTING} for page in pages)


def one_page(counting: Iterable[Families], telling: Iterable[Families]) -> dict[str, Family]:
    """The page: counters of those that count, gauges of those that tell."""
    gauges = _merged(
        {name: family for name, family in page.items() if family.type not in _COUNTING} for page in telling
    )
    return {**added(counting), **gauges}


def _merged(pages: Iterable[Families]) -> dict[str, Family]:
    values: dict[str, dict[Series, list[float]]] = {}
    first: dict[str, Family] = {}
    for page in pages:
        for name, family in page.items():
            first.setdefault(name, family)
            series = values.setdefault(name, {})
            for key, value in family.samples.items():
                series.setdefault(key, []).append(value)
    return {
        name: Family(
            family.type,
            family.help,
            {key: _combined(name, family.type, each) for key, each in values[name].items()},
        )
        for name, family in first.items()
    }


def _combined(name: str, type: str, values: list[float]) -> float:
    if type in _COUNTING:
        return math.fsum(values)
    told = [value for value in values if not math.isnan(value)]
    return GAUGES[name](told) if told else math.nan
