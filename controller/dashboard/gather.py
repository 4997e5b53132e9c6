"""Who is in the mesh, from the cluster, and what their agents say, from their status APIs: kept up to date for the page.

The source says which nodes there are, as soon as there is one more, and each of them is asked for its summary again and again:
every second in a small mesh, more rarely in a large one, so that there are MOST_ASKED questions a second at most.
A node that does not answer is asked at the same pace. What it said last stays known; the view says how old it is.

The token goes over TLS, through the tunnel, or to a loopback address, and nowhere else (:class:`Reach`).
"""

import asyncio
import json
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp

from controller.dashboard.picture import Point
from controller.dashboard.view import Sighting, mesh_view
from controller.mesh import Mesh
from controller.mesh_table import Pods, pods_by_node
from controller.meshes.calico import IPAM_BLOCK, Calico
from controller.model import Cluster, Family, Node
from controller.source import Manifest, Objects, Source, SourceError
from controller.status_api import SERVER_NAME, StatusApiError, read_token
from controller.summary import FORMAT

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0
MOST_ASKED = 200
"""How often each agent is asked, and how many are asked each second at most."""

ANSWER_SECONDS = 5.0
RETRY_SECONDS = 2.0
LARGEST_ANSWER = 32 << 20

SAMPLE_SECONDS = 2.0
SAMPLES = 450
"""Throughput is noted so often, and as often kept: for a quarter of an hour."""


class PodsToo(Calico):
    """Calico's mesh, with its blocks untrimmed: they tell of pods."""

    def trim(self, manifest: Manifest) -> Manifest:
        return manifest if manifest.get("kind") == IPAM_BLOCK else super().trim(manifest)


@dataclass(frozen=True, slots=True)
class Reach:
    """How agents are reached. ``token`` is the file with theirs. It is by ``tls``; or through the ``tunnel``, an interface of
    this host's, by which and by no other these connections go; with neither only at loopback addresses."""

    port: int
    token: Path
    tls: ssl.SSLContext | None = None
    tunnel: str | None = None

    @classmethod
    def make(cls, port: int, token: Path, authority: Path | None, tunnel: str | None) -> "Reach":
        """``authority`` is a PEM file. Raises StatusApiError for a file that cannot be read, or if there is no such interface."""
        read_token(token)
        if tunnel is not None and tunnel not in (name for _, name in socket.if_nameindex()):
            raise StatusApiError(f"there is no interface {tunnel} here: --tunnel takes the tunnel's on a node of the mesh")
        try:
            tls = ssl.create_default_context(cafile=authority) if authority else None
        except OSError as error:
            raise StatusApiError(f"cannot read certificates from {authority}: {error.strerror or error}") from None
        return cls(port, token, tls, tunnel)

    def place(self, node: Node) -> str | None:
        """The address of its status API, None where it has none."""
        for family in Family:
            network = node.of(family)
            address = (network.interface_address if self.tunnel else None) or network.address
            if address is not None:
                return str(address)
        return None

    def url(self, address: str) -> str:
        """Raises StatusApiError if the token would cross a wire in clear."""
        if self.tls is None and self.tunnel is None and not ip_address(address).is_loopback:
            raise StatusApiError("not asked, as the token would cross the wire in clear: give --agents-ca, or --tunnel")
        host = f"[{address}]" if ":" in address else address
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def make_socket(self, place: aiohttp.AddrInfoType) -> socket.socket:
        """For a connection. In the tunnel it is bound to it: what cannot go by it does not go. Raises OSError."""
        family, kind, protocol, _, address = place
        made = socket.socket(family, kind, protocol)
        if self.tunnel is not None and not _is_own(family, address[0]):
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.tunnel.encode())
            except OSError:
                made.close()
                raise
        return made


def _is_own(family: int, address: str | int) -> bool:
    """Whether it is one of this host's, so that what is sent there stays here: the kernel answers itself from the same address.
    That one may bind to it says nothing: with ip_nonlocal_bind, as hosts with keepalived have it, one may bind to any."""
    if ip_address(address).is_loopback:
        return True
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # nothing is sent
            return ip_address(probe.getsockname()[0]) == ip_address(address)
        except OSError:
            return False


@dataclass(slots=True)
class _Watched:
    """A node, and the task that asks it."""

    sighting: Sighting
    task: "asyncio.Task[None] | None" = None
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class Gatherer:
    """What is known of the mesh, as of now. :meth:`run` keeps it so."""

    def __init__(self, make_source: Callable[[], Source], mesh: Mesh, reach: Reach) -> None:
        self.mesh_name = mesh.name
        self.points: deque[Point] = deque(maxlen=SAMPLES)
        """What all nodes together received and sent."""
        self.version = 0
        """Grows with every change of who is there and how they are."""
        self.is_listed = False
        """The source has said who is there."""
        self._make_source = make_source
        self._source: Source | None = None
        self._mesh = mesh
        self._reach = reach
        self._nodes: dict[str, _Watched] = {}
        self._failure: str | None = None
        self._objects: Objects = {}
        self._pods: tuple[Objects | None, Pods] = (None, {})
        self._session: aiohttp.ClientSession | None = None

    async def run(self) -> None:
        """Until cancelled."""
        connector = aiohttp.TCPConnector(limit=64, socket_factory=self._reach.make_socket)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as session:
            self._session = session
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow())
                    tasks.create_task(self._sample())
            finally:
                self._take(Cluster())
                self._session = None
                if self._source is not None:
                    await self._source.close()

    @property
    def source_failure(self) -> str | None:
        """Why the cluster is not as it is shown, None while it is."""
        if self._source is None or self._failure is not None:
            return self._failure
        health = self._source.health()
        return None if health.is_synced else health.failure or f"{self._source.name} cannot be read"

    @property
    def sightings(self) -> list[Sighting]:
        return [watched.sighting for watched in self._nodes.values()]

    def points_of(self, name: str) -> Sequence[Point]:
        return tuple(self._nodes[name].points) if name in self._nodes else ()

    @property
    def pods(self) -> Pods:
        """By node; worked out when they are asked for, and have changed."""
        if self._pods[0] is not self._objects:
            blocks = [manifest for ref, manifest in self._objects.items() if ref.kind == IPAM_BLOCK]
            self._pods = self._objects, pods_by_node(blocks)
        return self._pods[1]

    async def details(self, name: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """The whole status of a node, and the last entries of its history. Raises StatusApiError if it does not answer."""
        watched = self._nodes.get(name)
        if watched is None:
            raise StatusApiError(f"the cluster has no node {name} any more")
        return await self._ask(watched.sighting.address, "status"), await self._ask(watched.sighting.address, "history?limit=40")

    # Who is there

    async def _follow(self) -> None:
        while True:
            try:
                if self._source is None:
                    self._source = self._make_source()
                objects = await self._source.changed()
            except SourceError as error:
                self._failure = str(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._failure, self.is_listed = None, True
            self._objects = objects
            self._take(self._mesh.observe(objects, "").cluster)

    def _take(self, cluster: Cluster) -> None:
        """Go by these nodes from now on."""
        for gone in self._nodes.keys() - cluster.nodes.keys():
            if (task := self._nodes.pop(gone).task) is not None:
                task.cancel()
            self.version += 1
        for name, node in cluster.nodes.items():
            address = self._reach.place(node)
            known = self._nodes.get(name)
            if known is None:
                self._nodes[name] = watched = _Watched(Sighting(name, address))
                watched.task = asyncio.create_task(self._watch(watched))
                self.version += 1
            elif known.sighting.address != address:
                known.sighting = replace(known.sighting, address=address)
                self.version += 1

    # What they say

    async def _watch(self, watched: _Watched) -> None:
        """Ask one node, again and again."""
        while True:
            before = watched.sighting
            try:
                summary = await self._ask(before.address, "summary")
                heard = _heard(watched.sighting, summary, time.time())
                mesh_view([heard], self.mesh_name)  # whatever a page cannot show has to show here
                watched.sighting = heard
            except StatusApiError as error:
                watched.sighting = replace(watched.sighting, failure=str(error), rx_rate=0.0, tx_rate=0.0)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                log.debug("%s cannot be understood: %r", before.name, error)
                watched.sighting = replace(watched.sighting, failure="its agent is of another version, and cannot be understood")
            self.version += _is_news(before, watched.sighting)
            await asyncio.sleep(max(ASK_SECONDS, len(self._nodes) / MOST_ASKED))

    async def _ask(self, address: str | None, what: str) -> Any:
        """The answer of the status API at an address. Raises StatusApiError."""
        if address is None:
            raise StatusApiError("the node has no address")
        assert self._session is not None
        headers = {"Authorization": f"Bearer {read_token(self._reach.token).decode(errors='replace')}"}
        url = f"{self._reach.url(address)}/v1/{what}"
        tls = self._reach.tls
        name = SERVER_NAME if tls else None
        try:
            async with self._session.get(
                url, headers=headers, ssl=tls or True, server_hostname=name, allow_redirects=False
            ) as answer:
                body = await answer.content.read(LARGEST_ANSWER)
                while not answer.content.at_eof() and len(body) < LARGEST_ANSWER:
                    body += await answer.content.read(LARGEST_ANSWER - len(body))
                return _understood(answer.status, body)
        except TimeoutError:
            raise StatusApiError(f"no answer within {ANSWER_SECONDS:.0f} s") from None
        except aiohttp.ClientConnectorCertificateError:
            raise StatusApiError("its certificate is none that --agents-ca vouches for") from None
        except aiohttp.ClientConnectorError as error:
            raise StatusApiError(f"nobody answers on port {self._reach.port}: {error.os_error.strerror or error}") from None
        except aiohttp.ClientError as error:
            raise StatusApiError(f"no answer: {error}") from None

    async def _sample(self) -> None:
        """Note throughput."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now = time.time()
            for watched in self._nodes.values():
                watched.points.append((now, watched.sighting.rx_rate, watched.sighting.tx_rate))
            rates = [(one.rx_rate, one.tx_rate) for one in self.sightings]
            self.points.append((now, sum(received for received, _ in rates), sum(sent for _, sent in rates)))


_STATUSES = MappingProxyType(
    {
        401: "it has another token: give --agents-token the file with the agents' token",
        404: "what answers there is no status API of an agent",
        503: "its agent has not looked at the node yet",
    }
)


def _understood(status: int, body: bytes) -> Any:
    """What an answer says. Raises StatusApiError."""
    if status != 200:
        raise StatusApiError(_STATUSES.get(status, f"it answers with status {status}"))
    try:
        return json.loads(body)
    except ValueError:
        raise StatusApiError("what answers there is no status API of an agent") from None


def _heard(before: Sighting, summary: Mapping[str, Any], now: float) -> Sighting:
    """The node, now that its agent has said this. Rates are those since it last spoke; a counter that began anew has none.
    Raises anything if it is no summary."""
    if summary["format"] != FORMAT:
        raise ValueError("a summary of another version of wgpy")
    rates = [0.0, 0.0]
    if before.summary is not None and (seconds := summary["at"] - before.summary["at"]) > 0:
        for index, name in enumerate(("rx_bytes", "tx_bytes")):
            old, new = (sum(family[name] for family in one["families"]) for one in (before.summary, summary))
            rates[index] = max(new - old, 0) / seconds
    return replace(before, summary=summary, heard_at=now, failure=None, rx_rate=rates[0], tx_rate=rates[1])


def _is_news(before: Sighting, after: Sighting) -> bool:
    """Whether more has changed than counters and times."""
    return before.failure != after.failure or _steady(before.summary) != _steady(after.summary)


_COUNTERS = ("handshakes", "oldest_handshake", "rx_bytes", "tx_bytes", "refused_packets")


def _steady(summary: Mapping[str, Any] | None) -> Any:
    """What does not change with every look."""
    if summary is None:
        return None
    families = [{name: value for name, value in family.items() if name not in _COUNTERS} for family in summary["families"]]
    return {**summary, "at": 0, "families": families}
