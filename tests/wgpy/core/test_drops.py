import re
from pathlib import Path

import pytest

from wgpy.core.drops import Drop

PACKAGE = Path(__file__).parents[3] / "wgpy"
SOURCES = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "drops.py")


@pytest.mark.parametrize("drop", Drop)
def test_a_reason_is_one_word_the_same_in_code_and_metrics(drop: Drop) -> None:
    assert drop.value == drop.name.lower()
    assert re.fullmatch("[a-z0-9_]+", drop.value)


@pytest.mark.parametrize("drop", Drop)
def test_every_reason_is_somewhere_counted(drop: Drop) -> None:
    assert re.search(rf"\bDrop\.{drop.name}\b", SOURCES)
