"""An idle daemon sleeps: metrics are served from its loop, timers are lazy, and no thread ticks."""

import os
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from controller.demo.topology import Node
from tests.e2e.lab import DataPlane, wait_for
from wgpy.config import Endpoint, SetDevice, SetPeer

PEERS = 100
SETTLE = 5.0
SECONDS = 60.0
MOST = 2


def voluntary_switches(pid: int) -> int:
    """Of all threads of a process so far: how often one of them had nothing to do, and so was woken later."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@pytest.mark.slow
@pytest.mark.waits
def test_an_idle_daemon_with_a_hundred_peers_and_metrics_hardly_wakes(node: Node, tmp_path: Path) -> None:
    plane = DataPlane.run(node, "--metrics", "127.0.0.1:9586", "--state", str(tmp_path))
    try:
        plane.wait_until_ready()
        peers = [
            SetPeer(os.urandom(32), endpoint=Endpoint("10.77.0.99", 51820), allowed_ips=(ip_network(f"10.43.{i}.0/24"),))
            for i in range(PEERS)
        ]
        plane.client.set([SetDevice(private_key=os.urandom(32), listen_port=51820), *peers])
        node.configure(links=["link set wg0 up"])
        wait_for(lambda: plane.client.get().listen_port == 51820, "the interface is up")
        time.sleep(SETTLE)

        before = voluntary_switches(plane.process.pid)
        time.sleep(SECONDS)
        switches = voluntary_switches(plane.process.pid) - before

        print(f"{switches} voluntary context switches in {SECONDS:g} s")
        assert switches <= MOST
        assert len(plane.client.get().peers) == PEERS
        # It was this process that was looked at: the answer just given counts once it has gone back to sleep.
        wait_for(lambda: voluntary_switches(plane.process.pid) > before + switches, "the daemon sleeps again after an answer")
    finally:
        plane.stop()
