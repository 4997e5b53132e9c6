"""Scripts that complete the command line: made from the commands' own parsers, and tried in the shells that are here."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from controller.cli import agent, doctor, mesh
from controller.completion import SHELLS, main, parser_of, script, whole

VERBS = {"agent": agent, "doctor": doctor, "mesh": mesh}


def test_a_parser_is_met_before_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(mesh)

    assert parser is not None and parser.prog == "wgpy mesh"
    assert capsys.readouterr() == ("", "")
    assert parser_of(lambda arguments: 0) is None
    assert argparse.ArgumentParser().parse_args([]) == argparse.Namespace(), "parsers read again"


def test_all_commands_in_one() -> None:
    text = whole(VERBS).format_help()
    assert all(name in text for name in VERBS)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str) -> None:
    text = script(shell)
    assert "wgpy" in text and "showconf" in text and "private-key" not in text


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    (tmp_path / "script").write_text(script("bash"))
    line = " ".join(f"'{word}'" for word in words)
    ask = (
        f"source {tmp_path / 'script'}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        f"_shtab_wgpy wgpy '{words[-1]}' '{words[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    assert {"show", "showconf"} <= set(completed(tmp_path, "wgpy", "sho"))
    assert "--output" in completed(tmp_path, "wgpy", "show", "--")
    assert completed(tmp_path, "wgpy", "show", "--output", "") == ["json"]
    assert completed(tmp_path, "wgpy", "nothing-like-it") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one(tmp_path: Path, shell: str) -> None:
    """Its shell can read it, where that is installed; bash always is."""
    if shell != "bash" and shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(script(shell))
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=20)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bash"]) == 0
    assert "complete " in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        main(["tcsh"])
    assert refused.value.code == 2
