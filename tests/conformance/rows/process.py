"""The process (2.4 to 2.6): how it is started, when it ends, and that it follows what others do with its interface.

These are for implementations in userspace: the kernel's has no process. What is tried with a second interface, ``wg1``, has no
part in the tunnel; whatever is started for it is ended with the trial.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from controller.demo.topology import Namespace
from tests.conformance.behaviour import Broken, NotApplicable, behaviour, expect
from tests.conformance.boxes import INTERFACE, NODE_SYSCTLS, WIRE_MTU, ConformanceError, ProcessBox
from tests.conformance.peer import TRANSPORT
from tests.conformance.trial import Trial
from tests.e2e.lab import has_interface, inside, processes_in
from wgpy.client import Client, ClientError

SECOND = "wg1"
END_SECONDS = 8.0
"""In which it has to have ended."""
FOREGROUND = ("-f", "--foreground")


def process_box(trial: Trial) -> ProcessBox:
    if not isinstance(trial.box, ProcessBox):
        raise NotApplicable(f"{trial.box.name} is no process")
    return trial.box


def command(box: ProcessBox, *options: str) -> list[str]:
    """What starts another one, without the option to stay in the foreground."""
    return [*(word for word in box.implementation.command if word not in FOREGROUND), *options]


@contextlib.contextmanager
def nothing_left(box: ProcessBox) -> Iterator[None]:
    """Whatever else runs in the box when this is over is ended."""
    try:
        yield
    finally:
        for process in set(processes_in(box.namespace)) - {box.process}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def second_socket(box: ProcessBox) -> Path:
    return box.namespace.sockets / f"{SECOND}.sock"


def answers(box: ProcessBox) -> bool:
    """Whether somebody serves the second interface."""
    try:
        Client(SECOND, directory=box.namespace.sockets).get()
    except ClientError:
        return False
    return True


def start(box: ProcessBox, argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command in the box, which logs where the box does."""
    with box.log.open("ab") as log:
        return box.namespace.start(argv, log, {"LOG_LEVEL": "error", **box.implementation.env, **(env or {})})


def expect_end(process: subprocess.Popen[bytes], why: str) -> int:
    """Its exit status. Raises Broken if it has not ended in time."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        expect(False, f"it has not ended {END_SECONDS:g} s after {why}")
        raise


# 2.4, 2.5 Beginning ---------------------------------------------------------------------------------------------------


@behaviour("2.4", "it goes into the background, and what started it ends with 0 once interface and socket can be used", seconds=2)
def goes_into_the_background(trial: Trial) -> None:
    box = process_box(trial)
    with nothing_left(box):
        done = box.run(command(box, SECOND), check=False)
        expect(done.returncode == 0, f"it ends with {done.returncode}: {done.stderr.strip()[-100:]}")
        expect(has_interface(box.namespace, SECOND), "the interface is not there when what started it has ended")
        expect(answers(box), "the socket cannot be used when what started it has ended")
        others = set(processes_in(box.namespace)) - {box.process}
        expect(len(others) == 1, f"{len(others)} processes are left in the background")
        (process,) = others
        expect(os.readlink(f"/proc/{process}/fd/1") == "/dev/null", "its standard output is still that of who started it")
        box.ip(f"link del {SECOND}")
        trial.wait_until(
            lambda: not Path(f"/proc/{process}").exists(), "it has ended after its interface was deleted", END_SECONDS
        )


@behaviour("2.5", "it stays in the foreground with -f, with --foreground, and with WG_PROCESS_FOREGROUND=1", seconds=4)
def stays_in_the_foreground(trial: Trial) -> None:
    box = process_box(trial)
    with nothing_left(box):
        for options, env in ((["-f"], {}), (["--foreground"], {}), ([], {"WG_PROCESS_FOREGROUND": "1"})):
            how = " ".join(options) or "WG_PROCESS_FOREGROUND=1"
            process = start(box, command(box, *options, SECOND), env)
            deadline = time.monotonic() + END_SECONDS
            while process.poll() is None and not answers(box):
                expect(time.monotonic() < deadline, f"it does not serve its interface with {how}")
                time.sleep(0.05)
            expect(process.poll() is None, f"what was started has ended with {process.poll()}, with {how}")
            others = set(processes_in(box.namespace)) - {box.process}
            expect(others == {process.pid}, f"{len(others)} processes run with {how} instead of the one that was started")
            process.send_signal(signal.SIGTERM)
            expect_end(process, "a SIGTERM")


@behaviour("2.5", "--version says its version, and ends with 0")
def version_option(trial: Trial) -> None:
    box = process_box(trial)
    program = [word for word in command(box) if not word.startswith("--")]
    done = box.run([*program, "--version"], check=False)
    expect(done.returncode == 0, f"it ends with {done.returncode}")
    expect(any(letter.isdigit() for letter in done.stdout + done.stderr), "it tells no version")


@behaviour("2.4", "what cannot be set up ends with something else than 0, in one line or a few, and leaves nothing", seconds=3)
def set_up_fails(trial: Trial) -> None:
    box = process_box(trial)
    with nothing_left(box):
        before = sorted(path.name for path in box.namespace.sockets.iterdir())
        for name, why in (("a-name-that-is-too-long", "a name of 23 bytes"), ("eth0", "the name of another interface")):
            done = box.run(command(box, name), check=False)
            expect(done.returncode != 0, f"it ends with 0 though it cannot have {why}")
        after = sorted(path.name for path in box.namespace.sockets.iterdir())
        expect(after == before, f"it has left {', '.join(set(after) - set(before))}")
        expect(set(processes_in(box.namespace)) == {box.process}, "it has left a process")


@behaviour("2.1", "a second one for the same interface is refused, and the first goes on", seconds=2)
def second_is_refused(trial: Trial) -> None:
    box = process_box(trial)
    peer = trial.peer()
    session = peer.initiate()
    with nothing_left(box):
        done = box.run(command(box, INTERFACE), check=False)
        expect(done.returncode != 0, "a second one for the same interface ends with 0")
        expect(trial.known(peer).rx_bytes > 0, "somebody else answers for the interface now")
        trial.expect_inward(session, "a packet after a second one was started")


@behaviour("2.1", "a socket file that nobody serves is replaced", seconds=2)
def stale_socket_file(trial: Trial) -> None:
    box = process_box(trial)
    box.kill()
    trial.wait_until(lambda: not has_interface(box.namespace, INTERFACE), "the interface is gone with its process")
    if not box.socket_file.exists():
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(box.socket_file))
    try:
        box.restart()
    except ConformanceError as error:
        raise Broken(f"over a socket file that nobody serves {error}") from None
    trial.peer().initiate()


@behaviour("2.1", "the directory of the sockets is made if it is not there, and nobody else may write to it", seconds=2)
def socket_directory(trial: Trial) -> None:
    box = process_box(trial)
    # With a /var/run of its own, which is empty.
    script = """\
mount -t tmpfs none /var/run
"$@" &
for try in $(seq 40); do sleep 0.2; [ -S /var/run/wireguard/*.sock ] && break; done
stat -c "%a %F" /var/run/wireguard /var/run/wireguard/*.sock
kill $!
"""
    with nothing_left(box):
        done = box.run(["unshare", "-m", "sh", "-c", script, "sh", *command(box, "-f", SECOND)], check=False)
        lines = [
            line.split(None, 1) for line in done.stdout.splitlines() if line.split(None, 1)[1:] in (["directory"], ["socket"])
        ]
        modes = {kind: int(mode, 8) for mode, kind in lines}
        expect("directory" in modes and "socket" in modes, "no socket in a directory that was not there")
        expect(not modes["directory"] & 0o022, f"the directory has mode {modes['directory']:o}")
        expect(not modes["socket"] & 0o077, f"the socket has mode {modes['socket']:o}")


@behaviour("2.5", "interface and socket can be handed over, by WG_TUN_FD and WG_UAPI_FD", seconds=2)
def handed_over(trial: Trial) -> None:
    import pytun

    from tun.linux import IFF_NO_PI, IFF_TUN, IFF_VNET_HDR

    box = process_box(trial)
    # Some ask for the interface to have headers for offloads, and are wireguard-go's children when they get one.
    tun = inside(box.namespace, lambda: pytun.TunTapDevice(name=SECOND, flags=IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    with nothing_left(box), contextlib.closing(tun), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(second_socket(box)))
        listener.listen()
        with box.log.open("ab") as log:
            process = _start_with(box, [log.fileno(), tun.fileno(), listener.fileno()])
        try:
            listener.close()
            tun.close()
            trial.wait_until(lambda: answers(box), "it answers on the socket that it was handed", END_SECONDS)
            box.ip(f"link set {SECOND} up")
            port = lambda: Client(SECOND, directory=box.namespace.sockets).get().listen_port  # noqa: E731
            trial.wait_until(port, "the interface that it was handed is up for it")
        finally:
            os.kill(process, signal.SIGTERM)
            _, status = os.waitpid(process, 0)
        expect(os.waitstatus_to_exitcode(status) == 0, f"it ends with {os.waitstatus_to_exitcode(status)}")


def _start_with(box: ProcessBox, descriptors: Sequence[int]) -> int:
    """Start one in the foreground whose descriptors 2, 3 and 4 are log, interface and socket. Its process id."""
    argv = box.namespace.command(command(box, "-f", SECOND))
    env = {**os.environ, "WG_TUN_FD": "3", "WG_UAPI_FD": "4", "LOG_LEVEL": "error", **box.implementation.env}
    high = [os.dup2(descriptor, 200 + number) for number, descriptor in enumerate(descriptors)]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in zip(high, (2, 3, 4), strict=True)]
        return os.posix_spawnp(argv[0], argv, env, file_actions=actions)
    finally:
        for descriptor in high:
            os.close(descriptor)


@behaviour("2.5", "with LOG_LEVEL=verbose it says more than with silent", seconds=4)
def log_level(trial: Trial) -> None:
    box = process_box(trial)
    lengths = {}
    with nothing_left(box):
        for level in ("silent", "verbose"):
            log = box.directory / level
            with log.open("wb") as output:
                argv = command(box, "-f", SECOND)
                process = box.namespace.start(argv, output, {**box.implementation.env, "LOG_LEVEL": level})
            trial.wait_until(lambda: answers(box), "it serves its interface", END_SECONDS)
            box.ip(f"link set {SECOND} up")
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            expect_end(process, "a SIGTERM")
            lengths[level] = len(log.read_bytes())
    told = f"it has written {lengths['verbose']} bytes with LOG_LEVEL=verbose, and {lengths['silent']} with silent"
    expect(lengths["verbose"] > lengths["silent"], told)


# 2.5 Ending -----------------------------------------------------------------------------------------------------------


def expect_clean_end(box: ProcessBox, status: int | None, why: str) -> None:
    expect(status == 0, f"it ends with {status} after {why}")
    expect(not box.socket_file.exists(), f"its socket file is left after {why}")
    expect(not has_interface(box.namespace, INTERFACE), f"its interface is left after {why}")


@behaviour("2.5", "SIGTERM and SIGINT end it with 0, and it takes interface and socket file with it", seconds=3)
def ends_by_signal(trial: Trial) -> None:
    box = process_box(trial)
    trial.peer().initiate()
    for number in (signal.SIGTERM, signal.SIGINT):
        status = box.end(number)
        expect(status is not None, f"it has not ended after {number.name}")
        expect_clean_end(box, status, number.name)
        box.restart()


@behaviour("2.4", "it ends when its interface is deleted, and takes the socket file with it", seconds=2)
def ends_with_its_interface(trial: Trial) -> None:
    box = process_box(trial)
    trial.peer().initiate()
    box.ip(f"link del {INTERFACE}")
    status = box.ended(END_SECONDS)
    expect(status is not None, f"it has not ended {END_SECONDS:g} s after its interface was deleted")
    expect_clean_end(box, status, "its interface was deleted")


@behaviour("2.5", "it ends when its socket file is deleted, and takes the interface with it", seconds=2)
def ends_with_its_socket_file(trial: Trial) -> None:
    box = process_box(trial)
    trial.peer().initiate()
    box.socket_file.unlink()
    status = box.ended(END_SECONDS)
    expect(status is not None, f"it has not ended {END_SECONDS:g} s after its socket file was deleted")
    expect_clean_end(box, status, "its socket file was deleted")


# 2.6 Link state, MTU, namespaces --------------------------------------------------------------------------------------


@behaviour("2.6", "another MTU of the interface is followed, in both directions", seconds=2)
def mtu_is_followed(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    for mtu in (1300, WIRE_MTU - 100, 1420):
        trial.box.ip(f"link set {INTERFACE} mtu {mtu}")
        time.sleep(0.2)
        payload = os.urandom(mtu - 28 - 3)
        trial.outward(payload)
        packet = session.receive(f"a packet of three bytes less than an MTU of {mtu}")
        expect(payload in packet, f"a packet of {mtu - 3} bytes came changed")
        expect(len(packet) <= mtu, f"a packet is padded to {len(packet)} bytes at an MTU of {mtu}")
        session.send(trial.inward(payload))
        trial.inner.expect(payload, f"a packet of nearly the MTU of {mtu}")


def has_carrier(where: Namespace, link: str) -> bool:
    return "state UP" in where.run(["ip", "link", "show", "dev", link]).stdout


@contextlib.contextmanager
def elsewhere(trial: Trial, box: ProcessBox) -> Iterator[Namespace]:
    """Another namespace, which is given the interface and the inner leg: the sockets stay in the box."""
    other = Namespace(f"{box.namespace.name}x")
    subprocess.run(["ip", "netns", "add", other.name], check=True, capture_output=True)
    try:
        other.configure(sysctls=NODE_SYSCTLS)
        box.ip(f"link set {INTERFACE} netns {other.name}", f"link set eth1 netns {other.name}")
        plan = trial.plan
        lengths = {4: 24, 6: 64}
        other.configure(
            links=[
                "link set lo up",
                f"link set eth1 mtu {WIRE_MTU} up",
                *(f"addr add {plan.inner(version, 11)}/{length} dev eth1" for version, length in lengths.items()),
                *(f"addr add {plan.interface(version)} dev {INTERFACE}" for version in lengths),
                f"link set {INTERFACE} up",
                *plan.tunnel_routes(),
            ]
        )
        # The kernel takes note of a carrier up to a second late.
        trial.wait_until(lambda: has_carrier(trial.tester, "inner") and has_carrier(other, "eth1"), "the inner leg is up again")
        yield other
    finally:
        subprocess.run(["ip", "netns", "del", other.name], check=False, capture_output=True)


@behaviour(
    "2.6", "an interface that is moved to another network namespace goes on, and its sockets stay where it was made", seconds=4
)
def moved_elsewhere(trial: Trial) -> None:
    box = process_box(trial)
    peer = trial.peer()
    peer.initiate()
    with elsewhere(trial, box) as other:
        session = peer.initiate()
        for version in (4, 6):
            trial.expect_outward(session, "a packet by the interface in another namespace", version=version)
            trial.expect_inward(session, "a packet by the interface in another namespace", version=version)
        other.configure(links=[f"link set {INTERFACE} mtu 1300"])
        time.sleep(1.2)
        payload = os.urandom(1300 - 28 - 3)
        trial.outward(payload)
        packet = session.receive("a packet of 1297 bytes")
        expect(len(packet) <= 1300, f"a packet is padded to {len(packet)} bytes at an MTU of 1300 in another namespace")


@behaviour("2.6", "in another network namespace it still notices that the interface goes down, and comes up", seconds=5)
def moved_down_and_up(trial: Trial) -> None:
    box = process_box(trial)
    peer = trial.peer(keepalive=1)
    with elsewhere(trial, box) as other:
        session = peer.initiate()
        trial.expect_outward(session, "a packet by the interface in another namespace")
        other.configure(links=[f"link set {INTERFACE} down"])
        time.sleep(1.5)
        peer.drain()
        peer.expect_silence(1.5, "while the interface is down in another namespace", [TRANSPORT])
        other.configure(links=[f"link set {INTERFACE} up", *trial.plan.tunnel_routes()])
        time.sleep(0.5)
        trial.expect_outward(peer.initiate(), "a packet after the interface came up again")


@behaviour("2.6", "it ends when the network namespace is deleted in which its interface is", seconds=3)
def ends_with_the_namespace(trial: Trial) -> None:
    box = process_box(trial)
    peer = trial.peer()
    with elsewhere(trial, box):
        trial.expect_outward(peer.initiate(), "a packet by the interface in another namespace")
    status = box.ended(END_SECONDS)
    expect(status is not None, f"it has not ended {END_SECONDS:g} s after the namespace was deleted")
    expect(status == 0, f"it ends with {status}")
    expect(not box.socket_file.exists(), "its socket file is left")
