"""The words in which the kernel's WireGuard is configured and asked: generic netlink, packed and read. Pure.

``wg`` speaks it, too, but not all of it: that of Debian 12 cannot add an allowed IP without replacing the others, nor change a
peer only if it is there. Numbers: linux/genetlink.h, linux/wireguard.h. A message is a netlink message with its header; an
answer is the body of one, without.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from controller.rtnetlink import NLM_F_ACK, NLM_F_DUMP, attribute, pack
from wgpy.config import NO_KEY, Change, DeviceSnapshot, Endpoint, PeerConfig, PeerSnapshot, Prefix, SetDevice, SetPeer

NAME = "wireguard"
NLA_F_NESTED, NLA_TYPE = 0x8000, 0x3FFF
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE = 0, 1
DEVICE_IFNAME, DEVICE_PRIVATE_KEY, DEVICE_FLAGS, DEVICE_LISTEN_PORT, DEVICE_FWMARK, DEVICE_PEERS = 2, 3, 5, 6, 7, 8
DEVICE_REPLACE_PEERS = 1
PEER_PUBLIC_KEY, PEER_PRESHARED_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 2, 3, 4, 5
PEER_LAST_HANDSHAKE, PEER_RX_BYTES, PEER_TX_BYTES, PEER_ALLOWED_IPS = 6, 7, 8, 9
PEER_REMOVE_ME, PEER_REPLACE_ALLOWED_IPS, PEER_UPDATE_ONLY = 1, 2, 4
ALLOWED_IP_FAMILY, ALLOWED_IP_ADDRESS, ALLOWED_IP_LENGTH, ALLOWED_IP_FLAGS = 1, 2, 3, 4
ALLOWED_IP_REMOVE_ME = 1
ALLOWED_IPS_AT_ONCE = 500
"""So many in one message: the length of an attribute has 16 bits."""

_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")
_IPV4 = struct.Struct(">2s H 4s 8x")
_IPV6 = struct.Struct(">2s H 4x 16s 4s")


def family_query() -> bytes:
    """Asks for the number of WireGuard's messages, which differs from boot to boot."""
    return pack(GENL_ID_CTRL, NLM_F_ACK, 0, _generic(CTRL_CMD_GETFAMILY) + attribute(CTRL_ATTR_FAMILY_NAME, _text(NAME)))


def parse_family(answer: bytes) -> int:
    return int.from_bytes(dict(_attributes(answer[_GENERIC.size :]))[CTRL_ATTR_FAMILY_ID], "little")


def get_message(family: int, interface: str) -> bytes:
    return pack(family, NLM_F_DUMP, 0, _generic(WG_CMD_GET_DEVICE) + attribute(DEVICE_IFNAME, _text(interface)))


def set_messages(family: int, interface: str, change: Change) -> Iterator[bytes]:
    """What makes the change: one message, or several where a peer has very many allowed IPs."""
    for attributes in _device_attributes(change) if isinstance(change, SetDevice) else _peer_attributes(change):
        body = _generic(WG_CMD_SET_DEVICE) + attribute(DEVICE_IFNAME, _text(interface)) + attributes
        yield pack(family, NLM_F_ACK, 0, body)


def _device_attributes(change: SetDevice) -> Iterator[bytes]:
    attributes = attribute(DEVICE_FLAGS, _number(DEVICE_REPLACE_PEERS)) if change.replace_peers else b""
    if change.private_key is not None:
        attributes += attribute(DEVICE_PRIVATE_KEY, change.private_key)
    if change.listen_port is not None:
        attributes += attribute(DEVICE_LISTEN_PORT, _number(change.listen_port, 2))
    if change.fwmark is not None:
        attributes += attribute(DEVICE_FWMARK, _number(change.fwmark))
    yield attributes


def _peer_attributes(change: SetPeer) -> Iterator[bytes]:
    flags = PEER_REMOVE_ME * change.remove | PEER_UPDATE_ONLY * change.update_only
    attributes = b""
    if change.preshared_key is not None:
        attributes += attribute(PEER_PRESHARED_KEY, change.preshared_key)
    if change.endpoint is not None:
        attributes += attribute(PEER_ENDPOINT, _sockaddr(change.endpoint))
    if change.persistent_keepalive is not None:
        attributes += attribute(PEER_KEEPALIVE, _number(change.persistent_keepalive, 2))
    prefixes = [_allowed_ip(prefix) for prefix in change.allowed_ips]
    prefixes += [_allowed_ip(prefix, ALLOWED_IP_REMOVE_ME) for prefix in change.removed_allowed_ips]
    first, rest = prefixes[:ALLOWED_IPS_AT_ONCE], prefixes[ALLOWED_IPS_AT_ONCE:]
    yield _peer(change.public_key, flags | PEER_REPLACE_ALLOWED_IPS * change.replace_allowed_ips, attributes, first)
    for start in range(0, len(rest), ALLOWED_IPS_AT_ONCE):
        yield _peer(change.public_key, flags, b"", rest[start : start + ALLOWED_IPS_AT_ONCE])


def _peer(public_key: bytes, flags: int, attributes: bytes, allowed_ips: Sequence[bytes]) -> bytes:
    peer = attribute(PEER_PUBLIC_KEY, public_key) + attribute(PEER_FLAGS, _number(flags)) + attributes
    if allowed_ips:
        peer += _nested(PEER_ALLOWED_IPS, b"".join(allowed_ips))
    return _nested(DEVICE_PEERS, _nested(0, peer))


def _allowed_ip(prefix: Prefix, flags: int = 0) -> bytes:
    attributes = attribute(ALLOWED_IP_FAMILY, _number(socket.AF_INET if prefix.version == 4 else socket.AF_INET6, 2))
    attributes += attribute(ALLOWED_IP_ADDRESS, prefix.network_address.packed)
    attributes += attribute(ALLOWED_IP_LENGTH, bytes([prefix.prefixlen]))
    return _nested(0, attributes + (attribute(ALLOWED_IP_FLAGS, _number(flags)) if flags else b""))


def _sockaddr(endpoint: Endpoint) -> bytes:
    if endpoint.is_ipv6:
        return _IPV6.pack(_number(socket.AF_INET6, 2), endpoint.port, endpoint.address, _number(endpoint.scope_id))
    return _IPV4.pack(_number(socket.AF_INET, 2), endpoint.port, endpoint.address)


# Answers --------------------------------------------------------------------------------------------------------------


@dataclass
class _Peer:
    attributes: dict[int, bytes]
    allowed_ips: list[Prefix] = field(default_factory=list)

    def number(self, kind: int) -> int:
        return int.from_bytes(self.attributes.get(kind, b""), "little")

    def snapshot(self) -> PeerSnapshot:
        endpoint = self.attributes.get(PEER_ENDPOINT)
        config = PeerConfig(
            self.attributes[PEER_PUBLIC_KEY],
            self.attributes.get(PEER_PRESHARED_KEY, NO_KEY),
            None if endpoint is None else _endpoint(endpoint),
            self.number(PEER_KEEPALIVE),
            tuple(self.allowed_ips),
        )
        seconds, nanoseconds = struct.unpack("=qq", self.attributes.get(PEER_LAST_HANDSHAKE, bytes(16)))
        return PeerSnapshot(config, seconds * 10**9 + nanoseconds, self.number(PEER_TX_BYTES), self.number(PEER_RX_BYTES))


def parse_device(answers: Iterable[bytes]) -> DeviceSnapshot:
    """What the answers to :func:`get_message` say. A peer for whose allowed IPs one has no room goes on in the next."""
    device: dict[int, bytes] = {}
    peers: dict[bytes, _Peer] = {}
    for answer in answers:
        found = dict(_attributes(answer[_GENERIC.size :]))
        for _, nested in _attributes(found.pop(DEVICE_PEERS, b"")):
            attributes = dict(_attributes(nested))
            allowed_ips = attributes.pop(PEER_ALLOWED_IPS, b"")
            peer = peers.setdefault(attributes[PEER_PUBLIC_KEY], _Peer(attributes))
            peer.allowed_ips += [_prefix(each) for _, each in _attributes(allowed_ips)]
        device = found | device
    return DeviceSnapshot(
        device.get(DEVICE_PRIVATE_KEY, NO_KEY),
        int.from_bytes(device.get(DEVICE_LISTEN_PORT, b""), "little"),
        int.from_bytes(device.get(DEVICE_FWMARK, b""), "little"),
        tuple(peer.snapshot() for peer in peers.values()),
    )


def _prefix(nested: bytes) -> Prefix:
    attributes = dict(_attributes(nested))
    network = IPv4Network if len(attributes[ALLOWED_IP_ADDRESS]) == 4 else IPv6Network
    return network((attributes[ALLOWED_IP_ADDRESS], attributes[ALLOWED_IP_LENGTH][0]))


def _endpoint(sockaddr: bytes) -> Endpoint:
    if int.from_bytes(sockaddr[:2], "little") == socket.AF_INET:
        _, port, address = _IPV4.unpack_from(sockaddr)
        return Endpoint(str(ip_address(address)), port)
    _, port, address, scope = _IPV6.unpack_from(sockaddr)
    return Endpoint(str(ip_address(address)), port, int.from_bytes(scope, "little"))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        yield kind & NLA_TYPE, data[offset + _ATTRIBUTE.size : offset + length]
        offset += max(_ATTRIBUTE.size, length + 3 & ~3)


def _nested(kind: int, attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, attributes)


def _generic(command: int) -> bytes:
    return _GENERIC.pack(command, 1, 0)


def _number(value: int, length: int = 4) -> bytes:
    """In the byte order of x86-64, which the guest is."""
    return value.to_bytes(length, "little")


def _text(value: str) -> bytes:
    return value.encode() + b"\0"
