"""A bad wire: it loses, repeats and delays packets, overtakes some by others, and drops the large ones without a word.

    python -m tests.conformance.forwarder NAMESPACE NAMESPACE [--lose 0.01] [--swap 0.1] [--double 0.1] [--seed 7] ...

It makes a TUN interface ``wire`` in either namespace (the caller gives them addresses and brings them up), says ``ready``, and
carries packets between them until its standard input is closed. Then it says as JSON what it has done, and ends.

What happens to the nth packet of a direction depends on the seed, the direction and n, on no clock: a packet that is held back
is passed when so many others have overtaken it, and only for want of these after :data:`HOLD_SECONDS`. :class:`Way` is the
whole of it, one direction, and pure; the rest reads and writes. Nothing of the project is imported: it starts quickly, often.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

INTERFACE = "wire"
HOLD_SECONDS = 0.05
MOST_OVERTAKE = 8
"""So many packets, at most, overtake one that is held back; a copy comes behind so many others, too."""
AT_ONCE = 64
"""Packets read in one turn of one direction: then it is the other one's."""

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # <linux/if_tun.h>


@dataclass(frozen=True)
class Badness:
    """``lose``, ``swap`` and ``double`` are probabilities, ``delay`` is in seconds, ``largest`` in bytes of an IP packet."""

    lose: float = 0.0
    swap: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    largest: int = 65535
    seed: int = 1


@dataclass
class Count:
    """Packets: what came, and what became of it."""

    came: int = 0
    lost: int = 0
    swapped: int = 0
    doubled: int = 0
    too_large: int = 0


class Way:
    """One direction. Packets go in by :meth:`take` and come out of :meth:`leaving`, when it is time."""

    def __init__(self, badness: Badness, name: str) -> None:
        self.badness = badness
        self.count = Count()
        self._random = random.Random(f"{badness.seed} {name}")
        self._held: list[tuple[int, float, bytes]] = []  # (passes behind packet n, or at this time, packet)
        self._line: deque[tuple[float, bytes]] = deque()  # (leaves at, packet)

    def take(self, packet: bytes, now: float) -> None:
        count, bad = self.count, self.badness
        number = count.came
        count.came += 1
        # Always as many numbers for a packet, so that what becomes of one does not depend on those before it.
        lose, swap, double, place = (self._random.random() for _ in range(4))
        behind = number + 1 + int(place * MOST_OVERTAKE)
        if len(packet) > bad.largest:
            count.too_large += 1
        elif lose < bad.lose:
            count.lost += 1
        else:
            if is_doubled := double < bad.double:
                count.doubled += 1
            if is_swapped := swap < bad.swap:
                count.swapped += 1
            else:
                self._line.append((now + bad.delay, packet))
            self._held += [(behind, now + HOLD_SECONDS, packet)] * (is_doubled + is_swapped)
        self._pass_held(number, now)

    def leaving(self, now: float) -> Iterator[bytes]:
        """The packets whose time has come."""
        self._pass_held(self.count.came - 1, now)
        while self._line and self._line[0][0] <= now:
            yield self._line.popleft()[1]

    @property
    def due(self) -> float | None:
        """When to ask again; None if nothing waits."""
        times = [at for _, at, _ in self._held]
        if self._line:
            times.append(self._line[0][0])
        return min(times, default=None)

    def _pass_held(self, number: int, now: float) -> None:
        if not self._held:
            return
        passing = [each for each in self._held if each[0] <= number or each[1] <= now]
        self._held = [each for each in self._held if each[0] > number and each[1] > now]
        self._line += [(now + self.badness.delay, packet) for _, _, packet in sorted(passing, key=lambda each: each[0])]


# The wire -------------------------------------------------------------------------------------------------------------


def carry(ends: tuple[int, int], badness: Badness, until: int) -> list[Count]:
    """Carry packets between two TUN descriptors until the descriptor ``until`` is readable or closed."""
    ways = [Way(badness, "there"), Way(badness, "back")]
    ready: set[int] = set()
    while until not in ready:
        for end, out, way in zip(ends, reversed(ends), ways, strict=True):
            if end in ready:
                _read(end, way)
            for packet in way.leaving(time.monotonic()):
                _write(out, packet)
        times = [way.due for way in ways if way.due is not None]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        ready = set(select.select([*ends, until], [], [], timeout)[0])
    return [way.count for way in ways]


def _read(end: int, way: Way) -> None:
    for _ in range(AT_ONCE):
        try:
            packet = os.read(end, 1 << 16)
        except (BlockingIOError, OSError):  # nothing more, or not up yet
            return
        way.take(packet, time.monotonic())


def _write(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError:
        pass  # the other side is down, or has no memory: a wire does not say


def open_tun(namespace: str) -> int:
    """A TUN interface in a namespace, which this process enters and stays in. Raises OSError."""
    with open(f"/run/netns/{namespace}") as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), IFF_TUN | IFF_NO_PI))
    return end


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.forwarder")
    parser.add_argument("namespaces", nargs=2, metavar="NAMESPACE")
    for name, default in asdict(Badness()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    one, two = arguments.pop("namespaces")
    ends = open_tun(one), open_tun(two)
    print("ready", flush=True)
    counts = carry(ends, Badness(**arguments), sys.stdin.fileno())
    print(json.dumps([asdict(count) for count in counts]), flush=True)


if __name__ == "__main__":
    main()
