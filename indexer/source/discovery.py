"""The `discovery` source: search/all decides what is found, courses/, programs/ and course_review/ bring the documents.

A pull is complete or fails with the page and the numbers. It costs S requests for what everybody sees and, if the
filter allows restricted runs, S_shown for what shows them too. With N results and F forced courses not among them,

    S       = max(1, ceil(N / 100)) + (1 if N >= 10,000) + ceil(F / 100)
              + ceil(new courses / 50) + ceil(new programs / 50) + (max(1, ceil(reviews / 1,000)) if new)
    S_shown = the same without programs and reviews, for N and F as that search finds them

where new is what no pull has fetched in the last four hours; N and `new` are counted for each of both by itself. To
that come retries, listings that had to be taken again, and ceil(G / 50) for G forced courses that search/all does not
have. Page numbers do not reach beyond 10,000 results: then the first page is asked for once more at
/api/v2/search/all/, which is walked by `search_after`; one that ends in an empty page has one more.

Access tokens count nowhere: in Open edX it is the LMS that issues them, and discovery throttles its own API alone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from indexer.documents import BadDocument, Document
from indexer.source import CustomerDetails, Pulled, SourceError, Unpullable
from indexer.source.lms import Lms
from indexer.source.pages import Listing, TooMany, Turn, whole
from indexer.source.query import Hit, Query, forced_body, hit_alone, items, read_hit, read_query
from indexer.source.shelf import Shelf
from indexer.source.upstream import Door, Limits, Refused, Request, Tally, Tokens
from sidecar.clock import Clock
from sidecar.contract.words import ContentType
from sidecar.settings import LmsSettings, SourceSettings

RESULT_WINDOW: Final = 10_000
"""Elasticsearch's own limit of page-numbered results, and where it stops counting unless told to go on."""
SEARCH_PAGE: Final = 100
KEYS_A_CALL: Final = 50
REVIEW_PAGE: Final = 1000
ENOUGH_MISSING: Final = 10
NAMED: Final = 5

_SEARCH: Final = {
    "page_size": str(SEARCH_PAGE),
    "exclude_expired_course_run": "True",
    "include_learner_pathways": "True",
}
_ORDERED: Final = {"ordering": "aggregation_key,start"}
"""For v1 alone: v2's own order has no ties, and `search_after` skips results where there are some."""
_SHOWN: Final = {"include_restricted": "custom-b2b-enterprise"}
_ALL_REVIEWS: Final = "all"


@dataclass(frozen=True, slots=True)
class _View:
    """What discovery shows for a query, without or with restricted runs, and the full documents, compressed."""

    hits: Sequence[Hit]
    forced: Sequence[Hit]
    full: Mapping[str, bytes | None]
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Full:
    """Where full documents come from: the resource, its parameter for keys, a document's key, further parameters."""

    name: str
    keys: str
    key: str
    params: Mapping[str, str]


_COURSES: Final = _Full("courses/", "keys", "key", {})
_SHOWN_COURSES: Final = _Full("courses/", "keys", "key", _SHOWN)
_PROGRAMS: Final = _Full("programs/", "uuids", "uuid", {"extended": "True"})


class DiscoverySource:
    """Implements Source over course-discovery, and over the LMS for customers if `lms.url` is set; else none is known.

    The LMS is asked with the same token and the same patience; its requests take nothing from discovery's budget.
    """

    def __init__(self, source: SourceSettings, lms: LmsSettings, clock: Clock) -> None:
        unmetered = Limits(source.timeout_s, source.retries, source.concurrency)
        limits = Limits(source.timeout_s, source.retries, source.concurrency, source.requests_per_hour)
        self._clock = clock
        self._restricted_runs = source.restricted_runs
        self._tokens = Tokens(source.oauth_url, source.oauth_client_id, source.oauth_client_secret, unmetered, clock)
        self._door = Door(source.url, limits, clock, self._tokens)
        self._lms = Lms(Door(lms.url, unmetered, clock, self._tokens)) if lms.url else None
        self._courses = self._shelf(_COURSES)
        self._shown_courses = self._shelf(_SHOWN_COURSES)
        self._programs = self._shelf(_PROGRAMS)
        self._reviews = Shelf(self._fetch_reviews, 1, clock)

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        query, tally = read_query(content_filter), Tally()
        plain = await self._view(query, since_ms, tally, shown=False)
        shown = None
        if query.allowed and self._restricted_runs:
            shown = await self._view(query, since_ms, tally, shown=True)
        reviews = None
        views = (plain,) if shown is None else (plain, shown)
        if any(hit.type is ContentType.COURSE for view in views for hit in (*view.hits, *view.forced)):
            reviews = (await self._reviews.get([_ALL_REVIEWS], since_ms, tally))[_ALL_REVIEWS]
        return await asyncio.to_thread(_pulled, query, plain, shown, reviews, tally.requests)

    async def customer(self, uuid: str) -> CustomerDetails | None:
        return None if self._lms is None else await self._lms.customer(uuid)

    async def close(self) -> None:
        await self._door.close()
        if self._lms is not None:
            await self._lms.close()
        await self._tokens.close()

    async def _view(self, query: Query, since_ms: int, tally: Tally, *, shown: bool) -> _View:
        shelf = self._shown_courses if shown else self._courses
        what = "search/all with restricted runs" if shown else "search/all"
        found: dict[str, Hit | None] = {}
        if query.body is not None:
            found = await self._search(query.body, what, tally, shown=shown)
        hits = [hit for hit in found.values() if hit is not None]
        if others := [key for key in query.forced if key not in found]:
            found |= await self._search(forced_body(others), f"{what} for forced courses", tally, shown=shown)
        unsearched = [key for key in others if key not in found]
        for key, body in (await shelf.get(unsearched, since_ms, tally)).items():
            found[key] = None if body is None else hit_alone(key, body)
        forced = [hit for key in query.forced if (hit := found[key]) is not None and hit.type is ContentType.COURSE]
        courses = {hit.key: None for hit in (*hits, *forced) if hit.type is ContentType.COURSE}
        programs = {hit.key: None for hit in hits if hit.type is ContentType.PROGRAM}
        full = await shelf.get(courses, since_ms, tally)
        warnings = _missing(shelf, _COURSES.name, full)
        full_programs = await self._programs.get(programs, since_ms, tally)
        warnings += _missing(self._programs, _PROGRAMS.name, full_programs)
        return _View(hits, forced, full | full_programs, warnings)

    async def _search(self, body: bytes, what: str, tally: Tally, *, shown: bool) -> dict[str, Hit | None]:
        params = {**_SEARCH, **_SHOWN} if shown else _SEARCH

        async def ask(turn: Turn) -> object:
            paging = {**_ORDERED, "page": str(turn.number)}
            request = Request(f"{what} page {turn.number}", "POST", "/api/v1/search/all/", {**params, **paging}, body)
            try:
                return await self._door.ask(request, tally)
            except Refused as refused:
                if refused.status == 400 and turn.number == 1:
                    raise Unpullable(f"discovery does not take the content filter: {refused.body}") from refused
                raise

        async def ask_v2(turn: Turn) -> object:
            page = f"{what} v2 page {turn.number}"
            paging = {} if turn.next is None else {"search_after": _cursor(turn.next, page)}
            return await self._door.ask(Request(page, "POST", "/api/v2/search/all/", {**params, **paging}, body), tally)

        try:
            return await whole(Listing(what, ask, read_hit, SEARCH_PAGE, RESULT_WINDOW), self._clock)
        except TooMany:
            return await whole(Listing(f"{what} v2", ask_v2, read_hit, SEARCH_PAGE), self._clock)

    def _shelf(self, kind: _Full) -> Shelf:
        async def fetch(keys: Sequence[str], tally: Tally) -> Mapping[str, bytes]:
            return await self._fetch(kind, keys, tally)

        return Shelf(fetch, KEYS_A_CALL, self._clock)

    async def _fetch(self, kind: _Full, keys: Sequence[str], tally: Tally) -> Mapping[str, bytes]:
        """The full documents of up to 50 keys, as JSON; a key with a comma is none, and would be taken for two."""
        asked = [key for key in keys if "," not in key]
        if not asked:
            return {}
        what = f"{kind.name} from {asked[0]}"
        given = {kind.keys: ",".join(asked), **kind.params, "limit": str(KEYS_A_CALL)}

        async def ask(turn: Turn) -> object:
            params = {**given, "offset": str(turn.seen)}
            return await self._door.ask(
                Request(f"{what} page {turn.number}", "GET", f"/api/v1/{kind.name}", params), tally
            )

        def read(document: Document) -> tuple[str, bytes]:
            return _text(document, kind.key), orjson.dumps(document)

        try:
            return await whole(Listing(what, ask, read, reach=len(asked) + 1), self._clock)
        except TooMany as error:
            raise SourceError(f"{error}, and {len(asked)} were asked for") from error

    async def _fetch_reviews(self, keys: Sequence[str], tally: Tally) -> Mapping[str, bytes]:
        """The reviews of all courses: few and small, so that one listing costs less than asking course by course."""

        async def ask(turn: Turn) -> object:
            params = {"page_size": str(REVIEW_PAGE), "page": str(turn.number)}
            return await self._door.ask(
                Request(f"course_review/ page {turn.number}", "GET", "/api/v1/course_review/", params), tally
            )

        def read(document: Document) -> tuple[str, Any]:
            return _text(document, "course_key"), document

        reviews = await whole(Listing("course_review/", ask, read), self._clock)
        return dict.fromkeys(keys, orjson.dumps(reviews))


def _pulled(query: Query, plain: _View, shown: _View | None, reviews: bytes | None, requests: int) -> Pulled:
    members = items(plain.hits, plain.full, reviews, restricted=False)
    forced = items(plain.forced, plain.full, reviews, restricted=False)
    restricted = None
    warnings = list(plain.warnings)
    if shown is not None:
        hits = {hit.key: hit for hit in (*shown.hits, *shown.forced)}
        made = items(hits.values(), shown.full, reviews, restricted=True)
        restricted = tuple(item for item in made if not item.restricted or item.key in query.allowed)
        warnings += shown.warnings
    exist = {item.key for item in forced}
    return Pulled(
        members=tuple(item for item in members if not item.restricted),
        restricted=restricted,
        forced=forced,
        warnings=(
            *(f"key {key!r} is unknown to search/all and ignored" for key in query.ignored),
            *(f"force-included course {key!r} does not exist" for key in query.forced if key not in exist),
            *dict.fromkeys(warnings),
        ),
        requests=requests,
    )


def _missing(shelf: Shelf, name: str, full: Mapping[str, bytes | None]) -> list[str]:
    """The warning about documents that search/all has and `full` has not. Raises SourceError if they are most."""
    missing = [key for key, body in full.items() if body is None]
    if not missing:
        return []
    numbers = f"{name} does not have {len(missing)} of {len(full)} that search/all has"
    if len(missing) >= ENOUGH_MISSING and 2 * len(missing) > len(full):
        shelf.forget(missing)
        raise SourceError(numbers)
    named = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
    return [f"{numbers}; they are shown with what search/all says of them: {named}"]


def _cursor(next_: str, page: str) -> str:
    """Where v2 goes on. Only this is taken from `next`: whatever host it names is not asked."""
    cursor = parse_qs(next_.partition("?")[2]).get("search_after")
    if not cursor:
        raise SourceError(f"{page}: `next` of the page before it has no search_after")
    return cursor[0]


def _text(document: Document, name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise BadDocument(f"{name} is {value!r:.80}, and not a text")
    return value
