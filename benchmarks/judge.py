"""Whether a run's figures are what they are to be: floors and goals, as ratios within one run.

A floor is what wgpy must reach to be called done, a goal what it is after. All are ratios of medians, put so that more is
better (see ``benchmarks.results``), so that they hold on a slower machine as on a faster one.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import OURS, REFERENCE, Report

TCP_AND_UDP = ("tcp-1", "tcp-8", "udp-1372", "udp-512", "udp-64")


@dataclass(frozen=True)
class Bound:
    """wgpy's ``rows`` against ``plane``'s, or against ``row`` of that plane where one is named. The worst row counts."""

    title: str
    rows: tuple[str, ...]
    floor: float
    goal: float | None = None
    plane: str = REFERENCE
    row: str | None = None


BOUNDS: tuple[Bound, ...] = (
    Bound("TCP 1 stream", ("tcp-1",), 0.85, 1.1),
    Bound("TCP 8 streams", ("tcp-8",), 0.85, 1.1),
    Bound("UDP 1372 B flood, delivered", ("udp-1372",), 1.1, 1.5),
    Bound("UDP 64 B flood, delivered", ("udp-64",), 1.3, 2.0),
    Bound("CPU s/GB of TCP, both ends together", ("tcp-1-cpu",), 0.8, 1.0),
    Bound("idle ping, mean RTT", ("ping-idle",), 0.8, 1.0),
    Bound("flood ping, mean RTT", ("ping-flood",), 0.8, 1.0),
    Bound("resident memory after load", ("memory",), 4.0, 6.0),
    Bound("CPU per handshake answered", ("handshake-cpu",), 0.9, 1.1),
    Bound("TCP 1 stream at MTU 8920", ("tcp-mtu-8920",), 0.8),
    Bound("MTU 8920 against 1420, both wgpy", ("tcp-mtu-8920",), 1.25, plane=OURS, row="tcp-1"),
    Bound("IPv6 inside against IPv4, both wgpy", ("tcp-ipv6-inside",), 0.9, plane=OURS, row="tcp-1"),
    Bound("IPv6 outside against IPv4, both wgpy", ("tcp-ipv6-outside",), 0.9, plane=OURS, row="tcp-1"),
    Bound("ahead of gotatun on every TCP and UDP row", TCP_AND_UDP, 1.0, plane="gotatun"),
    Bound("ahead of boringtun on every TCP and UDP row", TCP_AND_UDP, 1.0, plane="boringtun"),
    Bound("twice OpenVPN's TCP", ("tcp-1", "tcp-8"), 2.0, plane="openvpn"),
)


@dataclass(frozen=True)
class Verdict:
    """``ratio`` is that of ``row``, the worst of the bound's rows; both are empty if one of them was not measured."""

    bound: Bound
    ratio: float | None
    row: str

    @property
    def words(self) -> str:
        if self.ratio is None:
            return "not measured"
        if self.ratio < self.bound.floor:
            return "below floor"
        if self.bound.goal is None or self.ratio < self.bound.goal:
            return "above floor"
        return "above goal"


def judge(report: Report) -> list[Verdict]:
    """A verdict on each bound, in order. None for an emulated machine: the bounds are those of a real one."""
    if report.emulated:
        return []
    return [_judge(report, bound) for bound in BOUNDS]


def _judge(report: Report, bound: Bound) -> Verdict:
    ratios = {row: report.ratio(row, OURS, bound.plane, to_row=bound.row) for row in bound.rows}
    known = {row: ratio for row, ratio in ratios.items() if ratio is not None}
    if len(known) < len(ratios):
        return Verdict(bound, None, "")
    worst = min(known, key=lambda row: known[row])
    return Verdict(bound, known[worst], worst)
