"""What the documentation says is what the code does: commands, routes, metrics, files, settings, make targets."""

import re
from pathlib import Path

import click
import pytest
from aiohttp import web

import indexer.cli
import sidecar.cli
from indexer.metrics import Metrics as IndexerMetrics
from sidecar.app import Sidecar
from sidecar.metrics import Metrics as SidecarMetrics
from sidecar.settings import Settings, SidecarSettings, rows
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeClock

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COUNTED = re.compile(r"`(catalog_(?:sidecar|indexer)_\w+)`")


def _commands(group: click.Command, name: str) -> set[str]:
    if isinstance(group, click.Group):
        return set().union(*(_commands(command, f"{name} {sub}") for sub, command in group.commands.items()))
    return {name}


def _leaves(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        return [leaf for inner in command.commands.values() for leaf in _leaves(inner)]
    return [command]


def test_the_readme_lists_exactly_the_commands() -> None:
    commands = _commands(indexer.cli.main, "catalog-indexer") | _commands(sidecar.cli.main, "catalog-sidecar")
    assert set(re.findall(r"^\| `(catalog-\w+ [\w ]+)` \|", README, re.MULTILINE)) == commands


def test_every_option_of_a_command_that_the_readme_names_exists() -> None:
    options = {
        option for command in _leaves(indexer.cli.main) for parameter in command.params for option in parameter.opts
    }
    table = README.split("## Using the indexer")[1].split("## What it answers")[0]
    assert set(re.findall(r"`(--[\w-]+)", table)) <= options


async def test_the_readme_lists_exactly_the_routes(tmp_path: Path) -> None:
    settings = Settings(sidecar=SidecarSettings(disk=str(tmp_path / "sidecar.db")))
    served = Sidecar(settings, MemoryStore(), FakeClock())
    paths = {
        resource.canonical
        for resource in served.app.router.resources()
        if isinstance(resource, web.Resource) and not resource.canonical.startswith("/api/v2/")
    }
    # Those that may end in a format are told of in a sentence.
    paths = {path for path in paths if "{format}" not in path}
    with_slash = {path for path in paths if path.endswith("/") and path.startswith("/api/")}
    about_itself = {path.rstrip("/") for path in paths if not path.startswith("/api/")}
    documented = set(re.findall(r"^\| `(/[^`]*)` \|", README, re.MULTILINE))
    assert documented == with_slash | about_itself
    await served.disk.close()


def test_the_readme_names_exactly_the_metrics() -> None:
    names = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for registry in (SidecarMetrics().registry, IndexerMetrics().registry)
        for metric in registry.collect()
    }
    assert set(COUNTED.findall(README)) == names


def test_every_metric_says_what_it_means() -> None:
    for registry in (SidecarMetrics().registry, IndexerMetrics().registry):
        assert [metric.name for metric in registry.collect() if len(metric.documentation) < 20] == []


@pytest.mark.parametrize("package", ["sidecar", "indexer"])
def test_the_code_map_lists_exactly_the_files_of_a_package(package: str) -> None:
    table = README.split("## Where things are")[1].split("## Measured")[0]
    mapped: dict[str, set[str]] = {}
    folder = ""
    for cells in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE):
        if bold := re.fullmatch(r"\*\*([\w/]+)/\*\*", cells):
            folder = bold[1]
        else:
            mapped.setdefault(folder, set()).update(re.findall(r"`([\w/.]+)`", cells))
    found = {p.name + "/" * p.is_dir() for p in (ROOT / package).iterdir() if p.name not in ("__pycache__", "py.typed")}
    assert mapped[package] == found - {"__init__.py", "contract/"}


def test_every_setting_that_the_readme_names_exists() -> None:
    sections = {row.section for row in rows()}
    named = {
        match[0]
        for match in re.findall(r"`((\w+)\.\w+)( = [^`]*)?`", README)
        if match[1] in sections and not match[0].endswith(".py")
    }
    assert named <= {f"{row.section}.{row.name}" for row in rows()} | {"sidecar.contract"}


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ +make (\w+)", README, re.MULTILINE)) <= targets


def test_every_file_begins_with_its_rule() -> None:
    files = [p for package in ("sidecar", "indexer", "benchmarks") for p in (ROOT / package).rglob("*.py")]
    assert [str(p) for p in files if not p.read_text().startswith('"""')] == []


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    for page in ("README.md", "CHANGELOG.md", "docs/clients.md", "benchmarks/README.md", "tests/vectors/README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(target).exists(), (page, target)
