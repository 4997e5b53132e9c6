"""How objects are read, whatever the mesh: pure, and it never raises. What cannot be read is a :class:`Problem`.

What is wrong with an object costs that field and nothing else: a Node with a garbled key is a node without a key.
Configuration is different. A default in the place of what somebody meant may switch encryption off, so its problems are
marked, and the agent does not act on a configuration that has any: it does not start, or keeps the last good one.

A mesh (``meshes``) reads its objects through :class:`Reader`, with the parsers below, and trims them with :func:`pick`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

from controller.model import Address, Cluster, Family, Node
from controller.source import Manifest, Ref
from wgpy.config import NO_KEY, Prefix
from wgpy.wgconf import parse_key

Path = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in an object that cannot be read. ``is_configuration``: it is in the configuration that concerns us."""

    ref: Ref
    path: Path
    message: str
    is_configuration: bool = False

    def __str__(self) -> str:
        return ": ".join((str(self.ref), *([".".join(map(str, self.path))] if self.path else []), self.message))


@dataclass(frozen=True, slots=True)
class Observation:
    """A cluster, and what could not be read of it."""

    cluster: Cluster
    problems: tuple[Problem, ...]

    @property
    def configuration_problems(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.is_configuration)


def keep_addresses(cluster: Cluster, before: Cluster) -> Cluster:
    """``cluster``, where a node that has lost its address keeps the one it had before.

    As in Felix only the end of the Node ends its address. Otherwise a slip in an annotation would make packets go in clear.
    """
    kept = {
        name: _keep_address(node, old)
        for name, node in cluster.nodes.items()
        if (node.ipv4.address is None or node.ipv6.address is None) and (old := before.nodes.get(name)) is not None
    }
    kept = {name: node for name, node in kept.items() if node is not cluster.nodes[name]}
    return replace(cluster, nodes={**cluster.nodes, **kept}) if kept else cluster


def _keep_address(node: Node, before: Node) -> Node:
    if node.ipv4.address is None and before.ipv4.address is not None:
        node = replace(node, ipv4=replace(node.ipv4, address=before.ipv4.address))
    if node.ipv6.address is None and before.ipv6.address is not None:
        node = replace(node, ipv6=replace(node.ipv6, address=before.ipv6.address))
    return node


def pick(manifest: Manifest, *paths: tuple[str, ...]) -> dict[str, Any]:
    """An object with its identity and the fields at ``paths``, as far as it has them.

    What lies on the way to a field and is no mapping stays as it is, so that it is the same problem as before.
    """
    picked: dict[str, Any] = {}
    for path in (("apiVersion",), ("kind",), ("metadata", "name"), *paths):
        source: Any = manifest
        target = picked
        for name in path[:-1]:
            source = source.get(name)
            if not isinstance(source, Mapping):
                if source is not None:
                    target[name] = source
                break
            target = target.setdefault(name, {})
        else:
            if (value := source.get(path[-1])) is not None:
                target[path[-1]] = value
    return picked


class Reader:
    """One object, and how to take fields out of it: what is bad is noted as a problem and then counts as absent."""

    def __init__(self, ref: Ref, manifest: Manifest, problems: list[Problem], is_configuration: bool = False) -> None:
        self.ref = ref
        self.manifest = manifest
        self._problems = problems
        self._is_configuration = is_configuration

    def problem(self, path: Path, message: str) -> None:
        problem = Problem(self.ref, path, message, self._is_configuration)
        if problem not in self._problems[-8:]:  # a bad parent is met once for each of its fields
            self._problems.append(problem)

    def value(self, *path: str) -> Any:
        value: Any = self.manifest
        for depth, name in enumerate(path):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                self.problem(path[:depth], "not a mapping")
                return None
            value = value.get(name)
        return value

    def list(self, *path: str) -> list[Any]:
        value = self.value(*path)
        if isinstance(value, list):
            return value
        if value is not None:
            self.problem(path, "not a list")
        return []

    def mapping(self, *path: str) -> Mapping[str, Any]:
        value = self.value(*path)
        if isinstance(value, Mapping):
            return value
        if value is not None:
            self.problem(path, "not a mapping")
        return {}

    def parse(self, path: Path, value: Any, parser: Callable[[Any], T]) -> T | None:
        """What ``parser`` makes of the value, which lies at ``path``. An empty one is none."""
        if value is None or value == "":
            return None
        try:
            return parser(value)
        except ValueError as error:
            self.problem(path, str(error))
            return None

    def annotation(self, name: str) -> Any:
        return self.value("metadata", "annotations", name)

    def parse_annotation(self, name: str, parser: Callable[[Any], T]) -> T | None:
        return self.parse(("metadata", "annotations", name), self.annotation(name), parser)


# Values: each parser raises ValueError with a message that says what is expected -------------------------------------


def parse_bool(value: Any) -> bool:
    text = str(value).lower()
    if isinstance(value, bool | str) and text in ("true", "1", "yes", "y", "t"):
        return True
    if isinstance(value, bool | str) and text in ("false", "0", "no", "n", "f"):
        return False
    raise ValueError(f"neither true nor false: {shown(value)}")


def parse_integer(low: int, high: int) -> Callable[[Any], int]:
    """A parser of whole numbers from ``low`` to ``high``, or of strings of their digits."""

    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not a number from {low} to {high}: {shown(value)}")
        return value

    return parse


def parse_public_key(value: Any) -> bytes | None:
    """The zero key stands for none."""
    key = parse_key(value if isinstance(value, str) else "")
    return key if key != NO_KEY else None


def parse_address(value: Any) -> Address:
    if isinstance(value, str) and "%" not in value:
        try:
            return ip_address(value)
        except ValueError:
            pass
    raise ValueError(f"not an IP address: {shown(value)}")


def parse_interface(value: Any) -> Address:
    """The address of one in CIDR form."""
    if isinstance(value, str) and "/" in value and "%" not in value:
        try:
            return ip_interface(value).ip
        except ValueError:
            pass
    raise ValueError(f"not an address with its prefix length, such as 192.0.2.1/24: {shown(value)}")


def parse_prefix(value: Any) -> Prefix:
    if isinstance(value, str) and "/" in value and "%" not in value:
        try:
            return ip_network(value, strict=False)
        except ValueError:
            pass
    raise ValueError(f"not a range such as 192.0.2.0/26: {shown(value)}")


def of_family(family: Family, parser: Callable[[Any], Address]) -> Callable[[Any], Address]:
    """``parser``, for addresses of one family only."""

    def parse(value: Any) -> Address:
        address = parser(value)
        if address.version != family.value:
            raise ValueError(f"not an {family} address: {address}")
        return address

    return parse


def shown(value: Any) -> str:
    """A value as it stands in a message: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
