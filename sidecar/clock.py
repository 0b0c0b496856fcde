"""Time as the rest of the process sees it; tests pass a clock of their own, so that no test ever sleeps."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how to let some pass."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, which ages are told from."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump, which durations are told from."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns once so many seconds have passed."""
        ...


class SystemClock:
    """Implements Clock over the machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
