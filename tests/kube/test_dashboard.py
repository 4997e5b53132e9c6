"""The dashboard's gatherer on a real API server: who is there, who joins, who leaves, and the pods."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from controller.dashboard.gather import Gatherer, PodsToo, Reach
from controller.dashboard.view import State, node_view
from controller.kube import KubernetesSource
from controller.status import AgentStatus
from controller.status_api import StatusApi, place
from tests.controller.cluster import block, node
from tests.controller.dashboard.sightings import peer, status
from tests.kube.test_source import classic, clear
from tests.kube.testbed import Testbed
from tests.promises import Promises


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_nodes_that_join_and_leave_are_known_at_once(kube: Testbed, tmp_path: Path, promises: Promises) -> None:
    token = tmp_path / "token"
    token.write_text("agents know this token")

    async def says() -> AgentStatus:
        return status("d1", peer("d2"))

    api = StatusApi(place("127.0.0.1:0", token, None, None), says, tmp_path)
    await api.start()
    assert api.address is not None
    made = block("10.9.0.0/30", "d1", {"10.9.0.1": "d1"})
    made["spec"]["attributes"][0]["secondary"] |= {"pod": "web", "namespace": "shop"}
    kube.apply(classic(made))
    kube.apply(node("d1", "127.0.0.1/8"))
    mesh = PodsToo()
    gatherer = Gatherer(lambda: KubernetesSource(mesh, kube.kubeconfig), mesh, Reach.make(api.address[1], token, None, None))
    task = asyncio.create_task(gatherer.run())
    try:
        await until(lambda: [one.name for one in gatherer.sightings if one.summary] == ["d1"])
        assert node_view(gatherer.sightings[0]).state is State.ENCRYPTED and gatherer.source_failure is None
        assert gatherer.pods == {"d1": [("10.9.0.1", "shop/web")]}
        began = time.monotonic()
        await asyncio.to_thread(kube.apply, node("d2", "127.0.0.1/8"))
        await until(lambda: len(gatherer.sightings) == 2)
        promises.judge("a new Node to the dashboard's server", time.monotonic() - began, 2.0)
        await asyncio.to_thread(kube.delete, "Node", "d2", "v1")
        await until(lambda: len(gatherer.sightings) == 1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.stop()
        await asyncio.to_thread(clear, kube)
