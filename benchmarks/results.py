"""A run of the suite as a file: the machine, the versions, every sample, the curves. Its name is the commit's."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.processes import program
from benchmarks.rows import Row

FOLDER: Final = Path(__file__).parent / "results"
SHORT: Final = "-short"
ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("aiohttp", "uvloop", "pyroaring", "orjson", "redis", "requests", "hdrhistogram")
VERSIONS: Final[Mapping[str, Sequence[str]]] = {
    "nginx": ("nginx", "-v"),
    "wrk": ("wrk", "-v"),
    "redis-server": ("redis-server", "--version"),
    "cc": ("cc", "--version"),
}


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found out, and of what; `curves` are what pictures show, by picture and line."""

    commit: str
    full: bool
    date: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    curves: Mapping[str, Any]

    @classmethod
    def of_now(
        cls, commit: str, rows: Sequence[Row], curves: Mapping[str, Any], *, full: bool, neighbours: Mapping[str, float]
    ) -> Self:
        """Those of a run that has just ended, on this machine; `neighbours`: what else ran there."""
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        return cls(commit, full, date, {**_machine(), **neighbours}, _versions(), tuple(rows), curves)

    def write(self, folder: Path = FOLDER) -> Path:
        """Writes the file, over one of the same commit; a short run has a file of its own."""
        folder.mkdir(exist_ok=True)
        file = folder / f"{self.commit}{'' if self.full else SHORT}.json"
        fields = {name: getattr(self, name) for name in ("commit", "full", "date", "machine", "versions", "curves")}
        written = {**fields, "rows": [_rounded(row.document()) for row in self.rows]}
        file.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        return file

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `write` wrote."""
        found = json.loads(file.read_text())
        return cls(
            commit=found["commit"],
            full=found["full"],
            date=found["date"],
            machine=found["machine"],
            versions=found["versions"],
            rows=tuple(Row.read(row) for row in found["rows"]),
            curves=found["curves"],
        )


def checked_out() -> str:
    """The commit that is checked out; with an ending if something was changed since."""
    head = _said("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD") or "unknown"
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--", "sidecar", "indexer", "benchmarks/*.py")
    return f"{head}-changed" if changed else head


def find(base: str, folder: Path = FOLDER) -> Path:
    """The file of a commit, of which the beginning is enough, or the file of this path. Raises SystemExit.

    Of a commit that was measured in full that run is meant, and not a short one.
    """
    if Path(base).is_file():
        return Path(base)
    found = sorted(folder.glob(f"{base}*.json"))
    found = [file for file in found if not file.stem.endswith(SHORT)] or found
    if len(found) != 1:
        raise SystemExit(f"{base}: {len(found)} files of results in {folder} are called so")
    return found[0]


def _rounded(document: Mapping[str, Any]) -> dict[str, Any]:
    """Samples with five significant digits: more is noise, and a large file."""
    rounded = {side: [float(f"{sample:.5g}") for sample in document[side]] for side in ("ours", "theirs")}
    return {**document, **rounded, "ratio": document["ratio"] and [round(n, 4) for n in document["ratio"]]}


def _machine() -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name, (command, *arguments) in VERSIONS.items():
        found[name] = _said(program(command), *arguments).partition("\n")[0]
    return found


def _said(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.strip()
