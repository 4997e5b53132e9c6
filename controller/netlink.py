"""The kernel's side of a state: links, addresses, routes and rules, read and changed through rtnetlink.

The only door to pyroute2; routes, of which there are many, go past it (:mod:`controller.rtnetlink`). All of it is blocking,
and about the network namespace of the process. Interfaces go by name and are looked up anew each time, since a data plane
that restarts may bring a new one. What the kernel refuses comes out as a :class:`NetlinkRefusal` of one line; removing what
is gone already is no refusal.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from controller.model import Address, Family
from controller.rtnetlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REPLACE,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    attribute,
    dump_routes,
    messages,
    pack,
    parse_route,
    put_route,
    remove_route,
)
from controller.state import InterfaceAddress, Link, Route, RouteKind, Rule

# Numbers of linux/if.h, if_link.h, rtnetlink.h, fib_rules.h, netlink.h.
IFF_UP = 1
FIB_RULE_INVERT, FR_ACT_TO_TBL, NO_SUPPRESSION = 2, 1, 0xFFFFFFFF
RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19
RTNLGRP_LINK, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE = 1, 8, 19
NLA_F_NESTED = 0x8000
IFLA_AF_SPEC, IFLA_INET_CONF, IPV4_DEVCONF_RP_FILTER = 26, 1, 8
IN6_ADDR_GEN_MODE_NONE = 1
STRICT, LOOSE = 1, 2
PROBE, IMPOSSIBLE_MTU = "wgpy-probe", 0xFFFFFFFF
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
SOL_NETLINK, NETLINK_GET_STRICT_CHK, NETLINK_CAP_ACK = 270, 12, 10
SO_RCVBUFFORCE = 33  # of asm-generic/socket.h; the socket module has no name for it

BATCH = 512
"""Messages in one send. Each may be answered by an error, and all answers must fit into the receive buffer."""

_DATAGRAM_SIZE = 1 << 17
_RECEIVE_BUFFER = 4 << 20
_DUMP_ATTEMPTS = 5
_REPLY_SECONDS = 10.0

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV)


class NetlinkRefusal(Exception):
    """The kernel would not. ``errno`` is its reason."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.errno = code
        self.what = what

    def __str__(self) -> str:
        return f"cannot {self.what}: {os.strerror(self.errno)}"


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link, and its ``kind`` (``tun``, ``wireguard``, ... or empty)."""

    index: int
    kind: str
    link: Link


@dataclass(frozen=True, slots=True)
class Underlay:
    """The link that holds the node's own address. ``is_strict``: its reverse path filter is."""

    name: str
    mtu: int
    is_strict: bool


class Kernel:
    """An rtnetlink socket, opened when it is first used. For one thread, in which no event loop runs: pyroute2 brings its own."""

    @cached_property
    def _netlink(self) -> Any:
        try:
            return IPRoute(strict_check=True)  # the kernel then dumps one table, not all
        except OSError:
            return IPRoute()  # before Linux 4.20 it cannot

    @cached_property
    def _socket(self) -> socket.socket:
        """For messages of our own making."""
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        for level, option, value in (
            (SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1),  # the kernel then dumps one table, not all
            (SOL_NETLINK, NETLINK_CAP_ACK, 1),  # and does not send our messages back to us
            (socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER),
        ):
            with suppress(OSError):  # an older kernel, or fewer rights: it costs speed
                netlink.setsockopt(level, option, value)
        netlink.settimeout(_REPLY_SECONDS)
        netlink.bind((0, 0))
        return netlink

    def close(self) -> None:
        for opened in {"_netlink", "_socket"} & self.__dict__.keys():
            getattr(self, opened).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Reading

    def find_link(self, name: str) -> FoundLink | None:
        with _refusals(f"look up interface {name}"):
            try:
                found = list(self._netlink.link("get", ifname=name))
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise
        message = found[0]
        info = message.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
        link = Link(is_up=bool(message["flags"] & IFF_UP), mtu=message.get_attr("IFLA_MTU"))
        return FoundLink(message["index"], kind or "", link)

    def can_make(self, kind: str) -> bool:
        """Whether this kernel has links of a kind, if need be by loading a module. Raises NetlinkRefusal where it does not say.

        It is asked for one that cannot be, for its MTU: it says EOPNOTSUPP where it knows no such kind, and EINVAL where it does.
        """
        try:
            with _refusals(f"look whether the kernel has {kind}"):
                self._netlink.link("add", ifname=PROBE, kind=kind, mtu=IMPOSSIBLE_MTU)
        except NetlinkRefusal as refusal:
            if refusal.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return refusal.errno == errno.EINVAL
        self.delete_link(PROBE)  # kernels before 5.0 do not look at the MTU
        return True

    def addresses(self, index: int, family: Family) -> frozenset[InterfaceAddress]:
        with _refusals("read addresses"):
            found = list(self._netlink.get_addr(index=index, family=_FAMILIES[family]))
        return frozenset(ip_interface(f"{_local(message)}/{message['prefixlen']}") for message in found)

    def routes(self, table: int, family: Family, index: int | None) -> frozenset[Route]:
        """The routes of a table that are ours to keep: those into the link ``index``, and those that need no link."""
        with _refusals(f"read table {table}"):
            found = self._dump(RTM_GETROUTE, dump_routes(table, family))
        return frozenset(
            entry.route
            for entry in map(parse_route, found)
            if entry.table == table
            and entry.route is not None
            and (entry.route.kind is not RouteKind.DEVICE or entry.link == index)
        )

    def rules(self, table: int, family: Family) -> frozenset[Rule]:
        """The rules that point to a table."""
        with _refusals("read rules"):
            found = list(self._netlink.get_rules(family=_FAMILIES[family]))
        return frozenset(_parse_rule(message) for message in found if message.get_attr("FRA_TABLE") == table)

    def underlay(self, address: Address, interface: str | None = None) -> Underlay | None:
        """The link on which ``address`` is, None where it is on none (behind NAT, for one). Our own ``interface`` does not count:
        with host encryption it may have the node's address, too."""
        own = self.find_link(interface) if interface is not None else None
        family = _FAMILIES[Family(address.version)]
        with _refusals("read addresses"):
            holders = [m["index"] for m in self._netlink.get_addr(family=family) if ip_address(_local(m)) == address]
            holders = [index for index in holders if own is None or index != own.index]
            if not holders:
                return None
            message = self._netlink.get_links(holders[0])[0]
        specification = message.get_attr("IFLA_AF_SPEC")
        configuration = specification.get_attr("AF_INET") if specification is not None else None
        strictness = max(int(configuration.get("rp_filter", 0)) if configuration else 0, _all_links_rp_filter())
        return Underlay(message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU"), strictness == STRICT)

    # Changing

    def set_link(self, name: str, is_up: bool | None, mtu: int | None) -> None:
        index = self._index(name)
        if is_up:
            self._leave_addresses_alone(index)
        arguments = {"mtu": mtu} if mtu is not None else {}
        state = {"state": "up" if is_up else "down"} if is_up is not None else {}
        with _refusals(f"configure interface {name}"):
            self._netlink.link("set", index=index, **arguments, **state)

    def delete_link(self, name: str) -> None:
        with _refusals(f"delete interface {name}", tolerated=_GONE):
            found = self.find_link(name)
            if found is not None:
                self._netlink.link("del", index=found.index)

    def add_address(self, name: str, address: InterfaceAddress) -> None:
        with _refusals(f"give {name} the address {address}", tolerated=(errno.EEXIST,)):
            self._netlink.addr("add", index=self._index(name), address=str(address.ip), prefixlen=address.network.prefixlen)

    def remove_address(self, name: str, address: InterfaceAddress) -> None:
        with _refusals(f"take the address {address} from {name}", tolerated=_GONE):
            self._netlink.addr("del", index=self._index(name), address=str(address.ip), prefixlen=address.network.prefixlen)

    def put_routes(self, name: str, table: int, routes: Sequence[Route]) -> None:
        """Add the routes in this order, each in the place of the one with its prefix and metric if there is one.

        They are tried to the last one. Raises NetlinkRefusal for the first that was refused.
        """
        index = self._index(name) if any(route.kind is RouteKind.DEVICE for route in routes) else 0
        bodies = [put_route(table, route, index) for route in routes]
        self._change_routes(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, "put", routes, bodies)

    def remove_routes(self, table: int, routes: Sequence[Route]) -> None:
        """Remove the routes in this order; like :meth:`put_routes`."""
        bodies = [remove_route(table, route) for route in routes]
        self._change_routes(RTM_DELROUTE, 0, "remove", routes, bodies, tolerated=_GONE)

    def _change_routes(
        self, kind: int, flags: int, verb: str, routes: Sequence[Route], bodies: Sequence[bytes], tolerated: Iterable[int] = ()
    ) -> None:
        failed = next(((i, code) for i, code in self._send(kind, flags, bodies) if code not in tolerated), None)
        if failed is not None:
            position, code = failed
            raise NetlinkRefusal(code, f"{verb} the route {routes[position].kind.value} {routes[position].prefix}")

    def add_rule(self, table: int, family: Family, rule: Rule) -> None:
        with _refusals(f"add the rule of priority {rule.priority}", tolerated=(errno.EEXIST,)):
            self._netlink.rule("add", **_rule(table, family, rule))

    def remove_rule(self, table: int, family: Family, rule: Rule) -> None:
        with _refusals(f"remove the rule of priority {rule.priority}", tolerated=_GONE):
            self._netlink.rule("del", **_rule(table, family, rule))

    def loosen_reverse_path(self, name: str) -> None:
        """rp_filter=2. Through netlink, as /proc/sys is read-only in a pod, and by hand, as pyroute2 can only read it."""
        configuration = attribute(IPV4_DEVCONF_RP_FILTER, struct.pack("=I", LOOSE))
        for kind in (IFLA_INET_CONF, socket.AF_INET, IFLA_AF_SPEC):
            configuration = attribute(kind | NLA_F_NESTED, configuration)
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, self._index(name), 0, 0) + configuration
        for _, code in self._send(RTM_SETLINK, 0, [body]):
            raise NetlinkRefusal(code, f"loosen the reverse path filter of {name}")

    # Messages of our own making

    def _send(self, kind: int, flags: int, bodies: Sequence[bytes]) -> list[tuple[int, int]]:
        """The positions of the messages that the kernel refused, and why, in order. It handles all of them.

        Errors are answered in any case. A confirmation is asked for with the last message of a batch only, which is handled
        last: when it comes, all else has come.
        """
        refused: list[tuple[int, int]] = []
        with _refusals("talk to the kernel"):
            for first in range(0, len(bodies), BATCH):
                last = min(first + BATCH, len(bodies)) - 1
                packed = (
                    pack(kind, flags | (NLM_F_ACK if position == last else 0), position + 1, bodies[position])
                    for position in range(first, last + 1)
                )
                self._socket.send(b"".join(packed))
                refused += self._replies(last)
        return refused

    def _replies(self, last: int) -> Iterator[tuple[int, int]]:
        while True:
            for message in messages(self._socket.recv(_DATAGRAM_SIZE)):
                if message.kind != NLMSG_ERROR:
                    continue
                (code,) = struct.unpack_from("=i", message.body)
                if code:
                    yield message.sequence - 1, -code
                if message.sequence - 1 == last:
                    return

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all answers, read again if what was read had changed meanwhile."""
        found: list[bytes] = []
        for _ in range(_DUMP_ATTEMPTS):
            found, is_whole = self._dump_once(kind, body)
            if is_whole:
                break
        return found

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._socket.send(pack(kind, NLM_F_DUMP, 0, body))
        found: list[bytes] = []
        is_whole = True
        while True:
            for message in messages(self._socket.recv(_DATAGRAM_SIZE)):
                is_whole &= not message.flags & NLM_F_DUMP_INTR
                if message.kind == NLMSG_DONE:
                    return found, is_whole
                if message.kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message.body)
                    raise OSError(-code, os.strerror(-code))
                found.append(message.body)

    def _index(self, name: str) -> int:
        found = self.find_link(name)
        if found is None:
            raise NetlinkRefusal(errno.ENODEV, f"use interface {name}")
        return found.index

    def _leave_addresses_alone(self, index: int) -> None:
        """Keep the kernel from making a link-local address when the link comes up: it is not ours, and would send multicasts
        into a tunnel that has nobody to take them. Nothing depends on it, so a kernel without IPv6 may refuse."""
        mode = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]})]}
        try:
            self._netlink.link("set", index=index, IFLA_AF_SPEC=mode)
        except NetlinkError:
            pass


class Monitor:
    """Tells that links or rules have changed, so that nobody has to look all the time. It says so too often rather than never."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        groups = sum(1 << (group - 1) for group in (RTNLGRP_LINK, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE))
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self, names: Collection[str]) -> bool:
        """Read what has come. Whether any of it is about a rule, or about one of these links."""
        needles = [name.encode() + b"\0" for name in names]
        is_about_us = False
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except BlockingIOError:
                return is_about_us
            except OSError:  # ENOBUFS: something was lost
                return True
            for message in messages(datagram):
                is_about_link = message.kind in (RTM_NEWLINK, RTM_DELLINK)
                is_about_us |= not is_about_link or any(needle in message.body for needle in needles)


@contextmanager
def _refusals(what: str, tolerated: Iterable[int] = ()) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in tolerated:
            raise NetlinkRefusal(error.code, what) from None
    except NetlinkRefusal as refusal:
        if refusal.errno not in tolerated:
            raise
    except OSError as error:
        raise NetlinkRefusal(error.errno or errno.EIO, what) from None


def _local(message: Any) -> str:
    """An interface's own address; IFA_ADDRESS is the other end's where there are two."""
    return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


_RULE_ATTRIBUTES = {"FRA_TABLE", "FRA_PRIORITY", "FRA_FWMARK", "FRA_FWMASK", "FRA_PROTOCOL"}


def _parse_rule(message: Any) -> Rule:
    others = {name: value for name, value in message["attrs"] if name not in _RULE_ATTRIBUTES}
    if others.get("FRA_SUPPRESS_PREFIXLEN") == NO_SUPPRESSION:
        del others["FRA_SUPPRESS_PREFIXLEN"]
    others |= {name: message[name] for name in ("src_len", "dst_len", "tos") if message[name]}
    if message["action"] != FR_ACT_TO_TBL:
        others["action"] = message["action"]
    return Rule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        fwmark=message.get_attr("FRA_FWMARK") or 0,
        fwmask=message.get_attr("FRA_FWMASK") or 0,
        is_inverted=bool(message["flags"] & FIB_RULE_INVERT),
        extra=" ".join(f"{name}={value}" for name, value in sorted(others.items())),
    )


def _rule(table: int, family: Family, rule: Rule) -> dict[str, Any]:
    arguments = {"family": _FAMILIES[family], "table": table, "priority": rule.priority}
    if rule.is_inverted:
        arguments["flags"] = FIB_RULE_INVERT
    if rule.fwmask:
        arguments |= {"fwmark": rule.fwmark, "fwmask": rule.fwmask}
    return arguments


def _all_links_rp_filter() -> int:
    """``net.ipv4.conf.all.rp_filter``: the larger of it and the link's own is in force."""
    try:
        return int(Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text())
    except (OSError, ValueError):
        return 0
