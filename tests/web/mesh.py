"""A mesh for the browser tests: a cluster in a directory, and the status API of each node on a loopback address of its own.

The APIs are the agents' own (:mod:`controller.status_api`); only the statuses are made up, and change when a test says so.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controller.entries import Kind, entry
from controller.findings import Finding
from controller.history import History
from controller.model import Family
from controller.status import AgentStatus, FamilyStatus, LeakStatus, PeerStatus, SourceStatus, Traffic
from controller.status_api import StatusApi, place
from tests.controller.cluster import block, felix, node, text

TOKEN = "agents-know-this-token"


def address(number: int) -> str:
    """Loopback addresses have room for all."""
    return f"127.77.{number // 250}.{number % 250 + 1}"


def name(number: int) -> str:
    return f"node-{number}"


@dataclass(slots=True)
class Agent:
    """What one agent says. ``odd`` are the peers that are not simply encrypted."""

    number: int
    odd: dict[str, PeerStatus] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    rest: str | None = None
    leaks: LeakStatus | None = None
    api: StatusApi | None = None
    peers: tuple[PeerStatus, ...] = ()


class FakeMesh:
    """``numbers`` are the nodes it begins with; each of ``with_agents`` has an agent (default: all)."""

    def __init__(self, path: Path, numbers: range, port: int) -> None:
        self.directory = path / "cluster"
        self.directory.mkdir()
        self.token = path / "agents-token"
        self.token.write_text(TOKEN)
        self.port = port
        self.path = path
        self.agents: dict[int, Agent] = {}
        self.began = time.time()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._put("felix", felix(wireguardEnabled=True))
        for number in numbers:
            self.add(number, settle=False)
        self.settle()

    def add(self, number: int, settle: bool = True, with_agent: bool = True) -> None:
        """A node joins, with an agent."""
        pods = {f"10.{100 + number // 250}.{number % 250}.{host}": f"web-{number}-{host}" for host in (5, 6)}
        made = block(f"10.{100 + number // 250}.{number % 250}.0/26", name(number))
        made["spec"]["allocations"][5:7] = [0, 1]
        made["spec"]["attributes"] = [
            {"secondary": {"node": name(number), "namespace": "shop", "pod": pod}} for pod in pods.values()
        ]
        if with_agent:
            self.agents[number] = Agent(number)
            self.start_agent(number)
        if settle:
            self.settle()
        self._put(f"block-{number}", made)
        self._put(name(number), node(name(number), f"{address(number)}/8"))

    def remove(self, number: int) -> None:
        self.stop_agent(number)
        del self.agents[number]
        (self.directory / f"{name(number)}.yaml").unlink()
        self.settle()

    def settle(self) -> None:
        """Have all agents know all nodes."""
        everybody = [
            PeerStatus(
                name(number),
                Traffic.ENCRYPTED,
                public_key="A" * 42 + "0=",
                endpoint=f"{address(number)}:51820",
                ranges=(f"10.{100 + number // 250}.{number % 250}.0/26",),
                last_handshake=self.began - 7 * (number % 25),
                rx_bytes=1_000_000,
                tx_bytes=2_000_000,
            )
            for number in self.agents
        ]
        for agent in self.agents.values():
            agent.peers = tuple(agent.odd.get(peer.name, peer) for peer in everybody if peer.name != name(agent.number))

    def start_agent(self, number: int) -> None:
        directory = self.path / name(number)
        directory.mkdir(exist_ok=True)
        History(directory).write([entry(self.began, Kind.AGENT_STARTED, node=name(number)), entry(self.began, Kind.STRICT_ON)])

        async def status() -> AgentStatus | None:
            return self.status(number)

        self.agents[number].api = api = StatusApi(
            place(f"{address(number)}:{self.port}", self.token, None, None), status, directory
        )
        self._run(api.start())

    def stop_agent(self, number: int) -> None:
        api, self.agents[number].api = self.agents[number].api, None
        if api is not None:
            self._run(api.stop())

    def status(self, number: int) -> AgentStatus:
        agent, now = self.agents[number], time.time()
        flowed = int((now - self.began) * 125_000 * (1 + number % 5))  # 1 to 5 Mb/s, all with one peer
        first = [replace(peer, rx_bytes=flowed, tx_bytes=2 * flowed) for peer in agent.peers[:1]]
        family = FamilyStatus(
            Family.IPV4,
            rest=agent.rest,
            public_key="K" * 43 + "=",
            announced="K" * 43 + "=",
            interface="wireguard.caliu",
            interface_address=f"10.99.0.{number % 250}",
            mtu=1440,
            has_data_plane=True,
            peers=(*first, *agent.peers[1:]),
        )
        return AgentStatus(
            at=now,
            node=name(number),
            mesh="calico",
            version="0.1.0",
            source=SourceStatus("directory", is_synced=True),
            is_strict=True,
            passes=3,
            passed_at=now,
            families=(family, FamilyStatus(Family.IPV6, rest="not enabled")),
            findings=agent.findings,
            leaks=agent.leaks,
        )

    def spoil(self) -> None:
        """Have a bit of everything go wrong."""
        numbers = sorted(self.agents)
        first, second, third, fourth = numbers[:4]
        self.agents[first].odd[name(second)] = PeerStatus(name(second), Traffic.CLEAR, "has no public key")
        self.agents[third].odd[name(fourth)] = PeerStatus(name(fourth), Traffic.REFUSED, "has the same key as node-9")
        self.agents[fourth].odd[name(first)] = PeerStatus(name(first), Traffic.ENCRYPTED, is_silent=True, last_handshake=None)
        remedy = "wireguardMTU 1450 does not fit this node's link with MTU 1450: set it to 1390 at most"
        for number in numbers[:3]:
            self.agents[number].findings = (Finding("MtuTooLarge", "IPv4", remedy),)
        self.settle()

    def close(self) -> None:
        for number in list(self.agents):
            self.stop_agent(number)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _put(self, file: str, manifest: dict[str, Any]) -> None:
        aside = self.directory / f".{file}.new"
        aside.write_text(text(manifest))
        aside.rename(self.directory / f"{file}.yaml")

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
