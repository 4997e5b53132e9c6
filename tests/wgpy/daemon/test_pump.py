"""Two devices in one loop: real sockets on loopback, an interface in memory on either end, and the true clock."""

import asyncio
import contextlib
import errno
import itertools
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import ip_address, ip_network

import pytest
import uvloop

from noise import crypto
from tests.sim import packet
from tests.tun.packets import Stream
from tests.wgpy.daemon.test_udp import has_ipv6
from tun.interface import TunError, TunRefused
from tun.memory import MemoryTun
from wgpy.config import Endpoint, SetDevice, SetPeer
from wgpy.core.device import Device
from wgpy.core.drops import Drop
from wgpy.daemon import pump
from wgpy.daemon.pump import Pump, boottime
from wgpy.daemon.udp import Sockets

PATIENCE = 20.0


class WatchedTun(MemoryTun):
    """Tells when it was written to. ``failures`` are raised by the next reads; after so many writes it is deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self.failures: list[Exception] = []
        self.delete_after = 1 << 62

    def read(self, buffers: Sequence[memoryview | bytearray]) -> int:
        if self.failures:
            super().read(buffers)  # the packet is lost
            raise self.failures.pop()
        return super().read(buffers)

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        if len(self.writes) == self.delete_after:
            self.delete()
        try:
            return super().write(buffers)
        finally:
            self.written.set()


class Node:
    """One data plane."""

    def __init__(self, number: int, *, offloads: bool = True) -> None:
        self.address = f"10.0.0.{number}"
        self.address6 = f"fd00::{number}"
        self.tun = WatchedTun()
        self.sockets = Sockets(segmentation=offloads, coalescing=offloads)
        self.gone = asyncio.Event()
        self.pump = Pump(self.tun, self.sockets, self.gone.set)
        self.device = Device(
            self.pump, random_bytes=secrets.token_bytes, jitter=lambda: random.uniform(0, 1 / 3), wall_clock=time.time_ns
        )
        self.private_key = crypto.clamp(secrets.token_bytes(32))
        self.device.apply([SetDevice(private_key=self.private_key)], boottime())
        self.sockets.bind(0, 0)
        self.pump.start(self.device)
        self.pump.watch_sockets()
        self.device.up(boottime())

    def peer(self, other: "Node", host: str, **kwargs: object) -> None:
        change = SetPeer(
            crypto.public_key(other.private_key),
            endpoint=Endpoint(host, other.sockets.port),
            allowed_ips=(ip_network(other.address), ip_network(other.address6)),
            **kwargs,  # type: ignore[arg-type]
        )
        self.device.apply([change], boottime())
        self.pump.settle(boottime())

    async def packets(self, count: int) -> list[bytes]:
        """Wait until ``count`` packets were written to the interface."""
        return await self.until(lambda got: len(got) >= count)

    async def until(self, enough: Callable[[list[bytes]], bool]) -> list[bytes]:
        got = self.tun.packets()
        async with asyncio.timeout(PATIENCE):
            while not enough(got):
                self.tun.written.clear()
                await self.tun.written.wait()
                got += self.tun.packets()
        return got

    def drops(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.device.drops.items() if count}

    def close(self) -> None:
        self.pump.stop()
        self.sockets.close()
        self.tun.close()


MakePair = Callable[..., tuple[Node, Node]]


@pytest.fixture
async def make_pair() -> AsyncIterator[MakePair]:
    """Two nodes that know each other."""
    nodes: list[Node] = []

    def make(host: str = "127.0.0.1", *, offloads: bool = True, **kwargs: object) -> tuple[Node, Node]:
        nodes.extend([Node(1, offloads=offloads), Node(2, offloads=offloads)])
        one, two = nodes
        one.peer(two, host, **kwargs)
        two.peer(one, host)
        return one, two

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
async def pair(make_pair: MakePair) -> tuple[Node, Node]:
    return make_pair()


def flow(one: Node, two: Node, **fields: object) -> Stream:
    is_v4 = fields.get("is_v4", True)
    source, destination = (one.address, two.address) if is_v4 else (one.address6, two.address6)
    ends = {"source": ip_address(source).packed, "destination": ip_address(destination).packed, "dont_fragment": False}
    return Stream(**{**ends, **fields})  # type: ignore[arg-type]


async def session(one: Node, two: Node) -> None:
    one.tun.inject(packet(one.address, two.address))
    await two.packets(1)


# -- from interface to interface ------------------------------------------------------------------------------------


@pytest.mark.parametrize("under_load", [False, True])
@pytest.mark.parametrize("offloads", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_packets_and_superpackets_cross_both_ways(make_pair: MakePair, host: str, offloads: bool, under_load: bool) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    nodes = make_pair(host, offloads=offloads)
    await session(*nodes)
    if under_load:
        for node in nodes:
            node.device._under_load_until = boottime() + 1000
            node.sockets.receive = None  # type: ignore[method-assign,assignment]
    for one, two in (nodes, nodes[::-1]):
        flows = [
            flow(one, two, is_v4=is_v4, is_tcp=is_tcp, payload=secrets.token_bytes(40_000), size=1300)
            for is_v4 in (True, False)
            for is_tcp in (True, False)
        ]
        singles = [packet(one.address, two.address, b"%d" % number * 50) for number in range(20)]
        for number, made in enumerate(flows):
            one.tun.inject(*reversed(made.superpacket()))
            for single in singles[number * 5 :][:5]:
                one.tun.inject(single)
        expected = [data for number, made in enumerate(flows) for data in (*made.packets(), *singles[number * 5 :][:5])]

        assert await two.packets(len(expected)) == expected
        assert two.drops() == {}


async def test_a_handshake_is_worked_on_without_further_traffic(pair: tuple[Node, Node]) -> None:
    one, two = pair
    data = packet(one.address, two.address)

    one.tun.inject(data)

    assert await two.packets(1) == [data]
    assert one.drops() == two.drops() == {}


async def test_a_superpacket_arrives_as_a_superpacket(pair: tuple[Node, Node]) -> None:
    """With UDP_SEGMENT, UDP_GRO and coalescing: few calls on the whole way."""
    one, two = pair
    one.tun.inject(packet(one.address, two.address))
    await two.packets(1)
    made = flow(one, two, payload=bytes(60_000), size=1380)

    one.tun.inject(*reversed(made.superpacket()))
    got = await two.until(lambda got: len(got) >= len(made.packets()))

    assert got == made.packets()


async def test_a_deadline_is_kept_though_nothing_else_happens(make_pair: MakePair) -> None:
    """A persistent keepalive of a second."""
    one, two = make_pair(persistent_keepalive=1)
    (peer,) = two.device.peers.values()

    async with asyncio.timeout(PATIENCE):
        while peer.rx_bytes < 148 + 3 * 32:
            await asyncio.sleep(0.01)

    assert one.device.next_deadline() - boottime() <= 1


async def test_nothing_wakes_up_an_idle_device_without_sessions() -> None:
    node = Node(1)

    assert node.pump._timer is None
    node.close()


async def test_many_handshake_messages_are_worked_on_in_portions(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them the loop does other things. The clock goes on by 45 µs, what such a message costs, when it is looked at."""
    one, _ = pair
    body = b"\x01" + bytes(115)
    public_key = crypto.public_key(one.private_key)
    message = body + crypto.mac(crypto.hash_(b"mac1----" + public_key), body) + bytes(16)
    for _ in range(100):
        one.device.message_received(message, Endpoint("127.0.0.1", 9), b"", boottime())
    time_of = itertools.count(boottime(), 45e-6).__next__
    monkeypatch.setattr(pump, "boottime", time_of)

    one.pump.settle(time_of())
    one.pump.settle(time_of())
    turns = []
    while one.device.has_messages:
        before = len(one.device._messages)
        await asyncio.sleep(0)
        turns.append(before - len(one.device._messages))

    assert one.drops() == {"bad_handshake": 100}
    assert max(turns) == 2, "100 µs each, and a second report in the same turn is no second"


async def test_handshakes_get_a_third_of_the_time_that_data_had_but_data_does_not_wait_for_long(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    body = b"\x01" + bytes(115)
    public_key = crypto.public_key(one.private_key)
    message = body + crypto.mac(crypto.hash_(b"mac1----" + public_key), body) + bytes(16)
    time_of = itertools.count(boottime(), 50e-6).__next__
    monkeypatch.setattr(pump, "boottime", time_of)

    for spent, worked_on in ((0.0, 1), (1.2e-3, 7), (1.0, 19)):
        one.device._messages.clear()
        for _ in range(100):
            one.device.message_received(message, Endpoint("127.0.0.1", 9), b"", time_of())
        one.pump._spent = spent
        one.pump._handle_messages()
        assert 100 - len(one.device._messages) == pytest.approx(worked_on, abs=1)


# -- an interface that refuses --------------------------------------------------------------------------------------


async def test_a_kernel_that_refuses_superpackets_gets_packets(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await session(one, two)
    two.tun.refuses_superpackets = True
    tcp = flow(one, two, payload=bytes(20_000), size=1000)
    udp = flow(one, two, is_tcp=False, payload=bytes(20_000), size=1000)
    two.device.inbound.coalescer.uso = True

    for made in (tcp, udp, tcp):
        one.tun.inject(*reversed(made.superpacket()))

    assert await two.packets(60) == [*tcp.packets(), *udp.packets(), *tcp.packets()]
    assert two.drops() == {}
    assert not two.device.inbound.coalescer.tso
    assert not two.device.inbound.coalescer.uso


async def test_packets_for_an_interface_that_is_down_are_counted(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await session(one, two)
    two.tun.is_up = False

    one.tun.inject(packet(one.address, two.address))
    two.tun.written.clear()
    await asyncio.wait_for(two.tun.written.wait(), PATIENCE)

    assert two.drops() == {"interface_refused": 1}
    assert not two.gone.is_set()


async def test_a_single_packet_that_is_refused_is_counted(pair: tuple[Node, Node]) -> None:
    _, two = pair

    two.pump.write((bytes(10), b"\x50 is no version of IP"))

    assert two.drops() == {"interface_refused": 1}


async def test_writing_to_an_interface_that_was_deleted_ends_the_work(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await session(one, two)
    two.tun.delete()

    two.pump.write((bytes(10), packet(one.address, two.address)))

    assert two.gone.is_set()


async def test_an_interface_deleted_while_a_superpacket_goes_in_pieces_ends_the_work(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.tun.refuses_superpackets = True
    two.tun.delete_after = 1

    two.pump.write((b"".join(flow(one, two, payload=bytes(3000), size=1000).superpacket()),))

    assert len(two.tun.writes) == 1
    assert two.gone.is_set()


async def test_an_interface_that_was_deleted_is_noticed_by_reading(pair: tuple[Node, Node]) -> None:
    one, _ = pair

    one.tun.delete()

    await asyncio.wait_for(one.gone.wait(), PATIENCE)


async def test_a_packet_that_cannot_be_read_is_counted_and_the_next_one_is(pair: tuple[Node, Node]) -> None:
    """The kernel cannot always put a packet of its own into a virtio header: EINVAL."""
    one, two = pair
    await session(one, two)
    first, lost, last = (packet(one.address, two.address, text) for text in (b"first", b"lost!", b"last."))
    for data in (first, lost, last):
        one.tun.inject(data)
    one.tun.failures.append(TunRefused("a packet"))

    got = await two.packets(2)

    assert got == [lost, last], "of three packets the failure lost the first"
    assert one.drops() == {"bad_offload": 1}
    assert not one.gone.is_set()


async def test_an_interface_that_fails_for_good_ends_the_work(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.tun.failures.append(OSError(errno.EFAULT, "out of order"))

    one.tun.inject(packet(one.address, two.address))

    await asyncio.wait_for(one.gone.wait(), PATIENCE)


# -- the outside ----------------------------------------------------------------------------------------------------


async def test_a_port_that_nobody_listens_on_is_survived(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await session(one, two)
    port = two.sockets.port
    two.pump.unwatch_sockets()
    two.sockets.close()
    for _ in range(5):
        one.tun.inject(packet(one.address, two.address))
    await asyncio.sleep(0)

    two.sockets.bind(port, 0)
    two.pump.watch_sockets()
    last = packet(one.address, two.address, b"there again")
    one.tun.inject(last)

    await two.until(lambda got: last in got)


async def test_another_port_is_told_by_the_next_packet(pair: tuple[Node, Node]) -> None:
    """Roaming, over real sockets."""
    one, two = pair
    await session(one, two)
    one.pump.unwatch_sockets()
    one.sockets.bind(0, 0)
    one.pump.watch_sockets()

    one.tun.inject(packet(one.address, two.address, b"from elsewhere"))
    await two.packets(1)
    two.tun.inject(packet(two.address, one.address, b"back"))

    assert [data[28:] for data in await one.packets(1)] == [b"back"]


async def test_rubbish_is_counted(pair: tuple[Node, Node]) -> None:
    one, two = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for rubbish in (b"", b"\x04", bytes(40), b"\x04\0\0\0" + bytes(60), bytes(2000)):
            stranger.sendto(rubbish, ("127.0.0.1", two.sockets.port))
    await session(one, two)

    async with asyncio.timeout(PATIENCE):
        while sum(two.device.drops.values()) < 5:
            await asyncio.sleep(0)
    assert two.drops() == {"unknown_message": 4, "unknown_index": 1}


async def test_what_is_stopped_reads_no_more(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await session(one, two)

    two.pump.stop()
    one.tun.inject(packet(one.address, two.address))
    two.tun.inject(packet(two.address, one.address))
    (peer,) = one.device.peers.values()
    before = peer.tx_bytes
    async with asyncio.timeout(PATIENCE):
        while peer.tx_bytes == before:
            await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)

    assert two.tun.packets() == []
    assert one.tun.packets() == []


def test_it_runs_on_uvloop_too() -> None:
    """Which the daemon uses."""

    async def cross() -> None:
        one, two = Node(1), Node(2)
        with contextlib.ExitStack() as stack:
            stack.callback(one.close)
            stack.callback(two.close)
            one.peer(two, "127.0.0.1", persistent_keepalive=1)
            two.peer(one, "127.0.0.1")
            made = flow(one, two, payload=bytes(60_000), size=1380)
            one.tun.inject(*reversed(made.superpacket()))
            assert await two.packets(44) == made.packets()
            (peer,) = two.device.peers.values()
            received = peer.rx_bytes
            async with asyncio.timeout(PATIENCE):
                while peer.rx_bytes == received:
                    await asyncio.sleep(0.01)
            one.tun.delete()
            await asyncio.wait_for(one.gone.wait(), PATIENCE)

    run(cross())


def run(main: Awaitable[None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)  # type: ignore[arg-type]


def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    assert boottime() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=1)


def test_every_error_of_an_interface_is_one_kind() -> None:
    assert issubclass(TunRefused, TunError)
    assert Drop.INTERFACE_REFUSED.value == "interface_refused"
