"""Starting a data plane, for hosts that want one command (``wgpy agent --spawn``). It outlives the agent.

A data plane is any command that, given the name of an interface, makes a TUN and answers UAPI for it. Some stay in the
foreground (``wgpy run``), some leave a daemon behind (``wireguard-go``): both are right, what counts is that the socket
answers.
"""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from controller.netlink import Kernel
from wgpy.client import Client, ClientError, clear_abandoned

log = logging.getLogger(__name__)

START_SECONDS = 20.0
STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.05


class DataPlaneError(Exception):
    """A data plane did not start. The message is one line."""


@dataclass(slots=True)
class _Started:
    process: "subprocess.Popen[bytes]"
    made_link: bool


class Spawner:
    """Starts data planes, one for each interface, and knows which of them it started.

    ``command`` is words to which the interface's name is added, or takes the place of ``{interface}``; None is ``wgpy run``
    with a persistent interface, that keeps its configuration in ``state``. What a data plane prints goes to ``NAME.log`` in
    ``state``, since it goes on printing when the agent is gone.
    """

    def __init__(self, command: str | None, state: Path) -> None:
        self._state = state
        own = [sys.executable, "-m", "wgpy", "run", "{interface}", "--persist", "--state", str(state)]
        self._command = own if command is None else shlex.split(command)
        self._started: dict[str, _Started] = {}

    def start(self, interface: str, kernel: Kernel) -> None:
        """Start a data plane, unless one that we started is still on its way. Returns when it answers, else DataPlaneError."""
        started = self._started.get(interface)
        if started is not None and started.process.poll() is None and not _answers(interface):
            self._await(interface, started)
            return
        words = [word.replace("{interface}", interface) for word in self._command]
        if "{interface}" not in " ".join(self._command):
            words.append(interface)
        made_link = kernel.find_link(interface) is None
        try:
            with open(self._log(interface), "ab") as output:
                process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise DataPlaneError(f"cannot start the data plane {words[0]}: {error.strerror}") from None
        log.info("%s: started the data plane %s (process %d)", interface, shlex.join(words), process.pid)
        self._started[interface] = _Started(process, made_link)
        self._await(interface, self._started[interface])

    def undo(self, interface: str, kernel: Kernel) -> None:
        """Stop what :meth:`start` started, and remove the interface it made."""
        started = self._started.pop(interface, None)
        if started is None:
            return
        try:
            os.killpg(started.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while (started.process.poll() is None or _answers(interface)) and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        except ProcessLookupError:
            pass
        if started.made_link:
            kernel.delete_link(interface)
        clear_abandoned()

    def discard(self, interface: str, kernel: Kernel) -> None:
        """End the data plane of an interface that is no longer ours, by removing the interface."""
        if self._started.pop(interface, None) is not None or self._log(interface).exists():
            kernel.delete_link(interface)

    def _await(self, interface: str, started: _Started) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(interface):
            status = started.process.poll()
            if status:
                raise DataPlaneError(f"the data plane for {interface} ended with status {status}: {self._last_words(interface)}")
            if time.monotonic() > deadline:
                raise DataPlaneError(f"the data plane for {interface} does not answer: see {self._log(interface)}")
            time.sleep(_LOOK_SECONDS)

    def _log(self, interface: str) -> Path:
        return self._state / f"{interface}.log"

    def _last_words(self, interface: str) -> str:
        lines = self._log(interface).read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it gave no reason"


def _answers(interface: str) -> bool:
    try:
        Client(interface, timeout=1.0).get()
    except ClientError:
        return False
    return True
