"""Who sends a packet that nobody takes is told at once, as by the kernel's WireGuard (protocol 1.9; netns.sh, stage 18).

wireguard-go drops such packets in silence, so only wgpy is asked. Stage 18 itself is in ``test_netns``.
"""

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from controller.demo.topology import Address, Namespace, Node
from tests.e2e.lab import FAMILIES, WGPY, DataPlane, End, Tunnel, has_interface, inside, ping
from tests.e2e.test_netns import cpu_seconds
from wgpy.config import SetPeer

UNREACHABLE = {4: "Destination Host Unreachable", 6: "Destination unreachable: Address unreachable"}
SYN_AGAIN = 0.9
"""Seconds. Who is not told of it sends its next SYN after one."""
WITHOUT_ENDPOINT = SetPeer(
    os.urandom(32), allowed_ips=(ip_network("10.42.98.0/24"), *([ip_network("fd42:0:0:98::/64")] if 6 in FAMILIES else []))
)


def nowhere(version: int, number: int = 99) -> Address:
    """An address behind the interface: 99 has no peer, 98 one without an endpoint."""
    return ip_address(f"10.42.{number}.1" if version == 4 else f"fd42:0:0:{number}::1")


@pytest.fixture
def end(standing: Callable[..., Tunnel]) -> Iterator[End]:
    """One end, with a session, and routes to nobody."""
    first, second = standing().ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1
    first.client.set([WITHOUT_ENDPOINT])
    time.sleep(1.1)  # what this sender may have been told of before is forgotten (noise.ratelimiter)
    links = [f"{nowhere(version, number)} dev wg0" for version in FAMILIES for number in (98, 99)]
    first.node.configure(links=[f"route add {link}" for link in links])
    yield first
    first.node.configure(links=[f"route del {link}" for link in links])


def told(where: Namespace, to: Address) -> str:
    """What one ping says: who told it what."""
    output = where.run(["ping", "-n", "-c1", "-W2", str(to)], check=False).stdout
    found = re.search(r"^From (\S+?):? icmp_seq=1 (.*)$", output, re.MULTILINE)
    return f"{found[1]}: {found[2].strip()}" if found else "nothing"


@pytest.mark.parametrize("number", [99, 98], ids=["no-peer", "no-endpoint"])
@pytest.mark.parametrize("version", FAMILIES)
def test_a_ping_of_the_node_itself_is_told_by_its_own_address(end: End, version: int, number: int) -> None:
    assert told(end.node, nowhere(version, number)) == f"{end.tunnel_address(version)}: {UNREACHABLE[version]}"


@pytest.mark.parametrize("number", [99, 98], ids=["no-peer", "no-endpoint"])
@pytest.mark.parametrize("version", FAMILIES)
def test_a_pod_is_told_by_an_address_of_its_node(end: End, version: int, number: int) -> None:
    by, _, what = told(end.pod, nowhere(version, number)).partition(": ")

    assert what == UNREACHABLE[version]
    assert f" {by}/" in end.node.run(["ip", "-o", "addr"]).stdout


@pytest.mark.parametrize("who", ["node", "pod"])
@pytest.mark.parametrize("version", FAMILIES)
def test_a_connection_fails_at_once(end: End, version: int, who: str) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def connect() -> tuple[int, float]:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            began = time.monotonic()
            return sock.connect_ex((str(nowhere(version)), 80)), time.monotonic() - began

    number, seconds = inside(end.pod if who == "pod" else end.node, connect)

    assert errno.errorcode[number] == "EHOSTUNREACH"
    assert seconds < SYN_AGAIN


def errors_sent(where: Namespace) -> int:
    """ICMP errors that a namespace has sent so far: destination unreachable, type 3."""
    lines = [line.split() for line in where.run(["cat", "/proc/net/snmp"]).stdout.splitlines() if line.startswith("IcmpMsg:")]
    return int(dict(zip(*lines, strict=True)).get("OutType3", 0)) if lines else 0


def test_a_flood_without_a_peer_is_told_of_a_few_times_and_disturbs_nobody(end: End) -> None:
    began, errors, used = time.monotonic(), errors_sent(end.node), cpu_seconds(end.plane.process.pid)

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(20_000):
                sock.sendto(b"to nobody", (str(nowhere(4)), 9))

    inside(end.node, flood)
    assert ping(end.node, ip_address("10.42.2.254"), count=1) == 1
    seconds = time.monotonic() - began
    errors, used = errors_sent(end.node) - errors, cpu_seconds(end.plane.process.pid) - used

    print(f"20,000 packets in {seconds:.2f} s: {errors} errors, {used:.2f} s of CPU")
    assert 1 <= errors <= 5 + 20 * seconds
    assert used < 1


def test_an_interface_in_another_namespace_tells_those_who_are_there(machine: None) -> None:
    with Tunnel.lay(("wgpy", "wgpy")) as tunnel:
        first, _ = tunnel.ends
        first.node.run(["ip", "link", "set", "wg0", "netns", first.pod.name])
        assert not has_interface(first.node, "wg0")
        first.pod.configure(links=["link set wg0 up", *(f"route add {nowhere(version)} dev wg0" for version in FAMILIES)])

        for version in FAMILIES:
            assert told(first.pod, nowhere(version)) == f"{first.pod.address(version)}: {UNREACHABLE[version]}"


def test_without_net_raw_packets_are_dropped_in_silence_and_one_line_says_so(node: Node) -> None:
    argv = ["setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw", *WGPY, "-f", "wg1"]
    plane = DataPlane(node, "wg1", argv, {"LOG_LEVEL": "info"}, keep_log=False)
    try:
        plane.wait_until_ready()
        node.configure(links=["addr add 10.99.0.1/24 dev wg1", "link set wg1 up"])

        assert told(node, ip_address("10.99.0.2")) == "nothing"
        assert plane.log.read_text().count("ICMP unreachables") == 1
    finally:
        plane.stop()
