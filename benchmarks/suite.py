"""The suite: every data plane under the same traffic, in turn, round by round.

All tunnels stand from the start. A round goes over the workloads, and each workload over the planes, beginning with
another plane in each round: whatever else the machine does meets all of them, and two planes' figures of one row are
seconds apart. Before a round the machine is asked how idle it is.

Not every plane is measured in full. wgpy, wireguard-go and the kernel's WireGuard run every row in every round; the others
only the rows by which planes are compared, in three rounds; variants of wgpy (wgpy-without-offload) one TCP stream. With
``--rows``, the rows that are named run on all planes. ``scale``, what peers and prefixes cost, comes last and has tunnels of
its own.

What fails is recorded where its value would have stood, and the rest goes on. Ctrl-C ends the run; what was measured by
then is shown and written all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from benchmarks import report as show
from benchmarks import soak
from benchmarks.handshakes import HANDSHAKES
from benchmarks.lab import LabError, Shape, Tunnel, lay
from benchmarks.planes import Plane, planes
from benchmarks.results import OURS, REFERENCE, Fact, Quiet, Report, read
from benchmarks.workloads import WORKLOADS, Settings, Values, Workload, WorkloadError
from controller.demo.topology import Topology, TopologyError, collect_leftovers

EMULATED_TSO_RTT_LOG = 14
RESULTS = Path(__file__).parent / "results"

IN_FULL = (OURS, REFERENCE, "kernel")
VARIANT_ROWS = ("tcp-1", "memory")
COMPARED_ROUNDS = 3

ALL: tuple[Workload, ...] = (*WORKLOADS, HANDSHAKES)
SCALE = "scale"  # the row, to --rows, that stands for all of benchmarks.scale
OF_WIREGUARD = (HANDSHAKES.name,)  # workloads that speak its protocol

SOAK_PLANES = (OURS, REFERENCE)
QUICK_PLANES = (OURS, REFERENCE, "veth")
QUICK_ROWS = ("tcp-1", "udp-1372", "udp-64", "ping-idle", "memory")
QUICK_ROUNDS = 3
QUICK_SECONDS = 1.5

OVERHEAD_SECONDS = 0.7  # of a measurement, beside its traffic: programs start and end
IDLE_SECONDS = 1.0  # over which the machine is watched before a round
IDLE_ENOUGH = 0.9  # of all cores: less, and another program takes part in the measurement

Place = tuple[str, Shape]  # the plane and the shape that tell a tunnel from the others


@dataclass(frozen=True)
class Job:
    """One workload on one plane in one round, counted from 0."""

    number: int
    workload: Workload
    plane: str

    @property
    def place(self) -> Place:
        return self.plane, self.workload.shape


@dataclass(frozen=True)
class Plan:
    """What a run is to do. ``chosen`` says that the workloads were named, and then every plane runs them.

    ``scale`` says whether benchmarks.scale is run after the rounds.
    """

    planes: tuple[Plane, ...]
    workloads: tuple[Workload, ...]
    rounds: int
    settings: Settings
    chosen: bool = False
    scale: bool = False
    emulated: bool = False

    def jobs(self) -> list[Job]:
        """Everything in its order. Round r begins with plane r."""
        return [
            Job(number, workload, plane.name)
            for number in range(self.rounds)
            for workload in self.workloads
            for plane in rotated(self.planes, number)
            if _can(workload, plane) and (self.chosen or _wanted(workload, plane.name, number))
        ]


def rotated(planes: tuple[Plane, ...], by: int) -> tuple[Plane, ...]:
    start = by % len(planes) if planes else 0
    return planes[start:] + planes[:start]


def _can(workload: Workload, plane: Plane) -> bool:
    return plane.protocol == "wireguard" or workload.name not in OF_WIREGUARD


def _wanted(workload: Workload, plane: str, number: int) -> bool:
    if plane in IN_FULL:
        return True
    if plane.startswith(f"{OURS}-"):
        return workload.name in VARIANT_ROWS
    return workload.compared and number < COMPARED_ROUNDS


# --- The run -------------------------------------------------------------------------------------------------------------


def run(plan: Plan, report: Report, watch: show.Watch) -> None:
    """Lay what the plan needs, do its jobs, and leave what they gave in ``report``."""
    jobs = plan.jobs()
    with contextlib.ExitStack() as stack:
        tunnels = lay_all(stack, plan, jobs, watch)
        watch.expect(len(jobs))
        if jobs:
            minutes = len(jobs) * (plan.settings.seconds + OVERHEAD_SECONDS) / 60
            watch.say(f"{len(jobs)} measurements: about {minutes:.0f} minutes")
        for number in range(plan.rounds if jobs else 0):
            quiet = look_at_machine()
            report.rounds.append(quiet)
            watch.say(f"round {number + 1} of {plan.rounds}: {show.quiet_text(quiet)}")
            for job in jobs:
                if job.number == number:
                    watch.doing(f"round {number + 1}/{plan.rounds}  {job.workload.name}  {job.plane}")
                    watch.done(do(job, tunnels[job.place], plan.settings, report))
    if plan.scale:
        run_scale(plan, report, watch)


def run_scale(plan: Plan, report: Report, watch: show.Watch) -> None:
    """benchmarks.scale, on the planes it is for; its verdict becomes a note."""
    from benchmarks import scale  # it stands on this module

    chosen = [plane for plane in plan.planes if plane.name in (OURS, REFERENCE)]
    if OURS not in (plane.name for plane in chosen):
        return
    watch.expect(None)
    watch.doing("scale: what peers and prefixes cost")
    for line in scale.measure(report, chosen, scale.SIZES, plan.rounds):
        watch.say(f"scale: {line}")
    setconf = report.at(scale.rows(scale.MANY)["setconf"], OURS)
    setconf.note = "; ".join(str(verdict) for verdict in scale.judge(report))


def lay_all(stack: contextlib.ExitStack, plan: Plan, jobs: Sequence[Job], watch: show.Watch) -> dict[Place, Tunnel | str]:
    """A tunnel for each plane in each shape that the jobs need, or why there is none. Each shape has an underlay of its own."""
    by_name = {plane.name: plane for plane in plan.planes}
    topologies: dict[Shape, Topology] = {}
    tunnels: dict[Place, Tunnel | str] = {}
    for name, shape in dict.fromkeys(job.place for job in jobs):
        watch.doing(f"laying {name}, MTU {shape.mtu}, over IPv{shape.outer}")
        if shape not in topologies:
            topologies[shape] = stack.enter_context(Topology.create())
        try:
            tunnel = lay(topologies[shape], len(tunnels), by_name[name], by_name[name], shape)
            if plan.emulated:
                slow_clock(tunnel)
            tunnels[name, shape] = tunnel
        except (LabError, TopologyError) as error:
            tunnels[name, shape] = str(error)
            watch.say(f"{name}: {error}")
    return tunnels


def slow_clock(tunnel: Tunnel) -> None:
    """Let TCP fill superpackets on an emulated machine as it does on a real one.

    It sizes them by what it sends in a millisecond, and fills them on paths whose round trip is under 2**tcp_tso_rtt_log
    microseconds. Both count real time, of which an emulated machine needs some thirty times as much for the same work:
    14 instead of 9 makes up for it, for every plane alike.
    """
    for end in tunnel.ends:
        for place in (end.node, end.pod):
            place.configure(sysctls={"ipv4/tcp_tso_rtt_log": EMULATED_TSO_RTT_LOG})


def do(job: Job, tunnel: Tunnel | str, settings: Settings, report: Report) -> str:
    """Do one job. Gives one line about it."""
    try:
        values = attempt(job.workload, tunnel, settings)
    except (LabError, TopologyError, WorkloadError, OSError) as error:
        reason = f"round {job.number + 1}: {error}" if not isinstance(tunnel, str) else tunnel
        for row in job.workload.rows:
            report.at(row, job.plane).failures.append(reason)
        return f"failed: {error}"
    for row, value in values.items():
        report.at(row, job.plane).values.append(value)
    return "; ".join(f"{show.figure(value)} {row.unit}" for row, value in values.items()) or "nothing to measure"


def attempt(workload: Workload, tunnel: Tunnel | str, settings: Settings) -> Values:
    """The workload's values. A data plane that died meanwhile explains a failure better than iperf3 does."""
    if isinstance(tunnel, str):
        raise LabError(tunnel)
    tunnel.check()
    try:
        values = workload.run(tunnel, settings)
    except (TopologyError, WorkloadError):
        tunnel.check()
        raise
    tunnel.check()
    return values


# --- The machine ---------------------------------------------------------------------------------------------------------


def look_at_machine(seconds: float = IDLE_SECONDS) -> Quiet:
    """How idle it is, with our tunnels standing and nothing going through them."""
    idle, total = _cpu_ticks()
    time.sleep(seconds)
    idle_then, total_then = _cpu_ticks()
    share = (idle_then - idle) / max(1, total_then - total)
    return Quiet(share, os.getloadavg()[0], share < IDLE_ENOUGH)


def _cpu_ticks() -> tuple[int, int]:
    """Idle ticks (waiting for disks included) and all ticks of all cores. Stolen ones count as busy."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def machine_facts() -> dict[str, Fact]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": cpu_model(),
        "cores": os.cpu_count() or 0,
        "memory, GB": round(memory / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def default_congestion() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


# --- The command ---------------------------------------------------------------------------------------------------------


class UsageError(Exception):
    """The command line asks for what there is not. The message is one line."""


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = described.add_argument
    add("--quick", action="store_true", help=f"a few rows of {', '.join(QUICK_PLANES)}: less than two minutes")
    add("--planes", metavar="A,B", help="these data planes only (default: all that are here)")
    add("--rows", metavar="NAMES", help="these rows only, on every plane: names or patterns (tcp-*), with commas between")
    add("--rounds", type=int, help="how often each row is measured (default 5)")
    add("--seconds", type=float, help="of traffic in each measurement (default 3)")
    add("--soak", type=float, metavar="GB", help="in place of the rows: so much TCP each way at once, of wgpy and wireguard-go")
    add("--congestion", default=default_congestion(), help="TCP's congestion control (default: the machine's, %(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="for latest.json, latest.md and the charts")
    add("--json", type=Path, metavar="FILE", help="write the report there, and nothing into --out")
    add("--report", type=Path, metavar="FILE", help="measure nothing: show and write what an earlier run left there")
    add("--list", action="store_true", help="list rows and planes, and say why a plane is missing")
    add("--emulated", action="store_true", help="say with every figure that this machine is emulated")
    return described


def main() -> int:
    arguments = parser().parse_args()
    console = show.console()
    try:
        if arguments.list:
            show.listing(console, ALL, planes())
            return 0
        if arguments.report is not None:
            return finish(read(arguments.report), arguments, console)
        return measure(arguments, console)
    except (UsageError, ValueError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def measure(arguments: argparse.Namespace, console: Console) -> int:
    """Run what the command line asks for. 130 if it was interrupted, 1 if nothing at all could be measured."""
    if os.geteuid() != 0:
        raise UsageError("network namespaces need root")
    plan = plan_of(arguments)
    report = Report(
        machine=machine_facts() | ({"emulated": True} if arguments.emulated else {}),
        planes={plane.name: plane.version() for plane in plan.planes},
        options=({"soak": arguments.soak} if arguments.soak else {"rounds": plan.rounds, "seconds": plan.settings.seconds})
        | {"congestion": plan.settings.congestion},
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    collect_leftovers()
    interrupted = False
    with show.Watch(console) as watch, ended_as_interrupted():
        try:
            if arguments.soak:
                soak.run(plan.planes, arguments.soak, plan.settings, report, watch)
            else:
                run(plan, report, watch)
        except KeyboardInterrupt:
            interrupted = report.options["interrupted"] = True
    status = finish(report, arguments, console) if report.measurements else 1
    return 130 if interrupted else status


@contextlib.contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C: the namespaces go, the figures stay."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    quick = arguments.quick
    rows = arguments.rows.split(",") if arguments.rows else list(QUICK_ROWS) if quick else ["*"]
    rounds = arguments.rounds or (QUICK_ROUNDS if quick else 5)
    seconds = arguments.seconds or (QUICK_SECONDS if quick else 3.0)
    return Plan(
        chosen_planes(arguments.planes, SOAK_PLANES if arguments.soak else QUICK_PLANES if quick else tuple(planes())),
        chosen_workloads(rows),
        rounds,
        Settings(seconds, arguments.congestion),
        chosen=bool(arguments.rows) or quick,
        scale=any(fnmatch(SCALE, pattern) for pattern in rows),
        emulated=arguments.emulated,
    )


def chosen_planes(names: str | None, usual: Sequence[str]) -> tuple[Plane, ...]:
    """The planes of these names, or those of the ``usual`` ones that are here. One that is named must be here."""
    known = planes()
    if names is None:
        return tuple(known[name] for name in usual if known[name].missing() is None)
    for name in names.split(","):
        if name not in known:
            raise UsageError(f"there is no data plane {name!r}; there are: {', '.join(known)}")
        if reason := known[name].missing():
            raise UsageError(reason)
    return tuple(known[name] for name in dict.fromkeys(names.split(",")))


def chosen_workloads(patterns: Sequence[str]) -> tuple[Workload, ...]:
    """The workloads that give a row of one of these names or patterns."""
    for pattern in patterns:
        if not fnmatch(SCALE, pattern) and not any(_gives(workload, pattern) for workload in ALL):
            raise UsageError(f"there is no row {pattern!r}; --list shows them")
    return tuple(workload for workload in ALL if any(_gives(workload, pattern) for pattern in patterns))


def _gives(workload: Workload, pattern: str) -> bool:
    return any(fnmatch(name, pattern) for name in (workload.name, *(row.name for row in workload.rows)))


def finish(report: Report, arguments: argparse.Namespace, console: Console) -> int:
    """Write the report and show it, in this order: a pipe that is closed takes nothing away."""
    if arguments.json is not None:
        arguments.json.write_text(report.to_json())
        paths = [arguments.json]
    else:
        paths = show.write(report, arguments.out)
    show.tables(console, report)
    console.print(f"\nwrote {', '.join(map(str, paths))}", soft_wrap=True)
    return 0 if any(measurement.values for measurement in report.measurements) else 1
