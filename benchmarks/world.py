"""The world that is measured: 3,000 courses, 50 queries, 200 catalogs, a sidecar as a user starts it, and who asks it.

Authentication is `jwt`, with a token that the sidecar has seen before; everything else is as settings are without a
file. Made once per run: the build alone takes a quarter of a minute.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from benchmarks.callers import Caller, contains_target, questions, write_requests
from benchmarks.exchange import Answer, ask
from benchmarks.installation import CREATED, Installation, Json, RunningSidecar, write_content
from benchmarks.load import Target
from benchmarks.peers import Bare, Nginx, Redis
from benchmarks.processes import SERVER_CORE, Spoiled, children_of
from benchmarks.workload import catalogs, corpus
from indexer.compiler import Compiler, Texts
from indexer.mirror import Mirror
from indexer.registry import Registry, pulls
from sidecar.clock import SystemClock
from sidecar.contract.index import Index, index_references
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Record, open_record
from sidecar.store import Pointer
from sidecar.store.urls import open_store

COURSES: Final = 3_000
MEMBERS: Final = 200
"""How many sets, and members of each, redis-benchmark draws from."""


class World:
    """An installation with a generation in its store and a complete copy on disk; `sidecar` runs on the servers' core.

    Peers are started when they are first asked for, and end with the world.
    """

    def __init__(self, folder: Path, courses: int = COURSES) -> None:
        self.folder = folder
        self.caller = Caller(folder / "jwks.json")
        content = corpus(courses)
        self.definitions: Sequence[Json] = catalogs(content)
        corpus_file, definitions = write_content(folder, content, self.definitions)
        self.installation = Installation(folder / "installation", corpus_file, more=self.caller.settings)
        self.installation.indexer("catalogs", "add", str(definitions), "--created", CREATED)
        self.installation.indexer("build")
        self.catalogs = [str(body["uuid"]) for body in self.definitions]
        self._stack = ExitStack()
        self.sidecar = self.start_sidecar()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.sidecar.stop()

    def start_sidecar(self) -> RunningSidecar:
        """Starts a sidecar of this installation, and waits until it has all that it will have."""
        running = self.installation.sidecar(core=SERVER_CORE)
        running.wait_until_ready()
        running.wait_until_copied()
        self.sidecar = running
        return running

    def restart_sidecar(self) -> RunningSidecar:
        """A sidecar that has answered nothing yet, in place of the one that ran."""
        self.sidecar.stop()
        return self.start_sidecar()

    def wait_until_it_follows(self) -> None:
        """Until the sidecar serves what is published now."""
        published = str(asyncio.run(read_pointer(self.installation.store)).generation)
        target = contains_target(*self.questions[0])
        self.sidecar.wait_until(
            lambda: self.ask(target).headers["X-Catalog-Generation"] == published, f"generation {published} is served"
        )

    def ask(self, target: str) -> Answer:
        """Asks the sidecar, as its caller. Raises Spoiled if the answer is not a 200."""
        answer = ask(self.sidecar.port, self.caller.request(target))
        if answer.status != 200:
            raise Spoiled(f"GET {target}: {answer.status} {answer.body[:200]!r}")
        return answer

    @cached_property
    def pointer(self) -> Pointer:
        """What was published by the build."""
        return asyncio.run(read_pointer(self.installation.store))

    @cached_property
    def index(self) -> Index:
        """What was published, in this process: what questions are made of, and answers compared with."""
        return asyncio.run(_read_index(self.installation.store, self.pointer.digest))

    def read_mirror(self) -> tuple[Mirror, Texts]:
        """The indexer's mirror of the registry, as a new one, and all documents that its compiler wants."""
        return asyncio.run(_read_mirror(self.installation.folder / "registry.db"))

    @cached_property
    def questions(self) -> list[tuple[str, str]]:
        """Catalogs and keys to ask about: all catalogs, and keys of all kinds, contained and not."""
        return questions(self.catalogs, self.index.dictionary.keys)

    @cached_property
    def requests(self) -> Path:
        """The questions as requests, in a file. The sidecar was asked all of them, and its answers are right."""
        targets = [contains_target(catalog, key) for catalog, key in self.questions]
        said = [json.loads(self.ask(target).body)["contains_content_items"] for target in targets]
        truth = [self.contains(catalog, key) for catalog, key in self.questions]
        if said != truth or not 0.05 < sum(said) / len(said) < 0.95:
            wrong = sum(s is not t for s, t in zip(said, truth, strict=True))
            raise Spoiled(f"{wrong} of {len(said)} answers are wrong, {sum(said)} are yes")
        return write_requests(self.folder / "contains", [self.caller.request(target) for target in targets])

    def contains(self, catalog: str, key: str) -> bool:
        """Whether a catalog contains a key, by the index alone."""
        serving = self.index.catalogs[catalog].serving
        assert serving is not None
        assert serving.v1 is not None
        return self.index.dictionary.ordinals[key] in serving.v1.contained

    @property
    def contains_target(self) -> Target:
        """The sidecar as something that is asked the questions."""
        return self.target(self.requests)

    def target(self, requests: Path) -> Target:
        """The sidecar as something that is asked these requests."""
        return Target(self.sidecar.port, [self.sidecar.pid, *children_of(self.sidecar.pid)], requests)

    @cached_property
    def answer(self) -> Answer:
        """A containment answer, as peers give it too."""
        return self.ask(contains_target(*self.questions[0]))

    @cached_property
    def nginx(self) -> Nginx:
        return self._stack.enter_context(Nginx(self.folder, self.answer))

    @cached_property
    def bare(self) -> Bare:
        return self._stack.enter_context(Bare(self.folder, self.answer))

    @cached_property
    def redis(self) -> Redis:
        """With a set for each catalog: by its uuid, of the keys; by a number, of what redis-benchmark can ask for."""
        server = self._stack.enter_context(Redis(self.folder))
        keys = self.index.dictionary.keys
        sets: dict[str, list[str]] = {}
        for number, uuid in enumerate(self.catalogs):
            serving = self.index.catalogs[uuid].serving
            assert serving is not None
            assert serving.v1 is not None
            contained = [keys[ordinal] for ordinal in serving.v1.contained]
            asked = [f"course-v1:edX+{n:012d}" for n in range(0, MEMBERS, 2)]
            sets |= {uuid: contained, f"catalog:{number:012d}": contained + asked}
        server.add(sets)
        return server


async def read_pointer(path: Path) -> Pointer:
    """Where the pointer of a store in a file is; something must have been published."""
    store = open_store(f"sqlite:///{path}", writable=False)
    try:
        pointer = await store.pointer()
    finally:
        await store.close()
    assert pointer is not None
    return pointer


async def _read_index(path: Path, root: bytes) -> Index:
    store = open_store(f"sqlite:///{path}", writable=False)
    records: dict[bytes, Record] = {}
    layer = [(ObjectType.ROOT, root)]
    try:
        while layer:
            objects = await store.get([digest for _, digest in layer])
            opened = {digest: open_record(digest, objects[digest], kind) for kind, digest in layer}
            records |= opened
            references = (reference for record in opened.values() for reference in index_references(record))
            layer = [reference for reference in dict.fromkeys(references) if reference[1] not in records]
    finally:
        await store.close()
    return Index.assemble(root, records)


async def _read_mirror(path: Path) -> tuple[Mirror, Texts]:
    registry = Registry(f"sqlite+aiosqlite:///{path}", SystemClock())
    mirror = Mirror()
    try:
        await registry.open()
        async with registry.read() as connection:
            changes = await mirror.refresh(connection)
            texts = await pulls.texts(connection, Compiler(mirror).texts_needed(changes.hashes))
    finally:
        await registry.close()
    return mirror, texts
