"""Targets: superpackets that the TUN hands us, and packets that are to become superpackets.

The kernel is trusted, but whoever sends from a pod chooses the bytes. Refused with OffloadError. What is accepted is split twice,
in one go and in portions, and must come to the same; what is coalesced must give the same packets again when it is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from tests.fuzz.reader import Reader
from tests.tun.packets import word_sum
from tun.offload import (
    GSO_ECN,
    GSO_NONE,
    GSO_UDP_L4,
    NEEDS_CSUM,
    VIRTIO_HEADER,
    Coalescer,
    OffloadError,
    Superpacket,
    Write,
    complete_checksums,
    packets_of,
)

TCP, UDP = 6, 17
MOST_PACKETS = 40


def superpackets(data: bytes) -> None:
    """A byte that says in how large portions to split, a virtio header, and a packet."""
    portion = 1 + (data[0] % 7 if data else 0)
    write = (data[1 : 1 + VIRTIO_HEADER.size], data[1 + VIRTIO_HEADER.size :])
    try:
        packets = packets_of(write)
    except OffloadError:
        return
    flags, gso_type, _, gso_size, start, offset = VIRTIO_HEADER.unpack(write[0])
    if gso_type == GSO_NONE:
        if flags & NEEDS_CSUM:
            _must_be_completed(write[1], packets[0], start, offset)
        return
    assert packets == _in_portions(write, portion)
    whole = write[1]
    headers = start + (8 if gso_type & ~GSO_ECN == GSO_UDP_L4 else (whole[start + 12] >> 4) * 4)
    size = min(gso_size, len(whole) - headers)
    assert [packet[headers:] for packet in packets] == [whole[at : at + size] for at in range(headers, len(whole), size)]
    for packet in (packets[0], packets[len(packets) // 2], packets[-1]):
        _must_have_right_lengths(packet, start)


def _in_portions(write: tuple[bytes, bytes], portion: int) -> list[bytes]:
    superpacket = Superpacket.parse(write[0], memoryview(bytearray(write[1])))
    rows = np.full((portion, superpacket.row_length + 3), 0xA5, np.uint8)
    packets: list[bytes] = []
    while count := superpacket.fill(rows, len(packets)):
        packets += [row[: superpacket.row_length].tobytes() for row in rows[:count]]
    packets[-1] = packets[-1][: superpacket.last_length]
    return packets


def _must_have_right_lengths(packet: bytes, l4: int) -> None:
    if packet[0] >> 4 == 4:
        assert int.from_bytes(packet[2:4]) == len(packet)
        assert word_sum(packet[:l4]) in (0, 0xFFFF), "an IPv4 header whose checksum is wrong"
    else:
        assert int.from_bytes(packet[4:6]) == len(packet) - 40


def _must_be_completed(before: bytes, after: bytes, start: int, offset: int) -> None:
    """A half-done checksum, by the naive sum, and by the function that does many rows."""
    at = start + offset
    assert before[:at] == after[:at]
    assert before[at + 2 :] == after[at + 2 :]
    assert (int.from_bytes(after[at : at + 2]) + word_sum(before[start:])) % 65535 == 0
    rows = np.frombuffer(before * 2, np.uint8).reshape(2, len(before)).copy()
    complete_checksums(rows, len(before), start, offset)
    assert all(row.tobytes() == after for row in rows)


def coalescing(data: bytes) -> None:
    """A byte of choices, and packets as pieces: those that repeat are what a flow looks like after a change or two."""
    reader = Reader(data)
    choices = reader.number()
    packets = _packets(reader)
    if not packets:
        return
    uso, keep_open = bool(choices & 1), bool(choices & 2)
    writes = coalesced(packets, tso=not choices & 4, uso=uso, keep_open=keep_open)
    made = [packet for write in writes for packet in packets_of(write)]
    assert len(made) == len(packets)
    for one, other in zip(made, packets):
        assert one == other or without_what_is_made_anew(one) == without_what_is_made_anew(other)


def _packets(reader: Reader) -> list[bytes]:
    """Packets as pieces; an empty one is the last one again, one place further on in its flow."""
    packets: list[bytes] = []
    while reader and len(packets) < MOST_PACKETS:
        packet = reader.piece()
        if packet:
            packets.append(packet)
        elif packets:
            packets += successors(packets[-1], 1 + reader.number() % 8)
    return packets[:MOST_PACKETS]


def successors(packet: bytes, count: int) -> list[bytes]:
    """What may follow ``packet`` in its flow: with the next sequence numbers and ids, where it has such fields."""
    made = []
    is_v4 = packet[0] >> 4 == 4
    l4 = 20 if is_v4 else 40
    for number in range(1, count + 1):
        after = bytearray(packet)
        if is_v4 and len(packet) >= 20 and not packet[6] & 0x40:
            after[4:6] = ((int.from_bytes(packet[4:6]) + number) & 0xFFFF).to_bytes(2)
        if len(packet) >= l4 + 20 and packet[9 if is_v4 else 6] == TCP:
            payload = len(packet) - l4 - (packet[l4 + 12] >> 4) * 4
            sequence = int.from_bytes(packet[l4 + 4 : l4 + 8]) + number * max(payload, 0)
            after[l4 + 4 : l4 + 8] = (sequence & 0xFFFFFFFF).to_bytes(4)
        made.append(bytes(after))
    return made


def coalesced(packets: Sequence[bytes], *, tso: bool, uso: bool, keep_open: bool) -> list[Write]:
    """The writes for ``packets``, copied. With ``keep_open`` in two steps, of which the second takes what was left."""
    width = max(map(len, packets)) + 3
    rows = np.full((len(packets), width), 0x45, np.uint8)
    for row, packet in zip(rows, packets):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)
    views = [row.data for row in rows]
    lengths = [len(packet) for packet in packets]
    coalescer = Coalescer(tso=tso, uso=uso)
    done, made = 0, []
    if keep_open:
        writes: list[Write] = []
        done = coalescer.coalesce(rows, views, lengths, writes, keep_open=True)
        made = [(b"".join(write),) for write in writes]
    if done < len(packets):
        writes = []
        assert coalescer.coalesce(rows[done:], views[done:], lengths[done:], writes) == len(packets) - done
        made += [(b"".join(write),) for write in writes]
    return list(made)


def without_what_is_made_anew(packet: bytes) -> bytes:
    """A packet but for its checksums, and its id where that means nothing (RFC 6864)."""
    bare = bytearray(packet)
    with suppress(IndexError):
        is_v4 = packet[0] >> 4 == 4
        l4 = 20 if is_v4 else 40
        if is_v4:
            bare[10] = bare[11] = 0
            if packet[6] & 0x40:
                bare[4] = bare[5] = 0
        protocol = packet[9 if is_v4 else 6]
        if protocol in (TCP, UDP):
            at = l4 + (16 if protocol == TCP else 6)
            bare[at] = bare[at + 1] = 0
    return bytes(bare)
