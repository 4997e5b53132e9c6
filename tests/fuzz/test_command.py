"""The command around the fuzzers: what it prints, what it keeps, and how it ends. libFuzzer's part is played by short scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz.targets import CORPUS, TARGETS, inputs

QUIET = 'print("stat::number_of_executed_units: 1234")'
FINDS = """
import sys
open(sys.argv[1] + "crash-1", "wb").write(b"bad")
print("#77\\tREDUCE cov: 1")
print("Traceback (most recent call last):\\n  here\\nKeyError: 'unexpected'\\n==1== ERROR")
sys.exit(77)
"""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Scripts by the name of their target, in place of the fuzzers; each is given the prefix of its findings."""
    scripts: dict[str, str] = {}
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(command, "FINDINGS", tmp_path / "cache" / "findings")
    monkeypatch.setattr(
        command,
        "_target",
        lambda name, seconds, inputs: [sys.executable, "-c", scripts[name], f"{command.FINDINGS}/{name}-"],
    )
    return scripts


def test_a_search_without_findings(scripted: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    scripted.update({"messages": QUIET, "values": QUIET})

    assert command.search(["messages", "values"], seconds=1, inputs=0, jobs=2) == 0

    heading, first, second, together = capsys.readouterr().out.splitlines()
    assert heading.split() == ["target", "inputs", "inputs/s", "new", "entries", "findings"]
    assert first.split()[:2] == ["messages", "1,234"]
    assert second.split()[:2] == ["values", "1,234"]
    assert together.split() == ["together", "2,468", "0", "0"]


def test_a_finding_is_kept_told_and_ends_with_status_1(
    scripted: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.update({"messages": QUIET, "values": FINDS})

    assert command.search(["messages", "values"], seconds=1, inputs=0, jobs=1) == 1

    said = capsys.readouterr().out
    assert (tmp_path / "cache/findings/values-crash-1").read_bytes() == b"bad"
    name, count, *_, finding = said.splitlines()[2].split()
    assert (name, count, finding) == ("values", "77", "cache/findings/values-crash-1")
    assert "KeyError: 'unexpected'\nOnce more:" in said
    assert "-m tests.fuzz values cache/findings/values-crash-1" in said


def test_a_fuzzer_that_breaks_is_a_finding(scripted: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Lest one that cannot even start look like one that found nothing."""
    scripted["messages"] = "raise SystemExit('no such thing')"

    assert command.search(["messages"], seconds=1, inputs=0, jobs=1) == 1

    assert "no such thing" in capsys.readouterr().out


def test_one_input_is_tried_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    file = inputs("messages")[0]

    assert command.main(["messages", str(file)]) == 0

    assert capsys.readouterr().out == f"messages: nothing is wrong with {file}\n"


def test_a_name_that_is_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["nonsense"])

    assert ended.value.code == 2
    assert "no such target: nonsense" in capsys.readouterr().err


def test_the_real_fuzzer_starts_from_the_corpus(tmp_path: Path) -> None:
    """atheris is an extra; where it is not installed, this is the one test of it."""
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    arguments = ["messages", "-runs=200", "-print_final_stats=1", str(tmp_path), str(CORPUS / "messages")]

    done = subprocess.run([sys.executable, "-m", "tests.fuzz.engine", *arguments], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert command._number(done.stderr) >= 200
    assert f"{len(inputs('messages'))} files found in {CORPUS / 'messages'}" in done.stderr


def test_every_target_says_what_it_takes() -> None:
    assert all(target.summary for target in TARGETS.values())
