"""HTTP/1.1 as bytes: what a request is written as, and reading the head of a plain answer. Pure.

A client sends the same header block byte for byte, in one order, for as long as its token is the same, so that a server
may know it by its bytes. An answer is plain if its head has come whole, is of HTTP/1.1, says how long the body is, says
nothing twice, and has nothing in it that would mean anything else. `http.client` reads all others.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from sidecar.client.exchange import Address, Answer, Basis

# A worker sees few heads: they differ in the generation, in the age, and by the second.
_HEADS: Final = 64
_MAX_KNOWN_BYTES: Final = 1024
# Of answers to containment questions there are two for each head. What is longer hardly comes twice.
_ANSWERS: Final = 2 * _HEADS
_MAX_KNOWN_ANSWER_BYTES: Final = 512
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [^\r\n\0]*)?\r\n((?:" + _TOKEN + rb":[^\r\n\0]*\r\n)+)\r\n")
_WITHOUT_BODY: Final = frozenset({204, 304})
_WITHOUT_LENGTH: Final = frozenset({"GET", "HEAD", "DELETE"})
_VISIBLE: Final = bytes(range(0x21, 0x7F))
_VALUE: Final = re.compile(r"[ \t!-~\x80-\xff]*")
END: Final = b"\r\n\r\n"


class Head(NamedTuple):
    """The head of a plain answer, as `Answer` has it; its body's length, and whether the connection `lasts`."""

    status: int
    headers: Mapping[str, str]
    basis: Basis
    length: int
    lasts: bool


def host_of(address: Address) -> str:
    """The Host header of an address."""
    host = address.host if address.host.isascii() else address.host.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    return host if address.port == 80 else f"{host}:{address.port}"


def block_of(headers: Mapping[str, str]) -> bytes:
    """Headers as they are sent, in the order given. Raises ValueError for one that would be more than one."""
    for name, value in headers.items():
        if _VALUE.fullmatch(value) is None:
            raise ValueError(f"{name}: a header cannot say {value!r:.100}")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def request_of(method: str, target: str, block: bytes, body: bytes | None) -> bytes:
    """A request whose headers are this block. Raises ValueError for a target that would be more than one."""
    line = f"{method} {target} HTTP/1.1\r\n".encode("ascii")
    # What is not visible of a line: its two spaces and its end.
    if line.translate(None, _VISIBLE) != b"  \r\n":
        raise ValueError(f"{target!r:.200} cannot be asked for")
    if body is None and method in _WITHOUT_LENGTH:
        return b"".join((line, block, b"\r\n"))
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (line, block, len(body or b""), body or b"")


def head_of(head: bytes) -> Head | None:
    """The head of an answer, empty line included; None if it is not a plain one."""
    return _known(head) if len(head) <= _MAX_KNOWN_BYTES else _read(head)


def whole_of(data: bytes) -> tuple[Answer, bool] | None:
    """A plain answer that is short and all of `data`, and whether its connection lasts; None for any other."""
    return _known_whole(data) if len(data) <= _MAX_KNOWN_ANSWER_BYTES else None


def _read_whole(data: bytes) -> tuple[Answer, bool] | None:
    head_bytes, end, body = data.partition(END)
    head = head_of(head_bytes + end)
    if head is None or len(body) != head.length:
        return None
    return Answer(head.status, head.headers, body, head.basis), head.lasts


def _read(head: bytes) -> Head | None:
    match = _HEAD.fullmatch(head)
    if match is None or int(match[1]) in _WITHOUT_BODY:
        return None
    headers: dict[str, str] = {}
    for line in match[2].decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = name.lower()
        if name == "transfer-encoding" or name in headers:
            return None
        headers[name] = value.strip(" \t")
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return None
    lasts = "close" not in headers.get("connection", "").lower()
    return Head(int(match[1]), MappingProxyType(headers), Basis.of(headers), int(length), lasts)


_known = lru_cache(_HEADS)(_read)
_known_whole = lru_cache(_ANSWERS)(_read_whole)
