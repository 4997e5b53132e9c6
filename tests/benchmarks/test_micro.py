"""The micro-benchmarks: each HOT file is guarded, and what became dearer is said to have, whatever the machine."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.micro import (
    CASES,
    TOLERANCE,
    Case,
    Round,
    Timing,
    Verdict,
    calibration_loops,
    compare,
    hot_files,
    look,
    measure,
    middle,
    read_baseline,
    show,
    write_baseline,
)


def counting(what: str, to: int) -> Case:
    """A case whose cost is known to be in proportion to ``to``."""

    def rounds(batches: int) -> Iterator[Round]:
        while True:
            yield Round(lambda: sum(range(to)))

    return Case("made/file.py", what, ("bytecode",), 20, rounds)


def verdict_on(case: Case, baseline: float) -> Verdict:
    (verdict,) = compare(look([case], {case.name: baseline}, TOLERANCE), {case.name: baseline})
    return verdict


def test_every_hot_file_is_guarded_by_a_case_and_every_case_guards_a_hot_file() -> None:
    assert len(hot_files()) >= 5
    assert {case.guards for case in CASES} == set(hot_files())


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_baseline_has_just_the_cases() -> None:
    assert set(read_baseline()) == {case.name for case in CASES}


def test_every_case_runs_and_takes_time() -> None:
    with calibration_loops() as loops:
        timings = measure([replace(case, batches=2) for case in CASES], loops, rounds=2)

    assert timings.keys() == {case.name for case in CASES}
    for name, timing in timings.items():
        assert timing.cost > 0 and math.isfinite(timing.ratio), name


def test_a_case_that_became_dearer_is_a_regression_and_one_that_did_not_is_none() -> None:
    before = look([counting("a sum", 2000)], {}, TOLERANCE, thorough=True)["made/file.py: a sum"].ratio

    dearer = verdict_on(counting("a sum", 4000), before)
    assert dearer.is_bad(TOLERANCE) and dearer.change == pytest.approx(1.0, abs=0.5)
    assert show([dearer], TOLERANCE) == 1

    same = verdict_on(counting("a sum", 2000), before)
    assert not same.is_bad(0.5) and show([same], 0.5) == 0


def test_a_slower_machine_is_no_regression() -> None:
    before = Timing(100.0, 50.0)
    (verdict,) = compare({"case": Timing(300.0, 150.0)}, {"case": before.ratio})

    assert verdict.change == 0 and not verdict.is_bad(TOLERANCE)


def test_of_several_looks_the_one_with_the_middle_ratio_counts() -> None:
    looks = [Timing(100.0, 90.0), Timing(200.0, 100.0), Timing(100.0, 10.0)]
    assert middle(looks) == looks[1] and middle(looks[:1]) == looks[0]


def test_a_guard_that_vanished_is_bad_unless_only_some_cases_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    timings, baseline = {"new": Timing(1.0, 1.0)}, {"gone": 2.0}

    verdicts = compare(timings, baseline)
    assert [(verdict.name, verdict.is_bad(TOLERANCE)) for verdict in verdicts] == [("new", False), ("gone", True)]
    assert show(verdicts, TOLERANCE) == 1
    assert "REGRESSION beyond 15%: gone" in capsys.readouterr().out

    assert [verdict.name for verdict in compare(timings, baseline, selected=True)] == ["new"]


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert read_baseline(path) == {}

    write_baseline({"case": Timing(1.0, 3.0)}, path)
    assert read_baseline(path) == {"case": pytest.approx(1 / 3, rel=1e-3)}

    path.write_text("[]")
    with pytest.raises(ValueError, match=r"baseline\.json is no baseline"):
        read_baseline(path)
