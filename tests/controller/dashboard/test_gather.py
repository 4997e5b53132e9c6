"""Gathering: who is there, what they say, and where the token never goes."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web

from controller.dashboard import gather as module
from controller.dashboard.gather import Gatherer, PodsToo, Reach
from controller.dashboard.view import Sighting, State, node_view
from controller.directory import DirectorySource
from controller.model import Node, NodeNetwork
from controller.source import SourceError
from controller.status import AgentStatus
from controller.status_api import StatusApi, StatusApiError, place
from tests.controller.cluster import block, node, text
from tests.controller.dashboard.sightings import NOW, peer, status
from tests.controller.lab import ROOT, WG4, Lab, capture, make_lab, may_make_namespaces
from tests.controller.test_status_api import make_certificate

TOKEN = "agents know this token"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)


def put(cluster: Path, name: str, address: str) -> None:
    (cluster / f"{name}.yaml").write_text(text(node(name, f"{address}/8")))


@asynccontextmanager
async def gathering(cluster: Path, reach: Reach) -> AsyncIterator[Gatherer]:
    mesh = PodsToo()
    gatherer = Gatherer(lambda: DirectorySource(cluster, mesh, 0.02), mesh, reach)
    task = asyncio.create_task(gatherer.run())
    try:
        yield gatherer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert gatherer.sightings == [], "nobody is asked any more"


@asynccontextmanager
async def agent(address: str, token: Path, says: Callable[[], AgentStatus | None], **tls: Path) -> AsyncIterator[int]:
    """An agent's status API; its port."""

    async def current() -> AgentStatus | None:
        return says()

    api = StatusApi(place(f"{address}:0", token, tls.get("certificate"), tls.get("key")), current, token.parent)
    await api.start()
    assert api.address is not None
    try:
        yield api.address[1]
    finally:
        await api.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def sighting(gatherer: Gatherer, name: str) -> Sighting:
    return next((one for one in gatherer.sightings if one.name == name), Sighting(""))


async def test_who_joins_is_asked_and_who_leaves_is_forgotten(cluster: Path, token: Path) -> None:
    async with agent("127.0.0.1", token, lambda: status("a", peer("b"))) as port:
        async with gathering(cluster, Reach.make(port, token, None, None)) as gatherer:
            await until(lambda: gatherer.is_listed)
            assert gatherer.sightings == [] and gatherer.source_failure is None
            before = gatherer.version
            put(cluster, "a", "127.0.0.1")
            await until(lambda: sighting(gatherer, "a").summary)
            assert gatherer.version > before and node_view(sighting(gatherer, "a")).state is State.ENCRYPTED
            (cluster / "a.yaml").unlink()
            await until(lambda: not gatherer.sightings)


async def test_counters_are_no_news_but_a_peer_that_falls_silent_is(cluster: Path, token: Path) -> None:
    said = [status("a", peer("b", rx_bytes=0, tx_bytes=0))]
    async with agent("127.0.0.1", token, lambda: said[0]) as port:
        put(cluster, "a", "127.0.0.1")
        async with gathering(cluster, Reach.make(port, token, None, None)) as gatherer:
            await until(lambda: sighting(gatherer, "a").summary)
            version = gatherer.version
            said[0] = replace(status("a", peer("b", rx_bytes=3000, tx_bytes=500)), at=NOW + 2)
            await until(lambda: sighting(gatherer, "a").rx_rate == 1500)
            assert sighting(gatherer, "a").tx_rate == 250 and gatherer.version == version
            await until(lambda: any(received for _, received, _ in gatherer.points))
            said[0] = replace(status("a", peer("b", is_silent=True)), at=NOW + 3)
            await until(lambda: gatherer.version > version)
            assert sighting(gatherer, "a").rx_rate == 0, "a counter that began anew has no rate"


async def test_an_agent_that_is_lost_is_remembered_and_found_again(cluster: Path, token: Path) -> None:
    put(cluster, "a", "127.0.0.1")
    answers = [True]
    async with agent("127.0.0.1", token, lambda: status("a", peer("b")) if answers[0] else None) as port:
        async with gathering(cluster, Reach.make(port, token, None, None)) as gatherer:
            await until(lambda: sighting(gatherer, "a").summary)
            answers[0] = False
            await until(lambda: sighting(gatherer, "a").failure)
            assert node_view(sighting(gatherer, "a")).state is State.LOST and sighting(gatherer, "a").summary
            answers[0] = True
            await until(lambda: not sighting(gatherer, "a").failure)


async def test_the_details_of_a_node(cluster: Path, token: Path) -> None:
    put(cluster, "a", "127.0.0.1")
    made = block("10.0.0.0/30", "a", {"10.0.0.1": "a"})
    made["spec"]["attributes"][0]["secondary"] |= {"pod": "web", "namespace": "shop"}
    (cluster / "block.yaml").write_text(text(made))
    async with agent("127.0.0.1", token, lambda: status("a", peer("b"))) as port:
        async with gathering(cluster, Reach.make(port, token, None, None)) as gatherer:
            await until(lambda: sighting(gatherer, "a").summary)
            found, told = await gatherer.details("a")
            assert found["families"][0]["peers"][0]["name"] == "b" and told == []
            assert gatherer.pods == {"a": [("10.0.0.1", "shop/web")]} and gatherer.pods is gatherer.pods
            with pytest.raises(StatusApiError, match="no node z"):
                await gatherer.details("z")


async def test_a_cluster_that_cannot_be_read_is_said_and_tried_again(token: Path) -> None:
    attempts = []

    def refuse() -> DirectorySource:
        attempts.append(1)
        raise SourceError("the API server refuses")

    gatherer = Gatherer(refuse, PodsToo(), Reach.make(1, token, None, None))
    task = asyncio.create_task(gatherer.run())
    await until(lambda: len(attempts) > 2)
    assert gatherer.source_failure == "the API server refuses" and not gatherer.is_listed
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# What does not answer as it ought to


async def failure(cluster: Path, reach: Reach) -> str:
    """Why the node at 127.0.0.1 is not known."""
    put(cluster, "a", "127.0.0.1")
    async with gathering(cluster, reach) as gatherer:
        await until(lambda: sighting(gatherer, "a").failure)
        return sighting(gatherer, "a").failure or ""


async def test_nobody_there(cluster: Path, token: Path) -> None:
    assert "nobody answers on port 1:" in await failure(cluster, Reach.make(1, token, None, None))


async def test_another_token(cluster: Path, token: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("a token of somebody else")
    async with agent("127.0.0.1", other, lambda: status("a")) as port:
        assert "--agents-token" in await failure(cluster, Reach.make(port, token, None, None))


async def test_where_an_agent_sends_it_on_to_nobody_is_asked(cluster: Path, token: Path) -> None:
    """Somebody who has taken over a node cannot have the dashboard's host ask others for them."""
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text="{}")

    async def send_on(_: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    application = web.Application()
    application.router.add_get("/v1/summary", send_on)
    application.router.add_get("/elsewhere", elsewhere)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        assert "status 302" in await failure(cluster, Reach.make(runner.addresses[0][1], token, None, None))
    finally:
        await runner.cleanup()
    assert asked == []


@pytest.mark.parametrize("body", ["<html>", "[]", '{"at": 1}', '{"families": 1, "at": 0}', "7", '{"format": 1}', '{"format": 2}'])
async def test_something_else_that_answers(cluster: Path, token: Path, body: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body)

    application = web.Application()
    application.router.add_get("/v1/summary", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        said = await failure(cluster, Reach.make(runner.addresses[0][1], token, None, None))
    finally:
        await runner.cleanup()
    assert "no status API" in said or "cannot be understood" in said, json.dumps(said)


# Where the token goes


async def test_by_tls_to_who_is_vouched_for(cluster: Path, token: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "ours")
    other, _ = make_certificate(tmp_path, "other")
    put(cluster, "a", "127.0.0.1")
    async with agent("127.0.0.1", token, lambda: status("a"), certificate=certificate, key=key) as port:
        async with gathering(cluster, Reach.make(port, token, certificate, None)) as gatherer:
            await until(lambda: sighting(gatherer, "a").summary)
        assert "vouches" in await failure(cluster, Reach.make(port, token, other, None))


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "169.254.1.1"])
def test_never_in_clear(token: Path, address: str) -> None:
    with pytest.raises(StatusApiError, match="in clear"):
        Reach(9590, token).url(address)


def test_how_agents_are_reached(token: Path, tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path, "ours")
    by_tls, in_tunnel = Reach.make(1, token, certificate, None), Reach.make(2, token, None, "lo")
    ipv4 = NodeNetwork(address=ip_address("192.0.2.1"), interface_address=ip_address("10.0.0.1"))
    one = Node("a", ipv4)
    other = Node("b", NodeNetwork(), NodeNetwork(address=ip_address("2001:db8::1")))

    assert by_tls.place(one) == "192.0.2.1" and by_tls.url("192.0.2.1") == "https://192.0.2.1:1"
    assert in_tunnel.place(one) == "10.0.0.1" and in_tunnel.url("10.0.0.1") == "http://10.0.0.1:2"
    assert by_tls.place(other) == "2001:db8::1" and by_tls.url("2001:db8::1") == "https://[2001:db8::1]:1"
    assert in_tunnel.place(other) == "2001:db8::1", "nodes may be in the tunnel themselves; if not, nothing is sent"
    assert Reach(3, token).url("::1") == "http://[::1]:3" and by_tls.place(Node("c")) is None


def test_files_that_are_not_there_are_named(token: Path, tmp_path: Path) -> None:
    with pytest.raises(StatusApiError, match="cannot read the token"):
        Reach.make(1, tmp_path / "none", None, None)
    with pytest.raises(StatusApiError, match="no interface wg-none here"):
        Reach.make(1, token, None, "wg-none")
    with pytest.raises(StatusApiError, match="cannot read certificates"):
        Reach.make(1, token, tmp_path / "none", None)


@pytest.mark.e2e
def test_which_address_is_our_own_is_not_asked_of_bind() -> None:
    """With ip_nonlocal_bind one may bind to any: then the token would have gone anywhere, and past the tunnel."""
    if not may_make_namespaces():
        pytest.skip("needs root, to make network namespaces")
    script = """
import socket
from controller.dashboard.gather import _is_own
for address in ("192.0.2.1", "192.0.2.2", "198.51.100.1", "127.0.0.2"):
    print(address, _is_own(socket.AF_INET, address))
for address in ("fd00::1", "fd00::2", "2001:db8::1", "::1"):
    print(address, _is_own(socket.AF_INET6, address))
"""
    commands = f"""
        sysctl -qw net.ipv4.ip_nonlocal_bind=1 net.ipv6.ip_nonlocal_bind=1
        ip link set lo up
        ip link add one type veth peer name two
        ip addr add 192.0.2.1/24 dev one
        ip addr add fd00::1/64 dev one nodad
        ip link set one up
        ip link set two up
        ip route add default via 192.0.2.2
        while ! ip -6 route show table local | grep -q ^local.fd00::1; do sleep 0.01; done
        exec {sys.executable} -c "$0"
    """
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", commands, script], capture_output=True, text=True, cwd=ROOT, timeout=60
    )

    own = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" True")}
    assert own == {"192.0.2.1", "127.0.0.2", "fd00::1", "::1"} and done.stdout.count("\n") == 8, done.stderr


# Real agents

GATHER = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from controller.dashboard.gather import Gatherer, PodsToo, Reach
from controller.directory import DirectorySource

async def main():
    mesh = PodsToo()
    reach = Reach.make(9590, Path(sys.argv[2]), None, sys.argv[3])
    gatherer = Gatherer(lambda: DirectorySource(Path(sys.argv[1]), mesh), mesh, reach)
    task = asyncio.create_task(gatherer.run())
    async with asyncio.timeout(20):
        while len([one for one in gatherer.sightings if one.summary and not one.failure]) < 2:
            await asyncio.sleep(0.05)
        status, _ = await gatherer.details("n2")
    print(json.dumps([[dataclasses.asdict(one) for one in gatherer.sightings], status]))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

asyncio.run(main())
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if not may_make_namespaces():
        pytest.skip("needs root, to make network namespaces")
    (tmp_path / "lab").mkdir()
    with make_lab(tmp_path / "lab", []) as made:
        yield made


@pytest.mark.e2e
@pytest.mark.slow
def test_what_real_agents_say_in_the_tunnel_is_what_wg_shows(lab: Lab, token: Path) -> None:
    lab.felix()
    for number in (1, 2):
        lab.add_node(number)
    for number in (1, 2):
        lab.nodes[number].start_agent("--status-api", "tunnel:9590", "--status-token", str(token))
    lab.until_settled(1, 2)
    lab.until(lambda: lab.nodes[1].ping("10.42.2.0"), "n1 reaches n2")

    words = lab.nodes[1].command(sys.executable, "-c", GATHER, str(lab.directory.path), str(token), WG4)
    # Even where a route leads past the tunnel, the token does not take it.
    inside = lab.node_manifest("n2")["metadata"]["annotations"]["projectcalico.org/IPv4WireguardInterfaceAddr"]
    lab.nodes[1].run("ip", "rule", "add", "pref", "5", "to", inside, "lookup", "77")
    lab.nodes[1].run("ip", "route", "add", inside, "via", "192.0.2.2", "table", "77")
    with capture(lab.nodes[1], "tcp port 9590") as packets:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
        in_clear = packets()

    assert done.returncode == 0, done.stderr
    assert in_clear == []
    sightings, status = json.loads(done.stdout)
    assert {one["name"]: node_view(Sighting(**one)).state for one in sightings} == {"n1": State.ENCRYPTED, "n2": State.ENCRYPTED}
    (peer_of_n2,) = status["families"][0]["peers"]
    (shown,) = lab.nodes[2].peers().values()
    assert peer_of_n2["name"] == "n1" and peer_of_n2["public_key"] == lab.nodes[1].key()
    assert peer_of_n2["endpoint"] == shown["endpoint"]
    assert {*peer_of_n2["ranges"], "192.0.2.1/32"} == set(shown["allowed"].split())  # and n1 itself
    _, received, sent = lab.nodes[2].run("wg", "show", WG4, "transfer").split()
    assert 0 < peer_of_n2["rx_bytes"] <= int(received) and 0 < peer_of_n2["tx_bytes"] <= int(sent)
