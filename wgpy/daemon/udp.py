"""The outer sockets: one for IPv4 and one for IPv6 on the same port.

HOT (send, receive); guarded by ``benchmarks/micro.py``.

Trains go out in one call with UDP_SEGMENT and come in with one call with UDP_GRO. Both are probed; without them
everything works, one datagram a call. Where the way to a destination refuses a train (EIO: the device cannot checksum it;
EINVAL or EMSGSIZE: a segment does not fit), its datagrams are sent one by one, and so are all to that destination for the
next minute: other destinations do not pay for it, and neither does this one once its route has changed.

Under load, when most of what comes are handshake messages of many senders, messages and trains come many in a call, and refusals
go so (``wgpy.daemon.mmsg``).

Addresses are sticky: what comes to one of our addresses is answered from that address (IP_PKTINFO), because a peer
behind a firewall knows us only by it; whether the way back still fits, ``wgpy.daemon.ways`` knows. A source address that is
no longer ours is refused by the kernel; then the datagram goes out without it, and it is not used again until something
arrives there. Where it does not go out without it either, the destination is to blame, and nobody else loses the source for it.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from wgpy.config import Endpoint
from wgpy.daemon.mmsg import SLOTS, Inbox, Outbox, pack_control, unpack_control

log = logging.getLogger(__name__)

UDP_SEGMENT = 103
UDP_GRO = 104
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_DONT = 0
MSG_TRUNC = 0x20
"""As a plain number: an operation on socket.MSG_TRUNC, an enum, costs more than the rest of a receive."""
IP_PKTINFO = 8
IP_RECVTOS = 13
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 7 << 20
"""Socket buffers: 7 MB, as wireguard-go asks for (protocol 3.2)."""

PLAIN_SECONDS = 60.0
"""How long a destination that refused a train gets single datagrams before a train is tried again."""

BIND_ATTEMPTS = 100
REMEMBERED = 4096

_PKTINFO = (IP_PKTINFO, 50)  # and IPV6_PKTINFO
_TRAFFIC_CLASS = (1, 67)  # IP_TOS, IPV6_TCLASS
_SEGMENT = struct.Struct("=H")
_INT = struct.Struct("=i")
_IN_PKTINFO = struct.Struct("=I4s4s")
_IN6_PKTINFO = struct.Struct("=16sI")
_IPV4_ADDRESS = 16  # bytes of a struct sockaddr_in
_CONTROL_SPACE = socket.CMSG_SPACE(_INT.size) * 2 + socket.CMSG_SPACE(_IN6_PKTINFO.size)
_TRAIN_REFUSED = {errno.EIO, errno.EINVAL, errno.EMSGSIZE}
_SOURCE_REFUSED = {errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENODEV}

Control = list[tuple[int, int, bytes]]
Arrival = tuple[memoryview, int, Endpoint, bytes, int]
"""Datagrams of one sender, the length of each (0: it is one), the endpoint they came from, their source, their ECN bits."""


class Received:
    """What came with a datagram, beside its bytes. One object serves all receives: read it before the next."""

    __slots__ = ("ecn", "endpoint", "segment", "size", "source")

    def __init__(self) -> None:
        self.size = 0
        self.segment = 0
        self.endpoint = Endpoint("0.0.0.0", 0)
        self.source = b""
        self.ecn = 0


class Sockets:
    """The bound sockets of one device. ``segmentation`` and ``coalescing`` False do without UDP_SEGMENT and UDP_GRO."""

    def __init__(self, *, segmentation: bool = True, coalescing: bool = True) -> None:
        self.segmentation = segmentation
        self.coalescing = coalescing
        self.port = 0
        self.fwmark = 0
        self.sends = self.receives = 0
        """Calls that carried something: a train, or what came in one burst."""
        self.send_errors = 0
        """Calls the kernel refused."""
        self.plain_trains = 0
        """Trains the kernel refused, which were sent one datagram at a time."""
        self._sockets: dict[int, socket.socket] = {}
        self._controls: dict[tuple[int, bytes, int, int], Control] = {}
        self._endpoints: dict[tuple[object, ...] | bytes, Endpoint] = {}
        self._sources: dict[bytes, bytes] = {}
        self._dead_sources: set[bytes] = set()
        self._logged: set[tuple[int | None, bool]] = set()
        self._plain_until: dict[tuple[object, ...], float] = {}
        """Destinations that refused a train, and when to try one again (monotonic seconds)."""
        self._inbox, self._outbox = Inbox(), Outbox()
        self._arrivals: dict[bytes, tuple[int, bytes, int]] = {}

    @property
    def plain_destinations(self) -> int:
        """How many destinations get single datagrams because they refused a train."""
        now = time.monotonic()
        return sum(until > now for until in self._plain_until.values())

    @property
    def is_bound(self) -> bool:
        return bool(self._sockets)

    def __iter__(self) -> Iterator[socket.socket]:
        return iter(self._sockets.values())

    def bind(self, port: int, fwmark: int) -> None:
        """Bind both families to ``port`` (0: any free one) in place of what was bound. OSError leaves everything as it was."""
        sockets = self._bind_both(port, fwmark)
        self.close()
        self._sockets = sockets
        self.port = next(iter(sockets.values())).getsockname()[1]
        self.fwmark = fwmark
        self._controls.clear()

    def _bind_both(self, port: int, fwmark: int) -> dict[int, socket.socket]:
        for attempt in range(BIND_ATTEMPTS):
            sockets: dict[int, socket.socket] = {}
            try:
                for family in (socket.AF_INET, socket.AF_INET6):
                    bound = next((sock.getsockname()[1] for sock in sockets.values()), port)
                    try:
                        sockets[family] = self._bind_one(family, bound, fwmark)
                    except OSError as error:
                        if error.errno != errno.EAFNOSUPPORT:
                            raise
            except OSError as error:
                for sock in sockets.values():
                    sock.close()
                if error.errno == errno.EADDRINUSE and port == 0 and attempt + 1 < BIND_ATTEMPTS:
                    continue  # the port the kernel chose for IPv4 is taken for IPv6
                raise
            if sockets:
                return sockets
            raise OSError(errno.EAFNOSUPPORT, "neither IPv4 nor IPv6 is available")
        raise AssertionError("unreachable")

    def _bind_one(self, family: int, port: int, fwmark: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
                try:
                    sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
                except PermissionError:
                    sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
            if fwmark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
                # The kernel's WireGuard lets the outer packet be fragmented: DF is 0 (protocol 1.10).
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
            self._probe(sock)
            sock.bind(("", port))
        except OSError:
            sock.close()
            raise
        return sock

    def _probe(self, sock: socket.socket) -> None:
        if self.coalescing:
            try:
                sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
            except OSError:
                self.coalescing = False
                log.warning("this kernel has no UDP_GRO (5.0): receiving one datagram a call")
        if self.segmentation:
            try:
                sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
            except OSError:
                self.segmentation = False
                log.warning("this kernel has no UDP_SEGMENT (4.18): sending one datagram a call")

    def set_fwmark(self, fwmark: int) -> None:
        """Mark what is sent from now on; 0 for no mark."""
        for sock in self._sockets.values():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
        self.fwmark = fwmark

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}
        self.port = 0

    # -- send ----------------------------------------------------------------------------------------------------

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        """Send a train; see :class:`wgpy.core.device.Outputs`. What the socket does not take at once is lost, as on a NIC."""
        sockaddr = endpoint.sockaddr
        family = socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6
        sock = self._sockets.get(family)
        if sock is None:
            return False
        if segment >= len(datagrams):
            segment = 0
        elif not self.segmentation or (self._plain_until and self._is_plain(sockaddr)):
            return self._send_plainly(datagrams, segment, endpoint, source, ds)
        try:
            control = self._controls[family, source, ds, segment]
        except KeyError:
            control = self._control(family, source, ds, segment)
        try:
            sock.sendmsg((datagrams,), control, 0, sockaddr)
            self.sends += 1
            return True
        except OSError as error:
            return self._send_again(error, sock, datagrams, segment, endpoint, source, ds)

    def _send_again(
        self,
        error: OSError,
        sock: socket.socket,
        datagrams: bytes | memoryview,
        segment: int,
        endpoint: Endpoint,
        source: bytes,
        ds: int,
    ) -> bool:
        """A send failed: once more, if there is a milder way to send."""
        if error.errno == errno.ECONNREFUSED:
            # An ICMP error of an earlier datagram is reported on this one, which was not sent.
            try:
                sock.sendmsg((datagrams,), self._control(sock.family, source, ds, segment), 0, endpoint.sockaddr)
                return True
            except OSError as second:
                error = second
        if source and source not in self._dead_sources and error.errno in _SOURCE_REFUSED:
            self._dead_sources.add(source)
            self._controls.clear()
            is_sent = self.send(datagrams, segment or len(datagrams), endpoint, source, ds)
            if not is_sent:  # the destination is to blame
                self._dead_sources.discard(source)
                self._controls.clear()
            elif source in self._dead_sources:
                self._sources.clear()
                self._arrivals.clear()
            return is_sent
        if segment and error.errno in _TRAIN_REFUSED:
            if source in self._dead_sources:  # suspected above, and innocent
                self._dead_sources.discard(source)
                self._controls.clear()
            self.plain_trains += 1
            if len(self._plain_until) >= REMEMBERED:
                self._plain_until.clear()
            self._plain_until[endpoint.sockaddr] = time.monotonic() + PLAIN_SECONDS
            what = f"a train of datagrams to {endpoint} was refused, sending them one by one for {PLAIN_SECONDS:g} s"
            self._note(error, what, is_train=True)
            return self._send_plainly(datagrams, segment, endpoint, source, ds)
        self.send_errors += 1
        if error.errno != errno.EAGAIN:
            self._note(error, f"sending to {endpoint} failed")
        return False

    def _is_plain(self, sockaddr: tuple[object, ...]) -> bool:
        """Whether a destination gets single datagrams for now."""
        until = self._plain_until.get(sockaddr)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        del self._plain_until[sockaddr]
        return False

    def _send_plainly(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        view = memoryview(datagrams)
        sent = 0
        for start in range(0, len(view), segment):
            sent += self.send(view[start : start + segment], segment, endpoint, source, ds)
        return sent > 0

    def _control(self, family: int, source: bytes, ds: int, segment: int) -> Control:
        """The control messages of a send, remembered: there are few kinds."""
        ipv4 = family == socket.AF_INET
        control: Control = []
        if source and source not in self._dead_sources and (len(source) == _IN_PKTINFO.size) == ipv4:
            control.append(_from_address(*read_source(source)))
        if ds:
            level, kind = (socket.IPPROTO_IP, socket.IP_TOS) if ipv4 else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
            control.append((level, kind, _INT.pack(ds)))
        if segment:
            control.append((socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(segment)))
        if len(self._controls) >= REMEMBERED:
            self._controls.clear()
        self._controls[family, source, ds, segment] = control
        return control

    def _note(self, error: OSError, what: str, *, is_train: bool = False) -> None:
        """Log each kind of error once: the hot path does not log."""
        if (error.errno, is_train) not in self._logged:
            self._logged.add((error.errno, is_train))
            log.warning("%s: %s (further ones are only counted)", what, error.strerror)

    def send_each(self, datagrams: Sequence[tuple[bytes, Endpoint, bytes]]) -> None:
        """Send each to its own endpoint from its source, many in a call; see :class:`wgpy.core.device.Outputs`."""
        for (address_size, source, size), group in groupby(datagrams, _sent_alike):
            alike = list(group)
            family = socket.AF_INET if address_size == _IPV4_ADDRESS else socket.AF_INET6
            sock = self._sockets.get(family)
            while alike and sock is not None:
                some = alike[:SLOTS]
                control = self._controls.get((family, source, 0, 0)) or self._control(family, source, 0, 0)
                try:
                    sent = self._outbox.send(
                        sock.fileno(), [one[0] for one in some], [one[1].packed for one in some], pack_control(control)
                    )
                except BlockingIOError:
                    self.send_errors += 1
                    break  # the socket is full: what is left of these is lost
                self.sends += sent > 0
                if sent < len(some):  # by itself it is sent again in a milder way, or its error is counted
                    self.send(alike[sent][0], size, alike[sent][1], source, 0)
                    sent += 1
                del alike[:sent]

    # -- receive -------------------------------------------------------------------------------------------------

    def receive(self, sock: socket.socket, buffer: memoryview, received: Received) -> bool:
        """Receive into ``buffer`` what one call brings. False if what came is to be thrown away (it was longer than the buffer).

        Raises BlockingIOError when there is nothing, OSError for a pending error of an earlier send.
        """
        received.size, control, flags, address = sock.recvmsg_into((buffer,), _CONTROL_SPACE)
        self.receives += 1
        received.segment = received.ecn = 0
        received.source = b""
        for _, kind, data in control:
            if kind == UDP_GRO:
                received.segment = _INT.unpack(data)[0]
            elif kind in _PKTINFO:
                received.source = self._sources.get(data) or self._source(data)
            elif kind in _TRAFFIC_CLASS:
                received.ecn = data[0] & 3
        received.endpoint = self._endpoints.get(address) or self._endpoint(address)
        return not flags & MSG_TRUNC

    def receive_many(self, sock: socket.socket) -> list[Arrival]:
        """As :meth:`receive`, up to :data:`wgpy.daemon.mmsg.SLOTS` times: what comes from many is received cheaper so.

        It is good until the next call. Raises as :meth:`receive` does.
        """
        many: list[Arrival] = []
        for data, address, control, flags in self._inbox.receive(sock.fileno()):
            segment, source, ecn = self._arrivals.get(control) or self._arrival(control)
            endpoint = self._endpoints.get(address)
            if endpoint is None:
                if len(self._endpoints) >= REMEMBERED:
                    self._endpoints.clear()
                endpoint = self._endpoints[address] = Endpoint.unpacked(address)
            # What was longer than the slot is nobody's message.
            many.append((data[:0] if flags & MSG_TRUNC else data, segment, endpoint, source, ecn))
        self.receives += 1
        return many

    def _arrival(self, control: bytes) -> tuple[int, bytes, int]:
        """What control messages say: the length of the segments of a train, the source, the ECN bits."""
        segment, source, ecn = 0, b"", 0
        for _, kind, data in unpack_control(control):
            if kind == UDP_GRO:
                segment = _INT.unpack(data)[0]
            elif kind in _PKTINFO:
                source = self._sources.get(data) or self._source(data)
            elif kind in _TRAFFIC_CLASS:
                ecn = data[0] & 3
        if len(self._arrivals) >= REMEMBERED:
            self._arrivals.clear()
        self._arrivals[control] = segment, source, ecn
        return segment, source, ecn

    def _endpoint(self, address: tuple[object, ...]) -> Endpoint:
        host, port = str(address[0]), address[1]
        assert isinstance(port, int)
        scope_id = address[3] if len(address) == 4 else 0
        assert isinstance(scope_id, int)
        if len(self._endpoints) >= REMEMBERED:
            self._endpoints.clear()
        endpoint = self._endpoints[address] = Endpoint(host.partition("%")[0], port, scope_id)
        return endpoint

    def _source(self, pktinfo: bytes) -> bytes:
        """Where a datagram came in: the address it came to and the interface, as :func:`read_source` reads them."""
        if len(pktinfo) == _IN_PKTINFO.size:
            index, _, address = _IN_PKTINFO.unpack(pktinfo)
            source = _IN_PKTINFO.pack(index, address, bytes(4))
        else:
            source = pktinfo
        if len(self._sources) >= REMEMBERED:
            self._sources.clear()
        self._sources[pktinfo] = source
        if source in self._dead_sources:
            self._dead_sources.discard(source)
            self._controls.clear()
        return source


def _sent_alike(datagram: tuple[bytes, Endpoint, bytes]) -> tuple[int, bytes, int]:
    return len(datagram[1].packed), datagram[2], len(datagram[0])


def read_source(source: bytes) -> tuple[bytes, int]:
    """The address of ours in a source (4 or 16 bytes), and the index of the interface that the datagram came in by."""
    if len(source) == _IN_PKTINFO.size:
        index, address, _ = _IN_PKTINFO.unpack(source)
    elif source:
        address, index = _IN6_PKTINFO.unpack(source)
    else:
        return b"", 0
    return address, index


def _from_address(address: bytes, index: int) -> tuple[int, int, bytes]:
    """The control message that sends from an address, and by an interface only where the address means nothing without one."""
    if len(address) == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, address, bytes(4))
    is_link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(address, index if is_link_local else 0)
