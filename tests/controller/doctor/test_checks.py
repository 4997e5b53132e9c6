"""All checks together."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from controller.doctor import family_checks, host_checks
from controller.doctor.checks import CHECKS, examine
from controller.doctor.diagnosis import Unseen
from controller.doctor.facts import Facts
from controller.doctor.remedies import REMEDIES
from tests.controller.doctor.well import WELL


def test_where_all_is_well_nothing_is_said() -> None:
    report = examine(WELL)
    assert list(report) == [check.name for check in CHECKS]
    assert len(report) == len(CHECKS) and not any(report.values())


@pytest.mark.parametrize(
    ("facts", "why", "well"),
    [
        (WELL, None, 21),
        (replace(WELL, families=()), "WireGuard is not enabled in FelixConfiguration", 7),
        (replace(WELL, families=(), state_error="it is not there"), "the agent's state is not there", 7),
        (replace(WELL, is_known=False), "the cluster has no node n1", 5),
        (replace(WELL, is_known=False, source_error="away"), "there is no cluster to go by", 4),
    ],
)
def test_what_nobody_has_looked_at_is_not_called_well(facts: Facts, why: str | None, well: int) -> None:
    report = examine(facts)
    assert len([name for name, results in report.items() if not results]) == well
    whys = {one.why for results in report.values() for one in results if isinstance(one, Unseen)}
    assert whys == ({why} if why else set())


def test_the_page_on_troubles_has_every_reason() -> None:
    page = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()
    source = "".join(Path(str(module.__file__)).read_text() for module in (host_checks, family_checks))
    reasons = {*re.findall(r'Diagnosis\(\s*"(\w+)"', source), "RouteMissing", "RouteUnguarded", "Refused", *REMEDIES}
    assert len(reasons) > 60
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in page] == []
    assert "goes through twenty-one checks" in page and len(CHECKS) == 21
