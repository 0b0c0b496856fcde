"""Who gets which answer: every route, asked as every recorded actor, against the contract's table written out.

What is read is asked of a sidecar, what is written of the indexer's API, both with tokens, over the recorded corpus.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from indexer.api import CatalogApi, answering
from indexer.catalog_body import read_catalog
from indexer.publication import Publication
from indexer.registry import catalogs
from indexer.registry.schema import catalog_history
from indexer.service import Role
from indexer.source.file import FileSource
from indexer.wiring import Parts
from sidecar.app import Sidecar
from sidecar.catalogs import CATALOGS
from sidecar.containment import CONTAINMENT
from sidecar.content import Contents, content_routes
from sidecar.queries import QUERIES
from sidecar.roles import CLOSED
from sidecar.settings import Settings, SidecarSettings
from sidecar.store.sqlite import SqliteStore
from tests.fakes import catalog_body
from tests.tokens import StillClock, actors, settings, token_of, tokens
from tests.world import World, world

GOLDEN: Final = Path(__file__).parent / "contract" / "golden"
C0: Final = "ee9034df-3024-49bb-a365-58f527b83ab6"
C1: Final = "9e66c7ac-8758-4091-b9ea-bef97b09f284"
OF_C0: Final = "cc5b5eb4-74d6-4cc6-8465-f9d4082c30a2"
OF_C1: Final = "a4926d0e-719d-4612-9076-568b691482e5"
DEFINED: Final = [c["body"] for c in json.loads((GOLDEN / "definitions.json").read_text())["catalogs"]]
COURSE, RUN = "MITx+EC001", "course-v1:MITx+EC001+1T2024"
# A program of the catalog of c1.
PROGRAM: Final = "09da891d-a7a5-40a1-8ec8-9d68faf2f369"
UNKNOWN: Final = "12345678-90ab-4def-9234-567890abcdef"
LIST: Final = "/api/v1/enterprise-catalogs/"
ONE_OF_C0, ONE_OF_C1, NONE = (f"{LIST}{uuid}/" for uuid in (OF_C0, OF_C1, UNKNOWN))
KEY: Final = "?course_run_ids=MITx%2BEC001"
KEYS: Final = {"content_keys": ["MITx+EC001"]}
NOT_PROVIDED: Final = {"detail": "Authentication credentials were not provided."}
INVALID: Final = {"detail": "Invalid token."}
CHALLENGE: Final = 'JWT realm="api"'

# Who: nobody; who has no roles; learners of c0, c1, all customers, another one; admins of c0; who may everywhere.
COLUMNS: Final = (
    "anonymous expired bad_signature | norole staff_norole | learner_c0 learner_c1 learner_all big_learner_c0 | "
    "catalog_admin_c0 enterprise_admin_c0 | provisioner | operator hs256_symmetric superuser"
)
LEARNER_OF_C0: Final = "401 401 401 | 403 403 | 200 403 200 403 | 200 200 | 403 | 200 200 200"
LEARNER_OF_C1: Final = "401 401 401 | 403 403 | 403 200 200 403 | 403 403 | 403 | 200 200 200"
ADMIN_OF_C0: Final = "401 401 401 | 403 403 | 403 403 403 403 | 200 200 | 403 | 200 200 200"
ADMIN_OF_C1: Final = "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 200 200 200"
PROVIDES_FOR_C0: Final = "401 401 401 | 403 403 | 403 403 403 403 | 200 200 | 200 | 200 200 200"
PROVIDES_FOR_C1: Final = "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 200 | 200 200 200"
NOT_FOUND: Final = "404 404 404 | 404 404 | 404 404 404 404 | 404 404 | 404 | 404 404 404"
MOVED: Final = NOT_FOUND.replace("404", "301")

LEARNERS: Final = {"detail": "MISSING: catalog.has_learner_access"}
ADMINS: Final = {"detail": "MISSING: catalog.has_admin_access"}
LISTS: Final = {"detail": "You do not have permission to perform this action."}


def _contains(version: str) -> list[tuple[str, str, Any, str, Any]]:
    catalog, customer = f"/api/{version}/enterprise-catalogs", f"/api/{version}/enterprise-customer"
    contains, filters = "contains_content_items", "filter_content_items"
    not_a_uuid = "401 401 401 | 403 403 | 403 403 400 403 | 403 403 | 403 | 400 400 400"
    return [
        ("GET", f"{catalog}/{OF_C0}/{contains}/{KEY}", None, LEARNER_OF_C0, LEARNERS),
        ("GET", f"{catalog}/{OF_C1}/{contains}/{KEY}", None, LEARNER_OF_C1, LEARNERS),
        ("HEAD", f"{catalog}/{OF_C0}/{contains}/{KEY}", None, LEARNER_OF_C0, None),
        ("OPTIONS", f"{catalog}/{OF_C0}/{contains}/", None, LEARNER_OF_C0, LEARNERS),
        ("GET", f"{catalog}/{OF_C0}/{contains}/", None, LEARNER_OF_C0.replace("200", "400"), LEARNERS),
        ("PUT", f"{catalog}/{OF_C0}/{contains}/", None, LEARNER_OF_C0.replace("200", "405"), LEARNERS),
        ("GET", f"{catalog}/{OF_C0}/{contains}{KEY}", None, MOVED, None),
        ("GET", f"{catalog}/{UNKNOWN}/{contains}/{KEY}", None, NOT_FOUND, None),
        ("GET", f"{catalog}/{UNKNOWN}/{contains}/", None, NOT_FOUND, None),
        ("GET", f"{catalog}/not-a-uuid/{contains}/{KEY}", None, NOT_FOUND, None),
        ("GET", f"{customer}/{C0}/{contains}/{KEY}", None, LEARNER_OF_C0, LEARNERS),
        ("GET", f"{customer}/{C0}/{contains}/{KEY}&get_catalog_list=1", None, LEARNER_OF_C0, LEARNERS),
        ("GET", f"{customer}/{C1}/{contains}/{KEY}", None, LEARNER_OF_C1, LEARNERS),
        ("GET", f"{customer}/{C0}/{contains}/", None, LEARNER_OF_C0.replace("200", "400"), LEARNERS),
        # Compared as a text: only who may everywhere gets through with another spelling, or with none.
        (
            "GET",
            f"{customer}/{C0.upper()}/{contains}/{KEY}",
            None,
            not_a_uuid.replace("400", "200"),
            LEARNERS,
        ),
        ("GET", f"{customer}/not-a-uuid/{contains}/{KEY}", None, not_a_uuid, LEARNERS),
        ("GET", f"{customer}/not-a-uuid/{contains}/", None, not_a_uuid, LEARNERS),
        ("POST", f"{customer}/{C0}/{filters}/", KEYS, LEARNER_OF_C0, LEARNERS),
        ("POST", f"{customer}/{C1}/{filters}/", KEYS, LEARNER_OF_C1, LEARNERS),
        ("POST", f"{customer}/{C0}/{filters}/", KEYS | {"catalog_uuids": [OF_C0, UNKNOWN]}, LEARNER_OF_C0, LEARNERS),
        # Difference 14: the path's customer is theirs, the catalog in the body is not.
        (
            "POST",
            f"{customer}/{C0}/{filters}/",
            KEYS | {"catalog_uuids": [OF_C0, OF_C1]},
            "401 401 401 | 403 403 | 403 403 200 403 | 403 403 | 403 | 200 200 200",
            LEARNERS,
        ),
        ("POST", f"{customer}/{C0}/{filters}/", [], LEARNER_OF_C0.replace("200", "400"), LEARNERS),
    ]


ANYBODY: Final = "401 401 401 | 200 200 | 200 200 200 200 | 200 200 | 200 | 200 200 200"
ALL_QUERIES: Final = "401 401 401 | 403 200 | 403 403 403 403 | 403 403 | 403 | 200 200 200"
FILTERS: Final = "401 401 401 | 403 403 | 403 403 403 403 | 200 200 | 403 | 200 200 200"


def _documents(version: str) -> list[tuple[str, str, Any, str, Any]]:
    catalog, customer = f"/api/{version}/enterprise-catalogs", f"/api/{version}/enterprise-customer"
    rows: list[tuple[str, str, Any, str, Any]] = [
        ("GET", f"{customer}/{C0}/content-metadata/MITx+EC001/", None, LEARNER_OF_C0, LEARNERS),
        ("GET", f"{customer}/{C0}/content-metadata/no+such/", None, LEARNER_OF_C0.replace("200", "404"), LEARNERS),
        ("GET", f"{customer}/{C1}/content-metadata/no+such/", None, LEARNER_OF_C1.replace("200", "404"), LEARNERS),
    ]
    for name, keys in (("get_content_metadata", ""), ("generate_diff", "?content_keys=MITx%2BEC001")):
        for end in (keys, f"/{keys}"):
            rows += [
                ("GET", f"{catalog}/{OF_C0}/{name}{end}", None, LEARNER_OF_C0, LEARNERS),
                ("GET", f"{catalog}/{OF_C1}/{name}{end}", None, LEARNER_OF_C1, LEARNERS),
                ("GET", f"{catalog}/{UNKNOWN}/{name}{end}", None, NOT_FOUND, None),
            ]
        told = LEARNER_OF_C1.replace("200", "405") if keys else LEARNER_OF_C1
        rows.append(("OPTIONS", f"{catalog}/{OF_C1}/{name}/", None, told, LEARNERS))
    rows.append(("POST", f"{catalog}/{OF_C0}/generate_diff/", KEYS, LEARNER_OF_C0, LEARNERS))
    return rows


def _bare(version: str) -> list[tuple[str, str, Any, str, Any]]:
    path = f"/api/{version}/content-metadata/"
    unknown = ANYBODY.replace("200", "404")
    return [
        ("GET", path, None, ANYBODY, None),
        ("GET", f"{path}?content_identifiers=MITx%2BEC001", None, ANYBODY, None),
        ("GET", f"{path}MITx+EC001", None, ANYBODY, None),
        ("GET", f"{path}MITx+EC001/", None, ANYBODY, None),
        ("GET", f"{path}no+such/", None, unknown, None),
    ]


def _queries() -> list[tuple[str, str, Any, str, Any]]:
    """An admin of one customer finds the queries of its catalogs; to be told that there are others is not for them."""
    path = "/api/v1/catalog-queries/"
    theirs = "401 401 401 | 403 403 | 403 403 403 403 | {0} {0} | 403 | 200 200 200"
    rows: list[tuple[str, str, Any, str, Any]] = [
        ("GET", path, None, ALL_QUERIES, LISTS),
        ("POST", path, {}, ALL_QUERIES.replace("200", "405"), LISTS),
        ("DELETE", f"{path}1/", None, FILTERS.replace("200", "405"), LISTS),
        ("OPTIONS", f"{path}1/", None, FILTERS, LISTS),
        ("GET", f"{path}get_content_filter_hash", {"key": "a"}, FILTERS, LISTS),
        ("GET", f"{path}get_content_filter_hash/", {"key": "a"}, FILTERS, LISTS),
        ("GET", f"{path}999999/", None, FILTERS.replace("200", "404"), LISTS),
        ("GET", f"{path}get_query_by_hash/?hash={'0' * 32}", None, FILTERS.replace("200", "404"), LISTS),
    ]
    for catalog, seen in ((OF_C0, "200"), (OF_C1, "404")):
        content_filter = next(b["content_filter"] for b in DEFINED if b["uuid"] == catalog)
        hashed = hashlib.md5(json.dumps(content_filter, sort_keys=True).encode()).hexdigest()
        forms = (f"{path}get_query_by_hash{end}?hash={hashed}" for end in ("", "/"))
        rows += [("GET", form, None, theirs.format(seen), LISTS) for form in forms]
    return rows


def _old() -> list[tuple[str, str, Any, str, Any]]:
    """Content is an admin's to see; what is contained whoever belongs to the customer may ask."""
    old = "/enterprise/api/v1"
    refused = {"detail": "Missing: enterprise.can_view_catalog"}
    unknown = FILTERS.replace("200", "404")
    rows: list[tuple[str, str, Any, str, Any]] = [("GET", f"{old}/enterprise_catalogs/", None, FILTERS, refused)]
    rules = ((OF_C0, C0, LEARNER_OF_C0, ADMIN_OF_C0), (OF_C1, C1, LEARNER_OF_C1, ADMIN_OF_C1))
    for catalog, customer, learners, admins in rules:
        one = f"{old}/enterprise_catalogs/{catalog}/"
        rows += [
            ("GET", one, None, admins, refused),
            ("HEAD", one, None, admins, None),
            ("GET", f"{one}contains_content_items/{KEY}", None, learners.replace("403", "404"), None),
            ("GET", f"{old}/enterprise-customer/{customer}/contains_content_items/{KEY}", None, admins, refused),
        ]
        for item in ("courses/no+such/", "course_runs/no+such/", f"programs/{UNKNOWN}/"):
            rows.append(("GET", f"{one}{item}", None, admins.replace("200", "404"), refused))
    rows += [
        (
            "GET",
            f"{old}/enterprise_catalogs/{OF_C0}/courses/{COURSE}/",
            None,
            ADMIN_OF_C0,
            refused,
        ),
        (
            "GET",
            f"{old}/enterprise_catalogs/{OF_C0}/course_runs/{RUN}/",
            None,
            ADMIN_OF_C0,
            refused,
        ),
        (
            "GET",
            f"{old}/enterprise_catalogs/{OF_C1}/programs/{PROGRAM}/",
            None,
            ADMIN_OF_C1,
            refused,
        ),
        ("GET", f"{old}/enterprise_catalogs/{UNKNOWN}/", None, unknown, refused),
        ("GET", f"{old}/enterprise_catalogs/{UNKNOWN}/courses/MITx+EC001/", None, unknown, refused),
        ("POST", f"{old}/enterprise_catalogs/", {}, ANYBODY.replace("200", "405"), None),
    ]
    return rows


DOCUMENTS: Final = [
    *_documents("v1"),
    *_documents("v2"),
    *_bare("v1"),
    *_bare("v2"),
    *_queries(),
    *_old(),
    (
        "POST",
        "/api/v1/distinct-catalog-queries/",
        {"enterprise_catalog_uuids": [OF_C0]},
        "401 401 401 | 403 200 | 403 403 403 403 | 403 403 | 403 | 403 403 200",
        LISTS,
    ),
]
READS: Final = [
    *_contains("v1"),
    *_contains("v2"),
    ("GET", LIST, None, "401 401 401 | 403 200 | 403 403 403 403 | 200 200 | 200 | 200 200 200", LISTS),
    ("HEAD", LIST, None, "401 401 401 | 403 200 | 403 403 403 403 | 200 200 | 200 | 200 200 200", None),
    (
        "GET",
        f"{LIST}?enterprise_customer=x",
        None,
        "401 401 401 | 403 400 | 403 403 403 403 | 400 400 | 400 | 400 400 400",
        LISTS,
    ),
    ("OPTIONS", LIST, None, "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 403 403 200", ADMINS),
    ("PUT", LIST, {}, "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 403 403 405", ADMINS),
    ("DELETE", LIST, None, "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 403 403 405", ADMINS),
    ("GET", ONE_OF_C0, None, PROVIDES_FOR_C0, ADMINS),
    ("GET", ONE_OF_C1, None, PROVIDES_FOR_C1, ADMINS),
    ("OPTIONS", ONE_OF_C0, None, ADMIN_OF_C0, ADMINS),
    ("POST", ONE_OF_C0, {}, ADMIN_OF_C0.replace("200", "405"), ADMINS),
    ("GET", ONE_OF_C0.rstrip("/"), None, MOVED, None),
    ("GET", NONE, None, NOT_FOUND, None),
    (
        "GET",
        f"{ONE_OF_C0}refresh_metadata/",
        None,
        "401 401 401 | 403 403 | 403 403 403 403 | 405 405 | 403 | 405 405 405",
        ADMINS,
    ),
]
# What a sidecar lets through to an indexer, which is not there: 503. It refuses who may do such a thing nowhere.
FORWARDED: Final = "401 401 401 | 403 403 | 403 403 403 403 | 503 503 | 503 | 503 503 503"
FOR_ADMINS: Final = FORWARDED.replace("| 503 | 503 503 503", "| 403 | 503 503 503")
WRITES_OF_A_SIDECAR: Final = [
    ("POST", LIST, catalog_body("a", {}), FORWARDED, ADMINS),
    *((method, ONE_OF_C0, {}, FORWARDED, ADMINS) for method in ("PUT", "PATCH")),
    ("DELETE", ONE_OF_C0, None, FOR_ADMINS, ADMINS),
    ("POST", f"{ONE_OF_C0}refresh_metadata", None, FOR_ADMINS, ADMINS),
    ("POST", f"{ONE_OF_C0}refresh_metadata/", None, FOR_ADMINS, ADMINS),
    # Of what the index does not know only the indexer can tell; nobody else learns more than that.
    ("PATCH", NONE, {}, FORWARDED.replace("401", "404").replace("403", "404"), None),
    ("DELETE", f"{LIST}not-a-uuid/", None, NOT_FOUND, None),
]


def _body(customer: object, **more: Any) -> dict[str, Any]:
    return catalog_body("w", {"content_type": "course"}) | {"enterprise_customer": customer} | more


def _without_uuid(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("uuid", "catalog_query_uuid", "query_title")}


CREATES: Final = "401 401 401 | 403 403 | 403 403 403 403 | 201 201 | 201 | 201 201 201"
WRITES: Final[list[tuple[str, str, Any, str, Any]]] = [
    ("POST", LIST, _without_uuid(_body(C0)), CREATES, ADMINS),
    (
        "POST",
        LIST,
        _without_uuid(_body(C1)),
        "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 201 | 201 201 201",
        ADMINS,
    ),
    ("POST", LIST, {}, "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 403 403 400", ADMINS),
    ("POST", LIST, _body(None), "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 403 403 400", ADMINS),
    ("POST", LIST, _body("x"), "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 400 | 400 400 400", ADMINS),
    ("GET", LIST, None, "401 401 401 | 403 200 | 403 403 403 403 | 200 200 | 200 | 200 200 200", LISTS),
    ("GET", ONE_OF_C0, None, PROVIDES_FOR_C0, ADMINS),
    ("GET", ONE_OF_C1, None, PROVIDES_FOR_C1, ADMINS),
    ("PATCH", ONE_OF_C0, {"title": "t"}, PROVIDES_FOR_C0, ADMINS),
    ("PATCH", ONE_OF_C1, {"title": "t"}, PROVIDES_FOR_C1, ADMINS),
    ("PATCH", ONE_OF_C0, {"title": ""}, PROVIDES_FOR_C0.replace("200", "400"), ADMINS),
    # What is wrong with a body is told to those alone who may do it.
    ("PATCH", ONE_OF_C0, {"title": "", "enterprise_customer": C1}, PROVIDES_FOR_C1.replace("200", "400"), ADMINS),
    ("POST", LIST, [], CREATES.replace("201", "400"), ADMINS),
    ("GET", f"{ONE_OF_C0}?enterprise_customer={C1}", None, PROVIDES_FOR_C0.replace("200", "404"), ADMINS),
    ("GET", f"{ONE_OF_C0}?enterprise_customer=x", None, PROVIDES_FOR_C0.replace("200", "400"), ADMINS),
    ("DELETE", f"{ONE_OF_C1}?enterprise_customer={C0}", None, ADMIN_OF_C1.replace("200", "404"), ADMINS),
    ("PATCH", ONE_OF_C0, {"enterprise_customer": C0.upper()}, PROVIDES_FOR_C0, ADMINS),
    ("PUT", ONE_OF_C0, {}, PROVIDES_FOR_C0.replace("200", "400"), ADMINS),
    ("PUT", ONE_OF_C1, {}, PROVIDES_FOR_C1.replace("200", "400"), ADMINS),
    (
        "POST",
        f"{ONE_OF_C0}refresh_metadata",
        None,
        "401 401 401 | 403 403 | 403 403 403 403 | 200 200 | 403 | 200 200 200",
        ADMINS,
    ),
    (
        "POST",
        f"{ONE_OF_C1}refresh_metadata/",
        None,
        "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 200 200 200",
        ADMINS,
    ),
    *((method, NONE, {}, NOT_FOUND, None) for method in ("GET", "PUT", "PATCH", "DELETE")),
    ("POST", f"{NONE}refresh_metadata", None, NOT_FOUND, None),
    (
        "GET",
        f"/api/v1/pulls/{UNKNOWN}/",
        None,
        "401 401 401 | 403 403 | 403 403 403 403 | 404 404 | 403 | 404 404 404",
        ADMINS,
    ),
]
# What is about the process, and not about catalogs.
ITSELF: Final = {"/ready", "/health", "/metrics", "/openapi.json"}
# Each on a catalog of its own, which may be gone afterwards, or another customer's.
DELETES_OF_C0: Final = "401 401 401 | 403 403 | 403 403 403 403 | 204 204 | 403 | 204 204 204"
DELETES_OF_C1: Final = "401 401 401 | 403 403 | 403 403 403 403 | 403 403 | 403 | 204 204 204"
# Difference 14.
MOVES: Final = PROVIDES_FOR_C1


class Answer(NamedTuple):
    """An answer; the body is None if it is not JSON."""

    status: int
    body: Any
    challenge: str | None


class Asking:
    """Asks one application, as any actor."""

    def __init__(self, client: TestClient[Any, Any], clock: StillClock) -> None:
        self.client = client
        self.tokens = {actor: token_of(actor, clock.now_ms()) for actor in actors()}

    async def ask(self, actor: str, method: str, path: str, body: object = None) -> Answer:
        headers = {} if actor == "anonymous" else {"Authorization": f"JWT {self.tokens[actor]}"}
        async with self.client.request(method, path, json=body, headers=headers, allow_redirects=False) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json" and raw
            return Answer(
                response.status, json.loads(raw) if is_json else None, response.headers.get("WWW-Authenticate")
            )

    async def wrong(self, method: str, path: str, body: object, expected: str, refusal: object) -> list[object]:
        """Every actor whose answer is not what the row of the table says."""
        found: list[object] = []
        for actor, status in table_row(expected).items():
            got = await self.ask(actor, method, path, body)
            want: dict[int, object] = {401: NOT_PROVIDED if actor == "anonymous" else INVALID, 403: refusal}
            said = method == "HEAD" or status not in want or got.body == want[status]
            if got.status != status or not said or (got.challenge == CHALLENGE) is not (status == 401):
                found.append((actor, method, path, status, got))
        return found


def table_row(expected: str) -> dict[str, int]:
    """The statuses of a row, by actor."""
    names, statuses = (line.replace("|", "").split() for line in (COLUMNS, expected))
    return dict(zip(names, map(int, statuses), strict=True))


def test_the_table_has_every_recorded_actor() -> None:
    assert set(table_row(LEARNER_OF_C0)) == {"anonymous", *actors()}


def test_every_route_states_who_is_let_in() -> None:
    shelves, links, walks = (cast("Any", None) for _ in range(3))
    routes = (*CONTAINMENT, *CATALOGS, *QUERIES, *content_routes(Contents(shelves, links, walks)))
    assert [route.path for route in routes if route.gate == CLOSED] == []


@pytest.fixture
async def clock() -> StillClock:
    return StillClock()


@pytest.fixture
async def here(tmp_path: Path, clock: StillClock) -> AsyncIterator[World]:
    store = SqliteStore(tmp_path / "store.db", writable=True)
    async with world(tmp_path, FileSource(GOLDEN / "corpus.json"), store, clock) as made:
        async with made.registry.write() as tx:
            for defined in json.loads((GOLDEN / "definitions.json").read_text())["catalogs"]:
                if not defined["null_query"]:
                    await catalogs.create(tx, read_catalog(defined["body"]), "test")
        yield made


@pytest.fixture
async def reading(here: World, tmp_path: Path, clock: StillClock) -> AsyncIterator[Asking]:
    await here.build()
    served = SidecarSettings(disk=str(tmp_path / "sidecar.db"), indexer_url="http://127.0.0.1:1")
    given = Settings(sidecar=served, auth=settings(tmp_path))
    sidecar = Sidecar(given, SqliteStore(tmp_path / "store.db", writable=False), clock)
    async with TestClient(TestServer(sidecar.app)) as client:
        await sidecar.current.other_than(None)
        yield Asking(client, clock)


@pytest.fixture
async def writing(here: World, tmp_path: Path, clock: StillClock) -> AsyncIterator[Asking]:
    parts = Parts(Settings(), clock, here.registry, here.store, here.source)
    api = CatalogApi(parts, Role(), Publication(here.registry), tokens=tokens(tmp_path, clock), within_s=0.0)
    app = web.Application(middlewares=[answering()])
    app.add_routes(api.routes())
    async with TestClient(TestServer(app)) as client:
        yield Asking(client, clock)


async def test_a_sidecar_answers_each_actor_as_the_table_says(reading: Asking) -> None:
    wrong = [problem for row in (*READS, *DOCUMENTS, *WRITES_OF_A_SIDECAR) for problem in await reading.wrong(*row)]
    assert wrong == []


async def test_the_table_has_every_route(reading: Asking) -> None:
    """But for what is about the process itself, and for forms of a path that lead to another: of each a row asks."""
    assert reading.client.app is not None
    asked = {path.partition("?")[0] for _, path, *_ in (*READS, *DOCUMENTS, *WRITES_OF_A_SIDECAR)}
    missing = []
    for resource in reading.client.app.router.resources():
        info = resource.get_info()
        pattern = info["pattern"] if "pattern" in info else re.compile(re.escape(info["path"]))
        is_asked = any(pattern.fullmatch(path) or pattern.fullmatch(path.replace("+", "%2B")) for path in asked)
        if not is_asked and "{format}" not in resource.canonical and resource.canonical.rstrip("/") not in ITSELF:
            missing.append(resource.canonical)
    redirects = [path for path in missing if not path.endswith("/")]
    assert redirects == missing
    for path in redirects:
        assert (
            await reading.ask("anonymous", "GET", path.replace("{uuid}", OF_C0).replace("{", "").replace("}", ""))
        ).status == 301


async def test_every_route_of_a_sidecar_states_who_is_let_in(reading: Asking) -> None:
    """But for what is about the process itself, nothing is answered to somebody who brings no token."""
    assert reading.client.app is not None
    open_to_all = set()
    for resource in reading.client.app.router.resources():
        path = (
            resource.canonical.replace("{uuid}", OF_C0)
            .replace("{id}", "1")
            .replace("{key}", "a")
            .replace("{format}", "json")
        )
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            got = await reading.ask("anonymous", method, path)
            if got.status not in (301, 401):
                open_to_all.add((resource.canonical.rstrip("/"), got.status))
    about_itself = {(path, status) for path in ITSELF for status in (200, 405)}
    assert open_to_all == about_itself


async def test_the_indexer_answers_each_actor_as_the_table_says(writing: Asking) -> None:
    assert [problem for row in WRITES for problem in await writing.wrong(*row)] == []


@pytest.mark.parametrize("customer, expected", [(C0, DELETES_OF_C0), (C1, DELETES_OF_C1)])
async def test_who_may_delete(writing: Asking, here: World, customer: str, expected: str) -> None:
    wrong = []
    for n, (actor, status) in enumerate(table_row(expected).items()):
        row = await here.add(f"d{n}", {"content_type": "course"}, enterprise_customer=customer)
        got = await writing.ask(actor, "DELETE", f"{LIST}{row.uuid}/")
        async with here.registry.read() as connection:
            left = await catalogs.find(connection, row.uuid)
        if got.status != status or (left is None) is not (status == 204):
            wrong.append((actor, status, got))
    assert wrong == []


async def test_who_may_move_a_catalog_to_another_customer(writing: Asking, here: World) -> None:
    wrong = []
    for method in ("PATCH", "PUT"):
        for n, (actor, status) in enumerate(table_row(MOVES).items()):
            row = await here.add(f"{method}{n}", {"content_type": "course"}, enterprise_customer=C0)
            body = {"enterprise_customer": C1}
            if method == "PUT":
                body = catalog_body(f"{method}{n}", {"content_type": "course"}) | body
            got = await writing.ask(actor, method, f"{LIST}{row.uuid}/", body)
            async with here.registry.read() as connection:
                left = await catalogs.find(connection, row.uuid)
            if got.status != status or left is None or left.customer != (C1 if status == 200 else C0):
                wrong.append((method, actor, status, got))
    assert wrong == []


async def test_a_list_shows_the_callers_own(reading: Asking, writing: Asking) -> None:
    for asking in (reading, writing):
        all_of = (await asking.ask("operator", "GET", f"{LIST}?page_size=100")).body["results"]
        for actor, customers in (("staff_norole", []), ("catalog_admin_c0", [C0]), ("enterprise_admin_c0", [C0])):
            own = [record for record in all_of if record["enterprise_customer"] in customers]
            answer = (await asking.ask(actor, "GET", LIST)).body
            assert (answer["count"], answer["results"]) == (len(own), own)
            others = (await asking.ask(actor, "GET", f"{LIST}?enterprise_customer={C1}")).body
            assert (others["count"], others["results"]) == (0, [])
        for actor in ("provisioner", "hs256_symmetric", "superuser"):
            assert (await asking.ask(actor, "GET", f"{LIST}?page_size=100")).body["results"] == all_of
        assert len({record["enterprise_customer"] for record in all_of}) > 1


async def test_the_history_names_who_changed_what(writing: Asking, here: World) -> None:
    assert (await writing.ask("catalog_admin_c0", "PATCH", ONE_OF_C0, {"title": "t"})).status == 200
    async with here.registry.read() as connection:
        rows = (await connection.execute(catalog_history.select().order_by(catalog_history.c.id))).all()
    assert rows[-1].who == "catalog_admin_c0"
