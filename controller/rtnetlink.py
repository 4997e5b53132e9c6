"""Messages of rtnetlink about routes, packed and read by hand. Pure.

The rest goes through pyroute2, which spends a quarter of a millisecond on a message; a large cluster has tens of thousands of
routes, and all of them are read in every pass. What the kernel says of a route is the same bytes as long as the route is the
same, so what they mean is looked up, not read again. Numbers: linux/netlink.h, linux/rtnetlink.h.
"""

import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from controller.model import Family
from controller.prefixes import known
from controller.state import Route, RouteKind

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_DUMP, NLM_F_CREATE = 1, 4, 0x10, 0x100, 0x300, 0x400
RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 1, 6, 7, 8, 9
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTA_DST, RTA_OIF, RTA_PRIORITY, RTA_TABLE = 1, 4, 6, 15
RT_TABLE_UNSPEC = 0  # the number is in RTA_TABLE, where it has more than a byte

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, destination length, source length, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_TYPES = {RouteKind.DEVICE: RTN_UNICAST, RouteKind.THROW: RTN_THROW, RouteKind.PROHIBIT: RTN_PROHIBIT}
_KINDS = {RTN_UNICAST: RouteKind.DEVICE, RTN_THROW: RouteKind.THROW, RTN_PROHIBIT: RouteKind.PROHIBIT}
# Ours to keep like a refusal, but unlike one: what a plan finds and has not made, it replaces or removes.
_KINDS |= {RTN_BLACKHOLE: RouteKind.PROHIBIT, RTN_UNREACHABLE: RouteKind.PROHIBIT}


class TableRoute(NamedTuple):
    """A route as the kernel tells of it. ``link`` is that of the link it leads to, 0 for none; ``route`` is None where it is of
    a type that is never ours."""

    table: int
    link: int
    route: Route | None


class Message(NamedTuple):
    kind: int
    flags: int
    sequence: int
    body: bytes


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram; one that claims to be longer than the datagram ends it."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            return
        yield Message(kind, flags, sequence, datagram[offset + _HEADER.size : offset + length])
        offset += length + 3 & ~3


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def put_route(table: int, route: Route, index: int) -> bytes:
    """The body of a message that adds a route, or replaces the one with its prefix and metric. ``index``: of our interface."""
    is_into_link = route.kind is RouteKind.DEVICE
    scope = RT_SCOPE_LINK if is_into_link and route.prefix.version == 4 else RT_SCOPE_UNIVERSE  # IPv6 routes have none
    body = _route(table, route, route.protocol, scope)
    return body + attribute(RTA_OIF, _NUMBER.pack(index)) if is_into_link else body


def remove_route(table: int, route: Route) -> bytes:
    return _route(table, route, 0, RT_SCOPE_NOWHERE)  # which here means: of any protocol, of any scope


def dump_routes(table: int, family: Family) -> bytes:
    return _ROUTE.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_TABLE, _NUMBER.pack(table))


@lru_cache(1 << 18)
def parse_route(body: bytes) -> TableRoute:
    """What the body of a RTM_NEWROUTE says."""
    family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    attributes = dict(_attributes(body))
    metric = _number(attributes.get(RTA_PRIORITY))
    any_address = bytes(4 if family == socket.AF_INET else 16)
    address = int.from_bytes(attributes.get(RTA_DST, any_address))
    network = IPv4Network if family == socket.AF_INET else IPv6Network
    route = Route(known(network((address, length))), _KINDS[kind], metric, protocol) if kind in _KINDS else None
    return TableRoute(_number(attributes.get(RTA_TABLE)) or table, _number(attributes.get(RTA_OIF)), route)


def _route(table: int, route: Route, protocol: int, scope: int) -> bytes:
    prefix = route.prefix
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, prefix.prefixlen, 0, 0, RT_TABLE_UNSPEC, protocol, scope, _TYPES[route.kind], 0)
    body += attribute(RTA_DST, prefix.network_address.packed)
    return body + attribute(RTA_PRIORITY, _NUMBER.pack(route.metric)) + attribute(RTA_TABLE, _NUMBER.pack(table))


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = _ROUTE.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def _number(payload: bytes | None) -> int:
    return int(_NUMBER.unpack(payload)[0]) if payload else 0
