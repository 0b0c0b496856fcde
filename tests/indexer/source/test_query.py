"""Content filters on their way to discovery: what is sent, what is refused, and the courses that they force in."""

import json

import pytest

from indexer.source import Pulled, Unpullable
from sidecar.contract.words import ContentType
from tests.discovery import (
    SEARCH,
)
from tests.fakes import Json, course, run, uuid_of
from tests.indexer.source.pulling import FORCED, Here


class TestFilters:
    async def test_are_sent_without_what_is_ours(self, here: Here) -> None:
        await here.pull({"org": ["edX"], FORCED: [], "restricted_runs_allowed": {}, "typo": "ü"})
        sent = [asked for asked in here.fake.asked if asked.path == SEARCH]
        assert json.loads(sent[0].body) == {"org": ["edX"], "typo": "ü"}
        assert sent[0].query == {
            "page": "1",
            "page_size": "100",
            "ordering": "aggregation_key,start",
            "exclude_expired_course_run": "True",
            "include_learner_pathways": "True",
        }

    async def test_that_only_discovery_understands_are_its_business(self, here: Here, corpus: Json) -> None:
        corpus["courses"].append(course("A+1", title="Quantum physics"))
        pulled = await here.pull({"q": "Quantum", "typo": 1})
        assert [item.key for item in pulled.members] == ["A+1"]
        assert pulled.warnings == ("key 'typo' is unknown to search/all and ignored",)

    async def test_that_discovery_does_not_take_are_unpullable(self, here: Here) -> None:
        with pytest.raises(Unpullable, match=r"^discovery does not take the content filter: .*published = 'perhaps'"):
            await here.pull({"published": "perhaps"})
        assert here.fake.times(SEARCH) == 1

    @pytest.mark.parametrize(
        "content_filter",
        [None, [], "x", 5, {"restricted_runs_allowed": []}, {FORCED: "course:A"}, {"start__gt": []}],
    )
    async def test_of_another_shape_are_unpullable_and_not_sent(self, here: Here, content_filter: object) -> None:
        with pytest.raises(Unpullable):
            await here.pull(content_filter)
        assert here.fake.asked == []

    @pytest.mark.parametrize("content_filter", [{"key": []}, {"q": []}, {"org": [], "published": True}])
    async def test_with_an_emptied_list_find_nothing_and_are_not_sent(self, here: Here, content_filter: Json) -> None:
        assert await here.pull(content_filter) == Pulled(())
        assert here.fake.asked == []

    async def test_leave_persons_out_but_count_them(self, here: Here, corpus: Json) -> None:
        corpus["persons"] = [
            {"uuid": uuid_of("p"), "aggregation_key": f"person:{uuid_of('p')}", "content_type": "person"}
        ]
        assert len(await here.keys({})) == 250


class TestForcedCourses:
    async def test_are_looked_for_only_if_the_filter_does_not_find_them(self, here: Here) -> None:
        content_filter = {"key": "edX+0001", FORCED: ["course:edX+0001", "course:edX+0002"]}
        pulled = await here.pull(content_filter)
        assert [item.key for item in pulled.forced] == ["edX+0001", "edX+0002"]
        bodies = [json.loads(asked.body) for asked in here.fake.asked if asked.path == SEARCH]
        assert bodies == [{"key": "edX+0001"}, {"aggregation_key": ["course:edX+0002"]}]
        assert pulled.requests == here.fake.upstream() == 2 + 1 + 1

    async def test_that_search_all_does_not_have_come_from_courses(self, here: Here, corpus: Json) -> None:
        hidden = course("A+1", run("a1"))
        corpus["courses"].append(hidden)
        here.fake.spoil = lambda request, answer: (
            answer | {"count": 0, "results": []} if request.path == SEARCH else answer
        )
        pulled = await here.pull({"key": "no+such", FORCED: ["course:A+1", "course:None", "course:a,b"]})
        assert pulled.warnings == (
            "force-included course 'None' does not exist",
            "force-included course 'a,b' does not exist",
        )
        (forced,) = pulled.forced
        assert (forced.key, forced.type, forced.uuid) == ("A+1", ContentType.COURSE, uuid_of("A+1"))
        assert [r.key for r in forced.runs] == ["a1"]
        assert json.loads(forced.text)["content"] == hidden["full"] | {
            "aggregation_key": "course:A+1",
            "content_type": "course",
        }
        assert here.fake.asked[-2].query["keys"] == "A+1,None"

    async def test_that_come_from_courses_alone_are_let_in_or_not_like_others(self, here: Here, corpus: Json) -> None:
        hidden = course("A+1")
        hidden["full"]["course_type"] = "bootcamp-2u"
        corpus["courses"].append(hidden)
        here.fake.spoil = lambda request, answer: (
            answer | {"count": 0, "results": []} if request.path == SEARCH else answer
        )
        pulled = await here.pull({"key": "no+such", FORCED: ["course:A+1"]})
        assert (pulled.forced, len(pulled.warnings)) == ((), 1)
