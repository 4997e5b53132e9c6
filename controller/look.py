"""How a command shows what it sees: one look, or with ``--watch`` look after look until Ctrl-C.

For people a look is a picture, which on a terminal takes the place of the one before. For programs it is a document: alone it is
laid out to be read, and of many each stands on a line of its own (JSON) or begins with ``---`` (YAML), so that a program can take
it as soon as it is there.
"""

import argparse
import contextlib
import json
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import yaml
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

DOCUMENTS = ("json", "yaml")
PLAIN_WIDTH = 160
"""Columns where there is no terminal to say how many it has."""


class Look(NamedTuple):
    """What was seen at one moment: as a picture for this console, as plain data, and the exit status if it is the last look."""

    picture: Callable[[Console], RenderableType]
    document: Callable[[], Mapping[str, Any]]
    status: int = 0


@dataclass
class Fitting:
    """A table for people that leaves columns out, and says which, where a terminal has no room for whole words in all of them.

    ``spare`` names those that can go, the first to go first; ``numbers`` those that are aligned to the right, each on one line.
    """

    columns: Sequence[str]
    spare: Sequence[str] = ()
    numbers: Collection[str] = ()
    rows: list[tuple[list[str], str]] = field(default_factory=list)
    """The cells of each row, and its style."""

    def add_row(self, cells: Iterator[str] | Sequence[str], style: str = "") -> None:
        self.rows.append((list(cells), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        texts = {column: [column, *(cells[number] for cells, _ in self.rows)] for number, column in enumerate(self.columns)}
        left_out: list[str] = []
        while not (widths := self._widths(texts, options.max_width)) and len(left_out) < len(self.spare):
            left_out.append(self.spare[len(left_out)])
            del texts[left_out[-1]]
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
        for column in texts:
            justify: JustifyMethod = "right" if column in self.numbers else "left"
            shown.add_column(column, justify=justify, overflow="fold", width=widths.get(column))
        for number, (_, style) in enumerate(self.rows, 1):
            shown.add_row(*(Text(written[number]) for written in texts.values()), style=style)
        yield shown
        if left_out:
            yield Text(f"(no room for {', '.join(left_out)}: widen the terminal, or --output json)", style="dim")

    def _widths(self, texts: Mapping[str, Sequence[str]], room: int) -> dict[str, int]:
        """How wide to make each column so that no word is broken, and no line of numbers; nothing where there is no room for it.

        What is left of the room goes to the column that breaks its longest line into most, again and again. With each column come
        a blank on either side, and one that parts it from the next.
        """
        lines = {column: _longest(line for text in cells for line in text.splitlines()) for column, cells in texts.items()}
        words = {column: _longest(word for text in cells for word in text.split()) for column, cells in texts.items()}
        widths = {column: (lines if column in self.numbers else words)[column] for column in texts}
        left = room + 1 - sum(width + 3 for width in widths.values())
        if left < 0:
            return {}
        for _ in range(min(left, sum(lines.values()) - sum(widths.values()))):
            widths[max(widths, key=lambda column: lines[column] / widths[column])] += 1
        return widths


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def add_arguments(parser: argparse.ArgumentParser, every: float) -> None:
    """``--watch [SECONDS]``; ``every``: how often, where nobody says."""
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=every,
        metavar="SECONDS",
        help=f"look again and again until Ctrl-C (default: every {every:g} s)",
    )


def seconds(text: str) -> float:
    """From a tenth of a second to an hour, for argparse."""
    with contextlib.suppress(ValueError):
        if 0.1 <= (value := float(text)) <= 3600.0:
            return value
    raise argparse.ArgumentTypeError(f"not from 0.1 to 3600 seconds: {text!r} (other words come before this option)")


def show(looks: Iterator[Look], output: str, every: float | None, width: int = PLAIN_WIDTH, fills_screen: bool = False) -> int:
    """Print a look, or with ``every`` all that come, so many seconds apart, until interrupted; the exit status of the last.

    ``output`` is ``json``, ``yaml``, or a word for people. Raises what ``looks`` raises, and KeyboardInterrupt where that comes
    before anything has been seen.
    """
    out = console(width)
    if every is None:
        look = next(looks)
        _print(look, output, out, is_alone=True)
        return look.status
    last: Look | None = None
    is_live = output not in DOCUMENTS and out.is_terminal
    with _live(out, fills_screen) if is_live else contextlib.nullcontext() as live:
        try:
            for last in looks:
                if live is not None:
                    live.update(_picture(last, out, is_dated=not fills_screen), refresh=True)
                else:
                    _print(last, output, out, is_alone=False)
                time.sleep(every)
        except KeyboardInterrupt:
            if last is None:
                raise
    return last.status if last is not None else 0


def console(width: int = PLAIN_WIDTH) -> Console:
    """Of the terminal's width, or of this one where there is no terminal. Lines of text are not broken, so that commands in them
    can be copied."""
    made = Console(highlight=False, soft_wrap=True)
    return made if made.is_terminal else Console(highlight=False, soft_wrap=True, width=width)


@contextlib.contextmanager
def _live(out: Console, fills_screen: bool) -> Iterator[Live]:
    """A picture in place; what is taller than the terminal is cut off until the end. SIGTERM and SIGHUP, too, leave the terminal
    as it was."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with Live(console=out, auto_refresh=False, screen=fills_screen, vertical_overflow="ellipsis") as live:
            yield live
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _picture(look: Look, out: Console, *, is_dated: bool) -> RenderableType:
    """With the time: what does not change is seen to be looked at, and what does, when it did."""
    picture = look.picture(out)
    return Group(Text(time.strftime("%Y-%m-%d %H:%M:%S"), style="dim"), picture) if is_dated else picture


def _print(look: Look, output: str, out: Console, *, is_alone: bool) -> None:
    if output == "json":
        print(json.dumps(look.document(), indent=2 if is_alone else None), flush=True)
    elif output == "yaml":
        print(yaml.safe_dump(look.document(), sort_keys=False, explicit_start=not is_alone), end="", flush=True)
    else:
        out.print(_picture(look, out, is_dated=not is_alone))
        out.file.flush()
