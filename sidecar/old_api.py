"""The old API, as the LMS had it under /enterprise/api/v1: a customer's catalogs, what they contain, and their content.

The rule: a catalog here contains what it contains for /api/v1, and a document is the one that no catalog shows, without
what this API never had, and with links of its own form. Such a document is read as JSON, since its links go to other
places than those that are kept in it; it is a page of them at most.

1. Whether ids are contained is told of all of them together, and of one catalog: not of each, and not of several.
2. Content is an admin's to see: of the customer, or, in a list, of any (403). To ask what a catalog contains somebody
   needs no more than to belong to the customer; a catalog that is not theirs is as good as none (404).
3. In a catalog's detail, links to pages about content say who sent their visitors; a course tells whether it can be
   enrolled in now and when its last run ends; a program comes without its courses. Left out are runs without seats to
   enrol in, programs that cannot be bought at once, and pathways, though they count, and so the pages hold together.
4. Asked for by itself, a course has links in its runs, and a program its courses in the same form. A run is what its
   course's document says of it, or else its own document.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import web

from sidecar.auth import Tokens
from sidecar.clock import Clock
from sidecar.content import content_of, named, overrides_of
from sidecar.contract.index import Catalog, Content, Index
from sidecar.contract.words import ContentType, canonical_uuid, iso_time, slugify
from sidecar.current import Current, Generation
from sidecar.documents import Links, Values, written
from sidecar.errors import NotPulledYet
from sidecar.handlers import Handler, ListQuestion, Reads, Route, list_question
from sidecar.intake import absolute_url, raw_query
from sidecar.lookup import Answer
from sidecar.pages import asked_page
from sidecar.parameters import NO_IDS, Refusal, catalog_uuid, ids, pairs
from sidecar.roles import Access, Caller, Gate, caller_of
from sidecar.schemas import (
    CONTAINS,
    DETAIL,
    IDS,
    NUMBER,
    OLD_COURSE,
    OLD_DOCUMENT,
    OLD_PROGRAM,
    OLD_RUN,
    REASONS,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    UUID,
    Operation,
    Schema,
    closed,
    listed,
    nullable,
    page,
    pages,
)
from sidecar.shelves import Shelves
from sidecar.walks import Walks

PREFIX: Final = "/enterprise/api/v1"
MAX_PAGE_SIZE: Final = 100
NO_CATALOG: Final = "No EnterpriseCustomerCatalog matches the given query."
NO_CUSTOMER: Final = "No EnterpriseCustomer matches the given query."
NOT_THEIRS: Final = "Missing: enterprise.can_view_catalog"
NOWHERE: Final = "Not found."
# A run that ends before a day has passed is not worth enrolling in.
LAST_DAY: Final = timedelta(days=1)
# What content other than courses is listed for.
LISTED_IF: Final[Mapping[int, str]] = {
    ContentType.COURSE_RUN: "has_enrollable_seats",
    ContentType.PROGRAM: "is_program_eligible_for_one_click_purchase",
}
OPEN: Final = frozenset({"Current", "Starting Soon", "Upcoming"})
Json = dict[str, Any]
# The links of the old API are other ones than those that are kept in documents.
NO_LINKS: Final = Values(0, b"", None, portal=False, course=None, run=None, executive=None)


class DetailQuestion(NamedTuple):
    """A catalog, and which page of its documents."""

    uuid: str
    parameters: dict[str, str]
    url: str
    caller: Caller


class ContainsQuestion(NamedTuple):
    """A catalog, or a customer, and the ids of which it has to contain every one."""

    uuid: str
    ids: list[str]
    caller: Caller


class ItemQuestion(NamedTuple):
    """One piece of a catalog's content."""

    uuid: str
    identifier: str
    caller: Caller


class Served(NamedTuple):
    """What a catalog serves, which documents are other ones for it, and when that was pulled."""

    content: Content
    overrides: Mapping[int, bytes]
    pulled_at_ms: int | None
    query_hash: bytes | None


class EnrollLinks(NamedTuple):
    """The links by which one catalog's content is enrolled in; null all of them where they cannot be made."""

    base: str | None
    parameters: str

    @classmethod
    def of(cls, index: Index, catalog: Catalog, links: Links) -> "EnrollLinks":
        """Those of a catalog; without an LMS, or for a customer that it does not know, none can be made."""
        record = catalog.record
        known = bool(links.lms) and catalog.customer in index.customers
        audit = "audit=true&" if record.audit_urls else ""
        utm = f"utm_medium=enterprise&utm_source={slugify(record.customer_name)}"
        base = f"{links.lms}/enterprise/{catalog.customer}" if known else None
        return cls(base, f"{audit}catalog={catalog.uuid}&{utm}")

    def course(self, key: str) -> str | None:
        """The link of a course, or a run: both are enrolled in as courses."""
        return self._link("course", key)

    def program(self, uuid: str) -> str | None:
        """The link of a program."""
        return self._link("program", uuid)

    def _link(self, kind: str, key: str) -> str | None:
        return None if self.base is None else f"{self.base}/{kind}/{key}/enroll/?{self.parameters}"


class OldApi:
    """What the routes of the old API answer."""

    def __init__(self, shelves: Shelves, links: Links, walks: Walks, clock: Clock) -> None:
        self._shelves = shelves
        self._links = links
        self._walks = walks
        self._clock = clock

    async def detail(self, generation: Generation, question: DetailQuestion) -> Answer[Any]:
        """A catalog with a page of its documents."""
        index = generation.index
        catalog, served = _theirs(index, question)
        members = served.content.members
        walk = (catalog.uuid, served.query_hash, PREFIX)
        page, ordinals = self._walks.asked(walk, members, question.parameters, max_size=MAX_PAGE_SIZE)
        values = replace(NO_LINKS, utm_source=slugify(catalog.record.customer_name).encode())
        documents = await self._documents(index, ordinals, served.overrides, values)
        links = EnrollLinks.of(index, catalog, self._links)
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        found = ((index.dictionary.keys[o], index.dictionary.types[o], documents[o]) for o in ordinals)
        body = {
            **_record(catalog),
            "count": page.count,
            "previous": page.previous(question.url),
            "next": page.next(question.url),
            "results": [_listed(*one, links, now) for one in found if _is_listed(*one[1:])],
        }
        return Answer(body, served.pulled_at_ms)

    async def course(self, generation: Generation, question: ItemQuestion) -> Answer[Any]:
        """A course that a catalog contains."""
        _, served, links, document = await self._item(generation.index, question, ContentType.COURSE)
        return Answer(_course(document, links), served.pulled_at_ms)

    async def run(self, generation: Generation, question: ItemQuestion) -> Answer[Any]:
        """A course run that a catalog contains."""
        index = generation.index
        catalog, served = _theirs(index, question)
        ordinal = _contained(index, served, question.identifier, ContentType.COURSE_RUN)
        key, parent = index.dictionary.keys[ordinal], index.dictionary.parents[ordinal]
        known = await self._known(index, [ordinal] if parent is None else [parent, ordinal], served.overrides)
        nested = [] if parent is None else _runs(known.get(parent, {}))
        document = next((run for run in nested if run.get("key") == key), known.get(ordinal))
        if document is None:
            raise Refusal(404, {"detail": NOWHERE})
        course = None if parent is None else index.dictionary.keys[parent]
        body = {
            **document,
            "content_type": "courserun",
            "aggregation_key": f"courserun:{key if course is None else course}",
            "parent_content_key": course,
            "enrollment_url": EnrollLinks.of(index, catalog, self._links).course(key),
        }
        return Answer(body, served.pulled_at_ms)

    async def program(self, generation: Generation, question: ItemQuestion) -> Answer[Any]:
        """A program that a catalog contains, with its courses, whether the catalog contains them or not."""
        index = generation.index
        ordinal, served, links, document = await self._item(index, question, ContentType.PROGRAM)
        courses = [course for course in document.get("courses") or () if isinstance(course, dict)]
        ordinals = {course.get("key"): index.dictionary.ordinals.get(str(course.get("key"))) for course in courses}
        known = await self._known(index, [o for o in ordinals.values() if o is not None], served.overrides)
        whole = [(course, ordinals[course.get("key")]) for course in courses]
        body = {
            **document,
            "courses": [_course(course if o is None else known.get(o, course), links) for course, o in whole],
            "enrollment_url": links.program(index.dictionary.keys[ordinal]),
        }
        return Answer(body, served.pulled_at_ms)

    async def _item(
        self, index: Index, question: ItemQuestion, kind: ContentType
    ) -> tuple[int, Served, EnrollLinks, Json]:
        """A course or program that a catalog contains: its ordinal, what the catalog serves, links, the document."""
        catalog, served = _theirs(index, question)
        ordinal = _contained(index, served, question.identifier, kind)
        document = (await self._known(index, [ordinal], served.overrides)).get(ordinal)
        if document is None:
            raise Refusal(404, {"detail": NOWHERE})
        return ordinal, served, EnrollLinks.of(index, catalog, self._links), document

    async def _known(self, index: Index, ordinals: Iterable[int], overrides: Mapping[int, bytes]) -> dict[int, Json]:
        """The documents of those that have one; a run may be contained for its course, and a course for its run."""
        entries = await self._shelves.entries(index, dict.fromkeys(ordinals))
        have = [ordinal for ordinal, entry in entries.items() if entry.digest is not None or ordinal in overrides]
        return await self._documents(index, have, overrides)

    async def _documents(
        self, index: Index, ordinals: Sequence[int], overrides: Mapping[int, bytes], values: Values | None = None
    ) -> dict[int, Json]:
        documents = [document async for document in self._shelves.documents(index, ordinals, overrides)]
        found = {}
        for ordinal, document in zip(ordinals, documents, strict=True):
            found[ordinal] = _read(b"".join(written(document.metadata, document.modified_ms, values, urls=False)))
            # Reading takes a while; others must have their turn.
            await asyncio.sleep(0)
        return found


def _read(text: bytes) -> Json:
    """A document without what the old API never had."""
    document: Json = orjson.loads(text)
    for name in ("content_last_modified", "xapi_activity_id"):
        document.pop(name, None)
    if document.get("parent_content_key") is None:
        document.pop("parent_content_key", None)
    if document.get("content_type") == "course":
        document.pop("active", None)
    return document


def _is_listed(kind: int, document: Json) -> bool:
    needs = LISTED_IF.get(kind)
    return kind == ContentType.COURSE or (needs is not None and bool(document.get(needs)))


def _listed(key: str, kind: int, document: Json, links: EnrollLinks, now: datetime) -> Json:
    """A document as the detail of a catalog shows it."""
    if kind == ContentType.COURSE:
        runs = _runs(document)
        ends = {"active": any(_is_open(run, now) for run in runs), "end_date": _last_end(runs)}
        return {**document, "enrollment_url": links.course(key), **ends}
    if kind == ContentType.COURSE_RUN:
        return {**document, "enrollment_url": links.course(key)}
    if kind == ContentType.PROGRAM:
        shown = {name: value for name, value in document.items() if name != "courses"}
        return {**shown, "enrollment_url": links.program(key)}
    return document


def _course(document: Json, links: EnrollLinks) -> Json:
    """A course by itself, or in a program: with the links of its runs."""
    shown, key = dict(document), document.get("key")
    if isinstance(document.get("course_runs"), list):
        shown["course_runs"] = [_linked(run, links) for run in document["course_runs"]]
    return {**shown, "enrollment_url": links.course(key) if isinstance(key, str) else None}


def _linked(run: Any, links: EnrollLinks) -> Any:
    key = run.get("key") if isinstance(run, dict) else None
    return {**run, "enrollment_url": links.course(key)} if isinstance(key, str) else run


def _runs(course: Json) -> list[Json]:
    runs = course.get("course_runs")
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def _is_open(run: Json, now: datetime) -> bool:
    """Whether a run can be enrolled in now; what has no bound is open to that side."""
    if run.get("status") != "published" or run.get("availability") not in OPEN:
        return False
    end, opens, closes = (_time(run.get(name)) for name in ("end", "enrollment_start", "enrollment_end"))
    in_time = end is None or end > now + LAST_DAY
    return in_time and (opens is None or opens < now) and (closes is None or closes > now)


def _last_end(runs: Iterable[Json]) -> str | None:
    """When the last of the runs ends that have an end."""
    return max((run["end"] for run in runs if _time(run.get("end")) is not None), default=None)


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _record(catalog: Catalog) -> Json:
    """A catalog as the old API shows it."""
    row = catalog.record
    return {
        "uuid": catalog.uuid,
        "title": row.title,
        "enterprise_customer": catalog.customer,
        "enterprise_catalog_query": catalog.wanted.record.id,
        "created": iso_time(row.created_ms),
        "modified": iso_time(row.modified_ms),
    }


def _theirs(index: Index, question: DetailQuestion | ItemQuestion) -> tuple[Catalog, Served]:
    """A catalog whose content the caller may see, and what it serves."""
    catalog, caller = index.catalogs.get(question.uuid), question.caller
    if not (_is_admin(caller) if catalog is None else caller.may(Access.ADMIN, catalog.customer)):
        raise Refusal(403, {"detail": NOT_THEIRS})
    if catalog is None:
        raise Refusal(404, {"detail": NO_CATALOG})
    return catalog, _served(catalog)


def _is_admin(caller: Caller) -> bool:
    """Whether somebody is an admin of any customer."""
    return caller.customers(Access.ADMIN) != frozenset()


def _served(catalog: Catalog) -> Served:
    """What a catalog serves to the old API, which knows no restricted runs."""
    query, content = content_of(catalog, restricted=False)
    if query is None:
        return Served(content, {}, None, None)
    return Served(content, overrides_of(query, restricted=False), query.pulled_at_ms, query.hash)


def _contained(index: Index, served: Served, identifier: str, kind: ContentType) -> int:
    """The ordinal of contained content of a type; 404 if there is none."""
    found = named(index.dictionary, identifier) if kind is ContentType.PROGRAM else index.dictionary.find(identifier)
    for ordinal in found:
        if index.dictionary.types[ordinal] == kind and ordinal in served.content.contained:
            return ordinal
    raise Refusal(404, {"detail": NOWHERE})


def _contains_all(index: Index, content: Content, ids: Iterable[str]) -> bool:
    return all(any(ordinal in content.contained for ordinal in index.dictionary.find(id)) for id in ids)


def _ask_list(generation: Generation, question: ListQuestion) -> Answer[Any]:
    if not _is_admin(question.caller):
        raise Refusal(403, {"detail": NOT_THEIRS})
    theirs = question.caller.customers(Access.LEARNER)
    catalogs = [catalog for catalog in generation.catalogs if theirs is None or catalog.customer in theirs]
    page = asked_page(len(catalogs), question.parameters, max_size=MAX_PAGE_SIZE)
    body = {
        **page.head(question.url),
        "results": [_record(catalog) for catalog in page.cut(catalogs)],
    }
    return Answer(body, None)


def _ask_catalog(generation: Generation, question: ContainsQuestion) -> Answer[Any]:
    catalog = generation.index.catalogs.get(question.uuid)
    if catalog is None or not question.caller.may(Access.LEARNER, catalog.customer):
        raise Refusal(404, {"detail": NO_CATALOG})
    served = _served(catalog)
    contains = _contains_all(generation.index, served.content, question.ids)
    return Answer({"contains_content_items": contains}, served.pulled_at_ms)


def _ask_customer(generation: Generation, question: ContainsQuestion) -> Answer[Any]:
    """Yes as soon as one catalog contains all; no only if all catalogs were pulled."""
    index = generation.index
    if not question.caller.may(Access.ADMIN, question.uuid):
        raise Refusal(403, {"detail": NOT_THEIRS})
    customer = canonical_uuid(question.uuid)
    if customer is None:
        raise Refusal(404, {"detail": NOWHERE})
    if customer not in index.of_customer and customer not in index.customers:
        raise Refusal(404, {"detail": NO_CUSTOMER})
    asked_ms, never_pulled, contains = [], None, False
    for catalog in index.of_customer.get(customer, ()):
        try:
            served = _served(catalog)
        except NotPulledYet as error:
            never_pulled = error
            continue
        if served.pulled_at_ms is not None:
            asked_ms.append(served.pulled_at_ms)
        if _contains_all(index, served.content, question.ids):
            contains = True
            break
    if never_pulled is not None and not contains:
        raise never_pulled
    return Answer({"contains_content_items": contains}, min(asked_ms, default=None))


def _ids(request: web.Request) -> list[str]:
    keys = ids(raw_query(request)).keys
    if keys is None:
        raise Refusal(400, [NO_IDS])
    return keys


async def _detail_question(request: web.Request, _: bool) -> DetailQuestion:
    uuid = catalog_uuid(request.match_info["uuid"])
    return DetailQuestion(uuid, dict(pairs(raw_query(request))), absolute_url(request), caller_of(request))


async def _catalog_question(request: web.Request, _: bool) -> ContainsQuestion:
    keys = _ids(request)
    return ContainsQuestion(catalog_uuid(request.match_info["uuid"]), keys, caller_of(request))


async def _customer_question(request: web.Request, _: bool) -> ContainsQuestion:
    # Whose it is is compared as a text, like a role's context.
    return ContainsQuestion(request.match_info["uuid"], _ids(request), caller_of(request))


async def _item_question(request: web.Request, _: bool) -> ItemQuestion:
    return ItemQuestion(catalog_uuid(request.match_info["uuid"]), request.match_info["key"], caller_of(request))


_RECORD: Final[Mapping[str, Schema]] = {
    "uuid": UUID,
    "title": TEXT,
    "enterprise_customer": UUID,
    "enterprise_catalog_query": nullable("integer"),
    "created": TIME,
    "modified": TIME,
}
_LIST: Final = Operation(
    "The caller's own catalogs.",
    {200: page("OldCatalogPage", closed("OldCatalog", _RECORD)), 403: DETAIL},
    pages(MAX_PAGE_SIZE),
)
_DETAIL: Final = Operation(
    "A catalog with a page of its documents; not all that count are shown.",
    {
        200: closed(
            "OldCatalogDetail",
            {
                **_RECORD,
                "count": NUMBER,
                "previous": TEXT_OR_NULL,
                "next": TEXT_OR_NULL,
                "results": listed(OLD_DOCUMENT),
            },
        ),
        403: DETAIL,
    },
    pages(MAX_PAGE_SIZE),
)
_OF_CATALOG: Final = Operation(
    "Whether a catalog contains all of the given content.", {200: CONTAINS, 400: REASONS}, IDS
)
_OF_CUSTOMER: Final = Operation(
    "Whether one catalog of a customer contains all of the given content.",
    {200: CONTAINS, 400: REASONS, 403: DETAIL},
    IDS,
)
_COURSE: Final = Operation("A course that a catalog contains.", {200: OLD_COURSE, 403: DETAIL})
_RUN: Final = Operation("A course run that a catalog contains.", {200: OLD_RUN, 403: DETAIL})
_PROGRAM: Final = Operation("A program that a catalog contains, with its courses.", {200: OLD_PROGRAM, 403: DETAIL})


def old_routes(shelves: Shelves, links: Links, walks: Walks, clock: Clock) -> tuple[Route, ...]:
    """The routes, over these shelves."""
    old = OldApi(shelves, links, walks, clock)
    get = ("GET", "HEAD")
    catalogs, one = "/enterprise_catalogs/", "/enterprise_catalogs/{uuid}/"
    contains = f"{one}contains_content_items/"
    reads: tuple[tuple[str, str, Reads[Any], Operation], ...] = (
        (catalogs, "Enterprise Customer Catalog List", Reads(get, list_question, _ask_list), _LIST),
        (one, "Enterprise Customer Catalog Instance", Reads(get, _detail_question, fetch=old.detail), _DETAIL),
        (contains, "Contains Content Items", Reads(get, _catalog_question, _ask_catalog), _OF_CATALOG),
        (f"{one}courses/{{key}}/", "Course Detail", Reads(get, _item_question, fetch=old.course), _COURSE),
        (f"{one}course_runs/{{key}}/", "Course Run Detail", Reads(get, _item_question, fetch=old.run), _RUN),
        (f"{one}programs/{{key}}/", "Program Detail", Reads(get, _item_question, fetch=old.program), _PROGRAM),
    )
    routes = [
        # Whose a catalog is the answers themselves find out: what others are told differs between them.
        Route(
            path,
            ("json", "xml"),
            name,
            "Enterprise catalogs.",
            read,
            gate=Gate(Access.AUTHENTICATED),
            operations={"GET": operation},
        )
        for path, name, read, operation in reads
    ]
    routes.append(
        Route(
            "/enterprise-customer/{uuid}/contains_content_items/",
            ("json", "api"),
            "Contains Content Items",
            "Whether one of the enterprise's catalogs contains all of the specified content.",
            Reads(get, _customer_question, _ask_customer),
            gate=Gate(Access.AUTHENTICATED),
            operations={"GET": _OF_CUSTOMER},
        )
    )
    return tuple(routes)


def old_definitions(
    routes: Iterable[Route], current: Current, clock: Clock, *, tokens: Tokens | None = None
) -> list[web.RouteDef]:
    """The routes, for aiohttp's router. A path without its closing slash leads nowhere, as it always has."""
    return [
        web.route(
            "*",
            f"{PREFIX}{route.path}".replace("{uuid}", "{uuid:[^/.]+}"),
            Handler(route, current, clock, restricted=False, tokens=tokens).answer,
        )
        for route in routes
    ]
