"""Each mistake can still be made: a change of the code takes its mistakes along. That tests notice them, `make mistakes` sees."""

from pathlib import Path

import pytest

from tests.mutation.mistakes import MISTAKES, Mistake, misfit

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("one", MISTAKES, ids=lambda one: f"{one.number} {one.what}")
def test_a_mistake_can_be_planted(one: Mistake) -> None:
    assert misfit(ROOT, one) == ""
    assert all((ROOT / test).is_file() for test in one.tests)


def test_all_22_of_the_section_are_there() -> None:
    assert {one.number for one in MISTAKES} == set(range(1, 23))
