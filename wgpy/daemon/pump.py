"""The pump: what is readable is read, within a budget, and handed to the device with one ``now``.

HOT; guarded by ``benchmarks/micro.py``.

One loop, one thread. A readable TUN or socket is drained for a bounded number of reads, so that neither direction, nor
the UAPI socket, nor a timer waits for long; what is left is still readable and its turn comes again. The loop's timer
is lazy: it is moved only to an earlier moment, and a wake-up that finds nothing due sets the next one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from math import inf

from tun.interface import Tun, TunDown, TunGone, TunRefused
from wgpy.core.device import Device
from wgpy.core.drops import Drop
from wgpy.daemon.udp import Arrival, Received, Sockets

log = logging.getLogger(__name__)

TUN_READS = 128
"""Reads of the TUN in one turn: two trains of small packets."""
TUN_BYTES = 1 << 20
"""Bytes read from the TUN in one turn: sixteen superpackets."""
UDP_READS = 64
"""Receives of a socket in one turn: more than there are messages handled in one, so that a flood of handshakes piles up in the
device, which can tell it from the rest, and not in the socket, where nobody can."""
UDP_BYTES = 1 << 19
"""Bytes received from a socket in one turn: eight full trains, and what the last call brings beyond (under load 15 more)."""
REST = 2e-3
"""Seconds without a turn after which one read is a turn. A packet that comes alone is not kept waiting by the read that finds
nothing, which on a core that has slept costs 30 µs; where more wait, the loop comes back at once."""
LEAST, MOST = 1e-4, 1e-3
"""Seconds that handshake messages get in one turn, see :meth:`Pump._handle_messages`: the time of one, and no more than data can
wait."""

_clock_gettime = time.clock_gettime
CLOCK_BOOTTIME = time.CLOCK_BOOTTIME


def boottime() -> float:
    """Seconds on a clock that goes on while the machine sleeps: keys age in suspend, too (protocol 1.6)."""
    return _clock_gettime(CLOCK_BOOTTIME)


class Pump:
    """Moves bytes between one TUN, its sockets and one device. It is the device's :class:`~wgpy.core.device.Outputs`."""

    def __init__(self, tun: Tun, sockets: Sockets, gone: Callable[[], None]) -> None:
        self._tun = tun
        self._sockets = sockets
        self.send = sockets.send
        self.send_each = sockets.send_each
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._received = Received()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._busy = False
        self._tun_rested = self._sockets_rested = 0.0
        """When the last turn of each ended."""
        self._spent = 0.0
        """Seconds in those turns since handshake messages had theirs."""

    def start(self, device: Device) -> None:
        """Begin reading the TUN for ``device``."""
        self._device = device
        self._loop.add_reader(self._tun.fileno(), self._tun_readable)

    def watch_sockets(self) -> None:
        """Begin receiving from the sockets, just bound."""
        for sock in self._sockets:
            self._loop.add_reader(sock, self._socket_readable, sock)

    def unwatch_sockets(self) -> None:
        """Stop receiving; to be called before the sockets are closed."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)

    def stop(self) -> None:
        self._loop.remove_reader(self._tun.fileno())
        self.unwatch_sockets()
        if self._timer is not None:
            self._timer.cancel()

    # -- outputs -------------------------------------------------------------------------------------------------

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Hand a packet to the TUN. What it does not take is lost and counted, as with a full receive ring."""
        try:
            self._tun.write(buffers)
        except TunRefused:
            self._write_again(buffers)
        except TunGone:
            self._gone()
        except (TunDown, OSError):
            self._device.count_drop(Drop.INTERFACE_REFUSED)

    def _write_again(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Some kernels refuse superpackets: from now on none of this kind is made, and this one goes in pieces (protocol 3.5)."""
        pieces = self._device.inbound.coalescer.refused(tuple(buffers))
        if not pieces:
            self._device.count_drop(Drop.INTERFACE_REFUSED)
            return
        log.warning("this kernel refuses superpackets of a kind: writing packet by packet")
        for piece in pieces:
            self.write(piece)

    # -- inputs --------------------------------------------------------------------------------------------------

    def _tun_readable(self) -> None:
        device, tun, outbound = self._device, self._tun, self._device.outbound
        now = boottime()
        try:
            if now - self._tun_rested > REST:
                outbound.lone_packet_read(tun.read(outbound.buffers), now)
            else:
                left, reads = TUN_BYTES, TUN_READS
                while left > 0 and reads:
                    size = tun.read(outbound.buffers)
                    outbound.packet_read(size, now)
                    left -= size
                    reads -= 1
                outbound.flush(now)  # there may be nothing more to read, and so no next turn
        except BlockingIOError:
            outbound.flush(now)
        except (TunRefused, TunDown):
            device.count_drop(Drop.BAD_OFFLOAD)  # the kernel took it from its queue and could not describe it: it is lost
            outbound.flush(now)
        except TunGone:
            self._gone()
            return
        except OSError as error:
            log.error("reading the interface failed: %s", error.strerror)
            self._gone()
            return
        if device.next_deadline() < self._timer_at:
            self._arm(now)
        self._tun_rested = end = boottime()
        self._sockets_rested += end - now  # the other way's turn is no rest
        self._spent += end - now

    def _socket_readable(self, sock: socket.socket) -> None:
        device, inbound, received = self._device, self._device.inbound, self._received
        receive = self._sockets.receive
        now = boottime()
        left, reads = UDP_BYTES, 1 if now - self._sockets_rested > REST else UDP_READS
        while left > 0 and reads > 0:
            if device.is_under_load(now):
                many = self._receive_many(sock, now)
                if not many:
                    break
                reads -= len(many)
                left -= sum(len(one[0]) for one in many)
                continue
            reads -= 1
            try:
                whole = receive(sock, inbound.buffer, received)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of something sent earlier: it is reported once
            left -= received.size
            if whole:
                inbound.datagrams_received(received.size, received.segment, received.endpoint, received.source, received.ecn, now)
            else:
                device.count_drop(Drop.UNKNOWN_MESSAGE)
        inbound.flush()
        has_rested = now - self._sockets_rested > REST
        self._sockets_rested = end = boottime()
        self._tun_rested += end - now
        self._spent += end - now
        if has_rested:
            self._tun_readable()  # what came may have been answered by the kernel of this node or of a pod, at once
        self.settle(now)

    def _receive_many(self, sock: socket.socket, now: float) -> list[Arrival]:
        """What one call brings.

        At 20,000 initiations a second, with this, and refusals sent many in a call, TCP out keeps 70 % of what it carries
        instead of 49 %, and TCP in, which is copied once more, 65 % instead of 55 %.
        """
        try:
            many = self._sockets.receive_many(sock)
        except OSError:  # nothing, or an ICMP error of something sent earlier, after which the rest is still readable
            return []
        self._device.inbound.many_received(many, now)
        return many

    def settle(self, now: float) -> None:
        """After anything was fed to the device: work on handshakes, and see that its next deadline is kept."""
        device = self._device
        if device.has_messages and not self._busy:
            self._busy = True
            self._loop.call_soon(self._handle_messages)
        if device.next_deadline() < self._timer_at:
            self._arm(now)

    def _handle_messages(self) -> None:
        """A turn for handshakes, a third as long as sockets and TUN had since the last: in a flood, data keeps most of the time.

        Where there is little data turns are short, and many: a flood gets what is left. Measured with 20,000 initiations a second
        beside TCP that takes all there is, which keeps 67 %: of 32 newcomers, whose first attempt gets a cookie, none needed a
        third. With a half, TCP keeps as much, because there is nothing left to refuse.
        """
        device, now = self._device, boottime()
        until = now + min(max(self._spent / 3, LEAST), MOST)
        while device.has_messages and boottime() < until:
            device.handle_messages(1, now)
        self._busy, self._spent = False, 0.0
        self.settle(now)
        spent = boottime() - now
        self._tun_rested += spent  # that was no rest for them
        self._sockets_rested += spent

    # -- time ----------------------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._device.next_deadline()
        # The loop counts in milliseconds and may round down: a wake-up a millisecond late finds its deadline passed.
        self._timer = self._loop.call_later(max(0.0, self._timer_at - now) + 0.001, self._expire)

    def _expire(self) -> None:
        now = boottime()
        self._timer, self._timer_at = None, inf
        self._device.expire(now)
        if self._device.next_deadline() < inf:
            self._arm(now)
