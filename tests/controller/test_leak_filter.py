"""The program for the kernel takes exactly what is between the pairs; the kernel itself says so.

A filter can be attached to any socket: here it is one end of a pair of Unix datagram sockets, which needs no privileges.
"""

import ctypes
import random
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controller.leak_filter import LONGEST, SNAP, Pairs, ends, program
from controller.model import Address, Family
from tests.controller.packets import NODES, ipv4, plain, tunnelled, udp, vxlan
from wgpy.config import Prefix

SO_ATTACH_FILTER = 26


class Taker:
    """Asks the kernel what a program takes."""

    def __init__(self, code: bytes) -> None:
        self._in, self._out = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._out.setblocking(False)
        buffer = ctypes.create_string_buffer(code)
        argument = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
        self._out.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, argument)

    def takes(self, packet: bytes) -> bool:
        self._in.send(packet)
        try:
            assert self._out.recv(1 << 16) == packet[:SNAP]
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._in.close()
        self._out.close()


@contextmanager
def taker(pairs: dict[Family, Pairs]) -> Iterator[Taker]:
    one = Taker(program(pairs))
    try:
        yield one
    finally:
        one.close()


def pairs(own: Iterable[str], peers: Iterable[str]) -> dict[Family, Pairs]:
    made = {}
    for family in Family:
        kinds = ([ip_network(text) for text in texts if ip_network(text).version == family.value] for texts in (own, peers))
        made[family] = Pairs(*map(frozenset, kinds))
    return made


PAIRS = pairs(["10.42.1.0/26", "10.42.9.7/32", "fd00:42:1::/122"], ["10.42.2.0/26", "10.42.3.128/25", "fd00:42:2::/122"])
BETWEEN = [("10.42.1.5", "10.42.2.63"), ("10.42.9.7", "10.42.3.128"), ("fd00:42:1::5", "fd00:42:2::3f")]
NOT_BETWEEN = [
    ("10.42.1.5", "10.42.2.64"),
    ("10.42.2.5", "10.42.3.129"),
    ("10.42.9.8", "10.42.2.5"),
    ("10.42.1.5", "192.0.2.2"),
    ("fd00:42:1::5", "fd00:42:2::40"),
    ("fd00:42:1::45", "fd00:42:2::5"),
]
WAYS = [("", 4), ("ip", 4), ("ip", 6), ("long ip", 4), ("vxlan", 4), ("vxlan", 6)]


@pytest.mark.parametrize(("how", "outer"), WAYS)
def test_what_is_between_a_pair_is_taken_either_way_and_however_it_travels(how: str, outer: int) -> None:
    with taker(PAIRS) as one:
        for texts in BETWEEN:
            source, destination = map(ip_address, texts)
            assert one.takes(tunnelled(plain(source, destination, b"x"), how, outer))
            assert one.takes(tunnelled(plain(destination, source, bytes(1400)), how, outer))
        for texts in NOT_BETWEEN:
            source, destination = map(ip_address, texts)
            assert not one.takes(tunnelled(plain(source, destination, b"x"), how, outer))
            assert not one.takes(tunnelled(plain(destination, source, b"x"), how, outer))


def test_what_wireguard_sends_is_let_go() -> None:
    message = b"\x04\x00\x00\x00" + bytes(60)
    with taker(PAIRS) as one:
        assert not one.takes(plain(*NODES[4], udp(51820, message), 17))
        assert not one.takes(plain(*NODES[6], udp(51821, message), 17))


def test_a_pod_that_has_tunnels_of_its_own_is_seen_all_the_same() -> None:
    """The pods' own addresses are outside, and what is inside is none of ours."""
    stranger = plain(ip_address("172.16.0.1"), ip_address("172.16.0.2"))
    with taker(PAIRS) as one:
        assert one.takes(plain(ip_address("10.42.1.5"), ip_address("10.42.2.5"), udp(8472, vxlan(stranger)), 17))


@pytest.mark.parametrize(("port", "is_taken"), [(4789, True), (8472, True), (4790, False), (51820, False)])
def test_vxlan_is_known_by_the_ports_of_calico_and_flannel(port: int, is_taken: bool) -> None:
    inner = plain(ip_address("10.42.1.5"), ip_address("10.42.2.5"))
    with taker(PAIRS) as one:
        assert one.takes(plain(*NODES[4], udp(port, vxlan(inner)), 17)) is is_taken


def test_ranges_that_touch_are_one_however_many_they_are() -> None:
    """Whose block is whose does not matter, as long as all of their nodes are peers."""
    ranges = [f"10.{42 + n // 1024}.{n // 4 % 256}.{n % 4 * 64}/26" for n in range(3001)]
    with taker(pairs(["10.99.0.0/26"], ranges)) as one:
        assert one.takes(plain(ip_address("10.42.0.0"), ip_address("10.99.0.1")))
        assert one.takes(plain(ip_address("10.44.238.63"), ip_address("10.99.0.1")))
        assert not one.takes(plain(ip_address("10.44.238.64"), ip_address("10.99.0.1")))


def test_ranges_that_lie_in_each_other_hide_nothing() -> None:
    """A tunnel's address lies in its node's block, and a borrowed one in another's."""
    nested = pairs(["10.42.1.0/26"], [f"10.42.2.{n}/32" for n in range(0, 200, 2)] + ["10.42.2.0/24", "10.42.2.0/26"])
    with taker(nested) as one:
        for last in range(256):
            assert one.takes(plain(ip_address("10.42.1.5"), ip_address(f"10.42.2.{last}")))


def test_a_later_fragment_of_a_vxlan_datagram_has_no_ports() -> None:
    inner = plain(ip_address("10.42.1.5"), ip_address("10.42.2.5"))
    with taker(PAIRS) as one:
        assert not one.takes(ipv4(*NODES[4], udp(4789, vxlan(inner)), 17, offset=1))
    assert len(list(ends(ipv4(*NODES[4], udp(4789, vxlan(inner)), 17, offset=1)))) == 1


@pytest.mark.parametrize("protocol", [4, 41])
def test_a_later_fragment_of_a_tunnels_packet_has_no_header_inside(protocol: int) -> None:
    """What stands there is a pod's data, which may look like anything."""
    data = plain(ip_address("10.42.1.5"), ip_address("10.42.2.5"))

    assert list(ends(ipv4(*NODES[4], data, protocol, offset=1))) == [NODES[4]]


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x60" + bytes(38), b"\x00" * 60, b"\xff" * 200])
def test_what_is_no_packet_is_let_go(packet: bytes) -> None:
    with taker(PAIRS) as one:
        assert not one.takes(packet or b"\x00")
    assert list(ends(b"\x45")) == list(ends(b"")) == []


def test_without_pairs_nothing_is_taken() -> None:
    packet = plain(ip_address("10.42.1.5"), ip_address("10.42.2.5"))
    for nothing in ({}, pairs([], ["0.0.0.0/0"]), pairs(["0.0.0.0/0"], [])):
        with taker(nothing) as one:
            assert not one.takes(packet)
    with taker(pairs(["0.0.0.0/0"], ["0.0.0.0/0"])) as one:
        assert one.takes(packet)


# Properties -----------------------------------------------------------------------------------------------------------

# Few bits, at both ends of an address and around the words' edges: so ranges touch, overlap and hold the addresses often.
PLACES = {4: [(0, 3), (13, 4), (28, 4)], 6: [(0, 2), (30, 4), (62, 4), (94, 4), (124, 4)]}


@st.composite
def numbers(draw: st.DrawFn, version: int) -> int:
    bits, value = {4: 32, 6: 128}[version], 0
    for start, length in PLACES[version]:
        value |= draw(st.integers(0, (1 << length) - 1)) << bits - start - length
    return value


def of_number(version: int, number: int) -> Address:
    return ip_address(number.to_bytes({4: 4, 6: 16}[version]))


@st.composite
def prefixes(draw: st.DrawFn, version: int) -> Prefix:
    start, length = draw(st.sampled_from(PLACES[version]))
    address = of_number(version, draw(numbers(version)))
    return ip_network((address, start + draw(st.integers(0, length))), strict=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[Family, Pairs], list[tuple[Address, Address]]]:
    made, addresses = {}, []
    for family in Family:
        some = prefixes(family.value)
        made[family] = Pairs(draw(st.frozensets(some, max_size=6)), draw(st.frozensets(some, max_size=20)))
        number = numbers(family.value)
        for _ in range(8):
            addresses.append((of_number(family.value, draw(number)), of_number(family.value, draw(number))))
    return made, addresses


def is_between(pairs: dict[Family, Pairs], source: Address, destination: Address) -> bool:
    one = pairs[Family(source.version)]

    def holds(some: Iterable[Prefix], address: Address) -> bool:
        return any(address in prefix for prefix in some)

    if not (one.own and one.peers):
        return False
    if holds(one.own, source) and holds(one.own, destination):
        return True  # one of them may be a peer's all the same, by a longer prefix
    return any(holds(one.own, a) and holds(one.peers, b) for a, b in ((source, destination), (destination, source)))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(WAYS))
def test_it_takes_what_the_ranges_say_and_nothing_else(
    case: tuple[dict[Family, Pairs], list[tuple[Address, Address]]], way: tuple[str, int]
) -> None:
    made, addresses = case
    how, outer = way
    nodes = NODES[4 if how == "long ip" else outer]
    assume(not how or not any(node in prefix for node in nodes for prefix in made[Family(nodes[0].version)].own))
    with taker(made) as one:
        for source, destination in addresses:
            packet = tunnelled(plain(source, destination, b"x"), *way)
            assert one.takes(packet) == is_between(made, source, destination)
            assert list(ends(packet))[-1] == (source, destination)


def test_of_more_ranges_than_a_program_holds_it_takes_all_and_perhaps_more() -> None:
    chance = random.Random(1)
    ranges = {f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(4) * 64}/26" for _ in range(5000)}
    made = pairs(["10.0.0.0/26", "fd00::/122"], ranges | {f"fd00:{n:x}::{n:x}/128" for n in range(1, 2000)})

    code = program(made)

    assert len(code) // 8 <= LONGEST
    with taker(made) as one:
        for network in list(made[Family.IPV4].peers)[::50]:
            assert one.takes(plain(ip_address("10.0.0.1"), network[5]))
        assert one.takes(plain(ip_address("fd00::1"), ip_address("fd00:7cf::7cf")))
        assert not one.takes(plain(ip_address("10.1.0.1"), ip_address("10.2.0.1")))


def test_a_thousand_nodes_fit_exactly_and_the_program_is_quickly_made() -> None:
    """Every other block is somebody else's, so that no two make one."""
    ranges = [f"10.42.{n // 2}.{n % 2 * 128}/26" for n in range(500)] + [f"10.43.{n // 2}.{n % 2 * 128}/26" for n in range(500)]
    made = pairs(["10.44.0.0/26"], ranges)
    began = time.process_time()
    with taker(made) as one:
        took = time.process_time() - began
        for n in range(250):
            for first in (0, 128):
                assert one.takes(plain(ip_address("10.44.0.1"), ip_address(f"10.42.{n}.{first}")))
                assert one.takes(plain(ip_address(f"10.43.{n}.{first + 63}"), ip_address("10.44.0.63")))
                assert not one.takes(plain(ip_address("10.44.0.1"), ip_address(f"10.42.{n}.{first + 64}")))
    assert took < 1.0
