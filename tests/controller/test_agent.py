"""The agent for real: namespaces as nodes, wgpy and wireguard-go as data planes, everything read back with ``ip`` and ``wg``."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.agent import LONGEST_RESYNC_SECONDS, LONGEST_RETRY_SECONDS, retry_seconds
from tests.controller.cluster import block
from tests.controller.lab import WG4, WG6, Lab, Node, capture, make_lab, may_make_namespaces
from tests.peers import wireguard_go

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

RULE = "99: not from all fwmark 0x1000/0x1000 lookup 5182"


@pytest.fixture(params=["wgpy", "wireguard-go"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A lab whose agents start this data plane."""
    options = ["--data-plane", wireguard_go()] if request.param == "wireguard-go" else []
    with make_lab(tmp_path, options) as lab:
        yield lab


def meshed(lab: Lab, *numbers: int) -> None:
    for number in numbers:
        if number not in lab.nodes:
            lab.add_node(number)
        lab.nodes[number].start_agent()
    lab.until_settled(*numbers)


def test_a_node_is_configured_as_felix_would_configure_it(lab: Lab) -> None:
    lab.felix(wireguardEnabledV6=True, wireguardKeepAlive="25s")
    for number in (1, 2, 3):
        lab.add_node(number)  # n3 has no agent: it stays in clear
    meshed(lab, 1, 2)
    lab.until_settled(1, 2, version=6)
    one, two = lab.nodes[1], lab.nodes[2]

    assert one.link(WG4) == (True, 1440, ["10.42.1.0/32"])
    assert one.link(WG6) == (True, 1420, ["fd00:42:1::/128"])
    assert one.rules() == [RULE]
    assert one.rules(6) == ["99: not from all fwmark 0x1000/0x1000 lookup 5183"]
    assert one.routes() == {"10.42.1.0/26": "throw", "10.42.2.0/26": WG4, "10.42.2.0": WG4, "10.42.3.0/26": "throw"}
    assert one.routes(6) == {
        "fd00:42:1::/122": "throw",
        "fd00:42:2::/122": WG6,
        "fd00:42:2::": WG6,
        "fd00:42:3::/122": "throw",
    }
    allowed = "10.42.2.0/26 10.42.2.0/32 192.0.2.2/32"  # the last for replies of its host; nothing is routed there
    assert one.peers() == {two.key(): {"endpoint": "192.0.2.2:51820", "allowed": allowed, "keepalive": "25"}}
    assert one.peers(WG6)[str(two.key(6))]["endpoint"] == "[fd00:aa::2]:51821"
    assert one.run("wg", "show", WG4, "public-key").strip() == one.key()
    assert one.run("wg", "show", WG4, "fwmark").strip() == "0x1000"
    lab.until(lambda: one.ping("10.42.2.0") and one.ping("fd00:42:2::"), "hosts reach each other through the tunnel")


def test_the_mesh_follows_the_cluster(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one, two, three = lab.nodes[1], lab.nodes[2], lab.add_node(3)
    lab.until(lambda: one.routes().get("10.42.3.0/26") == "throw", "a node without an agent is talked to in clear")

    meshed(lab, 3)  # a node joins
    lab.until_meshed(1, 2, 3)

    lab.put(block("10.42.3.0/26", "n2"), "block-3.yaml")  # a block moves
    lab.until(lambda: "10.42.3.0/26" in one.peers()[str(two.key())]["allowed"], "the block moves to the other peer")
    assert "10.42.3.0/26" not in one.peers()[str(three.key())]["allowed"]

    lab.put(block("10.42.3.0/26", "n2", {"10.42.3.9": "n1"}), "block-3.yaml")  # an address is borrowed, by ourselves
    lab.until(lambda: one.routes().get("10.42.3.9") == "throw", "our own borrowed address is thrown")
    ranges = "10.42.1.0/26 10.42.1.0/32 10.42.3.9/32 192.0.2.1/32"
    lab.until(lambda: two.peers()[str(one.key())]["allowed"] == ranges, "and the others let us have it")

    gone = str(three.key())
    three.agents[0].terminate()
    three.agents[0].wait(10)
    (lab.directory.path / "n3.yaml").unlink()  # a node leaves
    lab.until(lambda: gone not in one.peers(), "the peer goes with its node")

    lab.annotate(2, IPv4Address="192.0.2.22/24")  # a node has a new address
    lab.until(lambda: one.peers()[str(two.key())]["endpoint"] == "192.0.2.22:51820", "the endpoint follows the node's address")


def test_the_mesh_follows_the_configuration(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one, two = lab.nodes[1], lab.nodes[2]

    lab.felix(wireguardListeningPort=4000, wireguardMTU=1300, wireguardKeepAlive="9s", wireguardRoutingRulePriority=50)

    key = str(two.key())
    lab.until(
        lambda: one.peers()[key] | {"allowed": ""} == {"endpoint": "192.0.2.2:4000", "allowed": "", "keepalive": "9"}, "peers"
    )
    lab.until(lambda: one.rules() == ["50: not from all fwmark 0x1000/0x1000 lookup 5182"], "the rule has its new priority")
    assert one.run("wg", "show", WG4, "listen-port").strip() == "4000"
    assert one.link(WG4)[1] == 1300


def test_switched_off_nothing_is_left_and_switched_on_everything_is_back(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    key, routes = one.key(), one.routes()

    lab.felix(wireguardEnabled=False)
    lab.until(lambda: not one.rules() and not one.link(WG4)[0] and one.key() is None, "switched off")
    assert one.routes() == {} and one.peers() == {}
    lab.until(lambda: one.link(WG4)[2] == [], "the allocator has taken the address back")
    assert "wgpy" not in one.run("nft", "list", "ruleset")
    # Until the other node has let its address go, too, it answers to it in clear.
    lab.until(lambda: lab.nodes[2].link(WG4)[2] == [], "the other node is switched off")
    assert one.ping("10.42.2.0") is False

    lab.felix(wireguardEnabled=True)
    lab.until_meshed(1, 2)
    lab.until(lambda: one.routes() == routes and one.link(WG4)[2] == ["10.42.1.0/32"], "switched on")
    assert one.key() == key
    lab.until(lambda: one.ping("10.42.2.0"), "packets flow again")


def test_killing_the_agent_stops_no_packet_and_starting_it_changes_nothing(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    lab.until(lambda: one.ping("10.42.2.0"), "packets flow")
    # One more than are judged: for the last one ping waits only twice as long as an answer took.
    ping = one.start("ping", "-n", "-i0.05", "-c61", "-W1", "10.42.2.0", output=lab.path / "ping")

    one.agents[0].kill()
    one.agents[0].wait(10)
    before, seen = one.everything(), one.log
    monitor = one.start("ip", "monitor", "link", "address", "route", "rule", output=lab.path / "monitor")
    time.sleep(0.3)
    one.start_agent()
    lab.until(lambda: "in the mesh" in one.log.removeprefix(seen), "the agent has started again")
    time.sleep(0.5)
    monitor.terminate()
    monitor.wait(10)

    assert one.everything() == before
    assert "applied" not in one.log.removeprefix(seen), "neither the kernel nor the device was told anything"
    assert "published" not in one.log.removeprefix(seen)
    changes = [line for line in (lab.path / "monitor").read_text().splitlines() if WG4 in line or "5182" in line]
    assert changes == []
    ping.wait(30)
    answered = re.findall(r"icmp_seq=(\d+) ", (lab.path / "ping").read_text())
    assert [str(number) for number in range(1, 61) if str(number) not in answered] == []


def test_sigterm_withdraws_nothing(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    before, key = one.everything(), one.key()

    one.agents[0].terminate()

    assert one.agents[0].wait(10) == 0
    assert one.everything() == before and one.key() == key is not None


def test_foreign_things_in_our_place_go_and_others_stay(lab: Lab) -> None:
    for number in (1, 2):
        lab.add_node(number).start_agent("--resync", "0.5")
    lab.until_settled(1, 2)
    one, two = lab.nodes[1], lab.nodes[2]
    routes, peers = one.routes(), one.peers()

    one.run("ip", "route", "add", "throw", "10.42.2.0/28", "table", "5182")
    one.run("ip", "route", "add", "203.0.113.0/24", "dev", WG4, "table", "5182")
    one.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "table", "5182")
    one.run("ip", "rule", "add", "from", "all", "lookup", "5182", "priority", "70")
    one.run("ip", "rule", "add", "from", "all", "lookup", "77", "priority", "71")
    one.run("ip", "rule", "del", "priority", "99")
    one.run("ip", "addr", "add", "10.7.7.7/24", "dev", WG4)
    one.run("wg", "set", WG4, "peer", "A" * 42 + "E=", "allowed-ips", "10.42.2.1/32")
    one.run("wg", "set", WG4, "listen-port", "5555")
    one.run("ip", "link", "set", WG4, "mtu", "1280")

    lab.until(lambda: one.rules() == ["71: from all lookup 77", RULE], "rules")
    lab.until(lambda: one.routes() == routes | {"198.51.100.0/24": "eth0"}, "routes")
    lab.until(lambda: one.peers() == peers, "peers")
    lab.until(lambda: one.link(WG4) == (True, 1440, ["10.42.1.0/32"]), "link")
    lab.until(lambda: one.run("wg", "show", WG4, "listen-port").strip() == "51820", "port")
    assert two.peers()


def test_a_roamed_endpoint_is_left_alone_until_the_node_has_a_new_address(lab: Lab) -> None:
    for number in (1, 2):
        lab.add_node(number).start_agent("--resync", "0.3")
    lab.until_settled(1, 2)
    one, key = lab.nodes[1], str(lab.nodes[2].key())
    one.run("wg", "set", WG4, "peer", key, "endpoint", "192.0.2.99:1234")  # as if it had roamed there
    time.sleep(1)
    assert one.peers()[key]["endpoint"] == "192.0.2.99:1234"

    one.agents[0].kill()  # not even a new agent resets it
    one.agents[0].wait(10)
    seen = one.log
    one.start_agent("--resync", "0.3")
    lab.until(lambda: "in the mesh" in one.log.removeprefix(seen), "the agent has started again")
    assert one.peers()[key]["endpoint"] == "192.0.2.99:1234"

    lab.annotate(2, IPv4Address="192.0.2.22/24")
    lab.until(lambda: one.peers()[key]["endpoint"] == "192.0.2.22:51820", "the new address wins")


def test_a_key_that_felix_clears_is_published_again_and_the_new_address_followed(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    assert one.link(WG4)[2] == ["10.42.1.0/32"], "the first address"
    key = one.key()

    lab.annotate(1, WireguardPublicKey=None)
    lab.until(lambda: one.key() == key, "the key is published again")
    lab.annotate(1, IPv4WireguardInterfaceAddr="10.42.1.9")
    lab.until(lambda: one.link(WG4)[2] == ["10.42.1.9/32"], "the address is followed", allocating=False)
    seen = one.log
    lab.annotate(1, IPv4WireguardInterfaceAddr=None)
    lab.until(lambda: one.link(WG4)[2] == [], "no address is followed too", allocating=False)
    lab.until(lambda: one.routes()["10.42.2.0/26"] == WG4, "for a moment the twins refuse", allocating=False)
    applied = [line.partition(" applied ")[2] for line in one.log.removeprefix(seen).splitlines()]
    assert any("address" in line and "route" in line for line in applied), (
        "the kernel removes routes with the last address, and the agent reckons with it"
    )


def test_the_interface_can_have_another_name_without_a_packet_in_clear(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    pods = [lab.add_pod(number) for number in (1, 2)]
    ping = ["ip", "netns", "exec", pods[0], "ping", "-c1", "-W1", "10.42.2.5"]
    lab.until(lambda: subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0, "pods reach each other")

    with capture(one, "net 10.42.0.0/16") as packets:
        with subprocess.Popen([*ping[:5], "-i0.02", "-c150", "-W1", "10.42.2.5"], stdout=subprocess.DEVNULL):
            lab.felix(wireguardInterfaceName="other.cali")
            lab.until(lambda: one.routes().get("10.42.2.0/26") == "other.caliu" and "10.42.2.0" in one.routes(), "renamed")
        in_clear = packets()

    assert in_clear == []
    assert WG4 not in one.links()
    assert one.link("other.caliu")[2] == ["10.42.1.0/32"]
    lab.until(lambda: subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0, "pods still do", seconds=30)


# Data planes that come and go ---------------------------------------------------------------------------------------


def test_a_killed_data_plane_never_lets_a_packet_out_in_clear(lab: Lab) -> None:
    if lab.data_plane:
        pytest.skip("wireguard-go's interface goes with it; the agent then closes the door behind it (next test)")
    one, _ = lab.add_node(1), lab.add_node(2)
    pods = [lab.add_pod(number) for number in (1, 2)]
    ping = ["ip", "netns", "exec", pods[0], "ping", "-c1", "-W1", "10.42.2.5"]

    def reached() -> bool:
        return subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0

    with capture(one, "net 10.42.0.0/16") as packets:
        lab.until(reached, "pods reach each other in clear")
        lab.until(packets, "the capture sees what is in clear")
    meshed(lab, 1, 2)
    lab.until(reached, "pods reach each other encrypted")
    one.agents[0].kill()
    one.agents[0].wait(10)

    with capture(one, "net 10.42.0.0/16") as packets:
        for pid in one.processes("wgpy run"):
            os.kill(pid, signal.SIGKILL)
        subprocess.run([*ping[:5], "-i0.05", "-c20", "-W1", "10.42.2.5"], stdout=subprocess.DEVNULL, check=False)
        assert not reached()
        one.start_agent("--no-spawn")  # an agent that finds no data plane changes nothing
        lab.until(lambda: "waiting for a data plane" in one.log, "it says that it waits")
        time.sleep(1)
        assert one.log.count("waiting for a data plane") == 1
        assert one.routes()["10.42.2.0/26"] == WG4 and one.rules() == [RULE]
        one.agents[1].kill()
        one.agents[1].wait(10)
        # And without any agent the data plane comes back by itself.
        one.start(sys.executable, "-m", "wgpy", "run", WG4, "--persist", "--state", str(one.state))
        lab.until(reached, "packets flow again", seconds=30)
        assert packets() == []


def test_where_the_interface_goes_with_its_data_plane_the_table_drops_what_was_promised(lab: Lab) -> None:
    if not lab.data_plane:
        pytest.skip("wgpy's interface stays")
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    one.agents[0].terminate()
    one.agents[0].wait(10)
    one.start_agent("--no-spawn")
    lab.until(lambda: one.log.count("in the mesh") == 2, "an agent that starts no data plane")

    os.kill(one.processes(WG4)[0], signal.SIGKILL)
    dropped = {"10.42.1.0/26": "throw", "10.42.2.0/26": "prohibit", "10.42.2.0": "prohibit"}
    lab.until(lambda: one.routes() == dropped, "what was promised is dropped", seconds=LONGEST_RESYNC_SECONDS / 3)

    one.start(lab.data_plane[1], WG4)
    lab.until(lambda: one.routes().get("10.42.2.0/26") == WG4, "the agent sets up the new one")
    lab.until(lambda: one.ping("10.42.2.0"), "packets flow again", seconds=30)


def test_what_becomes_of_packets_without_a_data_plane_is_said_as_it_is(lab: Lab) -> None:
    """What was promised is refused; after a boot nothing is promised, whatever the agent remembers, and packets go in clear."""
    meshed(lab, 1, 2)
    one, pod, _ = lab.nodes[1], lab.add_pod(1), lab.add_pod(2)
    lab.until(lambda: traffic(one) == "encrypted", "n2 is a peer")

    one.agents[0].terminate()
    one.agents[0].wait(10)
    for pid in one.processes(WG4):
        os.kill(pid, signal.SIGKILL)
    one.start_agent("--no-spawn")
    lab.until(lambda: traffic(one) == "refused", "what was encrypted is refused")
    with capture(one, "icmp and net 10.42.0.0/16") as packets:
        pod_pings(pod)
        assert packets() == []

        one.agents[1].terminate()
        one.agents[1].wait(10)
        one.run("sh", "-ec", f"ip rule del {RULE.partition(':')[2]}; ip route flush table 5182; ip link del {WG4} || true")
        one.start_agent("--no-spawn")
        lab.until(lambda: traffic(one) == "clear", "nothing keeps it from going in clear")
        lab.until(lambda: (pod_pings(pod), packets())[1], "and it does")
        time.sleep(1)
        assert traffic(one) == "clear"


def traffic(node: Node) -> str:
    """What the agent says of n2's pods."""
    (peer,) = json.loads((node.state / "status.json").read_text())["families"][0]["peers"]
    return str(peer["traffic"])


def pod_pings(pod: str) -> bool:
    words = ["ip", "netns", "exec", pod, "ping", "-i0.05", "-c5", "-W0.2", "10.42.2.5"]
    return subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_data_plane_that_dies_is_started_again(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    pids = one.processes(f"wgpy run {WG4}") + ([] if not lab.data_plane else one.processes(f"{lab.data_plane[1]} {WG4}"))

    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    lab.until(lambda: one.log.count("started the data plane") == 2, "it is started again")
    lab.until(lambda: one.routes().get("10.42.2.0/26") == WG4 and one.peers() and one.link(WG4)[2], "and set up again")
    lab.until(lambda: one.ping("10.42.2.0"), "packets flow again", seconds=30)


def test_an_agent_that_finds_no_data_plane_waits_and_says_so_once(lab: Lab) -> None:
    one = lab.add_node(1)
    one.start_agent("--no-spawn")
    lab.until(lambda: "waiting for" in one.log, "it waits")
    time.sleep(1.5)

    assert one.log.count("waiting for") == 1
    assert one.rules() == [] and one.routes() == {} and one.key() is None

    words = [lab.data_plane[1], WG4] if lab.data_plane else [sys.executable, "-m", "wgpy", "run", WG4, "--persist"]
    one.start(*words)
    lab.until(lambda: one.key() is not None and one.rules() == [RULE], "it goes on when there is one")


@pytest.mark.parametrize("is_agent_running", [False, True])
def test_leaving_withdraws_the_key_and_takes_everything_down(lab: Lab, is_agent_running: bool) -> None:
    meshed(lab, 1, 2)
    one, two = lab.nodes[1], lab.nodes[2]
    if not is_agent_running:
        one.agents[0].terminate()
        one.agents[0].wait(10)

    left = one.run_agent(verb="leave")

    assert left.returncode == 0, left.stderr
    assert one.key() is None and one.rules() == [] and one.routes() == {} and one.peers() == {}
    assert not one.link(WG4)[0]
    lab.until(lambda: two.routes().get("10.42.1.0/26") == "throw", "the others talk to it in clear")
    shown = one.run_agent(verb="mesh")
    assert shown.returncode == 3 and "IPv4  not part of the mesh: this node has left the mesh" in shown.stdout
    assert "! nothing is encrypted: this node has left the mesh (wgpy leave)" in shown.stdout
    if is_agent_running:
        assert "stepping aside" in one.log and one.agents[0].poll() is None, "a process that ended would be started again"
        time.sleep(1)
        assert one.key() is None, "and does not come back by itself"
        one.agents[0].terminate()
        assert one.agents[0].wait(10) == 0


# Bad input ----------------------------------------------------------------------------------------------------------


def nothing_is_left(lab: Lab) -> bool:
    one = lab.nodes[1]
    return (
        set(one.links()) == {"lo", "eth0"}
        and one.rules() == []
        and one.routes() == {}
        and list(one.sockets.iterdir()) == []
        and "wgpy" not in one.run("nft", "list", "ruleset")
        and one.key() is None
        and one.processes("") == []
    )


def test_a_port_in_use_is_one_line_and_nothing_is_left(lab: Lab) -> None:
    one = lab.add_node(1)
    lab.felix(wireguardEnabledV6=True)
    squatter = one.start("python3", "-c", "import socket,time; s=socket.socket(10,2); s.bind(('::',51821)); time.sleep(60)")
    lab.until(lambda: "51821" in one.run("ss", "-nul"), "somebody has the port")

    ended = one.run_agent("--spawn", *lab.data_plane)

    squatter.kill()
    squatter.wait(10)
    for pid in one.processes("socket,time"):
        os.kill(pid, signal.SIGKILL)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"wgpy agent: {WG6}: UDP port 51821 is in use by another process: "), ended.stderr
    assert "Traceback" not in ended.stderr
    lab.until(lambda: nothing_is_left(lab), "nothing is left, of the other family either", allocating=False)


def test_a_port_that_was_taken_while_all_was_off_is_found_and_no_key_published(lab: Lab) -> None:
    if lab.data_plane:
        pytest.skip("wireguard-go tells nobody: an interface that is taken up without its port just stays silent")
    one = lab.add_node(1)
    one.start_agent()
    lab.until(lambda: one.key() is not None, "in the mesh")
    lab.felix(wireguardEnabled=False)
    lab.until(lambda: one.key() is None and not one.link(WG4)[0], "switched off")
    lab.until(lambda: "51820" not in one.run("ss", "-nul"), "the port is free")
    one.start("python3", "-c", "import socket,time; s=socket.socket(2,2); s.bind(('', 51820)); time.sleep(60)")
    lab.until(lambda: "51820" in one.run("ss", "-nul"), "somebody has the port")

    lab.felix()

    lab.until(lambda: "UDP port 51820 is in use by another process: " in one.log, "it is said")
    assert one.key() is None and "Traceback" not in one.log
    for pid in one.processes("socket,time"):
        os.kill(pid, signal.SIGKILL)
    lab.until(lambda: one.key() is not None and one.run("wg", "show", WG4, "listen-port").strip() == "51820", "in the mesh again")
    assert ":51820 " in one.run("ss", "-nul")


@pytest.mark.parametrize(
    ("breaking", "complaint"),
    [
        (lambda lab: lab.put({"kind": "Node"}, "bad.yaml"), "cluster/bad.yaml:1: lacks apiVersion"),
        (
            lambda lab: lab.felix(wireguardListeningPort="abc"),
            "cluster/felix.yaml:8: FelixConfiguration default: spec.wireguardListeningPort: not a number from 1 to 65535: 'abc'",
        ),
        (lambda lab: (lab.directory.path / "n1.yaml").unlink(), "there is no node 'n1' in the cluster, only none at all"),
        (
            lambda lab: lab.felix(wireguardInterfaceName="x", wireguardInterfaceNameV6="x"),
            "xu would be the interface of IPv4 and",
        ),
    ],
)
def test_a_cluster_that_cannot_be_meant_is_one_line_and_nothing_is_done(lab: Lab, breaking: object, complaint: str) -> None:
    lab.add_node(1)
    breaking(lab)  # type: ignore[operator]

    ended = lab.nodes[1].run_agent("--spawn", *lab.data_plane)

    assert ended.returncode == 1
    assert complaint in ended.stderr.splitlines()[-1], ended.stderr
    assert set(lab.nodes[1].links()) == {"lo", "eth0"} and lab.nodes[1].rules() == []


def test_a_configuration_that_goes_bad_leaves_the_last_good_one(lab: Lab) -> None:
    meshed(lab, 1, 2)
    one = lab.nodes[1]
    before = one.everything()

    lab.felix(wireguardEnabled="perhaps")
    lab.until(lambda: "spec.wireguardEnabled: neither true nor false: 'perhaps'" in one.log, "it is noticed")
    (lab.directory.path / "felix.yaml").write_text("spec: [\n")
    lab.until(lambda: "felix.yaml:2: not YAML" in one.log, "this too")
    time.sleep(0.5)

    assert one.everything() == before
    lab.felix(wireguardRoutingRulePriority=42)
    lab.until(lambda: one.rules()[0].startswith("42:"), "a good one counts again")


def test_a_data_plane_that_does_not_start_is_one_line(lab: Lab) -> None:
    one = lab.add_node(1)

    missing = one.run_agent("--spawn", "--data-plane", "no-such-program")
    failing = one.run_agent("--spawn", "--data-plane", "sh -c 'echo it is broken >&2; exit 3' {interface}")

    assert (missing.returncode, failing.returncode) == (1, 1)
    assert missing.stderr.splitlines()[-1] == "wgpy agent: cannot start the data plane no-such-program: No such file or directory"
    assert failing.stderr.splitlines()[-1] == f"wgpy agent: the data plane for {WG4} ended with status 3: it is broken"
    assert nothing_is_left(lab)


def test_retries_become_rarer_but_never_stop() -> None:
    pauses = [retry_seconds(failures) for failures in range(1, 50)]

    assert pauses[0] == 0.2 and pauses == sorted(pauses) and pauses[-1] == LONGEST_RETRY_SECONDS
