"""Documents are served as recorded, whole pages of one generation, and never a document short."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from indexer.registry import catalogs, pulls
from sidecar.app import Sidecar
from sidecar.content import MAX_KEYS, NO_KEYS, TOO_MANY_KEYS_OF_DIFF, Contents, content_routes
from sidecar.contract.index import Dictionary
from sidecar.contract.records import Metadata, Segment, open_record
from sidecar.contract.words import ContentType
from sidecar.documents import Links
from sidecar.errors import ContractError
from sidecar.handlers import RETRY_AFTER_S, Handler
from sidecar.settings import Settings, SidecarSettings
from sidecar.shelves import Shelves
from sidecar.store.memory import MemoryStore
from sidecar.walks import Walks
from tests.fakes import FakeClock
from tests.sidecar.contract.tree import Answers, Catalog, Item, Query, Tree, build
from tests.sidecar.replayed import ALL_SEEING, BODIES, Json, Judge, Rig, exchanges, key_of, read, replaying
from tests.tokens import StillClock, settings
from tests.trees import publish

EVERYTHING = "cc5b5eb4-74d6-4cc6-8465-f9d4082c30a2"
PROGRAMS = "a4926d0e-719d-4612-9076-568b691482e5"
RUNS = "15e11785-7ec5-4e1f-bb12-cbcdeb85d2fc"
ORGS = "c982df1e-77c6-43be-82f3-69baf6efc542"
CUSTOMER = BODIES[EVERYTHING]["enterprise_customer"]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MITX, MITX_RUN = "MITx+EC001", "course-v1:MITx+EC001+1T2024"
MITX_UUID = "2ef45ebc-5170-4ac0-a132-f3d3e869f1af"
INACTIVE = "HarvardX+EC008"


def pages(uuid: str, version: str = "v1") -> str:
    return f"/api/{version}/enterprise-catalogs/{uuid}/get_content_metadata/"


def diff(uuid: str) -> str:
    return f"/api/v1/enterprise-catalogs/{uuid}/generate_diff/"


def keys(*asked: str) -> str:
    return "&".join(f"content_keys={quote(key, safe='')}" for key in asked)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with replaying(tmp_path) as here:
        yield here


async def served(rig: Rig, path: str, query: str = "") -> list[str]:
    status, body = await rig.get(path, query)
    assert status == 200
    return [key_of(document) for document in body["results"]]


@pytest.mark.parametrize(
    "group, asked", [("04_get_content_metadata", 83), ("05_customer_content_metadata", 22), ("06_generate_diff", 5)]
)
async def test_everything_is_answered_as_it_was_recorded(rig: Rig, group: str, asked: int) -> None:
    judge, wrong = Judge(), {}
    mine = [e for e in exchanges(group) if e["actor"] in ALL_SEEING]
    for exchange in mine:
        if said := await judge.wrong(exchange, await rig.send(exchange)):
            wrong[exchange["id"]] = said
    assert wrong == {}
    assert len(mine) == asked


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_pages_of_a_catalog_are_all_of_it_and_nothing_twice(rig: Rig, version: str) -> None:
    judge, compared = Judge(), 0
    for uuid in BODIES:
        found, count = await rig.walk(pages(uuid, version), "page_size=7")
        assert len(found) == len(set(found)) == count
        status, whole = await rig.get(pages(uuid, version), "traverse_pagination=1")
        assert status == 200
        assert [key_of(document) for document in whole["results"]] == found
        if (version, uuid) in judge.documents:
            for document in whole["results"]:
                compared += key_of(document) in judge.documents[version, uuid]
                assert judge.document(version, uuid, document) is None
    assert compared >= (100 if version == "v1" else 10)


async def test_a_walk_goes_on_while_generations_are_published(rig: Rig) -> None:
    before, _ = await rig.walk(pages(EVERYTHING), "page_size=20")
    found: list[str] = []
    for page in (1, 2, 3):
        found += await served(rig, pages(EVERYTHING), f"page_size=20&page={page}")
        await rig.world.add(f"another {page}", {"content_type": "course", "n": page})
        await rig.world.pull()
        await rig.publish()
    assert found == before
    assert rig.sidecar.current.generation is not None
    assert rig.sidecar.current.generation.pointer.generation == 4


async def test_a_walk_over_content_that_comes_and_goes_misses_and_repeats_nothing_else(tmp_path: Path) -> None:
    """After each page two courses leave that were on it, and those that left before come back."""
    corpus, whole = tmp_path / "corpus.json", read("corpus")
    corpus.write_text(json.dumps(whole))
    async with replaying(tmp_path, corpus=corpus) as rig:
        before = await served(rig, pages(EVERYTHING), "traverse_pagination=1")
        found, left, query = list[str](), set[str](), "page_size=7"
        while query:
            status, body = await rig.get(pages(EVERYTHING), query)
            assert status == 200
            shown = [key_of(document) for document in body["results"]]
            found += shown
            gone = set([key for key in shown if "+" in key and not key.startswith("course-v1:")][:2])
            left |= gone
            courses = [course for course in whole["courses"] if course["search"]["key"] not in gone]
            corpus.write_text(json.dumps({**whole, "courses": courses}))
            await rig.world.pull()
            await rig.publish()
            query = (body["next"] or "").partition("?")[2]
    assert len(set(found)) == len(found)
    assert set(before) - left <= set(found) <= set(before)
    assert len(left) >= 10


async def test_answers_tell_their_generation_and_age(rig: Rig) -> None:
    rig.world.clock.advance(61)
    customers = f"/api/v1/enterprise-customer/{CUSTOMER}/content-metadata/{MITX}/"
    for path in (pages(EVERYTHING), f"{diff(EVERYTHING)}?{keys(MITX)}", customers):
        answer = await rig.client.get(path)
        assert (answer.headers["X-Catalog-Generation"], answer.headers["X-Catalog-Age"]) == ("1", "61")
    for path in ("/api/v1/content-metadata/", f"/api/v1/content-metadata/{MITX}"):
        answer = await rig.client.get(path)
        assert answer.headers["X-Catalog-Generation"] == "1"
        assert "X-Catalog-Age" not in answer.headers


def metadata(rig: Rig) -> dict[str, bytes]:
    """The digests of documents in the store, by key; of a document with variants, of any."""
    found = {}
    for digest, data in rig.store.objects.items():
        try:
            record = open_record(digest, data, Metadata.TYPE)
        except ContractError:
            continue
        assert isinstance(record, Metadata)
        found[record.key] = digest
    return found


@pytest.mark.parametrize("left", [None, b"", b"garbage"])
async def test_a_document_that_no_tier_has_whole_is_no_shorter_page(rig: Rig, left: bytes | None) -> None:
    digest = metadata(rig)[MITX]
    sound = rig.store.objects.pop(digest)
    if left is not None:
        rig.store.objects[digest] = left
    paths = (
        (pages(EVERYTHING), "page_size=100"),
        (pages(EVERYTHING), "traverse_pagination=1"),
        (pages(EVERYTHING), keys(MITX)),
        (f"/api/v2/enterprise-customer/{CUSTOMER}/content-metadata/{MITX}/", ""),
        (f"/api/v1/content-metadata/{MITX}", ""),
        ("/api/v1/content-metadata/", "page_size=100"),
    )
    for path, query in paths:
        answer = await rig.send({"method": "GET", "path": path, "query": query})
        assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
    rig.store.objects[digest] = sound
    for path, query in paths:
        assert (await rig.get(path, query))[0] == 200
    assert len(await served(rig, pages(EVERYTHING), "page_size=100")) == 55


async def test_a_content_shard_that_no_tier_has_is_no_empty_answer(rig: Rig) -> None:
    generation = rig.sidecar.current.generation
    assert generation is not None
    held = {digest: rig.store.objects.pop(digest) for digest in generation.index.content}
    for path in (pages(EVERYTHING), "/api/v1/content-metadata/", f"/api/v1/content-metadata/{MITX}"):
        assert (await rig.get(path))[0] == 503
    answer = await rig.client.post(diff(EVERYTHING), json={"content_keys": [MITX]})
    assert answer.status == 503
    rig.store.objects.update(held)


async def test_memory_stays_within_its_bound_and_pages_whole(rig: Rig) -> None:
    memory = rig.sidecar.memory
    memory.limit_bytes = 60_000
    for _ in range(2):
        found, count = await rig.walk(pages(EVERYTHING), "page_size=5")
        assert len(set(found)) == count == 55
        assert memory.bytes <= memory.limit_bytes
    assert memory.evictions > 0


async def test_a_traversal_pushes_nothing_out_of_memory(rig: Rig) -> None:
    """What others do not need it fills up, and gives back first."""
    await served(rig, pages(PROGRAMS), "page_size=100")
    memory = rig.sidecar.memory
    asked, held = len(memory), memory.bytes
    memory.limit_bytes = 2 * held
    await served(rig, pages(EVERYTHING), "traverse_pagination=1")
    assert (len(memory) > asked, memory.evictions) == (True, 0)
    memory.limit_bytes = held
    await served(rig, pages(EVERYTHING), keys(MITX))
    assert len(memory) <= asked
    await served(rig, pages(EVERYTHING), "traverse_pagination=1")
    assert memory.bytes <= held


async def test_keys_are_split_at_commas_and_folded_and_a_plus_is_a_space(rig: Rig) -> None:
    assert await served(rig, pages(EVERYTHING), keys(f"{MITX},{INACTIVE}")) == await served(
        rig, pages(EVERYTHING), keys(INACTIVE, MITX)
    )
    assert await served(rig, pages(EVERYTHING), keys("mitx+ec001")) == [MITX]
    assert await served(rig, pages(EVERYTHING), f"content_keys={MITX}") == []
    assert await served(rig, pages(EVERYTHING), "content_keys") == []
    assert await served(rig, pages(EVERYTHING), keys(MITX, MITX, MITX_RUN)) == [MITX]
    assert (await rig.get(pages(EVERYTHING), keys(*(f"k{n}" for n in range(101)))))[0] == 400
    # Values are counted, however many keys are in one.
    assert (await rig.get(pages(EVERYTHING), keys(",".join(f"k{n}" for n in range(101)))))[0] == 200


async def test_what_the_diff_calls_included_is_there_when_asked_for_by_key(rig: Rig) -> None:
    """Inactive courses, too: exporters ask for each key that the diff names."""
    answer = await rig.client.post(diff(ORGS), json={"content_keys": [INACTIVE]})
    body = await answer.json()
    named = [item["content_key"] for item in body["items_not_included"] + body["items_found"]]
    assert INACTIVE in named
    assert sorted(await served(rig, pages(ORGS), f"page_size=100&{keys(*named)}")) == sorted(named)


async def test_the_key_of_a_course_gives_its_runs_in_a_catalog_of_runs(rig: Rig) -> None:
    runs = await served(rig, pages(RUNS), "traverse_pagination=1")
    assert MITX_RUN in runs
    found = await served(rig, pages(RUNS), keys(MITX))
    assert MITX_RUN in found
    assert found == [key for key in runs if key.startswith("course-v1:MITx+EC001+")]


async def test_a_uuid_means_the_content_that_has_it_on_v1_and_a_run_its_course_on_v2(rig: Rig) -> None:
    run = next(r for c in read("corpus")["courses"] for r in c["full"]["course_runs"] if r["key"] == MITX_RUN)
    path = f"enterprise-customer/{CUSTOMER}/content-metadata/{run['uuid']}/"
    assert (await rig.get(f"/api/v1/{path}"))[1]["key"] == MITX_RUN
    assert (await rig.get(f"/api/v2/{path}"))[1]["key"] == MITX


async def test_a_diff_asks_about_some_keys_and_not_too_many(rig: Rig) -> None:
    """In a query string; a body may have any number, and none."""
    assert await rig.get(diff(ORGS)) == (400, [NO_KEYS])
    many = [f"k{n}" for n in range(MAX_KEYS + 1)]
    assert await rig.get(diff(ORGS), keys(*many)) == (400, TOO_MANY_KEYS_OF_DIFF)
    assert (await rig.get(diff(ORGS), keys(*many[:-1])))[0] == 200
    assert (await rig.client.post(diff(ORGS), json={"content_keys": many})).status == 200
    answer = await rig.client.options(diff(ORGS))
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, POST")


async def test_a_diff_dates_content_as_its_documents_do(rig: Rig) -> None:
    """A catalog that changed after its content did has changed all documents in it."""
    rig.world.clock.advance(1000)
    async with rig.world.registry.write() as tx:
        await catalogs.change(tx, ORGS, {"title": "another"}, "test")
    await rig.publish()
    (document,) = (await rig.get(pages(ORGS), keys(MITX)))[1]["results"]
    (found,) = (await rig.get(diff(ORGS), keys(MITX)))[1]["items_found"]
    assert found["date_updated"] == document["content_last_modified"]


async def test_without_its_customer_a_document_is_as_old_as_content_and_catalog(rig: Rig) -> None:
    path = f"/api/v1/enterprise-customer/{CUSTOMER}/content-metadata/{quote(MITX)}/"
    rig.world.clock.advance(1000)
    whole = (await rig.get(path))[1]["content_last_modified"]
    skipped = (await rig.get(path, "skip_customer_fetch=1"))[1]["content_last_modified"]
    assert skipped <= whole


async def test_all_documents_without_runs_where_runs_give_their_courses(rig: Rig) -> None:
    _, body = await rig.get("/api/v1/content-metadata/", "page_size=1000")
    _, coerced = await rig.get("/api/v1/content-metadata/", "page_size=1000&coerce_to_parent_course=true")
    courses = [key_of(d) for d in body["results"] if d["content_type"] != "courserun"]
    assert [key_of(d) for d in coerced["results"]] == courses
    assert len(courses) < body["count"] == len(body["results"])


@pytest.mark.parametrize("suffix", ["XYZ", "/XYZ", "//"])
async def test_nothing_goes_after_the_last_word_of_a_path(rig: Rig, suffix: str) -> None:
    for path in (pages(EVERYTHING), diff(EVERYTHING)):
        assert (await rig.client.get(f"{path.removesuffix('/')}?{keys(MITX)}")).status == 200
        assert (await rig.client.get(path.removesuffix("/") + suffix)).status == 404


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"{", b'{"content_keys": 1}', b'{"content_keys": [1]}', b"\xff"])
async def test_a_diff_of_what_is_no_list_of_keys_is_a_bad_request(rig: Rig, body: bytes) -> None:
    answer = await rig.client.post(diff(EVERYTHING), data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, list(await answer.json())) == (400, ["detail"])


async def test_halves_of_surrogate_pairs_are_not_found(rig: Rig) -> None:
    body = b'{"content_keys": ["\\ud800"]}'
    answer = await rig.client.post(diff(EVERYTHING), data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, (await answer.json())["items_not_found"]) == (200, [{"content_key": "?"}])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("identifier", [MITX, MITX_RUN, MITX_UUID, MITX_UUID.upper(), MITX_UUID.replace("-", "")])
async def test_a_customers_document_by_key_run_or_uuid(rig: Rig, version: str, identifier: str) -> None:
    path = f"/api/{version}/enterprise-customer/{CUSTOMER}/content-metadata/{quote(identifier, safe='')}/"
    status, body = await rig.get(path)
    assert (status, body["key"]) == (200, MITX)
    assert body["enrollment_url"] is not None
    status, body = await rig.get(path, "skip_customer_fetch=False")
    assert (body["key"], body["enrollment_url"]) == (MITX, None)
    assert all("enrollment_url" not in run for run in body["course_runs"])
    assert (await rig.client.get(path.removesuffix("/"), allow_redirects=False)).status == 301


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_document_of_no_catalog(rig: Rig, version: str, slash: str) -> None:
    path = f"/api/{version}/content-metadata/"
    status, body = await rig.get(f"{path}{quote(MITX_UUID)}{slash}")
    assert (status, body["key"]) == (200, MITX)
    assert "enrollment_url" not in body
    status, body = await rig.get(f"{path}{quote(MITX_RUN)}{slash}")
    assert (status, body["key"]) == (200, MITX_RUN)
    assert await served(rig, path, f"content_identifiers={quote(MITX_RUN, safe='')}") == [MITX_RUN]


async def test_all_documents_of_no_catalog_are_listed_once(rig: Rig) -> None:
    found, count = await rig.walk("/api/v1/content-metadata/", "page_size=9")
    assert len(found) == len(set(found)) == count
    assert count == len(metadata(rig))


async def test_what_was_never_pulled_cannot_be_told(rig: Rig) -> None:
    odd = await rig.world.add("odd", ["no", "object"], enterprise_customer=CUSTOMER)
    await rig.world.pull()
    due = await rig.world.add("due", {"content_type": "course", "never": "pulled"}, enterprise_customer=CUSTOMER)
    await rig.publish()
    for path in (pages(due.uuid), f"{diff(due.uuid)}?{keys(MITX)}"):
        answer = await rig.client.get(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
    status, body = await rig.get(pages(odd.uuid), "page_size=3")
    assert (status, body["count"], body["results"], body["title"]) == (200, 0, [], "odd")
    nothing = {"items_not_found": [{"content_key": MITX}], "items_not_included": [], "items_found": []}
    assert (await rig.get(diff(odd.uuid), keys(MITX)))[1] == nothing
    customers = f"/api/v1/enterprise-customer/{CUSTOMER}/content-metadata"
    assert (await rig.get(f"{customers}/{quote(MITX)}/"))[0] == 200
    assert (await rig.get(f"{customers}/nowhere/"))[0] == 503
    assert (await rig.get(f"/api/v1/enterprise-customer/{UUID(int=1)}/content-metadata/nowhere/"))[0] == 404


async def test_head_has_the_headers_of_get_and_no_body(rig: Rig) -> None:
    for path in (pages(PROGRAMS), "/api/v1/content-metadata/", f"/api/v1/content-metadata/{quote(MITX)}"):
        get, head = await rig.client.get(path), await rig.client.head(path)
        assert (head.status, await head.read()) == (200, b"")
        assert head.headers["Content-Length"] == str(len(await get.read()))


async def test_nothing_that_is_asked_is_an_error_of_ours(rig: Rig) -> None:
    chance = random.Random(4)
    values = [
        "",
        "0",
        "-1",
        "3",
        "100",
        "101",
        "last",
        "abc",
        "9" * 30,
        "%D9%A3",
        "%00",
        "%ff",
        "1.5",
        "+1",
        "[]",
        "%ED%A0%80",
    ]
    known = [quote(key, safe="") for key in read("00_matrix")["probe_ids"]]
    names = ("page", "page_size", "content_keys", "traverse_pagination", "content_identifiers", "skip_customer_fetch")
    paths = (*map(pages, BODIES), diff(ORGS), "/api/v1/content-metadata/", "/api/v1/catalog-queries/")
    for _ in range(400):
        query = "&".join(
            f"{name}={chance.choice(known if 'key' in name and chance.random() < 0.7 else values)}"
            for name in chance.choices(names, k=chance.randint(0, 5))
        )
        answer = await rig.send({"method": "GET", "path": chance.choice(paths), "query": query})
        body: Json = await answer.json()
        if answer.status != 200:
            assert (answer.status, body) in ((404, {"detail": "Invalid page."}), (400, [NO_KEYS])), query
        assert "results" not in body or len(body["results"]) <= body["count"]


async def test_what_differs_for_a_query_goes_before_what_all_share() -> None:
    """In v2, what differs with restricted runs is on top of what differs for the query in any case."""
    everything, one = Answers({"a", "b", "c"}, {"a", "b", "c"}, {"a", "b", "c"}), UUID(int=1)
    own = Query({"q": 1}, everything, None, {"a": b'{"key":"a","n":1}', "b": b'{"key":"b","n":1}'}, {"b": b'{"key":2}'})
    documents = [Item(key, document=b'{"key":"%b"}' % key.encode()) for key in "abc"]
    tree = build(documents, [own], [Catalog(one, wanted={"q": 1}, serving={"q": 1})])
    store = MemoryStore()
    await publish(store, tree)
    sidecar = Sidecar(Settings(sidecar=SidecarSettings(disk="", poll_ms=10)), store, FakeClock())
    async with TestClient(TestServer(sidecar.app)) as client:
        await sidecar.current.other_than(None)
        for version, want in (
            ("v1", [{"key": "a", "n": 1}, {"key": "b", "n": 1}, {"key": "c"}]),
            ("v2", [{"key": "a", "n": 1}, {"key": 2}, {"key": "c"}]),
        ):
            answer = await client.get(pages(str(one), version))
            assert (await answer.json())["results"] == want


def test_a_uuid_is_looked_up_among_those_that_have_one() -> None:
    uuids: list[bytes | None] = [UUID(int=n).bytes for n in (5, 3, 9, 3)]
    uuids.insert(1, None)
    count = len(uuids)
    segment = Segment(0, bytes([ContentType.COURSE]) * count, tuple("abcde"), (None,) * count, tuple(uuids))
    dictionary = Dictionary().after((segment,), count)
    found: dict[int, Any] = {n: dictionary.of_uuid(str(UUID(int=n))) for n in (5, 3, 9, 0, 4, 10)}
    assert found == {5: 0, 3: 2, 9: 3, 0: None, 4: None, 10: None}
    assert Dictionary().of_uuid(str(UUID(int=5))) is None


class TestAStateThatTheCallerKnowsOf:
    """It is answered from, or a later one is, once it is served here."""

    async def test_is_waited_for(self, rig: Rig) -> None:
        asking = asyncio.create_task(rig.client.get(pages(EVERYTHING), headers={"X-Min-Generation": "2"}))
        done, _ = await asyncio.wait([asking], timeout=0.05)
        assert not done
        await rig.world.add("another", {"content_type": "course", "n": 1})
        await rig.world.pull()
        await rig.publish()
        answer = await asking
        assert (answer.status, answer.headers["X-Catalog-Generation"]) == (200, "2")
        for least in ("1", "2", "0", ""):
            answer = await rig.client.get(pages(EVERYTHING), headers={"X-Min-Generation": least})
            assert (answer.status, answer.headers["X-Catalog-Generation"]) == (200, "2")

    async def test_is_what_a_pull_has_found_or_that_it_failed(self, tmp_path: Path) -> None:
        corpus, whole = tmp_path / "corpus.json", read("corpus")
        corpus.write_text(json.dumps(whole))
        async with replaying(tmp_path, corpus=corpus) as rig:
            path = pages(EVERYTHING)
            query = next(c for c in rig.generation.catalogs if c.uuid == EVERYTHING).wanted
            assert query.task_id is not None
            before = UUID(bytes=query.task_id)
            assert (await rig.client.get(path, headers={"X-After-Task": str(before)})).status == 200
            for text in (json.dumps({**whole, "courses": whole["courses"][1:]}), "{"):
                rig.world.clock.advance(1)
                async with rig.world.registry.plain() as connection:
                    task = await pulls.request(connection, query.hash.hex(), rig.world.clock.now_ms())
                asking = asyncio.create_task(rig.client.get(path, headers={"X-After-Task": task}))
                done, _ = await asyncio.wait([asking], timeout=0.05)
                assert not done
                corpus.write_text(text)
                await rig.world.pull()
                await rig.publish()
                answer = await asking
                assert (answer.status, (await answer.json())["count"]) == (200, 54)
            # Whoever comes late is told, too, although another pull has ended since.
            assert (await rig.client.get(path, headers={"X-After-Task": str(before)})).status == 200

    async def test_that_does_not_come_cannot_be_told(self, rig: Rig) -> None:
        contents = content_routes(Contents(Shelves(rig.sidecar.tiers), Links("", "", ""), Walks(FakeClock())))
        app = web.Application()
        for route in contents:
            handler = Handler(route, rig.sidecar.current, FakeClock(), restricted=False, wait_s=0.01)
            app.add_routes([web.route("*", f"/api/v1{route.path}", handler.answer)])
        async with TestClient(TestServer(app)) as client:
            for name, value in (("X-Min-Generation", "2"), ("X-After-Task", str(UUID(int=1)))):
                answer = await client.get(pages(EVERYTHING), headers={name: value})
                assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
                assert "is not served here yet" in (await answer.json())["detail"]
            answer = await client.get(pages(EVERYTHING), headers={"X-After-Task": "soon"})
            assert answer.status == 400

    async def test_is_not_waited_for_by_who_may_not_ask(self, tmp_path: Path) -> None:
        clock = StillClock()
        async with replaying(tmp_path, clock=clock, auth=settings(tmp_path)) as rig:
            headers = {"X-Min-Generation": "99"}
            assert (await rig.client.get(pages(EVERYTHING), headers=headers)).status == 401
            assert (await rig.client.get(pages(str(UUID(int=1))), headers=headers)).status == 404


class TestAnAnswerThatIsMadeAsItIsSent:
    """More documents than one page has; more than the kernel keeps for a connection of which nobody reads."""

    COUNT, SIZE = 300, 100_000

    def _tree(self, generation: int) -> Tree:
        keys = [f"k{n}" for n in range(self.COUNT)]
        items = [Item(key, document=self._document(key, generation)) for key in keys]
        all_of_it = Answers(frozenset(keys), frozenset(keys), frozenset(keys))
        catalog = Catalog(UUID(int=1), wanted={"q": 1}, serving={"q": 1})
        return build(items, [Query({"q": 1}, all_of_it)], [catalog], generation=generation)

    def _document(self, key: str, generation: int) -> bytes:
        return b'{"key":"%b","text":"%b"}' % (key.encode(), b"%d" % generation * self.SIZE)

    def _body(self, generation: int) -> bytes:
        documents = b",".join(self._document(f"k{n}", generation) for n in range(self.COUNT))
        head = b'{"previous":null,"next":null,"count":%d,"results":[' % self.COUNT
        tail = b'"title":"catalog 0","enterprise_customer":"%b"}' % str(UUID(int=0)).encode()
        return head + documents + b'],"uuid":"%b",' % str(UUID(int=1)).encode() + tail

    @asynccontextmanager
    async def _asked(self, memory_mb: int) -> AsyncIterator[tuple[MemoryStore, Sidecar, Streams]]:
        """A sidecar that was asked for everything, and an answer to that of which the head alone was read."""
        store = MemoryStore()
        await publish(store, self._tree(1))
        served = SidecarSettings(disk="", poll_ms=10, memory_mb=memory_mb)
        sidecar = Sidecar(Settings(sidecar=served), store, FakeClock())
        async with TestServer(sidecar.app) as server:
            await sidecar.current.other_than(None)
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (server.host, server.port))
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(b"GET %b?traverse_pagination=1 HTTP/1.1\r\nHost: x\r\n\r\n" % pages(str(UUID(int=1))).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"\r\nContent-Length: %d\r\n" % len(self._body(1)) in head
            yield store, sidecar, (reader, writer)
            writer.close()

    @pytest.mark.parametrize("memory_mb", [64, 1])
    async def test_is_of_one_generation_whatever_is_published_meanwhile(self, memory_mb: int) -> None:
        async with self._asked(memory_mb) as (store, sidecar, (reader, _)):
            known = sidecar.current.generation
            await publish(store, self._tree(2))
            await sidecar.current.other_than(known)
            assert await reader.readexactly(len(self._body(1))) == self._body(1)
            assert sidecar.memory.bytes <= sidecar.memory.limit_bytes

    async def test_is_broken_off_if_what_is_left_of_it_is_lost_everywhere(self) -> None:
        async with self._asked(memory_mb=1) as (store, _, (reader, _)):
            store.objects.clear()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(len(self._body(1)))

    async def test_is_not_begun_if_its_last_document_is_missing(self) -> None:
        store, tree = MemoryStore(), self._tree(1)
        await publish(store, tree)
        last = next(d for d, r in tree.records().items() if isinstance(r, Metadata) and r.key == f"k{self.COUNT - 1}")
        sound = store.objects.pop(last)
        sidecar = Sidecar(Settings(sidecar=SidecarSettings(disk="", poll_ms=10)), store, FakeClock())
        async with TestClient(TestServer(sidecar.app)) as client:
            await sidecar.current.other_than(None)
            path, query = pages(str(UUID(int=1))), {"traverse_pagination": "1"}
            for format in ("json", "xml"):
                answer = await client.get(path, params=query | {"format": format})
                assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
            store.objects[last] = sound
            answer = await client.get(path, params=query)
            assert await answer.read() == self._body(1)
            assert (await (await client.get(path, params=query | {"format": "xml"})).text()).count(
                "<key>"
            ) == self.COUNT
            head = await client.head(path, params=query)
            assert head.headers["Content-Length"] == str(len(self._body(1)))
