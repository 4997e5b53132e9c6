"""Foreign WireGuards to test against, and what happens where one is missing.

A missing peer skips the test that asks for it, with the reason. ``WGPY_REQUIRE_PEERS`` names those whose absence is a
failure instead, separated by commas (``wireguard-go``; ``all`` is allowed): continuous integration sets it.
"""

import os
import shutil
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "bin"
"""Where ``make setup`` puts what it builds."""


def wireguard_go() -> str:
    """The path of wireguard-go. Its program is named ``wireguard`` where ``go install`` put it."""
    return find_peer("wireguard-go", "wireguard-go", "wireguard")


def find_peer(name: str, *commands: str) -> str:
    """The path of the first of ``commands`` that is installed; without one, skips or fails the test."""
    path = f"{CACHE}{os.pathsep}{os.environ.get('PATH', '')}"
    for command in commands:
        found = shutil.which(command, path=path)
        if found:
            return found
    required = os.environ.get("WGPY_REQUIRE_PEERS", "").replace(",", " ").split()
    reason = f"{name} is not installed: run make setup"
    if name in required or "all" in required:
        pytest.fail(f"{reason} (WGPY_REQUIRE_PEERS asks for it)")
    pytest.skip(reason)
