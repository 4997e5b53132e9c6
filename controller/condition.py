"""The condition ``WireGuardReady`` of our Node: what ``/readyz`` says, where ``kubectl`` and schedulers see it. Pure.

A node that takes no part in the mesh has no such condition: it is neither ready nor not ready. Patches are strategic merges of
``nodes/status``, in which conditions are a map by type: others' conditions stay as they are.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from controller.status import AgentStatus, unready

TYPE = "WireGuardReady"


class Condition(NamedTuple):
    """What is said. ``reason`` is one CamelCase word."""

    is_true: bool
    reason: str
    message: str


def condition(status: AgentStatus) -> Condition | None:
    """What is to be said of a node with this status, None for nothing."""
    if not any(family.is_enabled for family in status.families):
        return None
    lack = unready(status)
    if lack is not None:
        return Condition(False, "NotReady", lack)
    return Condition(True, "PeersAnswer", "the key is published, and the peers that are in use answer")


def patch(said: Condition | None, at: float, since: float) -> Mapping[str, Any]:
    """The patch that says this, at a time (seconds since 1970); it has been so ``since`` another. None takes it back."""
    if said is None:
        return {"status": {"conditions": [{"$patch": "delete", "type": TYPE}]}}
    return {
        "status": {
            "conditions": [
                {
                    "type": TYPE,
                    "status": "True" if said.is_true else "False",
                    "reason": said.reason,
                    "message": said.message,
                    "lastHeartbeatTime": _time(at),
                    "lastTransitionTime": _time(since),
                }
            ]
        }
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
