"""A course-discovery for tests: its routes, the LMS's and the token endpoint's, on loopback over a corpus in memory.

Faults come in two ways: `faults` answer instead of it, or not at all, and `spoil` changes an answer before it is sent.
"""

import asyncio
import json
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.test_utils import TestServer

from indexer.documents import Document, without_restricted
from indexer.filters import FilterError, compile_filter
from indexer.source.discovery import DiscoverySource
from sidecar.settings import LmsSettings, SourceSettings
from tests.fakes import FakeClock, Json

CLIENT_ID: Final = "indexer"
SECRET: Final = "hush-hush+42"
SEARCH: Final = "/api/v1/search/all/"
SEARCH_V2: Final = "/api/v2/search/all/"
COURSES: Final = "/api/v1/courses/"
PROGRAMS: Final = "/api/v1/programs/"
REVIEWS: Final = "/api/v1/course_review/"
TOKEN: Final = "/oauth2/access_token"

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
Spoil = Callable[[web.Request, Json], Any]


class RecordingClock(FakeClock):
    """A FakeClock that remembers what it was asked to sleep, and lets others run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(seconds)
        await asyncio.sleep(0)


class Held:
    """Requests that wait for their answers."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._arrivals: asyncio.Queue[str] = asyncio.Queue()

    async def arrived(self, number: int) -> list[str]:
        """The paths of the next requests to come, once there are so many."""
        return [await self._arrivals.get() for _ in range(number)]

    def release(self) -> None:
        self._released.set()

    async def fault(self, request: web.Request) -> None:
        self._arrivals.put_nowait(request.path)
        await self._released.wait()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    raw_query: str
    body: bytes
    authorization: str | None


class FakeDiscovery:
    """Serves `corpus`, which may be changed between requests. `asked` has every request, in order."""

    def __init__(self, corpus: Json) -> None:
        self.corpus = corpus
        self.asked: list[Asked] = []
        self._found: dict[Any, list[Document]] = {}
        self.faults: list[Fault] = []
        self.spoil: Spoil = lambda request, answer: answer
        self.next_base: str | None = None
        self.expires_in: Any = 36_000
        self.tokens_issued = 0
        self.token = ""
        self.under_way = 0
        self.most_under_way = 0
        self.url = ""
        self.app = web.Application(client_max_size=64 << 20, middlewares=[self._middleware])
        for path in (SEARCH, SEARCH_V2):
            self.app.router.add_post(path, self._search)
        self.app.router.add_get(COURSES, self._courses)
        self.app.router.add_get(PROGRAMS, self._programs)
        self.app.router.add_get(REVIEWS, self._reviews)
        self.app.router.add_get("/enterprise/api/v1/enterprise-customer/{uuid}/", self._customer)
        self.app.router.add_post(TOKEN, self._issue)

    def times(self, path: str) -> int:
        """How many requests came for a path."""
        return sum(asked.path == path for asked in self.asked)

    def upstream(self) -> int:
        """How many requests came in all, but for tokens."""
        return len(self.asked) - self.times(TOKEN)

    def fail(self, path: str, *answers: web.Response | int, page: int | None = None) -> None:
        """Gives these answers, or statuses, to the next requests for a path (and of this page), one each."""
        left = list(answers)

        async def fault(request: web.Request) -> web.StreamResponse | None:
            if request.path != path or (page is not None and request.query.get("page") != str(page)) or not left:
                return None
            answer = left.pop(0)
            return web.json_response({"detail": "fault"}, status=answer) if isinstance(answer, int) else answer

        self.faults.append(fault)

    @contextmanager
    def held(self) -> Iterator["Held"]:
        """While this is open no request is answered until it is released."""
        held = Held()
        self.faults.insert(0, held.fault)
        try:
            yield held
        finally:
            held.release()
            self.faults.remove(held.fault)

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        query = dict(request.query)
        self.asked.append(
            Asked(
                request.method,
                request.path,
                query,
                request.rel_url.raw_query_string,
                await request.read(),
                authorization,
            )
        )
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            for fault in list(self.faults):
                answer = await fault(request)
                if answer is not None:
                    return answer
            if request.path != TOKEN and (not self.token or authorization != f"JWT {self.token}"):
                return web.json_response({"detail": "Signature has expired."}, status=401)
            return await handler(request)
        finally:
            self.under_way -= 1

    async def _issue(self, request: web.Request) -> web.Response:
        form = await request.post()
        wanted = {
            "grant_type": "client_credentials",
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "token_type": "jwt",
        }
        if dict(form) != wanted:
            return web.json_response({"error": "invalid_client", "given": str(dict(form))}, status=401)
        self.tokens_issued += 1
        self.token = f"very.secret.token-{self.tokens_issued}"
        answer = {"access_token": self.token, "expires_in": self.expires_in, "token_type": "JWT", "scope": "read"}
        return web.json_response(self.spoil(request, answer))

    async def _search(self, request: web.Request) -> web.Response:
        assert request.query["exclude_expired_course_run"] == "True"
        assert request.query["include_learner_pathways"] == "True"
        body = await request.read()
        search = (request.path, body, request.query.get("include_restricted"))
        try:
            if "search_after" not in request.query and request.query.get("page", "1") == "1":
                self._found[search] = self._find(request, json.loads(body))
        except FilterError as error:
            return web.json_response({"detail": f"cannot search for {error}"}, status=400)
        found = self._found[search]
        if request.path == SEARCH_V2:
            return self._page_after(request, found)
        assert request.query["ordering"] == "aggregation_key,start"
        if int(request.query["page"]) * int(request.query["page_size"]) > 10_000:
            return web.json_response({"detail": "Result window is too large"}, status=500)
        return self._numbered(request, found)

    def _find(self, request: web.Request, content_filter: Json) -> list[Document]:
        text = content_filter.pop("q", "")
        matches = compile_filter(content_filter).matches
        documents = [*self._documents(request), *(p["search"] for p in self.corpus["pathways"])]
        found = [d for d in documents if matches(d) and text in d.get("title", "")]
        place = _place if request.path == SEARCH_V2 else _tied_place
        return sorted(found, key=place)

    def _documents(self, request: web.Request) -> Iterator[Document]:
        shown = request.query.get("include_restricted") == "custom-b2b-enterprise"
        for course in self.corpus["courses"]:
            yield course["search"] if shown else without_restricted(course["search"])
            yield from (run for run in course["runs"] if shown or not run.get("restriction_type"))
        yield from (program["search"] for program in self.corpus["programs"])
        yield from self.corpus.get("persons", ())

    def _page_after(self, request: web.Request, found: list[Document]) -> web.Response:
        assert "ordering" not in request.query
        assert "page" not in request.query
        size = int(request.query["page_size"])
        after = json.loads(request.query.get("search_after", "[]"))
        left = found[bisect_right(found, after, key=_place) :]
        results = [{**d, "sort": _place(d), "aggregation_uuid": f"x:{d['uuid']}"} for d in left[:size]]
        more = {"search_after": json.dumps(results[-1]["sort"])} if results and len(found) > size else None
        return self._answer(request, len(found), results, more)

    async def _courses(self, request: web.Request) -> web.Response:
        shown = request.query.get("include_restricted") == "custom-b2b-enterprise"
        keys = request.query["keys"].split(",")
        full = [c["full"] for c in self.corpus["courses"] if c["full"] and c["full"]["key"] in keys]
        return self._offset(request, [d if shown else without_restricted(d) for d in full])

    async def _programs(self, request: web.Request) -> web.Response:
        assert request.query["extended"] == "True"
        uuids = request.query["uuids"].split(",")
        return self._offset(request, [p["full"] for p in self.corpus["programs"] if p["full"]["uuid"] in uuids])

    async def _reviews(self, request: web.Request) -> web.Response:
        return self._numbered(request, self.corpus["reviews"])

    async def _customer(self, request: web.Request) -> web.Response:
        found = [c for c in self.corpus["customers"] if c["uuid"] == request.match_info["uuid"]]
        if not found:
            return web.json_response({"detail": "Not found."}, status=404)
        return web.json_response(self.spoil(request, found[0]))

    def _numbered(self, request: web.Request, found: list[Document]) -> web.Response:
        page, size = int(request.query["page"]), int(request.query["page_size"])
        more = {"page": str(page + 1)} if page * size < len(found) else None
        return self._answer(request, len(found), found[(page - 1) * size : page * size], more)

    def _offset(self, request: web.Request, found: list[Document]) -> web.Response:
        limit, offset = int(request.query["limit"]), int(request.query["offset"])
        more = {"offset": str(offset + limit)} if offset + limit < len(found) else None
        return self._answer(request, len(found), found[offset : offset + limit], more)

    def _answer(
        self, request: web.Request, count: int, results: list[Any], more: dict[str, str] | None
    ) -> web.Response:
        base = f"{self.next_base}{request.path}" if self.next_base else request.url
        next_ = None if more is None else str(request.url.with_query({**request.query, **more}))
        if next_ is not None and self.next_base is not None:
            next_ = f"{base}?{next_.partition('?')[2]}"
        answer = {"count": count, "next": next_, "previous": None, "results": results}
        return web.json_response(self.spoil(request, answer))


def _place(document: Document) -> list[str]:
    """Where /api/v2/ has a document: in an order without ties."""
    return [str(document.get("start") or ""), str(document.get("key") or document["uuid"])]


def _tied_place(document: Document) -> list[str]:
    return [document["aggregation_key"], str(document.get("start") or "")]


@asynccontextmanager
async def served(corpus: Json) -> AsyncIterator[FakeDiscovery]:
    """A FakeDiscovery on a free port of loopback; its `url` is known inside."""
    fake = FakeDiscovery(corpus)
    server = TestServer(fake.app)
    await server.start_server()
    fake.url = str(server.make_url("/")).rstrip("/")
    try:
        yield fake
    finally:
        await server.close()


@asynccontextmanager
async def source_over(
    fake: FakeDiscovery, clock: FakeClock, *, lms: bool = True, **settings: Any
) -> AsyncIterator[DiscoverySource]:
    """A source that pulls from a FakeDiscovery."""
    section = SourceSettings(
        kind="discovery",
        url=fake.url,
        oauth_url=fake.url + TOKEN,
        oauth_client_id=CLIENT_ID,
        oauth_client_secret=SECRET,
        **settings,
    )
    source = DiscoverySource(section, LmsSettings(url=fake.url if lms else ""), clock)
    try:
        yield source
    finally:
        await source.close()
