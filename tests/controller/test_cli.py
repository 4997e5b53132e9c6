"""Bad input on the command line is one line, and nothing is touched."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli import agent, leave

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--metrics", "9588"], "argument --metrics: not ADDRESS:PORT, such as 127.0.0.1:9588: '9588'"),
        (["--mesh", "cillium"], "argument --mesh: invalid choice: 'cillium'"),
        (["--directory", "d", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--directory", "d", "--dir", "e"], "unrecognized arguments: --dir e"),
        (["--directory", "d", "--table", "1"], "argument --table: tables up to 250 are Felix's"),
        (["--directory", "d", "--table", "254"], "argument --table: tables up to 250 are Felix's"),
        (["--directory", "d", "--table-v6", "x"], "argument --table-v6: not a number from 1 to 4294967295: 'x'"),
        (["--directory", "d", "--fwmark", "0x10000"], "argument --fwmark: a mark lies within its mask"),
        (["--directory", "d", "--fwmark", "0x4000"], "argument --fwmark: a mark lies within its mask"),
        (["--directory", "d", "--fwmark", "3/1"], "argument --fwmark: a mark lies within its mask"),
        (["--directory", "d", "--fwmark", "0"], "argument --fwmark: not a number from 1"),
        (["--directory", "d", "--rule-priority", "0"], "argument --rule-priority: not a number from 1 to 32765: '0'"),
        (["--directory", "d", "--interface", "cali0"], "argument --interface: names with cali in front"),
        (["--directory", "d", "--interface", "sixteen-letters-"], "argument --interface: not the name of an interface"),
        (["--directory", "d", "--resync", "91"], "argument --resync: not from 0.01 to 90 seconds: '91'"),
        (["--directory", "d", "--poll", "soon"], "argument --poll: not from 0.01 to 90 seconds: 'soon'"),
        (["--directory", "d", "--data-plane", "wireguard-go"], "--data-plane goes with --spawn"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        agent(arguments)

    printed = capsys.readouterr().err
    assert raised.value.code == 2
    assert printed.startswith(f"wgpy agent: {complaint}") and printed.endswith(" (see: wgpy agent --help)\n")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("option", ["--kubeconfig", "--context"])
def test_a_directory_has_no_api_server(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent(["--directory", "d", option, "x"]) == 1

    assert capsys.readouterr().err.startswith("wgpy agent: --directory is a cluster without an API server")


def test_leave_has_no_options_of_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        leave(["--directory", "d", "--spawn"])

    assert capsys.readouterr().err.startswith("wgpy leave: unrecognized arguments: --spawn")


def run(tmp_path: Path, *arguments: str, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    words = [*before, sys.executable, "-m", "controller", *arguments, "--state", str(tmp_path / "state")]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=30)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
@pytest.mark.parametrize("verb", ["agent", "leave"])
def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path, verb: str) -> None:
    done = run(tmp_path, verb, "--directory", str(tmp_path / "none"), "--node", "n1")

    assert done.returncode == 1
    assert done.stderr == f"wgpy {verb}: cannot read the directory {tmp_path / 'none'}: No such file or directory\n"


@needs_root
def test_an_empty_directory_has_no_such_node(tmp_path: Path) -> None:
    done = run(tmp_path, "agent", "--directory", str(tmp_path), "--node", "n1")

    assert done.returncode == 1
    assert done.stderr == (
        "wgpy agent: there is no node 'n1' in the cluster, only none at all: say with --node which one this is\n"
    )


@needs_root
@pytest.mark.parametrize("verb", ["agent", "leave"])
def test_flannels_mesh_needs_its_net_conf(tmp_path: Path, verb: str) -> None:
    options = ("--directory", str(tmp_path), "--mesh", "flannel")

    without, wrong = run(tmp_path, verb, *options), run(tmp_path, verb, *options, "--net-conf", str(tmp_path / "none"))

    assert without.returncode == wrong.returncode == 1
    assert without.stderr.startswith(f"wgpy {verb}: Flannel's networks stand in no object: ")
    assert wrong.stderr == f"wgpy {verb}: cannot read {tmp_path / 'none'}: No such file or directory\n"


@needs_root
@pytest.mark.parametrize(("kind", "yields"), [("bridge", True), ("no-such-kind", False)])
def test_the_kernel_is_asked_once_whether_to_yield_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, yields: bool
) -> None:
    """A kernel that has bridges stands for one that has WireGuard."""
    seen = []

    async def main(options: argparse.Namespace, _: object) -> None:
        seen.append(options.yield_to_kernel)

    monkeypatch.setattr("controller.cli._agent", main)
    monkeypatch.setattr("controller.cli.FELIX_LINK_KIND", kind)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)

    for number, option in enumerate(("--yield-to-kernel", "--no-yield-to-kernel")):
        state = str(tmp_path / f"state-{number}")
        assert agent(["--directory", str(tmp_path), "--state", state, "--node", "n1", option]) == 0

    assert seen == [yields, False]


SHIPPED = sorted((ROOT / "deploy" / "kustomize").rglob("*.yaml"))


def commands(value: Any) -> Iterator[list[str]]:
    """The agent's command lines in a manifest, and in the patches inside of one."""
    if isinstance(value, str) and "\n" in value:
        for document in yaml.safe_load_all(value):
            yield from commands(document)
    elif isinstance(value, dict):
        if value.get("command", [])[:2] == ["wgpy", "agent"]:
            yield [*value["command"], *value.get("args", [])]
        yield from (found for each in value.values() for found in commands(each))
    elif isinstance(value, list):
        yield from (found for each in value for found in commands(each))


def test_the_agent_understands_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    found = [words for path in SHIPPED for words in commands(path.read_text())]
    assert found  # what components add to it, tests/deploy looks at
    for words in found:
        with pytest.raises(SystemExit):
            agent([*words[2:], "--frobnicate"])
        assert capsys.readouterr().err.startswith("wgpy agent: unrecognized arguments: --frobnicate ("), words


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_without_the_capability_it_says_which(tmp_path: Path) -> None:
    drop = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    done = run(tmp_path, "agent", "--directory", str(tmp_path), before=drop)

    assert done.returncode == 1
    assert done.stderr.startswith("wgpy agent: needs CAP_NET_ADMIN to configure interfaces and routes: ")
    assert not (tmp_path / "state").exists()


@needs_root
def test_both_families_need_an_interface_of_their_own(tmp_path: Path) -> None:
    done = run(tmp_path, "agent", "--directory", str(tmp_path), "--interface", "wg0", "--interface-v6", "wg0")

    assert done.returncode == 1 and "are the same" in done.stderr


def test_help_says_what_the_verbs_do(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (agent, leave):
        with pytest.raises(SystemExit) as raised:
            verb(["--help"])
        assert raised.value.code == 0
    assert "--directory DIR" in capsys.readouterr().out


@needs_root
@pytest.mark.parametrize(
    ("variable", "options", "watched"),
    [
        ("", [], None),
        ("", ["--detect-leaks"], ()),
        ("", ["--detect-leaks", "eth0,eth1"], ("eth0", "eth1")),
        ("true", [], ()),
        ("false", [], None),
        ("bond0", [], ("bond0",)),
        ("bond0", ["--detect-leaks", "eth0"], ("eth0",)),
    ],
)
def test_which_links_are_watched_for_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, options: list[str], watched: tuple[str, ...] | None
) -> None:
    seen = []

    async def main(options: argparse.Namespace, _: object) -> None:
        seen.append(options.detect_leaks)

    monkeypatch.setattr("controller.cli._agent", main)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setenv("WGPY_DETECT_LEAKS", variable)

    assert agent(["--directory", str(tmp_path), "--state", str(tmp_path / "state"), "--node", "n1", *options]) == 0

    assert seen == [watched]


def test_what_is_no_link_is_not_watched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WGPY_DETECT_LEAKS", "eth 0")
    for arguments in ([], ["--detect-leaks", "eth0,,"]):
        with pytest.raises(SystemExit):
            agent(["--directory", "d", *arguments])
        assert "argument --detect-leaks: not names of interfaces" in capsys.readouterr().err
