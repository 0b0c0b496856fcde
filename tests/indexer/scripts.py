"""Scripts for laws about the indexer: catalogs made and removed, content changed, pulls and failures, in any order."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog_body import read_catalog
from indexer.registry import Registry, RegistryError, catalogs, pulls
from indexer.source import SourceError, Unpullable
from sidecar.errors import CatalogError
from tests.fakes import FakeClock, Json, course, customer, program, run, uuid_of
from tests.world import World

COURSES: Final = ("A+1", "B+1", "C+1", "D+1")
RUNS: Final = tuple(f"r{n}" for n in range(7))
FILTERS: Final[tuple[Any, ...]] = (
    {},
    {"content_type": "course"},
    {"content_type": "courserun"},
    {"content_type": "program"},
    {"key": "B+1"},
    {"org": ["A", "C"]},
    {"key": "r1"},
    {"content_type": "course", "restricted_runs_allowed": {"course:A+1": ["r0", "r1"]}},
    {"restricted_runs_allowed": {"course:B+1": ["r2", "r3", "r4"]}},
    {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1", "course:D+1"]},
    {"restricted_runs_allowed": {"course:A+1": ["r5"]}, "enterprise_force_include_aggregation_keys": ["course:A+1"]},
    {"key": []},
    {"q": "only Elasticsearch knows"},
    ["no object"],
)
CATALOGS: Final = tuple("uvwxyz")
Step = tuple[str, tuple[Any, ...]]


@st.composite
def corpora(draw: st.DrawFn, courses: Sequence[str] = COURSES, runs: Sequence[str] = RUNS) -> list[Json]:
    """Some courses; a run is of one of them, and may be of another one in the next corpus."""
    owned = draw(
        st.lists(
            st.tuples(
                st.sampled_from(courses),
                st.builds(run, st.sampled_from(runs), active=st.booleans(), restricted=st.booleans()),
            ),
            unique_by=lambda pair: str(pair[1]["key"]),
        )
    )
    indexed = tuple(draw(st.sets(st.sampled_from(runs))))
    return [
        course(key, *(r for owner, r in owned if owner == key), indexed=indexed, title=draw(st.sampled_from("ab")))
        for key in draw(st.sets(st.sampled_from(courses)))
    ]


def steps() -> st.SearchStrategy[Sequence[Step]]:
    """What may happen, one after the other."""
    title, query = st.sampled_from(CATALOGS), st.sampled_from((None, "p", "q"))
    return st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.tuples(title, st.sampled_from(FILTERS), query)),
            st.tuples(st.just("remove"), st.tuples(title)),
            st.tuples(st.just("again"), st.tuples(title, st.sampled_from(FILTERS))),
            st.tuples(st.just("content"), st.tuples(corpora(), st.integers(0, 2))),
            st.tuples(st.just("pull"), st.tuples(st.integers(0, 5))),
            st.tuples(st.just("pull all"), st.just(())),
            st.tuples(st.just("fail"), st.tuples(st.integers(0, 5), st.booleans())),
            st.tuples(st.just("customers"), st.tuples(st.sets(st.sampled_from(("Acme", "Other"))))),
            st.tuples(st.just("time"), st.just(())),
        ),
        min_size=3,
        max_size=14,
    )


async def take(here: World, source: Any, clock: FakeClock, step: Step) -> None:
    """Lets one thing happen. What the registry refuses does not happen."""
    match step:
        case "add", (title, content_filter, query):
            more = {} if query is None else {"catalog_query_uuid": uuid_of(query)}
            await _try_to_add(here, title, content_filter, more)
        case "remove", (title,):
            await _try_to_remove(here, title)
        case "again", (title, content_filter):
            await _remove_and_add(here, title, content_filter)
        case "content", (courses, programs):
            source.courses = courses
            source.programs = [program(f"P{n}", "A+1") for n in range(programs)]
        case "pull", (number,):
            await pull_one(here, number)
        case "pull all", ():
            await here.pull()
        case "fail", (number, unpullable):
            source.failure = Unpullable("never") if unpullable else SourceError("not now")
            await pull_one(here, number)
            source.failure = None
        case "customers", (names,):
            source.customers = [customer(name) for name in sorted(names)]
            await here.pipeline.details(here.epoch, clock.now_ms())
        case "time", ():
            clock.advance(3600)
        case _:
            raise AssertionError(step)


async def pull_one(here: World, number: int) -> None:
    """Pulls one of the filters that are wanted, if any is."""
    async with here.registry.read() as connection:
        targets = await pulls.targets(connection)
    if targets:
        await here.pipeline.pull(targets[number % len(targets)], "demand", here.epoch)


async def _try_to_add(here: World, title: str, content_filter: object, more: Json) -> None:
    with suppress(CatalogError):
        await here.add(title, content_filter, of="Acme" if title < "x" else "Other", **more)


async def _try_to_remove(here: World, title: str) -> None:
    with suppress(CatalogError):
        await here.remove(uuid_of(f"catalog {title}"))


async def _remove_and_add(here: World, title: str, content_filter: object) -> None:
    """In one transaction: no reader ever sees that the catalog was away."""
    async with here.registry.read() as connection:
        row = await catalogs.find(connection, uuid_of(f"catalog {title}"))
    if row is None:
        return
    changed = {**catalogs.as_body(row), "content_filter": content_filter, "catalog_query_uuid": None}
    async with here.registry.write() as tx:
        await catalogs.remove(tx, row.uuid, "test")
        await catalogs.create(tx, read_catalog(changed), "test")


async def migrated(path: Path) -> Path:
    """The folder, with a migrated, empty registry in it."""
    registry = Registry(f"sqlite+aiosqlite:///{path}/registry.db", FakeClock())
    await registry.open()
    await registry.close()
    return path


def copy(template: Path, to: Path) -> Path:
    """The folder, with a copy of the template's registry in it; made if it is not there."""
    shutil.copytree(template, to, dirs_exist_ok=True)
    return to


class FlakyRegistry(Registry):
    """A registry of which the transactions with these numbers fail, counted from when it is told so."""

    failing: frozenset[int] = frozenset()
    count = 0

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self._look()
        async with super().read() as connection:
            yield connection

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        self._look()
        async with super().plain() as connection:
            yield connection

    def _look(self) -> None:
        self.count += 1
        if self.count in self.failing:
            raise RegistryError("out of reach")


class GoneRegistry(Registry):
    """A registry that is out of reach."""

    def __init__(self) -> None:
        super().__init__("sqlite+aiosqlite:////no/such/folder/registry.db", FakeClock())

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self._fail()
        async with super().read() as connection:
            yield connection

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        self._fail()
        async with super().plain() as connection:
            yield connection

    def _fail(self) -> None:
        raise RegistryError("registry: out of reach")


class SilentRegistry(Registry):
    """A registry that says nothing while `silent` is set, and whose driver does not let go of whoever waits for it."""

    def __init__(self, url: str, clock: FakeClock) -> None:
        super().__init__(url, clock)
        self.silent = False
        self.answers = asyncio.Event()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        await self._wait()
        async with super().read() as connection:
            yield connection

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        await self._wait()
        async with super().plain() as connection:
            yield connection

    def answer(self) -> None:
        """Lets go of everybody."""
        self.silent = False
        self.answers.set()

    async def _wait(self) -> None:
        cancelled = False
        while self.silent:
            try:
                await self.answers.wait()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
