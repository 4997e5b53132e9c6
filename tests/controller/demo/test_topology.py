"""The topology, for real: needs root and namespaces."""

import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from controller.demo import topology as topologies
from controller.demo.capture import Capture, Conversation, Verdict, judge
from controller.demo.topology import (
    NAMESPACES,
    RUNS,
    Pod,
    Topology,
    TopologyError,
    collect_leftovers,
    host_interface_name,
    is_alive,
    remove_run,
)

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

needs_ipv6 = pytest.mark.skipif(not topologies.has_ipv6(), reason="this kernel has no IPv6")
MARKER = b"wgpytest"


@pytest.fixture
def cluster() -> Iterator[Topology]:
    """Two nodes, n1 and n2, with pods a1, b1 and a2, and their blocks announced."""
    with Topology.create() as topology:
        for number, names in ((1, ["a1", "b1"]), (2, ["a2"])):
            node = topology.add_node(f"n{number}", [ip_interface(f"10.77.0.{number}/24"), ip_interface(f"fd77::{number}/64")])
            topology.announce(ip_network(f"10.42.{number}.0/26"), node)
            topology.announce(ip_network(f"fd42::{number}00/122"), node)
            for host, name in enumerate(names, start=1):
                node.add_pod(name, [ip_address(f"10.42.{number}.{host}"), ip_address(f"fd42::{number}0{host}")], mtu=1420)
        yield topology


def pods(topology: Topology) -> dict[str, Pod]:
    return {name: pod for node in topology.nodes.values() for name, pod in node.pods.items()}


def reaches(source: Pod, destination: Pod, version: int) -> bool:
    ping = ["ping", "-q", "-c2", "-i0.05", "-W1", "-p", MARKER.hex(), str(destination.address(version))]
    return source.run(ping, check=False).returncode == 0


def traces(topology: Topology) -> list[object]:
    return [*NAMESPACES.glob(f"{topology.prefix}*"), *RUNS.glob(topology.run)]


@pytest.mark.parametrize("version", [4, pytest.param(6, marks=needs_ipv6)])
def test_pods_reach_each_other_in_clear_between_nodes_and_unseen_on_one_node(cluster: Topology, version: int) -> None:
    a1, b1, a2 = (pods(cluster)[name] for name in ("a1", "b1", "a2"))
    one, two = (cluster.nodes[name].address(version) for name in ("n1", "n2"))
    between = Conversation((a1.address(version), a2.address(version)), (one, two), MARKER)
    at_home = Conversation((a1.address(version), b1.address(version)), (one, one), MARKER)

    with Capture(cluster.underlay.name) as capture:
        assert reaches(a1, a2, version)
    assert judge(capture.frames, [between])[0].clear == 4  # two requests, two replies, each seen once
    assert capture.lost == 0
    assert {frame.port for frame in capture.frames} >= {"n1", "n2"}

    with Capture(cluster.underlay.name) as capture:
        assert reaches(a1, b1, version)
    assert judge(capture.frames, [at_home])[0].verdict is Verdict.NOTHING


def test_a_pod_is_laid_as_calico_lays_it(cluster: Topology) -> None:
    node, pod = cluster.nodes["n1"], pods(cluster)["a1"]
    end = pod.host_interface

    assert end.startswith("cali") and len(end) == 15
    assert pod.run(["ip", "route"]).stdout.split("\n")[0].strip() == "default via 169.254.1.1 dev eth0"
    assert f"10.42.1.1 dev {end} scope link" in node.run(["ip", "route"]).stdout
    assert "blackhole 10.42.1.0/26 proto bird" in node.run(["ip", "route"]).stdout
    assert "10.42.2.0/26 via 10.77.0.2 dev eth0 proto bird" in node.run(["ip", "route"]).stdout
    assert (
        node.run(["cat", f"/proc/sys/net/ipv4/conf/{end}/rp_filter", f"/proc/sys/net/ipv4/conf/{end}/proxy_arp"]).stdout
        == "1\n1\n"
    )
    assert "link/ether ee:ee:ee:ee:ee:ee" in node.run(["ip", "link", "show", end]).stdout


def test_the_name_of_a_host_end_depends_on_the_pods_namespace() -> None:
    assert host_interface_name("demo/a") != host_interface_name("other/a")
    assert host_interface_name("a") == host_interface_name("default/a")


def test_a_block_moves_with_its_pod(cluster: Topology) -> None:
    source, moving = pods(cluster)["a2"], pods(cluster)["a1"]
    block, target = ip_network("10.42.1.0/26"), cluster.nodes["n2"]

    with (NAMESPACES / moving.name).open():  # a namespace goes on as long as anything has it, the kernel's own cleaning included
        moving.remove()
        assert not reaches(source, moving, 4)

    cluster.announce(block, target)
    moved = target.add_pod("a1", moving.addresses, mtu=1420)
    assert reaches(source, moved, 4)
    assert target.egress([moved.address(4)], source=source) == [moved.host_interface]
    b1 = pods(cluster)["b1"]
    assert cluster.nodes["n1"].egress([moved.address(4)], source=b1) == ["eth0"]


def test_a_withdrawn_block_has_no_route_but_the_default(cluster: Topology) -> None:
    cluster.withdraw(ip_network("10.42.2.0/26"))

    assert "10.42.2.0/26" not in cluster.nodes["n1"].run(["ip", "route"]).stdout
    assert not reaches(pods(cluster)["a1"], pods(cluster)["a2"], 4)


def test_the_way_out_is_the_kernels_answer_and_none_without_a_route(cluster: Topology) -> None:
    a1, b1, a2 = (pods(cluster)[name] for name in ("a1", "b1", "a2"))
    unused = ip_address("10.42.1.60")  # in the node's own block, which is a blackhole

    way = cluster.nodes["n1"].egress([a2.address(4), unused, b1.address(4)], source=a1)

    assert way == ["eth0", None, b1.host_interface]


def test_a_node_that_joins_gets_the_routes_there_are_and_one_that_leaves_takes_its_pods_along(cluster: Topology) -> None:
    third = cluster.add_node("n3", [ip_interface("10.77.0.3/24"), ip_interface("fd77::3/64")])
    cluster.announce(ip_network("10.42.3.0/26"), third)
    pod = third.add_pod("a3", [ip_address("10.42.3.1"), ip_address("fd42::301")])
    assert reaches(pod, pods(cluster)["a1"], 4)

    with (NAMESPACES / third.name).open(), (NAMESPACES / pod.name).open():
        third.remove()
        assert not reaches(pods(cluster)["a1"], pod, 4)

    assert not list(NAMESPACES.glob(f"{cluster.prefix}*3"))
    assert "n3" not in cluster.nodes


def test_each_node_has_its_own_sockets_directory(cluster: Topology) -> None:
    one, two = cluster.nodes["n1"], cluster.nodes["n2"]

    one.run(["touch", "/var/run/wireguard/wg0.sock"])

    assert (one.wireguard_directory / "wg0.sock").exists()
    assert two.run(["ls", "/var/run/wireguard"]).stdout == ""
    assert not Path("/var/run/wireguard/wg0.sock").exists()


def test_nothing_is_left_after_an_exception_though_processes_run() -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def fail_in_the_middle() -> None:
        with topology:
            node = topology.add_node("n1", [ip_interface("10.77.0.1/24")])
            pod = node.add_pod("a1", [ip_address("10.42.1.1")])
            processes.extend(place.start(["sleep", "60"], subprocess.DEVNULL) for place in (topology.underlay, node, pod))
            processes.append(node.start(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], subprocess.DEVNULL))
            raise ZeroDivisionError

    topology = Topology.create()
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()

    assert traces(topology) == []
    assert len(processes) == 4 and all(process.wait(10) for process in processes)


def test_runs_do_not_touch_each_other() -> None:
    with Topology.create() as first:
        first.add_node("n1", [ip_interface("10.77.0.1/24")])
        with Topology.create() as second:
            second.add_node("n1", [ip_interface("10.77.0.1/24")])
        assert traces(second) == []
        assert len(traces(first)) == 3
        first.nodes["n1"].run(["true"])


DIES = """
import os, subprocess, sys
from ipaddress import ip_interface
from controller.demo.topology import Topology
topology = Topology.create()
topology.add_node("n1", [ip_interface("10.77.0.1/24")]).start(["sleep", "60"], subprocess.DEVNULL)
print(topology.run, flush=True)
{}
os._exit(9)
"""


def run_and_die(last_words: str) -> str:
    """A process that makes a run, says its last words and ends without cleaning up. Gives the run's name."""
    died = subprocess.run(
        [sys.executable, "-c", DIES.format(last_words)], capture_output=True, text=True, timeout=20, check=False
    )
    assert died.returncode == 9, died.stderr
    return died.stdout.strip()


def test_a_run_whose_process_died_is_collected() -> None:
    died = run_and_die("")
    assert not is_alive(died) and len(list(NAMESPACES.glob(f"wgpy-{died}-*"))) == 2

    with Topology.create() as living:
        collected = collect_leftovers()
        assert died in collected and living.run not in collected

    assert not list(NAMESPACES.glob(f"wgpy-{died}-*")) and not (RUNS / died).exists()


def test_a_kept_run_stands_until_it_is_removed() -> None:
    kept = run_and_die("print(topology.keep(), file=sys.stderr)")
    try:
        assert kept not in collect_leftovers()
        assert len(list(NAMESPACES.glob(f"wgpy-{kept}-*"))) == 2
        enter = ["sh", str(RUNS / kept / "enter")]
        assert "10.77.0.1" in subprocess.check_output([*enter, "n1", "ip", "address"], text=True)
        assert "br0" in subprocess.check_output([*enter, "underlay", "ip", "link"], text=True)
        subprocess.check_call([*enter, "n1", "touch", "/var/run/wireguard/wg0.sock"])
        assert (RUNS / kept / "n1" / "wireguard" / "wg0.sock").exists()
        assert subprocess.check_output([*enter, "n1", "sh", "-c", "echo $NODENAME"], text=True) == "n1\n"
        for wrong in ([], ["n7"]):
            refused = subprocess.run([*enter, *wrong], capture_output=True, text=True, timeout=20, check=False)
            assert refused.returncode == 2 and refused.stderr.startswith("usage: sh ")
            assert refused.stderr.endswith("; NAME is one of: n1 underlay\n")
    finally:
        remove_run(kept)
    assert not list(NAMESPACES.glob(f"wgpy-{kept}-*")) and not (RUNS / kept).exists()


def test_a_failure_of_ip_is_one_line(cluster: Topology) -> None:
    with pytest.raises(TopologyError, match=r"^laying wgpy-\w+-n1: .*nosuch"):
        cluster.nodes["n1"].configure(links=["link set nosuch up"])
    with pytest.raises(TopologyError, match="no end after 0 s"):
        cluster.nodes["n1"].run(["sleep", "5"], timeout=0.1)
