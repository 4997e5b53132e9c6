"""Lines are found where the report says they are."""

import hashlib
import json
from pathlib import Path

import pytest

from controller.compliance.evidence import EvidenceError, last_entry, load, mesh_of
from controller.entries import Kind, rfc3339
from controller.history import FILE, OLD_FILE, History
from tests.controller.compliance.histories import START, one, started


def test_each_line_has_its_place_and_its_hash_over_both_files(tmp_path: Path) -> None:
    history = History(tmp_path, limit=600)
    for number in range(9):
        history.write([started(number)])
    found = load(tmp_path)

    assert (found.node, mesh_of(found), last_entry(found)) == ("n1", "calico", START + 8 * 3600)
    assert [file.name for file in found.files] == [OLD_FILE, FILE]
    for file in found.files:
        content = (tmp_path / file.name).read_bytes()
        assert (file.size, file.digest) == (len(content), hashlib.sha256(content).hexdigest())
    for item in found.items:
        text = (tmp_path / item.file).read_bytes()[item.offset : item.offset + item.length]
        assert hashlib.sha256(text).hexdigest() == item.digest
        assert item.entry is not None and json.loads(text)["time"] == rfc3339(item.entry.at)
        assert (tmp_path / item.file).read_bytes().splitlines()[item.number - 1] == text


def test_a_line_that_cannot_be_read_is_kept_as_such(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"{}\n\n")
    History(tmp_path).write([started(0)])

    assert [item.entry is None for item in load(tmp_path).items] == [True, False]


def test_a_history_that_does_not_say_whose_it_is_asks_the_status(tmp_path: Path) -> None:
    History(tmp_path).write([one(0, Kind.AGENT_STOPPED)])
    with pytest.raises(EvidenceError, match="which node"):
        load(tmp_path)

    (tmp_path / "status.json").write_text('{"node": "n7"}')
    assert load(tmp_path).node == "n7"


def test_no_history_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"there is no history\.jsonl"):
        load(tmp_path)
