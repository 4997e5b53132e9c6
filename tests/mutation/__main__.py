"""Does a test fail when the code is wrong? Break the code in many small ways, one at a time, and count.

    python -m tests.mutation                                  all modules, 15 minutes each
    python -m tests.mutation noise/replay.py --seconds 300    one of them, in 5 minutes
    python -m tests.mutation noise/replay.py --survivors      again those not killed the last time, with the tests of now

mutmut breaks a copy of the tree and runs the tests that touch the broken function, the quick ones first, until one fails. A
mutant that no test notices *survived*: either a test is missing, or the mutant is no mistake (it only costs time, say). Which
it is has to be looked at; docs/mutants.md lists them. Tests run under :mod:`tests.mutation.limits`, so that figures repeat.

The status is 1 if a module's score is below 85 %. A mutant that makes a test loop for ever counts as killed.
"""

import argparse
import configparser
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.mutation.tree import refresh

GOAL = 85.0
MUTMUT = str(Path(sys.executable).parent / "mutmut")
PAPER = "tests/test_paper.py"
NETWORK = "tests/test_network.py"
CORE = "tests/wgpy/core"
NOISE = ("tests/noise", PAPER, NETWORK)
MODULES = {
    "noise/replay.py": NOISE,
    "noise/cookie.py": NOISE,
    "noise/transport.py": NOISE,
    "noise/keypair.py": NOISE,
    "noise/timers.py": NOISE,
    "noise/handshake.py": NOISE,
    "wgpy/core/peer.py": (CORE, PAPER, NETWORK),
    "wgpy/core/allowedips.py": (CORE, PAPER, NETWORK),
    "wgpy/core/inbound.py": (f"{CORE}/test_inbound.py", f"{CORE}/test_shortcuts.py", PAPER),
    "wgpy/core/outbound.py": (f"{CORE}/test_outbound.py", f"{CORE}/test_shortcuts.py", f"{CORE}/test_device.py", PAPER),
    "wgpy/core/device.py": (
        f"{CORE}/test_device.py",
        f"{CORE}/test_drops.py",
        f"{CORE}/test_handshakes.py",
        "tests/test_hostile.py",
        PAPER,
        NETWORK,
    ),
}
"""What is mutated, and the tests that judge it. A mutant that is killed takes a fifth of a second, one that survives as long as
all of its tests: so for the large modules these are not all there are, but those that are about the module."""

KINDS = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 5: "no tests", 33: "no tests", None: "not run"}
KILLED = ("killed", "timeout")
TIMEOUTS = {-24, 24, 36, 152, 255}
"""mutmut's exit codes: SIGXCPU in its several forms, and that of :mod:`tests.mutation.limits`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="break the code and see whether a test fails")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--seconds", type=float, default=900, help="for each module (900); what is left then was not run")
    parser.add_argument("--survivors", action="store_true", help="only mutants that were not killed before")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "wgpy-mutants"), help="where the copies are")
    arguments = parser.parse_args()
    unknown = [module for module in arguments.modules if module not in MODULES]
    if unknown:
        parser.error(f"no tests are named for {', '.join(unknown)}: choose of {', '.join(MODULES)}")
    is_good = True
    print(f"{'module':26}{'mutants':>8}{'killed':>8}{'timeout':>8}{'survived':>9}{'no tests':>9}{'not run':>8}{'score':>8}")
    for module in arguments.modules or MODULES:
        work = arguments.work / module.removesuffix(".py").replace("/", "-")
        run(module, work, arguments.seconds, survivors_only=arguments.survivors)
        is_good &= report(module, work)
    return 0 if is_good else 1


def run(module: str, work: Path, seconds: float, *, survivors_only: bool) -> None:
    """Run mutmut over ``module`` in a copy of the tree at ``work``. Its own words go to ``work``/mutmut.log."""
    refresh(work)
    _configure(module, work)
    names = [name for name, kind in results(module, work).items() if kind not in KILLED] if survivors_only else []
    if survivors_only and not names:
        return
    command = [MUTMUT, "run", "--max-children", "1", *names]
    with (work / "mutmut.log").open("w") as log:
        mutmut = subprocess.Popen(command, cwd=work, stdout=log, stderr=subprocess.STDOUT)
        try:
            with suppress(subprocess.TimeoutExpired):
                mutmut.wait(seconds)
            if mutmut.poll() is None:
                mutmut.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    mutmut.wait(60)  # for the mutant that is being tested
        finally:
            mutmut.kill()
    if mutmut.wait() > 0:
        tail = (work / "mutmut.log").read_text()[-3000:]
        raise SystemExit(f"mutmut ended with status {mutmut.returncode} over {module}; the end of {work / 'mutmut.log'}:\n{tail}")


def _configure(module: str, work: Path) -> None:
    """Tell mutmut, in the setup.cfg of the copy, what to break and how to test it."""
    settings = configparser.RawConfigParser()
    settings.read(work / "setup.cfg")
    settings["mutmut"] = {
        "source_paths": "\nnoise\ntun\nwgpy",
        "only_mutate": module,
        "pytest_add_cli_args": "\n-p\ntests.mutation.limits\n-p\nno:cacheprovider\n-m\nnot e2e and not slow",
        "pytest_add_cli_args_test_selection": "\n" + "\n".join(MODULES[module]),
        # Far away: tests.mutation.limits knows better what is endless.
        "timeout_constant": "600",
        "track_dependencies": "false",
        "use_git_change_detection": "false",
    }
    with (work / "setup.cfg").open("w") as file:
        settings.write(file)


def results(module: str, work: Path) -> dict[str, str]:
    """What became of each mutant, by mutmut's name for it."""
    path = work / "mutants" / f"{module}.meta"
    if not path.exists():
        return {}
    codes: dict[str, int | None] = json.loads(path.read_text())["exit_code_by_key"]
    return {name: "timeout" if code in TIMEOUTS else KINDS.get(code, f"exit {code}") for name, code in codes.items()}


def report(module: str, work: Path) -> bool:
    """Print the module's row and the mutants that survived. Whether the score is good enough."""
    found = results(module, work)
    counts = Counter(found.values())
    score = 100 * (counts["killed"] + counts["timeout"]) / max(1, len(found))
    columns = "".join(
        f"{counts[kind]:>{len(kind) + 1 if len(kind) > 7 else 8}}"
        for kind in ("killed", "timeout", "survived", "no tests", "not run")
    )
    print(f"{module:26}{len(found):>8}{columns}{score:>7.1f}%", flush=True)
    for name, kind in found.items():
        if kind not in (*KILLED, "not run"):
            print(f"    {name.rpartition('.')[2]}: {kind}\n{_change(name, work)}", flush=True)
    return score >= GOAL


def _change(name: str, work: Path) -> str:
    """The lines that differ between the code and a mutant of it."""
    shown = subprocess.run([MUTMUT, "show", name], cwd=work, capture_output=True, text=True, check=True).stdout
    return "\n".join(f"        {line}" for line in shown.splitlines() if re.match(r"[-+](?![-+]{2} )", line))


if __name__ == "__main__":
    sys.exit(main())
