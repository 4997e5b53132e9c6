"""Which links the leak detector watches where nobody has named them."""

import socket
from ipaddress import ip_address
from typing import cast

import pytest

from controller.leaks import Detector
from controller.meshes.calico import observe
from controller.model import Address
from controller.netlink import FoundLink, Kernel, Underlay
from controller.state import Link
from controller.status import AgentStatus, SourceStatus
from tests.controller.cluster import node, objects

STATUS = AgentStatus(0.0, "n1", "calico", "1", SourceStatus("x"))


class FakeKernel:
    """A host with one link that has the node's address."""

    def __init__(self, name: str, kind: str) -> None:
        self._name, self._kind = name, kind

    def underlay(self, address: Address, interface: str | None = None) -> Underlay | None:
        return Underlay(self._name, 1500, False) if address == ip_address("192.0.2.1") else None

    def find_link(self, name: str) -> FoundLink | None:
        return FoundLink(7, self._kind, Link(is_up=True, mtu=1500)) if name == self._name else None


@pytest.mark.parametrize(
    ("name", "kind", "watched"),
    [("eth0", "", ["eth0"]), ("bond0", "bond", ["bond0"]), ("lo", "", []), ("node-ip", "dummy", [])],
)
def test_a_link_by_which_nothing_leaves_is_no_wire(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, watched: list[str]
) -> None:
    monkeypatch.setattr(socket, "if_nametoindex", lambda _: 7)
    cluster = observe(objects(node("n1", "192.0.2.1/24")), "n1").cluster

    assert list(Detector("n1", cast(Kernel, FakeKernel(name, kind))).look(cluster, STATUS).links) == watched
    assert list(Detector("n1", cast(Kernel, FakeKernel(name, kind)), [name]).look(cluster, STATUS).links) == [name]
