"""Whatever the network sends: nothing raises, no session changes, and everything that is thrown away is counted.

The device under test has a session, consumed an initiation and a response in its life, and has two handshakes under
way. What it is sent is random, or cut off, or a true message of which some bits were flipped: of those that it has had
already, and of those that it still waits for. In the end the true ones are delivered, and must be welcome.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise import crypto
from tests.sim import Host, Sim, packet
from wgpy.config import Endpoint
from wgpy.core.device import MAX_QUEUED_MESSAGES, UNDER_LOAD_MESSAGES, Device

ELSEWHERE = Endpoint("203.0.113.66", 6666)
A_MILLION = 1_000_000
MAC2 = 16
"""Bytes at the end of a handshake message which a receiver that is not under load does not look at."""


@dataclass(frozen=True)
class Template:
    """A true message. ``size`` bytes of it may be changed without that it stays acceptable."""

    message: bytes
    size: int


class Target:
    """A, which is attacked, and what is true."""

    def __init__(self) -> None:
        self.sim = sim = Sim("A", "B", "C", "D")
        for name in "BCD":
            sim["A"].peer(sim[name])
            sim[name].peer(sim["A"])
        a, b = sim["A"], sim["B"]
        self.host = a
        a.device.send_initiation(a.peer_of(b), sim.now)
        sim.advance(10)
        b.device.send_initiation(b.peer_of(a), sim.now)
        sim.advance(1)
        a.send_packet(packet(a.address, b.address))
        b.send_packet(packet(b.address, a.address, bytes(100)))
        sim.advance(1)
        had = [entry.datagram for entry in sim.sent("B")]

        self.data = [self._lost(b, packet(b.address, a.address, bytes(size))) for size in (4, 36, 36, 36, 1300)]
        a.device.send_initiation(a.peer_of(sim["C"]), sim.now)
        self.response = self._answer(sim["C"])
        a.device.send_initiation(a.peer_of(sim["D"]), sim.now)
        put_under_load(sim["D"])
        self.cookie_reply = self._answer(sim["D"])
        self.templates = [
            *[Template(message, len(message)) for message in (*had, *self.data, self.cookie_reply)],
            Template(self.response, len(self.response) - MAC2),
        ]
        kinds = {int.from_bytes(template.message[:4], "little") for template in self.templates}
        assert kinds == {1, 2, 3, 4}
        sim.log.clear()
        a.delivered()
        a.device.drops = dict.fromkeys(a.device.drops, 0)
        self.before = state(a.device)

    def _lost(self, sender: Host, data: bytes) -> bytes:
        self.sim.cut()
        sender.send_packet(data)
        self.sim.heal()
        return self.sim.log[-1].datagram

    def _answer(self, host: Host) -> bytes:
        """What ``host`` answers to the initiation that A has just sent; neither arrives by itself."""
        self.sim.cut()
        self.sim._flying.clear()
        host.receive(self.sim.sent("A")[-1].datagram, 0, self.host.endpoint)
        self.sim.heal()
        return self.sim.sent(host.name)[-1].datagram

    def is_true(self, datagram: bytes) -> bool:
        """Whether ``datagram`` is one that is still welcome, mac2 or not."""
        return datagram in (*self.data, self.cookie_reply) or datagram[:-MAC2] == self.response[:-MAC2]

    def must_be_unchanged(self, thrown_away: int) -> None:
        assert sum(self.host.device.drops.values()) == thrown_away
        assert state(self.host.device) == self.before
        assert self.host.writes == []

    def must_welcome_the_true_ones(self) -> None:
        a = self.host
        for message in (*self.data, self.response, self.cookie_reply):
            a.receive(message, 0, ELSEWHERE)
        assert len(a.delivered()) == len(self.data)
        assert a.session_with(self.sim["C"])
        cookies = a.peer_of(self.sim["D"]).cookies
        assert cookies is not None and cookies._cookie != bytes(16)


def state(device: Device) -> object:
    """All that sessions consist of, in values that can be compared."""
    peers = [
        (
            [
                keypair
                and (keypair.local_index, keypair.send_counter, keypair.replay_window.greatest, keypair.replay_window.missing)
                for keypair in (peer.keypairs.previous, peer.keypairs.current, peer.keypairs.next)
            ],
            peer.handshake,
            peer.cookies and (peer.cookies._cookie, peer.cookies._cookie_received_at, peer.cookies._last_mac1),
            (peer.latest_initiation.timestamp, peer.latest_initiation.consumed_at),
            list(peer.timers.deadlines),
            (peer.timers.handshake_attempts, peer.timers.last_sent_handshake, peer.timers.need_another_keepalive),
            (peer.source, list(peer.staged)),
        )
        for peer in device.peers.values()
    ]
    return device.snapshot(), peers, sorted(device.indices)


def put_under_load(host: Host) -> None:
    """By as many messages as that takes. Anybody can make them who knows the public key."""
    body = b"\x01" + bytes(115)
    mac1 = crypto.mac(crypto.hash_(b"mac1----" + host.public_key), body)
    for _ in range(UNDER_LOAD_MESSAGES):
        host.device.message_received(body + mac1 + bytes(16), ELSEWHERE, b"", host.sim.now)
    host.device._messages.clear()


def flipped(template: Template, bits: set[int]) -> bytes:
    message = bytearray(template.message)
    for bit in bits:
        message[bit >> 3] ^= 1 << (bit & 7)
    return bytes(message)


@st.composite
def hostile_messages(draw: st.DrawFn, templates: list[Template]) -> bytes:
    template = draw(st.sampled_from(templates))
    match draw(st.sampled_from(["random", "typed", "cut", "longer", "flipped"])):
        case "random":
            return draw(st.binary(max_size=300))
        case "typed":
            return bytes([draw(st.integers(0, 6)), 0, 0, 0]) + draw(st.binary(max_size=200))
        case "cut":
            return template.message[: draw(st.integers(0, len(template.message) - 1))]
        case "longer":
            return template.message + draw(st.binary(min_size=1, max_size=40))
        case _:
            return flipped(template, draw(st.sets(st.integers(0, template.size * 8 - 1), min_size=1, max_size=5)))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_hostile_messages_change_nothing_and_are_counted(data: st.DataObject) -> None:
    target = Target()
    messages = data.draw(st.lists(hostile_messages(target.templates), max_size=20))

    for message in messages:
        target.host.receive(message, 0, ELSEWHERE)

    target.must_be_unchanged(len(messages))
    target.must_welcome_the_true_ones()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_hostile_bursts_change_nothing_and_are_counted(data: st.DataObject) -> None:
    """As UDP_GRO delivers them: all of one length, the last may be shorter."""
    target = Target()
    count = 0
    for burst in data.draw(st.lists(st.lists(hostile_messages(target.templates), min_size=1, max_size=10), max_size=5)):
        segment = max(1, len(burst[0]))
        datagrams = [message[:segment].ljust(segment, b"\x77") for message in burst] + [burst[-1][: segment // 2]]
        hostile = [datagram for datagram in datagrams if datagram and not target.is_true(datagram)]
        target.host.receive(b"".join(hostile), segment, ELSEWHERE)
        count += max(1, len(hostile))

    target.must_be_unchanged(count)
    target.must_welcome_the_true_ones()


def a_million(target: Target, seed: int) -> Iterator[tuple[bytes, int]]:
    """Bursts and single messages, with their segment size, a million datagrams in all. Made cheaply: a hundred from one draw."""
    rng = random.Random(seed)
    left = A_MILLION
    while left:
        template = rng.choice(target.templates)
        length = len(template.message)
        kind = rng.randrange(4)
        made = []
        for _ in range(min(left, 100)):
            if kind == 0:
                made.append(rng.randbytes(rng.randrange(200)))
            elif kind == 1:
                made.append(bytes([rng.randrange(1, 5), 0, 0, 0]) + rng.randbytes(length - 4))
            elif kind == 2:
                made.append(template.message[: rng.randrange(length)])
            else:
                made.append(flipped(template, {rng.randrange(template.size * 8)}))
        left -= len(made)
        if kind in (1, 3) and rng.random() < 0.5:
            for start in range(0, len(made), 40):
                yield b"".join(made[start : start + 40]), length
        else:
            for message in made:
                yield message, 0


@pytest.mark.slow
def test_a_million_hostile_messages_change_nothing_and_are_counted() -> None:
    target = Target()
    receive = target.host.receive

    for messages, segment in a_million(target, seed=20240229):
        target.sim.now += 5e-5  # half a minute in all: more in a second that have a right mac1 would be load
        receive(messages, segment, ELSEWHERE)

    target.must_be_unchanged(A_MILLION)
    assert {reason for reason, count in target.host.drops().items() if count > 1000} == {
        "unknown_message",
        "unknown_index",
        "bad_mac1",
        "bad_tag",
        "bad_cookie_reply",
        "replayed_initiation",
    }
    target.must_welcome_the_true_ones()


def test_a_flood_that_knows_our_public_key_changes_nothing_and_is_counted() -> None:
    """The queue of handshake messages overflows, cookie replies are sent, and that is all."""
    target = Target()
    a = target.host
    body = b"\x01\0\0\0" + random.Random(1).randbytes(112)
    message = body + crypto.mac(crypto.hash_(b"mac1----" + a.public_key), body) + bytes(16)
    whole = message * 40

    for _ in range(110):
        a.device.inbound.buffer[: len(whole)] = whole
        a.device.inbound.datagrams_received(len(whole), len(message), ELSEWHERE, b"", 0, target.sim.now)
    while a.device.has_messages:
        a.device.handle_messages(4, target.sim.now)

    assert a.drops() == {"handshake_queue_full": 4400 - MAX_QUEUED_MESSAGES, "under_load": MAX_QUEUED_MESSAGES}
    assert {(train.endpoint, len(train.datagrams)) for train in a.trains if train.datagrams[0] == 3} == {(ELSEWHERE, 64)}
    assert state(a.device) == target.before
