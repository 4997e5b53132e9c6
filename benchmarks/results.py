"""What benchmarks give: a report of measurements, and the questions one asks of it.

A *row* is one figure that every data plane has: "TCP, 1 stream" in Gb/s, say. A *measurement* is that figure for one plane,
with one value a round; a round that failed leaves a sentence in ``failures`` in place of a value, never a zero. A *report*
is all measurements of one run and the facts of the machine they were made on, as JSON, so that every value can be
looked at again.

Absolute figures of a shared machine move by a third from run to run. What means something is the *ratio* of two planes'
medians from one interleaved run. It is always put so that more than one is better, whichever way the row's figures point.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT = 1
REFERENCE = "wireguard-go"  # the plane that ratios are to
OURS = "wgpy"

Fact = str | int | float | bool


@dataclass(frozen=True)
class Row:
    """One line of the tables. ``name`` is what ``--rows`` selects, ``title`` what people read within ``group``."""

    name: str
    title: str
    group: str
    unit: str
    better: Literal["higher", "lower"]


@dataclass
class Measurement:
    """One row of one plane: a value for each round that went well, a one-line reason for each that did not."""

    row: str
    plane: str
    values: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The least and the greatest value."""
        return (min(self.values), max(self.values)) if self.values else None


@dataclass(frozen=True)
class Quiet:
    """How busy the machine was before a round: the idle share of all cores over a short while (0 to 1), and the load average.

    The share is what counts. The load average still remembers the round before.
    """

    idle: float
    load: float
    busy: bool


@dataclass
class Report:
    """One run. ``machine`` are facts by name; ``emulated`` among them, if true, is said wherever figures are shown."""

    machine: dict[str, Fact] = field(default_factory=dict)
    planes: dict[str, str] = field(default_factory=dict)  # name: what exactly was measured
    options: dict[str, Fact] = field(default_factory=dict)
    when: str = ""
    rounds: list[Quiet] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def emulated(self) -> bool:
        return bool(self.machine.get("emulated"))

    @property
    def busy(self) -> bool:
        """Whether any round met a machine too busy to believe."""
        return any(each.busy for each in self.rounds)

    def add_rows(self, rows: Iterable[Row]) -> None:
        self.rows.update((row.name, row) for row in rows)

    def find(self, row: str, plane: str) -> Measurement | None:
        for measurement in self.measurements:
            if (measurement.row, measurement.plane) == (row, plane):
                return measurement
        return None

    def at(self, row: Row, plane: str) -> Measurement:
        """The measurement of ``row`` and ``plane``, made empty if there is none yet."""
        self.rows.setdefault(row.name, row)
        found = self.find(row.name, plane)
        if found is None:
            found = Measurement(row.name, plane)
            self.measurements.append(found)
        return found

    def planes_of(self, row: str) -> list[str]:
        return [measurement.plane for measurement in self.measurements if measurement.row == row]

    def ratio(self, row: str, plane: str, to_plane: str = REFERENCE, *, to_row: str | None = None) -> float | None:
        """How many times better ``plane`` is in ``row`` than ``to_plane`` (in ``to_row``).

        None where either has no value, or none above zero: nothing is so many times better than no loss.
        """
        ours, theirs = self.find(row, plane), self.find(to_row or row, to_plane)
        if ours is None or theirs is None:
            return None
        over, under = ours.median, theirs.median
        if self.rows[row].better == "lower":
            over, under = under, over
        return over / under if over and under and over > 0 and under > 0 else None

    def groups(self) -> dict[str, list[Row]]:
        """The rows that were measured, by group, both in the order they came in."""
        measured = {measurement.row for measurement in self.measurements}
        groups: dict[str, list[Row]] = {}
        for row in self.rows.values():
            if row.name in measured:
                groups.setdefault(row.group, []).append(row)
        return groups

    def to_json(self) -> str:
        plain = {"format": FORMAT, **asdict(self), "rows": [asdict(row) for row in self.rows.values()]}
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report back. :class:`ValueError` with one line if the text is none."""
        try:
            plain: dict[str, Any] = json.loads(text)
            if plain.pop("format") != FORMAT:
                raise ValueError("another format")
            plain["rounds"] = [Quiet(**each) for each in plain["rounds"]]
            plain["rows"] = {each["name"]: Row(**each) for each in plain["rows"]}
            plain["measurements"] = [Measurement(**each) for each in plain["measurements"]]
            return cls(**plain)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is not a report of this version: {error}") from error


def read(path: Path) -> Report:
    return Report.from_json(path.read_text())


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of ``values`` do not exceed: of 100 values the 99th for 0.99."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]
