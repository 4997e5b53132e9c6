"""Errors about packets that nobody takes: to whom, from where, how many. How they look to a sender is in tests/e2e."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from tests.tun.conftest import without_capability
from tests.wgpy.core.test_icmp import ECHO4, ipv4, ipv6
from tun import Tun, open_tun
from tun.link import LinkMonitor
from wgpy.core.icmp import unreachable
from wgpy.daemon.netlink import NETLINK_ROUTE, open_netlink, route_to
from wgpy.daemon.unreachable import BURST, COST_ELSEWHERE, PER_SECOND, Unreachables

pytestmark = pytest.mark.e2e

CAP_NET_RAW = 13
RTN_LOCAL = 2


def ip(commands: str, pid: int | None = None) -> None:
    inside = [] if pid is None else ["nsenter", "-n", "-t", str(pid)]
    subprocess.run([*inside, "ip", "-batch", "-"], input=commands, text=True, check=True)


LAID = "addr add 10.0.0.1/24 dev wgpy-a\naddr add fd00::1/64 dev wgpy-a nodad\nlink set wgpy-a up\n"


@dataclass
class Interface:
    tun: Tun
    monitor: LinkMonitor
    unreachables: Unreachables

    def follow(self) -> None:
        state = self.monitor.state()
        self.unreachables.follow(self.tun.fileno(), state, is_elsewhere=self.monitor.is_elsewhere)

    def refuse(self, packet: bytes, now: float = 1000.0) -> int:
        """How many errors were sent about ``packet``."""
        before = self.unreachables.sent
        self.unreachables.refused(memoryview(packet), now)
        return self.unreachables.sent - before


@pytest.fixture
def interface(namespace: None) -> Iterator[Interface]:
    """In a namespace of its own, up, as 10.0.0.1/24 and fd00::1/64."""
    tun = open_tun("wgpy-a", mtu=1420)
    ip(LAID)
    await_ipv6()
    interface = Interface(tun, LinkMonitor(tun.fileno()), Unreachables())
    interface.follow()
    yield interface
    interface.unreachables.close()
    interface.monitor.close()
    tun.close()


def await_ipv6() -> None:
    """The kernel takes a moment to have an address."""
    deadline = time.monotonic() + 10
    with open_netlink(NETLINK_ROUTE) as sock:
        while route_to(sock, ip_address("fd00::1").packed).kind != RTN_LOCAL:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def listener(protocol: int) -> socket.socket:
    """A socket that hears all ICMP of the namespace."""
    sock = socket.socket(socket.AF_INET if protocol == 1 else socket.AF_INET6, socket.SOCK_RAW, protocol)
    sock.settimeout(5)
    return sock


def test_the_sender_is_told(interface: Interface) -> None:
    assert interface.unreachables.is_possible
    with listener(1) as ear, listener(58) as ear6:
        assert interface.refuse(ipv4()) == interface.refuse(ipv6()) == 1

        packet, address = ear.recvfrom(2000)
        assert (packet[20:], address[0]) == (unreachable(ipv4()), "10.0.0.1")
        assert packet[1] == 0xC0
        error, address = ear6.recvfrom(2000)
        assert (error[:2] + error[4:], address[0]) == (unreachable(ipv6())[:2] + unreachable(ipv6())[4:], "fd00::1")
        assert error[2:4] != bytes(2), "the kernel has filled in the checksum"


def test_a_link_local_sender_is_told_at_the_interface(interface: Interface) -> None:
    ip("addr add fe80::9/64 dev wgpy-a nodad\n")

    assert interface.refuse(ipv6(source="fe80::9")) == 1


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(unreachable(ipv4()), protocol=1), id="an-error"),
        pytest.param(ipv4(destination="10.0.0.255"), id="to-the-network's-broadcast-address"),
        pytest.param(ipv4(source="10.0.0.255"), id="from-there"),
        pytest.param(ipv4(source="192.0.2.1"), id="from-where-no-way-leads-back"),
        pytest.param(b"\x45", id="malformed"),
    ],
)
def test_nobody_is_told(interface: Interface, packet: bytes) -> None:
    assert interface.refuse(packet) == 0
    assert interface.refuse(ipv4()) == 1


def test_a_socket_that_only_sends_hears_nothing(interface: Interface) -> None:
    """Its queue would fill with copies of all ICMP of the machine."""
    sockets = interface.unreachables._sockets
    assert sockets is not None
    with listener(1) as ear:
        interface.refuse(ipv4(ECHO4, protocol=1))
        ear.recvfrom(2000)

    for raw in sockets.raw.values():
        with pytest.raises(BlockingIOError):
            raw.recv(1)


def test_one_sender_is_told_five_times_at_once_and_twenty_times_a_second(interface: Interface) -> None:
    assert sum(interface.refuse(ipv4()) for _ in range(50)) == 5
    assert sum(interface.refuse(ipv4(), 1000 + tick / 100) for tick in range(1, 101)) == 20


def test_all_senders_together_are_told_a_bounded_number_of_times(interface: Interface) -> None:
    ip("".join(f"addr add 10.0.1.{number}/32 dev wgpy-a\n" for number in range(1, 101)))
    packets = [ipv4(source=f"10.0.1.{number}") for number in range(1, 101)]

    assert sum(interface.refuse(packet) for packet in packets) == BURST
    told = sum(interface.refuse(packet, 1000 + tick / 100) for tick in range(1, 51) for packet in packets)
    assert told == pytest.approx(PER_SECOND / 2, abs=2)


def test_after_a_move_who_is_there_is_told_and_nothing_of_ours_stays(interface: Interface) -> None:
    process = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        ip(f"link set wgpy-a netns {process.pid}\n")
        ip(f"link set lo up\n{LAID}", process.pid)
        interface.follow()
        assert interface.unreachables.is_possible
        assert len(os.listdir("/proc/self/fd")) < descriptors

        told = sum(interface.refuse(ipv4()) for _ in range(50))

        assert told == BURST // COST_ELSEWHERE
        said = subprocess.run(
            ["nsenter", "-n", "-t", str(process.pid), "cat", "/proc/net/snmp"], check=True, capture_output=True, text=True
        ).stdout
        assert "OutType3" in said, "it was sent there"
        ip(f"link set wgpy-a netns {os.getpid()}\n", process.pid)
        ip(LAID)
        interface.follow()
        assert interface.refuse(ipv4(), 2000) == 1
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_without_net_raw_it_is_not_possible_and_costs_nothing(namespace: None) -> None:
    tun = open_tun("wgpy-a", mtu=1420)
    ip(LAID)

    def attempt() -> None:
        monitor, unreachables = LinkMonitor(tun.fileno()), Unreachables()
        unreachables.follow(tun.fileno(), monitor.state(), is_elsewhere=False)
        unreachables.refused(memoryview(ipv4()), 1000.0)
        assert (unreachables.is_possible, unreachables.sent) == (False, 0)
        monitor.close()

    without_capability(CAP_NET_RAW, attempt)
    tun.close()


def test_before_there_is_an_interface_nobody_is_told() -> None:
    unreachables = Unreachables()

    unreachables.refused(memoryview(ipv4()), 1000.0)

    assert (unreachables.sent, unreachables.is_possible) == (0, False)
