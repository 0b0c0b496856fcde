"""What another service tells of its catalogs: all of it, or an error; what it does not tell is called a guess."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from indexer.offer import Offer
from indexer.origin import (
    LINKS_ALONE,
    LINKS_NAME,
    LMS_ALONE,
    MODES,
    NO_AUDIT,
    NO_NAME,
    NO_QUERY,
    NOT_TOLD,
    Origin,
)
from indexer.source import SourceError
from indexer.source.file import FileSource
from indexer.source.upstream import Door, GivenToken, Limits
from sidecar.contract.words import slugify
from tests.fakes import FakeClock, FakeSource, Json
from tests.neighbour import Proxy, neighbour
from tests.sidecar.replayed import BODIES, GOLDEN, Rig
from tests.tokens import StillClock, settings, token_of

LISTED = "/api/v1/enterprise-catalogs/?"
DISTINCT = "/api/v1/distinct-catalog-queries/"
QUERIES = "/api/v1/catalog-queries/"
FIRST = next(iter(BODIES))
NAME = "enterprise_customer_name"


class Here:
    """A service to take catalogs over from, and what there is to ask it."""

    def __init__(self, rig: Rig, proxy: Proxy) -> None:
        self.rig = rig
        self.proxy = proxy
        self.steps: list[str] = []

    async def offers(self, *, lms: bool = True, token: str = "") -> dict[str, Offer]:
        credentials = GivenToken(token) if token else None
        clock = FakeClock()
        door = Door(self.proxy.url, Limits(retries=1), clock, credentials)
        source = FileSource(GOLDEN / "corpus.json") if lms else FakeSource()
        try:
            origin = Origin(door, source, clock, lambda step, _: self.steps.append(step))
            return {offer.name: offer for offer in await origin.offers()}
        finally:
            await door.close()

    async def error(self, **arguments: Any) -> str:
        with pytest.raises(SourceError) as error:
            await self.offers(**arguments)
        return str(error.value)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    async with neighbour(tmp_path) as (rig, proxy):
        yield Here(rig, proxy)


def body_of(offer: Offer) -> Json:
    assert isinstance(offer.body, dict), offer
    return offer.body


class TestEverythingIsTold:
    async def test_in_order_with_queries_and_audit_urls(self, here: Here) -> None:
        offers = await here.offers()
        assert list(offers) == list(BODIES)
        for uuid, want in BODIES.items():
            got = body_of(offers[uuid])
            told = ("uuid", "title", "enterprise_customer", "content_filter", "catalog_query_uuid", "query_title")
            assert {name: got[name] for name in told} == {name: want[name] for name in told}
            if "publish_audit_enrollment_urls" not in offers[uuid].guessed:
                assert got["publish_audit_enrollment_urls"] == want["publish_audit_enrollment_urls"]
            if "utm_source" in offers[uuid].guessed[NAME]:
                assert slugify(got[NAME]) == slugify(want[NAME])
            assert offers[uuid].guessed["enabled_course_modes"] == MODES
        assert {offer.guessed[NAME] for offer in offers.values()} == {LINKS_NAME, LMS_ALONE}
        assert sum(body_of(offer)["publish_audit_enrollment_urls"] for offer in offers.values()) > 0

    async def test_on_many_pages(self, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("indexer.origin.PAGE", 4)
        assert list(await here.offers()) == list(BODIES)
        assert sum(LISTED in path for path in here.proxy.asked) == 4

    async def test_and_when_it_was_changed(self, here: Here) -> None:
        def older(value: Json) -> None:
            for record in value["results"]:
                record["catalog_modified"] = "2020-01-31T12:00:00.123456Z"

        here.proxy.change(LISTED, older)
        assert {offer.changed_ms for offer in (await here.offers()).values()} == {1_580_472_000_123}

    async def test_by_todays_service_whose_records_name_no_query(self, here: Here) -> None:
        def silent(value: Json) -> None:
            for record in value["results"]:
                record["catalog_query_uuid"] = record["query_title"] = None

        here.proxy.change(LISTED, silent)
        assert {body_of(o)["catalog_query_uuid"] for o in (await here.offers()).values()} == {
            body["catalog_query_uuid"] for body in BODIES.values()
        }

    async def test_and_every_step_is_heard_of(self, here: Here) -> None:
        await here.offers()
        assert list(dict.fromkeys(here.steps)) == ["reading queries", "looking at links", "asking for customers"]

    async def test_to_a_superuser_whose_token_is_sent_each_time(self, tmp_path: Path) -> None:
        clock = StillClock()
        async with neighbour(tmp_path, clock=clock, auth=settings(tmp_path)) as (rig, proxy):
            token = token_of("superuser", clock.now_ms())
            assert list(await Here(rig, proxy).offers(token=token)) == list(BODIES)
            assert set(proxy.tokens) == {f"JWT {token}"}


class TestNames:
    async def test_that_the_lms_does_not_know_are_those_of_links(self, here: Here) -> None:
        offers = await here.offers(lms=False)
        by_reason: dict[str, set[str]] = {}
        for uuid, offer in offers.items():
            by_reason.setdefault(offer.guessed[NAME], set()).add(uuid)
            want = BODIES[uuid]
            if offer.guessed[NAME] == LINKS_ALONE:
                assert body_of(offer)[NAME] == slugify(want[NAME])
            else:
                assert body_of(offer)[NAME] == want["enterprise_customer"]
        assert set(by_reason) == {LINKS_ALONE, NO_NAME}

    async def test_of_the_lms_that_do_not_make_the_links_are_not_taken(self, here: Here) -> None:
        def renamed(value: Json) -> None:
            for document in value["results"]:
                for name in ("enrollment_url", "marketing_url"):
                    document[name] = (document.get(name) or "https://x.test/?").replace(
                        "utm_source=", "utm_source=old-"
                    )

        here.proxy.change(f"{FIRST}/get_content_metadata", renamed)
        offer = (await here.offers())[FIRST]
        assert (body_of(offer)[NAME], offer.guessed[NAME]) == (f"old-{slugify(BODIES[FIRST][NAME])}", LINKS_ALONE)


async def test_audit_urls_are_a_guess_where_nobody_may_look(here: Here) -> None:
    here.proxy.answer("/get_content_metadata/", 403)
    for offer in (await here.offers()).values():
        assert offer.guessed["publish_audit_enrollment_urls"] == NO_AUDIT
        assert body_of(offer)["publish_audit_enrollment_urls"] is False


class TestCatalogsThatCannotBeTaken:
    async def test_have_no_query(self, here: Here) -> None:
        def without(value: Json) -> None:
            for uuids in value["catalog_uuids_by_catalog_query_id"].values():
                if FIRST in uuids:
                    uuids.remove(FIRST)

        here.proxy.change(DISTINCT, without)
        offers = await here.offers()
        assert {uuid: offer.lacks for uuid, offer in offers.items() if offer.lacks} == {FIRST: NO_QUERY}
        assert list(offers) == list(BODIES)

    async def test_have_a_filter_that_is_not_what_its_hash_says(self, here: Here) -> None:
        def other(value: Json) -> None:
            value["content_filter"] = {**value["content_filter"], "x": 12345678901234567890}

        here.proxy.change(f"{QUERIES}1/", other)
        lacks = {offer.lacks for offer in (await here.offers()).values()} - {None}
        assert len(lacks) == 1
        assert "the filter of its query hashes to " in str(lacks.pop())

    async def test_have_a_query_that_is_gone(self, here: Here) -> None:
        here.proxy.answer(f"{QUERIES}1/", 404)
        lacks = {offer.lacks for offer in (await here.offers()).values()} - {None}
        assert lacks == {"its query has the id 1, and there is none of that id"}


class TestWhoeverMayNotAskForIds:
    async def test_is_told_queries_by_the_uuids_of_records(self, here: Here) -> None:
        here.proxy.answer(DISTINCT, 403)
        assert [body_of(o)["content_filter"] for o in (await here.offers()).values()] == [
            body["content_filter"] for body in BODIES.values()
        ]

    async def test_may_be_an_operator(self, tmp_path: Path) -> None:
        clock = StillClock()
        async with neighbour(tmp_path, clock=clock, auth=settings(tmp_path)) as (rig, proxy):
            offers = await Here(rig, proxy).offers(token=token_of("operator", clock.now_ms()))
            assert {offer.lacks for offer in offers.values()} == {None}

    async def test_takes_no_catalog_whose_record_names_none(self, here: Here) -> None:
        def alter(request: Any, status: int, value: Any) -> tuple[int, Any]:
            if DISTINCT in request.raw_path:
                return 403, {}
            if LISTED in request.raw_path:
                value["results"][0]["catalog_query_uuid"] = None
            return status, value

        here.proxy.alter = alter
        offers = await here.offers()
        assert {uuid: offer.lacks for uuid, offer in offers.items() if offer.lacks} == {FIRST: NOT_TOLD}

    async def test_is_told_whose_token_it_takes_if_no_record_names_one(self, here: Here) -> None:
        def alter(request: Any, status: int, value: Any) -> tuple[int, Any]:
            if DISTINCT in request.raw_path:
                return 403, {"detail": "no"}
            for record in value["results"] if LISTED in request.raw_path else ():
                record["catalog_query_uuid"] = None
            return status, value

        here.proxy.alter = alter
        error = await here.error()
        assert error.startswith("queries of catalogs: POST /api/v1/distinct-catalog-queries/: 403 Forbidden: ")
        assert error.endswith("; give a token of a user who may: a superuser may ask all that an import asks")


class TestNothingIsBelieved:
    @pytest.mark.parametrize("change", [{"count": 16}, {"count": 14}, {"results": []}, {"results": {}}, {"next": 1}])
    async def test_of_a_list_that_is_not_whole(self, here: Here, change: Json) -> None:
        here.proxy.change(LISTED, lambda value: value.update(change))
        assert (await here.error()).startswith("catalogs page ")

    async def test_of_an_empty_list(self, here: Here) -> None:
        here.proxy.change(LISTED, lambda value: value.update(count=0, results=[]))
        assert await here.error() == (
            "catalogs: the list is empty; whoever has no role there, staff included, is shown none"
        )

    async def test_of_records_without_a_uuid(self, here: Here) -> None:
        here.proxy.change(LISTED, lambda value: value["results"][3].update(uuid="x"))
        assert "catalogs page 1: TypeError: uuid is 'x'" in await here.error()

    @pytest.mark.parametrize(
        "change",
        [
            {"num_distinct_query_ids": 1},
            {"catalog_uuids_by_catalog_query_id": []},
            {"catalog_uuids_by_catalog_query_id": {"1": [FIRST], "2": [FIRST]}, "num_distinct_query_ids": 2},
            {"catalog_uuids_by_catalog_query_id": {"x": [FIRST]}, "num_distinct_query_ids": 1},
            {"catalog_uuids_by_catalog_query_id": {"1": ["nobody"]}, "num_distinct_query_ids": 1},
        ],
    )
    async def test_of_a_map_that_does_not_add_up(self, here: Here, change: Json) -> None:
        here.proxy.change(DISTINCT, lambda value: value.update(change))
        assert (await here.error()).startswith("queries of catalogs: ")

    async def test_of_a_service_that_fails_in_the_middle(self, here: Here) -> None:
        here.proxy.answer(f"{QUERIES}2/", 500)
        assert "query 2: GET /api/v1/catalog-queries/2/: 500 Internal Server Error after 2 tries" in await here.error()

    async def test_of_a_page_that_is_none(self, here: Here) -> None:
        here.proxy.answer("/get_content_metadata/", 200, [])
        assert "the answer is no page of documents" in await here.error()

    async def test_without_a_token_that_is_accepted_and_the_token_is_never_shown(self, tmp_path: Path) -> None:
        clock = StillClock()
        async with neighbour(tmp_path, clock=clock, auth=settings(tmp_path)) as (rig, proxy):
            token = token_of("expired", clock.now_ms())
            error = await Here(rig, proxy).error(token=token)
            assert "401 Unauthorized" in error
            assert error.endswith("; give a token that it accepts, by --token-file or in CATALOG_IMPORT_TOKEN")
            assert token not in error

    async def test_while_nobody_listens(self) -> None:
        clock = FakeClock()
        door = Door("http://127.0.0.1:1", Limits(retries=0), clock)
        with pytest.raises(SourceError, match=r"catalogs page 1: GET .*ClientConnectorError"):
            await Origin(door, FakeSource(), clock).offers()
        await door.close()
