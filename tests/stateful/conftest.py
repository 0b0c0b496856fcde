"""What the sequences of a module have shared ends with it."""

from collections.abc import Iterator

import pytest

from tests.stateful.machine import bench


@pytest.fixture(scope="module", autouse=True)
def _bench_ends() -> Iterator[None]:
    yield
    bench().close()
    bench.cache_clear()
