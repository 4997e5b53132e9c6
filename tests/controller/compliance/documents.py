"""A signed report for tests."""

from pathlib import Path
from typing import Any

from controller.compliance.model import statement
from controller.compliance.requirements import FRAMEWORKS
from controller.compliance.signing import SigningKeys
from tests.controller.compliance.histories import START, at, record
from tests.controller.compliance.test_model import HISTORY

NOW = START + 5 * 3600.0


def signed(directory: Path, framework: str = "gdpr") -> dict[str, Any]:
    made = statement(FRAMEWORKS[framework], [record(directory / "n1", *HISTORY)], at(0), at(3.25), NOW, "wgpy 1", "calico")
    return SigningKeys(directory).sign(made, NOW)
