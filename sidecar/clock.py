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


class Jumps:
    """Tells when the wall clock has been set: it and the steady one have come apart since they were last looked at."""

    # What adjusting a clock slowly makes of the moments between two looks stays below it.
    LEAST_MS = 1_000

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._apart_ms = self._measured_ms()

    def seen(self) -> bool:
        """Whether it has jumped since the last look, forwards or backwards."""
        apart_ms = self._measured_ms()
        jumped = abs(apart_ms - self._apart_ms) >= self.LEAST_MS
        self._apart_ms = apart_ms
        return jumped

    def _measured_ms(self) -> int:
        return self._clock.now_ms() - round(self._clock.monotonic() * 1000)
