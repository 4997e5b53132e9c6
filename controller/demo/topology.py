"""The hardware of a cluster on this machine: nodes and pods as network namespaces on one underlay.

    pod eth0 ── cali… node eth0 ── port ┐
    pod eth0 ── cali… node eth0 ── port ┤ br0 of the underlay's own namespace, MTU 1500
                                        ┘
A *node* is a namespace with one interface, eth0, on the bridge. A *pod* is a namespace behind a veth laid as Calico's
CNI plugin lays it: the host end is named ``cali<hash>`` and has the MAC ee:ee:ee:ee:ee:ee, the pod's address is a /32 (or
/128) with a host route to it, and the pod's default gateway is 169.254.1.1 (or the host end's link-local address), for
which the host end answers by proxy ARP. Reverse-path filtering is strict there, forwarding on. A *block* of pod
addresses is announced for one node, and every other node then has a route to it through that node's address in its main
table, as BIRD would have programmed: that is the clear path, on which packets go that no encryption claims.

Nothing here knows of WireGuard, except that each node has a ``/var/run/wireguard`` of its own (bind-mounted for each
command that runs in the node), so that UAPI sockets of equal name do not collide.

Everything belongs to a *run*. Its namespaces are called ``wgpy-<run>-<node or pod>`` and its files live in
``/run/wgpy-demo/<run>``, so several runs stand side by side and each removes only its own. A run holds a lock for as long
as its process lives: :func:`collect_leftovers` removes runs whose process is gone.

    with Topology.create() as topology:
        one = topology.add_node("n1", [ip_interface("10.77.0.1/24")])
        pod = one.add_pod("n1-a", [ip_address("10.42.1.1")])
        topology.announce(ip_network("10.42.1.0/26"), one)
        pod.run(["ping", "-c1", "10.42.2.1"])

Errors are :class:`TopologyError` with one line. Needs root and iproute2; every command has a time limit.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import IO, Self

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

RUNS = Path("/run/wgpy-demo")
NAMESPACES = Path("/run/netns")
WIREGUARD_DIRECTORY = "/var/run/wireguard"

UNDERLAY = "underlay"
UNDERLAY_MTU = 1500

# What Calico's CNI plugin gives every host end, and the gateways every pod has in consequence (the second is the
# link-local address that belongs to the MAC).
HOST_END_MAC = "ee:ee:ee:ee:ee:ee"
GATEWAY_IPV4 = "169.254.1.1"
GATEWAY_IPV6 = "fe80::ecee:eeff:feee:eeee"

BIRD = "proto 12"  # rtnetlink's number for BIRD, so that the routes look to the agent as Calico's do

COMMAND_SECONDS = 20.0
TERMINATE_SECONDS = 2.0

ENTER = """\
# A shell, or a command, in a node or a pod of this run:  sh enter NAME [COMMAND...]
name=${{1-}}
if [ -z "$name" ] || [ ! -e "{namespaces}/{prefix}$name" ]; then
    echo "usage: sh $0 NAME [COMMAND...]; NAME is one of:" $(cd {namespaces} && ls -d {prefix}* | sed 's/^{prefix}//') >&2
    exit 2
fi
shift; [ $# -gt 0 ] || set -- "${{SHELL:-sh}}"
export PATH="{directory}/bin:$PATH" NODENAME="$name"
sockets={directory}/$name/wireguard
[ ! -d "$sockets" ] || set -- sh -c 'mount --bind "$1" {wireguard} && shift && exec "$@"' enter "$sockets" "$@"
exec ip netns exec "{prefix}$name" "$@"
"""


class TopologyError(Exception):
    """Something of this machine could not be laid or run. The message is one line."""


class Namespace:
    """A network namespace, and the ways to run something in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._started: list[subprocess.Popen[bytes]] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` inside."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self, argv: Sequence[str], *, timeout: float = COMMAND_SECONDS, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` inside and wait. Its output is captured; with ``check``, failure raises."""
        return _run(self.command(argv), timeout=timeout, check=check, said=" ".join(argv))

    def start(
        self, argv: Sequence[str], output: IO[bytes] | int, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``argv`` inside, in a session of its own: the terminal's Ctrl-C is ours to handle, not its."""
        process = subprocess.Popen(
            self.command(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def _end_started(self) -> None:
        """SIGTERM to what :meth:`start` started. One that is still on its way into the namespace is found in no other way."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()

    def _reap(self) -> None:
        """Take note of the end of what :meth:`start` started: with the namespace gone, nothing of it runs."""
        for process in self._started:
            try:
                process.wait(TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _unplug(self, interface: str) -> None:
        """Delete this end of a veth, and with it the other, unless the kernel has done so. A namespace that is deleted goes on
        answering until the kernel gets round to it, on a busy machine a second later."""
        self.run(["ip", "link", "delete", interface], check=False)

    def configure(self, *, sysctls: Mapping[str, object] | None = None, links: Sequence[str] = ()) -> None:
        """Set ``sysctls`` (paths below /proc/sys/net), after the ``ip`` commands in ``links``, in one process."""
        script = ["set -e"]
        if links:
            script += ["ip -batch - <<'END'", *links, "END"]
        script += [
            f"echo {value} >/proc/sys/net/{path}"
            for path, value in (sysctls or {}).items()
            if has_ipv6() or not path.startswith("ipv6/")
        ]
        _run(Namespace.command(self, ["sh"]), text="\n".join(script), said=f"laying {self.name}")

    def await_ipv6(self, interface: str) -> None:
        """Wait until this end of a veth speaks IPv6.

        The kernel notices that a link has a carrier up to a second late, and until then the end has no link-local address
        and neighbour discovery fails: packets would be lost. Other addresses, too, are taken into use a moment later than
        they are given.
        """
        deadline = time.monotonic() + COMMAND_SECONDS
        query = ["ip", "-n", self.name, "-6", "-o", "address", "show", "dev", interface]
        while " fe80:" not in (shown := _run(query, said="waiting for IPv6").stdout) or " tentative" in shown:
            if time.monotonic() > deadline:
                raise TopologyError(f"{self.name}: {interface} does not speak IPv6 after {COMMAND_SECONDS:.0f} s")
            time.sleep(0.02)


class Pod(Namespace):
    """A pod: ``addresses`` are its own, ``host_interface`` is the name of its veth's end in ``node``."""

    def __init__(self, name: str, key: str, node: "Node", addresses: Sequence[Address], mtu: int) -> None:
        super().__init__(f"{node.topology.prefix}{key}")
        self.key = key
        self.full_name = name
        self.node = node
        self.addresses = tuple(addresses)
        self.host_interface = host_interface_name(name)
        self._lay(mtu)

    def address(self, version: int) -> Address:
        """The pod's address of IP ``version`` (4 or 6)."""
        return _of_version(self.addresses, version, self.name)

    def _lay(self, mtu: int) -> None:
        end = self.host_interface
        _ip_batch([f"netns add {self.name}"])
        self.configure(sysctls={"ipv6/conf/default/accept_dad": 0})
        host_routes = [f"route add {_host(address)} dev {end} scope link" for address in self.addresses]
        self.node.configure(
            links=[
                f"link add {end} mtu {mtu} address {HOST_END_MAC} type veth peer name eth0 mtu {mtu} netns {self.name}",
                f"link set {end} up",
                *host_routes,
            ],
            sysctls={
                f"ipv4/conf/{end}/rp_filter": 1,
                f"ipv4/conf/{end}/proxy_arp": 1,
                f"ipv4/conf/{end}/route_localnet": 1,
                f"ipv4/neigh/{end}/proxy_delay": 0,
                f"ipv6/conf/{end}/proxy_ndp": 1,
                f"ipv6/conf/{end}/accept_ra": 0,
            },
        )
        self.configure(
            links=[
                "link set lo up",
                "link set eth0 up",
                *(f"addr add {_host(address)} dev eth0" for address in self.addresses),
                f"route add {GATEWAY_IPV4} dev eth0 scope link",
                f"route add default via {GATEWAY_IPV4} dev eth0",
                *([f"route add ::/0 via {GATEWAY_IPV6} dev eth0"] if any(a.version == 6 for a in self.addresses) else []),
            ]
        )

        if any(address.version == 6 for address in self.addresses):
            self.await_ipv6("eth0")
            self.node.await_ipv6(self.host_interface)

    def remove(self) -> None:
        """Delete the pod: its processes, its veth and the host routes with it."""
        del self.node.pods[self.key]
        _remove([self])
        self.node._unplug(self.host_interface)


class Node(Namespace):
    """A node. ``addresses`` are those of its eth0, ``directory`` its place for files."""

    def __init__(self, key: str, topology: "Topology", addresses: Sequence[Interface]) -> None:
        super().__init__(f"{topology.prefix}{key}")
        self.key = key
        self.topology = topology
        self.addresses = tuple(addresses)
        self.directory = topology.directory / key
        self.wireguard_directory = self.directory / "wireguard"
        self.wireguard_directory.mkdir(parents=True, mode=0o700)
        self.pods: dict[str, Pod] = {}
        self._lay()

    def address(self, version: int) -> Address:
        """The node's own address of IP ``version`` (4 or 6)."""
        return _of_version([interface.ip for interface in self.addresses], version, self.name)

    def speaks(self, version: int) -> bool:
        """Whether the node has an address of IP ``version``."""
        return any(interface.version == version for interface in self.addresses)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` inside, where /var/run/wireguard is the node's own.

        ``ip netns exec`` gives every command a mount namespace, so the bind mount is seen by it and its children only.
        """
        mount = f'mount --bind "$0" {WIREGUARD_DIRECTORY} && exec "$@"'
        return super().command(["sh", "-c", mount, str(self.wireguard_directory), *argv])

    def add_pod(self, name: str, addresses: Sequence[Address], *, mtu: int = UNDERLAY_MTU) -> Pod:
        """Lay a pod. ``name`` is ``namespace/name`` or the name alone; its last part is unique in the run, among nodes too."""
        key = name.rpartition("/")[2]
        pod = Pod(name, key, self, addresses, mtu)
        self.pods[key] = pod
        return pod

    def egress(self, destinations: Sequence[Address], *, source: Pod) -> list[str | None]:
        """The interface by which the node would forward ``source``'s packets to each of ``destinations``.

        The kernel is asked, so rules, tables and throw routes all have their say. ``None`` where there is no route.
        """
        queries = [f"route get {to} from {source.address(to.version)} iif {source.host_interface}" for to in destinations]
        # -force: a destination without a route does not end the batch. Its error is on stderr, so count by destination.
        result = _run(["ip", "-n", self.name, "-force", "-batch", "-"], text="\n".join(queries), check=False, said="ip route get")
        seen: dict[str, str] = {}
        for line in result.stdout.splitlines():
            if found := re.match(r"(?:\S+ )??([0-9a-fA-F.:]+) from .* dev (\S+)", line):
                seen[found[1]] = found[2]
        return [seen.get(str(to)) for to in destinations]

    def remove(self) -> None:
        """Switch the node off and unplug it, with its pods. Announced blocks stay announced: withdraw them first."""
        del self.topology.nodes[self.key]
        _remove([*self.pods.values(), self])
        self.topology.underlay._unplug(self.key)

    def _lay(self) -> None:
        topology = self.topology
        # The defaults come before the interfaces that inherit them. Without duplicate address detection an address is
        # usable at once.
        _ip_batch([f"netns add {self.name}"])
        self.configure(
            sysctls={
                "ipv6/conf/default/accept_dad": 0,
                "ipv6/conf/default/accept_ra": 0,
                "ipv4/ip_forward": 1,
                "ipv6/conf/all/forwarding": 1,
            }
        )
        topology.underlay.configure(
            links=[
                f"link add {self.key} mtu {UNDERLAY_MTU} type veth peer name eth0 mtu {UNDERLAY_MTU} netns {self.name}",
                f"link set {self.key} master br0 up",
            ]
        )
        self.configure(
            links=[
                "link set lo up",
                "link set eth0 up",
                *(f"addr add {interface} dev eth0" for interface in self.addresses),
                # Proxy ARP answers for 169.254.1.1 only if the node has a route to it: any real node has a default one.
                *(f"route add {_everything(interface)} via {_router(interface)} dev eth0" for interface in self.addresses),
            ]
        )
        if self.speaks(6):
            self.await_ipv6("eth0")


class Topology:
    """One run: its underlay, its nodes, its files. Made by :meth:`create`; a context manager that removes all of it."""

    def __init__(self, run: str, lock: IO[str]) -> None:
        self.run = run
        self.prefix = f"wgpy-{run}-"
        self.directory = RUNS / run
        self.nodes: dict[str, Node] = {}
        self.blocks: dict[Network, Node] = {}
        self.underlay = Namespace(f"{self.prefix}{UNDERLAY}")
        self._lock = lock

    @classmethod
    def create(cls) -> Self:
        """Make the run and its empty underlay."""
        Path(WIREGUARD_DIRECTORY).mkdir(parents=True, exist_ok=True)
        with _runs_locked():
            run = _free_name()
            (RUNS / run).mkdir(mode=0o700)
            lock = (RUNS / run / "lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        topology = cls(run, lock)
        try:
            topology._lay_underlay()
        except BaseException:
            topology.remove()
            raise
        return topology

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def add_node(self, name: str, addresses: Sequence[Interface]) -> Node:
        """Plug a node into the underlay. ``name`` has at most 15 characters; all nodes' addresses share their networks."""
        node = Node(name, self, addresses)
        self.nodes[name] = node
        node.configure(links=[_route(block, owner, node) for block, owner in self.blocks.items() if node.speaks(block.version)])
        return node

    def announce(self, block: Network, owner: Node) -> None:
        """Lay ``block`` as ``owner``'s on every node: through its address elsewhere, a blackhole at home, as BIRD does."""
        self.blocks[block] = owner
        for node in self.nodes.values():
            if node.speaks(block.version):
                node.configure(links=[_route(block, owner, node)])

    def withdraw(self, block: Network) -> None:
        """Take the routes to ``block`` away again."""
        del self.blocks[block]
        for node in self.nodes.values():
            node.run(["ip", "route", "flush", "exact", str(block), "table", "main"])

    def keep(self) -> str:
        """Leave everything standing when this process ends, until :func:`remove_run` or ``wgpy demo --clean``.

        Gives the command that enters a node or pod: with its name behind it a shell, with a command too that command. There
        ``bin`` of the run's directory comes first in PATH, and NODENAME is the name of what was entered.
        """
        script = self.directory / "enter"
        script.write_text(
            ENTER.format(prefix=self.prefix, directory=self.directory, wireguard=WIREGUARD_DIRECTORY, namespaces=NAMESPACES)
        )
        (self.directory / "kept").touch()
        self._lock.close()
        return f"sh {script}"

    def remove(self) -> None:
        """End every process in the run's namespaces, delete these, and the run's files."""
        _remove([self.underlay, *(place for node in self.nodes.values() for place in (node, *node.pods.values()))])
        remove_run(self.run)  # a node or pod of which only a part was laid, and the files
        self._lock.close()

    def _lay_underlay(self) -> None:
        _ip_batch([f"netns add {self.underlay.name}"])
        # The bridge only switches: no address, no IPv6 chatter of its own, nothing snooped, ports forward at once.
        self.underlay.configure(
            sysctls={"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1},
            links=["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up"],
        )


def host_interface_name(pod: str) -> str:
    """``cali`` and eleven hex digits: what Calico names the host end of the pod ``namespace/name``."""
    namespace, _, name = pod.rpartition("/")
    return "cali" + hashlib.sha1(f"{namespace or 'default'}.{name}".encode()).hexdigest()[:11]


def has_ipv6() -> bool:
    """Whether this machine's kernel runs IPv6 at all; without it, only ask for IPv4 addresses."""
    return Path("/proc/sys/net/ipv6").exists()


def runs() -> list[str]:
    """The runs that have files on this machine, standing, kept or left over."""
    return sorted(path.name for path in RUNS.iterdir() if path.is_dir()) if RUNS.is_dir() else []


def is_kept(run: str) -> bool:
    return (RUNS / run / "kept").exists()


def is_alive(run: str) -> bool:
    """Whether the process that made the run still lives, holding its lock."""
    try:
        with (RUNS / run / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def collect_leftovers() -> list[str]:
    """Remove the runs whose process died without cleaning up. Kept runs and living ones stay. Gives the removed."""
    with _runs_locked():
        left_over = [run for run in runs() if not is_kept(run) and not is_alive(run)]
        for run in left_over:
            remove_run(run)
    return left_over


def remove_run(run: str) -> None:
    """End every process in the namespaces of ``run``, delete these and its files. What is gone already is no error."""
    prefix = f"wgpy-{run}-"
    _remove_namespaces([path.name for path in NAMESPACES.glob(f"{prefix}*")])
    shutil.rmtree(RUNS / run, ignore_errors=True)


def _remove(namespaces: Sequence[Namespace]) -> None:
    for namespace in namespaces:
        namespace._end_started()
    _remove_namespaces([namespace.name for namespace in namespaces if (NAMESPACES / namespace.name).exists()])
    for namespace in namespaces:
        namespace._reap()


def _remove_namespaces(names: Sequence[str]) -> None:
    _end_processes(names)
    if names:
        _ip_batch([f"netns del {name}" for name in names])


def _end_processes(names: Sequence[str]) -> None:
    """SIGTERM to every process in the namespaces, and after a while SIGKILL to those that are still there."""
    deadline = time.monotonic() + TERMINATE_SECONDS
    sent = signal.SIGTERM
    while processes := _processes_in(names):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, sent)
        if time.monotonic() > deadline + TERMINATE_SECONDS:
            raise TopologyError(f"processes {processes} do not end; look at them, then run: wgpy demo --clean")
        sent = signal.SIGKILL if time.monotonic() > deadline else sent
        time.sleep(0.02)


def _processes_in(names: Sequence[str]) -> list[int]:
    """The processes whose network namespace is one of ``names``. A zombie has none any more."""
    inodes = set()
    for name in names:
        with contextlib.suppress(OSError):
            inodes.add(os.stat(NAMESPACES / name).st_ino)
    found = []
    for entry in os.scandir("/proc") if inodes else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry.name}/ns/net").st_ino in inodes:
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def _runs_locked() -> Iterator[None]:
    """Nobody else makes or collects runs meanwhile: a run without its lock yet would look left over."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_name() -> str:
    while (RUNS / (name := secrets.token_hex(2))).exists():
        pass
    return name


def _route(block: Network, owner: Node, node: Node) -> str:
    if node is owner:
        return f"route replace blackhole {block} {BIRD}"
    return f"route replace {block} via {owner.address(block.version)} dev eth0 {BIRD}"


def _router(interface: Interface) -> Address:
    """The underlay's last address. Nobody has it: no packet of the cluster leaves the underlay."""
    return interface.network[-2]


def _everything(interface: Interface) -> str:
    return "0.0.0.0/0" if interface.version == 4 else "::/0"


def _host(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"


def _of_version(addresses: Sequence[Address], version: int, name: str) -> Address:
    for address in addresses:
        if address.version == version:
            return address
    raise TopologyError(f"{name} has no IPv{version} address")


def _ip_batch(lines: Sequence[str]) -> None:
    _run(["ip", "-batch", "-"], text="\n".join(lines), said="ip " + lines[0])


def _run(
    argv: Sequence[str], *, said: str, text: str | None = None, timeout: float = COMMAND_SECONDS, check: bool = True
) -> subprocess.CompletedProcess[str]:
    try:
        result = subprocess.run(
            argv,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise TopologyError(f"{error.filename} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise TopologyError(f"{said}: no end after {timeout:.0f} s") from error
    if check and result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit status {result.returncode}"]
        raise TopologyError(f"{said}: {lines[0]}")
    return result
