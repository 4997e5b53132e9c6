"""The stand-in gives and takes addresses as Calico's allocator does, and leaves IPAM's books in order."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.allocator import allocate
from controller.directory import Directory
from controller.source import Ref, SourceError
from tests.controller.cluster import KEYS, Manifest, block, keyed, node, pool
from wgpy.wgconf import format_key

ADDRESS = "projectcalico.org/IPv4WireguardInterfaceAddr"
KEY = "projectcalico.org/WireguardPublicKey"


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return directory_of(
        tmp_path, pool("10.9.0.0/16"), block("10.9.1.0/29", "n1", {"10.9.1.0": "n1"}), keyed("n1", "192.0.2.1/24")
    )


def directory_of(path: Path, *manifests: Manifest) -> Directory:
    directory = Directory(path)
    directory.load()
    for manifest in manifests:
        directory.create(manifest)
    return directory


def annotation(directory: Directory, name: str = "n1", key: str = ADDRESS) -> Any:
    directory.refresh(time.monotonic())
    return directory.objects[Ref("Node", name)]["metadata"]["annotations"].get(key)


def spec(directory: Directory, name: str = "10-9-1-0-29") -> Any:
    return directory.objects[Ref("IPAMBlock", name)]["spec"]


def set_annotation(directory: Directory, key: str, value: str | None, name: str = "n1") -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["metadata"]["annotations"].pop(key, None)
        if value is not None:
            manifest["metadata"]["annotations"][key] = value

    directory.update(Ref("Node", name), change)


def test_a_node_with_a_key_gets_a_free_address_of_its_block(directory: Directory) -> None:
    assert allocate(directory) == 1

    assert annotation(directory) == "10.9.1.1"
    assert spec(directory)["allocations"][:3] == [0, 1, None]
    assert spec(directory)["attributes"][1] == {
        "handle_id": "wireguard-tunnel-addr-n1",
        "secondary": {"node": "n1", "type": "wireguardTunnelAddress"},
    }
    assert spec(directory)["unallocated"] == [2, 3, 4, 5, 6, 7]
    assert allocate(directory) == 0, "once is enough"


def test_the_address_goes_with_the_key(directory: Directory) -> None:
    allocate(directory)
    directory.update(Ref("IPAMBlock", "10-9-1-0-29"), add_pod)  # after it, so that the pod's attribute moves up
    set_annotation(directory, KEY, None)

    assert allocate(directory) == 2

    assert annotation(directory) is None
    assert spec(directory)["allocations"] == [0, None, None, None, None, 1, None, None]
    assert [attribute["handle_id"] for attribute in spec(directory)["attributes"]] == ["k8s-pod-network.0", "k8s-pod-network.new"]
    assert spec(directory)["unallocated"] == [2, 3, 4, 6, 7, 1]


def add_pod(manifest: dict[str, Any]) -> None:
    manifest["spec"]["attributes"].append({"handle_id": "k8s-pod-network.new", "secondary": {"node": "n1"}})
    manifest["spec"]["allocations"][5] = 2
    manifest["spec"]["unallocated"].remove(5)


def test_the_address_of_a_node_that_is_gone_is_free_again(directory: Directory) -> None:
    allocate(directory)
    directory.delete(Ref("Node", "n1"))
    directory.refresh(time.monotonic())

    assert allocate(directory) == 1
    assert spec(directory)["allocations"] == [0] + [None] * 7


def test_an_allocation_that_was_not_announced_is_announced(directory: Directory) -> None:
    allocate(directory)
    set_annotation(directory, ADDRESS, None)  # as after a crash between the two writes

    assert allocate(directory) == 1
    assert annotation(directory) == "10.9.1.1"


def test_an_address_that_is_not_allocated_to_the_node_is_replaced(directory: Directory) -> None:
    set_annotation(directory, ADDRESS, "10.9.1.0")

    allocate(directory)

    assert annotation(directory) == "10.9.1.1"


def test_a_node_without_a_block_gets_a_new_one_out_of_the_pool(tmp_path: Path) -> None:
    directory = directory_of(
        tmp_path,
        pool("10.9.0.0/24", blockSize=30),
        block("10.9.0.0/30", "n2"),
        keyed("n1", "192.0.2.1/24"),
        keyed("n3", "192.0.2.3/24"),
    )

    allocate(directory)

    assert {annotation(directory, "n1"), annotation(directory, "n3")} == {"10.9.0.4", "10.9.0.8"}
    assert spec(directory, "10-9-0-4-30")["affinity"] == "host:n1"


def test_ipv6_has_its_own_address(tmp_path: Path) -> None:
    ipv6 = {"projectcalico.org/WireguardPublicKeyV6": format_key(KEYS["n1"])}
    directory = directory_of(tmp_path, pool("fd00::/64"), block("fd00::/122", "n1"), node("n1", "192.0.2.1/24", ipv6))

    allocate(directory)

    assert annotation(directory, key="projectcalico.org/IPv6WireguardInterfaceAddr") == "fd00::"
    assert spec(directory, "fd00---122")["attributes"][0]["secondary"]["type"] == "wireguardV6TunnelAddress"


@pytest.mark.parametrize("unfit", [{"disabled": True}, {"allowedUses": ["Workload"]}, {"nodeSelector": "rack == '1'"}])
def test_a_pool_that_is_not_for_tunnels_gives_nothing(
    tmp_path: Path, unfit: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    directory = directory_of(tmp_path, pool("10.9.0.0/16", **unfit), block("10.9.1.0/29", "n1"), keyed("n1", "192.0.2.1/24"))

    assert allocate(directory) == 0
    assert annotation(directory) is None
    assert "no free IPv4 address for node n1" in caplog.text


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.booleans()), max_size=8))
def test_addresses_are_unique_and_belong_to_nodes_with_keys(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, bool]]
) -> None:
    nodes = [node(f"n{number}", f"192.0.2.{number}/24") for number in (1, 2, 3)]
    directory = directory_of(tmp_path_factory.mktemp("cluster"), pool("10.9.0.0/28", blockSize=30), *nodes)
    keyed_nodes: set[str] = set()
    for name, has_key in events:
        set_annotation(directory, KEY, format_key(KEYS[name]) if has_key else None, name)
        (keyed_nodes.add if has_key else keyed_nodes.discard)(name)
        allocate(directory)

        addresses = {each: annotation(directory, each) for each in ("n1", "n2", "n3")}
        assert {each for each, address in addresses.items() if address} == keyed_nodes
        assert len(set(filter(None, addresses.values()))) == len(keyed_nodes)
        for ref, manifest in directory.objects.items():
            if ref.kind == "IPAMBlock":
                taken = [index for index in manifest["spec"]["allocations"] if index is not None]
                free = [ordinal for ordinal, index in enumerate(manifest["spec"]["allocations"]) if index is None]
                assert sorted(taken) == list(range(len(manifest["spec"]["attributes"])))
                assert sorted(manifest["spec"]["unallocated"]) == free


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "controller.allocator", "--directory", str(tmp_path / "none")]

    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert done.returncode == 1
    assert (
        done.stderr
        == f"python -m controller.allocator: cannot read the directory {tmp_path / 'none'}: No such file or directory\n"
    )


def test_what_it_cannot_write_is_an_error(directory: Directory) -> None:
    directory.refresh(time.monotonic())
    (directory.path / "node-n1.yaml").unlink()

    with pytest.raises(SourceError, match="there is no Node n1"):
        allocate(directory)
