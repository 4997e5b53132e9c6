"""The generator of handshakes: its initiations are true ones, and only true answers count."""

import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from benchmarks.handshakes import CPU, CPU_BUSY, GREATEST_SECONDS, HANDSHAKES, RATE, Generator, check_answers, identities
from benchmarks.lab import lay
from benchmarks.micro import new_device
from benchmarks.planes import planes
from benchmarks.workloads import Settings, WorkloadError
from controller.demo.topology import Topology
from noise.cookie import CookieChecker
from noise.crypto import clamp
from noise.handshake import LocalStatic
from wgpy.config import Endpoint, SetDevice, SetPeer
from wgpy.core.device import Outputs

RESPONDER = LocalStatic(clamp(secrets.token_bytes(32)))
Answer = Callable[[bytes, tuple[str, int]], None]


class Replies(Outputs):
    """A device's outputs: what it sends goes out of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        self.sock.sendto(datagrams, endpoint.sockaddr)
        return True

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        raise AssertionError("a handshake carries no packet")


def by_a_device(sock: socket.socket) -> Answer:
    """A device of ours that knows the initiators."""
    device = new_device(Replies(sock))
    device.apply([SetDevice(private_key=RESPONDER.private), *(SetPeer(each.public) for each in identities())], 0.0)
    device.up(0.0)

    def answer(message: bytes, address: tuple[str, int]) -> None:
        now = time.monotonic()
        device.inbound.buffer[: len(message)] = message
        device.inbound.datagrams_received(len(message), 0, Endpoint(*address), b"", 0, now)
        device.handle_messages(1, now)

    return answer


def by_cookies(sock: socket.socket) -> Answer:
    """A responder under load."""
    checker = CookieChecker(RESPONDER)
    checker.renew_secret(bytes(32), bytes(24), 0.0)

    def answer(message: bytes, address: tuple[str, int]) -> None:
        assert checker.mac1_is_valid(message)
        sock.sendto(checker.create_cookie_reply(message, repr(address).encode()), address)

    return answer


@contextmanager
def responding(by: Callable[[socket.socket], Answer]) -> Iterator[Generator]:
    """A generator and a responder in a thread, on loopback."""
    ended = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        answer = by(sock)

        def serve() -> None:
            while not ended.is_set():
                if select.select([sock], [], [], 0.02)[0]:
                    answer(*sock.recvfrom(2048))

        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in identities()]
        for each in sockets:
            each.connect(sock.getsockname())
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with Generator(RESPONDER.public, zip(identities(), sockets)) as generator:
                yield generator
        finally:
            ended.set()
            thread.join()


def test_a_device_answers_every_paced_initiation_with_a_true_response() -> None:
    with responding(by_a_device) as generator:
        tally = generator.paced(generator.prepare(60), 300.0)

    assert (tally.sent, tally.answered, tally.cookies) == (60, 60, 0)
    assert tally.seconds >= 59 / 300
    check_answers(tally.answers)


def test_initiations_go_on_being_new_when_the_turn_comes_round_again() -> None:
    with responding(by_a_device) as generator:
        tally = generator.greatest(generator.prepare(2 * len(identities())), 30.0, 8)

    assert tally.sent == 2 * len(identities())
    assert tally.answered >= tally.sent - 8  # it does not wait for the last ones
    check_answers(tally.answers)


def test_the_greatest_rate_ends_on_time_and_a_cookie_reply_is_no_answer() -> None:
    with responding(by_cookies) as generator:
        tally = generator.greatest(generator.prepare(200), 0.2, 4)

    assert tally.answered == 0
    assert 0 < tally.cookies <= tally.sent < 200
    assert tally.seconds >= 0.2


def test_an_answer_that_belongs_to_another_initiation_is_found_out() -> None:
    with responding(by_a_device) as generator:
        (first, response), (second, _) = generator.paced(generator.prepare(2), 100.0).answers

    check_answers([(first, response)])
    with pytest.raises(WorkloadError, match="an answer is not good"):
        check_answers([(second, response)])


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_data_plane_is_measured() -> None:
    wgpy = planes()["wgpy"]
    with Topology.create() as topology:
        values = HANDSHAKES.run(lay(topology, 0, wgpy, wgpy, HANDSHAKES.shape), Settings(0.5, ""))

    assert values.keys() == {CPU, CPU_BUSY, RATE}
    assert 100 < values[RATE] < 1e6 / values[CPU_BUSY] * 1.1  # one thread: its rate is bounded by what each one costs
    assert values[CPU] > 50 and GREATEST_SECONDS == 1.0
