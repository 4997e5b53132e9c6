"""Every fallback of the daemon, forced: what the kernel refuses goes another way, only where it was refused and only as long as
it has to, and both the metrics and the log (once) say so.

Sockets and kernels are real. Where this kernel would not refuse, a socket does it in its place, or it is asked for what it lacks.
"""

import asyncio
import errno
import itertools
import logging
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from tests.sim import Sim, packet
from tests.tun.packets import Stream
from tests.wgpy.daemon.test_metrics import samples
from tests.wgpy.daemon.test_pump import Node, session
from tests.wgpy.daemon.test_udp import HOSTS, bound, family_of, has_ipv6, receive
from tun.interface import Offloads
from wgpy.config import Endpoint
from wgpy.daemon import udp
from wgpy.daemon.metrics import DeviceCollector
from wgpy.daemon.pump import TUN_READS
from wgpy.daemon.run import SetupError, _without
from wgpy.daemon.udp import PLAIN_SECONDS, UDP_SEGMENT, Sockets
from wgpy.daemon.unreachable import Unreachables

TRAIN = [bytes([number]) * 1000 for number in range(40)]
WHOLE = b"".join(TRAIN)


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    return str(request.param)


class Wary:
    """A socket whose kernel refuses trains to some ports with an error, and that remembers what was sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.refuses: dict[int, int] = {}
        """The error by port."""
        self.sent: list[tuple[int, int, int]] = []
        """Port, segment (0: a single datagram) and DS byte of each call, refused ones too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendmsg(
        self, buffers: Sequence[bytes], control: Sequence[tuple[int, int, bytes]], flags: int, address: tuple[Any, ...]
    ) -> int:
        segment = next((struct.unpack("=H", data)[0] for _, kind, data in control if kind == UDP_SEGMENT), 0)
        ds = next((data[0] for _, kind, data in control if kind in (socket.IP_TOS, socket.IPV6_TCLASS)), 0)
        self.sent.append((address[1], segment, ds))
        if segment and (number := self.refuses.get(address[1])):
            raise OSError(number, os.strerror(number))
        return self._sock.sendmsg(buffers, control, flags, address)

    def calls(self, port: int) -> list[int]:
        """The segments of the calls to ``port``, and forget all calls."""
        calls, self.sent = [segment for to, segment, _ in self.sent if to == port], []
        return calls


def wary(sockets: Sockets, host: str) -> Wary:
    """Put a wary socket in the place of the one for ``host``."""
    family = family_of(host)
    found = sockets._sockets[family] = Wary(sockets._sockets[family])  # type: ignore[assignment]
    return found


class Clock:
    """In the place of the module ``time``: stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        monkeypatch.setattr(udp, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def metric(sockets: Sockets, name: str, offload: str | None = None) -> float:
    """What a scrape says of ``sockets``."""
    text = generate_latest(DeviceCollector("wg0", Sim.connected()["A"].device, sockets, Offloads(), Unreachables())).decode()
    (value,) = [value for labels, value in samples(text, name) if offload in (None, labels.get("offload"))]
    return value


def datagrams(sockets: Sockets, count: int) -> list[bytes]:
    return [datagram for one in receive(sockets, count) for datagram in one.datagrams]


# -- a destination that refuses trains ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE], ids=errno.errorcode.get)
def test_a_destination_that_refuses_trains_gets_them_one_by_one_for_a_minute_and_others_do_not(
    number: int, host: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with bound() as sender, bound() as refusing, bound() as other:
        sock = wary(sender, host)
        sock.refuses[refusing.port] = number

        def send(to: Sockets) -> list[int]:
            """A train arrives in order, whatever becomes of it; the calls it took."""
            assert sender.send(memoryview(WHOLE), 1000, Endpoint(host, to.port), b"", 0)
            assert datagrams(to, len(TRAIN)) == TRAIN
            return sock.calls(to.port)

        assert send(refusing) == [1000, *[0] * 40]
        assert send(other) == [1000]
        assert send(refusing) == [0] * 40, "it is not asked again"
        assert (sender.plain_trains, sender.plain_destinations, sender.send_errors) == (1, 1, 0)
        assert metric(sender, "wgpy_plain_destinations") == metric(sender, "wgpy_plain_trains_total") == 1
        assert metric(sender, "wgpy_offload", "udp-gso") == 1, "of the kernel as a whole"

        clock.now += PLAIN_SECONDS - 0.01
        assert send(refusing) == [0] * 40
        clock.now += 0.02
        assert metric(sender, "wgpy_plain_destinations") == 0
        assert send(refusing) == [1000, *[0] * 40], "a train is tried again, and refused again"
        assert (sender.plain_trains, sender.plain_destinations) == (2, 1)

        sock.refuses.clear()
        clock.now += PLAIN_SECONDS + 0.01
        assert send(refusing) == [1000], "its route has changed"
        assert sender.plain_destinations == metric(sender, "wgpy_plain_destinations") == 0
        assert (sender.plain_trains, sender.send_errors) == (2, 0)

    (record,) = caplog.records
    assert (
        f"train of datagrams to {Endpoint(host, refusing.port)} was refused" in record.message or "was refused" in record.message
    )
    assert os.strerror(number) in record.message
    assert record.levelno == logging.WARNING


def test_many_destinations_that_refuse_do_not_make_the_memory_grow(clock: Clock) -> None:
    with bound() as sender:
        sock = wary(sender, "127.0.0.1")
        for port in range(1, 6001):
            sock.refuses[port] = errno.EIO
            sender.send(b"aabb", 2, Endpoint("127.0.0.1", port), b"", 0)

        assert len(sender._plain_until) <= 4096
        assert sender.plain_destinations == len(sender._plain_until)


def test_a_refused_train_does_not_cost_its_destination_the_address_it_knows_us_by(clock: Clock) -> None:
    """EINVAL may mean either: a segment that does not fit, or a source that is no longer ours. Here the source is fine."""
    with bound() as sender, bound() as other:
        sock = wary(sender, "127.0.0.1")
        sock.refuses[other.port] = errno.EINVAL
        source = struct.pack("=I4s4s", 0, socket.inet_aton("127.0.0.2"), bytes(4))

        assert sender.send(memoryview(WHOLE), 1000, Endpoint("127.0.0.1", other.port), source, 0)

        assert {one.endpoint.host for one in receive(other, len(TRAIN))} == {"127.0.0.2"}


def test_a_refused_train_is_logged_though_a_lone_datagram_met_the_same_error_before(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with bound() as sender, bound() as other:
        sock = wary(sender, "127.0.0.1")
        sock.refuses[other.port] = errno.EMSGSIZE
        assert not sender.send(bytes(65_535), 65_535, Endpoint("127.0.0.1", other.port), b"", 0)

        assert sender.send(memoryview(WHOLE), 1000, Endpoint("127.0.0.1", other.port), b"", 0)

        assert [record.message for record in caplog.records if "one by one" in record.message]


@pytest.mark.e2e
def test_a_path_that_a_segment_does_not_fit_gets_fragments_until_it_does(namespace: None, host: str, clock: Clock) -> None:
    """The real thing: this kernel refuses a segment that is longer than the path's MTU, and fragments a lone datagram."""
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1300"], check=True)
    rows = [bytes([number]) * 1452 for number in range(20)]
    with bound() as sender, bound() as receiver:
        sock = wary(sender, host)

        def send() -> list[int]:
            assert sender.send(memoryview(b"".join(rows)), 1452, Endpoint(host, receiver.port), b"", 0)
            assert datagrams(receiver, len(rows)) == rows
            return sock.calls(receiver.port)

        assert send() == [1452, *[0] * 20]
        assert (sender.plain_trains, sender.plain_destinations, sender.send_errors) == (1, 1, 0)

        subprocess.run(["ip", "link", "set", "lo", "mtu", "9000"], check=True)
        clock.now += PLAIN_SECONDS + 0.01
        assert send() == [1452]
        assert sender.plain_destinations == 0


# -- a kernel that lacks something ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "offload", "words"),
    [("UDP_SEGMENT", "udp-gso", "sending one datagram a call"), ("UDP_GRO", "udp-gro", "receiving one datagram a call")],
)
def test_a_kernel_without_an_option_is_done_without_it(
    option: str, offload: str, words: str, host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for an option that no kernel has."""
    with bound() as usual:
        monkeypatch.setattr(udp, option, 251)
        with bound() as lacking:
            assert metric(usual, "wgpy_offload", offload) == 1
            assert metric(lacking, "wgpy_offload", offload) == 0
            assert lacking.segmentation is (option != "UDP_SEGMENT")
            assert lacking.coalescing is (option != "UDP_GRO")
            lacking.bind(0, 0)
            one, two = (lacking, usual) if option == "UDP_SEGMENT" else (usual, lacking)
            assert one.send(memoryview(WHOLE), 1000, Endpoint(host, two.port), b"", 0)
            got = receive(two, len(TRAIN))
            assert [datagram for call in got for datagram in call.datagrams] == TRAIN
            assert len(got) == len(TRAIN) or option == "UDP_SEGMENT"
            assert lacking.plain_trains == lacking.send_errors == lacking.plain_destinations == 0

    (record,) = caplog.records
    assert words in record.message


def test_what_the_environment_says_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, meant in {
        "": set(),
        " , ": set(),
        "udp-gso": {"udp-gso"},
        " udp-gro ,tun-offload,": {"udp-gro", "tun-offload"},
        "udp-gso,udp-gro,tun-offload": {"udp-gso", "udp-gro", "tun-offload"},
    }.items():
        monkeypatch.setenv("WGPY_WITHOUT", said)
        assert _without() == meant
    monkeypatch.delenv("WGPY_WITHOUT")
    assert _without() == set()


def test_a_word_that_means_nothing_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGPY_WITHOUT", "udp-gso,gro")

    with pytest.raises(SetupError) as raised:
        _without()

    assert str(raised.value) == "WGPY_WITHOUT names gro; it knows tun-offload, udp-gro, udp-gso"


# -- from interface to interface ------------------------------------------------------------------------------------


class Pair:
    """Two nodes with a session. ``sock`` is what the first one sends with."""

    def __init__(self) -> None:
        self.one, self.two = Node(1), Node(2)
        self.one.peer(self.two, "127.0.0.1")
        self.two.peer(self.one, "127.0.0.1")

    async def __aenter__(self) -> "Pair":
        await session(self.one, self.two)
        self.sock = wary(self.one.sockets, "127.0.0.1")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.one.pump.stop()
        self.one.sockets._sockets = {family: getattr(sock, "_sock", sock) for family, sock in self.one.sockets._sockets.items()}
        self.one.close()
        self.two.close()

    def between(self, payload: bytes, tos: int = 0) -> bytes:
        return packet(self.one.address, self.two.address, payload, tos)

    async def arrive(self, packets: Sequence[bytes]) -> None:
        """Inject packets, and wait until all have come out, in order and whole."""
        for one in packets:
            self.one.tun.inject(one)
        assert await self.two.packets(len(packets)) == list(packets)
        assert self.one.drops() == self.two.drops() == {}


async def test_a_peer_whose_path_refuses_trains_loses_nothing() -> None:
    async with Pair() as pair:
        pair.sock.refuses[pair.two.sockets.port] = errno.EIO
        flow = Stream(
            payload=bytes(range(256)) * 234,
            size=1300,
            source=bytes([10, 0, 0, 1]),
            destination=bytes([10, 0, 0, 2]),
            dont_fragment=False,
        )

        for _ in range(3):
            pair.one.tun.inject(*reversed(flow.superpacket()))
            got = await pair.two.packets(len(flow.packets()))
            assert got == flow.packets()

        assert pair.one.drops() == pair.two.drops() == {}
        assert pair.one.sockets.plain_trains == 1


async def test_packets_whose_marks_differ_leave_in_trains_of_their_own() -> None:
    """A control message is for a whole train. Congestion experienced is not copied out (RFC 6040)."""
    async with Pair() as pair:
        await asyncio.sleep(0.01)  # the pump rests: what comes first goes alone
        marked = [pair.between(b"%04d" % number * 20, tos) for tos in (0, 1, 2, 3, 0) for number in range(10)]

        await pair.arrive([pair.between(b"the first"), *marked])

        sent = [(ds, segment > 0) for _, segment, ds in pair.sock.sent]
        assert [ds for ds, _ in itertools.groupby(sent, key=lambda call: call[0])] == [0, 1, 2, 0]
        assert {ds for ds, is_train in sent if is_train} == {0, 1, 2}


async def test_superpackets_that_the_interface_refuses_are_told_once_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    async with Pair() as pair:
        pair.two.tun.refuses_superpackets = True
        collector = DeviceCollector("wg0", pair.two.device, pair.two.sockets, pair.two.tun.offloads, Unreachables())

        def say() -> dict[str, float]:
            return {labels["offload"]: value for labels, value in samples(generate_latest(collector).decode(), "wgpy_offload")}

        assert say()["tun-tcp-gro"] == 1
        flow = Stream(payload=bytes(20_000), size=1000, source=bytes([10, 0, 0, 1]), destination=bytes([10, 0, 0, 2]))

        for _ in range(3):
            pair.one.tun.inject(*reversed(flow.superpacket()))
            assert await pair.two.packets(20) == flow.packets()

        assert say()["tun-tcp-gro"] == 0
        assert [record.message for record in caplog.records] == [
            "this kernel refuses superpackets of a kind: writing packet by packet"
        ]


async def test_what_has_gathered_when_a_turn_ends_by_its_budget_does_not_wait_for_the_next_packet() -> None:
    """The first packet goes alone, after a rest. The turn after it has its budget of reads, the last of which begin a train that
    is not full; and then there is nothing more to read."""
    async with Pair() as pair:
        await asyncio.sleep(0.01)
        long, short = pair.between(bytes(200)), pair.between(bytes(20))
        for one in [long, long, *[short] * (TUN_READS - 1)]:
            pair.one.tun.inject(one)

        async with asyncio.timeout(5):
            got = await pair.two.packets(TUN_READS + 1)

        assert len(got) == TUN_READS + 1
