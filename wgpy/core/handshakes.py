"""What becomes of handshakes: one word a result, the same in counters, metrics and tests.

Messages that come in and are wrong, or not wanted just now, are no results: they are drops (:mod:`wgpy.core.drops`).
"""

from enum import Enum


class Handshake(Enum):
    """A result; its value is the label of ``wgpy_handshakes_total{result=}``."""

    BEGUN = "begun"
    """An initiation of ours was sent, for the first time or again."""
    INITIATED = "initiated"
    """It was answered: there is a session."""
    ANSWERED = "answered"
    """A peer's initiation led to a session: data came under it."""
    UNANSWERED = "unanswered"
    """No response within REKEY_TIMEOUT: another initiation goes out."""
    GIVEN_UP = "given_up"
    """No response within REKEY_ATTEMPT_TIME: no more, until there is something new to send."""
