"""What a Dockerfile says: its stages, its context, its images, and which paths stand for which. No I/O.

What is not known here is refused by name, never skipped: a line that nobody executed is a line that nobody tested.
"""
# ruff: noqa: INP001 - a folder of scripts, no package

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn


class Refused(Exception):
    """Raised for what this file does not know how to execute, and for an image that is not what it should be."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continuation lines joined; `rest` is what follows its flags."""

    line: int
    word: str
    flags: Mapping[str, str]
    rest: str

    def refuse(self, reason: str) -> NoReturn:
        raise Refused(f"Dockerfile:{self.line}: {self.word}: {reason}")


@dataclass(frozen=True)
class Stage:
    """`FROM base AS name`, and what follows."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "FROM": frozenset(),
    "COPY": frozenset({"from", "chown"}),
    "RUN": frozenset(),
    "ENV": frozenset(),
    "ARG": frozenset(),
    "WORKDIR": frozenset(),
    "USER": frozenset(),
    "VOLUME": frozenset(),
    "LABEL": frozenset(),
    "STOPSIGNAL": frozenset(),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period"}),
    "ENTRYPOINT": frozenset(),
    "CMD": frozenset(),
}


def parse(text: str) -> list[Stage]:
    """The stages in order."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            matched = re.fullmatch(r"(\S+) AS ([a-z][a-z0-9-]*)", instruction.rest)
            if matched is None:
                instruction.refuse("write FROM image AS name")
            stages.append(Stage(matched[2], matched[1], ()))
        elif not stages:
            instruction.refuse("must come after the first FROM")
        else:
            stages[-1] = replace(stages[-1], instructions=(*stages[-1].instructions, instruction))
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    began, joined = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"#\s*(syntax|escape|check)\s*=", line):
            raise Refused(f"Dockerfile:{number}: {line}: parser directives are not known here")
        if line.lstrip().startswith("#") or not (line.strip() or joined):
            continue
        began = began or number
        joined += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield _instruction(began, joined.strip())
            began, joined = 0, ""
    if joined:
        raise Refused(f"Dockerfile:{began}: ends in the middle of an instruction")


def _instruction(line: int, text: str) -> Instruction:
    word, _, rest = text.partition(" ")
    rest, flags = rest.strip(), {}
    while word in FLAGS and (flag := re.match(r"--([a-z-]+)(?:=(\S+))?(?:\s+|$)", rest)):
        flags[flag[1]] = flag[2] or ""
        rest = rest[flag.end() :]
    instruction = Instruction(line, word, flags, rest)
    if word not in FLAGS:
        instruction.refuse("is not known here")
    for name in flags.keys() - FLAGS[word]:
        instruction.refuse(f"--{name} is not known here")
    if "<<" in rest:
        instruction.refuse("here-documents are not known here")
    return instruction


def needed(stages: Sequence[Stage], target: str) -> list[Stage]:
    """The stages that a target is made of, itself last, in the file's order."""
    by_name = {stage.name: stage for stage in stages}
    if target not in by_name:
        raise Refused(f"the Dockerfile has no target {target}")
    wanted, found = [target], set[str]()
    while wanted:
        name = wanted.pop()
        if name in by_name and name not in found:
            found.add(name)
            copies = (i.flags["from"] for i in by_name[name].instructions if "from" in i.flags)
            wanted += [by_name[name].base, *copies]
    return [stage for stage in stages if stage.name in found]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """With $NAME and ${NAME} replaced; any other use of $, or a name that is not set, is refused."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise Refused(f"{match[0]} in {text!r}: not set, or not known here")
        return variables[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\}|\S*)", value, text)


# ---- .dockerignore


class Ignored:
    """What a .dockerignore keeps out of the context. The last pattern that matches a path or its parent decides."""

    def __init__(self, text: str) -> None:
        self._patterns: list[tuple[bool, re.Pattern[str]]] = []
        for line in filter(None, map(str.strip, text.splitlines())):
            if not line.startswith("#"):
                pattern = line.removeprefix("!").strip("/")
                if line.startswith("!") and "/" in pattern:
                    raise Refused(f".dockerignore: {line}: what is kept must be named at the top")
                self._patterns.append((not line.startswith("!"), re.compile(_regex(pattern) + r"(?:/.*)?")))

    def __call__(self, path: str) -> bool:
        ignored = False
        for ignores, pattern in self._patterns:
            if pattern.fullmatch(path):
                ignored = ignores
        return ignored


def _regex(pattern: str) -> str:
    if "[" in pattern or "\\" in pattern:
        raise Refused(f".dockerignore: {pattern}: not known here")
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(known.get(part, re.escape(part)) for part in parts)


# ---- an image, as its instructions describe it


@dataclass(frozen=True)
class Image:
    """What FROM hands on and a start needs. Paths are the image's own."""

    env: Mapping[str, str]
    workdir: str = "/"
    user: str = "0:0"
    volumes: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    stop: str = "SIGTERM"


def described(image: Image, instruction: Instruction, arguments: Mapping[str, str]) -> Image:
    """The image after an instruction that only says something of it; others leave it as it is."""
    variables = {**arguments, **image.env}
    match instruction.word:
        case "ENV":
            return replace(image, env={**image.env, **assignments(instruction, variables)})
        case "WORKDIR":
            return replace(image, workdir=str(PurePosixPath(image.workdir) / expand(instruction.rest, variables)))
        case "USER":
            return replace(image, user=instruction.rest)
        case "VOLUME":
            return replace(image, volumes=(*image.volumes, instruction.rest))
        case "STOPSIGNAL":
            return replace(image, stop=instruction.rest)
        case "ENTRYPOINT":
            # As an engine does: the CMD that belonged to another entry point is forgotten.
            return replace(image, entrypoint=_words(instruction, instruction.rest), cmd=())
        case "CMD":
            return replace(image, cmd=_words(instruction, instruction.rest))
        case "HEALTHCHECK":
            return replace(image, healthcheck=_words(instruction, instruction.rest.removeprefix("CMD ")))
    return image


def assignments(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    found = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', instruction.rest))
    if re.sub(r'\w+=("[^"]*"|\S+)', "", instruction.rest).strip():
        instruction.refuse("write NAME=value")
    return {name: expand(value.strip('"'), variables) for name, value in found.items()}


def _words(instruction: Instruction, text: str) -> tuple[str, ...]:
    try:
        words = json.loads(text)
    except ValueError:
        instruction.refuse("write it as a JSON array: the shell form does not pass signals on")
    return tuple(words)


@dataclass(frozen=True)
class World:
    """The folders of an image that can be written, and the folders of this machine that stand for them."""

    folders: Mapping[str, Path]

    def place(self, path: PurePosixPath) -> Path:
        for folder, stand_in in self.folders.items():
            if path.is_relative_to(folder) and ".." not in path.parts:
                return stand_in / path.relative_to(folder)
        raise Refused(f"{path} is outside of what can be written, {', '.join(self.folders)}")

    def mapped(self, value: str) -> str:
        """A value of the environment, or a word of a command, with the folders' names replaced."""
        for folder, stand_in in self.folders.items():
            value = re.sub(rf"(?<![\w.-]){folder}(?![\w.-])", str(stand_in), value)
        return value

    def refuse_absolute(self, instruction: Instruction) -> None:
        """Commands must not name those folders: they would mean the machine's, and fail or, worse, not."""
        if self.mapped(instruction.rest) != instruction.rest:
            instruction.refuse(f"name what is below {' and '.join(self.folders)} relatively, so that it can be mapped")


def folders_of(stages: Iterable[Stage]) -> list[str]:
    """The work folder, which is the first WORKDIR, and the volumes."""
    instructions = [instruction for stage in stages for instruction in stage.instructions]
    found = [i.rest for i in instructions if i.word == "WORKDIR"][:1]
    return found + [i.rest for i in instructions if i.word == "VOLUME"]


def environment(image: Image, world: World) -> dict[str, str]:
    return {name: world.mapped(value) for name, value in image.env.items()}
