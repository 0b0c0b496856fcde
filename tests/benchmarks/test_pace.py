"""The load generator: requests are asked in turn, waits count, and what is no good answer ends the run."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.callers import write_requests
from benchmarks.load import Pace, Target
from benchmarks.processes import Spoiled

RATE = 1_000.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def pace(tmp_path_factory: pytest.TempPathFactory) -> Pace:
    return Pace(tmp_path_factory.mktemp("pace"), core=None)


@contextmanager
def served(path: Path, answer: Callable[[bytes], bytes]) -> Iterator[Target]:
    """A server of one connection, on a socket."""
    requests = [f"GET /{n} HTTP/1.1\r\n\r\n".encode() for n in range(3)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "s"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while request := connection.recv(1000):
                    connection.sendall(answer(request))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Target(path / "s", [], write_requests(path / "requests", requests))
        finally:
            thread.join()


def test_requests_are_asked_in_turn_and_each_has_a_latency(pace: Pace, tmp_path: Path) -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request.split()[1])
        return OK

    with served(tmp_path, answer) as target:
        found = pace.constant(target, connections=1, rate=RATE, seconds=0.05)
    assert asked == [b"/%d" % (n % 3) for n in range(50)]
    assert len(found.ns) == 50
    assert found.unanswered == 0


def test_a_stall_is_in_the_latency_of_all_who_were_meant_to_come_meanwhile(pace: Pace, tmp_path: Path) -> None:
    stalled_ns: list[int] = []

    def answer(_: bytes) -> bytes:
        if not stalled_ns:
            began = time.monotonic_ns()
            threading.Event().wait(0.1)
            stalled_ns.append(time.monotonic_ns() - began)
        return OK

    with served(tmp_path, answer) as target:
        found = pace.constant(target, connections=1, rate=RATE, seconds=0.05)
    # By the definition of latency, and on however slow a machine: all of the stall but what came before its turn.
    assert [ns for n, ns in enumerate(found.ns) if ns < stalled_ns[0] - n * 1e9 / RATE] == []


def test_those_who_are_never_answered_are_counted_with_what_they_have_waited(pace: Pace, tmp_path: Path) -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        return OK if len(asked) < 10 else b""

    with served(tmp_path, answer) as target:
        found = pace.constant(target, connections=1, rate=RATE, seconds=0.02)
    # Nine are answered, one is under way, and ten find no connection.
    assert (len(asked), found.unanswered, len(found.ns)) == (10, 11, 20)
    # It waits for two seconds after the end, in which each of them would have had its answer.
    assert min(found.ns[9:]) >= 2_000_000_000


@pytest.mark.parametrize(
    "said, reason",
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "an answer without Content-Length"),
        (OK + b"more", "more came than was asked for"),
    ],
)
def test_what_is_no_good_answer_ends_the_run(pace: Pace, tmp_path: Path, said: bytes, reason: str) -> None:
    with served(tmp_path, lambda _: said) as target, pytest.raises(Spoiled, match=reason):
        pace.closed(target, connections=1, seconds=1)
