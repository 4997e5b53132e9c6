"""The one nftables rule: what this host sends into the interface from another of its addresses gets the interface's address.

A peer accepts from us only addresses that IPAM gave us. A host process that talks to a *service* has its source address
chosen for the service's address, so the node's own, before the destination becomes a pod behind the tunnel; without this rule
such packets are dropped at the other end. Felix has the same rule, but for its own interface's name only (calico.md 4.8, 11).

It is a table of our own, ``wgpy``, so that it collides with nothing, and goes as a whole. Without ``nft``, or without
nftables in the kernel, the feature is off.
"""

import json
import shutil
import subprocess

from controller.model import Family

_NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_TABLE = "wgpy"
_SECONDS = 10.0

_RULESET = """\
table {family} {table}
delete table {family} {table}
table {family} {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{interface}" fib saddr type local fib saddr . oif type != local masquerade comment "{interface}"
    }}
}}
"""


class MasqueradeUnavailable(Exception):
    """This host cannot do it. The message says why, in one line."""


def masqueraded_interface(family: Family) -> str | None:
    """The interface that our rule is for, None if there is no rule."""
    try:
        listing = json.loads(_nft("-j", "list", "table", _NFT_FAMILY[family], _TABLE))
    except MasqueradeUnavailable:
        return None  # no such table, for one
    except json.JSONDecodeError:
        return None
    rules = [item["rule"] for item in listing.get("nftables", []) if "rule" in item]
    return rules[0].get("comment") if len(rules) == 1 else None


def masquerade(family: Family, interface: str) -> None:
    """Have the rule for this interface, and for no other. Raises MasqueradeUnavailable."""
    _nft("-f", "-", ruleset=_RULESET.format(family=_NFT_FAMILY[family], table=_TABLE, interface=interface))


def stop_masquerading(family: Family) -> None:
    """Have no rule."""
    _nft("-f", "-", ruleset=f"table {_NFT_FAMILY[family]} {_TABLE}\ndelete table {_NFT_FAMILY[family]} {_TABLE}\n")


def _nft(*arguments: str, ruleset: str | None = None) -> str:
    path = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise MasqueradeUnavailable("there is no nft on this host")
    try:
        done = subprocess.run([path, *arguments], input=ruleset, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MasqueradeUnavailable(f"nft does not run: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise MasqueradeUnavailable(f"nft: {lines[0]}")
    return done.stdout
