"""Histories for tests, written line by line with the agent's own writer."""

from pathlib import Path
from typing import Any

from controller.compliance.evidence import load
from controller.compliance.timeline import Record
from controller.entries import Entry, Kind, entry
from controller.history import History

START = 1_793_491_200  # 2026-11-01
HOUR = 3600


def at(hours: float) -> int:
    """Milliseconds since 1970, so many hours after START."""
    return round(1000 * (START + HOUR * hours))


def one(hours: float, kind: Kind, **fields: Any) -> Entry:
    return entry(START + HOUR * hours, kind, **fields)


def started(hours: float, strict: bool = True) -> Entry:
    return one(hours, Kind.AGENT_STARTED, version="1", node="n1", mesh="calico", strict=strict)


def stopped(hours: float) -> Entry:
    return one(hours, Kind.AGENT_STOPPED)


def sampled(hours: float, encrypted: int = 2, clear: int = 0, refused: int = 0, rx: int = 0, tx: int = 0) -> Entry:
    counts = {"encrypted": encrypted, "clear": clear, "refused": refused, "rx_bytes": rx, "tx_bytes": tx}
    return one(hours, Kind.SAMPLE, node="n1", mesh="calico", strict=True, families={"IPv4": counts})


def stood(hours: float, *encrypted: str, **fields: Any) -> Entry:
    said = {"enabled": True, "key": "K1", "clear": {}, "refused": {}, **fields}
    return one(hours, Kind.STANDING, family="IPv4", encrypted=list(encrypted), **said)


def traffic(hours: float, peer: str, before: str, after: str, why: str | None = None) -> Entry:
    return one(hours, Kind.PEER_TRAFFIC, family="IPv4", peer=peer, before=before, after=after, why=why)


def running(begin: float, end: float, **counts: int) -> list[Entry]:
    """Samples every quarter of an hour, both ends included."""
    return [sampled(begin + quarter / 4, **counts) for quarter in range(round(4 * (end - begin)) + 1)]


def record(directory: Path, *entries: Entry) -> Record:
    directory.mkdir(exist_ok=True)
    History(directory).write(entries)
    return load(directory)
