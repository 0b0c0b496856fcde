"""Where several processes listen: sockets that share one port, and refuse to share it with anybody else."""

import select
import socket
from pathlib import Path

import pytest

from sidecar.sockets import CannotListen, bound

HOST = "127.0.0.1"
DEADLINE_S = 10.0


def taken_by(port: int, sockets: tuple[tuple[socket.socket, ...], ...]) -> int:
    """Connects once, and returns the slot that the connection waits in."""
    listening = [one for (one,) in sockets]
    with socket.create_connection((HOST, port)):
        (got,), _, _ = select.select(listening, [], [], DEADLINE_S)
        got.accept()[0].close()
    return listening.index(got)


def refused(port: int, path: str, told: str, host: str = HOST) -> None:
    """Fails unless it is refused to listen here, in these words."""
    with pytest.raises(CannotListen, match=told), bound(host, port, path, 2, section="sidecar"):
        pass


def test_every_slot_gets_connections_of_one_port() -> None:
    with bound(HOST, 0, "", 2, section="sidecar") as sockets:
        host, port, path = sockets.listening
        assert (host, path, sockets.unix) == (HOST, None, None)
        got: set[int] = set()
        while got != {0, 1}:
            got.add(taken_by(port, sockets.slots))


def test_a_port_that_other_workers_share_is_not_shared_with_them() -> None:
    with bound(HOST, 0, "", 2, section="sidecar") as sockets:
        port = sockets.listening.port
        refused(port, "", rf"{HOST}:{port} is in use.*sidecar\.port")
    with bound(HOST, port, "", 2, section="sidecar") as sockets:
        assert sockets.listening.port == port


def test_an_address_of_another_machine_is_refused() -> None:
    refused(0, "", r"cannot listen on 192\.0\.2\.1:0", host="192.0.2.1")


def test_the_socket_file_is_there_while_it_is_bound_and_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with bound(HOST, 0, str(path), 2, section="sidecar") as sockets:
        assert sockets.unix is not None
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
        refused(0, str(path), "is in use")
        assert path.exists()
    assert not path.exists()
    path.write_text("something of value")
    refused(0, str(path), "is no socket")
    assert path.read_text() == "something of value"
