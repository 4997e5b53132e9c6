"""The command line of ``wgpy demo``: what is needed, what is left behind, and what the exit status means.

Exit status: 0 only if every promise held; 1 if one did not, or something of the cluster could not be built; 2 for a wrong
option or a machine that lacks something (one line says what to do); 128 and the signal's number when interrupted. However
it ends, what it made is removed, unless ``--keep`` was given.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from controller.demo import topology
from controller.demo.cluster import MAX_NODES, ClusterError, find_wireguard_go
from controller.demo.report import Report
from controller.demo.steps import Demo
from controller.demo.topology import UNDERLAY, Topology, TopologyError

MIN_NODES = 4
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A command that must be there, and the Debian package that brings it.
COMMANDS = {"ip": "iproute2", "ping": "iputils-ping", "iperf3": "iperf3", "mount": "mount"}


class Interrupted(BaseException):
    """One of :data:`SIGNALS` came. Like KeyboardInterrupt, it is not for ``except Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: list[str]) -> int:
    """Run ``wgpy demo`` with the arguments after its name; gives the exit status."""
    arguments = _parser().parse_args(argv)
    if problem := missing():
        print(f"wgpy demo: {problem}", file=sys.stderr)
        return 2
    try:
        with _interruptible():
            return (
                _clean(arguments.clean)
                if arguments.clean
                else _demonstrate(arguments.nodes, arguments.keep, arguments.output == "json")
            )
    except (TopologyError, ClusterError, OSError) as error:
        print(f"wgpy demo: {error}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(f"wgpy demo: interrupted by {signal.Signals(interruption.number).name}; everything is removed", file=sys.stderr)
        return 128 + interruption.number


def missing() -> str | None:
    """What this machine lacks, and what to do about it: one line; ``None`` if nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root: run it with sudo"
    for command, package in COMMANDS.items():
        if shutil.which(command) is None:
            return f"{command} is not installed: apt-get install {package}, or run make setup"
    if not Path("/dev/net/tun").exists():
        return (
            "there is no /dev/net/tun: load the module (modprobe tun), or give the container the device (--device /dev/net/tun)"
        )
    return None


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wgpy demo",
        description="A cluster on this machine, in network namespaces: nodes with pods, some encrypted, one plain, one running "
        "wireguard-go; real traffic, and a capture that proves what was encrypted. It cleans up after itself.",
    )
    parser.add_argument(
        "--nodes",
        type=_nodes,
        default=MIN_NODES,
        metavar="N",
        help=f"how many nodes, {MIN_NODES} to {MAX_NODES} (default {MIN_NODES})",
    )
    parser.add_argument("--keep", action="store_true", help="leave the cluster standing at the end, and say how to enter it")
    parser.add_argument(
        "--clean", nargs="?", const="all", metavar="RUN", help="remove what --keep or a crash has left, and do nothing else"
    )
    parser.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="json: one document on stdout, progress on stderr"
    )
    return parser


def _nodes(text: str) -> int:
    if not text.isdecimal() or not MIN_NODES <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {MIN_NODES} to {MAX_NODES}")
    return int(text)


def _clean(which: str) -> int:
    runs = [run for run in topology.runs() if which in ("all", run)]
    if which != "all" and not runs:
        print(f"wgpy demo: there is no run {which}; there are: {', '.join(topology.runs()) or 'none'}", file=sys.stderr)
        return 1
    standing = [run for run in runs if topology.is_alive(run)]
    for run in runs:
        if run not in standing:
            topology.remove_run(run)
            print(f"removed {run}")
    for run in standing:
        print(f"wgpy demo: {run} is still at work; end it with Ctrl-C where it runs", file=sys.stderr)
    return 1 if standing else 0


def _demonstrate(nodes: int, keep: bool, as_json: bool) -> int:
    report = Report(json=as_json)
    for run in topology.collect_leftovers():
        report.say(f"removed what a run that died had left: {run}")
    underlay = Topology.create()
    kept = False
    try:
        demo = Demo(underlay, find_wireguard_go(), report)
        demo.build(nodes)
        demo.run()
        kept = keep
    finally:
        with _uninterrupted():
            if kept:
                _say_how_to_enter(demo, underlay, report)
            else:
                underlay.remove()
    report.summary()
    if as_json:
        print(json.dumps(report.document(), indent=2))
    return 1 if report.broken else 0


def _say_how_to_enter(demo: Demo, underlay: Topology, report: Report) -> None:
    enter = demo.cluster.keep()
    node = next(iter(underlay.nodes.values()))
    pod = next(iter(node.pods))
    report.step("It is left standing")
    report.say(f"a shell in a node or pod:  {enter} {node.key}        {enter} {pod}")
    report.say(f"a command there:           {enter} {node.key} wg show")
    report.say(f"what a node says:          {enter} {node.key} wgpy mesh        (or doctor, verify, top)")
    report.say(f"the frames on the wire:    {enter} {UNDERLAY} tcpdump -ni br0")
    report.say(f"the manifests:             {underlay.directory}/cluster   (the agents follow every change)")
    report.say(f"logs and captures:         {underlay.directory}/")
    report.say(f"remove it:                 {_own_name()} demo --clean {underlay.run}")


def _own_name() -> str:
    """What to type for wgpy: as this process was called, since a checkout's is not in PATH."""
    return sys.argv[0] if Path(sys.argv[0]).name == "wgpy" else "wgpy"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """The first of :data:`SIGNALS` raises Interrupted where the program is; later ones do not disturb the clean-up."""

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
