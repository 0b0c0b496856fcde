"""Writes while everything runs: two sidecars, two indexers, and whatever happens to them."""

import asyncio
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from indexer import tree
from sidecar.store import Store
from tests.fakes import Json, catalog_body, course, customer, program, run, uuid_of
from tests.fleet import CATALOGS, Answer, Fleet, Process, fleet
from tests.redis_server import RedisServer

COURSES = {"content_type": "course"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty courses with two runs each, some programs, a customer."""
    courses = [course(f"Org{n % 4}+{n}", run(f"run-{n}-1"), run(f"run-{n}-2", active=False)) for n in range(40)]
    programs = [program(f"Program {n}", f"Org{n}+{n}") for n in range(4)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.json"
    path.write_text(
        json.dumps(
            {"courses": courses, "programs": programs, "pathways": [], "reviews": [], "customers": [customer("Acme")]}
        )
    )
    return path


def source(corpus: Path) -> Json:
    return {"kind": "file", "path": str(corpus)}


def of_org(number: int) -> Json:
    """A filter of which there are many."""
    return {"content_type": "course", "org": [f"Org{number % 4}"], "number": number}


def add_course(corpus: Path, added: Json) -> None:
    """What the next pull finds, too."""
    content = json.loads(corpus.read_text())
    content["courses"].append(added)
    corpus.write_text(json.dumps(content))


async def create(through: Process, title: str, content_filter: object, **fields: Any) -> Answer:
    return await through.ask("POST", CATALOGS, json=catalog_body(title, content_filter, **fields))


def path_of(title: str) -> str:
    return f"{CATALOGS}{uuid_of(f'catalog {title}')}/"


async def contains(through: Process, title: str, key: str) -> tuple[int, Any]:
    """What the catalog says of a key, and with which status."""
    status, body, _ = await through.get(path_of(title) + "contains_content_items/", params={"course_run_ids": key})
    return status, body.get("contains_content_items")


async def until_contains(through: Process, title: str, key: str) -> None:
    async def yes() -> bool:
        return await contains(through, title, key) == (200, True)

    await through.until(yes)


async def whole(store: Store) -> bool:
    """Whether every object of the published tree can be read."""
    pointer = await store.pointer()
    if pointer is None:
        return False
    found = await tree.references(store, pointer.digest)
    return len(await tree.intact(store, found)) == len(found)


async def test_a_catalog_is_made_read_asked_changed_and_removed_through_a_sidecar(tmp_path: Path, corpus: Path) -> None:
    async with fleet(tmp_path, source(corpus)) as it:
        (sidecar,) = it.sidecars
        status, made, headers = await create(sidecar, "a", {"content_type": "course", "org": "Org1"}, query_title="t")
        assert (status, made["uuid"], made["query_title"]) == (201, uuid_of("catalog a"), "t")
        generation = int(headers["X-Catalog-Generation"])
        assert "X-Catalog-Published" not in headers
        status, read, _ = await sidecar.get(path_of("a"))
        assert (status, read) == (200, made)
        await until_contains(sidecar, "a", "run-1-2")
        assert await contains(sidecar, "a", "run-2-1") == (200, False)
        assert (await create(sidecar, "a", {"org": "Org1", "content_type": "course"}, query_title="t"))[0] == 200
        assert (await create(sidecar, "a", {"content_type": "program"}))[0] == 409

        status, changed, headers = await sidecar.ask("PATCH", path_of("a"), json={"content_filter": {"org": "Org2"}})
        assert (status, changed["uuid"]) == (200, made["uuid"])
        assert int(headers["X-Catalog-Generation"]) > generation
        await until_contains(sidecar, "a", "run-2-1")
        assert await contains(sidecar, "a", "run-1-2") == (200, False)

        status, task, _ = await sidecar.ask("POST", path_of("a") + "refresh_metadata")
        assert status == 200

        async def passed() -> bool:
            body = (await it.indexers[0].get(f"/api/v1/pulls/{task['async_task_id']}/"))[1]
            return (body["state"], body["reason"], body["members"]) == ("passed", "demand", 10)

        await it.indexers[0].until(passed)
        assert (await sidecar.ask("DELETE", path_of("a")))[0] == 204
        assert (await sidecar.get(path_of("a")))[0] == 404
        assert await contains(sidecar, "a", "run-2-1") == (404, None)


async def test_a_changed_query_answers_from_its_last_content_until_the_new_filter_is_pulled(
    tmp_path: Path, corpus: Path
) -> None:
    """The source is gone when the filter changes: neither false nor 503, but what was true last."""
    own = Path(shutil.copy(corpus, tmp_path))
    async with fleet(tmp_path, source(own)) as it:
        (sidecar,) = it.sidecars
        await create(sidecar, "a", {"content_type": "course", "org": "Org1"})
        await until_contains(sidecar, "a", "run-1-1")
        shutil.move(own, tmp_path / "away.json")
        for change in (
            {"content_filter": {"org": "Org2"}},
            {"content_filter": {"org": "Org3"}, "catalog_query_uuid": None},
        ):
            assert (await sidecar.ask("PATCH", path_of("a"), json=change))[0] == 200

            async def failing() -> bool:
                queries: object = (await it.indexers[0].health())["queries"]
                return queries == {"failing": 1}

            await it.indexers[0].until(failing)
            assert await contains(sidecar, "a", "run-1-1") == (200, True)
            assert await contains(sidecar, "a", "run-3-1") == (200, False)
        shutil.move(tmp_path / "away.json", own)
        await sidecar.ask("POST", path_of("a") + "refresh_metadata/")
        await until_contains(sidecar, "a", "run-3-1")
        assert await contains(sidecar, "a", "run-1-1") == (200, False)


async def test_what_was_written_through_one_sidecar_is_read_through_another(tmp_path: Path, corpus: Path) -> None:
    """At once, by whoever passes on what the answer said: the generation of a write, the task of a refresh."""
    own = Path(shutil.copy(corpus, tmp_path))
    async with fleet(tmp_path, source(own), sidecars=2) as it:
        written_through, read_through = it.sidecars
        for n in range(10):
            orgs = [f"Org{n % 4}", f"Org{n}"]
            _, _, headers = await create(written_through, f"c{n}", {"content_type": "course", "org": orgs})
            seen = {"X-Min-Generation": headers["X-Catalog-Generation"]}
            status, body, _ = await read_through.get(path_of(f"c{n}"), headers=seen)
            assert (status, body["title"]) == (200, f"c{n}")
        await until_contains(read_through, "c1", "run-1-1")
        add_course(own, course("Org1+new", run("run-new")))
        _, task, _ = await written_through.ask("POST", path_of("c1") + "refresh_metadata")
        query = {"course_run_ids": "run-new"}
        status, body, _ = await read_through.get(
            path_of("c1") + "contains_content_items/", params=query, headers={"X-After-Task": task["async_task_id"]}
        )
        assert (status, body) == (200, {"contains_content_items": True})


async def test_what_is_not_ours_is_asked_of_the_service_whose_place_we_take(tmp_path: Path, corpus: Path) -> None:
    """Another installation stands in for it: an indexer has routes that a sidecar has not."""
    folders = [tmp_path / name for name in ("theirs", "ours")]
    for folder in folders:
        folder.mkdir()
    async with fleet(folders[0], source(corpus)) as theirs:
        settings = {"upstream": {"url": theirs.indexers[0].url}}
        async with fleet(folders[1], source(corpus), settings=settings) as ours:
            (sidecar,) = ours.sidecars
            assert (await create(theirs.sidecars[0], "a", COURSES))[0] == 201
            _, task, _ = await theirs.sidecars[0].ask("POST", path_of("a") + "refresh_metadata")
            status, pull, headers = await sidecar.get(f"/api/v1/pulls/{task['async_task_id']}/")
            assert (status, pull["task"]) == (200, task["async_task_id"])
            assert "catalog-sidecar-" in headers["Via"]
            # What is ours is ours: they have this catalog, and we have not.
            assert (await sidecar.get(path_of("a")))[0] == 404


@pytest.fixture(params=["sqlite", "redis"])
async def store_url(request: pytest.FixtureRequest) -> AsyncIterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    server = RedisServer()
    server.start()
    try:
        yield server.url
    finally:
        server.remove()


async def test_200_writes_at_once_are_read_back_at_once_and_soon_everywhere(
    tmp_path: Path, corpus: Path, store_url: str | None
) -> None:
    """Creates, changes and deletes through two sidecars, whose indexers are two: one of them does not lead."""
    async with fleet(tmp_path, source(corpus), indexers=2, sidecars=2, store_url=store_url) as it:
        await asyncio.gather(*(create(it.sidecars[n % 2], f"old {n}", of_org(n)) for n in range(120)))
        slowest_s = 0.0

        async def write(n: int) -> None:
            nonlocal slowest_s
            mine, other = it.sidecars[n % 2], it.sidecars[1 - n % 2]
            if n < 80:
                title, expected = f"new {n}", (200, f"new {n}")
                status, _, headers = await create(mine, title, of_org(n % 30))
                assert status == 201
            elif n < 140:
                title, expected = f"old {n - 80}", (200, f"changed {n}")
                body: Json = {"title": expected[1], "content_filter": of_org(200 + n)}
                status, _, headers = await mine.ask("PATCH", path_of(title), json=body)
                assert status == 200
            else:
                title, expected = f"old {n - 80}", (404, "")
                status, _, headers = await mine.ask("DELETE", path_of(title))
                assert status == 204
            assert "X-Catalog-Generation" in headers
            written = time.monotonic()

            async def seen_through(sidecar: Process) -> bool:
                status, body, _ = await sidecar.get(path_of(title))
                return (status, body.get("title", "")) == expected

            assert await seen_through(mine)
            await other.until(lambda: seen_through(other))
            slowest_s = max(slowest_s, time.monotonic() - written)

        began = time.monotonic()
        await asyncio.gather(*(write(n) for n in range(200)))
        print(
            f"200 writes in {time.monotonic() - began:.1f} s; the last to be seen through the other: {slowest_s:.2f} s"
        )
        registered = await it.registered()
        assert len(registered) == 140
        for sidecar in it.sidecars:
            listed = (await sidecar.get(CATALOGS, params={"page_size": "1000"}))[1]["results"]
            assert [(c["uuid"], c["title"], c["catalog_query_uuid"]) for c in listed] == [
                (row.uuid, row.title, row.query_uuid) for row in registered
            ]
        await it.settle()


async def test_without_an_indexer_writes_are_refused_at_once_and_reads_go_on(tmp_path: Path, corpus: Path) -> None:
    async with fleet(tmp_path, source(corpus)) as it:
        (sidecar,), (indexer,) = it.sidecars, it.indexers
        await create(sidecar, "a", COURSES)
        await until_contains(sidecar, "a", "run-1-1")
        await indexer.end(signal.SIGKILL)
        status, body, headers = await create(sidecar, "b", COURSES)
        assert (status, int(headers["Retry-After"]) > 0, "detail" in body) == (503, True, True)
        assert await contains(sidecar, "a", "run-1-1") == (200, True)
        assert (await sidecar.get(path_of("a")))[0] == 200
        await indexer.start()
        assert (await create(sidecar, "b", COURSES))[0] == 201
        assert (await sidecar.get(path_of("b")))[0] == 200


async def test_the_other_indexer_takes_over_from_one_that_is_killed(tmp_path: Path, corpus: Path) -> None:
    async with fleet(tmp_path, source(corpus), indexers=2, sidecars=2) as it:
        first, second = it.indexers
        assert await it.leader() is first
        # Through the indexer that follows: the leader publishes it.
        assert (await create(it.sidecars[1], "a", COURSES))[0] == 201
        await it.settle()
        await first.end(signal.SIGKILL)
        status, _, headers = await create(it.sidecars[1], "b", {"content_type": "program"})
        assert (status, "X-Catalog-Generation" in headers) == (201, True)
        await until_contains(it.sidecars[0], "b", uuid_of("Program 1"))
        assert (await second.health())["leading"] is True
        await first.start()
        assert (await first.health())["leading"] is False


async def test_a_leader_that_was_paused_past_its_lease_is_refused_when_it_wakes(tmp_path: Path, corpus: Path) -> None:
    async with fleet(tmp_path, source(corpus), indexers=2, sidecars=2) as it:
        first, second = it.indexers
        await create(it.sidecars[0], "a", COURSES)
        await it.settle()
        epoch = (await first.health())["epoch"]
        first.send(signal.SIGSTOP)
        assert (await create(it.sidecars[1], "b", {"content_type": "program"}))[0] == 201
        await until_contains(it.sidecars[1], "b", uuid_of("Program 1"))
        served = (await it.sidecars[1].health())["generation"]
        first.send(signal.SIGCONT)

        async def deposed() -> bool:
            return "the lead is lost" in first.log.read_text()

        await first.until(deposed)
        health = await first.health()
        assert (health["leading"], health["epoch"] > epoch, health["holder"] is not None) == (False, True, True)
        assert (await second.health())["leading"] is True
        # It is still good for writes, which the other one publishes, and it may lead again.
        assert (await create(it.sidecars[0], "c", of_org(1)))[0] == 201
        assert (await it.sidecars[0].health())["generation"] > served
        await second.end()
        assert (await create(it.sidecars[0], "d", of_org(2)))[0] == 201
        await second.start()


@pytest.mark.parametrize("loss", ["flushed", "restarted empty", "restarted from an older dump"])
async def test_a_redis_that_loses_what_it_had_is_written_again_while_sidecars_go_on(
    tmp_path: Path, corpus: Path, loss: str
) -> None:
    server = RedisServer()
    server.start()
    try:
        async with fleet(tmp_path, source(corpus), store_url=server.url, sidecars=2) as it:
            await create(it.sidecars[0], "a", COURSES)
            await it.settle()
            if loss == "restarted from an older dump":
                server.save()
            await create(it.sidecars[0], "b", {"content_type": "program"})
            await it.settle()
            before = (await it.sidecars[0].health())["generation"]
            answers: list[tuple[int, Any]] = []
            asking = asyncio.create_task(_ask_on(it, answers))
            if loss == "flushed":
                server.flush()
            else:
                server.kill()
                server.start()
            store = it.store()

            async def written_again() -> bool:
                pointer = await store.pointer()
                return pointer is not None and pointer.generation > before and await whole(store)

            await it.indexers[0].until(written_again, within_s=60)
            for sidecar in it.sidecars:

                async def follows(sidecar: Process = sidecar) -> bool:
                    health = await sidecar.health()
                    return bool(health["generation"] > before and health["status"] == "ok")

                await sidecar.until(follows)
            asking.cancel()
            await asyncio.wait({asking})
            assert set(answers) == {(200, True)}
            assert (await create(it.sidecars[1], "c", of_org(3)))[0] == 201
            await store.close()
    finally:
        server.remove()


async def _ask_on(it: Fleet, answers: list[tuple[int, Any]]) -> None:
    while True:
        for sidecar in it.sidecars:
            answers.append(await contains(sidecar, "a", "run-1-1"))
            answers.append(await contains(sidecar, "b", uuid_of("Program 1")))
        await asyncio.sleep(0)


async def test_what_a_killed_indexer_had_committed_is_published_by_the_next(tmp_path: Path, corpus: Path) -> None:
    """It dies between the transaction and the answer: the caller cannot tell, and repeats the create."""
    async with fleet(tmp_path, source(corpus)) as it:
        (sidecar,), (indexer,) = it.sidecars, it.indexers
        await create(sidecar, "a", COURSES)
        await it.settle()
        # While somebody else writes to the store, nothing can be published.
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as store:
            store.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(create(sidecar, "b", COURSES))

            async def committed() -> bool:
                return len(await it.registered()) == 2

            await indexer.until(committed)
            await indexer.end(signal.SIGKILL)
            status, body, headers = await writing
        assert (status, "Retry-After" in headers, "cannot be told" in body["detail"]) == (503, True, True)
        await indexer.start()

        async def published() -> bool:
            return (await sidecar.get(path_of("b")))[0] == 200

        await sidecar.until(published)
        assert (await create(sidecar, "b", COURSES))[0] == 200
