"""The Kubernetes source on a real API server: what every source has to be able to do, and what only this one has."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.kube import KubernetesSource
from controller.meshes.calico import Calico
from controller.source import Event, Objects, Ref, SourceError
from tests.controller import test_source as contract
from tests.controller.cluster import block, felix, keyed, node
from tests.kube.testbed import CALICO_GROUPS, ROOT, ApiError, Testbed, until

# The contract's tests are collected here once more, with the fixture of this module.
globals().update({name: value for name, value in vars(contract).items() if name.startswith("test_")})

N1, FELIX = contract.N1, contract.FELIX


class KubeStore:
    def __init__(self, kube: Testbed) -> None:
        self._kube = kube
        self.source = KubernetesSource(contract.PlainMesh(), kube.kubeconfig)

    def put(self, manifest: dict[str, Any]) -> None:
        self._kube.apply(classic(manifest))

    def remove(self, ref: Ref) -> None:
        self._kube.delete(ref.kind, ref.name, "v1" if ref.kind == "Node" else CALICO_GROUPS[0])


def classic(manifest: dict[str, Any]) -> dict[str, Any]:
    """Under the classic group, whatever it says."""
    return manifest if manifest["kind"] == "Node" else manifest | {"apiVersion": CALICO_GROUPS[0]}


def clear(kube: Testbed) -> None:
    """Take away all objects that a source reads."""
    for name in contract.KINDS:
        version = "v1" if name == "Node" else CALICO_GROUPS[0]
        kube.request("DELETE", kube._collection(version, name, None))
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    kube.request("DELETE", events)


@pytest.fixture
def empty_kube(kube: Testbed) -> Iterator[Testbed]:
    clear(kube)
    yield kube
    clear(kube)


@pytest.fixture
async def store(empty_kube: Testbed) -> AsyncIterator[KubeStore]:
    store = KubeStore(empty_kube)
    store.put(node("n1", "192.0.2.1/24"))
    store.put(felix())
    yield store
    await store.source.close()


async def following(source: KubernetesSource, condition: Any, seconds: float = 10.0) -> Objects:
    """The objects, as soon as they fulfil a condition."""
    async with asyncio.timeout(seconds):
        while True:
            objects = await source.changed()
            if condition(objects):
                return objects


async def test_a_change_is_known_within_a_tenth_of_a_second(store: KubeStore) -> None:
    await store.source.list()
    times = []
    for number in range(20):
        began = time.monotonic()
        await asyncio.to_thread(store.put, node("n1", f"192.0.2.{number + 10}/24"))
        await store.source.changed()
        times.append(time.monotonic() - began)

    assert sorted(times)[10] < 0.1, f"{times}"


async def test_kubectl_switches_wireguard_on(store: KubeStore, empty_kube: Testbed) -> None:
    await store.source.list()
    patch = '{"spec":{"wireguardEnabled":true,"wireguardEnabledV6":true}}'

    await asyncio.to_thread(empty_kube.kubectl, "patch", "felixconfiguration", "default", "--type=merge", "-p", patch)

    objects = await following(store.source, lambda objects: objects[FELIX]["spec"])
    assert objects[FELIX]["spec"] == {"wireguardEnabled": True, "wireguardEnabledV6": True}


async def test_the_right_to_patch_the_status_is_enough_to_annotate(store: KubeStore, empty_kube: Testbed) -> None:
    token = empty_kube.token("annotator", node="n1")
    allow(empty_kube, "annotator", [rule("", "nodes/status", "patch")])
    source = KubernetesSource(contract.PlainMesh(), empty_kube.kubeconfig_for(token))

    await source.annotate(N1, {"a": "1"})
    with pytest.raises(SourceError) as raised:
        await source.list()
    await source.close()

    assert empty_kube.get("Node", "n1")["metadata"]["annotations"]["a"] == "1"
    assert "may not watch nodes (403" in str(raised.value) or "may not watch" in str(raised.value)
    assert "annotator" in str(raised.value) and "\n" not in str(raised.value)


async def test_what_may_not_be_patched_is_named(store: KubeStore, empty_kube: Testbed) -> None:
    token = empty_kube.token("reader", node="n1")
    source = KubernetesSource(contract.PlainMesh(), empty_kube.kubeconfig_for(token))

    with pytest.raises(
        SourceError, match=r"^may not patch nodes/status of n1 \(403, look at RBAC and admission policies\): .*reader"
    ):
        await source.annotate(N1, {"a": "1"})
    with pytest.raises(SourceError, match=r"^may not create events\.events\.k8s\.io \(403"):
        await source.tell("n1", Event("KeyPublished", "it is", is_warning=False))
    await source.close()


async def test_what_the_agent_tells_stands_under_kubectl_describe(store: KubeStore, empty_kube: Testbed) -> None:
    event = Event("KeyContested", "somebody else writes our key", is_warning=True)

    await store.source.tell("n1", event)
    await store.source.tell("n1", event)
    await store.source.tell("n1", Event("TooLong", "é" * 2000, is_warning=False))

    described = await asyncio.to_thread(empty_kube.kubectl, "describe", "node", "n1")
    assert "KeyContested" in described and event.message in described
    found = empty_kube.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    assert sorted(item["reason"] for item in found) == ["KeyContested", "TooLong"]
    assert {item["type"] for item in found} == {"Normal", "Warning"}


async def test_an_event_told_again_after_a_while_counts_up(
    store: KubeStore, empty_kube: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kube.events.SERIES_SECONDS", 0.0)
    event = Event("KeyContested", "somebody else writes our key", is_warning=True)

    for _ in range(3):
        await store.source.tell("n1", event)

    [found] = empty_kube.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    assert found["series"]["count"] == 3
    empty_kube.request("DELETE", "/apis/events.k8s.io/v1/namespaces/default/events")
    await store.source.tell("n1", event)
    [found] = empty_kube.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    assert "series" not in found, "an Event that has expired is made anew"


async def test_a_cluster_without_calicos_kinds_is_a_cluster(private_kube: Testbed) -> None:
    private_kube.apply(node("n1", podCIDRs=["10.1.0.0/24"]))
    source = KubernetesSource(Calico(), private_kube.kubeconfig)

    assert set(await source.list()) == {N1}
    assert source.absent == ["FelixConfiguration", "IPAMBlock", "IPPool"]
    await source.close()


async def test_kinds_that_are_installed_later_are_found(private_kube: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.kube.reflector.ABSENT_SECONDS", 0.5)
    monkeypatch.setattr("controller.kube.reflector.GONE_SECONDS", 1.0)
    monkeypatch.setattr("controller.kube.reflector.WATCH_SECONDS", 2.0)
    monkeypatch.setattr("controller.kube.reflector.TROUBLED_SECONDS", 0.5)
    source = KubernetesSource(Calico(), private_kube.kubeconfig)
    assert await source.list() == {}

    await asyncio.to_thread(private_kube.install_calico_crds, "projectcalico.org/v3")
    private_kube.apply(felix(wireguardEnabled=True) | {"apiVersion": "projectcalico.org/v3"})
    found = await following(source, lambda objects: FELIX in objects)
    assert found[FELIX]["spec"] == {"wireguardEnabled": True}

    await asyncio.to_thread(private_kube.remove_calico_crds, "projectcalico.org/v3")
    await following(source, lambda objects: FELIX not in objects)
    async with asyncio.timeout(15):
        while "FelixConfiguration" not in source.absent:
            await asyncio.sleep(0.1)
    await source.close()


async def test_of_two_groups_the_first_that_is_served_counts(empty_kube: Testbed) -> None:
    empty_kube.install_calico_crds("projectcalico.org/v3")
    empty_kube.apply(felix(wireguardMTU=1), felix(wireguardMTU=3) | {"apiVersion": "projectcalico.org/v3"})
    source = KubernetesSource(Calico(), empty_kube.kubeconfig)

    objects = await source.list()
    await source.close()
    empty_kube.remove_calico_crds("projectcalico.org/v3")

    assert objects[FELIX]["spec"] == {"wireguardMTU": 1}


async def test_a_server_that_cannot_list_by_watching_is_asked_for_pages(need_kube: None, tmp_path: Path) -> None:
    with Testbed.start(tmp_path, apiserver_args=["--feature-gates=WatchList=false"]) as kube:
        kube.apply(*(node(f"n{number}", "192.0.2.1/24") for number in range(250)))
        source = KubernetesSource(Calico(), kube.kubeconfig)

        assert len(await source.list()) == 250
        kube.apply(node("more"))
        await following(source, lambda objects: Ref("Node", "more") in objects)
        await source.close()

        # `list` is a right of its own only here: a list that is a watch asks for no more than `watch`.
        token = kube.token("watcher")
        allow(kube, "watcher", [rule("", "nodes", "watch")])
        source = KubernetesSource(Calico(), kube.kubeconfig_for(token))
        with pytest.raises(SourceError, match=r"^may not list nodes \(403"):
            await source.list()
        await source.close()


# In figures


def big_node(number: int, **annotations: str) -> dict[str, Any]:
    """A Node of 14 KB, as a kubelet writes it: with conditions, images and labels."""
    made = keyed(f"big{number}", f"10.{number >> 8 & 255}.{number & 255}.1/16", key=number.to_bytes(32, "big"))
    made["metadata"]["annotations"] |= annotations
    made["metadata"]["labels"] = {f"example.com/label-{each}": f"value-{each}" for each in range(20)}
    images = [
        {
            "names": [
                f"registry.example.com/team/image-{each}@sha256:{each:064x}",
                f"registry.example.com/team/image-{each}:v1.{each}",
            ]
        }
        for each in range(64)
    ]
    conditions = [
        {"type": name, "status": "True", "reason": f"Kubelet{name}", "message": "as it should be " * 4}
        for name in ("Ready", "A", "B")
    ]
    made["status"] = {"images": images, "conditions": conditions}
    return made


FOLLOWER = """
import asyncio, json, sys, time
from pathlib import Path
from controller.kube import KubernetesSource
from controller.meshes.calico import Calico
from tests.kube.testbed import usage

async def main():
    source = KubernetesSource(Calico(node_name="none"), Path(sys.argv[1]))
    began, before = time.monotonic(), usage("self")
    objects = await source.list()
    after = usage("self")
    cpu, memory = after[0] - before[0], after[1] - before[1]
    say(count=len(objects), seconds=time.monotonic() - began, cpu=cpu, memory=memory, total=after[1])
    waker = asyncio.create_task(source.changed())
    for line in iter_lines():
        await asyncio.sleep(float(line))
        now = usage("self")
        say(cpu=now[0] - after[0], memory=now[1] - before[1], woken=waker.done())
        after = now
    waker.cancel()
    await source.close()

def iter_lines():
    yield from sys.stdin

def say(**what):
    print(json.dumps(what), flush=True)

asyncio.run(main())
"""
"""A process that does nothing but follow the API server. For each line of its input, so many seconds, it says what they cost."""


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1000, 5000])
def test_a_large_cluster_costs_little(private_kube: Testbed, nodes: int, capsys: pytest.CaptureFixture[str]) -> None:
    kube, seconds = private_kube, 10
    kube.install_calico_crds()
    numbers = range(3 * nodes)
    kube.apply(*(big_node(number) for number in range(nodes)))
    kube.apply(
        *(
            classic(block(f"10.{100 + (each >> 10)}.{each >> 2 & 255}.{(each & 3) << 6}/26", f"big{each // 3}"))
            for each in numbers
        )
    )
    size = len(json.dumps(kube.get("Node", "big1")))
    command = [sys.executable, "-c", FOLLOWER, str(kube.kubeconfig)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdin is not None and follower.stdout is not None
        listed = json.loads(follower.stdout.readline())
        print(seconds, file=follower.stdin, flush=True)
        for number in range(10 * seconds):
            kube.patch("Node", f"big{number}", {"metadata": {"labels": {"beat": str(number)}}}, subresource="/status")
            time.sleep(0.095)
        busy = json.loads(follower.stdout.readline())
        print(seconds, file=follower.stdin, flush=True)
        rest = json.loads(follower.stdout.readline())
        follower.stdin.close()
    with capsys.disabled():
        print(
            f"\n{nodes} nodes of {size} bytes and {3 * nodes} blocks: listed in {listed['seconds']:.2f} s"
            f" ({listed['cpu']:.2f} s of CPU), {listed['memory']:.0f} MB ({listed['total']:.0f} MB with the imports);"
            f" 10 unrelated updates a second: {busy['cpu'] / seconds:.2%} of a core; at rest: {rest['cpu'] / seconds:.2%}"
        )
    assert size > 13_000 and listed["count"] == 4 * nodes
    assert listed["seconds"] < 4 * nodes / 1000 and listed["memory"] < 10 + 20 * nodes / 1000
    assert not busy["woken"] and not rest["woken"], "nothing that matters has changed"
    assert rest["memory"] < listed["memory"] + 5
    assert busy["cpu"] / seconds < 0.03 and rest["cpu"] / seconds < 0.005


# RBAC


def rule(group: str, resource: str, *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}


def allow(kube: Testbed, account: str, rules: list[dict[str, Any]]) -> None:
    """Give a ServiceAccount of kube-system these rights, and see them in force."""
    metadata = {"name": account}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account}
    api = "rbac.authorization.k8s.io/v1"
    kube.apply(
        {"apiVersion": api, "kind": "ClusterRole", "metadata": metadata, "rules": rules},
        {"apiVersion": api, "kind": "ClusterRoleBinding", "metadata": metadata, "roleRef": role, "subjects": [subject]},
    )
    resource, _, subresource = rules[0]["resources"][0].partition("/")
    attributes = {
        "verb": rules[0]["verbs"][0],
        "group": rules[0]["apiGroups"][0],
        "resource": resource,
        "subresource": subresource,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:kube-system:{account}", "resourceAttributes": attributes},
    }

    def is_allowed() -> bool:
        try:
            return bool(kube.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"])
        except ApiError:
            return False

    until(is_allowed, f"the rights of {account}")
