"""What the indexer's tests share: a registry on a file, a world that is verified at the end, a clock that stands."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from indexer.registry import Registry
from tests.fakes import FakeClock
from tests.indexer import scripts
from tests.world import World, world


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated, empty registry, to be copied: migrating takes longer than most tests."""
    return asyncio.run(scripts.migrated(tmp_path_factory.mktemp("template")))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def registry(tmp_path: Path, clock: FakeClock, template: Path) -> AsyncIterator[Registry]:
    """A migrated, empty registry."""
    scripts.copy(template, tmp_path)
    opened = Registry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", clock)
    try:
        await opened.open()
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def here(tmp_path: Path, clock: FakeClock, template: Path) -> AsyncIterator[World]:
    """A world without content that leads; its published tree is verified at the end."""
    scripts.copy(template, tmp_path)
    async with world(tmp_path, clock=clock) as made:
        yield made
