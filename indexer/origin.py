"""The service that catalogs are taken over from, asked over its own API: all that it tells, whole or not at all.

1. Its list of catalogs, page by page; `count` and results have to add up.
2. Which catalog has which query (`distinct-catalog-queries/`, which staff may ask), and every query by its id. Where
   that may not be asked: the queries by the uuid that a record names, if it names one.
3. A document of every catalog: its links tell what the records do not, the utm_source that the customer's name became,
   and whether audit urls are published.

What no answer tells is a guess, and the offer says so. A service that stops answering ends it all: nothing is offered.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from indexer.documents import Document
from indexer.offer import DEFAULTS, Offer, time_ms
from indexer.source import Source, SourceError
from indexer.source.pages import Listing, Turn, whole
from indexer.source.upstream import Door, Refused, Request, Tally, Unwanted
from sidecar.clock import Clock
from sidecar.contract.words import canonical_uuid, query_hash, slugify

CATALOGS: Final = "/api/v1/enterprise-catalogs/"
QUERIES: Final = "/api/v1/catalog-queries/"
DISTINCT: Final = "/api/v1/distinct-catalog-queries/"
PAGE: Final = 100
UUIDS_A_CALL: Final = 500
# One document nearly always tells; programs and pathways have no link, and may come first.
LOOKS: Final = (1, 10)

REMEDIES: Final[Mapping[int, str]] = {
    401: "give a token that it accepts, by --token-file or in CATALOG_IMPORT_TOKEN",
    403: "give a token of a user who may: a superuser may ask all that an import asks",
}
NO_QUERY: Final = "it has no catalog query there"
NOT_TOLD: Final = "which query it has is told to staff alone, and its record does not name one"
MODES: Final = "the API does not tell them; they have no effect"
LINKS_NAME: Final = "the customer's name in the LMS, which gives the utm_source of its links"
LINKS_ALONE: Final = "the utm_source of its links, which stay as they are; its own name is not told"
LMS_ALONE: Final = "the customer's name in the LMS; no link tells the catalog's own"
NO_NAME: Final = "neither the LMS nor a link tells it: the customer's uuid stands for it, also in links"
NO_AUDIT: Final = "no link tells whether audit urls are published"

_SOURCE: Final = re.compile(r"[?&]utm_source=([^&#]+)")
_AUDIT: Final = re.compile(r"[?&]audit=true(?:&|$)")
# Its links may lead through a checkout, which has no place for it.
_NO_PLACE: Final = "executive-education-2u"

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class _Record:
    """A catalog as the list shows it."""

    uuid: str
    title: object
    customer: str
    query_uuid: str | None
    changed_ms: int | None


@dataclass(frozen=True, slots=True)
class _Query:
    """A query as it is shown; `wrong` says why it cannot be believed."""

    uuid: str | None
    title: object
    content_filter: object
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the links of a catalog's documents tell; None: nothing."""

    utm_source: str | None = None
    audit: bool | None = None


class Origin:
    """One service. `source` is asked for customers; `progress` hears of each step: its name, and how many it has."""

    def __init__(self, door: Door, source: Source, clock: Clock, progress: Progress = lambda _, __: None) -> None:
        self._door = door
        self._source = source
        self._clock = clock
        self._progress = progress
        self._tally = Tally()

    async def offers(self) -> list[Offer]:
        """Every catalog, in order of creation. Raises SourceError."""
        records = await self._records()
        queries = await self._queries(records)
        seen = await self._each("looking at links", records, self._see)
        names = await self._names({record.customer for record in records.values()})
        return [
            _offer(record, queries.get(uuid, NO_QUERY), seen[uuid], names[record.customer])
            for uuid, record in records.items()
        ]

    async def _records(self) -> dict[str, _Record]:
        async def ask(turn: Turn) -> object:
            what = f"catalogs page {turn.number}"
            return await self._ask(what, "GET", f"{CATALOGS}?page={turn.number}&page_size={PAGE}")

        records = await whole(Listing("catalogs", ask, _read_record, size=PAGE), self._clock)
        if not records:
            raise SourceError("catalogs: the list is empty; whoever has no role there, staff included, is shown none")
        return records

    async def _queries(self, records: Mapping[str, _Record]) -> dict[str, _Query | str]:
        """The query of each catalog, or why it is not known; none for a catalog that has none."""
        try:
            ids = await self._ids(list(records))
        except Refused as refused:
            if refused.status != HTTPStatus.FORBIDDEN:
                raise
            return await self._named_queries(records, str(refused))
        distinct = dict.fromkeys(ids.values())
        queries = await self._each("reading queries", {id_: id_ for id_ in distinct}, self._query)
        return {uuid: queries[id_] for uuid, id_ in ids.items()}

    async def _ids(self, uuids: list[str]) -> dict[str, str]:
        """The id of the query of each catalog that has one."""
        ids: dict[str, str] = {}
        for first in range(0, len(uuids), UUIDS_A_CALL):
            some = uuids[first : first + UUIDS_A_CALL]
            answer = await self._ask("queries of catalogs", "POST", DISTINCT, {"enterprise_catalog_uuids": some})
            ids |= _read_ids(answer, set(some))
        return ids

    async def _query(self, id_: str) -> _Query | str:
        try:
            return _read_query(await self._ask(f"query {id_}", "GET", f"{QUERIES}{id_}/"), f"query {id_}")
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return f"its query has the id {id_}, and there is none of that id"
            raise _with_remedy(refused) from refused

    async def _named_queries(self, records: Mapping[str, _Record], refusal: str) -> dict[str, _Query | str]:
        if all(record.query_uuid is None for record in records.values()):
            raise SourceError(f"{refusal}; {REMEDIES[403]}")

        async def ask(turn: Turn) -> object:
            path = f"{QUERIES}?page={turn.number}&page_size={PAGE}"
            try:
                return await self._ask(f"queries page {turn.number}", "GET", path)
            except Refused as refused:
                raise _with_remedy(refused) from refused

        def read(shown: Document) -> tuple[str, _Query]:
            query = _read_query(shown, "a query of the list")
            return str(query.uuid), query

        queries = await whole(Listing("queries", ask, read, size=PAGE), self._clock)
        return {
            uuid: NOT_TOLD
            if record.query_uuid is None
            else queries.get(record.query_uuid, f"its query, {record.query_uuid}, is not in the list of queries")
            for uuid, record in records.items()
        }

    async def _see(self, record: _Record) -> _Seen:
        seen = _Seen()
        for size in LOOKS:
            path = f"{CATALOGS}{record.uuid}/get_content_metadata/?page_size={size}"
            try:
                page = await self._ask(f"links of {record.uuid}", "GET", path)
            except Unwanted:
                # Whoever may not look, or a catalog that was never pulled: its links stay unknown.
                return seen
            results, count = (page.get("results"), page.get("count")) if isinstance(page, dict) else (None, None)
            if not isinstance(results, list) or not isinstance(count, int):
                raise SourceError(f"links of {record.uuid}: the answer is no page of documents")
            seen = _seen(results)
            if (seen.utm_source is not None and seen.audit is not None) or count <= size:
                break
        return seen

    async def _names(self, customers: Iterable[str]) -> dict[str, str | None]:
        """The names of customers as far as the LMS knows them, or answers at all: they are guesses anyway."""
        names: dict[str, str | None] = {}
        asks = True
        for customer in sorted(customers):
            self._progress("asking for customers", 0)
            try:
                details = await self._source.customer(customer) if asks else None
            except SourceError:
                details, asks = None, False
            names[customer] = None if details is None else details.name
        return names

    async def _each(self, step: str, of: Mapping[str, K], ask: Callable[[K], Awaitable[R]]) -> dict[str, R]:
        """Asked side by side, as many at once as the door lets through; the first failure ends all."""

        async def one(key: K) -> R:
            answer = await ask(key)
            self._progress(step, len(of))
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {name: group.create_task(one(key)) for name, key in of.items()}
        except* SourceError as failed:
            raise failed.exceptions[0] from None
        return {name: task.result() for name, task in tasks.items()}

    async def _ask(self, what: str, method: str, path: str, body: object = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        try:
            return await self._door.ask(Request(what, method, path, json=sent), self._tally)
        except Refused as refused:
            if refused.status == HTTPStatus.UNAUTHORIZED:
                raise _with_remedy(refused) from refused
            raise


def _with_remedy(refused: Refused) -> SourceError:
    remedy = REMEDIES.get(refused.status)
    return SourceError(f"{refused}; {remedy}" if remedy else str(refused))


def _read_record(shown: Document) -> tuple[str, _Record]:
    uuid, customer = _uuid(shown["uuid"]), _uuid(shown["enterprise_customer"])
    if uuid is None or customer is None:
        raise TypeError(f"uuid is {shown['uuid']!r:.80}, enterprise_customer {shown['enterprise_customer']!r:.80}")
    query_uuid, changed_ms = _uuid(shown.get("catalog_query_uuid")), time_ms(shown.get("catalog_modified"))
    return uuid, _Record(uuid, shown["title"], customer, query_uuid, changed_ms)


def _read_ids(answer: object, asked: set[str]) -> dict[str, str]:
    what = "queries of catalogs"
    by_id = answer.get("catalog_uuids_by_catalog_query_id") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(by_id, dict):
        raise SourceError(f"{what}: the answer is {answer!r:.80}, and has no catalog_uuids_by_catalog_query_id")
    if answer.get("num_distinct_query_ids") != len(by_id):
        told = answer.get("num_distinct_query_ids")
        raise SourceError(f"{what}: {len(by_id)} queries, and num_distinct_query_ids says {told!r:.80}")
    ids: dict[str, str] = {}
    for id_, uuids in by_id.items():
        if not id_.isdecimal() or not isinstance(uuids, list):
            raise SourceError(f"{what}: {id_!r:.80} is no id, or {uuids!r:.80} no list of catalogs")
        for text in uuids:
            uuid = _uuid(text)
            if uuid not in asked or uuid in ids:
                raise SourceError(f"{what}: {text!r:.80} was not asked about, or has two queries")
            ids[uuid] = id_
    return ids


def _read_query(shown: object, what: str) -> _Query:
    """A query, if the hash that is told is its filter's: a number that lost its last digits would be another filter."""
    if not isinstance(shown, dict) or "content_filter" not in shown:
        raise SourceError(f"{what}: the answer is {shown!r:.80}, and has no content_filter")
    content_filter, told = shown["content_filter"], shown.get("content_filter_hash")
    ours = query_hash(content_filter).hex()
    wrong = None
    if told not in (None, ours):
        wrong = f"the filter of its query hashes to {ours}, and the service says {told!r:.80}"
    return _Query(_uuid(shown.get("uuid")), shown.get("title"), content_filter, wrong)


def _uuid(value: object) -> str | None:
    return canonical_uuid(value) if isinstance(value, str) else None


def _seen(documents: list[Any]) -> _Seen:
    utm_source: str | None = None
    audit: bool | None = None
    for document in documents:
        links = [document.get(name) for name in ("enrollment_url", "marketing_url")]
        enrolment, marketing = (link if isinstance(link, str) else "" for link in links)
        if utm_source is None and (found := _SOURCE.search(enrolment) or _SOURCE.search(marketing)):
            utm_source = unquote(found[1])
        if _AUDIT.search(enrolment):
            audit = True
        elif enrolment and audit is None and _NO_PLACE not in enrolment:
            audit = False
    return _Seen(utm_source, audit)


def _offer(record: _Record, query: _Query | str, seen: _Seen, lms_name: str | None) -> Offer:
    lacks = query if isinstance(query, str) else query.wrong
    if isinstance(query, str) or lacks is not None:
        return Offer(record.uuid, None, lacks=lacks)
    name, why = _name(record.customer, seen.utm_source, lms_name)
    guessed = {"enterprise_customer_name": why, "enabled_course_modes": MODES}
    if seen.audit is None:
        guessed["publish_audit_enrollment_urls"] = NO_AUDIT
    body = {
        **DEFAULTS,
        "uuid": record.uuid,
        "title": record.title,
        "enterprise_customer": record.customer,
        "enterprise_customer_name": name,
        "publish_audit_enrollment_urls": bool(seen.audit),
        "content_filter": query.content_filter,
        "catalog_query_uuid": query.uuid,
        "query_title": query.title,
    }
    return Offer(record.uuid, body, record.changed_ms, guessed)


def _name(customer: str, utm_source: str | None, lms_name: str | None) -> tuple[str, str]:
    """The best guess of the name that a catalog has for its customer, of which links are all that anybody sees."""
    if utm_source is not None:
        if lms_name is not None and slugify(lms_name) == utm_source:
            return lms_name, LINKS_NAME
        return utm_source, LINKS_ALONE
    return (customer, NO_NAME) if lms_name is None else (lms_name, LMS_ALONE)
