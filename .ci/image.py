#!/usr/bin/env python3
"""Builds and starts the images of the Dockerfile without a container engine, so that CI can do it on a bare machine.

`build.py` executes the Dockerfile. Then both targets are started with every path but their data read-only; they have to
pass their own health checks, to answer the sample's questions, and to end with 0 on the stop signal. Only the standard
library is used.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from build import Build, User, as_user, copy_context, lock, stand_in_python, unlock, user_of
from dockerfile import Image, Refused, Stage, World, environment, parse

ROOT: Final = Path(__file__).resolve().parent.parent
TARGETS: Final = ("sidecar", "indexer")
# What must not be in the sidecar's image, and must be in the indexer's.
OF_THE_INDEXER: Final = frozenset({"alembic", "apscheduler", "asyncmy", "asyncpg", "sqlalchemy", "stamina"})
NEEDED_NO_MORE: Final = frozenset({"pip", "setuptools"})


@dataclass
class Built:
    """An image that was built, and where."""

    name: str
    image: Image
    world: World
    app: Path
    env: dict[str, str] = field(default_factory=dict)

    def mounted(self, volume: Path) -> None:
        """From now on the volume stands for the data that the image itself has an empty folder for."""
        folders = {**self.world.folders, **dict.fromkeys(self.image.volumes, volume)}
        self.world = World(folders)
        # A numeric user without a name has no home.
        self.env = {"HOME": "/", "LANG": "C.UTF-8", **environment(self.image, self.world)}

    def command(self, *instead: str) -> list[str]:
        return [self.world.mapped(word) for word in (*self.image.entrypoint, *(instead or self.image.cmd))]

    @property
    def workdir(self) -> Path:
        return self.world.place(PurePosixPath(self.image.workdir))

    @property
    def healthcheck(self) -> list[str]:
        return [self.world.mapped(word) for word in self.image.healthcheck]

    @property
    def site_packages(self) -> Path:
        (found,) = self.app.glob("venv/lib/python3.*/site-packages")
        return found


# In a mount namespace of its own: every mount is read-only but the data, as with `docker run --read-only`.
SEAL: Final = """
data=$1 workdir=$2; shift 2
mount --bind "$data" "$data"
cut -d' ' -f5 /proc/self/mountinfo | while read -r point; do
    [ "$point" = "$data" ] || mount -o remount,bind,ro "$point"
done
cd "$workdir"
exec "$@"
"""


class Start:
    """Starts commands of images with every path but the data read-only, by the kernel if it can be had."""

    def __init__(self, user: User, data: Path) -> None:
        self._user = user
        self._data = data
        try:
            subprocess.run([*self._seal(data), "true"], check=True, capture_output=True, text=True)
            self.sealed, self.by = True, "read-only mounts, in a mount namespace"
        except (OSError, subprocess.CalledProcessError) as error:
            reason = str(getattr(error, "stderr", "") or type(error).__name__).strip().splitlines()[-1]
            self.sealed, self.by = False, f"permissions alone ({reason})"

    def _seal(self, workdir: Path) -> list[str]:
        unshare = ["unshare", "--mount", "--propagation", "private"]
        seal = ["sh", "-euc", SEAL, "sh", str(self._data), str(workdir)]
        if not self._user.is_other:
            return [*unshare, "--map-root-user", *seal]
        switch = [f"--reuid={self._user.uid}", f"--regid={self._user.gid}", "--clear-groups", "--no-new-privs"]
        return [*unshare, *seal, "setpriv", *switch]

    def popen(self, one: Built, command: Sequence[str], log: Path | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*(self._seal(one.workdir) if self.sealed else ()), *command],
            cwd=one.workdir,
            env=one.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if log is None else log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            **({} if self.sealed else self._user.switch),
        )

    def run(self, one: Built, *command: str) -> tuple[int, str]:
        with self.popen(one, command) as process:
            said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def succeed(self, one: Built, *command: str) -> str:
        code, said = self.run(one, *command)
        if code != 0:
            raise Refused(f"{list(command)} ended with {code}:\n{said}")
        return said


def built(stages: Sequence[Stage], target: str, scratch: Path, context: Path, python: Path, user: User) -> Built:
    place, home = scratch / target, scratch / f"{target}-home"
    for folder in (place, home):
        folder.mkdir()
        if user.is_other:
            os.chown(folder, user.uid, user.gid)
    build = Build(stages, place, context, python, home)
    as_user(user, lambda: build.run(target))
    if left := list(home.iterdir()):
        raise Refused(f"the build of {target} leaves {left} in its home")
    image = build.image(target)
    app, *data = build.world.folders.values()
    if [path for folder in data for path in folder.rglob("*")] or not all(folder.is_dir() for folder in data):
        raise Refused(f"the volumes of {target} must be empty folders of the image")
    lock(place, user)
    lock(home, user)
    return Built(target, image, build.world, app)


LIST: Final = "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
SAMPLE: Final = """
import dataclasses, datetime, json
from indexer.sample import sample_catalogs, sample_corpus, sample_questions
corpus = sample_corpus(datetime.datetime.now(datetime.UTC).date(), 60)
catalogs = sample_catalogs(corpus)
json.dump(corpus, open("corpus.json", "w"))
json.dump(catalogs, open("catalogs.json", "w"))
print(json.dumps([dataclasses.asdict(question) for question in sample_questions(corpus, catalogs)]))
"""
WRITABLE: Final = """
import sys
for folder in sys.argv[1:]:
    try:
        open(folder + "/.probe", "w").close()
    except OSError:
        continue
    print(folder)
"""


def check_contents(one: Built, start: Start) -> None:
    """What is in an image, asked of its own Python."""
    names = {name.lower().replace("_", "-") for name in json.loads(start.succeed(one, "python", "-c", LIST))}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / f"requirements-{one.name}.lock").read_text(), re.MULTILINE))
    wrong: dict[str, Set[str]] = {
        "more than is locked": names - locked - {"catalog-sidecar"},
        "what only the build needs": names & NEEDED_NO_MORE,
        "without redis": {"redis", "hiredis"} - names,
    }
    commands = {path.name for path in (one.app / "venv/bin").glob("catalog-*")}
    if one.name == "sidecar":
        code, said = start.run(one, "python", "-c", "import indexer")
        if code == 0 or "ModuleNotFoundError" not in said or commands != {"catalog-sidecar"}:
            raise Refused("the sidecar's image has the indexer")
        wrong["the indexer's dependencies"] = names & OF_THE_INDEXER
    else:
        wrong["not all the indexer's dependencies"] = OF_THE_INDEXER - names
    for what, found in wrong.items():
        if found:
            raise Refused(f"the image of {one.name}: {what}: {', '.join(sorted(found))}")


def listing(folder: Path, but: Path) -> dict[str, tuple[int, ...]]:
    """Every path below a folder but those of one part, with all that a write changes."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        if path != but and but not in path.parents:
            stat = path.lstat()
            found[str(path)] = (stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serving(one: Built, start: Start, logs: Path) -> Iterator["subprocess.Popen[str]"]:
    """ENTRYPOINT and CMD; unhealthy before, healthy once it is up."""
    code, _ = start.run(one, *one.healthcheck)
    if code != 1:
        raise Refused(f"the health check of {one.name} ends with {code} while nothing runs; 1 means unhealthy")
    log = logs / f"{one.name}.log"
    process = start.popen(one, one.command(), log)
    try:
        within(30, lambda: start.run(one, *one.healthcheck)[0] == 0, f"{one.name} healthy")
        yield process
        process.send_signal(signal.Signals[one.image.stop])
        if (code := process.wait(15)) != 0:
            raise Refused(f"{one.name} ended with {code} after {one.image.stop}")
    except (Refused, subprocess.TimeoutExpired):
        print(f"the log of {one.name}:\n{log.read_text()}", file=sys.stderr)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def within(seconds: float, is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise Refused(f"not {what} after {seconds:g} s")
        time.sleep(0.2)


def is_answered(port: int, question: Mapping[str, Any]) -> bool:
    """Whether the sidecar's answer to a question of the sample is the expected one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        body = None if question["body"] is None else json.dumps(question["body"])
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(question["method"], question["path"], body, headers)
        return bool(json.loads(connection.getresponse().read()) == json.loads(question["answer"]))
    except OSError:
        return False
    finally:
        connection.close()


def check_start(sidecar: Built, indexer: Built, start: Start, scratch: Path, data: Path) -> int:
    """Both images over one volume, as an operator would run them; how many questions were answered."""
    ports = {"CATALOG_SIDECAR_PORT": free_port(), "CATALOG_INDEXER_PORT": free_port()}
    for one in (sidecar, indexer):
        one.mounted(data)
        one.env.update({name: str(port) for name, port in ports.items()})
        check_contents(one, start)
        protected = ["/", str(scratch), str(one.app), str(one.site_packages), str(scratch / f"{one.name}-home")]
        if start.sealed:
            protected += ["/tmp", "/var/tmp", "/dev/shm", "/run"]
        if writable := start.succeed(one, "python", "-c", WRITABLE, *protected).split():
            raise Refused(f"{one.name} can write to {', '.join(writable)}")
    before = listing(scratch, data)
    questions = json.loads(start.succeed(indexer, "python", "-c", SAMPLE))
    start.succeed(indexer, *indexer.command("catalogs", "add", "catalogs.json"))
    with tempfile.TemporaryDirectory(prefix="image-logs-") as logs, ExitStack() as stack:
        stack.enter_context(serving(indexer, start, Path(logs)))
        stack.enter_context(serving(sidecar, start, Path(logs)))
        port = ports["CATALOG_SIDECAR_PORT"]
        for question in questions:
            within(30, partial(is_answered, port, question), f"answered: {question['title']}")
    if changed := dict(before.items() ^ listing(scratch, data).items()):
        raise Refused(f"changed outside of the data: {', '.join(sorted(changed))}")
    return len(questions)


def size_mib(path: Path) -> float:
    """What the files take, each counted once."""
    stats = [p.lstat() for p in (path, *path.rglob("*"))]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values()) / 2**20


def sizes(one: Built) -> str:
    packages = sorted(((size_mib(path), path.name) for path in one.site_packages.iterdir()), reverse=True)
    largest = ", ".join(f"{name} {size:.1f}" for size, name in packages[:6])
    return f"{one.name}: an environment of {size_mib(one.app):.1f} MiB; the largest in it: {largest}"


def main() -> None:
    began = time.monotonic()
    stages = parse((ROOT / "Dockerfile").read_text())
    user = user_of(stages)
    scratch = Path(tempfile.mkdtemp(prefix="image-"))
    try:
        scratch.chmod(0o755)
        copy_context(ROOT, scratch / "context")
        python = stand_in_python(scratch / "python", user)
        images = {}
        for target in TARGETS:
            print(f"building {target} as user {user.uid}")
            images[target] = built(stages, target, scratch, scratch / "context", python, user)
        data = scratch / "volume"
        data.mkdir()
        if user.is_other:
            os.chown(data, user.uid, user.gid)
        start = Start(user, data)
        print(f"starting both, everything but their data read-only by {start.by}")
        answered = check_start(images["sidecar"], images["indexer"], start, scratch, data)
        print(f"healthy, {answered} questions answered, stopped with 0, nothing written outside of the data")
        for one in images.values():
            print(sizes(one))
        print(f"images built and started in {time.monotonic() - began:.0f} s")
    finally:
        unlock(scratch)
        shutil.rmtree(scratch)


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"image: {error}")
