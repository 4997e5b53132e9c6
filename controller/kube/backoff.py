"""How long to wait before what failed is tried again. Pure: randomness is an argument.

Each failure in a row doubles the pause, up to a limit that depends on the kind of failure. Another kind begins anew: an API
server that says "not yet", after nobody had answered, is on its way back. Every pause is jittered, so that the agents of a
cluster, which all lose their API server in the same moment, do not all come back in the same moment.
"""

from dataclasses import dataclass

SHORTEST_SECONDS = 0.2

UNREACHABLE_SECONDS = 3.0
"""The longest pause while nobody answers: a refused connection costs the API server nothing, and agents ought to be back soon
after it is."""

RELIST_SECONDS = 2.0
"""The longest pause before listing anew what can no longer be watched."""

TROUBLED_SECONDS = 5.0
"""The longest pause while it answers that something is wrong with it (5xx)."""

REFUSED_SECONDS = 30.0
"""The longest pause while it says no (4xx): somebody has to change something first."""

LONGEST_ASKED_FOR_SECONDS = 60.0
"""A Retry-After beyond that is not believed."""


@dataclass(slots=True)
class Backoff:
    """The failures in a row of one thing that is tried."""

    failures: int = 0
    longest: float = 0.0

    def after_failure(self, longest: float, asked_for: float | None, random: float) -> float:
        """Seconds to wait now. ``longest`` is one of the limits above, ``asked_for`` what the server said (Retry-After);
        ``random`` is in [0, 1)."""
        if longest != self.longest:
            self.failures, self.longest = 0, longest
        pause = min(SHORTEST_SECONDS * 2.0 ** min(self.failures, 16), longest)
        self.failures += 1
        if asked_for is not None:
            pause = max(pause, min(asked_for, LONGEST_ASKED_FOR_SECONDS))
        return jittered(pause, random)

    def reset(self) -> None:
        """It has worked."""
        self.failures = 0


def jittered(seconds: float, random: float) -> float:
    """Between two thirds of that and all of it."""
    return seconds * (2.0 + random) / 3.0
