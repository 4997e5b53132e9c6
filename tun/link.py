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
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from tun.interface import TunError, TunGone

TUNGETIFF = 0x800454D2
TUNGETDEVNETNS = 0x54E3
SIOCGIFFLAGS, SIOCGIFMTU, SIOCGIFINDEX = 0x8913, 0x8921, 0x8933
IFF_UP = 0x1
RTMGRP_LINK = 1  # linux/rtnetlink.h: RTNLGRP_LINK as a bit of the bound address
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5
CLONE_NEWNET = 0x40000000

_NAME_IOCTL = struct.Struct("16si20x")

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
    """Call ``make`` in the network namespace which the interface of the TUN descriptor ``fd`` is in now.

    Sockets that it makes stay there. Where that is another namespace than ours, it runs in a thread of its own, which has
    ended when this returns. Raises what ``make`` does, TunGone, and PermissionError without CAP_SYS_ADMIN.
    """
    namespace_fd = _namespace_of(fd)
    try:
        if os.fstat(namespace_fd).st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
            return make()
        return _in_thread(lambda: _enter(namespace_fd) or make())
    finally:
        os.close(namespace_fd)
