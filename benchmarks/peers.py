"""What a user would pick instead, each started by the suite with a configuration that the suite makes.

nginx    one worker; sends as many header bytes as the sidecar does, and the same body: from its configuration, or as a
         file in memory.
Redis    nothing persisted; a set for each catalog.
aiohttp  `bare.py`.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from benchmarks.exchange import Answer, ask
from benchmarks.load import Target
from benchmarks.processes import HOST, SERVER_CORE, Process, Spoiled, answers, children_of, free_port, program

MEMORY: Final = Path("/dev/shm")
# What nginx writes by itself, and therefore is not told to.
OWN_HEADERS: Final = frozenset({"content-type", "content-length", "date", "server", "connection"})
AIOHTTPS_OWN: Final = frozenset({"content-length", "date", "server"})
_NGINX_HEAD: Final = (
    "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\nConnection: keep-alive\r\n"
)
_NGINX: Final = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # A token and what else a caller sends.
    large_client_header_buffers 4 64k;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=1000;
    open_file_cache_valid 1h;
    server {{
        listen {host}:{port} backlog=1024;
        default_type application/json;
        location /api/ {{
{headers}
            return 200 '{body}';
        }}
        location /files/ {{ root {files}; }}
    }}
}}
"""


class Nginx(Process):
    """Answers everything below /api/ like `answer`, byte for byte as long, and serves what `add_file` was given."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="nginx-", dir=folder))
        self._files = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=MEMORY if MEMORY.is_dir() else folder))
        (self._files / "files").mkdir()
        self._files.chmod(0o755)
        self._configure(_as_long(answer), answer.body)
        command = [program("nginx"), "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        super().__init__(command, core=SERVER_CORE, log=self._folder / "log")
        self.wait_until(lambda: answers(self.port), "nginx listens")
        length = len(ask(self.port, b"GET /api/ HTTP/1.1\r\nHost: peer\r\n\r\n").raw)
        if length != len(answer.raw):
            self.stop()
            raise Spoiled(f"nginx answers with {length} bytes where the sidecar has {len(answer.raw)}")

    def add_file(self, name: str, body: bytes) -> str:
        """Puts a file into memory, and returns the target that it is served under."""
        (self._files / "files" / name).write_bytes(body)
        return f"/files/{name}"

    def target(self, requests: Path) -> Target:
        """nginx as something that is asked these requests."""
        return Target(self.port, children_of(self.pid), requests)

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._files, ignore_errors=True)

    def _configure(self, headers: Mapping[str, str], body: bytes) -> None:
        lines = "\n".join(f"            add_header {name} '{value}';" for name, value in headers.items())
        (self._folder / "nginx.conf").write_text(
            _NGINX.format(
                folder=self._folder,
                files=self._files,
                host=HOST,
                port=self.port,
                headers=lines,
                body=body.decode(),
                # A worker of another user could not read what is in a temporary folder.
                user="user root;" if os.geteuid() == 0 else "",
            )
        )


class Redis(Process):
    """A server on a port and a socket, with what the catalogs contain as sets."""

    def __init__(self, folder: Path, *, core: int | None = SERVER_CORE) -> None:
        self.port = free_port()
        self.socket = Path(tempfile.mkdtemp(prefix="redis-", dir=folder)) / "s"
        command = [program("redis-server"), "--port", str(self.port), "--bind", HOST, "--unixsocket", str(self.socket)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.socket.parent)]
        super().__init__(command, core=core, log=self.socket.parent / "log")
        self.wait_until(lambda: answers(self.port), "redis-server listens")
        # Any: half of what redis-py returns is typed as something else.
        self.client: Any = redis.Redis(unix_socket_path=str(self.socket), protocol=2)

    def add(self, sets: Mapping[str, Sequence[str]]) -> None:
        """Adds members to sets."""
        pipeline = self.client.pipeline(transaction=False)
        for name, members in sets.items():
            if members:
                pipeline.sadd(name, *members)
        pipeline.execute()


class Bare(Process):
    """aiohttp with the answer, and nothing behind it."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self.port = free_port()
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in AIOHTTPS_OWN}
        file = folder / "bare.json"
        file.write_text(json.dumps(headers))
        command = [sys.executable, "-m", "benchmarks.bare", str(self.port), str(file), answer.body.decode()]
        super().__init__(command, core=SERVER_CORE)
        self.wait_until(lambda: answers(self.port), "aiohttp listens")

    def target(self, requests: Path) -> Target:
        """It as something that is asked these requests."""
        return Target(self.port, [self.pid], requests)


def _as_long(answer: Answer) -> dict[str, str]:
    """The headers of an answer that nginx is told to send, the longest value made as much longer or shorter as its own
    headers are shorter or longer.
    """
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in OWN_HEADERS}
    told = sum(len(f"{name}: {value}\r\n") for name, value in headers.items())
    by = len(answer.raw) - len(_NGINX_HEAD.format(length=len(answer.body))) - told - len("\r\n") - len(answer.body)
    name = max(headers, key=lambda n: len(headers[n]))
    value = headers[name]
    return {**headers, name: value + "x" * by if by >= 0 else value[:by]}
