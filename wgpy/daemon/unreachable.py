"""Tells senders that nobody takes their packets, as the kernel's WireGuard does (protocol 1.9).

``wgpy.core.icmp`` knows which packets there is an error about, and its bytes. Here it is sent: from a raw socket in the network
namespace where the interface is now, for that is where the sender of a packet is, or the way to it. Left to itself the kernel
chooses the address the error comes from by the way to the sender, as its own WireGuard does. If NAT has changed the
packet's source, the error goes to the changed one, and conntrack takes it back on its way out; only the address it comes from
has to be chosen here, by the way to whom the packet really came from.

While the interface is in our own network namespace the sockets stay open. Elsewhere they are made for each error, since a socket
that stayed would keep the namespace alive (``tun.link``).

It needs CAP_NET_RAW, and CAP_SYS_ADMIN to follow the interface elsewhere. Without it packets are dropped in silence.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from dataclasses import dataclass, field

from noise.ratelimiter import RateLimiter
from tun.interface import TunError
from tun.link import LinkState, in_namespace_of
from wgpy.core.icmp import Refused, refused, unreachable
from wgpy.daemon.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    RTN_BROADCAST,
    RTN_MULTICAST,
    open_netlink,
    original_source,
    route_to,
)

log = logging.getLogger(__name__)

PER_SECOND = 200.0
BURST = 20.0
"""Errors for all senders together: about a hundredth of a core, and a millisecond at once. One sender gets as many as
:mod:`noise.ratelimiter` allows, 20 a second and 5 at once."""

COST, COST_ELSEWHERE = 1, 10
"""Of one error, in errors: where the interface is in our own network namespace, and where that has to be entered first."""

SOL_RAW, ICMP_FILTER, ICMPV6_FILTER = 255, 1, 1  # linux/icmp.h, linux/icmpv6.h
NOTHING_IPV4, NOTHING_IPV6 = b"\xff" * 4, b"\xff" * 32
"""Filters of raw sockets that only send: without them each gets a copy of all ICMP that comes."""
INTERNETWORK_CONTROL = 0xC0
"""Type of service of ICMP errors (RFC 1812 4.3.2.5)."""
IP_PKTINFO = 8


@dataclass(slots=True)
class _Sockets:
    """What sending takes, all made in one network namespace."""

    raw: dict[int, socket.socket] = field(default_factory=dict)
    """By the length of an address, 4 or 16."""
    routes: socket.socket | None = None
    conntrack: socket.socket | None = None

    def close(self) -> None:
        for one in (*self.raw.values(), self.routes, self.conntrack):
            if one is not None:
                one.close()


class Unreachables:
    """Sends the errors of one interface. ``follow`` it first; ``refused`` is what a device calls."""

    def __init__(self) -> None:
        self.sent = 0
        self.is_possible = False
        """Whether there is what sending takes."""
        self._fd = -1
        self._sockets: _Sockets | None = None
        """None: they are made for each error."""
        self._namespace = self._interface = 0
        self._per_sender = RateLimiter()
        self._left, self._counted_at = BURST, 0.0

    def follow(self, fd: int, link: LinkState, *, is_elsewhere: bool) -> None:
        """The interface of the TUN descriptor ``fd`` is in this state, in our own network namespace or elsewhere."""
        self._fd, self._interface = fd, link.index
        if link.namespace == self._namespace:
            return
        self._namespace = link.namespace
        self.close()
        try:
            self._sockets = in_namespace_of(fd, _open)
        except PermissionError as error:  # which wgpy.daemon.privileges has said, if it is for want of a capability
            log.debug("no ICMP unreachables: %s", error.strerror)
        except OSError as error:
            log.warning("packets without a peer are dropped in silence, for there is no raw socket: %s", error.strerror)
        else:
            if is_elsewhere:
                self.close()
            self.is_possible = True

    def close(self) -> None:
        """Send no more, until there is something to ``follow`` again."""
        if self._sockets is not None:
            self._sockets.close()
        self._sockets, self.is_possible = None, False

    def refused(self, packet: memoryview, now: float) -> None:
        """Nobody takes ``packet`` (its buffer is reused): tell its sender, if that is to be. Costs next to nothing in a flood."""
        cost = COST if self._sockets is not None else COST_ELSEWHERE
        if not self.is_possible or self._left_at(now) < cost:
            return
        found = refused(packet)
        if found is None or not self._per_sender.allow(found.source, now):
            return
        self._left -= cost
        message = unreachable(packet)
        try:
            if self._sockets is not None:
                self._send(self._sockets, found, message)
            else:
                in_namespace_of(self._fd, lambda: self._send_from_here(found, message))
        except (OSError, TunError) as error:
            log.debug("an ICMP error could not be sent: %s", error)

    def _left_at(self, now: float) -> float:
        self._left = min(BURST, self._left + (now - self._counted_at) * PER_SECOND)
        self._counted_at = now
        return self._left

    def _send_from_here(self, found: Refused, message: bytes) -> None:
        """Send by sockets of this thread's network namespace."""
        sockets = _open()
        try:
            self._send(sockets, found, message)
        finally:
            sockets.close()

    def _send(self, sockets: _Sockets, found: Refused, message: bytes) -> None:
        raw = sockets.raw.get(len(found.source))
        if raw is None or sockets.routes is None or self._is_to_many(sockets.routes, found):
            return
        control = []
        original = self._original_source(sockets, found)
        if original not in (None, found.source):
            control = _from_address(route_to(sockets.routes, original).source)
        raw.sendmsg([message], control, socket.MSG_DONTWAIT, self._address(found.source))
        self.sent += 1

    @staticmethod
    def _is_to_many(routes: socket.socket, found: Refused) -> bool:
        """Whether the destination is a network's broadcast address, which only the kernel can tell."""
        with contextlib.suppress(OSError):
            return route_to(routes, found.destination).kind in (RTN_BROADCAST, RTN_MULTICAST)
        return False

    def _original_source(self, sockets: _Sockets, found: Refused) -> bytes | None:
        if sockets.conntrack is None:
            return None
        try:
            return original_source(sockets.conntrack, found)
        except OSError:  # this kernel has no ctnetlink, and would look for the module each time
            sockets.conntrack.close()
            sockets.conntrack = None
            return None

    def _address(self, packed: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
        if len(packed) == 4:
            return socket.inet_ntop(socket.AF_INET, packed), 0
        is_link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
        return socket.inet_ntop(socket.AF_INET6, packed), 0, 0, self._interface if is_link_local else 0


def _from_address(source: bytes) -> list[tuple[int, int, bytes]]:
    """The control message that sends from an address."""
    if len(source) == 4:
        return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, source, bytes(4)))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", source, 0))] if source else []


def _open() -> _Sockets:
    """The sockets, in the network namespace of this thread. Raises OSError, PermissionError without CAP_NET_RAW."""
    sockets = _Sockets()
    try:
        sockets.raw[4] = _open_raw(socket.AF_INET, socket.IPPROTO_ICMP)
        sockets.raw[4].setsockopt(SOL_RAW, ICMP_FILTER, NOTHING_IPV4)
        sockets.raw[4].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, INTERNETWORK_CONTROL)
        with contextlib.suppress(OSError):  # there may be no IPv6 here
            sockets.raw[16] = _open_raw(socket.AF_INET6, socket.IPPROTO_ICMPV6)
            sockets.raw[16].setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, NOTHING_IPV6)
        sockets.routes = open_netlink(NETLINK_ROUTE)
        with contextlib.suppress(OSError):  # or no netfilter
            sockets.conntrack = open_netlink(NETLINK_NETFILTER)
    except BaseException:
        sockets.close()
        raise
    return sockets


def _open_raw(family: socket.AddressFamily, protocol: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
