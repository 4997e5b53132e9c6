"""The agent on a real API server: who switches the mesh on, who joins it, who leaves it, and how long each takes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.lab import WG4, may_make_namespaces
from tests.kube.lab import KubeLab, make_kube_lab
from tests.kube.testbed import Testbed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]


@pytest.fixture
def lab(kube: Testbed, tmp_path: Path) -> Iterator[KubeLab]:
    with make_kube_lab(tmp_path, kube, "wk", is_admin=True) as lab:
        yield lab


def test_two_nodes_meet_when_somebody_switches_wireguard_on(lab: KubeLab) -> None:
    for number in (1, 2):
        lab.add_node(number).start_agent()
    lab.until(lambda: "not enabled in FelixConfiguration" in lab.nodes[1].log, "the agent waits")

    lab.kubectl("patch", "felixconfiguration", "default", "--type=merge", "-p", '{"spec":{"wireguardEnabled":true}}')

    lab.until_meshed(1, 2)
    assert lab.nodes[1].key() and lab.nodes[1].link(WG4)[0]
