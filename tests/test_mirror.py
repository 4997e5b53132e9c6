"""Every module has its test module at the mirrored place: noise/timers.py and tests/noise/test_timers.py."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("noise", "tun", "wgpy", "controller")

TESTED_ELSEWHERE = {
    "wgpy/__main__.py": "three lines, run by tests/wgpy/test_cli.py",
}
"""Modules without a test module of their own, and why. ``__init__.py`` files only name what is in their package."""

MODULES = sorted(
    str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"
)


def mirror(module: str) -> str:
    folder, _, name = module.rpartition("/")
    return f"tests/{folder}/test_{name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_test_module(module: str) -> None:
    if module in TESTED_ELSEWHERE:
        assert not (ROOT / mirror(module)).exists(), "it has one now: take it out of TESTED_ELSEWHERE"
    else:
        assert (ROOT / mirror(module)).is_file(), f"{mirror(module)} is missing"


def test_every_exception_is_about_a_module_that_exists() -> None:
    assert set(TESTED_ELSEWHERE) <= set(MODULES)


def test_no_folder_of_tests_is_a_package() -> None:
    """With an ``__init__.py``, tests/noise would be found when ``noise`` is imported."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
