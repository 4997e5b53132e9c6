"""Why a family rests. What it does when it does not is in test_agent."""

from pathlib import Path

import pytest

from controller import guard as firewall
from controller.desired import Numbers
from controller.findings import findings
from controller.instance import Instance, InstanceError
from controller.meshes.calico import observe
from controller.model import Cluster, Family
from controller.netlink import FoundLink, Kernel
from controller.state import Guard, Link
from controller.statefiles import StateFiles
from controller.status import YIELDS
from tests.controller.cluster import felix, node, objects, pool


class Host(Kernel):
    """A host with some links, by name and kind."""

    def __init__(self, **kinds: str) -> None:
        self.kinds = {name.replace("_", "."): kind for name, kind in kinds.items()}

    def find_link(self, name: str) -> FoundLink | None:
        return FoundLink(1, self.kinds[name], Link(True, 1420)) if name in self.kinds else None


def instance(path: Path, host: Kernel, interface: str | None = None, yields_to_kernel: bool = False) -> Instance:
    numbers = Numbers(table=5182, interface=interface)
    return Instance(Family.IPV4, "n1", numbers, host, StateFiles(path), yields_to_kernel=yields_to_kernel)


def cluster_of(address: str | None = "192.0.2.1/24", enabled: bool = True) -> Cluster:
    return observe(objects(felix(wireguardEnabled=enabled), node("n1", address)), "n1").cluster


def test_an_enabled_family_does_not_rest(tmp_path: Path) -> None:
    assert instance(tmp_path, Host()).rest(cluster_of()) is None


def test_a_family_rests_while_it_is_disabled(tmp_path: Path) -> None:
    rest = instance(tmp_path, Host()).rest(cluster_of(enabled=False))

    assert rest is not None and rest.is_expected and not rest.is_felix


def test_a_node_without_an_address_of_the_family_rests(tmp_path: Path) -> None:
    rest = instance(tmp_path, Host()).rest(cluster_of(address=None))

    assert rest is not None and not rest.is_expected
    assert rest.reason == "this node has no IPv4 address"


def test_where_felix_has_wireguard_itself_we_yield_and_leave_its_key(tmp_path: Path) -> None:
    rest = instance(tmp_path, Host(wireguard_cali="wireguard")).rest(cluster_of())

    assert rest is not None and rest.is_felix
    assert "Felix has WireGuard itself here" in rest.reason


def test_a_tun_of_felixs_name_is_nobody_to_yield_to(tmp_path: Path) -> None:
    assert instance(tmp_path, Host(wireguard_cali="tun")).rest(cluster_of()) is None


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("links", [{}, {"wireguard_cali": "wireguard"}])
def test_who_yields_to_the_kernel_does_so_before_felix_is_there_and_has_nothing_to_tell(
    tmp_path: Path, links: dict[str, str], enabled: bool
) -> None:
    yielding, cluster = instance(tmp_path, Host(**links), yields_to_kernel=True), cluster_of(enabled=enabled)

    rest = yielding.rest(cluster)

    assert rest is not None and rest.is_expected and rest.is_felix
    assert rest.reason == YIELDS
    assert findings(cluster, "n1", {Family.IPV4: yielding.facts(cluster)}) == ()


def test_felixs_own_name_is_never_used(tmp_path: Path) -> None:
    with pytest.raises(InstanceError, match="is the name of Felix's own interface"):
        instance(tmp_path, Host(), interface="wireguard.cali").reconcile(cluster_of())


def test_a_guard_that_is_there_already_is_kept_for_the_next_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[Guard] = []
    monkeypatch.setattr(firewall, "put", lambda family, interface, guard: put.append(guard))
    monkeypatch.setattr(firewall, "found", lambda family, interface: put[-1] if put else None)
    cluster = observe(objects(felix(wireguardEnabled=True), pool("10.42.0.0/16"), node("n1", "192.0.2.1/24")), "n1").cluster
    rulesets = []

    for _ in range(2):  # the second is the next agent, which finds what the first has left
        ours = Instance(Family.IPV4, "n1", Numbers(table=5182), Host(), StateFiles(tmp_path), is_strict=True)
        ours.refuse(cluster)
        rulesets.append(ours.guard)

    assert len(put) == 1
    assert "10.42.0.0/16" in rulesets[0] and rulesets[1] == rulesets[0]


def test_its_interface_follows_felixs_name(tmp_path: Path) -> None:
    assert instance(tmp_path, Host()).interface(cluster_of()) == "wireguard.caliu"
    assert instance(tmp_path, Host(), "wg0").interface(cluster_of()) == "wg0"
