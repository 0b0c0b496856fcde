"""Opening what the settings name: registry, store, source. Nothing else knows which implementation is behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.registry import Registry
from indexer.source import Source
from indexer.source.discovery import DiscoverySource
from indexer.source.file import FileSource
from sidecar.clock import Clock
from sidecar.settings import Settings
from sidecar.store import Store
from sidecar.store.urls import open_store


@dataclass(frozen=True, slots=True)
class Parts:
    """What every command of the indexer works on."""

    settings: Settings
    clock: Clock
    registry: Registry
    store: Store
    source: Source


def open_source(settings: Settings, clock: Clock) -> Source:
    """The source of `source.kind`."""
    if settings.source.kind == "file":
        return FileSource(Path(settings.source.path), restricted_runs=settings.source.restricted_runs)
    return DiscoverySource(settings.source, settings.lms, clock)


@asynccontextmanager
async def opened(settings: Settings, clock: Clock) -> AsyncIterator[Parts]:
    """Everything opened, the registry's tables made or migrated; and closed at the end."""
    source = open_source(settings, clock)
    store = open_store(settings.store.url, writable=True)
    registry = Registry(settings.registry.url, clock)
    try:
        await registry.open()
        yield Parts(settings, clock, registry, store, source)
    finally:
        await source.close()
        await store.close()
        await registry.close()
