import contextlib
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tun.packets import ACK, CWR, FIN, PSH, Stream, checksum, word_sum
from tun.offload import (
    ZERO_HEADER,
    Coalescer,
    OffloadError,
    Superpacket,
    Write,
    complete_checksum,
    complete_checksums,
    packets_of,
)

TCP4 = Stream()
TCP6 = Stream(is_v4=False)
UDP4 = Stream(is_tcp=False)
UDP6 = Stream(is_v4=False, is_tcp=False)


def split(header: bytes, packet: bytes, stride: int = 0, chunk: int = 1000, misalign: int = 0) -> list[bytes]:
    """Parse and fill, ``chunk`` rows at a time; check that nothing outside the rows is touched."""
    memory = bytearray(misalign) + bytearray(packet)
    superpacket = Superpacket.parse(header, memoryview(memory)[misalign:])
    width = superpacket.row_length
    rows = np.full((chunk, width + stride), 0xA5, np.uint8)
    packets: list[bytes] = []
    while filled := superpacket.fill(rows, len(packets)):
        assert (rows[:, width:] == 0xA5).all()
        assert (rows[filled:] == 0xA5).all()
        packets += [row[:width].tobytes() for row in rows[:filled]]
        rows[:] = 0xA5
    assert len(packets) == superpacket.count
    assert not any(packets[-1][superpacket.last_length :])
    packets[-1] = packets[-1][: superpacket.last_length]
    return packets


def burst_of(packets: Sequence[bytes], spare: int = 3) -> tuple[np.ndarray, list[memoryview], list[int]]:
    """Packets in rows which hold other bytes behind them, as an arena does."""
    width = max(map(len, packets), default=0) + spare
    rows = np.full((len(packets), width), 0x45, np.uint8)
    for row, packet in zip(rows, packets, strict=True):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)
    return rows, [row.data for row in rows], [len(packet) for packet in packets]


def coalesced(packets: Sequence[bytes], uso: bool = True, tso: bool = True) -> list[Write]:
    writes: list[Write] = []
    rows, views, lengths = burst_of(packets)
    Coalescer(tso=tso, uso=uso).coalesce(rows, views, lengths, writes)
    return [(b"".join(write),) for write in writes]


def groups(writes: Sequence[Write]) -> list[int]:
    """How many packets each write stands for."""
    return [len(packets_of(write)) for write in writes]


@st.composite
def streams(draw: st.DrawFn, plain: bool = False) -> Stream:
    """Any stream; a ``plain`` one has nothing that keeps it from being coalesced."""
    is_v4, is_tcp = draw(st.booleans()), draw(st.booleans())
    size = draw(st.integers(1, 200) | st.sampled_from([1368, 1448]))
    count = draw(st.integers(1, 12))
    last = draw(st.integers(1, size))
    between = b"" if plain else draw(st.integers(0, 10 if is_v4 else 3).map(lambda n: bytes([1] * (n * (4 if is_v4 else 8)))))
    some_bytes = st.binary(min_size=16, max_size=16)
    return Stream(
        is_v4=is_v4,
        is_tcp=is_tcp,
        payload=random.Random(draw(st.integers(0, 1000))).randbytes((count - 1) * size + last),
        size=size,
        headers_between=between,
        tos=draw(st.integers(0, 255)),
        ttl=draw(st.integers(0, 255)),
        flow_label=draw(st.integers(0, 0xFFFFF)),
        ident=draw(st.integers(0, 65535) | st.integers(65526, 65535)),
        dont_fragment=draw(st.booleans()),
        source=draw(some_bytes),
        destination=draw(some_bytes),
        ports=(draw(st.integers(0, 65535)), draw(st.integers(0, 65535))),
        sequence=draw(st.integers(0, 2**32 - 1) | st.integers(2**32 - 2000, 2**32 - 1)),
        acknowledgement=draw(st.integers(0, 2**32 - 1)),
        window=draw(st.integers(0, 65535)),
        flags=draw(st.sampled_from([ACK, ACK | PSH]) if plain else st.integers(0, 255)),
        options=draw(st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))),
    )


# Superpackets into packets


@given(streams(), st.integers(0, 20), st.integers(1, 13), st.integers(0, 7))
def test_a_superpacket_is_split_into_the_packets_that_a_naive_sender_would_have_sent(
    stream: Stream, stride: int, chunk: int, misalign: int
) -> None:
    header, packet = stream.superpacket()

    assert split(header, packet, stride, chunk, misalign) == stream.packets()


@pytest.mark.parametrize("stream", [TCP4, TCP6, UDP4, UDP6], ids=["tcp4", "tcp6", "udp4", "udp6"])
def test_handle_virtio_read_of_wireguard_go(stream: Stream) -> None:
    """Test_handleVirtioRead: 200 bytes at 100 make two packets; the kernel's hdr_len may say anything."""
    stream = replace(stream, payload=bytes(range(200)), size=100, flags=ACK | PSH)
    header, packet = stream.superpacket()
    for hdr_len in (0, 10, 65535):
        header = header[:2] + struct.pack("=H", hdr_len) + header[4:]

        packets = split(header, packet)

        assert [len(one) for one in packets] == [stream.header_length + 100] * 2
        assert packets == stream.packets()


def test_fin_and_psh_stay_on_the_last_and_cwr_on_the_first() -> None:
    header, packet = replace(TCP4, flags=ACK | PSH | FIN | CWR).superpacket()

    assert [one[33] for one in split(header, packet)] == [ACK | CWR, ACK, ACK | PSH | FIN]
    assert [one[33] for one in split(header, packet, chunk=1)] == [ACK | CWR, ACK, ACK | PSH | FIN]


def test_the_ecn_bit_of_the_kind_is_no_part_of_the_kind() -> None:
    header, packet = TCP4.superpacket()

    assert split(header[:1] + bytes([0x81]) + header[2:], packet) == TCP4.packets()


def test_ids_and_sequence_numbers_wrap() -> None:
    stream = replace(TCP4, ident=65535, sequence=2**32 - 150)

    packets = split(*stream.superpacket())

    assert [int.from_bytes(packet[4:6], "big") for packet in packets] == [65535, 0, 1]
    assert [int.from_bytes(packet[24:28], "big") for packet in packets] == [2**32 - 150, 2**32 - 50, 50]
    assert packets == stream.packets()


@pytest.mark.parametrize("ident", range(0, 65536, 257))
def test_ip_header_checksums_are_right_wherever_they_wrap(ident: int) -> None:
    stream = replace(TCP4, ident=ident, payload=bytes(60), size=1)

    assert split(*stream.superpacket()) == stream.packets()


@pytest.mark.parametrize(("stream", "expected"), [(UDP4, 0xFFFF), (UDP6, 0xFFFF), (TCP4, 0), (TCP6, 0)])
def test_a_checksum_of_zero_is_written_the_other_way_for_udp_only(stream: Stream, expected: int) -> None:
    stream = replace(stream, payload=bytes(100))
    offset = stream.l4 + (16 if stream.is_tcp else 6)
    (packet,) = stream.packets()
    stream = replace(stream, payload=packet[offset : offset + 2] + bytes(98))  # which makes the sum all ones
    header, packet = stream.superpacket()
    start, field = struct.unpack("=HH", header[6:])
    single, rows = bytearray(packet), np.array([list(packet)] * 2, np.uint8)

    complete_checksum(memoryview(single), start, field)
    complete_checksums(rows, len(packet), start, field)

    assert single[offset : offset + 2] == struct.pack(">H", expected)
    assert [single] == split(header, packet) == stream.packets()
    assert rows.tobytes() == bytes(single) * 2


@pytest.mark.parametrize("stream", [TCP4, TCP6, UDP4, UDP6])
def test_a_pseudo_header_that_sums_to_nothing_is_written_as_the_kernel_does(stream: Stream) -> None:
    header, packet = replace(stream, destination=bytes(16)).superpacket()
    at = stream.l4 + (16 if stream.is_tcp else 6)
    missing = 0xFFFF - int.from_bytes(packet[at : at + 2], "big")
    stream = replace(stream, destination=struct.pack(">H14x", missing))
    header, packet = stream.superpacket()
    assert packet[at : at + 2] == b"\xff\xff"

    assert split(header, packet) == stream.packets()
    assert coalesced(stream.packets()) == [(header + packet,)]


def test_a_superpacket_of_many_small_segments_is_filled_piece_by_piece() -> None:
    stream = replace(TCP6, payload=random.Random(1).randbytes(20_001), size=10)

    assert split(*stream.superpacket(), chunk=128) == stream.packets()


def test_the_largest_superpackets_are_split() -> None:
    for stream in (TCP4, TCP6, UDP4, UDP6):
        whole = 65535 - stream.header_length if stream.is_v4 else 65535 - (stream.header_length - 40)
        large = replace(stream, payload=random.Random(2).randbytes(whole), size=1368)

        assert split(*large.superpacket()) == large.packets()


def test_rows_that_are_too_narrow_are_refused() -> None:
    header, packet = TCP4.superpacket()
    superpacket = Superpacket.parse(header, memoryview(bytearray(packet)))

    with pytest.raises(OffloadError, match="140 bytes in rows of 139"):
        superpacket.fill(np.zeros((4, 139), np.uint8))


CONTRADICTIONS = {
    "no kind": (TCP4, b"\1\0"),
    "UFO": (TCP4, b"\1\3"),
    "checksum done": (TCP4, b"\0\1"),
    "TCPV6 over IPv4": (TCP4, b"\1\4"),
    "TCPV4 over IPv6": (TCP6, b"\1\1"),
    "UDP of a TCP packet": (TCP4, b"\1\5"),
    "TCP of a UDP packet": (UDP6, b"\1\4"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_virtio_header_that_contradicts_its_packet_is_refused(name: str) -> None:
    stream, start = CONTRADICTIONS[name]
    header, packet = stream.superpacket()

    with pytest.raises(OffloadError):
        Superpacket.parse(start + header[2:], memoryview(packet))


@pytest.mark.parametrize("stream", [TCP4, TCP6, UDP4, UDP6])
@pytest.mark.parametrize(
    ("position", "value"), [(4, 0), (6, 0), (6, 19), (6, 21), (6, 24), (6, 39), (6, 44), (6, 60000), (8, 0), (8, 15), (8, 60000)]
)
def test_a_size_or_place_that_is_wrong_is_refused(stream: Stream, position: int, value: int) -> None:
    header, packet = stream.superpacket()
    header = header[:position] + struct.pack("=H", value) + header[position + 2 :]

    with pytest.raises(OffloadError):
        Superpacket.parse(header, memoryview(packet))


@pytest.mark.parametrize("stream", [TCP4, TCP6, UDP4, UDP6])
def test_a_superpacket_without_payload_is_refused(stream: Stream) -> None:
    header, packet = stream.superpacket()
    for size in (0, 1, stream.l4, stream.header_length):
        with pytest.raises(OffloadError):
            Superpacket.parse(header, memoryview(packet)[:size])
    with pytest.raises(OffloadError):
        Superpacket.parse(header[:9], memoryview(packet))


@settings(max_examples=300)
@given(streams(), st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), max_size=6), st.integers(0, 400))
def test_a_damaged_superpacket_raises_nothing_but_offload_errors(
    stream: Stream, damage: list[tuple[int, int]], length: int
) -> None:
    header, packet = stream.superpacket()
    whole = bytearray(header + packet)[: 10 + length]
    for position, value in damage:
        whole[position % len(whole)] = value
    view = memoryview(whole)
    try:
        superpacket = Superpacket.parse(view[:10], view[10:])
    except OffloadError:
        return
    packets = split(bytes(view[:10]), bytes(view[10:]))
    assert sum(len(one) - superpacket._layout.length for one in packets) == len(view) - 10 - superpacket._layout.length


@given(st.binary(max_size=120))
def test_random_bytes_raise_nothing_but_offload_errors(junk: bytes) -> None:
    with contextlib.suppress(OffloadError):
        split(junk[:10], junk[10:])
    with contextlib.suppress(OffloadError):
        packets_of((junk,))


# Checksums of single packets


@given(streams(), st.integers(0, 9))
def test_a_half_done_checksum_is_completed(stream: Stream, spare: int) -> None:
    stream = replace(stream, payload=stream.payload[: stream.size])
    (expected,) = stream.packets()
    header, packet = stream.superpacket()
    start, offset = struct.unpack("=HH", header[6:])
    single = bytearray(packet)
    rows = np.full((3, len(packet) + spare), 7, np.uint8)
    rows[:, : len(packet)] = np.frombuffer(packet, np.uint8)

    complete_checksum(memoryview(single), start, offset)
    complete_checksums(rows, len(packet), start, offset)

    assert single == expected
    assert rows[:, : len(packet)].tobytes() == expected * 3
    assert (rows[:, len(packet) :] == 7).all()


@given(st.lists(st.binary(min_size=41, max_size=41), min_size=1, max_size=4), st.integers(0, 45), st.integers(0, 45))
def test_a_checksum_is_completed_anywhere_in_any_bytes_or_refused(packets: list[bytes], start: int, offset: int) -> None:
    rows, views, _ = burst_of(packets, spare=0)
    copies = [memoryview(bytearray(view)) for view in views]
    if start + offset + 2 > 41:
        with pytest.raises(OffloadError):
            complete_checksum(copies[0], start, offset)
        with pytest.raises(OffloadError):
            complete_checksums(rows, 41, start, offset)
        return
    assume(any(any(packet[start:]) for packet in packets))

    complete_checksums(rows, 41, start, offset)

    for packet, view, copy in zip(packets, views, copies, strict=True):
        complete_checksum(copy, start, offset)
        assert copy == view
        if any(packet[start:]):
            value = checksum(packet[start:]) or (0xFFFF if offset == 6 else 0)
            assert view[start + offset : start + offset + 2] == struct.pack(">H", value)


def test_rows_longer_than_the_matrix_are_refused() -> None:
    with pytest.raises(OffloadError):
        complete_checksums(np.zeros((2, 60), np.uint8), 61, 20, 16)


# Packets into superpackets


@given(streams(plain=True))
def test_splitting_and_coalescing_gives_back_the_superpacket(stream: Stream) -> None:
    header, packet = stream.superpacket()

    (write,) = coalesced(split(header, packet))

    if len(stream.payload) <= stream.size:
        assert write == (ZERO_HEADER + stream.packets()[0],)
    else:
        assert write == (header + packet,)


def naive_groups(packets: Sequence[bytes]) -> list[list[bytes]]:
    """The rules of ``Coalescer``, one packet at a time, in the words of its docstring."""
    result: list[list[bytes]] = []
    for packet in packets:
        if result and naive_joins(result[-1], packet):
            result[-1].append(packet)
        else:
            result.append([packet])
    return result


def naive_joins(group: list[bytes], packet: bytes) -> bool:
    parsed = [naive_parse(one) for one in [*group, packet]]
    if any(one is None for one in parsed):
        return False
    first, *others = [one for one in parsed if one is not None]
    everything_else = [one["same"] for one in [first, *others]]
    if any(other != everything_else[0] for other in everything_else):
        return False
    payloads = [int(one["payload"]) for one in [first, *others]]
    if any(size != payloads[0] for size in payloads[:-1]) or payloads[-1] > payloads[0]:
        return False
    if any(one["push"] for one in [first, *others][:-1]):
        return False
    if int(first["headers"]) + sum(payloads) > 65535:
        return False
    number = len(group)
    if "id" in first:
        grown = [(one["id"] - first["id"]) % 65536 for one in others]
        if grown != list(range(1, number + 1)) and not (first["df"] and grown == [0] * number):
            return False
    if "sequence" in first:
        return bool((others[-1]["sequence"] - first["sequence"]) % 2**32 == number * payloads[0])
    return True


def naive_parse(packet: bytes) -> dict[str, Any] | None:
    """What matters of a packet that can be in a superpacket."""
    same: list[Any] = []
    found: dict[str, Any] = {"same": same}
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        first, tos, length, ident, fragment, ttl, protocol, _, addresses = struct.unpack(">BBHHHBBH8s", packet[:20])
        if first != 0x45 or length != len(packet) or fragment not in (0, 0x4000):
            return None
        same += [4, tos, fragment, ttl, protocol, addresses]
        found |= {"id": ident, "df": fragment != 0}
        rest = packet[20:]
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        first, length, protocol, ttl, addresses = struct.unpack(">IHBB32s", packet[:40])
        if length != len(packet) - 40:
            return None
        same += [first, protocol, ttl, addresses]
        rest = packet[40:]
    else:
        return None
    if protocol == 6 and len(rest) >= 20:
        ports, sequence, ack, offset, flags, window, _, urgent = struct.unpack(">4sIIBBHHH", rest[:20])
        if flags & ~PSH != ACK or offset & 15:
            return None
        header = (offset >> 4) * 4
        same += [ports, ack, offset, window, urgent, rest[20:header]]
        found |= {"sequence": sequence, "push": bool(flags & PSH)}
        if header < 20:
            return None
    elif protocol == 17 and len(rest) >= 8:
        ports, length, check = struct.unpack(">4sHH", rest[:8])
        if length != len(rest) or check == 0:
            return None
        header = 8
        same += [ports]
        found |= {"push": False}
    else:
        return None
    found |= {"payload": len(rest) - header, "headers": len(packet) - len(rest) + header}
    return found if len(rest) > header else None


@st.composite
def bursts(draw: st.DrawFn) -> list[bytes]:
    """Pieces of a few streams one after another, with packets lost, repeated, swapped and damaged."""
    packets: list[bytes] = []
    pieces = draw(st.lists(streams(plain=True), min_size=1, max_size=4))
    for stream in pieces:
        packets += stream.packets()
        if draw(st.booleans()):  # and it goes on
            more = stream.size * draw(st.integers(0, 4)) + draw(st.integers(1, stream.size))
            count = -(-len(stream.payload) // stream.size)
            packets += replace(
                stream,
                sequence=stream.sequence + len(stream.payload),
                ident=stream.ident + count,
                payload=bytes(more),
                flags=ACK,
            ).packets()
    for _ in range(draw(st.integers(0, 6))):
        where = draw(st.integers(0, len(packets) - 1))
        match draw(st.sampled_from(["lose", "repeat", "swap", "damage", "shorten"])):
            case "lose" if len(packets) > 1:
                del packets[where]
            case "repeat":
                packets.insert(where, packets[where])
            case "swap":
                packets[where - 1], packets[where] = packets[where], packets[where - 1]
            case "damage":
                packet = bytearray(packets[where])
                packet[draw(st.integers(0, min(len(packet) - 1, 70)))] ^= draw(st.integers(1, 255))
                packets[where] = bytes(packet)
            case "shorten":
                packets[where] = packets[where][: draw(st.integers(1, len(packets[where])))]
    return packets


def without_what_splitting_makes_anew(packet: bytes) -> bytes:
    """Checksums blanked, and the IPv4 id where DF makes it meaningless."""
    parsed = naive_parse(packet)
    if parsed is None:
        return packet
    is_v4 = "id" in parsed
    at = (20 if is_v4 else 40) + (16 if "sequence" in parsed else 6)
    packet = packet[:at] + bytes(2) + packet[at + 2 :]
    if is_v4:
        packet = packet[:10] + bytes(2) + packet[12:]
    if is_v4 and parsed["df"]:
        packet = packet[:4] + bytes(2) + packet[6:]
    return packet


@settings(max_examples=300)
@given(bursts())
def test_coalescing_groups_packets_as_the_rules_say_and_loses_and_reorders_nothing(packets: list[bytes]) -> None:
    writes = coalesced(packets)

    assert groups(writes) == [len(group) for group in naive_groups(packets)]
    written = [packet for write in writes for packet in packets_of(write)]
    assert list(map(without_what_splitting_makes_anew, written)) == list(map(without_what_splitting_makes_anew, packets))


@given(bursts(), st.booleans())
def test_lengths_may_come_as_a_list_or_as_an_array(packets: list[bytes], uso: bool) -> None:
    rows, views, lengths = burst_of(packets)
    as_list: list[Write] = []
    as_array: list[Write] = []

    Coalescer(uso=uso).coalesce(rows, views, lengths, as_list)
    Coalescer(uso=uso).coalesce(rows, views, np.array(lengths), as_array)

    assert as_list == as_array


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=90), max_size=6), st.sampled_from(["", "450000%02x00000000ff06", "60000000%04x06", "45%s11"]))
def test_junk_never_raises_and_is_written_in_order(junk: list[bytes], start: str) -> None:
    packets = [bytes.fromhex(start % len(one) if "%0" in start else "") + one for one in junk]

    written = [packet for write in coalesced(packets) for packet in packets_of(write)]

    assert list(map(without_what_splitting_makes_anew, written)) == list(map(without_what_splitting_makes_anew, packets))


def one(stream: Stream, sequence: int = 1, **changes: object) -> bytes:
    """One packet of 100 bytes of payload. The wireguard-go tests leave all ids zero: DF makes these equal ones coalesce."""
    (packet,) = replace(stream, payload=bytes(100), sequence=sequence, **changes).packets()  # type: ignore[arg-type]
    return packet


B = bytes([192, 0, 2, 2, *range(12)])
C = bytes([192, 0, 2, 3, *range(12)])

MANY_FLOWS = [
    one(TCP4, 1),
    one(UDP4),
    one(UDP4, destination=C),
    one(TCP4, 101),
    one(TCP4, 201, destination=C),
    one(TCP6, 1),
    one(TCP6, 101),
    one(TCP6, 201, destination=C),
    one(UDP4),
    one(UDP6),
    one(UDP6),
]


def test_handle_gro_of_wireguard_go_multiple_protocols_and_flows() -> None:
    """wireguard-go joins the two TCP and the two UDP packets across the others between them: we keep the order."""
    assert groups(coalesced(MANY_FLOWS)) == [1, 1, 1, 1, 1, 2, 1, 1, 2]


def test_handle_gro_of_wireguard_go_multiple_protocols_and_flows_no_udp_gro() -> None:
    assert groups(coalesced(MANY_FLOWS, uso=False)) == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1]


def test_handle_gro_of_wireguard_go_psh_interleaved() -> None:
    flags = [(1, ACK), (101, ACK | PSH), (201, ACK), (301, ACK)]
    packets = [one(stream, sequence, flags=flag, ident=sequence // 100) for stream in (TCP4, TCP6) for sequence, flag in flags]

    writes = coalesced(packets)

    assert groups(writes) == [2, 2, 2, 2]
    assert [len(write[0]) - 10 for write in writes] == [240, 240, 260, 260]
    assert [packets_of(writes[0]), packets_of(writes[2])] == [packets[:2], packets[4:6]]


def test_handle_gro_of_wireguard_go_coalesce_item_invalid_csum() -> None:
    """wireguard-go leaves a packet with a bad checksum alone. Ours are authenticated, so it is coalesced, and repaired."""

    def flipped(packet: bytes, at: int) -> bytes:
        return packet[:at] + bytes(byte ^ 0xFF for byte in packet[at : at + 2]) + packet[at + 2 :]

    good = [one(TCP6, 1), one(TCP6, 101), one(UDP6), one(UDP6)]
    bad = [flipped(good[0], 56), good[1], flipped(good[2], 46), good[3]]

    writes = coalesced(bad)

    assert groups(writes) == [2, 2]
    assert [packet for write in writes for packet in packets_of(write)] == good


def test_handle_gro_of_wireguard_go_out_of_order() -> None:
    """wireguard-go sorts these into one. We never reorder: the receiver's TCP sees what the wire brought."""
    assert groups(coalesced([one(TCP4, 101), one(TCP4, 1), one(TCP4, 201)])) == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "streams_of_name", "change"),
    [
        ("unequal TTL", (TCP4, UDP4), {"ttl": 65}),
        ("unequal ToS", (TCP4, UDP4), {"tos": 1}),
        ("unequal flags DF", (TCP4, UDP4), {"dont_fragment": False}),
        ("ipv6 unequal hop limit", (TCP6, UDP6), {"ttl": 65}),
        ("ipv6 unequal traffic class", (TCP6, UDP6), {"tos": 1}),
    ],
)
def test_handle_gro_of_wireguard_go(name: str, streams_of_name: tuple[Stream, Stream], change: dict[str, int]) -> None:
    tcp, udp = streams_of_name
    packets = [one(tcp, 1), one(tcp, 101, ident=2, **change), one(udp), one(udp, ident=2, **change)]

    assert groups(coalesced(packets)) == [1, 1, 1, 1]
    assert groups(coalesced([one(tcp, 1), one(tcp, 101, ident=2), one(udp), one(udp, ident=2)])) == [2, 2]


def test_handle_gro_of_wireguard_go_unequal_flags_mf() -> None:
    for stream in (TCP4, UDP4):
        packets = [one(stream, 1), one(stream, 101, ident=2)]
        fragment = packets[1][:6] + b"\x20" + packets[1][7:]
        assert groups(coalesced([packets[0], fragment])) == [1, 1]
        for flags_and_offset in (b"\x20\0", b"\0\1", b"\x40\1", b"\x80\0"):  # on both: MF, offsets, the reserved bit
            assert groups(coalesced([packet[:6] + flags_and_offset + packet[8:] for packet in packets])) == [1, 1]


def test_tcp_segments_with_flags_of_their_own_are_not_coalesced() -> None:
    """On both of a pair: splitting could give them back, but they tell the receiver something about this one segment."""
    for stream in (TCP4, TCP6):
        pair = [one(stream, 1), one(stream, 101, ident=2)]
        for flags in (0, ACK | 0x01, ACK | 0x02, ACK | 0x04, ACK | 0x20, ACK | 0x40, ACK | CWR):
            changed = [packet[: stream.l4 + 13] + bytes([flags]) + packet[stream.l4 + 14 :] for packet in pair]
            assert groups(coalesced(changed)) == [1, 1]
        for reserved in (1, 2, 4, 8):
            changed = [packet[: stream.l4 + 12] + bytes([0x50 | reserved]) + packet[stream.l4 + 13 :] for packet in pair]
            assert groups(coalesced(changed)) == [1, 1]


@pytest.mark.parametrize("stream", [TCP4, TCP6, UDP4, UDP6], ids=["tcp4", "tcp6", "udp4", "udp6"])
def test_packet_is_gro_candidate_of_wireguard_go(stream: Stream) -> None:
    """Two of a kind coalesce; not if the protocol is switched off, or a header is too short or of another kind."""
    pair = [one(stream, 1), one(stream, 101, ident=2)]

    def both(start: int, value: bytes) -> list[bytes]:
        return [packet[:start] + value + packet[start + len(value) :] for packet in pair]

    assert groups(coalesced(pair)) == [2]
    assert groups(coalesced(pair, tso=not stream.is_tcp, uso=stream.is_tcp)) == [1, 1]
    assert groups(coalesced([packet[: stream.header_length - 1] for packet in pair])) == [1, 1]  # too short
    assert groups(coalesced([b"\0", b"\0"])) == [1, 1]  # invalid IP version
    if stream.is_v4:
        assert groups(coalesced(both(0, b"\x46"))) == [1, 1]  # invalid IP header length
    assert groups(coalesced(both(9 if stream.is_v4 else 6, bytes([47])))) == [1, 1]  # invalid protocol: GRE


def test_udp_packets_can_coalesce_of_wireguard_go() -> None:
    """A smaller one ends the superpacket, whether another smaller one or a full one comes next; a larger never joins."""
    sizes = {"equal": [100, 100], "smaller": [100, 10], "smaller appended before": [110, 100, 100], "larger": [100, 110]}
    expected = {"equal": [2], "smaller": [2], "smaller appended before": [2, 1], "larger": [1, 1]}
    for stream in (UDP4, UDP6, TCP4, TCP6):
        for name, lengths in sizes.items():
            starts = [1 + sum(lengths[:i]) for i in range(len(lengths))]
            packets = [
                replace(stream, payload=bytes(length), size=length, ident=i, sequence=starts[i]).packets()[0]
                for i, length in enumerate(lengths)
            ]
            assert groups(coalesced(packets)) == expected[name], name


def test_checksum_of_wireguard_go() -> None:
    """TestChecksum and TestPseudoHeaderChecksum compare with a reference over lengths from 1 up; so does this."""
    for length in range(2, 130):
        data = random.Random(length).randbytes(length)
        packet = bytearray(data)

        complete_checksum(memoryview(packet), 0, 0)

        assert packet[:2] == struct.pack(">H", checksum(data))


def test_ids_that_stay_the_same_coalesce_only_with_df() -> None:
    """A virtio header cannot say that ids stay: without DF they would not be given back."""
    for dont_fragment, expected in ((True, [3]), (False, [1, 1, 1])):
        stream = replace(TCP4, dont_fragment=dont_fragment)
        assert groups(coalesced([one(stream, 1), one(stream, 101), one(stream, 201)])) == expected
    for idents, expected in (((1, 2, 3), [3]), ((1, 2, 2), [2, 1]), ((1, 1, 2), [2, 1]), ((1, 3, 4), [1, 2])):
        packets = [one(TCP4, 1 + 100 * i, ident=ident) for i, ident in enumerate(idents)]
        assert groups(coalesced(packets)) == expected


def test_udp_without_a_checksum_is_not_coalesced() -> None:
    for stream in (UDP4, UDP6):
        at = stream.l4 + 6
        packets = [one(stream, ident=i) for i in range(3)]
        bare = [packet[:at] + bytes(2) + packet[at + 2 :] for packet in packets]
        assert groups(coalesced(bare)) == [1, 1, 1]
        assert groups(coalesced([packets[0], bare[1], packets[2]])) == [1, 1, 1]


def test_no_superpacket_is_longer_than_65535_bytes() -> None:
    stream = replace(TCP4, payload=bytes(128 * 1000), size=1000)

    writes = coalesced(stream.packets())

    assert groups(writes) == [65, 63]
    assert [packet for write in writes for packet in packets_of(write)] == stream.packets()
    for size in (65535, 65534):  # to the byte
        two = replace(TCP6, payload=bytes(size - 60), size=40000).packets()
        assert groups(coalesced(two)) == [2]
    assert groups(coalesced(replace(TCP6, payload=bytes(65536 - 60), size=40000).packets())) == [1, 1]


def test_one_packet_needs_no_matrix() -> None:
    packet = memoryview(bytearray(one(TCP4) + b"more"))
    writes: list[Write] = []

    Coalescer().coalesce(np.empty((0, 0), np.uint8), [packet], [140], writes)

    assert writes == [(ZERO_HEADER, packet[:140])]


def test_writes_that_are_still_pending_are_not_overwritten() -> None:
    coalescer = Coalescer()
    streams_of_burst = [replace(TCP4, payload=bytes([i]) * 300) for i in range(4)]
    writes: list[Write] = []
    for stream in streams_of_burst:
        coalescer.coalesce(*burst_of(stream.packets()), writes)

    assert [packets_of(write) for write in writes] == [stream.packets() for stream in streams_of_burst]


def test_memory_is_used_again_once_writes_are_consumed() -> None:
    coalescer = Coalescer(capacity=10 + 340)
    writes: list[Write] = []
    for _ in range(3):
        coalescer.coalesce(*burst_of(TCP4.packets()), writes)
        assert groups(writes) == [3]
        writes.clear()
    coalescer.coalesce(*burst_of(TCP4.packets()), writes)
    coalescer.reset()
    coalescer.coalesce(*burst_of(TCP4.packets()), writes)
    assert groups(writes) == [3, 3]


def test_packets_for_which_there_is_no_memory_are_written_one_by_one() -> None:
    for capacity in range(0, 10 + 340):
        writes: list[Write] = []
        Coalescer(capacity=capacity).coalesce(*burst_of(TCP4.packets()), writes)
        assert groups(writes) == [1, 1, 1]


def test_a_superpacket_that_the_kernel_refuses_is_written_packet_by_packet_from_then_on() -> None:
    coalescer = Coalescer(uso=True)
    for stream, allowed in ((UDP4, (True, False)), (TCP4, (False, False))):
        burst = burst_of(stream.packets())
        writes: list[Write] = []
        coalescer.coalesce(*burst, writes)

        (write,) = writes
        instead = coalescer.refused(write)

        assert instead == [(ZERO_HEADER, packet) for packet in stream.packets()]
        assert (coalescer.tso, coalescer.uso) == allowed
        assert coalescer.refused(instead[0]) == []
        coalescer.coalesce(*burst, writes := [])
        assert groups(writes) == [1, 1, 1]


def test_packets_of_completes_a_half_done_checksum() -> None:
    stream = replace(UDP4, payload=bytes(50))
    header, packet = stream.superpacket()

    assert packets_of((header[:1] + b"\0" + header[2:], packet)) == stream.packets()


def test_the_model_agrees_with_itself() -> None:
    for stream in (TCP4, TCP6, UDP4, UDP6):
        for packet in stream.packets():
            l4 = packet[stream.l4 :]
            assert word_sum(stream.pseudo_header(len(l4)) + l4) == 0xFFFF
            assert not stream.is_v4 or word_sum(packet[:20]) == 0xFFFF
