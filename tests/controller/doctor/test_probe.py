"""Datagrams on the loopback, where who does not listen is known."""

import errno
import os
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from controller.doctor import probe
from controller.doctor.probe import Target, ask, largest
from tests.controller.namespace import in_new_namespace

HERE = ip_address("127.0.0.1")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_a_closed_port_answers_and_an_open_one_is_silent() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as freed:
        listener.bind((str(HERE), 0))
        freed.bind((str(HERE), 0))
        open_port, closed_port = listener.getsockname()[1], freed.getsockname()[1]
        freed.close()

        answers = ask([Target(HERE, closed_port), Target(HERE, open_port), Target(ip_address("::1"), closed_port)], 0.3)

        assert answers == [errno.ECONNREFUSED, 0, errno.ECONNREFUSED]
        assert len(listener.recv(100)) == 1


@needs_root
def test_what_cannot_be_sent_is_said_at_once() -> None:
    assert in_new_namespace(lambda: ask([Target(ip_address("192.0.2.1"))], 5.0)) == [errno.ENETUNREACH]


def answering(limits: dict[str, int]) -> Callable[..., list[int]]:
    """Nodes that take packets up to a size."""

    def ask(targets: list[Target], seconds: float) -> list[int]:
        return [errno.ECONNREFUSED if target.size <= limits.get(str(target.address), 0) else 0 for target in targets]

    return ask


def test_the_largest_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(probe, "ask", answering({"10.0.0.1": 9000, "10.0.0.2": 1340, "10.0.0.4": 99}))

    sizes = largest([ip_address(f"10.0.0.{number}") for number in (1, 2, 3, 4)], 1440, 1.0)

    assert sizes[0] == 1440 and sizes[2] is sizes[3] is None
    assert sizes[1] is not None and 1330 <= sizes[1] <= 1340


def test_an_answer_that_is_lost_once_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask(targets: list[Target], seconds: float) -> list[int]:
        asked.extend(target.size for target in targets)
        return [errno.ECONNREFUSED if asked.count(target.size) > 1 else 0 for target in targets]

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(probe, "ask", ask)

    assert largest([HERE], 1440, 1.0) == [1440]
    assert asked == [probe.SMALL_BYTES] * 2 + [1440] * 2
