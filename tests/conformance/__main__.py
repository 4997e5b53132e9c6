"""The command: ``python -m tests.conformance [options] [BEHAVIOUR...]`` (as root).

    python -m tests.conformance                                  everything, on everything that is installed
    python -m tests.conformance --on wgpy 'replay-*'             some behaviours, on one
    python -m tests.conformance --command '/opt/mywg -f' --list  another implementation that serves UAPI

Exit status: 0 if every behaviour holds for the implementation in question (wgpy, or the one of ``--command``); 1 if not; 2
if it could not be tried.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from controller.demo.topology import TopologyError, collect_leftovers
from tests.conformance.behaviour import Behaviour, Outcome, Verdict
from tests.conformance.behaviours import in_order
from tests.conformance.boxes import Implementation, implementations, other
from tests.conformance.report import Report, markdown, show
from tests.conformance.run import jobs, try_all

MARK = "<!-- What follows is written by `make conformance ARGS='--markdown docs/conformance.md'`. -->\n"


class UsageError(Exception):
    """The command line asks for what there is not. The message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        behaviours = chosen(arguments.behaviours)
        if arguments.list:
            for each in behaviours:
                print(f"{each.section:5} {each.name}: {each.title}")
            return 0
        if os.geteuid() != 0:
            raise UsageError("namespaces and interfaces are made: run this as root")
        wanted, missing = present(asked_for(arguments))
        judged = "wgpy" if arguments.command is None else wanted[-1].name
        collect_leftovers()
        report = conduct(wanted, missing, behaviours, judged)
    except (UsageError, TopologyError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("conformance: interrupted; everything is taken down", file=sys.stderr)
        return 130
    if arguments.output == "json":
        print(report.to_json(), end="")
    else:
        show(report, Console())
    if arguments.json is not None:
        arguments.json.write_text(report.to_json())
    if arguments.markdown is not None:
        arguments.markdown.write_text(page(arguments.markdown, markdown(report)))
    return status(report, judged)


def status(report: Report, judged: str) -> int:
    """0 if everything holds for the one that is judged, as far as it can be asked of it."""
    counts = report.counts(judged)
    return 0 if counts[Verdict.HOLDS] and not counts[Verdict.BROKEN] and not counts[Verdict.ERROR] else 1


def page(path: Path, table: str) -> str:
    """The page with a new table: what stands in the file above its mark stays."""
    before, mark, _ = path.read_text().partition(MARK) if path.exists() else ("", "", "")
    return f"{before}{mark}\n{table}" if mark else table


def chosen(patterns: Sequence[str]) -> list[Behaviour]:
    """The behaviours whose name or section fits one of the patterns; all without any. Raises UsageError."""
    if not patterns:
        return in_order()
    found = []
    for pattern in patterns:
        fitting = [each for each in in_order() if fnmatch.fnmatch(each.name, pattern) or each.section == pattern]
        if not fitting:
            raise UsageError(f"there is no behaviour {pattern!r}; --list shows them")
        found += [each for each in fitting if each not in found]
    return found


def asked_for(arguments: argparse.Namespace) -> list[Implementation]:
    """Raises UsageError for an unknown one."""
    known = implementations()
    names = list(known) if arguments.on is None else arguments.on.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no implementation {unknown[0]!r}; there are: {', '.join(known)}")
    asked = [known[name] for name in names]
    if arguments.command is not None:
        asked = ([] if arguments.on is None else asked) + [other(arguments.command)]
    return asked


def present(asked: Sequence[Implementation]) -> tuple[list[Implementation], dict[str, str]]:
    """Those that can be tried, and why the others cannot. Raises UsageError if one is missing that WGPY_REQUIRE_PEERS names."""
    missing = {each.name: reason for each in asked if (reason := each.missing())}
    required = os.environ.get("WGPY_REQUIRE_PEERS", "").replace(",", " ").split()
    for name, reason in missing.items():
        if name in required or "all" in required:
            raise UsageError(f"{reason} (WGPY_REQUIRE_PEERS asks for {name})")
    found = [each for each in asked if each.name not in missing]
    if not found:
        raise UsageError("; ".join(missing.values()))
    return found, missing


def conduct(wanted: Sequence[Implementation], missing: dict[str, str], behaviours: Sequence[Behaviour], judged: str) -> Report:
    """Try everything, with a bar that shows how far it is."""
    work = jobs(behaviours, wanted, judged)
    began = time.monotonic()
    versions = {each.name: each.version() for each in wanted}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("trying", total=len(work))

        def told(outcome: Outcome) -> None:
            progress.update(bar, advance=1)
            if outcome.verdict in (Verdict.BROKEN, Verdict.ERROR):
                progress.console.print(f"{outcome.who}: {outcome.behaviour}: {outcome.said}", markup=False)

        outcomes = try_all(work, told)
    return Report(behaviours, versions, missing, outcomes, time.monotonic() - began)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--on", metavar="A,B", help=f"these implementations ({', '.join(implementations())}; default: all that are there)")
    add("--command", metavar="'CMD...'", help="another one: a command that serves the interface named last, and its UAPI socket")
    add("--list", action="store_true", help="name the behaviours and do nothing")
    add("--output", choices=("table", "json"), default="table")
    add("--json", type=Path, metavar="FILE", help="write the outcomes there, too")
    add("--markdown", type=Path, metavar="FILE", help="and the table, as a page of the documentation")
    add("behaviours", nargs="*", metavar="BEHAVIOUR", help="names, patterns or sections (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
