"""The command line: reports in three forms, and each of them checked."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from controller.compliance.command import SIGNER_UNKNOWN, main
from controller.compliance.signing import SigningKeys, canonical
from controller.history import FILE
from tests.controller.compliance.histories import record, running, started, stood
from tests.controller.compliance.test_model import HISTORY

PERIOD = ["--from", "2026-11-01", "--to", "2026-11-01T04:00:00Z"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: 1_793_491_200.0 + 6 * 3600)
    record(tmp_path / "state", *HISTORY)
    return tmp_path / "state"


def report(state: Path, file: Path, *more: str) -> Path:
    assert main(["--framework", "pci-dss", "--state", str(state), "-o", str(file), *PERIOD, *more]) == 0
    return file


@pytest.mark.parametrize("form", ["json", "html", "pdf"])
def test_each_form_verifies_and_does_not_if_it_was_altered(
    state: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = report(state, tmp_path / f"report.{form}")

    assert main(["verify", str(file), "--state", str(state)]) == 0
    assert "genuine PCI DSS 4.0.1 report on n1" in capsys.readouterr().out
    content = file.read_bytes()
    for old, new in ((b"refused", b"refusee"), (b"15 min", b"16 min"), (b"of 2 peers", b"of 1 peers")):
        for place in (content.find(old), content.rfind(old)):  # on the page, and in the statement
            file.write_bytes(content[:place] + new + content[place + len(old) :])
            assert place >= 0 and main(["verify", str(file), "--state", str(state)]) == 1, (old, place)
    file.write_bytes(content + b" ")
    assert main(["verify", str(file), "--state", str(state)]) == (0 if form == "json" else 1)


def test_a_page_that_was_altered_still_gives_the_statement_that_was_signed(state: Path, tmp_path: Path) -> None:
    file, plain = report(state, tmp_path / "report.html"), tmp_path / "plain.json"
    report(state, plain)
    file.write_bytes(file.read_bytes().replace(b"<h2>Keys</h2>", b"<h2>Keys!</h2>"))

    assert main(["verify", str(file), "--state", str(state), "--extract", str(tmp_path / "out.json")]) == 1
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(plain.read_text())


def test_a_signer_that_nobody_knows_is_not_simply_good(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, nowhere = report(state, tmp_path / "r.json"), str(tmp_path / "none")

    assert main(["verify", str(file), "--state", nowhere]) == SIGNER_UNKNOWN
    assert "nothing says whose key that is" in capsys.readouterr().err
    assert main(["key", "--state", str(state)]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "keys").write_text(printed)
    for key in (printed.split()[0], str(tmp_path / "keys")):
        assert main(["verify", str(file), "--state", nowhere, "--key", key]) == 0
    assert main(["verify", str(file), "--key", "AAAA"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"made_by": "wgpy 1\x1b[8m"},
        {"nodes": ["n1\nsigned with: the key you trust"]},
        {"nodes": ["\u202en1"]},
    ],
)
def test_what_a_stranger_has_signed_gives_the_terminal_no_orders(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    file = forged(tmp_path, json.loads(report(state, tmp_path / "r.json").read_bytes())["statement"] | change)

    assert main(["verify", str(file), "--state", str(tmp_path / "none")]) == SIGNER_UNKNOWN

    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    assert [line.startswith("signed with: ") for line in lines] == [False, False, True, False]


@pytest.mark.parametrize("lacks", ["framework", "nodes", "period", "made_by"])
@pytest.mark.parametrize("instead", [None, [], {}, 3, [1]])
def test_what_a_stranger_has_signed_need_be_no_report(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lacks: str, instead: Any
) -> None:
    statement = json.loads(report(state, tmp_path / "r.json").read_bytes())["statement"]
    file = forged(tmp_path, {**statement, lacks: instead})

    assert main(["verify", str(file), "--state", str(tmp_path / "none")]) == 1

    assert "is no report" in capsys.readouterr().err


def forged(tmp_path: Path, statement: dict[str, Any]) -> Path:
    """Signed by somebody."""
    (tmp_path / "stranger").mkdir()
    path = tmp_path / "forged.json"
    path.write_bytes(canonical(SigningKeys(tmp_path / "stranger").sign(statement, time.time())))
    return path


def test_after_a_rotation_old_reports_and_old_keys_are_still_good(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = report(state, tmp_path / "early.json")
    main(["--state", str(state), "key"])
    old = capsys.readouterr().out.split()[0]
    assert main(["rotate-key", "--state", str(state)]) == 0
    new = capsys.readouterr().out.split()[0]
    late = report(state, tmp_path / "late.pdf")

    assert new != old
    for file, key in ((early, old), (late, old), (late, new)):
        assert main(["verify", str(file), "--key", key]) == 0
    assert main(["verify", str(early), "--key", new]) == SIGNER_UNKNOWN, "a new key does not vouch for what came before"
    assert main(["verify", str(early), "--state", str(state)]) == 0, "but the key ring does"


def test_what_is_wrong_is_said_in_one_line(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([], "say what for: --framework"),
        (["--framework", "gdpr", "--state", str(tmp_path)], "there is no history.jsonl"),
        (["--framework", "gdpr", "--state", str(state), "--from", "2026-11-02", "--to", "2026-11-01"], "begin before it ends"),
        (["verify", str(tmp_path / "none")], "cannot read"),
        (["verify", str(state / FILE)], "not a report"),
        (["--framework", "gdpr", "--state", str(state), *PERIOD, "-o", str(tmp_path / "no" / "x.pdf")], "cannot write"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and error.startswith("wgpy report")
    with pytest.raises(SystemExit) as caught:
        main(["--framework", "sox"])
    assert caught.value.code == 2


def test_the_period_ends_now_or_where_a_running_agent_spoke_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = 1_793_491_200.0
    record(tmp_path, started(0), stood(0, "n2", "n3"), *running(0, 2))
    for now, end in ((begin + 2 * 3600 + 600, "2026-11-01T02:00:00.000Z"), (begin + 4 * 3600, "2026-11-01T04:00:00.000Z")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert (
            main(["--framework", "gdpr", "--state", str(tmp_path), "-o", str(tmp_path / "r.json"), "--from", "2026-11-01"]) == 0
        )
        assert json.loads((tmp_path / "r.json").read_text())["statement"]["period"]["to"] == end


def test_several_nodes_are_one_report(state: Path, tmp_path: Path) -> None:
    other = tmp_path / "n2"
    record(other, *HISTORY)
    (other / FILE).write_text((other / FILE).read_text().replace('"node": "n1"', '"node": "n2"'))
    file = report(state, tmp_path / "both.json", "--history", str(state), "--history", str(other))

    assert json.loads(file.read_text())["statement"]["nodes"] == ["n1", "n2"]
