"""A cluster without any data plane: its objects, its clear path and its promises. Needs root and namespaces."""

import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
import yaml

from controller.demo.capture import Verdict
from controller.demo.cluster import MAX_NODES, PODS_PER_NODE, POOL, Cluster, ClusterError, DataPlane, _block
from controller.demo.command import missing
from controller.demo.topology import Topology
from controller.demo.traffic import PINGS, Probe, ping_all

needs_machine = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Topology.create() as topology:
        cluster = Cluster(topology, (4,), wireguard_go=None)
        cluster.join(DataPlane.NONE)
        cluster.join(DataPlane.NONE)
        yield cluster


def test_blocks_lie_in_their_pool_and_apart() -> None:
    for pool in POOL.values():
        blocks = [_block(pool, 4 * number + extra) for number in range(1, MAX_NODES + 2) for extra in (0, 1)]
        assert all(block.subnet_of(pool) and block.num_addresses == 64 for block in blocks)  # type: ignore[arg-type]
        assert len(set(blocks)) == len(blocks)
    assert _block(POOL[4], 5) == ip_network("10.42.1.64/26")
    assert _block(POOL[6], 5) == ip_network("fd42::140/122")


@pytest.mark.e2e
@needs_machine
def test_every_object_is_written_and_deleted_with_its_node(cluster: Cluster) -> None:
    first, second = cluster.members

    cluster.leave(second)

    names = sorted(path.name for path in cluster.directory.glob("**/*.yaml"))
    assert not [name for name in names if "n2" in name or "10-42-2-0" in name]
    assert len([name for name in names if "n1" in name]) == 1 + PODS_PER_NODE
    assert cluster.members == [first]


@pytest.mark.e2e
@needs_machine
def test_without_data_planes_everything_is_promised_in_clear_and_the_mesh_is_settled(cluster: Cluster) -> None:
    one, two = cluster.members

    assert cluster.promised(one, two) is Verdict.CLEAR
    assert cluster.promised(one, one) is Verdict.NOTHING
    cluster.settle(10.0)
    assert cluster.mesh() == []
    assert ping_all([Probe(one.pods[0], two.pods[0], 4, b"wgpy")]) == [PINGS]


@pytest.mark.e2e
@needs_machine
def test_a_pod_moves_with_its_block_and_the_block_says_so(cluster: Cluster) -> None:
    one, two = cluster.members
    cluster.add_blocks(one, ["wanderer"], extra=1)

    moved = cluster.move_blocks(one.node.pods["wanderer"], two)

    block, pod = (
        yaml.safe_load((cluster.directory / name).read_text()) for name in ("ipamblock-10-42-1-64-26.yaml", "pod-wanderer.yaml")
    )
    assert block["spec"]["affinity"] == "host:n2"
    assert [owner["secondary"]["node"] for owner in block["spec"]["attributes"]] == ["n2"]
    assert pod["spec"]["nodeName"] == "n2"
    assert ping_all([Probe(one.pods[0], moved, 4, b"wgpy")]) == [PINGS]


@pytest.mark.e2e
@needs_machine
def test_a_mesh_that_does_not_settle_says_what_is_missing(cluster: Cluster) -> None:
    one, two = cluster.members
    cluster.topology.withdraw(ip_network("10.42.2.0/26"))
    one.node.run(["ip", "route", "add", "blackhole", "10.42.2.0/26"])

    with pytest.raises(ClusterError, match=r"^not settled after 0 s: n1 sends to n2-a by None over IPv4, and not by eth0$"):
        cluster.settle(0.2)
    assert two in cluster.members


@pytest.mark.e2e
@needs_machine
def test_who_enters_a_kept_node_need_not_say_where_cluster_and_agent_are(cluster: Cluster) -> None:
    enter = [*cluster.keep().split(), "n1"]

    def wgpy(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*enter, "wgpy", *words], capture_output=True, text=True, timeout=60, check=False)

    drawn = wgpy("mesh", "graph", "--format", "dot")
    assert drawn.returncode == 0 and '"n1" -- "n2"' in drawn.stdout and "penwidth=3" in drawn.stdout
    asked = wgpy("mesh")
    assert asked.returncode == 1 and asked.stderr.startswith(f"wgpy mesh: {cluster.topology.directory}/n1/agent/status.json")
    examined = json.loads(wgpy("doctor", "--passive", "--output", "json").stdout)
    assert examined["node"] == "n1" and "NoSuchNode" not in str(examined) and "ClusterAway" not in str(examined)
    assert wgpy("genkey").returncode == 0
