"""Packets as long as the interface takes, and one byte longer: MTU 8920, 1420 and 1280, changed while it runs; and tunnels
wider than the underlay."""

from collections.abc import Iterator

import pytest

from controller.demo.topology import Address, Namespace
from tests.e2e.lab import FAMILIES, Tunnel, ping
from tests.e2e.traffic import transfer
from tests.e2e.wire import TRANSPORT, messages

HEADERS = {4: 28, 6: 48}


@pytest.fixture(
    scope="module",
    params=[(("wgpy", "wgpy"), 4), (("wgpy", "wireguard-go"), 6)],
    ids=lambda param: f"{param[0][0]}:{param[0][1]}-over-IPv{param[1]}",
)
def tunnel(request: pytest.FixtureRequest, machine: None) -> Iterator[Tunnel]:
    kinds, outer = request.param
    if outer not in FAMILIES:
        pytest.skip("this kernel has no IPv6")
    if "wireguard-go" in kinds:
        request.getfixturevalue("wireguard_go_path")
    with Tunnel.lay(kinds, outer=outer, mtu=8920, roomy=True) as laid:
        yield laid


def says_too_long(source: Namespace, destination: Address, length: int, mtu: int) -> bool:
    """Whether a packet of ``length`` bytes that may not be fragmented is answered with the MTU it should have had."""
    size = length - HEADERS[destination.version]
    said = source.run(["ping", "-n", "-c1", "-W1", "-M", "do", "-s", str(size), str(destination)], check=False).stdout
    return f"mtu = {mtu}" in said or f"mtu={mtu}" in said


# Descending: what a pod has learnt of a path is never a longer packet than the path takes.
@pytest.mark.parametrize("mtu", [8920, 1420, 1280])
def test_a_packet_of_exactly_the_mtu_passes_and_a_longer_one_is_told_so(tunnel: Tunnel, mtu: int) -> None:
    for end in tunnel.ends:
        end.node.configure(links=[f"link set wg0 mtu {mtu}"])

    for end, other in tunnel.directions():
        for version in FAMILIES:
            address = other.pod.address(version)
            assert says_too_long(end.pod, address, mtu + 1, mtu)
            assert ping(end.pod, address, "-M", "do", "-s", str(mtu - HEADERS[version]), count=2) == 2
            assert transfer(end.pod, end.pod.address(version), other.pod, address, 1 << 20).is_intact


def test_a_tunnel_wider_than_the_underlay_is_fragmented_outside(machine: None) -> None:
    """DF is off outside, as the kernel's WireGuard has it (protocol 1.10)."""
    with Tunnel.lay(("wgpy", "wgpy"), outer=4, mtu=8920) as tunnel:
        for end, other in tunnel.directions():
            for version in FAMILIES:
                address = other.pod.address(version)
                with tunnel.capture() as capture:
                    assert ping(end.pod, address, "-M", "do", "-s", str(8920 - HEADERS[version]), count=2) == 2
                    assert ping(end.pod, address, count=1) == 1
                assert all(one.may_fragment for one in messages(capture.frames, TRANSPORT))
                assert transfer(end.pod, end.pod.address(version), other.pod, address, 4 << 20).is_intact


def test_an_interface_of_34736_bytes_carries_packets_of_that_length(machine: None) -> None:
    """The MTU of the kernel's own self tests (protocol 4.5, stages 4 and 5)."""
    with Tunnel.lay(("wgpy", "wgpy"), outer=FAMILIES[-1], mtu=34736) as tunnel:
        for end, other in tunnel.directions():
            for version in FAMILIES:
                most = 34736 - HEADERS[version]
                assert ping(end.pod, other.pod.address(version), "-M", "do", "-s", str(most), count=2) == 2
                assert transfer(end.pod, end.pod.address(version), other.pod, other.pod.address(version), 4 << 20).is_intact
