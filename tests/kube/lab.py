"""Nodes as network namespaces whose cluster is a real API server, reached over a network of its own.

The nodes are those of :mod:`tests.controller.lab`, each with a second interface, ``mgmt``, in 198.18.0.0/24. The API server
listens at 198.18.0.1 of the host. What is under test there, the tunnel, never carries that. Pods have both families.

A node is what is started on it: an agent (:meth:`Node.start_agent`), a Felix whose kernel has WireGuard
(:meth:`KubeLab.start_felix`), or nothing. Traffic is pings that go on until they are asked what was lost (:class:`Ping`); what
was on the wire, and when, is tcpdump's to say (:func:`capture`).
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.controller.cluster import Manifest, block, felix, pool
from tests.controller.lab import ROOT, SECONDS, WG4, WG6, Lab, Node, ip
from tests.kube.testbed import PROGRAMS, ApiError, Testbed
from tests.peers import wireguard_go

API_ADDRESS = "198.18.0.1"
SERVICE_ACCOUNT = "wgpy"
CALICO = "crd.projectcalico.org/v1"
KINDS = {"Node": "v1"} | dict.fromkeys(("IPAMBlock", "IPPool", "FelixConfiguration"), CALICO)
SHIPPED = [ROOT / "deploy" / "kustomize" / "base" / name for name in ("rbac.yaml", "policy.yaml")]

HOST_END_MAC = "ee:ee:ee:ee:ee:ee"
ANSWER_SECONDS = 5.0
"""Longer than an answer takes on a busy machine."""

INTERFACES = {4: WG4, 6: WG6}
PORTS = {4: 51820, 6: 51821}
UNDERLAY = {4: "192.0.2.{}", 6: "fd00:aa::{}"}
PODS = {4: "10.42.{}.5", 6: "fd00:42:{}::5"}

INNER = "(ip and net 10.42.0.0/16) or (ip6 and net fd00:42::/32)"
"""For tcpdump: a packet of a pod, in clear."""


def transport_data(version: int, more: str = "") -> str:
    """For tcpdump: a packet in the tunnel, and not an empty one, which is a keepalive."""
    if version == 6:
        found = f"ip6[6]=17 and dst port {PORTS[6]} and ip6[48]=4 and ip6[44:2]>40"
    else:
        found = f"udp and dst port {PORTS[4]} and udp[8]=4 and udp[4:2]>40"
    return f"{found} and {more}" if more else found


@dataclass
class KubeLab(Lab):
    """A lab on ``kube``. The agents are who they are in a cluster: bound tokens of their ServiceAccount, on their node."""

    kube: Testbed = field(kw_only=True)
    is_admin: bool = field(default=False, kw_only=True)
    """The agents may do everything: for clusters in which deploy/ is not installed."""

    def open_cluster(self) -> None:
        self.kubeconfigs: dict[str, Path] = {}
        self.programs: list[subprocess.Popen[bytes]] = []
        self.bridge = f"{self.prefix}m"
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{API_ADDRESS}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        if not self.is_admin:
            for path in SHIPPED:
                self.kube.apply_file(path)

    def add_node(self, number: int) -> Node:
        namespace, outside = f"{self.prefix}n{number}", f"{self.prefix}m{number}"
        node = super().add_node(number)
        ip("link", "add", outside, "type", "veth", "peer", "name", "mgmt", "netns", namespace)
        ip("link", "set", outside, "master", self.bridge, "up")
        ip("-n", namespace, "addr", "add", f"198.18.0.{10 + number}/24", "dev", "mgmt")
        ip("-n", namespace, "link", "set", "mgmt", "up")
        for other in self.nodes.values():
            for here, there in ((node, other), (other, node)):
                if here is not there:
                    to = f"fd00:42:{there.number}::/122"
                    here.run("ip", "route", "replace", to, "via", UNDERLAY[6].format(there.number))
        return node

    def add_pod(self, number: int, host: int = 5) -> str:
        """A pod with an address of each family, which nobody else is given."""
        self.put_blocks(number, host)
        name = super().add_pod(number, host)
        node, address = self.nodes[number].namespace, f"fd00:42:{number}::{host}/128"
        shown = subprocess.run(["ip", "-n", name, "-j", "link", "show", "eth0"], capture_output=True, check=True)
        mac = json.loads(shown.stdout)[0]["address"]
        ip("-n", name, "addr", "add", address, "dev", "eth0", "nodad")
        ip("-n", name, "neigh", "replace", "fe80::1", "lladdr", HOST_END_MAC, "dev", "eth0", "nud", "permanent")
        ip("-n", name, "route", "add", "default", "via", "fe80::1", "dev", "eth0", "onlink")
        ip("-n", node, "route", "add", address, "dev", f"cali{number}")
        ip("-n", node, "neigh", "replace", address[:-4], "lladdr", mac, "dev", f"cali{number}", "nud", "permanent")
        return name

    # Who acts on it

    def source_options(self, node: Node) -> list[str]:
        if node.name not in self.kubeconfigs:
            url = self.kube.url_at(API_ADDRESS)
            token = self.kube.admin_token if self.is_admin else self.kube.token(SERVICE_ACCOUNT, node=node.name)
            self.kubeconfigs[node.name] = self.kube.kubeconfig_for(token, url)
        return ["--kubeconfig", str(self.kubeconfigs[node.name])]

    def start_felix(self, number: int, restart_seconds: float = 0.2, has_wireguard: bool = True) -> "subprocess.Popen[bytes]":
        """Felix, on a node whose kernel has WireGuard, or on one of ours. How long it takes to start again seldom matters."""
        node = self.nodes[number]
        kubeconfig = self.kube.kubeconfig_for(self.kube.admin_token, self.kube.url_at(API_ADDRESS))
        words = [sys.executable, "-m", "tests.kube.felix", "--kubeconfig", str(kubeconfig), "--node", node.name]
        words += ["--restart-seconds", str(restart_seconds)]
        words += ["--wireguard-go", wireguard_go()] if has_wireguard else []
        return node.start(*words, output=self.path / f"felix-{node.name}.log")

    def start_allocator(self, *numbers: int, manners: str = "--polite") -> None:
        """Have calico-node's allocator run for these nodes."""
        words = [sys.executable, "-m", "tests.kube.allocator", "--kubeconfig", str(self.kube.kubeconfig), manners]
        for number in numbers:
            words += ["--node", f"n{number}"]
        with open(self.path / "allocator.log", "ab") as log:
            self.programs.append(subprocess.Popen([word for word in words if word], stdout=log, stderr=log, cwd=ROOT))

    def stop_allocator(self) -> None:
        for program in self.programs:
            program.terminate()
            program.wait(10)
        self.programs.clear()

    def kill_agent(self, number: int, signal_number: int = signal.SIGKILL) -> None:
        """End the agent of a node, and see it gone."""
        node = self.nodes[number]
        for pid in node.processes("-m controller agent"):
            os.kill(pid, signal_number)
        for agent in node.agents:
            agent.wait(10)

    def kill_data_plane(self, number: int, name: str = "wgpy run") -> None:
        """End what carries packets of a node, and see it gone. An agent will have started another by then."""
        found = self.nodes[number].processes(name)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.until(lambda: not set(found) & set(self.nodes[number].processes(name)), f"{name} to be gone")

    # The cluster

    def node_manifest(self, name: str) -> Manifest:
        manifest: Manifest = self.kube.get("Node", name)
        return manifest

    def allocate(self) -> None:
        """The allocator is a process of its own here (:mod:`tests.kube.allocator`)."""

    def put(self, manifest: Mapping[str, Any], name: str = "") -> None:
        self.kube.apply(dict(manifest) | {"apiVersion": KINDS[manifest["kind"]]})

    def put_blocks(self, number: int, pod: int = 5) -> None:
        """A node's blocks, from which its pod has been given an address."""
        for cidr, address in (
            (f"10.42.{number}.0/26", f"10.42.{number}.{pod}"),
            (f"fd00:42:{number}::/122", f"fd00:42:{number}::{pod}"),
        ):
            self.put(block(cidr, f"n{number}", {address: f"n{number}"}))

    def remove(self, kind: str, name: str) -> None:
        self.kube.delete(kind, name, KINDS[kind])

    def annotate(self, number: int, **annotations: str | None) -> None:
        named = {f"projectcalico.org/{name}": value for name, value in annotations.items()}
        self.kube.patch("Node", f"n{number}", {"metadata": {"annotations": named}})

    def kubectl(self, *words: str) -> str:
        return self.kube.kubectl(*words)

    def typed(self, line: str) -> str:
        """Run a line as an operator types it, in a shell that has ``kubectl``. What it printed."""
        environment = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(self.path)}
        environment["KUBECONFIG"] = str(self.kube.kubeconfig)
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    # What there is

    def reaches(self, here: str, address: str, *options: str) -> bool:
        """Whether a pod gets an answer within a second."""
        words = ["ip", "netns", "exec", here, "ping", "-c1", "-W1", *options, address]
        return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def until_pods_meet(self, *pairs: tuple[int, int], versions: tuple[int, ...] = (4, 6), seconds: float = SECONDS) -> None:
        """Wait until the pod of each first node is answered by that of the second."""
        for version in versions:
            for here, there in pairs:
                address = PODS[version].format(there)
                what = f"the pods of n{here} and n{there} to meet over IPv{version}"
                self.until(lambda pod=self.pod(here), address=address: self.reaches(pod, address), what, seconds)  # type: ignore[misc]

    def pod(self, number: int) -> str:
        """The namespace of the pod on a node."""
        return f"{self.prefix}p{number}"

    def close(self) -> None:
        for program in self.programs:
            program.kill()
            program.wait(10)
        super().close()
        # The nodes' ends go with their namespaces, but when the kernel gets round to it: the next lab may want the names.
        for link in (*(f"{self.prefix}m{number}" for number in self.nodes), self.bridge):
            subprocess.run(["ip", "link", "del", link], stderr=subprocess.DEVNULL, check=False)
        for kind, version in KINDS.items():
            plural = f"/api/v1/{kind.lower()}s" if version == "v1" else f"/apis/{version}/{kind.lower()}s"
            with contextlib.suppress(ApiError):
                for item in self.kube.request("GET", plural)["items"]:
                    self.kube.delete(kind, item["metadata"]["name"], version)
        if not self.is_admin:
            for manifest in (each for path in SHIPPED for each in yaml.safe_load_all(path.read_text()) if each):
                metadata = manifest["metadata"]
                self.kube.delete(manifest["kind"], metadata["name"], manifest["apiVersion"], metadata.get("namespace"))


@contextmanager
def make_kube_lab(path: Path, kube: Testbed, prefix: str, *, is_admin: bool = False, **spec: Any) -> Iterator[KubeLab]:
    """A lab with pools of both families, and WireGuard configured as ``spec`` says: not at all, if it says nothing."""
    lab = KubeLab(path, prefix, kube=kube, is_admin=is_admin)
    try:
        lab.put(pool("10.42.0.0/16", natOutgoing=True))
        lab.put(pool("fd00:42::/32", natOutgoing=True))
        lab.put(felix(**spec))
        yield lab
    finally:
        lab.close()


# Traffic ----------------------------------------------------------------------------------------------------------------


class Ping:
    """Pings from one namespace, ``interval`` seconds apart, until :meth:`stop`."""

    def __init__(self, lab: KubeLab, here: str, address: str, interval: float = 0.05, size: int = 100) -> None:
        self.path = lab.path / f"ping-{time.monotonic_ns()}"
        self.what = f"{here} -> {address}"
        words = ["ip", "netns", "exec", here, "ping", "-D", "-n", f"-i{interval}", f"-s{size}", "-W1", address]
        with open(self.path, "wb") as output:
            self._process = subprocess.Popen(words, stdout=output, stderr=output)

    def answers(self) -> dict[int, float]:
        """When (wall clock) each that was answered was sent, by number."""
        found = re.findall(r"^\[([0-9.]+)\] .*icmp_seq=(\d+) ttl=.*time=([0-9.]+) ms", self.path.read_text(), re.MULTILINE)
        return {int(number): float(at) - float(milliseconds) / 1e3 for at, number, milliseconds in found}

    def stop(self) -> int:
        """How many were sent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(10)
        found = re.search(r"(\d+) packets transmitted", self.path.read_text())
        return int(found[1]) if found else 0

    def lost(self) -> list[int]:
        """Stop, and say which were not answered of those sent until now. The last may be on their way: one that is sent later is
        waited for, and where none is answered any more, all but the very last count."""
        now = time.time()
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if any(sent_at > now for sent_at in self.answers().values()):
                break
            time.sleep(0.02)
        sent = self.stop()
        answered = self.answers()
        until = min((number for number, sent_at in answered.items() if sent_at > now), default=sent - 1)
        return [number for number in range(1, until) if number not in answered]


@contextmanager
def pings(lab: KubeLab, *pairs: tuple[int, int], versions: tuple[int, ...] = (4, 6), **options: Any) -> Iterator[list[Ping]]:
    """Pods that ping each other all the time: of each first node to those of the second."""
    started = [Ping(lab, lab.pod(here), PODS[version].format(there), **options) for version in versions for here, there in pairs]
    try:
        yield started
    finally:
        for each in started:
            each.stop()


# The wire ---------------------------------------------------------------------------------------------------------------


class Packet(NamedTuple):
    """When it was seen (wall clock), and how tcpdump puts it."""

    time: float
    text: str


@contextmanager
def capture(
    node: Node | str, expression: str, interface: str = "eth0", direction: str = "inout"
) -> Iterator[Callable[[], list[Packet]]]:
    """What matches on an interface of a node, or of a pod by its namespace. What is yielded may be called meanwhile."""
    words = ["tcpdump", "-ni", interface, "-Q", direction, "-tt", "-l", "--immediate-mode", expression]
    words = node.command(*words) if isinstance(node, Node) else ["ip", "netns", "exec", node, *words]
    with tempfile.TemporaryFile() as seen, subprocess.Popen(words, stdout=seen, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while b"listening on" not in said:
            line = process.stderr.readline()
            assert line, f"tcpdump does not start: {said.decode()}"
            said += line

        def packets() -> list[Packet]:
            time.sleep(0.05)
            text = os.pread(seen.fileno(), 1 << 30, 0).decode()
            lines = text[: text.rfind("\n") + 1].splitlines()
            return [Packet(float(at), text) for at, _, text in (line.partition(" ") for line in lines)]

        try:
            yield packets
        finally:
            process.terminate()
