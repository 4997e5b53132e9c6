"""What every source has to be able to do, tried on those there are."""

import asyncio
from pathlib import Path

import pytest

from controller.directory import DirectorySource
from controller.source import Ref, Source, SourceError
from tests.controller.cluster import felix, node, text


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "n1.yaml").write_text(text(node("n1", "192.0.2.1/24")))
    (tmp_path / "felix.yaml").write_text(text(felix()))
    return DirectorySource(tmp_path, poll_seconds=0.01)


async def test_it_lists_then_tells_of_changes(source: Source) -> None:
    listed = await source.list()
    assert set(listed) == {Ref("Node", "n1"), Ref("FelixConfiguration", "default")}

    await source.annotate("n1", {"a": "1"})
    changed = await asyncio.wait_for(source.changed(), 5)

    assert changed[Ref("Node", "n1")]["metadata"]["annotations"]["a"] == "1"
    assert changed[Ref("FelixConfiguration", "default")] == listed[Ref("FelixConfiguration", "default")]
    assert "a" not in listed[Ref("Node", "n1")]["metadata"]["annotations"], "what was handed over does not change"


async def test_many_writers_of_one_node_do_not_disturb_each_other(source: Source) -> None:
    await source.list()

    await asyncio.gather(*(source.annotate("n1", {f"a{number}": "1"}) for number in range(20)))
    changed = await asyncio.wait_for(source.changed(), 5)
    while len(changed[Ref("Node", "n1")]["metadata"]["annotations"]) < 21:
        changed = await asyncio.wait_for(source.changed(), 5)


async def test_a_node_that_is_not_there_cannot_be_annotated(source: Source) -> None:
    await source.list()

    with pytest.raises(SourceError):
        await source.annotate("n9", {"a": "1"})


def test_an_object_is_called_by_kind_and_name() -> None:
    assert str(Ref("Node", "n1")) == "Node n1"
