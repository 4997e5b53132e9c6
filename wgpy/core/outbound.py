"""Packets in, datagrams out: the way from the TUN to the network.

HOT; guarded by ``benchmarks/micro.py``.

The daemon reads the TUN straight into the buffers this module names, and reports each read. Packets gather in the rows
of an arena for as long as they form a *run*: one peer, one padded length, one ECN mark. A superpacket adds its segments,
a small packet itself. Whenever the rows make a full *train*, what one UDP_SEGMENT call carries, it is sealed by one call and
sent; the rest leaves when the run cannot go on or the reads are over. Of a train only the last datagram may be shorter.
Cryptokey routing is per read; timers, counters and key checks are per train. A packet that comes alone has a way of its own.

All memory is allocated once. Plain packets stand in rows of a fixed stride, wide enough for the MTU; datagrams stand
back to back in a second buffer, because UDP_SEGMENT wants them so. The views that cut both into rows of one padded
length are a :class:`_Layout`, made when that length is first met.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

import numpy as np

from noise.transport import seal, seal_one
from tun.offload import Columns, Layout, OffloadError, Superpacket, complete_checksum, complete_checksums
from wgpy.core.arena import HEADER, MAX_LAYOUTS, MAX_ROWS, MAX_SEGMENTS, MAX_TRAIN, OVERHEAD, TAG, column, padded_length
from wgpy.core.drops import Drop
from wgpy.core.peer import Peer

if TYPE_CHECKING:
    from wgpy.core.device import Device

VIRTIO_HEADER = 10
NEEDS_CSUM = 1
MAX_READ = 65535
TRANSPORT = 4
IPV6_HEADER = 40
UDP_HEADER = 8

_VECTOR_WORTH = 4
"""Rows from which one vector checksum is cheaper than one each."""

_HEAD = Struct("<II")

_OUTER_ECN = (0, 1, 2, 2)
"""Outer ECN by inner ECN: the same, but congestion experienced becomes ECT(0) (RFC 6040; protocol 1.10)."""


class _Layout:
    """The views of both buffers for one padded length. A run may have more rows than one train carries datagrams."""

    __slots__ = ("counters", "datagram", "packets", "padded", "receivers", "sealed", "train", "types")

    def __init__(self, padded: int, packets: memoryview, stride: int, datagrams: bytearray) -> None:
        self.padded = padded
        self.datagram = padded + OVERHEAD
        self.train = max(1, min(MAX_SEGMENTS, MAX_TRAIN // self.datagram))
        view = memoryview(datagrams)
        self.packets = [packets[i * stride : i * stride + padded] for i in range(MAX_ROWS)]
        self.sealed = [view[i * self.datagram + HEADER : (i + 1) * self.datagram] for i in range(self.train)]
        self.types = column(datagrams, self.train, self.datagram, 0, "<u4")
        self.receivers = column(datagrams, self.train, self.datagram, 4, "<u4")
        self.counters = column(datagrams, self.train, self.datagram, 8, "<u8")


class Outbound:
    """The outbound half of a device's data path. ``buffers`` says where the next TUN read goes."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._header = bytearray(VIRTIO_HEADER)
        self._datagrams = bytearray(MAX_TRAIN + OVERHEAD + MAX_READ)
        self._datagrams_view = memoryview(self._datagrams)
        self._peer: Peer | None = None
        self._layout: _Layout | None = None
        self._typed: _Layout | None = None
        """The layout whose message types stand in the datagram buffer."""
        self._count = 0
        self._ecn = 0
        self._partial: list[tuple[int, int, int]] = []
        """Rows whose checksum is half done: (row, csum_start, csum_offset)."""
        self.buffers: list[memoryview] = []
        """Where the next read goes, for readv: virtio header, the next row, and the rest of a superpacket."""
        self._allocate(device.mtu)

    def _allocate(self, mtu: int) -> None:
        self._stride = (max(mtu, 1280) + 63) & ~63
        memory = bytearray(MAX_ROWS * self._stride)
        self._packets = memoryview(memory)
        self._matrix = np.frombuffer(memory, dtype=np.uint8).reshape(MAX_ROWS, self._stride)
        self._slots = [self._packets[i * self._stride : (i + 1) * self._stride] for i in range(MAX_ROWS)]
        # A superpacket begins in a slot and goes on behind the headroom that the slot's bytes are copied to: contiguous.
        self._superpacket = memoryview(bytearray(self._stride + MAX_READ))
        overflow = self._superpacket[self._stride :]
        header = memoryview(self._header)
        self._reads = [[header, slot, overflow] for slot in self._slots]
        self._message = memoryview(bytearray(self._stride + OVERHEAD))
        self._layouts: dict[int, _Layout] = {}
        self._columns: dict[tuple[Layout, int], Columns] = {}
        self._typed = None
        self.buffers = self._reads[0]

    def mtu_changed(self, now: float) -> None:
        """Make rows as wide as the device's MTU now is."""
        self.flush(now)
        if self._device.mtu > self._stride:
            self._allocate(self._device.mtu)

    def packet_read(self, size: int, now: float) -> None:
        """``size`` bytes, virtio header included, were read into ``buffers``."""
        length = size - VIRTIO_HEADER
        slot = self._slots[self._count]
        header = self._header
        if header[1]:
            self._superpacket_read(length, now)
            return
        if length > self._stride:
            self._wide_packet_read(length, now)
            return
        peer = self._route(slot, length, now)
        if peer is None:
            return
        if header[0] & NEEDS_CSUM and sum(self._checksum_field()) + 2 > length:
            self._device.count_drop(Drop.BAD_OFFLOAD)
            return
        if not peer.can_send(now):
            packet = slot[:length]
            if header[0] & NEEDS_CSUM:
                complete_checksum(packet, *self._checksum_field())
            self._device.stage(peer, bytes(packet), now)
            return
        self._gather(peer, length, now)

    def lone_packet_read(self, size: int, now: float) -> None:
        """:meth:`packet_read` and :meth:`flush` of a packet that came after a rest, in one straight line.

        A core that has slept, or was somebody else's, fetches what it executes from memory first: every function passed by saves
        a lone packet microseconds (idle ping, with its like inbound: 822 -> 740 µs). What is not ordinary goes the usual way.
        """
        header, slot, length, device = self._header, self._slots[0], size - VIRTIO_HEADER, self._device
        if self._count or header[0] or header[1] or not IPV6_HEADER <= length <= self._stride:
            self.packet_read(size, now)
            self.flush(now)
            return
        is_v4 = slot[0] >> 4 == 4
        destination = bytes(slot[16:20] if is_v4 else slot[24:40])
        peer = device.allowed_ips.lookup(destination)
        keypair = None if peer is None else peer.keypairs.current
        endpoint = None if peer is None else peer.endpoint
        if (
            slot[0] >> 4 not in (4, 6)
            or peer is None
            or endpoint is None
            or destination == endpoint.address
            or keypair is None
            or not keypair.can_send(now)
        ):
            self.packet_read(size, now)
            self.flush(now)
            return
        padded = padded_length(length, device.mtu)
        if padded != length:
            slot[length:padded] = bytes(padded - length)
        message = self._message[: padded + OVERHEAD]
        seal_one(keypair, slot[:padded], message)
        device.data_sealed(peer, message, len(message), 1, _OUTER_ECN[(slot[1] if is_v4 else slot[1] >> 4) & 3], now)

    def _gather(self, peer: Peer, length: int, now: float) -> None:
        """The packet of ``length`` bytes in the next slot is for ``peer``: it joins the run, or ends it and begins another."""
        slot = self._slots[self._count]
        header = self._header
        ecn = _OUTER_ECN[(slot[1] if slot[0] >> 4 == 4 else slot[1] >> 4) & 3]
        padded = padded_length(length, self._device.mtu)
        layout = self._layout
        if self._count and (peer is not self._peer or ecn != self._ecn or padded > layout.padded):  # type: ignore[union-attr]
            packet = bytes(slot[:length])
            self.flush(now)
            slot = self._slots[0]
            slot[:length] = packet
        if not self._count:
            self._begin(peer, padded, ecn)
        layout = self._layout
        assert layout is not None
        if layout.padded != length:
            # Zero: what is padding must not be an older packet. To the run's length, so that sums over rows are right.
            slot[length : layout.padded] = bytes(layout.padded - length)
        if header[0] & NEEDS_CSUM:
            self._partial.append((self._count, *self._checksum_field()))
        self._count += 1
        if padded < layout.padded:
            self._seal(padded, now)
        elif self._count == layout.train:
            self._seal(0, now)
        else:
            self.buffers = self._reads[self._count]

    def staged_packet(self, peer: Peer, packet: bytes, now: float) -> None:
        """Seal a packet that waited for the session of ``peer`` (its checksums are complete)."""
        self._header[:] = bytes(VIRTIO_HEADER)
        length = len(packet)
        if length > self._stride:
            self.flush(now)
            self._allocate(length)
        self._slots[self._count][:length] = packet
        self._gather(peer, length, now)

    def keepalive(self, peer: Peer, now: float) -> None:
        """Seal an empty packet."""
        self.flush(now)
        self._begin(peer, 0, 0)
        self._count = 1
        self._seal(0, now)

    def flush(self, now: float) -> None:
        """Seal and send what has gathered. To be called when a burst of reads is over."""
        if self._count:
            self._seal(0, now)

    # ------------------------------------------------------------------------------------------------------------

    def _route(self, packet: memoryview, length: int, now: float) -> Peer | None:
        """The peer that owns the destination address; None (counted) if there is none or this is no IP packet."""
        version = packet[0] >> 4 if length else 0
        if version == 4 and length >= 20:
            destination = bytes(packet[16:20])
        elif version == 6 and length >= 40:
            destination = bytes(packet[24:40])
        else:
            self._device.count_drop(Drop.NOT_IP)
            return None
        peer = self._device.allowed_ips.lookup(destination)
        if peer is None:
            self._device.refuse(Drop.NO_PEER, packet[:length], now)
            return None
        endpoint = peer.endpoint
        if endpoint is None:
            self._device.refuse(Drop.NO_ENDPOINT, packet[:length], now)
            return None
        if destination == endpoint.address and _is_our_own(peer, packet[:length]):
            self._device.count_drop(Drop.LOOP)
            return None
        return peer

    def _begin(self, peer: Peer, padded: int, ecn: int) -> None:
        layout = self._layouts.get(padded)
        if layout is None:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[padded] = _Layout(padded, self._packets, self._stride, self._datagrams)
        self._peer, self._layout, self._ecn = peer, layout, ecn

    def _seal(self, tail: int, now: float) -> None:
        """Seal the run and send it. ``tail`` is the padded length of the last row where it is shorter than the others, else 0."""
        layout, count = self._layout, self._count
        assert layout is not None
        if self._partial:
            self._complete_rows(count, layout)
        self._count = 0
        self.buffers = self._reads[0]
        first = 0
        while count - first > layout.train:
            self._send_train(layout, first, layout.train, 0, now)
            first += layout.train
        self._send_train(layout, first, count - first, tail, now)

    def _seal_full_trains(self, layout: _Layout, now: float) -> None:
        """Seal as many whole trains as there are. What is left becomes the beginning of the next."""
        if self._partial:
            self._complete_rows(self._count, layout)
        train, left = layout.train, self._count
        first = 0
        while left >= train:
            self._send_train(layout, first, train, 0, now)
            first += train
            left -= train
        if left:
            self._matrix[:left, : layout.padded] = self._matrix[first : first + left, : layout.padded]
        self._count = left
        self.buffers = self._reads[left]

    def _send_train(self, layout: _Layout, first: int, rows: int, tail: int, now: float) -> None:
        """Seal ``rows`` rows, at most a train, and send them."""
        if rows == 1:
            packet = layout.packets[first]
            self._send_one(packet[:tail] if tail else packet, layout.datagram, now)
            return
        peer = self._peer
        assert peer is not None
        if layout is not self._typed:
            layout.types[:] = TRANSPORT
            self._typed = layout
        size = rows * layout.datagram
        packets, sealed = layout.packets[first : first + rows], layout.sealed[:rows]
        if tail:
            size += tail - layout.padded
            packets[-1] = packets[-1][:tail]
            sealed[-1] = sealed[-1][: tail + TAG]
        keypair = peer.keypairs.current
        if keypair is None or seal(keypair, packets, sealed, layout.receivers, layout.counters) < rows:
            # The session ended while packets gathered: nobody to seal for.
            self._device.count_drop(Drop.NO_SESSION, rows)
            return
        self._device.data_sealed(peer, self._datagrams_view[:size], layout.datagram, rows, self._ecn, now)

    def _send_one(self, packet: memoryview, segment: int, now: float) -> None:
        """Seal one padded ``packet`` of a run and send it, past numpy and whatever else a lone packet does not need."""
        peer, size = self._peer, len(packet) + OVERHEAD
        assert peer is not None
        message = self._message[:size]
        keypair = peer.keypairs.current
        if keypair is None or not seal_one(keypair, packet, message):
            self._device.count_drop(Drop.NO_SESSION)
            return
        self._device.data_sealed(peer, message, segment, 1, self._ecn, now)

    def _checksum_field(self) -> tuple[int, int]:
        """csum_start and csum_offset of the header just read, little-endian as every machine that runs this."""
        header = self._header
        return header[6] | header[7] << 8, header[8] | header[9] << 8

    def _complete_rows(self, count: int, layout: _Layout) -> None:
        """Finish half-done checksums. Padding is zero, so a sum over the padded row is the sum over the packet."""
        partial, self._partial = self._partial, []
        _, start, offset = partial[0]
        if count == len(partial) >= _VECTOR_WORTH and all(p[1] == start and p[2] == offset for p in partial):
            complete_checksums(self._matrix[:count], layout.padded, start, offset)
            return
        for row, start, offset in partial:
            complete_checksum(layout.packets[row], start, offset)

    def _wide_packet_read(self, length: int, now: float) -> None:
        """A single packet wider than a row: the MTU has grown and we have not been told yet."""
        self._superpacket[: self._stride] = self._slots[self._count]
        packet = bytes(self._superpacket[:length])
        self.flush(now)
        self._allocate(length)
        self._slots[0][:length] = packet
        self.packet_read(VIRTIO_HEADER + length, now)

    def _superpacket_read(self, length: int, now: float) -> None:
        """Split a superpacket into rows and seal them, train by train."""
        head = min(length, self._stride)
        packet = self._superpacket
        packet[:head] = self._slots[self._count][:head]
        peer = self._route(packet, length, now)
        if peer is None:
            return
        try:
            superpacket = Superpacket.parse(self._header, packet[:length])
        except OffloadError:
            self._device.count_drop(Drop.BAD_OFFLOAD)
            return
        row_length = superpacket.row_length
        if row_length > self._stride:
            self.flush(now)
            kept = bytes(packet[:length])
            self._allocate(row_length)
            packet = self._superpacket
            packet[:length] = kept
            superpacket = Superpacket.parse(self._header, packet[:length])
        if not peer.can_send(now):
            self.flush(now)
            self._stage_superpacket(peer, superpacket, now)
            return
        ecn = _OUTER_ECN[(packet[1] if packet[0] >> 4 == 4 else packet[1] >> 4) & 3]
        padded = padded_length(row_length, self._device.mtu)
        if self._count and not (
            peer is self._peer and ecn == self._ecn and padded == self._layout.padded  # type: ignore[union-attr]
        ):
            self.flush(now)
        matrix, columns = self._matrix, self._columns_for(superpacket)
        first = 0
        while first < superpacket.count:
            if not self._count:
                self._begin(peer, padded, ecn)
            layout = self._layout
            assert layout is not None
            start = self._count
            end = self._count = start + superpacket.fill_columns(columns, start, first)
            if padded != row_length:
                matrix[start:end, row_length:padded] = 0
            first += end - start
            if first == superpacket.count and superpacket.last_length != row_length:
                matrix[end - 1, superpacket.last_length : padded] = 0
                tail = padded_length(superpacket.last_length, self._device.mtu)
                if tail != padded:
                    self._seal(tail, now)
                    return
            if end >= layout.train:
                self._seal_full_trains(layout, now)
        if self._count:
            self.buffers = self._reads[self._count]

    def _columns_for(self, superpacket: Superpacket) -> Columns:
        columns = self._columns.get(superpacket.kind)
        if columns is None:
            if len(self._columns) >= MAX_LAYOUTS:
                self._columns.clear()
            columns = self._columns[superpacket.kind] = superpacket.columns_of(self._matrix)
        return columns

    def _stage_superpacket(self, peer: Peer, superpacket: Superpacket, now: float) -> None:
        """Keep the segments of a superpacket until there is a session."""
        first = 0
        while first < superpacket.count:
            for row in range(superpacket.fill(self._matrix, first)):
                first += 1
                length = superpacket.last_length if first == superpacket.count else superpacket.row_length
                self._device.stage(peer, bytes(self._slots[row][:length]), now)


def _is_our_own(peer: Peer, packet: memoryview) -> bool:
    """Whether ``packet`` is a datagram that we sealed for ``peer``: the way to its endpoint leads back into the interface.

    Sealed again and again it would go round for ever, and grow. A route that leads back into the interface is no error in itself:
    one peer may be reached through another one (netns.sh, stage 16), which is why the kernel's WireGuard has not refused it since
    5.7. So we look at the packet.
    """
    keypair = peer.keypairs.current
    if keypair is None:
        return False
    payload = UDP_HEADER + (IPV6_HEADER if packet[0] >> 4 == 6 else (packet[0] & 15) * 4)
    return packet[payload : payload + _HEAD.size] == _HEAD.pack(TRANSPORT, keypair.remote_index)
