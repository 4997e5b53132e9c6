"""The Helm chart: it deploys what the kustomize base deploys, takes no value that means nothing, and is whole when packed."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import CHART, ROOT, VARIANTS, Manifest, charted, container, daemon_set, helm, kustomized, of_kind
from wgpy import __version__

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def told_apart(manifests: list[Manifest]) -> dict[tuple[str, str, str], Manifest]:
    """Objects by kind, namespace and name, without what Helm adds to each, the image's tag, and an order that means nothing."""
    found = {}
    for manifest in manifests:
        metadata = dict(manifest["metadata"])
        metadata["labels"] = {"app.kubernetes.io/name": metadata["labels"]["app.kubernetes.io/name"]}
        found[manifest["kind"], metadata.get("namespace", ""), metadata["name"]] = in_order({**manifest, "metadata": metadata})
    for each in daemon_set(list(found.values()))["spec"]["template"]["spec"]["containers"]:
        each["image"] = each["image"].removesuffix(f":{__version__}")
    return found


def in_order(value: Any) -> Any:
    """Lists of what has a name (containers, variables, mounts, volumes), by it."""
    if isinstance(value, dict):
        return {key: in_order(each) for key, each in value.items()}
    if isinstance(value, list):
        named = bool(value) and all(isinstance(each, dict) and "name" in each for each in value)
        return [in_order(each) for each in (sorted(value, key=lambda each: str(each["name"])) if named else value)]
    return value


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chart_deploys_what_the_base_and_its_components_deploy(tmp_path: Path, variant: str) -> None:
    components, settings = VARIANTS[variant]

    assert told_apart(charted(*settings)) == told_apart(kustomized(tmp_path, *components))


def test_lint_finds_nothing() -> None:
    said = helm("lint", "--strict", CHART)

    assert "1 chart(s) linted, 0 chart(s) failed" in said and "[WARNING]" not in said


def test_its_version_is_that_of_wgpy() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["version"] == chart["appVersion"] == __version__


# Values ---------------------------------------------------------------------------------------------------------------


def paths(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield before + name
        if isinstance(value, dict) and name not in ("resources", "labels", "nodeSelector"):
            yield from paths(value, f"{before}{name}.")


def paths_of_schema(schema: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, each in schema["properties"].items():
        yield before + name
        if "properties" in each and name != "resources":
            yield from paths_of_schema(each, f"{before}{name}.")


def test_every_value_has_a_default_a_type_and_a_description() -> None:
    described = set(paths_of_schema(SCHEMA)) - {"global"}

    assert set(paths(VALUES)) == described
    for path in described:
        schema = SCHEMA
        for name in path.split("."):
            schema = schema["properties"][name]
        assert schema["description"] and ("type" in schema or "anyOf" in schema), path


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("placement=everywhere", "/placement"),
        ("strickt=true", "strickt"),
        ("dataPlane.intreface=wg0", "intreface"),
        ("strict=yes", "/strict"),
        ("image.repository=", "/image/repository"),
        ("image.digest=sha256:1", "/image/digest"),
        ("dataPlane.interface=an-interface-of-many-letters", "/dataPlane/interface"),
        ("dataPlane.interface=cali0", "/dataPlane/interface"),
        ("maxUnavailable=0", "/maxUnavailable"),
        ("statusApi.port=9588", "/statusApi/port"),
        ("metrics.podMonitor=true", "/metrics/expose"),
        ("metrics.rules=true", "/metrics/expose"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_named(setting: str, where: str) -> None:
    said = helm("template", "wgpy", CHART, "--set", setting, check=False)

    assert "values don't meet the specifications" in said and where in said


def test_an_image_goes_by_digest_before_tag_and_by_wgpys_version_without_either() -> None:
    def image(*settings: str) -> str:
        return str(container(charted("image.repository=registry/wgpy", *settings), "agent")["image"])

    digest = f"sha256:{'0' * 64}"
    assert image() == f"registry/wgpy:{__version__}"
    assert image("image.tag=v1") == "registry/wgpy:v1"
    assert image("image.tag=v1", f"image.digest={digest}") == f"registry/wgpy@{digest}"


def test_what_is_set_arrives(tmp_path: Path) -> None:
    values = {
        "imagePullSecrets": [{"name": "pull"}],
        "nodeSelector": {"pool": "old"},
        "tolerations": [],
        "maxUnavailable": "10%",
        "dataPlane": {"interface": "wgu", "args": ["--more"], "env": [{"name": "WGPY_WITHOUT", "value": "udp-gso"}]},
        "agent": {
            "args": ["--verbose"],
            "env": [{"name": "FELIX_WIREGUARDMTU", "value": "1380"}],
            "resources": {"limits": {"cpu": 1}},
        },
        "metrics": {"expose": True, "podMonitor": True, "labels": {"release": "prometheus"}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    manifests = list(yaml.safe_load_all(helm("template", "wgpy", CHART, "--values", tmp_path / "values.yaml")))

    spec = daemon_set(manifests)["spec"]
    pod = spec["template"]["spec"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": "10%"}
    assert pod["imagePullSecrets"] == [{"name": "pull"}] and "tolerations" not in pod
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "old"}
    data_plane, agent = container(manifests, "data-plane"), container(manifests, "agent")
    assert data_plane["command"][2:4] == ["wgu", "wg-v6.caliu"] and data_plane["command"][-1] == "--more"
    assert {"name": "WGPY_WITHOUT", "value": "udp-gso"} in data_plane["env"]
    assert agent["command"][-1] == "--verbose" and agent["resources"]["limits"]["cpu"] == 1
    assert {"name": "FELIX_WIREGUARDMTU", "value": "1380"} in agent["env"]
    assert of_kind(manifests, "PodMonitor")["metadata"]["labels"]["release"] == "prometheus"


def test_the_status_api_leaves_the_tunnel_only_with_a_certificate() -> None:
    def agent(*settings: str) -> Manifest:
        return container(charted("statusApi.enabled=true", *settings), "agent")

    def mounts(spec: Manifest) -> set[str]:
        return {mount["mountPath"] for mount in spec["volumeMounts"] if "status" in mount["name"]}

    assert not [word for word in container(charted(), "agent")["command"] if "status" in word]
    assert "--status-api=tunnel:9590" in agent()["command"] and mounts(agent()) == {"/run/secrets/wgpy/status"}
    with_tls = agent("statusApi.tlsSecret=wgpy-tls", "statusApi.port=9999")
    assert "--status-api=$(HOST_IP):9999" in with_tls["command"]
    assert mounts(with_tls) == {"/run/secrets/wgpy/status", "/run/secrets/wgpy/status-tls"}
    assert {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}} in with_tls["env"]


def test_grafanas_sidecar_finds_the_dashboard() -> None:
    assert not [each for each in charted() if each["kind"] == "ConfigMap"]

    found = of_kind(charted("metrics.dashboard=true", "metrics.labels.team=network"), "ConfigMap")

    assert {"grafana_dashboard": "1", "team": "network"}.items() <= found["metadata"]["labels"].items()
    assert json.loads(found["data"]["wgpy.json"]) == json.loads((ROOT / "deploy" / "grafana" / "wgpy.json").read_text())


# Where and what -------------------------------------------------------------------------------------------------------


def test_in_another_namespace_the_rights_and_the_policy_go_with_it() -> None:
    manifests = charted(namespace="encryption")

    assert "kube-system" not in yaml.safe_dump_all(manifests)
    assert daemon_set(manifests)["metadata"]["namespace"] == "encryption"
    binding = of_kind(manifests, "ClusterRoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "wgpy", "namespace": "encryption"}]
    for policy in (each for each in manifests if each["kind"] == "ValidatingAdmissionPolicy"):
        (condition,) = policy["spec"]["matchConditions"]
        assert condition["expression"] == "request.userInfo.username == 'system:serviceaccount:encryption:wgpy'"
    assert of_kind(manifests, "Role")["metadata"]["namespace"] == "default", "Events about Nodes are kept there"


def test_an_old_cluster_goes_without_the_policy_only_when_told_to() -> None:
    old = ("template", "wgpy", CHART, "--kube-version", "1.29.4")

    assert "admissionPolicy=false" in helm(*old, check=False)
    assert "kind: ValidatingAdmissionPolicy" not in helm(*old, "--set", "admissionPolicy=false")


@pytest.mark.parametrize(("name", "verb"), [("data-plane", "run"), ("agent", "agent")])
def test_the_command_knows_every_option_and_variable_that_it_is_given(name: str, verb: str) -> None:
    spec = container(charted(*VARIANTS["much"][1]), name)
    help_text = subprocess.run([sys.executable, "-m", "wgpy", verb, "--help"], capture_output=True, text=True, check=True).stdout

    options = [word.partition("=")[0] for word in spec["command"] if word.startswith("--")]
    variables = [f"${variable['name']}" for variable in spec["env"] if variable["name"].startswith("WGPY_")]
    assert spec["command"][:2] == ["wgpy", verb] and options
    assert [word for word in options + variables if not re.search(rf"{re.escape(word)}(?![\w-])", help_text)] == []


def test_a_packed_chart_is_whole(tmp_path: Path) -> None:
    """Its files that are links into the base are files there."""
    helm("package", CHART, "--destination", tmp_path, home=tmp_path)

    assert charted(chart=tmp_path / f"wgpy-{__version__}.tgz") == charted()
