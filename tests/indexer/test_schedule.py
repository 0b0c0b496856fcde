"""When a query is pulled next."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.registry.pulls import SKEW_MS, Target
from indexer.schedule import due_at_ms
from sidecar.contract.words import PullState

NOW_MS = 1_800_000_000_000
REFRESH_S = 72_000
FRESH = Target("0" * 32, 1, None, "{}", PullState.FRESH, NOW_MS, NOW_MS, 0, None, 1, changed_ms=NOW_MS, requests=1)
hashes = st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}")


def test_what_was_never_pulled_is_due_once_nobody_has_changed_it_for_a_moment() -> None:
    due = replace(FRESH, state=PullState.DUE, pulled_at_ms=None, tried_at_ms=None)
    assert due_at_ms(due, REFRESH_S, NOW_MS) == NOW_MS + 250
    assert due_at_ms(replace(due, changed_ms=NOW_MS - 5000), REFRESH_S, NOW_MS) == NOW_MS - 4750


@given(hashes, st.integers(0, 10 * REFRESH_S))
def test_what_is_fresh_is_due_in_the_last_tenth_of_its_period_and_never_later(hash_: str, age_s: int) -> None:
    pulled_ms = NOW_MS - age_s * 1000
    due_ms = due_at_ms(replace(FRESH, hash=hash_, tried_at_ms=pulled_ms), REFRESH_S, NOW_MS)
    assert 0.9 * REFRESH_S * 1000 <= due_ms - pulled_ms <= REFRESH_S * 1000


def test_queries_that_were_pulled_together_are_spread_by_their_hashes() -> None:
    due = [due_at_ms(replace(FRESH, hash=f"{n:08x}" + "0" * 24), REFRESH_S, NOW_MS) for n in (0, 2**31, 2**32 - 1)]
    assert due[0] - due[2] == REFRESH_S * 100
    assert due[0] - due[1] == pytest.approx(REFRESH_S * 50, abs=1)


def test_failures_back_off_from_5_seconds_to_an_hour() -> None:
    failing = replace(FRESH, state=PullState.FAILING)
    waits = [
        (due_at_ms(replace(failing, failures=n), REFRESH_S, NOW_MS) - NOW_MS) // 1000 for n in (1, 2, 3, 10, 11, 10**6)
    ]
    assert waits == [5, 10, 20, 2560, 3600, 3600]


def test_what_was_refused_is_looked_at_again_from_5_minutes_on_up_to_an_hour() -> None:
    refused = replace(FRESH, state=PullState.QUARANTINED)
    waits = [(due_at_ms(replace(refused, failures=n), REFRESH_S, NOW_MS) - NOW_MS) // 1000 for n in (1, 2, 4, 5, 10**6)]
    assert waits == [300, 600, 2400, 3600, 3600]


def test_what_can_never_be_pulled_is_looked_at_every_hour() -> None:
    never = replace(FRESH, state=PullState.UNPULLABLE, failures=7)
    assert due_at_ms(never, REFRESH_S, NOW_MS) == NOW_MS + 3_600_000


@given(st.sampled_from(PullState), st.integers(SKEW_MS + 1, 10**12), hashes)
def test_a_time_far_in_the_future_makes_it_due_now(state: PullState, ahead_ms: int, hash_: str) -> None:
    """Another machine's clock was wrong; the pull must not wait until it is right."""
    wrong = replace(FRESH, state=state, failures=1, hash=hash_, tried_at_ms=NOW_MS + ahead_ms)
    wrong = replace(wrong, changed_ms=NOW_MS + ahead_ms)
    assert due_at_ms(wrong, REFRESH_S, NOW_MS) == NOW_MS


@given(st.sampled_from(PullState), st.integers(-(10**9), SKEW_MS), st.integers(0, 10**6), hashes)
def test_asking_later_puts_nothing_off(state: PullState, ahead_ms: int, later_ms: int, hash_: str) -> None:
    """It is worked out anew whenever the registry changes, which may be all the time."""
    at_ms = NOW_MS + ahead_ms
    target = replace(FRESH, state=state, failures=1, hash=hash_, tried_at_ms=at_ms, changed_ms=at_ms)
    assert due_at_ms(target, REFRESH_S, NOW_MS + later_ms) == due_at_ms(target, REFRESH_S, NOW_MS)
