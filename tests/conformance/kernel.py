"""The kernel's own WireGuard as an implementation: in one guest, which qemu emulates, for all boxes of a run.

A machine that needs wgpy has none. So :mod:`benchmarks.kernel_vm` boots a stock Debian kernel with this machine's files, and
each box is a network namespace in that guest. What leads there is as direct as it can be:

    tester: outer ═ tap ═ qemu ═ virtio ═ eth0 ┐
    tester: inner ═ tap ═ qemu ═ virtio ═ eth1 ┴ namespace in the guest, with wg0

Two such wires are a *slot*. A box takes a slot: its taps are moved into the tester's namespace and its network interfaces
into the box, and afterwards back to where they came from, the *hub* (on this side) and the guest's first namespace. So
trials do not share a wire.

:mod:`tests.conformance.guest` runs inside and does what it is asked for, over a virtio port. ``ip`` and the like are commands
there; the device is configured by netlink, packed and read here (:mod:`tests.conformance.netlink`), as time is dear in there.

The guest boots when it is first wanted, in some seconds. It belongs to a run of its own (``controller.demo.topology``), and
ends with this process whatever ends that.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from errno import EINVAL
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import kernel_vm
from benchmarks.kernel_vm import GuestError
from controller.demo.topology import Namespace, Topology, TopologyError
from tests.conformance import guest, netlink
from tests.conformance.behaviour import Broken, NotApplicable
from tests.conformance.boxes import INTERFACE, NODE_SYSCTLS, Box, ConformanceError, Implementation, Plan, Tester
from wgpy.config import Change, DeviceSnapshot, SetPeer

SLOTS = 10
"""So many boxes at a time. Most trials wait, and the guest takes a tenth of a core then. There is room for 24 interfaces."""
PORT = 4
"""Of the three before it :mod:`benchmarks.kernel_vm` makes use."""
BOOTS = 2
"""One boot in about fifty, on a busy machine, ended in a panic that the next one did not have."""
QUEUE_LENGTH = 4000
"""Packets that wait for qemu at most; more are lost, of which the sender hears (ENOBUFS)."""
SLOT_SECONDS = 60.0
TAKE_DOWN_SECONDS = 60.0
"""What is not undone by then is in the way of a later box with the same number. It was 20 s when that happened, once."""
ANSWER_SECONDS = 30.0
"""Beyond the time that a command itself may take."""
MAC = "52:54:00:77:{slot:02x}:{leg:02x}"


# The guest ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A pair of wires: the names of their ends in the hub and in the guest, outer and inner."""

    taps: tuple[str, str]
    interfaces: tuple[str, str]


class Guest:
    """The guest, booted. Its methods may be called from many threads, and raise GuestError if it is dead.

    One thread starts qemu, listens to the guest and ends both: what is started dies with the thread that started it.
    """

    def __init__(self, hub: Namespace, directory: Path) -> None:
        self.hub = hub
        self.directory = directory
        self.family = 0
        self.slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._port, self._their_port = socket.socketpair()
        self._answers: dict[int, Future[dict[str, Any]]] = {0: Future()}
        self._lock = threading.Lock()
        self._asked = 0
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        try:
            self._await(0, kernel_vm.BOOT_SECONDS)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it. It may have ended already."""
        with contextlib.suppress(OSError):
            self._port.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def run(
        self, argv: Sequence[str], *, namespace: str = "", input: str = "", check: bool = True, timeout: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace of the guest. Raises TopologyError as ``Namespace.run`` would."""
        answer = self.ask("run", argv=list(argv), namespace=namespace, input=input, timeout=timeout)
        said = shlex.join(argv)[:200]
        if answer.get("late"):
            raise TopologyError(f"{said}: no end after {timeout:.0f} s")
        if check and answer["status"]:
            lines = (answer["stderr"] or answer["stdout"]).strip().splitlines() or [f"exit status {answer['status']}"]
            raise TopologyError(f"{said}: {lines[0]}")
        return subprocess.CompletedProcess(list(argv), answer["status"], answer["stdout"], answer["stderr"])

    def netlink(self, namespace: str, messages: Iterable[bytes]) -> list[bytes]:
        """The bodies of the answers. Raises OSError for the first message that is refused; those before it are in force."""
        encoded = [base64.b64encode(each).decode() for each in messages]
        answer = self.ask("netlink", namespace=namespace, messages=encoded)
        if errno := answer["errno"]:
            raise OSError(errno, os.strerror(errno))
        return [base64.b64decode(each) for each in answer["answers"]]

    def set_clock(self) -> None:
        """Set its wall clock, which begins with whole seconds and then drifts, to ours.

        That a step may go back by some milliseconds harms nobody: between two initiations of a peer there are five seconds.
        """
        self.ask("clock", nanoseconds=time.time_ns())

    def ask(self, operation: str, *, timeout: float = 0.0, **arguments: object) -> dict[str, Any]:
        """What the guest answers to a request; see :mod:`tests.conformance.guest`."""
        if operation == "run":
            arguments["timeout"] = timeout
        with self._lock:
            self._asked += 1
            number = self._asked
            self._answers[number] = Future()
            request = {"id": number, "operation": operation, "arguments": arguments}
            try:
                self._port.sendall(json.dumps(request).encode() + b"\n")
            except OSError:
                raise GuestError(f"the guest is dead: {self._last_words()}") from None
        return self._await(number, timeout + ANSWER_SECONDS)

    def _await(self, number: int, seconds: float) -> dict[str, Any]:
        try:
            answer = self._answers[number].result(seconds)
        except TimeoutError:
            raise GuestError(f"the guest does not answer within {seconds:g} s: {self._last_words()}") from None
        finally:
            del self._answers[number]
        if "error" in answer:
            raise GuestError(f"the guest could not do it: {answer['error']}")
        return answer

    def _prepare(self) -> None:
        """Learn the number of WireGuard's messages, and which interface is at the end of which wire."""
        self.run(["ip", "netns", "add", "any"])
        self.family = netlink.parse_family(self.netlink("any", [netlink.family_query()])[0])
        names = {each["address"]: each["ifname"] for each in json.loads(self.run(["ip", "-json", "link"]).stdout)}
        for slot in range(SLOTS):
            outer, inner = (names[MAC.format(slot=slot, leg=leg)] for leg in (0, 1))
            self.slots.put(Slot(_taps(slot), (outer, inner)))

    # In the thread that owns it

    def _live(self) -> None:
        error: Exception = GuestError("the guest is stopped")
        try:
            with self._booted(), self._port.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    if (waiting := self._answers.get(answer.pop("id"))) is not None:
                        waiting.set_result(answer)
                error = GuestError(f"the guest died: {self._last_words()}")
        except (OSError, GuestError) as reason:
            error = reason
        finally:
            self._port.close()
            for waiting in list(self._answers.values()):
                if not waiting.done():
                    waiting.set_exception(error)

    @contextlib.contextmanager
    def _booted(self) -> Iterator[None]:
        directory = self.directory
        agent = shlex.join([".venv/bin/python", "-ISu", str(Path(guest.__file__)), f"/dev/vport0p{PORT}"])
        (directory / "init").write_text(kernel_vm.init_script(f"exec {agent} 2>{kernel_vm.REPORT}"))
        with kernel_vm.started(kernel_vm.server_command(directory), directory / "server") as server:
            kernel_vm.await_socket(directory, server)
            theirs = self._their_port.fileno()
            command = self.hub.command([*kernel_vm.machine_command(directory), *wires(), *port(theirs)])
            with kernel_vm.started(command, directory / "machine", subprocess.DEVNULL, [theirs]):
                self._their_port.close()
                yield

    def _last_words(self) -> str:
        report = self.directory / "report"
        said = report.read_text(errors="replace").split("\n") if report.exists() else []
        return next((line for line in reversed(said) if line), "") or kernel_vm.last_words(self.directory)


def wires() -> list[str]:
    """The options of qemu for all slots. It makes the taps itself, in the namespace it runs in; they go with it."""
    options = []
    for slot in range(SLOTS):
        for leg, tap in enumerate(_taps(slot)):
            options += ["-netdev", f"tap,id={tap},ifname={tap},script=no,downscript=no"]
            options += ["-device", f"virtio-net-pci,netdev={tap},mac={MAC.format(slot=slot, leg=leg)},romfile="]
    return options


def port(descriptor: int) -> list[str]:
    """The options of qemu for the port that the agent speaks through: an open socket."""
    chardev = ["-chardev", f"socket,id=port{PORT},fd={descriptor}"]
    return [*chardev, "-device", f"virtserialport,chardev=port{PORT},nr={PORT}"]


def _taps(slot: int) -> tuple[str, str]:
    return f"outer{slot}", f"inner{slot}"


# A box ----------------------------------------------------------------------------------------------------------------


class KernelBox(Box):
    """A namespace in the guest. It is laid when it is first asked for something: many a behaviour asks for what no kernel has."""

    is_emulated = True

    def __init__(self, name: str, guest: Guest, topology: Topology, plan: Plan) -> None:
        super().__init__(name, plan, Tester(f"{topology.prefix}{plan.number}t", plan))
        self.guest = guest
        self._is_wanted = False
        try:
            self.slot = guest.slots.get(timeout=SLOT_SECONDS)
        except queue.Empty:
            raise ConformanceError(f"{name}: all {SLOTS} pairs of wires are in use") from None
        try:
            self._lay_tester()
        except BaseException:
            self.close()
            raise

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
        return self.guest.run(argv, namespace=self.namespace, check=check, timeout=timeout)

    def set(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        messages = [each for change in changes for each in netlink.set_messages(self.guest.family, INTERFACE, change)]
        try:
            self.guest.netlink(self.namespace, messages)
        except OSError as error:
            if error.errno == EINVAL and any(isinstance(each, SetPeer) and each.removed_allowed_ips for each in changes):
                raise NotApplicable("a kernel before 6.16 cannot take a single allowed IP away") from None
            raise Broken(f"the kernel refuses to change the device: {error.strerror}") from None

    def get(self) -> DeviceSnapshot:
        try:
            return netlink.parse_device(self.guest.netlink(self.namespace, [netlink.get_message(self.guest.family, INTERFACE)]))
        except OSError as error:
            raise Broken(f"the kernel refuses to show the device: {error.strerror}") from None

    def restart(self) -> None:
        self.ip(f"link del {INTERFACE}", *self._interface())

    def close(self) -> None:
        if self._is_wanted:
            # What fails has not been laid, or is gone with the guest.
            with contextlib.suppress(GuestError, TopologyError):
                self.guest.run(["sh"], input=self._taken_down(), check=False, timeout=TAKE_DOWN_SECONDS)
        home = self.guest.hub.name
        back = [f"link set {leg} netns {home} name {tap}" for leg, tap in zip((Tester.OUTER, Tester.INNER), self.slot.taps)]
        for command in (
            ["ip", "-n", self.tester.name, "-force", "-batch", "-"],
            ["ip", "netns", "del", self.tester.name],
        ):
            subprocess.run(command, input="\n".join(back), text=True, capture_output=True, check=False)
        self.guest.slots.put(self.slot)

    def _lay_tester(self) -> None:
        self.guest.set_clock()
        subprocess.run(["ip", "netns", "add", self.tester.name], check=True, capture_output=True)
        self.tester.configure(sysctls=NODE_SYSCTLS)
        self.guest.hub.configure(
            links=[
                f"link set {tap} netns {self.tester.name} name {leg} txqueuelen {QUEUE_LENGTH}"
                for tap, leg in zip(self.slot.taps, (Tester.OUTER, Tester.INNER))
            ]
        )
        self.tester.lay()

    @property
    def _name(self) -> str:
        return f"box{self.plan.number}"

    @cached_property
    def namespace(self) -> str:
        """Its name in the guest."""
        self._is_wanted = True
        self.guest.run(["sh", "-e"], input=self._laid())
        return self._name

    def _laid(self) -> str:
        """The script that makes it, for the guest's first namespace. Defaults come before the interfaces that inherit them."""
        name, (outer, inner) = self._name, self.slot.interfaces
        return "\n".join(
            [
                f"ip netns add {name}",
                f"ip netns exec {name} sh -e <<'END'",
                *(f"echo {value} >/proc/sys/net/{path}" for path, value in NODE_SYSCTLS.items()),
                "END",
                "ip -batch - <<'END'",
                *(f"link set {there} netns {name} name {here}" for there, here in ((outer, "eth0"), (inner, "eth1"))),
                "END",
                f"ip -n {name} -batch - <<'END'",
                *self.plan.box_links("eth0", "eth1"),
                *self._interface(),
                "END",
            ]
        )

    def _taken_down(self) -> str:
        """The script that undoes it, however much of it there is. The interfaces go home first, lest they go by themselves."""
        name, (outer, inner) = self._name, self.slot.interfaces
        return "\n".join(
            [
                f"ip -n {name} -force -batch - <<'END'",
                f"link del {INTERFACE}",
                *(f"link set {here} netns 1 name {there}" for there, here in ((outer, "eth0"), (inner, "eth1"))),
                "END",
                f"ip netns pids {name} | xargs -r kill -9",
                f"ip netns del {name}",
            ]
        )

    def _interface(self) -> list[str]:
        return [f"link add {INTERFACE} type wireguard", *self.plan.tunnel_links()]


class Kernel(Implementation):
    """The kernel's WireGuard."""

    name = "kernel"
    at_once = SLOTS

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: Topology | None = None
        self._guest: Guest | None = None

    def missing(self) -> str | None:
        reason = kernel_vm.missing()
        return None if reason is None else f"the kernel's WireGuard runs in a guest: {reason}"

    def version(self) -> str:
        """As the guest says it."""
        said = self._booted().run(["sh", "-ec", "uname -r; cat /sys/module/wireguard/version"]).stdout.split()
        return f"Linux {said[0]}, its module {said[1]}, in a guest emulated by qemu"

    def box(self, topology: Topology, plan: Plan) -> KernelBox:
        return KernelBox(self.name, self._booted(), topology, plan)

    def close(self) -> None:
        with self._lock:
            if self._guest is not None:
                self._guest.close()
            if self._run is not None:
                self._run.remove()
            self._guest = self._run = None

    def _booted(self) -> Guest:
        """The guest, which lives in a run of its own: it may serve several. Raises ConformanceError."""
        with self._lock:
            if self._guest is None:
                self._run = self._run or Topology.create()
                for left in reversed(range(BOOTS)):
                    try:
                        # The underlay of a run is a namespace that says nothing by itself.
                        self._guest = Guest(self._run.underlay, self._run.directory)
                        break
                    except GuestError as error:
                        if not left:
                            raise ConformanceError(str(error)) from None
            assert self._guest is not None
            return self._guest
