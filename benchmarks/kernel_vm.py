"""The kernel's WireGuard beside the others, on a machine that lacks it: the suite inside an emulated one.

    python -m benchmarks --kernel-vm [--planes kernel,wireguard-go,wgpy] [--rows tcp-1,...] [--rounds 3] [--seconds 5]
    python -m benchmarks --kernel-vm -- COMMAND...      run any command in the guest instead

Think of the guest as this machine under another kernel. qemu boots a stock Debian kernel with this machine's root directory
as its own, shared by virtiofs: .venv, iperf3 and data planes are those that run outside. What the guest writes stays in its
own memory and is gone with it. It gets one script to run as process 1, and three virtio ports to talk through: what the
script says, a report, and an exit status. When the script ends, so does the guest.

Everything in the guest is *emulated* (qemu TCG, which needs no KVM): each instruction is translated, vector instructions
are played in software. It is ten to fifty times slower than this machine, and not evenly so: cryptography in vector
instructions loses more than system calls do. And what a kernel measures in time shrinks: TCP fills a superpacket with what
it sends in a millisecond, here one or two segments in place of 46. The suite makes up for that one (``suite.slow_clock``).
Ratios hold for the emulated machine; of a real one they are a hint.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report as show
from benchmarks.planes import planes
from benchmarks.results import Report
from benchmarks.suite import RESULTS, UsageError, chosen_workloads, cpu_model, look_at_machine

PROJECT = Path(__file__).parent.parent
KERNEL = PROJECT / ".cache" / "kernel-vm"
SETUP = "make setup-kernel-vm"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")  # Debian until 12, and from 13 on

# qemu 7.2 plays AVX and AVX2 in software at a third of the speed of SSE; numpy's wheels need SSE4.2.
PROCESSOR = "max,-avx2,-avx"
PROCESSORS = 2
MEMORY = "2G"
MODULES = "overlay wireguard veth bridge tun tcp_bbr virtio_net"
# Without randomised addresses, translations of a program are still good when it is started again.
COMMAND_LINE = (
    "rootfstype=virtiofs root=host ro console=ttyS0 quiet panic=-1 mitigations=off nokaslr norandmaps random.trust_cpu=on"
)

SAID_PORT, REPORT_PORT, STATUS_PORT = 1, 2, 3
REPORT = f"/dev/vport0p{REPORT_PORT}"
BOOT_SECONDS = 60.0
STOP_SECONDS = 5.0

PLANES = "kernel,wireguard-go,wgpy"
ROWS = "tcp-1,udp-1372,udp-64,ping-idle"
WARM_UP_SECONDS = 1.0

# Process 1 of the guest. If it fails it ends, the kernel panics, and qemu exits instead of rebooting. The overlay is what
# makes the host's files writable without being written. A reset is the quickest way out: nothing is left to be saved.
INIT = """\
set -e
export PATH={path} HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
exec </dev/null >/dev/vport0p{said} 2>&1
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
modprobe --dirname {kernel} --all {modules}
mount -t tmpfs run /run
printf '#!/bin/sh\\nexec modprobe --dirname %s "$@"\\n' {kernel} >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
mkdir /run/changes /run/work /run/root
mount -t overlay -o lowerdir=/,upperdir=/run/changes,workdir=/run/work overlay /run/root
cd /run/root
for each in proc sys dev; do mount --rbind /$each $each; done
mount -t tmpfs run run
mkdir run/netns
ip link set lo up
uname -sr
status=0
chroot . sh -c {command} || status=$?
echo $status >/dev/vport0p{status}
echo b >/proc/sysrq-trigger
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if reason := missing():
        _say(reason)
        return 2
    try:
        if arguments.command:
            return run_in_guest(shlex.join(arguments.command), arguments.timeout).status
        return measure(arguments)
    except UsageError as error:
        _say(str(error))
        return 2
    except (GuestError, OSError, ValueError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted: the guest is stopped, its figures are lost")
        return 130


def measure(arguments: argparse.Namespace) -> int:
    """Run the suite in the guest, and write the report that it hands out as the suite would have done itself."""
    check_names(arguments)
    quiet = look_at_machine()
    _say(f"this machine, before: {show.quiet_text(quiet)}")
    outcome = run_in_guest(suite_command(arguments), arguments.timeout)
    if not outcome.report:
        return outcome.status or 1
    report = labelled(Report.from_json(outcome.report))
    report.machine["idle before, outside"] = f"{quiet.idle:.0%}{', too busy to believe' if quiet.busy else ''}"
    if arguments.json is not None:
        arguments.json.write_text(report.to_json())
    else:
        for path in show.write(report, arguments.out):
            _say(f"wrote {path}")
    return outcome.status


def check_names(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what the guest would refuse a minute later."""
    chosen_workloads(arguments.rows.split(","))
    if unknown := set(arguments.planes.split(",")) - planes().keys():
        raise UsageError(f"there is no data plane {min(unknown)!r}; there are: {', '.join(planes())}")


def suite_command(arguments: argparse.Namespace) -> str:
    """The suite as the guest runs it, a round before it that does not count: what runs first is slow until translated.

    The suite writes its JSON into the port as into a file.
    """
    suite = [sys.executable, "-u", "-m", "benchmarks", "--emulated", f"--planes={arguments.planes}", f"--rows={arguments.rows}"]
    if arguments.congestion is not None:
        suite.append(f"--congestion={arguments.congestion}")
    warm_up = [*suite, "--rounds=1", f"--seconds={WARM_UP_SECONDS}", "--json=/dev/null"]
    real = [*suite, f"--rounds={arguments.rounds}", f"--seconds={arguments.seconds}", f"--json={REPORT}"]
    return f"echo 'a round that does not count'; {shlex.join(warm_up)} >/dev/null 2>&1; exec {shlex.join(real)}"


def labelled(report: Report) -> Report:
    """The report, with what emulates its machine among the facts."""
    report.machine["emulated"] = True
    report.machine["emulated by"] = f"qemu TCG, -cpu {PROCESSOR}"
    report.machine["emulated on"] = f"{cpu_model()}, {os.cpu_count()} cores"
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks --kernel-vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--planes", metavar="A,B", default=PLANES, help="these data planes (default: %(default)s)")
    add("--rows", metavar="NAMES", default=ROWS, help="these rows, names or patterns (default: %(default)s)")
    add("--rounds", type=int, default=3, help="how often each row is measured (default: %(default)s)")
    add("--seconds", type=float, default=5.0, help="of traffic in each measurement (default: %(default)s)")
    add("--congestion", help="TCP's congestion control: cubic, reno or bbr (default: the guest's, cubic)")
    add("--out", type=Path, default=RESULTS / "kernel-vm", metavar="DIR", help="for latest.json, latest.md and the charts")
    add("--json", type=Path, metavar="FILE", help="write the report there, and nothing into --out")
    add("--timeout", type=float, default=1200.0, metavar="SECONDS", help="then the guest is stopped (default: %(default)s)")
    add("command", nargs="*", metavar="COMMAND", help="what to run in the guest instead of the suite")
    return parser


class GuestError(Exception):
    """The guest could not be had, or did not come to an end of its own. The message is one line."""


@dataclass(frozen=True)
class Outcome:
    """The exit status of the command, and what it wrote to :data:`REPORT`."""

    status: int
    report: str


def missing() -> str | None:
    """What this machine lacks for a guest, in one line; None if nothing."""
    if os.geteuid() != 0:
        return "the guest sees this machine's files as root: run this as root"
    found = {
        "qemu-system-x86_64": shutil.which("qemu-system-x86_64"),
        "virtiofsd": _virtiofsd(),
        f"a kernel in {KERNEL.relative_to(PROJECT)}": (KERNEL / "ready").exists(),
    }
    lacking = [name for name, there in found.items() if not there]
    return f"missing: {', '.join(lacking)}; run: {SETUP}" if lacking else None


def run_in_guest(command: str, seconds: float) -> Outcome:
    """Boot the guest, run the shell's ``command`` as root, show on stdout what it says.

    After ``seconds`` the guest is stopped and GuestError raised. It is stopped in any case before this returns or raises,
    and dies with this process whatever ends that.
    """
    with tempfile.TemporaryDirectory(prefix="wgpy-kernel-vm-") as name:
        directory = Path(name)
        (directory / "init").write_text(init_script(command))
        with started(server_command(directory), directory / "server") as server:
            await_socket(directory, server)
            with started(machine_command(directory), directory / "machine", stdout=subprocess.PIPE) as machine:
                _show_output(machine, seconds, directory)
        return _outcome(directory)


def init_script(command: str) -> str:
    """The guest's process 1, which runs ``command`` in the project's directory."""
    path = [PROJECT / ".venv/bin", PROJECT / ".cache/bin", "/usr/local/sbin", "/usr/local/bin"]
    path += ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return INIT.format(
        path=shlex.quote(":".join(map(str, path))),
        said=SAID_PORT,
        status=STATUS_PORT,
        kernel=shlex.quote(str(KERNEL)),
        modules=MODULES,
        command=shlex.quote(f"cd {shlex.quote(str(PROJECT))} && {command}"),
    )


def server_command(directory: Path) -> list[str]:
    """What serves this machine's root directory on a socket in ``directory``."""
    # The sandbox of a mount namespace does not work for /: it cannot be pivoted away from itself.
    options = "source=/,cache=always,sandbox=chroot,log_level=err"
    return [_virtiofsd() or "virtiofsd", f"--socket-path={directory / 'files'}", "-o", options]


def machine_command(directory: Path) -> list[str]:
    """qemu with the guest's kernel. Its stdout is what the guest says; report and status become files in ``directory``."""
    (image,) = (KERNEL / "boot").glob("vmlinuz-*")
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi"]
    command += ["-cpu", PROCESSOR, "-smp", str(PROCESSORS), "-m", MEMORY]
    command += ["-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"]  # virtiofsd works in it
    command += ["-kernel", str(image), "-append", f"{COMMAND_LINE} init=/bin/sh -- {directory / 'init'}"]
    command += ["-serial", f"file:{directory / 'console'}", "-device", "virtio-serial-pci"]
    command += ["-chardev", f"socket,id=files,path={directory / 'files'}", "-device", "vhost-user-fs-pci,chardev=files,tag=host"]
    ports = {
        SAID_PORT: "file,path=/dev/stdout",
        REPORT_PORT: f"file,path={directory / 'report'}",
        STATUS_PORT: f"file,path={directory / 'status'}",
    }
    for number, backend in ports.items():
        command += ["-chardev", f"{backend},id=port{number}"]
        command += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
    return command


def _virtiofsd() -> str | None:
    return next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)


@contextlib.contextmanager
def started(
    command: Sequence[str], log: Path, stdout: int | None = None, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that ends with the block, and with the thread that is in it even if that is killed. Its stderr goes to ``log``."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=errors if stdout is None else stdout,
            stderr=errors,
            pass_fds=pass_fds,
            start_new_session=True,  # the terminal's Ctrl-C is ours to handle
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def await_socket(directory: Path, server: subprocess.Popen[bytes]) -> None:
    """Until the ``server`` of :func:`server_command` can be connected to. Raises GuestError if it never can."""
    deadline = time.monotonic() + STOP_SECONDS
    while not (directory / "files").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise GuestError(f"virtiofsd does not serve: {last_words(directory)}")
        time.sleep(0.005)


def _show_output(machine: subprocess.Popen[bytes], seconds: float, directory: Path) -> None:
    """Copy what the guest says to stdout until it ends. The first it says is its kernel's name, when it is up."""
    assert machine.stdout is not None
    start = time.monotonic()
    limit = min(BOOT_SECONDS, seconds)
    up = False
    while select.select([machine.stdout], [], [], max(0.0, start + limit - time.monotonic()))[0]:
        data = os.read(machine.stdout.fileno(), 65536)
        if not data:
            return
        if not up:
            _say(f"the guest is up after {time.monotonic() - start:.1f} s; everything in it is emulated (qemu TCG)")
            up, limit = True, seconds
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    raise GuestError(f"the guest {'has not ended' if up else 'is not up'} after {limit:.0f} s: {last_words(directory)}")


def _outcome(directory: Path) -> Outcome:
    status = directory / "status"
    said = status.read_text().strip() if status.exists() else ""
    if not said:
        raise GuestError(f"the guest died: {last_words(directory)}")
    return Outcome(int(said), (directory / "report").read_text())


def last_words(directory: Path) -> str:
    """The line that says most of what qemu (log ``machine``), the guest's kernel (``console``) or virtiofsd (``server``) left:
    that of a panic, or the last.

    virtiofsd comes last, because it has something to say at every end.
    """
    for name in ("machine", "console", "server"):
        log = directory / name
        if log.exists() and (lines := log.read_text(errors="replace").strip().splitlines()):
            return next((line for line in lines if "panic" in line), lines[-1])
    return "it left no word"


def _say(text: str) -> None:
    print(f"kernel-vm: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
