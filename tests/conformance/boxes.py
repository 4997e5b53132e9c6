"""Boxes: a node with a WireGuard on it, and the wires that lead to the tester.

The implementation is a black box. What may be asked of one: run a command beside it, bring its interface up and down,
configure it, ask for its configuration and statistics. A userspace implementation is a process in a namespace of this machine
that serves UAPI; what is special about the kernel's stands in :mod:`tests.conformance.kernel`.

Addresses follow from the number of the trial, so that any number of trials stand side by side, even on one wire. For number k:

    outer   tester 10.77.k.1 … 10.77.k.9, box 10.77.k.11 and .12    fd77:0:0:k::/64 with the same hosts
    inner   tester 10.99.k.1, box 10.99.k.11                        fd99:0:0:k::/64
    wg0     10.66.k.1/32                                            fd66:0:0:k::1/128
    10.88.k.0/24 and fd88:0:0:k::/64 are behind the tunnel: the tester's peers speak for them
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from benchmarks.planes import Userspace, planes
from controller.demo.topology import WIREGUARD_DIRECTORY, Address, Namespace, Network, Topology
from tests.conformance.behaviour import Broken, NotApplicable
from wgpy.client import Client, ClientError
from wgpy.config import Change, DeviceSnapshot

INTERFACE = "wg0"
PORT = 51820
MTU = 1420
WIRE_MTU = 9000
READY_SECONDS = 30.0
END_SECONDS = 10.0
CLOCK_SECONDS = 1
"""So often a process looks whether its own wall clock has been moved."""
TESTER_HOSTS = range(1, 10)
BOX_HOSTS = (11, 12)


class ConformanceError(Exception):
    """The trial itself cannot go on. The message is one line."""


@dataclass(frozen=True)
class Plan:
    """The addresses of trial ``number`` (1 to 255)."""

    number: int

    def network(self, version: int, leg: int) -> Network:
        """Of a leg: 77 outer, 99 inner, 66 the interface, 88 behind the tunnel."""
        text = f"10.{leg}.{self.number}.0/24" if version == 4 else f"fd{leg}:0:0:{self.number:x}::/64"
        return ip_network(text)

    def outer(self, version: int, host: int) -> Address:
        return self.network(version, 77)[host]

    def inner(self, version: int, host: int = 1) -> Address:
        return self.network(version, 99)[host]

    def remote(self, version: int, host: int = 1) -> Address:
        """An address behind the tunnel."""
        return self.network(version, 88)[host]

    def interface(self, version: int) -> Address:
        return self.network(version, 66)[1]

    def box_links(self, outer: str, inner: str) -> list[str]:
        """The ``ip`` commands that give a box with these legs its addresses and routes, but for those of the tunnel."""
        return [
            "link set lo up",
            *(f"link set {leg} mtu {WIRE_MTU} up" for leg in (outer, inner)),
            *(_add_address(self.outer(version, host), outer) for version in (4, 6) for host in BOX_HOSTS),
            *(_add_address(self.inner(version, 11), inner) for version in (4, 6)),
        ]

    def tunnel_links(self) -> list[str]:
        """The same for its interface, which must be there. It is left down."""
        return [
            f"link set {INTERFACE} mtu {MTU}",
            *(f"addr add {self.interface(version)}/{32 if version == 4 else 128} dev {INTERFACE}" for version in (4, 6)),
        ]

    def tunnel_routes(self) -> list[str]:
        """What leads into the tunnel. The kernel drops them whenever the interface goes down."""
        return [f"route replace {self.network(version, 88)} dev {INTERFACE}" for version in (4, 6)]


def _add_address(address: Address, leg: str) -> str:
    """The ``ip`` command. Without ``nodad`` an IPv6 address could be used a moment later only, though there is no detection."""
    return f"addr add {address}/24 dev {leg}" if address.version == 4 else f"addr add {address}/64 dev {leg} nodad"


NODE_SYSCTLS = {
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
}


class Tester(Namespace):
    """The tester's namespace of one trial, with both legs."""

    OUTER, INNER = "outer", "inner"

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__(name)
        self.plan = plan

    def lay(self) -> None:
        """Addresses and routes; both legs are there."""
        plan = self.plan
        links = [
            "link set lo up",
            *(f"link set {leg} mtu {WIRE_MTU} up" for leg in (self.OUTER, self.INNER)),
            *(_add_address(plan.outer(version, host), self.OUTER) for version in (4, 6) for host in TESTER_HOSTS),
            *(_add_address(plan.inner(version), self.INNER) for version in (4, 6)),
            *(
                f"route add {plan.network(version, leg)} via {plan.inner(version, 11)} dev {self.INNER}"
                for version in (4, 6)
                for leg in (88, 66)
            ),
        ]
        self.configure(links=links)


class Box(ABC):
    """A node with one implementation and one interface, ``wg0``: made with its legs laid, the interface down and unconfigured."""

    is_emulated = False
    """Whether its machine is: what it bears, and how fast it is, then says nothing."""

    def __init__(self, name: str, plan: Plan, tester: Tester) -> None:
        self.name = name
        self.plan = plan
        self.tester = tester

    @abstractmethod
    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the box. With ``check``, raises TopologyError if it fails."""

    @abstractmethod
    def set(self, changes: Iterable[Change]) -> None:
        """Configure the device. Raises Broken if it refuses."""

    @abstractmethod
    def get(self) -> DeviceSnapshot:
        """Its configuration and statistics."""

    @abstractmethod
    def restart(self) -> None:
        """End it (for the kernel: delete the interface) and start it again, unconfigured and down."""

    @abstractmethod
    def close(self) -> None:
        """Take everything down."""

    def uapi(self, request: bytes, seconds: float = 5.0) -> bytes:
        """Send raw bytes to its UAPI socket; what it answers until it closes, or falls silent after ``errno=``."""
        raise NotApplicable(f"{self.name} has no UAPI socket")

    @property
    def socket_file(self) -> Path:
        """Its UAPI socket, as this machine sees it."""
        raise NotApplicable(f"{self.name} has no UAPI socket")

    @property
    def process(self) -> int:
        """The process id of the implementation."""
        raise NotApplicable(f"{self.name} is no process")

    def own_clock(self) -> None:
        """Start it anew, unconfigured, with a wall clock of its own, which :meth:`shift_clock` moves: no other clock does."""
        raise NotApplicable(f"{self.name} has the wall clock of its machine")

    def shift_clock(self, seconds: float) -> None:
        """Let its wall clock be so much ahead of the true time."""
        raise NotApplicable(f"{self.name} has the wall clock of its machine")

    def ip(self, *commands: str) -> None:
        """Run ``ip`` commands in the box, in one process."""
        self.run(["sh", "-c", 'printf "%s\n" "$0" | ip -batch -', "\n".join(commands)])

    def up(self) -> None:
        """Bring the interface up, and lay what leads into the tunnel."""
        self.ip(f"link set {INTERFACE} up", *self.plan.tunnel_routes())

    def down(self) -> None:
        self.ip(f"link set {INTERFACE} down")


class Implementation(ABC):
    """Something to try behaviours on. ``name`` heads its column."""

    name: str
    at_once = 16
    """So many boxes may stand side by side."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be tried here and what to do about it, in one line; None if it can."""

    @abstractmethod
    def version(self) -> str:
        """What exactly is tried, for the report."""

    @abstractmethod
    def box(self, topology: Topology, plan: Plan) -> Box:
        """A fresh one. Raises ConformanceError or TopologyError."""

    def close(self) -> None:
        """Let go of what all its boxes share."""
        return


# Userspace ------------------------------------------------------------------------------------------------------------


@dataclass
class Process(Implementation):
    """An implementation in userspace: a command that serves the interface named last, in the foreground, and UAPI."""

    name: str
    command: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    ask_version: Callable[[], str] | None = None
    absent: str | None = None

    def missing(self) -> str | None:
        return self.absent

    def version(self) -> str:
        return self.ask_version() if self.ask_version is not None else shlex.join(self.command)

    def box(self, topology: Topology, plan: Plan) -> ProcessBox:
        return ProcessBox(self, topology, plan)


class BoxNamespace(Namespace):
    """A namespace with a /var/run/wireguard of its own."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self.sockets = directory / "wireguard"
        self.sockets.mkdir(parents=True, mode=0o700)

    def command(self, argv: Sequence[str]) -> list[str]:
        mount = f'mount --bind "$0" {WIREGUARD_DIRECTORY} && exec "$@"'
        return super().command(["sh", "-c", mount, str(self.sockets), *argv])


class ProcessBox(Box):
    """A process of this machine in a namespace. Its log is kept until the box is closed."""

    def __init__(self, implementation: Process, topology: Topology, plan: Plan) -> None:
        prefix = f"{topology.prefix}{plan.number}"
        super().__init__(implementation.name, plan, Tester(f"{prefix}t", plan))
        self.implementation = implementation
        self.directory = topology.directory / str(plan.number)
        self.namespace = BoxNamespace(f"{prefix}b", self.directory)
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._clock: Path | None = None
        try:
            self._lay()
            self._start()
        except BaseException:
            self.close()
            raise

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
        return self.namespace.run(argv, check=check, timeout=timeout)

    @property
    def client(self) -> Client:
        return Client(INTERFACE, directory=self.namespace.sockets)

    def set(self, changes: Iterable[Change]) -> None:
        try:
            self.client.set(changes)
        except ClientError as error:
            raise Broken(str(error), self.name) from None

    def get(self) -> DeviceSnapshot:
        try:
            return self.client.get()
        except ClientError as error:
            raise Broken(str(error), self.name) from None

    @property
    def process(self) -> int:
        """Of the implementation itself: the command that enters the namespace becomes it."""
        assert self._process is not None
        return self._process.pid

    @property
    def socket_file(self) -> Path:
        return self.namespace.sockets / f"{INTERFACE}.sock"

    def uapi(self, request: bytes, seconds: float = 5.0) -> bytes:
        said = b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(self.socket_file))
            connection.sendall(request)
            try:
                while not said.endswith(b"\n\n") and (piece := connection.recv(1 << 16)):
                    said += piece
            except TimeoutError:
                pass
            except ConnectionResetError:
                pass  # it hangs up on what it does not understand
        return said

    def restart(self) -> None:
        self._end()
        self._start()

    def own_clock(self) -> None:
        self._clock = self.directory / "clock"
        self.shift_clock(0)
        self.restart()

    def shift_clock(self, seconds: float) -> None:
        """It has noticed when this returns: it looks when its last look is *more* than so many whole seconds old."""
        assert self._clock is not None
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds:+g}\n")
        new.replace(self._clock)
        time.sleep(CLOCK_SECONDS + 1.2)

    def end(self, number: signal.Signals) -> int | None:
        """Send it a signal; see :meth:`ended`."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.ended(END_SECONDS)

    def ended(self, seconds: float) -> int | None:
        """Its exit status; None if it still runs after so many seconds."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._end()
        for namespace in (self.tester, self.namespace):
            subprocess.run(["ip", "netns", "del", namespace.name], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)  # another trial will have the number

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _lay(self) -> None:
        for namespace in (self.tester, self.namespace):
            subprocess.run(["ip", "netns", "add", namespace.name], check=True, capture_output=True)
            Namespace.configure(namespace, sysctls=NODE_SYSCTLS)
        links = [f"link add {there} type veth peer name {here} netns {self.namespace.name}" for there, here in LEGS]
        self.tester.configure(links=links)
        self.namespace.configure(links=self.plan.box_links("eth0", "eth1"))
        self.tester.lay()

    def _start(self) -> None:
        env = {"LOG_LEVEL": "error", **self.implementation.env}
        with self.log.open("ab") as log:
            clock = [] if self._clock is None else ["env", *_faketime(self._clock)]
            self._process = self.namespace.start([*clock, *self.implementation.command, INTERFACE], log, env)
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = self.said().strip().splitlines()[-1:]
                raise ConformanceError(f"{self.name} did not start (status {self._process.poll()}): {' '.join(last)[:200]}")
            time.sleep(0.02)
        self.namespace.configure(links=self.plan.tunnel_links())

    def _is_ready(self) -> bool:
        try:
            self.client.get()
        except ClientError:
            return False
        return True

    def _end(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._clock is not None:
            for left in ("faketime_shm", "sem.faketime_sem"):  # libfaketime's, if it ended without cleaning up
                Path(f"/dev/shm/{left}_{self._process.pid}").unlink(missing_ok=True)


def _faketime(clock: Path) -> list[str]:
    """The environment in which a program's wall clock is ahead by what the file says. Raises ConformanceError."""
    found = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    if found is None:
        raise ConformanceError("libfaketime is not installed: run make setup")
    variables = {
        "LD_PRELOAD": found,
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_CACHE_DURATION": CLOCK_SECONDS,
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
    }
    return [f"{name}={value}" for name, value in variables.items()]


LEGS = ((Tester.OUTER, "eth0"), (Tester.INNER, "eth1"))


def implementations() -> dict[str, Implementation]:
    """All that are known, installed or not, by name: wgpy first, the kernel's last."""
    from tests.conformance.kernel import Kernel  # it is made of boxes, too

    known: list[Implementation] = [Process("wgpy", [sys.executable, "-m", "wgpy", "-f"], ask_version=planes()["wgpy"].version)]
    for name in ("wireguard-go", "gotatun", "boringtun"):
        plane = planes()[name]
        assert isinstance(plane, Userspace)
        absent = plane.missing()
        command = [] if absent else [*plane.command(), *plane.options]
        known.append(Process(name, command, dict(plane.env), plane.version, absent))
    known.append(Kernel())
    return {each.name: each for each in known}


def other(command: str) -> Implementation:
    """The implementation behind a command line such as ``/usr/bin/mywg -f``, to which the name of the interface is added."""
    words = shlex.split(command)
    return Process(os.path.basename(words[0]) if words else "nothing", words, absent=None if words else "the command is empty")


def address_of(text: str) -> Address:
    return ip_address(text)
