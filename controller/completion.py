"""``wgpy completion bash``: what a shell needs to complete wgpy's command line, as a script to be sourced.

The script is made from the commands' own parsers, so it knows no word that they do not. A command makes its parser when it is
called, and calls it first of all; so each is called, and stopped where its parser is about to read (:func:`parser_of`).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import shtab

from wgpy.cli import COMMANDS, VERBS

Verb = Callable[[list[str]], int]

SHELLS = ("bash", "zsh", "fish")


class _Met(BaseException):
    """A parser that is about to read. No ``except Exception`` is in its way."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def main(arguments: list[str]) -> int:
    """print a script that completes wgpy's commands and options: source <(wgpy completion bash)"""
    parser = argparse.ArgumentParser(prog="wgpy completion", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    options = parser.parse_args(arguments)
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """The script for one of :data:`SHELLS`."""
    text: str = shtab.complete(whole(verbs()), shell)
    return text


def verbs() -> dict[str, Verb]:
    """Every command that is installed, by name."""
    found: dict[str, Verb] = dict(VERBS)
    for entry in entry_points(group="wgpy.commands"):
        try:
            found[entry.name] = entry.load()
        except ModuleNotFoundError as error:
            print(f"wgpy completion: without {entry.name}: {error.name} is missing", file=sys.stderr)
    return found


def whole(found: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """One parser of all commands. It is never asked to read."""
    made = argparse.ArgumentParser(prog="wgpy")
    made.add_argument("--version", action="store_true", help="which one this is")
    names = made.add_subparsers(metavar="COMMAND")
    for name, verb in sorted(found.items()):
        parser = parser_of(verb)
        if parser is not None:
            summary = COMMANDS.get(name) or (verb.__doc__ or "").strip().partition("\n")[0]
            _know_files(names.add_parser(name, help=summary, parents=[parser], add_help=False))
    return made


def parser_of(verb: Verb) -> argparse.ArgumentParser | None:
    """The parser of a command, None if it has none. Nothing of the command is done but its first lines."""
    try:
        with _stopped():
            verb([])
    except _Met as met:
        return met.parser
    return None


@contextmanager
def _stopped() -> Iterator[None]:
    """Meanwhile no parser reads."""

    def stop(parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise _Met(parser)

    before = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args = before  # type: ignore[method-assign]


def _know_files(parser: argparse.ArgumentParser) -> None:
    """Options that take a file or a directory are completed with those there are."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
