"""Nodes as network namespaces whose cluster is a real API server, reached over a network of its own.

The nodes are those of :mod:`tests.controller.lab`, each with a second interface, ``mgmt``, in 198.18.0.0/24. The API server
listens at 198.18.0.1 of the host. What is under test there, the tunnel, never carries that.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.controller.cluster import Manifest, felix, pool
from tests.controller.lab import Lab, Node, ip
from tests.kube.testbed import ApiError, Testbed

API_ADDRESS = "198.18.0.1"
SERVICE_ACCOUNT = "wgpy"
KINDS = {"Node": "v1"} | dict.fromkeys(("IPAMBlock", "IPPool", "FelixConfiguration"), "crd.projectcalico.org/v1")


@dataclass
class KubeLab(Lab):
    """A lab on ``kube``. The agents are who they are in a cluster: bound tokens of their ServiceAccount, on their node."""

    kube: Testbed = field(kw_only=True)
    is_admin: bool = field(default=False, kw_only=True)
    """The agents may do everything: for clusters in which deploy/ is not installed."""

    def open_cluster(self) -> None:
        self.kubeconfigs: dict[str, Path] = {}
        self.bridge = f"{self.prefix}m"
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{API_ADDRESS}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    def add_node(self, number: int) -> Node:
        namespace, outside = f"{self.prefix}n{number}", f"{self.prefix}m{number}"
        node = super().add_node(number)
        ip("link", "add", outside, "type", "veth", "peer", "name", "mgmt", "netns", namespace)
        ip("link", "set", outside, "master", self.bridge, "up")
        ip("-n", namespace, "addr", "add", f"198.18.0.{10 + number}/24", "dev", "mgmt")
        ip("-n", namespace, "link", "set", "mgmt", "up")
        return node

    def source_options(self, node: Node) -> list[str]:
        if node.name not in self.kubeconfigs:
            url = self.kube.url_at(API_ADDRESS)
            token = self.kube.admin_token if self.is_admin else self.kube.token(SERVICE_ACCOUNT, node=node.name)
            self.kubeconfigs[node.name] = self.kube.kubeconfig_for(token, url)
        return ["--kubeconfig", str(self.kubeconfigs[node.name])]

    def node_manifest(self, name: str) -> Manifest:
        manifest: Manifest = self.kube.get("Node", name)
        return manifest

    def allocate(self) -> None:
        """The allocator is a process of its own here (:mod:`tests.kube.allocator`)."""

    def put(self, manifest: Mapping[str, Any], name: str = "") -> None:
        api_version = KINDS[manifest["kind"]]
        self.kube.apply(dict(manifest) | {"apiVersion": api_version})

    def annotate(self, number: int, **annotations: str | None) -> None:
        named = {f"projectcalico.org/{name}": value for name, value in annotations.items()}
        self.kube.patch("Node", f"n{number}", {"metadata": {"annotations": named}})

    def kubectl(self, *words: str) -> str:
        return self.kube.kubectl(*words)

    def close(self) -> None:
        super().close()
        subprocess.run(["ip", "link", "del", self.bridge], check=False)
        for kind, version in KINDS.items():
            for name in self.kube.kubectl("get", kind.lower(), "-o", "name").split():
                try:
                    self.kube.delete(kind, name.partition("/")[2], version)
                except ApiError as error:
                    if error.status != 404:
                        raise


@contextmanager
def make_kube_lab(path: Path, kube: Testbed, prefix: str, *, is_admin: bool = False, **spec: Any) -> Iterator[KubeLab]:
    """A lab with pools of both families, and WireGuard configured as ``spec`` says: not at all, if it says nothing."""
    lab = KubeLab(path, prefix, kube=kube, is_admin=is_admin)
    try:
        lab.put(pool("10.42.0.0/16", natOutgoing=True))
        lab.put(pool("fd00:42::/32", natOutgoing=True))
        lab.put(felix(**spec))
        yield lab
    finally:
        lab.close()
