"""What the tests with real traffic need: root, a TUN device, and foreign WireGuards that may be missing."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.e2e.lab", "tests.e2e.traffic")

from controller.demo.topology import Node, Topology, collect_leftovers  # noqa: E402
from tests.e2e.lab import FAMILIES, Tunnel, node_addresses  # noqa: E402
from tests.e2e.waiting import Waiting  # noqa: E402
from tests.peers import wireguard_go  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "waits: mostly waits; runs in a process of its own beside the quick tests")
    config.pluginmanager.register(Waiting(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory is e2e."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skip all of it where this machine cannot do it."""
    if os.geteuid() != 0:
        pytest.skip("namespaces and interfaces need root")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun: load the tun module, or give the container this device")
    for command, package in (("ip", "iproute2"), ("ping", "iputils-ping")):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: it is in the package {package}")
    collect_leftovers()


@pytest.fixture(scope="session")
def need_wg(machine: None) -> None:
    if shutil.which("wg") is None:
        pytest.skip("wg is not installed: it is in the package wireguard-tools")


@pytest.fixture(scope="session")
def wireguard_go_path(machine: None) -> str:
    return wireguard_go()


@pytest.fixture(scope="session")
def standing(request: pytest.FixtureRequest, machine: None) -> Iterator[Callable[..., Tunnel]]:
    """Gives the tunnel between two kinds of data planes over an IP version. It is laid once, for all tests, and configured
    anew for each that asks: new keys, new sessions."""
    laid: dict[tuple[tuple[str, ...], int], Tunnel] = {}
    with ExitStack() as stack:

        def tunnel(kinds: tuple[str, str] = ("wgpy", "wgpy"), outer: int = 4, *, preshared: bool = False) -> Tunnel:
            if outer not in FAMILIES:
                pytest.skip(f"this kernel has no IPv{outer}")
            if "wireguard-go" in kinds:
                request.getfixturevalue("wireguard_go_path")
            key = tuple(sorted(kinds, reverse=True)), outer
            if key not in laid:
                laid[key] = stack.enter_context(Tunnel.lay(kinds, outer=outer))
            found = laid[key]
            if tuple(end.kind for end in found.ends) != kinds:
                found = found.turned()
            found.configure(preshared=preshared)
            return found

        yield tunnel


@pytest.fixture(scope="module")
def node(machine: None) -> Iterator[Node]:
    """A node with nothing on it, for tests that start their own processes there."""
    with Topology.create() as topology:
        yield topology.add_node("n1", node_addresses(1))
