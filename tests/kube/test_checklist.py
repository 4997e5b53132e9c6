"""Felix's checklist, as far as it is about what is on the wire and in the API (:mod:`tests.controller.checklist`).

Felix's end-to-end tests have nodes with WireGuard and one without: n1 and n2 are ours, n3 has nothing. Both families are on.
"""

import time
from collections.abc import Iterator

import pytest

from tests.controller.checklist import line
from tests.controller.lab import PATIENTLY, WG4, WG6, Node, may_make_namespaces
from tests.kube.lab import INNER, INTERFACES, PODS, UNDERLAY, KubeLab, capture, make_kube_lab, transport_data
from tests.kube.testbed import Testbed
from tests.promises import Promises

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2"),
]

HEAL_SECONDS = 5.0
BLOCKS = {4: "10.42.{}.0/26", 6: "fd00:42:{}::/122"}
TABLES = {4: "5182", 6: "5183"}
families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def lab(kube: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    path = tmp_path_factory.mktemp("checklist")
    with make_kube_lab(path, kube, "wf", wireguardEnabled=True, wireguardEnabledV6=True) as lab:
        for number in (1, 2, 3):
            lab.add_node(number)
            lab.add_pod(number)
        for number in (1, 2):
            lab.nodes[number].start_agent()
        lab.start_allocator(1, 2)
        settle(lab)
        yield lab


def settle(lab: KubeLab) -> None:
    """Wait until n1 and n2 are in the mesh with all that belongs to it, and pods meet.

    n2 asks first: for a while it did not know n1, if that was without a key, and has forgotten their session. n1 would go on
    using it for 15 seconds (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT).
    """
    for version in (4, 6):
        lab.until_meshed(1, 2, version=version)
        for node in (lab.nodes[1], lab.nodes[2]):
            lab.until(lambda node=node, version=version: node.link(INTERFACES[version])[2], "an interface address")  # type: ignore[misc]
    lab.until_pods_meet((2, 1), (1, 2), (1, 3), (3, 1))


def way(lab: KubeLab, here: Node | str, there: int, version: int) -> str:
    """How a ping to the pod of node ``there`` leaves n1, and that it is answered: "encrypted", "in clear" or "not at all"."""
    one, address = lab.nodes[1], PODS[version].format(there)
    with capture(one, INNER, direction="out") as clear, capture(one, transport_data(version), direction="out") as encrypted:
        is_answered = here.ping(address, PATIENTLY) if isinstance(here, Node) else lab.reaches(here, address, PATIENTLY)
        assert is_answered, f"{address} does not answer"
        if there != one.number:
            lab.until(lambda: clear() or encrypted(), "a packet to leave n1")
        ways = {(True, False): "in clear", (False, True): "encrypted", (False, False): "not at all"}
        return ways.get((bool(clear()), bool(encrypted())), "in both ways")


@line("A.2", "A.3")
@families
def test_the_rule_and_the_routes_exist(lab: KubeLab, version: int) -> None:
    one = lab.nodes[1]
    assert one.rules(version) == [f"99: not from all fwmark 0x1000/0x1000 lookup {TABLES[version]}"]
    assert one.routes(version)[BLOCKS[version].format(2)] == INTERFACES[version]


@line("A.6")
@families
def test_nodes_have_the_keys_of_their_devices(lab: KubeLab, version: int) -> None:
    for number in (1, 2):
        assert lab.nodes[number].run("wg", "show", INTERFACES[version], "public-key").strip() == lab.nodes[number].key(version)
    assert lab.nodes[3].key(version) is None


@line("A.7")
@families
def test_a_foreign_key_is_overwritten_within_five_seconds(lab: KubeLab, version: int, promises: Promises) -> None:
    one = lab.nodes[1]
    own, name = one.key(version), "WireguardPublicKey" + ("V6" if version == 6 else "")

    lab.annotate(1, **{name: "A" * 43 + "="})

    began = time.monotonic()
    lab.until(lambda: one.key(version) == own, "our key is back")
    promises.judge(f"a foreign key in place of ours to our own, IPv{version}", time.monotonic() - began, HEAL_SECONDS)
    settle(lab)


@line("A.8", "A.19")
@families
def test_between_pods_it_is_encrypted_where_both_nodes_can_and_clear_where_one_cannot(lab: KubeLab, version: int) -> None:
    assert way(lab, lab.pod(1), 2, version) == "encrypted"
    assert way(lab, lab.pod(1), 3, version) == "in clear"


@line("A.20", "A.21")
@families
def test_from_host_to_pod_it_is_encrypted_where_both_nodes_can_and_clear_where_one_cannot(lab: KubeLab, version: int) -> None:
    assert way(lab, lab.nodes[1], 2, version) == "encrypted"
    assert way(lab, lab.nodes[1], 3, version) == "in clear"


@line("A.22")
@families
def test_every_way_from_host_or_pod_to_host_or_pod_works(lab: KubeLab, version: int) -> None:
    one, two, three = lab.nodes[1], lab.nodes[2], lab.nodes[3]
    assert way(lab, one, 1, version) == way(lab, lab.pod(1), 1, version) == "not at all", "on one node nothing leaves it"
    pod, outside = PODS[version].format(1), UNDERLAY[version].format(1)
    for address in (pod, outside):
        assert two.ping(address, PATIENTLY) and three.ping(address, PATIENTLY)
        assert lab.reaches(lab.pod(2), address, PATIENTLY) and lab.reaches(lab.pod(3), address, PATIENTLY)

    peers = one.peers(INTERFACES[version])
    assert set(peers) == {two.key(version)}
    allowed = peers[str(two.key(version))]["allowed"].split()
    held = two.link(INTERFACES[version])[2]
    assert set(allowed) >= {BLOCKS[version].format(2), *held}
    transferred = one.run("wg", "show", INTERFACES[version], "transfer").split()
    assert int(transferred[1]) > 0 and int(transferred[2]) > 0


@line("A.4", "A.15")
def test_the_device_can_be_configured_and_without_it_pods_meet_in_clear(lab: KubeLab) -> None:
    one = lab.nodes[1]
    change(lab, {"wireguardEnabled": False})
    lab.until(lambda: not one.rules() and not one.routes() and not one.link(WG4)[0], "device and rule are gone")
    lab.until(lambda: lab.nodes[2].key() is None and not lab.nodes[2].rules(), "on n2, too")
    assert way(lab, lab.pod(1), 2, 4) == "in clear"
    assert way(lab, lab.pod(1), 2, 6) == "encrypted", "the other family goes on"

    spec = {
        "wireguardInterfaceName": "wg0",
        "wireguardMTU": 1300,
        "wireguardListeningPort": 4000,
        "wireguardRoutingRulePriority": 98,
    }
    change(lab, spec | {"wireguardEnabled": True})
    lab.until(lambda: one.rules() == ["98: not from all fwmark 0x1000/0x1000 lookup 5182"], "the new rule")
    lab.until(lambda: lab.nodes[2].routes().get("10.42.1.0/26") == "wg0u", "n2 is ready")
    lab.until(lambda: one.routes().get("10.42.2.0/26") == "wg0u" and one.link("wg0u")[:2] == (True, 1300), "the new device")
    assert one.run("wg", "show", "wg0u", "listen-port").strip() == "4000"
    assert one.run("wg", "show", "wg0u", "endpoints").split()[1] == "192.0.2.2:4000"
    lab.until(lambda: lab.reaches(lab.pod(1), PODS[4].format(2)), "pods meet")

    change(lab, dict.fromkeys(spec))
    settle(lab)
    assert one.link(WG4)[0] and one.link(WG6)[0]


def change(lab: KubeLab, spec: dict[str, object]) -> None:
    lab.kube.patch("FelixConfiguration", "default", {"spec": spec}, "crd.projectcalico.org/v1")
