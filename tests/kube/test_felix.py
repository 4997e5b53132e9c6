"""The stand-in for Felix does what Felix does: two of them make a mesh, with everything where calico.md 4 has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.controller.lab import Node, may_make_namespaces
from tests.kube.lab import KubeLab, make_kube_lab
from tests.kube.testbed import Testbed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

NAMES = {4: "wireguard.cali", 6: "wg-v6.cali"}
BLOCKS = {4: "10.42.{}.0/26", 6: "fd00:42:{}::/122"}


@pytest.fixture
def two(kube: Testbed, tmp_path: Path) -> Iterator[KubeLab]:
    """n1 and n2 have WireGuard, n3 is a plain node."""
    with make_kube_lab(tmp_path, kube, "hf", wireguardEnabled=True, wireguardEnabledV6=True) as lab:
        for number in (1, 2, 3):
            lab.add_node(number)
        lab.start_allocator(1, 2)
        lab.start_felix(1)
        lab.start_felix(2)
        yield lab


def table(node: Node, version: int) -> dict[str, str]:
    """Table 1: prefix -> where to."""
    found = {}
    for line in node.run("ip", f"-{version}", "route", "show", "table", "1", check=False).splitlines():
        words = line.split()
        found[words[1] if words[0] == "throw" else words[0]] = "throw" if words[0] == "throw" else words[words.index("dev") + 1]
    return found


def addresses(node: Node, version: int) -> list[str]:
    """Those of its device, without the link's own."""
    return (
        [each for each in node.link(NAMES[version])[2] if not each.startswith("fe80")] if NAMES[version] in node.links() else []
    )


def is_meshed(here: Node, there: int, plain: int, version: int) -> bool:
    wanted: dict[str, Any] = {
        BLOCKS[version].format(there): NAMES[version],
        BLOCKS[version].format(plain): "throw",
        BLOCKS[version].format(here.number): "throw",
    }
    return wanted.items() <= table(here, version).items() and len(addresses(here, version)) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_two_of_them_make_a_mesh_and_a_plain_node_stays_outside(two: KubeLab, version: int) -> None:
    one, other = two.nodes[1], two.nodes[2]
    two.until(lambda: is_meshed(one, 2, 3, version) and is_meshed(other, 1, 3, version), "both have the other's blocks")

    assert "99: not from all fwmark 0x200000/0x200000 lookup 1" in " ".join(one.run("ip", f"-{version}", "rule").split())
    assert one.link(NAMES[version])[1] == {4: 1440, 6: 1420}[version]
    [peer] = one.peers(NAMES[version]).values()
    assert peer["endpoint"] == {4: "192.0.2.2:51820", 6: "[fd00:aa::2]:51821"}[version]
    assert one.key(version) == one.run("wg", "show", NAMES[version], "public-key").strip()
    theirs = addresses(other, version)[0].partition("/")[0]
    two.until(lambda: one.ping(theirs), "the other's interface address answers")
    assert int(one.run("wg", "show", NAMES[version], "transfer").split()[1]) > 0, "through the tunnel"


def test_when_switched_off_device_rule_routes_and_key_are_gone(two: KubeLab) -> None:
    one = two.nodes[1]
    two.until(lambda: is_meshed(one, 2, 3, 4) and is_meshed(one, 2, 3, 6), "it has the other's blocks")

    off = '{"spec":{"wireguardEnabled":false,"wireguardEnabledV6":false}}'
    two.kubectl("patch", "felixconfiguration", "default", "--type=merge", "-p", off)

    def is_off() -> bool:
        keys = [one.key(version) for version in (4, 6)]
        return keys == [None, None] and not set(NAMES.values()) & set(one.links())

    two.until(is_off, "it is off")
    for version in (4, 6):
        assert table(one, version) == {}
        assert "lookup 1 " not in one.run("ip", f"-{version}", "rule") + " "
