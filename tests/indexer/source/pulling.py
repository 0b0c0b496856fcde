"""What tests of the discovery source share: a source over a fake, and what the file source finds instead."""

import json
from typing import Any

import pytest

from indexer.documents import Item
from indexer.source import Pulled, SourceError
from indexer.source.discovery import DiscoverySource
from indexer.source.file import read_corpus, search
from indexer.source.upstream import Refused
from tests.discovery import (
    SECRET,
    FakeDiscovery,
    RecordingClock,
)
from tests.fakes import Json, course

FORCED = "enterprise_force_include_aggregation_keys"


def corpus_of(*courses: Json, **parts: Any) -> Json:
    empty: Json = {"programs": [], "pathways": [], "reviews": [], "customers": []}
    return {"courses": list(courses), **empty, **parts}


def many(number: int) -> Json:
    return corpus_of(*(course(f"edX+{i:04}") for i in range(number)))


def by_file(corpus: Json, content_filter: object, **kwargs: bool) -> Pulled:
    return search(read_corpus(json.dumps(corpus).encode(), "here"), content_filter, **kwargs)


def same(one: Pulled, other: Pulled) -> bool:
    def sets(pulled: Pulled) -> list[set[Item] | None]:
        found = (pulled.members, pulled.restricted, pulled.forced)
        assert all(items is None or len(set(items)) == len(items) for items in found)
        return [None if items is None else set(items) for items in found]

    return sets(one) == sets(other) and one.warnings == other.warnings


class Here:
    """A source over a fake, and what it has to find."""

    def __init__(self, fake: FakeDiscovery, source: DiscoverySource, clock: RecordingClock) -> None:
        self.fake = fake
        self.source = source
        self.clock = clock

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        return await self.source.pull(content_filter, since_ms=since_ms)

    async def keys(self, content_filter: object) -> list[str]:
        return [item.key for item in (await self.pull(content_filter)).members]

    async def refusal(self, content_filter: object) -> str:
        with pytest.raises(SourceError) as error:
            await self.pull(content_filter)
        message = str(error.value)
        assert SECRET not in message
        assert "very.secret" not in message
        assert not isinstance(error.value, Refused)
        return message
