"""The kernel's side of a state: links, addresses, routes and rules, read and changed through rtnetlink.

The only door to pyroute2. All of it is blocking, and about the network namespace of the process. Interfaces go by name and are
looked up anew each time, since a data plane that restarts may bring a new one. What the kernel refuses comes out as a
:class:`NetlinkRefusal` of one line; removing what is gone already is no refusal.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from controller.model import Address, Family
from controller.state import InterfaceAddress, Link, Route, RouteKind, Rule

# Numbers of linux/if.h, if_link.h, rtnetlink.h, fib_rules.h.
IFF_UP = 1
RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 1, 6, 7, 8, 9
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTPROT_BOOT = 3
FIB_RULE_INVERT, FR_ACT_TO_TBL, NO_SUPPRESSION = 2, 1, 0xFFFFFFFF
RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19
RTNLGRP_LINK, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE = 1, 8, 19
NLM_F_REQUEST, NLM_F_ACK, NLA_F_NESTED = 1, 4, 0x8000
IFLA_AF_SPEC, IFLA_INET_CONF, IPV4_DEVCONF_RP_FILTER = 26, 1, 8
IN6_ADDR_GEN_MODE_NONE = 1
STRICT, LOOSE = 1, 2

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_TYPES = {RouteKind.DEVICE: RTN_UNICAST, RouteKind.THROW: RTN_THROW, RouteKind.BLACKHOLE: RTN_BLACKHOLE}
_DEVICELESS = {
    RTN_THROW: RouteKind.THROW,
    RTN_BLACKHOLE: RouteKind.BLACKHOLE,
    RTN_UNREACHABLE: RouteKind.BLACKHOLE,
    RTN_PROHIBIT: RouteKind.BLACKHOLE,
}
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

    def close(self) -> None:
        if "_netlink" in self.__dict__:
            self._netlink.close()

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

    def addresses(self, index: int, family: Family) -> frozenset[InterfaceAddress]:
        with _refusals("read addresses"):
            found = list(self._netlink.get_addr(index=index, family=_FAMILIES[family]))
        return frozenset(ip_interface(f"{_local(message)}/{message['prefixlen']}") for message in found)

    def routes(self, table: int, family: Family, index: int | None) -> frozenset[Route]:
        """The routes of a table that are ours to keep: those into the link ``index``, and those that need no link."""
        with _refusals(f"read table {table}"):
            # dump_filter=None: pyroute2 then asks the kernel for this table instead of sifting through all of them.
            found = list(self._netlink.route("dump", family=_FAMILIES[family], table=table, dump_filter=None))
        return frozenset(route for message in found for route in _parse_route(message, table, index))

    def rules(self, table: int, family: Family) -> frozenset[Rule]:
        """The rules that point to a table."""
        with _refusals("read rules"):
            found = list(self._netlink.get_rules(family=_FAMILIES[family]))
        return frozenset(_parse_rule(message) for message in found if message.get_attr("FRA_TABLE") == table)

    def underlay(self, address: Address) -> Underlay | None:
        """The link on which ``address`` is, None where it is on none (behind NAT, for one)."""
        family = _FAMILIES[Family(address.version)]
        with _refusals("read addresses"):
            holders = [m["index"] for m in self._netlink.get_addr(family=family) if ip_address(_local(m)) == address]
            if not holders:
                return None
            message = self._netlink.get_links(holders[0])[0]
        specification = message.get_attr("IFLA_AF_SPEC")
        configuration = specification.get_attr("AF_INET") if specification is not None else None
        own = int(configuration.get("rp_filter", 0)) if configuration else 0
        strictness = max(own, _all_links_rp_filter())
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

    def put_route(self, name: str, table: int, route: Route) -> None:
        is_into_link = route.kind is RouteKind.DEVICE
        link = {"oif": self._index(name)} if is_into_link else {}
        # IPv6 routes have no scope.
        scope = RT_SCOPE_LINK if is_into_link and route.prefix.version == 4 else RT_SCOPE_UNIVERSE
        with _refusals(f"put the route {route.kind.value} {route.prefix}"):
            self._netlink.route("replace", **_route(table, route), **link, scope=scope, proto=RTPROT_BOOT)

    def remove_route(self, table: int, route: Route) -> None:
        with _refusals(f"remove the route {route.kind.value} {route.prefix}", tolerated=_GONE):
            self._netlink.route("del", **_route(table, route), scope=RT_SCOPE_NOWHERE)  # which here means: of any scope

    def add_rule(self, table: int, family: Family, rule: Rule) -> None:
        with _refusals(f"add the rule of priority {rule.priority}", tolerated=(errno.EEXIST,)):
            self._netlink.rule("add", **_rule(table, family, rule))

    def remove_rule(self, table: int, family: Family, rule: Rule) -> None:
        with _refusals(f"remove the rule of priority {rule.priority}", tolerated=_GONE):
            self._netlink.rule("del", **_rule(table, family, rule))

    def loosen_reverse_path(self, name: str) -> None:
        """rp_filter=2. Through netlink, as /proc/sys is read-only in a pod, and by hand, as pyroute2 can only read it."""
        configuration = _attribute(IPV4_DEVCONF_RP_FILTER, struct.pack("=I", LOOSE))
        for kind in (IFLA_INET_CONF, socket.AF_INET, IFLA_AF_SPEC):
            configuration = _attribute(kind | NLA_F_NESTED, configuration)
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, self._index(name), 0, 0) + configuration
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            netlink.bind((0, 0))
            netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
            (code,) = struct.unpack_from("=i", netlink.recv(1 << 16), 16)
        if code:
            raise NetlinkRefusal(-code, f"loosen the reverse path filter of {name}")

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
            for kind, message in _messages(datagram):
                is_about_link = kind in (RTM_NEWLINK, RTM_DELLINK)
                is_about_us |= not is_about_link or any(needle in message for needle in needles)


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 16 <= len(datagram):
        length, kind = struct.unpack_from("=IH", datagram, offset)
        yield kind, datagram[offset : offset + length]
        offset += max(length + 3 & ~3, 16)


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


def _parse_route(message: Any, table: int, index: int | None) -> Iterator[Route]:
    if message.get_attr("RTA_TABLE", message["table"]) != table:
        return
    kind = _DEVICELESS.get(message["type"])
    if kind is None and message["type"] == RTN_UNICAST and message.get_attr("RTA_OIF") == index is not None:
        kind = RouteKind.DEVICE
    if kind is not None:
        any_address = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
        prefix = ip_network((message.get_attr("RTA_DST") or any_address, message["dst_len"]))
        yield Route(prefix, kind, message.get_attr("RTA_PRIORITY") or 0)


def _route(table: int, route: Route) -> dict[str, Any]:
    return {
        "family": _FAMILIES[Family(route.prefix.version)],
        "dst": str(route.prefix),
        "table": table,
        "type": _TYPES[route.kind],
        "priority": route.metric,
    }


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


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _all_links_rp_filter() -> int:
    """``net.ipv4.conf.all.rp_filter``: the larger of it and the link's own is in force."""
    try:
        return int(Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text())
    except (OSError, ValueError):
        return 0
