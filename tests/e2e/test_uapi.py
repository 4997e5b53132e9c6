"""A UAPI client delays neither packets nor other clients, whatever it does; and a crash leaves no socket in anybody's way."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.demo.topology import Node
from tests.e2e.attacks import ATTACKS
from tests.e2e.lab import PATIENCE, WGPY, DataPlane, Tunnel, has_interface, ping, processes_in, wait_for
from wgpy.client import Client, ClientError

ROOT = Path(__file__).parents[2]
SECONDS = 2
WORST_PING = 0.1
"""Seconds. A large set in one go takes three times as long, and a get of a large device half of it."""
WORST_ANSWER = 1.0
ATTEMPTS = 3
"""A delay of ours comes each time; one of a busy machine does not."""


@dataclass(frozen=True)
class Pings:
    """Five hundred a second: how many were lost, the mean and the longest, in seconds."""

    lost: int
    mean: float
    longest: float

    @classmethod
    def through(cls, tunnel: Tunnel, seconds: int) -> "Pings":
        first, second = tunnel.ends
        options = ["-n", "-q", "-i", "0.002", "-w", str(seconds)]
        said = first.pod.run(["ping", *options, str(second.pod.address(4))], check=False, timeout=seconds + 10).stdout
        sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", said)[0])
        mean, longest = re.findall(r"= [\d.]+/([\d.]+)/([\d.]+)/", said)[0]
        return cls(sent - received, float(mean) / 1e3, float(longest) / 1e3)

    def __str__(self) -> str:
        return f"mean {self.mean * 1e3:.2f} ms, longest {self.longest * 1e3:.1f} ms, {self.lost} lost"


@contextmanager
def asking(client: Client) -> Iterator[list[float]]:
    """Another client that goes on asking meanwhile, and how long it waited each time, in seconds. It does not read what the
    answers say, which would take this process longer than what is measured. If it was itself too slow, and had to give way, it
    comes again: that counts as waiting."""
    waited: list[float] = []
    stopped = threading.Event()

    def is_answered() -> bool:
        with socket.socket(socket.AF_UNIX) as connection, suppress(ConnectionError):
            connection.connect(str(client.path))  # without a timeout: it waits until it is taken
            connection.settimeout(PATIENCE)
            connection.sendall(b"get=1\n\n")
            tail = b""
            while piece := connection.recv(1 << 18):
                tail = (tail + piece)[-20:]
                if tail.endswith(b"errno=0\n\n"):
                    return True
        return False

    def ask() -> None:
        while not stopped.wait(0.02):
            began = time.monotonic()
            while not stopped.is_set():
                if is_answered():
                    waited.append(time.monotonic() - began)
                    break

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waited
    finally:
        stopped.set()
        thread.join()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_client_delays_neither_packets_nor_others(standing: Callable[..., Tunnel], attack: str) -> None:
    tunnel = standing()
    first, second = tunnel.ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1
    quiet = Pings.through(tunnel, 1)

    for _ in range(ATTEMPTS):
        pings, waited, count = under_attack(tunnel, attack)
        print(
            f"{attack}, {count} times: pings {pings} (without: {quiet}); "
            f"another client was answered {len(waited)} times, after {max(waited, default=0) * 1e3:.0f} ms at most"
        )
        assert count > 0
        # The last ping may be on its way when ping ends.
        if pings.longest < WORST_PING and pings.lost <= 1 and len(waited) > 3 and max(waited) < WORST_ANSWER:
            break
    else:
        pytest.fail(f"packets or another client were delayed, in each of {ATTEMPTS} attempts")
    assert [peer.config.public_key for peer in second.client.get().peers] == [first.public_key]


def under_attack(tunnel: Tunnel, attack: str) -> tuple[Pings, list[float], int]:
    """What came of pings, how long another client waited each time, and how often the attack was made."""
    client = tunnel.ends[1].client
    command = [sys.executable, "-m", "tests.e2e.attacks", attack, str(client.path), str(SECONDS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as attacker, asking(client) as waited:
        pings = Pings.through(tunnel, SECONDS)
        said, _ = attacker.communicate(timeout=60)
    assert attacker.returncode == 0
    return pings, waited, int(said)


# After a crash --------------------------------------------------------------------------------------------------------


def kill(node: Node) -> None:
    """All that runs in a node, at once and without a chance to clean up: a child is told to end when its supervisor is gone, so
    all are stopped first."""
    running = processes_in(node)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in running:
            os.kill(process, number)
    wait_for(lambda: not processes_in(node), "all are dead")


def sockets(node: Node) -> list[str]:
    return sorted(path.name for path in node.wireguard_directory.iterdir())


def answers(node: Node, name: str) -> bool:
    try:
        Client(name, directory=node.wireguard_directory).get()
    except ClientError:
        return False
    return True


def start(node: Node, *words: str) -> "subprocess.Popen[bytes]":
    """Start wgpy, and wait until each interface that it was given answers."""
    process = node.start([*WGPY, *words], subprocess.DEVNULL)
    for name in (word for word in words if re.fullmatch(r"wg\d", word)):
        wait_for(lambda name=name: answers(node, name), f"{name} answers")  # type: ignore[misc]
    return process


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a killed process leaves of a persistent interface is no test's business but its own."""
    yield
    if "node" in request.fixturenames:
        node: Node = request.getfixturevalue("node")
        kill(node)
        for name in ("wg1", "wg2", "wg3"):
            if has_interface(node, name):
                node.configure(links=[f"link del {name}"])
        for path in node.wireguard_directory.iterdir():
            path.unlink()


WAYS = [["-f", "wg1"], ["run", "wg1"], ["run", "wg1", "--persist"], ["run", "wg1", "wg2", "--persist"]]


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_the_next_start_clears_what_a_killed_one_left(node: Node, words: list[str]) -> None:
    start(node, *words)
    mine = sockets(node)
    kill(node)
    assert sockets(node) == mine, "there is something to clear"

    process = start(node, *words)

    assert sockets(node) == mine
    process.terminate()
    assert process.wait(10) == 0
    assert sockets(node) == []


def test_what_an_interface_of_another_name_left_is_cleared_as_well(node: Node) -> None:
    """Nobody will ever start wg1 again: the interface has got another name. wg3 lives."""
    start(node, "run", "wg1", "--persist")
    kill(node)
    living = start(node, "run", "wg3")

    process = start(node, "run", "wg2")

    assert sockets(node) == ["wg2.sock", "wg3.sock"]
    assert living.poll() is None
    for one in (living, process):
        one.terminate()
        assert one.wait(10) == 0


def test_a_child_that_was_killed_is_back_on_its_socket_and_the_other_child_keeps_its_own(node: Node) -> None:
    supervisor = start(node, "run", "wg1", "wg2", "--persist")
    inode = (node.wireguard_directory / "wg2.sock").stat().st_ino
    (child,) = (process for process, command in processes_in(node).items() if command.endswith("run wg1 --persist"))

    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not answers(node, "wg1"), "wg1 is dead")
    wait_for(lambda: answers(node, "wg1"), "wg1 answers again")

    assert (node.wireguard_directory / "wg2.sock").stat().st_ino == inode
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not processes_in(node), "the children have ended with it")
    assert sockets(node) == []


def test_a_process_that_is_stopped_keeps_its_socket(node: Node) -> None:
    plane = DataPlane.run(node, name="wg1")
    plane.wait_until_ready()
    os.kill(plane.process.pid, signal.SIGSTOP)

    done = node.run([*WGPY, "-f", "wg1"], check=False)

    assert done.returncode == 1
    assert "served by another process: wg1 is already running" in done.stderr
    os.kill(plane.process.pid, signal.SIGCONT)
    assert plane.client.get().peers == ()
    assert plane.stop() == 0


def test_who_shares_the_directory_from_another_network_namespace_robs_nobody(node: Node) -> None:
    """An interface of the same name may exist there; the directory is one. A dead one's socket is cleared from there, too."""
    process = start(node, "run", "wg1")
    elsewhere = ["unshare", "-n", *WGPY, "-f", "wg1"]

    done = node.run(elsewhere, check=False)

    assert done.returncode == 1
    assert "wg1 is already running" in done.stderr
    assert answers(node, "wg1")
    process.kill()
    process.wait()
    other = node.start(elsewhere, subprocess.DEVNULL)
    wait_for(lambda: answers(node, "wg1"), "it answers from the other namespace")
    other.terminate()
    assert other.wait(10) == 0
    assert sockets(node) == []
