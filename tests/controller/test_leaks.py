"""The leak detector on a real wire: what is in clear and ought not to be is counted, and nothing else is."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from controller.entries import Kind
from controller.history import read
from controller.leaks import GRACE_SECONDS
from tests.controller.lab import Lab, Node, capture, make_lab, may_make_namespaces
from tests.controller.packets import ipv4
from tests.promises import Promises

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

PROMISED_SECONDS = 2.0
IP_IN_IP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as one:
    for _ in range(3):
        one.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))
"""
"""Sends a packet three times as a node's tunnel would."""

METRICS = "127.0.0.1:9588"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with make_lab(tmp_path, []) as lab:
        yield lab


def meshed(lab: Lab, *options: str) -> tuple[Node, Node]:
    """Two nodes with a pod each, the first with a detector that is watching the second."""
    for number in (1, 2):
        lab.add_node(number)
        lab.add_pod(number)
        lab.nodes[number].start_agent(*(("--detect-leaks", *options, "--metrics", METRICS) if number == 1 else ()))
    lab.until_settled(1, 2)
    one, two = lab.nodes[1], lab.nodes[2]
    lab.until(lambda: pings(lab, 1, 2, 1), "pods reach each other")
    return one, two


def settled(lab: Lab) -> None:
    """Wait until what is in clear counts: from then on the range of n2 stands in the program that n1 has given the kernel."""
    first = str(int(ip_address("10.42.2.0")))
    lab.until(lambda: first in lab.nodes[1].run("ss", "--packet", "--bpf", "--numeric"), "n1 looks for packets of n2")


def pings(lab: Lab, here: int, there: int, count: int) -> bool:
    command = [
        "ip",
        "netns",
        "exec",
        f"{lab.prefix}p{here}",
        "ping",
        "-c",
        str(count),
        "-i",
        "0.01",
        "-W",
        "1",
        f"10.42.{there}.5",
    ]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=30, check=False).returncode == 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def leak(node: Node) -> None:
    """What another program may do: a rule of its own before ours."""
    node.run("ip", "rule", "add", "from", "all", "lookup", "main", "priority", "50")


def mend(node: Node) -> None:
    node.run("ip", "rule", "del", "priority", "50")


def scrape(node: Node) -> dict[str, float]:
    """What the agent's metrics say of leaks."""
    script = f"import urllib.request as u; print(u.urlopen('http://{METRICS}/metrics').read().decode())"
    text = node.run("/usr/bin/python3", "-c", script)
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("wgpy_agent_leak")]
    return {name.removeprefix("wgpy_agent_"): float(value) for name, value in lines}


def counted(node: Node) -> tuple[float, float]:
    """Packets of IPv4, inbound and outbound."""
    found = scrape(node)
    inbound, outbound = (found[f'leaked_packets_total{{direction="{way}",family="IPv4"}}'] for way in ("inbound", "outbound"))
    return inbound, outbound


def status(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.state / "status.json").read_text())["leaks"]
    return found


def test_a_packet_in_clear_is_counted_within_two_seconds_and_what_is_encrypted_never(lab: Lab, promises: Promises) -> None:
    one, _ = meshed(lab)
    settled(lab)
    assert pings(lab, 1, 2, 200)
    assert scrape(one)["leak_detector_interfaces"] == 1
    assert counted(one) == (0, 0)

    with capture(one, "ip and net 10.42.0.0/16") as seen:
        leak(one)
        began = time.time()
        pings(lab, 1, 2, 1)
        lab.until(lambda: counted(one)[1] >= 1, "it is counted", allocating=False)
        lab.until(lambda: "10.42.1.5 > 10.42.2.5" in "".join(seen()), "it is captured", allocating=False)
        mend(one)
    on_the_wire = [line for line in seen() if "10.42.1.5 > 10.42.2.5" in line]

    assert counted(one) == (0, len(on_the_wire)) == (0, 1)

    def entries() -> list[Any]:
        return [entry for entry in read(one.state) if entry.kind in (Kind.LEAK.value, Kind.LEAK_DETECTOR_ON.value)]

    lab.until(lambda: len(entries()) == 2, "the history has it", allocating=False)
    on, found = entries()
    assert on.fields == {"interfaces": ["eth0"]}
    assert found.fields == {
        "family": "IPv4",
        "peer": "n2",
        "packets": 1,
        "example": "10.42.1.5 > 10.42.2.5, ICMP, on eth0",
    }
    lab.until(lambda: status(one)["leaks"], "so has the status")
    (told,) = status(one)["leaks"]
    assert (told["peer"], told["direction"], told["packets"]) == ("n2", "outbound", 1)
    promises.judge("a leaked packet to its count", told["at"] - began, PROMISED_SECONDS)


def test_what_another_node_leaks_to_us_counts_and_what_is_known_to_be_in_clear_does_not(lab: Lab) -> None:
    """The other node has IP-in-IP to us, and sends by that. A third one has no key: that is said elsewhere."""
    one, two = meshed(lab)
    lab.add_node(3)
    lab.add_pod(3)
    settled(lab)
    inner = ipv4(ip_address("10.42.2.5"), ip_address("10.42.1.5"), b"a packet in clear", protocol=17)

    with capture(one, "icmp and host 10.42.3.5") as seen:
        lab.until(lambda: pings(lab, 1, 3, 2), "the third node is reached")
        lab.until(seen, "in clear", allocating=False)
    two.run("/usr/bin/python3", "-c", IP_IN_IP, inner.hex(), "192.0.2.1")

    lab.until(lambda: counted(one) == (3, 0), "what came is counted", allocating=False)
    lab.until(lambda: status(one)["leaks"], "the status has it", allocating=False)
    (leak,) = status(one)["leaks"]
    assert (leak["peer"], leak["example"]) == ("n2", "10.42.2.5 > 10.42.1.5 inside a tunnel on eth0")


def test_a_node_that_leaves_leaks_nothing(lab: Lab) -> None:
    one, two = meshed(lab)
    settled(lab)
    before = one.log

    ping = one.start("ip", "netns", "exec", f"{lab.prefix}p1", "ping", "-i0.02", "-c400", "10.42.2.5")
    done = two.run_agent(verb="leave")
    ping.wait(30)

    assert done.returncode == 0, done.stderr
    lab.until(lambda: one.routes().get("10.42.2.0/26") == "throw", "it is talked to in clear")
    time.sleep(GRACE_SECONDS + 0.5)
    assert counted(one) == (0, 0), one.log.removeprefix(before)


def test_a_flood_of_leaks_costs_little_and_none_is_forgotten(lab: Lab) -> None:
    one, _ = meshed(lab)
    settled(lab)
    leak(one)
    flood = ["ping", "-f", "-c", "20000", "-s", "1200", "10.42.2.5"]

    agent = one.agents[0].pid
    before, began = cpu_seconds(agent), time.monotonic()
    subprocess.run(["ip", "netns", "exec", f"{lab.prefix}p1", *flood], stdout=subprocess.DEVNULL, timeout=60, check=False)
    took = time.monotonic() - began
    used = cpu_seconds(agent) - before

    def everything() -> float:
        found = scrape(one)
        return sum(counted(one)) + found["leak_detector_unread_packets_total"]

    lab.until(lambda: everything() >= 20000, "all of them are counted, or known not to have been looked at", allocating=False)
    assert used < 0.25 * took + 0.5, (used, took)
    reports = [entry for entry in read(one.state) if entry.kind == Kind.LEAK.value]
    assert len(reports) == 1, "further ones are told of a minute later"


def test_without_the_capability_the_agent_goes_on_and_says_so_in_one_line(lab: Lab) -> None:
    for number in (1, 2):
        lab.add_node(number)
    one = lab.nodes[1]
    words = one.agent_words("--spawn", "--detect-leaks", "--metrics", METRICS)
    one.start("capsh", "--drop=cap_net_raw", "--", "-c", 'exec "$@"', "sh", *words, output=one.log_path)
    lab.nodes[2].start_agent()
    lab.until_meshed(1, 2)

    lab.until(lambda: "CAP_NET_RAW" in one.log, "it says so")
    assert one.log.count("CAP_NET_RAW") == 1
    assert scrape(one)["leak_detector_interfaces"] == 0
    lab.until(lambda: "CAP_NET_RAW" in (status(one)["why"] or ""), "so does the status")
    off = [entry for entry in read(one.state) if entry.kind == Kind.LEAK_DETECTOR_OFF.value]
    assert len(off) == 1 and "CAP_NET_RAW" in off[0].fields["why"]
