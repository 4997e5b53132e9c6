"""HOT. Superpackets into packets, packets into superpackets, and the checksums of both.

One read of the TUN brings up to 64 KB of one flow as a *superpacket*: one header, a long payload and, in the virtio header,
the size to cut it in. That is where the speed of this program comes from, and what it asks of us is what a network card
does for the kernel: to make of it the packets it stands for (``Superpacket``), and to make of packets that arrive in a
row a superpacket again (``Coalescer``). Both are exact. The packets are those which the kernel itself would have made, and
packets become a superpacket only if splitting it gives them back.

All memory is the caller's. Packets stand in the *rows* of a matrix, and what is the same in all rows, or counts up from row
to row, is written down a column in one numpy operation. A single packet does not pay for numpy: plain integers do.

A checksum is the complement of a sum of 16-bit words modulo 65,535 (RFC 1071), and three properties make it cheap here. The
sum may be taken over 32-bit words, since 2**16 is 1 modulo 65,535. It may be taken in the machine's byte order if it
is stored in the machine's byte order. And the complement of a sum S is -S modulo 65,535, which also picks the zero that the
kernel writes: no sum with an IP header or a pseudo-header in it is made of zeros only, so none is complemented to 0xffff.

Guarded by ``benchmarks/seam.py``. Last figures, 44 packets of 1420 bytes of one TCP flow, on a machine where the sum over these
packets alone takes 7 µs: a superpacket parsed and filled 25 µs, coalesced 21 µs; a checksum completed 3 µs.
"""

import struct
import sys
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

VIRTIO_HEADER = struct.Struct("=BBHHHH")
"""struct virtio_net_hdr of linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
ZERO_HEADER = bytes(VIRTIO_HEADER.size)
"""The virtio header of a packet that is complete."""

NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80

Rows = NDArray[np.uint8]
"""Packets, one a row. The bytes of a row are adjacent; the distance from row to row is the caller's."""
Write = tuple[bytes | memoryview, ...]
"""What one write to the TUN carries, virtio header first."""

TCP, UDP = 6, 17
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
DONT_FRAGMENT = 0x4000
LONGEST = 65535  # what an IPv4 total length or an IPv6 payload length can say

_WORD = struct.Struct(">H")
_LITTLE_ENDIAN = sys.byteorder == "little"
_ZERO = 65535 << 40  # to a checksum, being a multiple of 65,535: what sums are taken from, to stay positive


class OffloadError(ValueError):
    """A virtio header and its packet contradict each other."""


class Layout:
    """Where things are in the headers of a packet. One object per kind of header: get it from ``layout``."""

    def __init__(self, is_v4: bool, is_tcp: bool, l4: int, length: int) -> None:
        self.is_v4, self.is_tcp = is_v4, is_tcp
        self.l4 = l4  # where the TCP or UDP header starts
        self.length = length  # of all headers together
        self.checksum = l4 + (16 if is_tcp else 6)
        self.length_at = 2 if is_v4 else 4
        self.length_counts_from = 0 if is_v4 else 40  # IPv6 counts what follows its fixed header
        # Headers of neighbours in a superpacket, read as words of 32 bits: a mask over what is not a checksum, and by how much
        # each word grows from one to the next (the coalescer adds by how much ids and sequence numbers do).
        mask = bytearray(b"\xff" * length)
        for at in [self.checksum, 10] if is_v4 else [self.checksum]:
            mask[at : at + 2] = bytes(2)
        self.mask = np.frombuffer(mask, ">u4").astype(np.uint32)
        self.growth = np.zeros_like(self.mask)
        # What the last has in common with the first, as an integer: it may be shorter, and a TCP segment may have PSH.
        last = bytearray(mask)
        last[self.length_at : self.length_at + 2] = bytes(2)
        if is_v4:
            last[4:6] = bytes(2)
        if is_tcp:
            last[l4 + 4 : l4 + 8] = bytes(4)
            last[l4 + 13] ^= PSH
        else:
            last[l4 + 4 : l4 + 6] = bytes(2)
        self.mask_of_last = int.from_bytes(last, "big")


@lru_cache(maxsize=256)
def layout(is_v4: bool, is_tcp: bool, l4: int, length: int) -> Layout:
    return Layout(is_v4, is_tcp, l4, length)


def _native(word: int) -> int:
    """A 16-bit word, read in network order, as it counts in a sum taken in the machine's order."""
    return (word & 0xFF) << 8 | word >> 8 if _LITTLE_ENDIAN else word


def _word_sums(rows: Rows, start: int, end: int) -> NDArray[np.uint64]:
    """For each row the sum of the words in its bytes ``start`` to ``end``, not yet folded."""
    stop = start + (end - start & ~3)
    sums: NDArray[np.uint64] = np.add.reduce(rows[:, start:stop].view(np.uint32), axis=1, dtype=np.uint64)
    _WordRest(rows, stop, end).add(sums, 0, len(rows))
    return sums


def _fold(negated: NDArray[np.uint64], is_tcp: bool) -> NDArray[np.uint64]:
    """Checksums from negated sums, in place."""
    if is_tcp:
        negated %= 65535
    else:  # 1 to 65,535 instead of 0 to 65,534: to UDP a zero says that there is no checksum
        negated -= 1
        negated %= 65535
        negated += 1
    return negated


def complete_checksum(packet: memoryview, csum_start: int, csum_offset: int) -> None:
    """Finish the half-done checksum of one packet (NEEDS_CSUM), whose field holds the sum of the pseudo-header.

    Raises OffloadError if there is no such field.
    """
    at = csum_start + csum_offset
    if at + 2 > len(packet):
        raise OffloadError(f"no checksum at byte {at} of a packet of {len(packet)} bytes")
    total = int.from_bytes(packet[csum_start:], "big")
    if len(packet) - csum_start & 1:
        total <<= 8
    checksum = -total % 65535
    if checksum == 0 and csum_offset == 6:
        checksum = 0xFFFF  # UDP: a zero says that there is no checksum
    _WORD.pack_into(packet, at, checksum)


def complete_checksums(rows: Rows, length: int, csum_start: int, csum_offset: int) -> None:
    """``complete_checksum`` for every row; all are ``length`` bytes long."""
    at = csum_start + csum_offset
    if not at + 2 <= length <= rows.shape[1]:
        raise OffloadError(f"no checksum at byte {at} of packets of {length} bytes in rows of {rows.shape[1]}")
    negated = _ZERO - _word_sums(rows, csum_start, length)
    rows[:, at : at + 2].view(np.uint16)[:, 0] = _fold(negated, is_tcp=csum_offset != 6)


class Superpacket:
    """A superpacket that was read, on its way into rows. It looks into the packet it was parsed from until it is filled."""

    count: int
    """How many packets it makes."""
    row_length: int
    """Bytes of each, with headers."""
    last_length: int
    """Bytes of the last, which may be fewer."""

    _layout: Layout
    _gso_size: int
    _payload: Rows  # one-dimensional
    _header: Rows  # likewise: what all rows start from
    _pseudo: int  # sum of the pseudo-header of a full row, in the machine's order
    _ip_sum: int  # of the IPv4 header without id, in network order
    _id: int
    _sequence: int
    _flags: int

    @classmethod
    def parse(cls, header: bytes | bytearray | memoryview, packet: memoryview) -> Self:
        """Take a superpacket with GSO_TCPV4, GSO_TCPV6 or GSO_UDP_L4 in its virtio header (10 bytes). Nothing is copied.

        Raises OffloadError for anything else, and where header and packet contradict each other.
        """
        if len(header) != VIRTIO_HEADER.size:
            raise OffloadError(f"a virtio header of {len(header)} bytes")
        flags, gso_type, _, gso_size, csum_start, csum_offset = VIRTIO_HEADER.unpack(header)
        if not flags & NEEDS_CSUM or gso_size == 0:
            raise OffloadError("a superpacket without a size to cut it in, or with its checksum done")
        self = cls()
        # GSO_ECN hints that CWR may be set, which the TCP flags say anyway.
        self._layout = where = _superpacket_layout(gso_type & ~GSO_ECN, packet, csum_start)
        if csum_start + csum_offset != where.checksum:
            raise OffloadError(f"a checksum at byte {csum_start + csum_offset}, not at {where.checksum}")
        payload_length = len(packet) - where.length
        self._gso_size = gso_size = min(gso_size, payload_length)
        self.count = -(-payload_length // gso_size)
        self.row_length = where.length + gso_size
        self.last_length = len(packet) - (self.count - 1) * gso_size
        self._payload = np.frombuffer(packet, np.uint8)[where.length :]
        self._prepare_header(bytearray(packet[: where.length]), len(packet))
        return self

    def _prepare_header(self, header: bytearray, size: int) -> None:
        """Make the header which all rows start from, and keep what varies from row to row."""
        where = self._layout
        # The field holds the sum of the pseudo-header (any IPv6 routing header allowed for), which counts the superpacket's
        # length: exchange that for a row's, as the kernel does.
        (pseudo,) = _WORD.unpack_from(header, where.checksum)
        self._pseudo = _native((pseudo - size + self.row_length) % 65535)
        _WORD.pack_into(header, where.checksum, 0)
        _WORD.pack_into(header, where.length_at, self.row_length - where.length_counts_from)
        if where.is_v4:
            self._id = header[4] << 8 | header[5]
            header[4] = header[5] = header[10] = header[11] = 0
            self._ip_sum = int.from_bytes(header[: where.l4], "big") % 65535
        if where.is_tcp:
            self._sequence = int.from_bytes(header[where.l4 + 4 : where.l4 + 8], "big")
            self._flags = header[where.l4 + 13]
            header[where.l4 + 13] &= ~(FIN | PSH | CWR)
        else:
            _WORD.pack_into(header, where.l4 + 4, self.row_length - where.l4)
        self._header = np.frombuffer(header, np.uint8)

    def fill(self, rows: Rows, first: int = 0) -> int:
        """Write the packets from number ``first`` on, one a row, and return how many: the rest, or as many as there are rows.

        Columns from ``row_length`` on are left alone. A shorter last packet is followed by zeros up to there. Raises
        OffloadError if ``row_length`` exceeds the rows.
        """
        return self.fill_columns(self.columns_of(rows), 0, first)

    def columns_of(self, rows: Rows) -> "Columns":
        """What :meth:`fill_columns` needs to know of ``rows``: good for every superpacket of the same ``kind``."""
        return Columns(rows, *self.kind)

    @property
    def kind(self) -> tuple[Layout, int]:
        return self._layout, self.row_length

    def fill_columns(self, columns: "Columns", start: int, first: int) -> int:
        """:meth:`fill` from row ``start`` of an arena whose views were made earlier: they cost as much as half the filling."""
        count = min(columns.count - start, self.count - first)
        if count <= 0:
            return 0
        where, size = self._layout, self._gso_size
        end = start + count
        is_last = first + count == self.count
        short_by = self.row_length - self.last_length if is_last else 0

        columns.headers[start:end] = self._header
        full = count - (short_by > 0)
        copied = (first + full) * size
        columns.payloads[start : start + full] = self._payload[first * size : copied].reshape(full, size)
        if short_by:
            rest = columns.payloads[end - 1]
            rest[:-short_by] = self._payload[copied:]
            rest[-short_by:] = 0  # adds nothing to the row's sum
        if where.is_v4:
            self._number_ipv4(columns, start, end, self._id + first, short_by)
        if where.is_tcp:
            sequence = self._sequence + first * size
            columns.sequences[start:end] = np.arange(sequence, sequence + count * size, size)  # wraps when stored
            if first == 0 and self._flags & CWR:
                columns.flags[start] |= CWR
            if is_last and self._flags & (FIN | PSH):
                columns.flags[end - 1] |= self._flags & (FIN | PSH)
        if short_by:
            columns.lengths[end - 1] = self.last_length - where.length_counts_from
            if not where.is_tcp:
                columns.udp_lengths[end - 1] = self.last_length - where.l4

        negated = (_ZERO - self._pseudo) - columns.sums(start, end)
        if short_by:
            negated[-1] += _native(short_by)  # its pseudo-header counts fewer bytes
        columns.checksums[start:end] = _fold(negated, where.is_tcp)
        return count

    def _number_ipv4(self, columns: "Columns", start: int, end: int, first_id: int, short_by: int) -> None:
        """The id grows by one from row to row, so the header checksum falls by one."""
        count = end - start
        ids = np.arange(first_id, first_id + count)
        columns.ids[start:end] = ids  # wraps when stored
        checksum = -(self._ip_sum + first_id) % 65535
        if first_id + count <= 0x10000 and checksum >= count:
            columns.ip_checksums[start:end] = np.arange(checksum, checksum - count, -1)
        else:
            columns.ip_checksums[start:end] = -(self._ip_sum + (ids & 0xFFFF)) % 65535
        if short_by:
            columns.ip_checksums[end - 1] = (int(columns.ip_checksums[end - 1]) + short_by) % 65535


class Columns:
    """Rows of an arena, seen as the columns that superpackets of one kind are written to: one headers' layout, one length."""

    def __init__(self, rows: Rows, where: Layout, width: int) -> None:
        """For packets of ``width`` bytes. Raises OffloadError if that exceeds the rows."""
        if rows.shape[1] < width:
            raise OffloadError(f"packets of {width} bytes in rows of {rows.shape[1]}")

        def column(at: int, kind: str) -> NDArray[Any]:
            length = np.dtype(kind).itemsize
            found: NDArray[Any] = rows[:, at : at + length].view(kind)[:, 0]
            return found

        self.count: int = rows.shape[0]
        self.headers = rows[:, : where.length]
        self.payloads = rows[:, where.length : width]
        self.lengths = column(where.length_at, ">u2")
        self.checksums = column(where.checksum, "=u2")
        if where.is_v4:
            self.ids, self.ip_checksums = column(4, ">u2"), column(10, ">u2")
        if where.is_tcp:
            self.sequences, self.flags = column(where.l4 + 4, ">u4"), rows[:, where.l4 + 13]
        else:
            self.udp_lengths = column(where.l4 + 4, ">u2")
        stop = where.l4 + (width - where.l4 & ~3)
        self._words = rows[:, where.l4 : stop].view(np.uint32)
        self._rest = _WordRest(rows, stop, width)

    def sums(self, start: int, end: int) -> NDArray[np.uint64]:
        """For each of the rows the sum of the words behind the IP header, not yet folded."""
        sums: NDArray[np.uint64] = np.add.reduce(self._words[start:end], axis=1, dtype=np.uint64)
        self._rest.add(sums, start, end)
        return sums


class _WordRest:
    """What is left of rows when their 32-bit words are summed: the bytes ``start`` to ``end``, at most three."""

    def __init__(self, rows: Rows, start: int, end: int) -> None:
        self._half = rows[:, start : start + 2].view(np.uint16)[:, 0] if end - start & 2 else None
        self._odd = rows[:, end - 1] if end - start & 1 else None

    def add(self, sums: NDArray[np.uint64], start: int, end: int) -> None:
        if self._half is not None:
            sums += self._half[start:end]
        if self._odd is not None:  # an odd byte is the high half of a last word
            odd = self._odd[start:end]
            sums += odd if _LITTLE_ENDIAN else odd.astype(np.uint64) << np.uint64(8)


def _superpacket_layout(gso_type: int, packet: memoryview, l4: int) -> Layout:
    """Check the headers of a superpacket whose TCP or UDP header starts at ``l4``. Raises OffloadError.

    hdr_len of the virtio header is not looked at: it is what the kernel put into the first part of its buffer.
    """
    size = len(packet)
    if gso_type not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4):
        raise OffloadError(f"a superpacket of unknown kind {gso_type}")
    is_tcp = gso_type != GSO_UDP_L4
    shortest = 20 if is_tcp else 8
    if size <= l4 + shortest:
        raise OffloadError(f"a superpacket of {size} bytes without payload")
    protocol = TCP if is_tcp else UDP
    version = packet[0] >> 4
    if version == 4 and gso_type != GSO_TCPV6:
        fits = (packet[0] & 15) * 4 == l4 >= 20 and packet[9] == protocol and size <= LONGEST
    elif version == 6 and gso_type != GSO_TCPV4:  # extension headers may stand in between, in multiples of four bytes
        fits = l4 >= 40 and l4 % 4 == 0 and (l4 == 40) == (packet[6] == protocol) and size <= 40 + LONGEST
    else:
        fits = False
    if not fits:
        raise OffloadError(f"an IPv{version} header that contradicts the virtio header")
    length = l4 + (packet[l4 + 12] >> 4) * 4 if is_tcp else l4 + 8
    if not l4 + shortest <= length < size:
        raise OffloadError(f"headers of {length} bytes in a superpacket of {size}")
    return layout(version == 4, is_tcp, l4, length)


class Coalescer:
    """Makes superpackets of packets which follow each other in one flow, in memory of its own.

    ``tso`` and ``uso`` say which protocols to coalesce: what the interface's ``Offloads.tcp_gro`` and ``udp_gro`` are. They
    may be changed at any time.

    Neighbours become one superpacket if splitting it gives back exactly them:

    * IPv4 without options or fragments, or IPv6 with TCP or UDP directly behind; lengths right, and payload in each.
    * All headers equal but for what splitting makes anew: lengths, IPv4 ids, sequence numbers, checksums. (So: ToS, TTL, DF,
      flow label, addresses, ports, acknowledgement, window, urgent pointer, options with their timestamps.)
    * Payloads of equal length, the last may be shorter. At most 65,535 bytes together.
    * TCP: sequence numbers consecutive, ACK the only flag, but for PSH which the last may have.
    * UDP: a checksum in each, since splitting would give one to a datagram that had none.
    * IPv4 ids grow by one. With DF set they may also stay the same, as in the kernel's GRO: such an id means nothing (RFC 6864),
      and it is the one thing that splitting does not give back, for a virtio header cannot say it.

    Nothing is reordered: anything else between two packets of a flow parts them.

    Checksums of the packets are not looked at, for they arrived authenticated from the peer who computed them; the kernel's
    own WireGuard trusts them too. Know the consequence: a superpacket has its checksums made anew, so a packet that its
    sender already had wrong arrives right, where it would have been dropped.
    """

    def __init__(self, tso: bool = True, uso: bool = False, capacity: int = 1 << 18) -> None:
        """``capacity`` (bytes) bounds the superpackets that wait to be written. What does not fit is written packet by packet."""
        self.tso = tso
        self.uso = uso
        self._scratch = np.zeros(capacity, np.uint8)
        self._view = self._scratch.data
        self._used = 0

    def reset(self) -> None:
        """Forget all superpackets: every write made so far has been carried out."""
        self._used = 0

    def coalesce(
        self,
        rows: Rows,
        views: Sequence[memoryview],
        lengths: Sequence[int] | NDArray[Any],
        writes: list[Write],
        *,
        keep_open: bool = False,
    ) -> int:
        """Append to ``writes`` what must be written for the packets in ``rows``, in their order. Returns how many they were.

        ``views[i]`` covers row i from its start, ``lengths[i]`` are the bytes of its packet. The writes point into rows and
        into this object's memory. They stay valid until ``reset`` or until this is called with an empty ``writes``, which
        says that the earlier ones have been carried out.

        With ``keep_open`` a superpacket at the end that the next packet might still belong to is left out: more of its flow
        is about to come.
        """
        if not writes:
            self._used = 0
        count = len(lengths)
        if count == 1 and not keep_open:
            writes.append((ZERO_HEADER, views[0][: lengths[0]]))
            return 1
        sizes: Sequence[int] = lengths.tolist() if isinstance(lengths, np.ndarray) else lengths
        breaks: dict[tuple[int, Layout, int], list[int]] = {}
        start = 0
        while start < count:
            end = start + 1
            where = self._candidate(views[start], sizes[start]) if end < count or keep_open else None
            if keep_open and end == count and where is not None:
                return start
            # Where flows mix, a look at the next packet is cheaper than one at all of them.
            if where is None or (breaks and not _follows(views, sizes, start, end, where)):
                writes.append((ZERO_HEADER, views[start][: sizes[start]]))
                start = end
                continue
            size = sizes[start]
            key = (size, where, _id_step(views[start], views[end]))
            if key not in breaks:
                breaks[key] = _breaks(rows[:count], sizes, *key)
            end = breaks[key][bisect_right(breaks[key], start)]
            longest = start + (LONGEST - where.length) // (size - where.length)
            if keep_open and end == count < longest:
                return start
            end = min(end, longest)
            if end < count and _follows(views, sizes, start, end, where):
                end += 1
            write = self._merge(rows, views, sizes, start, end, where) if end - start > 1 else None
            if write is not None:
                writes.append(write)
            else:
                writes.extend([(ZERO_HEADER, views[i][: sizes[i]]) for i in range(start, end)])
            start = end
        return count

    def refused(self, write: Write) -> list[Write]:
        """The kernel refused ``write`` (TunRefused): never make its kind again, and return what to write in its place.

        That is nothing if it was a single packet. For kernels that cannot take superpackets: not made for speed.
        """
        kind = write[0][1]
        if kind == GSO_NONE:
            return []
        if kind == GSO_UDP_L4:
            self.uso = False
        else:
            self.tso = False
        return [(ZERO_HEADER, packet) for packet in packets_of(write)]

    def _candidate(self, packet: memoryview, size: int) -> Layout | None:
        """Where things are in a packet that may begin a superpacket; None if it may not."""
        if not 29 <= size <= LONGEST:  # 29: the shortest headers, and a byte of payload
            return None
        if packet[0] == 0x45:
            l4, protocol = 20, packet[9]
            if (packet[6] << 8 | packet[7]) & ~DONT_FRAGMENT or packet[2] << 8 | packet[3] != size:
                return None
        elif packet[0] >> 4 == 6 and size > 48:
            l4, protocol = 40, packet[6]
            if (packet[4] << 8 | packet[5]) + 40 != size:
                return None
        else:
            return None
        if protocol == TCP and self.tso and size > l4 + 20:
            data_offset = packet[l4 + 12]
            if packet[l4 + 13] != ACK or data_offset & 15 or data_offset < 0x50:
                return None
            length = l4 + (data_offset >> 2)
        elif protocol == UDP and self.uso and size > l4 + 8:
            has_checksum = packet[l4 + 6] or packet[l4 + 7]
            if not has_checksum or (packet[l4 + 4] << 8 | packet[l4 + 5]) != size - l4:
                return None
            length = l4 + 8
        else:
            return None
        return layout(l4 == 20, protocol == TCP, l4, length) if length < size else None

    def _merge(
        self, rows: Rows, views: Sequence[memoryview], sizes: Sequence[int], start: int, end: int, where: Layout
    ) -> Write | None:
        """Rows ``start`` to ``end`` as one superpacket, or None where the scratch memory is full."""
        headers, count = where.length, end - start
        gso_size, last = sizes[start] - headers, sizes[end - 1] - headers
        size = headers + (count - 1) * gso_size + last
        base = self._used + VIRTIO_HEADER.size
        if base + size > len(self._scratch):
            return None
        packet = self._view[base : base + size]
        packet[:headers] = views[start][:headers]
        full = count if last == gso_size else count - 1
        end_of_full = headers + full * gso_size
        payload = self._scratch[base + headers : base + end_of_full].reshape(full, gso_size)
        payload[:] = rows[start : start + full, headers : headers + gso_size]
        if full < count:
            packet[end_of_full:] = views[end - 1][headers : headers + last]
        if where.is_tcp:
            packet[where.l4 + 13] = views[end - 1][where.l4 + 13]  # the PSH of the last, if it has one
        _finish_superpacket_header(packet, where)
        kind = (GSO_TCPV4 if where.is_v4 else GSO_TCPV6) if where.is_tcp else GSO_UDP_L4
        VIRTIO_HEADER.pack_into(self._view, self._used, NEEDS_CSUM, kind, headers, gso_size, where.l4, where.checksum - where.l4)
        write = (self._view[self._used : base + size],)
        self._used = base + size
        return write


def _breaks(rows: Rows, sizes: Sequence[int], size: int, where: Layout, id_step: int) -> list[int]:
    """The rows that cannot stand behind the row before them in a superpacket, unless as its last; and the number of rows.

    It is for superpackets of packets of ``size`` bytes with these headers, whose ids grow by ``id_step``. Between rows of
    other sizes and headers its answer means nothing.
    """
    words = rows[:, : where.length].view(">u4").astype(np.uint32)
    growth = where.growth.copy()
    if where.is_v4:
        growth[1] = id_step << 16
    if where.is_tcp:
        growth[where.l4 // 4 + 1] = size - where.length
    checksums = words[1:, where.checksum // 4] & 0xFFFF if not where.is_tcp else None
    words &= where.mask
    broken = np.bitwise_or.reduce(words[1:] - words[:-1] ^ growth, axis=1)
    if checksums is not None:
        broken |= checksums == 0
    found = [row + 1 for row in broken.nonzero()[0].tolist()]
    if sizes.count(size) < len(sizes):  # the header's length and the real one must agree
        found = sorted({*found, *(i for i, other in enumerate(sizes) if other != size)})
    return [*found, len(sizes)]


def _id_step(packet: memoryview, next_packet: memoryview) -> int:
    """By how much ids must grow in a superpacket that begins with these two: 1, or 0 with DF set where they do not."""
    return 0 if packet[6] & DONT_FRAGMENT >> 8 and packet[4:6] == next_packet[4:6] else 1


def _follows(views: Sequence[memoryview], sizes: Sequence[int], start: int, end: int, where: Layout) -> bool:
    """Whether row ``end`` may be the last of the superpacket that rows ``start`` to ``end`` are: shorter, or with PSH."""
    first, packet, size = views[start], views[end], sizes[end]
    headers, l4 = where.length, where.l4
    payload_before = (end - start) * (sizes[start] - headers)
    if not headers < size <= sizes[start] or payload_before + size > LONGEST:
        return False
    if (int.from_bytes(first[:headers], "big") ^ int.from_bytes(packet[:headers], "big")) & where.mask_of_last:
        return False
    if (packet[where.length_at] << 8 | packet[where.length_at + 1]) != size - where.length_counts_from:
        return False
    if where.is_v4:
        grown = (packet[4] << 8 | packet[5]) - (first[4] << 8 | first[5])
        if grown & 0xFFFF != (end - start) * _id_step(first, views[start + 1]):
            return False
    if where.is_tcp:
        grown = int.from_bytes(packet[l4 + 4 : l4 + 8], "big") - int.from_bytes(first[l4 + 4 : l4 + 8], "big")
        return grown & 0xFFFFFFFF == payload_before
    return (packet[l4 + 4] << 8 | packet[l4 + 5]) == size - l4 and (packet[l4 + 6] | packet[l4 + 7]) != 0


def _finish_superpacket_header(packet: memoryview, where: Layout) -> None:
    """Set the lengths, the IPv4 checksum, and for the L4 checksum the sum of the pseudo-header, of a superpacket."""
    size, l4 = len(packet), where.l4
    _WORD.pack_into(packet, where.length_at, size - where.length_counts_from)
    if where.is_v4:
        _WORD.pack_into(packet, 10, 0)
        _WORD.pack_into(packet, 10, -int.from_bytes(packet[:l4], "big") % 65535)
    if not where.is_tcp:
        _WORD.pack_into(packet, l4 + 4, size - l4)
    addresses = packet[12:20] if where.is_v4 else packet[8:40]
    pseudo = int.from_bytes(addresses, "big") + (TCP if where.is_tcp else UDP) + size - l4
    _WORD.pack_into(packet, where.checksum, pseudo % 65535 or 65535)


def packets_of(write: Write) -> list[bytes]:
    """The packets that a write stands for, complete: what the kernel makes of it. Copies, and is not made for speed.

    Raises OffloadError.
    """
    whole = memoryview(bytearray().join(write))
    header, packet = whole[: VIRTIO_HEADER.size], whole[VIRTIO_HEADER.size :]
    if len(header) < VIRTIO_HEADER.size:
        raise OffloadError(f"a write of {len(whole)} bytes")
    flags, gso_type, _, _, csum_start, csum_offset = VIRTIO_HEADER.unpack(header)
    if gso_type == GSO_NONE:
        if flags & NEEDS_CSUM:
            complete_checksum(packet, csum_start, csum_offset)
        return [bytes(packet)]
    superpacket = Superpacket.parse(header, packet)
    rows = np.empty((superpacket.count, superpacket.row_length), np.uint8)
    superpacket.fill(rows)
    return [row.tobytes() for row in rows[:-1]] + [rows[-1, : superpacket.last_length].tobytes()]
