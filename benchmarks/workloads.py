"""What is done to a tunnel, and what is read off it: the rows of the suite.

A *workload* is a few seconds of one kind of traffic between the two pods behind a tunnel (or the nodes themselves). It
gives the values of one row or of several: a TCP transfer gives Gb/s and CPU seconds per GB. iperf3 and ping make the
traffic, so nothing here is ours but the reading of what they say.

How figures are taken:

* Delivered is what the receiver got, over the receiver's time. What a UDP flood's sender could not get rid of, or what
  came too late, is not delivered.
* CPU is user and system time of the data plane's processes, from before the transfer to after it, by the bytes that the
  receiver got. The kernel's share of the work (softirqs on behalf of nobody) is in it as far as it ran in their time.
* A ping's echo is answered by the kernel of the far pod, so its time is the path's and no program's.

A workload that cannot be measured raises :class:`WorkloadError`, of one line; it never gives a zero for it.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from benchmarks.lab import Shape, Tunnel
from benchmarks.results import Row, percentile
from controller.demo.topology import Namespace

Values = dict[Row, float]

USUAL = Shape()
ROOMY = Shape(mtu=8920)
OVER_IPV6 = Shape(outer=6)

SERVER_PORT = 5201
SERVER_SECONDS = 5.0  # until an iperf3 server listens
GRACE_SECONDS = 20.0  # beyond a transfer's own time, before it counts as stuck
PING_INTERVAL = 0.01  # seconds: the path is idle before every echo, and a round of 3 s still has a 99th percentile
LOAD_LEAD_SECONDS = 0.5  # of TCP before the first ping beside it


class WorkloadError(Exception):
    """A workload could not be measured. The message is one line."""


@dataclass(frozen=True)
class Settings:
    """``seconds`` of traffic for each workload; ``congestion`` is TCP's congestion control."""

    seconds: float
    congestion: str


@dataclass(frozen=True)
class Workload:
    """``compared`` workloads are run on every plane; the others on the few that the suite looks at closely."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Tunnel, Settings], Values]
    shape: Shape = USUAL
    compared: bool = False


@dataclass(frozen=True)
class Transfer:
    """What iperf3 says of one transfer; ``seconds`` are the receiver's."""

    sent_packets: int
    received_bytes: int
    seconds: float
    retransmits: int

    @property
    def gigabytes(self) -> float:
        return self.received_bytes / 1e9

    @property
    def bits_per_second(self) -> float:
        return self.received_bytes * 8 / self.seconds


# --- iperf3 --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(receiver: Namespace, port: int = SERVER_PORT) -> Iterator[None]:
    """An iperf3 server for one transfer, which listens before this goes on and is gone after it."""
    server = receiver.start(["iperf3", "-s", "-1", "--forceflush", "-p", str(port)], subprocess.DEVNULL)
    try:
        _await_listener(receiver, server, port)
        yield
    finally:
        try:
            server.wait(1.0)
        except subprocess.TimeoutExpired:
            server.kill()  # the transfer failed: nobody ever came, or the end was lost on the way
            server.wait()


def _await_listener(receiver: Namespace, server: subprocess.Popen[bytes], port: int) -> None:
    """The server's socket, seen by the kernel, is a surer sign than its output, and connecting would use its one turn up."""
    listening = re.compile(rf"^\s*\d+: \S+:{port:04X} \S+ 0A ", re.MULTILINE)
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        tables = receiver.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], check=False).stdout
        if listening.search(tables):
            return
        time.sleep(0.02)
    raise WorkloadError("the iperf3 server does not listen")


def iperf(sender: Namespace, address: IPv4Address | IPv6Address, options: list[str], timeout: float) -> Transfer:
    """One transfer to the server at ``address``, which has ``timeout`` seconds."""
    result = sender.run(["iperf3", "-J", "-c", str(address), *options], timeout=timeout, check=False)
    return read_iperf(result.stdout or result.stderr)


def read_iperf(text: str) -> Transfer:
    """The transfer that iperf3's JSON speaks of. :class:`WorkloadError` if it tells of an error, or carried nothing."""
    try:
        said: dict[str, Any] = json.loads(text)
    except ValueError:
        raise WorkloadError(f"iperf3: {text.strip().splitlines()[-1] if text.strip() else 'no answer'}") from None
    if "error" in said:
        raise WorkloadError(f"iperf3: {said['error']}")
    sent, received = said["end"]["sum_sent"], said["end"]["sum_received"]
    if not received["bytes"] or not received["seconds"]:
        raise WorkloadError("iperf3: nothing was received")
    return Transfer(sent.get("packets", 0), received["bytes"], received["seconds"], sent.get("retransmits", 0))


def measured(tunnel: Tunnel, transfer: Callable[[], Transfer]) -> tuple[Transfer, list[float]]:
    """The transfer, and the CPU seconds that each end's data plane used meanwhile."""
    before = [end.cpu_seconds() for end in tunnel.ends]
    result = transfer()
    return result, [end.cpu_seconds() - start for end, start in zip(tunnel.ends, before, strict=True)]


def _tcp_options(settings: Settings, seconds: float, streams: int = 1) -> list[str]:
    return ["-t", f"{seconds:g}", "-P", str(streams), "-C", settings.congestion]


# --- TCP -----------------------------------------------------------------------------------------------------------------


def tcp(
    name: str,
    title: str,
    group: str = "TCP",
    *,
    streams: int = 1,
    backward: bool = False,
    version: int = 4,
    shape: Shape = USUAL,
    with_cpu: bool = False,
    compared: bool = False,
) -> Workload:
    """TCP from the first pod to the second, or ``backward``, over IP ``version``, and the CPU it costs if that is a row."""
    speed = Row(name, title, group, "Gb/s", "higher")
    cpu = tuple(
        Row(f"{name}-cpu{suffix}", f"{title}: {ends}", "CPU of the data plane", "s/GB", "lower")
        for suffix, ends in (("", "both ends"), ("-sender", "sender"), ("-receiver", "receiver"))
    )

    def run(tunnel: Tunnel, settings: Settings) -> Values:
        sender, receiver = reversed(tunnel.ends) if backward else tunnel.ends
        options = _tcp_options(settings, settings.seconds, streams)
        with serving(receiver.pod):
            address = receiver.pod.address(version)
            transfer, used = measured(tunnel, lambda: iperf(sender.pod, address, options, settings.seconds + GRACE_SECONDS))
        values = {speed: transfer.bits_per_second / 1e9}
        if with_cpu and any(used):  # a plane without processes has no CPU of its own
            first, second = (seconds / transfer.gigabytes for seconds in (reversed(used) if backward else used))
            values.update(zip(cpu, (first + second, first, second), strict=True))
        return values

    return Workload(name, (speed, *cpu) if with_cpu else (speed,), run, shape, compared)


def between_nodes() -> Workload:
    """TCP from node to node: between their own addresses on the tunnel's interfaces."""
    row = Row("tcp-nodes", "TCP, 1 stream, from node to node", "Shapes", "Gb/s", "higher")

    def run(tunnel: Tunnel, settings: Settings) -> Values:
        sender, receiver = tunnel.ends
        options = [*_tcp_options(settings, settings.seconds), "-B", str(sender.tunnel_address(4))]
        with serving(receiver.node):
            transfer = iperf(sender.node, receiver.tunnel_address(4), options, settings.seconds + GRACE_SECONDS)
        return {row: transfer.bits_per_second / 1e9}

    return Workload(row.name, (row,), run)


# --- UDP -----------------------------------------------------------------------------------------------------------------


def udp_flood(length: int) -> Workload:
    """UDP of ``length`` bytes, as fast as one sender can."""
    name, title = f"udp-{length}", f"UDP flood, {length} B"
    megabits = Row(name, title, "UDP flood, delivered", "Mb/s", "higher")
    packets = Row(f"{name}-packets", title, "UDP flood, delivered", "packets/s", "higher")

    def run(tunnel: Tunnel, settings: Settings) -> Values:
        transfer = udp(tunnel, settings, length, "0")
        return {megabits: transfer.bits_per_second / 1e6, packets: transfer.bits_per_second / 8 / length}

    return Workload(name, (megabits, packets), run, compared=True)


def udp_rate(length: int, rate: float, said: str) -> Workload:
    """UDP of ``length`` bytes at ``rate`` bits/s of payload. If the sender cannot keep the rate, there is no value."""
    name = f"udp-{length}-{said.split()[0].replace(',', '')}"
    lost = Row(f"{name}-lost", f"UDP, {length} B at {said}", "UDP at a fixed rate, lost", "%", "lower")

    def run(tunnel: Tunnel, settings: Settings) -> Values:
        transfer = udp(tunnel, settings, length, f"{rate:.0f}")
        wanted = rate / 8 / length * settings.seconds
        if transfer.sent_packets < 0.95 * wanted:
            raise WorkloadError(f"only {transfer.sent_packets / wanted:.0%} of the rate could be sent")
        return {lost: 100 * (1 - min(1.0, transfer.received_bytes / length / transfer.sent_packets))}

    return Workload(name, (lost,), run)


def udp(tunnel: Tunnel, settings: Settings, length: int, rate: str) -> Transfer:
    sender, receiver = tunnel.ends
    options = ["-u", "-b", rate, "-l", str(length), "-t", f"{settings.seconds:g}"]
    with serving(receiver.pod):
        return iperf(sender.pod, receiver.pod.address(4), options, settings.seconds + GRACE_SECONDS)


# --- Latency -------------------------------------------------------------------------------------------------------------

PING_IDLE = Row("ping-idle", "idle ping, mean", "Latency", "µs", "lower")
PING_IDLE_P50 = Row("ping-idle-p50", "idle ping, p50", "Latency", "µs", "lower")
PING_IDLE_P99 = Row("ping-idle-p99", "idle ping, p99", "Latency", "µs", "lower")
PING_FLOOD = Row("ping-flood", "flood ping, mean", "Latency", "µs", "lower")
PING_LOADED_P50 = Row("ping-loaded-p50", "ping beside TCP, p50", "Latency", "µs", "lower")
PING_LOADED_P99 = Row("ping-loaded-p99", "ping beside TCP, p99", "Latency", "µs", "lower")


def ping_idle(tunnel: Tunnel, settings: Settings) -> Values:
    times = echo_times(tunnel, settings.seconds)
    return {
        PING_IDLE: statistics.fmean(times),
        PING_IDLE_P50: percentile(times, 0.50),
        PING_IDLE_P99: percentile(times, 0.99),
    }


def ping_flood(tunnel: Tunnel, settings: Settings) -> Values:
    """As fast as answers come. ping waits in whole seconds only."""
    sender, receiver = tunnel.ends
    seconds = max(1, round(settings.seconds))
    output = sender.pod.run(
        ["ping", "-n", "-q", "-f", "-w", str(seconds), str(receiver.pod.address(4))], timeout=seconds + GRACE_SECONDS, check=False
    ).stdout
    return {PING_FLOOD: read_mean_rtt(output)}


def ping_loaded(tunnel: Tunnel, settings: Settings) -> Values:
    """Pings beside a TCP stream of the same direction, which runs before the first ping and until after the last."""
    sender, receiver = tunnel.ends
    options = ["-c", str(receiver.pod.address(4)), *_tcp_options(settings, settings.seconds + GRACE_SECONDS)]
    with serving(receiver.pod):
        load = sender.pod.start(["iperf3", *options], subprocess.DEVNULL)
        try:
            time.sleep(LOAD_LEAD_SECONDS)
            times = echo_times(tunnel, settings.seconds)
            if load.poll() is not None:
                raise WorkloadError("the TCP stream beside the pings broke off")
        finally:
            load.terminate()
            load.wait()
    return {PING_LOADED_P50: percentile(times, 0.50), PING_LOADED_P99: percentile(times, 0.99)}


def echo_times(tunnel: Tunnel, seconds: float) -> list[float]:
    """Microseconds of each echo from the first pod to the second and back."""
    sender, receiver = tunnel.ends
    count = max(10, round(seconds / PING_INTERVAL))
    command = ["ping", "-n", "-i", f"{PING_INTERVAL:g}", "-c", str(count), "-W", "1", str(receiver.pod.address(4))]
    return read_rtts(sender.pod.run(command, timeout=seconds + GRACE_SECONDS, check=False).stdout)


def read_rtts(output: str) -> list[float]:
    """Microseconds of each answer that ping tells of."""
    times = [float(each) * 1000 for each in re.findall(r"time=([\d.]+) ms", output)]
    if not times:
        raise WorkloadError("ping: no answer")
    return times


def read_mean_rtt(output: str) -> float:
    """Microseconds, from ping's summary."""
    found = re.search(r"min/avg/max/mdev = [\d.]+/([\d.]+)/", output)
    if found is None:
        raise WorkloadError("ping: no answer")
    return float(found[1]) * 1000


# --- Memory --------------------------------------------------------------------------------------------------------------

MEMORY = Row("memory", "resident after the rounds' load, each end", "Memory", "MB", "lower")


def memory(tunnel: Tunnel, _: Settings) -> Values:
    """Run last in every round. The mean of both ends; a plane without processes has no memory of its own."""
    resident = statistics.fmean(end.resident_bytes() for end in tunnel.ends)
    return {MEMORY: resident / 1e6} if resident else {}


WORKLOADS: tuple[Workload, ...] = (
    tcp("tcp-1", "TCP, 1 stream", with_cpu=True, compared=True),
    tcp("tcp-1-back", "TCP, 1 stream, other direction", backward=True),
    tcp("tcp-8", "TCP, 8 streams", streams=8, with_cpu=True, compared=True),
    tcp("tcp-8-back", "TCP, 8 streams, other direction", streams=8, backward=True),
    udp_flood(1372),
    udp_flood(512),
    udp_flood(64),
    udp_rate(1372, 200e6, "200 Mb/s"),
    udp_rate(1372, 500e6, "500 Mb/s"),
    udp_rate(64, 10_000 * 64 * 8, "10,000 packets/s"),
    Workload("ping-idle", (PING_IDLE, PING_IDLE_P50, PING_IDLE_P99), ping_idle, compared=True),
    Workload("ping-flood", (PING_FLOOD,), ping_flood, compared=True),
    Workload("ping-loaded", (PING_LOADED_P50, PING_LOADED_P99), ping_loaded),
    tcp("tcp-mtu-8920", "TCP, 1 stream, MTU 8920", "Shapes", shape=ROOMY),
    tcp("tcp-ipv6-inside", "TCP, 1 stream, IPv6 inside", "Shapes", version=6),
    tcp("tcp-ipv6-outside", "TCP, 1 stream, IPv6 outside", "Shapes", shape=OVER_IPV6),
    between_nodes(),
    Workload("memory", (MEMORY,), memory, compared=True),
)
