"""Executes the COPY and RUN lines of the stages that a target needs, in order, as an ordinary user.

A folder stands for the image's file system: of that, the work folder and the volumes alone can be written, and anything
else is refused, by this file (COPY) or by permissions (RUN). The base image's `python` is the machine's.
"""
# ruff: noqa: INP001 - a folder of scripts, no package

import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dockerfile import (
    Ignored,
    Image,
    Instruction,
    Refused,
    Stage,
    World,
    assignments,
    described,
    environment,
    expand,
    folders_of,
    needed,
)


@dataclass(frozen=True)
class User:
    """Who executes and runs: the image's numeric user if this is root, else whoever this is."""

    uid: int
    gid: int
    is_other: bool

    @property
    def switch(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}


def user_of(stages: Iterable[Stage]) -> User:
    if os.geteuid() != 0:
        return User(os.geteuid(), os.getegid(), False)
    users = {i.rest for stage in stages for i in stage.instructions if i.word == "USER"}
    numeric = [re.fullmatch(r"([1-9]\d*):([1-9]\d*)", user) for user in users]
    if len(numeric) != 1 or numeric[0] is None:
        raise Refused(f"USER must be one numeric uid:gid that is not root, not {users or 'missing'}")
    return User(int(numeric[0][1]), int(numeric[0][2]), True)


def as_user(user: User, work: Callable[[], None]) -> None:
    """Does the work in a child that has given up root for good."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if user.is_other:
                os.setgroups([])
                os.setgid(user.gid)
                os.setuid(user.uid)
            work()
            code = 0
        except (Refused, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on as a second parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise Refused("the build failed")


def stand_in_python(folder: Path, user: User) -> Path:
    """The base image's Python: an environment with pip, of the first Python that the ordinary user can run."""
    candidates = [f"{sys.base_prefix}/bin/python3", *(f"{path}/python3" for path in os.get_exec_path())]
    check = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    for candidate in candidates:
        try:
            subprocess.run([candidate, "-c", check], check=True, cwd="/", capture_output=True, **user.switch)
        except (OSError, subprocess.CalledProcessError):
            continue
        subprocess.run([candidate, "-m", "venv", folder], check=True)
        return folder / "bin"
    raise Refused(f"user {user.uid} can run no Python 3.11 that makes environments: tried {', '.join(candidates)}")


def outer_environment() -> dict[str, str]:
    """What an engine's host would bring along: the way to the package index."""
    kept = re.compile(r"PIP_(?!REQUIRE_VIRTUALENV|USER).*|.*_proxy|.*_PROXY|SSL_CERT_.*|REQUESTS_CA_BUNDLE")
    return {name: value for name, value in os.environ.items() if kept.fullmatch(name)}


class Build:
    """Executes stages one after the other in one place, since environments do not work in another; keeps results."""

    def __init__(self, stages: Sequence[Stage], scratch: Path, context: Path, python: Path, home: Path) -> None:
        folders = folders_of(stages)
        self.stages = stages
        self.world = World({folder: scratch / folder.strip("/") for folder in folders})
        self._kept = scratch / "stages"
        self._context = context
        self._outside = {"HOME": str(home), "LANG": "C.UTF-8", **outer_environment()}
        self._base = Image({"PATH": f"{python}:/usr/local/bin:/usr/bin:/bin"})

    def run(self, target: str) -> None:
        images: dict[str, Image] = {}
        for stage in needed(self.stages, target):
            for folder, place in self.world.folders.items():
                shutil.rmtree(place, ignore_errors=True)
                kept = self._kept / stage.base / folder.strip("/")
                if kept.exists():
                    shutil.copytree(kept, place, symlinks=True)
            image = images.get(stage.base, self._base)
            arguments: dict[str, str] = {}
            for instruction in stage.instructions:
                image = self._execute(stage, image, instruction, arguments)
            images[stage.name] = image
            if stage.name != target:
                for folder, place in self.world.folders.items():
                    if place.exists():
                        shutil.copytree(place, self._kept / stage.name / folder.strip("/"), symlinks=True)
        shutil.rmtree(self._kept)

    def image(self, target: str) -> Image:
        """What the instructions say of the target's image; nothing is executed."""
        images: dict[str, Image] = {}
        for stage in needed(self.stages, target):
            image, arguments = images.get(stage.base, self._base), dict[str, str]()
            for instruction in stage.instructions:
                if instruction.word == "ARG":
                    arguments.update(assignments(instruction, arguments))
                image = described(image, instruction, arguments)
            images[stage.name] = image
        return images[target]

    def _execute(self, stage: Stage, image: Image, instruction: Instruction, arguments: dict[str, str]) -> Image:
        began = time.monotonic()
        match instruction.word:
            case "ARG":
                arguments.update(assignments(instruction, arguments))
            case "COPY":
                self._copy(image, instruction, {**arguments, **image.env})
            case "RUN":
                self._run(image, instruction, arguments)
            case _:
                image = described(image, instruction, arguments)
                if instruction.word == "WORKDIR":
                    self.world.place(PurePosixPath(image.workdir)).mkdir(parents=True, exist_ok=True)
                return image
        shown = re.sub(r"\s+", " ", f"{instruction.word} {instruction.rest}")
        print(f"  {time.monotonic() - began:5.1f} s  {stage.name}: {shown if len(shown) < 85 else shown[:84] + '…'}")
        return image

    def _copy(self, image: Image, instruction: Instruction, variables: Mapping[str, str]) -> None:
        # --chown is not carried out: who may not give files away owns them already, as the user that it names.
        *sources, to = expand(instruction.rest, variables).split()
        if not sources or re.search(r'[*?\["]', instruction.rest):
            instruction.refuse("write COPY source… destination, without patterns")
        destination = self.world.place(PurePosixPath(image.workdir) / to)
        into = to.endswith(("/", "/.")) or to == "."
        if len(sources) > 1 and not into:
            instruction.refuse("several sources need a destination that ends with /")
        for source in sources:
            found = self._source(instruction, source)
            if found.is_dir():
                shutil.copytree(found, destination, symlinks=True, dirs_exist_ok=True)
            elif found.exists():
                place = destination / found.name if into else destination
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)
            else:
                instruction.refuse(f"there is no {source}, or .dockerignore keeps it out")

    def _source(self, instruction: Instruction, source: str) -> Path:
        stage = instruction.flags.get("from")
        if stage is None:
            return World({"/": self._context}).place(PurePosixPath("/") / source)
        if not (self._kept / stage).exists():
            instruction.refuse(f"--from={stage} is no stage before this one")
        folders = {folder: self._kept / stage / folder.strip("/") for folder in self.world.folders}
        return World(folders).place(PurePosixPath("/") / source)

    def _run(self, image: Image, instruction: Instruction, arguments: Mapping[str, str]) -> None:
        self.world.refuse_absolute(instruction)
        done = subprocess.run(
            ["/bin/sh", "-c", instruction.rest],
            check=False,
            cwd=self.world.place(PurePosixPath(image.workdir)),
            env={**self._outside, **arguments, **environment(image, self.world)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            instruction.refuse(f"ended with {done.returncode}: {instruction.rest}\n{done.stdout}")


def copy_context(root: Path, to: Path) -> None:
    """The context as an engine is sent it: without what is ignored, and readable by everybody."""
    ignored = Ignored((root / ".dockerignore").read_text())

    def left_out(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(root)
        return [name for name in names if ignored((inside / name).as_posix())]

    shutil.copytree(root, to, ignore=left_out)
    for path in (to, *to.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def lock(folder: Path, user: User) -> None:
    """Nobody may write below the folder, and the user owns nothing there."""
    for path in (folder, *folder.rglob("*")):
        if user.is_other:
            os.chown(path, 0, 0, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


def unlock(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
