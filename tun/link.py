"""The state of a TUN interface, read through its descriptor: is it up, how long may packets be, what is it called now.

Others bring the interface up and down, change its MTU, rename it and move it into another network namespace, while we have
only its descriptor. Two facts make that enough (protocol 2.6). TUNGETIFF tells the current name. And TUNGETDEVNETNS opens the
namespace that the interface is in now, which a thread can enter for a moment to ask about it.

``LinkMonitor`` is an edge, not a messenger: its descriptor becomes readable when anything happened to any link, events are
thrown away, and the state is asked for anew. So no lost event can matter. One thing only an event can tell, that an interface
went down and up again in a breath; if that is lost, nobody is worse off than with sessions that live on.

A netlink socket hears of the links of our own namespace. One in another namespace would keep that alive: whoever deletes it
would wait for our socket to go, and we for the interface to be deleted with it. So nothing of ours stays there. Then only the
TUN descriptor itself tells something: it becomes writable when the interface comes up, which a descriptor of epoll passes on
together with the events.
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
RTM_NEWLINK = 16
LINK_EVENT = struct.Struct("=4xH14xiI")  # nlmsghdr and ifinfomsg, of which: type of message, index, flags
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

    Wait until ``fileno`` is readable, then ``drain`` and ask for the ``state``. Events of other links in our own namespace
    cause this too. An interface that ``is_elsewhere`` wakes nobody when it goes down or changes its MTU: look now and then.

    Of an interface in a namespace that we may not enter, ``is_up`` is asked of the descriptor, and MTU and index stay what they
    were.
    """

    def __init__(self, fd: int) -> None:
        """Raises TunGone. ``fd`` stays the caller's, and must stay open."""
        self._fd = fd
        self._home = _own_namespace()
        self._epoll = select.epoll()
        self._queries = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._last = LinkState(name="", is_up=False, mtu=MTU_UNKNOWN, index=0, namespace=self._home)
        try:
            self._events.bind((0, RTMGRP_LINK))
            self._epoll.register(self._events, select.EPOLLIN)
            self.state()
        except BaseException:
            self.close()
            raise

    @property
    def is_elsewhere(self) -> bool:
        """Whether the interface was in another network namespace when last asked."""
        return self._last.namespace != self._home

    def fileno(self) -> int:
        """What to wait on."""
        return self._epoll.fileno()

    def drain(self) -> bool:
        """Throw away the events that wait. Whether one of them told that the interface was down: it may be up again by now."""
        self._epoll.poll(0)  # the edge of an interface elsewhere, which is gone once told
        was_down = False
        while True:
            try:
                event = self._events.recv(LINK_EVENT.size)  # one message, the rest of it is discarded
            except BlockingIOError:
                return was_down
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost, as they are here
                    raise
                continue
            if len(event) == LINK_EVENT.size:
                kind, index, flags = LINK_EVENT.unpack(event)
                was_down |= kind == RTM_NEWLINK and index == self._last.index and not flags & IFF_UP

    def state(self) -> LinkState:
        """The interface as it is now, wherever it is. Raises TunGone."""
        for _ in range(ATTEMPTS):
            self._follow()
            name = _name_of(self._fd)
            try:
                is_up, mtu, index = self._ask_about(name)
            except PermissionError:
                self._last = replace(self._last, name=name, is_up=_takes_packets(self._fd))
                return self._last
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue  # renamed or moved just now
            self._last = LinkState(name, is_up, mtu, index, self._last.namespace)
            return self._last
        raise TunError(f"{name} cannot be found: it is renamed or moved faster than it can be looked at")

    def close(self) -> None:
        self._events.close()
        self._queries.close()
        self._epoll.close()

    def _follow(self) -> None:
        """Take note of the namespace in which the interface is now."""
        was_elsewhere = self.is_elsewhere
        namespace = _open_namespace(self._fd)
        if namespace is None:
            number = self._home
        else:
            number = os.fstat(namespace).st_ino
            os.close(namespace)
        self._last = replace(self._last, namespace=number)
        if self.is_elsewhere and not was_elsewhere:
            self._epoll.register(self._fd, select.EPOLLOUT | select.EPOLLET)  # readable when it comes up
        elif was_elsewhere and not self.is_elsewhere:
            self._epoll.unregister(self._fd)

    def _ask_about(self, name: str) -> tuple[bool, int, int]:
        """Is it up, its MTU and index. Raises OSError, PermissionError where we may not look."""
        if not self.is_elsewhere:
            return _read_link(self._queries, name)

        def ask() -> tuple[bool, int, int]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as queries:
                return _read_link(queries, name)

        is_up, mtu, index = in_namespace_of(self._fd, ask)
        # The kernel tells only those of a change who have asked before it. If it has come up meanwhile, nobody will be told.
        is_up = is_up or _takes_packets(self._fd)
        return is_up, mtu, index


def _read_link(queries: socket.socket, name: str) -> tuple[bool, int, int]:
    flags = _ask(queries, SIOCGIFFLAGS, name) & 0xFFFF
    return bool(flags & IFF_UP), _ask(queries, SIOCGIFMTU, name), _ask(queries, SIOCGIFINDEX, name)


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
