"""Pictures of a run, as PNG beside its results: latency curves, throughput against connections, memory against scale.

python -m benchmarks.plots RESULTS.json
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.results import Results, find

Points = Sequence[tuple[float, float]]
TITLES: Final = {
    "latency": "Latency at a constant rate, the pointer moving every 2 s",
    "one_connection": "Latency of one connection",
    "throughput": "Containment over HTTP",
    "memory": "Memory of a sidecar",
    "memory_of_queries": "Memory of a sidecar",
}


def draw(results: Results, file: Path) -> list[Path]:
    """Draws what there are curves of, into files that are called like the results and the picture."""
    drawn = []
    for picture, lines in results.curves.items():
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        _DRAWN_BY[picture](axes, lines)
        axes.set_title(f"{TITLES[picture]}\n{results.commit}, {results.date}", fontsize="medium")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        drawn.append(file.with_name(f"{file.stem}-{picture}.png"))
        figure.savefig(drawn[-1], dpi=80)
        plt.close(figure)
    return drawn


def _latency(axes: Axes, lines: Mapping[str, Points]) -> None:
    for name, points in lines.items():
        below = [(1 / (1 - p / 100), us) for p, us in points if p < 100]
        axes.plot([x for x, _ in below], [us for _, us in below], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="µs")
    ticks = (50, 90, 99, 99.9, 99.99)
    axes.set_xticks([1 / (1 - p / 100) for p in ticks], [f"{p:g} %" for p in ticks])


def _throughput(axes: Axes, lines: Mapping[str, Points]) -> None:
    _lines(axes, lines)
    axes.set_xscale("log", base=2)
    counts = [x for x, _ in next(iter(lines.values()))]
    axes.set_xticks(counts, [f"{x:g}" for x in counts])
    axes.set(xlabel="connections", ylabel="requests/s", ylim=(0, None))


def _memory(axes: Axes, lines: Mapping[str, Points]) -> None:
    _lines(axes, lines)
    axes.set(xlabel="courses", ylabel="MiB", xlim=(0, None), ylim=(0, None))


def _memory_of_queries(axes: Axes, lines: Mapping[str, Points]) -> None:
    _lines(axes, lines)
    axes.set(xlabel="queries", ylabel="MiB", xlim=(0, None), ylim=(0, None))


def _lines(axes: Axes, lines: Mapping[str, Points]) -> None:
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)


_DRAWN_BY: Final[Mapping[str, Any]] = {
    "latency": _latency,
    "one_connection": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "memory_of_queries": _memory_of_queries,
}


if __name__ == "__main__":
    FILE = find(sys.argv[1])
    print(*draw(Results.read(FILE), FILE), sep="\n")
