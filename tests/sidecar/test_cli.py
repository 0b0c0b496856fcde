"""The process as an operator runs it: what it refuses, what it says, and that it answers from its disk alone."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from click.testing import CliRunner

from sidecar import __version__
from sidecar.cli import main
from sidecar.store.sqlite import SqliteStore
from tests.trees import Catalog, World, publish, selections

ONE = UUID(int=1)
LOOKUP = f"/api/v1/enterprise-catalogs/{ONE}/contains_content_items/?course_run_ids=edX%2BA"
WORLD = World(courses={"edX+A": []}, selections=selections(a={"edX+A"}), catalogs=[Catalog(ONE, "a")])
DEADLINE_S = 20


class Process:
    """A running `catalog-sidecar serve`, known by the lines that it logs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0

    async def says(self, event: str) -> dict[str, Any]:
        """Reads on until it logs this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            async for line in self.process.stderr:
                entry: dict[str, Any] = json.loads(line)
                if entry["event"] == event:
                    return entry
        raise AssertionError(f"it never said {event!r}")

    async def get(self, path: str, unix: Path | None = None) -> tuple[int, Any, str | None]:
        connector = None if unix is None else aiohttp.UnixConnector(str(unix))
        async with (
            asyncio.timeout(DEADLINE_S),
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status, await answer.json(), answer.headers.get("Retry-After")

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


def environment(folder: Path, **more: str) -> dict[str, str]:
    return os.environ | {
        "CATALOG_STORE_URL": f"sqlite:///{folder / 'store.db'}",
        "CATALOG_SIDECAR_DISK": str(folder / "disk.db"),
        "CATALOG_SIDECAR_SOCKET": str(folder / "s"),
        "CATALOG_SIDECAR_PORT": "0",
        "CATALOG_LOG_FORMAT": "json",
        **more,
    }


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Process]:
    process = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "serve"), env=environment(folder), stderr=asyncio.subprocess.PIPE
        )
    )
    try:
        process.port = (await process.says("listening"))["port"]
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
            await process.process.wait()


async def refused(folder: Path, **more: str) -> tuple[int | None, str]:
    """The exit code, and what it says. In a process of its own, because one that answers sets up all of its process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "serve"), env=environment(folder, **more), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def publish_to(folder: Path, generation: int = 1) -> None:
    store = SqliteStore(folder / "store.db", writable=True)
    await publish(store, WORLD.tree(generation=generation))
    await store.close()


def remove_store(folder: Path) -> None:
    for file in folder.glob("store.db*"):
        file.unlink()


async def test_it_answers_over_tcp_and_the_socket_and_ends_cleanly(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as process:
        await process.says("generation served")
        contained = (200, {"contains_content_items": True}, None)
        assert await process.get(LOOKUP) == contained
        assert await process.get(LOOKUP, unix=tmp_path / "s") == contained
        assert await process.end(signal.SIGTERM) == 0
    assert not (tmp_path / "s").exists()


async def test_it_answers_from_its_disk_after_a_crash_with_the_store_gone(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as process:
        await process.says("generation copied to disk")
        remove_store(tmp_path)
        assert (await process.get(LOOKUP))[:2] == (200, {"contains_content_items": True})
        assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    assert (tmp_path / "s").exists()
    async with started(tmp_path) as process:
        served = await process.says("generation served")
        assert served["source"] == "disk"
        assert (await process.get("/ready"))[0] == 200
        assert (await process.get(LOOKUP))[:2] == (200, {"contains_content_items": True})
        assert (await process.get(LOOKUP, unix=tmp_path / "s"))[0] == 200
        assert await process.end(signal.SIGINT) == 0


async def test_without_store_and_disk_it_cannot_tell(tmp_path: Path) -> None:
    async with started(tmp_path) as process:
        await process.says("the store cannot be read; what is loaded goes on being served")
        status, body, retry_after = await process.get(LOOKUP)
        assert (status, retry_after) == (503, "5")
        assert "no generation is loaded" in body["detail"]
        assert (await process.get("/ready"))[0] == 503
        assert (await process.get("/health"))[0] == 503
        assert await process.end(signal.SIGTERM) == 0


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = await refused(tmp_path, CATALOG_SIDECAR_PORT=str(port))
    assert code == 1
    assert f"127.0.0.1:{port} is in use" in said
    assert "sidecar.port" in said
    assert len(said.splitlines()) == 1


async def test_a_socket_that_somebody_answers_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        code, said = await refused(tmp_path)
    assert (code, path.exists()) == (1, True)
    assert f"{path} (sidecar.socket) is in use" in said


async def test_a_file_where_the_socket_should_be_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("something of value")
    code, said = await refused(tmp_path)
    assert code == 1
    assert "is no socket" in said
    assert (tmp_path / "s").read_text() == "something of value"


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("CATALOG_SIDECAR_PORT", "high", "sidecar.port"),
        ("CATALOG_SIDECAR_HOST", "0.0.0.0", "loopback"),
        ("CATALOG_STORE_URL", "redis://127.0.0.1:1/zero", "store.url"),
    ],
)
async def test_wrong_settings_are_one_message(tmp_path: Path, name: str, value: str, expected: str) -> None:
    code, said = await refused(tmp_path, **{name: value})
    assert code == 2
    assert said.startswith("catalog-sidecar: ")
    assert expected in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "content, told", [(None, "No such file"), ("{", "not JSON"), ('{"keys": []}', "no public RSA key")]
)
async def test_keys_that_cannot_verify_any_token_are_refused(tmp_path: Path, content: str | None, told: str) -> None:
    keys = tmp_path / "jwks.json"
    if content is not None:
        keys.write_text(content)
    names = {"MODE": "jwt", "JWKS_FILE": str(keys), "ISSUER": "us", "AUDIENCE": "them"}
    code, said = await refused(tmp_path, **{f"CATALOG_AUTH_{name}": value for name, value in names.items()})
    assert (code, said.startswith("catalog-sidecar: auth.jwks_file")) == (2, True)
    assert told in said
    assert "Traceback" not in said


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--config", str(tmp_path / "none.toml")])
    assert (result.exit_code, "none.toml" in result.stderr) == (2, True)


def test_the_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"catalog-sidecar, version {__version__}\n"
