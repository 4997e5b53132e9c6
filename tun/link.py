"""The state of a TUN interface, read through its descriptor: is it up, how long may packets be, what is it called now.

Others bring the interface up and down, change its MTU, rename it and move it into another network namespace, while we have
only its descriptor. Three facts make that enough (protocol 2.6). TUNGETIFF tells the current name. TUNGETDEVNETNS
opens the namespace that the interface is in now. And a socket belongs for ever to the namespace in which it was made:
a thread that enters the interface's namespace for a moment can make the two sockets through which it is watched.

``LinkMonitor`` is an edge, not a messenger: its descriptor becomes readable when anything happened to any link, events are
thrown away unread, and the state is asked for anew. So no lost event can matter. A descriptor of epoll stands
in front of the netlink socket, for the socket changes when the interface moves, and what an event loop watches must not.
"""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from tun.interface import TunError, TunGone

TUNGETIFF = 0x800454D2
TUNGETDEVNETNS = 0x54E3
SIOCGIFFLAGS, SIOCGIFMTU, SIOCGIFINDEX = 0x8913, 0x8921, 0x8933
IFF_UP = 0x1
RTMGRP_LINK = 1  # linux/rtnetlink.h: RTNLGRP_LINK as a bit of the bound address
CLONE_NEWNET = 0x40000000

IFREQ_INT = struct.Struct("16si20x")
MTU_UNKNOWN = 1280  # every link that carries IPv6 has this much
ATTEMPTS = 20

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class LinkState:
    """The interface at one moment. ``namespace`` is the inode number of its network namespace, ``index`` counts in there."""

    name: str
    is_up: bool
    mtu: int
    index: int
    namespace: int


def in_namespace_of(fd: int, make: Callable[[], Made]) -> Made:
    """Call ``make`` in the network namespace where the interface of the TUN descriptor ``fd`` is now.

    A socket that it makes stays there. If that is not our own namespace, ``make`` runs in a thread, which has ended when
    this returns. Raises what ``make`` raises, TunGone, and PermissionError without CAP_SYS_ADMIN.
    """
    namespace = _open_namespace(fd)
    if namespace is None:
        return make()
    try:
        if os.fstat(namespace).st_ino == _own_namespace():
            return make()
        return _call_inside(namespace, make)
    finally:
        os.close(namespace)


class LinkMonitor:
    """Watches the interface of a TUN descriptor, wherever it is moved to.

    Wait until ``fileno`` is readable, then ``drain`` and ask for the ``state``. Events of other links in that namespace
    cause this too; nothing else does.

    An interface in a namespace that we may not enter is watched from ours. Then no events come, ``is_up`` is asked of the
    descriptor, and MTU and index stay what they were.
    """

    def __init__(self, fd: int) -> None:
        """Raises TunGone. ``fd`` stays the caller's, and must stay open."""
        self._fd = fd
        self._epoll = select.epoll()
        self._events: socket.socket | None = None
        self._queries: socket.socket | None = None  # None: not in the interface's namespace
        self._last = LinkState(name="", is_up=False, mtu=MTU_UNKNOWN, index=0, namespace=0)
        try:
            self.state()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """What to wait on. It stays the same when the interface moves."""
        return self._epoll.fileno()

    def drain(self) -> None:
        """Throw away the events that wait."""
        assert self._events is not None
        while True:
            try:
                self._events.recv(1)  # one message, the rest of it is discarded
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost, as they are here
                    raise

    def state(self) -> LinkState:
        """The interface as it is now; follows it into another namespace first. Raises TunGone."""
        for _ in range(ATTEMPTS):
            self._follow()
            name = _name_of(self._fd)
            if self._queries is None:
                self._last = replace(self._last, name=name, is_up=_takes_packets(self._fd))
                return self._last
            try:
                flags = _ask(self._queries, SIOCGIFFLAGS, name) & 0xFFFF
                mtu = _ask(self._queries, SIOCGIFMTU, name)
                index = _ask(self._queries, SIOCGIFINDEX, name)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue  # renamed or moved just now
            self._last = LinkState(name, bool(flags & IFF_UP), mtu, index, self._last.namespace)
            return self._last
        raise TunError(f"{name} cannot be found: it is renamed or moved faster than it can be looked at")

    def close(self) -> None:
        self._close_sockets()
        self._epoll.close()

    def _follow(self) -> None:
        """Have sockets in the namespace in which the interface is now."""
        namespace = _open_namespace(self._fd)
        try:
            number = _own_namespace() if namespace is None else os.fstat(namespace).st_ino
        finally:
            if namespace is not None:
                os.close(namespace)
        if number == self._last.namespace:
            return
        self._close_sockets()
        try:
            self._events, self._queries = in_namespace_of(self._fd, _open_sockets)
        except PermissionError:
            self._events, queries = _open_sockets()
            queries.close()
        self._epoll.register(self._events, select.EPOLLIN)
        self._last = replace(self._last, namespace=number)

    def _close_sockets(self) -> None:
        for one in (self._events, self._queries):
            if one is not None:
                one.close()  # which also takes it out of the epoll set
        self._events = self._queries = None


def _open_sockets() -> tuple[socket.socket, socket.socket]:
    """A netlink socket that hears of every link of this namespace, and one to ask about links."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        events.bind((0, RTMGRP_LINK))
        return events, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except BaseException:
        events.close()
        raise


def _name_of(fd: int) -> str:
    with _gone_if_deleted():
        answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    return os.fsdecode(answer[:16].rstrip(b"\0"))


def _open_namespace(fd: int) -> int | None:
    """A descriptor of the namespace where the interface is; None if the kernel won't say (before 5.x, or not permitted)."""
    with _gone_if_deleted():
        try:
            return fcntl.ioctl(fd, TUNGETDEVNETNS)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EINVAL, errno.ENOTTY):
                return None
            raise


@contextmanager
def _gone_if_deleted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EBADFD, errno.EBADF):
            raise TunGone("the interface was deleted") from None
        raise


def _ask(queries: socket.socket, request: int, name: str) -> int:
    """The int that one of the SIOCGIF requests answers with."""
    answer = fcntl.ioctl(queries, request, IFREQ_INT.pack(os.fsencode(name), 0))
    return int(IFREQ_INT.unpack(answer)[1])


def _takes_packets(fd: int) -> bool:
    """Whether the interface is up: the kernel calls its descriptor writable then, and only then (drivers/net/tun.c)."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


def _own_namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _call_inside(namespace: int, make: Callable[[], Made]) -> Made:
    """Call ``make`` in a thread that has entered the namespace, so that nobody else ever was in there."""
    results: list[Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            results.append(make())
        except BaseException as error:  # raised again where it belongs
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
