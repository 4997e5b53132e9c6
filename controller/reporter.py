"""What the agent says of itself: a status after each pass, and from two of those the history, Events, and lines in the log.

Nothing here decides anything, and nothing here can fail a pass: a full disk or an API server that is away costs the report,
not the mesh. What is to be told to others waits in a short queue for a task of its own.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import wgpy
from controller.condition import condition, patch
from controller.entries import (
    SAMPLE_SECONDS,
    STANDING_SECONDS,
    Entry,
    Kind,
    changes,
    entry,
    sample,
    standing,
    whole,
)
from controller.findings import SETTLE_SECONDS, Finding
from controller.history import History
from controller.model import Cluster, Family
from controller.source import Event, Source, SourceError, SourceUnavailable
from controller.statefiles import StateError, StateFiles
from controller.status import (
    HAS_LEFT,
    AgentStatus,
    FamilyStatus,
    LeakStatus,
    Seen,
    SourceStatus,
    family_status,
    from_json,
    to_json,
)

log = logging.getLogger(__name__)

KEEP_SECONDS = 1.0
KEEP_SHARE = 100
"""How often, at most, the status is written to disk: in a large cluster, one percent of the time."""

REMIND_SECONDS = 1800.0
"""A finding that stands is told again so often: Events are forgotten after an hour."""

CONDITION_SECONDS = 5.0
CONDITION_RENEWAL_SECONDS = 300.0
"""How often the Node's condition is written: at most, and at least, as it may have been lost with the Node."""

QUEUE_LENGTH = 100
RETRY_SECONDS = 10.0

_TOLD = {
    Kind.KEY_PUBLISHED.value: "WireGuardKeyPublished",
    Kind.KEY_WITHDRAWN.value: "WireGuardKeyWithdrawn",
    Kind.KEY_CLEARED.value: "WireGuardKeyCleared",
    Kind.KEY_OVERWRITTEN.value: "WireGuardKeyOverwritten",
    Kind.KEY_CONTESTED.value: "WireGuardKeyContested",
    Kind.FAMILY_ENABLED.value: "WireGuardEnabled",
    Kind.FAMILY_DISABLED.value: "WireGuardDisabled",
    Kind.DATA_PLANE_LOST.value: "WireGuardDataPlaneLost",
    Kind.FAILURE.value: "WireGuardFailed",
    Kind.STRICT_ON.value: "WireGuardStrict",
    Kind.STRICT_OFF.value: "WireGuardNotStrict",
}
"""What of the history is worth an Event, and its reason."""

_WARNINGS = {Kind.KEY_OVERWRITTEN.value, Kind.KEY_CONTESTED.value, Kind.DATA_PLANE_LOST.value, Kind.FAILURE.value}


class Reporter:
    """The reports of one agent, on ``node`` of the mesh ``mesh``."""

    def __init__(self, source: Source, mesh: str, node: str, files: StateFiles, is_strict: bool) -> None:
        self._source = source
        self._files = files
        self._history = History(files.path, opening=self._whole)
        self._sampled_at = self._stood_at = -math.inf  # on the clock that does not jump
        self._status = AgentStatus(time.time(), node, mesh, wgpy.__version__, SourceStatus(source.name), is_strict)
        self._before = self._remembered()
        self._since: dict[tuple[str, str], float] = {}
        self._told: dict[tuple[str, str], float] = {}
        self.unsettled_seconds = math.inf
        """When the next finding will have stood for so long that it counts, in seconds from the last pass; inf for never."""
        self._events: deque[Event] = deque(maxlen=QUEUE_LENGTH)
        self._has_events = asyncio.Event()
        self._is_new = asyncio.Event()
        self._is_news_for_condition = asyncio.Event()

    @property
    def status(self) -> AgentStatus | None:
        """The status of the last pass, None before the first."""
        return self._status if self._status.passes else None

    def begin(self) -> None:
        now = time.time()
        self._status = replace(self._status, at=now, started_at=now)
        self._history.write(
            [
                entry(
                    now,
                    Kind.AGENT_STARTED,
                    version=wgpy.__version__,
                    node=self._status.node,
                    mesh=self._status.mesh,
                    strict=self._status.is_strict,
                )
            ]
        )

    def end(self) -> None:
        self._history.write([entry(time.time(), Kind.AGENT_STOPPED)])

    def left(self, others: Mapping[Family, str]) -> None:
        """The node has left the mesh: so says the status, too, until an agent has more to say. ``others``: why a family was none
        of ours, and is as it was."""
        now = time.time()
        families = tuple(FamilyStatus(family, rest=others.get(family, HAS_LEFT), is_felix=family in others) for family in Family)
        source = self.source_status()
        status = replace(self._status, at=now, source=source, passes=1, passed_at=now, families=families)
        try:
            self._files.save_status(to_json(status))
        except StateError as error:
            log.warning("%s", error)
        self._history.write([entry(now, Kind.LEFT)])

    def conclude(
        self,
        cluster: Cluster,
        seen: Mapping[Family, Seen],
        malformed: Sequence[Finding],
        findings: Sequence[Finding],
        seconds: float,
        is_success: bool,
        leaks: LeakStatus | None = None,
    ) -> None:
        """A pass is over that took ``seconds``: take note. May be called in a thread; :meth:`wake` is to follow in the loop's."""
        now = time.time()
        before = self._before
        findings = [*malformed, *self._settled(findings)]
        families = (
            family_status(cluster, family, self._status.node, one, before.of(family) if before else None)
            for family, one in seen.items()
        )
        self._status = replace(
            self._status,
            at=now,
            source=self.source_status(),
            passes=self._status.passes + 1,
            failures=self._status.failures + (not is_success),
            passed_at=now if is_success else self._status.passed_at,
            pass_seconds=seconds,
            families=tuple(families),
            findings=tuple(findings),
            leaks=leaks,
        )
        entries = changes(before, self._status)
        self._before = self._status
        self._history.write([*entries, *self._due_record()])
        self._log_findings(before.findings if before and self._status.passes > 1 else (), findings)
        self._events.extend((*_events(entries), *self._due_findings(findings)))

    def wake(self) -> None:
        """Pass on what :meth:`conclude` has noted."""
        self._is_new.set()
        self._is_news_for_condition.set()
        self._has_events.set()

    async def run(self) -> None:
        """Write the status down, tell the Events, and keep the Node's condition, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep())
            tasks.create_task(self._tell())
            tasks.create_task(self._keep_condition())

    async def take_back(self) -> None:
        """This node leaves the mesh: take the condition off the Node, and tell of it."""
        try:
            await self._source.merge_status(self._status.node, patch(None, 0.0, 0.0))
        except SourceError as error:
            log.warning("the Node's condition stays: %s", error)
        try:
            await self._source.tell(self._status.node, Event("WireGuardLeft", HAS_LEFT, is_warning=False))
        except SourceError as error:
            log.warning("there is no Event of it: %s", error)

    # The parts

    def _remembered(self) -> AgentStatus | None:
        """What the agent before us has left, so that its end is no news."""
        try:
            return from_json(self._files.status())
        except (ValueError, StateError):
            return None

    def _whole(self) -> Iterable[Entry]:
        """What a file of the history begins with."""
        return whole(self._before) if self._before is not None else ()

    def _due_record(self) -> list[Entry]:
        """The sample, and where each family stands, when it is time for them; after the first pass it is."""
        now, due = time.monotonic(), []
        if now >= self._stood_at + STANDING_SECONDS:
            due += [standing(self._status.at, family) for family in self._status.families]
            self._stood_at = now
        if now >= self._sampled_at + SAMPLE_SECONDS:
            due.append(sample(self._status))
            self._sampled_at = now
        return due

    def source_status(self) -> SourceStatus:
        """How the source is just now."""
        health = self._source.health()
        return SourceStatus(self._status.source.name, *health)

    def _settled(self, findings: Sequence[Finding]) -> list[Finding]:
        """Those that have stood for a while: a cluster that changes is full of what is over in a moment."""
        now = time.monotonic()
        keys = [(finding.reason, finding.subject) for finding in findings]
        self._since = {key: self._since.get(key, now) for key in keys}
        waiting = [since + SETTLE_SECONDS - now for since in self._since.values() if now < since + SETTLE_SECONDS]
        self.unsettled_seconds = min(waiting, default=math.inf)
        return [finding for key, finding in zip(keys, findings) if now >= self._since[key] + SETTLE_SECONDS]

    def _log_findings(self, before: Iterable[Finding], after: Sequence[Finding]) -> None:
        known = {(finding.reason, finding.subject) for finding in before}
        for finding in after:
            if (finding.reason, finding.subject) not in known:
                log.log(logging.WARNING if finding.is_warning else logging.INFO, "%s: %s", finding.subject, finding.message)
        for reason, subject in sorted(known - {(finding.reason, finding.subject) for finding in after}):
            log.info("%s: no longer so: %s", subject, reason)

    def _due_findings(self, findings: Sequence[Finding]) -> list[Event]:
        """Those that are new or were told long ago."""
        now = time.monotonic()
        standing = {(finding.reason, finding.subject): finding for finding in findings}
        self._told = {key: at for key, at in self._told.items() if key in standing and now < at + REMIND_SECONDS}
        due = [finding for key, finding in standing.items() if key not in self._told]
        self._told |= {(finding.reason, finding.subject): now for finding in due}
        return [Event(finding.reason, f"{finding.subject}: {finding.message}", finding.is_warning) for finding in due]

    async def _keep(self) -> None:
        while True:
            await self._is_new.wait()
            self._is_new.clear()
            began = time.monotonic()
            try:
                await asyncio.to_thread(self._files.save_status, to_json(self._status))
            except StateError as error:
                log.warning("%s", error)
            await asyncio.sleep(max(KEEP_SECONDS, KEEP_SHARE * (time.monotonic() - began)))

    async def _keep_condition(self) -> None:
        said, is_said, since, complaint = None, False, 0.0, ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONDITION_RENEWAL_SECONDS):
                    while not self._status.passes or (is_said and condition(self._status) == said):
                        await self._is_news_for_condition.wait()
                        self._is_news_for_condition.clear()
            if not self._status.passes:
                continue
            now, wanted = time.time(), condition(self._status)
            if said is None or wanted is None or wanted.is_true != said.is_true:
                since = now
            try:
                await self._source.merge_status(self._status.node, patch(wanted, now, since))
                said, is_said, complaint = wanted, True, ""
            except SourceError as error:
                if not isinstance(error, SourceUnavailable) and str(error) != complaint:
                    log.warning("cannot write the Node's condition: %s", error)
                complaint, is_said = str(error), False
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(CONDITION_SECONDS)

    async def _tell(self) -> None:
        while True:
            await self._has_events.wait()
            self._has_events.clear()
            while self._events:
                event = self._events.popleft()
                try:
                    await self._source.tell(self._status.node, event)
                except SourceError as error:
                    log.debug("%s", error)  # what is wrong with the source is said elsewhere
                    self._events.appendleft(event)
                    await asyncio.sleep(RETRY_SECONDS)


MOST_NAMES = 5


def _events(entries: Sequence[Entry]) -> list[Event]:
    leaks = [one for one in entries if one.kind == Kind.LEAK.value]
    return ([_leak_event(leaks)] if leaks else []) + [
        Event(
            _TOLD[one.kind], " ".join(f"{name}={value}" for name, value in one.fields.items()) or one.kind, one.kind in _WARNINGS
        )
        for one in entries
        if one.kind in _TOLD
    ]


def _leak_event(leaks: Sequence[Entry]) -> Event:
    """One for all of them: where routes are gone, every peer is concerned."""
    packets = sum(one.fields["packets"] for one in leaks)
    peers = sorted({str(one.fields["peer"]) for one in leaks})
    names = ", ".join(peers[:MOST_NAMES]) + (f" and {len(peers) - MOST_NAMES} more" if len(peers) > MOST_NAMES else "")
    message = (
        f"{packets} packets between pods of this node and of {names} were seen in clear on the wire, which ought to have been "
        f"encrypted (such as {leaks[0].fields.get('example', '?')}): wgpy doctor, here and there, says what is wrong"
    )
    return Event("WireGuardLeak", message, is_warning=True)
