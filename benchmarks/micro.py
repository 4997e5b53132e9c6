"""What each HOT file costs by itself, and whether it has become dearer: microseconds, and ratios that any machine can compare.

    python -m benchmarks micro [WORDS...] [--write-baseline]

How to think about it: a *case* is one thing that a HOT file does, in one process and with nothing else in the way. Its time alone
says little, since machines differ and a shared one differs from minute to minute. So between the rounds of every case
the *calibration loops* run, which are none of our code: AEAD calls, small numpy operations, plain bytecode, a datagram through
the kernel. A case names the loops it is like, and its *ratio* is its time over theirs: on a slower machine both are
longer. Ratios are compared with the committed ``baseline.json``; a case that is dearer than there by more than the
tolerance, in the middle one of five looks, is a regression, and the exit status 1.

Times are CPU time of this thread, the kernel's work for it included, so that what else runs takes nothing. Of many
short rounds the best one counts, because everything that is not ours only ever adds. WORDS select the cases that have one
of them in their name: ``micro outbound inbound``. How the files work together, and with the kernel, is not seen here:
the suite measures that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import re
import secrets
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import uvloop

from noise.crypto import clamp, public_key, transport_cipher
from noise.handshake import TransportKeys
from noise.keypair import Keypair
from noise.replay import ReplayWindow
from noise.transport import seal, unseal
from tun.memory import MemoryTun
from tun.offload import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VIRTIO_HEADER, ZERO_HEADER, Coalescer, Superpacket, Write
from wgpy.config import Endpoint, SetDevice, SetPeer
from wgpy.core.allowedips import REMEMBERED_ADDRESSES, AllowedIPs
from wgpy.core.device import Device, Outputs
from wgpy.daemon.mmsg import SLOTS
from wgpy.daemon.pump import Pump, boottime
from wgpy.daemon.udp import Received, Sockets

ROOT = Path(__file__).parent.parent
BASELINE = Path(__file__).parent / "baseline.json"
PACKAGES = ("noise", "tun", "wgpy")

ROUNDS = 50
LOOKS = 5
"""How often a case that seems dearer is measured in all before it is called so, and each one for a baseline."""
TOLERANCE = 0.15

MSS = 1368
NOW = 1000.0
ADDRESSES = ("10.0.0.1", "10.0.0.2")
ADDRESSES6 = ("fd00::1", "fd00::2")
ENDPOINTS = (Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 1))


@dataclass(frozen=True)
class Round:
    """``work`` does a case's thing once, each time it is called. ``overhead`` is what of that is not the case's."""

    work: Callable[[], object]
    overhead: Callable[[], object] | None = None


@dataclass(frozen=True)
class Case:
    """``rounds(batches)`` prepares a round each time it is asked for the next; its ``work`` may be called ``batches`` times."""

    guards: str
    what: str
    like: tuple[str, ...]
    batches: int
    rounds: Callable[[int], Iterator[Round]]

    @property
    def name(self) -> str:
        return f"{self.guards}: {self.what}"


@dataclass(frozen=True)
class Timing:
    """The best times of a case and of the loops it is like, in microseconds."""

    cost: float
    calibration: float

    @property
    def ratio(self) -> float:
        return self.cost / self.calibration


# --- Calibration: nothing of it is ours ---


@contextmanager
def calibration_loops() -> Iterator[dict[str, Callable[[], object]]]:
    """A few tens of microseconds each of what the data path is made of."""
    encrypt_into = transport_cipher(bytes(32)).encrypt_into
    nonces = [index.to_bytes(12, "little") for index in range(16)]
    packet, sealed = bytes(1424), memoryview(bytearray(1440))

    def aead() -> None:
        deque(map(encrypt_into, nonces, repeat(packet), repeat(None), repeat(sealed)), maxlen=0)

    matrix = np.zeros((45, 1456), np.uint8)
    words, column, line = matrix[:, :1448].view(np.uint32), matrix[:, 40:44].view(np.uint32)[:, 0], np.arange(45, dtype=np.uint32)

    def arrays() -> None:
        matrix[:, :52] = 1
        column[:] = line
        for _ in range(6):
            (line[1:] != line[:-1]).any()
        np.add.reduce(words, axis=1, dtype=np.uint64)

    table = {index.to_bytes(4): index for index in range(256)}

    def bytecode() -> int:
        total = 0
        for key in table:
            total ^= table[bytes(key)] << 3 & 0xFFFF
        return total

    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    address, datagram, buffer = receiver.getsockname(), bytes(1 << 15), bytearray(1 << 16)

    def kernel() -> None:
        sender.sendto(datagram, address)
        receiver.recv_into(buffer)

    with receiver, sender:
        yield {"aead": aead, "arrays": arrays, "bytecode": bytecode, "kernel": kernel}


def timed(what: Callable[[], object], times: int) -> float:
    """CPU microseconds of one call."""
    start = time.thread_time_ns()
    for _ in range(times):
        what()
    return (time.thread_time_ns() - start) / times / 1e3


CALIBRATION_TIMES = 12


def measure(cases: Sequence[Case], loops: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Timing]:
    """Time all cases round by round, each beside the loops it is like."""
    supplies = {case.name: case.rounds(case.batches) for case in cases}
    works: dict[str, list[float]] = {case.name: [] for case in cases}
    overheads: dict[str, list[float]] = {case.name: [] for case in cases}
    calibrations: dict[str, dict[str, list[float]]] = {case.name: {loop: [] for loop in case.like} for case in cases}
    try:
        for _ in range(rounds):
            for case in cases:
                prepared = next(supplies[case.name])
                _calibrate(calibrations[case.name], loops)
                works[case.name].append(timed(prepared.work, case.batches))
                if prepared.overhead is not None:
                    overheads[case.name].append(timed(prepared.overhead, case.batches))
                _calibrate(calibrations[case.name], loops)
    finally:
        for supply in supplies.values():
            supply.close()  # type: ignore[attr-defined]
    return {
        name: Timing(min(works[name]) - min(overheads[name], default=0.0), sum(map(min, calibrations[name].values())))
        for name in works
    }


def _calibrate(times: Mapping[str, list[float]], loops: Mapping[str, Callable[[], object]]) -> None:
    for loop, found in times.items():
        found.append(timed(loops[loop], CALIBRATION_TIMES))


# --- The baseline ---


@dataclass(frozen=True)
class Verdict:
    """A case beside its baseline. ``baseline`` is None for a case that is not in it, ``timing`` for one that no longer exists."""

    name: str
    timing: Timing | None
    baseline: float | None

    @property
    def change(self) -> float:
        """By what share it is dearer; below zero, cheaper."""
        if self.timing is None or self.baseline is None:
            return 0.0
        return self.timing.ratio / self.baseline - 1

    def is_bad(self, tolerance: float) -> bool:
        """Dearer than tolerated, or a guard that has vanished."""
        return self.timing is None or self.change > tolerance

    def __str__(self) -> str:
        if self.timing is None:
            return f"{self.name:74} is in the baseline, but is measured no more"
        now = f"{self.name:74} {self.timing.cost:8.2f} {self.timing.ratio:7.3f}"
        return f"{now}     new" if self.baseline is None else f"{now} {self.baseline:7.3f} {self.change:+7.1%}"


def compare(timings: Mapping[str, Timing], baseline: Mapping[str, float], *, selected: bool = False) -> list[Verdict]:
    """Every case beside its baseline, and with all cases measured (not ``selected`` ones) what only the baseline has."""
    verdicts = [Verdict(name, timing, baseline.get(name)) for name, timing in timings.items()]
    if not selected:
        verdicts += [Verdict(name, None, ratio) for name, ratio in baseline.items() if name not in timings]
    return verdicts


def read_baseline(path: Path = BASELINE) -> dict[str, float]:
    """Ratios by case; empty where there is no baseline yet. ValueError with one line if the file is none."""
    try:
        return {str(name): float(ratio) for name, ratio in json.loads(path.read_text())["ratios"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} is no baseline: {error!r}") from error


def write_baseline(timings: Mapping[str, Timing], path: Path = BASELINE) -> None:
    """The ratios, and what they were made with: a new library may well change them."""
    made_with = {"python": platform.python_version(), **{name: version(name) for name in ("cryptography", "numpy", "uvloop")}}
    ratios = {name: float(f"{timing.ratio:.4g}") for name, timing in timings.items()}
    path.write_text(json.dumps({"made_with": made_with, "ratios": ratios}, indent=2) + "\n")


def hot_files() -> list[str]:
    """The files whose docstring has a line that begins with HOT."""
    sources = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [str(path.relative_to(ROOT)) for path in sources if re.search(r'^(?:""")?HOT\b', path.read_text(), re.MULTILINE)]


# --- Packets ---


def ipv4(protocol: int, payload: bytes) -> bytes:
    source, destination = (ip_address(address).packed for address in ADDRESSES)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0) + source + destination + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    source, destination = (ip_address(address).packed for address in ADDRESSES6)
    return struct.pack("!IHBB", 0x6000_0000, len(payload), protocol, 64) + source + destination + payload


def udp(length: int) -> bytes:
    return ipv4(17, struct.pack("!HHHH", 1, 2, 8 + length, 1) + bytes(length))


def tcp(payload: int) -> bytes:
    """A TCP header with a timestamp's worth of options, and zeros."""
    return struct.pack("!HHIIBBHHH", 1, 2, 1, 1, 0x80, 0x10, 500, 0, 0) + bytes(12 + payload)


def superpacket(segments: int) -> bytes:
    """Virtio header and packet, as a read of the TUN brings them."""
    return VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 52, MSS, 20, 16) + ipv4(6, tcp(segments * MSS))


def superpacket6(segments: int) -> bytes:
    return VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_TCPV6, 72, MSS - 20, 40, 16) + ipv6(6, tcp(segments * (MSS - 20)))


# --- Two devices without sockets ---


class Sink(Outputs):
    """Outputs that go nowhere, or into ``kept`` while that is a list."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, int]] | None = None

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        if self.kept is not None:
            self.kept.append((bytes(datagrams), segment))
        return True

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        pass


def new_device(outputs: Outputs) -> Device:
    return Device(outputs, random_bytes=secrets.token_bytes, jitter=random.random, wall_clock=time.time_ns)


def connected() -> tuple[tuple[Device, Sink], tuple[Device, Sink]]:
    """Two devices with a session."""
    keys = [clamp(secrets.token_bytes(32)) for _ in range(2)]
    ends = []
    for side in range(2):
        sink = Sink()
        device = new_device(sink)
        other = 1 - side
        allowed = (ip_network(ADDRESSES[other]), ip_network(ADDRESSES6[other]))
        peer = SetPeer(public_key(keys[other]), endpoint=ENDPOINTS[other], allowed_ips=allowed)
        device.apply([SetDevice(private_key=keys[side]), peer], NOW)
        device.up(NOW)
        ends.append((device, sink))
    (first, first_sink), (second, second_sink) = ends
    first_sink.kept, second_sink.kept = [], []
    read(first, ZERO_HEADER + udp(0))
    for _ in range(2):
        carry(first_sink, second, ENDPOINTS[0])
        carry(second_sink, first, ENDPOINTS[1])
    first_sink.kept = second_sink.kept = None
    return ends[0], ends[1]


def carry(sink: Sink, to: Device, endpoint: Endpoint) -> None:
    """Bring ``to`` what the sink has kept."""
    kept, sink.kept = sink.kept or [], []
    for datagrams, segment in kept:
        receive(to, datagrams, segment, endpoint)


def receive(device: Device, datagrams: bytes, segment: int, endpoint: Endpoint) -> None:
    device.inbound.buffer[: len(datagrams)] = datagrams
    device.inbound.datagrams_received(len(datagrams), segment, endpoint, b"", 0, NOW)
    device.inbound.flush()
    device.handle_messages(16, NOW)


def read(device: Device, *reads: bytes) -> None:
    """One turn of the TUN. A read is a virtio header and a packet."""
    for data in reads:
        load(device, data)
        device.outbound.packet_read(len(data), NOW)
    device.outbound.flush(NOW)


def load(device: Device, data: bytes) -> None:
    """What readv does."""
    start = 0
    for buffer in device.outbound.buffers:
        part = data[start : start + len(buffer)]
        buffer[: len(part)] = part
        start += len(part)
        if start >= len(data):
            return


def outbound(*reads: bytes) -> Callable[[int], Iterator[Round]]:
    """From one turn's ``reads`` to sealed datagrams."""

    def rounds(batches: int) -> Iterator[Round]:
        (device, _), _ = connected()

        def loads() -> None:
            for data in reads:
                load(device, data)

        while True:
            yield Round(lambda: read(device, *reads), loads)

    return rounds


def inbound(*reads: bytes) -> Callable[[int], Iterator[Round]]:
    """From the datagrams of one turn's ``reads``, in the trains they were sent in, to the TUN's writes."""

    def rounds(batches: int) -> Iterator[Round]:
        (sender, sink), (receiver, _) = connected()
        while True:
            sink.kept = []
            for _ in range(batches):
                read(sender, *reads)
            trains, sink.kept = sink.kept, None
            turns = iter(zip(*[iter(trains)] * (len(trains) // batches), strict=True))

            def work(turns: Iterator[tuple[tuple[bytes, int], ...]] = turns) -> None:
                for datagrams, segment in next(turns):
                    receive(receiver, datagrams, segment, ENDPOINTS[0])

            def copies(trains: Sequence[tuple[bytes, int]] = trains[: len(trains) // batches]) -> None:
                for datagrams, _ in trains:
                    receiver.inbound.buffer[: len(datagrams)] = datagrams

            yield Round(work, copies)

    return rounds


# --- The files below and beside the device ---


def keypair() -> Keypair:
    """One whose two keys are the same, so that it unseals what it has sealed."""
    return Keypair.derived(TransportKeys(1, 2, True, bytes(32), bytes(32)), NOW)


class Rows:
    """Packets of ``length`` bytes, and room for them sealed, as :func:`noise.transport.seal` takes them."""

    def __init__(self, count: int, length: int) -> None:
        self.packets = [memoryview(bytearray(length)) for _ in range(count)]
        self.sealed = [memoryview(bytearray(length + 16)) for _ in range(count)]
        self.receivers = np.zeros(count, np.uint32)
        self.counters = np.zeros(count, np.uint64)


def sealing(count: int, length: int) -> Callable[[int], Iterator[Round]]:
    def rounds(batches: int) -> Iterator[Round]:
        keys, rows = keypair(), Rows(count, length)
        while True:
            yield Round(lambda: seal(keys, rows.packets, rows.sealed, rows.receivers, rows.counters))

    return rounds


def unsealing(count: int, length: int) -> Callable[[int], Iterator[Round]]:
    def rounds(batches: int) -> Iterator[Round]:
        keys, rows = keypair(), Rows(count, length)
        seal(keys, rows.packets, rows.sealed, rows.receivers, rows.counters)
        counters = rows.counters.tolist()
        if unseal(keys, counters, rows.sealed, rows.packets):
            raise AssertionError("what is sealed here is not unsealed here")
        while True:
            yield Round(lambda: unseal(keys, counters, rows.sealed, rows.packets))

    return rounds


def replay_window(step: int) -> Callable[[int], Iterator[Round]]:
    """Runs of 44 counters, each ``step`` after the one before: 1 on a path that loses nothing."""

    def rounds(batches: int) -> Iterator[Round]:
        window, first = ReplayWindow(), 0
        while True:
            runs = iter([list(range(first + n * 44 * step, first + (n + 1) * 44 * step, step)) for n in range(batches)])
            first += batches * 44 * step
            yield Round(lambda runs=runs: window.accept_run(next(runs)))  # type: ignore[misc]

    return rounds


def lookups(count: int, distinct: int) -> Callable[[int], Iterator[Round]]:
    """``count`` look-ups in a table of 5,000 /26 and as many /32, of ``distinct`` addresses in turn."""

    def rounds(batches: int) -> Iterator[Round]:
        table: AllowedIPs[int] = AllowedIPs()
        start = int(IPv4Address("100.64.0.0"))
        for owner in range(5000):
            table.insert(IPv4Network((start + owner * 64, 26)), owner)
            table.insert(IPv4Network((start + owner * 64 + 1, 32)), -owner)
        addresses = [(start + index * 37 % (5000 * 64)).to_bytes(4) for index in range(distinct)]
        turns = chain.from_iterable(repeat([addresses[at : at + count] for at in range(0, distinct, count)]))
        while True:
            yield Round(lambda: deque(map(table.lookup, next(turns)), maxlen=0))

    return rounds


def splitting(data: bytes) -> Callable[[int], Iterator[Round]]:
    """A superpacket into packets."""

    def rounds(batches: int) -> Iterator[Round]:
        header, packet = data[: VIRTIO_HEADER.size], memoryview(data)[VIRTIO_HEADER.size :]
        rows = np.zeros((64, 1472), np.uint8)
        columns = Superpacket.parse(header, packet).columns_of(rows)
        while True:
            yield Round(lambda: Superpacket.parse(header, packet).fill_columns(columns, 0, 0))

    return rounds


def coalescing(data: bytes) -> Callable[[int], Iterator[Round]]:
    """The packets of a superpacket into one again."""

    def rounds(batches: int) -> Iterator[Round]:
        whole = Superpacket.parse(data[: VIRTIO_HEADER.size], memoryview(data)[VIRTIO_HEADER.size :])
        rows = np.zeros((whole.count, 1472), np.uint8)
        whole.fill(rows)
        views, lengths = [row.data for row in rows], [whole.row_length] * whole.count
        coalescer = Coalescer()

        def work() -> list[Write]:
            writes: list[Write] = []
            coalescer.coalesce(rows, views, lengths, writes)
            return writes

        if len(work()) != 1:
            raise AssertionError("the packets of one superpacket were not written as one")
        while True:
            yield Round(work)

    return rounds


def between_sockets(
    prepare: Callable[[Sockets, Sockets, socket.socket], Callable[[], None]], *, coalescing: bool = True
) -> Callable[[int], Iterator[Round]]:
    """Rounds of what ``prepare`` gives for two bound ends and the IPv4 socket of the second."""

    def rounds(batches: int) -> Iterator[Round]:
        first, last = ends = Sockets(), Sockets(coalescing=coalescing)
        try:
            for end in ends:
                end.bind(0, 0)
            work = prepare(first, last, next(iter(last)))
            while True:
                yield Round(work)
        finally:
            for end in ends:
                end.close()

    return rounds


def loopback(count: int, length: int) -> Callable[[int], Iterator[Round]]:
    """A train of ``count`` datagrams of ``length`` bytes sent and received."""

    def prepare(first: Sockets, last: Sockets, sock: socket.socket) -> Callable[[], None]:
        received, buffer = Received(), memoryview(bytearray(1 << 16))
        endpoint, train = Endpoint("127.0.0.1", last.port), bytes(count * length)

        def work() -> None:
            if not first.send(train, length, endpoint, b"", 0):
                raise AssertionError("the socket does not take a train")
            size = 0
            while size < len(train):
                last.receive(sock, buffer, received)
                size += received.size

        return work

    return between_sockets(prepare)


def messages(length: int) -> Callable[[int], Iterator[Round]]:
    """Datagrams of ``length`` bytes, as many as go in one call, sent each by itself and received."""

    def prepare(first: Sockets, last: Sockets, sock: socket.socket) -> Callable[[], None]:
        sent = [(bytes(length), Endpoint("127.0.0.1", last.port), b"")] * SLOTS

        def work() -> None:
            first.send_each(sent)
            count = 0
            while count < SLOTS:
                count += len(last.receive_many(sock))

        return work

    return between_sockets(prepare, coalescing=False)


class Arrivals(MemoryTun):
    """An interface that says when so many ``packets`` were written to it, superpackets counting for what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.missing = 0
        self.complete: asyncio.Future[None] | None = None

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        header = VIRTIO_HEADER.unpack(buffers[0][: VIRTIO_HEADER.size])
        size = sum(map(len, buffers)) - VIRTIO_HEADER.size
        self.missing -= -(-(size - header[2]) // header[3]) if header[3] else 1
        if self.missing <= 0 and self.complete is not None and not self.complete.done():
            self.complete.set_result(None)
        return size


async def pumps() -> tuple[list[Arrivals], list[Pump], list[Sockets]]:
    """Two data planes that know each other, on loopback, with interfaces in memory."""
    tuns, sockets = [Arrivals(), Arrivals()], [Sockets(), Sockets()]
    planes = [Pump(tun, socks, lambda: None) for tun, socks in zip(tuns, sockets)]
    devices = [new_device(plane) for plane in planes]
    keys = [clamp(secrets.token_bytes(32)) for _ in planes]
    for side, plane in enumerate(planes):
        sockets[side].bind(0, 0)
        plane.start(devices[side])
        plane.watch_sockets()
        devices[side].apply([SetDevice(private_key=keys[side])], boottime())
        devices[side].up(boottime())
    for side, device in enumerate(devices):
        other = 1 - side
        endpoint = Endpoint("127.0.0.1", sockets[other].port)
        device.apply(
            [SetPeer(public_key(keys[other]), endpoint=endpoint, allowed_ips=(ip_network(ADDRESSES[other]),))], boottime()
        )
    return tuns, planes, sockets


def pumped(packets: int, *reads: bytes) -> Callable[[int], Iterator[Round]]:
    """``reads`` wait at one data plane's interface; done when so many ``packets`` were written to the other's."""

    def rounds(batches: int) -> Iterator[Round]:
        loop = uvloop.new_event_loop()
        tuns, planes, sockets = loop.run_until_complete(pumps())
        first, last = tuns

        async def through() -> None:
            last.missing, last.complete = packets, loop.create_future()
            for data in reads:
                first.inject(data[VIRTIO_HEADER.size :], data[: VIRTIO_HEADER.size])
            async with asyncio.timeout(5):
                await last.complete

        try:
            loop.run_until_complete(through())  # the handshake
            while True:
                yield Round(lambda: loop.run_until_complete(through()))
        finally:
            for plane, socks, tun in zip(planes, sockets, tuns):
                plane.stop()
                socks.close()
                tun.close()
            loop.close()

    return rounds


# --- All of it ---

LARGE, SMALL = ZERO_HEADER + udp(1372), ZERO_HEADER + udp(64)
PATH = ("aead", "arrays", "bytecode")
TURNS: list[tuple[str, int, tuple[bytes, ...]]] = [
    ("a TCP superpacket of 45 segments", 12, (superpacket(45),)),
    ("a TCP superpacket of 46 segments", 12, (superpacket(46),)),
    ("an IPv6 TCP superpacket of 45 segments", 12, (superpacket6(45),)),
    ("44 UDP packets of 1400 bytes", 12, (LARGE,) * 44),
    ("44 UDP packets of 92 bytes", 12, (SMALL,) * 44),
    ("one UDP packet of 92 bytes", 200, (SMALL,)),
]
CASES: list[Case] = [
    *(Case("wgpy/core/outbound.py", what, PATH, batches, outbound(*reads)) for what, batches, reads in TURNS),
    *(Case("wgpy/core/inbound.py", what, PATH, batches, inbound(*reads)) for what, batches, reads in TURNS),
    Case("wgpy/daemon/pump.py", "a TCP superpacket of 45 segments", (*PATH, "kernel"), 12, pumped(45, superpacket(45))),
    Case("wgpy/daemon/pump.py", "one UDP packet of 92 bytes", (*PATH, "kernel"), 50, pumped(1, SMALL)),
    Case("wgpy/daemon/udp.py", "a train of 45 datagrams of 1452 bytes", ("kernel",), 40, loopback(45, 1452)),
    Case("wgpy/daemon/udp.py", "one datagram of 128 bytes", ("kernel", "bytecode"), 100, loopback(1, 128)),
    Case("wgpy/daemon/mmsg.py", "16 datagrams of 148 bytes", ("kernel", "bytecode"), 50, messages(148)),
    Case("wgpy/core/allowedips.py", "1,000 look-ups of 1,000 addresses", ("bytecode",), 10, lookups(1000, 1000)),
    Case(
        "wgpy/core/allowedips.py",
        "1,000 look-ups of addresses long forgotten",
        ("bytecode",),
        5,
        lookups(1000, 4 * REMEMBERED_ADDRESSES // 1000 * 1000),
    ),
    Case("tun/offload.py", "splitting a TCP superpacket of 45 segments", ("arrays",), 50, splitting(superpacket(45))),
    Case("tun/offload.py", "coalescing 45 TCP packets", ("arrays",), 50, coalescing(superpacket(45))),
    Case("tun/offload.py", "coalescing 45 IPv6 TCP packets", ("arrays",), 50, coalescing(superpacket6(45))),
    Case("noise/transport.py", "sealing 44 packets of 1424 bytes", ("aead",), 20, sealing(44, 1424)),
    Case("noise/transport.py", "sealing one packet of 96 bytes", ("aead", "bytecode"), 500, sealing(1, 96)),
    Case("noise/transport.py", "unsealing 44 packets of 1424 bytes", ("aead",), 20, unsealing(44, 1424)),
    Case("noise/transport.py", "unsealing one packet of 96 bytes", ("aead", "bytecode"), 500, unsealing(1, 96)),
    Case("noise/replay.py", "44 counters in order", ("bytecode",), 500, replay_window(1)),
    Case("noise/replay.py", "44 counters with gaps", ("bytecode",), 200, replay_window(2)),
]


def look(cases: Sequence[Case], baseline: Mapping[str, float], tolerance: float, *, thorough: bool = False) -> dict[str, Timing]:
    """Time the cases. Of those that seem dearer than the baseline (all, if ``thorough``) the middle one of more looks counts."""
    looks: dict[str, list[Timing]] = {case.name: [] for case in cases}
    left = list(cases)
    with calibration_loops() as loops:
        for number in range(LOOKS):
            timings = measure(left, loops)
            for name, timing in timings.items():
                looks[name].append(timing)
            if number == 0 and not thorough:
                bad = {verdict.name for verdict in compare(timings, baseline, selected=True) if verdict.is_bad(tolerance)}
                left = [case for case in cases if case.name in bad]
            if not left:
                break
    return {name: middle(found) for name, found in looks.items()}


def middle(looks: Sequence[Timing]) -> Timing:
    """Of looks at one case: a moment of another speed that met only the case, or only its loops, leads one of them astray."""
    return sorted(looks, key=lambda timing: timing.ratio)[len(looks) // 2]


def show(verdicts: Sequence[Verdict], tolerance: float) -> int:
    """Print them. Gives the exit status: 1 if any is bad."""
    print(f"{'case':74} {'µs':>8} {'ratio':>7} {'before':>7} {'change':>7}")
    for verdict in verdicts:
        print(verdict)
    bad = [verdict.name for verdict in verdicts if verdict.is_bad(tolerance)]
    if bad:
        print(f"REGRESSION beyond {tolerance:.0%}: {'; '.join(bad)}")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks micro", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="only the cases with one of these in their name")
    parser.add_argument("--write-baseline", action="store_true", help="make what is measured now the baseline")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"share by which a case may be dearer ({TOLERANCE})")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.words or any(word in case.name for word in arguments.words)]
    if not cases or (arguments.write_baseline and arguments.words):
        reason = "no case has any of these words in its name" if not cases else "a baseline has all cases: leave the words out"
        print(f"benchmarks micro: {reason}", file=sys.stderr)
        return 2
    try:
        baseline = {} if arguments.write_baseline else read_baseline()
    except ValueError as error:
        print(f"benchmarks micro: {error}", file=sys.stderr)
        return 2
    timings = look(cases, baseline, arguments.tolerance, thorough=arguments.write_baseline)
    status = show(compare(timings, baseline, selected=bool(arguments.words)), arguments.tolerance)
    if arguments.write_baseline:
        write_baseline(timings)
        print(f"written: {BASELINE.relative_to(ROOT)}")
    elif not baseline:
        print("there is no baseline to compare with: make one with --write-baseline")
    return status


if __name__ == "__main__":
    sys.exit(main())
