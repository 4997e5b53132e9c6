"""Packed and read by hand: a route comes out as it went in. What the kernel makes of the messages is in test_netlink."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.model import Family
from controller.rtnetlink import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    RTM_NEWROUTE,
    RTN_BLACKHOLE,
    Message,
    attribute,
    dump_routes,
    messages,
    pack,
    parse_route,
    put_route,
)
from controller.state import Route, RouteKind

ipv4 = st.builds(
    lambda length, offset: IPv4Network((offset, length), strict=False), st.integers(0, 32), st.integers(0, 2**32 - 1)
)
ipv6 = st.builds(
    lambda length, offset: IPv6Network((offset, length), strict=False), st.integers(0, 128), st.integers(0, 2**128 - 1)
)
routes = st.builds(Route, ipv4 | ipv6, st.sampled_from(RouteKind), st.integers(0, 2**32 - 1), st.integers(1, 255))


@settings(deadline=None)
@given(routes, st.integers(1, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_a_route_comes_out_as_it_went_in(route: Route, table: int, index: int) -> None:
    expected = (table, index if route.kind is RouteKind.DEVICE else 0, route)

    assert parse_route(put_route(table, route, index)) == expected


def test_a_route_of_a_type_that_is_never_ours_is_none() -> None:
    body = bytearray(put_route(5182, Route(ip_network("10.0.0.0/8"), RouteKind.THROW), 0))
    body[7] = RTN_BLACKHOLE
    assert parse_route(bytes(body)).route == Route(ip_network("10.0.0.0/8"), RouteKind.PROHIBIT)
    body[7] = 2  # RTN_LOCAL
    assert parse_route(bytes(body)).route is None


def test_a_table_of_a_byte_may_be_told_in_the_header_alone() -> None:
    body = bytearray(dump_routes(0, Family.IPV4)[:12])
    body[4], body[7] = 77, 9

    assert parse_route(bytes(body)) == (77, 0, Route(ip_network("0.0.0.0/0"), RouteKind.THROW, protocol=0))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(0, 40))
def test_messages_come_apart_as_they_were_put_together(bodies: list[bytes], cut: int) -> None:
    packed = [pack(RTM_NEWROUTE, NLM_F_ACK, number, body) for number, body in enumerate(bodies)]
    datagram = b"".join(message + bytes(-len(message) % 4) for message in packed)
    expected = [Message(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK, number, body) for number, body in enumerate(bodies)]

    assert list(messages(datagram)) == expected
    whole = list(messages(datagram[: max(0, len(datagram) - cut)]))
    assert whole == expected[: len(whole)], "and of one that is cut short nothing is made up"


def test_attributes_are_padded_to_four_bytes() -> None:
    assert attribute(1, b"abcde") == b"\x09\x00\x01\x00abcde\x00\x00\x00"
