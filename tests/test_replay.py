"""Every recorded exchange that only reads, sent with its actor's token to a sidecar that verifies tokens, and judged.

The rule: an answer is the recording, or what the differences that are meant make of it; by their numbers such answers
are counted, and all counts are demanded, so that no answer starts or stops to differ unseen. Nothing is left out but
what names the catalog that has lost its query.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree

import pytest

from tests.sidecar.replayed import BODIES, Json, Judge, Rig, differs, exchanges, key_of, read, replaying
from tests.test_golden import Expected
from tests.tokens import StillClock, actors, settings, token_of

# How many exchanges of each group are replayed, how many are left out, and how many answers rest on each difference.
GROUPS: Final[dict[str, tuple[int, int, dict[int, int]]]] = {
    "01_catalog_contains": (74, 1, {1: 1, 6: 2}),
    "02_customer_contains": (56, 0, {1: 4, 6: 1, 18: 2}),
    "03_filter_content_items": (37, 0, {7: 5, 14: 1}),
    "04_get_content_metadata": (95, 1, {3: 18, 7: 1, 16: 38, 19: 1}),
    "05_customer_content_metadata": (27, 0, {7: 1, 16: 1}),
    "06_generate_diff": (7, 1, {}),
    "07_catalog_queries": (42, 2, {12: 12}),
}
# A learner of the path's customer names another customer's catalog.
OF_ANOTHER_CUSTOMER: Final = "03_filter_content_items-005"
# What who administers every customer asked of the queries, and no superuser (difference 12).
ASKED_BY_NOBODY_ELSE: Final = {
    "07_catalog_queries-009": 200,
    "07_catalog_queries-010": 404,
    "07_catalog_queries-014": 200,
    "07_catalog_queries-038": 200,
    "07_catalog_queries-041": 405,
}
UNORDERED: Final = ("filtered_content_keys", "items_found", "items_not_found", "items_not_included")
RUN_LINKS: Final = ("enrollment_url", "parent_content_key")
CONTAINS: Final = re.compile(r"/api/(v\d)/enterprise-(catalogs|customer)/([^/]+)/contains_content_items/")
PAGES: Final = re.compile(r"/api/(v\d)/enterprise-catalogs/([^/]+)/get_content_metadata/?")
NONE: Final[set[int]] = set()
Verdict = tuple[str | None, set[int]]


class Answer(NamedTuple):
    """An answer that has been read."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def content_type(self) -> str:
        """Without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0]


async def asked(rig: Rig, exchange: Json) -> Answer:
    response = await rig.send(exchange)
    return Answer(response.status, response.headers, await response.read())


def folded(key: str) -> str:
    """A key as the recorded service's database compares it."""
    return "".join(c for c in unicodedata.normalize("NFKD", key) if not unicodedata.combining(c)).casefold()


def listed(header: str | None) -> set[str]:
    return {word.strip() for word in (header or "").split(",")}


def dashed(uuid: str) -> str:
    text = uuid.lower()
    return text if "-" in text else "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def asked_for(query: str) -> list[str]:
    """The values that a query string asks about; in course_run_ids a plus is itself."""
    pairs = [part.split("=", 1) for part in query.split("&") if "=" in part]
    return [
        unquote(value.replace("+", "%2B" if name == "course_run_ids" else " "))
        for name, value in pairs
        if name in ("course_run_ids", "program_uuids")
    ]


def is_runs_link(course: Json, run: Json) -> bool:
    """Whether a run's link is its course's, with the run's key among the parameters or in the path."""
    ours, courses = run["enrollment_url"], course.get("enrollment_url")
    if not ours or not courses:
        return bool(ours == courses)
    a, b = urlsplit(courses), urlsplit(ours)
    of_course, of_run = dict(parse_qsl(a.query)), dict(parse_qsl(b.query))
    path = unquote(a.path)
    if "/enroll/" in path:
        path = re.sub(r"/course/[^/]+/enroll/", lambda _: f"/course/{run['key']}/enroll/", path)
    else:
        of_course["course_run_key"] = run["key"]
    return (a.scheme, a.netloc, path, of_course) == (b.scheme, b.netloc, unquote(b.path), of_run)


def not_status(got: Answer, status: int) -> str | None:
    return None if got.status == status else f"{got.status} instead of {status}: {got.raw[:200]!r}"


def refused(got: Answer, status: int) -> str | None:
    """What is wrong with an answer that has to say why, in JSON."""
    says = got.content_type == "application/json" and json.loads(got.raw)
    return not_status(got, status) or (None if says else f"no reason in JSON: {got.raw[:200]!r}")


def in_order(body: Json) -> Json:
    """A body of which the lists that have no order are sorted."""
    return {k: sorted(v, key=json.dumps) if k in UNORDERED and isinstance(v, list) else v for k, v in body.items()}


class StrictJudge:
    """Says what is wrong with an answer, and on which differences it rests; on none if it is the recording."""

    def __init__(self) -> None:
        self.expected = Expected()
        corpus = read("corpus")
        nested = (run["key"] for course in corpus["courses"] for run in course["full"]["course_runs"])
        self.known = {folded(key): key for key in (*self.expected.matrix["probe_ids"], *nested)}
        self.changed = {c["uuid"]: c["modified"] for c in corpus["customers"]}
        self.documents = Judge().documents

    def verdict(self, exchange: Json, recorded: list[Json], got: Answer) -> Verdict:
        """What is wrong with the answer to an exchange; what twins of it were told is among all that was recorded."""
        path, want, status, rests = exchange["path"], exchange.get("json"), exchange["status"], NONE
        kind = exchange["response_headers"].get("Content-Type", "")
        if status == 500:
            of_catalog = re.match(r"/api/v\d/enterprise-catalogs/", path)
            return refused(got, 404 if of_catalog else 400), {7}
        if status == 200 and kind.startswith("text/html"):
            return refused(got, 406), {18}
        if path.endswith("metadataXYZ"):
            return not_status(got, 404), {19}
        if exchange["id"] == OF_ANOTHER_CUSTOMER:
            return refused(got, 403), {14}
        if status == 403 and exchange["actor"] == "operator" and path.startswith("/api/v1/catalog-queries/"):
            alike = ("method", "path", "query", "request_body")
            seen = [e for e in recorded if e["actor"] == "superuser" and all(e[n] == exchange[n] for n in alike)]
            if not seen:
                return self._unrecorded(exchange, got) or self._headers(exchange, got), {12}
            status, want, rests = seen[0]["status"], seen[0].get("json"), {12}
        if status == 200 and exchange["method"] == "GET" and isinstance(want, dict):
            want, rests = self._contained(exchange, want) or (want, rests)
        if wrong := not_status(got, status) or self._headers(exchange, got):
            return wrong, rests
        if exchange["method"] == "OPTIONS" and status == 200 and isinstance(want, dict):
            return self._options(want, json.loads(got.raw))
        if exchange["method"] == "HEAD" or status == 301:
            return None, rests
        if "xml" in kind:
            return self._xml(exchange["text"], got), rests
        if got.headers.get("Content-Type") != kind:
            return f"Content-Type: {got.headers.get('Content-Type')}", rests
        wrong, more = self._json(exchange, want, json.loads(got.raw))
        return wrong, rests | more

    def contains(self, version: str, uuid: str, values: list[str]) -> tuple[bool, set[int]]:
        """Whether a catalog contains any of these values, with nested runs (1) and with commas that separate (6)."""
        if uuid not in BODIES:
            return False, NONE
        keys = [self.known.get(folded(key), key) for value in values for key in value.split(",") if key]
        contained = self.expected.catalog(version, uuid) & set(keys)
        recorded = contained & set(self.expected.matrix[f"{version}_catalog"][uuid]["true"])
        split = {6} if any("," in value for value in values) else NONE
        return bool(contained), split | (NONE if recorded or not contained else {1})

    def _contained(self, exchange: Json, want: Json) -> tuple[Json, set[int]] | None:
        found = CONTAINS.fullmatch(exchange["path"])
        if not found:
            return None
        version, uuid, values = found[1], dashed(found[3]), asked_for(exchange["query"] or "")
        theirs = [uuid] if found[2] == "catalogs" else self.expected.catalogs_of(uuid)
        answers = {catalog: self.contains(version, catalog, values) for catalog in theirs}
        those = [catalog for catalog, (contained, _) in answers.items() if contained]
        whole = {**want, "contains_content_items": bool(those)}
        if "catalog_list" in want:
            whole["catalog_list"] = those
        return whole, NONE if whole == want else set().union(*(answers[catalog][1] for catalog in those))

    @staticmethod
    def _unrecorded(exchange: Json, got: Answer) -> str | None:
        """One of our queries, by number or hash, or the hash of the filter that was sent, or a refusal."""
        wrong = refused(got, ASKED_BY_NOBODY_ELSE[exchange["id"]])
        if wrong or got.status != 200:
            return wrong
        said = json.loads(got.raw)
        if exchange["path"].endswith("get_content_filter_hash"):
            text = json.dumps(exchange["request_body"], sort_keys=True)
            return differs(hashlib.md5(text.encode()).hexdigest(), said)
        hashed = exchange["query"].removeprefix("hash=") or said["content_filter_hash"]
        return Judge.queries({"results": []}, {"results": [said]}) or differs(hashed, said["content_filter_hash"])

    @staticmethod
    def _headers(exchange: Json, got: Answer) -> str | None:
        recorded = exchange["response_headers"]
        for name in ("WWW-Authenticate", "Location"):
            if recorded.get(name) != got.headers.get(name):
                return f"{name}: {got.headers.get(name)!r} instead of {recorded.get(name)!r}"
        if listed(recorded.get("Allow")) != listed(got.headers.get("Allow")):
            return f"Allow: {got.headers.get('Allow')!r} instead of {recorded.get('Allow')!r}"
        return None

    @staticmethod
    def _options(want: Json, got: Json) -> Verdict:
        """What a route tells of itself: no pages for people (18), and a time of change that nobody may give (24)."""
        kept = [kind for kind in want["renders"] if kind != "text/html"]
        rests, meant = NONE if kept == want["renders"] else {18}, {**want, "renders": kept}
        for fields in meant.get("actions", {}).values():
            rests = rests | {24}
            fields["catalog_modified"]["read_only"] = True
        return None if got == meant else f"{got} instead of {meant}", rests

    @staticmethod
    def _xml(text: str, got: Answer) -> str | None:
        if got.content_type != "application/xml":
            return f"Content-Type: {got.content_type}"
        tags = [child.tag for child in ElementTree.fromstring(got.raw)]
        try:
            want = [child.tag for child in ElementTree.fromstring(text)]
        except ElementTree.ParseError:  # The recording was cut short.
            want = re.findall(r"<([a-z_]+)>", text)[1:6]
            tags = tags[:5]
        return None if tags == want else f"XML of {tags} instead of {want}"

    def _json(self, exchange: Json, want: Any, got: Any) -> Verdict:
        path, query = exchange["path"], exchange["query"] or ""
        if not isinstance(want, dict) or not isinstance(got, dict):
            return differs(want, got), NONE
        want, got = in_order(want), in_order(got)
        if "results" not in want or "results" not in got:
            return self._document(want, got) if "/content-metadata/" in path else (differs(want, got), NONE)
        if found := PAGES.fullmatch(path):
            return self._page(want, got, query, found[1], dashed(found[2]))
        if "/catalog-queries/" in path:
            return Judge.queries(want, got), NONE
        if "/content-metadata/" in path and "content_identifiers" not in query:
            # All that is known; the recorded service knew runs of which no catalog has a row.
            around = [{**b, "count": None, "next": None, "results": len(b["results"])} for b in (want, got)]
            odd = [document for document in got["results"] if "content_type" not in document]
            return differs(around[0], around[1]) or (f"no document: {odd[0]}" if odd else None), NONE
        return differs(want, got), NONE

    @staticmethod
    def _document(want: Json, got: Json) -> Verdict:
        """A document, which may have links of nested runs that the recording does not have, if they are right."""
        rests, recorded = NONE, {run["key"]: run for run in want.get("course_runs") or []}
        for run in got.get("course_runs") or []:
            if "enrollment_url" not in run or "enrollment_url" in recorded.get(run["key"], run):
                continue
            if run.get("parent_content_key") != got["key"] or not is_runs_link(got, run):
                return f"{run['key']}: {[run.get(name) for name in RUN_LINKS]}", {16}
            for name in RUN_LINKS:
                del run[name]
            rests = {16}
        return differs(want, got, str(got.get("key"))), rests

    def _in_catalog(self, version: str, uuid: str, got: Json) -> Verdict:
        """A document of a catalog; all its runs have links, and it is no older than its customer."""
        changed = self.changed[BODIES[uuid]["enterprise_customer"]]
        if str(got["content_last_modified"])[:19] < changed[:19]:
            return f"{key_of(got)}: {got['content_last_modified']} is before its customer's {changed}", NONE
        bare = [run["key"] for run in got.get("course_runs") or [] if "enrollment_url" not in run]
        if bare and got["course_type"] != "executive-education-2u":
            return f"{key_of(got)}: no links of {bare}", {16}
        want = self.documents[version, uuid].get(key_of(got))
        return (None, NONE) if want is None else self._document(want, got)

    def _page(self, want: Json, got: Json, query: str, version: str, uuid: str) -> Verdict:
        """A page; which documents it has is ours to say, unless all of them or some keys were asked for."""
        theirs, ours = ([key_of(document) for document in body["results"]] for body in (want, got))
        rests = NONE if ours == theirs else {3}
        if ("content_keys" in query or "traverse_pagination" in query) and sorted(ours) != sorted(theirs):
            return f"{sorted(ours)} instead of {sorted(theirs)}", rests
        if len(ours) != len(theirs) or len(set(ours)) != len(ours):
            return f"{len(ours)} documents, {len(set(ours))} different, instead of {len(theirs)}", rests
        if wrong := differs({**want, "results": None}, {**got, "results": None}):
            return wrong, rests
        found = [self._in_catalog(version, uuid, document) for document in got["results"]]
        return next((wrong for wrong, _ in found if wrong), None), rests.union(*(more for _, more in found))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    clock = StillClock()
    tokens = {actor: token_of(actor, clock.now_ms()) for actor in actors()}
    async with replaying(tmp_path, clock=clock, auth=settings(tmp_path), tokens=tokens) as here:
        yield here


async def test_every_actor_is_answered_as_it_was_recorded(rig: Rig) -> None:
    judge, wrong, counted = StrictJudge(), {}, {}
    for group in GROUPS:
        recorded, numbers = exchanges(group), Counter[int]()
        for exchange in recorded:
            got = await asked(rig, exchange)
            said, rests = judge.verdict(exchange, recorded, got)
            numbers.update(rests)
            if exchange["method"] == "HEAD":
                whole = await asked(rig, {**exchange, "method": "GET"})
                if got.raw or got.headers.get("Content-Length") != str(len(whole.raw)):
                    said = f"HEAD has {got.headers.get('Content-Length')}, GET {len(whole.raw)}"
            if said:
                wrong[exchange["id"], exchange["actor"]] = said
        counted[group] = (len(recorded), len(read(group)["exchanges"]) - len(recorded), dict(sorted(numbers.items())))
    assert wrong == {}
    assert counted == GROUPS


async def test_what_a_sidecar_answers_by_itself_beside_writes(rig: Rig) -> None:
    """Nothing is written, and so all of it can be asked of the catalogs that there are."""
    judge, wrong, rests, kinds = StrictJudge(), {}, set(), Counter[str]()
    for exchange in (*exchanges("08_refresh_metadata"), *exchanges("09_crud")):
        collection = exchange["path"] == "/api/v1/enterprise-catalogs/"
        kind = exchange["response_headers"].get("Content-Type", "")
        if exchange["method"] == "OPTIONS":
            kinds["OPTIONS"] += 1
        elif exchange["status"] == 301:
            kinds["redirect"] += 1
        elif collection and exchange["method"] in ("PUT", "PATCH", "DELETE"):
            kinds["not of a list"] += 1
        elif "xml" in kind:
            kinds["XML"] += 1
        else:
            continue
        said, numbers = judge.verdict(exchange, [], await asked(rig, exchange))
        rests |= numbers
        if said:
            wrong[exchange["id"], exchange["actor"]] = said
    assert wrong == {}
    assert rests == {24}
    assert kinds == {"OPTIONS": 2, "redirect": 1, "not of a list": 2, "XML": 1}


async def test_an_answer_that_says_more_or_is_anothers_is_judged_wrong(rig: Rig) -> None:
    """So that a judge that lets everything pass is seen."""
    judge, passed, judged = StrictJudge(), [], 0
    for group in GROUPS:
        recorded = exchanges(group)
        for exchange in recorded:
            got = await asked(rig, exchange)
            if got.status != 200 or got.content_type != "application/json" or exchange["method"] in ("HEAD", "OPTIONS"):
                continue
            said = json.loads(got.raw)
            more = {**said, "more": 1} if isinstance(said, dict) else [said]
            judged += 1
            others = (got._replace(raw=json.dumps(more).encode()), await asked(rig, {**exchange, "actor": None}))
            if not all(judge.verdict(exchange, recorded, other)[0] for other in others):
                passed.append(exchange["id"])
    assert passed == []
    assert judged > 200
