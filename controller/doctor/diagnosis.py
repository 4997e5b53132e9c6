"""What a check says, and the few words they share. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from controller.doctor.facts import Facts
from controller.doctor.remedies import RESTART, filled

MOST_NAMES = 5


class Diagnosis(NamedTuple):
    """Something that is wrong. ``reason`` is one CamelCase word; ``what`` and ``why`` are a line each; ``remedies`` are commands
    in their order. ``subject`` tells two of one reason apart."""

    reason: str
    subject: str
    what: str
    why: str
    remedies: tuple[str, ...]


class Unseen(NamedTuple):
    """Something that could not be looked at, and why not: a line."""

    why: str


Found = Iterator[Diagnosis | Unseen]


def restart(facts: Facts) -> str:
    """The command that starts this node's agent again."""
    return filled(RESTART, node=facts.node)


def listed(names: Sequence[str]) -> str:
    """Names in a row, not too many."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def span(seconds: float) -> str:
    """``45 s``, ``60 min``, ``3 h``."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
