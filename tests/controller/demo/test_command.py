import os
from pathlib import Path

import pytest

from controller.demo import command as demo_command
from controller.demo import topology
from controller.demo.command import main

root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.mark.parametrize(
    "wrong", [["--nodes", "3"], ["--nodes", "21"], ["--nodes", "four"], ["--nodes=-4"], ["-o", "yaml"], ["n1"]]
)
def test_a_wrong_option_is_refused_with_status_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(wrong)

    assert exited.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_root_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert main([]) == 2
    assert capsys.readouterr().err == "wgpy demo: network namespaces need root: run it with sudo\n"


@root
@pytest.mark.parametrize(("command", "package"), [("ip", "iproute2"), ("iperf3", "iperf3"), ("ping", "iputils-ping")])
def test_a_missing_command_is_named_with_its_package(
    command: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in demo_command.COMMANDS:
        if name != command:
            (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"wgpy demo: {command} is not installed") and f"apt-get install {package}" in error
    assert error.count("\n") == 1


@root
def test_cleaning_a_run_that_is_not_there_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--clean", "none"]) == 1
    assert "there is no run none" in capsys.readouterr().err


@root
@pytest.mark.e2e
def test_cleaning_removes_what_was_kept_and_leaves_the_living_alone(capsys: pytest.CaptureFixture[str]) -> None:
    kept = topology.Topology.create()
    kept.keep()
    with topology.Topology.create() as living:
        assert main(["--clean", kept.run]) == 0
        assert main(["--clean", living.run]) == 1
        assert topology.is_alive(living.run)

    output, errors = capsys.readouterr()
    assert output == f"removed {kept.run}\n"
    assert f"{living.run} is still at work" in errors
    assert kept.run not in topology.runs()
