"""What a batch costs inside the device: microseconds from a TUN read to sealed datagrams, and from datagrams to TUN writes.

    python -m benchmarks datapath

No socket and no TUN: two devices in one process, whose outputs are counted and dropped. What the kernel adds is in
``seam``. The best of many rounds is printed, because everything that is not ours only ever adds.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network

from noise.crypto import clamp, public_key
from tun.offload import GSO_TCPV4, NEEDS_CSUM, VIRTIO_HEADER
from wgpy.config import Endpoint, SetDevice, SetPeer
from wgpy.core.device import Device

ROUNDS = 9
BATCHES = 300
MSS = 1368
NOW = 1000.0
ADDRESSES = ("10.0.0.1", "10.0.0.2")
ENDPOINTS = (Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 1))


class Sink:
    """Outputs that go nowhere, or into ``kept`` while that is a list."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, int]] | None = None

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        if self.kept is not None:
            self.kept.append((bytes(datagrams), segment))
        return True

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        pass


def connected() -> tuple[tuple[Device, Sink], tuple[Device, Sink]]:
    """Two devices with a session."""
    generator = random.Random(1)
    keys = [clamp(generator.randbytes(32)) for _ in range(2)]
    ends = []
    for side in range(2):
        sink = Sink()
        device = Device(sink, random_bytes=generator.randbytes, jitter=lambda: 0.0, wall_clock=lambda: 1_700_000_000 * 10**9)
        peer = SetPeer(public_key(keys[1 - side]), endpoint=ENDPOINTS[1 - side], allowed_ips=(ip_network(ADDRESSES[1 - side]),))
        device.apply([SetDevice(private_key=keys[side]), peer], NOW)
        device.up(NOW)
        ends.append((device, sink))
    (first, first_sink), (second, second_sink) = ends
    first_sink.kept, second_sink.kept = [], []
    read(first, bytes(10), udp(0))
    for _ in range(2):
        carry(first_sink, second, ENDPOINTS[0])
        carry(second_sink, first, ENDPOINTS[1])
    first_sink.kept = second_sink.kept = None
    return ends[0], ends[1]


def carry(sink: Sink, to: Device, endpoint: Endpoint) -> None:
    kept, sink.kept = sink.kept or [], []
    for datagrams, segment in kept:
        receive(to, datagrams, segment, endpoint)


def receive(device: Device, datagrams: bytes, segment: int, endpoint: Endpoint) -> None:
    device.inbound.buffer[: len(datagrams)] = datagrams
    device.inbound.datagrams_received(len(datagrams), segment, endpoint, b"", 0, NOW)
    device.inbound.flush()
    device.handle_messages(16, NOW)


def read(device: Device, header: bytes, packet: bytes) -> None:
    load(device, header + packet)
    device.outbound.packet_read(len(header) + len(packet), NOW)
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


def ipv4(protocol: int, payload: bytes) -> bytes:
    source, destination = (ip_address(address).packed for address in ADDRESSES)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0) + source + destination + payload


def udp(length: int) -> bytes:
    return ipv4(17, struct.pack("!HHHH", 1, 2, 8 + length, 1) + bytes(length))


def tcp_superpacket(segments: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", 1, 2, 1, 1, 0x80, 0x10, 500, 0, 0) + bytes(12)
    return ipv4(6, header + bytes(segments * MSS))


def best(work: Callable[[], object], overhead: Callable[[], object] | None = None) -> float:
    """Microseconds of ``work``, less those of ``overhead``."""

    def timed(what: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(BATCHES):
            what()
        return (time.perf_counter() - start) / BATCHES * 1e6

    cost = min(timed(work) for _ in range(ROUNDS))
    return cost - (min(timed(overhead) for _ in range(ROUNDS)) if overhead else 0.0)


def outbound(device: Device, header: bytes, packets: Sequence[bytes]) -> float:
    """Microseconds to seal ``packets``, read one after another."""
    data = [header + packet for packet in packets]

    def loads() -> None:
        for each in data:
            load(device, each)

    def work() -> None:
        for each in data:
            load(device, each)
            device.outbound.packet_read(len(each), NOW)
        device.outbound.flush(NOW)

    return best(work, loads)


def inbound(sender: tuple[Device, Sink], receiver: Device, header: bytes, packets: Sequence[bytes]) -> float:
    """Microseconds to open and deliver the datagrams of ``packets``, in the bursts they were sent in."""
    device, sink = sender
    sink.kept = []
    for _ in range(ROUNDS * BATCHES):
        for packet in packets:
            load(device, header + packet)
            device.outbound.packet_read(len(header) + len(packet), NOW)
        device.outbound.flush(NOW)
    bursts, sink.kept = sink.kept, None
    each = len(bursts) // (ROUNDS * BATCHES)
    supply = iter(bursts)

    def work() -> None:
        for _ in range(each):
            receive(receiver, *next(supply), ENDPOINTS[0])

    def copies() -> None:
        for datagrams, _ in bursts[:each]:
            receiver.inbound.buffer[: len(datagrams)] = datagrams

    return best(work, copies)


def main() -> int:
    superpacket = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 52, MSS, 20, 16)
    cases: list[tuple[str, bytes, list[bytes]]] = [
        ("TCP superpacket of 45 segments", superpacket, [tcp_superpacket(45)]),
        ("TCP superpacket of 46 segments", superpacket, [tcp_superpacket(46)]),
        ("44 UDP packets of 1400 bytes", bytes(10), [udp(1372)] * 44),
        ("44 UDP packets of 92 bytes", bytes(10), [udp(64)] * 44),
        ("one UDP packet of 92 bytes", bytes(10), [udp(64)]),
    ]
    print(f"{'batch':34} {'outbound µs':>12} {'inbound µs':>12}")
    for name, header, packets in cases:
        first, second = connected()
        out = outbound(first[0], header, packets)
        print(f"{name:34} {out:12.1f} {inbound(first, second[0], header, packets):12.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
