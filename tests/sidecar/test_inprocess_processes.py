"""The index inside a worker across processes: other users, forks, many workers, gevent; and what it imports."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.sidecar.test_inprocess import LONG_S, ONE, holding, sidecar

ROOT: Final = Path(__file__).parent.parent.parent
NOBODY: Final = 65534
as_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Answers what it is asked line by line: a key, or what to do first. Whatever it imports, it imports as who it was.
WORKER: Final = """
import ctypes, os, sys
from sidecar.inprocess import CatalogError, CatalogIndex

path, catalog, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
index = CatalogIndex(path, look_s=0)
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def opened():
    return sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith(path) for fd in os.listdir("/proc/self/fd"))


for line in sys.stdin:
    word = line.strip()
    if word == "load":
        index.load()
        answer = opened() > 0
    elif word == "opened":
        answer = opened()
    elif word in ("fork", "unknown fork"):
        # The child goes on in the parent's place; what the parent says when it is gone comes last.
        child = os.fork() if word == "fork" else ctypes.PyDLL(None).fork()
        if child:
            _, status = os.waitpid(child, 0)
            answer = index.contains(catalog, "edX+B") and not status
        else:
            answer = opened()
    else:
        try:
            answer = index.contains(catalog, word)
        except CatalogError as error:
            answer = f"{type(error).__name__}: {error}"
    print(answer, flush=True)
"""


class Worker:
    """A process that asks one catalog, as a user."""

    def __init__(self, path: Path, uid: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, str(path), str(ONE), str(uid)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._said()

    def end(self) -> tuple[str, int]:
        """What is left to be said once nothing more is asked, and the status."""
        left, _ = self._process.communicate(timeout=LONG_S)
        return left.strip(), self._process.returncode

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def worker(path: Path, uid: int = 0) -> Iterator[Worker]:
    made = Worker(path, uid)
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own are not."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with its owner and mode."""
    return {path.name: (path.stat().st_uid, path.stat().st_mode) for path in folder.iterdir()}


# ---- other users


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o777])
async def test_another_user_reads_along_and_leaves_nothing(folder: Path, mode: int) -> None:
    """While a sidecar writes, after it has ended, and when it begins again; also where that user could write."""
    path = folder / "disk.db"
    os.chmod(folder, mode)
    with worker(path, NOBODY) as early, worker(path, NOBODY) as late:
        assert (await asyncio.to_thread(early.ask, "edX+A")).startswith("NotReady")
        async with sidecar(path) as first:
            await first.serve(holding("edX+A", 1))
            assert await asyncio.to_thread(early.ask, "edX+A") == "True"
            await first.serve(holding("edX+B", 2))
            assert [await asyncio.to_thread(early.ask, key) for key in ("edX+A", "edX+B")] == ["False", "True"]
            await asyncio.to_thread(early.kill)
        ended = owners(folder)
        assert ended.keys() == {"disk.db", "disk.db.lock"}
        assert [await asyncio.to_thread(late.ask, key) for key in ("edX+A", "edX+B")] == ["False", "True"]
        assert owners(folder) == ended
        async with sidecar(path) as second:
            await second.serve(holding("edX+A", 3))
            assert [await asyncio.to_thread(late.ask, key) for key in ("edX+A", "edX+B")] == ["True", "False"]
            assert {uid for uid, _ in owners(folder).values()} == {0}
            await second.serve(holding("edX+B", 4))
            assert await asyncio.to_thread(late.ask, "edX+B") == "True"


KILLED: Final = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.sidecar.test_inprocess import holding, sidecar

async def main():
    async with sidecar(Path(sys.argv[1])) as made:
        await made.serve(holding("edX+A", 1))
        await made.serve(holding("edX+B", 2))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("uid", [0, pytest.param(NOBODY, marks=as_root)])
async def test_a_copy_whose_sidecar_was_killed_is_read_to_its_last_generation(folder: Path, uid: int) -> None:
    path = folder / "disk.db"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, timeout=LONG_S)
    assert (folder / "disk.db-wal").stat().st_size > 0
    with worker(path, uid) as mine:
        assert [await asyncio.to_thread(mine.ask, key) for key in ("edX+A", "edX+B")] == ["False", "True"]
        async with sidecar(path) as again:
            await again.serve(holding("edX+A", 3))
            assert [await asyncio.to_thread(mine.ask, key) for key in ("edX+A", "edX+B")] == ["True", "False"]


@as_root
async def test_a_user_who_may_not_read_the_copy_is_told(folder: Path) -> None:
    path = folder / "disk.db"
    async with sidecar(path) as made:
        await made.serve(holding("edX+A", 1))
        path.chmod(0o600)
        with worker(path, NOBODY) as mine:
            answer = await asyncio.to_thread(mine.ask, "edX+A")
            assert answer == f"NotReady: no generation is loaded: disk copy {path}: unable to open database file"
            path.chmod(0o644)
            assert await asyncio.to_thread(mine.ask, "edX+A") == "True"


# ---- many processes


@pytest.mark.parametrize("kind", ["fork", "unknown fork"])
async def test_a_fork_shares_what_is_loaded_and_no_connection(folder: Path, kind: str) -> None:
    """Behind the fork both follow on. A fork that Python is not told of inherits the open file, and does not use it."""
    path = folder / "disk.db"
    async with sidecar(path) as made:
        await made.serve(holding("edX+A", 1))
        with worker(path) as mine:
            assert await asyncio.to_thread(mine.ask, "load") == "True"
            inherited = int(await asyncio.to_thread(mine.ask, kind))
            assert inherited == 0 if kind == "fork" else inherited > 0
            assert await asyncio.to_thread(mine.ask, "edX+A") == "True"
            assert int(await asyncio.to_thread(mine.ask, "opened")) > inherited
            for generation, key in ((2, "edX+B"), (3, "edX+A"), (4, "edX+B")):
                await made.serve(holding(key, generation))
                assert await asyncio.to_thread(mine.ask, key) == "True"
            # The parent, which is woken by the end of its child, has the newest generation.
            assert await asyncio.to_thread(mine.end) == ("True", 0)


async def test_many_workers_follow_one_copy(folder: Path) -> None:
    path = folder / "disk.db"
    workers = [Worker(path) for _ in range(4)]
    try:
        async with sidecar(path) as made:
            for generation in range(1, 6):
                member, other = ("edX+A", "edX+B") if generation % 2 else ("edX+B", "edX+A")
                await made.serve(holding(member, generation))
                for key, expected in ((member, "True"), (other, "False")):
                    said = await asyncio.gather(*(asyncio.to_thread(one.ask, key) for one in workers))
                    assert said == [expected] * len(workers)
    finally:
        for one in workers:
            one.kill()


GREENLETS: Final = """
from gevent import monkey
monkey.patch_all()
import sys, threading, gevent
from gevent.threadpool import ThreadPool
from sidecar.inprocess import CatalogIndex

path, catalog = sys.argv[1:]
index = CatalogIndex(path, look_s=0)
turns = []


def ask(name):
    answers = set()
    for _ in range(100):
        answers.add(index.contains(catalog, "edX+A"))
        answers.add(index.contains_any(catalog, ["edX+B", "edX+A"]))
        turns.append(name)
        gevent.sleep(0)
    return answers


with gevent.Timeout(60):
    greenlets = [gevent.spawn(ask, n) for n in range(20)]
    threads = ThreadPool(4)
    beside = [threads.spawn(index.contains, catalog, "edX+A") for _ in range(100)]
    gevent.joinall([*greenlets, *beside], raise_error=True)
assert {answer for one in greenlets for answer in one.value} == {True}
assert all(one.value for one in beside)
assert turns[:20] == list(range(20)), turns[:20]
"""


async def test_greenlets_and_real_threads_share_an_index(folder: Path) -> None:
    """It was made by a patched standard library, looks at every question, and the generation moves all the while."""
    path = folder / "disk.db"
    async with sidecar(path) as made:
        await made.serve(holding("edX+A", 1))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", GREENLETS, str(path), str(ONE), cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        ending = asyncio.create_task(process.communicate())
        generation = 1
        while not ending.done():
            generation += 1
            await made.serve(holding("edX+A", generation))
        _, said = await ending
        assert (process.returncode, said.decode()) == (0, "")
        assert generation > 2


# ---- what it needs

IMPORTED: Final = """
import sys, sysconfig
before = set(sys.modules)
import sidecar.inprocess
new = {name.partition(".")[0] for name in set(sys.modules) - before if getattr(sys.modules[name], "__file__", None)}
print(*sorted(new - set(sys.stdlib_module_names)))
print("asyncio" in new, "http" in new)
"""


def test_importing_it_brings_three_packages_and_no_event_loop() -> None:
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTED], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert said == ["msgpack pyroaring sidecar zstandard", "False False"]
