"""The rights that are shipped are enough, and the least: without any one of them the source says what it may not do.

It runs on an API server that does not stream lists (they all did not before 1.32), since only there ``list`` is needed.
"""

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from controller.kube import events
from controller.kube.source import KubernetesSource
from controller.meshes.calico import Calico
from controller.source import Event, Ref, SourceError
from tests.deploy.manifests import BASE, Manifest
from tests.kube.test_deploy import KEY, PUBLIC_KEY
from tests.kube.testbed import CALICO_GROUPS, Testbed, until

pytestmark = pytest.mark.long

CLASSIC, NATIVE = CALICO_GROUPS
SHIPPED: list[Manifest] = list(yaml.safe_load_all((BASE / "rbac.yaml").read_text()))


class Right(NamedTuple):
    """One verb on one resource, and in which of the manifests and rules it stands."""

    manifest: int
    rule: int
    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb}-{self.resource}.{self.group}".strip(".")

    @property
    def is_native(self) -> bool:
        """Only a cluster with Calico's native CRDs needs it."""
        return f"{self.group}/v3" == NATIVE


RIGHTS = [
    Right(number, place, group, resource, verb)
    for number, manifest in enumerate(SHIPPED)
    for place, rule in enumerate(manifest.get("rules", ()))
    for group in rule["apiGroups"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


def without(right: Right) -> Manifest:
    """The role with everything but this right."""
    role = deepcopy(SHIPPED[right.manifest])
    rule = role["rules"].pop(right.rule)
    for resource in rule["resources"]:
        verbs = [verb for verb in rule["verbs"] if (resource, verb) != (right.resource, right.verb)]
        if verbs:
            role["rules"].append(rule | {"resources": [resource], "verbs": verbs})
    return role


@pytest.fixture(scope="module")
def bare(need_kube: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    path = tmp_path_factory.mktemp("rbac")
    with Testbed.start(path, apiserver_args=["--feature-gates=WatchList=false"]) as kube:
        kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mine"}})
        kube.apply(*SHIPPED)
        yield kube


@pytest.fixture(scope="module", params=CALICO_GROUPS, ids=str)
def group(bare: Testbed, request: pytest.FixtureRequest) -> Iterator[str]:
    """The one group that Calico's kinds are served in."""
    bare.install_calico_crds(request.param)
    bare.apply({"apiVersion": request.param, "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {}})
    yield request.param
    bare.remove_calico_crds(request.param)


@pytest.fixture(scope="module")
def token(bare: Testbed) -> str:
    return bare.token("wgpy", node="mine")


@pytest.fixture(autouse=True)
def _tells_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SERIES_SECONDS", 0.0)


async def complaint(kubeconfig: Path) -> str:
    """Do once all that an agent does with its source; what it says it may not do, empty if nothing."""
    source = KubernetesSource(Calico(), kubeconfig)
    try:
        objects = await source.list()
        assert {ref.kind for ref in objects} == {"Node", "FelixConfiguration"}
        await source.annotate(Ref("Node", "mine"), {KEY: PUBLIC_KEY})
        async with asyncio.timeout(10):
            while KEY not in objects[Ref("Node", "mine")]["metadata"].get("annotations", {}):
                objects = await source.changed()
        for _ in range(2):
            await source.tell("mine", Event("Tested", "a test has told this", is_warning=False))
        await source.annotate(Ref("Node", "mine"), {KEY: None})
        assert source.health().is_synced
    except SourceError as error:
        return str(error)
    finally:
        await source.close()
    return ""


def may(kube: Testbed, token: str, right: Right) -> bool:
    """What the API server itself says."""
    resource, _, subresource = right.resource.partition("/")
    attributes: dict[str, Any] = {"group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb}
    if "namespace" in SHIPPED[right.manifest]["metadata"]:
        attributes["namespace"] = SHIPPED[right.manifest]["metadata"]["namespace"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    return bool(kube.request("POST", path, review, token=token)["status"]["allowed"])


async def test_what_is_shipped_is_enough(bare: Testbed, group: str, token: str) -> None:
    assert await complaint(bare.kubeconfig_for(token)) == ""


@pytest.mark.parametrize(
    ("group", "right"),
    [pytest.param(NATIVE if right.is_native else CLASSIC, right, id=str(right)) for right in RIGHTS],
    indirect=["group"],
)
async def test_without_one_right_the_source_says_which_is_missing(bare: Testbed, group: str, token: str, right: Right) -> None:
    bare.apply(without(right))
    try:
        until(lambda: not may(bare, token, right), f"{right} to be gone")

        said = await complaint(bare.kubeconfig_for(token))
    finally:
        bare.apply(SHIPPED[right.manifest])
        until(lambda: may(bare, token, right), f"{right} to be back")

    resource = f"{right.resource}.{right.group}" if right.resource == "events" else right.resource
    assert said.startswith(f"may not {right.verb} {resource}") and "403" in said and "RBAC" in said
    assert "\n" not in said


def test_a_right_that_is_taken_away_is_one_that_was_shipped() -> None:
    """The list above is made of the manifest; that it is what it seems is typed in once more."""
    kinds = ("felixconfigurations", "ippools", "ipamblocks")
    groups = ("crd.projectcalico.org", "projectcalico.org")
    assert {(right.group, right.resource, right.verb) for right in RIGHTS} == {
        ("", "nodes", "list"),
        ("", "nodes", "watch"),
        ("", "nodes/status", "patch"),
        *((group, kind, verb) for group in groups for kind in kinds for verb in ("list", "watch")),
        ("events.k8s.io", "events", "create"),
        ("events.k8s.io", "events", "patch"),
    }
