"""Calico's names, typed in once more: they are a contract with others."""

from controller.calico import ANNOTATIONS, KINDS
from controller.model import Family


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
    assert KINDS["Node"] == ("v1",)
    assert {versions for kind, versions in KINDS.items() if kind != "Node"} == {
        ("crd.projectcalico.org/v1", "projectcalico.org/v3")
    }
