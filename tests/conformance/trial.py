"""A trial: one behaviour, one fresh box, and whatever the behaviour opens, which is closed with it.

    peer = trial.peer()              a peer of the box, by hand, with its allowed IPs; the interface comes up with the first
    session = peer.initiate()
    session.send(trial.inward(b"hello"))
    assert trial.inner.receive() == b"hello"

Packets inside the tunnel are UDP: ``inward`` goes from behind the tunnel to the tester's inner leg, ``outward`` the other way.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

from controller.demo.topology import Address
from noise.crypto import clamp, public_key
from tests.conformance.behaviour import Broken
from tests.conformance.boxes import PORT, Box, Plan, Tester
from tests.conformance.peer import PATIENCE, Peer, Session
from tests.e2e.lab import inside
from tests.tun.packets import checksum
from wgpy.config import NO_KEY, Endpoint, PeerSnapshot, Prefix, SetDevice, SetPeer

INNER_PORT = 7000
ETH_P_ALL = 3
PACKET_OUTGOING = 4


class Inner:
    """A UDP socket at the tester's inner address: what lies in clear on the box's other side."""

    def __init__(self, tester: Tester, plan: Plan, version: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.version = version
        self.plan = plan
        self.socket = inside(tester, lambda: socket.socket(family, socket.SOCK_DGRAM))
        self.socket.bind((str(plan.inner(version)), INNER_PORT))

    def send(self, payload: bytes, *, to: Address | None = None, ds: int = 0) -> None:
        """Send a packet that has to go out through the tunnel."""
        level, kind = (socket.IPPROTO_IP, socket.IP_TOS) if self.version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        where = str(to or self.plan.remote(self.version)), INNER_PORT
        self.socket.sendmsg([payload], [(level, kind, struct.pack("i", ds))], 0, where)

    def receive(self, seconds: float = PATIENCE) -> bytes | None:
        """The payload of the next packet that came in through the tunnel; None if none comes in time."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return None
        return self.socket.recv(1 << 16)

    def expect(self, payload: bytes, why: str, seconds: float = PATIENCE) -> None:
        """Raise Broken unless this is the next that comes."""
        came = self.receive(seconds)
        if came != payload:
            raise Broken(f"{why}: {'nothing' if came is None else f'something else ({len(came)} bytes)'} came out of the tunnel")

    def expect_nothing(self, why: str, seconds: float = 0.5) -> None:
        if (came := self.receive(seconds)) is not None:
            raise Broken(f"{why}: {len(came)} bytes came out of the tunnel")


class Sniffer:
    """Every frame that comes in or goes out by a leg of the tester."""

    def __init__(self, tester: Tester, leg: str) -> None:
        self.socket = inside(tester, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        inside(tester, lambda: self.socket.bind((leg, ETH_P_ALL)))

    def packets(self, seconds: float = 0.2) -> list[bytes]:
        """The IP packets that came *in*, until nothing comes for so long."""
        came = []
        while select.select([self.socket], [], [], seconds)[0]:
            frame, (_, _, kind, *_) = self.socket.recvfrom(1 << 16)
            if kind != PACKET_OUTGOING and frame[12:14] in (b"\x08\x00", b"\x86\xdd"):
                came.append(frame[14:])
        return came


class Trial:
    """What a behaviour has at hand."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.plan = box.plan
        self.tester = box.tester
        self.private = clamp(os.urandom(32))
        self._is_up = False
        self._opened: list[Peer | Inner | Sniffer] = []
        # From the start: what comes out of the tunnel before anybody listens is lost.
        self._inner = {version: Inner(self.tester, self.plan, version) for version in (4, 6)}
        self._opened += self._inner.values()

    @property
    def public(self) -> bytes:
        """The key of the box."""
        return public_key(self.private)

    def close(self) -> None:
        for each in self._opened:
            each.socket.close()
        self.box.close()

    # What the box is to be

    def start(self) -> None:
        """Key and port, and the interface up; nothing if that was done."""
        if not self._is_up:
            self._is_up = True
            self.box.set([SetDevice(private_key=self.private, listen_port=PORT)])
            self.box.up()

    def peer(
        self,
        *,
        version: int = 4,
        host: int = 1,
        port: int = 0,
        preshared: bytes = NO_KEY,
        keepalive: int = 0,
        allowed_ips: Iterable[Prefix] | None = None,
        with_endpoint: bool = True,
        is_known: bool = True,
        private: bytes | None = None,
        start: bool = True,
    ) -> Peer:
        """A peer at outer address ``host``, and the box's knowledge of it. Everything behind the tunnel is its, unless told
        otherwise. ``start``: the box has its key and its port, and its interface is up."""
        if start:
            self.start()
        plan = self.plan
        made = Peer(
            self.tester,
            plan.outer(version, host),
            plan.outer(version, 11),
            PORT,
            self.public,
            port=port,
            preshared=preshared,
            private=private,
        )
        self._opened.append(made)
        if is_known:
            networks = (plan.network(4, 88), plan.network(6, 88)) if allowed_ips is None else tuple(allowed_ips)
            change = SetPeer(
                made.public,
                preshared_key=preshared if preshared != NO_KEY else None,
                endpoint=Endpoint(*made.address) if with_endpoint else None,
                persistent_keepalive=keepalive or None,
                allowed_ips=networks,
            )
            self.box.set([change])
        return made

    def change(self, peer: Peer, **fields: Any) -> None:
        """Change what the box knows of a peer; ``fields`` are those of SetPeer."""
        self.box.set([SetPeer(peer.public, **fields)])

    def known(self, peer: Peer) -> PeerSnapshot:
        """The peer as the box shows it."""
        for each in self.box.get().peers:
            if each.config.public_key == peer.public:
                return each
        raise Broken("the box no longer shows the peer")

    # What goes through it

    @property
    def inner(self) -> Inner:
        return self.inner_of(4)

    def inner_of(self, version: int) -> Inner:
        """The tester's socket on the inner leg."""
        return self._inner[version]

    def sniffer(self, leg: str) -> Sniffer:
        made = Sniffer(self.tester, leg)
        self._opened.append(made)
        return made

    def inward(self, payload: bytes, *, version: int = 4, source: Address | None = None, ds: int = 0) -> bytes:
        """A UDP packet from behind the tunnel to the tester's inner socket."""
        return udp_packet(source or self.plan.remote(version), self.plan.inner(version), payload, ds=ds)

    def outward(self, payload: bytes = b"outward", *, version: int = 4, to: Address | None = None, ds: int = 0) -> None:
        """Send one from the inner leg to behind the tunnel."""
        self.inner_of(version).send(payload, to=to, ds=ds)

    def expect_inward(self, session: Session, why: str, *, version: int = 4) -> None:
        """Raise Broken unless a packet under ``session`` is delivered."""
        payload = os.urandom(16)
        session.send(self.inward(payload, version=version))
        self.inner_of(version).expect(payload, why)

    def expect_no_inward(self, session: Session, why: str) -> None:
        """Raise Broken if a packet under ``session`` is delivered."""
        session.send(self.inward(os.urandom(16)))
        self.inner.expect_nothing(why)

    def expect_outward(self, session: Session, why: str, *, version: int = 4) -> None:
        """Raise Broken unless a packet for behind the tunnel leaves under ``session``."""
        payload = os.urandom(16)
        self.outward(payload, version=version)
        came = session.receive(why)
        if payload not in came:
            raise Broken(f"{why}: another packet came")

    def wait_until(self, holds: object, why: str, seconds: float = PATIENCE) -> None:
        """Poll a condition (a callable) until it is true. Raises Broken with ``why`` if it never is."""
        deadline = time.monotonic() + seconds
        while not holds():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise Broken(f"{why}: not within {seconds:g} s")
            time.sleep(0.02)


def udp_packet(
    source: Address, destination: Address, payload: bytes, *, ds: int = 0, ports: tuple[int, int] = (INNER_PORT, INNER_PORT)
) -> bytes:
    """An IP packet with a UDP datagram, its checksums right (RFC 768, 791, 8200)."""
    length = 8 + len(payload)
    segment = struct.pack(">HHHH", *ports, length, 0) + payload
    pseudo = source.packed + destination.packed + struct.pack(">II", length, 17)
    segment = segment[:6] + struct.pack(">H", checksum(pseudo + segment) or 0xFFFF) + payload
    if isinstance(source, IPv4Address):
        header = struct.pack(">BBHHHBBH", 0x45, ds, 20 + length, 1, 0, 64, 17, 0) + source.packed + destination.packed
        return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + segment
    return struct.pack(">IHBB", 6 << 28 | ds << 20, length, 17, 64) + source.packed + destination.packed + segment


def udp_payload(packet: bytes) -> bytes:
    """What :func:`udp_packet` carries; padding behind the packet is left out."""
    start = 20 if packet[0] >> 4 == 4 else 40
    return packet[start + 8 : start + int.from_bytes(packet[start + 4 : start + 6])]
