"""The command line of ``wgpy report``.

``wgpy report --framework NAME`` makes a report, ``verify FILE`` checks one, ``key`` prints the public keys to check it with, and
``rotate-key`` takes a new one.

Exit status: 0 if it is done, or the report is genuine and from a key that is trusted; 1 if something is wrong, and for ``verify``
if the report is not genuine; 2 for a wrong command line; 3 if a report is intact, but nothing says whose key signed it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import wgpy
from controller.compliance import evidence, render_html, render_pdf
from controller.compliance.evidence import EvidenceError
from controller.compliance.model import statement
from controller.compliance.requirements import FRAMEWORKS
from controller.compliance.signing import (
    NotGenuine,
    PublicKey,
    SigningError,
    SigningKeys,
    canonical,
    parse_trusted,
    print_keys,
    verify,
)
from controller.compliance.timeline import SILENCE_SECONDS, Record

DEFAULT_STATE = Path("/var/lib/wgpy")
DEFAULT_DAYS = 30
SIGNER_UNKNOWN = 3
NO_REPORT = "the signature is good, but what it signs is no report of wgpy's"

_RENDERERS: dict[str, Callable[[Any], bytes]] = {
    "json": lambda document: canonical(document) + b"\n",
    "html": render_html.render,
    "pdf": render_pdf.render,
}
_EXTRACTORS: dict[str, Callable[[bytes], bytes]] = {
    "json": bytes,
    "html": render_html.extract,
    "pdf": render_pdf.extract,
}


class _Failure(Exception):
    """What is wrong, in one line."""


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def main(arguments: list[str]) -> int:
    """make and check signed reports on what was encrypted, for PCI DSS, HIPAA and the GDPR"""
    options = parser().parse_args(arguments)
    act: Callable[[argparse.Namespace], int] = options.act
    try:
        return act(options)
    except (_Failure, EvidenceError, SigningError, NotGenuine) as error:
        print(f"{options.prog}: {_plain(error)}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line, also for who completes or documents it."""
    made = _Parser(prog="wgpy report", description=main.__doc__, allow_abbrev=False)
    made.set_defaults(act=_report, prog=made.prog)
    made.add_argument("--framework", choices=sorted(FRAMEWORKS), help="what the report is for")
    made.add_argument(
        "--from",
        dest="start",
        type=_time,
        metavar="TIME",
        help=f"begin of the period (default: {DEFAULT_DAYS} days before its end)",
    )
    made.add_argument(
        "--to",
        dest="end",
        type=_time,
        metavar="TIME",
        help="end of the period; RFC 3339, UTC where no zone is given (default: now)",
    )
    made.add_argument("--output", choices=sorted(_RENDERERS), help="default: what FILE's name ends with, else json")
    made.add_argument("-o", dest="file", type=Path, metavar="FILE", help="write there (default: standard output)")
    made.add_argument(
        "--history",
        type=Path,
        action="append",
        metavar="DIR",
        help="a node's history: its state directory or a copy; once for each node (default: the one of --state)",
    )
    _add_state(made, DEFAULT_STATE)
    verbs = made.add_subparsers(metavar="{verify,key,rotate-key}", parser_class=_Parser)
    _add_verbs(verbs)
    return made


def _add_verbs(verbs: Any) -> None:
    one = verbs.add_parser("verify", help="check a report, in any of its forms", allow_abbrev=False)
    one.set_defaults(act=_verify, prog=one.prog)
    one.add_argument("report", type=Path, metavar="FILE")
    one.add_argument(
        "--key",
        metavar="KEY",
        help="the signer's public key, or a file with what wgpy report key prints (default: the keys of --state, if it has any)",
    )
    one.add_argument("--extract", type=Path, metavar="FILE", help="write the signed JSON there, if its signature is good")
    _add_state(one)
    for verb, act, text in (
        ("key", _print_key, "print the public keys that reports are signed with: key, from, until"),
        ("rotate-key", _rotate_key, "sign with a new key from now on, and print it; the old one vouches for it"),
    ):
        one = verbs.add_parser(verb, help=text, description=text, allow_abbrev=False)
        one.set_defaults(act=act, prog=one.prog)
        _add_state(one)


def _add_state(made: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    """Suppressed in a verb's own parser, which would otherwise undo what stands before the verb."""
    made.add_argument(
        "--state",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"where the agent keeps its history, and the signing key (default: {DEFAULT_STATE})",
    )


def _time(text: str) -> float:
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a time such as 2026-11-01 or 2026-11-01T12:00:00Z: {text!r}") from None
    return (time_ if time_.tzinfo else time_.replace(tzinfo=UTC)).timestamp()


# Making -------------------------------------------------------------------------------------------------------------


def _report(options: argparse.Namespace) -> int:
    if options.framework is None:
        raise _Failure(f"say what for: --framework {'|'.join(sorted(FRAMEWORKS))}")
    now = time.time()
    records = [evidence.load(directory) for directory in options.history or [options.state]]
    end = options.end if options.end is not None else _end_of(records, now)
    start = options.start if options.start is not None else end - DEFAULT_DAYS * 86400
    if not start < end <= now:
        raise _Failure("the period has to begin before it ends, and to end before now: see --from and --to")
    mesh = ", ".join(sorted({mesh for record in records if (mesh := evidence.mesh_of(record))}))
    try:
        made = statement(
            FRAMEWORKS[options.framework], records, round(start * 1000), round(end * 1000), now, f"wgpy {wgpy.__version__}", mesh
        )
    except ValueError as error:
        raise _Failure(str(error)) from None
    document = SigningKeys(options.state).sign(made, now)
    form = options.output or (
        options.file.suffix[1:].lower() if options.file and options.file.suffix[1:] in _RENDERERS else "json"
    )
    _write(options.file, _RENDERERS[form](document))
    return 0


def _end_of(records: Sequence[Record], now: float) -> float:
    """Now, unless all agents are known to run: then where the first record ends, as the next sample is only due."""
    ends = [evidence.last_entry(record) for record in records]
    running = [end for end in ends if end is not None and now - SILENCE_SECONDS <= end <= now]
    return min(running) if len(running) == len(ends) else now


def _write(file: Path | None, content: bytes) -> None:
    if file is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise _Failure(f"cannot write {file}: {error.strerror}") from None


# Checking -----------------------------------------------------------------------------------------------------------


def _verify(options: argparse.Namespace) -> int:
    try:
        content = options.report.read_bytes()
    except OSError as error:
        raise _Failure(f"cannot read {options.report}: {error.strerror}") from None
    form = _form(content)
    try:
        document = _EXTRACTORS[form](content)
    except ValueError as error:
        raise NotGenuine(f"{options.report}: {error}") from None
    verified = verify(document, _trusted(options))
    said, key = _Head.of(verified.document["statement"]), verified.document["signature"]["public_key"]
    if options.extract is not None:
        _write(options.extract, _RENDERERS["json"](verified.document))
    if form != "json" and _rendered(form, verified.document) != content:
        raise NotGenuine(
            "the pages are not those of the statement they carry, whose signature is good: they were altered, or made by another "
            f"version than {_version()} (the report says {said.made_by}); believe only what --extract gives"
        )
    for line in (
        f"{options.report}: genuine {said.framework} report on {', '.join(said.nodes)}",
        f"period: {said.start} to {said.end}; made {said.made_at} by {said.made_by}",
        f"signed with: {key}",
    ):
        print(_plain(line))
    if not verified.is_known:
        print(
            f"{options.prog}: nothing says whose key that is: give --key with what wgpy report key prints on the node that made "
            "it",
            file=sys.stderr,
        )
        return SIGNER_UNKNOWN
    return 0


def _rendered(form: str, document: Any) -> bytes:
    try:
        return _RENDERERS[form](document)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise NotGenuine(NO_REPORT) from None


@dataclass(frozen=True, slots=True)
class _Head:
    """What a statement says of itself. Whoever has a key can sign anything, so it may say anything."""

    nodes: list[str]
    framework: str
    start: str
    end: str
    made_at: str
    made_by: str

    @classmethod
    def of(cls, statement: Any) -> "_Head":
        """Raises NotGenuine if it is no report's."""
        try:
            period, nodes = statement["period"], statement["nodes"]
            texts = [statement["framework"]["name"], period["from"], period["to"], statement["made_at"], statement["made_by"]]
        except (LookupError, TypeError):
            raise NotGenuine(NO_REPORT) from None
        if not (isinstance(nodes, list) and nodes and all(isinstance(text, str) for text in (*texts, *nodes))):
            raise NotGenuine(NO_REPORT)
        return cls(nodes, *texts)


def _plain(said: object) -> str:
    """One line, whatever a stranger wrote into it: nothing that a terminal would obey."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(said))


def _form(content: bytes) -> str:
    if content.startswith(b"%PDF"):
        return "pdf"
    return "json" if content.lstrip().startswith(b"{") else "html"


def _version() -> str:
    return f"wgpy {wgpy.__version__} with fpdf2 {version('fpdf2')}"


def _trusted(options: argparse.Namespace) -> list[PublicKey]:
    if options.key is None:
        return SigningKeys(options.state).known()
    path = Path(options.key)
    try:
        return parse_trusted(path.read_text() if path.is_file() else options.key)
    except (OSError, ValueError) as error:
        raise _Failure(f"--key: {error}") from None


def _print_key(options: argparse.Namespace) -> int:
    print(print_keys(SigningKeys(options.state).public(time.time())), end="")
    return 0


def _rotate_key(options: argparse.Namespace) -> int:
    print(print_keys([SigningKeys(options.state).rotate(time.time())]), end="")
    return 0
