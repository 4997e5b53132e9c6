"""Packets of pods as they may travel between two nodes: by themselves, in IP-in-IP, in VXLAN. Checksums are left out."""

import struct
from ipaddress import ip_address

from controller.leak_filter import VXLAN_PORTS
from controller.model import Address


def ipv4(
    source: Address, destination: Address, payload: bytes = b"", protocol: int = 6, words: int = 5, offset: int = 0
) -> bytes:
    """A packet with a header of so many words, and this fragment offset."""
    head = struct.pack("!BBHHHBBH", 4 << 4 | words, 0, words * 4 + len(payload), 0, offset, 64, protocol, 0)
    return head + source.packed + destination.packed + bytes(4 * (words - 5)) + payload


def ipv6(source: Address, destination: Address, payload: bytes = b"", protocol: int = 6) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source.packed + destination.packed + payload


def plain(source: Address, destination: Address, payload: bytes = b"", protocol: int = 6) -> bytes:
    return (ipv4 if source.version == 4 else ipv6)(source, destination, payload, protocol)


def udp(port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", 4321, port, 8 + len(payload), 0) + payload


def vxlan(packet: bytes) -> bytes:
    return bytes(8) + bytes(12) + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


NODES = {4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")), 6: (ip_address("fd00:aa::1"), ip_address("fd00:aa::2"))}


def tunnelled(packet: bytes, how: str, outer: int) -> bytes:
    """The packet as it travels between two nodes."""
    inner = {4: 4, 6: 41}[packet[0] >> 4]
    match how:
        case "ip":
            return plain(*NODES[outer], packet, inner)
        case "long ip":
            return ipv4(*NODES[4], packet, inner, words=9)
        case "vxlan":
            return plain(*NODES[outer], udp(VXLAN_PORTS[outer == 6], vxlan(packet)), 17)
        case _:
            return packet
