"""Felix's configuration: which parameters concern WireGuard, and which of several values is in force. Pure.

Field by field the first that is set counts: the environment (``FELIX_<parameter>``), the FelixConfiguration of the node
(``node.<name>``), the oldest one whose ``nodeSelector`` matches the node, ``default``, Felix's own default. Within one object
an annotation named after the parameter wins over the field. The environment is our own process's: calico-node's cannot be
seen, so what is set there has to be set for the agent, too.

``wireguardThreadingEnabled`` is not here: it spreads the kernel's work over threads, and a TUN device has none of that.
Source: calico.md 1; ``felix/config/config_params.go``, ``param_types.go``.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from controller.meshes.selector import parse_selector
from controller.model import FelixConfiguration, WireguardConfiguration
from controller.observe import Problem, Reader, parse_bool, parse_integer, shown
from controller.source import Manifest, Ref

DEFAULT_CONFIGURATION = "default"
NODE_CONFIGURATION_PREFIX = "node."
ANNOTATION_PREFIX = "config.projectcalico.org/"
ENVIRONMENT_PREFIX = "felix_"
"""In lower case: names of variables may be in any."""

SHORTEST_REFRESH_SECONDS = 1.0
LONGEST_TABLE = 0xFFFFFFFF

Configurations = Sequence[tuple[Ref, Manifest]]


class _Refused:
    """Stands for: ``none`` cannot be meant."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, by the name of its field in a FelixConfiguration. ``name`` is what environment and annotations call it;
    ``none`` what the literal ``none`` means there."""

    field: str
    parse: Callable[[Any], Any]
    none: Any = _Refused
    name: str = ""

    @property
    def parameter(self) -> str:
        return self.name or self.field[0].upper() + self.field[1:]

    def value(self, raw: Any) -> Any:
        """Raises ValueError."""
        if not isinstance(raw, str) or raw.strip().lower() != "none":
            return self.parse(raw)
        if self.none is _Refused:
            raise ValueError("cannot be none: set a value, or take it out")
        return self.none


def read(
    configurations: Configurations,
    node_name: str,
    labels: Mapping[str, str],
    environment: Mapping[str, str],
    problems: list[Problem],
) -> FelixConfiguration:
    """What is in force on the node ``node_name`` with these ``labels``."""
    readers = {ref.name: Reader(ref, manifest, problems, is_configuration=True) for ref, manifest in configurations}
    selected = _selected(readers.values(), labels)
    values: dict[str, Any] = {}
    for name in (DEFAULT_CONFIGURATION, *selected[:1], NODE_CONFIGURATION_PREFIX + node_name):
        if reader := readers.get(name):
            values |= _fields(reader)
    return replace(_configuration(values | _variables(environment, problems)), selected=selected)


def _selected(readers: Iterable[Reader], labels: Mapping[str, str]) -> tuple[str, ...]:
    """The names of those that select the node, the oldest first. ``default`` and those of a node have no selector."""
    found = []
    for reader in readers:
        name = reader.ref.name
        if name == DEFAULT_CONFIGURATION or name.startswith(NODE_CONFIGURATION_PREFIX):
            continue
        selector = reader.parse(("spec", "nodeSelector"), reader.value("spec", "nodeSelector"), parse_selector)
        if selector is not None and selector(labels):
            found.append((str(reader.value("metadata", "creationTimestamp") or "~"), name))  # no time yet: the youngest
    return tuple(name for _, name in sorted(found))


def _fields(reader: Reader) -> dict[str, Any]:
    """The parameters one object sets."""
    values = {}
    for parameter in PARAMETERS:
        value = reader.parse_annotation(ANNOTATION_PREFIX + parameter.parameter, parameter.value)
        if value is None:
            value = reader.parse(("spec", parameter.field), reader.value("spec", parameter.field), parameter.value)
        if value is not None:
            values[parameter.field] = value
    return values


def _variables(environment: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    """The parameters the environment sets. An empty variable is none."""
    variables = {name.lower(): name for name in sorted(environment)}
    values = {}
    for parameter in PARAMETERS:
        name = variables.get(ENVIRONMENT_PREFIX + parameter.parameter.lower())
        if name is not None:
            reader = Reader(Ref("environment variable", name), {}, problems, is_configuration=True)
            value = reader.parse((), environment[name], parameter.value)
            if value is not None:
                values[parameter.field] = value
    return values


def _configuration(values: Mapping[str, Any]) -> FelixConfiguration:
    base = FelixConfiguration()
    ipv6 = _of_family(base.ipv6, "V6", values)
    has_ipv6 = values.get("ipv6Support", True)
    masks = (values.get("iptablesMarkMask", base.mark_mask), values.get("nftablesMarkMask", base.mark_mask))
    return replace(
        base,
        **{ours: values[theirs] for ours, theirs in _SHARED_FIELDS.items() if theirs in values},
        ipv4=_of_family(base.ipv4, "", values),
        ipv6=replace(ipv6, enabled=ipv6.enabled and has_ipv6),
        lacks_ipv6=ipv6.enabled and not has_ipv6,
        mark_mask=masks[0] | masks[1],
        syncs_routes=not values.get("routeSyncDisabled", False),
        table_ranges=values.get("routeTableRanges") or values.get("routeTableRange") or base.table_ranges,
    )


def _of_family(base: WireguardConfiguration, suffix: str, values: Mapping[str, Any]) -> WireguardConfiguration:
    fields = {ours: values[theirs + suffix] for ours, theirs in _FAMILY_FIELDS.items() if theirs + suffix in values}
    return replace(base, **fields)


# Values -------------------------------------------------------------------------------------------------------------

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _parse_seconds(value: Any) -> float:
    """A Go duration, or a number of seconds."""
    text = str(value)
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    if re.fullmatch(r"([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+", text):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", text))
    raise ValueError(f"not a duration such as 25s: {shown(value)}")


def _parse_keepalive(value: Any) -> int:
    """WireGuard knows whole seconds only, and Felix cuts the rest off, too."""
    seconds = _parse_seconds(value)
    if seconds >= 1 << 16:
        raise ValueError(f"longer than 65535s: {shown(value)}")
    return int(seconds)


def _parse_refresh(value: Any) -> float:
    return max(_parse_seconds(value), SHORTEST_REFRESH_SECONDS) if _parse_seconds(value) else math.inf


def _parse_interface_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", value) and value not in (".", ".."):
        return value
    raise ValueError(f"not the name of an interface (1 to 15 of A-Z a-z 0-9 _ . -): {shown(value)}")


def _parse_mtu(value: Any) -> int:
    if value in (0, "0") and not isinstance(value, bool):
        return 0  # automatic
    return parse_integer(68, 65535)(value)


def _parse_mask(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}", value):
        value = int(value, 16)
    mask = parse_integer(0, 0xFFFFFFFF)(value)
    if mask.bit_count() < 2:
        raise ValueError(f"not a mask of two bits or more: {shown(value)}")
    return mask


def _parse_pattern(value: Any) -> str:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        raise ValueError(f"not a regular expression: {shown(value)}") from None
    return str(value)


def _parse_workloads(value: Any) -> frozenset[str]:
    """The beginnings of the names of pods' interfaces, with commas in between."""
    prefixes = value.split(",") if isinstance(value, str) else [""]
    if not all(re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", prefix) for prefix in prefixes):
        raise ValueError(f"not the beginnings of interfaces' names, such as cali,tap: {shown(value)}")
    return frozenset(f"{prefix}*" for prefix in prefixes)


def _parse_route_source(value: Any) -> str:
    for source in ("CalicoIPAM", "WorkloadIPs"):
        if isinstance(value, str) and value.lower() == source.lower():
            return source
    raise ValueError(f"neither CalicoIPAM nor WorkloadIPs: {shown(value)}")


def _parse_range(value: Any) -> tuple[int, int]:
    """``{min: 1, max: 250}``, or ``1-250`` in environment and annotations."""
    bounds: Sequence[Any] = ()
    if isinstance(value, Mapping):
        bounds = (value.get("min"), value.get("max"))
    elif isinstance(value, str):
        bounds = value.strip().split("-")
    if len(bounds) != 2:
        raise ValueError(f"not a range of routing tables such as 1-250: {shown(value)}")
    low, high = (parse_integer(1, LONGEST_TABLE)(bound) for bound in bounds)
    if low > high:
        raise ValueError(f"the range ends before it begins: {shown(value)}")
    return low, high


def _parse_one_range(value: Any) -> tuple[tuple[int, int], ...]:
    return (_parse_range(value),)


def _parse_ranges(value: Any) -> tuple[tuple[int, int], ...]:
    parts = re.split(r"[, ]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError(f"not a list of ranges of routing tables: {shown(value)}")
    return tuple(map(_parse_range, parts))


_SHARED_FIELDS = {
    "rule_priority": "wireguardRoutingRulePriority",
    "keepalive": "wireguardKeepAlive",
    "host_encryption": "wireguardHostEncryptionEnabled",
    "refresh_seconds": "routeRefreshInterval",
    "route_protocol": "deviceRouteProtocol",
    "route_source": "routeSource",
    "mtu_interface_pattern": "mtuIfacePattern",
    "has_metrics": "prometheusWireGuardMetricsEnabled",
    "workloads": "interfacePrefix",
}
_FAMILY_FIELDS = {
    "enabled": "wireguardEnabled",
    "port": "wireguardListeningPort",
    "mtu": "wireguardMTU",
    "interface": "wireguardInterfaceName",
}
PARAMETERS = (
    Parameter("wireguardEnabled", parse_bool, none=False),
    Parameter("wireguardEnabledV6", parse_bool, none=False),
    Parameter("wireguardListeningPort", parse_integer(1, 65535)),
    Parameter("wireguardListeningPortV6", parse_integer(1, 65535)),
    Parameter("wireguardRoutingRulePriority", parse_integer(1, 32765)),
    Parameter("wireguardInterfaceName", _parse_interface_name),
    Parameter("wireguardInterfaceNameV6", _parse_interface_name),
    Parameter("wireguardMTU", _parse_mtu, none=0),
    Parameter("wireguardMTUV6", _parse_mtu, none=0),
    Parameter("wireguardHostEncryptionEnabled", parse_bool, none=False),
    Parameter("wireguardKeepAlive", _parse_keepalive, none=0, name="WireguardPersistentKeepAlive"),
    Parameter("prometheusWireGuardMetricsEnabled", parse_bool, none=False),
    Parameter("routeTableRanges", _parse_ranges, none=()),
    Parameter("routeTableRange", _parse_one_range, none=()),
    Parameter("routeSource", _parse_route_source),
    Parameter("routeRefreshInterval", _parse_refresh, none=math.inf),
    Parameter("routeSyncDisabled", parse_bool, none=False),
    Parameter("deviceRouteProtocol", parse_integer(0, 255), none=0),
    Parameter("iptablesMarkMask", _parse_mask),
    Parameter("nftablesMarkMask", _parse_mask),
    Parameter("mtuIfacePattern", _parse_pattern, name="MTUIfacePattern"),
    Parameter("ipv6Support", parse_bool, none=False),
    Parameter("interfacePrefix", _parse_workloads),
)

PATHS = (
    ("metadata", "creationTimestamp"),
    ("spec", "nodeSelector"),
    *(("spec", parameter.field) for parameter in PARAMETERS),
    *(("metadata", "annotations", ANNOTATION_PREFIX + parameter.parameter) for parameter in PARAMETERS),
)
"""What is looked at in a FelixConfiguration."""
