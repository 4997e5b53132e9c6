"""The fuzzers: ``make fuzz ARGS='--seconds 60 [TARGET...]'``.

    python -m tests.fuzz [--seconds S | --inputs N] [TARGET...]   look for findings: all targets, and the model checker
    python -m tests.fuzz TARGET FILE                              do it once more with one input
    python -m tests.fuzz --minimise [TARGET...]                   take what was found worth keeping into tests/fuzz/corpus

The time is shared evenly among the targets, and as many run at once as there are cores. What a run adds stays in .cache/fuzz
and is where the next begins. A finding ends its target; the input that caused it is kept in .cache/fuzz/findings, with what was
raised beside it. The exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "fuzz"
FINDINGS = CACHE / "findings"
MODEL = "model"
"""The model checker of tests/test_model.py. It is no target of bytes, but has its share of the time."""
SLOWEST_INPUT = 20
"""Seconds. An input that takes longer is a finding, too."""
MEMORY = 2048
"""Megabytes that a target may come to use."""


@dataclass
class Outcome:
    name: str
    inputs: int
    seconds: float
    added: int = 0
    findings: list[Path] = field(default_factory=list)

    def row(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0
        found = " ".join(str(path.relative_to(ROOT)) for path in self.findings) or "0"
        return f"{self.name:14} {self.inputs:>12,} {rate:>10,.0f} {self.added:>12,} {found:>9}"


HEADING = f"{'target':14} {'inputs':>12} {'inputs/s':>10} {'new entries':>12} {'findings':>9}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz wgpy, with coverage as the guide.")
    parser.add_argument("words", nargs="*", metavar="TARGET", help=f"of {', '.join([*TARGETS, MODEL])}; or a target and a file")
    parser.add_argument("--seconds", type=float, default=60, help="for all of it together (default: 60)")
    parser.add_argument("--inputs", type=int, default=0, help="end a target after so many inputs, however long they take")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many run at once (default: one a core)")
    parser.add_argument("--minimise", action="store_true", help="take what was found worth keeping into tests/fuzz/corpus")
    options = parser.parse_args(arguments)
    words: list[str] = options.words
    if len(words) == 2 and words[0] in TARGETS and Path(words[1]).is_file():
        TARGETS[words[0]].check(Path(words[1]).read_bytes())
        print(f"{words[0]}: nothing is wrong with {words[1]}")
        return 0
    if unknown := set(words) - {*TARGETS, MODEL}:
        parser.error(f"no such target: {', '.join(sorted(unknown))} (there are: {', '.join([*TARGETS, MODEL])})")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install -e '.[fuzz]' (there are wheels for Linux on x86-64)")
    names = words or [*TARGETS, MODEL]
    if options.minimise:
        for name in names:
            if name in TARGETS:
                minimise(name)
        return 0
    return search(names, options.seconds, options.inputs, max(1, min(options.jobs, len(names))))


def search(names: list[str], seconds: float, inputs: int, jobs: int) -> int:
    """Run the targets, and print the table line by line as they end. 1 if there was a finding."""
    share = seconds * jobs / len(names)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    print(HEADING, flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = []
        for outcome in pool.map(lambda name: run(name, share, inputs), names):
            outcomes.append(outcome)
            print(outcome.row(), flush=True)
    total, added = sum(outcome.inputs for outcome in outcomes), sum(outcome.added for outcome in outcomes)
    findings = sum(len(outcome.findings) for outcome in outcomes)
    print(f"{'together':14} {total:>12,} {'':10} {added:>12,} {findings:>9}")
    for outcome in outcomes:
        for finding in outcome.findings:
            print(f"\n{_complaint(finding)}")
            if outcome.name in TARGETS:
                print(f"Once more: {sys.executable} -m tests.fuzz {outcome.name} {finding.relative_to(ROOT)}")
    return int(findings > 0)


def run(name: str, seconds: float, inputs: int) -> Outcome:
    """One target for its share of the time, or for so many inputs."""
    log = CACHE / f"{name}.log"
    before = set(FINDINGS.iterdir())
    started = time.monotonic()
    command, entries = (_model, None) if name == MODEL else (_target, CACHE / "corpus" / name)
    if entries is not None:
        entries.mkdir(parents=True, exist_ok=True)
    had = len(list(entries.iterdir())) if entries else 0
    with log.open("wb") as output:
        done = subprocess.run(command(name, seconds, inputs), stdout=output, stderr=output, cwd=ROOT, check=False)
    took = time.monotonic() - started
    said = log.read_text(errors="replace")
    outcome = Outcome(name, _number(said), took, len(list(entries.iterdir())) - had if entries else 0)
    outcome.findings = sorted(path for path in set(FINDINGS.iterdir()) - before if path.name.startswith(f"{name}-"))
    if done.returncode and not outcome.findings:  # it says so itself, in its log: it has no input to show
        outcome.findings = [Path(shutil.copy(log, FINDINGS / f"{name}-{int(time.time())}"))]
    for finding in outcome.findings:
        finding.with_suffix(".txt").write_text(said)
    return outcome


def _target(name: str, seconds: float, inputs: int) -> list[str]:
    bound = f"-runs={inputs}" if inputs else f"-max_total_time={max(1, round(seconds))}"
    return [
        *_engine(name),
        bound,
        f"-timeout={SLOWEST_INPUT}",
        f"-rss_limit_mb={MEMORY}",
        f"-artifact_prefix={FINDINGS}/{name}-",
        "-print_final_stats=1",
        "-verbosity=1",
        str(CACHE / "corpus" / name),
        str(CORPUS / name),
    ]


def _model(name: str, seconds: float, inputs: int) -> list[str]:
    return [sys.executable, "-m", "tests.test_model", str(seconds)]


def _engine(name: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.engine", name]


def _number(said: str) -> int:
    """How many inputs, or histories, a log tells of."""
    found = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)\s|^(\d+) histories", said, re.MULTILINE)
    return int("".join(found[-1])) if found else 0


def _complaint(finding: Path) -> str:
    """What was raised, out of the log beside a finding."""
    said = finding.with_suffix(".txt").read_text(errors="replace")
    trace = said.rfind("Traceback (most recent call last)")
    return said[trace:].partition("\n==")[0].strip() if trace >= 0 else said[-2000:].strip()


def minimise(name: str) -> None:
    """As few and as short inputs as reach all that the corpus and .cache/fuzz reach."""
    kept = CACHE / "minimal" / name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    sources = [path for path in (CORPUS / name, CACHE / "corpus" / name) if path.is_dir()]
    with (CACHE / f"{name}.merge.log").open("wb") as output:
        command = [*_engine(name), "-merge=1", str(kept), *map(str, sources)]
        subprocess.run(command, stdout=output, stderr=output, cwd=ROOT, check=True)
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    shutil.copytree(kept, CORPUS / name)
    files = list((CORPUS / name).iterdir())
    print(f"{name}: {len(files)} inputs, {sum(path.stat().st_size for path in files):,} bytes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
