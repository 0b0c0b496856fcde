"""What a process knows of the others that answer beside it, and what it asks of them. Alone it knows the answers."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Metric, generate_latest

from sidecar.health import ALONE, Standing
from sidecar.store import Pointer
from sidecar.workers.channel import Channel, Message
from sidecar.workers.page import Families, Family, families_of

# Longer than the supervisor waits for a worker that is silent.
PAGE_S: Final = 3.0


class NoPage(Exception):
    """Raised when the metrics of all workers cannot be had: a page of one alone would have counters go back."""


class Siblings(Protocol):
    """The processes that answer as one sidecar, seen from one of them."""

    @property
    def standing(self) -> Standing:
        """Which one this is, and how many there are."""
        ...

    @property
    def token(self) -> str:
        """What all of them have in common, and no other sidecar has; empty for a process alone."""
        ...

    async def serve(self, pointer: Pointer) -> None:
        """Returns once all of them serve this generation or a later one."""
        ...

    async def page(self, own: Callable[[], bytes]) -> bytes:
        """The metrics of all of them; `own` makes those of this process. Raises NoPage."""
        ...


class Alone:
    """Implements Siblings for a process that has none."""

    standing = ALONE
    token = ""

    async def serve(self, pointer: Pointer) -> None:
        pass

    async def page(self, own: Callable[[], bytes]) -> bytes:
        return own()


class Among:
    """Implements Siblings for a worker, by what its supervisor says."""

    def __init__(self, channel: Channel, number: int, wanted: int, token: str, page_s: float = PAGE_S) -> None:
        self.standing = Standing(number, wanted, 0)
        self.token = token
        self._channel = channel
        self._least = (0, 0)
        self._moved = asyncio.Event()
        self._page_s = page_s
        self._asks = 0
        self._pages: dict[int, asyncio.Future[Families]] = {}

    async def serve(self, pointer: Pointer) -> None:
        while self._least < pointer[:2]:
            await self._moved.wait()

    async def page(self, own: Callable[[], bytes]) -> bytes:
        self._asks += 1
        ask = self._asks
        self._pages[ask] = asyncio.get_running_loop().create_future()
        self._channel.send("scrape", ask=ask)
        try:
            async with asyncio.timeout(self._page_s):
                return rendered(await self._pages[ask])
        except TimeoutError as error:
            raise NoPage(f"the supervisor did not answer within {self._page_s:g} s") from error
        finally:
            del self._pages[ask]

    def hear(self, message: Message) -> None:
        """Takes what the supervisor says of the others; what is not about them is for somebody else."""
        match message:
            case {"is": "state", "running": int(running), "least": [int(epoch), int(generation)]}:
                self.standing = self.standing._replace(running=running)
                self._least = (epoch, generation)
                self._moved.set()
                self._moved = asyncio.Event()
            case {"is": "page", "ask": int(ask), "families": families}:
                if (waits := self._pages.get(ask)) is not None and not waits.done():
                    waits.set_result(families_of(families))


def collected(registry: CollectorRegistry) -> dict[str, Family]:
    """All that a registry has."""
    return {
        metric.name: Family(
            metric.type,
            metric.documentation,
            {(sample.name, tuple(sample.labels.items())): sample.value for sample in metric.samples},
        )
        for metric in registry.collect()
    }


def rendered(families: Families) -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(_Collected(families))


class _Collected:
    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        metrics = []
        for name, family in self._families.items():
            metric: Any = Metric(name, family.help, family.type)
            for (key, labels), value in family.samples.items():
                metric.add_sample(key, dict(labels), value)
            metrics.append(metric)
        return metrics
