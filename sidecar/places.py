"""What a path leads to in one generation, as the fast lane answers it: the bytes that the handler would have sent.

An answer is made by the same functions that the handler calls, of what is in memory; where those would wait for
anything, or refuse, there is no answer here, and the handler gives it.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import orjson
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from pyroaring import BitMap

from sidecar.containment import ContainsQuestion, ask_customer
from sidecar.content import PageQuestion, page_question
from sidecar.contract.words import age_s
from sidecar.current import Generation
from sidecar.errors import CatalogError
from sidecar.lookup import Answer
from sidecar.metrics import Seen
from sidecar.parameters import Refusal, ids
from sidecar.streams import Stream

# A vector of buffers is sent as it is.
Sent = bytes | list[bytes]
FindOrdinals = Callable[[bytes], Sequence[int] | None]
AskPage = Callable[[Generation, PageQuestion], Awaitable[Answer[Any]]]
VERSION: Final = b" HTTP/1.1"
# So many questions of pages are kept with each catalog, because to read one takes longer than to look it up.
MAX_QUESTIONS: Final = 64
MAX_QUERY_BYTES: Final = 512
_YES: Final = orjson.dumps({"contains_content_items": True})
_NO: Final = orjson.dumps({"contains_content_items": False})
_SERVER: Final = SERVER_SOFTWARE.encode()
# What RFC 3986 lets a query have; anything else is for the ordinary parser to take or refuse.
_QUERY: Final = re.compile(rb"([A-Za-z0-9\-._~!$'()*+,;:@/?%&=]+) HTTP/1\.1")
T = TypeVar("T")


class Place(Protocol):
    """What a path leads to. `customer`: whose it is; `seen`: where its answers are counted."""

    customer: str
    seen: Seen

    def answer(self, query: bytes, host: str, now_ms: int) -> Sent | None:
        """The whole answer to a plain query, which ends in VERSION; None if there is none without the handler."""
        ...


class Head:
    """The heads of answers in one generation; `until_ms`: when the last one that was made says something else."""

    __slots__ = ("_generation", "_oldest_ms", "_tail", "until_ms")

    def __init__(self, generation: int, oldest_ms: int | None, tail: bytes) -> None:
        self._generation = generation
        self._oldest_ms = oldest_ms
        self._tail = tail
        self.until_ms = 0

    def of(self, length: int, now_ms: int) -> bytes:
        """The head of a body of this length, as of now."""
        self.until_ms = now_ms + 1000 - now_ms % 1000
        age = b""
        if self._oldest_ms is not None:
            age = b"X-Catalog-Age: %d\r\n" % age_s(self._oldest_ms, now_ms)
            self.until_ms = min(self.until_ms, now_ms + 1000 - (now_ms - self._oldest_ms) % 1000)
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nAllow: GET, HEAD, OPTIONS\r\n"
            b"Cache-Control: no-store\r\nX-Catalog-Generation: %d\r\n%bContent-Length: %d\r\n"
            b"Date: %b\r\nServer: %b\r\n%b"
        ) % (self._generation, age, length, rfc822_formatted_time().encode(), _SERVER, self._tail)


class CatalogPlace:
    """Whether a catalog contains something: both answers, written once for each second."""

    __slots__ = ("_contained", "_find", "_head", "_no", "_since_ms", "_until_ms", "_yes", "customer", "seen")

    def __init__(self, customer: str, seen: Seen, contained: BitMap, head: Head, find: FindOrdinals) -> None:
        self.customer = customer
        self.seen = seen
        self._contained = contained
        self._head = head
        self._find = find
        self._yes = self._no = b""
        self._since_ms = self._until_ms = 0

    def answer(self, query: bytes, host: str, now_ms: int) -> bytes | None:
        ordinals = self._find(query)
        if ordinals is None:
            return None
        if not self._since_ms <= now_ms < self._until_ms:
            self._write(now_ms)
        for ordinal in ordinals:
            if ordinal in self._contained:
                return self._yes
        return self._no

    def _write(self, now_ms: int) -> None:
        self._yes = self._head.of(len(_YES), now_ms) + _YES
        self._no = self._head.of(len(_NO), now_ms) + _NO
        self._since_ms, self._until_ms = now_ms, self._head.until_ms


class CustomerPlace:
    """Whether a customer's catalogs contain something, and which do; asked as the handler asks."""

    __slots__ = ("_find", "_generation", "_restricted", "_tail", "customer", "seen")

    def __init__(
        self,
        customer: str,
        seen: Seen,
        generation: Generation,
        tail: bytes,
        find: FindOrdinals,
        *,
        restricted: bool,
    ) -> None:
        self.customer = customer
        self.seen = seen
        self._generation = generation
        self._restricted = restricted
        self._tail = tail
        self._find = find

    def answer(self, query: bytes, host: str, now_ms: int) -> bytes | None:
        if self._find(query) is None:
            return None
        keys, wants_catalogs = ids(query[: -len(VERSION)].decode())
        question = ContainsQuestion(self.customer, keys, wants_catalogs, self._restricted)
        try:
            found = ask_customer(self._generation, question)
        except CatalogError:
            return None
        body = orjson.dumps(found.value)
        return Head(self._generation.pointer.generation, found.oldest_ms, self._tail).of(len(body), now_ms) + body


class PagePlace:
    """A catalog's documents, page by page, where memory has all of a page."""

    __slots__ = ("_ask", "_generation", "_path", "_questions", "_restricted", "_tail", "_uuid", "customer", "seen")

    def __init__(
        self,
        customer: str,
        seen: Seen,
        generation: Generation,
        tail: bytes,
        ask: AskPage,
        *,
        path: str,
        uuid: str,
        restricted: bool,
    ) -> None:
        self.customer = customer
        self.seen = seen
        self._generation = generation
        self._tail = tail
        self._ask = ask
        self._path = path
        self._uuid = uuid
        self._restricted = restricted
        self._questions: dict[tuple[bytes, str], PageQuestion] = {}

    def answer(self, query: bytes, host: str, now_ms: int) -> list[bytes] | None:
        question = self._questions.get((query, host)) or self._read(query, host)
        if question is None:
            return None
        try:
            found = at_once(self._ask(self._generation, question))
        except (Refusal, CatalogError):
            return None
        if found is None or not isinstance(found.value, Stream):
            return None
        stream = found.value
        vector = at_once(stream.vectors().__anext__())
        if vector is None or len(stream.opening) + vector[0] != stream.length:
            return None
        head = Head(self._generation.pointer.generation, found.oldest_ms, self._tail).of(stream.length, now_ms)
        return [head + stream.opening, *vector[1]]

    def _read(self, query: bytes, host: str) -> PageQuestion | None:
        text = plain_query(query)
        if text is None:
            return None
        question = page_question(self._uuid, text, f"http://{host}{self._path}?{text}", restricted=self._restricted)
        if len(self._questions) >= MAX_QUESTIONS:
            self._questions.clear()
        self._questions[query, host] = question
        return question


def plain_query(query: bytes) -> str | None:
    """The text of a query that ends in VERSION; None for one that is long, odd, or asks for a format."""
    match = _QUERY.fullmatch(query) if len(query) <= MAX_QUERY_BYTES else None
    return None if match is None or b"format" in query else match[1].decode()


def at_once(awaitable: Awaitable[T]) -> T | None:
    """What an awaitable returns if it does so without waiting; None if it would wait: then it is given up."""
    steps = cast(Coroutine[Any, Any, T], awaitable)
    try:
        steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    steps.close()
    return None
