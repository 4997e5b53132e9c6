"""Felix's checklist, as far as it is about what follows from the cluster (:mod:`tests.controller.checklist`).

Felix's unit tests tell it of nodes, addresses and keys, let it "apply", and look at a mocked kernel. So does :class:`Bench`,
with the agent's own chain: observe, desire, plan; the plan is done to the model of kernel and device of test_plan. What Felix
calls "no updates" is a plan without steps.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from controller.desired import (
    DEFAULT_NUMBERS,
    Identity,
    degraded_state,
    desired_state,
    disabled_state,
    keep_roamed,
)
from controller.meshes.calico import observe
from controller.model import Cluster, Family
from controller.plan import AddRule, Configure, PutRoute, SetLink, Step, plan
from controller.publication import Action, Publication
from controller.source import Objects, Ref
from controller.state import TWIN_METRIC, Device, Link, RouteKind, Rule, State
from tests.controller.checklist import NOT_OURS, TESTED_AT, TOTALS, line
from tests.controller.cluster import Manifest, block, felix, node, objects
from tests.controller.test_plan import Model
from wgpy.config import NO_KEY, Endpoint, PeerConfig, Prefix, SetDevice, SetPeer
from wgpy.wgconf import format_key

ROOT = Path(__file__).parents[2]

FAMILIES = [(Family.IPV4,), (Family.IPV4, Family.IPV6), (Family.IPV6,)]
SUFFIX = {Family.IPV4: "", Family.IPV6: "V6"}
NEW_LINK = State(link=Link(is_up=False, mtu=1420), device=Device(NO_KEY, listen_port=0, fwmark=0))
RULE = Rule(priority=99, fwmark=0x1000, fwmask=0x1000)


def key(number: int, family: Family = Family.IPV4) -> bytes:
    """The public key of node ``number``: any 32 bytes are one."""
    return bytes([16 * family.value + number]) * 32


def address(number: int, family: Family) -> str:
    return f"192.0.2.{number}/24" if family is Family.IPV4 else f"fd00:aa::{number}/64"


def block_of(number: int, family: Family) -> str:
    return f"10.42.{number}.0/26" if family is Family.IPV4 else f"fd00:42:{number}::/122"


def one(number: int, host: int, family: Family) -> str:
    """An address in the block of node ``number``."""
    return f"10.42.{number}.{host}" if family is Family.IPV4 else f"fd00:42:{number}::{host}"


def range_of(text: str) -> Prefix:
    return ip_network(text)


@dataclass
class Bench:
    """n1, its cluster, and what is in its kernel and on its devices."""

    families: tuple[Family, ...]
    objects: dict[Ref, Manifest] = field(default_factory=dict)
    found: dict[Family, State] = field(default_factory=dict)
    assigned: dict[Family, dict[bytes, Endpoint]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found = dict.fromkeys(Family, NEW_LINK)
        self.felix()
        self.node(1, is_keyed=False)
        self.block(1)

    # The cluster

    def put(self, *manifests: Manifest) -> None:
        self.objects |= {Ref(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}

    def felix(self, is_on: bool = True, **spec: Any) -> None:
        enabled = {f"wireguardEnabled{SUFFIX[family]}": is_on for family in self.families}
        self.put(felix(**(enabled | spec)))

    def node(self, number: int, host: int | None = None, is_keyed: bool = True, like: int | None = None) -> None:
        """Node ``number`` at the address ``host`` (by default its number), with its own key or that of another."""
        annotations = {f"projectcalico.org/{family}Address": address(host or number, family) for family in Family}
        for family in self.families:
            if is_keyed:
                name = f"projectcalico.org/WireguardPublicKey{SUFFIX[family]}"
                annotations[name] = format_key(key(like or number, family))
        self.put(node(f"n{number}", annotations=annotations))

    def annotate(self, number: int, name: str, value: str) -> None:
        self.objects[Ref("Node", f"n{number}")]["metadata"]["annotations"][f"projectcalico.org/{name}"] = value

    def block(self, number: int, owner: int | None = None, **holders: int) -> None:
        """The blocks of node ``number``, of which addresses are borrowed: ``h9=3`` is address 9, held by n3."""
        for family in self.families:
            lent = {one(number, int(host[1:]), family): f"n{holder}" for host, holder in holders.items()}
            self.put(block(block_of(number, family), f"n{owner or number}", lent))

    def remove(self, number: int, node: bool = True, blocks: bool = True) -> None:
        """Take out a node, or its blocks, or both."""
        gone = {Ref("Node", f"n{number}")} if node else set()
        if blocks:
            gone |= {ref for ref in self.objects if ref.kind == "IPAMBlock" and ref in self._blocks(number)}
        self.objects = {ref: manifest for ref, manifest in self.objects.items() if ref not in gone}

    def _blocks(self, number: int) -> Objects:
        return objects(*(block(block_of(number, family), None) for family in Family))

    # The node

    def cluster(self) -> Cluster:
        return observe(self.objects, "n1").cluster

    def identity(self, family: Family) -> Identity:
        return Identity("n1", bytes(31) + bytes([family.value]), key(1, family))

    def desired(self, family: Family) -> State:
        cluster = self.cluster()
        if not cluster.felix.of(family).enabled:
            return disabled_state()
        return desired_state(cluster, family, self.identity(family), DEFAULT_NUMBERS[family], underlay_mtu=1500)

    def plan(self, family: Family) -> list[Step]:
        desired = keep_roamed(self.desired(family), self.found[family], self.assigned.get(family, {}))
        return list(plan(desired, self.found[family]))

    def apply(self) -> list[Step]:
        """One pass. What it did, in all families that there are."""
        done = []
        for family in Family:
            done += self.do(family, self.plan(family))
            device = self.found[family].device
            self.assigned[family] = {peer.public_key: peer.endpoint for peer in device.peers if peer.endpoint} if device else {}
        return done

    def do(self, family: Family, steps: list[Step]) -> list[Step]:
        model = Model(self.found[family])
        for step in steps:
            for _ in model.do(step):
                pass
        self.found[family] = model.state
        return steps

    # What there is

    def peers(self, family: Family) -> dict[bytes, set[str]]:
        """The allowed IPs of each peer, but for its host's own address (from which it may send)."""
        device = self.found[family].device
        assert device is not None
        hosts = {ip_interface(address(number, family)).ip for number in range(10)}
        return {
            peer.public_key: {str(prefix) for prefix in peer.allowed_ips if prefix.network_address not in hosts}
            for peer in device.peers
        }

    def endpoints(self, family: Family) -> dict[bytes, str]:
        device = self.found[family].device
        assert device is not None
        return {peer.public_key: str(peer.endpoint) for peer in device.peers}

    def routes(self, family: Family) -> dict[str, str]:
        return {str(route.prefix): route.kind.value for route in self.found[family].routes if route.metric != TWIN_METRIC}


@pytest.fixture(params=FAMILIES, ids=["IPv4", "both", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.fixture
def three(bench: Bench) -> Bench:
    """n2 and n3 have keys and blocks, and all is applied."""
    for number in (2, 3):
        bench.node(number)
        bench.block(number)
    bench.apply()
    return bench


@pytest.fixture
def four(three: Bench) -> Bench:
    """And n4 has a block and no key."""
    three.node(4, is_keyed=False)
    three.block(4)
    three.apply()
    return three


def holds(bench: Bench, **expected: str) -> bool:
    """That the blocks of the nodes (``n2="dev"``) are routed so in every family, and no other routes are there."""
    for family in bench.families:
        assert bench.routes(family) == {block_of(int(name[1:]), family): kind for name, kind in expected.items()}
    return True


# The link ---------------------------------------------------------------------------------------------------------------


@line("B.1", "B.51")
def test_a_node_alone_has_its_interface_its_rule_and_its_own_block_thrown(bench: Bench) -> None:
    bench.apply()

    assert holds(bench, n1="throw")
    assert all(bench.found[family].rules == {RULE} and bench.peers(family) == {} for family in bench.families)


@line("B.2")
def test_routes_into_the_link_wait_until_it_is_up(bench: Bench) -> None:
    bench.node(2)
    bench.block(2)
    for family in bench.families:
        steps = bench.plan(family)
        up = next(place for place, step in enumerate(steps) if isinstance(step, SetLink) and step.is_up)
        routed = [step.route.kind for step in steps[:up] if isinstance(step, PutRoute)]
        assert RouteKind.DEVICE not in routed


@line("B.3", "B.54", "B.55")
def test_without_a_data_plane_nothing_is_promised_however_often_it_is_asked(three: Bench) -> None:
    for family in three.families:
        for found in (State(), State(link=Link(is_up=False, mtu=1420))):
            assert not plan(degraded_state(three.desired(family), found, keeps_interface=found.link is not None), found)


@line("B.56")
def test_when_the_data_plane_appears_all_is_made_up_for(three: Bench) -> None:
    wanted = dict(three.found)
    three.found = dict.fromkeys(Family, NEW_LINK)

    three.apply()

    assert three.found == wanted


@line("B.7")
def test_the_device_has_a_private_key_from_its_first_configuration_on(bench: Bench) -> None:
    for family in bench.families:
        first = next(step for step in bench.plan(family) if isinstance(step, Configure))
        changes = [change for change in first.changes if isinstance(change, SetDevice) and change.private_key]
        assert [change.private_key for change in changes] == [bench.identity(family).private_key]


@line("B.8")
def test_the_rule_comes_when_the_device_is_configured(three: Bench) -> None:
    three.found = dict.fromkeys(Family, NEW_LINK)
    for family in three.families:
        steps = three.plan(family)
        assert isinstance(steps[-1], AddRule) and any(isinstance(step, Configure) for step in steps[:-1])


@line("B.9", "B.15", "B.16")
def test_rules_to_our_table_are_put_right_at_once(three: Bench) -> None:
    """Felix waits for its resync; we are told when rules change."""
    foreign = {Rule(70, 0, 0, is_inverted=False), replace(RULE, fwmark=0x2000), replace(RULE, extra="iif eth0")}
    for rules in (frozenset(foreign), frozenset(foreign | {RULE}), frozenset()):
        for family in three.families:
            three.found[family] = replace(three.found[family], rules=frozenset(rules))
        three.apply()
        assert all(three.found[family].rules == {RULE} for family in three.families)


@line("B.52")
def test_a_link_that_is_up_is_taken_as_it_is(bench: Bench) -> None:
    bench.found = dict.fromkeys(Family, replace(NEW_LINK, link=Link(is_up=True, mtu=1420)))
    for family in bench.families:
        assert not any(isinstance(step, SetLink) and step.is_up is not None for step in bench.plan(family))
        bench.do(family, bench.plan(family))
        assert bench.found[family].link == Link(is_up=True, mtu=1500 - {4: 60, 6: 80}[family.value])


@line("B.53")
def test_port_and_mark_are_put_right_and_the_right_key_is_left_alone(three: Bench) -> None:
    for family in three.families:
        found = three.found[family]
        assert found.device is not None
        three.found[family] = replace(found, device=replace(found.device, listen_port=1000, fwmark=1))
        changes = [change for step in three.plan(family) if isinstance(step, Configure) for change in step.changes]
        assert changes == [SetDevice(listen_port={4: 51820, 6: 51821}[family.value], fwmark=0x1000)]


# The own Node -----------------------------------------------------------------------------------------------------------


def stored(bench: Bench, family: Family) -> bytes | None:
    return bench.cluster().nodes["n1"].of(family).public_key


@line("B.10")
def test_a_wrong_key_on_our_node_is_overwritten_and_its_address_taken(bench: Bench) -> None:
    bench.node(1, like=9)
    for family in bench.families:
        bench.annotate(1, f"{family}WireguardInterfaceAddr", one(1, 7, family))
        assert Publication().decide(stored(bench, family), key(1, family), True, 0.0) is Action.PUBLISH
    bench.apply()
    assert all({str(each.ip) for each in bench.found[family].addresses} == {one(1, 7, family)} for family in bench.families)


@line("B.11")
def test_our_key_on_our_node_is_left_as_it_is(bench: Bench) -> None:
    bench.node(1)
    for family in bench.families:
        assert Publication().decide(stored(bench, family), key(1, family), True, 0.0) is Action.KEEP


@line("B.22")
def test_a_key_that_somebody_deletes_is_published_again(bench: Bench) -> None:
    for family in bench.families:
        publication = Publication()
        assert publication.decide(key(1, family), key(1, family), True, 0.0) is Action.KEEP
        actions = [publication.decide(None, key(1, family), False, at / 10) for at in range(1, 20)]
        assert Action.PUBLISH in actions


@line("B.12", "B.13")
def test_with_host_encryption_the_nodes_address_is_the_interfaces_until_it_has_one(bench: Bench) -> None:
    bench.felix(wireguardHostEncryptionEnabled=True)
    bench.apply()
    for family in bench.families:
        assert {each.ip for each in bench.found[family].addresses} == {ip_interface(address(1, family)).ip}
        bench.annotate(1, f"{family}WireguardInterfaceAddr", one(1, 7, family))
    bench.apply()
    assert all({str(each.ip) for each in bench.found[family].addresses} == {one(1, 7, family)} for family in bench.families)


@line("B.14")
def test_addresses_of_ours_inside_our_block_are_covered_by_it(bench: Bench) -> None:
    for family in bench.families:
        bench.annotate(1, f"{family}WireguardInterfaceAddr", one(1, 7, family))
    bench.apply()

    assert holds(bench, n1="throw")
    assert all(bench.found[family].rules == {RULE} for family in bench.families)


@line("B.18")
def test_a_new_address_of_our_own_node_changes_nothing(three: Bench) -> None:
    three.node(1, host=9, is_keyed=False)
    assert three.apply() == []


@line("B.23")
def test_our_own_block_is_thrown(three: Bench) -> None:
    assert all(three.routes(family)[block_of(1, family)] == "throw" for family in three.families)


@line("B.24", "A.18")
def test_an_address_that_we_have_borrowed_is_thrown(three: Bench) -> None:
    three.block(2, h9=1)
    three.apply()
    for family in three.families:
        assert three.routes(family)[f"{one(2, 9, family)}/{ip_network(one(2, 9, family)).prefixlen}"] == "throw"


# Peers ------------------------------------------------------------------------------------------------------------------


@line("B.17", "B.34", "B.47")
def test_nodes_with_keys_are_peers_with_their_blocks(three: Bench) -> None:
    for family in three.families:
        assert three.peers(family) == {key(number, family): {block_of(number, family)} for number in (2, 3)}
        port = {4: 51820, 6: 51821}[family.value]
        assert three.endpoints(family) == {
            key(number, family): str(Endpoint(str(ip_interface(address(number, family)).ip), port)) for number in (2, 3)
        }
    assert holds(three, n1="throw", n2="dev", n3="dev")


@line("B.31", "B.33")
def test_a_second_pass_does_nothing(four: Bench) -> None:
    assert four.apply() == []


def another_address(bench: Bench) -> None:
    bench.node(2, host=8)


def another_key(bench: Bench) -> None:
    bench.node(2, like=8)


def another_peer(bench: Bench) -> None:
    bench.node(5)
    bench.block(5)


def swapped_blocks(bench: Bench) -> None:
    bench.block(2, owner=3)
    bench.block(3, owner=2)


def another_borrowed(bench: Bench) -> None:
    bench.block(2, h9=3)


@line("B.19", "B.20", "B.21", "B.37", "B.38")
@pytest.mark.parametrize("change", [another_address, another_key, another_peer, swapped_blocks, another_borrowed])
def test_what_is_changed_and_changed_back_before_a_pass_costs_nothing(four: Bench, change: Callable[[Bench], None]) -> None:
    before = dict(four.objects)
    change(four)
    assert any(four.plan(family) for family in four.families), "it would have mattered"

    four.objects = before

    assert four.apply() == []


@line("B.39")
def test_a_range_that_nobody_has_heard_of_is_not_missed(four: Bench) -> None:
    four.remove(7)
    assert four.apply() == []


@line("B.25", "B.26", "B.27")
@pytest.mark.parametrize("passes", ["delete, pass, add", "move", "delete, add"])
def test_an_address_that_moves_to_another_node_goes_to_that_peer(three: Bench, passes: str) -> None:
    three.block(1, h9=2)
    three.apply()
    if "delete" in passes:
        three.block(1)
    if "pass" in passes:
        three.apply()
        assert all(one(1, 9, family) not in str(three.peers(family)) for family in three.families)
    three.block(1, h9=3)
    three.apply()

    for family in three.families:
        moved = str(range_of(one(1, 9, family)))
        assert moved in three.peers(family)[key(3, family)] and moved not in three.peers(family)[key(2, family)]
        assert three.routes(family)[moved] == "dev"


@line("B.28", "B.29", "B.30")
def test_of_nodes_with_one_key_none_is_a_peer_until_the_conflict_ends(three: Bench) -> None:
    three.node(3, like=2)
    three.apply()
    assert all(three.peers(family) == {} for family in three.families)
    assert holds(three, n1="throw", n2="throw", n3="throw")

    for family in three.families:  # somebody adds the peer by hand
        device = three.found[family].device
        assert device is not None
        three.found[family] = replace(three.found[family], device=replace(device, peers=(PeerConfig(key(2, family)),)))
    three.apply()
    assert all(three.peers(family) == {} for family in three.families)

    three.node(3)
    three.apply()
    assert all(set(three.peers(family)) == {key(2, family), key(3, family)} for family in three.families)
    assert holds(three, n1="throw", n2="dev", n3="dev")


@line("B.32", "B.35")
def test_a_node_without_a_key_is_no_peer_and_its_block_is_thrown(four: Bench) -> None:
    assert all(key(4, family) not in four.peers(family) for family in four.families)
    assert holds(four, n1="throw", n2="dev", n3="dev", n4="throw")


@line("B.36")
def test_a_block_that_a_peer_loses_is_taken_from_it(four: Bench) -> None:
    four.remove(2, node=False)
    four.apply()

    assert all(four.peers(family)[key(2, family)] == set() for family in four.families)
    assert holds(four, n1="throw", n3="dev", n4="throw")


@line("B.40")
def test_nodes_that_are_deleted_are_gone_at_once(four: Bench) -> None:
    four.remove(2)
    four.remove(3)
    four.apply()

    assert all(four.peers(family) == {} for family in four.families)
    assert holds(four, n1="throw", n4="throw")


@line("B.41", "B.42")
@pytest.mark.parametrize("first", ["node", "block", "key"])
def test_a_node_that_is_deleted_piece_by_piece_is_gone_in_the_end(four: Bench, first: str) -> None:
    pieces: dict[str, Callable[[], None]] = {
        "key": lambda: four.node(2, is_keyed=False),
        "node": lambda: four.remove(2, blocks=False),
        "block": lambda: four.remove(2, node=False),
    }
    for name in (first, "node", "block"):
        pieces[name]()
        four.apply()
        assert four.apply() == []
        if name != "block":
            assert all(key(2, family) not in four.peers(family) for family in four.families)

    assert holds(four, n1="throw", n3="dev", n4="throw")


@line("B.43", "B.44", "B.45", "B.46")
@pytest.mark.parametrize("host", [2, 8], ids=["same address", "another"])
@pytest.mark.parametrize("passes_between", [False, True])
def test_a_node_that_is_deleted_and_comes_back_is_the_same_peer(four: Bench, host: int, passes_between: bool) -> None:
    before = {family: four.peers(family) for family in four.families}
    blocks = dict(four.objects)
    four.remove(2)
    if passes_between:
        four.apply()
    four.objects = blocks
    four.node(2, host=host)

    done = four.apply()

    assert (done == []) == (host == 2 and not passes_between)
    assert {family: four.peers(family) for family in four.families} == before
    assert all(str(host) in four.endpoints(family)[key(2, family)] for family in four.families)


@line("B.48")
def test_a_block_that_moves_to_a_node_without_a_key_changes_that_route_alone(four: Bench) -> None:
    four.block(2, owner=4)
    routed = [step.route for step in four.apply() if isinstance(step, PutRoute)]

    assert {(route.prefix, route.kind) for route in routed} == {
        (range_of(block_of(2, family)), RouteKind.THROW) for family in four.families
    }
    assert holds(four, n1="throw", n2="throw", n3="dev", n4="throw")


@line("B.49", "B.50")
def test_a_node_that_gets_a_key_becomes_a_peer_and_its_route_alone_changes(four: Bench) -> None:
    four.node(4)
    steps = four.apply()

    assert {step.route.prefix for step in steps if isinstance(step, PutRoute)} == {
        range_of(block_of(4, family)) for family in four.families
    }
    told = [change for step in steps if isinstance(step, Configure) for change in step.changes]
    assert {change.public_key for change in told if isinstance(change, SetPeer)} == {key(4, family) for family in four.families}
    assert holds(four, n1="throw", n2="dev", n3="dev", n4="dev")


# Faults -----------------------------------------------------------------------------------------------------------------


@line("B.57", "B.58")
@pytest.mark.parametrize("faults", [1, 2])
def test_wherever_a_pass_fails_the_next_makes_up_for_it(four: Bench, faults: int) -> None:
    """Felix has 13 calls fail, once and twice. Here every step fails in its turn: what was done before it stays. A call that
    reads fails before the first step."""
    wanted = dict(four.found)
    for family in four.families:
        whole = list(plan(four.desired(family), NEW_LINK))
        for place in range(len(whole)):
            four.found[family] = NEW_LINK
            four.do(family, four.plan(family)[:place])
            if faults == 2:
                rest = four.plan(family)
                four.do(family, rest[: len(rest) // 2])
            four.do(family, four.plan(family))
            assert four.found[family] == wanted[family], f"after a failure at step {place}"


@line("B.60")
@pytest.mark.parametrize("has_right_port", [True, False])
def test_a_device_that_somebody_has_changed_is_put_right(three: Bench, has_right_port: bool) -> None:
    wanted = {family: three.found[family] for family in three.families}
    for family in three.families:
        device = three.found[family].device
        assert device is not None
        two, other = device.peers
        port = {4: 51820, 6: 51821}[family.value] if has_right_port else 1
        extra = range_of(one(9, 1, family))
        peers = (
            replace(two, allowed_ips=two.allowed_ips[1:], endpoint=None),
            replace(other, allowed_ips=(*other.allowed_ips, extra)),
            PeerConfig(key(8, family), allowed_ips=(range_of(one(9, 2, family)),)),
        )
        three.found[family] = replace(three.found[family], device=replace(device, listen_port=port, peers=peers))

    three.apply()

    assert {family: three.found[family] for family in three.families} == wanted


# Switched off -----------------------------------------------------------------------------------------------------------


@line("B.61", "B.62", "B.64", "B.65")
def test_while_it_is_off_nothing_is_done_whatever_nodes_do(bench: Bench) -> None:
    bench.felix(is_on=False)
    assert bench.apply() == []
    bench.node(2)
    bench.block(2)
    assert bench.apply() == []
    bench.remove(2)
    assert bench.apply() == []


@line("B.63", "B.66", "B.67", "A.14")
def test_what_is_left_from_before_goes_when_it_is_off(three: Bench) -> None:
    """The link itself is the data plane's: it stays, down and without a key."""
    three.felix(is_on=False)
    for family in three.families:
        device = three.found[family].device
        steps = three.plan(family)
        for place in range(len(steps)):  # and wherever it fails, the next pass goes on
            three.do(family, three.plan(family)[:1])
            assert len(three.plan(family)) <= len(steps) - place
        found = three.found[family]
        assert device is not None and found.device is not None
        assert found.link is not None and not found.link.is_up
        assert not (found.addresses or found.routes or found.rules)
        assert found.device.private_key == NO_KEY and found.device.peers == ()


# The start --------------------------------------------------------------------------------------------------------------


@line("C.1", "C.5", "C.6", "C.9", "C.10", "C.11", "C.12", "C.13", "C.14", "C.15")
def test_a_start_takes_over_what_is_there_and_keeps_its_key(three: Bench) -> None:
    """Felix throws away what an earlier Felix left where keys differ. Ours does not differ: what is right stays, whatever is not
    is put right, with packets flowing; and a device with another key gets ours."""
    assert three.apply() == []
    for family in three.families:
        device = three.found[family].device
        assert device is not None
        for found in (replace(device, private_key=bytes(31) + b"\1"), replace(device, peers=()), Device(NO_KEY, 0, 0)):
            three.found[family] = replace(three.found[family], device=found)
            three.apply()
            assert three.found[family].device == device


# The list ---------------------------------------------------------------------------------------------------------------


def test_every_line_of_the_checklist_is_somewhere_and_nowhere_twice() -> None:
    here = Path(__file__).read_text() + (ROOT / "tests/kube/test_checklist.py").read_text()
    marked = [
        number for numbers in re.findall(r"^@line\((.*)\)$", here, re.MULTILINE) for number in re.findall(r'"(.+?)"', numbers)
    ]
    lines = [f"{part}.{number}" for part, total in TOTALS.items() for number in range(1, total + 1)]

    assert set(marked) | TESTED_AT.keys() | NOT_OURS.keys() == set(lines)
    assert not set(marked) & TESTED_AT.keys() and not set(marked) & NOT_OURS.keys() and not TESTED_AT.keys() & NOT_OURS.keys()


@pytest.mark.parametrize("place", sorted(set(TESTED_AT.values())))
def test_what_is_said_to_be_tested_elsewhere_is(place: str) -> None:
    path, _, name = place.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
