"""How many memberships a second become sets of a generation, with the registry in memory.

    python -m benchmarks.compiling [--queries 2000] [--keys 100000]

A mirror of the registry is filled by hand: courses and their runs, one to three, a tenth without an active run, and
results of the sizes of design_tree.py. Measured is the compiler: closures, bitmaps, shards, segments, all of it, to
sealed objects. Nothing is read from SQL and nothing is stored. Seconds are the processor's, because the compiler waits
for nothing. A membership is one key that discovery returned for one query; what becomes of each is a place in three
sets.
"""

import argparse
import math
import platform
import random
import statistics
import time
from typing import Final

from pyroaring import BitMap

from benchmarks.design_tree import FILTER, GROUP, LEAST, key_of
from indexer.compiler import Compiler
from indexer.mirror import CatalogRow, Mirror, QueryRow, ResultRow
from sidecar.contract.words import ContentType, PullState

RUNS: Final = 5
Figures = dict[str, float]


def compiled(queries: int, keys: int) -> Figures:
    """Memberships compiled, seconds, and memberships a second, of the median of several runs."""
    mirror, memberships = _mirror(queries, keys)
    took, objects = [], 0
    for _ in range(RUNS):
        compiler, changes = Compiler(mirror), mirror.everything()
        began = time.process_time()
        objects = sum(1 for _ in compiler.update(changes, compiler.outdated(changes), {}))
        took.append(time.process_time() - began)
    seconds = statistics.median(took)
    return {
        "memberships": memberships,
        "objects": objects,
        "seconds": seconds,
        "fastest_s": min(took),
        "memberships_per_s": memberships / seconds,
    }


def _mirror(queries: int, keys: int) -> tuple[Mirror, int]:
    rnd = random.Random("compiling")
    mirror = Mirror()
    for ordinal in range(keys):
        course = ordinal - ordinal % GROUP
        is_run = ordinal != course
        mirror.keys.append(key_of(ordinal))
        mirror.types.append(ContentType.COURSE_RUN if is_run else ContentType.COURSE)
        mirror.parents.append(course if is_run else None)
        (mirror.runs if is_run else mirror.courses).add(ordinal)
        if is_run:
            mirror.runs_of.setdefault(course, set()).add(ordinal)
            if course // GROUP % 10:
                mirror.active.add(ordinal)
        mirror.uuids.append(rnd.randbytes(16))
        mirror.metadata.append(rnd.randbytes(32))
        mirror.modified_ms.append(1_790_000_000_000 + ordinal)
    mirror.ordinals = {key: ordinal for ordinal, key in enumerate(mirror.keys)}
    memberships = 0
    for number in range(queries):
        hash_, uuid = rnd.randbytes(16), rnd.randbytes(16)
        size = int(LEAST * math.exp(rnd.random() * math.log(keys / 5 / LEAST)))
        members = BitMap(range(keys)) if number % 50 == 1 else BitMap(rnd.sample(range(keys), size))
        memberships += len(members)
        mirror.queries[number] = QueryRow(number, uuid, f"query {number}", FILTER % number, hash_, hash_)
        mirror.results[hash_] = ResultRow(
            hash_, FILTER % number, PullState.FRESH, members, None, BitMap(), 1, rnd.randbytes(16)
        )
        for n in range(4):
            catalog = rnd.randbytes(16)
            mirror.catalogs[catalog] = CatalogRow(
                4 * number + n, catalog, "title", uuid, "Acme", '["verified"]', False, number, None, 1, 1
            )
            mirror.users.setdefault(number, set()).add(catalog)
    return mirror, memberships


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--keys", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}\n\n| what | figure |\n|---|---|")
    for name, figure in compiled(arguments.queries, arguments.keys).items():
        print(f"| {name} | {figure:,.2f} |")


if __name__ == "__main__":
    main()
