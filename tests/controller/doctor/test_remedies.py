"""Every finding of the agent has a reason to care and a command."""

import re
from pathlib import Path

import pytest

from controller import agent, findings
from controller.desired import DEFAULT_NUMBERS
from controller.doctor.remedies import REMEDIES, UNKNOWN, remedy
from controller.findings import Finding

TOLD = {
    reason
    for module in (findings, agent)
    for reason in re.findall(r'Finding\(\s*"(\w+)"', Path(str(module.__file__)).read_text())
}


def test_there_is_one_for_each_reason_of_the_agent() -> None:
    assert len(TOLD) > 15
    assert set(REMEDIES) >= TOLD


@pytest.mark.parametrize("reason", sorted(REMEDIES))
def test_names_are_filled_in(reason: str) -> None:
    found = remedy(Finding(reason, "IPPool 10.0.0.0/8", "is wrong"), "n1", "/state")

    assert found.why and found.commands
    for command in found.commands:
        assert not re.search(r"{[a-z_]+}", command), command
        assert command.count("'") % 2 == 0 and command.count("{") == command.count("}")


def test_the_commands_name_what_it_is_about() -> None:
    nat = remedy(Finding("NatOutgoingOff", "IPPool 10.0.0.0/8", "off"), "n1", "/state")
    assert nat.commands[0].endswith("grep '10.0.0.0/8'")
    assert nat.commands[1].endswith("""-p '{"spec":{"natOutgoing":true}}'""")
    assert remedy(Finding("StaleKey", "IPv4", "x"), "n1", "/state").commands[0].startswith("kubectl annotate node n1 ")
    assert remedy(Finding("DuplicateKey", "nodes a, b (IPv4)", "x"), "n1", "/state").commands[0].startswith("rm /state/ipv4.key ")


@pytest.mark.parametrize("reason", ["TableTaken", "MarkTaken"])
def test_a_number_that_is_taken_is_not_what_is_suggested(reason: str) -> None:
    """The numbers that collide may be the agent's own defaults."""
    commands = " ".join(remedy(Finding(reason, "IPv4", "is taken"), "n1", "/state").commands)

    assert not any(str(numbers.table) in commands or hex(numbers.fwmark) in commands for numbers in DEFAULT_NUMBERS.values())


def test_what_is_not_known_points_to_the_message() -> None:
    assert remedy(Finding("New", "n1", "x"), "n1", "/state").why == UNKNOWN.why
