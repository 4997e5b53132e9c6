"""A few nodes on one underlay, as network namespaces, for agents and data planes that are real.

    n1 ─ eth0 ┐
    n2 ─ eth0 ┤ br0          192.0.2.N/24 and fd00:aa::N/64; the blocks of node N are 10.42.N.0/26 and fd00:42:N::/122
    n3 ─ eth0 ┘

Main tables know every block by way of its node, as BIRD would have it: where nothing is encrypted, packets arrive in clear.
Each node has a /var/run/wireguard of its own. Everything is named after the process, and gone at the end.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.allocator import allocate
from controller.directory import Directory
from controller.source import Ref
from tests.controller.cluster import Manifest, block, felix, node, pool, text

ROOT = Path(__file__).parents[2]
SECONDS = 45.0
"""How long is waited for what takes a second or two: half as long as an agent that nobody wakes would sleep."""

PATIENTLY = "-W10"
"""An option of ping, where an answer has to come: it is late on a machine that stands still."""

WG4, WG6 = "wireguard.caliu", "wg-v6.caliu"


def may_make_namespaces() -> bool:
    return os.geteuid() == 0 and Path("/dev/net/tun").exists() and shutil.which("ip") is not None


@dataclass
class Node:
    """A node of the lab. Commands run in its namespaces."""

    lab: "Lab"
    number: int
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    agents: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def namespace(self) -> str:
        return f"{self.lab.prefix}{self.name}"

    @property
    def state(self) -> Path:
        return self.lab.path / f"state-{self.name}"

    @property
    def sockets(self) -> Path:
        return self.lab.path / f"sockets-{self.name}"

    def command(self, *words: str) -> list[str]:
        enter = 'mount --bind "$0" /var/run/wireguard && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", enter, str(self.sockets), *words]

    def run(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    def start(self, *words: str, output: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start something that runs until the lab is closed, or is ended before."""
        with open(output or os.devnull, "ab") as stream:
            process = subprocess.Popen(self.command(*words), stdout=stream, stderr=stream, cwd=ROOT)
        self.started.append(process)
        return process

    # The agent

    @property
    def log_path(self) -> Path:
        return self.lab.path / f"agent-{self.name}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def agent_words(self, *options: str, verb: str = "agent") -> list[str]:
        words = [sys.executable, "-m", "controller", verb, *self.lab.source_options(self), "--node", self.name]
        return [*words, "--state", str(self.state), *options]

    def start_agent(self, *options: str) -> "subprocess.Popen[bytes]":
        """An agent that starts its data plane, unless options say more."""
        spawn = [] if "--no-spawn" in options else ["--spawn", *self.lab.data_plane]
        options = tuple(option for option in options if option != "--no-spawn")
        agent = self.start(*self.agent_words(*spawn, *options), output=self.log_path)
        self.agents.append(agent)
        return agent

    def run_agent(self, *options: str, verb: str = "agent") -> "subprocess.CompletedProcess[str]":
        """An agent that is expected to end by itself."""
        words = self.command(*self.agent_words(*options, verb=verb))
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    def processes(self, name: str) -> list[int]:
        """Processes in the namespace whose command line has ``name`` in it."""
        found = []
        for pid in subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        ).stdout.split():
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(int(pid))
        return found

    # What there is

    def links(self) -> dict[str, dict[str, Any]]:
        return {link["ifname"]: link for link in json.loads(self.run("ip", "-j", "addr") or "[]")}

    def link(self, name: str) -> tuple[bool, int, list[str]]:
        """Whether it is up, its MTU, its addresses."""
        link = self.links()[name]
        addresses = [f"{address['local']}/{address['prefixlen']}" for address in link["addr_info"]]
        return "UP" in link["flags"], link["mtu"], addresses

    def routes(self, version: int = 4) -> dict[str, str]:
        """Our table: prefix -> what the route in force does. The twins behind the routes are not."""
        table = {4: "5182", 6: "5183"}[version]
        printed = self.run("ip", f"-{version}", "-j", "route", "show", "table", table, check=False).strip()
        found = json.loads(printed) if printed.endswith("]") else []  # half a list: there is no such table yet
        found.sort(key=lambda route: -route.get("metric", 0))
        return {route["dst"]: route["type"] if route.get("type", "unicast") != "unicast" else route["dev"] for route in found}

    def rules(self, version: int = 4) -> list[str]:
        """Rules that are not the kernel's own."""
        lines = self.run("ip", f"-{version}", "rule").splitlines()
        own = (" lookup local", " lookup main", " lookup default")
        return [" ".join(line.split()) for line in lines if not line.rstrip().endswith(own)]

    def peers(self, interface: str = WG4) -> dict[str, dict[str, str]]:
        """As ``wg`` tells: key -> endpoint, allowed IPs, keepalive."""
        peers = {}
        for line in self.run("wg", "show", interface, "dump").splitlines()[1:]:
            key, _psk, endpoint, allowed, _handshake, _rx, _tx, keepalive = line.split("\t")
            peers[key] = {"endpoint": endpoint, "allowed": " ".join(sorted(allowed.split(","))), "keepalive": keepalive}
        return peers

    def key(self, version: int = 4) -> str | None:
        """What is published."""
        name = "projectcalico.org/WireguardPublicKey" + ("V6" if version == 6 else "")
        key: str | None = self.manifest()["metadata"]["annotations"].get(name)
        return key

    def manifest(self) -> Manifest:
        return self.lab.node_manifest(self.name)

    def everything(self) -> str:
        """All that an agent could change, as text: without what the kernel gives each link when it gets round to it, which on a
        busy machine is seconds later (fe80::, ff00::)."""
        commands = [f"ip -o -{version} {what}" for version in (4, 6) for what in ("addr", "rule", "route show table all")]
        commands += ["ip -o link", "wg showconf " + WG4 + " || true", "nft list ruleset"]
        printed = self.run("sh", "-c", " && ".join(f"({command})" for command in commands))
        return "\n".join(sorted(line for line in printed.splitlines() if not re.search(r"\b(fe80|ff00)::", line)))

    def ping(self, address: str, *options: str) -> bool:
        return (
            subprocess.run(
                self.command("ping", "-c1", "-W1", *options, address), stdout=subprocess.DEVNULL, timeout=30, check=False
            ).returncode
            == 0
        )


@dataclass
class Lab:
    """Nodes, and the directory that is their cluster. ``data_plane`` are the agent's options for starting one."""

    path: Path
    prefix: str
    data_plane: list[str] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    pods: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open_cluster()
        self.underlay = f"{self.prefix}u"
        ip("netns", "add", self.underlay)
        ip("-n", self.underlay, "link", "add", "br0", "type", "bridge")
        ip("-n", self.underlay, "link", "set", "br0", "up")

    def add_node(self, number: int) -> Node:
        """A node with its address, its blocks, and routes from and to all others."""
        new = Node(self, number)
        ip("netns", "add", new.namespace)
        new.sockets.mkdir()
        ip("-n", self.underlay, "link", "add", new.name, "type", "veth", "peer", "name", "eth0", "netns", new.namespace)
        ip("-n", self.underlay, "link", "set", new.name, "master", "br0", "up")
        script = f"""
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_dad=0
            ip link set lo up
            ip addr add 192.0.2.{number}/24 dev eth0
            ip addr add fd00:aa::{number}/64 dev eth0 nodad
            ip link set eth0 up
        """
        new.run("sh", "-ec", script)
        for other in self.nodes.values():
            for here, there in ((new, other), (other, new)):
                here.run("ip", "route", "add", f"10.42.{there.number}.0/26", "via", f"192.0.2.{there.number}")
                here.run("ip", "route", "add", f"fd00:42:{there.number}::/122", "via", f"fd00:aa::{there.number}")
        self.nodes[number] = new
        ipv6 = {"projectcalico.org/IPv6Address": f"fd00:aa::{number}/64"}
        self.put(node(new.name, f"192.0.2.{number}/24", ipv6), f"{new.name}.yaml")
        self.put(block(f"10.42.{number}.0/26", new.name), f"block-{number}.yaml")
        self.put(block(f"fd00:42:{number}::/122", new.name), f"block6-{number}.yaml")
        return new

    def add_pod(self, number: int, host: int = 5) -> str:
        """A pod on a node, behind a veth; its namespace."""
        name = f"{self.prefix}p{number}"
        node_namespace = self.nodes[number].namespace
        ip("netns", "add", name)
        self.pods.append(name)
        ip("-n", node_namespace, "link", "add", f"cali{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        script = f"ip addr add 10.42.{number}.{host}/32 dev eth0; ip link set lo up; ip link set eth0 up"
        subprocess.run(["ip", "netns", "exec", name, "sh", "-ec", script], check=True)
        mac = "ee:ee:ee:ee:ee:ee"
        ip("-n", node_namespace, "link", "set", f"cali{number}", "up", "address", mac)
        ip("-n", node_namespace, "route", "add", f"10.42.{number}.{host}/32", "dev", f"cali{number}")
        ip("-n", name, "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        ip("-n", name, "neigh", "add", "169.254.1.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
        ip("-n", name, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
        return name

    # The cluster

    def open_cluster(self) -> None:
        (self.path / "cluster").mkdir()
        self.directory = Directory(self.path / "cluster")

    def source_options(self, node: Node) -> list[str]:
        """The agent's options that say where the cluster is."""
        return ["--directory", str(self.directory.path)]

    def node_manifest(self, name: str) -> Manifest:
        manifest: Manifest = yaml.safe_load((self.directory.path / f"{name}.yaml").read_text())
        return manifest

    def allocate(self) -> None:
        """Be Calico's allocator for a moment."""
        allocate(self.directory)

    def put(self, manifest: Mapping[str, Any], name: str) -> None:
        """Write an object as a person would: aside, and renamed."""
        aside = self.directory.path / f".{name}.test"
        aside.write_text(text(dict(manifest)))
        aside.rename(self.directory.path / name)

    def felix(self, **spec: Any) -> None:
        self.put(felix(**({"wireguardEnabled": True} | spec)), "felix.yaml")

    def annotate(self, number: int, **annotations: str | None) -> None:
        """Change a node's annotations; names without their prefix."""

        def change(manifest: dict[str, Any]) -> None:
            for name, value in annotations.items():
                if value is None:
                    manifest["metadata"]["annotations"].pop(f"projectcalico.org/{name}", None)
                else:
                    manifest["metadata"]["annotations"][f"projectcalico.org/{name}"] = value

        self.directory.update(Ref("Node", f"n{number}"), change)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS, allocating: bool = True) -> None:
        """Wait for a condition, being Calico's allocator meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            if allocating:
                self.allocate()
            with contextlib.suppress(AssertionError, KeyError, FileNotFoundError):
                if condition():
                    return
            if time.monotonic() > deadline:
                logs = "".join(f"--- {each.name}\n{each.log}" for each in self.nodes.values())
                pytest.fail(f"waited in vain: {what}\n{logs}")
            time.sleep(0.05)

    def until_meshed(self, *numbers: int, version: int = 4) -> None:
        """Wait until these nodes encrypt to each other."""
        interface = {4: WG4, 6: WG6}[version]
        prefix = {4: "10.42.{}.0/26", 6: "fd00:42:{}::/122"}[version]

        def is_meshed() -> bool:
            return all(
                self.nodes[here].routes(version).get(prefix.format(there)) == interface and self.nodes[here].rules(version)
                for here in numbers
                for there in numbers
                if here != there
            )

        self.until(is_meshed, f"nodes {numbers} encrypt to each other over IPv{version}")

    def until_settled(self, *numbers: int, version: int = 4) -> None:
        """Wait until these nodes encrypt to each other, and have been given their addresses, and know those of the others: their
        agents have nothing left to do then, and no key is taken back any more to be published anew."""
        self.until_meshed(*numbers, version=version)
        interface = {4: WG4, 6: WG6}[version]
        name = f"projectcalico.org/IPv{version}WireguardInterfaceAddr"

        def is_settled() -> bool:
            addresses = {number: self.nodes[number].manifest()["metadata"]["annotations"][name] for number in numbers}
            return all(
                any(address.startswith(f"{addresses[here]}/") for address in self.nodes[here].link(interface)[2])
                and all(self.nodes[here].routes(version).get(addresses[there]) == interface for there in numbers if there != here)
                for here in numbers
            )

        self.until(is_settled, f"nodes {numbers} know their addresses")
        self.until_meshed(*numbers, version=version)

    def close(self) -> None:
        for each in self.nodes.values():
            for pid in each.processes(""):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in each.started:
                process.wait(10)
        for namespace in (*self.pods, *(each.namespace for each in self.nodes.values()), self.underlay):
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def capture(node: Node, expression: str) -> Iterator[Callable[[], list[str]]]:
    """What leaves and reaches a node on the underlay and matches; to be called when the traffic is over. What has to be there is
    waited for before the end: tcpdump needs a moment to write it down, and is not given one then."""
    path = node.lab.path / f"capture-{time.monotonic_ns()}"
    process = node.start("tcpdump", "-ni", "eth0", "-l", "--immediate-mode", expression, output=path)
    deadline = time.monotonic() + SECONDS
    while "listening on" not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < deadline, "tcpdump does not start"
        time.sleep(0.02)

    def packets() -> list[str]:
        time.sleep(0.3)
        return [line for line in path.read_text().splitlines() if line[:2].isdigit() and "packets" not in line]

    try:
        yield packets
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def make_lab(path: Path, data_plane: list[str]) -> Iterator[Lab]:
    lab = Lab(path, f"wc{os.getpid()}", data_plane)
    try:
        lab.put(pool("10.42.0.0/16"), "pool.yaml")
        lab.put(pool("fd00:42::/32"), "pool6.yaml")
        lab.felix()
        yield lab
    finally:
        lab.close()
