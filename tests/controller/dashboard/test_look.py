"""What stands in the page's head."""

import re

from controller.dashboard.look import head
from controller.dashboard.picture import DARK, LIGHT
from controller.dashboard.view import State


def test_both_schemes_have_all_colours() -> None:
    light, dark = head().split("@media (prefers-color-scheme: dark)", 1)

    for state in State:
        assert f"--state-{state.severity}: {LIGHT.states[state]};" in light
        assert f"--state-{state.severity}: {DARK.states[state]};" in dark
        assert f".state-{state.severity} {{" in head()


def test_every_colour_that_is_used_is_there() -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", head()))

    assert used and all(f"{name}: " in head() for name in used)


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert "http" not in head() and "@import" not in head() and "url(" not in head()
