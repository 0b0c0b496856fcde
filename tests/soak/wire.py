"""Asking over HTTP/1.1, as cheaply as asyncio lets us: kept connections for reads, a new one for every write.

A kept connection that the other end closed before the first byte of an answer is nobody's failure, and a read is sent
once more over a new one, as every client does. A write never is.
"""

import asyncio
import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

DEADLINE_S: Final = 30.0
"""The longest that the product may take for anything is 20 s: that of a write."""


class NoAnswer(Exception):
    """Raised when there was none; `sent`: the request may have arrived."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def generation(self) -> int:
        """The one that it was made of; 0 if it names none."""
        return int(self.headers.get("x-catalog-generation", 0))

    def json(self) -> Any:
        """The body; None if it is empty. Raises ValueError."""
        return json.loads(self.body) if self.body else None


@dataclass(slots=True)
class Connection:
    """One connection, and the highest generation that came over it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: bool = False
    generation: int = 0

    async def ask(self, request: bytes) -> tuple[Reply, bool]:
        """The answer, and whether the connection may be used again."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ", 2)[1])
        if headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        elif status == 204:
            body = b""
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        self.used = True
        return Reply(status, headers, body), headers.get("connection", "").lower() != "close"

    async def _chunks(self) -> bytes:
        parts = []
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readuntil(b"\r\n")
        return b"".join(parts)


@dataclass(slots=True)
class Door:
    """One place where a sidecar answers: a port of loopback, or a unix socket."""

    sidecar: int
    port: int = 0
    path: str = ""
    again: int = 0
    """How often a kept connection was found closed."""
    _idle: deque[Connection] = field(default_factory=deque)

    @property
    def name(self) -> str:
        return f"sidecar{self.sidecar} over {'a unix socket' if self.path else 'TCP'}"

    async def ask(
        self, method: str, target: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[Reply, int]:
        """The answer, and the generation that its connection had seen before. Raises NoAnswer."""
        lines = [f"{method} {target} HTTP/1.1", "Host: soak", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        data = b"" if body is None else json.dumps(body).encode()
        if method != "GET":
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close"]
        request = "\r\n".join([*lines, "", ""]).encode() + data
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    connection = await self._connection(kept=method == "GET")
                    try:
                        reply, lasts = await connection.ask(request)
                    except (OSError, asyncio.IncompleteReadError) as error:
                        connection.writer.close()
                        begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
                        if connection.used and not begun:
                            self.again += 1
                            continue
                        raise NoAnswer(f"{type(error).__name__}: {error}", sent=True) from error
                    except asyncio.CancelledError:
                        connection.writer.close()
                        raise
                    before, connection.generation = connection.generation, max(connection.generation, reply.generation)
                    if lasts and method == "GET":
                        self._idle.append(connection)
                    else:
                        connection.writer.close()
                    return reply, before
        except TimeoutError as error:
            raise NoAnswer(f"nothing within {DEADLINE_S:g} s", sent=True) from error

    def close(self) -> None:
        """Ends the connections that ask nothing."""
        while self._idle:
            with suppress(OSError):
                self._idle.popleft().writer.close()

    async def _connection(self, *, kept: bool) -> Connection:
        # The one that has rested longest, so that they are all used, and with them all workers.
        if kept and self._idle:
            return self._idle.popleft()
        try:
            if self.path:
                return Connection(*await asyncio.open_unix_connection(self.path))
            return Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        except OSError as error:
            raise NoAnswer(f"no connection: {error}", sent=False) from error
