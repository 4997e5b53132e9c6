"""Stages of the kernel's own self test (netns.sh; protocol 4.5) that mean something for a process in userspace.

The first five, and those about processes, keys and ``wg``, are in the other files here.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest

from controller.demo.capture import Capture
from controller.demo.topology import Address, Namespace, Node, Topology
from noise.crypto import clamp, public_key
from tests.e2e.lab import AT_ONCE, FAMILIES, MTU, PORT, DataPlane, End, Tunnel, node_addresses, ping, processes_in, wait_for
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

    def endpoint() -> Endpoint | None:
        return {peer.config.public_key: peer.config for peer in second.client.get().peers}[first.public_key].endpoint

    wait_for(lambda: endpoint() == Endpoint(str(first.node.address(4)), PORT + 3), "the endpoint follows")
    second.client.set([SetPeer(other.public_key, remove=True), SetPeer(first.public_key, allowed_ips=first.blocks)])
    assert ping(first.pod, second.pod.address(4), patience=AT_ONCE) == 3


@kinds
def test_stage_10_a_new_private_key_shakes_hands_at_once(standing: Callable[..., Tunnel], kinds: tuple[str, str]) -> None:
    first, second = standing(kinds).ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1

    key = clamp(os.urandom(32))
    first.client.set([SetDevice(private_key=key)])
    second.client.set([SetPeer(first.public_key, remove=True), SetPeer(public_key(key), allowed_ips=first.blocks)])

    assert ping(first.pod, second.pod.address(4), count=1, patience=AT_ONCE) == 1
    assert ping(second.pod, first.pod.address(FAMILIES[-1]), count=1, patience=AT_ONCE) == 1


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


def test_stage_12_a_loop_through_two_namespaces_blocks_nothing_and_ends_with_its_cause() -> None:
    """Each of two interfaces is where the other one's datagrams pass. None of the two can see that, and the kernel's WireGuard
    does not, either: each sees packets of somebody else. netns.sh only warns; here is what must hold meanwhile."""
    names, everything = ("wg0", "wg1"), (ip_network("0.0.0.0/0"),)
    with Topology.create() as topology:
        first, second, far = (topology.add_node(f"n{number}", node_addresses(number)) for number in (1, 2, 3))
        looping = [DataPlane.start("wgpy", node, name) for node, name in zip((first, second), names, strict=True)]
        targets = [DataPlane.start("wgpy", far, name) for name in names]
        try:
            for number, (plane, target) in enumerate(zip(looping, targets, strict=True)):
                keys = [clamp(os.urandom(32)) for _ in range(2)]
                for one in (plane, target):
                    one.wait_until_ready()
                target.client.set([SetDevice(keys[0], PORT + number), SetPeer(public_key(keys[1]), allowed_ips=everything)])
                endpoint = Endpoint(str(far.address(4)), PORT + number)
                plane.client.set(
                    [SetDevice(keys[1], PORT), SetPeer(public_key(keys[0]), endpoint=endpoint, allowed_ips=everything)]
                )
                far.configure(links=[f"link set wg{number} up", f"addr add 192.168.24{number}.2/24 dev wg{number}"])
            first.run(["ip", "link", "set", "wg0", "netns", second.name])
            second.run(["ip", "link", "set", "wg1", "netns", first.name])
            second.configure(links=["link set wg0 up", "addr add 192.168.240.1/24 dev wg0"])
            first.configure(links=["link set wg1 up", "addr add 192.168.241.1/24 dev wg1"])
            assert ping(second, "192.168.240.2") == ping(first, "192.168.241.2") == 3
            for plane in targets:
                plane.stop()

            aim(looping[0], "192.168.241.2")  # wg0's datagrams leave from the first node, where wg1 is
            aim(looping[1], "192.168.240.2")  # and the other way round
            second.run(["ping", "-n", "-q", "-f", "-c10", "-W1", "192.168.240.2"], check=False)
            began = time.monotonic()
            before = [transmitted(plane) for plane in looping]
            time.sleep(0.5)
            after = [transmitted(plane) for plane in looping]
            answered = (time.monotonic() - began - 0.5) / 4
            print(
                f"in half a second: {[b - a for a, b in zip(before, after, strict=True)]} bytes; UAPI in {answered * 1e3:.0f} ms"
            )

            aim(looping[0], str(far.address(4)))
            wait_for(lambda: has_come_to_rest(looping), "the loop has ended")
            assert answered < 0.5
        finally:
            for plane in (*looping, *targets):
                assert plane.stop() == 0


def aim(plane: DataPlane, host: str) -> None:
    """Let its only peer be at another address."""
    (peer,) = plane.client.get().peers
    plane.client.set([SetPeer(peer.config.public_key, endpoint=Endpoint(host, PORT))])


def transmitted(plane: DataPlane) -> int:
    (peer,) = plane.client.get().peers
    return peer.tx_bytes


def has_come_to_rest(planes: Iterable[DataPlane]) -> bool:
    """Whether nothing but a handshake message or two leaves within a fifth of a second."""
    before = sum(transmitted(plane) for plane in planes)
    time.sleep(0.2)
    return sum(transmitted(plane) for plane in planes) - before < 1000


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

        assert ping(second.pod, first.pod.address(4), count=1, patience=AT_ONCE) == 1
        assert second.peer.config.endpoint == Endpoint(str(first.node.address(4)), 40001)


@kinds
def test_stage_14_a_socket_that_is_bound_to_the_interface_passes(standing: Callable[..., Tunnel], kinds: tuple[str, str]) -> None:
    first, second = standing(kinds).ends
    for version in FAMILIES:
        assert ping(first.node, second.pod.address(version), "-I", "wg0") == 3


def test_stage_15_a_mark_that_reroutes_changes_nothing(standing: Callable[..., Tunnel]) -> None:
    first, second = standing().ends
    with nft(first.node, "inet", "route hook output priority mangle", "meta mark set 1"):
        for version in FAMILIES:
            assert ping(first.node, second.pod.address(version)) == 3
            assert ping(first.node, second.pod.address(version), "-I", "wg0") == 3


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@kinds
def test_stage_16_one_peer_is_reached_through_another(standing: Callable[..., Tunnel], kinds: tuple[str, str]) -> None:
    """Of one interface: the datagrams for the inner peer go into it again. The inner peer is on the other side's node."""
    first, second = standing(kinds).ends
    key = clamp(os.urandom(32))
    inner = SetPeer(
        public_key(key),
        endpoint=Endpoint(str(second.tunnel_address(4)), 7778),
        allowed_ips=(ip_network("192.168.242.2/32"),),
    )
    plane = DataPlane.start("wgpy", second.node, "wg1")
    try:
        plane.wait_until_ready()
        plane.client.set([SetDevice(key, 7778), SetPeer(first.public_key, allowed_ips=(ip_network("192.168.242.1/32"),))])
        second.node.configure(links=["link set wg1 up", "addr add 192.168.242.2/24 dev wg1"])
        first.node.configure(links=["addr add 192.168.242.1/24 dev wg0"])
        first.client.set([inner])

        assert ping(first.node, "192.168.242.2") == 3

        plane.stop()
        if first.kind == "wireguard-go":
            return  # it would loop, fragment and multiply what it sends itself: 10 s of CPU and 400 MB seen for one ping
        first.client.set([SetPeer(inner.public_key, endpoint=Endpoint("192.168.242.2", 7778))])  # inside itself
        assert ping(first.node, "192.168.242.2", count=1, patience=0.5) == 0
        assert ping(first.node, second.pod.address(4)) == 3
    finally:
        plane.stop()
        first.client.set([SetPeer(inner.public_key, remove=True)])
        first.node.configure(links=["addr del 192.168.242.1/24 dev wg0"])


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


@pytest.mark.parametrize("version", FAMILIES)
def test_stage_18_an_error_about_a_packet_finds_its_way_back_through_nat(standing: Callable[..., Tunnel], version: int) -> None:
    """It comes from the address that the sender knows the node by, not from one of the tunnel. (wireguard-go says nothing.)"""
    first, second = standing().ends
    assert ping(first.pod, second.pod.address(version), count=1) == 1
    family, gateway = ("ip", "10.42.1.99") if version == 4 else ("ip6", "fd42:0:0:1::99")
    to_the_pod = f"{gateway}/{32 if version == 4 else 128} dev {first.pod.host_interface}"
    first.client.set([SetPeer(second.public_key, remove=True)])
    rule = f'oifname "wg0" {family} saddr {first.pod.address(version)} snat to {first.tunnel_address(version)}'
    try:
        first.node.configure(links=[f"addr add {to_the_pod}"])
        with nft(first.node, family, "nat hook postrouting priority 100", rule), Capture(first.pod.name) as capture:
            said = first.pod.run(["ping", "-n", "-c1", "-W2", str(second.pod.address(version))], check=False).stdout
    finally:
        host_route = f"route replace {first.pod.address(version)} dev {first.pod.host_interface} scope link"
        first.node.configure(links=[f"addr del {to_the_pod}", host_route])  # which goes with the last address of an interface

    if version == 4:
        assert f"From {gateway} icmp_seq=1 Destination Host Unreachable" in said
    else:
        assert f"From {gateway} icmp_seq=1 Destination unreachable: Address unreachable" in said
    errors = [frame for frame in capture.frames if frame.data.count(first.pod.address(version).packed) >= 2]
    assert errors, "the error shows the pod its own address twice: as its destination, and in the packet that it quotes"


ANSWERED_BY_WGPY = [("wgpy", "wgpy"), ("wireguard-go", "wgpy")]
"""wireguard-go answers from another address than it was spoken to when datagrams come in bursts (protocol 1.11)."""


@pytest.mark.parametrize("outer", FAMILIES)
@pytest.mark.parametrize("kinds", ANSWERED_BY_WGPY, ids=":".join)
def test_stage_21_who_speaks_to_an_address_of_another_interface_is_answered_from_it(
    standing: Callable[..., Tunnel], kinds: tuple[str, str], outer: int
) -> None:
    first, second = standing(kinds, outer).ends
    address = "10.50.0.1" if outer == 4 else "fd50::1"
    route = f"route add {address} via {second.node.address(outer)} dev eth0"
    second.node.configure(
        links=["link add br9 type bridge", f"addr add {address}/{24 if outer == 4 else '64 nodad'} dev br9", "link set br9 up"]
    )
    first.node.configure(links=[route])
    try:
        first.client.set([SetPeer(second.public_key, endpoint=Endpoint(address, PORT))])
        assert ping(first.pod, second.pod.address(4), count=3, patience=AT_ONCE) == 3
        assert first.peer.config.endpoint == Endpoint(address, PORT)
    finally:
        first.node.configure(links=[route.replace("add", "del", 1)])
        second.node.configure(links=["link del br9"])


def by_another_way(first: End, second: End, version: int) -> tuple[Address, str]:
    """Lay a second cable between two nodes: the address that the first has there, and the route by it to the second's old one."""
    first.node.run(["ip", "link", "add", "veth3", "type", "veth", "peer", "name", "veth4", "netns", second.node.name])
    address, via, mask = ("10.78.0.3", "10.78.0.4", "24") if version == 4 else ("fd78::3", "fd78::4", "64 nodad")
    for end, cable, own in ((first, "veth3", address), (second, "veth4", via)):
        end.node.configure(
            links=[f"addr add {own}/{mask} dev {cable}", f"link set {cable} up"],
            sysctls={f"ipv4/conf/{name}/rp_filter": 0 for name in ("all", "eth0", cable)},
        )
    wait_for(lambda: ping(first.node, via, count=1, patience=0.2), "the second cable carries packets")
    return ip_address(address), f"{second.node.address(version)} via {via} dev veth3 src {address}"


# wireguard-go asks this of IPv4 only.
@pytest.mark.parametrize(
    ("kinds", "outer"),
    [
        pytest.param(kinds, outer, id=f"{':'.join(kinds)}-over-IPv{outer}")
        for outer in FAMILIES
        for kinds in ANSWERED_BY_WGPY
        if outer == 4 or kinds[0] == "wgpy"
    ],
)
def test_stage_22_a_route_by_another_interface_is_followed_by_the_next_packet(
    standing: Callable[..., Tunnel], kinds: tuple[str, str], outer: int
) -> None:
    first, second = standing(kinds, outer).ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1
    assert second.peer.config.endpoint == Endpoint(str(first.node.address(outer)), PORT)
    address, route = by_another_way(first, second, outer)
    try:
        first.node.configure(links=[f"route add {route}"])
        assert ping(first.pod, second.pod.address(4), count=1, patience=AT_ONCE) == 1
        assert second.peer.config.endpoint == Endpoint(str(address), PORT)

        first.node.configure(links=[f"route del {route}"])
        assert ping(first.pod, second.pod.address(4), count=1, patience=AT_ONCE) == 1
        assert second.peer.config.endpoint == Endpoint(str(first.node.address(outer)), PORT)
    finally:
        first.node.run(["ip", "link", "del", "veth3"])


def test_a_way_back_by_another_interface_is_taken_from_the_first_answer_on(standing: Callable[..., Tunnel]) -> None:
    """As by the kernel's WireGuard: which address a node answers from goes by its routes, where they lead another way."""
    first, second = standing().ends
    address, route = by_another_way(first, second, 4)
    try:
        first.node.configure(links=[f"route add {route}"])
        assert ping(second.pod, first.pod.address(4), count=3, patience=2) == 3  # to the old address, by the old interface

        assert second.peer.config.endpoint == Endpoint(str(address), PORT)
    finally:
        first.node.run(["ip", "link", "del", "veth3"])


@kinds
def test_stage_26_prefixes_are_removed_one_by_one_by_who_has_them(
    standing: Callable[..., Tunnel], kinds: tuple[str, str]
) -> None:
    first, second = standing(kinds).ends
    one, other = os.urandom(32), os.urandom(32)
    prefixes = [ip_network(f"10.{i}.{j}.0/24") for i in (100, 101) for j in range(98)]
    prefixes += [ip_network(f"fd99:0:{i}:{j:x}::/64") for i in (0, 1) for j in range(99)]
    assert len(prefixes) == 394
    gone = [prefixes[number] for number in (0, 1, 97, 196, 250, 393)]
    not_its_own = ip_network("10.102.0.0/16")
    try:
        first.client.set([SetPeer(one, allowed_ips=tuple(prefixes)), SetPeer(other, allowed_ips=(not_its_own,))])

        first.client.set([SetPeer(one, removed_allowed_ips=(*gone, not_its_own, ip_network("10.100.2.0/25")))])

        listed = {peer.config.public_key: peer.config.allowed_ips for peer in first.client.get().peers}
        left = [prefix for prefix in prefixes if prefix not in gone]
        assert len(left) == 388
        assert sorted(listed[one], key=str) == sorted(left, key=str)
        assert listed[other] == (not_its_own,)
    finally:
        first.client.set([SetPeer(one, remove=True), SetPeer(other, remove=True)])
    assert ping(first.pod, second.pod.address(4)) == 3


@kinds
def test_stage_28_everything_and_what_is_inside_it_are_replaced_again_and_again(
    standing: Callable[..., Tunnel], kinds: tuple[str, str]
) -> None:
    first, second = standing(kinds).ends
    nested = [ip_network(text) for text in ("::/0", "1700::/111", "5000::/4", "e000::/37", "9000::/75")]
    for prefixes in ([ip_network("0.0.0.0/0")], nested, [*nested[::-1], ip_network("10.42.0.0/16")], nested, list(first.blocks)):
        second.client.set([SetPeer(first.public_key, replace_allowed_ips=True, allowed_ips=tuple(prefixes))])

        assert sorted(second.peer.config.allowed_ips, key=str) == sorted(prefixes, key=str)
    assert ping(first.pod, second.pod.address(4)) == 3


@pytest.mark.parametrize("kind", ["wgpy", "wireguard-go"])
def test_stage_30_a_namespace_that_is_deleted_takes_the_interface_and_its_process_along(
    node: Node, request: pytest.FixtureRequest, kind: str
) -> None:
    """And no namespace outlives its deletion for the sake of an interface in it."""
    if kind == "wireguard-go":
        request.getfixturevalue("wireguard_go_path")
    plane = DataPlane.start(kind, node, "wg1")
    plane.wait_until_ready()
    pod = node.add_pod("stage30", [ip_address("10.42.1.30")])
    node.run(["ip", "link", "set", "wg1", "netns", pod.name])
    pod.configure(links=["link set wg1 up"])
    wait_for(lambda: plane.client.get().listen_port, "it is up")

    pod.remove()

    assert plane.process.wait(10) == 0
    assert not (node.wireguard_directory / "wg1.sock").exists()
    assert processes_in(node) == {}
    plane.stop()


def test_stage_30_moves_there_and_back_and_round_are_followed(node: Node) -> None:
    plane = DataPlane.start("wgpy", node, "wg1")
    plane.wait_until_ready()
    plane.client.set([SetDevice(clamp(os.urandom(32)), PORT)])
    pods = [node.add_pod(f"stage30-{number}", [ip_address(f"10.42.1.3{number}")]) for number in (1, 2)]
    places: list[Namespace] = [node, pods[0], pods[1], pods[0], node]
    try:
        for number, (here, there) in enumerate([*pairwise(places), *pairwise(places)]):
            mtu = 1300 + number
            here.run(["ip", "link", "set", "wg1", "netns", there.name])
            assert not holds_port(plane)  # it is down after a move

            there.run(["ip", "link", "set", "wg1", "mtu", str(mtu), "up"])
            wait_for(lambda: holds_port(plane), "it is up again, and nobody asked")

            there.run(["ip", "link", "set", "wg1", "down"])
            wait_for(lambda: not holds_port(plane), "it is down again, and nobody asked")
    finally:
        for pod in pods:
            pod.remove()
        assert plane.stop() == 0
    assert processes_in(node) == {}


def holds_port(plane: DataPlane) -> bool:
    """Whether it has its UDP port, in the namespace of its node, where its sockets stay."""
    return f":{PORT:04X} " in plane.node.run(["cat", "/proc/net/udp"]).stdout


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
