"""Faults, put in one at a time: each is named with the right remedy, and a healthy mesh has none.

One mesh of two nodes serves all of them; what a fault breaks it mends again, and before each the doctor has to find nothing. An
agent mends most of what is broken within moments, so it is held (SIGSTOP) where it would be too quick.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.doctor.collect import tun_error
from tests.controller.cluster import node, pool
from tests.controller.lab import ROOT, WG4, Lab, Node, make_lab, may_make_namespaces

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

needs_nft = "nft"
PORT = 51820


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with make_lab(tmp_path_factory.mktemp("doctor"), []) as made:
        made.put(pool("10.42.0.0/16", natOutgoing=True), "pool.yaml")
        made.put(pool("fd00:42::/32", natOutgoing=True), "pool6.yaml")
        for number in (1, 2):
            made.add_node(number)
        for number in (1, 2):
            made.nodes[number].start_agent("--resync", "1")  # what a fault broke is mended soon after
        made.until_settled(1, 2)
        yield made


# Asking the doctor --------------------------------------------------------------------------------------------------


def ask(patient: Node, *options: str, before: tuple[str, ...] = (), program: tuple[str, ...] | None = None) -> tuple[int, Any]:
    """The exit status, and what was said. ``before`` are words in front of the command, ``program`` is in its place."""
    words = patient.agent_words("--output", "json", *options, verb="doctor")
    if program is not None:
        words = [*program, *words[4:]]
    done = subprocess.run(patient.command(*before, *words), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(report: Any) -> dict[str, list[str]]:
    """The remedies by reason."""
    return {one["reason"]: one["remedies"] for check in report["checks"] for one in check["findings"]}


def is_whole(patient: Node) -> bool:
    """Everything could be looked at but leaks, as no agent here looks for them, and all is well."""
    status, report = ask(patient)
    unseen = [check["name"] for check in report["checks"] if check["not_looked_at"]]
    return status == 0 and unseen == ["leaks"] and not any(check["findings"] for check in report["checks"])


def has_address(patient: Node) -> bool:
    """Its key is published, and Calico has answered with an address."""
    published = patient.manifest()["metadata"]["annotations"]
    return {"projectcalico.org/WireguardPublicKey", "projectcalico.org/IPv4WireguardInterfaceAddr"} <= set(published)


def healthy(lab: Lab) -> None:
    last: dict[str, list[str]] = {}

    def is_healthy() -> bool:
        nonlocal last
        # An agent that has just published its key withdraws it again if nobody gives it an address meanwhile, and while the
        # doctor is asked nobody does.
        if not all(has_address(node) for node in lab.nodes.values()):
            return False
        status, report = ask(lab.nodes[1])
        last = found(report)
        return all(has_address(node) for node in lab.nodes.values()) and (status, last) == (0, {})

    try:
        lab.until(is_healthy, "the mesh is healthy")
    except pytest.fail.Exception:
        pytest.fail(f"the mesh does not get healthy: {last}")


# The faults ---------------------------------------------------------------------------------------------------------


@contextmanager
def held(patient: Node) -> Iterator[None]:
    """Its agent does nothing meanwhile."""
    agent = patient.agents[-1]
    assert agent.poll() is None
    agent.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.send_signal(signal.SIGCONT)


@contextmanager
def commands(patient: Node, breaking: str, mending: str, holds: bool = True) -> Iterator[None]:
    with held(patient) if holds else nullcontext():
        patient.run("sh", "-ec", breaking)
        try:
            yield
        finally:
            patient.run("sh", "-ec", mending)


def of_one(breaking: str, mending: str = "true", holds: bool = True) -> Callable[[Lab], AbstractContextManager[None]]:
    return lambda lab: commands(lab.nodes[1], breaking, mending, holds)


@contextmanager
def configured(lab: Lab, **spec: Any) -> Iterator[None]:
    lab.felix(**spec)
    try:
        yield
    finally:
        lab.felix()


@contextmanager
def no_nat(lab: Lab) -> Iterator[None]:
    lab.put(pool("10.42.0.0/16", natOutgoing=False), "pool.yaml")
    try:
        yield
    finally:
        lab.put(pool("10.42.0.0/16", natOutgoing=True), "pool.yaml")


@contextmanager
def another_node(lab: Lab, key: str | None, address: str = "192.0.2.9/24") -> Iterator[None]:
    annotations = {"projectcalico.org/WireguardPublicKey": key} if key else {}
    lab.put(node("n9", address, annotations), "n9.yaml")
    try:
        yield
    finally:
        (lab.directory.path / "n9.yaml").unlink()


def small_path(lab: Lab) -> AbstractContextManager[None]:
    """The way to n2 drops what is too large for it, and says nothing."""
    make = "nft 'add table inet narrow; add chain inet narrow in { type filter hook prerouting priority raw; }; "
    rule = "add rule inet narrow in iifname eth0 meta length > 1400 drop'"
    return commands(lab.nodes[2], make + rule, "nft delete table inet narrow", holds=False)


@contextmanager
def dead(patient: Node) -> Iterator[None]:
    """Its data plane, and nobody starts another one."""
    with held(patient):
        for process in patient.processes("wgpy run"):
            os.kill(process, signal.SIGKILL)
        yield


@contextmanager
def deaf(lab: Lab) -> Iterator[None]:
    """n2 hears nothing, and n1 begins anew with it."""
    rule = 'nft "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; }; '
    with commands(
        lab.nodes[2], rule + f'add rule inet deaf in udp dport {PORT} drop"', "nft delete table inet deaf", holds=False
    ):
        with dead(lab.nodes[1]):
            pass
        lab.until(lambda: lab.nodes[1].peers(), "there is a data plane again")
        yield


@contextmanager
def no_agent(lab: Lab) -> Iterator[None]:
    one = lab.nodes[1]
    one.agents[-1].kill()
    one.agents[-1].wait(10)
    try:
        yield
    finally:
        one.start_agent("--resync", "1")


@contextmanager
def left(lab: Lab) -> Iterator[None]:
    lab.nodes[1].run_agent(verb="leave")
    with no_agent(lab):
        yield


@contextmanager
def wrong_key(lab: Lab) -> Iterator[None]:
    key = lab.nodes[1].key()
    with held(lab.nodes[1]):
        lab.annotate(1, WireguardPublicKey=lab.nodes[1].run("sh", "-c", "wg genkey | wg pubkey").strip())
        try:
            yield
        finally:
            lab.annotate(1, WireguardPublicKey=key)


@contextmanager
def no_key_there(lab: Lab) -> Iterator[None]:
    key = lab.nodes[2].key()
    with held(lab.nodes[2]):
        lab.annotate(2, WireguardPublicKey=None)
        lab.until(lambda: lab.nodes[1].routes().get("10.42.2.0/26") == "throw", "n1 knows")
        try:
            yield
        finally:
            lab.annotate(2, WireguardPublicKey=key)


@contextmanager
def port_taken(lab: Lab) -> Iterator[None]:
    one = lab.nodes[1]
    with held(one):
        one.run("wg", "set", WG4, "listen-port", "0")
        program = (
            f"import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', {PORT})); time.sleep(60)"
        )
        taker = one.start(sys.executable, "-c", program)
        lab.until(lambda: f":{PORT} " in one.run("ss", "-lun"), "the port is taken")
        try:
            yield
        finally:
            taker.kill()
            taker.wait(10)


def key_file(lab: Lab) -> Path:
    return lab.nodes[1].state / "ipv4.key"


@contextmanager
def open_key(lab: Lab) -> Iterator[None]:
    with held(lab.nodes[1]):
        key_file(lab).chmod(0o644)
        try:
            yield
        finally:
            key_file(lab).chmod(0o600)


@contextmanager
def no_key_file(lab: Lab) -> Iterator[None]:
    with held(lab.nodes[1]):
        text = key_file(lab).read_text()
        key_file(lab).unlink()
        try:
            yield
        finally:
            key_file(lab).write_text(text)
            key_file(lab).chmod(0o600)


TABLE = "nft 'add table inet other; add chain inet other {chain} {{ type filter hook {hook} priority 0; {policy} }}{rule}'"


def firewall(rule: str = "", policy: str = "", hook: str = "input") -> Callable[[Lab], AbstractContextManager[None]]:
    rule = f"; add rule inet other gate {rule}" if rule else ""
    return of_one(TABLE.format(chain="gate", hook=hook, policy=policy, rule=rule), "nft delete table inet other", holds=False)


FAULTS: dict[str, tuple[Callable[[Lab], AbstractContextManager[None]], str, str, set[str]]] = {
    # name: (what breaks it, the reason, the remedy, what may be found as well)
    "MTU too large for the link": (
        lambda lab: configured(lab, wireguardMTU=1480),
        "MtuTooLarge",
        '"wireguardMTU":0',
        {"WrongMtu", "PathMtu"},
    ),
    "a path that carries less": (small_path, "PathMtu", r'"wireguardMTU":13[1-4]\d', set()),
    "the interface has another MTU": (of_one(f"ip link set {WG4} mtu 1300"), "WrongMtu", f"ip link set {WG4} mtu 1440", set()),
    "the peer's port is closed": (lambda lab: dead(lab.nodes[2]), "PeerPortClosed", "wgpy doctor   # on n2", {"PeerSilent"}),
    "the peer is deaf": (deaf, "PeerSilent", "tcpdump -ni eth0 udp port 51820", set()),
    "a firewall that drops": (
        firewall(f"udp dport {PORT} drop"),
        "FirewallDrops",
        r"nft insert rule inet other gate udp dport 51820 accept",
        {"PeerSilent"},
    ),
    "a firewall that lets little in": (
        firewall("ct state established accept; add rule inet other gate tcp dport 22 accept", "policy drop;"),
        "FirewallDrops",
        "nft insert rule inet other gate udp dport 51820 accept",
        {"PeerSilent"},
    ),
    "two nodes with one key": (lambda lab: another_node(lab, lab.nodes[2].key()), "DuplicateKey", r"rm \S+/ipv4.key", set()),
    "somebody has our key": (lambda lab: another_node(lab, lab.nodes[1].key()), "OwnKeyClaimed", r"rm \S+/ipv4.key", set()),
    "our key was overwritten": (wrong_key, "KeyNotPublished", "grep WireguardPublicKey", set()),
    "the key is there to be read": (open_key, "KeyOpen", "rm .*ipv4.key", set()),
    "there is no key": (no_key_file, "NoKey", "kubectl -n kube-system delete pod", set()),
    "the device has another key": (
        of_one(f"wg genkey >$PPID.key; wg set {WG4} private-key $PPID.key; rm $PPID.key"),
        "KeyDiffers",
        "kubectl -n kube-system delete pod",
        {"PeerSilent"},
    ),
    "a peer is missing": (
        of_one(f"wg set {WG4} peer $(wg show {WG4} peers) remove"),
        "PeersDiffer",
        f"wg show {WG4}",
        {"InClear", "Refused"},
    ),
    "natOutgoing off": (no_nat, "NatOutgoingOff", '"natOutgoing":true', set()),
    "a route is missing": (
        of_one("ip route del 10.42.2.0/26 table 5182 metric 0"),
        "RouteMissing",
        rf"^ip -4 route replace 10.42.2.0/26 dev {WG4} table 5182 proto 3$",
        set(),
    ),
    "the rule is missing": (
        of_one("ip rule del priority 99"),
        "RuleMissing",
        r"^ip -4 rule add not fwmark 0x1000/0x1000 lookup 5182 priority 99$",
        set(),
    ),
    "a rule of somebody else comes first": (
        of_one("ip rule add priority 50 lookup main", "ip rule del priority 50 lookup main", holds=False),
        "WayAstray",
        "ip -4 route get 10.42.2.0",
        set(),
    ),
    "a rule of somebody else goes by our mark": (
        of_one("ip rule add priority 200 fwmark 0x1000/0x1000 lookup main", "ip rule del priority 200", holds=False),
        "MarkInRule",
        "wgpy agent --fwmark 0x2000/0x2000",
        set(),
    ),
    "somebody else sets our mark": (
        firewall("udp dport 7 meta mark set mark or 0x1000", hook="prerouting"),
        "MarkSetByOthers",
        "wgpy agent --fwmark 0x2000/0x2000",
        set(),
    ),
    "no agent": (no_agent, "NoAgent", "kubectl -n kube-system delete pod .*spec.nodeName=n1", set()),
    "the node has left": (left, "HasLeft", "kubectl -n kube-system delete pod .*spec.nodeName=n1", set()),
    "no data plane": (lambda lab: dead(lab.nodes[1]), "NoDataPlane", f"wgpy run {WG4} --persist", set()),
    "the interface is down": (of_one(f"ip link set {WG4} down"), "InterfaceDown", f"ip link set {WG4} up", set()),
    "another process has the port": (port_taken, "PortTaken", r"ss -lunp 'sport = :51820'", {"PeerSilent"}),
    "another port": (of_one(f"wg set {WG4} listen-port 4000"), "PortDiffers", f"wg set {WG4} listen-port 51820", set()),
    "no forwarding": (
        of_one("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", holds=False),
        "NoForwarding",
        r"^sysctl -w net.ipv4.ip_forward=1$",
        set(),
    ),
    "the masquerading is gone": (of_one("nft delete table ip wgpy"), "NoMasquerade", "nft list ruleset", set()),
    "a node without a key": (no_key_there, "InClear", "kubectl describe node n2", set()),
    "a node that cannot be read": (
        lambda lab: another_node(lab, "garbage"),
        "MalformedObject",
        "kubectl edit Node n9",
        {"InClear"},
    ),
    "not enabled": (
        lambda lab: configured(lab, wireguardEnabled=False),
        "NotEnabled",
        '"wireguardEnabled":true',
        {"StaleKey", "StaleInterfaceAddress"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_remedy(lab: Lab, name: str) -> None:
    fault, reason, remedy, others = FAULTS[name]
    healthy(lab)

    with fault(lab):
        status, report = ask(lab.nodes[1])
    reasons = found(report)

    assert status == 1
    assert reason in reasons, reasons
    assert any(re.search(remedy, command) for command in reasons[reason]), reasons[reason]
    assert set(reasons) - {reason} <= others, reasons


def test_a_healthy_mesh_has_no_finding(lab: Lab) -> None:
    for patient in lab.nodes.values():
        lab.until(partial(is_whole, patient), f"{patient.name} has no finding, and nothing was left out")


YIELDING = """
import sys
from controller.cli import agent
from controller.netlink import Kernel
Kernel.can_make = lambda *_: True
sys.exit(agent(sys.argv[1:]))
"""
"""An agent on a kernel with WireGuard, which the test's is not."""


def test_where_the_agent_makes_way_for_the_kernel_nothing_is_wrong(lab: Lab) -> None:
    """As in the chart's pods, wherever the kernel has WireGuard."""
    healthy(lab)
    one = lab.nodes[1]
    with no_agent(lab):
        words = one.agent_words("--yield-to-kernel", "--resync", "1")
        yielding = one.start(sys.executable, "-c", YIELDING, *words[4:], output=one.log_path)
        try:
            lab.until(lambda: "Felix uses it" in one.log, "it makes way")
            lab.until(lambda: "Felix uses it" in (one.state / "status.json").read_text(), "and its status says so")
            status, report = ask(one)
        finally:
            yielding.terminate()
            yielding.wait(10)
    assert (status, found(report)) == (0, {})
    healthy(lab)


def test_it_looks_again_and_again(lab: Lab, tmp_path: Path) -> None:
    healthy(lab)
    said = tmp_path / "said"
    words = lab.nodes[1].agent_words("--watch", "0.1", "--passive", "--output", "json", verb="doctor")
    watching = lab.nodes[1].start(*words, output=said)

    def is_healthy() -> object:
        *_, last, _ = ["{}", *said.read_text().split("\n")]
        return json.loads(last).get("healthy")

    lab.until(is_healthy, "nothing is wrong")
    with FAULTS["no forwarding"][0](lab):
        lab.until(lambda: is_healthy() is False, "something is")
    lab.until(is_healthy, "nothing is wrong any more")

    watching.terminate()
    watching.wait(20)


def test_looking_changes_nothing(lab: Lab) -> None:
    healthy(lab)
    one = lab.nodes[1]
    with held(one):
        before = one.everything(), sorted((path.name, path.stat().st_mtime_ns) for path in one.state.iterdir())
        ask(one)
        assert before == (one.everything(), sorted((path.name, path.stat().st_mtime_ns) for path in one.state.iterdir()))


BACK = """
import sys, time
real = time.time
time.time = lambda: real() - 3600
from controller.cli import doctor
sys.exit(doctor(sys.argv[1:]))
"""


def test_a_clock_that_went_back_is_found(lab: Lab) -> None:
    healthy(lab)

    status, report = ask(lab.nodes[1], program=(sys.executable, "-c", BACK))

    assert status == 1
    assert list(found(report)) == ["ClockWentBack"]
    assert found(report)["ClockWentBack"][0] == "timedatectl set-ntp true"


def test_no_tun_is_found(lab: Lab) -> None:
    hidden = ("sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")

    status, report = ask(lab.nodes[1], before=hidden)

    assert status == 1
    assert found(report)["NoTun"][0] == "modprobe tun"


def test_no_capability_is_found(lab: Lab) -> None:
    status, report = ask(lab.nodes[1], before=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))

    assert status == 1
    assert "NET_ADMIN" in found(report)["NoNetAdmin"][0]


def test_without_a_cluster_it_says_that_it_could_not_look(lab: Lab, tmp_path: Path) -> None:
    status, report = ask(lab.nodes[1], "--directory", str(tmp_path / "none"))

    assert status == 2
    assert list(found(report)) == ["ClusterAway"]


def test_a_node_that_is_not_there(lab: Lab) -> None:
    status, report = ask(lab.nodes[1], "--node", "n77")

    assert (status, list(found(report))) == (1, ["NoSuchNode"])


def test_where_no_agent_has_run(lab: Lab, tmp_path: Path) -> None:
    status, report = ask(lab.nodes[1], "--state", str(tmp_path / "none"))

    assert (status, list(found(report))) == (1, ["NoState"])
    (clear,) = [check for check in report["checks"] if check["name"] == "traffic in clear"]
    assert clear["not_looked_at"], "nothing is called well that nobody has looked at"
    assert not (tmp_path / "none").exists()


def test_passive_sends_nothing(lab: Lab) -> None:
    healthy(lab)
    with dead(lab.nodes[2]):
        status, report = ask(lab.nodes[1], "--passive")
    assert (status, found(report)) == (0, {}), "it has not asked n2's port, and nobody has fallen silent yet"


def test_what_is_no_tun() -> None:
    assert tun_error(Path("/dev/null")) == "it is another device"
    assert tun_error(Path("/nowhere")) == "No such file or directory"
    assert tun_error() is None
