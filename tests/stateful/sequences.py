"""How many sequences are tried, of how many steps; and whether enough has happened in them."""

import os

from hypothesis import HealthCheck, settings

from tests.stateful.machine import HAPPENED, KINDS

FILES = 4
ENOUGH_TO_TELL = 400
# What needs several things in one order, and may not come in some hundred sequences.
RARE = {"older replicas", "approved results passed", "rollback", "generations pinned again", "unpin"}

part = settings(
    max_examples=-(-int(os.environ.get("SEQUENCES", "2000")) // FILES),
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def check_what_happened() -> None:
    """Prints what has come to pass in this process, which with enough sequences is everything that can."""
    for kind in KINDS:
        print(f"{HAPPENED[kind]:>12,} {kind}")
    if HAPPENED["sequences"] >= ENOUGH_TO_TELL:
        assert {kind for kind in KINDS if not HAPPENED[kind]} <= RARE
