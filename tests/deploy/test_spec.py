"""The pod's command lines, environment, mounts and capabilities, as kustomize and Helm deploy them, in a network namespace.

This is the short form of tests/kube/test_image.py, without an image and a container runtime: util-linux bounds the processes.
What each is given is nothing but what its manifest says.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.controller.lab import may_make_namespaces
from tests.deploy.manifests import Manifest, answers, command, container, deployed_by, probes, variables
from tests.kube.testbed import make_pki, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun"),
]

ADDRESS = "192.0.2.1"
NOBODY = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
"""An API server that is away."""


@dataclass
class Pod:
    manifests: list[Manifest]
    path: Path
    namespace: str
    started: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str) -> None:
        spec = container(self.manifests, name)
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"} | NOBODY
        environment |= variables(spec, "n1", ADDRESS)
        added = [f"+{capability.lower()}" for capability in spec["securityContext"]["capabilities"]["add"]]
        bounded = ["setpriv", f"--bounding-set={','.join(['-all', *added])}", "--inh-caps=-all", "--no-new-privs"]
        inner = [*bounded, "env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command(spec, environment)]
        script = "\n".join([*self._mounts(spec), f"exec {shlex.join(inner)}"])
        words = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", "-ec", script]
        with open(self.path / f"{name}.log", "wb") as log:
            self.started[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def _mounts(self, spec: Manifest) -> Iterator[str]:
        """The volumes are folders of the test; around them nothing can be written to."""
        assert spec["securityContext"]["readOnlyRootFilesystem"]
        yield from (f"mount -t tmpfs tmpfs {place}" for place in ("/run", "/var/lib"))
        for mount in spec["volumeMounts"]:
            if mount["name"] == "tun":
                continue  # is there
            source, place = self.path / mount["name"], shlex.quote(mount["mountPath"])
            source.mkdir(exist_ok=True)
            yield f"mkdir -p {place} && mount --bind {shlex.quote(str(source))} {place}"
            if mount.get("readOnly"):
                yield f"mount -o remount,bind,ro {place}"
        yield from (f"mount -o remount,ro {place}" for place in ("/run", "/var/lib"))
        yield "mount -o remount,bind,ro /"

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()

    def until_probed(self, name: str, *paths: str) -> None:
        """Wait until its probes are answered, or those with these paths."""
        urls = [url for url in probes(container(self.manifests, name), ADDRESS) if not paths or url.endswith(paths)]
        assert urls
        try:
            until(lambda: self.started[name].poll() is not None or answers(self.namespace, *urls), f"{urls} to be answered")
        finally:
            assert self.started[name].poll() is None, self.log(name)

    def close(self) -> None:
        for process in self.started.values():
            process.terminate()
            process.wait(20)


@pytest.fixture(params=["kustomize", "helm"])
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pod]:
    namespace = f"h{os.getpid()}s"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    pod = Pod(deployed_by(request.param, tmp_path), tmp_path, namespace)
    try:
        for words in (["link", "set", "lo", "up"], ["address", "add", f"{ADDRESS}/32", "dev", "lo"]):
            subprocess.run(["ip", "-n", namespace, *words], check=True)
        yield pod
    finally:
        pod.close()
        subprocess.run(["ip", "netns", "del", namespace], check=True)


def test_the_data_plane_runs_with_what_it_is_given_and_answers_its_probes(pod: Pod) -> None:
    pod.start("data-plane")

    pod.until_probed("data-plane")

    sockets = {"wireguard.caliu.sock", "wg-v6.caliu.sock"}
    until(lambda: {path.name for path in (pod.path / "sockets").iterdir()} == sockets, "both sockets")


def test_the_agent_runs_with_what_it_is_given_while_the_api_server_is_away(pod: Pod) -> None:
    make_pki(pod.path, ["127.0.0.1"])
    (pod.path / "api").mkdir()
    (pod.path / "api" / "token").write_text("not-a-token")
    shutil.copy(pod.path / "pki" / "ca.crt", pod.path / "api" / "ca.crt")
    (pod.path / "api" / "namespace").write_text("kube-system")
    (pod.path / "status-token").mkdir()
    (pod.path / "status-token" / "token").write_text("not-a-secret-" * 3)

    pod.start("agent")

    pod.until_probed("agent", "/healthz")
    until(lambda: any((pod.path / "state").iterdir()), "something in its state")


@pytest.mark.parametrize("name", ["data-plane", "agent"])
def test_without_its_capability_neither_would_run(pod: Pod, name: str) -> None:
    """The bounds are real."""
    container(pod.manifests, name)["securityContext"]["capabilities"]["add"].clear()

    pod.start(name)

    assert pod.started.pop(name).wait(20) != 0
    assert "NET_ADMIN" in pod.log(name)
