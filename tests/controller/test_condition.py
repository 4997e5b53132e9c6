"""What a Node says of itself is what its probe says, and nothing where it takes no part."""

from dataclasses import replace

import pytest

from controller.condition import TYPE, Condition, condition, patch
from controller.model import Family
from controller.status import AgentStatus, FamilyStatus
from tests.controller.test_metrics import NOW, STATUS

IPV4, IPV6 = STATUS.families


def test_a_node_that_has_its_place_is_ready() -> None:
    said = condition(STATUS)

    assert said is not None and said.is_true and said.reason == "PeersAnswer"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (replace(IPV4, announced=None), "IPv4: the key is not published"),
        (replace(IPV4, has_data_plane=False), "IPv4: waiting for a data plane"),
        (replace(IPV4, peers=IPV4.peers[1:2]), "IPv4: 1 of 1 peers in use do not answer"),
    ],
)
def test_a_node_that_has_not_says_why(family: FamilyStatus, message: str) -> None:
    assert condition(replace(STATUS, families=(family, IPV6))) == Condition(False, "NotReady", message)


@pytest.mark.parametrize("status", [replace(STATUS, families=(IPV6,)), replace(STATUS, families=())])
def test_a_node_that_takes_no_part_says_nothing(status: AgentStatus) -> None:
    assert condition(status) is None


def test_a_patch_names_one_condition_and_nothing_else() -> None:
    said = patch(Condition(False, "NotReady", "why"), NOW + 60, NOW)

    assert said == {
        "status": {
            "conditions": [
                {
                    "type": "WireGuardReady",
                    "status": "False",
                    "reason": "NotReady",
                    "message": "why",
                    "lastHeartbeatTime": "2023-11-14T22:14:20Z",
                    "lastTransitionTime": "2023-11-14T22:13:20Z",
                }
            ]
        }
    }
    assert patch(None, NOW, NOW) == {"status": {"conditions": [{"$patch": "delete", "type": TYPE}]}}


def test_a_second_family_counts_too() -> None:
    other = replace(IPV4, family=Family.IPV6, failure="no route to host")

    said = condition(replace(STATUS, families=(IPV4, other)))

    assert said == Condition(False, "NotReady", "IPv6: no route to host")
