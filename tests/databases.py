"""Real PostgreSQL and MariaDB servers for tests, and the database that the registry of each folder is on.

    python -m tests.databases [postgresql|mariadb] [arguments of pytest]

runs the tests of the registry on either. Servers listen on free ports of loopback, keep what they have in folders of
their own, and end with the process that started them; what they have committed outlives them, and no power cut.
"""

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from indexer.registry import Registry, schema
from tests.fakes import FakeClock

HOST: Final = "127.0.0.1"
NAME: Final = "catalog"
VARIABLE: Final = "REGISTRY_URL"
DEADLINE_S: Final = 30.0
LOOK_EVERY_S: Final = 0.02
# A test that waits for a lock for longer than this waits for ever.
LOCK_TIMEOUT_S: Final = 20
TESTS: Final = (
    "tests/indexer/registry",
    *(f"tests/indexer/test_{name}.py" for name in ("mirror", "compiler", "pipeline", "publish", "build", "status")),
)


class Server:
    """A database server: on the same port, with the same folder, however often it is started."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port: int = free.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix="db-"))
        # Neither server wants to be root's.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.remove)
        self._make()

    @property
    def url(self) -> str:
        """A registry.url; its user may make databases."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it, with what it had when it was killed, and returns when it answers."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._user
            )
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError(f"{type(self).__name__} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(LOOK_EVERY_S)

    def kill(self) -> None:
        """Ends it at once, with every process that it has started, as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def remove(self) -> None:
        """Ends it for ever."""
        if os.getpid() == self._owner:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        raise NotImplementedError

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _run(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False, **self._user)

    def _set_up(self, *command: str) -> None:
        done = self._run(*command)
        if done.returncode:
            raise ChildProcessError(f"{command[0]}: {(done.stdout + done.stderr).decode(errors='replace')[-2000:]}")


class PostgreSQL(Server):
    """PostgreSQL, of whichever version is installed."""

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://{NAME}@{HOST}:{self.port}/postgres"

    def _make(self) -> None:
        self._set_up(
            _found("initdb", "postgresql"),
            *("--pgdata", str(self._data), "--username", NAME, "--auth", "trust", "--encoding", "UTF8", "--no-sync"),
            *("--locale", "C"),
        )

    def _command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "lock_timeout": f"{LOCK_TIMEOUT_S}s",
        }
        options = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        return [_found("postgres", "postgresql"), "-D", str(self._data), "-p", str(self.port), *options]

    def _answers(self) -> bool:
        ready = self._run(_found("pg_isready", "postgresql"), "-q", "-h", HOST, "-p", str(self.port), "-d", "postgres")
        return ready.returncode == 0

    @property
    def _data(self) -> Path:
        return self.folder / "data"


class MariaDB(Server):
    """MariaDB as it comes, without what a distribution adds: its default charset is not Unicode."""

    @property
    def url(self) -> str:
        return f"mysql+asyncmy://{NAME}@{HOST}:{self.port}/mysql"

    def _make(self) -> None:
        self._set_up(
            _found("mariadb-install-db", "mariadb-server"),
            *("--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"),
            f"--datadir={self._data}",
        )
        (self.folder / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS '{NAME}'@'%';\nGRANT ALL PRIVILEGES ON *.* TO '{NAME}'@'%';\n"
        )

    def _command(self) -> Sequence[str]:
        settings = {
            "datadir": self._data,
            "socket": self.folder / "socket",
            "port": self.port,
            "bind-address": HOST,
            "pid-file": self.folder / "pid",
            "init-file": self.folder / "init.sql",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
            "innodb-flush-log-at-trx-commit": 2,
            "innodb-flush-method": "nosync",
            "innodb-lock-wait-timeout": LOCK_TIMEOUT_S,
        }
        options = (f"--{name}={value}" for name, value in settings.items())
        return [_found("mariadbd", "mariadb-server"), "--no-defaults", "--skip-name-resolve", *options]

    def _answers(self) -> bool:
        ping = self._run(
            _found("mariadb-admin", "mariadb-server"),
            "--no-defaults",
            "-h",
            HOST,
            "-P",
            str(self.port),
            "-u",
            NAME,
            "ping",
        )
        return ping.returncode == 0

    @property
    def _data(self) -> Path:
        return self.folder / "data"


SERVERS: Final[dict[str, type[Server]]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}


def _found(program: str, package: str) -> str:
    """A program on PATH, or where Debian puts what is not for everybody; of several versions the newest."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    folders = [os.environ.get("PATH", ""), *(str(path) for path in reversed(installed)), "/usr/sbin", "/usr/local/sbin"]
    found = shutil.which(program, path=os.pathsep.join(folders))
    if found is None:
        raise FileNotFoundError(f"no {program}: install {package} (apt-get install {package})")
    return found


@dataclass(slots=True)
class _Database:
    url: URL
    folder: Path | None


class Databases:
    """Where the registries of tests are: each in a file of its folder, or each on a database of one server.

    The databases of folders that are gone, or that nobody needs any more, are emptied and used again: to empty one
    takes a tenth of the time that migrations take.
    """

    def __init__(self, server: str | None) -> None:
        """`server`: a url whose user may make databases; without one, SQLite files."""
        self._server = make_url(server) if server else None
        self._databases: list[_Database] = []
        self._state: dict[str, object] = {}

    @property
    def kind(self) -> str:
        """`sqlite`, `postgresql` or `mariadb`."""
        backend = "sqlite" if self._server is None else self._server.get_backend_name()
        return "mariadb" if backend == "mysql" else backend

    async def url(self, folder: Path) -> str:
        """The url of a folder's registry: on SQLite whatever is in the folder, else migrated and at first empty."""
        if self._server is None:
            return f"sqlite+aiosqlite:///{folder}/registry.db"
        for database in self._databases:
            if database.folder == folder:
                return _shown(database.url)
        for database in self._databases:
            if database.folder is None or not database.folder.exists():
                await self._empty(database.url)
                database.folder = folder
                return _shown(database.url)
        database = _Database(await self._make(), folder)
        registry = Registry(_shown(database.url), FakeClock())
        try:
            await registry.open()
            async with registry.read() as connection:
                self._state = dict((await connection.execute(sa.select(schema.state))).one()._mapping)
        finally:
            await registry.close()
        self._databases.append(database)
        return _shown(database.url)

    async def bare(self, folder: Path) -> str:
        """The url of a registry that nobody has migrated yet."""
        return await self.url(folder) if self._server is None else _shown(await self._make())

    def release(self) -> None:
        """Nobody needs what any folder has."""
        for database in self._databases:
            database.folder = None

    async def _make(self) -> URL:
        assert self._server is not None
        url = self._server.set(database=f"{NAME}_{uuid4().hex}")
        async with _connected(self._server) as connection:
            await connection.execute(sa.text(f"CREATE DATABASE {url.database}"))
        return url

    async def _empty(self, url: URL) -> None:
        async with _connected(url) as connection:
            for table in reversed(schema.metadata.sorted_tables):
                await connection.execute(sa.delete(table))
                if table.autoincrement_column is not None:
                    await connection.execute(sa.text(_restart(url, table, table.autoincrement_column)))
            await connection.execute(sa.insert(schema.state).values(self._state))


def _restart(url: URL, table: sa.Table, column: sa.Column[Any]) -> str:
    if url.get_backend_name() == "postgresql":
        return f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'), 1, false)"
    return f"ALTER TABLE {table.name} AUTO_INCREMENT = 1"


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@asynccontextmanager
async def _connected(url: URL) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


databases: Final = Databases(os.environ.get(VARIABLE))


def main(arguments: Sequence[str]) -> int:
    """Runs the tests on the named server, or on both at once; how many of the runs failed."""
    names = [arguments[0]] if arguments and arguments[0] in SERVERS else list(SERVERS)
    more = arguments[1:] if arguments and arguments[0] in SERVERS else arguments
    tests = [] if any(word.startswith("tests/") for word in more) else TESTS
    failed = 0
    servers = {name: SERVERS[name]() for name in names}
    try:
        for server in servers.values():
            server.start()
        with ThreadPoolExecutor() as both:
            runs = {name: both.submit(_run, server.url, [*tests, *more]) for name, server in servers.items()}
            for name, run in runs.items():
                told = run.result()
                print(f"The registry's tests, on {name}:\n{told.stdout}", flush=True)
                failed += told.returncode != 0
    finally:
        for server in servers.values():
            server.remove()
    return failed


def _run(url: str, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env={**os.environ, VARIABLE: url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    # As by exit: servers end, and folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(sys.argv[1:]))
