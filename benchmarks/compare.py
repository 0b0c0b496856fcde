"""Whether one run is better or worse than another, row by row, beyond what the rounds of each differ among themselves.

    python -m benchmarks.compare BASE [NEW]

BASE and NEW are files of results, or the beginnings of their commits; without NEW, the newest file that is not BASE.
What is compared is what a row's goal bounds: the ratio to the peer, for which it matters little how fast the machine
was that day, or without a peer the figure itself, for which it matters. Exit code 1: something is worse.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.results import FOLDER, Results, find
from benchmarks.rows import Row, Spread

Change = Literal["better", "worse", "within the spread", "new", "gone", "not measured"]


def compare(base: Sequence[Row], new: Sequence[Row]) -> list[tuple[Row, Row | None, Change]]:
    """Every row of either run: (the new row, or the old one if it is gone; that of the base; what changed)."""
    before = {(row.question, row.name): row for row in base}
    found: list[tuple[Row, Row | None, Change]] = []
    for row in new:
        old = before.pop((row.question, row.name), None)
        found.append((row, old, "new" if old is None else _change(old, row)))
    return found + [(row, row, "gone") for row in before.values()]


def _change(old: Row, new: Row) -> Change:
    was, is_ = old.figure, new.figure
    if was is None or is_ is None:
        return "not measured"
    if _reaches(was, is_.median) or _reaches(is_, was.median):
        return "within the spread"
    return "better" if (is_.median > was.median) == (new.sense == "at least") else "worse"


def _reaches(spread: Spread, median: float) -> bool:
    return spread.low <= median <= spread.high


def main() -> None:
    """Prints a table of all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a file of results, or the beginning of a commit")
    parser.add_argument("new", nargs="?", help="the same; the newest results otherwise")
    arguments = parser.parse_args()
    base_file = find(arguments.base)
    new_file = find(arguments.new) if arguments.new else _newest(base_file)
    base, new = Results.read(base_file), Results.read(new_file)
    print(f"{_of(base)} -> {_of(new)}\n")
    if base.full is not new.full:
        print("One of the runs is a short one: its spreads are of three rounds.\n")
    print("| question | what | before | now | |\n|---|---|---|---|---|")
    changes = compare(base.rows, new.rows)
    for row, old, change in changes:
        now = None if change == "gone" else row
        print(f"| {row.question} | {row.name} | {_figure(old)} | {_figure(now)} | {change} |")
    raise SystemExit(any(change == "worse" for _, _, change in changes))


def _newest(other_than: Path) -> Path:
    files = [file for file in FOLDER.glob("*.json") if file != other_than.absolute()]
    if not files:
        raise SystemExit(f"no results in {FOLDER} but the base: make bench-full first")
    return max(files, key=lambda file: file.stat().st_mtime)


def _of(results: Results) -> str:
    return f"{results.commit} ({'full' if results.full else 'short'}, {results.date})"


def _figure(row: Row | None) -> str:
    if row is None or row.figure is None:
        return ""
    unit = f"× {row.peer}" if row.theirs else row.unit
    return f"{row.figure.median:.4g} ({row.figure.low:.4g} to {row.figure.high:.4g}) {unit}"


if __name__ == "__main__":
    main()
