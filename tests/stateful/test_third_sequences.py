"""Sequences of whatever may happen to indexers, store and sidecars; SEQUENCES=N for another number of them.

A part of them in each of four files, so that several processes share them.
"""

from tests.stateful.machine import Machine
from tests.stateful.sequences import check_what_happened, part

TestThirdSequences = Machine.TestCase
TestThirdSequences.settings = part


def test_zz_everything_has_happened() -> None:
    check_what_happened()
