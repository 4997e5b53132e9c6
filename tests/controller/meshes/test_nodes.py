"""The fields of every Node, as Kubernetes fills them in and as nobody would."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from controller.meshes.nodes import pod_cidrs, prefixes, status_addresses, typed_addresses
from controller.observe import Problem, Reader
from controller.source import Ref


def reader(manifest: dict[str, Any]) -> tuple[Reader, list[Problem]]:
    problems: list[Problem] = []
    return Reader(Ref("Node", "n1"), manifest, problems), problems


def with_status(*entries: Any) -> dict[str, Any]:
    return {"status": {"addresses": list(entries)}}


def test_internal_addresses_come_before_external_ones_and_names_are_none() -> None:
    found, problems = reader(
        with_status(
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "Hostname", "address": "n1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        )
    )

    assert list(map(str, status_addresses(found))) == ["192.0.2.1", "2001:db8::1", "203.0.113.1"]
    assert problems == []


def test_what_is_no_address_is_a_problem_and_costs_only_itself() -> None:
    found, problems = reader(
        with_status(7, {"type": "InternalIP", "address": "x"}, {"type": "InternalIP", "address": "192.0.2.1"})
    )

    assert status_addresses(found) == [ip_address("192.0.2.1")]
    assert [problem.path for problem in problems] == [("status", "addresses", 0), ("status", "addresses", 1, "address")]


def test_the_field_and_the_types_are_the_callers() -> None:
    found, _ = reader({"spec": {"addresses": [{"type": "A", "ip": "192.0.2.1"}, {"type": "B", "ip": "192.0.2.2"}]}})

    assert typed_addresses(found, ("spec", "addresses"), "ip", ("B", "A")) == [ip_address("192.0.2.2"), ip_address("192.0.2.1")]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}, ["10.244.1.0/24", "fd00:1::/64"]),
        ({"podCIDR": "10.244.1.0/24"}, ["10.244.1.0/24"]),
        ({}, []),
    ],
)
def test_the_ranges_are_those_of_the_list_or_the_single_one(spec: dict[str, Any], expected: list[str]) -> None:
    found, problems = reader({"spec": spec})

    assert pod_cidrs(found) == list(map(ip_network, expected))
    assert problems == []


def test_a_bad_range_is_a_problem_and_does_not_bring_the_single_one_back() -> None:
    found, problems = reader({"spec": {"podCIDRs": ["x"], "podCIDR": "10.244.1.0/24"}})

    assert pod_cidrs(found) == []
    assert [str(problem) for problem in problems] == ["Node n1: spec.podCIDRs.0: not a range such as 192.0.2.0/26: 'x'"]


def test_ranges_are_read_at_any_path() -> None:
    found, _ = reader({"spec": {"ipam": {"podCIDRs": ["10.1.0.0/24"]}}})

    assert prefixes(found, ("spec", "ipam", "podCIDRs")) == [ip_network("10.1.0.0/24")]
