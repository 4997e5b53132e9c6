"""Who talks most, live and once."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from controller import mesh_table
from controller.model import Family
from controller.status import HAS_LEFT, FamilyStatus, PeerStatus, Traffic, to_json
from controller.top import document, rows, run, table
from tests.controller.test_mesh_table import FAMILY, N2, NOW, status
from tests.controller.test_status import KEYS
from wgpy.config import DeviceSnapshot, PeerConfig, PeerSnapshot

QUIET = replace(N2, name="n4", rx_bytes=5, tx_bytes=0)
BUSY = replace(N2, name="n3", is_silent=True)
CLEAR = PeerStatus("n5", Traffic.CLEAR, "has no public key")
SPEED = {(Family.IPV4, "n2"): (1500.0, 20.0), (Family.IPV4, "n3"): (9e6, 0.0)}


def test_the_busiest_come_first() -> None:
    found = rows(status(QUIET, N2, CLEAR, BUSY), SPEED)

    assert [row.peer.name for row in found] == ["n3", "n2", "n4"], "and who is not encrypted to is left out"
    assert (found[2].received, found[2].sent) == (None, None)


def test_a_family_that_rests_has_no_rows() -> None:
    assert rows(status(families=(replace(FAMILY, rest="off"),)), SPEED) == []


def shown(most: int = 9) -> str:
    out = Console(width=160, record=True, file=io.StringIO())
    out.print(table(status(QUIET, N2, BUSY), SPEED, NOW, most))
    return out.export_text()


def test_what_is_shown() -> None:
    lines = [" ".join(line.split()) for line in shown().splitlines()]

    assert lines[0] == "n1 3 encrypted peers in 9.0 MB/s, out 20 B/s"
    assert lines[-3] == "n3 4 192.0.2.2:51820 no answer 9.0 MB/s 0 B/s 1.5 MB 900 B"
    assert lines[-2] == "n2 4 192.0.2.2:51820 9 s ago 1.5 kB/s 20 B/s 1.5 MB 900 B"
    assert lines[-1] == "n4 4 192.0.2.2:51820 9 s ago - - 5 B 0 B"


def test_where_nobody_is_encrypted_it_says_why() -> None:
    out = Console(width=160, record=True, file=io.StringIO())
    out.print(table(replace(status(), families=(FamilyStatus(Family.IPV4, rest=HAS_LEFT),)), {}, NOW))
    assert out.export_text().splitlines()[-1].strip() == f"IPv4: {HAS_LEFT}"


def test_those_that_have_no_room_are_counted() -> None:
    assert shown(most=1).splitlines()[-1].strip() == "and 2 more"


def test_for_programs() -> None:
    found = document(status(N2, BUSY), SPEED, NOW)

    assert [peer["name"] for peer in found["peers"]] == ["n3", "n2"]
    assert found["peers"][1]["rx_rate"] == 1500.0 and found["peers"][1]["endpoint"] == "192.0.2.2:51820"


@pytest.mark.parametrize("output", ["json", "yaml"])
@pytest.mark.parametrize("is_once", [True, False])
def test_rates_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_once: bool, output: str
) -> None:
    clock, counts = iter(range(100)), iter(range(0, 90000, 700))
    monkeypatch.setattr(time, "time", lambda: NOW + next(clock))
    monkeypatch.setattr(
        mesh_table, "_device", lambda name: DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEYS["n2"]), rx_bytes=next(counts)),))
    )
    slept = []

    def sleep(pause: float) -> None:
        slept.append(pause)
        if len(slept) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    (tmp_path / "status.json").write_text(to_json(status()))

    assert run(tmp_path, 1.0, is_once, output) == 0

    said = capsys.readouterr().out
    documents = list(yaml.safe_load_all(said if output == "yaml" else said.replace("\n{", "\n---\n{")))  # JSON is YAML, too
    assert len(documents) == (1 if is_once else 3)
    assert [one["peers"][0]["rx_rate"] for one in documents] == [700.0] * len(documents)


def test_where_nothing_is_known(tmp_path: Path) -> None:
    with pytest.raises(mesh_table.NothingKnown):
        run(tmp_path, 0.1, True, "table")
