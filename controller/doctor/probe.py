"""Asks other nodes whether datagrams arrive, with UDP alone: no capability is needed, and the other end needs no program.

A datagram to a port on which nobody listens is answered with an ICMP message, which the kernel hands to the socket as an error.
So *refused* (ECONNREFUSED) says that a datagram has arrived and that its answer has come back, and on the port of a
WireGuard it says that nobody is there. Silence says nothing: a WireGuard that works is silent, too. The kernel limits such
answers to one a second and six at once for each asker (``net.ipv4.icmp_ratelimit``), so more than a few are not worth asking for.
"""

import errno
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from controller.model import Address

CLOSED_PORT = 33434
"""Where traceroute begins: nobody listens there."""

SMALL_BYTES = 100
SMALLEST_BYTES = 576
"""An IPv4 packet that everybody takes. Below 1280 there is no IPv6."""

STEPS = 7
"""Halvings of what lies between: 900 bytes become seven."""

PAUSE_SECONDS = 1.1
"""As long as the kernel at the other end needs until it answers once more."""

HEADERS = {4: 28, 6: 48}
"""IP and UDP."""

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 10, 23, 3  # linux/in.h, linux/in6.h


@dataclass(frozen=True, slots=True)
class Target:
    """A datagram to send: a packet of ``size`` bytes that may not be fragmented on its way, marked with ``mark`` (0: not)."""

    address: Address
    port: int = CLOSED_PORT
    size: int = 29
    mark: int = 0


def ask(targets: Sequence[Target], seconds: float) -> list[int]:
    """Send each datagram and wait for answers: the errno that came back for each, 0 for silence."""
    answers = [0] * len(targets)
    with ExitStack() as stack:
        poller, waiting = select.poll(), {}
        for position, target in enumerate(targets):
            try:
                sender = stack.enter_context(_socket(target))
                sender.send(bytes(max(target.size - HEADERS[target.address.version], 0)))
            except OSError as error:
                answers[position] = error.errno or errno.EIO
                continue
            waiting[sender.fileno()] = position, sender
            poller.register(sender, select.POLLIN)
        deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left * 1000):
                position, sender = waiting.pop(descriptor)
                poller.unregister(descriptor)
                answers[position] = sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return answers


def largest(addresses: Sequence[Address], mtu: int, seconds: float) -> list[int | None]:
    """The largest packet of at most ``mtu`` bytes that gets to each address and is answered, None where not even a small one is.

    Two askings where all is well; where it is not, the size is found by halving, to a few bytes below. One packet may get lost
    anywhere, and an answer may be one too many for the other end, so what was not answered is asked once more, after a pause.
    """
    sizes = _twice(addresses, SMALL_BYTES, seconds)
    full = _twice(sorted(sizes, key=int), mtu, seconds)
    return [None if one not in sizes else mtu if one in full else _halve(one, mtu, seconds) for one in addresses]


def _twice(addresses: Sequence[Address], size: int, seconds: float) -> set[Address]:
    """Those that answer a packet of ``size`` bytes, or a second one."""
    answering: set[Address] = set()
    for pause in (0.0, PAUSE_SECONDS):
        missing = [address for address in addresses if address not in answering]
        if missing:
            time.sleep(pause)
            answers = ask([Target(address, size=size) for address in missing], seconds)
            answering |= {one for one, answer in zip(missing, answers, strict=True) if answer == errno.ECONNREFUSED}
    return answering


def _halve(address: Address, mtu: int, seconds: float) -> int:
    passes, fails = SMALL_BYTES if mtu <= SMALLEST_BYTES else SMALLEST_BYTES, mtu
    for _ in range(STEPS):
        middle = (passes + fails) // 2
        if ask([Target(address, size=middle)], max(seconds, PAUSE_SECONDS))[0] == errno.ECONNREFUSED:
            passes = middle
            time.sleep(PAUSE_SECONDS)
        else:
            fails = middle
    return passes


def _socket(target: Target) -> socket.socket:
    """Connected, so that what comes back is this datagram's."""
    is_ipv6 = target.address.version == 6
    made = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if target.mark:
            with suppress(PermissionError):  # then it goes the way of all others, which is the same without host encryption
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, target.mark)
        if is_ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        made.setblocking(False)
        made.connect((str(target.address), target.port))
    except OSError:
        made.close()
        raise
    return made
