"""A discovery source over a served corpus; a test, or a class of them, gives a corpus of its own."""

from collections.abc import AsyncIterator

import pytest

from tests.discovery import (
    RecordingClock,
    served,
    source_over,
)
from tests.fakes import Json
from tests.indexer.source.pulling import Here, many


@pytest.fixture
def corpus() -> Json:
    """May be changed by a test before its first pull."""
    return many(250)


@pytest.fixture
async def here(corpus: Json) -> AsyncIterator[Here]:
    clock = RecordingClock()
    async with served(corpus) as fake, source_over(fake, clock) as source:
        yield Here(fake, source, clock)
