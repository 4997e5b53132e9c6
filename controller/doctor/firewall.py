"""What an nftables ruleset does with a datagram, and which packet marks it sets. Pure.

The ruleset is that of ``nft -j list ruleset`` (libnftables-json(5)); what iptables has put into nftables is in it. Only what is
*certain* counts: where a rule asks something that is not known here (a set that is filled at run time, an extension of iptables),
it is taken not to refuse, and, if it would accept, to accept. So nothing is found in a firewall that lets the datagram pass, and
something may be missed in one that does not.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Any

from controller.doctor.facts import Drop, Mark

Ruleset = Sequence[Mapping[str, Any]]

_INBOUND = {"prerouting", "input"}
_OUTBOUND = {"output", "postrouting"}
_OWN_TABLES = {"wgpy", "wgpy-guard"}
_DEPTH = 16
_PROGRAMS = {"counter", "log", "mangle", "notrack", "flow", "meter", "set", "map", "quota", "ct count", "secmark", "xt"}
"""Statements after which the rule goes on, or of which nothing is known that matters."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """The first datagram of a new flow. ``interface`` is the one it comes in or goes out by."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    interface: str
    is_inbound: bool

    @property
    def port(self) -> int:
        """This node's."""
        return self.destination_port if self.is_inbound else self.source_port

    def value(self, left: Any) -> Any:
        """What an expression on the left of a match stands for, None if that is not known."""
        if not isinstance(left, Mapping):
            return None
        payload, meta, ct = left.get("payload", {}), left.get("meta", {}), left.get("ct", {})
        is_ipv6 = ":" in self.source
        name = "iifname" if self.is_inbound else "oifname"
        values: dict[Any, Any] = {
            ("udp", "dport"): self.destination_port,
            ("th", "dport"): self.destination_port,
            ("udp", "sport"): self.source_port,
            ("th", "sport"): self.source_port,
            ("ip6" if is_ipv6 else "ip", "saddr"): self.source,
            ("ip6" if is_ipv6 else "ip", "daddr"): self.destination,
            ("ip", "protocol"): None if is_ipv6 else "udp",
            ("ip6", "nexthdr"): "udp" if is_ipv6 else None,
            "l4proto": "udp",
            "nfproto": "ipv6" if is_ipv6 else "ipv4",
            "protocol": "ip6" if is_ipv6 else "ip",
            name: self.interface,
            name.removesuffix("name"): self.interface,
            "state": "new",
        }
        if payload:
            protocol = payload.get("protocol")
            if protocol in ("tcp", "sctp", "dccp", "icmp", "icmpv6"):
                return _NEVER
            return values.get((protocol, payload.get("field")))
        return values.get(str(meta.get("key"))) if meta else values["state"] if ct.get("key") == "state" else None


class _Verdict(Enum):
    ACCEPT = 0
    REFUSE = 1
    RETURN = 2


_NEVER = object()
"""The value of a field that a datagram does not have: no comparison with it holds."""


def refusals(ruleset: Ruleset, datagram: Datagram) -> Iterator[Drop]:
    """The chains that certainly refuse the datagram."""
    family = "ip6" if ":" in datagram.source else "ip"
    hooks = _INBOUND if datagram.is_inbound else _OUTBOUND
    for base in _parts(ruleset, "chain"):
        if base.get("hook") not in hooks or base.get("type") != "filter" or base["family"] not in (family, "inet"):
            continue
        if base["table"] in _OWN_TABLES:
            continue
        walk = _Walk(ruleset, base["family"], base["table"], datagram)
        verdict = walk.chain(base["name"])
        if verdict is _Verdict.REFUSE:
            yield Drop(base["family"], base["table"], base["name"], walk.rule, datagram.is_inbound, datagram.port)
        elif verdict is _Verdict.RETURN and base.get("policy") == "drop":
            yield Drop(base["family"], base["table"], base["name"], "policy drop", datagram.is_inbound, datagram.port)


@dataclass(slots=True)
class _Walk:
    """A datagram on its way through the chains of one table. ``rule`` says where it was refused."""

    ruleset: Ruleset
    family: str
    table: str
    datagram: Datagram
    rule: str = ""
    chains: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in _parts(self.ruleset, "rule"):
            if (rule["family"], rule["table"]) == (self.family, self.table):
                self.chains.setdefault(rule["chain"], []).append(rule)

    def chain(self, name: str, depth: int = 0) -> _Verdict:
        """Where the datagram gets in a chain: RETURN if it comes out at the end."""
        if depth > _DEPTH:
            return _Verdict.ACCEPT
        for rule in self.chains.get(name, ()):
            verdict = self._rule(rule, depth)
            if verdict is _Verdict.RETURN:
                break
            if verdict is not None:
                return verdict
        return _Verdict.RETURN

    def _rule(self, rule: Mapping[str, Any], depth: int) -> _Verdict | None:
        is_certain = True
        for statement in rule.get("expr", ()):
            name, said = next(iter(statement.items()))
            if name == "match":
                holds = _holds(said, self.datagram, self._set)
                if holds is False:
                    return None
                is_certain &= holds is True
            elif (name == "xt" and said.get("type") == "match") or name in ("limit", "fib", "socket"):
                is_certain = False
            elif name == "vmap":
                verdict = self._mapped(said, depth)
                return verdict if is_certain or verdict is not _Verdict.REFUSE else None
            elif name == "xt" and said.get("name") in ("REJECT", "DROP"):
                return self._refuse(rule, is_certain)
            elif name not in _PROGRAMS:
                return self._end(rule, name, said, depth, is_certain)
        return None

    def _end(self, rule: Mapping[str, Any], name: str, said: Any, depth: int, is_certain: bool) -> _Verdict | None:
        """What the last statement of a rule comes to."""
        if name in ("drop", "reject"):
            return self._refuse(rule, is_certain)
        if name in ("jump", "goto"):
            verdict = self.chain(str(said["target"]), depth + 1)
            if verdict is _Verdict.REFUSE and not is_certain:
                return None
            return _Verdict.RETURN if verdict is _Verdict.RETURN and name == "goto" else _passed(verdict)
        if name == "return":
            return _Verdict.RETURN if is_certain else _Verdict.ACCEPT
        return _Verdict.ACCEPT  # accept, or something that is not known here

    def _refuse(self, rule: Mapping[str, Any], is_certain: bool) -> _Verdict | None:
        if not is_certain:
            return None
        self.rule = f"rule with handle {rule.get('handle')} of chain {rule['chain']}"
        return _Verdict.REFUSE

    def _mapped(self, said: Mapping[str, Any], depth: int) -> _Verdict | None:
        """A map of verdicts. One that cannot be looked into lets everything pass."""
        value, entries = self.datagram.value(said.get("key")), said.get("data")
        if value is None or not isinstance(entries, Mapping):
            return _Verdict.ACCEPT
        for key, verdict in entries.get("set", ()):
            if _is_among(value, [key]):
                name, target = next(iter(verdict.items()))
                return self._end({"chain": "a map"}, name, target, depth, is_certain=True)
        return None

    def _set(self, name: str) -> list[Any] | None:
        """The elements of a set that has a name, None if there are none to see: they may come and go."""
        for found in _parts(self.ruleset, "set"):
            if (found["family"], found["table"], found["name"]) == (self.family, self.table, name):
                return found.get("elem")
        return None


def _passed(verdict: _Verdict) -> _Verdict | None:
    return None if verdict is _Verdict.RETURN else verdict


def _holds(match: Mapping[str, Any], datagram: Datagram, find_set: Any) -> bool | None:
    """Whether a match is true of the datagram, None if that is not known."""
    value, right, operator = datagram.value(match.get("left")), match.get("right"), match.get("op")
    if value is _NEVER:
        return False
    if value is None:
        return None
    if isinstance(right, str) and right.startswith("@"):
        right = find_set(right[1:])
        if right is None:
            return None
    elif isinstance(right, Mapping) and "set" in right:
        right = right["set"]
    elements = right if isinstance(right, list) else [right]
    if operator not in ("==", "!=", "in"):
        return None
    found = _is_among(value, elements)
    return None if found is None else found is (operator != "!=")


def _is_among(value: Any, elements: Iterable[Any]) -> bool | None:
    is_unknown = False
    for element in elements:
        if isinstance(element, Mapping) and "elem" in element:
            element = element["elem"].get("val")
        is_in = _is_in(value, element)
        if is_in:
            return True
        is_unknown |= is_in is None
    return None if is_unknown else False


def _is_in(value: Any, element: Any) -> bool | None:
    try:
        if isinstance(element, Mapping) and "range" in element:
            low, high = element["range"]
            if isinstance(value, int):
                return int(low) <= value <= int(high)
            one, first, last = ip_address(value), ip_address(low), ip_address(high)
            return first.version == one.version and int(first) <= int(one) <= int(last)
        if isinstance(element, Mapping) and "prefix" in element:
            prefix = element["prefix"]
            return ip_address(value) in ip_network((prefix["addr"], prefix["len"]))
        if isinstance(element, str | int) and not isinstance(element, bool):
            return fnmatchcase(str(value), str(element)) if "*" in str(element) else str(value) == str(element)
    except (ValueError, TypeError, KeyError):
        pass
    return None


# Marks --------------------------------------------------------------------------------------------------------------


def marks(ruleset: Ruleset, saved: str = "") -> Iterator[Mark]:
    """Rules that set packet marks, and the bits they may set. ``saved`` is what ``iptables-save`` prints: of rules that iptables
    has made, nftables' own listing does not say the mark."""
    for rule in _parts(ruleset, "rule"):
        for statement in rule.get("expr", ()):
            mangle = statement.get("mangle")
            if (
                isinstance(mangle, Mapping)
                and mangle.get("key") == {"meta": {"key": "mark"}}
                and rule["table"] not in _OWN_TABLES
            ):
                where = f"nft: table {rule['family']} {rule['table']}, chain {rule['chain']}, handle {rule.get('handle')}"
                yield Mark(where, _bits(mangle.get("value")))
    for line in saved.splitlines():
        if found := re.search(r"-j MARK --(?:set-xmark|set-mark|or-mark) (0x[0-9a-fA-F]+|\d+)", line):
            yield Mark(f"iptables: {line.strip()}", int(found[1], 0))


def _bits(value: Any) -> int:
    """The bits that an expression may set, as far as they stand in it."""
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        for operator in ("|", "^"):
            if operator in value:
                bits = 0
                for part in value[operator]:
                    bits |= _bits(part)
                return bits
    return 0


def _parts(ruleset: Ruleset, kind: str) -> Iterator[Mapping[str, Any]]:
    return (part[kind] for part in ruleset if kind in part)
