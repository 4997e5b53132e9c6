"""What flanneld does on a node besides WireGuard, for an agent that stands in its place (:mod:`controller.meshes.flannel`).

Three things: the file from which Flannel's CNI plugin has the node's range and MTU, the masquerading of what leaves the cluster
network, and the word to the scheduler that the node has a network. They are done after a pass, once there is a key to be reached
at, and again when they would come out differently.
"""

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

from controller.meshes.flannel import SUBNET_FILE, NetConf, masquerade_ruleset, network_available, subnet_env
from controller.model import Cluster
from controller.nftables import NftablesRefusal, load
from controller.source import Source, SourceError

log = logging.getLogger(__name__)


class Flanneld:
    """The duties of flanneld on ``node``. ``path`` is the file of the CNI plugin."""

    def __init__(self, source: Source, net_conf: NetConf, node: str, path: Path = Path(SUBNET_FILE)) -> None:
        self._source = source
        self._net_conf = net_conf
        self._node = node
        self._path = path
        self._written = ""
        self._masquerades: bool | None = None
        self._is_available = False

    async def perform(self, cluster: Cluster, mtu: int) -> None:
        """Do what is to be done. ``mtu`` is that of the interface, and so of pods. What fails is logged, and tried after the next
        pass."""
        await asyncio.to_thread(self._on_host, cluster, mtu)
        if self._written and not self._is_available:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            try:
                await self._source.merge_status(self._node, network_available(now))
                self._is_available = True
            except SourceError as error:
                log.warning("cannot say that the node has a network: %s", error)

    def _on_host(self, cluster: Cluster, mtu: int) -> None:
        if self._masquerades is None:
            try:
                load(masquerade_ruleset(self._net_conf))
                self._masquerades = True
            except NftablesRefusal as error:
                log.warning("the CNI plugin has to masquerade, and hides pods' addresses from other nodes: %s", error)
                self._masquerades = False
        text = subnet_env(self._net_conf, cluster, self._node, mtu, self._masquerades)
        if text == self._written or not text:
            return
        aside = self._path.with_suffix(".wgpy")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(text)
            aside.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s, so pods cannot start: %s", self._path, error.strerror)
            return
        self._written = text
        log.info("wrote %s", self._path)
