"""How a report looks: tables in the terminal, Markdown, and what is said while it runs.

Every table has a line for each row and a column for each plane, wgpy first and the ratios' reference second. A cell has
the median, the least and the greatest value, and the ratio to the reference's median (more is better, always). Where
rounds failed the cell says how many, and the reasons stand below the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.judge import Verdict, judge
from benchmarks.results import OURS, REFERENCE, Measurement, Quiet, Report, Row

PLAIN_WIDTH = 160  # columns where nobody can say: enough for every table of ours
LAST = "veth"  # no data plane, but the ceiling: its column is the last
EMULATED = "emulated (qemu TCG)"
VERDICT_STYLES = {"above goal": "bold green", "above floor": "green", "below floor": "bold red"}


class Described(Protocol):
    """What the list of planes needs to know of one."""

    def version(self) -> str: ...
    def missing(self) -> str | None: ...


class Workloadlike(Protocol):
    """What the list of rows needs to know of a workload."""

    @property
    def rows(self) -> tuple[Row, ...]: ...
    @property
    def compared(self) -> bool: ...


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


# --- Figures -------------------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """With two or three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:,.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else f"×{ratio:.2f}"


@dataclass(frozen=True)
class Cell:
    """What one measurement says: each part may be empty."""

    median: str = ""
    spread: str = ""
    ratio: str = ""
    failed: str = ""


def cell(report: Report, row: str, plane: str) -> Cell:
    measurement = report.find(row, plane)
    if measurement is None:
        return Cell()
    failed = _failed_text(measurement)
    if measurement.median is None or measurement.spread is None:
        return Cell(failed=failed)
    low, high = measurement.spread
    spread = f"{figure(low)}–{figure(high)}" if len(measurement.values) > 1 else ""
    ratio = "" if plane == REFERENCE else ratio_text(report.ratio(row, plane))
    return Cell(figure(measurement.median), spread, ratio, failed)


def _failed_text(measurement: Measurement) -> str:
    failed, tried = len(measurement.failures), len(measurement.failures) + len(measurement.values)
    return f"failed ({failed} of {tried})" if failed else ""


def columns(report: Report, rows: Iterable[Row]) -> list[str]:
    """The planes that have anything in these rows, in the order of the columns."""
    found = dict.fromkeys(plane for row in rows for plane in report.planes_of(row.name))
    return sorted(found, key=lambda plane: (plane == LAST, plane != OURS, plane != REFERENCE))


def quiet_text(quiet: Quiet) -> str:
    busy = ": TOO BUSY TO BELIEVE" if quiet.busy else ""
    return f"cores {quiet.idle:.0%} idle, load average {quiet.load:.2f}{busy}"


def headlines(report: Report) -> list[str]:
    """What has to be known before a figure is read: where, when, how, and whether it can be believed."""
    machine = ", ".join(f"{value}" if name == "CPU" else f"{name} {value}" for name, value in _facts(report).items())
    options = ", ".join(f"{name} {value}" for name, value in report.options.items())
    lines = [
        machine,
        f"{report.when}; {options}; medians, with the least and the greatest; ratios to {REFERENCE}, more is better",
    ]
    if report.emulated:
        lines.insert(0, f"{EMULATED}: only ratios mean anything, and no absolute figure does")
    if busy := [number for number, quiet in enumerate(report.rounds, 1) if quiet.busy]:
        said = ", ".join(f"round {number}: {report.rounds[number - 1].idle:.0%} idle" for number in busy)
        lines.append(f"THE MACHINE WAS BUSY, do not believe these figures ({said})")
    return lines


def _facts(report: Report) -> dict[str, object]:
    return {name: value for name, value in report.machine.items() if name != "emulated"}


def method(report: Report) -> str:
    """How the figures came to be, in few words."""
    options = report.options
    if "rounds" not in options:
        return f"medians of portions, {options.get('soak', '?')} GB each way, interleaved"
    return f"medians of {len(report.rounds)} rounds of {options.get('seconds', '?')} s, interleaved"


def failures(report: Report) -> list[str]:
    """Each reason once, with the plane and the rows that have no value for it."""
    rows: dict[tuple[str, str], list[str]] = {}
    for measurement in report.measurements:
        for reason in dict.fromkeys(measurement.failures):
            rows.setdefault((measurement.plane, reason), []).append(measurement.row)
    return [f"{plane}: {reason} ({', '.join(names)})" for (plane, reason), names in rows.items()]


def notes(report: Report) -> list[str]:
    return [f"{each.row}, {each.plane}: {each.note}" for each in report.measurements if each.note]


def _better_text(row: Row) -> str:
    return f"{row.unit} {'↑' if row.better == 'higher' else '↓'}"


def _title(report: Report, group: str) -> str:
    return f"{group}, {EMULATED}" if report.emulated else group


# --- Terminal ------------------------------------------------------------------------------------------------------------


def tables(console: Console, report: Report) -> None:
    """Everything, for eyes."""
    console.print()
    for line in headlines(report):
        console.print(escape(line), style="bold red" if "BUSY" in line else "dim", soft_wrap=True)
    for group, rows in report.groups().items():
        console.print()
        console.print(_table(report, _title(report, group), rows))
    verdicts = judge(report)
    if any(verdict.ratio is not None for verdict in verdicts):
        console.print()
        console.print(_judged_table(_title(report, "Floors and goals"), verdicts))
    for title, lines in (("Failed", failures(report)), ("Notes", notes(report))):
        if lines:
            console.print(f"\n[bold]{title}[/bold]")
            for line in lines:
                console.print(f"  {escape(line)}", soft_wrap=True)


def _table(report: Report, title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=escape(title), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("", style="dim")
    planes = columns(report, rows)
    for plane in planes:
        table.add_column(plane, justify="right", header_style="bold cyan" if plane == OURS else "")
    for row in rows:
        table.add_row(row.title, _better_text(row), *(_terminal_cell(cell(report, row.name, plane)) for plane in planes))
    return table


def _terminal_cell(cell: Cell) -> str:
    first = f"{cell.median} [bold]{cell.ratio}[/bold]" if cell.ratio else cell.median
    lines = [first, f"[dim]{cell.spread}[/dim]" if cell.spread else "", f"[red]{cell.failed}[/red]" if cell.failed else ""]
    return "\n".join(line for line in lines if line)


def _judged_table(title: str, verdicts: Sequence[Verdict]) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "floor", "goal", "measured", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right")
    for verdict in verdicts:
        if verdict.ratio is not None:
            style = VERDICT_STYLES[verdict.words]
            title_, floor, goal, measured, words = _judged(verdict)
            table.add_row(escape(title_), floor, goal, measured, f"[{style}]{words}[/{style}]")
    if left_out := [verdict.bound.title for verdict in verdicts if verdict.ratio is None]:
        table.caption = escape(f"not measured: {', '.join(left_out)}")
        table.caption_justify = "left"
    return table


def _judged(verdict: Verdict) -> tuple[str, str, str, str, str]:
    bound = verdict.bound
    title = f"{bound.title} (worst: {verdict.row})" if len(bound.rows) > 1 and verdict.row else bound.title
    goal = "" if bound.goal is None else f"{bound.goal:g}"
    return title, f"{bound.floor:g}", goal, "" if verdict.ratio is None else f"{verdict.ratio:.2f}", verdict.words


def listing(console: Console, workloads: Sequence[Workloadlike], planes: Mapping[str, Described]) -> None:
    """What there is to measure, and on what."""
    table = Table(title="Rows", title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "what", "", "planes"):
        table.add_column(name)
    for workload in workloads:
        for row in workload.rows:
            table.add_row(
                row.name, f"{row.group}: {row.title}", _better_text(row), "all" if workload.compared else "the main ones"
            )
    table.add_row("scale", "what peers and prefixes cost: python -m benchmarks scale --help", "", "wgpy, wireguard-go")
    console.print(table)
    table = Table(title="Data planes", title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name")
    table.add_column("version, or why it is missing")
    for plane_name, plane in planes.items():
        reason = plane.missing()
        table.add_row(plane_name, f"[yellow]{escape(reason)}[/yellow]" if reason else escape(plane.version()))
    console.print(table)


# --- Markdown and files --------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The report as a page. What was failed, noted and judged is in it, too."""
    lines = [f"# Benchmarks{f', {EMULATED}' if report.emulated else ''}", ""]
    lines += [f"{line}  " for line in headlines(report)] + [""]
    lines += [f"* {name}: {version}" for name, version in report.planes.items()] + [""]
    for group, rows in report.groups().items():
        planes = columns(report, rows)
        lines += [f"## {_title(report, group)}", "", *_grid(["", "", *planes], _markdown_lines(report, rows, planes)), ""]
    if judged := [[*_judged(verdict)] for verdict in judge(report)]:
        lines += [
            f"## {_title(report, 'Floors and goals')}",
            "",
            *_grid(["", "floor", "goal", "measured", "verdict"], judged),
            "",
        ]
    for title, said in (("Failed", failures(report)), ("Notes", notes(report))):
        lines += [f"## {title}", "", *(f"* {_cell_safe(line)}" for line in said), ""] if said else []
    lines += ["## Before each round", ""]
    lines += [f"* round {number}: {quiet_text(quiet)}" for number, quiet in enumerate(report.rounds, 1)]
    return "\n".join(lines) + "\n"


def _markdown_lines(report: Report, rows: Sequence[Row], planes: Sequence[str]) -> list[list[str]]:
    return [
        [row.title, _better_text(row), *(_markdown_cell(cell(report, row.name, plane), plane) for plane in planes)]
        for row in rows
    ]


def _markdown_cell(cell: Cell, plane: str) -> str:
    median = f"**{cell.median}**" if cell.median and plane == OURS else cell.median
    spread = f"({cell.spread})" if cell.spread else ""
    return " ".join(part for part in (median, spread, cell.ratio, cell.failed) if part)


def _grid(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(_cell_safe(each) for each in line)} |" for line in (heads, rule, *lines)]


def _cell_safe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(report: Report, directory: Path) -> list[Path]:
    """latest.json, latest.md and the charts. Gives their paths."""
    from benchmarks.charts import draw  # matplotlib takes its time, and only a run's end needs it

    directory.mkdir(parents=True, exist_ok=True)
    texts = {directory / "latest.json": report.to_json(), directory / "latest.md": markdown(report)}
    for path, text in texts.items():
        path.write_text(text)
    return [*texts, *draw(report, directory)]


# --- While it runs -------------------------------------------------------------------------------------------------------


class Watch:
    """A bar that says what is being done and how long it will take; without a terminal, a line for each measurement."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,  # the cores are for what is measured
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def expect(self, total: int | None) -> None:
        """``total`` calls of :meth:`done` from now on; None where nobody can say."""
        self._progress.reset(self._task, total=total)

    def doing(self, what: str) -> None:
        self._what = what
        self._progress.update(self._task, description=escape(what))

    def done(self, result: str) -> None:
        """What :meth:`doing` named last has given ``result``."""
        self._progress.advance(self._task)
        if not self._console.is_terminal or result.startswith("failed"):
            self.say(f"{self._what}: {result}")

    def say(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)
