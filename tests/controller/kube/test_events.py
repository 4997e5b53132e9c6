"""What is told once is an Event; what is told often is one Event with a count; who tells too much is not heard."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from controller.kube.events import (
    BURST,
    NOTE_BYTES,
    SECONDS_PER_EVENT,
    SERIES_LIFETIME_SECONDS,
    SERIES_SECONDS,
    Events,
    Write,
    cut,
    manifest,
)
from controller.kube.events import series as series_patch
from controller.source import Event

LOST = Event("PeerLost", "n2 has no key", is_warning=True)
TIME = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def test_the_same_is_counted_and_written_once_a_minute() -> None:
    events = Events()

    assert events.tell("n1", LOST, "a", 0.0) == Write("a", 1)
    assert [events.tell("n1", LOST, "b", float(now)) for now in range(1, 60)] == [None] * 59
    assert events.tell("n1", LOST, "b", SERIES_SECONDS) == Write("a", 61)
    assert events.tell("n1", LOST, "b", SERIES_SECONDS + 1) is None


def test_after_an_hour_of_silence_an_event_is_made_anew() -> None:
    events = Events()
    events.tell("n1", LOST, "a", 0.0)

    assert events.tell("n1", LOST, "b", SERIES_LIFETIME_SECONDS) == Write("b", 1)


def test_what_could_not_be_written_is_written_the_next_time() -> None:
    events = Events()
    events.tell("n1", LOST, "a", 0.0)
    events.forget("n1", LOST)

    assert events.tell("n1", LOST, "b", 1.0) == Write("b", 1)


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 100)), max_size=300))
def test_however_much_there_is_to_tell_few_events_are_created(told: list[tuple[int, float]]) -> None:
    events, now, created = Events(), 0.0, 0
    for number, pause in told:
        now += pause
        write = events.tell("n1", LOST._replace(message=str(number)), f"e{now}", now)
        created += write is not None and write.told == 1
    assert created <= BURST + now / SECONDS_PER_EVENT + 1


@given(st.text())
def test_a_note_is_cut_between_characters(message: str) -> None:
    assert len(cut(message * 50).encode()) <= NOTE_BYTES
    assert cut(message[:200]) == message[:200]


def test_an_event_is_what_the_api_asks_for() -> None:
    made = manifest("n1", LOST, "n1.abc", TIME)

    assert made["eventTime"] == "2026-01-02T03:04:05.000678Z"
    assert (made["type"], made["reason"], made["note"]) == ("Warning", "PeerLost", "n2 has no key")
    assert made["metadata"]["namespace"] == "default" and made["regarding"]["uid"] == "n1"
    assert series_patch(3, TIME) == {"series": {"count": 3, "lastObservedTime": "2026-01-02T03:04:05.000678Z"}}
