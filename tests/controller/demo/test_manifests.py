from ipaddress import ip_address, ip_interface, ip_network

import pytest
import yaml

from controller.demo import manifests
from controller.demo.topology import Address, Network

ADDRESSES = [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]


def test_a_node_has_its_addresses_as_calico_and_kubernetes_write_them() -> None:
    node = manifests.node("n1", ADDRESSES)

    assert node["metadata"]["annotations"] == {
        "projectcalico.org/IPv4Address": "10.77.0.1/24",
        "projectcalico.org/IPv6Address": "fd77::1/64",
    }
    assert {"type": "InternalIP", "address": "10.77.0.1"} in node["status"]["addresses"]


@pytest.mark.parametrize(("versions", "enabled", "spec"), [
    ([4, 6], True, (True, True)),
    ([4], True, (True, False)),
    ([4, 6], False, (False, False)),
])  # fmt: skip
def test_felix_is_configured_for_the_families_there_are(versions: list[int], enabled: bool, spec: tuple[bool, bool]) -> None:
    felix = manifests.felix_configuration(versions, enabled=enabled)

    assert felix["metadata"]["name"] == "default"
    assert (felix["spec"]["wireguardEnabled"], felix["spec"]["wireguardEnabledV6"]) == spec


@pytest.mark.parametrize(
    ("cidr", "pod"),
    [(ip_network("10.42.1.64/26"), ip_address("10.42.1.66")), (ip_network("fd42::140/122"), ip_address("fd42::142"))],
)
def test_a_block_says_who_has_which_address(cidr: Network, pod: Address) -> None:
    spec = manifests.ipam_block(cidr, "n1", {cidr[1]: "a", pod: "b"})["spec"]

    assert spec["affinity"] == "host:n1"
    assert len(spec["allocations"]) == 64
    assert [index for index, owner in enumerate(spec["allocations"]) if owner is not None] == [1, 2]
    owner = spec["attributes"][spec["allocations"][2]]
    assert owner["secondary"] == {"namespace": "demo", "node": "n1", "pod": "b"}
    assert set(spec["unallocated"]) == set(range(64)) - {1, 2}


def test_blocks_have_names_that_kubernetes_takes() -> None:
    assert manifests.block_name(ip_network("10.42.1.64/26")) == "10-42-1-64-26"
    assert manifests.block_name(ip_network("fd42::140/122")) == "fd42--140-122"


def test_every_object_is_plain_yaml_and_says_what_it_is() -> None:
    pool, pod = ip_network("10.42.0.0/16"), ip_address("10.42.1.1")
    objects = [
        manifests.node("n1", ADDRESSES),
        manifests.felix_configuration([4, 6]),
        manifests.ip_pool(pool),
        manifests.ipam_block(ip_network("10.42.1.0/26"), "n1", {pod: "a"}),
        manifests.pod("a", "n1", [pod, ip_address("fd42::101")]),
    ]

    for manifest in objects:
        assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
        assert manifest["apiVersion"] and manifest["kind"] and manifest["metadata"]["name"]
