"""What the doctor says, and its exit status."""

import io
import json

import pytest
import yaml
from rich.console import Console

from controller.doctor.checks import CHECKS
from controller.doctor.command import look_at, run
from controller.doctor.facts import Facts, FamilyFacts
from controller.findings import Finding
from controller.model import Family
from controller.state import Link

WELL = Facts(
    "n1",
    1000.0,
    agent_runs=True,
    families=(FamilyFacts(Family.IPV4, "wg", 51820, 5182, 0x1000, 0x1000, listen_port=51820, link=Link(True, 1440)),),
)
ILL = Facts("n1", 1000.0, agent_runs=True, families=WELL.families, tun_error="No such file or directory")


def test_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(iter([WELL]), "text") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "n1" and said[-1] == "nothing is wrong"
    assert len(said) >= len(CHECKS) + 2


def test_what_is_wrong_why_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(iter([ILL]), "text") == 1
    said = capsys.readouterr().out
    assert (
        " wrong  TUN device\n        NoTun: /dev/net/tun cannot be used: No such file or directory\n          why:  a data plane"
        in said
    )
    assert "\n          mend: modprobe tun\n                mkdir -p /dev/net && mknod" in said
    assert said.endswith("1 finding\n")


def test_what_could_not_be_looked_at_is_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(iter([Facts("n1", 1.0, agent_runs=None, families=WELL.families)]), "text") == 0
    assert "     ?  agent\n        not looked at: whether an agent runs\n" in capsys.readouterr().out


def test_without_a_cluster_the_status_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(iter([Facts("n1", 1.0, agent_runs=True, is_known=False, source_error="gone")]), "text") == 2
    said, errors = capsys.readouterr()
    assert errors.startswith("wgpy doctor: without a cluster")
    assert "     ?  membership, and the 15 checks after it\n        not looked at: there is no cluster to go by\n" in said
    assert [line.split("  ")[-1] for line in said.splitlines() if line.startswith("    ok  ")] == [
        "TUN device",
        "capabilities",
        "clock",
    ]


def test_where_the_cluster_has_no_such_node_nothing_else_of_it_is_called_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(iter([Facts("n9", 1.0, agent_runs=True, is_known=False)]), "text") == 1
    said = capsys.readouterr().out
    assert " wrong  membership\n        NoSuchNode: " in said
    assert said.count("not looked at: the cluster has no node n9\n") == 1 and "    ok  handshakes" not in said


def test_on_a_low_terminal_what_is_well_is_counted() -> None:
    def drawn(facts: Facts, height: int) -> list[str]:
        drawn_on = io.StringIO()
        screen = Console(file=drawn_on, force_terminal=True, width=200, height=height, color_system=None)
        screen.print(look_at(facts).picture(screen))
        return drawn_on.getvalue().splitlines()

    assert len(drawn(ILL, 40)) > len(CHECKS)
    assert drawn(ILL, 20)[:3] == ["n1", f"    ok  {len(CHECKS) - 2} checks", " wrong  TUN device"]


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_for_programs(capsys: pytest.CaptureFixture[str], output: str, read: "type[object]") -> None:
    assert run(iter([ILL]), output) == 1
    document = read(capsys.readouterr().out)  # type: ignore[call-arg]
    assert document["healthy"] is False  # type: ignore[index]
    (tun,) = [check for check in document["checks"] if check["name"] == "TUN device"]  # type: ignore[index]
    assert tun["findings"][0]["reason"] == "NoTun" and tun["findings"][0]["remedies"][0] == "modprobe tun"


def test_hints_are_no_findings() -> None:
    hint = Finding("Hint", "n1", "as wished", is_warning=False)
    assert run(iter([Facts("n1", 1.0, agent_runs=True, families=WELL.families, findings=(hint,))]), "json") == 0
