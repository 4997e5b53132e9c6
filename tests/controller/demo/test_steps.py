from types import SimpleNamespace
from typing import Any

import pytest

from controller.demo.capture import Sighting, Verdict
from controller.demo.steps import Outcome, Route, _counted, _listed
from controller.demo.traffic import PINGS

SOMEWHERE: Any = SimpleNamespace(key="a")
ROUTE = Route(SOMEWHERE, SOMEWHERE, SOMEWHERE, SOMEWHERE)


def outcome(promised: Verdict, sighting: Sighting, replies: int = PINGS) -> Outcome:
    return Outcome(ROUTE, 4, promised, replies, sighting)


ENCRYPTED, CLEAR, NOTHING = Sighting(0, (PINGS, PINGS)), Sighting(2 * PINGS), Sighting()


@pytest.mark.parametrize(
    ("promised", "sighting"), [(Verdict.ENCRYPTED, ENCRYPTED), (Verdict.CLEAR, CLEAR), (Verdict.NOTHING, NOTHING)], ids=str
)
def test_a_promise_holds_only_for_what_it_says(promised: Verdict, sighting: Sighting) -> None:
    assert outcome(promised, sighting).held
    assert not outcome(promised, sighting, replies=PINGS - 1).held
    for other in {Verdict.ENCRYPTED, Verdict.CLEAR, Verdict.NOTHING} - {promised}:
        assert not outcome(other, sighting).held


def test_one_clear_frame_breaks_a_promise_of_encryption() -> None:
    assert not outcome(Verdict.ENCRYPTED, Sighting(1, (PINGS, PINGS))).held


def test_fewer_messages_than_packets_break_a_promise_of_encryption() -> None:
    assert not outcome(Verdict.ENCRYPTED, Sighting(0, (PINGS, PINGS - 1))).held


def test_what_was_seen_reads_well() -> None:
    assert outcome(Verdict.ENCRYPTED, ENCRYPTED).seen == f"encrypted ({PINGS}+{PINGS})"
    assert outcome(Verdict.CLEAR, CLEAR).seen == f"in clear ({2 * PINGS})"
    assert outcome(Verdict.NOTHING, NOTHING).seen == "nothing"
    assert outcome(Verdict.CLEAR, CLEAR, replies=1).seen.endswith(f", {PINGS - 1} of {PINGS} pings lost")


def test_outcomes_are_counted_by_what_was_seen() -> None:
    assert _counted([outcome(Verdict.CLEAR, ENCRYPTED), outcome(Verdict.CLEAR, CLEAR), outcome(Verdict.CLEAR, CLEAR)]) == (
        "1 encrypted, 2 in clear"
    )


def test_of_many_troubles_the_first_are_told() -> None:
    assert _listed([]) == ""
    assert _listed(["a", "b"]) == "a; b"
    assert _listed(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
