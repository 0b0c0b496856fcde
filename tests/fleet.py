"""A fleet for tests: the two commands as an operator runs them, any number of each, over one registry and one store.

Every process logs to a file of its own, which a failing wait shows the end of.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from indexer.registry import Registry, catalogs
from indexer.registry.catalogs import RegisteredCatalog
from sidecar.clock import SystemClock
from sidecar.store import Store
from sidecar.store.urls import open_store
from tests.fakes import Json
from tests.world import verify

HOST: Final = "127.0.0.1"
CATALOGS: Final = "/api/v1/enterprise-catalogs/"
LONG_S: Final = 60.0
LOOK_EVERY_S: Final = 0.02
LEASE_S: Final = 1.0
Sections = dict[str, dict[str, Any]]
Answer = tuple[int, Any, Mapping[str, str]]


@dataclass(slots=True)
class Process:
    """One indexer or sidecar, and where it answers."""

    package: str
    folder: Path
    name: str
    sections: Sections
    session: aiohttp.ClientSession
    running: asyncio.subprocess.Process | None = None
    # How many seconds its wall clock is ahead of the others'; below zero: behind.
    ahead_s: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.sections[self.package]['port']}"

    async def start(self) -> None:
        """Starts it, and waits until it answers at all."""
        lines = []
        for section, values in self.sections.items():
            lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        self.config.write_text("\n".join(lines))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CATALOG_")}
        module = [self.package] if not self.ahead_s else ["tests.shifted", str(self.ahead_s), self.package]
        with self.log.open("ab") as out:
            self.running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *module, "serve", "--config", str(self.config)),
                stdout=out,
                stderr=out,
                env=environ,
            )
        await self.until(self._answers)

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    async def get(self, path: str, **arguments: Any) -> Answer:
        """Status, JSON body and headers."""
        return await self.ask("GET", path, **arguments)

    async def ask(self, method: str, path: str, **arguments: Any) -> Answer:
        """Status, JSON body (None if it is empty) and headers."""
        async with self.session.request(method, self.url + path, **arguments) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None, response.headers

    async def health(self) -> Json:
        body: Json = (await self.get("/health"))[1]
        return body

    async def ready(self) -> bool:
        """Whether a sidecar has a generation to answer from."""
        return (await self.get("/ready"))[0] == 200

    async def until(self, condition: Callable[[], Awaitable[bool]], within_s: float = LONG_S) -> None:
        """Waits for something that this process has to do."""
        deadline = time.monotonic() + within_s
        while not await condition():
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(self.log.read_text().splitlines()[-20:]))
            await asyncio.sleep(LOOK_EVERY_S)

    def send(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it, and returns its exit code."""
        if self.running is None:
            return 0
        process, self.running = self.running, None
        if process.returncode is None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(LONG_S):
            return await process.wait()

    async def _answers(self) -> bool:
        assert self.running is not None
        assert self.running.returncode is None, self.log.read_text()
        try:
            await self.get("/health")
        except aiohttp.ClientConnectionError:
            return False
        return True


@dataclass(slots=True)
class Fleet:
    """Processes over one registry and one store."""

    registry_url: str
    store_url: str
    indexers: list[Process] = field(default_factory=list)
    sidecars: list[Process] = field(default_factory=list)

    async def leader(self) -> Process:
        """The indexer that leads, as it says itself."""
        for indexer in self.indexers:
            if (await indexer.health())["leading"]:
                return indexer
        raise LookupError("nobody leads")

    async def settle(self, within_s: float = LONG_S) -> None:
        """Waits until every query is pulled, everything is published, and every sidecar serves that."""
        for sidecar in self.sidecars:

            async def settled(sidecar: Process = sidecar) -> bool:
                health = await self.indexers[0].health()
                served = (await sidecar.health())["generation"]
                return (health["status"], health["behind"], health["generation"]) == ("ok", 0, served)

            await sidecar.until(settled, within_s)

    async def registered(self) -> list[RegisteredCatalog]:
        """All catalogs, as the registry has them."""
        registry = Registry(self.registry_url, SystemClock())
        try:
            async with registry.read() as connection:
                return await catalogs.select(connection)
        finally:
            await registry.close()

    def store(self) -> Store:
        return open_store(self.store_url, writable=True)


@asynccontextmanager
async def fleet(
    folder: Path,
    source: Mapping[str, Any],
    *,
    indexers: int = 1,
    sidecars: int = 1,
    store_url: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    own_settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> AsyncIterator[Fleet]:
    """A fleet that runs; in the end every process stops in order, and the published tree is whole.

    `settings` are everybody's, by section; `own_settings` those of one process, by its name, in its own section.
    """
    made = Fleet(f"sqlite+aiosqlite:///{folder}/registry.db", store_url or f"sqlite:///{folder}/store.db")
    ports = _free_ports(indexers + sidecars)
    common: Sections = {
        "store": {"url": made.store_url},
        "registry": {"url": made.registry_url},
        "source": dict(source),
        "indexer": {"lease_s": LEASE_S},
        "sidecar": {},
    }
    for section, values in (settings or {}).items():
        common[section] = common.get(section, {}) | dict(values)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LONG_S)) as session:

        def process(package: str, name: str, port: int, **own: Any) -> Process:
            sections = {section: dict(values) for section, values in common.items()}
            sections[package] |= {"port": port, **own, **(own_settings or {}).get(name, {})}
            return Process(package, folder, name, sections, session)

        try:
            for n in range(indexers):
                made.indexers.append(process("indexer", f"indexer{n}", ports[n]))
                await made.indexers[n].start()
            for n in range(sidecars):
                own = {"disk": f"{folder}/sidecar{n}.db", "indexer_url": made.indexers[n % indexers].url}
                made.sidecars.append(process("sidecar", f"sidecar{n}", ports[indexers + n], **own))
                await made.sidecars[n].start()
            yield made
        finally:
            codes = [await one.end() for one in (*made.sidecars, *made.indexers)]
    assert set(codes) <= {0}, codes
    store = made.store()
    try:
        await verify(store)
    finally:
        await store.close()


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
