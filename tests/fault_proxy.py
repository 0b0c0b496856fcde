"""A proxy that stands between two processes and does to their connections what networks and dying processes do.

It understands no protocol: it passes bytes on, over TCP or a unix socket, until a fault is set. A fault holds from that
moment on, for connections that are open already as well as for new ones, in one direction or in both, until it is
cleared; what a black hole has swallowed is passed on then, as a network that heals sends again what was lost. Counts of
bytes (`after`, `every`) are those of each connection and direction since the fault was set, or since it was opened.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

HOST: Final = "127.0.0.1"
PIECE_BYTES: Final = 64 * 1024
SLOW_STEP_S: Final = 0.05
# Room in the queue of a listener that accepts nobody: one connection, and what the kernel rounds it up to.
BACKLOG: Final = 0
FILLING: Final = 4
# A socket that is closed with this sends RST, and not FIN.
AT_ONCE: Final = struct.pack("ii", 1, 0)

Target = tuple[str, int] | Path
Direction = Literal["to server", "to client", "both"]
WAYS: Final = ("to server", "to client")


class Fault(Protocol):
    """What is done to connections, and to whoever wants one."""


@dataclass(frozen=True)
class Latency:
    """Everything is passed on so much later, and up to `jitter_s` more."""

    seconds: float
    jitter_s: float = 0.0


@dataclass(frozen=True)
class Reset:
    """The connection is reset on both sides (RST) after so many bytes; of 0 at once, open ones too."""

    after: int = 0


@dataclass(frozen=True)
class Truncate:
    """The connection ends in good order (FIN) after so many bytes; of 0 at once, open ones too."""

    after: int = 0


@dataclass(frozen=True)
class Flip:
    """One bit of every so many bytes is another one: the one of this number, or one that the seed chooses each time."""

    every: int
    bit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class BlackHole:
    """Connections are accepted, and nothing is passed on, not even their ends."""


@dataclass(frozen=True)
class Slow:
    """So many bytes pass in a second."""

    bytes_per_s: int


@dataclass(frozen=True)
class Unanswered:
    """Who wants a connection hears nothing at all, and what is open is a black hole: the machine is gone."""


@dataclass(frozen=True)
class Refuse:
    """The port is closed, and what was open is reset: the process is gone."""


@dataclass(eq=False)
class _Pipe:
    """One direction of one connection. `seen`: its bytes since the fault was set."""

    way: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: int = 0
    chance: random.Random = field(default_factory=random.Random)


@dataclass(eq=False)
class _Link:
    pipes: tuple[_Pipe, _Pipe]
    is_cut: bool = False

    def cut(self, *, reset: bool) -> None:
        """Ends both sides, in the way that comes first."""
        if self.is_cut:
            return
        self.is_cut = True
        for pipe in self.pipes:
            if reset:
                _abort(pipe.writer)
            else:
                pipe.writer.close()


class FaultProxy:
    """Passes connections on to a target. `accepted` and `passed` count connections and bytes, by direction."""

    def __init__(self, target: Target, own: Path | None = None) -> None:
        """`own`: the unix socket that it listens on instead of a port."""
        self._target = target
        self._own = own
        self._faults: dict[str, Fault | None] = dict.fromkeys(WAYS)
        self._changed = asyncio.Event()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting = False
        self._callers: list[socket.socket] = []
        self.port = 0
        self.accepted = 0
        self.passed = dict.fromkeys(WAYS, 0)

    @property
    def url(self) -> str:
        """Where it answers for an HTTP server."""
        return f"http://{HOST}:{self.port}"

    @property
    def open(self) -> int:
        """How many connections it holds."""
        return len(self._links)

    def set(self, fault: Fault, direction: Direction = "both") -> None:
        """Does this from now on, instead of what it did in that direction before."""
        for way in WAYS if direction == "both" else (direction,):
            self._faults[way] = fault
        self._begin()

    def clear(self) -> None:
        """Passes everything on again."""
        self._faults = dict.fromkeys(WAYS)
        self._begin()

    @contextlib.contextmanager
    def while_(self, fault: Fault, direction: Direction = "both") -> Iterator[None]:
        """The fault, until the end of the block."""
        self.set(fault, direction)
        try:
            yield
        finally:
            self.clear()

    async def start(self) -> None:
        self._listen()

    async def close(self) -> None:
        """Resets what is open, and ends."""
        self._stop_listening()
        for link in list(self._links):
            link.cut(reset=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own is not None:
            self._own.unlink(missing_ok=True)

    def _begin(self) -> None:
        for link in self._links:
            for pipe in link.pipes:
                self._reset_counts(pipe)
        self._changed.set()
        self._changed = asyncio.Event()
        self._cut_if_at_once(self._links)
        faults = self._faults.values()
        if Refuse() in faults:
            self._stop_listening()
            self._listener = self._bound()
        elif Unanswered() in faults:
            self._stop_listening()
            self._fill()
        elif not self._accepting:
            self._stop_listening()
            self._listen()

    def _reset_counts(self, pipe: _Pipe) -> None:
        fault = self._faults[pipe.way]
        pipe.seen = 0
        pipe.chance = random.Random(fault.seed if isinstance(fault, Flip) else 0)

    def _cut_if_at_once(self, links: Iterable[_Link]) -> None:
        for fault in self._faults.values():
            if fault in (Reset(), Truncate(), Refuse()):
                for link in links:
                    link.cut(reset=fault != Truncate())

    def _bound(self) -> socket.socket:
        """A socket on the port, or the path, that refuses connections until it listens: nobody else can take it."""
        if self._own is not None:
            self._own.unlink(missing_ok=True)
            made = socket.socket(socket.AF_UNIX)
            made.bind(str(self._own))
        else:
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((HOST, self.port))
            self.port = made.getsockname()[1]
        made.setblocking(False)
        return made

    def _listen(self) -> None:
        self._listener = self._bound()
        self._listener.listen(128)
        self._accepting = True
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _fill(self) -> None:
        """Listens, accepts nobody, and has the queue full, so that the kernel drops every SYN from here on."""
        self._listener = self._bound()
        self._listener.listen(BACKLOG)
        for _ in range(FILLING):
            caller = socket.socket(self._listener.family)
            caller.setblocking(False)
            caller.connect_ex(self._listener.getsockname())
            self._callers.append(caller)

    def _stop_listening(self) -> None:
        if self._listener is not None and self._accepting:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._accepting = False
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for caller in self._callers:
            caller.close()
        self._callers.clear()

    def _accept(self, listener: socket.socket) -> None:
        # Not sock_accept: what it has accepted is lost when it is cancelled.
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            client.setblocking(False)
            self.accepted += 1
            self._start(client)

    def _start(self, client: socket.socket) -> None:
        task = asyncio.create_task(self._serve(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        from_client, to_client = await asyncio.open_connection(sock=client, limit=PIECE_BYTES)
        try:
            # Whether there is a server at all is not heard through a black hole either.
            await self._held("to server")
            if isinstance(self._target, Path):
                from_server, to_server = await asyncio.open_unix_connection(str(self._target), limit=PIECE_BYTES)
            else:
                from_server, to_server = await asyncio.open_connection(*self._target, limit=PIECE_BYTES)
        except OSError:
            _abort(to_client)
            return
        except asyncio.CancelledError:
            _abort(to_client)
            raise
        pipes = _Pipe("to server", from_client, to_server), _Pipe("to client", from_server, to_client)
        link = _Link(pipes)
        for pipe in pipes:
            self._reset_counts(pipe)
        self._links.add(link)
        self._cut_if_at_once([link])
        try:
            await asyncio.gather(*(self._pump(link, pipe) for pipe in pipes))
        except asyncio.CancelledError:
            link.cut(reset=True)
            raise
        finally:
            self._links.discard(link)
            link.cut(reset=False)

    async def _pump(self, link: _Link, pipe: _Pipe) -> None:
        try:
            while piece := await pipe.reader.read(PIECE_BYTES):
                await self._pass(link, pipe, piece)
            await self._held(pipe.way)
            if not link.is_cut:
                pipe.writer.write_eof()
        except (OSError, asyncio.IncompleteReadError):
            await self._held(pipe.way)
            link.cut(reset=True)

    async def _pass(self, link: _Link, pipe: _Pipe, piece: bytes) -> None:
        await self._held(pipe.way)
        fault = self._faults[pipe.way]
        if isinstance(fault, Latency):
            await self._pause(fault.seconds + pipe.chance.uniform(0, fault.jitter_s))
            # What was set meanwhile holds for it, too.
            await self._held(pipe.way)
            fault = self._faults[pipe.way]
        if isinstance(fault, Reset | Truncate):
            left = fault.after - pipe.seen
            await self._write(pipe, piece[: max(left, 0)])
            if left <= len(piece):
                link.cut(reset=isinstance(fault, Reset))
                raise ConnectionAbortedError  # It ends this direction, too.
        elif isinstance(fault, Flip):
            await self._write(pipe, self._flipped(pipe, fault, piece))
        elif isinstance(fault, Slow):
            step = max(1, round(fault.bytes_per_s * SLOW_STEP_S))
            while piece and self._faults[pipe.way] is fault:
                await self._write(pipe, piece[:step])
                piece = piece[step:]
                await self._pause(step / fault.bytes_per_s)
            if piece:
                await self._pass(link, pipe, piece)
        else:
            await self._write(pipe, piece)

    def _flipped(self, pipe: _Pipe, fault: Flip, piece: bytes) -> bytes:
        changed = bytearray(piece)
        first = pipe.seen - pipe.seen % fault.every
        for block in range(first, pipe.seen + len(piece), fault.every):
            # Of each block the same, however many pieces it comes in.
            chance = random.Random(f"{fault.seed}:{block}")
            bit = chance.randrange(fault.every * 8) if fault.bit is None else fault.bit
            place = block + bit // 8 - pipe.seen
            if 0 <= place < len(piece):
                changed[place] ^= 1 << bit % 8
        return bytes(changed)

    async def _write(self, pipe: _Pipe, piece: bytes) -> None:
        if piece:
            pipe.seen += len(piece)
            self.passed[pipe.way] += len(piece)
            pipe.writer.write(piece)
            await pipe.writer.drain()

    async def _held(self, way: str) -> None:
        while isinstance(self._faults[way], BlackHole | Unanswered):
            await self._changed.wait()

    async def _pause(self, seconds: float) -> None:
        """Lets time pass; less of it if another fault is set meanwhile."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()


def _abort(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()


@asynccontextmanager
async def between(target: Target, own: Path | None = None) -> AsyncIterator[FaultProxy]:
    """A proxy before a target, without a fault yet."""
    proxy = FaultProxy(target, own)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
