"""The API server is gone. Packets flow on, nothing changes, an agent that starts meanwhile goes by what it remembers; and what
changes after the return takes effect soon.

It is gone in both ways: first it hangs (etcd and itself stopped: connections are accepted and nothing is answered), then it is
killed (connections are refused). Two nodes of ours ping each other all the time.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.cluster import block
from tests.controller.lab import WG4, WG6, may_make_namespaces
from tests.kube.lab import API_ADDRESS, KubeLab, make_kube_lab, pings
from tests.kube.testbed import API_SERVER, ETCD, Testbed
from tests.promises import Promises

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

BACK_SECONDS = 5.0


@pytest.fixture
def lab(need_kube: None, tmp_path: Path) -> Iterator[KubeLab]:
    """Two nodes of ours that encrypt to each other, on an API server of their own."""
    with Testbed.start(tmp_path / "kube", addresses=[API_ADDRESS]) as kube:
        kube.install_calico_crds()
        with make_kube_lab(tmp_path, kube, "wo", wireguardEnabled=True, wireguardEnabledV6=True) as lab:
            for number in (1, 2):
                lab.add_node(number)
                lab.add_pod(number)
                lab.nodes[number].start_agent()
            lab.start_allocator(1, 2)
            lab.until_meshed(1, 2)
            lab.until_meshed(1, 2, version=6)
            lab.until_pods_meet((1, 2), (2, 1))
            for node in lab.nodes.values():
                lab.until(lambda node=node: node.link(WG4)[2] and node.link(WG6)[2], "interface addresses")  # type: ignore[misc]
            yield lab


@pytest.mark.parametrize("seconds", [15.0, *(pytest.param(seconds, marks=pytest.mark.long) for seconds in (60.0, 600.0))])
def test_an_api_server_that_is_gone_costs_no_packet_and_changes_nothing(lab: KubeLab, seconds: float, promises: Promises) -> None:
    one = lab.nodes[1]
    lab.until(lambda: is_remembered(lab), "the cluster is remembered", seconds=20)
    before = {number: node.everything() for number, node in lab.nodes.items()}

    with pings(lab, (1, 2), (2, 1)) as traffic:
        ends = time.monotonic() + seconds
        lab.kube.stop(ETCD)
        lab.kube.stop(API_SERVER)
        time.sleep(seconds / 3)
        restart_agent(lab)
        assert {number: node.everything() for number, node in lab.nodes.items()} == before, "while it hangs"

        lab.kube.kill(API_SERVER)
        lab.kube.go_on(ETCD)
        time.sleep(1.0)
        restart_agent(lab)
        time.sleep(max(0.0, ends - time.monotonic()))
        assert {number: node.everything() for number, node in lab.nodes.items()} == before, "while it is not there"

        lab.kube.restart_apiserver()
        back_at = time.monotonic()
        lab.put(block("10.42.222.0/26", "n2"))
        lab.until(lambda: one.routes().get("10.42.222.0/26") == WG4, "n1 hears of it")
        lab.until(lambda: lab.nodes[2].routes().get("10.42.222.0/26") == "throw", "and n2")
        took = time.monotonic() - back_at
        for each in traffic:
            assert each.lost() == [], each.what
            assert each.stop() > 18 * seconds, "there were packets to lose"

    promises.judge(f"API server back after {seconds:.0f} s to its changes in effect", took, BACK_SECONDS)
    assert "Traceback" not in one.log


def is_remembered(lab: KubeLab) -> bool:
    """Whether both agents have on disk what they know: each other's address is the last that came."""
    for number, other in ((1, 2), (2, 1)):
        address = lab.nodes[other].link(WG6)[2][0].partition("/")[0]
        if address not in (lab.nodes[number].state / "objects.json").read_text():
            return False
    return True


def restart_agent(lab: KubeLab) -> None:
    """End n1's agent, and have another one, which has nobody to ask."""
    one, seen = lab.nodes[1], len(lab.nodes[1].log)
    lab.kill_agent(1, signal.SIGTERM)
    one.start_agent()
    lab.until(lambda: "in the mesh" in one.log[seen:], "the next agent goes by what is remembered")
    assert "going by the cluster as it was last" in one.log[seen:]
