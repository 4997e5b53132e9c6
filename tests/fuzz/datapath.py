"""Targets: the data path, with sessions that no handshake made.

Two devices, and both ends' keys are known here: what a device sends can be read, and what it receives can be sealed as a peer
would seal it, whatever is inside. Every input goes two ways, many packets at a time and one by one, and what comes of both is
compared with what a few naive lines say should come of it: cryptokey routing by a list of prefixes, lengths, padding, ECN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network

import numpy as np

from noise.crypto import public_key
from noise.handshake import TransportKeys
from noise.keypair import Keypair
from noise.messages import CookieReply, HandshakeInitiation, HandshakeResponse, TransportData
from noise.transport import seal, unseal_one
from tests.fuzz.offload import without_what_is_made_anew
from tests.fuzz.reader import Reader
from tests.tun.packets import word_sum
from tun.offload import GSO_NONE, NEEDS_CSUM, VIRTIO_HEADER, OffloadError, packets_of
from wgpy.config import Endpoint, Prefix, SetDevice, SetPeer
from wgpy.core.device import Device, Outputs
from wgpy.core.drops import Drop
from wgpy.core.icmp import refused, unreachable
from wgpy.daemon.netlink import conntrack_query, parse_attributes

NOW = 1000.0
MTU = 1420
OVERHEAD = 32
MOST = 40
"""Packets of one input."""

LENGTHS = {1: (HandshakeInitiation, 148), 2: (HandshakeResponse, 92), 3: (CookieReply, 64), 4: (TransportData, None)}


def messages(data: bytes) -> None:
    """Bytes as each of the four messages: exactly those are taken that protocol 1.1 describes, and packed as they were."""
    kind, length = LENGTHS.get(int.from_bytes(data[:4], "little"), (None, None)) if len(data) >= 4 else (None, None)
    fits = len(data) == length if length else len(data) >= OVERHEAD
    for message in (HandshakeInitiation, HandshakeResponse, CookieReply, TransportData):
        unpacked = message.unpack(data)
        assert (unpacked is not None) == (kind is message and fits)
        if unpacked is not None:
            assert unpacked.pack() == data


# --- A device whose sessions are known ---


@dataclass(frozen=True)
class Site:
    """A peer: what it owns, and the keys under which it and the device speak."""

    number: int
    prefixes: tuple[Prefix, ...]

    @property
    def public_key(self) -> bytes:
        return public_key(bytes([self.number]) * 32)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"192.0.2.{self.number}", 51820)

    def keypair(self, *, of_device: bool) -> Keypair:
        """One end's of the session."""
        to_device, from_device = bytes([self.number, 1]) * 16, bytes([self.number, 2]) * 16
        keys = (from_device, to_device) if of_device else (to_device, from_device)
        indices = (self.number, 100 + self.number) if of_device else (100 + self.number, self.number)
        return Keypair.derived(TransportKeys(*indices, not of_device, *keys), NOW)


SITES = (
    Site(1, (ip_network("10.1.0.0/16"), ip_network("fd00:1::/32"), ip_network("192.0.2.1/32"))),
    Site(2, (ip_network("10.1.2.0/24"), ip_network("fd00:1:2::/48"), ip_network("0.0.0.0/0"))),
)


@lru_cache(1 << 12)
def owner(address: bytes) -> Site | None:
    """Whose an address is: of all prefixes the longest that it is in, by looking at all of them."""
    found = [
        (prefix.prefixlen, site)
        for site in SITES
        for prefix in site.prefixes
        if prefix.version == (4 if len(address) == 4 else 6) and ip_address(address) in prefix
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


class Subject(Outputs):
    """A device, and what it sends and writes."""

    def __init__(self) -> None:
        self.sent: list[tuple[Endpoint, int, bytes, int]] = []
        """Endpoint, outer DS byte, datagrams, length of each."""
        self.written: list[bytes] = []
        self.device = Device(
            self, random_bytes=bytes, jitter=float, wall_clock=int, mtu=MTU, unreachable=lambda packet, now: tell(bytes(packet))
        )
        self.device.apply([SetDevice(private_key=bytes([9]) * 32)], NOW)
        self.device.up(NOW)
        for site in SITES:
            self.device.apply([SetPeer(site.public_key, endpoint=site.endpoint, allowed_ips=site.prefixes)], NOW)
            peer = self.device.peers[site.public_key]
            keypair = peer.keypairs.current = site.keypair(of_device=True)
            self.device.indices[keypair.local_index] = (peer, keypair)
        self.ends = {site: site.keypair(of_device=False) for site in SITES}

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        self.sent.append((endpoint, ds, bytes(datagrams), segment))
        return True

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        self.written.append(b"".join(buffers))

    def receive(self, site: Site, datagrams: bytes, segment: int, ecn: int) -> list[bytes]:
        """What is delivered of datagrams that arrive together from a site."""
        inbound = self.device.inbound
        inbound.buffer[: len(datagrams)] = datagrams
        inbound.datagrams_received(len(datagrams), segment, site.endpoint, b"", ecn, NOW)
        inbound.flush()
        written, self.written = self.written, []
        return [packet for write in written for packet in packets_of((write,))]

    def read(self, header: bytes, packet: bytes, *, alone: bool) -> None:
        """A packet, or superpacket, comes from the TUN."""
        data = header + packet
        at = 0
        outbound = self.device.outbound
        for buffer in outbound.buffers:
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
        (outbound.lone_packet_read if alone else outbound.packet_read)(len(data), NOW)

    def received_by(self, site: Site) -> list[tuple[int, bytes]]:
        """What arrives at a site, opened: the ECN bits of the outer header, and the packet with its padding."""
        opened = []
        for endpoint, ds, datagrams, segment in self.sent:
            if endpoint == site.endpoint:
                opened += [(ds, self._opened(site, datagrams[at : at + segment])) for at in range(0, len(datagrams), segment)]
        return opened

    def _opened(self, site: Site, datagram: bytes) -> bytes:
        message = TransportData.unpack(datagram)
        assert message is not None
        end = self.ends[site]
        assert message.receiver_index == end.local_index
        packet = memoryview(bytearray(len(datagram) - OVERHEAD))
        assert unseal_one(end, message.counter, memoryview(message.encrypted_packet), packet)
        assert end.replay_window.accept(message.counter), "a counter was used twice"
        return bytes(packet)

    def begin(self) -> dict[Drop, int]:
        """Forget what was sent, and give the drops so far."""
        self.sent.clear()
        return dict(self.device.drops)


@cache
def subjects() -> tuple[Subject, Subject]:
    return Subject(), Subject()


# --- From the network ---


def inner_packets(data: bytes) -> None:
    """What an authenticated peer says: a byte of choices, and packets as pieces. Sealed for one device as a burst and for the
    other one by one; delivered is what has a right length and one of that peer's addresses, once."""
    reader = Reader(data)
    choices = reader.number()
    site, ecn = SITES[choices & 1], choices >> 1 & 3
    packets = [packet[:MTU] for packet in reader.pieces()][:MOST]
    if not packets:
        return
    width = max(map(len, packets))
    rows = [packet.ljust(width, b"\0") for packet in packets[:-1]] + [packets[-1]]
    expected = [packet for row in rows if (packet := delivered(site, row, ecn)) is not None]
    together, one_by_one = subjects()
    burst = [_sealed(together, site, row) for row in rows]
    made = together.receive(site, b"".join(burst), width + OVERHEAD, ecn)
    assert [*map(without_what_is_made_anew, made)] == [*map(without_what_is_made_anew, expected)]
    alone = [_sealed(one_by_one, site, row) for row in rows]
    assert [packet for message in alone for packet in one_by_one.receive(site, message, 0, ecn)] == expected
    if choices & 8:
        assert not together.receive(site, b"".join(burst), width + OVERHEAD, ecn), "a replay was delivered"
        assert not one_by_one.receive(site, alone[0], 0, ecn), "a replay was delivered"


def _sealed(subject: Subject, site: Site, packet: bytes) -> bytes:
    message = np.zeros(len(packet) + OVERHEAD, np.uint8)
    message[0] = 4
    receiver, counter = message[4:8].view("<u4"), message[8:16].view("<u8")
    assert seal(subject.ends[site], [memoryview(packet)], [message[16:].data], receiver, counter) == 1
    return message.tobytes()


def delivered(site: Site, packet: bytes, ecn: int) -> bytes | None:
    """What of an opened packet from ``site`` goes to the TUN (protocol 1.6, 1.10), naively."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        length, source, least = int.from_bytes(packet[2:4]), packet[12:16], 20
    elif version == 6 and len(packet) >= 40:
        length, source, least = int.from_bytes(packet[4:6]) + 40, packet[8:24], 40
    else:
        return None
    if not least <= length <= len(packet) or owner(source) is not site:
        return None
    return _marked(packet[:length], ecn)


def _marked(packet: bytes, outer: int) -> bytes:
    """RFC 6040: the inner mark by the outer one."""
    is_v4 = packet[0] >> 4 == 4
    inner = packet[1] & 3 if is_v4 else packet[1] >> 4 & 3
    mark = {(1, 3): 3, (2, 3): 3, (2, 1): 1}.get((inner, outer), inner)
    if mark == inner:
        return packet
    after = bytearray(packet)
    if not is_v4:
        after[1] = after[1] & 0xCF | mark << 4
        return bytes(after)
    after[1] = after[1] & 0xFC | mark
    # RFC 1624, which tells the two zeros apart: HC' = ~(~HC + ~m + m'). What the checksum was wrong by, it stays wrong by.
    total = (~int.from_bytes(packet[10:12]) & 0xFFFF) + (~int.from_bytes(packet[:2]) & 0xFFFF) + int.from_bytes(after[:2])
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    after[10:12] = (~total & 0xFFFF).to_bytes(2)
    assert (word_sum(bytes(after[:12])) - word_sum(packet[:12])) % 65535 == 0
    return bytes(after)


# --- From the TUN ---


def tun_packets(data: bytes) -> None:
    """What a pod, or the kernel, hands us: pieces, each a virtio header and a packet or superpacket. One device reads all of them
    before it flushes, the other takes each as one that came alone. Every packet reaches the site that owns its destination."""
    pieces = [piece for piece in Reader(data).pieces() if len(piece) > VIRTIO_HEADER.size][:MOST]
    expected: dict[Site, list[tuple[int, bytes]]] = {site: [] for site in SITES}
    for piece in pieces:
        for site, ecn, packet in routed(piece):
            expected[site].append((ecn, packet))
    together, one_by_one = subjects()
    for subject, alone in ((together, False), (one_by_one, True)):
        before = subject.begin()
        for piece in pieces:
            subject.read(piece[: VIRTIO_HEADER.size], piece[VIRTIO_HEADER.size :], alone=alone)
        subject.device.outbound.flush(NOW)
        for site in SITES:
            assert subject.received_by(site) == expected[site]
        for reason, count in subject.device.drops.items():
            assert count == before[reason] or reason in (Drop.NOT_IP, Drop.NO_PEER, Drop.BAD_OFFLOAD, Drop.LOOP)


def routed(piece: bytes) -> Iterable[tuple[Site, int, bytes]]:
    """The packets a piece stands for: to whom each goes, its outer ECN bits, and itself with its padding, naively."""
    header, packet = piece[: VIRTIO_HEADER.size], piece[VIRTIO_HEADER.size :]
    version = packet[0] >> 4
    if version == 4 and len(packet) >= 20:
        destination, ecn = packet[16:20], packet[1] & 3
    elif version == 6 and len(packet) >= 40:
        destination, ecn = packet[24:40], packet[1] >> 4 & 3
    else:
        return
    site = owner(destination)
    if site is None or _goes_round(site, destination, packet):
        return
    flags, gso_type, _, _, start, offset = VIRTIO_HEADER.unpack(header)
    if gso_type == GSO_NONE and flags & NEEDS_CSUM and start + offset + 2 > len(packet):
        return
    try:
        packets = packets_of((header, packet))
    except OffloadError:
        return
    for one in packets:
        yield site, (0, 1, 2, 2)[ecn], padded(one)


def refused_packets(data: bytes) -> None:
    """A packet that nobody takes, and the ICMP error about it."""
    tell(data)


def tell(packet: bytes) -> None:
    """Whoever is told is one host, of whose packet the error holds the beginning; conntrack can be asked whose it was."""
    found = refused(packet)
    if found is None:
        return
    source, destination = ip_address(found.source), ip_address(found.destination)
    is_v4 = packet[0] >> 4 == 4
    assert (source.packed, destination.packed) == ((packet[12:16], packet[16:20]) if is_v4 else (packet[8:24], packet[24:40]))
    assert not (source.is_multicast or source.is_unspecified or source.is_loopback or destination.is_multicast)
    assert found.transport in packet[20:]
    message = unreachable(packet)
    assert message[:2] == (b"\3\1" if is_v4 else b"\1\3")
    assert packet.startswith(message[8:])
    assert len(message) <= (576 - 20 if is_v4 else 1280 - 40)
    assert not is_v4 or word_sum(message) == 0xFFFF
    query = conntrack_query(found)
    assert query is None or len(parse_attributes(query[4:])) == 1


def padded(packet: bytes) -> bytes:
    """With zeros to a multiple of 16, unless that exceeds the MTU (protocol 1.6)."""
    length = -(-len(packet) // 16) * 16
    return packet.ljust(length if length <= MTU else 0, b"\0")


def _goes_round(site: Site, destination: bytes, packet: bytes) -> bool:
    """Whether this is what the device itself sealed for the site: UDP behind the IP header is not even looked for."""
    payload = 8 + (40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4)
    sealed = (4).to_bytes(4, "little") + (100 + site.number).to_bytes(4, "little")
    return destination == site.endpoint.address and packet[payload : payload + 8] == sealed
