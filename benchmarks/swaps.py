"""How long the event loop stands still while a generation is exchanged, and how much of that is garbage collection.

    python -m benchmarks.swaps [--queries 50 --keys 12292 --catalogs 200] [--swaps 30] [--no-disk]

A whole sidecar runs in this process, on a store in memory, with its disk copy. Every second the pointer moves to a
generation in which a hundredth of one query's members are others, and five keys new. Meanwhile a timer is to fire every
millisecond; how late it fires is how long a request would have waited. The same is measured without swaps, for what
the machine alone does. gc.callbacks tell how long each collection has taken.
"""

import argparse
import asyncio
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp.web import AppRunner

from benchmarks.design_tree import Tree
from benchmarks.processes import memory_mib
from sidecar import collector
from sidecar.app import Sidecar
from sidecar.clock import SystemClock
from sidecar.contract.objects import Sealed
from sidecar.log import configure
from sidecar.process import SWITCH_INTERVAL_S
from sidecar.settings import load
from sidecar.store import Pointer
from sidecar.store.memory import MemoryStore

BEAT_S: Final = 0.001
EVERY_S: Final = 1.0
Figures = dict[str, float]


def swapped(
    queries: int, keys: int, catalogs: int, swaps: int, *, disk: bool = True, collector_alone: bool = False
) -> Figures:
    """The figures for so many queries, keys, catalogs and swaps, in milliseconds but for counts; see `main`.

    `collector_alone`: as Python would collect.
    """
    tree = Tree(queries, keys, catalogs)
    if not collector_alone:
        collector.take_over()
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder:
        config = Path(folder) / "config.toml"
        copy = f"{folder}/sidecar.db" if disk else ""
        config.write_text(f'[sidecar]\nport = 0\ndisk = "{copy}"\npoll_ms = 100\n[log]\nlevel = "error"\n')
        settings = load(config, {})
        configure(settings.log)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        return uvloop.run(_swaps(settings, tree, swaps))


async def _swaps(settings: Any, tree: Tree, swaps: int) -> Figures:
    store = MemoryStore()
    await store.put([Sealed(digest, data) for digest, (_, data) in tree.objects.items()])
    await store.move(Pointer(1, 1, tree.root))
    roots = []
    for generation in range(2, swaps + 2):
        before = set(tree.objects)
        root = tree.change(generation)
        await store.put([Sealed(digest, tree.objects[digest][1]) for digest in set(tree.objects) - before])
        roots.append(Pointer(1, generation, root))
    tree.objects.clear()
    sidecar = Sidecar(settings, store, SystemClock())
    runner = AppRunner(sidecar.app)
    began = time.perf_counter()
    await runner.setup()
    try:
        await sidecar.current.other_than(None)
        load_s = time.perf_counter() - began
        if sidecar.disk.status.state != "off":
            await _until(lambda: sidecar.copier.copied is not None)
        pauses: list[float] = []
        gc.callbacks.append(_note(pauses))
        alone = await _late(swaps * EVERY_S / 3)
        collected, cpu = len(pauses), time.process_time()
        beating = asyncio.create_task(_late(swaps * EVERY_S + 0.5))
        for pointer in roots:
            await store.move(pointer)
            await asyncio.sleep(EVERY_S)
        late = await beating
        cpu = time.process_time() - cpu
        assert sidecar.current.generation is not None
        assert sidecar.current.generation.pointer == roots[-1]
        gc.callbacks.clear()
        if sidecar.disk.status.state != "off":
            await _until(lambda: sidecar.copier.copied is sidecar.current.generation)
        with_, without = _whole_collections()
    finally:
        await runner.cleanup()
    return {
        "load_ms": load_s * 1000,
        "alone_p999_ms": _quantile(alone, 0.999),
        "alone_max_ms": max(alone),
        "p99_ms": _quantile(late, 0.99),
        "p999_ms": _quantile(late, 0.999),
        "max_ms": max(late),
        "late_ms": sum(late) / swaps,
        "cpu_ms": cpu * 1000 / swaps,
        "collections": len(pauses) - collected,
        "collection_max_ms": max(pauses[collected:], default=0.0),
        "with_ms": with_,
        "without_ms": without,
        "resident_mib": memory_mib(os.getpid()),
    }


def _whole_collections() -> tuple[float, float]:
    """How long a whole collection takes as things are, in ms, and with nothing frozen."""
    took = []
    for prepare in (int, gc.unfreeze):
        prepare()
        began = time.perf_counter()
        gc.collect()
        took.append((time.perf_counter() - began) * 1000)
    return took[0], took[1]


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (nothing tells of it)
        await asyncio.sleep(0.1)


async def _late(seconds: float) -> list[float]:
    """How late each beat came, in milliseconds."""
    loop = asyncio.get_running_loop()
    late = []
    end = loop.time() + seconds
    while (began := time.perf_counter()) and loop.time() < end:
        await asyncio.sleep(BEAT_S)
        late.append(max(0.0, (time.perf_counter() - began - BEAT_S) * 1000))
    return late


def _note(pauses: list[float]) -> Any:
    began = 0.0

    def noted(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append((time.perf_counter() - began) * 1000)

    return noted


def _quantile(values: list[float], q: float) -> float:
    return statistics.quantiles(values, n=1000)[round(q * 1000) - 1]


MEANINGS: Final = {
    "load_ms": "first generation served after",
    "alone_p999_ms": "a beat is late without swaps, p99.9",
    "alone_max_ms": "the same, most",
    "p99_ms": "a beat is late while generations are exchanged, p99",
    "p999_ms": "the same, p99.9",
    "max_ms": "the longest stall of the loop",
    "late_ms": "lateness of all beats together, for each swap",
    "cpu_ms": "processor time of the process, for each swap and second",
    "collections": "garbage collections meanwhile, number",
    "collection_max_ms": "the longest of them",
    "with_ms": "a whole collection in the end, with what is frozen left out",
    "without_ms": "the same with nothing frozen",
    "resident_mib": "resident at the end, the store in memory included, MiB",
}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--keys", type=int, default=12_292)
    parser.add_argument("--catalogs", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--no-disk", action="store_true")
    parser.add_argument("--collector-alone", action="store_true", help="let Python collect garbage as it would")
    arguments = parser.parse_args()
    counts = (arguments.queries, arguments.keys, arguments.catalogs, arguments.swaps)
    figures = swapped(*counts, disk=not arguments.no_disk, collector_alone=arguments.collector_alone)
    print(f"{platform.platform()}, Python {platform.python_version()}\n\n| what, in ms | figure |\n|---|---|")
    for name, figure in figures.items():
        print(f"| {MEANINGS[name]} | {figure:,.2f} |")


if __name__ == "__main__":
    main()
