"""Whether what was written to the registry is published: told by this process if it leads, else read in SQL."""

import asyncio
from contextlib import suppress
from typing import Final

from indexer.registry import Registry, RegistryError, generations
from indexer.registry.generations import Generation

LOOK_EVERY_S: Final = 0.1


class Publication:
    """The newest published generation, as far as this process knows."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._latest = (0, -1)
        self._news = asyncio.Event()
        self._looking = asyncio.Lock()
        self._looked_s = -LOOK_EVERY_S

    def note(self, generation: Generation) -> None:
        """Says that this process has published a generation."""
        if generation.generation > self._latest[0]:
            self._latest = generation.generation, generation.clock
            self._news.set()
            self._news = asyncio.Event()

    async def covering(self, clock: int, within_s: float) -> int | None:
        """The number of a published generation that has everything up to this clock; None if there is none in time.

        A registry that is out of reach by now has published nothing that could be told.
        """
        try:
            async with asyncio.timeout(within_s):
                while self._latest[1] < clock:
                    try:
                        async with asyncio.timeout(LOOK_EVERY_S):
                            await self._news.wait()
                    except TimeoutError:
                        await self._look()
        except TimeoutError:
            return None
        return self._latest[0]

    async def _look(self) -> None:
        async with self._looking:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._looked_s < LOOK_EVERY_S:  # However many wait, one has looked for all.
                return
            self._looked_s = now_s
            with suppress(RegistryError):
                async with self._registry.read() as connection:
                    for generation in await generations.latest(connection, moved=True):
                        self.note(generation)
