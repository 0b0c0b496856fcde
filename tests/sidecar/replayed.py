"""Recorded exchanges, asked of a sidecar over what the real pipeline publishes of the recorded corpus, and judged.

Documents are compared whole, but for what differences 15 and 16 say: times by their form, and that all nested runs have
links. Where the order is ours (difference 3), a page is compared by how much it holds, and its documents one by one.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from indexer.catalog_body import read_catalog
from indexer.registry import catalogs
from indexer.source.file import FileSource
from sidecar.app import Sidecar
from sidecar.current import Generation
from sidecar.settings import AuthSettings, LinksSettings, Settings, SidecarSettings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock
from tests.world import World, world

Json = dict[str, Any]
Client = TestClient[web.Request, web.Application]

GOLDEN = Path(__file__).parent.parent / "contract" / "golden"
HOST = "catalog.example.test"
# Who may ask anything that these groups ask.
ALL_SEEING = ("operator", "superuser")
LINKS = LinksSettings(
    lms="http://127.0.0.1:18382",
    learner_portal="https://learner-portal.example.test",
    ecommerce="https://ecommerce.example.test",
)
# What a client would add to what was recorded.
_ADDED = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")
_TIMES = {"content_last_modified", "date_updated"}
_UNORDERED = ("items_found", "items_not_found", "items_not_included")


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


DEFINITIONS: list[Json] = read("definitions")["catalogs"]
BODIES: dict[str, Json] = {c["body"]["uuid"]: c["body"] for c in DEFINITIONS if not c["null_query"]}
NO_QUERY = {c["body"]["uuid"] for c in DEFINITIONS if c["null_query"]}


def exchanges(group: str) -> list[Json]:
    """The exchanges of a group that can be asked here: without catalogs that have lost their query."""
    return [
        e
        for e in read(group)["exchanges"]
        if not any(uuid in json.dumps([e["path"], e["query"], e.get("request_body")]) for uuid in NO_QUERY)
    ]


class Rig:
    """An indexer and a sidecar over one store, and a client of the sidecar, which sends actors' tokens if given."""

    def __init__(
        self,
        world: World,
        store: MemoryStore,
        sidecar: Sidecar,
        client: Client,
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.world, self.store, self.sidecar, self.client = world, store, sidecar, client
        self.tokens = tokens or {}

    async def send(self, exchange: Json) -> ClientResponse:
        """An exchange as it was recorded, with no header but those of the recording and its actor's token."""
        body, headers = exchange.get("request_body"), {"Host": HOST, **(exchange.get("request_headers") or {})}
        data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        if data is not None:
            headers.setdefault("Content-Type", "application/json")
        if self.tokens and exchange.get("actor") is not None:
            headers["Authorization"] = f"JWT {self.tokens[exchange['actor']]}"
        url = URL(exchange["path"] + (f"?{exchange['query']}" if exchange.get("query") else ""), encoded=True)
        return await self.client.request(
            exchange["method"], url, data=data, headers=headers, skip_auto_headers=_ADDED, allow_redirects=False
        )

    async def get(self, path: str, query: str = "") -> tuple[int, Any]:
        answer = await self.send({"method": "GET", "path": path, "query": query})
        return answer.status, await answer.json()

    async def walk(self, path: str, query: str) -> tuple[list[str], int]:
        """The keys on a page and on all that its next links lead to, and the count that the last one told."""
        found: list[str] = []
        while True:
            status, body = await self.get(path, query)
            assert status == 200
            found += [key_of(document) for document in body["results"]]
            if body["next"] is None:
                return found, body["count"]
            query = body["next"].partition("?")[2]

    @property
    def generation(self) -> Generation:
        """What is served."""
        assert self.sidecar.current.generation is not None
        return self.sidecar.current.generation

    async def publish(self) -> None:
        """Publishes what has changed, and waits until it is served."""
        known = self.sidecar.current.generation
        assert await self.world.publish() is not None
        await self.sidecar.current.other_than(known)


@asynccontextmanager
async def replaying(
    path: Path,
    *,
    corpus: Path = GOLDEN / "corpus.json",
    memory_mb: int = 64,
    clock: FakeClock | None = None,
    auth: AuthSettings | None = None,
    tokens: Mapping[str, str] | None = None,
    origins: str = "",
) -> AsyncIterator[Rig]:
    """A rig over the recorded corpus with the recorded catalogs; its sidecar has no disk."""
    clock, store = clock or FakeClock(), MemoryStore()
    async with world(path, FileSource(corpus), store, clock) as here:
        async with here.registry.write() as tx:
            for body in BODIES.values():
                await catalogs.create(tx, read_catalog(body), "test")
        await here.build()
        served = SidecarSettings(disk="", memory_mb=memory_mb, poll_ms=10, cors_origins=origins)
        settings = Settings(sidecar=served, links=LINKS, auth=auth or AuthSettings())
        sidecar = Sidecar(settings, store, clock)
        async with TestClient(TestServer(sidecar.app)) as client:
            await sidecar.current.other_than(None)
            yield Rig(here, store, sidecar, client, tokens)


def key_of(document: Json) -> str:
    return str(document.get("key") or document["uuid"])


def differs(want: Any, got: Any, at: str = "") -> str | None:
    """The first place where two values differ; times are compared by their form."""
    if at.rpartition(".")[2] in _TIMES:
        return None if isinstance(got, str) and _TIME.fullmatch(got) else f"{at}: {got!r} is no time"
    if isinstance(want, dict) and isinstance(got, dict):
        if want.keys() != got.keys():
            return f"{at}: {sorted(want.keys() ^ got.keys())} on one side"
        return next((d for key in want if (d := differs(want[key], got[key], f"{at}.{key}"))), None)
    if isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            return f"{at}: {len(got)} instead of {len(want)}"
        pairs = enumerate(zip(want, got, strict=True))
        return next((d for n, (w, g) in pairs if (d := differs(w, g, f"{at}[{n}]"))), None)
    same = isinstance(want, bool) is isinstance(got, bool) and want == got
    return None if same else f"{at}: {str(got)[:200]!r} instead of {str(want)[:200]!r}"


def without_new_links(want: Json, got: Json) -> Json:
    """A document without the links of nested runs that the recording does not have (difference 16)."""
    recorded = {run["key"]: run for run in want.get("course_runs") or []}
    runs = [
        {k: v for k, v in run.items() if k not in ("enrollment_url", "parent_content_key")}
        if "enrollment_url" in run and "enrollment_url" not in recorded.get(run["key"], run)
        else run
        for run in got.get("course_runs") or []
    ]
    return {**got, "course_runs": runs} if "course_runs" in got else got


class Judge:
    """Knows every recorded document of every catalog."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict[str, Json]] = {}
        for exchange in exchanges("04_get_content_metadata"):
            body = exchange.get("json")
            if isinstance(body, dict) and "results" in body:
                _, _, version, _, uuid, *_ = exchange["path"].split("/")
                self.documents.setdefault((version, uuid), {}).update({key_of(d): d for d in body["results"]})

    def document(self, version: str, uuid: str, got: Json) -> str | None:
        """What is wrong with a document of a catalog; nothing if it was never recorded."""
        want = self.documents[version, uuid].get(key_of(got))
        return None if want is None else differs(want, without_new_links(want, got), key_of(got))

    async def wrong(self, exchange: Json, answer: ClientResponse) -> str | None:
        """What is wrong with an answer, or None."""
        want, path = exchange.get("json"), exchange["path"]
        if exchange["status"] == 500:
            return None if answer.status in (400, 404) else f"{answer.status} instead of 400 or 404"
        if re.search(r"metadataXYZ$", path):
            return None if answer.status == 404 else f"{answer.status} instead of 404"
        if answer.status != exchange["status"]:
            return f"{answer.status} instead of {exchange['status']}: {(await answer.text())[:200]}"
        if answer.headers["Allow"] != exchange["response_headers"]["Allow"]:
            return f"Allow: {answer.headers['Allow']}"
        if exchange["method"] in ("HEAD", "OPTIONS") or "xml" in exchange["response_headers"]["Content-Type"]:
            return None
        got = json.loads(await answer.read())
        if not isinstance(want, dict) or answer.status != 200:
            return differs(want, got)
        if "results" in want and "/get_content_metadata" in path:
            _, _, version, _, uuid, *_ = path.split("/")
            return self._page(exchange, version, uuid, got)
        if "results" in want and "/content-metadata/" in path and "content_identifiers" not in exchange["query"]:
            # Everything that is known; the recording's service knew rows of runs.
            return differs(list(want), list(got)) or differs(len(want["results"]), len(got["results"]))
        if "/catalog-queries/" in path and "results" in want:
            return self.queries(want, got)
        for name in _UNORDERED:
            if name in want:
                for body in (want, got):
                    body[name].sort(key=lambda item: item["content_key"])
        return differs(want, without_new_links(want, got))

    def _page(self, exchange: Json, version: str, uuid: str, got: Json) -> str | None:
        want = exchange["json"]
        keys = [sorted(map(key_of, body["results"])) for body in (want, got)]
        if "content_keys" in exchange["query"] or "traverse_pagination" in exchange["query"]:
            if keys[0] != keys[1]:
                return f"keys {keys[1]} instead of {keys[0]}"
        elif len(keys[0]) != len(keys[1]):
            return f"{len(keys[1])} documents instead of {len(keys[0])}"
        if list(want) != list(got):
            return f"members {list(got)} instead of {list(want)}"
        around = [{**body, "results": None} for body in (want, got)]
        wrong = (self.document(version, uuid, document) for document in got["results"])
        return differs(around[0], around[1]) or next((w for w in wrong if w), None)

    @staticmethod
    def queries(want: Json, got: Json) -> str | None:
        """What is wrong with a list of queries."""
        ours = [
            {"uuid": b["catalog_query_uuid"], "title": b["query_title"], "content_filter": b["content_filter"]}
            for b in BODIES.values()
        ]
        shown = [{k: v for k, v in q.items() if k != "content_filter_hash"} for q in got["results"]]
        odd = [query for query in shown if query not in ours]
        if odd or list(want) != list(got):
            return f"no query of ours: {odd[:1]}, or another envelope: {list(got)}"
        return None
