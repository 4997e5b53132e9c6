"""Reads a node's history as evidence: every line with its place and its SHA-256."""

import hashlib
import json
from pathlib import Path

from controller.compliance.timeline import File, Item, Record
from controller.entries import parse
from controller.history import contents


class EvidenceError(Exception):
    """There is no history that a report can be made from. The message is one line."""


def load(directory: Path) -> Record:
    """The history in ``directory``: an agent's state directory, or one that history.jsonl and history.1.jsonl were copied into.

    Raises EvidenceError if there is none, it cannot be read, or it does not say whose it is."""
    try:
        files = contents(directory)
    except OSError as error:
        raise EvidenceError(f"cannot read the history in {directory}: {error.strerror}") from None
    if not files:
        raise EvidenceError(f"there is no history.jsonl in {directory}: has an agent run here (wgpy agent), with this --state?")
    items = tuple(item for name, content in files for item in _items(name, content))
    node = next((item.entry.fields["node"] for item in reversed(items) if item.entry and "node" in item.entry.fields), None)
    if node is None and (node := _node_of_status(directory)) is None:
        raise EvidenceError(f"the history in {directory} does not say which node it is of: put the agent's status.json beside it")
    return Record(str(node), tuple(File(name, len(content), _digest(content)) for name, content in files), items)


def last_entry(record: Record) -> float | None:
    """When the record says something for the last time, in seconds since 1970."""
    return max((item.entry.at for item in record.items if item.entry), default=None)


def mesh_of(record: Record) -> str:
    """Which kind of mesh the node was in last; empty if the record does not say."""
    return next(
        (str(item.entry.fields["mesh"]) for item in reversed(record.items) if item.entry and "mesh" in item.entry.fields), ""
    )


def _items(name: str, content: bytes) -> list[Item]:
    items, offset = [], 0
    for number, line in enumerate(content.split(b"\n"), 1):
        if line:
            items.append(Item(name, number, offset, len(line), _digest(line), parse(line)))
        offset += len(line) + 1
    return items


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _node_of_status(directory: Path) -> str | None:
    """Histories of earlier versions do not say whose they are."""
    try:
        return str(json.loads((directory / "status.json").read_bytes())["node"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
