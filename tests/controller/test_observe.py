"""Objects read field by field: what is bad is a problem, and nothing else suffers."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from controller.model import Cluster, Family, Node, NodeNetwork
from controller.observe import (
    Problem,
    Reader,
    keep_addresses,
    of_family,
    parse_address,
    parse_bool,
    parse_integer,
    parse_interface,
    parse_prefix,
    pick,
    shown,
)
from controller.source import Ref

REF = Ref("Node", "n1")


def test_a_problem_says_where_it_is() -> None:
    assert str(Problem(REF, ("spec", "podCIDRs", 1), "not a range")) == "Node n1: spec.podCIDRs.1: not a range"
    assert (
        str(Problem(Ref("environment variable", "FELIX_IPV6SUPPORT"), (), "bad")) == "environment variable FELIX_IPV6SUPPORT: bad"
    )


def test_what_is_bad_is_a_problem_once_and_then_absent() -> None:
    problems: list[Problem] = []
    reader = Reader(REF, {"spec": [], "status": {"addresses": {}}}, problems, is_configuration=True)

    assert reader.value("spec", "podCIDR") is None
    assert reader.value("spec", "podCIDRs", "deeper") is None
    assert reader.list("status", "addresses") == []
    assert reader.mapping("metadata", "labels") == {}
    assert [str(problem) for problem in problems] == ["Node n1: spec: not a mapping", "Node n1: status.addresses: not a list"]
    assert all(problem.is_configuration for problem in problems)


def test_an_empty_value_is_none() -> None:
    problems: list[Problem] = []
    reader = Reader(REF, {"metadata": {"annotations": {"a": "", "b": "x", "c": "192.0.2.1"}}}, problems)

    assert reader.parse_annotation("a", parse_address) is None
    assert not problems
    assert reader.parse_annotation("b", parse_address) is None
    assert reader.parse_annotation("c", parse_address) == ip_address("192.0.2.1")
    assert [problem.path for problem in problems] == [("metadata", "annotations", "b")]


@pytest.mark.parametrize(
    ("parser", "value"),
    [
        (parse_bool, 1),
        (parse_bool, "on"),
        (parse_integer(1, 9), True),
        (parse_integer(1, 9), "10"),
        (parse_integer(1, 9), "1" * 5000),
        (parse_address, "fe80::1%eth0"),
        (parse_address, 7),
        (parse_interface, "192.0.2.1"),
        (parse_prefix, "192.0.2.1"),
        (parse_prefix, "192.0.2.0/33"),
        (of_family(Family.IPV6, parse_address), "192.0.2.1"),
    ],
)
def test_parsers_refuse_with_one_short_line(parser: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"\Anot an?|neither") as caught:
        parser(value)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


def test_a_long_value_is_cut_where_it_is_shown() -> None:
    assert shown("a" * 100) == "'" + "a" * 56 + "..."


def test_pick_keeps_identity_and_the_fields_asked_for() -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1", "uid": "u"},
        "spec": {"a": 0, "b": 1},
        "status": {},
    }

    assert pick(manifest, ("spec", "a"), ("spec", "c"), ("status", "d")) == {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1"},
        "spec": {"a": 0},
        "status": {},
    }


def test_pick_keeps_what_is_in_the_place_of_a_mapping() -> None:
    assert pick({"kind": "Node", "metadata": "x", "spec": [1]}, ("spec", "a", "b")) == {
        "kind": "Node",
        "metadata": "x",
        "spec": [1],
    }


def in_both(name: str, ipv4: str | None, ipv6: str | None) -> Node:
    networks = (NodeNetwork(address=None if text is None else ip_address(text)) for text in (ipv4, ipv6))
    return Node(name, *networks)


def test_a_node_that_loses_its_address_keeps_it_until_it_goes_itself() -> None:
    def cluster(*nodes: Node) -> Cluster:
        return Cluster(nodes={node.name: node for node in nodes})

    before = cluster(
        in_both("a", "192.0.2.1", "2001:db8::1"), in_both("b", "192.0.2.2", None), in_both("gone", "192.0.2.3", None)
    )
    keyed = replace(in_both("a", None, "2001:db8::9"), ipv4=NodeNetwork(public_key=bytes([1]) * 32))
    after = cluster(keyed, in_both("b", None, None), in_both("new", None, None))

    kept = keep_addresses(after, before).nodes

    assert (kept["a"].ipv4.address, kept["a"].ipv6.address) == (ip_address("192.0.2.1"), ip_address("2001:db8::9"))
    assert kept["a"].ipv4.public_key == bytes([1]) * 32
    assert (kept["b"].ipv4.address, kept["new"].ipv4.address) == (ip_address("192.0.2.2"), None)
    assert kept.keys() == {"a", "b", "new"}


def test_where_nothing_is_kept_nothing_is_copied() -> None:
    cluster = Cluster(nodes={"a": in_both("a", "192.0.2.1", None)})

    assert keep_addresses(cluster, Cluster(nodes={"a": in_both("a", "192.0.2.7", None)})) is cluster
