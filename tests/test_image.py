"""Facts about the Dockerfile and its locks, and about what executes it in CI (.ci/dockerfile.py and .ci/build.py).

The images themselves are built and started by .ci/image.py, after these tests.
"""

import importlib.util
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parent.parent
TARGETS: Final = ("sidecar", "indexer")
BASE: Final = "FROM python:3 AS base\nWORKDIR /app\n"


def _load(name: str) -> Any:
    """A script of .ci, which is no package; under its own name, by which the scripts import each other."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


dockerfile: Final = _load("dockerfile")
build: Final = _load("build")
STAGES: Final = dockerfile.parse((ROOT / "Dockerfile").read_text())


def _image(target: str) -> Any:
    return build.Build(STAGES, Path("/scratch"), Path("/context"), Path("/python"), Path("/home")).image(target)


def _blocks(lock: str) -> dict[str, tuple[str, frozenset[str]]]:
    """For each package that a lock names: its version, and its hashes."""
    text = (ROOT / lock).read_text()
    found = re.findall(r"^([a-z0-9-]+)==(\S+)[^\n]*((?:\n    --hash[^\n]+)+)", text, re.MULTILINE)
    return {name: (version, frozenset(re.findall(r"sha256:\w+", hashes))) for name, version, hashes in found}


# ---- the Dockerfile


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_its_command_run_by_a_numeric_user_over_one_volume(target: str) -> None:
    image = _image(target)
    assert image.entrypoint == (f"catalog-{target}",)
    assert image.cmd == ("serve",)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", image.user)
    assert (image.volumes, image.workdir, image.stop) == (("/data",), "/data", "SIGTERM")
    assert image.healthcheck[:2] == ("python", "-c")


def test_the_sidecar_is_made_without_the_indexer() -> None:
    lines = [i.rest for stage in dockerfile.needed(STAGES, "sidecar") for i in stage.instructions if i.word == "COPY"]
    assert [line for line in lines if "indexer" in line] == []


def test_every_stage_comes_from_one_pinned_base() -> None:
    outside = {stage.base for stage in STAGES} - {stage.name for stage in STAGES}
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", outside.pop())


def test_no_command_installs_anything_that_is_not_locked() -> None:
    commands = [i.rest for stage in STAGES for i in stage.instructions if i.word == "RUN"]
    assert [command for command in commands if re.search(r"\b(apt|apt-get|curl|wget)\b", command)] == []
    installs = [part for command in commands for part in command.split("&&") if " install " in part]
    assert installs
    assert all("--require-hashes" in part or "--no-deps --no-build-isolation ." in part for part in installs)


@pytest.mark.parametrize("target", TARGETS)
def test_an_images_lock_is_a_part_of_the_lock(target: str) -> None:
    everything, of_image = _blocks("requirements.lock"), _blocks(f"requirements-{target}.lock")
    assert of_image
    assert {name: everything.get(name) for name in of_image} == of_image


def test_the_sidecars_lock_is_a_part_of_the_indexers_and_has_none_of_its_dependencies() -> None:
    sidecar, indexer = _blocks("requirements-sidecar.lock"), _blocks("requirements-indexer.lock")
    drivers = {"alembic", "apscheduler", "asyncmy", "asyncpg", "sqlalchemy", "stamina"}
    assert sidecar.items() <= indexer.items()
    assert (sidecar.keys() & drivers, indexer.keys() & drivers) == (set(), drivers)
    assert {"redis", "hiredis", "setuptools"} <= sidecar.keys()


def test_the_context_is_what_the_images_are_made_of() -> None:
    ignored = dockerfile.Ignored((ROOT / ".dockerignore").read_text())
    kept = {path.name for path in ROOT.iterdir() if not ignored(path.name)}
    locks = {f"requirements-{target}.lock" for target in TARGETS}
    assert kept == {"setup.py", "pyproject.toml", "sidecar", "indexer", *locks}
    assert ignored("sidecar/store/__pycache__")
    assert not ignored("sidecar/store/sqlite.py")


# ---- what executes it


def test_continuation_lines_are_joined_and_comments_in_them_left_out() -> None:
    (stage,) = dockerfile.parse("# first\nFROM a:1 AS b\n\nRUN one \\\n# why\n    && two\nUSER 1:1\n")
    assert [(i.line, i.word, i.rest) for i in stage.instructions] == [(4, "RUN", "one     && two"), (7, "USER", "1:1")]


@pytest.mark.parametrize(
    "text, named",
    [
        ("FROM python:3\n", "AS"),
        ("RUN true\n", "first FROM"),
        ("FROM a AS b\nADD x y\n", "ADD"),
        ("FROM a AS b\nSHELL ['sh']\n", "SHELL"),
        ("FROM a AS b\nONBUILD RUN true\n", "ONBUILD"),
        ("FROM a AS b\nrun true\n", "run"),
        ("FROM --platform=x a AS b\n", "--platform"),
        ("FROM a AS b\nRUN --mount=type=cache true\n", "--mount"),
        ("FROM a AS b\nCOPY --link x y\n", "--link"),
        ("FROM a AS b\nRUN <<END\n", "here-documents"),
        ("# syntax=docker/dockerfile:1\nFROM a AS b\n", "parser directives"),
        ("FROM a AS b\nRUN true \\\n", "ends in the middle"),
    ],
)
def test_what_is_not_known_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(dockerfile.Refused, match=re.escape(named)):
        dockerfile.parse(text)


def test_a_target_needs_its_bases_and_what_it_copies_from() -> None:
    stages = dockerfile.parse(BASE + "FROM base AS x\nFROM base AS y\nFROM base AS z\nCOPY --from=y /app/a /app/a\n")
    assert [stage.name for stage in dockerfile.needed(stages, "z")] == ["base", "y", "z"]
    with pytest.raises(dockerfile.Refused, match="no target w"):
        dockerfile.needed(stages, "w")


def test_variables_are_replaced_and_other_uses_of_the_dollar_refused() -> None:
    assert dockerfile.expand("$A/${B}", {"A": "1", "B": "2"}) == "1/2"
    for text in ("$C", "${A:-x}", "$(id)"):
        with pytest.raises(dockerfile.Refused, match=re.escape(text)):
            dockerfile.expand(text, {"A": "1"})


def test_an_entry_point_forgets_the_command_that_it_inherits() -> None:
    (stage,) = dockerfile.parse('FROM a AS b\nCMD ["x"]\nENTRYPOINT ["y"]\n')
    image = dockerfile.Image({})
    for instruction in stage.instructions:
        image = dockerfile.described(image, instruction, {})
    assert (image.entrypoint, image.cmd) == (("y",), ())


def test_a_command_in_shell_form_is_refused() -> None:
    (stage,) = dockerfile.parse("FROM a AS b\nENTRYPOINT catalog-sidecar\n")
    with pytest.raises(dockerfile.Refused, match="JSON array"):
        dockerfile.described(dockerfile.Image({}), stage.instructions[0], {})


@pytest.mark.parametrize(
    "path, is_ignored",
    [("a", True), ("kept", False), ("kept/deep/x.py", False), ("kept/deep/x.pyc", True), ("kept/tmp/x", True)],
)
def test_the_last_pattern_that_matches_a_path_or_its_parent_decides(path: str, is_ignored: bool) -> None:
    assert dockerfile.Ignored("# all\n*\n!kept\n**/*.pyc\nkept/tmp\n")(path) is is_ignored


def test_paths_are_mapped_below_the_work_folder_and_the_volumes_alone() -> None:
    world = dockerfile.World({"/app": Path("/s/app"), "/data": Path("/s/data")})
    assert world.place(PurePosixPath("/app/venv")) == Path("/s/app/venv")
    assert world.mapped("/app/venv/bin:/usr/bin:/data") == "/s/app/venv/bin:/usr/bin:/s/data"
    assert world.mapped("/application:/srv/app") == "/application:/srv/app"
    for path in ("/usr/local/bin/x", "/application", "/app/../etc"):
        with pytest.raises(dockerfile.Refused, match="outside"):
            world.place(PurePosixPath(path))


class Scratch:
    """A folder that stages are executed in, by the user that the tests run as."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.context = path / "context"
        self.context.mkdir()
        (self.context / "file").write_text("of the context")

    def build(self, text: str) -> Path:
        """Builds the last stage; its work folder."""
        stages = dockerfile.parse(BASE + text)
        build.Build(stages, self.path, self.context, Path("/usr/bin"), self.path).run(stages[-1].name)
        return self.path / "app"


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


def test_lines_are_executed_in_order_in_the_folder_that_stands_for_the_work_folder(scratch: Scratch) -> None:
    app = scratch.build(
        'FROM base AS x\nENV WORD="two $PATH"\nCOPY file in/\nRUN mv in/file out && printf "$WORD" > w\n'
    )
    assert (app / "out").read_text() == "of the context"
    assert (app / "w").read_text().startswith("two /usr/bin:")


def test_a_stage_begins_with_its_base_and_takes_what_it_copies_from_others(scratch: Scratch) -> None:
    app = scratch.build(
        "FROM base AS one\nRUN echo 1 > a\nFROM one AS two\nRUN echo 2 > b && rm a\n"
        "FROM one AS three\nCOPY --from=two --chown=1:1 /app/b /app/sub/c\n"
    )
    assert {path.relative_to(app).as_posix() for path in app.rglob("*")} == {"a", "sub", "sub/c"}


@pytest.mark.parametrize(
    "line, named",
    [
        ("COPY file /etc/file", "/etc/file is outside"),
        ("COPY ../file x", "outside"),
        ("COPY missing x", "there is no missing"),
        ("COPY f* x/", "without patterns"),
        ("COPY --from=later /app/x x", "--from=later"),
        ("RUN mkdir /app/x", "relatively"),
        ("RUN echo said; exit 3", "ended with 3"),
        ("WORKDIR /srv", "/srv is outside"),
    ],
)
def test_a_line_that_cannot_be_executed_ends_the_build(scratch: Scratch, line: str, named: str) -> None:
    with pytest.raises(dockerfile.Refused, match=re.escape(named)):
        scratch.build(f"FROM base AS x\n{line}\n")
