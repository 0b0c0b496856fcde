"""What a question is given: how long to measure, the world to measure in, and where pictures get their curves from."""

from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.load import Pace
from benchmarks.rows import PAIRS
from benchmarks.world import World

SHORT_PAIRS: Final = 3
CONNECTIONS: Final = 16


class Bench:
    """One run of the suite. In a full one a ratio rests on seven rounds; a short one merely tells that all works."""

    def __init__(self, folder: Path, *, full: bool) -> None:
        self.folder = folder
        self.full = full
        self.rounds = PAIRS if full else SHORT_PAIRS
        self.curves: dict[str, Any] = {}
        self._world: World | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._world is not None:
            self._world.__exit__()

    @property
    def world(self) -> World:
        """Made when it is first wanted, and ended with the run."""
        if self._world is None:
            self._world = World(self.folder)
        return self._world

    @cached_property
    def pace(self) -> Pace:
        return Pace(self.folder)

    def seconds(self, full: int, short: int) -> int:
        """How long one side is measured in one round."""
        return full if self.full else short
