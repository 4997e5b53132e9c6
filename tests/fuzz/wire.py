"""The wire fuzzer: a peer that has every right to speak, and uses it for ill.

It is made for a running WireGuard, any one, that has it for a peer: a :class:`tests.conformance.peer.Peer` is an address to
send from, the outer address, port and public key of who is attacked, and the private key of a peer of it. So it gets past mac1,
and past the AEAD wherever it wants to. :func:`attack` goes through the phases below, says what it saw go wrong, and gives a
:class:`Report`: what of all that was sealed may come out of the other end's interface, and how often. Whoever calls it watches
that interface, and the process: see tests/e2e/test_wire_fuzz.py.

After each phase the attacked one must still shake hands with us and answer a ping, to the address we send from.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from noise import crypto, tai64n
from noise.constants import LABEL_COOKIE
from noise.handshake import LocalStatic, RemoteStatic, create_initiation
from noise.messages import CookieReply, HandshakeInitiation, HandshakeResponse
from tests.conformance.forge import LOW_ORDER_POINTS
from tests.conformance.peer import COOKIE_REPLY, RESPONSE, TRANSPORT, Datagram, Peer, Session
from tests.fuzz.witness import trimmed
from tests.sim import packet
from tests.tun.packets import checksum
from wgpy.config import Prefix

PACE = 2000
"""Datagrams a second. A flood is another test."""
BREATH = 16
"""Datagrams between two looks at what came back."""
LONGEST = 2000
REMEMBERED = 3000
ATTEMPTS = 12
ATTEMPT_SECONDS = 1.5
MACS = 32
WINDOW = 8128
PAPERS_LIMIT = 2**64 - 2**13 - 1
KERNELS_LIMIT = 2**64 - 8130
BELOW_BOTH = PAPERS_LIMIT - 1


@dataclass
class Report:
    """``wrong`` is one line for each thing that was seen to go wrong from here."""

    sent: Counter[str] = field(default_factory=Counter)
    """Datagrams by phase."""
    wrong: list[str] = field(default_factory=list)
    _may_be_delivered: Counter[bytes] = field(default_factory=Counter)

    @property
    def may_be_delivered(self) -> int:
        """How many packets may be, and should be but for those that get lost."""
        return self._may_be_delivered.total()

    def judge(self, delivered: Iterable[bytes]) -> list[str]:
        """What is wrong with the packets that came out of the other end's interface, those of honest peers left out."""
        wrong = []
        for inner, count in Counter(delivered).items():
            allowed = self._may_be_delivered[inner]
            if count > allowed:
                why = "was delivered more often than it was sent" if allowed else "must never be delivered"
                wrong.append(f"a packet of {len(inner)} bytes {why}: {inner[:48].hex()}")
        return wrong


def attack(
    peer: Peer, sources: Sequence[Prefix], ping: tuple[str, str], *, seconds: float, seed: int, others: Sequence[Peer] = ()
) -> Report:
    """Attack whom ``peer`` is a peer of, for at least ``seconds`` and until every phase was gone through once.

    ``sources`` are the allowed IPs of ``peer`` there. ``ping`` is an IPv4 address out of them and one that answers pings at the
    other end. ``others`` are peers of other devices, at whom all that is sent is thrown as well.
    """
    fuzzer = WireFuzzer(peer, sources, ping, seed, others)
    end = time.monotonic() + seconds
    fuzzer.must_still_talk("at first")
    for phase in fuzzer.phases:
        fuzzer.go_through(phase)
    while time.monotonic() < end and not fuzzer.report.wrong:
        fuzzer.go_through(fuzzer.rng.choice(fuzzer.phases[1:]))
    return fuzzer.report


class WireFuzzer:
    """One attack. Each phase is a method that sends, and remembers what must not come of it."""

    def __init__(self, peer: Peer, sources: Sequence[Prefix], ping: tuple[str, str], seed: int, others: Sequence[Peer]) -> None:
        self.peer = peer
        self.sources = sources
        self.ping = ping
        self.others = others
        self.rng = random.Random(seed)
        self.report = Report()
        self.phases: tuple[Callable[[], None], ...] = (
            self.every_length,
            self.reserved_bytes,
            self.handshake_fields,
            self.inner_bytes,
            self.counters,
            self.mixed_sessions,
            self.cookie_replies,
            self.repetition,
        )
        self._phase = ""
        self._number = 0
        self._unanswerable: dict[int, str] = {}
        """Sender indices of messages that no response may come to, and why."""
        self._history: deque[bytes] = deque(maxlen=REMEMBERED)
        self._responses: deque[bytes] = deque(maxlen=100)
        self._session: Session | None = None
        self._previous: Session | None = None
        self._next_breath = time.monotonic()

    def go_through(self, phase: Callable[[], None]) -> None:
        self._phase = phase.__name__.replace("_", " ")
        phase()
        self.must_still_talk(f"after {self._phase}")

    # -- sending and listening

    def send(self, datagram: bytes, *, remember: bool = True) -> None:
        try:
            self.peer.send(datagram)
            for other in self.others:
                other.send(datagram)
        except OSError as error:  # an ICMP error to an earlier one, or a full queue
            self._note(f"sending failed: {error.strerror}")
        if remember:
            self._history.append(datagram)
        self.report.sent[self._phase] += 1
        if self.report.sent.total() % BREATH == 0:
            self._next_breath = max(self._next_breath + BREATH / PACE, time.monotonic())
            time.sleep(max(0.0, self._next_breath - time.monotonic()))
            self.listen(0)

    def listen(self, seconds: float) -> Datagram | None:
        """Look at what has come; gives the first datagram within ``seconds`` that is no surprise."""
        while (datagram := self.peer.receive(seconds)) is not None:
            if datagram.message == RESPONSE and datagram.receiver_index in self._unanswerable:
                self._note(f"a response to {self._unanswerable.pop(datagram.receiver_index)}")
            elif seconds:
                return datagram
        return None

    def _note(self, what: str) -> None:
        if what not in self.report.wrong:
            self.report.wrong.append(what)

    def index(self, why_no_response: str = "") -> int:
        """A sender index of our own; with a reason, one that no response may come to."""
        index = self.rng.getrandbits(32)
        if why_no_response:
            self._unanswerable[index] = why_no_response
        return index

    # -- what is true

    def shake_hands(self) -> Session | None:
        """A new session, confirmed. Retries, with a cookie if it is given one."""
        for _ in range(ATTEMPTS):
            index = self.index()
            self.send(self.peer.initiation(index=index))
            end = time.monotonic() + ATTEMPT_SECONDS
            while (left := end - time.monotonic()) > 0 and (datagram := self.listen(left)) is not None:
                if datagram.message == COOKIE_REPLY:
                    self.peer.holder.consume_cookie_reply(datagram.payload, time.monotonic())
                    time.sleep(0.1)
                    break
                if datagram.message == RESPONSE and datagram.receiver_index == index:
                    self._responses.append(datagram.payload)
                    self._previous, self._session = self._session, self.peer.finish(datagram)
                    self._unanswerable[index] = "an initiation that was answered before"
                    self.send(self._session.seal(b""))
                    return self._session
        return None

    def must_still_talk(self, when: str) -> None:
        """A new handshake, and a ping that is answered: to us, where we are."""
        self._phase = self._phase or "handshakes"
        session = self.shake_hands()
        if session is None:
            self._note(f"no handshake {when}")
            return
        for _ in range(ATTEMPTS):
            self.send(session.seal(self._allowed(self._echo_request())))
            end = time.monotonic() + ATTEMPT_SECONDS
            while (left := end - time.monotonic()) > 0 and (datagram := self.listen(left)) is not None:
                answer = session.open(datagram) if datagram.message == TRANSPORT else None
                if answer and answer[9] == 1 and answer[20] == 0:
                    return
        self._note(f"a ping was not answered {when}")

    def _echo_request(self) -> bytes:
        self._number += 1
        message = bytes([8, 0, 0, 0]) + self._number.to_bytes(4)
        message = message[:2] + checksum(message).to_bytes(2) + message[4:]
        inner = bytearray(packet(*self.ping, message))
        inner[2:4] = (20 + len(message)).to_bytes(2)
        inner[9] = 1
        del inner[20:28]
        inner[10:12] = bytes(2)
        inner[10:12] = checksum(bytes(inner[:20])).to_bytes(2)
        return bytes(inner)

    def _allowed(self, inner: bytes) -> bytes:
        """``inner``, which may now be delivered once more if it is a packet and from an address of ours."""
        whole = trimmed(inner)
        if whole is not None:
            source = ip_address(whole[12:16] if whole[0] >> 4 == 4 else whole[8:24])
            if any(source in prefix for prefix in self.sources):
                self.report._may_be_delivered[whole] += 1
        return inner

    def _own_packet(self) -> bytes:
        """A packet like no other, from an address of ours to nobody."""
        self._number += 1
        return packet(self.ping[0], "192.0.2.99", b"wire" + self._number.to_bytes(8))

    def _with_mac1(self, message: bytes) -> bytes:
        return message[:-MACS] + crypto.mac(self.peer.remote.mac1_key, message[:-MACS]) + bytes(MACS // 2)

    def _current(self) -> Session | None:
        return self._session or self.shake_hands()

    # -- the phases

    def every_length(self) -> None:
        """Every length from 0 to 2000, of each type and of none, with mac1 right where there is room for one."""
        for length in range(LONGEST + 1):
            for kind in (1, 2, 3, 4, self.rng.randrange(5, 256)):
                message = bytearray(self.rng.randbytes(length))
                message[:4] = bytes([kind, 0, 0, 0])[:length]
                if kind in (1, 2) and length >= MACS + 8:
                    message[4:8] = self.index(f"a random message of type {kind} and length {length}").to_bytes(4, "little")
                    message = bytearray(self._with_mac1(bytes(message)))
                self.send(bytes(message), remember=False)

    def reserved_bytes(self) -> None:
        """True messages, but for one of the three bytes behind the type."""
        session = self._current()
        for at in (1, 2, 3):
            for value in (1, 0x80, 0xFF):
                initiation = bytearray(self.peer.initiation(index=self.index(f"an initiation with {value} in byte {at}")))
                initiation[at] = value
                self.send(self._with_mac1(bytes(initiation)))
                if session is not None:
                    sealed = bytearray(session.seal(self._own_packet()))
                    sealed[at] = value
                    self.send(bytes(sealed))
                    session.counter += 1

    def handshake_fields(self) -> None:
        """Initiations with mac1 right, and one byte of one field not: an ephemeral that is not ours or of low order, a static
        key that nobody knows, a timestamp of yesterday; and responses to nothing."""
        for at in range(8, 116):
            message = bytearray(self.peer.initiation(index=self.index(f"an initiation with another byte {at}")))
            message[at] ^= 1 << self.rng.randrange(8)
            self.send(self._with_mac1(bytes(message)))
        for point in LOW_ORDER_POINTS:
            message = bytearray(self.peer.initiation(index=self.index("an initiation with an ephemeral of low order")))
            message[8:40] = point
            self.send(self._with_mac1(bytes(message)))
        yesterday = tai64n.timestamp(time.time_ns() - 86_400 * 10**9)
        for stamp in (bytes(12), yesterday):
            self.send(self.peer.initiation(stamp=stamp, index=self.index("an initiation of yesterday")))
        stranger = LocalStatic(os.urandom(32))
        remote = RemoteStatic(stranger, self.peer.remote.public)
        index = self.index("an initiation of a stranger")
        unknown, _ = create_initiation(stranger, remote, os.urandom(32), index, tai64n.timestamp(time.time_ns()))
        self.send(self._with_mac1(unknown))
        for _ in range(20):
            receiver = self._session.keys.remote_index if self._session else self.index()
            random_response = HandshakeResponse(self.index(), receiver, os.urandom(32), os.urandom(16))
            self.send(self._with_mac1(random_response.pack()))

    def inner_bytes(self) -> None:
        """Authentic transport data, with anything inside: bytes, headers cut short, lengths that lie, sources of others."""
        session = self._current()
        if session is None:
            return
        for _ in range(1000):
            self.send(session.seal(self._allowed(self._some_inner())))

    def _some_inner(self) -> bytes:
        rng = self.rng
        inner = bytearray(self._own_packet() + rng.randbytes(rng.randrange(100)))
        match rng.randrange(8):
            case 0:
                return rng.randbytes(rng.randrange(1, 1400))
            case 1:
                return bytes(inner[: rng.randrange(1, 21)])
            case 2:
                inner[2:4] = rng.choice([0, 19, 20, len(inner) + 1, 65535, rng.randrange(65536)]).to_bytes(2)
            case 3:
                inner[12:16] = rng.randbytes(4)
            case 4:
                inner[12:16] = ip_address(self.ping[1]).packed
            case 5:
                inner[0] = rng.choice([0x00, 0x44, 0x4F, 0x50, 0x60, 0x65, 0xF5])
            case 6:
                ipv6 = bytearray(40 + rng.randrange(30))
                ipv6[0] = 0x60
                ipv6[4:6] = rng.choice([0, 1, len(ipv6) - 40, 65495, 65496, 65535]).to_bytes(2)
                ipv6[6], ipv6[8:40] = 59, rng.randbytes(32)
                inner = ipv6
        return bytes(inner)

    def counters(self) -> None:
        """The edges of the window, and of the counter itself: what is seen, too old, or beyond the limit is not to be
        delivered."""
        session = self.shake_hands()
        if session is None:
            return
        for counter, is_new in (
            *[(20_000, True), (20_000, False), (20_000 - WINDOW, True), (20_000 - WINDOW, False), (20_000 - WINDOW - 1, False)],
            *[(19_999, True), (19_999, False), (20_001, True), (0, False), (5, False)],
            *[(2**32, True), (20_001, False), (2**60, True), (2**60 + 1, True), (2**63, True), (2**63, False)],
            *[(KERNELS_LIMIT, False), (2**64 - 1, False), (2**64 - 2, False), (BELOW_BOTH, True), (BELOW_BOTH, False)],
            *[(KERNELS_LIMIT, False), (2**64 - 1, False), (2**63, False)],
        ):
            inner = self._own_packet()
            self.send(session.seal(self._allowed(inner) if is_new else inner, counter))
        self._session = None  # its counters are used up

    def mixed_sessions(self) -> None:
        """Two sessions: the index of one, the keys of the other; a session's index where a handshake's belongs, and the
        reverse."""
        old, new = self._current(), self.shake_hands()
        if old is None or new is None:
            return
        for one, other in ((old, new), (new, old)):
            for counter in (*range(1000, 1010), BELOW_BOTH, 2**64 - 1):
                sealed = one.seal(self._own_packet(), counter)
                self.send(sealed[:4] + other.keys.remote_index.to_bytes(4, "little") + sealed[8:])
        pending = self.index("an initiation whose response is never asked for")
        del self._unanswerable[pending]
        self.peer.initiation(index=pending)
        for index in (pending, new.keys.local_index, old.keys.local_index):
            sealed = new.seal(self._own_packet(), 2000)
            self.send(sealed[:4] + index.to_bytes(4, "little") + sealed[8:])
        for response in self._responses:  # their own messages, sent back to them
            self.send(response)
            self.send(self._with_mac1(response))

    def cookie_replies(self) -> None:
        """Cookie replies: forged, true, true again, and true of another message; none of them may end a session."""
        session = self._current()
        if session is None:
            return
        index = session.keys.remote_index
        for _ in range(50):
            self.send(CookieReply(index, os.urandom(24), os.urandom(32)).pack())
        key = crypto.hash_(LABEL_COOKIE + self.peer.public)
        for response in self._responses:
            mac1 = response[-MACS : -MACS // 2]
            nonce = os.urandom(24)
            reply = CookieReply(index, nonce, crypto.xaead_seal(key, nonce, os.urandom(16), mac1)).pack()
            self.send(reply)
            self.send(reply)

    def repetition(self) -> None:
        """Everything that was ever sent, once more: by itself, then with one bit changed, then from another port."""
        everything = list(self._history)
        for datagram in everything:
            if (initiation := HandshakeInitiation.unpack(datagram)) is not None:
                self._unanswerable.setdefault(initiation.sender_index, "an initiation that is old")
        for datagram in everything:
            self.send(datagram, remember=False)
        for datagram in self.rng.sample(everything, min(2000, len(everything))):
            if datagram and datagram[0] == TRANSPORT and len(datagram) > MACS:
                changed = bytearray(datagram)
                changed[self.rng.randrange(8, len(changed))] ^= 1 << self.rng.randrange(8)
                self.send(bytes(changed), remember=False)
        here = self.peer.socket
        host = ip_address(self.peer.address[0])
        self.peer.socket = self.peer._open(host, 0)
        try:
            for datagram in everything[-2000:]:
                self.send(datagram, remember=False)
            self.listen(0)
        finally:
            self.peer.socket.close()
            self.peer.socket = here
