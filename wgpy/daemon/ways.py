"""Which way datagrams to a peer go, and so whether the address of ours that it knows still fits (sticky source; protocol 1.11).

The kernel's WireGuard looks a route up for every datagram. We ask when something changes: a peer's endpoint, where its datagrams
come in, or the routes. So the data path asks nothing.

* An IPv4 peer is answered from the address it spoke to as long as the way back leaves by the interface that it came in by.
  Otherwise the kernel chooses the address, as it would for somebody new. (Of IPv6 the kernel's WireGuard does not ask this.)
* When the way to a peer comes to leave by another interface, its datagrams leave from any address until something arrives.

Routes are watched as links are (``tun.link``): a netlink socket is an edge, its events are thrown away unread, and then all ways
are asked for anew. That takes 15 µs a peer. Where routes never stand still, it takes a twentieth of the time at most.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

from wgpy.config import Endpoint
from wgpy.core.device import Device, Way
from wgpy.core.peer import Peer
from wgpy.daemon.netlink import NETLINK_ROUTE, Route, open_netlink, route_to
from wgpy.daemon.pump import boottime
from wgpy.daemon.udp import Sockets, read_source

log = logging.getLogger(__name__)

RTMGRP_LINK, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_ROUTE, RTMGRP_IPV6_RULE = 1, 0x40, 0x80, 0x400, 0x40000
"""Links too: the kernel takes the IPv4 routes of one that goes down away without a word."""
PORTION = 32
"""Peers asked for, half a millisecond of work, before packets get their turn."""
SHARE = 20
"""The time between two rounds is at least so many times what a round takes."""
EVENTS = 256
"""Events thrown away at once; where more wait, the loop comes back."""


class Ways:
    """The ways of a device's peers. ``way`` is what the device asks; nothing is asked of it before :meth:`start`."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._device: Device | None = None
        self._queries: socket.socket | None = None
        self._events: socket.socket | None = None
        self._left: list[Peer] = []
        """Whose ways are still to be asked for in this round."""
        self._again = False
        """Something has happened since it began."""
        self._turn: asyncio.Handle | None = None
        """The next portion, or the next round."""
        self._used = self._rest_until = 0.0
        try:
            self._queries = open_netlink(NETLINK_ROUTE)
            self._events = open_netlink(NETLINK_ROUTE)
            self._events.bind((0, RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV4_RULE | RTMGRP_IPV6_ROUTE | RTMGRP_IPV6_RULE))
        except OSError as error:
            log.warning("routes cannot be watched: %s; peers are answered from the address they spoke to", error.strerror)
            self._close_sockets()

    def way(self, endpoint: Endpoint, arrival: bytes) -> Way:
        """See :class:`~wgpy.core.device.Device`. ``arrival`` is as :class:`~wgpy.daemon.udp.Sockets` writes it."""
        if self._queries is None:
            return Way(arrival)
        source, came_in_by = read_source(arrival)
        route = self._route(self._queries, endpoint, source)
        if source and not endpoint.is_ipv6 and (route is None or route.interface != came_in_by):
            arrival = b""
            route = self._route(self._queries, endpoint, b"")
        return Way(arrival, 0 if route is None else route.interface)

    def _route(self, queries: socket.socket, endpoint: Endpoint, source: bytes) -> Route | None:
        try:
            return route_to(
                queries,
                endpoint.address,
                source=source,
                interface=endpoint.scope_id,
                mark=self._sockets.fwmark,
                ports=(self._sockets.port, endpoint.port),
            )
        except OSError:
            return None

    # -- changes -------------------------------------------------------------------------------------------------

    def start(self, device: Device) -> None:
        """Watch the routes for ``device``."""
        self._device = device
        if self._events is not None:
            asyncio.get_running_loop().add_reader(self._events, self._something_happened)

    def stop(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        if self._events is not None and self._device is not None:
            asyncio.get_running_loop().remove_reader(self._events)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for one in (self._queries, self._events):
            if one is not None:
                one.close()
        self._queries = self._events = None

    def _something_happened(self) -> None:
        assert self._events is not None
        for _ in range(EVENTS):
            try:
                self._events.recv(1)  # one message, the rest of it is discarded
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost, as they are here
                    raise
        self.look_again()

    def look_again(self) -> None:
        """The routes, the mark or the port have changed: begin another round, at once if the last is long enough ago."""
        if self._device is None:
            return
        if self._turn is not None:
            self._again = bool(self._left)
        elif (rest := self._rest_until - boottime()) > 0:
            self._turn = asyncio.get_running_loop().call_later(rest, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        assert self._device is not None
        self._left = list(self._device.peers.values())
        self._again, self._used = False, 0.0
        self._go_on()

    def _go_on(self) -> None:
        device, now = self._device, boottime()
        assert device is not None
        for _ in range(min(PORTION, len(self._left))):
            peer = self._left.pop()
            if device.peers.get(peer.public_key) is peer:
                device.routes_changed(peer)
        ended = boottime()
        self._used += ended - now
        self._rest_until = ended + SHARE * self._used
        self._turn = asyncio.get_running_loop().call_soon(self._go_on) if self._left else None
        if self._again and not self._left:
            self.look_again()
