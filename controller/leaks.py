"""The leak detector: are there packets in clear on the underlay that ought to be encrypted?

Routes, rules and keys may all be right and yet a packet goes another way: somebody has flushed a table, another program has a
rule of its own, a peer has lost its configuration. So the detector trusts none of them. It looks at the wire itself, on the
links that have this node's addresses: a packet socket on each, with a filter in the kernel (:mod:`controller.leak_filter`) that
takes only what has one end in a range of ours and the other in a range of a peer. As long as nothing leaks it is never woken.

A peer counts from when its traffic has been encrypted for SETTLE_SECONDS and our key has been published: nodes that find each
other speak in clear until both have. What is seen is counted GRACE_SECONDS later, if the peer is one still: a node that leaves
the mesh, or loses its key, sends in clear before we hear of it.

What is counted are packets as the kernel hands them over: what a network card is to cut up into segments is one. Reading is
bounded, PORTION packets in PAUSE_SECONDS; what comes faster is ``unread``, and counted by the kernel alone.

:meth:`Detector.look` blocks and may be called in any thread; everything else belongs to the loop.
"""

import asyncio
import ctypes
import logging
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from controller.leak_filter import SNAP, Pairs, ends, program
from controller.model import Cluster, Family
from controller.netlink import Kernel
from controller.prefixes import LongestMatch
from controller.status import AgentStatus, Direction, FamilyStatus, Leak, LeakStatus, Traffic

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
GRACE_SECONDS = 1.0

REPORT_SECONDS = 60.0
"""How often, at most, the history and Events are told of more leaks. Metrics have them at once."""

PORTION = 200
PAUSE_SECONDS = 0.05

LACKS_NET_RAW = "it needs CAP_NET_RAW: grant the agent that capability, or start it without --detect-leaks"
NO_LINK = "no interface to other hosts has this node's address: name those of the underlay (--detect-leaks eth0,eth1)"
LOOPBACK, DUMMY = "lo", "dummy"

# <linux/if_ether.h>, <linux/if_packet.h>, <asm-generic/socket.h>
ETH_P_ALL = 3
PACKET_OTHERHOST, PACKET_LOOPBACK = 3, 5
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_ATTACH_FILTER = 26

_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}

_Key = tuple[Family, str, Direction]


@dataclass(frozen=True, slots=True)
class Watch:
    """What to look for, and where. ``links`` are names and indices; ``owners`` say whose an address is; only what is between this
    node and ``peers`` is a leak. ``unsettled_seconds`` is when there will be more peers, None for never."""

    links: Mapping[str, int]
    owners: Mapping[Family, LongestMatch[str]] = field(default_factory=dict)
    peers: frozenset[tuple[Family, str]] = frozenset()
    program: bytes = b""
    unsettled_seconds: float | None = None


@dataclass(slots=True)
class _Suspicion:
    """Packets that were seen, and when they count (monotonic seconds)."""

    due: float
    example: str
    packets: int = 0


class Detector:
    """The leak detector of ``node``. ``interfaces`` are the links to watch; without any, those that have the node's addresses.

    ``notify`` is called when there is news to report.
    """

    def __init__(self, node: str, kernel: Kernel, interfaces: Sequence[str] = ()) -> None:
        self.notify: Callable[[], None] = lambda: None
        self._node = node
        self._kernel = kernel
        self._interfaces = tuple(interfaces)
        self._watch = Watch({})
        self._sockets: dict[str, tuple[int, socket.socket]] = {}
        self._readable: set[str] = set()
        self._is_readable = asyncio.Event()
        self._suspicions: dict[_Key, _Suspicion] = {}
        self._leaks: dict[_Key, Leak] = {}
        self._unread = 0
        self._why: str | None = None
        self._told: tuple[Leak, ...] = ()
        self._told_at = -REPORT_SECONDS
        self._reminder: asyncio.TimerHandle | None = None
        # Of look, which another thread calls
        self._since: dict[tuple[Family, str], float] = {}
        self._seen: object = None
        self._made = Watch({})

    # What there is to be seen

    def status(self) -> LeakStatus:
        """What has been seen so far."""
        leaks = sorted(self._leaks.values(), key=lambda leak: (leak.family.value, leak.peer, leak.direction.value))
        return LeakStatus(tuple(sorted(self._sockets)), self._why, self._unread, tuple(leaks))

    def report(self) -> LeakStatus:
        """The same for the records, in which the count of leaks goes up every REPORT_SECONDS at most."""
        status, now = self.status(), time.monotonic()
        if status.leaks != self._told and now >= self._told_at + REPORT_SECONDS:
            self._told, self._told_at = status.leaks, now
        return replace(status, leaks=self._told)

    # Deciding

    def look(self, cluster: Cluster, status: AgentStatus) -> Watch:
        """What to watch, as things are. Raises NetlinkRefusal."""
        peers, unsettled = self._settled(status)
        seen = (
            peers,
            tuple((one.family, one.ranges, [(peer.name, peer.ranges) for peer in one.peers]) for one in status.families),
        )
        if seen != self._seen:
            self._made, self._seen = _watch(self._node, status.families, peers), seen
        return replace(self._made, links=self._links(cluster), unsettled_seconds=unsettled)

    def _settled(self, status: AgentStatus) -> tuple[frozenset[tuple[Family, str]], float | None]:
        """The peers that have been encrypted to for a while, and when the next will have been."""
        now = time.monotonic()
        encrypted = [
            (family.family, peer.name)
            for family in status.families
            if family.is_enabled and family.is_published
            for peer in family.peers
            if peer.traffic is Traffic.ENCRYPTED
        ]
        self._since = {key: self._since.get(key, now) for key in encrypted}
        waiting = [since + SETTLE_SECONDS - now for since in self._since.values() if now < since + SETTLE_SECONDS]
        settled = frozenset(key for key, since in self._since.items() if now >= since + SETTLE_SECONDS)
        return settled, min(waiting, default=None)

    def _links(self, cluster: Cluster) -> Mapping[str, int]:
        names = set(self._interfaces)
        own = cluster.nodes.get(self._node)
        if not names and own is not None:
            addresses = (own.of(family).address for family in Family)
            found = (self._kernel.underlay(address) for address in addresses if address is not None)
            names = {underlay.name for underlay in found if underlay is not None and self._is_wire(underlay.name)}
        links = {}
        for name in names:
            with suppress(OSError):  # there is none of that name just now
                links[name] = socket.if_nametoindex(name)
        return links

    def _is_wire(self, name: str) -> bool:
        """Where BGP announces the node's address, it often stands on a link by which no packet leaves: to watch that one would be
        to see no leak, ever."""
        found = self._kernel.find_link(name)
        return name != LOOPBACK and found is not None and found.kind != DUMMY

    # Watching

    def follow(self, watch: Watch) -> None:
        """Watch this from now on."""
        before, why = tuple(self._sockets), NO_LINK if not watch.links else None
        if missing := sorted(set(self._interfaces) - set(watch.links)):
            why = f"there is no interface {', '.join(missing)}"
        for name, (index, one) in list(self._sockets.items()):
            if watch.links.get(name) != index:
                self._close(name)
            elif watch.program != self._watch.program:
                _attach(one, watch.program)
        self._watch = watch
        for name, index in watch.links.items():
            if name not in self._sockets:
                why = self._open(name, index) or why
        if watch.unsettled_seconds is not None:
            self._remind(watch.unsettled_seconds + PAUSE_SECONDS)
        self._say(before, why)

    async def run(self) -> None:
        """Look at what the kernel has taken, until cancelled."""
        try:
            while True:
                await self._is_readable.wait()
                self._is_readable.clear()
                names, self._readable = self._readable, set()
                for name in names & self._sockets.keys():
                    self._read(name)
                await asyncio.sleep(PAUSE_SECONDS)
                for name in names & self._sockets.keys():
                    self._listen(name)
        finally:
            for name in list(self._sockets):
                self._close(name)
            if self._reminder is not None:
                self._reminder.cancel()

    def _open(self, name: str, index: int) -> str | None:
        """Begin to watch a link; what is wrong if that cannot be."""
        try:
            # No protocol, and so no packet, until the filter is there and it is bound.
            one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except PermissionError:
            return LACKS_NET_RAW
        except OSError as error:
            return f"this kernel has no packet sockets: {error.strerror}"
        try:
            one.setblocking(False)
            _attach(one, self._watch.program)
            one.bind((name, ETH_P_ALL))
        except OSError as error:
            one.close()
            return f"{name} cannot be watched: {error.strerror}"
        self._sockets[name] = index, one
        self._listen(name)
        return None

    def _close(self, name: str) -> None:
        _, one = self._sockets.pop(name)
        asyncio.get_running_loop().remove_reader(one)
        one.close()

    def _listen(self, name: str) -> None:
        asyncio.get_running_loop().add_reader(self._sockets[name][1], self._can_read, name)

    def _can_read(self, name: str) -> None:
        asyncio.get_running_loop().remove_reader(self._sockets[name][1])
        self._readable.add(name)
        self._is_readable.set()

    def _read(self, name: str) -> None:
        _, one = self._sockets[name]
        for _ in range(PORTION):
            try:
                packet, (_, _, kind, *_) = one.recvfrom(SNAP)
            except OSError:  # there is nothing more, or the link has gone down, which is said once
                break
            if kind not in (PACKET_OTHERHOST, PACKET_LOOPBACK):
                self._judge(packet, name)
        _, lost = struct.unpack("II", one.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._unread += lost

    def _judge(self, packet: bytes, name: str) -> None:
        """Take note of a packet that the filter took, which may take too many."""
        for number, (source, destination) in enumerate(ends(packet)):
            family = Family(source.version)
            owners = self._watch.owners.get(family)
            if owners is None:
                continue
            left, right = (owners.lookup(ip_network(address)) for address in (source, destination))
            for mine, peer, direction in ((left, right, Direction.OUTBOUND), (right, left, Direction.INBOUND)):
                if mine == self._node and peer is not None and (family, peer) in self._watch.peers:
                    tunnel = " inside a tunnel" if number else ""
                    self._suspect(
                        (family, peer, direction), f"{source} > {destination}{_protocol(packet, number)}{tunnel} on {name}"
                    )
                    return

    # Counting

    def _suspect(self, key: _Key, example: str) -> None:
        if key not in self._suspicions:
            self._suspicions[key] = _Suspicion(time.monotonic() + GRACE_SECONDS, example)
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._count)
        self._suspicions[key].packets += 1

    def _count(self) -> None:
        now = time.monotonic()
        due = [key for key, suspicion in self._suspicions.items() if now >= suspicion.due - PAUSE_SECONDS]
        for key in due:
            suspicion, (family, peer, direction) = self._suspicions.pop(key), key
            if (family, peer) in self._watch.peers:
                known = self._leaks.get(key) or Leak(family, peer, direction, 0, 0.0, suspicion.example)
                self._leaks[key] = replace(known, packets=known.packets + suspicion.packets, at=time.time())
        if self.status().leaks != self._told:
            self._remind(max(self._told_at + REPORT_SECONDS - now, 0.0))

    def _remind(self, seconds: float) -> None:
        """Notify in a while, or earlier if that was agreed upon before."""
        loop = asyncio.get_running_loop()
        if (
            self._reminder is not None
            and not self._reminder.cancelled()
            and loop.time() < self._reminder.when() <= loop.time() + seconds
        ):
            return
        if self._reminder is not None:
            self._reminder.cancel()
        self._reminder = loop.call_later(seconds, self.notify)

    def _say(self, before: tuple[str, ...], why: str | None) -> None:
        """Log what has changed, and have it reported."""
        now = tuple(self._sockets)
        if why is not None and why != self._why:
            log.warning("the leak detector watches %s: %s", ", ".join(now) or "nothing", why)
        elif now != before:
            log.info("the leak detector watches %s", ", ".join(now))
        if now != before or why != self._why:
            self._why = why
            self._remind(0.0)


def _watch(node: str, families: Sequence[FamilyStatus], peers: frozenset[tuple[Family, str]]) -> Watch:
    """What to look for where the ranges are these."""
    owners, pairs = {}, {}
    for one in families:
        ranges = [(ip_network(text), node) for text in one.ranges]
        ranges += [(ip_network(text), peer.name) for peer in one.peers for text in peer.ranges]
        owners[one.family] = LongestMatch(ranges)
        pairs[one.family] = Pairs(
            own=frozenset(prefix for prefix, owner in ranges if owner == node),
            peers=frozenset(prefix for prefix, owner in ranges if (one.family, owner) in peers),
        )
    return Watch({}, owners, peers, program(pairs))


def _attach(one: socket.socket, code: bytes) -> None:
    """Have the kernel run this program on what the socket is to get. Raises OSError."""
    instructions = ctypes.create_string_buffer(code)
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions)))


def _protocol(packet: bytes, number: int) -> str:
    """What the outer header says is inside it; of a packet in a tunnel, nothing."""
    if number:
        return ""
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    return f", {_PROTOCOLS.get(protocol, f'protocol {protocol}')},"
