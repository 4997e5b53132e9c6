"""wg-quick with wgpy as its userspace implementation, with the routes it lays for everything (Table = auto, 0.0.0.0/0)."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

import pytest

from controller.demo.capture import Capture
from controller.demo.topology import Interface, Node, Topology, TopologyError
from noise.crypto import clamp, public_key
from tests.e2e.lab import FAMILIES, PORT, flood, node_addresses, ping, processes_in, wait_for
from tests.e2e.wire import TRANSPORT, datagrams, messages, seen_in_clear
from wgpy.wgconf import format_key

MARKER = b"wg-quick in clear"[:16]


@pytest.fixture(scope="module", autouse=True)
def can_wg_quick(need_wg: None) -> None:
    for command in ("wg-quick", "bash", "nft", "sysctl"):
        if shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{command} is not installed: run make setup")
    if Path("/sys/module/wireguard").exists():
        pytest.skip("this kernel has WireGuard, and wg-quick will not look for another")


@dataclass
class Host:
    """A node that wg-quick is to configure."""

    node: Node
    directory: Path
    private_key: bytes

    def __post_init__(self) -> None:
        self.directory.mkdir()
        shim = self.directory / "wgpy"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m wgpy "$@"\n')
        shim.chmod(0o755)

    def write(self, addresses: Mapping[int, Interface], *lines: str) -> None:
        own = ", ".join(str(addresses[version]) for version in FAMILIES)
        interface = f"[Interface]\nPrivateKey = {format_key(self.private_key)}\nAddress = {own}\n"
        path = self.directory / "wgq.conf"
        path.write_text(interface + "\n".join(lines) + "\n")
        path.chmod(0o600)

    def wg_quick(self, verb: str, implementation: str = "wgpy") -> str:
        env = [
            f"PATH={self.directory}:{os.environ['PATH']}:/usr/sbin:/sbin",
            f"WG_QUICK_USERSPACE_IMPLEMENTATION={implementation}",
        ]
        return self.node.run(["env", *env, "wg-quick", verb, str(self.directory / "wgq.conf")]).stderr

    def state(self) -> str:
        """Everything of this node that wg-quick might change."""
        commands = [
            "ip -br link",
            "ip -4 rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
            "nft list ruleset",
        ]
        return self.node.run(["sh", "-c", "; ".join(commands)]).stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Topology, Host, Host]]:
    with Topology.create() as topology:
        one, two = (topology.add_node(f"n{number}", node_addresses(number)) for number in (1, 2))
        client, server = (Host(node, tmp_path / node.key, clamp(os.urandom(32))) for node in (one, two))
        yield topology, client, server


SERVER = {4: ip_interface("10.99.0.1/24"), 6: ip_interface("fd99::1/64")}
CLIENT = {4: ip_interface("10.99.0.2/24"), 6: ip_interface("fd99::2/64")}
FAR = {4: ip_interface("10.123.4.5/32"), 6: ip_interface("fd12:3::5/128")}
"""Behind the server: only a default route leads there, the one into the tunnel."""
PUBLIC = ip_interface("198.51.100.1/32")
"""The server's outer address: only a default route leads there, the one that is *not* into the tunnel."""


def test_wg_quick_routes_everything_through_wgpy_and_takes_it_all_back(hosts: tuple[Topology, Host, Host]) -> None:
    """Stage 17 of netns.sh: the client's own encrypted packets must not go into the tunnel again."""
    topology, client, server = hosts
    server.node.configure(links=[f"addr add {PUBLIC} dev lo", *(f"addr add {FAR[version]} dev lo" for version in FAMILIES)])
    client.node.configure(links=[f"route replace default via {server.node.address(4)} dev eth0"])
    server.write(
        SERVER,
        f"ListenPort = {PORT}",
        f"[Peer]\nPublicKey = {format_key(public_key(client.private_key))}",
        f"AllowedIPs = {', '.join(str(CLIENT[version].ip) for version in FAMILIES)}",
    )
    client.write(
        CLIENT,
        f"[Peer]\nPublicKey = {format_key(public_key(server.private_key))}",
        f"Endpoint = {PUBLIC.ip}:{PORT}",
        "AllowedIPs = 0.0.0.0/0" + ", ::/0" * (6 in FAMILIES),
    )
    before = client.state(), server.state()

    said = server.wg_quick("up") + client.wg_quick("up")

    assert "[#] wgpy wgq" in said
    assert client.node.run(["wg", "show", "wgq", "fwmark"]).stdout == "0xca6c\n"
    assert "not from all fwmark 0xca6c lookup 51820" in client.state()
    with Capture(topology.underlay.name) as capture:
        for version in FAMILIES:
            assert flood(client.node, SERVER[version].ip, "-p", MARKER.hex(), count=100) == 100
            assert ping(client.node, FAR[version].ip, "-p", MARKER.hex(), count=2) == 2
    pairs = [(CLIENT[version].ip, far[version].ip) for version in FAMILIES for far in (SERVER, FAR)]
    assert seen_in_clear(capture.frames, pairs, MARKER) == 0
    assert len(list(messages(capture.frames, TRANSPORT))) >= 204 * len(FAMILIES)
    assert {one.destination_port for one in datagrams(capture.frames) if one.destination == PUBLIC.ip} == {PORT}

    for host in (client, server):
        host.wg_quick("down")
        wait_for(lambda node=host.node: not processes_in(node), "wgpy ends")  # type: ignore[misc]
        assert list(host.node.wireguard_directory.iterdir()) == []
    assert (client.state(), server.state()) == before


def test_wg_quick_saves_what_was_set_meanwhile(hosts: tuple[Topology, Host, Host]) -> None:
    _, host, other = hosts
    host.write(SERVER, "SaveConfig = true", f"ListenPort = {PORT}")
    host.wg_quick("up")
    key = format_key(public_key(other.private_key))
    host.node.run(["wg", "set", "wgq", "peer", key, "allowed-ips", "10.99.0.7/32"])

    host.wg_quick("down")

    saved = (host.directory / "wgq.conf").read_text()
    assert f"[Peer]\nPublicKey = {key}\nAllowedIPs = 10.99.0.7/32\n" in saved
    assert f"PrivateKey = {format_key(host.private_key)}\n" in saved


def test_wg_quick_leaves_nothing_when_wgpy_cannot_start(hosts: tuple[Topology, Host, Host]) -> None:
    _, host, _ = hosts
    host.write(SERVER, f"ListenPort = {PORT}", "[Peer]", "PublicKey = nonsense")
    before = host.state()

    with pytest.raises(TopologyError):
        host.wg_quick("up")

    wait_for(lambda: not processes_in(host.node), "wgpy ends")
    assert host.state() == before
    assert list(host.node.wireguard_directory.iterdir()) == []
