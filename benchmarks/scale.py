"""How long a first generation takes, what an unchanged second one writes, and how much memory both processes need.

    python -m benchmarks.scale [--courses 3000] [--corpus corpus.json --definitions definitions.json]

Every step is the real command in a process of its own, on files in a temporary folder. Two builds from empty
registries are compared object by object. Peak memory is the kernel's high-water mark of the whole process.
"""

import argparse
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.workload import catalogs, corpus
from sidecar.contract.objects import HEADER, ObjectType

MIB = 1024 * 1024
CREATED = "2026-01-01T00:00:00Z"
SAME = (ObjectType.SEGMENT, ObjectType.BITMAP, ObjectType.QUERIES, ObjectType.CATALOGS, ObjectType.METADATA)
READY_WITHIN_S = 120


class Installation:
    """One registry, store and sidecar in a folder."""

    def __init__(self, folder: Path, corpus_file: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[store]\nurl = "sqlite:///{folder}/store.db"\n'
            f'[registry]\nurl = "sqlite+aiosqlite:///{folder}/registry.db"\n'
            f'[source]\nkind = "file"\npath = "{corpus_file}"\n'
            f'[sidecar]\nport = 0\nsocket = "{folder}/s"\ndisk = "{folder}/sidecar.db"\n'
            '[log]\nlevel = "warning"\n'
        )

    def indexer(self, *arguments: str) -> tuple[float, float]:
        """Runs an indexer command; seconds from start to end, and peak memory in MiB."""
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "indexer", *arguments, "--config", str(self.config)], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"catalog-indexer {' '.join(arguments)} ended with {process.returncode}")
        return time.perf_counter() - began, usage.ru_maxrss / 1024

    def objects(self) -> dict[ObjectType, set[bytes]]:
        """The digests in the store by type."""
        found: dict[ObjectType, set[bytes]] = defaultdict(set)
        with sqlite3.connect(self.folder / "store.db") as connection:
            for digest, header in connection.execute(f"SELECT digest, substr(data, 1, {HEADER.size}) FROM objects"):
                found[ObjectType(HEADER.unpack(header)[2])].add(bytes(digest))
        connection.close()
        return found

    def sidecar(self) -> dict[str, float]:
        """Runs a sidecar until its disk copy is complete; seconds until ready, peak memory, and size on disk in MiB."""
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "sidecar", "serve", "--config", str(self.config)])
        try:
            port = self._wait(process, lambda: port_of(process.pid))
            self._wait(process, lambda: _get(port, "/ready"))
            ready_s = time.perf_counter() - began
            self._wait(process, self._copied)
            peak = high_water_mark(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        return {"ready_s": ready_s, "peak_mib": peak, "disk_mib": (self.folder / "sidecar.db").stat().st_size / MIB}

    def _copied(self) -> bool:
        try:
            with sqlite3.connect(f"file:{self.folder}/sidecar.db?mode=ro", uri=True) as connection:
                copied = connection.execute("SELECT count(*) FROM pointer").fetchone()[0]
            connection.close()
        except sqlite3.Error:
            return False
        return bool(copied)

    @staticmethod
    def _wait(process: "subprocess.Popen[bytes]", look: Any) -> Any:
        deadline = time.monotonic() + READY_WITHIN_S
        while not (found := look()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the sidecar is not ready (exit code {process.poll()})")
            time.sleep(0.01)
        return found


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--courses", type=int, default=3000, help="size of the corpus that is made")
    parser.add_argument("--corpus", type=Path, help="a corpus file to use instead")
    parser.add_argument("--definitions", type=Path, help="its catalogs, as `catalog-indexer catalogs add` reads them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder_:
        folder = Path(folder_)
        corpus_file, definitions = _content(arguments, folder)
        print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"corpus of {corpus_file.stat().st_size / MIB:.0f} MiB\n")
        print("| what | seconds | peak memory, MiB | objects written |\n|---|---|---|---|")
        one, two = (Installation(folder / name, corpus_file) for name in ("one", "two"))
        for here in (one, two):
            here.indexer("catalogs", "add", str(definitions), "--created", CREATED)
        first = one.indexer("build")
        before = one.objects()
        _row("first build", first, sum(map(len, before.values())))
        again = one.indexer("build")
        after = one.objects()
        _row("second build, nothing changed", again, sum(len(after[t] - before[t]) for t in after))
        _row("first build of another registry", two.indexer("build"), sum(map(len, two.objects().values())))
        _row("check", one.indexer("check"), 0)
        sidecar = one.sidecar()
        print(f"| sidecar, ready from the store | {sidecar['ready_s']:.2f} | {sidecar['peak_mib']:.0f} | |")
        (folder / "one" / "store.db").unlink()
        cold = one.sidecar()
        print(f"| sidecar, ready from its disk copy, store gone | {cold['ready_s']:.2f} | {cold['peak_mib']:.0f} | |\n")
        other = two.objects()
        written = {t.name.lower(): len(after[t] - before[t]) for t in SAME}
        differing = {t.name.lower(): len(before[t] ^ other[t]) for t in SAME}
        print(f"written by the unchanged second build: {written}")
        print(f"objects that two builds from empty registries do not share: {differing}")
        print(f"objects by type: { {t.name.lower(): len(before[t]) for t in sorted(before)} }")
        print(f"disk copy: {sidecar['disk_mib']:.0f} MiB")


def _content(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    if arguments.corpus and arguments.definitions:
        return arguments.corpus.absolute(), arguments.definitions.absolute()
    content = corpus(arguments.courses)
    (folder / "corpus.json").write_text(json.dumps(content, ensure_ascii=False))
    (folder / "definitions.json").write_text(json.dumps(catalogs(content)))
    return folder / "corpus.json", folder / "definitions.json"


def _row(what: str, measured: tuple[float, float], objects: int) -> None:
    print(f"| {what} | {measured[0]:.1f} | {measured[1]:.0f} | {objects:,} |", flush=True)


def port_of(pid: int) -> int | None:
    """The loopback port on which a process listens, from the kernel's tables."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            inodes.add(os.readlink(fd))
        except OSError:
            continue
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].partition(":")[2], 16)
    return None


def _get(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def high_water_mark(pid: int) -> float:
    """The most memory that a process has had resident, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


if __name__ == "__main__":
    main()
