"""Behaviours: the list of them, and what can come of trying one.

    @behaviour("1.7", "unanswered data is followed by an initiation after 15 s", seconds=17)
    def new_handshake(trial: Trial) -> None:
        ...

The function returns if the behaviour holds and raises :class:`Broken` with one line if it does not. The section is that of
the protocol notes: 1.x the wire and the device, 2.x the configuration and the process. ``seconds`` is about how long it
takes: the long ones begin first. What needs the machine for itself (floods, throughput) says ``alone=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conformance.trial import Trial


class Broken(Exception):
    """The implementation does not behave like this. The message is one line: what was seen, and what should have been."""


class NotApplicable(Exception):
    """The behaviour cannot be asked of this implementation. The message says why in one line."""


class Verdict(StrEnum):
    HOLDS = "holds"
    BROKEN = "broken"
    NOT_APPLICABLE = "n/a"
    ERROR = "error"
    """The trial itself failed: nothing is known of the behaviour."""


@dataclass(frozen=True)
class Behaviour:
    """One row of the table. ``name`` is unique; ``kinds`` limits it to implementations with something special (``uapi``)."""

    name: str
    section: str
    title: str
    try_on: Callable[[Trial], None]
    seconds: float = 1.0
    alone: bool = False
    uapi: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one behaviour with one implementation. ``said`` is the reason, unless it holds; ``seconds`` it took."""

    implementation: str
    behaviour: str
    verdict: Verdict
    said: str = ""
    seconds: float = 0.0


BEHAVIOURS: dict[str, Behaviour] = {}
"""All behaviours by name, in the order of the table."""

TryOn = Callable[["Trial"], None]


def behaviour(
    section: str, title: str, *, seconds: float = 1.0, alone: bool = False, uapi: bool = False
) -> Callable[[TryOn], TryOn]:
    """Enter the function as a behaviour; its name becomes the behaviour's, with dashes."""

    def enter(try_on: TryOn) -> TryOn:
        name = try_on.__name__.replace("_", "-")
        if name in BEHAVIOURS:
            raise ValueError(f"there are two behaviours {name}")
        BEHAVIOURS[name] = Behaviour(name, section, title, try_on, seconds, alone, uapi)
        return try_on

    return enter


def expect(holds: object, said: str) -> None:
    """Raise :class:`Broken` with ``said`` unless ``holds``."""
    if not holds:
        raise Broken(said)
