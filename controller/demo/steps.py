"""The five steps of the demo, in order. Each changes or uses the cluster, looks, and puts promises into the report."""

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.demo import traffic
from controller.demo.capture import Capture, Conversation, Sighting, Verdict, judge, write_pcap
from controller.demo.cluster import Cluster, ClusterError, DataPlane, Member
from controller.demo.report import Report, ago, rate, size
from controller.demo.topology import Pod, Topology, TopologyError, has_ipv6
from wgpy.client import ClientError

WANDERER = "wanderer"  # a pod in blocks of its own, which move in step 3
LOG_TAIL_LINES = 5
LISTED = 3  # of several troubles of one kind, so many are told in full
TIMED_PAIRS = 16  # up to so many pairs are measured for a second each; with more, each gets a few megabytes


@dataclass(frozen=True, slots=True)
class Route:
    """Two pods to talk, on their members (the same one, for pods of one node)."""

    one: Member
    one_pod: Pod
    two: Member
    two_pod: Pod

    def __str__(self) -> str:
        return f"{self.one_pod.key} to {self.two_pod.key}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one conversation over one IP version."""

    route: Route
    version: int
    promised: Verdict
    replies: int
    sighting: Sighting

    @property
    def held(self) -> bool:
        """All pings answered, the promised verdict, and if encrypted, a message for each packet in each direction."""
        enough = self.promised is not Verdict.ENCRYPTED or min(self.sighting.encrypted) >= traffic.PINGS
        return self.replies == traffic.PINGS and self.sighting.verdict is self.promised and enough

    @property
    def seen(self) -> str:
        there, back = self.sighting.encrypted
        frames = {Verdict.CLEAR: f" ({self.sighting.clear})", Verdict.NOTHING: ""}
        lost = "" if self.replies == traffic.PINGS else f", {traffic.PINGS - self.replies} of {traffic.PINGS} pings lost"
        return f"{self.sighting.verdict}{frames.get(self.sighting.verdict, f' ({there}+{back})')}{lost}"


class Demo:
    """A cluster, the report on it, and what the steps share. :meth:`build` comes first."""

    def __init__(self, topology: Topology, wireguard_go: Path | None, report: Report) -> None:
        versions = (4, 6) if has_ipv6() else (4,)
        self.cluster = Cluster(topology, versions, wireguard_go)
        self.report = report
        self._wireguard_go = wireguard_go
        self._captures = itertools.count(1)
        self._logs_shown = False
        self._rates: dict[tuple[Route, int], float] = {}

    def build(self, nodes: int) -> None:
        """Lay the cluster and wait until its mesh stands. Without that there is nothing to show: :class:`ClusterError`."""
        run = self.cluster.topology.run
        self.report.step(f"A cluster of {nodes} nodes on this machine (run {run})")
        self.report.facts["run"] = run
        foreign = DataPlane.WIREGUARD_GO if self._wireguard_go else DataPlane.WGPY
        kinds = [DataPlane.WGPY, DataPlane.WGPY, foreign, DataPlane.NONE] + [DataPlane.WGPY] * (nodes - 4)
        with self.report.working("lay nodes, pods and routes, start data planes and agents"):
            for kind in kinds:
                self.cluster.join(kind)
            self.cluster.add_blocks(self.cluster.members[0], [WANDERER], extra=1)
        self.report.say(", ".join(f"{member.name}: {member.data_plane}" for member in self.cluster.members))
        if not self._wireguard_go:
            self.report.say("wireguard-go is not installed: n3 runs wgpy instead, so no foreign data plane is shown")
        if len(self.cluster.versions) == 1:
            self.report.say("this kernel has no IPv6: IPv4 only")
        try:
            with self.report.working("agents publish keys and configure their data planes"):
                self.cluster.settle()
        except ClusterError:
            self.show_logs()
            raise

    def run(self) -> None:
        """All five steps."""
        self.reach()
        self.prove()
        self.change()
        self.switch()
        self.show()

    # 1 ---------------------------------------------------------------------------------------------------------------

    def reach(self) -> None:
        """Pods reach each other: ping, then iperf3."""
        self.report.step("1  Pods reach each other, across every pair of nodes and on one node")
        routes = [*self._between_all(), self._at_home(self.cluster.members[0])]
        tasks = [(route, version) for route in routes for version in self.cluster.versions]

        with self.report.waiting("ping"):
            replies = traffic.ping_all(
                [traffic.Probe(route.one_pod, route.two_pod, version, b"wgpy") for route, version in tasks]
            )
        lost = [
            f"{route} over IPv{version}"
            for (route, version), answered in zip(tasks, replies, strict=True)
            if answered < traffic.PINGS
        ]
        self.report.promise(
            f"{len(tasks) * traffic.PINGS} pings between {len(routes)} pairs of pods are answered", not lost, _listed(lost)
        )

        amount = ["-t1"] if len(routes) <= TIMED_PAIRS else ["-n8M"]
        failures = []
        with self.report.waiting("TCP with iperf3", len(tasks)) as advance:
            for route, version in tasks:
                try:
                    self._rates[route, version] = traffic.throughput(route.one_pod, route.two_pod, version, amount)
                except TopologyError as error:
                    failures.append(str(error))
                advance()
        self.report.promise(f"{len(tasks)} TCP connections of iperf3 carry data", not failures, _listed(failures))

    # 2 ---------------------------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """A capture on the underlay decides what was encrypted."""
        self.report.step("2  A capture on the underlay decides: encrypted, or in clear")
        routes = [*self._between_all(), self._at_home(self.cluster.members[0])]
        outcomes = self._observe(routes, "the capture shows what was promised")
        self.report.facts["pairs"] = [_as_fact(outcome) for outcome in outcomes]
        self._pair_table(outcomes)

    # 3 ---------------------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """A node joins, a block moves, a node leaves."""
        self.report.step("3  The cluster changes, and the mesh follows without a command")
        first, foreign = self.cluster.members[0], self.cluster.members[2]

        joined: list[Member] = []
        self._follow("a node joins", lambda: joined.append(self.cluster.join(DataPlane.WGPY)))
        newcomer = joined[0]
        self._observe(
            [self._between(newcomer, other) for other in self.cluster.members if other is not newcomer],
            f"{newcomer.name} is in the mesh",
        )

        wanderer = first.node.pods[WANDERER]
        moved: list[Pod] = []
        self._follow(
            f"the blocks of pod {wanderer.key} move from {first.name} to {foreign.name}",
            lambda: moved.append(self.cluster.move_blocks(wanderer, foreign)),
        )
        others = [member for member in self.cluster.members if member is not foreign]
        self._observe(
            [Route(other, other.pods[0], foreign, moved[0]) for other in others], f"{wanderer.key} is behind {foreign.name}"
        )

        self._follow(f"{newcomer.name} leaves", lambda: self.cluster.leave(newcomer))
        self._observe(self._between_all(), "the others are as they were")

    # 4 ---------------------------------------------------------------------------------------------------------------

    def switch(self) -> None:
        """Encryption off and on again."""
        self.report.step("4  Encryption is switched off and on again, in the FelixConfiguration")
        self._follow("wireguardEnabled: false", lambda: self.cluster.encrypt(False))
        self._observe(self._between_all(), "everything goes in clear, and arrives")
        self._follow("wireguardEnabled: true", lambda: self.cluster.encrypt(True))
        self._observe(self._between_all(), "encrypted again wherever it was")

    # 5 ---------------------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """The mesh, and the throughput seen."""
        self.report.step("5  The mesh")
        try:
            peers = self.cluster.mesh()
        except ClientError as error:
            self.report.promise("every data plane answers", False, str(error))
            return
        now = time.time()
        columns = ["node", "interface", "peer", "pods behind it", "endpoint", "handshake", "received", "sent"]
        rows = []
        for peer in peers:
            handshake = now - peer.snapshot.last_handshake / 1e9 if peer.snapshot.last_handshake else None
            endpoint = str(peer.snapshot.config.endpoint or "")
            received, sent = size(peer.snapshot.rx_bytes), size(peer.snapshot.tx_bytes)
            rows.append([peer.node, peer.interface, peer.peer, ", ".join(peer.pods), endpoint, ago(handshake), received, sent])
        self.report.table(columns, rows, right=["received", "sent"])
        silent = [f"{peer.node} to {peer.peer} on {peer.interface}" for peer in peers if not peer.snapshot.last_handshake]
        self.report.promise("every peer has had a handshake", not silent, _listed(silent))
        self.report.facts["mesh"] = [
            {
                "node": peer.node,
                "interface": peer.interface,
                "peer": peer.peer,
                "pods": list(peer.pods),
                "endpoint": str(peer.snapshot.config.endpoint or ""),
                "last_handshake": peer.snapshot.last_handshake / 1e9 or None,
                "received_bytes": peer.snapshot.rx_bytes,
                "sent_bytes": peer.snapshot.tx_bytes,
            }
            for peer in peers
        ]
        self._throughput_table()

    def _throughput_table(self) -> None:
        routes = dict.fromkeys(route for route, _ in self._rates)
        columns = ["TCP, one stream", "data planes", "path", *(f"IPv{version}" for version in self.cluster.versions)]
        rows = []
        for route in routes:
            rates = [self._rates.get((route, version)) for version in self.cluster.versions]
            path = "on the node" if route.one is route.two else str(self.cluster.promised(route.one, route.two))
            rows.append([str(route), _data_planes(route), path, *("-" if value is None else rate(value) for value in rates)])
        self.report.say("")
        self.report.table(columns, rows, right=columns[3:])
        self.report.facts["throughput"] = [
            {"from": route.one_pod.key, "to": route.two_pod.key, "ip": version, "bits_per_second": round(value)}
            for (route, version), value in self._rates.items()
        ]

    # What the steps are made of --------------------------------------------------------------------------------------

    def _follow(self, what: str, change: Callable[[], object]) -> None:
        """Make a change and let the mesh follow it; that it does in time is a promise."""
        begun = time.monotonic()
        with self.report.waiting(what):
            change()
            try:
                self.cluster.settle()
                seen = ""
            except ClusterError as error:
                seen = str(error)
        self.report.promise(f"{what}: the mesh follows", not seen, seen or f"after {time.monotonic() - begun:.2f} s")
        if seen:
            self.show_logs()

    def _observe(self, routes: Sequence[Route], promise: str) -> list[Outcome]:
        """Ping along all routes under a capture, and hold what was seen against what is promised."""
        tasks = [(route, version, b"wgpy" + secrets.token_bytes(4)) for route in routes for version in self.cluster.versions]
        with self.report.waiting("ping under a capture"), Capture(self.cluster.topology.underlay.name) as capture:
            replies = traffic.ping_all(
                [traffic.Probe(route.one_pod, route.two_pod, version, marker) for route, version, marker in tasks]
            )
        write_pcap(self.cluster.topology.directory / f"capture-{next(self._captures)}.pcap", capture.frames)
        sightings = judge(capture.frames, [_conversation(*task) for task in tasks])
        outcomes = [
            Outcome(route, version, self.cluster.promised(route.one, route.two), answered, sighting)
            for (route, version, _), answered, sighting in zip(tasks, replies, sightings, strict=True)
        ]
        broken = [f"{o.route} over IPv{o.version} promised {o.promised}, seen {o.seen}" for o in outcomes if not o.held]
        if capture.lost:
            broken.append(f"the capture lost {capture.lost} frames and proves nothing")
        self.report.promise(
            f"{promise} ({_counted(outcomes)})", not broken, _listed(broken) or f"{len(capture.frames)} frames judged"
        )
        if broken:
            self.show_logs()
        return outcomes

    def _pair_table(self, outcomes: Sequence[Outcome]) -> None:
        columns = ["pair", "data planes", "promised", *(f"seen, IPv{version}" for version in self.cluster.versions), "verdict"]
        rows = []
        for route, group in itertools.groupby(outcomes, key=lambda outcome: outcome.route):
            of_route = list(group)
            promised = "stays on the node" if route.one is route.two else str(of_route[0].promised)
            held = all(outcome.held for outcome in of_route)
            rows.append([str(route), _data_planes(route), promised, *(o.seen for o in of_route), "held" if held else "BROKEN"])
        self.report.table(columns, rows)
        self.report.say("in brackets: frames in clear, or WireGuard transport messages there + back")

    def show_logs(self) -> None:
        """The ends of all logs, for the one who has to find out: once, when the first thing has gone wrong."""
        if self._logs_shown:
            return
        self._logs_shown = True
        for log in self.cluster.logs():
            self.report.tail(_name_of(log), "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]))

    def _between(self, one: Member, two: Member) -> Route:
        return Route(one, one.pods[0], two, two.pods[0])

    def _between_all(self) -> list[Route]:
        return [self._between(one, two) for one, two in self.cluster.pairs()]

    def _at_home(self, member: Member) -> Route:
        return Route(member, member.pods[0], member, member.pods[1])


def _conversation(route: Route, version: int, marker: bytes) -> Conversation:
    return Conversation(
        (route.one_pod.address(version), route.two_pod.address(version)),
        (route.one.node.address(version), route.two.node.address(version)),
        marker,
    )


def _listed(troubles: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = [f"and {len(troubles) - LISTED} more"] if len(troubles) > LISTED else []
    return "; ".join([*troubles[:LISTED], *more])


def _counted(outcomes: Iterable[Outcome]) -> str:
    """``6 encrypted, 6 in clear, 2 nothing``: by what was seen."""
    verdicts = [outcome.sighting.verdict for outcome in outcomes]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict if verdict in verdicts)


def _data_planes(route: Route) -> str:
    return f"{route.one.data_plane}" if route.one is route.two else f"{route.one.data_plane} to {route.two.data_plane}"


def _as_fact(outcome: Outcome) -> dict[str, object]:
    return {
        "from": outcome.route.one_pod.key,
        "to": outcome.route.two_pod.key,
        "ip": outcome.version,
        "promised": str(outcome.promised),
        "seen": str(outcome.sighting.verdict),
        "frames_in_clear": outcome.sighting.clear,
        "transport_messages": list(outcome.sighting.encrypted),
        "pings_answered": outcome.replies,
        "held": outcome.held,
    }


def _name_of(log: Path) -> str:
    return f"{log.parent.name}/{log.name}"
