"""Strict mode's part of the firewall: plaintext with a protected address at the other end neither comes in nor goes out.

Routes alone cannot promise that. They are gone until the agent has come up, and they say nothing about what comes in. So there
is a table of our own for each family, ``wgpy-guard``, that knows the protected ranges and the names of the interfaces by which
their packets may pass: the loopback, our own, and those of local pods. It needs neither of them to exist, and can be
loaded from a file at boot (deploy/systemd).

* *Inbound* is judged before anything else sees the packet (prerouting, ``raw``), by its source. What comes out of a node's
  IP-in-IP or VXLAN device has crossed the wire in clear, so these are not among the interfaces that may.
* *Outbound* is judged last (postrouting), by its destination: a service's address has become a pod's by then.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from controller.model import Family
from controller.nftables import FAMILIES, load, read_table, remove_table
from controller.state import Guard, sorted_prefixes
from wgpy.config import Prefix

TABLE = "wgpy-guard"

_LOOPBACK = "lo"
_RULESET = """\
table {family} {table}
delete table {family} {table}
table {family} {table} {{
    counter inbound {{ }}
    counter outbound {{ }}
    set protected {{
        type {type}; flags interval
{protected}    }}
    set exempt {{
        type {type}; flags interval
{exempt}    }}
    chain inbound {{
        type filter hook prerouting priority raw; policy accept;
{arriving}        {family} saddr @exempt accept
        {family} saddr @protected counter name inbound drop
    }}
    chain outbound {{
        type filter hook postrouting priority mangle; policy accept;
{leaving}        {family} daddr @exempt accept
        {family} daddr @protected counter name outbound drop
    }}
}}
"""


def ruleset(family: Family, interface: str, guard: Guard) -> str:
    """What ``nft -f`` is to read. It takes the place of what was there before; its counters start from zero then."""
    names = [_LOOPBACK, interface, *sorted(guard.workloads)]
    return _RULESET.format(
        family=FAMILIES[family],
        table=TABLE,
        type="ipv4_addr" if family is Family.IPV4 else "ipv6_addr",
        protected=_elements(guard.protected),
        exempt=_elements(guard.exempt),
        arriving="".join(f'        iifname "{name}" accept\n' for name in names),
        leaving="".join(f'        oifname "{name}" accept\n' for name in names),
    )


def put(family: Family, interface: str, guard: Guard) -> None:
    """Have this guard, from one moment to the next. Raises NftablesRefusal."""
    load(ruleset(family, interface, guard))


def remove(family: Family) -> None:
    """Have no guard. Raises NftablesRefusal."""
    remove_table(family, TABLE)


def found(family: Family, interface: str) -> Guard | None:
    """The guard there is, None if there is none. One that is not as :func:`put` makes it for this interface guards nothing."""
    items = read_table(family, TABLE)
    if not items:
        return None
    rules = [item["rule"] for item in items if "rule" in item]
    arriving, leaving = (_passing([rule for rule in rules if rule["chain"] == chain]) for chain in ("inbound", "outbound"))
    if arriving is None or arriving != leaving or not {_LOOPBACK, interface} <= arriving:
        return Guard()
    sets = {item["set"]["name"]: frozenset(_prefixes(item["set"].get("elem", ()))) for item in items if "set" in item}
    return Guard(sets.get("protected", frozenset()), sets.get("exempt", frozenset()), arriving - {_LOOPBACK, interface})


def refused(family: Family) -> tuple[int, int] | None:
    """The packets refused so far, inbound and outbound, since the guard was last put; None without a guard."""
    counters = {item["counter"]["name"]: item["counter"]["packets"] for item in read_table(family, TABLE) if "counter" in item}
    return (counters.get("inbound", 0), counters.get("outbound", 0)) if counters else None


def _elements(prefixes: Iterable[Prefix]) -> str:
    texts = [str(prefix) for prefix in sorted_prefixes(set(prefixes))]
    return f"        elements = {{ {', '.join(texts)} }}\n" if texts else ""


def _passing(rules: list[dict[str, Any]]) -> frozenset[str] | None:
    """The interfaces that one chain lets pass, None if it does not end in its two rules about addresses."""
    names = []
    while rules and (name := _interface(rules[0])) is not None:
        names.append(name)
        rules = rules[1:]
    verdicts = [next(iter(rule["expr"][-1]), None) for rule in rules]
    return frozenset(names) if verdicts == ["accept", "drop"] else None


def _interface(rule: dict[str, Any]) -> str | None:
    match = rule["expr"][0].get("match", {})
    is_name = match.get("left", {}).get("meta", {}).get("key") in ("iifname", "oifname")
    return str(match["right"]) if is_name and rule["expr"][1:] == [{"accept": None}] else None


def _prefixes(elements: Iterable[Any]) -> Iterator[Prefix]:
    """From ``"10.0.0.1"``, ``{"prefix": {"addr": "10.0.0.0", "len": 8}}`` and ``{"range": [FIRST, LAST]}``."""
    for element in elements:
        if isinstance(element, str):
            yield ip_network(element)
        elif "prefix" in element:
            yield ip_network((element["prefix"]["addr"], element["prefix"]["len"]))
        elif "range" in element:
            first, last = map(ip_address, element["range"])
            yield from summarize_address_range(first, last)
