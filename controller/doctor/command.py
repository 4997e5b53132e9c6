"""``wgpy doctor``: arguments in, what is wrong out.

Exit status: 0 if nothing is wrong, 1 if something is, 2 if it could not be looked at, or the command line is wrong.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from controller import look
from controller.doctor.checks import examine
from controller.doctor.diagnosis import Diagnosis, Unseen
from controller.doctor.facts import Facts
from controller.look import Look

HEALTHY, ILL, BLIND = 0, 1, 2
PLAIN_WIDTH = 400
WATCH_SECONDS = 10.0
MOST_UNSEEN = 2
"""How many checks in a row that could not be made for one reason have a line each."""

Report = Mapping[str, Sequence[Diagnosis | Unseen]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text", help="for whom (default: for people)")
    parser.add_argument("--passive", action="store_true", help="send nothing: no datagram to a peer, and none through the tunnel")
    look.add_arguments(parser, WATCH_SECONDS)


def run(seen: Iterator[Facts], output: str, watch: float | None = None) -> int:
    """Judge facts and print what was found, once, or each time ``watch`` seconds later; the exit status."""
    return look.show((look_at(facts) for facts in seen), output, watch, PLAIN_WIDTH)


def look_at(facts: Facts) -> Look:
    """What the checks make of facts."""
    report = examine(facts)
    if not facts.is_known and facts.source_error is not None:
        print("wgpy doctor: without a cluster to go by, most of this node could not be looked at", file=sys.stderr)
        status = BLIND
    else:
        status = ILL if diagnoses(report) else HEALTHY
    return Look(lambda out: _picture(out, facts, report), lambda: document(facts, report), status)


def _picture(out: Console, facts: Facts, report: Report) -> Group:
    """All checks; on a terminal that is too low for them those that have something to say, and how many are well."""
    shown = lines(facts, report)
    if out.is_terminal and len(shown) + 1 > out.height:
        telling = {name: results for name, results in report.items() if results}
        shown = lines(facts, telling)
        shown.insert(1, Text.assemble((f"{'ok':>6}", "green"), f"  {len(report) - len(telling)} checks"))
    return Group(*shown)


def diagnoses(report: Report) -> list[Diagnosis]:
    return [found for results in report.values() for found in results if isinstance(found, Diagnosis)]


def lines(facts: Facts, report: Report) -> list[Text]:
    """A line for each check, and under it what is wrong, why it matters and what to type. Checks in a row that could not be made
    for one reason share a line."""
    shown = [Text.assemble((facts.node, "bold"))]
    for unseen, group in groupby(report.items(), lambda check: _unseen(check[1])):
        checks = list(group)
        if unseen and len(checks) > MOST_UNSEEN:
            shown.append(Text.assemble((f"{'?':>6}", "yellow"), f"  {checks[0][0]}, and the {len(checks) - 1} checks after it"))
            shown += _why(unseen)
        else:
            shown += (line for name, results in checks for line in _lines(name, results))
    count = len(diagnoses(report))
    shown.append(Text(f"{count} finding{'s' if count > 1 else ''}" if count else "nothing is wrong", style="bold"))
    return shown


def _lines(name: str, results: Sequence[Diagnosis | Unseen]) -> Iterator[Text]:
    found = [one for one in results if isinstance(one, Diagnosis)]
    unseen = [one for one in results if isinstance(one, Unseen)]
    mark, style = ("wrong", "red") if found else ("?", "yellow") if unseen else ("ok", "green")
    yield Text.assemble((f"{mark:>6}", style), f"  {name}")
    yield from _why(unseen)
    for one in found:
        yield Text.assemble("        ", (one.reason, "bold"), f": {one.what}")
        yield Text(f"          why:  {one.why}")
        for number, command in enumerate(one.remedies):
            yield Text(f"          {'mend:' if not number else '     '} {command}")


def _unseen(results: Sequence[Diagnosis | Unseen]) -> tuple[Unseen, ...]:
    """Why the check could not be made; empty if it could, or has found something all the same."""
    unseen = tuple(one for one in results if isinstance(one, Unseen))
    return unseen if len(unseen) == len(results) else ()


def _why(unseen: Sequence[Unseen]) -> Iterator[Text]:
    return (Text(f"        not looked at: {one.why}", style="yellow") for one in unseen)


def document(facts: Facts, report: Report) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "node": facts.node,
        "at": facts.now,
        "healthy": not diagnoses(report),
        "checks": [
            {
                "name": name,
                "findings": [_plain(one) for one in results if isinstance(one, Diagnosis)],
                "not_looked_at": [one.why for one in results if isinstance(one, Unseen)],
            }
            for name, results in report.items()
        ],
    }


def _plain(one: Diagnosis) -> dict[str, Any]:
    return {"reason": one.reason, "subject": one.subject, "what": one.what, "why": one.why, "remedies": list(one.remedies)}
