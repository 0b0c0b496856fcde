"""The demo as people meet it: a process that prints three questions, whose answers the sidecar gives byte for byte."""

import datetime
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import pytest

from indexer.catalog_body import read_catalog
from indexer.registry import Registry, catalogs
from indexer.sample import sample_catalogs, sample_corpus
from sidecar.clock import SystemClock

ROOT: Final = Path(__file__).parent.parent.parent
LAST_LINE: Final = "Ctrl-C stops both"
LONG_S: Final = 60.0


@contextmanager
def demo(directory: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """The demo in a process group of its own, on free ports; killed if a test forgets to end it, or takes too long."""
    ports = () if "--sidecar-port" in options else ("--indexer-port", "0", "--sidecar-port", "0")
    command = [sys.executable, "-m", "indexer", "demo", "--directory", str(directory), "--courses", "40"]
    child = subprocess.Popen(
        [*command, *ports, *options],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"CATALOG_STORE_URL": "redis://nobody"},
    )
    watchdog = threading.Timer(LONG_S, child.kill)
    watchdog.start()
    try:
        yield child
    finally:
        watchdog.cancel()
        child.terminate()
        child.wait(LONG_S)
        for stream in (out(child), err(child)):
            stream.close()


def out(child: "subprocess.Popen[str]") -> IO[str]:
    assert child.stdout is not None
    return child.stdout


def err(child: "subprocess.Popen[str]") -> IO[str]:
    assert child.stderr is not None
    return child.stderr


def read_until(child: "subprocess.Popen[str]", words: str) -> list[str]:
    said = []
    for line in out(child):
        said.append(line.rstrip("\n"))
        if words in line:
            return said
    pytest.fail(f"the demo ended with {child.wait()}: {said}; {err(child).read()}")


def questions(said: list[str]) -> list[tuple[str, str]]:
    """Each printed command, and the line below it."""
    return [(line, said[n + 1]) for n, line in enumerate(said) if line.startswith("curl ")]


def ask(command: str) -> str:
    """What curl would print."""
    words = iter(shlex.split(command))
    assert next(words) == "curl"
    method, headers, data, url = "GET", {}, None, ""
    for word in words:
        match word:
            case "-s":
                pass
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                data = next(words).encode()
            case _:
                assert not url
                url = word
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())


def listens(url: str) -> bool:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def test_the_printed_questions_have_the_printed_answers_and_ctrl_c_ends_it_all(tmp_path: Path) -> None:
    """In a folder where another demo was ended while it began."""
    with demo(tmp_path / "demo") as child:
        read_until(child, "making 40 courses")
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(LONG_S) == 0
        assert err(child).read() == ""
    with demo(tmp_path / "demo") as child:
        said = read_until(child, LAST_LINE)
        asked = questions(said)
        assert len(asked) == 3
        for command, answer in asked:
            assert ask(command) == answer, command
        (where,) = [line for line in said if line.startswith("sidecar on ")]
        sidecar, indexer = (part.split(" on ")[1] for part in where.split(", "))
        assert listens(sidecar)
        assert listens(indexer)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(LONG_S) == 0
        assert out(child).read() == "stopping …\n"
        assert err(child).read() == ""
        assert not listens(sidecar)
        assert not listens(indexer)


@pytest.mark.parametrize("option", ["--indexer-port", "--sidecar-port"])
def test_a_port_that_is_taken_is_said_to_be(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        free = "--indexer-port" if option == "--sidecar-port" else "--sidecar-port"
        with demo(tmp_path / "demo", option, port, free, "0") as child:
            assert child.wait(LONG_S) == 1
            assert err(child).read() == (
                f"Error: 127.0.0.1:{port} is in use: stop what listens there, or choose another port with {option}\n"
            )
            assert out(child).read() == ""
    assert not (tmp_path / "demo").exists()


async def test_a_folder_with_other_catalogs_in_it_is_refused(tmp_path: Path) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    folder = tmp_path / "demo" / f"{today}-40"
    body = sample_catalogs(sample_corpus(today, 40))[0]
    registry = Registry(f"sqlite+aiosqlite:///{folder}/registry.db", SystemClock())
    await registry.open()
    async with registry.write() as tx:
        await catalogs.create(tx, read_catalog({**body, "title": "Of an older version"}), "test")
    await registry.close()
    with demo(tmp_path / "demo") as child:
        assert child.wait(LONG_S) == 1
        error = err(child).read()
        assert error.startswith(f"Error: catalog {body['uuid']} exists with another body")
        assert error.endswith(f"; remove {folder}/, or choose another --directory\n")
