"""Real sockets on loopback, both families, with and without UDP_SEGMENT and UDP_GRO."""

import contextlib
import errno
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from wgpy.config import Endpoint
from wgpy.daemon.mmsg import SLOTS
from wgpy.daemon.udp import IP_PKTINFO, Received, Sockets, read_source

PATIENCE = 10.0
IP_RECVERR = 11
HOSTS = ["127.0.0.1", "::1"]


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return True
    return False


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    return str(request.param)


@contextlib.contextmanager
def bound(**options: bool) -> Iterator[Sockets]:
    sockets = Sockets(**options)
    sockets.bind(0, 0)
    try:
        yield sockets
    finally:
        sockets.close()


@dataclass(frozen=True)
class Got:
    data: bytes
    segment: int
    endpoint: Endpoint
    source: bytes
    ecn: int

    @property
    def datagrams(self) -> list[bytes]:
        size = self.segment or len(self.data)
        if not size:
            return [b""]
        return [self.data[start : start + size] for start in range(0, len(self.data), size)]


def receive(sockets: Sockets, count: int = 1) -> list[Got]:
    """Wait until ``count`` datagrams have come, in however many calls."""
    got: list[Got] = []
    buffer = memoryview(bytearray(65535))
    received = Received()
    while sum(len(one.datagrams) for one in got) < count:
        readable, _, _ = select.select(list(sockets), [], [], PATIENCE)
        assert readable, f"only {got} came"
        for sock in readable:
            assert sockets.receive(sock, buffer, received)
            got.append(Got(bytes(buffer[: received.size]), received.segment, received.endpoint, received.source, received.ecn))
    return got


def receive_many(sockets: Sockets, count: int) -> list[Got]:
    """As :func:`receive`, many in a call."""
    got: list[Got] = []
    while sum(len(one.datagrams) for one in got) < count:
        readable, _, _ = select.select(list(sockets), [], [], PATIENCE)
        assert readable, f"only {got} came"
        for sock in readable:
            for data, segment, endpoint, source, ecn in sockets.receive_many(sock):
                got.append(Got(bytes(data), segment, endpoint, source, ecn))
    return got


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def peer_socket(host: str) -> socket.socket:
    """A plain socket of somebody else."""
    sock = socket.socket(family_of(host), socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    sock.bind((host, 0))
    return sock


def endpoint_of(sock: socket.socket) -> Endpoint:
    address = sock.getsockname()
    return Endpoint(address[0], address[1])


# -- trains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segmentation", [True, False])
@pytest.mark.parametrize("coalescing", [True, False])
@pytest.mark.parametrize(("count", "segment", "tail"), [(1, 100, 0), (5, 100, 0), (5, 1452, 17), (64, 80, 80), (45, 1452, 0)])
def test_a_train_arrives_whole_and_in_order(
    host: str, segmentation: bool, coalescing: bool, count: int, segment: int, tail: int
) -> None:
    datagrams = [bytes([number]) * segment for number in range(count)]
    if tail:
        datagrams[-1] = b"\xee" * tail
    whole = b"".join(datagrams)
    with bound(segmentation=segmentation) as sender, bound(coalescing=coalescing) as receiver:
        assert sender.send(memoryview(whole), segment, Endpoint(host, receiver.port), b"", 0)

        got = receive(receiver, count)

        assert [datagram for one in got for datagram in one.datagrams] == datagrams
        assert {one.endpoint for one in got} == {Endpoint(host, sender.port)}
        assert sender.send_errors == sender.plain_trains == 0


def test_with_both_offloads_a_train_is_one_call_each_way(host: str) -> None:
    with bound() as sender, bound() as receiver:
        assert sender.segmentation and receiver.coalescing, "this kernel has both"
        sender.send(bytes(40 * 1000), 1000, Endpoint(host, receiver.port), b"", 0)

        (got,) = receive(receiver)

        assert (len(got.data), got.segment) == (40_000, 1000)


def test_a_train_that_the_kernel_refuses_goes_one_by_one(host: str) -> None:
    """More segments than it takes: EINVAL, as from a path that one segment does not fit."""
    with bound() as sender, bound() as receiver:
        assert sender.send(bytes(200 * 20), 20, Endpoint(host, receiver.port), b"", 0)

        assert len([datagram for one in receive(receiver, 200) for datagram in one.datagrams]) == 200
        assert sender.plain_trains == 1
        assert sender.send_errors == 0


def test_a_datagram_that_no_path_takes_is_lost_and_counted(host: str) -> None:
    with bound() as sender, bound() as receiver:
        endpoint = Endpoint(host, receiver.port)

        assert not sender.send(bytes(65_535), 65_535, endpoint, b"", 0)
        assert sender.send(b"after it", 8, endpoint, b"", 0)

        assert sender.send_errors == 1
        assert receive(receiver)[0].data == b"after it"


def test_a_family_that_is_not_there_takes_nothing() -> None:
    sockets = Sockets()

    assert not sockets.send(b"x", 1, Endpoint("127.0.0.1", 9), b"", 0)
    assert not sockets.is_bound


# -- the outer header -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ds", [0, 1, 2, 3, 0x88])
@pytest.mark.parametrize("segment", [100, 300])
def test_the_ds_byte_goes_out_and_its_ecn_bits_come_in(host: str, ds: int, segment: int) -> None:
    with bound() as sender, bound() as receiver, peer_socket(host) as foreign:
        level, option, kind = (
            (socket.IPPROTO_IP, socket.IP_RECVTOS, socket.IP_TOS)
            if host == "127.0.0.1"
            else (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS)
        )
        foreign.setsockopt(level, option, 1)

        sender.send(bytes(300), segment, Endpoint(host, receiver.port), b"", ds)
        sender.send(bytes(300), segment, endpoint_of(foreign), b"", ds)

        assert {one.ecn for one in receive(receiver, 300 // segment)} == {ds & 3}
        _, control, _, _ = foreign.recvmsg(2000, 100)
        assert [(found[1], found[2][0]) for found in control] == [(kind, ds)]


def test_the_path_may_fragment_what_we_send() -> None:
    """As the kernel's own WireGuard has it: DF is 0."""
    with bound() as sockets:
        for sock in sockets:
            v4 = sock.family == socket.AF_INET
            level, option = (socket.IPPROTO_IP, 10) if v4 else (socket.IPPROTO_IPV6, 23)
            assert sock.getsockopt(level, option) == 0


# -- sticky sources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["127.0.0.1", "127.0.0.2", "127.7.7.7"])
@pytest.mark.parametrize("segment", [5, 100])
def test_what_came_to_one_of_our_addresses_is_answered_from_there(ours: str, segment: int) -> None:
    with bound() as sockets, peer_socket("127.0.0.1") as other:
        other.sendto(b"hello", (ours, sockets.port))
        (got,) = receive(sockets)

        assert sockets.send(b"hello" * 4, segment, got.endpoint, got.source, 0)

        data, address = other.recvfrom(100)
        assert address == (ours, sockets.port)
        assert data == b"hello" * (1 if segment == 5 else 4)


def test_the_source_is_known_of_a_burst_too(host: str) -> None:
    """wireguard-go loses it with UDP_GRO."""
    with bound() as sockets, bound() as other:
        other.send(bytes(40 * 1000), 1000, Endpoint(host, sockets.port), b"", 0)
        (got,) = receive(sockets)
        assert got.segment == 1000

        assert sockets.send(b"back", 4, got.endpoint, got.source, 0)

        assert got.source
        assert receive(other)[0].endpoint == Endpoint(host, sockets.port)


@pytest.mark.parametrize("segment", [4, 100])
def test_a_source_that_is_no_longer_ours_is_given_up(host: str, segment: int) -> None:
    gone = (
        struct.pack("=I4s4s", 0, socket.inet_aton("192.0.2.1"), bytes(4))
        if host == "127.0.0.1"
        else struct.pack("=16sI", socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 0)
    )
    with bound() as sockets, bound() as other:
        for _ in range(3):
            assert sockets.send(b"data" * 3, segment, Endpoint(host, other.port), gone, 0)

        got = receive(other, 9 if segment == 4 else 3)
        assert {one.endpoint for one in got} == {Endpoint(host, sockets.port)}
        assert sockets.send_errors == sockets.plain_trains == 0


def test_a_source_that_is_ours_again_is_used_again() -> None:
    with bound() as sockets, peer_socket("127.0.0.1") as other:
        other.sendto(b"hello", ("127.0.0.2", sockets.port))
        source = receive(sockets)[0].source
        sockets._dead_sources.add(source)
        sockets._sources.clear()
        sockets._controls.clear()
        sockets.send(b"x", 1, endpoint_of(other), source, 0)
        assert other.recvfrom(10)[1][0] == "127.0.0.1"

        other.sendto(b"hello", ("127.0.0.2", sockets.port))
        source = receive(sockets)[0].source
        sockets.send(b"x", 1, endpoint_of(other), source, 0)

        assert other.recvfrom(10)[1][0] == "127.0.0.2"


def test_a_source_of_the_other_family_is_not_used(host: str) -> None:
    with bound() as sockets, peer_socket(host) as other:
        wrong = bytes(12) if host == "::1" else bytes(20)

        assert sockets.send(b"x", 1, endpoint_of(other), wrong, 0)

        assert other.recvfrom(10)[0] == b"x"


def test_a_source_says_to_which_address_and_by_which_interface_a_datagram_came(host: str) -> None:
    with bound() as sockets, peer_socket(host) as other:
        other.sendto(b"hello", (host, sockets.port))
        address, interface = read_source(receive(sockets)[0].source)

    assert (socket.inet_ntop(family_of(host), address), interface) == (host, socket.if_nametoindex("lo"))
    assert read_source(b"") == (b"", 0)


def test_a_remembered_source_does_not_tie_a_send_to_the_interface_it_was_met_at() -> None:
    source = struct.pack("=I4s4s", 7, socket.inet_aton("127.0.0.1"), bytes(4))

    ((level, kind, sent),) = Sockets()._control(socket.AF_INET, source, 0, 0)

    assert (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)
    assert sent == struct.pack("=I4s4s", 0, socket.inet_aton("127.0.0.1"), bytes(4))


def test_only_a_link_local_source_keeps_its_interface() -> None:
    sockets = Sockets()

    for address, kept in (("fe80::1", 7), ("febf::1", 7), ("fec0::1", 0), ("2001:db8::1", 0), ("::1", 0)):
        packed = socket.inet_pton(socket.AF_INET6, address)
        source = sockets._source(struct.pack("=16sI", packed, 7))

        assert read_source(source) == (packed, 7)
        ((_, _, sent),) = sockets._control(socket.AF_INET6, source, 0, 0)
        assert sent == struct.pack("=16sI", packed, kept)


# -- many in a call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coalescing", [True, False])
def test_many_datagrams_in_a_call_are_told_as_one_in_a_call_is(host: str, coalescing: bool) -> None:
    """Datagrams of many senders, an empty one, a train, and a mark of congestion."""
    with bound(coalescing=coalescing) as sockets, bound() as trains, contextlib.ExitStack() as stack:
        to = Endpoint(host, sockets.port)
        others = [stack.enter_context(peer_socket(host)) for _ in range(2 * SLOTS + 3)]

        def sent() -> int:
            for number, other in enumerate(others):
                other.sendto(b"%d" % number * number, to.sockaddr)
                if number == 5:
                    assert trains.send(bytes(30_000) + b"the end", 1000, to, b"", 3)
            return len(others) + 31

        one_by_one = receive(sockets, sent())
        many = receive_many(sockets, sent())

        assert many == one_by_one
        assert [hash(one.endpoint) for one in many] == [hash(one.endpoint) for one in one_by_one]
        assert [one.endpoint.sockaddr for one in many] == [one.endpoint.sockaddr for one in one_by_one]
        assert [one.endpoint.packed for one in many] == [one.endpoint.packed for one in one_by_one]
        assert max(one.segment for one in many) == (1000 if coalescing else 0)
        assert {one.source for one in many} != {b""}


def test_a_sender_has_one_endpoint_however_often_it_sends(host: str) -> None:
    """Whether a peer has moved is seen by identity."""
    with bound() as sockets, bound() as other:
        for _ in range(3):
            other.send(b"data", 4, Endpoint(host, sockets.port), b"", 0)
        first, *rest = receive_many(sockets, 3)

        assert all(one.endpoint is first.endpoint and one.source is first.source for one in rest)


def test_receiving_many_from_an_empty_socket_blocks_nobody() -> None:
    with bound() as sockets:
        for sock in sockets:
            with pytest.raises(BlockingIOError):
                sockets.receive_many(sock)


def test_datagrams_are_sent_each_to_its_own(host: str) -> None:
    """Of two lengths and to both families, in any order, more than go in a call, and some from the address that was spoken to."""
    with bound() as sockets, contextlib.ExitStack() as stack:
        hosts = [host, "127.0.0.1"]
        others = [stack.enter_context(peer_socket(hosts[number % 2])) for number in range(3 * SLOTS)]
        spoken_to = struct.pack("=I4s4s", 0, socket.inet_aton("127.0.0.2"), bytes(4))
        sources = [spoken_to if host == "127.0.0.1" and number % 3 else b"" for number in range(len(others))]
        datagrams = [bytes([number]) * (64 if number < 40 else 7) for number in range(len(others))]

        sockets.send_each(list(zip(datagrams, map(endpoint_of, others), sources, strict=True)))

        for other, datagram, source in zip(others, datagrams, sources, strict=True):
            data, sender = other.recvfrom(100)
            own = "127.0.0.2" if source else other.getsockname()[0]
            assert (data, *sender[:2]) == (datagram, own, sockets.port)


def test_alike_they_take_a_call_for_as_many_as_it_has_slots(host: str) -> None:
    with bound() as sockets, peer_socket(host) as other:
        sockets.send_each([(b"data", endpoint_of(other), b"")] * (2 * SLOTS + 1))

        assert sockets.sends == 3
        assert [other.recv(100) for _ in range(2 * SLOTS + 1)] == [b"data"] * (2 * SLOTS + 1)


def test_one_that_cannot_be_sent_keeps_back_none_of_the_others(host: str) -> None:
    """A port of 0 is refused, and an address that is no longer ours is given up."""
    gone = struct.pack("=I4s4s", 0, socket.inet_aton("192.0.2.1"), bytes(4)) if host == "127.0.0.1" else b""
    with bound() as sockets, peer_socket(host) as other:
        for refused in range(3):
            endpoints = [endpoint_of(other)] * 3
            endpoints[refused] = Endpoint(host, 0)
            sockets.send_each([(b"%d" % number, endpoint, gone) for number, endpoint in enumerate(endpoints)])

            assert [other.recv(100) for _ in range(2)] == [b"%d" % number for number in range(3) if number != refused]
        assert sockets.send_errors == 3


@pytest.mark.parametrize("many", [True, False])
def test_a_destination_that_cannot_be_sent_to_costs_nobody_else_the_source(many: bool) -> None:
    spoken_to = struct.pack("=I4s4s", 0, socket.inet_aton("127.0.0.2"), bytes(4))
    with bound() as sockets, peer_socket("127.0.0.1") as other:
        if many:
            sockets.send_each([(b"lost", Endpoint("127.0.0.1", 0), spoken_to), (b"data", endpoint_of(other), spoken_to)])
        else:
            assert not sockets.send(b"lost", 4, Endpoint("127.0.0.1", 0), spoken_to, 0)
        sockets.send(b"more", 4, endpoint_of(other), spoken_to, 0)

        assert [other.recvfrom(9)[1][0] for _ in range(1 + many)] == ["127.0.0.2"] * (1 + many)
        assert sockets.send_errors == 1


def test_what_a_full_socket_does_not_take_is_lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not tried again one by one; those of another kind are."""
    calls: list[int] = []

    def send(descriptor: int, datagrams: list[bytes], addresses: list[bytes], control: bytes) -> int:
        calls.append(len(datagrams))
        raise BlockingIOError

    with bound() as sockets, peer_socket("127.0.0.1") as other:
        monkeypatch.setattr(sockets, "_outbox", SimpleNamespace(send=send))
        sockets.send_each([(bytes(9), endpoint_of(other), b"")] * 40 + [(bytes(5), endpoint_of(other), b"")])

        assert (calls, sockets.sends, sockets.send_errors) == ([SLOTS, 1], 0, 2)


def test_without_its_family_a_datagram_is_lost() -> None:
    sockets = Sockets()

    sockets.send_each([(b"data", Endpoint("127.0.0.1", 1), b"")])

    assert sockets.sends == 0


# -- errors of others -----------------------------------------------------------------------------------------------


def test_a_closed_port_is_survived(host: str) -> None:
    """With errors reported (they are to whoever asks), a send fails for what an earlier one met."""
    with bound() as sockets, bound() as other, peer_socket(host) as closed:
        nobody = endpoint_of(closed)
        closed.close()
        for sock in sockets:
            if sock.family == family_of(host):
                sock.setsockopt(
                    *((socket.IPPROTO_IP, IP_RECVERR) if host == "127.0.0.1" else (socket.IPPROTO_IPV6, 25)),
                    1,
                )

        for _ in range(4):
            sockets.send(b"to nobody", 9, nobody, b"", 0)
            assert sockets.send(b"to you", 6, Endpoint(host, other.port), b"", 0)

        assert [one.data for one in receive(other, 4)] == [b"to you"] * 4
        assert sockets.send_errors == 0


def test_an_error_of_an_earlier_send_does_not_stop_receiving(host: str) -> None:
    with bound() as sockets, bound() as other, peer_socket(host) as closed:
        nobody = endpoint_of(closed)
        closed.close()
        sockets.send(b"to nobody", 9, nobody, b"", 0)
        other.send(b"to you", 6, Endpoint(host, sockets.port), b"", 0)

        assert receive(sockets)[0].data == b"to you"


def test_a_datagram_longer_than_the_buffer_is_told() -> None:
    with bound(coalescing=False) as sockets, peer_socket("127.0.0.1") as other:
        other.sendto(bytes(100), ("127.0.0.1", sockets.port))
        readable, _, _ = select.select(list(sockets), [], [], PATIENCE)

        assert not sockets.receive(readable[0], memoryview(bytearray(50)), Received())


def test_receiving_from_an_empty_socket_blocks_nobody() -> None:
    with bound() as sockets:
        for sock in sockets:
            with pytest.raises(BlockingIOError):
                sockets.receive(sock, memoryview(bytearray(50)), Received())


# -- binding --------------------------------------------------------------------------------------------------------


def test_port_0_is_one_free_port_for_both_families() -> None:
    with bound() as sockets:
        assert {sock.getsockname()[1] for sock in sockets} == {sockets.port}
        assert sockets.port > 0
        assert sockets.is_bound
        assert {sock.family for sock in sockets} == ({socket.AF_INET, socket.AF_INET6} if has_ipv6() else {socket.AF_INET})


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_in_either_family_leaves_everything_as_it_was(family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("no IPv6 here")
    with bound() as sockets, socket.socket(family, socket.SOCK_DGRAM) as taken, peer_socket("127.0.0.1") as other:
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("", 0))
        port, before = sockets.port, list(sockets)

        with pytest.raises(OSError) as raised:
            sockets.bind(taken.getsockname()[1], 0)

        assert raised.value.errno == errno.EADDRINUSE
        assert (sockets.port, list(sockets)) == (port, before)
        other.sendto(b"still here", ("127.0.0.1", port))
        assert receive(sockets)[0].data == b"still here"


def test_another_port_takes_the_place_of_the_old_one() -> None:
    with bound() as sockets, peer_socket("127.0.0.1") as other:
        old = sockets.port

        sockets.bind(0, 0)

        assert sockets.port != old
        other.sendto(b"hello", ("127.0.0.1", sockets.port))
        assert receive(sockets)[0].data == b"hello"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("", old))  # it is free


def test_closed_sockets_are_no_sockets() -> None:
    with bound() as sockets:
        sockets.close()

        assert (list(sockets), sockets.port, sockets.is_bound) == ([], 0, False)
        assert not sockets.send(b"x", 1, Endpoint("127.0.0.1", 9), b"", 0)


def test_a_mark_is_set_on_both_sockets_and_taken_off() -> None:
    with bound() as sockets:
        try:
            sockets.set_fwmark(0x1234)
        except PermissionError:
            pytest.skip("needs CAP_NET_ADMIN")
        assert {sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for sock in sockets} == {0x1234}

        sockets.bind(0, 0x77)
        assert {sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for sock in sockets} == {0x77}
        sockets.set_fwmark(0)

        assert {sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for sock in sockets} == {0}


def test_many_peers_do_not_make_the_memory_grow() -> None:
    sockets = Sockets()

    for number in range(10_000):
        sockets._endpoint((f"10.0.{number >> 8}.{number & 255}", 1))
        sockets._source(struct.pack("=I4s4s", 1, number.to_bytes(4), bytes(4)))
        sockets._control(socket.AF_INET, struct.pack("=I4s4s", 0, number.to_bytes(4), bytes(4)), 0, 0)

    assert len(sockets._endpoints) <= 4096
    assert len(sockets._sources) <= 4096
    assert len(sockets._controls) <= 4096
