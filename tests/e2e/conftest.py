"""What the tests with real traffic need: root, a TUN device, and foreign WireGuards that may be missing."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.e2e.lab", "tests.e2e.traffic")

from controller.demo.topology import Node, Topology, collect_leftovers  # noqa: E402
from tests.e2e.lab import Tunnel, node_addresses  # noqa: E402
from tests.peers import wireguard_go  # noqa: E402


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


@pytest.fixture(scope="module")
def tunnels(request: pytest.FixtureRequest, machine: None) -> Iterator[Callable[..., Tunnel]]:
    """Makes tunnels (the arguments are those of :meth:`Tunnel.lay`) and takes them down when the module is done."""
    with ExitStack() as stack:

        def lay(kinds: tuple[str, str] = ("wgpy", "wgpy"), **options: object) -> Tunnel:
            if "wireguard-go" in kinds:
                request.getfixturevalue("wireguard_go_path")
            return stack.enter_context(Tunnel.lay(kinds, **options))  # type: ignore[arg-type]

        yield lay


@pytest.fixture(scope="module")
def node(machine: None) -> Iterator[Node]:
    """A node with nothing on it, for tests that start their own processes there."""
    with Topology.create() as topology:
        yield topology.add_node("n1", node_addresses(1))
