"""The defaults are Felix's (config_params.go)."""

from controller.model import Family, FelixConfiguration, Node, NodeNetwork


def test_felix_has_wireguard_off_and_these_numbers() -> None:
    felix = FelixConfiguration()

    assert (felix.of(Family.IPV4).enabled, felix.of(Family.IPV4).port, felix.of(Family.IPV4).interface) == (
        False,
        51820,
        "wireguard.cali",
    )
    assert (felix.of(Family.IPV6).enabled, felix.of(Family.IPV6).port, felix.of(Family.IPV6).interface) == (
        False,
        51821,
        "wg-v6.cali",
    )
    assert (felix.rule_priority, felix.keepalive, felix.host_encryption) == (99, 0, False)


def test_a_node_has_a_network_in_each_family() -> None:
    ipv6 = NodeNetwork(public_key=bytes(32))

    assert Node("n1", ipv6=ipv6).of(Family.IPV6) == ipv6
    assert Node("n1", ipv6=ipv6).of(Family.IPV4) == NodeNetwork()
