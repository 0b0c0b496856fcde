"""The fast lane: plain questions are answered from their bytes, below aiohttp's router. No I/O lives here.

Whether content is contained, and a page of documents: a question is plain if all of it is known. Its bytes are three
parts, and each is looked up as it stands:

    GET /api/v1/enterprise-catalogs/UUID/contains_content_items/   the path: a place in the served generation
    ?course_run_ids=edX%2BDemoX HTTP/1.1                           the query: which ordinals, or which page
    Host: ...                                                      the block of headers: who asks

What is not known is not answered: None, and the ordinary handler answers instead. So do questions whose answer is not
a plain 200, or not in memory. What is known was worked out by the functions that the ordinary handler calls, so that
both give the same bytes; a block of headers is learned from what aiohttp's own parser made of it, once a connection has
sent it twice: a keep-alive client repeats it byte for byte, and one that does not would only fill the memory.

Nothing is decided ahead of its time. A block remembers the caller that its token names until the token's `exp`, or
until the keys change; whether that caller may ask is decided for each question, of the customer whose catalog it is.
Paths are forgotten with their generation. Queries are kept while dictionaries only grow, which renumbers nothing.
"""

import re
from typing import Final, NamedTuple

from aiohttp import HttpVersion11, hdrs
from aiohttp.http import RawRequestMessage

from sidecar.auth import Tokens
from sidecar.clock import Clock
from sidecar.containment import CATALOG, CUSTOMER
from sidecar.contract.index import Dictionary
from sidecar.current import Current, Generation
from sidecar.handlers import AFTER_TASK, MIN_GENERATION, Route
from sidecar.metrics import Metrics
from sidecar.parameters import Refusal, ids, negotiate
from sidecar.places import AskPage, CatalogPlace, CustomerPlace, Heads, PagePlace, Place, Questions, Sent, plain_query
from sidecar.roles import EVERYBODY

# Everything that is held by its bytes is forgotten, and learned again, when it takes more than this.
MAX_QUERIES_BYTES: Final = 32 * 1024 * 1024
MAX_BLOCKS_BYTES: Final = 16 * 1024 * 1024
# A token with the roles in a hundred customers is 8 KiB long.
MAX_BLOCK_BYTES: Final = 16 * 1024
# A name of the DNS has 253 characters; behind it may be a port.
MAX_HOST_LENGTH: Final = 260
# What an entry takes in memory beside its bytes.
ENTRY_BYTES: Final = 256
_UUID: Final = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
# Fields that change what is answered, or how a connection goes on, but for those that are handled.
_MATTERING: Final = frozenset(
    name.lower()
    for name in (
        *(hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING, hdrs.CONTENT_ENCODING, hdrs.TRAILER, hdrs.TE),
        *(hdrs.EXPECT, hdrs.UPGRADE, hdrs.ORIGIN, hdrs.PROXY_AUTHORIZATION, "HTTP2-Settings", "Proxy-Connection"),
        *(MIN_GENERATION, AFTER_TASK),
    )
)


class Block(NamedTuple):
    """A block of headers that is known: whom it is sent to, who asks (None: for every customer), until when, and by
    which keys.
    """

    host: str
    customers: frozenset[str] | None
    until_ms: float
    keys: object


class Lane:
    """What is known of paths, queries and blocks of headers, and the answers from it."""

    def __init__(
        self,
        current: Current,
        clock: Clock,
        metrics: Metrics,
        page: Route,
        *,
        tokens: Tokens | None = None,
        varies: bool = False,
    ) -> None:
        """`page`: the route of pages. Without `tokens` everybody may ask. `varies`: every answer says that it differs
        by origin.
        """
        assert page.reads is not None
        assert page.reads.fetch is not None
        self._ask_page: AskPage = page.reads.fetch
        self._routes = (CATALOG, CUSTOMER, page)
        self._paths = tuple(
            (re.compile(f"GET (/api/(v1|v2){route.path.replace('{uuid}', _UUID)})".encode()), route)
            for route in self._routes
        )
        self._current = current
        self._tokens = tokens
        self._metrics = metrics
        self._now_ms = clock.now_ms
        self._monotonic = clock.monotonic
        self._open = True
        self._tail = b"Vary: Origin\r\n\r\n" if varies else b"\r\n"
        self._generation: Generation | None = None
        self._heads: dict[str, Heads] = {}
        self._dictionary: Dictionary | None = None
        self._places: dict[bytes, Place] = {}
        self._questions: Questions = {}
        self._queries: dict[bytes, tuple[int, ...]] = {}
        self._queries_bytes = 0
        self._blocks: dict[bytes, Block] = {}
        self._blocks_bytes = 0

    def close(self) -> None:
        """Takes nothing any more: from now on answers end their connections, which the handler's say."""
        self._open = False

    def count_unread(self) -> None:
        """Counts an answer that was broken off, because the client did not read it."""
        self._metrics.broken_answers.labels("unread").inc()

    def answer(self, data: bytes) -> Sent | None:
        """The answer to a request that is all of `data`; None if it is for the ordinary handler."""
        began_s = self._monotonic()
        path, _, rest = data.partition(b"?")
        query, _, headers = rest.partition(b"\r\n")
        block = self._blocks.get(headers)
        if block is None or not self._open:
            return None
        if self._generation is not self._current.generation:
            self._begin_anew()
        place = self._places.get(path)
        if place is None:
            place = self._find_place(path)
            if place is None:
                return None
            self._places[path] = place
        now_ms = self._now_ms()
        if now_ms >= block.until_ms or (self._tokens is not None and self._tokens.keys is not block.keys):
            return None
        if block.customers is not None and place.customer not in block.customers:
            return None
        answer = place.answer(query, block.host, now_ms)
        if answer is not None:
            place.seen.add(200, self._monotonic() - began_s)
        return answer

    def learn(self, data: bytes, message: RawRequestMessage, *, twice: bool) -> bool:
        """Whether a message that aiohttp's parser has just made is all of `data`, so that the next bytes begin another.

        Of what came `twice` on a connection the block of headers is remembered, if it is one for plain questions.
        """
        line, _, headers = data.partition(b"\r\n")
        raw = _fields(headers)
        if raw is None or line != b"GET %b HTTP/1.1" % message.path.encode(errors="surrogateescape"):
            return False
        if message.method != hdrs.METH_GET or raw != message.raw_headers:
            return False
        if twice and len(headers) <= MAX_BLOCK_BYTES:
            known = self._blocks.get(headers)
            # One that was learned by other keys is learned again.
            if known is None or (self._tokens is not None and known.keys is not self._tokens.keys):
                block = self._block(message)
                if block is not None:
                    self._remember(headers, block)
        return True

    def _block(self, message: RawRequestMessage) -> Block | None:
        """What a message's headers say of whoever asks; None if something of them is for the ordinary handler."""
        headers = message.headers
        if message.version != HttpVersion11 or message.should_close or message.upgrade or message.chunked:
            return None
        if not _MATTERING.isdisjoint(name.lower() for name in headers):
            return None
        try:
            accept = headers.get(hdrs.ACCEPT)
            if any(negotiate(accept, None, route.formats) != "json" for route in self._routes):
                return None
        except Refusal:
            return None
        host = headers[hdrs.HOST]
        if len(host) > MAX_HOST_LENGTH:
            return None
        if self._tokens is None:
            return Block(host, EVERYBODY.customers(CATALOG.gate.access), float("inf"), None)
        known = self._tokens.known(headers.get(hdrs.AUTHORIZATION, ""))
        if known is None:
            return None
        caller, until_s = known
        customers = caller.customers(CATALOG.gate.access)
        return Block(host, customers, until_s * 1000, self._tokens.keys)

    def _remember(self, headers: bytes, block: Block) -> None:
        if headers not in self._blocks:
            self._blocks_bytes += 4 * len(headers) + ENTRY_BYTES
        if self._blocks_bytes > MAX_BLOCKS_BYTES:
            self._blocks.clear()
            self._blocks_bytes = 4 * len(headers) + ENTRY_BYTES
        self._blocks[headers] = block

    def _begin_anew(self) -> None:
        """Another generation: other catalogs and, if there are other keys, what queries mean."""
        self._generation = self._current.generation
        number = 0 if self._generation is None else self._generation.pointer.generation
        self._heads = {route.path: Heads(route, number, self._tail) for route in self._routes}
        self._places.clear()
        self._questions.clear()
        dictionary = None if self._generation is None else self._generation.index.dictionary
        if dictionary is not self._dictionary:
            if dictionary is None or self._dictionary is None or dictionary.ordinals is not self._dictionary.ordinals:
                self._queries.clear()
                self._queries_bytes = 0
            self._dictionary = dictionary

    def _find_place(self, request: bytes) -> Place | None:
        """What a path leads to; None for what is another route's, badly spelled, not there or not pulled."""
        generation = self._generation
        matches = ((pattern.fullmatch(request), route) for pattern, route in self._paths)
        match, route = next(((match, route) for match, route in matches if match), (None, CATALOG))
        if generation is None or match is None:
            return None
        path, version, uuid = (text.decode() for text in match.groups())
        of_all = self._metrics.requests.of(f"/api/{version}{route.path}"), self._heads[route.path]
        restricted = version == "v2"
        if route is CUSTOMER:
            known = uuid in generation.index.of_customer
            return CustomerPlace(uuid, *of_all, generation, restricted) if known else None
        catalog = generation.index.catalogs.get(uuid)
        query = None if catalog is None else catalog.serving
        content = None if query is None else query.v2 if restricted else query.v1
        if catalog is None or query is None or content is None or query.pulled_at_ms is None:
            return None
        if route is CATALOG:
            return CatalogPlace(catalog.customer, *of_all, content.contained, query.pulled_at_ms, self._ordinals)
        return PagePlace(
            *(catalog.customer, *of_all, generation, restricted), self._ask_page, self._questions, path=path, uuid=uuid
        )

    def _ordinals(self, query: bytes) -> tuple[int, ...] | None:
        """The ordinals that a query asks about, () if it names nothing that is known; None if it is not a plain one."""
        known = self._queries.get(query)
        if known is not None:
            return known
        text = plain_query(query)
        if text is None or self._dictionary is None:
            return None
        keys = ids(text).keys
        if keys is None:
            return None
        ordinals = tuple(ordinal for key in keys for ordinal in self._dictionary.find(key))
        if not all(map(self._dictionary.knows, keys)):
            # A key that is not known, or in another spelling, may mean something else once more keys are known.
            return ordinals
        self._queries_bytes += len(query) + ENTRY_BYTES
        if self._queries_bytes > MAX_QUERIES_BYTES:
            self._queries.clear()
            self._queries_bytes = len(query) + ENTRY_BYTES
        self._queries[query] = ordinals
        return ordinals


def _fields(headers: bytes) -> tuple[tuple[bytes, bytes], ...] | None:
    """The fields of a block with its closing empty line; None if its lines are not a name, a colon and a value each."""
    lines = headers.split(b"\r\n")
    if lines[-2:] != [b"", b""] or b"" in lines[:-2]:
        return None
    pairs = [line.partition(b":") for line in lines[:-2]]
    return tuple((name, value.strip(b" \t")) for name, _, value in pairs)
