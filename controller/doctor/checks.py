"""All checks, in the order in which they are told. Pure.

A check looks at the facts and yields a :class:`~controller.doctor.diagnosis.Diagnosis` for each thing that is wrong, with why it
matters and what to type, and an :class:`~controller.doctor.diagnosis.Unseen` for what could not be looked at. One that yields
nothing has found all well.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from controller.doctor import family_checks, host_checks
from controller.doctor.diagnosis import Diagnosis, Found, Unseen
from controller.doctor.facts import Facts
from controller.status import HAS_LEFT, NOT_ENABLED


class Scope(Enum):
    """What there has to be for a check to find anything: a host, this node in a cluster, a family of it in the mesh."""

    HOST = auto()
    NODE = auto()
    FAMILY = auto()


class Check(NamedTuple):
    """A check: its name, what it does, and where it can be made."""

    name: str
    look: Callable[[Facts], Found]
    scope: Scope


CHECKS = (
    Check("TUN device", host_checks.tun, Scope.HOST),
    Check("capabilities", host_checks.capabilities, Scope.HOST),
    Check("clock", host_checks.clock, Scope.HOST),
    Check("agent", host_checks.agent, Scope.HOST),
    Check("API access", host_checks.api, Scope.HOST),
    Check("membership", host_checks.membership, Scope.NODE),
    Check("the cluster's configuration (natOutgoing, MTU, keys of others, names and numbers)", host_checks.cluster, Scope.NODE),
    Check("keys", family_checks.keys, Scope.FAMILY),
    Check("data plane and interface", family_checks.data_plane, Scope.FAMILY),
    Check("UDP port", family_checks.port, Scope.FAMILY),
    Check("firewall", family_checks.firewall, Scope.FAMILY),
    Check("interface's MTU and addresses", family_checks.links, Scope.FAMILY),
    Check("MTU along the real path", family_checks.path, Scope.FAMILY),
    Check("routes", family_checks.routes, Scope.FAMILY),
    Check("rules and forwarding", family_checks.rules, Scope.FAMILY),
    Check("foreign marks", family_checks.foreign_marks, Scope.FAMILY),
    Check("device's configuration", family_checks.device, Scope.FAMILY),
    Check("masquerading and guard", family_checks.nat, Scope.FAMILY),
    Check("handshakes", family_checks.handshakes, Scope.FAMILY),
    Check("traffic in clear", family_checks.clear, Scope.FAMILY),
    Check("leaks", host_checks.leaks, Scope.NODE),
)


def examine(facts: Facts) -> Mapping[str, Sequence[Diagnosis | Unseen]]:
    """What every check has found, by its name, in their order."""
    return {check.name: _results(check, facts) for check in CHECKS}


def _results(check: Check, facts: Facts) -> tuple[Diagnosis | Unseen, ...]:
    if facts.has_left and check.scope is not Scope.HOST:
        return (Unseen(HAS_LEFT),)  # of what is wanted of a member nothing is wrong where it is missing
    return tuple(check.look(facts)) or _blind(check, facts)


def _blind(check: Check, facts: Facts) -> tuple[Unseen, ...]:
    """Why a check that has found nothing could not have found anything, if so."""
    if check.scope is Scope.HOST:
        return ()
    if not facts.is_known:
        return (
            Unseen("there is no cluster to go by" if facts.source_error is not None else f"the cluster has no node {facts.node}"),
        )
    if check.scope is Scope.FAMILY and not facts.families:
        return (Unseen("the agent's state is not there" if facts.state_error is not None else f"WireGuard is {NOT_ENABLED}"),)
    rests = {family.rest for family in facts.families}
    if check.scope is Scope.FAMILY and None not in rests:
        return tuple(Unseen(rest) for rest in sorted(rest for rest in rests if rest is not None))
    return ()
