"""The Node's condition ``WireGuardReady`` on a real API server: an agent keeps it, and its policy lets it write no other."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.condition import TYPE, Condition, patch
from controller.reporter import CONDITION_SECONDS
from tests.controller.lab import WG4, may_make_namespaces
from tests.kube.lab import KubeLab, make_kube_lab
from tests.kube.testbed import ApiError, Testbed, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

STRATEGIC_MERGE = "application/strategic-merge-patch+json"
FOREIGN = [
    {"type": "MemoryPressure", "status": "False", "reason": "Enough"},
    {"type": "Ready", "status": "True", "reason": "KubeletReady"},
]
SAID = Condition(True, "PeersAnswer", "all is well")


@pytest.fixture
def lab(kube: Testbed, tmp_path: Path) -> Iterator[KubeLab]:
    with make_kube_lab(tmp_path, kube, f"c{os.getpid()}x", wireguardEnabled=True) as lab:
        for number in (1, 2):
            lab.add_node(number)
            images = [{"names": ["an/image"], "sizeBytes": 7}]
            kube.patch("Node", f"n{number}", {"status": {"conditions": FOREIGN, "images": images}}, subresource="/status")
        yield lab


def conditions(lab: KubeLab, name: str = "n1") -> dict[str, Any]:
    return {one["type"]: one for one in lab.kube.get("Node", name)["status"]["conditions"]}


def said(lab: KubeLab, name: str = "n1") -> tuple[str, str] | None:
    """Status and reason of ours, None if there is none."""
    found = conditions(lab, name).get(TYPE)
    return (found["status"], found["reason"]) if found else None


def refusal(lab: KubeLab, node: str, status: dict[str, Any]) -> str:
    """Why the agent of n1 is refused what it writes to a Node's status; empty if it is not."""
    try:
        token = lab.kube.token("wgpy", node="n1")
        lab.kube.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": status}, STRATEGIC_MERGE, token)
    except ApiError as error:
        return str(error)
    return ""


def test_an_agent_says_that_it_is_ready_that_it_is_not_and_nothing_once_it_has_left(lab: KubeLab) -> None:
    one, two = lab.nodes[1], lab.nodes[2]
    run = (sys.executable, "-m", "wgpy", "run", WG4, "--persist")
    one.start(*run)
    one.start_agent("--resync", "1", "--no-spawn")
    two.start_agent("--resync", "1")
    lab.until_meshed(1, 2)
    lab.until(lambda: said(lab) == said(lab, "n2") == ("True", "PeersAnswer"), "both are ready")
    before = conditions(lab)[TYPE]

    lab.kill_data_plane(1)
    lab.until(lambda: said(lab) == ("False", "NotReady"), "it is not ready", seconds=CONDITION_SECONDS + 10)
    assert conditions(lab)[TYPE]["message"].startswith("IPv4: waiting for a data plane")
    assert conditions(lab)[TYPE]["lastTransitionTime"] > before["lastTransitionTime"]
    one.start(*run)
    lab.until(lambda: said(lab) == ("True", "PeersAnswer"), "it is ready again", seconds=CONDITION_SECONDS + 10)

    one.agents[0].terminate()
    one.agents[0].wait(10)
    assert said(lab) is not None, "an agent that ends takes nothing back"
    done = one.run_agent(verb="leave")
    assert done.returncode == 0, done.stderr
    assert said(lab) is None
    kept = {name: {key: found[key] for key in ("status", "reason")} for name, found in conditions(lab).items()}
    assert kept == {one["type"]: {"status": one["status"], "reason": one["reason"]} for one in FOREIGN}
    assert "cannot write the Node's condition" not in one.log + two.log


def test_the_policy_lets_an_agent_write_this_condition_of_its_node_and_no_other(lab: KubeLab) -> None:
    now = time.time()
    until(lambda: "own Node only" in refusal(lab, "n2", dict(patch(SAID, now, now)["status"])), "the policy is in force")

    assert refusal(lab, "n1", dict(patch(SAID, now, now)["status"])) == ""
    assert said(lab) == ("True", "PeersAnswer")
    assert refusal(lab, "n1", dict(patch(SAID._replace(is_true=False), now, now)["status"])) == ""
    for status in (
        {"conditions": [{"type": "Ready", "status": "False"}]},
        {"conditions": [{"type": "Ready", "$patch": "delete"}]},
        {"conditions": [{"type": "New", "status": "True"}]},
        {"conditions": [*patch(SAID, now, now)["status"]["conditions"], {"type": "New", "status": "True"}]},
        {"addresses": [{"type": "InternalIP", "address": "10.9.9.9"}]},
        {"images": None},
        {"phase": "Running"},
        {"volumesInUse": ["a/b"]},
        {"nodeInfo": {"kernelVersion": "9"}},
        {"runtimeHandlers": [{"name": "x"}]},
    ):
        assert "the condition WireGuardReady only, not the rest of the Node's status" in refusal(lab, "n1", status), status
    assert refusal(lab, "n1", dict(patch(None, now, now)["status"])) == ""
    assert said(lab) is None
    assert list(conditions(lab)) == ["MemoryPressure", "Ready"]
