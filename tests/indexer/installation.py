"""The command line over an installation of its own: settings, corpus, registry and store in a folder.

Commands run in this process. A test module takes over both fixtures by importing them.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from indexer.cli import main
from tests.fakes import Json, course, customer, run


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command sets up logging for its process, and here that process is the test run."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


class Installation:
    """A folder with settings, corpus, registry and store; and the command line over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.settings(store=f'url = "sqlite:///{path}/store.db"')
        self.corpus(course("A+1", run("a1")), course("B+1", run("b1")))

    def settings(self, **more: str) -> None:
        sections = {
            "registry": f'url = "sqlite+aiosqlite:///{self.path}/registry.db"',
            "source": f'path = "{self.path}/corpus.json"',
            "indexer": "port = 0",
            "store": f'url = "sqlite:///{self.path}/store.db"',
            **more,
        }
        self.config.write_text("\n".join(f"[{name}]\n{lines}" for name, lines in sections.items()))

    def corpus(self, *courses: Json, customers: tuple[Json, ...] = (customer("Acme"),)) -> None:
        parts = {"courses": courses, "programs": [], "pathways": [], "reviews": [], "customers": customers}
        (self.path / "corpus.json").write_text(json.dumps(parts))

    def __call__(self, *words: str, input: str | None = None, **environ: str) -> Result:
        result = CliRunner().invoke(main, [*words, "--config", str(self.config)], input=input, env=environ)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def done(self, *words: str, input: str | None = None) -> str:
        result = self(*words, input=input)
        assert (result.exit_code, result.stderr) == (0, ""), result.stderr
        return result.stdout

    def refused(self, *words: str, input: str | None = None, **environ: str) -> str:
        """The one line of a refusal."""
        result = self(*words, input=input, **environ)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Usage")]
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")

    def add(self, *bodies: Any) -> str:
        return self.done("catalogs", "add", "-", input=json.dumps(list(bodies)))


@pytest.fixture
def cli(tmp_path: Path) -> Installation:
    return Installation(tmp_path)
