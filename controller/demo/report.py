"""What the demo says: progress while it works, tables, and a list of promises with whether they held.

On a terminal, work under way shows a spinner and its time; a pipe or a file gets the finished lines as plain text. With
JSON asked for, all of that goes to stderr and stdout gets one document at the end (:meth:`Report.document`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_WIDTH = 130  # columns where nobody can say: enough for every table of ours


@dataclass(frozen=True, slots=True)
class Promise:
    """Something the mesh has to keep: in which step, what, whether it did, and what was seen instead."""

    step: str
    promise: str
    held: bool
    seen: str = ""


class Report:
    """Speaks to ``console`` (stdout, or stderr if a program reads stdout) and remembers what a program would want to know."""

    def __init__(self, *, json: bool = False) -> None:
        self.console = Console(stderr=json, highlight=False)
        if not self.console.is_terminal:
            self.console = Console(stderr=json, highlight=False, width=PLAIN_WIDTH)
        self.promises: list[Promise] = []
        self.facts: dict[str, Any] = {}
        self._started = time.monotonic()
        self._step = "set up"
        self._unicode = self.console.encoding.startswith("utf")

    @property
    def seconds(self) -> float:
        """Since the report began."""
        return time.monotonic() - self._started

    @property
    def broken(self) -> list[Promise]:
        return [promise for promise in self.promises if not promise.held]

    def step(self, name: str) -> None:
        """Begin a step: what follows is part of it."""
        self._step = name
        self.console.print(f"\n[bold]{escape(name)}[/bold]")

    def say(self, text: str) -> None:
        self.console.print(f"  {escape(text)}", soft_wrap=True)

    @contextmanager
    def waiting(self, what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """While it lasts, a terminal shows that ``what`` is being done, for how long already, and how many of ``total`` are.

        Gives what is to be called for each that is. Nothing of it stays on the screen.
        """
        columns = [
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([MofNCompleteColumn()] if total else []),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(escape(what), total=total)
            yield lambda: progress.advance(task)

    @contextmanager
    def working(self, what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """As :meth:`waiting`, and then a line says that it is done and how long it took. An error is left to the caller."""
        begun = time.monotonic()
        with self.waiting(what, total) as advance:
            yield advance
        self._mark(True, what, f"{time.monotonic() - begun:.1f} s")

    def promise(self, what: str, held: bool, seen: str = "") -> None:
        """Record and show a promise. ``seen`` says what was seen: the measure if it held, the contradiction if not."""
        self.promises.append(Promise(self._step, what, held, seen))
        self._mark(held, what, seen)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """Show ``rows``; the columns named in ``right`` are aligned to the right."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    def tail(self, title: str, text: str) -> None:
        """Show the end of a log."""
        self.console.print(f"  [bold]{escape(title)}[/bold]")
        for line in text.splitlines() or ["(empty)"]:
            self.console.print(f"    {escape(line)}", style="dim", soft_wrap=True)

    def summary(self) -> None:
        """The last word: all promises held, or those that did not."""
        self.console.print()
        if not self.broken:
            self._mark(True, f"all {len(self.promises)} promises held", f"{self.seconds:.0f} s")
            return
        self._mark(False, f"{len(self.broken)} of {len(self.promises)} promises did not hold:", f"{self.seconds:.0f} s")
        for promise in self.broken:
            self.console.print(f"    {escape(promise.step)}: {escape(promise.promise)}: {escape(promise.seen)}", soft_wrap=True)

    def document(self) -> dict[str, Any]:
        """All of it for a program."""
        return {
            "held": bool(self.promises) and not self.broken,
            "seconds": round(self.seconds, 1),
            "promises": [asdict(promise) for promise in self.promises],
            **self.facts,
        }

    def _mark(self, good: bool, what: str, detail: str) -> None:
        sign = ("✓" if good else "✗") if self._unicode else ("ok" if good else "FAILED")
        color = "green" if good else "red"
        ending = f"  [dim]{escape(detail)}[/dim]" if good else f"  [red]{escape(detail)}[/red]"
        self.console.print(f"  [{color}]{sign}[/{color}] {escape(what)}{ending if detail else ''}", soft_wrap=True)


def ago(seconds: float | None) -> str:
    """``never``, ``now``, ``7 s ago`` or ``2 min ago``."""
    if seconds is None:
        return "never"
    if seconds < 1:
        return "now"
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def size(count: int) -> str:
    """``912 B``, ``3.1 MB``: decimal units, as for network traffic."""
    if count < 1000:
        return f"{count} B"
    value = count / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def rate(bits_per_second: float) -> str:
    """``1.53 Gb/s`` or ``640 Mb/s``."""
    if bits_per_second >= 1e9:
        return f"{bits_per_second / 1e9:.2f} Gb/s"
    return f"{bits_per_second / 1e6:.0f} Mb/s"
