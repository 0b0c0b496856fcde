"""What the sequences of a module have shared ends with it; and of what they log, nothing is kept."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.stateful.machine import bench


@pytest.fixture(scope="module", autouse=True)
def _bench_ends() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()
    bench().close()
    bench.cache_clear()
