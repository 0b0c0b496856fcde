"""Where the process listens: a TCP port and, beside it, a unix socket. No request is understood here.

A socket file that a dead process left behind is replaced; one that somebody answers on is not, and neither is any other
file. Raises CannotListen, whose text says what to change.
"""

import errno
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from aiohttp import web


class CannotListen(Exception):
    """Raised when the port or the socket cannot be had."""


class Listening(NamedTuple):
    """Where requests are taken; the port is the real one where 0 was asked for."""

    host: str
    port: int
    socket: str | None


@asynccontextmanager
async def listening(
    runner: web.AppRunner, host: str, port: int, path: str = "", *, section: str
) -> AsyncIterator[Listening]:
    """Listens while the body runs; then finishes what is under way, and removes its socket file.

    `section` is that of the settings which a refusal names.
    """
    await runner.setup()
    inode: int | None = None
    try:
        real_port = await _listen_tcp(runner, host, port, section)
        if path:
            inode = await _listen_unix(runner, Path(path))
        yield Listening(host, real_port, path or None)
    finally:
        await runner.cleanup()
        if inode is not None:
            _remove(Path(path), inode)


async def _listen_tcp(runner: web.AppRunner, host: str, port: int, section: str) -> int:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"{host}:{port} is in use: stop the process that listens there, or set {section}.port to another one"
            ) from error
        raise CannotListen(
            f"cannot listen on {host}:{port} ({section}.host, {section}.port): {error.strerror}"
        ) from error
    return int(runner.addresses[0][1])


async def _listen_unix(runner: web.AppRunner, path: Path) -> int:
    _make_way(path)
    try:
        await web.UnixSite(runner, str(path)).start()
        return _inode(path)
    except OSError as error:
        raise CannotListen(f"cannot listen on {path} (sidecar.socket): {error.strerror or error}") from error


def _make_way(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{path} (sidecar.socket) exists and is no socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1)
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError as error:
            raise CannotListen(f"{path} (sidecar.socket) is in the way: {error.strerror or error}") from error
    raise CannotListen(
        f"{path} (sidecar.socket) is in use: stop the process that listens there, or choose another path"
    )


def _remove(path: Path, inode: int) -> None:
    # Only its own: another process may have taken the path over by now.
    with suppress(OSError):
        if _inode(path) == inode:
            path.unlink()


def _inode(path: Path) -> int:
    return path.stat().st_ino
