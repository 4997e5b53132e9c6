"""Nodes, blocks and pools as people and programs write them, good and bad; Calico's names, typed in once more: they are a
contract with others."""

from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.meshes.calico import ANNOTATIONS, KINDS, Calico, observe
from controller.model import Block, Cluster, Family, NodeNetwork, Pool
from controller.source import Manifest as AnyManifest
from controller.source import Ref
from tests.controller.cluster import KEYS, Manifest, block, felix, keyed, node, objects, pool
from tests.controller.mangled import json_values, mangled
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
    assert allows(nodeSelector="!has(rack)")
    assert not allows(nodeSelector="rack == '1'")


# Names


def test_the_annotations_are_calicos() -> None:
    ipv4, ipv6 = ANNOTATIONS[Family.IPV4], ANNOTATIONS[Family.IPV6]

    assert (ipv4.public_key, ipv6.public_key) == (
        "projectcalico.org/WireguardPublicKey",
        "projectcalico.org/WireguardPublicKeyV6",
    )
    assert (ipv4.node_address, ipv6.node_address) == ("projectcalico.org/IPv4Address", "projectcalico.org/IPv6Address")
    assert ipv4.interface_address == "projectcalico.org/IPv4WireguardInterfaceAddr"
    assert ipv6.interface_address == "projectcalico.org/IPv6WireguardInterfaceAddr"


def test_the_interface_address_is_one_of_the_tunnel_addresses() -> None:
    for names in ANNOTATIONS.values():
        assert names.interface_address in names.tunnel_addresses


def test_nodes_are_kubernetes_own_and_the_rest_comes_in_two_groups() -> None:
    assert KINDS["Node"].api_versions == ("v1",)
    assert {kind.api_versions for name, kind in KINDS.items() if name != "Node"} == {
        ("crd.projectcalico.org/v1", "projectcalico.org/v3")
    }
    assert {kind.plural for kind in KINDS.values()} == {"nodes", "felixconfigurations", "ipamblocks", "ippools"}


# Whatever may come

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
    manifests = mangled(data, WHOLE)

    for problem in observe(objects(*manifests), "n1").problems:
        assert "\n" not in str(problem)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_trimmed_object_says_the_same(data: st.DataObject) -> None:
    manifests = mangled(data, WHOLE)
    before = deepcopy(manifests)
    mesh = Calico("n1")

    trimmed = {ref: mesh.trim(manifest) for ref, manifest in objects(*manifests).items()}

    assert mesh.observe(trimmed, "n1") == observe(objects(*manifests), "n1")
    assert {ref: mesh.trim(manifest) for ref, manifest in trimmed.items()} == trimmed
    assert manifests == before


affinities = st.none() | st.sampled_from(["host:n1", "host:n2", "host:", "virtual:load-balancer", "", 7])
attributes: st.SearchStrategy[Any] = st.sampled_from(
    [{"secondary": {"node": "n1"}}, {"secondary": {"node": "n2"}}, {"secondary": {}}, {}, None, 5]
)
specs = st.fixed_dictionaries(
    {"cidr": st.sampled_from(["10.9.0.0/30", "10.9.0.0/29"])},
    optional={
        "affinity": affinities,
        "hostAffinity": affinities,
        "deleted": st.sampled_from([True, False, "false", None]),
        "allocations": st.lists(st.none() | st.integers(-1, 4) | st.sampled_from([True, 1.0, "1", []]), max_size=6) | json_values,
        "attributes": st.lists(attributes, max_size=4) | json_values,
    },
)


@settings(deadline=None, max_examples=400)
@given(specs)
def test_a_trimmed_block_says_the_same(spec: dict[str, Any]) -> None:
    whole = {"apiVersion": "projectcalico.org/v3", "kind": "IPAMBlock", "metadata": {"name": "b"}, "spec": spec}
    mesh = Calico("n1")

    assert mesh.observe(objects(dict(mesh.trim(whole))), "n1") == observe(objects(whole), "n1")


@given(json_values)
def test_trimming_never_raises(value: Any) -> None:
    for kind in (*KINDS, value):
        Calico("n1").trim({"kind": kind, "metadata": value, "spec": value, "status": value})


@settings(deadline=None)
@given(st.data())
def test_what_is_known_from_before_changes_nothing(data: st.DataObject) -> None:
    """Any two states one after the other, some objects of which are the very same."""
    mesh = Calico()
    before, after = objects(*mangled(data, WHOLE)), objects(*mangled(data, WHOLE))
    mesh.observe(before, "n1")
    mixed = {ref: (before if data.draw(st.booleans()) else after)[ref] for ref in after if data.draw(st.booleans())}

    assert mesh.observe(mixed, "n1") == observe(mixed, "n1")
    assert mesh.observe(after, "n2") == observe(after, "n2")


# What a source keeps


def test_changes_that_do_not_concern_us_leave_a_trimmed_node_as_it_was() -> None:
    own, other = keyed("n1", "192.0.2.1/24"), keyed("n2", "192.0.2.2/24")
    for manifest in (own, other):
        manifest["metadata"]["resourceVersion"] = "7"
        manifest["status"] = {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}
    mesh = Calico("n1")
    before = [mesh.trim(manifest) for manifest in (own, other)]

    for manifest in (own, other):
        manifest["metadata"] |= {"resourceVersion": "8", "managedFields": [{}]}
        manifest["metadata"]["annotations"]["kubeadm.alpha.kubernetes.io/cri-socket"] = "unix:///run/cri.sock"
        manifest["status"] |= {"conditions": [{"type": "Ready"}], "images": [{}] * 50}
    other["metadata"]["labels"] = {"role": "edge"}

    assert [mesh.trim(manifest) for manifest in (own, other)] == before


def test_labels_are_kept_of_the_own_node_only() -> None:
    own, other = node("n1"), node("n2")
    for manifest in (own, other):
        manifest["metadata"]["labels"] = {"role": "edge"}

    def kept(mesh: Calico) -> list[bool]:
        return ["labels" in mesh.trim(manifest)["metadata"] for manifest in (own, other)]

    assert kept(Calico("n1")) == [True, False]
    assert kept(Calico()) == [True, True]


def test_pods_that_come_and_go_on_a_blocks_own_node_leave_it_as_it_was() -> None:
    def trimmed(own: dict[str, str]) -> AnyManifest:
        return Calico("n1").trim(block("10.9.0.0/26", "n1", {"10.9.0.9": "n2"} | own))

    assert trimmed({"10.9.0.20": "n1"})["spec"]["allocations"] == [None] * 9 + [0]
    assert Calico("n1").trim(block("10.9.0.0/26", "n1", {"10.9.0.1": "n1"}))["spec"].keys() == {"cidr", "affinity"}


def test_load_balancers_addresses_are_not_kept() -> None:
    manifest = block("10.9.0.0/30", None, {"10.9.0.1": "n1"}, affinity="virtual:load-balancer")

    assert Calico("n1").trim(manifest)["spec"] == {"cidr": "10.9.0.0/30", "affinity": "virtual:load-balancer"}


# Publishing


def test_a_key_is_announced_in_its_familys_annotation() -> None:
    mesh = Calico()

    assert mesh.announcement(Family.IPV4, KEYS["n1"], {}, "n1") == {
        "projectcalico.org/WireguardPublicKey": format_key(KEYS["n1"])
    }
    assert mesh.announcement(Family.IPV6, KEYS["n1"], {}, "n1").keys() == {"projectcalico.org/WireguardPublicKeyV6"}


def test_what_is_there_is_taken_back_even_if_it_is_no_key() -> None:
    published = objects(node("n1", None, {"projectcalico.org/WireguardPublicKey": "garbled"}), node("n2"))

    assert Calico().withdrawal(Family.IPV4, published, "n1") == {"projectcalico.org/WireguardPublicKey": None}
    assert Calico().withdrawal(Family.IPV6, published, "n1") == {}
    assert Calico().withdrawal(Family.IPV4, published, "n2") == {}
    assert Calico().withdrawal(Family.IPV4, {Ref("Node", "n1"): {"metadata": None}}, "n1") == {}
