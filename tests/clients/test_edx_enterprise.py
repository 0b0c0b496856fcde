"""The client that the LMS has today, as published, through a running sidecar and indexer: every method, and its errors.

Where it swallows one, the test says so: what is then returned is {} and no answer of the service's.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests import tokens
from tests.fakes import Json, course, customer, program, run, uuid_of
from tests.fleet import LONG_S, Fleet, fleet

ROOT: Final = Path(__file__).parent.parent.parent
PYTHON: Final = Path(os.environ.get("CLIENTS_PYTHON", ROOT / "build" / "clients" / "bin" / "python"))
SECRET: Final = "a-secret-that-the-lms-and-the-service-share"
ACME: Final = uuid_of("Acme")
FIRST: Final = uuid_of("catalog first")
OTHER: Final = uuid_of("catalog other")
NOBODY: Final = uuid_of("nobody")
COURSES: Final = 60
ADMIN: Final = ("enterprise_openedx_operator:*",)
NO_ANSWER: Final = ("ConnectionError", None)


class Outcome(NamedTuple):
    """What a method of the client came to: its value, or what it raised, with the status; what it logged."""

    value: Any
    raised: tuple[str, int | None] | None
    logged: list[str]


class LmsClient:
    """edx-enterprise's client in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, methods: list[str]) -> None:
        self._process = process
        self.methods = set(methods)
        self.called: set[str] = set()

    async def ask(self, method: str, *arguments: Any, roles: tuple[str, ...] = ADMIN, **named: Any) -> Outcome:
        """Calls a method, as a user with these roles."""
        self.called.add(method)
        now = int(time.time())
        claims = {
            "iss": tokens.ISSUER,
            "aud": tokens.AUDIENCE,
            "preferred_username": "worker",
            "roles": roles,
            "iat": now,
            "exp": now + 3600,
        }
        assert self._process.stdin is not None
        question = {"method": method, "arguments": arguments, "named": named, "claims": claims}
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        answer = await _line(self._process)
        raised = (answer["raised"], answer["status"]) if "raised" in answer else None
        return Outcome(answer.get("value"), raised, answer["logged"])

    async def value(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What a method returns that logs no error."""
        outcome = await self.ask(method, *arguments, **named)
        assert (outcome.raised, outcome.logged) == (None, []), (method, outcome)
        return outcome.value


async def _line(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(LONG_S):
        line = await process.stdout.readline()
    assert line, "the client's process ended; what it said is above"
    return json.loads(line)


@asynccontextmanager
async def lms(folder: Path) -> AsyncIterator[tuple[Fleet, LmsClient]]:
    """An indexer and a sidecar with tokens, over an invented corpus, and the client that asks that sidecar."""
    assert PYTHON.exists(), f"there is no {PYTHON}: run make test-clients"
    courses = [course(f"Org+{n}", run(f"course-v1:Org+{n}+1"), title=f"Course {n}") for n in range(COURSES)]
    corpus = {
        "courses": courses,
        "programs": [program("Program", "Org+0")],
        "pathways": [],
        "reviews": [],
        "customers": [customer("Acme")],
    }
    (folder / "corpus.json").write_text(json.dumps(corpus))
    trusting = tokens.settings(folder)
    auth = {
        "mode": "jwt",
        "jwks_file": trusting.jwks_file,
        "issuer": tokens.ISSUER,
        "audience": tokens.AUDIENCE,
        "hs256_secret": SECRET,
    }
    source = {"kind": "file", "path": str(folder / "corpus.json")}
    async with fleet(folder, source, settings={"auth": auth}) as it:
        await it.sidecars[0].until(it.sidecars[0].ready)
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, Path(__file__).parent / "edx_enterprise.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
            env={"LMS": json.dumps({"url": it.sidecars[0].url, "secret": SECRET})},
        )
        try:
            yield it, LmsClient(process, await _line(process))
        finally:
            process.kill()
            await process.wait()


def catalog(uuid: str) -> Json:
    return {"model": {"uuid": uuid}}


def fields(uuid: str, title: str, content_filter: object) -> list[Any]:
    """The arguments that make a catalog, as the LMS's signal handler gives them."""
    return [uuid, ACME, "Acme", title, content_filter, ["verified"], False, uuid_of(f"query {title}"), None, False]


def calls(*these: tuple[str, tuple[Any, ...]]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Methods, with their arguments."""
    return these


async def until_pulled(it: Fleet, client: LmsClient, *uuids: str) -> None:
    async def pulled() -> bool:
        counted = [await client.ask("get_catalog_content_count", uuid) for uuid in uuids]
        return all(outcome.raised is None for outcome in counted)

    await it.sidecars[0].until(pulled)


async def test_every_method_does_what_it_does_today(tmp_path: Path) -> None:
    async with lms(tmp_path) as (it, client):
        # A catalog is saved in the LMS: it is not there yet, and is made, read, changed and pulled.
        missing = await client.ask("get_enterprise_catalog", FIRST, should_raise_exception=False)
        assert missing == ({}, None, [])
        everything = {"content_type": ["course", "program"]}
        made = await client.value("create_enterprise_catalog", *fields(FIRST, "first", everything))
        assert (made["uuid"], made["title"], made["enterprise_customer"]) == (FIRST, "first", ACME)
        assert await client.value("create_enterprise_catalog", *fields(FIRST, "first", everything)) == made
        assert (await client.value("get_enterprise_catalog", FIRST))["title"] == "first"
        some = {"content_type": "course", "key": ["Org+1", "Org+2"]}
        await client.value("create_enterprise_catalog", *fields(OTHER, "other", some))
        changed = {
            "enterprise_customer": ACME,
            "enterprise_customer_name": "Acme",
            "title": "renamed",
            "content_filter": some,
            "enabled_course_modes": ["verified"],
            "publish_audit_enrollment_urls": True,
            "catalog_query_uuid": uuid_of("query other"),
            "query_title": None,
            "include_exec_ed_2u_courses": False,
        }
        assert (await client.value("update_enterprise_catalog", OTHER, **changed))["title"] == "renamed"
        tasks, failed = await client.value("refresh_catalogs", [catalog(FIRST), catalog(OTHER)])
        assert (set(tasks), failed) == ({FIRST, OTHER}, [])
        await until_pulled(it, client, FIRST, OTHER)

        # Is it in the catalog? Courses, runs, programs.
        assert await client.value("contains_content_items", OTHER, ["Org+9", "course-v1:Org+1+1"]) is True
        assert await client.value("contains_content_items", OTHER, ["Org+9"]) is False
        assert await client.value("contains_content_items", FIRST, [uuid_of("Program")]) is True
        answer = await client.value("enterprise_contains_content_items", ACME, ["Org+1"])
        assert (answer["contains_content_items"], set(answer["catalog_list"])) == (True, {FIRST, OTHER})
        assert (await client.value("enterprise_contains_content_items", NOBODY, ["Org+1"]))["catalog_list"] == []

        # What is in the catalog?
        acme = {"model": {"uuid": ACME, "enterprise_customer_catalogs": [catalog(FIRST), catalog(OTHER)]}}
        everything_there = await client.value("get_content_metadata", acme)
        assert len(everything_there) == COURSES + 1
        two = await client.value("get_content_metadata", acme, [catalog(OTHER)])
        assert [document["key"] for document in two] == ["Org+1", "Org+2"]
        keys = [f"Org+{n}" for n in range(COURSES)]
        asked = await client.value("get_content_metadata", acme, [catalog(FIRST)], keys)
        assert sorted(document["key"] for document in asked) == sorted(keys)
        assert await client.value("get_catalog_content_count", FIRST) == COURSES + 1
        create, delete, found = await client.value("get_catalog_diff", catalog(OTHER), ["Org+1", "Org+9"])
        assert (create, delete) == ([{"content_key": "Org+2"}], [{"content_key": "Org+9"}])
        assert [item["content_key"] for item in found] == ["Org+1"]
        own = await client.value("get_customer_content_metadata_content_identifier", ACME, "course-v1:Org+1+1")
        assert own["key"] == "Org+1"
        bare = await client.value("get_content_metadata_content_identifier", "course-v1:Org+1+1", True)
        assert (bare["key"], bare["title"]) == ("Org+1", "Course 1")

        # Queries, and what needs no token.
        query_hash = await client.value("get_catalog_query_hash", some)
        assert (await client.value("get_enterprise_catalog_by_hash", query_hash))["content_filter"] == some
        assert (await client.value("get_health"))["status"] == "ok"
        url = await client.value("get_content_metadata_url", FIRST)
        assert url == f"{it.sidecars[0].url}/api/v1/enterprise-catalogs/{FIRST}/get_content_metadata"

        assert await client.value("delete_enterprise_catalog", OTHER) is True
        assert await client.ask("delete_enterprise_catalog", OTHER) == ({}, None, ["WARNING"])
        # The walk over pages is a part of get_content_metadata.
        assert client.called - {"get_health"} == client.methods - {"traverse_get_content_metadata"}


async def test_errors_are_those_that_it_knows(tmp_path: Path) -> None:
    async with lms(tmp_path) as (it, client):
        await client.value("create_enterprise_catalog", *fields(FIRST, "first", {"content_type": "course"}))
        await until_pulled(it, client, FIRST)

        # 404: raised by questions of containment and content, swallowed by the others.
        for method, arguments in calls(
            ("contains_content_items", (NOBODY, ["Org+1"])),
            ("get_catalog_content_count", (NOBODY,)),
            ("get_content_metadata", ({"model": {"uuid": ACME}}, [catalog(NOBODY)])),
            ("get_catalog_diff", (catalog(NOBODY), ["Org+1"])),
            ("get_enterprise_catalog_by_hash", ("0" * 32,)),
        ):
            assert (await client.ask(method, *arguments)).raised == ("HTTPError", 404), method
        for method, arguments in calls(
            ("get_enterprise_catalog", (NOBODY,)),
            ("update_enterprise_catalog", (NOBODY,)),
            ("get_customer_content_metadata_content_identifier", (ACME, "nothing")),
            ("get_content_metadata_content_identifier", ("nothing",)),
        ):
            assert await client.ask(method, *arguments) == ({}, None, ["ERROR"]), method
        assert (await client.ask("refresh_catalogs", [catalog(NOBODY)])).value == [{}, [NOBODY]]
        nothing = await client.ask("get_catalog_diff", catalog(NOBODY), [], should_raise_exception=False)
        assert nothing.value == [[], [], []]

        # 403: the roles of another customer.
        learner, admin = (f"enterprise_learner:{NOBODY}",), (f"enterprise_admin:{NOBODY}",)
        for method, arguments in calls(
            ("contains_content_items", (FIRST, ["Org+1"])),
            ("enterprise_contains_content_items", (ACME, ["Org+1"])),
            ("get_catalog_content_count", (FIRST,)),
            ("get_catalog_query_hash", ({},)),
        ):
            assert (await client.ask(method, *arguments, roles=learner)).raised == ("HTTPError", 403), method
        for method, arguments in calls(
            ("get_enterprise_catalog", (FIRST,)),
            ("delete_enterprise_catalog", (FIRST,)),
            ("create_enterprise_catalog", tuple(fields(OTHER, "other", {}))),
            ("get_customer_content_metadata_content_identifier", (ACME, "Org+1")),
        ):
            assert await client.ask(method, *arguments, roles=admin) == ({}, None, ["ERROR"]), method
        for roles in ((), ("nonsense",), ("enterprise_learner:",)):
            refused = await client.ask("enterprise_contains_content_items", ACME, ["Org+1"], roles=roles)
            assert refused.raised == ("HTTPError", 403), roles
        assert await client.value("contains_content_items", FIRST, ["Org+1"]) is True

        # 400 and 409: bodies that cannot be taken.
        assert (await client.ask("contains_content_items", FIRST, [])).raised == ("HTTPError", 400)
        assert (await client.ask("get_enterprise_catalog_by_hash", "nonsense")).raised == ("HTTPError", 400)
        untitled = [*fields(OTHER, "other", {"content_type": "course"})[:3], None, *fields(OTHER, "other", {})[4:]]
        taken = fields(FIRST, "another", {"content_type": "program"})
        for body in (untitled, taken):
            assert await client.ask("create_enterprise_catalog", *body) == ({}, None, ["ERROR"])
        assert await client.ask("update_enterprise_catalog", FIRST, title="alone") == ({}, None, ["ERROR"])
        assert (await client.value("get_enterprise_catalog", FIRST))["title"] == "first"


async def test_a_service_that_is_down_is_an_error_or_an_empty_answer_and_never_false(tmp_path: Path) -> None:
    async with lms(tmp_path) as (it, client):
        (sidecar,), (indexer,) = it.sidecars, it.indexers
        await client.value("create_enterprise_catalog", *fields(FIRST, "first", {"content_type": "course"}))
        await until_pulled(it, client, FIRST)

        # Without the indexer reading goes on; a write is a 503, which the client swallows.
        await indexer.end()
        assert await client.value("contains_content_items", FIRST, ["Org+1"]) is True
        assert await client.ask("delete_enterprise_catalog", FIRST) == ({}, None, ["ERROR"])
        refreshed = await client.ask("refresh_catalogs", [catalog(FIRST)])
        assert (refreshed.value, refreshed.logged) == ([{}, [FIRST]], ["ERROR"])
        assert (await client.value("get_enterprise_catalog", FIRST))["uuid"] == FIRST

        await sidecar.end()
        for method, arguments in calls(
            ("contains_content_items", (FIRST, ["Org+1"])),
            ("enterprise_contains_content_items", (ACME, ["Org+1"])),
            ("get_catalog_content_count", (FIRST,)),
            ("get_content_metadata", ({"model": {"uuid": ACME}}, [catalog(FIRST)])),
            ("get_catalog_diff", (catalog(FIRST), [])),
            ("get_catalog_query_hash", ({},)),
            ("get_enterprise_catalog_by_hash", ("0" * 32,)),
            ("get_health", ()),
        ):
            assert (await client.ask(method, *arguments)).raised == NO_ANSWER, method
        for method, arguments in calls(
            ("get_enterprise_catalog", (FIRST,)),
            ("create_enterprise_catalog", tuple(fields(OTHER, "other", {}))),
            ("update_enterprise_catalog", (FIRST,)),
            ("delete_enterprise_catalog", (FIRST,)),
            ("get_customer_content_metadata_content_identifier", (ACME, "Org+1")),
            ("get_content_metadata_content_identifier", ("Org+1",)),
        ):
            assert await client.ask(method, *arguments) == ({}, None, ["ERROR"]), method

        # It comes back alone, from its disk, and answers as before.
        await sidecar.start()
        await until_pulled(it, client, FIRST)
        assert await client.value("contains_content_items", FIRST, ["Org+1"]) is True
        await indexer.start()
