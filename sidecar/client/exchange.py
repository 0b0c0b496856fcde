"""The words of the client: where the service is, what one request says, what came back. Pure; nothing here does I/O."""

import os
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final, Literal, NamedTuple, TypedDict
from urllib.parse import unquote, urlsplit

from sidecar import __version__

Token = str | Callable[[], str] | None
Version = Literal["v1", "v2"]
# A containment question is answered within a millisecond; a write waits until it is published, for up to 20 s.
QUESTION_S: Final = 2.0
LONG_S: Final = 30.0
USER_AGENT: Final = f"catalog-sidecar-client/{__version__}"


class Reading(TypedDict, total=False):
    """What every question takes beside its own arguments.

    timeout_s       the deadline of the whole call, its further pages and chunks included.
    min_generation  the answer must be of this generation or a later one: that of a write made elsewhere.
    after_task      the answer must show what this pull found: an id that `refresh_catalogs` gave.
    """

    timeout_s: float
    min_generation: int
    after_task: str


class Writing(TypedDict, total=False):
    """What every write takes beside its own arguments: the deadline of the whole call."""

    timeout_s: float


class Address(NamedTuple):
    """Where the service listens: `socket` is a path, or `host` and `port` are meant; `base` goes before all paths."""

    host: str
    port: int
    socket: str | None
    base: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Reads `http://HOST[:PORT][/PATH]` or `unix:///PATH`; raises ValueError for anything else."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and not parts.netloc and parts.path.strip("/") and not parts.query + parts.fragment:
            return cls("localhost", 80, unquote(parts.path), "")
        plain = parts.scheme == "http" and parts.hostname and not parts.query + parts.fragment
        if not plain or "@" in parts.netloc:
            raise ValueError(f"{url!r} is neither http://HOST[:PORT][/PATH] nor unix:///PATH")
        return cls(parts.hostname or "", parts.port or 80, None, parts.path.rstrip("/"))


class Call(NamedTuple):
    """One request. `repeatable`: made twice it has the effect, and the answer, of being made once."""

    method: str
    path: str
    query: str = ""
    body: bytes | None = None
    repeatable: bool = True

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def target(self) -> str:
        """The path and the query, as they go into the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path


class Basis(NamedTuple):
    """What an answer rests on: the generation that was asked (the lowest, if several requests were needed), and the
    seconds since the oldest pull. `pending`: a write was made, and this sidecar does not show it yet.
    """

    generation: int | None = None
    age_s: int | None = None
    pending: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Basis":
        """What the headers of one answer say, their names in lower case."""
        return cls(
            _number(headers.get("x-catalog-generation")),
            _number(headers.get("x-catalog-age")),
            "x-catalog-published" in headers,
        )

    def joined(self, one: "Basis") -> "Basis":
        """The basis of what rests on this, and on one more answer."""
        if self is UNKNOWN:
            return one
        return Basis(
            min((n for n in (self.generation, one.generation) if n is not None), default=None),
            max((n for n in (self.age_s, one.age_s) if n is not None), default=None),
            self.pending or one.pending,
        )


class Answer(NamedTuple):
    """What came back; the names of headers are in lower case. `basis` is what they say of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    basis: Basis


UNKNOWN: Final = Basis()
# Of threads, greenlets and asyncio's tasks each has its own. One for all clients: what is made later stays for ever.
_LAST: Final[ContextVar[tuple[weakref.ref[object], Basis] | None]] = ContextVar("catalog_client_last", default=None)


def remember(client: object, basis: Basis) -> None:
    """Keeps what the last answer in this thread, greenlet or task rests on."""
    _LAST.set((weakref.ref(client), basis))


def remembered(client: object) -> Basis:
    """That, if it was this client's answer."""
    last = _LAST.get()
    return last[1] if last is not None and last[0]() is client else UNKNOWN


def headers_of(call: Call, how: Reading | Writing, token: Token) -> dict[str, str]:
    """The headers of a request, in the order in which they are sent: what is always the same comes first."""
    headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
    if token is not None:
        headers["Authorization"] = f"JWT {token if isinstance(token, str) else token()}"
    if call.body is not None:
        headers["Content-Type"] = "application/json"
    if (generation := how.get("min_generation")) is not None:
        headers["X-Min-Generation"] = str(generation)
    if (task := how.get("after_task")) is not None:
        headers["X-After-Task"] = str(task)
    return headers


# The process that this is: after a fork another one, whose connections are its own.
process: Final = os.getpid


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
