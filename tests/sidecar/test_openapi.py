"""The document that a sidecar tells of itself is valid, names exactly its routes, and fits what has been recorded."""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from sidecar.app import Sidecar
from sidecar.containment import CONTAINMENT
from sidecar.edge import PROCESS
from sidecar.handlers import Reads, Route
from sidecar.openapi import Undescribed, document
from sidecar.settings import Settings, SidecarSettings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock
from tests.sidecar.replayed import GOLDEN, Json, exchanges
from tests.trees import CUSTOMER

GROUPS: Final = sorted(file.stem for file in GOLDEN.glob("0[1-9]_*.json"))
# What today's service takes for a path of its own, and we do not (difference 19).
NO_PATHS: Final = ("metadataXYZ", "refresh_metadata/anything")
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def sidecar() -> AsyncIterator[Client]:
    served = Sidecar(Settings(sidecar=SidecarSettings(disk="")), MemoryStore(), FakeClock())
    async with TestClient(TestServer(served.app)) as client:
        yield client


@pytest.fixture
async def told(sidecar: Client) -> Json:
    answer = await sidecar.get("/openapi.json")
    whole: Json = await answer.json()
    assert (answer.status, answer.content_type) == (200, "application/json")
    return whole


class Document:
    """Looks into a document."""

    def __init__(self, whole: Json) -> None:
        self._whole = whole
        # Paths that are spelled out go first.
        templates = sorted(whole["paths"], key=lambda template: template.count("{"))
        self._templates = [(re.compile(re.sub(r"{\w+}", "[^/]+", template)), template) for template in templates]

    def template(self, path: str) -> str | None:
        """The path of the document that a path is one of, with its closing slash or without."""
        forms = (path, f"{path}/")
        return next((t for pattern, t in self._templates if any(pattern.fullmatch(form) for form in forms)), None)

    def answer(self, template: str, method: str, status: int) -> Json | None:
        """What is told of a status; of a method that the path does not have, what it is answered then."""
        item = self._whole["paths"][template]
        operation = item.get(method.lower())
        if operation is not None:
            found = operation["responses"].get(str(status))
        elif status == 405:
            found = item["x-other-methods"]
        else:
            # Who asks is looked at before the method is.
            found = item["get" if "get" in item else "post"]["responses"].get(str(status)) if status < 405 else None
        return None if found is None else self._resolved(found)

    def wrong(self, answer: Json, body: Any) -> str | None:
        """What is wrong with a JSON body, or None."""
        schema = answer["content"]["application/json"]["schema"]
        validator = Draft202012Validator(
            {**schema, "components": self._whole["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        return next((f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(body)), None)

    def _resolved(self, value: Json) -> Json:
        if "$ref" not in value:
            return value
        found = self._whole
        for name in value["$ref"].split("/")[1:]:
            found = found[name]
        return found

    def exchange(self, exchange: Json, status: int) -> str | None:
        """What a recorded exchange has that is told otherwise, or None; `status` is the one that it has here."""
        template = self.template(exchange["path"])
        if template is None:
            return "no such path"
        answer = self.answer(template, exchange["method"], status)
        if answer is None:
            return f"no such status: {status}"
        if status != exchange["status"]:
            return None
        kind = exchange["response_headers"].get("Content-Type", "").partition(";")[0]
        if exchange["method"] != "HEAD" and status not in (204, 301) and kind not in answer["content"]:
            return f"no such content: {kind}"
        return None if exchange.get("json") is None else self.wrong(answer, exchange["json"])


def test_the_document_is_valid(told: Json) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(told).iter_errors()] == []


def test_every_schema_is_valid(told: Json) -> None:
    for schema in told["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_every_route_is_told_and_nothing_else(sidecar: Client, told: Json) -> None:
    assert sidecar.app is not None
    known = Document(told)
    paths = {resource.canonical for resource in sidecar.app.router.resources()}
    # Forms of a path that lead to another, or answer as it does.
    forms = {path for path in paths if "{format}" in path or known.template(path) not in (path, None)}
    forms |= {path for path in paths if path.rstrip("/") in PROCESS and path.endswith("/")}
    assert paths - forms == set(told["paths"])


async def test_every_method_is_told_and_no_other(sidecar: Client, told: Json) -> None:
    """Allow says which a path has, though not that OPTIONS is one of them where a path does not tell of itself."""
    for path, item in told["paths"].items():
        answer = await sidecar.request("PROPFIND", path.replace("{", "").replace("}", ""))
        methods = {name.upper() for name in item if not name.startswith("x-")}
        allowed = set(answer.headers["Allow"].split(", "))
        assert (answer.status, allowed, path) == (405, methods, path)


async def test_a_path_without_its_slash_does_what_is_told(sidecar: Client, told: Json) -> None:
    for path, item in told["paths"].items():
        if path.endswith("/"):
            form = path[:-1].replace("{uuid}", str(CUSTOMER)).replace("{", "").replace("}", "")
            answer = await sidecar.get(form, allow_redirects=False)
            said = {301: "redirects", 404: "is not found"}.get(answer.status, "answers")
            assert f"Without its closing slash it {said}." in item.get("get", item.get("post"))["description"], form


async def test_every_recorded_exchange_is_told(told: Json) -> None:
    """Without those of the catalog that has lost its query."""
    known, wrong, counted = Document(told), {}, Counter[str]()
    for exchange in (exchange for group in GROUPS for exchange in exchanges(group)):
        if exchange["path"].endswith(NO_PATHS):
            counted["no path of ours"] += 1
            assert known.template(exchange["path"]) is None
            continue
        status, kind = exchange["status"], exchange["response_headers"].get("Content-Type", "")
        if status == 500:
            # Difference 7.
            status = 404 if "/enterprise-catalogs/not-a-uuid/" in exchange["path"] else 400
        elif status == 200 and kind.startswith("text/html"):
            # Difference 18.
            status = 406
        if said := known.exchange(exchange, status):
            wrong[exchange["id"]] = said
        counted["as recorded" if status == exchange["status"] else f"{status} instead"] += 1
        counted["JSON bodies"] += exchange.get("json") is not None
    assert wrong == {}
    assert counted == {
        "as recorded": 473,
        "JSON bodies": 461,
        "400 instead": 11,
        "404 instead": 2,
        "406 instead": 1,
        "no path of ours": 2,
    }


async def test_the_recordings_of_the_old_api_are_told(told: Json) -> None:
    known, wrong = Document(told), {}
    for recorded in json.loads((GOLDEN / "old_api.json").read_text()):
        path = recorded["url"].partition("?")[0]
        template = known.template(path)
        if template is None or not path.endswith("/"):
            assert "enterprise_customer_catalog/" in path or recorded["name"] == "no slash"
            continue
        answer = known.answer(template, recorded["method"], recorded["status"])
        if answer is None or (said := known.wrong(answer, recorded["body"])):
            wrong[recorded["name"]] = said if answer else "no such status"
    assert wrong == {}


def test_a_route_that_says_nothing_of_a_method_is_refused() -> None:
    async def nothing(_: web.Request, __: bool) -> None:
        return None

    for route in (
        Route("/x/", ("json",), "X", "X.", Reads(("GET", "HEAD"), nothing)),
        Route("/x/{y}/", ("json",), "X", "X.", operations=CONTAINMENT[0].operations, reads=CONTAINMENT[0].reads),
        Route("/x/", ("json",), "X", "X.", writes=("PUT",)),
    ):
        with pytest.raises(Undescribed):
            document([route], [], {}, secured=True)


def test_tokens_are_asked_for_where_they_are_demanded() -> None:
    open_to_all, closed = (orjson.loads(document(CONTAINMENT, [], PROCESS, secured=s)) for s in (False, True))
    assert "security" not in open_to_all
    assert [sorted(one) for one in closed["security"]] == [
        ["token"],
        ["cookieHeaderAndPayload", "cookieSignature", "useCookies"],
    ]
    assert closed["paths"]["/ready"]["get"]["security"] == []
