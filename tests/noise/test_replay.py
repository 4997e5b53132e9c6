"""§5.4.6: the window of 8128 counters, against a set of everything ever seen."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise.replay import ReplayWindow

WINDOW = 8128
REJECT = 2**64 - 8130


class SetOfSeen:
    """The rule as it is written down, remembering everything."""

    def __init__(self) -> None:
        self.greatest = -1
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        if counter >= REJECT or self.greatest - counter > WINDOW or counter in self.seen:
            return False
        self.greatest = max(self.greatest, counter)
        self.seen.add(counter)
        return True


# Jumps of all sizes that matter: next, a few, around the window's edge, far, to the end of all counters.
steps = st.one_of(
    st.just(1),
    st.integers(-4, 4),
    st.integers(-70, 70),
    st.integers(-WINDOW - 3, -WINDOW + 3),
    st.integers(WINDOW - 3, WINDOW + 3),
    st.integers(-3 * WINDOW, 3 * WINDOW),
    st.integers(0, 2**63),
)
starts = st.one_of(st.just(0), st.integers(0, 3 * WINDOW), st.integers(REJECT - 2 * WINDOW, REJECT + 10))


def walk(start: int, moves: list[int]) -> list[int]:
    """Counters, each a step from the one before."""
    counters = [start]
    for move in moves:
        counters.append(min(max(counters[-1] + move, 0), 2**64 - 1))
    return counters


@given(starts, st.lists(steps, max_size=60))
def test_it_accepts_what_the_set_accepts(start: int, moves: list[int]) -> None:
    window, model = ReplayWindow(), SetOfSeen()

    for counter in walk(start, moves):
        assert window.accept(counter) is model.accept(counter)
        assert window.greatest == model.greatest
        assert window.missing.bit_length() <= WINDOW + 1


runs = st.one_of(
    st.builds(lambda gap, n: [gap] + [1] * n, st.integers(-50, 50), st.integers(0, 60)),  # consecutive, here and there
    st.builds(lambda gaps: gaps, st.lists(st.integers(1, 5), max_size=60)),  # increasing with gaps
    st.builds(lambda gaps: gaps, st.lists(steps, max_size=30)),  # anything
)


@settings(max_examples=300)
@given(starts, st.lists(runs, max_size=8))
def test_a_run_is_judged_as_its_messages_one_by_one(start: int, moves: list[list[int]]) -> None:
    window, model = ReplayWindow(), SetOfSeen()
    position = start

    for run in moves:
        counters = walk(position, run)[1:]
        position = counters[-1] if counters else position
        expected = [row for row, counter in enumerate(counters) if not model.accept(counter)]
        assert window.accept_run(counters) == expected
        assert window.greatest == model.greatest


@given(st.lists(st.lists(st.integers(0, 40), max_size=40), max_size=6))
def test_a_dense_mess_of_runs_is_judged_as_the_set_does(runs: list[list[int]]) -> None:
    window, model = ReplayWindow(), SetOfSeen()

    for counters in runs:
        assert window.accept_run(counters) == [row for row, counter in enumerate(counters) if not model.accept(counter)]


@pytest.mark.parametrize("far", [44, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 44, 2**40])
@pytest.mark.parametrize("gap", [0, 1])
def test_a_run_far_ahead_leaves_exactly_the_window_open(far: int, gap: int) -> None:
    window, model = ReplayWindow(), SetOfSeen()
    counters = [far + row + (gap if row > 5 else 0) for row in range(44)]

    assert window.accept_run([0, 1, 2]) == []
    assert window.accept_run(counters) == []
    for counter in [0, 1, 2, *counters]:
        model.accept(counter)

    for counter in range(max(0, far - WINDOW - 60), far + 46):
        assert window.accept(counter) is model.accept(counter)


def test_in_order_and_without_loss_nothing_is_stored() -> None:
    window = ReplayWindow()

    for first in range(0, 44 * 1000, 44):
        assert window.accept_run(list(range(first, first + 44))) == []

    assert window.missing == 0
    assert window.accept_run(list(range(100))) == list(range(100))


def test_the_whole_window_may_come_backwards() -> None:
    """8129 descending counters are all taken, once."""
    window = ReplayWindow()

    assert all(window.accept(counter) for counter in range(WINDOW, -1, -1))
    assert not any(window.accept(counter) for counter in range(WINDOW, -1, -1))


def test_one_more_backwards_and_the_last_is_too_old() -> None:
    window = ReplayWindow()

    assert all(window.accept(counter) for counter in range(WINDOW + 1, 0, -1))
    assert not window.accept(0)


def test_the_edge_of_the_window_moves_with_the_greatest() -> None:
    window = ReplayWindow()
    window.accept(4 * WINDOW)

    assert window.accept(3 * WINDOW)
    assert not window.accept(3 * WINDOW)
    assert not window.accept(3 * WINDOW - 1)
    assert window.accept(4 * WINDOW + 1)
    assert not window.accept(3 * WINDOW)
    assert window.accept(3 * WINDOW + 1)


def test_the_last_counters_are_taken_and_those_beyond_are_not() -> None:
    window = ReplayWindow()

    assert not window.accept(REJECT)
    assert window.accept(0)
    assert window.accept(REJECT - 1)
    assert not window.accept(REJECT - 1)
    assert not window.accept(REJECT)
    assert not window.accept(2**64 - 1)
    assert window.accept(REJECT - 2)
    assert not window.accept(0)


@pytest.mark.parametrize(
    "arrives", [lambda window, counter: window.accept(counter), lambda window, counter: not window.accept_run([counter])]
)
def test_the_end_is_the_end_also_where_nothing_was_missed(arrives: Callable[[ReplayWindow, int], bool]) -> None:
    """The way of a counter that follows the last one, with no gap in the whole window behind it, is another one."""
    window = ReplayWindow()
    window.accept_run(list(range(REJECT - WINDOW - 2, REJECT - 1)))
    assert not window.missing

    assert arrives(window, REJECT - 1)
    assert not arrives(window, REJECT)
    assert window.greatest == REJECT - 1


def test_a_run_over_the_end_is_taken_up_to_the_end() -> None:
    window = ReplayWindow()

    assert window.accept_run(list(range(REJECT - 3, REJECT + 2))) == [3, 4]
    assert window.greatest == REJECT - 1


def test_a_run_of_nothing_rejects_nothing() -> None:
    assert ReplayWindow().accept_run([]) == []


def test_duplicates_inside_a_run_are_rejected_where_they_repeat() -> None:
    assert ReplayWindow().accept_run([0, 1, 1, 3, 0]) == [2, 4]
    # As many values as a run without a gap has, and the same ends.
    assert ReplayWindow().accept_run([0, 0, 3, 3]) == [1, 3]
    assert ReplayWindow().accept_run([0, 2, 1, 3]) == []
