"""The testbed is what it says: a real API server, which can be stopped, killed, compacted, and asked for tokens."""

import base64
import json
import ssl
import urllib.request

import pytest

from tests.kube.testbed import ApiError, Testbed


def node(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def test_objects_are_created_merged_and_removed(kube: Testbed) -> None:
    kube.apply(*(node(f"many{number}") for number in range(30)))
    kube.apply(node("many1") | {"metadata": {"name": "many1", "annotations": {"a": "1"}}, "status": {"nodeInfo": {}}})

    assert kube.get("Node", "many1")["metadata"]["annotations"] == {"a": "1"}
    assert "node/many29" in kube.kubectl("get", "nodes", "--output=name")
    for number in range(30):
        kube.delete("Node", f"many{number}")
    with pytest.raises(ApiError) as raised:
        kube.get("Node", "many1")
    assert raised.value.status == 404


def test_what_an_operator_types_is_taken_as_it_stands(kube: Testbed) -> None:
    kube.apply(
        {"apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {}}
    )
    patch = '{"spec":{"wireguardEnabled":true,"wireguardEnabledV6":true}}'

    kube.kubectl("patch", "felixconfiguration", "default", "--type=merge", "-p", patch)

    found = kube.get("FelixConfiguration", "default", "crd.projectcalico.org/v1")
    kube.delete("FelixConfiguration", "default", "crd.projectcalico.org/v1")
    assert found["spec"] == {"wireguardEnabled": True, "wireguardEnabledV6": True}


def test_the_schema_of_calicos_kinds_is_enforced(kube: Testbed) -> None:
    felix = {"apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration", "metadata": {"name": "bad"}}

    with pytest.raises(ApiError, match="wireguardEnabled") as raised:
        kube.apply(felix | {"spec": {"wireguardEnabled": "yes"}})

    assert raised.value.status == 422


def test_a_token_carries_its_node_and_has_no_rights_of_its_own(kube: Testbed) -> None:
    kube.apply(node("n-token"))

    token = kube.token("nobody", node="n-token")

    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
    assert claims["node"]["name"] == "n-token"
    assert "nodes is forbidden" in kube.kubectl("get", "nodes", kubeconfig=kube.kubeconfig_for(token), check=False)
    kube.delete("Node", "n-token")


def test_crds_come_and_go(kube: Testbed) -> None:
    kube.install_calico_crds("projectcalico.org/v3")
    kube.apply(
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/8"}}
    )
    kube.remove_calico_crds("projectcalico.org/v3")

    with pytest.raises(ApiError):
        kube.get("IPPool", "p", "projectcalico.org/v3")


def test_a_restarted_api_server_has_forgotten_what_was_compacted(private_kube: Testbed) -> None:
    private_kube.apply(node("n1"))
    old = private_kube.get("Node", "n1")["metadata"]["resourceVersion"]
    for number in range(3):
        private_kube.patch("Node", "n1", {"metadata": {"annotations": {"a": str(number)}}})

    private_kube.compact()
    private_kube.restart_apiserver()

    assert private_kube.get("Node", "n1")["metadata"]["annotations"] == {"a": "2"}
    watched = private_kube.request("GET", f"/api/v1/nodes?watch=1&timeoutSeconds=5&resourceVersion={old}")
    assert watched["type"] == "ERROR"
    assert watched["object"]["code"] == 410


def test_a_stopped_api_server_hangs_and_goes_on(private_kube: Testbed) -> None:
    context = ssl.create_default_context(cafile=str(private_kube.ca))
    private_kube.stop("kube-apiserver")
    try:
        with pytest.raises(OSError, match="timed out"):
            urllib.request.urlopen(f"{private_kube.url}/readyz", timeout=0.5, context=context)
    finally:
        private_kube.go_on("kube-apiserver")

    assert private_kube.request("GET", "/readyz") == "ok"
