"""Whether the sender of a packet is told that nobody takes it, and in which words. Pure.

The kernel's WireGuard answers a packet for which there is no peer, or a peer without an endpoint, with an ICMP error: host
unreachable, or for IPv6 address unreachable (protocol 1.9). So a ping says so and a connection fails at once, where silence
would make both wait. Here is what an error may be about (RFC 1122 3.2.2, RFC 4443 2.4e) and its bytes; who sends it, and how
often, is the daemon's business.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ICMP, ICMPV6 = 1, 58

HOST_UNREACHABLE = 3, 1
ADDRESS_UNREACHABLE = 1, 3
QUOTE_IPV4 = 576 - 20 - 8
"""Bytes of the packet that are quoted: as many as leave the error within what every host takes (RFC 1812 4.3.2.3)."""
QUOTE_IPV6 = 1280 - 40 - 8

_QUESTIONS_IPV4 = {0, 8, 9, 10, 13, 14, 15, 16, 17, 18}
"""The types of ICMP that are no errors. One that is not known might be an error."""
_REDIRECT_IPV6 = 137
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS = 0, 43, 44, 51, 60
_EXTENSIONS = {_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS}
_LOOPBACK_IPV6 = bytes(15) + b"\x01"
_TRANSPORT_BYTES = 8


class Refused(NamedTuple):
    """A packet whose sender may be told. Addresses have 4 or 16 bytes, ``transport`` is the beginning of what follows the IP
    headers: 8 bytes, where there are so many."""

    source: bytes
    destination: bytes
    protocol: int
    transport: bytes


def refused(packet: bytes | memoryview) -> Refused | None:
    """Read an IP packet that nobody takes; None if there must be no error about it.

    That is: a packet that is malformed, an error itself, a fragment other than the first, to many, or from an address that is
    not one host's.
    """
    version = packet[0] >> 4 if len(packet) else 0
    found = _read_ipv4(packet) if version == 4 else _read_ipv6(packet) if version == 6 else None
    return None if found is None or _is_error(found) else found


def unreachable(packet: bytes | memoryview) -> bytes:
    """The ICMP error about an IP packet. That for IPv6 lacks the checksum, which the kernel fills in (RFC 3542 3.1)."""
    if packet[0] >> 4 == 6:
        return bytes([*ADDRESS_UNREACHABLE, 0, 0]) + bytes(4) + bytes(packet[:QUOTE_IPV6])
    head, rest = bytes(HOST_UNREACHABLE), bytes(4) + bytes(packet[:QUOTE_IPV4])
    return head + _checksum(head + rest).to_bytes(2) + rest


def _read_ipv4(packet: bytes | memoryview) -> Refused | None:
    if len(packet) < 20:
        return None
    header, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4])
    fragment_offset = int.from_bytes(packet[6:8]) & 0x1FFF
    if not 20 <= header <= total <= len(packet) or fragment_offset:
        return None
    source, destination = bytes(packet[12:16]), bytes(packet[16:20])
    if source[0] in (0, 127) or source[0] >= 224 or destination[0] >= 224:
        return None
    return Refused(source, destination, packet[9], bytes(packet[header : min(total, header + _TRANSPORT_BYTES)]))


def _read_ipv6(packet: bytes | memoryview) -> Refused | None:
    if len(packet) < 40:
        return None
    source, destination = bytes(packet[8:24]), bytes(packet[24:40])
    if source in (bytes(16), _LOOPBACK_IPV6) or 0xFF in (source[0], destination[0]):
        return None
    protocol, start, end = packet[6], 40, 40 + int.from_bytes(packet[4:6])
    if end > len(packet):
        return None
    while protocol in _EXTENSIONS:
        if start + 8 > end:
            return None
        if protocol == _FRAGMENT and int.from_bytes(packet[start + 2 : start + 4]) & 0xFFF8:
            return None
        length = _extension_length(protocol, packet[start + 1])
        protocol, start = packet[start], start + length
    if start > end:
        return None
    return Refused(source, destination, protocol, bytes(packet[start : min(end, start + _TRANSPORT_BYTES)]))


def _extension_length(protocol: int, field: int) -> int:
    """Bytes of an extension header (RFC 8200 4, RFC 4302 2.2)."""
    if protocol == _FRAGMENT:
        return 8
    return (field + 2) * 4 if protocol == _AUTHENTICATION else (field + 1) * 8


def _is_error(found: Refused) -> bool:
    """Whether a packet is an ICMP error, or might be one: about them there is none, or two nodes would go on for ever."""
    if found.protocol == ICMP and len(found.source) == 4:
        return not found.transport or found.transport[0] not in _QUESTIONS_IPV4
    if found.protocol == ICMPV6 and len(found.source) == 16:
        return not found.transport or found.transport[0] < 128 or found.transport[0] == _REDIRECT_IPV6
    return False


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    words: tuple[int, ...] = struct.unpack(f">{len(data) // 2}H", data)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
