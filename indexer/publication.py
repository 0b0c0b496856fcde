"""Whether what was written to the registry is published: told by this process if it leads, else read in SQL.

A generation's clock says what it shows, and its number alone says nothing: a rollback has a higher number than what it
takes away, and the clock of the tree that it shows again. While a generation is pinned nothing newer will be published,
and nobody waits for it.
"""

import asyncio
from contextlib import suppress
from typing import Final

from indexer.registry import Registry, RegistryError, generations
from indexer.registry.generations import Generation

LOOK_EVERY_S: Final = 0.1


class Publication:
    """The newest published generation, as far as this process knows.

    `pinned`: the generation that is pinned, if one is.
    """

    def __init__(self, registry: Registry) -> None:
        self.pinned: int | None = None
        self._registry = registry
        self._latest = (0, -1)
        self._news = asyncio.Event()
        self._looking = asyncio.Lock()
        self._looked_s = -LOOK_EVERY_S

    def note(self, generation: Generation) -> None:
        """Says that this process has published a generation; one that is held back does not count."""
        if generation.moved and generation.generation > self._latest[0]:
            self._latest = generation.generation, generation.clock
            self._news.set()
            self._news = asyncio.Event()

    async def covering(self, clock: int, within_s: float) -> int | None:
        """The number of a published generation that has everything up to this clock; None if there is none in time, or
        if a generation is pinned that has not.

        A registry that is out of reach by now has published nothing that could be told.
        """
        try:
            async with asyncio.timeout(within_s):
                while self._latest[1] < clock:
                    if self.pinned is not None:
                        await self._look()
                    if self.pinned is not None:
                        return None
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
                    self.pinned = await generations.pin(connection)
                    for generation in await generations.latest(connection, moved=True):
                        self.note(generation)
