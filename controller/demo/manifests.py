"""The objects of a Calico cluster, as ``kubectl get -o yaml`` prints them.

Pure functions from the cluster's facts to objects (plain dicts). Only fields that Calico or the agent reads are there, in their
own places and formats: a Node's addresses are annotations in CIDR form, an IPAMBlock lists all of its addresses with an
index into the attributes of their owners, and so on (libcalico-go, ``lib/apis``). Writing them is the directory source's.
"""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from controller.demo.topology import Address, Interface, Network

Manifest = dict[str, Any]

BLOCK_PREFIX_LENGTH = {4: 26, 6: 122}  # Calico's default: blocks of 64 addresses in both families
POOL_NAME = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}
NAMESPACE = "demo"


def node(name: str, addresses: Sequence[Interface]) -> Manifest:
    """A core/v1 Node whose addresses calico-node has annotated. It has no key yet: the agent brings that."""
    annotations = {f"projectcalico.org/IPv{interface.version}Address": str(interface) for interface in addresses}
    internal = [{"type": "InternalIP", "address": str(interface.ip)} for interface in addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": annotations, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"addresses": [*internal, {"type": "Hostname", "address": name}]},
    }


def felix_configuration(versions: Sequence[int], *, enabled: bool = True) -> Manifest:
    """The FelixConfiguration ``default``, with WireGuard on or off for the IP ``versions`` (4, 6) the cluster has."""
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "FelixConfiguration",
        "metadata": {"name": "default"},
        "spec": {"wireguardEnabled": enabled and 4 in versions, "wireguardEnabledV6": enabled and 6 in versions},
    }


def ip_pool(cidr: Network) -> Manifest:
    """An IPPool without encapsulation, for pods and tunnel addresses."""
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPPool",
        "metadata": {"name": POOL_NAME[cidr.version]},
        "spec": {
            "cidr": str(cidr),
            "blockSize": BLOCK_PREFIX_LENGTH[cidr.version],
            "allowedUses": ["Workload", "Tunnel"],
            "ipipMode": "Never",
            "vxlanMode": "Never",
            "natOutgoing": True,
            "nodeSelector": "all()",
        },
    }


def ipam_block(cidr: Network, node: str, pods: Mapping[Address, str]) -> Manifest:
    """The IPAMBlock ``cidr``, affine to ``node``. ``pods`` maps the addresses taken in it to the names of their pods."""
    indices: list[int | None] = [None] * cidr.num_addresses
    for position, address in enumerate(pods):
        indices[int(address) - int(cidr.network_address)] = position
    return {
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPAMBlock",
        "metadata": {"name": block_name(cidr)},
        "spec": {
            "cidr": str(cidr),
            "affinity": f"host:{node}",
            "strictAffinity": False,
            "deleted": False,
            "allocations": indices,
            "unallocated": [index for index, taken in enumerate(indices) if taken is None],
            "attributes": [
                {
                    "handle_id": f"k8s-pod-network.{pod}",
                    "secondary": {"namespace": NAMESPACE, "node": node, "pod": pod},
                }
                for pod in pods.values()
            ],
        },
    }


def block_name(cidr: IPv4Network | IPv6Network) -> str:
    """``10-42-1-0-26``: a block's object name."""
    return str(cidr).replace(".", "-").replace(":", "-").replace("/", "-")


def pod(name: str, node: str, addresses: Sequence[Address]) -> Manifest:
    """A running Pod with its addresses."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"nodeName": node, "containers": [{"name": "pause", "image": "pause"}]},
        "status": {
            "phase": "Running",
            "podIP": str(addresses[0]),
            "podIPs": [{"ip": str(address)} for address in addresses],
        },
    }
