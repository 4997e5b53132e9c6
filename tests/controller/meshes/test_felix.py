"""FelixConfiguration: every field, in force where it should be."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from controller.meshes.calico import Calico
from controller.meshes.felix import PARAMETERS
from controller.model import FelixConfiguration
from controller.observe import Problem
from tests.controller.cluster import Manifest, felix, node, objects


def configuration_of(*manifests: Manifest, own: str = "n1", environment: Mapping[str, str] | None = None) -> FelixConfiguration:
    observation = Calico(environment=environment or {}).observe(objects(*manifests), own)
    assert not observation.problems
    return observation.cluster.felix


def problems_of(*manifests: Manifest, environment: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
    observation = Calico(environment=environment or {}).observe(objects(*manifests), "n1")
    assert observation.problems == observation.configuration_problems
    return observation.problems


def test_felix_is_off_where_nobody_says_otherwise() -> None:
    assert configuration_of() == FelixConfiguration()
    assert not FelixConfiguration().ipv4.enabled


def test_every_field_is_read() -> None:
    found = configuration_of(
        felix(
            wireguardEnabled=True,
            wireguardEnabledV6=True,
            wireguardListeningPort=1000,
            wireguardListeningPortV6=1001,
            wireguardMTU=1400,
            wireguardMTUV6=1380,
            wireguardInterfaceName="wg.cali",
            wireguardInterfaceNameV6="wg6.cali",
            wireguardRoutingRulePriority=42,
            wireguardKeepAlive="1m30s",
            wireguardHostEncryptionEnabled=True,
        )
    )

    assert (found.ipv4.enabled, found.ipv4.port, found.ipv4.mtu, found.ipv4.interface) == (True, 1000, 1400, "wg.cali")
    assert (found.ipv6.enabled, found.ipv6.port, found.ipv6.mtu, found.ipv6.interface) == (True, 1001, 1380, "wg6.cali")
    assert (found.rule_priority, found.keepalive, found.host_encryption) == (42, 90, True)


def test_the_fields_that_bear_on_wireguard_are_read() -> None:
    found = configuration_of(
        felix(
            routeTableRanges=[{"min": 10, "max": 20}, {"min": 5000, "max": 6000}],
            routeSource="WorkloadIPs",
            routeRefreshInterval="1m",
            routeSyncDisabled=True,
            deviceRouteProtocol=80,
            iptablesMarkMask=0xFF0000,
            nftablesMarkMask=0x3000,
            mtuIfacePattern="^bond.*",
            prometheusWireGuardMetricsEnabled=False,
        )
    )

    assert found.table_ranges == ((10, 20), (5000, 6000))
    assert (found.route_source, found.refresh_seconds, found.syncs_routes, found.route_protocol) == (
        "WorkloadIPs",
        60.0,
        False,
        80,
    )
    assert (found.mark_mask, found.mtu_interface_pattern, found.has_metrics) == (0xFF3000, "^bond.*", False)


def test_every_parameter_is_one_of_calicos_documented_fields() -> None:
    """Typed in once more, as Calico documents them."""
    documented = """
        wireguardEnabled wireguardEnabledV6 wireguardListeningPort wireguardListeningPortV6 wireguardRoutingRulePriority
        wireguardInterfaceName wireguardInterfaceNameV6 wireguardMTU wireguardMTUV6 wireguardHostEncryptionEnabled
        wireguardKeepAlive prometheusWireGuardMetricsEnabled routeTableRanges routeTableRange routeSource
        routeRefreshInterval routeSyncDisabled deviceRouteProtocol iptablesMarkMask nftablesMarkMask mtuIfacePattern
        ipv6Support interfacePrefix
    """

    assert [parameter.field for parameter in PARAMETERS] == documented.split()


def test_the_older_table_range_counts_where_the_newer_is_not_set() -> None:
    older = felix(routeTableRange={"min": 7, "max": 9})

    assert configuration_of(older).table_ranges == ((7, 9),)
    assert configuration_of(older, felix("node.n1", routeTableRanges=[{"min": 1, "max": 2}])).table_ranges == ((1, 2),)


def test_without_ipv6_support_wireguard_over_ipv6_stays_off() -> None:
    found = configuration_of(felix(wireguardEnabled=True, wireguardEnabledV6=True, ipv6Support=False))

    assert (found.ipv4.enabled, found.ipv6.enabled, found.lacks_ipv6) == (True, False, True)
    assert not configuration_of(felix(ipv6Support=False)).lacks_ipv6


@pytest.mark.parametrize(("value", "seconds"), [("0s", math.inf), ("10ms", 1.0), ("2m", 120.0), (30, 30.0)])
def test_a_refresh_is_never_too_quick_and_zero_is_never(value: Any, seconds: float) -> None:
    assert configuration_of(felix(routeRefreshInterval=value)).refresh_seconds == seconds


# Which one is in force


def test_the_nodes_own_configuration_wins_field_by_field() -> None:
    manifests = (
        felix(wireguardEnabled=True, wireguardListeningPort=1000),
        felix("node.n1", wireguardListeningPort=2000),
        felix("node.n2", wireguardEnabled=False),
    )

    assert (configuration_of(*manifests).ipv4.enabled, configuration_of(*manifests).ipv4.port) == (True, 2000)
    assert not configuration_of(*manifests, own="n2").ipv4.enabled


def selecting(name: str, selector: str, created: str, **spec: Any) -> Manifest:
    manifest = felix(name, nodeSelector=selector, **spec)
    manifest["metadata"]["creationTimestamp"] = created
    return manifest


def labelled(**labels: str) -> Manifest:
    manifest = node("n1")
    manifest["metadata"]["labels"] = labels
    return manifest


def test_each_source_wins_over_those_below_it() -> None:
    """calico.md 1.2: environment, the node's own, the one that selects it, default, Felix's default."""
    sources = [
        felix(wireguardListeningPort=2),
        selecting("edge", "role == 'edge'", "2026-01-01T00:00:00Z", wireguardListeningPort=3),
        felix("node.n1", wireguardListeningPort=4),
    ]
    nodes = labelled(role="edge")

    assert configuration_of(nodes).ipv4.port == 51820
    for count in (1, 2, 3):
        assert configuration_of(nodes, *sources[:count]).ipv4.port == count + 1
    assert configuration_of(nodes, *sources, environment={"FELIX_WIREGUARDLISTENINGPORT": "5"}).ipv4.port == 5


def test_of_several_that_select_the_node_the_oldest_counts() -> None:
    manifests = [
        labelled(role="edge"),
        selecting("a", "all()", "2026-03-01T00:00:00Z", wireguardMTU=1300, wireguardKeepAlive="9s"),
        selecting("b", "has(role)", "2026-01-01T00:00:00Z", wireguardMTU=1400),
        selecting("c", "role == 'core'", "2025-01-01T00:00:00Z", wireguardMTU=1200),
    ]

    found = configuration_of(*manifests)

    assert (found.ipv4.mtu, found.keepalive, found.selected) == (1400, 0, ("b", "a"))


def test_a_selector_needs_a_name_of_its_own() -> None:
    assert configuration_of(felix("node.n2", nodeSelector="all()", wireguardMTU=1300)).ipv4.mtu == 0
    assert configuration_of(felix("other", wireguardMTU=1300)).ipv4.mtu == 0
    assert not configuration_of(felix(nodeSelector="!all()", wireguardMTU=1300)).selected


def test_a_selector_that_cannot_be_read_is_a_problem_of_the_configuration() -> None:
    (problem,) = problems_of(selecting("a", "role = 'edge'", "2026-01-01T00:00:00Z"))

    assert str(problem).startswith("FelixConfiguration a: spec.nodeSelector: not a selector such as")


def test_variables_are_found_in_any_case_and_empty_ones_are_not_there() -> None:
    environment = {"felix_WireguardEnabled": "TRUE", "FELIX_WIREGUARDMTU": "", "FELIX_WIREGUARDPERSISTENTKEEPALIVE": "25.9"}

    found = configuration_of(felix(wireguardMTU=1400), environment=environment | {"FELIX_LOGSEVERITYSCREEN": "debug"})

    assert (found.ipv4.enabled, found.ipv4.mtu, found.keepalive) == (True, 1400, 25)


def test_a_variable_that_cannot_be_read_is_a_problem_of_the_configuration() -> None:
    (problem,) = problems_of(environment={"FELIX_WIREGUARDMTU": "large"})

    assert str(problem) == "environment variable FELIX_WIREGUARDMTU: not a number from 68 to 65535: 'large'"


@pytest.mark.parametrize(
    ("parameter", "value", "attribute", "expected"),
    [
        ("WireguardHostEncryptionEnabled", "none", "host_encryption", False),
        ("WireguardPersistentKeepAlive", "None", "keepalive", 0),
        ("RouteRefreshInterval", "none", "refresh_seconds", math.inf),
        ("RouteTableRanges", "none", "table_ranges", ((1, 250),)),
        ("RouteTableRanges", "1-50,60-90", "table_ranges", ((1, 50), (60, 90))),
        ("RouteTableRange", "5-6", "table_ranges", ((5, 6),)),
        ("IptablesMarkMask", "0xff000000", "mark_mask", 0xFFFF0000),
        ("RouteSource", "workloadips", "route_source", "WorkloadIPs"),
        ("MTUIfacePattern", "^eth0$", "mtu_interface_pattern", "^eth0$"),
    ],
)
def test_texts_as_environment_and_annotations_have_them(parameter: str, value: str, attribute: str, expected: Any) -> None:
    base = felix(wireguardHostEncryptionEnabled=True, wireguardKeepAlive="9s")
    annotated = felix("node.n1", {f"config.projectcalico.org/{parameter}": value})

    assert getattr(configuration_of(base, environment={f"FELIX_{parameter.upper()}": value}), attribute) == expected
    assert getattr(configuration_of(base, annotated), attribute) == expected


def test_an_annotation_named_after_the_parameter_wins_over_the_field() -> None:
    prefix = "config.projectcalico.org/"
    annotations = {f"{prefix}WireguardEnabled": "yes", f"{prefix}WireguardPersistentKeepAlive": "25"}

    found = configuration_of(felix(annotations=annotations, wireguardEnabled=False))

    assert (found.ipv4.enabled, found.keepalive) == (True, 25)


@pytest.mark.parametrize(
    ("value", "seconds"), [("25s", 25), ("1h", 3600), ("500ms", 0), ("1.5s", 1), ("0s", 0), ("1m0.5s", 60), (30, 30)]
)
def test_a_keepalive_is_a_duration_cut_to_seconds(value: Any, seconds: int) -> None:
    assert configuration_of(felix(wireguardKeepAlive=value)).keepalive == seconds


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wireguardEnabled", "maybe"),
        ("wireguardEnabled", 1),
        ("wireguardListeningPort", 0),
        ("wireguardListeningPort", 65536),
        ("wireguardListeningPort", "abc"),
        ("wireguardListeningPort", True),
        ("wireguardMTU", -1),
        ("wireguardMTU", 20),
        ("wireguardInterfaceName", "a/b"),
        ("wireguardInterfaceName", "sixteen-letters-"),
        ("wireguardRoutingRulePriority", 32766),
        ("wireguardKeepAlive", "2x"),
        ("wireguardKeepAlive", "30h"),
        ("wireguardInterfaceName", "none"),
        ("wireguardListeningPort", "none"),
        ("routeTableRanges", [{"min": 9, "max": 1}]),
        ("routeTableRanges", [{"min": 1}]),
        ("routeTableRanges", {"min": 1, "max": 2}),
        ("routeTableRange", "1"),
        ("routeSource", "BGP"),
        ("routeRefreshInterval", "-1s"),
        ("deviceRouteProtocol", 256),
        ("iptablesMarkMask", 0x10000),
        ("nftablesMarkMask", "0x1ffffffff"),
        ("mtuIfacePattern", "["),
        ("ipv6Support", "perhaps"),
    ],
)
def test_a_field_that_cannot_be_meant_is_a_problem_of_the_configuration(field: str, value: Any) -> None:
    problems = problems_of(felix(**{field: value}))

    assert len(problems) == 1
    assert problems[0].path == ("spec", field)


def test_the_configuration_of_other_nodes_is_no_concern_of_ours() -> None:
    assert not problems_of(felix("node.n2", wireguardMTU="x"))
    assert not problems_of(selecting("a", "has(gpu)", "2026-01-01T00:00:00Z", wireguardMTU="x"))
