"""``wgpy agent`` and ``wgpy leave``: arguments in, one call out, and one line for whatever is wrong."""

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from controller.agent import Agent, AgentError, Options
from controller.dataplane import Spawner
from controller.desired import DEFAULT_NUMBERS, Numbers
from controller.directory import POLL_SECONDS, DirectorySource
from controller.external import ExternalPeers, ExternalPeersError
from controller.flanneld import Flanneld
from controller.instance import Instance
from controller.mesh import Kind, Mesh
from controller.mesh_table import Pods, add_arguments, pods_by_node, show
from controller.meshes.calico import IPAM_BLOCK, Calico
from controller.meshes.cilium import Cilium
from controller.meshes.flannel import Flannel, parse_net_conf
from controller.metrics import pages
from controller.model import Family
from controller.netlink import Kernel
from controller.source import Manifest, Source, SourceError
from controller.statefiles import STEP_ASIDE, StateError, StateFiles
from wgpy.exposition import Server

DEFAULT_STATE = Path("/var/lib/wgpy")
PODS_SECONDS = 5.0
"""How long ``wgpy mesh`` waits for the cluster to tell its pods."""

MESHES = ("calico", "cilium", "flannel")

CAP_NET_ADMIN = 12
LAST_TABLE_OF_FELIX = 250
MARKS_OF_OTHERS = 0xFFFF0000 | 0x4000 | 0x8000
"""Felix's default mask, and the bits of kube-proxy."""

_Main = Callable[[argparse.Namespace, "_Surroundings"], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What an agent works with."""

    source: Source
    mesh: Mesh
    kernel: Kernel
    files: StateFiles
    external_peers: ExternalPeers


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def agent(arguments: list[str]) -> int:
    """follow the cluster and configure this node's data plane, until SIGTERM; what is configured then stays"""
    parser = _acting_parser("agent", agent)
    parser.add_argument("--spawn", action="store_true", help="start the data plane if none answers, and leave it running")
    parser.add_argument(
        "--data-plane",
        metavar="COMMAND",
        help="what --spawn starts: a command to which the interface's name is added, or put in the place of {interface} "
        "(default: wgpy run {interface} --persist --state DIR)",
    )
    parser.add_argument(
        "--poll", type=_seconds, default=POLL_SECONDS, metavar="SECONDS", help="look for changes in a directory so often"
    )
    parser.add_argument(
        "--resync", type=_seconds, metavar="SECONDS", help="check everything so often (default: Felix's routeRefreshInterval, 90)"
    )
    parser.add_argument(
        "--metrics", type=_address, metavar="ADDRESS:PORT", help="serve /metrics, /healthz and /readyz there (default: nowhere)"
    )
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=os.environ.get("WGPY_STRICT", "").lower() in ("1", "true", "yes"),
        help="refuse what ought to be encrypted and cannot be, instead of letting it pass in clear (default: $WGPY_STRICT)",
    )
    options = parser.parse_args(arguments)
    if options.data_plane is not None and not options.spawn:
        parser.error("--data-plane goes with --spawn")
    return _run("agent", options, _agent)


def leave(arguments: list[str]) -> int:
    """take this node out of the mesh: withdraw its keys, wait until no peer uses them, take the interfaces down"""
    options = _acting_parser("leave", leave).parse_args(arguments)
    options.strict = False  # who leaves wants no part of it
    return _run("leave", options, _leave)


def mesh(arguments: list[str]) -> int:
    """show this node's peers, the pods behind each, and what becomes of packets to them"""
    parser = _parser("mesh", mesh)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.getLogger("controller.kube").setLevel(logging.CRITICAL)  # what fails is said in one line, by us
    return show(options.state, lambda: asyncio.run(_pods(options)), options.output)


async def _pods(options: argparse.Namespace) -> Pods:
    """The pods of the cluster by node; none where that cannot be found out just now."""
    try:
        source = _source(options, _Whole())
        try:
            async with asyncio.timeout(PODS_SECONDS):
                objects = await source.list()
        finally:
            await source.close()
    except (SourceError, TimeoutError) as error:
        print(f"wgpy mesh: without the pods: {str(error) or 'the cluster does not answer'}", file=sys.stderr)
        return {}
    return pods_by_node(manifest for ref, manifest in objects.items() if ref.kind == IPAM_BLOCK)


class _Whole(Calico):
    """Calico's mesh, but only its blocks, and these untrimmed: they tell of pods."""

    kinds: Mapping[str, Kind] = MappingProxyType({IPAM_BLOCK: Calico.kinds[IPAM_BLOCK]})

    def trim(self, manifest: Manifest) -> Manifest:
        return manifest


async def _agent(options: argparse.Namespace, around: _Surroundings) -> None:
    stop, end = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _set, end, stop)
    loop.add_signal_handler(STEP_ASIDE, stop.set)
    spawner = Spawner(options.data_plane, options.state) if options.spawn else None
    behaviour = Options(options.resync, remembers=options.directory is None, is_strict=options.strict)
    instances = _instances(options, around, spawner)
    duties = Flanneld(around.source, around.mesh.net_conf, options.node) if isinstance(around.mesh, Flannel) else None
    agent = Agent(around.source, around.mesh, options.node, instances, around.files, behaviour, duties)
    async with _pages(options.metrics, agent):
        await agent.run(stop)
        if not end.is_set():
            logging.info(
                "stepping aside: somebody else takes over %s; to be the agent again, this one has to be restarted", options.state
            )
            around.files.close()
            await end.wait()


def _set(*events: asyncio.Event) -> None:
    for event in events:
        event.set()


@asynccontextmanager
async def _pages(address: str | None, agent: Agent) -> AsyncIterator[None]:
    """Serve metrics and probes meanwhile, if there is an address for them. Raises AgentError."""
    if address is None:
        yield
        return
    server = Server(address, pages(agent.status))
    try:
        await server.start()
    except OSError as error:
        raise AgentError(f"cannot serve metrics on {address}: {error.strerror or error}: give --metrics another one") from None
    try:
        yield
    finally:
        await server.stop()


async def _leave(options: argparse.Namespace, around: _Surroundings) -> None:
    instances = _instances(options, around, None)
    await Agent(around.source, around.mesh, options.node, instances, around.files).leave()


def _instances(options: argparse.Namespace, around: _Surroundings, spawner: Spawner | None) -> list[Instance]:
    return [
        Instance(
            family,
            options.node,
            _numbers(options, family),
            around.kernel,
            around.files,
            spawner,
            is_strict=options.strict,
            external_peers=around.external_peers,
        )
        for family in Family
    ]


def _mesh(options: argparse.Namespace) -> Mesh:
    """Raises AgentError if what the mesh needs besides is not there."""
    if options.mesh == "calico":
        return Calico(options.node, os.environ)
    if options.mesh == "cilium":
        return Cilium()
    if options.net_conf is None:
        raise AgentError("Flannel's networks stand in no object: give its net-conf.json with --net-conf FILE")
    try:
        return Flannel(parse_net_conf(options.net_conf.read_text()))
    except OSError as error:
        raise AgentError(f"cannot read {options.net_conf}: {error.strerror}") from None
    except ValueError as error:
        raise AgentError(f"{options.net_conf}: {error}") from None


def _source(options: argparse.Namespace, mesh: Mesh) -> Source:
    """Raises SourceError if there is no cluster to read."""
    if options.directory is not None:
        return DirectorySource(options.directory, mesh, getattr(options, "poll", POLL_SECONDS))
    from controller.kube.source import KubernetesSource  # costs 50 MB: only who needs it pays

    return KubernetesSource(mesh, options.kubeconfig, options.context)


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
    if options.directory is not None and (options.kubeconfig or options.context):
        return _fail(verb, "--directory is a cluster without an API server: leave --kubeconfig and --context out")
    if options.interface_v6 is not None and options.interface_v6 == options.interface:
        return _fail(verb, "IPv4 and IPv6 need an interface each: --interface and --interface-v6 are the same")
    if not _may_configure_networks():
        return _fail(verb, "needs CAP_NET_ADMIN to configure interfaces and routes: run it as root, or grant the capability")
    try:
        files = StateFiles(options.state)
        files.lock(asks=verb == "leave")
        external_peers = ExternalPeers(options.external_peers)
        external_peers.load()
        mesh = _mesh(options)
        with Kernel() as kernel:
            asyncio.run(_with_source(main, options, mesh, kernel, files, external_peers))
    except (AgentError, StateError, SourceError, ExternalPeersError) as error:
        return _fail(verb, str(error))
    except KeyboardInterrupt:
        return 130
    return 0


async def _with_source(
    main: _Main, options: argparse.Namespace, mesh: Mesh, kernel: Kernel, files: StateFiles, external_peers: ExternalPeers
) -> None:
    source = _source(options, mesh)
    try:
        await main(options, _Surroundings(source, mesh, kernel, files, external_peers))
    finally:
        await source.close()


def _fail(verb: str, message: str) -> int:
    print(f"wgpy {verb}: {message}", file=sys.stderr)
    return 1


def _may_configure_networks() -> bool:
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return capabilities is None or bool(int(capabilities[1], 16) >> CAP_NET_ADMIN & 1)


# Arguments ----------------------------------------------------------------------------------------------------------


def _parser(verb: str, function: Callable[[list[str]], int]) -> _Parser:
    """What every verb knows: which cluster, which node, where its state is."""
    parser = _Parser(prog=f"wgpy {verb}", description=function.__doc__, allow_abbrev=False)
    cluster = parser.add_argument_group("the cluster", "Default: the one whose pod this is, else the one of $KUBECONFIG.")
    cluster.add_argument("--kubeconfig", type=Path, metavar="FILE", help="how to reach the API server, and as whom")
    cluster.add_argument("--context", metavar="NAME", help="which context of the kubeconfig (default: its current one)")
    cluster.add_argument(
        "--directory", type=Path, metavar="DIR", help="no API server, but YAML files in a directory, one object in each"
    )
    cluster.add_argument("--mesh", choices=MESHES, default="calico", help="whose nodes to join (default: %(default)s)")
    default_node = os.environ.get("NODENAME") or socket.gethostname().lower()
    parser.add_argument("--node", default=default_node, metavar="NAME", help="which node this is (default: %(default)s)")
    parser.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="where private keys are kept (default: %(default)s)"
    )
    return parser


def _acting_parser(verb: str, function: Callable[[list[str]], int]) -> _Parser:
    """What a verb knows besides that changes something on this host."""
    parser = _parser(verb, function)
    parser.add_argument(
        "--external-peers", type=Path, metavar="FILE", help="peers that are no nodes: [Peer] sections as in wg(8)'s files"
    )
    parser.add_argument(
        "--net-conf", type=Path, metavar="FILE", help="Flannel's net-conf.json, as every flanneld has it (with --mesh flannel)"
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


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"not ADDRESS:PORT, such as 127.0.0.1:9588: {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.01 <= seconds <= 90.0:
        raise argparse.ArgumentTypeError(f"not from 0.01 to 90 seconds: {text!r}")
    return seconds
