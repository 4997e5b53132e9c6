"""What came of it: a table for people, behaviours down and implementations across, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from tests.conformance.behaviour import Behaviour, Outcome, Verdict

SIGNS = {Verdict.HOLDS: "✓", Verdict.BROKEN: "✗", Verdict.NOT_APPLICABLE: "–", Verdict.ERROR: "?"}
BADNESS = (Verdict.ERROR, Verdict.BROKEN, Verdict.HOLDS, Verdict.NOT_APPLICABLE)
"""The worst first. What holds with some partners and cannot be asked with others holds."""
COLOURS = {Verdict.HOLDS: "green", Verdict.BROKEN: "red", Verdict.NOT_APPLICABLE: "dim", Verdict.ERROR: "yellow"}


@dataclass(frozen=True)
class Report:
    """``versions``: what exactly was tried, by name of implementation; ``missing``: why others were not."""

    behaviours: Sequence[Behaviour]
    versions: Mapping[str, str]
    missing: Mapping[str, str]
    outcomes: Sequence[Outcome]
    seconds: float

    def of(self, implementation: str, behaviour: str) -> list[Outcome]:
        """The outcomes that decide: all that are as bad as the worst one. With partners there are several."""
        mine = [each for each in self.outcomes if each.behaviour == behaviour and each.concerns(implementation)]
        mine = [each for each in mine if implementation in self.to_blame(each)]
        worst = min((BADNESS.index(each.verdict) for each in mine), default=0)
        return [each for each in mine if each.verdict is BADNESS[worst]]

    def verdict(self, implementation: str, behaviour: str) -> Verdict | None:
        """None if it was not tried, or only where somebody else is to blame."""
        return next((each.verdict for each in self.of(implementation, behaviour)), None)

    def to_blame(self, outcome: Outcome) -> list[str]:
        """Whose the outcome is. What does not hold between two is one's alone if it ended, or fails with itself, too."""
        if outcome.by:
            return [outcome.by]
        both = [outcome.implementation, *filter(None, [outcome.partner])]
        if outcome.verdict is not Verdict.BROKEN:
            return both
        return [name for name in both if self._fails_alone(name, outcome.behaviour)] or both

    def _fails_alone(self, name: str, behaviour: str) -> bool:
        key = (name, name, behaviour, Verdict.BROKEN)
        return any((each.implementation, each.partner, each.behaviour, each.verdict) == key for each in self.outcomes)

    def counts(self, implementation: str) -> dict[Verdict, int]:
        """Of behaviours."""
        mine = [self.verdict(implementation, each.name) for each in self.behaviours]
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
            verdict = report.verdict(name, each.name)
            signs.append("" if verdict is None else f"[{COLOURS[verdict]}]{SIGNS[verdict]}[/]")
        table.add_row(each.section, each.title, *signs)
    console.print(table)
    for outcome in report.outcomes:
        if outcome.verdict in (Verdict.BROKEN, Verdict.ERROR):
            console.print(f"{outcome.who}: {outcome.behaviour}: {outcome.said}", highlight=False, markup=False)
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
            verdict = report.verdict(name, each.name)
            cell = "" if verdict is None else SIGNS[verdict]
            for outcome in report.of(name, each.name) if verdict not in (None, Verdict.HOLDS) else ():
                note = f"{outcome.who}, {each.name}: {outcome.said}"
                if note not in notes:
                    notes.append(note)
                cell += f" [{notes.index(note) + 1}]"
            cells.append(cell)
        lines.append(f"| {each.section} | {each.title} | {' | '.join(cells)} |")
    counted = [f"{report.counts(name)[Verdict.HOLDS]} of {sum(report.counts(name).values())}" for name in names]
    lines.append(f"| | holds | {' | '.join(counted)} |")
    versions = [f"- {name}: {version}" for name, version in report.versions.items()]
    versions += [f"- {name} was not tried: {reason}" for name, reason in report.missing.items()]
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([*versions, "", *lines, "", *numbered, ""])
