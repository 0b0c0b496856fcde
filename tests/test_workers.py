"""Several workers as one sidecar, with real processes: whatever ends or is exchanged, every question is answered."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from sidecar.clock import SystemClock
from tests.fleet import LOOK_EVERY_S
from tests.sidecar.test_cli import LOOKUP, publish_to, remove_store

# Longer than a worker is given to end answers that are under way, so that what takes all of that is told as such.
DEADLINE_S: Final = 90.0
YES: Final = {"contains_content_items": True}
Line = dict[str, Any]


class Running:
    """A supervisor, what it and its workers have said, and how to ask them."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.port = 0
        self.said: list[Line] = []
        self._news = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.said.append(json.loads(line))
            self._news.set()
            self._news = asyncio.Event()

    async def says(self, event: str, count: int = 1, **fields: object) -> Line:
        """Waits for a line to have come so often, and returns the last of them."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    lines = [line for line in self.said if line["event"] == event and line.items() >= fields.items()]
                    if len(lines) >= count:
                        return lines[count - 1]
                    await self._news.wait()
        except TimeoutError:
            said = "\n".join(map(str, self.said))
            raise AssertionError(f"{event!r} was not said within {DEADLINE_S:g} s, but\n{said}") from None

    async def get(self, path: str, *, unix: bool = False) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        status, text = await self.text(path, unix=unix)
        return status, json.loads(text)

    async def text(self, path: str, *, unix: bool = False) -> tuple[int, str]:
        """Asks over a connection of its own."""
        connector = aiohttp.UnixConnector(str(self.folder / "s")) if unix else None
        async with (
            asyncio.timeout(DEADLINE_S),
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def metric(self, name: str) -> float:
        """The sum of a metric's series on the page."""
        status, text = await self.text("/metrics")
        assert status == 200
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Waits for something that only asking shows."""
        async with asyncio.timeout(DEADLINE_S):
            while not await condition():
                await SystemClock().sleep(LOOK_EVERY_S)

    async def both_answer(self) -> None:
        """Waits until each of the two workers has its slot, and the supervisor has told both."""

        async def told() -> bool:
            return {await self.standing() for _ in range(16)} == {(1, 2, 2), (2, 2, 2)}

        await self.until(told)

    async def standing(self) -> tuple[int, int, int]:
        """Who answers, how many there should be, and how many there are."""
        worker = (await self.get("/health"))[1]["worker"]
        return worker["number"], worker["wanted"], worker["running"]

    def workers(self) -> list[int]:
        """The processes of the workers, those that end included."""
        processes = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())
        return sorted(one for one in processes if parent_of(one) == self.process.pid)

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def started(folder: Path, **settings: str) -> AsyncIterator[Running]:
    """Two workers on a port of their own, a unix socket and a disk copy; in the end none is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATALOG_")}
    environment |= {
        "CATALOG_STORE_URL": f"sqlite:///{folder / 'store.db'}",
        "CATALOG_SIDECAR_DISK": str(folder / "disk.db"),
        "CATALOG_SIDECAR_SOCKET": str(folder / "s"),
        "CATALOG_SIDECAR_PORT": "0",
        "CATALOG_SIDECAR_WORKERS": "2",
        "CATALOG_LOG_FORMAT": "json",
        **settings,
    }
    config = folder / "settings.toml"
    config.touch()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "serve", "--config", str(config)),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Running(process, folder)
    try:
        running.port = (await running.says("listening"))["port"]
        yield running
    finally:
        left = running.workers()
        if process.returncode is None:
            process.kill()
        await process.wait()
        for one in left:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        await running.reading


async def refused(**settings: str) -> tuple[int | None, str]:
    """The exit code of two workers that do not come to run, and all that was said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "serve"),
        env=os.environ | {"CATALOG_SIDECAR_WORKERS": "2", "CATALOG_SIDECAR_DISK": ""} | settings,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, said.decode()


def parent_of(process: int) -> int | None:
    """Whose child a process is; None if it has ended, whether or not somebody has asked how."""
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def runs(process: int) -> bool:
    return parent_of(process) is not None


class Callers:
    """Callers who ask all the time over kept connections, and take a new one when the old was ended between two."""

    def __init__(self, port: int, path: str | None, count: int) -> None:
        self.answers = 0
        self.ended = 0
        self._port = port
        self._path = path
        self._stop = False
        self._tasks = [asyncio.create_task(self._call()) for _ in range(count)]

    async def finish(self) -> None:
        """Raises what went wrong for any of them."""
        self._stop = True
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        request = f"GET {LOOKUP} HTTP/1.1\r\nHost: here\r\n\r\n".encode()
        while not self._stop:
            if self._path is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            else:
                reader, writer = await asyncio.open_unix_connection(self._path)
            last = False
            while not (last or self._stop):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith("HTTP/1.1 200 "), head
                length = re.search(r"Content-Length: (\d+)", head)
                assert length is not None
                assert json.loads(await reader.readexactly(int(length[1]))) == YES
                self.answers += 1
                last = "Connection: close" in head
            if last:
                self.ended += 1
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


async def test_both_workers_answer_over_tcp_and_one_socket_and_end_cleanly(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        assert await running.get(LOOKUP) == (200, YES)
        assert await running.get(LOOKUP, unix=True) == (200, YES)
        assert len(running.workers()) == 2
        assert await running.metric("catalog_sidecar_workers") == 2
        # Whoever was asked, the page is that of both.
        before = await running.metric("catalog_sidecar_requests_total")
        for asked in range(1, 5):
            assert await running.metric("catalog_sidecar_requests_total") == before + asked
        workers = running.workers()
        assert await running.end(signal.SIGTERM) == 0
        assert not any(map(runs, workers))
    assert not (tmp_path / "s").exists()


async def test_what_a_killed_worker_leaves_is_taken_up_at_once_and_it_is_replaced(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        for _ in range(8):
            assert await running.get(LOOKUP) == (200, YES)
        counted = await running.metric("catalog_sidecar_requests_total")
        killed = running.workers()[0]
        os.kill(killed, signal.SIGKILL)
        await running.says("a worker ended", code=-signal.SIGKILL)
        for _ in range(8):
            assert await running.get(LOOKUP) == (200, YES)
            now = await running.metric("catalog_sidecar_requests_total")
            assert now >= counted
            counted = now
        await running.both_answer()
        assert killed not in running.workers()
        assert await running.metric("catalog_sidecar_requests_total") > counted
        assert await running.metric("catalog_sidecar_worker_deaths_total") == 1
        assert await running.end(signal.SIGINT) == 0


async def test_no_request_fails_while_workers_are_exchanged(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        before = running.workers()
        over_tcp, over_unix = Callers(running.port, None, 4), Callers(0, str(tmp_path / "s"), 2)
        for exchange in (1, 2):
            asked = over_tcp.answers
            counted = await running.metric("catalog_sidecar_requests_total")
            running.process.send_signal(signal.SIGHUP)
            await running.says("workers were exchanged", exchange)
            assert over_tcp.answers > asked
            assert await running.metric("catalog_sidecar_requests_total") > counted
        await over_tcp.finish()
        await over_unix.finish()
        assert over_tcp.ended >= 4
        assert set(running.workers()).isdisjoint(before)
        await running.both_answer()
        assert await running.get(LOOKUP, unix=True) == (200, YES)
        assert await running.metric("catalog_sidecar_worker_deaths_total") == 0
        assert await running.end(signal.SIGTERM) == 0


async def test_an_exchange_cuts_no_answer_off_and_closes_connections_that_ask_nothing(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'"half ')
        begun.set()
        await gate.wait()
        await response.write(b'and half"')
        return response

    app = web.Application()
    app.router.add_get("/slow", slow)
    async with (
        TestServer(app) as upstream,
        started(tmp_path, CATALOG_UPSTREAM_URL=str(upstream.make_url("")).rstrip("/")) as running,
    ):
        await running.both_answer()
        asks = asyncio.create_task(running.text("/slow"))
        await begun.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        running.process.send_signal(signal.SIGHUP)
        await running.says("connections are closed that ask nothing")
        gate.set()
        assert await asks == (200, '"half and half"')
        await running.says("workers were exchanged")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert await running.end(signal.SIGTERM) == 0


async def test_workers_that_cannot_work_with_changed_settings_replace_none(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        before = running.workers()
        (tmp_path / "settings.toml").write_text("[sidecar]\nworker = 2\n")
        running.process.send_signal(signal.SIGHUP)
        assert "did you mean sidecar.workers?" in (await running.says("no worker is exchanged"))["reason"]
        (tmp_path / "settings.toml").write_text(
            '[auth]\nmode = "jwt"\nissuer = "us"\naudience = "them"\njwks_file = "/nowhere"\n[sidecar]\nhost = "::1"\n'
        )
        running.process.send_signal(signal.SIGHUP)
        assert (await running.says("changed settings need a restart"))["settings"] == ["sidecar.host"]
        assert "auth.jwks_file" in (await running.says("a worker cannot work with the settings"))["reason"]
        await running.says("the exchange of workers is given up", worker=1)
        assert running.workers() == before
        assert await running.get(LOOKUP) == (200, YES)
        (tmp_path / "settings.toml").write_text("[sidecar]\nmemory_mb = 7\n")
        running.process.send_signal(signal.SIGHUP)
        await running.says("workers were exchanged")
        assert await running.metric("catalog_sidecar_memory_limit_bytes") == 2 * 7 * 1024 * 1024
        assert await running.end(signal.SIGTERM) == 0


async def test_all_workers_start_from_the_disk_copy_with_the_store_gone(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        await running.says("generation copied to disk")
        assert await running.end(signal.SIGTERM) == 0
    remove_store(tmp_path)
    async with started(tmp_path) as running:
        for worker in (1, 2):
            assert (await running.says("generation served", worker=worker))["source"] == "disk"
        await running.both_answer()
        answered: set[int] = set()
        while answered != {1, 2}:
            assert await running.get("/api/v1/content-metadata/edX+A/") == (200, {"key": "edX+A"})
            health = (await running.get("/health"))[1]
            assert health["disk"] == "ok"
            answered.add(health["worker"]["number"])
        assert await running.end(signal.SIGTERM) == 0


async def test_the_disk_copy_goes_on_when_the_worker_that_wrote_it_ends(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        writer = (await running.says("generation copied to disk"))["worker"]
        # The others said nothing of a disk that fails: it is theirs, too.
        assert not any(line["event"].startswith("the disk copy fails") for line in running.said)
        os.kill((await running.says("worker started", worker=writer))["pid"], signal.SIGKILL)
        await publish_to(tmp_path, generation=2)
        await running.says("generation copied to disk", generation=2)
        assert await running.end(signal.SIGTERM) == 0


async def test_a_worker_with_an_older_state_than_the_others_is_not_asked(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.says("generation copied to disk")
        back_up(tmp_path / "disk.db", tmp_path / "older.db")
        await publish_to(tmp_path, generation=2)
        for worker in (1, 2):
            await running.says("generation served", worker=worker, generation=2)
        await running.both_answer()
        await running.says("generation copied to disk", generation=2)
        remove_store(tmp_path)
        put_back(tmp_path / "older.db", tmp_path / "disk.db")
        os.kill((await running.says("worker started", worker=1))["pid"], signal.SIGKILL)
        assert (await running.says("generation served", worker=1, generation=1, source="disk"))["epoch"] == 1
        for _ in range(16):
            assert await running.get("/ready") == (200, {"ready": True, "generation": 2})
        assert await running.standing() == (2, 2, 1)
        assert await running.metric("catalog_sidecar_generation") == 2
        assert await running.end(signal.SIGTERM) == 0


def back_up(database: Path, copy: Path) -> None:
    with closing(sqlite3.connect(database)) as whole, closing(sqlite3.connect(copy)) as other:
        whole.backup(other)


def put_back(copy: Path, database: Path) -> None:
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    copy.replace(database)


async def test_workers_end_when_their_supervisor_was_killed(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        workers = running.workers()
        await running.end(signal.SIGKILL)

        async def gone() -> bool:
            return not any(map(runs, workers))

        await running.until(gone)


async def test_without_store_and_disk_they_say_that_they_cannot_tell(tmp_path: Path) -> None:
    async with started(tmp_path) as running:
        assert (await running.get("/ready"))[0] == 503
        status, body = await running.get(LOOKUP)
        assert (status, "no generation is loaded" in body["detail"]) == (503, True)
        await publish_to(tmp_path)

        async def ready() -> bool:
            return (await running.get("/ready"))[0] == 200

        await running.until(ready)
        assert await running.end(signal.SIGTERM) == 0


async def test_settings_that_cannot_work_end_it_with_one_message(tmp_path: Path) -> None:
    names = {"MODE": "jwt", "JWKS_FILE": str(tmp_path / "none"), "ISSUER": "us", "AUDIENCE": "them"}
    settings = {f"CATALOG_AUTH_{name}": value for name, value in names.items()}
    code, said = await refused(CATALOG_SIDECAR_PORT="0", **settings)
    assert code == 2
    assert said.splitlines()[-1].startswith("catalog-sidecar: auth.jwks_file")
    assert said.count("catalog-sidecar: ") == 1


async def test_a_port_that_other_workers_have_is_told_rather_than_shared(tmp_path: Path) -> None:
    async with started(tmp_path) as running:
        code, said = await refused(CATALOG_SIDECAR_PORT=str(running.port))
        assert (code, f"127.0.0.1:{running.port} is in use" in said) == (1, True)
        assert await running.end(signal.SIGTERM) == 0


async def test_a_worker_that_is_silent_is_left_out_of_the_gauges_and_counts_as_it_did(tmp_path: Path) -> None:
    await publish_to(tmp_path)
    async with started(tmp_path) as running:
        await running.both_answer()
        counted = await running.metric("catalog_sidecar_requests_total")
        stopped = running.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            # Whoever gets to the one that is stopped waits; the other one answers over the socket.
            status, text = await running.text("/metrics", unix=True)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert status == 200
        assert "catalog_sidecar_workers 1.0" in text.splitlines()
        requests = re.findall(r"^catalog_sidecar_requests_total{.*} (\S+)$", text, re.MULTILINE)
        assert sum(map(float, requests)) >= counted
        assert await running.end(signal.SIGTERM) == 0
