"""What becomes of offers: new ones are made, known ones stay, others are conflicts unless they are to be changed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from indexer.offer import Offer
from indexer.registry import Registry, catalogs, generations
from indexer.takeover import NO_UUID, Report, take_over
from tests.fakes import Json, catalog_body, uuid_of

COURSES = {"content_type": "course"}


def offer(name: str, content_filter: object = COURSES, guessed: Json | None = None, **fields: Any) -> Offer:
    body = catalog_body(name, content_filter) | fields
    return Offer(body["uuid"], body, 1_600_000_000_000, guessed or {})


A, B = offer("a"), offer("b", {"key": "B+1"}, catalog_query_uuid=uuid_of("q"), query_title="t")


class Here:
    """A registry that catalogs are taken over into."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def take(self, *offers: Offer, **how: bool) -> Report:
        return await take_over(self._registry, offers, "test", **how)

    async def bodies(self) -> list[Json]:
        async with self._registry.read() as connection:
            return [catalogs.as_body(row) for row in await catalogs.select(connection)]

    async def clock(self) -> int:
        async with self._registry.read() as connection:
            return await generations.clock(connection)

    async def created_ms(self) -> list[int]:
        async with self._registry.read() as connection:
            return [row.created_ms for row in await catalogs.select(connection)]


@pytest.fixture
def here(registry: Registry) -> Here:
    return Here(registry)


def whys(those: Sequence[Any]) -> dict[str, str]:
    return {one.catalog: one.why for one in those}


class TestNewCatalogs:
    async def test_are_made_in_the_order_of_the_offers_and_as_old_as_they_are(self, here: Here) -> None:
        report = await here.take(B, A)
        assert (report.taken, report.is_whole) == ([B.name, A.name], True)
        assert [body["uuid"] for body in await here.bodies()] == [B.name, A.name]
        assert set(await here.created_ms()) == {1_600_000_000_000}

    async def test_are_made_once(self, here: Here) -> None:
        await here.take(A, B)
        before, clock = await here.bodies(), await here.clock()
        for update in (False, True):
            report = await here.take(A, B, update=update)
            assert (report.taken, report.updated, report.unchanged) == ([], [], [A.name, B.name])
            assert (await here.bodies(), await here.clock()) == (before, clock)

    async def test_are_not_made_by_a_dry_run(self, here: Here) -> None:
        clock = await here.clock()
        report = await here.take(A, B, dry_run=True)
        assert (report.taken, await here.bodies(), await here.clock()) == ([A.name, B.name], [], clock)
        assert "nothing was written" in report.as_text()

    async def test_that_cannot_be_read_or_have_no_uuid_leave_the_others(self, here: Here) -> None:
        wrong = offer("wrong", title="")
        nameless = Offer("catalog 7", {k: v for k, v in catalog_body("n", {}).items() if k != "uuid"})
        lacking = Offer(uuid_of("lacking"), None, lacks="it has none")
        report = await here.take(wrong, nameless, lacking, A)
        assert report.taken == [A.name]
        assert whys(report.not_taken) == {
            wrong.name: "title = '': This field may not be blank.",
            "catalog 7": NO_UUID,
            lacking.name: "it has none",
        }
        assert not report.is_whole

    async def test_may_share_a_query(self, here: Here) -> None:
        shared = offer("c", {"key": "B+1"}, catalog_query_uuid=uuid_of("q"), query_title="t")
        assert (await here.take(B, shared)).taken == [B.name, shared.name]

    async def test_never_change_a_query_that_others_have(self, here: Here) -> None:
        await here.take(A, B)
        before = await here.bodies()
        same_uuid = offer("c", {"key": "other"}, catalog_query_uuid=uuid_of("q"))
        same_filter = offer("d", COURSES, catalog_query_uuid=uuid_of("another"))
        report = await here.take(same_uuid, same_filter)
        assert [one.catalog for one in report.conflicts] == [same_uuid.name, same_filter.name]
        assert await here.bodies() == before

    async def test_whose_title_of_a_query_is_taken_are_told(self, here: Here) -> None:
        await here.take(B)
        report = await here.take(offer("c", {"key": "other"}, query_title="t"))
        assert whys(report.not_taken) == {
            uuid_of("catalog c"): "its query clashes with another one: title is not unique"
        }


class TestCatalogsThatSaySomethingElse:
    async def test_are_conflicts_and_stay(self, here: Here) -> None:
        await here.take(A, B)
        before, clock = await here.bodies(), await here.clock()
        report = await here.take(offer("a", {}, title="another"), B)
        assert whys(report.conflicts) == {A.name: "it exists with another title, content_filter"}
        assert (report.unchanged, await here.bodies(), await here.clock()) == ([B.name], before, clock)

    async def test_are_changed_if_that_is_asked_for(self, here: Here) -> None:
        await here.take(A, B)
        changed = offer("b", {"key": "C+1"}, catalog_query_uuid=uuid_of("q"), query_title="t2")
        report = await here.take(A, changed, update=True)
        assert (report.unchanged, report.updated, report.is_whole) == ([A.name], [B.name], True)
        assert (await here.bodies())[1] == changed.body
        assert (await here.take(A, changed)).unchanged == [A.name, B.name]

    async def test_only_in_what_is_a_guess_are_unchanged(self, here: Here) -> None:
        await here.take(A, B)
        before = await here.bodies()
        name = "enterprise_customer_name"
        guesses = [offer("a", guessed={name: "no idea"}, **{name: "somebody"})]
        for update in (False, True):
            assert (await here.take(*guesses, update=update)).unchanged == [A.name]
        assert await here.bodies() == before
        assert isinstance(guesses[0].body, dict)
        also = replace(guesses[0], body=guesses[0].body | {"title": "another"})
        assert (await here.take(also, update=True)).updated == [A.name]
        assert (await here.bodies())[0] == before[0] | {"title": "another"}


async def test_guesses_are_told_where_they_were_taken(here: Here) -> None:
    guessing = offer("a", guessed={"enabled_course_modes": "not told"})
    report = await here.take(guessing, B)
    (guess,) = report.guessed
    assert (guess.catalog, guess.field, guess.value, guess.why) == (
        *(A.name, "enabled_course_modes"),
        *(["verified"], "not told"),
    )
    assert report.as_text() == (
        "2 catalogs taken over, 0 updated, 0 unchanged, 0 conflicts, 0 could not be taken over\n"
        "  guessed  enabled_course_modes of 1 catalogs: not told"
    )
    assert (await here.take(guessing)).guessed == []


async def test_a_report_names_what_is_left_to_do_and_not_too_much_of_it(here: Here) -> None:
    report = await here.take(*(Offer(f"{n}", None, lacks="it has none") for n in range(60)))
    lines = report.as_text().splitlines()
    assert lines[1] == "  not taken  0  it has none"
    assert (len(lines), lines[-1]) == (52, "  not taken  and 10 more; --json names all")
    assert len(report.as_json()["not_taken"]) == 60
