"""What can be asked, once for both clients: which requests an operation makes, and what their answers come to. Pure.

An operation is a generator: it yields a Call, is sent the Answer, or thrown the CannotTell that came instead, and
returns its result. Whoever drives it does the I/O. An answer that is not of the form that was asked for is CannotTell,
too: whatever stands between may answer 200 to anything.
"""

import json
import logging
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, quote_plus, urlencode, urlsplit
from uuid import UUID

from sidecar.client.errors import CannotTell, ClientError, NotFound, error_of
from sidecar.client.exchange import Answer, Call, Version

T = TypeVar("T")
Json = dict[str, Any]
Steps = Generator[Call, Answer, T]
Diff = tuple[list[Json], list[Json], list[Json]]
Refreshed = tuple[dict[Any, str], list[Any]]
# The service takes request lines of 64 KiB; this leaves room for the rest of the line, and for what others put before.
MAX_QUERY_BYTES: Final = 48 * 1024
# As today's client has it, so that walks share their pages.
PAGE_SIZE: Final = 50
CATALOGS_PAGE_SIZE: Final = 1_000
# What a sidecar says of a catalog, byte for byte. Of whatever else is said the JSON is read.
_CONTAINED: Final = {b'{"contains_content_items":true}': True, b'{"contains_content_items":false}': False}
_USUAL_KEY: Final = re.compile(r"[A-Za-z0-9_.~+:-]*")
_log = logging.getLogger(__name__)


class HasUuid(Protocol):
    """A customer or a catalog, as Django's models are."""

    @property
    def uuid(self) -> Any: ...


Id = str | UUID | HasUuid
Ids = str | Iterable[str]


class Page(NamedTuple):
    """The documents of a page, and the query of the next one."""

    results: list[Json]
    next: str | None


class Operations:
    """The operations on one version of the API; catalogs and queries themselves are on v1 alone."""

    def __init__(self, version: Version) -> None:
        if version not in ("v1", "v2"):
            raise ValueError(f"{version!r} is no version of the API: v1 or v2")
        self._api = f"/api/{version}"

    def catalog_contains(self, catalog: Id, ids: Ids) -> Steps[bool]:
        path = f"{self._api}/enterprise-catalogs/{_segment(catalog)}/contains_content_items/"
        for query in _queries("course_run_ids", ids):
            call = Call("GET", path, query)
            if contained_of(call, (yield call)):
                return True
        return False

    def catalog_contains_one(self, catalog: Id, ids: Ids) -> Call | None:
        """All of `catalog_contains` as one request, whose answer `contained_of` reads, if `ids` are one key."""
        key = ids[0] if isinstance(ids, list) and len(ids) == 1 else ids
        if not isinstance(key, str):
            return None
        path = f"{self._api}/enterprise-catalogs/{_segment(catalog)}/contains_content_items/"
        return Call("GET", path, f"course_run_ids={_quoted(key)}")

    def customer_contains(self, customer: Id, ids: Ids) -> Steps[Json]:
        path = f"{self._api}/enterprise-customer/{_segment(customer)}/contains_content_items/"
        catalogs: dict[str, None] = {}
        contained = False
        for query in _queries("course_run_ids", ids, get_catalogs_containing_specified_content_ids="True"):
            call = Call("GET", path, query)
            body = _told(call, (yield call))
            contained = _member(call, body, "contains_content_items", bool) or contained
            catalogs |= dict.fromkeys(_member(call, body, "catalog_list", list))
        return {"contains_content_items": contained, "catalog_list": list(catalogs)}

    def page(self, catalog: Id, query: str) -> Steps[Page]:
        call = Call("GET", self._pages(catalog), query)
        body = _told(call, (yield call))
        return Page([_expected(call, row, dict) for row in _member(call, body, "results", list)], _next(call, body))

    @staticmethod
    def page_queries(keys: Sequence[str] | None, page_size: int = PAGE_SIZE) -> Iterator[str]:
        """The queries of the first pages: one, or one for each so many keys."""
        if not keys:
            yield urlencode({"page_size": page_size})
            return
        for start in range(0, len(keys), PAGE_SIZE):
            chosen = [("content_keys", key) for key in keys[start : start + PAGE_SIZE]]
            yield urlencode([("page_size", page_size), *chosen])

    def content_metadata(self, customer: Any, catalogs: Iterable[Id] | None, keys: Iterable[str] | None) -> Steps[Any]:
        chosen = list(catalogs or ())
        if not chosen:
            of_model = getattr(customer, "enterprise_customer_catalogs", None)
            chosen = (yield from self.catalogs_of(customer)) if of_model is None else list(of_model.all())
        wanted = None if keys is None else list(keys)
        documents: dict[str, Json] = {}
        for catalog in chosen:
            for query in self.page_queries(wanted):
                following: str | None = query
                while following is not None:
                    results, following = yield from self.page(catalog, following)
                    documents |= {_key_of(document): document for document in results}
        return list(documents.values())

    def catalogs_of(self, customer: Id) -> Steps[list[Id]]:
        """The uuids of a customer's catalogs, in order of creation."""
        found: list[Id] = []
        query: str | None = urlencode({"enterprise_customer": text_of(customer), "page_size": CATALOGS_PAGE_SIZE})
        while query is not None:
            call = Call("GET", "/api/v1/enterprise-catalogs/", query)
            body = _told(call, (yield call))
            found += [_member(call, row, "uuid", str) for row in _member(call, body, "results", list)]
            query = _next(call, body)
        return found

    def content_count(self, catalog: Id) -> Steps[int]:
        call = Call("GET", self._pages(catalog), urlencode({"page_size": 1}))
        return _member(call, _told(call, (yield call)), "count", int)

    def diff(self, catalog: Id, keys: Iterable[str], *, raises: bool) -> Steps[Diff]:
        path = f"{self._api}/enterprise-catalogs/{_segment(catalog)}/generate_diff/"
        call = Call("POST", path, body=_written({"content_keys": list(keys)}))
        body = yield from _or_empty(_object(call), raises)
        if not body:
            return [], [], []
        create, delete, found = "items_not_included", "items_not_found", "items_found"
        return _member(call, body, create, list), _member(call, body, delete, list), _member(call, body, found, list)

    def customer_document(self, customer: Id, content: str) -> Steps[Json]:
        path = f"{self._api}/enterprise-customer/{_segment(customer)}/content-metadata/{_segment(content)}/"
        return (yield from _object(Call("GET", path)))

    def document(self, content: str, *, coerced: bool) -> Steps[Json]:
        query = urlencode({"coerce_to_parent_course": True}) if coerced else ""
        return (yield from _object(Call("GET", f"{self._api}/content-metadata/{_segment(content)}", query)))

    def create(self, fields: Mapping[str, Any]) -> Steps[Json]:
        # The same uuid and body again is no other catalog; without a uuid it would be one.
        again = fields.get("uuid") is not None
        body = {name: value for name, value in fields.items() if name != "uuid" or again}
        return (yield from _object(Call("POST", "/api/v1/enterprise-catalogs/", "", _written(body), repeatable=again)))

    def retrieve(self, catalog: Id, *, raises: bool) -> Steps[Json]:
        return (yield from _or_empty(_object(Call("GET", _catalog(catalog))), raises))

    def update(self, catalog: Id, fields: Mapping[str, Any]) -> Steps[Json]:
        return (yield from _object(Call("PUT", _catalog(catalog), "", _written(fields))))

    def delete(self, catalog: Id) -> Steps[bool]:
        # Repeated it would find nothing to delete, and say so.
        call = Call("DELETE", _catalog(catalog), repeatable=False)
        _done(call, (yield call))
        return True

    def by_hash(self, query_hash: str, *, raises: bool) -> Steps[Json]:
        query = urlencode({"hash": query_hash})
        return (yield from _or_empty(_object(Call("GET", "/api/v1/catalog-queries/get_query_by_hash/", query)), raises))

    def query_hash(self, content_filter: object) -> Steps[str]:
        # As JSON: a form, which today's client sends, has neither types nor nesting.
        call = Call("GET", "/api/v1/catalog-queries/get_content_filter_hash/", "", _written(content_filter))
        return _expected(call, _told(call, (yield call)), str)

    def refresh(self, catalogs: Iterable[Id]) -> Steps[Refreshed]:
        tasks: dict[Any, str] = {}
        failed: list[Any] = []
        for catalog in catalogs:
            uuid = getattr(catalog, "uuid", catalog)
            call = Call("POST", f"{_catalog(catalog)}refresh_metadata/")
            try:
                tasks[uuid] = _member(call, _told(call, (yield call)), "async_task_id", str)
            except ClientError as error:
                _log.warning("a catalog was not refreshed: %s", error)
                failed.append(uuid)
        return tasks, failed

    def health(self) -> Steps[Json]:
        """The report of the process, also of one that is not well."""
        try:
            return (yield from _object(Call("GET", "/health")))
        except CannotTell as error:
            if not isinstance(error.body, dict):
                raise
            return error.body

    def _pages(self, catalog: Id) -> str:
        return f"{self._api}/enterprise-catalogs/{_segment(catalog)}/get_content_metadata/"


def _catalog(catalog: Id) -> str:
    return f"/api/v1/enterprise-catalogs/{_segment(catalog)}/"


def contained_of(call: Call, answer: Answer) -> bool:
    """What an answer says of a catalog. Raises what `error_of` makes of it, and CannotTell for another form."""
    contained = _CONTAINED.get(answer.body) if answer.status == 200 else None
    return _member(call, _told(call, answer), "contains_content_items", bool) if contained is None else contained


def text_of(of: Id) -> str:
    """The uuid of a customer or a catalog, or a key, as text."""
    return of if isinstance(of, str) else str(getattr(of, "uuid", of))


def _segment(of: Id) -> str:
    text = text_of(of)
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is neither a uuid nor a content key")
    return text if _USUAL_KEY.fullmatch(text) else quote(text, safe=":+")


def _queries(name: str, ids: Ids, **fixed: str) -> Iterator[str]:
    """As few query strings as have room for all ids; one also for none, which the service then refuses."""
    ending = urlencode(fixed) if fixed else ""
    pieces: list[str] = []
    size = len(ending)
    for one in [ids] if isinstance(ids, str) else ids:
        if not isinstance(one, str):
            # Of bytes these would be numbers, and a number is in no catalog: a no that means nothing.
            raise TypeError(f"{one!r} is no content key: a text is")
        piece = f"{name}={_quoted(one)}"
        if pieces and size + len(piece) + 1 > MAX_QUERY_BYTES:
            yield "&".join([*pieces, ending] if ending else pieces)
            pieces, size = [], len(ending)
        pieces.append(piece)
        size += len(piece) + 1
    yield "&".join([*pieces, ending] if ending else pieces)


def _quoted(key: str) -> str:
    """What quote_plus gives; in a tenth of the time for what keys are made of."""
    if _USUAL_KEY.fullmatch(key) is None:
        return quote_plus(key)
    return key.replace(":", "%3A").replace("+", "%2B")


def _key_of(document: Json) -> str:
    """What tells documents apart: a program by its uuid, and by their keys those that have one."""
    key = None if document.get("content_type") == "program" else document.get("key")
    name = key or document.get("uuid")
    if not isinstance(name, str):
        raise CannotTell(f"a document has neither key nor uuid: {document!r:.200}")
    return name


def _written(value: object) -> bytes:
    return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> str:
    if isinstance(value, UUID) or hasattr(value, "uuid"):
        return text_of(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _next(call: Call, page: Any) -> str | None:
    """The query of the page after one; its host is the service's name for itself, and may not be ours for it."""
    if not isinstance(page, dict) or "next" not in page:
        raise CannotTell(f"{call}: the answer does not say whether there is another page")
    if page["next"] is None:
        return None
    query = urlsplit(_member(call, page, "next", str)).query
    if query in ("", call.query):
        raise CannotTell(f"{call}: the next page would be the same again")
    return query


def _done(call: Call, answer: Answer) -> None:
    """Raises the error that an answer means, if it means one."""
    error = error_of(call, answer)
    if error is not None:
        raise error


def _told(call: Call, answer: Answer) -> Any:
    """What a successful answer says, as JSON."""
    _done(call, answer)
    try:
        # Decoded here: json.loads would look for the encoding first, and JSON has but one.
        return json.loads(answer.body.decode())
    except (ValueError, RecursionError) as error:
        raise CannotTell(
            f"{call}: the answer is no JSON", answer.status, answer.body.decode(errors="replace")
        ) from error


def _object(call: Call) -> Steps[Json]:
    return _expected(call, _told(call, (yield call)), dict)


def _or_empty(steps: Steps[Json], raises: bool) -> Steps[Json]:
    """What the steps come to; {} for what is not found, unless that is to be raised."""
    try:
        return (yield from steps)
    except NotFound:
        if raises:
            raise
        return {}


def _expected(call: Call, value: Any, kind: type[T]) -> T:
    # To isinstance a bool is a number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CannotTell(f"{call}: the answer has another form: {value!r:.200}")
    return value


def _member(call: Call, value: Any, name: str, kind: type[T]) -> T:
    return _expected(call, _expected(call, value, dict).get(name), kind)
