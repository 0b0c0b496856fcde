"""How soon does a sidecar answer that starts from its disk copy while the store is down, and what do its imports take?

The process says when its imports are done, and from then on a caller on the other core asks /ready until it is a 200,
every half millisecond. Imports are timed by themselves in processes that do nothing else; `-X importtime`, which makes
them slower, tells what weighs most. The kernel has all files in memory, as after a restart of the process, not of the
machine.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Final

from benchmarks.bench import Bench
from benchmarks.exchange import ask
from benchmarks.processes import SERVER_CORE, Process, Spoiled, free_port, on_core
from benchmarks.rows import Row

QUESTION: Final = "cold start"
GOAL_MS: Final = 200.0
HEAVIEST: Final = 6
ASK_EVERY_S: Final = 0.0005
_SERVE: Final = """
import sys, time
from pathlib import Path
import sidecar.cli, sidecar.process
Path(sys.argv.pop(1)).write_text(str(time.monotonic_ns()))
sidecar.cli.main()
"""
_IMPORTED: Final = "import sidecar.cli, sidecar.process"
_IMPORT: Final = f"import time; began = time.perf_counter(); {_IMPORTED}; print(time.perf_counter() - began)"
_LINE: Final = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)")


def measure(bench: Bench) -> list[Row]:
    """A row from imports to ready, one of imports."""
    world = bench.world
    world.sidecar.stop()
    try:
        ready = tuple(_ready_ms(bench) for _ in range(bench.rounds))
    finally:
        world.start_sidecar()
    python = on_core(SERVER_CORE, [sys.executable])
    imports = tuple(float(_said([*python, "-c", _IMPORT])) * 1000 for _ in range(bench.rounds))
    return [
        Row(QUESTION, "from imports to ready, store down", "ms", "at most", GOAL_MS, ready),
        Row(QUESTION, "imports", "ms", "at most", None, imports, note=_heaviest(python)),
    ]


def _ready_ms(bench: Bench) -> float:
    installation, port, imported = bench.world.installation, free_port(), bench.folder / "imported"
    imported.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "CATALOG_STORE_URL": f"sqlite:///{bench.folder}/there-is-none/store.db",
        "CATALOG_SIDECAR_PORT": str(port),
    }
    command = [sys.executable, "-c", _SERVE, str(imported), "serve", "--config", str(installation.config)]
    log = bench.folder / "cold.log"
    with Process(command, core=SERVER_CORE, log=log, env=environment) as process:
        while not _is_ready(port):
            if not process.runs:
                raise Spoiled(f"the sidecar has ended:\n{log.read_text()}")
            time.sleep(ASK_EVERY_S)
        ready_ns = time.monotonic_ns()
    return (ready_ns - int(imported.read_text())) / 1e6


def _is_ready(port: int) -> bool:
    try:
        return ask(port, b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 200
    except OSError:
        return False


def _heaviest(python: list[str]) -> str:
    """What packages take most of the time of imports, by their own time."""
    spent: Counter[str] = Counter()
    for line in _said([*python, "-X", "importtime", "-c", _IMPORTED]).splitlines():
        if match := _LINE.match(line):
            spent[match[2].partition(".")[0]] += int(match[1])
    parts = ", ".join(f"{name} {us / 1000:.0f} ms" for name, us in spent.most_common(HEAVIEST))
    return f"with -X importtime: {parts}, of {sum(spent.values()) / 1000:.0f} ms"


def _said(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout
