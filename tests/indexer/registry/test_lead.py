"""Leadership in the registry: taken by compare-and-set on what was seen, renewed, left; one epoch at a time."""

import asyncio

import pytest

from indexer.registry import Deposed, Registry, lead
from indexer.registry.lead import Lease
from tests.fakes import FakeClock


async def taken(registry: Registry, holder: str = "me", lease_s: float = 15.0, least_epoch: int = 0) -> int:
    epoch = await lead.take(registry, await lead.observe(registry), holder, lease_s, least_epoch)
    assert epoch is not None
    return epoch


async def test_a_new_registry_has_no_leader(registry: Registry) -> None:
    assert await lead.observe(registry) == Lease(0, 0, None, 0)


async def test_taking_the_lead_raises_the_epoch_and_says_who(registry: Registry) -> None:
    assert await taken(registry, "a", 2.5) == 1
    assert await lead.observe(registry) == Lease(1, 1, "a", 2500)
    assert await taken(registry, "b") == 2


async def test_the_epoch_is_above_that_of_the_store(registry: Registry) -> None:
    assert await taken(registry, least_epoch=7) == 8
    assert await taken(registry, least_epoch=3) == 9


async def test_a_sign_of_life_since_it_was_seen_keeps_the_lead(registry: Registry) -> None:
    epoch = await taken(registry, "a")
    seen = await lead.observe(registry)
    await lead.renew(registry, epoch)
    assert await lead.take(registry, seen, "b", 15.0) is None
    assert (await lead.observe(registry)).holder == "a"


async def test_of_many_who_saw_the_same_lease_one_takes_it(registry_url: str, registry: Registry) -> None:
    others = [Registry(registry_url, FakeClock()) for _ in range(4)]
    seen = await lead.observe(registry)
    try:
        epochs = await asyncio.gather(*(lead.take(each, seen, f"{n}", 15.0) for n, each in enumerate(others)))
    finally:
        for each in others:
            await each.close()
    assert sorted(epochs, key=str) == [1, None, None, None]


async def test_a_deposed_leader_gives_no_sign_of_life(registry: Registry) -> None:
    first = await taken(registry, "a")
    await taken(registry, "b")
    before = await lead.observe(registry)
    with pytest.raises(Deposed):
        await lead.renew(registry, first)
    assert await lead.observe(registry) == before


async def test_leaving_says_so_and_moves_the_beat(registry: Registry) -> None:
    epoch = await taken(registry, "a")
    await lead.release(registry, epoch)
    assert await lead.observe(registry) == Lease(1, 2, None, 15_000)


async def test_a_deposed_leader_cannot_leave_for_its_successor(registry: Registry) -> None:
    first = await taken(registry, "a")
    await taken(registry, "b")
    await lead.release(registry, first)
    assert (await lead.observe(registry)).holder == "b"


async def test_a_long_name_is_cut(registry: Registry) -> None:
    await taken(registry, "h" * 300)
    assert (await lead.observe(registry)).holder == "h" * 255


async def test_leases_do_not_move_the_clock_that_generations_cover(registry: Registry) -> None:
    epoch = await taken(registry)
    await lead.renew(registry, epoch)
    await lead.release(registry, epoch)
    async with registry.write() as tx:
        assert tx.clock == 1
