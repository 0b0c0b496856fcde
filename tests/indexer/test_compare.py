"""Two services compared over HTTP: equals are equal, and what the other one says else is found and named."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from indexer.compare import GIVE_UP, GIVEN_UP, LOGGED_A_ROUND, Comparing, Comparison, compare
from indexer.judge import Kind, Outcome, Question, Verdict
from indexer.metrics import Metrics
from indexer.wiring import Parts
from sidecar.settings import CompareSettings, Settings
from tests.fakes import FakeClock, FakeSource, Json
from tests.neighbour import Answer, Proxy, neighbour
from tests.sidecar.replayed import Rig, replaying
from tests.tokens import StillClock, settings, token_of

SEED = 7
HERE = "/enterprise-catalogs/"


class Here:
    """Our instance, and another one behind a proxy."""

    def __init__(self, ours: Rig, proxy: Proxy) -> None:
        self.ours = ours
        self.proxy = proxy
        self.clock = FakeClock()
        self.settings = Settings(
            compare=CompareSettings(url=proxy.url, base=str(ours.client.make_url("")), per_second=50.0)
        )

    async def compare(self, *, token: str = "", seed: int = SEED, catalogs: int = 6) -> Comparison:
        told = Comparison(seed)
        store = self.ours.store
        await compare(self.settings, store, self.clock, told, told.note, token=token, catalogs=catalogs)
        return told

    def comparing(self, metrics: Metrics) -> Comparing:
        world = self.ours.world
        return Comparing(Parts(self.settings, self.clock, world.registry, self.ours.store, FakeSource()), metrics)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    async with replaying(tmp_path / "ours") as ours, neighbour(tmp_path / "theirs") as (_, proxy):
        yield Here(ours, proxy)


def found(told: Comparison) -> dict[Kind, set[str]]:
    """Where differences are that nothing explains, without what is between blanks and dots: keys and places."""
    places: dict[Kind, set[str]] = {}
    for question, verdict in told.unexplained:
        for finding in verdict.unexplained:
            places.setdefault(question.kind, set()).add(finding.at)
    return places


class TestEquals:
    async def test_differ_in_nothing(self, here: Here) -> None:
        told = await here.compare(catalogs=15)
        assert told.as_json()["unexplained"] == []
        assert told.as_json()["not_compared"] == []
        assert told.is_sound
        assert set(told.kinds) == set(Kind)
        assert told.total(Outcome.EQUAL) == sum(count.asked for count in told.kinds.values()) > 500

    async def test_are_asked_the_same_with_the_same_seed_and_else_something_else(self, here: Here) -> None:
        asked = []
        for seed in (SEED, SEED, 8):
            here.proxy.asked.clear()
            await here.compare(seed=seed, catalogs=2)
            asked.append(list(here.proxy.asked))
        assert asked[0] == asked[1] != asked[2]

    async def test_are_asked_at_a_pace(self, here: Here) -> None:
        began_s = here.clock.monotonic()
        told = await here.compare(catalogs=1)
        asked = sum(count.asked for count in told.kinds.values())
        assert here.clock.monotonic() - began_s == pytest.approx((asked - 1) / 50)

    async def test_that_want_tokens_are_given_the_same_one(self, tmp_path: Path) -> None:
        clock = StillClock()
        for name in ("ours", "theirs"):
            (tmp_path / name).mkdir()
        auth = settings(tmp_path)
        async with (
            replaying(tmp_path / "ours", clock=clock, auth=auth) as ours,
            neighbour(tmp_path / "theirs", clock=clock, auth=auth) as (_, proxy),
        ):
            it = Here(ours, proxy)
            token = token_of("superuser", clock.now_ms())
            told = await it.compare(token=token, catalogs=1)
            assert told.total(Outcome.EQUAL) == sum(count.asked for count in told.kinds.values())
            assert set(proxy.tokens) == {f"JWT {token}"}
            nobody = await it.compare(catalogs=1)
            assert (nobody.total(Outcome.EQUAL), nobody.is_sound) == (0, False)
            learner = await it.compare(token=token_of("learner_all", clock.now_ms()), catalogs=1)
            assert learner.kinds[Kind.CATALOGS].outcomes == {Outcome.NOT_COMPARED: 1}
            assert learner.total(Outcome.UNEXPLAINED) == 0


def no_member(value: Json) -> None:
    value["contains_content_items"] = False


def all_members(value: Json) -> None:
    value["contains_content_items"] = True


def other_title(value: Json) -> None:
    value["results"][0]["title"] += "!"


def without_a_document(value: Json) -> None:
    del value["results"][:1]


def other_links(value: Json) -> None:
    for document in value["results"]:
        document["enrollment_url"] = "https://elsewhere.example.test/"


class TestADivergenceIsFound:
    @pytest.mark.parametrize(
        "path, alter, kinds, places",
        [
            (f"/api/v1{HERE}*/contains", no_member, {Kind.CATALOG_CONTAINS}, {"contains_content_items"}),
            (f"/api/v1{HERE}*/contains", all_members, {Kind.CATALOG_CONTAINS}, {"contains_content_items"}),
            ("/enterprise-customer/*/contains", no_member, {Kind.CUSTOMER_CONTAINS}, {"contains_content_items"}),
            (
                "/enterprise-customer/*/contains",
                lambda value: value["catalog_list"].append("more") if "catalog_list" in value else None,
                {Kind.CUSTOMER_CONTAINS},
                {"catalog_list more"},
            ),
            (
                "/filter_content_items/",
                lambda value: value["filtered_content_keys"].append("more"),
                {Kind.FILTER},
                {"filtered_content_keys more"},
            ),
            ("/get_content_metadata/?page_size=5", lambda v: v.update(count=v["count"] + 1), {Kind.PAGE}, {"count"}),
            (
                "/generate_diff/",
                lambda value: value["items_not_included"].append({"content_key": "more"}),
                {Kind.DIFF},
                {"items_not_included more"},
            ),
            ("/generate_diff/", lambda value: value.update(more=1), {Kind.DIFF}, {"more"}),
            ("/content-metadata/", lambda value: value.update(title="!"), {Kind.DOCUMENT}, {"title"}),
            (f"/api/v1{HERE}?page_size=1", lambda v: v.update(count=16), {Kind.CATALOGS}, {"count"}),
            (
                "/get_query_by_hash/",
                lambda value: value.update(content_filter={}),
                {Kind.QUERY},
                None,
            ),
        ],
    )
    async def test_and_named_by_its_kind_and_place(
        self, here: Here, path: str, alter: Callable[[Json], object], kinds: set[Kind], places: set[str] | None
    ) -> None:
        first, _, last = path.partition("*")

        def altered(request: Any, status: int, value: Any) -> Answer:
            if first in request.raw_path and last in request.raw_path and status == 200:
                alter(value)
            return status, value

        here.proxy.alter = altered
        told = await here.compare()
        assert set(found(told)) == kinds
        if places is not None:
            assert set().union(*found(told).values()) == places
        assert not told.is_sound

    @pytest.mark.parametrize("alter", [other_title, without_a_document, other_links])
    async def test_in_documents_of_pages(self, here: Here, alter: Callable[[Json], object]) -> None:
        def altered(request: Any, status: int, value: Any) -> Answer:
            if "content_keys=" in request.raw_path and value.get("results"):
                alter(value)
            return status, value

        here.proxy.alter = altered
        told = found(await here.compare())
        assert set(told) == {Kind.PAGE}
        assert all(place.startswith("results ") or place == "count" for place in told[Kind.PAGE])

    async def test_where_a_catalog_is_missing(self, here: Here) -> None:
        uuid = next(iter((await here.ours.world.index()).catalogs))

        def altered(request: Any, status: int, value: Any) -> Answer:
            if uuid in request.raw_path:
                return 404, {"detail": "No EnterpriseCatalog matches the given query."}
            return status, value

        here.proxy.alter = altered
        told = await here.compare(catalogs=15)
        assert {Kind.CATALOG, Kind.CATALOG_CONTAINS, Kind.PAGE, Kind.DIFF} <= set(found(told)) <= {*Kind} - {Kind.ERROR}
        assert {str(f) for q, v in told.unexplained if q.kind is Kind.CATALOG for f in v.unexplained} == {
            "status: 404 'No EnterpriseCatalog matches the given query.' there, 200 here"
        }

    async def test_where_a_catalog_has_another_title(self, here: Here) -> None:
        def altered(request: Any, status: int, value: Any) -> Answer:
            if status == 200 and isinstance(value, dict) and "catalog_modified" in value:
                value["title"] = "another"
            return status, value

        here.proxy.alter = altered
        assert found(await here.compare()) == {Kind.CATALOG: {"title"}}

    @pytest.mark.parametrize("status", [400, 403, 404, 500])
    async def test_where_a_status_is_another(self, here: Here, status: int) -> None:
        here.proxy.answer("/generate_diff/", status)
        assert found(await here.compare()) == {Kind.DIFF: {"status"}}

    async def test_in_the_text_of_an_error(self, here: Here) -> None:
        def altered(request: Any, status: int, value: Any) -> Answer:
            return status, {"detail": "?"} if status == 404 and "no-uuid" in request.raw_path else value

        here.proxy.alter = altered
        assert found(await here.compare()) == {Kind.ERROR: {"detail"}}

    async def test_that_is_gone_at_the_second_look_is_none(self, here: Here) -> None:
        seen: set[str] = set()

        def altered(request: Any, status: int, value: Any) -> Answer:
            first = request.raw_path not in seen
            seen.add(request.raw_path)
            return (404, {}) if first and "/generate_diff/" in request.raw_path else (status, value)

        here.proxy.alter = altered
        assert found(await here.compare()) == {}


class TestWhatIsMeant:
    async def test_is_explained_by_its_number(self, here: Here) -> None:
        def todays(request: Any, status: int, value: Any) -> Answer:
            """As a service answers that knows no nested runs, tells no query, and touches everything at a refresh."""
            if "no-uuid" in request.raw_path or ("filter_content_items" in request.raw_path and status == 400):
                return 500, None
            if "/get_query_by_hash/" in request.raw_path:
                return 403, {"detail": "no"}
            if "%2C" in request.raw_path or "," in request.raw_path:
                return status, {**value, "contains_content_items": False}
            documents = value.get("results", [value]) if isinstance(value, dict) else []
            for document in documents:
                if document.get("content_last_modified"):
                    document["content_last_modified"] = "2026-11-22T10:00:00.123456Z"
                for name in ("catalog_query_uuid", "query_title"):
                    if name in document:
                        document[name] = None
                for run in document.get("course_runs") or []:
                    run.pop("enrollment_url", None)
                    run.pop("parent_content_key", None)
            return status, value

        here.proxy.alter = todays
        told = await here.compare(catalogs=15)
        assert told.as_json()["unexplained"] == []
        assert {number for count in told.kinds.values() for number in count.numbers} == {6, 7, 9, 12, 15, 16}
        assert told.is_sound
        assert "difference 12: catalog-queries is forbidden there" in told.as_text()

    async def test_of_nested_runs_is_told_by_what_our_index_knows(self, here: Here) -> None:
        index = await here.ours.world.index()
        nested = {
            index.dictionary.keys[ordinal]
            for query in index.queries.values()
            if query.v1 is not None
            for ordinal in query.v1.contained - query.v1.members
        }

        def todays(request: Any, status: int, value: Any) -> Answer:
            asked = request.query.get("course_run_ids", "").casefold()
            if "contains_content_items" in request.path and any(asked == key.casefold() for key in nested):
                value["contains_content_items"] = False
            return status, value

        here.proxy.alter = todays
        told = await here.compare(catalogs=15)
        assert told.kinds[Kind.CATALOG_CONTAINS].numbers[1] > 0


class TestNoAnswer:
    async def test_is_never_equality(self, here: Here) -> None:
        here.proxy.answer("/generate_diff/", 503)
        told = await here.compare(catalogs=2)
        assert told.kinds[Kind.DIFF].outcomes == {Outcome.NOT_COMPARED: 4}
        assert {verdict.why for _, verdict in told.not_compared} == {"the other service answers 503"}
        assert told.is_sound

    async def test_at_all_gives_up_and_is_not_sound(self, here: Here) -> None:
        here.settings = replace(here.settings, compare=replace(here.settings.compare, url="http://127.0.0.1:1"))
        told = await here.compare(catalogs=3)
        whys = [verdict.why for _, verdict in told.not_compared]
        assert whys[GIVE_UP:] == [GIVEN_UP] * (len(whys) - GIVE_UP)
        assert "Cannot connect" in whys[0]
        assert told.total(Outcome.NOT_COMPARED) == sum(count.asked for count in told.kinds.values()) > 50
        assert not told.is_sound
        assert GIVEN_UP in told.as_text()

    async def test_of_ours_is_not_blamed_on_the_other(self, here: Here) -> None:
        here.settings = replace(here.settings, compare=replace(here.settings.compare, base="http://127.0.0.1:1"))
        told = await here.compare(catalogs=1)
        assert told.not_compared[0][1].why.startswith("our sidecar: ")


class TestAReport:
    def test_keeps_and_shows_only_so_much(self) -> None:
        told = Comparison(1)
        for n in range(1100):
            told.note(Question(Kind.DIFF, f"/{n}"), Verdict(Outcome.UNEXPLAINED))
        assert told.total(Outcome.UNEXPLAINED) == 1100
        assert len(told.as_json()["unexplained"]) == 1000
        text = told.as_text()
        assert "and 1050 more that are unexplained" in text
        assert text.endswith("--seed 1")
        json.dumps(told.as_json())


class TestComparing:
    async def test_counts_and_logs_what_is_unexplained_but_not_too_much(self, here: Here) -> None:
        here.proxy.change("/contains_content_items/", lambda value: value.update(more=1))
        metrics = Metrics()
        with capture_logs() as logs:
            told = await here.comparing(metrics).once()
        assert told is not None
        for outcome in Outcome:
            counted = metrics.registry.get_sample_value("catalog_indexer_compared_total", {"outcome": outcome.value})
            assert counted == told.total(outcome)
        lines = [line for line in logs if line["event"] == "the other service answers something else"]
        assert len(lines) == LOGGED_A_ROUND < told.total(Outcome.UNEXPLAINED)
        assert lines[0]["found"] == ["more: 1 there, nothing here"]

    @pytest.mark.parametrize("broken", ["token", "other", "store"])
    async def test_is_ended_by_nothing(self, here: Here, tmp_path: Path, broken: str) -> None:
        if broken == "token":
            here.settings = replace(here.settings, compare=replace(here.settings.compare, token_file="none"))
        elif broken == "other":
            here.settings = replace(here.settings, compare=replace(here.settings.compare, url="http://127.0.0.1:1"))
        else:
            await here.ours.store.reset(None)
        with capture_logs() as logs:
            told = await here.comparing(Metrics()).once()
        assert told is None or told.total(Outcome.EQUAL) == 0
        assert [line for line in logs if "compared" in line["event"]]
