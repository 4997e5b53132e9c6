"""What came of it: a table for people, behaviours down and implementations across, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from tests.conformance.behaviour import Behaviour, Outcome, Verdict

SIGNS = {Verdict.HOLDS: "✓", Verdict.BROKEN: "✗", Verdict.NOT_APPLICABLE: "–", Verdict.ERROR: "?"}
COLOURS = {Verdict.HOLDS: "green", Verdict.BROKEN: "red", Verdict.NOT_APPLICABLE: "dim", Verdict.ERROR: "yellow"}


@dataclass(frozen=True)
class Report:
    """``versions``: what exactly was tried, by name of implementation; ``missing``: why others were not."""

    behaviours: Sequence[Behaviour]
    versions: Mapping[str, str]
    missing: Mapping[str, str]
    outcomes: Sequence[Outcome]
    seconds: float

    def of(self, implementation: str, behaviour: str) -> Outcome | None:
        found = (each for each in self.outcomes if (each.implementation, each.behaviour) == (implementation, behaviour))
        return next(found, None)

    def counts(self, implementation: str) -> dict[Verdict, int]:
        mine = [each.verdict for each in self.outcomes if each.implementation == implementation]
        return {verdict: mine.count(verdict) for verdict in Verdict}

    def to_json(self) -> str:
        facts = {
            "versions": dict(self.versions),
            "missing": dict(self.missing),
            "seconds": round(self.seconds, 1),
            "behaviours": [{"name": each.name, "section": each.section, "title": each.title} for each in self.behaviours],
            "outcomes": [asdict(each) for each in self.outcomes],
        }
        return json.dumps(facts, indent=1) + "\n"


def show(report: Report, console: Console) -> None:
    """The table, and below it a line for each thing that does not hold."""
    table = Table(title=None, header_style="bold")
    for heading in ("section", "behaviour", *report.versions):
        table.add_column(heading)
    for each in report.behaviours:
        signs = []
        for name in report.versions:
            found = report.of(name, each.name)
            signs.append("" if found is None else f"[{COLOURS[found.verdict]}]{SIGNS[found.verdict]}[/]")
        table.add_row(each.section, each.title, *signs)
    console.print(table)
    for outcome in report.outcomes:
        if outcome.verdict in (Verdict.BROKEN, Verdict.ERROR):
            console.print(f"{outcome.implementation}: {outcome.behaviour}: {outcome.said}", highlight=False, markup=False)
    for name, version in report.versions.items():
        counts = report.counts(name)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        console.print(f"{name} ({version}): {told}", highlight=False, markup=False)
    for name, reason in report.missing.items():
        console.print(f"{name}: not tried: {reason}", highlight=False, markup=False)
    console.print(f"{report.seconds:.0f} s", highlight=False)


def markdown(report: Report) -> str:
    """The table as a page of the documentation has it, and the reasons below."""
    names = list(report.versions)
    lines = [f"| | behaviour | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    notes: list[str] = []
    for each in report.behaviours:
        cells = []
        for name in names:
            outcome = report.of(name, each.name)
            cell = "" if outcome is None else SIGNS[outcome.verdict]
            if outcome is not None and outcome.verdict is not Verdict.HOLDS:
                notes.append(f"{len(notes) + 1}. {name}, {each.name}: {outcome.said}")
                cell += f" [{len(notes)}]"
            cells.append(cell)
        lines.append(f"| {each.section} | {each.title} | {' | '.join(cells)} |")
    counted = [f"{report.counts(name)[Verdict.HOLDS]} of {sum(report.counts(name).values())}" for name in names]
    lines.append(f"| | holds | {' | '.join(counted)} |")
    versions = [f"- {name}: {version}" for name, version in report.versions.items()]
    versions += [f"- {name} was not tried: {reason}" for name, reason in report.missing.items()]
    return "\n".join([*versions, "", *lines, "", *notes, ""])
