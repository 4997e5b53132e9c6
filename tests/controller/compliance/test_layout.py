"""All that is in the statement stands on the pages, in the order of reading."""

from pathlib import Path

import pytest

from controller.compliance.layout import Heading, Note, Table, _ranges, blocks, moment, title
from controller.compliance.requirements import FRAMEWORKS
from tests.controller.compliance.documents import signed


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_sentence_requirement_gap_key_and_line_is_shown(tmp_path: Path, framework: str) -> None:
    document = signed(tmp_path, framework)
    statement, shown = document["statement"], list(blocks(document))
    cells = {cell for block in shown if isinstance(block, Table) for row in block.rows for cell in row}

    assert {one["text"] for one in statement["statements"]} | {one["id"] for one in statement["requirements"]} <= cells
    assert {key["key"] for key in statement["keys"]} <= cells
    assert {line["sha256"][:16] for line in statement["evidence"]["lines"]} <= cells
    assert any(isinstance(block, Note) and "not FIPS-approved" in block.text for block in shown)
    assert FRAMEWORKS[framework].name in title(document)
    for block in shown:
        if isinstance(block, Table):
            assert sum(block.widths) == 100 and all(len(row) == len(block.columns) == len(block.widths) for row in block.rows)


def test_what_was_not_encrypted_has_a_table_of_its_own(tmp_path: Path) -> None:
    shown = list(blocks(signed(tmp_path)))
    place = shown.index(Heading("Not encrypted, and why"))
    table = shown[place + 1]

    assert isinstance(table, Table)
    assert [row[:6] for row in table.rows] == [
        ("n1 to n2, IPv4", "in clear", "2026-11-01 00:30:00", "2026-11-01 00:45:00", "15 min", "has no public key"),
        ("n1 to n3, IPv4", "refused", "2026-11-01 03:00:00", "2026-11-01 03:15:00", "15 min", "has no public key"),
    ]


def test_numbers_in_a_row_are_a_range() -> None:
    assert _ranges(["E7", "E1", "E2", "E3", "E10"]) == "E1-E3, E7, E10"
    assert (_ranges([]), _ranges(["S4"]), moment("2026-11-22T14:03:05.123Z")) == ("-", "S4", "2026-11-22 14:03:05")
