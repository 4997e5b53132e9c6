"""Strict mode: not one packet of a pod in clear, whatever happens to the agent, the data plane, the API server or the peer.

n1 and n2 are ours and strict; n3 is a plain node, which takes and sends everything in clear. Pods ping each other all the time,
in both families and all directions, while something goes wrong. A *leak* is a packet with a pod's address that leaves n1 or n2 on
the underlay, or one that comes in clear from n3 and gets as far as a pod of theirs. Every test ends with a mesh that works.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.controller.lab import PATIENTLY, WG4, WG6, Node, may_make_namespaces
from tests.kube.lab import INNER, PODS, KubeLab, capture, make_kube_lab, pings
from tests.kube.testbed import API_SERVER, Testbed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

FROM_PLAIN = " or ".join(f"src host {address.format(3)}" for address in PODS.values())
TO_PLAIN = (1, 3), (2, 3)
ALL_WAYS = (1, 2), (2, 1), *TO_PLAIN, (3, 1), (3, 2)
HEAL_SECONDS = 40.0

Leaks = Callable[[], dict[str, list[str]]]


@pytest.fixture(scope="module")
def lab(kube: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    """The three nodes, before any agent. That leaks are seen is seen here."""
    path = tmp_path_factory.mktemp("strict")
    with make_kube_lab(path, kube, "ws", wireguardEnabled=True, wireguardEnabledV6=True) as lab:
        for number in (1, 2, 3):
            lab.add_node(number)
            lab.add_pod(number)
        lab.start_allocator(1, 2)
        lab.until_pods_meet(*ALL_WAYS)
        with watched(lab) as leaks:
            lab.until(lambda: all(leaks().values()), "what is in clear is seen everywhere")
        yield lab


@contextmanager
def watched(lab: KubeLab) -> Iterator[Leaks]:
    """Traffic in all directions, and what of it has leaked so far, by where it was seen."""
    with ExitStack() as stack:
        places = {}
        for number in (1, 2):
            places[f"sent by n{number}"] = stack.enter_context(capture(lab.nodes[number], INNER, direction="out"))
            places[f"come to n{number}'s pod"] = stack.enter_context(capture(lab.pod(number), FROM_PLAIN, direction="in"))
        stack.enter_context(pings(lab, *ALL_WAYS))
        yield lambda: {where: [packet.text for packet in packets()] for where, packets in places.items()}


def is_in_force(node: Node) -> bool:
    printed = node.run("nft", "list", "tables")
    return "table ip wgpy-guard" in printed and "table ip6 wgpy-guard" in printed


def start(lab: KubeLab, number: int) -> None:
    lab.nodes[number].start_agent("--strict")


def until_meshed(lab: KubeLab) -> None:
    lab.until_pods_meet((1, 2), (2, 1), seconds=HEAL_SECONDS)


@pytest.fixture
def mesh(lab: KubeLab) -> KubeLab:
    """n1 and n2 encrypt to each other, in both families, and refuse the rest."""
    for number in (1, 2):
        if not lab.nodes[number].processes("-m controller agent"):
            start(lab, number)
    lab.until(lambda: all(is_in_force(lab.nodes[number]) for number in (1, 2)), "strict mode is in force")
    until_meshed(lab)
    return lab


def nothing(leaks: Leaks) -> bool:
    """That nothing has leaked; shows what has."""
    seen = {where: texts[:5] for where, texts in leaks().items() if texts}
    assert seen == {}
    return True


def reboot(lab: KubeLab, number: int) -> None:
    """Lose everything that is not on disk."""
    node = lab.nodes[number]
    lab.kill_agent(number)
    lab.kill_data_plane(number)
    script = f"""
        nft flush ruleset
        ip link del {WG4}; ip link del {WG6}
        ip -4 rule del lookup 5182; ip -6 rule del lookup 5183
        ip -4 route flush table 5182; ip -6 route flush table 5183
        rm -f /var/run/wireguard/*
    """
    node.run("sh", "-c", script, check=False)
    assert node.rules() == [] and node.routes() == {} and WG4 not in node.links()


# What may happen --------------------------------------------------------------------------------------------------------


def test_from_an_agents_first_start_on(lab: KubeLab) -> None:
    """What a node sends before the first agent has ever told it otherwise, nobody can hold back."""
    for number in (1, 2):
        start(lab, number)
    lab.until(lambda: all(is_in_force(lab.nodes[number]) for number in (1, 2)), "strict mode is in force")
    time.sleep(0.1)  # what was on its way

    with watched(lab) as leaks:
        until_meshed(lab)
        assert nothing(leaks)
    ways = [(here, there) for number in (1, 2) for here, there in ((number, 3), (3, number))]
    assert not any(lab.reaches(lab.pod(here), PODS[version].format(there), "-W0.2") for here, there in ways for version in (4, 6))


def test_an_agent_that_is_killed_and_comes_back(mesh: KubeLab) -> None:
    lab = mesh
    with watched(lab) as leaks:
        lab.kill_agent(1)
        assert lab.reaches(lab.pod(1), PODS[4].format(2), PATIENTLY), "packets flow on without an agent"
        seen = len(lab.nodes[1].log)
        start(lab, 1)
        lab.until(lambda: "in the mesh" in lab.nodes[1].log[seen:], "the agent is back")
        until_meshed(lab)
        assert nothing(leaks)


@pytest.mark.long
def test_a_data_plane_that_is_killed_and_started_again_by_the_agent(mesh: KubeLab) -> None:
    lab = mesh
    with watched(lab) as leaks:
        for pid in lab.nodes[1].processes("wgpy run"):
            os.kill(pid, 9)
        time.sleep(0.5)
        until_meshed(lab)
        assert nothing(leaks)


def test_a_data_plane_that_is_started_again_without_an_agent(mesh: KubeLab) -> None:
    lab, one = mesh, mesh.nodes[1]
    with watched(lab) as leaks:
        lab.kill_agent(1)
        lab.kill_data_plane(1)
        time.sleep(0.5)
        for interface in (WG4, WG6):
            one.start(sys.executable, "-m", "wgpy", "run", interface, "--persist", "--state", str(one.state))
        until_meshed(lab)
        assert nothing(leaks)


def test_an_interface_that_is_deleted(mesh: KubeLab) -> None:
    lab, one = mesh, mesh.nodes[1]
    with watched(lab) as leaks:
        lab.kill_agent(1)
        for interface in (WG4, WG6):
            one.run("ip", "link", "del", interface)
        time.sleep(0.5)
        assert one.routes()["10.42.2.0/26"] == "prohibit" and one.routes(6)["fd00:42:2::/122"] == "prohibit"
        lab.kill_data_plane(1)
        start(lab, 1)
        until_meshed(lab)
        one.run("ip", "link", "del", WG4)  # while the agent looks on
        time.sleep(0.5)
        lab.kill_data_plane(1, f"wgpy run {WG4}")
        until_meshed(lab)
        assert nothing(leaks)


def test_an_api_server_that_hangs_and_an_agent_that_starts_meanwhile(mesh: KubeLab) -> None:
    lab, one = mesh, mesh.nodes[1]
    lab.until(lambda: str(one.key()) in (one.state / "objects.json").read_text(), "the cluster is remembered", seconds=20)
    with watched(lab) as leaks:
        lab.kube.stop(API_SERVER)
        try:
            time.sleep(1.0)
            lab.kill_agent(1)
            start(lab, 1)
            time.sleep(3.0)
            assert lab.reaches(lab.pod(1), PODS[4].format(2), PATIENTLY)
        finally:
            lab.kube.go_on(API_SERVER)
        until_meshed(lab)
        assert nothing(leaks)


@pytest.mark.long
def test_a_reboot_while_the_api_server_hangs(mesh: KubeLab) -> None:
    """Nothing is in the kernel and nobody to ask: the last known state on disk has it all."""
    lab, one = mesh, mesh.nodes[1]
    lab.until(lambda: str(one.key()) in (one.state / "objects.json").read_text(), "the cluster is remembered", seconds=20)
    lab.kube.stop(API_SERVER)
    try:
        reboot(lab, 1)
        with watched(lab) as leaks:
            time.sleep(0.3)
            assert leaks()["sent by n1"] and leaks()["come to n1's pod"], "nothing holds it back yet"
        start(lab, 1)
        lab.until(lambda: is_in_force(one), "strict mode is in force")
        time.sleep(0.1)
        with watched(lab) as leaks:
            until_meshed(lab)
            assert nothing(leaks)
    finally:
        lab.kube.go_on(API_SERVER)


@pytest.mark.long
def test_a_boot_with_the_guard_that_was_kept(mesh: KubeLab) -> None:
    """wgpy-guard.service loads it before the kubelet starts. nft is all it needs: no agent, no interface, no route."""
    lab, one = mesh, mesh.nodes[1]
    reboot(lab, 1)
    one.run("nft", "-f", str(one.state / "guard.nft"))
    with watched(lab) as leaks:
        time.sleep(0.5)
        assert nothing(leaks)
        start(lab, 1)
        until_meshed(lab)
        assert nothing(leaks)


@pytest.mark.long
def test_a_peer_that_loses_its_key_or_its_node(mesh: KubeLab) -> None:
    lab, one = mesh, mesh.nodes[1]
    manifest = lab.nodes[2].manifest()
    with watched(lab) as leaks:
        lab.kill_agent(2)
        lab.annotate(2, WireguardPublicKey=None, WireguardPublicKeyV6=None)
        lab.until(lambda: (one.peers(), one.peers(WG6)) == ({}, {}), "n1 has no peer")
        assert one.routes()["10.42.2.0/26"] == "prohibit" and one.routes(6)["fd00:42:2::/122"] == "prohibit"
        lab.remove("Node", "n2")
        time.sleep(0.5)
        lab.remove("IPAMBlock", "10-42-2-0-26")
        time.sleep(0.5)
        assert not lab.reaches(lab.pod(1), PODS[4].format(2))

        metadata = {"name": "n2", "annotations": {name: value for name, value in manifest["metadata"]["annotations"].items()}}
        lab.put({"kind": "Node", "metadata": metadata})
        lab.put_blocks(2)
        lab.kubeconfigs.pop("n2")  # its token is bound to a Node that is gone
        start(lab, 2)
        until_meshed(lab)
        assert nothing(leaks)


@pytest.mark.long
def test_a_node_that_leaves_is_strict_no_more_and_the_others_refuse_it(mesh: KubeLab) -> None:
    lab, one = mesh, mesh.nodes[1]
    lab.kill_agent(1)
    with watched(lab) as leaks:
        left = one.run_agent(verb="leave")
        assert left.returncode == 0, left.stderr
        assert not (one.state / "guard.nft").exists(), "at the next boot neither"
        assert not (one.state / "objects.json").exists(), "nor does an agent rejoin that finds no API server"
        time.sleep(0.5)
        seen = leaks()
        assert seen["sent by n1"] and seen["come to n1's pod"], "it wants no part of it"
        assert not seen["sent by n2"] and not seen["come to n2's pod"]
        assert lab.reaches(lab.pod(1), PODS[4].format(3), PATIENTLY) and not lab.reaches(lab.pod(1), PODS[4].format(2), "-W0.2")


def test_a_key_that_is_changed(mesh: KubeLab) -> None:
    lab, one = mesh, mesh.nodes[1]
    before = one.key(), one.key(6)
    with watched(lab) as leaks:
        lab.kill_agent(1)
        for name in ("ipv4.key", "ipv6.key"):
            (one.state / name).unlink()
        start(lab, 1)
        lab.until(lambda: one.key() != before[0] and one.key(6) != before[1], "n1 has other keys")
        until_meshed(lab)
        assert nothing(leaks)
