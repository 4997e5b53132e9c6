"""What the history of one node proves of a period: what became of packets to each peer, and when nobody knows. Pure.

A history says what changed. To know what was so at a moment one must know what was so before, and that the agent was there to
notice. Therefore two things are worked out apart and laid over each other: for each pair (this node, a peer, a family) the
*state* that the entries give, and for the node as a whole when there *is a record*. Where there is none the state is ``unknown``,
whatever it was before: an agent that does not run sees nothing. The record ends

* where the agent stopped, or at its last sign of life if it ended without notice or was silent for :data:`SILENCE_SECONDS`;
* where a line cannot be read, entries were lost, or a sample counts otherwise than the entries do, until the next standing;
* for one family, while the agent could not apply what it wanted;
* between two times that a clock set back has made ambiguous.

Times are whole milliseconds since 1970, as in the file.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from controller.entries import SAMPLE_SECONDS, Entry, Kind
from controller.status import Traffic

SILENCE_SECONDS = 2 * SAMPLE_SECONDS
"""An agent writes a sample every SAMPLE_SECONDS. One that was quiet for twice as long was not there."""

ENCRYPTED, CLEAR, REFUSED = (traffic.value for traffic in Traffic)
UNKNOWN, RECORDED, ABSENT = "unknown", "recorded", "absent"
ON, OFF = "on", "off"

NOT_BEGUN = "the record does not reach back so far"
STOPPED = "the agent was stopped"
ENDED = "the agent ended without notice"
SILENT = "the agent gave no sign of life"
LEFT = "the node left the mesh"
FELIX = "Felix has WireGuard itself on this node, and keeps no record of it"
UNREADABLE = "a line of the record cannot be read"
LOST = "entries could not be written"
CONTRADICTION = "a sample counts otherwise than the entries do"
SET_BACK = "the clock was set back, so that times are ambiguous"
BEYOND = "the record ends here"


@dataclass(frozen=True, slots=True)
class Item:
    """A line of a history: where it stands (``offset`` and ``length`` in bytes, ``number`` from 1), its SHA-256, and what it
    says; ``entry`` is None if it cannot be read."""

    file: str
    number: int
    offset: int
    length: int
    digest: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class File:
    """A file of a history as it was read: its size in bytes and SHA-256."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Record:
    """The history of ``node``, oldest line first."""

    node: str
    files: tuple[File, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """From ``start`` to ``end`` it was ``value``, and ``why``. ``items``: indices of the lines that say so."""

    start: int
    end: int
    value: str
    why: str = ""
    items: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class KeySpan:
    """A public key in use from ``start``, ``is_exact`` if the record saw it begin, to ``end``, None for still."""

    key: str
    start: int
    is_exact: bool
    end: int | None
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes through the tunnel between samples: at least so many, as counters that fell are not guessed at."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    items: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is known of a node from ``start`` to ``end``. Spans cover the whole period; those of pairs only the time the peer was
    there. ``keys`` are by family and peer, "" for the node's own; ``happened`` has the lines of each kind within the period;
    ``leaked`` are the pairs, by family and peer, of which packets were seen in clear."""

    node: str
    start: int
    end: int
    recorded: tuple[Span, ...]
    pairs: dict[tuple[str, str], tuple[Span, ...]]
    strict: tuple[Span, ...]
    families: dict[str, tuple[Span, ...]]
    detector: tuple[Span, ...]
    keys: dict[tuple[str, str], tuple[KeySpan, ...]]
    volumes: dict[str, Volume]
    happened: dict[str, tuple[int, ...]]
    leaked: frozenset[tuple[str, str]]


def timeline(record: Record, start: int, end: int) -> Timeline:
    """What the record proves of the time from ``start`` to ``end``."""
    replay = _Replay()
    for index, item in enumerate(record.items):
        replay.feed(index, item.entry)
    recorded = replay.recorded(start, end)
    failing = {family: _spans(points, start, end, OFF) for family, points in replay.failures.items()}
    pairs = {}
    for (family, peer), points in sorted(replay.pairs.items()):
        spans = [span for span in _spans(points, start, end, ABSENT) if span.value != ABSENT]
        spans = _overlaid(spans, [span for span in failing.get(family, ()) if span.value == UNKNOWN])
        if spans := _overlaid(spans, [span for span in recorded if span.value == UNKNOWN]):
            pairs[family, peer] = tuple(_merged(spans))
    gaps = [span for span in recorded if span.value == UNKNOWN]
    happened = _happened(record.items, start, end)

    def known(points: Sequence["_Point"]) -> tuple[Span, ...]:
        return tuple(_merged(_overlaid(_spans(points, start, end, UNKNOWN), gaps)))

    return Timeline(
        record.node,
        start,
        end,
        tuple(recorded),
        pairs,
        known(replay.strict),
        {family: known(points) for family, points in sorted(replay.families.items())},
        known([_Point(0, OFF, "", ()), *replay.detector]),
        {subject: tuple(held) for subject, found in sorted(replay.keys.items()) if (held := _within(found, start, end))},
        {family: _volume(samples, start, end) for family, samples in sorted(replay.samples.items())},
        happened,
        frozenset(_leaked(record.items, happened.get(Kind.LEAK.value, ()))),
    )


# The replay ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Point:
    """From ``at`` on it is ``value``."""

    at: int
    value: str
    why: str
    items: tuple[int, ...]


@dataclass
class _Replay:
    """Goes through a history, and remembers for everything when it became what."""

    pairs: defaultdict[tuple[str, str], list[_Point]] = field(default_factory=lambda: defaultdict(list))
    families: defaultdict[str, list[_Point]] = field(default_factory=lambda: defaultdict(list))
    failures: defaultdict[str, list[_Point]] = field(default_factory=lambda: defaultdict(list))
    strict: list[_Point] = field(default_factory=list)
    detector: list[_Point] = field(default_factory=list)
    keys: defaultdict[tuple[str, str], list[KeySpan]] = field(default_factory=lambda: defaultdict(list))
    samples: defaultdict[str, list[tuple[int, int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Of each family: time, received and sent bytes, line."""

    record: list[_Point] = field(default_factory=list)
    ambiguous: list[Span] = field(default_factory=list)
    last: tuple[int, int] | None = None
    """Time and line of the last entry that could be read."""
    awaited: set[str] = field(default_factory=set)
    """The families whose standing is missing before there is a record again."""

    def feed(self, index: int, one: Entry | None) -> None:
        if one is None:
            self._doubt(index, UNREADABLE)
            return
        at = _milliseconds(one.at)
        if self.last is not None and at < self.last[0]:
            self.ambiguous.append(Span(at, self.last[0], UNKNOWN, SET_BACK, (self.last[1], index)))
            at = self.last[0]
        if self.last is not None and at - self.last[0] > 1000 * SILENCE_SECONDS and one.kind != Kind.AGENT_STARTED.value:
            self._end(self.last[0], SILENT, (self.last[1], index))
        self._note(at, index, one)
        self.last = (at, index)

    def recorded(self, start: int, end: int) -> list[Span]:
        points = [_Point(0, UNKNOWN, NOT_BEGUN, self.record[0].items if self.record else ()), *self.record]
        if self._is_recorded and self.last is not None:
            points.append(_Point(self.last[0], UNKNOWN, BEYOND, (self.last[1],)))
        return _merged(_overlaid(_spans(points, start, end, UNKNOWN), self.ambiguous))

    @property
    def _is_recorded(self) -> bool:
        return bool(self.record) and self.record[-1].value == RECORDED

    def _end(self, at: int, why: str, items: tuple[int, ...]) -> None:
        if self._is_recorded:
            self.record.append(_Point(at, UNKNOWN, why, items))

    def _doubt(self, index: int, why: str) -> None:
        """From the last entry on nothing is certain, until each family says where it stands."""
        if self.last is not None:
            self._end(self.last[0], why, (self.last[1], index))
        self.awaited = {family for family, _ in self.pairs} | set(self.families)

    def _note(self, at: int, index: int, one: Entry) -> None:
        fields = one.fields
        match one.kind:
            case Kind.AGENT_STARTED.value:
                if self.last is not None:
                    self._end(self.last[0], ENDED, (self.last[1], index))
                self._set_strict(at, index, fields)
                _set(self.detector, at, OFF, "", index)
                return
            case Kind.AGENT_STOPPED.value:
                self._end(at, STOPPED, (index,))
                _set(self.detector, at, OFF, STOPPED, index)
                return
            case Kind.LEFT.value:
                self._end(at, LEFT, (index,))
                _set(self.detector, at, OFF, LEFT, index)
                return
            case Kind.LOST.value:
                self._doubt(index, LOST)
                return
            case Kind.STANDING.value:
                self.awaited.discard(str(fields.get("family")))
        if not self.awaited and not self._is_recorded:
            self.record.append(_Point(at, RECORDED, "", (index,)))
        self._change(at, index, one)

    def _change(self, at: int, index: int, one: Entry) -> None:
        fields = one.fields
        family, peer, why = (str(fields.get(name) or "") for name in ("family", "peer", "why"))
        match one.kind:
            case Kind.STRICT_ON.value | Kind.STRICT_OFF.value:
                _set(self.strict, at, ON if one.kind == Kind.STRICT_ON.value else OFF, "", index)
            case Kind.LEAK_DETECTOR_ON.value | Kind.LEAK_DETECTOR_OFF.value:
                _set(self.detector, at, ON if one.kind == Kind.LEAK_DETECTOR_ON.value else OFF, why, index)
            case Kind.FAMILY_ENABLED.value | Kind.FAMILY_DISABLED.value:
                self._switch(at, index, family)
                _set(self.families[family], at, ON if one.kind == Kind.FAMILY_ENABLED.value else OFF, why, index)
            case Kind.DATA_PLANE_FOUND.value | Kind.DATA_PLANE_LOST.value:
                self._switch(at, index, family)
            case Kind.FAILURE.value:
                _set(self.failures[family], at, UNKNOWN, f"the agent could not apply the configuration: {why}", index)
            case Kind.RECOVERY.value:
                _set(self.failures[family], at, OFF, "", index)
            case Kind.PEER_ADDED.value:
                _set(self.pairs[family, peer], at, str(fields.get("traffic")), why, index)
                self._set_key(at, index, (family, peer), fields.get("key"), is_exact=False)
            case Kind.PEER_REMOVED.value:
                _set(self.pairs[family, peer], at, ABSENT, "", index)
                self._close_key(at, index, (family, peer))
            case Kind.PEER_TRAFFIC.value:
                if not self.pairs[family, peer]:
                    self.pairs[family, peer].append(_Point(0, UNKNOWN, NOT_BEGUN, (index,)))
                _set(self.pairs[family, peer], at, str(fields.get("after")), why, index)
            case Kind.KEY_MADE.value:
                self._set_key(at, index, (family, ""), fields.get("key"), is_exact=True)
            case Kind.PEER_KEY.value:
                self._set_key(at, index, (family, peer), fields.get("after"), is_exact=True)
            case Kind.STANDING.value:
                self._stand(at, index, family, fields)
            case Kind.SAMPLE.value:
                self._sample(at, index, fields)

    def _switch(self, at: int, index: int, family: str) -> None:
        """The family changes, and its peers are not told one by one: a standing of the same moment says what they are now."""
        for (of, _), points in self.pairs.items():
            if of == family and points[-1].value != ABSENT:
                _set(points, at, UNKNOWN, "the family was switched, and what became of this pair is not recorded", index)

    def _stand(self, at: int, index: int, family: str, fields: Any) -> None:
        states = {name: (ENCRYPTED, "") for name in fields.get("encrypted", ())}
        for traffic in (CLEAR, REFUSED):
            states |= {name: (traffic, why) for why, names in fields.get(traffic, {}).items() for name in names}
        gone = (UNKNOWN, FELIX) if fields.get("felix") else (ABSENT, "")
        for of, peer in list(self.pairs):
            if of == family and peer not in states:
                _set(self.pairs[of, peer], at, *gone, index)
        for peer, (state, why) in states.items():
            points = self.pairs[family, peer]
            if not points:
                points.append(_Point(0, UNKNOWN, NOT_BEGUN, (index,)))
            _set(points, at, state, why, index)
        failure = fields.get("failure")
        why = f"the agent could not apply the configuration: {failure}" if failure else ""
        _set(self.failures[family], at, UNKNOWN if failure else OFF, why, index)
        _set(self.families[family], at, ON if fields.get("enabled") else OFF, str(fields.get("why") or ""), index)
        self._set_key(at, index, (family, ""), fields.get("key"), is_exact=False)
        for peer, key in fields.get("keys", {}).items():
            self._set_key(at, index, (family, peer), key, is_exact=False)

    def _sample(self, at: int, index: int, fields: Any) -> None:
        self._set_strict(at, index, fields)
        for family, counts in fields.get("families", {}).items():
            self.samples[family].append((at, int(counts.get("rx_bytes", 0)), int(counts.get("tx_bytes", 0)), index))
            states = [points[-1].value for (of, _), points in self.pairs.items() if of == family]
            if any(states.count(state) != counts.get(state) for state in (ENCRYPTED, CLEAR, REFUSED)):
                self._doubt(index, CONTRADICTION)

    def _set_strict(self, at: int, index: int, fields: Any) -> None:
        if (is_strict := fields.get("strict")) is not None:
            _set(self.strict, at, ON if is_strict else OFF, "", index)

    def _set_key(self, at: int, index: int, subject: tuple[str, str], key: Any, is_exact: bool) -> None:
        spans = self.keys[subject]
        if spans and spans[-1].end is None and spans[-1].key == key:
            return
        self._close_key(at, index, subject)
        if key is not None:
            spans.append(KeySpan(str(key), at, is_exact, None, (index,)))

    def _close_key(self, at: int, index: int, subject: tuple[str, str]) -> None:
        spans = self.keys[subject]
        if spans and spans[-1].end is None:
            spans[-1] = replace(spans[-1], end=at, items=(*spans[-1].items, index))


def _set(points: list[_Point], at: int, value: str, why: str, index: int) -> None:
    """Nothing, if it is so already."""
    if not points or (points[-1].value, points[-1].why) != (value, why):
        points.append(_Point(at, value, why, (index,)))


# Spans --------------------------------------------------------------------------------------------------------------


def _spans(points: Sequence[_Point], start: int, end: int, before: str) -> list[Span]:
    """The period cut where the points are; ``before`` the first one. Points are in the order of time."""
    spans = []
    at, now = start, _Point(0, before, "", ())
    for point in points:
        if point.at > at:
            spans.append(Span(at, min(point.at, end), now.value, now.why, now.items))
            at = point.at
        if at >= end:
            return spans
        now = point
    return [*spans, Span(at, end, now.value, now.why, now.items)]


def _overlaid(spans: Iterable[Span], covers: Sequence[Span]) -> list[Span]:
    """The spans, but where there is a cover, that. Covers may overlap; the first one counts."""
    pieces = list(spans)
    for cover in covers:
        cut: list[Span] = []
        for span in pieces:
            low, high = max(span.start, cover.start), min(span.end, cover.end)
            if low >= high or (span.value == UNKNOWN and span.why == cover.why):
                cut.append(span)
                continue
            before, after = replace(span, end=low), replace(span, start=high)
            middle = Span(low, high, cover.value, cover.why, cover.items)
            cut += [piece for piece in (before, middle, after) if piece.length > 0]
        pieces = cut
    return pieces


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Neighbours that say the same are one."""
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last is not None and (last.end, last.value, last.why) == (span.start, span.value, span.why):
            merged[-1] = replace(last, end=span.end, items=tuple(sorted({*last.items, *span.items})))
        elif span.length > 0:
            merged.append(span)
    return merged


def _within(spans: Sequence[KeySpan], start: int, end: int) -> list[KeySpan]:
    return [span for span in spans if span.start < end and (span.end is None or span.end > start)]


def _volume(samples: Sequence[tuple[int, int, int, int]], start: int, end: int) -> Volume:
    volume = Volume()
    inside = [one for one in samples if start <= one[0] <= end]
    for before, after in pairwise(inside):
        volume = Volume(
            volume.rx_bytes + max(0, after[1] - before[1]), volume.tx_bytes + max(0, after[2] - before[2]), volume.items
        )
    return replace(volume, items=tuple(one[3] for one in (inside[0], inside[-1]))) if len(inside) > 1 else volume


def _happened(items: Sequence[Item], start: int, end: int) -> dict[str, tuple[int, ...]]:
    happened: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        if item.entry is not None and start <= _milliseconds(item.entry.at) <= end:
            happened[item.entry.kind].append(index)
    return {kind: tuple(indices) for kind, indices in happened.items()}


def _leaked(items: Sequence[Item], indices: Iterable[int]) -> Iterator[tuple[str, str]]:
    for entry in (items[index].entry for index in indices):
        if entry is not None:
            yield str(entry.fields.get("family")), str(entry.fields.get("peer"))


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
