"""What holds for every interface: the real one and its twin in memory."""

import selectors
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.tun.conftest import ip
from tests.tun.packets import Stream
from tun import Offloads, Tun, TunDown, TunGone, TunRefused, open_tun
from tun.memory import MemoryTun
from tun.offload import ZERO_HEADER


class Twin:
    """An interface, and what the world can do to it."""

    def __init__(self, tun: Tun, set_up: Callable[[bool], object], delete: Callable[[], object]) -> None:
        self.tun, self.set_up, self.delete = tun, set_up, delete


@pytest.fixture(params=["memory", pytest.param("linux", marks=pytest.mark.e2e)])
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    if request.param == "memory":
        memory = MemoryTun("wgpy-test")
        memory.is_up = False
        twin = Twin(memory, lambda up: setattr(memory, "is_up", up), memory.delete)
    else:
        request.getfixturevalue("namespace")
        tun = open_tun("wgpy-test")
        twin = Twin(
            tun,
            lambda up: ip("link", "set", "wgpy-test", "up" if up else "down"),
            lambda: ip("link", "delete", "wgpy-test"),
        )
    yield twin
    twin.tun.close()


PACKET = replace(Stream(), payload=b"one").packets()[0]
JUNK = b"\x00 is no IP version"


def read_all(tun: Tun) -> None:
    while True:
        try:
            tun.read([bytearray(65545)])
        except BlockingIOError:
            return


def test_it_has_a_name_and_offloads(twin: Twin) -> None:
    assert twin.tun.name == "wgpy-test"
    assert isinstance(twin.tun.offloads, Offloads)


def test_reading_when_nothing_waits_raises_blocking_io_error(twin: Twin) -> None:
    with pytest.raises(BlockingIOError):
        twin.tun.read([bytearray(10), bytearray(1500)])


def test_writing_while_it_is_down_loses_the_packet_and_says_so(twin: Twin) -> None:
    with pytest.raises(TunDown, match="wgpy-test"):
        twin.tun.write([ZERO_HEADER, PACKET])

    twin.set_up(True)
    assert twin.tun.write([ZERO_HEADER, PACKET]) == 10 + len(PACKET)

    twin.set_up(False)
    with pytest.raises(TunDown):
        twin.tun.write([ZERO_HEADER, PACKET])


def test_a_superpacket_is_written_at_once(twin: Twin) -> None:
    twin.set_up(True)
    for stream in (Stream(), Stream(is_v4=False), Stream(is_tcp=False), Stream(is_v4=False, is_tcp=False)):
        if stream.is_tcp or twin.tun.offloads.udp_gro:
            header, packet = stream.superpacket()
            assert twin.tun.write([header + packet[:50], memoryview(packet)[50:]]) == 10 + len(packet)


def test_a_malformed_packet_is_refused(twin: Twin) -> None:
    twin.set_up(True)
    with pytest.raises(TunRefused, match="wgpy-test"):
        twin.tun.write([ZERO_HEADER, JUNK])


def test_a_deleted_interface_is_gone_for_reading_and_writing_and_wakes_its_watcher(twin: Twin) -> None:
    twin.set_up(True)
    read_all(twin.tun)
    with selectors.DefaultSelector() as selector:
        selector.register(twin.tun.fileno(), selectors.EVENT_READ)
        while selector.select(0):  # the kernel, too, has something to send over an interface that has just come up
            read_all(twin.tun)

        twin.delete()

        assert selector.select(5)
    with pytest.raises(TunGone, match="wgpy-test"):
        twin.tun.read([bytearray(10), bytearray(1500)])
    with pytest.raises(TunGone, match="wgpy-test"):
        twin.tun.write([ZERO_HEADER, PACKET])


def test_closing_twice_is_harmless(twin: Twin) -> None:
    twin.tun.close()
    twin.tun.close()
