"""Sequences of whatever may happen to indexers, store and sidecars; SEQUENCES=N for another number of them.

In two files, so that two processes share them.
"""

from tests.stateful.machine import Machine
from tests.stateful.sequences import check_what_happened, half

TestMoreSequences = Machine.TestCase
TestMoreSequences.settings = half


def test_zz_everything_has_happened() -> None:
    check_what_happened()
