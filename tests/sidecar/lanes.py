"""A sidecar's connections with the fast lane and without it, over one generation, clock and set of keys.

Connections have no sockets: what is sent is handed to the protocol, and what is answered is kept by a transport.
"""

import asyncio
import re
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from sidecar.auth import Tokens
from sidecar.containment import CONTAINMENT
from sidecar.content import Contents, content_routes, page_route
from sidecar.contract.index import Index
from sidecar.cors import install
from sidecar.current import Current, Generation
from sidecar.disk import Disk
from sidecar.documents import Links
from sidecar.edge import measured
from sidecar.forward import Forwarder
from sidecar.handlers import api_routes
from sidecar.lane import Lane
from sidecar.memory import Memory
from sidecar.metrics import Metrics
from sidecar.places import Sent
from sidecar.protocol import LaneRunner, runner_with
from sidecar.settings import AuthSettings
from sidecar.shelves import Shelves
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore
from sidecar.tiers import Tiers
from sidecar.walks import Walks
from tests.fakes import FakeClock
from tests.tokens import AUDIENCE, ISSUER, SECRET, claims_of, jwk, keyring, signed
from tests.trees import Catalog, Selection, World

C0: Final = UUID("ee9034df-3024-49bb-a365-58f527b83ab6")
C1: Final = UUID("9e66c7ac-8758-4091-b9ea-bef97b09f284")
ONE, TWO, DUE = (UUID(int=n + 0xABCDEF) for n in range(3))
RUN: Final = "course-v1:edX+A+1T"
HIDDEN: Final = "course-v1:edX+R+1"
NOW_MS: Final = 1_800_000_000_300
TURNS: Final = 12
_DATE: Final = re.compile(rb"\r\nDate: [^\r]*\r\n")


def world(pulled_at_ms: int = NOW_MS - 61_999, *, swapped: bool = False) -> World:
    """Two customers' catalogs, one of them never pulled; `swapped`: the first two have each other's content."""
    one, two = ("b", "a") if swapped else ("a", "b")
    return World(
        courses={"edX+A": [RUN], "edX+B": [], "edX+R": [HIDDEN], "ÜniX+Ün": []},
        restricted={HIDDEN},
        selections={
            "a": Selection({"edX+A", "edX+R", "ÜniX+Ün"}, pulled_at_ms, allowed={HIDDEN}),
            "b": Selection({"edX+B"}, pulled_at_ms + 700),
            "due": Selection(pulled_at_ms=None),
        },
        catalogs=[Catalog(ONE, one, C0), Catalog(TWO, two, C1), Catalog(DUE, "due", C1)],
    )


class CountingLane(Lane):
    """A lane that counts what it answers."""

    answers = 0

    def answer(self, data: bytes) -> Sent | None:
        answer = super().answer(data)
        self.answers += answer is not None
        return answer


class Transport(asyncio.Transport):
    """Keeps what is written. `paused`: the client does not read, so that nothing more should be taken in."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closed = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Rig:
    """Connections of both kinds to one application."""

    def __init__(self, *, authenticated: bool = True, origins: tuple[str, ...] = ()) -> None:
        self.clock = FakeClock(NOW_MS)
        self.current = Current()
        self.keyring = keyring(jwk(), clock=self.clock)
        self.metrics = Metrics()
        trusting = AuthSettings(mode="jwt", issuer=ISSUER, audience=AUDIENCE, hs256_secret=SECRET)
        tokens = Tokens(trusting, self.keyring, self.clock) if authenticated else None
        self.store = MemoryStore()
        self.memory = Memory(2**24)
        tiers = Tiers(self.memory, Disk(None, self.metrics), self.store, self.metrics)
        contents = Contents(Shelves(tiers), Links("https://lms", "https://portal", ""), Walks(self.clock))
        self.lane = CountingLane(
            self.current, self.clock, self.metrics, page_route(contents), tokens=tokens, varies=bool(origins)
        )
        app = web.Application(middlewares=[measured(self.metrics, self.clock)])
        forwarder = Forwarder("http://127.0.0.1:1", self.current, self.metrics)
        routes = (*CONTAINMENT, *content_routes(contents))
        app.add_routes(api_routes(routes, self.current, forwarder, self.clock, tokens=tokens))
        install(app, origins)
        self.runner: LaneRunner = runner_with(self.lane, app)
        self.generation = 0

    async def start(self) -> "Rig":
        await self.runner.setup()
        self.serve(world())
        return self

    def serve(self, content: World) -> None:
        """Another generation, with this content."""
        self.generation += 1
        tree = content.tree(generation=self.generation)
        self.store.objects.update({digest: sealed.data for digest, sealed in tree.objects.items()})
        before = self.current.generation
        index = Index.assemble(tree.root, tree.records(), None if before is None else before.index)
        self.current.swap(Generation.of(Pointer(1, self.generation, tree.root), index, before))

    async def connection(self, *, lane: bool) -> Transport:
        """A new connection that waits for a request, with a lane or as aiohttp makes it."""
        server = self.runner.server
        assert server is not None
        protocol: Any = server() if lane else web.Server.__call__(server)
        transport = Transport(protocol)
        protocol.connection_made(transport)
        await settled()
        return transport

    async def send(self, transport: Transport, data: bytes, *, settle: bool = True) -> None:
        """Hands bytes to a connection as one read, unless it was closed; `settle`: and lets it answer."""
        if not transport.closed:
            assert isinstance(transport.protocol, asyncio.Protocol)
            transport.protocol.data_received(data)
        if settle:
            await settled()

    async def ask(self, transport: Transport, data: bytes) -> bytes:
        """What comes back for bytes, without its date."""
        before = len(transport.written)
        await self.send(transport, data)
        return undated(bytes(transport.written[before:]))

    async def taken(self, transport: Transport, data: bytes) -> bool:
        """Whether the lane answers a request."""
        before = self.lane.answers
        assert (await self.ask(transport, data)).startswith(b"HTTP/1.1 ")
        return self.lane.answers > before

    def end(self, transport: Transport) -> None:
        """The client hangs up."""
        transport.closed = True
        transport.protocol.connection_lost(None)


async def settled() -> None:
    """Lets everything that can go on go on until it waits for something."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def undated(answer: bytes) -> bytes:
    """An answer without the values of its dates: two that are made apart may be made in two seconds."""
    return _DATE.sub(b"\r\nDate: -\r\n", answer)


def token(actor: str, **claims: Any) -> str:
    """The token of a recorded actor, with other claims."""
    return signed(claims_of(actor) | {"exp": NOW_MS // 1000 + 600} | claims)


def question(
    uuid: UUID = ONE, query: str = "course_run_ids=edX%2BA", *, headers: str = "", whose: str = "catalogs", v: int = 1
) -> bytes:
    """A plain question, with the headers of a client that keeps its connection."""
    path = f"/api/v{v}/enterprise-{whose}/{uuid}/contains_content_items/"
    return f"GET {path}?{query} HTTP/1.1\r\nHost: sidecar:18160\r\nAccept: */*\r\n{headers}\r\n".encode()


def page(uuid: UUID = ONE, query: str = "page_size=2", *, headers: str = "", v: int = 1) -> bytes:
    """A page of documents is asked for, by the same client."""
    return question(uuid, query, headers=headers, v=v).replace(b"contains_content_items", b"get_content_metadata")


def authorized(actor: str = "operator", **claims: Any) -> str:
    """The header with an actor's token."""
    return f"Authorization: JWT {token(actor, **claims)}\r\n"
