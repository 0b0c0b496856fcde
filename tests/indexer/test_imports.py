"""Which way imports point: read from the source of every module, none of which is imported here."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
ALLOWED: Final = frozenset(
    f"sidecar.{name}"
    for name in (
        *("contract", "store", "settings", "errors", "clock", "log", "sockets", "__version__"),
        # The one API that both speak.
        *("intake", "parameters", "pages", "auth", "keys", "roles"),
    )
)


def imported(path: Path) -> Iterator[str]:
    """The full name of everything that a module imports."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join([*package[: len(package) - node.level + 1], node.module or ""] if node.level else [])
            yield from (f"{module or node.module}.{name.name}" for name in node.names)


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_the_indexer_imports_of_the_sidecar_only_what_both_share() -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in modules("indexer")
        for name in imported(path)
        if name.split(".")[0] == "sidecar" and ".".join(name.split(".")[:2]) not in ALLOWED
    ]
    assert wrong == []


def test_the_sidecar_never_imports_the_indexer() -> None:
    wrong = [(path.name, name) for path in modules("sidecar") for name in imported(path) if name.startswith("indexer")]
    assert wrong == []


def test_nothing_imports_benchmarks_or_tests() -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for package in ("sidecar", "indexer")
        for path in modules(package)
        for name in imported(path)
        if name.split(".")[0] in ("benchmarks", "tests")
    ]
    assert wrong == []
