"""The node agent: a loop around the instances.

    wake  ->  observe the cluster  ->  reconcile each family (or disable it)  ->  publish its key  ->  sleep

It wakes when the source has something new, when a link or a rule has changed, when something is due, and at the latest after
``resync_seconds``. What woke it does not matter: it does the same each time, and that is nothing if all is as it ought to be.
What fails is tried again, ever more slowly.

*Starting* is different from running: a family that fails before it has been right once takes back what was begun, in all
families, and ends the agent with one line. So a mistake shows at once and leaves nothing half done. *Ending* takes nothing
back: packets flow on without an agent. Leaving the mesh is a thing of its own (:meth:`Agent.leave`).
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from controller.dataplane import DataPlaneError
from controller.findings import Finding, findings
from controller.instance import Instance, InstanceError, Report, Rest
from controller.leaks import Detector
from controller.mesh import Mesh
from controller.model import Cluster, Family
from controller.netlink import Monitor, NetlinkRefusal
from controller.nftables import NftablesRefusal
from controller.observe import Observation, Problem, keep_addresses
from controller.publication import Action, Publication, expects_address
from controller.reporter import Reporter
from controller.source import Objects, Ref, Source, SourceError, SourceUnavailable
from controller.statefiles import StateError, StateFiles
from controller.status import AgentStatus, Seen, refreshed
from wgpy.client import ClientError
from wgpy.wgconf import format_key

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_RESYNC_SECONDS = 90.0
"""Everything is compared anew at least that often, whatever Felix is told to do."""

SETTLE_SECONDS = 0.02
LONGEST_SETTLE_SECONDS = 2.0
"""How long to wait after waking for what else may come: changes rarely come alone. After a long pass it is longer, until the rest
was half as long as the pass, so that in a large and lively cluster the agent takes two thirds of a core at most."""

LONGEST_SILENCE_SECONDS = 5.0
"""How long, while one change follows the other, a pass may end without a report."""

LIST_SECONDS = 5.0
"""How long a start waits for the source before it goes by the objects it remembers. Strict mode refuses meanwhile."""

REMEMBER_SECONDS = 10.0
REMEMBER_SHARE = 100
"""How often, at most, changed objects are written to disk: in a large cluster, one percent of the time."""

SHORTEST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 2.0
"""The longest pause while a data plane is missing: its socket appears without a notice."""

QUIET_SECONDS = 2.0
LONGEST_LEAVE_SECONDS = 15.0
_LOOK_SECONDS = 0.25

Failure = (InstanceError, DataPlaneError, NetlinkRefusal, NftablesRefusal, ClientError, SourceError, StateError)
"""What can go wrong in a pass. The message of each is one line."""


class AgentError(Exception):
    """The agent cannot start, or not leave. The message is one line: what is wrong, and what to do."""


def retry_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, from 1 on."""
    return min(SHORTEST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_RETRY_SECONDS)


@dataclass(slots=True)
class _Member:
    """A family, and where it is on its way into the mesh."""

    instance: Instance
    publication: Publication = field(default_factory=Publication)
    is_settled: bool = False
    failures: int = 0
    said: str = ""
    rest: Rest | None = None
    report: Report | None = None
    failure: str | None = None
    is_away: bool = False
    """It failed for want of an answer from the source, which is no fault of this node's."""

    @property
    def is_felix(self) -> bool:
        """Felix has this family: its key stays, and nothing is said of its packets."""
        return self.rest is not None and self.rest.is_felix

    def begin(self) -> None:
        """Forget what came of the last pass."""
        self.rest, self.report, self.failure, self.is_away = None, None, None, False

    def seen(self, cluster: Cluster) -> Seen:
        """What has come of this pass."""
        seen = self.instance.seen(cluster)
        return replace(
            seen,
            rest=self.rest.reason if self.rest else None,
            is_felix=self.is_felix,
            waits_for=self.report.waits_for if self.report else None,
            failure=None if self.is_away else self.failure,
            contest=self.publication.contest,
            is_withdrawing=self.publication.is_withdrawing,
        )

    def say(self, level: int, message: str) -> None:
        """Log what has become of the family, once."""
        if message != self.said:
            log.log(level, "%s: %s", self.instance.family, message)
        self.said = message


@dataclass(frozen=True, slots=True)
class Options:
    """How an agent is to behave. ``resync_seconds``: None is what the cluster says. ``remembers``: objects are kept on disk, for
    a start at which the source does not answer. ``is_strict``: what ought to be encrypted and cannot be is refused."""

    resync_seconds: float | None = None
    remembers: bool = False
    is_strict: bool = False


class Duties(Protocol):
    """What a mesh wants done on its nodes besides."""

    async def perform(self, cluster: Cluster, mtu: int) -> None:
        """After each pass that has published a key. ``mtu`` is the smallest of our interfaces'. Never raises."""
        ...


class Agent:
    """The agent of the node ``node``. Its instances are used from a thread of its own."""

    def __init__(
        self,
        source: Source,
        mesh: Mesh,
        node: str,
        instances: Sequence[Instance],
        files: StateFiles,
        options: Options = Options(),
        duties: Duties | None = None,
        detector: Detector | None = None,
    ) -> None:
        self._source = source
        self._mesh = mesh
        self._node = node
        self._members = [_Member(instance) for instance in instances]
        self._files = files
        self._options = options
        self._duties = duties
        self._detector = detector
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="instances")
        self._objects: Objects = {}
        self._is_current = False
        """The objects are the source's, not the remembered ones: what is written there may depend on them."""
        self._observation: Observation | None = None
        self._cluster: Cluster | None = None
        self._malformed: list[Finding] = []
        self._concluded_at = -math.inf
        self._is_over = False
        self._reporter = Reporter(source, mesh.name, node, files, options.is_strict)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set. Raises AgentError if it cannot start."""
        listing = asyncio.create_task(self._list())
        try:
            await self._begin(listing, stop)
            if not stop.is_set():
                self._check(self._objects)
                self._reporter.begin()
                await self._run(listing, stop)
                self._reporter.end()
        except SourceError as error:
            raise AgentError(str(error)) from None
        finally:
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)
            self._is_over = True
            self._thread.shutdown()

    async def _begin(self, listing: "asyncio.Task[Objects]", stop: asyncio.Event) -> None:
        """Have objects to go by: the source's, or the remembered ones until it answers. Raises SourceError."""
        remembered = self._remembered()
        if remembered is not None and self._options.is_strict:
            await self._refuse(remembered)
        seconds = None if remembered is None else LIST_SECONDS
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((listing, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if listing.done():
            self._take(listing.result())
        elif remembered is not None and not stop.is_set():
            log.info("going by the cluster as it was last, %d objects, until the source answers", len(remembered))
            self._objects = remembered

    async def _refuse(self, remembered: Objects) -> None:
        """Refuse what strict mode refused last, before anything is waited for. To encrypt by old objects is not as urgent: a
        range may have another owner by now."""
        cluster = self._mesh.observe(remembered, self._node).cluster
        for member in self._members:
            try:
                await self._in_thread(member.instance.refuse, cluster)
            except Failure as error:
                log.error("%s: cannot refuse what is in clear: %s", member.instance.family, error)

    def _remembered(self) -> Objects | None:
        """The objects to go by if the source does not answer; None if there are none that will do. They may have been kept while
        our own Node was missing or the configuration was bad: what is no good on disk must not keep us from asking the source."""
        objects = self._files.objects() if self._options.remembers else None
        if objects is not None:
            try:
                self._check(objects)
            except AgentError as error:
                log.warning("not going by the cluster as it was last: %s", error)
                return None
        return objects

    async def _run(self, listing: "asyncio.Task[Objects]", stop: asyncio.Event) -> None:
        followers = [self._follow_source(listing), self._follow_kernel(), self._follow(stop), self._reporter.run()]
        if self._options.remembers:
            followers.append(self._remember())
        if self._detector is not None:
            self._detector.notify = self._wake.set
            followers.append(self._detector.run())
        watchers = [asyncio.create_task(follower) for follower in followers]
        for watcher in watchers:
            watcher.add_done_callback(lambda _: self._wake.set())
        try:
            while not stop.is_set():
                self._wake.clear()
                began = time.monotonic()
                pause = await self._pass()
                took = time.monotonic() - began
                ended = time.monotonic()
                await _wait(self._wake, pause)
                rested = time.monotonic() - ended
                await asyncio.sleep(min(max(SETTLE_SECONDS, took / 2 - rested), LONGEST_SETTLE_SECONDS))
                for watcher in watchers:
                    if watcher.done() and not stop.is_set():
                        watcher.result()  # raises: none of them ends but by a mistake of ours
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            if self._options.remembers and self._is_current:
                with suppress(StateError):  # then the next agent goes by those of a while ago
                    self._files.save_objects(self._objects)

    async def leave(self) -> None:
        """Withdraw the keys, wait until peers no longer send to us, take everything down. Raises AgentError."""
        try:
            self._objects, self._is_current = await self._source.list(), True
            cluster = self._mesh.observe(self._objects, self._node).cluster
            if self._node not in cluster.nodes:
                raise AgentError(self._no_such_node(cluster))
            for member in self._members:
                member.rest = await self._in_thread(member.instance.rest, cluster)
                if not member.is_felix:
                    await self._withdraw(member)
                await self._in_thread(member.instance.stop_sending, cluster)
            await self._until_quiet(cluster)
            for member in self._members:
                await self._in_thread(member.instance.disable, cluster)
            await self._keep_guard()
            await self._reporter.take_back()
            self._files.forget_objects()  # an agent that starts without the source is not to rejoin by them
        except Failure as error:
            raise AgentError(str(error)) from None
        finally:
            self._thread.shutdown()
        others = {one.instance.family: one.rest.reason for one in self._members if one.rest is not None and one.rest.is_felix}
        self._reporter.left(others)
        log.info("node %s has left the mesh", self._node)

    # Waking

    async def _list(self) -> Objects:
        """All objects, once somebody answers. Raises SourceError if we are refused, and have nothing else to go by."""
        failures = 0
        while True:
            try:
                return await self._source.list()
            except SourceError as error:
                if not isinstance(error, SourceUnavailable) and not self._objects:
                    raise
                failures += 1
                log.warning("%s; trying again", error)
            # The source goes on trying by itself, and knows before we ask again.
            with suppress(TimeoutError):
                async with asyncio.timeout(retry_seconds(failures)):
                    return await self._source.changed()

    async def _follow_source(self, listing: "asyncio.Task[Objects]") -> None:
        if not self._is_current:
            self._take(await listing)
            log.info("the source answers: going by the cluster as it is")
        while True:
            self._take(await self._source.changed())

    def _take(self, objects: Objects) -> None:
        """Go by these objects from now on. If they say the same as the last, as with another label, nobody is woken."""
        is_news = not self._is_current or self._mesh.observe(objects, self._node) != self._observation
        self._objects, self._is_current = objects, True
        self._taken.set()
        if is_news:
            self._wake.set()

    async def _remember(self) -> None:
        """Keep the objects on disk, a while after they have changed."""
        while True:
            await self._taken.wait()
            self._taken.clear()
            began = time.monotonic()
            try:
                await asyncio.to_thread(self._files.save_objects, self._objects)
            except StateError as error:
                log.warning("%s", error)
            await asyncio.sleep(max(REMEMBER_SECONDS, REMEMBER_SHARE * (time.monotonic() - began)))

    async def _follow_kernel(self) -> None:
        monitor, readable = Monitor(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(monitor.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                if monitor.drain({name for member in self._members for name in member.instance.links}):
                    self._wake.set()
        finally:
            loop.remove_reader(monitor.fileno())
            monitor.close()

    async def _follow(self, stop: asyncio.Event) -> None:
        await stop.wait()  # its end wakes us

    # Observing

    def _check(self, objects: Objects) -> None:
        """What must be right before anything is touched."""
        observation = self._mesh.observe(objects, self._node)
        for problem in observation.configuration_problems:
            raise AgentError(self._located(problem))
        if self._node not in observation.cluster.nodes:
            raise AgentError(self._no_such_node(observation.cluster))

    def _no_such_node(self, cluster: Cluster) -> str:
        known = ", ".join(sorted(cluster.nodes)[:8]) or "none at all"
        return f"there is no node {self._node!r} in the cluster, only {known}: say with --node which one this is"

    def _observe(self) -> Cluster:
        self._observation = observation = self._mesh.observe(self._objects, self._node)
        self._malformed = [
            Finding("MalformedObject", str(problem.ref), self._located(problem)) for problem in observation.problems
        ]
        cluster = observation.cluster
        if self._cluster is not None:
            cluster = keep_addresses(cluster, self._cluster)
            if observation.configuration_problems:
                cluster = replace(cluster, felix=self._cluster.felix)  # the last good one
        self._cluster = cluster
        return cluster

    def _located(self, problem: Problem) -> str:
        where = self._source.locate(problem.ref, problem.path)
        return str(problem) if where == str(problem.ref) else f"{where}: {problem}"

    # One pass

    async def _pass(self) -> float:
        """Bring every family to where it ought to be; the seconds until there is more to do."""
        began = time.monotonic()
        cluster = self._observe()
        if self._node not in cluster.nodes:
            for member in self._members:
                member.begin()
                member.failure = f"node {self._node} is no longer in the cluster: leaving everything as it is"
                member.say(logging.WARNING, member.failure)
            await self._report(cluster, time.monotonic() - began)
            return self._resync_seconds(cluster)
        pauses = [self._resync_seconds(cluster) * random.uniform(0.9, 1.1)]
        for member in self._members:
            member.begin()
            if self._options.is_strict and not member.is_settled:
                # In all families first of all: what comes then may take a while, or end the agent.
                await self._attempt(member, pauses, self._in_thread(member.instance.refuse, cluster))
        for member in self._members:
            await self._attempt(member, pauses, self._reconcile(member, cluster))
        # Only now, so that a family that cannot start stops the other before it has promised anything.
        for member in self._members:
            if member.report is not None and member.failure is None:
                await self._attempt(member, pauses, self._publish(member, cluster, member.report, pauses))
        mtus = [
            member.report.mtu for member in self._members if member.report and member.report.can_receive and member.report.mtu
        ]
        if self._duties is not None and mtus:
            await self._duties.perform(cluster, min(mtus))
        await self._keep_guard()
        # What has come meanwhile goes first, if the last report is not old.
        if not self._wake.is_set() or time.monotonic() > self._concluded_at + LONGEST_SILENCE_SECONDS:
            await self._report(cluster, time.monotonic() - began)
            self._concluded_at = time.monotonic()
            pauses.append(self._reporter.unsettled_seconds + 0.05)
        return max(min(pauses), 0.0)

    def _resync_seconds(self, cluster: Cluster) -> float:
        return self._options.resync_seconds or min(cluster.felix.refresh_seconds, LONGEST_RESYNC_SECONDS)

    async def _attempt(self, member: _Member, pauses: list[float], attempt: Awaitable[None]) -> None:
        try:
            await attempt
        except Failure as error:
            member.is_away = isinstance(error, SourceUnavailable)
            if not member.is_settled and not member.is_away:
                await self._take_back()
                raise AgentError(str(error)) from None
            member.failures += 1
            member.failure = str(error)
            member.say(logging.ERROR, str(error))
            pauses.append(retry_seconds(member.failures))
            if not member.is_away:
                await self._undo(member)

    async def _reconcile(self, member: _Member, cluster: Cluster) -> None:
        member.rest = await self._in_thread(member.instance.rest, cluster)
        if member.rest is None:
            names = {other.instance.interface(cluster) for other in self._members if other is not member}
            if (name := member.instance.interface(cluster)) in names:
                raise InstanceError(f"{name} would be the interface of IPv4 and IPv6 at once: give each a name of its own")
            member.report = await self._in_thread(member.instance.reconcile, cluster)
            return
        rest = member.rest
        if not self._is_current:
            # What is on disk may be from before the family was enabled: nothing is taken back before the source says so.
            member.say(logging.INFO, f"not part of the mesh as it was last ({rest.reason}): all stays until the source answers")
            member.is_settled = True
            return
        member.say(logging.INFO if rest.is_expected else logging.WARNING, f"not part of the mesh: {rest.reason}")
        if not rest.is_felix:
            try:
                await self._withdraw(member)
            except SourceError:
                # Others go on as if there were a key, so we go on receiving. But they may have stopped to receive themselves.
                await self._in_thread(member.instance.stop_sending, cluster)
                raise
        await self._in_thread(member.instance.disable, cluster)
        member.publication = Publication()
        member.is_settled, member.failures = True, 0

    async def _publish(self, member: _Member, cluster: Cluster, report: Report, pauses: list[float]) -> None:
        """Publish the key of a family that can receive, and count it as settled."""
        if report.waits_for is not None:
            member.is_settled = True  # it is right as far as it can be: whoever starts the data plane may take their time
            member.failures += 1
            pauses.append(min(retry_seconds(member.failures), LONGEST_WAIT_SECONDS))
        if not report.can_receive:
            return
        if self._is_current:
            await self._announce(member, cluster, report.public_key, pauses)
        if report.waits_for is None:
            member.failures = 0
            member.instance.settle()
            member.is_settled = True
            member.say(logging.INFO, "in the mesh")

    async def _announce(self, member: _Member, cluster: Cluster, public_key: bytes, pauses: list[float]) -> None:
        family, publication = member.instance.family, member.publication
        node = cluster.nodes[self._node]
        network, other = node.of(family), node.of(Family.IPV6 if family is Family.IPV4 else Family.IPV4)
        has_address = network.interface_address is not None
        expects = expects_address(cluster, self._node, family)
        action = publication.decide(network.public_key, public_key, has_address, time.monotonic(), expects, other)
        pauses.append(publication.wake_at - time.monotonic())
        try:
            if action is Action.PUBLISH:
                await self._annotate(self._mesh.announcement(family, public_key, self._objects, self._node))
                log.info("%s: published the key %s", family, format_key(public_key))
            elif action is Action.WITHDRAW:
                await self._annotate(self._mesh.withdrawal(family, self._objects, self._node))
                log.info("%s: withdrew the key, to publish it anew: it has brought no address", family)
        except SourceError:
            publication.failed()
            raise

    async def _withdraw(self, member: _Member) -> None:
        """Take the published key back, whoever published it."""
        withdrawal = self._mesh.withdrawal(member.instance.family, self._objects, self._node)
        if withdrawal and self._is_current:
            await self._annotate(withdrawal)
            log.info("%s: withdrew the key", member.instance.family)

    async def _annotate(self, annotations: Mapping[str, str | None]) -> None:
        await self._source.annotate(Ref(self._mesh.announcing_kind, self._node), annotations)

    # Reporting

    async def _keep_guard(self) -> None:
        """On disk, for the next boot, what the firewall refuses now."""
        try:
            self._files.save_guard("".join(member.instance.guard for member in self._members))
        except StateError as error:
            log.warning("%s", error)

    async def _report(self, cluster: Cluster, seconds: float) -> None:
        """A report that fails costs the report."""
        try:
            await self._conclude(cluster, seconds)
        except Failure as error:
            log.warning("this pass stays without a report: %s", error)

    async def _conclude(self, cluster: Cluster, seconds: float) -> None:
        seen, facts = {}, {}
        for member in self._members:
            family = member.instance.family
            seen[family] = await self._in_thread(member.seen, cluster)
            facts[family] = await self._in_thread(member.instance.facts, cluster)
        found = [*findings(cluster, self._node, facts), *self._of_members()]
        is_success = all(member.failure is None for member in self._members)
        leaks = self._detector.report() if self._detector is not None else None
        await self._in_thread(self._reporter.conclude, cluster, seen, self._malformed, found, seconds, is_success, leaks)
        self._reporter.wake()
        status = self._reporter.status
        if self._detector is not None and status is not None:
            self._detector.follow(await self._in_thread(self._detector.look, cluster, status))

    def _of_members(self) -> Iterator[Finding]:
        for member in self._members:
            if member.publication.lacks_address is not None:
                yield Finding("NoInterfaceAddress", str(member.instance.family), member.publication.lacks_address)
            for number, line in enumerate(member.instance.external_refusals, start=1):
                yield Finding("ExternalPeerRefused", f"{member.instance.family} external peers, {number}", line)

    async def status(self) -> AgentStatus | None:
        """The status of the last pass, with counters as they are on the devices now; None before the first, and once others are
        in charge."""
        if self._is_over:
            return None
        status, cluster = self._reporter.status, self._cluster
        if status is None or cluster is None:
            return status
        families = []
        for family, member in zip(status.families, self._members):
            snapshot = await self._in_thread(member.instance.snapshot, cluster) if family.is_enabled else None
            families.append(refreshed(family, snapshot, time.time()) if family.is_enabled else family)
        leaks = self._detector.status() if self._detector is not None else None
        return replace(status, at=time.time(), source=self._reporter.source_status(), families=tuple(families), leaks=leaks)

    # Undoing and leaving

    async def _take_back(self) -> None:
        """The start has failed: leave nothing behind of what it has begun."""
        for member in self._members:
            if not member.is_settled:
                await self._undo(member)

    async def _undo(self, member: _Member) -> None:
        try:
            await self._in_thread(member.instance.undo)
        except Failure as error:
            log.warning("%s: could not take everything back: %s", member.instance.family, error)

    async def _until_quiet(self, cluster: Cluster) -> None:
        """Peers that know that our key is gone stop using it. What still comes from them is received meanwhile."""
        now = time.monotonic()
        quiet_since, deadline, received = now, now + LONGEST_LEAVE_SECONDS, -1
        while now < min(quiet_since + QUIET_SECONDS, deadline):
            counts = [await self._in_thread(member.instance.received_bytes, cluster) for member in self._members]
            if sum(counts) != received:
                quiet_since, received = now, sum(counts)
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):  # before Python 3.12 wait_for can swallow a cancellation
            await event.wait()
    except TimeoutError:
        pass
