"""Two real implementations and the wire between them: what the rows of :mod:`tests.conformance.matrix` have at hand.

    tester ─ inner ─ box ─ outer ─ tester ─ wire ─ tester ─ outer ─ box ─ inner ─ tester
    ╰─────────────── first ──────────────╯        ╰─────────────── second ─────────────╯

Each *side* is a box with a tester's namespace of its own, as in any other trial. The testers are routers here, and the wire joins
them: a good one (a veth), or a bad one (:mod:`tests.conformance.forwarder`). So a box is a node behind routers, it can move
within its network, the way between may be narrower than either end, and what goes by is seen in clear on the inner legs and
sealed on the outer ones. The sides know each other after :meth:`Pair.connect`; who sends first, initiates.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property

from controller.demo.topology import Address, Namespace, TopologyError
from noise.crypto import clamp, public_key
from tests.conformance.behaviour import Broken
from tests.conformance.boxes import BOX_HOSTS, INTERFACE, MTU, PORT, Box, ConformanceError
from tests.conformance.forwarder import INTERFACE as WIRE
from tests.conformance.forwarder import Badness, Count
from tests.conformance.peer import TRANSPORT
from tests.conformance.trial import Inner, Sniffer, udp_payload
from tests.e2e.lab import inside
from wgpy.config import NO_KEY, Change, Endpoint, PeerSnapshot, Prefix, SetDevice, SetPeer

WIRE_MTU = 1500
WIRE_NETWORKS = {4: ("10.55.0.1", "10.55.0.2", 30), 6: ("fd55::1", "fd55::2", 64)}
CHUNK = 8192
PACE = 0.05
"""Seconds between the chunks of a steady transfer: 1.3 Mb/s, which costs nobody much."""
SOCKET_SECONDS = 60.0
NUMBER = struct.Struct("!Q")


class Side:
    """One of the two: a box, its keys, and its place."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.name = box.name
        self.plan = box.plan
        self.tester = box.tester
        self.private = NO_KEY
        self.host = {4: BOX_HOSTS[0], 6: BOX_HOSTS[0]}
        """By which its peer knows it; ``hosts`` are all that it has."""
        self.hosts = {4: set(BOX_HOSTS), 6: set(BOX_HOSTS)}
        self.inner = {version: Inner(self.tester, self.plan, version) for version in (4, 6)}

    @property
    def public(self) -> bytes:
        return public_key(self.private)

    @property
    def allowed_ips(self) -> tuple[Prefix, ...]:
        """What its peer is to send to it."""
        return tuple(self.plan.network(version, leg) for leg in (99, 66) for version in (4, 6))

    def outer(self, version: int) -> Address:
        return self.plan.outer(version, self.host[version])

    def endpoint(self, version: int, port: int = PORT) -> Endpoint:
        return Endpoint(str(self.outer(version)), port)

    @property
    def peer(self) -> PeerSnapshot:
        """The other side, as this one shows it."""
        peers = self.box.get().peers
        if len(peers) != 1:
            raise Broken(f"{self.name} shows {len(peers)} peers instead of one")
        return peers[0]

    @cached_property
    def leg(self) -> str:
        """The box's name for its outer leg."""
        words = self.box.run(["ip", "-o", "route", "get", str(self.plan.outer(4, 1))]).stdout.split()
        return words[words.index("dev") + 1]

    def close(self) -> None:
        for each in self.inner.values():
            each.socket.close()
        self.box.close()


class Pair:
    """Two sides, with a good wire between them to begin with. ``first`` is the one that a row is about."""

    def __init__(self, first: Box, second: Box) -> None:
        self.first, self.second = self.sides = Side(first), Side(second)
        if first.name == second.name:
            self.second.name = f"the other {second.name}"
        self.outer = 4
        self._connected: int | None = None
        self.preshared = NO_KEY
        self._opened: list[Sniffer] = []
        self._forwarder: subprocess.Popen[str] | None = None
        self._lay()
        self.wire()

    def close(self) -> None:
        self._end_forwarder()
        for each in self._opened:
            each.socket.close()
        for side in self.sides:
            side.close()

    def ended(self) -> list[str]:
        """The implementations that no longer answer."""
        found = []
        for side in self.sides:
            try:
                side.box.get()
            except Broken:
                found.append(side.box.name)
        return found

    def other(self, side: Side) -> Side:
        return self.second if side is self.first else self.first

    @property
    def directions(self) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
        return (self.first, self.second), (self.second, self.first)

    # The boxes

    def connect(self, outer: int = 4, *, preshared: bool = False) -> None:
        """New keys for both sides, and each other as their only peer: everything begins anew, and nobody has spoken yet.

        For another IP version outside they are started anew, too: once it has sent over IPv4, wireguard-go spoils the addresses
        of what it sends over IPv6 (protocol 1.11), which is for the row about roaming to notice.
        """
        if self._connected not in (None, outer):
            for side in self.sides:
                side.box.restart()
        self.outer = self._connected = outer
        self.preshared = os.urandom(32) if preshared else NO_KEY
        for side in self.sides:
            side.private = clamp(os.urandom(32))
        for side in self.sides:
            self.configure(side)

    def meet(self, outer: int = 4) -> None:
        """Connect them, and let the first side initiate. Two who begin at once may need several tries."""
        self.connect(outer)
        self.expect_packets("the first packets", versions=(4,))

    def configure(self, side: Side) -> None:
        """Give a box all of its configuration, and bring it up."""
        changes: list[Change] = [SetDevice(side.private, PORT, replace_peers=True), self.introduction(self.other(side))]
        try:
            side.box.set(changes)
            self.up(side)
        except (Broken, TopologyError):
            # A new key is too much for gotatun while it runs. There is a row about that; this is only to begin anew.
            side.box.restart()
            side.box.set(changes)
            self.up(side)

    def introduction(self, of: Side) -> SetPeer:
        """What the other side has to know of this one."""
        preshared = self.preshared if self.preshared != NO_KEY else None
        return SetPeer(of.public, preshared_key=preshared, endpoint=of.endpoint(self.outer), allowed_ips=of.allowed_ips)

    def forget_session(self, side: Side) -> None:
        """Let a side remove its peer and learn it again: it has no session then, and initiates when it has something to send."""
        other = self.other(side)
        side.box.set([SetPeer(other.public, remove=True)])
        side.box.set([self.introduction(other)])

    def up(self, side: Side) -> None:
        side.box.up()
        other = self.other(side)
        side.box.ip(*(f"route replace {prefix} dev {INTERFACE}" for prefix in other.allowed_ips), *self._ways(side))

    def restart(self, side: Side) -> None:
        """End it and start it again, with the same configuration."""
        side.box.restart()
        self.configure(side)

    def move(self, side: Side, version: int, host: int) -> None:
        """Give a box this outer address instead of those that it has."""
        side.host[version] = host
        length = 24 if version == 4 else 64
        # Never without any: a source address would be found elsewhere. The first one's end must not be that of the others.
        side.box.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/promote_secondaries"])
        side.box.ip(
            f"addr replace {side.outer(version)}/{length} dev {side.leg}",
            *(f"addr del {side.plan.outer(version, old)}/{length} dev {side.leg}" for old in side.hosts[version] - {host}),
            *self._ways(side, versions=(version,)),
        )
        side.hosts[version] = {host}

    def leave(self, side: Side, version: int) -> None:
        """Take all its outer addresses of this IP version from a box."""
        side.box.run(["ip", f"-{version}", "addr", "flush", "dev", side.leg, "scope", "global"])
        side.hosts[version] = set()

    # The wire

    def wire(self, mtu: int = WIRE_MTU) -> None:
        """A good wire. The testers, as routers, say so where a packet is larger than its MTU, or fragment it."""
        self._end_forwarder()
        one, two = (side.tester for side in self.sides)
        self._cut()
        one.configure(links=[f"link add {WIRE} type veth peer name {WIRE} netns {two.name}"])
        self._join(mtu)

    def bad_wire(self, badness: Badness, mtu: int = WIRE_MTU) -> None:
        """A bad one instead. :meth:`counts` says what it has done."""
        self._end_forwarder()
        self._cut()
        command = [sys.executable, "-m", "tests.conformance.forwarder", *(side.tester.name for side in self.sides)]
        command += [f"--{name}={value}" for name, value in asdict(badness).items()]
        self._forwarder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._forwarder.stdout is not None
        if self._forwarder.stdout.readline() != "ready\n":
            raise ConformanceError("the forwarder did not start")
        self._join(mtu)

    def counts(self) -> list[Count]:
        """What the bad wire has done, from first to second and back. It is gone after that."""
        said = self._end_forwarder()
        return [Count(**each) for each in json.loads(said)]

    def _end_forwarder(self) -> str:
        if self._forwarder is None:
            return "[]"
        forwarder, self._forwarder = self._forwarder, None
        try:
            return forwarder.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            forwarder.kill()
            forwarder.communicate()
            raise ConformanceError("the forwarder did not end") from None

    def _cut(self) -> None:
        for side in self.sides:
            side.tester.run(["ip", "link", "del", WIRE], check=False)

    def _lay(self) -> None:
        """The ways of either inner leg to the other one, which do not depend on the wire."""
        for side in self.sides:
            # The MTU of the tunnel: nobody has to find that out first, and TCP says its segment size by it.
            side.tester.configure(
                links=[
                    f"route replace {prefix} via {side.plan.inner(prefix.version, 11)} dev {side.tester.INNER} mtu {MTU}"
                    for prefix in self.other(side).allowed_ips
                ]
            )

    def _join(self, mtu: int) -> None:
        for number, side in enumerate(self.sides):
            own = (f"addr replace {ends[number]}/{ends[2]} dev {WIRE}" for ends in WIRE_NETWORKS.values())
            side.tester.configure(links=[f"link set {WIRE} mtu {mtu} up", *own, *self._ways(side, number)])

    def _ways(self, side: Side, number: int | None = None, versions: Iterable[int] = (4, 6)) -> list[str]:
        """The routes to the other side's outer network: of the box by its tester, of the tester (``number``) by the wire."""
        ways = []
        for version in versions:
            via = str(side.plan.outer(version, 1)) if number is None else str(WIRE_NETWORKS[version][1 - number])
            ways.append(f"route replace {self.other(side).plan.network(version, 77)} via {via}")
        return ways

    # What goes through it

    def send(self, source: Side, payload: bytes, version: int = 4) -> None:
        """A UDP packet from one inner leg to the other."""
        source.inner[version].send(payload, to=self.other(source).plan.inner(version))

    def expect_packets(self, why: str, *, seconds: float = 12.0, versions: tuple[int, ...] = (4, 6)) -> None:
        """A packet each way, the first side's first; raises Broken unless both come out. What came before is passed over."""
        for source, destination in self.directions:
            for version in versions:
                payload = os.urandom(16)
                self.send(source, payload, version)
                await_packet(destination, payload, f"{why}: from {source.name} to {destination.name}", version, seconds)

    def ping(self, source: Side, version: int, *options: str, count: int = 3, seconds: float = 10.0) -> int:
        """ICMP echo from inner leg to inner leg, one at a time; the number of replies."""
        address = self.other(source).plan.inner(version)
        once = ["ping", "-n", "-q", "-c1", "-W", f"{seconds:g}", "-I", str(source.plan.inner(version)), *options, str(address)]
        script = f'for i in $(seq {count}); do "$@"; done'
        said = source.tester.run(["sh", "-c", script, "sh", *once], check=False, timeout=count * seconds + 20).stdout
        return said.count(" 1 received")

    @contextmanager
    def flow(self, source: Side, version: int = 4, *, size: int | None = None) -> Iterator[Flow]:
        """A transfer that runs meanwhile; what came of it is looked at in the end, unless something else went wrong."""
        flow = Flow(source, self.other(source), version, size)
        try:
            yield flow
            flow.finish()
        finally:
            flow.close()

    def sniffer(self, side: Side) -> Sniffer:
        """All that comes from this box to its tester's outer leg."""
        made = Sniffer(side.tester, side.tester.OUTER)
        self._opened.append(made)
        return made

    def messages(self, sniffer: Sniffer, kind: int) -> list[bytes]:
        """The WireGuard messages of one type that it has seen until now, in IPv4."""
        found = [
            udp_payload(packet) for packet in sniffer.packets(0.0) if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_UDP
        ]
        return [message for message in found if message[:4] == kind.to_bytes(4, "little")]

    def session(self, why: str) -> tuple[int, int]:
        """The receiver index of each side's packets at this moment: another session has another one."""
        sniffers = [self.sniffer(side) for side in self.sides]
        self.expect_packets(why, versions=(4,))
        first, second = (self.messages(each, TRANSPORT)[-1] for each in sniffers)
        for each in sniffers:
            each.socket.close()
        return int.from_bytes(first[4:8], "little"), int.from_bytes(second[4:8], "little")


def await_packet(destination: Side, payload: bytes, why: str, version: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if destination.inner[version].receive(left) == payload:
            return
    raise Broken(f"{why}: no packet over IPv{version} within {seconds:g} s")


def open_socket(where: Namespace, kind: socket.SocketKind, address: Address, port: int = 0) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    opened = inside(where, lambda: socket.socket(family, kind))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.settimeout(SOCKET_SECONDS)
    opened.bind((str(address), port))
    return opened


class Flow:
    """One TCP connection from inner leg to inner leg. Both ends make a SHA-256 of what they handle, and the time between arrivals
    is watched. Without ``size`` (bytes) it goes on at a steady rate until :meth:`finish`.
    """

    def __init__(self, source: Side, destination: Side, version: int, size: int | None) -> None:
        self.said = f"TCP from {source.name} to {destination.name} over IPv{version}"
        self._left = size
        self._stop = threading.Event()
        self._failed: list[OSError] = []
        self._sent, self._came = hashlib.sha256(), hashlib.sha256()
        self._came_at = time.monotonic()
        self._gap = 0.0
        self.sent = self.came = 0
        address = destination.plan.inner(version)
        self._listener = open_socket(destination.tester, socket.SOCK_STREAM, address)
        self._listener.listen(1)
        self._sender = open_socket(source.tester, socket.SOCK_STREAM, source.plan.inner(version))
        self._sockets = [self._sender, self._listener]
        self._threads = [threading.Thread(target=self._guarded, args=(run,), daemon=True) for run in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()

    @property
    def gap(self) -> float:
        """Seconds: the longest time without an arrival since the last :meth:`mark`, the current one included."""
        return max(self._gap, time.monotonic() - self._came_at)

    def mark(self) -> None:
        self._gap, self._came_at = 0.0, time.monotonic()

    def expect_more(self, why: str, seconds: float) -> None:
        """Wait until more arrives. Raises Broken if nothing does within ``seconds``."""
        before, deadline = self.came, time.monotonic() + seconds
        while self.came == before:
            self._check()
            if time.monotonic() > deadline:
                raise Broken(f"{why}: {self.said}: nothing more within {seconds:g} s")
            time.sleep(0.01)

    def finish(self, seconds: float = SOCKET_SECONDS) -> None:
        """Let it end. Raises Broken unless all that was sent arrived, as it was."""
        if self._left is None:
            self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._check()
        if any(thread.is_alive() for thread in self._threads):
            raise Broken(f"{self.said}: no end after {seconds:g} s, {self.came} of {self.sent} bytes have come")
        if (self.came, self._came.digest()) != (self.sent, self._sent.digest()):
            raise Broken(f"{self.said}: what came is not what was sent ({self.came} of {self.sent} bytes)")

    def close(self) -> None:
        self._stop.set()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # whoever waits in a call on it wakes up
        for thread in self._threads:
            thread.join(SOCKET_SECONDS)
        for each in self._sockets:
            each.close()

    def _check(self) -> None:
        if self._failed:
            raise Broken(f"{self.said}: broke off after {self.came} bytes: {self._failed[0]}")

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except OSError as error:
            self._failed.append(error)

    def _send(self) -> None:
        self._sender.connect(self._listener.getsockname()[:2])
        block = memoryview(random.Random(1).randbytes(CHUNK + 256))
        while not self._stop.is_set() and self._left != 0:
            start = self.sent // CHUNK % 256  # so that no chunk can stand for the one before
            chunk = block[start : start + CHUNK if self._left is None else start + min(CHUNK, self._left)]
            self._sender.sendall(chunk)
            self._sent.update(chunk)
            self.sent += len(chunk)
            if self._left is None:
                self._stop.wait(PACE)
            else:
                self._left -= len(chunk)
        self._sender.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        connection, _ = self._listener.accept()
        self._sockets.append(connection)
        connection.settimeout(SOCKET_SECONDS)
        while data := connection.recv(1 << 16):
            now = time.monotonic()
            self._gap, self._came_at = max(self._gap, now - self._came_at), now
            self._came.update(data)
            self.came += len(data)


class Stream:
    """Numbered UDP packets of ``size`` bytes from inner leg to inner leg, and which of them came."""

    def __init__(self, source: Side, destination: Side, version: int = 4, size: int = 200) -> None:
        self.said = f"from {source.name} to {destination.name} over IPv{version}"
        self.receiver = destination.box.name
        self.sent = 0
        self.sent_at: list[float] = []
        self.came: set[int] = set()
        self.twice: set[int] = set()
        self._padding = bytes(size - NUMBER.size)
        self._stop = threading.Event()
        self._receiver = open_socket(destination.tester, socket.SOCK_DGRAM, destination.plan.inner(version))
        self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sender = open_socket(source.tester, socket.SOCK_DGRAM, source.plan.inner(version))
        self._sender.connect(self._receiver.getsockname()[:2])
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def send(self) -> None:
        with contextlib.suppress(OSError):  # an ICMP error that came for one of those before
            self._sender.send(NUMBER.pack(self.sent) + self._padding)
        self.sent += 1
        self.sent_at.append(time.monotonic())

    def lost(self, seconds: float = 5.0) -> list[int]:
        """The numbers that have not come, after waiting for them for so long."""
        deadline = time.monotonic() + seconds
        while len(self.came) < self.sent and time.monotonic() < deadline:
            time.sleep(0.02)
        return sorted(set(range(self.sent)) - self.came)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sender.close()
        self._receiver.close()

    def _receive(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._receiver], [], [], 0.2)[0]:
                continue
            (number,) = NUMBER.unpack_from(self._receiver.recv(1 << 16))
            (self.twice if number in self.came else self.came).add(number)


@contextmanager
def streams(pair: Pair, version: int = 4, size: int = 200) -> Iterator[tuple[Stream, Stream]]:
    """One each way: from first to second, and back."""
    there = Stream(pair.first, pair.second, version, size)
    try:
        back = Stream(pair.second, pair.first, version, size)
        try:
            yield there, back
        finally:
            back.close()
    finally:
        there.close()


def send_steadily(each: Iterable[Stream], rate: float, seconds: float) -> None:
    """Send so many a second in each stream. What a stall of this machine kept from being sent is left out, not made up for."""
    each = list(each)
    due = time.monotonic()
    end = due + seconds
    while (now := time.monotonic()) < end:
        for stream in each:
            stream.send()
        due = max(due + 1 / rate, now)
        time.sleep(max(0.0, due - time.monotonic()))
