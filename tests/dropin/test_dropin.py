"""wgpy in the place of a kernel interface, under agents that configure WireGuard through Go's wgctrl.

The program in ``program/`` does what it is told with the library those agents use. *What* they do is told here: Antrea's
agent (``pkg/agent/wireguard/client_linux.go``) takes the interface as it finds it and changes one peer at a time; Kilo's
(``pkg/mesh``, ``pkg/wireguard/conf.go``) writes the whole configuration, reads it back, and writes it again if what it reads
is not what it wrote. Everything is asked of wireguard-go too: what one answers, the other has to.
"""

import errno
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from controller.demo.topology import Node
from noise.crypto import clamp, public_key
from tests.dropin.conftest import Agent
from tests.e2e.lab import FAMILIES, PORT, DataPlane, has_interface, ping, wait_for

NAME = "antrea-wg0"
KILO = "kilo0"
NO_KEY = b64encode(bytes(32)).decode()
LAST_RESORT = 60.0
"""Seconds for what includes a handshake with a peer that still believes in an old session."""


def new_key() -> str:
    return b64encode(clamp(os.urandom(32))).decode()


def public(private: str) -> str:
    return b64encode(public_key(b64decode(private))).decode()


def pod_cidrs(number: int) -> list[str]:
    return [f"10.42.{number}.0/24", f"fd42:0:0:{number}::/64"][: len(FAMILIES)]


def gateway(number: int, version: int = 4) -> str:
    """The address Antrea gives the interface: that of the node's gateway, alone."""
    return f"10.42.{number}.1" if version == 4 else f"fd42:0:0:{number}::1"


def gateways(number: int) -> list[str]:
    return [f"{gateway(number, version)}/{32 if version == 4 else 128}" for version in FAMILIES]


@pytest.fixture(params=["wgpy", "wireguard-go"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "wireguard-go":
        request.getfixturevalue("wireguard_go_path")
    return str(request.param)


@pytest.fixture
def node(nodes: tuple[Node, Node]) -> Node:
    return nodes[0]


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Takes what is to be stopped in the end."""
    with ExitStack() as stack:
        yield stack


def start_plane(running: ExitStack, kind: str, node: Node, name: str = NAME) -> DataPlane:
    plane = DataPlane.start(kind, node, name)
    running.callback(plane.stop)
    plane.wait_until_ready()
    return plane


def start_agent(running: ExitStack, program: str, node: Node) -> Agent:
    agent = Agent.start(program, node)
    running.callback(agent.stop)
    return agent


# What Antrea's agent does ----------------------------------------------------------------------------------------------


def antrea_starts(agent: Agent, number: int) -> str:
    """Takes the link, its key or a new one, and gives the public key, which it would write to its Node."""
    agent.do("link", name=NAME, addresses=gateways(number))
    found = agent.device(NAME)["private_key"]
    private = new_key() if found == NO_KEY else found
    agent.configure(NAME, private_key=private, listen_port=PORT)
    return public(private)


def antrea_peer(key: str, number: int, address: str | None = None) -> dict[str, Any]:
    endpoint = f"{address or f'10.77.0.{number}'}:{PORT}"
    return {"public_key": key, "endpoint": endpoint, "replace_allowed_ips": True, "allowed_ips": pod_cidrs(number)}


def antrea_routes(node: Node, own: int, other: int) -> None:
    node.configure(
        links=[f"route add {cidr} dev {NAME} src {gateway(own, ip_network(cidr).version)}" for cidr in pod_cidrs(other)]
    )


# The link ----------------------------------------------------------------------------------------------------------------


def test_a_link_that_is_there_counts_as_the_agents_own(program: str, node: Node, kind: str, running: ExitStack) -> None:
    """The kernel answers EEXIST, which Antrea's agent takes for success; iproute2 says what the kernel said."""
    start_plane(running, kind, node)
    agent = start_agent(running, program, node)

    answer = agent.do("link", name=NAME, addresses=gateways(1))

    assert answer["created"] is False
    assert f"inet {gateways(1)[0]}" in node.run(["ip", "address", "show", "dev", NAME]).stdout
    refused = node.run(["ip", "link", "add", NAME, "type", "wireguard"], check=False)
    assert (refused.returncode, refused.stderr.strip()) == (2, "RTNETLINK answers: File exists")


def test_without_one_a_kernel_that_lacks_wireguard_says_so(program: str, node: Node, running: ExitStack) -> None:
    """EOPNOTSUPP: what an operator sees of Antrea's agent where wgpy did not come first."""
    if node.run(["ip", "link", "add", "kernel0", "type", "wireguard"], check=False).returncode == 0:
        pytest.skip("this kernel has WireGuard: nothing needs to take its place")
    agent = start_agent(running, program, node)

    answer = agent.ask("link", name=NAME)

    assert answer["errno"] == errno.EOPNOTSUPP
    assert not has_interface(node, NAME)


def test_devices_are_found_by_name_and_by_looking(program: str, node: Node, kind: str, running: ExitStack) -> None:
    start_plane(running, kind, node)
    start_plane(running, kind, node, KILO)
    agent = start_agent(running, program, node)

    assert sorted(agent.do("devices")["devices"]) == [NAME, KILO]
    assert agent.device(NAME)["type"] == "userspace"
    assert agent.ask("device", name="wg7")["error"] == "file does not exist"


# Antrea ------------------------------------------------------------------------------------------------------------------


def test_antrea_makes_a_key_once_and_finds_it_again(program: str, node: Node, kind: str, running: ExitStack) -> None:
    start_plane(running, kind, node)
    first = start_agent(running, program, node)
    assert first.device(NAME)["private_key"] == NO_KEY

    key = antrea_starts(first, 1)
    again = antrea_starts(start_agent(running, program, node), 1)

    assert again == key
    device = first.device(NAME)
    assert (device["public_key"], device["listen_port"], device["peers"]) == (key, PORT, [])


def test_antrea_changes_one_peer_at_a_time(program: str, node: Node, kind: str, running: ExitStack) -> None:
    start_plane(running, kind, node)
    agent = start_agent(running, program, node)
    antrea_starts(agent, 1)
    old, new, other = (public(new_key()) for _ in range(3))

    agent.configure(NAME, peers=[antrea_peer(old, 2)])
    agent.configure(NAME, peers=[antrea_peer(other, 3)])
    assert {key: sorted(peer["allowed_ips"]) for key, peer in agent.peers(NAME).items()} == {
        old: pod_cidrs(2),
        other: pod_cidrs(3),
    }
    agent.configure(NAME, peers=[antrea_peer(old, 2, "10.77.0.9") | {"allowed_ips": ["10.42.9.0/24"]}])
    changed = agent.peers(NAME)[old]
    assert (changed["endpoint"], changed["allowed_ips"]) == (f"10.77.0.9:{PORT}", ["10.42.9.0/24"])
    agent.configure(NAME, peers=[{"public_key": old, "remove": True}])  # its node has a new key
    agent.configure(NAME, peers=[antrea_peer(new, 2)])
    agent.configure(NAME, peers=[{"public_key": old, "remove": True}])  # once more, as its agent may

    assert set(agent.peers(NAME)) == {new, other}


def test_antreas_nodes_reach_each_other(program: str, nodes: tuple[Node, Node], kind: str, running: ExitStack) -> None:
    """wgpy on one node, and on the other one wgpy or wireguard-go. What wgctrl reads says what went over the wire."""
    agents = []
    for node, each in zip(nodes, ("wgpy", kind), strict=True):
        start_plane(running, each, node)
        agents.append(start_agent(running, program, node))
    keys = [antrea_starts(agent, number) for number, agent in enumerate(agents, start=1)]
    for number in (1, 2):
        agents[number - 1].configure(NAME, peers=[antrea_peer(keys[2 - number], 3 - number)])
        antrea_routes(nodes[number - 1], number, 3 - number)

    for version in FAMILIES:
        assert ping(nodes[0], gateway(2, version), count=5) == 5

    seen = [agent.peers(NAME)[key] for agent, key in zip(agents, reversed(keys), strict=True)]
    assert (seen[0]["transmit_bytes"], seen[0]["receive_bytes"]) == (seen[1]["receive_bytes"], seen[1]["transmit_bytes"])
    assert seen[0]["receive_bytes"] >= 92 + len(FAMILIES) * 5 * 128
    assert all(0 <= time.time() - peer["handshake_time"] < 30 for peer in seen)
    assert all(peer["protocol_version"] == 1 for peer in seen)


def test_with_a_state_directory_key_and_peers_outlive_the_process(
    program: str, nodes: tuple[Node, Node], running: ExitStack, tmp_path: Path
) -> None:
    """Antrea's agent looks at the key at its own start only. Were another key there after a crash, the node would be cut off
    until somebody restarts the agent."""
    plane = start_with_state(running, nodes[0], tmp_path)
    start_plane(running, "wgpy", nodes[1])
    agents = [start_agent(running, program, node) for node in nodes]
    keys = [antrea_starts(agent, number) for number, agent in enumerate(agents, start=1)]
    for number in (1, 2):
        agents[number - 1].configure(NAME, peers=[antrea_peer(keys[2 - number], 3 - number)])
        antrea_routes(nodes[number - 1], number, 3 - number)
    assert ping(nodes[1], gateway(1), count=2) == 2
    before = agents[0].device(NAME)

    plane.process.kill()
    plane.process.wait()
    assert has_interface(nodes[0], NAME)
    assert agents[0].ask("device", name=NAME)["error"]
    start_with_state(running, nodes[0], tmp_path)

    after = agents[0].device(NAME)
    assert after["private_key"] == before["private_key"] != NO_KEY
    assert [peer["allowed_ips"] for peer in after["peers"]] == [peer["allowed_ips"] for peer in before["peers"]]
    wait_for(lambda: ping(nodes[1], gateway(1), count=1, patience=1) == 1, "packets go again", LAST_RESORT)


def start_with_state(running: ExitStack, node: Node, directory: Path) -> DataPlane:
    """As a service does it, or a container beside the agent's."""
    plane = DataPlane.run(node, "--state", str(directory), "--persist", name=NAME)
    running.callback(plane.stop)
    plane.wait_until_ready()
    return plane


# Kilo --------------------------------------------------------------------------------------------------------------------


def kilo_configuration(private: str, *peers: dict[str, Any]) -> dict[str, Any]:
    whole = {"preshared_key": NO_KEY, "endpoint": None, "keepalive": 0, "replace_allowed_ips": True}
    return {
        "private_key": private,
        "listen_port": PORT,
        "replace_peers": True,
        "peers": [whole | peer for peer in peers],
    }


def kilo_sees(device: dict[str, Any]) -> dict[str, Any]:
    """What Kilo compares: the order of peers and of prefixes is nothing to it."""
    fields = ("public_key", "preshared_key", "endpoint", "keepalive")
    peers = [{name: peer[name] for name in fields} | {"allowed_ips": sorted(peer["allowed_ips"])} for peer in device["peers"]]
    return {
        "private_key": device["private_key"],
        "listen_port": device["listen_port"],
        "peers": sorted(peers, key=lambda peer: str(peer["public_key"])),
    }


def test_kilo_reads_what_it_has_written(program: str, node: Node, kind: str, running: ExitStack) -> None:
    """Or it would write everything again at each of its rounds, and end every session."""
    start_plane(running, kind, node, KILO)
    agent = start_agent(running, program, node)
    segment = {"public_key": public(new_key()), "endpoint": f"10.77.0.2:{PORT}", "allowed_ips": ["10.4.0.2/32", *pod_cidrs(2)]}
    over_ipv6 = {"public_key": public(new_key()), "endpoint": "[2001:db8::7]:7", "keepalive": 25, "allowed_ips": ["10.4.0.3/32"]}
    outsider = {"public_key": public(new_key()), "preshared_key": new_key(), "allowed_ips": ["10.5.0.1/32", "fd05::1/128"]}
    idle = {"public_key": public(new_key()), "allowed_ips": []}
    wanted = kilo_configuration(new_key(), segment, over_ipv6, outsider, idle)

    agent.configure(KILO, private_key=new_key(), peers=[{"public_key": public(new_key()), "allowed_ips": ["10.4.0.2/32"]}])
    agent.configure(KILO, **wanted)

    assert kilo_sees(agent.device(KILO)) == kilo_sees(wanted)
    agent.configure(KILO, **kilo_configuration(wanted["private_key"], outsider))
    assert set(agent.peers(KILO)) == {outsider["public_key"]}


def test_kilo_learns_where_a_peer_behind_nat_is(program: str, nodes: tuple[Node, Node], kind: str, running: ExitStack) -> None:
    """A peer without an endpoint speaks first; its endpoint is then read, for Kilo to tell the other nodes."""
    private = [new_key(), new_key()]
    agents = []
    for number, node in enumerate(nodes, start=1):
        start_plane(running, kind if number == 1 else "wgpy", node, KILO)
        agents.append(start_agent(running, program, node))
        agents[-1].do("link", name=KILO, addresses=[f"10.4.0.{number}/16"])
    speaker = {"public_key": public(private[0]), "endpoint": f"10.77.0.1:{PORT}", "keepalive": 1, "allowed_ips": ["10.4.0.1/32"]}
    key = public(private[1])
    silent = {"public_key": key, "allowed_ips": ["10.4.0.2/32"]}
    agents[0].configure(KILO, **kilo_configuration(private[0], silent))
    assert agents[0].peers(KILO)[key]["endpoint"] is None

    agents[1].configure(KILO, **(kilo_configuration(private[1], speaker) | {"listen_port": 40001, "fwmark": 0}))

    def learnt() -> object:
        return agents[0].peers(KILO)[key]["endpoint"]

    assert wait_for(learnt, "the endpoint is learnt") == "10.77.0.2:40001"
    # The endpoint is learnt from the initiation; the handshake is over with what comes after it.
    wait_for(lambda: agents[0].peers(KILO)[key]["handshake_time"] > time.time() - 30, "the handshake is over")


# Both --------------------------------------------------------------------------------------------------------------------


def test_a_firewall_mark_is_set_and_cleared(program: str, node: Node, kind: str, running: ExitStack) -> None:
    start_plane(running, kind, node)
    agent = start_agent(running, program, node)

    agent.configure(NAME, fwmark=0x1337)
    assert agent.device(NAME)["fwmark"] == 0x1337
    agent.configure(NAME, fwmark=0)
    assert agent.device(NAME)["fwmark"] == 0


def test_a_peer_that_is_not_there_is_not_made_by_an_update(program: str, node: Node, kind: str, running: ExitStack) -> None:
    start_plane(running, kind, node)
    agent = start_agent(running, program, node)

    agent.configure(NAME, peers=[{"public_key": public(new_key()), "update_only": True, "keepalive": 5}])

    assert agent.peers(NAME) == {}


@pytest.mark.usefixtures("wireguard_go_path")
def test_a_refusal_reaches_the_agent_as_wireguard_go_words_it(program: str, nodes: tuple[Node, Node], running: ExitStack) -> None:
    """A port that is taken: the agents log the text."""
    said = []
    for node, each in zip(nodes, ("wgpy", "wireguard-go"), strict=True):
        start_plane(running, each, node)
        start_plane(running, each, node, KILO)
        agent = start_agent(running, program, node)
        agent.configure(KILO, listen_port=PORT)
        node.configure(links=[f"link set {NAME} up", f"link set {KILO} up"])
        said.append(agent.ask("configure", name=NAME, config={"private_key": new_key(), "listen_port": PORT}))

    assert said[0] == said[1]
    assert f"errno={-errno.EADDRINUSE}" in said[0]["error"], said


def test_a_large_mesh_goes_through_in_one_call(program: str, node: Node, kind: str, running: ExitStack) -> None:
    """1,000 nodes, as Kilo writes them."""
    start_plane(running, kind, node, KILO)
    agent = start_agent(running, program, node)
    peers = [
        {
            "public_key": b64encode(number.to_bytes(2) + bytes(30)).decode(),
            "endpoint": f"10.77.{number >> 8}.{number & 255}:{PORT}",
            "allowed_ips": [f"10.{64 + (number >> 8)}.{number & 255}.0/24"],
        }
        for number in range(1, 1001)
    ]
    wanted = kilo_configuration(new_key(), *peers)

    agent.configure(KILO, **wanted)

    assert kilo_sees(agent.device(KILO)) == kilo_sees(wanted)
