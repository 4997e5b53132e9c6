"""Behaviours: the list of them, and what can come of trying one.

    @behaviour("1.7", "unanswered data is followed by an initiation after 15 s", seconds=17)
    def new_handshake(trial: Trial) -> None:
        ...

    @behaviour("matrix", "a transfer goes on when either side is started again", pairing=Pairing())
    def restart(pair: Pair) -> str: ...

The function returns if the behaviour holds (perhaps a remark, such as a figure) and raises :class:`Broken` with one line if it
does not. The section is that of the protocol notes: 1.x the wire and the device, 2.x the configuration and the process.
``seconds`` is about how long it takes: the long ones begin first. What needs the machine for itself (floods, throughput) says
``alone=True``. What has a ``pairing`` is tried on two implementations that speak to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

TryOn = Callable[[Any], str | None]
"""Takes a Trial; a Pair if the behaviour has a pairing."""


class Broken(Exception):
    """The implementation does not behave like this. The message is one line: what was seen, and what should have been.

    ``by``: of a pair, the implementation that is to blame, where that is plain.
    """

    def __init__(self, said: str, by: str = "") -> None:
        super().__init__(said)
        self.by = by


class NotApplicable(Exception):
    """The behaviour cannot be asked of this implementation. The message says why in one line."""


class Verdict(StrEnum):
    HOLDS = "holds"
    BROKEN = "broken"
    NOT_APPLICABLE = "n/a"
    ERROR = "error"
    """The trial itself failed: nothing is known of the behaviour."""


@dataclass(frozen=True)
class Pairing:
    """Which implementations are tried with which. The first of a pair is the one that does what the title says.

    The one that is judged is tried with each, and each with itself: if that fails, too, it is not the judged one's fault.
    ``symmetric``: it makes no difference who is first. ``everyone``: the others are tried with each other, too.
    """

    symmetric: bool = False
    everyone: bool = False

    def pairs(self, names: Sequence[str], judged: str) -> list[tuple[str, str]]:
        others = [name for name in names if name != judged]
        found = [(judged, other) for other in others] if judged in names else []
        if self.everyone:
            found += combinations(others, 2)
        if not self.symmetric:
            found += [(second, first) for first, second in found]
        return [(name, name) for name in names] + found


@dataclass(frozen=True)
class Behaviour:
    """One row of the table. ``name`` is unique; ``uapi`` limits it to those that serve that.

    What is ``promised`` is a figure and no part of the protocol: only the implementation in question is held to it.
    """

    name: str
    section: str
    title: str
    try_on: TryOn
    seconds: float = 1.0
    alone: bool = False
    uapi: bool = False
    pairing: Pairing | None = None
    promised: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one behaviour with one implementation, or with it and a ``partner``.

    ``said`` is the reason, or if it holds a remark; ``seconds`` it took; ``by`` is who is to blame, where that is plain.
    """

    implementation: str
    behaviour: str
    verdict: Verdict
    said: str = ""
    seconds: float = 0.0
    partner: str = ""
    by: str = ""

    @property
    def who(self) -> str:
        return f"{self.implementation} with {self.partner}" if self.partner else self.implementation

    def concerns(self, implementation: str) -> bool:
        return implementation in (self.implementation, self.partner)


BEHAVIOURS: dict[str, Behaviour] = {}
"""All behaviours by name, in the order of the table."""


def behaviour(
    section: str,
    title: str,
    *,
    seconds: float = 1.0,
    alone: bool = False,
    uapi: bool = False,
    pairing: Pairing | None = None,
    promised: bool = False,
) -> Callable[[TryOn], TryOn]:
    """Enter the function as a behaviour; its name becomes the behaviour's, with dashes."""

    def enter(try_on: TryOn) -> TryOn:
        name = try_on.__name__.replace("_", "-")
        if name in BEHAVIOURS:
            raise ValueError(f"there are two behaviours {name}")
        BEHAVIOURS[name] = Behaviour(name, section, title, try_on, seconds, alone, uapi, pairing, promised)
        return try_on

    return enter


def expect(holds: object, said: str, by: str = "") -> None:
    """Raise :class:`Broken` with ``said`` unless ``holds``."""
    if not holds:
        raise Broken(said, by)
