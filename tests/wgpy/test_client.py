"""The client: what it asks for, and its one line for everything that can go wrong."""

import errno
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.interface import Interface
from wgpy.client import Client, ClientError, NoSuchInterface, _receive_reply, clear_abandoned, interfaces
from wgpy.config import Change, DeviceSnapshot, Endpoint, PeerConfig, PeerSnapshot, SetDevice, SetPeer
from wgpy.uapi import format_get

KEY = bytes(range(32))


@pytest.fixture
def interface(tmp_path: Path) -> Iterator[Interface]:
    with Interface("wg0", tmp_path) as interface:
        yield interface


def refusal(client: Client) -> ClientError:
    with pytest.raises(ClientError) as error:
        client.get()
    assert "\n" not in str(error.value)
    return error.value


def test_a_device_is_fetched(interface: Interface, tmp_path: Path) -> None:
    interface.snapshot = DeviceSnapshot(KEY, 51820, peers=(PeerSnapshot(PeerConfig(KEY)),))

    assert Client("wg0", tmp_path).get() == interface.snapshot


def test_changes_arrive_as_they_were_made(interface: Interface, tmp_path: Path) -> None:
    changes: list[Change] = [SetDevice(fwmark=5), SetPeer(KEY, allowed_ips=(ip_network("10.0.0.0/8"),))]

    Client("wg0", tmp_path).set(changes)

    assert interface.changes == changes


def test_a_large_device_is_fetched_whole(interface: Interface, tmp_path: Path) -> None:
    prefixes = tuple(ip_network(((10 << 24) + number, 32)) for number in range(20_000))
    interface.snapshot = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY, allowed_ips=prefixes)),))

    assert Client("wg0", tmp_path).get() == interface.snapshot


class Cut(socket.socket):
    """Receives piece after piece, and then nothing."""

    pieces: list[bytes]

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self.pieces.pop(0)  # IndexError: asked for more than there is


@pytest.mark.parametrize("pieces", [[b"errno=0\n\n"], [b"errno=0\n", b"\n"], [b"errno", b"=0", b"\n", b"\n"]])
def test_a_reply_ends_with_its_blank_line_however_it_is_cut(pieces: list[bytes]) -> None:
    with Cut(socket.AF_UNIX) as connection:
        connection.pieces = pieces

        assert _receive_reply(connection) == "errno=0\n\n"


def test_a_zone_is_known_by_name_here(interface: Interface, tmp_path: Path) -> None:
    index = socket.if_nametoindex("lo")
    endpoint = Endpoint("fe80::1", 5, index)
    interface.snapshot = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY, endpoint=Endpoint("fe80::1%lo", 5))),))

    assert Client("wg0", tmp_path).get().peers[0].config.endpoint == endpoint


def test_a_zone_of_another_namespace_is_no_error(interface: Interface, tmp_path: Path) -> None:
    interface.snapshot = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY, endpoint=Endpoint("fe80::1%nosuch0", 5))),))

    assert Client("wg0", tmp_path).get().peers[0].config.endpoint == Endpoint("fe80::1", 5)


def test_a_refusal_carries_the_errno_and_says_it_in_words(interface: Interface, tmp_path: Path) -> None:
    interface.errno = errno.EADDRINUSE

    with pytest.raises(ClientError, match="'wg0' refused to be changed: Address already in use") as error:
        Client("wg0", tmp_path).set([SetDevice(listen_port=5)])

    assert error.value.errno == errno.EADDRINUSE
    assert refusal(Client("wg0", tmp_path)).errno == errno.EADDRINUSE


def test_an_interface_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NoSuchInterface, match=r"no interface 'wg0' here.*start one with: wgpy wg0"):
        Client("wg0", tmp_path).get()


def test_a_socket_left_behind_is_a_missing_interface(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "wg0.sock"))

    with pytest.raises(NoSuchInterface):
        Client("wg0", tmp_path).get()


def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "wg0.sock"))
        listener.listen()

        started = time.monotonic()
        error = refusal(Client("wg0", tmp_path, timeout=0.05))

    assert error.errno == errno.ETIMEDOUT
    assert "within 0.05 s" in str(error)
    assert time.monotonic() - started < 5


def test_one_that_hangs_up_is_a_protocol_error(tmp_path: Path) -> None:
    program = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen(); print(flush=True)\n"
        "connection, _ = listener.accept(); connection.recv(100); connection.close()\n"
    )
    path = tmp_path / "wg0.sock"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()

        error = refusal(Client("wg0", tmp_path))

    assert error.errno == errno.EPROTO
    assert "hung up without an answer" in str(error)


def test_one_that_hangs_up_in_the_middle_of_a_request_may_have_said_why(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "wg0.sock"))
        listener.listen()

        def refuse() -> None:
            with listener.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(f"errno=-{errno.EMSGSIZE}\n\n".encode())

        refusing = pool.submit(refuse)
        prefixes = tuple(ip_network((number << 8, 24)) for number in range(100_000))
        with pytest.raises(ClientError, match="'wg0' refused to be changed: Message too long"):
            Client("wg0", tmp_path).set([SetPeer(KEY, allowed_ips=prefixes)])
        refusing.result()


def crowd(listener: socket.socket, stack: ExitStack) -> None:
    """So many clients that there is no room for one more to wait."""
    listener.listen(0)
    with suppress(BlockingIOError):
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(listener.getsockname())


def test_where_many_wait_already_it_waits_its_turn(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "wg0.sock"))
        crowd(listener, stack)
        asking = pool.submit(Client("wg0", tmp_path).get)
        wait([asking], 0.1)
        assert not asking.done()

        stack.close()  # the crowd gives up
        while True:
            with listener.accept()[0] as connection:
                if connection.recv(100):
                    connection.sendall(format_get(DeviceSnapshot(KEY)).encode())
                    break
                assert not asking.done()
        assert asking.result() == DeviceSnapshot(KEY)


def test_where_many_wait_for_ever_it_gives_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(tmp_path / "wg0.sock"))
        crowd(listener, stack)

        assert refusal(Client("wg0", tmp_path, timeout=0.05)).errno == errno.ETIMEDOUT
        assert interfaces(tmp_path) == ["wg0"], "it is there nevertheless"
        assert clear_abandoned(tmp_path) == []


def test_what_dead_processes_left_is_cleared_and_nothing_else(interface: Interface, tmp_path: Path) -> None:
    for name in ("dead", "gone"):
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(tmp_path / f"{name}.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as of_another_kind:
        of_another_kind.bind(str(tmp_path / "other.sock"))
        (tmp_path / "directory.sock").mkdir()

        assert clear_abandoned(tmp_path) == ["dead", "gone"]

    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory.sock", "other.sock", "wg0.sock"]
    assert clear_abandoned(tmp_path / "nowhere") == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_without_permission_it_says_to_be_root(interface: Interface, tmp_path: Path) -> None:
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        error = refusal(Client("wg0", tmp_path))
    finally:
        os.seteuid(0)

    assert error.errno == errno.EACCES
    assert "run as root" in str(error)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "\u00e4" * 8])
def test_what_cannot_be_the_name_of_an_interface_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="not the name of an interface"):
        Client(name, tmp_path)


def test_interfaces_are_those_somebody_answers_for(interface: Interface, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "dead.sock"))
    (tmp_path / "notes.txt").touch()
    with Interface("a", tmp_path):
        assert interfaces(tmp_path) == ["a", "wg0"]

    assert interfaces(tmp_path / "nowhere") == []
