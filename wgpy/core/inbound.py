"""Datagrams in, packets out: the way from the network to the TUN.

HOT; guarded by ``benchmarks/micro.py``.

The daemon receives into ``buffer``, with UDP_GRO up to 64 KB of equal datagrams of one sender, of which the last may be
shorter, and reports what it got. Such a burst is cut into *runs*: transport data under one receiver index. A run is
opened by one call, but every row of it is judged by itself, in the order of protocol 1.6: authenticated, checked
against the replay window, then its length and its source. What fails is dropped alone and counted; the rest goes on.
Timers, roaming and key freshness are per run, since a run has one sender and one moment.

Opened rows are *held* until the burst of receives is over or the rows are full, and in the latter case a superpacket that
may still grow stays: trains are cut where they are full, not where a superpacket ends, and written apart its parts would
cost the kernel two walks to the pod and two acknowledgements. A datagram that comes alone is written at once.

Handshake messages are not worked on here: the device queues them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from noise.keypair import Keypair
from noise.transport import unseal, unseal_one
from tun.offload import ZERO_HEADER, Coalescer, Write
from wgpy.config import Endpoint
from wgpy.core.arena import HEADER, MAX_LAYOUTS, MAX_ROWS, OVERHEAD, column
from wgpy.core.drops import Drop
from wgpy.core.peer import Peer

if TYPE_CHECKING:
    from wgpy.core.device import Device

MAX_RECEIVED = 65535
TRANSPORT = 4
_TRANSPORT_BYTE = b"\x04"
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
        "segment",
        "versions",
    )

    def __init__(self, datagram: int, rows: int, datagrams: bytearray, packets: bytearray) -> None:
        padded = datagram - OVERHEAD
        view, plain = memoryview(datagrams), memoryview(packets)
        received = min(rows, MAX_RECEIVED // datagram + 1)
        self.segment = datagram
        self.rows = rows
        self.sealed = [view[i * datagram + HEADER : (i + 1) * datagram] for i in range(received)]
        self.packets = [plain[i * padded : (i + 1) * padded] for i in range(rows)]
        self.heads = column(datagrams, received, datagram, 0, "<u8")
        """Message type and receiver index as one number."""
        self.counters = column(datagrams, received, datagram, 8, "<u8")
        self.matrix = np.frombuffer(packets, dtype=np.uint8, count=rows * padded).reshape(rows, padded)
        self.versions = column(packets, rows, padded, 0, "u1")
        """With the lower half of the first byte, which hardly ever varies within a run."""
        self.ipv4_lengths = column(packets, rows, padded, 2, ">u2")
        self.ipv4_sources = column(packets, rows, padded, 12, "<u4")
        self.ipv6_lengths = column(packets, rows, padded, 4, ">u2")
        self.ipv6_sources = np.ndarray((rows,), dtype="V16", buffer=packets, offset=8, strides=(padded,))


class _Arrival(NamedTuple):
    """What the datagrams of one receive have in common."""

    endpoint: Endpoint
    source: bytes
    ecn: int
    now: float


class Inbound:
    """The inbound half of a device's data path. ``buffer`` is where the next datagrams go."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # Column views reach one row beyond what was received: room for that.
        self._datagrams = bytearray(2 * MAX_RECEIVED + 2)
        self._packets = bytearray(3 * MAX_RECEIVED + 2)
        self._plain = memoryview(self._packets)
        self._view = memoryview(self._datagrams)
        self.buffer = self._view[:MAX_RECEIVED]
        """Where the next recvmsg goes: 65,535 bytes."""
        self._layouts: dict[int, _Layout] = {}
        self._held_layout: _Layout | None = None
        self._held: list[memoryview] = []
        """Opened rows that wait for more of their flow, and their lengths; 0 for one that is not to be delivered."""
        self._held_lengths: list[int] = []
        self.coalescer = Coalescer()

    def datagrams_received(self, size: int, segment: int, endpoint: Endpoint, source: bytes, ecn: int, now: float) -> None:
        """``size`` bytes in ``buffer``: datagrams of ``segment`` bytes each, the last may be shorter (0: a single one).

        Some of what is in them may be held until the next call or :meth:`flush`. ``endpoint`` sent them; ``source`` is the
        control message that makes an answer leave from the address they came to (b"" where that is unknown); ``ecn`` are
        the two ECN bits of the outer header.
        """
        if segment and segment < size:
            self._burst(size, segment, _Arrival(endpoint, source, ecn, now))
        else:
            self._single(0, size, endpoint, source, ecn, now)

    def many_received(self, arrivals: Iterable[tuple[memoryview, int, Endpoint, bytes, int]], now: float) -> None:
        """As :meth:`datagrams_received` of each (datagrams, ``segment``, ``endpoint``, ``source``, ``ecn``), which lie elsewhere.

        For floods of messages: data is copied to where it is opened.
        """
        device, buffer = self._device, self.buffer
        for datagrams, segment, endpoint, source, ecn in arrivals:
            size = len(datagrams)
            if segment or datagrams[:1] == _TRANSPORT_BYTE:
                buffer[:size] = datagrams
                self.datagrams_received(size, segment, endpoint, source, ecn, now)
            else:
                device.message_received(bytes(datagrams), endpoint, source, now)

    def flush(self) -> None:
        """Deliver what is held. To be called when a burst of receives is over."""
        self._write_held(keep_open=False)

    def _write_held(self, *, keep_open: bool) -> None:
        """Deliver what is held. With ``keep_open``, a superpacket that may still grow goes on being held, from row 0."""
        lengths, packets, layout = self._held_lengths, self._held, self._held_layout
        if layout is None:
            return
        self._held_lengths, self._held, self._held_layout = [], [], None
        count = len(lengths)
        cuts = [row for row, length in enumerate(lengths) if not length] if 0 in lengths else []
        start = done = 0
        for stop in [*cuts, count]:
            if start < stop:
                writes: list[Write] = []
                rows, may_grow = slice(start, stop), keep_open and stop == count
                done = start + self.coalescer.coalesce(
                    layout.matrix[rows], packets[rows], lengths[rows], writes, keep_open=may_grow
                )
                for buffers in writes:
                    self._device.outputs.write(buffers)
            start = stop + 1
        if done < count and (kept := lengths[done:]) and kept[0]:
            size = len(kept)
            layout.matrix[:size] = layout.matrix[done:count]
            self._held_lengths, self._held, self._held_layout = kept, layout.packets[:size], layout

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
        layout = self._held_layout
        if layout is not None and (size > layout.segment or len(self._held) >= layout.rows):
            self.flush()
            layout = None
        packet = self._plain[: size - OVERHEAD] if layout is None else layout.packets[len(self._held)][: size - OVERHEAD]
        if not unseal_one(keypair, counter, self._view[start + HEADER : end], packet):
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
                if ecn:
                    decapsulate_ecn(packet, ecn)
                if layout is None:
                    self._device.outputs.write((ZERO_HEADER, packet[:length]))
                else:  # it may be the end of what is held: a superpacket takes two trains, the second of which is short
                    self._held.append(packet)
                    self._held_lengths.append(length)

    def _burst(self, size: int, segment: int, arrival: _Arrival) -> None:
        """Many datagrams of one sender, cut into runs of one message type and receiver index."""
        count, tail = divmod(size, segment)
        if segment < OVERHEAD:
            self._device.count_drop(Drop.UNKNOWN_MESSAGE, count + (tail > 0))
            return
        has_tail = tail > OVERHEAD  # a shorter last one with data is a row like the others
        rows = count + has_tail
        layout = self._layout(segment, rows)
        # Lists, not vector operations: for so few numbers a count costs a tenth of a compare and a reduction.
        heads: list[int] = layout.heads[:rows].tolist()
        cuts = [0, rows]
        if heads.count(heads[0]) != rows:
            cuts[1:1] = [row for row in range(1, rows) if heads[row] != heads[row - 1]]
        for first, end in itertools.pairwise(cuts):
            last = tail if has_tail and end == rows else segment
            self._run(layout, heads[first], first, end, last, arrival)
        if tail and not has_tail:
            self._single(count * segment, size, *arrival)

    def _layout(self, segment: int, count: int) -> _Layout:
        layout = self._layouts.get(segment)
        if layout is None or layout.rows < count:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            rows = max(count, min(MAX_ROWS, 3 * MAX_RECEIVED // segment))
            layout = self._layouts[segment] = _Layout(segment, rows, self._datagrams, self._packets)
        return layout

    def _run(self, layout: _Layout, head: int, first: int, end: int, last: int, arrival: _Arrival) -> None:
        """Rows ``first`` to ``end``, of one message type and receiver index. The last of them has ``last`` bytes."""
        segment, count = layout.segment, end - first
        if head & 0xFFFFFFFF != TRANSPORT:
            for row in range(first, end):
                start = row * segment
                self._message(start, start + (last if row == end - 1 else segment), arrival)
            return
        found = self._keypair(head >> 32, count, arrival.now)
        if found is None:
            return
        peer, keypair = found
        if layout is not self._held_layout:
            self.flush()
        elif len(self._held) + count > layout.rows:
            self._write_held(keep_open=True)
            if len(self._held) + count > layout.rows:
                self.flush()
        held = len(self._held)
        sealed, packets = layout.sealed[first:end], layout.packets[held : held + count]
        if last != segment:
            sealed[-1] = sealed[-1][: last - HEADER]
            packets[-1] = packets[-1][: last - OVERHEAD]
        counters = layout.counters[first:end].tolist()
        refused = self._refused(keypair, counters, unseal(keypair, counters, sealed, packets))
        accepted = count - len(refused)
        if not accepted:
            return
        size = accepted * segment - (0 if count - 1 in refused else segment - last)
        has_data = segment > OVERHEAD
        self._device.data_opened(peer, keypair, arrival.endpoint, arrival.source, size, has_data, arrival.now)
        if has_data:
            self._deliver(peer, layout, packets, refused, arrival.ecn)

    def _refused(self, keypair: Keypair, counters: list[int], forged: list[int]) -> set[int]:
        """The positions that must not be looked at: ``forged`` ones and replays (both counted)."""
        window = keypair.replay_window
        if not forged:
            replayed = window.accept_run(counters)
        else:
            self._device.count_drop(Drop.BAD_TAG, len(forged))
            genuine = sorted(set(range(len(counters))).difference(forged))
            replayed = [genuine[i] for i in window.accept_run([counters[i] for i in genuine])]
        if replayed:
            self._device.count_drop(Drop.REPLAYED, len(replayed))
        return {*forged, *replayed}

    def _message(self, start: int, end: int, arrival: _Arrival) -> None:
        self._device.message_received(bytes(self._view[start:end]), arrival.endpoint, arrival.source, arrival.now)

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

    def _deliver(self, peer: Peer, layout: _Layout, packets: list[memoryview], refused: set[int], ecn: int) -> None:
        """Hold opened rows, but for the ``refused``, for delivery: what follows each other in one flow will be one write."""
        lengths = None if refused else self._uniform_lengths(peer, layout, packets)
        if lengths is None:
            lengths = [0 if row in refused else self._accept(peer, packet) for row, packet in enumerate(packets)]
        if ecn:
            for packet, length in zip(packets, lengths, strict=True):
                if length:
                    decapsulate_ecn(packet, ecn)
        self._held_layout = layout
        self._held += packets
        self._held_lengths += lengths

    def _uniform_lengths(self, peer: Peer, layout: _Layout, packets: list[memoryview]) -> list[int] | None:
        """The lengths of rows that can be judged together, by a few compares: one version, possible lengths, one source that
        is the peer's. None if each must be judged by itself."""
        first, last = packets[0], len(packets[-1])
        held, count = len(self._held), len(packets)
        rows = slice(held, held + count)
        version = first[0] >> 4
        versions = layout.versions[rows].tolist()
        if versions.count(versions[0]) != count:
            return None
        if version == 4 and last >= 20:
            sources, address, least = layout.ipv4_sources[rows].tolist(), bytes(first[12:16]), 20
            lengths: list[int] = layout.ipv4_lengths[rows].tolist()
        elif version == 6 and last >= 40:
            sources, address, least = layout.ipv6_sources[rows].tolist(), bytes(first[8:24]), 40
            lengths = layout.ipv6_lengths[rows].tolist()
            equal = lengths.count(lengths[0]) == count
            lengths = [lengths[0] + 40] * count if equal else [length + 40 for length in lengths]
        else:
            return None
        if sources.count(sources[0]) != count or lengths[-1] > last:
            return None
        if min(lengths) < least or max(lengths) > len(first):
            return None
        return lengths if self._device.allowed_ips.lookup(address) is peer else None


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
