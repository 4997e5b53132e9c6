"""Every data plane that is installed carries packets between two pods, and the laboratory notices when one does not."""

import os
from collections.abc import Iterator

import pytest

from benchmarks.lab import LabError, Shape, Tunnel, lay
from benchmarks.planes import planes
from controller.demo.capture import ETHERNET_HEADER, Capture
from controller.demo.topology import UNDERLAY_MTU, Topology
from tests.e2e.traffic import transfer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and interfaces need root"),
]
PLANES = planes()
MARKER = b"in the clear?!"
ALWAYS = ("veth", "wgpy")
"""Those that need nothing installed."""


@pytest.fixture
def topology() -> Iterator[Topology]:
    with Topology.create() as made:
        yield made


def frames_of_a_ping(topology: Topology, tunnel: Tunnel) -> list[bytes]:
    """What is on the underlay while one pod pings the other with MARKER."""
    first, second = tunnel.ends
    with Capture(topology.underlay.name) as capture:
        for address in second.pod.addresses:
            first.pod.run(["ping", "-nqc1", "-W5", "-p", MARKER.hex(), str(address)])
    return [frame.data for frame in capture.frames]


@pytest.mark.parametrize("name", PLANES)
def test_a_plane_carries_packets_of_the_pods_and_of_the_nodes(topology: Topology, name: str) -> None:
    plane = PLANES[name]
    if name not in ALWAYS and (reason := plane.missing()):
        pytest.skip(reason)

    tunnel = lay(topology, 0, plane, plane, Shape())
    first, second = tunnel.ends
    frames = frames_of_a_ping(topology, tunnel)

    assert plane.version()
    assert tunnel.name == name
    assert frames and any(MARKER in frame for frame in frames) == (name == "veth")
    for version in {address.version for address in second.pod.addresses}:
        first.node.run(["ping", "-nqc1", "-W5", str(second.tunnel_address(version))])
    for end in tunnel.ends:
        assert bool(end.processes) == bool(end.resident_bytes()) == (name not in ("veth", "kernel"))
        assert end.cpu_seconds() >= 0


@pytest.mark.parametrize(("name", "trains"), [("wgpy", True), ("wgpy-without-offload", False)])
def test_what_a_variant_of_wgpy_does_without_is_not_seen_on_the_underlay(topology: Topology, name: str, trains: bool) -> None:
    first, second = lay(topology, 0, PLANES[name], PLANES[name], Shape()).ends

    with Capture(topology.underlay.name) as capture:
        arrived = transfer(first.pod, first.pod.address(4), second.pod, second.pod.address(4), 1 << 20)

    assert arrived.is_intact
    assert any(len(frame.data) > UNDERLAY_MTU + ETHERNET_HEADER for frame in capture.frames) == trains


def test_a_wide_tunnel_over_ipv6_and_a_narrow_one_side_by_side(topology: Topology) -> None:
    wgpy = PLANES["wgpy"]

    wide, narrow = (lay(topology, number, wgpy, wgpy, shape) for number, shape in enumerate((Shape(8920, 6), Shape(1280))))

    assert {end.node.key for end in wide.ends}.isdisjoint(end.node.key for end in narrow.ends)
    wide.check()
    narrow.check()


def test_a_data_plane_that_dies_is_noticed_and_nothing_goes_in_clear(topology: Topology) -> None:
    tunnel = lay(topology, 0, PLANES["wgpy"], PLANES["wgpy"], Shape())
    first, second = tunnel.ends

    first.processes[0].kill()
    first.processes[0].wait()

    with pytest.raises(LabError, match=r"^wgpy on t0n0 ended with status -9: "):
        tunnel.check()
    with pytest.raises(LabError, match="ended with status"):
        first.cpu_seconds()
    assert first.node.egress(second.pod.addresses, source=first.pod) == [None] * len(second.pod.addresses)


def test_a_plane_with_small_buffers_gets_no_wide_tunnel_and_leaves_nothing_behind(topology: Topology) -> None:
    with pytest.raises(LabError, match="gotatun carries packets of at most 4096 bytes, not of 8920"):
        lay(topology, 0, PLANES["gotatun"], PLANES["gotatun"], Shape(8920))

    assert not topology.nodes


def test_two_protocols_are_no_tunnel(topology: Topology) -> None:
    with pytest.raises(LabError, match="veth and wgpy do not speak the same protocol"):
        lay(topology, 0, PLANES["veth"], PLANES["wgpy"], Shape())
