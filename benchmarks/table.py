"""The figures of benchmarks/README.md: made from a file of results, between two markers, so that nobody types figures.

python -m benchmarks.table RESULTS.json
"""

import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from benchmarks.results import Results, find
from benchmarks.rows import table

README: Final = Path(__file__).parent / "README.md"
BEGIN: Final = "<!-- made by `python -m benchmarks.table`: begin -->\n"
END: Final = "<!-- made by `python -m benchmarks.table`: end -->\n"


def section(results: Results, file_name: str) -> str:
    """What stands between the markers: which run it is, and a table for each question."""
    machine, versions = results.machine, results.versions
    kind = "A full run" if results.full else "A short run, too short to be believed,"
    of = ", ".join(f"{name} {versions[name]}" for name in ("python", "aiohttp", "uvloop", "pyroaring"))
    run = f"{kind} of commit `{results.commit}`, {results.date} UTC ([samples](results/{file_name}))"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['platform']}"
    lines = [f"{run}: {where}; {of}. Others had {_share(machine)} of the cores meanwhile."]
    for question, rows in groupby(results.rows, key=lambda row: row.question):
        them = list(rows)
        notes = dict.fromkeys(row.note for row in them if row.note and row.ours)
        lines += ["", f"**{question}**", "", table(them)]
        if notes:
            lines += ["", *(f"* {note}" for note in notes)]
    pictures = sorted(results.curves)
    lines += ["", " ".join(f"![{name}](results/{Path(file_name).stem}-{name}.png)" for name in pictures)]
    return "\n".join(lines).rstrip() + "\n"


def _share(machine: Mapping[str, Any]) -> str:
    """What other processes and other machines of the host had."""
    return f"{machine['others'] + machine['stolen']:.0%}"


def between_markers(text: str) -> str:
    """What stands there now."""
    return text.partition(BEGIN)[2].partition(END)[0]


def with_section(text: str, made: str) -> str:
    """The text with this between the markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README} has lost its markers")
    return f"{head}{begin}{made}{end}{tail}"


if __name__ == "__main__":
    FILE = find(sys.argv[1])
    README.write_text(with_section(README.read_text(), section(Results.read(FILE), FILE.name)))
