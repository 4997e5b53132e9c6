"""The emulated machine: what is asked of it, that it does it with the kernel's WireGuard, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import kernel_vm
from benchmarks.kernel_vm import GuestError, Outcome, init_script, labelled, main, run_in_guest, suite_command
from benchmarks.report import markdown
from benchmarks.results import Report, Row

needs_guest = pytest.mark.skipif(kernel_vm.missing() is not None, reason=f"no guest: {kernel_vm.missing()}")
SECONDS = 10.0  # for what takes one or two


@pytest.fixture
def workplace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where guests of this test work. pytest's own directories have names too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="guests-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def guest_processes(workplace: Path) -> list[str]:
    """What serves or emulates a guest there."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = each.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        program = Path(os.fsdecode(arguments[0])).name
        if program in ("qemu-system-x86_64", "virtiofsd") and os.fsencode(workplace) in b" ".join(arguments):
            found.append(program)
    return sorted(found)


def options(*arguments: str) -> str:
    return suite_command(kernel_vm._parser().parse_args(arguments))


# --- What is asked of it -------------------------------------------------------------------------------------------------


def is_shell(script: str) -> bool:
    return subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_command_reaches_the_guest_with_its_quotes(tmp_path: Path) -> None:
    (line,) = [line for line in init_script("printf '%s|' 'a  b' \"it's\"").splitlines() if line.startswith("chroot . ")]
    script = tmp_path / "script"
    script.write_text(line.removeprefix("chroot . "))

    said = subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout

    assert said == "a  b|it's|"


def test_the_first_process_is_a_shell_script() -> None:
    assert is_shell(init_script("true"))
    assert not is_shell("if")


def test_a_round_that_does_not_count_comes_before_the_one_that_does() -> None:
    command = options("--planes", "kernel,wgpy", "--rows", "tcp-*", "--rounds", "7", "--seconds", "4")

    warm_up, real = command.split("exec ")

    assert is_shell(command)
    for each in (warm_up, real):
        assert "--emulated" in each and "--planes=kernel,wgpy" in each and "'--rows=tcp-*'" in each
    assert "--rounds=1" in warm_up and "--json=/dev/null" in warm_up
    assert "--rounds=7" in real and "--seconds=4.0" in real and f"--json={kernel_vm.REPORT}" in real


def test_the_report_says_everywhere_that_its_machine_is_emulated() -> None:
    report = Report(machine={"CPU": "any"})
    report.at(Row("tcp-1", "TCP, 1 stream", "TCP", "Gb/s", "higher"), "kernel").values.append(0.1)
    assert "emulated" not in markdown(report)

    text = markdown(labelled(report))

    assert report.emulated
    assert "qemu TCG" in text
    above_figures = [line for line in text.splitlines() if line.startswith(("# ", "## TCP"))]
    assert len(above_figures) == 2 and all("emulated" in line for line in above_figures)


def test_without_a_kernel_it_says_in_one_line_what_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_vm, "KERNEL", kernel_vm.PROJECT / "nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    status = main([])

    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert "a kernel in nowhere" in line and kernel_vm.SETUP in line


@pytest.mark.parametrize("arguments", [("--rows", "tcp-1,nonsense"), ("--planes", "kernel,nonsense")])
def test_a_wrong_name_is_refused_before_anything_boots(
    arguments: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def booted(command: str, seconds: float) -> Outcome:
        raise AssertionError("it boots")

    monkeypatch.setattr(kernel_vm, "missing", lambda: None)
    monkeypatch.setattr(kernel_vm, "run_in_guest", booted)

    assert main(arguments) == 2
    assert "nonsense" in capsys.readouterr().err


# --- The guest itself ----------------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.slow
@needs_guest
def test_the_guest_has_the_kernels_wireguard_and_leaves_the_host_as_it_was(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = workplace / "kept"
    kept.write_text("the host's\n")

    outcome = run_in_guest(
        f"cat {kept}; echo changed >{kept}; cat {kept}; ip link add wg0 type wireguard; wg show interfaces;"
        f" .venv/bin/python -c 'import noise; print(noise.__name__)'; echo a report >{kernel_vm.REPORT}; exit 3",
        60.0,
    )

    kernel, *said = capfd.readouterr().out.splitlines()
    assert kernel.startswith("Linux ") and kernel.split()[1] != os.uname().release
    assert said == ["the host's", "changed", "wg0", "noise"]
    assert outcome == Outcome(3, "a report\n")
    assert kept.read_text() == "the host's\n"
    assert list(workplace.iterdir()) == [kept]
    assert not guest_processes(workplace)


@pytest.mark.e2e
@needs_guest
def test_a_guest_that_takes_too_long_is_stopped(workplace: Path) -> None:
    with pytest.raises(GuestError, match=r"is not up after 1 s"):
        run_in_guest("true", 1.0)

    assert not guest_processes(workplace)


@pytest.mark.e2e
@needs_guest
def test_a_guest_whose_kernel_panics_is_told_of(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_vm, "INIT", "exit 1\n")

    with pytest.raises(GuestError, match=r"the guest died: .*panic"):
        run_in_guest("true", 60.0)


@pytest.mark.e2e
@needs_guest
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_the_guest_ends_with_the_command_that_runs_it(by: signal.Signals, workplace: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--kernel-vm", "--", "sleep", "1000"]
    running = subprocess.Popen(command, cwd=kernel_vm.PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: guest_processes(workplace) == ["qemu-system-x86_64", "virtiofsd"])

        running.send_signal(by)

        assert running.wait(SECONDS) == (130 if by == signal.SIGINT else -by)
        wait_until(lambda: not guest_processes(workplace))
    finally:
        running.kill()
        running.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
