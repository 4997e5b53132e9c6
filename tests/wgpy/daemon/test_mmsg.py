"""Many datagrams in a call, as the kernel writes and reads them. What Sockets makes of it is tried in test_udp."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wgpy.daemon.test_udp import endpoint_of, has_ipv6, peer_socket
from wgpy.config import Endpoint
from wgpy.daemon.mmsg import ROOM, SLOTS, Inbox, Outbox, pack_control, unpack_control
from wgpy.daemon.udp import IP_PKTINFO, MSG_TRUNC


def test_a_call_tells_nothing_of_the_one_before() -> None:
    """The kernel writes the lengths it used where it reads the lengths there are: 16 bytes of an address, none of control."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) if has_ipv6() else peer_socket("127.0.0.1") as telling,
    ):
        inbox = Inbox()
        plain.setblocking(False)
        telling.setblocking(False)
        plain.bind(("127.0.0.1", 0))
        plain.sendto(b"short", plain.getsockname())
        ((data, address, control, _),) = inbox.receive(plain.fileno())
        assert (bytes(data), len(address), control) == (b"short", 16, b"")
        if telling.family == socket.AF_INET6:
            telling.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            telling.bind(("::1", 0))
        else:
            telling.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        telling.sendto(b"longer", telling.getsockname())
        ((data, address, control, _),) = inbox.receive(telling.fileno())

        assert bytes(data) == b"longer"
        assert Endpoint.unpacked(address) == endpoint_of(telling)
        assert [kind for _, kind, _ in unpack_control(control)] == [50 if telling.family == socket.AF_INET6 else IP_PKTINFO]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=30)), max_size=4))
def test_control_messages_are_read_back(control: list[tuple[int, int, bytes]]) -> None:
    assert list(unpack_control(pack_control(control))) == control


def test_what_is_sent_in_one_call_comes_in_one_call() -> None:
    """And no more than there are slots."""
    with peer_socket("127.0.0.1") as sock:
        sock.setblocking(False)
        outbox, inbox = Outbox(), Inbox()
        datagrams = [b"%02d" % number for number in range(SLOTS)]

        assert outbox.send(sock.fileno(), datagrams, [endpoint_of(sock).packed] * SLOTS, b"") == SLOTS
        assert outbox.send(sock.fileno(), [b"one more"], [endpoint_of(sock).packed], b"") == 1

        assert [bytes(data) for data, *_ in inbox.receive(sock.fileno())] == datagrams
        assert [bytes(data) for data, *_ in inbox.receive(sock.fileno())] == [b"one more"]
        with pytest.raises(BlockingIOError):
            inbox.receive(sock.fileno())


def test_a_full_socket_is_told_from_one_that_refuses() -> None:
    """Seen at a pair of sockets of AF_UNIX: those of UDP are hard to fill."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        here.setblocking(False)
        outbox = Outbox()

        def fill() -> None:
            for _ in range(100_000):
                outbox.send(here.fileno(), [b"data"] * SLOTS, [b""] * SLOTS, b"")

        with pytest.raises(BlockingIOError):
            fill()


def test_a_datagram_of_any_length_fits_the_buffer_it_is_copied_to() -> None:
    """A slot has a byte less than its room: no datagram has more, but one in a jumbogram."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        there.setblocking(False)
        here.send(bytes(ROOM))
        ((data, _, _, flags),) = Inbox().receive(there.fileno())
        assert (len(data), flags & MSG_TRUNC) == (ROOM - 1, MSG_TRUNC)


def test_sending_stops_at_what_the_kernel_refuses() -> None:
    with peer_socket("127.0.0.1") as sock:
        good, bad = endpoint_of(sock).packed, Endpoint("127.0.0.1", 0).packed

        assert Outbox().send(sock.fileno(), [b"a", b"b", b"c"], [good, bad, good], b"") == 1
        assert Outbox().send(sock.fileno(), [b"a", b"b"], [bad, good], b"") == 0
