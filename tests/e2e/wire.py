"""What was on the wire: the datagrams in captured frames, and what WireGuard they carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from controller.demo.capture import Conversation, Frame, judge
from controller.demo.topology import Address

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4
LENGTHS = {INITIATION: 148, RESPONSE: 92, COOKIE_REPLY: 64}
OVERHEAD = 32  # of a transport message: 16 bytes of header, 16 of tag

ETHERNET = 14
UDP = 17


@dataclass(frozen=True)
class Datagram:
    """A UDP datagram that one frame holds whole. ``ds`` is the outer header's DS byte, ECN in its lowest two bits."""

    time: float
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    ds: int
    may_fragment: bool
    payload: bytes = field(repr=False)

    @property
    def message(self) -> int:
        """The type of WireGuard message; 0 if it is none."""
        kind = int.from_bytes(self.payload[:4], "little")
        if kind == TRANSPORT:
            return TRANSPORT if len(self.payload) >= OVERHEAD else 0
        return kind if LENGTHS.get(kind) == len(self.payload) else 0

    @property
    def padded_length(self) -> int:
        """Of the packet in a transport message: 0 for a keepalive."""
        return len(self.payload) - OVERHEAD


def datagrams(frames: Iterable[Frame]) -> list[Datagram]:
    """Those of ``frames`` that are whole UDP datagrams, in order."""
    return [found for frame in frames if (found := _datagram(frame))]


def messages(frames: Iterable[Frame], *kinds: int, source: Address | None = None) -> Iterator[Datagram]:
    """WireGuard messages of some kinds, of one sender only if ``source`` is given."""
    for one in datagrams(frames):
        if one.message in kinds and source in (None, one.source):
            yield one


def seen_in_clear(frames: Iterable[Frame], pods: Iterable[tuple[Address, Address]], marker: bytes) -> int:
    """How many frames show ``marker`` or the addresses of two pods side by side."""
    conversations = [Conversation(pair, pair, marker) for pair in pods]
    return sum(sighting.clear for sighting in judge(frames, conversations))


def _datagram(frame: Frame) -> Datagram | None:
    packet = frame.data[ETHERNET:]
    match frame.data[12:ETHERNET]:
        case b"\x08\x00" if len(packet) >= 28:
            fragment = int.from_bytes(packet[6:8])
            if packet[9] != UDP or fragment & 0x3FFF:
                return None
            start, ds, addresses = (packet[0] & 15) * 4, packet[1], (packet[12:16], packet[16:20])
            may_fragment = not fragment & 0x4000
        case b"\x86\xdd" if len(packet) >= 48:
            if packet[6] != UDP:
                return None
            start, ds, addresses = 40, int.from_bytes(packet[:2]) >> 4 & 0xFF, (packet[8:24], packet[24:40])
            may_fragment = False
        case _:
            return None
    length = int.from_bytes(packet[start + 4 : start + 6])
    return Datagram(
        frame.time,
        ip_address(addresses[0]),
        ip_address(addresses[1]),
        int.from_bytes(packet[start : start + 2]),
        int.from_bytes(packet[start + 2 : start + 4]),
        ds,
        may_fragment,
        packet[start + 8 : start + length],
    )
