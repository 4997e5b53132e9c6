"""A flood of initiations from thousands of addresses that are not the sender's, and a tunnel to measure beside it.

The initiations are true ones: made by strangers who know the public key of the box, so that mac1 is right, and only an X25519
operation shows that they are nobody's. Frames are made once and sent again and again through a packet socket, many in one call:
that costs a tenth of a core at 20,000 a second, and the rest of the machine is for who is flooded.

They come by the box's inner leg, since the kernel counts the packets of each interface, and there are no others there. What is
sent to their senders goes back to the tester, which throws it away.

    with Flood(trial, rate=20_000) as flood:
        ...
    flood.arrived()  # so many, by the box's own count

Without ``every`` it is even. With it, they come in bursts, of which each puts a WireGuard under load and the pauses between
leave it the time to do its work: for looking at what it does under load, the gentler way.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Self

from noise.cookie import CookieHolder
from noise.crypto import clamp, public_key
from noise.handshake import LocalStatic, RemoteStatic, create_initiation
from noise.tai64n import timestamp
from tests.conformance.behaviour import Broken
from tests.conformance.boxes import MTU, PORT, BoxNamespace, ConformanceError
from tests.conformance.trial import Trial, udp_packet
from tests.e2e.lab import inside
from wgpy.client import Client, ClientError
from wgpy.config import Endpoint, SetDevice, SetPeer

SOURCES = {4: ip_network("198.18.0.0/15"), 6: ip_network("2001:2::/48")}
"""Set aside for measurements (RFC 2544, RFC 5180)."""
THROWN_AWAY = """add table netdev flood
add chain netdev flood back {{ type filter hook ingress device {leg} priority 0; }}
flush chain netdev flood back
add rule netdev flood back ip daddr {ipv4} drop
add rule netdev flood back ip6 daddr {ipv6} drop"""
"""Rules for nft(8) that throw away what is sent to those, at the very door: on this machine it would be a load for the box."""
FRAMES = 8192
STRANGERS = 64
EVERY = 0.005
SENDER_NICENESS = -15
AUTOGROUP = Path("/proc/self/autogroup")
"""Where the kernel shares the cores out among sessions first, niceness is that of a session (sched(7))."""
MAX_OWED = 0.1
"""Seconds' worth of frames that are made up for at most, if the sender had to wait for a core."""

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20  # <linux/if_packet.h>
ETHERTYPES = {4: 0x0800, 6: 0x86DD}


class _Vector(ctypes.Structure):
    """struct iovec, see readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr, see sendmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr, see sendmmsg(2)."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Frames:
    """Frames of one length in memory, ready to be sent in one call."""

    def __init__(self, frames: list[bytes]) -> None:
        size, self.count = len(frames[0]), len(frames)
        self._bytes = ctypes.create_string_buffer(b"".join(frames))
        start = ctypes.addressof(self._bytes)
        self._vectors = (_Vector * self.count)(*(_Vector(start + size * row, size) for row in range(self.count)))
        self._messages = (_Message * self.count)()
        for row, message in enumerate(self._messages):
            message.header.vectors, message.header.vector_count = ctypes.pointer(self._vectors[row]), 1
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._next = 0

    def send(self, sock: socket.socket, count: int) -> int:
        """Send the next ``count`` at most, from the beginning again after the last. So many were sent."""
        count = min(count, self.count - self._next)
        sent = self._sendmmsg(sock.fileno(), ctypes.byref(self._messages[self._next]), count, 0)
        if sent < 0 and ctypes.get_errno() != errno.ENOBUFS:
            raise OSError(ctypes.get_errno(), "the flood cannot be sent")
        sent = max(1, sent)  # one that the full wire to a guest did not take is sent, and lost
        self._next = (self._next + sent) % self.count
        return int(sent)


class Flood:
    """``rate`` initiations a second, as long as this is entered, to the box's inner address of IP ``version``."""

    def __init__(self, trial: Trial, *, rate: float, version: int = 4, every: float = EVERY) -> None:
        self.trial, self.rate, self.version, self.every = trial, rate, version, every
        self.sent = 0
        plan = trial.plan
        self._here, self._there = plan.inner(version), plan.inner(version, 11)
        self._lay()
        self._frames = Frames(self._made())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failed: OSError | None = None

    def __enter__(self) -> Self:
        self._arrived_before = self._count()
        _be_as_nice_as(SENDER_NICENESS)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        _be_as_nice_as(0)
        self.seconds = time.monotonic() - self._began
        self._socket.close()
        if self._failed is not None:
            raise ConformanceError(f"the flood could not be sent: {self._failed}")

    def arrived(self) -> int:
        """How many have come in by the box's interface so far."""
        return self._count() - self._arrived_before

    def achieved(self) -> float:
        """So many a second, after the end. Raises ConformanceError if it was much less than asked for: then nothing was tried."""
        rate = self.arrived() / self.seconds
        if rate < 0.9 * self.rate:
            raise ConformanceError(f"the flood came to {rate:,.0f} initiations a second instead of {self.rate:,.0f}: try again")
        return rate

    def _lay(self) -> None:
        """Find the ways there and back."""
        sources = SOURCES[self.version]
        tester, box = self.trial.tester, self.trial.box
        tester.run(["nft", THROWN_AWAY.format(leg=tester.INNER, ipv4=SOURCES[4], ipv6=SOURCES[6])])
        box.ip(f"route replace {sources} via {self._here}")
        words = box.run(["ip", "-o", "route", "get", str(self._here)]).stdout.split()
        self._box_leg = words[words.index("dev") + 1]
        tester.run(["ping", "-n", "-q", "-c1", "-W5", str(self._there)])
        neighbour = tester.run(["ip", "neigh", "show", str(self._there), "dev", tester.INNER]).stdout.split()
        self._addresses = _mac(neighbour[neighbour.index("lladdr") + 1])
        here = tester.run(["cat", f"/sys/class/net/{tester.INNER}/address"]).stdout
        self._addresses += _mac(here.strip())
        self._socket = inside(tester, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        inside(tester, lambda: self._socket.bind((tester.INNER, 0)))
        self._socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)

    def _made(self) -> list[bytes]:
        strangers = [stranger(self.trial.public) for _ in range(STRANGERS)]
        header = self._addresses + ETHERTYPES[self.version].to_bytes(2)
        step = SOURCES[self.version].num_addresses // FRAMES
        return [
            header
            + udp_packet(
                SOURCES[self.version][step * row + 1], self._there, strangers[row % STRANGERS], ports=(1024 + row % 60000, PORT)
            )
            for row in range(FRAMES)
        ]

    def _run(self) -> None:
        # Who floods from outside does not wait for a core of this machine.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SENDER_NICENESS)
        try:
            began = time.monotonic() - self.every  # the first burst at once
            while not self._stop.is_set():
                due = (time.monotonic() - began) * self.rate
                if due - self.sent > (most := self.rate * max(MAX_OWED, self.every)):
                    began += (due - self.sent - most) / self.rate
                    due = self.sent + most
                while self.sent < int(due) and not self._stop.is_set():
                    self.sent += self._frames.send(self._socket, int(due) - self.sent)
                self._stop.wait(self.every)
        except OSError as error:
            self._failed = error

    def _count(self) -> int:
        return int(self.trial.box.run(["cat", f"/sys/class/net/{self._box_leg}/statistics/rx_packets"]).stdout)


def _be_as_nice_as(niceness: int) -> None:
    """Give this session, in which the flood is sent, its share of the cores."""
    if AUTOGROUP.exists():
        AUTOGROUP.write_text(str(niceness))


def stranger(responder: bytes) -> bytes:
    """An initiation to this public key by somebody whom nobody knows."""
    local = LocalStatic(os.urandom(32))
    remote = RemoteStatic(local, responder)
    index = int.from_bytes(os.urandom(4))
    message, _ = create_initiation(local, remote, os.urandom(32), index, timestamp(time.time_ns()))
    return CookieHolder(remote).add_macs(message, 0.0)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# A tunnel beside it ----------------------------------------------------------------------------------------------------

PARTNER = "wg9"
PARTNER_PORT = 51821
READY_SECONDS = 20.0


@contextmanager
def tunnel(trial: Trial) -> Iterator[None]:
    """A tunnel from the tester to the box's interface, whose other end is a wgpy in the tester's namespace."""
    plan = trial.plan
    private = clamp(os.urandom(32))
    own, other = plan.remote(4), plan.interface(4)
    trial.start()
    here, there = Endpoint(str(plan.outer(4, 1)), PARTNER_PORT), Endpoint(str(plan.outer(4, 11)), PORT)
    trial.box.set([SetPeer(public_key(private), endpoint=here, allowed_ips=(ip_network(own),))])
    with tempfile.TemporaryDirectory() as directory:
        namespace = BoxNamespace(trial.tester.name, Path(directory))
        with (Path(directory) / "log").open("wb") as log:
            process = namespace.start([sys.executable, "-m", "wgpy", "-f", PARTNER], log, {"LOG_LEVEL": "error"})
        try:
            client = Client(PARTNER, directory=namespace.sockets)
            _await(client)
            peer = SetPeer(trial.public, endpoint=there, allowed_ips=(ip_network(other),))
            client.set([SetDevice(private_key=private, listen_port=PARTNER_PORT), peer])
            namespace.configure(
                links=[
                    f"link set {PARTNER} mtu {MTU} up",
                    f"addr add {own}/32 dev {PARTNER}",
                    f"route replace {other} dev {PARTNER} src {own}",
                ]
            )
            server = namespace.start(["iperf3", "-s", "--forceflush", "-B", str(own)], subprocess.DEVNULL)
            try:
                yield
            finally:
                server.terminate()
                server.wait(READY_SECONDS)
        finally:
            process.terminate()
            process.wait(READY_SECONDS)


def _await(client: Client) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.get()
            return
        except ClientError as error:
            if time.monotonic() > deadline:
                raise ConformanceError(f"the tester's end of the tunnel did not start: {error}") from None
            time.sleep(0.05)


def throughput(trial: Trial, seconds: float, *, inward: bool) -> float:
    """What TCP carries through :func:`tunnel`, in Mb/s: to the box, or from it. Raises Broken if it carries nothing."""
    command = ["iperf3", "-J", "-c", str(trial.plan.remote(4)), "-t", f"{seconds:g}", "-O", "1", "--connect-timeout", "9000"]
    deadline = time.monotonic() + READY_SECONDS
    while True:
        said = json.loads(
            trial.box.run([*command, *(["-R"] if inward else [])], check=False, timeout=seconds + 30).stdout or "{}"
        )
        if "error" not in said and (received := said.get("end", {}).get("sum_received")):
            return float(received["bits_per_second"]) / 1e6
        if time.monotonic() > deadline:  # until then the server may not listen yet
            raise Broken(f"TCP through the tunnel: {said.get('error', 'nothing came')}")
        time.sleep(0.1)
