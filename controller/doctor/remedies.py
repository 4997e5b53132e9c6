"""Why what the agent finds in the cluster matters, and the commands that mend it, by the finding's reason. Pure.

A finding's message (:mod:`controller.findings`) says what is wrong and names the field; here is what to type. In a command
``{node}`` is this node, ``{subject}`` what the finding is about without its first word, ``{state}`` the agent's state directory.
What stands in capitals is for the reader to fill in. Reasons that are not here have no command of their own.
"""

from dataclasses import dataclass

from controller.findings import Finding


@dataclass(frozen=True, slots=True)
class Remedy:
    """Why it matters, and what to type."""

    why: str
    commands: tuple[str, ...]


RESTART = (
    "kubectl -n kube-system delete pod -l app.kubernetes.io/name=wgpy --field-selector spec.nodeName={node}"
    "   # without Kubernetes: start wgpy agent again"
)
"""The agent's pod, which is started again; the data plane's interface stays."""

_PATCH = "kubectl patch felixconfigurations.crd.projectcalico.org default --type merge -p '{\"spec\":{{fields}}}'"


def filled(command: str, **values: str) -> str:
    """The command with its names filled in. Other braces stay: there is JSON in some."""
    for name, value in values.items():
        command = command.replace(f"{{{name}}}", value)
    return command


def _felix(fields: str) -> str:
    return filled(_PATCH, fields=fields)


_NEW_KEY = "rm {state}/ipv4.key {state}/ipv6.key   # on all but one of these nodes, then there:"

REMEDIES = {
    "SeveralConfigurations": Remedy(
        "which of them is in force depends on their age alone, and an edit of another one does nothing",
        ("kubectl get felixconfigurations.crd.projectcalico.org -o yaml",),
    ),
    "NoIPv6Support": Remedy("IPv6 pods talk in clear", (_felix('"ipv6Support":true'),)),
    "UnsupportedRouteSource": Remedy("which pods are behind which node is not known", (_felix('"routeSource":"CalicoIPAM"'),)),
    "RoutesNotSynced": Remedy("nothing is encrypted", (_felix('"routeSyncDisabled":false'),)),
    "NatOutgoingOff": Remedy(
        "a pod's packet to a node leaves in clear with the pod's own address, and the answer comes back through the "
        "tunnel, where it is dropped",
        (
            "kubectl get ippools.crd.projectcalico.org -o custom-columns=NAME:.metadata.name,CIDR:.spec.cidr | grep '{subject}'",
            'kubectl patch ippools.crd.projectcalico.org NAME --type merge -p \'{"spec":{"natOutgoing":true}}\'',
        ),
    ),
    "NoTunnelPool": Remedy(
        "other nodes drop what this node itself sends to their pods (probes, webhooks, the API server's calls)",
        ("kubectl get ippools.crd.projectcalico.org -o yaml   # see allowedUses and nodeSelector",),
    ),
    "NoInterfaceAddress": Remedy(
        "other nodes drop what this node itself sends to their pods",
        ("kubectl -n calico-system delete pod -l k8s-app=calico-node --field-selector spec.nodeName={node}",),
    ),
    "NoNodeAddress": Remedy(
        "its pods are talked to in clear",
        ("kubectl -n calico-system set env daemonset/calico-node IP_AUTODETECTION_METHOD=kubernetes-internal-ip",),
    ),
    "OwnKeyClaimed": Remedy(
        "who has the same key can read this node's traffic, and nothing between the two is encrypted",
        (_NEW_KEY, RESTART),
    ),
    "DuplicateKey": Remedy(
        "a key is one node's: peers would send the packets of all of them to whichever spoke last, so nothing to any of them is "
        "encrypted",
        (_NEW_KEY, RESTART.replace("{node}", "THAT-NODE")),
    ),
    "DuplicateAddress": Remedy(
        "packets for one of them reach the other",
        ("kubectl annotate node NODE --overwrite projectcalico.org/IPv4Address=ADDRESS/LENGTH",),
    ),
    "FelixHasWireguard": Remedy(
        "two of them for one node are one too many; this one rests",
        ("kubectl label --overwrite node {node} wgpy.io/wireguard=off   # and the pod goes",),
    ),
    "InterfaceNameTaken": Remedy("Felix fails and starts again ten times a second", ("ip link delete {subject}",)),
    "MtuTooLarge": Remedy(
        "large packets are lost or cut in two, and connections hang", (_felix('"wireguardMTU":0,"wireguardMTUV6":0'),)
    ),
    "PodMtuTooLarge": Remedy(
        "connections that send much hang wherever ICMP is filtered",
        ("cat /var/lib/calico/mtu   # what pods are given", _felix('"wireguardMTU":0')),
    ),
    "TableTaken": Remedy(
        "Felix deletes routes there that are not its own, and packets go in clear",
        (
            "kubectl get felixconfigurations.crd.projectcalico.org -o jsonpath='{.items[*].spec.routeTableRanges}'",
            "wgpy agent --table NUMBER --table-v6 NUMBER   # outside of these, in its DaemonSet",
        ),
    ),
    "MarkTaken": Remedy(
        "packets that somebody else marks go past the tunnel, in clear",
        (
            "kubectl get felixconfigurations.crd.projectcalico.org -o jsonpath='{.items[*].spec.iptablesMarkMask}'",
            "wgpy agent --fwmark MARK/MARK   # a bit that is not among these, nor 0x4000 or 0x8000, in its DaemonSet",
        ),
    ),
    "InterfaceNameMisleads": Remedy("Felix drops its packets, or lowers all MTUs", ("wgpy agent --interface wireguard.caliu",)),
    "StaleKey": Remedy(
        "others encrypt to a key that nobody has, and their packets are lost",
        ("kubectl annotate node {node} projectcalico.org/WireguardPublicKey- projectcalico.org/WireguardPublicKeyV6-",),
    ),
    "StaleInterfaceAddress": Remedy(
        "BIRD may leave out plain routes because of it",
        ("kubectl -n calico-system delete pod -l k8s-app=calico-node --field-selector spec.nodeName={node}",),
    ),
    "MalformedObject": Remedy("what cannot be read counts as absent", ("kubectl edit {whole}",)),
    "ExternalPeerRefused": Remedy("that peer is not reached through the tunnel", ("$EDITOR EXTERNAL-PEERS-FILE",)),
}

UNKNOWN = Remedy("see the message", ("kubectl describe node {node}",))


def remedy(finding: Finding, node: str, state: str) -> Remedy:
    """What belongs to a finding, with the names filled in."""
    found = REMEDIES.get(finding.reason, UNKNOWN)
    names = {
        "node": node,
        "state": state,
        "whole": finding.subject,
        "subject": finding.subject.partition(" ")[2] or finding.subject,
    }
    return Remedy(found.why, tuple(filled(command, **names) for command in found.commands))
