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
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from controller.calico import ANNOTATIONS, NODE
from controller.dataplane import DataPlaneError
from controller.instance import Instance, InstanceError, Report
from controller.model import Cluster
from controller.netlink import Monitor, NetlinkRefusal
from controller.observe import Problem, keep_addresses, observe
from controller.publication import Action, Publication
from controller.source import Objects, Ref, Source, SourceError
from controller.statefiles import StateError
from wgpy.client import ClientError
from wgpy.wgconf import format_key

log = logging.getLogger(__name__)

T = TypeVar("T")

RESYNC_SECONDS = 90.0
SETTLE_SECONDS = 0.02
LONGEST_SETTLE_SECONDS = 2.0
"""How long to wait after waking for what else may come: changes rarely come alone. As long as the last pass took, within these
bounds, so that in a large and lively cluster the agent takes half a core at most."""

SHORTEST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 2.0
"""The longest pause while a data plane is missing: its socket appears without a notice."""

QUIET_SECONDS = 2.0
LONGEST_LEAVE_SECONDS = 15.0
_LOOK_SECONDS = 0.25

Failure = (InstanceError, DataPlaneError, NetlinkRefusal, ClientError, SourceError, StateError)
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

    def say(self, level: int, message: str) -> None:
        """Log what has become of the family, once."""
        if message != self.said:
            log.log(level, "%s: %s", self.instance.family, message)
        self.said = message


class Agent:
    """The agent of the node ``node``. Its instances are used from a thread of its own."""

    def __init__(self, source: Source, node: str, instances: Sequence[Instance], resync_seconds: float = RESYNC_SECONDS) -> None:
        self._source = source
        self._node = node
        self._members = [_Member(instance) for instance in instances]
        self._resync_seconds = resync_seconds
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="instances")
        self._objects: Objects = {}
        self._cluster: Cluster | None = None
        self._problems: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set. Raises AgentError if it cannot start."""
        try:
            self._objects = await self._source.list()
        except SourceError as error:
            raise AgentError(str(error)) from None
        self._check(self._objects)
        watchers = [
            asyncio.create_task(watcher) for watcher in (self._follow_source(), self._follow_kernel(), self._follow(stop))
        ]
        for watcher in watchers:
            watcher.add_done_callback(lambda _: self._wake.set())
        try:
            while not stop.is_set():
                self._wake.clear()
                began = time.monotonic()
                pause = await self._pass()
                took = time.monotonic() - began
                await _wait(self._wake, pause)
                await asyncio.sleep(min(max(SETTLE_SECONDS, took), LONGEST_SETTLE_SECONDS))
                for watcher in watchers:
                    if watcher.done() and not stop.is_set():
                        watcher.result()  # raises: none of them ends but by a mistake of ours
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._thread.shutdown()

    async def leave(self) -> None:
        """Withdraw the keys, wait until peers no longer send to us, take everything down. Raises AgentError."""
        try:
            self._objects = await self._source.list()
            cluster = observe(self._objects, self._node).cluster
            if self._node not in cluster.nodes:
                raise AgentError(self._no_such_node(cluster))
            for member in self._members:
                await self._withdraw(member)
                await self._in_thread(member.instance.stop_sending, cluster)
            await self._until_quiet(cluster)
            for member in self._members:
                await self._in_thread(member.instance.disable, cluster)
        except Failure as error:
            raise AgentError(str(error)) from None
        finally:
            self._thread.shutdown()
        log.info("node %s has left the mesh", self._node)

    # Waking

    async def _follow_source(self) -> None:
        while True:
            self._objects = await self._source.changed()
            self._wake.set()

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
        observation = observe(objects, self._node)
        for problem in observation.configuration_problems:
            raise AgentError(self._located(problem))
        if self._node not in observation.cluster.nodes:
            raise AgentError(self._no_such_node(observation.cluster))

    def _no_such_node(self, cluster: Cluster) -> str:
        known = ", ".join(sorted(cluster.nodes)[:8]) or "none at all"
        return f"there is no node {self._node!r} in the cluster, only {known}: say with --node which one this is"

    def _observe(self) -> Cluster:
        observation = observe(self._objects, self._node)
        problems = {self._located(problem) for problem in observation.problems}
        for problem in sorted(problems - self._problems):
            log.warning("%s", problem)
        self._problems = problems
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
        cluster = self._observe()
        if self._node not in cluster.nodes:
            for member in self._members:
                member.say(logging.WARNING, f"node {self._node} is no longer in the cluster: leaving everything as it is")
            return self._resync_seconds
        pauses = [self._resync_seconds * random.uniform(0.9, 1.0)]
        reports: list[tuple[_Member, Report]] = []
        for member in self._members:
            report = await self._attempt(member, pauses, self._reconcile(member, cluster))
            if report is not None:
                reports.append((member, report))
        # Only now, so that a family that cannot start stops the other before it has promised anything.
        for member, report in reports:
            await self._attempt(member, pauses, self._publish(member, cluster, report, pauses))
        return max(min(pauses), 0.0)

    async def _attempt(self, member: _Member, pauses: list[float], attempt: Awaitable[T]) -> T | None:
        try:
            return await attempt
        except Failure as error:
            if not member.is_settled:
                await self._take_back()
                raise AgentError(str(error)) from None
            member.failures += 1
            member.say(logging.ERROR, str(error))
            pauses.append(retry_seconds(member.failures))
            await self._undo(member)
            return None

    async def _reconcile(self, member: _Member, cluster: Cluster) -> Report | None:
        """What has come of the family; None if it rests."""
        rest = await self._in_thread(member.instance.rest, cluster)
        if rest is None:
            names = {other.instance.interface(cluster) for other in self._members if other is not member}
            if (name := member.instance.interface(cluster)) in names:
                raise InstanceError(f"{name} would be the interface of IPv4 and IPv6 at once: give each a name of its own")
            return await self._in_thread(member.instance.reconcile, cluster)
        member.say(logging.INFO if rest.is_expected else logging.WARNING, f"not part of the mesh: {rest.reason}")
        if not rest.keeps_key:
            await self._withdraw(member)
        await self._in_thread(member.instance.disable, cluster)
        member.publication = Publication()
        member.is_settled, member.failures = True, 0
        return None

    async def _publish(self, member: _Member, cluster: Cluster, report: Report, pauses: list[float]) -> None:
        """Publish the key of a family that can receive, and count it as settled."""
        if report.waits_for is not None:
            member.failures += 1
            pauses.append(min(retry_seconds(member.failures), LONGEST_WAIT_SECONDS))
        if report.public_key is None:
            return
        names = ANNOTATIONS[member.instance.family]
        network = cluster.nodes[self._node].of(member.instance.family)
        has_address = network.interface_address is not None
        action = member.publication.decide(network.public_key, report.public_key, has_address, time.monotonic())
        pauses.append(member.publication.wake_at - time.monotonic())
        if action is not Action.KEEP:
            text = format_key(report.public_key) if action is Action.PUBLISH else None
            await self._source.annotate(self._node, {names.public_key: text})
            what = f"published the key {text}" if text else "withdrew the key, to publish it anew: it has brought no address"
            log.info("%s: %s", member.instance.family, what)
        if report.waits_for is None:
            member.failures = 0
            member.instance.settle()
            member.is_settled = True
            member.say(logging.INFO, "in the mesh")

    async def _withdraw(self, member: _Member) -> None:
        """Take the published key back, whoever published it."""
        name = ANNOTATIONS[member.instance.family].public_key
        annotations = self._objects[Ref(NODE, self._node)]["metadata"].get("annotations") or {}
        if name in annotations:  # even if it holds no key that can be read
            await self._source.annotate(self._node, {name: None})
            log.info("%s: withdrew the key", member.instance.family)

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

    async def _in_thread(self, function: Callable[..., T], *arguments: Cluster) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        pass
