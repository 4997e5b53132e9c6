"""What people read: cells, Markdown, charts and verdicts of a tiny report."""

from pathlib import Path

import pytest

from benchmarks import report as show
from benchmarks.judge import BOUNDS, judge
from benchmarks.results import Quiet, Report, Row

SPEED = Row("tcp-1", "TCP, 1 stream", "TCP", "Gb/s", "higher")
CPU = Row("tcp-1-cpu", "both ends", "CPU", "s/GB", "lower")


@pytest.fixture
def report() -> Report:
    made = Report(
        machine={"CPU": "a slow one", "cores": 2}, options={"rounds": 3, "seconds": 1.0}, when="2026-01-02T03:04:05+00:00"
    )
    made.planes = {"wireguard-go": "wireguard-go v1", "wgpy": "wgpy 1"}
    made.at(SPEED, "veth").values += [20.0, 22.0, 21.0]
    made.at(SPEED, "wireguard-go").values += [2.0, 2.1, 1.9]
    made.at(SPEED, "wgpy").values += [2.2, 2.4, 2.3]
    made.at(CPU, "wireguard-go").values += [4.0]
    made.at(CPU, "wgpy").values += [5.0]
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.012"), (0.5, "0.50"), (2.345, "2.35"), (23.45, "23.4"), (234.5, "234"), (53174.2, "53,174")],
)
def test_figures_have_the_digits_that_mean_something(value: float, text: str) -> None:
    assert show.figure(value) == text


def test_a_cell_has_median_spread_and_ratio(report: Report) -> None:
    assert show.cell(report, "tcp-1", "wgpy") == show.Cell("2.30", "2.20–2.40", "×1.15")
    assert show.cell(report, "tcp-1-cpu", "wgpy") == show.Cell("5.00", "", "×0.80")
    assert show.cell(report, "tcp-1", "wireguard-go").ratio == ""
    assert show.cell(report, "tcp-1-cpu", "veth") == show.Cell()


def test_a_failed_cell_says_so_and_never_zero(report: Report) -> None:
    report.at(SPEED, "ipsec").failures += ["round 1: it died", "round 2: it died"]
    report.at(SPEED, "wgpy").failures.append("round 4: no answer")
    assert show.cell(report, "tcp-1", "ipsec") == show.Cell(failed="failed (2 of 2)")
    assert show.cell(report, "tcp-1", "wgpy").failed == "failed (1 of 4)"
    text = show.markdown(report)
    assert "failed (2 of 2)" in text
    assert "ipsec: round 2: it died (tcp-1)" in text


def test_wgpy_is_the_first_column_and_the_ceiling_the_last(report: Report) -> None:
    assert show.columns(report, [SPEED, CPU]) == ["wgpy", "wireguard-go", "veth"]


def test_markdown_has_a_line_for_each_row(report: Report) -> None:
    lines = show.markdown(report).splitlines()
    assert "|  |  | wgpy | wireguard-go | veth |" in lines
    assert "| TCP, 1 stream | Gb/s ↑ | **2.30** (2.20–2.40) ×1.15 | 2.00 (1.90–2.10) | 21.0 (20.0–22.0) ×10.50 |" in lines
    assert "| both ends | s/GB ↓ | **5.00** ×0.80 | 4.00 |" in lines
    assert "* wgpy: wgpy 1" in lines


def test_the_terminal_shows_the_same_figures(report: Report) -> None:
    console = show.console()
    with console.capture() as shown:
        show.tables(console, report)
    for text in ("2.30", "×1.15", "2.20–2.40", "TCP, 1 stream", "above goal"):
        assert text in shown.get()


def test_a_busy_machine_is_told_of_with_its_round(report: Report) -> None:
    assert "BUSY" not in show.markdown(report)
    report.rounds += [Quiet(0.99, 0.1, busy=False), Quiet(0.42, 1.5, busy=True)]
    assert "do not believe these figures (round 2: 42% idle)" in show.markdown(report)


def test_an_emulated_machine_is_told_of_with_every_table(report: Report) -> None:
    assert "emulated" not in show.markdown(report)
    report.machine["emulated"] = True
    headings = [line for line in show.markdown(report).splitlines() if line.startswith(("# ", "## TCP", "## CPU", "## Floors"))]
    assert len(headings) == 3, "no floors: they are a real machine's"
    assert all("emulated" in line for line in headings)


def test_write_leaves_json_markdown_and_charts(report: Report, tmp_path: Path) -> None:
    report.at(SPEED, "ipsec").failures.append("round 1: it died")
    paths = show.write(report, tmp_path / "out")
    assert {path.name for path in paths} == {"latest.json", "latest.md", "tcp.png", "cpu.png", "overview.png"}
    assert Report.from_json((tmp_path / "out" / "latest.json").read_text()) == report
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths if path.suffix == ".png")


def test_a_group_that_nobody_has_a_value_in_has_no_chart(tmp_path: Path) -> None:
    report = Report()
    report.at(SPEED, "wgpy").failures.append("round 1: it died")
    assert [path.name for path in show.write(report, tmp_path)] == ["latest.json", "latest.md"]


# --- Verdicts ---


def verdict(ours: float, theirs: float, row: Row = SPEED) -> str:
    report = Report()
    report.at(row, "wgpy").values.append(ours)
    report.at(row, "wireguard-go").values.append(theirs)
    return next(each for each in judge(report) if each.bound.rows == (row.name,)).words


@pytest.mark.parametrize(
    ("ours", "words"), [(0.8, "below floor"), (0.85, "above floor"), (1.09, "above floor"), (1.1, "above goal")]
)
def test_more_is_held_against_floor_and_goal(ours: float, words: str) -> None:
    assert verdict(ours, 1.0) == words


@pytest.mark.parametrize(("ours", "words"), [(1.3, "below floor"), (1.25, "above floor"), (1.0, "above goal")])
def test_less_is_held_against_floor_and_goal(ours: float, words: str) -> None:
    assert verdict(ours, 1.0, CPU) == words


def test_what_was_not_measured_has_no_verdict() -> None:
    assert {each.words for each in judge(Report())} == {"not measured"}


def test_of_several_rows_the_worst_counts_and_all_must_be_there() -> None:
    bound = next(each for each in BOUNDS if each.plane == "gotatun")
    report = Report()
    for number, name in enumerate(bound.rows):
        assert next(each for each in judge(report) if each.bound is bound).words == "not measured"
        row = Row(name, name, "", "", "higher")
        report.at(row, "wgpy").values.append(2.0)
        report.at(row, "gotatun").values.append(2.5 if number == 1 else 1.0)
    found = next(each for each in judge(report) if each.bound is bound)
    assert (found.words, found.row, found.ratio) == ("below floor", bound.rows[1], 0.8)


def test_every_bound_names_rows_that_the_suite_has() -> None:
    from benchmarks.suite import ALL

    names = {row.name for workload in ALL for row in workload.rows}
    assert {name for bound in BOUNDS for name in (*bound.rows, bound.row) if name} <= names
