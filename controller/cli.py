"""``wgpy agent`` and ``wgpy leave``: arguments in, one call out, and one line for whatever is wrong."""

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from controller.agent import RESYNC_SECONDS, Agent, AgentError
from controller.dataplane import Spawner
from controller.desired import DEFAULT_NUMBERS, Numbers
from controller.directory import POLL_SECONDS, DirectorySource
from controller.instance import Instance
from controller.model import Family
from controller.netlink import Kernel
from controller.statefiles import StateError, StateFiles

DEFAULT_STATE = Path("/var/lib/wgpy")

CAP_NET_ADMIN = 12
LAST_TABLE_OF_FELIX = 250
MARKS_OF_OTHERS = 0xFFFF0000 | 0x4000 | 0x8000
"""Felix's default mask, and the bits of kube-proxy."""

_Main = Callable[[argparse.Namespace, Kernel, StateFiles], Coroutine[Any, Any, None]]


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def agent(arguments: list[str]) -> int:
    """follow the cluster and configure this node's data plane, until SIGTERM; what is configured then stays"""
    parser = _parser("agent", agent)
    parser.add_argument("--spawn", action="store_true", help="start the data plane if none answers, and leave it running")
    parser.add_argument(
        "--data-plane",
        metavar="COMMAND",
        help="what --spawn starts: a command to which the interface's name is added, or put in the place of {interface} "
        "(default: wgpy run {interface} --persist --state DIR)",
    )
    parser.add_argument("--poll", type=_seconds, default=POLL_SECONDS, metavar="SECONDS", help="look for changes so often")
    parser.add_argument("--resync", type=_seconds, default=RESYNC_SECONDS, metavar="SECONDS", help="check everything so often")
    options = parser.parse_args(arguments)
    if options.data_plane is not None and not options.spawn:
        parser.error("--data-plane goes with --spawn")
    return _run("agent", options, _agent)


def leave(arguments: list[str]) -> int:
    """take this node out of the mesh: withdraw its keys, wait until no peer uses them, take the interfaces down"""
    options = _parser("leave", leave).parse_args(arguments)
    return _run("leave", options, _leave)


async def _agent(options: argparse.Namespace, kernel: Kernel, files: StateFiles) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    spawner = Spawner(options.data_plane, options.state) if options.spawn else None
    source = DirectorySource(options.directory, options.poll)
    await Agent(source, options.node, _instances(options, kernel, files, spawner), options.resync).run(stop)


async def _leave(options: argparse.Namespace, kernel: Kernel, files: StateFiles) -> None:
    await Agent(DirectorySource(options.directory), options.node, _instances(options, kernel, files, None)).leave()


def _instances(options: argparse.Namespace, kernel: Kernel, files: StateFiles, spawner: Spawner | None) -> list[Instance]:
    return [Instance(family, options.node, _numbers(options, family), kernel, files, spawner) for family in Family]


def _numbers(options: argparse.Namespace, family: Family) -> Numbers:
    is_ipv4 = family is Family.IPV4
    mark, mask = options.fwmark
    return replace(
        DEFAULT_NUMBERS[family],
        table=options.table if is_ipv4 else options.table_v6,
        interface=options.interface if is_ipv4 else options.interface_v6,
        fwmark=mark,
        fwmask=mask,
        rule_priority=options.rule_priority,
    )


def _run(verb: str, options: argparse.Namespace, main: _Main) -> int:
    """Run ``main``; the exit status: 0, or 1 with one line on standard error."""
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if options.interface_v6 is not None and options.interface_v6 == options.interface:
        return _fail(verb, "IPv4 and IPv6 need an interface each: --interface and --interface-v6 are the same")
    if not _may_configure_networks():
        return _fail(verb, "needs CAP_NET_ADMIN to configure interfaces and routes: run it as root, or grant the capability")
    try:
        files = StateFiles(options.state)
        files.lock()
        with Kernel() as kernel:
            asyncio.run(main(options, kernel, files))
    except (AgentError, StateError) as error:
        return _fail(verb, str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(verb: str, message: str) -> int:
    print(f"wgpy {verb}: {message}", file=sys.stderr)
    return 1


def _may_configure_networks() -> bool:
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return capabilities is None or bool(int(capabilities[1], 16) >> CAP_NET_ADMIN & 1)


# Arguments ----------------------------------------------------------------------------------------------------------


def _parser(verb: str, function: Callable[[list[str]], int]) -> _Parser:
    parser = _Parser(prog=f"wgpy {verb}", description=function.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--directory", type=Path, required=True, metavar="DIR", help="the cluster's objects: YAML files, one object in each"
    )
    default_node = os.environ.get("NODENAME") or socket.gethostname().lower()
    parser.add_argument("--node", default=default_node, metavar="NAME", help="which node this is (default: %(default)s)")
    parser.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="where private keys are kept (default: %(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="log every step")
    numbers = parser.add_argument_group(
        "names and numbers", "Change them only to avoid a collision, and alike for agent and leave."
    )
    felix = "Felix's, with a u at its end"
    numbers.add_argument("--interface", type=_interface, metavar="NAME", help=f"IPv4 interface (default: {felix})")
    numbers.add_argument("--interface-v6", type=_interface, metavar="NAME", help=f"IPv6 interface (default: {felix})")
    for option, family in (("--table", Family.IPV4), ("--table-v6", Family.IPV6)):
        default = DEFAULT_NUMBERS[family].table
        text = f"{family} routing table (default: {default})"
        numbers.add_argument(option, type=_table, default=default, metavar="NUMBER", help=text)
    numbers.add_argument(
        "--fwmark", type=_mark, default=(0x1000, 0x1000), metavar="MARK[/MASK]", help="marks encrypted packets (default: 0x1000)"
    )
    numbers.add_argument("--rule-priority", type=_priority, metavar="NUMBER", help="priority of the rule (default: Felix's)")
    return parser


def _interface(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", text) or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"not the name of an interface: {text!r}")
    if text.startswith("cali"):
        raise argparse.ArgumentTypeError(f"names with cali in front are those of Calico's pods: {text!r}")
    return text


def _table(text: str) -> int:
    table = _number(text, 1, (1 << 32) - 1)
    if table <= LAST_TABLE_OF_FELIX or table in (253, 254, 255):
        raise argparse.ArgumentTypeError(f"tables up to 250 are Felix's, and those from 253 to 255 the kernel's: {text}")
    return table


def _mark(text: str) -> tuple[int, int]:
    mark_text, slash, mask_text = text.partition("/")
    mark = _number(mark_text, 1, (1 << 32) - 1)
    mask = _number(mask_text, 1, (1 << 32) - 1) if slash else mark
    if mark & ~mask or mask & MARKS_OF_OTHERS:
        raise argparse.ArgumentTypeError(
            f"a mark lies within its mask, and both keep out of 0xffff0000 (Felix), 0x4000 and 0x8000 (kube-proxy): {text}"
        )
    return mark, mask


def _priority(text: str) -> int:
    return _number(text, 1, 32765)


def _number(text: str, low: int, high: int) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"not a number from {low} to {high}: {text!r}")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.01 <= seconds <= 90.0:
        raise argparse.ArgumentTypeError(f"not from 0.01 to 90 seconds: {text!r}")
    return seconds
