"""The conformance suite itself: it finds what holds, and it finds what does not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.__main__ import MARK, UsageError, chosen, main, page, present, status
from tests.conformance.behaviour import Behaviour, Outcome, Verdict, behaviour
from tests.conformance.behaviours import in_order
from tests.conformance.boxes import Plan, Process
from tests.conformance.report import Report, markdown

PROJECT = Path(__file__).parents[2]
QUICK = ["responder", "initiator", "replayed-initiation", "reserved-bytes", "confirmation", "replay-window"]


def row(name: str) -> Behaviour:
    return Behaviour(name, "1.0", f"does {name}", lambda trial: None)


def report(*outcomes: Outcome) -> Report:
    return Report([row("a"), row("b")], {"wgpy": "wgpy 0", "other": "other 1"}, {"third": "not installed"}, outcomes, 1.0)


def test_behaviours_are_chosen_by_name_pattern_and_section() -> None:
    assert [each.name for each in chosen(["replay-window"])] == ["replay-window"]
    assert {each.section for each in chosen(["1.3"])} == {"1.3"}
    assert len(chosen(["replay*", "replay-window"])) == len(chosen(["replay*"]))
    assert chosen([]) == in_order()
    with pytest.raises(UsageError, match="there is no behaviour 'nonsense'; --list shows them"):
        chosen(["nonsense"])


def test_two_behaviours_of_one_name_are_a_mistake() -> None:
    def responder(trial: object) -> None:
        return

    with pytest.raises(ValueError, match="two behaviours responder"):
        behaviour("1.3", "again")(responder)


def test_a_missing_implementation_is_told_and_may_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    here, gone = Process("here", ["true"]), Process("gone", [], absent="gone is not installed")
    monkeypatch.delenv("WGPY_REQUIRE_PEERS", raising=False)
    assert present([here, gone]) == ([here], {"gone": "gone is not installed"})
    with pytest.raises(UsageError):
        present([gone])
    for required in ("all", "gone"):
        monkeypatch.setenv("WGPY_REQUIRE_PEERS", required)
        with pytest.raises(UsageError, match=r"gone is not installed \(WGPY_REQUIRE_PEERS asks for gone\)"):
            present([here, gone])


def test_only_the_judged_one_decides_the_status() -> None:
    broken_elsewhere = [Outcome("wgpy", "a", Verdict.HOLDS), Outcome("other", "a", Verdict.BROKEN, "no")]
    assert status(report(*broken_elsewhere), "wgpy") == 0
    assert status(report(*broken_elsewhere), "other") == 1
    assert status(report(Outcome("wgpy", "a", Verdict.ERROR, "?")), "wgpy") == 1
    assert status(report(Outcome("wgpy", "a", Verdict.NOT_APPLICABLE, "?")), "wgpy") == 1, "nothing was seen to hold"


def test_the_page_numbers_its_reasons() -> None:
    page = markdown(report(Outcome("wgpy", "a", Verdict.HOLDS), Outcome("other", "a", Verdict.BROKEN, "it said no")))
    assert "| 1.0 | does a | ✓ | ✗ [1] |" in page
    assert "1. other, a: it said no" in page
    assert "| | holds | 1 of 1 | 0 of 1 |" in page
    assert "- third was not tried: not installed" in page


def test_only_the_table_of_a_page_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    assert page(file, "new\n") == "new\n"
    file.write_text(f"# Prose\n{MARK}\nold\n")
    assert page(file, "new\n") == f"# Prose\n{MARK}\nnew\n"


def test_the_addresses_of_two_trials_do_not_meet() -> None:
    networks = [Plan(number).network(version, leg) for number in (1, 16, 255) for version in (4, 6) for leg in (77, 99, 66, 88)]
    assert len(set(networks)) == len(networks)


def test_without_a_behaviour_of_that_name_it_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert capsys.readouterr().err == "conformance: there is no behaviour 'nonsense'; --list shows them\n"


# With real traffic ----------------------------------------------------------------------------------------------------


def conduct(*arguments: str) -> tuple[int, dict[str, str]]:
    """The exit status, and the verdict of each behaviour, of one implementation."""
    command = [sys.executable, "-m", "tests.conformance", "--output", "json", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, {each["behaviour"]: each["verdict"] for each in json.loads(done.stdout)["outcomes"]}


@pytest.mark.e2e
def test_what_needs_no_time_holds_for_wgpy() -> None:
    assert conduct("--on", "wgpy", *QUICK) == (0, dict.fromkeys(QUICK, "holds"))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("behaviour_", "file", "good", "bad"),
    [
        ("confirmation", "noise/keypair.py", "        self.next = new\n", "        self.next = self.current = new\n"),
        ("replayed-initiation", "noise/handshake.py", "if timestamp <= self.timestamp:", "if timestamp < bytes(12):"),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, behaviour_: str, file: str, good: str, bad: str) -> None:
    for package in ("noise", "tun", "wgpy"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (tmp_path / file).read_text()
    assert good in text
    (tmp_path / file).write_text(text.replace(good, bad))

    command = f"env PYTHONPATH={tmp_path} {sys.executable} -P -m wgpy -f"
    status, verdicts = conduct("--command", command, behaviour_, "initiator")

    assert (status, verdicts) == (1, {behaviour_: "broken", "initiator": "holds"})
