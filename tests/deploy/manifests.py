"""What an operator's tools make of deploy/: the objects that kustomize and Helm would send. Neither needs an API server.

The two are the programs that ``.ci/setup-kube`` and ``.ci/setup-manifests`` build. Where they are not built, a test that wants
them is skipped, or fails where WGPY_REQUIRE_KUBE is set.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBECTL = ROOT / ".cache" / "kube" / "kubectl"
HELM = ROOT / ".cache" / "manifests" / "helm"
MONITORING_KINDS = ROOT / ".cache" / "manifests" / "crds"

KUSTOMIZE = ROOT / "deploy" / "kustomize"
BASE = KUSTOMIZE / "base"
COMPONENTS = sorted(path.name for path in (KUSTOMIZE / "components").iterdir())
CHART = ROOT / "deploy" / "helm" / "wgpy"

VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "probe": (("probe",), ()),
    "label": ((), ("placement=label",)),
    "strict": (("strict",), ("placement=label", "strict=true")),
    "net-raw": (("net-raw",), ("placement=label", "dataPlane.netRaw=true")),
    "privileged": (("privileged",), ("placement=label", "dataPlane.privileged=true")),
    "leak-detection": (("leak-detection",), ("placement=label", "leakDetection=true")),
    "status-api": (("status-api",), ("placement=label", "statusApi.enabled=true")),
    "monitoring": (
        ("monitoring",),
        ("placement=label", "metrics.expose=true", "metrics.podMonitor=true", "metrics.rules=true"),
    ),
    "much": (
        ("probe", "strict", "net-raw", "leak-detection", "status-api", "monitoring"),
        (
            "strict=true",
            "dataPlane.netRaw=true",
            "leakDetection=true",
            "statusApi.enabled=true",
            "metrics.expose=true",
            "metrics.podMonitor=true",
            "metrics.rules=true",
        ),
    ),
}
"""The same deployment twice: as components of the base, and as values of the chart."""

Manifest = dict[str, Any]


def need(*built: Path) -> None:
    """Skip, or fail, where something is not built."""
    missing = [path.name for path in built if not path.exists()]
    if not missing:
        return
    reason = f"{' and '.join(missing)}: run bash .ci/setup-kube and bash .ci/setup-manifests (some minutes, need Go)"
    if os.environ.get("WGPY_REQUIRE_KUBE"):
        pytest.fail(f"not built: {reason} (WGPY_REQUIRE_KUBE asks for them)")
    pytest.skip(f"not built: {reason}")


def helm(*words: str | Path, check: bool = True, home: Path = Path("/nonexistent")) -> str:
    """Run Helm and return what it printed; if it fails AssertionError with what it said, or without ``check`` that. It reads and
    keeps nothing of its user's: what it keeps, it keeps in ``home``."""
    need(HELM)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run([HELM, *words], capture_output=True, text=True, timeout=60, env=environment, check=False)
    if done.returncode:
        assert not check, f"helm {' '.join(map(str, words))}: {done.stderr}"
        return done.stdout + done.stderr
    return done.stdout


def charted(*settings: str, namespace: str = "kube-system", chart: Path = CHART) -> list[Manifest]:
    """What ``helm install`` sends with these ``--set``."""
    values = [word for setting in settings for word in ("--set", setting)]
    return list(filter(None, yaml.safe_load_all(helm("template", "wgpy", chart, "--namespace", namespace, *values))))


def kustomized(folder: Path, *components: str) -> list[Manifest]:
    """What ``kubectl apply --kustomize`` sends for the base with these components; the overlay is written to ``folder``."""
    need(KUBECTL)
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_from(folder, BASE)],
        "components": [_from(folder, KUSTOMIZE / "components" / component) for component in components],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    words = ("kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder))
    done = subprocess.run([KUBECTL, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _from(folder: Path, path: Path) -> str:
    """kustomize wants relative paths."""
    return str(Path(*[".."] * (len(folder.resolve().parts) - 1)) / path.relative_to("/"))


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    """The one object of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def daemon_set(manifests: list[Manifest]) -> Manifest:
    return of_kind(manifests, "DaemonSet")


def container(manifests: list[Manifest], name: str) -> Manifest:
    (found,) = (each for each in daemon_set(manifests)["spec"]["template"]["spec"]["containers"] if each["name"] == name)
    return dict(found)


# What a kubelet makes of it -------------------------------------------------------------------------------------------


def deployed_by(tool: str, folder: Path) -> list[Manifest]:
    """``kustomize``: the base as it is. ``helm``: the chart with all that it has, metrics on the node's address included."""
    return kustomized(folder / "overlay") if tool == "kustomize" else charted(*VARIANTS["much"][1])


def variables(spec: Manifest, node: str, address: str) -> dict[str, str]:
    """A container's environment on a node, but for the image's."""
    fields = {"spec.nodeName": node, "status.hostIP": address}
    return {each["name"]: each.get("value") or fields[each["valueFrom"]["fieldRef"]["fieldPath"]] for each in spec["env"]}


def command(spec: Manifest, environment: Mapping[str, str]) -> list[str]:
    """Its command, with the variables in it replaced."""
    return [re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word) for word in spec["command"]]


def probes(spec: Manifest, address: str) -> set[str]:
    """What the kubelet would ask."""
    requests = [spec[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    return {f"http://{request.get('host', address)}:{request['port']}{request['path']}" for request in requests}


def answers(namespace: str, *urls: str) -> bool:
    """Whether all of them are answered with 200, in a network namespace."""
    fetch = "import sys, urllib.request as u; [u.urlopen(url, timeout=2).read() for url in sys.argv[1:]]"
    words = ["ip", "netns", "exec", namespace, "python3", "-c", fetch, *urls]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
