"""Traffic over a small topology, in clear: needs root and namespaces."""

import contextlib
import subprocess
import sys
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


@contextlib.contextmanager
def kernel_that_answers_no_ping(pod: Pod) -> Iterator[None]:
    """The link stays up: taking it down leaves the neighbours with a failed search, which takes the next test's pings with it."""
    ignore = "/proc/sys/net/ipv4/icmp_echo_ignore_all"
    pod.run(["sh", "-c", f"echo 1 >{ignore}"])
    try:
        yield
    finally:
        pod.run(["sh", "-c", f"echo 0 >{ignore}"])


def test_pings_that_nobody_answers_are_counted_and_come_to_an_end(two_pods: tuple[Topology, Pod, Pod]) -> None:
    _, one, two = two_pods
    with kernel_that_answers_no_ping(two):
        assert ping_all([Probe(one, two, 4, b"wgpy")]) == [0]


LATE = """
import socket, struct, time
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pings:
    print("ready", flush=True)
    while True:
        packet, sender = pings.recvfrom(2000)
        echo = packet[20:]
        if echo[0] == 8:
            time.sleep(0.3 * (echo[7] == 3))
            total = sum(struct.unpack(f"!{len(echo) // 2}H", echo[4:] + bytes(4)))
            total = (total >> 16) + (total & 0xFFFF)
            pings.sendto(struct.pack("!HH", 0, ~(total + (total >> 16)) & 0xFFFF) + echo[4:], sender)
"""
"""Answers pings instead of the kernel, the third one after 0.3 s."""


def test_a_reply_that_comes_late_counts(two_pods: tuple[Topology, Pod, Pod]) -> None:
    _, one, two = two_pods
    with kernel_that_answers_no_ping(two):
        late = two.start([sys.executable, "-c", LATE], subprocess.PIPE)
        try:
            assert late.stdout is not None and late.stdout.readline() == b"ready\n"
            assert ping_all([Probe(one, two, 4, b"wgpy")]) == [PINGS]
        finally:
            late.kill()
            late.communicate()


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
