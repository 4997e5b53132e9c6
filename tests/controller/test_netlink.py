"""rtnetlink, on a real kernel, in a namespace that holds nothing else."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from controller.model import Family
from controller.netlink import BATCH, Kernel, Monitor, NetlinkRefusal
from controller.state import Link, Route, RouteKind, Rule
from tests.controller.lab import may_make_namespaces
from tests.controller.namespace import in_new_namespace

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun"),
]

NAME, TABLE = "wgtest", 5182
DEVICE, THROW, PROHIBIT = RouteKind.DEVICE, RouteKind.THROW, RouteKind.PROHIBIT


@contextmanager
def kernel_with_tun() -> Iterator[Kernel]:
    with IPRoute() as netlink:
        netlink.link("add", ifname=NAME, kind="tuntap", mode="tun")
    with Kernel() as kernel:
        yield kernel


def isolated(test: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        in_new_namespace(test)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def index_of(kernel: Kernel) -> int:
    found = kernel.find_link(NAME)
    assert found is not None
    return found.index


@isolated
def test_a_link_is_found_and_set() -> None:
    with kernel_with_tun() as kernel:
        assert kernel.find_link("nothing") is None
        kernel.set_link(NAME, is_up=True, mtu=1400)

        found = kernel.find_link(NAME)
        assert found is not None
        assert (found.kind, found.link) == ("tun", Link(is_up=True, mtu=1400))
        assert kernel.addresses(found.index, Family.IPV6) == frozenset(), "no link-local address is made"
        kernel.set_link(NAME, is_up=False, mtu=None)
        assert kernel.find_link(NAME) != found
        kernel.delete_link(NAME)
        kernel.delete_link(NAME)
        assert kernel.find_link(NAME) is None


@isolated
def test_the_kernel_says_which_links_it_can_make_and_makes_none() -> None:
    with Kernel() as kernel:
        before = ip("-br", "link")

        assert kernel.can_make("bridge")
        assert not kernel.can_make("no-such-kind")
        assert ip("-br", "link") == before


@isolated
def test_addresses_come_and_go() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=None)
        for text in ("10.9.1.0/32", "10.9.1.0/24", "fd00::1/128"):
            address = ip_interface(text)
            kernel.add_address(NAME, address)
            kernel.add_address(NAME, address)
        assert kernel.addresses(index_of(kernel), Family.IPV4) == {ip_interface("10.9.1.0/32"), ip_interface("10.9.1.0/24")}
        assert kernel.addresses(index_of(kernel), Family.IPV6) == {ip_interface("fd00::1/128")}
        kernel.remove_address(NAME, ip_interface("10.9.1.0/24"))
        kernel.remove_address(NAME, ip_interface("10.9.1.0/24"))
        assert kernel.addresses(index_of(kernel), Family.IPV4) == {ip_interface("10.9.1.0/32")}


@pytest.mark.parametrize(("prefix", "family", "metric"), [("10.9.2.0/26", Family.IPV4, 0), ("fd00:2::/122", Family.IPV6, 1024)])
def test_a_route_of_any_kind_replaces_the_one_before_it(prefix: str, family: Family, metric: int) -> None:
    def body() -> None:
        with kernel_with_tun() as kernel:
            kernel.set_link(NAME, is_up=True, mtu=None)
            for kind in (DEVICE, THROW, PROHIBIT, DEVICE, PROHIBIT, THROW, DEVICE):
                route = Route(ip_network(prefix), kind, metric)
                kernel.put_routes(NAME, TABLE, [route])
                assert kernel.routes(TABLE, family, index_of(kernel)) == {route}
            for kind in (DEVICE, THROW, PROHIBIT):
                route = Route(ip_network(prefix), kind, metric)
                kernel.put_routes(NAME, TABLE, [route])
                kernel.remove_routes(TABLE, [route])
                kernel.remove_routes(TABLE, [route])
                assert kernel.routes(TABLE, family, index_of(kernel)) == frozenset()

    in_new_namespace(body)


@isolated
def test_routes_look_as_felix_makes_them() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=None)
        for prefix in ("10.9.2.0/26", "fd00:2::/122"):
            kernel.put_routes(NAME, TABLE, [Route(ip_network(prefix), DEVICE, 0 if "." in prefix else 1024)])
        assert "10.9.2.0/26 dev wgtest proto boot scope link" in ip("-d", "route", "show", "table", str(TABLE)).replace(
            "unicast ", ""
        )
        assert "fd00:2::/122 dev wgtest proto boot" in ip("-d", "-6", "route", "show", "table", str(TABLE)).replace(
            "unicast ", ""
        )


@pytest.mark.parametrize(("prefix", "metric"), [("10.9.2.0/26", 0), ("fd00:2::/122", 1024)])
def test_a_twin_stands_behind_its_route_and_refuses_when_that_is_gone(prefix: str, metric: int) -> None:
    def body() -> None:
        with kernel_with_tun() as kernel:
            network = ip_network(prefix)
            family = Family(network.version)
            ip("link", "set", "lo", "up")
            kernel.set_link(NAME, is_up=True, mtu=None)
            kernel.add_address(NAME, ip_interface("10.9.1.0/32" if family is Family.IPV4 else "fd00:1::/128"))
            kernel.add_rule(TABLE, family, Rule(99, 0x1000, 0x1000))
            ip(f"-{family.value}", "route", "add", str(network), "dev", "lo")  # where packets would leak to
            route = Route(network, DEVICE, metric)
            kernel.put_routes(NAME, TABLE, [route, route.twin])
            target = str(network.network_address + 1)

            assert kernel.routes(TABLE, family, index_of(kernel)) == {route, route.twin}
            assert f"dev {NAME}" in ip("route", "get", target)
            kernel.set_link(NAME, is_up=False, mtu=None)  # the kernel removes the route
            assert kernel.routes(TABLE, family, index_of(kernel)) == {route.twin}
            with pytest.raises(subprocess.CalledProcessError) as refused:
                ip("route", "get", target)
            assert "Permission denied" in refused.value.stderr
            kernel.remove_routes(TABLE, [route.twin])
            assert "dev lo" in ip("route", "get", target)

    in_new_namespace(body)


@pytest.mark.parametrize("ignores", [True, False])
@pytest.mark.parametrize(("prefix", "metric"), [("10.9.2.0/26", 0), ("fd00:2::/122", 1024)])
def test_an_interface_that_nobody_reads_leaks_nothing_either(prefix: str, metric: int, ignores: bool) -> None:
    """A TUN without a process has no carrier; with ignore_routes_with_linkdown the kernel passes over the routes into it."""

    def body() -> None:
        with kernel_with_tun() as kernel:
            network = ip_network(prefix)
            ip("link", "set", "lo", "up")
            kernel.set_link(NAME, is_up=True, mtu=None)
            for family in ("ipv4", "ipv6"):
                sysctl = Path(f"/proc/sys/net/{family}/conf/{NAME}/ignore_routes_with_linkdown")
                sysctl.write_text(str(int(ignores)))
            kernel.add_rule(TABLE, Family(network.version), Rule(99, 0x1000, 0x1000))
            ip(f"-{network.version}", "route", "add", str(network), "dev", "lo")
            route = Route(network, DEVICE, metric)
            kernel.put_routes(NAME, TABLE, [route, route.twin])

            found = subprocess.run(
                ["ip", "route", "get", str(network.network_address + 1)], capture_output=True, text=True, check=False
            )
            assert ("Permission denied" in found.stderr) if ignores else (f"dev {NAME}" in found.stdout)

    in_new_namespace(body)


@isolated
def test_many_routes_are_put_in_order_and_the_first_refusal_is_told() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=None)
        routes = [Route(IPv4Network((0x0A000000 + 64 * number, 26)), DEVICE) for number in range(3 * BATCH + 7)]
        twins = [route.twin for route in routes]

        kernel.put_routes(NAME, TABLE, routes)
        kernel.put_routes(NAME, TABLE, twins)
        assert kernel.routes(TABLE, Family.IPV4, index_of(kernel)) == {*routes, *twins}
        kernel.remove_routes(TABLE, twins[1:])
        assert kernel.routes(TABLE, Family.IPV4, index_of(kernel)) == {*routes, twins[0]}
        kernel.set_link(NAME, is_up=False, mtu=None)
        with pytest.raises(NetlinkRefusal, match=r"^cannot put the route dev 10\.0\.0\.0/26: Network is down$"):
            kernel.put_routes(NAME, TABLE, routes)
        assert kernel.routes(TABLE, Family.IPV4, index_of(kernel)) == {twins[0]}, "and the socket is fit for more"
        kernel.remove_routes(TABLE, [*routes, *twins])
        assert kernel.routes(TABLE, Family.IPV4, index_of(kernel)) == frozenset()


@isolated
def test_a_route_tells_its_protocol() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=None)
        for protocol in (3, 80):
            route = Route(ip_network("10.9.2.0/26"), DEVICE, protocol=protocol)
            kernel.put_routes(NAME, TABLE, [route])
            assert kernel.routes(TABLE, Family.IPV4, index_of(kernel)) == {route}


@isolated
def test_of_a_table_only_what_is_ours_is_seen() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=None)
        ip("link", "set", "lo", "up")
        ip("route", "add", "10.1.0.0/16", "dev", "lo", "table", str(TABLE))
        ip("route", "add", "unreachable", "10.2.0.0/16", "table", str(TABLE), "metric", "7")
        ip("route", "add", "throw", "10.3.0.0/16", "table", "77")
        ip("route", "add", "throw", "default", "table", str(TABLE))

        assert kernel.routes(TABLE, Family.IPV4, index_of(kernel)) == {
            Route(ip_network("10.2.0.0/16"), PROHIBIT, 7),
            Route(ip_network("0.0.0.0/0"), THROW),
        }


@pytest.mark.parametrize("family", list(Family))
def test_rules_that_point_to_our_table_are_read_exactly(family: Family) -> None:
    def body() -> None:
        with Kernel() as kernel:
            rule = Rule(99, 0x1000, 0x1000)
            kernel.add_rule(TABLE, family, rule)
            kernel.add_rule(TABLE, family, rule)
            assert kernel.rules(TABLE, family) == {rule}
            version = f"-{family.value}"
            ip(version, "rule", "add", "from", "all", "lookup", "77", "priority", "70")
            ip(version, "rule", "add", "from", "all", "lookup", str(TABLE), "priority", "71")
            ip(version, "rule", "add", "iif", "lo", "fwmark", "3/7", "lookup", str(TABLE), "priority", "72")
            foreign = kernel.rules(TABLE, family) - {rule}
            assert foreign == {
                Rule(71, 0, 0, is_inverted=False),
                Rule(72, 3, 7, is_inverted=False, extra="FRA_IIFNAME=lo"),
            }
            for each in (rule, *foreign, rule):
                kernel.remove_rule(TABLE, family, each)
            assert kernel.rules(TABLE, family) == frozenset()
            assert kernel.rules(77, family) != frozenset()

    in_new_namespace(body)


@isolated
def test_the_underlay_is_the_link_with_the_address() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=1400)
        kernel.add_address(NAME, ip_interface("192.0.2.1/24"))

        assert kernel.underlay(ip_address("192.0.2.2")) is None
        found = kernel.underlay(ip_address("192.0.2.1"))
        assert found is not None
        assert (found.name, found.mtu, found.is_strict) == (NAME, 1400, False)


@isolated
def test_a_strict_reverse_path_is_loosened() -> None:
    with kernel_with_tun() as kernel:
        kernel.set_link(NAME, is_up=True, mtu=None)
        kernel.add_address(NAME, ip_interface("192.0.2.1/24"))
        Path(f"/proc/sys/net/ipv4/conf/{NAME}/rp_filter").write_text("1")  # of the namespace of the thread that opens it
        strict = kernel.underlay(ip_address("192.0.2.1"))
        assert strict is not None and strict.is_strict

        kernel.loosen_reverse_path(NAME)

        loose = kernel.underlay(ip_address("192.0.2.1"))
        assert loose is not None and not loose.is_strict


@isolated
def test_a_refusal_is_one_line() -> None:
    with kernel_with_tun() as kernel:
        with pytest.raises(NetlinkRefusal, match=r"^cannot put the route dev 10\.9\.2\.0/26: Network is down$") as raised:
            kernel.put_routes(NAME, TABLE, [Route(ip_network("10.9.2.0/26"), DEVICE)])
        assert raised.value.errno == errno.ENETDOWN
        with pytest.raises(NetlinkRefusal, match=r"^cannot use interface nothing: No such device$"):
            kernel.set_link("nothing", is_up=True, mtu=None)


@isolated
def test_the_monitor_tells_of_our_links_and_of_rules_only() -> None:
    monitor = Monitor()
    try:
        with kernel_with_tun() as kernel:
            assert monitor.drain([NAME])
            assert not monitor.drain([NAME])
            kernel.set_link(NAME, is_up=True, mtu=None)
            assert not monitor.drain(["other"])
            kernel.add_rule(TABLE, Family.IPV4, Rule(99, 0x1000, 0x1000))
            assert monitor.drain([])
            kernel.delete_link(NAME)
            assert monitor.drain([NAME])
    finally:
        monitor.close()
