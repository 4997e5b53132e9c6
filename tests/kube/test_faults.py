"""The Kubernetes source and what can happen to a real API server: what is known stays, and afterwards all is in sync."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.kube import KubernetesSource, reflector
from controller.source import Objects, Ref, SourceError, SourceUnavailable
from tests.controller.cluster import block, node
from tests.controller.test_source import N1, PlainMesh, annotations
from tests.kube.test_source import allow, classic, following, rule
from tests.kube.testbed import CALICO_GROUPS, ApiError, Testbed, until
from tests.promises import STALL_SECONDS, Promises

RIGHTS = [
    rule("", "nodes", "list", "watch"),
    rule("", "nodes/status", "patch"),
    rule("crd.projectcalico.org", "*", "list", "watch"),
]

BACK_SECONDS = 5.0
"""So soon after the API server is back everything must be in sync."""

WAIT_SECONDS = BACK_SECONDS + STALL_SECONDS


@pytest.fixture
async def source(private_kube: Testbed) -> AsyncIterator[KubernetesSource]:
    """Of an agent with a token of its own, which has listed the one Node there is."""
    await asyncio.to_thread(prepare, private_kube)
    source = KubernetesSource(PlainMesh(), private_kube.kubeconfig_for(private_kube.token("agent", node="n1")))
    await source.list()
    yield source
    await source.close()


def prepare(kube: Testbed) -> None:
    kube.install_calico_crds()
    kube.apply(node("n1"))
    kube.token("agent", node="n1")
    allow(kube, "agent", RIGHTS)


def write(kube: Testbed, value: str) -> None:
    kube.patch("Node", "n1", {"metadata": {"annotations": {"a": value}}})


async def until_synced(source: KubernetesSource, seconds: float = WAIT_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not source.health().is_synced:
            await asyncio.sleep(0.02)


async def until_failing(source: KubernetesSource, seconds: float = 10.0) -> str:
    """Why it is not in sync."""
    async with asyncio.timeout(seconds):
        while (failure := source.health().failure) is None:
            await asyncio.sleep(0.02)
    return failure


async def sees(source: KubernetesSource, value: str, seconds: float = WAIT_SECONDS) -> Objects:
    return await following(source, lambda objects: annotations(objects).get("a") == value, seconds)


async def test_an_api_server_that_is_killed_and_comes_back(
    private_kube: Testbed, source: KubernetesSource, promises: Promises
) -> None:
    waiting = asyncio.create_task(source.changed())
    private_kube.kill("kube-apiserver")

    failure = await until_failing(source)
    said = ("Connection refused", "Connection reset by peer", "the connection broke off")
    assert failure.endswith(tuple(f"cannot be reached: {each}" for each in said))
    told = f"^cannot patch nodes/status of n1: the API server at {private_kube.url} cannot be reached: Connection refused$"
    with pytest.raises(SourceUnavailable, match=told):
        await source.annotate(N1, {"a": "0"})
    await asyncio.sleep(3)
    assert not waiting.done(), "what is known stays"
    await asyncio.to_thread(private_kube.restart_apiserver)

    began = time.monotonic()
    await until_synced(source)
    await source.annotate(N1, {"a": "1"})
    assert annotations(await asyncio.wait_for(waiting, WAIT_SECONDS)) == {"a": "1"}
    promises.judge("API server back after its end to the source in sync", time.monotonic() - began, BACK_SECONDS)


async def test_an_api_server_that_stands_still_for_a_while(
    private_kube: Testbed, source: KubernetesSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kube.connection.ANSWER_SECONDS", 0.5)
    private_kube.stop("kube-apiserver")
    try:
        with pytest.raises(SourceUnavailable, match="does not answer in time"):
            await source.annotate(N1, {"a": "0"})
        fresh = KubernetesSource(PlainMesh(), private_kube.kubeconfig)
        monkeypatch.setattr("controller.kube.source.LIST_SECONDS", 1.5)
        with pytest.raises(SourceUnavailable, match="does not answer in time"):
            await fresh.list()
    finally:
        private_kube.go_on("kube-apiserver")

    monkeypatch.setattr("controller.kube.source.LIST_SECONDS", 10)
    assert N1 in await fresh.list(), "it has gone on trying"
    await fresh.close()
    await asyncio.to_thread(write, private_kube, "1")
    await sees(source, "1")


async def test_a_database_that_stands_still_for_a_while(
    private_kube: Testbed, source: KubernetesSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kube.connection.ANSWER_SECONDS", 1.0)
    private_kube.stop("etcd")
    try:
        with pytest.raises(SourceUnavailable, match=r"^cannot patch nodes/status of n1: "):
            await source.annotate(N1, {"a": "0"})
        fresh = KubernetesSource(PlainMesh(), private_kube.kubeconfig)
        assert N1 in await fresh.list(), "a list may be as old as the API server's cache"
        await fresh.close()
    finally:
        private_kube.go_on("etcd")

    await asyncio.sleep(1)
    await asyncio.to_thread(write, private_kube, "1")
    await sees(source, "1")


async def test_a_version_that_is_gone_is_listed_anew(private_kube: Testbed, source: KubernetesSource) -> None:
    for number in range(5):
        write(private_kube, str(number))
    await sees(source, "4")
    lists, old = source.health().lists, "1"
    private_kube.compact()

    # As if it had slept through all of that.
    source._reflectors["Node"]._version = old
    private_kube.kill("kube-apiserver")
    await until_failing(source)  # what had come was read
    source._reflectors["Node"]._version = old
    await asyncio.to_thread(private_kube.restart_apiserver)
    write(private_kube, "5")

    await sees(source, "5")
    assert source.health().lists > lists
    assert source.health().errors > 0


async def test_a_token_that_is_revoked_is_read_again(private_kube: Testbed, source: KubernetesSource) -> None:
    kubeconfig = source._connection._path
    assert kubeconfig is not None
    private_kube.token_file(kubeconfig).write_text("revoked")
    await asyncio.to_thread(private_kube.restart_apiserver)
    # The token in memory is still good: the file has not been read again.
    await until_synced(source)

    private_kube.delete("Pod", "agent-n1", namespace="kube-system")
    await asyncio.to_thread(private_kube.restart_apiserver)  # it would remember for ten seconds that the token is good
    failure = await until_failing(source)
    async with asyncio.timeout(10):
        while "(401)" not in (failure := source.health().failure or ""):
            await asyncio.sleep(0.02)
    assert "does not accept our credentials (401): the token or certificate has expired or was revoked" in failure
    with pytest.raises(SourceError, match=r"^may not patch nodes/status of n1: .*\(401\)"):
        await source.annotate(N1, {"a": "0"})

    private_kube.token_file(kubeconfig).write_text(private_kube.token("agent", node="n1"))
    await source.annotate(N1, {"a": "1"})
    await source.list()  # which has everything tried at once, however long the pause would be
    await sees(source, "1")


async def test_a_right_that_is_taken_away_and_given_back(
    private_kube: Testbed, source: KubernetesSource, caplog: pytest.LogCaptureFixture
) -> None:
    private_kube.delete("ClusterRoleBinding", "agent", "rbac.authorization.k8s.io/v1")
    await asyncio.to_thread(private_kube.restart_apiserver)

    async with asyncio.timeout(10):
        while "403" not in (source.health().failure or ""):
            await asyncio.sleep(0.02)
    assert 'User "system:serviceaccount:kube-system:agent" cannot watch resource' in str(source.health().failure)
    assert "; what was known stays" in caplog.text
    fresh = KubernetesSource(PlainMesh(), source._connection._path)
    with pytest.raises(SourceError, match=r"^may not watch .* \(403, look at RBAC"):
        await fresh.list()
    await fresh.close()

    await asyncio.to_thread(allow, private_kube, "agent", RIGHTS)
    assert N1 in await source.list()
    await until_synced(source)


@pytest.mark.long
async def test_no_change_is_lost_where_watches_end_all_the_time(
    private_kube: Testbed, source: KubernetesSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "WATCH_SECONDS", 2.0)
    monkeypatch.setattr(reflector, "RESYNC_SECONDS", 3.0)
    await asyncio.to_thread(private_kube.restart_apiserver, "--min-request-timeout=4")
    await until_synced(source)
    watches, lists = source.counts["Node"].watches, source.counts["Node"].lists

    for number in range(40):
        await asyncio.to_thread(write, private_kube, str(number))
        await sees(source, str(number))
        await asyncio.sleep(0.2)

    assert source.counts["Node"].watches > watches + 1
    assert source.counts["Node"].lists > lists, "and now and then everything is listed again"


async def test_malformed_objects_leave_what_was_known(
    private_kube: Testbed, source: KubernetesSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await asyncio.to_thread(loosen_schema, private_kube)
    good = classic(block("10.9.0.0/26", "n1"))
    ref = Ref("IPAMBlock", good["metadata"]["name"])
    private_kube.apply(good)
    before = (await following(source, lambda objects: ref in objects))[ref]

    private_kube.patch("IPAMBlock", ref.name, {"spec": None}, CALICO_GROUPS[0])
    private_kube.apply(classic(good | {"metadata": {"name": "never-good"}, "spec": {"cidr": 12}}))
    async with asyncio.timeout(5):
        while "never-good" not in caplog.text:
            await asyncio.sleep(0.02)
    assert f"{ref}: lacks spec.cidr; what it was before stays" in caplog.text
    assert "IPAMBlock never-good: spec.cidr is not a string; it counts as absent" in caplog.text
    listed = await source.list()
    assert listed[ref] is before and Ref("IPAMBlock", "never-good") not in listed

    private_kube.patch("IPAMBlock", ref.name, {"spec": {"cidr": "10.9.0.64/26"}}, CALICO_GROUPS[0])
    await following(source, lambda objects: objects[ref]["spec"]["cidr"] == "10.9.0.64/26")
    assert f"{ref} is good again" in caplog.text


def loosen_schema(kube: Testbed) -> None:
    """Have the API server take any IPAMBlock, as those do that know the kind from an older CRD."""
    anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    name = "ipamblocks.crd.projectcalico.org"
    crd: dict[str, Any] = kube.get("CustomResourceDefinition", name, "apiextensions.k8s.io/v1")
    versions = [crd["spec"]["versions"][0] | {"schema": anything}]
    kube.patch("CustomResourceDefinition", name, {"spec": {"versions": versions}}, "apiextensions.k8s.io/v1")

    def is_in_force() -> bool:
        bad = {"apiVersion": CALICO_GROUPS[0], "kind": "IPAMBlock", "metadata": {"name": "bad"}, "spec": {"cidr": 12}}
        try:
            kube.request("POST", f"/apis/{CALICO_GROUPS[0]}/ipamblocks?dryRun=All", bad)
        except ApiError:
            return False
        return True

    until(is_in_force, "the new schema is in force")
