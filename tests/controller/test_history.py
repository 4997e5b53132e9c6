"""What is written is read back, and survives what machines do."""

import errno
import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller import history as history_module
from controller.entries import Entry, Kind, entry, parse, rfc3339, whole
from controller.history import FILE, OLD_FILE, History, latest, read
from tests.controller.test_entries import FAMILY, NOW, PEER, status

# -- the file --------------------------------------------------------------------------------------------------------


def numbered(*numbers: int) -> list[Entry]:
    return [entry(NOW + number, Kind.PEER_ADDED, peer=f"n{number}") for number in numbers]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    History(tmp_path).write(numbered(1, 2))
    History(tmp_path).write([])
    History(tmp_path).write(numbered(3))

    assert list(read(tmp_path)) == numbered(1, 2, 3)
    assert list(read(tmp_path, since=NOW + 2)) == numbered(2, 3)
    assert list(read(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 16])
def test_the_latest_are_read_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Over both files and whatever is in them, and no more than has to be."""
    monkeypatch.setattr(history_module, "BLOCK", block)
    assert latest(tmp_path, 5) == []
    History(tmp_path).write(numbered(1, 2, 3))
    (tmp_path / FILE).rename(tmp_path / OLD_FILE)
    History(tmp_path).write(numbered(4, 5))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'no entry\n\n{"time": "cut sho')
    History(tmp_path).write(numbered(6))

    for limit in range(8):
        assert latest(tmp_path, limit) == list(read(tmp_path))[::-1][:limit]


def test_the_latest_of_much_are_not_looked_for_in_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    History(tmp_path).write(numbered(*range(20_000)))
    parsed: list[bytes] = []

    def counting(text: bytes) -> Entry | None:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(history_module, "parse", counting)

    assert latest(tmp_path, 3) == numbered(19_999, 19_998, 19_997)
    assert len(parsed) <= 4


def test_a_line_is_an_object_with_the_time_in_utc(tmp_path: Path) -> None:
    History(tmp_path).write(numbered(1))

    assert json.loads((tmp_path / FILE).read_text()) == {"time": "2023-11-14T22:13:21.000Z", "kind": "peer added", "peer": "n1"}


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        History(tmp_path).write(numbered(1))
    finally:
        os.umask(before)

    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_line_that_a_crash_cut_short_costs_no_other(tmp_path: Path, cut: int) -> None:
    History(tmp_path).write(numbered(1, 2))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-cut])
    complete = 2 if cut == 1 else 1  # only the end of the line is missing: it can be read

    assert list(read(tmp_path)) == numbered(*range(1, complete + 1))
    History(tmp_path).write(numbered(3))
    assert list(read(tmp_path)) == [*numbered(*range(1, complete + 1)), *numbered(3)]


@pytest.mark.parametrize(
    "line", [b"", b"7", b"{}", b"null", b"\xff\xfe", b'{"time": 1, "kind": "x"}', b'{"time": "x", "kind": "x"}']
)
def test_lines_that_are_no_entries_are_skipped(tmp_path: Path, line: bytes) -> None:
    (tmp_path / FILE).write_bytes(line + b"\n")
    History(tmp_path).write(numbered(1))

    assert list(read(tmp_path)) == numbered(1)


def test_it_is_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    history, limit = History(tmp_path, limit=1000), 1000
    for number in range(200):
        history.write(numbered(number))

        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * limit

    assert {path.name for path in tmp_path.iterdir()} == {FILE, OLD_FILE}
    kept = list(read(tmp_path))
    assert kept == numbered(*range(200 - len(kept), 200)) and len(kept) > 10


def test_a_disk_that_is_full_is_said_once_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path)
    history.write(numbered(1))

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for number in range(2, 5):
            history.write(numbered(number))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    history.write(numbered(5))

    assert len(said) == 1 and "No space left on device" in said[0]
    lost = entry(NOW + 5, Kind.LOST, since=rfc3339(NOW + 2))
    assert list(read(tmp_path)) == [*numbered(1), lost, *numbered(5)], "the file says that some are missing"


def test_a_disk_that_takes_half_a_line_leaves_the_next_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, write = History(tmp_path), os.write
    takes = [20]

    def nearly_full(descriptor: int, data: bytes) -> int:
        if not takes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: takes.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        history.write(numbered(1))
    history.write(numbered(2))

    assert list(read(tmp_path)) == [entry(NOW + 2, Kind.LOST, since=rfc3339(NOW + 1)), *numbered(2)]


def test_each_file_begins_with_what_a_reader_needs_who_has_no_other(tmp_path: Path) -> None:
    opening = whole(status(replace(FAMILY, peers=(PEER,))))
    history = History(tmp_path, limit=2000, opening=lambda: opening)
    for number in range(100):
        history.write(numbered(number))

    for path in tmp_path.iterdir():
        first, second, third, *_ = path.read_bytes().splitlines()
        assert [parse(first), parse(second)] == [replace(one, at=NOW) for one in opening]
        assert parse(third).kind == "peer added"  # type: ignore[union-attr]
    assert len(list(tmp_path.iterdir())) == 2


def test_after_entries_were_lost_the_file_says_where_all_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path, opening=lambda: numbered(7))
    history.write(numbered(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        history.write(numbered(2))
    history.write(numbered(3))

    assert [one.kind for one in read(tmp_path)] == ["peer added", "peer added", "entries lost", "peer added", "peer added"]


def test_a_directory_that_is_gone_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    History(tmp_path / "gone").write(numbered(1))

    assert "cannot be written" in caplog.text


def test_a_file_that_turns_over_between_the_two_looks_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history, opened = History(tmp_path, limit=100), history_module._open_one
    history.write(numbered(1))
    turns = iter([2])

    def open_and_turn_over(path: Path) -> Any:
        file = opened(path)
        history.write(numbered(*((number,) if (number := next(turns, 0)) else ())))
        return file

    monkeypatch.setattr(history_module, "_open_one", open_and_turn_over)

    assert list(read(tmp_path)) == numbered(1, 2)


def test_who_reads_while_it_turns_over_sees_each_entry_once(tmp_path: Path) -> None:
    history = History(tmp_path, limit=20_000)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            history.write(numbered(*range(number, number + 50)))
            number += 50

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            times = [one.at for one in read(tmp_path)]
            assert times == sorted(set(times))
            if times:
                assert times[-1] - times[0] == len(times) - 1, "and leaves none out"
    finally:
        stop.set()
        writer.join()
