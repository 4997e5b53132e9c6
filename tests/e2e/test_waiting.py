"""What runs in a process of its own comes out as if it had run here, whatever becomes of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests.e2e.waiting import Waiting

def pytest_configure(config):
    config.addinivalue_line("markers", "waits: mostly waits")
    config.addinivalue_line("markers", "e2e: uses the machine")
    config.pluginmanager.register(Waiting(config))
"""
QUICK = """
def test_quick(): pass
"""
TESTS = """
import os, time
import pytest

@pytest.mark.e2e
def test_that_comes_last(): assert os.path.exists("late")

@pytest.mark.waits
def test_that_waits():
    print(f"waited in {os.getpid()}")
    time.sleep(0.5)
    open("late", "w").close()

@pytest.mark.waits
def test_that_fails(): assert 6 * 7 == 54, "the answer"

@pytest.mark.waits
def test_that_is_skipped(): pytest.skip("needs another machine")

@pytest.mark.waits
def test_that_breaks_down(): os._exit(0)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (("conftest.py", CONFTEST), ("test_quick.py", QUICK), ("test_all.py", TESTS), ("pytest.ini", "[pytest]")):
        (tmp_path / name).write_text(text)
    return tmp_path


def run(project: Path, *words: str) -> str:
    command = [sys.executable, "-m", "pytest", "-v", "-rA", "-p", "no:cacheprovider", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=39).stdout


def outcomes(said: str) -> list[tuple[str, str]]:
    return re.findall(r"^test_\w+\.py::(\w+) (PASSED|FAILED|SKIPPED|ERROR)\b", said, re.MULTILINE)


def test_each_comes_out_as_what_it_was(project: Path) -> None:
    said = run(project)

    assert outcomes(said) == [
        ("test_quick", "PASSED"),
        ("test_that_waits", "PASSED"),
        ("test_that_fails", "FAILED"),
        ("test_that_is_skipped", "SKIPPED"),
        ("test_that_breaks_down", "FAILED"),
        ("test_that_comes_last", "PASSED"),
    ]
    assert "assert (6 * 7) == 54" in said
    assert "needs another machine" in said
    assert "it did not come to an end" in said
    assert re.search(r"^waited in \d+$", said, re.MULTILINE)


MEETING = """
import time, pathlib, pytest

def meet(name):
    pathlib.Path(name + ".here").touch()
    deadline = time.monotonic() + 20
    while len(list(pathlib.Path().glob("*.here"))) < 3:
        assert time.monotonic() < deadline, "the others do not come"
        time.sleep(0.01)
"""


def test_they_run_beside_each_other_and_the_quick_ones(project: Path) -> None:
    """Each waits until all are there."""
    waiting = "".join(f"@pytest.mark.waits\ndef test_{name}(): meet('{name}')\n" for name in "ab")
    (project / "test_all.py").write_text(MEETING + waiting)
    (project / "test_quick.py").write_text(MEETING + "def test_quick(): meet('quick')\n")

    assert outcomes(run(project)) == [("test_quick", "PASSED"), ("test_a", "PASSED"), ("test_b", "PASSED")]


def test_without_quick_ones_it_runs_here(project: Path) -> None:
    assert outcomes(run(project, "-k", "that_waits")) == [("test_that_waits", "PASSED")]
    assert (project / "late").exists()


def test_one_that_nobody_waits_for_any_more_is_ended(project: Path) -> None:
    (project / "test_quick.py").write_text("def test_quick(): assert False\n")

    (project / "test_all.py").write_text(TESTS.replace("sleep(0.5)", "sleep(40)"))

    assert outcomes(run(project, "-x")) == [("test_quick", "FAILED")]
    assert not (project / "late").exists()
