"""One registry, store and sidecar in a folder, each started as a user starts it: by its command, with settings."""

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import HOST, MIB, Process, Spoiled, memory_mib, port_of
from sidecar.contract.objects import HEADER, ObjectType

CREATED: Final = "2026-01-01T00:00:00Z"
SAME: Final = (ObjectType.SEGMENT, ObjectType.BITMAP, ObjectType.QUERIES, ObjectType.CATALOGS, ObjectType.METADATA)
Json = dict[str, Any]


def write_content(folder: Path, corpus: Json, definitions: Sequence[Json]) -> tuple[Path, Path]:
    """A corpus file and the catalogs over it, as the indexer reads them."""
    corpus_file, definitions_file = folder / "corpus.json", folder / "definitions.json"
    corpus_file.write_text(json.dumps(corpus, ensure_ascii=False))
    definitions_file.write_text(json.dumps(definitions))
    return corpus_file, definitions_file


class Installation:
    """One registry, store and sidecar in a folder."""

    def __init__(self, folder: Path, corpus_file: Path, *, more: str = "") -> None:
        """`more`: sections of the settings beside those of where things are."""
        folder.mkdir()
        self.folder = folder
        self.config = folder / "config.toml"
        self.store = folder / "store.db"
        self.disk = folder / "sidecar.db"
        self.socket = folder / "s"
        self.config.write_text(
            f'[store]\nurl = "sqlite:///{self.store}"\n'
            f'[registry]\nurl = "sqlite+aiosqlite:///{folder}/registry.db"\n'
            f'[source]\nkind = "file"\npath = "{corpus_file}"\n'
            f'[sidecar]\nport = 0\nsocket = "{self.socket}"\ndisk = "{self.disk}"\n'
            f'[log]\nlevel = "warning"\n{more}'
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
            raise Spoiled(f"catalog-indexer {' '.join(arguments)} ended with {process.returncode}")
        return time.perf_counter() - began, usage.ru_maxrss / 1024

    def objects(self) -> dict[ObjectType, set[bytes]]:
        """The digests in the store by type."""
        found: dict[ObjectType, set[bytes]] = defaultdict(set)
        with sqlite3.connect(self.store) as connection:
            for digest, header in connection.execute(f"SELECT digest, substr(data, 1, {HEADER.size}) FROM objects"):
                found[ObjectType(HEADER.unpack(header)[2])].add(bytes(digest))
        connection.close()
        return found

    def sidecar(self, *, core: int | None = None) -> "RunningSidecar":
        """Starts a sidecar; it is not ready yet."""
        return RunningSidecar(self.config, self.disk, core=core)

    def measure_sidecar(self) -> dict[str, float]:
        """Runs a sidecar until its disk copy is complete; seconds until ready, peak memory, and size on disk in MiB."""
        began = time.perf_counter()
        with self.sidecar() as running:
            running.wait_until_ready()
            ready_s = time.perf_counter() - began
            running.wait_until_copied()
            peak = memory_mib(running.pid, "VmHWM")
        return {"ready_s": ready_s, "peak_mib": peak, "disk_mib": self.disk.stat().st_size / MIB}


class RunningSidecar(Process):
    """A sidecar with these settings, which name this disk copy; `port` is known once it is ready."""

    def __init__(self, config: Path, disk: Path, *, core: int | None) -> None:
        super().__init__([sys.executable, "-m", "sidecar", "serve", "--config", str(config)], core=core)
        self.port = 0
        self._disk = disk

    def wait_until_ready(self) -> None:
        """Until it answers."""
        self.port = self.wait_until(lambda: port_of(self.pid), "the sidecar listens")
        self.wait_until(lambda: _is_ready(self.port), "the sidecar is ready")

    def wait_until_copied(self) -> None:
        """Until its disk copy is complete."""
        self.wait_until(self._copied, "the disk copy is complete")

    def _copied(self) -> bool:
        try:
            with sqlite3.connect(f"file:{self._disk}?mode=ro", uri=True) as connection:
                copied = connection.execute("SELECT count(*) FROM pointer").fetchone()[0]
            connection.close()
        except sqlite3.Error:
            return False
        return bool(copied)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
