"""What a question comes to: rows, each with its goal, the samples that it rests on, and whether the goal is met. Pure.

A ratio is worked out within a round, where both sides were measured one after the other on the same busy machine, and
only then is the median taken. It never divides one median by another.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar

Sense = Literal["at least", "at most"]
Verdict = Literal["pass", "MISSED", ""]
PAIRS: Final = 7
"""How many rounds a ratio rests on in a full run."""
T = TypeVar("T")


class Spread(NamedTuple):
    """The median of samples, the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Self:
        """Of at least one sample."""
        ordered = sorted(samples)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours, beside that of a peer where there is one.

    `question` and `name` together are unique in a run. `sense` says which way is better; `goal` bounds the ratio if
    there is a peer, else the figure itself (in `unit`); None: the row is for information. `ours` and `theirs` are the
    samples, round by round. Without samples the row says in `note` why nothing was measured.
    """

    question: str
    name: str
    unit: str
    sense: Sense
    goal: float | None = None
    ours: tuple[float, ...] = ()
    peer: str = ""
    theirs: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.theirs and len(self.ours) != len(self.theirs):
            raise ValueError(f"{self.name}: {len(self.ours)} samples beside {len(self.theirs)} of {self.peer}")

    @property
    def ratio(self) -> Spread | None:
        """Ours divided by the peer's, round by round."""
        if not self.theirs:
            return None
        return Spread.of(mine / other for mine, other in zip(self.ours, self.theirs, strict=True))

    @property
    def figure(self) -> Spread | None:
        """What the goal bounds, and what runs are compared by: the ratio, or without a peer the figure itself."""
        return self.ratio or (Spread.of(self.ours) if self.ours else None)

    @property
    def verdict(self) -> Verdict:
        """Whether the median meets the goal; a goal that nothing was measured for is missed."""
        if self.goal is None:
            return ""
        if self.figure is None:
            return "MISSED"
        met = self.figure.median >= self.goal if self.sense == "at least" else self.figure.median <= self.goal
        return "pass" if met else "MISSED"

    def document(self) -> dict[str, Any]:
        """The row as JSON, with what follows from its samples."""
        return asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """The row that `document` wrote."""
        fields = {name: value for name, value in document.items() if name in cls.__slots__}
        return cls(**fields | {"ours": tuple(fields["ours"]), "theirs": tuple(fields["theirs"])})


def interleaved(rounds: int, subjects: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measures every subject once a round, in an order that is turned around from each round to the next."""
    taken: dict[str, list[T]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name in list(subjects) if number % 2 == 0 else reversed(list(subjects)):
            taken[name].append(subjects[name]())
    return taken


HEAD: Final = "| what | goal | ours | peer | ratio (lowest to highest) | |\n|---|---|---|---|---|---|"


def line(row: Row) -> str:
    """The row as a line of a table of Markdown."""
    goal = "" if row.goal is None else f"{row.sense} {_figure(row.goal)}{'' if row.peer else f' {row.unit}'}"
    ours = f"{_figure(Spread.of(row.ours).median)} {row.unit}" if row.ours else row.note or "not measured"
    peer = f"{row.peer}: {_figure(Spread.of(row.theirs).median)} {row.unit}" if row.theirs else row.peer
    figure = row.ratio
    spread = "" if figure is None else f"{figure.median:.2f} ({figure.low:.2f} to {figure.high:.2f})"
    if figure is None and len(row.ours) > 1:
        alone = Spread.of(row.ours)
        spread = f"({_figure(alone.low)} to {_figure(alone.high)})"
    return f"| {row.name} | {goal} | {ours} | {peer} | {spread} | {row.verdict} |"


def table(rows: Sequence[Row]) -> str:
    """All rows as a table of Markdown."""
    return "\n".join([HEAD, *map(line, rows)])


def _figure(value: float) -> str:
    """Three significant digits, and all digits before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
