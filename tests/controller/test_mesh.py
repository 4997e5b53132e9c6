"""What every mesh has to be like, tried on those there are."""

import pytest

from controller.mesh import Mesh
from controller.meshes.calico import Calico
from controller.meshes.cilium import Cilium
from controller.meshes.flannel import Flannel, parse_net_conf
from controller.model import Family
from controller.source import Ref
from tests.controller.cluster import KEYS, node

NET_CONF = parse_net_conf('{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}')


@pytest.fixture(params=["calico", "flannel", "cilium"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    meshes: dict[str, Mesh] = {"calico": Calico("n1"), "flannel": Flannel(NET_CONF), "cilium": Cilium()}
    return meshes[request.param]


def test_its_kinds_go_by_their_names_and_one_of_them_carries_keys(mesh: Mesh) -> None:
    assert "Node" in mesh.kinds and mesh.announcing_kind in mesh.kinds
    for name, kind in mesh.kinds.items():
        assert kind.name == name and kind.plural == kind.plural.lower() and kind.api_versions


def test_what_is_announced_is_taken_back_by_the_withdrawal(mesh: Mesh) -> None:
    ref = Ref(mesh.announcing_kind, "n1")
    addresses = [{"type": "InternalIP", "ip": "192.0.2.1"}]
    manifest = node("n1", "192.0.2.1/24", podCIDRs=["10.244.1.0/24"], addresses=addresses) | {
        "kind": ref.kind,
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }
    bare = {ref: manifest, Ref("Node", "n1"): manifest}
    assert mesh.withdrawal(Family.IPV4, bare, "n1") == {}

    announced = mesh.announcement(Family.IPV4, KEYS["n1"], bare, "n1")
    annotations = manifest["metadata"]["annotations"] | announced
    published = {each: manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}} for each in bare}

    assert all(isinstance(value, str) for value in announced.values())
    withdrawal = mesh.withdrawal(Family.IPV4, published, "n1")
    assert withdrawal and set(withdrawal) <= set(announced)


def test_trimming_twice_is_trimming_once(mesh: Mesh) -> None:
    manifest = node("n1", "192.0.2.1/24", podCIDRs=["10.244.1.0/24"]) | {"status": {"images": ["x"] * 100}}

    trimmed = mesh.trim(manifest)

    assert mesh.trim(trimmed) == trimmed and "images" not in str(trimmed)
    assert trimmed["kind"] == "Node" and trimmed["metadata"]["name"] == "n1"
