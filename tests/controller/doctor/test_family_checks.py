"""Faults of a family as facts, and what is said of them. The same ones, put into a real mesh, are in test_collect.py."""

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from controller.doctor.facts import Drop, Facts, KeyFile, Mark, Way
from controller.plan import (
    AddAddress,
    AddRule,
    Configure,
    LoosenReversePath,
    PutRoute,
    RemoveRoute,
    RemoveRule,
    SetGuard,
    SetLink,
    SetMasquerade,
)
from controller.state import Guard, Link, Route, RouteKind, Rule
from controller.status import PeerStatus, Traffic
from tests.controller.doctor.well import N2, NOW, WELL, WG, diagnoses, family, is_well_said, peers, unseen
from wgpy.config import SetDevice, SetPeer

ROUTE = Route(ip_network("10.0.2.0/24"), RouteKind.DEVICE, 0)
RULE = Rule(99, 0x1000, 0x1000)


@pytest.mark.parametrize(
    ("facts", "reason", "remedy"),
    [
        (family(key_file=KeyFile.MISSING, public_key=None), "NoKey", "kubectl -n kube-system delete pod"),
        (family(key_file=KeyFile.UNREADABLE, public_key=None), "KeyUnreadable", "rm /state/ipv4.key"),
        (family(key_file=KeyFile.OPEN), "KeyOpen", "rm /state/ipv4.key"),
        (family(announced=None), "KeyNotPublished", "kubectl get node n1"),
        (family(announced="K9"), "KeyNotPublished", "kubectl get node n1"),
        (family(device_error="nobody listens"), "NoDataPlane", f"wgpy run {WG} --persist --state /state"),
        (family(link=None), "NoInterface", f"ip link show {WG}"),
        (family(link=Link(False, 1440)), "InterfaceDown", f"ip link set {WG} up"),
        (family(listen_port=0, port_is_taken=True), "PortTaken", "ss -lunp 'sport = :51820'"),
        (family(listen_port=4000), "PortDiffers", f"wg set {WG} listen-port 51820"),
        (
            replace(WELL, drops=(Drop("ip", "filter", "INPUT", "rule 3", True, 51820),)),
            "FirewallDrops",
            "iptables -t filter -I INPUT -p udp --dport 51820 -j ACCEPT",
        ),
        (
            replace(WELL, drops=(Drop("inet", "fw", "out", "policy drop", False, 51821),)),
            "FirewallDrops",
            "nft insert rule inet fw out udp sport 51821 accept",
        ),
        (family(steps=(SetLink(mtu=1400),)), "WrongMtu", f"ip link set {WG} mtu 1400"),
        (family(steps=(AddAddress(ip_interface("10.0.1.9/32")),)), "NoAddress", f"ip addr add 10.0.1.9/32 dev {WG}"),
        (family(largest={"n2": 1337}), "PathMtu", "kubectl patch felixconfigurations"),
        (family(steps=(PutRoute(ROUTE),)), "RouteMissing", f"ip -4 route replace 10.0.2.0/24 dev {WG} table 5182 proto 3"),
        (
            family(steps=(PutRoute(ROUTE.twin),)),
            "RouteUnguarded",
            "ip -4 route replace prohibit 10.0.2.0/24 table 5182 metric 2147418112 proto 3",
        ),
        (family(steps=(RemoveRoute(ROUTE),)), "RouteForeign", "ip -4 route del 10.0.2.0/24 table 5182"),
        (family(ways=(Way("n2", ip_address("10.0.2.0"), "eth0"),)), "WayAstray", "ip -4 rule"),
        (family(ways=(Way("n2", ip_address("10.0.2.0"), None),)), "WayAstray", "ip -4 rule"),
        (
            family(steps=(AddRule(RULE),)),
            "RuleMissing",
            "ip -4 rule add not fwmark 0x1000/0x1000 lookup 5182 priority 99",
        ),
        (family(steps=(RemoveRule(RULE),)), "RuleForeign", "ip -4 rule del priority 99 lookup 5182"),
        (family(steps=(LoosenReversePath(),)), "ReversePathStrict", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
        (family(forwards=False), "NoForwarding", "sysctl -w net.ipv4.ip_forward=1"),
        (family(foreign_rules=(Rule(10, 0x1000, 0xFFFF, False),)), "MarkInRule", "ip -4 rule   # who made it?"),
        (replace(WELL, marks=(Mark("nft: t", 0x1200),)), "MarkSetByOthers", "nft -a list ruleset | grep 'mark set'"),
        (family(steps=(Configure((SetDevice(private_key=b"x" * 32),)),)), "KeyDiffers", "kubectl -n kube-system delete pod"),
        (family(steps=(Configure((SetDevice(fwmark=1),)),)), "MarkDiffers", f"wg set {WG} fwmark 0x1000"),
        (family(steps=(Configure((SetPeer(b"x" * 32),)),)), "PeersDiffer", f"wg show {WG}"),
        (family(steps=(SetMasquerade(True),)), "NoMasquerade", "nft list ruleset   # is there an nft?"),
        (family(steps=(SetGuard(Guard()),)), "NoGuard", "nft -f /state/guard.nft"),
        (family(knocks={"n2": errno.ECONNREFUSED}), "PeerPortClosed", "wgpy doctor   # on n2: is its data plane running?"),
        (peers(replace(N2, last_handshake=None), knocks={"n2": errno.EHOSTUNREACH}), "PeerUnreachable", "ping 192.0.2.2"),
        (peers(replace(N2, is_silent=True)), "PeerSilent", "wgpy doctor   # on n2"),
        (peers(PeerStatus("n3", Traffic.CLEAR, "has no public key"), N2), "InClear", "kubectl describe node n3"),
        (peers(PeerStatus("n3", Traffic.REFUSED, "has no public key"), N2), "Refused", "kubectl describe node n3"),
    ],
)
def test_a_fault_has_one_finding_and_its_remedy(facts: Facts, reason: str, remedy: str) -> None:
    (found,) = diagnoses(facts)

    assert found.reason == reason
    assert found.remedies[0].startswith(remedy), found.remedies
    assert is_well_said(found)


@pytest.mark.parametrize(
    "facts",
    [
        replace(WELL, marks=(Mark("nft: t", 0x2000),)),
        peers(replace(N2, last_handshake=NOW - 10), knocks={"n2": errno.EHOSTUNREACH}),
        peers(replace(N2, last_handshake=None)),
        peers(PeerStatus("n3", Traffic.CLEAR, "claims our own public key"), N2),
        replace(WELL, drops=None, marks=None),
    ],
)
def test_what_is_no_fault(facts: Facts) -> None:
    assert diagnoses(facts) == []


def test_what_could_not_be_looked_at() -> None:
    assert unseen(replace(WELL, drops=None, marks=None)) == [
        "the firewall: there is no nft here, or it is not allowed to look",
        "which marks the firewall sets: there is no nft here, or it is not allowed to look",
    ]
    assert unseen(family(largest={})) == ["IPv4: the path's MTU, as no peer answers through the tunnel"]


def test_what_follows_from_a_dead_data_plane_is_not_told() -> None:
    dead = family(device_error="nobody", listen_port=0, steps=(PutRoute(ROUTE),), ways=(Way("n2", ip_address("10.0.2.0"), None),))
    assert [one.reason for one in diagnoses(dead)] == ["NoDataPlane"]


def test_the_mtu_to_set_fits_the_path() -> None:
    (found,) = diagnoses(family(largest={"n2": 1337, "n3": 1440}))
    assert '"wireguardMTU":1336' in found.remedies[0]
    assert "carries 1397 bytes, not 1500" in found.what and "to n2," in found.what


def test_many_are_not_all_named() -> None:
    many = tuple(PeerStatus(f"m{number}", Traffic.CLEAR, "has no public key") for number in range(9))
    (found,) = diagnoses(peers(*many))
    assert "m0, m1, m2, m3, m4 and 4 more" in found.what
