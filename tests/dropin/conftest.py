"""The program through which the tests speak wgctrl, and the nodes it runs on."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.e2e.lab", "tests.e2e.traffic")

from controller.demo.topology import Node, Topology  # noqa: E402
from tests.e2e.conftest import machine, wireguard_go_path  # noqa: E402, F401
from tests.e2e.lab import node_addresses  # noqa: E402
from tests.peers import CACHE, find_peer  # noqa: E402

PROGRAM = "wgctrl-agent"
BUILD_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory is e2e."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def program(machine: None) -> str:  # noqa: F811
    """The path of the program, built from what is in ``program/``: with Go's caches warm in less than a second."""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if go is None:
        return find_peer(PROGRAM, PROGRAM)
    CACHE.mkdir(parents=True, exist_ok=True)
    built = subprocess.run(
        [go, "build", "-buildvcs=false", "-trimpath", "-o", str(CACHE / PROGRAM), "."],
        cwd=Path(__file__).parent / "program",
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert built.returncode == 0, f"tests/dropin/program does not build: {built.stderr}"
    return str(CACHE / PROGRAM)


@dataclass
class Agent:
    """A process with a wgctrl client in a node: it does to an interface what it is told."""

    process: "subprocess.Popen[str]"

    @classmethod
    def start(cls, program: str, node: Node) -> "Agent":
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(node.command([program]), stdin=pipe, stdout=pipe, text=True))

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer, errors and all."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the program ended with status {self.process.wait()}"
        return dict(json.loads(answer))

    def do(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to what has to go well."""
        answer = self.ask(do, **request)
        assert "error" not in answer, answer
        return answer

    def device(self, name: str) -> dict[str, Any]:
        return dict(self.do("device", name=name)["device"])

    def peers(self, name: str) -> dict[str, dict[str, Any]]:
        """The device's peers by public key."""
        return {peer["public_key"]: peer for peer in self.device(name)["peers"]}

    def configure(self, name: str, **config: Any) -> None:
        self.do("configure", name=name, config=config)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def nodes(machine: None) -> Iterator[tuple[Node, Node]]:  # noqa: F811
    with Topology.create() as topology:
        yield topology.add_node("n1", node_addresses(1)), topology.add_node("n2", node_addresses(2))
