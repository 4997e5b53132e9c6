"""Objects of a Calico cluster for tests, each a function of what the test is about."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import yaml

from controller.source import Objects, Ref
from wgpy.wgconf import format_key

Manifest = dict[str, Any]

KEYS = {name: bytes([number]) * 32 for number, name in enumerate(("n1", "n2", "n3", "n4"), start=1)}
"""A public key for each node (any 32 bytes are one)."""


def node(name: str, address: str | None = None, annotations: Mapping[str, str] | None = None, **spec: Any) -> Manifest:
    own = {} if address is None else {"projectcalico.org/IPv4Address": address}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": own | dict(annotations or {})},
        "spec": spec,
    }


def keyed(name: str, address: str, interface_address: str | None = None, key: bytes | None = None) -> Manifest:
    """A node with a public key."""
    annotations = {"projectcalico.org/WireguardPublicKey": format_key(key or KEYS[name])}
    if interface_address:
        annotations["projectcalico.org/IPv4WireguardInterfaceAddr"] = interface_address
    return node(name, address, annotations)


def block(cidr: str, owner: str | None, borrowed: Mapping[str, str] | None = None, **spec: Any) -> Manifest:
    """A block affine to ``owner``; ``borrowed`` maps addresses in it to the nodes that hold them."""
    network = ip_network(cidr)
    allocations: list[int | None] = [None] * network.num_addresses
    attributes = []
    for index, (address, holder) in enumerate((borrowed or {}).items()):
        allocations[int(ip_network(address).network_address) - int(network.network_address)] = index
        attributes.append({"handle_id": f"k8s-pod-network.{index}", "secondary": {"node": holder}})
    affinity = {} if owner is None else {"affinity": f"host:{owner}"}
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPAMBlock",
        "metadata": {"name": cidr.translate(str.maketrans(".:/", "---"))},
        "spec": {"cidr": cidr, "allocations": allocations, "attributes": attributes, **affinity, **spec},
    }


def pool(cidr: str, **spec: Any) -> Manifest:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": cidr.translate(str.maketrans(".:/", "---"))},
        "spec": {"cidr": cidr, **spec},
    }


def felix(name: str = "default", annotations: Mapping[str, str] | None = None, **spec: Any) -> Manifest:
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "FelixConfiguration",
        "metadata": {"name": name, "annotations": dict(annotations or {})},
        "spec": spec,
    }


def objects(*manifests: Manifest) -> Objects:
    return {Ref(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def text(manifest: Manifest) -> str:
    return yaml.safe_dump(manifest, sort_keys=False)
