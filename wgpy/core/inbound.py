"""Datagrams in, packets out: the way from the network to the TUN.

HOT; guarded by ``benchmarks/seam.py``.

The daemon receives into ``buffer``, with UDP_GRO up to 64 KB of equal datagrams of one sender, of which the last may be
shorter, and reports what it got. Such a burst is cut into *runs*: transport data under one receiver index. A run is
opened by one call, but every row of it is judged by itself, in the order of protocol 1.6: authenticated, checked
against the replay window, then its length and its source. What fails is dropped alone and counted; the rest goes on.
Timers, roaming and key freshness are per run, since a run has one sender and one moment.

Handshake messages are not worked on here: the device queues them.
"""

from __future__ import annotations

import itertools
from struct import Struct
from typing import TYPE_CHECKING

import numpy as np

from noise.keypair import Keypair
from noise.transport import unseal
from tun.offload import ZERO_HEADER, Coalescer, Write
from wgpy.config import Endpoint
from wgpy.core.arena import HEADER, MAX_LAYOUTS, OVERHEAD, column
from wgpy.core.drops import Drop
from wgpy.core.peer import Peer

if TYPE_CHECKING:
    from wgpy.core.device import Device

MAX_RECEIVED = 65535
TRANSPORT = 4
CONGESTION_EXPERIENCED = 3

_UNKNOWN: tuple[None, None] = (None, None)
_HEADER = Struct("<IIQ")
_IPV4_LENGTH = Struct("!2xH")
_IPV6_LENGTH = Struct("!4xH")


class _Layout:
    """The views of both buffers for one datagram length: row i of ``sealed`` is opened into row i of ``packets``."""

    __slots__ = (
        "counters",
        "heads",
        "ipv4_lengths",
        "ipv4_sources",
        "ipv6_lengths",
        "ipv6_sources",
        "matrix",
        "packets",
        "rows",
        "sealed",
        "versions",
    )

    def __init__(self, datagram: int, rows: int, datagrams: bytearray, packets: bytearray) -> None:
        padded = datagram - OVERHEAD
        view, plain = memoryview(datagrams), memoryview(packets)
        self.rows = rows
        self.sealed = [view[i * datagram + HEADER : (i + 1) * datagram] for i in range(rows)]
        self.packets = [plain[i * padded : (i + 1) * padded] for i in range(rows)]
        self.heads = column(datagrams, rows, datagram, 0, "<u8")
        """Message type and receiver index as one number."""
        self.counters = column(datagrams, rows, datagram, 8, "<u8")
        self.matrix = np.frombuffer(packets, dtype=np.uint8, count=rows * padded).reshape(rows, padded)
        self.versions = column(packets, rows, padded, 0, "u1")
        self.ipv4_lengths = column(packets, rows, padded, 2, ">u2")
        self.ipv4_sources = column(packets, rows, padded, 12, "<u4")
        self.ipv6_lengths = column(packets, rows, padded, 4, ">u2")
        self.ipv6_sources = np.ndarray((rows, 2), dtype="<u8", buffer=packets, offset=8, strides=(padded, 8))


class Inbound:
    """The inbound half of a device's data path. ``buffer`` is where the next datagrams go."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # Column views reach one row beyond what was received: room for that.
        self._datagrams = bytearray(2 * MAX_RECEIVED + 2)
        self._packets = bytearray(2 * MAX_RECEIVED + 2)
        self._plain = memoryview(self._packets)
        self._view = memoryview(self._datagrams)
        self.buffer = self._view[:MAX_RECEIVED]
        """Where the next recvmsg goes: 65,535 bytes."""
        self._layouts: dict[int, _Layout] = {}
        self.coalescer = Coalescer()

    def datagrams_received(self, size: int, segment: int, endpoint: Endpoint, source: bytes, ecn: int, now: float) -> None:
        """``size`` bytes in ``buffer``: datagrams of ``segment`` bytes each, the last may be shorter (0: a single one).

        ``endpoint`` sent them; ``source`` is the control message that makes an answer leave from the address they came
        to (b"" where that is unknown); ``ecn`` are the two ECN bits of the outer header.
        """
        if segment and segment < size:
            self._burst(size, segment, endpoint, source, ecn, now)
        else:
            self._single(0, size, endpoint, source, ecn, now)

    def _single(self, start: int, end: int, endpoint: Endpoint, source: bytes, ecn: int, now: float) -> None:
        """One datagram at ``start`` of the buffer: no numpy, whose fixed cost is many times its whole budget."""
        size = end - start
        if size < OVERHEAD:
            self._device.count_drop(Drop.UNKNOWN_MESSAGE)
            return
        kind, receiver, counter = _HEADER.unpack_from(self._datagrams, start)
        if kind != TRANSPORT:
            self._device.message_received(bytes(self._view[start:end]), endpoint, source, now)
            return
        found = self._keypair(receiver, 1, now)
        if found is None:
            return
        peer, keypair = found
        packet = self._plain[: size - OVERHEAD]
        if unseal(keypair, (counter,), (self._view[start + HEADER : end],), (packet,)):
            self._device.count_drop(Drop.BAD_TAG)
            return
        if not keypair.replay_window.accept(counter):
            self._device.count_drop(Drop.REPLAYED)
            return
        has_data = size > OVERHEAD
        self._device.data_opened(peer, keypair, endpoint, source, size, has_data, now)
        if has_data:
            length = self._accept(peer, packet)
            if length:
                self._deliver_one(packet[:length], ecn)

    def _burst(self, size: int, segment: int, endpoint: Endpoint, source: bytes, ecn: int, now: float) -> None:
        """Many datagrams of one sender. Cut into runs of equal length and receiver index."""
        count = size // segment
        if segment < OVERHEAD:
            self._device.count_drop(Drop.UNKNOWN_MESSAGE, count)
        else:
            layout = self._layout(segment, count)
            heads = layout.heads[:count]
            if (heads == heads[0]).all():
                self._rows(layout, int(heads[0]), 0, count, segment, endpoint, source, ecn, now)
            else:
                cuts = [0, *(np.flatnonzero(heads[1:] != heads[:-1]) + 1).tolist(), count]
                for first, end in itertools.pairwise(cuts):
                    self._rows(layout, int(heads[first]), first, end, segment, endpoint, source, ecn, now)
        if count * segment < size:
            self._single(count * segment, size, endpoint, source, ecn, now)

    def _layout(self, segment: int, count: int) -> _Layout:
        layout = self._layouts.get(segment)
        if layout is None or layout.rows < count:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            rows = max(count, min(64, MAX_RECEIVED // segment))
            layout = self._layouts[segment] = _Layout(segment, rows, self._datagrams, self._packets)
        return layout

    def _rows(
        self,
        layout: _Layout,
        head: int,
        first: int,
        end: int,
        segment: int,
        endpoint: Endpoint,
        source: bytes,
        ecn: int,
        now: float,
    ) -> None:
        """Rows ``first`` to ``end``, which have one message type and one receiver index."""
        if head & 0xFFFFFFFF != TRANSPORT:
            for row in range(first, end):
                message = bytes(self._view[row * segment : (row + 1) * segment])
                self._device.message_received(message, endpoint, source, now)
            return
        found = self._keypair(head >> 32, end - first, now)
        if found is None:
            return
        peer, keypair = found
        counters = layout.counters[first:end].tolist()
        rejected = unseal(keypair, counters, layout.sealed[first:end], layout.packets[first:end])
        if rejected:
            self._device.count_drop(Drop.BAD_TAG, len(rejected))
            good = [i for i in range(end - first) if i not in set(rejected)]
            replayed = keypair.replay_window.accept_run([counters[i] for i in good])
            refused = {*rejected, *(good[i] for i in replayed)}
        else:
            replayed = keypair.replay_window.accept_run(counters)
            refused = set(replayed)
        if replayed:
            self._device.count_drop(Drop.REPLAYED, len(replayed))
        accepted = end - first - len(refused)
        if not accepted:
            return
        has_data = segment > OVERHEAD
        self._device.data_opened(peer, keypair, endpoint, source, accepted * segment, has_data, now)
        if not has_data:
            return
        if refused:
            for row in range(first, end):
                if row - first not in refused and (length := self._accept(peer, layout.packets[row])):
                    self._deliver_one(layout.packets[row][:length], ecn)
            return
        self._deliver(peer, layout, first, end, ecn)

    def _keypair(self, receiver: int, count: int, now: float) -> tuple[Peer, Keypair] | None:
        """The session a receiver index names, if data may still be accepted under it; else None (counted)."""
        peer, keypair = self._device.indices.get(receiver, _UNKNOWN)
        if peer is None or keypair is None:
            self._device.count_drop(Drop.UNKNOWN_INDEX, count)
            return None
        if not keypair.can_receive(now):
            self._device.count_drop(Drop.EXPIRED_KEYPAIR, count)
            return None
        return peer, keypair

    def _accept(self, peer: Peer, packet: memoryview) -> int:
        """The length of an opened packet that ``peer`` may send; 0 (counted) if it may not."""
        version = packet[0] >> 4
        size = len(packet)
        if version == 4 and size >= 20:
            length = _IPV4_LENGTH.unpack_from(packet)[0]
            address, least = bytes(packet[12:16]), 20
        elif version == 6 and size >= 40:
            length = _IPV6_LENGTH.unpack_from(packet)[0] + 40
            address, least = bytes(packet[8:24]), 40
        else:
            self._device.count_drop(Drop.MALFORMED_PACKET)
            return 0
        if not least <= length <= size:
            self._device.count_drop(Drop.MALFORMED_PACKET)
            return 0
        # The owner of the source by the whole table, not "is it in this peer's list": a longer prefix of another peer wins.
        if self._device.allowed_ips.lookup(address) is not peer:
            self._device.count_drop(Drop.NOT_ALLOWED_SOURCE)
            return 0
        return length  # type: ignore[no-any-return]

    def _deliver(self, peer: Peer, layout: _Layout, first: int, end: int, ecn: int) -> None:
        """Opened rows to the TUN. That all have one version, a possible length and one source is seen in a few compares."""
        lengths = self._uniform_lengths(peer, layout, first, end)
        if lengths is None:
            lengths = [self._accept(peer, layout.packets[row]) for row in range(first, end)]
        if ecn:
            for row in range(first, end):
                if lengths[row - first]:
                    decapsulate_ecn(layout.packets[row], ecn)
        start = first
        for stop in [row for row in range(first, end) if not lengths[row - first]] + [end]:
            if start < stop:
                self._write(layout, start, stop, lengths[start - first : stop - first])
            start = stop + 1

    def _uniform_lengths(self, peer: Peer, layout: _Layout, first: int, end: int) -> list[int] | None:
        """The lengths of rows that can be judged together; None if each must be judged by itself."""
        size = len(layout.packets[0])
        version = layout.packets[first][0] >> 4
        if ((layout.versions[first:end] >> 4) != version).any():
            return None
        if version == 4 and size >= 20:
            sources = layout.ipv4_sources[first:end]
            same = (sources == sources[0]).all()
            lengths: list[int] = layout.ipv4_lengths[first:end].tolist()
            least = 20
            address = bytes(layout.packets[first][12:16])
        elif version == 6 and size >= 40:
            pairs = layout.ipv6_sources[first:end]
            same = (pairs == pairs[0]).all()
            lengths = [length + 40 for length in layout.ipv6_lengths[first:end].tolist()]
            least = 40
            address = bytes(layout.packets[first][8:24])
        else:
            return None
        if not same or min(lengths) < least or max(lengths) > size or self._device.allowed_ips.lookup(address) is not peer:
            return None
        return lengths

    def _write(self, layout: _Layout, start: int, stop: int, lengths: list[int]) -> None:
        writes: list[Write] = []
        self.coalescer.coalesce(layout.matrix[start:stop], layout.packets[start:stop], lengths, writes)
        for buffers in writes:
            self._device.outputs.write(buffers)

    def _deliver_one(self, packet: memoryview, ecn: int) -> None:
        if ecn:
            decapsulate_ecn(packet, ecn)
        self._device.outputs.write((ZERO_HEADER, packet))


def decapsulate_ecn(packet: memoryview, outer: int) -> None:
    """Carry congestion marks of the outer header into the packet, in place (RFC 6040; protocol 1.10). Never drops."""
    ipv4 = packet[0] >> 4 == 4
    inner = packet[1] & 3 if ipv4 else packet[1] >> 4 & 3
    if inner == 0 or inner == outer:
        return
    if outer == CONGESTION_EXPERIENCED:
        marked = CONGESTION_EXPERIENCED
    elif outer == 1 and inner == 2:
        marked = 1
    else:
        return
    if not ipv4:
        packet[1] = packet[1] & 0xCF | marked << 4
        return
    packet[1] = packet[1] & 0xFC | marked
    # RFC 1624: HC' = ~(~HC + ~m + m'), with m the word that changed
    checksum = ~int.from_bytes(packet[10:12]) & 0xFFFF
    total = checksum + (~(packet[0] << 8 | packet[1] & 0xFC | inner) & 0xFFFF) + (packet[0] << 8 | packet[1])
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = (~total & 0xFFFF).to_bytes(2)
