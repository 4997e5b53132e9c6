"""Real traffic between pods: pings that carry a marker, and iperf3."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.demo.topology import NAMESPACES, Namespace, Pod, TopologyError

PINGS = 3
PING_PATIENCE_SECONDS = 3  # for the last reply: a handshake that is lost once is repeated after 5 s, which is too late here
PING_LIMIT_SECONDS = 10.0  # for the whole command, whatever happens
PINGERS = 16  # at once

IPERF_PORT = 5201
IPERF_SECONDS = 15.0  # limit for a whole measurement
LISTENING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A ping to be sent: from a pod to a pod over IP ``version``, each packet filled with ``marker`` (at most 16 bytes)."""

    source: Pod
    destination: Pod
    version: int
    marker: bytes


def ping_all(probes: Sequence[Probe]) -> list[int]:
    """Send every probe :data:`PINGS` times, several at once. Gives how many replies came for each."""
    replies: list[int] = []
    for first in range(0, len(probes), PINGERS):
        pings = [_start_ping(probe) for probe in probes[first : first + PINGERS]]
        replies += [_replies(ping) for ping in pings]
    return replies


def _start_ping(probe: Probe) -> subprocess.Popen[bytes]:
    target = str(probe.destination.address(probe.version))
    # All at once (-l). -W counts until the first reply only: after it ping waits for the others two round trips, or the interval
    # if that is longer. Hence an interval that nobody waits for.
    patience = [f"-W{PING_PATIENCE_SECONDS}", f"-i{PING_PATIENCE_SECONDS}"]
    options = [f"-c{PINGS}", f"-l{PINGS}", *patience, f"-p{probe.marker.hex()}"]
    return probe.source.start(["ping", "-n", *options, target], subprocess.PIPE)


def _replies(ping: subprocess.Popen[bytes]) -> int:
    try:
        output, _ = ping.communicate(timeout=PING_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        ping.kill()
        output, _ = ping.communicate()
    return output.count(b" bytes from ")


def throughput(source: Pod, destination: Pod, version: int, amount: Sequence[str]) -> float:
    """TCP from ``source`` to ``destination`` with iperf3, in bits per second as received. ``amount``: ``-t1`` or ``-n16M``."""
    address = str(destination.address(version))
    server = destination.start(["iperf3", "-s", "-1", "-p", str(IPERF_PORT)], subprocess.DEVNULL)
    try:
        _wait_until_listening(server, destination)
        client = ["iperf3", "-J", "-c", address, "-p", str(IPERF_PORT), "--connect-timeout", "3000", *amount]
        output = source.run(client, check=False, timeout=IPERF_SECONDS).stdout
    finally:
        server.kill()
        server.wait()
    try:
        document = json.loads(output)
    except json.JSONDecodeError:
        raise TopologyError(f"iperf3 from {source.key} to {address}: no result") from None
    if "error" in document:
        raise TopologyError(f"iperf3 from {source.key} to {address}: {document['error']}")
    return float(document["end"]["sum_received"]["bits_per_second"])


def _wait_until_listening(server: subprocess.Popen[bytes], where: Namespace) -> None:
    """Return once the server has entered its namespace and a port is open there; it is the only one to open it."""
    deadline = time.monotonic() + LISTENING_SECONDS
    while not (_is_inside(server.pid, where) and _is_listening(server.pid, IPERF_PORT)):
        if server.poll() is not None or time.monotonic() > deadline:
            raise TopologyError(f"iperf3 does not start in {where.name}: exit status {server.poll()}")
        time.sleep(0.01)


def _is_inside(process: int, where: Namespace) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{process}/ns/net").st_ino == os.stat(NAMESPACES / where.name).st_ino
    return False


def _is_listening(process: int, port: int) -> bool:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    return True
    return False
