"""From the TUN to the network. What the device seals is opened with the keys of whom it is for, and held against packets that
were made one by one."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise.constants import REJECT_AFTER_MESSAGES
from tests.sim import Host, Sim, Train, packet
from tests.tun.packets import ACK, CWR, FIN, PSH, Stream
from wgpy.config import Endpoint

HEADER = Struct("<IIQ")
VIRTIO = Struct("=BBHHHH")
PLAIN = bytes(VIRTIO.size)
OUTER_ECN = {0: 0, 1: 1, 2: 2, 3: 2}  # RFC 6040, compatibility of the kernel: congestion experienced is not copied out
LONGEST_TRAIN = 65507
MOST_SEGMENTS = 64


def padded(length: int, mtu: int) -> int:
    """Protocol 1.6: to a multiple of 16, and not at all where that would exceed the MTU."""
    up = -(-length // 16) * 16
    return up if up <= mtu else length


def opened(train: Train, receiver: Host) -> Iterator[tuple[int, bytes]]:
    """Counter and plaintext, padding included, of each datagram of a train, by the keys of its receiver."""
    for datagram in train:
        kind, index, counter = HEADER.unpack_from(datagram)
        assert kind == 4
        keypair = receiver.device.indices[index][1]
        assert keypair is not None
        plaintext = bytearray(len(datagram) - 32)
        keypair.decrypt_into(bytes(4) + counter.to_bytes(8, "little"), datagram[16:], None, plaintext)
        yield counter, bytes(plaintext)


def sealed_for(sender: Host, receiver: Host) -> list[bytes]:
    """The plaintexts of all trains that went to ``receiver``. The laws that every train keeps to are checked on the way."""
    plaintexts: list[bytes] = []
    counters: list[int] = []
    for train in sender.trains:
        if train.endpoint != receiver.endpoint:
            continue
        datagrams = list(train)
        assert 0 < len(datagrams) <= MOST_SEGMENTS
        assert len(datagrams) == 1 or len(train.datagrams) <= LONGEST_TRAIN
        assert all(len(datagram) == train.segment for datagram in datagrams[:-1])
        assert len(datagrams[-1]) <= train.segment
        for counter, plaintext in opened(train, receiver):
            counters.append(counter)
            plaintexts.append(plaintext)
            if plaintext:
                tos = plaintext[1] if plaintext[0] >> 4 == 4 else (plaintext[0] << 4 | plaintext[1] >> 4) & 0xFF
                assert train.ds == OUTER_ECN[tos & 3], "one train, one outer ECN: that of each packet in it"
    if counters:
        assert counters == list(range(counters[0], counters[0] + len(counters)))
    return plaintexts


def with_padding(packets: Iterable[bytes], mtu: int) -> list[bytes]:
    """Padding is zeros, and never what stood there before."""
    return [packet + bytes(padded(len(packet), mtu) - len(packet)) for packet in packets]


def stream(sender: Host, receiver: Host, **fields: object) -> Stream:
    """A flow from one host to another, over IPv4 unless ``is_v4`` says otherwise."""
    is_v4 = fields.get("is_v4", True)
    source, destination = (sender.address, receiver.address) if is_v4 else (sender.address6, receiver.address6)
    ends = {"source": ip_address(source).packed, "destination": ip_address(destination).packed, "dont_fragment": False}
    return Stream(**{**ends, **fields})  # type: ignore[arg-type]


def half_done(flow: Stream) -> tuple[bytes, bytes]:
    """Virtio header and packet of a flow of one packet, as the kernel leaves them to a card that completes checksums."""
    header, half = flow.superpacket()
    flags, _, length, _, start, offset = VIRTIO.unpack(header)
    return VIRTIO.pack(flags, 0, length, 0, start, offset), half


# -- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "length", "sealed"),
    [
        (1420, 28, 32),
        (1420, 32, 32),
        (1420, 33, 48),
        (1420, 1408, 1408),
        (1420, 1409, 1409),  # 1424 would be more than the MTU
        (1420, 1419, 1419),
        (1420, 1420, 1420),
        (1300, 1279, 1280),
        (1300, 1296, 1296),
        (1300, 1297, 1297),  # the packet of the kernel's netns.sh, stage 6: its datagram must not have 1360 bytes on the wire
        (1300, 1300, 1300),
        (1280, 1280, 1280),
        (1420, 1500, 1500),  # the MTU has just been lowered
    ],
)
def test_padding_ends_at_a_multiple_of_16_or_there_is_none(mtu: int, length: int, sealed: int) -> None:
    sim = Sim.connected(mtu=mtu)
    data = packet("10.0.0.1", "10.0.0.2", bytes(length - 28))

    sim["A"].send_packet(data)

    (plaintext,) = sealed_for(sim["A"], sim["B"])
    assert len(plaintext) == sealed
    assert plaintext == data + bytes(sealed - length)


def test_a_keepalive_carries_no_mark_though_what_went_before_it_did() -> None:
    sim = Sim.connected()
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2", tos=1))

    sim["A"].device.send_keepalive(sim["A"].peer_of(sim["B"]), sim.now)

    assert [(entry.kind, entry.ds) for entry in sim.sent("A")] == [("data", 1), ("keepalive", 0)]


def test_a_keepalive_is_empty() -> None:
    sim = Sim.connected()

    sim["A"].device.send_keepalive(sim["A"].peer_of(sim["B"]), sim.now)

    assert sealed_for(sim["A"], sim["B"]) == [b""]
    assert [len(train.datagrams) for train in sim["A"].trains] == [32]


# -- the shortest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("is_v4", [True, False])
def test_a_header_and_nothing_behind_it_is_a_packet_and_less_is_none(is_v4: bool, missing: int) -> None:
    sim = Sim.connected()
    header = stream(sim["A"], sim["B"], is_v4=is_v4, is_tcp=False).ip_header(0, 1)
    header = header[: len(header) - missing]

    sim["A"].send_packet(header)

    assert sealed_for(sim["A"], sim["B"]) == ([] if missing else with_padding([header], 1420))
    assert sim["A"].drops() == ({"not_ip": 1} if missing else {})


# -- whatever is read comes out -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """One read of the TUN: ``count`` packets of a flow to one peer, as a superpacket if they are many."""

    to: str
    is_v4: bool
    is_tcp: bool
    size: int
    count: int = 1
    last: int = 0
    half: bool = True
    tos: int = 0
    flags: int = ACK
    flush: bool = False


@st.composite
def reads(draw: st.DrawFn) -> Read:
    # few padded lengths, so that runs of one peer meet those of another with rows of the same length
    some = st.sampled_from([20, 20, 20, 24, 40, 52]) | st.integers(1, 120)
    size = draw(some | some | st.sampled_from([1168, 1352, 1360, 1368, 1372, 1380, 1392, 1500, 2000]))
    count = draw(st.sampled_from([1, 1, 1, 1, 2, 5, 30, 64, 65, 140]))
    count = min(count, 65000 // (size + 60))
    return Read(
        to=draw(st.sampled_from(["A", "A", "B", "C"])),
        is_v4=draw(st.booleans()),
        is_tcp=draw(st.booleans()),
        size=size,
        count=count,
        last=draw(st.just(size) | st.integers(1, size)),
        half=draw(st.booleans()),
        tos=draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 3, 0xB8, 0xBB])),
        flags=draw(st.sampled_from([ACK, ACK, ACK | PSH, ACK | FIN, ACK | CWR | PSH])),
        flush=draw(st.sampled_from([False, False, False, False, False, True])),
    )


class Kernel:
    """What stands before the TUN: makes packets of four flows for each peer, and remembers what should come out where."""

    def __init__(self, sender: Host, seed: int) -> None:
        self.sender = sender
        self.random = random.Random(seed)
        self.expected: dict[str, list[bytes]] = {}
        self._sequences: dict[tuple[str, bool, bool], tuple[int, int]] = {}

    def make(self, receiver: Host, read: Read) -> tuple[bytes, bytes]:
        """Virtio header and packet or superpacket of a read."""
        flow = (read.to, read.is_v4, read.is_tcp)
        ident, sequence = self._sequences.get(flow, (65500, (1 << 32) - 3000))  # soon to wrap
        length = (read.count - 1) * read.size + read.last
        self._sequences[flow] = (ident + read.count, sequence + length)
        made = stream(
            self.sender,
            receiver,
            is_v4=read.is_v4,
            is_tcp=read.is_tcp,
            payload=self.random.randbytes(length),
            size=read.size,
            tos=read.tos,
            ident=ident,
            sequence=sequence,
            flags=read.flags,
        )
        packets = made.packets()
        self.expected.setdefault(read.to, []).extend(packets)
        if len(packets) > 1:
            return made.superpacket()
        return half_done(made) if read.half else (PLAIN, packets[0])


def network(mtu: int, connected: str = "ABC") -> Sim:
    """S, and the peers A, B and C that it sends to, with some of whom it has sessions."""
    sim = Sim("S", "A", "B", "C", mtu=mtu, gro=True)
    for name in "ABC":
        sim["S"].peer(sim[name])
        sim[name].peer(sim["S"])
        sim[name].device.inbound.coalescer.uso = True
    for name in connected:
        sim.connect("S", name)
    return sim


@settings(max_examples=60, deadline=None)
@given(st.lists(reads(), max_size=25), st.sampled_from([1280, 1300, 1420, 1500, 8920]), st.integers(0, 1000))
def test_what_is_read_comes_out_at_whom_it_is_for_in_order_and_nothing_else(script: list[Read], mtu: int, seed: int) -> None:
    sim = network(mtu)
    sender = sim["S"]
    kernel = Kernel(sender, seed)

    for read in script:
        header, data = kernel.make(sim[read.to], read)
        sender.read(data, header)
        if read.flush:
            sender.device.outbound.flush(sim.now)
    sender.device.outbound.flush(sim.now)

    for name in "ABC":
        expected = kernel.expected.get(name, [])
        assert sealed_for(sender, sim[name]) == with_padding(expected, mtu)
    sim.advance(1)
    for name in "ABC":
        assert sim[name].delivered() == kernel.expected.get(name, [])
        assert sim[name].drops() == {}
    assert sender.drops() == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(reads(), min_size=1, max_size=12), st.sampled_from(["", "A", "B", "AC"]), st.integers(0, 1000))
def test_what_waits_for_a_session_comes_out_in_order_but_no_more_than_128(script: list[Read], connected: str, seed: int) -> None:
    """While the packets of others, who have one, do not wait."""
    sim = network(1420, connected)
    sender = sim["S"]
    kernel = Kernel(sender, seed)

    for read in script:
        header, data = kernel.make(sim[read.to], read)
        sender.read(data, header)
    sender.device.outbound.flush(sim.now)
    sim.advance(1)

    dropped = 0
    for name in "ABC":
        expected = kernel.expected.get(name, [])
        if name not in connected:
            dropped += len(expected[:-128])
            expected = expected[-128:]
        assert sim[name].delivered() == expected
    assert sender.drops() == ({"staged_full": dropped} if dropped else {})


def test_many_small_packets_of_one_length_leave_as_one_train() -> None:
    sim = Sim.connected()
    data = [packet("10.0.0.1", "10.0.0.2", b"%04d" % number) for number in range(64)]

    for one in data:
        sim["A"].read(one)
    sim["A"].device.outbound.flush(sim.now)

    assert [len(list(train)) for train in sim["A"].trains] == [64]
    assert sealed_for(sim["A"], sim["B"]) == data


def test_a_full_arena_is_sealed_by_itself() -> None:
    sim = Sim.connected()

    for number in range(65):
        sim["A"].read(packet("10.0.0.1", "10.0.0.2", b"%04d" % number))

    assert [len(list(train)) for train in sim["A"].trains] == [64]
    sim["A"].device.outbound.flush(sim.now)
    assert [len(list(train)) for train in sim["A"].trains] == [64, 1]


def test_a_shorter_packet_ends_its_train_and_a_longer_one_begins_another() -> None:
    sim = Sim.connected()

    for length in (100, 100, 20, 100, 200, 200):
        sim["A"].read(packet("10.0.0.1", "10.0.0.2", bytes(length)))
    sim["A"].device.outbound.flush(sim.now)

    assert [[len(datagram) - 32 for datagram in train] for train in sim["A"].trains] == [[128, 128, 48], [128], [240, 240]]


def test_a_superpacket_with_more_rows_than_one_call_carries_leaves_in_several() -> None:
    """45 datagrams of 1452 bytes are what 65,507 bytes hold."""
    sim = Sim.connected()
    flow = stream(sim["A"], sim["B"], payload=bytes(46 * 1380 + 7), size=1380)

    header, data = flow.superpacket()
    sim["A"].read(data, header)
    sim["A"].device.outbound.flush(sim.now)

    assert [len(list(train)) for train in sim["A"].trains] == [45, 2]
    assert sealed_for(sim["A"], sim["B"]) == with_padding(flow.packets(), 1420)


def test_superpackets_of_whole_rows_gather_in_one_run() -> None:
    sim = Sim.connected()
    flows = [stream(sim["A"], sim["B"], payload=bytes(20 * 100), size=100, ident=number * 20) for number in range(3)]

    for flow in flows:
        sim["A"].read(*reversed(flow.superpacket()))
    sim["A"].device.outbound.flush(sim.now)

    assert [len(list(train)) for train in sim["A"].trains] == [60]
    assert sealed_for(sim["A"], sim["B"]) == with_padding([data for flow in flows for data in flow.packets()], 1420)


@pytest.mark.parametrize("count", [1, 3])
def test_what_gathers_for_one_peer_is_not_joined_by_what_is_for_another(count: int) -> None:
    """Even if it is as long, and comes as a superpacket."""
    sim = network(1420)
    flows = [stream(sim["S"], sim[name], payload=bytes(count * 100), size=100) for name in "ABA"]

    for flow in flows:
        sim["S"].read(*(reversed(flow.superpacket()) if count > 1 else flow.packets()))
    sim["S"].device.outbound.flush(sim.now)

    assert sealed_for(sim["S"], sim["A"]) == with_padding([*flows[0].packets(), *flows[2].packets()], 1420)
    assert sealed_for(sim["S"], sim["B"]) == with_padding(flows[1].packets(), 1420)


def test_a_change_of_ecn_begins_another_train() -> None:
    sim = Sim.connected()

    for tos in (0, 0xB8, 1, 2, 3, 3, 0):  # a DSCP is no change; congestion experienced looks like ECT(0) outside
        sim["A"].read(packet("10.0.0.1", "10.0.0.2", tos=tos))
    sim["A"].device.outbound.flush(sim.now)

    assert [(train.ds, len(list(train))) for train in sim["A"].trains] == [(0, 2), (1, 1), (2, 3), (0, 1)]


# -- rows grow ------------------------------------------------------------------------------------------------------


def test_rows_grow_with_the_mtu() -> None:
    sim = Sim.connected()
    device = sim["A"].device
    before = packet("10.0.0.1", "10.0.0.2", b"gathered before")
    after = packet("10.0.0.1", "10.0.0.2", bytes(range(256)) * 30)
    sim["A"].read(before)

    device.mtu_changed(8920, sim.now)
    sim["A"].send_packet(after)

    assert sealed_for(sim["A"], sim["B"]) == with_padding([before, after], 8920)


@pytest.mark.parametrize("size", [1500, 4000, 65535])
def test_a_packet_wider_than_the_rows_passes_before_we_are_told_of_the_mtu(size: int) -> None:
    sim = Sim.connected()
    before = packet("10.0.0.1", "10.0.0.2", b"gathered before")
    wide = packet("10.0.0.1", "10.0.0.2", random.Random(1).randbytes(size - 28))

    sim["A"].read(before)
    sim["A"].read(wide)
    sim["A"].read(before)
    sim["A"].device.outbound.flush(sim.now)

    assert sealed_for(sim["A"], sim["B"]) == with_padding([before, wide, before], 1420)


def test_a_superpacket_of_packets_wider_than_the_rows_passes_too() -> None:
    sim = Sim.connected()
    before = packet("10.0.0.1", "10.0.0.2", b"gathered before")
    flow = stream(sim["A"], sim["B"], payload=random.Random(1).randbytes(60000), size=8868)
    header, data = flow.superpacket()

    sim["A"].read(before)
    sim["A"].read(data, header)
    sim["A"].device.outbound.flush(sim.now)

    assert sealed_for(sim["A"], sim["B"]) == with_padding([before, *flow.packets()], 1420)


def test_a_wide_packet_that_waited_passes() -> None:
    sim = Sim.pair()
    device = sim["A"].device
    wide = packet("10.0.0.1", "10.0.0.2", bytes(5000))
    device.stage(sim["A"].peer_of(sim["B"]), wide, sim.now)

    sim.advance(1)

    assert sim["B"].packets == [wide]


def test_a_wide_packet_that_waited_behind_another_passes() -> None:
    sim = Sim.pair()
    waiting = [packet("10.0.0.1", "10.0.0.2", bytes(length)) for length in (100, 5000, 200)]
    for one in waiting:
        sim["A"].device.stage(sim["A"].peer_of(sim["B"]), one, sim.now)

    sim.advance(1)

    assert sim["B"].packets == waiting


def test_what_waited_of_a_superpacket_leaves_as_its_packets() -> None:
    """No longer than they are: what a row held before is not sent along."""
    sim = Sim.pair()
    a, b = sim["A"], sim["B"]
    flow = stream(a, b, payload=random.Random(1).randbytes(3000), size=1200)

    a.send_packet(*reversed(flow.superpacket()))
    sim.advance(1)

    assert [entry.size - 32 for entry in sim.sent("A", "data")] == list(map(len, with_padding(flow.packets(), 1420)))
    assert b.delivered() == flow.packets()


def test_more_lengths_than_are_remembered_do_no_harm() -> None:
    sim = Sim.connected(mtu=3000)
    data = [packet("10.0.0.1", "10.0.0.2", bytes([length % 251]) * length) for length in range(4, 2900, 16)]

    for one in [*data, *reversed(data)]:
        sim["A"].read(one)
    sim["A"].device.outbound.flush(sim.now)

    assert sealed_for(sim["A"], sim["B"]) == with_padding([*data, *reversed(data)], 3000)


# -- what does not leave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (PLAIN, b"", "not_ip"),
        (PLAIN, b"\x45", "not_ip"),
        (PLAIN, packet("10.0.0.1", "10.0.0.2")[:19], "not_ip"),
        (PLAIN, b"\x60" + bytes(38), "not_ip"),
        (PLAIN, b"\x50" + bytes(60), "not_ip"),
        (PLAIN, packet("10.0.0.1", "10.0.0.9"), "no_peer"),
        (PLAIN, packet("10.0.0.1", "10.0.0.3"), "no_endpoint"),
        (VIRTIO.pack(1, 9, 40, 100, 20, 16), packet("10.0.0.1", "10.0.0.2", bytes(500)), "bad_offload"),
        (VIRTIO.pack(1, 1, 40, 0, 20, 16), packet("10.0.0.1", "10.0.0.2", bytes(500)), "bad_offload"),
        (VIRTIO.pack(1, 1, 40, 100, 20, 16), b"", "not_ip"),
    ],
)
def test_what_cannot_be_sent_is_dropped_alone_and_counted(header: bytes, data: bytes, reason: str) -> None:
    sim = Sim("A", "B", "C")
    sim["A"].peer(sim["B"])
    sim["B"].peer(sim["A"])
    sim["A"].peer(sim["C"], endpoint=False)
    sim.connect("A", "B")
    good = packet("10.0.0.1", "10.0.0.2")

    sim["A"].read(good)
    sim["A"].read(data, header)
    sim["A"].read(good)
    sim["A"].device.outbound.flush(sim.now)

    assert sim["A"].drops() == {reason: 1}
    assert sim["A"].refused == ([data] if reason in ("no_peer", "no_endpoint") else [])
    assert sealed_for(sim["A"], sim["B"]) == [good, good]


def test_a_superpacket_that_nobody_takes_is_told_of_once_and_whole() -> None:
    sim = Sim("A", "B")
    flow = stream(sim["A"], sim["B"], payload=random.Random(1).randbytes(46 * 1380), size=1380)
    header, data = flow.superpacket()

    sim["A"].read(data, header)

    assert sim["A"].refused == [data]
    assert sim["A"].drops() == {"no_peer": 1}


def test_a_lone_packet_that_nobody_takes_is_told_of_too() -> None:
    sim = Sim("A", "B")
    data, device = packet("10.0.0.1", "10.0.0.2"), sim["A"].device
    for buffer, part in zip(device.outbound.buffers, (PLAIN, data), strict=False):
        buffer[: len(part)] = part

    device.outbound.lone_packet_read(len(PLAIN) + len(data), sim.now)

    assert sim["A"].refused == [data]


def test_who_has_to_wait_for_a_session_is_not_told_that_there_is_none() -> None:
    sim = Sim.pair()
    sim.cut()

    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim.advance(120)

    assert sim["A"].refused == []
    assert sim["A"].drops() == {"no_session": 1}


@pytest.mark.parametrize("count", [2, 8])
def test_a_checksum_that_is_nowhere_spoils_no_other_packet(count: int) -> None:
    """One virtio header makes no sense: the rest of the run has nothing to do with it."""
    sim = Sim.connected()
    flows = [stream(sim["A"], sim["B"], is_tcp=False, payload=bytes([number]) * 40) for number in range(count)]

    sim["A"].read(flows[0].packets()[0], VIRTIO.pack(1, 0, 28, 0, 20, 900))
    for flow in flows:
        header, data = half_done(flow)
        sim["A"].read(data, header)
    sim["A"].device.outbound.flush(sim.now)

    assert sealed_for(sim["A"], sim["B"]) == with_padding([flow.packets()[0] for flow in flows], 1420)
    assert sim["A"].drops() == {"bad_offload": 1}


@pytest.mark.parametrize(
    ("start", "offset", "is_inside"),
    [(20, 6, True), (300, 16, True), (20, 300, True), (398, 0, True), (20, 378, True), (20, 379, False)],
)
def test_a_checksum_goes_where_the_header_says_up_to_the_last_two_bytes(start: int, offset: int, is_inside: bool) -> None:
    sim = Sim.connected()
    half = packet("10.0.0.1", "10.0.0.2", random.Random(1).randbytes(400 - 28))
    whole = bytearray(half)
    if is_inside:
        words = sum(int.from_bytes(half[at : at + 2]) for at in range(start, 400, 2))
        whole[start + offset : start + offset + 2] = (-words % 0xFFFF).to_bytes(2)

    sim["A"].send_packet(half, VIRTIO.pack(1, 0, 28, 0, start, offset))

    assert sealed_for(sim["A"], sim["B"]) == ([bytes(whole)] if is_inside else [])
    assert sim["A"].drops() == ({} if is_inside else {"bad_offload": 1})


def test_what_a_header_says_of_checksums_counts_only_if_one_is_wanted() -> None:
    sim = Sim.connected()
    data = packet("10.0.0.1", "10.0.0.2")

    sim["A"].send_packet(data, VIRTIO.pack(0, 0, 0, 0, 20, 900))

    assert sealed_for(sim["A"], sim["B"]) == [data]


@pytest.mark.parametrize(
    "others",
    [
        {"is_tcp": False, "payload": bytes(52)},
        {"is_v4": False, "payload": bytes(20)},
        {"is_v4": False, "is_tcp": False, "payload": bytes(32)},
    ],
    ids=["UDP", "IPv6", "UDP and IPv6"],
)
def test_half_done_packets_of_one_length_may_have_their_checksums_in_different_places(others: dict[str, object]) -> None:
    sim = Sim.connected()
    flows = [
        stream(sim["A"], sim["B"], **{"payload": bytes(40), "ident": 7, **(others if number % 2 else {})}) for number in range(8)
    ]

    for flow in flows:
        header, data = half_done(flow)
        sim["A"].read(data, header)
    sim["A"].device.outbound.flush(sim.now)

    assert len(sim["A"].trains) == 1
    assert sealed_for(sim["A"], sim["B"]) == with_padding([flow.packets()[0] for flow in flows], 1420)


@pytest.mark.parametrize("is_v4", [True, False])
def test_a_header_alone_is_a_packet(is_v4: bool) -> None:
    sim = Sim.connected()
    header = stream(sim["A"], sim["B"], is_v4=is_v4).packets()[0][: 20 if is_v4 else 40]

    sim["A"].send_packet(header)

    assert sealed_for(sim["A"], sim["B"]) == with_padding([header], 1420)


def test_when_nobody_takes_a_packet_is_told_with_the_packet() -> None:
    """Nobody has its address, or whoever has it has no endpoint."""
    sim = Sim("A", "B", "C")
    sim["A"].peer(sim["C"], endpoint=False)
    told: list[float] = []
    sim["A"].device._unreachable = lambda packet, now: told.append(now)

    for host in (sim["B"], sim["C"]):
        sim["A"].read(packet("10.0.0.1", host.address))
        sim.advance(1)
        sim["A"].read(*reversed(stream(sim["A"], host, payload=bytes(3000), size=1000).superpacket()))
        sim.advance(1)

    assert told == [1000.0, 1001.0, 1002.0, 1003.0]


def test_a_half_done_packet_that_makes_no_sense_is_not_kept_for_a_session() -> None:
    sim = Sim.pair()

    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"), VIRTIO.pack(1, 0, 28, 0, 20, 900))
    sim.advance(1)

    assert sim["A"].drops() == {"bad_offload": 1}
    assert sim["B"].packets == []


def test_nothing_waits_while_the_interface_is_down() -> None:
    sim = Sim.pair()
    sim["A"].device.down()
    flow = stream(sim["A"], sim["B"], payload=bytes(300))

    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim["A"].send_packet(*reversed(flow.superpacket()))

    assert sim["A"].drops() == {"interface_down": 4}
    assert sim["A"].peer_of(sim["B"]).staged == type(sim["A"].peer_of(sim["B"]).staged)()
    assert sim.log == []


def test_what_the_socket_does_not_take_is_lost_and_counted() -> None:
    sim = Sim.connected()
    sim["A"].takes_sends = False
    before = sim["A"].peer_of(sim["B"]).tx_bytes

    for _ in range(3):
        sim["A"].read(packet("10.0.0.1", "10.0.0.2"))
    sim["A"].device.outbound.flush(sim.now)

    assert sim["A"].drops() == {"send_failed": 3}
    assert sim["A"].peer_of(sim["B"]).tx_bytes == before


def test_a_keypair_out_of_counters_seals_no_more_and_a_handshake_begins() -> None:
    sim = Sim.connected()
    keypair = sim["A"].peer_of(sim["B"]).keypairs.current
    assert keypair is not None
    keypair.send_counter = REJECT_AFTER_MESSAGES - 2
    sim.advance(10)

    for number in range(4):
        sim["A"].read(packet("10.0.0.1", "10.0.0.2", b"%d" % number))
    sim["A"].device.outbound.flush(sim.now)
    assert sim["A"].drops() == {"no_session": 4}, "the run does not fit any more"
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2", b"next"))
    sim.advance(1)

    assert [packet[28:] for packet in sim["B"].packets] == [b"next"]
    assert keypair.send_counter == REJECT_AFTER_MESSAGES


def test_a_message_count_of_2_to_the_60_rekeys() -> None:
    sim = Sim.connected()
    sim.advance(10)
    sim.log.clear()
    for name in "AB":
        keypair = sim[name].peer_of(sim["B" if name == "A" else "A"]).keypairs.current
        assert keypair is not None
        keypair.send_counter = 2**60

    sim["B"].send_packet(packet("10.0.0.2", "10.0.0.1"))

    assert [(entry.sender, entry.kind) for entry in sim.log] == [("B", "data"), ("B", "initiation")]


# -- loops ----------------------------------------------------------------------------------------------------------


def outer(sim: Sim, datagram: bytes, is_v4: bool) -> bytes:
    """The packet in which a datagram to B leaves A, should its way lead back into the interface."""
    to = ip_address(sim["B"].endpoint.host).packed
    return stream(sim["A"], sim["B"], is_v4=is_v4, is_tcp=False, destination=to).packet(datagram, 0, 0)


def looping(is_v4: bool) -> Sim:
    """A and B with a session; what is for B's endpoint is routed to B, through the tunnel."""
    sim = Sim("A", "B")
    sim["B"].endpoint = Endpoint("198.51.100.1" if is_v4 else "2001:db8::1", 51820)
    sim["A"].peer(sim["B"], allowed_ips=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    sim["B"].peer(sim["A"])
    sim.connect("A", "B")
    return sim


@pytest.mark.parametrize("is_v4", [True, False])
def test_what_is_for_the_host_of_an_endpoint_waits_for_the_session_too(is_v4: bool) -> None:
    sim = looping(is_v4)
    sim["A"].device.down()
    sim["A"].device.up(sim.now)

    sim["A"].send_packet(outer(sim, b"to that host", is_v4))
    sim.advance(1)

    assert sim["A"].drops() == {}
    assert len(sim["B"].delivered()) == 1


@pytest.mark.parametrize("is_v4", [True, False])
def test_our_own_datagram_is_not_sealed_again(is_v4: bool) -> None:
    sim = looping(is_v4)
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    datagram = sim.log[-1].datagram

    sim["A"].send_packet(outer(sim, datagram, is_v4))

    assert sim["A"].drops() == {"loop": 1}
    assert len(sim.sent("A")) == 1


@pytest.mark.parametrize("is_v4", [True, False])
def test_a_train_of_our_own_is_not_sealed_again(is_v4: bool) -> None:
    """It comes back as one superpacket, for that is how it left."""
    sim = looping(is_v4)
    for _ in range(10):
        sim["A"].read(packet("10.0.0.1", "10.0.0.2"))
    sim["A"].device.outbound.flush(sim.now)
    train = sim["A"].trains[-1]
    to = ip_address(sim["B"].endpoint.host).packed
    flow = stream(sim["A"], sim["B"], is_v4=is_v4, is_tcp=False, destination=to, payload=train.datagrams, size=train.segment)

    sim["A"].send_packet(*reversed(flow.superpacket()))

    assert sim["A"].drops() == {"loop": 1}


@pytest.mark.parametrize("is_v4", [True, False])
def test_whoever_else_speaks_to_the_address_of_an_endpoint_through_the_tunnel_may(is_v4: bool) -> None:
    sim = looping(is_v4)
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    looped = outer(sim, sim.log[-1].datagram, is_v4)
    sim["A"].send_packet(looped)
    others = [outer(sim, payload, is_v4) for payload in (b"", b"\4\0\0\0", b"\4\0\0\0\1\2\3\4 and so on", bytes(300))]
    sim["A"].trains.clear()

    for other in others:  # each stands where the datagram that went round stood
        sim["A"].send_packet(other)

    assert sealed_for(sim["A"], sim["B"]) == with_padding(others, 1420)
    assert sim["A"].drops() == {"loop": 1}


# -- routing --------------------------------------------------------------------------------------------------------


def test_the_longest_prefix_of_the_destination_decides() -> None:
    sim = Sim("S", "A", "B")
    sim["S"].peer(sim["A"], allowed_ips=(ip_network("10.1.0.0/16"), ip_network("::/0")))
    sim["S"].peer(sim["B"], allowed_ips=(ip_network("10.1.2.0/24"), ip_network("fd00:1::/32")))
    for name in "AB":
        sim[name].peer(sim["S"])
        sim["S"].device.send_keepalive(sim["S"].peer_of(sim[name]), sim.now)
    sim.advance(1)
    sim["S"].trains.clear()
    v6 = replace(stream(sim["S"], sim["A"], is_v4=False), payload=b"x")
    for_a = [packet("10.0.0.1", "10.1.3.1"), replace(v6, destination=ip_address("fd00:2::1").packed).packets()[0]]
    for_b = [packet("10.0.0.1", "10.1.2.1"), replace(v6, destination=ip_address("fd00:1::1").packed).packets()[0]]

    for one in (for_a[0], for_b[0], for_a[1], for_b[1]):
        sim["S"].read(one)
    sim["S"].device.outbound.flush(sim.now)

    assert sealed_for(sim["S"], sim["A"]) == with_padding(for_a, 1420)
    assert sealed_for(sim["S"], sim["B"]) == with_padding(for_b, 1420)
