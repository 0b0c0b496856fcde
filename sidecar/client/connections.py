"""Kept connections of the blocking client, over http.client; its exceptions and the socket's stop here.

1. A request takes an idle connection out of the pool, or makes one, and puts it back after a whole answer. While it is
   out nobody else has it: so threads and greenlets share a client without a lock, whenever they were patched.
2. One that was closed meanwhile, or on which something came that nobody asked for, is seen at the taking and dropped.
3. A forked child has connections of its own: it closes its copies of its parent's unused, and never speaks on them.
4. Each send and each receive may take what is left until the deadline, so that a peer that drips bytes gains nothing.
   Only the lookup of a host's name cannot be broken off.
"""

import http.client
import io
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from sidecar.client.errors import CannotTell
from sidecar.client.exchange import Address, Answer, Call, process

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

MAX_IDLE: Final = 32
# A unix socket whose queue is full refuses at once, and has room again as soon as its server looks.
QUEUE_FULL_S: Final = 0.005


class Broken(Exception):
    """Raised when a connection ended before anything of an answer came."""


class Connection(http.client.HTTPConnection):
    """One connection, made when it is first used."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.host, address.port)
        self.process = process()
        self._address = address
        self._socket: socket.socket | None = None
        self._until_s = 0.0
        self._heard = False
        self._whole = False

    def exchange(self, call: Call, headers: Mapping[str, str], until_s: float) -> Answer:
        """One request and its answer. Raises CannotTell, or Broken, after which the connection is no use any more."""
        self._until_s, self._heard, self._whole = until_s, False, False
        if self._socket is None:
            try:
                self.connect()
            except TimeoutError as error:
                raise CannotTell(f"{call}: nothing was sent, no connection before the deadline") from error
            except OSError as error:
                raise CannotTell(f"{call}: nothing was sent, nobody answers there: {error}") from error
        try:
            # A body that is refused before it has arrived ends the sending, and there is an answer all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                self.request(call.method, self._address.base + call.target, body=call.body, headers=dict(headers))
            response = self.getresponse()
            body = response.read()
        except TimeoutError as error:
            raise CannotTell(f"{call}: no answer before the deadline") from error
        except (OSError, http.client.HTTPException) as error:
            if not self._heard:
                raise Broken(f"{type(error).__name__}: {error}") from error
            raise CannotTell(f"{call}: the answer broke off, or is no HTTP: {type(error).__name__}") from error
        self._whole = not response.will_close
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the last answer came whole, and it did not say goodbye."""
        return self._whole

    @property
    def quiet(self) -> bool:
        """Whether the other end has neither closed an idle connection nor said something unasked."""
        assert self._socket is not None
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def connect(self) -> None:
        """Connects, before the deadline; called by http.client as well."""
        if self._address.socket is None:
            self._socket = self._reached(self._address.host, self._address.port)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket = self._connected(self._address.socket)
        # All that http.client asks of a socket is sendall, makefile and close.
        self.sock = cast(socket.socket, _Timed(self._socket, self))

    def left_s(self) -> float:
        """Seconds until the deadline. Raises TimeoutError if it has passed."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return left_s

    def heard(self) -> None:
        """Notes that something of an answer came."""
        self._heard = True

    def end(self) -> None:
        """Closes it; in this process alone, if it is a copy."""
        self._whole = False
        self.close()
        if self._socket is not None:
            self._socket.close()

    def _reached(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of a host that takes one, all of them within the one deadline."""
        refused: OSError = OSError("the host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(self.left_s())
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
                made.settimeout(self.left_s())
                made.connect(path)
            except BlockingIOError:
                made.close()
                time.sleep(QUEUE_FULL_S)
            except BaseException:
                made.close()
                raise
            else:
                return made


class _Timed:
    """A socket as http.client sees it, on which everything ends at the deadline."""

    def __init__(self, wrapped: socket.socket, connection: Connection) -> None:
        self._wrapped = wrapped
        self._connection = connection

    def sendall(self, data: "ReadableBuffer") -> None:
        # Its timeout is that of the whole, and not of every part.
        self._wrapped.settimeout(self._connection.left_s())
        self._wrapped.sendall(data)

    def makefile(self, mode: str, *_: Any) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Reader(self._wrapped, self._connection))

    def close(self) -> None:
        """Does nothing: http.client closes a connection that is to end before it has read the answer."""


class _Reader(io.RawIOBase):
    def __init__(self, wrapped: socket.socket, connection: Connection) -> None:
        super().__init__()
        self._wrapped = wrapped
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        self._wrapped.settimeout(self._connection.left_s())
        count = self._wrapped.recv_into(buffer)
        if count:
            self._connection.heard()
        return count


class Pool:
    """The idle connections of one client, the latest on top."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._process = process()
        # Whatever is done to a deque is done at once, as far as threads and greenlets can see.
        self._idle: deque[Connection] = deque()

    def exchange(self, call: Call, headers: Mapping[str, str], until_s: float) -> Answer:
        """One request and its answer. Raises CannotTell.

        What is repeatable is sent again, once, over a new connection, if the first ended before anything of an answer
        came. The rest has a connection of its own from the beginning: one that was kept may be closed by the other end
        just then, which cannot be told from a request that was lost.
        """
        connection = self._take() if call.repeatable else Connection(self._address)
        try:
            return self._over(connection, call, headers, until_s)
        except Broken as broken:
            if not call.repeatable:
                raise CannotTell(
                    f"{call}: the connection broke, whether it was done is not known: {broken}"
                ) from broken
        try:
            return self._over(Connection(self._address), call, headers, until_s)
        except Broken as broken:
            raise CannotTell(f"{call}: the connection broke, twice: {broken}") from broken

    def close(self) -> None:
        """Closes what is idle."""
        while True:
            try:
                self._idle.pop().end()
            except IndexError:
                return

    def _over(self, connection: Connection, call: Call, headers: Mapping[str, str], until_s: float) -> Answer:
        try:
            return connection.exchange(call, headers, until_s)
        finally:
            # Also after what no code expects, such as a greenlet's end: half an answer must not be the next one's.
            self._give(connection)

    def _take(self) -> Connection:
        if self._process != process():
            self._process = process()
            self.close()
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.quiet:
                    return connection
                connection.end()
        return Connection(self._address)

    def _give(self, connection: Connection) -> None:
        if connection.reusable and connection.process == process() and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.end()
