"""The old API answers as it was recorded, over the content that the recordings show."""

import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from sidecar.app import Sidecar
from sidecar.settings import LinksSettings, Settings, SidecarSettings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeSource
from tests.sidecar.replayed import GOLDEN, differs
from tests.tokens import StillClock, claims_of, settings, signed
from tests.world import World, world

Json = dict[str, Any]
RECORDED: list[Json] = json.loads((GOLDEN / "old_api.json").read_text())
BY_NAME = {entry["name"]: entry for entry in RECORDED}
# What changes catalogs is not answered here.
WRITES = ("write existing", "patch unknown")
CUSTOMER, OTHERS = "11111111-1111-4111-8111-111111111111", "77777777-7777-4777-8777-777777777777"
CATALOG, RUNS, NEVER = (f"{n * 8}-{n * 4}-4{n * 3}-8{n * 3}-{n * 12}" for n in "236")
PROGRAM, DEMO, DEMO_RUN = "55555555-5555-4555-8555-555555555555", "edX+DemoX", "course-v1:edX+DemoX+2025_T1"
BASE = "/enterprise/api/v1"
ONE = f"{BASE}/enterprise_catalogs/{CATALOG}/"
RECORDED_MS = 1_795_334_400_000  # 2026-11-22T08:00:00Z
ADMIN, LEARNER = f"enterprise_admin:{CUSTOMER}", f"enterprise_learner:{CUSTOMER}"
OTHER = f"enterprise_admin:{OTHERS}"
# What our documents have of content beyond what was recorded.
OURS = {"normalized_metadata", "normalized_metadata_by_run", "number_of_courses"}
LINK = f"http://lms.example.com/enterprise/{CUSTOMER}"


def corpus() -> FakeSource:
    """What the recordings show, and beside it runs that are indexed by themselves."""
    results = copy.deepcopy(BY_NAME["detail"]["body"]["results"])
    shown = {document["title"]: document for document in results}
    courses = []
    for title in ("Demo", "Second"):
        left_out = {"enrollment_url", "active", "end_date", *OURS}
        full = {name: value for name, value in shown[title].items() if name not in left_out}
        courses.append({"search": dict(full), "full": full, "runs": []})
    program = {name: value for name, value in shown["Prog"].items() if name != "enrollment_url"}
    customers = tuple(
        {
            "uuid": uuid,
            "name": "Acme",
            "slug": "acme",
            "enable_learner_portal": True,
            "modified": "2026-01-01T00:00:00Z",
        }
        for uuid in (CUSTOMER, OTHERS)
    )
    programs = ({"search": program, "full": {**program, "courses": [{"key": DEMO}, {"key": "edX+Nowhere"}]}},)
    return FakeSource(*courses, programs=programs, customers=customers)


class Asking:
    """A sidecar with tokens, over a world, and a client."""

    def __init__(self, here: World, sidecar: Sidecar, client: TestClient[web.Request, web.Application]) -> None:
        self.here, self.sidecar, self.client = here, sidecar, client

    async def text(self, path: str, *roles: str, method: str = "GET") -> tuple[int, str]:
        claims = {**claims_of("norole"), "roles": list(roles)}
        headers = {"Authorization": f"JWT {signed(claims)}"} if roles else {}
        answer = await self.client.request(
            method, URL(path, encoded=True), headers={"Host": "old.example.test", **headers}, allow_redirects=False
        )
        return answer.status, await answer.text()

    async def get(self, path: str, *roles: str, method: str = "GET") -> tuple[int, Any]:
        status, text = await self.text(path, *(roles or (ADMIN,)), method=method)
        return status, json.loads(text)

    async def contains(self, query: str, path: str = ONE) -> bool:
        status, body = await self.get(f"{path}contains_content_items/?{query}")
        assert (status, list(body)) == (200, ["contains_content_items"])
        return bool(body["contains_content_items"])


@asynccontextmanager
async def asking(path: Path, source: FakeSource, *more: Json, pulled: bool = True) -> AsyncIterator[Asking]:
    """A rig with the recorded catalog and `more`, which are pulled, too, or not."""
    clock, store = StillClock(RECORDED_MS), MemoryStore()
    async with world(path, source, store, clock) as here:
        name = {"enterprise_customer": CUSTOMER, "enterprise_customer_name": "Acme Learning Co"}
        await here.add("Cat", {"content_type": ["course", "program"]}, uuid=CATALOG, **name)
        if not pulled:
            await here.pull()
        for body in more:
            await here.add(**{**name, **body})
        if pulled:
            await here.pull()
        await here.pipeline.details(here.epoch, clock.now_ms())
        await here.publish()
        served = SidecarSettings(disk="", poll_ms=10)
        given = Settings(sidecar=served, auth=settings(path), links=LinksSettings(lms="http://lms.example.com/"))
        sidecar = Sidecar(given, store, clock)
        async with TestClient(TestServer(sidecar.app)) as client:
            await sidecar.current.other_than(None)
            yield Asking(here, sidecar, client)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Asking]:
    async with asking(tmp_path, corpus()) as made:
        yield made


def without_ours(value: Any) -> Any:
    """A body without what differs between the corpora, its lists of documents in one order."""
    if isinstance(value, dict):
        return {name: without_ours(inner) for name, inner in value.items() if name not in OURS}
    if isinstance(value, list):
        return sorted((without_ours(inner) for inner in value), key=lambda v: json.dumps(v, sort_keys=True))
    return value


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in (*WRITES, "no slash", "xml")])
async def test_it_is_answered_as_it_was_recorded(rig: Asking, name: str) -> None:
    entry = BY_NAME[name]
    roles = () if name == "no auth" else (OTHER,) if name.startswith("other user") else (ADMIN,)
    status, text = await rig.text(entry["url"], *roles, method=entry["method"])
    got, want = without_ours(json.loads(text)), without_ours(entry["body"])
    if name == "programs/" + PROGRAM:
        # Our document is merged: it has what only lists of content said of a program.
        assert got.pop("is_program_eligible_for_one_click_purchase") is True
        # A course that is not known is what the program says of it.
        link = f"{LINK}/course/edX+Nowhere/enroll/?"
        assert next(c for c in got["courses"] if c["key"] == "edX+Nowhere").pop("enrollment_url").startswith(link)
        got["courses"].remove({"key": "edX+Nowhere"})
    if name == "list" or name == "detail":
        # The number of a query is the registry's.
        rows = got["results"] if name == "list" else [got]
        assert all(isinstance(row.pop("enterprise_catalog_query"), int) for row in rows)
        for row in want["results"] if name == "list" else [want]:
            row.pop("enterprise_catalog_query")
    assert (status, differs(want, got)) == (entry["status"], None)


async def test_xml_and_a_path_without_its_slash_have_the_recorded_statuses(rig: Asking) -> None:
    status, text = await rig.text(BY_NAME["xml"]["url"], LEARNER)
    assert (status, "<contains_content_items>False</contains_content_items>" in text) == (200, True)
    status, _ = await rig.text(BY_NAME["no slash"]["url"], LEARNER)
    assert status == BY_NAME["no slash"]["status"]


@pytest.mark.parametrize(
    "query, contains",
    [
        (f"course_run_ids={DEMO}", True),
        (f"course_run_ids={DEMO}&course_run_ids=edX+Second", True),
        (f"course_run_ids={DEMO},edX+Second", True),
        (f"course_run_ids={DEMO},edX+NotThere", False),
        (f"course_run_ids={DEMO}&program_uuids={PROGRAM}", True),
        (f"course_run_ids=edX+NotThere&program_uuids={PROGRAM}", False),
        (f"program_uuids={PROGRAM}&program_uuids={OTHERS}", False),
        ("course_run_ids=edx%2Bdemox", True),
        ("course_run_ids=", False),
    ],
)
async def test_all_ids_have_to_be_contained(rig: Asking, query: str, contains: bool) -> None:
    assert await rig.contains(query) is contains
    assert await rig.contains(query, f"{BASE}/enterprise-customer/{CUSTOMER}/") is contains


async def test_a_customer_is_asked_catalog_by_catalog(tmp_path: Path) -> None:
    customers = f"{BASE}/enterprise-customer/{CUSTOMER}/"
    second = {"title": "Never", "content_filter": {"content_type": "course", "n": 1}, "uuid": NEVER}
    async with asking(tmp_path, corpus(), second, pulled=False) as rig:
        assert await rig.contains(f"course_run_ids={DEMO}", customers)
        for path in (f"{customers}contains_content_items/?course_run_ids=edX+NotThere", ONE.replace(CATALOG, NEVER)):
            status, body = await rig.get(path)
            assert (status, body["detail"][:21]) == (503, "It cannot be told yet")
        assert (await rig.get(f"{customers}contains_content_items/?course_run_ids={DEMO}", OTHER))[0] == 403


@pytest.mark.parametrize("what", ["courses/edX+NotThere/", f"courses/{DEMO_RUN}/", f"course_runs/{DEMO}/"])
async def test_content_that_is_not_there_is_not_found(rig: Asking, what: str) -> None:
    assert await rig.get(ONE + what) == (404, {"detail": "Not found."})


@pytest.mark.parametrize("what", [f"courses/{DEMO}/", f"course_runs/{DEMO_RUN}/", f"programs/{PROGRAM}/"])
async def test_content_is_the_admins_to_see(rig: Asking, what: str) -> None:
    refused = (403, {"detail": "Missing: enterprise.can_view_catalog"})
    for role in (OTHER, LEARNER, f"enterprise_provisioning_admin:{CUSTOMER}"):
        assert await rig.get(ONE + what, role) == refused
        assert await rig.get(ONE, role) == refused
    nothing = (404, {"detail": "No EnterpriseCustomerCatalog matches the given query."})
    assert await rig.get(ONE.replace(CATALOG, OTHERS) + what) == nothing
    assert await rig.get(ONE.replace(CATALOG, OTHERS) + what, LEARNER) == refused
    assert await rig.get(ONE.replace(CATALOG, "no-uuid") + what) == (404, {"detail": "Not found."})
    assert (await rig.text(ONE + what))[0] == 401


async def test_pages_follow_each_other(rig: Asking) -> None:
    url, found, numbers = f"{ONE}?page_size=1", [], 0
    while url:
        status, body = await rig.get(url)
        assert (status, body["count"]) == (200, 3)
        found += [document["uuid"] for document in body["results"]]
        numbers += 1
        url = (body["next"] or "").removeprefix("http://old.example.test")
    assert (numbers, len(set(found))) == (3, 3)
    assert await rig.get(f"{ONE}?page=2") == (404, {"detail": "Invalid page."})
    assert await rig.get(f"{BASE}/enterprise_catalogs/?page=2") == (404, {"detail": "Invalid page."})


async def test_a_list_has_the_callers_own(rig: Asking) -> None:
    for role, count in ((ADMIN, 1), (OTHER, 0), ("enterprise_admin:*", 1)):
        status, body = await rig.get(f"{BASE}/enterprise_catalogs/", role)
        assert (status, body["count"], len(body["results"])) == (200, count, count)
    assert (await rig.get(f"{BASE}/enterprise_catalogs/", LEARNER))[0] == 403


async def test_who_belongs_to_a_customer_may_ask_what_its_catalog_contains(rig: Asking) -> None:
    path = f"{ONE}contains_content_items/?course_run_ids={DEMO}"
    nothing = (404, {"detail": "No EnterpriseCustomerCatalog matches the given query."})
    assert await rig.get(path, LEARNER) == (200, {"contains_content_items": True})
    assert await rig.get(path, OTHER) == nothing
    assert await rig.get(path.replace(CATALOG, OTHERS), LEARNER) == nothing
    # What is missing in the question is said before that.
    for uuid in (CATALOG, OTHERS, "no-uuid"):
        assert (await rig.get(f"{ONE.replace(CATALOG, uuid)}contains_content_items/", OTHER))[0] == 400
    of_customer = f"{BASE}/enterprise-customer/{{}}/contains_content_items/?course_run_ids={DEMO}"
    assert (await rig.get(of_customer.format(CUSTOMER), LEARNER))[0] == 403
    unknown = (404, {"detail": "No EnterpriseCustomer matches the given query."})
    assert await rig.get(of_customer.format(NEVER), "enterprise_admin:*") == unknown
    assert await rig.get(of_customer.format("x"), "enterprise_admin:*") == (404, {"detail": "Not found."})


async def test_links_in_the_detail_say_who_sends_their_visitors(tmp_path: Path) -> None:
    source = corpus()
    page = "https://www.example.test/demo?utm_source=x&a=1"
    for part in ("search", "full"):
        source.courses[0][part]["marketing_url"] = page
    async with asking(tmp_path, source) as rig:
        _, body = await rig.get(ONE)
        demo = next(document for document in body["results"] if document.get("key") == DEMO)
        marked = "https://www.example.test/demo?a=1&utm_medium=enterprise&utm_source=acme-learning-co"
        assert demo["marketing_url"] == marked
        _, body = await rig.get(f"{ONE}courses/{DEMO}/")
        assert body["marketing_url"] == page
        assert not {"xapi_activity_id", "content_last_modified"} & (demo.keys() | body.keys())
        assert "enrollment_url" not in demo["course_runs"][0]


async def test_programs_that_cannot_be_bought_at_once_are_left_out_of_the_detail(tmp_path: Path) -> None:
    source = corpus()
    for part in ("search", "full"):
        source.programs[0][part]["is_program_eligible_for_one_click_purchase"] = False
    async with asking(tmp_path, source) as rig:
        _, body = await rig.get(ONE)
        assert (body["count"], [d["content_type"] for d in body["results"]]) == (3, ["course", "course"])


async def test_runs_without_seats_are_left_out_of_the_detail(tmp_path: Path) -> None:
    source = corpus()
    run = source.courses[0]["full"]["course_runs"][0]
    indexed = {"content_type": "courserun", "aggregation_key": f"courserun:{DEMO}", "title": "A run"}
    for n, seats in enumerate((True, False)):
        key = f"course-v1:edX+DemoX+{n}"
        source.courses[0]["runs"].append({**run, **indexed, "key": key, "has_enrollable_seats": seats})
    runs = {"title": "Runs", "content_filter": {"content_type": "courserun"}, "uuid": RUNS}
    async with asking(tmp_path, source, runs) as rig:
        path = ONE.replace(CATALOG, RUNS)
        status, body = await rig.get(path)
        assert (status, body["count"], [d["key"] for d in body["results"]]) == (200, 2, ["course-v1:edX+DemoX+0"])
        link = f"{LINK}/course/course-v1:edX+DemoX+0/enroll/?catalog={RUNS}&"
        assert body["results"][0]["enrollment_url"].startswith(link)
        status, body = await rig.get(f"{path}course_runs/course-v1:edX+DemoX+1/")
        assert (status, body["parent_content_key"], body["title"]) == (200, DEMO, "A run")


@pytest.mark.parametrize(
    "changed, active, end",
    [
        ({"end": None}, True, "2026-12-31T00:00:00Z"),
        ({"end": "some day"}, True, "2026-12-31T00:00:00Z"),
        ({"availability": "Archived"}, False, "2027-01-01T00:00:00Z"),
        ({"status": "unpublished"}, False, "2027-01-01T00:00:00Z"),
        ({"end": "2026-11-23T07:00:00Z"}, False, "2026-12-31T00:00:00Z"),
        ({"enrollment_start": "2026-12-01T00:00:00Z"}, False, "2027-01-01T00:00:00Z"),
        ({"enrollment_end": "2026-11-01T00:00:00"}, False, "2027-01-01T00:00:00Z"),
        ({"enrollment_end": "some day"}, True, "2027-01-01T00:00:00Z"),
    ],
)
async def test_a_course_tells_whether_it_is_open(tmp_path: Path, changed: Json, active: bool, end: str | None) -> None:
    source = corpus()
    runs = source.courses[0]["full"]["course_runs"]
    runs.append({"key": "course-v1:edX+DemoX+old", "status": "archived", "end": "2026-12-31T00:00:00Z"})
    runs[0].update(changed)
    async with asking(tmp_path, source) as rig:
        _, body = await rig.get(ONE)
        demo = next(document for document in body["results"] if document.get("key") == DEMO)
        assert (demo["active"], demo["end_date"]) == (active, end)
