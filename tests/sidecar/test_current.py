"""The served generation is exchanged in one step, and those who wait for one are told."""

import asyncio
from dataclasses import replace
from uuid import UUID

from sidecar.contract.index import Index
from sidecar.contract.records import Root
from sidecar.current import Current, Generation
from sidecar.store import Pointer
from tests.trees import Catalog, Selection, World

FIRST, SECOND = UUID(int=2), UUID(int=1)
WORLD = World(selections={"a": Selection()}, catalogs=[Catalog(FIRST, "a"), Catalog(SECOND, "a")])


def generation(number: int, *, clock: int) -> Generation:
    """A generation that covers this clock of the registry."""
    tree = WORLD.tree(generation=number)
    records = tree.records()
    root = records[tree.root]
    assert isinstance(root, Root)
    index = Index.assemble(tree.root, {**records, tree.root: replace(root, clock=clock)})
    return Generation.of(Pointer(1, number, tree.root), index)


def test_a_generation_has_its_catalogs_in_order_of_creation() -> None:
    assert [UUID(catalog.uuid) for catalog in generation(1, clock=1).catalogs] == [FIRST, SECOND]


async def test_a_clock_that_is_covered_is_not_waited_for() -> None:
    current = Current()
    served = generation(1, clock=5)
    current.swap(served)
    assert await current.covering(4) is served
    assert await current.covering(5) is served


async def test_each_waits_for_its_own_clock() -> None:
    current = Current()
    six, eight = asyncio.create_task(current.covering(6)), asyncio.create_task(current.covering(8))
    done = []
    for number, clock in ((1, 5), (2, 7), (3, 9)):
        current.swap(generation(number, clock=clock))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append((six.done(), eight.done()))
    assert done == [(False, False), (True, False), (True, True)]
    assert [(await task).pointer.generation for task in (six, eight)] == [2, 3]


async def test_who_waits_through_two_exchanges_gets_the_later_generation() -> None:
    current = Current()
    waiting = asyncio.create_task(current.covering(6))
    await asyncio.sleep(0)
    current.swap(generation(1, clock=6))
    current.swap(generation(2, clock=7))
    assert (await waiting).pointer.generation == 2
