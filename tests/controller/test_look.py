"""One look or many, for people and for programs, and what the command ends with."""

import argparse
import io
import json
import signal
import time
from collections.abc import Iterator

import pytest
import yaml
from rich.console import Console, RenderableType
from rich.text import Text

from controller import look
from controller.look import Fitting, Look, add_arguments, console, seconds, show

LONG = "kubectl " + "x" * 300


def looks(*statuses: int) -> Iterator[Look]:
    for number, status in enumerate(statuses):
        yield Look(lambda _, number=number: Text(f"look {number}"), lambda number=number: {"look": number, "of": ["n1"]}, status)  # type: ignore[misc]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses; Ctrl-C comes in the third."""
    pauses: list[float] = []

    def sleep(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    return pauses


def test_one_look_is_the_first(capsys: pytest.CaptureFixture[str], slept: list[float]) -> None:
    assert show(looks(7, 0), "table", None) == 7
    assert capsys.readouterr().out == "look 0\n"
    assert show(looks(0), "json", None) == 0
    assert capsys.readouterr().out == json.dumps({"look": 0, "of": ["n1"]}, indent=2) + "\n"
    assert show(looks(0), "yaml", None) == 0
    assert capsys.readouterr().out == "look: 0\nof:\n- n1\n"
    assert not slept


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_looks_go_on_until_ctrl_c_and_the_last_gives_the_status(
    capsys: pytest.CaptureFixture[str], slept: list[float], output: str
) -> None:
    assert show(looks(0, 0, 3, 0), output, 0.5) == 3

    assert slept == [0.5] * 3
    said = capsys.readouterr().out
    if output == "table":
        lines = said.splitlines()
        assert lines[1::2] == ["look 0", "look 1", "look 2"]
        assert [time.strptime(line, "%Y-%m-%d %H:%M:%S") <= time.localtime() for line in lines[::2]] == [True] * 3
    else:
        found = list(yaml.safe_load_all(said)) if output == "yaml" else [json.loads(line) for line in said.splitlines()]
        assert [one["look"] for one in found] == [0, 1, 2]


def test_on_a_terminal_a_picture_takes_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=40, height=20, legacy_windows=False)
    monkeypatch.setattr(look, "console", lambda width: screen)

    show(looks(0, 0, 0), "table", 1.0)

    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    between = drawn[drawn.index("look 0") : drawn.index("look 1")]
    assert "\x1b[2K" in between, "the line is erased"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_ended_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=40, height=20, legacy_windows=False)
    monkeypatch.setattr(look, "console", lambda width: screen)
    monkeypatch.setattr(time, "sleep", lambda pause: signal.raise_signal(number))
    before = signal.getsignal(number)

    with pytest.raises(SystemExit) as end:
        show(looks(0, 0), "table", 1.0, fills_screen=True)

    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    assert (end.value.code, signal.getsignal(number)) == (128 + number, before)
    assert "\x1b[?1049h" in drawn and "\x1b[?1049l" in drawn[drawn.index("\x1b[?1049h") :], "the screen is that of before"
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "and has its cursor"


def test_what_is_taller_than_the_terminal_stays_in_place(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=40, height=10, legacy_windows=False)
    monkeypatch.setattr(look, "console", lambda width: screen)
    tall = Look(lambda _: Text("\n".join(f"line {number}" for number in range(30))), dict)

    show(iter([tall] * 3), "table", 1.0)

    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    assert drawn.count("line 29") == 1, "at the end it is shown whole"


def test_a_picture_is_made_for_its_console() -> None:
    seen = []

    def picture(out: Console) -> RenderableType:
        seen.append(out.width)
        return ""

    show(iter([Look(picture, dict)]), "table", None, width=77)

    assert seen == [77]


def test_ctrl_c_before_anything_was_seen_is_not_kept_back() -> None:
    def interrupted() -> Look:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show((interrupted() for _ in range(1)), "table", 1.0)


def test_commands_are_not_broken_into_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(Text(LONG))
    assert capsys.readouterr().out == LONG + "\n"


@pytest.mark.parametrize(("words", "every"), [([], None), (["--watch"], 2.0), (["--watch", "0.5"], 0.5)])
def test_the_option(words: list[str], every: float | None) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, 2.0)
    assert parser.parse_args(words).watch == every


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("2", 2.0), ("3600", 3600.0)])
def test_how_often_to_look(text: str, value: float) -> None:
    assert seconds(text) == value
    for wrong in ("0", "3601", "x", "nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            seconds(wrong)


# A table on a terminal that is narrow ---------------------------------------------------------------------------------

COLUMNS = ("NODE", "ENDPOINT", "SENT", "MESH", "PODS")


def drawn(width: int) -> list[str]:
    fitting = Fitting(COLUMNS, spare=("MESH", "SENT"), numbers=("SENT",))
    fitting.add_row(["n1", "192.0.2.1:51820", "1.5 MB", "all of them but the third", "10.0.0.1 default/web-1\nand 2 more"])
    fitting.add_row(["n2", "[2001:db8::2]:51820", "12 B", "none", ""], "red")
    out = Console(width=width, record=True, file=io.StringIO(), soft_wrap=True, highlight=False)
    out.print(fitting)
    return [line.rstrip() for line in out.export_text().splitlines()]


@pytest.mark.parametrize("width", range(52, 130))
def test_no_word_is_broken_and_what_is_left_out_is_named(width: int) -> None:
    lines = drawn(width)

    *table, last = lines if lines[-1].startswith("(no room") else [*lines, ""]
    left_out = {column for column in ("MESH", "SENT") if column in last}
    assert all(len(line) <= width for line in table)
    assert table[0].split() == [column for column in COLUMNS if column not in left_out]
    words = {word for line in table for word in line.split()}
    assert words >= {"192.0.2.1:51820", "[2001:db8::2]:51820", "10.0.0.1", "default/web-1"}
    assert "MESH" in left_out or words >= {"all", "them", "third", "none"}
    assert "SENT" in left_out or any("1.5 MB" in line for line in table), "numbers stay on a line"


def test_the_first_to_go_is_the_first_named_and_only_where_it_must() -> None:
    assert "(no room" not in "".join(drawn(61))
    assert drawn(60)[-1] == "(no room for MESH: widen the terminal, or --output json)"
    assert drawn(52)[-1] == "(no room for MESH, SENT: widen the terminal, or --output json)"


def test_where_nothing_more_can_go_words_are_broken_and_nothing_is_lost() -> None:
    *table, _ = drawn(30)

    first = ("NODE", "n1", "n2", "ENDPOINT", "192.0.2.1:51820", "[2001:db8::2]:51820")
    cells = (*first, "PODS", "10.0.0.1 default/web-1", "and 2 more")
    assert all(len(line) <= 30 for line in table)
    assert sorted(filter(str.isalnum, "".join(table))) == sorted(filter(str.isalnum, "".join(cells)))
