"""Pulls in the registry: what is wanted, how pulls end, what customers are due, and what moves the clock."""

from typing import Any

import pytest
import sqlalchemy as sa

from indexer.ingest import PLAIN, SHOWN, Ingested, ingest, mentioned
from indexer.registry import Deposed, generations, pulls, schema
from indexer.registry.pulls import Target
from indexer.source import CustomerDetails, SourceError, Unpullable
from indexer.status import status
from sidecar.contract.records import Bitmap
from sidecar.contract.words import PullState, query_hash
from sidecar.settings import Settings
from tests.fakes import FakeClock, FakeSource, course, customer, run, uuid_of
from tests.world import World

COURSES = {"content_type": "course"}
SHOWN_FILTER = {**COURSES, "restricted_runs_allowed": {"course:A+1": ["x1"]}}


def source_of(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


async def targets(here: World) -> list[Target]:
    async with here.registry.read() as connection:
        return await pulls.targets(connection)


async def rows(here: World, table: sa.Table) -> list[Any]:
    async with here.registry.read() as connection:
        return list(await connection.execute(sa.select(table)))


async def clock_of(here: World) -> int:
    async with here.registry.read() as connection:
        return await generations.clock(connection)


class TestTargets:
    async def test_are_filters_that_catalogs_want_in_order_of_creation(self, here: World) -> None:
        await here.add("z", {"key": "1"}, query_title="first")
        await here.add("a", {"key": "2"})
        await here.add("b", {"key": "1"})
        found = await targets(here)
        assert [(t.query_id, t.title, t.catalogs) for t in found] == [(1, "first", 2), (2, None, 1)]
        assert [(t.state, t.pulled_at_ms, t.tried_at_ms, t.failures, t.error) for t in found] == [
            (PullState.DUE, None, None, 0, None)
        ] * 2

    async def test_are_not_what_nobody_uses(self, here: World) -> None:
        await here.add("a", COURSES)
        await here.remove(uuid_of("catalog a"))
        assert await targets(here) == []

    async def test_are_the_wanted_filters_and_not_the_served_ones(self, here: World) -> None:
        await here.add("a", COURSES, catalog_query_uuid=uuid_of("q"))
        await here.pull()
        await here.add("b", {"key": "1"}, catalog_query_uuid=uuid_of("q"))
        assert [t.hash for t in await targets(here)] == [query_hash({"key": "1"}).hex()]


class TestAPull:
    async def test_that_passes_is_noted_and_served(self, here: World, clock: FakeClock) -> None:
        source_of(here).courses = [course("A+1", run("a1"))]
        await here.add("a", COURSES)
        assert await here.pull() == [True]
        (target,) = await targets(here)
        assert (target.state, target.pulled_at_ms, target.tried_at_ms) == (
            *(PullState.FRESH, clock.wall_ms, clock.wall_ms),
        )
        (pull,) = await rows(here, schema.pull)
        assert (pull.hash, pull.reason, pull.state) == (target.hash, "demand", "passed")
        assert (pull.members, pull.changed, pull.error) == (1, 1, None)
        (query,) = await rows(here, schema.catalog_query)
        assert query.serving == target.hash

    async def test_that_fails_keeps_the_content_and_counts(self, here: World, clock: FakeClock) -> None:
        source_of(here).courses = [course("A+1", run("a1"))]
        await here.add("a", COURSES)
        await here.pull()
        (before,) = await rows(here, schema.result)
        source_of(here).failure = SourceError("not now")
        for failures in (1, 2):
            clock.advance(10)
            assert await here.pull() == [False]
            (result,) = await rows(here, schema.result)
            assert (result.state, result.failures, result.error) == (PullState.FAILING, failures, "not now")
            assert (result.members, result.pulled_at_ms) == (before.members, before.pulled_at_ms)
            assert result.tried_at_ms == clock.wall_ms
        source_of(here).failure = None
        await here.pull()
        (result,) = await rows(here, schema.result)
        assert (result.state, result.failures, result.error) == (PullState.FRESH, 0, None)
        assert [p.state for p in await rows(here, schema.pull)].count("failed") == 2

    async def test_that_can_never_pass_says_so(self, here: World) -> None:
        await here.add("a", COURSES)
        source_of(here).failure = Unpullable("never")
        await here.pull()
        (result,) = await rows(here, schema.result)
        assert (result.state, result.members, result.error) == (PullState.UNPULLABLE, None, "never")

    async def test_of_no_object_is_served_as_nothing_and_was_never_pulled(self, here: World) -> None:
        await here.add("a", ["no object"])
        assert await here.pull() == [False]
        (result,) = await rows(here, schema.result)
        assert (result.state, result.pulled_at_ms) == (PullState.UNPULLABLE, None)
        assert result.members == Bitmap.of(()).encode()
        (query,) = await rows(here, schema.catalog_query)
        assert query.serving == query.hash

    async def test_whose_filter_is_wanted_no_more_when_it_ends_serves_nobody(self, here: World) -> None:
        await here.add("a", COURSES, catalog_query_uuid=uuid_of("q"))
        (target,) = await targets(here)
        await here.add("b", {"key": "1"}, catalog_query_uuid=uuid_of("q"))
        await here.pipeline.pull(target, "demand", here.epoch)
        (query,) = await rows(here, schema.catalog_query)
        assert query.serving is None

    async def test_moves_serving_for_its_own_query_alone(self, here: World) -> None:
        await here.add("a", COURSES, query_title="a")
        await here.add("b", {"key": "1"}, query_title="b")
        await here.pull("a")
        assert {q.title: q.serving for q in await rows(here, schema.catalog_query)} == {
            "a": query_hash(COURSES).hex(),
            "b": None,
        }

    async def test_that_is_under_way_when_its_leader_ends_is_abandoned(self, here: World, clock: FakeClock) -> None:
        async with here.registry.plain() as connection:
            await pulls.start(connection, query_hash(COURSES).hex(), "due", clock.now_ms())
        async with here.registry.plain() as connection:
            await pulls.abandon(connection, clock.now_ms())
        (pull,) = await rows(here, schema.pull)
        assert (pull.state, pull.finished_ms) == ("abandoned", clock.wall_ms)

    async def test_that_changes_nothing_changes_results_alone(self, here: World) -> None:
        source_of(here).courses = [course("A+1", run("a1"), run("x1", restricted=True))]
        await here.add("a", SHOWN_FILTER)
        await here.pull()
        before = [await rows(here, table) for table in (schema.content, schema.document, schema.catalog_query)]
        await here.pull()
        after = [await rows(here, table) for table in (schema.content, schema.document, schema.catalog_query)]
        assert after == before


class TestWhatIsKnown:
    async def test_has_the_keys_that_were_asked_for_and_the_runs_of_their_courses(self, here: World) -> None:
        source_of(here).courses = [course("A+1", run("a1"), run("a2")), course("B+1", run("b1"))]
        await here.add("a", COURSES)
        await here.pull()
        async with here.registry.read() as connection:
            known = await pulls.known(connection, ["A+1", "b1", "unknown"])
        assert set(known.facts) == {"A+1", "a1", "a2", "b1"}
        assert set(known.documents) == {(known.facts["A+1"].ordinal, PLAIN)}
        assert known.next_ordinal == 5

    async def test_of_an_empty_registry_begins_with_0(self, here: World) -> None:
        async with here.registry.read() as connection:
            assert (await pulls.known(connection, ["A+1"])).next_ordinal == 0

    async def test_works_for_more_keys_than_one_statement_takes(self, here: World) -> None:
        source_of(here).courses = [course(f"A+{n}", run(f"r{n}")) for n in range(1200)]
        await here.add("a", COURSES)
        await here.pull()
        async with here.registry.read() as connection:
            known = await pulls.known(connection, [f"A+{n}" for n in range(1200)])
            texts = await pulls.texts(connection, {(o, PLAIN) for o in range(1200)} | {(0, SHOWN)})
        assert (len(known.facts), len(known.documents), known.next_ordinal) == (2400, 1200, 2400)
        assert len(texts) == 1200

    async def test_keys_that_differ_in_case_or_accents_are_two(self, here: World) -> None:
        source_of(here).courses = [course(key) for key in ("A+é", "A+e", "a+e", "A+E\u0301")]
        await here.add("a", COURSES)
        await here.pull()
        assert len(await rows(here, schema.content)) == 4


class TestAccepting:
    async def test_by_a_deposed_leader_changes_nothing(self, here: World) -> None:
        await here.add("a", COURSES)
        (target,) = await targets(here)
        before = await rows(here, schema.result)
        with pytest.raises(Deposed):
            async with here.registry.write(here.epoch - 1) as tx:
                await pulls.accept(tx, "task", target.hash, Ingested(), members=0)
        assert await rows(here, schema.result) == before

    async def test_that_fails_half_way_leaves_nothing(self, here: World) -> None:
        source_of(here).courses = [course("A+1", run("a1"))]
        await here.add("a", COURSES)
        (target,) = await targets(here)
        pulled = await here.source.pull(COURSES)
        async with here.registry.read() as connection:
            known = await pulls.known(connection, mentioned(pulled))
        ingested = ingest(pulled, known, here.clock.now_ms())

        async def accept() -> None:
            async with here.registry.write(here.epoch) as tx:
                await pulls.accept(tx, "task", target.hash, ingested, members=1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await accept()
        assert await rows(here, schema.content) == await rows(here, schema.document) == []
        assert [r.state for r in await rows(here, schema.result)] == [PullState.DUE]


ACME = CustomerDetails(uuid_of("Acme"), "acme", portal=True, name="Acme", modified="2026-01-01T00:00:00Z")


class TestCustomers:
    async def due(self, here: World, older_than_ms: int) -> list[str]:
        async with here.registry.read() as connection:
            return await pulls.customers_due(connection, older_than_ms, here.clock.now_ms())

    async def put(self, here: World, details: CustomerDetails | None, modified_ms: int = 5) -> int:
        async with here.registry.write() as tx:
            await pulls.put_customer(tx, uuid_of("Acme"), details, modified_ms)
            return tx.clock

    async def test_of_catalogs_are_due_once_and_then_when_they_are_old(self, here: World, clock: FakeClock) -> None:
        await here.add("a", COURSES)
        await here.add("b", {"key": "1"})
        assert await self.due(here, 0) == [uuid_of("Acme")]
        await self.put(here, ACME)
        assert await self.due(here, clock.wall_ms - 1) == []
        assert await self.due(here, clock.wall_ms) == [uuid_of("Acme")]
        await here.remove(uuid_of("catalog a"))
        await here.remove(uuid_of("catalog b"))
        assert await self.due(here, clock.wall_ms) == []

    async def test_that_were_asked_for_at_a_time_that_is_to_come_are_due(self, here: World, clock: FakeClock) -> None:
        """Another machine's clock was wrong; they must not wait until it is right."""
        await here.add("a", COURSES)
        clock.wall_ms += 86_400_000
        await self.put(here, ACME)
        clock.wall_ms -= 86_400_000
        assert await self.due(here, clock.wall_ms - 1) == [uuid_of("Acme")]
        await self.put(here, ACME)
        assert await self.due(here, clock.wall_ms - 1) == []

    async def test_that_the_lms_does_not_know_are_not_asked_for_all_the_time(
        self, here: World, clock: FakeClock
    ) -> None:
        await here.add("a", COURSES)
        await self.put(here, None)
        assert await self.due(here, clock.wall_ms - 1) == []

    async def test_move_their_clock_only_when_they_change(self, here: World, clock: FakeClock) -> None:
        first = await self.put(here, ACME)
        clock.advance(60)
        await self.put(here, ACME)
        (row,) = await rows(here, schema.customer)
        assert (row.clock, row.pulled_at_ms) == (first, clock.wall_ms)
        for details, modified_ms in ((ACME, 6), (None, 0), (ACME, 6)):
            moved = await self.put(here, details, modified_ms)
            (row,) = await rows(here, schema.customer)
            assert row.clock == moved
        assert (row.slug, row.portal, row.name, row.modified_ms) == ("acme", True, "Acme", 6)

    async def test_are_published_while_the_lms_knows_them(self, here: World) -> None:
        source_of(here).customers = [customer("Acme")]
        await here.add("a", COURSES)
        await here.build()
        record = (await here.index()).customers[uuid_of("Acme")]
        assert (record.slug, record.portal, record.name) == ("acme", True, "Acme")
        source_of(here).customers = []
        await here.build()
        assert (await here.index()).customers == {}


class TestGivingUp:
    async def test_is_noted_of_the_pull_under_way_and_shown_until_the_next_ends(
        self, here: World, clock: FakeClock
    ) -> None:
        await here.add("a", COURSES)
        await here.pull()
        (target,) = await targets(here)
        clock.advance(10)
        async with here.registry.plain() as connection:
            await pulls.start(connection, target.hash, "due", clock.now_ms())
            await pulls.give_up(connection, target.hash, "full", clock.now_ms(), here.epoch)
            assert await pulls.given_up(connection) == {target.hash: "full"}
        assert [(p.state, p.error) for p in await rows(here, schema.pull) if p.state != "passed"] == [
            ("failed", "full")
        ]
        assert await targets(here) == [target]
        clock.advance(10)
        await here.pull()
        async with here.registry.read() as connection:
            assert await pulls.given_up(connection) == {}

    async def test_ends_no_pull_that_somebody_asked_for_and_that_can_be_done_again(
        self, here: World, clock: FakeClock
    ) -> None:
        await here.add("a", COURSES)
        await here.pull()
        (target,) = await targets(here)
        clock.advance(10)
        async with here.registry.plain() as connection:
            task = await pulls.request(connection, target.hash, clock.now_ms())
            assert await pulls.start(connection, target.hash, "due", clock.now_ms()) == task
            await pulls.give_up(connection, target.hash, "full", clock.now_ms(), here.epoch, again=True)
            assert await pulls.given_up(connection) == {target.hash: "full"}
            assert set(await pulls.requested(connection)) == {target.hash}
        assert [q.error for q in (await status(here.registry, Settings())).queries] == ["full"]
        clock.advance(10)
        await here.pull()
        async with here.registry.read() as connection:
            assert await pulls.given_up(connection) == {}
            done = await pulls.look_up(connection, task)
        assert done is not None
        assert (done.state, done.error) == ("passed", None)
        assert [q.error for q in (await status(here.registry, Settings())).queries] == [None]

    async def test_by_a_deposed_leader_is_not_noted(self, here: World, clock: FakeClock) -> None:
        """The pull under way may be its successor's."""
        async with here.registry.plain() as connection:
            await pulls.start(connection, "a" * 32, "due", clock.now_ms())
            await pulls.give_up(connection, "a" * 32, "full", clock.now_ms(), here.epoch - 1)
        assert [p.state for p in await rows(here, schema.pull)] == ["running"]


async def test_pulls_are_forgotten_after_a_month_but_the_last_of_each_filter(here: World, clock: FakeClock) -> None:
    await here.add("a", {"key": "1"}, query_title="a")
    await here.add("b", {"key": "2"}, query_title="b")
    await here.pull()
    clock.advance(60)
    await here.pull("a")
    clock.advance(60)
    first_ms = clock.wall_ms - 120_000
    async with here.registry.plain() as connection:
        assert await pulls.prune(connection, first_ms + pulls.PULLS_KEPT_MS) == 0
        await pulls.start(connection, "c" * 32, "due", 0)
        assert await pulls.prune(connection, clock.now_ms() + 2 * pulls.PULLS_KEPT_MS) == 1
    left = sorted((p.requested_ms - first_ms, p.state) for p in await rows(here, schema.pull))
    assert left == [(-first_ms, "running"), (0, "passed"), (60_000, "passed")]


class TestRequests:
    HASH = "a" * 32

    async def ask(self, here: World, now_ms: int, hash_: str = HASH) -> str:
        async with here.registry.plain() as connection:
            return await pulls.request(connection, hash_, now_ms)

    async def start(self, here: World, reason: str, now_ms: int) -> str:
        async with here.registry.plain() as connection:
            return await pulls.start(connection, self.HASH, reason, now_ms)

    async def waited_for(self, here: World) -> dict[str, int]:
        async with here.registry.read() as connection:
            return await pulls.requested(connection)

    async def look_up(self, here: World, task: str) -> pulls.Pull:
        async with here.registry.read() as connection:
            found = await pulls.look_up(connection, task)
        assert found is not None
        return found

    async def test_have_one_task_until_its_pull_ends(self, here: World, clock: FakeClock) -> None:
        task = await self.ask(here, 1)
        assert await self.ask(here, 2) == task
        assert await self.ask(here, 2, "b" * 32) != task
        assert await self.start(here, "due", 3) == task
        assert await self.ask(here, 4) == task
        assert (await self.look_up(here, task)).state == "running"
        async with here.registry.plain() as connection:
            await pulls.give_up(connection, self.HASH, "full", clock.now_ms(), here.epoch)
        assert await self.ask(here, 5) != task

    async def test_are_waited_for_since_they_came(self, here: World) -> None:
        assert await self.waited_for(here) == {}
        await self.ask(here, 1)
        await self.ask(here, 2, "b" * 32)
        await self.ask(here, 3)
        assert await self.waited_for(here) == {self.HASH: 1, "b" * 32: 2}

    async def test_that_join_a_pull_are_waited_for_like_others(self, here: World) -> None:
        task = await self.start(here, "due", 1)
        assert await self.waited_for(here) == {}
        assert await self.ask(here, 2) == task
        assert await self.waited_for(here) == {self.HASH: 1}

    async def test_outlive_the_leader_that_had_begun(self, here: World, clock: FakeClock) -> None:
        """Under one task id, whether they came before or during the pull; what nobody waits for is abandoned."""
        task = await self.ask(here, 1)
        for _ in range(2):
            assert await self.start(here, "due", 2) == task
            async with here.registry.plain() as connection:
                nobodys = await pulls.start(connection, "b" * 32, "due", 2)
                await pulls.abandon(connection, clock.now_ms())
            found = await self.look_up(here, task)
            assert (found.state, found.reason, found.requested_ms) == ("requested", "demand", 1)
            assert (await self.look_up(here, nobodys)).state == "abandoned"

    async def test_that_were_cut_off_are_taken_over_by_the_next_pull_of_the_filter(self, here: World) -> None:
        """Nothing is left behind that later requests would join and wait for in vain."""
        task = await self.start(here, "due", 1)
        assert await self.start(here, "due", 2) == task
        assert len(await rows(here, schema.pull)) == 1

    async def test_that_are_dismissed_are_abandoned(self, here: World) -> None:
        task, other = await self.ask(here, 1), await self.ask(here, 1, "b" * 32)
        async with here.registry.plain() as connection:
            await pulls.dismiss(connection, [self.HASH, "c" * 32], 9)
        found = await self.look_up(here, task)
        assert (found.state, found.finished_ms) == ("abandoned", 9)
        assert found.error == "no catalog wants this filter any more"
        assert (await self.look_up(here, other)).state == "requested"

    async def test_for_a_filter_that_is_no_object_end_with_its_pull(self, here: World) -> None:
        row = await here.add("a", "no object")
        task = await self.ask(here, 1, row.wanted)
        assert await here.pull() == [False]
        found = await self.look_up(here, task)
        assert (found.state, found.members) == ("passed", 0)
        assert await self.waited_for(here) == {}
