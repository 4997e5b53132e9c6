"""The process behaves as wireguard-go does (protocol 2.5, 2.6). Where both are asked the same, both are asked."""

import os
import signal
import socket
import stat
from collections.abc import Iterator

import pytest

from controller.demo.topology import Node
from noise.crypto import clamp
from tests.e2e.lab import (
    FAMILIES,
    PORT,
    WGPY,
    DataPlane,
    Tunnel,
    command_of,
    has_interface,
    inside,
    ping,
    processes_in,
    wait_for,
)
from tests.e2e.wire import INITIATION, TRANSPORT, messages
from tun.linux import IFF_NO_PI, IFF_TUN, IFF_VNET_HDR
from wgpy.client import Client
from wgpy.config import NO_KEY, Endpoint, SetDevice, SetPeer

NAME = "wg1"

LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
"""Public keys with which every exchange gives zeros (netns.sh, stage 29)."""


@pytest.fixture(params=["wgpy", "wireguard-go"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "wireguard-go":
        request.getfixturevalue("wireguard_go_path")
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    """Whatever a test did, its processes have ended, and took interface and socket file with them."""
    yield
    for process in processes_in(node):
        os.kill(process, signal.SIGTERM)
    wait_for(lambda: not processes_in(node), "all processes have ended")
    # A process that ends leaves its namespace first and closes its descriptors then.
    wait_for(lambda: not has_interface(node, NAME), "its interface is gone")
    assert list(node.wireguard_directory.iterdir()) == []


def client(node: Node) -> Client:
    return Client(NAME, directory=node.wireguard_directory)


def transmitted(node: Node) -> int:
    (peer,) = client(node).get().peers
    return peer.tx_bytes


# Beginning -----------------------------------------------------------------------------------------------------------


def test_it_goes_into_the_background_once_interface_and_socket_can_be_used(node: Node, kind: str) -> None:
    done = node.run([*command_of(kind), NAME])

    assert done.returncode == 0
    assert client(node).get().peers == ()
    assert has_interface(node, NAME)
    (process,) = processes_in(node)
    if kind == "wgpy":  # the terminal's Ctrl-C is not for it
        assert os.getsid(process) != os.getsid(0)
    assert all(os.readlink(f"/proc/{process}/fd/{fd}") == "/dev/null" for fd in (0, 1, 2))


@pytest.mark.parametrize("how", ["option", "environment"])
def test_it_stays_in_the_foreground_when_told_to(node: Node, kind: str, how: str) -> None:
    options, env = (["-f"], {}) if how == "option" else ([], {"WG_PROCESS_FOREGROUND": "1"})
    plane = DataPlane(node, NAME, [*command_of(kind), *options, NAME], env)

    plane.wait_until_ready()

    assert list(processes_in(node)) == [plane.process.pid]
    assert plane.stop() == 0


def test_the_socket_is_its_owners_alone(node: Node, kind: str) -> None:
    plane = DataPlane.start(kind, node, NAME)
    plane.wait_until_ready()

    assert stat.S_IMODE((node.wireguard_directory / f"{NAME}.sock").stat().st_mode) == 0o700

    plane.stop()


def test_a_socket_file_that_nobody_serves_is_replaced(node: Node, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(node.wireguard_directory / f"{NAME}.sock"))

    plane = DataPlane.start(kind, node, NAME)
    plane.wait_until_ready()

    assert plane.stop() == 0


def test_a_second_one_for_the_same_interface_fails_and_leaves_the_first_alone(node: Node, kind: str) -> None:
    plane = DataPlane.start(kind, node, NAME)
    plane.wait_until_ready()

    done = node.run([*command_of(kind), NAME], check=False)

    assert done.returncode == 1
    assert client(node).get().peers == ()
    assert list(processes_in(node)) == [plane.process.pid]
    plane.stop()


@pytest.mark.parametrize(("level", "says"), [("verbose", True), ("debug", True), ("error", False), ("silent", False)])
def test_the_log_is_as_loud_as_the_environment_says(node: Node, level: str, says: bool) -> None:
    plane = DataPlane(node, NAME, [*WGPY, "-f", NAME], {"LOG_LEVEL": level}, keep_log=False)
    plane.wait_until_ready()
    node.configure(links=[f"link set {NAME} up"])
    wait_for(lambda: client(node).get().listen_port, "the interface is up")

    plane.stop()

    assert bool(plane.log.read_text()) == says


def test_interface_and_socket_can_be_handed_over(node: Node, kind: str) -> None:
    """WG_TUN_FD and WG_UAPI_FD: what opened them has the privileges, and the process needs none."""
    import pytun

    tun = inside(node, lambda: pytun.TunTapDevice(name=NAME, flags=IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    path = node.wireguard_directory / f"{NAME}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        log = node.directory / "handed-over.log"
        with log.open("wb") as output:
            process = _start_with(node, kind, output.fileno(), tun.fileno(), listener.fileno())
    tun.close()
    try:
        wait_for(lambda: client(node).get() is not None, "it answers")
        node.configure(links=[f"link set {NAME} up"])
        client(node).set([SetDevice(private_key=clamp(os.urandom(32)), listen_port=PORT)])
        assert client(node).get().listen_port == PORT
    finally:
        os.kill(process, signal.SIGTERM)
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()


def _start_with(node: Node, kind: str, output: int, tun: int, uapi: int) -> int:
    """Start a data plane in the foreground with two descriptors, at the numbers that wireguard-go hands to itself."""
    argv = node.command([*command_of(kind), "-f", NAME])
    env = {**os.environ, "WG_TUN_FD": "3", "WG_UAPI_FD": "4", "LOG_LEVEL": "error"}
    high = [os.dup2(fd, 100 + i) for i, fd in enumerate((output, tun, uapi))]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in zip(high, (2, 3, 4), strict=True)]
        return os.posix_spawnp(argv[0], argv, env, file_actions=actions)
    finally:
        for fd in high:
            os.close(fd)


# Ending --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "interface deleted", "socket file deleted"])
def test_it_ends_with_status_0_and_leaves_nothing(node: Node, kind: str, how: str) -> None:
    plane = DataPlane.start(kind, node, NAME)
    plane.wait_until_ready()
    node.configure(links=[f"link set {NAME} up"])

    if how == "interface deleted":
        node.configure(links=[f"link del {NAME}"])
    elif how == "socket file deleted":
        (node.wireguard_directory / f"{NAME}.sock").unlink()
    else:
        plane.process.send_signal(signal.Signals[how])

    assert wait_for(lambda: plane.process.poll() is not None, "it ends")
    assert plane.process.returncode == 0
    assert not has_interface(node, NAME)
    assert not (node.wireguard_directory / f"{NAME}.sock").exists()
    plane.stop()


# Link state ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plane(node: Node) -> Iterator[DataPlane]:
    """wgpy with a key and a peer who wants keepalives, down."""
    started = DataPlane.start("wgpy", node, NAME)
    started.wait_until_ready()
    started.client.set([SetDevice(private_key=clamp(os.urandom(32))), keepalive_peer(os.urandom(32))])
    yield started
    assert started.stop() == 0


def keepalive_peer(public_key: bytes, host: str = "10.77.0.99") -> SetPeer:
    return SetPeer(public_key, endpoint=Endpoint(host, 1111), persistent_keepalive=1)


def test_a_persistent_keepalive_goes_out_at_once_when_the_link_comes_up(node: Node, plane: DataPlane) -> None:
    """Stage 23 of netns.sh: nothing before, and something by the time anybody can look."""
    assert transmitted(node) == 0

    node.configure(links=[f"link set {NAME} up"])

    assert transmitted(node) == 148


def test_a_key_that_is_set_later_sends_at_once(node: Node, plane: DataPlane) -> None:
    """Stage 24: up without a key sends nothing."""
    plane.client.set([SetDevice(private_key=NO_KEY)])
    node.configure(links=[f"link set {NAME} up"])
    assert transmitted(node) == 0

    plane.client.set([SetDevice(private_key=clamp(os.urandom(32)))])

    assert transmitted(node) == 148


def test_a_link_that_is_down_holds_no_port_and_sends_nothing(node: Node, plane: DataPlane) -> None:
    plane.client.set([SetDevice(listen_port=PORT)])
    node.configure(links=[f"link set {NAME} up"])
    assert transmitted(node) == 148
    assert not port_is_free(node)

    node.configure(links=[f"link set {NAME} down"])
    wait_for(lambda: port_is_free(node), "the port is free")
    before = transmitted(node)
    node.configure(links=[f"link set {NAME} up"])

    assert transmitted(node) == before + 148
    assert not port_is_free(node)


def port_is_free(node: Node) -> bool:
    def try_it() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            try:
                one.bind(("", PORT))
            except OSError:
                return False
            return True

    return inside(node, try_it)


def test_peers_with_a_low_order_key_are_kept_but_never_sent_to(node: Node, plane: DataPlane) -> None:
    """Stage 29. The one peer with a good key shows that keepalives are due."""
    plane.client.set([keepalive_peer(key, "127.0.0.1") for key in LOW_ORDER])
    with inside(node, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as witness:
        witness.bind(("127.0.0.1", 1111))
        node.configure(links=["link set lo up", f"link set {NAME} up"])

        witness.settimeout(2)
        with pytest.raises(TimeoutError):
            witness.recv(1)
    sent = {peer.config.public_key: peer.tx_bytes for peer in client(node).get().peers}
    assert [sent.pop(key) for key in LOW_ORDER] == [0] * len(LOW_ORDER)
    assert list(sent.values()) == [148]


# Another namespace ---------------------------------------------------------------------------------------------------


def test_an_interface_in_another_namespace_keeps_its_sockets_at_home(machine: None) -> None:
    """What container set-ups do: encrypted outside in the node, in clear only inside the pod that was given the interface."""
    with Tunnel.lay(("wgpy", "wgpy")) as tunnel:
        first, second = tunnel.ends
        first.node.run(["ip", "link", "set", "wg0", "netns", first.pod.name])
        assert not has_interface(first.node, "wg0")
        first.pod.configure(links=["link set wg0 mtu 1300 up", *(f"route add {prefix} dev wg0" for prefix in second.blocks)])

        with tunnel.capture() as capture:
            for version in FAMILIES:
                source = ["-I", str(first.pod.address(version))]
                assert ping(first.pod, second.pod.address(version), *source) == 3
            # the MTU is that of the interface where it is now: 1299 bytes are not padded to 1312
            assert ping(first.pod, second.pod.address(4), "-I", str(first.pod.address(4)), "-s", "1271", count=1) == 1
            assert ping(second.pod, first.pod.address(4)) == 3
        sent = list(messages(capture.frames, INITIATION, TRANSPORT, source=first.node.address(4)))
        assert {one.message for one in sent} == {INITIATION, TRANSPORT}
        assert 1299 in {one.padded_length for one in sent}

        first.pod.configure(
            links=["link set wg0 down", "link set wg0 up", *(f"route add {prefix} dev wg0" for prefix in second.blocks)]
        )
        assert ping(first.pod, second.pod.address(4), "-I", str(first.pod.address(4))) == 3

        first.pod.configure(links=["link del wg0"])
        assert first.plane.process.wait(10) == 0
