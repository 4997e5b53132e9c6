"""A Kubernetes API as Calico's own components use it: get, list, watch, and Calico's way to write a Node.

Made for the stand-ins (:mod:`tests.kube.felix`, :mod:`tests.kube.allocator`). It shares no code with the agent and none with the
test bed, so that an error of theirs is not mirrored here.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
import yaml

Object = dict[str, Any]

PREFIX = "projectcalico.org/"
OWN_ANNOTATIONS = tuple(
    PREFIX + name
    for name in (
        "IPv4Address",
        "IPv6Address",
        "IPv4IPIPTunnelAddr",
        "IPv4VXLANTunnelAddr",
        "IPv6VXLANTunnelAddr",
        "WireguardPublicKey",
        "WireguardPublicKeyV6",
        "IPv4WireguardInterfaceAddr",
        "IPv6WireguardInterfaceAddr",
    )
)
"""What Calico's Node has a field for. All of it is written whenever one of it is."""

NODES = "/api/v1/nodes"
CALICO = "/apis/crd.projectcalico.org/v1"
WRITE_ATTEMPTS = 5
READ_SECONDS = 10.0


class Refused(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """One API server, with the rights of a kubeconfig. May be used by several threads."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        token = user.get("token") or Path(user["tokenFile"]).read_text()
        self._url = cluster["server"]
        self._headers = {"Authorization": f"Bearer {token.strip()}", "Content-Type": "application/json"}
        self._pool = urllib3.PoolManager(ca_certs=cluster["certificate-authority"], maxsize=64, retries=False)

    def request(self, method: str, path: str, body: Object | None = None) -> Any:
        """One request, and its answer. Raises Refused, urllib3's HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        response = self._pool.request(method, self._url + path, body=data, headers=self._headers, timeout=READ_SECONDS)
        answer = json.loads(response.data)
        if response.status >= 400:
            raise Refused(response.status, str(answer.get("message")))
        return answer

    def get(self, path: str) -> Object:
        found: Object = self.request("GET", path)
        return found

    def list(self, path: str) -> list[Object]:
        """All objects, none if there is no such kind."""
        try:
            return list(self.get(path)["items"])
        except Refused as error:
            if error.status == 404:
                return []
            raise

    def change(self, path: str, change: Callable[[Object], None]) -> None:
        """Read an object, change it and put it back, again where somebody was faster."""
        for _ in range(WRITE_ATTEMPTS):
            manifest = self.get(path.removesuffix("/status"))
            change(manifest)
            try:
                self.request("PUT", path, manifest)
                return
            except Refused as error:
                if error.status != 409:
                    raise
        raise Refused(409, f"{path} is never left in peace")

    def watch(self, path: str, stop: threading.Event) -> Iterator[Object]:
        """Every object as it is, then as it becomes, until ``stop``. A broken watch begins again. Deletions are left out."""
        while not stop.is_set():
            with contextlib.suppress(urllib3.exceptions.HTTPError, Refused, ValueError):
                found = self.get(path)
                yield from found["items"]
                version = found["metadata"]["resourceVersion"]
                query = f"watch=1&timeoutSeconds=300&resourceVersion={version}"
                url = f"{self._url}{path}{'&' if '?' in path else '?'}{query}"
                timeout = urllib3.Timeout(connect=READ_SECONDS, read=None)
                response = self._pool.request("GET", url, headers=self._headers, preload_content=False, timeout=timeout)
                with contextlib.closing(response):
                    yield from _events(response)
            stop.wait(0.2)


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[Object]:
    rest = b""
    for part in response.stream(amt=None):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["type"] in ("ADDED", "MODIFIED"):
                yield event["object"]
            elif event["type"] == "ERROR":
                return


def own_node(name: str) -> str:
    """The path to watch for one Node."""
    return f"{NODES}?fieldSelector=metadata.name%3D{name}"


def calico_annotations(node: Mapping[str, Any]) -> dict[str, str]:
    """What Calico's Node is in memory."""
    found = node["metadata"].get("annotations") or {}
    return {name: found[name] for name in OWN_ANNOTATIONS if name in found}


def overwrite(client: Client, name: str, annotations: Mapping[str, str]) -> None:
    """Write a Node as Calico does: it is read anew, and *all* of Calico's annotations become what they are in memory, however old
    that is. What is not in memory is deleted. Nobody's version is compared (calico.md 2.2)."""

    def change(node: Object) -> None:
        kept = {key: value for key, value in (node["metadata"].get("annotations") or {}).items() if key not in OWN_ANNOTATIONS}
        node["metadata"]["annotations"] = kept | dict(annotations)

    client.change(f"{NODES}/{name}/status", change)
