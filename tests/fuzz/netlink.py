"""Targets: netlink, whose messages are packed and read by hand in two places.

The kernel is trusted, so an answer that cannot be read may end what was asked for: the agent's pass with struct.error or
ValueError, which it logs, and the data plane's question with OSError, as a refusal does. What is read is written down again and
read once more.
"""

from __future__ import annotations

import struct
from typing import Any, cast

from controller.rtnetlink import RTM_NEWROUTE, messages, pack, parse_route, put_route
from wgpy.daemon import netlink


def routes(data: bytes) -> None:
    """A datagram of routes, as the agent reads them, and the same bytes as the body of one message."""
    read = list(messages(data))
    assert sum(len(message.body) for message in read) <= len(data)
    for message in read:
        _route(message.body)
    _route(data)
    (message,) = messages(pack(RTM_NEWROUTE, 0, 1, data))
    assert (message.kind, message.sequence, message.body) == (RTM_NEWROUTE, 1, data)


def _route(body: bytes) -> None:
    parse = parse_route.__wrapped__  # without its cache, which would grow
    try:
        found = parse(body)
    except (struct.error, ValueError):
        return
    if found.route is not None:
        again = parse(put_route(found.table, found.route, found.link))
        assert again.route == found.route
        assert again.table == found.table


class _Kernel:
    """A netlink socket whose answer is known beforehand."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def send(self, question: bytes) -> int:
        return len(question)

    def recv(self, size: int) -> bytes:
        return self._answer[:size]


def answers(data: bytes) -> None:
    """What the kernel answers to the data plane's question for a route, and what conntrack's does."""
    for ask in (_ask_for_route, netlink.parse_conntrack, netlink.parse_attributes):
        try:
            ask(data)
        except OSError:
            continue
    written = b"".join(netlink._attribute(kind, payload) for kind, payload in netlink.parse_attributes(data).items())
    assert netlink.parse_attributes(written) == netlink.parse_attributes(data)


def _ask_for_route(answer: bytes) -> netlink.Route:
    return netlink.route_to(cast(Any, _Kernel(answer)), bytes([192, 0, 2, 1]))
