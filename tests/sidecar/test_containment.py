"""The containment routes answer with the statuses, bodies and headers that today's clients rely on."""

from typing import Any
from uuid import UUID

import pytest
from aiohttp import ClientResponse, FormData, web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient
from yarl import URL

from sidecar.containment import CONTAINMENT
from sidecar.current import Current, Generation
from sidecar.forward import Forwarder
from sidecar.handlers import RETRY_AFTER_S, api_routes
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from tests.sidecar.fakes import FakeClock
from tests.trees import CUSTOMER, PULLED_MS, Catalog, Selection, World

ALL, RUNS, DUE, OTHER = (UUID(int=n + 0xABCDEF) for n in range(4))
ELSEWHERE, UNKNOWN = UUID(int=0xE), UUID(int=0xDEAD)
HIDDEN = "course-v1:edX+R+1"
WORLD = World(
    courses={"MITx+EC001": ["course-v1:MITx+EC001+1T2024"], "edX+R": [HIDDEN], "ÜniX+Ün": []},
    programs=["15b344f6-fe5d-4e48-84b6-29301d73c16a"],
    restricted={HIDDEN},
    selections={
        "all": Selection({"MITx+EC001", "edX+R", "ÜniX+Ün"}, PULLED_MS - 61_999, allowed={HIDDEN}),
        "runs": Selection({"course-v1:MITx+EC001+1T2024"}, PULLED_MS - 5_000),
        "due": Selection(pulled_at_ms=None),
        "program": Selection({"15b344f6-fe5d-4e48-84b6-29301d73c16a"}),
    },
    catalogs=[
        Catalog(ALL, "all"),
        Catalog(RUNS, "runs"),
        Catalog(DUE, "due", ELSEWHERE),
        Catalog(OTHER, "program", ELSEWHERE),
    ],
)
PARSES = ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"]
NO_IDS = ["You must provide at least one of the following query parameters: course_run_ids, program_uuids."]
Client = TestClient[web.Request, web.Application]


class Api:
    """Asks the routes, with query strings exactly as given."""

    def __init__(self, client: Client, current: Current) -> None:
        self.client = client
        self.current = current

    async def ask(self, method: str, path: str, query: str = "", **more: Any) -> ClientResponse:
        url = URL(path + (f"?{query}" if query else ""), encoded=True)
        return await self.client.request(method, url, allow_redirects=False, **more)

    async def catalog(
        self, uuid: object, query: str = "", method: str = "GET", v: int = 1, **more: Any
    ) -> ClientResponse:
        path = f"/api/v{v}/enterprise-catalogs/{uuid}/contains_content_items/"
        return await self.ask(method, path, query, **more)

    async def customer(
        self, uuid: object, query: str = "", method: str = "GET", v: int = 1, **more: Any
    ) -> ClientResponse:
        path = f"/api/v{v}/enterprise-customer/{uuid}/contains_content_items/"
        return await self.ask(method, path, query, **more)

    async def filter(self, uuid: object, method: str = "POST", v: int = 1, **more: Any) -> ClientResponse:
        return await self.ask(method, f"/api/v{v}/enterprise-customer/{uuid}/filter_content_items/", **more)


@pytest.fixture
async def api(aiohttp_client: AiohttpClient) -> Api:
    current = Current()
    tree = WORLD.tree(epoch=1, generation=7)
    current.swap(Generation.of(Pointer(1, 7, tree.root), tree.assembled()))
    app = web.Application()
    app.add_routes(api_routes(CONTAINMENT, current, Forwarder("http://127.0.0.1:1", current, Metrics()), FakeClock()))
    client: Client = await aiohttp_client(app)
    return Api(client, current)


async def test_an_answer_is_compact_json_and_says_where_it_is_from(api: Api) -> None:
    answer = await api.catalog(ALL, "course_run_ids=MITx+EC001")
    assert (answer.status, await answer.read()) == (200, b'{"contains_content_items":true}')
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Catalog-Generation"] == "7"
    assert answer.headers["X-Catalog-Age"] == "61"


@pytest.mark.parametrize(
    "query, contained",
    [
        ("course_run_ids=MITx%2BEC001", True),
        ("program_uuids=MITx+EC001", False),
        ("course_run_ids=course-v1:MITx+EC001+1T2024", True),
        ("course_run_ids=no%2Bsuch&course_run_ids=MITx%2BEC001", True),
        ("course_run_ids=no%2Bsuch%2CMITx%2BEC001", True),
        ("course_run_ids=mitx%2Bec001", True),
        ("course_run_ids=UniX%2BUn", True),
        ("course_run_ids=MITx%2BEC001%20", False),
        ("course_run_ids=", False),
        ("course_run_ids=MITx%2BEC001&format=json", True),
        (f"course_run_ids={HIDDEN}", False),
    ],
)
async def test_keys_as_callers_write_them(api: Api, query: str, contained: bool) -> None:
    answer = await api.catalog(ALL, query)
    assert (answer.status, await answer.json()) == (200, {"contains_content_items": contained})


async def test_v2_shows_restricted_runs_that_the_query_allows(api: Api) -> None:
    assert await (await api.catalog(ALL, f"course_run_ids={HIDDEN}", v=2)).json() == {"contains_content_items": True}


@pytest.mark.parametrize("uuid", [str(ALL).upper(), ALL.hex])
async def test_catalog_uuids_may_be_written_otherwise(api: Api, uuid: str) -> None:
    assert (await api.catalog(uuid, "course_run_ids=MITx+EC001")).status == 200


async def test_an_unknown_catalog_comes_before_missing_parameters(api: Api) -> None:
    for query in ("course_run_ids=a", ""):
        answer = await api.catalog(UNKNOWN, query)
        assert (answer.status, await answer.json()) == (
            404,
            {"detail": "No EnterpriseCatalog matches the given query."},
        )
        assert answer.headers["X-Catalog-Generation"] == "7"
        assert "X-Catalog-Age" not in answer.headers


async def test_a_malformed_catalog_uuid_is_not_found(api: Api) -> None:
    answer = await api.catalog("not-a-uuid", "course_run_ids=a")
    assert (answer.status, await answer.json()) == (404, {"detail": "Not found."})


async def test_no_parameter_at_all_is_a_list_with_one_text(api: Api) -> None:
    for answer in (
        await api.catalog(ALL, "foo=bar"),
        await api.customer(CUSTOMER),
        await api.customer("not-a-uuid", "get_catalog_list=1"),
    ):
        assert (answer.status, await answer.json()) == (400, NO_IDS)


async def test_a_catalog_that_was_never_pulled_is_asked_again_later(api: Api) -> None:
    answer = await api.catalog(DUE, "course_run_ids=MITx+EC001")
    assert answer.status == 503
    assert str(DUE) in (await answer.json())["detail"]
    assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
    assert answer.headers["X-Catalog-Generation"] == "7"


async def test_without_a_generation_nothing_is_told(api: Api) -> None:
    api.current.generation = None
    for answer in (
        await api.catalog(ALL, "course_run_ids=a"),
        await api.customer(CUSTOMER, "course_run_ids=a"),
        await api.filter(CUSTOMER, json={}),
    ):
        assert answer.status == 503
        assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
        assert "X-Catalog-Generation" not in answer.headers
        assert "no generation" in (await answer.json())["detail"]


async def test_a_path_without_its_closing_slash_leads_to_the_one_with_it(api: Api) -> None:
    path = f"/api/v1/enterprise-catalogs/{ALL}/contains_content_items"
    answer = await api.ask("GET", path, "course_run_ids=MITx%2BEC001")
    assert (answer.status, await answer.read()) == (301, b"")
    assert answer.headers["Location"] == f"{path}/?course_run_ids=MITx%2BEC001"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert (await api.ask("GET", path)).headers["Location"] == f"{path}/"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_other_methods_are_told_which_are_allowed(api: Api, method: str) -> None:
    for answer in (await api.catalog(ALL, method=method), await api.customer(CUSTOMER, method=method)):
        assert (answer.status, await answer.json()) == (405, {"detail": f'Method "{method}" not allowed.'})
        assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    answer = await api.filter(CUSTOMER, method="GET")
    assert (answer.status, await answer.json()) == (405, {"detail": 'Method "GET" not allowed.'})
    assert answer.headers["Allow"] == "POST, OPTIONS"


async def test_head_has_the_headers_of_get_and_no_body(api: Api) -> None:
    get = await api.catalog(ALL, "course_run_ids=MITx+EC001")
    head = await api.catalog(ALL, "course_run_ids=MITx+EC001", method="HEAD")
    assert (head.status, await head.read()) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert head.headers["X-Catalog-Generation"] == "7"


async def test_options_describe_the_route(api: Api) -> None:
    answer = await api.catalog(ALL, method="OPTIONS")
    body = await answer.json()
    assert (answer.status, body["name"], body["parses"]) == (200, "Contains content items", PARSES)


async def test_an_accept_without_json_cannot_be_met(api: Api) -> None:
    for answer in (
        await api.catalog(ALL, "course_run_ids=a", headers={"Accept": "text/html"}),
        await api.customer(CUSTOMER, "course_run_ids=a", headers={"Accept": "application/xml"}),
        await api.catalog(ALL, "course_run_ids=a&format=xml", headers={"Accept": "application/json"}),
    ):
        assert (answer.status, await answer.json()) == (
            406,
            {"detail": "Could not satisfy the request Accept header."},
        )


async def test_a_customer_has_what_one_of_its_catalogs_has(api: Api) -> None:
    answer = await api.customer(str(CUSTOMER).upper(), "course_run_ids=MITx+EC001")
    assert await answer.read() == b'{"contains_content_items":true}'
    listed = await api.customer(CUSTOMER.hex, "course_run_ids=MITx+EC001&get_catalog_list=False")
    assert await listed.json() == {"contains_content_items": True, "catalog_list": [str(ALL), str(RUNS)]}
    assert listed.headers["X-Catalog-Age"] == "61"


async def test_an_unknown_customer_has_nothing(api: Api) -> None:
    answer = await api.customer(UNKNOWN, "course_run_ids=a&get_catalog_list=1")
    assert (answer.status, await answer.json()) == (200, {"contains_content_items": False, "catalog_list": []})
    assert "X-Catalog-Age" not in answer.headers


async def test_a_malformed_customer_uuid_is_a_bad_request(api: Api) -> None:
    text = 'Error: invalid enterprice customer uuid: "not-a-uuid" provided.'
    for answer in (await api.customer("not-a-uuid", "course_run_ids=a"), await api.filter("not-a-uuid", json={})):
        assert (answer.status, await answer.json()) == (400, text)


async def test_a_customer_with_a_catalog_that_is_due(api: Api) -> None:
    assert (await api.customer(ELSEWHERE, "course_run_ids=MITx+EC001")).status == 503
    program = "program_uuids=15b344f6-fe5d-4e48-84b6-29301d73c16a"
    assert await (await api.customer(ELSEWHERE, program)).json() == {"contains_content_items": True}
    assert (await api.customer(ELSEWHERE, f"{program}&get_catalog_list=1")).status == 503
    assert (await api.filter(ELSEWHERE, json={"content_keys": ["a"]})).status == 503


async def test_filtering(api: Api) -> None:
    keys = ["no+such", "MITx+EC001", "mitx+ec001", "course-v1:MITx+EC001+1T2024", "MITx+EC001"]
    answer = await api.filter(CUSTOMER, json={"content_keys": keys})
    assert await answer.read() == b'{"filtered_content_keys":["MITx+EC001","course-v1:MITx+EC001+1T2024"]}'
    assert answer.headers["Allow"] == "POST, OPTIONS"
    assert answer.headers["X-Catalog-Age"] == "61"
    program = "15b344f6-fe5d-4e48-84b6-29301d73c16a"
    named = await api.filter(CUSTOMER, json={"content_keys": [program], "catalog_uuids": [str(OTHER)]})
    assert await named.json() == {"filtered_content_keys": [program]}


async def test_filtering_forms_and_nothing(api: Api) -> None:
    form = FormData({"content_keys": "MITx+EC001"})
    multipart = FormData({"content_keys": "MITx+EC001"}, default_to_multipart=True)
    forms: list[dict[str, Any]] = [{}, {"data": form}, {"data": multipart}, {"json": {}}]
    for more in [*forms, {"json": {"content_keys": "MITx+EC001"}}]:
        answer = await api.filter(CUSTOMER, **more)
        assert (answer.status, await answer.json()) == (200, {"filtered_content_keys": []})


@pytest.mark.parametrize("body", [["a"], {"content_keys": None}, {"content_keys": ["a"], "catalog_uuids": "x"}])
async def test_bodies_that_mean_nothing_are_bad_requests(api: Api, body: object) -> None:
    answer = await api.filter(CUSTOMER, json=body)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/json"


async def test_bodies_that_cannot_be_read_are_told_apart(api: Api) -> None:
    bad = await api.filter(CUSTOMER, data=b"{bad json", headers={"Content-Type": "application/json"})
    assert (bad.status, await bad.json()) == (
        400,
        {"detail": "JSON parse error - Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"},
    )
    text = await api.filter(CUSTOMER, data=b"x", headers={"Content-Type": "text/plain"})
    assert (text.status, await text.json()) == (415, {"detail": 'Unsupported media type "text/plain" in request.'})


async def test_what_cannot_be_written_as_utf_8_is_refused_all_the_same(api: Api) -> None:
    body = b'{"content_keys":[],"catalog_uuids":["\\ud800"]}'
    answer = await api.filter(CUSTOMER, data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, await answer.json()) == (400, {"detail": 'catalog_uuids: "?" is not a uuid.'})
    uuid = await api.customer("%FF", "course_run_ids=%ED%A0%80")
    assert uuid.status == 400
