"""Traffic over a small topology, in clear: needs root and namespaces."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from controller.demo.capture import Capture
from controller.demo.command import missing
from controller.demo.topology import Pod, Topology, TopologyError, has_ipv6
from controller.demo.traffic import PINGS, Probe, ping_all, throughput

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def two_pods() -> Iterator[tuple[Topology, Pod, Pod]]:
    with Topology.create() as topology:
        pods = []
        for number in (1, 2):
            node = topology.add_node(f"n{number}", [ip_interface(f"10.77.0.{number}/24"), ip_interface(f"fd77::{number}/64")])
            topology.announce(ip_network(f"10.42.{number}.0/26"), node)
            topology.announce(ip_network(f"fd42::{number}00/122"), node)
            pods.append(node.add_pod(f"a{number}", [ip_address(f"10.42.{number}.1"), ip_address(f"fd42::{number}01")]))
        yield topology, pods[0], pods[1]


@pytest.mark.parametrize("version", [4, pytest.param(6, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"))])
def test_every_ping_carries_its_marker_there_and_back(two_pods: tuple[Topology, Pod, Pod], version: int) -> None:
    topology, one, two = two_pods
    markers = [b"wgpy\0\x01\x02\x03", b"wgpy\xff\xfe\xfd\xfc"]

    with Capture(topology.underlay.name) as capture:
        replies = ping_all([Probe(one, two, version, markers[0]), Probe(two, one, version, markers[1])])

    assert replies == [PINGS, PINGS]
    assert [sum(marker in frame.data for frame in capture.frames) for marker in markers] == [2 * PINGS, 2 * PINGS]


def test_pings_that_nobody_answers_are_counted_and_come_to_an_end(two_pods: tuple[Topology, Pod, Pod]) -> None:
    _, one, two = two_pods
    two.run(["ip", "link", "set", "eth0", "down"])
    try:
        assert ping_all([Probe(one, two, 4, b"wgpy")]) == [0]
    finally:
        two.run(["ip", "link", "set", "eth0", "up"])
        two.run(["ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"])
        two.run(["ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0"])


def test_more_probes_than_run_at_once_keep_their_order(two_pods: tuple[Topology, Pod, Pod]) -> None:
    _, one, two = two_pods
    good, bad = Probe(one, two, 4, b"wgpy"), Probe(one, one, 4, b"wgpy")

    assert ping_all([good, bad] * 10) == [PINGS] * 20


def test_throughput_is_what_iperf3_received(two_pods: tuple[Topology, Pod, Pod]) -> None:
    _, one, two = two_pods

    assert throughput(one, two, 4, ["-n4M"]) > 10e6


def test_a_measurement_that_fails_is_one_line(two_pods: tuple[Topology, Pod, Pod]) -> None:
    _, one, two = two_pods

    with pytest.raises(TopologyError, match=r"^iperf3 from a1 to 10\.42\.2\.1: "):
        throughput(one, two, 4, ["--cport", "1", "-B", "192.0.2.1"])
