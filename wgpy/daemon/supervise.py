"""Keeps several data-plane processes alive, one for each interface: a crash of one is no business of the others.

How to think about it: signals are blocked, and waiting for one of them, or for the moment when a child is to be started again, is
all that happens. So nothing can come in between, and nobody waits for anybody else's pause.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import time
from math import inf

log = logging.getLogger(__name__)

SETUP_FAILED = 1
"""The exit status of a child that could not do its work at all."""

SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_AFTER = 60.0
"""Seconds: the pause of who lived as long is the shortest again."""

PR_SET_PDEATHSIG = 1

_END = (signal.SIGTERM, signal.SIGINT)
_WAITED_FOR = (*_END, signal.SIGCHLD)

_libc = ctypes.CDLL(None)


class _Child:
    """``start_at`` is when it is to be started again; infinity while it runs or is to stay away."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.pause = SHORTEST_PAUSE
        self.start()

    def start(self) -> None:
        self.start_at = inf
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, preexec_fn=_become_child)

    def ended(self) -> int | None:
        """Its exit status if it has ended and nobody has asked yet."""
        return self.process.poll() if self.process.returncode is None else None

    def restart_later(self, status: int) -> None:
        now = time.monotonic()
        if now - self.started > STEADY_AFTER:
            self.pause = SHORTEST_PAUSE
        log.warning("%s ended with status %d: starting it again in %.1f s", " ".join(self.command), status, self.pause)
        self.start_at = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)

    @property
    def has_been_up(self) -> bool:
        return time.monotonic() - self.started > STEADY_AFTER or self.pause > SHORTEST_PAUSE


def _become_child() -> None:
    """A supervisor that is killed must not leave processes that nobody watches."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)


def supervise(commands: list[list[str]]) -> int:
    """Run each command, start it again when it ends, and pass on SIGTERM and SIGINT; the exit status.

    A command that cannot be set up when it is first run ends them all with its status: its one line has said why.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    children = [_Child(command) for command in commands]
    status = 0
    stopping = False
    while any(child.process.returncode is None or child.start_at < inf for child in children):
        pause = min(child.start_at for child in children) - time.monotonic()
        received = signal.sigwaitinfo(_WAITED_FOR) if pause == inf else signal.sigtimedwait(_WAITED_FOR, max(0.0, pause))
        if received is not None and received.si_signo in _END:
            stopping = True
        for child in children:
            ended = child.ended()
            if ended == SETUP_FAILED and not child.has_been_up and not stopping:
                status, stopping = ended, True
            elif ended is not None and not stopping:
                child.restart_later(ended)
            elif child.start_at <= time.monotonic() and not stopping:
                child.start()
        if stopping:
            for child in children:
                child.start_at = inf
                child.process.send_signal(signal.SIGTERM)
    return status
