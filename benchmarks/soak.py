"""The soak: many gigabytes of TCP in both directions at once, and what was lost, dropped and kept on the way.

    python -m benchmarks --soak 10 [--planes wgpy,wireguard-go]

So many GB go each way through each plane, a twentieth at a time, the planes in turn. After each portion the resident
memory is read: its slope over the GB carried, without the first quarter in which buffers come to be, says whether it grows
for ever. Drops are differences of the kernel's own counters (UDP sockets and links, in the nodes and the pods) from before
the soak to after it, and of wgpy's metrics; each that is not zero stands in a note by its name, so that it can be explained.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import report as show
from benchmarks.lab import End, LabError, Shape, Tunnel, lay
from benchmarks.planes import Plane, Wgpy
from benchmarks.results import Report, Row
from benchmarks.workloads import SERVER_PORT, Settings, Transfer, WorkloadError, iperf, serving
from controller.demo.topology import Namespace, Topology, TopologyError

PORTIONS = 20
WARM = PORTIONS // 4  # portions before the slope counts
SLOWEST = 50e6  # bits/s: a portion that is slower than this is stuck
GRACE_SECONDS = 20.0
METRICS_ADDRESS = "127.0.0.1:9586"
SCRAPE = f"import urllib.request as r; print(r.urlopen('http://{METRICS_ADDRESS}/metrics', timeout=5).read().decode())"

SPEED = Row("soak-speed", "TCP both ways at once, together", "Soak", "Gb/s", "higher")
RETRANSMITS = Row("soak-retransmits", "TCP segments sent again", "Soak", "per GB", "lower")
DROPS = Row("soak-drops", "drops counted by the kernel or by wgpy", "Soak", "per GB", "lower")
MEMORY = Row("soak-memory", "resident, each end, after every portion", "Soak", "MB", "lower")
SLOPE = Row("soak-memory-slope", "resident, each end, growth by GB carried", "Soak", "MB/GB", "lower")
ROWS = (SPEED, RETRANSMITS, DROPS, MEMORY, SLOPE)


class Observed(Wgpy):
    """wgpy that serves its metrics, too."""

    def start(self, end: End, other: End) -> None:
        end.start([*self.command(), "run", self.interface, "--metrics", METRICS_ADDRESS], self.env)


@dataclass
class Course:
    """One plane's way through the soak."""

    plane: Plane
    tunnel: Tunnel
    before: Counter[str]
    transfers: list[Transfer] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # GB carried, MB resident

    @property
    def gigabytes(self) -> float:
        return sum(transfer.gigabytes for transfer in self.transfers)


def run(planes: Sequence[Plane], gigabytes: float, settings: Settings, report: Report, watch: show.Watch) -> None:
    """``gigabytes`` each way through each plane. What fails is recorded, and the rest goes on."""
    with Topology.create() as topology:
        courses: list[Course] = []
        for number, plane in enumerate(planes):
            watch.doing(f"laying {plane.name}")
            with recorded(report, plane, watch):
                laid = Observed(plane.name, plane.without) if isinstance(plane, Wgpy) else plane
                tunnel = lay(topology, number, laid, laid, Shape())
                courses.append(Course(plane, tunnel, counters(tunnel)))
        watch.expect(PORTIONS * len(courses))
        for portion in range(PORTIONS):
            for course in courses if portion % 2 else courses[::-1]:
                watch.doing(f"soak {portion + 1}/{PORTIONS}  {course.plane.name}")
                with recorded(report, course.plane, watch):
                    watch.done(carry(course, gigabytes / PORTIONS, settings, report))
        for course in courses:
            with recorded(report, course.plane, watch):
                conclude(course, report)


@contextlib.contextmanager
def recorded(report: Report, plane: Plane, watch: show.Watch) -> Iterator[None]:
    """What goes wrong in the block becomes a failure of the plane's soak."""
    try:
        yield
    except (LabError, TopologyError, WorkloadError) as error:
        report.at(SPEED, plane.name).failures.append(str(error))
        watch.say(f"{plane.name}: failed: {error}")


def carry(course: Course, gigabytes: float, settings: Settings, report: Report) -> str:
    """One portion: ``gigabytes`` each way, at once."""
    course.tunnel.check()
    both = both_ways(course.tunnel, gigabytes, settings)
    course.tunnel.check()
    course.transfers += both
    resident = statistics.fmean(end.resident_bytes() for end in course.tunnel.ends) / 1e6
    course.memory.append((course.gigabytes, resident))
    speed = sum(transfer.bits_per_second for transfer in both) / 1e9
    report.at(SPEED, course.plane.name).values.append(speed)
    report.at(RETRANSMITS, course.plane.name).values.append(
        sum(transfer.retransmits for transfer in both) / sum(transfer.gigabytes for transfer in both)
    )
    if resident:
        report.at(MEMORY, course.plane.name).values.append(resident)
    return f"{show.figure(speed)} Gb/s, {show.figure(resident)} MB resident"


def both_ways(tunnel: Tunnel, gigabytes: float, settings: Settings) -> list[Transfer]:
    first, second = tunnel.ends
    timeout = GRACE_SECONDS + gigabytes * 8e9 / SLOWEST

    def one_way(sender: Namespace, receiver: End, port: int) -> Transfer:
        options = ["-n", f"{gigabytes * 1e9:.0f}", "-C", settings.congestion, "-p", str(port)]
        return iperf(sender, receiver.pod.address(4), options, timeout)

    with serving(second.pod, SERVER_PORT), serving(first.pod, SERVER_PORT + 1), ThreadPoolExecutor(2) as pool:
        forth = pool.submit(one_way, first.pod, second, SERVER_PORT)
        back = pool.submit(one_way, second.pod, first, SERVER_PORT + 1)
        return [forth.result(), back.result()]


def conclude(course: Course, report: Report) -> None:
    """What only the whole way tells: drops, by their names, and the slope of the memory."""
    if not course.transfers:
        raise WorkloadError("nothing was carried")
    dropped = counters(course.tunnel) - course.before
    measurement = report.at(DROPS, course.plane.name)
    measurement.values.append(dropped.total() / course.gigabytes)
    measurement.note = f"in {course.gigabytes:.1f} GB: " + (", ".join(f"{n} {name}" for name, n in dropped.items()) or "none")
    settled = course.memory[WARM:]
    if len(settled) > 1 and any(resident for _, resident in settled):
        slope = statistics.linear_regression(*zip(*settled, strict=True)).slope
        report.at(SLOPE, course.plane.name).values.append(slope)


# --- Counters ------------------------------------------------------------------------------------------------------------


def counters(tunnel: Tunnel) -> Counter[str]:
    """Everything that counts a drop at either end, by a name that says where."""
    found: Counter[str] = Counter()
    for end in tunnel.ends:
        for namespace in (end.node, end.pod):
            found += udp_errors(namespace.run(["cat", "/proc/net/snmp"]).stdout, namespace.key)
            found += link_drops(namespace.run(["ip", "-s", "-j", "link"]).stdout, namespace.key)
        if isinstance(end.plane, Observed):
            found += wgpy_drops(end.node.run([sys.executable, "-c", SCRAPE]).stdout, end.node.key)
    return found


def udp_errors(text: str, where: str) -> Counter[str]:
    """The errors in /proc/net/snmp's two lines about UDP. InErrors holds the others of reception, and is left out."""
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Udp:"))
    counts = zip(names, values, strict=True)
    return Counter(
        {f"{where} UDP {name}": int(value) for name, value in counts if name.endswith("Errors") and name != "InErrors"}
    )


def link_drops(text: str, where: str) -> Counter[str]:
    """Errors and drops of each link, as ``ip -s -j link`` tells them."""
    return Counter(
        {
            f"{where} {link['ifname']} {way} {kind}": link["stats64"][way][kind]
            for link in json.loads(text)
            for way in ("rx", "tx")
            for kind in ("errors", "dropped")
        }
    )


def wgpy_drops(text: str, where: str) -> Counter[str]:
    """wgpy's own counters, from its metrics."""
    return Counter(
        {
            f"{where} wgpy {sample.labels.get('reason', sample.name)}": int(sample.value)
            for family in text_string_to_metric_families(text)
            if family.name in ("wgpy_drops", "wgpy_send_errors")
            for sample in family.samples
            if sample.name.endswith("_total")
        }
    )
