"""Becoming and staying the leader. Time passes only when somebody sleeps; nobody's wall clock counts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.leadership import AnotherLeads, Leadership
from indexer.registry import Deposed, Registry, RegistryError, lead
from sidecar.errors import CatalogError
from tests.fakes import FakeClock
from tests.indexer import scripts

LEASE_S = 15.0
# Nothing that is waited for takes longer; what is waited for in vain would take for ever.
AT_ONCE_S = 5.0


async def held(registry: Registry, holder: str = "dead") -> int:
    epoch = await lead.take(registry, await lead.observe(registry), holder, LEASE_S)
    assert epoch is not None
    return epoch


class Sleeping:
    """A clock that is set by hand, and whose sleep is somebody else's doing."""

    def __init__(self, clock: FakeClock, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._clock = clock
        self._sleep = sleep

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._sleep(seconds)


class WaitedFor(Registry):
    """A registry whose writers wait for others, by a clock that is set by hand; after `good` of them it is away."""

    def __init__(self, path: Path, clock: FakeClock, good: int) -> None:
        super().__init__(f"sqlite+aiosqlite:///{path}/registry.db", clock)
        self._hand = clock
        self._good = good

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        self._good -= 1
        if self._good < 0:
            raise RegistryError("out of reach")
        self._hand.advance(LEASE_S * 2)
        async with super().plain() as connection:
            yield connection


class TestAcquiring:
    async def test_a_free_lead_is_taken_at_once(self, registry: Registry, clock: FakeClock) -> None:
        leadership = Leadership(registry, clock, LEASE_S)
        assert await leadership.acquire() == 1
        assert clock.steady_s == 0
        assert (await lead.observe(registry)).holder == leadership.holder

    async def test_the_epoch_is_above_the_given_one(self, registry: Registry, clock: FakeClock) -> None:
        assert await Leadership(registry, clock, LEASE_S).acquire(41) == 42

    async def test_a_dead_leader_is_waited_for_as_long_as_its_lease(self, registry: Registry, clock: FakeClock) -> None:
        """Its own lease, as it stands in the registry, and not that of who waits."""
        await held(registry)
        assert await Leadership(registry, clock, 1.0).acquire() == 2
        assert LEASE_S <= clock.steady_s <= LEASE_S * 1.2

    async def test_a_lead_that_was_left_in_order_is_taken_at_the_next_look(
        self, registry: Registry, clock: FakeClock
    ) -> None:
        epoch = await held(registry, "leaving")

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            await lead.release(registry, epoch)

        assert await Leadership(registry, Sleeping(clock, sleep), LEASE_S).acquire() == 2
        assert clock.steady_s == LEASE_S / 5

    async def test_every_sign_of_life_begins_the_wait_anew(self, registry: Registry, clock: FakeClock) -> None:
        epoch = await held(registry, "alive")

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            if clock.steady_s < 100:
                await lead.renew(registry, epoch)

        await Leadership(registry, Sleeping(clock, sleep), LEASE_S).acquire()
        assert 100 + LEASE_S * 0.8 <= clock.steady_s <= 100 + LEASE_S * 1.4

    async def test_patience_ends_while_the_leader_gives_signs_of_life(
        self, registry: Registry, clock: FakeClock
    ) -> None:
        epoch = await held(registry, "host:7")

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            await lead.renew(registry, epoch)

        with pytest.raises(AnotherLeads, match=r"^host:7 leads; stop it, or leave the pulls to it$") as refused:
            await Leadership(registry, Sleeping(clock, sleep), 1.0).acquire(patience=2)
        assert isinstance(refused.value, CatalogError)
        assert clock.steady_s == pytest.approx(LEASE_S * 2, abs=LEASE_S / 5)
        assert (await lead.observe(registry)).epoch == epoch

    async def test_patience_is_enough_for_a_dead_leader(self, registry: Registry, clock: FakeClock) -> None:
        epoch = await held(registry)

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            if clock.steady_s < LEASE_S / 2:
                await lead.renew(registry, epoch)

        assert await Leadership(registry, Sleeping(clock, sleep), 1.0).acquire(patience=2) == epoch + 1

    async def test_jumps_of_the_wall_clock_change_nothing(self, registry: Registry, clock: FakeClock) -> None:
        await held(registry)

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            clock.wall_ms += 86_400_000 if int(clock.steady_s) % 2 else -2 * 86_400_000

        await Leadership(registry, Sleeping(clock, sleep), LEASE_S).acquire()
        assert LEASE_S <= clock.steady_s <= LEASE_S * 1.2

    async def test_of_two_candidates_one_wins_and_the_other_waits_on(
        self, tmp_path: Path, registry: Registry, clock: FakeClock
    ) -> None:
        await held(registry)
        other = Registry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", clock)

        async def sleep(seconds: float) -> None:
            clock.advance(seconds / 2)
            await asyncio.sleep(0)

        several = [Leadership(r, Sleeping(clock, sleep), LEASE_S) for r in (registry, other)]
        candidates = [asyncio.create_task(each.acquire()) for each in several]
        done, waiting = await asyncio.wait(candidates, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [2]
        await lead.release(registry, 2)
        assert await asyncio.wait_for(waiting.pop(), 10) == 3
        await other.close()


class TestKeeping:
    async def test_signs_of_life_come_three_to_a_lease(self, registry: Registry, clock: FakeClock) -> None:
        beats: list[int] = []

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            beats.append((await lead.observe(registry)).beat)
            if len(beats) == 4:
                raise asyncio.CancelledError

        leadership = Leadership(registry, Sleeping(clock, sleep), LEASE_S)
        epoch = await leadership.acquire()
        with pytest.raises(asyncio.CancelledError):
            await leadership.keep(epoch)
        assert beats == [1, 2, 3, 4]
        assert clock.steady_s == LEASE_S / 3 * 4

    async def test_a_paused_leader_finds_that_another_leads(self, registry: Registry, clock: FakeClock) -> None:
        leadership = Leadership(registry, clock, LEASE_S)
        epoch = await leadership.acquire()
        assert await held(registry, "next") == epoch + 1
        with pytest.raises(Deposed, match=f"epoch {epoch} is over"):
            await leadership.keep(epoch)

    async def test_a_leader_that_cannot_reach_the_registry_gives_up_after_its_lease(self, clock: FakeClock) -> None:
        gone = scripts.GoneRegistry()
        with pytest.raises(Deposed, match="no sign of life"):
            await Leadership(gone, clock, LEASE_S).keep(1)
        assert LEASE_S < clock.steady_s <= LEASE_S * 1.4

    async def test_a_leader_to_whom_the_registry_says_nothing_gives_up_though_nothing_ever_ends(
        self, registry_url: str, registry: Registry, clock: FakeClock
    ) -> None:
        silent = scripts.SilentRegistry(registry_url, clock)
        leadership = Leadership(silent, clock, 0.01, least_wait_s=0.01)
        epoch = await leadership.acquire()
        silent.silent = True
        async with asyncio.timeout(AT_ONCE_S):
            with pytest.raises(Deposed, match="no sign of life"):
                await leadership.keep(epoch)
            await leadership.release(epoch)
        silent.answer()
        await silent.close()

    async def test_a_leader_that_slept_through_its_lease_still_leads_if_nobody_took_over(
        self, registry: Registry, clock: FakeClock
    ) -> None:
        sleeps = iter([LEASE_S * 10, None])

        async def sleep(_: float) -> None:
            seconds = next(sleeps)
            if seconds is None:
                raise asyncio.CancelledError
            clock.advance(seconds)

        leadership = Leadership(registry, Sleeping(clock, sleep), LEASE_S)
        epoch = await leadership.acquire()
        with pytest.raises(asyncio.CancelledError):
            await leadership.keep(epoch)

    async def test_a_sign_of_life_that_had_to_wait_is_one(
        self, tmp_path: Path, registry: Registry, clock: FakeClock
    ) -> None:
        """It waited for twice the lease; and the next one is not late because this one was."""
        epoch = await held(registry, "me")
        waited_for = WaitedFor(tmp_path, clock, good=3)
        with pytest.raises(Deposed, match=r"no sign of life for 20\.0 s"):
            await Leadership(waited_for, clock, LEASE_S).keep(epoch)
        assert (await lead.observe(registry)).beat == 1 + 3
        await waited_for.close()


class TestLeaving:
    async def test_in_order_frees_the_lead(self, registry: Registry, clock: FakeClock) -> None:
        leadership = Leadership(registry, clock, LEASE_S)
        await leadership.release(await leadership.acquire())
        assert (await lead.observe(registry)).holder is None

    async def test_without_a_registry_is_no_error(self, clock: FakeClock) -> None:
        gone = scripts.GoneRegistry()
        await Leadership(gone, clock, LEASE_S).release(1)

    async def test_waiting_without_a_registry_is_one(self, clock: FakeClock) -> None:
        gone = scripts.GoneRegistry()
        with pytest.raises(RegistryError):
            await Leadership(gone, clock, LEASE_S).acquire()
