"""Where a process listens: a TCP port and, beside it, a unix socket. No request is understood here.

A socket file that a dead process left behind is replaced; one that somebody answers on is not, and neither is any other
file. Raises CannotListen, whose text says what to change.

Several processes share a port by `bound`: each slot has TCP sockets of its own with SO_REUSEPORT, over which the kernel
spreads connections (on Linux; elsewhere one slot may get them all), and the unix socket is one for all, which whoever
is free takes connections from. Whoever holds these sockets open keeps what waits in their queues.
"""

import asyncio
import errno
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    # For its type alone: whoever only binds has no use for an HTTP server.
    from aiohttp import web

# How many connections wait in each shared socket while a process ends and another begins.
SHARED_BACKLOG: Final = 1024
BACKLOG: Final = 128


class CannotListen(Exception):
    """Raised when the port or the socket cannot be had."""


class Listening(NamedTuple):
    """Where requests are taken; the port is the real one where 0 was asked for."""

    host: str
    port: int
    socket: str | None


class Bound(NamedTuple):
    """Sockets that listen, and that nobody takes connections from yet: those of each slot, and the one for all."""

    listening: Listening
    slots: tuple[tuple[socket.socket, ...], ...]
    unix: socket.socket | None


@asynccontextmanager
async def listening(
    runner: "web.AppRunner", host: str, port: int, path: str = "", *, section: str
) -> AsyncIterator[Listening]:
    """Listens while the body runs; then finishes what is under way, and removes its socket file.

    `section` is that of the settings which a refusal names.
    """
    await runner.setup()
    inode: int | None = None
    servers = []
    try:
        servers.append(await _listen_tcp(runner, host, port, section))
        real_port = int(servers[0].sockets[0].getsockname()[1])
        if path:
            servers.append(await _listen_unix(runner, Path(path)))
            inode = _inode(Path(path))
        yield Listening(host, real_port, path or None)
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
        if inode is not None:
            _remove(Path(path), inode)


@contextmanager
def bound(host: str, port: int, path: str, slots: int, *, section: str) -> Iterator[Bound]:
    """Sockets for so many processes, open while the body runs; the socket file is removed with them."""
    with ExitStack() as stack:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            families = dict.fromkeys((family, address) for family, _, _, _, address in addresses)
            tcp = []
            for slot in range(slots):
                own = []
                for family, address in families:
                    if slot == 0 and port != 0:
                        # With SO_REUSEPORT it would be no error to take half of another process's connections.
                        _bind(family, address, port, shared=False).close()
                    own.append(stack.enter_context(_bind(family, address, port, shared=True)))
                    port = own[0].getsockname()[1]
                tcp.append(tuple(own))
        except OSError as error:
            raise _refusal(host, port, section, error) from error
        # Once all of them are had: from here on connections come in.
        for one in (one for own in tcp for one in own):
            one.listen(SHARED_BACKLOG)
        unix = None
        if path:
            unix = stack.enter_context(_bind_unix(Path(path)))
            stack.callback(_remove, Path(path), _inode(Path(path)))
        yield Bound(Listening(host, port, path or None), tuple(tcp), unix)


async def _listen_tcp(runner: "web.AppRunner", host: str, port: int, section: str) -> asyncio.Server:
    assert runner.server is not None
    try:
        return await asyncio.get_running_loop().create_server(runner.server, host, port, backlog=BACKLOG)
    except OSError as error:
        raise _refusal(host, port, section, error) from error


async def _listen_unix(runner: "web.AppRunner", path: Path) -> asyncio.Server:
    assert runner.server is not None
    _make_way(path)
    try:
        return await asyncio.get_running_loop().create_unix_server(runner.server, str(path), backlog=BACKLOG)
    except OSError as error:
        raise _refusal_of_path(path, error) from error


def _bind(family: int, address: tuple[object, ...], port: int, *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address[0], port, *address[2:]))
    except BaseException:
        one.close()
        raise
    return one


def _bind_unix(path: Path) -> socket.socket:
    _make_way(path)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.bind(str(path))
        one.listen(SHARED_BACKLOG)
    except OSError as error:
        one.close()
        raise _refusal_of_path(path, error) from error
    return one


def _refusal(host: str, port: int, section: str, error: OSError) -> CannotListen:
    if error.errno == errno.EADDRINUSE:
        return CannotListen(
            f"{host}:{port} is in use: stop the process that listens there, or set {section}.port to another one"
        )
    return CannotListen(f"cannot listen on {host}:{port} ({section}.host, {section}.port): {error.strerror}")


def _refusal_of_path(path: Path, error: OSError) -> CannotListen:
    return CannotListen(f"cannot listen on {path} (sidecar.socket): {error.strerror or error}")


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
