"""The reference of the commands, made of what the commands themselves say: a page of the site, and manual pages.

    python .ci/reference.py FOLDER      writes wgpy.1, wgpy-agent.1 and so on

mkdocs calls :func:`on_files` (mkdocs.yml names this file as a hook). Every verb makes its argument parser when it is called. So
each is called without arguments and stopped where it would parse them; nothing of it runs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from argparse_manpage.manpage import Manpage
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from wgpy import __version__, cli

PAGE = "commands.md"
HEAD = """# Commands

What each command says of itself: `wgpy COMMAND --help`. Exit status, where nothing else is said: 0; 1 when it could not be
done; 2 when it was asked wrongly. Errors are one line on standard error. `make docs` makes manual pages, too: build/man.
"""

Parser = argparse.ArgumentParser


class _Found(BaseException):
    """The parser a verb was about to use. Not an Exception: nobody may take it for an error."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def _stop(parser: Parser, *_: object, **__: object) -> NoReturn:
    raise _Found(parser)


@contextmanager
def _anywhere() -> Iterator[None]:
    """Let nothing of this machine into the help: not its name, not the width of its terminal."""
    neutral = {"COLUMNS": "88", "NODENAME": "this host's name"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WGPY_", "WG_"))}
    with mock.patch.dict(os.environ, kept | neutral, clear=True):
        yield


def parsers() -> dict[str, Parser]:
    """The parser of each verb, in the order of ``wgpy --help``. "" is ``wgpy IFNAME``."""
    verbs: dict[str, Callable[[list[str]], int]] = {"": cli.drop_in, **cli.VERBS}
    commands = {entry.name: entry for entry in entry_points(group="wgpy.commands")}
    verbs |= {name: commands[name].load() for name in cli.COMMANDS}
    return {name: _parser(name, verb) for name, verb in verbs.items()}


def _parser(name: str, verb: Callable[[list[str]], int]) -> Parser:
    with _anywhere(), mock.patch.object(Parser, "parse_known_args", _stop):
        try:
            verb([])
        except _Found as found:
            return found.parser
    raise SystemExit(f"reference: wgpy {name} does not parse its arguments with argparse")


def _below(parser: Parser) -> Iterator[Parser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from _below(each)


def page() -> str:
    """commands.md"""
    with _anywhere():
        parts = [HEAD, "```text\n" + cli.help_text() + "```\n"]
        for name, parser in parsers().items():
            for each in _below(parser):
                depth = "##" if each is parser else "###"
                title = each.prog if name else "wgpy IFNAME"
                parts.append(f"{depth} {title}\n\n```text\n{each.format_help()}```\n")
    return "\n".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def write_manual_pages(folder: Path) -> None:
    """wgpy.1 lists the commands, and each has its own page."""
    folder.mkdir(parents=True, exist_ok=True)
    with _anywhere():
        for name, parser in parsers().items():
            page_name = f"wgpy-{name}" if name else "wgpy"
            data: dict[str, Any] = {
                "project_name": "wgpy",
                "version": __version__,
                "manual_title": "wgpy",
                "manual_section": "1",
                "description": (parser.description or "").partition("\n")[0],
            }
            text = str(Manpage(parser, _data=data)).rstrip()
            # Of a page, but for its synopsis, the name is one word.
            text = text.replace(f".TH {parser.prog.upper()} ", f".TH {page_name.upper()} ", 1)
            text = text.replace(f"\n{parser.prog} \\- ", f"\n{page_name} \\- ", 1)
            others = ["wgpy"] if name else [f"wgpy-{verb}" for verb in (*cli.VERBS, *cli.COMMANDS)]
            links = ",\n".join(f"\\fB{other}\\fR(1)" for other in others)
            (folder / f"{page_name}.1").write_text(f"{text}\n\n.SH SEE ALSO\n{links}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python .ci/reference.py FOLDER")
    write_manual_pages(Path(sys.argv[1]))
