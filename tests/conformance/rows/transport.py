"""Transport data (1.6): order, replay, source, padding."""

from tests.conformance.behaviour import behaviour
from tests.conformance.trial import Trial

WINDOW = 8128
"""Counters so much older than the greatest are refused."""


@behaviour("1.6", "a counter is taken once, and within a window of 8128")
def replay_window(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    old = session.send(trial.inward(b"1"), counter=20000)
    trial.inner.expect(b"1", "the first")
    peer.send(old)
    trial.inner.expect_nothing("a replay")
    session.send(trial.inward(b"2"), counter=20000 - WINDOW)
    trial.inner.expect(b"2", "the oldest in the window")
    session.send(trial.inward(b"3"), counter=20000 - WINDOW)
    session.send(trial.inward(b"4"), counter=20000 - WINDOW - 1)
    trial.inner.expect_nothing("a counter seen, or older than the window")
    session.send(trial.inward(b"5"), counter=20001)
    trial.inner.expect(b"5", "the next")
