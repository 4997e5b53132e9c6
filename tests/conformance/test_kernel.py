"""The kernel's boxes: what is said is said to the kernel, what it says is understood, and nothing of the guest stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks import kernel_vm
from benchmarks.kernel_vm import GuestError
from controller.demo.topology import RUNS, Topology, TopologyError, collect_leftovers, runs
from controller.rtnetlink import messages
from noise.crypto import public_key
from tests.benchmarks.test_kernel_vm import guest_processes, wait_until
from tests.conformance import netlink
from tests.conformance.behaviour import Broken, NotApplicable
from tests.conformance.boxes import INTERFACE, PORT, ConformanceError, Plan
from tests.conformance.kernel import SLOTS, Kernel, KernelBox
from tests.wgpy.strategies import clamped, device_configs
from wgpy.config import NO_KEY, DeviceConfig, DeviceSnapshot, Endpoint, PeerConfig, SetDevice, SetPeer, changes_to
from wgpy.wgconf import format_key

PROJECT = Path(__file__).parents[2]
PATIENCE = 20.0
MANY = tuple(ip_network(f"10.{high}.{low}.0/24") for high in range(8) for low in range(250))
HOLDING = """
import time
from tests.conformance.kernel import Kernel
Kernel().version()
print("up", flush=True)
time.sleep(1000)
"""


def test_many_allowed_ips_go_in_messages_that_are_not_too_long() -> None:
    change = SetPeer(bytes(32), update_only=True, replace_allowed_ips=True, allowed_ips=MANY)

    said = list(netlink.set_messages(30, INTERFACE, change))

    assert len(said) == len(MANY) / netlink.ALLOWED_IPS_AT_ONCE
    assert max(map(len, said)) < 1 << 16, "an attribute says its length in 16 bits"
    assert all(len(list(messages(each))) == 1 for each in said)


def test_without_a_guest_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_vm, "KERNEL", PROJECT / "nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    assert Kernel().missing() == (f"the kernel's WireGuard runs in a guest: missing: a kernel in nowhere; run: {kernel_vm.SETUP}")


# In the guest ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    implementation = Kernel()
    if reason := implementation.missing():
        pytest.skip(reason)
    collect_leftovers()
    yield implementation
    implementation.close()


@pytest.fixture(scope="module")
def topology(kernel: Kernel) -> Iterator[Topology]:
    with Topology.create() as made:
        yield made


@pytest.fixture(scope="module")
def box(kernel: Kernel, topology: Topology) -> Iterator[KernelBox]:
    made = kernel.box(topology, Plan(1))
    assert made.get() == DeviceSnapshot()
    yield made
    made.close()


guest = [pytest.mark.e2e, pytest.mark.slow]


class TestGuest:
    pytestmark = guest

    def test_it_is_another_kernel_with_its_own_module(self, kernel: Kernel, box: KernelBox) -> None:
        release = box.run(["uname", "-r"]).stdout.strip()
        assert release != os.uname().release
        assert kernel.version().startswith(f"Linux {release}, its module 1.")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(config=device_configs)
    def test_the_kernel_is_what_it_is_told_to_be(self, box: KernelBox, config: DeviceConfig) -> None:
        box.set(changes_to(config))

        was = box.get().config
        assert was == DeviceConfig(config.private_key, config.listen_port or was.listen_port, config.fwmark, kept(config))

    def test_more_than_one_message_has_room_for_comes_back(self, box: KernelBox) -> None:
        box.set([SetDevice(replace_peers=True), SetPeer(b"\1" * 32, allowed_ips=MANY), SetPeer(b"\2" * 32)])

        first, second = (peer.config for peer in box.get().peers)

        assert (first.allowed_ips, second.public_key) == (MANY, b"\2" * 32)

    def test_wg_sees_the_same(self, box: KernelBox) -> None:
        private = clamped(os.urandom(32))
        peer = SetPeer(b"\3" * 32, preshared_key=b"\4" * 32, endpoint=Endpoint("fd00::7", 7), persistent_keepalive=9)
        box.set([SetDevice(private, PORT, 0x1234, replace_peers=True), peer])

        device, shown = (line.split("\t") for line in box.run(["wg", "show", INTERFACE, "dump"]).stdout.splitlines())

        assert device == [format_key(private), format_key(public_key(private)), str(PORT), "0x1234"]
        assert shown == [format_key(b"\3" * 32), format_key(b"\4" * 32), "[fd00::7]:7", "(none)", "0", "0", "0", "9"]

    def test_a_change_says_no_more_than_it_means(self, box: KernelBox) -> None:
        one, two = ip_network("10.1.0.0/16"), ip_network("fd01::/64")
        box.set([SetDevice(NO_KEY, replace_peers=True), SetPeer(b"\5" * 32, allowed_ips=(one,), persistent_keepalive=3)])
        box.set([SetPeer(b"\5" * 32, allowed_ips=(two,)), SetPeer(b"\6" * 32, update_only=True)])
        (peer,) = box.get().peers
        assert (peer.config.allowed_ips, peer.config.persistent_keepalive) == ((one, two), 3)

        box.set([SetPeer(b"\5" * 32, replace_allowed_ips=True, allowed_ips=(two,))])
        assert box.get().peers[0].config.allowed_ips == (two,)

        box.set([SetPeer(b"\5" * 32, remove=True)])
        assert box.get().peers == ()

    def test_what_only_newer_kernels_can_is_told_apart(self, box: KernelBox) -> None:
        gone = SetPeer(b"\1" * 32, removed_allowed_ips=(ip_network("10.1.0.0/16"),))
        release = tuple(map(int, box.run(["uname", "-r"]).stdout.split(".")[:2]))
        if release < (6, 16):
            with pytest.raises(NotApplicable, match=r"a kernel before 6\.16 cannot take a single allowed IP away"):
                box.set([gone])
        else:
            box.set([gone])

    def test_what_the_kernel_refuses_is_told(self, box: KernelBox) -> None:
        with pytest.raises(Broken, match="the kernel refuses to change the device: Numerical result out of range"):
            box.set([SetPeer(b"too short")])
        box.ip(f"link del {INTERFACE}")
        with pytest.raises(Broken, match="the kernel refuses to show the device: No such device"):
            box.get()
        box.ip(*box._interface())

    def test_a_restarted_one_knows_nothing(self, box: KernelBox) -> None:
        box.set([SetDevice(clamped(os.urandom(32)), PORT, 7), SetPeer(b"\7" * 32)])
        box.up()

        box.restart()

        assert box.get().config == DeviceConfig()
        assert f"{INTERFACE}: <POINTOPOINT,NOARP> mtu 1420" in box.run(["ip", "link", "show", INTERFACE]).stdout

    def test_it_is_on_the_wire_in_both_families_and_with_the_largest_packet(self, box: KernelBox) -> None:
        for version, overhead in ((4, 28), (6, 48)):
            for address in (box.plan.outer(version, 12), box.plan.inner(version, 11)):
                box.tester.run(["ping", "-n", "-c1", "-W5", "-Mdo", f"-s{9000 - overhead}", str(address)])

    def test_several_commands_run_at_a_time_and_one_that_takes_too_long_is_ended(self, box: KernelBox) -> None:
        late: list[BaseException] = []

        def wait() -> None:
            try:
                box.run(["sh", "-c", "sleep 1000 & sleep 1001"], timeout=3.0)
            except TopologyError as error:
                late.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert box.run(["echo", "meanwhile"]).stdout == "meanwhile\n"
        assert waiting.is_alive()
        waiting.join()
        assert "no end after 3 s" in str(late)
        assert "sleep" not in box.run(["ps", "-eo", "comm"]).stdout

    def test_a_command_that_fails_does_so_in_one_line(self, box: KernelBox) -> None:
        with pytest.raises(TopologyError, match=r"^ip link show nothing: Device \"nothing\" does not exist.$"):
            box.run(["ip", "link", "show", "nothing"])
        assert box.run(["sh", "-c", "exit 3"], check=False).returncode == 3
        assert box.run(["not-a-command"], check=False).returncode != 0

    def test_a_closed_box_leaves_its_wires_for_the_next(self, kernel: Kernel, topology: Topology, box: KernelBox) -> None:
        for number in range(2, SLOTS + 4):
            another = kernel.box(topology, Plan(number))
            try:
                another.up()
                another.tester.run(["ping", "-n", "-c1", "-W5", str(another.plan.outer(4, 11))])
            finally:
                another.close()
        assert box.guest.slots.qsize() == SLOTS - 1
        names = box.guest.run(["ip", "netns"]).stdout.split()
        assert [each for each in names if each.startswith("box")] == [box.namespace]

    def test_a_box_that_is_not_asked_for_anything_is_not_laid(self, kernel: Kernel, topology: Topology, box: KernelBox) -> None:
        another = kernel.box(topology, Plan(100))
        with pytest.raises(NotApplicable, match="kernel has no UAPI socket"):
            another.uapi(b"get=1\n\n")
        assert "box100" not in box.guest.run(["ip", "netns"]).stdout
        another.close()
        assert box.guest.slots.qsize() == SLOTS - 1

    def test_what_a_command_needs_of_the_kernel_is_loaded(self, box: KernelBox) -> None:
        box.ip("link add some type dummy", "link del some")
        box.run(
            [
                "nft",
                "add table inet some { chain every { type filter hook output priority 0; meta mark 7 ct state new counter; }; }",
            ]
        )
        box.run(["nft", "delete table inet some"])

    def test_its_clock_is_ours(self, box: KernelBox) -> None:
        before = time.time_ns()
        theirs = box.guest.ask("clock", nanoseconds=0)["nanoseconds"]
        assert before - 200e6 < theirs < time.time_ns() + 200e6


@pytest.mark.e2e
@pytest.mark.slow
def test_a_guest_that_dies_is_told_of(kernel: Kernel, topology: Topology) -> None:
    mortal = Kernel()
    try:
        box = mortal.box(topology, Plan(200))
        with pytest.raises(GuestError, match="the guest"):
            box.guest.run(["sh", "-c", "echo c >/proc/sysrq-trigger"])
        with pytest.raises(GuestError, match="the guest is dead"):
            box.get()
        box.close()
        with pytest.raises(GuestError, match="the guest is dead"):
            mortal.box(topology, Plan(201))
    finally:
        mortal.close()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_guest_that_panics_is_booted_once_more(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    panics = iter(["exit 1\n", "exit 1\n", "exit 1\n"])
    monkeypatch.setattr(kernel_vm, "init_script", lambda command: next(panics))
    twice = Kernel()
    with pytest.raises(ConformanceError, match=r"the guest died: .*panic"):
        twice.version()
    assert next(panics), "it was booted twice"
    twice.close()

    monkeypatch.undo()
    scripts = iter(["exit 1\n"])
    whole = kernel_vm.init_script
    monkeypatch.setattr(kernel_vm, "init_script", lambda command: next(scripts, None) or whole(command))
    once = Kernel()
    assert once.version().startswith("Linux ")
    once.close()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_the_guest_ends_with_the_process_that_booted_it(kernel: Kernel, by: signal.Signals) -> None:
    before = set(runs())
    command = [sys.executable, "-c", HOLDING]
    running = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        (run,) = set(runs()) - before
        assert guest_processes(RUNS / run) == ["qemu-system-x86_64", "virtiofsd"]

        running.send_signal(by)
        running.wait(PATIENCE)

        wait_until(lambda: not guest_processes(RUNS / run))
        assert run in collect_leftovers()
        assert not (RUNS / run).exists()
    finally:
        running.kill()
        running.communicate()


def kept(config: DeviceConfig) -> tuple[PeerConfig, ...]:
    """The peers as the kernel keeps them: an allowed IP belongs to the last that claims it."""
    owner = {prefix: peer.public_key for peer in config.peers for prefix in peer.allowed_ips}
    own = public_key(config.private_key) if config.private_key != NO_KEY else None
    return tuple(
        PeerConfig(
            peer.public_key,
            peer.preshared_key,
            peer.endpoint,
            peer.persistent_keepalive,
            tuple(prefix for prefix in peer.allowed_ips if owner[prefix] == peer.public_key),
        )
        for peer in config.peers
        if peer.public_key != own
    )
