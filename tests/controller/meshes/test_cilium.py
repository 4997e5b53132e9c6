"""CiliumNodes as cilium-agent writes them, and as nobody would; Cilium's names, typed in once more: they are a contract with
others."""

from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desired import DEFAULT_NUMBERS, Identity, desired_state
from controller.meshes.cilium import Cilium
from controller.model import Block, Cluster, Family
from controller.source import Manifest as AnyManifest
from controller.source import Ref
from tests.controller.cluster import KEYS, Manifest, node, objects
from tests.controller.mangled import json_values, mangled
from wgpy.config import Endpoint
from wgpy.wgconf import format_key

KEY = "network.cilium.io/wg-pub-key"
OLD_KEY = "io.cilium.network.wg-pub-key"


def cilium(name: str, key: bytes | None = None, encrypts: int | None = 255, families: tuple[int, ...] = (4, 6)) -> Manifest:
    """A CiliumNode: ``n2`` has 192.0.2.2, pods in 10.0.2.0/24, and speaks to pods from 10.0.2.7."""
    number = name[1:]
    addresses = {
        4: [("InternalIP", f"192.0.2.{number}"), ("CiliumInternalIP", f"10.0.{number}.7")],
        6: [("InternalIP", f"2001:db8::{number}"), ("CiliumInternalIP", f"fd00::{number}:7")],
    }
    ranges = {4: f"10.0.{number}.0/24", 6: f"fd00::{number}:0/112"}
    spec: dict[str, Any] = {
        "addresses": [{"type": kind, "ip": ip} for family in families for kind, ip in addresses[family]],
        "ipam": {"podCIDRs": [ranges[family] for family in families]},
    }
    if encrypts is not None:
        spec["encryption"] = {"key": encrypts}
    annotations = {} if key is None else {KEY: format_key(key)}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    }


def cluster_of(*manifests: Manifest) -> Cluster:
    observation = Cilium().observe(objects(*manifests), "n1")
    assert not observation.problems
    return observation.cluster


OWN, OTHER = cilium("n1", KEYS["n1"]), cilium("n2", KEYS["n2"])


def test_a_node_is_read_as_cilium_agent_has_written_it() -> None:
    found = cluster_of(OWN, OTHER)

    network = found.nodes["n2"].ipv4
    assert (network.address, network.public_key) == (ip_address("192.0.2.2"), KEYS["n2"])
    assert network.tunnel_addresses == (ip_address("10.0.2.7"),)
    assert network.host_addresses == (ip_address("192.0.2.2"),)
    assert Block(ip_network("10.0.2.0/24"), "n2") in found.blocks


def test_the_old_name_of_the_annotation_is_understood_where_the_new_one_is_missing() -> None:
    manifest = cilium("n2")
    manifest["metadata"]["annotations"] = {OLD_KEY: format_key(KEYS["n2"])}
    assert cluster_of(OWN, manifest).nodes["n2"].ipv4.public_key == KEYS["n2"]
    manifest["metadata"]["annotations"][KEY] = format_key(KEYS["n3"])
    assert cluster_of(OWN, manifest).nodes["n2"].ipv4.public_key == KEYS["n3"]


@pytest.mark.parametrize("number", [None, 0, 3])
def test_a_node_that_does_not_encrypt_with_wireguard_has_no_key(number: int | None) -> None:
    """0: it has opted out; a small number: IPsec."""
    assert cluster_of(OWN, OTHER, cilium("n3", KEYS["n3"], number)).nodes["n3"].ipv4.public_key is None


def test_the_one_key_counts_in_the_nodes_first_family() -> None:
    both, single = cluster_of(OWN, OTHER), cluster_of(cilium("n1", KEYS["n1"], families=(6,)), OTHER)

    assert (both.felix.ipv4.enabled, both.felix.ipv6.enabled) == (True, False)
    assert [both.nodes["n2"].of(family).public_key for family in Family] == [KEYS["n2"], None]
    assert (single.felix.ipv4.enabled, single.felix.ipv6.enabled) == (False, True)
    assert [single.nodes["n2"].of(family).public_key for family in Family] == [None, KEYS["n2"]]


def test_there_is_nothing_to_join_where_nobody_encrypts() -> None:
    found = cluster_of(cilium("n1"), cilium("n2", encrypts=0))

    assert not found.felix.ipv4.enabled and not found.felix.ipv6.enabled
    assert not Cilium().observe({}, "n1").cluster.nodes


def test_a_node_to_which_others_send_in_clear_is_told_so() -> None:
    observation = Cilium().observe(objects(cilium("n1", KEYS["n1"], 0), OTHER), "n1")

    assert [str(problem) for problem in observation.problems] == [
        "CiliumNode n1: spec.encryption.key: not 255: others send to this node in clear until cilium-agent sets it"
    ]
    assert observation.cluster.nodes["n1"].ipv4.public_key == KEYS["n1"]  # published, whatever others make of it


def test_peers_are_reached_at_the_port_that_is_fixed() -> None:
    identity = Identity("n1", bytes(31) + b"\1", KEYS["n1"])

    state = desired_state(cluster_of(OWN, OTHER), Family.IPV4, identity, DEFAULT_NUMBERS[Family.IPV4], 1500)

    assert state.device is not None
    (peer,) = state.device.peers
    assert (peer.endpoint, state.device.listen_port) == (Endpoint("192.0.2.2", 51871), 51871)
    assert {ip_network("10.0.2.0/24"), ip_network("10.0.2.7/32")} <= set(peer.allowed_ips)


def test_the_key_is_published_on_the_cilium_node_and_taken_back_from_there() -> None:
    mesh = Cilium()

    assert mesh.announcing_kind == "CiliumNode"
    assert mesh.announcement(Family.IPV4, KEYS["n1"], objects(OWN), "n1") == {KEY: format_key(KEYS["n1"])}
    assert mesh.withdrawal(Family.IPV4, objects(OWN), "n1") == {KEY: None}
    assert mesh.withdrawal(Family.IPV6, objects(OWN), "n1") == {}  # it is not that family's
    assert mesh.withdrawal(Family.IPV4, objects(cilium("n1")), "n1") == {}
    assert mesh.withdrawal(Family.IPV4, {}, "n1") == {}


def test_both_names_of_the_annotation_are_taken_back() -> None:
    manifest = deepcopy(OWN)
    manifest["metadata"]["annotations"][OLD_KEY] = "x"

    assert Cilium().withdrawal(Family.IPV4, objects(manifest), "n1") == {KEY: None, OLD_KEY: None}


def test_the_kinds_are_ciliums() -> None:
    kind = Cilium.kinds["CiliumNode"]

    assert (kind.plural, kind.api_versions) == ("ciliumnodes", ("cilium.io/v2",))
    assert Cilium.kinds["Node"].plural == "nodes"


# Whatever may come

WHOLE = (OWN, OTHER, cilium("n3", KEYS["n3"], 0), cilium("n4", families=(6,)), node("n1"))


@settings(deadline=None)
@given(st.data())
def test_no_object_can_make_it_raise(data: st.DataObject) -> None:
    found = objects(*mangled(data, WHOLE))

    for problem in Cilium().observe(found, "n1").problems:
        assert "\n" not in str(problem)
    for family in Family:
        Cilium().withdrawal(family, found, "n1")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_trimmed_object_says_the_same(data: st.DataObject) -> None:
    manifests = mangled(data, WHOLE)
    before = deepcopy(manifests)
    whole: dict[Ref, AnyManifest] = dict(objects(*manifests))
    mesh = Cilium()

    trimmed = {ref: mesh.trim(manifest) for ref, manifest in whole.items()}

    assert mesh.observe(trimmed, "n1") == Cilium().observe(whole, "n1")
    assert {ref: mesh.trim(manifest) for ref, manifest in trimmed.items()} == trimmed
    for family in Family:
        assert mesh.withdrawal(family, trimmed, "n1") == mesh.withdrawal(family, whole, "n1")
    assert manifests == before


@given(json_values)
def test_trimming_never_raises(value: Any) -> None:
    for kind in ("Node", "CiliumNode", value):
        Cilium().trim({"kind": kind, "metadata": value, "spec": value})


@settings(deadline=None)
@given(st.data())
def test_what_is_known_from_before_changes_nothing(data: st.DataObject) -> None:
    mesh = Cilium()
    before, after = objects(*mangled(data, WHOLE)), objects(*mangled(data, WHOLE))
    mesh.observe(before, "n1")
    mixed = {ref: (before if data.draw(st.booleans()) else after)[ref] for ref in after if data.draw(st.booleans())}

    assert mesh.observe(mixed, "n1") == Cilium().observe(mixed, "n1")
    assert mesh.observe(mixed, "n2") == Cilium().observe(mixed, "n2")
