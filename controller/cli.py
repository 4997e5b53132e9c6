"""The agent's commands: arguments in, one call out, and one line for whatever is wrong.

``agent`` and ``leave`` change this node; ``mesh``, ``top``, ``doctor`` and ``verify`` look at it.
"""

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from controller.agent import Agent, AgentError, Options
from controller.dataplane import Spawner
from controller.desired import DEFAULT_NUMBERS, Numbers
from controller.directory import POLL_SECONDS, DirectorySource
from controller.external import ExternalPeers, ExternalPeersError
from controller.findings import FELIX_LINK_KIND
from controller.flanneld import Flanneld
from controller.graph import FORMATS, graph
from controller.instance import Instance
from controller.leaks import Detector
from controller.look import Look
from controller.look import show as show_looks
from controller.mesh import Mesh
from controller.mesh_table import NothingKnown, Pods, add_arguments, pods_by_node, read, show, world
from controller.meshes.calico import IPAM_BLOCK, Calico
from controller.meshes.cilium import Cilium
from controller.meshes.flannel import Flannel, parse_net_conf
from controller.metrics import pages
from controller.model import Cluster, Family
from controller.netlink import Kernel, NetlinkRefusal
from controller.source import Manifest, Objects, Source, SourceError
from controller.statefiles import STEP_ASIDE, StateError, StateFiles
from wgpy.coredump import leave_no_core_dump
from wgpy.exposition import Server

if TYPE_CHECKING:
    from controller.doctor.collect import LookingKernel

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
    _add_status_api(parser)
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=_is_set("WGPY_STRICT"),
        help="refuse what ought to be encrypted and cannot be, instead of letting it pass in clear (default: $WGPY_STRICT)",
    )
    parser.add_argument(
        "--yield-to-kernel",
        action=argparse.BooleanOptionalAction,
        default=_is_set("WGPY_YIELD_TO_KERNEL"),
        help="rest on a node whose kernel has WireGuard, which it is asked once, at the start (default: $WGPY_YIELD_TO_KERNEL)",
    )
    _add_leak_detector(parser)
    options = parser.parse_args(arguments)
    if options.data_plane is not None and not options.spawn:
        parser.error("--data-plane goes with --spawn")
    return _run("agent", options, _agent)


def leave(arguments: list[str]) -> int:
    """take this node out of the mesh: withdraw its keys, wait until no peer uses them, take the interfaces down"""
    options = _acting_parser("leave", leave).parse_args(arguments)
    options.strict = False  # who leaves wants no part of it
    options.yield_to_kernel = _is_set("WGPY_YIELD_TO_KERNEL")  # but Felix's key is Felix's
    return _run("leave", options, _leave)


def mesh(arguments: list[str]) -> int:
    """show every node and the pods behind it, and what becomes of packets between them; mesh graph draws it"""
    if arguments[:1] == ["graph"]:
        return _graph(arguments[1:])
    parser = _parser("mesh", mesh)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.getLogger("controller.kube").setLevel(logging.CRITICAL)  # what fails is said in one line, by us
    return show(options.state, lambda: world(*asyncio.run(_cluster(options, "mesh"))), options.output, options.watch)


def _graph(arguments: list[str]) -> int:
    """draw the mesh: nodes, what is behind each, and whether packets between them are encrypted"""
    parser = _parser("mesh graph", _graph)
    parser.add_argument("--format", choices=sorted(FORMATS), default="svg", help="(default: %(default)s)")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4, help="IP version (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.getLogger("controller.kube").setLevel(logging.CRITICAL)
    cluster, pods = asyncio.run(_cluster(options, "mesh graph"))
    if cluster is None:
        return _fail("mesh graph", "there is no cluster to draw: it does not answer, and no agent here remembers it")
    family = Family(options.family)
    try:
        status = read(options.state).of(family)
    except NothingKnown:
        status = None  # then by what the cluster says alone
    print(FORMATS[options.format](graph(cluster, family, pods, options.node, status)), end="")
    return 0


async def _cluster(options: argparse.Namespace, verb: str) -> tuple[Cluster | None, Pods]:
    """The cluster and its pods by node; what an agent remembers, and no pods, where that cannot be found out just now."""
    whole = _whole(options)
    try:
        source = _source(options, whole)
        try:
            async with asyncio.timeout(PODS_SECONDS):
                objects = await source.list()
        finally:
            await source.close()
    except (SourceError, TimeoutError) as error:
        print(f"wgpy {verb}: without the pods: {str(error) or 'the cluster does not answer'}", file=sys.stderr)
        try:
            remembered = StateFiles(options.state).objects() if options.state.is_dir() else None
        except StateError:
            remembered = None
        return (_understood(options, whole, remembered) if remembered is not None else None), {}
    pods = pods_by_node(manifest for ref, manifest in objects.items() if ref.kind == IPAM_BLOCK)
    return _understood(options, whole, objects), pods


def _understood(options: argparse.Namespace, whole: Mesh, objects: Objects) -> Cluster | None:
    """The cluster, None for Flannel's: without its net-conf.json, which only the agent is given, its nodes say too little."""
    return None if options.mesh == "flannel" else whole.observe(objects, options.node).cluster


def _whole(options: argparse.Namespace) -> Mesh:
    """The mesh, with all that its objects say."""
    return Cilium() if options.mesh == "cilium" else _Whole(options.node, os.environ)


def doctor(arguments: list[str]) -> int:
    """find what is wrong on this node, why it matters, and the command that mends it"""
    from controller.doctor import command
    from controller.doctor.collect import Collector, LookingKernel
    from controller.doctor.collect import Options as Look

    parser = _acting_parser("doctor", doctor)
    command.add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.CRITICAL, stream=sys.stderr, force=True)
    try:
        mesh = _mesh(options)
        external = ExternalPeers(options.external_peers).load() if options.external_peers is not None else None
    except (AgentError, ExternalPeersError) as error:
        return _fail("doctor", str(error), 2)
    server = None
    if options.directory is None:
        from controller.doctor.server import ask

        server = partial(ask, options.kubeconfig, options.context, options.node)
    numbers = {family: _numbers(options, family) for family in Family}
    look = Look(options.node, options.state, numbers, sends=not options.passive, external_peers=external)
    try:
        with LookingKernel() as kernel:
            seen = (Collector(look, mesh, kernel, server).collect(*_source_or_why(options, mesh)) for _ in count())
            return command.run(seen, options.output, options.watch)
    except NetlinkRefusal as error:
        return _fail("doctor", str(error), 2)


def _source_or_why(options: argparse.Namespace, mesh: Mesh) -> tuple[Source | None, str | None]:
    """The cluster's source, or why there is none."""
    try:
        return _source(options, mesh), None
    except SourceError as error:
        return None, str(error)


def verify(arguments: list[str]) -> int:
    """prove that pods' packets to other nodes are encrypted: send marked ones, and look for the mark on the wire"""
    from controller import verify as proof
    from controller.doctor.collect import LookingKernel

    parser = _parser("verify", verify)
    proof.add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.getLogger("controller.kube").setLevel(logging.CRITICAL)
    try:
        with LookingKernel() as kernel:
            look = _verified if options.watch is None else _verified_or_why
            return show_looks((look(options, kernel) for _ in count()), options.output, options.watch)
    except (NothingKnown, proof.VerifyError, NetlinkRefusal) as error:
        return proof.fail(str(error))


def _verified_or_why(options: argparse.Namespace, kernel: "LookingKernel") -> Look:
    """A watch goes on where the cluster is away for a while, or the node."""
    from controller import verify as proof

    try:
        return _verified(options, kernel)
    except (NothingKnown, proof.VerifyError, NetlinkRefusal) as error:
        return proof.look_in_vain(options.node, str(error))


def _verified(options: argparse.Namespace, kernel: "LookingKernel") -> Look:
    """Raises NothingKnown, VerifyError, NetlinkRefusal."""
    from controller import verify as proof

    cluster, pods = asyncio.run(_cluster(options, "verify"))
    if cluster is None:
        raise proof.VerifyError("there is no cluster to go by: it does not answer, and no agent here remembers it")
    status = read(options.state)
    found = [pair for pair in proof.pairs(cluster, status, pods, proof.mark) if pair.peer in (options.peers or [pair.peer])]
    unknown = sorted(set(options.peers) - {pair.peer for pair in found})
    if unknown or not found:
        strangers = f": not {', '.join(unknown)}" if unknown else ""
        raise proof.VerifyError(f"there is nobody to speak to{strangers} (see: wgpy mesh)")
    tunnels = {family.family: family.interface for family in status.families if family.is_enabled and family.interface}
    ends = {pair.conversation.nodes: tunnels.get(pair.family) for pair in found}
    wires = {*options.wire, *(wire for (here, there), own in ends.items() for wire in kernel.wires(here, there, own))}
    wires -= set(tunnels.values())
    return proof.look_of(status.node, proof.verify(found, wires, tunnels.values()), wires)


def top(arguments: list[str]) -> int:
    """show who talks with this node right now, the busiest peers first, until Ctrl-C"""
    from controller import top as live

    parser = _parser("top", top)
    live.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        return live.run(options.state, options.interval, options.once, options.output)
    except NothingKnown as error:
        return _fail("top", str(error))


class _Whole(Calico):
    """Calico's mesh, but its objects untrimmed: blocks tell of pods."""

    def trim(self, manifest: Manifest) -> Manifest:
        return manifest


async def _agent(options: argparse.Namespace, around: _Surroundings) -> None:
    leave_no_core_dump()  # it holds private keys
    stop, end = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _set, end, stop)
    loop.add_signal_handler(STEP_ASIDE, stop.set)
    spawner = Spawner(options.data_plane, options.state) if options.spawn else None
    behaviour = Options(options.resync, remembers=options.directory is None, is_strict=options.strict)
    instances = _instances(options, around, spawner)
    duties = Flanneld(around.source, around.mesh.net_conf, options.node) if isinstance(around.mesh, Flannel) else None
    detector = Detector(options.node, around.kernel, options.detect_leaks) if options.detect_leaks is not None else None
    agent = Agent(around.source, around.mesh, options.node, instances, around.files, behaviour, duties, detector)
    async with _pages(options.metrics, agent), _status_api(options, agent):
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


@asynccontextmanager
async def _status_api(options: argparse.Namespace, agent: Agent) -> AsyncIterator[None]:
    """Serve the status API meanwhile, if there is an address for it. Raises AgentError."""
    if options.status_api is None:
        yield
        return
    from controller.status_api import StatusApi, StatusApiError, place  # only who serves it pays for aiohttp's server

    try:
        where = place(options.status_api, options.status_token, options.status_certificate, options.status_key)
        api = StatusApi(where, agent.status, options.state)
        await api.start()
    except StatusApiError as error:
        raise AgentError(str(error)) from None
    try:
        yield
    finally:
        await api.stop()


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
            yields_to_kernel=options.yield_to_kernel,
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
        if options.yield_to_kernel:
            with Kernel() as kernel:
                options.yield_to_kernel = kernel.can_make(FELIX_LINK_KIND)
        with Kernel() as kernel:
            asyncio.run(_with_source(main, options, mesh, kernel, files, external_peers))
    except (AgentError, StateError, SourceError, ExternalPeersError, NetlinkRefusal) as error:
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


def _fail(verb: str, message: str, status: int = 1) -> int:
    print(f"wgpy {verb}: {message}", file=sys.stderr)
    return status


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
        "names and numbers", "Change them only to avoid a collision, and alike for agent, leave and doctor."
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


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _add_leak_detector(parser: _Parser) -> None:
    default = os.environ.get("WGPY_DETECT_LEAKS", "")
    is_named = default.lower() not in ("", "0", "false", "no", "1", "true", "yes")
    parser.add_argument(
        "--detect-leaks",
        type=_interfaces,
        nargs="?",
        const=(),
        default=default if is_named else () if _is_set("WGPY_DETECT_LEAKS") else None,
        metavar="NAME,...",
        help="watch these links, or those with the node's addresses, for packets in clear that ought to be encrypted; takes "
        "CAP_NET_RAW (default: $WGPY_DETECT_LEAKS)",
    )


def _interfaces(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(re.fullmatch(r"[^\s/]{1,15}", name) for name in names):
        raise argparse.ArgumentTypeError(f"not names of interfaces, such as eth0,eth1: {text!r}")
    return names


def _add_status_api(parser: _Parser) -> None:
    api = parser.add_argument_group("status API", "What this agent sees, for wgpy dashboard. Off, unless --status-api is given.")
    api.add_argument(
        "--status-api",
        metavar="ADDRESS:PORT",
        help="serve it there; tunnel:PORT for the tunnel's address, and only for who comes by it",
    )
    api.add_argument("--status-token", type=Path, metavar="FILE", help="the token that whoever asks has to know")
    api.add_argument("--status-certificate", type=Path, metavar="FILE", help="TLS: the certificate, PEM")
    api.add_argument("--status-key", type=Path, metavar="FILE", help="TLS: its private key, PEM")


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
