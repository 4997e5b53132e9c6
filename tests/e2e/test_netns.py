"""Stages of the kernel's own self test (netns.sh; protocol 4.5) that mean something for a process in userspace.

The first five, and those about processes, keys and ``wg``, are in the other files here.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from controller.demo.capture import Capture
from controller.demo.topology import Address, Node
from noise.crypto import clamp, public_key
from tests.e2e.lab import FAMILIES, MTU, PORT, DataPlane, Tunnel, ping
from tests.e2e.traffic import transfer
from tests.e2e.wire import TRANSPORT, messages
from wgpy.config import Endpoint, SetDevice, SetPeer

WITH_GO = [("wgpy", "wgpy"), ("wgpy", "wireguard-go"), ("wireguard-go", "wgpy")]
kinds = pytest.mark.parametrize("kinds", WITH_GO, ids=lambda pair: f"{pair[0]}:{pair[1]}")


@contextmanager
def nft(node: Node, *rules: str) -> Iterator[None]:
    """Rules of one chain: the first word line says its table, the second its hook."""
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed: it is in the package nftables")
    family, hook, *lines = rules
    script = "\n".join([f"table {family} e2e {{", "chain c {", f"type {hook};", *lines, "}", "}"])
    node.run(["sh", "-c", 'printf "%s\n" "$0" | nft -f -', script])
    try:
        yield
    finally:
        node.run(["nft", "delete", "table", *family.split(), "e2e"])


def test_stage_6_the_padding_never_exceeds_the_mtu_of_a_route(standing: Callable[..., Tunnel]) -> None:
    first, second = (tunnel := standing()).ends
    route = f"route change 10.42.{second.number}.0/24 dev wg0 src {first.tunnel_address(4)}"
    first.node.configure(links=["link set wg0 mtu 1300", f"{route} mtu 1299"])
    try:
        with tunnel.capture() as capture:
            assert ping(first.node, second.pod.address(4), "-s", str(1297 - 28), count=2) == 2
        sent = messages(capture.frames, TRANSPORT, source=first.node.address(4))
        assert {one.padded_length for one in sent if one.padded_length} == {1297}
    finally:
        first.node.configure(links=[f"link set wg0 mtu {MTU}", route])


@kinds
def test_stage_9_a_source_that_belongs_to_another_peer_is_dropped_but_the_endpoint_follows(
    standing: Callable[..., Tunnel], kinds: tuple[str, str]
) -> None:
    first, second = standing(kinds).ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1
    other = SetPeer(os.urandom(32), allowed_ips=(ip_network(f"{first.pod.address(4)}/32"),))
    second.client.set([other])

    first.client.set([SetDevice(listen_port=PORT + 3)])
    with Capture(second.pod.name) as capture:
        assert ping(first.pod, second.pod.address(4), count=2, patience=0.3) == 0
    assert ecn_of_packets(capture, first.pod.address(4)) == []

    peers = {peer.config.public_key: peer.config for peer in second.client.get().peers}
    assert peers[first.public_key].endpoint == Endpoint(str(first.node.address(4)), PORT + 3)
    second.client.set([SetPeer(other.public_key, remove=True), SetPeer(first.public_key, allowed_ips=first.blocks)])
    assert ping(first.pod, second.pod.address(4), patience=1) == 3


@kinds
def test_stage_10_a_new_private_key_shakes_hands_within_a_second(standing: Callable[..., Tunnel], kinds: tuple[str, str]) -> None:
    first, second = standing(kinds).ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1

    key = clamp(os.urandom(32))
    first.client.set([SetDevice(private_key=key)])
    second.client.set([SetPeer(first.public_key, remove=True), SetPeer(public_key(key), allowed_ips=first.blocks)])

    assert ping(first.pod, second.pod.address(4), count=1, patience=1) == 1
    assert ping(second.pod, first.pod.address(FAMILIES[-1]), count=1, patience=1) == 1


def test_stage_11_wireguard_goes_through_wireguard(standing: Callable[..., Tunnel]) -> None:
    tunnel = standing()
    planes = [DataPlane.start("wgpy", end.node, "wg1") for end in tunnel.ends]
    keys = [clamp(os.urandom(32)) for _ in planes]
    try:
        for side, (end, other) in enumerate(tunnel.directions()):
            planes[side].wait_until_ready()
            peer = SetPeer(
                public_key(keys[1 - side]),
                endpoint=Endpoint(str(other.tunnel_address(4)), 7777),
                allowed_ips=(ip_network("192.168.241.0/24"),),
            )
            planes[side].client.set([SetDevice(keys[side], 7777), peer])
            end.node.configure(links=["link set wg1 mtu 1340 up", f"addr add 192.168.241.{side + 1}/24 dev wg1"])
        first, second = (end.node for end in tunnel.ends)

        assert ping(first, "192.168.241.2") == 3
        assert ping(second, "192.168.241.1", "-M", "do", "-s", str(1340 - 28)) == 3
        addresses = [ip_network(f"192.168.241.{number}").network_address for number in (1, 2)]
        assert transfer(first, addresses[0], second, addresses[1], 5_000_000).is_intact
    finally:
        for plane in planes:
            plane.stop()


@kinds
def test_stage_13_a_persistent_keepalive_keeps_a_nat_open(standing: Callable[..., Tunnel], kinds: tuple[str, str]) -> None:
    first, second = standing(kinds).ends
    second.client.set([SetPeer(first.public_key, endpoint=Endpoint("10.77.0.99", 9))])  # which has to be learnt
    first.node.configure(sysctls={"netfilter/nf_conntrack_udp_timeout": 2, "netfilter/nf_conntrack_udp_timeout_stream": 2})
    with nft(first.node, "ip", "nat hook postrouting priority 100", f'oifname "eth0" udp sport {PORT} masquerade to :40001'):
        first.client.set([SetPeer(second.public_key, persistent_keepalive=1)])
        assert ping(first.pod, second.pod.address(4), count=1) == 1
        assert second.peer.config.endpoint == Endpoint(str(first.node.address(4)), 40001)

        time.sleep(3)  # longer than the NAT remembers

        assert ping(second.pod, first.pod.address(4), count=1, patience=1) == 1
        assert second.peer.config.endpoint == Endpoint(str(first.node.address(4)), 40001)


def test_stage_15_a_mark_that_reroutes_changes_nothing(standing: Callable[..., Tunnel]) -> None:
    first, second = standing().ends
    with nft(first.node, "inet", "route hook output priority mangle", "meta mark set 1"):
        for version in FAMILIES:
            assert ping(first.node, second.pod.address(version)) == 3
            assert ping(first.node, second.pod.address(version), "-I", "wg0") == 3


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_stage_16_an_endpoint_inside_its_own_tunnel_fails_without_spinning(standing: Callable[..., Tunnel]) -> None:
    first, second = standing().ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1

    first.client.set([SetPeer(second.public_key, endpoint=Endpoint(str(second.tunnel_address(4)), PORT))])
    before = first.peer.tx_bytes, cpu_seconds(first.plane.process.pid)
    assert ping(first.pod, second.pod.address(4), count=3, patience=0.3) == 0
    sent, used = first.peer.tx_bytes - before[0], cpu_seconds(first.plane.process.pid) - before[1]

    print(f"three pings made {sent} bytes and took {used:.2f} s of CPU")
    assert sent < 70_000
    assert used < 0.5


@pytest.mark.parametrize("outer", FAMILIES)
def test_congestion_that_is_marked_outside_arrives_inside(standing: Callable[..., Tunnel], outer: int) -> None:
    """Where the packet inside is capable of it; where it is not, it is neither dropped nor changed (protocol 1.10)."""
    first, second = standing(outer=outer).ends
    family = "ip" if outer == 4 else "ip6"
    with nft(first.node, "inet", "filter hook output priority 0", f"udp dport {PORT} {family} ecn set ce"):
        with Capture(second.pod.name) as capture:
            for version in FAMILIES:
                for inner in (0, 1, 2):
                    assert ping(first.pod, second.pod.address(version), "-Q", str(inner), count=2) == 2
    for version in FAMILIES:
        assert ecn_of_packets(capture, first.pod.address(version)) == [0, 0, 3, 3, 3, 3]


def ecn_of_packets(capture: Capture, source: Address) -> list[int]:
    """The ECN bits of the packets from ``source``."""
    packets = [frame.data[14:] for frame in capture.frames]
    if source.version == 4:
        return [packet[1] & 3 for packet in packets if packet[0] >> 4 == 4 and packet[12:16] == source.packed]
    return [
        packet[1] >> 4 & 3 for packet in packets if packet[0] >> 4 == 6 and packet[8:24] == source.packed and packet[40] == 128
    ]
