"""Tunnels on kernels that help less: without UDP_SEGMENT, without UDP_GRO, without the offloads of the TUN, without any of it.
``WGPY_WITHOUT`` forces each. The metrics say what is done without, the log says it once, and nothing is lost."""

import re

import pytest

from controller.demo.topology import Node
from tests.e2e.lab import FAMILIES, WGPY, DataPlane, Tunnel, has_interface, ping
from tests.e2e.test_metrics import ADDRESS, get
from tests.e2e.traffic import echoed, echoing, transfer

EVERYTHING = "udp-gso,udp-gro,tun-offload"
TUN_OFFLOADS = {"tun-tso", "tun-uso", "tun-tcp-gro", "tun-udp-gro"}
LOST = {
    "udp-gso": {"udp-gso"},
    "udp-gro": {"udp-gro"},
    "tun-offload": TUN_OFFLOADS,
    EVERYTHING: {"udp-gso", "udp-gro", *TUN_OFFLOADS},
}
"""What WGPY_WITHOUT says, and the offloads that the metrics must show as 0."""
SIZE = 5_000_000


def offloads(node: Node) -> dict[str, float]:
    """The gauge of each kind of help, on a node."""
    return {
        name: float(value) for name, value in re.findall(r'^wgpy_offload{.*offload="(.*?)"} (\S+)$', get(node)[1], re.MULTILINE)
    }


@pytest.mark.parametrize("kinds", [("wgpy", "wgpy"), ("wgpy", "wireguard-go")], ids=lambda kinds: f"{kinds[0]}:{kinds[1]}")
@pytest.mark.parametrize("without", LOST)
def test_traffic_crosses_whole_without(
    without: str, kinds: tuple[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "wireguard-go" in kinds:
        request.getfixturevalue("wireguard_go_path")
    monkeypatch.setenv("WGPY_WITHOUT", without)
    version = FAMILIES[-1]

    with Tunnel.lay(kinds, metrics=f"{ADDRESS[0]}:{ADDRESS[1]}") as tunnel:
        for end, other in tunnel.directions():
            for inner in FAMILIES:
                assert ping(end.pod, other.pod.address(inner), count=1) == 1
            arrived = transfer(end.pod, end.pod.address(4), other.pod, other.pod.address(4), SIZE)
            assert arrived.is_intact
            with echoing(other.pod, other.pod.address(version)) as echo:
                for size in (1, 1372, 20_000):
                    assert echoed(end.pod, end.pod.address(version), echo, size)
        for end in tunnel.ends:
            if end.kind == "wgpy":
                said = offloads(end.node)
                assert {name for name, value in said.items() if value == 0} >= LOST[without]
                assert {name for name in LOST[EVERYTHING] - LOST[without] if not said[name]} <= TUN_OFFLOADS, "an older kernel"
                assert said.keys() == LOST[EVERYTHING]


@pytest.mark.parametrize(
    "words",
    [
        "tso, uso, tcp_gro, udp_gro",
        "UDP_SEGMENT|udp-gso",
        "UDP_GRO|udp-gro",
    ],
)
def test_the_log_says_once_what_is_done_without(node: Node, words: str) -> None:
    plane = DataPlane(node, "wg0", [*WGPY, "run", "wg0"], {"LOG_LEVEL": "info", "WGPY_WITHOUT": EVERYTHING}, keep_log=False)
    plane.wait_until_ready()
    for state in ("up", "down") * 3:  # the sockets are bound anew each time
        node.configure(links=[f"link set wg0 {state}"])
        plane.client.get()

    assert plane.stop() == 0
    assert len(re.findall(words, plane.log.read_text())) == 1


@pytest.mark.parametrize("arguments", [["wg0"], ["-f", "wg0"], ["run", "wg0"], ["run", "wg0", "wg1"]], ids=" ".join)
def test_a_word_that_means_nothing_is_one_line_and_leaves_nothing(node: Node, arguments: list[str]) -> None:
    done = node.run(["env", "WGPY_WITHOUT=udp-gso,gro", "LOG_LEVEL=error", *WGPY, *arguments], check=False)

    assert done.returncode == 1
    lines = (done.stdout + done.stderr).splitlines()
    assert lines
    assert set(lines) == {"wgpy: WGPY_WITHOUT names gro; it knows tun-offload, udp-gro, udp-gso"}
    assert len(lines) == 1 or "wg1" in arguments, "each process may say it"
    assert not has_interface(node, "wg0") and not has_interface(node, "wg1")
    assert list(node.wireguard_directory.iterdir()) == []
