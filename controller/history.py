"""What happened on this node, one JSON object a line: keys, peers, modes, handshakes, warnings. Reports are made from it.

:func:`changes` finds it out by comparing the agent's status after a pass with the one before; :class:`History` writes it down
and :func:`read` reads it back. An entry has a ``time`` (UTC, RFC 3339), a ``kind`` (one of :class:`Kind`) and what belongs to it.

The file is only ever appended to. When it is full it becomes ``history.1.jsonl`` and a new one begins, so that there are two at
most. A line that a crash cut short is ended by the next one written, and skipped by who reads. What cannot be written
is lost, and said once: a full disk is no reason to stop encrypting. Lines are not forced to the disk one by one, so a
machine that loses its power may lose the last ones.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from controller.status import AgentStatus, FamilyStatus, PeerStatus, Traffic

log = logging.getLogger(__name__)

FILE, OLD_FILE = "history.jsonl", "history.1.jsonl"
LIMIT = 8 << 20
"""Bytes of each of the two files: some 40,000 entries."""


class Kind(Enum):
    """What can happen. The value is what stands in the file."""

    AGENT_STARTED = "agent started"
    AGENT_STOPPED = "agent stopped"
    LEFT = "left the mesh"
    SOURCE_LOST = "source lost"
    SOURCE_BACK = "source back"
    STRICT_ON = "strict mode on"
    STRICT_OFF = "strict mode off"
    DATA_PLANE_FOUND = "data plane found"
    DATA_PLANE_LOST = "data plane lost"
    FAMILY_ENABLED = "family enabled"
    FAMILY_DISABLED = "family disabled"
    REFUSAL_ON = "refusal on"
    REFUSAL_OFF = "refusal off"
    FAILURE = "failure"
    RECOVERY = "recovery"
    KEY_MADE = "key made"
    KEY_PUBLISHED = "key published"
    KEY_WITHDRAWN = "key withdrawn"
    KEY_CLEARED = "key cleared by another"
    KEY_OVERWRITTEN = "key overwritten by another"
    KEY_CONTESTED = "key contested"
    KEY_UNCONTESTED = "key no longer contested"
    INTERFACE = "interface changed"
    INTERFACE_ADDRESS = "interface address changed"
    MTU = "MTU changed"
    PEER_ADDED = "peer added"
    PEER_REMOVED = "peer removed"
    PEER_KEY = "peer's key changed"
    PEER_TRAFFIC = "peer's traffic changed"
    PEER_ENDPOINT = "peer's endpoint changed"
    PEER_ROAMED = "peer roamed"
    FIRST_HANDSHAKE = "first handshake"
    HANDSHAKE_LOST = "handshake lost"
    HANDSHAKE_BACK = "handshake back"
    WARNING_RAISED = "warning raised"
    WARNING_CLEARED = "warning cleared"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened, ``at`` seconds since 1970. ``fields`` are JSON values, none of them named time or kind."""

    at: float
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def entry(at: float, kind: Kind, **fields: Any) -> Entry:
    """Fields that are None are left out."""
    return Entry(at, kind.value, {name: value for name, value in fields.items() if value is not None})


# What has changed ---------------------------------------------------------------------------------------------------


def changes(before: AgentStatus | None, after: AgentStatus) -> list[Entry]:
    """What must have happened between the two. Nothing, if they differ only in counters and times. Pure."""
    return list(_changes(before, after))


def _changes(before: AgentStatus | None, after: AgentStatus) -> Iterator[Entry]:
    at = after.at
    if before is None or before.source.is_synced != after.source.is_synced:
        source = after.source
        if source.is_synced:
            yield entry(at, Kind.SOURCE_BACK, source=source.name)
        elif before is not None:
            yield entry(at, Kind.SOURCE_LOST, source=source.name, why=source.failure)
    if after.is_strict != (before is not None and before.is_strict):
        yield entry(at, Kind.STRICT_ON if after.is_strict else Kind.STRICT_OFF)
    for family in after.families:
        last = before.of(family.family) if before else None
        yield from _family_changes(at, last or FamilyStatus(family.family, rest=""), family)
    raised = {(finding.reason, finding.subject): finding for finding in after.findings}
    known = {(finding.reason, finding.subject): finding for finding in before.findings} if before else {}
    for key in sorted(raised.keys() - known.keys()):
        yield entry(at, Kind.WARNING_RAISED, reason=key[0], subject=key[1], message=raised[key].message)
    for key in sorted(known.keys() - raised.keys()):
        yield entry(at, Kind.WARNING_CLEARED, reason=key[0], subject=key[1])


def _family_changes(at: float, before: FamilyStatus, after: FamilyStatus) -> Iterator[Entry]:
    family = str(after.family)
    if before.rest != after.rest:
        kind = Kind.FAMILY_ENABLED if after.is_enabled else Kind.FAMILY_DISABLED
        yield entry(at, kind, family=family, why=after.rest)
    if before.is_refusing != after.is_refusing:
        yield entry(at, Kind.REFUSAL_ON if after.is_refusing else Kind.REFUSAL_OFF, family=family)
    if before.has_data_plane != after.has_data_plane and (after.is_enabled or after.has_data_plane):
        kind = Kind.DATA_PLANE_FOUND if after.has_data_plane else Kind.DATA_PLANE_LOST
        yield entry(at, kind, family=family, interface=after.interface)
    if after.failure != before.failure:
        yield entry(at, Kind.FAILURE if after.failure else Kind.RECOVERY, family=family, why=after.failure)
    yield from _key_changes(at, before, after)
    for kind, old, new in (
        (Kind.INTERFACE, before.interface, after.interface),
        (Kind.INTERFACE_ADDRESS, before.interface_address, after.interface_address),
        (Kind.MTU, before.mtu, after.mtu),
    ):
        if old != new:
            yield Entry(at, kind.value, {"family": family, "before": old, "after": new})
    last = {peer.name: peer for peer in before.peers}
    now = {peer.name: peer for peer in after.peers}
    for name in sorted(last.keys() - now.keys()):
        yield entry(at, Kind.PEER_REMOVED, family=family, peer=name, key=last[name].public_key)
    is_switched = before.rest != after.rest or before.has_data_plane != after.has_data_plane
    for name, peer in now.items():
        if name in last:
            if peer != last[name]:
                yield from _peer_changes(at, family, last[name], peer, is_switched)
        else:
            yield from _peer_added(at, family, peer)


def _key_changes(at: float, before: FamilyStatus, after: FamilyStatus) -> Iterator[Entry]:
    family = str(after.family)
    if after.public_key is not None and after.public_key != before.public_key:
        yield entry(at, Kind.KEY_MADE, family=family, key=after.public_key, before=before.public_key)
    if after.announced != before.announced or after.is_published != before.is_published:
        if after.is_published:
            yield entry(at, Kind.KEY_PUBLISHED, family=family, key=after.announced)
        elif after.announced is not None and after.is_enabled:
            yield entry(at, Kind.KEY_OVERWRITTEN, family=family, key=after.announced, before=before.announced)
        elif after.announced is None and before.announced is not None:
            is_ours = after.is_withdrawing or not after.is_enabled
            kind = Kind.KEY_WITHDRAWN if is_ours else Kind.KEY_CLEARED
            yield entry(at, kind, family=family, key=before.announced)
    if after.contest != before.contest:
        kind = Kind.KEY_CONTESTED if after.contest else Kind.KEY_UNCONTESTED
        yield entry(at, kind, family=family, why=after.contest)


def _peer_added(at: float, family: str, peer: PeerStatus) -> Iterator[Entry]:
    yield entry(
        at,
        Kind.PEER_ADDED,
        family=family,
        peer=peer.name,
        key=peer.public_key,
        endpoint=peer.endpoint,
        traffic=peer.traffic.value,
        why=peer.why or None,
    )
    if peer.last_handshake is not None:
        yield entry(at, Kind.FIRST_HANDSHAKE, family=family, peer=peer.name, handshake=rfc3339(peer.last_handshake))


def _peer_changes(at: float, family: str, before: PeerStatus, after: PeerStatus, is_switched: bool) -> Iterator[Entry]:
    """``is_switched``: the whole family has changed, which says all there is to say of each peer's traffic."""
    peer = after.name
    if before.public_key != after.public_key:
        yield Entry(
            at, Kind.PEER_KEY.value, {"family": family, "peer": peer, "before": before.public_key, "after": after.public_key}
        )
    if before.traffic != after.traffic and not is_switched:
        traffic = {"before": before.traffic.value, "after": after.traffic.value}
        yield entry(at, Kind.PEER_TRAFFIC, family=family, peer=peer, why=after.why or None, **traffic)
    if after.traffic is not Traffic.ENCRYPTED:
        return
    if before.endpoint != after.endpoint and before.endpoint is not None:
        kind = Kind.PEER_ROAMED if after.has_roamed else Kind.PEER_ENDPOINT
        yield entry(at, kind, family=family, peer=peer, before=before.endpoint, after=after.endpoint)
    is_new = before.last_handshake is None or before.public_key != after.public_key
    if after.last_handshake is not None and is_new:
        yield entry(at, Kind.FIRST_HANDSHAKE, family=family, peer=peer, handshake=rfc3339(after.last_handshake))
    if after.is_silent and not before.is_silent:
        last = rfc3339(after.last_handshake) if after.last_handshake is not None else None
        yield entry(at, Kind.HANDSHAKE_LOST, family=family, peer=peer, handshake=last)
    elif before.is_silent and not after.is_silent and not is_new:
        yield entry(at, Kind.HANDSHAKE_BACK, family=family, peer=peer)


# The file -----------------------------------------------------------------------------------------------------------


class History:
    """The files in ``directory``. ``limit``: bytes of each. One process writes them."""

    def __init__(self, directory: Path, limit: int = LIMIT) -> None:
        self._path = directory / FILE
        self._old_path = directory / OLD_FILE
        self._limit = limit
        self._is_failing = False

    def write(self, entries: Iterable[Entry]) -> None:
        """Append the entries. Never raises OSError: the first time it fails the log says so, and again after it has worked."""
        text = b"".join(map(_line, entries))
        if not text:
            return
        try:
            self._append(text)
        except OSError as error:
            if not self._is_failing:
                log.warning("%s cannot be written, so what happens is not recorded: %s", self._path, error.strerror)
            self._is_failing = True
        else:
            self._is_failing = False

    def _append(self, text: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(text) > self._limit:
            os.replace(self._path, self._old_path)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # the last one was cut short
            while text:
                text = text[os.write(descriptor, text) :]
        finally:
            os.close(descriptor)


def read(directory: Path, since: float | None = None) -> Iterator[Entry]:
    """All entries there are, oldest first; only those from ``since`` on (seconds since 1970) if that is given.

    Lines that are no entries are skipped. Raises OSError if a file is there and cannot be read.
    """
    lines: list[bytes] = []
    for file in _open(directory):
        with file:
            lines += file.read().splitlines()
    for line in lines:
        found = _parse(line)
        if found is not None and (since is None or found.at >= since):
            yield found


def _open(directory: Path) -> list[Any]:
    """The old and the new file, those that are there. The new one first: if it becomes the old one meanwhile, that is seen."""
    while True:
        new, old = _open_one(directory / FILE), _open_one(directory / OLD_FILE)
        if new and old and os.path.sameopenfile(new.fileno(), old.fileno()):
            new.close()
            old.close()
            continue
        return [file for file in (old, new) if file is not None]


def _open_one(path: Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def rfc3339(at: float) -> str:
    """``2026-11-22T14:03:05.123Z``."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(one: Entry) -> bytes:
    return json.dumps({"time": rfc3339(one.at), "kind": one.kind, **one.fields}, ensure_ascii=False).encode() + b"\n"


def _parse(line: bytes) -> Entry | None:
    try:
        fields = json.loads(line)
        at = datetime.fromisoformat(fields.pop("time")).timestamp()
        return Entry(at, str(fields.pop("kind")), fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
