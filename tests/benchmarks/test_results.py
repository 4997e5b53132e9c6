"""Medians, ratios that always say how many times better, and reports that come back from JSON as they went in."""

import pytest

from benchmarks.results import Quiet, Report, Row, percentile

SPEED = Row("speed", "speed", "TCP", "Gb/s", "higher")
CPU = Row("cpu", "CPU", "CPU", "s/GB", "lower")


def made(values: dict[tuple[Row, str], list[float]]) -> Report:
    report = Report(machine={"CPU": "a slow one", "cores": 2}, when="2026-01-02T03:04:05+00:00")
    for (row, plane), each in values.items():
        report.at(row, plane).values += each
    return report


def test_the_median_and_the_spread_are_those_of_the_rounds() -> None:
    measurement = made({(SPEED, "wgpy"): [3.0, 1.0, 2.5]}).at(SPEED, "wgpy")
    assert measurement.median == 2.5
    assert measurement.spread == (1.0, 3.0)


def test_nothing_measured_is_nothing_and_not_zero() -> None:
    report = made({(SPEED, "wgpy"): []})
    assert report.at(SPEED, "wgpy").median is None
    assert report.at(SPEED, "wgpy").spread is None


@pytest.mark.parametrize(("row", "ratio"), [(SPEED, 2.0), (CPU, 0.5)])
def test_a_ratio_above_one_is_better_whichever_way_the_row_points(row: Row, ratio: float) -> None:
    report = made({(row, "wgpy"): [4.0, 4.0, 99.0], (row, "wireguard-go"): [2.0]})
    assert report.ratio(row.name, "wgpy") == ratio


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [0.0]), ([-1.0], [1.0])])
def test_without_two_values_above_zero_there_is_no_ratio(ours: list[float], theirs: list[float]) -> None:
    assert made({(CPU, "wgpy"): ours, (CPU, "wireguard-go"): theirs}).ratio("cpu", "wgpy") is None


def test_a_ratio_to_what_was_not_measured_is_none() -> None:
    assert made({(SPEED, "wgpy"): [1.0]}).ratio("speed", "wgpy") is None


def test_a_ratio_may_be_to_another_row() -> None:
    large = Row("large", "large", "TCP", "Gb/s", "higher")
    report = made({(SPEED, "wgpy"): [2.0], (large, "wgpy"): [3.0]})
    assert report.ratio("large", "wgpy", "wgpy", to_row="speed") == 1.5


def test_a_report_comes_back_from_json_with_every_value() -> None:
    report = made({(SPEED, "wgpy"): [2.0, 1.0], (CPU, "wgpy"): [3.25]})
    report.at(SPEED, "veth").failures.append("round 1: no answer")
    report.at(CPU, "wgpy").note = "both ends"
    report.rounds.append(Quiet(idle=0.5, load=1.25, busy=True))
    back = Report.from_json(report.to_json())
    assert back == report
    assert back.busy


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "rows": 3}', '{"format": 1, "other": []}'])
def test_what_is_no_report_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="not a report") as caught:
        Report.from_json(text)
    assert "\n" not in str(caught.value)


def test_groups_and_rows_keep_their_order_and_leave_out_what_was_not_measured() -> None:
    report = made({(CPU, "wgpy"): [1.0], (SPEED, "wgpy"): [1.0]})
    report.rows["unused"] = Row("unused", "unused", "TCP", "Gb/s", "higher")
    assert report.groups() == {"CPU": [CPU], "TCP": [SPEED]}


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_the_value_that_so_many_do_not_exceed(share: float, value: float) -> None:
    assert percentile([float(each) for each in range(100, 0, -1)], share) == value


def test_the_percentiles_of_one_value_are_that_value() -> None:
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
