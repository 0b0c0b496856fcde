"""Latencies: percentiles out of raw ones, and what happened after a moment."""

from array import array

import pytest

from benchmarks.load import Latencies


def latencies(*us: int, t0_ns: int = 0, rate: float = 0.0) -> Latencies:
    return Latencies(array("q", [n * 1000 for n in us]), t0_ns=t0_ns, rate=rate)


@pytest.mark.parametrize("percentile, us", [(50.0, 500), (99.0, 990), (99.9, 999), (100.0, 1000)])
def test_a_percentile_is_that_of_the_raw_latencies_to_three_digits(percentile: float, us: int) -> None:
    assert latencies(*range(1, 1001)).percentile_us(percentile) == pytest.approx(us, rel=0.001)


def test_the_worst_after_a_moment_is_of_requests_meant_for_the_time_after_it() -> None:
    # One request every 100 ms from second 5 on.
    found = latencies(9, 1, 2, 8, 3, 1, t0_ns=5_000_000_000, rate=10.0)
    assert found.worst_after_ns(5_100_000_000, 200_000_000) == 2_000
    assert found.worst_after_ns(5_100_000_000, 300_000_000) == 8_000
    assert found.worst_after_ns(4_000_000_000, 500_000_000) == 0
    assert found.worst_after_ns(9_000_000_000, 500_000_000) == 0


def test_a_curve_rises() -> None:
    curve = latencies(*range(1, 1001)).curve()
    assert [us for _, us in curve] == sorted(us for _, us in curve)
    assert curve[-1][0] == 100.0
