"""A directory of manifests: people, editors and ten agents at once."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.directory import Directory, DirectorySource, ManifestError, parse_manifest
from controller.meshes.calico import Calico
from controller.source import Ref, SourceError
from tests.controller.cluster import block, felix, keyed, node, pool, text

NODE = Ref("Node", "n1")


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    (tmp_path / "n1.yaml").write_text(text(node("n1", "192.0.2.1/24")))
    (tmp_path / "felix.yml").write_text(text(felix(wireguardEnabled=True)))
    for path in (*tmp_path.iterdir(), tmp_path):
        os.utime(path, (1e9, 1e9))  # what changes has another time then, however coarse the kernel's clock of files is
    directory = Directory(tmp_path)
    directory.load()
    return directory


class Clock:
    """A monotonic clock that goes on by hand; a second later every file is looked at. A directory is loaded by the
    machine's own, which counts from its start and must not overtake this one."""

    now = 1e9

    def look(self, directory: Directory) -> bool:
        self.now += 100
        return directory.refresh(self.now)


clock = Clock()


# Reading


def test_each_file_is_an_object(directory: Directory) -> None:
    (directory.path / "pod.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n")
    (directory.path / "notes.txt").write_text("{{{ not YAML")
    (directory.path / ".hidden.yaml").write_text("{{{ not YAML")

    assert set(Directory(directory.path).load()) == {NODE, Ref("FelixConfiguration", "default")}


def test_a_date_is_a_string_as_in_json(directory: Directory) -> None:
    (directory.path / "n1.yaml").write_text(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, creationTimestamp: 2023-05-11T15:23:48Z}\n"
    )
    clock.look(directory)

    assert directory.objects[NODE]["metadata"]["creationTimestamp"] == "2023-05-11T15:23:48Z"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a: [1\nb: 2\n", "2: not YAML: did not find expected ',' or ']'"),
        ("a: b: c\n", "1: not YAML: mapping values are not allowed in this context"),
        ("\tkind: Node\n", "1: not YAML: found character that cannot start any token"),
        ("kind: Node\nname: \xff", "2: not YAML: not UTF-8"),
        ("", "1: no Kubernetes object: expected apiVersion, kind and metadata"),
        ("- a\n- b\n", "1: no Kubernetes object: expected apiVersion, kind and metadata"),
        ("# comment\n\napiVersion: v1\nmetadata: {name: a}\n", "3: lacks kind"),
        ("kind: Node\nmetadata: {name: a}\n", "1: lacks apiVersion"),
        ("apiVersion: v1\nkind: Node\n", "1: lacks metadata.name"),
        ("apiVersion: v1\nkind: Node\nmetadata:\n  labels: {}\n", "3: lacks metadata.name"),
        ("apiVersion: v1\nkind: Node\nmetadata:\n  name: 12\n", "4: metadata.name is not a string: put it in quotes"),
        ("apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  annotations: []\n---\n", "6: not YAML: but found another document"),
        ("apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  annotations: [1]\n", "5: metadata.annotations is not a mapping"),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: x\n", "4: spec is not a mapping"),
        ("apiVersion: v1\nkind: List\nitems: []\n", "1: a List: give each of its items a file of its own"),
        (
            "apiVersion: projectcalico.org/v1\nkind: FelixConfiguration\nmetadata: {name: default}\n",
            "1: FelixConfiguration comes under crd.projectcalico.org/v1 or projectcalico.org/v3, not 'projectcalico.org/v1'",
        ),
        ("apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {name: a}\nspec: {}\n", "4: lacks spec.cidr"),
    ],
)
def test_a_manifest_that_is_not_whole_is_named_with_its_line(directory: Directory, content: str, complaint: str) -> None:
    (directory.path / "bad.yaml").write_bytes(content.encode("latin-1"))

    with pytest.raises(SourceError) as raised:
        Directory(directory.path).load()

    assert str(raised.value) == f"{directory.path / 'bad.yaml'}:{complaint}"


def test_both_groups_of_calico_are_read() -> None:
    for version in ("crd.projectcalico.org/v1", "projectcalico.org/v3"):
        assert parse_manifest(text(felix() | {"apiVersion": version}).encode())


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="kind: Node{}[]&*!\n-'\"#|>\t", max_size=60).map(str.encode))
def test_no_bytes_can_make_reading_raise_anything_else(data: bytes) -> None:
    problem = None
    try:
        parse_manifest(data)
    except ManifestError as error:
        problem = error
    assert problem is None or (problem.line >= 1 and "\n" not in problem.message)


def test_an_object_in_two_files_is_an_error(directory: Directory) -> None:
    (directory.path / "twin.yaml").write_text(text(node("n1")))

    with pytest.raises(SourceError, match=r"twin\.yaml:1: Node n1 is in n1\.yaml already$"):
        Directory(directory.path).load()


def test_a_file_can_be_renamed(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    os.rename(directory.path / "n1.yaml", directory.path / "other.yaml")

    assert not clock.look(directory)
    assert not clock.look(directory)
    assert NODE in directory.objects and not caplog.records


def test_of_two_files_with_one_object_the_second_counts_when_the_first_is_gone(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    (directory.path / "a.yaml").write_text(text(node("n1", "192.0.2.9/24")))
    for _ in range(3):
        clock.look(directory)
    assert len(caplog.records) == 1
    assert directory.objects[NODE]["metadata"]["annotations"]["projectcalico.org/IPv4Address"] == "192.0.2.1/24"

    (directory.path / "n1.yaml").unlink()
    assert clock.look(directory)
    assert directory.objects[NODE]["metadata"]["annotations"]["projectcalico.org/IPv4Address"] == "192.0.2.9/24"


def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^cannot read the directory .*/none: No such file or directory$"):
        Directory(tmp_path / "none").load()


def test_a_field_is_located_by_its_line(directory: Directory) -> None:
    path = ("metadata", "annotations", "projectcalico.org/IPv4Address")

    assert directory.locate(NODE, path) == f"{directory.path / 'n1.yaml'}:6"
    assert directory.locate(NODE, ("spec", "nothing")) == f"{directory.path / 'n1.yaml'}:7"


# Noticing


def test_a_file_that_goes_bad_keeps_its_last_good_state(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    before = directory.objects
    (directory.path / "n1.yaml").write_text("apiVersion: v1\nkind: [Node\n")

    assert not clock.look(directory)
    assert not clock.look(directory)
    assert directory.objects == before
    assert [record.getMessage() for record in caplog.records] == [
        f"{directory.path / 'n1.yaml'}:3: not YAML: did not find expected ',' or ']'; what it held before stays"
    ]


def test_a_file_that_is_good_again_counts_again(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (directory.path / "n1.yaml").write_text("{")
    clock.look(directory)
    (directory.path / "n1.yaml").write_text(text(node("n1", "192.0.2.9/24")))

    assert clock.look(directory)
    assert "is good again" in caplog.text
    assert directory.objects[NODE]["metadata"]["annotations"]["projectcalico.org/IPv4Address"] == "192.0.2.9/24"


def test_a_change_in_place_is_noticed(directory: Directory) -> None:
    with open(directory.path / "n1.yaml", "r+") as file:
        file.write(text(node("n1", "192.0.2.2/24")))

    assert clock.look(directory)
    assert not clock.look(directory)


def test_a_replaced_file_is_noticed_at_once(directory: Directory) -> None:
    now = clock.now + 1000
    directory.refresh(now)
    (directory.path / "new").write_text(text(node("n1", "192.0.2.2/24")))
    os.rename(directory.path / "new", directory.path / "n1.yaml")

    assert directory.refresh(now + 0.001)


def test_a_file_is_gone_when_it_is_gone_twice(directory: Directory) -> None:
    content = (directory.path / "n1.yaml").read_text()
    (directory.path / "n1.yaml").unlink()
    assert not clock.look(directory)
    (directory.path / "n1.yaml").write_text(content)  # as some editors do
    assert not clock.look(directory)

    (directory.path / "n1.yaml").unlink()
    clock.look(directory)
    assert clock.look(directory)
    assert NODE not in directory.objects


def test_a_directory_that_goes_away_leaves_the_last_state(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    directory.path.rename(directory.path.with_name("elsewhere"))

    assert not clock.look(directory)
    assert not clock.look(directory)
    assert NODE in directory.objects
    assert len(caplog.records) == 1


def test_looking_at_nothing_new_reads_no_file(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.look(directory)
    monkeypatch.setattr("controller.directory.parse_manifest", lambda *_: pytest.fail("a file was read"))

    assert not clock.look(directory)


async def test_the_source_hands_over_the_newest_state(directory: Directory) -> None:
    source = DirectorySource(directory.path, Calico(), poll_seconds=0.01)
    await source.list()
    address = "projectcalico.org/IPv4WireguardInterfaceAddr"
    for number in range(3):
        await source.annotate(Ref("Node", "n1"), {address: f"10.42.1.{number}"})

    changed = await asyncio.wait_for(source.changed(), 5)

    assert changed[NODE]["metadata"]["annotations"][address] == "10.42.1.2"
    await source.annotate(Ref("Node", "n1"), {"example.com/other": "1"})  # does not concern the mesh
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.changed(), 0.1)


# Writing


def read(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    return manifest


def add_annotation(name: str, value: str) -> Any:
    return lambda manifest: manifest["metadata"]["annotations"].__setitem__(name, value)


async def test_what_is_malformed_from_the_start_is_waited_for(directory: Directory) -> None:
    whole = (directory.path / "n1.yaml").read_text()
    (directory.path / "n1.yaml").write_text("kind: [")
    source = DirectorySource(directory.path, Calico("n1"), poll_seconds=0.01)
    with pytest.raises(SourceError):
        await source.list()
    waiting = asyncio.create_task(source.changed())
    await asyncio.sleep(0.1)
    assert not waiting.done(), "a state without the object would say that it is gone"

    (directory.path / "n1.yaml").write_text(whole)

    assert Ref("Node", "n1") in await asyncio.wait_for(waiting, 5)


def test_a_write_keeps_what_it_does_not_change_and_bumps_the_version(directory: Directory) -> None:
    (directory.path / "n1.yaml").chmod(0o640)

    assert directory.update(NODE, add_annotation("a", "1"))
    assert directory.update(NODE, add_annotation("b", "yes"))

    manifest = read(directory.path / "n1.yaml")
    assert manifest["metadata"].pop("resourceVersion") == "2"
    assert manifest["metadata"]["annotations"] == {"projectcalico.org/IPv4Address": "192.0.2.1/24", "a": "1", "b": "yes"}
    assert (directory.path / "n1.yaml").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in directory.path.iterdir()) == [".lock", "felix.yml", "n1.yaml"]


def test_a_write_that_changes_nothing_is_none(directory: Directory) -> None:
    before = (directory.path / "n1.yaml").stat().st_mtime_ns

    assert not directory.update(NODE, lambda manifest: None)
    assert (directory.path / "n1.yaml").stat().st_mtime_ns == before


def test_what_an_editor_writes_meanwhile_is_not_lost(directory: Directory) -> None:
    tries: list[dict[str, Any]] = []

    def change(manifest: dict[str, Any]) -> None:
        if not tries:  # somebody without our lock, between our reading and our writing
            (directory.path / "n1.yaml").write_text(text(node("n1", "192.0.2.77/24")))
        tries.append(manifest)
        manifest["metadata"]["annotations"]["ours"] = "1"

    directory.update(NODE, change)

    assert len(tries) == 2
    assert read(directory.path / "n1.yaml")["metadata"]["annotations"] == {
        "projectcalico.org/IPv4Address": "192.0.2.77/24",
        "ours": "1",
    }


def test_a_file_that_never_holds_still_is_an_error(directory: Directory) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["metadata"]["annotations"]["ours"] = "1"
        with open(directory.path / "n1.yaml", "a") as file:
            file.write("#\n")

    with pytest.raises(SourceError, match="something else keeps changing it"):
        directory.update(NODE, change)
    assert not list(directory.path.glob("*.tmp"))


def test_objects_are_created_and_deleted(directory: Directory) -> None:
    directory.create(block("10.9.0.0/30", "n1"))
    with pytest.raises(SourceError, match="is there already"):
        directory.create(block("10.9.0.0/30", "n1"))
    clock.look(directory)
    assert Ref("IPAMBlock", "10-9-0-0-30") in directory.objects

    directory.delete(Ref("IPAMBlock", "10-9-0-0-30"))
    directory.delete(Ref("IPAMBlock", "10-9-0-0-30"))
    clock.look(directory)
    clock.look(directory)
    assert Ref("IPAMBlock", "10-9-0-0-30") not in directory.objects


def test_what_is_not_there_cannot_be_written(directory: Directory) -> None:
    with pytest.raises(SourceError, match=r"^there is no Node n9 in "):
        directory.update(Ref("Node", "n9"), lambda manifest: None)


async def test_annotations_are_set_and_removed(directory: Directory) -> None:
    source = DirectorySource(directory.path, Calico())
    (directory.path / "bare.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata:\n  name: bare\n  annotations:\n")
    await source.list()

    await source.annotate(Ref("Node", "bare"), {"a": "1", "b": "2"})
    await source.annotate(Ref("Node", "bare"), {"a": None, "c": None})

    assert read(directory.path / "bare.yaml")["metadata"]["annotations"] == {"b": "2"}


async def test_conditions_are_merged_by_their_type(directory: Directory) -> None:
    source = DirectorySource(directory.path, Calico())
    path = directory.path / "bare.yaml"
    path.write_text("apiVersion: v1\nkind: Node\nmetadata:\n  name: bare\n")
    await source.list()
    before = path.read_bytes()

    await source.merge_status("bare", {"status": {"conditions": [{"$patch": "delete", "type": "A"}]}})
    assert path.read_bytes() == before, "what is not there need not be taken away"

    for change in (
        {"type": "A", "status": "True", "reason": "X"},
        {"type": "B", "status": "True"},
        {"type": "A", "status": "False"},
    ):
        await source.merge_status("bare", {"status": {"conditions": [change]}})
    merged = [{"type": "A", "status": "False", "reason": "X"}, {"type": "B", "status": "True"}]
    assert read(path)["status"]["conditions"] == merged

    await source.merge_status("bare", {"status": {"conditions": [{"$patch": "delete", "type": "A"}]}})
    assert read(path)["status"]["conditions"] == merged[1:]


def test_every_value_survives_being_written(directory: Directory) -> None:
    values = {
        "date": "2023-05-11",
        "octal": "010",
        "word": "yes",
        "colon": "a: b",
        "long": "x " * 300,
        "lines": "a\nb",
        "uni": "é",
    }

    directory.update(NODE, lambda manifest: manifest["metadata"]["annotations"].update(values))
    clock.look(directory)

    assert directory.objects[NODE]["metadata"]["annotations"].items() >= values.items()


WRITER = """
import sys
from pathlib import Path
from controller.directory import Directory
from controller.meshes.calico import Calico
from controller.source import Ref

directory, name = Directory(Path(sys.argv[1])), sys.argv[2]

def count(manifest):
    annotations = manifest["metadata"]["annotations"]
    annotations["total"] = str(int(annotations.get("total", "0")) + 1)
    annotations[name] = str(int(annotations.get(name, "0")) + 1)

for _ in range(200):
    directory.update(Ref("Node", "n1"), count)
"""


@pytest.mark.slow
def test_ten_agents_writing_2000_times_at_once_lose_no_write(directory: Directory) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(directory.path), f"writer{number}"], cwd=Path(__file__).parents[2])
        for number in range(10)
    ]
    reader = Directory(directory.path)
    reader.load()
    torn = 0
    while any(writer.poll() is None for writer in writers):
        clock.look(reader)
        torn += any(file.error is not None for file in reader._files.values())

    assert [writer.returncode for writer in writers] == [0] * 10
    manifest = read(directory.path / "n1.yaml")
    assert manifest["metadata"]["annotations"]["total"] == "2000"
    assert {manifest["metadata"]["annotations"][f"writer{number}"] for number in range(10)} == {"200"}
    assert manifest["metadata"]["resourceVersion"] == "2000"
    assert torn == 0, "a reader has seen half a file"


def test_files_of_one_kind_only_are_enough(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(keyed("n1", "192.0.2.1/24")))
    (tmp_path / "b.yaml").write_text(text(pool("10.9.0.0/16")))

    assert len(Directory(tmp_path).load()) == 2
