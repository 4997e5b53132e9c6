"""The Kubernetes source as a whole, on a scripted API server. On a real one: tests/kube."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from controller.kube import KubernetesSource
from controller.kube.connection import Refused
from controller.source import Event, Ref, SourceError, SourceUnavailable
from tests.controller.kube.scripted import Scripted, end_of_list, event, gives, says, sends
from tests.controller.test_source import N1, PlainMesh, annotations

NODES, EVENTS = "/api/v1/nodes", "/apis/events.k8s.io/v1/namespaces/default/events"
STATUS = f"{NODES}/n1/status"
CALICO = "/apis/crd.projectcalico.org/v1"


@pytest.fixture
async def source(api: Scripted, tmp_path: Path) -> AsyncIterator[KubernetesSource]:
    api.on(NODES, sends(event("ADDED", "n1", 1), end_of_list(2)), sends(then="hangs"))
    source = KubernetesSource(PlainMesh(), api.kubeconfig(tmp_path))
    yield source
    await source.close()


async def test_it_is_known_by_where_its_configuration_comes_from(source: KubernetesSource, tmp_path: Path) -> None:
    assert source.name == f"API server of {tmp_path / 'kubeconfig'}"


async def test_nothing_is_handed_over_before_all_kinds_are_known(api: Scripted, source: KubernetesSource) -> None:
    api.on(CALICO, gives({"resources": [{"name": "ippools"}]}))
    api.on(f"{CALICO}/ippools", sends(then="hangs"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.list(), 0.5)

    assert source.health().failure == "not all objects have been sent yet" and not source.health().is_synced
    assert not source.absent or "IPPool" not in source.absent


async def test_kinds_that_are_not_served_are_absent(source: KubernetesSource) -> None:
    assert set(await source.list()) == {N1}
    assert source.absent == ["FelixConfiguration", "IPAMBlock", "IPPool"]
    health = source.health()
    assert health.is_synced and health.failure is None and health.lists == 4 and health.heard_at is not None


async def test_a_refusal_is_raised_at_once_and_the_next_list_tries_again(api: Scripted, source: KubernetesSource) -> None:
    good = api.answers[NODES]
    api.on(NODES, says(403, "not yet"))
    with pytest.raises(Refused, match="may not watch nodes"):
        await source.list()

    api.on(NODES, *good)
    async with asyncio.timeout(5):
        assert N1 in await source.list()


async def test_silence_is_raised_after_a_while(api: Scripted, source: KubernetesSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.kube.source.LIST_SECONDS", 0.5)
    api.on(STATUS, gives({}))
    await source.annotate(N1, {"a": "1"})  # now all is read that takes a while, and the half second is for the silence alone
    await api.stop()

    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        await source.list()


async def test_trouble_is_logged_once_and_so_is_its_end(
    api: Scripted, source: KubernetesSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "controller.kube")
    good = api.answers[NODES]
    api.on(NODES, says(503, "starting"))
    listing = asyncio.create_task(source.list())
    async with asyncio.timeout(5):
        while api.count(NODES) < 4:
            await asyncio.sleep(0.01)
    api.on(NODES, *good)

    await listing

    assert [record.getMessage() for record in caplog.records] == [
        "cannot watch nodes: the API server is in trouble (503): starting; we go on trying",
        "following the API server again",
    ]


async def test_a_conflict_is_tried_again(api: Scripted, source: KubernetesSource) -> None:
    api.on(STATUS, says(409, "modified"), says(409, "modified"), gives({}))

    await source.annotate(N1, {"a": "1", "b": None})

    assert api.methods(STATUS) == ["PATCH"] * 3
    assert api.bodies[-1] == {"metadata": {"annotations": {"a": "1", "b": None}}}


async def test_conflicts_without_end_are_an_error(api: Scripted, source: KubernetesSource) -> None:
    api.on(STATUS, says(409, "modified"))

    with pytest.raises(SourceError, match=r"cannot patch nodes/status of n1 \(409\): modified"):
        await source.annotate(N1, {"a": "1"})


async def test_an_object_of_an_absent_kind_cannot_be_annotated(source: KubernetesSource) -> None:
    await source.list()

    with pytest.raises(SourceError, match="the API server serves no ippools"):
        await source.annotate(Ref("IPPool", "p"), {"a": "1"})


async def test_other_kinds_have_their_annotations_patched_as_they_are(api: Scripted, source: KubernetesSource) -> None:
    api.on(CALICO, gives({"resources": [{"name": "ippools"}]}))
    api.on(f"{CALICO}/ippools", sends(end_of_list(2)), sends(then="hangs"))
    api.on(f"{CALICO}/ippools/p", gives({}))
    await source.list()

    await source.annotate(Ref("IPPool", "p"), {"a": "1"})

    assert api.methods(f"{CALICO}/ippools/p") == ["PATCH"]


async def test_an_event_whose_answer_was_lost_is_there_already(api: Scripted, source: KubernetesSource) -> None:
    api.on(EVENTS, says(409, "already exists"))

    await source.tell("n1", Event("KeyPublished", "it is", is_warning=False))

    assert api.bodies[0]["reason"] == "KeyPublished"


async def test_an_event_that_could_not_be_told_is_told_the_next_time(api: Scripted, source: KubernetesSource) -> None:
    api.on(EVENTS, says(503, "later"), gives({}))
    told = Event("KeyPublished", "it is", is_warning=False)
    with pytest.raises(SourceUnavailable):
        await source.tell("n1", told)

    await source.tell("n1", told)
    await source.tell("n1", told)

    assert api.count(EVENTS) == 2


async def test_changes_come_as_the_newest_state(api: Scripted, source: KubernetesSource) -> None:
    changes = [event("MODIFIED", "n1", number, annotations={"a": str(number)}) for number in range(3, 50)]
    is_listed = asyncio.Event()

    async def then_changes(request: web.Request) -> web.StreamResponse:
        await is_listed.wait()
        return await sends(*changes, then="hangs")(request)

    api.on(NODES, api.answers[NODES][0], then_changes)
    await source.list()
    is_listed.set()
    async with asyncio.timeout(5):
        while source._reflectors["Node"]._version != "49":
            await asyncio.sleep(0.01)

    assert annotations(await asyncio.wait_for(source.changed(), 5))["a"] == "49"


async def test_a_mistake_of_ours_is_not_passed_over_in_silence(api: Scripted, tmp_path: Path) -> None:
    class Broken(PlainMesh):
        def trim(self, manifest: object) -> dict[str, object]:
            raise ZeroDivisionError

    api.on(NODES, sends(event("ADDED", "n1", 1), end_of_list(2)))
    source = KubernetesSource(Broken(), api.kubeconfig(tmp_path))

    with pytest.raises(ZeroDivisionError):
        await source.list()
    await source.close()
