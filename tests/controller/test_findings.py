"""What operators are told: each finding where it belongs, and nowhere else."""

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.findings import MOST_NAMES, Facts, Finding, findings
from controller.model import Cluster, Family, FelixConfiguration, Node, NodeNetwork, Pool, WireguardConfiguration

KEY, OTHER = bytes([1]) * 32, bytes([2]) * 32
FACTS = Facts(
    table=5182,
    fwmask=0x1000,
    interface="wireguard.caliu",
    public_key=KEY,
    underlay_mtu=1500,
    interface_mtu=1440,
    pod_mtu=1440,
)
ON = FelixConfiguration(ipv4=replace(FelixConfiguration().ipv4, enabled=True))
POOL = Pool(ip_network("10.42.0.0/16"), 26, allows_tunnels=True, nat_outgoing=True)


def network(number: int, key: bytes | None = None, **changes: Any) -> NodeNetwork:
    return NodeNetwork(**{"address": ip_address(f"192.0.2.{number}"), "public_key": key} | changes)


def cluster_of(*networks: NodeNetwork, felix: FelixConfiguration = ON, pools: tuple[Pool, ...] = (POOL,)) -> Cluster:
    """Nodes n1, which is ours, n2 and so on, with these networks in IPv4."""
    nodes = {f"n{number}": Node(f"n{number}", ipv4=network) for number, network in enumerate(networks, start=1)}
    return Cluster(felix=felix, nodes=nodes, pools=pools)


OWN = network(1, KEY, interface_address=ip_address("10.42.0.1"))
WELL = cluster_of(OWN, network(2, OTHER), network(3))


def found(cluster: Cluster, facts: Facts = FACTS) -> tuple[Finding, ...]:
    return findings(cluster, "n1", {Family.IPV4: facts})


def only(cluster: Cluster, facts: Facts = FACTS) -> Finding:
    (finding,) = found(cluster, facts)
    return finding


def with_felix(**changes: Any) -> Cluster:
    return replace(WELL, felix=replace(ON, **changes))


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(WELL) == ()
    assert found(replace(WELL, felix=FelixConfiguration())) == ()
    assert findings(WELL, "n1", {}) == ()


def test_a_node_that_is_not_there_is_no_reason_to_fail() -> None:
    assert findings(WELL, "n9", {Family.IPV4: replace(FACTS, public_key=None)}) == ()


def test_what_is_not_known_is_not_found() -> None:
    assert found(WELL, Facts(table=5182, fwmask=0x1000, interface="wireguard.caliu")) == ()


@pytest.mark.parametrize(
    ("changes", "reason", "word"),
    [
        ({"selected": ("a", "c", "b")}, "SeveralConfigurations", "only a, the oldest, counts"),
        ({"lacks_ipv6": True}, "NoIPv6Support", "ipv6Support"),
        ({"route_source": "WorkloadIPs"}, "UnsupportedRouteSource", "routeSource: CalicoIPAM"),
        ({"syncs_routes": False}, "RoutesNotSynced", "routeSyncDisabled"),
        ({"table_ranges": ((1, 250), (5000, 6000))}, "TableTaken", "5000-6000"),
        ({"mark_mask": 0x3000}, "MarkTaken", "0x3000"),
        ({"mtu_interface_pattern": "^wire"}, "InterfaceNameMisleads", "mtuIfacePattern"),
    ],
)
def test_configuration_that_does_not_fit_is_found(changes: dict[str, Any], reason: str, word: str) -> None:
    finding = only(with_felix(**changes))

    assert finding.reason == reason
    assert word in finding.message


def test_routing_is_no_concern_while_everything_is_off() -> None:
    off = FelixConfiguration(route_source="WorkloadIPs", syncs_routes=False, mark_mask=0x3000, table_ranges=((1, 9999),))

    assert found(replace(WELL, felix=off)) == ()


@pytest.mark.parametrize(
    ("changes", "reason", "word"),
    [
        ({"fwmask": 0x4000}, "MarkTaken", "kube-proxy"),
        ({"fwmask": 0x200000}, "MarkTaken", "0xffff0000"),
        ({"table": 1}, "TableTaken", "1-250"),
        ({"interface": "caliwg"}, "InterfaceNameMisleads", "takes it for a pod's"),
        ({"felix_link_kind": "wireguard"}, "FelixHasWireguard", "wireguard.cali"),
        ({"felix_link_kind": "tun"}, "InterfaceNameTaken", "ip link delete wireguard.cali"),
        ({"pod_mtu": 1450}, "PodMtuTooLarge", "to 1440 and restart"),
    ],
)
def test_what_does_not_fit_on_this_host_is_found(changes: dict[str, Any], reason: str, word: str) -> None:
    finding = only(WELL, replace(FACTS, **changes))

    assert finding.reason == reason
    assert word in finding.message


def test_an_mtu_that_does_not_fit_the_underlay_is_found() -> None:
    def at(mtu: int, underlay: int) -> tuple[Finding, ...]:
        felix = replace(ON, ipv4=replace(ON.ipv4, mtu=mtu))
        return found(replace(WELL, felix=felix), replace(FACTS, underlay_mtu=underlay))

    assert (at(1440, 1500), at(0, 1400)) == ((), ())
    assert [finding.reason for finding in at(1441, 1500)] == ["MtuTooLarge"]
    assert "to 1340 at most" in at(1440, 1400)[0].message


def test_ipv6_has_more_overhead_and_a_field_of_its_own() -> None:
    felix = replace(ON, ipv4=FelixConfiguration().ipv4, ipv6=WireguardConfiguration(True, 51821, 1440, "wg-v6.cali"))
    facts = replace(FACTS, table=5183, interface="wg-v6.caliu")

    (finding,) = findings(Cluster(felix=felix, nodes={"n1": Node("n1")}), "n1", {Family.IPV6: facts})

    assert (finding.reason, finding.message[:19]) == ("MtuTooLarge", "wireguardMTUV6 1440")


def test_a_pool_without_nat_is_found_unless_hosts_are_encrypted_too() -> None:
    pools = (POOL, replace(POOL, cidr=ip_network("10.43.0.0/16"), nat_outgoing=False), Pool(ip_network("fd42::/64"), 122, True))

    assert (only(replace(WELL, pools=pools)).reason, only(replace(WELL, pools=pools)).subject) == (
        "NatOutgoingOff",
        "IPPool 10.43.0.0/16",
    )
    assert found(replace(with_felix(host_encryption=True), pools=pools)) == ()


def test_a_family_without_a_pool_for_its_tunnel_is_found_once_an_address_is_due() -> None:
    unpublished, published = cluster_of(network(1), pools=()), cluster_of(network(1, KEY), pools=())

    assert found(unpublished) == ()
    assert only(published).reason == "NoTunnelPool"
    assert found(replace(published, pools=(POOL,))) == ()
    assert only(replace(published, pools=(replace(POOL, allows_tunnels=False),))).reason == "NoTunnelPool"
    assert found(cluster_of(OWN, pools=())) == ()  # it has one: fixed, with host-local IPAM


def test_all_claimants_of_a_key_are_named_together() -> None:
    finding = only(cluster_of(OWN, network(2, OTHER), network(3, OTHER), network(4, bytes([3]) * 32)))

    assert (finding.reason, finding.subject) == ("DuplicateKey", "nodes n2, n3 (IPv4)")


def test_of_many_names_a_few_are_said() -> None:
    finding = only(cluster_of(OWN, *(network(number, OTHER) for number in range(2, 200))))

    assert finding.subject.count(",") == MOST_NAMES - 1
    assert "and 193 more" in finding.subject


def test_whoever_claims_our_key_is_found() -> None:
    one, two = cluster_of(OWN, network(2, KEY)), cluster_of(OWN, network(2, KEY), network(3, KEY))

    assert (only(one).reason, only(one).subject) == ("OwnKeyClaimed", "node n2 (IPv4)")
    assert (only(two).reason, only(two).subject) == ("OwnKeyClaimed", "nodes n2, n3 (IPv4)")


def test_a_key_without_an_address_is_found_with_others() -> None:
    finding = only(cluster_of(OWN, network(2, OTHER, address=None), network(3, address=None)))

    assert (finding.reason, finding.subject) == ("NoNodeAddress", "node n2")


def test_nodes_at_one_address_are_found_even_if_one_is_ours() -> None:
    finding = only(cluster_of(OWN, network(1, OTHER)))

    assert (finding.reason, finding.subject) == ("DuplicateAddress", "nodes n1, n2 (IPv4)")


def test_what_is_left_behind_while_off_is_found() -> None:
    def off(own: NodeNetwork) -> tuple[str, ...]:
        return tuple(finding.reason for finding in found(cluster_of(own, felix=FelixConfiguration())))

    assert off(network(1, KEY)) == ()  # ours: about to be withdrawn
    assert off(network(1, OTHER)) == ("StaleKey",)
    assert off(network(1, OTHER, interface_address=ip_address("10.42.0.1"))) == ("StaleKey",)
    assert off(network(1, interface_address=ip_address("10.42.0.1"))) == ("StaleInterfaceAddress",)


# Whatever may come

networks = st.builds(
    NodeNetwork,
    address=st.none() | st.sampled_from([ip_address("192.0.2.1"), ip_address("192.0.2.2")]),
    public_key=st.none() | st.sampled_from([KEY, OTHER]),
    interface_address=st.none() | st.just(ip_address("10.42.0.1")),
)
felixes = st.builds(
    FelixConfiguration,
    ipv4=st.builds(WireguardConfiguration, st.booleans(), st.just(51820), st.sampled_from([0, 1440, 9000]), st.just("wg")),
    ipv6=st.builds(WireguardConfiguration, st.booleans(), st.just(51821), st.sampled_from([0, 1440, 9000]), st.just("wg")),
    host_encryption=st.booleans(),
    route_source=st.sampled_from(["CalicoIPAM", "WorkloadIPs"]),
    syncs_routes=st.booleans(),
    lacks_ipv6=st.booleans(),
    selected=st.sampled_from([(), ("a",), ("b", "a")]),
    mark_mask=st.sampled_from([0xFFFF0000, 0xFFFF]),
    table_ranges=st.sampled_from([((1, 250),), ((1, 9999), (5000, 6000))]),
)
hosts = st.builds(
    Facts,
    table=st.sampled_from([1, 5182]),
    fwmask=st.sampled_from([0x1000, 0x4000]),
    interface=st.sampled_from(["wireguard.caliu", "eth9", "cali0"]),
    public_key=st.none() | st.just(KEY),
    underlay_mtu=st.none() | st.just(1500),
    interface_mtu=st.none() | st.just(1440),
    pod_mtu=st.none() | st.just(1500),
    felix_link_kind=st.none() | st.sampled_from(["wireguard", "tun"]),
)
pools = st.builds(
    Pool, st.sampled_from([ip_network("10.42.0.0/16"), ip_network("fd42::/64")]), st.just(64), st.booleans(), st.booleans()
)


@given(st.lists(st.tuples(networks, networks), max_size=5), felixes, st.lists(pools, max_size=3), hosts, hosts)
def test_every_finding_can_be_told_and_told_apart(
    both: list[tuple[NodeNetwork, NodeNetwork]], felix: FelixConfiguration, pools: list[Pool], ipv4: Facts, ipv6: Facts
) -> None:
    nodes = {f"n{number}": Node(f"n{number}", *pair) for number, pair in enumerate(both, start=1)}
    cluster = Cluster(felix=felix, nodes=nodes, pools=tuple(pools))

    all_found = findings(cluster, "n1", {Family.IPV4: ipv4, Family.IPV6: ipv6})

    for finding in all_found:
        assert finding.reason.isalnum()
        assert finding.reason[0].isupper()
        assert 20 < len(finding.message) < 500
        assert "\n" not in finding.subject + finding.message
    known = {(finding.reason, finding.subject) for finding in all_found}
    assert len(known) == len(all_found)


def test_no_private_key_can_be_among_the_facts() -> None:
    assert not [field.name for field in fields(Facts) if "private" in field.name]
