"""kill -9 of the indexer, at every step of a build: the next start publishes, and `check` finds nothing.

`tests.kill_driver` says what a step is. `pytest -rP` tells how many there are.
"""

import asyncio
import json
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from indexer import tree
from indexer.catalog_body import read_catalog
from indexer.check import check
from indexer.registry import Registry, catalogs
from indexer.status import status
from sidecar.clock import SystemClock
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import FreshnessShard
from sidecar.contract.words import PullState
from sidecar.errors import StoreError
from sidecar.settings import Settings
from sidecar.store import Pointer
from sidecar.store.sqlite import SqliteStore
from tests.fakes import Json, catalog_body, course, customer, program, run, uuid_of
from tests.kill_driver import KEPT
from tests.world import load

HERE = Path(__file__).resolve().parent.parent
AT_ONCE = 8
HOUR_MS = 3_600_000
T0_MS = 1_800_000_000_000
DEADLINE_S = 60.0
MOMENTS = (("leading", 1), ("pulled", 1), ("pulled", 2), ("published", 1))
OF_ONE_RUN = {"clock", "task", "failures"}
RESTRICTED_RUN = "course-v1:edX+A+restricted"
ASKED: dict[str, Json] = {
    "courses": {"content_type": "course"},
    "courses too": {"content_type": "course"},
    "allowed": {"org": "edX", "restricted_runs_allowed": {"course:edX+A": [RESTRICTED_RUN]}},
    "programs": {"content_type": "program"},
    "unpullable": {"q": "free text"},
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a folder holds: what must be as if nothing had happened, and what tells how it went."""

    pointer: Pointer | None
    same: dict[str, Any]
    named: dict[int, bytes]
    moved: set[int]
    pulls: dict[str, str]
    epoch: int
    holder: str | None


class Builders:
    """Builds on request, some at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free = asyncio.Semaphore(AT_ONCE)

    async def build(self, folder: Path, now_ms: int, deadly: int = 0, *, command: str = "build") -> int:
        """Builds in a folder, or does something else there, and dies at a step; how that ended."""
        async with self._free, asyncio.timeout(DEADLINE_S):
            answer, request = await asyncio.open_connection("127.0.0.1", self._port)
            request.write(f"{deadly} {now_ms} {command} {folder}\n".encode())
            ended = int(await answer.readline())
            request.close()
            await request.wait_closed()
            return ended


@pytest.fixture
async def builders() -> AsyncIterator[Builders]:
    process = await _python("-m", "tests.kill_driver")
    assert process.stdout is not None
    try:
        yield Builders(int(await process.stdout.readline()))
    finally:
        await process.communicate(b"")


# What a folder is like before the build that gets killed; each returns the date of that build.


async def nothing(folder: Path, builders: Builders) -> int:
    """No registry yet, no store, and nobody has asked for anything."""
    write_corpus(folder, 0)
    return T0_MS


async def first(folder: Path, builders: Builders) -> int:
    """Catalogs that were never pulled: two share a query, one has a filter that nothing can evaluate."""
    write_corpus(folder, 0)
    await add(folder, *ASKED.items())
    return T0_MS


async def later(folder: Path, builders: Builders) -> int:
    """Three generations, of which the sweep of the fourth build deletes the first; content and catalogs change."""
    await first(folder, builders)
    for hour in range(3):
        write_corpus(folder, hour)
        assert await builders.build(folder, T0_MS + hour * HOUR_MS) == 0
    write_corpus(folder, 3)
    async with registry_of(folder) as registry, registry.write() as tx:
        await catalogs.remove(tx, uuid_of("catalog programs"), "test")
        row = await catalogs.find(tx.connection, uuid_of("catalog allowed"))
        assert row is not None
        edited = {**catalogs.as_body(row), "uuid": uuid_of("catalog new"), "content_filter": {"org": "edX"}}
        await catalogs.create(tx, read_catalog(edited), "test")
    return T0_MS + 4 * HOUR_MS


@pytest.mark.parametrize("begin", [nothing, first, later])
async def test_whatever_step_a_build_is_killed_at_the_next_start_publishes_a_whole_tree(
    begin: Callable[[Path, Builders], Awaitable[int]],
    builders: Builders,
    tmp_path: Path,
) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    now_ms = await begin(prepared, builders)
    undisturbed = shutil.copytree(prepared, tmp_path / "undisturbed")
    assert await builders.build(undisturbed, now_ms) == 0
    steps = (undisturbed / "steps").read_text().splitlines()
    wanted = await look(undisturbed)
    print(f"{begin.__name__}: {len(steps)} steps")

    async def die(at: int) -> None:
        folder = shutil.copytree(prepared, tmp_path / f"{at}")
        assert await builders.build(folder, now_ms, at) == -signal.SIGKILL
        assert (folder / "steps").read_text().splitlines() == steps[:at]
        dead = await look(shutil.copytree(folder, tmp_path / f"{at} dead"))  # a copy: who looks, repairs
        assert await builders.build(folder, now_ms) == 0
        await compare(dead, folder, wanted)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"{at} dead")

    died = await asyncio.gather(*(die(at) for at in range(1, len(steps) + 1)), return_exceptions=True)
    failed = [f"{at}, {steps[at - 1]}: {error!r:.500}" for at, error in enumerate(died, start=1) if error is not None]
    assert failed == []


async def to_roll_back(folder: Path, builders: Builders) -> int:
    """Generations that differ, to the last but one of which readers are to go back."""
    return await later(folder, builders)


async def to_unpin(folder: Path, builders: Builders) -> int:
    """Readers were sent back, and two generations wait behind the pin."""
    now_ms = await later(folder, builders)
    assert await builders.build(folder, now_ms, command="rollback") == 0
    assert await builders.build(folder, now_ms) == 0
    return now_ms + HOUR_MS


@pytest.mark.parametrize("command, begin", [("rollback", to_roll_back), ("unpin", to_unpin)])
async def test_whatever_step_a_wish_is_killed_at_the_next_leader_makes_it_come_true(
    command: str, begin: Callable[[Path, Builders], Awaitable[int]], builders: Builders, tmp_path: Path
) -> None:
    """Or it was never made: readers see what the registry says that they are to see, and the wish and its reason go
    together.
    """
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    now_ms = await begin(prepared, builders)
    before = await shown(prepared)
    undisturbed = shutil.copytree(prepared, tmp_path / "undisturbed")
    assert await builders.build(undisturbed, now_ms, command=command) == 0
    steps = (undisturbed / "steps").read_text().splitlines()
    wished = await shown(undisturbed)
    assert wished.pin != before.pin
    assert wished.decisions == before.decisions + 1
    print(f"{command}: {len(steps)} steps")

    async def die(at: int) -> None:
        folder = shutil.copytree(prepared, tmp_path / f"{at}")
        assert await builders.build(folder, now_ms, at, command=command) == -signal.SIGKILL
        dead = await shown(shutil.copytree(folder, tmp_path / f"{at} dead"))
        assert dead.tree in (before.tree, wished.tree)
        assert (dead.pin, dead.decisions) in ((before.pin, before.decisions), (wished.pin, wished.decisions))
        assert await builders.build(folder, now_ms) == 0
        alive = await shown(folder)
        assert (alive.pin, alive.decisions) == (dead.pin, dead.decisions)
        assert alive.number >= dead.number
        if alive.pin is not None:
            assert alive.tree == (wished if command == "rollback" else before).tree
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"{at} dead")

    died = await asyncio.gather(*(die(at) for at in range(1, len(steps) + 1)), return_exceptions=True)
    failed = [f"{at}, {steps[at - 1]}: {error!r:.500}" for at, error in enumerate(died, start=1) if error is not None]
    assert failed == []


@dataclass(frozen=True, slots=True)
class Shown:
    """What readers of a folder see: the number, all that the root says but for its names; and what was wished."""

    number: int
    tree: object
    pin: int | None
    decisions: int


async def shown(folder: Path) -> Shown:
    """Reads a folder, whose published tree must be whole."""
    with closing(sqlite3.connect(folder / "registry.db")) as registry:
        (pin,) = registry.execute("SELECT pinned FROM state").fetchone()
        (decisions,) = registry.execute("SELECT count(*) FROM decision").fetchone()
    async with store_of(folder) as store:
        pointer = await store.pointer()
        assert pointer is not None
        assert (await check(store)).problems == []
        root = (await load(store)).root
    return Shown(
        pointer.generation, replace(root, epoch=0, generation=0, published_at_ms=0, parent=None), pin, decisions
    )


async def compare(dead: Seen, folder: Path, wanted: Seen) -> None:
    """Whether a folder after the second start is as if the first had not been killed, which left it as `dead`."""
    alive = await look(folder)
    assert alive.same == wanted.same
    assert alive.epoch > dead.epoch
    assert alive.holder is None
    assert alive.pointer is not None
    assert dead.pointer is None or alive.pointer == dead.pointer or alive.pointer[:2] > dead.pointer[:2]
    assert alive.named.items() >= dead.named.items()
    # Somebody waits for what he has asked for: the next leader goes on under its id.
    under_way = {task for task, state in dead.pulls.items() if state == "running"}
    assert {alive.pulls[task] for task in under_way} <= {"passed", "failed"}
    assert {"requested", "running", "abandoned"}.isdisjoint(alive.pulls.values())
    # Whoever has loaded what the killed build published, or was about to replace, can go on reading it; and what was
    # shown is known to have been.
    async with store_of(folder) as store:
        if dead.pointer is not None:
            assert (await check(store, dead.pointer)).problems == []
            assert dead.pointer.generation in alive.moved
        for number in sorted(alive.moved)[-KEPT:]:
            assert await tree.references(store, alive.named[number]) & doomed(folder) == set()


async def look(folder: Path) -> Seen:
    """Reads a folder; the tree that its pointer names must be whole, and one that the registry knows."""
    with closing(sqlite3.connect(folder / "registry.db")) as registry:
        if not registry.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchall():
            return Seen(None, {}, {}, set(), {}, 0, None)  # it died before it had made a registry
        registry.row_factory = sqlite3.Row
        same: dict[str, Any] = {
            table: [
                {name: value for name, value in dict(row).items() if name not in OF_ONE_RUN}
                for row in registry.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            ]
            for table in ("catalog", "catalog_query", "customer", "content", "document", "result")
        }
        pulls = {row["task"]: row["state"] for row in registry.execute("SELECT task, state FROM pull")}
        named = {row["generation"]: row["digest"] for row in registry.execute("SELECT * FROM generation")}
        moved = {row["generation"] for row in registry.execute("SELECT * FROM generation WHERE moved")}
        epoch, holder = registry.execute("SELECT epoch, holder FROM state").fetchone()
    async with store_of(folder) as store:
        try:
            pointer = await store.pointer()
        except StoreError:
            pointer = None  # the store was not made yet
        if pointer is not None:
            assert (await check(store)).problems == []
            assert named[pointer.generation] == pointer.digest
            index = await load(store)
            same["root"] = replace(index.root, epoch=0, generation=0, clock=0, parent=None, freshness={})
            same["freshness"] = [
                replace(record, task_id=None)
                for digest in index.shards[ObjectType.FRESHNESS].values()
                if isinstance(shard := index.records[digest], FreshnessShard)
                for record in shard.records
            ]
    return Seen(pointer, same, named, moved, pulls, epoch, holder)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_service_that_is_killed_again_and_again_has_published_everything_in_the_end(
    seed: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(seed)
    write_corpus(tmp_path, 0)
    await add(tmp_path, ("allowed", ASKED["allowed"]), ("programs", ASKED["programs"]))
    for start in range(3):
        write_corpus(tmp_path, start)
        newest = {"org": ["edX", f"{start}"]}
        await add(
            tmp_path, (f"start {start}", newest), (f"again {start}", newest), (f"no {start}", {"org": f"{start}"})
        )
        async with serving(tmp_path) as events:
            await heard(events, *chance.choice(MOMENTS))
        await look(shutil.copytree(tmp_path, tmp_path_factory.mktemp("dead"), dirs_exist_ok=True))
    await add(tmp_path, ("last", {"key": ["edX+A"]}))
    async with serving(tmp_path) as events:
        while True:
            await heard(events, "published", 1)
            async with registry_of(tmp_path) as registry:
                now = await status(registry, Settings())
            if now.behind == 0 and now.status == "ok":
                break
    seen = await look(tmp_path)
    assert seen.same["root"].counts["catalogs"] == len(seen.same["catalog"]) == 12
    assert all(query["serving"] == query["hash"] for query in seen.same["catalog_query"])
    assert {record.state for record in seen.same["freshness"]} == {PullState.FRESH}


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """The real service in a folder, and the lines that it logs; in the end it is killed."""
    config = folder / "config.toml"
    config.write_text(f"""
        [store]\nurl = "sqlite:///{folder}/store.db"
        [registry]\nurl = "sqlite+aiosqlite:///{folder}/registry.db"
        [source]\npath = "{folder}/corpus.json"
        [indexer]\nport = 0\nlease_s = 1.0
        [log]\nformat = "json"
    """)
    process = await _python("-m", "indexer", "serve", "--config", str(config), errors=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process.stderr
    finally:
        process.kill()
        await process.communicate()
    assert process.returncode == -signal.SIGKILL


async def heard(lines: asyncio.StreamReader, event: str, times: int) -> None:
    """Returns as soon as an event was logged so many times."""
    while times and (line := await lines.readline()):
        times -= json.loads(line)["event"] == event
    assert times == 0


async def _python(*arguments: str, errors: int | None = None) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=HERE, stdin=pipe, stdout=pipe, stderr=errors
    )


@asynccontextmanager
async def registry_of(folder: Path) -> AsyncIterator[Registry]:
    """The registry of a folder, as it is."""
    registry = Registry(f"sqlite+aiosqlite:///{folder}/registry.db", SystemClock())
    try:
        yield registry
    finally:
        await registry.close()


@asynccontextmanager
async def store_of(folder: Path) -> AsyncIterator[SqliteStore]:
    """The store of a folder, as a sidecar reads it."""
    store = SqliteStore(folder / "store.db", writable=False)
    try:
        yield store
    finally:
        await store.close()


async def add(folder: Path, *asked: tuple[str, Json]) -> None:
    """Adds catalogs of these titles and content filters."""
    async with registry_of(folder) as registry:
        await registry.open()
        async with registry.write() as tx:
            for title, content_filter in asked:
                await catalogs.create(tx, read_catalog(catalog_body(title, content_filter)), "test")


def write_corpus(folder: Path, version: int) -> None:
    """Writes what there is to pull; versions differ in titles, in members, and in who has which run."""
    a_runs = [run("course-v1:edX+A+1"), run(RESTRICTED_RUN, restricted=True), run(f"course-v1:edX+A+v{version}")]
    courses = [
        course("edX+A", *a_runs, indexed=(RESTRICTED_RUN,), title=f"A, version {version}"),
        course("edX+B", run("course-v1:edX+B+1", active=version % 2 == 0), indexed=("course-v1:edX+B+1",)),
        course(f"MITx+C{version}", run(f"course-v1:MITx+C{version}+1"), title=f"Only in version {version}"),
        course("MITx+D", title="No runs"),
    ]
    corpus = {
        "courses": courses,
        "programs": [program("Program", "edX+A", f"MITx+C{version}"), program(f"Program {version}", "MITx+D")],
        "pathways": [],
        "reviews": [],
        "customers": [{**customer("Acme"), "slug": f"acme-{version}"}],
    }
    (folder / "corpus.json").write_text(json.dumps(corpus))


def doomed(folder: Path) -> set[bytes]:
    """The objects of a folder's store that a sweep will delete once they have been without use for long enough."""
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        rows = connection.execute("SELECT digest FROM objects WHERE unreferenced_ms IS NOT NULL")
        return {digest for (digest,) in rows}
