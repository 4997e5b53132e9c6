"""What is known, and above all what is not."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.compliance.timeline import (
    CONTRADICTION,
    ENDED,
    LOST,
    NOT_BEGUN,
    SET_BACK,
    SILENT,
    STOPPED,
    UNKNOWN,
    UNREADABLE,
    Item,
    Record,
    Span,
    timeline,
)
from controller.entries import Entry, Kind
from controller.history import FILE
from tests.controller.compliance.histories import at, one, record, running, sampled, started, stood, stopped, traffic

BEGIN = (started(0), stood(0, "n2", "n3"), *running(0, 1))


def spans(found: tuple[Span, ...], offset: int = at(0)) -> list[tuple[float, float, str, str]]:
    """In hours."""
    return [((span.start - offset) / 3_600_000, (span.end - offset) / 3_600_000, span.value, span.why) for span in found]


def pair(
    directory: Path, *entries: Entry, begin: float = 0, end: float = 2, peer: str = "n2"
) -> list[tuple[float, float, str, str]]:
    return spans(timeline(record(directory, *entries), at(begin), at(end)).pairs["IPv4", peer])


def test_a_pair_is_encrypted_as_long_as_somebody_looks(tmp_path: Path) -> None:
    assert pair(tmp_path, *BEGIN, *running(1.25, 2)) == [(0, 2, "encrypted", "")]


def test_before_the_record_nothing_is_known(tmp_path: Path) -> None:
    assert pair(tmp_path, *BEGIN, begin=-1, end=1) == [(-1, 0, UNKNOWN, NOT_BEGUN), (0, 1, "encrypted", "")]


def test_a_pair_goes_in_clear_and_back_and_says_why(tmp_path: Path) -> None:
    entries = (
        traffic(0.3, "n2", "encrypted", "clear", "has no public key"),
        sampled(0.4, 1, 1),
        traffic(0.5, "n2", "clear", "encrypted"),
    )

    assert pair(tmp_path, *BEGIN[:2], *entries, *running(0.75, 1), end=1) == [
        (0, 0.3, "encrypted", ""),
        (0.3, 0.5, "clear", "has no public key"),
        (0.5, 1, "encrypted", ""),
    ]


def test_an_agent_that_does_not_run_sees_nothing(tmp_path: Path) -> None:
    again = (started(1.5), stood(1.6, "n2", "n3"), *running(1.75, 2))

    assert pair(tmp_path / "stopped", *BEGIN, stopped(1.1), *again) == [
        (0, 1.1, "encrypted", ""),
        (1.1, 1.6, UNKNOWN, STOPPED),
        (1.6, 2, "encrypted", ""),
    ]
    assert pair(tmp_path / "killed", *BEGIN, *again)[1] == (1, 1.6, UNKNOWN, ENDED), "from its last sign of life on"
    assert pair(tmp_path / "hung", *BEGIN, *running(1.75, 2))[1] == (1, 1.75, UNKNOWN, SILENT)


def test_a_start_alone_proves_nothing(tmp_path: Path) -> None:
    assert pair(tmp_path, *BEGIN, stopped(1), started(1.5))[1:] == [(1, 2, UNKNOWN, STOPPED)]


def test_a_line_that_cannot_be_read_leaves_everything_open_until_a_standing(tmp_path: Path) -> None:
    record(tmp_path, *BEGIN)
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"time": "2026-\n')

    assert pair(tmp_path, *running(1.25, 1.5), stood(1.6, "n2", "n3"), *running(1.75, 2)) == [
        (0, 1, "encrypted", ""),
        (1, 1.6, UNKNOWN, UNREADABLE),
        (1.6, 2, "encrypted", ""),
    ]


def test_so_do_entries_that_could_not_be_written(tmp_path: Path) -> None:
    lost = one(1.25, Kind.LOST, since="2026-11-01T01:05:00Z")

    assert pair(tmp_path, *BEGIN, lost, stood(1.25, "n2", "n3"), *running(1.5, 2))[1] == (1, 1.25, UNKNOWN, LOST)


def test_so_does_a_sample_that_counts_otherwise(tmp_path: Path) -> None:
    found = pair(tmp_path, *BEGIN, sampled(1.25, 1, 1), *running(1.5, 2))

    assert found == [(0, 1, "encrypted", ""), (1, 2, UNKNOWN, CONTRADICTION)]


def test_a_clock_set_back_makes_the_times_between_ambiguous(tmp_path: Path) -> None:
    entries = (traffic(0.5, "n2", "encrypted", "clear", "x"), traffic(0.8, "n2", "clear", "encrypted"), *running(1.25, 2))

    assert pair(tmp_path, *BEGIN, *entries) == [(0, 0.5, "encrypted", ""), (0.5, 1, UNKNOWN, SET_BACK), (1, 2, "encrypted", "")]


def test_a_failure_leaves_its_family_open_and_no_other(tmp_path: Path) -> None:
    failure = (one(0.5, Kind.FAILURE, family="IPv4", why="netlink: EPERM"), one(0.75, Kind.RECOVERY, family="IPv4"))
    other = one(0, Kind.STANDING, family="IPv6", enabled=True, encrypted=["n2"], clear={}, refused={})
    found = timeline(record(tmp_path, BEGIN[0], BEGIN[1], other, sampled(0), *failure, *running(1, 1)), at(0), at(1)).pairs

    assert spans(found["IPv4", "n2"])[1] == (0.5, 0.75, UNKNOWN, "the agent could not apply the configuration: netlink: EPERM")
    assert spans(found["IPv6", "n2"]) == [(0, 1, "encrypted", "")]


def test_a_family_that_switches_is_open_unless_a_standing_says_what_became_of_its_pairs(tmp_path: Path) -> None:
    off = one(0.5, Kind.FAMILY_DISABLED, family="IPv4", why="not enabled")
    standing = stood(0.5, clear={"this node: not enabled": ["n2", "n3"]}, enabled=False)

    assert pair(tmp_path / "old", *BEGIN[:3], off, one(0.75, Kind.MTU, before=1, after=2), end=0.75)[1][:3] == (
        0.5,
        0.75,
        UNKNOWN,
    )
    assert pair(tmp_path / "new", *BEGIN[:3], off, standing, one(0.75, Kind.MTU, before=1, after=2), end=0.75)[1] == (
        0.5,
        0.75,
        "clear",
        "this node: not enabled",
    )


def test_a_peer_is_no_pair_while_it_is_not_there(tmp_path: Path) -> None:
    added = one(0.5, Kind.PEER_ADDED, family="IPv4", peer="n4", key="K4", traffic="encrypted")
    removed = one(0.75, Kind.PEER_REMOVED, family="IPv4", peer="n4", key="K4")
    found = timeline(record(tmp_path, *BEGIN[:3], added, removed, sampled(1)), at(0), at(1))

    assert spans(found.pairs["IPv4", "n4"]) == [(0.5, 0.75, "encrypted", "")]
    assert [(span.key, span.start, span.end, span.is_exact) for span in found.keys["IPv4", "n4"]] == [
        ("K4", at(0.5), at(0.75), False)
    ]


def test_keys_have_their_dates_and_say_whether_the_record_saw_them_begin(tmp_path: Path) -> None:
    made = one(0.5, Kind.KEY_MADE, family="IPv4", key="K9", before="K1")
    found = timeline(record(tmp_path, *BEGIN[:3], made, sampled(1)), at(0), at(1)).keys["IPv4", ""]

    assert [(span.key, span.start, span.end, span.is_exact) for span in found] == [
        ("K1", at(0), at(0.5), False),
        ("K9", at(0.5), None, True),
    ]


def test_bytes_are_counted_between_samples_and_a_counter_that_fell_is_not_guessed_at(tmp_path: Path) -> None:
    samples = [sampled(0.25 * number, rx=rx, tx=2 * rx) for number, rx in enumerate((100, 150, 20, 50))]

    volume = timeline(record(tmp_path, *BEGIN[:2], *samples), at(0), at(1)).volumes["IPv4"]

    assert (volume.rx_bytes, volume.tx_bytes, len(volume.items)) == (80, 160, 2)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(range(9))), max_size=30), st.integers(-50, 150), st.integers(1, 100)
)
def test_spans_always_cover_the_whole_period_once(steps: list[tuple[int, int]], begin: int, length: int) -> None:
    def made(minutes: int, choice: int) -> Entry | None:
        hours = minutes / 60
        return (
            started(hours),
            stopped(hours),
            sampled(hours),
            stood(hours, "n2", "n3"),
            traffic(hours, "n2", "encrypted", "clear", "x"),
            traffic(hours, "n2", "clear", "encrypted"),
            one(hours, Kind.FAILURE, family="IPv4", why="y"),
            one(hours, Kind.LOST),
            None,
        )[choice]

    items = tuple(Item("h", number, 0, 0, "", made(*step)) for number, step in enumerate(steps, 1))
    low, high = at(begin / 60), at((begin + length) / 60)
    found = timeline(Record("n1", (), items), low, high)

    for covering in (found.recorded, found.strict, found.detector, *found.families.values()):
        assert covering[0].start == low and covering[-1].end == high
    for covering in (found.recorded, found.strict, found.detector, *found.families.values(), *found.pairs.values()):
        assert all(before.end == after.start for before, after in pairwise(covering)), "no peer is removed here"
        assert all(span.length > 0 for span in covering)
    unknown = [span for span in found.recorded if span.value == UNKNOWN]
    for covering in found.pairs.values():
        for span in covering:
            if span.value != UNKNOWN:
                assert not any(gap.start < span.end and span.start < gap.end for gap in unknown), "nothing is said of a gap"


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_can_be_read_even_without_its_fields(tmp_path: Path, kind: Kind) -> None:
    timeline(record(tmp_path, *BEGIN, one(1.1, kind)), at(0), at(2))
