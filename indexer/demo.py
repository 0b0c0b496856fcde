"""`catalog-indexer demo`: the main job on the embedded default, with content that it makes itself.

It runs the same two commands that an operator runs, as child processes over one settings file, and only watches them.
"""

import asyncio
import datetime
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import click

from indexer.catalog_body import read_catalog
from indexer.registry import Registry, catalogs
from indexer.sample import Corpus, Question, sample_catalogs, sample_corpus, sample_questions
from sidecar.clock import SystemClock
from sidecar.errors import CatalogError

HOST: Final = "127.0.0.1"
READY_WITHIN_S: Final = 120.0
STOP_WITHIN_S: Final = 10.0
LOOK_EVERY_S: Final = 0.1


class DemoFailed(Exception):
    """Raised when the demo cannot go on; says what happened, and where to look."""


def run(directory: Path, courses: int, indexer_port: int, sidecar_port: int) -> int:
    """Runs until Ctrl-C; the exit code."""
    stop = _Stop()
    try:
        indexer_port = _free_port(indexer_port, "--indexer-port")
        sidecar_port = _free_port(sidecar_port, "--sidecar-port")
        today = datetime.datetime.now(datetime.UTC).date()
        # Tomorrow's content is another one: what was pulled of today's would answer tomorrow's questions wrongly.
        directory = directory / f"{today}-{courses}"
        click.echo(f"making {courses} courses and a dozen catalogs in {directory}/ …")
        corpus = sample_corpus(today, courses)
        bodies = sample_catalogs(corpus)
        config = _prepare(directory.absolute(), corpus, indexer_port, sidecar_port)
        asyncio.run(_register(directory.absolute(), bodies))
        questions = sample_questions(corpus, bodies)
        with ExitStack() as stack:
            children = {
                name: stack.enter_context(_child(name, config, directory / f"{name}.log"))
                for name in ("indexer", "sidecar")
            }
            _wait_until_served(children, directory, indexer_port, sidecar_port, stop)
            if not stop.asked:
                _explain(questions, directory, indexer_port, sidecar_port)
            while not stop.asked:
                _check_alive(children, directory)
                time.sleep(LOOK_EVERY_S)
            click.echo("stopping …")
    except CatalogError as error:
        click.echo(f"Error: {error}; remove {directory}/, or choose another --directory", err=True)
        return 1
    except DemoFailed as error:
        if not stop.asked:  # Ctrl-C reaches the children, too: that they end then is no failure.
            click.echo(f"Error: {error}", err=True)
            return 1
    return 0


class _Stop:
    """Whether somebody has asked the demo to end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def _free_port(port: int, option: str) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoFailed(
                f"{HOST}:{port} is in use: stop what listens there, or choose another port with {option}"
            ) from error
        return int(probe.getsockname()[1])


def _prepare(directory: Path, corpus: Corpus, indexer_port: int, sidecar_port: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "corpus.json").write_text(json.dumps(corpus, ensure_ascii=False))
    config = directory / "config.toml"
    config.write_text(_settings(directory, indexer_port, sidecar_port))
    return config


async def _register(directory: Path, bodies: list[dict[str, Any]]) -> None:
    registry = Registry(f"sqlite+aiosqlite:///{directory}/registry.db", SystemClock())
    try:
        await registry.open()
        async with registry.write() as tx:
            for body in bodies:
                await catalogs.create(tx, read_catalog(body), "demo")
    finally:
        await registry.close()


def _settings(directory: Path, indexer_port: int, sidecar_port: int) -> str:
    sections: Mapping[str, Mapping[str, str | int | float]] = {
        "store": {"url": f"sqlite:///{directory}/store.db"},
        "registry": {"url": f"sqlite+aiosqlite:///{directory}/registry.db"},
        "source": {"kind": "file", "path": f"{directory}/corpus.json"},
        "indexer": {"host": HOST, "port": indexer_port, "lease_s": 2.0},
        "sidecar": {
            "host": HOST,
            "port": sidecar_port,
            "disk": f"{directory}/sidecar.db",
            "indexer_url": f"http://{HOST}:{indexer_port}",
        },
    }
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""]
    return "\n".join(lines)


@contextmanager
def _child(name: str, config: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CATALOG_")}
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", name, "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environ,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_until_served(
    children: Mapping[str, "subprocess.Popen[bytes]"],
    directory: Path,
    indexer_port: int,
    sidecar_port: int,
    stop: _Stop,
) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not stop.asked:
        indexer = _look(f"http://{HOST}:{indexer_port}/health")
        sidecar = _look(f"http://{HOST}:{sidecar_port}/health")
        if (
            indexer.get("status") == "ok"
            and indexer.get("behind") == 0
            and sidecar.get("generation") == indexer.get("generation")
        ):
            return
        _check_alive(children, directory)
        if time.monotonic() > deadline:
            raise DemoFailed(f"nothing is served after {READY_WITHIN_S:.0f} s; see the logs in {directory}/")
        time.sleep(LOOK_EVERY_S)


def _look(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except (OSError, ValueError):
        return {}


def _check_alive(children: Mapping[str, "subprocess.Popen[bytes]"], directory: Path) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            log = directory / f"{name}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise DemoFailed("\n".join([f"the {name} ended with {child.returncode}; the end of {log}:", *last]))


def _explain(questions: list[Question], directory: Path, indexer_port: int, sidecar_port: int) -> None:
    click.echo(f"sidecar on http://{HOST}:{sidecar_port}, indexer on http://{HOST}:{indexer_port}\n")
    for question in questions:
        click.echo(f"# {question.title}")
        click.echo(_curl(question, f"http://{HOST}:{sidecar_port}"))
        click.echo(f"{question.answer}\n")
    click.echo(f"settings and logs are in {directory}/; Ctrl-C stops both")


def _curl(question: Question, base: str) -> str:
    words = ["curl", "-s"]
    if question.body is not None:
        words += ["-X", question.method, "-H", "Content-Type: application/json", "-d", json.dumps(question.body)]
    return shlex.join([*words, base + question.path])
