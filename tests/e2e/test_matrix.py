"""wgpy with itself and with wireguard-go, in both roles, over IPv4 and IPv6 outside and inside, with and without a preshared
key. What leaves the nodes is read on the underlay."""

from collections.abc import Callable

import pytest

from controller.demo.topology import Address
from tests.e2e.lab import FAMILIES, MTU, Tunnel, ping
from tests.e2e.traffic import echoed, echoing, transfer
from tests.e2e.wire import INITIATION, RESPONSE, TRANSPORT, messages, seen_in_clear

PAIRS = [("wgpy", "wgpy"), ("wgpy", "wireguard-go"), ("wireguard-go", "wgpy")]
MARKER = b"wgpy in the clear"[:16]
HANDSHAKE_DS = 0x88  # AF41: protocol 1.10
HEADERS = {4: 28, 6: 48}
"""Bytes of an IP header and an ICMP echo header."""


@pytest.fixture(
    scope="module",
    params=[(pair, outer, preshared) for pair in PAIRS for outer in FAMILIES for preshared in (False, True)],
    ids=lambda param: f"{param[0][0]}:{param[0][1]}-over-IPv{param[1]}-{'psk' if param[2] else 'plain'}",
)
def tunnel(request: pytest.FixtureRequest, standing: Callable[..., Tunnel]) -> Tunnel:
    kinds, outer, preshared = request.param
    return standing(kinds, outer, preshared=preshared)


def padded(length: int) -> int:
    """The paper's padding, but never beyond the MTU: then none at all (protocol 1.6)."""
    return up if (up := -(-length // 16) * 16) <= MTU else length


def pod_pairs(tunnel: Tunnel) -> list[tuple[Address, Address]]:
    one, two = tunnel.ends
    return [(one.pod.address(version), two.pod.address(version)) for version in FAMILIES]


def test_pods_reach_each_other_both_ways_and_nothing_is_seen_in_clear(tunnel: Tunnel) -> None:
    first, second = tunnel.ends

    with tunnel.capture() as capture:
        for end, other in tunnel.directions():
            for version in FAMILIES:
                assert ping(end.pod, other.pod.address(version), "-p", MARKER.hex()) == 3
    frames = capture.frames

    assert capture.lost == 0
    assert seen_in_clear(frames, pod_pairs(tunnel), MARKER) == 0
    for end in tunnel.ends:
        assert len(
            [one for one in messages(frames, TRANSPORT, source=end.node.address(tunnel.outer)) if one.padded_length]
        ) >= 6 * len(FAMILIES)
    assert {one.source for one in messages(frames, INITIATION)} == {first.node.address(tunnel.outer)}
    assert {one.source for one in messages(frames, RESPONSE)} == {second.node.address(tunnel.outer)}
    for end in tunnel.ends:
        if end.kind == "wgpy":
            sent = list(messages(frames, INITIATION, RESPONSE, source=end.node.address(tunnel.outer)))
            assert sent and {one.ds for one in sent} == {HANDSHAKE_DS}


def test_the_node_itself_speaks_to_a_pod_and_to_the_other_node(tunnel: Tunnel) -> None:
    for end, other in tunnel.directions():
        for version in FAMILIES:
            assert ping(end.node, other.pod.address(version), count=2) == 2
            assert ping(end.node, other.tunnel_address(version), count=2) == 2


def test_tcp_arrives_intact_both_ways(tunnel: Tunnel) -> None:
    for end, other in tunnel.directions():
        for version in FAMILIES:
            arrived = transfer(end.pod, end.pod.address(version), other.pod, other.pod.address(version), 2 << 20)

            assert arrived.is_intact


def test_udp_of_every_size_comes_back_as_it_was_sent(tunnel: Tunnel) -> None:
    for end, other in tunnel.directions():
        for version in FAMILIES:
            with echoing(other.pod, other.pod.address(version)) as echo:
                for size in (0, 1, 15, 16, 17, 1000, 1372, 1392, 1393, 3000, 20000):
                    assert echoed(end.pod, end.pod.address(version), echo, size), f"{size} bytes over IPv{version}"


def test_fragments_pass(tunnel: Tunnel) -> None:
    for end, other in tunnel.directions():
        for version in FAMILIES:
            assert ping(end.pod, other.pod.address(version), "-s", "3000", count=2) == 2


def test_a_packet_of_exactly_the_mtu_passes_whole_and_one_more_byte_does_not(tunnel: Tunnel) -> None:
    for end, other in tunnel.directions():
        for version in FAMILIES:
            address, most = other.pod.address(version), MTU - HEADERS[version]

            assert ping(end.pod, address, "-M", "do", "-s", str(most), count=2) == 2
            assert ping(end.pod, address, "-M", "do", "-s", str(most + 1), count=1, patience=0.1) == 0


def test_outer_sizes_follow_the_padding_rule(tunnel: Tunnel) -> None:
    lengths = [28, 32, 33, 48, 49, 1407, 1408, 1409, 1419, 1420]
    for end, other in tunnel.directions():
        if end.kind != "wgpy":
            continue
        with tunnel.capture() as capture:
            for length in lengths:
                assert ping(end.pod, other.pod.address(4), "-s", str(length - HEADERS[4]), count=1) == 1
        sent = messages(capture.frames, TRANSPORT, source=end.node.address(tunnel.outer))

        assert [one.padded_length for one in sent if one.padded_length] == [padded(length) for length in lengths]


def test_the_inner_ecn_is_copied_and_the_inner_dscp_is_not(tunnel: Tunnel) -> None:
    outer_of = {0: 0, 1: 1, 2: 2, 3: 2}  # RFC 6040: congestion experienced is not passed on outwards
    size_of = {ecn: 96 + 16 * ecn for ecn in outer_of}
    with tunnel.capture() as capture:
        for end, other in tunnel.directions():
            for version in FAMILIES:
                for ecn, size in size_of.items():
                    options = ["-Q", str(0xB8 | ecn), "-s", str(size - HEADERS[version])]
                    assert ping(end.pod, other.pod.address(version), *options, count=1) == 1

    for end in tunnel.ends:
        if end.kind == "wgpy":
            sent = messages(capture.frames, TRANSPORT, source=end.node.address(tunnel.outer))
            seen = {(one.padded_length, one.ds) for one in sent if one.padded_length}
            assert seen == {(size, outer_of[ecn]) for ecn, size in size_of.items()}
