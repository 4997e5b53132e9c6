"""What the seam carries: TCP between two pods through a pair of data planes, the full protocol running.

    python -m benchmarks.seam [--rounds 3] [--seconds 5] [--pairs wgpy:wgpy,wireguard-go:wireguard-go]

Each pair is two nodes on an underlay, each with a pod behind a veth, and one data plane on either end. All pairs stand
from the start, and the rounds go over them in turn, so that whatever else the machine does meets them all. Printed are
medians and the spread; Gb/s as the receiver saw it, and CPU seconds of each data plane per GB. Look at the load average
first: it is printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lab import LabError, Shape, Tunnel, lay
from benchmarks.planes import planes
from controller.demo.topology import Topology

BUSY_LOAD = 0.5


@dataclass
class Pair:
    tunnel: Tunnel
    gbps: list[float] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    retransmits: list[int] = field(default_factory=list)


def measure(pair: Pair, seconds: float, streams: int, congestion: str = "", *, udp_length: int = 0) -> None:
    """One round of one pair: iperf3 from the first pod to the second."""
    sender, receiver = pair.tunnel.ends
    server = receiver.pod.start(["iperf3", "-s", "-1", "--forceflush"], subprocess.DEVNULL)
    time.sleep(0.3)
    before = [end.cpu_seconds() for end in pair.tunnel.ends]
    arguments = ["iperf3", "-J", "-c", str(receiver.pod.addresses[0]), "-t", str(seconds), "-P", str(streams)]
    if congestion and not udp_length:
        arguments += ["-C", congestion]
    if udp_length:
        arguments += ["-u", "-b", "0", "-l", str(udp_length)]
    result = json.loads(sender.pod.run(arguments, timeout=seconds + 20).stdout)
    server.wait(timeout=10)
    used = [end.cpu_seconds() - start for end, start in zip(pair.tunnel.ends, before, strict=True)]
    end = result["end"]
    received = end["sum"] if udp_length else end["sum_received"]
    delivered = received["bytes"] * (1 - received.get("lost_percent", 0) / 100)
    pair.gbps.append(delivered * 8 / received["seconds"] / 1e9)
    pair.cpu.append((used[0] / (delivered / 1e9), used[1] / (delivered / 1e9)))
    pair.retransmits.append(end.get("sum_sent", {}).get("retransmits", 0))


def report(pairs: Sequence[Pair]) -> None:
    print(f"{'sender : receiver':32} {'Gb/s':>6} {'min':>6} {'max':>6}  {'CPU s/GB':>13}  {'retr':>5}  {'RSS MB':>9}")
    for pair in pairs:
        cpu = [statistics.median(side) for side in zip(*pair.cpu, strict=True)]
        memory = [end.resident_bytes() / 1e6 for end in pair.tunnel.ends]
        print(
            f"{pair.tunnel.name:32} {statistics.median(pair.gbps):6.2f} {min(pair.gbps):6.2f} {max(pair.gbps):6.2f}"
            f"  {cpu[0]:6.2f} {cpu[1]:6.2f}  {statistics.median(pair.retransmits):5.0f}  {memory[0]:4.0f} {memory[1]:4.0f}"
        )


def default_congestion() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seam", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument(
        "--udp", type=int, default=0, metavar="BYTES", help="flood with UDP packets of so many bytes instead of TCP"
    )
    parser.add_argument("--congestion", default=default_congestion(), help="TCP's congestion control (default: this machine's)")
    parser.add_argument("--mtu", type=int, default=1420)
    parser.add_argument("--pairs", default="wgpy:wgpy,wireguard-go:wireguard-go")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    note = "  BUSY: these figures mean nothing" if load > BUSY_LOAD else ""
    print(f"load average {load:.2f}{note}")
    what = f"UDP of {arguments.udp} bytes" if arguments.udp else f"TCP ({arguments.congestion}), {arguments.streams} stream(s)"
    print(f"{os.cpu_count()} cores; {what}; MTU {arguments.mtu}; {arguments.rounds} rounds of {arguments.seconds:g} s")
    with Topology.create() as topology:
        pairs = []
        for number, name in enumerate(arguments.pairs.split(",")):
            try:
                first, second = (planes()[end] for end in name.split(":"))
                pairs.append(Pair(lay(topology, number, first, second, Shape(arguments.mtu))))
            except (KeyError, ValueError):
                raise SystemExit(f"seam: not a pair of data planes: {name!r}; there are: {', '.join(planes())}") from None
            except LabError as error:
                raise SystemExit(f"seam: {error}") from None
        for number in range(arguments.rounds):
            for pair in pairs:
                measure(pair, arguments.seconds, arguments.streams, arguments.congestion, udp_length=arguments.udp)
                print(f"round {number + 1}: {pair.tunnel.name}: {pair.gbps[-1]:.2f} Gb/s", file=sys.stderr)
        report(pairs)
        if arguments.json is not None:
            figures = {
                pair.tunnel.name: {"gbps": pair.gbps, "cpu_seconds_per_gb": pair.cpu, "retransmits": pair.retransmits}
                for pair in pairs
            }
            arguments.json.write_text(json.dumps({"load": load, "mtu": arguments.mtu, "pairs": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
