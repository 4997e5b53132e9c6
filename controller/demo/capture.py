"""Was it encrypted? A capture on the underlay, and a judge that decides by what the frames contain.

The judge trusts no interface name, port or table. For a *conversation* (two pods on two nodes, whose pings carry a marker
that no other conversation has) it looks at every frame:

* *clear*: the marker, or the pods' two addresses side by side as an IP header has them, stand anywhere in the frame. So a
  packet counts as clear in whatever encapsulation it travels: none, IPIP, VXLAN, or a WireGuard that forgot to encrypt.
* *encrypted*: UDP from one of the two nodes to the other whose payload is a WireGuard transport message with a packet in
  it (type 4, longer than a keepalive). Counted for each direction.

What was seen of a conversation is a :class:`Sighting`; its ``verdict`` is one word.

:func:`judge` is pure. :class:`Capture` reads the frames with an AF_PACKET socket at the ports of the underlay's bridge,
each frame once: as it enters, from its sender.
"""

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from controller.demo.topology import NAMESPACES, Address

# <linux/if_ether.h>, <linux/if_packet.h>, <asm/socket.h>, <sched.h>
ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
CLONE_NEWNET = 0x40000000

ETHERNET_HEADER = 14
IPV6_HEADER = 40
UDP = 17
UDP_HEADER = 8

TRANSPORT_MESSAGE = b"\x04\x00\x00\x00"  # type 4 and three reserved bytes: WireGuard paper 5.4.6
TRANSPORT_HEADER = 16
KEEPALIVE_LENGTH = 32  # a transport message of an empty packet: 16 bytes of header, 16 of tag

FRAME_MAX = 1 << 16
RECEIVE_BUFFER = 16 << 20
SETTLE_SECONDS = 0.1
POLL_SECONDS = 0.05
DRAIN_SECONDS = 2.0


class Frame(NamedTuple):
    """One frame: when it was read (seconds since 1970), the bridge port it entered by, its bytes from the Ethernet header on."""

    time: float
    port: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Conversation:
    """Who talks: the two pods' addresses, those of their nodes, and the bytes that only their packets carry."""

    pods: tuple[Address, Address]
    nodes: tuple[Address, Address]
    marker: bytes


class Verdict(StrEnum):
    ENCRYPTED = "encrypted"
    CLEAR = "in clear"
    BOTH = "both"
    ONE_WAY = "encrypted one way"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Sighting:
    """Frames of one conversation: in clear, and encrypted from the first node to the second and back."""

    clear: int = 0
    encrypted: tuple[int, int] = (0, 0)

    @property
    def verdict(self) -> Verdict:
        if self.clear:
            return Verdict.BOTH if any(self.encrypted) else Verdict.CLEAR
        if all(self.encrypted):
            return Verdict.ENCRYPTED
        return Verdict.ONE_WAY if any(self.encrypted) else Verdict.NOTHING


def judge(frames: Iterable[Frame], conversations: Sequence[Conversation]) -> list[Sighting]:
    """What ``frames`` show of each conversation, in their order."""
    needles = [_needles(conversation) for conversation in conversations]
    clear = [0] * len(conversations)
    encrypted: dict[tuple[Address, Address], int] = {}
    for frame in frames:
        for position, wanted in enumerate(needles):
            clear[position] += any(needle in frame.data for needle in wanted)
        if found := transport_messages(frame.data):
            encrypted[found.ends] = encrypted.get(found.ends, 0) + found.number
    return [
        Sighting(seen, (encrypted.get(nodes, 0), encrypted.get(nodes[::-1], 0)) if nodes[0] != nodes[1] else (0, 0))
        for seen, nodes in zip(clear, (conversation.nodes for conversation in conversations), strict=True)
    ]


class TransportMessages(NamedTuple):
    """Transport messages of one frame: source and destination, and how many of them have a packet in them."""

    ends: tuple[Address, Address]
    number: int


def transport_messages(frame: bytes) -> TransportMessages | None:
    """The WireGuard transport messages in a frame, or ``None`` if there are none with a packet in them."""
    packet = frame[ETHERNET_HEADER:]
    match frame[12:ETHERNET_HEADER]:
        case b"\x08\x00" if len(packet) >= 20:
            protocol, header, addresses = packet[9], (packet[0] & 0x0F) * 4, (packet[12:16], packet[16:20])
        case b"\x86\xdd" if len(packet) >= IPV6_HEADER:
            protocol, header, addresses = packet[6], IPV6_HEADER, (packet[8:24], packet[24:40])
        case _:
            return None
    payload = packet[header + UDP_HEADER :]
    if protocol != UDP or not payload.startswith(TRANSPORT_MESSAGE):
        return None
    count = sum(length > KEEPALIVE_LENGTH for length in _message_lengths(payload))
    return TransportMessages((ip_address(addresses[0]), ip_address(addresses[1])), count) if count else None


def _message_lengths(payload: bytes) -> Iterator[int]:
    """The lengths of the transport messages in a UDP payload.

    It is one, unless the sender used UDP_SEGMENT: on a veth its messages travel in one frame, and the frame does not say
    where each begins. But the next one has the same receiver index and the next counter, 16 bytes that are nowhere else.
    """
    start = 0
    while len(payload) - start >= TRANSPORT_HEADER:
        counter = int.from_bytes(payload[start + 8 : start + 16], "little")
        following = payload[start : start + 8] + (counter + 1).to_bytes(9, "little")[:8]
        end = payload.find(following, start + KEEPALIVE_LENGTH)
        yield (len(payload) if end < 0 else end) - start
        if end < 0:
            return
        start = end


class Capture:
    """A context manager that reads every frame entering the ports of ``bridge`` in a namespace, into :attr:`frames`.

    On leaving it waits a moment for what is under way. ``lost`` counts frames the kernel had no room for: with any lost,
    absence of clear frames proves nothing.
    """

    def __init__(self, namespace: str, bridge: str = "br0") -> None:
        self.frames: list[Frame] = []
        self.lost = 0
        self._bridge = bridge
        self._socket = _in_namespace(namespace)
        self._stopped = threading.Event()
        self._read_until = float("inf")
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            time.sleep(SETTLE_SECONDS)
        self._read_until = time.monotonic() + DRAIN_SECONDS
        self._stopped.set()
        self._thread.join()
        _, self.lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._socket.close()

    def _read(self) -> None:
        # Only an empty socket ends the capture, so that nothing which had arrived is left unread; but not for ever.
        while time.monotonic() < self._read_until:
            try:
                data, (port, _, kind, *_) = self._socket.recvfrom(FRAME_MAX)
            except TimeoutError:
                if self._stopped.is_set():
                    return
                continue
            # A bridge shows a frame again as it leaves by another port, and as its own if it is for everybody.
            if kind != PACKET_OUTGOING and port != self._bridge:
                self.frames.append(Frame(time.time(), port, data))


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    """Write ``frames`` as a pcap file (the classic format, version 2.4, microseconds), for tcpdump and Wireshark."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, FRAME_MAX, 1))
        for frame in frames:
            seconds, fraction = divmod(frame.time, 1)
            file.write(struct.pack("<IIII", int(seconds), int(fraction * 1e6), len(frame.data), len(frame.data)))
            file.write(frame.data)


def _needles(conversation: Conversation) -> tuple[bytes, bytes, bytes]:
    one, two = (address.packed for address in conversation.pods)
    return conversation.marker, one + two, two + one


def _in_namespace(name: str) -> socket.socket:
    """An AF_PACKET socket of another network namespace. A thread enters it, opens the socket, and ends."""
    opened: list[socket.socket] = []
    errors: list[OSError] = []

    def enter_and_open() -> None:
        try:
            with (NAMESPACES / name).open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter namespace {name}")
            opened.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    opened[0].setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    opened[0].settimeout(POLL_SECONDS)
    return opened[0]
