"""What the agent is doing and what has come of it, as one value. Pure.

Metrics, probes, the history and ``wgpy mesh`` are four views of an :class:`AgentStatus` and look at nothing else. The agent makes
one after each pass, from the cluster it has acted on and the device as it found it then (:func:`family_status`), and keeps
it in its state directory (:func:`to_json`): so ``wgpy mesh`` has an answer while the agent is down, and a new agent knows what
has changed since the last one.

Of each node one question is asked: *what becomes of a packet to its pods?* It is encrypted, goes in clear, or is refused
(:class:`Traffic`), and in the last two cases there is a reason. Encrypted is not the same as answered: a peer ``is_silent`` that
has been sent something and has not shaken hands since. Idle peers have no handshake either, and nothing is wrong with them.

Everything in here is public: keys are public keys in base64, addresses and ranges are text as operators write it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from controller.desired import Identity, prefix_owners, select_peers
from controller.findings import Finding
from controller.model import Cluster, Family
from wgpy.config import NO_KEY, DeviceSnapshot, PeerSnapshot, Prefix
from wgpy.wgconf import format_key

STALE_SECONDS = 180.0
"""REJECT_AFTER_TIME: a handshake older than this carries nothing any more."""

UNANSWERED_BYTES = 3 * 148
"""Before its first handshake a peer is sent initiations of 148 bytes, and nothing else. Three without an answer take 10 s."""

ENOUGH_ANSWER = 0.5
"""The share of the peers in use that have to answer if this node is to be called ready."""

HAS_LEFT = "this node has left the mesh (wgpy leave)"
NOT_ENABLED = "not enabled in FelixConfiguration"
YIELDS = "this node's kernel has WireGuard, and Felix uses it"

_FORMAT = 1


class Traffic(Enum):
    """What becomes of a packet to the pods of a node."""

    ENCRYPTED = "encrypted"
    CLEAR = "clear"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another node, or an external peer, whose ``name`` is its public key.

    ``why`` is said of traffic that is not encrypted. ``endpoint`` and the counters are the device's; the endpoint ``has_roamed``
    if it is not the node's own address. ``last_handshake`` is in seconds since 1970, None for never.
    """

    name: str
    traffic: Traffic
    why: str = ""
    public_key: str | None = None
    endpoint: str | None = None
    has_roamed: bool = False
    ranges: tuple[str, ...] = ()
    last_handshake: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    is_silent: bool = False
    is_external: bool = False


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """One family on this node.

    ``rest`` is why it takes no part in the mesh, None if it does; ``is_felix`` that Felix takes its place, so that nothing is
    said of peers: it encrypts by itself. ``waits_for`` is what is missing before it can; ``failure`` what went wrong in the
    last pass. ``announced`` is the key that the cluster shows for this node, ours or not; ``contest`` says who else keeps
    writing it. ``refused_*`` are packets that strict mode has turned away so far. ``ranges`` are this node's own.
    """

    family: Family
    rest: str | None = None
    is_felix: bool = False
    is_refusing: bool = False
    waits_for: str | None = None
    failure: str | None = None
    contest: str | None = None
    is_withdrawing: bool = False
    public_key: str | None = None
    announced: str | None = None
    interface: str | None = None
    interface_address: str | None = None
    mtu: int | None = None
    has_data_plane: bool = False
    refused_inbound: int = 0
    refused_outbound: int = 0
    ranges: tuple[str, ...] = ()
    peers: tuple[PeerStatus, ...] = ()

    @property
    def is_enabled(self) -> bool:
        return self.rest is None

    @property
    def is_published(self) -> bool:
        return self.public_key is not None and self.announced == self.public_key


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """Where the cluster's objects come from. ``heard_at`` (seconds since 1970) is when it last said anything; ``failure`` is why
    it is not in sync now; ``lists`` and ``errors`` count from the agent's start."""

    name: str
    is_synced: bool = False
    heard_at: float | None = None
    failure: str | None = None
    lists: int = 0
    errors: int = 0


class Direction(Enum):
    """Which way a packet went, as this node sees it."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class Leak:
    """Packets between pods of this node and of ``peer`` that were seen in clear and ought to have been encrypted: how many since
    the agent's start, and when the last one was counted (seconds since 1970). ``example`` describes the first, in one line."""

    family: Family
    peer: str
    direction: Direction
    packets: int
    at: float
    example: str = ""


@dataclass(frozen=True, slots=True)
class LeakStatus:
    """The leak detector (:mod:`controller.leaks`). ``interfaces`` are those it watches; ``why`` it watches none, or not all that
    it was to, None where nothing is wrong. ``unread`` packets came faster than it looks at them: they are in no count."""

    interfaces: tuple[str, ...] = ()
    why: str | None = None
    unread: int = 0
    leaks: tuple[Leak, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """The agent at one moment, ``at`` seconds since 1970. ``passed_at`` is when a pass last went well; passes and failures count
    from the agent's start. ``leaks`` is None where nobody has asked for the leak detector."""

    at: float
    node: str
    mesh: str
    version: str
    source: SourceStatus
    is_strict: bool = False
    started_at: float = 0.0
    passes: int = 0
    failures: int = 0
    passed_at: float | None = None
    pass_seconds: float | None = None
    families: tuple[FamilyStatus, ...] = ()
    findings: tuple[Finding, ...] = ()
    leaks: LeakStatus | None = None

    def of(self, family: Family) -> FamilyStatus | None:
        return next((status for status in self.families if status.family is family), None)


# Making one ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass has found of one family on this host, ``at`` seconds since 1970; the fields are those of :class:`FamilyStatus`.

    ``snapshot`` is the device behind ``interface``, None if nobody answers for it. ``is_refusing``: what cannot be encrypted is
    refused just now, and not sent in clear. ``promised``: what our table keeps from going in clear, wherever that was looked up,
    which a device that has all peers makes needless; None where no rule asks our table.
    """

    at: float
    public_key: bytes | None = None
    interface: str | None = None
    mtu: int | None = None
    snapshot: DeviceSnapshot | None = None
    rest: str | None = None
    is_refusing: bool = False
    waits_for: str | None = None
    failure: str | None = None
    contest: str | None = None
    is_withdrawing: bool = False
    refused_inbound: int = 0
    refused_outbound: int = 0
    promised: frozenset[Prefix] | None = None
    is_felix: bool = False


def family_status(
    cluster: Cluster,
    family: Family,
    node: str,
    seen: Seen,
    before: FamilyStatus | None = None,
    owners: Mapping[Prefix, str] | None = None,
) -> FamilyStatus:
    """The status of one family of ``node``. ``before`` is the last one: only a comparison shows who has fallen silent. ``owners``
    spares what is costly in a large cluster, if the caller has it already."""
    ranges = _ranges(prefix_owners(cluster, family, node) if owners is None else owners)
    own = cluster.nodes[node].of(family) if node in cluster.nodes else None
    announced = own.public_key if own else None
    address = own.interface_address if own else None
    return FamilyStatus(
        family=family,
        rest=seen.rest,
        is_felix=seen.is_felix,
        is_refusing=seen.is_refusing,
        waits_for=seen.waits_for,
        failure=seen.failure,
        contest=seen.contest,
        is_withdrawing=seen.is_withdrawing,
        public_key=format_key(seen.public_key) if seen.public_key else None,
        announced=format_key(announced) if announced else None,
        interface=seen.interface,
        interface_address=str(address) if address else None,
        mtu=seen.mtu,
        has_data_plane=seen.snapshot is not None,
        refused_inbound=seen.refused_inbound,
        refused_outbound=seen.refused_outbound,
        ranges=_texts(ranges.get(node, ())),
        peers=() if seen.is_felix else tuple(_peers(cluster, family, node, seen, before, ranges)),
    )


def refreshed(status: FamilyStatus, snapshot: DeviceSnapshot | None, now: float) -> FamilyStatus:
    """The same, with the counters and handshakes that the device has by now; without a device, without news."""
    if snapshot is None:
        return replace(status, has_data_plane=False)
    found = {format_key(peer.config.public_key): peer for peer in snapshot.peers}
    return replace(status, has_data_plane=True, peers=tuple(_refreshed(peer, found, now) for peer in status.peers))


def _refreshed(peer: PeerStatus, found: Mapping[str, PeerSnapshot], now: float) -> PeerStatus:
    if peer.traffic is not Traffic.ENCRYPTED or (device := found.get(peer.public_key or "")) is None:
        return peer
    handshake = device.last_handshake / 1e9 if device.last_handshake else None
    return replace(
        peer,
        endpoint=str(device.config.endpoint) if device.config.endpoint else None,
        last_handshake=handshake,
        rx_bytes=device.rx_bytes,
        tx_bytes=device.tx_bytes,
        is_silent=_is_silent(handshake, device.tx_bytes, peer, now),
    )


def _peers(
    cluster: Cluster,
    family: Family,
    node: str,
    seen: Seen,
    before: FamilyStatus | None,
    ranges: Mapping[str, Sequence[Prefix]],
) -> Iterable[PeerStatus]:
    previous = {peer.name: peer for peer in before.peers} if before else {}
    device = {peer.config.public_key: peer for peer in seen.snapshot.peers} if seen.snapshot else {}
    refusals = select_peers(cluster, family, Identity(node, NO_KEY, seen.public_key or NO_KEY)).refusals
    unencrypted = Traffic.REFUSED if seen.is_refusing else Traffic.CLEAR
    for name in sorted(cluster.nodes.keys() - {node}):
        network = cluster.nodes[name].of(family)
        key, last = network.public_key, previous.get(name)
        traffic, found = unencrypted, None
        if seen.rest is not None:
            why = f"this node: {seen.rest}"
        elif name in refusals:
            why = refusals[name]
        elif not cluster.felix.syncs_routes:
            why = "no routes: routeSyncDisabled is on"
        elif key is None or (found := device.get(key)) is None:
            why = seen.waits_for or seen.failure or "not on the device yet"
            if _is_promised(ranges.get(name, ()), seen.promised, last):
                traffic = Traffic.REFUSED
        else:
            place = (str(network.address), network.port or cluster.felix.of(family).port)
            yield _encrypted(name, found, _texts(ranges.get(name, ())), last, seen.at, place)
            continue
        yield PeerStatus(name, traffic, why, format_key(key) if key else None, ranges=_texts(ranges.get(name, ())))
    if seen.rest is None:
        nodes_keys = {one.of(family).public_key for one in cluster.nodes.values()}
        for key in sorted(device.keys() - nodes_keys):
            name, found = format_key(key), device[key]
            yield _encrypted(name, found, _texts(found.config.allowed_ips), previous.get(name), seen.at, None)


def _is_promised(ranges: Sequence[Prefix], promised: frozenset[Prefix] | None, last: PeerStatus | None) -> bool:
    """Whether packets to a node that is not on the device are dropped. What was promised once is, until there is a device again;
    but not what was promised before the host booted, or before somebody took our rule away: that is asked of the kernel."""
    if promised is None:
        return False
    return promised.issuperset(ranges) if ranges else last is not None and last.traffic is not Traffic.CLEAR


def _encrypted(
    name: str,
    found: PeerSnapshot,
    ranges: tuple[str, ...],
    last: PeerStatus | None,
    now: float,
    place: tuple[str, int] | None,
) -> PeerStatus:
    """A peer as the device has it. ``place`` is the node's own address and port, None for an external peer."""
    endpoint = found.config.endpoint
    handshake = found.last_handshake / 1e9 if found.last_handshake else None
    return PeerStatus(
        name,
        Traffic.ENCRYPTED,
        public_key=format_key(found.config.public_key),
        endpoint=str(endpoint) if endpoint else None,
        has_roamed=place is not None and endpoint is not None and (endpoint.host, endpoint.port) != place,
        ranges=ranges,
        last_handshake=handshake,
        rx_bytes=found.rx_bytes,
        tx_bytes=found.tx_bytes,
        is_silent=_is_silent(handshake, found.tx_bytes, last, now),
        is_external=place is None,
    )


def _is_silent(handshake: float | None, tx_bytes: int, last: PeerStatus | None, now: float) -> bool:
    """Whether it has been sent something for long without a handshake since."""
    if handshake is None:
        return tx_bytes >= UNANSWERED_BYTES
    if now - handshake <= STALE_SECONDS or last is None or last.last_handshake != handshake:
        return False
    return last.is_silent or tx_bytes > last.tx_bytes


def _ranges(owners: Mapping[Prefix, str]) -> Mapping[str, list[Prefix]]:
    ranges: defaultdict[str, list[Prefix]] = defaultdict(list)
    for prefix, owner in owners.items():
        ranges[owner].append(prefix)
    return ranges


def _texts(prefixes: Sequence[Prefix]) -> tuple[str, ...]:
    return tuple(map(str, sorted(prefixes, key=lambda prefix: (prefix.version, int(prefix.network_address), prefix.prefixlen))))


# Judging one --------------------------------------------------------------------------------------------------------


def unstarted(status: AgentStatus | None) -> str | None:
    """What the agent still lacks to have started, None once a pass has gone well."""
    if status is None or status.passes == 0:
        return "the first pass is not over"
    if status.passed_at is None:
        return next(
            (f"{family.family}: {family.failure}" for family in status.families if family.failure), "no pass went well yet"
        )
    return None


def unready(status: AgentStatus | None, enough: float = ENOUGH_ANSWER) -> str | None:
    """What keeps this node from its place in the mesh, None if nothing does. One line.

    Each family that is enabled has a data plane, its key is published, and of the peers *in use* (they have shaken hands lately,
    or have been sent something and did not answer) at least the share ``enough`` answers. Idle peers say nothing, and neither
    does an API server that is away: packets flow on without it.
    """
    if (lack := unstarted(status)) is not None:
        return lack
    assert status is not None
    for family in status.families:
        if family.is_enabled and (lack := _lack(family, enough, status.at)) is not None:
            return f"{family.family}: {lack}"
    return None


def _lack(family: FamilyStatus, enough: float, now: float) -> str | None:
    if family.failure is not None:
        return family.failure
    if family.waits_for is not None or not family.has_data_plane:
        return f"waiting for {family.waits_for or 'a data plane'}"
    if not family.is_published:
        return family.contest or "the key is not published"
    silent = sum(peer.is_silent for peer in family.peers)
    answering = sum(peer.last_handshake is not None and now - peer.last_handshake <= STALE_SECONDS for peer in family.peers)
    if answering < enough * (silent + answering):
        return f"{silent} of {silent + answering} peers in use do not answer"
    return None


# Keeping one --------------------------------------------------------------------------------------------------------


def as_document(status: AgentStatus) -> dict[str, Any]:
    """Plain data, for JSON and YAML."""
    return {"format": _FORMAT, **_plain(status)}


def to_json(status: AgentStatus) -> str:
    return json.dumps(as_document(status), separators=(",", ":"))


def from_json(text: str) -> AgentStatus:
    """Raises ValueError for anything but what :func:`to_json` has written, in this version or one that has the same fields."""
    document = json.loads(text)
    try:
        if document.pop("format") != _FORMAT:
            raise ValueError("a status of another version of wgpy")
        families = [
            {
                **family,
                "family": Family(family["family"]),
                "ranges": tuple(family.get("ranges", ())),
                "peers": tuple(
                    PeerStatus(**{**peer, "traffic": Traffic(peer["traffic"]), "ranges": tuple(peer["ranges"])})
                    for peer in family["peers"]
                ),
            }
            for family in document["families"]
        ]
        parts = {
            "source": SourceStatus(**document["source"]),
            "families": tuple(FamilyStatus(**family) for family in families),
            "findings": tuple(Finding(**finding) for finding in document["findings"]),
            "leaks": _leaks(document.get("leaks")),
        }
        return AgentStatus(**{**document, **parts})
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"not a status: {error}") from None


def _leaks(document: Any) -> LeakStatus | None:
    if document is None:
        return None
    leaks = [{**one, "family": Family(one["family"]), "direction": Direction(one["direction"])} for one in document["leaks"]]
    found = tuple(Leak(**one) for one in leaks)
    return LeakStatus(**{**document, "interfaces": tuple(document["interfaces"]), "leaks": found})


def _plain(value: Any) -> Any:
    """Dataclasses become mappings, enumerations their values. (``asdict`` copies all it finds, and takes five times as long.)"""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return {name: _plain(getattr(value, name)) for name in _names(type(value))}


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    if kind not in _NAMES:
        _NAMES[kind] = tuple(one.name for one in fields(kind))
    return _NAMES[kind]
