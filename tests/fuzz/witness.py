"""A network of simulated devices in which whatever must never happen is noticed at once.

:class:`WitnessedSim` is tests/sim.py's, with devices that are watched from outside: from what they are told, what they send and
what they write, and from a table of prefixes of its own. It asserts, at the moment it happens:

* a packet is delivered only if it was sent, to whom it was routed, under keys of who sent it, from an address that belongs to
  that peer now, and once;
* no receiver index and counter are sent twice: the pair names a key and a nonce;
* data is sent only under a session that its receiver has, and that has not ended by a new key, a start, or a link that was down;
  it is delivered only while that is younger than 180 s;
* an initiation leaves at least 5 s after the last handshake message to that peer, unless something reset the gate;
* in no minute does a host send more than a bounded number of messages that are not data.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tests.fuzz.offload import without_what_is_made_anew
from tests.sim import Host, Sim, kind_of
from tun.offload import OffloadError, packets_of
from wgpy.config import DEFAULT_MTU, Change, Endpoint, Prefix, SetDevice, SetPeer
from wgpy.core.device import Device
from wgpy.core.peer import Peer

REJECT_AFTER_TIME = 180.0
REKEY_TIMEOUT = 5.0
MESSAGES_A_MINUTE = 60
"""To each peer: at most 13 initiations and as many responses to the peer's, a keepalive that confirms each, 12 persistent
keepalives where they are sent every 5 s, and 6 passive ones come to 57."""
MESSAGES_A_RESET = 12
"""What each reset of a session adds, at either end: an initiation, a response, a confirmation, and retries of them."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Given:
    """A packet was given to a host, whose table said for which key it was."""

    sender: WitnessedHost
    receiver: bytes | None


@dataclass
class Captured:
    """A datagram that somebody heard on its way from ``source`` to ``endpoint``."""

    datagram: bytes = field(repr=False)
    kind: str
    sender: WitnessedHost
    endpoint: Endpoint
    source: Endpoint


class WitnessedHost(Host):
    """A host with a wall clock of its own, and a table of prefixes that does not trust the device's."""

    sim: WitnessedSim
    wall_offset = 0.0
    """By how much its wall clock is wrong."""
    is_asleep = False

    def __init__(self, sim: WitnessedSim, name: str, number: int, mtu: int) -> None:
        self.table: dict[Prefix, bytes] = {}
        self.gates: dict[Peer, float] = {}
        """When a handshake message was last sent to a peer."""
        self.chatter: deque[float] = deque()
        """When messages that are no data were sent in the last minute."""
        self.sent_under: set[int] = set()
        """Receiver indices of the data it sent."""
        self.ended: set[int] = set()
        """Those that must not be used any more: it was down, started again, or has another key."""
        self.consumed: dict[bytes, None] = {}
        """Datagrams that the device took: played back to it they must change nothing."""
        super().__init__(sim, name, number, mtu)
        self.identities = {self.public_key}
        """Every public key it has had."""

    def _new_device(self) -> Device:
        sim = self.sim
        device = Device(
            self,
            random_bytes=sim.random.randbytes,
            jitter=lambda: sim.random.uniform(0, 1 / 3),
            wall_clock=lambda: int((sim.now + sim.epoch + self.wall_offset) * 1e9),
            mtu=self.mtu,
        )
        device.apply([SetDevice(private_key=self.private_key, listen_port=51820)], sim.now)
        device.up(sim.now)
        return device

    @property
    def own_prefixes(self) -> tuple[Prefix, ...]:
        return ip_network(self.address), ip_network(self.address6)

    # what is done to it

    def restart(self) -> None:
        self.table.clear()
        self.consumed.clear()
        self.reset()
        super().restart()

    def reset(self) -> None:
        """Sessions end here, and every gate is open again."""
        self.gates.clear()
        self.ended |= self.sent_under
        self.sim.resets.append(self.sim.now)

    def configure(self, *changes: Change) -> None:
        """Apply changes, to the device and to our own idea of its table."""
        for change in changes:
            if isinstance(change, SetPeer):
                self._set_table(change)
                if change.remove:
                    self.consumed.clear()  # with the peer the device forgets which initiations it has seen
                    self.sim.resets.append(self.sim.now)
            elif change.private_key is not None:
                self.reset()
        self.device.apply(changes, self.sim.now)
        if self.device.local is not None:
            self.identities.add(self.device.local.public)

    def _set_table(self, change: SetPeer) -> None:
        """Protocol 1.13: a prefix has one owner, the one who was given it last."""
        key = change.public_key
        is_own = self.device.local is not None and key == self.device.local.public
        if is_own or (change.update_only and key not in self.device.peers):
            return
        if change.remove or change.replace_allowed_ips:
            self.table = {prefix: owner for prefix, owner in self.table.items() if owner != key}
        if change.remove:
            return
        self.table.update(dict.fromkeys(change.allowed_ips, key))
        for prefix in change.removed_allowed_ips:
            if self.table.get(prefix) == key:
                del self.table[prefix]

    def forget_peers(self, keys: Iterable[bytes]) -> None:
        self.configure(*(SetPeer(key, remove=True) for key in keys))

    def owner(self, address: bytes) -> bytes | None:
        """Whose an address is, by looking at every prefix."""
        where = ip_address(address)
        found = [(prefix.prefixlen, key) for prefix, key in self.table.items() if where in prefix]
        return max(found)[1] if found else None

    def go_down(self) -> None:
        self.reset()
        self.device.down()

    # what is seen of it

    def read(self, packet: bytes, header: bytes = bytes(10)) -> None:
        with suppress(OffloadError):  # then it must not be sent at all
            for one in packets_of((header, packet)):
                self.sim.give(self, one)
        super().read(packet, header)

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        whole = bytes(datagrams)
        for at in range(0, len(whole), segment):
            self.sim.sent_by(self, whole[at : at + segment], endpoint)
        return super().send(datagrams, segment, endpoint, source, ds)

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        super().write(buffers)
        for packet in packets_of((self.writes[-1],)):
            self.sim.delivered_to(self, packet)

    def receive(self, datagrams: bytes, segment: int, endpoint: Endpoint, ecn: int = 0) -> None:
        if self.is_asleep:
            return
        step = segment or len(datagrams)
        each = [datagrams[at : at + step] for at in range(0, len(datagrams), step)]
        self.sim.receiving = {int.from_bytes(datagram[4:8], "little") for datagram in each}
        before, drops = self.received_bytes(), sum(self.device.drops.values())
        super().receive(datagrams, segment, endpoint, ecn)
        self.sim.receiving = set()
        took_cookie = datagrams[:1] == b"\3" and sum(self.device.drops.values()) == drops
        if took_cookie or self.received_bytes() == before + len(datagrams):  # all of them were taken
            self.consumed |= dict.fromkeys(each)
        for index, (_, keypair) in self.device.indices.items():
            if keypair is not None:
                self.sim.sessions.setdefault(index, self.sim.now)

    def received_bytes(self) -> int:
        return sum(peer.rx_bytes for peer in self.device.peers.values())


class WitnessedSim(Sim):
    """A :class:`Sim` of witnessed hosts."""

    hosts: dict[str, WitnessedHost]  # type: ignore[assignment]

    def __init__(self, *names: str, seed: int = 1, mtu: int = DEFAULT_MTU, gro: bool = False) -> None:
        super().__init__(seed=seed, mtu=mtu, gro=gro)
        self.given: defaultdict[bytes, list[Given]] = defaultdict(list)
        """Packets as they may be delivered: up to their length, and but for checksums, which may be made anew."""
        self.deliveries: Counter[bytes] = Counter()
        self.nonces: set[bytes] = set()
        self.sessions: dict[int, float] = {}
        """Receiver indices, and since when a host has the session that each names."""
        self.captured: list[Captured] = []
        self.resets: deque[float] = deque(maxlen=1000)
        """When sessions ended for a reason that is nobody else's."""
        self.receiving: set[int] = set()
        """The receiver indices of what some host is looking at."""
        self.hosts = {name: WitnessedHost(self, name, number, mtu) for number, name in enumerate(names, 1)}

    def __getitem__(self, name: str) -> WitnessedHost:
        return self.hosts[name]

    def give(self, sender: WitnessedHost, packet: bytes) -> None:
        """The kernel gives a packet to a host."""
        destination = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        if (whole := trimmed(packet)) is not None:
            self.given[without_what_is_made_anew(whole)].append(Given(sender, sender.owner(destination)))

    def give_sealed(self, sender: WitnessedHost, receiver: bytes, inner: bytes) -> None:
        """Something is sealed under the keys of two hosts without having been given to either."""
        if (whole := trimmed(inner)) is not None:
            self.given[without_what_is_made_anew(whole)].append(Given(sender, receiver))

    def delivered_to(self, host: WitnessedHost, packet: bytes) -> None:
        bare = without_what_is_made_anew(packet)
        given = self.given.get(bare, [])
        self.deliveries[bare] += 1
        assert given, "a packet was delivered that nobody sent"
        assert self.deliveries[bare] <= len(given), "a packet was delivered twice"
        given = [one for one in given if one.receiver in host.identities]
        assert given, "a packet was delivered to whom it was not sent"
        source = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
        owner = host.owner(source)
        assert any(owner in one.sender.identities for one in given), "a packet's source is not an address of its sender"
        since = [self.sessions[index] for index in self.receiving & self.sessions.keys()]
        assert since, "a packet was delivered without a session"
        assert self.now < max(since) + REJECT_AFTER_TIME, "a packet was delivered under an old session"

    def was_delivered(self, packet: bytes) -> bool:
        return self.deliveries[without_what_is_made_anew(packet)] == 1

    def sent_by(self, host: WitnessedHost, datagram: bytes, endpoint: Endpoint) -> None:
        kind = kind_of(datagram)
        self.captured.append(Captured(datagram, kind, host, endpoint, host.endpoint))
        index = int.from_bytes(datagram[4:8], "little")
        if kind in ("data", "keepalive"):
            assert datagram[:16] not in self.nonces, "a counter was used twice under a key"
            self.nonces.add(datagram[:16])
            assert index in self.sessions, "data was sent under a session that its receiver does not have"
            assert index not in host.ended, "data was sent under a session that had ended"
            host.sent_under.add(index)
        if kind in ("initiation", "response"):
            peer = host.device.indices[index][0]
            gate = host.gates.get(peer)
            if kind == "initiation" and gate is not None:
                assert self.now >= gate + REKEY_TIMEOUT - ROUNDING, "an initiation within 5 s of the last handshake message"
            host.gates[peer] = self.now
        if kind in ("initiation", "response", "keepalive"):
            self._count(host)

    def _count(self, host: WitnessedHost) -> None:
        chatter = host.chatter
        chatter.append(self.now)
        while chatter[0] < self.now - 60:
            chatter.popleft()
        resets = sum(1 for at in self.resets if at >= self.now - 60)
        allowed = MESSAGES_A_MINUTE * max(1, len(host.device.peers)) + MESSAGES_A_RESET * resets
        assert len(chatter) <= allowed, f"a storm: {Counter(entry.kind for entry in self.captured[-len(chatter) :])}"

    def sleep(self, name: str, seconds: float) -> None:
        """A host is suspended: nothing reaches it, and it does nothing. Its clock goes on."""
        host = self.hosts.pop(name)
        host.is_asleep = True
        try:
            self.advance(seconds)
        finally:
            host.is_asleep = False
            self.hosts = dict(sorted({**self.hosts, name: host}.items()))
        host.device.expire(self.now)


def trimmed(packet: bytes) -> bytes | None:
    """What is delivered of a packet, which ends where its header says (protocol 1.6); None if it has no possible length."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        length, least = int.from_bytes(packet[2:4]), 20
    elif version == 6 and len(packet) >= 40:
        length, least = int.from_bytes(packet[4:6]) + 40, 40
    else:
        return None
    return packet[:length] if least <= length <= len(packet) else None


FLOATING: tuple[Prefix, ...] = (ip_network("10.9.0.0/24"), ip_network("10.9.0.128/25"), ip_network("fd09::/64"))
"""Prefixes that are nobody's by nature, and are given to one peer and another."""
