"""Flannel's Nodes as flanneld writes them, old and new, and as nobody would; its names, typed in once more: they are a contract
with others."""

import json
import os
import shutil
import subprocess
from copy import deepcopy
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desired import DEFAULT_NUMBERS, Identity, desired_state, select_peers
from controller.meshes.flannel import (
    Flannel,
    NetConf,
    masquerade_ruleset,
    network_available,
    parse_net_conf,
    subnet_env,
)
from controller.model import Block, Cluster, Family, NodeNetwork
from controller.source import Manifest as AnyManifest
from controller.source import Ref
from tests.controller.cluster import KEYS, Manifest, objects
from tests.controller.mangled import json_values, mangled
from wgpy.config import Endpoint
from wgpy.wgconf import format_key

PREFIX = "flannel.alpha.coreos.com/"
NET_CONF: dict[str, Any] = {
    "Network": "10.244.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:244::/48",
    "Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": 25},
}
OWN = Ref("Node", "n1")


def net_conf(**changes: Any) -> NetConf:
    return parse_net_conf(json.dumps(NET_CONF | changes))


def backend(**changes: Any) -> NetConf:
    return net_conf(Backend=NET_CONF["Backend"] | changes)


MESH = Flannel(net_conf())


def bare(name: str) -> Manifest:
    """A Node before any flanneld: ``n2`` has 192.0.2.2 and 10.244.2.0/24."""
    number = name[1:]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {}},
        "spec": {"podCIDR": f"10.244.{number}.0/24", "podCIDRs": [f"10.244.{number}.0/24", f"fd00:244:0:{number}::/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": f"192.0.2.{number}"},
                {"type": "InternalIP", "address": f"2001:db8::{number}"},
                {"type": "Hostname", "address": name},
            ]
        },
    }


def member(name: str, annotations: dict[str, str | None] | None = None) -> Manifest:
    """A Node as flanneld leaves it, with what is different (None: not there)."""
    manifest = bare(name)
    key = format_key(KEYS[name])
    written = {
        "backend-type": "wireguard",
        "backend-data": f'{{"PublicKey":"{key}","Port":51820}}',
        "backend-v6-data": f'{{"PublicKey":"{key}","Port":51821}}',
        "public-ip": f"192.0.2.{name[1:]}",
        "public-ipv6": f"2001:db8::{name[1:]}",
        "kube-subnet-manager": "true",
    } | (annotations or {})
    manifest["metadata"]["annotations"] = {PREFIX + each: value for each, value in written.items() if value is not None}
    return manifest


def cluster_of(*manifests: Manifest) -> Cluster:
    observation = Flannel(net_conf()).observe(objects(*manifests), "n1")
    assert not observation.problems
    return observation.cluster


def network_of(manifest: Manifest, family: Family = Family.IPV4) -> NodeNetwork:
    return Flannel(net_conf()).observe(objects(manifest), "n1").cluster.nodes[manifest["metadata"]["name"]].of(family)


def problems_of(*manifests: Manifest) -> list[str]:
    return [str(problem) for problem in Flannel(net_conf()).observe(objects(*manifests), "n1").problems]


def annotated(manifest: Manifest, annotations: Any) -> Manifest:
    """A manifest after these annotations were written."""
    changed = deepcopy(manifest)
    present = changed["metadata"]["annotations"] | annotations
    changed["metadata"]["annotations"] = {name: value for name, value in present.items() if value is not None}
    return changed


# Others


def test_a_node_is_read_as_flanneld_has_written_it() -> None:
    found = cluster_of(member("n2"), bare("n1"))

    assert found.nodes["n2"].ipv4 == NodeNetwork(
        address=ip_address("192.0.2.2"),
        public_key=KEYS["n2"],
        interface_address=ip_address("10.244.2.0"),
        host_addresses=(ip_address("192.0.2.2"),),
        port=51820,
    )
    assert found.nodes["n2"].ipv6.address == ip_address("2001:db8::2")
    assert (found.nodes["n2"].ipv6.public_key, found.nodes["n2"].ipv6.port) == (KEYS["n2"], 51821)
    assert Block(ip_network("10.244.2.0/24"), "n2") in found.blocks
    assert Block(ip_network("fd00:244:0:2::/64"), "n2") in found.blocks


def test_an_old_flanneld_publishes_no_port() -> None:
    found = network_of(member("n2", {"backend-data": f'{{"PublicKey":"{format_key(KEYS["n2"])}"}}'}))

    assert (found.public_key, found.port) == (KEYS["n2"], None)


@pytest.mark.parametrize("data", ["null", "", None, "{}", '{"PublicKey":""}', f'{{"PublicKey":"{format_key(bytes(32))}"}}'])
def test_no_data_is_no_key_and_no_problem(data: str | None) -> None:
    manifest = member("n2", {"backend-data": data})

    assert network_of(manifest).public_key is None
    assert network_of(manifest, Family.IPV6).public_key == KEYS["n2"]
    assert not problems_of(manifest)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a mapping: []"),
        ('{"PublicKey":"x"}', "PublicKey: "),
        ('{"PublicKey":7}', "PublicKey: "),
        (f'{{"PublicKey":"{format_key(KEYS["n2"])}","Port":0}}', "Port: not a number from 1 to 65535: 0"),
        (f'{{"PublicKey":"{format_key(KEYS["n2"])}","Port":true}}', "Port: not a number"),
    ],
)
def test_data_that_cannot_be_read_is_a_problem_and_no_key(data: str, complaint: str) -> None:
    manifest = member("n2", {"backend-data": data})

    assert network_of(manifest).public_key is None
    (problem,) = problems_of(manifest)
    assert problem.startswith(f"Node n2: metadata.annotations.{PREFIX}backend-data: {complaint}")


@pytest.mark.parametrize("value", [None, "false", "", "True"])
def test_a_node_that_flannel_does_not_manage_has_no_key(value: str | None) -> None:
    assert network_of(member("n2", {"kube-subnet-manager": value})).public_key is None


def test_a_node_with_another_backend_has_no_key_and_that_is_said() -> None:
    manifest = member("n2", {"backend-type": "vxlan", "backend-data": '{"VNI":1,"VtepMAC":"5a:00:00:00:00:01"}'})

    assert network_of(manifest).public_key is None
    assert problems_of(manifest) == [f"Node n2: metadata.annotations.{PREFIX}backend-type: not 'wireguard': 'vxlan'"]


def test_what_an_administrator_has_written_wins_over_what_a_node_says() -> None:
    manifest = member("n2", {"public-ip": "10.0.0.9", "public-ip-overwrite": "203.0.113.9"})

    assert network_of(manifest).address == ip_address("203.0.113.9")
    assert network_of(member("n2", {"public-ip": "10.0.0.9"})).address == ip_address("10.0.0.9")
    assert network_of(member("n2", {"public-ip": "10.0.0.9"}), Family.IPV6).address == ip_address("2001:db8::2")


def test_the_prefix_of_the_annotations_is_a_choice() -> None:
    manifest = member("n2")
    written = {name.replace(PREFIX, "example.com/net-"): value for name, value in manifest["metadata"]["annotations"].items()}
    manifest["metadata"]["annotations"] = written

    for prefix in ("example.com/net", "example.com/net-"):
        found = Flannel(net_conf(), prefix).observe(objects(manifest), "n1").cluster
        assert found.nodes["n2"].ipv4.public_key == KEYS["n2"]
    assert Flannel(net_conf(), "flannel.alpha.coreos.com").announcement(Family.IPV4, KEYS["n1"], {}, "n1").keys() > {
        PREFIX + "backend-data"
    }
    for bad in ("", "flannel", "a.b/c/d", "Example.com/"):
        with pytest.raises(ValueError, match="not a prefix of annotations"):
            Flannel(net_conf(), bad)


def test_the_whole_network_is_protected_where_clear_packets_are_refused() -> None:
    assert {pool.cidr for pool in cluster_of(bare("n1")).pools} == {ip_network("10.244.0.0/16"), ip_network("fd00:244::/48")}
    assert not any(pool.allows_tunnels for pool in cluster_of(bare("n1")).pools)


# This node


def test_what_flannel_is_configured_to_do_is_in_force_where_the_node_has_a_range() -> None:
    felix = cluster_of(bare("n1")).felix

    assert (felix.ipv4.enabled, felix.ipv4.port, felix.ipv4.mtu, felix.ipv4.interface) == (True, 51820, 0, "flannel-wg")
    assert (felix.ipv6.enabled, felix.ipv6.port, felix.ipv6.mtu, felix.ipv6.interface) == (True, 51821, 0, "flannel-wg-v6")
    assert (felix.keepalive, felix.host_encryption) == (25, False)


def test_a_family_without_a_range_is_off_and_that_is_said() -> None:
    manifest = bare("n1")
    manifest["spec"] = {"podCIDR": "10.244.1.0/24"}
    observation = Flannel(net_conf()).observe(objects(manifest), "n1")

    assert (observation.cluster.felix.ipv4.enabled, observation.cluster.felix.ipv6.enabled) == (True, False)
    assert [str(problem) for problem in observation.problems] == [
        "Node n1: spec.podCIDRs: no IPv6 range: kube-controller-manager needs --allocate-node-cidrs"
    ]
    single = Flannel(net_conf(EnableIPv6=False)).observe(objects(manifest), "n1")
    assert (single.problems, single.cluster.felix.ipv6.enabled) == ((), False)


def test_a_range_outside_of_flannels_network_is_a_problem_on_this_node_alone() -> None:
    strange = {"podCIDRs": ["10.9.1.0/24", "fd00:244:0:1::/64"]}

    assert problems_of(bare("n1") | {"spec": strange}) == [
        "Node n1: spec.podCIDRs: 10.9.1.0/24 is not part of Flannel's network, 10.244.0.0/16"
    ]
    assert problems_of(bare("n1"), bare("n2") | {"spec": strange}) == []


def test_what_is_announced_is_what_flanneld_would_write() -> None:
    before = objects(bare("n1"))
    key = format_key(KEYS["n1"])

    assert MESH.announcement(Family.IPV4, KEYS["n1"], before, "n1") == {
        PREFIX + "kube-subnet-manager": "true",
        PREFIX + "backend-type": "wireguard",
        PREFIX + "backend-data": f'{{"PublicKey":"{key}","Port":51820}}',
        PREFIX + "public-ip": "192.0.2.1",
    }
    assert MESH.announcement(Family.IPV6, KEYS["n1"], before, "n1") == {
        PREFIX + "kube-subnet-manager": "true",
        PREFIX + "backend-type": "wireguard",
        PREFIX + "backend-v6-data": f'{{"PublicKey":"{key}","Port":51821}}',
        PREFIX + "public-ipv6": "2001:db8::1",
    }


@pytest.mark.parametrize("family", Family)
def test_what_is_announced_is_read_back_by_us_and_by_others(family: Family) -> None:
    announced = annotated(bare("n1"), MESH.announcement(family, KEYS["n1"], objects(bare("n1")), "n1"))

    for reader in ("n1", "n2"):
        found = Flannel(net_conf()).observe(objects(announced), reader).cluster.nodes["n1"]
        assert [other for other in Family if found.of(other).public_key == KEYS["n1"]] == [family]


def test_an_overwritten_address_is_announced() -> None:
    manifest = annotated(bare("n1"), {PREFIX + "public-ip-overwrite": "203.0.113.1"})

    announced = MESH.announcement(Family.IPV4, KEYS["n1"], objects(manifest), "n1")

    assert announced[PREFIX + "public-ip"] == "203.0.113.1"


@pytest.mark.parametrize(
    "change",
    [
        {"public-ip": "10.0.0.9"},
        {"public-ip": None},
        {"public-ip-overwrite": "203.0.113.1"},
        {"backend-data": f'{{"PublicKey":"{format_key(KEYS["n1"])}","Port":1}}'},
        {"backend-data": f'{{"PublicKey":"{format_key(KEYS["n1"])}"}}'},
        {"backend-type": None},
        {"kube-subnet-manager": None},
    ],
)
def test_a_key_of_ours_at_the_wrong_endpoint_is_published_anew(change: dict[str, str | None]) -> None:
    """The agent publishes what it does not find. A node that has moved would otherwise stay where it was to others."""
    manifest = member("n1", change)
    assert network_of(member("n1")).public_key == KEYS["n1"]

    assert network_of(manifest).public_key is None

    mended = annotated(manifest, MESH.announcement(Family.IPV4, KEYS["n1"], objects(manifest), "n1"))
    assert network_of(mended).public_key == KEYS["n1"]


def test_taking_both_keys_back_leaves_nothing_but_what_an_administrator_wrote() -> None:
    manifest = member("n1", {"public-ip-overwrite": "203.0.113.1"})

    first = annotated(manifest, MESH.withdrawal(Family.IPV4, objects(manifest), "n1"))
    assert set(first["metadata"]["annotations"]) == {
        PREFIX + name for name in ("backend-type", "backend-v6-data", "public-ipv6", "kube-subnet-manager", "public-ip-overwrite")
    }
    assert network_of(first, Family.IPV6).public_key == KEYS["n1"]
    second = annotated(first, MESH.withdrawal(Family.IPV6, objects(first), "n1"))

    assert set(second["metadata"]["annotations"]) == {PREFIX + "public-ip-overwrite"}
    assert not any(MESH.withdrawal(family, objects(second), "n1") for family in Family)
    assert not any(MESH.withdrawal(family, {}, "n1") for family in Family)


# What follows


def identity() -> Identity:
    return Identity("n1", bytes(31) + b"\1", KEYS["n1"])


def test_peers_are_reached_at_the_port_they_publish_for_their_own_range() -> None:
    other = member("n2", {"backend-data": f'{{"PublicKey":"{format_key(KEYS["n2"])}","Port":40000}}'})
    old = member("n3", {"backend-data": f'{{"PublicKey":"{format_key(KEYS["n3"])}"}}'})

    state = desired_state(cluster_of(bare("n1"), other, old), Family.IPV4, identity(), DEFAULT_NUMBERS[Family.IPV4], 1500)

    assert state.device is not None
    peers = {peer.public_key: peer for peer in state.device.peers}
    assert peers[KEYS["n2"]].endpoint == Endpoint("192.0.2.2", 40000)
    assert peers[KEYS["n3"]].endpoint == Endpoint("192.0.2.3", 51820)
    assert ip_network("10.244.2.0/24") in peers[KEYS["n2"]].allowed_ips
    assert peers[KEYS["n2"]].persistent_keepalive == 25
    assert state.addresses == {ip_interface("10.244.1.0/32")}


def test_the_peer_of_an_old_key_goes() -> None:
    """flanneld leaves it there."""
    changed = member("n2", {"backend-data": f'{{"PublicKey":"{format_key(KEYS["n4"])}","Port":51820}}'})

    for manifest, key in ((member("n2"), KEYS["n2"]), (changed, KEYS["n4"])):
        peers = select_peers(cluster_of(bare("n1"), manifest), Family.IPV4, identity()).peers
        assert [node.ipv4.public_key for node in peers.values()] == [key]


# net-conf.json


def test_flannels_defaults_are_ours() -> None:
    found = parse_net_conf('{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}')

    assert (found.subnet_length, found.keepalive, set(found.families)) == (24, 0, {Family.IPV4})
    conf = found.families[Family.IPV4]
    assert (conf.network, conf.port, conf.mtu) == (ip_network("10.244.0.0/16"), 51820, 0)


def test_everything_in_it_is_read() -> None:
    found = backend(ListenPort=1000, ListenPortV6=1001, MTU=1450, Mode="separate")

    assert [(conf.port, conf.mtu) for conf in found.families.values()] == [(1000, 1370), (1001, 1370)]
    assert set(net_conf(EnableIPv4=False).families) == {Family.IPV6}


def test_what_k3s_writes_is_understood() -> None:
    text = """{
        "Network": "10.42.0.0/16", "EnableIPv6": false, "EnableIPv4": true, "IPv6Network": "::/0",
        "Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": 25, "Mode": "separate"}
    }"""

    assert parse_net_conf(text).families.keys() == {Family.IPV4}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"Backend": {"Type": "vxlan"}}, "the backend is 'vxlan', and not 'wireguard'"),
        ({"Backend": {}}, "the backend is None"),
        ({"Backend": 7}, "no mapping"),
        ({"Network": None}, "Network is missing"),
        ({"Network": "fd00::/48"}, "Network is missing, or not an IPv4 range"),
        ({"IPv6Network": "x"}, "IPv6Network: not a range"),
        ({"EnableIPv6": "yes"}, "EnableIPv6: neither true nor false"),
        ({"Backend": {"Type": "wireguard", "Mode": "auto"}}, "mode 'auto' is not supported"),
        ({"Backend": {"Type": "wireguard", "Mode": ["auto"]}}, "mode"),
        ({"Backend": {"Type": "wireguard", "ListenPort": 0}}, "ListenPort: not a number from 1 to 65535: 0"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        net_conf(**change)


def test_a_mode_of_one_interface_is_fine_with_one_family_over_itself() -> None:
    for mode in ("auto", "ipv4"):
        assert net_conf(EnableIPv6=False, Backend={"Type": "wireguard", "Mode": mode}).families.keys() == {Family.IPV4}
    with pytest.raises(ValueError, match="'ipv6'"):
        net_conf(EnableIPv6=False, Backend={"Type": "wireguard", "Mode": "ipv6"})


def test_a_preshared_key_is_refused_and_not_shown() -> None:
    secret = format_key(bytes(range(32)))
    with pytest.raises(ValueError, match="PSK") as refusal:
        backend(PSK=secret)

    assert secret not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000])
def test_what_is_no_net_conf_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not ") as refusal:
        parse_net_conf(text)

    assert "\n" not in str(refusal.value)


# What else flanneld does


def test_the_plugins_file_has_the_first_address_with_the_length_of_the_range() -> None:
    found = cluster_of(bare("n1"))

    assert subnet_env(net_conf(), found, "n1", mtu=1420) == (
        "FLANNEL_NETWORK=10.244.0.0/16\n"
        "FLANNEL_SUBNET=10.244.1.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd00:244::/48\n"
        "FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n"
        "FLANNEL_MTU=1420\n"
        "FLANNEL_IPMASQ=true\n"
    )
    assert subnet_env(net_conf(EnableIPv6=False), found, "n1", mtu=1400, masquerades=False) == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n"
    )
    assert subnet_env(net_conf(), found, "n2", mtu=1420) == ""


def test_a_node_says_that_it_has_a_network() -> None:
    (condition,) = network_available("2026-01-02T03:04:05Z")["status"]["conditions"]

    assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")
    assert condition["lastTransitionTime"] == condition["lastHeartbeatTime"] == "2026-01-02T03:04:05Z"


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root and nft")
def test_the_kernel_takes_the_ruleset_as_often_as_it_is_given(tmp_path: Path) -> None:
    twice = 'nft -f "$0" && nft -f "$0" && nft list ruleset'
    path = tmp_path / "rules"
    path.write_text(masquerade_ruleset(net_conf()))

    done = subprocess.run(["unshare", "--net", "sh", "-ec", twice, str(path)], text=True, capture_output=True, timeout=30)

    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(f"table {ip} wgpy-flannel") for ip in ("ip", "ip6")] == [1, 1]
    assert done.stdout.count("masquerade fully-random") == 4


# Whatever may come

WHOLE = (
    member("n1", {"public-ip-overwrite": "203.0.113.1", "public-ip": "203.0.113.1"}),
    member("n2"),
    member("n3", {"backend-v6-data": "null", "public-ipv6": None}),
    bare("n4"),
)


@settings(deadline=None)
@given(st.data())
def test_no_object_can_make_it_raise(data: st.DataObject) -> None:
    found = objects(*mangled(data, WHOLE))

    for problem in Flannel(net_conf()).observe(found, "n1").problems:
        assert "\n" not in str(problem)
    for family in Family:
        MESH.announcement(family, KEYS["n1"], found, "n1")
        MESH.withdrawal(family, found, "n1")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_trimmed_object_says_the_same(data: st.DataObject) -> None:
    manifests = mangled(data, WHOLE)
    before = deepcopy(manifests)
    whole: dict[Ref, AnyManifest] = dict(objects(*manifests))

    trimmed = {ref: MESH.trim(manifest) for ref, manifest in whole.items()}

    assert Flannel(net_conf()).observe(trimmed, "n1") == Flannel(net_conf()).observe(whole, "n1")
    assert {ref: MESH.trim(manifest) for ref, manifest in trimmed.items()} == trimmed
    for family in Family:
        assert MESH.withdrawal(family, trimmed, "n1") == MESH.withdrawal(family, whole, "n1")
        assert MESH.announcement(family, KEYS["n1"], trimmed, "n1") == MESH.announcement(family, KEYS["n1"], whole, "n1")
    assert manifests == before


@given(json_values)
def test_trimming_never_raises(value: Any) -> None:
    for kind in ("Node", value):
        MESH.trim({"kind": kind, "metadata": value, "spec": value, "status": value})


@settings(deadline=None)
@given(st.data())
def test_what_is_known_from_before_changes_nothing(data: st.DataObject) -> None:
    mesh = Flannel(net_conf())
    before, after = objects(*mangled(data, WHOLE)), objects(*mangled(data, WHOLE))
    mesh.observe(before, "n1")
    mixed = {ref: (before if data.draw(st.booleans()) else after)[ref] for ref in after if data.draw(st.booleans())}

    assert mesh.observe(mixed, "n1") == Flannel(net_conf()).observe(mixed, "n1")
    assert mesh.observe(mixed, "n2") == Flannel(net_conf()).observe(mixed, "n2")


def test_what_does_not_concern_us_leaves_a_trimmed_node_as_it_was() -> None:
    manifest = member("n2")
    noisy = deepcopy(manifest)
    noisy["metadata"] |= {"resourceVersion": "9", "labels": {"a": "b"}, "managedFields": [{}]}
    noisy["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"] = "0"
    noisy["status"] |= {"conditions": [{"type": "Ready"}], "images": [{"names": ["x"]}]}

    assert MESH.trim(noisy) == MESH.trim(manifest)
    assert MESH.trim({"kind": "Pod", "metadata": {"name": "x"}, "spec": {"nodeName": "y"}}) == {
        "kind": "Pod",
        "metadata": {"name": "x"},
    }
