"""Other processes: which programs a machine must have, servers on their core, and what the kernel says of a process.

Servers run on one core and whatever asks them on the other, so that neither takes time from the other. Every process
that is started here ends with its `with` block.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
MIB: Final = 1024 * 1024
READY_WITHIN_S: Final = 120.0
LOOK_EVERY_S: Final = 0.005
HOST: Final = "127.0.0.1"
# Program by program, the Debian package that has it.
PACKAGES: Final[Mapping[str, str]] = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
    "cc": "gcc",
    "taskset": "util-linux",
}
T = TypeVar("T")


class Missing(SystemExit):
    """Raised when the machine lacks what a benchmark needs; the text says what to install."""


class Spoiled(Exception):
    """Raised when there is nothing to measure: an answer is wrong, a process has ended. One question ends with it."""


def program(name: str) -> str:
    """The path of a program that no Python package brings. Raises Missing."""
    # Debian keeps nginx where ordinary users do not look.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(f"the benchmarks need {name}: apt-get install {PACKAGES[name]}")
    return found


def require_cores() -> None:
    """Takes this process, and what it starts from here on, to the core of the load. Raises Missing."""
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise Missing(f"the benchmarks need cores {SERVER_CORE} and {LOAD_CORE}: one for servers, one for the load")
    os.sched_setaffinity(0, {LOAD_CORE})


def on_core(core: int | None, command: Sequence[str]) -> list[str]:
    """The command, pinned to a core; None: to no other than this process."""
    return list(command) if core is None else [program("taskset"), "--cpu-list", str(core), *command]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A process that runs until it is stopped."""

    def __init__(self, command: Sequence[str], *, core: int | None, log: Path | None = None, **more: Any) -> None:
        self._log = log
        output: IO[bytes] | None = None if log is None else log.open("ab")
        self.popen = subprocess.Popen(
            on_core(core, command), stdout=more.pop("stdout", output), stderr=output, text=True, **more
        )
        if output is not None:
            output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        # taskset replaces itself with the command: there is no process between.
        return self.popen.pid

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def wait_until(self, look: Callable[[], T | None], what: str) -> T:
        """What `look` returns once that is true. Raises Spoiled if the process ends, or after two minutes."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not (found := look()):
            code = self.popen.poll()
            if code is not None or time.monotonic() > deadline:
                self.stop()
                said = "" if self._log is None else self._log.read_text(errors="replace")[-2000:]
                raise Spoiled(f"waited in vain until {what} (exit code {code})\n{said}")
            time.sleep(LOOK_EVERY_S)
        return found

    def stop(self) -> None:
        """Ends it in good order."""
        if self.runs:
            self.popen.send_signal(signal.SIGTERM)
        self.popen.wait()


def answers(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def port_of(pid: int) -> int | None:
    """The loopback port on which a process listens, from the kernel's tables."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            inodes.add(os.readlink(fd))
        except OSError:
            continue
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].partition(":")[2], 16)
    return None


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds that these processes have had a core."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """What others than the processes of this run have of the machine, from when this is made until it is asked."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = self._spent_s()

    def shares(self) -> dict[str, float]:
        """`others`: of all cores, what other processes had. `stolen`: what the host gave to other machines.

        Right once all processes of this run have ended: until then the kernel keeps their times apart.
        """
        cores_s = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        others, stolen = (after - before for after, before in zip(self._spent_s(), self._before, strict=True))
        return {"others": round(max(0.0, others / cores_s), 3), "stolen": round(stolen / cores_s, 3)}

    @staticmethod
    def _spent_s() -> tuple[float, float]:
        # What interrupts take is nobody's: user, nice and system are of processes.
        user, nice, system, *_, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        ours = os.times()
        per_s = os.sysconf("SC_CLK_TCK")
        return (user + nice + system) / per_s - sum(ours[:4]), steal / per_s


def memory_mib(pid: int, what: str = "VmRSS") -> float:
    """What a process holds in memory, or with VmHWM the most that it held since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{what}:"))) / 1024


def forget_peak(pid: int) -> None:
    """Sets a process's VmHWM to what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
