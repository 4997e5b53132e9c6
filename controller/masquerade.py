"""The one nftables rule: what this host sends into the interface from another of its addresses gets the interface's address.

A peer accepts from us only addresses that IPAM gave us. A host process that talks to a *service* has its source address
chosen for the service's address, so the node's own, before the destination becomes a pod behind the tunnel; without this rule
such packets are dropped at the other end. Felix has the same rule, but for its own interface's name only (calico.md 4.8, 11).

It is a table of our own, ``wgpy``. Without ``nft``, or without nftables in the kernel, the feature is off.
"""

from controller.model import Family
from controller.nftables import FAMILIES, NftablesRefusal, load, read_table, remove_table

TABLE = "wgpy"

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


class MasqueradeUnavailable(NftablesRefusal):
    """This host cannot do it. The message says why, in one line."""


def masqueraded_interface(family: Family) -> str | None:
    """The interface that our rule is for, None if there is no rule."""
    rules = [item["rule"] for item in read_table(family, TABLE) if "rule" in item]
    return rules[0].get("comment") if len(rules) == 1 else None


def masquerade(family: Family, interface: str) -> None:
    """Have the rule for this interface, and for no other. Raises MasqueradeUnavailable."""
    try:
        load(_RULESET.format(family=FAMILIES[family], table=TABLE, interface=interface))
    except NftablesRefusal as refusal:
        raise MasqueradeUnavailable(str(refusal)) from None


def stop_masquerading(family: Family) -> None:
    """Have no rule. Raises MasqueradeUnavailable."""
    try:
        remove_table(family, TABLE)
    except NftablesRefusal as refusal:
        raise MasqueradeUnavailable(str(refusal)) from None
