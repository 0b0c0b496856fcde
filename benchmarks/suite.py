"""The suite: every question, one after the other, in one run on one machine.

    python -m benchmarks.suite [--full] [--only NAME …]

Prints each question's table as soon as it is answered, and writes results/COMMIT.json with its pictures. Without --full
it is done in five minutes, with three short rounds a ratio, and without the design point: enough to see that everything
works, too few to believe.
"""

import argparse
import importlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.bench import Bench
from benchmarks.plots import draw
from benchmarks.processes import PACKAGES, Neighbours, Spoiled, program, require_cores
from benchmarks.results import FOLDER, Results, checked_out
from benchmarks.rows import Row, table

# In this order: what needs a fresh machine comes first.
QUESTIONS: Final = (
    "containment",
    "one_connection",
    "constant_rate",
    "clients",
    "in_process",
    "handlers",
    "pages",
    "traversal",
    "memory",
    "cold_start",
    "memberships",
    "at_scale",
)
# Not in a short run: a store of the design point takes a minute to be filled.
LONG: Final = "at_scale"
QUIET: Final = 0.05
"""What others may have of a machine on which a run is to be believed."""


def main() -> None:
    """Asks the questions and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="seven rounds for every ratio, of a length to be believed")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, help="these questions alone")
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder that results are written into")
    arguments = parser.parse_args()
    for name in PACKAGES:
        program(name)
    require_cores()
    # So that all processes of the run are ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    began = time.monotonic()
    asked = [name for name in QUESTIONS if arguments.full or name != LONG]
    commit, neighbours = checked_out(), Neighbours()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Bench(Path(folder), full=arguments.full) as bench:
        for name in arguments.only or asked:
            found = _ask(name, bench)
            rows += found
            print(f"\n{name}, after {time.monotonic() - began:.0f} s\n\n{table(found)}", flush=True)
        curves = bench.curves
    shares = neighbours.shares()
    results = Results.of_now(commit, rows, curves, full=arguments.full, neighbours=shares)
    file = results.write(arguments.results)
    draw(results, file)
    missed = sum(row.verdict == "MISSED" for row in rows)
    print(f"\n{'full' if arguments.full else 'SHORT'} run of {time.monotonic() - began:.0f} s: {missed} goals missed")
    print(f"written: {file}")
    if max(shares.values()) > QUIET:
        print(f"NOT TO BE BELIEVED: meanwhile other processes had {shares['others']:.0%} of the cores,")
        print(f"and other machines of the host {shares['stolen']:.0%}")


def _ask(name: str, bench: Bench) -> list[Row]:
    """The rows of a question. One that is spoiled is a goal that is missed, and the next one is asked."""
    try:
        found: list[Row] = importlib.import_module(f"benchmarks.{name}").measure(bench)
    except Spoiled as spoiled:
        print(f"\n{name} is SPOILED: {spoiled}", file=sys.stderr, flush=True)
        return [Row(name, name, "", "at least", 1.0, note=f"spoiled: {str(spoiled).partition(chr(10))[0][:200]}")]
    return found


if __name__ == "__main__":
    main()
