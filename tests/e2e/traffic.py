"""Traffic between pods that proves it arrived: TCP with checksums, datagrams that are echoed, streams with numbers.

Sockets are opened in the pods' namespaces and used from here, so that what was sent and what came are compared in
one process. Everything has a time limit.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from controller.demo.topology import Address, Namespace
from tests.e2e.lab import PATIENCE, inside

CHUNK = 1 << 20
RECEIVE_BUFFER = 8 << 20
SO_RCVBUFFORCE = 33
NUMBER = struct.Struct("!Q")
LARGEST_BURST = 20


def open_socket(where: Namespace, address: Address, kind: socket.SocketKind, port: int = 0) -> socket.socket:
    """A socket of ``where``, bound to one of its addresses (port 0: any)."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    opened = inside(where, lambda: socket.socket(family, kind))
    opened.settimeout(PATIENCE)
    if kind == socket.SOCK_DGRAM:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    opened.bind((str(address), port))
    return opened


# TCP ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transfer:
    """What was sent and what came, and how long that took."""

    sent: str
    received: str
    size: int
    seconds: float

    @property
    def is_intact(self) -> bool:
        return self.sent == self.received

    @property
    def gbps(self) -> float:
        return self.size * 8 / self.seconds / 1e9


def transfer(source: Namespace, source_address: Address, destination: Namespace, address: Address, size: int) -> Transfer:
    """Send ``size`` pseudo-random bytes through one TCP connection. Both ends make a SHA-256 of what they handled."""
    with open_socket(destination, address, socket.SOCK_STREAM) as listener:
        listener.listen(1)
        with ThreadPoolExecutor(1) as pool, open_socket(source, source_address, socket.SOCK_STREAM) as sender:
            receiving = pool.submit(_receive_all, listener)
            started = time.monotonic()
            sender.connect(listener.getsockname()[:2])
            sent = _send_all(sender, size, random.Random(size))
            received, count = receiving.result()
    assert count == size, f"{count} of {size} bytes came"
    return Transfer(sent, received, size, time.monotonic() - started)


def _send_all(connection: socket.socket, size: int, source: random.Random) -> str:
    """Every chunk is another part of the same random bytes, so that none can stand for another."""
    digest, start = hashlib.sha256(), 0
    random_bytes = memoryview(source.randbytes(2 * CHUNK))
    while size:
        chunk = random_bytes[start : start + min(CHUNK, size)]
        connection.sendall(chunk)
        digest.update(chunk)
        size -= len(chunk)
        start = (start + 4099) % CHUNK
    connection.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def _receive_all(listener: socket.socket) -> tuple[str, int]:
    connection, _ = listener.accept()
    digest, count = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    with connection:
        connection.settimeout(PATIENCE)
        while size := connection.recv_into(buffer):
            digest.update(buffer[:size])
            count += size
    return digest.hexdigest(), count


# UDP ---------------------------------------------------------------------------------------------------------------


@contextmanager
def echoing(where: Namespace, address: Address) -> Iterator[tuple[str, int]]:
    """A UDP echo: gives its address."""
    with open_socket(where, address, socket.SOCK_DGRAM) as server:
        server.settimeout(0.1)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    server.sendto(*server.recvfrom(1 << 16))
                except TimeoutError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[:2]
        finally:
            stopped.set()
            thread.join()


def echoed(source: Namespace, source_address: Address, target: tuple[str, int], size: int) -> bool:
    """Whether a datagram of ``size`` random bytes comes back as it was sent."""
    payload = random.Random(size).randbytes(size)
    with open_socket(source, source_address, socket.SOCK_DGRAM) as client:
        client.connect(target)
        client.send(payload)
        return client.recv(1 << 16) == payload


@dataclass
class Stream:
    """Numbered datagrams at a steady rate to an echo, and the numbers that came back."""

    rate: float
    size: int
    sent: int = 0
    returned: set[int] = field(default_factory=set)
    duplicates: int = 0

    def run(self, source: Namespace, source_address: Address, target: tuple[str, int], seconds: float) -> Stream:
        """Send for ``seconds``, then wait until everything is back, within a bound."""
        with open_socket(source, source_address, socket.SOCK_DGRAM) as client:
            client.connect(target)
            client.settimeout(0.1)
            stopped = threading.Event()
            receiver = threading.Thread(target=self._collect, args=(client, stopped))
            receiver.start()
            try:
                self._send(client, seconds)
                wait_until = time.monotonic() + PATIENCE
                while len(self.returned) < self.sent and time.monotonic() < wait_until:
                    time.sleep(0.01)
            finally:
                stopped.set()
                receiver.join()
        return self

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - self.returned)

    def _send(self, client: socket.socket, seconds: float) -> None:
        """Steadily: what a stall of this machine kept from being sent is not sent in one burst, which no queue would hold."""
        padding = bytes(self.size - NUMBER.size)
        end = time.monotonic() + seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            due = max(due, now - LARGEST_BURST / self.rate)
            while due <= now:
                client.send(NUMBER.pack(self.sent) + padding)
                self.sent += 1
                due += 1 / self.rate
            time.sleep(max(0.0, due - time.monotonic()))

    def _collect(self, client: socket.socket, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                (number,) = NUMBER.unpack_from(client.recv(1 << 16))
            except TimeoutError:
                continue
            self.duplicates += number in self.returned
            self.returned.add(number)
