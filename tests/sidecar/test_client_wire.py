"""What the blocking client writes, and how it reads: plain answers as http.client would, all others by http.client."""

import asyncio
import http.client
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.client import CannotTell, CatalogClient
from sidecar.client.exchange import USER_AGENT, Address
from sidecar.client.wire import END, block_of, head_of, host_of, request_of, whole_of
from tests.fakes import uuid_of
from tests.sidecar.test_client import LONG_S, ROOT, YES, rigged, scripted
from tests.sidecar.test_client import http as answered

ALL: Final = uuid_of("catalog all")
NO: Final = answered(200, {"contains_content_items": False})


class Said:
    """Bytes, as http.client reads them from a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


# ---- pure

STATUS_LINES: Final = (
    *("HTTP/1.1 200 OK", "HTTP/1.1 200", "HTTP/1.1 404 Not Found", "HTTP/1.1 503 ", "HTTP/1.1 204 No Content"),
    *(
        "HTTP/1.1 100 Continue",
        "HTTP/1.0 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 2000 OK",
        "ICY 200",
        "HTTP/1.1 ２00 OK",
    ),
)
LINES: Final = (
    *("Content-Length: 5", "content-length:5", "Content-Length: 05", "Content-Length: +5", "Content-Length: 5, 5"),
    *("Content-Length : 5", "Content-Length: -1", "Content-Length: ５", "Content-Length: 99", "Content-Length: 0x5"),
    *("Transfer-Encoding: chunked", "transfer-encoding:\tidentity", "Connection: close", "Connection: keep-alive"),
    *("connection: Close, x", "X-Catalog-Age: 7", "X:", " folded", "\tfolded", ": nameless", "no colon", "X: \xe9", ""),
    *("X: a\rContent-Length: 3", "X: a\nContent-Length: 3", "X: \0", "Content-Length: 3\n", "Keep-Alive: timeout=5"),
)


@given(st.sampled_from(STATUS_LINES), st.lists(st.sampled_from(LINES), max_size=4))
@settings(max_examples=500)
@example("HTTP/1.1 200 OK", ["Content-Length: 5", "Connection: close"])
@example("HTTP/1.1 200 OK", ["Content-Length: 5", "Connection: close", "Connection: keep-alive"])
def test_a_plain_head_says_what_http_client_reads_in_it(status: str, lines: list[str]) -> None:
    head = "\r\n".join((status, *lines, "", "")).encode("latin-1", errors="replace")
    plain = head_of(head)
    if plain is None:
        return
    response = http.client.HTTPResponse(cast(socket.socket, Said(head + b"x" * 200)))
    response.begin()
    assert response.status == plain.status
    assert {name.lower(): value.strip(" \t") for name, value in response.getheaders()} == plain.headers
    assert len(response.read()) == plain.length
    assert response.will_close is not plain.lasts


def test_a_usual_head_is_plain() -> None:
    plain = head_of(YES[: YES.index(END) + 4])
    assert plain is not None
    assert (plain.status, plain.length, plain.lasts) == (200, len(YES) - YES.index(END) - 4, True)
    assert plain.headers["x-catalog-generation"] == "7"


def test_a_short_answer_that_came_whole_is_read_at_once() -> None:
    end = YES.index(END) + 4
    head = head_of(YES[:end])
    assert head is not None
    for _ in range(2):
        assert whole_of(YES) == ((head.status, head.headers, YES[end:], head.basis), True)
    closing = whole_of(YES.replace(END, b"\r\nConnection: close" + END))
    assert closing is not None
    assert closing[1] is False


@pytest.mark.parametrize("cut", [0, 1, YES.index(END), YES.index(END) + 4, len(YES) - 1])
def test_what_has_not_come_whole_is_not_read_yet(cut: int) -> None:
    assert whole_of(YES[:cut]) is None


def test_what_is_more_than_a_plain_answer_or_none_is_not_read_at_once() -> None:
    assert [whole_of(data) for data in (YES + b"\n", YES + YES, YES.replace(b"1.1", b"1.0"), CHUNKED)] == [None] * 4


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\rb", "a\0b", "\x7f", "€"])
def test_what_would_be_more_than_a_header_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="cannot say"):
        block_of({"Authorization": value})


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: b", "/a\n", "/\0", "/é", "/\u2028"])
def test_what_would_be_more_than_a_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be asked for|ascii"):
        request_of("GET", target, b"", None)


def test_a_request_says_how_long_its_body_is_where_one_may_be() -> None:
    block = block_of({"Host": "sidecar"})
    assert request_of("GET", "/", block, None) == b"GET / HTTP/1.1\r\nHost: sidecar\r\n\r\n"
    assert request_of("POST", "/", block, None) == b"POST / HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 0\r\n\r\n"
    assert request_of("GET", "/", block, b"{}") == b"GET / HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://sidecar", "sidecar"),
        ("http://sidecar:8080/base", "sidecar:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://bücher.example", "xn--bcher-kva.example"),
        ("unix:///run/a.socket", "localhost"),
    ],
)
def test_the_host_is_that_of_the_url(url: str, host: str) -> None:
    assert host_of(Address.parse(url)) == host


# ---- over sockets


async def asked(client: CatalogClient, times: int = 1, **how: Any) -> list[bool]:
    return [
        await asyncio.to_thread(client.contains_content_items, ALL, "Org+1", **{"timeout_s": LONG_S, **how})
        for _ in range(times)
    ]


async def test_every_request_of_a_token_has_the_same_bytes_of_headers(tmp_path: Path) -> None:
    tokens = iter("aab")
    async with scripted(tmp_path, lambda *_: YES) as (server, _, path):
        with CatalogClient(f"unix://{path}", lambda: next(tokens)) as client:
            assert await asked(client, 3) == [True] * 3
    first, second, third = (head.split("\r\n", 1)[1] for head in server.heads)
    lines = ("Host: localhost", f"User-Agent: {USER_AGENT}", "Accept: application/json", "Authorization: JWT a")
    assert first == second == "\r\n".join((*lines, "", ""))
    assert third == first.replace("JWT a", "JWT b")


LARGE: Final = {"contains_content_items": True, "more": "x" * 3_000_000}
BODY: Final = YES[YES.index(END) + len(END) :]
CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
FOLDED: Final = YES.replace(b"Content-Length", b"X-Folded: a\r\n b\r\nContent-Length")


@pytest.mark.parametrize(
    "answer, connections",
    [
        (YES, 1),
        (answered(200, LARGE), 1),
        (CHUNKED, 1),
        (FOLDED, 1),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + YES, 1),
        (YES.replace(b"\r\n", b"\n"), 1),
        (YES.replace(b"HTTP/1.1", b"HTTP/1.0"), 3),
        (YES + b"\r\n", 3),
    ],
    ids=["plain", "large", "chunked", "folded", "interim", "bare newlines", "older", "too much"],
)
async def test_an_answer_of_any_framing_is_read_and_its_connection_kept_if_it_lasts(
    tmp_path: Path, answer: bytes, connections: int
) -> None:
    async with scripted(tmp_path, lambda *_: answer) as (server, port, path):
        for url in (f"unix://{path}", f"http://127.0.0.1:{port}"):
            before = server.connections
            with CatalogClient(url) as client:
                assert await asked(client, 3) == [True] * 3
            assert server.connections - before == connections


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + BODY
    async with scripted(tmp_path, lambda *_: answer, ends=True) as (server, _, path):
        with CatalogClient(f"unix://{path}") as client:
            assert await asked(client, 2) == [True, True]
    assert server.connections == 2


async def test_an_answer_that_nobody_asked_for_is_nobodys(tmp_path: Path) -> None:
    """It may come with another one, or while the connection rests."""
    async with scripted(tmp_path, lambda *_: YES + NO) as (_, _, path):
        with CatalogClient(f"unix://{path}") as client:
            assert await asked(client, 3) == [True] * 3

    with socket.socket(socket.AF_UNIX) as server, CatalogClient(f"unix://{tmp_path}/resting") as client:
        server.bind(f"{tmp_path}/resting")
        server.listen()
        server.settimeout(LONG_S)

        def serve() -> socket.socket:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(YES)
            return connection

        for _ in range(2):
            asking = asyncio.create_task(asked(client))
            with await asyncio.to_thread(serve) as connection:
                assert await asking == [True]
                connection.sendall(NO)
                # The connection lasts, and the next question is asked over another one.
                asking = asyncio.create_task(asked(client))
                with await asyncio.to_thread(serve):
                    assert await asking == [True]


async def test_a_page_that_leads_to_nothing_that_can_be_asked_for_is_no_answer(tmp_path: Path) -> None:
    page = answered(200, {"results": [], "next": "http://elsewhere/?page=2 HTTP/1.1"})
    async with scripted(tmp_path, lambda *_: page) as (server, _, path):
        with CatalogClient(f"unix://{path}") as client, pytest.raises(CannotTell, match="nothing was sent"):
            await asyncio.to_thread(client.get_content_metadata, ALL, [ALL])
    assert len(server.heads) == 1


async def test_a_token_that_would_be_more_than_a_header_is_not_sent(tmp_path: Path) -> None:
    async with scripted(tmp_path, lambda *_: YES) as (server, _, path):
        with CatalogClient(f"unix://{path}", "a\r\nX: b") as client, pytest.raises(ValueError, match="Authorization"):
            await asked(client)
    assert server.heads == []


def later(answer: bytes, pieces: int) -> Callable[[socket.socket], None]:
    """Answers one request in pieces, each of which is late by the client's own measure."""

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            size = -(-len(answer) // pieces)
            for _ in range(2):
                connection.recv(4096)
                for start in range(0, len(answer), size):
                    threading.Event().wait(0.02)
                    connection.sendall(answer[start : start + size])

    return serve


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_what_comes_after_the_kernels_moment_is_waited_for(tmp_path: Path, pieces: int) -> None:
    with socket.socket(socket.AF_UNIX) as server, CatalogClient(f"unix://{tmp_path}/late") as client:
        server.bind(f"{tmp_path}/late")
        server.listen()
        serving = asyncio.create_task(asyncio.to_thread(later(YES, pieces), server))
        assert await asked(client, 2) == [True, True]
        await serving


INTERRUPTED: Final = """
import signal, socket, sys
from sidecar.client import CannotTell, CatalogClient

path = sys.argv[1]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
count = 0


def interrupt(*_):
    global count
    count += 1


signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
try:
    CatalogClient(f"unix://{path}").contains_content_items("a", "b", timeout_s=0.2)
except CannotTell as error:
    assert "deadline" in str(error), error
    assert count > 1, count
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.exit(7)
"""


async def test_signals_do_not_prolong_a_deadline(tmp_path: Path) -> None:
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", INTERRUPTED, f"{tmp_path}/silent"], cwd=ROOT, check=False, timeout=LONG_S
    )
    assert ended.returncode == 7


GREENLETS: Final = """
from gevent import monkey
monkey.patch_all()
import socket, sys, gevent
from sidecar.client import CannotTell, CatalogClient

catalog, silent, *urls = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.bind(silent)
server.listen(256)


def ask(client, number):
    key = f"Org+{number}"
    return [client.get_content_metadata_content_identifier(key, timeout_s=60)["key"] for _ in range(5)] == [key] * 5


def wait():
    try:
        CatalogClient(f"unix://{silent}").contains_content_items(catalog, "x", timeout_s=0.5)
    except CannotTell as error:
        return "deadline" in str(error)


with gevent.Timeout(60):
    # Whoever waits lets the others go on: else these would wait one after the other, and too long.
    waiting = [gevent.spawn(wait) for _ in range(200)]
    asking = [gevent.spawn(ask, client, n) for client in map(CatalogClient, urls) for n in range(20)]
    gevent.joinall([*asking, *waiting], raise_error=True)
assert all(one.value for one in (*asking, *waiting))
"""


async def test_greenlets_share_a_client_and_let_each_other_run(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        arguments = (ALL, f"{tmp_path}/silent", rig.url, f"unix://{rig.socket}")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", GREENLETS, *arguments), cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(LONG_S):
            _, said = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")
