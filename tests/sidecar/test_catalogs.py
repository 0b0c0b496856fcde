"""Catalogs are listed and retrieved from the index as today's service shows them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient
from yarl import URL

from sidecar.catalogs import CATALOGS, MAX_PAGE_SIZE
from sidecar.contract.index import Index
from sidecar.contract.records import CatalogShard, FreshnessShard, QueryShard, Record
from sidecar.contract.words import query_hash
from sidecar.current import Current, Generation
from sidecar.forward import Forwarder
from sidecar.handlers import RETRY_AFTER_S, api_routes
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from tests.sidecar.contract.tree import Answers, Catalog, Query, Tree, build
from tests.sidecar.fakes import FakeClock
from tests.trees import PULLED_MS

ACME, OTHER, NOBODY = UUID(int=0xA), UUID(int=0xB), UUID(int=0xC)
# Created in this order, which is not that of their uuids.
CHANGED, SHARING, DUE, EMPTY = UUID(int=0xD4), UUID(int=0xD1), UUID(int=0xD3), UUID(int=0xD2)
OLD, NEW, NONE = {"q": "old"}, {"q": "new"}, {"q": "none"}
MODIFIED_MS = 1_795_335_087_735
PULLS_MS = {query_hash(OLD): PULLED_MS - 61_999, query_hash(NONE): PULLED_MS - 5_000}
LIST = "/api/v1/enterprise-catalogs/"
PARSES = ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"]
# What the API demands of a new catalog.
REQUIRED = {
    "title",
    "enterprise_customer",
    "enterprise_customer_name",
    "enabled_course_modes",
    "publish_audit_enrollment_urls",
    "content_filter",
}
Client = TestClient[web.Request, web.Application]


def _dated(record: Record) -> Record:
    """The record with titles of queries, and with the times that a test reads."""
    if isinstance(record, QueryShard):
        return QueryShard(tuple(replace(r, title=f"query {r.id}") for r in record.records))
    if isinstance(record, FreshnessShard):
        changed = {query_hash(OLD): MODIFIED_MS}
        rows = (replace(r, modified_ms=changed.get(r.hash)) for r in record.records)
        return FreshnessShard(tuple(replace(r, pulled_at_ms=PULLS_MS.get(r.hash)) for r in rows))
    if isinstance(record, CatalogShard):
        return CatalogShard(tuple(replace(r, modified_ms=MODIFIED_MS + 265) for r in record.records))
    return record


def _index(tree: Tree) -> Index:
    return Index.assemble(tree.root, {digest: _dated(record) for digest, record in tree.records().items()})


def _generation() -> Generation:
    tree = build(
        queries=[Query(OLD, Answers(), Answers()), Query(NEW), Query(NONE, Answers(), Answers())],
        catalogs=[
            Catalog(CHANGED, wanted=NEW, serving=OLD, customer=ACME),
            Catalog(SHARING, wanted=OLD, serving=OLD, customer=OTHER),
            Catalog(DUE, wanted=NEW, customer=ACME),
            Catalog(EMPTY, wanted=NONE, serving=NONE, customer=ACME),
        ],
        generation=7,
    )
    return Generation.of(Pointer(1, 7, tree.root), _index(tree))


class Api:
    """Asks the routes, with query strings exactly as given."""

    def __init__(self, client: Client, current: Current) -> None:
        self.client = client
        self.current = current

    async def ask(self, path: str, query: str = "", method: str = "GET", **more: Any) -> ClientResponse:
        url = URL(path + (f"?{query}" if query else ""), encoded=True)
        return await self.client.request(method, url, allow_redirects=False, **more)

    async def listed(self, query: str = "") -> list[UUID]:
        """The uuids of a page."""
        answer = await self.ask(LIST, query)
        assert answer.status == 200
        return [UUID(record["uuid"]) for record in (await answer.json())["results"]]


@pytest.fixture
async def api(aiohttp_client: AiohttpClient) -> Api:
    current, metrics = Current(), Metrics()
    current.swap(_generation())
    app = web.Application()
    app.add_routes(api_routes(CATALOGS, current, Forwarder("http://127.0.0.1:1", current, metrics), FakeClock()))
    client: Client = await aiohttp_client(app)
    return Api(client, current)


async def test_the_list_is_in_order_of_creation(api: Api) -> None:
    answer = await api.ask(LIST)
    body = await answer.json()
    assert list(body) == ["count", "next", "previous", "results"]
    assert (body["count"], body["next"], body["previous"]) == (4, None, None)
    assert [UUID(record["uuid"]) for record in body["results"]] == [CHANGED, SHARING, DUE, EMPTY]
    assert answer.headers["Allow"] == "GET, POST, HEAD, OPTIONS"
    assert answer.headers["X-Catalog-Generation"] == "7"
    assert answer.headers["X-Catalog-Age"] == "61"


async def test_a_record_tells_the_wanted_query_and_the_served_content(api: Api) -> None:
    answer = await api.ask(f"{LIST}{CHANGED}/")
    assert (answer.status, await answer.json()) == (
        200,
        {
            "uuid": str(CHANGED),
            "title": "catalog 0",
            "enterprise_customer": str(ACME),
            "catalog_query_uuid": str(UUID(int=2)),
            "content_last_modified": "2026-11-22T08:11:27.735000Z",
            "catalog_modified": "2026-11-22T08:11:28Z",
            "query_title": "query 2",
        },
    )
    assert answer.headers["Allow"] == "GET, PUT, PATCH, DELETE, HEAD, OPTIONS"
    assert answer.headers["X-Catalog-Generation"] == "7"
    assert answer.headers["X-Catalog-Age"] == "61"


@pytest.mark.parametrize("uuid, age", [(DUE, None), (EMPTY, "5")])
async def test_without_content_nothing_was_last_modified(api: Api, uuid: UUID, age: str | None) -> None:
    answer = await api.ask(f"{LIST}{uuid}/")
    assert (await answer.json())["content_last_modified"] is None
    assert answer.headers.get("X-Catalog-Age") == age


@pytest.mark.parametrize("uuid", [str(CHANGED).upper(), CHANGED.hex])
async def test_uuids_may_be_written_otherwise(api: Api, uuid: str) -> None:
    assert (await (await api.ask(f"{LIST}{uuid}/")).json())["uuid"] == str(CHANGED)
    assert await api.listed(f"enterprise_customer={str(ACME).upper()}") == [CHANGED, DUE, EMPTY]


async def test_the_list_of_one_customer(api: Api) -> None:
    assert await api.listed(f"enterprise_customer={ACME}") == [CHANGED, DUE, EMPTY]
    assert await api.listed(f"enterprise_customer={OTHER}") == [SHARING]
    assert await api.listed(f"enterprise_customer={NOBODY}") == []
    assert await api.listed("enterprise_customer=") == [CHANGED, SHARING, DUE, EMPTY]
    assert await api.listed(f"enterprise_customer=x&enterprise_customer={OTHER}") == [SHARING]


async def test_another_customers_catalog_is_not_found(api: Api) -> None:
    for query, status in ((f"enterprise_customer={ACME}", 200), ("enterprise_customer=", 200)):
        assert (await api.ask(f"{LIST}{CHANGED}/", query)).status == status
    for uuid, query in ((CHANGED, f"enterprise_customer={OTHER}"), (NOBODY, ""), (NOBODY, "enterprise_customer=x")):
        answer = await api.ask(f"{LIST}{uuid}/", query)
        assert (answer.status, await answer.json()) == (
            404,
            {"detail": "No EnterpriseCatalog matches the given query."},
        )
        assert answer.headers["X-Catalog-Generation"] == "7"


async def test_a_malformed_customer_is_a_bad_request(api: Api) -> None:
    for path in (LIST, f"{LIST}{CHANGED}/"):
        answer = await api.ask(path, "enterprise_customer=not-a-uuid")
        assert (answer.status, await answer.json()) == (400, {"enterprise_customer": ["Must be a valid UUID."]})


async def test_a_malformed_catalog_is_not_found(api: Api) -> None:
    answer = await api.ask(f"{LIST}not-a-uuid/")
    assert (answer.status, await answer.json()) == (404, {"detail": "Not found."})


async def test_pages_and_links_are_those_of_the_host_that_was_asked(api: Api) -> None:
    query = f"page_size=1&enterprise_customer={ACME}&page=2"
    answer = await api.ask(LIST, query, headers={"Host": "catalog.example.test"})
    body = await answer.json()
    url = f"http://catalog.example.test{LIST}?enterprise_customer={ACME}"
    assert (body["count"], body["next"], body["previous"]) == (3, f"{url}&page=3&page_size=1", f"{url}&page_size=1")
    assert [record["uuid"] for record in body["results"]] == [str(DUE)]


async def test_an_answer_is_as_old_as_the_oldest_pull_on_its_page(api: Api) -> None:
    ages = [(await api.ask(LIST, f"page_size=1&page={n}")).headers.get("X-Catalog-Age") for n in (1, 2, 3, 4)]
    assert ages == ["61", "61", None, "5"]


async def test_the_last_page_and_one_that_is_not_there(api: Api) -> None:
    assert await api.listed("page=last&page_size=3") == [EMPTY]
    for page in ("0", "99", "x"):
        answer = await api.ask(LIST, f"page={page}")
        assert (answer.status, await answer.json()) == (404, {"detail": "Invalid page."})


async def test_a_page_has_a_thousand_catalogs_at_most(api: Api) -> None:
    rows = [Catalog(UUID(int=n + 1), wanted=NONE, serving=NONE, customer=ACME) for n in range(MAX_PAGE_SIZE + 1)]
    tree = build(queries=[Query(NONE, Answers(), Answers())], catalogs=rows)
    api.current.swap(Generation.of(Pointer(1, 8, tree.root), tree.assembled()))
    assert len(await api.listed("page_size=5000")) == MAX_PAGE_SIZE
    assert len(await api.listed("page_size=5000&page=2")) == 1


async def test_without_a_generation_nothing_is_told(api: Api) -> None:
    api.current.generation = None
    for path in (LIST, f"{LIST}{CHANGED}/"):
        answer = await api.ask(path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_S))
        assert "X-Catalog-Generation" not in answer.headers


async def test_head_has_the_headers_of_get_and_no_body(api: Api) -> None:
    for path in (LIST, f"{LIST}{CHANGED}/"):
        get, head = await api.ask(path), await api.ask(path, method="HEAD")
        assert (head.status, await head.read()) == (200, b"")
        names = ("Content-Length", "Content-Type", "X-Catalog-Generation", "X-Catalog-Age")
        assert [head.headers[name] for name in names] == [get.headers[name] for name in names]


@pytest.mark.parametrize(
    "path, name, description, allow",
    [
        (
            LIST,
            "Enterprise Catalog Crud List",
            "Viewset for CRUD operations on Enterprise Catalogs",
            "GET, POST, HEAD, OPTIONS",
        ),
        (
            f"{LIST}{CHANGED}/",
            "Enterprise Catalog Crud Instance",
            "Viewset for CRUD operations on Enterprise Catalogs",
            "GET, PUT, PATCH, DELETE, HEAD, OPTIONS",
        ),
        (
            f"{LIST}{CHANGED}/refresh_metadata",
            "Enterprise Catalog Refresh Data From Discovery",
            "View to update metadata in Catalog with most recent data from Discovery service",
            "POST, OPTIONS",
        ),
    ],
)
async def test_options_describe_a_route(api: Api, path: str, name: str, description: str, allow: str) -> None:
    answer = await api.ask(path, method="OPTIONS")
    told = await answer.json()
    told.pop("actions", None)
    renders = ["application/json", "application/xml"] if name.endswith("Instance") else ["application/json"]
    described = {"name": name, "description": description, "renders": renders, "parses": PARSES}
    assert (answer.status, told, answer.headers["Allow"]) == (200, described, allow)


async def test_options_tell_the_fields_of_a_body(api: Api) -> None:
    """What may be given is told: of a new catalog its uuid, too."""
    fields = {}
    for path, method in ((LIST, "POST"), (f"{LIST}{CHANGED}/", "PUT")):
        actions = (await (await api.ask(path, method="OPTIONS")).json())["actions"]
        assert list(actions) == [method]
        fields[method] = actions[method]
    assert {name for name, field in fields["POST"].items() if field["required"]} == REQUIRED
    assert [name for name, field in fields["PUT"].items() if field["read_only"]] == [
        "uuid",
        "content_last_modified",
        "catalog_modified",
    ]
    assert {name for name in fields["POST"] if fields["POST"][name] != fields["PUT"][name]} == {"uuid"}


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_format_may_stand_at_the_end_of_a_path(api: Api, slash: str) -> None:
    one, many = f"{LIST}{CHANGED}", LIST.removesuffix("/")
    plain = await (await api.ask(f"{one}/")).json()
    assert await (await api.ask(f"{one}.json{slash}")).json() == plain
    answer = await api.ask(f"{one}.xml{slash}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/xml; charset=utf-8")
    assert (await (await api.ask(f"{many}.json{slash}")).json())["count"] == 4
    # It goes before what the query says.
    assert (await api.ask(f"{one}.json{slash}", "format=xml")).headers["Content-Type"] == "application/json"
    for path, status in ((f"{many}.xml", 404), (f"{one}.html", 404), (f"{one}.JSON", 404), (f"{many}.api", 406)):
        assert (await api.ask(path + slash)).status == status
    assert (await api.ask(f"{one}.xml{slash}", headers={"Accept": "application/json"})).status == 406


async def test_what_is_refused_is_xml_where_that_was_asked_for(api: Api) -> None:
    answer = await api.ask(f"{LIST}{UUID(int=9)}/", headers={"Accept": "application/xml"})
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/xml; charset=utf-8")
    text = "<root><detail>No EnterpriseCatalog matches the given query.</detail></root>"
    assert (await answer.text()).endswith(text)
    answer = await api.ask(f"{LIST}{CHANGED}/", method="PUT", headers={"Accept": "application/xml"})
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/xml; charset=utf-8")
    assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
    answer = await api.ask(f"{LIST}{CHANGED}/", method="OPTIONS", headers={"Accept": "application/xml"})
    assert "<renders><list-item>application/json</list-item><list-item>application/xml</list-item></renders>" in (
        await answer.text()
    )


@pytest.mark.parametrize(
    "path, methods",
    [
        (LIST, ["PUT", "PATCH", "DELETE"]),
        (f"{LIST}{CHANGED}/", ["POST"]),
        (f"{LIST}{CHANGED}/refresh_metadata", ["GET", "HEAD", "PUT", "PATCH", "DELETE"]),
        (f"{LIST}{CHANGED}/refresh_metadata/", ["GET"]),
    ],
)
async def test_other_methods_are_told_which_are_allowed(api: Api, path: str, methods: list[str]) -> None:
    allow = (await api.ask(path, method="OPTIONS")).headers["Allow"]
    for method in methods:
        answer = await api.ask(path, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, allow)
        assert method == "HEAD" or await answer.json() == {"detail": f'Method "{method}" not allowed.'}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_path_without_its_closing_slash_leads_to_the_one_with_it(api: Api, method: str) -> None:
    for path in (LIST, f"{LIST}{CHANGED}/"):
        answer = await api.ask(path.removesuffix("/"), "a=%2B+b", method)
        assert (answer.status, answer.headers["Location"]) == (301, f"{path}?a=%2B+b")


@pytest.mark.parametrize("path", [f"{LIST}{CHANGED}/refresh_metadata/x", f"{LIST}{CHANGED}/refresh_metadataX"])
async def test_nothing_goes_after_refresh_metadata(api: Api, path: str) -> None:
    assert (await api.ask(path, method="POST")).status == 404


async def test_there_are_no_catalogs_in_v2(api: Api) -> None:
    for path in (LIST, f"{LIST}{CHANGED}/"):
        assert (await api.ask(path.replace("v1", "v2"))).status == 404


@pytest.mark.parametrize("query, headers", [("", {"Accept": "application/xml"}), ("format=xml", {})])
async def test_one_catalog_can_be_had_as_xml(api: Api, query: str, headers: Mapping[str, str]) -> None:
    answer = await api.ask(f"{LIST}{CHANGED}/", query, headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/xml; charset=utf-8")
    assert (await answer.text()).startswith('<?xml version="1.0" encoding="utf-8"?>\n<root><uuid>')


async def test_an_accept_that_is_not_served_cannot_be_met(api: Api) -> None:
    requests: tuple[tuple[str, str, Mapping[str, str], int], ...] = (
        (LIST, "", {"Accept": "text/html"}, 406),
        (f"{LIST}{CHANGED}/", "", {"Accept": "text/html"}, 406),
        (f"{LIST}{CHANGED}/", "format=xml", {"Accept": "application/json"}, 406),
        (LIST, "format=xml", {}, 404),
    )
    for path, query, headers, status in requests:
        assert (await api.ask(path, query, headers=headers)).status == status
