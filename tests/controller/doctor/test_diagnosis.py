"""The words that diagnoses share."""

import pytest

from controller.doctor.diagnosis import listed, restart, span
from tests.controller.doctor.well import WELL


def test_names_in_a_row() -> None:
    assert listed([]) == "" and listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (119, "119 s"), (3600, "60 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_times(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_starting_the_agent_again() -> None:
    assert "--field-selector spec.nodeName=n1 " in restart(WELL)
