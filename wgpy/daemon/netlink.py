"""Two questions to the kernel, by netlink: which way does a datagram go, and who sent a packet before NAT.

A question is one small message, and its answer waits when the send returns, for the kernel works on a request in the caller's
own time. So a socket here never waits. (pyroute2 would cost the data plane 22 MB.)

The bytes are made and read by pure functions. Numbers: linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h and
nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

from wgpy.core.icmp import ICMP, ICMPV6, Refused

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLMSG_ERROR = 2
NLM_F_REQUEST = 1
RTM_GETROUTE = 26
RTA_DST, RTA_SRC, RTA_OIF, RTA_PREFSRC, RTA_MARK, RTA_IP_PROTO, RTA_SPORT, RTA_DPORT = 1, 2, 4, 7, 16, 27, 28, 29
RTN_BROADCAST, RTN_MULTICAST = 3, 5
IPCTNL_MSG_CT_GET = 1 << 8 | 1  # subsystem ctnetlink, message CT_GET
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 1, 2
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_SRC, CTA_IP_DST = {4: 1, 16: 3}, {4: 2, 16: 4}  # by the length of the address
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_PROTO_ICMP = {ICMP: (4, 5, 6), ICMPV6: (7, 8, 9)}  # identifier, type, code
NLA_F_NESTED = 0x8000
NLA_TYPE = 0x3FFF

ANSWERING_TYPE = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18}, ICMPV6: {128: 129}}
"""Of the ICMP questions that conntrack knows, the type of their answers."""
PORTS = {6, 17, 33, 132, 136}
"""TCP, UDP, DCCP, SCTP and UDP-Lite: their header begins with two ports."""
LONGEST = 1 << 16

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, destination length, source length, tos, table, protocol, scope, type, flags
_NETFILTER = struct.Struct("=BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")


class Route(NamedTuple):
    """The way of a datagram: what kind of route it is (RTN_…), the index of the interface it leaves by, and the address that
    the kernel would send it from (b"" if it does not say)."""

    kind: int
    interface: int
    source: bytes


def open_netlink(protocol: int) -> socket.socket:
    """A socket for questions, in the network namespace of the calling thread."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)


def route_to(
    sock: socket.socket,
    destination: bytes,
    *,
    source: bytes = b"",
    interface: int = 0,
    mark: int = 0,
    ports: tuple[int, int] = (0, 0),
) -> Route:
    """The way of a UDP datagram from here to ``destination`` (4 or 16 bytes).

    ``source`` is the address it is sent from, ``interface`` the one it has to leave by (of a link-local destination), ``mark``
    and ``ports`` (ours, theirs) are what policy rules may ask for. Raises OSError: there is no way, or none from ``source``.
    """
    return parse_route(_ask(sock, RTM_GETROUTE, route_query(destination, source, interface, mark, ports)))


def original_source(sock: socket.socket, refused: Refused) -> bytes | None:
    """Whom a packet came from before NAT changed its source; None if conntrack does not know the packet.

    Raises OSError if conntrack cannot be asked.
    """
    query = conntrack_query(refused)
    if query is None:
        return None
    try:
        return parse_conntrack(_ask(sock, IPCTNL_MSG_CT_GET, query))
    except FileNotFoundError:
        return None


def _ask(sock: socket.socket, kind: int, body: bytes) -> bytes:
    """The body of the kernel's answer to a request. Raises OSError with the number it refuses with."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST, 0, 0) + body)
    answer = sock.recv(LONGEST)
    if len(answer) < _HEADER.size + _NUMBER.size:
        raise OSError(errno.EBADMSG, "the kernel's answer is cut short")
    if _HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        raise OSError(number, os.strerror(number & 0xFFF))  # MAX_ERRNO of linux/err.h: nothing greater is one
    return answer[_HEADER.size :]


# Pure ----------------------------------------------------------------------------------------------------------------


def route_query(destination: bytes, source: bytes, interface: int, mark: int, ports: tuple[int, int]) -> bytes:
    """The body of an RTM_GETROUTE; see :func:`route_to`."""
    family = socket.AF_INET if len(destination) == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, len(destination) * 8, len(source) * 8, 0, 0, 0, 0, 0, 0) + _attribute(RTA_DST, destination)
    if source:
        body += _attribute(RTA_SRC, source)
    for attribute, number in ((RTA_OIF, interface), (RTA_MARK, mark)):
        if number:
            body += _attribute(attribute, _NUMBER.pack(number))
    if all(ports):
        body += _attribute(RTA_IP_PROTO, bytes([socket.IPPROTO_UDP]))
        body += _attribute(RTA_SPORT, ports[0].to_bytes(2)) + _attribute(RTA_DPORT, ports[1].to_bytes(2))
    return body


def parse_route(body: bytes) -> Route:
    """What the body of an RTM_NEWROUTE says."""
    if len(body) < _ROUTE.size:
        raise OSError(errno.EBADMSG, "the kernel's answer is cut short")
    attributes = parse_attributes(body[_ROUTE.size :])
    interface = attributes.get(RTA_OIF, b"")
    return Route(_ROUTE.unpack_from(body)[7], int.from_bytes(interface, "little"), attributes.get(RTA_PREFSRC, b""))


def conntrack_query(refused: Refused) -> bytes | None:
    """The body of a CT_GET for the connection of which ``refused`` is the way there; None for what conntrack has none of."""
    proto = _answers_proto(refused)
    if proto is None:
        return None
    family = socket.AF_INET if len(refused.source) == 4 else socket.AF_INET6
    addresses = _attribute(CTA_IP_SRC[len(refused.source)], refused.destination)
    addresses += _attribute(CTA_IP_DST[len(refused.source)], refused.source)
    proto = _attribute(CTA_PROTO_NUM, bytes([refused.protocol])) + proto
    answer = _attribute(CTA_TUPLE_IP | NLA_F_NESTED, addresses) + _attribute(CTA_TUPLE_PROTO | NLA_F_NESTED, proto)
    return _NETFILTER.pack(family, 0, 0) + _attribute(CTA_TUPLE_REPLY | NLA_F_NESTED, answer)


def _answers_proto(refused: Refused) -> bytes | None:
    """The protocol's part of the tuple that an answer to the packet would have."""
    transport = refused.transport
    if refused.protocol in ANSWERING_TYPE:
        answers = ANSWERING_TYPE[refused.protocol].get(transport[0]) if len(transport) >= 6 else None
        if answers is None:
            return None
        identifier, kind, code = CTA_PROTO_ICMP[refused.protocol]
        return _attribute(identifier, transport[4:6]) + _attribute(kind, bytes([answers])) + _attribute(code, transport[1:2])
    if refused.protocol in PORTS:
        if len(transport) < 4:
            return None
        return _attribute(CTA_PROTO_SRC_PORT, transport[2:4]) + _attribute(CTA_PROTO_DST_PORT, transport[0:2])
    return b""  # conntrack knows other protocols by their addresses alone


def parse_conntrack(body: bytes) -> bytes | None:
    """The source address of the original direction, as the body of an IPCTNL_MSG_CT_NEW says it."""
    original = parse_attributes(body[_NETFILTER.size :]).get(CTA_TUPLE_ORIG, b"")
    addresses = parse_attributes(parse_attributes(original).get(CTA_TUPLE_IP, b""))
    return addresses.get(CTA_IP_SRC[4]) or addresses.get(CTA_IP_SRC[16])


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their type, without its flags. One that claims to be longer than what is there ends it."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            break
        found[kind & NLA_TYPE] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
    return found


def _attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)
