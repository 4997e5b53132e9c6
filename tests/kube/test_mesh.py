"""The agent on a real API server: who switches the mesh on, who joins it, who leaves it, and how long each takes.

Three nodes: n1 is ours, with the rights that are shipped and a token bound to its Node; n2 has WireGuard and a Felix that drives
it; n3 has neither, and is talked to in clear. Times are those of the wire: from the wall clock before a command to tcpdump's time
of the first datagram with a pod's packet in it.
"""

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.controller.cluster import Manifest, block, node, pool
from tests.controller.lab import PATIENTLY, WG4, WG6, may_make_namespaces
from tests.kube.client import Client
from tests.kube.felix import RESTART_SECONDS, Felix
from tests.kube.lab import INNER, INTERFACES, PODS, UNDERLAY, KubeLab, Packet, Ping, capture, make_kube_lab, pings, transport_data
from tests.kube.testbed import Testbed
from tests.peers import wireguard_go
from tests.promises import Promises

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

PATCH = "kubectl patch felixconfiguration default --type='merge' -p '{\"spec\":{%s}}'"
FIELDS = {4: '"wireguardEnabled"', 6: '"wireguardEnabledV6"'}
KEYS = {4: "WireguardPublicKey", 6: "WireguardPublicKeyV6"}
ADDRESSES = {4: "IPv4WireguardInterfaceAddr", 6: "IPv6WireguardInterfaceAddr"}
SHOW = "kubectl get nodes -o yaml | grep annotation -A 5"

ON_SECONDS = 3.0
TRAFFIC_SECONDS = 1.0
REPAIR_SECONDS = 3.0

KERNEL_OR_DEVICE = re.compile(r"nlmsg_|AF_NETLINK|sun_path|execve\(")
"""How strace shows that the agent asks the kernel's network, a data plane, or starts a program that does."""

samples = pytest.mark.parametrize("count", [5, pytest.param(30, marks=pytest.mark.long)])


@pytest.fixture(scope="module")
def three(kube: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    """The three nodes with a pod on each, and WireGuard off."""
    with make_kube_lab(tmp_path_factory.mktemp("three"), kube, "wk") as lab:
        for number in (1, 2, 3):
            lab.add_node(number)
            lab.add_pod(number)
        lab.start_allocator(1, 2)
        lab.start_felix(2)
        lab.nodes[1].start_agent()
        lab.until(lambda: "not enabled in FelixConfiguration" in lab.nodes[1].log, "the agent waits")
        lab.until_pods_meet((1, 2), (1, 3), (2, 3))
        yield lab


@pytest.fixture
def meshed(three: KubeLab) -> KubeLab:
    """The three nodes, with both families on."""
    if not three.nodes[1].processes("-m controller agent"):
        three.nodes[1].start_agent()
    three.typed(patch("true", 4, 6))
    until_encrypted(three, 4, 6)
    three.until(lambda: three.nodes[1].link(WG4)[2] and three.nodes[1].link(WG6)[2], "interface addresses")
    return three


def patch(value: str, *versions: int) -> str:
    """What an operator types."""
    return PATCH % ",".join(f"{FIELDS[version]}:{value}" for version in versions)


def is_encrypted(lab: KubeLab, *versions: int) -> bool:
    """Whether the pods of n1 and n2 meet, and none of it is seen in clear."""
    with capture(lab.nodes[1], f"({INNER}) and not net 10.42.3.0/26 and not net fd00:42:3::/122") as inner:
        return all(lab.reaches(lab.pod(1), PODS[version].format(2)) for version in versions) and not inner()


def until_encrypted(lab: KubeLab, *versions: int) -> None:
    """Both send: who speaks to a node that does not know it yet is not heard, and tries again after five seconds only."""
    with pings(lab, (2, 1), versions=versions):
        lab.until(lambda: is_encrypted(lab, *versions), "the pods of n1 and n2 to meet in the tunnel")


def annotations(lab: KubeLab, number: int) -> dict[str, str]:
    found: dict[str, str] = lab.nodes[number].manifest()["metadata"]["annotations"]
    return found


def lost(traffic: list[Ping]) -> dict[str, list[int]]:
    """What was not answered, by who asked whom."""
    return {each.what: numbers for each in traffic if (numbers := each.lost())}


# Switching on and off ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)], ids=["IPv4", "IPv6", "both"])
def test_one_command_switches_the_mesh_on_and_the_same_switches_it_off(
    three: KubeLab, versions: tuple[int, ...], promises: Promises
) -> None:
    lab = three
    lab.until(lambda: not any(KEYS[4] in name for number in (1, 2) for name in annotations(lab, number)), "all is off")
    before = {number: annotations(lab, number) for number in (1, 2, 3)}

    with pings(lab, (1, 3), (3, 1)) as plain:
        with pings(lab, (1, 2), (2, 1), versions=versions, interval=0.01):
            seconds = seconds_to_encrypt(lab, versions, lambda: lab.typed(patch("true", *versions)))
        until_encrypted(lab, *versions)
        assert lost(plain) == {}, "the node without WireGuard is talked to in clear, all the time"
    slowest = max(seconds.values())
    name = " and ".join(f"IPv{version}" for version in versions)
    promises.judge(f"kubectl patch to the first encrypted pod packet on every node, {name}", slowest, ON_SECONDS)
    printed = lab.typed(SHOW)  # six annotations of which grep shows five
    assert len(re.findall(rf"projectcalico.org/{KEYS[versions[0]]}: \S", printed)) == 2, printed
    for number in (1, 2):
        published = {version for version in (4, 6) if f"projectcalico.org/{KEYS[version]}" in annotations(lab, number)}
        assert published == set(versions)
    assert annotations(lab, 3) == before[3]

    lab.typed(patch("false", *versions))

    one = lab.nodes[1]
    lab.until(lambda: not any(one.rules(version) or one.routes(version) for version in versions), "nothing is left")
    lab.until_pods_meet((1, 2), (2, 1), versions=versions)
    lab.until(lambda: not is_encrypted(lab, *versions), "what is in clear is seen")
    lab.until(lambda: all(annotations(lab, number) == before[number] for number in (1, 2)), "the Nodes are as they were")


def seconds_to_encrypt(lab: KubeLab, versions: tuple[int, ...], act: Callable[[], object]) -> dict[str, float]:
    """From before ``act`` to the first packet of a pod that n1, and n2, sends encrypted."""
    with ExitStack() as stack:
        captures: dict[str, Callable[[], list[Packet]]] = {}
        for version in versions:
            for number in (1, 2):
                expression = transport_data(version, f"src host {UNDERLAY[version].format(number)}")
                captures[f"n{number} IPv{version}"] = stack.enter_context(capture(lab.nodes[number], expression))
        began = time.time()
        act()
        for who, packets in captures.items():
            lab.until(packets, f"{who} to encrypt")
        return {who: packets()[0].time - began for who, packets in captures.items()}


# Joining ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def newcomer(meshed: KubeLab) -> Iterator[Manifest]:
    """A fourth node, with a device that is ready for n1 and a pod, of which the cluster has not heard; its Node."""
    lab = meshed
    four = lab.nodes.get(4) or lab.add_node(4)
    if lab.pod(4) not in lab.pods:
        lab.add_pod(4)
    lab.remove("Node", "n4")
    lab.remove("IPAMBlock", "10-42-4-0-26")
    process = four.start(wireguard_go(), "-f", WG4)
    lab.until(lambda: WG4 in four.run("wg", "show", "interfaces"), "its device")
    key = f"{WG4}.key"
    script = f"""
        wg genkey >{lab.path}/{key}
        wg set {WG4} private-key {lab.path}/{key} listen-port 51820
        wg set {WG4} peer {lab.nodes[1].key()} allowed-ips 10.42.1.0/26
        ip link set {WG4} up
        ip route replace 10.42.1.0/26 dev {WG4}
    """
    four.run("sh", "-ec", script)
    public_key = four.run("wg", "show", WG4, "public-key").strip()
    lab.until(lambda: "10.42.4.0/26" not in lab.nodes[1].routes(), "n4's block is gone")
    yield node("n4", UNDERLAY[4].format(4) + "/24", {f"projectcalico.org/{KEYS[4]}": public_key})
    process.terminate()
    process.wait(10)
    lab.remove("Node", "n4")
    lab.remove("IPAMBlock", "10-42-4-0-26")


@samples
def test_a_new_node_and_a_new_block_have_traffic_within_a_second(
    meshed: KubeLab, newcomer: Manifest, count: int, promises: Promises
) -> None:
    lab, blocks = meshed, block("10.42.4.0/26", "n4")
    key = newcomer["metadata"]["annotations"][f"projectcalico.org/{KEYS[4]}"]
    one = lab.nodes[1]
    of_nodes, of_blocks = [], []
    expression = transport_data(4, f"src host {UNDERLAY[4].format(1)} and dst host {UNDERLAY[4].format(4)}")

    with pings(lab, (1, 4), versions=(4,), interval=0.005):
        for number in range(count):
            lab.put(blocks)
            lab.until(lambda: one.routes().get("10.42.4.0/26") == "throw", "nobody's block")
            of_nodes.append(seconds_to(lab, expression, lambda: lab.put(newcomer)))
            lab.remove("IPAMBlock", blocks["metadata"]["name"])
            lab.until(lambda: "10.42.4.0/26" not in one.routes(), "no block")
            time.sleep(0.01 * number)  # at any time of the agent's turn
            of_blocks.append(seconds_to(lab, expression, lambda: lab.put(blocks)))
            lab.remove("Node", "n4")
            lab.until(lambda: key not in one.peers(), "n4 is gone")

    for what, found in (("Node", of_nodes), ("IPAM block", of_blocks)):
        promises.judge(f"new {what} to its traffic, longest of {count}", max(found), TRAFFIC_SECONDS)


def seconds_to(lab: KubeLab, expression: str, act: Callable[[], object]) -> float:
    with capture(lab.nodes[1], expression, direction="out") as packets:
        assert packets() == []
        began = time.time()
        act()
        lab.until(packets, "the first packet")
        return packets()[0].time - began


# What costs nothing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def traced(pid: int, path: Path) -> Iterator[Callable[[], list[str]]]:
    """What a process asks of the kernel's network, of data planes and of other programs meanwhile."""
    words = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,execve", "-o", str(path), "-p", str(pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as strace:
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/status").read_text().partition("TracerPid:\t")[2][:2] == "0\n":
            assert time.monotonic() < deadline and strace.poll() is None, "strace does not start"
            time.sleep(0.02)
        try:
            yield lambda: [line for line in path.read_text().splitlines() if KERNEL_OR_DEVICE.search(line)]
        finally:
            strace.kill()  # SIGTERM waits for each of its processes to stop, and one that forks does not: for good


def test_what_does_not_concern_us_costs_no_call_to_the_kernel_or_the_device(meshed: KubeLab, tmp_path: Path) -> None:
    lab = meshed
    (pid,) = lab.nodes[1].processes("-m controller agent")
    image = {"names": ["image@sha256:" + "0" * 64], "sizeBytes": 1}
    lab.put(block("10.42.77.0/26", "n3"))
    lab.until(lambda: "10.42.77.0/26" in lab.nodes[1].routes(), "a pass just now, so that none is due")
    time.sleep(1.0)

    with traced(pid, tmp_path / "trace") as calls:
        for number in range(10):
            for name in ("n1", "n2", "n3"):
                body = {"metadata": {"labels": {"turn": str(number)}, "annotations": {"example.com/turn": str(number)}}}
                lab.kube.patch("Node", name, body)
                conditions = [{"type": "Ready", "status": "True", "reason": str(number)}]
                lab.kube.patch(
                    "Node", name, {"status": {"conditions": conditions, "images": [image] * number}}, subresource="/status"
                )
            time.sleep(0.1)
        time.sleep(0.5)
        unrelated = calls()

        lab.remove("IPAMBlock", "10-42-77-0-26")
        lab.until(lambda: "10.42.77.0/26" not in lab.nodes[1].routes(), "the block is gone")
        assert calls(), "what does concern us is seen"
    assert unrelated == []


# Life -------------------------------------------------------------------------------------------------------------------


def test_sigterm_keeps_everything_and_the_next_agent_finds_it_right(meshed: KubeLab) -> None:
    lab, one = meshed, meshed.nodes[1]
    before, published = one.everything(), annotations(lab, 1)
    with pings(lab, (1, 2), (2, 1), (1, 3)) as traffic:
        lab.kill_agent(1, signal.SIGTERM)
        assert one.agents[-1].returncode == 0
        assert one.everything() == before and annotations(lab, 1) == published

        seen = len(one.log)
        one.start_agent()
        lab.until(lambda: "in the mesh" in one.log[seen:], "the next agent")
        time.sleep(0.5)
        assert one.everything() == before and annotations(lab, 1) == published
        assert "applied" not in one.log[seen:]
        assert lost(traffic) == {}


def test_another_interface_address_is_followed(meshed: KubeLab) -> None:
    lab, one = meshed, meshed.nodes[1]
    held = {
        name: annotations(lab, 1)[f"projectcalico.org/{name}"]
        for name in ("IPv4WireguardInterfaceAddr", "IPv6WireguardInterfaceAddr")
    }

    lab.annotate(1, IPv4WireguardInterfaceAddr="10.42.1.33", IPv6WireguardInterfaceAddr="fd00:42:1::33")

    lab.until(lambda: (one.link(WG4)[2], one.link(WG6)[2]) == (["10.42.1.33/32"], ["fd00:42:1::33/128"]), "the new addresses")
    until_encrypted(lab, 4, 6)
    lab.annotate(1, **held)
    lab.until(lambda: one.link(WG4)[2] == [held["IPv4WireguardInterfaceAddr"] + "/32"], "the old one")


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_key_that_felix_clears_is_back_with_an_address_within_three_seconds(
    meshed: KubeLab, count: int, promises: Promises
) -> None:
    """With an allocator that is deaf while it is busy and writes what is stale. The peer's pod asks all the time."""
    lab, one = meshed, meshed.nodes[1]
    lab.stop_allocator()
    lab.start_allocator(1, manners="--seed=7")
    felix = Felix(Client(lab.kube.kubeconfig), "n1")
    took = []
    for _ in range(count):
        lab.until(lambda: one.link(WG4)[2] and one.link(WG6)[2], "both addresses")
        time.sleep(1.0)  # the allocator rests
        with pings(lab, (2, 1)):
            cleared_at = felix.start_once()
            until_whole(lab)
            took.append(time.monotonic() - cleared_at)
    lab.stop_allocator()
    lab.start_allocator(1, 2)
    promises.judge(f"Felix's clearing to key, interface address and traffic, longest of {count}", max(took), REPAIR_SECONDS)


@pytest.mark.long
def test_the_command_restarts_felix_beside_us_which_clears_the_key_and_it_is_back(three: KubeLab, promises: Promises) -> None:
    lab = three
    lab.typed(patch("false", 4, 6))
    lab.until(lambda: not any(KEYS[4] in name for number in (1, 2) for name in annotations(lab, number)), "all is off")
    lab.stop_allocator()
    lab.start_allocator(1, manners="--seed=3")
    lab.start_allocator(2)
    felix = lab.start_felix(1, restart_seconds=RESTART_SECONDS, has_wireguard=False)
    time.sleep(2.0)  # it has started, and there was nothing to clear

    with pings(lab, (2, 1)):
        lab.typed(patch("true", 4, 6))
        lab.until(lambda: (lab.path / "felix-n1.log").read_text().count("cleared") >= 2, "Felix has cleared both keys")
        cleared_at = time.monotonic()
        until_whole(lab)
        took = time.monotonic() - cleared_at
        time.sleep(2.0)
        assert not lacking(lab), "and so it stays"
    felix.kill()
    felix.wait(10)
    lab.stop_allocator()
    lab.start_allocator(1, 2)
    promises.judge("Felix's clearing after kubectl patch to key, interface address and traffic", took, REPAIR_SECONDS)


def until_whole(lab: KubeLab) -> None:
    """Wait until n1 has keys and addresses, on its interfaces, too, and n2 reaches it through the tunnel."""
    deadline = time.monotonic() + 15.0
    while lacks := lacking(lab):
        assert time.monotonic() < deadline, f"{lacks}\n{lab.nodes[1].log}"
        time.sleep(0.02)


def lacking(lab: KubeLab) -> str:
    """What n1 lacks, empty if nothing."""
    found, one, two = annotations(lab, 1), lab.nodes[1], lab.nodes[2]
    for version in (4, 6):
        key, address = (found.get(f"projectcalico.org/{name}") for name in (KEYS[version], ADDRESSES[version]))
        if key is None or address is None:
            return f"IPv{version}: the key {key} and the address {address}"
        if (held := [each.partition("/")[0] for each in one.link(INTERFACES[version])[2]]) != [address]:
            return f"IPv{version}: the interface has {held}, not {address}"
        if key not in (peers := two.run("wg", "show", INTERFACES[version].removesuffix("u"), "peers")):
            return f"IPv{version}: n2 has the peers {peers}, not {key}"
        if not is_encrypted(lab, version):
            return f"IPv{version}: pods meet in the tunnel"
    return ""


# What an operator adds --------------------------------------------------------------------------------------------------


def test_host_encryption_takes_the_nodes_own_addresses_in_and_lets_go_of_them(meshed: KubeLab) -> None:
    lab, one, two = meshed, meshed.nodes[1], meshed.nodes[2]
    switch = "kubectl patch felixconfiguration default --type='merge' -p '{\"spec\":{\"wireguardHostEncryptionEnabled\":%s}}'"
    first, second, plain = (UNDERLAY[4].format(number) for number in (1, 2, 3))

    def is_hidden() -> bool:
        """Whether the nodes themselves meet, and none of it is seen in clear."""
        with capture(one, f"icmp and host {first} and host {second}") as clear:
            meet = lab.reaches(one.namespace, second) and lab.reaches(two.namespace, first)
            return meet and not clear()

    lab.until(lambda: not is_hidden(), "what is in clear is seen")
    with pings(lab, (1, 3), (3, 1)) as to_plain:
        lab.typed(switch % "true")
        lab.until(is_hidden, "the nodes to meet in the tunnel")
        assert lab.reaches(one.namespace, plain, PATIENTLY) and lab.reaches(lab.nodes[3].namespace, first, PATIENTLY)
        until_encrypted(lab, 4, 6)

        lab.typed(switch % "false")
        lab.until(lambda: not is_hidden() and lab.reaches(one.namespace, second), "the nodes to meet in clear")
        until_encrypted(lab, 4, 6)
        assert lost(to_plain) == {}


def test_a_peer_that_is_no_node_is_reached_through_the_tunnel_and_stays(meshed: KubeLab, tmp_path: Path) -> None:
    lab, one, three = meshed, meshed.nodes[1], meshed.nodes[3]
    private_key, address = tmp_path / "key", "10.200.0.1"
    device = three.start(wireguard_go(), "-f", "ext0")
    lab.until(lambda: "ext0" in three.run("wg", "show", "interfaces"), "its device")
    script = f"""
        wg genkey >{private_key}
        wg set ext0 private-key {private_key} listen-port 51999 peer {one.key()} allowed-ips 10.42.1.0/26
        ip addr add {address}/32 dev ext0
        ip link set ext0 up
        ip route add 10.42.1.0/26 dev ext0 src {address} table 77
        ip rule add from {address} lookup 77 priority 77
    """
    three.run("sh", "-ec", script)
    key = three.run("wg", "show", "ext0", "public-key").strip()
    peers = tmp_path / "peers.conf"
    peers.write_text(f"[Peer]\nPublicKey = {key}\nAllowedIPs = {address}/32\nEndpoint = {UNDERLAY[4].format(3)}:51999\n")
    try:
        lab.kill_agent(1, signal.SIGTERM)
        one.start_agent("--external-peers", str(peers))
        lab.until(lambda: key in one.peers() and one.routes().get(address) == WG4, "the peer, and the way to it")
        with capture(one, f"icmp and host {address}") as clear:
            lab.until(lambda: lab.reaches(lab.pod(1), address), "the pod to reach it")
            assert clear() == []

        lab.put(block("10.42.77.0/26", "n3"))
        lab.until(lambda: "10.42.77.0/26" in one.routes(), "a pass")
        lab.remove("IPAMBlock", "10-42-77-0-26")
        lab.until(lambda: "10.42.77.0/26" not in one.routes(), "another")
        assert key in one.peers() and lab.reaches(lab.pod(1), address, PATIENTLY), "no pass takes it for a stranger"
    finally:
        device.terminate()
        device.wait(10)
        three.run("ip", "rule", "del", "priority", "77")
        lab.kill_agent(1, signal.SIGTERM)
        one.start_agent()
    lab.until(lambda: key not in one.peers(), "without the file it is gone")
    until_encrypted(lab, 4, 6)


def test_what_is_wrong_is_told_by_kubectl_describe_node(meshed: KubeLab) -> None:
    lab, name = meshed, pool("10.42.0.0/16")["metadata"]["name"]
    patched = 'kubectl patch ippools.crd.projectcalico.org %s --type=merge -p \'{"spec":{"natOutgoing":%s}}\''

    lab.typed(patched % (name, "false"))

    lab.until(lambda: "NatOutgoingOff" in lab.typed("kubectl describe node n1"), "the Event on the Node")
    (line,) = (each for each in lab.typed("kubectl describe node n1").splitlines() if "NatOutgoingOff" in each)
    assert "Warning" in line and "Set natOutgoing: true" in line and "10.42.0.0/16" in line
    lab.typed(patched % (name, "true"))


def test_a_node_that_leaves_is_talked_to_in_clear_before_it_takes_its_interface_down(meshed: KubeLab) -> None:
    lab, one = meshed, meshed.nodes[1]
    lab.kill_agent(1, signal.SIGTERM)
    with pings(lab, (1, 2), (2, 1)) as with_peer, pings(lab, (1, 3), (3, 1)) as with_plain:
        time.sleep(0.5)

        left = one.run_agent(verb="leave")

        assert left.returncode == 0, left.stderr
        assert not any(KEYS[4] in name for name in annotations(lab, 1))
        assert not (one.rules() or one.rules(6) or one.routes() or one.routes(6) or one.link(WG4)[0] or one.link(WG6)[0])
        time.sleep(0.5)
        assert lost(with_plain) == {}
        # Felix takes the peer off its device a moment before it changes the route.
        assert all(len(numbers) <= 2 for numbers in lost(with_peer).values())
    lab.until(lambda: not is_encrypted(lab, 4, 6), "what is in clear is seen")
    one.start_agent()
    until_encrypted(lab, 4, 6)


def test_what_goes_in_clear_does_so_whatever_happens_to_the_tunnel(meshed: KubeLab) -> None:
    lab, one = meshed, meshed.nodes[1]
    with pings(lab, (1, 3), (3, 1)) as traffic, capture(one, f"({INNER}) and net 10.42.2.0/26") as leaked:
        lab.kill_data_plane(1)
        until_encrypted(lab, 4, 6)
        lab.kill_agent(1)
        one.run("ip", "link", "del", WG4)
        lab.kill_data_plane(1, f"wgpy run {WG4}")
        one.start_agent()
        until_encrypted(lab, 4, 6)
        assert lost(traffic) == {}
        assert leaked() == [], "nor was anything for the peer sent in clear"
