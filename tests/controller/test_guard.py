"""The guard: its text and its reading, and real packets that come and go past it, with no agent and no route of ours."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from controller import guard
from controller.model import Family
from controller.nftables import load
from controller.state import Guard
from tests.controller.lab import may_make_namespaces
from tests.controller.namespace import in_new_namespace
from wgpy.config import Prefix

OURS = "wireguard.caliu"
CALI = frozenset({"cali*"})


def prefixes(*texts: str) -> frozenset[Prefix]:
    return frozenset(map(ip_network, texts))


GUARDS = {
    Family.IPV4: Guard(prefixes("10.42.0.0/16", "10.44.0.0/24", "10.44.1.0/24", "10.43.0.7/32"), prefixes("10.42.9.9/32"), CALI),
    Family.IPV6: Guard(prefixes("fd00:42::/32", "fd00:43::7/128"), frozenset(), frozenset({"cni0", "lxc*"})),
}


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun")
@pytest.mark.parametrize("family", list(Family))
def test_a_guard_is_read_as_it_was_put(family: Family) -> None:
    other = Family.IPV4 if family is Family.IPV6 else Family.IPV6

    def body() -> None:
        guard.remove(family)  # nothing there
        assert guard.found(family, OURS) is None and guard.refused(family) is None
        for wanted in (GUARDS[family], Guard(), Guard(workloads=CALI), GUARDS[family]):
            guard.put(family, OURS, wanted)
            assert guard.found(family, OURS) == wanted
        assert guard.refused(family) == (0, 0)
        assert guard.found(other, OURS) is None
        assert guard.found(family, "another") == Guard(), "it would refuse what comes by an interface of another name"
        guard.remove(family)
        assert guard.found(family, OURS) is None

    in_new_namespace(body)


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun")
@pytest.mark.parametrize("change", ["flush chain ip wgpy-guard outbound", "insert rule ip wgpy-guard inbound accept"])
def test_a_guard_that_somebody_has_changed_guards_nothing(change: str) -> None:
    def body() -> None:
        guard.put(Family.IPV4, OURS, GUARDS[Family.IPV4])
        load(change + "\n")
        assert guard.found(Family.IPV4, OURS) == Guard()

    in_new_namespace(body)


# Packets ------------------------------------------------------------------------------------------------------------


@dataclass
class Wire:
    """A node with a pod, and another node whose pod's address is on its loopback. Two wires lead from one to the other: one
    for what is in clear, one that stands for the tunnel (what comes by it has been decrypted). Both families."""

    prefix: str
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("node", "pod", "other"):
            sh(f"ip netns add {self.prefix}{name} && ip -n {self.prefix}{name} link set lo up")
            self.run(name, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        self._connect("node", "eth0", "other", "eth0")
        self._connect("node", OURS, "other", "tunnel", "address 02:00:00:00:00:01 arp off")  # as a tunnel, it asks nobody
        self._connect("node", "cali1", "pod", "eth0")
        for node, number in (("node", 1), ("other", 2)):
            self.ip(node, f"addr add 192.0.2.{number}/24 dev eth0", f"-6 addr add fd00:aa::{number}/64 dev eth0 nodad")
        self.ip("other", "addr add 10.42.2.5/32 dev lo", "-6 addr add fd00:42:2::5/128 dev lo nodad")
        self.ip("pod", "addr add 10.42.1.5/24 dev eth0", "-6 addr add fd00:42:1::5/64 dev eth0 nodad")
        self.ip("node", "addr add 10.42.1.1/24 dev cali1", "-6 addr add fd00:42:1::1/64 dev cali1 nodad")
        self.ip("pod", "route add default via 10.42.1.1", "-6 route add default via fd00:42:1::1")
        self.run("node", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0")
        self.route_by("eth0")
        self.run("other", "nft -f -", WATCH)

    def route_by(self, wire: str) -> None:
        """The pods of both nodes go by this wire, both ways."""
        for node, number, peer in (("node", 2, 2), ("other", 1, 1)):
            device = wire if node == "node" or wire == "eth0" else "tunnel"
            via = (f"via 192.0.2.{peer}", f"via fd00:aa::{peer}") if wire == "eth0" else ("", "")
            onlink = "onlink" if wire == "eth0" else ""
            self.ip(node, f"route replace 10.42.{number}.0/24 {via[0]} dev {device} {onlink}")
            self.ip(node, f"-6 route replace fd00:42:{number}::/64 {via[1]} dev {device}")

    def _connect(self, one: str, name: str, other: str, other_name: str, how: str = "") -> None:
        one, other = self.prefix + one, self.prefix + other
        sh(f"ip link add {name} netns {one} type veth peer name {other_name} netns {other}")
        sh(f"ip -n {one} link set {name} {how} up && ip -n {other} link set {other_name} {how} up")

    def ip(self, node: str, *commands: str) -> None:
        for command in commands:
            self.run(node, f"ip {command}")

    def run(self, node: str, command: str, text: str = "", check: bool = True) -> str:
        return sh(f"ip netns exec {self.prefix}{node} {command}", text, check)

    def ping(self, node: str, target: str, source: str = "") -> bool:
        return " 0% packet loss" in self.say(node, target, source)

    def say(self, node: str, target: str, source: str = "") -> str:
        return self.run(node, f"ping -c2 -i0.1 -W0.3 {f'-I {source}' if source else ''} {target}", check=False)

    def in_clear(self) -> int:
        """Packets from pods that the other node has been sent in clear."""
        listing = json.loads(self.run("other", "nft -j list table inet watch"))["nftables"]
        return sum(item["counter"]["packets"] for item in listing if "counter" in item)

    def refused(self, family: str) -> tuple[int, int]:
        listing = json.loads(self.run("node", f"nft -j list table {family} wgpy-guard"))["nftables"]
        counters = {item["counter"]["name"]: int(item["counter"]["packets"]) for item in listing if "counter" in item}
        return counters["inbound"], counters["outbound"]

    def close(self) -> None:
        for name in ("node", "pod", "other"):
            sh(f"ip netns del {self.prefix}{name}", check=False)


WATCH = """
table inet watch {
    counter inner { }
    chain arriving {
        type filter hook prerouting priority -400;
        iifname "eth0" ip daddr 10.42.0.0/16 counter name inner
        iifname "eth0" ip6 daddr fd00:42::/32 counter name inner
    }
}
"""


def sh(command: str, text: str = "", check: bool = True) -> str:
    done = subprocess.run(["sh", "-c", command], input=text, capture_output=True, text=True, timeout=30, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire(f"hg{os.getpid() % 100000}")
    try:
        yield wire
    finally:
        wire.close()


CASES = [
    pytest.param(Family.IPV4, "ip", "10.42.1.5", "10.42.2.5", "192.0.2.2", "10.42.0.0/16", id="IPv4"),
    pytest.param(Family.IPV6, "ip6", "fd00:42:1::5", "fd00:42:2::5", "fd00:aa::2", "fd00:42::/32", id="IPv6"),
]


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun")
@pytest.mark.parametrize(("family", "table", "pod", "remote", "node", "pool"), CASES)
def test_plaintext_neither_comes_nor_goes_and_the_tunnel_does(
    wire: Wire, family: Family, table: str, pod: str, remote: str, node: str, pool: str
) -> None:
    assert wire.ping("pod", remote) and wire.ping("other", pod, remote), "in clear, without a guard"
    before = wire.in_clear()
    assert before > 0

    wire.run("node", "nft -f -", guard.ruleset(family, OURS, Guard(prefixes(pool), workloads=CALI)))

    assert not wire.ping("pod", remote), "a pod"
    assert not wire.ping("node", remote), "a process of the host"
    inbound, outbound = wire.refused(table)
    assert (inbound, outbound) == (0, 4)
    assert not wire.ping("other", pod, remote)
    assert wire.refused(table) == (2, 4), "what comes in clear does not reach the pod"
    assert wire.in_clear() == before, "nothing has left in clear"
    assert wire.ping("node", node) and wire.ping("pod", node), "nodes' own addresses are not guarded"
    assert wire.ping("node", pod), "nor is the way from the host to its own pods"

    wire.route_by(OURS)
    assert wire.ping("pod", remote) and wire.ping("other", pod, remote), "what the tunnel brings and takes passes"
    wire.ip("node", f"link del {OURS}")
    wire.ip("node", f"route replace {'10.42.2.0/24' if family is Family.IPV4 else 'fd00:42:2::/64'} via {node} dev eth0")
    assert not wire.ping("pod", remote), "without our interface nothing passes"
    assert wire.in_clear() == before


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun")
@pytest.mark.parametrize(("family", "table", "pod", "remote", "node", "pool"), CASES)
def test_a_prohibit_route_tells_the_pod_and_an_exempt_address_passes(
    wire: Wire, family: Family, table: str, pod: str, remote: str, node: str, pool: str
) -> None:
    wire.run("node", "nft -f -", guard.ruleset(family, OURS, Guard(prefixes(pool), workloads=CALI)))
    wire.ip("node", f"route replace prohibit {remote} metric 1")

    answer = wire.say("pod", remote)

    assert "filtered" in answer.lower() or "prohibited" in answer.lower(), answer
    assert wire.refused(table) == (0, 0), "the route has refused before the guard had to"
    wire.ip("node", f"route del prohibit {remote} metric 1")
    wire.run("node", "nft -f -", guard.ruleset(family, OURS, Guard(prefixes(pool), prefixes(remote), CALI)))
    assert wire.ping("pod", remote)
