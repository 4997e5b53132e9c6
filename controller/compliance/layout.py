"""What a reader sees, in the order in which it is read, as plain blocks: the pages in HTML and PDF are the same blocks. Pure.

Everything comes from the signed document and nothing from anywhere else, so that the pages can be made again from it and
compared.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from controller.compliance.model import duration, share

MOST_ROWS = 400
"""Rows of one table. The enclosed JSON has all of them."""

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heading:
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A paragraph not to be overlooked."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What and how much: pairs of words."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """``widths`` are shares of the page. Cells of the column ``outcome`` are outcomes; those of ``code`` are set in a fixed
    pitch."""

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    rows: tuple[tuple[str, ...], ...]
    outcome: int | None = None
    code: tuple[int, ...] = ()


Block = Heading | Paragraph | Note | Bullets | Facts | Table


def title(document: Document) -> str:
    return f"Encryption in transit: {document['statement']['framework']['name']}"


def blocks(document: Document) -> Iterator[Block]:
    """The whole report below its title."""
    statement, signature = document["statement"], document["signature"]
    yield _facts(statement, signature)
    yield Note("Not FIPS-approved", statement["fips"])
    yield Heading("Requirements")
    yield Paragraph(
        "Each requirement has the worst outcome of the sentences that bear on it. The wording is a summary; the standard counts."
    )
    yield Table(
        ("Requirement", "In short", "Evidence", "Sentences"),
        (22, 46, 16, 16),
        tuple((one["id"], one["text"], one["outcome"], _ranges(one["statements"])) for one in statement["requirements"]),
        outcome=2,
    )
    yield Bullets(tuple(statement["framework"]["remarks"]))
    yield Heading("What the record shows")
    yield Table(
        ("No.", "Sentence", "Evidence", "From"),
        (7, 59, 16, 18),
        tuple((one["id"], one["text"], one["outcome"], _ranges(one["evidence"])) for one in statement["statements"]),
        outcome=2,
    )
    for make in (_gaps, _pairs, _unencrypted, _keys, _strict_mode, _configuration, _algorithms):
        yield from make(statement)
    yield Heading("What this report does not say")
    yield Bullets(tuple(statement["limits"]))
    yield from _evidence(statement)
    yield from _signature(signature)


def _facts(statement: Document, signature: Document) -> Facts:
    period = statement["period"]
    return Facts(
        (
            (
                "Period",
                f"{moment(period['from'])} to {moment(period['to'])} UTC ({duration(period['ms'])}); all times here are UTC",
            ),
            ("Nodes with a record", ", ".join(statement["nodes"])),
            ("Mesh", statement["mesh"] or "not recorded"),
            ("Made", f"{moment(statement['made_at'])} UTC by {statement['made_by']}"),
            ("Signed with", signature["public_key"]),
        )
    )


def _gaps(statement: Document) -> Iterator[Block]:
    yield Heading("Gaps in the record")
    if not statement["gaps"]:
        yield Paragraph("None.")
        return
    yield Paragraph("Of these times nothing is known. Nothing is called encrypted in them.")
    rows = [
        (gap["node"], moment(gap["from"]), moment(gap["to"]), duration(gap["ms"]), gap["why"], _ranges(gap["evidence"]))
        for gap in statement["gaps"]
    ]
    yield from _table(("Node", "From", "To", "Length", "Why", "Evidence"), (13, 19, 19, 12, 25, 12), rows)


def _pairs(statement: Document) -> Iterator[Block]:
    yield Heading("Pairs of nodes")
    if not statement["pairs"]:
        yield Paragraph("None stands in the record.")
        return
    yield Paragraph(
        "Packets from the node to the pods of the peer: how long they were what, and the share of the time on record."
    )
    rows = []
    for pair in statement["pairs"]:
        known = pair["encrypted_ms"] + pair["clear_ms"] + pair["refused_ms"]
        encrypted = f"{duration(pair['encrypted_ms'])} ({share(pair['encrypted_ms'], known)})"
        others = (_or_dash(pair[f"{state}_ms"]) for state in ("clear", "refused", "unknown"))
        rows.append((pair["node"], pair["peer"], pair["family"], encrypted, *others))
    columns = ("Node", "Peer", "Family", "Encrypted", "In clear", "Refused", "Not known")
    yield from _table(columns, (15, 17, 9, 22, 12, 12, 13), rows)


def _unencrypted(statement: Document) -> Iterator[Block]:
    spans = [
        (pair, span) for pair in statement["pairs"] for span in pair["spans"] if span["state"] not in ("encrypted", "unknown")
    ]
    if not spans:
        return
    yield Heading("Not encrypted, and why")
    rows = [
        (
            f"{pair['node']} to {pair['peer']}, {pair['family']}",
            "in clear" if span["state"] == "clear" else span["state"],
            moment(span["from"]),
            moment(span["to"]),
            duration(span["ms"]),
            span["why"] or "no reason is recorded",
            _ranges(span["evidence"]),
        )
        for pair, span in spans
    ]
    columns = ("Pair", "Packets", "From", "To", "Length", "Why", "Evidence")
    yield from _table(columns, (17, 10, 16, 16, 11, 20, 10), rows)


def _keys(statement: Document) -> Iterator[Block]:
    yield Heading("Keys")
    if not statement["keys"]:
        yield Paragraph("None stands in the record.")
        return
    yield Paragraph("WireGuard's public keys, the node's own and those it accepted. Session keys are younger than three minutes.")
    is_one = len(statement["nodes"]) == 1
    rows = [
        (
            f"{key['of']}, {key['family']}" + ("" if is_one or key["of"] == key["node"] else f" (at {key['node']})"),
            key["key"],
            moment(key["from"]) + ("" if key["begin_recorded"] else " or before"),
            moment(key["to"]) if key["to"] else "still in use",
            duration(key["age_ms"]),
        )
        for key in statement["keys"]
    ]
    yield from _table(("Of", "Public key", "In use from", "To", "Age"), (18, 41, 16, 14, 11), rows, code=(1,))


def _strict_mode(statement: Document) -> Iterator[Block]:
    yield Heading("Strict mode")
    rows = [
        (span["node"], span["strict mode"], moment(span["from"]), moment(span["to"]), duration(span["ms"]))
        for span in statement["strict_mode"]
    ]
    yield from _table(("Node", "Strict mode", "From", "To", "Length"), (20, 18, 24, 24, 14), rows)


def _configuration(statement: Document) -> Iterator[Block]:
    yield Heading("Configuration, as it changed")
    if not statement["configuration"]:
        yield Paragraph("No change stands in the record of this period.")
        return
    rows = [
        (
            moment(change["time"]),
            change["node"],
            change["change"],
            ", ".join(f"{name}: {value}" for name, value in change["values"].items() if name != "node"),
            _ranges(change["evidence"]),
        )
        for change in statement["configuration"]
    ]
    yield from _table(("Time", "Node", "Change", "Values", "Evidence"), (20, 14, 22, 32, 12), rows)


def _algorithms(statement: Document) -> Iterator[Block]:
    yield Heading("What encrypts")
    yield Facts(tuple((one["name"].capitalize(), one["value"]) for one in statement["algorithms"]))


def _evidence(statement: Document) -> Iterator[Block]:
    yield Heading("Evidence")
    yield Paragraph(
        "Lines of the nodes' histories. A line is found again by its SHA-256, of which the beginning stands here; the enclosed "
        "JSON has all of it, and those of the files."
    )
    rows = [
        (line["id"], line["node"], f"{line['file']}:{line['line']}", str(line["offset"]), *_said(line), line["sha256"][:16])
        for line in statement["evidence"]["lines"]
    ]
    columns = ("No.", "Node", "File and line", "Byte", "Time", "Entry", "SHA-256")
    yield from _table(columns, (7, 12, 19, 9, 17, 18, 18), rows, code=(6,))


def _said(line: Document) -> tuple[str, str]:
    return moment(line["time"]) if line["time"] else "-", line["kind"]


def _signature(signature: Document) -> Iterator[Block]:
    yield Heading("Signature")
    yield Paragraph(
        "This document carries the signed statement as JSON. To check it: wgpy report verify FILE --key KEY, where KEY is what "
        "wgpy report key prints on the node that made it. The pages are checked too: they are made again from the statement."
    )
    yield Facts(
        (
            ("Algorithm", signature["algorithm"]),
            ("Public key", signature["public_key"]),
            ("Signature", signature["value"]),
            ("Keys before", "; ".join(f"{one['old']} until {moment(one['at'])}" for one in signature["handovers"]) or "none"),
        )
    )


def _table(
    columns: tuple[str, ...], widths: tuple[int, ...], rows: Sequence[tuple[str, ...]], code: tuple[int, ...] = ()
) -> Iterator[Block]:
    yield Table(columns, widths, tuple(rows[:MOST_ROWS]), code=code)
    if len(rows) > MOST_ROWS:
        yield Paragraph(f"{len(rows) - MOST_ROWS} more rows are in the enclosed JSON.")


def moment(time: str) -> str:
    """``2026-11-22 14:03:05`` of an RFC 3339 time in UTC; milliseconds stand in the enclosed JSON."""
    return f"{time[:10]} {time[11:19]}"


def _or_dash(milliseconds: int) -> str:
    return duration(milliseconds) if milliseconds else "-"


def _distance(pair: tuple[int, int]) -> int:
    """Of a number to its place: the same for all of a run."""
    return pair[1] - pair[0]


def _ranges(ids: Iterable[str]) -> str:
    """``E1-E4, E7`` of E7, E1, E2, …; a dash for none."""
    numbers = sorted({int(one[1:]) for one in ids})
    letter = next((one[0] for one in ids), "")
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=_distance)]
    return ", ".join(f"{letter}{run[0]}" + (f"-{letter}{run[-1]}" if len(run) > 1 else "") for run in runs) or "-"
