"""The shipped manifests: a real API server takes them, they fit together, and the policy holds each agent to its own Node."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import (
    BASE,
    CHART,
    COMPONENTS,
    MONITORING_KINDS,
    VARIANTS,
    Manifest,
    charted,
    container,
    helm,
    kustomized,
    need,
)
from tests.kube.testbed import MERGE_PATCH, ApiError, Testbed, until

KEY = "projectcalico.org/WireguardPublicKey"
KEY_V6 = "projectcalico.org/WireguardPublicKeyV6"
PUBLIC_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


# What is shipped ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_monitoring(kube: Testbed) -> Iterator[Testbed]:
    """The API server, with the Prometheus operator's kinds."""
    need(MONITORING_KINDS)
    for path in MONITORING_KINDS.glob("*.yaml"):
        kube.kubectl("apply", "--server-side", "-f", str(path))
    kube.kubectl("wait", "--for=condition=Established", "--timeout=20s", "-f", str(MONITORING_KINDS))
    yield kube
    kube.kubectl("delete", "-f", str(MONITORING_KINDS))


def dry_run(kube: Testbed, manifests: list[Manifest], check: bool = True) -> str:
    words = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    return kube.kubectl(*words, stdin=yaml.safe_dump_all(manifests), check=check)


@pytest.mark.parametrize("components", [(), *((component,) for component in COMPONENTS), VARIANTS["much"][0]])
def test_the_api_server_takes_every_field_of_every_manifest(
    with_monitoring: Testbed, tmp_path: Path, components: tuple[str, ...]
) -> None:
    manifests = kustomized(tmp_path, *components)

    said = dry_run(with_monitoring, manifests)

    assert said.count("(server dry run)") == len(manifests) >= 10, said


@pytest.mark.parametrize("settings", [*(values for _, values in VARIANTS.values()), ("metrics.dashboard=true",)])
def test_the_api_server_takes_every_field_of_the_chart(with_monitoring: Testbed, settings: tuple[str, ...]) -> None:
    manifests = charted(*settings)

    said = dry_run(with_monitoring, manifests)

    assert said.count("(server dry run)") == len(manifests) >= 10, said


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("DaemonSet", "spec.template.spec.hostNetwrok"),
        ("ValidatingAdmissionPolicy", "spec.failurePolice"),
        ("PodMonitor", "spec.podMetricsEndpoint"),
        ("PrometheusRule", "spec.grups"),
    ],
)
def test_a_field_that_is_not_there_would_be_found_out(with_monitoring: Testbed, kind: str, path: str) -> None:
    manifests = charted(*VARIANTS["monitoring"][1])
    place = next(manifest for manifest in manifests if manifest["kind"] == kind)
    *steps, name = path.split(".")
    for step in steps:
        place = place[step]
    place[name] = True

    assert f'unknown field "{path}"' in dry_run(with_monitoring, manifests, check=False)


def test_helm_installs_changes_and_removes_it(private_kube: Testbed) -> None:
    def with_helm(verb: str, *words: str | Path) -> str:
        cluster = ("--namespace", "kube-system", "--kubeconfig", str(private_kube.kubeconfig))
        return helm(verb, "wgpy", *words, *cluster, home=private_kube.path)

    def environment() -> list[Manifest]:
        return list(container([private_kube.get("DaemonSet", "wgpy", "apps/v1", "kube-system")], "agent")["env"])

    strict = {"name": "WGPY_STRICT", "value": "true"}

    said = with_helm("install", CHART)
    assert "STATUS: deployed" in said and "wgpy leave" in said
    assert strict not in environment()
    with_helm("upgrade", CHART, "--set", "strict=true")
    assert strict in environment()
    with_helm("rollback", "1")
    assert strict not in environment()

    with_helm("uninstall")

    for manifest in charted():
        metadata = manifest["metadata"]
        with pytest.raises(ApiError, match="404"):
            private_kube.get(manifest["kind"], metadata["name"], manifest["apiVersion"], metadata.get("namespace"))


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


def test_a_token_that_is_bound_to_the_node_itself_is_as_good_as_a_pods(deployed: Testbed) -> None:
    """docs/hosts.md: what an agent outside of the cluster has."""
    words = ("create", "token", "wgpy", "--namespace=kube-system", "--bound-object-kind=Node", "--bound-object-name=mine")
    token = deployed.kubectl(*words).strip()

    assert refusal(deployed, token, "mine", {KEY: PUBLIC_KEY}) == ""
    assert refusal(deployed, token, "mine", {KEY: None}) == ""
    assert "own Node only, and this one runs on mine" in refusal(deployed, token, "other", {KEY: PUBLIC_KEY})


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
    changed = [each for each in kustomized(tmp_path, "flannel") if each["kind"] in kinds]
    before = [each for each in kustomized(tmp_path) if each["kind"] in kinds]
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
