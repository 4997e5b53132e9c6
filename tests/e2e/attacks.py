"""Clients of a UAPI socket that do what no client should, for as long as they are told: ``python -m tests.e2e.attacks``.

Each is a function of the socket's path that does it once and gives what it did; what it leaves open stays open for a while.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

KEY = "ab" * 32
PREFIXES = 65_280
LEFT_OPEN: deque[socket.socket] = deque(maxlen=900)


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(1)
    client.connect(path)
    return client


def say(path: str, said: bytes) -> None:
    """Say so and fall silent."""
    LEFT_OPEN.append(connect(path))
    with contextlib.suppress(TimeoutError):
        LEFT_OPEN[-1].sendall(said)


def silence(path: str) -> None:
    say(path, b"")


def half_a_line(path: str) -> None:
    say(path, b"set=1\nprivate_k")


def half_a_request(path: str) -> None:
    say(path, b"set=1\nlisten_port=7\n")


def never_reads(path: str) -> None:
    say(path, b"get=1\n\n" * 1000)


def requests(path: str) -> None:
    with connect(path) as client:
        for _ in range(100):
            client.sendall(b"get=1\n\nset=1\n\nset=1\nnonsense\n\nget=1\nnonsense\n\n")
            client.recv(1 << 16)


def bytes_without_end(path: str) -> None:
    with connect(path) as client:
        client.sendall(b"set=1\n")
        while True:
            client.sendall(b"x" * (1 << 16))


def hang_up(path: str) -> None:
    for said in (b"", b"g", b"get=1\n\n", b"set=1\nfw", b"set=1\n\n", b"set=1\n" + b"\xff" * 50_000):
        with connect(path) as client:
            client.setblocking(False)
            client.send(said)


def a_large_set(path: str) -> None:
    """And then another that takes it back. Waits for the answers, as it is allowed to."""
    prefixes = "".join(f"allowed_ip=172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}/32\n" for n in range(PREFIXES))
    with connect(path) as client:
        client.settimeout(60)
        for body in (f"replace_allowed_ips=true\n{prefixes}", f"replace_allowed_ips=true\n{prefixes}", "remove=true\n"):
            client.sendall(f"set=1\npublic_key={KEY}\n{body}\n".encode())
            assert client.recv(100) == b"errno=0\n\n"
            client.sendall(b"get=1\n\n")
            tail = b""
            while not tail.endswith(b"errno=0\n\n"):
                tail = (tail + client.recv(1 << 18))[-20:]


ATTACKS: dict[str, Callable[[str], None]] = {
    attack.__name__: attack
    for attack in (silence, half_a_line, half_a_request, never_reads, requests, bytes_without_end, hang_up, a_large_set)
}


def main(name: str, path: str, seconds: float) -> int:
    """Do it for ``seconds``; how often it was done. To be hung up on is what they deserve. Whom they attack goes before them on
    the processor: to take that from others needs no socket."""
    os.nice(19)
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionError, TimeoutError, BlockingIOError):
            ATTACKS[name](path)
        count += 1
    return count


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
