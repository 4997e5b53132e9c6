"""From the network to the TUN. A and C send to B; what they send is sealed here, datagram by datagram, so that it can be wrong in
any way that keys allow."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from struct import pack, unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise.constants import REJECT_AFTER_MESSAGES
from noise.keypair import Keypair
from tests.sim import Host, Sim, packet
from tests.tun.packets import ACK, Stream
from tun.offload import GSO_TCPV4, NEEDS_CSUM, VIRTIO_HEADER
from wgpy.config import NO_KEY, Endpoint
from wgpy.core.inbound import decapsulate_ecn
from wgpy.core.peer import Peer

ELSEWHERE = Endpoint("203.0.113.9", 9999)


def seal(keypair: Keypair, plaintext: bytes, counter: int | None = None) -> bytes:
    """A datagram with exactly this plaintext, by the peer's key."""
    if counter is None:
        counter = keypair.send_counter
        keypair.send_counter += 1
    sealed = bytearray(len(plaintext) + 16)
    keypair.encrypt_into(bytes(4) + counter.to_bytes(8, "little"), plaintext, None, sealed)
    return pack("<IIQ", 4, keypair.remote_index, counter) + bytes(sealed)


def current(peer: Peer) -> Keypair:
    assert peer.keypairs.current is not None
    return peer.keypairs.current


def keypair_to(sender: Host, receiver: Host) -> Keypair:
    return current(sender.peer_of(receiver))


def with_ecn(tos: int, outer: int) -> int:
    """RFC 6040: the inner TOS when it leaves a tunnel whose outer header was marked."""
    inner = tos & 3
    if outer == 3 and inner != 0:
        return tos | 3
    if outer == 1 and inner == 2:
        return tos & ~3 | 1
    return tos


# -- any burst ------------------------------------------------------------------------------------------------------

DROPPED = {
    "forged": "bad_tag",
    "replayed": "replayed",
    "duplicate": "replayed",
    "foreign": "not_allowed_source",
    "nobody's": "not_allowed_source",
    "version 5": "malformed_packet",
    "total length of 19": "malformed_packet",
    "declared longer": "malformed_packet",
    "payload length that wraps": "malformed_packet",
    "unknown index": "unknown_index",
    "index of a handshake": "unknown_index",
    "reserved byte": "unknown_message",
    "type 5": "unknown_message",
}
KINDS = ["previous session", "other peer", *DROPPED]


@dataclass(frozen=True)
class Item:
    """One datagram of a burst."""

    kind: str
    is_v4: bool
    is_tcp: bool
    trimmed: int
    tos: int


@st.composite
def scripts(draw: st.DrawFn) -> list[Item]:
    """Good datagrams, and of a few kinds many others: it is where they meet that things go wrong."""
    kinds = ["good", "good", "good", *draw(st.lists(st.sampled_from(KINDS), max_size=3))]
    tos = draw(st.just([0]) | st.just([0, 1, 2, 3, 0xB8, 0xBA]))
    kind_of_packet = st.sampled_from([True]) | st.booleans()
    item = st.builds(Item, st.sampled_from(kinds), kind_of_packet, kind_of_packet, st.integers(0, 15), st.sampled_from(tos))
    return draw(st.lists(item, min_size=1, max_size=40))


@dataclass
class Burst:
    """The datagrams made of items, and what must become of them."""

    sim: Sim
    length: int
    outer: int
    old: Keypair
    datagrams: list[bytes] = field(default_factory=list)
    delivered: list[bytes] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    """Bytes of authenticated, fresh datagrams by the name of their peer."""
    _flows: dict[tuple[str, bool, bool], tuple[int, int]] = field(default_factory=dict)

    def flow(self, sender: Host, item: Item) -> Stream:
        """The next packet of one of a sender's flows, such that its padded length is that of the burst."""
        key = (sender.name, item.is_v4, item.is_tcp)
        ident, sequence = self._flows.get(key, (1, 1))
        headers = (20 if item.is_v4 else 40) + (20 if item.is_tcp else 8)
        size = self.length - headers - item.trimmed
        self._flows[key] = (ident + 1, sequence + size)
        ends = (sender.address, "10.9.9.9") if item.is_v4 else (sender.address6, "fd99::9")
        return Stream(
            is_v4=item.is_v4,
            is_tcp=item.is_tcp,
            payload=self.sim.random.randbytes(size),
            size=size,
            tos=item.tos,
            ident=ident,
            sequence=sequence,
            flags=ACK,
            dont_fragment=False,
            source=ip_address(ends[0]).packed,
            destination=ip_address(ends[1]).packed,
        )

    def add(self, item: Item) -> None:
        a, b, c = (self.sim[name] for name in "ABC")
        sender, keypair = (c, keypair_to(c, b)) if item.kind == "other peer" else (a, keypair_to(a, b))
        if item.kind == "previous session":
            keypair = self.old
        flow = self.flow(sender, item)
        data = bytearray(flow.packets()[0].ljust(self.length, b"\0"))
        match item.kind:
            case "foreign":
                if item.is_v4:
                    data[12:16] = ip_address(c.address).packed
                else:
                    data[8:24] = ip_address(c.address6).packed
            case "nobody's":
                if item.is_v4:
                    data[12:16] = bytes([192, 0, 2, 77])
                else:
                    data[8:24] = ip_address("2001:db8::77").packed
            case "version 5":
                data[0] = 0x55
            case "total length of 19":
                data[0:4] = b"\x45\0\0\x13"
            case "declared longer":
                at, length = (2, self.length + 1) if data[0] >> 4 == 4 else (4, self.length - 39)
                data[at : at + 2] = length.to_bytes(2)
            case "payload length that wraps":
                data[0] = 0x60
                data[4:6] = (65536 - 40 + self.sim.random.randrange(40)).to_bytes(2)  # plus 40, in 16 bits, it would be 0 to 39
        if item.kind in ("replayed", "duplicate") and (before := self._seen(item.kind)) is not None:
            datagram = before
        elif item.kind in ("replayed", "duplicate"):
            return
        else:
            datagram = seal(keypair, bytes(data))
        if item.kind == "forged":
            spoilt = bytearray(datagram)
            spoilt[self.sim.random.randrange(8, len(spoilt))] ^= 1 << self.sim.random.randrange(8)
            datagram = bytes(spoilt)
        elif item.kind == "unknown index":
            datagram = datagram[:4] + pack("<I", self._unknown_index()) + datagram[8:]
        elif item.kind == "index of a handshake":
            (index,) = [index for index, (_, session) in b.device.indices.items() if session is None]
            datagram = datagram[:4] + pack("<I", index) + datagram[8:]
        elif item.kind == "reserved byte":
            datagram = datagram[:2] + b"\x80" + datagram[3:]
        elif item.kind == "type 5":
            datagram = b"\x05" + datagram[1:]
        self.datagrams.append(datagram)
        if item.kind in DROPPED:
            self.dropped[DROPPED[item.kind]] += 1
        else:
            self.delivered += replace(flow, tos=with_ecn(flow.tos, self.outer)).packets()
        if DROPPED.get(item.kind) in (None, "not_allowed_source", "malformed_packet"):
            self.accepted[sender.name] += len(datagram)
            self.fresh = datagram

    fresh: bytes | None = None
    """The last datagram that was authenticated and new."""

    def _seen(self, kind: str) -> bytes | None:
        """For a replay something that was received before this burst; for a duplicate, something out of the burst itself."""
        if kind == "duplicate":
            return self.fresh
        if self._recorded is None:
            self._recorded = seal(keypair_to(self.sim["A"], self.sim["B"]), bytes(self.length))
            self.sim["B"].receive(self._recorded, 0, self.sim["A"].endpoint)
            self.sim["B"].device.drops = dict.fromkeys(self.sim["B"].device.drops, 0)  # zeros are no packet: of no interest here
        return self._recorded

    _recorded: bytes | None = None

    def _unknown_index(self) -> int:
        return next(index for index in range(1 << 32) if index not in self.sim["B"].device.indices)


def three() -> tuple[Sim, Keypair]:
    """A, B and C with sessions A-B and C-B, the keys of an older session A-B, and an initiation of B under way to a fourth host.

    C owns a /32 and a /128 inside prefixes of A.
    """
    sim = Sim("A", "B", "C", "D")
    a, b, c = (sim[name] for name in "ABC")
    for host in (a, c):
        host.peer(b, allowed_ips=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    b.peer(a, allowed_ips=(ip_network("10.0.0.0/24"), ip_network("fd00::/64")))
    b.peer(c)
    b.peer(sim["D"])
    sim.connect("A", "B")
    sim.connect("C", "B")
    old = keypair_to(a, b)
    sim.advance(10)
    a.device.send_initiation(a.peer_of(b), sim.now)
    sim.advance(1)
    assert keypair_to(a, b) is not old
    sim.hosts["D"].endpoint = ELSEWHERE
    b.device.send_initiation(b.peer_of(sim["D"]), sim.now)
    b.device.inbound.coalescer.uso = True
    b.delivered()
    assert b.drops() == {}
    return sim, old


@settings(max_examples=100, deadline=None)
@given(
    script=scripts(),
    length=st.sampled_from([80, 96, 101, 1408]),
    outer=st.integers(0, 3),
    order=st.none() | st.integers(0, 1000),
    pieces=st.sampled_from(["burst", "single", "burst with a shorter tail"]),
    many=st.booleans(),
)
def test_what_is_wrong_in_a_burst_is_dropped_alone_and_the_rest_is_delivered(
    script: list[Item], length: int, outer: int, order: int | None, pieces: str, many: bool
) -> None:
    sim, old = three()
    b = sim["B"]
    b.receives_many = many
    burst = Burst(sim, length, outer, old)
    for item in script:
        burst.add(item)
    datagrams = list(burst.datagrams)
    before = {name: b.peer_of(sim[name]).rx_bytes for name in "AC"}
    if order is not None and burst.dropped["replayed"] == 0:
        # Reordering alone costs nothing: all are within the window, and leave in the order in which they came.
        positions = list(range(len(datagrams)))
        random.Random(order).shuffle(positions)
        kinds = [item.kind for item in script if item.kind not in ("replayed", "duplicate")]
        good = iter(burst.delivered)
        packets = [next(good) if kind not in DROPPED else None for kind in kinds]
        datagrams = [datagrams[position] for position in positions]
        burst.delivered = [packets[position] for position in positions if packets[position] is not None]  # type: ignore[misc]
    tail = b""
    if pieces == "burst with a shorter tail":
        tail = seal(keypair_to(sim["A"], b), packet("10.0.0.1", "10.9.9.9", b"1234", tos=0))
        burst.delivered.append(packet("10.0.0.1", "10.9.9.9", b"1234"))
        burst.accepted["A"] += len(tail)

    if pieces == "single":
        for datagram in datagrams:
            b.receive(datagram, 0, ELSEWHERE, outer)
    elif datagrams or tail:
        b.receive(b"".join(datagrams) + tail, length + 32, ELSEWHERE, outer)

    assert b.delivered() == burst.delivered
    assert b.drops() == {reason: count for reason, count in burst.dropped.items() if count}
    for name in "AC":
        peer = b.peer_of(sim[name])
        assert peer.rx_bytes - before[name] == burst.accepted[name]
        assert peer.endpoint == (ELSEWHERE if burst.accepted[name] else sim[name].endpoint)


# -- kinds that deserve to be named ---------------------------------------------------------------------------------


def sealed_burst(sim: Sim, packets: Sequence[bytes]) -> list[bytes]:
    """Datagrams from A to B, padded to 16 bytes."""
    return [seal(keypair_to(sim["A"], sim["B"]), data + bytes(-len(data) % 16)) for data in packets]


def test_a_burst_of_one_flow_is_one_write_in_spite_of_what_was_dropped_around_it() -> None:
    sim = Sim.connected()
    flow = Stream(payload=bytes(10 * 1008), size=1008, source=bytes([10, 0, 0, 1]))
    datagrams = sealed_burst(sim, flow.packets())

    sim["B"].receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    assert len(sim["B"].writes) == 1
    assert sim["B"].delivered() == flow.packets()


@pytest.mark.parametrize("position", [0, 4, 9])
def test_a_forged_datagram_in_a_burst_of_one_flow_costs_only_itself(position: int) -> None:
    sim = Sim.connected()
    flow = Stream(payload=random.Random(1).randbytes(10 * 1008), size=1008, source=bytes([10, 0, 0, 1]))
    datagrams = sealed_burst(sim, flow.packets())
    datagrams[position] = datagrams[position][:-1] + bytes([datagrams[position][-1] ^ 1])

    sim["B"].receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    packets = flow.packets()
    del packets[position]
    assert sim["B"].delivered() == packets
    assert sim["B"].drops() == {"bad_tag": 1}


def test_a_forged_counter_does_not_shut_out_the_true_ones() -> None:
    """The window is touched only after authentication."""
    sim = Sim.connected()
    good = sealed_burst(sim, [packet("10.0.0.1", "10.0.0.2", b"%04d" % number) for number in range(5)])
    forged = [datagram[:8] + (1 << 40).to_bytes(8, "little") + datagram[16:] for datagram in good]

    sim["B"].receive(b"".join(forged), len(good[0]), ELSEWHERE)
    sim["B"].receive(b"".join(good), len(good[0]), sim["A"].endpoint)

    assert len(sim["B"].delivered()) == 5
    assert sim["B"].drops() == {"bad_tag": 5}


def test_a_forged_counter_of_a_lone_datagram_does_not_shut_out_the_true_ones() -> None:
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]
    good = [seal(keypair_to(a, b), packet(a.address, b.address, b"%04d" % number)) for number in range(2)]

    for counter in ((1 << 40).to_bytes(8, "little"), good[0][8:16]):
        b.receive(good[0][:8] + counter + good[0][16:-1] + bytes([good[0][-1] ^ 1]), 0, ELSEWHERE)
    for datagram in good:
        b.receive(datagram, 0, a.endpoint)

    assert len(b.delivered()) == 2
    assert b.drops() == {"bad_tag": 2}


@pytest.mark.parametrize("position", [1, 2, 3])
def test_a_lone_datagram_with_something_in_its_reserved_bytes_is_no_transport_data(position: int) -> None:
    """The bytes are not authenticated: whoever ignores them opens it."""
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]
    good = seal(keypair_to(a, b), packet(a.address, b.address))
    before = b.device.snapshot()

    b.receive(good[:position] + b"\x01" + good[position + 1 :], 0, ELSEWHERE)

    assert b.delivered() == []
    assert b.drops() == {"unknown_message": 1}
    assert b.device.snapshot() == before


def test_a_burst_that_was_forged_whole_moves_nothing() -> None:
    sim = Sim.connected()
    good = sealed_burst(sim, [packet("10.0.0.1", "10.0.0.2", b"%04d" % number) for number in range(5)])
    before = sim["B"].device.snapshot()

    sim["B"].receive(b"".join(datagram[:-1] + b"\0" for datagram in good), len(good[0]), ELSEWHERE)

    assert sim["B"].device.snapshot() == before


def test_a_burst_replayed_from_elsewhere_moves_nothing() -> None:
    sim = Sim.connected()
    good = b"".join(sealed_burst(sim, [packet("10.0.0.1", "10.0.0.2", b"%04d" % number) for number in range(5)]))
    sim["B"].receive(good, len(good) // 5, sim["A"].endpoint)
    sim["B"].delivered()
    before = sim["B"].device.snapshot()

    sim["B"].receive(good, len(good) // 5, ELSEWHERE)

    assert sim["B"].device.snapshot() == before
    assert sim["B"].delivered() == []
    assert sim["B"].drops() == {"replayed": 5}


def test_a_source_that_another_peer_owns_by_a_longer_prefix_is_refused_but_the_endpoint_still_moves() -> None:
    """Protocol 1.6, netns.sh stage 9: A has 10.0.0.0/24, C has 10.0.0.3/32 of it."""
    sim, _ = three()
    foreign = packet("10.0.0.3", "10.0.0.2", b"!!!!")
    datagrams = sealed_burst(sim, [foreign])

    sim["B"].receive(datagrams[0], 0, ELSEWHERE)

    assert sim["B"].delivered() == []
    assert sim["B"].drops() == {"not_allowed_source": 1}
    assert sim["B"].peer_of(sim["A"]).endpoint == ELSEWHERE


def test_keepalives_come_in_bursts_too() -> None:
    sim = Sim.connected()
    keepalives = [seal(keypair_to(sim["A"], sim["B"]), b"") for _ in range(5)]
    forged = keepalives[2][:-1] + bytes([keepalives[2][-1] ^ 1])
    before = sim["B"].peer_of(sim["A"]).rx_bytes

    sim["B"].receive(b"".join([*keepalives[:2], forged, *keepalives[2:], keepalives[0]]), 32, ELSEWHERE)

    assert sim["B"].delivered() == []
    assert sim["B"].drops() == {"bad_tag": 1, "replayed": 1}
    assert sim["B"].peer_of(sim["A"]).rx_bytes == before + 5 * 32
    assert sim["B"].peer_of(sim["A"]).endpoint == ELSEWHERE


def shorter(sim: Sim, kind: str, is_v4: bool) -> bytes:
    """A last datagram of a burst whose others have 240 bytes of plaintext. Its row lies where longer packets lay before."""
    keypair = keypair_to(sim["A"], sim["B"])
    data = bytearray(tail_packet(is_v4))
    match kind:
        case "forged":
            datagram = seal(keypair, bytes(data))
            return datagram[:-1] + bytes([datagram[-1] ^ 1])
        case "declares more than it has":
            at, length = (2, len(data) + 1) if is_v4 else (4, len(data) - 39)
            data[at : at + 2] = length.to_bytes(2)
        case "declares as much as the others have":
            at, length = (2, 240) if is_v4 else (4, 200)
            data[at : at + 2] = length.to_bytes(2)
        case "half a header":
            return seal(keypair, bytes(data[: 19 if is_v4 else 39]))
        case "one byte":
            return seal(keypair, bytes(data[:1]))
        case "foreign":
            data[12:16] = b"\xc0\0\2\x4d"
            data[8:12] = data[8:12] if is_v4 else b"\x20\x01\x0d\xb8"
        case "keepalive":
            return seal(keypair, b"")
        case "scrap":
            return b"\4\0\0\0" + bytes(27)
        case "cookie reply":
            return pack("<II", 3, 77) + bytes(56)
    return seal(keypair, bytes(data))


def tail_packet(is_v4: bool) -> bytes:
    source = ip_address("10.0.0.1" if is_v4 else "fd00::1").packed
    return Stream(is_v4=is_v4, is_tcp=False, payload=b"the tail", source=source).packets()[0]


@pytest.mark.parametrize("is_v4", [True, False])
@pytest.mark.parametrize(
    ("kind", "dropped", "is_received"),
    [
        ("good", None, True),
        ("keepalive", None, True),
        ("forged", "bad_tag", False),
        ("declares more than it has", "malformed_packet", True),
        ("declares as much as the others have", "malformed_packet", True),
        ("half a header", "malformed_packet", True),
        ("one byte", "malformed_packet", True),
        ("foreign", "not_allowed_source", True),
        ("scrap", "unknown_message", False),
        ("cookie reply", "bad_cookie_reply", False),
    ],
)
def test_a_shorter_last_datagram_is_judged_by_what_it_has_itself(
    kind: str, dropped: str | None, is_received: bool, is_v4: bool
) -> None:
    sim = Sim.connected()
    source = ip_address("10.0.0.1" if is_v4 else "fd00::1").packed
    headers = 28 if is_v4 else 48
    flow = Stream(is_v4=is_v4, is_tcp=False, payload=bytes(5 * (240 - headers)), size=240 - headers, source=source)
    packets = flow.packets()
    before = sim["B"].peer_of(sim["A"]).rx_bytes

    tail = shorter(sim, kind, is_v4)
    sim["B"].receive(b"".join(sealed_burst(sim, packets)) + tail, 272, sim["A"].endpoint)

    assert sim["B"].delivered() == packets + [tail_packet(is_v4)] * (kind == "good")
    assert sim["B"].drops() == ({dropped: 1} if dropped else {})
    assert sim["B"].peer_of(sim["A"]).rx_bytes - before == 5 * 272 + (len(tail) if is_received else 0)


def test_cookie_replies_are_as_long_as_small_packets_and_may_stand_between_them() -> None:
    sim = Sim.connected()
    data = [packet("10.0.0.1", "10.0.0.2", b"%04d" % number) for number in range(4)]
    datagrams = sealed_burst(sim, data)
    cookie = pack("<II", 3, 77) + bytes(56)

    sim["B"].receive(b"".join([*datagrams[:2], cookie, cookie, *datagrams[2:]]), 64, sim["A"].endpoint)

    assert sim["B"].delivered() == data
    assert sim["B"].drops() == {"bad_cookie_reply": 2}


@pytest.mark.parametrize("many", [False, True])
def test_of_each_datagram_it_is_told_whence_it_came_where_to_and_when(many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]
    told: list[object] = []
    monkeypatch.setattr(b.device, "message_received", lambda *arguments: told.append(arguments))
    message, data = bytes([1, *bytes(147)]), seal(keypair_to(a, b), packet("10.0.0.1", "10.0.0.2"))

    for datagram, source in ((message, b"one"), (data, b"other")):
        if many:
            b.device.inbound.many_received([(memoryview(datagram), 0, ELSEWHERE, source, 0)], sim.now)
        else:
            b.device.inbound.buffer[: len(datagram)] = datagram
            b.device.inbound.datagrams_received(len(datagram), 0, ELSEWHERE, source, 0, sim.now)

    assert told == [(message, ELSEWHERE, b"one", sim.now)]
    assert (b.peer_of(a).endpoint, b.peer_of(a).source) == (ELSEWHERE, b"other")


@pytest.mark.parametrize("many", [False, True])
def test_initiations_of_several_peers_behind_one_address_come_in_one_burst(many: bool) -> None:
    sim = Sim("B", "A", "C", "D")
    sim["B"].receives_many = many
    for name in "ACD":
        sim["B"].peer(sim[name], endpoint=False)
        sim[name].peer(sim["B"])
        sim[name].endpoint = ELSEWHERE
        sim[name].send_packet(packet(sim[name].address, sim["B"].address))
    initiations = [entry.datagram for entry in sim.log]

    sim["B"].receive(b"".join(initiations), 148, ELSEWHERE)

    assert len(sim.sent("B", "response")) == 3
    assert all(sim["B"].peer_of(sim[name]).endpoint == ELSEWHERE for name in "ACD")


def hand_over(receiver: Host, datagrams: list[bytes], source: bytes = b"", ecn: int = 0) -> None:
    """One receive of these datagrams, from A, and no flush."""
    whole = b"".join(datagrams)
    receiver.device.inbound.buffer[: len(whole)] = whole
    sim = receiver.sim
    receiver.device.inbound.datagrams_received(len(whole), len(datagrams[0]), sim["A"].endpoint, source, ecn, sim.now)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_comes_in_is_answered_from_the_address_it_came_to(count: int) -> None:
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]

    hand_over(b, sealed_burst(sim, [packet(a.address, b.address)] * count), source=b"at .7")

    assert b.peer_of(a).source == b"at .7"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_data_that_is_not_answered_is_acknowledged_after_10_seconds(count: int) -> None:
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]

    hand_over(b, sealed_burst(sim, [packet(a.address, b.address)] * count))
    sim.advance(9.9)
    assert sim.sent("B") == []
    sim.advance(0.2)

    assert [entry.kind for entry in sim.sent("B")] == ["keepalive"]


@pytest.mark.parametrize("is_v4", [True, False])
def test_a_packet_of_a_header_alone_is_a_packet(is_v4: bool) -> None:
    sim = Sim.connected()
    data = bare_packet(is_v4, 20 if is_v4 else 40)

    hand_over(sim["B"], [seal(keypair_to(sim["A"], sim["B"]), data)])

    assert sim["B"].delivered() == [data]


@pytest.mark.parametrize("is_v4", [True, False])
def test_a_lone_packet_is_marked_as_its_datagram_was(is_v4: bool) -> None:
    sim = Sim.connected()
    source = ip_address("10.0.0.1" if is_v4 else "fd00::1").packed
    flow = Stream(is_v4=is_v4, tos=0x02, payload=b"alone", source=source)

    hand_over(sim["B"], sealed_burst(sim, flow.packets()), ecn=3)

    assert sim["B"].delivered() == replace(flow, tos=0x03).packets()


def test_one_packet_and_a_keepalive_are_a_burst() -> None:
    sim = Sim.connected()
    data = packet("10.0.0.1", "10.0.0.2")

    hand_over(sim["B"], [*sealed_burst(sim, [data]), seal(keypair_to(sim["A"], sim["B"]), b"")])
    sim["B"].device.inbound.flush()

    assert sim["B"].delivered() == [data]
    assert sim["B"].drops() == {}


@pytest.mark.parametrize("size", [1504, 8000, 30_000])
def test_long_packets_come_in_bursts_too(size: int) -> None:
    """Fewer rows fit; of those that are held, what one receive brings goes on fitting."""
    sim = Sim.connected(mtu=34736)
    packets = [bare_packet(True, size)] * (65535 // (size + 32))

    for _ in range(8):
        hand_over(sim["B"], [seal(keypair_to(sim["A"], sim["B"]), data) for data in packets])
    sim["B"].device.inbound.flush()

    assert sim["B"].delivered() == packets * 8
    assert sim["B"].drops() == {}


def test_a_message_cut_short_at_the_end_of_a_burst_spoils_none_before_it() -> None:
    sim = Sim.pair()
    sim["A"].send_packet(packet(sim["A"].address, sim["B"].address))
    initiation = sim.log[0].datagram

    hand_over(sim["B"], [initiation, initiation, initiation[:100]])
    sim["B"].device.handle_messages(3, sim.now)

    assert sim["B"].drops() == {"unknown_message": 1, "replayed_initiation": 1}
    assert len(sim.sent("B", "response")) == 1


@pytest.mark.parametrize("at_once", [1, 128])
def test_messages_come_with_the_address_they_came_to_and_at_their_time(at_once: int) -> None:
    sim = Sim.pair()
    a, b = sim["A"], sim["B"]
    a.send_packet(packet(a.address, b.address))

    for _ in range(512 // at_once):
        hand_over(b, [sim.log[0].datagram] * at_once, source=b"at .7")
    b.device.handle_messages(1, sim.now)

    assert {(train.source, train.datagrams[0]) for train in b.trains} == {(b"at .7", 3)}, "so many are load"
    sim.now += 1
    b.device.handle_messages(1, sim.now)
    assert (b.trains[-1].source, b.trains[-1].datagrams[0]) == (b"at .7", 2), "a second later there is none"


@pytest.mark.parametrize("segment", [1, 3, 4, 16, 31])
def test_a_burst_of_scraps_is_counted_scrap_by_scrap(segment: int) -> None:
    sim = Sim.connected()

    sim["B"].receive(b"\x04\0\0\0" * 31, segment, ELSEWHERE)

    assert sim["B"].drops() == {"unknown_message": -(-124 // segment)}


@pytest.mark.parametrize("size", [0, 1, 3, 4, 31])
def test_a_scrap_is_counted(size: int) -> None:
    sim = Sim.connected()

    sim["B"].receive(b"\x04" + bytes(30)[: size - 1] if size else b"", 0, ELSEWHERE)

    assert sim["B"].drops() == {"unknown_message": 1}


@pytest.mark.parametrize("length", [33, 37, 45, 57, 101, 1419])
def test_a_length_that_is_no_multiple_of_16_is_fine(length: int) -> None:
    """Other implementations do not pad at all."""
    sim = Sim.connected()
    data = [packet("10.0.0.1", "10.0.0.2", bytes([number]) * (length - 28)) for number in range(6)]
    datagrams = [seal(keypair_to(sim["A"], sim["B"]), one) for one in data]

    sim["B"].receive(b"".join(datagrams), length + 32, sim["A"].endpoint)

    assert sim["B"].delivered() == data


@pytest.mark.parametrize("plaintext", [b"\x45", b"\x60", b"\x00", bytes(19), b"\x45" + bytes(18), b"\x60" + bytes(38)])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_too_short_for_an_ip_header_is_malformed(plaintext: bytes, count: int) -> None:
    sim = Sim.connected()
    datagrams = [seal(keypair_to(sim["A"], sim["B"]), plaintext) for _ in range(count)]

    sim["B"].receive(b"".join(datagrams), len(datagrams[0]), ELSEWHERE)

    assert sim["B"].drops() == {"malformed_packet": count}
    assert sim["B"].delivered() == []
    assert sim["B"].peer_of(sim["A"]).endpoint == ELSEWHERE, "it was authenticated"


@pytest.mark.parametrize("payload_length", [65495, 65496, 65500, 65535])
def test_an_ipv6_payload_length_does_not_wrap(payload_length: int) -> None:
    """Plus the header of 40 bytes, in 16 bits, 65,496 would be nothing at all."""
    sim = Sim.connected()
    data = bytearray(Stream(is_v4=False, is_tcp=False, payload=bytes(40), source=ip_address("fd00::1").packed).packets()[0])
    data[4:6] = payload_length.to_bytes(2)

    for count in (1, 3):
        datagrams = sealed_burst(sim, [bytes(data)] * count)
        sim["B"].receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint)

    assert sim["B"].drops() == {"malformed_packet": 4}


def test_a_packet_is_cut_to_the_length_it_declares() -> None:
    sim = Sim.connected()
    data = packet("10.0.0.1", "10.0.0.2", b"1234")

    sim["B"].receive(seal(keypair_to(sim["A"], sim["B"]), data + b"not zeros, whatever it is"), 0, sim["A"].endpoint)

    assert sim["B"].delivered() == [data]


def test_data_under_an_expired_session_is_refused() -> None:
    sim = Sim.connected()
    datagrams = sealed_burst(sim, [packet("10.0.0.1", "10.0.0.2", b"%04d" % number) for number in range(3)])
    sim.advance(1180.5 - sim.now)
    before = sim["B"].device.snapshot()

    sim["B"].receive(b"".join(datagrams), 64, ELSEWHERE)
    sim["B"].receive(datagrams[0], 0, ELSEWHERE)

    assert sim["B"].drops() == {"expired_keypair": 4}
    assert sim["B"].device.snapshot() == before


def test_counters_from_reject_after_messages_on_are_refused() -> None:
    sim = Sim.connected()
    keypair = keypair_to(sim["A"], sim["B"])
    data = packet("10.0.0.1", "10.0.0.2", b"1234")

    sim["B"].receive(seal(keypair, data, REJECT_AFTER_MESSAGES), 0, sim["A"].endpoint)
    assert sim["B"].drops() == {"replayed": 1}
    sim["B"].receive(seal(keypair, data, REJECT_AFTER_MESSAGES - 1), 0, sim["A"].endpoint)
    assert sim["B"].delivered() == [data]
    sim["B"].receive(seal(keypair, data, REJECT_AFTER_MESSAGES - 2), 0, sim["A"].endpoint)

    assert sim["B"].drops() == {"replayed": 1, "expired_keypair": 1}


def test_a_datagram_confirms_the_session_even_if_its_packet_is_refused() -> None:
    """Protocol 1.6: roaming, confirmation and timers come before the packet is looked at."""
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])
    sim["B"].peer(sim["A"])
    sim["A"].device.send_initiation(sim["A"].peer_of(sim["B"]), sim.now)
    sim.deliver = lambda sender, datagram: () if len(datagram) == 32 else (0.01,)
    sim.advance(1)
    assert not sim["B"].session_with(sim["A"])

    sim["B"].receive(seal(keypair_to(sim["A"], sim["B"]), bytes(32)), 0, sim["A"].endpoint)

    assert sim["B"].session_with(sim["A"])
    assert sim["B"].drops() == {"malformed_packet": 1}


def test_data_without_a_private_key_of_our_own_is_still_opened() -> None:
    """The session is there; it ends by age. No handshake is answered any more."""
    sim = Sim.connected()
    sim["B"].set_device(private_key=NO_KEY)
    (datagram,) = sealed_burst(sim, [packet("10.0.0.1", "10.0.0.2")])

    sim["B"].receive(datagram, 0, sim["A"].endpoint)

    assert len(sim["B"].delivered()) == 1


# -- rows that are judged together ---------------------------------------------------------------------------------


def bare_packet(is_v4: bool, size: int, declared: int = 0) -> bytes:
    """A packet of A of ``size`` bytes, padding included: a header and zeros."""
    length, source = declared or size, ip_address("10.0.0.1" if is_v4 else "fd00::1").packed
    if is_v4:
        return (pack("!BBHI", 0x45, 0, length, 0) + bytes([64, 59, 0, 0]) + source).ljust(size, b"\0")
    return (pack("!BxxxHBB", 0x60, length - 40, 59, 64) + source).ljust(size, b"\0")


@pytest.mark.parametrize("is_v4", [True, False])
@pytest.mark.parametrize("kind", ["of a header alone", "long", "the last one of a header alone", "padded"])
def test_a_burst_from_one_address_is_judged_by_one_look_up(kind: str, is_v4: bool) -> None:
    """A look-up for each row would cost more than its decryption. What is held from before is no part of it."""
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]
    header = 20 if is_v4 else 40
    first, last = {"of a header alone": (header, header), "the last one of a header alone": (96, header)}.get(kind, (96, 96))
    packets = [bare_packet(is_v4, first, declared=96 - row if kind == "padded" else 0) for row in range(5)]
    packets.append(bare_packet(is_v4, last))
    lookups: list[bytes] = []
    lookup = b.device.allowed_ips.lookup

    def counted(address: bytes) -> Peer | None:
        lookups.append(address)
        return lookup(address)

    b.device.allowed_ips.lookup = counted  # type: ignore[method-assign]
    for _ in range(2):
        hand_over(b, [seal(keypair_to(a, b), data) for data in packets])

    assert lookups == [ip_address("10.0.0.1" if is_v4 else "fd00::1").packed] * 2
    b.device.inbound.flush()
    declared = [data[: 96 - row] if kind == "padded" and row < 5 else data for row, data in enumerate(packets)]
    assert b.delivered() == declared * 2


@pytest.mark.parametrize(("is_v4", "byte"), [*((True, byte) for byte in range(4)), *((False, byte) for byte in range(16))])
def test_a_source_that_differs_in_one_byte_is_another_source(is_v4: bool, byte: int) -> None:
    sim = Sim.connected()
    packets = [bytearray(bare_packet(is_v4, 96)) for _ in range(3)]
    packets[1][(12 if is_v4 else 8) + byte] ^= 1

    hand_over(sim["B"], [seal(keypair_to(sim["A"], sim["B"]), bytes(data)) for data in packets])
    sim["B"].device.inbound.flush()

    assert sim["B"].delivered() == [packets[0], packets[2]]
    assert sim["B"].drops() == {"not_allowed_source": 1}


@pytest.mark.parametrize("is_v4", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", [kind for kind, reason in DROPPED.items() if reason != "replayed"])
def test_a_burst_that_is_wrong_in_the_same_way_from_end_to_end_is_dropped(kind: str, count: int, is_v4: bool) -> None:
    """All rows of one source: they are judged together, and must be as each would be by itself."""
    sim, old = three()
    burst = Burst(sim, 96, 0, old)
    for _ in range(count):
        burst.add(Item(kind, is_v4, is_tcp=True, trimmed=0, tos=0))

    sim["B"].receive(b"".join(burst.datagrams), 96 + 32, ELSEWHERE)

    assert sim["B"].delivered() == []
    assert sim["B"].drops() == {DROPPED[kind]: count}


# -- ECN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_v4", [True, False])
@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_congestion_marks_are_carried_inwards_and_the_header_checksum_stays_right(is_v4: bool, outer: int, inner: int) -> None:
    for tos in (inner, 0xFC | inner):
        flow = Stream(is_v4=is_v4, tos=tos, ident=0x1234 + tos)
        data = bytearray(flow.packets()[0])

        decapsulate_ecn(memoryview(data), outer)

        assert bytes(data) == replace(flow, tos=with_ecn(tos, outer)).packets()[0]


@given(ident=st.integers(0, 0xFFFF), ttl=st.integers(0, 255), tos=st.integers(0, 255), outer=st.integers(0, 3))
def test_the_checksum_is_right_whatever_it_was(ident: int, ttl: int, tos: int, outer: int) -> None:
    """One's complement has two zeros: an update that is off by one of them shows only now and then."""
    flow = Stream(ident=ident, ttl=ttl, tos=tos)
    data = bytearray(flow.packets()[0])

    decapsulate_ecn(memoryview(data), outer)

    assert bytes(data[:20]) == replace(flow, tos=with_ecn(tos, outer)).packets()[0][:20]


def test_the_checksum_is_right_for_every_identification() -> None:
    """Two sums in 65,536 need the carry of their carry."""
    header = bytearray(Stream(tos=2).packets()[0][:20])
    for ident in range(1 << 16):
        header[1] = 2
        header[4:6], header[10:12] = ident.to_bytes(2), bytes(2)
        header[10:12] = (-sum(unpack("!10H", header)) % 0xFFFF).to_bytes(2)

        decapsulate_ecn(memoryview(header), 3)

        assert header[1] == 3
        assert sum(unpack("!10H", header)) % 0xFFFF == 0


@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_a_mark_leaves_the_flow_label_alone(outer: int, inner: int) -> None:
    data = bytearray(Stream(is_v4=False, tos=inner).packets()[0])
    data[1:4] = bytes([data[1] | 0x0F]) + b"\xff\xff"
    expected = bytearray(data)
    expected[1] = with_ecn(inner, outer) << 4 | 0x0F

    decapsulate_ecn(memoryview(data), outer)

    assert data == expected


@pytest.mark.parametrize("is_v4", [True, False])
def test_a_marked_burst_becomes_a_marked_superpacket(is_v4: bool) -> None:
    sim = Sim.connected()
    source = ip_address("10.0.0.1" if is_v4 else "fd00::1").packed
    flow = Stream(is_v4=is_v4, payload=bytes(10 * 992), size=992, tos=0x02, source=source)
    datagrams = sealed_burst(sim, flow.packets())

    sim["B"].receive(b"".join(datagrams), len(datagrams[0]), sim["A"].endpoint, 3)

    assert len(sim["B"].writes) == 1
    assert sim["B"].delivered() == replace(flow, tos=0x03).packets()


def test_a_superpacket_of_two_trains_is_written_as_one_again() -> None:
    """What is held joins what comes next, whether that is a burst or a single datagram; order is kept, and flush is the end."""
    sim = Sim.connected()
    a, b = sim["A"], sim["B"]
    trains: list[tuple[bytes, int]] = []

    def keep(datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        trains.append((bytes(datagrams), segment))
        return True

    a.send = keep  # type: ignore[method-assign]
    mss = 1368
    header = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 52, mss, 20, 16)
    for segments in (45, 46, 47):
        trains.clear()
        payload = sim.random.randbytes((segments - 1) * mss + 700)
        tcp = pack("!HHIIBBHHH", 1, 2, 7, 7, 0x80, 0x10, 500, 0, 0) + bytes(12) + payload
        ip = bytearray(packet(a.address, b.address, bytes(len(tcp) - 8))[:20])
        ip[6:10] = (0x4000).to_bytes(2) + bytes([64, 6])  # don't fragment; TCP
        whole = bytes(ip) + tcp
        a.read(whole, header)
        a.device.outbound.flush(sim.now)
        assert len(trains) == (1 if segments == 45 else 2)

        b.writes.clear()
        for datagrams, segment in trains:
            b.device.inbound.buffer[: len(datagrams)] = datagrams
            b.device.inbound.datagrams_received(len(datagrams), segment, a.endpoint, b"", 0, sim.now)
        assert b.writes == []
        b.device.inbound.flush()

        assert [p[52:] for p in b.packets] == [payload]
