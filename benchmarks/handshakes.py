"""Handshakes answered: what one costs the responder while it is not under load, and how many a second it can answer.

    python -m benchmarks handshakes [OPTIONS]      the suite with these rows alone, and its options

How to think about it: the data plane at one end of a tunnel is the *responder*. This process, through sockets in the other
end's node, plays two hundred *initiators* that are configured there as peers. Many, because a responder takes one
initiation of a peer in 20 ms and no more; each with a socket of its own, because boringtun connects one to every peer.
Their initiations are true ones, made by our own ``noise`` beforehand: making one costs more than sending it, and must not
compete with the responder for the cores. A round has two parts:

* *Paced*: a few initiations a second, evenly, as handshakes come in life: the responder sleeps before each. They are fewer
  than any of these responders takes for load (wireguard-go 128 that wait, wgpy 512 or 4,096 in a second, boringtun 100 in a
  second, and some of them twice). CPU time of the responder's process over answers received is the cost of one. The clock is
  that of the process, exact to the nanosecond and all threads included.
* *Greatest rate*: for a second at most, as many as are answered, a fixed number of them always under way. A cookie reply is
  no answer. The cost of one is smaller then, since the responder need not be woken for each and finds its caches warm.

Some answers are taken to their end, the session keys: a responder that answers nonsense fails.
"""

from __future__ import annotations

import base64
import ctypes
import itertools
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Self

from benchmarks.lab import End, Shape, Tunnel
from benchmarks.results import Row
from benchmarks.workloads import Settings, Values, Workload, WorkloadError
from controller.demo.topology import NAMESPACES, Namespace
from noise import tai64n
from noise.constants import COOKIE_REPLY_LENGTH, MESSAGE_COOKIE_REPLY, MESSAGE_RESPONSE, RESPONSE_LENGTH
from noise.cookie import CookieHolder
from noise.crypto import clamp
from noise.handshake import (
    HandshakeError,
    InitiatorHandshake,
    LocalStatic,
    RemoteStatic,
    consume_response,
    create_initiation,
)
from noise.messages import message_type

INITIATORS = 200
PACE = 40.0
"""Initiations a second in the paced part: each initiator's turn comes every 5 s."""
GREATEST_SECONDS = 1.0
GREATEST_BATCH = 4000
"""Initiations made for the other part, which ends with them where a second is not over yet: wgpy takes 4,096 in a second for
load, and a fast machine answers more. An initiator's turn comes every 20 ms at least up to 10,000 a second."""
UNDER_WAY = 32
"""Initiations that wait for an answer in the other part: enough for many threads, too few to be load."""
PATIENCE = 0.05
"""Seconds after which an initiation no longer counts as under way."""
LAST_ANSWERS = 0.5
"""Seconds that the last answers of the paced part are waited for."""
ANSWERED_SHARE = 0.95
"""Of the paced initiations: a responder that answers fewer is overloaded, and its cost means nothing."""
CHECKED_EVERY = 20
"""Every so many answers one is taken to its session keys."""
TIMESTAMP_STEP = 1 << 24
"""Nanoseconds between timestamps that differ: see noise.tai64n."""
CLONE_NEWNET = 0x40000000

CPU = Row("handshake-cpu", f"CPU of a handshake answered, at {PACE:.0f}/s", "Handshakes", "µs", "lower")
CPU_BUSY = Row("handshake-cpu-busy", "CPU of a handshake answered, at the greatest rate", "Handshakes", "µs", "lower")
RATE = Row("handshake-rate", "handshakes answered, greatest rate", "Handshakes", "1/s", "higher")


@dataclass(frozen=True)
class Initiator:
    """Its own key, the responder's, and a socket connected to the responder."""

    local: LocalStatic
    remote: RemoteStatic
    socket: socket.socket


@dataclass(frozen=True)
class Initiation:
    """One that is ready to be sent, and what its initiator remembers of it."""

    message: bytes
    handshake: InitiatorHandshake
    initiator: Initiator


@dataclass
class Tally:
    """What became of a batch. ``answers`` are responses, each with the initiation it belongs to."""

    sent: int = 0
    cookies: int = 0
    seconds: float = 0.0
    answers: list[tuple[Initiation, bytes]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return len(self.answers)


@cache
def identities() -> tuple[LocalStatic, ...]:
    """The initiators' static keys: the same towards every responder, as long as this process lives."""
    return tuple(LocalStatic(clamp(secrets.token_bytes(32))) for _ in range(INITIATORS))


class Generator:
    """The initiators of one responder. A context manager that closes their sockets."""

    def __init__(self, responder: bytes, initiators: Iterable[tuple[LocalStatic, socket.socket]]) -> None:
        """``responder`` is its public key. Sockets are connected to it."""
        self._initiators = [Initiator(local, RemoteStatic(local, responder), sock) for local, sock in initiators]
        self._indices = itertools.count(1)
        self._timestamps = itertools.count(time.time_ns(), TIMESTAMP_STEP // len(self._initiators) + 1)
        self._waiting: dict[int, tuple[float, Initiation]] = {}
        """Sender index -> when it was sent, and what; the oldest first."""
        self._sockets = {initiator.socket.fileno(): initiator.socket for initiator in self._initiators}
        self._readable = select.epoll()
        for initiator in self._initiators:
            initiator.socket.setblocking(False)
            self._readable.register(initiator.socket, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._readable.close()
        for sock in self._sockets.values():
            sock.close()

    def prepare(self, count: int) -> list[Initiation]:
        """The next ``count`` initiations, the initiators taking turns. They must be sent in this order."""
        return [self._initiation(initiator) for initiator in itertools.islice(itertools.cycle(self._initiators), count)]

    def _initiation(self, by: Initiator) -> Initiation:
        timestamp = tai64n.timestamp(next(self._timestamps))
        message, handshake = create_initiation(by.local, by.remote, secrets.token_bytes(32), next(self._indices), timestamp)
        return Initiation(CookieHolder(by.remote).add_macs(message, 0.0), handshake, by)

    def paced(self, batch: Sequence[Initiation], rate: float) -> Tally:
        """Send ``rate`` initiations a second, come what may, and wait for the last answers."""
        tally = Tally()
        start = time.monotonic()
        for number, initiation in enumerate(batch):
            while (left := start + number / rate - time.monotonic()) > 0:
                self._receive(tally, left)
            self._send(tally, initiation)
        deadline = time.monotonic() + LAST_ANSWERS
        while self._waiting and (left := deadline - time.monotonic()) > 0:
            self._receive(tally, left)
        return self._ended(tally, start)

    def greatest(self, batch: Sequence[Initiation], seconds: float, under_way: int) -> Tally:
        """For ``seconds``, or as long as the batch lasts, keep so many initiations ``under_way``."""
        tally = Tally()
        start = time.monotonic()
        for initiation in batch:
            while len(self._waiting) >= under_way:
                self._receive(tally, PATIENCE)
                self._give_up()
            if time.monotonic() >= start + seconds:
                break
            self._send(tally, initiation)
        return self._ended(tally, start)

    def _send(self, tally: Tally, initiation: Initiation) -> None:
        self._waiting[initiation.handshake.local_index] = time.monotonic(), initiation
        initiation.initiator.socket.send(initiation.message)
        tally.sent += 1

    def _receive(self, tally: Tally, timeout: float) -> None:
        """Take what is there, or comes within ``timeout`` seconds."""
        for descriptor, _ in self._readable.poll(timeout):
            message = self._sockets[descriptor].recv(2048)
            kind, size = message_type(message), len(message)
            if (kind, size) == (MESSAGE_RESPONSE, RESPONSE_LENGTH):
                sent = self._waiting.pop(int.from_bytes(message[8:12], "little"), None)
                if sent is not None:
                    tally.answers.append((sent[1], message))
            elif (kind, size) == (MESSAGE_COOKIE_REPLY, COOKIE_REPLY_LENGTH):
                tally.cookies += 1  # it stays under way: an initiator that is told to wait does not try at once

    def _give_up(self) -> None:
        """Nothing comes any more for what was sent too long ago."""
        since = time.monotonic() - PATIENCE
        late = list(itertools.takewhile(lambda index: self._waiting[index][0] < since, self._waiting))
        for index in late:
            del self._waiting[index]

    def _ended(self, tally: Tally, start: float) -> Tally:
        tally.seconds = time.monotonic() - start
        self._waiting.clear()
        return tally


def check_answers(answers: Sequence[tuple[Initiation, bytes]]) -> None:
    """Take some of the answers to the session keys. Raises WorkloadError if one is none."""
    for initiation, message in answers[::CHECKED_EVERY]:
        try:
            by = initiation.initiator
            consume_response(by.local, by.remote, initiation.handshake, bytes(32), message)
        except HandshakeError as error:
            raise WorkloadError(f"an answer is not good: {error}") from None


# --- At a tunnel ---


def run(tunnel: Tunnel, settings: Settings) -> Values:
    """One round, with the data plane of the tunnel's first end as the responder."""
    try:
        return _round(*tunnel.ends, settings)
    except OSError as error:
        raise WorkloadError(f"the responder cannot be reached: {error.strerror}") from None


def _round(end: End, other: End, settings: Settings) -> Values:
    _configure(end, identities())
    sockets = _sockets_to(end, other.node, INITIATORS)
    with Generator(base64.b64decode(end.public), zip(identities(), sockets, strict=True)) as generator:
        batch = generator.prepare(max(1, round(PACE * settings.seconds)))
        paced, used = _with_cpu(end, lambda: generator.paced(batch, PACE))
        if paced.answered < ANSWERED_SHARE * paced.sent:
            answered = f"{paced.answered} of {paced.sent} initiations were answered at {PACE:.0f}/s"
            raise WorkloadError(f"{answered}, and {paced.cookies} cookie replies came")
        batch = generator.prepare(GREATEST_BATCH)
        greatest, used_then = _with_cpu(end, lambda: generator.greatest(batch, GREATEST_SECONDS, UNDER_WAY))
    check_answers([*paced.answers, *greatest.answers])
    values = {RATE: greatest.answered / greatest.seconds}
    if used:  # a plane without processes has no CPU of its own
        values[CPU] = used / paced.answered * 1e6
        if not greatest.cookies:  # else the cost is that of refusing
            values[CPU_BUSY] = used_then / greatest.answered * 1e6
    return values


def _with_cpu(end: End, part: Callable[[], Tally]) -> tuple[Tally, float]:
    """What ``part`` gives, and the CPU seconds that the data plane used meanwhile."""
    before = cpu_seconds(end)
    tally = part()
    return tally, cpu_seconds(end) - before


HANDSHAKES = Workload("handshakes", (CPU, CPU_BUSY, RATE), run, Shape(mtu=1400), compared=True)
"""The workload for the suite. Its shape, which makes no difference, gives it a tunnel of its own: two hundred peers more
would count in the memory that is measured on the others."""


def cpu_seconds(end: End) -> float:
    """What the data plane's processes have used so far: their CPU clocks, as clock_getcpuclockid(3) names them."""
    end.check()
    return sum(time.clock_gettime(~process.pid << 3 | 2) for process in end.processes)


def _configure(end: End, initiators: Sequence[LocalStatic]) -> None:
    """Make them peers of this end. Those it knows already are not named again: boringtun does not survive it."""
    known = end.node.run(["wg", "show", end.plane.interface, "peers"]).stdout.split()
    keys = (base64.b64encode(initiator.public).decode() for initiator in initiators)
    path = end.directory / "initiators.conf"
    path.write_text("".join(f"[Peer]\nPublicKey = {key}\n" for key in keys if key not in known))
    end.node.run(["wg", "addconf", end.plane.interface, str(path)])


def _sockets_to(end: End, where: Namespace, count: int) -> list[socket.socket]:
    """UDP sockets in the namespace ``where``, connected to the data plane at ``end``."""
    port = int(end.node.run(["wg", "show", end.plane.interface, "listen-port"]).stdout)
    family = socket.AF_INET if end.outer_address.version == 4 else socket.AF_INET6
    made: list[socket.socket] = []

    def make() -> None:
        with (NAMESPACES / where.name).open() as namespace:
            if ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0:
                made.extend(socket.socket(family, socket.SOCK_DGRAM) for _ in range(count))

    # A socket stays where it was made; the thread that went there ends, and nobody else ever went.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if len(made) < count:
        raise WorkloadError(f"cannot enter the namespace {where.name}")
    for sock in made:
        sock.connect((str(end.outer_address), port))
    return made


def main() -> int:
    """The suite with this workload alone."""
    from benchmarks import suite  # which imports this module

    sys.argv[1:1] = ["--rows", HANDSHAKES.name, "--out", str(suite.RESULTS / HANDSHAKES.name)]
    return suite.main()


if __name__ == "__main__":
    sys.exit(main())
