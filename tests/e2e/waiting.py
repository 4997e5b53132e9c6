"""Tests that mostly wait, each in a process of its own beside the quick tests.

How to think about it: a test with the mark ``waits`` takes minutes of the clock and little of the machine. When there are quick
tests to run as well, those go first, and every waiting test runs beside them in a pytest of its own, which hands its reports
over; they come out as if it had run here. All others, which measure or are measured, begin when the waiting ones have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

REPORTS = "WGPY_TEST_REPORTS"
"""In the environment of such a process: the file that its reports go to, a line of JSON each."""
PATIENCE = 300.0
"""Seconds that a waiting test may take at most."""
NOT_BESIDE = ("e2e", "slow", "waits", "kube")
MEASURES = "benchmarks"


def is_quick(item: pytest.Item) -> bool:
    """Whether it neither takes a noticeable part of the machine nor looks at the clock."""
    return not any(item.get_closest_marker(mark) for mark in NOT_BESIDE) and MEASURES not in item.path.parts


class Beside:
    """One waiting test and the process that it runs in."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._directory = tempfile.TemporaryDirectory(prefix="wgpy-waiting-")
        self._reports = Path(self._directory.name) / "reports"
        self._reports.touch()
        self._log = Path(self._directory.name) / "log"
        # It needs little of a core, but that at once: what is beside it gives way.
        first = ["nice", "-n", "-10"] if os.geteuid() == 0 else []
        command = [*first, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", item.nodeid]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=item.config.rootpath,
                env={**os.environ, REPORTS: str(self._reports)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def reports(self) -> list[pytest.TestReport]:
        """Wait for its end, and give its reports. The test has failed if there is none of how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self.stop()
        lines = self._reports.read_text().splitlines()
        from_data = partial(self._item.config.hook.pytest_report_from_serializable, config=self._item.config)
        reports: list[pytest.TestReport] = [from_data(data=json.loads(line)) for line in lines]
        for report in reports:
            if report.skipped:  # the place and the reason: JSON knows no tuples
                place: Any = report.longrepr
                report.longrepr = tuple(place)
        if not any(report.when == "teardown" for report in reports):
            said = f"in a process of its own it did not come to an end:\n{self._log.read_text(errors='replace')[-4000:]}"
            reports.append(pytest.TestReport(self._item.nodeid, self._item.location, {}, "failed", said, "call"))
        self._directory.cleanup()
        return reports

    def abandon(self) -> None:
        """Nobody wants its reports any more."""
        self.stop()
        self._directory.cleanup()

    def stop(self) -> None:
        """As Ctrl-C would: it cleans up behind itself."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Waiting:
    """The plugin. In a process that was started for one test it hands over reports and does nothing else."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._beside: dict[str, Beside] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        quick = [item for item in session.items if is_quick(item)]
        waiting = [item for item in session.items if item.get_closest_marker("waits")]
        if REPORTS in os.environ or self._config.option.collectonly or not quick:
            return
        rest = [item for item in session.items if item not in {*quick, *waiting}]
        session.items[:] = quick + waiting + rest
        self._beside = {item.nodeid: Beside(item) for item in waiting}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        beside = self._beside.pop(item.nodeid, None)
        if beside is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in beside.reports():
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if REPORTS in os.environ:
            data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
            with open(os.environ[REPORTS], "a") as file:
                file.write(json.dumps(data) + "\n")

    def pytest_sessionfinish(self) -> None:
        for beside in self._beside.values():
            beside.abandon()
