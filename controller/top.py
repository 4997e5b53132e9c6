"""``wgpy top``: who talks with this node right now, and how much. The busiest peers come first, a line each, until Ctrl-C.

It looks where ``wgpy mesh`` looks (:func:`controller.mesh_table.looks`). Rates are those between two looks.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from controller.look import Fitting, Look, seconds, show
from controller.mesh_table import Rates, ago, looks, size
from controller.model import Family
from controller.status import AgentStatus, PeerStatus, Traffic

SECONDS = 1.0
MOST_ROWS = 500
NUMBERS = ("HANDSHAKE", "IN/S", "OUT/S", "RECEIVED", "SENT")


@dataclass(frozen=True, slots=True)
class Row:
    """A peer with its rates in bytes per second; None: not known yet."""

    family: Family
    peer: PeerStatus
    received: float | None
    sent: float | None

    @property
    def total(self) -> float:
        return (self.received or 0.0) + (self.sent or 0.0)


def rows(status: AgentStatus, speed: Rates) -> list[Row]:
    """The encrypted peers, the busiest first; of equals the one that has carried more, then by name. Pure."""
    found = [
        Row(family.family, peer, *speed.get((family.family, peer.name), (None, None)))
        for family in status.families
        if family.is_enabled
        for peer in family.peers
        if peer.traffic is Traffic.ENCRYPTED
    ]
    return sorted(found, key=lambda row: (-row.total, -row.peer.rx_bytes - row.peer.tx_bytes, row.peer.name, row.family.value))


def table(status: AgentStatus, speed: Rates, now: float, most: int = MOST_ROWS) -> RenderableType:
    """The sum of all, and the ``most`` busiest peers. Pure."""
    found = rows(status, speed)
    received, sent = (sum(filter(None, rates)) for rates in ([row.received for row in found], [row.sent for row in found]))
    known = sum(row.received is not None for row in found)
    shown = Fitting(("NODE", "IP", "ENDPOINT", *NUMBERS), ("SENT", "RECEIVED", "IP"), NUMBERS)
    for row in found[:most]:
        shown.add_row(_cells(row, now), "red" if row.peer.is_silent else "dim" if not row.total else "")
    total = f"in {_rate(received if known else None)}, out {_rate(sent if known else None)}"
    head = Text.assemble((status.node, "bold"), f"  {len(found)} encrypted peers  {total}")
    if not found:
        return Group(head, *(Text(f"{family.family}: {family.rest}") for family in status.families if family.rest is not None))
    rest = [Text(f"and {len(found) - most} more")] if len(found) > most else []
    return Group(head, shown, *rest)


def _cells(row: Row, now: float) -> Iterator[str]:
    peer = row.peer
    yield f"external {peer.name[:8]}…" if peer.is_external else peer.name
    yield str(row.family.value)
    yield peer.endpoint or "unknown"
    yield "no answer" if peer.is_silent else "never" if peer.last_handshake is None else ago(now - peer.last_handshake)
    yield from (_rate(row.received), _rate(row.sent), size(peer.rx_bytes), size(peer.tx_bytes))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{size(round(value))}/s"


def document(status: AgentStatus, speed: Rates, now: float) -> dict[str, Any]:
    """All of it as plain data, rates in bytes per second. Pure."""
    return {"node": status.node, "at": now, "peers": [_plain(row) for row in rows(status, speed)]}


def _plain(row: Row) -> dict[str, Any]:
    peer = row.peer
    return {
        "name": peer.name,
        "family": row.family.value,
        "endpoint": peer.endpoint,
        "last_handshake": peer.last_handshake,
        "is_silent": peer.is_silent,
        "rx_rate": row.received,
        "tx_rate": row.sent,
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
    }


# The command --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        "--interval",
        dest="interval",
        type=seconds,
        nargs="?",
        const=SECONDS,
        default=SECONDS,
        metavar="SECONDS",
        help="how long between two looks (default: %(default)g)",
    )
    parser.add_argument("--once", action="store_true", help="look twice, print the rates between, and end")
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "json", "yaml"),
        default="table",
        help="for a program: json a document a line, yaml one after the other (default: a table)",
    )


def run(directory: Path, interval: float, is_once: bool, output: str) -> int:
    """Show it until Ctrl-C, or once; the exit status. Raises controller.mesh_table.NothingKnown."""
    looking = looks(directory)
    next(looking)
    time.sleep(interval)  # for the first rates
    return show((_look(*seen) for seen in looking), output, None if is_once else interval, fills_screen=True)


def _look(status: AgentStatus, speed: Rates, now: float) -> Look:
    def picture(out: Console) -> RenderableType:
        return table(status, speed, now, max(out.height - 4, 1) if out.is_terminal else MOST_ROWS)

    return Look(picture, lambda: document(status, speed, now))
