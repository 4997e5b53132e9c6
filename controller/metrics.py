"""The agent's metrics and probes, from its status. Pure but for the pages, which ask for a status each time somebody asks them.

``wgpy_agent_*`` says what only the agent knows: the peers that ought to be and what becomes of their traffic. What flows through
the tunnel, the series of Calico's Felix among it, is the data plane's to tell (:mod:`wgpy.daemon.metrics`).

Every series that does not name a finding is there from the first scrape on, with 0 where nothing has happened: one that
appears with its first event cannot be alerted on. docs/metrics.md lists them.
"""

import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from controller.model import Family
from controller.status import (
    ENOUGH_ANSWER,
    AgentStatus,
    Direction,
    FamilyStatus,
    LeakStatus,
    Traffic,
    unready,
    unstarted,
)
from wgpy.exposition import Answer, Page, alive, metrics, verdict

Row = tuple[Sequence[str], float]
"""The values of the labels, and that of the sample."""


def pages(status: Callable[[], Awaitable[AgentStatus | None]], enough: float = ENOUGH_ANSWER) -> Mapping[str, Page]:
    """What the agent serves. ``status`` gives the newest one, with counters as they are on the device (None before the first
    pass); ``enough`` is the share of the peers in use that have to answer for ``/readyz``.

    ``/healthz`` asks for nothing but the event loop: to start an agent again because the API server or a peer is away would not
    bring it back.
    """

    async def scrape() -> Answer:
        return metrics(generate_latest(_Once(series(await status()))))

    async def started() -> Answer:
        return verdict(unstarted(await status()))

    async def ready() -> Answer:
        return verdict(unready(await status(), enough))

    return {"/metrics": scrape, "/healthz": alive, "/startupz": started, "/readyz": ready}


class _Once(Collector):
    """Metrics that are made already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def series(status: AgentStatus | None) -> Iterator[Metric]:
    """All series of the agent; none before there is a status."""
    if status is None:
        return
    yield from _agent(status)
    yield from _source(status)
    yield from _families(status.families, status.at)
    yield from _leaks(status.leaks or LeakStatus())
    counts = Counter(finding.reason for finding in status.findings if finding.is_warning)
    yield _gauge(
        "findings", "Things found to be wrong, by reason", ["reason"], [((reason,), counts[reason]) for reason in counts]
    )


def _agent(status: AgentStatus) -> Iterator[Metric]:
    yield _gauge(
        "build_info",
        "Which agent this is: always 1",
        ["version", "python", "node", "mesh"],
        [((status.version, platform.python_version(), status.node, status.mesh), 1)],
    )
    yield _gauge("start_time_seconds", "When the agent was started, as Unix time", [], [((), status.started_at)])
    yield _gauge(
        "strict", "Whether what cannot be encrypted is to be refused (1) or sent in clear (0)", [], [((), status.is_strict)]
    )
    yield _counter("passes", "Times the node was looked at and brought to where it ought to be", [], [((), status.passes)])
    yield _counter("failures", "Passes in which something went wrong", [], [((), status.failures)])
    yield _gauge(
        "last_success_seconds", "When a pass last went well, as Unix time; 0 for never", [], [((), status.passed_at or 0)]
    )
    yield _gauge("last_pass_seconds", "How long the last pass took", [], [((), status.pass_seconds or 0)])
    yield _gauge("ready", "Whether this node has its place in the mesh, as /readyz says", [], [((), unready(status) is None)])


def _source(status: AgentStatus) -> Iterator[Metric]:
    source, labels = status.source, ["source"]
    name = (source.name,)
    yield _gauge(
        "source_synced",
        "Whether the objects of the cluster are followed (1) or out of reach (0)",
        labels,
        [(name, source.is_synced)],
    )
    yield _gauge(
        "source_heard_seconds",
        "When the source last said anything, as Unix time; 0 for never",
        labels,
        [(name, source.heard_at or 0)],
    )
    yield _counter("source_lists", "Times all objects were asked for anew", labels, [(name, source.lists)])
    yield _counter("source_errors", "Requests to the source that failed", labels, [(name, source.errors)])


def _families(families: Sequence[FamilyStatus], now: float) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[FamilyStatus], float]) -> Metric:
        return _gauge(name, text, ["family"], [((str(family.family),), value(family)) for family in families])

    yield gauge("family_enabled", "Whether the family takes part in the mesh (1) or rests (0)", lambda family: family.is_enabled)
    yield gauge("family_failing", "Whether the last pass went wrong for the family", lambda family: family.failure is not None)
    yield gauge("data_plane_up", "Whether a data plane answers for the interface", lambda family: family.has_data_plane)
    yield gauge("key_published", "Whether the cluster shows our public key", lambda family: family.is_published)
    yield gauge("key_contested", "Whether somebody else keeps writing our key", lambda family: family.contest is not None)
    yield gauge(
        "interface_address",
        "Whether the interface has an address of the cluster's",
        lambda family: family.interface_address is not None,
    )
    yield gauge("interface_mtu_bytes", "MTU of the interface, 0 without one", lambda family: family.mtu or 0)
    yield _gauge(
        "peers",
        "Other nodes and external peers, by what becomes of packets to them",
        ["family", "traffic"],
        [
            ((str(family.family), traffic.value), sum(peer.traffic is traffic for peer in family.peers))
            for family in families
            for traffic in Traffic
        ],
    )
    yield gauge(
        "silent_peers", "Peers that do not answer what they are sent", lambda family: sum(peer.is_silent for peer in family.peers)
    )
    yield gauge(
        "handshake_age_max_seconds",
        "Age of the oldest latest handshake, idle peers included",
        lambda family: _oldest(family, now),
    )
    yield _counter(
        "refused_packets",
        "Packets refused because they were or would have been in clear",
        ["family", "direction"],
        [
            ((str(family.family), direction), count)
            for family in families
            for direction, count in (("inbound", family.refused_inbound), ("outbound", family.refused_outbound))
        ],
    )


def _leaks(leaks: LeakStatus) -> Iterator[Metric]:
    yield _gauge(
        "leak_detector_interfaces",
        "Links that are watched for packets in clear; 0 where nobody looks",
        [],
        [((), len(leaks.interfaces))],
    )
    packets: Counter[tuple[Family, Direction]] = Counter()
    for leak in leaks.leaks:
        packets[leak.family, leak.direction] += leak.packets
    yield _counter(
        "leaked_packets",
        "Packets seen in clear on the underlay that ought to have been encrypted",
        ["family", "direction"],
        [((str(family), way.value), packets[family, way]) for family in Family for way in Direction],
    )
    yield _counter(
        "leak_detector_unread_packets",
        "Packets in clear that came too fast to be looked at",
        [],
        [((), leaks.unread)],
    )


def _oldest(family: FamilyStatus, now: float) -> float:
    return max((now - peer.last_handshake for peer in family.peers if peer.last_handshake is not None), default=0.0)


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    return _filled(GaugeMetricFamily(f"wgpy_agent_{name}", text, labels=labels), rows)


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    return _filled(CounterMetricFamily(f"wgpy_agent_{name}", text, labels=labels), rows)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[Row]) -> Metric:
    for labels, value in rows:
        family.add_metric(labels, value)
    return family
