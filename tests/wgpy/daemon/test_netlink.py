"""The two questions: their bytes, and the kernel's own answers in a network namespace."""

import contextlib
import errno
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgpy.core.icmp import Refused
from wgpy.daemon.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    RTN_BROADCAST,
    Route,
    conntrack_query,
    open_netlink,
    original_source,
    parse_attributes,
    parse_conntrack,
    parse_route,
    route_query,
    route_to,
)

HERE, THERE = ip_address("10.1.0.1").packed, ip_address("10.1.0.2").packed
HERE6, THERE6 = ip_address("fd01::1").packed, ip_address("fd01::2").packed


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


# -- bytes ----------------------------------------------------------------------------------------------------------------


def test_a_route_is_asked_for_by_its_destination() -> None:
    assert route_query(THERE, b"", 0, 0, (0, 0)) == bytes([2, 32, 0]) + bytes(9) + attribute(1, THERE)
    assert route_query(THERE6, b"", 0, 0, (0, 0)) == bytes([10, 128, 0]) + bytes(9) + attribute(1, THERE6)


def test_a_route_is_asked_for_by_all_that_policy_rules_may_ask_for() -> None:
    query = route_query(THERE, HERE, 7, 51820, (4321, 51820))

    assert query[:3] == bytes([2, 32, 32])
    assert parse_attributes(query[12:]) == {
        1: THERE,
        2: HERE,
        4: struct.pack("=I", 7),
        16: struct.pack("=I", 51820),
        27: bytes([17]),
        28: struct.pack(">H", 4321),
        29: struct.pack(">H", 51820),
    }


def test_a_port_that_is_not_bound_is_no_port_to_ask_for() -> None:
    assert 27 not in parse_attributes(route_query(THERE, b"", 0, 0, (0, 51820))[12:])


def test_an_answer_says_kind_interface_and_source() -> None:
    header = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, 3, 0)

    assert parse_route(header + attribute(4, struct.pack("=I", 300)) + attribute(7, HERE)) == Route(3, 300, HERE)
    assert parse_route(header) == Route(3, 0, b"")
    with pytest.raises(OSError, match="cut short"):
        parse_route(header[:11])


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_are_read_as_they_are_written(attributes: dict[int, bytes]) -> None:
    written = b"".join(attribute(kind | 0x8000, payload) for kind, payload in attributes.items())

    assert parse_attributes(written) == attributes


@given(st.binary(max_size=100))
def test_whatever_claims_to_be_attributes_is_read_to_its_end(data: bytes) -> None:
    assert all(len(payload) <= len(data) for payload in parse_attributes(data).values())


def tuple_asked_for(refused: Refused) -> tuple[dict[int, bytes], dict[int, bytes]]:
    query = conntrack_query(refused)
    assert query is not None
    (answer,) = (value for kind, value in parse_attributes(query[4:]).items() if kind == 2)
    parts = parse_attributes(answer)
    return parse_attributes(parts[1]), parse_attributes(parts[2])


@pytest.mark.parametrize("protocol", [6, 17, 132])
def test_conntrack_is_asked_for_the_answer_to_a_packet(protocol: int) -> None:
    addresses, proto = tuple_asked_for(Refused(HERE, THERE, protocol, b"\x10\x00\x00\x50" + bytes(4)))

    assert addresses == {1: THERE, 2: HERE}
    assert proto == {1: bytes([protocol]), 2: b"\x00\x50", 3: b"\x10\x00"}


def test_conntrack_is_asked_for_the_answer_to_a_ping() -> None:
    addresses, proto = tuple_asked_for(Refused(HERE, THERE, 1, b"\x08\x00\xff\xff\x12\x34\x00\x01"))
    assert (addresses, proto) == ({1: THERE, 2: HERE}, {1: b"\x01", 4: b"\x12\x34", 5: b"\x00", 6: b"\x00"})

    addresses, proto = tuple_asked_for(Refused(HERE6, THERE6, 58, b"\x80\x00\xff\xff\x12\x34\x00\x01"))
    assert (addresses, proto) == ({3: THERE6, 4: HERE6}, {1: b"\x3a", 7: b"\x12\x34", 8: b"\x81", 9: b"\x00"})


def test_conntrack_knows_other_protocols_by_their_addresses() -> None:
    assert tuple_asked_for(Refused(HERE, THERE, 47, b"")) == ({1: THERE, 2: HERE}, {1: b"\x2f"})


@pytest.mark.parametrize(
    ("protocol", "transport"),
    [(1, b"\x00\x00\x00\x00\x12\x34"), (1, b"\x08\x00"), (58, b"\x81\x00\x00\x00\x12\x34"), (6, b"\x00\x50\x10"), (17, b"")],
)
def test_conntrack_is_not_asked_for_what_has_no_answer(protocol: int, transport: bytes) -> None:
    assert conntrack_query(Refused(HERE, THERE, protocol, transport)) is None


@pytest.mark.parametrize(("kind", "address"), [(1, HERE), (3, HERE6)])
def test_the_original_source_is_read(kind: int, address: bytes) -> None:
    original = attribute(1 | 0x8000, attribute(kind, address) + attribute(kind + 1, address[::-1]))
    reply = attribute(1 | 0x8000, attribute(kind, address[::-1]))

    assert parse_conntrack(bytes(4) + attribute(1 | 0x8000, original) + attribute(2 | 0x8000, reply)) == address
    assert parse_conntrack(bytes(4) + attribute(2 | 0x8000, reply)) is None
    assert parse_conntrack(b"") is None


# -- the kernel -----------------------------------------------------------------------------------------------------------


def ip(commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True, capture_output=True)


@pytest.fixture
def routes(namespace: None) -> Iterator[socket.socket]:
    """A socket in a namespace with two interfaces and a route by each."""
    ip(
        "link add veth1 type veth peer name end1\nlink set veth1 up\nlink set end1 up\naddr add 10.1.0.1/24 dev veth1\n"
        "link add veth2 type veth peer name end2\nlink set veth2 up\nlink set end2 up\naddr add 10.2.0.1/24 dev veth2\n"
        "addr add 10.2.0.9/32 dev veth2\n"
        "route add 10.9.0.0/16 via 10.1.0.2\nroute add 10.9.0.0/16 via 10.2.0.2 src 10.2.0.9 table 7\n"
    )
    with open_netlink(NETLINK_ROUTE) as sock:
        yield sock


@pytest.mark.e2e
def test_the_kernel_tells_the_way(routes: socket.socket) -> None:
    a, b = socket.if_nametoindex("veth1"), socket.if_nametoindex("veth2")
    far = ip_address("10.9.9.9").packed

    assert route_to(routes, far) == Route(1, a, HERE)
    assert route_to(routes, far, source=ip_address("10.2.0.1").packed).interface == a
    assert route_to(routes, ip_address("127.0.0.1").packed).interface == 1
    assert route_to(routes, ip_address("10.1.0.255").packed).kind == RTN_BROADCAST

    ip("rule add fwmark 9 table 7\n")
    assert route_to(routes, far, mark=9) == Route(1, b, ip_address("10.2.0.9").packed)
    assert route_to(routes, far, mark=8).interface == a
    ip("rule del fwmark 9 table 7\nrule add ipproto udp dport 51820 table 7\n")
    assert route_to(routes, far, ports=(1, 51820)).interface == b
    assert route_to(routes, far, ports=(1, 51821)).interface == a
    ip("rule del ipproto udp dport 51820 table 7\nrule add from 10.2.0.9 table 7\n")
    assert route_to(routes, far, source=ip_address("10.2.0.9").packed).interface == b


@pytest.mark.e2e
def test_the_kernel_refuses_with_its_number(routes: socket.socket) -> None:
    with pytest.raises(OSError) as raised:
        route_to(routes, ip_address("192.0.2.1").packed)
    assert raised.value.errno == errno.ENETUNREACH

    with pytest.raises(OSError):
        route_to(routes, THERE, source=ip_address("10.99.0.1").packed)  # which is not ours
    assert route_to(routes, THERE).source == HERE, "and answers the next question"


@pytest.mark.e2e
def test_conntrack_tells_whom_a_packet_came_from(routes: socket.socket) -> None:
    """Here a packet of our own, whose source is changed as it leaves."""
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed: it is in the package nftables")
    rules = "table ip t {\nchain c {\ntype nat hook postrouting priority 100;\nip daddr 10.1.0.2 snat to 10.1.0.77\n}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        contextlib.closing(open_netlink(NETLINK_NETFILTER)) as conntrack,
    ):
        ip("neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev veth1\n")
        sock.bind(("10.1.0.1", 4321))
        sock.sendto(b"x", ("10.1.0.2", 80))
        changed = Refused(ip_address("10.1.0.77").packed, THERE, 17, struct.pack(">HH", 4321, 80) + bytes(4))

        try:
            assert original_source(conntrack, changed) == HERE
        except OSError as error:
            pytest.skip(f"this kernel has no ctnetlink: {error.strerror}")
        assert original_source(conntrack, changed._replace(source=HERE)) is None, "nobody has sent that"
        assert original_source(conntrack, changed._replace(transport=b"")) is None
