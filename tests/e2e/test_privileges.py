"""Each feature with the capability it needs and without, in real processes; and what /proc says of them.

``wgpy.daemon.privileges`` has the list. A daemon is started with some capabilities by setpriv; the tunnel needs NET_ADMIN only.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.demo.topology import Node
from noise.crypto import clamp
from tests.e2e import lab
from tests.e2e.lab import FAMILIES, PORT, WGPY, DataPlane, Tunnel, inside, ping, processes_in, wait_for
from tests.e2e.wire import TRANSPORT, messages
from tun.linux import IFF_NO_PI, IFF_TUN, IFF_VNET_HDR
from wgpy.client import Client, ClientError
from wgpy.config import SetDevice
from wgpy.daemon.privileges import OFF_WITHOUT, Capability

NAME = "wg1"
NOBODY = 65534
KEPT = sum(1 << capability for capability in OFF_WITHOUT)
NET_ADMIN, NET_BIND_SERVICE, NET_RAW, SYS_ADMIN = (
    Capability.NET_ADMIN,
    Capability.NET_BIND_SERVICE,
    Capability.NET_RAW,
    Capability.SYS_ADMIN,
)
SAYS_WHAT_IS_OFF = "for want of a capability"

pytestmark = pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="setpriv is not installed: it is in the package util-linux"
)


def given(*capabilities: Capability) -> list[str]:
    """A prefix that runs a command as root with these capabilities and no others."""
    return ["setpriv", "--inh-caps=-all", f"--bounding-set={_words(capabilities)}"]


def as_nobody(*capabilities: Capability) -> list[str]:
    """A prefix that runs a command as a user who is not root, with ambient capabilities. The sockets' directory becomes his, and
    he sees a /dev/net/tun that everybody may open, as udev makes it and a bare machine has it not."""
    words = _words(capabilities)
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={words}", f"--ambient-caps={words}"]
    if subprocess.run(["setpriv", *user[:3], *WGPY, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this checkout cannot be read by a user who is not root")
    tun = os.stat("/dev/net/tun").st_rdev
    script = [
        "set -e",
        "mount -t tmpfs -o mode=755 tmpfs /dev/net",  # where nobody else sees it: ip netns exec gives mounts of one's own
        f"mknod -m 666 /dev/net/tun c {os.major(tun)} {os.minor(tun)}",
        f"chown {NOBODY} /var/run/wireguard",
        'exec "$0" "$@"',
    ]
    return ["sh", "-c", "\n".join(script), "setpriv", *user]


def _words(capabilities: Sequence[Capability]) -> str:
    return ",".join(["-all", *(f"+{capability.name.lower()}" for capability in capabilities)])


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    """Without DAC_OVERRIDE, or as another user, too, a daemon removes its socket file."""
    yield
    for process in processes_in(node):
        os.kill(process, signal.SIGTERM)
    wait_for(lambda: not processes_in(node), "all processes have ended")
    assert list(node.wireguard_directory.iterdir()) == []
    os.chown(node.wireguard_directory, 0, 0)


def start(node: Node, prefix: Sequence[str], *options: str, log_level: str = "info") -> DataPlane:
    """A drop-in for NAME that was started with ``prefix``, and is ready."""
    plane = DataPlane(node, NAME, [*prefix, *WGPY, *(options or ("-f",)), NAME], {"LOG_LEVEL": log_level}, keep_log=False)
    plane.wait_until_ready()
    return plane


def said(plane: DataPlane) -> str:
    """The one line about what is off; nothing if there is none."""
    lines = [line for line in plane.log.read_text().splitlines() if SAYS_WHAT_IS_OFF in line]
    assert len(lines) <= 1
    return "".join(lines)


# What is left ------------------------------------------------------------------------------------------------------


def statuses(process: int) -> list[dict[str, str]]:
    """/proc/…/status of each thread."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/status"):
        found.append(dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line))
    return found


def own_capabilities() -> int:
    return int(statuses(os.getpid())[0]["CapPrm"], 16)


def assert_restricted(process: int, capabilities: int) -> None:
    threads = statuses(process)
    assert threads
    for thread in threads:
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(thread[name], 16) == capabilities, name
        assert int(thread["CapInh"], 16) == int(thread["CapAmb"], 16) == 0
        assert thread["NoNewPrivs"] == "1"
    assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{process}/limits").read_text(), re.MULTILINE)
    assert not may_be_traced_by_its_own_user(process)


def may_be_traced_by_its_own_user(process: int) -> bool:
    """What root may see of its own process without CAP_SYS_PTRACE: as much as by ptrace, unless it is not dumpable."""
    without = ["setpriv", "--inh-caps=-all", "--bounding-set=-sys_ptrace"]
    return subprocess.run([*without, "readlink", f"/proc/{process}/exe"], capture_output=True, check=False).returncode == 0


def test_a_process_that_is_dumpable_would_be_seen() -> None:
    """What the tests below rely on."""
    with subprocess.Popen([*given(*Capability), "sleep", "60"]) as process:
        try:
            wait_for(lambda: statuses(process.pid)[0]["Name"] == "sleep", "setpriv has become sleep")
            assert may_be_traced_by_its_own_user(process.pid)
        finally:
            process.kill()


def test_in_the_foreground(node: Node) -> None:
    plane = start(node, [])

    assert_restricted(plane.process.pid, own_capabilities() & KEPT)
    plane.client.set([SetDevice(clamp(os.urandom(32)), PORT)])  # which has begun threads, if anything does
    assert_restricted(plane.process.pid, own_capabilities() & KEPT)
    assert said(plane) == ""
    assert plane.stop() == 0


def test_in_the_background(node: Node) -> None:
    node.run([*WGPY, NAME])

    (process,) = processes_in(node)
    assert_restricted(process, own_capabilities() & KEPT)


def test_as_a_service_with_two_interfaces_also_after_one_has_died(node: Node) -> None:
    state = node.directory / "state"
    plane = start(node, [], "run", "--state", str(state), "--metrics", "127.0.0.1:9586", "wg2")
    other = Client("wg2", directory=node.wireguard_directory)
    wait_for(lambda: _answers(other), "wg2 answers")
    before = processes_in(node)
    assert len(before) == 3
    for process in before:
        assert_restricted(process, own_capabilities() & KEPT)

    (child,) = (process for process, argv in before.items() if "wg2 " in argv and process != plane.process.pid)
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: len(processes_in(node).keys() - before.keys()) == 1, "it is started again")
    wait_for(lambda: _answers(other), "wg2 answers again")

    for process in processes_in(node):
        assert_restricted(process, own_capabilities() & KEPT)
    assert plane.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_leaves_no_core(node: Node, number: signal.Signals) -> None:
    plane = start(node, ["prlimit", "--core=unlimited"])

    plane.process.send_signal(number)
    ended = os.waitid(os.P_PID, plane.process.pid, os.WEXITED | os.WNOWAIT)

    assert ended is not None
    assert (ended.si_code, ended.si_status) == (os.CLD_KILLED, number)
    plane.process.wait()
    (node.wireguard_directory / f"{NAME}.sock").unlink()


# Each feature with its capability, and without -----------------------------------------------------------------------


@pytest.mark.parametrize("outer", FAMILIES)
def test_a_tunnel_needs_net_admin_only(monkeypatch: pytest.MonkeyPatch, outer: int) -> None:
    monkeypatch.setattr(lab, "WGPY", [*given(NET_ADMIN), *WGPY])
    with Tunnel.lay(("wgpy", "wgpy"), outer=outer) as tunnel:
        first, second = tunnel.ends
        for end in tunnel.ends:
            assert_restricted(end.plane.process.pid, 1 << NET_ADMIN)
        for version in FAMILIES:
            assert ping(first.pod, second.pod.address(version)) == 3
        first.client.set([SetDevice(fwmark=7, listen_port=PORT + 1)])
        assert first.client.get().fwmark == 7
        assert ping(first.pod, second.pod.address(4)) == 3


def test_a_tunnel_of_a_user_who_is_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "WGPY", [*as_nobody(NET_ADMIN), *WGPY])
    with Tunnel.lay(("wgpy", "wgpy")) as tunnel:
        first, second = tunnel.ends
        (status,) = statuses(first.plane.process.pid)
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {1 << NET_ADMIN}
        assert status["NoNewPrivs"] == "1"
        assert os.stat(f"/proc/{first.plane.process.pid}/status").st_uid == 0, "what /proc tells of it is root's: not dumpable"
        for version in FAMILIES:
            assert ping(first.pod, second.pod.address(version)) == 3
        first.node.configure(links=["link set wg0 mtu 1300"])
        first.client.set([SetDevice(fwmark=7, listen_port=PORT + 1)])
        assert ping(first.pod, second.pod.address(4)) == 3


def test_two_interfaces_of_a_user_who_is_not_root(node: Node) -> None:
    plane = start(node, as_nobody(NET_ADMIN), "run", "wg2")

    other = Client("wg2", directory=node.wireguard_directory)
    wait_for(lambda: _answers(other), "wg2 answers")
    children = [process for process in processes_in(node) if process != plane.process.pid]
    assert len(children) == 2
    for process in children:
        assert {int(thread["CapEff"], 16) for thread in statuses(process)} == {1 << NET_ADMIN}
    assert plane.stop() == 0


def test_without_net_admin_no_interface_can_be_made(node: Node) -> None:
    done = node.run([*given(NET_RAW, SYS_ADMIN, NET_BIND_SERVICE), *WGPY, NAME], check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"wgpy: no permission to create {NAME}: CAP_NET_ADMIN is missing, or the interface belongs to another user\n"
    )


def test_without_any_capability_an_interface_that_was_handed_over_works_but_for_the_mark(node: Node) -> None:
    import pytun

    tun = inside(node, lambda: pytun.TunTapDevice(name=NAME, flags=IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    log = node.directory / "handed-over.log"
    with handed_over(node, "WG_TUN_FD", tun.fileno(), given(), log) as client:
        tun.close()
        node.configure(links=[f"link set {NAME} up"])
        client.set([SetDevice(clamp(os.urandom(32)), PORT)])
        with pytest.raises(ClientError) as refused:
            client.set([SetDevice(fwmark=7, listen_port=PORT + 1)])
        assert refused.value.errno == 1  # EPERM
        assert (client.get().listen_port, client.get().fwmark) == (PORT, 0)
    (line,) = (line for line in log.read_text().splitlines() if SAYS_WHAT_IS_OFF in line)
    assert all(f"CAP_{capability.name}" in line for capability in Capability)


@contextmanager
def handed_over(node: Node, variable: str, fd: int, prefix: Sequence[str], log: Path) -> Iterator[Client]:
    """A drop-in for NAME that gets a descriptor from whoever starts it; its client, once it answers. It has to end well."""
    argv = node.command(["sh", "-c", 'exec 3<&0 </dev/null && exec "$0" "$@"', *prefix, *WGPY, "-f", NAME])
    env = {**os.environ, variable: "3", "LOG_LEVEL": "info"}
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=fd, stdout=output, stderr=output, env=env)
    client = Client(NAME, directory=node.wireguard_directory)
    try:
        wait_for(lambda: _answers(client), "it answers")
        yield client
    finally:
        process.terminate()
        assert process.wait(lab.PATIENCE) == 0, log.read_text()


def _answers(client: Client) -> bool:
    try:
        client.get()
    except ClientError:
        return False
    return True


@pytest.mark.parametrize("port", [1, 1023])
def test_a_listen_port_below_1024_and_the_capability_for_it(node: Node, port: int) -> None:
    plane = start(node, given(NET_ADMIN, NET_BIND_SERVICE))
    node.configure(links=[f"link set {NAME} up"])

    plane.client.set([SetDevice(clamp(os.urandom(32)), port)])

    assert plane.client.get().listen_port == port
    assert "CAP_NET_BIND_SERVICE" not in said(plane)
    assert plane.stop() == 0


def test_a_listen_port_below_1024_without_the_capability(node: Node) -> None:
    plane = start(node, given(NET_ADMIN))
    node.configure(links=[f"link set {NAME} up"])
    plane.client.set([SetDevice(clamp(os.urandom(32)), PORT)])

    with pytest.raises(ClientError) as refused:
        plane.client.set([SetDevice(listen_port=1)])

    assert refused.value.errno == 13  # EACCES
    assert plane.client.get().listen_port == PORT
    assert "no listen port below 1024 (CAP_NET_BIND_SERVICE)" in said(plane)
    assert plane.stop() == 0


@pytest.mark.parametrize("follows", [True, False])
def test_an_interface_that_is_moved_into_another_namespace(monkeypatch: pytest.MonkeyPatch, follows: bool) -> None:
    """With SYS_ADMIN its MTU there is known: 1299 bytes are not padded beyond it. Without, packets pass all the same."""
    capabilities = given(NET_ADMIN, SYS_ADMIN) if follows else given(NET_ADMIN)
    monkeypatch.setattr(lab, "WGPY", ["env", "LOG_LEVEL=info", *capabilities, *WGPY])
    with Tunnel.lay(("wgpy", "wgpy")) as tunnel:
        first, second = tunnel.ends
        first.node.run(["ip", "link", "set", "wg0", "netns", first.pod.name])
        first.pod.configure(links=["link set wg0 mtu 1300 up", *(f"route add {prefix} dev wg0" for prefix in second.blocks)])

        with tunnel.capture() as capture:
            source = ["-I", str(first.pod.address(4))]
            assert ping(first.pod, second.pod.address(4), *source, "-s", "1271", count=2) == 2
        sent = {one.padded_length for one in messages(capture.frames, TRANSPORT, source=first.node.address(4))}

        assert (1299 in sent, 1312 in sent) == (follows, not follows)
        assert ("CAP_SYS_ADMIN" in said(first.plane)) == (not follows)


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("tells", [True, False])
def test_a_sender_is_told_that_nobody_takes_its_packet(node: Node, version: int, tells: bool) -> None:
    plane = start(node, given(NET_ADMIN, NET_RAW) if tells else given(NET_ADMIN))
    unclaimed = lab.block(9, version)
    node.configure(
        links=[f"link set {NAME} up", f"addr add {lab.block(1, version)[1]} dev {NAME}", f"route add {unclaimed} dev {NAME}"]
    )

    done = node.run(["ping", "-n", "-c1", "-W1", str(unclaimed[1])], check=False)

    assert (re.search("unreachable", done.stdout, re.IGNORECASE) is not None) == tells, done.stdout
    assert ("no ICMP unreachables (CAP_NET_RAW)" in said(plane)) == (not tells)
    assert plane.stop() == 0


# Files ---------------------------------------------------------------------------------------------------------------


def test_files_are_their_owners_alone_whatever_the_umask(node: Node) -> None:
    state = node.directory / "parent" / "state"
    plane = start(node, ["sh", "-c", 'umask 000 && exec "$0" "$@"'], "run", "--state", str(state))
    plane.client.set([SetDevice(clamp(os.urandom(32)), PORT)])

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (state.parent, state, *state.iterdir())}
    assert modes == {state.parent: 0o755, state: 0o700, state / f"{NAME}.conf": 0o600}
    assert stat.S_IMODE((node.wireguard_directory / f"{NAME}.sock").stat().st_mode) == 0o700
    assert plane.stop() == 0


def test_a_state_directory_of_another_user_is_refused_at_the_start(node: Node) -> None:
    """Not when the first configuration cannot be kept in it: root, too, may not pass over its permissions any more."""
    state = node.directory / "theirs"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)

    done = node.run([*WGPY, "run", NAME, "--state", str(state)], check=False)

    assert done.returncode == 1
    assert done.stderr == f"wgpy: the state directory {state} is another user's: give it to the one who runs this\n"


def test_a_socket_file_that_cannot_be_removed_is_said_and_no_more(node: Node) -> None:
    """One that was handed over, in a directory of somebody else's."""
    path = node.wireguard_directory / f"{NAME}.sock"
    log = node.directory / "handed-over.log"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(node.wireguard_directory, NOBODY, NOBODY)
        node.wireguard_directory.chmod(0o755)
        with handed_over(node, "WG_UAPI_FD", listener.fileno(), [], log):
            pass

    assert log.read_text().splitlines()[-1].endswith(f"{path} cannot be removed: Permission denied; delete it")
    assert "Traceback" not in log.read_text()
    path.unlink()
    node.wireguard_directory.chmod(0o700)
