"""The operator's commands on a real API server, with the token that the agent has: right against ``wg show`` and the wire."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.controller.cluster import block
from tests.controller.lab import ROOT, WG4, may_make_namespaces
from tests.kube.lab import PODS, KubeLab, make_kube_lab
from tests.kube.testbed import Testbed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]


def with_pod(number: int) -> dict[str, Any]:
    """The block of a node, with its pod in it, as Calico's IPAM writes it."""
    allocations = [0 if index == 5 else None for index in range(64)]
    attributes = [{"handle_id": "x", "secondary": {"namespace": "default", "pod": f"web-{number}", "node": f"n{number}"}}]
    return block(f"10.42.{number}.0/26", f"n{number}", allocations=allocations, attributes=attributes)


@pytest.fixture(scope="module")
def lab(kube: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    """Two nodes of ours that encrypt, with a pod on each."""
    with make_kube_lab(tmp_path_factory.mktemp("commands"), kube, "wo", wireguardEnabled=True) as made:
        for number in (1, 2):
            made.add_node(number)
            made.add_pod(number)
            made.put(with_pod(number))
        made.start_allocator(1, 2)
        for number in (1, 2):
            made.nodes[number].start_agent("--resync", "1")
        made.until_meshed(1, 2)
        made.until_pods_meet((1, 2), versions=(4,))
        yield made


def ask(lab: KubeLab, verb: str, *options: str, program: tuple[str, ...] | None = None) -> tuple[int, Any]:
    """The exit status of a command on n1, and its document."""
    one = lab.nodes[1]
    words = one.agent_words("--output", "json", *options, verb=verb)
    words = words if program is None else [*program, *words[4:]]
    done = subprocess.run(one.command(*words), capture_output=True, text=True, timeout=90, check=False, cwd=ROOT)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def reasons(report: Any) -> dict[str, str]:
    return {one["reason"]: one["what"] for check in report["checks"] for one in check["findings"]}


def test_doctor_finds_a_healthy_mesh_healthy(lab: KubeLab) -> None:
    last: dict[str, str] = {}

    def is_healthy() -> bool:
        nonlocal last
        status, report = ask(lab, "doctor")
        last = reasons(report)
        return status == 0 and not last

    try:
        lab.until(is_healthy, "a healthy mesh")
    except pytest.fail.Exception:
        pytest.fail(f"the doctor finds {last}")


def test_mesh_says_what_wg_says_and_verify_proves_it(lab: KubeLab) -> None:
    lab.until(lambda: ask(lab, "mesh")[0] == 0, "all is as it ought to be")
    status, found = ask(lab, "mesh")
    (line,) = lab.nodes[1].run("wg", "show", WG4, "dump").splitlines()[1:]
    key, _psk, endpoint, _allowed, handshake, *_ = line.split("\t")
    (peer,) = found["families"][0]["peers"]
    assert (peer["public_key"], peer["endpoint"], int(peer["last_handshake"])) == (key, endpoint, int(handshake))
    assert peer["pods"] == [{"address": PODS[4].format(2), "name": "default/web-2"}]
    assert found["families"][0]["pods"] == [{"address": PODS[4].format(1), "name": "default/web-1"}]

    status, report = ask(lab, "verify")
    (pair,) = report["pairs"]
    assert (status, pair["verdict"], pair["why"], pair["frames_in_clear"]) == (0, "encrypted", "and answered", 0)
    assert (pair["from"], pair["to"]) == (PODS[4].format(1), PODS[4].format(2))


WRONG_CLOCK = """
import sys, time
real = time.time
time.time = lambda: real() + {seconds}
from controller.cli import doctor
sys.exit(doctor(sys.argv[1:]))
"""


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_wrong_clock_is_known_from_the_api_server(lab: KubeLab, seconds: int) -> None:
    status, report = ask(lab, "doctor", program=(sys.executable, "-c", WRONG_CLOCK.format(seconds=seconds)))

    assert status == 1
    assert "ClockWrong" in reasons(report)
    assert f"60 min {'behind' if seconds < 0 else 'ahead of'} the API server's" in reasons(report)["ClockWrong"]


def test_rights_that_are_missing_are_named(lab: KubeLab) -> None:
    token = lab.kube.token("default")
    other = lab.kube.kubeconfig_for(token, lab.kube.url_at("198.18.0.1"))

    status, report = ask(lab, "doctor", "--kubeconfig", str(other))

    assert status in (1, 2)
    assert "403" in reasons(report)["ClusterAway"]


def test_without_the_api_server_it_goes_by_what_is_remembered(lab: KubeLab, tmp_path: Path) -> None:
    one = lab.nodes[1]
    lab.until(lambda: (one.state / "objects.json").exists(), "the agent has written down what it knows", seconds=30)
    nowhere = lab.kube.kubeconfig_for(lab.kube.admin_token, "https://198.18.0.1:1")

    status, report = ask(lab, "doctor", "--kubeconfig", str(nowhere))

    assert status == 1
    assert list(reasons(report)) == ["ClusterAway"], "and all else could be looked at, and is well"


def test_a_fault_behind_the_agents_back(lab: KubeLab) -> None:
    one = lab.nodes[1]
    agents = one.processes("-m controller agent")
    for process in agents:
        os.kill(process, signal.SIGSTOP)
    try:
        one.run("ip", "route", "del", "10.42.2.0/26", "table", "5182", "metric", "0")
        status, report = ask(lab, "doctor")
    finally:
        for process in agents:
            os.kill(process, signal.SIGCONT)
    assert status == 1 and list(reasons(report)) == ["RouteMissing"]
