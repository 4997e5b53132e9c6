"""How an agent starts, and what ends it: with a source and instances that do what they are told, so without a kernel."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from controller.agent import Agent, AgentError, Options
from controller.findings import Facts
from controller.instance import Report, Rest
from controller.meshes.calico import Calico
from controller.model import Cluster, Family
from controller.netlink import NetlinkRefusal
from controller.nftables import NftablesRefusal
from controller.source import Event, Health, Manifest, Objects, Ref, SourceError, SourceUnavailable
from controller.statefiles import StateFiles
from controller.status import HAS_LEFT, Seen
from tests.controller.cluster import felix, node, objects
from wgpy.wgconf import format_key

KEY = bytes(range(32))
OWN = Ref("Node", "n1")


class Api:
    """A source that answers after a while. ``refusal``: what it says to who writes."""

    name = "fake"

    def __init__(self, found: Objects, seconds: float = 0.05, refusal: SourceError | None = None) -> None:
        self.found, self.seconds, self.refusal = found, seconds, refusal
        self.written: list[Mapping[str, str | None]] = []

    async def list(self) -> Objects:
        await asyncio.sleep(self.seconds)
        return self.found

    async def changed(self) -> Objects:
        await asyncio.Event().wait()
        raise AssertionError

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.written.append(annotations)

    async def tell(self, node: str, event: Event) -> None: ...

    async def merge_status(self, node: str, patch: Manifest) -> None: ...

    def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...

    def locate(self, ref: Ref, path: Any) -> str:
        return str(ref)


class Member:
    """An instance that notes what is asked of it, and fails where ``failing`` says."""

    family = Family.IPV4
    links = frozenset[str]()
    guard = ""
    external_refusals = ()

    def __init__(self, rests: Rest | None = None, **failing: Exception) -> None:
        self.asked: list[str] = []
        self.rests = rests
        self.failing = failing

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.failing:
            raise self.failing[what]

    def interface(self, cluster: Cluster) -> str:
        return "wireguard.caliu"

    def rest(self, cluster: Cluster) -> Rest | None:
        return self.rests if cluster.felix.ipv4.enabled else Rest("not enabled", is_expected=True)

    def refuse(self, cluster: Cluster) -> None:
        self._note("refuse")

    def reconcile(self, cluster: Cluster) -> Report:
        self._note("reconcile")
        return Report(KEY, "wireguard.caliu", 1440, can_receive=True)

    def disable(self, cluster: Cluster) -> None:
        self._note("disable")

    def stop_sending(self, cluster: Cluster) -> None:
        self._note("stop_sending")

    def seen(self, cluster: Cluster) -> Seen:
        return Seen(at=time.time())

    def facts(self, cluster: Cluster) -> Facts:
        self._note("facts")
        return Facts(5182, 0x1000, "wireguard.caliu")

    def snapshot(self, cluster: Cluster) -> None: ...

    def received_bytes(self, cluster: Cluster) -> int:
        return 0

    def settle(self) -> None: ...

    def undo(self) -> None: ...


def cluster_of(**spec: Any) -> Objects:
    return objects(felix(**({"wireguardEnabled": True} | spec)), node("n1", "192.0.2.1/24"))


def agent_of(path: Path, source: Api, member: Member, remembered: Objects | None = None, is_strict: bool = True) -> Agent:
    files = StateFiles(path)
    if remembered is not None:
        files.save_objects(remembered)
    options = Options(remembers=True, is_strict=is_strict)
    return Agent(source, Calico("n1"), "n1", [member], files, options)  # type: ignore[list-item]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def runs(agent: Agent, condition: Callable[[], object] = lambda: False) -> None:
    """Let it run until something has happened; raises what it ends with."""
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    try:
        await until(lambda: running.done() or condition())
    finally:
        stop.set()
        await running


@pytest.mark.parametrize(
    "remembered",
    [{ref: each for ref, each in cluster_of().items() if ref != OWN}, cluster_of(wireguardListeningPort="x"), {}],
    ids=["own Node missing", "bad configuration", "nothing"],
)
async def test_remembered_objects_that_will_not_do_keep_nobody_from_asking_the_source(
    tmp_path: Path, remembered: Objects
) -> None:
    member = Member()

    await runs(agent_of(tmp_path, Api(cluster_of()), member, remembered), lambda: "reconcile" in member.asked)


async def test_a_source_that_is_back_is_gone_by_at_once_however_long_it_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause between two attempts is half a minute by then."""

    class Away(Api):
        async def list(self) -> Objects:
            raise SourceUnavailable("nobody answers")

        async def changed(self) -> Objects:
            await asyncio.sleep(0.05)
            return self.found

    monkeypatch.setattr("controller.agent.LIST_SECONDS", 0.01)
    monkeypatch.setattr("controller.agent.SHORTEST_RETRY_SECONDS", 30.0)
    api = Away(cluster_of())

    # The key is published, for the cluster says that WireGuard is on.
    await runs(agent_of(tmp_path, api, Member(), cluster_of(wireguardEnabled=False)), lambda: api.written)


async def test_nothing_is_taken_back_on_the_word_of_remembered_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.agent.LIST_SECONDS", 0.01)
    member, source = Member(), Api(cluster_of(), seconds=0.3)

    await runs(agent_of(tmp_path, source, member, cluster_of(wireguardEnabled=False)), lambda: "reconcile" in member.asked)

    assert "facts" in member.asked[: member.asked.index("reconcile")], "there was a pass by what is remembered"
    assert "disable" not in member.asked


async def test_what_the_source_itself_says_is_off_is_taken_back(tmp_path: Path) -> None:
    off = cluster_of(wireguardEnabled=False)
    member = Member()

    await runs(agent_of(tmp_path, Api(off, seconds=0.2), member, off), lambda: "disable" in member.asked)


async def test_a_firewall_that_will_not_is_one_line_at_the_start(tmp_path: Path) -> None:
    member = Member(reconcile=NftablesRefusal("there is no nft on this host"))

    with pytest.raises(AgentError, match="there is no nft"):
        await runs(agent_of(tmp_path, Api(cluster_of()), member))


async def test_a_firewall_that_fails_later_ends_nothing(tmp_path: Path) -> None:
    member = Member()
    agent = agent_of(tmp_path, Api(cluster_of()), member)

    async def fail() -> None:
        await until(lambda: "facts" in member.asked)  # the first pass is over
        member.failing["reconcile"] = NftablesRefusal("nft: no memory")
        agent._wake.set()

    await asyncio.gather(runs(agent, lambda: member.asked.count("reconcile") >= 3), fail())  # and it is tried again


async def test_a_report_that_fails_ends_nothing(tmp_path: Path) -> None:
    member = Member(facts=NetlinkRefusal(5, "read addresses"))

    await runs(agent_of(tmp_path, Api(cluster_of()), member), lambda: "facts" in member.asked)


async def test_strict_mode_refuses_in_all_families_before_anything_else(tmp_path: Path) -> None:
    first, second = Member(reconcile=NetlinkRefusal(5, "use interface")), Member()
    agent = Agent(Api(cluster_of()), Calico("n1"), "n1", [first, second], StateFiles(tmp_path), Options(is_strict=True))  # type: ignore[list-item]

    with pytest.raises(AgentError):
        await runs(agent)

    assert first.asked[0] == "refuse" and second.asked == ["refuse"]


async def test_a_key_that_cannot_be_withdrawn_does_not_keep_packets_in_the_tunnel(tmp_path: Path) -> None:
    keyed = node("n1", "192.0.2.1/24", {"projectcalico.org/WireguardPublicKey": format_key(KEY)})
    source = Api({**cluster_of(wireguardEnabled=False), **objects(keyed)}, refusal=SourceUnavailable("503"))
    member = Member()

    await runs(agent_of(tmp_path, source, member, is_strict=False), lambda: member.asked.count("stop_sending") > 1)

    assert "disable" not in member.asked  # what still comes is received


@pytest.mark.parametrize("rests", [None, Rest("no address"), Rest("Felix has WireGuard itself here", is_felix=True)])
async def test_who_leaves_takes_back_a_key_of_its_own_and_not_felixs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rests: Rest | None
) -> None:
    """Without its key a node whose kernel has WireGuard would be talked to in clear until Felix puts it back."""
    monkeypatch.setattr("controller.agent.QUIET_SECONDS", 0.0)
    name = "projectcalico.org/WireguardPublicKey"
    source, member = Api({**cluster_of(), **objects(node("n1", "192.0.2.1/24", {name: format_key(KEY)}))}), Member(rests)

    await agent_of(tmp_path, source, member).leave()

    is_left_to_felix = rests is not None and rests.is_felix
    assert [name in written for written in source.written] == ([] if is_left_to_felix else [True])
    assert member.asked == ["stop_sending", "disable"]
    told = {family["family"]: family["rest"] for family in json.loads((tmp_path / "status.json").read_text())["families"]}
    assert told == {4: "Felix has WireGuard itself here" if is_left_to_felix else HAS_LEFT, 6: HAS_LEFT}
