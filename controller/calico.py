"""What Calico calls things: kinds, API groups, annotations (libcalico-go, ``lib/backend/k8s/resources/node.go``).

Constants only. What a cluster can configure, and Felix's defaults for it, are in :mod:`controller.model`.
"""

from dataclasses import dataclass

from controller.model import Family

API_VERSIONS = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
"""Those of Calico's own objects: the classic CRDs, and the native ones or the aggregated API server's."""

FELIX_CONFIGURATION = "FelixConfiguration"
IPAM_BLOCK = "IPAMBlock"
IP_POOL = "IPPool"
NODE = "Node"

KINDS = {
    NODE: ("v1",),
    FELIX_CONFIGURATION: API_VERSIONS,
    IPAM_BLOCK: API_VERSIONS,
    IP_POOL: API_VERSIONS,
}
"""The kinds the agent reads, each with the API versions it may come under."""

DEFAULT_CONFIGURATION = "default"
NODE_CONFIGURATION_PREFIX = "node."
PARAMETER_ANNOTATION_PREFIX = "config.projectcalico.org/"

HOST_AFFINITY_PREFIX = "host:"


@dataclass(frozen=True, slots=True)
class Annotations:
    """The names of one family's annotations on a Node.

    ``node_address`` is in CIDR form. ``public_key`` is base64 and the node's own to write. ``interface_address`` is bare;
    Calico's allocator writes it once there is a key. ``tunnel_addresses`` has every kind of tunnel.
    """

    node_address: str
    public_key: str
    interface_address: str
    tunnel_addresses: tuple[str, ...]


ANNOTATIONS = {
    Family.IPV4: Annotations(
        node_address="projectcalico.org/IPv4Address",
        public_key="projectcalico.org/WireguardPublicKey",
        interface_address="projectcalico.org/IPv4WireguardInterfaceAddr",
        tunnel_addresses=(
            "projectcalico.org/IPv4IPIPTunnelAddr",
            "projectcalico.org/IPv4VXLANTunnelAddr",
            "projectcalico.org/IPv4WireguardInterfaceAddr",
        ),
    ),
    Family.IPV6: Annotations(
        node_address="projectcalico.org/IPv6Address",
        public_key="projectcalico.org/WireguardPublicKeyV6",
        interface_address="projectcalico.org/IPv6WireguardInterfaceAddr",
        tunnel_addresses=(
            "projectcalico.org/IPv6VXLANTunnelAddr",
            "projectcalico.org/IPv6WireguardInterfaceAddr",
        ),
    ),
}
