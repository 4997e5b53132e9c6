"""Objects of the cluster as people and programs write them, good and bad."""

from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.model import Block, Cluster, Family, FelixConfiguration, NodeNetwork, Pool
from controller.observe import keep_addresses, observe
from tests.controller.cluster import KEYS, Manifest, block, felix, keyed, node, objects, pool
from wgpy.wgconf import format_key


def cluster_of(*manifests: Manifest, own: str = "n1") -> Cluster:
    observation = observe(objects(*manifests), own)
    assert not observation.problems
    return observation.cluster


def problems_of(*manifests: Manifest) -> list[str]:
    return [str(problem) for problem in observe(objects(*manifests), "n1").problems]


def network_of(manifest: Manifest, family: Family = Family.IPV4) -> NodeNetwork:
    return observe(objects(manifest, block("10.9.0.0/26", None)), "n1").cluster.nodes[manifest["metadata"]["name"]].of(family)


def with_addresses(*addresses: tuple[str, str], calico: str | None = None) -> Manifest:
    manifest = node("n1", calico)
    manifest["status"] = {"addresses": [{"type": kind, "address": address} for kind, address in addresses]}
    return manifest


# Nodes


def test_a_node_without_calicos_annotation_is_reached_at_its_first_internal_ip() -> None:
    manifest = with_addresses(
        ("Hostname", "n1"), ("ExternalIP", "203.0.113.1"), ("InternalIP", "192.0.2.1"), ("InternalIP", "192.0.2.2")
    )

    network = network_of(manifest)

    assert network.address == ip_address("192.0.2.1")
    assert set(network.host_addresses) == set(map(ip_address, ("192.0.2.1", "192.0.2.2", "203.0.113.1")))


def test_an_external_ip_serves_where_there_is_no_internal_one_of_the_family() -> None:
    manifest = with_addresses(("InternalIP", "2001:db8::1"), ("ExternalIP", "203.0.113.1"))

    assert network_of(manifest).address == ip_address("203.0.113.1")
    assert network_of(manifest, Family.IPV6).address == ip_address("2001:db8::1")


def test_calicos_annotation_wins_over_the_nodes_status() -> None:
    manifest = with_addresses(("InternalIP", "192.0.2.1"), calico="198.51.100.7/24")

    assert network_of(manifest).address == ip_address("198.51.100.7")


def test_an_annotated_address_without_prefix_length_does_not_count() -> None:
    manifest = with_addresses(("InternalIP", "192.0.2.1"), calico="198.51.100.7")

    assert network_of(manifest).address == ip_address("192.0.2.1")
    assert problems_of(manifest) == [
        "Node n1: metadata.annotations.projectcalico.org/IPv4Address: "
        "not an address with its prefix length, such as 192.0.2.1/24: '198.51.100.7'"
    ]


def test_every_kind_of_tunnel_address_belongs_to_the_node() -> None:
    prefix = "projectcalico.org/IPv4"
    addresses = {
        f"{prefix}IPIPTunnelAddr": "10.9.0.1",
        f"{prefix}VXLANTunnelAddr": "10.9.0.2",
        f"{prefix}WireguardInterfaceAddr": "10.9.0.3",
    }

    network = network_of(node("n1", "192.0.2.1/24", addresses))

    assert network.tunnel_addresses == tuple(map(ip_address, ("10.9.0.1", "10.9.0.2", "10.9.0.3")))
    assert network.interface_address == ip_address("10.9.0.3")


@pytest.mark.parametrize("value", ["", "AAAA", "not base64 at all", "A" * 44, "A" * 43 + "=="])
def test_what_is_no_key_is_no_key(value: str) -> None:
    manifest = node("n1", "192.0.2.1/24", {"projectcalico.org/WireguardPublicKey": value})

    assert network_of(manifest).public_key is None


def test_the_zero_key_is_no_key_and_no_problem() -> None:
    manifest = node("n1", "192.0.2.1/24", {"projectcalico.org/WireguardPublicKey": format_key(bytes(32))})

    assert cluster_of(manifest).nodes["n1"].ipv4.public_key is None


def test_an_interface_address_of_the_wrong_family_is_dropped() -> None:
    manifest = node("n1", None, {"projectcalico.org/IPv4WireguardInterfaceAddr": "fd00::1"})

    assert network_of(manifest).interface_address is None
    assert "not an IPv4 address: fd00::1" in problems_of(manifest)[0]


def test_a_node_that_loses_its_address_keeps_it_until_it_goes_itself() -> None:
    before = cluster_of(keyed("n1", "192.0.2.1/24"), keyed("n2", "192.0.2.2/24"), keyed("n3", "192.0.2.3/24"))
    after = cluster_of(node("n1", "192.0.2.9/24"), node("n2"), block("10.9.0.0/30", "n2"))

    kept = keep_addresses(after, before)

    assert {name: str(each.ipv4.address) for name, each in kept.nodes.items()} == {"n1": "192.0.2.9", "n2": "192.0.2.2"}
    assert (kept.blocks, kept.nodes["n2"].ipv4.public_key) == (after.blocks, None)


# Blocks


def test_addresses_that_other_nodes_took_are_borrowed() -> None:
    manifest = block("10.9.0.0/29", "n1", {"10.9.0.1": "n1", "10.9.0.2": "n2"})

    assert cluster_of(manifest).blocks == (Block(ip_network("10.9.0.0/29"), "n1", ((ip_address("10.9.0.2"), "n2"),)),)


def test_a_block_without_affinity_is_a_block_of_its_holders() -> None:
    found = cluster_of(block("10.9.0.0/30", None, {"10.9.0.1": "n1"})).blocks

    assert found == (Block(ip_network("10.9.0.0/30"), None, ((ip_address("10.9.0.1"), "n1"),)),)


def test_the_old_name_of_the_affinity_is_understood() -> None:
    assert cluster_of(block("10.9.0.0/30", None, hostAffinity="n2")).blocks[0].node == "n2"


def test_a_block_for_load_balancers_belongs_to_no_node() -> None:
    found = cluster_of(block("10.9.0.0/30", None, {"10.9.0.1": "n1"}, affinity="virtual:load-balancer")).blocks

    assert found == (Block(ip_network("10.9.0.0/30"), None),)


def test_a_block_about_to_be_deleted_is_gone() -> None:
    assert cluster_of(block("10.9.0.0/30", "n1", deleted=True)).blocks == ()


def test_an_allocation_that_points_nowhere_is_a_problem_and_skipped() -> None:
    manifest = block("10.9.0.0/30", "n1")
    manifest["spec"]["allocations"][2] = 7

    assert problems_of(manifest) == ["IPAMBlock 10-9-0-0-30: spec.allocations.2: points to no attribute: 7"]


def test_without_any_block_nodes_have_their_pod_cidrs() -> None:
    manifest = node("n1", "192.0.2.1/24", podCIDRs=["10.244.1.0/24", "fd00:1::/64"])

    assert cluster_of(manifest).blocks == (Block(ip_network("10.244.1.0/24"), "n1"), Block(ip_network("fd00:1::/64"), "n1"))
    assert cluster_of(node("n1", podCIDR="10.244.1.0/24")).blocks == (Block(ip_network("10.244.1.0/24"), "n1"),)
    assert cluster_of(manifest, block("10.9.0.0/30", "n2")).blocks == (Block(ip_network("10.9.0.0/30"), "n2"),)


def test_with_pod_cidrs_the_interface_address_is_the_first_as_long_as_there_is_a_key() -> None:
    keyless, with_key = node("n1", "192.0.2.1/24"), keyed("n1", "192.0.2.1/24")
    keyless["spec"] = with_key["spec"] = {"podCIDR": "10.244.1.0/24"}

    assert cluster_of(keyless).nodes["n1"].ipv4.interface_address is None
    assert cluster_of(with_key).nodes["n1"].ipv4.interface_address == ip_address("10.244.1.1")


# Pools


def test_tunnels_take_addresses_from_pools_that_are_for_them() -> None:
    def allows(**spec: Any) -> bool:
        manifest = pool("10.9.0.0/16", **spec)
        return observe(objects(manifest), "n1").cluster.pools[0].allows_tunnels

    assert cluster_of(pool("10.9.0.0/16")).pools == (Pool(ip_network("10.9.0.0/16"), 26, True),)
    assert allows(allowedUses=["Workload", "Tunnel"], nodeSelector="all()", blockSize=29)
    assert not allows(allowedUses=["Workload"])
    assert not allows(disabled=True)
    assert not allows(nodeSelector="rack == '1'")


# FelixConfiguration


def test_felix_is_off_where_nobody_says_otherwise() -> None:
    assert cluster_of().felix == FelixConfiguration()
    assert not FelixConfiguration().ipv4.enabled


def test_every_field_is_read() -> None:
    found = cluster_of(
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
    ).felix

    assert (found.ipv4.enabled, found.ipv4.port, found.ipv4.mtu, found.ipv4.interface) == (True, 1000, 1400, "wg.cali")
    assert (found.ipv6.enabled, found.ipv6.port, found.ipv6.mtu, found.ipv6.interface) == (True, 1001, 1380, "wg6.cali")
    assert (found.rule_priority, found.keepalive, found.host_encryption) == (42, 90, True)


def test_the_nodes_own_configuration_wins_field_by_field() -> None:
    manifests = (
        felix(wireguardEnabled=True, wireguardListeningPort=1000),
        felix("node.n1", wireguardListeningPort=2000),
        felix("node.n2", wireguardEnabled=False),
    )

    assert (cluster_of(*manifests).felix.ipv4.enabled, cluster_of(*manifests).felix.ipv4.port) == (True, 2000)
    assert not cluster_of(*manifests, own="n2").felix.ipv4.enabled


def test_an_annotation_named_after_the_parameter_wins_over_the_field() -> None:
    prefix = "config.projectcalico.org/"
    annotations = {f"{prefix}WireguardEnabled": "yes", f"{prefix}WireguardPersistentKeepAlive": "25"}

    found = cluster_of(felix(annotations=annotations, wireguardEnabled=False)).felix

    assert (found.ipv4.enabled, found.keepalive) == (True, 25)


@pytest.mark.parametrize(
    ("value", "seconds"), [("25s", 25), ("1h", 3600), ("500ms", 0), ("1.5s", 1), ("0s", 0), ("1m0.5s", 60), (30, 30)]
)
def test_a_keepalive_is_a_duration_cut_to_seconds(value: Any, seconds: int) -> None:
    assert cluster_of(felix(wireguardKeepAlive=value)).felix.keepalive == seconds


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
    ],
)
def test_a_field_that_cannot_be_meant_is_a_problem_of_the_configuration(field: str, value: Any) -> None:
    problems = observe(objects(felix(**{field: value})), "n1").configuration_problems

    assert len(problems) == 1
    assert problems[0].path == ("spec", field)


def test_the_configuration_of_another_node_is_no_concern_of_ours() -> None:
    assert not observe(objects(felix("node.n2", wireguardMTU="x")), "n1").problems


# Whatever may come

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70000)
    | st.text(max_size=8)
    | st.sampled_from(["10.9.0.1/24", "host:n1", "fd00::1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inner for found in paths_in(child, (*path, key)))]


WHOLE = (
    with_addresses(("InternalIP", "192.0.2.1"), ("ExternalIP", "203.0.113.1"), calico="192.0.2.1/24"),
    keyed("n2", "192.0.2.2/24", "10.9.0.7", KEYS["n2"]),
    block("10.9.0.0/29", "n1", {"10.9.0.2": "n2"}),
    pool("10.9.0.0/16", allowedUses=["Tunnel"]),
    felix(wireguardEnabled=True, wireguardKeepAlive="25s"),
    node("n3", podCIDRs=["10.244.0.0/24"]),
)


@settings(deadline=None)
@given(st.data())
def test_no_object_can_make_it_raise(data: st.DataObject) -> None:
    manifests = deepcopy(list(WHOLE))
    for manifest in manifests:
        identity = (manifest["kind"], manifest["metadata"]["name"])
        for _ in range(data.draw(st.integers(0, 2))):
            path = data.draw(st.sampled_from([path for path in paths_in(manifest) if path and path[0] != "kind"]))
            target = manifest
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = data.draw(json_values)
        if not isinstance(manifest.get("metadata"), dict):
            manifest["metadata"] = {}
        manifest["kind"], manifest["metadata"]["name"] = identity

    for problem in observe(objects(*manifests), "n1").problems:
        assert "\n" not in str(problem)
