"""Whatever it is pulled from, the same content is published as the same objects, byte for byte."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest

from indexer.catalog_body import read_catalog
from indexer.registry import catalogs
from indexer.source import Source
from indexer.source.file import FileSource
from sidecar.contract.objects import HEADER, ObjectType
from sidecar.store.memory import MemoryStore
from tests.discovery import COURSES, PROGRAMS, REVIEWS, SEARCH, RecordingClock, served, source_over
from tests.fakes import FakeClock
from tests.world import world

GOLDEN: Final = Path(__file__).parent / "contract" / "golden"
SAME: Final = (ObjectType.SEGMENT, ObjectType.BITMAP, ObjectType.QUERIES, ObjectType.CATALOGS, ObjectType.METADATA)


async def published(path: Path, source: Source, clock: FakeClock) -> dict[ObjectType, set[bytes]]:
    """The digests of what a first build of the golden definitions publishes, by type."""
    store = MemoryStore()
    definitions: Any = json.loads((GOLDEN / "definitions.json").read_bytes())
    async with world(path, source, store, clock) as here:
        async with here.registry.write() as tx:
            for entry in definitions["catalogs"]:
                await catalogs.create(tx, read_catalog(entry["body"]), "test", clock.now_ms())
        assert all(await here.pull())
        await here.publish()
    found: dict[ObjectType, set[bytes]] = defaultdict(set)
    for digest, data in store.objects.items():
        found[ObjectType(HEADER.unpack_from(data)[2])].add(digest)
    return found


async def test_discovery_and_a_file_of_its_corpus_give_the_same_objects(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The golden corpus has restricted runs, and definitions that allow them."""
    corpus = GOLDEN / "corpus.json"
    from_file = await published(tmp_path_factory.mktemp("file"), FileSource(corpus), FakeClock())
    clock = RecordingClock()
    async with served(json.loads(corpus.read_bytes())) as fake, source_over(fake, clock) as source:
        from_discovery = await published(tmp_path_factory.mktemp("discovery"), source, clock)
        requests = [fake.times(path) for path in (SEARCH, COURSES, PROGRAMS, REVIEWS)]
    for kind in SAME:
        assert from_discovery[kind] == from_file[kind], kind
        assert from_file[kind], kind
    # Twelve filters, one of them once more with restricted runs; each document once for each of these two views.
    assert requests == [13, 3, 1, 1]
