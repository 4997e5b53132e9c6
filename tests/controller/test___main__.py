"""``python -m controller``."""

import subprocess
import sys
from pathlib import Path


def test_it_names_its_verbs() -> None:
    words = [sys.executable, "-m", "controller", "frobnicate"]

    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert done.returncode == 1
    assert done.stderr == "usage: python -m controller agent|doctor|leave|mesh|top|verify [OPTION]...\n"
