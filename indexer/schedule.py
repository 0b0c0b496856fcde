"""When a query is pulled: pure. Soon if it never was; then every refresh period; after failures, with back-off.

Soon: once nobody has changed it for a moment, so that whoever changes it again and again causes one pull.

Queries that became due together are spread out by their hash over the last tenth of the period, so that a night's
work does not come back as one burst; none is pulled later than the refresh period says.
"""

from typing import Final

from indexer.registry.pulls import SKEW_MS, Target
from sidecar.contract.words import PullState

DEBOUNCE_MS: Final = 250
FIRST_RETRY_S: Final = 5
# What was refused came as a whole, and cost the source a whole pull: it is not soon another.
FIRST_SECOND_LOOK_S: Final = 300
LONGEST_RETRY_S: Final = 3600
SPREAD: Final = 0.1


def due_at_ms(target: Target, refresh_s: int, now_ms: int) -> int:
    """The time at which a filter is to be pulled next, in the past if that is overdue.

    Where the last time lies far in the future, a clock was wrong, and nothing is known of how long ago it was: the
    filter is due now. To count it as now would put the pull off for as long as anybody asks.
    """
    tried_at_ms = target.tried_at_ms or 0
    if target.state is PullState.DUE:
        return now_ms if target.changed_ms > now_ms + SKEW_MS else target.changed_ms + DEBOUNCE_MS
    if tried_at_ms > now_ms + SKEW_MS:
        return now_ms
    if target.state is PullState.FRESH:
        early = SPREAD * int(target.hash[:8], 16) / 0xFFFF_FFFF
        return tried_at_ms + round(refresh_s * 1000 * (1 - early))
    if target.state is PullState.UNPULLABLE:
        return tried_at_ms + LONGEST_RETRY_S * 1000
    exponent = min(target.failures - 1, 20)
    if target.state is PullState.QUARANTINED:
        return tried_at_ms + min(FIRST_SECOND_LOOK_S << exponent, LONGEST_RETRY_S) * 1000
    return tried_at_ms + min(FIRST_RETRY_S << exponent, LONGEST_RETRY_S) * 1000
