"""An agent in flanneld's place does what flanneld does besides, once, and again when it would come out differently."""

import logging
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from controller import flanneld
from controller.flanneld import Flanneld
from controller.meshes.flannel import parse_net_conf
from controller.model import Block, Cluster
from controller.nftables import NftablesRefusal
from controller.source import SourceError

NET_CONF = parse_net_conf('{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}')
CLUSTER = Cluster(blocks=(Block(ip_network("10.244.3.0/24"), "n1"),))


class Source:
    def __init__(self) -> None:
        self.patches: list[Mapping[str, Any]] = []
        self.is_away = False

    async def merge_status(self, node: str, patch: Mapping[str, Any]) -> None:
        if self.is_away:
            raise SourceError("away")
        assert node == "n1"
        self.patches.append(patch)


@pytest.fixture
def rulesets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loaded: list[str] = []
    monkeypatch.setattr(flanneld, "load", loaded.append)
    return loaded


async def test_all_three_are_done_once(tmp_path: Path, rulesets: list[str]) -> None:
    source, path = Source(), tmp_path / "flannel" / "subnet.env"
    duties = Flanneld(source, NET_CONF, "n1", path)  # type: ignore[arg-type]

    for _ in range(3):
        await duties.perform(CLUSTER, 1420)

    assert "FLANNEL_SUBNET=10.244.3.1/24" in path.read_text() and "FLANNEL_MTU=1420" in path.read_text()
    assert [path.name for path in path.parent.iterdir()] == ["subnet.env"]
    assert len(rulesets) == 1 and "masquerade" in rulesets[0]
    assert [patch["status"]["conditions"][0]["status"] for patch in source.patches] == ["False"]

    await duties.perform(CLUSTER, 1300)
    assert "FLANNEL_MTU=1300" in path.read_text()


async def test_a_node_without_a_range_has_no_network_yet(tmp_path: Path, rulesets: list[str]) -> None:
    source, path = Source(), tmp_path / "subnet.env"

    await Flanneld(source, NET_CONF, "n1", path).perform(Cluster(), 1420)  # type: ignore[arg-type]

    assert not path.exists() and source.patches == []


async def test_what_fails_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(ruleset: str) -> None:
        raise NftablesRefusal("there is no nft on this host")

    monkeypatch.setattr(flanneld, "load", refuse)
    source, path = Source(), tmp_path / "subnet.env"
    source.is_away = True
    duties = Flanneld(source, NET_CONF, "n1", path)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        await duties.perform(CLUSTER, 1420)
    assert "FLANNEL_IPMASQ=true" not in path.read_text()
    assert len(caplog.records) == 2

    source.is_away = False
    await duties.perform(CLUSTER, 1420)
    assert len(source.patches) == 1
