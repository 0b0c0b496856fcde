"""One request over a socket, and the answer with the very bytes that came: what is compared is what is on the wire."""

import socket
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import HOST

TIMEOUT_S = 60.0


class Answer(NamedTuple):
    """An answer: `raw` has all of its bytes."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


def ask(where: int | Path, request: bytes) -> Answer:
    """Asks a port of loopback, or a socket, on a connection of its own. The answer must have a Content-Length."""
    if isinstance(where, int):
        connection = socket.create_connection((HOST, where), TIMEOUT_S)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(where))
    with connection:
        connection.sendall(request)
        raw = bytearray()
        while (end := raw.find(b"\r\n\r\n")) < 0:
            raw += _some(connection)
        status, *lines = raw[:end].decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = end + 4 + int(headers["Content-Length"])
        while len(raw) < length:
            raw += _some(connection)
    return Answer(int(status.split()[1]), headers, bytes(raw[end + 4 :]), bytes(raw))


def _some(connection: socket.socket) -> bytes:
    read = connection.recv(1 << 20)
    if not read:
        raise ConnectionError("the server closed the connection before its answer was whole")
    return read
