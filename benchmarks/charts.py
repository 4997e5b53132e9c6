"""Pictures of a report: a chart for each group of rows, and an overview for the README.

A group's chart has a panel for each row, with a bar for each plane: its length is the median, its whisker goes from the
least value to the greatest, and behind it stand the median and its ratio to the reference. The overview has the rows that
say most, as ratios. The bare veth is a ceiling and not a competitor: it would flatten all bars, so it is told of in
words.

wgpy is blue (its variants paler), the reference dark grey, all others light grey: that is told apart with any eyes, and on
paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import report as show
from benchmarks.results import OURS, REFERENCE, Report, Row

BLUE, SKY, SLATE, GREY, PALE = "#0072B2", "#7DB7DC", "#7C8794", "#C5CCD3", "#E6EAEE"
INK, FAINT, RED = "#1F2933", "#7B8794", "#B00020"
WIDTH = 9.0  # inches
BAR = 0.27  # inches of height that a plane takes
PANEL = 0.62  # inches of height that a panel takes beside its bars
DOTS_PER_INCH = 160

OVERVIEW = "overview.png"
OVERVIEW_ROWS = {
    "tcp-1": "TCP, 1 stream",
    "tcp-8": "TCP, 8 streams",
    "udp-1372": "UDP flood, 1372 B",
    "udp-64": "UDP flood, 64 B",
}


def draw(report: Report, directory: Path) -> list[Path]:
    """Write the charts of all rows that some plane has a value in. Gives their paths."""
    paths = []
    for group, rows in report.groups().items():
        drawn = [row for row in _without_repeats(rows) if _values(report, row)]
        if drawn:
            paths.append(_save(_group(report, group, drawn), directory / f"{file_name(group)}.png"))
    overview = [name for name in OVERVIEW_ROWS if report.ratio(name, OURS) is not None]
    if overview:
        paths.append(_save(_overview(report, overview), directory / OVERVIEW))
    return paths


def file_name(group: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")


def competitors(report: Report, rows: Sequence[Row]) -> list[str]:
    """The planes that were measured in one of these rows, or failed in it, without the ceiling."""
    return [plane for plane in show.columns(report, rows) if plane != show.LAST]


def _values(report: Report, row: Row) -> list[float]:
    """All values of all the competitors."""
    found = [report.find(row.name, plane) for plane in competitors(report, [row])]
    return [value for measurement in found if measurement is not None for value in measurement.values]


def _without_repeats(rows: Sequence[Row]) -> list[Row]:
    """Without the rows that say the same in another unit (Mb/s and packets/s): the first is drawn."""
    return list({row.title: row for row in reversed(rows)}.values())[::-1]


# --- A group -------------------------------------------------------------------------------------------------------------


def _group(report: Report, group: str, rows: Sequence[Row]) -> Figure:
    counts = [len(competitors(report, [row])) for row in rows]
    top, bottom = 0.5, 0.6
    height = top + bottom + sum(PANEL + BAR * count for count in counts)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    _headline(figure, report, group, height)
    upper = height - top
    for row, count in zip(rows, counts, strict=True):
        low = upper - PANEL - BAR * count
        axes = figure.add_axes((0.19, (low + 0.14) / height, 0.60, BAR * count / height))
        _panel(axes, report, row)
        upper = low
    _footer(figure, report, height, f"whiskers: least and greatest; ×: ratio to {REFERENCE}, more is better")
    return figure


def _panel(axes: Axes, report: Report, row: Row) -> None:
    """The bars of one row."""
    planes = competitors(report, [row])
    greatest = max(_values(report, row)) or 1.0
    for place, plane in enumerate(planes):
        measurement = report.find(row.name, plane)
        if measurement is None or measurement.median is None or measurement.spread is None:
            _label(axes, 0.015 * greatest, place, "failed", plane, RED)
            continue
        low, high = measurement.spread
        axes.barh(place, measurement.median, height=0.68, color=_colour(plane), zorder=2)
        for width, colour in ((3.0, "white"), (1.1, INK)) if high > low else ():
            axes.plot([low, high], [place, place], color=colour, linewidth=width, solid_capstyle="butt", zorder=3)
            axes.plot(
                [low, high], [place, place], color=colour, marker="|", markersize=5, markeredgewidth=width, linestyle="", zorder=3
            )
        said = show.cell(report, row.name, plane)
        _label(axes, high + greatest * 0.015, place, f"{said.median}   {said.ratio}".rstrip(), plane)
    axes.set_xlim(0, greatest * 1.02)
    _plain(axes, planes)
    axes.set_title(row.title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=5)
    axes.set_title(_panel_note(report, row), loc="right", fontsize=8, color=FAINT, pad=5)


def _panel_note(report: Report, row: Row) -> str:
    """The unit, the direction, and the ceiling, if it was measured."""
    better = "more is better" if row.better == "higher" else "less is better"
    ceiling = report.find(row.name, show.LAST)
    if ceiling is None or ceiling.median is None:
        return f"{row.unit}, {better}"
    return f"{row.unit}, {better}; bare veth: {show.figure(ceiling.median)}"


# --- The overview --------------------------------------------------------------------------------------------------------


def _overview(report: Report, names: Sequence[str]) -> Figure:
    """Panels side by side, ratios to the reference, one scale for all. Variants of wgpy are left to the groups' charts."""
    planes = [plane for plane in competitors(report, [report.rows[name] for name in names]) if not plane.startswith(f"{OURS}-")]
    top, bottom = 1.0, 0.6
    height = top + bottom + BAR * 1.15 * len(planes)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    _headline(figure, report, "Throughput from pod to pod", height)
    figure.text(0.02, 1 - 0.54 / height, f"in ratio to {REFERENCE}: more is better", fontsize=8.5, color=FAINT)
    ratios = {(name, plane): report.ratio(name, plane) for name in names for plane in planes}
    greatest = max(1.0, *(ratio for ratio in ratios.values() if ratio is not None))
    left, gap = 0.115, 0.02
    width = (0.99 - left) / len(names) - gap
    for number, name in enumerate(names):
        axes = figure.add_axes((left + number * (width + gap), bottom / height, width, 1 - (top + bottom) / height))
        _ratio_panel(axes, [(plane, ratios[name, plane]) for plane in planes], greatest)
        axes.set_title(OVERVIEW_ROWS[name], loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=6)
        if number:
            axes.set_yticklabels([])
    _footer(figure, report, height, "pods behind veths, both ends on one machine")
    return figure


def _ratio_panel(axes: Axes, ratios: Sequence[tuple[str, float | None]], greatest: float) -> None:
    axes.axvline(1.0, color=SLATE, linewidth=0.8, zorder=1)
    for place, (plane, ratio) in enumerate(ratios):
        if ratio is not None:
            axes.barh(place, ratio, height=0.68, color=_colour(plane), zorder=2)
        text, colour = ("no value", RED) if ratio is None else (f"{ratio:.2f}", INK)
        _label(axes, (ratio or 0.0) + greatest * 0.03, place, text, plane, colour)
    axes.set_xlim(0, greatest * 1.3)
    _plain(axes, [plane for plane, _ in ratios])


# --- What both have ------------------------------------------------------------------------------------------------------


def _colour(plane: str) -> str:
    if plane.startswith(OURS):
        return BLUE if plane == OURS else SKY
    return SLATE if plane == REFERENCE else GREY


def _label(axes: Axes, along: float, place: int, text: str, plane: str, colour: str = INK) -> None:
    """On white, so that nothing shows through."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    weight = "bold" if plane == OURS else "normal"
    axes.text(along, place, text, va="center", ha="left", fontsize=8.5, fontweight=weight, color=colour, bbox=ground, zorder=4)


def _plain(axes: Axes, planes: Sequence[str]) -> None:
    """No frame, no scale (the figures stand behind the bars), and names at the left, from top to bottom."""
    axes.set_yticks(range(len(planes)), list(planes), fontsize=9, color=INK)
    for text, plane in zip(axes.get_yticklabels(), planes, strict=True):
        text.set_fontweight("bold" if plane == OURS else "normal")
    axes.set_ylim(len(planes) - 0.5, -0.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(PALE)


def _headline(figure: Figure, report: Report, title: str, height: float) -> None:
    said = f"{title}, {show.EMULATED}" if report.emulated else title
    figure.text(0.02, 1 - 0.34 / height, said, fontsize=13, fontweight="bold", color=INK)


def _footer(figure: Figure, report: Report, height: float, how: str) -> None:
    """Where and how it was measured, and what keeps it from being believed."""
    machine = report.machine
    lines = [
        f"{show.method(report)}; {how}",
        f"{machine.get('CPU', '')}, {machine.get('cores', '?')} cores, {machine.get('kernel', '')}; {report.when[:10]}",
    ]
    figure.text(0.02, 0.14 / height, "\n".join(lines), fontsize=7.5, color=FAINT, linespacing=1.5)
    if report.busy:
        figure.text(0.98, 0.14 / height, "the machine was busy: not to be believed", fontsize=8, color=RED, ha="right")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path
