"""The compiler: closure and listing as sets, what differs for a query, and that incremental equals anew."""

import asyncio
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from indexer.compiler import Compiler, allowed_runs, closure, unlisted
from indexer.mirror import Mirror, ResultRow
from indexer.registry import Registry, pulls
from sidecar.contract.index import Content, Index
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import ContentShard, Metadata, Root, open_record
from sidecar.contract.words import ContentType, PullState, query_hash
from sidecar.documents import written
from tests.fakes import FakeClock, FakeSource, Json, course, program, run, uuid_of
from tests.indexer import scripts
from tests.world import World, world

COURSES = {"content_type": "course"}
RUNS = {"content_type": "courserun"}


@dataclass(frozen=True)
class Facts:
    """Some content by name: each course with its runs, and which runs are what."""

    courses: Mapping[str, Sequence[str]]
    programs: Sequence[str] = ()
    restricted: Set[str] = field(default_factory=frozenset)
    active: Set[str] = field(default_factory=frozenset)

    @property
    def keys(self) -> list[str]:
        return sorted([*self.courses, *(r for runs in self.courses.values() for r in runs), *self.programs])

    def mirror(self) -> Mirror:
        mirror = Mirror()
        mirror.keys = self.keys
        mirror.ordinals = {key: n for n, key in enumerate(self.keys)}
        mirror.parents = [None] * len(self.keys)
        mirror.types = bytearray(ContentType.PROGRAM for _ in self.keys)
        for course_, runs in self.courses.items():
            mirror.courses.add(mirror.ordinals[course_])
            mirror.types[mirror.ordinals[course_]] = ContentType.COURSE
            for run_ in runs:
                at = mirror.ordinals[run_]
                mirror.runs.add(at)
                mirror.types[at] = ContentType.COURSE_RUN
                mirror.parents[at] = mirror.ordinals[course_]
                mirror.runs_of.setdefault(mirror.ordinals[course_], set()).add(at)
        mirror.restricted = self.ordinals(mirror, self.restricted)
        mirror.active = self.ordinals(mirror, self.active)
        return mirror

    def ordinals(self, mirror: Mirror, keys: Set[str]) -> BitMap:
        return BitMap([mirror.ordinals[key] for key in keys])

    def contained(self, members: Set[str], hidden: Set[str]) -> set[str]:
        """By the words of the definition."""
        found = set(members)
        for course_, runs in self.courses.items():
            if course_ in members:
                found |= set(runs) - hidden
            if members & set(runs):
                found.add(course_)
        return found

    def listed(self, members: Set[str], hidden: Set[str], forced: Set[str]) -> set[str]:
        return {
            key
            for key in members
            if key not in self.courses or key in forced or (set(self.courses[key]) & self.active) - hidden
        }


def names(mirror: Mirror, ordinals: BitMap) -> set[str]:
    return {mirror.keys[ordinal] for ordinal in ordinals}


def contained(facts: Facts, members: Set[str], hidden: Set[str] = frozenset()) -> set[str]:
    mirror = facts.mirror()
    return names(mirror, closure(mirror, facts.ordinals(mirror, members), facts.ordinals(mirror, hidden)))


class TestClosure:
    facts = Facts({"A": ["a1", "a2"], "B": ["b1"], "C": []}, programs=["P"], restricted={"a2"})

    def test_a_member_course_brings_its_runs(self) -> None:
        assert contained(self.facts, {"A"}) == {"A", "a1", "a2"}

    def test_a_member_run_brings_its_course_and_never_a_sibling(self) -> None:
        assert contained(self.facts, {"a1"}) == {"A", "a1"}

    def test_a_hidden_run_is_not_brought(self) -> None:
        assert contained(self.facts, {"A"}, {"a2"}) == {"A", "a1"}

    def test_a_hidden_run_that_is_a_member_is_one(self) -> None:
        assert contained(self.facts, {"a2"}, {"a2"}) == {"A", "a2"}

    def test_programs_and_courses_without_runs_bring_nothing(self) -> None:
        assert contained(self.facts, {"P", "C"}) == {"P", "C"}

    def test_nothing_contains_nothing(self) -> None:
        assert contained(self.facts, frozenset()) == set()


@st.composite
def contents(draw: st.DrawFn) -> Facts:
    courses = {f"C{n}": [f"c{n}r{m}" for m in range(draw(st.integers(0, 3)))] for n in range(draw(st.integers(0, 5)))}
    runs = [r for its in courses.values() for r in its]
    some = st.sets(st.sampled_from(runs)) if runs else st.just(set())
    return Facts(courses, [f"P{n}" for n in range(draw(st.integers(0, 2)))], draw(some), draw(some))


@settings(max_examples=300, deadline=None)
@given(contents(), st.data())
def test_sets_are_those_of_the_definition(facts: Facts, data: st.DataObject) -> None:
    some = st.sets(st.sampled_from(facts.keys)) if facts.keys else st.just(set())
    members, forced = data.draw(some), data.draw(some)
    allowed = {key for key in data.draw(some) if key in facts.restricted}
    hidden = set(facts.restricted) - allowed
    mirror = facts.mirror()
    at = facts.ordinals
    found = closure(mirror, at(mirror, members), at(mirror, hidden))
    assert names(mirror, found) == facts.contained(members, hidden)
    found = at(mirror, members) - unlisted(mirror, at(mirror, members), at(mirror, hidden), at(mirror, forced))
    assert names(mirror, found) == facts.listed(members, hidden, forced)


class TestListing:
    facts = Facts({"A": ["a1", "a2"], "B": ["b1"], "C": []}, ["P"], restricted={"a2"}, active={"a2"})

    def listed(self, members: Set[str], hidden: Set[str] = frozenset(), forced: Set[str] = frozenset()) -> set[str]:
        mirror, at = self.facts.mirror(), self.facts.ordinals
        left_out = unlisted(mirror, at(mirror, members), at(mirror, hidden), at(mirror, forced))
        assert left_out <= at(mirror, members)
        return names(mirror, at(mirror, members) - left_out)

    def test_courses_without_an_active_run_are_left_out(self) -> None:
        assert self.listed({"A", "B", "C"}) == {"A"}

    def test_an_active_run_that_the_query_must_not_see_does_not_count(self) -> None:
        assert self.listed({"A"}, hidden={"a2"}) == set()

    def test_a_forced_course_is_listed_whatever_its_runs(self) -> None:
        assert self.listed({"A", "B", "C"}, forced={"B", "C"}) == {"A", "B", "C"}

    def test_runs_and_programs_are_listed_whatever_they_are(self) -> None:
        assert self.listed({"b1", "P"}) == {"b1", "P"}


class TestAllowedRuns:
    facts = Facts({"A": ["a1", "a2", "a3"]}, restricted={"a1", "a2"})

    def allowed(self, content_filter: Json, *, searched: bool = True) -> set[str]:
        mirror = self.facts.mirror()
        row = ResultRow(
            hash=b"",
            content_filter=json.dumps(content_filter),
            state=PullState.FRESH,
            members=BitMap(),
            restricted_members=BitMap() if searched else None,
            forced=BitMap(),
            pulled_at_ms=0,
            task=None,
        )
        return names(mirror, allowed_runs(mirror, row))

    def test_are_those_of_the_filter_that_are_known_and_restricted(self) -> None:
        allowed = {"restricted_runs_allowed": {"course:A": ["a1", "a3", "unknown"]}}
        assert self.allowed(allowed) == {"a1"}
        assert self.allowed({"restricted_runs_allowed": {"course:Other": ["a2"]}}) == {"a2"}

    def test_are_none_where_no_restricted_search_was_made(self) -> None:
        """A source may be told to pull none; and a filter that is no object allows none."""
        assert self.allowed({"restricted_runs_allowed": {"course:A": ["a1"]}}, searched=False) == set()


def source_of(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


def keys(index: Index, ordinals: BitMap) -> set[str]:
    return {index.dictionary.keys[o] for o in ordinals}


def sets(index: Index, content: Content | None) -> tuple[set[str], set[str], set[str]]:
    assert content is not None
    return keys(index, content.members), keys(index, content.contained), keys(index, content.listed)


async def document(here: World, index: Index, key: str, overrides: Sequence[tuple[int, bytes]] = ()) -> Any:
    """The document of a key as a query with these overrides shows it."""
    ordinal = index.dictionary.ordinals[key]
    digest = dict(overrides).get(ordinal)
    if digest is None:
        shards = index.content
        objects = await here.store.get(shards)
        shard = open_record(shards[ordinal // 512], objects[shards[ordinal // 512]], ObjectType.CONTENT)
        assert isinstance(shard, ContentShard)
        digest = shard.metadata[ordinal % 512]
    assert digest is not None
    record = open_record(digest, (await here.store.get([digest]))[digest], ObjectType.METADATA)
    assert isinstance(record, Metadata)
    assert record.key == key
    return json.loads(b"".join(written(record, 0, None)))


class TestAPublishedQuery:
    async def test_has_members_contained_and_listed(self, here: World) -> None:
        source_of(here).courses = [course("A+1", run("a1")), course("B+1", run("b1", active=False)), course("C+1")]
        source_of(here).programs = [program("P")]
        await here.add("courses", COURSES)
        await here.add("runs", {"key": "b1"})
        source_of(here).courses[1] = course("B+1", run("b1", active=False), indexed=("b1",))
        await here.build()
        index = await here.index()
        found = index.queries[query_hash(COURSES)]
        assert sets(index, found.v1) == ({"A+1", "B+1", "C+1"}, {"A+1", "B+1", "C+1", "a1", "b1"}, {"A+1"})
        assert found.v2 is found.v1
        found = index.queries[query_hash({"key": "b1"})]
        assert sets(index, found.v1) == ({"b1"}, {"B+1", "b1"}, {"b1"})

    async def test_that_was_never_pulled_has_no_content(self, here: World) -> None:
        await here.add("a", COURSES)
        await here.publish()
        index = await here.index()
        found = index.queries[query_hash(COURSES)]
        assert (found.v1, found.v2, found.state, found.pulled_at_ms) == (None, None, PullState.DUE, None)
        assert index.catalogs[uuid_of("catalog a")].serving is None

    async def test_whose_pull_failed_keeps_its_content_and_says_so(self, here: World, clock: FakeClock) -> None:
        source_of(here).courses = [course("A+1", run("a1"))]
        await here.add("a", COURSES)
        await here.build()
        pulled_ms = clock.wall_ms
        clock.advance(100)
        source_of(here).courses = []
        await scripts.take(here, source_of(here), clock, ("fail", (0, False)))
        await here.publish()
        index = await here.index()
        found = index.queries[query_hash(COURSES)]
        assert sets(index, found.v1)[0] == {"A+1"}
        assert (found.state, found.pulled_at_ms) == (PullState.FAILING, pulled_ms)

    async def test_that_is_no_object_contains_nothing_and_is_served(self, here: World) -> None:
        source_of(here).courses = [course("A+1")]
        await here.add("a", ["no", "object"])
        await here.build()
        index = await here.index()
        catalog = index.catalogs[uuid_of("catalog a")]
        assert catalog.serving is not None
        assert sets(index, catalog.serving.v1) == (set(), set(), set())
        assert (catalog.serving.state, catalog.serving.pulled_at_ms) == (PullState.UNPULLABLE, None)

    async def test_changed_in_place_is_beside_the_one_that_is_still_served(self, here: World) -> None:
        source_of(here).courses = [course("A+1"), course("B+1")]
        query = {"catalog_query_uuid": uuid_of("q"), "query_title": "t"}
        await here.add("a", {"key": "A+1"}, **query)
        await here.build()
        await here.add("b", {"key": "B+1"}, **query)
        await here.publish()
        index = await here.index()
        catalog = index.catalogs[uuid_of("catalog a")]
        assert catalog.serving is not None
        assert (catalog.wanted.hash, catalog.serving.hash) == (query_hash({"key": "B+1"}), query_hash({"key": "A+1"}))
        old, new = catalog.serving.record, catalog.wanted.record
        assert (old.id, old.uuid, old.title, json.loads(old.content_filter)) == (None, None, None, {"key": "A+1"})
        assert (new.title, new.v1) == ("t", None)
        assert sets(index, catalog.serving.v1)[0] == {"A+1"}
        await here.build()
        index = await here.index()
        assert set(index.queries) == {query_hash({"key": "B+1"})}

    async def test_that_no_catalog_uses_any_more_has_a_record_without_content(self, here: World) -> None:
        source_of(here).courses = [course("A+1")]
        await here.add("a", COURSES)
        await here.build()
        await here.remove(uuid_of("catalog a"))
        await here.publish()
        index = await here.index()
        assert index.catalogs == {}
        assert index.queries[query_hash(COURSES)].v1 is None
        await here.add("a", COURSES)
        await here.publish()
        index = await here.index()
        assert sets(index, index.queries[query_hash(COURSES)].v1)[0] == {"A+1"}


class TestRestrictedRuns:
    filter: ClassVar[Json] = {**COURSES, "restricted_runs_allowed": {"course:A+1": ["x1"]}}

    async def build(self, here: World, *more: object) -> Index:
        source_of(here).courses = [
            course(
                "A+1", run("a1", active=False), run("x1", restricted=True), run("x2", restricted=True), indexed=("x1",)
            ),
            course("B+1", run("x3", restricted=True)),
        ]
        for n, content_filter in enumerate((self.filter, *more)):
            await here.add(f"{n}", content_filter)
        await here.build()
        return await here.index()

    async def test_are_contained_in_v2_alone_and_only_where_allowed(self, here: World) -> None:
        index = await self.build(here)
        found = index.queries[query_hash(self.filter)]
        assert sets(index, found.v1) == ({"A+1", "B+1"}, {"A+1", "B+1", "a1"}, set())
        assert sets(index, found.v2) == ({"A+1", "B+1"}, {"A+1", "B+1", "a1", "x1"}, {"A+1"})

    async def test_are_members_where_their_own_documents_match(self, here: World) -> None:
        filter_ = {**RUNS, "restricted_runs_allowed": {"course:A+1": ["x1", "x2"]}}
        index = await self.build(here, filter_)
        found = index.queries[query_hash(filter_)]
        assert sets(index, found.v1) == (set(), set(), set())
        assert sets(index, found.v2) == ({"x1"}, {"A+1", "x1"}, {"x1"})

    async def test_are_shown_in_documents_by_overrides_of_v2(self, here: World) -> None:
        index = await self.build(here, COURSES)
        record = index.queries[query_hash(self.filter)].record
        assert record.overrides_v1 == ()
        assert [index.dictionary.keys[o] for o, _ in record.overrides_v2] == ["A+1"]
        shown = await document(here, index, "A+1", record.overrides_v2)
        assert [r["key"] for r in shown["course_runs"]] == shown["course_run_keys"] == ["a1", "x1"]
        plain = await document(here, index, "A+1")
        assert [r["key"] for r in plain["course_runs"]] == ["a1"]
        assert index.queries[query_hash(COURSES)].record.overrides_v2 == ()

    async def test_that_are_restricted_no_more_are_everybodys(self, here: World) -> None:
        await self.build(here, COURSES)
        source_of(here).courses[0] = course("A+1", run("a1", active=False), run("x1"))
        await here.build()
        index = await here.index()
        assert "x1" in sets(index, index.queries[query_hash(COURSES)].v1)[1]
        assert index.queries[query_hash(self.filter)].record.v2 is None
        assert index.queries[query_hash(self.filter)].record.overrides_v2 == ()

    async def test_that_have_become_restricted_are_nobodys_elses_once_that_is_known(self, here: World) -> None:
        """Another query's pull has brought the news; the plain one is compiled again without one of its own."""
        source_of(here).courses = [course("A+1", run("x1"), run("a1"))]
        await here.add("plain", COURSES, query_title="plain")
        await here.add("allowing", self.filter, query_title="allowing")
        await here.build()
        source_of(here).courses = [course("A+1", run("x1", restricted=True), run("a1"))]
        await here.pull("allowing")
        await here.publish()
        index = await here.index()
        assert sets(index, index.queries[query_hash(COURSES)].v1)[1] == {"A+1", "a1"}
        assert sets(index, index.queries[query_hash(self.filter)].v2)[1] == {"A+1", "a1", "x1"}


class TestForcedCourses:
    filter: ClassVar[Json] = {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:A+1", "course:B+1"]}

    async def test_are_members_listed_and_shown_as_open(self, here: World) -> None:
        source_of(here).courses = [course("A+1", run("a1")), course("B+1", run("b1", active=False)), course("C+1")]
        await here.add("a", self.filter)
        await here.build()
        index = await here.index()
        found = index.queries[query_hash(self.filter)]
        assert sets(index, found.v1) == ({"A+1", "B+1"}, {"A+1", "B+1", "a1", "b1"}, {"A+1", "B+1"})
        assert [index.dictionary.keys[o] for o, _ in found.record.overrides_v1] == ["A+1", "B+1"]
        shown = await document(here, index, "B+1", found.record.overrides_v1)
        assert [(r["status"], r["availability"]) for r in shown["course_runs"]] == [("published", "Current")]
        assert shown["enterprise_force_included"] is True
        plain = await document(here, index, "B+1")
        assert plain["course_runs"][0]["status"] == "archived"
        assert "enterprise_force_included" not in plain

    async def test_with_allowed_restricted_runs_show_both(self, here: World) -> None:
        filter_ = {**self.filter, "restricted_runs_allowed": {"course:B+1": ["x1"]}}
        source_of(here).courses = [
            course("A+1", run("a1")),
            course("B+1", run("b1", active=False), run("x1", restricted=True), run("x2", restricted=True)),
        ]
        await here.add("allowing", {**COURSES, "restricted_runs_allowed": {"course:B+1": ["x1"]}})
        await here.add("a", filter_)
        await here.build()
        index = await here.index()
        record = index.queries[query_hash(filter_)].record
        shown = await document(here, index, "B+1", record.overrides_v2)
        assert [(r["key"], r["status"]) for r in shown["course_runs"]] == [("b1", "published"), ("x1", "published")]
        plain = await document(here, index, "B+1", record.overrides_v1)
        assert [(r["key"], r["status"]) for r in plain["course_runs"]] == [("b1", "published")]


async def compiled_anew(registry: Registry) -> Root:
    """The root that a compiler makes of the registry which has never seen it before."""
    mirror = Mirror()
    compiler = Compiler(mirror)
    async with registry.read() as connection:
        await mirror.refresh(connection)
        changes = mirror.everything()
        outdated = compiler.outdated(changes)
        texts = await pulls.texts(connection, compiler.texts_needed(outdated))
    for _ in compiler.update(changes, outdated, texts):
        pass
    return compiler.root(epoch=1, generation=1, published_at_ms=0, parent=None)


def below(root: Root) -> dict[str, Any]:
    names = ("clock", "dictionary", "content", "queries", "freshness", "catalogs", "customers", "counts")
    return {name: getattr(root, name) for name in names}


@settings(max_examples=40, deadline=None)
@given(script=scripts.steps())
def test_publishing_after_every_step_ends_where_compiling_anew_does(
    template: Path, script: Sequence[scripts.Step]
) -> None:
    """And what is published last is what the source and the registry say, worked out here over sets of keys."""

    async def play(folder: Path) -> None:
        source, clock = FakeSource(), FakeClock()
        async with world(scripts.copy(template, folder), source, clock=clock) as here:
            await here.publish()
            for step in script:
                await scripts.take(here, source, clock, step)
                await here.publish()
            anew = await compiled_anew(here.registry)
            assert below((await here.index()).root) == below(anew)

    with TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder) / "play"))
