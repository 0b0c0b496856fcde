"""Kept connections of the blocking client; the socket's exceptions and http.client's stop here.

1. A request takes an idle connection out of the pool, or makes one, and puts it back after a whole answer. While it is
   out nobody else has it: so threads and greenlets share a client without a lock, whenever they were patched.
2. One that was closed meanwhile, or on which something came that nobody asked for, is seen at the taking and dropped.
3. A forked child has connections of its own: it closes its copies of its parent's unused, and never speaks on them.
4. Each send and each receive may take what is left until the deadline, so that a peer that drips bytes gains nothing.
   Only the lookup of a host's name cannot be broken off.
5. A usual answer takes three system calls: a look at the idle connection, a send, a receive. Python would wait with
   poll before each of the latter, which takes longer than the rest of a call. So the kernel waits for the first moment
   (SO_RCVTIMEO), which is short, because a signal begins it anew, and Python for what comes later. What is not the
   kernel's own socket (gevent's) waits in its own way from the beginning.
6. Whatever is not plain (`wire`) is read again from its first byte by http.client.
"""

import http.client
import io
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MethodDescriptorType
from typing import TYPE_CHECKING, Any, Final, cast

from sidecar.client.errors import CannotTell
from sidecar.client.exchange import Address, Answer, Basis, Call, process
from sidecar.client.wire import END, block_of, head_of, host_of, request_of, whole_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_IDLE: Final = 32
# A unix socket whose queue is full refuses at once, and has room again as soon as its server looks.
QUEUE_FULL_S: Final = 0.005
# How long the kernel waits before Python does: longer than a sidecar takes, shorter than signals of a timer are apart.
MOMENT_S: Final = 0.005
_MOMENT: Final = struct.pack("ll", 0, int(MOMENT_S * 1e6))
FIRST_BYTES: Final = 4 * 1024
MORE_BYTES: Final = 256 * 1024


class Broken(Exception):
    """Raised when a connection ended before anything of an answer came."""


class Connection:
    """One connection, made when it is first used. `reusable`: another request may follow, because the last answer came
    whole and did not say goodbye. `look` finds nothing on an idle one, unless its other end has closed it, or has said
    something unasked.
    """

    def __init__(self, address: Address) -> None:
        self.process = process()
        self.reusable = False
        self.look = select.poll()
        self._address = address
        self._socket: socket.socket | None = None
        self._until_s = 0.0
        self._heard = False
        # Whether the socket is the kernel's own, which waits for a moment by itself.
        self._plain = False

    def exchange(self, call: Call, block: bytes, until_s: float) -> Answer:
        """One request and its answer. Raises CannotTell, or Broken, after which the connection is no use any more."""
        self._until_s, self._heard, self.reusable = until_s, False, False
        try:
            request = request_of(call.method, self._address.base + call.target, block, call.body)
        except ValueError as error:
            raise CannotTell(f"{call}: nothing was sent, {error}") from error
        if self._socket is None:
            self._connect(call)
        try:
            self._send(request)
            return self._answer(call)
        except TimeoutError as error:
            raise CannotTell(f"{call}: no answer before the deadline") from error
        except (OSError, http.client.HTTPException) as error:
            if not self._heard:
                raise Broken(f"{type(error).__name__}: {error}") from error
            raise CannotTell(f"{call}: the answer broke off, or is no HTTP: {type(error).__name__}") from error

    def receive(self, size: int) -> bytes:
        """What came, at most so much; nothing at the end. Raises TimeoutError at the deadline."""
        assert self._socket is not None
        try:
            has_a_moment = self._plain and self._until_s - time.monotonic() > MOMENT_S
            data = self._socket.recv(size) if has_a_moment else self._received(size)
        except BlockingIOError:
            data = self._received(size)
        if data:
            self._heard = True
        return data

    def end(self) -> None:
        """Closes it; in this process alone, if it is a copy."""
        self.reusable = False
        if self._socket is not None:
            self._socket.close()

    def _answer(self, call: Call) -> Answer:
        data = self.receive(FIRST_BYTES)
        whole = whole_of(data)
        if whole is not None and call.method != "HEAD":
            answer, self.reusable = whole
            return answer
        end = data.find(END) + len(END)
        head = head_of(data[:end]) if end >= len(END) else None
        if head is None or call.method == "HEAD":
            return self._unusual_answer(call, data)
        body = data[end:]
        if len(body) < head.length:
            body = self._completed(body, head.length)
        # What is too much belongs to no request.
        self.reusable = head.lasts and len(body) == head.length
        return Answer(head.status, head.headers, body[: head.length], head.basis)

    def _completed(self, begun: bytes, length: int) -> bytes:
        pieces, missing = [begun], length - len(begun)
        while missing > 0:
            piece = self.receive(min(missing, MORE_BYTES))
            if not piece:
                raise http.client.IncompleteRead(b"".join(pieces), missing)
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _unusual_answer(self, call: Call, begun: bytes) -> Answer:
        response = http.client.HTTPResponse(cast(socket.socket, _Replayed(self, begun)), method=call.method)
        try:
            response.begin()
            body = response.read()
        finally:
            response.close()
        self.reusable = not response.will_close
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, body, Basis.of(headers))

    def _send(self, request: bytes) -> None:
        assert self._socket is not None
        try:
            has_a_moment = self._plain and self._until_s - time.monotonic() > MOMENT_S
            sent = self._socket.send(request) if has_a_moment else 0
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return
        if sent < len(request):
            # A body that is refused before it has arrived ends the sending, and there is an answer all the same.
            with suppress(BrokenPipeError, ConnectionResetError), self._limited() as limited:
                # Its timeout is that of the whole, and not of every part.
                limited.sendall(request[sent:])

    def _received(self, size: int) -> bytes:
        with self._limited() as limited:
            return limited.recv(size)

    @contextmanager
    def _limited(self) -> Iterator[socket.socket]:
        """The socket, on which one operation ends at the deadline. Raises TimeoutError if it has passed."""
        assert self._socket is not None
        self._socket.settimeout(self._left_s())
        yield self._socket
        if self._plain:
            self._socket.settimeout(None)

    def _left_s(self) -> float:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return left_s

    def _connect(self, call: Call) -> None:
        try:
            if self._address.socket is None:
                self._socket = self._reached(self._address.host, self._address.port)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                self._socket = self._connected(self._address.socket)
        except TimeoutError as error:
            raise CannotTell(f"{call}: nothing was sent, no connection before the deadline") from error
        except OSError as error:
            raise CannotTell(f"{call}: nothing was sent, nobody answers there: {error}") from error
        self.look.register(self._socket, select.POLLIN)
        if isinstance(type(self._socket).recv, MethodDescriptorType):
            with suppress(OSError):
                for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    self._socket.setsockopt(socket.SOL_SOCKET, limit, _MOMENT)
                self._socket.settimeout(None)
                self._plain = True

    def _reached(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of a host that takes one, all of them within the one deadline."""
        refused: OSError = OSError("the host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(self._left_s())
                made.connect(address)
            except TimeoutError:
                made.close()
                raise
            except OSError as error:
                made.close()
                refused = error
            except BaseException:
                made.close()
                raise
            else:
                return made
        raise refused

    def _connected(self, path: str) -> socket.socket:
        while True:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.settimeout(self._left_s())
                made.connect(path)
            except BlockingIOError:
                made.close()
                time.sleep(QUEUE_FULL_S)
            except BaseException:
                made.close()
                raise
            else:
                return made


class _Replayed(io.RawIOBase):
    """A connection as http.client reads it, from the first byte of an answer on. All that it asks for is makefile."""

    def __init__(self, connection: Connection, begun: bytes) -> None:
        super().__init__()
        self._connection = connection
        # None once it was read: nothing at the beginning is the end already.
        self._begun: bytes | None = begun

    def makefile(self, mode: str, *_: Any) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room = memoryview(buffer)
        if self._begun is None:
            data = self._connection.receive(len(room))
        else:
            data, rest = self._begun[: len(room)], self._begun[len(room) :]
            self._begun = rest or None
        room[: len(data)] = data
        return len(data)


class Pool:
    """The idle connections of one client, the latest on top."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._process = process()
        # The headers that were sent last, and what they are written as. One assignment, whoever shares the client.
        self._written: tuple[Mapping[str, str], bytes] = ({}, b"")
        # Whatever is done to a deque is done at once, as far as threads and greenlets can see.
        self._idle: deque[Connection] = deque()

    def exchange(self, call: Call, headers: Mapping[str, str], until_s: float) -> Answer:
        """One request and its answer. Raises CannotTell, and ValueError for headers that cannot be sent.

        What is repeatable is sent again, once, over a new connection, if the first ended before anything of an answer
        came. The rest has a connection of its own from the beginning: one that was kept may be closed by the other end
        just then, which cannot be told from a request that was lost.
        """
        known, block = self._written
        if headers is not known and headers != known:
            block = block_of({"Host": host_of(self._address), **headers})
            self._written = headers, block
        connection = self._take() if call.repeatable else Connection(self._address)
        try:
            return self._over(connection, call, block, until_s)
        except Broken as broken:
            if not call.repeatable:
                raise CannotTell(
                    f"{call}: the connection broke, whether it was done is not known: {broken}"
                ) from broken
        try:
            return self._over(Connection(self._address), call, block, until_s)
        except Broken as broken:
            raise CannotTell(f"{call}: the connection broke, twice: {broken}") from broken

    def close(self) -> None:
        """Closes what is idle."""
        while True:
            try:
                self._idle.pop().end()
            except IndexError:
                return

    def _over(self, connection: Connection, call: Call, block: bytes, until_s: float) -> Answer:
        try:
            return connection.exchange(call, block, until_s)
        finally:
            # Also after what no code expects, such as a greenlet's end: half an answer must not be the next one's.
            if connection.reusable and connection.process == self._process and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
            else:
                connection.end()

    def _take(self) -> Connection:
        if self._process != process():
            self._process = process()
            self.close()
        try:
            while True:
                connection = self._idle.pop()
                if not connection.look.poll(0):
                    return connection
                connection.end()
        except IndexError:
            return Connection(self._address)
