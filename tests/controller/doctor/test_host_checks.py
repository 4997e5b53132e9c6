"""Faults of a host as facts, and what is said of them. The same ones, put into a real mesh, are in test_collect.py."""

from dataclasses import replace

import pytest

from controller.doctor.facts import Facts, Moment
from controller.findings import Finding
from controller.model import Family
from controller.status import HAS_LEFT, Direction, FamilyStatus, Leak, LeakStatus
from tests.controller.doctor.well import AGENT, NOW, WELL, diagnoses, family, is_well_said, unseen

LEFT = replace(AGENT, families=tuple(FamilyStatus(family, rest=HAS_LEFT) for family in Family))
LEAK = Leak(Family.IPV4, "n2", Direction.OUTBOUND, 3, NOW, "10.42.1.5 > 10.42.2.5")


@pytest.mark.parametrize(
    ("facts", "reason", "remedy"),
    [
        (replace(WELL, tun_error="No such device"), "NoTun", "modprobe tun"),
        (replace(WELL, has_net_admin=False), "NoNetAdmin", "sudo wgpy doctor"),
        (replace(WELL, server_lead=3600.0), "ClockWrong", "timedatectl set-ntp true"),
        (replace(WELL, server_lead=-3600.0), "ClockWrong", "timedatectl set-ntp true"),
        (replace(WELL, moments=(Moment("x", NOW + 3600), Moment("y", NOW))), "ClockWentBack", "timedatectl set-ntp true"),
        (replace(WELL, state_error="there is no state directory"), "NoState", "ls -la /state"),
        (replace(WELL, agent_runs=False), "NoAgent", "kubectl -n kube-system delete pod"),
        (replace(WELL, agent_runs=False, agent=LEFT, families=()), "HasLeft", "kubectl -n kube-system delete pod"),
        (
            replace(WELL, agent=replace(AGENT, families=(FamilyStatus(Family.IPV4, failure="no"),))),
            "AgentFails",
            "kubectl -n kube-system logs -c agent POD",
        ),
        (
            replace(WELL, agent=replace(AGENT, leaks=LeakStatus(leaks=(replace(LEAK, at=NOW - 60),)))),
            "LeakSeen",
            "wgpy verify n2",
        ),
        (replace(WELL, source_error="refused"), "ClusterAway", "kubectl get --raw /readyz"),
        (replace(WELL, denied=("patch nodes/status",)), "NotAllowed", "kubectl auth can-i patch nodes/status"),
        (replace(WELL, is_known=False), "NoSuchNode", "kubectl get nodes"),
        (replace(WELL, families=()), "NotEnabled", "kubectl patch felixconfigurations"),
        (family(rest="this node has no IPv4 address"), "Resting", "kubectl get node n1 -o yaml"),
        (
            replace(WELL, findings=(Finding("NatOutgoingOff", "IPPool 10.0.0.0/8", "off"),)),
            "NatOutgoingOff",
            "kubectl get ippools",
        ),
    ],
)
def test_a_fault_has_one_finding_and_its_remedy(facts: Facts, reason: str, remedy: str) -> None:
    (found,) = diagnoses(facts)

    assert found.reason == reason
    assert found.remedies[0].startswith(remedy), found.remedies
    assert is_well_said(found)


@pytest.mark.parametrize(
    "facts",
    [
        replace(WELL, server_lead=20.0),
        replace(WELL, moments=(Moment("x", NOW + 20),)),
        replace(WELL, findings=(Finding("Hint", "n1", "as wished", is_warning=False),)),
        replace(WELL, agent_runs=None),
        replace(WELL, agent=LEFT),
        replace(WELL, agent=replace(AGENT, leaks=LeakStatus(leaks=(replace(LEAK, at=NOW - 7200),)))),
        replace(WELL, agent=replace(AGENT, leaks=LeakStatus(("eth0",)))),
    ],
)
def test_what_is_no_fault(facts: Facts) -> None:
    assert diagnoses(facts) == []


def test_what_could_not_be_looked_at() -> None:
    assert unseen(replace(WELL, agent_runs=None)) == ["whether an agent runs"]
    assert unseen(replace(WELL, agent=replace(AGENT, leaks=None))) == ["no leak detector runs here: wgpy agent --detect-leaks"]
    assert unseen(replace(WELL, agent=None)) == ["what the agent says of itself: it has written nothing yet"]
