"""The statement that is signed: what a framework's report says, each sentence tied to its requirement and its evidence. Pure.

:func:`statement` gives plain data (dicts, lists, text, whole numbers), so that its canonical JSON (RFC 8785) is the same
everywhere. Times are text (RFC 3339), durations milliseconds. A sentence has one of four outcomes (:class:`Outcome`); a
requirement has the worst of those of its sentences. A sentence that something was so is only made about times with a record, and
how much that is is a sentence of its own.

Evidence is numbered E1, E2, … in the order in which it is cited: the node, the file, the line, its place in the file in bytes,
and the SHA-256 of the line, with which a line is found again after the file has been renamed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from controller.compliance.requirements import Framework, Topic
from controller.compliance.timeline import (
    CLEAR,
    ENCRYPTED,
    OFF,
    ON,
    RECORDED,
    REFUSED,
    UNKNOWN,
    KeySpan,
    Record,
    Span,
    Timeline,
    timeline,
)
from controller.entries import Kind, rfc3339

FORMAT = "wgpy compliance report 1"
MOST_NAMES = 10

ALGORITHMS = {
    "protocol": "WireGuard (Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s)",
    "key agreement": "X25519 (RFC 7748), about 128 bits of strength",
    "encryption and integrity": "ChaCha20-Poly1305 (RFC 8439), 256-bit keys",
    "hash": "BLAKE2s (RFC 7693)",
    "session keys": "a new one at least every 120 s while there is traffic; none is used for longer than 180 s",
}
FIPS = (
    "WireGuard's algorithms (Curve25519, ChaCha20-Poly1305, BLAKE2s) are not FIPS-approved, and wgpy is not a module validated "
    "to FIPS 140-2 or 140-3. Where a FIPS-validated module is demanded, this encryption does not count as one."
)
LIMITS = (
    "This report is evidence for an assessor. It is neither an assessment nor a certificate of compliance.",
    "It covers packets between pods on different nodes, as each named node sends them; what a peer sends back is in the "
    "peer's own record. Packets within one node, and to addresses that belong to no node's pods, are not covered.",
    "Encrypted means that the node's data plane had the peer's key and that packets to its pods were routed into the tunnel: "
    "they were encrypted, or dropped where the peer did not answer. It rests on the agent's view of the node, looked at at least "
    "every 90 seconds.",
    "The record is a file on the node. The signature shows who made this report and that nobody changed it since. It does not "
    "show that the record was true: whoever is root on a node can write what they like.",
)

_CONFIGURATION = (
    Kind.AGENT_STARTED,
    Kind.STRICT_ON,
    Kind.STRICT_OFF,
    Kind.REFUSAL_ON,
    Kind.REFUSAL_OFF,
    Kind.FAMILY_ENABLED,
    Kind.FAMILY_DISABLED,
    Kind.DATA_PLANE_FOUND,
    Kind.DATA_PLANE_LOST,
    Kind.INTERFACE,
    Kind.INTERFACE_ADDRESS,
    Kind.MTU,
    Kind.LEAK_DETECTOR_ON,
    Kind.LEAK_DETECTOR_OFF,
    Kind.LEFT,
)
_INCIDENTS = (Kind.KEY_OVERWRITTEN, Kind.KEY_CLEARED, Kind.KEY_CONTESTED)


class Outcome(Enum):
    """What a sentence means for the requirements it bears on, the best first."""

    INFORMATION = "for information"
    SUPPORTS = "supports"
    UNKNOWN = "not known"
    AGAINST = "does not support"


@dataclass(frozen=True, slots=True)
class _Sentence:
    topic: Topic
    outcome: Outcome
    text: str
    evidence: tuple[tuple[str, int], ...]
    """Node and line."""


def statement(
    framework: Framework, records: Sequence[Record], start: int, end: int, made_at: float, made_by: str, mesh: str = ""
) -> dict[str, Any]:
    """The report on the time from ``start`` to ``end`` (milliseconds since 1970), from the records of one node or several.

    Raises ValueError if there is no record, or two of one node."""
    nodes = [record.node for record in records]
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError("a report needs the history of at least one node, and of each only one")
    lines = [timeline(record, start, end) for record in records]
    topics = frozenset[Topic]().union(*(requirement.topics for requirement in framework.requirements))
    sentences = [one for one in (*_of_cryptography(), *(one for line in lines for one in _of_node(line))) if one.topic in topics]
    cited = _Citations({record.node: record for record in records})
    statements = [
        {
            "id": f"S{number}",
            "topic": one.topic.value,
            "outcome": one.outcome.value,
            "text": one.text,
            "requirements": [requirement.id for requirement in framework.requirements if one.topic in requirement.topics],
            "evidence": cited(one.evidence),
        }
        for number, one in enumerate(sentences, 1)
    ]
    return {
        "format": FORMAT,
        "made_at": rfc3339(made_at),
        "made_by": made_by,
        "framework": {"id": framework.id, "name": framework.name, "remarks": list(framework.remarks)},
        "period": {"from": _time(start), "to": _time(end), "ms": end - start},
        "mesh": mesh,
        "nodes": nodes,
        "requirements": [
            {
                "id": requirement.id,
                "text": requirement.text,
                "outcome": _worst(one.outcome for one in sentences if one.topic in requirement.topics).value,
                "statements": [one["id"] for one in statements if requirement.id in one["requirements"]],
            }
            for requirement in framework.requirements
        ],
        "statements": statements,
        "algorithms": [{"name": name, "value": value} for name, value in ALGORITHMS.items()],
        "fips": FIPS,
        "gaps": [gap for line in lines for gap in _gaps(line, cited)],
        "pairs": [pair for line in lines for pair in _pairs(line, cited)],
        "keys": [key for line in lines for key in _keys(line, cited)],
        "strict_mode": [
            {"node": line.node, **span} for line in lines for span in _written(line.strict, line.node, cited, "strict mode")
        ],
        "configuration": [change for line in lines for change in _configuration(line, cited)],
        "limits": [*LIMITS, *_unheard(nodes, lines)],
        "evidence": {"files": cited.files(), "lines": cited.lines},
    }


def _worst(outcomes: Iterable[Outcome]) -> Outcome:
    return max(outcomes, key=list(Outcome).index, default=Outcome.UNKNOWN)


# Evidence -----------------------------------------------------------------------------------------------------------


@dataclass
class _Citations:
    """Gives each line of evidence its number when it is first cited."""

    records: Mapping[str, Record]
    lines: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[tuple[str, int], str] = field(default_factory=dict)

    def __call__(self, evidence: Iterable[tuple[str, int]]) -> list[str]:
        return [self._number(*one) for one in evidence]

    def of(self, node: str, items: Iterable[int]) -> list[str]:
        return self((node, item) for item in items)

    def entry(self, node: str, index: int) -> Any:
        return self.records[node].items[index].entry

    def files(self) -> list[dict[str, Any]]:
        return [
            {"node": node, "file": file.name, "bytes": file.size, "sha256": file.digest}
            for node, record in self.records.items()
            for file in record.files
        ]

    def _number(self, node: str, index: int) -> str:
        known = self._numbers.get((node, index))
        if known is not None:
            return known
        number = self._numbers[node, index] = f"E{len(self._numbers) + 1}"
        item = self.records[node].items[index]
        self.lines.append(
            {
                "id": number,
                "node": node,
                "file": item.file,
                "line": item.number,
                "offset": item.offset,
                "length": item.length,
                "sha256": item.digest,
                "time": rfc3339(item.entry.at) if item.entry else None,
                "kind": item.entry.kind if item.entry else "cannot be read",
            }
        )
        return number


# The tables ---------------------------------------------------------------------------------------------------------


def _written(spans: Iterable[Span], node: str, cited: _Citations, name: str = "state") -> list[dict[str, Any]]:
    return [
        {
            "from": _time(span.start),
            "to": _time(span.end),
            "ms": span.length,
            name: span.value,
            "why": span.why,
            "evidence": cited.of(node, span.items),
        }
        for span in spans
    ]


def _gaps(line: Timeline, cited: _Citations) -> list[dict[str, Any]]:
    gaps = [span for span in line.recorded if span.value == UNKNOWN]
    return [{"node": line.node, **span} for span in _written(gaps, line.node, cited)]


def _pairs(line: Timeline, cited: _Citations) -> list[dict[str, Any]]:
    return [
        {
            "node": line.node,
            "peer": peer,
            "family": family,
            **{f"{state}_ms": _total(spans, state) for state in (ENCRYPTED, CLEAR, REFUSED, UNKNOWN)},
            "spans": _written(spans, line.node, cited),
        }
        for (family, peer), spans in line.pairs.items()
    ]


def _keys(line: Timeline, cited: _Citations) -> list[dict[str, Any]]:
    return [
        {
            "node": line.node,
            "family": family,
            "of": peer or line.node,
            "key": span.key,
            "from": _time(span.start),
            "begin_recorded": span.is_exact,
            "to": _time(span.end) if span.end is not None else None,
            "age_ms": _age(span, line.end),
            "evidence": cited.of(line.node, span.items),
        }
        for (family, peer), spans in line.keys.items()
        for span in spans
    ]


def _configuration(line: Timeline, cited: _Citations) -> list[dict[str, Any]]:
    changes = sorted(index for kind in _CONFIGURATION for index in line.happened.get(kind.value, ()))
    return [
        {
            "node": line.node,
            "time": rfc3339(cited.entry(line.node, index).at),
            "change": cited.entry(line.node, index).kind,
            "values": {name: _plain(value) for name, value in cited.entry(line.node, index).fields.items()},
            "evidence": cited.of(line.node, [index]),
        }
        for index in changes
    ]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def _unheard(nodes: Sequence[str], lines: Sequence[Timeline]) -> list[str]:
    others = sorted({peer for line in lines for _, peer in line.pairs} - set(nodes))
    if not others:
        return []
    return [f"No record of these peers was given, so what they themselves sent is not covered: {_names(others)}."]


# The sentences ------------------------------------------------------------------------------------------------------


def _of_cryptography() -> list[_Sentence]:
    text = "; ".join(f"{name}: {value}" for name, value in ALGORITHMS.items())
    return [
        _Sentence(
            Topic.ALGORITHMS,
            Outcome.SUPPORTS,
            f"What is encrypted is encrypted with WireGuard, which has one set of algorithms and negotiates none. {text}.",
            (),
        ),
        _Sentence(Topic.FIPS, Outcome.INFORMATION, FIPS, ()),
    ]


def _of_node(line: Timeline) -> list[_Sentence]:
    makers: tuple[Callable[[Timeline], Iterable[_Sentence]], ...] = (
        _of_record,
        _of_encryption,
        _of_refusals,
        _of_strict_mode,
        _of_keys,
        _of_incidents,
        _of_sessions,
        _of_leaks,
        _of_configuration,
    )
    return [one for maker in makers for one in maker(line)]


def _say(line: Timeline, topic: Topic, outcome: Outcome, text: str, items: Iterable[int] = ()) -> _Sentence:
    return _Sentence(topic, outcome, text, tuple((line.node, item) for item in sorted(set(items))))


def _of_record(line: Timeline) -> Iterable[_Sentence]:
    gaps = [span for span in line.recorded if span.value == UNKNOWN]
    length, missing = line.end - line.start, _length(gaps)
    samples = line.happened.get(Kind.SAMPLE.value, ())
    if not gaps:
        text = (
            f"The agent on {line.node} kept a record of the whole period ({duration(length)}, {_count(len(samples), 'sample')})."
        )
        yield _say(line, Topic.RECORD, Outcome.SUPPORTS, text, [*_items(line.recorded), *samples[:1], *samples[-1:]])
        return
    text = (
        f"The agent on {line.node} kept a record of {share(length - missing, length)} of the period. Of {duration(missing)}, in "
        f"{_count(len(gaps), 'gap')}, nothing is known, and no packet of that time is called encrypted."
    )
    yield _say(line, Topic.RECORD, Outcome.UNKNOWN, text, _items(gaps))


def _of_encryption(line: Timeline) -> Iterable[_Sentence]:
    for family in sorted({family for family, _ in line.pairs}):
        pairs = {peer: spans for (of, peer), spans in line.pairs.items() if of == family}
        whole = [
            peer
            for peer, spans in pairs.items()
            if {span.value for span in spans} - {UNKNOWN} == {ENCRYPTED}
            and not _unknown_besides(line, spans)
            and (family, peer) not in line.leaked
        ]
        yield _say(
            line,
            Topic.ENCRYPTED,
            Outcome.SUPPORTS if len(whole) == len(pairs) else Outcome.INFORMATION,
            f"{family}: packets from {line.node} to the pods of {len(whole)} of {_count(len(pairs), 'peer')} were encrypted "
            f"whenever there is a record{': ' + _names(whole) if whole else ''}.{_volume(line, family)}",
            [*_items(span for peer in whole for span in pairs[peer]), *_volume_items(line, family)],
        )
        for peer, spans in pairs.items():
            yield from _of_pair(line, family, peer, spans)
        if not any(span.value == CLEAR for spans in pairs.values() for span in spans):
            text = f"{family}: of no time is it recorded that packets from {line.node} to the pods of a peer went in clear."
            yield _say(line, Topic.CLEAR, Outcome.SUPPORTS, text, _items(span for spans in pairs.values() for span in spans))
    if not line.pairs:
        text = f"No peer of {line.node} stands in the record of this period: nothing can be said of any traffic."
        yield _say(line, Topic.ENCRYPTED, Outcome.UNKNOWN, text)


def _of_pair(line: Timeline, family: str, peer: str, spans: Sequence[Span]) -> Iterable[_Sentence]:
    """What went in clear, and what is not known of a pair besides the gaps of the whole record."""
    clear = [span for span in spans if span.value == CLEAR]
    if clear:
        text = (
            f"{family}: packets from {line.node} to the pods of {peer} went in clear for {duration(_total(spans, CLEAR))} "
            f"({share(_total(spans, CLEAR), _length(spans) - _total(spans, UNKNOWN))} of what is recorded): {_reasons(clear)}."
        )
        yield _say(line, Topic.CLEAR, Outcome.AGAINST, text, _items(clear))
    if unknown := _unknown_besides(line, spans):
        text = (
            f"{family}: what became of packets from {line.node} to the pods of {peer} is not known for "
            f"{duration(_length(unknown))} though the agent was there: {_reasons(unknown)}."
        )
        yield _say(line, Topic.CLEAR, Outcome.UNKNOWN, text, _items(unknown))


def _unknown_besides(line: Timeline, spans: Iterable[Span]) -> list[Span]:
    """When it is not known what became of a pair though there is a record. Times decide, not reasons: a gap of the record and the
    time before a peer was first heard of may have the same."""
    unknown = [span for span in spans if span.value == UNKNOWN]
    for gap in (span for span in line.recorded if span.value == UNKNOWN):
        pieces = (
            piece
            for span in unknown
            for piece in (replace(span, end=min(span.end, gap.start)), replace(span, start=max(span.start, gap.end)))
        )
        unknown = [piece for piece in pieces if piece.length > 0]
    return unknown


def _of_refusals(line: Timeline) -> Iterable[_Sentence]:
    for (family, peer), spans in line.pairs.items():
        refused = [span for span in spans if span.value == REFUSED]
        if refused:
            text = (
                f"{family}: packets from {line.node} to the pods of {peer} were refused, that is dropped and not sent in clear, "
                f"for {duration(_length(refused))}: {_reasons(refused)}."
            )
            yield _say(line, Topic.REFUSED, Outcome.INFORMATION, text, _items(refused))


def _of_strict_mode(line: Timeline) -> Iterable[_Sentence]:
    on, off = _total(line.strict, ON), _total(line.strict, OFF)
    meaning = "Strict mode refuses what ought to be encrypted and cannot be; without it such packets go in clear."
    items = _items(span for span in line.strict if span.value != UNKNOWN)
    if not on and not off:
        text = f"Whether strict mode was on at {line.node} is not recorded. {meaning}"
        yield _say(line, Topic.STRICT, Outcome.UNKNOWN, text)
    elif not off:
        text = f"Strict mode was on at {line.node} whenever there is a record. {meaning}"
        yield _say(line, Topic.STRICT, Outcome.SUPPORTS, text, items)
    elif not on:
        yield _say(line, Topic.STRICT, Outcome.AGAINST, f"Strict mode was off at {line.node}. {meaning}", items)
    else:
        text = f"Strict mode was on at {line.node} for {duration(on)}, and off for {duration(off)}. {meaning}"
        yield _say(line, Topic.STRICT, Outcome.AGAINST, text, items)


def _of_keys(line: Timeline) -> Iterable[_Sentence]:
    families = sorted({family for family, _ in line.keys})
    for family in families:
        own = line.keys.get((family, ""), ())
        if own:
            last = own[-1]
            since = f"in use since {_time(last.start)}" if last.is_exact else f"in use since {_time(last.start)} or before"
            changes = sum(line.start < span.start <= line.end and span.is_exact for span in own[1:])
            text = (
                f"{family}: {line.node} used {_count(len(own), 'key')} in the period and changed it {_times(changes)}. The last "
                f"one, {last.key}, is {since}: {'' if last.is_exact else 'at least '}{duration(_age(last, line.end))} old at its "
                "end."
            )
            yield _say(line, Topic.KEYS, Outcome.INFORMATION, text, [item for span in own for item in span.items])
        peers = {peer: spans for (of, peer), spans in line.keys.items() if of == family and peer}
        if peers:
            changed = sorted(peer for peer, spans in peers.items() if len({span.key for span in spans}) > 1)
            tail = f"; it changed for {_names(changed)}" if changed else "; none changed"
            text = f"{family}: {line.node} accepted the public keys of {_count(len(peers), 'peer')}, listed below{tail}."
            items = [item for spans in peers.values() for span in spans for item in span.items]
            yield _say(line, Topic.KEYS, Outcome.INFORMATION, text, items)
    if not families:
        yield _say(line, Topic.KEYS, Outcome.UNKNOWN, f"No key of {line.node} stands in the record of this period.")


def _of_incidents(line: Timeline) -> Iterable[_Sentence]:
    found = {kind: line.happened.get(kind.value, ()) for kind in _INCIDENTS}
    if not any(found.values()):
        text = f"The record shows nobody else who wrote or cleared the public key of {line.node}."
        yield _say(line, Topic.KEY_INCIDENTS, Outcome.SUPPORTS, text, _items(line.recorded))
        return
    what = ", ".join(f"{kind.value}: {_times(len(items))}" for kind, items in found.items() if items)
    text = f"The public key that the cluster shows for {line.node} was meddled with ({what})."
    yield _say(line, Topic.KEY_INCIDENTS, Outcome.AGAINST, text, [item for items in found.values() for item in items])


def _of_sessions(line: Timeline) -> Iterable[_Sentence]:
    first, lost, back = (
        line.happened.get(kind.value, ()) for kind in (Kind.FIRST_HANDSHAKE, Kind.HANDSHAKE_LOST, Kind.HANDSHAKE_BACK)
    )
    text = (
        f"Peers of {line.node} completed a first handshake {_times(len(first))}, fell silent {_times(len(lost))} and answered "
        f"again {_times(len(back))}. Packets to a silent peer wait or are dropped; they do not go in clear."
    )
    yield _say(line, Topic.SESSIONS, Outcome.INFORMATION, text, (*first, *lost, *back))


def _of_leaks(line: Timeline) -> Iterable[_Sentence]:
    seen, watched = line.happened.get(Kind.LEAK.value, ()), _total(line.detector, ON)
    recorded = _total(line.recorded, RECORDED)
    if seen:
        text = (
            f"The leak detector on {line.node} reported packets of encrypted pairs in clear on the wire {_times(len(seen))}; "
            f"it watched for {duration(watched)}."
        )
        yield _say(line, Topic.LEAKS, Outcome.AGAINST, text, seen)
    elif watched == 0:
        text = f"The leak detector did not run on {line.node}: that no leak was seen there means nothing."
        yield _say(line, Topic.LEAKS, Outcome.UNKNOWN, text)
    else:
        spans = [span for span in line.detector if span.value == ON]
        partial = [span for span in spans if span.why]
        outcome = Outcome.SUPPORTS if watched == recorded and not partial else Outcome.UNKNOWN
        tail = f", but not all of it for {duration(_length(partial))}: {_reasons(partial)}" if partial else ""
        spoken = share(watched, recorded)
        text = f"The leak detector watched the wire of {line.node} for {spoken} of the recorded time and saw no leak{tail}."
        yield _say(line, Topic.LEAKS, outcome, text, _items(spans))


def _of_configuration(line: Timeline) -> Iterable[_Sentence]:
    items = [item for kind in _CONFIGURATION for item in line.happened.get(kind.value, ())]
    for family, spans in line.families.items():
        on, off = _total(spans, ON), _total(spans, OFF)
        reasons = _reasons(span for span in spans if span.value == OFF)
        tail = f", and not for {duration(off)}: {reasons}" if off else ""
        text = f"{family}: {line.node} took part in the encrypted mesh for {duration(on)}{tail}."
        yield _say(line, Topic.CONFIGURATION, Outcome.INFORMATION, text, _items(span for span in spans if span.value != UNKNOWN))
    text = f"The configuration of {line.node} changed {_times(len(items))} in the period; each change is listed below."
    yield _say(line, Topic.CONFIGURATION, Outcome.INFORMATION, text, items)


# Words --------------------------------------------------------------------------------------------------------------


def duration(milliseconds: int) -> str:
    """``0 s``, ``0.25 s``, ``59 s``, ``2 min 5 s``, ``3 h 20 min``, ``29 d 23 h``: the two largest units, cut and not rounded."""
    if milliseconds < 1000:
        return f"{milliseconds / 1000:g} s"
    rest, parts = milliseconds // 1000, []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, length)
        parts.append((count, unit))
    while parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


def share(part: int, whole: int) -> str:
    """``99.9 %``, cut and not rounded: only all is 100 %."""
    if whole <= 0:
        return "0 %"
    return "100 %" if part >= whole else f"{1000 * part // whole / 10:.1f} %"


def _volume(line: Timeline, family: str) -> str:
    volume = line.volumes.get(family)
    if volume is None or not volume.items:
        return ""
    return f" At least {volume.tx_bytes:,} bytes left through the tunnel and {volume.rx_bytes:,} came in."


def _volume_items(line: Timeline, family: str) -> tuple[int, ...]:
    return line.volumes[family].items if family in line.volumes else ()


def _reasons(spans: Iterable[Span]) -> str:
    """Each reason once, with how long it held, the longest first."""
    lengths: defaultdict[str, int] = defaultdict(int)
    for span in spans:
        lengths[span.why or "no reason is recorded"] += span.length
    ordered = sorted(lengths.items(), key=lambda one: (-one[1], one[0]))
    return "; ".join(f"{why} ({duration(length)})" for why, length in ordered)


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return ", ".join(ordered[:MOST_NAMES]) + more


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")


def _items(spans: Iterable[Span]) -> list[int]:
    return [item for span in spans for item in span.items]


def _total(spans: Iterable[Span], value: str) -> int:
    return sum(span.length for span in spans if span.value == value)


def _length(spans: Iterable[Span]) -> int:
    return sum(span.length for span in spans)


def _age(span: KeySpan, end: int) -> int:
    return min(end, span.end if span.end is not None else end) - span.start


def _time(milliseconds: int) -> str:
    return rfc3339(milliseconds / 1000)
