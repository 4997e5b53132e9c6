"""The shipped manifests: a real API server takes them, they fit together, and the policy holds each agent to its own Node."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.desired import DEFAULT_NUMBERS
from controller.model import Family, FelixConfiguration
from tests.kube.testbed import MERGE_PATCH, ROOT, ApiError, Testbed, until

KUSTOMIZE = ROOT / "deploy" / "kustomize"
BASE = KUSTOMIZE / "base"
COMPONENTS = sorted(path.name for path in (KUSTOMIZE / "components").iterdir())
OF_THE_PROMETHEUS_OPERATOR = ("PodMonitor", "PrometheusRule")

KEY = "projectcalico.org/WireguardPublicKey"
KEY_V6 = "projectcalico.org/WireguardPublicKeyV6"
PUBLIC_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"

Manifest = dict[str, Any]


# What is shipped ------------------------------------------------------------------------------------------------------


def rendered(kube: Testbed, folder: Path, *components: str) -> list[Manifest]:
    """What ``kubectl apply --kustomize`` sends for the base with these components."""
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_from(folder, BASE)],
        "components": [_from(folder, KUSTOMIZE / "components" / component) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return list(yaml.safe_load_all(kube.kubectl("kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder))))


def _from(folder: Path, path: Path) -> str:
    """kustomize wants relative paths."""
    return str(Path(*[".."] * (len(folder.resolve().parts) - 1)) / path.relative_to("/"))


def daemon_set(manifests: list[Manifest]) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == "DaemonSet")
    return found


def container(manifests: list[Manifest], name: str) -> Manifest:
    (found,) = (each for each in daemon_set(manifests)["spec"]["template"]["spec"]["containers"] if each["name"] == name)
    return dict(found)


@pytest.mark.parametrize("components", [(), *((component,) for component in COMPONENTS), ("strict", "net-raw", "monitoring")])
def test_the_api_server_takes_every_field_of_every_manifest(kube: Testbed, tmp_path: Path, components: tuple[str, ...]) -> None:
    manifests = [each for each in rendered(kube, tmp_path, *components) if each["kind"] not in OF_THE_PROMETHEUS_OPERATOR]

    said = kube.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    assert said.count("created (server dry run)") == len(manifests) >= 10, said


def test_a_field_that_is_not_there_would_be_found_out(kube: Testbed, tmp_path: Path) -> None:
    manifests = rendered(kube, tmp_path)
    daemon_set(manifests)["spec"]["template"]["spec"]["hostNetwrok"] = True

    said = kube.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(manifests), check=False
    )

    assert 'unknown field "spec.template.spec.hostNetwrok"' in said


def test_the_data_plane_has_the_interfaces_that_the_agent_takes_by_default(kube: Testbed, tmp_path: Path) -> None:
    command = container(rendered(kube, tmp_path), "data-plane")["command"]

    felix = FelixConfiguration()
    wanted = [DEFAULT_NUMBERS[family].interface_name(felix.of(family).interface) for family in Family]
    assert command[2 : 2 + len(wanted)] == wanted


def test_the_containers_share_sockets_and_state_and_only_the_agent_has_a_token(kube: Testbed, tmp_path: Path) -> None:
    manifests = rendered(kube, tmp_path)
    mounts = {
        name: {mount["name"]: mount["mountPath"] for mount in container(manifests, name)["volumeMounts"]}
        for name in ("data-plane", "agent")
    }

    assert mounts["data-plane"].items() & mounts["agent"].items() == {("sockets", "/run/wireguard"), ("state", "/var/lib/wgpy")}
    assert "api" in mounts["agent"] and "api" not in mounts["data-plane"]
    assert daemon_set(manifests)["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", ["data-plane", "agent"])
def test_a_container_has_one_capability_and_writes_only_where_something_is_mounted(
    kube: Testbed, tmp_path: Path, name: str
) -> None:
    bounds = container(rendered(kube, tmp_path), name)["securityContext"]

    assert bounds["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert bounds["readOnlyRootFilesystem"] and not bounds["allowPrivilegeEscalation"] and "privileged" not in bounds


def test_the_components_change_what_they_say(kube: Testbed, tmp_path: Path) -> None:
    manifests = rendered(kube, tmp_path, "strict", "net-raw")

    assert {"name": "WGPY_STRICT", "value": "true"} in container(manifests, "agent")["env"]
    assert container(manifests, "data-plane")["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "NET_RAW"]


def test_a_pod_monitor_scrapes_ports_that_are_served_on_the_address_it_asks(kube: Testbed, tmp_path: Path) -> None:
    manifests = rendered(kube, tmp_path, "monitoring")
    (monitor,) = (manifest for manifest in manifests if manifest["kind"] == "PodMonitor")

    ports: dict[str, int] = {}
    for name in ("data-plane", "agent"):
        spec = container(manifests, name)
        (host,) = (variable for variable in spec["env"] if variable["name"] == "METRICS_HOST")
        assert host == {"name": "METRICS_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
        assert all("host" not in spec[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe"))
        ports |= {port["name"]: port["containerPort"] for port in spec["ports"]}
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == list(ports)
    assert ports == {"metrics": 9586, "metrics-v6": 9587, "metrics-agent": 9588}


# The admission policy -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployed(kube: Testbed) -> Iterator[Testbed]:
    """The base, applied as an operator does, with Nodes ``mine`` and ``other``; on return its policy is in force."""
    kube.kubectl("apply", "--kustomize", str(BASE))
    status = {
        "conditions": [{"type": "Ready", "status": "True"}],
        "images": [{"names": [f"image-{number}@sha256:{'0' * 64}"], "sizeBytes": number} for number in range(50)],
    }
    for name in ("mine", "other"):
        metadata = {"name": name, "labels": {"kept": "1"}, "annotations": {"foreign": "1"}}
        kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status})
    agent = kube.token("wgpy", node="mine")
    until(lambda: "agent" in refusal(kube, agent, "other", {KEY: None}), "the policy to be in force")
    until(lambda: "agent" in event_refusal(kube, agent, "other"), "the policy for Events to be in force")
    yield kube
    kube.kubectl("delete", "--kustomize", str(BASE))
    for name in ("mine", "other"):
        kube.delete("Node", name)


@pytest.fixture(scope="module")
def agent(deployed: Testbed) -> str:
    """The token of the agent on ``mine``."""
    return deployed.token("wgpy", node="mine")


def patch_refusal(kube: Testbed, token: str, node: str, body: Manifest, subresource: str = "/status") -> str:
    """Why a patch is refused; empty if it is not."""
    try:
        kube.request("PATCH", f"/api/v1/nodes/{node}{subresource}", body, MERGE_PATCH, token)
    except ApiError as error:
        return str(error)
    return ""


def refusal(kube: Testbed, token: str, node: str, annotations: dict[str, str | None]) -> str:
    return patch_refusal(kube, token, node, {"metadata": {"annotations": annotations}})


def event_refusal(kube: Testbed, token: str, node: str, kind: str = "Node") -> str:
    event = {
        "metadata": {"generateName": "wgpy-"},
        "regarding": {"kind": kind, "name": node},
        "type": "Normal",
        "reason": "KeyPublished",
        "action": "Publish",
        "note": "a key",
        "reportingController": "wgpy",
        "reportingInstance": "wgpy-mine",
        "eventTime": "2026-01-01T00:00:00.000000Z",
    }
    try:
        kube.request("POST", EVENTS, event, token=token)
    except ApiError as error:
        return str(error)
    return ""


def test_an_agent_sets_and_removes_the_keys_of_its_own_node(deployed: Testbed, agent: str) -> None:
    assert refusal(deployed, agent, "mine", {KEY: PUBLIC_KEY, KEY_V6: PUBLIC_KEY}) == ""
    assert deployed.get("Node", "mine")["metadata"]["annotations"] == {"foreign": "1", KEY: PUBLIC_KEY, KEY_V6: PUBLIC_KEY}

    assert refusal(deployed, agent, "mine", {KEY: None, KEY_V6: None}) == ""
    assert deployed.get("Node", "mine")["metadata"]["annotations"] == {"foreign": "1"}


def test_an_agent_may_not_write_to_another_node(deployed: Testbed, agent: str) -> None:
    assert "own Node only, and this one runs on mine" in refusal(deployed, agent, "other", {KEY: PUBLIC_KEY})
    assert deployed.get("Node", "other")["metadata"]["annotations"] == {"foreign": "1"}


def test_a_token_that_names_no_node_is_good_for_none(deployed: Testbed) -> None:
    assert "its token does not name" in refusal(deployed, deployed.token("wgpy"), "mine", {KEY: PUBLIC_KEY})


@pytest.mark.parametrize("annotations", [{"new": "1"}, {"foreign": "2"}, {"foreign": None}, {KEY: PUBLIC_KEY, "foreign": "2"}])
def test_an_agent_may_not_touch_the_annotations_of_others(
    deployed: Testbed, agent: str, annotations: dict[str, str | None]
) -> None:
    name = next(name for name in annotations if name != KEY)

    assert f"not the annotation {name}" in refusal(deployed, agent, "mine", annotations)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"metadata": {"labels": {"new": "1"}}}, "labels"),
        ({"metadata": {"labels": {"kept": None}}}, "labels"),
        ({"metadata": {"finalizers": ["new/finalizer"]}}, "finalizers"),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "status"),
        ({"status": {"addresses": [{"type": "InternalIP", "address": "10.9.9.9"}]}}, "status"),
        ({"status": {"images": None}}, "status"),
    ],
)
def test_an_agent_may_not_change_anything_else(deployed: Testbed, agent: str, body: Manifest, what: str) -> None:
    assert what in patch_refusal(deployed, agent, "mine", body)


def test_the_policy_holds_even_for_an_agent_with_more_rights(deployed: Testbed, agent: str) -> None:
    """Someone has let the account patch Nodes as such: it can still not taint one."""
    meta = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "wgpy-more"}}
    deployed.apply({**meta, "kind": "ClusterRole", "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]})
    subject = {"kind": "ServiceAccount", "name": "wgpy", "namespace": "kube-system"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "wgpy-more"}
    deployed.apply({**meta, "kind": "ClusterRoleBinding", "subjects": [subject], "roleRef": role})
    taint = {"spec": {"taints": [{"key": "evil", "effect": "NoExecute"}]}}
    try:
        until(lambda: "cannot patch" not in patch_refusal(deployed, agent, "mine", taint, ""), "the right to be there")

        assert "not the Node's spec" in patch_refusal(deployed, agent, "mine", taint, "")
    finally:
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            deployed.delete(kind, "wgpy-more", "rbac.authorization.k8s.io/v1")


def test_the_policy_concerns_nobody_else(deployed: Testbed) -> None:
    other = deployed.patch("Node", "other", {"metadata": {"labels": {"new": "1"}}}, subresource="/status")

    assert other["metadata"]["labels"]["new"] == "1"


def test_an_agent_makes_events_about_its_own_node_only(deployed: Testbed, agent: str) -> None:
    assert event_refusal(deployed, agent, "mine") == ""
    assert "own Node only" in event_refusal(deployed, agent, "other")
    assert "own Node only" in event_refusal(deployed, agent, "mine", kind="Pod")


# The component for Flannel ----------------------------------------------------------------------------------------------


@pytest.fixture
def flannel(deployed: Testbed, agent: str, tmp_path: Path) -> Iterator[Testbed]:
    """Its policy in the place of the base's."""
    kinds = ("ValidatingAdmissionPolicy", "ClusterRole")
    changed = [each for each in rendered(deployed, tmp_path, "flannel") if each["kind"] in kinds]
    before = [each for each in rendered(deployed, tmp_path) if each["kind"] in kinds]
    deployed.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(changed))
    until(lambda: refusal(deployed, agent, "mine", {"flannel.alpha.coreos.com/backend-type": "1"}) == "", "it to be in force")
    yield deployed
    deployed.patch("Node", "mine", {"metadata": {"annotations": None}})
    deployed.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(before))


def test_in_flannels_mesh_an_agent_writes_flannels_annotations_and_one_condition(flannel: Testbed, agent: str) -> None:
    names = ("backend-type", "backend-data", "backend-v6-data", "public-ip", "public-ipv6", "kube-subnet-manager")
    conditions = [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False", "reason": "WgpyIsUp"}]

    assert refusal(flannel, agent, "mine", {f"flannel.alpha.coreos.com/{name}": "1" for name in names}) == ""
    assert patch_refusal(flannel, agent, "mine", {"status": {"conditions": conditions}}) == ""

    assert "not the annotation" in refusal(flannel, agent, "mine", {"flannel.alpha.coreos.com/public-ip-overwrite": "1"})
    conditions[0] = {"type": "Ready", "status": "False"}
    assert "status" in patch_refusal(flannel, agent, "mine", {"status": {"conditions": conditions}})
    address = {"type": "InternalIP", "address": "10.9.9.9"}
    assert "status" in patch_refusal(flannel, agent, "mine", {"status": {"addresses": [address]}})
    assert "own Node only" in refusal(flannel, agent, "other", {"flannel.alpha.coreos.com/public-ip": "1"})
