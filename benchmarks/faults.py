"""What callers see while course-discovery fails: whether any answer changes, what the pulls say, when they pass again.

    python -m benchmarks.faults --corpus corpus.json --definitions definitions.json --discovery http://127.0.0.1:18382

An indexer and a sidecar run over a server of that corpus which takes faults under /_faults. After a first build, each
fault is set, the largest queries are pulled again, and the sidecar is asked the same questions all the while.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.installation import CREATED, Installation
from benchmarks.sources import from_discovery, read_arguments

HOST: Final = "http://127.0.0.1"
INDEXER_PORT: Final = 18175
SIDECAR_PORT: Final = 18165
QUERIES: Final = 4
QUESTIONS: Final = 400
FAILING: Final[Sequence[dict[str, Any]]] = (
    {"fail_page": 2, "status": 500},
    {"truncate": 200},
    {"count_off": 5},
    {"repeat_page": 2},
    {"hang": True},
)
HELD: Final[Sequence[dict[str, Any]]] = ({"empty": True}, {"only_type": "program"})
SLOW: Final[Sequence[dict[str, Any]]] = ({"latency_ms": 500}, {"retry_after_s": 2, "times": 3})
Json = dict[str, Any]


class Callers:
    """Asks the same questions again and again; `asked` and `changed` count since the last reset."""

    def __init__(self, session: aiohttp.ClientSession, definitions: Sequence[Json], keys: Sequence[str]) -> None:
        rnd = random.Random("faults")
        self._session = session
        self._questions = [(rnd.choice(definitions)["uuid"], rnd.choice(keys)) for _ in range(QUESTIONS)]
        self._expected: list[tuple[int, str]] = []
        self.asked = self.changed = 0

    async def remember(self) -> None:
        """Takes the present answers for the right ones."""
        self._expected = [await self._ask(*question) for question in self._questions]

    async def go_on(self) -> None:
        """Asks until cancelled."""
        while True:
            for question, expected in zip(self._questions, self._expected, strict=True):
                self.changed += await self._ask(*question) != expected
                self.asked += 1

    async def _ask(self, catalog: str, key: str) -> tuple[int, str]:
        url = f"{HOST}:{SIDECAR_PORT}/api/v1/enterprise-catalogs/{catalog}/contains_content_items/"
        async with self._session.get(url, params={"course_run_ids": key}) as response:
            return response.status, await response.text()


async def _measure(definitions: Sequence[Json], keys: Sequence[str], discovery: str) -> int:
    changed = 0
    # Every other course is gone with its runs; and one alone, which is what courses do.
    gone = [f"{kind}:{key}" for key in keys[::2] for kind in ("course", "courserun")]
    small = {"drop": [f"course:{keys[0]}"]}
    expected: list[tuple[Json, str]] = [
        *((fault, "failed") for fault in FAILING),
        *((fault, "quarantined") for fault in (*HELD, {"drop": gone})),
        *((fault, "passed") for fault in (*SLOW, small)),
    ]
    async with aiohttp.ClientSession() as session:
        print(f"first build: {await _until_settled(session):.0f} s\n")
        callers = Callers(session, definitions, keys)
        await callers.remember()
        largest = await _largest(session, definitions)
        print("| fault | pulls | seconds | asked | answers changed | reason |\n|---|---|---|---|---|---|")
        for fault, state in expected:
            callers.asked = callers.changed = 0
            asking = asyncio.create_task(callers.go_on())
            await _set(session, discovery, fault)
            began = time.monotonic()
            ended = await _pull(session, largest)
            seconds = time.monotonic() - began
            reasons = sorted({pull["error"] for pull in ended if pull["error"]})
            await _set(session, discovery, {})
            again = await _pull(session, largest) if state != "passed" or fault is small else ended
            asking.cancel()
            await asyncio.wait({asking})
            states = ", ".join(
                f"{sum(p['state'] == s for p in ended)} {s}" for s in sorted({p["state"] for p in ended})
            )
            states += "" if again is ended else f"; then {sum(p['state'] == 'passed' for p in again)} passed"
            print(
                f"| `{json.dumps(fault):.60}` | {states} | {seconds:.0f} | {callers.asked} | {callers.changed} | "
                f"{reasons[0] if reasons else ''} |",
                flush=True,
            )
            changed += 0 if fault is small else callers.changed
            changed += {p["state"] for p in ended} != {state}
            changed += any(p["state"] != "passed" for p in again)
    return changed


async def _until_settled(session: aiohttp.ClientSession) -> float:
    began = time.monotonic()
    while True:
        try:
            indexer = await _get(session, f"{HOST}:{INDEXER_PORT}/health")
            sidecar = await _get(session, f"{HOST}:{SIDECAR_PORT}/health")
            if (indexer["status"], indexer["behind"], indexer["generation"]) == ("ok", 0, sidecar["generation"]):
                return time.monotonic() - began
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.2)


async def _largest(session: aiohttp.ClientSession, definitions: Sequence[Json]) -> list[str]:
    """Catalogs of the largest queries, one each."""
    of_query: dict[str, str] = {
        json.dumps(body["content_filter"], sort_keys=True): body["uuid"] for body in definitions
    }
    pulls = await _pull(session, list(of_query.values()))
    by_size = sorted(zip((pull["members"] or 0 for pull in pulls), of_query.values(), strict=True), reverse=True)
    return [uuid for _, uuid in by_size[:QUERIES]]


async def _pull(session: aiohttp.ClientSession, catalogs: Sequence[str]) -> list[Json]:
    """Asks for the pulls of these catalogs through the sidecar, and waits until all have ended."""
    tasks = []
    for uuid in catalogs:
        url = f"{HOST}:{SIDECAR_PORT}/api/v1/enterprise-catalogs/{uuid}/refresh_metadata"
        async with session.post(url) as response:
            tasks.append((await response.json())["async_task_id"])
    return [await _ended(session, task) for task in tasks]


async def _ended(session: aiohttp.ClientSession, task: str) -> Json:
    while True:
        pull = await _get(session, f"{HOST}:{INDEXER_PORT}/api/v1/pulls/{task}/")
        if pull["finished"] is not None:
            return pull
        await asyncio.sleep(0.2)


async def _get(session: aiohttp.ClientSession, url: str) -> Json:
    async with session.get(url) as response:
        body: Json = await response.json()
        return body


async def _set(session: aiohttp.ClientSession, discovery: str, fault: Json) -> None:
    async with session.post(f"{discovery}/_faults", json=fault) as response:
        response.raise_for_status()


def main() -> None:
    """Runs both processes, sets one fault after the other, and prints a table."""
    arguments = read_arguments(__doc__)
    definitions = [entry["body"] for entry in json.loads(arguments.definitions.read_text())["catalogs"]]
    keys = [course["full"]["key"] for course in json.loads(arguments.corpus.read_text())["courses"]]
    with tempfile.TemporaryDirectory() as folder:
        here = Installation(Path(folder) / "here", arguments.corpus.absolute())
        config = from_discovery(here.config.read_text(), arguments.discovery, timeout_s=3.0, retries=3)
        indexer_url = f'indexer_url = "{HOST}:{INDEXER_PORT}"'
        ports = f"[indexer]\nport = {INDEXER_PORT}\n[sidecar]\nport = {SIDECAR_PORT}\n{indexer_url}\n"
        config = config.replace("[sidecar]\nport = 0\n", ports)
        here.config.write_text(config)
        here.indexer("catalogs", "add", str(arguments.definitions.absolute()), "--created", CREATED)
        processes = [
            subprocess.Popen([sys.executable, "-m", package, "serve", "--config", str(here.config)])
            for package in ("indexer", "sidecar")
        ]
        try:
            changed = asyncio.run(_measure(definitions, keys, arguments.discovery))
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
                process.wait()
    raise SystemExit(1 if changed else 0)


if __name__ == "__main__":
    main()
