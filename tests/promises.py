"""Seconds that are promised to users, and where they are judged to the letter.

The machine that runs ``make test`` may have other work, and stand still for seconds: that is no fault of the product. So there a
promise has :data:`STALL_SECONDS` of grace, and what takes longer than that has failed. ``make promises``, ``make kube`` and
``make web`` set ``WGPY_REQUIRE_TIMES``, and then there is none: they want a quiet machine.
"""

import os
from dataclasses import dataclass

STALL_SECONDS = 10.0


@dataclass
class Promises:
    """Judges, and remembers what was measured in ``figures``, which are printed at the end of the run."""

    figures: dict[str, str]

    def judge(self, what: str, took: float, limit: float) -> None:
        """Fail if ``what`` took longer than ``limit``, both in seconds."""
        self.figures[what] = f"{took:.2f} s ({'under' if took < limit else 'NOT UNDER'} {limit:g} s)"
        grace = 0.0 if os.environ.get("WGPY_REQUIRE_TIMES") else STALL_SECONDS
        assert took < limit + grace, f"{what}: {took:.2f} s, where {limit:g} s are promised"
