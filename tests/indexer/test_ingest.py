"""What a pull changes: ordinals, facts, documents, members. No database: `Ledger` keeps what ingest says."""

import json
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from indexer.documents import item
from indexer.ingest import PLAIN, SHOWN, Facts, Ingested, Known, ingest, mentioned
from indexer.render import render
from indexer.source import Pulled, SourceError
from indexer.source.file import read_corpus, search
from sidecar.contract.words import ContentType
from tests.fakes import Json, course, program, run, uuid_of
from tests.indexer import scripts

COURSES = {"content_type": "course"}
RUNS = {"content_type": "courserun"}
NOW_MS = 1_800_000_000_000


def pulled(courses: list[Json], content_filter: Json, programs: tuple[Json, ...] = ()) -> Pulled:
    """What the filter finds in a corpus."""
    corpus = {"courses": courses, "programs": list(programs), "pathways": [], "reviews": [], "customers": []}
    return search(read_corpus(json.dumps(corpus).encode(), "test"), content_filter)


def allowing(*runs: str, **more: Any) -> Json:
    return {**COURSES, "restricted_runs_allowed": {"course:A+1": list(runs)}, **more}


class Ledger:
    """What the registry would hold, applied step by step; `known` gives out what `registry.pulls.known` would."""

    def __init__(self) -> None:
        self.facts: dict[str, Facts] = {}
        self.documents: dict[tuple[int, int], bytes] = {}
        self.texts: dict[tuple[int, int], Any] = {}
        self.last = Ingested()
        self.now_ms = NOW_MS

    def known(self, keys: set[str]) -> Known:
        mine = {self.facts[k].ordinal for k in keys if k in self.facts}
        facts = {k: f for k, f in self.facts.items() if k in keys or f.parent in mine}
        ordinals = {f.ordinal for f in facts.values()}
        documents = {at: d for at, d in self.documents.items() if at[0] in ordinals}
        return Known(facts, documents, len(self.facts))

    def take(self, found: Pulled) -> Ingested:
        self.now_ms += 1000
        done = self.last = ingest(found, self.known(mentioned(found)), self.now_ms)
        self.facts.update({f.key: f for f in done.facts})
        for at in done.outdated:
            del self.documents[at]
        for document in done.documents:
            self.documents[document.ordinal, document.variant] = document.digest
            self.texts[document.ordinal, document.variant] = json.loads(zstandard.decompress(document.body))["content"]
        return done

    def keys(self, bitmap: bytes | None) -> set[str]:
        assert bitmap is not None
        names = {f.ordinal: k for k, f in self.facts.items()}
        return {names[ordinal] for ordinal in BitMap.deserialize(bitmap)}

    def runs_in(self, key: str, variant: int) -> list[str]:
        return [r["key"] for r in self.texts[self.facts[key].ordinal, variant]["course_runs"]]


class TestOrdinals:
    def test_new_keys_get_the_next_ordinals_in_sorted_order_runs_and_parents_included(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("Z+1", run("r2")), course("A+1", run("r1"), run("r3"))], COURSES))
        assert [k for k, _ in sorted(ledger.facts.items(), key=lambda kf: kf[1].ordinal)] == [
            *("A+1", "Z+1", "r1", "r2", "r3"),
        ]
        ledger.take(pulled([course("B+1", run("r0")), course("A+1", run("r1"))], COURSES))
        assert [(k, ledger.facts[k].ordinal) for k in ("A+1", "r3", "B+1", "r0")] == [
            *(("A+1", 0), ("r3", 4), ("B+1", 5), ("r0", 6)),
        ]

    def test_a_parent_gets_an_ordinal_without_a_document(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"), indexed=("r1",))], RUNS))
        parent, child = ledger.facts["A+1"], ledger.facts["r1"]
        assert (parent.ordinal, parent.type, parent.metadata) == (0, ContentType.COURSE, None)
        assert (child.ordinal, child.type, child.parent) == (1, ContentType.COURSE_RUN, 0)
        assert ledger.keys(ledger.last.members) == {"r1"}

    def test_a_nested_run_is_known_without_a_document(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        child = ledger.facts["r1"]
        assert (child.parent, child.uuid, child.metadata) == (ledger.facts["A+1"].ordinal, uuid_of("r1"), None)
        assert child.active

    def test_every_type_has_its_own(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([], {}, programs=(program("P", "A+1"),)))
        assert ledger.facts[uuid_of("P")].type is ContentType.PROGRAM
        assert "A+1" not in ledger.facts

    def test_a_pull_of_nothing_has_no_members(self) -> None:
        done = Ledger().take(pulled([], COURSES))
        assert (done.facts, done.documents, done.rendered) == ([], [], [])
        assert not BitMap.deserialize(done.members)
        assert done.restricted_members is None


class TestFacts:
    def test_an_unchanged_pull_changes_nothing(self) -> None:
        ledger = Ledger()
        courses = [course("A+1", run("r1"), run("x1", restricted=True), indexed=("r1", "x1")), course("B+1")]
        for filter_ in ({}, allowing("x1"), {"enterprise_force_include_aggregation_keys": ["course:B+1"]}):
            ledger.take(pulled(courses, filter_))
        for filter_ in ({}, allowing("x1"), COURSES, {"enterprise_force_include_aggregation_keys": ["course:B+1"]}):
            done = ledger.take(pulled(courses, filter_))
            assert (done.facts, done.documents, done.outdated, done.rendered) == ([], [], [], [])

    def test_a_run_that_is_listed_no_more_stays_known_and_is_not_active(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"), run("r2"))], COURSES))
        before = ledger.facts["r2"]
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        assert before.active
        assert ledger.facts["r2"] == replace(before, active=False)
        assert ledger.facts["r1"].active

    def test_a_run_that_comes_back_is_active_again_under_its_ordinal(self) -> None:
        ledger = Ledger()
        both, one = [course("A+1", run("r1"), run("r2"))], [course("A+1", run("r1"))]
        ledger.take(pulled(both, COURSES))
        before = ledger.facts["r2"]
        ledger.take(pulled(one, COURSES))
        ledger.take(pulled(both, COURSES))
        assert ledger.facts["r2"] == before

    def test_a_run_that_ends_is_not_active(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        ledger.take(pulled([course("A+1", run("r1", active=False))], COURSES))
        assert not ledger.facts["r1"].active

    def test_a_pull_that_does_not_find_a_course_says_nothing_of_its_runs(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        ledger.take(pulled([course("B+1", run("r2"))], COURSES))
        assert ledger.facts["r1"].active

    @pytest.mark.parametrize("old, new", [("A+1", "B+1"), ("B+1", "A+1")])
    def test_a_run_that_moves_to_another_course_is_active_there(self, old: str, new: str) -> None:
        """Whichever of both courses the pull brings first."""
        ledger = Ledger()
        ledger.take(pulled([course(old, run("r1")), course(new)], COURSES))
        ledger.take(pulled([course(old), course(new, run("r1"))], COURSES))
        assert ledger.facts["r1"].parent == ledger.facts[new].ordinal
        assert ledger.facts["r1"].active

    def test_restriction_appears_and_disappears(self) -> None:
        ledger = Ledger()
        free, bound = [course("A+1", run("r1"))], [course("A+1", run("r1", restricted=True))]
        seen = []
        for courses, content_filter in ((free, COURSES), (bound, allowing("r1")), (free, COURSES)):
            ledger.take(pulled(courses, content_filter))
            seen.append(ledger.facts["r1"].restricted)
        assert seen == [False, True, False]

    def test_a_pull_that_may_not_see_restricted_runs_does_not_end_them(self) -> None:
        ledger = Ledger()
        courses = [course("A+1", run("r1"), run("x1", restricted=True))]
        ledger.take(pulled(courses, allowing("x1")))
        before = ledger.facts["x1"]
        ledger.take(pulled(courses, COURSES))
        assert ledger.facts["x1"] == before
        assert before.active

    def test_a_pull_that_may_see_them_does(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("x1", restricted=True))], allowing("x1")))
        ledger.take(pulled([course("A+1")], allowing("x1")))
        assert not ledger.facts["x1"].active
        assert ledger.facts["x1"].restricted

    def test_a_uuid_once_known_stays_known(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        ledger.take(pulled([course("A+1", run("r1") | {"uuid": None})], COURSES))
        assert ledger.facts["r1"].uuid == uuid_of("r1")

    @pytest.mark.parametrize(
        "second",
        [
            [course("A+1", run("B+1")), course("B+1", run("r2"))],
            [course("A+1", run("A+1"))],
            [course("B+1", run("A+1"))],
            [course("C+1", run("A+1"))],
            [course("r1", run("r9"))],
            [course("r1")],
        ],
    )
    def test_a_key_of_two_types_is_refused(self, second: list[Json]) -> None:
        """A parent that is no course would make readers refuse the whole generation."""
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        with pytest.raises(SourceError, match="speaks of it as a course"):
            ledger.take(pulled(second, COURSES))

    def test_a_run_whose_course_is_a_program_is_refused(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([], {}, programs=(program("P"),)))
        with pytest.raises(SourceError, match="program"):
            ledger.take(pulled([course(uuid_of("P"), run("r1"), indexed=("r1",))], RUNS))


class TestDocuments:
    def test_a_document_is_rendered_once_and_its_digest_is_a_fact(self) -> None:
        ledger = Ledger()
        done = ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        assert [r.digest for r in done.rendered] == [ledger.facts["A+1"].metadata]
        text = zstandard.decompress(next(d.body for d in done.documents))
        assert render("A+1", ContentType.COURSE, text) == done.rendered[0]
        assert ledger.facts["A+1"].modified_ms == ledger.now_ms

    def test_a_changed_document_moves_its_time_and_nothing_elses(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1")), course("B+1")], COURSES))
        before = dict(ledger.facts)
        done = ledger.take(pulled([course("A+1", run("r1"), title="New"), course("B+1")], COURSES))
        assert [f.key for f in done.facts] == ["A+1"]
        assert ledger.facts["A+1"].modified_ms == ledger.now_ms
        assert ledger.facts["A+1"].metadata != before["A+1"].metadata
        assert ledger.facts["B+1"] == before["B+1"]

    def test_the_time_of_a_change_is_later_than_the_last_one_also_by_a_clock_that_went_back(self) -> None:
        """Whoever asks for what has changed since would miss it."""
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"))], COURSES))
        before_ms = ledger.facts["A+1"].modified_ms
        ledger.now_ms -= 86_400_000
        ledger.take(pulled([course("A+1", run("r1"), title="New")], COURSES))
        assert ledger.facts["A+1"].modified_ms == before_ms + 1

    def test_a_course_with_restricted_runs_has_a_second_document(self) -> None:
        ledger = Ledger()
        courses = [course("A+1", run("r1"), run("x1", restricted=True)), course("B+1", run("r2"))]
        ledger.take(pulled(courses, allowing("x1")))
        assert ledger.runs_in("A+1", PLAIN) == ["r1"]
        assert ledger.runs_in("A+1", SHOWN) == ["r1", "x1"]
        assert [at for at in ledger.documents if at[1] == SHOWN] == [(ledger.facts["A+1"].ordinal, SHOWN)]
        assert {r.digest for r in ledger.last.rendered} == {ledger.facts[k].metadata for k in ("A+1", "B+1")}

    def test_the_second_document_goes_when_it_would_say_the_same(self) -> None:
        ledger = Ledger()
        ledger.take(pulled([course("A+1", run("r1"), run("x1", restricted=True))], allowing("x1")))
        done = ledger.take(pulled([course("A+1", run("r1"))], allowing("x1")))
        at = ledger.facts["A+1"].ordinal
        assert done.outdated == [(at, SHOWN)]
        assert set(ledger.documents) == {(at, PLAIN)}
        assert "A+1" in {f.key for f in done.facts}, "queries that showed it have to be compiled again"

    def test_a_course_that_only_a_restricted_search_finds_gets_a_plain_document_of_its_own(self) -> None:
        shown = pulled([course("A+1", run("r1"), run("x1", restricted=True))], allowing("x1")).restricted
        ledger = Ledger()
        ledger.take(Pulled(members=(), restricted=shown))
        assert ledger.runs_in("A+1", PLAIN) == ["r1"]
        assert ledger.runs_in("A+1", SHOWN) == ["r1", "x1"]

    def test_a_review_is_kept_and_rendered(self) -> None:
        made = course("A+1")
        first, second = (item(made["search"], made["full"], {"course_key": "A+1", "reviews_count": n}) for n in (1, 2))
        ledger = Ledger()
        ledger.take(Pulled((first,)))
        done = ledger.take(Pulled((second,)))
        assert (len(done.documents), len(done.facts), len(done.rendered)) == (1, 1, 1)

    def test_one_item_twice_in_a_pull_counts_once(self) -> None:
        found = pulled([course("A+1", run("r1"))], COURSES)
        ledger = Ledger()
        done = ledger.take(Pulled(members=found.members * 2, forced=found.members))
        assert len(done.documents) == len(done.rendered) == 1
        assert ledger.keys(done.members) == {"A+1"}


class TestMembers:
    def test_forced_courses_are_members_and_noted(self) -> None:
        ledger = Ledger()
        filter_ = {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1"]}
        done = ledger.take(pulled([course("A+1"), course("B+1", run("r1")), course("C+1")], filter_))
        assert ledger.keys(done.members) == {"A+1", "B+1"}
        assert ledger.keys(done.forced) == {"B+1"}
        assert done.restricted_members is None

    def test_a_restricted_search_has_members_of_its_own_forced_ones_included(self) -> None:
        ledger = Ledger()
        courses = [
            course("A+1", run("x1", restricted=True), run("x2", restricted=True), indexed=("x1", "x2")),
            course("B+1"),
        ]
        filter_ = {
            "org": "A",
            "restricted_runs_allowed": {"course:A+1": ["x1"]},
            "enterprise_force_include_aggregation_keys": ["course:B+1"],
        }
        done = ledger.take(pulled(courses, filter_))
        assert ledger.keys(done.members) == {"A+1", "B+1"}
        assert ledger.keys(done.restricted_members) == {"A+1", "B+1", "x1"}

    def test_what_a_pull_mentions_are_items_parents_and_nested_runs(self) -> None:
        found = pulled([course("A+1", run("r1"), run("r2"), indexed=("r1",)), course("B+1")], {})
        assert mentioned(found) == {"A+1", "B+1", "r1", "r2"}


KEYS = ["A+1", "B+1", "C+1"]
RUN_KEYS = [f"r{n}" for n in range(6)]


filters = st.sampled_from(
    [
        {},
        COURSES,
        RUNS,
        {"key": "B+1"},
        allowing("r0", "r1", "r2"),
        {**RUNS, "restricted_runs_allowed": {"course:A+1": ["r3"]}},
        {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1", "course:C+1"]},
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(scripts.corpora(KEYS, RUN_KEYS), filters), max_size=8))
def test_any_sequence_of_pulls_keeps_ordinals_stable_dense_and_unique(steps: list[tuple[list[Json], Json]]) -> None:
    ledger = Ledger()
    for courses, content_filter in steps:
        before = {k: f.ordinal for k, f in ledger.facts.items()}
        found = pulled(courses, content_filter)
        done = ledger.take(found)
        after = {k: f.ordinal for k, f in ledger.facts.items()}
        assert before.items() <= after.items()
        assert sorted(after.values()) == list(range(len(after)))
        new = sorted(after.keys() - before.keys())
        assert [after[k] for k in new] == list(range(len(before), len(after)))
        courses_known = {f.ordinal for f in ledger.facts.values() if f.type is ContentType.COURSE}
        for facts in ledger.facts.values():
            assert facts.parent is None or (facts.parent in courses_known and facts.type is ContentType.COURSE_RUN)
        forced = {i.key for i in found.forced}
        assert ledger.keys(done.members) == {i.key for i in found.members} | forced
        if found.restricted is not None:
            assert ledger.keys(done.restricted_members) == {i.key for i in found.restricted} | forced
        assert [f.ordinal for f in done.facts] == sorted(f.ordinal for f in done.facts)
        for facts in ledger.facts.values():
            text = ledger.texts.get((facts.ordinal, PLAIN))
            assert (facts.metadata is None) == (text is None)
        for at, variant in ledger.documents:
            assert variant == PLAIN or (at, PLAIN) in ledger.documents
        again = ledger.take(found)
        assert (again.facts, again.documents, again.outdated, again.rendered) == ([], [], [], [])
