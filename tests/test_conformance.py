"""What is told in /openapi.json holds, whatever is sent: schemathesis against an indexer and a sidecar that run.

Everything is pulled and the indexer is up, so that nothing may be a 5xx. What is sent is what is told of each
operation, its bounds, what is beyond them, and what is of no such shape at all: the same in every run, but for words
that hypothesis finds in whatever modules of ours are loaded by then. Uuids and keys are mostly those that exist, lest
nothing be found; what is changed and removed are catalogs that are there for that.
"""

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from sidecar.contract.words import query_hash
from sidecar.edge import PROCESS
from tests.fakes import Json, catalog_body
from tests.fleet import CATALOGS, fleet
from tests.sidecar.replayed import BODIES, GOLDEN, LINKS
from tests.tokens import AUDIENCE, ISSUER, SECRET, claims_of, jwk, jwks, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED: Final = 1
EXAMPLES: Final = 8
CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# The first has the course and its run, the second the program.
READ: Final = ("cc5b5eb4-74d6-4cc6-8465-f9d4082c30a2", "a4926d0e-719d-4612-9076-568b691482e5")
COURSE, RUN, PROGRAM = "MITx+EC001", "course-v1:MITx+EC001+1T2024", "09da891d-a7a5-40a1-8ec8-9d68faf2f369"
UNKNOWN: Final = "12345678-90ab-4def-9234-567890abcdef"
SPARE: Final = {
    method: [catalog_body(f"{method} {n}", {"content_type": "course"}, of="Spare") for n in range(4)]
    for method in ("put", "patch", "delete")
}
# Nothing is to wait for what never comes.
WAITS: Final = ("X-Min-Generation", "X-After-Task")


class Asked(NamedTuple):
    """What came of a run: what was not as it is told, and how often each operation answered with each status."""

    wrong: list[str]
    statuses: Counter[tuple[str, int]]


class Api:
    """A fleet's sidecar, what it tells of itself, and a token of somebody who may everything."""

    def __init__(self, url: str, told: Json, token: str) -> None:
        self._url = url
        self.told = told
        self._headers = {"Authorization": f"JWT {token}"}

    @property
    def operations(self) -> set[str]:
        """All of them, as schemathesis names them."""
        paths = self.told["paths"].items()
        return {f"{name.upper()} {path}" for path, item in paths for name in item if not name.startswith("x-")}

    async def ask(self, told: Json, *, token: bool = True, boundaries: bool = True, mode: str = "all") -> Asked:
        """Asks what a document tells of, well-formed and, if the mode is all, not; `boundaries`: also everything that
        is just within or beyond its bounds.
        """
        given = {
            "seed": SEED,
            "base-url": self._url,
            "headers": self._headers if token else {},
            "continue-on-failure": True,
            "request-timeout": 30,
            "workers": 1,
            # A busy machine is no defect.
            "suppress-health-check": ["all"],
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
            "generation": {"mode": mode, "max-examples": EXAMPLES, "deterministic": True, "no-shrink": True},
            "phases": {
                "examples": {"enabled": False},
                # What answers say would have what is sent depend on how fast they come.
                "coverage": {"enabled": boundaries, "extra-data-sources": {"responses": False}},
                "fuzzing": {"extra-data-sources": {"responses": False}, "error-feedback": {"enabled": False}},
                "stateful": {"enabled": False},
            },
        }
        schema = schemathesis.openapi.from_dict(pointed(told, spare=token), config=SchemathesisConfig.from_dict(given))
        return await asyncio.to_thread(_asked, schema)


def _asked(schema: schemathesis.BaseSchema) -> Asked:
    asked = Asked([], Counter())
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            asked.wrong.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            for sent in event.recorder.interactions.values():
                # One without an answer is wrong by itself.
                asked.statuses[event.recorder.label, sent.response.status_code if sent.response else 0] += 1
            for check in chain(*event.recorder.checks.values()):
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    said = f"{event.recorder.label}: {failure.title}: {failure.message}"
                    asked.wrong.append(f"{said}\n{check.failure_info.code_sample}")
    return asked


def pointed(told: Json, *, spare: bool) -> Json:
    """A document that prefers values that mean something here; what may be changed is only spare catalogs, or any."""
    told = copy.deepcopy(told)
    for path, item in told["paths"].items():
        for method, operation in item.items():
            if "parameters" in operation:
                operation["parameters"] = [
                    {
                        **parameter,
                        "schema": _pointed(parameter, _known(parameter["name"], path, method if spare else "")),
                    }
                    for parameter in operation["parameters"]
                    if parameter["name"] not in WAITS
                ]
    return told


def _pointed(parameter: Json, known: list[Any]) -> Json:
    schema: Json = parameter["schema"]
    if not known:
        return schema
    if schema.get("type") == "array":
        return schema | {"items": {"anyOf": [{"enum": known}, schema["items"]]}}
    # Whatever else there may be is sent, too, as what is of no such shape.
    return {"enum": known}


def _known(name: str, path: str, method: str) -> list[Any]:
    if name == "uuid":
        if "-customer/" in path:
            return [BODIES[uuid]["enterprise_customer"] for uuid in READ]
        return [body["uuid"] for body in SPARE[method]] if method in SPARE else [*READ, UNKNOWN]
    if name == "enterprise_customer":
        return [(SPARE[method][0] if method in SPARE else BODIES[READ[0]])["enterprise_customer"]]
    if name == "hash":
        return [query_hash(BODIES[READ[0]]["content_filter"]).hex()]
    if "/programs/" in path and name == "key":
        return [PROGRAM]
    if name in ("key", "content_keys", "course_run_ids", "content_identifiers"):
        return [COURSE, RUN, PROGRAM]
    return [1, 2] if name == "id" else []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    (folder / "jwks.json").write_bytes(jwks(jwk()))
    auth = {"mode": "jwt", "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": f"{folder}/jwks.json"}
    links = {"lms": LINKS.lms, "learner_portal": LINKS.learner_portal, "ecommerce": LINKS.ecommerce}
    token = signed(claims_of("superuser"))
    source = {"kind": "file", "path": str(GOLDEN / "corpus.json")}
    settings = {"auth": {**auth, "hs256_secret": SECRET}, "links": links}
    async with fleet(folder, source, settings=settings) as it:
        (sidecar,) = it.sidecars
        for body in (*BODIES.values(), *chain(*SPARE.values())):
            made = await sidecar.ask("POST", CATALOGS, json=body, headers={"Authorization": f"JWT {token}"})
            assert made[0] == 201, made
        await it.settle()
        yield Api(sidecar.url, (await sidecar.get("/openapi.json"))[1], token)


async def test_every_answer_is_as_it_is_told_and_every_operation_can_succeed(api: Api) -> None:
    asked = await api.ask(api.told)
    assert asked.wrong == []
    assert {operation for operation, status in asked.statuses if 200 <= status < 300} == api.operations


async def test_without_a_token_nobody_learns_more_than_what_there_is_not(api: Api) -> None:
    asked = await api.ask(api.told, token=False, boundaries=False)
    assert asked.wrong == []
    statuses: dict[bool, set[int]] = {True: set(), False: set()}
    for operation, status in asked.statuses:
        statuses[operation.split()[1] in PROCESS].add(status)
    # A catalog that there is not, or a format; a 406 is that of people, whose name is seldom guessed.
    assert statuses[True] == {200}
    assert {401, 404} <= statuses[False] <= {401, 404, 406}
    assert {operation for operation, status in asked.statuses if status in (200, 401)} == api.operations


async def test_an_answer_that_is_told_otherwise_is_found(api: Api) -> None:
    """So that checks which let everything pass are seen."""
    path = f"{CATALOGS}{{uuid}}/contains_content_items/"
    for at, other in (
        (("components", "schemas", "Contains", "properties", "contains_content_items"), {"type": "string"}),
        (("paths", path, "get", "responses", "200", "content"), {"text/plain": {}}),
        (("paths", path, "get", "responses", "200", "headers", "X-Other"), {"required": True, "schema": {}}),
        (("paths", path, "get", "responses"), {"201": {"description": ""}}),
    ):
        told = copy.deepcopy(api.told)
        told["paths"] = {path: {"get": told["paths"][path]["get"]}}
        inner = told
        for name in at[:-1]:
            inner = inner[name]
        inner[at[-1]] = other
        assert (await api.ask(told, boundaries=False, mode="positive")).wrong != [], at
