"""What every source has to be able to do. Tried here on a directory, and by tests/kube/test_source.py on a real API server."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from controller.directory import Directory, DirectorySource
from controller.meshes.calico import Calico
from controller.source import Manifest, Objects, Ref, Source, SourceError
from tests.controller.cluster import block, felix, node, text

N1, FELIX = Ref("Node", "n1"), Ref("FelixConfiguration", "default")
KINDS = ("FelixConfiguration", "IPAMBlock", "IPPool", "Node")


class PlainMesh(Calico):
    """Looks at names, annotations and spec, of Calico's kinds."""

    def trim(self, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        annotations = metadata.get("annotations") or {}
        return {
            "kind": manifest["kind"],
            "metadata": {"name": metadata["name"], "annotations": dict(annotations)},
            "spec": manifest.get("spec"),
        }


class Store(Protocol):
    """A source, and the cluster behind it as somebody else changes it."""

    @property
    def source(self) -> Source: ...

    def put(self, manifest: dict[str, Any]) -> None:
        """Create an object, or replace its annotations, labels and spec."""

    def remove(self, ref: Ref) -> None: ...


class DirectoryStore:
    def __init__(self, path: Path) -> None:
        self._directory = Directory(path)
        self.source = DirectorySource(path, PlainMesh(), poll_seconds=0.01)

    def put(self, manifest: dict[str, Any]) -> None:
        name = f"{manifest['kind']}-{manifest['metadata']['name']}.yaml"
        (self._directory.path / f".{name}").write_text(text(manifest))
        (self._directory.path / f".{name}").rename(self._directory.path / name)

    def remove(self, ref: Ref) -> None:
        self._directory.delete(ref)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """With the Node n1 and a FelixConfiguration, and nothing else of Calico's kinds."""
    store = DirectoryStore(tmp_path)
    store.put(node("n1", "192.0.2.1/24"))
    store.put(felix())
    yield store
    await store.source.close()


async def changed(store: Store) -> Objects:
    return await asyncio.wait_for(store.source.changed(), 5)


def annotations(objects: Objects, ref: Ref = N1) -> Mapping[str, str]:
    found: Mapping[str, str] = objects[ref]["metadata"]["annotations"]
    return found


async def test_it_lists_then_tells_of_changes(store: Store) -> None:
    listed = await store.source.list()
    assert set(listed) == {N1, FELIX}

    await store.source.annotate(N1, {"a": "1"})
    newer = await changed(store)

    assert annotations(newer)["a"] == "1"
    assert "a" not in annotations(listed), "what was handed over does not change"


async def test_what_has_not_changed_is_the_same_object_as_before(store: Store) -> None:
    listed = await store.source.list()

    await store.source.annotate(N1, {"a": "1"})

    assert (await changed(store))[FELIX] is listed[FELIX]


async def test_objects_come_and_go(store: Store) -> None:
    await store.source.list()
    new = block("10.9.0.0/26", "n1")
    ref = Ref("IPAMBlock", new["metadata"]["name"])

    store.put(new)
    assert ref in await changed(store)
    store.remove(ref)
    assert ref not in await changed(store)


async def test_the_newest_state_is_handed_over_and_not_each_on_the_way(store: Store) -> None:
    await store.source.list()
    for number in range(20):
        await store.source.annotate(N1, {"a": str(number)})
    await asyncio.sleep(0.5)

    assert annotations(await changed(store))["a"] == "19"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.source.changed(), 0.3)


async def test_a_change_of_what_the_mesh_does_not_look_at_wakes_nobody(store: Store) -> None:
    await store.source.list()
    labelled = node("n1", "192.0.2.1/24")
    labelled["metadata"]["labels"] = {"zone": "a"}

    store.put(labelled)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.source.changed(), 0.3)


async def test_annotations_are_set_and_removed(store: Store) -> None:
    await store.source.list()
    before = annotations(await store.source.list())

    await store.source.annotate(N1, {"a": "1", "b": "2"})
    await store.source.annotate(N1, {"a": None, "c": None})

    newer = await changed(store)
    while "b" not in annotations(newer) or "a" in annotations(newer):
        newer = await changed(store)
    assert annotations(newer) == {**before, "b": "2"}


async def test_many_writers_of_one_node_do_not_disturb_each_other(store: Store) -> None:
    before = annotations(await store.source.list())

    await asyncio.gather(*(store.source.annotate(N1, {f"a{number}": "1"}) for number in range(20)))

    newer = await changed(store)
    while len(annotations(newer)) < len(before) + 20:
        newer = await changed(store)


async def test_a_node_that_is_not_there_cannot_be_annotated(store: Store) -> None:
    await store.source.list()

    with pytest.raises(SourceError, match="n9"):
        await store.source.annotate(Ref("Node", "n9"), {"a": "1"})


async def test_its_health_says_that_it_is_in_sync(store: Store) -> None:
    await store.source.list()

    health = store.source.health()

    assert health.is_synced and health.failure is None


def test_an_object_is_called_by_kind_and_name() -> None:
    assert str(N1) == "Node n1"
