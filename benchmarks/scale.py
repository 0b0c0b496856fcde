"""How long a first generation takes, what an unchanged second one writes, and how much memory both processes need.

    python -m benchmarks.scale [--courses 3000] [--corpus corpus.json --definitions definitions.json]

Every step is the real command in a process of its own, on files in a temporary folder. Two builds from empty
registries are compared object by object. Peak memory is the kernel's high-water mark of the whole process.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

from benchmarks.installation import CREATED, SAME, Installation, write_content
from benchmarks.processes import MIB
from benchmarks.workload import catalogs, corpus


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
        sidecar = one.measure_sidecar()
        print(f"| sidecar, ready from the store | {sidecar['ready_s']:.2f} | {sidecar['peak_mib']:.0f} | |")
        (folder / "one" / "store.db").unlink()
        cold = one.measure_sidecar()
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
    return write_content(folder, content, catalogs(content))


def _row(what: str, measured: tuple[float, float], objects: int) -> None:
    print(f"| {what} | {measured[0]:.1f} | {measured[1]:.0f} | {objects:,} |", flush=True)


if __name__ == "__main__":
    main()
