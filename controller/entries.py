"""An entry of the history, and which entries follow from what the agent sees. Pure.

An entry has a time, a ``kind`` (one of :class:`Kind`) and what belongs to it. :func:`changes` finds out what has happened by
comparing the agent's status after a pass with the one before.

Changes alone prove little: a record in which nothing changes looks like one that nobody keeps. So there is a :func:`sample`
every now and then (the agent is there, and this is the count of its peers by what becomes of their packets), and where a
reader cannot go by what was before, a :func:`standing`: after each start, at the head of each file, once a day, and when a
whole family switches.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from controller.status import STALE_SECONDS, AgentStatus, FamilyStatus, PeerStatus, Traffic

SAMPLE_SECONDS = 900.0
STANDING_SECONDS = 86400.0
"""How often there is a sample and a standing where nothing else calls for one."""


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
    LEAK_DETECTOR_ON = "leak detector on"
    LEAK_DETECTOR_OFF = "leak detector off"
    LEAK = "leak seen"
    SAMPLE = "sample"
    STANDING = "standing"
    LOST = "entries lost"


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
    yield from _leak_changes(at, before, after)
    raised = {(finding.reason, finding.subject): finding for finding in after.findings}
    known = {(finding.reason, finding.subject): finding for finding in before.findings} if before else {}
    for key in sorted(raised.keys() - known.keys()):
        yield entry(at, Kind.WARNING_RAISED, reason=key[0], subject=key[1], message=raised[key].message)
    for key in sorted(known.keys() - raised.keys()):
        yield entry(at, Kind.WARNING_CLEARED, reason=key[0], subject=key[1])


def _leak_changes(at: float, before: AgentStatus | None, after: AgentStatus) -> Iterator[Entry]:
    """Whether somebody looks, and what was seen since ``before``. Each agent says for itself that it looks, and counts anew."""
    old, new = before.leaks if before else None, after.leaks
    is_same_agent = before is not None and before.started_at == after.started_at
    was_on = old is not None and bool(old.interfaces)
    if new is not None and new.interfaces:
        if not is_same_agent or old is None or (old.interfaces, old.why) != (new.interfaces, new.why):
            yield entry(at, Kind.LEAK_DETECTOR_ON, interfaces=list(new.interfaces), why=new.why)
    elif new is None and was_on:
        yield entry(at, Kind.LEAK_DETECTOR_OFF, why="the agent was started without it")
    elif new is not None and new.why is not None and (was_on or old is None or old.why != new.why):
        yield entry(at, Kind.LEAK_DETECTOR_OFF, why=new.why)
    known = {(leak.family, leak.peer, leak.direction): leak.packets for leak in old.leaks} if old and is_same_agent else {}
    packets: defaultdict[tuple[str, str], int] = defaultdict(int)
    examples: dict[tuple[str, str], str] = {}
    for leak in new.leaks if new else ():
        if news := leak.packets - known.get((leak.family, leak.peer, leak.direction), 0):
            packets[str(leak.family), leak.peer] += news
            examples.setdefault((str(leak.family), leak.peer), leak.example)
    for (family, peer), count in packets.items():
        yield entry(at, Kind.LEAK, family=family, peer=peer, packets=count, example=examples[family, peer])


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
    if is_switched and last:
        yield standing(at, after)


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


# What is --------------------------------------------------------------------------------------------------------------


def sample(status: AgentStatus) -> Entry:
    """That the agent was there, and what it counted: of each family that takes part the peers by what becomes of their packets
    (``encrypted``, ``clear``, ``refused``), those that shook hands of late (``answering``) and those that do not answer
    (``silent``), and the bytes of the tunnel since the device was made. Its size does not depend on the mesh's. Pure."""
    return entry(
        status.at,
        Kind.SAMPLE,
        node=status.node,
        mesh=status.mesh,
        version=status.version,
        strict=status.is_strict,
        synced=status.source.is_synced,
        families={str(family.family): _counts(family, status.at) for family in status.families if family.is_enabled},
    )


def _counts(family: FamilyStatus, now: float) -> dict[str, int]:
    shaken = [peer.last_handshake for peer in family.peers if peer.last_handshake is not None]
    return {
        **{traffic.value: sum(peer.traffic is traffic for peer in family.peers) for traffic in Traffic},
        "answering": sum(now - at <= STALE_SECONDS for at in shaken),
        "silent": sum(peer.is_silent for peer in family.peers),
        "rx_bytes": sum(peer.rx_bytes for peer in family.peers),
        "tx_bytes": sum(peer.tx_bytes for peer in family.peers),
    }


def standing(at: float, family: FamilyStatus, with_keys: bool = False) -> Entry:
    """What becomes of packets to each peer, whatever was before: the names of the ``encrypted`` ones, and of those in ``clear``
    and ``refused`` by why it is so; ``felix`` where it has them itself, and nothing is known of it; ``keys`` by name if asked
    for, as they take more room than all the rest. Pure."""
    others: dict[Traffic, defaultdict[str, list[str]]] = {one: defaultdict(list) for one in (Traffic.CLEAR, Traffic.REFUSED)}
    for peer in family.peers:
        if peer.traffic in others:
            others[peer.traffic][peer.why].append(peer.name)
    return entry(
        at,
        Kind.STANDING,
        family=str(family.family),
        enabled=family.is_enabled,
        why=family.rest,
        felix=family.is_felix or None,
        failure=family.failure,
        key=family.public_key,
        mtu=family.mtu,
        interface=family.interface,
        encrypted=[peer.name for peer in family.peers if peer.traffic is Traffic.ENCRYPTED],
        **{traffic.value: names for traffic, names in others.items()},
        keys={peer.name: peer.public_key for peer in family.peers if peer.public_key} if with_keys else None,
    )


def whole(status: AgentStatus) -> list[Entry]:
    """All that a reader needs who knows nothing of what was before. Pure."""
    return [*(standing(status.at, family, with_keys=True) for family in status.families), sample(status)]


# As text ------------------------------------------------------------------------------------------------------------


def line(one: Entry) -> bytes:
    """One line of JSON, with its end."""
    return json.dumps({"time": rfc3339(one.at), "kind": one.kind, **one.fields}, ensure_ascii=False).encode() + b"\n"


def parse(line: bytes) -> Entry | None:
    """The entry of one line, None if it is none."""
    try:
        fields = json.loads(line)
        at = datetime.fromisoformat(fields.pop("time")).timestamp()
        return Entry(at, str(fields.pop("kind")), fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def rfc3339(at: float) -> str:
    """``2026-11-22T14:03:05.123Z``."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
