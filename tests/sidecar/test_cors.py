"""Pages of listed origins may ask and read, with credentials; pages of others are told nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict

from sidecar.app import Sidecar
from sidecar.settings import Settings, SidecarSettings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock
from tests.tokens import settings

Client = TestClient[web.Request, web.Application]
PORTAL, ADMIN, OTHER = "https://portal.example.test", "https://admin.example.test:8443", "https://other.example.test"
PATHS = (
    "/api/v1/enterprise-customer/ee9034df-3024-49bb-a365-58f527b83ab6/contains_content_items/",
    "/api/v1/enterprise-catalogs/",
    "/nowhere",
    "/health",
)
PREFLIGHT = {"Access-Control-Request-Method": "GET"}


async def serving(path: Path, origins: str) -> AsyncIterator[Client]:
    given = Settings(sidecar=SidecarSettings(disk="", cors_origins=origins), auth=settings(path))
    async with TestClient(TestServer(Sidecar(given, MemoryStore(), FakeClock()).app)) as client:
        yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async for client in serving(tmp_path, f"{PORTAL}, {ADMIN}"):
        yield client


@pytest.fixture
async def closed(tmp_path: Path) -> AsyncIterator[Client]:
    async for client in serving(tmp_path, ""):
        yield client


def told(headers: object) -> dict[str, str]:
    assert hasattr(headers, "items")
    return {name: value for name, value in headers.items() if name.startswith("Access-Control-")}


@pytest.mark.parametrize("origin", [PORTAL, ADMIN])
@pytest.mark.parametrize("path", PATHS)
async def test_a_listed_origin_may_read_every_answer(client: Client, origin: str, path: str) -> None:
    answer = await client.get(path, headers={"Origin": origin})
    assert told(answer.headers) == {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "Retry-After, X-Catalog-Age, X-Catalog-Generation, X-Catalog-Published",
    }
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", PATHS)
async def test_a_listed_origin_may_ask_first_and_needs_no_token_for_that(client: Client, path: str) -> None:
    answer = await client.options(path, headers={"Origin": PORTAL, **PREFLIGHT})
    assert (answer.status, await answer.read()) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == PORTAL
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    allowed = set(answer.headers["Access-Control-Allow-Headers"].split(", "))
    assert {"authorization", "content-type", "use-jwt-cookie", "x-min-generation"} <= allowed
    assert int(answer.headers["Access-Control-Max-Age"]) > 0


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "*", "", PORTAL + "/", PORTAL.upper(), PORTAL + ".evil.test", "http" + PORTAL[5:]]
)
async def test_an_origin_that_is_not_listed_is_told_nothing(client: Client, origin: str) -> None:
    for path in PATHS:
        answer = await client.get(path, headers={"Origin": origin})
        assert (told(answer.headers), answer.headers["Vary"]) == ({}, "Origin")
        answer = await client.options(path, headers={"Origin": origin, **PREFLIGHT})
        assert told(answer.headers) == {}
        assert answer.status != 204


async def test_who_is_no_page_is_answered_as_ever(client: Client, closed: Client) -> None:
    for path in PATHS:
        theirs, ours = await closed.get(path), await client.get(path)
        assert (ours.status, told(ours.headers), ours.headers["Vary"]) == (theirs.status, {}, "Origin")
        assert "Vary" not in theirs.headers
        assert told((await closed.get(path, headers={"Origin": PORTAL})).headers) == {}


async def test_several_origins_are_none(client: Client) -> None:
    headers = CIMultiDict([("Origin", PORTAL), ("Origin", OTHER)])
    assert told((await client.get("/health", headers=headers)).headers) == {}


async def test_options_without_a_question_of_a_browser_are_the_routes_own(client: Client) -> None:
    answer = await client.options("/api/v1/enterprise-catalogs/", headers={"Origin": PORTAL})
    assert answer.status == 401
    assert answer.headers["Access-Control-Allow-Origin"] == PORTAL
