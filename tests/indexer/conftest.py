"""What the indexer's tests share: a registry, a world that is verified at the end, a clock that stands.

Registries are SQLite files, or on the server that REGISTRY_URL names (`make test-databases`). A test that states what
holds for SQLite alone is marked `sqlite`, and one that needs a server `server`; where they cannot run, they are
deselected.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from indexer.registry import Registry
from tests.databases import databases
from tests.fakes import FakeClock
from tests.indexer import scripts
from tests.world import World, world


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite: what the test states holds for a registry on SQLite alone")
    config.addinivalue_line("markers", "server: what the test states holds for a registry on a database server alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    not_here = "server" if databases.kind == "sqlite" else "sqlite"
    others = [item for item in items if item.get_closest_marker(not_here)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated, empty registry, to be copied: migrating takes longer than most tests."""
    return asyncio.run(scripts.migrated(tmp_path_factory.mktemp("template")))


@pytest.fixture(autouse=True)
def _release_databases() -> Iterator[None]:
    yield
    databases.release()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def registry_url(tmp_path: Path, template: Path) -> str:
    """The url of a migrated, empty registry: that of `tmp_path`."""
    return await databases.url(scripts.copy(template, tmp_path))


@pytest.fixture
async def registry(registry_url: str, clock: FakeClock) -> AsyncIterator[Registry]:
    """A migrated, empty registry."""
    opened = Registry(registry_url, clock)
    try:
        await opened.open()
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def here(tmp_path: Path, clock: FakeClock, registry_url: str) -> AsyncIterator[World]:
    """A world without content that leads, on `registry_url`; its published tree is verified at the end."""
    async with world(tmp_path, clock=clock) as made:
        yield made
