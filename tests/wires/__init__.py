"""What is between two processes fails in every way: for each pair, with the real thing on the other side.

Each test sets one fault while connections are open, has the callers ask, clears it, and states that

1. what is answered from memory goes on being answered;
2. every caller has an answer or an error within its deadline, which is the fact under test and not a measurement;
3. no answer is wrong;
4. once the fault is gone everything works again by itself, within RECOVERED_S.

Of the third, bits that are flipped on the way are a case of their own. Objects and pointers are verified, so that no
flip on the way from or to a store is ever an answer. What goes over plain HTTP, or to a database without TLS, is
protected by TCP's checksum alone: where that is all there is, tests say so by taking what a flip makes of it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import pytest

from tests.fault_proxy import (
    BlackHole,
    Direction,
    Fault,
    FaultProxy,
    Flip,
    Latency,
    Refuse,
    Reset,
    Slow,
    Truncate,
    Unanswered,
)

# What a busy machine may take, on top of a deadline.
SLACK_S: Final = 5.0
RECOVERED_S: Final = 20.0
LOOK_EVERY_S: Final = 0.02


class Harm(NamedTuple):
    """A fault and where it is. `flips`: what arrives may be something else than what was sent."""

    fault: Fault
    direction: Direction = "both"

    @property
    def flips(self) -> bool:
        return isinstance(self.fault, Flip)

    @property
    def is_slow(self) -> bool:
        return isinstance(self.fault, Slow)

    def on(self, proxy: FaultProxy) -> None:
        proxy.set(self.fault, self.direction)


HARMS: Final[Mapping[str, Harm]] = {
    "latency": Harm(Latency(0.02, jitter_s=0.02)),
    "reset at once": Harm(Reset()),
    "questions reset": Harm(Reset(20), "to server"),
    "answers reset": Harm(Reset(20), "to client"),
    "questions truncated": Harm(Truncate(20), "to server"),
    "answers truncated": Harm(Truncate(20), "to client"),
    "questions flipped": Harm(Flip(48, seed=1), "to server"),
    "answers flipped": Harm(Flip(48, seed=2), "to client"),
    "black hole": Harm(BlackHole()),
    "answers lost": Harm(BlackHole(), "to client"),
    "slow": Harm(Slow(100), "to client"),
    "unanswered": Harm(Unanswered()),
    "refused": Harm(Refuse()),
}
every_harm: Final = pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)


@asynccontextmanager
async def within(deadline_s: float) -> AsyncIterator[None]:
    """Fails unless the block ends within a deadline that somebody was promised."""
    async with asyncio.timeout(deadline_s + SLACK_S):
        yield


async def recovered(works: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something works again."""
    async with asyncio.timeout(RECOVERED_S):
        while not await works():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(LOOK_EVERY_S)
