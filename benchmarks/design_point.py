"""What a sidecar on Redis takes at the design point, and what the change of one query moves.

    python -m benchmarks.design_point [--full]

A real redis-server has the tree of design_tree.py: 10,000 queries over 100,000 keys, 40,000 catalogs. A real
`python -m sidecar serve` loads it. A proxy between the two counts the bytes that come from Redis. Then a hundredth of
one query's members changes, five new keys among them, and the pointer moves: measured is how long until the sidecar
says that a new key is contained, and what it has fetched by then. The disk copy trails behind; what it fetches is in a
row of its own. Lookups are compared in this process, an index of all queries beside one of fifty over the same keys, in
pairs. --full adds memory at 50 and 1,000 queries.
"""

import argparse
import asyncio
import contextlib
import http.client
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from benchmarks.design_tree import Tree, key_of
from benchmarks.installation import RunningSidecar
from benchmarks.peers import Redis
from benchmarks.processes import memory_mib
from sidecar.contract.index import IN_INDEX, Index
from sidecar.contract.objects import Sealed
from sidecar.contract.records import open_record
from sidecar.lookup import catalog_contains
from sidecar.store import Pointer, Store
from sidecar.store.urls import open_store

KIB: Final = 1024
QUERIES: Final = 10_000
KEYS: Final = 100_000
FEW: Final = 50
FEW_CATALOGS: Final = 200
LOOKUPS: Final = 20_000
PAIRS: Final = 9
WITHIN_S: Final = 180.0
Figures = dict[str, float]


def measure(full: bool) -> Figures:
    """Figures by name: MiB, KiB, seconds, and ratios; see `main` for what each means."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="design-point-") as folder:
        figures |= asyncio.run(_moving(Path(folder), Tree(QUERIES, KEYS)))
    figures |= _lookups()
    if full:
        for queries in (FEW, 1_000):
            with tempfile.TemporaryDirectory(prefix="design-point-") as folder:
                of_few = asyncio.run(_moving(Path(folder), Tree(queries, KEYS)))
            figures |= {f"{name} at {queries} queries": of_few[name] for name in ("steady_mib", "peak_mib")}
    return figures


async def _moving(folder: Path, tree: Tree) -> Figures:
    with Redis(folder, core=None) as redis:
        store = open_store(f"redis://127.0.0.1:{redis.port}/0", writable=True)
        have = set(tree.objects)
        await _publish(store, tree)
        async with _Proxy.before(redis.port) as proxy:
            with _sidecar(folder, proxy.port) as process:
                began = time.perf_counter()
                await asyncio.to_thread(process.wait_until_ready)
                figures = {"ready_s": time.perf_counter() - began}
                ask = _Ask(process.port)
                await _settled(proxy)
                path = f"/api/v1/enterprise-catalogs/{UUID(bytes=tree.catalog)}/contains_content_items/"
                root = await asyncio.to_thread(tree.change)
                key = tree.new_keys[1]
                url = f"{path}?course_run_ids={key.replace('+', '%2B')}"
                assert not ask.contained(url)
                new = set(tree.objects) - have
                await store.put([Sealed(digest, tree.objects[digest][1]) for digest in new])
                figures["steady_mib"] = memory_mib(process.pid)
                proxy.received = 0
                began = time.perf_counter()
                await store.move(Pointer(1, 2, root))
                await asyncio.to_thread(ask.until_contained, url)
                figures["answered_s"] = time.perf_counter() - began
                until_answered = proxy.received
                await _settled(proxy)
                copied = sum(len(tree.objects[d][1]) for d in new if tree.objects[d][0] not in IN_INDEX)
                figures["objects_kib"] = sum(len(tree.objects[d][1]) for d in new) / KIB - copied / KIB
                figures["moved_kib"] = until_answered / KIB
                figures["moved_with_copy_kib"] = proxy.received / KIB
                figures["after_mib"] = memory_mib(process.pid)
                figures["peak_mib"] = memory_mib(process.pid, "VmHWM")
        await store.close()
    return figures


@contextlib.contextmanager
def serving(folder: Path, tree: Tree, core: int) -> Iterator[RunningSidecar]:
    """A sidecar on a core that has loaded a tree from Redis and copied it."""
    folder.mkdir()
    with Redis(folder, core=None) as redis:
        asyncio.run(_fill(redis.port, tree))
        with _sidecar(folder, redis.port) as process:
            process.wait_until_ready()
            process.wait_until_copied()
            os.sched_setaffinity(process.pid, {core})
            yield process


async def _fill(redis: int, tree: Tree) -> None:
    store = open_store(f"redis://127.0.0.1:{redis}/0", writable=True)
    await _publish(store, tree)
    await store.close()


async def _publish(store: Store, tree: Tree) -> None:
    await store.put([Sealed(digest, data) for digest, (_, data) in tree.objects.items()])
    await store.move(Pointer(1, 1, tree.root))


def _lookups() -> Figures:
    """How much slower a lookup is among all queries than among few."""
    many, few = (_index(Tree(queries, KEYS, catalogs)) for queries, catalogs in ((QUERIES, None), (FEW, FEW_CATALOGS)))
    rnd = random.Random("lookups")
    asked = {
        name: [(rnd.choice(uuids), [key_of(rnd.randrange(KEYS))]) for _ in range(LOOKUPS)]
        for name, uuids in (("many", list(many.catalogs)), ("few", list(few.catalogs)))
    }
    ratios, times = [], {"many": [0.0], "few": [0.0]}
    for _ in range(PAIRS):
        for name, index in (("few", few), ("many", many)):
            began = time.perf_counter()
            for uuid, keys in asked[name]:
                catalog_contains(index, uuid, keys, False)
            times[name].append((time.perf_counter() - began) / LOOKUPS * 1e6)
        ratios.append(times["many"][-1] / times["few"][-1])
    return {
        "lookup_many_us": statistics.median(times["many"][1:]),
        "lookup_few_us": statistics.median(times["few"][1:]),
        "lookup_ratio": statistics.median(ratios),
    }


def _index(tree: Tree) -> Index:
    of_index = ((digest, kind, data) for digest, (kind, data) in tree.objects.items() if kind in IN_INDEX)
    return Index.assemble(tree.root, {digest: open_record(digest, data, kind) for digest, kind, data in of_index})


class _Proxy:
    """Passes bytes between a sidecar and Redis, and counts those that come from Redis."""

    def __init__(self, to: int) -> None:
        self.received = 0
        self.port = 0
        self._to = to

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, to: int) -> "AsyncIterator[_Proxy]":
        proxy = cls(to)
        server = await asyncio.start_server(proxy._connected, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection("127.0.0.1", self._to)
        await asyncio.gather(self._pass(reader, onwards, count=False), self._pass(there, writer, count=True))

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                self.received += len(data) if count else 0
                to.write(data)
                await to.drain()
        to.close()


async def _settled(proxy: _Proxy) -> None:
    """Waits until hardly anything but looks at the pointer has come from Redis for three seconds: the copy is done."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        before = proxy.received
        await asyncio.sleep(3)
        if proxy.received - before < KIB:
            return
    raise SystemExit("the sidecar does not come to rest")


def _sidecar(folder: Path, redis: int) -> RunningSidecar:
    config, disk = folder / "config.toml", folder / "sidecar.db"
    config.write_text(
        f'[store]\nurl = "redis://127.0.0.1:{redis}/0"\n'
        f'[sidecar]\nport = 0\nsocket = "{folder}/s"\ndisk = "{disk}"\n[log]\nlevel = "warning"\n'
    )
    return RunningSidecar(config, disk, core=None)


class _Ask:
    """Asks a sidecar over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def until_contained(self, url: str) -> None:
        """Returns once it answers yes."""
        while not self.contained(url):
            time.sleep(0.001)

    def contained(self, url: str) -> bool:
        """Whether the catalog contains the key."""
        self._connection.request("GET", url)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"{url}: {response.status} {body!r}")
        return b"true" in body


MEANINGS: Final = {
    "ready_s": ("sidecar ready from Redis, s", None),
    "steady_mib": ("sidecar, resident with its disk copy complete, MiB", "< 400"),
    "after_mib": ("sidecar, resident after a swap, MiB", "< 400"),
    "peak_mib": ("sidecar, most ever resident, MiB", "< 400"),
    "answered_s": ("a change is answered after the pointer's move, s", "< 1"),
    "objects_kib": ("objects of the index that the change made, KiB", None),
    "moved_kib": ("bytes from Redis until it is answered, KiB", "< 64"),
    "moved_with_copy_kib": ("the same, with what the disk copy fetches for documents, KiB", None),
    "lookup_few_us": (f"a lookup among {FEW} queries, µs", None),
    "lookup_many_us": (f"a lookup among {QUERIES:,} queries, µs", None),
    "lookup_ratio": ("the second over the first, median of pairs", "≤ 1.1"),
}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="memory at fewer queries, too")
    arguments = parser.parse_args()
    figures = measure(arguments.full)
    print(f"{platform.platform()}, Python {platform.python_version()}\n\n| what | figure | goal |\n|---|---|---|")
    for name, figure in figures.items():
        what, goal = MEANINGS.get(name, (name, None))
        print(f"| {what} | {figure:,.2f} | {goal or ''} |")


if __name__ == "__main__":
    main()
