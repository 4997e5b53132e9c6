"""What happened is found by comparison, written line by line, and survives what machines do."""

import errno
import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from controller import history as history_module
from controller.findings import Finding
from controller.history import FILE, OLD_FILE, Entry, History, Kind, changes, entry, read, rfc3339
from controller.model import Family
from controller.status import AgentStatus, FamilyStatus, PeerStatus, SourceStatus, Traffic
from tests.controller.test_status import statuses

NOW = 1_700_000_000.0
PEER = PeerStatus("n2", Traffic.ENCRYPTED, public_key="K2", endpoint="192.0.2.2:51820", last_handshake=NOW - 9)
FAMILY = FamilyStatus(
    Family.IPV4,
    public_key="K1",
    announced="K1",
    interface="wireguard.caliu",
    interface_address="10.0.1.9",
    mtu=1440,
    has_data_plane=True,
    peers=(PEER,),
)


def status(family: FamilyStatus = FAMILY, **fields: Any) -> AgentStatus:
    source = SourceStatus("kubernetes", is_synced=True)
    return AgentStatus(
        **{"at": NOW, "node": "n1", "mesh": "calico", "version": "1", "source": source, "families": (family,), **fields}
    )


def told(before: AgentStatus | None, after: AgentStatus) -> list[tuple[str, dict[str, Any]]]:
    return [(one.kind, dict(one.fields)) for one in changes(before, after)]


def told_of_family(**fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """What is told when these fields of the family change; the family's name left out."""
    found = told(status(), status(replace(FAMILY, **fields)))
    assert all(entry.pop("family") == "IPv4" for _, entry in found)
    return found


def told_of_peer(before: PeerStatus = PEER, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    families = [replace(FAMILY, peers=(peer,)) for peer in (before, replace(before, **fields))]
    found = told(*map(status, families))
    assert all((entry.pop("family"), entry.pop("peer")) == ("IPv4", "n2") for _, entry in found)
    return found


# -- what has changed ------------------------------------------------------------------------------------------------


@given(statuses)
def test_nothing_has_happened_where_nothing_has_changed(one: AgentStatus) -> None:
    assert changes(one, one) == []


def test_counters_and_times_are_no_events() -> None:
    later = replace(PEER, last_handshake=NOW + 100, rx_bytes=7, tx_bytes=8)

    assert told(status(), status(replace(FAMILY, peers=(later,)), at=NOW + 110, passes=9, passed_at=NOW, pass_seconds=1.0)) == []


def test_a_first_status_tells_all_there_is() -> None:
    kinds = [kind for kind, _ in told(None, status(is_strict=True))]

    assert kinds == [
        "source back",
        "strict mode on",
        "family enabled",
        "data plane found",
        "key made",
        "key published",
        "interface changed",
        "interface address changed",
        "MTU changed",
        "peer added",
        "first handshake",
    ]


def test_the_source_is_lost_and_back() -> None:
    away = status(source=SourceStatus("kubernetes", is_synced=False, failure="connection refused"))

    assert told(status(), away) == [("source lost", {"source": "kubernetes", "why": "connection refused"})]
    assert told(away, status()) == [("source back", {"source": "kubernetes"})]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"rest": "not enabled"}, "family disabled", {"why": "not enabled"}),
        ({"is_refusing": True}, "refusal on", {}),
        ({"has_data_plane": False}, "data plane lost", {"interface": "wireguard.caliu"}),
        ({"failure": "no such device"}, "failure", {"why": "no such device"}),
        ({"public_key": "K9", "announced": "K9"}, "key made", {"key": "K9", "before": "K1"}),
        ({"announced": None}, "key cleared by another", {"key": "K1"}),
        ({"announced": None, "is_withdrawing": True}, "key withdrawn", {"key": "K1"}),
        ({"announced": None, "rest": "not enabled"}, "key withdrawn", {"key": "K1"}),
        ({"announced": "K7"}, "key overwritten by another", {"key": "K7", "before": "K1"}),
        ({"contest": "Felix writes it, too"}, "key contested", {"why": "Felix writes it, too"}),
        ({"interface": "wg9"}, "interface changed", {"before": "wireguard.caliu", "after": "wg9"}),
        ({"interface_address": None}, "interface address changed", {"before": "10.0.1.9", "after": None}),
        ({"mtu": 1380}, "MTU changed", {"before": 1440, "after": 1380}),
        ({"peers": ()}, "peer removed", {"peer": "n2", "key": "K2"}),
    ],
)
def test_what_happens_to_a_family(fields: dict[str, Any], kind: str, said: dict[str, Any]) -> None:
    assert (kind, said) in told_of_family(**fields)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"rest": "not enabled"}, "family enabled"),
        ({"is_refusing": True}, "refusal off"),
        ({"has_data_plane": False}, "data plane found"),
        ({"failure": "no such device"}, "recovery"),
        ({"announced": None}, "key published"),
        ({"contest": "Felix"}, "key no longer contested"),
        ({"peers": ()}, "peer added"),
    ],
)
def test_and_is_over_again(fields: dict[str, Any], kind: str) -> None:
    assert kind in [found for found, _ in told(status(replace(FAMILY, **fields)), status())]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"public_key": "K8", "last_handshake": None}, "peer's key changed", {"before": "K2", "after": "K8"}),
        (
            {"traffic": Traffic.REFUSED, "why": "has no public key"},
            "peer's traffic changed",
            {"before": "encrypted", "after": "refused", "why": "has no public key"},
        ),
        ({"endpoint": "192.0.2.9:51820"}, "peer's endpoint changed", {"before": "192.0.2.2:51820", "after": "192.0.2.9:51820"}),
        (
            {"endpoint": "[2001:db8::1]:7", "has_roamed": True},
            "peer roamed",
            {"before": "192.0.2.2:51820", "after": "[2001:db8::1]:7"},
        ),
        ({"is_silent": True}, "handshake lost", {"handshake": rfc3339(NOW - 9)}),
    ],
)
def test_what_happens_to_a_peer(fields: dict[str, Any], kind: str, said: dict[str, Any]) -> None:
    assert told_of_peer(**fields) == [(kind, said)]


def test_a_first_handshake_and_one_after_silence() -> None:
    never = replace(PEER, last_handshake=None, is_silent=True)
    lost = replace(PEER, is_silent=True)

    assert told_of_peer(never, last_handshake=NOW, is_silent=False) == [("first handshake", {"handshake": rfc3339(NOW)})]
    assert told_of_peer(lost, last_handshake=NOW, is_silent=False) == [("handshake back", {})]
    assert [kind for kind, _ in told_of_peer(public_key="K8", last_handshake=NOW)] == ["peer's key changed", "first handshake"]


def test_a_family_that_is_switched_off_is_one_event_and_not_one_for_each_peer() -> None:
    clear = replace(PEER, traffic=Traffic.CLEAR, why="this node: not enabled")

    kinds = [kind for kind, _ in told(status(), status(replace(FAMILY, rest="not enabled", peers=(clear,))))]

    assert kinds == ["family disabled"]


def test_warnings_are_raised_and_cleared_by_what_they_are_about() -> None:
    one = Finding("DuplicateKey", "n3", "n3 and n4 have the same key")
    reworded = replace(one, message="n3, n4 and n5 have the same key")

    assert told(status(), status(findings=(one,))) == [
        ("warning raised", {"reason": "DuplicateKey", "subject": "n3", "message": "n3 and n4 have the same key"})
    ]
    assert told(status(findings=(one,)), status(findings=(reworded,))) == []
    assert told(status(findings=(one,)), status()) == [("warning cleared", {"reason": "DuplicateKey", "subject": "n3"})]


def test_every_kind_has_words_of_its_own() -> None:
    assert len({kind.value for kind in Kind}) == len(Kind)


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
    assert list(read(tmp_path)) == numbered(1, 5)


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

    assert list(read(tmp_path)) == numbered(2)


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
