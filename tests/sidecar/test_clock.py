"""The wall clock is set by people and machines; what is told of that."""

import pytest

from sidecar.clock import Jumps
from tests.fakes import FakeClock


@pytest.mark.parametrize("by_ms", [1_000, 86_400_000, -1_000, -86_400_000])
def test_a_jump_is_seen_once_in_either_direction(by_ms: int) -> None:
    clock = FakeClock()
    jumps = Jumps(clock)
    assert not jumps.seen()
    clock.advance(3600.0)
    assert not jumps.seen()
    clock.wall_ms += by_ms
    assert jumps.seen()
    assert not jumps.seen()


def test_a_clock_that_is_adjusted_slowly_does_not_jump() -> None:
    clock = FakeClock()
    jumps = Jumps(clock)
    for _ in range(1000):
        clock.advance(0.5)
        clock.wall_ms += 1
        assert not jumps.seen()
