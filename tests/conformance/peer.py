"""The other side, played by hand: a peer of the box that does nothing by itself.

It has keys, a UDP socket in the tester's namespace, and a method for each thing the protocol says or forbids. Nothing is
answered, repeated or timed unless a behaviour says so. Every datagram comes with what the kernel knows of it: when it was
received, from where, to where, with which DS byte.

The cryptography is that of :mod:`noise`, which the test vectors and four other implementations hold to account.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from controller.demo.topology import Address
from noise.constants import (
    MESSAGE_COOKIE_REPLY,
    MESSAGE_INITIATION,
    MESSAGE_LENGTHS,
    MESSAGE_RESPONSE,
    MESSAGE_TRANSPORT_DATA,
)
from noise.cookie import CookieChecker, CookieHolder
from noise.crypto import aead_seal, aead_unseal
from noise.handshake import (
    HandshakeError,
    LocalStatic,
    RemoteStatic,
    ResponderHandshake,
    TransportKeys,
    consume_initiation,
    consume_response,
    create_initiation,
    create_response,
)
from noise.messages import HandshakeInitiation, TransportData
from noise.tai64n import timestamp
from tests.conformance.behaviour import Broken
from tests.e2e.lab import inside
from wgpy.config import NO_KEY

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = (
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
    MESSAGE_COOKIE_REPLY,
    MESSAGE_TRANSPORT_DATA,
)
NAMES = {INITIATION: "initiation", RESPONSE: "response", COOKIE_REPLY: "cookie reply", TRANSPORT: "transport message"}
KEEPALIVE_LENGTH = 32
CONFIRMED_SECONDS = 0.05
"""What is sent inside right after a confirmation might overtake it, and have to wait: that is a row of its own."""
PATIENCE = 3.0
"""Seconds that an answer may take on a busy machine."""

UDP_SEGMENT = 103  # <linux/udp.h>
SO_TIMESTAMPNS = 35  # <asm/socket.h>; its message has the same number
IP_RECVTOS, IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_RECVTCLASS = 13, 8, 49, 66  # <linux/in.h>, <linux/in6.h>


@dataclass(frozen=True)
class Datagram:
    """One that has come. ``time`` is when the kernel received it, in seconds since 1970; ``ds`` the DS byte of its IP header."""

    payload: bytes = field(repr=False)
    time: float
    source: Address
    port: int
    destination: Address
    ds: int

    @property
    def message(self) -> int:
        """The type of WireGuard message; 0 if it is none."""
        kind = int.from_bytes(self.payload[:4], "little")
        if kind == TRANSPORT:
            return kind if len(self.payload) >= KEEPALIVE_LENGTH else 0
        return kind if MESSAGE_LENGTHS.get(kind) == len(self.payload) else 0

    @property
    def is_keepalive(self) -> bool:
        return self.message == TRANSPORT and len(self.payload) == KEEPALIVE_LENGTH

    @property
    def sender_index(self) -> int:
        """Of a handshake message."""
        return int.from_bytes(self.payload[4:8], "little")

    @property
    def receiver_index(self) -> int:
        """Of a response, a cookie reply or a transport message."""
        at = 8 if self.message == RESPONSE else 4
        return int.from_bytes(self.payload[at : at + 4], "little")

    @property
    def counter(self) -> int:
        """Of a transport message."""
        return int.from_bytes(self.payload[8:16], "little")

    @property
    def mac2(self) -> bytes:
        """Of a handshake message."""
        return self.payload[-16:]

    def __str__(self) -> str:
        return NAMES.get(self.message, f"datagram of {len(self.payload)} bytes")


class Session:
    """Transport keys, and the counter of what is sent under them."""

    def __init__(self, peer: Peer, keys: TransportKeys) -> None:
        self.peer = peer
        self.keys = keys
        self.counter = 0
        self.began = time.time()

    def seal(self, packet: bytes, counter: int | None = None) -> bytes:
        """The transport message of ``packet``, as it is: padding is the caller's."""
        if counter is None:
            counter, self.counter = self.counter, self.counter + 1
        return TransportData(self.keys.remote_index, counter, aead_seal(self.keys.send_key, counter, packet, b"")).pack()

    def send(self, packet: bytes = b"", counter: int | None = None) -> bytes:
        """Seal and send; an empty packet is a keepalive. Gives the datagram, to be sent again."""
        datagram = self.seal(packet, counter)
        self.peer.send(datagram)
        return datagram

    def open(self, datagram: Datagram) -> bytes | None:
        """The packet of a transport message, with its padding; None if it is not of this session."""
        message = TransportData.unpack(datagram.payload)
        if message is None or message.receiver_index != self.keys.local_index:
            return None
        return aead_unseal(self.keys.receive_key, message.counter, message.encrypted_packet, b"")

    def receive(self, what: str = "a packet", seconds: float = PATIENCE) -> bytes:
        """Wait for a transport message of this session that is no keepalive; its packet, with padding."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            datagram = self.peer.receive(left)
            if datagram is not None and (packet := self.open(datagram)):
                return packet
        raise Broken(f"{what} did not come within {seconds:g} s")


SocketAddress = tuple[str, int] | tuple[str, int, int, int]


def sockaddr(address: Address, port: int) -> SocketAddress:
    """As :mod:`socket` takes it; the zone of a link-local address is the number of an interface."""
    host, _, zone = str(address).partition("%")
    return (host, port, 0, int(zone)) if zone else (host, port)


class Peer:
    """A peer at an address of the tester. ``box_public`` is the key of the box."""

    def __init__(
        self,
        namespace: object,
        address: Address,
        box_address: Address,
        box_port: int,
        box_public: bytes,
        *,
        port: int = 0,
        preshared: bytes = NO_KEY,
        private: bytes | None = None,
    ) -> None:
        self.namespace = namespace
        self.local = LocalStatic(private or os.urandom(32))
        self.preshared = preshared
        self.box: SocketAddress = sockaddr(box_address, box_port)
        self.learn(box_public)
        self.checker = CookieChecker(self.local)
        self.socket = self._open(address, port)
        self._unread: deque[Datagram] = deque()

    def learn(self, box_public: bytes) -> None:
        """Take the box for the owner of this key from now on."""
        self.remote = RemoteStatic(self.local, box_public)
        self.holder = CookieHolder(self.remote)

    @property
    def public(self) -> bytes:
        return self.local.public

    @property
    def address(self) -> tuple[str, int]:
        return self.socket.getsockname()[:2]  # type: ignore[no-any-return]

    def move(self, address: Address, port: int = 0) -> None:
        """Be somewhere else from now on."""
        self.socket.close()
        self.socket = self._open(address, port)

    def close(self) -> None:
        self.socket.close()

    def _open(self, address: Address, port: int) -> socket.socket:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        opened = inside(self.namespace, lambda: socket.socket(family, socket.SOCK_DGRAM))  # type: ignore[arg-type]
        opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if address.version == 4:
            opened.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
            opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        opened.bind(sockaddr(address, port))
        return opened

    # Datagrams

    def send(self, datagram: bytes, *, to: Address | None = None, ds: int | None = None) -> None:
        """Send it to the box, or to another address of it."""
        where = sockaddr(to, self.box[1]) if to is not None else self.box
        level, kind = (socket.IPPROTO_IP, socket.IP_TOS) if "." in where[0] else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        ancillary = [] if ds is None else [(level, kind, struct.pack("i", ds))]
        self.socket.sendmsg([datagram], ancillary, 0, where)

    def send_train(self, datagrams: Sequence[bytes]) -> None:
        """Send datagrams of equal length (the last may be shorter) in one call, so that they can be received in one."""
        segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", len(datagrams[0])))]
        self.socket.sendmsg([b"".join(datagrams)], segment, 0, self.box)

    def receive(self, seconds: float) -> Datagram | None:
        """The next datagram; None if none comes in time."""
        if self._unread:
            return self._unread.popleft()
        if not select.select([self.socket], [], [], max(0.0, seconds))[0]:
            return None
        payload, ancillary, _, source = self.socket.recvmsg(1 << 16, 1024)
        at, destination, ds = time.time(), ip_address("0.0.0.0"), 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds_, nanoseconds = struct.unpack("ll", data)
                at = seconds_ + nanoseconds / 1e9
            elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                destination = ip_address(data[8:12])
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination = ip_address(data[:16])
            elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)):
                ds = data[0]
        return Datagram(payload, at, ip_address(source[0].partition("%")[0]), source[1], destination, ds)

    def expect(self, kind: int, seconds: float = PATIENCE, why: str = "") -> Datagram:
        """The next message of this type; what comes before it is passed over. Raises Broken if none comes in time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            datagram = self.receive(left)
            if datagram is not None and datagram.message == kind:
                return datagram
        raise Broken(f"no {NAMES[kind]} within {seconds:g} s{why and ' ' + why}")

    def collect(self, seconds: float, kinds: Iterable[int] = tuple(NAMES)) -> list[Datagram]:
        """Every message of these types that comes in ``seconds``."""
        deadline, came = time.monotonic() + seconds, []
        while (left := deadline - time.monotonic()) > 0:
            datagram = self.receive(left)
            if datagram is not None and datagram.message in kinds:
                came.append(datagram)
        return came

    def expect_silence(self, seconds: float, why: str, kinds: Iterable[int] = tuple(NAMES)) -> None:
        """Raise Broken if a message of these types comes within ``seconds``."""
        if came := self.collect(seconds, kinds):
            raise Broken(f"{', '.join(sorted({str(each) for each in came}))} {why}")

    def drain(self) -> None:
        """Forget what has come so far."""
        while self.receive(0.0) is not None:
            pass

    # Handshakes

    def initiation(self, *, stamp: bytes | None = None, index: int | None = None) -> bytes:
        """A good initiation, with mac1, and with mac2 if there is a cookie. :meth:`finish` takes its response."""
        index = int.from_bytes(os.urandom(4)) if index is None else index
        stamp = timestamp(time.time_ns()) if stamp is None else stamp
        message, self.handshake = create_initiation(self.local, self.remote, os.urandom(32), index, stamp)
        return self.with_macs(message)

    def with_macs(self, message: bytes) -> bytes:
        """A handshake message with the MACs it should have, in place of those it has."""
        return self.holder.add_macs(message, time.monotonic())

    def finish(self, response: Datagram) -> Session:
        """The session that a response to the last initiation leads to. Raises Broken if it is not one."""
        try:
            keys = consume_response(self.local, self.remote, self.handshake, self.preshared, response.payload)
        except HandshakeError as error:
            raise Broken(f"the response is not good: {error.reason.value}") from None
        if not CookieChecker(self.local).mac1_is_valid(response.payload):
            raise Broken("the response has a wrong mac1")
        return Session(self, keys)

    def initiate(self, *, confirm: bool = True, seconds: float = PATIENCE) -> Session:
        """Shake hands as the initiator. With ``confirm`` a keepalive follows, as the protocol wants it, and time to take it."""
        self.send(self.initiation())
        session = self.finish(self.expect(RESPONSE, seconds, "to an initiation"))
        if confirm:
            session.send()
            time.sleep(CONFIRMED_SECONDS)
        return session

    def consume(self, initiation: Datagram) -> ResponderHandshake:
        """What an initiation of the box says. Raises Broken if it is not good."""
        if not self.checker.mac1_is_valid(initiation.payload):
            raise Broken("the initiation has a wrong mac1")
        try:
            return consume_initiation(self.local, initiation.payload, {self.remote.public: self.remote}.get)
        except HandshakeError as error:
            raise Broken(f"the initiation is not good: {error.reason.value}") from None

    def response(self, initiation: Datagram, *, index: int | None = None) -> tuple[bytes, Session]:
        """The response to an initiation, with its MACs, and the session it leads to."""
        index = int.from_bytes(os.urandom(4)) if index is None else index
        message, keys = create_response(self.remote, self.consume(initiation), self.preshared, os.urandom(32), index)
        return self.with_macs(message), Session(self, keys)

    def respond(self, initiation: Datagram) -> Session:
        """Shake hands as the responder. The initiator's first message under the new session has to confirm it."""
        message, session = self.response(initiation)
        self.send(message)
        return session

    def cookie_reply(self, offending: Datagram) -> bytes:
        """A cookie reply to a handshake message of the box, as of somebody under load."""
        host, port = str(offending.source), offending.port
        address = ip_address(host).packed + port.to_bytes(2)
        if self.checker.secret_is_old(time.monotonic()):
            self.checker.renew_secret(os.urandom(32), os.urandom(24), time.monotonic())
        return self.checker.create_cookie_reply(offending.payload, address)

    def mac2_is_valid(self, datagram: Datagram) -> bool:
        """Whether a handshake message of the box carries the cookie of :meth:`cookie_reply`."""
        address = datagram.source.packed + datagram.port.to_bytes(2)
        return self.checker.mac2_is_valid(datagram.payload, address, time.monotonic())


def stamp_of(initiation: ResponderHandshake) -> bytes:
    return initiation.timestamp


def unpacked(initiation: Datagram) -> HandshakeInitiation:
    """The fields of an initiation."""
    message = HandshakeInitiation.unpack(initiation.payload)
    assert message is not None
    return message
