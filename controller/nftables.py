"""nftables, through its own command. What is ours are whole tables, so that they collide with nothing and go as a whole."""

import json
import shutil
import subprocess
from typing import Any

from controller.model import Family

FAMILIES = {Family.IPV4: "ip", Family.IPV6: "ip6"}

_SECONDS = 10.0


class NftablesRefusal(Exception):
    """There is no ``nft`` here, or it would not. The message says why, in one line."""


def load(ruleset: str) -> None:
    """Have the ruleset: all of it or, with NftablesRefusal, nothing of it."""
    _nft("-f", "-", ruleset=ruleset)


def remove_table(family: Family, table: str) -> None:
    """Have no such table."""
    load(f"table {FAMILIES[family]} {table}\ndelete table {FAMILIES[family]} {table}\n")


def read_table(family: Family, table: str) -> list[dict[str, Any]]:
    """The objects of a table as libnftables-json(5) has them; none where there is no such table, or no nftables at all."""
    try:
        listing = json.loads(_nft("-j", "list", "table", FAMILIES[family], table))
    except (NftablesRefusal, json.JSONDecodeError):
        return []
    return list(listing.get("nftables", []))


def _nft(*arguments: str, ruleset: str | None = None) -> str:
    path = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise NftablesRefusal("there is no nft on this host")
    try:
        done = subprocess.run([path, *arguments], input=ruleset, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftablesRefusal(f"nft does not run: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise NftablesRefusal(f"nft: {lines[0]}")
    return done.stdout
