"""Pauses grow, stay within their bounds, and are jittered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube.backoff import LONGEST_ASKED_FOR_SECONDS, SHORTEST_SECONDS, Backoff, jittered

RANDOM = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 100), st.floats(1, 100), RANDOM)
def test_a_pause_is_never_longer_than_the_longest_and_never_none_at_all(failures: int, longest: float, random: float) -> None:
    backoff = Backoff(failures, longest)

    pause = backoff.after_failure(longest, None, random)

    assert SHORTEST_SECONDS / 2 <= pause <= longest


def test_pauses_double_and_begin_anew() -> None:
    backoff = Backoff()
    pauses = [backoff.after_failure(3.0, None, 1.0) for _ in range(6)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.0, 3.0])

    backoff.reset()
    assert backoff.after_failure(3.0, None, 1.0) == pytest.approx(0.2)


def test_another_kind_of_failure_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.after_failure(3.0, None, 1.0)

    assert backoff.after_failure(30.0, None, 1.0) == pytest.approx(0.2)


def test_what_the_server_asks_for_is_granted_within_reason() -> None:
    assert Backoff().after_failure(3.0, 20.0, 1.0) == 20.0
    assert Backoff().after_failure(3.0, 1e6, 1.0) == LONGEST_ASKED_FOR_SECONDS


@given(st.floats(0.001, 1000), RANDOM)
def test_jitter_only_shortens(seconds: float, random: float) -> None:
    assert seconds * 0.6 <= jittered(seconds, random) <= seconds * (1 + 1e-9)
