import selectors
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.tun.packets import Stream
from tun import TunRefused
from tun.memory import MemoryTun
from tun.offload import ZERO_HEADER, Coalescer, Superpacket


@pytest.fixture
def tun() -> Iterator[MemoryTun]:
    tun = MemoryTun()
    yield tun
    tun.close()


def test_injected_packets_are_read_in_order_into_scattered_buffers(tun: MemoryTun) -> None:
    header, superpacket = replace(Stream(), payload=bytes(60_000)).superpacket()
    tun.inject(b"first")
    tun.inject(superpacket, header)
    slot, row, overflow = bytearray(10), bytearray(100), bytearray(65535)

    assert tun.read([slot, row, overflow]) == 15
    assert bytes(slot) == ZERO_HEADER
    assert bytes(row[:5]) == b"first"

    assert tun.read([slot, row, overflow]) == 10 + len(superpacket)
    assert slot == header
    assert row + overflow[: len(superpacket) - 100] == superpacket
    assert Superpacket.parse(slot, memoryview(superpacket)).count == 600


def test_a_watcher_sees_an_injected_packet(tun: MemoryTun) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(tun.fileno(), selectors.EVENT_READ)
        assert not selector.select(0)
        tun.inject(b"packet")
        assert selector.select(0)


def test_writes_are_recorded_with_their_headers_and_seen_as_packets(tun: MemoryTun) -> None:
    header, superpacket = Stream().superpacket()
    single = Stream(is_tcp=False).packets()[0]

    tun.write([header, superpacket])
    tun.write([ZERO_HEADER, single])

    assert tun.writes == [(header, superpacket), (ZERO_HEADER, single)]
    assert tun.packets() == [*Stream().packets(), single]
    assert tun.packets() == []


def test_a_kernel_that_refuses_superpackets_gets_single_ones(tun: MemoryTun) -> None:
    """What a daemon does with TunRefused."""
    tun.refuses_superpackets = True
    header, superpacket = Stream().superpacket()

    with pytest.raises(TunRefused):
        tun.write([header, superpacket])
    for write in Coalescer().refused((header, superpacket)):
        tun.write(write)

    assert tun.packets() == Stream().packets()
