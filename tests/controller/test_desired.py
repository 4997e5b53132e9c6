"""What follows for one node from the whole cluster (calico.md 3, 4, 9)."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desired import (
    DEFAULT_NUMBERS,
    Identity,
    Numbers,
    degraded_state,
    desired_state,
    disabled_state,
    keep_roamed,
    prefix_owners,
    select_peers,
)
from controller.meshes.calico import observe
from controller.model import Cluster, Family
from controller.state import Device, Link, Route, RouteKind, Rule, State
from tests.controller.cluster import KEYS, Manifest, block, felix, keyed, node, objects
from wgpy.config import Endpoint, PeerConfig

ME = Identity("n1", private_key=bytes(31) + b"\7", public_key=KEYS["n1"])
ENABLED = felix(wireguardEnabled=True)


def cluster_of(*manifests: Manifest) -> Cluster:
    return observe(objects(ENABLED, *manifests), "n1").cluster


def state_of(*manifests: Manifest) -> State:
    return desired_state(cluster_of(*manifests), Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], underlay_mtu=1500)


def routes_of(state: State) -> dict[str, str]:
    return {str(route.prefix): route.kind.value for route in state.routes}


def peers_of(state: State) -> dict[bytes, list[str]]:
    assert state.device is not None
    return {peer.public_key: [str(prefix) for prefix in peer.allowed_ips] for peer in state.device.peers}


OWN = keyed("n1", "192.0.2.1/24", "10.9.1.0")
OWN_BLOCK = block("10.9.1.0/26", "n1")
BOB = keyed("n2", "192.0.2.2/24", "10.9.2.0")
BOB_BLOCK = block("10.9.2.0/26", "n2")


def test_a_peers_ranges_are_routes_into_the_interface_and_allowed_ips() -> None:
    state = state_of(OWN, OWN_BLOCK, BOB, BOB_BLOCK)

    assert routes_of(state) == {"10.9.1.0/26": "throw", "10.9.2.0/26": "dev", "10.9.2.0/32": "dev"}
    assert peers_of(state) == {KEYS["n2"]: ["10.9.2.0/26", "10.9.2.0/32"]}  # an address in its own block is listed too


def test_everything_else_about_an_enabled_family() -> None:
    state = state_of(OWN, BOB)

    assert state.link == Link(is_up=True, mtu=1440)
    assert state.addresses == {ip_interface("10.9.1.0/32")}
    assert state.rules == {Rule(priority=99, fwmark=0x1000, fwmask=0x1000)}
    assert state.device is not None
    assert (state.device.private_key, state.device.listen_port, state.device.fwmark) == (ME.private_key, 51820, 0x1000)
    assert state.device.peers[0].endpoint == Endpoint("192.0.2.2", 51820)


def test_the_port_of_every_endpoint_is_our_own() -> None:
    cluster = cluster_of(OWN, BOB, felix("node.n1", wireguardListeningPort=4000))

    state = desired_state(cluster, Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500)

    assert state.device is not None
    assert state.device.listen_port == 4000
    assert state.device.peers[0].endpoint == Endpoint("192.0.2.2", 4000)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (node("n2", "192.0.2.2/24"), "has no public key"),
        (keyed("n2", "192.0.2.2"), "has a public key but no IPv4 address"),
        (keyed("n2", "192.0.2.2/24", key=KEYS["n1"]), "claims our own public key"),
    ],
)
def test_whom_we_cannot_encrypt_to_is_talked_to_in_clear(manifest: Manifest, reason: str) -> None:
    state = state_of(OWN, manifest, BOB_BLOCK)

    assert routes_of(state)["10.9.2.0/26"] == "throw"
    assert peers_of(state) == {}
    assert select_peers(cluster_of(OWN, manifest), Family.IPV4, ME).refusals == {"n2": reason}


def test_a_key_that_two_nodes_claim_is_nobodys() -> None:
    twin = keyed("n3", "192.0.2.3/24", key=KEYS["n2"])

    both = state_of(OWN, BOB, BOB_BLOCK, twin, block("10.9.3.0/26", "n3"))

    assert peers_of(both) == {}
    assert routes_of(both)["10.9.2.0/26"] == routes_of(both)["10.9.3.0/26"] == "throw"
    assert select_peers(cluster_of(OWN, BOB, twin), Family.IPV4, ME).refusals == {
        "n2": "claims the same public key as n3",
        "n3": "claims the same public key as n2",
    }


def test_when_the_other_claim_goes_the_node_is_a_peer_again() -> None:
    state = state_of(OWN, BOB, BOB_BLOCK, keyed("n3", "192.0.2.3/24"))

    assert set(peers_of(state)) == {KEYS["n2"], KEYS["n3"]}
    assert routes_of(state)["10.9.2.0/26"] == "dev"


def test_a_borrowed_address_goes_to_its_holder_and_not_to_the_blocks_owner() -> None:
    lent = block("10.9.2.0/26", "n2", {"10.9.2.9": "n3", "10.9.2.10": "n1", "10.9.2.11": "n4"})
    state = state_of(OWN, OWN_BLOCK, BOB, lent, keyed("n3", "192.0.2.3/24"), node("n4", "192.0.2.4/24"))

    assert routes_of(state) == {
        "10.9.1.0/26": "throw",
        "10.9.2.0/26": "dev",
        "10.9.2.0/32": "dev",
        "10.9.2.9/32": "dev",
        "10.9.2.10/32": "throw",  # ours: without it the pod's own packets would fail the reverse path check
        "10.9.2.11/32": "throw",
    }
    assert peers_of(state)[KEYS["n3"]] == ["10.9.2.9/32"]


def test_an_address_of_ours_inside_our_block_needs_no_route_of_its_own() -> None:
    assert routes_of(state_of(keyed("n1", "192.0.2.1/24", "10.9.1.5"), OWN_BLOCK)) == {"10.9.1.0/26": "throw"}
    assert routes_of(state_of(keyed("n1", "192.0.2.1/24", "10.9.8.5"), OWN_BLOCK)) == {
        "10.9.1.0/26": "throw",
        "10.9.8.5/32": "throw",
    }


def test_ranges_of_a_node_that_is_gone_are_in_clear_until_ipam_releases_them() -> None:
    assert routes_of(state_of(OWN, BOB_BLOCK)) == {"10.9.1.0/32": "throw", "10.9.2.0/26": "throw"}


def test_a_remote_host_address_is_no_range_whatever_else_it_is() -> None:
    bob = keyed("n2", "192.0.2.2/24", "192.0.2.2")

    assert "192.0.2.2/32" not in routes_of(state_of(OWN, bob))


def test_with_host_encryption_all_addresses_of_remote_hosts_are_encrypted_to() -> None:
    bob = keyed("n2", "192.0.2.2/24")
    bob["status"] = {"addresses": [{"type": "ExternalIP", "address": "203.0.113.2"}]}
    cluster = cluster_of(keyed("n1", "192.0.2.1/24"), bob, felix("node.n1", wireguardHostEncryptionEnabled=True))

    state = desired_state(cluster, Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500)

    assert peers_of(state)[KEYS["n2"]] == ["192.0.2.2/32", "203.0.113.2/32"]
    assert routes_of(state) == {"192.0.2.2/32": "dev", "203.0.113.2/32": "dev"}
    assert state.addresses == {ip_interface("192.0.2.1/32")}  # no allocated address: the node's own
    assert state.is_underlay_strict is False


def test_a_tunnel_address_outranks_ipam() -> None:
    cluster = cluster_of(OWN, keyed("n2", "192.0.2.2/24", "10.9.3.7"), block("10.9.3.0/26", "n3", {"10.9.3.7": "n4"}))

    assert prefix_owners(cluster, Family.IPV4, "n1")[ip_network("10.9.3.7/32")] == "n2"


def test_a_node_without_an_address_of_its_own_has_an_interface_without_one() -> None:
    assert state_of(keyed("n1", "192.0.2.1/24")).addresses == frozenset()


def test_ipv6_is_an_instance_of_its_own() -> None:
    annotations = {
        "projectcalico.org/IPv6Address": "2001:db8::2/64",
        "projectcalico.org/WireguardPublicKeyV6": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
    }
    cluster = cluster_of(OWN, node("n2", "192.0.2.2/24", annotations), block("fd00:2::/122", "n2"), BOB_BLOCK)

    ipv6 = desired_state(cluster, Family.IPV6, ME, DEFAULT_NUMBERS[Family.IPV6], underlay_mtu=9000)

    assert ipv6.routes == {Route(ip_network("fd00:2::/122"), RouteKind.DEVICE, metric=1024)}
    assert ipv6.link == Link(is_up=True, mtu=8920)
    assert ipv6.device is not None
    assert ipv6.device.peers[0].endpoint == Endpoint("2001:db8::2", 51821)
    assert select_peers(cluster, Family.IPV4, ME).refusals == {"n2": "has no public key"}


def test_configured_numbers_win_over_derived_ones() -> None:
    cluster = cluster_of(OWN, felix("node.n1", wireguardMTU=1300, wireguardRoutingRulePriority=50))

    state = desired_state(cluster, Family.IPV4, ME, Numbers(table=5182, rule_priority=42, fwmark=0x2000, fwmask=0x3000), 1500)

    assert state.link == Link(True, 1300)
    assert state.rules == {Rule(priority=42, fwmark=0x2000, fwmask=0x3000)}


@pytest.mark.parametrize(
    ("felix_name", "ours"),
    [
        ("wireguard.cali", "wireguard.caliu"),
        ("wg-v6.cali", "wg-v6.caliu"),
        ("fifteen-letters", "fifteen-letteru"),
        ("wireguard.caliu", "wireguard.caliv"),
    ],
)
def test_the_interface_is_felixs_name_with_a_u(felix_name: str, ours: str) -> None:
    assert Numbers(table=5182).interface_name(felix_name) == ours
    assert Numbers(table=5182, interface="wg0").interface_name(felix_name) == "wg0"


def test_no_secret_shows_in_a_representation() -> None:
    assert "\\x07" not in repr(ME)
    assert "\\x07" not in repr(state_of(OWN))


# Roaming

NODE_ADDRESS, ROAMED = Endpoint("192.0.2.2", 51820), Endpoint("198.51.100.9", 1234)


def with_endpoint(endpoint: Endpoint | None) -> State:
    return State(device=Device(peers=(PeerConfig(KEYS["n2"], endpoint=endpoint),)))


@pytest.mark.parametrize(
    ("assigned", "actual", "expected"),
    [
        pytest.param({KEYS["n2"]: NODE_ADDRESS}, ROAMED, ROAMED, id="it has roamed since we set it"),
        pytest.param({KEYS["n2"]: Endpoint("192.0.2.8", 51820)}, ROAMED, NODE_ADDRESS, id="the node has a new address"),
        pytest.param({}, ROAMED, NODE_ADDRESS, id="we have never set it"),
        pytest.param({KEYS["n2"]: NODE_ADDRESS}, None, NODE_ADDRESS, id="it has lost it"),
    ],
)
def test_an_endpoint_is_set_once_for_each_address_of_the_node(
    assigned: dict[bytes, Endpoint], actual: Endpoint | None, expected: Endpoint
) -> None:
    assert keep_roamed(with_endpoint(NODE_ADDRESS), with_endpoint(actual), assigned) == with_endpoint(expected)


# Without a data plane

BLOCKS = {name: ip_network(f"10.9.{number}.0/26") for number, name in enumerate(("encrypted", "clear", "new"))}
RULES = frozenset({Rule(99, 0x1000, 0x1000)})


def table(**kinds: RouteKind) -> frozenset[Route]:
    return frozenset(Route(BLOCKS[name], kind) for name, kind in kinds.items())


DEV, THROW, BLACKHOLE = RouteKind.DEVICE, RouteKind.THROW, RouteKind.BLACKHOLE


def test_a_dead_data_plane_keeps_its_routes_and_gets_no_new_ones() -> None:
    desired = State(routes=table(encrypted=DEV, clear=DEV, new=DEV), rules=RULES)
    found = State(link=Link(True), routes=table(encrypted=DEV, clear=THROW), rules=RULES)

    assert degraded_state(desired, found, keeps_interface=True) == found


def test_what_is_to_go_in_clear_does_so_even_if_the_data_plane_is_dead() -> None:
    desired = State(routes=table(encrypted=THROW), rules=RULES)
    found = State(link=Link(True), routes=table(encrypted=DEV), rules=RULES)

    assert degraded_state(desired, found, keeps_interface=True).routes == table(encrypted=THROW)


def test_where_the_interface_went_with_the_data_plane_the_table_drops_what_was_promised() -> None:
    desired = State(routes=table(encrypted=DEV, clear=DEV), rules=RULES)
    found = State(routes=table(clear=THROW), rules=RULES)  # the kernel has removed the routes into it

    held = degraded_state(desired, found, keeps_interface=False)

    assert held.routes == table(encrypted=BLACKHOLE, clear=THROW)


def test_without_a_promise_nothing_is_touched() -> None:
    found = State(link=Link(True), routes=table(new=THROW))

    assert degraded_state(State(routes=table(new=DEV), rules=RULES), found, keeps_interface=True) == found


def test_a_disabled_family_has_nothing_but_its_interface() -> None:
    state = disabled_state()

    assert not state.is_promised and not state.routes and not state.addresses
    assert state.link == Link(is_up=False)


# Laws

names = st.sampled_from(["n1", "n2", "n3", "n4"])


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    manifests = []
    for number, name in enumerate(draw(st.sets(names)) | {"n1"}, start=1):
        address = draw(st.sampled_from([None, f"192.0.2.{number}/24"]))
        annotations = {}
        if draw(st.booleans()):
            key = KEYS[draw(names)]
            annotations["projectcalico.org/WireguardPublicKey"] = keyed("n1", "", key=key)["metadata"]["annotations"][
                "projectcalico.org/WireguardPublicKey"
            ]
        if draw(st.booleans()):
            annotations["projectcalico.org/IPv4WireguardInterfaceAddr"] = (
                f"10.9.{draw(st.integers(0, 3))}.{draw(st.integers(0, 3))}"
            )
        manifests.append(node(name, address, annotations))
    for number in draw(st.sets(st.integers(0, 3))):
        lent = {f"10.9.{number}.{last}": draw(names) for last in draw(st.sets(st.integers(0, 3)))}
        manifests.append(block(f"10.9.{number}.0/29", draw(names | st.none()), lent))
    cluster = cluster_of(*manifests)
    return replace(cluster, felix=replace(cluster.felix, host_encryption=draw(st.booleans())))


@settings(deadline=None)
@given(clusters())
def test_routes_and_allowed_ips_say_the_same_of_every_address(cluster: Cluster) -> None:
    """A packet is sent into the interface exactly if the device knows a peer for it, and that is the holder of the address."""
    state = desired_state(cluster, Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500)
    assert state.device is not None
    owners = prefix_owners(cluster, Family.IPV4, "n1")
    peers = select_peers(cluster, Family.IPV4, ME).peers
    allowed = [(prefix, peer.public_key) for peer in state.device.peers for prefix in peer.allowed_ips]
    assert len({prefix for prefix, _ in allowed}) == len(allowed), "an allowed IP has one owner"

    for prefix in [*owners, ip_network("10.9.1.6/32")]:
        for address in (prefix.network_address, prefix.broadcast_address):
            kinds = {route.prefix.prefixlen: route.kind for route in state.routes if address in route.prefix}
            into_device = bool(kinds) and kinds[max(kinds)] is RouteKind.DEVICE
            claims = {p.prefixlen: name for p, name in owners.items() if address in p}
            holder = claims[max(claims)] if claims else None
            assert into_device == (holder in peers)
            if into_device:
                keys = {p.prefixlen: key for p, key in allowed if address in p}
                assert keys[max(keys)] == peers[str(holder)].ipv4.public_key


@settings(deadline=None)
@given(clusters())
def test_nothing_is_ever_sent_to_a_key_of_two_claimants_or_to_ourselves(cluster: Cluster) -> None:
    peers = select_peers(cluster, Family.IPV4, ME).peers
    keys = [peer.ipv4.public_key for peer in peers.values()]

    assert "n1" not in peers and KEYS["n1"] not in keys and None not in keys
    assert len(set(keys)) == len(keys)


def test_an_address_is_whose_tunnel_it_is_and_of_two_the_first_in_the_alphabet() -> None:
    cluster = cluster_of(OWN, keyed("n3", "192.0.2.3/24", "10.9.3.7"), keyed("n2", "192.0.2.2/24", "10.9.3.7"))

    assert prefix_owners(cluster, Family.IPV4, "n1")[ip_network("10.9.3.7/32")] == "n2"
    assert ip_address("10.9.3.7") in cluster.nodes["n3"].ipv4.tunnel_addresses
