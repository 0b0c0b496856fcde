"""The routes of content documents: a catalog's pages, a customer's document, what changed, and documents of no catalog.

A document is written, never read: its pieces are sent one after the other, and the envelope around them as bytes. Which
documents are meant is decided from the index; `shelves` fetches them, all from the generation that the request began
with.

What a key gives is a member of the catalog, the member that is the course of a run that the catalog contains, and the
members that are runs of a course; keys are folded as in containment. `generate_diff` compares exact keys with all
members, so that whatever it calls included is there when it is asked for by key.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import web
from pyroaring import BitMap

from sidecar.contract.index import Catalog, Content, Dictionary, Index, Query
from sidecar.contract.words import ContentType, canonical_uuid, iso_time
from sidecar.current import Generation
from sidecar.documents import Links, changed_at_ms, values_of, written
from sidecar.errors import NotPulledYet, UnknownCatalog
from sidecar.handlers import Reads, Route, Written
from sidecar.intake import absolute_url, raw_query
from sidecar.lookup import Answer, can_never_be_pulled
from sidecar.pages import asked_page
from sidecar.parameters import Refusal, catalog_uuid, customer_uuid, fields, pairs
from sidecar.roles import Access, Gate, Whose
from sidecar.schemas import (
    DETAIL,
    DOCUMENT,
    KEYS,
    NUMBER,
    REASON,
    REASONS,
    TEXT,
    TIME,
    UUID,
    Body,
    Operation,
    Parameter,
    Schema,
    closed,
    listed,
    one_of,
    opened,
    page,
    pages,
    short_page,
)
from sidecar.shelves import NOTHING, Document, Shelves
from sidecar.walks import Walks

MAX_PAGE_SIZE: Final = 100
# Today's service has no limit here; this is what one answer may cost the others.
MAX_BARE_PAGE_SIZE: Final = 1_000
MAX_KEYS: Final = 100
TOO_MANY_KEYS: Final = (
    f"get_content_metadata GET requests supports up to {MAX_KEYS}. "
    "If more contentkeys required, please use a POST body."
)
NO_KEYS: Final = "You must provide at least one of the following query parameters: content_keys."
TOO_MANY_KEYS_OF_DIFF: Final = (
    f"catalog_diff GET requests supports up to {MAX_KEYS}. If more content keys required, please use a POST body."
)
NOT_THEIRS: Final = "No matching content in any catalog for this customer"
NOWHERE: Final = "No ContentMetadata matches the given query."
EMPTY: Final = Content(BitMap(), BitMap(), BitMap())


class PageQuestion(NamedTuple):
    """Which part of which documents of a catalog; no `keys`: what it lists. `url` is the request's own, for links.

    `values`: how many times keys were given, each maybe several.
    """

    uuid: str
    keys: list[str] | None
    values: int
    parameters: dict[str, str]
    url: str
    restricted: bool


class DiffQuestion(NamedTuple):
    """The keys that the caller has of a catalog."""

    uuid: str
    keys: list[str]
    restricted: bool


class CustomerQuestion(NamedTuple):
    """A document by its key or uuid, as a customer's catalogs show it; without `urls` it has no links to enrol by."""

    customer: str
    identifier: str
    urls: bool
    restricted: bool


class BareQuestion(NamedTuple):
    """Documents by key or uuid as no catalog shows them, or all; `coerced`: of runs, their courses."""

    identifiers: list[str] | None
    coerced: bool
    parameters: dict[str, str]
    url: str


class Contents:
    """What the routes of content documents answer."""

    def __init__(self, shelves: Shelves, links: Links, walks: Walks) -> None:
        self._shelves = shelves
        self._links = links
        self._walks = walks

    async def page(self, generation: Generation, question: PageQuestion) -> Answer[Any]:
        """A page of a catalog's documents, or with traverse_pagination all of them."""
        index = generation.index
        catalog = _catalog(index, question.uuid)
        if question.values > MAX_KEYS:
            raise Refusal(400, TOO_MANY_KEYS)
        query, content = content_of(catalog, question.restricted)
        parameters = question.parameters
        if question.keys is None:
            chosen = content.listed
            walk = (catalog.uuid, None if query is None else query.hash, question.restricted)
            page, ordinals = self._walks.asked(walk, chosen, parameters, max_size=MAX_PAGE_SIZE)
        else:
            keys = (ordinal for key in question.keys for ordinal in index.dictionary.find(key))
            chosen = matching(index.dictionary, content, keys)
            page = asked_page(len(chosen), parameters, max_size=MAX_PAGE_SIZE)
            ordinals = list(chosen[page.start : page.start + page.size])
        whole = bool(parameters.get("traverse_pagination"))
        if whole:
            ordinals = list(chosen)
        overrides = overrides_of(query, question.restricted)
        values = values_of(catalog.record, index.customers.get(catalog.customer), self._links)
        head: dict[str, Any] = {"previous": None, "next": None, "count": page.count}
        if not whole:
            head = page.head(question.url)
        tail = {"uuid": catalog.uuid, "title": catalog.record.title, "enterprise_customer": catalog.customer}
        around = enveloped(head, tail)
        # One traversal must not push out of memory what all others ask for.
        shown = await self._shelves.stream(index, ordinals, overrides, values, around, spare=whole)
        return Answer(shown, None if query is None else query.pulled_at_ms)

    async def diff(self, generation: Generation, question: DiffQuestion) -> Answer[Any]:
        """How the keys that a caller has differ from what a catalog has."""
        index = generation.index
        catalog = _catalog(index, question.uuid)
        query, content = content_of(catalog, question.restricted)
        known, keys = index.dictionary.ordinals, index.dictionary.keys
        asked = {key: known.get(key) for key in question.keys}
        found = {key: ordinal for key, ordinal in asked.items() if ordinal is not None and ordinal in content.members}
        entries = await self._shelves.entries(index, found.values())
        # As in the documents themselves: callers compare the two.
        changed_ms = changed_at_ms(catalog.record, index.customers.get(catalog.customer))
        body = {
            "items_not_found": [{"content_key": key} for key in asked if key not in found],
            "items_not_included": [{"content_key": keys[o]} for o in content.members - BitMap(found.values())],
            "items_found": [
                {"content_key": key, "date_updated": iso_time(max(entries[ordinal].modified_ms, changed_ms))}
                for key, ordinal in found.items()
            ],
        }
        return Answer(body, None if query is None else query.pulled_at_ms)

    async def customers(self, generation: Generation, question: CustomerQuestion) -> Answer[Any]:
        """The document as the first of the customer's catalogs shows it that has it.

        What no pulled catalog has, one that was never pulled may have: NotPulledYet.
        """
        index = generation.index
        ordinals = named(index.dictionary, question.identifier)
        # On v1 a uuid has always meant the content that has it, and nothing else.
        exact = not question.restricted and canonical_uuid(question.identifier) is not None
        asked_ms, never_pulled = [], None
        for catalog in index.of_customer.get(question.customer, ()):
            try:
                query, content = content_of(catalog, question.restricted)
            except NotPulledYet as error:
                never_pulled = error
                continue
            if query is not None and query.pulled_at_ms is not None:
                asked_ms.append(query.pulled_at_ms)
            matches = content.members & BitMap(ordinals) if exact else matching(index.dictionary, content, ordinals)
            if matches:
                first = _course_first(index.dictionary, matches)
                document = await self._one(index, first, overrides_of(query, question.restricted))
                customer = index.customers.get(catalog.customer) if question.urls else None
                values = values_of(catalog.record, customer, self._links)
                text = b"".join(written(document.metadata, document.modified_ms, values, urls=question.urls))
                return Answer(Written(text), min(asked_ms, default=None))
        if never_pulled is not None:
            raise never_pulled
        raise Refusal(404, {"detail": NOT_THEIRS})

    async def bare(self, generation: Generation, question: BareQuestion) -> Answer[Any]:
        """A document as no catalog shows it."""
        found = await self._documented(generation.index, question)
        if not found:
            raise Refusal(404, {"detail": NOWHERE})
        first = found[0]
        document = await self._one(generation.index, first)
        return Answer(Written(b"".join(written(document.metadata, document.modified_ms, None))), None)

    async def list_bare(self, generation: Generation, question: BareQuestion) -> Answer[Any]:
        """A page of documents as no catalog shows them."""
        index = generation.index
        if question.identifiers is None:
            found = await self._shelves.documented(index)
            if question.coerced:
                found = [o for o in found if index.dictionary.types[o] != ContentType.COURSE_RUN]
        else:
            found = await self._documented(index, question)
        page = asked_page(len(found), question.parameters, max_size=MAX_BARE_PAGE_SIZE)
        head = {"count": page.count, "next": page.next(question.url), "previous": page.previous(question.url)}
        shown = await self._shelves.stream(index, page.cut(found), NOTHING, None, enveloped(head, {}))
        return Answer(shown, None)

    async def _one(self, index: Index, ordinal: int, overrides: Mapping[int, bytes] = NOTHING) -> Document:
        documents = [document async for document in self._shelves.documents(index, [ordinal], overrides)]
        return documents[0]

    async def _documented(self, index: Index, question: BareQuestion) -> list[int]:
        """The ordinals that the identifiers name and that have a document, in order."""
        dictionary = index.dictionary
        ordinals = BitMap([o for text in question.identifiers or () for o in named(dictionary, text)])
        if question.coerced:
            parents = {ordinal: dictionary.parents[ordinal] for ordinal in ordinals}
            ordinals = BitMap([ordinal if parent is None else parent for ordinal, parent in parents.items()])
        entries = await self._shelves.entries(index, ordinals)
        return [ordinal for ordinal, entry in entries.items() if entry.digest is not None]


def matching(dictionary: Dictionary, content: Content, ordinals: Iterable[int]) -> BitMap:
    """The members among the ordinals, those that are courses of contained runs among them, and runs of courses."""
    asked = BitMap(ordinals)
    parents = (dictionary.parents[ordinal] for ordinal in asked & content.contained)
    courses = BitMap([ordinal for ordinal in asked if dictionary.types[ordinal] == ContentType.COURSE])
    runs: list[int] = []
    if courses:
        parents_of = dictionary.parents
        runs = [o for o in content.members if (parent := parents_of[o]) is not None and parent in courses]
    return content.members & (asked | BitMap([parent for parent in parents if parent is not None]) | BitMap(runs))


def named(dictionary: Dictionary, identifier: str) -> tuple[int, ...]:
    """The ordinals that a key, or else the uuid of content, means."""
    found = dictionary.find(identifier)
    uuid = None if found else canonical_uuid(identifier)
    if uuid is None:
        return found
    # A program's key is its uuid in this form.
    found = dictionary.find(uuid)
    if found:
        return found
    ordinal = dictionary.of_uuid(uuid)
    return () if ordinal is None else (ordinal,)


def enveloped(head: Mapping[str, Any], tail: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """What stands around the `results` of an object: the members of head before them, and those of tail behind."""
    return orjson.dumps(head)[:-1] + b',"results":[', b"]," + orjson.dumps(tail)[1:] if tail else b"]}"


def _catalog(index: Index, uuid: str) -> Catalog:
    catalog = index.catalogs.get(uuid)
    if catalog is None:
        raise UnknownCatalog(uuid)
    return catalog


def content_of(catalog: Catalog, restricted: bool) -> tuple[Query | None, Content]:
    """What a catalog serves: nothing, ever, if its filter selects nothing; NotPulledYet before its first pull."""
    query = catalog.serving
    content = None if query is None else query.v2 if restricted else query.v1
    if content is not None:
        return query, content
    if can_never_be_pulled(catalog.wanted):
        return None, EMPTY
    raise NotPulledYet(f"never pulled: {catalog.uuid}")


def overrides_of(query: Query | None, restricted: bool) -> Mapping[int, bytes]:
    """The documents that differ for a query; what differs with restricted runs differs on top of what always does."""
    if query is None:
        return NOTHING
    always = dict(query.record.overrides_v1)
    return {**always, **dict(query.record.overrides_v2)} if restricted else always


def _course_first(dictionary: Dictionary, ordinals: BitMap) -> int:
    """A run's key gives its course, where that is a member, too."""
    courses = (ordinal for ordinal in ordinals if dictionary.types[ordinal] == ContentType.COURSE)
    return next(courses, ordinals[0])


def _split(given: Iterable[tuple[str, str]], name: str) -> list[str] | None:
    """All values of a parameter; a comma separates keys, because none has one. None if it was not given at all."""
    values = [value for given_name, value in given if given_name == name]
    return [key for value in values for key in value.split(",")] if values else None


def page_question(uuid: str, query: str, url: str, *, restricted: bool) -> PageQuestion:
    """What a query string asks for of a catalog's documents."""
    given = pairs(query)
    values = sum(name == "content_keys" for name, _ in given)
    return PageQuestion(uuid, _split(given, "content_keys"), values, dict(given), url, restricted)


async def _page_question(request: web.Request, restricted: bool) -> PageQuestion:
    uuid, query = catalog_uuid(request.match_info["uuid"]), raw_query(request)
    return page_question(uuid, query, absolute_url(request), restricted=restricted)


async def _diff_question(request: web.Request, restricted: bool) -> DiffQuestion:
    uuid = catalog_uuid(request.match_info["uuid"])
    if request.method != "POST":
        asked = [value for name, value in pairs(raw_query(request)) if name == "content_keys"]
        if not asked:
            raise Refusal(400, [NO_KEYS])
        if len(asked) > MAX_KEYS:
            raise Refusal(400, TOO_MANY_KEYS_OF_DIFF)
        keys: object = asked
    else:
        given = fields(request.headers.get("Content-Type", ""), await request.read())
        if not isinstance(given, Mapping):
            raise Refusal(400, {"detail": f"Invalid data. Expected a dictionary, but got {type(given).__name__}."})
        keys = given.get("content_keys") or []
    if isinstance(keys, str):
        # As in filter_content_items: a text where a list belongs is the list of its characters.
        keys = list(keys)
    if not isinstance(keys, list):
        raise Refusal(400, {"detail": "content_keys must be a list of content keys."})
    # Halves of surrogate pairs are in no key, and could not be written back.
    texts = [key.encode(errors="replace").decode() for key in keys if isinstance(key, str)]
    if len(texts) != len(keys):
        raise Refusal(400, {"detail": "content_keys must be a list of content keys."})
    return DiffQuestion(uuid, texts, restricted)


async def _customer_question(request: web.Request, restricted: bool) -> CustomerQuestion:
    skip = dict(pairs(raw_query(request))).get("skip_customer_fetch")
    customer = customer_uuid(request.match_info["uuid"])
    return CustomerQuestion(customer, request.match_info["key"], not skip, restricted)


async def _bare_question(request: web.Request, _: bool) -> BareQuestion:
    parameters = dict(pairs(raw_query(request)))
    coerced = bool(parameters.get("coerce_to_parent_course"))
    return BareQuestion([request.match_info["key"]], coerced, parameters, absolute_url(request))


async def _list_question(request: web.Request, _: bool) -> BareQuestion:
    given = pairs(raw_query(request))
    parameters = dict(given)
    coerced = bool(parameters.get("coerce_to_parent_course"))
    return BareQuestion(_split(given, "content_identifiers"), coerced, parameters, absolute_url(request))


_OF_A_CATALOG: Final[Mapping[str, Schema]] = {"uuid": UUID, "title": TEXT, "enterprise_customer": UUID}
_WHOLE: Final = closed(
    "AllContentMetadata",
    {
        "previous": {"type": "null"},
        "next": {"type": "null"},
        "count": NUMBER,
        "results": listed(DOCUMENT),
        **_OF_A_CATALOG,
    },
)
_PAGE: Final = Operation(
    "A page of a catalog's documents, or all of them.",
    {200: one_of(page("ContentMetadataPage", DOCUMENT, _OF_A_CATALOG), _WHOLE), 400: REASON},
    (
        Parameter(
            "content_keys",
            "Only documents of these keys, active or not; a run's key gives its course. May be repeated; a comma "
            "separates keys.",
            listed(TEXT, maxItems=MAX_KEYS),
        ),
        Parameter(
            "traverse_pagination", "Any value but an empty one, `False` too, has all documents on one page.", TEXT
        ),
        *pages(MAX_PAGE_SIZE),
    ),
)
_KEY: Final = closed("ContentKey", {"content_key": TEXT})
_DIFFERENCE: Final = closed(
    "Difference",
    {
        "items_not_found": listed(_KEY, description="What the caller has and the catalog has not."),
        "items_not_included": listed(_KEY, description="What the catalog has and the caller has not."),
        "items_found": listed(closed("FoundContent", {"content_key": TEXT, "date_updated": TIME})),
    },
)
_DIFFS: Final = {
    "GET": Operation(
        "How the given keys differ from what a catalog has.",
        {200: _DIFFERENCE, 400: one_of(REASONS, REASON)},
        (
            Parameter(
                "content_keys",
                "Exact keys. May be repeated.",
                listed(TEXT, minItems=1, maxItems=MAX_KEYS),
                required=True,
            ),
        ),
    ),
    "POST": Operation(
        "How the given keys, any number of them, differ from what a catalog has.",
        {200: _DIFFERENCE, 400: DETAIL},
        body=Body(
            "The keys; none at all if it is empty.",
            opened("ContentKeys", {"content_keys": {**KEYS, "type": ["array", "null"]}}),
            opened("ContentKeysForm", {"content_keys": TEXT}, text="The text is the list of its characters."),
            required=False,
        ),
    ),
}
_COERCE: Final = Parameter(
    "coerce_to_parent_course", "Any value but an empty one, `False` too, has courses in the place of their runs.", TEXT
)


def page_route(contents: Contents) -> Route:
    """The route of a catalog's pages."""
    return Route(
        path="/enterprise-catalogs/{uuid}/get_content_metadata/",
        formats=("json", "xml"),
        name="Enterprise Catalog Get Content Metadata",
        description="View for retrieving all the content metadata associated with a catalog.",
        reads=Reads(("GET", "HEAD"), _page_question, fetch=contents.page),
        redirects=False,
        gate=Gate(Access.LEARNER, Whose.CATALOG),
        operations={"GET": _PAGE},
    )


def content_routes(contents: Contents) -> tuple[Route, ...]:
    """The routes."""
    return (
        page_route(contents),
        Route(
            path="/enterprise-catalogs/{uuid}/generate_diff/",
            formats=("json", "api"),
            name="Catalog Diff",
            description="How the given content keys differ from what the catalog has.",
            tells=False,
            reads=Reads(("GET", "POST"), _diff_question, fetch=contents.diff),
            redirects=False,
            gate=Gate(Access.LEARNER, Whose.CATALOG),
            operations=_DIFFS,
        ),
        Route(
            path="/enterprise-customer/{uuid}/content-metadata/{key}/",
            formats=("json", "api"),
            name="Enterprise Customer Content Metadata",
            description="The document of a content key or uuid, as the enterprise's catalogs show it.",
            reads=Reads(("GET", "HEAD"), _customer_question, fetch=contents.customers),
            gate=Gate(Access.LEARNER, Whose.CUSTOMER),
            operations={
                "GET": Operation(
                    "The document as the first catalog of a customer shows it that has it.",
                    {200: DOCUMENT, 400: REASON},
                    (
                        Parameter(
                            "skip_customer_fetch",
                            "Any value but an empty one, `False` too, leaves out links to enrol by.",
                            TEXT,
                        ),
                    ),
                )
            },
        ),
        Route(
            path="/content-metadata/",
            formats=("json", "api"),
            name="Content Metadata List",
            description="Documents by content key or uuid, as no catalog shows them.",
            reads=Reads(("GET", "HEAD"), _list_question, fetch=contents.list_bare),
            suffixed=True,
            gate=Gate(Access.AUTHENTICATED),
            operations={
                "GET": Operation(
                    "Documents as no catalog shows them.",
                    {200: short_page("BareContentMetadataPage", DOCUMENT)},
                    (
                        Parameter(
                            "content_identifiers",
                            "Content keys or uuids; without it, everything. May be repeated; a comma separates them.",
                            KEYS,
                        ),
                        _COERCE,
                        *pages(MAX_BARE_PAGE_SIZE),
                    ),
                )
            },
        ),
        Route(
            path="/content-metadata/{key}/",
            formats=("json", "api"),
            name="Content Metadata Instance",
            description="The document of a content key or uuid, as no catalog shows it.",
            reads=Reads(("GET", "HEAD"), _bare_question, fetch=contents.bare),
            redirects=False,
            gate=Gate(Access.AUTHENTICATED),
            operations={"GET": Operation("A document as no catalog shows it.", {200: DOCUMENT}, (_COERCE,))},
        ),
    )
