"""The file source: what is found in a corpus, what is refused, and that another version of the file is noticed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from indexer.source import Pulled, SourceError, Unpullable
from indexer.source.file import FileSource, read_corpus, search
from sidecar.contract.words import ContentType
from tests.fakes import Json, course, customer, program, run, uuid_of

COURSES = {"content_type": "course"}


def corpus(*courses: Json, **parts: Any) -> Json:
    empty: Json = {"programs": [], "pathways": [], "reviews": [], "customers": []}
    return {"courses": list(courses), **empty, **parts}


def write(path: Path, content: Json) -> Path:
    (path / "corpus.json").write_text(json.dumps(content))
    return path / "corpus.json"


def found(content: Json, content_filter: object) -> list[str]:
    return [i.key for i in search(read_corpus(json.dumps(content).encode(), "here"), content_filter).members]


class TestSearching:
    def test_finds_every_kind_of_content(self) -> None:
        pathway = {"uuid": uuid_of("w"), "aggregation_key": f"learnerpathway:{uuid_of('w')}", "content_type": "x"}
        content = corpus(
            course("A+1", run("a1"), indexed=("a1",)), programs=[program("P")], pathways=[{"search": pathway}]
        )
        pulled = search(read_corpus(json.dumps(content).encode(), "here"), {})
        assert {i.type: i.key for i in pulled.members} == {
            ContentType.COURSE: "A+1",
            ContentType.COURSE_RUN: "a1",
            ContentType.PROGRAM: uuid_of("P"),
            ContentType.PATHWAY: uuid_of("w"),
        }
        assert (pulled.restricted, pulled.forced, pulled.warnings) == (None, (), ())

    def test_finds_in_order_of_aggregation_key_and_start(self) -> None:
        content = corpus(course("B+1"), course("A+1", run("a2"), run("a1"), indexed=("a1", "a2")))
        content["courses"][1]["runs"][0]["start"] = "2027-01-01"
        content["courses"][1]["runs"][1]["start"] = "2026-01-01"
        assert found(content, {}) == ["A+1", "B+1", "a1", "a2"]

    def test_leaves_out_what_is_not_let_in(self) -> None:
        content = corpus(course("A+1", course_type="bootcamp-2u"), course("B+1", product_source="other"), course("C+1"))
        assert found(content, COURSES) == ["C+1"]

    def test_shows_restricted_runs_only_to_a_filter_that_allows_some_and_as_members_only_those(self) -> None:
        content = corpus(
            course("A+1", run("a1"), run("x1", restricted=True), run("x2", restricted=True), indexed=("a1", "x1", "x2"))
        )
        filter_: Json = {"restricted_runs_allowed": {"course:A+1": ["x1"]}}
        pulled = search(read_corpus(json.dumps(content).encode(), "here"), filter_)
        assert [i.key for i in pulled.members] == ["A+1", "a1"]
        assert [r.key for r in pulled.members[0].runs] == ["a1"]
        assert pulled.restricted is not None
        assert [i.key for i in pulled.restricted] == ["A+1", "a1", "x1"]
        assert [r.key for r in pulled.restricted[0].runs] == ["a1", "x1", "x2"]
        assert search(read_corpus(json.dumps(content).encode(), "here"), {}).restricted is None
        none: Json = {"restricted_runs_allowed": {"course:A+1": []}}
        assert search(read_corpus(json.dumps(content).encode(), "here"), none).restricted is None

    def test_adds_forced_courses_and_warns_of_those_that_do_not_exist(self) -> None:
        filter_ = {"key": "A+1", "enterprise_force_include_aggregation_keys": ["course:B+1", "course:None"], "typo": 1}
        pulled = search(read_corpus(json.dumps(corpus(course("A+1"), course("B+1"))).encode(), "here"), filter_)
        assert [i.key for i in pulled.members] == ["A+1"]
        assert [i.key for i in pulled.forced] == ["B+1"]
        assert pulled.warnings == (
            "key 'typo' is unknown to search/all and ignored",
            "force-included course 'None' does not exist",
        )

    @pytest.mark.parametrize(
        "content_filter",
        [
            None,
            [],
            "x",
            {"q": "x"},
            {"published": "perhaps"},
            {"restricted_runs_allowed": []},
            {"enterprise_force_include_aggregation_keys": "course:A"},
        ],
    )
    def test_refuses_a_filter_for_good(self, content_filter: object) -> None:
        with pytest.raises(Unpullable):
            found(corpus(course("A+1")), content_filter)

    def test_overlays_the_full_document_and_the_review(self) -> None:
        content = corpus(course("A+1"), reviews=[{"course_key": "A+1", "reviews_count": 7}])
        (entry,) = search(read_corpus(json.dumps(content).encode(), "here"), COURSES).members
        assert json.loads(entry.text)["review"]["reviews_count"] == 7


class TestWrongShapes:
    @pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"nonsense", b'{"courses": NaN}'])
    def test_what_is_no_json_is_refused(self, text: bytes) -> None:
        with pytest.raises(SourceError, match=r"^here: not JSON: "):
            read_corpus(text, "here")

    @pytest.mark.parametrize("content", [[], 5, None, {}, corpus() | {"courses": {}}, corpus() | {"customers": None}])
    def test_what_has_not_the_lists_is_refused(self, content: object) -> None:
        with pytest.raises(SourceError, match="a corpus is an object with the lists courses, programs"):
            read_corpus(json.dumps(content).encode(), "here")

    @pytest.mark.parametrize(
        "content",
        [
            corpus({}),
            corpus(5),  # type: ignore[arg-type]
            corpus({"search": [], "full": {}, "runs": []}),
            corpus(course("A+1") | {"runs": None}),
            corpus(course("A+1") | {"runs": [5]}),
            corpus(course("A+1") | {"full": 5}),
            corpus(course("")),
            corpus(course("A+1", aggregation_key="person:p")),
            corpus(course("A+1", aggregation_key=5)),
            corpus({**course("A+1"), "full": {"course_runs": [5]}}),
            corpus({**course("A+1"), "full": {"course_runs": 5}}),
            corpus({**course("A+1"), "full": {"course_runs": [{"key": None}]}}),
            corpus(programs=[{}]),
            corpus(programs=["p"]),
            corpus(pathways=[{"search": None}]),
            corpus(reviews=[{}]),
            corpus(customers=[{}]),
            corpus(customers=["Acme"]),
            corpus(customers=[customer("Acme") | {"uuid": "Acme"}]),
            corpus(customers=[customer("Acme") | {"uuid": None}]),
            corpus(customers=[customer("Acme") | {"slug": None}]),
            corpus(customers=[customer("Acme") | {"name": 5}]),
            corpus(customers=[customer("Acme") | {"modified": 5}]),
            corpus(customers=[customer("Acme") | {"enable_learner_portal": "yes"}]),
        ],
    )
    def test_a_document_of_another_shape_is_refused_with_the_place(self, content: Json) -> None:
        with pytest.raises(SourceError, match=r"^here: "):
            read_corpus(json.dumps(content).encode(), "here")


class TestTheFile:
    async def test_is_read_once_for_each_of_its_versions(self, tmp_path: Path) -> None:
        path = write(tmp_path, corpus(course("A+1")))
        source = FileSource(path)
        first = await source.pull(COURSES)
        assert (await source.pull(COURSES)).members[0] is first.members[0]
        write(tmp_path, corpus(course("A+1"), course("B+1")))
        assert [i.key for i in (await source.pull(COURSES)).members] == ["A+1", "B+1"]
        await source.close()

    async def test_of_the_same_size_and_another_time_is_another_version(self, tmp_path: Path) -> None:
        path = write(tmp_path, corpus(course("A+1")))
        source = FileSource(path)
        await source.pull(COURSES)
        write(tmp_path, corpus(course("B+1")))
        os.utime(path, ns=(1, 1))
        assert [i.key for i in (await source.pull(COURSES)).members] == ["B+1"]

    async def test_that_is_replaced_by_nonsense_fails_until_it_is_mended(self, tmp_path: Path) -> None:
        path = write(tmp_path, corpus(course("A+1")))
        source = FileSource(path)
        await source.pull(COURSES)
        path.write_text("{")
        for _ in range(2):
            with pytest.raises(SourceError, match="not JSON"):
                await source.pull(COURSES)
        write(tmp_path, corpus(course("A+1")))
        assert len((await source.pull(COURSES)).members) == 1

    async def test_that_has_vanished_or_never_was_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path, corpus(course("A+1")))
        source = FileSource(path)
        await source.pull(COURSES)
        path.unlink()
        for ask in (source.pull(COURSES), source.customer(uuid_of("Acme"))):
            with pytest.raises(SourceError, match=r"^source\.path .*corpus\.json: No such file or directory$"):
                await ask
        with pytest.raises(SourceError, match="Is a directory"):
            await FileSource(tmp_path).pull(COURSES)

    async def test_has_customers_by_any_spelling_of_their_uuid(self, tmp_path: Path) -> None:
        shouted = customer("Other") | {"uuid": uuid_of("Other").upper()}
        source = FileSource(write(tmp_path, corpus(customers=[customer("Acme"), shouted])))
        acme, other = [await source.customer(uuid_of(name)) for name in ("Acme", "Other")]
        assert acme is not None
        assert (acme.slug, acme.name, acme.portal) == ("acme", "Acme", True)
        assert other is not None
        assert other.uuid == uuid_of("Other")
        assert await source.customer(uuid_of("nobody")) is None


class TestRestrictedRuns:
    """Restricted runs are shown where a filter allows them, and where the settings look for them at all."""

    def pulled(self, *, restricted_runs: bool = True) -> Pulled:
        content = corpus(course("edX+A", run("a1"), run("a2", restricted=True)))
        content_filter = {
            "key": ["edX+None"],
            "restricted_runs_allowed": {"course:edX+A": ["a2"]},
            "enterprise_force_include_aggregation_keys": ["course:edX+A"],
        }
        read = read_corpus(json.dumps(content).encode(), "here")
        return search(read, content_filter, restricted_runs=restricted_runs)

    def test_are_shown_of_a_course_that_the_filter_forces_in(self) -> None:
        pulled = self.pulled()
        assert [[r.key for r in item.runs] for item in pulled.restricted or ()] == [["a1", "a2"]]
        assert [[r.key for r in item.runs] for item in pulled.forced] == [["a1"]]

    def test_are_not_looked_for_where_the_settings_say_so(self) -> None:
        assert self.pulled(restricted_runs=False).restricted is None
