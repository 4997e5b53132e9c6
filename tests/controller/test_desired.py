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
    Policy,
    admit_external,
    degraded_state,
    desired_state,
    disabled_state,
    keep_roamed,
    prefix_owners,
    select_peers,
)
from controller.meshes.calico import observe
from controller.model import Cluster, Family, Pool
from controller.state import TWIN_METRIC, Device, Guard, Link, Route, RouteKind, Rule, State
from tests.controller.cluster import KEYS, Manifest, block, felix, keyed, node, objects, pool
from wgpy.config import Endpoint, PeerConfig

ME = Identity("n1", private_key=bytes(31) + b"\7", public_key=KEYS["n1"])
ENABLED = felix(wireguardEnabled=True)


def cluster_of(*manifests: Manifest) -> Cluster:
    return observe(objects(ENABLED, *manifests), "n1").cluster


def state_of(*manifests: Manifest) -> State:
    return desired_state(cluster_of(*manifests), Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], underlay_mtu=1500)


def routes_of(state: State) -> dict[str, str]:
    """The routes in force. Behind each one into the interface stands its twin, and no other does."""
    routes = {route for route in state.routes if route.metric != TWIN_METRIC}
    assert state.routes - routes == {route.twin for route in routes if route.kind is RouteKind.DEVICE}
    return {str(route.prefix): route.kind.value for route in routes}


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
    # An address in its own block is listed too. From its host's address it may send, and nothing is routed there.
    assert peers_of(state) == {KEYS["n2"]: ["10.9.2.0/26", "10.9.2.0/32", "192.0.2.2/32"]}


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
    assert peers_of(state)[KEYS["n3"]] == ["10.9.2.9/32", "192.0.2.3/32"]


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

    route = Route(ip_network("fd00:2::/122"), RouteKind.DEVICE, metric=1024)
    assert ipv6.routes == {route, route.twin}
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


# Host addresses


def test_an_address_that_two_claim_is_accepted_from_neither() -> None:
    bob, carol = keyed("n2", "192.0.2.2/24"), keyed("n3", "192.0.2.3/24")
    for claimant in (bob, carol):
        claimant["status"] = {"addresses": [{"type": "ExternalIP", "address": "203.0.113.9"}]}

    assert peers_of(state_of(OWN, bob, carol)) == {KEYS["n2"]: ["192.0.2.2/32"], KEYS["n3"]: ["192.0.2.3/32"]}


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(block("192.0.2.0/26", "n3"), id="in the range of another"),
        pytest.param(block("10.9.3.0/26", "n3", {"10.9.3.9": "n3"}) | {}, id="nobody's but its own"),
        pytest.param(keyed("n4", "192.0.2.4/24", "192.0.2.2"), id="the tunnel of another"),
        pytest.param(node("n1", "192.0.2.2/24"), id="our own"),
    ],
)
def test_an_address_that_is_somebody_elses_is_not_accepted(claim: Manifest) -> None:
    manifests = [keyed("n2", "192.0.2.2/24"), keyed("n3", "192.0.2.3/24"), claim]
    own = [] if claim["metadata"]["name"] == "n1" else [OWN]
    accepted = peers_of(state_of(*own, *manifests))[KEYS["n2"]]

    assert accepted == (["192.0.2.2/32"] if claim["metadata"]["name"] == "10-9-3-0-26" else [])


def test_a_host_address_is_never_routed_to_without_host_encryption() -> None:
    assert routes_of(state_of(OWN, OWN_BLOCK, BOB)) == {"10.9.1.0/26": "throw", "10.9.2.0/32": "dev"}


# Strict mode

STRICT = Policy(is_strict=True)


def strict_state(*manifests: Manifest, policy: Policy = STRICT) -> State:
    return desired_state(cluster_of(*manifests), Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500, policy)


PLAIN, PLAIN_BLOCK = node("n3", "192.0.2.3/24"), block("10.9.3.0/26", "n3")


def test_strict_mode_refuses_what_it_cannot_encrypt_and_what_nobody_has() -> None:
    lent = block("10.9.2.0/26", "n2", {"10.9.2.9": "n3", "10.9.2.10": "n1"})
    state = strict_state(OWN, OWN_BLOCK, BOB, lent, PLAIN, PLAIN_BLOCK, pool("10.9.0.0/16"), block("10.77.0.0/26", None))

    assert routes_of(state) == {
        "10.9.0.0/16": "prohibit",
        "10.77.0.0/26": "prohibit",
        "10.9.1.0/26": "throw",
        "10.9.2.0/26": "dev",
        "10.9.2.0/32": "dev",
        "10.9.2.9/32": "prohibit",
        "10.9.2.10/32": "throw",
        "10.9.3.0/26": "prohibit",
    }
    assert state.guard == Guard(
        frozenset({ip_network("10.9.0.0/16"), ip_network("10.77.0.0/26")}), workloads=frozenset({"cali*"})
    )


def test_without_strict_mode_there_is_no_guard() -> None:
    assert state_of(OWN, BOB, pool("10.9.0.0/16")).guard is None


def test_strict_mode_protects_ranges_outside_all_pools_too() -> None:
    state = strict_state(OWN, OWN_BLOCK, BOB, BOB_BLOCK, pool("10.8.0.0/16"))

    assert state.guard is not None
    assert state.guard.protected == {ip_network(text) for text in ("10.8.0.0/16", "10.9.1.0/26", "10.9.2.0/26")}


def test_in_strict_mode_nodes_themselves_stay_reachable() -> None:
    encrypting = felix("node.n1", wireguardHostEncryptionEnabled=True)
    state = strict_state(OWN, OWN_BLOCK, BOB, PLAIN, encrypting, pool("10.9.0.0/16"))

    assert routes_of(state)["192.0.2.2/32"] == "dev"
    assert routes_of(state)["192.0.2.3/32"] == "throw", "the API server may be there"
    assert state.guard is not None and state.guard.protected == {ip_network("10.9.0.0/16")}, "datagrams come from the others"


def test_a_node_in_a_pool_is_left_out_of_strict_mode() -> None:
    state = strict_state(OWN, OWN_BLOCK, BOB, pool("192.0.2.0/24"))

    assert routes_of(state)["192.0.2.0/24"] == "prohibit" and routes_of(state)["192.0.2.2/32"] == "throw"
    assert state.guard is not None
    assert state.guard.exempt == {ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32")}


# External peers


def external(number: int, *ranges: str) -> PeerConfig:
    return PeerConfig(bytes([number]) * 32, endpoint=Endpoint("203.0.113.1", 51820), allowed_ips=tuple(map(ip_network, ranges)))


def test_an_external_peer_is_a_peer_with_routes() -> None:
    office = external(90, "172.31.0.0/24", "fd00:31::/64")
    state = strict_state(OWN, OWN_BLOCK, BOB, policy=Policy(external_peers=(office,)))

    assert peers_of(state)[office.public_key] == ["172.31.0.0/24"]
    assert routes_of(state)["172.31.0.0/24"] == "dev"
    assert routes_of(strict_state(OWN, BOB, policy=Policy(external_peers=(external(90, "fd00:31::/64"),)))) == routes_of(
        state_of(OWN, BOB)
    ), "a peer without ranges of a family is none of that family"


@pytest.mark.parametrize(
    ("peers", "kept", "reason"),
    [
        ([external(2, "172.31.0.0/24")], [], "its public key is that of a node"),
        ([external(1, "172.31.0.0/24")], [], "its public key is that of a node"),
        ([external(90, "172.31.0.0/24"), external(90, "172.32.0.0/24")], ["172.31.0.0/24"], "another external peer"),
        ([external(90, "0.0.0.0/0", "172.31.0.0/24")], ["172.31.0.0/24"], "a default route would take this node off"),
        ([external(90, "10.9.2.7/32")], [], "10.9.2.0/26 is the cluster's"),
        ([external(90, "10.8.0.0/15")], [], "is the cluster's"),
        ([external(90, "192.0.2.0/24")], [], "is the cluster's"),
        (
            [external(90, "172.31.0.0/24"), external(91, "172.31.0.128/25")],
            ["172.31.0.0/24"],
            "172.31.0.0/24 is the cluster's or",
        ),
    ],
)
def test_the_cluster_wins_where_an_external_peer_claims_the_same(peers: list[PeerConfig], kept: list[str], reason: str) -> None:
    cluster = cluster_of(OWN, OWN_BLOCK, BOB, BOB_BLOCK, pool("10.9.0.0/16"))
    owners = prefix_owners(cluster, Family.IPV4, "n1")

    admitted = admit_external(cluster, Family.IPV4, ME, owners, peers)

    assert [str(prefix) for peer in admitted.peers for prefix in peer.allowed_ips] == kept
    assert len(admitted.refusals) == 1 and reason in admitted.refusals[0]


# Felix's numbers


def test_routes_carry_felixs_protocol_and_peers_their_own_port() -> None:
    cluster = cluster_of(OWN, OWN_BLOCK, BOB)
    elsewhere = replace(cluster.nodes["n2"], ipv4=replace(cluster.nodes["n2"].ipv4, port=4000))
    cluster = replace(cluster, felix=replace(cluster.felix, route_protocol=80), nodes={**cluster.nodes, "n2": elsewhere})

    state = desired_state(cluster, Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500)

    assert {route.protocol for route in state.routes} == {80}
    assert state.device is not None and state.device.peers[0].endpoint == Endpoint("192.0.2.2", 4000)


def test_without_route_sync_there_are_no_routes() -> None:
    cluster = cluster_of(OWN, OWN_BLOCK, BOB, BOB_BLOCK)
    cluster = replace(cluster, felix=replace(cluster.felix, syncs_routes=False))

    state = desired_state(cluster, Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500)

    assert state.routes == frozenset() and state.rules and peers_of(state)


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


DEV, THROW, PROHIBIT = RouteKind.DEVICE, RouteKind.THROW, RouteKind.PROHIBIT


def twins(**kinds: RouteKind) -> frozenset[Route]:
    return frozenset(route.twin for route in table(**kinds))


def both(**kinds: RouteKind) -> frozenset[Route]:
    return table(**kinds) | twins(**kinds)


def test_a_dead_data_plane_keeps_its_routes_and_gets_no_new_ones() -> None:
    desired = State(routes=both(encrypted=DEV, clear=DEV, new=DEV), rules=RULES)
    found = State(link=Link(True), routes=both(encrypted=DEV) | table(clear=THROW), rules=RULES)

    assert degraded_state(desired, found, keeps_interface=True) == found


def test_what_is_to_go_in_clear_does_so_even_if_the_data_plane_is_dead() -> None:
    desired = State(routes=table(encrypted=THROW), rules=RULES)
    found = State(link=Link(True), routes=both(encrypted=DEV), rules=RULES)

    assert degraded_state(desired, found, keeps_interface=True).routes == table(encrypted=THROW)


def test_where_the_interface_went_with_the_data_plane_the_twins_refuse_what_was_promised() -> None:
    desired = State(routes=both(encrypted=DEV, clear=DEV, new=DEV), rules=RULES)
    found = State(routes=twins(encrypted=DEV) | table(clear=THROW), rules=RULES)  # the kernel has removed the routes into it

    assert degraded_state(desired, found, keeps_interface=False) == found


def test_an_interface_that_is_to_go_leaves_its_twins() -> None:
    desired = State(routes=both(encrypted=DEV), rules=RULES)
    found = State(link=Link(True), routes=table(encrypted=DEV), rules=RULES)

    assert degraded_state(desired, found, keeps_interface=False).routes == twins(encrypted=DEV)


def test_without_a_promise_nothing_is_touched() -> None:
    found = State(link=Link(True), routes=table(new=THROW))

    assert degraded_state(State(routes=both(new=DEV), rules=RULES), found, keeps_interface=True) == found


def test_in_strict_mode_all_that_is_owed_is_refused_while_no_data_plane_answers() -> None:
    guard = Guard(frozenset(BLOCKS.values()))
    desired = State(routes=both(encrypted=DEV, new=DEV) | table(clear=THROW), rules=RULES, guard=guard)
    found = State(routes=table(new=THROW))

    held = degraded_state(desired, found, keeps_interface=False)

    assert held == State(routes=twins(encrypted=DEV, new=DEV) | table(clear=THROW), rules=RULES, guard=guard)


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
            kinds = {(route.prefix.prefixlen, -route.metric): route.kind for route in state.routes if address in route.prefix}
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


@settings(deadline=None)
@given(clusters(), st.booleans())
def test_in_strict_mode_nothing_of_others_is_in_clear_but_nodes_themselves(cluster: Cluster, has_pool: bool) -> None:
    pools = (Pool(ip_network("10.9.0.0/16"), 29, allows_tunnels=True),) if has_pool else ()
    cluster = replace(cluster, pools=pools)
    state = desired_state(cluster, Family.IPV4, ME, DEFAULT_NUMBERS[Family.IPV4], 1500, STRICT)
    owners = prefix_owners(cluster, Family.IPV4, "n1")
    hosts = {address for each in cluster.nodes.values() for address in each.ipv4.host_addresses}
    assert state.guard is not None

    for prefix in [*owners, ip_network("10.9.1.6/32"), ip_network("10.9.77.0/26")]:
        for address in (prefix.network_address, prefix.broadcast_address):
            matching = [route for route in state.routes if address in route.prefix]
            best = max(matching, key=lambda route: (route.prefix.prefixlen, -route.metric), default=None)
            claims = {p.prefixlen: name for p, name in owners.items() if address in p}
            holder = claims[max(claims)] if claims else None
            is_guarded = any(address in guarded for guarded in state.guard.protected)
            if address not in hosts and holder != "n1" and (claims or has_pool):
                assert best is not None and best.kind is not RouteKind.THROW and is_guarded
            elif holder == "n1":
                assert best is not None and best.kind is RouteKind.THROW
