"""What the shortcuts of the data path must not cost.

Inbound, the rows of a train are authenticated, numbered, measured and routed together, and held over several receives until a
superpacket is whole: here one row is wrong, anywhere in it, in every way, and must be missed alone. Outbound, superpackets share
trains and a lone packet goes in a straight line: here the trains are held against the fewest there can be, and the straight line
against the long way.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise.constants import REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES
from noise.replay import ReplayWindow
from tests.noise.test_replay import SetOfSeen, runs, starts, walk
from tests.sim import Host, Sim, packet
from tests.tun.packets import ACK, PSH, Stream
from tests.wgpy.core.test_inbound import keypair_to, seal
from tests.wgpy.core.test_outbound import (
    PLAIN,
    VIRTIO,
    Kernel,
    Read,
    half_done,
    looping,
    network,
    outer,
    padded,
    sealed_for,
    stream,
    with_padding,
)
from tun.offload import GSO_TCPV4, packets_of
from wgpy.config import Endpoint

ELSEWHERE = Endpoint("203.0.113.9", 9999)
MTU = 1420
TRAIN = 45
"""Rows that one receive brings of packets as long as the MTU: their datagrams have 1452 bytes."""
LONGEST = 65535
"""Bytes of the longest superpacket."""

FAULTS = {
    "forged tag": "bad_tag",
    "forged counter": "bad_tag",
    "sealed for another session": "bad_tag",
    "replayed": "replayed",
    "repeated": "replayed",
    "foreign source": "not_allowed_source",
    "declares more than the row": "malformed_packet",
    "declares less than a header": "malformed_packet",
    "no IP version": "malformed_packet",
    "the other IP version": "not_allowed_source",
    "unknown index": "unknown_index",
    "unknown type": "unknown_message",
}
"""A wrong row, and why it is dropped."""

ON_THE_WIRE = {"forged tag", "forged counter", "sealed for another session", "unknown index", "unknown type"}
"""What was never authenticated: a second time it is wrong for the same reason."""

both_versions = pytest.mark.parametrize("is_v4", [True, False], ids=["IPv4", "IPv6"])
both_protocols = pytest.mark.parametrize("is_tcp", [True, False], ids=["TCP", "UDP"])


def three() -> Sim:
    """A and C, who have sessions with B. B's kernel takes superpackets of both kinds."""
    sim = Sim("A", "B", "C")
    for name in "AC":
        sim[name].peer(sim["B"])
        sim["B"].peer(sim[name])
        sim.connect(name, "B")
    sim["B"].device.inbound.coalescer.uso = True
    return sim


@lru_cache(maxsize=64)
def packets_of_a_flow(
    is_v4: bool, is_tcp: bool, count: int, length: int = MTU, sender: int = 1, before: int = 0
) -> tuple[bytes, ...]:
    """``count`` packets of ``length`` bytes from host ``sender``, of which ``before`` came earlier."""
    headers = (20 if is_v4 else 40) + (20 if is_tcp else 8)
    size = length - headers
    flow = Stream(
        is_v4=is_v4,
        is_tcp=is_tcp,
        payload=bytes(range(256)) * (count * size // 256) + bytes(range(count * size % 256)),
        size=size,
        ident=1 + before,
        sequence=1 + before * size,
        dont_fragment=False,
        source=ip_address(f"10.0.0.{sender}" if is_v4 else f"fd00::{sender}").packed,
        destination=ip_address("10.9.9.9" if is_v4 else "fd99::9").packed,
    )
    return tuple(flow.packets())


def misshapen(fault: str, packet: bytes) -> bytes:
    """The packet with a fault inside: what a peer may seal, but B must not deliver."""
    data, is_v4 = bytearray(packet), packet[0] >> 4 == 4
    match fault:
        case "foreign source":
            data[15 if is_v4 else 23] = 77
        case "declares more than the row":
            at, length = (2, len(data) + 1) if is_v4 else (4, len(data) - 39)
            data[at : at + 2] = length.to_bytes(2)
        case "declares less than a header":  # with IPv6, plus the header of 40 bytes, in 16 bits
            at, length = (2, 19) if is_v4 else (4, 65535)
            data[at : at + 2] = length.to_bytes(2)
        case "no IP version":
            data[0] = 0x50 | data[0] & 15
        case "the other IP version":
            data[0] ^= 0x20
            at, length = (4, 0) if is_v4 else (2, 40)
            data[at : at + 2] = length.to_bytes(2)  # a possible one, in the header that it claims to have
    return bytes(data)


def misled(fault: str, datagram: bytes, sim: Sim) -> bytes:
    """The datagram with a fault outside: what anybody may send."""
    data = bytearray(datagram)
    match fault:
        case "forged tag":
            data[-1] ^= 1
        case "forged counter":
            data[8:16] = (1 << 40).to_bytes(8, "little")
        case "sealed for another session":
            data[4:8] = pack("<I", keypair_to(sim["C"], sim["B"]).remote_index)
        case "unknown index":
            data[4:8] = pack("<I", next(index for index in range(1 << 32) if index not in sim["B"].device.indices))
        case "unknown type":
            data[0] = 5
    return bytes(data)


def with_fault(
    sim: Sim, fault: str, position: int, packets: Sequence[bytes], sender: str = "A"
) -> tuple[list[bytes], list[bytes]]:
    """Datagrams of ``packets`` for B of which the one at ``position`` is wrong, and the packets that must be delivered."""
    keypair = keypair_to(sim[sender], sim["B"])
    good = [*packets[:position], *packets[position + 1 :]]
    if fault == "replayed":
        seen = seal(keypair, packets[position])
        assert keypair_to(sim["B"], sim[sender]).replay_window.accept(keypair.send_counter - 1), "it came before"
    datagrams = [seal(keypair, misshapen(fault, data) if row == position else data) for row, data in enumerate(packets)]
    if fault == "replayed":
        datagrams[position] = seen
    elif fault == "repeated":
        datagrams[position] = datagrams[position - 1 if position else 1]
    else:
        datagrams[position] = misled(fault, datagrams[position], sim)
    return datagrams, good


def arrive(host: Host, datagrams: bytes, segment: int, endpoint: Endpoint) -> None:
    """One receive. What it brought may be held until the next, or until ``inbound.flush``."""
    inbound = host.device.inbound
    inbound.buffer[: len(datagrams)] = datagrams
    inbound.datagrams_received(len(datagrams), segment, endpoint, b"", 0, host.sim.now)


# -- one train ------------------------------------------------------------------------------------------------------


@both_versions
@both_protocols
@pytest.mark.parametrize("position", [0, 22, 44], ids=["first", "middle", "last"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_row_of_a_full_train_is_missed_alone(fault: str, position: int, is_tcp: bool, is_v4: bool) -> None:
    """And what is left is as few superpackets as it can be: the shortcut is still taken."""
    sim = three()
    b = sim["B"]
    datagrams, good = with_fault(sim, fault, position, packets_of_a_flow(is_v4, is_tcp, TRAIN))
    reason = FAULTS[fault]

    b.receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    is_inside = 0 < position < 44 or (fault, position) == ("repeated", 0)  # there the copy counts, and the row behind it does not
    assert len(b.writes) <= 1 + is_inside
    assert b.delivered() == good
    assert b.drops() == {reason: 1}

    b.receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    again = Counter([reason, reason if fault in ON_THE_WIRE else "replayed", *["replayed"] * 44])
    assert b.delivered() == [], "every row that was taken is remembered as seen"
    assert b.drops() == again


@both_versions
@both_protocols
@pytest.mark.parametrize("position", [0, 22, 43])
def test_rows_out_of_order_are_all_delivered_as_they_came(position: int, is_tcp: bool, is_v4: bool) -> None:
    sim = three()
    b = sim["B"]
    packets = list(packets_of_a_flow(is_v4, is_tcp, TRAIN))
    datagrams = [seal(keypair_to(sim["A"], b), data) for data in packets]
    for rows in (packets, datagrams):
        rows[position : position + 2] = reversed(rows[position : position + 2])

    b.receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    assert b.delivered() == packets
    assert b.drops() == {}
    b.receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)
    assert b.drops() == {"replayed": TRAIN}


@both_versions
@both_protocols
@pytest.mark.parametrize("left", [1, 4, 16, 31, 32, 33, 48, 1451])
def test_a_last_datagram_that_was_cut_off_is_missed_alone(left: int, is_tcp: bool, is_v4: bool) -> None:
    sim = three()
    b = sim["B"]
    packets = packets_of_a_flow(is_v4, is_tcp, TRAIN)
    datagrams = [seal(keypair_to(sim["A"], b), data) for data in packets]

    b.receive(b"".join(datagrams[:-1]) + datagrams[-1][:left], len(datagrams[0]), sim["A"].endpoint)

    assert b.delivered() == list(packets[:-1])
    assert b.drops() == {"unknown_message" if left < 32 else "bad_tag": 1}
    b.receive(datagrams[-1], 0, sim["A"].endpoint)
    assert b.delivered() == [packets[-1]], "its counter was not taken"


@both_versions
@both_protocols
def test_a_row_that_is_shorter_inside_than_outside_is_cut_and_the_others_are_not(is_tcp: bool, is_v4: bool) -> None:
    """More padding than the paper asks for is allowed. Lengths differ, and still nothing needs to be judged by itself."""
    sim = three()
    b = sim["B"]
    packets = list(packets_of_a_flow(is_v4, is_tcp, TRAIN))
    packets[22] = packets_of_a_flow(is_v4, is_tcp, 1, 700)[0]
    datagrams = [seal(keypair_to(sim["A"], b), data + bytes(MTU - len(data))) for data in packets]

    b.receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    assert b.delivered() == packets
    assert b.drops() == {}


# -- a datagram alone -----------------------------------------------------------------------------------------------


@both_versions
@both_protocols
@pytest.mark.parametrize("is_held", [False, True], ids=["at rest", "behind a train that is held"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_datagram_between_lone_ones_is_missed_alone(fault: str, is_held: bool, is_tcp: bool, is_v4: bool) -> None:
    sim = three()
    b = sim["B"]
    train = packets_of_a_flow(is_v4, is_tcp, 20)
    datagrams, good = with_fault(sim, fault, 1, packets_of_a_flow(is_v4, is_tcp, 4, before=20))
    if is_held:
        rows = [seal(keypair_to(sim["A"], b), data) for data in train]
        arrive(b, b"".join(rows), len(rows[0]), sim["A"].endpoint)
        assert b.writes == []

    for datagram in datagrams:
        arrive(b, datagram, 0, sim["A"].endpoint)
    assert len(b.writes) == (0 if is_held else 3), "a datagram that comes alone is not kept waiting"
    b.device.inbound.flush()

    assert b.delivered() == [*(train if is_held else ()), *good]
    assert b.drops() == {FAULTS[fault]: 1}


# -- trains that are held -------------------------------------------------------------------------------------------


@both_versions
@both_protocols
@pytest.mark.parametrize("position", [0, 44, 45, 89, 90, 134])
@pytest.mark.parametrize("fault", ["forged tag", "replayed", "foreign source", "declares more than the row"])
def test_a_wrong_row_where_trains_meet_is_missed_alone(fault: str, position: int, is_tcp: bool, is_v4: bool) -> None:
    """Three trains are more rows than the arena has: the superpacket that grows over its end is one write nevertheless."""
    sim = three()
    b = sim["B"]
    packets = packets_of_a_flow(is_v4, is_tcp, 3 * TRAIN)
    datagrams, good = with_fault(sim, fault, position, packets)

    for first in (0, TRAIN, 2 * TRAIN):
        arrive(b, b"".join(datagrams[first : first + TRAIN]), len(datagrams[0]), sim["A"].endpoint)
    b.device.inbound.flush()

    headers = (20 if is_v4 else 40) + (20 if is_tcp else 8)
    longest = (LONGEST - headers) // (MTU - headers)
    whole = [divmod(rows, longest) for rows in (position, 3 * TRAIN - 1 - position)]
    expected = [size for many, rest in whole for size in [longest] * many + [rest] * (rest > 0)]
    assert [len(packets_of((write,))) for write in b.writes] == expected
    assert b.delivered() == good
    assert b.drops() == {FAULTS[fault]: 1}


@pytest.mark.parametrize("counts", [(127, 1), (127, 2), (128, 1), (128, 128), (60, 60, 60), (20, 200), (200, 20), (1, 127, 1)])
@both_protocols
def test_an_arena_that_is_full_loses_and_reorders_nothing(counts: tuple[int, ...], is_tcp: bool) -> None:
    """128 rows, and more where one receive brings more. All of it may still grow: 65,535 bytes are far."""
    sim = three()
    b = sim["B"]
    packets = packets_of_a_flow(True, is_tcp, sum(counts), 64)
    datagrams = [seal(keypair_to(sim["A"], b), data) for data in packets]

    for count in counts:
        arrive(b, b"".join(datagrams[:count]), len(datagrams[0]) if count > 1 else 0, sim["A"].endpoint)
        del datagrams[:count]
    b.device.inbound.flush()

    assert b.delivered() == list(packets)
    assert b.drops() == {}


@both_versions
def test_trains_of_two_peers_in_turn_are_each_judged_by_their_own(is_v4: bool) -> None:
    """C's rows are as long as A's and stand behind them in the arena; one in each train has the other's source."""
    sim = three()
    b = sim["B"]
    expected: list[bytes] = []
    for turn in range(4):
        name, other, number = ("A", "C", 1) if turn % 2 == 0 else ("C", "A", 3)
        packets = list(packets_of_a_flow(is_v4, True, 20, 512, number, 20 * turn))
        good = [*packets[:turn], *packets[turn + 1 :]]
        packets[turn] = packets_of_a_flow(is_v4, True, 20, 512, 4 - number, 20 * turn)[turn]
        rows = [seal(keypair_to(sim[name], b), data) for data in packets]
        assert keypair_to(sim[other], b).remote_index not in {int.from_bytes(row[4:8], "little") for row in rows}
        arrive(b, b"".join(rows), len(rows[0]), sim[name].endpoint)
        expected += good
    b.device.inbound.flush()

    assert b.delivered() == expected
    assert b.drops() == {"not_allowed_source": 4}


@dataclass(frozen=True)
class Arrival:
    """One receive: ``rows`` packets of a flow of A or C, one of them wrong if there is a ``fault``."""

    sender: str
    is_v4: bool
    is_tcp: bool
    length: int
    rows: int
    fault: str | None
    position: int
    flush: bool


arrivals = st.builds(
    Arrival,
    sender=st.sampled_from("AAC"),
    is_v4=st.booleans(),
    is_tcp=st.sampled_from([True, True, False]),
    length=st.sampled_from([64, 64, 64, 80, 101]),
    rows=st.sampled_from([1, 1, 2, 3, 30, 44, 63, 64, 126, 127, 128, 140]),
    fault=st.none() | st.sampled_from(sorted(FAULTS)),
    position=st.sampled_from([0, 1, -1]) | st.integers(0, 200),
    flush=st.sampled_from([False, False, False, False, True]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(arrivals, min_size=1, max_size=8))
def test_whatever_is_held_is_delivered_in_order_but_for_what_is_wrong(script: list[Arrival]) -> None:
    sim = three()
    b = sim["B"]
    came: Counter[tuple[str, bool, bool, int]] = Counter()
    expected: list[bytes] = []
    dropped: Counter[str] = Counter()

    for one in script:
        key = (one.sender, one.is_v4, one.is_tcp, one.length)
        packets = packets_of_a_flow(*key[1:3], one.rows, one.length, {"A": 1, "C": 3}[one.sender], came[key])
        came[key] += one.rows
        fault = one.fault
        if (fault == "sealed for another session" and one.sender == "C") or (fault == "repeated" and one.rows == 1):
            fault = None
        if fault is None:
            rows, good = [seal(keypair_to(sim[one.sender], b), data) for data in packets], list(packets)
        else:
            rows, good = with_fault(sim, fault, one.position % one.rows, packets, one.sender)
            dropped[FAULTS[fault]] += 1
        arrive(b, b"".join(rows), one.length + 32 if one.rows > 1 else 0, sim[one.sender].endpoint)
        expected += good
        if one.flush:
            b.device.inbound.flush()
            assert b.delivered() == expected
            expected = []
    b.device.inbound.flush()

    assert b.delivered() == expected
    assert b.drops() == dropped


# -- the replay window ----------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(starts, st.lists(st.tuples(st.booleans(), runs), max_size=8))
def test_lone_messages_and_runs_are_judged_by_one_window(start: int, moves: list[tuple[bool, list[int]]]) -> None:
    """Each has shortcuts of its own, and leaves the window in a state that the other relies on."""
    window, model = ReplayWindow(), SetOfSeen()
    position = start

    for is_run, run in moves:
        counters = walk(position, run)[1:]
        position = counters[-1] if counters else position
        expected = [row for row, counter in enumerate(counters) if not model.accept(counter)]
        if is_run:
            assert window.accept_run(counters) == expected
        else:
            assert [row for row, counter in enumerate(counters) if not window.accept(counter)] == expected
        assert window.greatest == model.greatest


def test_the_last_counter_is_the_last_on_the_shortest_way_too() -> None:
    """A window without a gap, and the counter that comes next."""
    window = ReplayWindow()
    window.accept_run(list(range(REJECT_AFTER_MESSAGES - 8130, REJECT_AFTER_MESSAGES)))
    assert (window.greatest, window.missing) == (REJECT_AFTER_MESSAGES - 1, 0)

    assert not window.accept(REJECT_AFTER_MESSAGES)
    assert not window.accept(REJECT_AFTER_MESSAGES + 1)


# -- packets that go alone ------------------------------------------------------------------------------------------


def fill(host: Host, data: bytes, header: bytes) -> int:
    """What readv does: bytes into the buffers that the device names."""
    whole, start = header + data, 0
    for buffer in host.device.outbound.buffers:
        part = whole[start : start + len(buffer)]
        buffer[: len(part)] = part
        start += len(part)
    return len(whole)


def everything(sim: Sim) -> object:
    """All that a read may change at A, and what left it."""
    a = sim["A"]
    device = a.device
    of_peers = []
    for peer in device.peers.values():
        keypair, timers = peer.keypairs.current, peer.timers
        of_peers.append(
            (
                peer.tx_bytes,
                peer.endpoint,
                list(peer.staged),
                peer.handshake_index,
                peer.wake_at,
                timers.deadlines,
                timers.armed_earliest,
                timers.last_sent_handshake,
                timers.handshake_attempts,
                None if keypair is None else keypair.send_counter,
            )
        )
    rest = (len(device.indices), device.next_deadline(), len(device.outbound.buffers), device.outbound._count)
    return list(a.trains), a.drops(), of_peers, rest


@st.composite
def lone_reads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Virtio header and packet: most are plain ones for B, some are what the straight line has to leave to the long way."""
    is_v4 = draw(st.booleans())
    kind = draw(st.sampled_from(["plain"] * 6 + ["half done", "nowhere done", "superpacket", "nobody's", "junk", "cut"]))
    size = draw(st.integers(0, 64) | st.sampled_from([500, 1352, 1372, 1379, 1380, 1381, 1392, 1393, 1500, 3000]))
    flow = Stream(
        is_v4=is_v4,
        is_tcp=draw(st.booleans()),
        payload=draw(st.binary(min_size=1, max_size=4)).ljust(size, b"\xa5"),
        size=max(size, 4) if kind != "superpacket" else max(1, size // 3),
        tos=draw(st.integers(0, 3)),
        flags=ACK | PSH,
        source=ip_address("10.0.0.1" if is_v4 else "fd00::1").packed,
        destination=ip_address(
            ("10.0.0.2" if is_v4 else "fd00::2") if kind != "nobody's" else ("10.0.0.8" if is_v4 else "fd00::8")
        ).packed,
    )
    match kind:
        case "half done":
            return half_done(flow)
        case "nowhere done":
            return VIRTIO.pack(1, 0, 28, 0, 20, 4000), flow.packets()[0]
        case "superpacket":
            return flow.superpacket()
        case "junk":
            return PLAIN, draw(st.binary(max_size=80))
        case "cut":
            return PLAIN, flow.packets()[0][: draw(st.integers(0, 41))]
    return PLAIN, flow.packets()[0]


Step = tuple[str, object]
steps: st.SearchStrategy[Step] = st.one_of(
    *[st.tuples(st.just("alone"), lone_reads())] * 4,
    st.tuples(st.just("gathered"), lone_reads()),
    st.tuples(st.just("time"), st.sampled_from([0.001, 4, 11, 16, 121, 181])),
    st.tuples(
        st.just("counter"),
        st.sampled_from([REKEY_AFTER_MESSAGES, REKEY_AFTER_MESSAGES + 1, REJECT_AFTER_MESSAGES - 1, REJECT_AFTER_MESSAGES]),
    ),
    st.tuples(st.just("socket takes"), st.booleans()),
    st.tuples(st.just("endpoint"), st.sampled_from([None, ELSEWHERE, Endpoint("10.0.0.2", 51820), Endpoint("fd00::2", 51820)])),
    st.tuples(st.just("keepalive"), st.sampled_from([0, 25])),
    st.tuples(st.just("mtu"), st.sampled_from([1280, 1400, 1420, 3100])),
)


def do(sim: Sim, step: Step, in_a_straight_line: bool) -> None:
    a = sim["A"]
    outbound, peer = a.device.outbound, a.peer_of(sim["B"])
    what, value = step
    match what, value:
        case "alone", (bytes() as header, bytes() as data):
            size = fill(a, data, header)
            if in_a_straight_line:
                outbound.lone_packet_read(size, sim.now)
            else:
                outbound.packet_read(size, sim.now)
                outbound.flush(sim.now)
        case "gathered", (bytes() as header, bytes() as data):
            a.read(data, header)
        case "time", int() | float():
            outbound.flush(sim.now)
            sim.advance(value)
        case "counter", int():
            if peer.keypairs.current is not None:
                peer.keypairs.current.send_counter = value
        case "socket takes", bool():
            a.takes_sends = value
        case "endpoint", Endpoint() | None:
            peer.endpoint = value
        case "keepalive", int():
            a.set_peer(sim["B"], persistent_keepalive=value)
        case "mtu", int():
            a.device.mtu_changed(value, sim.now)
        case _:
            raise AssertionError(step)


@settings(max_examples=120, deadline=None)
@given(st.lists(steps, min_size=1, max_size=14))
def test_the_straight_line_of_a_lone_packet_leads_where_the_long_way_does(script: list[Step]) -> None:
    """Byte for byte, counter for counter and timer for timer: two devices with the same randomness."""
    straight, long = Sim.connected(), Sim.connected()

    for step in script:
        do(straight, step, in_a_straight_line=True)
        do(long, step, in_a_straight_line=False)
        assert everything(straight) == everything(long), step


def test_the_straight_line_is_taken() -> None:
    """Otherwise the test above would hold two long ways against each other."""
    sim = Sim.connected()
    a = sim["A"]
    flow = stream(a, sim["B"], is_tcp=False, payload=b"alone, with a header of IPv6's length")
    outbound = a.device.outbound
    outbound.packet_read = lambda size, now: pytest.fail("it took the long way")  # type: ignore[method-assign]

    outbound.lone_packet_read(fill(a, flow.packets()[0], PLAIN), sim.now)

    assert sealed_for(a, sim["B"]) == with_padding(flow.packets(), MTU)


ORDINARY = packet("10.0.0.1", "10.0.0.2", b"ordinary, and as long as a header")
ORDINARY6 = Stream(is_v4=False, payload=b"ordinary").packets()[0]


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (ORDINARY6[:39], PLAIN),
        (ORDINARY6[:40], PLAIN),
        (ORDINARY[:19], PLAIN),
        (ORDINARY[:20], PLAIN),
        (ORDINARY[:39], PLAIN),
        (b"\x50" + ORDINARY6[1:], PLAIN),
        (b"\x70" + ORDINARY6[1:], PLAIN),
        (packet("10.0.0.1", "10.0.0.2", bytes(1472 - 28)), PLAIN),
        (packet("10.0.0.1", "10.0.0.2", bytes(1473 - 28)), PLAIN),
        (packet("10.0.0.1", "198.51.100.1", b"to the host where the endpoint is"), PLAIN),
        (packet("10.0.0.1", "10.0.0.2", bytes(400)), bytes([0, GSO_TCPV4, 0, 0, 100, 0, 20, 0, 16, 0])),
    ],
    ids=[
        "IPv6 cut off in its header",
        "IPv6 header alone",
        "IPv4 cut off in its header",
        "IPv4 header alone",
        "IPv4 shorter than an IPv6 header",
        "version 5",
        "version 7",
        "as long as a row",
        "longer than a row",
        "to the address of the endpoint",
        "superpacket that says nothing of checksums",
    ],
)
def test_what_is_not_ordinary_goes_the_long_way(data: bytes, header: bytes) -> None:
    """Behind something ordinary, of which the row still holds what the next one does not overwrite."""
    straight, long = looping(True), looping(True)

    for sim in (straight, long):
        for read, its_header in ((ORDINARY6, PLAIN), (data, header), (ORDINARY, PLAIN)):
            size = fill(sim["A"], read, its_header)
            if sim is straight:
                sim["A"].device.outbound.lone_packet_read(size, sim.now)
            else:
                sim["A"].device.outbound.packet_read(size, sim.now)
                sim["A"].device.outbound.flush(sim.now)

    assert everything(straight) == everything(long)
    assert ORDINARY in [plaintext[: len(ORDINARY)] for plaintext in sealed_for(straight["A"], straight["B"])]


@both_versions
def test_our_own_datagram_does_not_go_round_in_a_straight_line(is_v4: bool) -> None:
    sim = looping(is_v4)
    a = sim["A"]
    a.send_packet(stream(a, sim["B"], payload=b"once").packets()[0])
    looped = outer(sim, sim.log[-1].datagram, is_v4)

    a.device.outbound.lone_packet_read(fill(a, looped, PLAIN), sim.now)

    assert a.drops() == {"loop": 1}
    assert len(sim.sent("A")) == 1


# -- superpackets that share trains ---------------------------------------------------------------------------------


@st.composite
def shared_reads(draw: st.DrawFn, row: int) -> tuple[Read, bool]:
    """Reads whose rows are ``row`` bytes long, so that they meet in one train; and whether it goes the way of a lone packet."""
    is_v4, is_tcp = draw(st.sampled_from([(True, True), (True, True), (False, True), (True, False)]))
    size = row - (20 if is_v4 else 40) - (20 if is_tcp else 8)
    count = draw(st.sampled_from([1, 1, 1, 2, 5, 20, 43, 44, 45, 46] + [63, 64, 65, 127, 128, 129, 150] * (row < 500)))
    read = Read(
        to=draw(st.sampled_from("AAAAAAB")),
        is_v4=is_v4,
        is_tcp=is_tcp,
        size=size,
        count=count,
        last=draw(st.sampled_from([size, size, size, 1, 20, size - 20])),
        half=draw(st.booleans()),
        tos=draw(st.sampled_from([0] * 12 + [1, 2, 3])),
        flush=draw(st.sampled_from([False] * 9 + [True])),
    )
    return read, draw(st.sampled_from([False] * 9 + [True]))


class FewestTrains:
    """How many rows each train has, if none ends before it must: another peer or mark, a shorter row, a full train, a flush."""

    def __init__(self) -> None:
        self.trains: list[int] = []
        self._run: tuple[str, int, int] | None = None  # peer, padded length, outer ECN
        self._rows = 0

    def flush(self) -> None:
        if self._rows:
            self.trains.append(self._rows)
        self._run, self._rows = None, 0

    def read(self, read: Read, lengths: list[int]) -> None:
        mark = 2 if read.tos & 3 == 3 else read.tos & 3
        first = padded(lengths[0], MTU)
        run = self._run
        shorter_may_follow = len(lengths) == 1 and run is not None and first < run[1]
        if run is not None and run != (read.to, run[1] if shorter_may_follow else first, mark):
            self.flush()
        for length in lengths:
            self._row(read.to, padded(length, MTU), mark)
        if padded(lengths[-1], MTU) != first:
            self.flush()  # a superpacket's shorter last row does not wait for others, though it be the first of its train

    def _row(self, to: str, length: int, mark: int) -> None:
        if self._run is None:
            self._run = (to, length, mark)
        self._rows += 1
        longest = self._run[1]
        if length < longest or self._rows == min(64, 65507 // (longest + 32)):
            self.flush()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1420, 128, 101]).flatmap(lambda row: st.lists(shared_reads(row), min_size=1, max_size=7)))
def test_what_shares_trains_is_whole_in_order_and_in_as_few_trains_as_can_be(script: list[tuple[Read, bool]]) -> None:
    """Checksums that were half done, too, in rows that a full train leaves behind for the next one."""
    sim = network(MTU, "AB")
    sender = sim["S"]
    kernel, fewest = Kernel(sender, 1), FewestTrains()

    for read, is_alone in script:
        known = len(kernel.expected.get(read.to, []))
        header, data = kernel.make(sim[read.to], read)
        size = fill(sender, data, header)
        if is_alone:
            sender.device.outbound.lone_packet_read(size, sim.now)
        else:
            sender.device.outbound.packet_read(size, sim.now)
        fewest.read(read, [len(packet) for packet in kernel.expected[read.to][known:]])
        if read.flush or is_alone:
            sender.device.outbound.flush(sim.now)
            fewest.flush()
    sender.device.outbound.flush(sim.now)
    fewest.flush()

    assert [len(list(train)) for train in sender.trains] == fewest.trains
    for name in "AB":
        assert sealed_for(sender, sim[name]) == with_padding(kernel.expected.get(name, []), MTU)
    assert sender.drops() == {}


@pytest.mark.parametrize("before", [1, 3, 4, 44])
@pytest.mark.parametrize("rows", [44, 45, 46, 47])
@pytest.mark.parametrize("ends", ["flush", "half done", "session ends"])
def test_rows_that_a_full_train_leaves_behind_are_the_beginning_of_the_next(before: int, rows: int, ends: str) -> None:
    """Half-done packets, then a superpacket, then one more that is half done: each train ends in the middle of something."""
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]
    flows = [stream(a, b, payload=bytes([number]) * 1380, size=1380, ident=number) for number in range(before)]
    flows.append(stream(a, b, payload=bytes(rows * 1380), size=1380, sequence=77))
    last = stream(a, b, payload=b"\xff" * 1380, size=1380)

    for flow in flows[:-1]:
        a.read(*reversed(half_done(flow)))
    a.read(*reversed(flows[-1].superpacket()))
    expected = [data for flow in flows for data in flow.packets()]
    if ends == "half done":
        a.read(*reversed(half_done(last)))
        expected += last.packets()
    if ends == "session ends":
        left = len(expected) % TRAIN
        a.peer_of(b).keypairs.invalidate_sending()
        a.device.outbound.flush(sim.now)
        assert a.drops() == ({"no_session": left} if left else {})
        expected = expected[: len(expected) - left]
    else:
        a.device.outbound.flush(sim.now)

    assert [len(list(train)) for train in a.trains] == [TRAIN] * (len(expected) // TRAIN) + [len(expected) % TRAIN] * (
        len(expected) % TRAIN > 0
    )
    assert sealed_for(a, b) == with_padding(expected, MTU)
