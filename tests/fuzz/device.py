"""Target: a whole device, and a script of everything that can happen to one.

A is the device under test. B is an honest peer. M is a peer too, but its keys are in the hands of the script: it seals what it
likes, under the counters it likes. The witness (:mod:`tests.fuzz.witness`) watches all three. Nothing may be raised, and when the
script is over and the network is good again, A and B hear each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from noise import crypto
from noise.constants import REJECT_AFTER_MESSAGES
from tests.fuzz.reader import Reader
from tests.fuzz.witness import WitnessedHost, WitnessedSim
from tests.sim import packet
from tests.test_hostile import ELSEWHERE, put_under_load
from tun.offload import VIRTIO_HEADER
from wgpy.config import SetPeer
from wgpy.uapi import UapiError, parse_set

MOST_STEPS = 24
RECOVERY = 20.8
"""Seconds: see tests/test_model.py."""
PACE = 3.0
"""Seconds between two packets of each while they recover."""
LONGEST = 1500
MACS = 32
TIMES = (0.001, 0.02, 0.3, 1.0, 5.0, 5.4, 10.1, 15.4, 61.0, 121.0, 166.0, 181.0, 541.0, 600.0)
COUNTERS = (
    0,
    8128,
    8129,
    2**60,
    2**60 + 1,
    2**63,
    REJECT_AFTER_MESSAGES - 1,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_MESSAGES + 1,
    2**64 - 2,
)


class Script:
    """One input: its steps, each a byte that says what happens and what that needs."""

    def __init__(self, data: bytes) -> None:
        self.reader = Reader(data)
        choices = self.reader.number()
        self.sim = sim = WitnessedSim("A", "B", "M", gro=bool(choices & 1))
        self.a, self.b, self.m = sim["A"], sim["B"], sim["M"]
        self.number = 0
        for one, other in ((self.a, self.b), (self.b, self.a), (self.a, self.m), (self.m, self.a)):
            introduce(one, other, keepalive=25 * (choices >> 1 & 1))
        if choices & 4:
            sim.connect("A", "B")
        if choices & 8:
            sim.connect("M", "A")
        self.steps: tuple[Callable[[], None], ...] = (
            self.honest_packet,
            self.wait,
            self.sealed_by_m,
            self.raw_datagrams,
            self.edited_message,
            self.from_tun,
            self.network,
            self.counters,
            self.configure,
            self.link,
        )

    def run(self) -> None:
        for _ in range(MOST_STEPS):
            if not self.reader:
                break
            self.steps[self.reader.number() % len(self.steps)]()
        self.recover()

    # -- steps

    def payload(self) -> bytes:
        self.number += 1
        return self.number.to_bytes(4).ljust(4 + self.reader.number(2) % LONGEST, b".")

    def honest_packet(self) -> None:
        one, other = (self.a, self.b) if self.reader.number() & 1 else (self.b, self.a)
        one.send_packet(packet(one.address, other.address, self.payload()))

    def wait(self) -> None:
        self.sim.advance(TIMES[self.reader.number() % len(TIMES)])

    def sealed_by_m(self) -> None:
        """M seals what is not a packet, or not one of its own."""
        inner = self.reader.piece()[:LONGEST]
        peer = self.m.device.peers.get(self.a.public_key)
        keypair = peer.keypairs.current if peer else None
        if keypair is None or keypair.send_counter >= REJECT_AFTER_MESSAGES:
            return
        message = bytearray(16) + bytes(16 + len(inner))
        message[0] = 4
        message[4:8] = keypair.remote_index.to_bytes(4, "little")
        message[8:16] = keypair.send_counter.to_bytes(8, "little")
        nonce = bytes(4) + bytes(message[8:16])
        keypair.encrypt_into(nonce, inner, None, memoryview(message)[16:])
        keypair.send_counter += 1
        self.sim.give_sealed(self.m, self.a.public_key, inner)
        self.a.receive(bytes(message), 0, self.m.endpoint)

    def raw_datagrams(self) -> None:
        """Bytes, as one datagram or as a burst."""
        data = self.reader.piece()[: 2 * LONGEST]
        segment = self.reader.number(2)
        if data:
            self.a.receive(data, segment if segment < len(data) else 0, ELSEWHERE, self.reader.number() & 3)

    def edited_message(self) -> None:
        """A message that was heard, edited, with mac1 put right or not, from elsewhere or from where it came, to A or to B."""
        captured = self.sim.captured
        if not captured:
            return
        heard = captured[-1 - self.reader.number() % len(captured)]
        choices = self.reader.number()
        host = self.b if choices & 1 else self.a
        datagram = bytearray(heard.datagram)
        for _ in range(choices >> 1 & 3):
            datagram[self.reader.number(2) % len(datagram)] ^= self.reader.number()
        if choices & 8 and len(datagram) > MACS:
            datagram[-MACS : -MACS // 2] = crypto.mac(crypto.hash_(b"mac1----" + host.public_key), bytes(datagram[:-MACS]))
        host.receive(bytes(datagram), 0, ELSEWHERE if choices & 16 else heard.source)

    def from_tun(self) -> None:
        """A virtio header and a packet, or superpacket, as the kernel would hand it to A."""
        piece = self.reader.piece()
        header, inner = piece[: VIRTIO_HEADER.size], piece[VIRTIO_HEADER.size :]
        if not inner:
            return
        self.a.read(inner, header)
        if self.reader.number() & 1:
            self.a.device.outbound.flush(self.sim.now)

    def network(self) -> None:
        choice = self.reader.number() % 4
        if choice == 0:
            self.sim.cut("ABM"[self.reader.number() % 3])
        elif choice == 1:
            self.sim.deliver = lambda sender, datagram: (0.01, 0.02)
        elif choice == 2:
            put_under_load(self.a)
        else:
            self.sim.heal()

    def counters(self) -> None:
        """M's next counter. Never one that it has used: that is not A's fault."""
        peer = self.m.device.peers.get(self.a.public_key)
        keypair = peer.keypairs.current if peer else None
        wanted = COUNTERS[self.reader.number() % len(COUNTERS)]
        if keypair is not None and wanted > keypair.send_counter:
            keypair.send_counter = wanted

    def configure(self) -> None:
        """The body of a set, as long as it leaves A its key."""
        with suppress(UapiError):
            changes = parse_set(self.reader.piece().decode("latin-1"))
            self.a.configure(*(change for change in changes if isinstance(change, SetPeer)))

    def link(self) -> None:
        choice = self.reader.number()
        if choice & 1:
            self.a.go_down()
            self.sim.advance(choice >> 1 & 3)
            self.a.device.up(self.sim.now)
        else:
            self.a.device.mtu_changed(576 + 8 * choice, self.sim.now)

    # -- the end

    def recover(self) -> None:
        """All is well again: whoever speaks is heard."""
        a, b, sim = self.a, self.b, self.sim
        sim.heal()
        a.device.outbound.flush(sim.now)
        others = a.device.peers.keys() - {b.public_key}
        a.forget_peers(sorted(others))
        for one, other in ((a, b), (b, a)):
            introduce(one, other)
        end = sim.now + RECOVERY
        while True:
            spoken = [self.spoken(one, other) for one, other in ((a, b), (b, a))]
            sim.advance(PACE)
            if sim.now > end + PACE:
                break
        assert all(map(sim.was_delivered, spoken)), "a packet was lost though all is well"

    def spoken(self, one: WitnessedHost, other: WitnessedHost) -> bytes:
        self.number += 1
        data = packet(one.address, other.address, b"spoken" + self.number.to_bytes(4))
        one.send_packet(data)
        return data


def introduce(one: WitnessedHost, other: WitnessedHost, keepalive: int = 0) -> None:
    one.configure(
        SetPeer(
            other.public_key,
            endpoint=other.endpoint,
            persistent_keepalive=keepalive,
            preshared_key=bytes(32),
            replace_allowed_ips=True,
            allowed_ips=other.own_prefixes,
        )
    )


def device(data: bytes) -> None:
    """A byte of choices, and steps."""
    Script(data).run()
