"""The collector rests while a generation is loaded, and never looks at one again that is served; nothing leaks by it.

It is the process's own. What changes it runs in a process of its own, so that no other test runs under it.
"""

import gc
import json
import subprocess
import sys
from typing import Any

import pytest

from sidecar import collector

SWAPS = 200
ALONE = """
import asyncio, gc, json, sys
from uuid import UUID

from sidecar import collector
from sidecar.contract.index import Index
from sidecar.current import Current, Generation
from sidecar.store import Pointer
from tests.trees import Catalog, Selection, World

collector.take_over()
swaps = int(sys.argv[1])
courses = {f"edX+C{n}": [f"course-v1:edX+C{n}+1"] for n in range(40)}

def tree(number):
    chosen = {f"edX+C{(number + n) % 40}" for n in range(10)}
    selections = {name: Selection(frozenset(chosen), 1_700_000_000_000 + number) for name in "ab"}
    catalogs = [Catalog(UUID(int=n + number % 3), "ab"[n % 2]) for n in range(20)]
    # One more key each time, until there are a few, and then another dictionary.
    more = {f"new+{n}": [] for n in range(number % 7)}
    return World(courses={**courses, **more}, selections=selections, catalogs=catalogs).tree(generation=number)

trees = [tree(number) for number in range(1, 22)]
records = [each.records() for each in trees]
current, served, counted = Current(), None, {}
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
for number in range(swaps):
    with collector.resting():
        resting = not gc.isenabled()
        its = trees[number % len(trees)]
        index = Index.assemble(its.root, records[number % len(trees)], None if served is None else served.index)
        served = Generation.of(Pointer(1, number, its.root), index, served)
    current.swap(served)
    collector.settle(len(index.records.came))
    if number % len(trees) == 0:
        counted[number] = gc.get_freeze_count()
print(json.dumps({"counted": list(counted.values()), "resting": resting, "enabled": gc.isenabled()}))
"""


@pytest.fixture(scope="module")
def alone() -> Any:
    """What a process of its own tells of so many swaps."""
    done = subprocess.run([sys.executable, "-c", ALONE, str(SWAPS)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_it_rests_only_while_a_generation_is_loaded(alone: Any) -> None:
    assert (alone["resting"], alone["enabled"]) == (True, True)


def test_generations_that_are_gone_are_freed_though_they_were_frozen(alone: Any) -> None:
    """The same generations come round again: after each round as many objects are frozen as after the first."""
    first, *later = alone["counted"][1:]
    assert len(later) > 5
    assert max(later) <= first * 1.01


def test_nothing_happens_before_it_is_taken_over() -> None:
    assert gc.isenabled()
    with collector.resting():
        assert gc.isenabled()
    before = gc.get_freeze_count()
    collector.settle(0)
    assert gc.get_freeze_count() == before
