"""A process that publishes generations which lie ready in a store, one every few seconds, until it is stopped.

    python -m benchmarks.mover STORE.db POINTERS.json EVERY_S

For each move it writes a line: when it began, in ns of the machine's monotonic clock. `Mover` is the other side of it.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.generations import Generations
from benchmarks.processes import LOAD_CORE, Process
from benchmarks.world import World
from indexer.compiler import Texts
from indexer.mirror import Mirror
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Metadata, open_record, seal_record
from sidecar.store import Pointer
from sidecar.store.urls import open_store

DOCUMENTS: Final = 50
"""From the documents of so many ordinals those that change are drawn."""


class Mover:
    """Generations of a world that lie ready in its store."""

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self._file = world.folder / "pointers.json"
        self._pointers = asyncio.run(_prepare(world, count, *world.read_mirror()))
        self.moves_ns: list[int] = []

    @contextmanager
    def moving(self, every_s: float) -> Iterator[None]:
        """The pointer moves while the body runs; `moves_ns` has when, afterwards."""
        self._file.write_text(json.dumps([(p.epoch, p.generation, p.digest.hex()) for p in self._pointers]))
        command = [sys.executable, "-m", "benchmarks.mover", str(self._world.installation.store), str(self._file)]
        log = self._world.folder / "moves"
        log.write_bytes(b"")
        with Process([*command, f"{every_s:g}"], core=LOAD_CORE, log=log) as process:
            process.wait_until(log.read_bytes, "the pointer has moved once")
            yield
        self.moves_ns = [int(line) for line in log.read_text().split()]
        del self._pointers[: len(self.moves_ns)]

    def restore(self) -> None:
        """Publishes what was built, as the newest generation: other questions ask about that."""
        asyncio.run(_publish(self._world, self._pointers[-1].generation + 1))


async def _publish(world: World, generation: int) -> None:
    store = open_store(f"sqlite:///{world.installation.store}", writable=True)
    try:
        sealed = seal_record(replace(world.index.root, generation=generation))
        await store.put([sealed])
        await store.move(Pointer(world.index.root.epoch, generation, sealed.digest))
    finally:
        await store.close()


async def _prepare(world: World, count: int, mirror: Mirror, texts: Texts) -> list[Pointer]:
    store = open_store(f"sqlite:///{world.installation.store}", writable=True)
    try:
        digests = {o: d for o, d in enumerate(mirror.metadata[:DOCUMENTS]) if d is not None}
        found = await store.get(digests.values())
        documents = {}
        for ordinal, digest in digests.items():
            document = open_record(digest, found[digest], ObjectType.METADATA)
            assert isinstance(document, Metadata)
            documents[ordinal] = document
        generations = Generations(mirror, texts, documents, world.pointer)
        pointers = []
        for _ in range(count):
            pointer, objects = generations.next()
            await store.put(objects)
            pointers.append(pointer)
    finally:
        await store.close()
    return pointers


async def _move(path: str, pointers: list[Pointer], every_s: float) -> None:
    store = open_store(f"sqlite:///{path}", writable=True)
    due = time.monotonic()
    for pointer in pointers:
        await asyncio.sleep(due - time.monotonic())
        due += every_s
        print(time.monotonic_ns(), flush=True)
        await store.move(pointer)
    raise SystemExit("all generations are published: more of them were needed")


if __name__ == "__main__":
    STORE, POINTERS, EVERY_S = sys.argv[1:]
    MOVES = [Pointer(e, g, bytes.fromhex(d)) for e, g, d in json.loads(Path(POINTERS).read_text())]
    asyncio.run(_move(STORE, MOVES, float(EVERY_S)))
