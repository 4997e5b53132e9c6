"""Keeps several data-plane processes alive, one for each interface: a crash of one is no business of the others."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from types import FrameType

log = logging.getLogger(__name__)

SETUP_FAILED = 1
"""The exit status of a child that could not do its work at all."""

SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_AFTER = 60.0
"""Seconds: who lived as long is started again at once, without a longer pause."""

PR_SET_PDEATHSIG = 1


class _Child:
    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.pause = SHORTEST_PAUSE
        self.start()

    def start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, preexec_fn=_die_with_parent)

    @property
    def has_been_up(self) -> bool:
        return time.monotonic() - self.started > STEADY_AFTER or self.pause > SHORTEST_PAUSE


def _die_with_parent() -> None:
    """A supervisor that is killed must not leave processes that nobody watches."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def supervise(commands: list[list[str]]) -> int:
    """Run each command, start it again when it ends, and pass on SIGTERM and SIGINT; the exit status.

    A command that cannot be set up when it is first run ends them all with its status: its one line has said why.
    """
    stopping = False
    children: list[_Child] = []

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    children += [_Child(command) for command in commands]
    status = 0
    while alive := [child for child in children if child.process.returncode is None]:
        pid, raw = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(raw)
        child = next((child for child in alive if child.process.pid == pid), None)
        if child is None:
            continue
        child.process.returncode = code
        if stopping:
            continue
        if code == SETUP_FAILED and not child.has_been_up:
            status = code
            stop(signal.SIGTERM, None)
            continue
        log.warning("%s ended with status %d: starting it again in %.1f s", " ".join(child.command), code, child.pause)
        time.sleep(child.pause)
        lived = time.monotonic() - child.started
        child.pause = SHORTEST_PAUSE if lived > STEADY_AFTER else min(2 * child.pause, LONGEST_PAUSE)
        if not stopping:
            child.start()
    return status
