"""What a path leads to in one generation, as the fast lane answers it: the bytes that the handler would have sent.

An answer is made by the same functions that the handler calls, of what is in memory; where those would wait for
anything, or refuse, there is no answer here, and the handler gives it.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
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
from sidecar.handlers import Route, headers_of
from sidecar.lookup import Answer
from sidecar.metrics import Seen
from sidecar.parameters import Refusal, ids
from sidecar.streams import Stream

# A vector of buffers is sent as it is.
Sent = bytes | list[bytes]
FindOrdinals = Callable[[bytes], Sequence[int] | None]
# By the path, the query and the host that is asked.
Questions = dict[tuple[str, bytes, str], PageQuestion]
AskPage = Callable[[Generation, PageQuestion], Awaitable[Answer[Any]]]
# So many questions of pages are kept for all catalogs, because to read one takes longer than to look it up.
MAX_QUESTIONS: Final = 1024
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
        """The whole answer to a plain query, which the version of HTTP follows; None if that is for the handler."""
        ...


class Heads:
    """The heads of a route's answers in one generation. What changes by the second is written once for all places."""

    __slots__ = ("_tail", "aged", "ageless", "no", "second", "yes")

    def __init__(self, route: Route, generation: int, tail: bytes) -> None:
        """`tail`: the last lines of every head, and the empty one."""
        headers = headers_of(route) | {"X-Catalog-Generation": str(generation)}
        lines = ("HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers.items()))
        self.ageless = "\r\n".join(lines).encode()
        self.aged = self.ageless + b"\r\nX-Catalog-Age: "
        self._tail = tail
        # A second, and what follows the age in it in an answer to a question of containment, the body included.
        self.second = -1
        self.yes = self.no = b""

    def turn(self, second: int) -> None:
        """Has `yes` and `no` be those of this second."""
        self.second = second
        self.yes, self.no = (self._rest(len(body)) + body for body in (_YES, _NO))

    def of(self, length: int, oldest_ms: int | None, now_ms: int) -> bytes:
        """The head of a body of this length."""
        before = self.ageless if oldest_ms is None else b"%b%d" % (self.aged, age_s(oldest_ms, now_ms))
        return before + self._rest(length)

    def _rest(self, length: int) -> bytes:
        date = rfc822_formatted_time().encode()
        return b"\r\nContent-Length: %d\r\nDate: %b\r\nServer: %b\r\n%b" % (length, date, _SERVER, self._tail)


@dataclass(slots=True)
class CatalogPlace:
    """Whether a catalog contains something."""

    customer: str
    seen: Seen
    heads: Heads
    contained: BitMap
    pulled_ms: int
    find: FindOrdinals

    def answer(self, query: bytes, host: str, now_ms: int) -> bytes | None:
        ordinals = self.find(query)
        if ordinals is None:
            return None
        heads = self.heads
        if now_ms // 1000 != heads.second:
            heads.turn(now_ms // 1000)
        rest = heads.no
        for ordinal in ordinals:
            if ordinal in self.contained:
                rest = heads.yes
                break
        return b"%b%d%b" % (heads.aged, age_s(self.pulled_ms, now_ms), rest)


@dataclass(slots=True)
class CustomerPlace:
    """Whether a customer's catalogs contain something, and which do; asked as the handler asks."""

    customer: str
    seen: Seen
    heads: Heads
    generation: Generation
    restricted: bool

    def answer(self, query: bytes, host: str, now_ms: int) -> bytes | None:
        text = plain_query(query)
        if text is None:
            return None
        keys, wants_catalogs = ids(text)
        if keys is None:
            return None
        question = ContainsQuestion(self.customer, keys, wants_catalogs, self.restricted)
        try:
            found = ask_customer(self.generation, question)
        except CatalogError:
            return None
        body = orjson.dumps(found.value)
        return self.heads.of(len(body), found.oldest_ms, now_ms) + body


@dataclass(slots=True)
class PagePlace:
    """A catalog's documents, page by page, where memory has all of a page. `questions` are kept for all places."""

    customer: str
    seen: Seen
    heads: Heads
    generation: Generation
    restricted: bool
    ask: AskPage
    questions: Questions
    path: str
    uuid: str

    def answer(self, query: bytes, host: str, now_ms: int) -> list[bytes] | None:
        question = self.questions.get((self.path, query, host)) or self._read(query, host)
        if question is None:
            return None
        try:
            found = at_once(self.ask(self.generation, question))
        except (Refusal, CatalogError):
            return None
        if found is None or not isinstance(found.value, Stream):
            return None
        stream = found.value
        vectors = stream.vectors()
        vector = at_once(vectors.__anext__())
        at_once(vectors.aclose())
        if vector is None or len(stream.opening) + vector[0] != stream.length:
            return None
        head = self.heads.of(stream.length, found.oldest_ms, now_ms)
        return [head + stream.opening, *vector[1]]

    def _read(self, query: bytes, host: str) -> PageQuestion | None:
        text = plain_query(query)
        if text is None:
            return None
        question = page_question(self.uuid, text, f"http://{host}{self.path}?{text}", restricted=self.restricted)
        if len(self.questions) >= MAX_QUESTIONS:
            self.questions.clear()
        self.questions[self.path, query, host] = question
        return question


def plain_query(query: bytes) -> str | None:
    """The text of a query that its version of HTTP follows; None for one that is long, odd, or asks for a format."""
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
