"""What every Node has, whatever the mesh: the addresses in its status and its ranges of pod addresses (Kubernetes' own fields).

Both are read as Kubernetes means them; which of the addresses is the right one is for a mesh to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.model import Address
from controller.observe import Path, Reader, parse_address, parse_prefix
from wgpy.config import Prefix

NODE = "Node"

PATHS = (("spec", "podCIDR"), ("spec", "podCIDRs"), ("status", "addresses"))
"""The fields that are read here, for :func:`controller.observe.pick`."""


def status_addresses(reader: Reader) -> list[Address]:
    """The addresses of ``status.addresses``, internal ones first."""
    return typed_addresses(reader, ("status", "addresses"), "address", ("InternalIP", "ExternalIP"))


def typed_addresses(reader: Reader, path: tuple[str, ...], field: str, types: Sequence[str]) -> list[Address]:
    """The addresses of a list of mappings ``{"type": ..., field: ...}``: those of ``types``, in the order of these."""
    found: dict[str, list[Address]] = {kind: [] for kind in types}
    for index, entry in enumerate(reader.list(*path)):
        if not isinstance(entry, Mapping):
            reader.problem((*path, index), "not a mapping")
        elif isinstance(kind := entry.get("type"), str) and kind in found:
            address = reader.parse((*path, index, field), entry.get(field), parse_address)
            if address is not None:
                found[kind].append(address)
    return [address for addresses in found.values() for address in addresses]


def pod_cidrs(reader: Reader) -> list[Prefix]:
    """The node's ranges: ``spec.podCIDRs``, or the one of ``spec.podCIDR`` where an old cluster has only that."""
    listed = prefixes(reader, ("spec", "podCIDRs"))
    if listed or reader.list("spec", "podCIDRs"):
        return listed
    single = reader.parse(("spec", "podCIDR"), reader.value("spec", "podCIDR"), parse_prefix)
    return [] if single is None else [single]


def prefixes(reader: Reader, path: tuple[str, ...]) -> list[Prefix]:
    """The ranges in a list of strings."""
    return list(_parsed(reader, [((*path, index), value) for index, value in enumerate(reader.list(*path))]))


def _parsed(reader: Reader, values: list[tuple[Path, Any]]) -> Iterator[Prefix]:
    for path, value in values:
        prefix = reader.parse(path, value, parse_prefix)
        if prefix is not None:
            yield prefix
