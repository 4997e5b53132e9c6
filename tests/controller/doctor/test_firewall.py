"""A datagram's way through rulesets as ``nft -j`` prints them: what certainly refuses it is found, and nothing else is."""

from typing import Any

import pytest

from controller.doctor import collect
from controller.doctor.facts import Drop, Mark
from controller.doctor.firewall import Datagram, marks, refusals

IN = Datagram("192.0.2.2", "192.0.2.1", 51820, 51820, "eth0", is_inbound=True)
IN6 = Datagram("fd00::2", "fd00::1", 51821, 51821, "eth0", is_inbound=True)
OUT = Datagram("192.0.2.1", "192.0.2.2", 51820, 51820, "eth0", is_inbound=False)


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


DPORT = payload("udp", "dport")
DROP, ACCEPT, REJECT = {"drop": None}, {"accept": None}, {"reject": {"type": "icmpx"}}
PORT = match(DPORT, 51820)


def chain(
    *rules: list[dict[str, Any]], hook: str = "input", policy: str = "accept", family: str = "inet", table: str = "t"
) -> list[Any]:
    base = {"family": family, "table": table, "name": "base", "type": "filter", "hook": hook, "prio": 0, "policy": policy}
    return [{"metainfo": {}}, {"chain": base}, *rules_of("base", *rules, family=family, table=table)]


def rules_of(name: str, *rules: list[dict[str, Any]], family: str = "inet", table: str = "t") -> list[Any]:
    return [
        {"rule": {"family": family, "table": table, "chain": name, "handle": number, "expr": expr}}
        for number, expr in enumerate(rules, start=1)
    ]


def other_set(*elements: Any) -> dict[str, Any]:
    return {"set": {"family": "inet", "table": "t", "name": "ports", "elem": list(elements)}}


@pytest.mark.parametrize(
    "ruleset",
    [
        chain([PORT, DROP]),
        chain([PORT, {"counter": {}}, {"log": {}}, REJECT]),
        chain([{"xt": {"type": "target", "name": "REJECT"}}]),
        chain(policy="drop"),
        chain([match(payload("tcp", "dport"), 22), ACCEPT], policy="drop"),
        chain([match({"ct": {"key": "state"}}, ["established", "related"], "in"), ACCEPT], [DROP]),
        chain([match({"ct": {"key": "state"}}, "new"), DROP]),
        chain([match(DPORT, {"set": [22, {"range": [51000, 52000]}]}), DROP]),
        chain([match(DPORT, 22, "!="), DROP]),
        chain([match(meta("iifname"), {"set": ["lo", "eth*"]}), DROP]),
        chain([match(meta("l4proto"), "udp"), match(payload("th", "dport"), 51820), DROP]),
        chain([match(payload("ip", "saddr"), {"prefix": {"addr": "192.0.2.0", "len": 24}}), DROP]),
        chain([match(payload("ip", "saddr"), {"range": ["192.0.2.1", "192.0.2.9"]}), DROP]),
        [*chain([match(DPORT, "@ports"), DROP]), other_set({"range": [51820, 51830]})],
        [*chain([match(DPORT, "@ports"), DROP]), other_set({"elem": {"val": 51820, "timeout": 9}})],
        chain([{"jump": {"target": "more"}}]) + rules_of("more", [PORT, DROP]),
        chain([{"goto": {"target": "more"}}], [ACCEPT], policy="drop") + rules_of("more", [match(DPORT, 22), ACCEPT]),
        chain([{"vmap": {"key": DPORT, "data": {"set": [[22, ACCEPT], [51820, DROP]]}}}]),
        chain([{"return": None}], [ACCEPT], policy="drop"),
        chain([PORT, DROP], hook="prerouting"),
        chain([PORT, DROP], family="ip"),
    ],
)
def test_what_certainly_refuses_is_found(ruleset: list[Any]) -> None:
    assert [(drop.table, drop.chain, drop.is_inbound) for drop in refusals(ruleset, IN)] == [("t", "base", True)]


@pytest.mark.parametrize(
    "ruleset",
    [
        [],
        chain([PORT, ACCEPT], [DROP], policy="drop"),
        chain([match(DPORT, 22), DROP]),
        chain([match(payload("tcp", "dport"), 51820), DROP]),
        chain([match(payload("tcp", "dport"), 22, "!="), DROP]),
        chain([match(DPORT, "@ports"), DROP]),
        chain([match(DPORT, "@ports"), ACCEPT], [DROP]),
        chain([{"xt": {"type": "match", "name": "multiport"}}, {"drop": None}]),
        chain([{"limit": {"rate": 5}}, ACCEPT], policy="drop"),
        chain([match({"fib": {}}, 1), {"jump": {"target": "more"}}]) + rules_of("more", [DROP]),
        chain([match({"fib": {}}, 1), {"return": None}], policy="drop"),
        chain([{"vmap": {"key": DPORT, "data": "@ports"}}], policy="drop"),
        chain([{"queue": {}}], policy="drop"),
        chain([PORT, {"jump": {"target": "base"}}]),
        chain([DROP], hook="forward"),
        chain([DROP], hook="output"),
        chain([DROP], family="ip6"),
        chain([DROP], table="wgpy-guard"),
        chain([match(meta("iifname"), "eth1"), DROP]),
        chain([match(payload("ip6", "saddr"), "fd00::2"), DROP]),
    ],
)
def test_what_may_let_it_pass_is_not(ruleset: list[Any]) -> None:
    assert list(refusals(ruleset, IN)) == []


def test_the_other_way_and_the_other_family() -> None:
    assert [drop.chain for drop in refusals(chain([match(payload("udp", "sport"), 51820), DROP], hook="output"), OUT)] == ["base"]
    assert list(refusals(chain([match(meta("iifname"), "eth0"), DROP], hook="output"), OUT)) == []
    assert [drop.chain for drop in refusals(chain([DROP], family="ip6"), IN6)] == ["base"]


def test_a_rule_is_named() -> None:
    (drop,) = refusals(chain([ACCEPT], table="a") + chain([match(DPORT, 22), ACCEPT], [PORT, DROP]), IN)
    assert drop == Drop("inet", "t", "base", "rule with handle 2 of chain base", True, 51820)
    (drop,) = refusals(chain(policy="drop"), IN)
    assert drop.rule == "policy drop"


def mangled(value: Any) -> list[dict[str, Any]]:
    return [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}]


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (4660, 0x1234),
        ({"|": [meta("mark"), 4096]}, 0x1000),
        ({"^": [{"&": [meta("mark"), 0xFFFF]}, 0x10]}, 0x10),
        ({"&": [{"ct": {"key": "mark"}}, 65535]}, 0),
    ],
)
def test_marks_of_nft(value: Any, bits: int) -> None:
    assert [mark.bits for mark in marks(chain(mangled(value)))] == [bits]
    assert list(marks(chain(mangled(value), table="wgpy"))) == []


def test_marks_of_iptables() -> None:
    saved = "*mangle\n-A PREROUTING -p udp -j MARK --set-xmark 0x1000/0x1000\n-A INPUT -j ACCEPT\nCOMMIT\n"
    assert list(marks([], saved)) == [Mark("iptables: -A PREROUTING -p udp -j MARK --set-xmark 0x1000/0x1000", 0x1000)]


def test_no_table_of_the_firewall_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables-save -t has the kernel make the table where there was none."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(collect, "_printed", lambda *words: asked.append(words))

    assert collect._saved() == ""
    assert asked == [("iptables-save",), ("ip6tables-save",)]
