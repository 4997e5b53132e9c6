"""The kustomize base and its components: containers that fit together, within the bounds that docs/install.md promises."""

from pathlib import Path

import pytest

from controller.cli import agent
from controller.desired import DEFAULT_NUMBERS
from controller.model import Family, FelixConfiguration
from tests.deploy.manifests import container, daemon_set, kustomized


def test_the_data_plane_has_the_interfaces_that_the_agent_takes_by_default(tmp_path: Path) -> None:
    command = container(kustomized(tmp_path), "data-plane")["command"]

    felix = FelixConfiguration()
    wanted = [DEFAULT_NUMBERS[family].interface_name(felix.of(family).interface) for family in Family]
    assert command[2 : 2 + len(wanted)] == wanted


def test_the_containers_share_sockets_and_state_and_only_the_agent_has_a_token(tmp_path: Path) -> None:
    manifests = kustomized(tmp_path)
    mounts = {
        name: {mount["name"]: mount["mountPath"] for mount in container(manifests, name)["volumeMounts"]}
        for name in ("data-plane", "agent")
    }

    assert mounts["data-plane"].items() & mounts["agent"].items() == {("sockets", "/run/wireguard"), ("state", "/var/lib/wgpy")}
    assert "api" in mounts["agent"] and "api" not in mounts["data-plane"]
    assert daemon_set(manifests)["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", ["data-plane", "agent"])
def test_a_container_has_one_capability_and_writes_only_where_something_is_mounted(tmp_path: Path, name: str) -> None:
    bounds = container(kustomized(tmp_path), name)["securityContext"]

    assert bounds["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert bounds["readOnlyRootFilesystem"] and not bounds["allowPrivilegeEscalation"] and "privileged" not in bounds


def test_the_components_change_what_they_say(tmp_path: Path) -> None:
    manifests = kustomized(tmp_path, "strict", "net-raw")

    assert {"name": "WGPY_STRICT", "value": "true"} in container(manifests, "agent")["env"]
    assert container(manifests, "data-plane")["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "NET_RAW"]


def test_a_pod_monitor_scrapes_ports_that_are_served_on_the_address_it_asks(tmp_path: Path) -> None:
    manifests = kustomized(tmp_path, "monitoring")
    (monitor,) = (manifest for manifest in manifests if manifest["kind"] == "PodMonitor")

    ports: dict[str, int] = {}
    for name in ("data-plane", "agent"):
        spec = container(manifests, name)
        (host,) = (variable for variable in spec["env"] if variable["name"] == "METRICS_HOST")
        assert host == {"name": "METRICS_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
        assert all("host" not in spec[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe"))
        ports |= {port["name"]: port["containerPort"] for port in spec["ports"]}
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == list(ports)
    assert ports == {"metrics": 9586, "metrics-v6": 9587, "metrics-agent": 9588}


@pytest.mark.parametrize("components", [("flannel", "status-api"), ("status-api", "flannel")])
def test_components_that_change_one_command_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], components: tuple[str, ...]
) -> None:
    """Flannel's agent that is told nothing of Flannel is an agent of Calico's, which rests."""
    manifests = kustomized(tmp_path, *components)
    command = container(manifests, "agent")["command"]

    assert command[:2] == ["wgpy", "agent"] and "--state=/var/lib/wgpy" in command
    assert {"--mesh=flannel", "--net-conf=/etc/kube-flannel/net-conf.json"} <= set(command)
    assert {"--status-api=tunnel:9590", "--status-token=/run/secrets/wgpy/status/token"} <= set(command)
    assert container(manifests, "data-plane")["command"][2:4] == ["flannel-wgu", "flannel-wg-v6u"]
    with pytest.raises(SystemExit):
        agent([*command[2:], "--frobnicate"])
    assert capsys.readouterr().err.startswith("wgpy agent: unrecognized arguments: --frobnicate (")
