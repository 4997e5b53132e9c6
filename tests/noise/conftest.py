import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vectors() -> dict[str, bytes]:
    """The known handshake of tests/vectors/handshake.json, as bytes."""
    known = json.loads((Path(__file__).parents[1] / "vectors" / "handshake.json").read_text())
    return {name: bytes.fromhex(value) for name, value in known.items() if name != "about"}
