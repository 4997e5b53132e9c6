"""Devices on a virtual clock and a network that does what it is told.

Nothing sleeps: :meth:`Sim.advance` jumps from one announced deadline or arrival to the next. The network keeps a log of
every datagram (when, who, what), and can lose, delay, duplicate or reorder. A device that announces a deadline and does
nothing when it comes makes the simulation fail instead of spin.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from math import inf

from noise import crypto
from tun.offload import packets_of
from wgpy.config import DEFAULT_MTU, NO_KEY, Endpoint, Prefix, SetDevice, SetPeer
from wgpy.core.device import Device, Outputs, Way, as_it_came
from wgpy.core.peer import Peer

LATENCY = 0.01
KINDS = {1: "initiation", 2: "response", 3: "cookie reply", 4: "data"}


@dataclass(frozen=True)
class Sent:
    """One datagram of the log. ``kind`` is initiation, response, cookie reply, data or keepalive."""

    at: float
    sender: str
    kind: str
    size: int
    ds: int
    datagram: bytes = field(repr=False)


@dataclass(frozen=True)
class Train:
    """One call of a device's ``send``, as it was made."""

    datagrams: bytes = field(repr=False)
    segment: int
    endpoint: Endpoint
    source: bytes
    ds: int

    def __iter__(self) -> Iterator[bytes]:
        return (self.datagrams[start : start + self.segment] for start in range(0, len(self.datagrams), self.segment))


def kind_of(datagram: bytes) -> str:
    if len(datagram) == 32 and datagram[0] == 4:
        return "keepalive"
    return KINDS.get(datagram[0], "unknown")


class Host(Outputs):
    """A device and its place in the simulated network."""

    def __init__(self, sim: Sim, name: str, number: int, mtu: int) -> None:
        self.sim = sim
        self.name = name
        self.mtu = mtu
        self.endpoint = Endpoint(f"192.0.2.{number}", 51820)
        self.address = f"10.0.0.{number}"
        self.address6 = f"fd00::{number}"
        self.private_key = crypto.clamp(bytes([number]) * 32)
        self.public_key = crypto.public_key(self.private_key)
        self.writes: list[bytes] = []
        """What the device wrote to its TUN: packets and superpackets, virtio header first."""
        self.trains: deque[Train] = deque(maxlen=1000)
        """What the device sent last, call by call."""
        self.takes_sends = True
        """What ``send`` answers: whether the socket takes a train."""
        self.receives_many = False
        """Whether datagrams are received as under load."""
        self.way: Callable[[Endpoint, bytes], Way] = as_it_came
        """What the device is told of the way to an endpoint."""
        self.refused: list[bytes] = []
        """Packets for which the device found nobody."""
        self.device = self._new_device()

    def _new_device(self) -> Device:
        sim = self.sim
        device = Device(
            self,
            random_bytes=sim.random.randbytes,
            jitter=lambda: sim.random.uniform(0, 1 / 3),
            wall_clock=lambda: int((sim.now + sim.epoch) * 1e9),
            mtu=self.mtu,
            way=lambda endpoint, arrival: self.way(endpoint, arrival),
            unreachable=self._refuse,
        )
        device.apply([SetDevice(private_key=self.private_key, listen_port=51820)], sim.now)
        device.up(sim.now)
        return device

    def restart(self) -> None:
        """A new process with the same key: it has to be told its peers again."""
        self.device = self._new_device()

    # the device's outputs

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        assert segment > 0
        train = Train(bytes(datagrams), segment, endpoint, source, ds)
        self.trains.append(train)
        if self.takes_sends:
            self.sim.transmit(self, train)
        return self.takes_sends

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        self.writes.append(b"".join(buffers))

    @property
    def packets(self) -> list[bytes]:
        """What the device wrote to its TUN, without virtio headers: superpackets are uncut."""
        return [write[10:] for write in self.writes]

    def _refuse(self, packet: memoryview, now: float) -> None:
        assert now == self.sim.now
        self.refused.append(bytes(packet))

    # what a test does to it

    def peer(self, other: Host, *, endpoint: bool = True, **kwargs: object) -> None:
        """Make ``other`` a peer, with its addresses as the allowed IPs."""
        own: tuple[Prefix, ...] = (ip_network(other.address), ip_network(other.address6))
        fields = {"allowed_ips": own, "endpoint": other.endpoint if endpoint else None, **kwargs}
        self.device.apply([SetPeer(other.public_key, **fields)], self.sim.now)  # type: ignore[arg-type]

    def peer_of(self, other: Host) -> Peer:
        """What this host's device knows of ``other``."""
        return self.device.peers[other.public_key]

    def set_device(self, **kwargs: object) -> None:
        self.device.apply([SetDevice(**kwargs)], self.sim.now)  # type: ignore[arg-type]

    def set_peer(self, other: Host, **kwargs: object) -> None:
        self.device.apply([SetPeer(other.public_key, **kwargs)], self.sim.now)  # type: ignore[arg-type]

    def send_packet(self, packet: bytes, header: bytes = bytes(10)) -> None:
        """What the kernel does: a packet appears on the TUN."""
        self.read(packet, header)
        self.device.outbound.flush(self.sim.now)

    def read(self, packet: bytes, header: bytes = bytes(10)) -> None:
        data = header + packet
        start = 0
        for buffer in self.device.outbound.buffers:
            part = data[start : start + len(buffer)]
            buffer[: len(part)] = part
            start += len(part)
        self.device.outbound.packet_read(len(data), self.sim.now)

    def receive(self, datagrams: bytes, segment: int, endpoint: Endpoint, ecn: int = 0) -> None:
        """Datagrams arrive, as one UDP_GRO burst if there are several."""
        inbound = self.device.inbound
        if self.receives_many:
            inbound.many_received([(memoryview(datagrams), segment, endpoint, b"", ecn)], self.sim.now)
        else:
            inbound.buffer[: len(datagrams)] = datagrams
            inbound.datagrams_received(len(datagrams), segment, endpoint, b"", ecn, self.sim.now)
        inbound.flush()
        while self.device.has_messages:
            self.device.handle_messages(16, self.sim.now)

    def delivered(self) -> list[bytes]:
        """The packets that the device wrote, superpackets cut as the kernel would; and forget them."""
        writes, self.writes = self.writes, []
        return [packet for write in writes for packet in packets_of((write,))]

    def drops(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.device.drops.items() if count}

    def session_with(self, other: Host) -> bool:
        return self.peer_of(other).can_send(self.sim.now)


class Sim:
    """``Sim("A", "B")`` has ``sim["A"]`` and ``sim["B"]``; the clock begins at 1000 s."""

    def __init__(self, *names: str, seed: int = 1, mtu: int = DEFAULT_MTU, gro: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.epoch = 1_700_000_000.0
        self.log: list[Sent] = []
        self.deliver: Callable[[Host, bytes], Iterable[float]] = lambda sender, datagram: (LATENCY,)
        """For a datagram, after how many seconds each copy of it arrives; () is a loss."""
        self.gro = gro
        """Whether a train arrives in one piece, as with UDP_GRO. It is then lost, delayed and duplicated as one, too."""
        self._flying: list[tuple[float, int, Host, Train, Endpoint]] = []
        self._number = 0
        self.hosts = {name: Host(self, name, number, mtu) for number, name in enumerate(names, 1)}

    @classmethod
    def pair(cls, *, preshared_key: bytes = NO_KEY, seed: int = 1, mtu: int = DEFAULT_MTU, gro: bool = False) -> Sim:
        """A and B, who know each other."""
        sim = cls("A", "B", seed=seed, mtu=mtu, gro=gro)
        sim["A"].peer(sim["B"], preshared_key=preshared_key)
        sim["B"].peer(sim["A"], preshared_key=preshared_key)
        return sim

    @classmethod
    def connected(cls, *, seed: int = 1, mtu: int = DEFAULT_MTU, gro: bool = False) -> Sim:
        """A and B with a session that A initiated and B confirmed; nothing is logged or delivered yet."""
        sim = cls.pair(seed=seed, mtu=mtu, gro=gro)
        sim.connect("A", "B")
        return sim

    def connect(self, initiator: str, responder: str) -> None:
        """Have a session of two hosts that know each other, in which nobody waits for anything; forget what was logged so far."""
        one, two = self[initiator], self[responder]
        one.device.send_initiation(one.peer_of(two), self.now)
        self.advance(1)
        assert one.session_with(two) and two.session_with(one)
        self.log.clear()
        for host in self.hosts.values():
            host.trains.clear()
            host.delivered()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def cut(self, *senders: str) -> None:
        """Lose everything (that the named send) from now on."""
        self.deliver = lambda sender, datagram: () if not senders or sender.name in senders else (LATENCY,)

    def heal(self) -> None:
        self.deliver = lambda sender, datagram: (LATENCY,)

    def transmit(self, sender: Host, train: Train) -> None:
        for datagram in train:
            self.log.append(Sent(self.now, sender.name, kind_of(datagram), len(datagram), train.ds, datagram))
        pieces = [train] if self.gro else [replace(train, datagrams=datagram, segment=len(datagram)) for datagram in train]
        for host in self.hosts.values():
            if host.endpoint == train.endpoint:
                for piece in pieces:
                    for delay in self.deliver(sender, piece.datagrams):
                        self._number += 1
                        heapq.heappush(self._flying, (self.now + delay, self._number, host, piece, sender.endpoint))

    def sent(self, sender: str, *kinds: str) -> list[Sent]:
        """The log's entries of ``sender``, of some kinds only if any are named."""
        return [entry for entry in self.log if entry.sender == sender and (not kinds or entry.kind in kinds)]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        stuck = 0
        while True:
            deadline = min((host.device.next_deadline() for host in self.hosts.values()), default=inf)
            arrival = self._flying[0][0] if self._flying else inf
            step = min(deadline, arrival)
            if step > end:
                break
            stuck = stuck + 1 if step <= self.now else 0
            assert stuck < 10_000, "a device announces a deadline and does nothing about it"
            self.now = max(self.now, step)
            if arrival <= deadline:
                _, _, host, train, sender = heapq.heappop(self._flying)
                host.receive(train.datagrams, train.segment, sender, train.ds & 3)
            else:
                for host in self.hosts.values():
                    host.device.expire(self.now)
        self.now = end


def packet(source: str, destination: str, payload: bytes = b"ping", tos: int = 0) -> bytes:
    """An IPv4 UDP packet with right checksums nowhere looked at but in the header."""
    length = 28 + len(payload)
    header = bytearray(
        bytes([0x45, tos])
        + length.to_bytes(2)
        + bytes(4)
        + bytes([64, 17, 0, 0])
        + ip_address(source).packed
        + ip_address(destination).packed
    )
    total = sum(int.from_bytes(header[i : i + 2]) for i in range(0, 20, 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~total & 0xFFFF).to_bytes(2)
    return bytes(header) + (9).to_bytes(2) * 2 + (8 + len(payload)).to_bytes(2) + bytes(2) + payload
