"""Every recorded containment answer, asked of a sidecar over HTTP, on content that the real pipeline has compiled."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient, TestServer

from indexer.catalog_body import read_catalog
from indexer.documents import is_let_in
from indexer.filters import allowed_restricted_runs, matches
from indexer.registry import catalogs
from indexer.source.file import FileSource
from sidecar.app import Sidecar
from sidecar.contract.words import canonical_uuid
from sidecar.settings import Settings, SidecarSettings
from sidecar.store.sqlite import SqliteStore
from tests.fakes import FakeClock
from tests.world import load, world

GOLDEN = Path(__file__).parent / "contract" / "golden"
VERSIONS = ("v1", "v2")
Client = TestClient[Any, Any]


def _read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


class Expected:
    """The recorded answers with difference 1, worked out from the corpus without any index."""

    def __init__(self) -> None:
        self.matrix = _read("00_matrix")
        corpus = _read("corpus")
        self.bodies = [c["body"] for c in _read("definitions")["catalogs"] if not c["null_query"]]
        searched = {c["search"]["key"]: c["search"] for c in corpus["courses"] if is_let_in(c["search"])}
        nested = [(run, c["search"]["key"]) for c in corpus["courses"] for run in c["full"]["course_runs"]]
        self.extra: dict[tuple[str, str], set[str]] = {}
        for body in self.bodies:
            content_filter = body["content_filter"]
            members = {key for key, document in searched.items() if matches(content_filter, document)}
            allowed = allowed_restricted_runs(content_filter)
            for version in VERSIONS:
                shown = allowed if version == "v2" else frozenset()
                self.extra[version, body["uuid"]] = {
                    run["key"]
                    for run, course in nested
                    if course in members and (not run["restriction_type"] or run["key"] in shown)
                }

    def catalog(self, version: str, uuid: str) -> set[str]:
        """The keys that a catalog contains."""
        return set(self.matrix[f"{version}_catalog"][uuid]["true"]) | self.extra[version, uuid]

    def catalogs_of(self, customer: str) -> list[str]:
        """A customer's catalogs in order of creation."""
        return [body["uuid"] for body in self.bodies if body["enterprise_customer"] == customer]


@pytest.fixture(scope="module")
def expected() -> Expected:
    return Expected()


@pytest.fixture
async def client(tmp_path: Path, expected: Expected) -> AsyncIterator[Client]:
    clock = FakeClock()
    store = SqliteStore(tmp_path / "store.db", writable=True)
    async with world(tmp_path, FileSource(GOLDEN / "corpus.json"), store, clock) as here:
        async with here.registry.write() as tx:
            for body in expected.bodies:
                await catalogs.create(tx, read_catalog(body), "test")
        await here.build()
        reader = SqliteStore(tmp_path / "store.db", writable=False)
        settings = Settings(sidecar=SidecarSettings(disk=str(tmp_path / "sidecar.db")))
        sidecar = Sidecar(settings, reader, clock)
        async with TestClient(TestServer(sidecar.app)) as asking:
            await sidecar.current.other_than(None)
            yield asking


def _ask(key: str) -> str:
    name = "program_uuids" if canonical_uuid(key) else "course_run_ids"
    return f"{name}={quote(key, safe='')}"


async def test_every_catalog_contains_what_was_recorded_and_the_nested_runs(client: Client, expected: Expected) -> None:
    wrong = []
    for version in VERSIONS:
        for body in expected.bodies:
            contained = expected.catalog(version, body["uuid"])
            for key in expected.matrix["probe_ids"]:
                path = f"/api/{version}/enterprise-catalogs/{body['uuid']}/contains_content_items/?{_ask(key)}"
                async with client.get(path) as response:
                    answer = await response.json()
                if response.status != 200 or answer != {"contains_content_items": key in contained}:
                    wrong.append((path, response.status, answer))
    assert wrong == []


async def test_every_customer_has_the_recorded_catalogs_for_a_key(client: Client, expected: Expected) -> None:
    wrong = []
    for version in VERSIONS:
        for customer in expected.matrix[f"{version}_customer"]:
            theirs = expected.catalogs_of(customer)
            for key in expected.matrix["probe_ids"]:
                want = [uuid for uuid in theirs if key in expected.catalog(version, uuid)]
                path = (
                    f"/api/{version}/enterprise-customer/{customer}/contains_content_items/"
                    f"?{_ask(key)}&get_catalogs_containing_specified_content_ids=true"
                )
                async with client.get(path) as response:
                    answer = await response.json()
                if response.status != 200 or answer != {"contains_content_items": bool(want), "catalog_list": want}:
                    wrong.append((path, response.status, answer))
    assert wrong == []


async def test_filtering_all_probes_leaves_what_was_recorded(client: Client, expected: Expected) -> None:
    for version in VERSIONS:
        for customer, want in expected.matrix[f"{version}_filter_content_items"].items():
            path = f"/api/{version}/enterprise-customer/{customer}/filter_content_items/"
            async with client.post(path, json={"content_keys": expected.matrix["probe_ids"]}) as response:
                answer = await response.json()
            assert response.status == 200
            assert sorted(answer["filtered_content_keys"]) == sorted(want)


def _siblings_of_member_runs() -> Iterator[tuple[str, str]]:
    """(catalog, run) where another run of the same course is a member and the course itself is not."""
    corpus = _read("corpus")
    matrix = _read("00_matrix")["v1_catalog"]
    runs_of = {c["search"]["key"]: [r["key"] for r in c["full"]["course_runs"]] for c in corpus["courses"]}
    for c in _read("definitions")["catalogs"]:
        true = set(matrix[c["body"]["uuid"]]["true"])
        if isinstance(c["body"]["content_filter"].get("key"), list) and c["query"] == "mixed_keys":
            for key in c["body"]["content_filter"]["key"]:
                for runs in runs_of.values():
                    yield from ((c["body"]["uuid"], run) for run in runs if key in runs and run not in true)


async def test_a_sibling_of_a_member_run_is_not_contained(client: Client) -> None:
    siblings = list(_siblings_of_member_runs())
    assert siblings
    for uuid, run in siblings:
        async with client.get(f"/api/v2/enterprise-catalogs/{uuid}/contains_content_items/?{_ask(run)}") as response:
            assert await response.json() == {"contains_content_items": False}


async def test_the_published_tree_knows_every_run_that_was_ever_nested(client: Client, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", writable=False)
    index = await load(store)
    await store.close()
    courses = [c for c in _read("corpus")["courses"] if is_let_in(c["search"])]
    unrestricted = {r["key"] for c in courses for r in c["full"]["course_runs"] if not r["restriction_type"]}
    assert unrestricted <= index.dictionary.ordinals.keys()
