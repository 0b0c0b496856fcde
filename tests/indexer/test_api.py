"""The indexer's API over a real socket: the recorded exchanges, and what retries, odd bodies and outages are answered.

Nobody leads here unless a test says so: a write is then answered as pending, at once.
"""

import asyncio
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from indexer.api import OUT_OF_REACH, SILENT, UNKNOWN, CatalogApi, answering
from indexer.catalog_body import read_catalog
from indexer.patience import ANSWER_S
from indexer.publication import Publication
from indexer.registry import Registry, Undecided, catalogs, generations, pulls
from indexer.registry.pulls import Target
from indexer.service import Role
from indexer.source import SourceError
from indexer.source.file import FileSource
from indexer.wiring import Parts
from sidecar.auth import Tokens
from sidecar.contract.words import query_hash
from sidecar.intake import BODY_S, MAX_BODY_BYTES, REQUEST_ID
from sidecar.log import add_request_id
from sidecar.settings import Settings
from tests.fakes import FakeClock, FakeSource, Json, SlowSource, catalog_body, course, run, uuid_of
from tests.indexer import scripts
from tests.tokens import StillClock, token_of, tokens
from tests.world import World, world

GOLDEN: Final = Path(__file__).parent.parent / "contract" / "golden"
CATALOGS: Final = "/api/v1/enterprise-catalogs/"
COURSES: Final = {"content_type": "course"}
NO_CATALOG: Final = {"detail": "No EnterpriseCatalog matches the given query."}
ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LONG_S: Final = 30.0


class Answer(NamedTuple):
    """An answer, its body read as JSON; None if it has none."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Caller:
    """Asks one API, as a client would."""

    def __init__(self, client: TestClient[web.Request, web.Application], role: Role, publication: Publication) -> None:
        self.client = client
        self.role = role
        self.publication = publication

    async def ask(self, method: str, path: str, **how: Any) -> Answer:
        async with self.client.request(method, path, allow_redirects=False, **how) as response:
            raw = await response.read()
            if raw:
                assert response.content_type == "application/json", (method, path, response.status, raw)
            return Answer(response.status, json.loads(raw) if raw else None, response.headers)

    async def create(self, title: str = "a", content_filter: object = COURSES, **fields: Any) -> Answer:
        return await self.ask("POST", CATALOGS, json=catalog_body(title, content_filter, **fields))

    async def refresh(self, title: str = "a") -> str:
        answer = await self.ask("POST", f"{path_of(title)}refresh_metadata")
        assert answer.status == 200
        assert set(answer.body) == {"async_task_id"}
        return str(answer.body["async_task_id"])

    async def pull(self, task: str) -> Json:
        answer = await self.ask("GET", f"/api/v1/pulls/{task}/")
        assert answer.status == 200
        assert isinstance(answer.body, dict)
        return answer.body


@asynccontextmanager
async def calling(
    here: World,
    *,
    within_s: float = 0.0,
    body_s: float = BODY_S,
    answer_s: float = ANSWER_S,
    registry: Registry | None = None,
    tokens: Tokens | None = None,
) -> AsyncIterator[Caller]:
    """A caller of an API over a world's registry, or another one."""
    parts = Parts(Settings(), here.clock, registry or here.registry, here.store, here.source)
    role, publication = Role(), Publication(parts.registry)
    app = web.Application(middlewares=[answering(answer_s)], client_max_size=MAX_BODY_BYTES)
    api = CatalogApi(parts, role, publication, tokens=tokens, within_s=within_s, body_s=body_s)
    app.add_routes(api.routes())
    async with TestClient(TestServer(app)) as client:
        yield Caller(client, role, publication)


@asynccontextmanager
async def publishing(here: World, caller: Caller) -> AsyncIterator[None]:
    """Meanwhile, whatever the API wakes the leader for is published."""

    async def publish() -> None:
        while True:
            await caller.role.wake.wait()
            caller.role.wake.clear()
            new = await here.publish()
            if new is not None:
                caller.publication.note(new)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


@pytest.fixture
async def caller(here: World) -> AsyncIterator[Caller]:
    async with calling(here) as made:
        yield made


def path_of(title: str) -> str:
    return f"{CATALOGS}{uuid_of(f'catalog {title}')}/"


def fake(here: World) -> FakeSource:
    assert isinstance(here.source, FakeSource)
    return here.source


async def rows_of(here: World) -> list[catalogs.RegisteredCatalog]:
    async with here.registry.read() as connection:
        return await catalogs.select(connection)


async def target_of(here: World, content_filter: object = COURSES) -> Target:
    async with here.registry.read() as connection:
        return {t.hash: t for t in await pulls.targets(connection)}[query_hash(content_filter).hex()]


class Recorded:
    """The recorded exchanges of a group, and how an answer to one is judged."""

    # Errors today, refusals here.
    REFUSED: Final = {"09_crud-086": {409}, "09_crud-095": {400, 409}, "09_crud-096": {400, 409}}
    # These see every catalog in a list, those without a query too.
    EVERYWHERE: Final = frozenset({"operator", "superuser", "provisioner", "hs256_symmetric"})

    def __init__(self) -> None:
        defined = json.loads((GOLDEN / "definitions.json").read_text())["catalogs"]
        self.bodies = {c["body"]["uuid"]: c["body"] for c in defined if not c["null_query"]}
        self.no_query = [c["body"]["uuid"] for c in defined if c["null_query"]]

    def exchanges(self, group: str) -> list[Json]:
        found: list[Json] = json.loads((GOLDEN / f"{group}.json").read_text())["exchanges"]
        return found

    def skipped(self, e: Json) -> str | None:
        """Why an exchange is not replayed here."""
        if any(uuid in json.dumps([e["path"], e["query"], e["request_body"]]) for uuid in self.no_query):
            return "a catalog without a query"
        if "xml" in e["request_headers"]["Accept"]:
            return "XML"
        collection = e["path"] == CATALOGS and e["method"] in ("PUT", "DELETE")
        if e["method"] == "OPTIONS" or e["status"] == 301 or collection:
            return "never forwarded"
        return None

    def wrong(self, e: Json, got: Answer) -> str | None:
        """What is wrong with an answer."""
        if e["path"].endswith("/refresh_metadata/anything"):  # Difference 19.
            return None if got.status == 404 else f"{got.status}"
        if e["status"] == 500:  # Difference 7.
            allowed = self.REFUSED.get(e["id"], {400, 404})
            return None if got.status in allowed and isinstance(got.body, dict) else f"{got.status} {got.body}"
        if got.status != e["status"]:
            return f"{got.status} {got.body}"
        if got.headers.get("WWW-Authenticate") != e["response_headers"].get("WWW-Authenticate"):
            return f"WWW-Authenticate: {got.headers.get('WWW-Authenticate')}"
        if got.status == 405 and listed(e["response_headers"]["Allow"]) != listed(got.headers["Allow"]):
            return got.headers["Allow"]
        if got.status == 204:
            return None if got.body is None else f"{got.body}"
        if "re.Match" in json.dumps(e["json"]):  # Difference 17.
            what = "content_filter" if "content_filter" in e["json"]["catalog_query"] else "title"
            want = {"catalog_query": f"{what} is not unique"}
            return None if got.body == want else f"{got.body}"
        want = json.loads(json.dumps(e["json"]))
        if "results" in want:
            want["results"] = [w for w in want["results"] if w["uuid"] not in self.no_query]
            everyones = "enterprise_customer=" not in e["query"] or e["query"] == "enterprise_customer="
            if everyones and e["actor"] in self.EVERYWHERE:
                want["count"] -= len(self.no_query)
            for w, g in zip(want["results"], got.body["results"], strict=True):
                self._fit(e, w, g)
        elif "uuid" in want and got.status < 300:
            self._fit(e, want, got.body)
        elif "async_task_id" in want:
            want["async_task_id"] = got.body["async_task_id"] if UUID.fullmatch(got.body["async_task_id"]) else "a uuid"
        return None if got.body == want else f"wanted {want}, got {got.body}"

    def _fit(self, e: Json, want: Json, got: Json) -> None:
        """Puts what may differ of a record in the place of what was recorded."""
        if e["method"] == "POST" and isinstance(e["request_body"], dict) and "uuid" not in e["request_body"]:
            want["uuid"] = got["uuid"] if UUID.fullmatch(got["uuid"]) else "a uuid"
        for name in ("content_last_modified", "catalog_modified"):
            if want[name] is not None and isinstance(got[name], str) and ISO.fullmatch(got[name]):
                want[name] = got[name]
        body = self.bodies.get(want["uuid"])  # Difference 9.
        if body is not None:
            want |= {"catalog_query_uuid": body["catalog_query_uuid"], "query_title": body["query_title"]}
        elif UUID.fullmatch(got["catalog_query_uuid"]) and isinstance(got["query_title"], str | None):
            want |= {"catalog_query_uuid": got["catalog_query_uuid"], "query_title": got["query_title"]}


def listed(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")}


async def test_recorded_exchanges_are_answered_as_recorded(tmp_path: Path, template: Path) -> None:
    """In order, over one registry, each by its actor; but for the differences that are meant."""
    scripts.copy(template, tmp_path)
    clock = StillClock()
    trusting = tokens(tmp_path, clock)
    recorded, counts, wrong = Recorded(), Counter[str](), []
    source = FileSource(GOLDEN / "corpus.json")
    async with world(tmp_path, source, clock=clock) as here, calling(here, tokens=trusting) as caller:
        async with here.registry.write() as tx:
            for body in recorded.bodies.values():
                await catalogs.create(tx, read_catalog(body), "test")
        await here.build()
        for group in ("08_refresh_metadata", "09_crud"):
            for e in recorded.exchanges(group):
                why = recorded.skipped(e)
                counts[why or group] += 1
                if why is not None:
                    continue
                body, headers = e["request_body"], {"Host": "catalog.example.test", **e["request_headers"]}
                if e["actor"] is not None:
                    headers["Authorization"] = f"JWT {token_of(e['actor'], clock.now_ms())}"
                got = await caller.ask(
                    e["method"],
                    e["path"] + (f"?{e['query']}" if e["query"] else ""),
                    headers=headers,
                    data=None if body is None else body if isinstance(body, str) else json.dumps(body),
                    skip_auto_headers=("Content-Type",),
                )
                if problem := recorded.wrong(e, got):
                    wrong.append(f"{e['id']} {e['method']} {e['path']}?{e['query']} {e['status']} -- {problem}")
    assert wrong == []
    assert counts == {
        "08_refresh_metadata": 14,
        "09_crud": 131,
        "a catalog without a query": 4,
        "never forwarded": 5,
        "XML": 1,
    }


class TestACreate:
    async def test_again_is_the_same_record(self, here: World, caller: Caller) -> None:
        first = await caller.create(query_title="t")
        again = await caller.create(query_title="t")
        assert (first.status, again.status) == (201, 200)
        assert again.body == first.body
        assert len(await rows_of(here)) == 1

    async def test_of_another_body_for_its_uuid_is_a_conflict_and_changes_nothing(
        self, here: World, caller: Caller
    ) -> None:
        first = await caller.create()
        others: list[Json] = [{"content_filter": {}}, {"title": "b"}, {"catalog_query_uuid": uuid_of("q")}]
        for other in others:
            answer = await caller.ask("POST", CATALOGS, json={**catalog_body("a", COURSES), **other})
            assert (answer.status, list(answer.body)) == (409, ["detail"])
        assert (await caller.ask("GET", path_of("a"))).body == first.body

    async def test_that_several_ask_for_at_once_is_made_once(self, here: World, caller: Caller) -> None:
        answers = await asyncio.gather(*(caller.create() for _ in range(20)))
        assert Counter(a.status for a in answers) == {201: 1, 200: 19}
        assert all(a.body == answers[0].body for a in answers)
        assert len(await rows_of(here)) == 1

    async def test_whose_answer_was_lost_may_be_repeated(self, here: World) -> None:
        async with calling(here, within_s=LONG_S) as caller:
            body = json.dumps(catalog_body("a", COURSES)).encode()
            server = caller.client.server
            _, writer = await asyncio.open_connection(server.host, server.port)
            head = f"POST {CATALOGS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(LONG_S):
                await caller.role.wake.wait()
            writer.close()  # It was made, and waits for its publication.
            assert len(await rows_of(here)) == 1
            async with publishing(here, caller):
                again = await caller.create()
        assert (again.status, again.body["uuid"]) == (200, uuid_of("catalog a"))
        assert len(await rows_of(here)) == 1

    async def test_after_a_delete_makes_a_new_one(self, here: World, caller: Caller) -> None:
        await caller.create()
        await caller.create("b")
        assert (await caller.ask("DELETE", path_of("a"))).status == 204
        assert (await caller.ask("GET", path_of("a"))).body == NO_CATALOG
        assert (await caller.create()).status == 201
        listed = await caller.ask("GET", CATALOGS)
        assert [c["title"] for c in listed.body["results"]] == ["b", "a"]

    async def test_takes_a_uuid_in_any_spelling(self, caller: Caller) -> None:
        upper = uuid_of("catalog a").upper()
        answer = await caller.ask("POST", CATALOGS, json={**catalog_body("a", COURSES), "uuid": upper.replace("-", "")})
        assert (answer.status, answer.body["uuid"]) == (201, upper.lower())
        assert (await caller.ask("GET", f"{CATALOGS}{upper}/")).status == 200

    async def test_may_come_as_a_form(self, caller: Caller) -> None:
        fields = {name: json.dumps(value) for name, value in catalog_body("a", COURSES).items()}
        texts = {name: json.loads(value) for name, value in fields.items() if name not in JSON_FIELDS}
        fields |= {name: str(value).lower() if isinstance(value, bool) else value for name, value in texts.items()}
        plain = await caller.ask("POST", CATALOGS, data=fields)
        assert plain.status == 201
        form = FormData(default_to_multipart=True)
        for name, text in fields.items():
            form.add_field(name, text)
        again = await caller.ask("POST", CATALOGS, data=form)
        assert (again.status, again.body) == (200, plain.body)
        broken = await caller.ask("POST", CATALOGS, data={**fields, "content_filter": "{"})
        assert (broken.status, broken.body) == (400, {"content_filter": ["Value must be valid JSON."]})


JSON_FIELDS: Final = ("enabled_course_modes", "content_filter")


class TestAChange:
    @pytest.mark.parametrize("whole", [True, False])
    async def test_without_a_query_uuid_changes_the_shared_query(
        self, here: World, caller: Caller, whole: bool
    ) -> None:
        first = (await caller.create("a", query_title="t")).body
        await caller.create("b")
        body = catalog_body("a", {"key": "1"}) if whole else {"content_filter": {"key": "1"}}
        changed = await caller.ask("PUT" if whole else "PATCH", path_of("a"), json=body)
        assert (changed.status, changed.body["catalog_query_uuid"]) == (200, first["catalog_query_uuid"])
        assert changed.body["query_title"] == "t"
        assert {row.wanted for row in await rows_of(here)} == {query_hash({"key": "1"}).hex()}

    async def test_with_a_null_query_uuid_finds_a_query_or_makes_it(self, here: World, caller: Caller) -> None:
        await caller.create("a")
        await caller.create("b")
        change = {"content_filter": {"key": "1"}, "catalog_query_uuid": None}
        assert (await caller.ask("PATCH", path_of("a"), json=change)).status == 200
        assert [row.wanted for row in await rows_of(here)] == [query_hash(f).hex() for f in ({"key": "1"}, COURSES)]
        change["content_filter"] = COURSES
        back = await caller.ask("PATCH", path_of("a"), json=change)
        assert back.body["catalog_query_uuid"] == (await caller.ask("GET", path_of("b"))).body["catalog_query_uuid"]

    async def test_moves_the_time_of_the_change(self, clock: FakeClock, caller: Caller) -> None:
        first = await caller.create()
        clock.advance(60)
        changed = await caller.ask("PATCH", path_of("a"), json={"title": "b"})
        assert changed.body["catalog_modified"] > first.body["catalog_modified"]
        assert {**changed.body, "catalog_modified": 0, "title": "a"} == {**first.body, "catalog_modified": 0}

    async def test_may_come_as_a_form(self, here: World, caller: Caller) -> None:
        await caller.create()
        changed = await caller.ask("PATCH", path_of("a"), data={"title": "b", "content_filter": '{"key": "1"}'})
        assert (changed.status, changed.body["title"]) == (200, "b")
        assert [row.content_filter for row in await rows_of(here)] == ['{"key": "1"}']

    @pytest.mark.parametrize("body", [b"[1]", b"null", b'"x"'])
    async def test_that_is_no_object_is_refused(self, caller: Caller, body: bytes) -> None:
        await caller.create()
        answer = await caller.ask("PATCH", path_of("a"), data=body, headers={"Content-Type": "application/json"})
        assert (answer.status, list(answer.body)) == (400, ["non_field_errors"])

    async def test_of_what_does_not_exist_is_404_whatever_the_body_says(self, caller: Caller) -> None:
        for method in ("PUT", "PATCH"):
            answer = await caller.ask(method, path_of("a"), data=b"{")
            assert (answer.status, answer.body) == (404, NO_CATALOG)


class TestACatalogOfAnotherCustomer:
    async def test_is_not_there(self, here: World, caller: Caller) -> None:
        first = await caller.create()
        theirs, ours = (f"?enterprise_customer={uuid_of(name)}" for name in ("Other", "Acme"))
        whole = catalog_body("a", COURSES)
        asks: list[tuple[str, Json | None]] = [("GET", None), ("PUT", whole), ("PATCH", {"title": "b"})]
        for method, body in [*asks, ("DELETE", None)]:
            answer = await caller.ask(method, path_of("a") + theirs, json=body)
            assert (method, answer.status, answer.body) == (method, 404, NO_CATALOG)
        assert (await caller.ask("GET", path_of("a"))).body == first.body
        for method, body in asks:
            assert (await caller.ask(method, path_of("a") + ours, json=body)).status == 200
        assert (await caller.ask("DELETE", path_of("a") + ours)).status == 204
        assert await rows_of(here) == []

    async def test_is_not_in_the_list(self, caller: Caller) -> None:
        for title, of in (("a", "Acme"), ("b", "Other"), ("c", "Acme")):
            await caller.create(title, of=of)
        for name, want in (("Acme", ["a", "c"]), ("Other", ["b"]), ("Nobody", [])):
            answer = await caller.ask("GET", f"{CATALOGS}?enterprise_customer={uuid_of(name).upper()}")
            assert [c["title"] for c in answer.body["results"]] == want
            assert answer.body["count"] == len(want)

    async def test_needs_a_customer_that_can_be_read(self, caller: Caller) -> None:
        await caller.create()
        for method, path in (("GET", CATALOGS), ("GET", path_of("a")), ("DELETE", path_of("a"))):
            answer = await caller.ask(method, f"{path}?enterprise_customer=nope")
            assert (answer.status, answer.body) == (400, {"enterprise_customer": ["Must be a valid UUID."]})


class TestARequestThatCannotBeTaken:
    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
    async def test_for_lack_of_a_uuid_is_404(self, caller: Caller, method: str) -> None:
        for text in ("not-a-uuid", "12345678", uuid_of("a") + "0", "%00"):
            answer = await caller.ask(method, f"{CATALOGS}{text}/", json=catalog_body("a", COURSES))
            assert (answer.status, answer.body) == (404, {"detail": "Not found."})
        assert (await caller.ask("POST", f"{CATALOGS}not-a-uuid/refresh_metadata")).status == 404

    async def test_for_its_body_says_why(self, caller: Caller) -> None:
        json_type = {"Content-Type": "application/json"}
        broken = await caller.ask("POST", CATALOGS, data=b"{bad", headers=json_type)
        assert (broken.status, list(broken.body)) == (400, ["detail"])
        for headers in (json_type, {}):
            empty = await caller.ask("POST", CATALOGS, headers=headers)
            assert empty.status == 400
            assert set(empty.body) == set(catalog_body("a", COURSES)) - {"uuid"}
        text = await caller.ask("POST", CATALOGS, data=b"x", headers={"Content-Type": "text/plain"})
        assert (text.status, text.body) == (415, {"detail": 'Unsupported media type "text/plain" in request.'})
        half = await caller.ask("POST", CATALOGS, data=b'{"title": "\\ud800"}', headers=json_type)
        assert half.body["title"] == ["Surrogate characters are not allowed: U+D800."]

    async def test_for_its_encoding_is_415(self, caller: Caller) -> None:
        for encoding, body in (("gzip", gzip.compress(b"{}")), ("identity", b"{}")):
            answer = await caller.ask("POST", CATALOGS, data=body, headers={"Content-Encoding": encoding})
            assert (answer.status, list(answer.body)) == (415, ["detail"])

    async def test_that_arrives_too_slowly_is_408(self, here: World) -> None:
        async def slowly() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        async with calling(here, body_s=0.05) as caller:
            answer = await caller.ask("POST", CATALOGS, data=slowly(), headers={"Content-Type": "application/json"})
        assert (answer.status, answer.body) == (408, {"detail": "The body did not arrive within 0.05 s."})

    async def test_for_its_size_is_413(self, here: World, caller: Caller) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(MAX_BODY_BYTES // 65_536 + 1):
                yield b" " * 65_536

        for body in (io.BytesIO(b" " * (MAX_BODY_BYTES + 1)), pieces()):
            answer = await caller.ask("POST", CATALOGS, data=body, headers={"Content-Type": "application/json"})
            assert (answer.status, list(answer.body)) == (413, ["detail"])
        assert await rows_of(here) == []

    async def test_for_its_path_is_404(self, caller: Caller) -> None:
        for path in ("/", "/api/v2/enterprise-catalogs/", f"{path_of('a')}refresh_metadata/now", "/api/v1/pulls/"):
            answer = await caller.ask("GET", path)
            assert (answer.status, answer.body) == (404, {"detail": "Not found."})

    async def test_for_its_method_is_405_and_says_which_are_allowed(self, caller: Caller) -> None:
        for method, path, allowed in (
            ("PUT", CATALOGS, "GET, HEAD, OPTIONS, POST"),
            ("POST", path_of("a"), "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
            ("PUT", f"{path_of('a')}refresh_metadata", "OPTIONS, POST"),
            ("DELETE", f"/api/v1/pulls/{uuid_of('a')}/", "GET, HEAD, OPTIONS"),
        ):
            answer = await caller.ask(method, path)
            assert (answer.status, answer.body) == (405, {"detail": f'Method "{method}" not allowed.'})
            assert answer.headers["Allow"] == allowed


class TestAWrite:
    async def test_that_is_published_names_the_generation_that_shows_it(self, here: World) -> None:
        async with calling(here, within_s=LONG_S) as caller, publishing(here, caller):
            whole = catalog_body("a", {"key": "1"})
            for number, (method, path, body) in enumerate(
                [("POST", CATALOGS, whole), ("PUT", path_of("a"), whole), ("PATCH", path_of("a"), {"title": "b"})], 1
            ):
                answer = await caller.ask(method, path, json=body)
                assert answer.status in (200, 201)
                assert answer.headers["X-Catalog-Generation"] == str(number)
                assert "X-Catalog-Published" not in answer.headers
                root = (await here.index()).root
                assert (root.generation, root.clock) == (number, int(answer.headers["X-Catalog-Clock"]))
            gone = await caller.ask("DELETE", path_of("a"))
            assert (gone.status, gone.headers["X-Catalog-Generation"]) == (204, "4")
            assert (await here.index()).catalogs == {}

    async def test_that_nobody_publishes_in_time_is_pending_and_published_later(self, here: World) -> None:
        async with calling(here, within_s=0.05) as caller:
            answer = await caller.create()
        assert (answer.status, answer.headers["X-Catalog-Published"]) == (201, "pending")
        assert "X-Catalog-Generation" not in answer.headers
        assert [row.uuid for row in await rows_of(here)] == [answer.body["uuid"]]
        await here.lead()
        await here.publish()
        index = await here.index()
        assert set(index.catalogs) == {answer.body["uuid"]}
        assert index.root.clock >= int(answer.headers["X-Catalog-Clock"])

    async def test_behind_a_pin_is_pending_at_once_and_says_what_is_pinned(self, here: World) -> None:
        await here.publish()
        async with here.registry.plain() as connection:
            await generations.set_pin(connection, 1)
        async with calling(here, within_s=LONG_S) as caller:
            began_s = perf_counter()
            answer = await caller.create()
            assert perf_counter() - began_s < LONG_S / 2
            names = ("X-Catalog-Published", "X-Catalog-Pinned", "X-Catalog-Generation")
            assert [answer.headers.get(name) for name in names] == ["pending", "1", None]
            async with here.registry.plain() as connection:
                await generations.set_pin(connection, None)
            async with publishing(here, caller), asyncio.timeout(LONG_S):
                while "X-Catalog-Pinned" in answer.headers:
                    answer = await caller.ask("PATCH", path_of("a"), json={"title": "b"})
            assert [answer.headers.get(name) for name in names] == [None, None, answer.headers["X-Catalog-Generation"]]

    async def test_wakes_the_leader(self, caller: Caller) -> None:
        await caller.create()
        assert caller.role.wake.is_set()
        caller.role.wake.clear()
        await caller.ask("GET", path_of("a"))
        await caller.ask("PATCH", path_of("b"), json={})
        assert not caller.role.wake.is_set()
        await caller.refresh()
        assert caller.role.wake.is_set()

    async def test_that_changes_nothing_new_is_covered_as_well(self, here: World) -> None:
        async with calling(here, within_s=LONG_S) as caller, publishing(here, caller):
            first, again = await caller.create(), await caller.create()
        assert int(again.headers["X-Catalog-Clock"]) > int(first.headers["X-Catalog-Clock"])
        assert int(again.headers["X-Catalog-Generation"]) >= int(first.headers["X-Catalog-Generation"])


class TestARegistryThatSaysNothing:
    @pytest.fixture
    async def silent(self, here: World, registry_url: str) -> AsyncIterator[scripts.SilentRegistry]:
        registry = scripts.SilentRegistry(registry_url, here.clock)
        registry.silent = True
        yield registry
        registry.answer()
        await registry.close()

    async def test_costs_nobody_more_than_the_deadline(self, here: World, silent: scripts.SilentRegistry) -> None:
        async with calling(here, answer_s=0.05, registry=silent) as caller, asyncio.timeout(LONG_S):
            for path in (CATALOGS, path_of("a"), f"/api/v1/pulls/{uuid_of('a')}/"):
                answer = await caller.ask("GET", path)
                assert (answer.status, answer.headers["Retry-After"], answer.body) == (503, "5", {"detail": SILENT})
            # A write may have come through: what is told must not be that it has not.
            for method, path, body in (
                ("POST", CATALOGS, catalog_body("a", COURSES)),
                ("PUT", path_of("a"), catalog_body("a", COURSES)),
                ("PATCH", path_of("a"), {}),
                ("DELETE", path_of("a"), None),
                ("POST", f"{path_of('a')}refresh_metadata", None),
            ):
                answer = await caller.ask(method, path, json=body)
                assert (answer.status, answer.headers["Retry-After"], answer.body) == (503, "5", {"detail": UNKNOWN})

    async def test_is_asked_again_by_the_next_request(self, here: World, silent: scripts.SilentRegistry) -> None:
        await here.add("a", COURSES)
        async with calling(here, answer_s=0.2, registry=silent) as caller:
            assert (await caller.ask("GET", path_of("a"))).status == 503
            silent.answer()
            assert (await caller.ask("GET", path_of("a"))).status == 200

    async def test_is_not_held_against_a_body_or_a_publication(self, here: World) -> None:
        """Each has a deadline of its own, and may take longer."""

        async def slowly() -> AsyncIterator[bytes]:
            text = json.dumps(catalog_body("a", COURSES)).encode()
            for n in range(3):
                yield text[n * len(text) // 3 : (n + 1) * len(text) // 3]
                await asyncio.sleep(0.2)

        async with calling(here, answer_s=0.3, within_s=0.5) as caller:
            answer = await caller.ask("POST", CATALOGS, data=slowly(), headers={"Content-Type": "application/json"})
            assert (answer.status, answer.headers["X-Catalog-Published"]) == (201, "pending")


class LostCommit(Registry):
    """A registry on a server that takes what it is given, and whose answer to it is lost."""

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[AsyncConnection]:
        async with super().plain() as connection:
            yield connection
        raise Undecided("no answer to a commit")


async def test_a_commit_without_an_answer_is_not_said_to_have_changed_nothing(here: World, registry_url: str) -> None:
    lost = LostCommit(registry_url, here.clock)
    async with calling(here, registry=lost) as caller:
        answer = await caller.create("a")
        assert (answer.status, answer.body) == (503, {"detail": UNKNOWN})
    async with calling(here) as caller:
        # As it was told to: the same again changes nothing more.
        assert (await caller.create("a")).status == 200
    await lost.close()


class TestARegistryOutOfReach:
    async def test_is_503_and_says_when_to_ask_again(self, here: World) -> None:
        async with calling(here, registry=scripts.GoneRegistry()) as caller:
            whole = catalog_body("a", COURSES)
            for method, path, body in (
                ("GET", CATALOGS, None),
                ("GET", path_of("a"), None),
                ("POST", CATALOGS, whole),
                ("PUT", path_of("a"), whole),
                ("PATCH", path_of("a"), {}),
                ("DELETE", path_of("a"), None),
                ("POST", f"{path_of('a')}refresh_metadata", None),
                ("GET", f"/api/v1/pulls/{uuid_of('a')}/", None),
            ):
                with capture_logs([add_request_id]) as logs:
                    answer = await caller.ask(method, path, json=body, headers={REQUEST_ID: "r-1"})
                assert [(line["event"], line["request_id"]) for line in logs] == [
                    ("a request met a registry that is out of reach", "r-1")
                ]
                assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
                assert answer.body == {"detail": OUT_OF_REACH}

    @pytest.fixture
    async def flaky(self, here: World, tmp_path: Path) -> AsyncIterator[scripts.FlakyRegistry]:
        registry = scripts.FlakyRegistry(f"sqlite+aiosqlite:///{tmp_path}/registry.db", here.clock)
        yield registry
        await registry.close()

    async def test_before_the_write_changes_nothing(self, here: World, flaky: scripts.FlakyRegistry) -> None:
        await here.add("a", COURSES)
        before = await rows_of(here)
        async with calling(here, registry=flaky) as caller:
            flaky.failing = frozenset({2})  # The look whether it exists succeeds.
            answer = await caller.ask("PATCH", path_of("a"), json={"title": "b"})
        assert answer.status == 503
        assert await rows_of(here) == before

    async def test_after_the_write_is_no_failure(self, here: World, flaky: scripts.FlakyRegistry) -> None:
        async with calling(here, within_s=0.35, registry=flaky) as caller:
            flaky.failing = frozenset(range(2, 100))
            answer = await caller.create()
        assert flaky.count > 1
        assert (answer.status, answer.headers["X-Catalog-Published"]) == (201, "pending")
        assert len(await rows_of(here)) == 1


class TestARefresh:
    async def test_joins_one_that_has_not_begun(self, here: World, caller: Caller) -> None:
        await caller.create()
        await caller.create("b")
        await caller.create("c", {"key": "1"})
        first = await caller.refresh()
        assert UUID.fullmatch(first)
        assert await caller.refresh("b") == first  # The same query.
        assert await caller.refresh("c") != first

    async def test_joins_one_under_way_and_not_one_that_has_ended(self, here: World, caller: Caller) -> None:
        await caller.create()
        source = SlowSource()
        here.source = source
        await here.lead()
        pulling = asyncio.create_task(here.pipeline.pull(await target_of(here), "due", here.epoch))
        await source.begun.wait()
        task = await caller.refresh()
        shown = await caller.pull(task)
        assert (shown["state"], shown["reason"]) == ("running", "demand")
        assert await caller.refresh() == task
        source.gate.set()
        assert await pulling
        assert (await caller.pull(task))["state"] == "passed"
        assert await caller.refresh() != task

    async def test_that_two_ask_for_at_once_has_one_id(self, caller: Caller) -> None:
        await caller.create()
        tasks = await asyncio.gather(*(caller.refresh() for _ in range(20)))
        assert len(set(tasks)) == 1

    async def test_is_followed_from_its_request_to_its_end(self, here: World, caller: Caller, clock: FakeClock) -> None:
        fake(here).courses = [course("A+1", run("a1")), course("B+1")]
        created = await caller.create()
        assert created.body["content_last_modified"] is None
        task = await caller.refresh()
        want = {
            "task": task,
            "query_hash": query_hash(COURSES).hex(),
            "reason": "demand",
            "state": "requested",
            "requested": "2027-01-15T08:00:00Z",
            "finished": None,
            "members": None,
            "changed": None,
            "error": None,
        }
        assert await caller.pull(task) == want
        assert await caller.pull(task.upper().replace("-", "")) == want
        clock.advance(1.5)
        assert await here.pull() == [True]
        ended = {"state": "passed", "finished": "2027-01-15T08:00:01.500000Z", "members": 2, "changed": 2}
        assert await caller.pull(task) == {**want, **ended}
        shown = await caller.ask("GET", path_of("a"))
        assert shown.body["content_last_modified"] == "2027-01-15T08:00:01.500000Z"

    async def test_that_fails_says_why(self, here: World, caller: Caller) -> None:
        await caller.create()
        task = await caller.refresh()
        fake(here).failure = SourceError("not now")
        await here.pull()
        ended = await caller.pull(task)
        assert (ended["state"], ended["error"], ended["members"]) == ("failed", "not now", None)
        assert ended["finished"] is not None

    @pytest.mark.parametrize("content_filter", [[1, 2], "text", 0])
    async def test_of_a_filter_that_is_no_object_ends_too(
        self, here: World, caller: Caller, content_filter: object
    ) -> None:
        await caller.create("a", content_filter)
        task = await caller.refresh()
        await here.pull()
        ended = await caller.pull(task)
        assert (ended["state"], ended["members"]) == ("passed", 0)

    async def test_that_nobody_asked_for_is_404(self, caller: Caller) -> None:
        for task in (uuid_of("a"), "nope", "%00"):
            answer = await caller.ask("GET", f"/api/v1/pulls/{task}/")
            assert (answer.status, list(answer.body)) == (404, ["detail"])
        answer = await caller.ask("POST", f"{path_of('a')}refresh_metadata")
        assert (answer.status, answer.body) == (404, NO_CATALOG)


async def test_many_writes_at_once_are_all_made_within_seconds(here: World) -> None:
    """SQLite lets one write at a time; those that wait must not wait for each other's sleep."""
    count, began_s = 200, perf_counter()
    async with calling(here, within_s=LONG_S) as caller, publishing(here, caller):

        async def make(number: int) -> str | None:
            """The title that the catalog of this number has in the end."""
            title = f"{number}"
            made = await caller.create(title, {"key": f"{number % 20}"})
            assert (made.status, made.body["title"]) == (201, title)
            if number % 2:
                changed = await caller.ask("PATCH", path_of(title), json={"title": f"{title} changed"})
                assert (changed.status, changed.body["title"]) == (200, f"{title} changed")
                return f"{title} changed"
            if number % 4:
                return title
            assert (await caller.ask("DELETE", path_of(title))).status == 204
            return None

        titles = await asyncio.gather(*map(make, range(count)))
    assert perf_counter() - began_s < LONG_S
    kept = {title for title in titles if title is not None}
    assert len(kept) == 150
    assert {row.title for row in await rows_of(here)} == kept
    assert {c.record.title for c in (await here.index()).catalogs.values()} == kept
