"""Catalogs and their queries in the registry: every rule of the module's header, and that a refusal changes nothing."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from indexer.catalog_body import read_catalog, read_fields
from indexer.registry import Registry, catalogs, pulls
from indexer.registry.catalogs import CatalogExists, NoSuchCatalog, QueryClash, RegisteredCatalog
from indexer.registry.schema import catalog, catalog_history, catalog_query, result
from sidecar.contract.words import PullState, query_hash
from tests.fakes import FakeClock, Json, catalog_body, uuid_of
from tests.world import World

COURSES = {"content_type": "course"}
PROGRAMS = {"content_type": "program"}
RUNS = {"content_type": "courserun"}


async def create(
    registry: Registry, title: str, content_filter: object, **fields: Any
) -> tuple[RegisteredCatalog, bool]:
    body = catalog_body(title, content_filter, **fields)
    if body["uuid"] is None:
        del body["uuid"]
    async with registry.write() as tx:
        return await catalogs.create(tx, read_catalog(body), "me")


async def remove(registry: Registry, uuid: str) -> None:
    async with registry.write() as tx:
        await catalogs.remove(tx, uuid, "me")


async def find(registry: Registry, uuid: str) -> RegisteredCatalog | None:
    async with registry.read() as connection:
        return await catalogs.find(connection, uuid)


async def all_rows(registry: Registry) -> dict[str, list[tuple[Any, ...]]]:
    async with registry.read() as connection:
        return {
            table.name: [tuple(r) for r in await connection.execute(sa.select(table))]
            for table in (catalog, catalog_query, catalog_history, result)
        }


async def state_of(registry: Registry, content_filter: object) -> PullState:
    async with registry.read() as connection:
        hash_ = query_hash(content_filter).hex()
        return PullState(
            (await connection.execute(sa.select(result.c.state).where(result.c.hash == hash_))).scalar_one()
        )


class TestCreating:
    async def test_a_catalog_in_the_registry_reads_back_as_its_body(self, registry: Registry) -> None:
        row, _ = await create(
            registry, "a", {"b": [1, None], "a": "é"}, query_title="t", catalog_query_uuid=uuid_of("q")
        )
        body = catalogs.as_body(row)
        assert json.loads(json.dumps(body)) == body
        read = read_catalog(body)
        assert (read.uuid, read.content_filter, read.query_uuid) == (row.uuid, {"b": [1, None], "a": "é"}, uuid_of("q"))
        async with registry.write() as tx:
            assert await catalogs.create(tx, read, "me") == (row, False)

    async def test_a_new_catalog_is_numbered_and_its_query_is_due(self, registry: Registry, clock: FakeClock) -> None:
        first, made = await create(registry, "a", COURSES, query_title="Courses")
        second, _ = await create(registry, "b", PROGRAMS)
        assert made
        assert (first.number, second.number) == (1, 2)
        assert (first.created_ms, first.modified_ms) == (clock.wall_ms, clock.wall_ms)
        assert first.wanted == query_hash(COURSES).hex()
        assert first.serving is None
        assert (first.query_title, second.query_title) == ("Courses", None)
        assert await state_of(registry, COURSES) is PullState.DUE

    async def test_a_catalog_without_a_uuid_gets_one(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES, uuid=None)
        b, made = await create(registry, "a", COURSES, uuid=None)
        assert made
        assert a.uuid != b.uuid

    async def test_the_time_of_creation_can_be_given(self, registry: Registry) -> None:
        async with registry.write() as tx:
            row, _ = await catalogs.create(tx, read_catalog(catalog_body("a", COURSES)), "me", 1_500_000_000_000)
        assert (row.created_ms, row.modified_ms) == (1_500_000_000_000, 1_500_000_000_000)

    async def test_the_same_body_again_changes_nothing(self, registry: Registry, clock: FakeClock) -> None:
        row, _ = await create(registry, "a", COURSES)
        before = await all_rows(registry)
        clock.advance(60)
        again, made = await create(registry, "a", COURSES)
        assert (again, made) == (row, False)
        assert await all_rows(registry) == before

    async def test_the_same_filter_in_another_order_is_the_same_body(self, registry: Registry) -> None:
        row, _ = await create(registry, "a", {"content_type": "course", "org": ["x", "y"]})
        assert await create(registry, "a", {"org": ["x", "y"], "content_type": "course"}) == (row, False)

    @pytest.mark.parametrize(
        "change",
        [
            {"enterprise_customer": uuid_of("Other")},
            {"enterprise_customer_name": "Other"},
            {"enabled_course_modes": ["audit"]},
            {"publish_audit_enrollment_urls": True},
            {"content_filter": PROGRAMS},
            {"catalog_query_uuid": uuid_of("other")},
        ],
    )
    async def test_another_body_for_a_uuid_that_exists_is_refused(self, registry: Registry, change: Json) -> None:
        await create(registry, "a", COURSES, catalog_query_uuid=uuid_of("q"), query_title="t")
        before = await all_rows(registry)
        fields: Json = {"catalog_query_uuid": uuid_of("q"), "query_title": "t", **change}
        filter_ = fields.pop("content_filter", COURSES)
        with pytest.raises(CatalogExists, match="exists with another body"):
            await create(registry, "a", filter_, **fields)
        assert await all_rows(registry) == before

    async def test_another_title_is_another_body(self, registry: Registry) -> None:
        row, _ = await create(registry, "a", COURSES)
        with pytest.raises(CatalogExists):
            await create(registry, "b", COURSES, uuid=row.uuid)

    async def test_a_retried_create_passes_though_its_query_had_another_title_already(self, registry: Registry) -> None:
        """A body that names no query uuid finds its query by hash; the title that it brings is not taken then."""
        await create(registry, "a", COURSES, query_title="first")
        row, made = await create(registry, "b", COURSES, query_title="second")
        assert made
        assert row.query_title == "first"
        assert await create(registry, "b", COURSES, query_title="second") == (row, False)

    async def test_many_at_once_get_one_query(self, registry_url: str, registry: Registry, clock: FakeClock) -> None:
        other = Registry(registry_url, clock)
        try:
            made = await asyncio.gather(
                *(create(with_, f"{n}", COURSES) for n in range(5) for with_ in (registry, other))
            )
        finally:
            await other.close()
        assert sorted(new for _, new in made) == [False] * 5 + [True] * 5
        assert len({row.query_id for row, _ in made}) == 1


class TestQueries:
    async def test_catalogs_of_one_filter_share_one_query(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES)
        b, _ = await create(registry, "b", COURSES, of="Other")
        assert a.query_id == b.query_id
        assert a.query_uuid == b.query_uuid

    async def test_an_unknown_uuid_makes_a_query_of_that_uuid(self, registry: Registry) -> None:
        row, _ = await create(registry, "a", COURSES, catalog_query_uuid=uuid_of("q"), query_title="t")
        assert (row.query_uuid, row.query_title) == (uuid_of("q"), "t")

    async def test_an_unknown_uuid_and_a_known_filter_give_that_query_the_uuid_and_title(
        self, registry: Registry
    ) -> None:
        a, _ = await create(registry, "a", COURSES)
        b, _ = await create(registry, "b", COURSES, catalog_query_uuid=uuid_of("q"), query_title="t")
        assert b.query_id == a.query_id
        found = await find(registry, a.uuid)
        assert found is not None
        assert (found.query_uuid, found.query_title) == (uuid_of("q"), "t")

    async def test_an_unknown_uuid_without_a_title_leaves_the_title(self, registry: Registry) -> None:
        await create(registry, "a", COURSES, query_title="t")
        b, _ = await create(registry, "b", COURSES, catalog_query_uuid=uuid_of("q"))
        assert (b.query_uuid, b.query_title) == (uuid_of("q"), "t")

    async def test_a_known_uuid_changes_its_query_for_all_of_its_catalogs(
        self, registry: Registry, clock: FakeClock
    ) -> None:
        a, _ = await create(registry, "a", COURSES, catalog_query_uuid=uuid_of("q"), query_title="t")
        clock.advance(1)
        b, _ = await create(registry, "b", PROGRAMS, catalog_query_uuid=uuid_of("q"), query_title="u")
        assert b.query_id == a.query_id
        found = await find(registry, a.uuid)
        assert found is not None
        assert found.wanted == query_hash(PROGRAMS).hex()
        assert (json.loads(found.content_filter), found.query_title) == (PROGRAMS, "u")
        assert found.modified_ms == a.modified_ms
        assert await state_of(registry, PROGRAMS) is PullState.DUE

    async def test_a_known_uuid_with_its_own_filter_changes_the_title_alone(self, registry: Registry) -> None:
        await create(registry, "a", COURSES, catalog_query_uuid=uuid_of("q"), query_title="t")
        b, _ = await create(registry, "b", COURSES, catalog_query_uuid=uuid_of("q"), query_title="u")
        assert b.query_title == "u"

    async def test_the_filter_of_another_query_clashes(self, registry: Registry) -> None:
        await create(registry, "a", COURSES, catalog_query_uuid=uuid_of("q"))
        await create(registry, "b", PROGRAMS)
        before = await all_rows(registry)
        with pytest.raises(QueryClash, match=r"^content_filter is not unique$"):
            await create(registry, "c", PROGRAMS, catalog_query_uuid=uuid_of("q"))
        assert await all_rows(registry) == before

    @pytest.mark.parametrize(
        "query", [{}, {"catalog_query_uuid": uuid_of("new")}, {"catalog_query_uuid": uuid_of("q")}]
    )
    async def test_the_title_of_another_query_clashes(self, registry: Registry, query: Json) -> None:
        await create(registry, "a", COURSES, query_title="taken")
        await create(registry, "b", PROGRAMS, catalog_query_uuid=uuid_of("q"))
        before = await all_rows(registry)
        with pytest.raises(QueryClash, match=r"^title is not unique$"):
            await create(registry, "c", RUNS, query_title="taken", **query)
        assert await all_rows(registry) == before

    async def test_any_number_of_queries_have_no_title(self, registry: Registry) -> None:
        rows = [(await create(registry, f"{n}", {"key": f"{n}"}, query_title=None))[0] for n in range(3)]
        assert [row.query_title for row in rows] == [None, None, None]

    async def test_a_filter_may_be_any_json(self, registry: Registry) -> None:
        filters: list[object] = [[], "text", 5, 1.5, True, {}, {"a": {"b": [None, {"c": "é\ud800"}]}}]
        for n, filter_ in enumerate(filters):
            row, _ = await create(registry, f"{n}", filter_)
            assert json.loads(row.content_filter) == filter_
            assert row.wanted == query_hash(filter_).hex()


async def change(registry: Registry, catalog_uuid: str, **fields: Any) -> RegisteredCatalog:
    async with registry.write() as tx:
        return await catalogs.change(tx, catalog_uuid, read_fields(fields, whole=False), "me")


class TestChanging:
    async def test_what_is_named_is_changed_and_the_rest_stays(self, registry: Registry, clock: FakeClock) -> None:
        row, _ = await create(registry, "a", COURSES, query_title="t")
        clock.advance(5)
        changed = await change(registry, row.uuid, title="b", publish_audit_enrollment_urls="true")
        assert (changed.title, changed.audit_urls) == ("b", True)
        assert replace(changed, title="a", audit_urls=False, modified_ms=row.modified_ms) == row
        assert changed.modified_ms == row.modified_ms + 5000

    async def test_another_filter_is_that_of_the_query_and_so_of_all_who_share_it(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES, query_title="t")
        b, _ = await create(registry, "b", COURSES)
        changed = await change(registry, a.uuid, content_filter=PROGRAMS)
        assert (changed.query_id, changed.wanted) == (a.query_id, query_hash(PROGRAMS).hex())
        shared = await find(registry, b.uuid)
        assert shared is not None
        assert (shared.wanted, shared.query_title) == (changed.wanted, "t")
        assert await state_of(registry, PROGRAMS) is PullState.DUE

    async def test_a_null_query_uuid_finds_or_makes_the_query_of_the_filter(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES)
        b, _ = await create(registry, "b", PROGRAMS)
        moved = await change(registry, a.uuid, content_filter=PROGRAMS, catalog_query_uuid=None)
        assert moved.query_id == b.query_id
        made = await change(registry, a.uuid, content_filter=RUNS, catalog_query_uuid=None)
        assert made.query_id not in (a.query_id, b.query_id)
        assert await state_of(registry, RUNS) is PullState.DUE

    async def test_a_null_query_uuid_alone_changes_nothing(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES, catalog_query_uuid=uuid_of("q"))
        changed = await change(registry, a.uuid, catalog_query_uuid=None)
        assert (changed.query_id, changed.query_uuid) == (a.query_id, uuid_of("q"))

    async def test_a_title_is_that_of_the_query(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES)
        assert (await change(registry, a.uuid, query_title="t")).query_title == "t"

    async def test_the_uuid_stays(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES)
        assert (await change(registry, a.uuid, uuid=uuid_of("other"))).uuid == a.uuid

    @pytest.mark.parametrize(
        "fields, clash",
        [
            ({"content_filter": PROGRAMS}, "content_filter is not unique"),
            ({"query_title": "taken"}, "title is not unique"),
            # Both clash; today's service names the title.
            ({"catalog_query_uuid": uuid_of("programs"), "query_title": "mine"}, "title is not unique"),
        ],
    )
    async def test_what_belongs_to_another_query_clashes(self, registry: Registry, fields: Json, clash: str) -> None:
        a, _ = await create(registry, "a", COURSES, query_title="mine")
        await create(registry, "b", PROGRAMS, query_title="taken", catalog_query_uuid=uuid_of("programs"))
        before = await all_rows(registry)
        with pytest.raises(QueryClash, match=f"^{clash}$"):
            await change(registry, a.uuid, **fields)
        assert await all_rows(registry) == before

    async def test_an_unknown_catalog_cannot_be_changed(self, registry: Registry) -> None:
        with pytest.raises(NoSuchCatalog, match=uuid_of("nothing")):
            await change(registry, uuid_of("nothing"), title="b")

    async def test_it_is_noted(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES)
        changed = await change(registry, a.uuid, title="b")
        async with registry.read() as connection:
            noted = (await connection.execute(sa.select(catalog_history).order_by(catalog_history.c.id.desc()))).first()
        assert noted is not None
        assert (noted.action, noted.who, json.loads(noted.record)) == ("changed", "me", catalogs.as_body(changed))


class TestServing:
    """What a query serves while its filter changes; `World` pulls."""

    async def test_a_filter_changed_in_place_keeps_serving_until_the_first_pull_passes(self, here: World) -> None:
        query = {"catalog_query_uuid": uuid_of("q")}
        a = await here.add("a", COURSES, **query)
        await here.pull()
        await here.add("b", PROGRAMS, **query)
        changed = await find(here.registry, a.uuid)
        assert changed is not None
        assert (changed.wanted, changed.serving) == (query_hash(PROGRAMS).hex(), query_hash(COURSES).hex())
        await here.pull()
        pulled = await find(here.registry, a.uuid)
        assert pulled is not None
        assert pulled.serving == query_hash(PROGRAMS).hex()

    async def test_changing_a_filter_back_before_a_pull_asks_for_none(self, here: World) -> None:
        query = {"catalog_query_uuid": uuid_of("q")}
        await here.add("a", COURSES, **query)
        await here.pull()
        await here.add("b", PROGRAMS, **query)
        await here.add("c", COURSES, **query)
        assert await state_of(here.registry, COURSES) is PullState.FRESH
        async with here.registry.read() as connection:
            assert [t.hash for t in await pulls.targets(connection)] == [query_hash(COURSES).hex()]

    async def test_changing_a_filter_back_after_a_pull_asks_for_another(self, here: World) -> None:
        query = {"catalog_query_uuid": uuid_of("q")}
        await here.add("a", COURSES, **query)
        await here.pull()
        await here.add("b", PROGRAMS, **query)
        await here.pull()
        c = await here.add("c", COURSES, **query)
        assert await state_of(here.registry, COURSES) is PullState.DUE
        assert c.serving == query_hash(PROGRAMS).hex()

    async def test_a_catalog_that_moves_to_a_new_query_serves_on_until_its_first_pull_passes(self, here: World) -> None:
        moved, stays = await here.add("a", COURSES), await here.add("b", COURSES)
        await here.pull()
        row = await change(here.registry, moved.uuid, content_filter=PROGRAMS, catalog_query_uuid=None)
        assert (row.wanted, row.serving) == (query_hash(PROGRAMS).hex(), query_hash(COURSES).hex())
        # Even after it has moved once more, and everybody else has left.
        await change(here.registry, moved.uuid, content_filter=RUNS, catalog_query_uuid=None)
        await here.remove(stays.uuid)
        await here.publish()
        served = (await here.index()).catalogs[moved.uuid]
        assert served.serving is not None
        assert (served.wanted.hash, served.serving.hash) == (query_hash(RUNS), query_hash(COURSES))
        await here.pull()
        await here.publish()
        index = await here.index()
        now = index.catalogs[moved.uuid].serving
        assert now is not None
        assert now.hash == query_hash(RUNS)
        assert query_hash(COURSES) not in {hash_ for hash_, query in index.queries.items() if query.v1 is not None}


class TestRemoving:
    async def test_a_removed_catalog_is_gone_and_its_query_stays(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES, query_title="t")
        await remove(registry, a.uuid)
        assert await find(registry, a.uuid) is None
        b, _ = await create(registry, "b", COURSES)
        assert (b.query_id, b.query_title) == (a.query_id, "t")

    async def test_an_unknown_catalog_cannot_be_removed(self, registry: Registry) -> None:
        before = await all_rows(registry)
        with pytest.raises(NoSuchCatalog, match=uuid_of("nothing")):
            await remove(registry, uuid_of("nothing"))
        assert await all_rows(registry) == before

    async def test_a_catalog_removed_and_made_again_has_a_new_number(self, registry: Registry) -> None:
        a, _ = await create(registry, "a", COURSES)
        await remove(registry, a.uuid)
        again, made = await create(registry, "a", PROGRAMS)
        assert made
        assert again.uuid == a.uuid
        assert again.number > a.number


class TestHistory:
    async def test_every_change_is_noted_with_the_whole_record_and_who_it_was(
        self, registry: Registry, clock: FakeClock
    ) -> None:
        row, _ = await create(registry, "a", COURSES, query_title="t")
        await create(registry, "a", COURSES, query_title="t")
        clock.advance(5)
        await remove(registry, row.uuid)
        async with registry.read() as connection:
            noted = (await connection.execute(sa.select(catalog_history).order_by(catalog_history.c.id))).all()
        assert [(n.catalog, n.action, n.who) for n in noted] == [
            (row.uuid, "created", "me"),
            (row.uuid, "removed", "me"),
        ]
        assert [json.loads(n.record) for n in noted] == [catalogs.as_body(row)] * 2
        assert noted[1].at_ms - noted[0].at_ms == 5000
        assert noted[1].clock == noted[0].clock + 2

    async def test_a_long_name_of_who_it_was_is_cut(self, registry: Registry) -> None:
        async with registry.write() as tx:
            await catalogs.create(tx, read_catalog(catalog_body("a", {})), "w" * 300)
        async with registry.read() as connection:
            assert (await connection.execute(sa.select(catalog_history.c.who))).scalar_one() == "w" * 255


class TestSelecting:
    async def test_catalogs_come_in_order_of_creation(self, registry: Registry) -> None:
        for title in ("z", "a", "m"):
            await create(registry, title, COURSES)
        async with registry.read() as connection:
            assert [row.title for row in await catalogs.select(connection)] == ["z", "a", "m"]

    async def test_conditions_are_all_met(self, registry: Registry) -> None:
        await create(registry, "a", COURSES, of="Acme")
        await create(registry, "b", COURSES, of="Other")
        async with registry.read() as connection:
            c = catalog.c
            found = await catalogs.select(connection, c.customer == uuid_of("Other"), c.title == "b")
            assert [row.title for row in found] == ["b"]
            assert await catalogs.select(connection, c.customer == uuid_of("Other"), c.title == "a") == []
