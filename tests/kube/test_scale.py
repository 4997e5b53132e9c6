"""How large a cluster may be: the agent among thousands of nodes, on a real API server.

What is measured is the agent's own process (CPU seconds, resident megabytes) and the time until the kernel has a route. The
nodes are as large as real ones are, with 14 KB of labels, images and conditions that do not concern us, and their blocks full
of pods.
"""

import os
import time
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.controller.cluster import Manifest, block, node
from tests.controller.lab import WG4, Node, may_make_namespaces
from tests.kube.lab import API_ADDRESS, KubeLab, make_kube_lab
from tests.kube.testbed import Testbed, usage

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

BLOCKS = 3
FIRST_ADDRESS = ip_address("10.43.0.0")
"""Of the first block; 64 addresses each."""
UPDATES_SECONDS = 20.0
REST_SECONDS = 20.0
OWN = "n1"


def address_of(index: int, number: int = 0) -> Any:
    """The first address of a node's block."""
    return FIRST_ADDRESS + 64 * (BLOCKS * index + number)


def large_node(random: Random, index: int) -> Manifest:
    """A Node as large as real ones are."""
    underlay = str(ip_address("10.128.0.0") + index)
    annotations = {
        "projectcalico.org/IPv4Address": f"{underlay}/9",
        "projectcalico.org/WireguardPublicKey": b64encode(random.randbytes(32)).decode(),
        "projectcalico.org/IPv4WireguardInterfaceAddr": str(address_of(index) + 1),
    }
    manifest = node(f"large-{index:05d}", None, annotations)
    manifest["metadata"]["labels"] = {f"label-{number}.example.com/name": "value" * 4 for number in range(30)}
    image = {"names": [f"registry.example/image@sha256:{'a' * 64}", "registry.example/image:v1"], "sizeBytes": 12345}
    condition = {
        "status": "True",
        "reason": "KubeletReady",
        "message": "all is well " * 5,
        "lastHeartbeatTime": "2026-01-01T00:00:00Z",
    }
    manifest["status"] = {
        "addresses": [{"type": "InternalIP", "address": underlay}],
        "images": [image] * 70,
        "conditions": [condition | {"type": kind} for kind in ("Ready", "DiskPressure", "MemoryPressure", "PIDPressure")],
    }
    return manifest


def full_blocks(index: int) -> list[Manifest]:
    owner = f"large-{index:05d}"
    blocks = []
    for number in range(BLOCKS):
        manifest = block(f"{address_of(index, number)}/26", owner)
        for pod in range(30):
            manifest["spec"]["allocations"][pod] = pod
            secondary = {"namespace": "default", "node": owner, "pod": f"pod-{pod}-abcdefghij-xyz", "timestamp": "2026-01-01"}
            manifest["spec"]["attributes"].append({"handle_id": f"k8s-pod-network.{pod:032x}", "secondary": secondary})
        blocks.append(manifest)
    return blocks


class Crowd:
    """A cluster of ``size`` nodes, and the agent of one of them."""

    def __init__(self, lab: KubeLab, size: int) -> None:
        self.lab, self.size = lab, size
        self.random = Random(size)
        self.me: Node = lab.add_node(1)
        lab.kube.apply(*(large_node(self.random, index) for index in range(1, size)))
        lab.kube.apply(*(manifest for index in range(1, size) for manifest in full_blocks(index)))

    def start(self) -> float:
        """Start the agent; the seconds until it is in the mesh, with all others as its peers."""
        began = time.monotonic()
        self.me.start_agent()
        self.lab.until(lambda: "in the mesh" in self.me.log, "the agent is ready", seconds=60)
        seconds = time.monotonic() - began
        assert self.me.run("wg", "show", WG4, "peers").count("\n") == self.size - 1
        (self.pid,) = self.me.processes("-m controller agent")
        self.lab.annotate(1, IPv4WireguardInterfaceAddr="10.42.1.1")  # as Calico's allocator would
        self.lab.until(lambda: self.me.link(WG4)[2] == ["10.42.1.1/32"], "it has its address")
        return seconds

    def cpu_share(self, seconds: float) -> float:
        """Which part of a core the agent takes in the next so many seconds, in percent."""
        before, _ = usage(self.pid)
        time.sleep(seconds)
        after, _ = usage(self.pid)
        return 100 * (after - before) / seconds

    def update_others(self, seconds: float) -> None:
        """Ten times a second a Node changes in what does not concern us."""
        began, number = time.monotonic(), 0
        while time.monotonic() < began + seconds:
            name = f"large-{self.random.randrange(1, self.size):05d}"
            self.lab.kube.patch("Node", name, {"metadata": {"labels": {"changes": str(number)}}})
            number += 1
            time.sleep(max(0.0, began + number / 10 - time.monotonic()))

    def join(self, index: int) -> float:
        """One more node comes; the seconds until we have a route to its pods."""
        before = time.monotonic()
        self.lab.kube.apply(large_node(self.random, index), full_blocks(index)[0])
        prefix = f"{address_of(index)}/26"
        while WG4 not in self.me.run("ip", "route", "show", "table", "5182", prefix):
            assert time.monotonic() < before + 30, f"no route to {prefix}"
            time.sleep(0.005)
        seconds = time.monotonic() - before
        time.sleep(1)  # nodes come one by one
        return seconds


@pytest.fixture
def lab(need_kube: None, tmp_path: Path) -> Iterator[KubeLab]:
    with Testbed.start(tmp_path / "kube", addresses=[API_ADDRESS]) as testbed:
        testbed.install_calico_crds()
        with make_kube_lab(tmp_path, testbed, f"ws{os.getpid()}", is_admin=True, wireguardEnabled=True) as lab:
            yield lab


def test_a_hundred_nodes(lab: KubeLab, figures: dict[str, str]) -> None:
    crowd = Crowd(lab, 100)
    ready = crowd.start()
    joined = crowd.join(100)
    figures["100 nodes: ready, a node joins"] = f"{ready:.2f} s, {joined:.2f} s"


@pytest.mark.long
def test_a_thousand_nodes(lab: KubeLab, figures: dict[str, str]) -> None:
    crowd = Crowd(lab, 1000)

    ready = crowd.start()
    time.sleep(15)  # the objects it remembers are written once more
    rest = crowd.cpu_share(REST_SECONDS)
    before, _ = usage(crowd.pid)
    crowd.update_others(UPDATES_SECONDS)
    after, _ = usage(crowd.pid)
    updates = 100 * (after - before) / UPDATES_SECONDS
    joins = sorted(crowd.join(1000 + number) for number in range(20))
    _, megabytes = usage(crowd.pid)

    figures["1,000 nodes: ready (limit 5 s)"] = f"{ready:.2f} s"
    figures["1,000 nodes: resident (limit 150 MB)"] = f"{megabytes:.0f} MB"
    figures["1,000 nodes: CPU with 10 unrelated updates a second (limit 3 %)"] = f"{updates:.2f} %"
    figures["1,000 nodes: CPU at rest"] = f"{rest:.2f} %"
    figures["1,000 nodes: a node joins, to its route"] = f"median {joins[10]:.2f} s, longest {joins[-1]:.2f} s"
    assert ready < 5 and megabytes < 150 and updates < 3 and rest < 0.2 and joins[-1] < 1


@pytest.mark.long
def test_five_thousand_nodes(lab: KubeLab, figures: dict[str, str]) -> None:
    crowd = Crowd(lab, 5000)

    ready = crowd.start()
    joined = crowd.join(5000)
    _, megabytes = usage(crowd.pid)

    figures["5,000 nodes: ready (limit 20 s)"] = f"{ready:.2f} s, {megabytes:.0f} MB, a node joins in {joined:.2f} s"
    assert ready < 20
