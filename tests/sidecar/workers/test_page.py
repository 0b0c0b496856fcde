"""Metrics of several workers become one page: what counts is summed, and a gauge says what is true of all."""

import json
import math

import pytest

from sidecar.health import Health
from sidecar.metrics import Metrics
from sidecar.workers.page import GAUGES, Families, Family, Series, added, families_of, one_page, plain
from sidecar.workers.siblings import collected, rendered


def counters(**counted: float) -> Families:
    """A page with one counter that has a series for each word."""
    samples: dict[Series, float] = {("n_total", (("word", word),)): value for word, value in counted.items()}
    return {"n": Family("counter", "Counts.", samples)}


def gauge(name: str, value: float) -> Families:
    name = f"catalog_sidecar_{name}"
    return {name: Family("gauge", "Is.", {(name, ()): value})}


def value(page: Families, name: str, *labels: tuple[str, str]) -> float:
    return page[name.removesuffix("_total")].samples[name, labels]


def test_counters_are_summed_series_by_series() -> None:
    page = added([counters(a=1, b=2), counters(b=3, c=4)])
    assert page == counters(a=1, b=5, c=4)


def test_what_is_added_up_of_those_that_ended_has_no_gauges() -> None:
    assert added([{**counters(a=1), **gauge("ready", 1)}]) == counters(a=1)


def test_histograms_are_summed_bucket_by_bucket() -> None:
    first, second = Metrics(), Metrics()
    first.requests.of("/a").add(200, 0.0002)
    second.requests.of("/a").add(200, 0.0002)
    second.requests.of("/a").add(200, 3)
    second.requests.of("/b").add(200, 0.0002)
    both = Metrics()
    for route, seconds in (("/a", 0.0002), ("/a", 0.0002), ("/a", 3), ("/b", 0.0002)):
        both.requests.of(route).add(200, seconds)
    page = one_page([collected(first.registry), collected(second.registry)], [])
    assert page["catalog_sidecar_request_seconds"] == collected(both.registry)["catalog_sidecar_request_seconds"]


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("ready", (1, 0), 0),
        ("generation", (57, 56), 56),
        ("disk_ok", (0, 1), 0),
        ("store_reachable", (1, 0), 0),
        ("oldest_content_age_seconds", (10, 20), 20),
        ("published_age_seconds", (math.nan, 20), 20),
        ("store_conflict", (0, 1), 1),
        ("stale_queries", (3, 4), 4),
        ("memory_bytes", (3, 4), 7),
        ("workers", (1, 1), 2),
        ("workers_wanted", (2, 2), 2),
    ],
)
def test_a_gauge_is_combined_by_what_it_means(name: str, values: tuple[float, ...], expected: float) -> None:
    page = one_page([], [gauge(name, one) for one in values])
    assert page == gauge(name, expected)


def test_where_nobody_has_anything_to_tell_nothing_is_told() -> None:
    page = one_page([], [gauge("published_age_seconds", math.nan)] * 2)
    assert math.isnan(value(page, "catalog_sidecar_published_age_seconds"))


def test_those_who_only_count_have_no_say_in_gauges() -> None:
    starting = {**counters(a=1), **gauge("generation", 0)}
    serving = {**counters(a=2), **gauge("generation", 5)}
    page = one_page([starting, serving], [serving])
    assert page == {**counters(a=3), **gauge("generation", 5)}


def test_every_gauge_has_a_rule() -> None:
    gauges = {metric.name for metric in Metrics().registry.collect() if metric.type == "gauge"}
    assert set(GAUGES) == gauges


def test_every_metric_is_of_a_type_that_can_be_combined() -> None:
    assert {metric.type for metric in Metrics().registry.collect()} == {"counter", "gauge", "histogram"}


def test_a_page_passes_a_channel_unchanged_and_is_written_as_that_of_one_process(health: Health) -> None:
    metrics = Metrics()
    metrics.requests.of('/with "quotes"\\/').add(200, 0.1)
    metrics.requests.of("/a").add(200, 0.3)
    alone = metrics.render(health)
    page = families_of(json.loads(json.dumps(plain(collected(metrics.registry)))))
    assert sorted(rendered(one_page([page], [page])).splitlines()) == sorted(alone.splitlines())
    assert b"NaN" in alone
